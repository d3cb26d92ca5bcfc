"""Every state of a demo, drawn, for pages that need no kernel (``web.py``).

Only the kernel that runs a notebook has its demos, so ``FIRST_CELL`` runs there before the notebook's own cells.
"""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import ipywidgets
from IPython import get_ipython
from ipywidgets import Widget

__all__ = ["FIRST_CELL", "STATES", "all_states"]

STATES = "application/vnd.mtl.states+json"  # how states travel to the page
FIRST_CELL = f"import sys\nsys.path.append({str(Path(__file__).parent)!r})\nimport states\nstates.hand_over()"
MOST_STATES, FEWEST_STOPS, STRIDES = 130, 7, (2, 5, 10, 15, 20)


def hand_over() -> None:
    """From now on a demo that a cell shows brings its states along."""
    formatter = get_ipython().display_formatter.mimebundle_formatter
    formatter.for_type_by_name("mtl_helpers.widgets.explorer", "Explorer", with_states)
    formatter.for_type_by_name(
        "mtl_helpers.widgets.live", "live_training", lambda live: with_states(live.explorer)
    )


def with_states(explorer: Any) -> tuple[dict, dict]:
    bundle, size = explorer._repr_mimebundle_()
    return {**bundle, STATES: all_states(explorer)}, size


def all_states(explorer: Any) -> dict[str, Any] | None:
    """Every state that can be reached, drawn: sliders stop at round values only, so that states are few. None if they
    still are too many, or if a button does more than Reset."""
    if len(explorer.buttons) > 1:
        return None
    controls, first = explorer.controls, explorer.first
    stops = {name: stops_of(each, 1, first[name]) for name, each in controls.items()}
    sliders = [name for name in stops if not isinstance(controls[name], ipywidgets.Dropdown)]
    strides = {name: list(STRIDES) for name in sliders}
    while len(reached := reach(explorer, stops)) > MOST_STATES:
        fine = [name for name in sliders if len(stops[name]) > FEWEST_STOPS and strides[name]]
        if not fine:
            return None
        finest = max(fine, key=lambda name: len(stops[name]))
        stops[finest] = stops_of(controls[finest], strides[finest].pop(0), first[finest])
    present, drawn, order = explorer.state, [], {state: at for at, state in enumerate(reached)}
    for state, ends in reached.items():
        explorer.go(**dict(zip(stops, state, strict=True)))
        if explorer.error:
            raise RuntimeError(f"{explorer.title}, {explorer.state}: {explorer.error}")
        at = [stops[name].index(value) for name, value in explorer.state.items()]
        png = base64.b64encode(explorer.png()).decode("ascii")
        drawn.append({"at": at, "ends": [order[e] for e in ends], "reading": explorer.reading, "png": png})
    explorer.go(**present)
    knobs = [
        {"label": each.description, "menu": name not in sliders, "stops": [*map(each.said, stops[name])]}
        for name, each in controls.items()
    ]
    return {"title": explorer.title, "controls": knobs, "states": drawn}


def reach(explorer: Any, stops: dict[str, list[Any]]) -> dict[tuple, list[tuple]]:
    """States as tuples, the first one first, each with the states to which a move to any stop leads."""
    reached, new = {}, [tuple(explorer.first.values())]
    while new and len(reached) <= MOST_STATES:
        if (here := new.pop()) in reached:
            continue
        state = dict(zip(stops, here, strict=True))
        moved = [explorer.link({**state, name: value}, name) for name in stops for value in stops[name]]
        reached[here] = [tuple(explorer.controls[n].settled(end[n]) for n in stops) for end in moved]
        new += reached[here]
    return reached


def stops_of(control: Widget, stride: int, first: Any) -> list[Any]:
    """Every so many-th value of a control, counted from zero so that they are round; both ends, and the first value."""
    if hasattr(control, "options"):
        ticks = dict(enumerate(value for _, value in control.options))
    else:
        low, high, step = control.min, control.max, control.step
        numbers = range(round(low / step), round(high / step) + 1)
        ticks = {number: control.settled(min(max(number * step, low), high)) for number in numbers}
    kept = (first, ticks[min(ticks)], ticks[max(ticks)])
    return [value for number, value in ticks.items() if number % stride == 0 or value in kept]
