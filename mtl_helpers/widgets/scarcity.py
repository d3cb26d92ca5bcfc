"""Does sharing pay when labels are scarce? Taught in notebooks 02 and 07."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from mtl_helpers.metrics import mean_interval, paired_difference
from mtl_helpers.widgets.explorer import Explorer, choice_slider
from mtl_helpers.widgets.figures import GREY, HALO, HEIGHT, HERE, INK, figure, minus, model_style, name_lines

__all__ = ["scarcity_explorer"]

MODELS = ("single-task", "shared-bottom")


def scarcity_explorer(
    table: pd.DataFrame, *, task: str = "purchase", split: str = "validation",
    references: Mapping[str, float] | None = None, names_at: float = 0, each: str = "seed",
) -> Explorer:  # fmt: skip
    """A single-task model and a shared bottom over the label budgets that they were trained on, pair by pair.

    table : a row for each trained run with columns ``label_budget``, ``model`` ("single-task" or "shared-bottom"),
        ``seed`` and ``auc``. Runs of equal seed are paired, at least two pairs a budget (else ValueError).
    task, split : whose AUC it is and on which rows, for titles.
    references : AUCs to stand beside them as level lines, ``{name: AUC}``.
    names_at : where along the lines their names begin: 0 is the left end, 1 the right.
    each : what the runs of a pair share, in a word.
    """
    wide = table.pivot(index=["label_budget", "seed"], columns="model", values="auc").sort_index()
    budgets = wide.index.unique("label_budget").tolist()
    found = {budget: _compare(wide.loc[budget], each) for budget in budgets}

    fig = figure(HEIGHT)
    left, right = fig.subplots(1, 2, width_ratios=(1.6, 1))
    _draw_runs(left, wide, budgets)
    left.set_ylabel(f"{task} AUC ({split})")
    for name, value in (references or {}).items():
        left.axhline(value, color=GREY, lw=1, ls="--")
        place = {"xytext": (2, 2), "textcoords": "offset points", "xycoords": left.get_yaxis_transform()}
        left.annotate(name, (names_at, value), color="#555555", fontsize=8, path_effects=HALO, **place)
    band = left.axvline(budgets[0], color=HERE, lw=12, alpha=0.5, animated=True)
    move_gaps = _draw_gaps(right, list(found.values()))
    right.set_title(f"The same {each}, two models")

    def update(state: dict) -> str:
        band.set_xdata([state["budget"]] * 2)
        move_gaps(found[state["budget"]])
        return f"With {state['budget']:,} labels: {found[state['budget']]['reading']}"

    knob = choice_slider("budget", "label budget", budgets, unit="rows", fmt=",")
    title = f"{MODELS[1]} against {MODELS[0]} when {task} labels are scarce"
    return Explorer(fig, [knob], update, title=title)


def _compare(runs: pd.DataFrame, pair: str) -> dict[str, Any]:
    """Paired differences at one budget, their mean and interval, and what may be claimed."""
    base, other = MODELS
    found = paired_difference(runs[other], runs[base])
    gap, verdict, claim = (found.mean, found.low, found.high), "a tie", "includes zero: a tie, no claim"
    if found.excludes_zero:
        verdict = "sharing helps" if found.mean > 0 else "sharing hurts"
        claim = f"excludes zero: {verdict}"
    means = ", ".join(f"{name} {runs[name].mean():.4f}" for name in (other, base))
    mean, low, high = (minus(f"{value:+.4f}") for value in gap)
    reading = f"{means}; gain {mean} over {found.n} {pair}s, 95 % interval [{low}, {high}] {claim}."
    each = (runs[other] - runs[base]).to_numpy()
    return {"each": each, "gap": gap, "verdict": verdict, "reading": reading}


def _draw_runs(ax: Axes, wide: pd.DataFrame, budgets: list) -> None:
    for name, shift in zip(MODELS, (0.97, 1.03), strict=True):
        runs, look = wide[name], model_style(name)
        x = runs.index.get_level_values(0).to_numpy(float) * shift
        ax.plot(x, runs, look["marker"], color=look["color"], ms=4, alpha=0.3, lw=0)
        means = runs.groupby(level=0).mean()
        ax.plot(means.index * shift, means, lw=1.6, ms=6, label=name, **look)
        for budget, values in runs.groupby(level=0):
            interval = mean_interval(values)
            ax.vlines(budget * shift, interval.low, interval.high, color=look["color"], lw=2)
    ax.set(xscale="log", xlabel="labelled rows (pale: one run; bars: 95 %)")
    ax.set_xticks(budgets, [f"{value:,}" for value in budgets], fontsize=8)
    ax.minorticks_off()
    name_lines(ax)


def _draw_gaps(ax: Axes, found: list[dict[str, Any]]) -> Any:
    """Differences, mean and interval of one budget on limits that hold all; returns what moves them."""
    shown = np.abs(np.concatenate([[*cell["each"], *cell["gap"]] for cell in found]))
    limit = 1.15 * shown.max()
    ax.axvline(0, color=INK, lw=1)
    ax.set(xlim=(-limit, limit), ylim=(-1, 1), yticks=(), xlabel=f"AUC gained by {MODELS[1]}")
    ax.locator_params(axis="x", nbins=5)
    dots = ax.plot([], [], "o", color=GREY, ms=6, alpha=0.6, animated=True)[0]
    span = ax.plot([], [], color=INK, lw=2.5, animated=True, solid_capstyle="butt")[0]
    mean = ax.plot([], [], "D", color=INK, ms=8, animated=True)[0]
    verdict = ax.text(0, 0.85, "", ha="center", fontsize=10, path_effects=HALO, animated=True)

    def move(cell: dict[str, Any]) -> None:
        dots.set_data(cell["each"], 0.25 + 0.3 * np.linspace(-1, 1, len(cell["each"])))
        centre, *ends = cell["gap"]
        mean.set_data([centre], [-0.35])
        span.set_data(ends, [-0.35, -0.35])
        verdict.set_text(cell["verdict"])

    return move
