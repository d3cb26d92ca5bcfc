"""Moves every control of every demo, without a browser: in this environment, and in one with other versions.

    python tests/browser/drive_widgets.py

Each move sets the value of the ipywidgets control, as a browser's message does, and must change picture and reading.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]

import ipywidgets  # noqa: E402
import widget_demos  # noqa: E402


def drive(name: str) -> int:
    """Number of moves made."""
    demo = widget_demos.ALL[name]()
    bundle = demo._repr_mimebundle_()
    assert bundle["application/vnd.jupyter.widget-view+json"]["model_id"] and bundle["image/png"]
    explorer = getattr(demo, "explorer", demo)
    knobs, picture = explorer.widget.children
    moves = 0
    for control in knobs.children:
        if isinstance(control, ipywidgets.Button):
            continue
        before, said = picture.value, explorer.reading
        if isinstance(control, ipywidgets.SelectionSlider):
            values = [value for _, value in control.options]
            control.value = values[(values.index(control.value) + 1) % len(values)]
        else:
            control.value = control.min if control.value > (control.min + control.max) / 2 else control.max
        assert not explorer.error, explorer.error
        assert picture.value != before and explorer.reading != said, f"{name}: {control.description} moved nothing"
        moves += 1
    reset = [control for control in knobs.children if getattr(control, "description", "") == "Reset"]
    reset[0].click()
    assert explorer.state == {name: control.value for name, control in explorer.controls.items()}
    return moves


if __name__ == "__main__":
    print(f"ipywidgets {ipywidgets.__version__}:", {name: drive(name) for name in widget_demos.ALL})
