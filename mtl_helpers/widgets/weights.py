"""The demo of task weights: sliders that step through models that were really trained.

Taught in notebooks 00, 02 and 04; :func:`weight_explorer` is what readers import, from :mod:`mtl_helpers.widgets`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from ipywidgets import Widget
from matplotlib.axes import Axes

from mtl_helpers.metrics import LOWER_IS_BETTER, mean_interval, pareto_mask
from mtl_helpers.widgets import figures as plots
from mtl_helpers.widgets.explorer import Explorer, choice_slider, undefined
from mtl_helpers.widgets.figures import GREY, HALO, HEIGHT, HERE, figure, legend_outside, minus, task_style

if TYPE_CHECKING:
    from mtl_helpers.sweep import Sweep

__all__ = ["StoredSweep", "TrainedWeights", "weight_explorer"]

Move = Callable[[int], None]  # moves what is animated to the weighting of a row


class StoredSweep:
    """What :func:`weight_explorer` reads of a sweep, from a table in ``notebooks/results``: its records, with the
    ``weight_…`` of each task and the ``kept`` epoch of the run in every row (``notebooks/studies/nb00_family.py``)."""

    def __init__(self, name: str) -> None:
        folder = Path(__file__).parents[2] / "notebooks" / "results"
        self.records = pd.read_csv(folder / f"{name}.csv", comment="#")
        self.weightings = self.records.groupby("weighting").first().filter(like="weight_")
        self.weightings.columns = self.weightings.columns.str.removeprefix("weight_")

    def final(self) -> pd.DataFrame:
        """The records of the epochs whose parameters were kept."""
        return self.records[self.records["epoch"] == self.records["kept"]]


class TrainedWeights:
    """Weight sliders that stand on trained weightings only.

    Moving one chooses, among the weightings with that share of its task, the one whose other shares are nearest to the
    proportions they had before the first of a row of moves of the same slider, so pushing it away and back changes
    nothing. weightings : a row each, a column for each task; only proportions count.

    >>> trained = TrainedWeights(pd.DataFrame({"a": [1, 2, 1, 0], "b": [1, 1, 2, 0], "c": [2, 1, 1, 4]}))
    >>> trained.nearest({"a": 1, "b": 1, "c": 1.5})
    0
    >>> trained.link({"a": 0.5, "b": 0.25, "c": 0.5}, "a")
    {'a': 0.5, 'b': 0.25, 'c': 0.25}
    """

    def __init__(self, weightings: pd.DataFrame) -> None:
        self.names = list(weightings)
        shares = weightings.to_numpy(float)
        self.shares = (shares / shares.sum(axis=1, keepdims=True)).round(6)
        self._last, self._settled = "", self.shares[0]

    def nearest(self, weights: Mapping[str, float]) -> int:
        """The row of the trained weighting nearest to these weights, as shares of their sum."""
        wanted = np.array([weights[name] for name in self.names], float)
        return int(np.abs(self.shares - wanted / wanted.sum()).max(axis=1).argmin())

    def row(self, state: Mapping[str, Any]) -> int:
        """The row on which the sliders of a state stand; one of two tasks may have none and gets the rest."""
        stands = {name: state[name] for name in self.names if name in state}
        return self.nearest(dict.fromkeys(self.names, 1 - sum(stands.values())) | stands)

    def sliders(self, tasks: Sequence[str], row: int, label: str = "{}", unit: str = "") -> list[Widget]:
        """One slider for each of the tasks, on that row; ``label`` holds the task's name as {}."""
        made = []
        for task in tasks:
            at = self.names.index(task)
            stops, start = np.unique(self.shares[:, at]), self.shares[row, at]
            fmt = ".2f" if len(np.unique(stops.round(2))) == len(stops) else ".3f"
            made.append(choice_slider(task, label.format(task), stops, start, unit=unit, fmt=fmt))
        return made

    def link(self, state: Mapping[str, Any], moved: str) -> dict[str, Any]:
        """The state with all weights on one trained weighting, ``moved`` where it was put."""
        if moved not in self.names or not set(self.names) <= set(state):
            return state
        now, at = np.array([state[name] for name in self.names]), self.names.index(moved)
        others = np.arange(len(now)) != at
        if self._last != moved or (self._settled != now)[others].any():  # another slider, or another start
            self._last, self._before = moved, now
        wanted = self._before * others if (self._before * others).any() else others * 1.0
        wanted *= (1 - now[at]) / wanted.sum()
        wanted[at] = now[at]
        stops = self.shares[:, at]
        here = np.flatnonzero(np.isclose(stops, stops[np.abs(stops - now[at]).argmin()]))
        self._settled = self.shares[here[np.abs(self.shares[here] - wanted).max(axis=1).argmin()]]
        return {**state, **dict(zip(self.names, self._settled.tolist(), strict=True))}


def weight_explorer(
    sweep: Sweep | StoredSweep,
    *,
    baselines: Mapping[str, Sequence[float]] | None = None,
    start: Mapping[str, float] | None = None,
) -> Explorer:
    """Task weights over models that were really trained: front, gains and learning curves (notebooks 00, 02, 04).

    With two tasks one slider gives the weight of the last one and the other gets the rest. With three tasks there is
    a slider each; moving one moves the other two, to the trained weighting that fits best. Metrics are validation AUC,
    accuracy or RMSE by kind of task.

    sweep : of two or three tasks (else ValueError).
    baselines : ``{task: metrics of single-task models}``, one for each seed of the sweep in their order: differences
        are paired. Without it gains are against the weighting nearest to equal.
    start : ``{task: weight}``; the first state is the trained weighting nearest to it, or else the one whose gains
        differ most between tasks.
    """
    names, found = list(sweep.weightings), sweep.records.query("split == 'valid' and metric != 'loss'")
    *others, last = names
    if len(names) not in (2, 3):
        raise ValueError(f"weight_explorer shows two or three tasks; this sweep has {', '.join(names)}")
    chosen = found.groupby("task")["metric"].first()[names].to_dict()
    labels = [f"{name} {plots.metric_name(metric)}" for name, metric in chosen.items()]
    signs = np.array([-1.0 if metric in LOWER_IS_BETTER else 1.0 for metric in chosen.values()])
    trained = TrainedWeights(sweep.weightings[names])
    final = sweep.final().query("split == 'valid'")
    final = final[final["metric"] == final["task"].map(chosen)]
    table = final.pivot(index="seed", columns=["task", "weighting"], values="value").sort_index(axis=1)
    runs = np.stack([table[name] for name in names], axis=2)  # (seeds, weightings, tasks)
    equal = trained.nearest(dict.fromkeys(names, 1.0))
    base, even = runs[:, equal], trained.shares[equal]
    versus = "equal weights" if np.ptp(even) < 0.01 else " : ".join(f"{share:.2f}" for share in even)
    if baselines is not None:
        base, versus = np.transpose([baselines[name] for name in names]), "single-task"
    gains = (runs - base[:, None, :]) * signs
    centre = runs.mean(axis=0)
    front = pareto_mask(centre * signs, maximise=True)

    fig = figure(HEIGHT)
    left, middle, right = fig.subplots(1, 3, width_ratios=(1.25, 1, 1))
    alone = {} if baselines is None else dict(zip(names, base.mean(axis=0), strict=True))
    units = {plots.metric_name(metric) for metric in chosen.values()}
    unit = units.pop() if len(units) == 1 else "own metric"
    moves = (
        _draw_front(left, centre, front, labels, alone),
        _draw_gains(middle, gains, names, f"gain over {versus} ({unit})"),
        _draw_curves(right, sweep.records, names),
    )
    legend_outside(fig)
    fmt = ".2f" if np.allclose(trained.shares * 100, (trained.shares * 100).round()) else ".3f"

    def update(state: dict) -> str:
        row = trained.row(state)
        for move in moves:
            move(row)
        shares = zip(trained.shares[row], names, strict=True)
        loss = " + ".join(f"{share:{fmt}} {name}" for share, name in shares)
        place = "on the Pareto front" if front[row] else "dominated by another weighting"
        means = zip(labels, centre[row], gains[:, row].mean(axis=0), strict=True)
        said = ", ".join(f"{label} {value:.4f} ({gain:+.4f})" for label, value, gain in means)
        text = f"Loss = {loss} (trained, {place}). Against {versus}: {said}. "
        return (text + undefined(dict(zip(names, centre[row], strict=True)))).strip()

    spread = np.ptp(np.nan_to_num(gains.mean(axis=0)), axis=1)
    first = int(spread.argmax()) if start is None else trained.nearest(start)
    slid, unit = ([last], f"{others[0]} gets the rest") if len(names) == 2 else (names, "")
    knobs = trained.sliders(slid, first, "weight of {}", unit)
    title = f"Task weights of {', '.join(others)} and {last}"
    return Explorer(fig, knobs, update, title=title, link=trained.link)


def _draw_front(ax: Axes, centre: np.ndarray, front: np.ndarray, labels: list[str], alone: dict) -> Move:
    """All trained weightings, front and baselines; what moves is the star, and the mark on a third task's scale."""
    x, y = centre[:, 0], centre[:, 1]
    ax.plot(x[~front], y[~front], "o", mfc="none", mec=GREY, ms=5, label="dominated")
    look = {"label": "Pareto front", "zorder": 3}
    if centre.shape[1] == 2:
        order = np.flatnonzero(front)[np.argsort(x[front], kind="stable")]
        ax.plot(x[order], y[order], "o-", color="#333333", ms=5, lw=1, **look)
    else:
        dots = ax.scatter(x[front], y[front], c=centre[front, 2], cmap="viridis", s=30, **look)
    ax.set(xlabel=labels[0], ylabel=labels[1], title="What weights can buy")
    ax.locator_params(nbins=5)
    star = ax.plot([], [], "*", color=HERE, mec="black", ms=17, animated=True, zorder=9)[0]
    marks = []
    if centre.shape[1] == 3:
        scale = ax.figure.colorbar(dots, ax=ax, label=labels[2], aspect=30, pad=0.02).ax
        marks.append(scale.axhline(np.nan, color="black", lw=4, animated=True))
    for (name, value), draw in zip(alone.items(), (ax.axvline, ax.axhline), strict=False):
        draw(value, color=task_style(name)["color"], lw=1, ls="--", label=f"{name} alone")

    def move(row: int) -> None:
        star.set_data(centre[row, :1], centre[row, 1:2])
        for mark in marks:
            mark.set_ydata([centre[row, 2]] * 2)

    return move


def _draw_gains(ax: Axes, gains: np.ndarray, names: list[str], label: str) -> Move:
    """A bar with its interval for each task."""
    reach = np.max(np.abs(gains[np.isfinite(gains)]), initial=0) * 1.35 or 1.0
    moving = []
    for at, name in enumerate(names):
        bar = ax.barh(at, 0.0, height=0.5, color=task_style(name)["color"], animated=True)[0]
        whisker = ax.plot([], [], color="black", lw=1.5, animated=True)[0]
        look = {"va": "center", "fontsize": 9, "path_effects": HALO, "animated": True}
        tag = ax.text(0, at - 0.37, "", ha="center", **look)
        moving.append((at, bar, whisker, tag))
    ax.axvline(0, color="black", lw=1)
    ax.set(xlim=(-reach, reach), ylim=(len(names) - 0.4, -0.6), xlabel=label, title="Who gains, who pays")
    ax.set_yticks(range(len(names)), names)
    ax.grid(axis="y", visible=False)
    ax.locator_params(axis="x", nbins=4)

    def move(row: int) -> None:
        for at, bar, whisker, tag in moving:
            mean, ends = float(gains[:, row, at].mean()), []
            if len(gains) > 1 and np.isfinite(mean):  # a single run has no interval
                interval = mean_interval(gains[:, row, at])
                ends = [interval.low, interval.high]
            bar.set_width(mean)
            whisker.set_data(ends, [at] * len(ends))
            tag.set_text(minus(f"{mean:+.4f}") if np.isfinite(mean) else "undefined")

    return move


def _draw_curves(ax: Axes, records: pd.DataFrame, names: list[str]) -> Move:
    """Losses as multiples of the first epoch's, its mean over all weightings; means over seeds: a line for each task
    and split, on limits that hold every weighting."""
    losses, lines = records[records["metric"] == "loss"], {}
    curves = losses.groupby(["task", "split", "weighting", "epoch"])["value"].mean().unstack()
    curves = curves.div(curves.iloc[:, 0].groupby(["task", "split"]).transform("mean"), axis=0)
    for name in names:
        color, dashes = (task_style(name)[part] for part in ("color", "linestyle"))
        looks = {"train": {"ls": "-", "lw": 1, "alpha": 0.45}, "valid": {"ls": dashes, "lw": 1.8}}
        for split, look in looks.items():
            (line,) = ax.plot([], [], color=color, animated=True, **look)
            lines[line] = curves.loc[name, split].to_numpy()
        ax.plot([], [], color=color, label=name, **looks["valid"])
    ax.plot([], [], color=GREY, lw=1, alpha=0.6, label="training")
    low, high = np.nanmin(curves), np.nanquantile(curves, 0.999)
    pad, epochs = 0.06 * (high - low) or 0.1, curves.columns
    room = 0.05 * (epochs[-1] - epochs[0]) or 0.05
    ax.set(xlim=(epochs[0] - room, epochs[-1] + room), ylim=(low - pad, high + pad), title="Learning curves")
    ax.set(xlabel="epoch", ylabel="loss (mean first epoch = 1)")

    def move(row: int) -> None:
        for line, values in lines.items():
            line.set_data(epochs, values[row])

    return move
