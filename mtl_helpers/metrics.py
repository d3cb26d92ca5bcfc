"""Metrics on labels and predicted probabilities, and intervals over seeds.

Taught in notebook 01; calibration in notebook 05. Inputs are 1-D arrays or tensors of equal length; a metric that is
not defined for its input (an AUC with one class only, a log-loss of no row) is NaN, never an error and never a guess.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "Interval", "accuracy", "auc", "calibration_error", "confusion", "correct_downsampling",
    "expected_auc", "expected_log_loss", "grouped_auc", "holm", "log_loss", "mean_interval", "paired_difference",
    "pareto_mask", "reliability_curve",
]  # fmt: skip
LOWER_IS_BETTER = ("loss", "rmse")
EPS = 1e-7  # a log-loss takes probabilities no nearer to 0 and 1


def _pair(labels: ArrayLike, scores: ArrayLike, probabilities: bool = False) -> tuple[np.ndarray, np.ndarray]:
    y, s = np.asarray(labels, dtype=float), np.asarray(scores, dtype=float)
    if y.shape != s.shape or y.ndim != 1:
        raise ValueError(f"Labels {y.shape}, scores {s.shape}: expected two 1-D arrays of one length.")
    if np.isnan(s).any():
        raise ValueError(f"{np.isnan(s).sum()} of {len(s)} scores are NaN: the model's output is broken.")
    if len(bad := y[~np.isin(y, (0, 1))]):
        raise ValueError(f"Binary labels must be 0 or 1; found {bad[0]:g}. Drop rows without a label first.")
    return y, check_probabilities(s) if probabilities else s


def check_probabilities(values: ArrayLike) -> np.ndarray:
    p = np.asarray(values, dtype=float)
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError("Probabilities must lie in [0, 1], without NaN. Logits? Use sigmoid first.")
    return p


def auc(labels: ArrayLike, scores: ArrayLike) -> float:
    """Probability that a random positive scores above a random negative, ties counting one half; NaN for one class."""
    y, s = _pair(labels, scores)
    n_pos, n_neg = int((y == 1).sum()), int((y == 0).sum())
    if not n_pos or not n_neg:
        return float("nan")
    ordered, wanted = np.sort(s), s[y == 1]
    below = np.searchsorted(ordered, wanted, "left") + np.searchsorted(ordered, wanted, "right")
    return float((below.sum() / 2 - n_pos**2 / 2) / (n_pos * n_neg))


def expected_auc(probabilities: ArrayLike, scores: ArrayLike, weights: ArrayLike | None = None) -> float:
    """AUC against labels that are known as probabilities: each row is a positive of weight p and a negative of 1 − p.
    The same expectation as :func:`auc` of drawn labels, without their noise; for a simulator, which knows p. All are
    (n,); ``weights`` are those of the rows, such as p_click where only clicked rows count."""
    p, s = np.asarray(probabilities, dtype=float), np.asarray(scores, dtype=float)
    w = np.ones_like(p) if weights is None else np.asarray(weights, dtype=float)
    _, tied = np.unique(s, return_inverse=True)
    yes, no = np.bincount(tied, w * p), np.bincount(tied, w * (1 - p))
    below = np.cumsum(no) - no / 2
    total = yes.sum() * no.sum()
    return float((yes * below).sum() / total) if total > 0 else float("nan")


def expected_log_loss(truth: ArrayLike, probabilities: ArrayLike) -> float:
    """Mean log-loss that labels drawn with probability ``truth`` would have in expectation."""
    y, p = np.asarray(truth, dtype=float), np.clip(np.asarray(probabilities, dtype=float), EPS, 1 - EPS)
    return float(-np.mean(y * np.log(p) + (1 - y) * np.log1p(-p)))


def log_loss(labels: ArrayLike, probabilities: ArrayLike) -> float:
    """Mean of −log(probability of what happened); probabilities are clipped to [1e-7, 1 − 1e-7]."""
    y, p = _pair(labels, probabilities, True)
    return expected_log_loss(y, p) if len(y) else float("nan")


def grouped_auc(labels: ArrayLike, scores: ArrayLike, groups: ArrayLike) -> float:
    """Mean AUC within each group (say, each user), weighted by the group's number of rows.

    Groups that hold one class only have no AUC and are left out; NaN when that leaves none (Zhu et al., *Optimized
    Cost per Click in Taobao Display Advertising*, KDD 2017, eq. 12, with impressions as weights).
    """
    y, s = _pair(labels, scores)
    codes = np.unique(np.asarray(groups), return_inverse=True)[1]
    if codes.shape != y.shape:
        raise ValueError(f"Groups have shape {codes.shape}, labels {y.shape}: expected one group per row.")
    parts = np.split(np.argsort(codes, kind="stable"), np.cumsum(np.bincount(codes))[:-1])
    pairs = [(auc(y[rows], s[rows]), len(rows)) for rows in parts if 0 < y[rows].sum() < len(rows)]
    values, sizes = np.array(pairs).reshape(-1, 2).T
    return float(np.average(values, weights=sizes)) if pairs else float("nan")


def accuracy(labels: ArrayLike, probabilities: ArrayLike, threshold: float = 0.5) -> float:
    """Share of right decisions when every probability of at least ``threshold`` counts as a yes."""
    y, p = _pair(labels, probabilities)
    return float(np.mean((p >= threshold) == (y == 1))) if len(y) else float("nan")


def confusion(labels: ArrayLike, probabilities: ArrayLike, threshold: float = 0.5) -> dict[str, int]:
    """Counts ``tp``, ``fp``, ``fn``, ``tn`` of the decisions p ≥ threshold."""
    y, p = _pair(labels, probabilities)
    code = np.where(p >= threshold, y == 0, 2 + (y == 0))
    return dict(zip(("tp", "fp", "fn", "tn"), np.bincount(code, minlength=4).tolist(), strict=True))


def calibration_error(labels: ArrayLike, probabilities: ArrayLike, bins: int = 10) -> float:
    """Expected calibration error over bins of equal count: Σ (share of rows)·|mean label − mean probability|. With rare
    positives nearly all rows would share the first bin of equal width."""
    y, p = _pair(labels, probabilities, True)
    gaps = [len(rows) * abs(y[rows].mean() - p[rows].mean()) for rows in _equal_parts(p, bins)]
    return float(sum(gaps) / len(y)) if gaps else float("nan")


def _equal_parts(p: np.ndarray, bins: int) -> list[np.ndarray]:
    """Rows of each bin of equal count, bins in the order of the probabilities; no bin without rows."""
    return np.array_split(np.argsort(p, kind="stable"), min(bins, len(p))) if len(p) else []


def reliability_curve(labels: ArrayLike, probabilities: ArrayLike, bins: int = 10) -> pd.DataFrame:
    """Predicted against observed share of positives, in the bins of equal count of :func:`calibration_error`.

    Observed shares come with Wilson's 95 % score interval (Wilson, JASA 1927), which stays in [0, 1] and keeps its
    coverage where positives are few. Returns a frame with a row for each bin: ``predicted`` (mean probability),
    ``observed`` (share of positives), ``low``, ``high`` and ``count`` (rows).
    """
    import pandas as pd
    from scipy.stats import binomtest

    y, p = _pair(labels, probabilities, True)
    found = []
    for rows in _equal_parts(p, bins):
        own, n = y[rows], len(rows)
        low, high = binomtest(int(own.sum()), n).proportion_ci(0.95, method="wilson")
        # rounding must not leave the share outside its interval
        found.append((p[rows].mean(), own.mean(), min(low, own.mean()), max(high, own.mean()), n))
    return pd.DataFrame(found, columns=["predicted", "observed", "low", "high", "count"])


def correct_downsampling(probabilities: ArrayLike, rate: float) -> np.ndarray:
    """Probabilities of a model that was trained on all positives and a share ``rate`` of the negatives, set right.

    Dropping negatives multiplies the odds by 1/rate. So p = q / (q + (1 − q)/rate), where q is what the model says
    (He et al., *Practical Lessons from Predicting Clicks on Ads at Facebook*, ADKDD 2014, section 6.3). The order of
    rows stays. ``rate`` is 1/r where instead every positive stood r times in the training rows.
    """
    if not 0 < rate <= 1:
        raise ValueError(f"rate is {rate}, expected the share of negatives kept, above 0, at most 1.")
    q = check_probabilities(probabilities)
    return q / (q + (1 - q) / rate)


@dataclass(frozen=True)
class Interval:
    """A mean over ``n`` runs with its confidence interval ``[low, high]``."""

    mean: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.mean:.4f} [{self.low:.4f}, {self.high:.4f}]"

    @property
    def excludes_zero(self) -> bool:
        """True when the whole interval lies on one side of 0."""
        return self.low > 0 or self.high < 0


def mean_interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """Mean of runs and its Student-t interval; needs at least two finite values."""
    from scipy.stats import t

    x = np.asarray(values, dtype=float)
    if x.ndim != 1 or len(x) < 2 or not np.isfinite(x).all():
        raise ValueError(f"An interval needs two or more finite values; got {x.tolist()}.")
    mean = float(x.mean())
    half = float(t.ppf(0.5 + level / 2, len(x) - 1) * x.std(ddof=1) / np.sqrt(len(x)))
    return Interval(mean, mean - half, mean + half, len(x))


def paired_difference(a: Sequence[float], b: Sequence[float]) -> Interval:
    """95 % interval of the mean of a − b, where a[i] and b[i] share a seed and data. Pairing removes what both have in
    common (the seed's luck), so it sees differences that two separate intervals would hide."""
    if len(a) != len(b):
        raise ValueError(f"Pairs are needed: got {len(a)} and {len(b)} runs.")
    return mean_interval(np.asarray(a, dtype=float) - np.asarray(b, dtype=float))


def holm(differences: Mapping[Any, Sequence[float]]) -> dict[Any, float]:
    """p of each mean difference, over its runs, being 0, adjusted for how many are looked at: two-sided t-tests, of
    which the i-th smallest of m counts m − i + 1 times (Holm, Scandinavian Journal of Statistics 6, 1979)."""
    from scipy.stats import ttest_1samp

    p = {key: np.nan_to_num(ttest_1samp(values, 0).pvalue, nan=1) for key, values in differences.items()}
    order = sorted(p, key=p.get)
    adjusted = np.maximum.accumulate([(len(p) - i) * p[key] for i, key in enumerate(order)])
    return dict(zip(order, np.minimum(adjusted, 1).tolist(), strict=True))


def pareto_mask(points: ArrayLike, maximise: bool | Sequence[bool] = False) -> np.ndarray:
    """True for each point that no other point dominates: that is on the Pareto front.

    A point dominates another when it is at least as good in every objective and better in one; equal points do not
    dominate each other. A point with NaN is never on the front and dominates nothing. ``points`` is (n, m), one column
    per objective; low is better, unless ``maximise`` says otherwise for all or for each.
    """
    points = np.asarray(points, dtype=float)
    points = points * np.where(np.broadcast_to(maximise, points.shape[1]), -1.0, 1.0)
    known = ~np.isnan(points).any(1)
    as_good = (points[:, None] <= points[None]).all(-1)
    better = (points[:, None] < points[None]).any(-1)
    return known & ~(as_good & better & known[:, None]).any(0)
