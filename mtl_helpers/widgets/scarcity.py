"""The demos of the course: sliders that drive its figures.

``threshold_explorer`` belongs to notebook 01, ``scarcity_explorer`` to 02, ``weight_explorer`` to 00, 02 and 04,
``live_training`` to 04, ``shop_dashboard`` to 05. Each returns an :class:`Explorer` (or holds
one): show it as the last expression of a cell, or drive it in code with ``.set(...)``, ``.state``, ``.reading`` and
``.png()``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from mtl_helpers.metrics import mean_interval, paired_difference
from mtl_helpers.widgets import figures as plots
from mtl_helpers.widgets.explorer import Explorer, choice_slider

__all__ = ["scarcity_explorer"]

SIZE = (8.6, 3.7)
COLORS = ("#0072B2", "#D55E00", "#009E73")
GREY = "#777777"


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
