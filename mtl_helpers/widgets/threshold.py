"""What a decision threshold does to precision, recall and accuracy on a rare label. Taught in notebook 01."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes

from mtl_helpers.metrics import check_probabilities, confusion
from mtl_helpers.widgets import figures as plots
from mtl_helpers.widgets.explorer import Explorer, choice_slider, undefined

__all__ = ["threshold_explorer"]


def threshold_explorer(
    labels: Any, probabilities: Any, *, name: str = "purchase", threshold: float = 0.05
) -> Explorer:
    """The confusion counts of a threshold, and precision, recall and accuracy over all thresholds.

    labels, probabilities : (n,) arrays or tensors: 0 or 1, and in [0, 1] (else ValueError). name : of the task.
    threshold : the first state; predictions of at least the threshold count as a yes. The slider stops at 61 values in
        even ratios, since a rare label's probabilities crowd near zero.
    """
    y, p = np.asarray(labels, float), check_probabilities(probabilities)
    stops = sorted({*np.geomspace(1e-3, 0.95, 60).round(4).tolist(), threshold})
    counts = [tuple(confusion(y, p, stop).values()) for stop in stops]
    tp, fp, fn, tn = np.array(counts, float).T
    with np.errstate(invalid="ignore", divide="ignore"):
        curves = {"precision": tp / (tp + fp), "recall": tp / (tp + fn), "accuracy": (tp + tn) / len(y)}
    majority = max(y.mean(), 1 - y.mean())

    fig = plots.figure(plots.HEIGHT)
    hist, lines, table = fig.subplots(1, 3, width_ratios=(1, 1.2, 0.8))
    bins = np.geomspace(np.clip(np.quantile(p, 0.001), 1e-4, 1e-3), 1, 40)
    for value, color, label in ((0, plots.GREY, f"no {name}"), (1, plots.task_style(name)["color"], name)):
        hist.hist(p[y == value].clip(bins[0]), bins=bins, histtype="step", lw=1.6, color=color, label=label)
    hist.set(xscale="log", yscale="log", xlabel="predicted probability", ylabel="impressions")
    hist.set(title="Scores of both classes")
    plots.legend_outside(fig, hist)
    dots = _draw_curves(lines, stops, curves, majority)
    cells = _draw_table(table, name)
    cuts = [ax.axvline(threshold, color=plots.INK, lw=1.2, ls="--", animated=True) for ax in (hist, lines)]

    def update(state: dict) -> str:
        at = stops.index(stop := state["threshold"])
        now = {metric: float(values[at]) for metric, values in curves.items()}
        for cut in cuts:
            cut.set_xdata([stop, stop])
        for metric, dot in dots.items():
            dot.set_data([stop], [now[metric]])
        for cell, count in zip(cells, counts[at], strict=True):
            cell.set_text(f"{count:,}")
        hits, flagged, said = counts[at][0], sum(counts[at][:2]), "nothing flagged, so there is no precision"
        if flagged:
            said = f"{flagged:,} of {len(y):,} flagged, {hits:,} rightly (precision {now['precision']:.3f})"
        return (
            f"Threshold {stop:.3g}: {said}, recall {now['recall']:.3f}; accuracy {now['accuracy']:.4f} against "
            f"{majority:.4f} for always the majority. {undefined({'recall': now['recall']})}"
        ).strip()

    knob = choice_slider("threshold", "decision threshold", stops, threshold, unit="probability", fmt=".3g")
    return Explorer(fig, [knob], update, title=f"Decision threshold for {name}")


def _draw_curves(ax: Axes, stops: list[float], curves: dict, majority: float) -> dict[str, Any]:
    dots = {}
    for metric, values in curves.items():
        color, marker = (plots.METRIC_STYLES[metric][part] for part in ("color", "marker"))
        ax.plot(stops, values, color=color, lw=1.6, label=metric if np.isfinite(values).any() else None)
        dots[metric] = ax.plot([], [], marker, color=color, ms=8, mec="white", animated=True)[0]
    ax.plot([stops[0], stops[-1]], [majority] * 2, color=plots.GREY, ls=":", lw=1.4, label="majority")
    ax.set(xscale="log", ylim=(-0.03, 1.03), xlabel="threshold", ylabel="share")
    ax.set(title="One threshold, three stories")
    plots.name_lines(ax)
    return dots


def _draw_table(ax: Axes, name: str) -> list[Any]:
    """The four counts' texts, in the order of ``metrics.confusion``."""
    ax.set(xlim=(0, 2), ylim=(0, 2), aspect="equal", title="Confusion counts")
    ax.set_xticks((0.5, 1.5), [f"said {name}", "said no"], fontsize=8)
    ax.set_yticks((0.5, 1.5), ["no", name], rotation=90, va="center", fontsize=8)
    ax.grid(visible=False)
    ax.axhline(1, color=plots.GREY, lw=0.8)
    ax.axvline(1, color=plots.GREY, lw=0.8)
    places = ((0.5, 1.5, "found"), (0.5, 0.5, "false alarm"), (1.5, 1.5, "missed"), (1.5, 0.5, "left alone"))
    for x, row, word in places:
        ax.text(x, row - 0.3, word, ha="center", va="center", fontsize=8, color=plots.GREY)
    look = {"ha": "center", "va": "center", "fontsize": 12, "color": plots.INK, "animated": True}
    return [ax.text(x, row, "", **look) for x, row, _ in places]
