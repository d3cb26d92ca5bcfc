"""The demos of the course: sliders that drive its figures.

``threshold_explorer`` belongs to notebook 01, ``scarcity_explorer`` to 02, ``weight_explorer`` to 00, 02 and 04,
``live_training`` to 04, ``shop_dashboard`` to 05. Each returns an :class:`Explorer` (or holds
one): show it as the last expression of a cell, or drive it in code with ``.set(...)``, ``.state``, ``.reading`` and
``.png()``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mtl_helpers.metrics import confusion
from mtl_helpers.widgets import figures as plots
from mtl_helpers.widgets.explorer import Explorer, choice_slider, undefined

__all__ = ["threshold_explorer"]

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
