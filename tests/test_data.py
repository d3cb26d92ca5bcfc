"""Tasks, cleaning, splitting, leaks, encoding, batches; and a table of strangers' columns, whose ids stay the same."""

from __future__ import annotations

import json
import re
import warnings
from dataclasses import replace

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
    guess_features,
    hide_labels,
    prepare,
    split_by_time,
    split_by_user,
)


@pytest.mark.parametrize(
    ("kind", "n", "word"),
    [
        ("multiclass", None, "n_classes"),
        ("multiclass", 1, "n_classes=1"),
        ("binary", 3, "any other kind none"),
    ],
)
def test_task_refuses_what_makes_no_sense(kind, n, word):
    with pytest.raises(ValueError, match=word):
        Task("a", kind, n)
    assert [task.n_outputs for task in MIXED_TASKS] == [1, 3, 1]


class TestSplits:
    def test_by_user_keeps_users_whole(self):
        frame = toy_frame()
        parts = split_by_user(frame)
        users = [set(part["user_id"]) for part in parts.values()]
        assert not users[0] & users[1] and not users[0] & users[2] and not users[1] & users[2]
        assert sum(map(len, parts.values())) == len(frame)
        assert parts["train"].equals(split_by_user(frame)["train"])

    def test_by_time_is_ordered_and_ties_stay_together(self):
        frame = pd.DataFrame({"timestamp": np.repeat(np.arange(10), 7)}).sample(frac=1, random_state=0)
        parts = split_by_time(frame)
        assert parts["train"]["timestamp"].max() < parts["valid"]["timestamp"].min()
        assert parts["valid"]["timestamp"].max() < parts["test"]["timestamp"].min()
        assert sum(map(len, parts.values())) == len(frame)
        for fractions in ((0.5, 0.5), (1.0, 0.0, 0.0)):
            with pytest.raises(ValueError, match="sum to 1"):
                split_by_time(toy_frame(), fractions=fractions)


class TestLeaks:
    features = ("x", "z", "item")

    def report(self, frames, features=features):
        found = check_leaks(frames, features, MIXED_TASKS, time="timestamp")
        return dict(zip(found["check"], found["passed"], strict=True))

    def test_clean_splits_pass(self):
        by_time, by_user = self.report(split_by_time(toy_frame())), self.report(split_by_user(toy_frame()))
        assert all(by_time.values())
        assert [name for name, passed in by_user.items() if not passed] == ["parts follow each other in time"]

    def test_planted_leaks_are_found(self):
        parts = split_by_time(toy_frame())
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
        later = pd.DataFrame({"c": ["a", "b", "rare", "new", None]})
        assert encoder.transform(later)[1][:, 0].tolist() == [1, 0, 0, 0, 0]

    def test_missing_numbers_become_the_mean_and_constants_stay_finite(self):
        train = pd.DataFrame({"x": [1.0, np.nan, 3.0], "same": [5.0, 5, 5], "empty": [np.nan] * 3})
        numeric, _ = FeatureEncoder(["x", "same", "empty"], []).fit(train).transform(train)
        assert numeric[:, 0].tolist() == [-1.0, 0.0, 1.0]
        assert numeric[:, 1:].abs().sum() == 0

    def test_large_ids_do_not_collide(self):
        ids = [2**24, 2**24 + 1, 2**53, 2**53 + 1]
        frame = pd.DataFrame({"id": ids})
        codes = FeatureEncoder([], ["id"]).fit(frame).transform(frame)[1]
        assert sorted(codes[:, 0].tolist()) == [1, 2, 3, 4]

    def test_no_row_and_no_column(self):
        with pytest.raises(ValueError, match="without rows"):
            FeatureEncoder(["x"], []).fit(pd.DataFrame({"x": []}))
        with pytest.raises(ValueError, match="at least one"):
            FeatureEncoder([], [])
        with pytest.raises(ValueError, match="one Task or more"):
            MultiTaskDataset.from_frame(toy_frame(), FeatureEncoder(["x"], []).fit(toy_frame()), [])


class TestDataset:
    def test_missing_labels_are_masked(self):
        frame = toy_frame()
        data = toy_splits().train
        assert set(data.masks) == {"kind", "dwell"}
        assert data.labels["kind"].dtype == torch.int64 and data.labels["click"].dtype == torch.float32
        known = torch.tensor((frame["kind"][: len(data)] >= 0).to_numpy())
        assert torch.equal(data.masks["kind"], known)
        assert data.labels["kind"][~known].eq(0).all() and not data.labels["dwell"].isnan().any()

    def test_batches_cover_every_row_once(self):
        data = toy_splits().train

        def seen(**order):
            return torch.cat([batch.numeric for batch in data.batches(64, **order)])

        first, again = (seen(generator=torch.Generator().manual_seed(1)) for _ in range(2))
        assert torch.equal(first, again) and not torch.equal(first, data.numeric)
        assert torch.equal(first.sort(0).values, data.numeric.sort(0).values)
        assert torch.equal(seen(shuffle=False), data.numeric)
        with pytest.raises(ValueError, match="batch_size is 0"):
            next(data.batches(0))

    def test_rows_stay_together(self):
        data = toy_splits().train
        lookup = {tuple(row.tolist()): i for i, row in enumerate(data.numeric)}
        for batch in data.batches(50):
            rows = [lookup[tuple(row.tolist())] for row in batch.numeric]
            assert torch.equal(batch.categorical, data.categorical[rows])
            assert torch.equal(batch.labels["dwell"], data.labels["dwell"][rows])
            assert torch.equal(batch.masks["kind"], data.masks["kind"][rows])

    def test_take_and_select(self):
        data = toy_splits().train
        some = data.take([5, 2])
        assert torch.equal(some.numeric, data.numeric[[5, 2]])
        assert torch.equal(some.masks["kind"], data.masks["kind"][[5, 2]])
        one = data.select(["kind"])
        assert set(one.labels) == set(one.masks) == {"kind"} and [task.name for task in one.tasks] == ["kind"]
        with pytest.raises(KeyError, match="buy"):
            data.select(["buy"])


class TestHideLabels:
    def test_keeps_exactly_that_many_of_the_labelled(self):
        data = toy_splits().train
        for keep in (40, 0):
            scarce = hide_labels(data, "kind", keep, seed=1)
            assert int(scarce.masks["kind"].sum()) == keep
            assert not (scarce.masks["kind"] & ~data.masks["kind"]).any()
            assert scarce.labels["kind"][~scarce.masks["kind"]].eq(0).all()
        assert "click" not in scarce.masks and "click" not in data.masks

    def test_seed_decides_which_and_they_are_spread_over_the_first_epoch(self):
        data, kept = toy_splits(1000).train, []
        for seed in (0, 0, 1, 2, 3):
            scarce = hide_labels(data, "click", 100, seed=seed)
            kept.append(scarce.masks["click"])
            batches = scarce.batches(100, generator=torch.Generator().manual_seed(seed))
            # the order of the labels and that of the batches must not be one draw
            assert max(int(batch.masks["click"].sum()) for batch in batches) < 40
        assert torch.equal(kept[0], kept[1]) and not torch.equal(kept[0], kept[2])
        with pytest.raises(KeyError, match="buy"):
            hide_labels(data, "buy", 1)


def strangers(n: int = 2000, seed: int = 0) -> pd.DataFrame:
    rng, shown = np.random.default_rng(seed), pd.date_range("2024-01-01", periods=n, freq="h")
    columns = {
        "timestamp": np.arange(n),
        "205": rng.integers(0, 300, n),
        "categorical_7": rng.integers(0, 60, n),
        "brand": rng.choice([7.0, 8.0, np.nan, 90.0], n),
        "customer": rng.integers(0, 100, n),
        "stars": rng.integers(1, 6, n),
        "price": rng.lognormal(size=n).round(2),
        "views": rng.integers(0, 1000, n),
        "zip": [f"{v:05d}" for v in rng.integers(0, 99, n)],
        "text_vector": list(rng.normal(size=(n, 3))),
        "tags": [list(range(rng.integers(1, 4))) for _ in range(n)],
        "labels_in_one": rng.choice(["a|b", "b|c", "a|c|d"], n),
        "shown": shown,
        "day": shown.strftime("%d/%m/%Y"),
        "order": [f"o{i}" for i in range(n)],
        "row": np.arange(n),
        "nothing": np.nan,
        "click": rng.integers(0, 2, n),
        "spend": 60_000 + 20_000 * rng.normal(size=n),
    }
    return pd.DataFrame(columns)


TASKS = (Task("click"), Task("spend", "regression"))


def test_columns_are_guessed_and_every_one_has_a_reason():
    frame = strangers()
    numeric, categorical, table = guess_features(frame, TASKS, time="timestamp")
    assert numeric == ["price", "views", "text_vector"]
    assert categorical == ["205", "categorical_7", "brand", "customer", "stars", "zip"]
    assert set(table.index[table["use"] == "label"]) == {"click", "spend"}
    assert list(table.index) == list(frame) and table["why"].str.len().gt(3).all()
    assert "codes" in table.loc["205", "why"] and "lists" in table.loc["tags", "why"]
    assert guess_features(frame, TASKS, user="order")[1][-1] == "order"


def written_later(values: pd.Series, kind: str) -> pd.Series:
    """The same ids in other dtypes."""
    if kind == "pyarrow":
        pytest.importorskip("pyarrow")
        return values.astype("int64[pyarrow]")
    if kind == "text":
        return values.astype("string").str.removesuffix(".0")
    return values.astype(float if kind == "float" else kind)


@pytest.mark.parametrize("kind", ["text", "float", "Int64", "category", "object", "pyarrow"])
def test_ids_are_the_same_ids_in_any_dtype(kind):
    frame = strangers()
    parts = split_by_time(frame)
    numeric, categorical, _ = guess_features(frame, TASKS, time="timestamp")
    splits = prepare(parts, TASKS, numeric, categorical)
    expected = splits.test.categorical
    assert (expected > 0).float().mean() > 0.8
    later = parts["test"].assign(customer=written_later(parts["test"]["customer"], kind))
    assert torch.equal(splits.encoder.transform(later)[1], expected)
    trained = parts["train"].assign(customer=written_later(parts["train"]["customer"], kind))
    codes = FeatureEncoder([], ["customer"]).fit(trained).transform(parts["test"])[1]
    assert torch.equal(codes[:, 0] > 0, expected[:, categorical.index("customer")] > 0)
    restored = FeatureEncoder.from_state(json.loads(json.dumps(splits.encoder.state())))
    for a, b in zip(restored.transform(later), splits.encoder.transform(later), strict=True):
        assert torch.equal(a, b)
    assert restored.schema == splits.schema and restored.scales == splits.encoder.scales


def test_unknown_ids_warn_and_leading_zeros_stay():
    encoder = FeatureEncoder([], ["id"]).fit(pd.DataFrame({"id": [7, 8, 9, 10]}))
    with pytest.warns(UserWarning, match="2 of 3 values of 'id' were not seen.*'007'"):
        assert encoder.transform(pd.DataFrame({"id": ["007", "8", "008"]}))[1].flatten().tolist() == [0, 2, 0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encoder.transform(pd.DataFrame({"id": [7, 8, None, 99]}))
        rare = pd.DataFrame({"id": np.arange(50)})
        FeatureEncoder([], ["id"], min_count=5).fit(rare).transform(rare)
    with pytest.warns(UserWarning, match="'id' holds a value as number and as text"):
        mixed = pd.DataFrame({"id": pd.Series([7, "7", "a", 8.0], dtype=object)})
        assert FeatureEncoder([], ["id"]).fit(mixed).schema.categorical == {"id": 4}


def test_vectors_become_numeric_features():
    frame = strangers(50)
    encoder = FeatureEncoder(["price", "text_vector"], []).fit(frame)
    assert encoder.schema.numeric == ("price", "text_vector_0", "text_vector_1", "text_vector_2")
    made = encoder.transform(frame.assign(text_vector=[None, *frame["text_vector"][1:]]))[0]
    assert made.shape == (50, 4) and made[0, 1:].eq(0).all() and made[1:].mean(0).abs().max() < 0.5
    assert torch.equal(encoder.transform(frame.head(1).assign(text_vector=[None]))[0], made[:1])
    with pytest.raises(ValueError, match="'text_vector' has 2 numbers a row; in training it had 3"):
        encoder.transform(frame.assign(text_vector=[[1.0, 2.0]] * 50))


@pytest.mark.parametrize(
    ("numeric", "categorical", "change", "says"),
    [
        (["tags"], [], {}, "'tags' are lists of 1 to 3"),
        ([], ["tags"], {}, "'tags' are lists"),
        (["zip", "day"], [], {}, "'day' holds something that is no number"),
        (["copy"], [], {"copy": lambda f: f["click"].astype(str)}, "'copy' is a copy of the label 'click'"),
        ([], ["copy"], {"copy": lambda f: f["click"].map({0: "no", 1: "yes"})}, "'copy' is a copy"),
        (["cents"], [], {"cents": lambda f: f["spend"] * 100}, "'cents' is a copy of the label 'spend'"),
        (["price"], [], {"click": lambda f: f["click"].replace(0, np.nan)}, "1 wherever it is known.*fillna"),
        (["price"], [], {"click": 1}, "'click' is 1 wherever"),
    ],
)
def test_each_unfit_table_gets_its_sentence(numeric, categorical, change, says):
    frame = strangers(300).assign(**change)
    with pytest.raises(ValueError, match=says):
        prepare(split_by_time(frame), TASKS, numeric, categorical)


def test_regression_labels_are_standardised_and_weights_carried():
    frame = strangers(400)
    splits = prepare(split_by_time(frame), TASKS, ["price"], ["brand"])
    train = replace(splits.train, weights=torch.arange(len(splits.train)) / 400)
    mean, spread = train.scales["spend"]
    assert abs(train.labels["spend"].mean()) < 1e-5 and abs(train.labels["spend"].std() - 1) < 0.01
    found = splits.test.labels["spend"].double() * spread + mean
    assert np.allclose(found, splits.frames["test"]["spend"], rtol=1e-5)
    assert torch.equal(train.take([3, 1]).weights, train.weights[[3, 1]])
    assert train.select(["click"]).scales == {} and hide_labels(train, "click", 5).weights is train.weights
    batch = next(train.batches(7, shuffle=False))
    assert torch.equal(batch.weights, train.weights[:7])
    assert torch.equal(train.to("cpu").weights, train.weights)
    bare = FeatureEncoder(["price"], []).fit(frame)
    assert MultiTaskDataset.from_frame(frame, bare, TASKS).labels["spend"].mean() > 50_000


def leaks(frame: pd.DataFrame, features: list[str]) -> str:
    report = check_leaks(split_by_time(frame), features, [Task("buy")]).set_index("check")
    row = report.loc["no feature is an outcome in disguise"]
    return "" if row["passed"] else row["finding"]


def test_the_leak_check_does_not_accuse_noise_and_finds_what_is_there():
    rng, n = np.random.default_rng(0), 50_000
    columns = {"timestamp": np.arange(n), "city": rng.integers(0, 2000, n), "x": rng.normal(size=n)}
    frame = pd.DataFrame(columns)
    frame["buy"] = np.isin(np.arange(n), rng.choice(n, 25, replace=False)).astype(int)
    frame["town"] = "t" + frame["city"].astype(str)
    assert leaks(frame, ["city", "town", "x"]) == ""
    frame["buy"] = (rng.random(n) < 0.02).astype(int)
    frame["copy"], frame["word"] = frame["buy"], frame["buy"].map({0: "no", 1: "yes"})
    frame["total"] = frame["buy"] + 0.01 * frame["x"]
    frame["paid_at"] = np.where(frame["buy"] == 1, 5.0, np.nan)
    planted = ["copy", "word", "total", "paid_at"]
    found = leaks(frame, ["city", *planted, "x"])
    assert re.findall(r"(\w+) alone", found) == planted
