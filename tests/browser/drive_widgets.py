"""Moves every control of every demo, without a browser: in this environment, and in one with other versions.

    python tests/browser/drive_widgets.py

Each move sets the value of the ipywidgets control, as a browser's message does, and must change picture and reading.
Live training is started, moved and stopped in a kernel.
"""

from __future__ import annotations

import sys
from pathlib import Path

REPO = Path(__file__).parents[2]
sys.path[:0] = [str(Path(__file__).parent), str(REPO), str(REPO / "notebooks" / "source")]

import ipywidgets  # noqa: E402
import nbformat  # noqa: E402
import widget_demos  # noqa: E402

from execute import execute  # noqa: E402

LIVE = (
    f"import sys; sys.path[:0] = {sys.path[:2]!r}\nimport asyncio, widget_demos",
    "live = widget_demos.live()\nlive",
    "live.explorer.buttons['Start'].click()",
    "while live.step < 60: await asyncio.sleep(0.01)",
    "live.explorer.controls['click'].value = 0.0\nmoved = live.step",
    "while live.step < moved + 10: await asyncio.sleep(0.01)",
    "live.explorer.buttons['Stop'].click()\nassert not live.explorer.error, live.explorer.error",
    "clicks = [weights['click'] for weights in live.used]\n"
    "assert live.status == 'stopped' and set(clicks) == {0.5, 0.0} and clicks[-1] == 0, clicks",
)


def drive(name: str) -> int:
    """Number of moves made."""
    demo = widget_demos.ALL[name]()
    bundle, _ = demo._repr_mimebundle_()
    assert bundle["application/vnd.jupyter.widget-view+json"]["model_id"] and bundle["image/png"]
    explorer = getattr(demo, "explorer", demo)
    picture = explorer.widget.children[1]
    for control in explorer.controls.values():
        before, said = picture.value, explorer.reading
        if isinstance(control, ipywidgets.SelectionSlider | ipywidgets.Dropdown):
            values = [value for _, value in control.options]
            control.value = values[(values.index(control.value) + 1) % len(values)]
        else:
            control.value = control.min if control.value > (control.min + control.max) / 2 else control.max
        assert not explorer.error, explorer.error
        assert picture.value != before and explorer.reading != said, (
            f"{name}: {control.description} moved nothing"
        )
    explorer.buttons["Reset"].click()
    assert explorer.state == {name: control.value for name, control in explorer.controls.items()}
    return len(explorer.controls)


def drive_live() -> None:
    """Start, slider and Stop of live training on a kernel's own event loop."""
    execute(
        nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in LIVE]), REPO, timeout=120
    )


if __name__ == "__main__":
    drive_live()
    print(f"ipywidgets {ipywidgets.__version__}:", {name: drive(name) for name in widget_demos.ALL})
