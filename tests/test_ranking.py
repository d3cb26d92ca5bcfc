"""Lists and their metrics against scikit-learn, a brute-force version, or the defining equation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import average_precision_score, ndcg_score

from mtl_helpers.ranking import (
    average_precision_at_k,
    catalogue_coverage,
    category_coverage,
    expected_ndcg,
    expected_revenue,
    exposure,
    gini,
    mmr,
    ndcg_at_k,
    novelty,
    recall_at_k,
    top_k,
    user_mean,
)

ACCURACY = (recall_at_k, average_precision_at_k, ndcg_at_k)


def draw(users: int = 7, items: int = 20, seed: int = 0, ties: bool = True):
    """Scores, relevance with one empty and one full user, and categories."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(users, items))
    relevance = (rng.random((users, items)) < 0.2).astype(int)
    relevance[0], relevance[1] = 0, 1
    return scores.round(0) if ties else scores, relevance, rng.choice(list("abcd"), items)


def descending(ranking: np.ndarray, items: int) -> np.ndarray:
    """Scores without ties that put the ranked items first, in their order, and all others behind."""
    scores = np.full((len(ranking), items), -1.0) - np.arange(items)
    np.put_along_axis(scores, ranking, np.arange(ranking.shape[1], 0, -1.0)[None], axis=1)
    return scores


score_tables = st.integers(1, 4).flatmap(
    lambda users: st.integers(1, 9).flatmap(
        lambda items: arrays(
            float, (users, items), elements=st.floats(-50, 50) | st.integers(-2, 2).map(float)
        )
    )
)


@given(score_tables, st.data())
def test_top_k_is_the_stable_sort(scores, data):
    k = data.draw(st.integers(1, scores.shape[1]))
    expected = [sorted(range(len(row)), key=lambda i, row=row: (-row[i], i))[:k] for row in scores]
    assert top_k(scores, k).tolist() == expected


def test_top_k_puts_items_at_minus_infinity_last():
    assert top_k([[-np.inf, 1.0, -np.inf, 0.0]], 3).tolist() == [[1, 3, 0]]
    assert top_k([[5, 7, 7]], 2).tolist() == [[1, 2]]
    assert top_k(np.array([[0.5, 0.7]], dtype=np.float32), 1).dtype == np.int64


def slow_mmr(row, categories, k, diversity):
    """The definition: one user, one place, one item at a time."""
    low, high = min(row), max(row)
    scaled = [(value - low) / (high - low) if high > low else 0.0 for value in row]
    chosen: list[int] = []
    while len(chosen) < k:
        left = [i for i in range(len(row)) if i not in chosen]
        taken = {categories[i] for i in chosen}
        value = {i: (1 - diversity) * scaled[i] - diversity * (categories[i] in taken) for i in left}
        chosen.append(max(left, key=lambda i: (value[i], row[i], -i)))
    return chosen


@given(score_tables, st.floats(0, 1) | st.sampled_from([0.0, 0.5, 1.0]), st.data())
def test_mmr_is_its_definition(scores, diversity, data):
    n = scores.shape[1]
    k = data.draw(st.integers(1, n))
    categories = data.draw(st.lists(st.sampled_from("abc"), min_size=n, max_size=n))
    expected = [slow_mmr(row, categories, k, diversity) for row in scores]
    assert mmr(scores, categories, k, diversity).tolist() == expected


@pytest.mark.parametrize("ties", [True, False])
@pytest.mark.parametrize("k", [1, 3, 10, 20])
@pytest.mark.parametrize("seed", range(3))
def test_ndcg_and_average_precision_are_scikit_learns(seed, k, ties):
    scores, relevance, _ = draw(seed=seed, ties=ties)
    grades = relevance * np.random.default_rng(seed).integers(1, 5, relevance.shape)
    for labels in (relevance, grades):
        ranking = top_k(scores, k)
        found = ndcg_at_k(labels, ranking)
        assert np.isnan(found[0])
        strict = descending(ranking, scores.shape[1])
        for user in range(1, len(scores)):
            assert found[user] == pytest.approx(ndcg_score(labels[[user]], strict[[user]], k=k))
    whole, strict = top_k(scores, 20), descending(top_k(scores, 20), 20)
    expected = [average_precision_score(relevance[user], strict[user]) for user in range(1, len(scores))]
    assert average_precision_at_k(relevance, whole)[1:] == pytest.approx(expected)


@pytest.mark.parametrize("k", [1, 4, 20])
def test_recall_and_map_by_hand(k):
    scores, relevance, _ = draw(seed=4)
    ranking = top_k(scores, 20)
    found = [metric(relevance, ranking[:, :k]) for metric in (recall_at_k, average_precision_at_k)]
    for user in range(1, len(scores)):
        wanted = set(np.flatnonzero(relevance[user]))
        hits = [item in wanted for item in ranking[user, :k]]
        at_hits = [sum(hits[: j + 1]) / (j + 1) for j in range(k) if hits[j]]
        expected = (sum(hits) / len(wanted), sum(at_hits) / min(k, len(wanted)))
        assert [values[user] for values in found] == pytest.approx(expected)


@given(
    st.integers(1, 12).flatmap(
        lambda items: st.tuples(
            arrays(int, (3, items), elements=st.integers(0, 1)),
            arrays(float, (3, items), elements=st.floats(-1, 1)),
            st.integers(1, items),
            st.permutations(range(items)),
        )
    )
)
def test_accuracy_lies_between_0_and_1_and_knows_the_perfect_list(drawn):
    relevance, scores, k, renamed = drawn
    empty = relevance.sum(1) == 0
    ranking, perfect = top_k(scores, k), top_k(relevance, k)
    for metric in ACCURACY:
        found = metric(relevance, ranking)
        assert (np.isnan(found) == empty).all()
        assert ((found >= 0) & (found <= 1) | empty).all()
        assert (metric(relevance, perfect) >= found - 1e-12).astype(bool)[~empty].all()
        # the same catalogue, numbered otherwise
        place = np.argsort(renamed)
        assert metric(relevance[:, renamed], place[ranking]) == pytest.approx(found, nan_ok=True)
    for metric in (average_precision_at_k, ndcg_at_k):
        assert metric(relevance, perfect)[~empty] == pytest.approx(1)


def test_expected_ndcg_is_what_drawn_labels_have_on_average_without_their_noise():
    rng, k = np.random.default_rng(0), 5
    p, scores = rng.beta(1, 6, (30, 20)), rng.normal(size=(30, 20))
    found, discount = expected_ndcg(p, scores, k), 1 / np.log2(np.arange(2, k + 2))
    ranking, best = top_k(scores, k), np.sort(p, axis=1)[:, ::-1][:, :k] @ discount
    draws = rng.random((200, *p.shape)) < p
    dcg = np.stack([np.take_along_axis(labels, ranking, 1) for labels in draws]) @ discount  # (200, U)
    error = dcg.std(0) / math.sqrt(200)
    assert (np.abs(found * best - dcg.mean(0)) < 5 * error).all() and abs(
        (found * best - dcg.mean(0)).mean()
    ) < 0.01
    assert dcg.mean(1).std() > 0.02  # of the shop's figure; of ours there is but one
    assert not np.array_equal(found, expected_ndcg(p, -scores, k))
    assert expected_ndcg(p, p**2, k) == pytest.approx(1)
    assert np.array_equal(expected_ndcg(draws[0], scores, k), ndcg_at_k(draws[0], ranking), equal_nan=True)
    with pytest.raises(ValueError, match="Probabilities"):
        expected_ndcg(p + 1, scores, k)


def test_users_without_anything_relevant_are_left_out():
    values = recall_at_k([[0, 0], [1, 0], [0, 1]], [[0], [0], [1]])
    assert user_mean(values) == 1 and np.isnan(values[0])
    assert np.isnan(user_mean(recall_at_k([[0, 0]], [[1]]))) and np.isnan(user_mean([]))
    assert user_mean([1, np.nan, 0]) == 0.5


def test_coverage_counts_items_and_categories():
    ranking = [[0, 1], [1, 3]]
    assert catalogue_coverage(ranking, 8) == 3 / 8
    assert catalogue_coverage(top_k(np.ones((1, 4)), 4), 4) == 1
    assert category_coverage(ranking, list("aabc")).tolist() == [1 / 3, 2 / 3]


def test_novelty_is_self_information():
    counts = np.array([8, 4, 4, 0])
    p = (counts + 1) / 20
    assert novelty([[0, 3]], counts) == pytest.approx([-(math.log2(p[0]) + math.log2(p[3])) / 2])


@given(
    st.lists(st.floats(0, 1e6, allow_subnormal=False) | st.just(0.0), min_size=1, max_size=30).filter(
        lambda x: sum(x) > 1e-9
    )
)
def test_gini_is_half_the_mean_difference_over_the_mean(values):
    x = np.array(values)
    expected = np.abs(x[:, None] - x).mean() / (2 * x.mean())
    assert gini(x) == pytest.approx(expected, abs=1e-9)
    assert 0 <= gini(x) <= 1 - 1 / len(x) + 1e-9
    assert gini(x[::-1]) == pytest.approx(gini(x), abs=1e-12)


def test_gini_at_its_ends():
    assert gini(np.full(7, 3)) == pytest.approx(0)
    assert gini([0, 0, 0, 9]) == pytest.approx(0.75)
    assert np.isnan(gini([0, 0]))
    assert gini([0, 1]) > gini([1, 1]), "an item never shown counts"


def test_exposure_counts_places():
    assert exposure([[0, 2], [2, 1]], 4).tolist() == [1, 1, 2, 0]
    assert exposure([[0, 2], [2, 1]], 4, [1, 0.5]).tolist() == [1, 0.5, 1.5, 0]


@pytest.mark.parametrize("factors", [None, [1.0, 0.6, 0.3]])
def test_revenue_is_what_the_simulated_buyers_pay(factors):
    rng = np.random.default_rng(0)
    purchase, prices = rng.random((4, 6)) * 0.3, rng.random(6) * 50
    ranking = top_k(rng.random((4, 6)), 3)
    chance = np.take_along_axis(purchase, ranking, 1) * (1 if factors is None else np.array(factors))
    draws = 200_000
    paid = ((rng.random((draws, 4, 3)) < chance) * prices[ranking]).sum(-1)
    expected = paid.mean(0) / 3 * 1000
    error = paid.std(0) / 3 * 1000 / math.sqrt(draws)
    found = expected_revenue(ranking, purchase, prices, factors)
    assert (np.abs(found - expected) < 5 * error).all()


def test_revenue_by_hand_and_with_zero_prices():
    assert expected_revenue([[1, 0]], [[0.1, 0.2]], [10, 5]).tolist() == [1000 * (0.2 * 5 + 0.1 * 10) / 2]
    assert expected_revenue([[1]], [[0.1, 0.2]], [10, 0]).tolist() == [0]
    high_first = expected_revenue([[0, 1]], [[0.1, 0.2]], [10, 10], [1, 0.5])
    assert high_first < expected_revenue([[1, 0]], [[0.1, 0.2]], [10, 10], [1, 0.5])


SCORES = [[1.0, 2.0, 3.0]]
REFUSED = {
    "k is 4, expected a whole number from 1 to the 3 items": lambda: top_k(SCORES, 4),
    "k is 0, .* whole number": lambda: mmr(SCORES, [0, 1, 0], 0, 0.5),
    "k is 1.5, .* whole number": lambda: top_k(SCORES, 1.5),
    "without NaN": lambda: top_k([[1, np.nan, 3]], 1),
    "expected .users, items.": lambda: top_k([1, 2, 3], 1),
    "not -0.1": lambda: mmr(SCORES, list("aab"), 2, -0.1),
    "not nan": lambda: mmr(SCORES, list("aab"), 2, float("nan")),
    "one for each of 3 items": lambda: mmr(SCORES, list("ab"), 2, 0.5),
    "none missing": lambda: mmr(SCORES, ["a", None, "b"], 2, 0.5),
    "finite scores": lambda: mmr([[1.0, np.inf, 2.0]], list("aab"), 2, 0.5),
    "0 or 1 here": lambda: recall_at_k([[0, 2]], [[0]]),
    "prices must": lambda: expected_revenue([[0]], [[0.1, 0.2]], [10, -1]),
    "prices must be a 1-D": lambda: expected_revenue([[0]], [[0.1, 0.2]], [10, np.nan]),
    "Probabilities": lambda: expected_revenue([[0]], [[0.1, 1.2]], [10, 1]),
    "in .0, 1., without NaN": lambda: expected_revenue([[0]], [[0.1, np.nan]], [10, 1]),
    "and prices": lambda: expected_revenue([[0]], [[0.1, 0.2]], [10]),
    "one a place": lambda: expected_revenue([[0]], [[0.1, 0.2]], [10, 1], [1, 1]),
    "positions from 0": lambda: expected_revenue([[2]], [[0.1, 0.2]], [10, 1]),
    "positions from 0 to 3": lambda: catalogue_coverage([[4]], 4),
    "categories .* none missing": lambda: category_coverage([[0]], [None, "a"]),
    "counts must .* 0 or more": lambda: novelty([[0]], [-1, 2]),
    "exposures must .* 0 or more": lambda: gini([-1, 2]),
    "position_factors must .* 0 or more": lambda: exposure([[0]], 2, [-1]),
}


@pytest.mark.parametrize("says", REFUSED)
def test_numbers_that_make_no_sense_are_refused(says):
    with pytest.raises(ValueError, match=says):
        REFUSED[says]()


@pytest.mark.parametrize("metric", ACCURACY)
@pytest.mark.parametrize(
    ("relevance", "ranking", "says"),
    [
        ([[0, 1, 1]], [[0, 3]], "positions from 0 to 2"),
        ([[0, 1, 1]], [[0, -1]], "positions from 0 to 2"),
        ([[0, 1, 1]], [[1, 1]], "none twice"),
        ([[0, 1, 1]], [[0.0, 1.0]], "float64"),
        ([[0, 1, 1]], [[0], [1]], r"\(2, 1\)"),
        ([[0, np.nan, 1]], [[0, 1]], "finite and 0 or more"),
        ([[0, -1, 1]], [[0, 1]], "finite and 0 or more"),
        ([0, 1, 1], [[0, 1]], "users, items"),
    ],
)
def test_lists_that_cannot_be_judged(metric, relevance, ranking, says):
    with pytest.raises(ValueError, match=says):
        metric(relevance, ranking)
