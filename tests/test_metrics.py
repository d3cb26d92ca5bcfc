"""Metrics against scikit-learn or a brute-force version, and intervals against their definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import ttest_1samp
from sklearn import metrics as sk

from mtl_helpers.data import MultiTaskDataset, Task
from mtl_helpers.metrics import (
    accuracy,
    auc,
    calibration_error,
    confusion,
    correct_downsampling,
    grouped_auc,
    holm,
    log_loss,
    mean_interval,
    paired_difference,
    reliability_curve,
)
from mtl_helpers.training import measured


def draw(n: int = 400, seed: int = 0, ties: bool = True):
    rng = np.random.default_rng(seed)
    p = rng.random(n)
    y = (rng.random(n) < p).astype(int)
    return y, p.round(1) if ties else p


@pytest.mark.parametrize("ties", [True, False])
@pytest.mark.parametrize("seed", range(5))
def test_against_scikit_learn(seed, ties):
    y, p = draw(seed=seed, ties=ties)
    assert auc(y, p) == pytest.approx(sk.roc_auc_score(y, p), abs=1e-12)
    assert log_loss(y, p) == pytest.approx(sk.log_loss(y, np.clip(p, 1e-7, 1 - 1e-7)))
    assert accuracy(y, p, 0.4) == sk.accuracy_score(y, p >= 0.4)
    tn, fp, fn, tp = sk.confusion_matrix(y, p >= 0.4).ravel()
    assert confusion(y, p, 0.4) == {"tp": tp, "fp": fp, "fn": fn, "tn": tn}


def test_constant_scores_and_single_classes():
    y, _ = draw()
    assert auc(y, np.ones(len(y))) == 0.5
    assert np.isnan(auc(np.zeros(5), np.arange(5)))
    assert np.isnan(auc([], []))


def test_grouped_auc_against_a_loop():
    y, p = draw(300)
    groups = np.random.default_rng(1).integers(0, 40, 300)
    total = weight = 0.0
    for group in np.unique(groups):
        rows = groups == group
        if len(set(y[rows])) == 2:
            total += sk.roc_auc_score(y[rows], p[rows]) * rows.sum()
            weight += rows.sum()
    assert grouped_auc(y, p, groups) == pytest.approx(total / weight)
    assert np.isnan(grouped_auc([0, 1], [0.1, 0.2], [1, 2]))
    with pytest.raises(ValueError, match="one group per row"):
        grouped_auc([0, 1], [0.1, 0.2], [1])


def test_calibration_error():
    rng = np.random.default_rng(0)
    p = rng.random(200_000)
    y = rng.random(200_000) < p
    assert calibration_error(y, p) < 0.005
    assert calibration_error(y, p / 2) == pytest.approx(0.25, abs=0.01)
    assert calibration_error([0, 1, 1, 1], [0.5] * 4, bins=1) == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("labels", "scores", "word"),
    [
        ([0, 1], [0.1], "one length"),
        ([0, 2], [0.1, 0.2], "found 2"),
        ([0, np.nan], [0.1, 0.2], "without a label"),
        ([0, 1], [0.1, np.nan], "NaN"),
    ],
)
def test_bad_input(labels, scores, word):
    for metric in (auc, log_loss, accuracy, confusion, calibration_error):
        with pytest.raises(ValueError, match=word):
            metric(labels, scores)


def measured_on(task, logits, labels, mask=None):
    n, masks = len(labels), {} if mask is None else {task.name: torch.tensor(mask)}
    numeric, categorical = torch.zeros(n, 1), torch.zeros(n, 0, dtype=torch.long)
    data = MultiTaskDataset(numeric, categorical, {task.name: torch.tensor(labels)}, masks, (task,))
    return measured(task, torch.tensor(logits), data)


def test_a_task_is_measured_on_its_labelled_rows():
    y, p = draw(ties=False)
    found = measured_on(Task("b"), np.log(p / (1 - p)), y.astype(float), np.arange(len(y)) < 100)
    assert found["auc"] == pytest.approx(sk.roc_auc_score(y[:100], p[:100]))
    assert found["accuracy"] == np.mean((p[:100] >= 0.5) == y[:100])
    three, kind, value = np.eye(3)[[0, 1, 2, 2]], Task("m", "multiclass", 3), Task("r", "regression")
    assert measured_on(kind, three, [0, 1, 1, 2])["accuracy"] == 0.75
    assert measured_on(value, [1.0, 2.0], [1.0, 4.0])["rmse"] == pytest.approx(np.sqrt(2))
    for task, logits, labels in ((Task("b"), [1.0], [1.0]), (kind, three[:1], [0]), (value, [1.0], [1.0])):
        assert all(np.isnan(number) for number in measured_on(task, logits, labels, [False]).values())


def test_interval_against_the_t_table():
    found = mean_interval([1, 2, 3, 4, 5])
    assert (found.mean, found.n) == (3, 5)
    assert found.high - 3 == pytest.approx(2.776 * np.std([1, 2, 3, 4, 5], ddof=1) / np.sqrt(5), rel=1e-3)
    assert found.excludes_zero
    assert not mean_interval([-1, 1, 2]).excludes_zero


def test_pairing_removes_the_seeds_luck():
    luck = np.array([0.0, 10, 20, 30, 40])
    found = paired_difference(luck + 1 + np.array([0.1, -0.1, 0, 0.1, -0.1]), luck)
    assert found.mean == pytest.approx(1) and found.excludes_zero
    with pytest.raises(ValueError, match="Pairs"):
        paired_difference([1, 2], [1])


@pytest.mark.parametrize("values", [[1.0], [], [1.0, np.nan]])
def test_interval_needs_finite_values(values):
    with pytest.raises(ValueError, match="two or more finite"):
        mean_interval(values)


class TestReliability:
    def test_bins_are_those_of_the_calibration_error(self):
        y, p = draw(401, ties=False)
        curve = reliability_curve(y, p, bins=7)
        assert curve["count"].sum() == 401 and curve["count"].max() - curve["count"].min() <= 1
        gaps = (curve["observed"] - curve["predicted"]).abs()
        assert np.average(gaps, weights=curve["count"]) == pytest.approx(calibration_error(y, p, 7))
        assert curve["predicted"].is_monotonic_increasing

    def test_against_scikit_learn(self):
        from sklearn.calibration import calibration_curve

        y, p = draw(400, ties=False)
        observed, predicted = calibration_curve(y, p, n_bins=8, strategy="quantile")
        curve = reliability_curve(y, p, bins=8)
        assert curve["observed"].to_numpy() == pytest.approx(observed)
        assert curve["predicted"].to_numpy() == pytest.approx(predicted)

    @pytest.mark.parametrize(("hits", "n"), [(0, 10), (3, 10), (10, 10), (1, 400)])
    def test_interval_is_wilsons(self, hits, n):
        from scipy.stats import binomtest

        row = reliability_curve(np.arange(n) < hits, np.full(n, 0.3), bins=1).iloc[0]
        expected = binomtest(hits, n).proportion_ci(0.95, method="wilson")
        assert (row["low"], row["high"]) == pytest.approx((expected.low, expected.high), abs=1e-12)
        assert row["low"] <= row["observed"] <= row["high"]

    def test_few_rows_none_and_one_class(self):
        assert len(reliability_curve([0, 1], [0.1, 0.2])) == 2
        assert len(reliability_curve([], [])) == 0
        assert reliability_curve(np.zeros(9), np.full(9, 0.2))["observed"].eq(0).all()

    @pytest.mark.parametrize(
        ("p", "options", "says"),
        [([0.1, 1.3], {}, "Logits"), ([0.1, 0.2], {"bins": 0}, "sections must be larger")],
    )
    def test_bad_input(self, p, options, says):
        with pytest.raises(ValueError, match=says):
            reliability_curve([0, 1], p, **options)


class TestDownsampling:
    @pytest.mark.parametrize("rate", [1.0, 0.3, 0.01])
    def test_undoes_what_dropping_negatives_does(self, rate):
        truth = np.array([0.001, 0.02, 0.5, 0.97])
        seen = truth / (truth + rate * (1 - truth))  # Bayes: negatives kept with that rate
        assert correct_downsampling(seen, rate) == pytest.approx(truth)

    def test_order_and_ends_stay(self):
        q = np.linspace(0, 1, 11)
        p = correct_downsampling(q.reshape(1, -1), 0.2)
        assert p.shape == (1, 11) and (np.diff(p[0]) > 0).all() and (p[0, 0], p[0, -1]) == (0, 1)

    @pytest.mark.parametrize(("q", "rate"), [([0.1], 0), ([0.1], 1.1), ([0.1], float("nan")), ([1.2], 0.5)])
    def test_bad_input(self, q, rate):
        with pytest.raises(ValueError, match=r"rate is|0, 1"):
            correct_downsampling(q, rate)


def test_holm_rejects_as_his_sequence_does():
    rng = np.random.default_rng(0)
    runs = {f"{shift}": rng.normal(shift, 1, 10) for shift in (0.0, 0.6, 0.8, 1.0, 1.2, 3.0)}
    runs["same"] = np.zeros(10)  # no p at all: never a finding
    p = {name: ttest_1samp(values, 0).pvalue for name, values in runs.items() if name != "same"}
    for level in (0.001, 0.01, 0.05, 0.2):
        rejected, left = set(), len(runs)
        for name in sorted(p, key=p.get):
            if p[name] > level / left:
                break
            rejected.add(name)
            left -= 1
        assert {name for name, value in holm(runs).items() if value <= level} == rejected
    assert holm(runs)["same"] == 1 and holm({"3.0": runs["3.0"]})["3.0"] == pytest.approx(p["3.0"])
