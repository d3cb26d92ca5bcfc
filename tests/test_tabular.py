"""A table of strangers' columns: what is guessed, what is refused, and that ids are the same ids later."""

from __future__ import annotations

import json
import re
import warnings

import numpy as np
import pandas as pd
import pytest
import torch

from mtl_helpers.data import (
    FeatureEncoder,
    MultiTaskDataset,
    Task,
    check_leaks,
    guess_features,
    hide_labels,
    prepare,
    split_by_time,
)


def strangers(n: int = 2000, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {
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
            "shown": pd.date_range("2024-01-01", periods=n, freq="h"),
            "day": pd.date_range("2024-01-01", periods=n, freq="h").strftime("%d/%m/%Y"),
            "order": [f"o{i}" for i in range(n)],
            "row": np.arange(n),
            "nothing": np.nan,
            "click": rng.integers(0, 2, n),
            "spend": 60_000 + 20_000 * rng.normal(size=n),
        }
    )


TASKS = (Task("click"), Task("spend", "regression"))


def test_columns_are_guessed_and_every_one_has_a_reason():
    frame = strangers()
    numeric, categorical, table = guess_features(frame, TASKS, time="timestamp")
    assert numeric == ["price", "views", "text_vector"]
    assert categorical == ["205", "categorical_7", "brand", "customer", "stars", "zip"]
    assert set(table.index[table["use"] == "label"]) == {"click", "spend"}
    assert list(table.index) == list(frame) and table["why"].str.len().gt(3).all()
    assert "codes" in table.loc["205", "why"] and "lists" in table.loc["tags", "why"]
    assert guess_features(frame, "click", user="order")[1][-1] == "order"


def written_later(values: pd.Series, kind: str) -> pd.Series:
    """The same ids in other dtypes."""
    if kind == "pyarrow":
        pytest.importorskip("pyarrow")
        return values.astype("int64[pyarrow]")
    return {
        "text": values.astype("string").str.removesuffix(".0"),
        "float": values.astype(float),
        "Int64": values.astype("Int64"),
        "category": values.astype("category"),
        "object": values.astype(object),
    }[kind]


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
    with pytest.raises(ValueError, match="'text_vector' has 2 numbers a row; in training it had 3"):
        encoder.transform(frame.assign(text_vector=[[1.0, 2.0]] * 50))


@pytest.mark.parametrize(
    ("numeric", "categorical", "change", "says"),
    [
        (["tags"], [], {}, "'tags' are lists of 1 to 3"),
        ([], ["tags"], {}, "'tags' are lists"),
        (["zip", "day"], [], {}, "'day' holds something that is no number"),
        (["price", "click"], [], {}, "'click' is the label"),
        (["copy"], [], {"copy": lambda f: f["click"].astype(str)}, "'copy' is a copy of the label 'click'"),
        ([], ["copy"], {"copy": lambda f: f["click"].map({0: "no", 1: "yes"})}, "'copy' is a copy"),
        (["cents"], [], {"cents": lambda f: f["spend"] * 100}, "'cents' is a copy of the label 'spend'"),
        (
            ["price"],
            [],
            {"click": lambda f: f["click"].replace(0, np.nan)},
            r"1 wherever it is known.*fillna",
        ),
        (["price"], [], {"click": lambda f: f["click"].map({0: "", 1: "1"})}, "'click' must be numbers"),
        (["price"], [], {"click": 1}, "'click' is 1 wherever"),
        (["price"], [], {"w": -1.0}, "'w' must be finite and 0 or more"),
    ],
)
def test_each_unfit_table_gets_its_sentence(numeric, categorical, change, says):
    frame = strangers(300).assign(**{"w": 1.0} | change)
    with pytest.raises(ValueError, match=says):
        prepare(split_by_time(frame), TASKS, numeric, categorical, weight="w")


def test_regression_labels_are_standardised_and_weights_carried():
    frame = strangers(400).assign(w=lambda f: f.index / 400)
    splits = prepare(split_by_time(frame), TASKS, ["price"], ["brand"], weight="w")
    train, (mean, spread) = splits.train, splits.train.scales["spend"]
    assert abs(train.labels["spend"].mean()) < 1e-5 and abs(train.labels["spend"].std() - 1) < 0.01
    found = splits.test.labels["spend"].double() * spread + mean
    assert np.allclose(found, splits.frames["test"]["spend"], rtol=1e-5)
    assert np.allclose(train.take([3, 1]).weights, splits.frames["train"]["w"].iloc[[3, 1]])
    assert train.select(["click"]).scales == {} and hide_labels(train, "click", 5).weights is train.weights
    batch = next(train.batches(7, shuffle=False))
    assert torch.equal(batch.weights, train.weights[:7])
    assert torch.equal(train.to("cpu").weights, train.weights)
    bare = FeatureEncoder(["price"], []).fit(frame)
    assert MultiTaskDataset.from_frame(frame, bare, TASKS).labels["spend"].mean() > 50_000
    with pytest.raises(TypeError, match="hide_labels needs a MultiTaskDataset and got a DataFrame: pass"):
        hide_labels(frame, "click", 5)


def leaks(frame: pd.DataFrame, features: list[str]) -> str:
    report = check_leaks(split_by_time(frame), features, [Task("buy")]).set_index("check")
    row = report.loc["no feature is an outcome in disguise"]
    return "" if row["passed"] else row["finding"]


def test_the_leak_check_does_not_accuse_noise_and_finds_what_is_there():
    rng, n = np.random.default_rng(0), 50_000
    frame = pd.DataFrame(
        {"timestamp": np.arange(n), "city": rng.integers(0, 2000, n), "x": rng.normal(size=n)}
    )
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
