"""From scores to a ranked list for each user, and what such a list is worth.

Taught in notebook 05. Scores are an array (U, I), a row for each user and a column for each item; a ranking is an array
(U, k) of item positions in 0 … I − 1, best first, as :func:`top_k` and :func:`mmr` return it. Metrics of a list give
one value per user, (U,): NaN where a user has no relevant item, for then no list is right or wrong. Average them with
:func:`user_mean`, which leaves those users out. Nothing here guesses: NaN, repeated or unknown items, negative prices
and lists shorter than k are ValueErrors.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

__all__ = [
    "average_precision_at_k",
    "catalogue_coverage",
    "category_coverage",
    "expected_revenue",
    "exposure",
    "gini",
    "mmr",
    "ndcg_at_k",
    "novelty",
    "precision_at_k",
    "recall_at_k",
    "top_k",
    "user_mean",
]


# ------------------------------------------------------------------------------------------------- lists


def top_k(scores: ArrayLike, k: int) -> np.ndarray:
    """The k best items of each user, best first; equal scores go by position in the catalogue, the lower first.

    Parameters
    ----------
    scores : (U, I); −inf puts an item behind all others (say, one that is sold out).
    k : 1 to I.

    Returns
    -------
    (U, k) int64, positions of items.

    Raises ValueError for NaN scores and for a catalogue smaller than k.
    """
    s = _scores(scores)
    k = _length(k, s.shape[1], "the catalogue has {} items: ask for fewer")
    # exactly k of each row: everything above the k-th score, then as many of its equals as there is room for
    limit = np.partition(s, s.shape[1] - k, axis=1)[:, s.shape[1] - k, None]
    chosen, equal = s > limit, s == limit
    room = k - chosen.sum(1, keepdims=True)
    chosen |= equal & (equal.cumsum(1) <= room)
    items = np.nonzero(chosen)[1].reshape(len(s), k)
    order = np.argsort(-np.take_along_axis(s, items, 1), axis=1, kind="stable")
    return np.take_along_axis(items, order, 1)


def mmr(scores: ArrayLike, categories: ArrayLike, k: int, diversity: float) -> np.ndarray:
    """Lists that trade score against variety: maximal marginal relevance (Carbonell and Goldstein, SIGIR 1998).

    Place after place takes the item with the largest (1 − d)·s′ − d·[its category is in the list already], where d is
    ``diversity`` (1 − λ of the paper) and s′ the user's scores, scaled to run from 0 (worst item) to 1 (best). So d
    means the same for every user and every scale of scores, but depends on the best and the worst of them. Equal
    values go to the higher score, then to the lower position.

    Parameters
    ----------
    scores : (U, I), finite. categories : (I,), text or numbers. k : 1 to I.
    diversity : 0 gives :func:`top_k`; 1 takes the best item of every category before a second one of any.

    Returns
    -------
    (U, k) int64, positions of items.
    """
    s = _scores(scores)
    if not np.isfinite(s).all():
        raise ValueError(
            f"mmr scales between the worst and the best score: {np.isinf(s).sum()} are infinite."
        )
    k = _length(k, s.shape[1], "the catalogue has {} items: ask for fewer")
    if not 0 <= diversity <= 1:
        raise ValueError(f"diversity is {diversity}, expected 0 (by score alone) to 1 (by category alone).")
    if diversity == 0:
        return top_k(s, k)
    codes, rows = _category_codes(categories, s.shape[1]), np.arange(len(s))
    order = np.argsort(
        -s, axis=1, kind="stable"
    )  # best first, so that argmax takes the higher score of equals
    low, high = s.min(1, keepdims=True), s.max(1, keepdims=True)
    scaled = (np.take_along_axis(s, order, 1) - low) / np.where(high > low, high - low, 1)
    value, category = (1 - diversity) * scaled, codes[order]
    out, penalty = np.empty((len(s), k), np.int64), np.zeros_like(value)
    for place in range(k):
        at = (value - penalty).argmax(1)
        out[:, place] = order[rows, at]
        penalty[category == category[rows, at, None]] = diversity
        value[rows, at] = -np.inf
    return out


# ------------------------------------------------------------------------------------------------- accuracy of a list


def precision_at_k(relevance: ArrayLike, ranking: ArrayLike, k: int | None = None) -> np.ndarray:
    """Share of the first k items that are relevant.

    Parameters
    ----------
    relevance : (U, I), 0 or 1. ranking : (U, n) positions of items, best first.
    k : 1 to n; the whole list unless told.

    Returns
    -------
    (U,), in [0, 1]; NaN for a user without a relevant item.
    """
    hits, relevant, _ = _hits(relevance, ranking, k)
    return np.where(relevant > 0, hits.mean(1), np.nan)


def recall_at_k(relevance: ArrayLike, ranking: ArrayLike, k: int | None = None) -> np.ndarray:
    """Share of a user's relevant items that stand among the first k; below 1 where these are more than k.

    Parameters and result as for :func:`precision_at_k`.
    """
    hits, relevant, _ = _hits(relevance, ranking, k)
    return _ratio(hits.sum(1), relevant)


def average_precision_at_k(relevance: ArrayLike, ranking: ArrayLike, k: int | None = None) -> np.ndarray:
    """Precision at the place of each relevant item among the first k, averaged; its mean over users is MAP@k.

    AP@k = Σ_j rel_j · P@j / min(k, number of relevant items), so that a perfect list has 1 at every k. With k = I it is
    the usual average precision. Parameters and result as for :func:`precision_at_k`.
    """
    hits, relevant, k = _hits(relevance, ranking, k)
    precision = hits.cumsum(1) / np.arange(1, k + 1)
    return _ratio((precision * hits).sum(1), np.minimum(relevant, k))


def ndcg_at_k(relevance: ArrayLike, ranking: ArrayLike, k: int | None = None) -> np.ndarray:
    """Normalised discounted cumulative gain (Järvelin and Kekäläinen, ACM TOIS 2002), with linear gains.

    DCG@k = Σ_j rel_j / log2(j + 1) over places j = 1 … k, divided by that of the best list of k items.

    Parameters
    ----------
    relevance : (U, I), 0 or more (grades are allowed). ranking, k : as for :func:`precision_at_k`.

    Returns
    -------
    (U,), in [0, 1]; NaN for a user whose relevances are all 0.
    """
    rel, lists, k = _relevance_and_ranking(relevance, ranking, k)
    discount = 1 / np.log2(np.arange(2, k + 2))
    gain = np.take_along_axis(rel, lists, 1) @ discount
    best = np.sort(np.partition(rel, rel.shape[1] - k, axis=1)[:, rel.shape[1] - k :], axis=1)[:, ::-1]
    ideal = best @ discount
    return _ratio(np.minimum(gain, ideal), ideal)


def user_mean(values: ArrayLike) -> float:
    """Mean over the users that have a value; NaN when none has."""
    v = np.asarray(values, dtype=float)
    known = v[~np.isnan(v)]
    return float(known.mean()) if known.size else float("nan")


# ------------------------------------------------------------------------------------------------- what a shop reads


def catalogue_coverage(ranking: ArrayLike, n_items: int) -> float:
    """Share of the catalogue that stands in at least one list, in (0, 1]."""
    lists = _ranking(ranking, n_items)
    return len(np.unique(lists)) / n_items


def category_coverage(ranking: ArrayLike, categories: ArrayLike) -> np.ndarray:
    """Share of the catalogue's categories that each user's list shows, (U,), in (0, 1].

    A list of k items cannot show more than k categories. ``categories`` is (I,), text or numbers.
    """
    n_items = np.asarray(categories).shape[0]
    codes = _category_codes(categories, n_items)
    lists = _ranking(ranking, n_items)
    seen = np.zeros((len(lists), codes.max() + 1), bool)
    np.put_along_axis(seen, codes[lists], True, axis=1)
    return seen.mean(1)


def novelty(ranking: ArrayLike, counts: ArrayLike, smoothing: float = 1.0) -> np.ndarray:
    """Mean self-information of each user's list, bits: −log2 of an item's share of all interactions.

    Rare items surprise: novelty(u) = mean over the list of −log2 p_i (Zhou et al., PNAS 2010), where
    p_i = (n_i + a) / (Σ n + a·I). The a imagined interactions with every item keep unseen items finite.

    Parameters
    ----------
    ranking : (U, k). counts : (I,) interactions with each item in the past, 0 or more. smoothing : a, 0 or more.

    Returns
    -------
    (U,), bits. Raises ValueError when a = 0 and a list holds an item without interactions.
    """
    n = _amounts("counts", counts) + _amounts("smoothing", [smoothing])
    lists = _ranking(ranking, len(n))
    unseen = n[lists] == 0
    if unseen.any():
        item = lists[unseen][0]
        raise ValueError(f"Item {item} has no interaction, so its surprise is infinite: use smoothing > 0.")
    return -np.log2(n[lists] / n.sum()).mean(1)


def exposure(ranking: ArrayLike, n_items: int, position_factors: ArrayLike | None = None) -> np.ndarray:
    """How often each item is shown, (I,); each place counts its factor (k,), 1 unless told."""
    lists = _ranking(ranking, n_items)
    factors = _factors(position_factors, lists.shape[1])
    return np.bincount(lists.ravel(), np.tile(factors, len(lists)), minlength=n_items)


def gini(exposures: ArrayLike) -> float:
    """Gini coefficient of the exposure of all items, those never shown included.

    G = Σ_j (2j − I − 1) x_(j) / (I Σ x) over the sorted values: 0 when all items are shown equally often, 1 − 1/I when
    one item gets everything; NaN when nothing is shown. ``exposures`` is (I,), 0 or more, as :func:`exposure` counts.
    """
    x = _amounts("exposures", exposures)
    if not x.sum():
        return float("nan")
    x = np.sort(x / x.max())
    places = 2 * np.arange(1, len(x) + 1) - len(x) - 1
    return float(np.clip(places @ x / (len(x) * x.sum()), 0, 1))


def expected_revenue(
    ranking: ArrayLike, purchase: ArrayLike, prices: ArrayLike, position_factors: ArrayLike | None = None
) -> np.ndarray:
    """Expected revenue per 1,000 impressions of each user's list, in the unit of the prices.

    R(u) = 1000/k · Σ_j f_j · P(u buys item_j | shown first) · price_j. A buyer's choice of one product does not change
    the chance of another, as in the simulated shop.

    Parameters
    ----------
    ranking : (U, k). purchase : (U, I) true purchase probability of an impression, in [0, 1].
    prices : (I,), 0 or more. position_factors : (k,) what place j leaves of that probability; 1 unless told.

    Returns
    -------
    (U,). The shop's figure is the mean: all lists are equally long.
    """
    p, price = np.asarray(purchase, dtype=float), _amounts("prices", prices)
    if p.ndim != 2 or price.shape != p.shape[1:]:
        raise ValueError(
            f"purchase has shape {p.shape}, prices {price.shape}: expected (users, items) and (items,)."
        )
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError("purchase holds NaN or values outside [0, 1]: give probabilities.")
    lists = _ranking(ranking, p.shape[1], len(p))
    factors = _factors(position_factors, lists.shape[1])
    return 1000 * (np.take_along_axis(p, lists, 1) * price[lists] * factors).mean(1)


# ------------------------------------------------------------------------------------------------- checks


def _scores(scores: ArrayLike) -> np.ndarray:
    s = np.asarray(scores)
    s = s if s.dtype in (np.float32, np.float64) else s.astype(float)
    if s.ndim != 2 or not s.size:
        raise ValueError(f"Scores have shape {s.shape}: expected (users, items), at least one of each.")
    if np.isnan(s).any():
        raise ValueError(f"{int(np.isnan(s).sum())} scores are NaN: an item without a score has no rank.")
    return s


def _length(k: int, longest: int, why: str) -> int:
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1:
        raise ValueError(f"k is {k!r}, expected a whole number of 1 or more.")
    if k > longest:
        raise ValueError(f"k is {k}, but {why.format(longest)}.")
    return int(k)


def _ranking(ranking: ArrayLike, n_items: int, n_users: int | None = None) -> np.ndarray:
    lists = np.asarray(ranking)
    if lists.ndim != 2 or not lists.size or lists.dtype.kind not in "iu":
        raise ValueError(
            f"A ranking is (users, k) whole numbers, positions of items; got shape {lists.shape}, {lists.dtype}."
        )
    if n_users is not None and len(lists) != n_users:
        raise ValueError(f"The ranking has {len(lists)} users, the other arrays {n_users}.")
    if lists.min() < 0 or lists.max() >= n_items:
        wrong = lists[(lists < 0) | (lists >= n_items)][0]
        raise ValueError(f"The ranking holds item {wrong}, but items go from 0 to {n_items - 1}.")
    ordered = np.sort(lists, axis=1)
    twice = (ordered[:, 1:] == ordered[:, :-1]).any(1)
    if twice.any():
        raise ValueError(f"The list of user {int(twice.argmax())} holds an item more than once.")
    return lists


def _relevance_and_ranking(
    relevance: ArrayLike, ranking: ArrayLike, k: int | None
) -> tuple[np.ndarray, np.ndarray, int]:
    rel = np.asarray(relevance, dtype=float)
    if rel.ndim != 2 or not rel.size:
        raise ValueError(f"Relevance has shape {rel.shape}: expected (users, items), at least one of each.")
    if not (np.isfinite(rel) & (rel >= 0)).all():
        wrong = rel[~(np.isfinite(rel) & (rel >= 0))][0]
        raise ValueError(f"Relevance must be finite and 0 or more; found {wrong:g}.")
    lists = _ranking(ranking, rel.shape[1], len(rel))
    k = _length(
        lists.shape[1] if k is None else k, lists.shape[1], "the lists have {} items: rank more first"
    )
    return rel, lists[:, :k], k


def _hits(relevance: ArrayLike, ranking: ArrayLike, k: int | None) -> tuple[np.ndarray, np.ndarray, int]:
    rel, lists, k = _relevance_and_ranking(relevance, ranking, k)
    if ((rel != 0) & (rel != 1)).any():
        wrong = rel[(rel != 0) & (rel != 1)][0]
        raise ValueError(f"Relevance must be 0 or 1 here; found {wrong:g}. Only ndcg_at_k knows grades.")
    return np.take_along_axis(rel, lists, 1), rel.sum(1), k


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.divide(above, below, out=np.full(len(below), np.nan), where=below > 0)


def _category_codes(categories: ArrayLike, n_items: int) -> np.ndarray:
    codes, _ = pd.factorize(np.asarray(categories))
    if codes.shape != (n_items,):
        raise ValueError(f"categories have shape {codes.shape}: expected one for each of {n_items} items.")
    if codes.min() < 0:
        raise ValueError(f"Item {int(codes.argmin())} has no category: name one, say 'unknown'.")
    return codes


def _factors(position_factors: ArrayLike | None, k: int) -> np.ndarray:
    if position_factors is None:
        return np.ones(k)
    factors = _amounts("position_factors", position_factors)
    if factors.shape != (k,):
        raise ValueError(f"{len(factors)} position_factors for {k} places: expected one a place.")
    return factors


def _amounts(what: str, values: ArrayLike) -> np.ndarray:
    """Numbers of which none is negative, NaN or infinite, one for each item or place."""
    x = np.asarray(values, dtype=float)
    if x.ndim != 1 or not x.size or not (np.isfinite(x) & (x >= 0)).all():
        raise ValueError(f"{what}: expected a 1-D array of finite numbers, 0 or more, one for each item.")
    return x
