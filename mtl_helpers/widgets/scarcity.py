"""Does sharing pay when labels are scarce? Taught in notebooks 02 and 07."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from mtl_helpers.metrics import mean_interval, paired_difference
from mtl_helpers.widgets.explorer import Explorer, choice_slider
from mtl_helpers.widgets.figures import HEIGHT, HERE, figure, legend_outside, model_style

__all__ = ["scarcity_explorer"]

MODELS = ("single-task", "shared-bottom")
COLORS = {name: model_style(name)["color"] for name in MODELS}


def scarcity_explorer(table: pd.DataFrame, *, task: str = "purchase", split: str = "validation") -> Explorer:
    """A single-task model and a shared bottom over the label budgets that they were trained on, seed by seed.

    table : a row for each trained run with columns ``label_budget``, ``model`` ("single-task" or "shared-bottom"),
        ``seed`` and ``auc`` (else ValueError). Runs of equal seed are paired.
    task, split : whose AUC it is and on which rows, for titles.
    """
    missing = [column for column in ("label_budget", "model", "seed", "auc") if column not in table]
    if missing or not set(MODELS) <= set(table["model"]):
        there = list(table) if missing else sorted(set(table["model"]))
        raise ValueError(f"the table lacks {missing or 'runs of a model of ' + str(MODELS)}; it has {there}")
    wide = table.pivot(index=["label_budget", "seed"], columns="model", values="auc")[[*MODELS]].sort_index()
    budgets = wide.index.unique("label_budget").tolist()
    found = {budget: _compare(wide.loc[budget]) for budget in budgets}

    fig = figure(HEIGHT)
    left, right = fig.subplots(1, 2, width_ratios=(1.6, 1))
    _draw_runs(left, wide, budgets)
    left.set_ylabel(f"{task} AUC ({split})")
    band = left.axvline(budgets[0], color=HERE, lw=10, alpha=0.5, animated=True)
    legend_outside(fig)
    move_gaps = _draw_gaps(right, list(found.values()))

    def update(state: dict) -> str:
        band.set_xdata([state["budget"]] * 2)
        move_gaps(found[state["budget"]])
        return f"With {state['budget']:,} labels: {found[state['budget']]['reading']}"

    knob = choice_slider("budget", "label budget", budgets, unit="rows", fmt=",")
    title = f"{MODELS[1]} against {MODELS[0]} when {task} labels are scarce"
    return Explorer(fig, [knob], update, title=title)


def _compare(runs: pd.DataFrame) -> dict[str, Any]:
    """Paired differences at one budget, their mean and interval, and what may be claimed."""
    base, other = MODELS
    both = runs.dropna()
    each, lost = (both[other] - both[base]).to_numpy(), len(runs) - len(both)
    text = ", ".join(f"{name} {runs[name].mean():.4f}" for name in (other, base))
    if len(each) < 2:
        gap, verdict = (*each, np.nan, np.nan, np.nan)[:3], "too few pairs"
        text += f"; {len(each)} pair{'s' * (len(each) != 1)} of runs: no interval, no claim."
    else:
        found = paired_difference(both[other], both[base])
        gap, verdict, claim = (found.mean, found.low, found.high), "a tie", "includes zero: a tie, no claim"
        if found.excludes_zero:
            verdict = "sharing helps" if found.mean > 0 else "sharing hurts"
            claim = f"excludes zero: {verdict}"
        span = f"95 % interval [{found.low:+.4f}, {found.high:+.4f}]"
        text += f"; gain {found.mean:+.4f} over {len(each)} seeds, {span} {claim}."
    if lost:
        text += f" {lost} pair{'s' * (lost != 1)} left out, undefined (NaN) or missing."
    return {"each": each, "gap": gap, "verdict": verdict, "reading": text}


def _draw_runs(ax: Axes, wide: pd.DataFrame, budgets: list) -> None:
    for name, marker, shift in zip(MODELS, "so", (0.97, 1.03), strict=True):
        runs, color = wide[name].dropna(), COLORS[name]
        x = runs.index.get_level_values(0).to_numpy(float) * shift
        ax.plot(x, runs, marker, color=color, ms=4, alpha=0.45, lw=0)
        means = runs.groupby(level=0).mean()
        label = f"{name} (mean, 95 % interval)"
        ax.plot(means.index, means, color=color, lw=1.6, marker=marker, ms=5, label=label)
        for budget, values in runs.groupby(level=0):
            if len(values) > 1:
                interval = mean_interval(values)
                ax.vlines(budget * shift, interval.low, interval.high, color=color, lw=2)
    ax.set(xscale="log", xlabel="labelled rows of the scarce task", title="Each dot is one trained run")
    ax.set_xticks(budgets, [f"{value:,}" for value in budgets], fontsize=8)
    ax.minorticks_off()


def _draw_gaps(ax: Axes, found: list[dict[str, Any]]) -> Any:
    """Differences, mean and interval of one budget on limits that hold all; returns what moves them."""
    shown = np.abs(np.concatenate([[*cell["each"], *cell["gap"]] for cell in found]))
    limit = 1.15 * np.max(shown[np.isfinite(shown)], initial=0) or 1.0
    ax.axvline(0, color="black", lw=1)
    ax.set(xlim=(-limit, limit), ylim=(-1, 1), yticks=(), xlabel=f"AUC gained by {MODELS[1]}")
    ax.set_title("The same seed, two models")
    dots = ax.plot([], [], "o", color=COLORS[MODELS[1]], ms=6, alpha=0.6, animated=True)[0]
    span = ax.plot([], [], color="black", lw=2.5, animated=True, solid_capstyle="butt")[0]
    mean = ax.plot([], [], "D", color="black", ms=8, animated=True)[0]
    plate = {"facecolor": "white", "edgecolor": "none", "pad": 2}
    verdict = ax.text(0, 0.85, "", ha="center", fontsize=10, bbox=plate, animated=True)

    def move(cell: dict[str, Any]) -> None:
        n = len(cell["each"])
        dots.set_data(cell["each"], 0.25 + 0.3 * np.linspace(-1, 1, n) if n > 1 else [0.25] * n)
        centre, *ends = cell["gap"]
        mean.set_data([centre], [-0.35])
        span.set_data(ends, [-0.35, -0.35])
        verdict.set_text(cell["verdict"])

    return move
