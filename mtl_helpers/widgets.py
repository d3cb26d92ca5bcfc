"""The demos of the course: sliders that drive its figures.

``threshold_explorer`` belongs to notebook 01, ``scarcity_explorer`` to 02, ``weight_explorer`` to 00, 02 and 04,
``live_training`` to 04. Each returns an :class:`~mtl_helpers.widget_kit.Explorer` (or holds one): show it as the last
expression of a cell, or drive it in code with ``.set(...)``, ``.state``, ``.reading`` and ``.png()``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from . import plots
from .data import Task
from .live import MAIN_METRIC, LiveTraining, live_training
from .metrics import confusion, mean_interval, paired_difference
from .training import LOWER_IS_BETTER
from .widget_kit import Control, Explorer, choice_slider, dropdown, slider, toggle, undefined

__all__ = [
    "Control",
    "Explorer",
    "LiveTraining",
    "choice_slider",
    "dropdown",
    "live_training",
    "scarcity_explorer",
    "slider",
    "threshold_explorer",
    "toggle",
    "weight_explorer",
]

SIZE = (9.0, 3.8)
COLORS = ("#0072B2", "#D55E00", "#009E73")
GREY = "#777777"


def threshold_explorer(
    labels: Any,
    probabilities: Any,
    *,
    name: str = "purchase",
    threshold: float = 0.5,
    thresholds: Sequence[float] = (),
) -> Explorer:
    """What a decision threshold does to precision, recall and accuracy on a rare label (notebook 01).

    Parameters
    ----------
    labels, probabilities : (n,) arrays or tensors: 0 or 1, and in [0, 1].
    name : of the task, for titles.
    threshold : the first state; predictions of at least the threshold count as a yes.
    thresholds : where the slider may stop; 61 values in even ratios unless told, since a rare label's probabilities
        crowd near zero.

    Raises ValueError when the lengths differ, a label is not 0 or 1, or a probability is outside [0, 1].
    """
    y, p = _labels_and_scores(labels, probabilities)
    stops = sorted({*(thresholds or np.geomspace(1e-3, 0.95, 60).round(4).tolist()), threshold})
    if stops[0] < 0 or stops[-1] > 1:
        raise ValueError(f"thresholds lie in [0, 1]; got {stops[0]} to {stops[-1]}")
    counts = [tuple(confusion(y, p, stop).values()) for stop in stops]
    tp, fp, fn, tn = np.array(counts, float).T
    with np.errstate(invalid="ignore", divide="ignore"):
        curves = {"precision": tp / (tp + fp), "recall": tp / (tp + fn), "accuracy": (tp + tn) / len(y)}
    majority = max(y.mean(), 1 - y.mean())

    figure = plots.figure(*SIZE)
    hist, lines, table = figure.subplots(1, 3, width_ratios=(1, 1.2, 0.8))
    bins = np.geomspace(max(min(stops[0] or 1e-4, np.quantile(p, 0.001)), 1e-4), 1, 40)
    for value, color, label in ((0, GREY, f"no {name}"), (1, COLORS[1], name)):
        hist.hist(p[y == value].clip(bins[0]), bins=bins, histtype="step", lw=1.6, color=color, label=label)
    hist.set(xscale="log", yscale="log", xlabel="predicted probability", ylabel="impressions")
    hist.set_title("Scores of both classes")
    hist.legend(fontsize=8, loc="upper right")
    cuts = [axis.axvline(threshold, color="black", lw=1.2, ls="--", animated=True) for axis in (hist, lines)]
    dots = {}
    for (metric, values), color, marker in zip(curves.items(), COLORS, "osD", strict=False):
        lines.plot(stops, values, color=color, lw=1.6, label=metric)
        dots[metric] = lines.plot([], [], color=color, marker=marker, ms=8, mec="white", animated=True)[0]
    lines.axhline(majority, color=GREY, ls=":", lw=1.2, label="always the majority")
    lines.set(xscale="log", ylim=(-0.03, 1.03), xlabel="threshold", ylabel="share")
    lines.set_title("One threshold, three stories")
    lines.legend(fontsize=8, loc="center left")
    table.set(xlim=(0, 2), ylim=(0, 2), xticks=(0.5, 1.5), yticks=(0.5, 1.5), aspect="equal")
    table.set_xticklabels([f"said {name}", "said no"], fontsize=8)
    table.set_yticklabels(["no", name], rotation=90, va="center", fontsize=8)
    table.set_title("Confusion counts")
    table.axhline(1, color=GREY, lw=0.8)
    table.axvline(1, color=GREY, lw=0.8)
    cells = [
        table.text(x, row, "", ha="center", va="center", fontsize=12, color=color, animated=True)
        for x, row, color in (
            (0.5, 1.5, COLORS[2]),
            (0.5, 0.5, COLORS[1]),
            (1.5, 1.5, COLORS[1]),
            (1.5, 0.5, COLORS[2]),
        )
    ]

    def update(state: dict) -> str:
        at = stops.index(state["threshold"])
        stop = stops[at]
        for cut in cuts:
            cut.set_xdata([stop, stop])
        now = {metric: float(values[at]) for metric, values in curves.items()}
        for metric, dot in dots.items():
            dot.set_data([stop], [now[metric]])
        for cell, count in zip(cells, counts[at], strict=True):
            cell.set_text(f"{count:,}")
        hits, alarms = counts[at][0], counts[at][1]
        said = (
            f"{hits + alarms:,} of {len(y):,} flagged, {hits:,} rightly (precision {now['precision']:.3f}), "
        )
        if not hits + alarms:
            said = "nothing flagged, so there is no precision, "
        reading = (
            f"Threshold {stop:.3g}: {said}recall {now['recall']:.3f}; accuracy {now['accuracy']:.4f} against "
        )
        reading += f"{majority:.4f} for always the majority."
        return " ".join(filter(None, (reading, undefined(now))))

    knob = choice_slider("threshold", "decision threshold", stops, threshold, unit="probability", fmt=".3g")
    return Explorer(figure, [knob], update, title=f"Decision threshold for {name}")


def scarcity_explorer(
    table: pd.DataFrame,
    *,
    budget: str = "label_budget",
    model: str = "model",
    seed: str = "seed",
    metric: str = "auc",
    models: tuple[str, str] = ("single-task", "shared-bottom"),
    task: str = "purchase",
    split: str = "validation",
    start: Any = None,
) -> Explorer:
    """Does sharing pay when labels are scarce? Two models over the label budgets they were trained on (notebook 02).

    Parameters
    ----------
    table : a tidy row for each trained run with columns ``budget``, ``model``, ``seed`` and ``metric``.
    models : baseline and challenger, as ``table[model]`` names them; runs of equal seed are paired.
    task, split : whose metric it is and on which rows, for titles.
    start : the first budget shown; the smallest unless told.

    Raises ValueError for missing columns or models, KeyError never: the message says what the table has.
    """
    wide = _paired_runs(table, budget, model, seed, metric, models)
    budgets = sorted(wide.index.get_level_values(0).unique())
    found = [_scarcity_at(wide.loc[[value]], models) for value in budgets]
    base, other = models

    figure = plots.figure(*SIZE)
    left, right = figure.subplots(1, 2, width_ratios=(1.6, 1))
    for name, color, marker, shift in ((base, GREY, "s", 0.97), (other, COLORS[0], "o", 1.03)):
        runs = wide[name]
        left.plot(
            np.asarray(runs.index.get_level_values(0), float) * shift,
            runs,
            marker,
            color=color,
            ms=4,
            alpha=0.45,
            lw=0,
        )
        means = [cell["means"][name] for cell in found]
        left.plot(
            budgets, means, color=color, lw=1.6, marker=marker, ms=5, label=f"{name} (mean, 95 % interval)"
        )
        spans = [cell["spans"][name] for cell in found]
        left.vlines(
            np.asarray(budgets, float) * shift,
            [low for low, _ in spans],
            [high for _, high in spans],
            color=color,
            lw=2,
        )
    left.set(
        xscale="log",
        xlabel="labelled rows of the scarce task",
        ylabel=f"{task} {metric.upper()} ({split})",
    )
    left.set_xticks(budgets, [f"{value:,}" for value in budgets], fontsize=8)
    left.minorticks_off()
    left.set_title("Each dot is one trained run")
    left.legend(fontsize=8, loc="lower right")
    band = left.axvline(budgets[0], color="#E69F00", lw=10, alpha=0.3, animated=True)

    limit = 1.15 * np.nanmax(
        np.abs([*(wide[other] - wide[base]), *(bound for cell in found for bound in cell["gap"][1:])])
    )
    right.axvline(0, color="black", lw=1)
    limit = limit if np.isfinite(limit) and limit > 0 else 1.0
    right.set(xlim=(-limit, limit), ylim=(-1, 1), yticks=(), xlabel=f"{metric.upper()} gained by {other}")
    right.set_title("The same seed, two models")
    gaps = right.plot([], [], "o", color=COLORS[0], ms=6, alpha=0.6, animated=True)[0]
    span = right.plot([], [], color="black", lw=2.5, animated=True, solid_capstyle="butt")[0]
    mean = right.plot([], [], "D", color="black", ms=8, animated=True)[0]
    verdict = right.text(0, 0.85, "", ha="center", fontsize=10, animated=True)

    def update(state: dict) -> str:
        cell = found[budgets.index(state["budget"])]
        band.set_xdata([state["budget"]] * 2)
        each = cell["each"]
        gaps.set_data(
            each, 0.25 + 0.3 * np.linspace(-1, 1, len(each)) if len(each) > 1 else [0.25] * len(each)
        )
        centre, low, high = cell["gap"]
        mean.set_data([centre], [-0.35])
        span.set_data([low, high], [-0.35, -0.35])
        verdict.set_text(cell["verdict"])
        return f"With {state['budget']:,} labels: {cell['reading']}"

    knob = choice_slider(
        "budget", "label budget", budgets, budgets[0] if start is None else start, unit="rows", fmt=","
    )
    return Explorer(figure, [knob], update, title=f"{other} against {base} when {task} labels are scarce")


def weight_explorer(
    sweep: Any,
    *,
    baselines: Mapping[str, Any] | None = None,
    metric: str | Mapping[str, str] | None = None,
    split: str = "valid",
    start: Mapping[str, float] | None = None,
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
    split : whose metric. start : ``{task: weight}`` of the first state; equal weights unless told.

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
    mixer = _Mixer(shares)
    runs = _final_metrics(sweep, chosen, split)  # (seeds, weightings, tasks)
    signs = np.array([-1.0 if chosen[name] in LOWER_IS_BETTER else 1.0 for name in names])
    first = _first_weights(names, shares, start)
    base, versus = _baseline(baselines, names, chosen, runs, mixer, first)
    gains = (runs - base[:, None, :]) * signs
    curves = _loss_curves(sweep, names, len(shares))

    figure = plots.figure(*SIZE)
    left, middle, right = figure.subplots(1, 3, width_ratios=(1.25, 1, 1))
    centre = np.nanmean(runs, axis=0) if runs.size else runs
    front = _nondominated(centre * signs)
    here = _draw_front(
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
        shown = " + ".join(f"{weight:.2f} {name}" for name, weight in zip(names, weights, strict=True))
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

    if len(names) == 2:
        low, high = float(shares[:, 1].min()), float(shares[:, 1].max())
        hint = f"{names[0]} gets the rest"
        knobs = [slider(names[1], f"weight of {names[1]}", low, high, first[1], step=0.01, unit=hint)]
        return Explorer(figure, knobs, update, title=f"Task weights of {names[0]} and {names[1]}")
    knobs = [
        slider(name, f"weight of {name}", 0.0, 1.0, float(value), step=0.05, fmt=".2f")
        for name, value in zip(names, first, strict=True)
    ]
    return Explorer(figure, knobs, update, title=f"Task weights of {', '.join(names)}", link=on_simplex)


def on_simplex(state: dict, moved: str) -> dict:
    """Weights that add up to 1: keeps the moved one and rescales the others, equally when they were all 0.

    >>> on_simplex({"a": .5, "b": .3, "c": .1}, "a")["b"]
    0.375
    """
    kept = min(max(state[moved], 0.0), 1.0)
    others = [name for name in state if name != moved]
    total = sum(state[name] for name in others)
    share = {name: state[name] / total if total > 0 else 1 / len(others) for name in others}
    return {name: kept if name == moved else (1 - kept) * share[name] for name in state}


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


def _metric_of(task: Task, metric: str | Mapping[str, str] | None) -> str:
    if isinstance(metric, str):
        return metric
    return (metric or {}).get(task.name) or MAIN_METRIC[task.kind]


def _first_weights(names: list[str], shares: np.ndarray, start: Mapping[str, float] | None) -> np.ndarray:
    """The start, or equal weights, at the nearest trained weighting when none is asked for."""
    if start is None:
        return shares[np.abs(shares - 1 / len(names)).max(axis=1).argmin()]
    if set(start) != set(names) or sum(start.values()) <= 0:
        raise ValueError(
            f"start needs one weight for each of {', '.join(names)}, not all 0; got {dict(start)}"
        )
    given = np.array([start[name] for name in names], float)
    return given / given.sum()


def _final_metrics(sweep: Any, chosen: Mapping[str, str], split: str) -> np.ndarray:
    """(seeds, weightings, tasks); NaN where a run has no such number."""
    final = sweep.final()
    final = final[final["split"] == split]
    seeds = sorted(final["seed"].unique())
    out = np.full((len(seeds), len(sweep.weightings), len(chosen)), np.nan)
    for column, (name, metric) in enumerate(chosen.items()):
        rows = final[(final["task"] == name) & (final["metric"] == metric)]
        if not len(rows):
            known = sorted(set(sweep.records["metric"])), sorted(set(sweep.records["split"]))
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


def _loss_curves(sweep: Any, names: list[str], count: int) -> dict[str, dict[str, np.ndarray]]:
    """``{task: {split: (weightings, epochs)}}``: losses, means over seeds, as multiples of the first epoch's."""
    losses = sweep.records[sweep.records["metric"] == "loss"]
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


def _nondominated(points: np.ndarray) -> np.ndarray:
    """True where no other row is at least as good everywhere and better somewhere (larger is better)."""
    at_least = (points[None] >= points[:, None]).all(axis=2)
    better = (points[None] > points[:, None]).any(axis=2)
    return ~(at_least & better).any(axis=1) & np.isfinite(points).all(axis=1)


def _draw_front(
    ax: Axes,
    centre: np.ndarray,
    front: np.ndarray,
    tasks: list[Task],
    chosen: Mapping[str, str],
    base: np.ndarray | None,
) -> Any:
    """All trained weightings, front and baseline; returns the artist that moves."""
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
        ax.figure.colorbar(dots, ax=ax, label=labels[2], aspect=30, pad=0.02)
    if base is not None:
        for draw, value, task in ((ax.axvline, base[0], tasks[0]), (ax.axhline, base[1], tasks[1])):
            draw(value, color=plots.task_style(task.name)["color"], lw=1, ls="--", label=f"{task.name} alone")
    ax.set(xlabel=labels[0], ylabel=labels[1])
    ax.locator_params(nbins=5)
    ax.set_title("What weights can buy")
    ax.legend(fontsize=8, loc="best")
    return ax.plot([], [], "*", color="#E69F00", mec="black", ms=17, animated=True, zorder=9)[0]


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


def _labels_and_scores(labels: Any, probabilities: Any) -> tuple[np.ndarray, np.ndarray]:
    y, p = np.asarray(labels, float).ravel(), np.asarray(probabilities, float).ravel()
    if len(y) != len(p) or not len(y):
        raise ValueError(f"labels and probabilities need one length above zero, got {len(y)} and {len(p)}")
    if not np.isin(y, (0, 1)).all():
        raise ValueError(
            f"labels must be 0 or 1; found {y[~np.isin(y, (0, 1))][0]:g}. Drop unlabelled rows first."
        )
    wrong = ~((p >= 0) & (p <= 1))
    if wrong.any():
        raise ValueError(
            f"{wrong.sum()} probabilities are NaN or outside [0, 1] (first {p[wrong][0]:g}). Logits? Use sigmoid first."
        )
    return y, p


def _paired_runs(
    table: pd.DataFrame, budget: str, model: str, seed: str, metric: str, models: tuple[str, str]
) -> pd.DataFrame:
    """Runs indexed by (budget, seed), a column for each model."""
    missing = [column for column in (budget, model, seed, metric) if column not in table]
    if missing:
        raise ValueError(f"the table lacks {missing}; it has {list(table.columns)}")
    absent = [name for name in models if name not in set(table[model])]
    if absent:
        raise ValueError(f"no runs of {absent} in column {model!r}; there are {sorted(set(table[model]))}")
    wide = table[table[model].isin(models)].pivot_table(
        index=[budget, seed], columns=model, values=metric, aggfunc="mean", dropna=False
    )
    return wide.dropna(how="all").sort_index() if wide.notna().any(axis=None) else wide.sort_index()


def _scarcity_at(runs: pd.DataFrame, models: tuple[str, str]) -> dict[str, Any]:
    base, other = models
    nan = float("nan")
    means, spans = {}, {}
    for name in models:
        values = runs[name].dropna()
        means[name] = float(values.mean()) if len(values) else nan
        interval = mean_interval(values) if len(values) > 1 else None
        spans[name] = (interval.low, interval.high) if interval else (nan, nan)
    both = runs.dropna()
    lost = len(runs) - len(both)
    each = (both[other] - both[base]).to_numpy()
    text = ", ".join(f"{name} {means[name]:.4f}" for name in (other, base))
    if len(each) < 2:
        gap, verdict = (float(each.mean()) if len(each) else nan, nan, nan), "too few pairs"
        text += f"; {len(each)} pair{'s' * (len(each) != 1)} of runs: no interval, no claim."
    else:
        interval = paired_difference(both[other], both[base])
        gap = (interval.mean, interval.low, interval.high)
        verdict = ("sharing helps" if gap[0] > 0 else "sharing hurts") if interval.excludes_zero else "a tie"
        tail = f"excludes zero: {verdict}." if interval.excludes_zero else "includes zero: a tie, no claim."
        text += f"; gain {gap[0]:+.4f} over {len(each)} seeds, 95 % interval [{gap[1]:+.4f}, {gap[2]:+.4f}] {tail}"
    if lost:
        text += f" {lost} pair{'s' * (lost != 1)} left out, undefined (NaN) or missing."
    return {"means": means, "spans": spans, "each": each, "gap": gap, "verdict": verdict, "reading": text}
