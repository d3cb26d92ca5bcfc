"""What watches over a model that serves: drift, calibration, a report each morning. Taught in notebook 10."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

__all__ = ["calibration_z", "day_report", "psi"]


def psi(reference: ArrayLike, today: ArrayLike) -> float:
    """Population-stability index Σ (q − p) log(q / p) of today's shares q against the reference's p.

    Numbers fall into ten bins of equal count of the reference, other values are bins of their own. Half a row is added
    to every bin, so that an empty one does not make it infinite. Below .1 is called stable, above .25 a shift.
    """
    return _index(*_counts(reference, [today]))


def _counts(reference: ArrayLike, parts: Sequence[ArrayLike]) -> np.ndarray:
    """Rows in each bin of the reference (first row) and of each part, (1 + parts, bins)."""
    parts = [np.asarray(part) for part in (reference, *parts)]
    codes = np.concatenate(parts)
    if parts[0].dtype.kind in "iuf":
        codes = np.searchsorted(np.quantile(parts[0], np.linspace(0.1, 0.9, 9)), codes, "right")
    codes = np.split(pd.factorize(codes)[0], np.cumsum([len(part) for part in parts])[:-1])
    bins = max(code.max() for code in codes) + 1
    return np.stack([np.bincount(code, minlength=bins) for code in codes])


def _index(old: np.ndarray, new: np.ndarray) -> float:
    p, q = ((count + 0.5) / (count + 0.5).sum() for count in (old, new))
    return float(((q - p) * np.log(q / p)).sum())


def calibration_z(labels: ArrayLike, probabilities: ArrayLike) -> float:
    """How many standard deviations the number of yes lies from what was promised: (Σy − Σp) / √Σp(1 − p)."""
    y, p = np.asarray(labels, dtype=float), np.asarray(probabilities, dtype=float)
    return float((y.sum() - p.sum()) / np.sqrt((p * (1 - p)).sum()))


def day_report(past: pd.DataFrame, today: pd.DataFrame, features: Sequence[str]) -> dict[str, float | str]:
    """What a watch looks at each morning, today against the days before. Both frames have the features, ``click``,
    ``said_click``, ``day``, ``item_id``, and ``top``: is it among the first three of its page, as the model orders it?

    inputs : :func:`psi` of the feature that moved most (``worst``), in multiples of the largest that a day of the past
    shows against the others: a column's own noise. scores : the same of the predictions. click : :func:`calibration_z`,
    after what the past says of the model's own bias. loss : by how many standard errors the log-loss rose. coverage :
    change of the share of the shown products that stand in a first three.
    """
    moved, both, day = {}, (past, today), past["day"].to_numpy()
    for name in (*features, "said_click"):
        old = past[name].to_numpy()
        week, *days, now = _counts(old, [*(old[day == d] for d in np.unique(day)), today[name]])
        noise = max(_index(week - one, one) for one in days)
        moved[name] = _index(week, now) / max(noise, 0.01)
    scores, worst = moved.pop("said_click"), max(moved, key=moved.get)
    bias = past["click"].sum() / past["said_click"].sum()
    old, new = (-np.log(np.where(x["click"] > 0, x["said_click"], 1 - x["said_click"])) for x in both)
    items = [[x.groupby("day")["item_id"].nunique() for x in (part[part["top"]], part)] for part in both]
    before, now = ((top / shown).mean() for top, shown in items)
    return {
        "inputs": moved[worst],
        "worst": worst,
        "scores": scores,
        "click": calibration_z(today["click"], np.minimum(today["said_click"] * bias, 1)),
        "loss": float((new.mean() - old.mean()) / (new.std() / np.sqrt(len(new)))),
        "coverage": now - before,
    }
