"""The demo of task weights: sliders that move through models that were really trained.

Taught in notebooks 00, 02 and 04; :func:`weight_explorer` is what readers import, from :mod:`mtl_helpers.widgets`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from mtl_helpers.data.tables import Task
from mtl_helpers.metrics import mean_interval
from mtl_helpers.sweep import Sweep, pareto_mask
from mtl_helpers.training import LOWER_IS_BETTER
from mtl_helpers.widgets import figures as plots
from mtl_helpers.widgets.explorer import Explorer, slider, undefined
from mtl_helpers.widgets.live import MAIN_METRIC

__all__ = ["Simplex", "weight_explorer"]

SIZE = (8.6, 3.7)
GREY = "#777777"


def weight_explorer(
    sweep: Sweep,
    *,
    baselines: Mapping[str, Any] | None = None,
    metric: str | Mapping[str, str] | None = None,
    split: str = "valid",
    start: Mapping[str, float] | None = None,
    lr: float | None = None,
) -> Explorer:
    """Task weights over models that were really trained: front, gains and learning curves (notebooks 00, 02, 04).

    With two tasks one slider gives the weight of the last one and the other gets the rest. With three tasks there is
    a slider each; moving one rescales the other two, so that the weights add up to 1. Between trained weightings
    numbers are interpolated, and the reading says so.

    Parameters
    ----------
    sweep : with ``tasks``, ``weightings`` (a row each, a column per task), ``records`` (columns weighting, seed,
        epoch, split, task, metric, value) and ``final()``, the records of the epoch that counts.
    baselines : ``{task: metric of a single-task model}``, a number or one for each seed of the sweep in the order
        of its seeds (then differences are paired). Without it gains are against equal weights.
    metric : one name for all tasks or ``{task: name}``; AUC, accuracy or RMSE by kind of task unless told.
    split : whose metric. start : ``{task: weight}`` of the first state; the trained weighting that is nearest to
        equal weights unless told. lr : which learning rate, where the sweep has several; the first unless told.

    Raises ValueError for other than two or three tasks, or records that lack the metric or split.
    """
    tasks = list(sweep.tasks)
    names = [task.name for task in tasks]
    if len(tasks) not in (2, 3):
        raise ValueError(
            f"weight_explorer shows two or three tasks; this sweep has {len(tasks)}: {', '.join(names)}"
        )
    chosen = {task.name: _metric_of(task, metric) for task in tasks}
    shares = sweep.weightings[names].to_numpy(float)
    shares = shares / shares.sum(axis=1, keepdims=True)
    low, high, step = _slider_grid(shares)
    fmt = ".2f" if abs(step * 100 - round(step * 100)) < 1e-9 else ".3f"
    mixer = _Mixer(shares)
    records, final = (_one_lr(frame, lr) for frame in (sweep.records, sweep.final()))
    runs = _final_metrics(final, len(shares), chosen, split)  # (seeds, weightings, tasks)
    signs = np.array([-1.0 if chosen[name] in LOWER_IS_BETTER else 1.0 for name in names])
    first = _first_weights(names, shares, start)
    base, versus = _baseline(baselines, names, chosen, runs, mixer, first)
    gains = (runs - base[:, None, :]) * signs
    curves = _loss_curves(records, names, len(shares))

    figure = plots.figure(*SIZE)
    left, middle, right = figure.subplots(1, 3, width_ratios=(1.25, 1, 1))
    centre = runs.mean(axis=0)
    front = pareto_mask(centre * signs, maximise=True)
    here, third = _draw_front(
        left, centre, front, tasks, chosen, base.mean(axis=0) if versus == "single-task" else None
    )
    bars, whiskers, tags = _draw_gains(middle, gains, names, chosen, versus)
    lines = _draw_curves(right, curves, names)

    def weights_of(state: Mapping[str, float]) -> np.ndarray:
        if len(names) == 2:
            return np.array([1 - state[names[1]], state[names[1]]])
        total = sum(state[name] for name in names)
        return np.array([state[name] / total for name in names])

    def update(state: dict) -> str:
        weights = weights_of(state)
        index, mix, where = mixer.at(weights)
        now = (runs[:, index] * mix[None, :, None]).sum(axis=1)
        gain = (now - base) * signs
        here.set_data([now[:, 0].mean()], [now[:, 1].mean()])
        if third is not None:
            third.set_ydata([now[:, 2].mean()] * 2)
        for row, name in enumerate(names):
            mean, half = _mean_and_half(gain[:, row])
            bars[row].set_width(mean)
            whiskers[row].set_data([mean - half, mean + half], [row, row])
            tags[row].set_text(f"{mean:+.4f}" if np.isfinite(mean) else "undefined")
            for part, line in lines[name].items():
                line.set_ydata((curves[name][part][index] * mix[:, None]).sum(axis=0))
        said = [
            f"{name} {chosen[name].upper()} {now[:, i].mean():.4f} ({gain[:, i].mean():+.4f})"
            for i, name in enumerate(names)
        ]
        shown = " + ".join(f"{weight:{fmt}} {name}" for name, weight in zip(names, weights, strict=True))
        place = {"trained": "trained", "between": "interpolated between trained weightings"}.get(
            where, "outside the sweep: the nearest trained weighting is shown"
        )
        if where == "trained":
            place += (
                ", on the Pareto front"
                if front[index[int(mix.argmax())]]
                else ", dominated by another weighting"
            )
        text = f"Loss = {shown} ({place}). Against {versus}: {', '.join(said)}."
        return " ".join(filter(None, (text, undefined({n: now[:, i].mean() for i, n in enumerate(names)}))))

    look = {"step": step, "fmt": fmt}
    if len(names) == 2:
        rest = f"{names[0]} gets the rest"
        knobs = [slider(names[1], f"weight of {names[1]}", low, high, first[1], unit=rest, **look)]
        return Explorer(figure, knobs, update, title=f"Task weights of {names[0]} and {names[1]}")
    simplex = Simplex(names, low, step)
    knobs = [
        slider(name, f"weight of {name}", low, high, value, **look)
        for name, value in simplex.snap(first).items()
    ]
    return Explorer(figure, knobs, update, title=f"Task weights of {', '.join(names)}", link=simplex)


class Simplex:
    """Weights that add up to 1: keeps the one that moved and shares the rest out among the others, in slider steps.

    The others keep the proportions they had before the first of a row of moves of the same slider, so pushing one to
    1 and back brings them back; they share equally when there is nothing to go by.

    >>> Simplex(("a", "b", "c"), step=0.1)({"a": 0.4, "b": 0.4, "c": 0.2}, "a")
    {'a': 0.4, 'b': 0.4, 'c': 0.2}
    >>> Simplex(("a", "b", "c"), step=0.1)({"a": 0.7, "b": 0.4, "c": 0.2}, "a")
    {'a': 0.7, 'b': 0.2, 'c': 0.1}
    """

    def __init__(self, names: Sequence[str], low: float = 0.0, step: float = 0.05) -> None:
        self.names, self.low, self.step = tuple(names), low, step
        self.total = round((1 - len(self.names) * low) / step)
        self._moved, self._given, self._ratio = "", dict[str, float](), np.ones(len(self.names) - 1)

    def __call__(self, state: Mapping[str, float], moved: str) -> dict[str, float]:
        others = [name for name in self.names if name != moved]
        if moved != self._moved or any(state[name] != self._given.get(name) for name in others):
            self._ratio = np.array([state[name] - self.low for name in others]).clip(0)
        kept = min(max(round((state[moved] - self.low) / self.step), 0), self.total)
        parts = dict(zip(others, _shared_out(self.total - kept, self._ratio), strict=True)) | {moved: kept}
        self._moved, self._given = moved, {name: self._weight(parts[name]) for name in self.names}
        return dict(self._given)

    def snap(self, weights: Sequence[float]) -> dict[str, float]:
        """The weights on the sliders' steps."""
        parts = _shared_out(self.total, np.asarray(weights, float) - self.low)
        return {name: self._weight(part) for name, part in zip(self.names, parts, strict=True)}

    def _weight(self, steps: int) -> float:
        return round(self.low + steps * self.step, 10)


def _shared_out(total: int, ratio: np.ndarray) -> list[int]:
    """Whole numbers that add up to ``total``, as near to the ratio as that allows (largest remainders)."""
    ratio = ratio.clip(0)
    exact = total * (ratio / ratio.sum() if ratio.sum() > 0 else np.full(len(ratio), 1 / len(ratio)))
    parts = np.floor(exact + 1e-9).astype(int)
    for index in np.argsort(parts - exact, kind="stable")[: total - parts.sum()]:
        parts[index] += 1
    return parts.tolist()


# --- what the explorers share -----------------------------------------------------------------------------------


class _Mixer:
    """Where a weighting lies among the trained ones: which of them, mixed how."""

    def __init__(self, shares: np.ndarray) -> None:
        self.shares = shares
        self._order = np.argsort(shares[:, -1], kind="stable")
        self._mesh: Any = None
        if shares.shape[1] == 3 and len(shares) >= 3:
            from scipy.spatial import Delaunay, QhullError

            try:
                self._mesh = Delaunay(shares[:, :2])
            except QhullError:  # all on one line: only the trained points themselves can be shown
                self._mesh = None

    def at(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray, str]:
        """Indices of trained weightings, their coefficients, and "trained", "between" or "outside"."""
        distance = np.abs(self.shares - weights).max(axis=1)
        nearest = int(distance.argmin())
        if distance[nearest] < 1e-4:
            return np.array([nearest]), np.ones(1), "trained"
        if self.shares.shape[1] == 2:
            along = self.shares[self._order, 1]
            right = int(np.searchsorted(along, weights[1]))
            if 0 < right < len(along):
                t = (weights[1] - along[right - 1]) / (along[right] - along[right - 1])
                return self._order[[right - 1, right]], np.array([1 - t, t]), "between"
        elif self._mesh is not None:
            point = weights[:2]
            simplex = int(self._mesh.find_simplex(point[None], tol=1e-9)[0])
            if simplex >= 0:
                change = self._mesh.transform[simplex]
                inner = change[:2] @ (point - change[2])
                return self._mesh.simplices[simplex], np.append(inner, 1 - inner.sum()), "between"
        return np.array([nearest]), np.ones(1), "outside"


def _slider_grid(shares: np.ndarray) -> tuple[float, float, float]:
    """Ends and step of the weight sliders: steps that stop at every trained weighting where these are evenly spaced."""
    two = shares.shape[1] == 2
    stops = np.unique(shares[:, 1:2].round(9) if two else shares.round(9))
    low, high = float(stops[0]), float(stops[-1])
    if len(stops) < 2:
        return 0.0, 1.0, 0.05
    gap = float(np.diff(stops).min())
    whole = np.append((stops - low) / gap, (high - low) / gap if two else (1 - 3 * low) / gap)
    if np.abs(whole - whole.round()).max() < 1e-4 and gap > 0.004:
        parts = math.ceil(gap / (0.0101 if two else 0.0251))
        return low, high, gap / parts
    return (low, high, 0.01) if two else (0.0, 1.0, 0.05)


def _metric_of(task: Task, metric: str | Mapping[str, str] | None) -> str:
    if isinstance(metric, str):
        return metric
    return (metric or {}).get(task.name) or MAIN_METRIC[task.kind]


def _first_weights(names: list[str], shares: np.ndarray, start: Mapping[str, float] | None) -> np.ndarray:
    """The start asked for, or the trained weighting nearest to equal weights."""
    if start is None:
        return shares[np.abs(shares - 1 / len(names)).max(axis=1).argmin()]
    if set(start) != set(names) or sum(start.values()) <= 0:
        raise ValueError(
            f"start needs one weight for each of {', '.join(names)}, not all 0; got {dict(start)}"
        )
    given = np.array([start[name] for name in names], float)
    return given / given.sum()


def _one_lr(frame: pd.DataFrame, lr: float | None) -> pd.DataFrame:
    """The records of one learning rate, the first unless told."""
    if "lr" not in frame or not len(frame):
        return frame
    wanted = frame["lr"].iloc[0] if lr is None else lr
    if not (frame["lr"] == wanted).any():
        raise ValueError(f"no run with learning rate {lr}; there are {sorted(frame['lr'].unique().tolist())}")
    return frame[frame["lr"] == wanted]


def _final_metrics(final: pd.DataFrame, count: int, chosen: Mapping[str, str], split: str) -> np.ndarray:
    """(seeds, weightings, tasks); NaN where a run has no such number."""
    seeds = sorted(final["seed"].unique())
    out = np.full((len(seeds), count, len(chosen)), np.nan)
    for column, (name, metric) in enumerate(chosen.items()):
        rows = final[(final["task"] == name) & (final["metric"] == metric) & (final["split"] == split)]
        if not len(rows):
            known = sorted(set(final["metric"])), sorted(set(final["split"]))
            raise ValueError(
                f"the sweep has no {split} {metric!r} of {name!r}; metrics {known[0]}, splits {known[1]}"
            )
        at = np.searchsorted(seeds, rows["seed"]), rows["weighting"].to_numpy(int)
        out[at[0], at[1], column] = rows["value"].to_numpy(float)
    return out


def _baseline(
    baselines: Mapping[str, Any] | None,
    names: list[str],
    chosen: Mapping[str, str],
    runs: np.ndarray,
    mixer: _Mixer,
    first: np.ndarray,
) -> tuple[np.ndarray, str]:
    """(seeds, tasks) to compare with, and its name."""
    if baselines is None:
        equal = np.full(len(names), 1 / len(names))
        index, mix, _ = mixer.at(equal)
        return (runs[:, index] * mix[None, :, None]).sum(axis=1), "equal weights"
    if not set(names) <= set(baselines):
        raise ValueError(
            f"baselines need a number for each of {', '.join(names)}; got {', '.join(baselines)}"
        )
    columns = []
    for name in names:
        given = baselines[name]
        given = np.atleast_1d(np.asarray(given[chosen[name]] if isinstance(given, Mapping) else given, float))
        columns.append(given if len(given) == len(runs) else np.full(len(runs), given.mean()))
    return np.stack(columns, axis=1), "single-task"


def _loss_curves(records: pd.DataFrame, names: list[str], count: int) -> dict[str, dict[str, np.ndarray]]:
    """``{task: {split: (weightings, epochs)}}``: losses, means over seeds, as multiples of the first epoch's."""
    losses = records[records["metric"] == "loss"]
    epochs = np.sort(losses["epoch"].unique())
    curves: dict[str, dict[str, np.ndarray]] = {}
    for name in names:
        curves[name] = {"epoch": epochs}
        for split in ("valid", "train"):
            rows = losses[(losses["task"] == name) & (losses["split"] == split)]
            if len(rows):
                grid = rows.pivot_table(index="weighting", columns="epoch", values="value", aggfunc="mean")
                values = grid.reindex(index=range(count), columns=epochs).to_numpy(float)
                with np.errstate(all="ignore"):
                    curves[name][split] = values / np.nanmean(values[:, :1])
    return curves


def _draw_front(
    ax: Axes,
    centre: np.ndarray,
    front: np.ndarray,
    tasks: list[Task],
    chosen: Mapping[str, str],
    base: np.ndarray | None,
) -> tuple[Any, Any]:
    """All trained weightings, front and baseline; returns what moves: the point, the mark on a third task's scale."""
    third = None
    x, y = centre[:, 0], centre[:, 1]
    labels = [f"{task.name} {chosen[task.name].upper()}" for task in tasks]
    ax.plot(x[~front], y[~front], "o", mfc="none", mec=GREY, ms=5, label="dominated")
    if centre.shape[1] == 2:
        order = np.argsort(x[front], kind="stable")
        ax.plot(x[front][order], y[front][order], "o-", color="#333333", ms=5, lw=1, label="Pareto front")
    else:
        dots = ax.scatter(
            x[front], y[front], c=centre[front, 2], cmap="viridis", s=30, zorder=3, label="Pareto front"
        )
        scale = ax.figure.colorbar(dots, ax=ax, label=labels[2], aspect=30, pad=0.02).ax
        third = scale.axhline(np.nan, color="#E69F00", lw=4, animated=True)
    if base is not None:
        for draw, value, task in ((ax.axvline, base[0], tasks[0]), (ax.axhline, base[1], tasks[1])):
            draw(value, color=plots.task_style(task.name)["color"], lw=1, ls="--", label=f"{task.name} alone")
    ax.set(xlabel=labels[0], ylabel=labels[1])
    ax.locator_params(nbins=5)
    ax.set_title("What weights can buy")
    ax.legend(fontsize=8, loc="best")
    point = ax.plot([], [], "*", color="#E69F00", mec="black", ms=17, animated=True, zorder=9)[0]
    return point, third


def _draw_gains(
    ax: Axes, gains: np.ndarray, names: list[str], chosen: Mapping[str, str], versus: str
) -> tuple[list[Any], list[Any], list[Any]]:
    reach = np.nanmax(np.abs(gains)) * 1.35 if np.isfinite(gains).any() else 1.0
    reach = reach or 1.0
    bars, whiskers, tags = [], [], []
    for row, name in enumerate(names):
        color = plots.task_style(name)["color"]
        bar = ax.barh(row, 0.0, height=0.5, color=color, animated=True)[0]
        bars.append(bar)
        whiskers.append(ax.plot([], [], color="black", lw=1.5, animated=True)[0])
        tags.append(ax.text(0, row - 0.37, "", ha="center", va="center", fontsize=9, animated=True))
    ax.axvline(0, color="black", lw=1)
    ax.set(xlim=(-reach, reach), ylim=(len(names) - 0.4, -0.6))
    ax.set_yticks(range(len(names)), names)
    ax.grid(axis="y", visible=False)
    ax.locator_params(axis="x", nbins=4)
    kinds = {chosen[name].upper() for name in names}
    ax.set_xlabel(f"gain over {versus} ({kinds.pop() if len(kinds) == 1 else 'own metric'})")
    ax.set_title("Who gains, who pays")
    return bars, whiskers, tags


def _draw_curves(
    ax: Axes, curves: dict[str, dict[str, np.ndarray]], names: list[str]
) -> dict[str, dict[str, Any]]:
    lines: dict[str, dict[str, Any]] = {}
    for name in names:
        epochs = curves[name].pop("epoch")
        style, lines[name] = plots.task_style(name), {}
        for split, values in curves[name].items():
            look = (
                {"ls": style["linestyle"], "lw": 1.8}
                if split == "valid"
                else {"ls": "-", "lw": 1, "alpha": 0.45}
            )
            lines[name][split] = ax.plot(epochs, values[0], color=style["color"], animated=True, **look)[0]
            if split == "valid":
                ax.plot([], [], color=style["color"], label=name, **look)
    if any("train" in parts for parts in curves.values()):
        ax.plot([], [], color=GREY, lw=1, alpha=0.6, label="thin: training")
    everything = np.concatenate(
        [values.ravel() for parts in curves.values() for values in parts.values()] or [np.ones(1)]
    )
    finite = everything[np.isfinite(everything)]
    low, high = (finite.min(), np.quantile(finite, 0.999)) if len(finite) else (0, 1)
    pad = 0.06 * (high - low) or 0.1
    ax.set(ylim=(low - pad, high + pad), xlabel="epoch", ylabel="loss (first epoch = 1)")
    ax.set_title("Learning curves")
    ax.legend(fontsize=8, loc="upper right")
    return lines


def _mean_and_half(values: np.ndarray) -> tuple[float, float]:
    """Mean and half the 95 % interval; no half for a single run."""
    if len(values) < 2 or not np.isfinite(values).all():
        return float(values.mean()), float("nan")
    interval = mean_interval(values)
    return interval.mean, interval.high - interval.mean
