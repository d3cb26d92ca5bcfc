"""Tasks, cleaning, splitting, encoding, batches."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import MIXED_TASKS, toy_frame, toy_splits

from mtl_helpers.data import (
    FeatureEncoder,
    MultiTaskDataset,
    Task,
    check_leaks,
    clip_outliers,
    convert_units,
    drop_duplicate_rows,
    hide_labels,
    prepare,
    split_by_time,
    split_by_user,
    tidy_text,
)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"name": "a", "kind": "ordinal"}, "ordinal"),
        ({"name": "a", "kind": "multiclass"}, "n_classes"),
        ({"name": "a", "kind": "multiclass", "n_classes": 1}, "n_classes=1"),
        ({"name": "a", "kind": "binary", "n_classes": 3}, "any other kind none"),
    ],
)
def test_task_refuses_what_makes_no_sense(arguments, word):
    with pytest.raises(ValueError, match=word):
        Task(**arguments)


def test_outputs_per_kind():
    assert [task.n_outputs for task in MIXED_TASKS] == [1, 3, 1]
    assert Task("buy", label="is_bought").label_column == "is_bought"


class TestCleaning:
    def test_duplicates_go_and_rows_are_renumbered(self):
        frame = pd.DataFrame({"a": [1, 1, 2, 1], "b": [5, 5, 5, 6]})
        clean = drop_duplicate_rows(frame)
        assert clean["a"].tolist() == [1, 2, 1]
        assert clean.index.tolist() == [0, 1, 2]
        assert len(frame) == 4

    def test_text(self):
        values = tidy_text(pd.Series([" Books", "books ", "TOYS", None]))
        assert values[:3].tolist() == ["books", "books", "toys"]
        assert pd.isna(values[3])

    def test_units(self):
        prices = convert_units(pd.Series([5.0, 700.0]), pd.Series(["EUR", "cent"]), {"EUR": 1, "cent": 0.01})
        assert prices.tolist() == [5.0, 7.0]

    @pytest.mark.parametrize(("unit", "word"), [("USD", "USD"), (None, "missing")])
    def test_an_unknown_unit_is_an_error(self, unit, word):
        with pytest.raises(ValueError, match=word):
            convert_units(pd.Series([5.0, 5.0]), pd.Series(["EUR", unit]), {"EUR": 1, "cent": 0.01})

    def test_outliers_are_clipped_and_the_rest_stays(self):
        values = pd.Series([*np.linspace(1, 2, 99), 1e6, np.nan])
        clipped = clip_outliers(values)
        assert clipped[:99].equals(values[:99])
        assert clipped[99] < 4
        assert np.isnan(clipped[100])
        logged = clip_outliers(values, log=True)
        assert np.allclose(logged[:99], values[:99])
        assert logged[99] < 10

    def test_log_scale_needs_positive_values(self):
        with pytest.raises(ValueError, match="above 0"):
            clip_outliers(pd.Series([1.0, 0.0]), log=True)


class TestSplits:
    def test_by_user_keeps_users_whole(self):
        frame = toy_frame()
        parts = split_by_user(frame, seed=3)
        users = [set(part["user_id"]) for part in parts.values()]
        assert not users[0] & users[1] and not users[0] & users[2] and not users[1] & users[2]
        assert sum(map(len, parts.values())) == len(frame)
        assert parts["train"].equals(split_by_user(frame, seed=3)["train"])
        assert not parts["train"].equals(split_by_user(frame, seed=4)["train"])

    def test_by_time_is_ordered_and_ties_stay_together(self):
        frame = pd.DataFrame({"timestamp": np.repeat(np.arange(10), 7)}).sample(frac=1, random_state=0)
        parts = split_by_time(frame)
        assert parts["train"]["timestamp"].max() < parts["valid"]["timestamp"].min()
        assert parts["valid"]["timestamp"].max() < parts["test"]["timestamp"].min()
        assert sum(map(len, parts.values())) == len(frame)

    @pytest.mark.parametrize("fractions", [(0.5, 0.5), (0.8, 0.3, 0.1), (1.0, 0.0, 0.0)])
    def test_bad_fractions(self, fractions):
        with pytest.raises(ValueError, match="sum to 1"):
            split_by_time(toy_frame(), fractions=fractions)

    def test_missing_column_is_named(self):
        with pytest.raises(KeyError, match="when"):
            split_by_time(toy_frame(), time="when")


class TestLeaks:
    features = ("x", "z", "item")

    def report(self, frames, features=features):
        found = check_leaks(frames, features, MIXED_TASKS, time="timestamp", user="user_id")
        return dict(zip(found["check"], found["passed"], strict=True))

    def test_clean_splits_pass(self):
        report = self.report(split_by_time(toy_frame()))
        assert report["no label among the features"]
        assert report["no test row stands in train"]
        assert report["parts follow each other in time"]
        assert report["no feature is an outcome in disguise"]
        assert not report["no user in train and test"]
        by_user = self.report(split_by_user(toy_frame()))
        assert by_user["no user in train and test"]
        assert not by_user["parts follow each other in time"]

    def test_planted_leaks_are_found(self):
        frame = toy_frame()
        frame["outcome"] = frame["click"] * 3.0 + 0.01 * frame["x"]
        frame["filled_later"] = np.where(frame["click"] == 1, 1.0, np.nan)
        parts = split_by_time(frame)
        assert not self.report(parts, (*self.features, "outcome"))["no feature is an outcome in disguise"]
        assert not self.report(parts, (*self.features, "filled_later"))[
            "no feature is an outcome in disguise"
        ]
        assert not self.report(parts, (*self.features, "click"))["no label among the features"]
        parts["test"] = pd.concat([parts["test"], parts["train"].iloc[:3]])
        assert not self.report(parts)["no test row stands in train"]


class TestEncoder:
    def test_fitted_on_train_only(self):
        frame = toy_frame()
        train, later = frame[:300], frame[300:].assign(z=lambda f: f["z"] + 1000)
        encoder = FeatureEncoder(["x", "z"], ["item"]).fit(train)
        numeric, _ = encoder.transform(train)
        assert torch.allclose(numeric.mean(0), torch.zeros(2), atol=1e-5)
        assert torch.allclose(numeric.std(0, unbiased=False), torch.ones(2), atol=1e-4)
        assert encoder.transform(later)[0][:, 1].min() > 100

    def test_unknown_missing_and_rare_go_to_bucket_zero(self):
        train = pd.DataFrame({"c": ["a", "a", "b", None, "rare"]})
        encoder = FeatureEncoder([], ["c"], min_count=2).fit(train)
        assert encoder.schema.categorical == {"c": 2}
        codes = encoder.transform(pd.DataFrame({"c": ["a", "b", "rare", "new", None]}))[1]
        assert codes[:, 0].tolist() == [1, 0, 0, 0, 0]

    def test_missing_numbers_become_the_mean_and_constants_stay_finite(self):
        train = pd.DataFrame({"x": [1.0, np.nan, 3.0], "same": [5.0, 5, 5], "empty": [np.nan] * 3})
        numeric, _ = FeatureEncoder(["x", "same", "empty"], []).fit(train).transform(train)
        assert numeric[:, 0].tolist() == [-1.0, 0.0, 1.0]
        assert numeric[:, 1:].abs().sum() == 0

    def test_large_ids_do_not_collide(self):
        ids = [2**24, 2**24 + 1, 2**53, 2**53 + 1]
        codes = (
            FeatureEncoder([], ["id"]).fit(pd.DataFrame({"id": ids})).transform(pd.DataFrame({"id": ids}))[1]
        )
        assert sorted(codes[:, 0].tolist()) == [1, 2, 3, 4]

    @pytest.mark.parametrize(
        ("frame", "error", "word"),
        [
            (pd.DataFrame({"x": ["cheap"]}), ValueError, "'x'"),
            (pd.DataFrame({"x": [np.inf]}), ValueError, "infinite"),
            (pd.DataFrame({"y": [1.0]}), KeyError, "'x'"),
            (pd.DataFrame({"x": []}), ValueError, "without rows"),
        ],
    )
    def test_bad_columns(self, frame, error, word):
        with pytest.raises(error, match=word):
            FeatureEncoder(["x"], []).fit(frame)

    def test_using_it_unfitted(self):
        with pytest.raises(RuntimeError, match="fit"):
            FeatureEncoder(["x"], []).transform(toy_frame())
        with pytest.raises(ValueError, match="at least one"):
            FeatureEncoder([], [])


class TestDataset:
    def test_missing_labels_are_masked(self):
        frame = toy_frame()
        data = toy_splits().train
        assert set(data.masks) == {"kind", "dwell"}
        assert data.labels["kind"].dtype == torch.int64 and data.labels["click"].dtype == torch.float32
        known = torch.tensor((frame["kind"][: len(data)] >= 0).to_numpy())
        assert torch.equal(data.masks["kind"], known)
        assert data.labels["kind"][~known].eq(0).all()
        assert not data.labels["dwell"].isnan().any()

    def test_batches_cover_every_row_once(self):
        data = toy_splits().train
        seen = torch.cat(
            [batch.numeric for batch in data.batches(64, generator=torch.Generator().manual_seed(1))]
        )
        assert len(seen) == len(data)
        assert torch.equal(seen.sort(0).values, data.numeric.sort(0).values)
        assert not torch.equal(seen, data.numeric)
        again = torch.cat(
            [batch.numeric for batch in data.batches(64, generator=torch.Generator().manual_seed(1))]
        )
        assert torch.equal(seen, again)

    def test_rows_stay_together(self):
        data = toy_splits().train
        lookup = {tuple(row.tolist()): i for i, row in enumerate(data.numeric)}
        for batch in data.batches(50):
            rows = [lookup[tuple(row.tolist())] for row in batch.numeric]
            assert torch.equal(batch.categorical, data.categorical[rows])
            assert torch.equal(batch.labels["dwell"], data.labels["dwell"][rows])
            assert torch.equal(batch.masks["kind"], data.masks["kind"][rows])

    def test_order(self):
        data = toy_splits().train
        in_order = torch.cat([batch.numeric for batch in data.batches(64, shuffle=False)])
        assert torch.equal(in_order, data.numeric)
        with pytest.raises(ValueError, match="batch_size is 0"):
            next(data.batches(0))

    def test_take_and_select(self):
        data = toy_splits().train
        some = data.take([5, 2])
        assert torch.equal(some.numeric, data.numeric[[5, 2]])
        assert torch.equal(some.masks["kind"], data.masks["kind"][[5, 2]])
        one = data.select(["kind"])
        assert set(one.labels) == set(one.masks) == {"kind"} and [task.name for task in one.tasks] == ["kind"]
        with pytest.raises(KeyError, match="buy"):
            data.select(["buy"])

    @pytest.mark.parametrize(
        ("task", "values", "word"),
        [
            (Task("y"), [0, 1, 2], "0 or 1; found 2"),
            (Task("y", "multiclass", 3), [0, 1, 3], "0 to 2; found 3"),
            (Task("y", "multiclass", 3), [0, 0.5, 1], "whole numbers"),
            (Task("y", "regression"), [0.0, np.inf, 1], "finite"),
            (Task("y"), ["no", "yes", "no"], "numbers"),
        ],
    )
    def test_labels_that_do_not_fit_their_task(self, task, values, word):
        frame = pd.DataFrame({"x": [1.0, 2.0, 3.0], "y": values})
        with pytest.raises(ValueError, match=word):
            MultiTaskDataset.from_frame(frame, FeatureEncoder(["x"], []).fit(frame), [task])

    def test_task_lists(self):
        frame = toy_frame()
        encoder = FeatureEncoder(["x"], []).fit(frame)
        with pytest.raises(ValueError, match="with a name of its own"):
            MultiTaskDataset.from_frame(frame, encoder, [Task("click"), Task("click")])
        with pytest.raises(ValueError, match="one Task or more"):
            MultiTaskDataset.from_frame(frame, encoder, [])
        with pytest.raises(KeyError, match="'bought'"):
            MultiTaskDataset.from_frame(frame, encoder, [Task("bought")])

    def test_prepare_needs_three_parts(self):
        with pytest.raises(KeyError, match="valid, test"):
            prepare({"train": toy_frame()}, MIXED_TASKS, ["x"], [])


class TestHideLabels:
    def test_keeps_exactly_that_many_of_the_labelled(self):
        data = toy_splits().train
        for keep, number in ((40, 40), (0.5, round(0.5 * int(data.masks["kind"].sum()))), (0, 0)):
            scarce = hide_labels(data, "kind", keep, seed=1)
            assert int(scarce.masks["kind"].sum()) == number
            assert not (scarce.masks["kind"] & ~data.masks["kind"]).any()
            assert scarce.labels["kind"][~scarce.masks["kind"]].eq(0).all()
        assert "click" not in scarce.masks and "click" not in data.masks

    def test_seed_decides_which(self):
        data = toy_splits().train
        one, same, other = (hide_labels(data, "click", 100, seed).masks["click"] for seed in (0, 0, 1))
        assert torch.equal(one, same) and not torch.equal(one, other)

    def test_more_than_there_are(self):
        with pytest.raises(ValueError, match="there are"):
            hide_labels(toy_splits().train, "click", 10_000)
        with pytest.raises(KeyError, match="buy"):
            hide_labels(toy_splits().train, "buy", 1)


def test_kept_labels_are_spread_over_the_first_epoch_whatever_the_seed():
    train = toy_splits(1000).train
    for seed in range(5):
        kept = hide_labels(train, "click", 100, seed=seed)
        batches = kept.batches(100, generator=torch.Generator().manual_seed(seed))
        counts = [int(batch.masks["click"].sum()) for batch in batches]
        assert max(counts) < 40, "the order of the labels and that of the batches must not be one draw"
