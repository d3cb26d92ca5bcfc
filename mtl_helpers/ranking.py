"""From scores to a ranked list for each user, and what such a list is worth.

Taught in notebook 05. Scores are an array (U, I), a row for each user and a column for each item; a ranking is an array
(U, k) of item positions in 0 … I − 1, best first, as :func:`top_k` and :func:`mmr` return it. Metrics of a list give
one value per user, (U,): NaN where a user has no relevant item, for then no list is right or wrong. Average them with
:func:`user_mean`, which leaves those users out. NaN, repeated or unknown items, negative prices and lists shorter than
k are ValueErrors.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from mtl_helpers.metrics import check_probabilities

__all__ = [
    "average_precision_at_k", "catalogue_coverage", "category_coverage", "expected_ndcg", "expected_revenue",
    "exposure", "gini", "mmr", "ndcg_at_k", "novelty", "recall_at_k", "top_k", "user_mean",
]  # fmt: skip


def top_k(scores: ArrayLike, k: int) -> np.ndarray:
    """The k best items of each user, best first, (U, k) int64; equal scores go by position, the lower first. ``scores``
    (U, I) may be −inf, which puts an item behind all others (say, one that is sold out); ``k`` is 1 to I."""
    s = _scores(scores)
    k = _length(k, s.shape[1])
    # exactly k of each row: everything above the k-th score, then as many of its equals as there is room for
    limit = np.partition(s, s.shape[1] - k, axis=1)[:, s.shape[1] - k, None]
    chosen, equal = s > limit, s == limit
    chosen |= equal & (equal.cumsum(1) <= k - chosen.sum(1, keepdims=True))
    items = np.nonzero(chosen)[1].reshape(len(s), k)
    order = np.argsort(-np.take_along_axis(s, items, 1), axis=1, kind="stable")
    return np.take_along_axis(items, order, 1)


def mmr(scores: ArrayLike, categories: ArrayLike, k: int, diversity: float) -> np.ndarray:
    """Lists that trade score against variety: maximal marginal relevance (Carbonell and Goldstein, SIGIR 1998).

    Place after place takes the item with the largest (1 − d)·s′ − d·[its category is in the list already], where d is
    ``diversity`` (1 − λ of the paper) and s′ the user's scores, scaled to run from 0 (worst item) to 1 (best). So d
    means the same for every user and every scale of scores, but depends on the best and the worst of them. Equal
    values go to the higher score, then to the lower position.

    ``scores`` (U, I) are finite, ``categories`` (I,) text or numbers. A ``diversity`` of 0 gives :func:`top_k`; 1 takes
    the best item of every category before a second one of any. Returns (U, k) int64.
    """
    s = _scores(scores)
    if not np.isfinite(s).all() or not 0 <= diversity <= 1:
        raise ValueError(f"mmr needs finite scores, and a diversity from 0 to 1, not {diversity}.")
    k, codes, rows = _length(k, s.shape[1]), _category_codes(categories, s.shape[1]), np.arange(len(s))
    lowest = s.min(1, keepdims=True)
    spread = s.max(1, keepdims=True) - lowest
    value = (1 - diversity) * (s - lowest) / np.where(spread > 0, spread, 1)
    seen, out = np.zeros((len(s), codes.max() + 1), bool), np.empty((len(s), k), np.int64)
    for place in range(k):
        equal = value == value.max(1, keepdims=True)
        out[:, place] = best = np.where(equal, s, -np.inf).argmax(1)
        shown = codes[best]
        new = ~seen[rows, shown, None]
        np.subtract(value, diversity, out=value, where=new & (codes == shown[:, None]))
        seen[rows, shown], value[rows, best] = True, -np.inf
    return out


def recall_at_k(relevance: ArrayLike, ranking: ArrayLike) -> np.ndarray:
    """Share of a user's relevant items that stand among the first k, (U,); below 1 where these are more than k.
    ``relevance`` (U, I) is 0 or 1, ``ranking`` (U, k) holds items."""
    hits, relevance = _gains(relevance, ranking)
    return _ratio(hits.sum(1), relevance.sum(1))


def average_precision_at_k(relevance: ArrayLike, ranking: ArrayLike) -> np.ndarray:
    """Precision at the place of each relevant item among the first k, averaged, (U,); its mean over users is MAP@k.

    AP@k = Σ_j rel_j · P@j / min(k, number of relevant items), so that a perfect list has 1 at every k.
    """
    hits, relevance = _gains(relevance, ranking)
    precision = hits.cumsum(1) / np.arange(1, hits.shape[1] + 1)
    return _ratio((precision * hits).sum(1), np.minimum(relevance.sum(1), hits.shape[1]))


def ndcg_at_k(relevance: ArrayLike, ranking: ArrayLike) -> np.ndarray:
    """Normalised discounted cumulative gain (Järvelin and Kekäläinen, ACM TOIS 2002), with linear gains, (U,).

    DCG@k = Σ_j rel_j / log2(j + 1) over places j = 1 … k, divided by that of the best list of k items. ``relevance``
    is 0 or more: here, grades are allowed.
    """
    gains, rel = _gains(relevance, ranking, graded=True)
    n, k = rel.shape[1], gains.shape[1]
    discount = 1 / np.log2(np.arange(2, k + 2))
    ideal = np.sort(np.partition(rel, n - k, axis=1)[:, n - k :], axis=1)[:, ::-1] @ discount
    return _ratio(np.minimum(gains @ discount, ideal), ideal)


def expected_ndcg(probabilities: ArrayLike, scores: ArrayLike, k: int) -> np.ndarray:
    """NDCG@k against labels that are known as probabilities, for a simulator, which knows them: (U, I) both → (U,).

    The expectation of DCG@k of the list :func:`top_k` over labels drawn with them, Σ_j p_j / log2(j + 1), divided by
    the largest expectation of any list, that of the list sorted by p. It is *not* the expectation of :func:`ndcg_at_k`
    of drawn labels, a mean of ratios whose best list is another one in each draw.
    """
    return ndcg_at_k(check_probabilities(probabilities), top_k(scores, k))


def user_mean(values: ArrayLike) -> float:
    """Mean over the users that have a value; NaN when none has."""
    v = np.asarray(values, dtype=float)
    known = v[~np.isnan(v)]
    return float(known.mean()) if known.size else float("nan")


def catalogue_coverage(ranking: ArrayLike, n_items: int) -> float:
    """Share of the catalogue that stands in at least one list, in (0, 1]."""
    return len(np.unique(_ranking(ranking, n_items))) / n_items


def category_coverage(ranking: ArrayLike, categories: ArrayLike) -> np.ndarray:
    """Share of the catalogue's categories that each user's list shows, (U,), in (0, 1]; a list of k items cannot show
    more than k. ``categories`` is (I,), text or numbers."""
    codes = _category_codes(categories, len(categories))
    lists = _ranking(ranking, len(codes))
    seen = np.zeros((len(lists), codes.max() + 1), bool)
    np.put_along_axis(seen, codes[lists], True, axis=1)
    return seen.mean(1)


def novelty(ranking: ArrayLike, counts: ArrayLike) -> np.ndarray:
    """Mean self-information of each user's list, (U,) in bits: −log2 of an item's share of all interactions.

    Rare items surprise: novelty(u) = mean over the list of −log2 p_i (Zhou et al., PNAS 2010), where
    p_i = (n_i + 1) / (Σ n + I) and ``counts`` (I,) holds n_i, the interactions with each item in the past. The imagined
    interaction with every item keeps unseen ones finite.
    """
    n = _not_negative(counts, "counts")
    lists, n = _ranking(ranking, len(n)), n + 1.0
    return -np.log2(n[lists] / n.sum()).mean(1)


def exposure(ranking: ArrayLike, n_items: int, position_factors: ArrayLike | None = None) -> np.ndarray:
    """How often each item is shown, (I,); each place counts its factor (k,), 1 unless told."""
    lists = _ranking(ranking, n_items)
    factors = _factors(position_factors, lists)
    return np.bincount(lists.ravel(), np.tile(factors, len(lists)), minlength=n_items)


def gini(exposures: ArrayLike) -> float:
    """Gini coefficient of the exposure of all items, those never shown included.

    G = Σ_j (2j − I − 1) x_(j) / (I Σ x) over the sorted values: 0 when all items are shown equally often, 1 − 1/I when
    one item gets everything; NaN when nothing is shown. ``exposures`` is (I,), 0 or more, as :func:`exposure` counts.
    """
    x = _not_negative(exposures, "exposures")
    if not x.sum():
        return float("nan")
    x = np.sort(x / x.max())
    places = 2 * np.arange(1, len(x) + 1) - len(x) - 1
    return float(np.clip(places @ x / (len(x) * x.sum()), 0, 1))


def expected_revenue(
    ranking: ArrayLike, purchase: ArrayLike, prices: ArrayLike, position_factors: ArrayLike | None = None
) -> np.ndarray:
    """Expected revenue per 1,000 impressions of each user's list, (U,) in the unit of the prices.

    R(u) = 1000/k · Σ_j f_j · P(u buys item_j | shown first) · price_j. A buyer's choice of one product does not change
    the chance of another, as in the simulated shop. ``purchase`` (U, I) are true purchase probabilities of an
    impression, ``prices`` (I,) 0 or more, and ``position_factors`` (k,) what place j leaves of that probability, 1
    unless told. The shop's figure is the mean: all lists are equally long.
    """
    p, price = check_probabilities(purchase), _not_negative(prices, "prices")
    if p.ndim != 2 or price.shape != p.shape[1:]:
        raise ValueError(f"purchase {p.shape} must be (users, items), and prices {price.shape} (items,).")
    lists = _ranking(ranking, p.shape[1], len(p))
    return 1000 * (np.take_along_axis(p, lists, 1) * price[lists] * _factors(position_factors, lists)).mean(1)


def _scores(scores: ArrayLike) -> np.ndarray:
    s = np.asarray(scores)
    s = s if s.dtype in (np.float32, np.float64) else s.astype(float)
    if s.ndim != 2 or np.isnan(s).any():
        raise ValueError(f"Scores have shape {s.shape}: expected (users, items) without NaN.")
    return s


def _length(k: int, longest: int) -> int:
    if k != int(k) or not 1 <= k <= longest:
        raise ValueError(f"k is {k!r}, expected a whole number from 1 to the {longest} items there are.")
    return int(k)


def _ranking(ranking: ArrayLike, n_items: int, n_users: int | None = None) -> np.ndarray:
    lists = np.asarray(ranking)
    if lists.ndim != 2 or lists.dtype.kind not in "iu" or n_users not in (None, len(lists)):
        raise ValueError(f"A ranking is (users, k) positions of items; got {lists.dtype}, {lists.shape}.")
    if lists.min() < 0 or lists.max() >= n_items or not np.diff(np.sort(lists, axis=1), axis=1).all():
        raise ValueError(f"A ranking holds positions from 0 to {n_items - 1}, none twice in a list.")
    return lists


def _gains(relevance: ArrayLike, ranking: ArrayLike, graded: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Relevance at each place, (U, k), and of all items, (U, I)."""
    rel = np.asarray(relevance, dtype=float)
    if rel.ndim != 2 or not (np.isfinite(rel) & (rel >= 0)).all():
        raise ValueError(f"Relevance is (users, items), finite and 0 or more; got shape {rel.shape}.")
    if not graded and ((rel != 0) & (rel != 1)).any():
        raise ValueError("Relevance must be 0 or 1 here; only ndcg_at_k knows grades.")
    return np.take_along_axis(rel, _ranking(ranking, rel.shape[1], len(rel)), 1), rel


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.divide(above, below, out=np.full(len(below), np.nan), where=below > 0)


def _category_codes(categories: ArrayLike, n_items: int) -> np.ndarray:
    codes, _ = pd.factorize(np.asarray(categories))
    if codes.shape != (n_items,) or codes.min() < 0:
        raise ValueError(f"categories {codes.shape}: expected one for each of {n_items} items, none missing.")
    return codes


def _not_negative(values: ArrayLike, what: str) -> np.ndarray:
    x = np.asarray(values, dtype=float)
    if x.ndim != 1 or not (np.isfinite(x) & (x >= 0)).all():
        raise ValueError(f"{what} must be a 1-D array of finite numbers, 0 or more.")
    return x


def _factors(position_factors: ArrayLike | None, lists: np.ndarray) -> np.ndarray:
    k = lists.shape[1]
    factors = _not_negative(np.ones(k) if position_factors is None else position_factors, "position_factors")
    if factors.shape != (k,):
        raise ValueError(f"position_factors have shape {factors.shape}: expected {k} numbers, one a place.")
    return factors
