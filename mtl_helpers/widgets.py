"""The demos of the course: sliders that drive its figures.

``threshold_explorer`` belongs to notebook 01, ``scarcity_explorer`` to 02, ``weight_explorer`` to 00, 02 and 04,
``live_training`` to 04, ``shop_dashboard`` to 05. Each returns an :class:`~mtl_helpers.widget_kit.Explorer` (or holds
one): show it as the last expression of a cell, or drive it in code with ``.set(...)``, ``.state``, ``.reading`` and
``.png()``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from . import plots
from .dashboard import Shopfront, shop_dashboard
from .live import LiveTraining, live_training
from .metrics import confusion, mean_interval, paired_difference
from .widget_kit import Control, Explorer, choice_slider, dropdown, slider, toggle, undefined
from .widget_weights import weight_explorer

__all__ = [
    "Control",
    "Explorer",
    "LiveTraining",
    "Shopfront",
    "choice_slider",
    "dropdown",
    "live_training",
    "scarcity_explorer",
    "shop_dashboard",
    "slider",
    "threshold_explorer",
    "toggle",
    "weight_explorer",
]

SIZE = (8.6, 3.7)
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
    hist.set_ylim(top=hist.get_ylim()[1] * 8)
    hist.legend(fontsize=8, loc="upper right")
    cuts = [axis.axvline(threshold, color="black", lw=1.2, ls="--", animated=True) for axis in (hist, lines)]
    dots = {}
    for (metric, values), color, marker in zip(curves.items(), COLORS, "osD", strict=False):
        lines.plot(stops, values, color=color, lw=1.6, label=metric)
        dots[metric] = lines.plot([], [], color=color, marker=marker, ms=8, mec="white", animated=True)[0]
    lines.axhline(majority, color=GREY, ls=":", lw=1.2, label="always the majority")
    lines.set(
        xscale="log", ylim=(-0.03, 1.4), yticks=np.linspace(0, 1, 6), xlabel="threshold", ylabel="share"
    )
    lines.set_title("One threshold, three stories")
    lines.legend(fontsize=8, loc="upper center", ncols=2)
    table.set(xlim=(0, 2), ylim=(0, 2), xticks=(0.5, 1.5), yticks=(0.5, 1.5), aspect="equal")
    table.set_xticklabels([f"said {name}", "said no"], fontsize=8)
    table.set_yticklabels(["no", name], rotation=90, va="center", fontsize=8)
    table.set_title("Confusion counts")
    table.grid(visible=False)
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
        return " ".join(filter(None, (reading, undefined({"recall": now["recall"]}))))

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

    shown = np.abs([*(wide[other] - wide[base]), *(bound for cell in found for bound in cell["gap"][1:])])
    limit = 1.15 * np.max(shown[np.isfinite(shown)], initial=0) or 1.0
    right.axvline(0, color="black", lw=1)
    right.set(xlim=(-limit, limit), ylim=(-1, 1), yticks=(), xlabel=f"{metric.upper()} gained by {other}")
    right.set_title("The same seed, two models")
    gaps = right.plot([], [], "o", color=COLORS[0], ms=6, alpha=0.6, animated=True)[0]
    span = right.plot([], [], color="black", lw=2.5, animated=True, solid_capstyle="butt")[0]
    mean = right.plot([], [], "D", color="black", ms=8, animated=True)[0]
    plate = {"facecolor": "white", "edgecolor": "none", "pad": 2}
    verdict = right.text(0, 0.85, "", ha="center", fontsize=10, bbox=plate, animated=True)

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
