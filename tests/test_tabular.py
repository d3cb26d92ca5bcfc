"""TabularLog on frames nobody prepared: what it guesses, what it refuses, and that its splits train."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtl_helpers.data.tabular import LabelLeak, TabularLog
from mtl_helpers.models import SharedBottom
from mtl_helpers.training import evaluate, fit, predict

N = 400


def nasty(seed: int = 0, rows: int = N) -> pd.DataFrame:
    """A log as one finds it: every column is wrong in its own way."""
    rng = np.random.default_rng(seed)
    wild = rng.integers(0, 5, rows)
    return pd.DataFrame(
        {
            "row": np.arange(rows),
            "userId": rng.integers(2**53, 2**53 + 30, rows),  # would collide as float32
            "item_id": [None if i % 50 == 7 else float(i % 40) for i in range(rows)],
            "when": pd.date_range("2024-01-01", periods=rows, freq="3h", tz="Europe/Berlin"),
            "signup": pd.date_range("2020-01-01", periods=rows, freq="1D").strftime("%d/%m/%Y"),
            "paid_on": pd.date_range("2024-06-01", periods=rows, freq="1D"),
            "price": [f" {v:.2f} " if v > 1 else "n/a" for v in rng.lognormal(3, 1, rows)],
            "views": rng.pareto(0.5, rows).round(),
            "ratio": np.where(rng.random(rows) < 0.02, np.inf, rng.normal(size=rows)),
            "zip": [f"{v:05d}" for v in rng.integers(0, 99, rows)],
            "mixed": [[1, "1", 2.0, None, "x "][v] for v in wild],
            "member": pd.array(np.where(wild == 0, None, wild > 2), dtype="boolean"),
            "count": pd.array(np.where(wild == 1, None, wild), dtype="Int64"),
            "rare": ["common"] * (rows - 5) + list("abcde"),
            "empty": None,
            "same": 3,
            "half": [None, "only"] * (rows // 2),
            "words": [f"a long description of thing number {i} in many words" for i in range(rows)],
            "tags": [[1, 2]] * (rows // 2) + [{"a": 1}] * (rows - rows // 2),
            "group": pd.Categorical(rng.choice(["x", "y"], rows), categories=["x", "y", "never"]),
            "wait": pd.to_timedelta(rng.integers(0, 90, rows), unit="min"),
            "complex": rng.normal(size=rows) + 1j,
            "key": [f"k{i}" for i in range(rows)],
            "click": rng.integers(0, 2, rows),
            "bought": rng.choice(["yes", "No", None], rows),
            "stars": rng.integers(1, 6, rows),
            "amount": np.where(rng.random(rows) < 0.5, np.nan, rng.lognormal(2, 1, rows)),
            "kind.of": rng.choice(["red", "green", "blue"], rows),
        }
    )


LABELS = {"click": None, "bought": None, "stars": "regression", "amount": None, "kind.of": None}
ROLES = {"user": "userId", "item": "item_id", "time": "when"}


@pytest.fixture(scope="module")
def log() -> TabularLog:
    return TabularLog.from_frame(nasty(), labels=LABELS, **ROLES)


@pytest.mark.parametrize(
    ("column", "used_as"),
    [
        ("row", "left out"),
        ("userId", "category, 30 values"),
        ("item_id", "category"),
        ("when", "time, 2023-12-31 to"),
        ("signup", "date, 2020-01-01 to 2021-02-03"),
        ("paid_on", "left out"),
        ("price", "number"),
        ("views", "number"),
        ("ratio", "number"),
        ("zip", "category"),
        ("mixed", "category, 3 values"),
        ("member", "category, 2 values"),
        ("count", "number, 0 to 4"),
        ("rare", "category, 6 values"),
        ("empty", "left out"),
        ("same", "left out"),
        ("half", "category, 1 value"),
        ("words", "text"),
        ("tags", "category"),
        ("group", "category, 2 values"),
        ("wait", "number"),
        ("complex", "left out"),
        ("key", "left out"),
        ("click", "label, binary"),
        ("bought", "label, binary"),
        ("stars", "label, regression"),
        ("amount", "label, regression"),
        ("kind.of", "label, multiclass, 3 classes"),
    ],
)
def test_guesses(log, column, used_as):
    guess = next(guess for guess in log.guesses if guess.column == column)
    assert guess.used_as.startswith(used_as), guess
    assert column in str(log) and guess.why in str(log)


def test_values_survive_the_guess(log):
    frame, raw = log.frame, nasty()
    assert frame["userId"].astype(str).tolist() == raw["userId"].astype(str).tolist()
    assert frame["item_id"].cat.categories.tolist()[:3] == ["0", "1", "2"]  # 3 and 3.0 are one item
    assert frame["mixed"].isna().sum() == raw["mixed"].isna().sum()
    bad = raw["price"] == "n/a"
    assert frame.loc[bad, "price"].isna().all() and frame.loc[~bad, "price"].notna().all()
    assert not np.isinf(frame["ratio"]).any() and "count as missing" in str(log)
    assert frame["views"].max() == pytest.approx(np.log1p(raw["views"].max()), rel=1e-4)
    assert frame["when (hour)"].iloc[0] == 23  # midnight in Berlin, in UTC
    assert frame["wait"].max() == pytest.approx(89 / 1440, rel=0.2)
    assert frame["signup (days)"].iloc[0] == pytest.approx(-1461, abs=1.1)
    assert [task.name for task in log.tasks] == ["click", "bought", "stars", "amount", "kind_of"]
    assert log.classes == {"kind_of": ["blue", "green", "red"]}
    assert frame["bought"].isna().equals(raw["bought"].isna())


@pytest.mark.parametrize("by", ["time", "user", "rows"])
def test_splits_train_a_model(log, by):
    splits = log.split(by, seed=1)
    assert sum(map(len, (splits.train, splits.valid, splits.test))) == len(log.frame)
    if by == "time":
        assert splits.frames["train"]["when"].max() < splits.frames["test"]["when"].min()
    if by == "user":
        assert not set(splits.frames["train"]["userId"]) & set(splits.frames["test"]["userId"])
        assert "userId" not in splits.schema.categorical
    model = SharedBottom(splits.schema, splits.tasks, 4, (8,), (4,))
    fit(model, splits.train, splits.valid, epochs=2, progress=False)
    assert set(evaluate(model, splits.test)) == {task.name for task in log.tasks}
    assert "amount" in splits.train.masks and "click" not in splits.train.masks


def test_new_rows_are_encoded_as_the_old_ones(log):
    splits = log.split("time")
    model = SharedBottom(splits.schema, splits.tasks, 4, (8,), (4,))
    raw = nasty()
    features = log.features(raw.drop(columns=list(LABELS)).iloc[::-1])
    numeric, categorical = splits.encoder.transform(features.iloc[::-1])
    whole = splits.encoder.transform(log.frame)
    assert numeric.equal(whole[0]) and categorical.equal(whole[1])
    assert predict(model, splits.test)["click"].isfinite().all()
    stranger = log.features(raw.head(1).assign(zip="brand new"))
    at = list(splits.schema.categorical).index("zip")
    assert splits.encoder.transform(stranger)[1][0, at] == 0
    with pytest.raises(KeyError, match="price"):
        log.features(raw.drop(columns="price"))


def test_the_reader_overrules():
    frame = nasty()
    log = TabularLog.from_frame(
        frame,
        labels="click",
        kinds={"count": "category", "zip": "number", "words": "drop", "key": "category"},
        ignore=["stars"],
    )
    assert {"count", "key"} <= set(log.categorical) and "zip" in log.numeric
    assert not {"words", "words (length)", "stars"} & {*log.numeric, *log.categorical}


def test_planted_leaks_are_refused_until_allowed():
    frame = nasty()
    rng = np.random.default_rng(0)
    planted = {
        "dwell": frame["click"] * 10 + rng.random(N),
        "state": np.where(frame["click"] == 1, "opened", "shown"),
        "opened_at": np.where(frame["click"] == 1, 5.0, np.nan),
    }
    for name, values in planted.items():
        leaking = frame.assign(**{name: values})
        with pytest.raises(LabelLeak, match=f"'{name}' alone gives label 'click' away"):
            TabularLog.from_frame(leaking, labels=["click"])
        assert TabularLog.from_frame(leaking, labels=["click"], ignore=[name])
        assert TabularLog.from_frame(leaking, labels=["click"], allow=[name])
    with pytest.raises(LabelLeak, match="'cents'"):
        TabularLog.from_frame(frame.assign(cents=frame["amount"] * 100), labels=["amount"])
    with pytest.raises(LabelLeak, match="'colour'"):
        TabularLog.from_frame(frame.assign(colour=frame["kind.of"].str.upper()), labels=["kind.of"])


@pytest.mark.parametrize(
    ("change", "options", "error", "words"),
    [
        (lambda f: f.iloc[:0], {}, ValueError, "no rows"),
        (lambda f: f.to_numpy(), {}, TypeError, "ndarray"),
        (lambda f: pd.concat([f, f["price"]], axis=1), {}, ValueError, "'price' stands more than once"),
        (lambda f: f, {"labels": "clik"}, KeyError, "Did you mean 'click'"),
        (lambda f: f, {"labels": []}, ValueError, "labels is empty"),
        (lambda f: f, {"labels": {"click": "classes"}}, ValueError, "expected 'binary'"),
        (lambda f: f, {"labels": ["stars"]}, ValueError, "multiclass.*or.*regression"),
        (lambda f: f.assign(click=f["click"] + 1), {}, ValueError, "1 and 2.*which one is yes"),
        (lambda f: f.assign(click=1), {}, ValueError, "'1' in every row"),
        (lambda f: f.assign(click=None), {}, ValueError, "no value at all"),
        (lambda f: f, {"labels": ["paid_on"]}, ValueError, "holds dates"),
        (lambda f: f, {"labels": ["key"]}, ValueError, "too many for a multiclass"),
        (lambda f: f, {"labels": {"kind.of": "binary"}}, ValueError, "expected 0 and 1"),
        (
            lambda f: f,
            {"labels": {"kind.of": "regression"}},
            ValueError,
            "is to be a number but holds 'blue'",
        ),
        (lambda f: f.assign(amount=np.inf), {"labels": ["amount"]}, ValueError, "nothing to learn"),
        (lambda f: f, {"user": "click"}, ValueError, "as a label and as user"),
        (lambda f: f, {"user": "zip", "item": "zip"}, ValueError, "three different columns"),
        (lambda f: f, {"time": "zip", "kinds": {"zip": "when"}}, ValueError, "expected one of number"),
        (lambda f: f, {"kinds": {"click": "number"}}, ValueError, "is a label"),
        (lambda f: f, {"kinds": {"mixed": "date"}}, ValueError, "is to be a date"),
        (lambda f: f, {"kinds": {"kind.of": "number"}}, ValueError, "is to be a number but holds"),
        (lambda f: f, {"time": "kind.of"}, ValueError, "neither dates nor numbers"),
        (lambda f: f, {"min_count": 0}, ValueError, "min_count is 0"),
        (lambda f: f[["click", "empty", "same"]], {}, ValueError, "No column is left"),
        (lambda f: pd.concat({"a": f}, axis=1), {}, ValueError, "several levels"),
    ],
)
def test_refusals_say_what_and_how(change, options, error, words):
    with pytest.raises(error, match=words):
        TabularLog.from_frame(change(nasty()), **{"labels": ["click"], **options})


def test_one_row_is_read_but_cannot_be_split():
    two = nasty().iloc[[3, 4]].assign(click=[0, 1])
    log = TabularLog.from_frame(two, labels=["click"])
    with pytest.raises(ValueError, match=r"2 row\(s\) cannot be cut"):
        log.split()
    with pytest.raises(ValueError, match="in every row"):
        TabularLog.from_frame(two.head(1), labels=["click"])


def test_splits_that_cannot_be_are_refused(log):
    frame = nasty()
    plain = TabularLog.from_frame(frame, labels=["click"], ignore=["stars"])
    assert len(plain.split().train) == pytest.approx(0.7 * N, abs=1)  # neither time nor user: random rows
    with pytest.raises(ValueError, match="needs from_frame"):
        plain.split("time")
    with pytest.raises(ValueError, match="expected 'time'"):
        plain.split("week")
    with pytest.raises(ValueError, match="fewer than three users"):
        TabularLog.from_frame(frame, labels=["click"], user="half").split("user")
    late = frame.assign(click=(np.arange(N) > 350).astype(int))
    with pytest.raises(ValueError, match="only one value of label 'click'"):
        TabularLog.from_frame(late, labels=["click"], time="when", allow=["signup"]).split()
    gaps = frame.assign(when=frame["when"].where(frame["when"].index > 3))
    with pytest.raises(ValueError, match="4 rows have no 'when'"):
        TabularLog.from_frame(gaps, labels=["click"], time="when").split()


def test_random_split_is_random_and_repeatable():
    frame = nasty()
    log = TabularLog.from_frame(frame, labels=["click"])
    a, b, c = (log.split("rows", seed=seed).frames["test"].index for seed in (0, 0, 1))
    assert a.equals(b) and not a.equals(c)
    assert set(a) != set(range(N - len(a), N))


def test_copies_are_dropped_with_a_moment_and_reported_without():
    frame = pd.concat([nasty(), nasty().head(30)])
    log = TabularLog.from_frame(frame, labels=["click"], **ROLES)
    assert len(log.frame) == N and "30 rows repeat" in str(log)
    log = TabularLog.from_frame(frame, labels=["click"])
    assert len(log.frame) == N + 30 and "a leak" in str(log)


@pytest.mark.parametrize(
    ("times", "first"),
    [
        (1_704_067_200 + 3600 * np.arange(60), "2024-01-01"),
        ((1_704_067_200 + 3600 * np.arange(60)) * 1000, "2024-01-01"),
        (pd.period_range("2024-01", periods=60, freq="D"), "2024-01-01"),
        ([dt.date(2024, 1, 1) + dt.timedelta(days=i) for i in range(60)], "2024-01-01"),
        ([f"2024-01-01T{i // 60:02d}:{i % 60:02d}:00Z" for i in range(60)], "2024-01-01"),
    ],
)
def test_moments_however_they_are_written(times, first):
    frame = pd.DataFrame({"event_time": times, "x": np.arange(60) % 7, "click": np.arange(60) % 2})
    log = TabularLog.from_frame(frame, labels="click", time="event_time")
    assert f"time, {first}" in str(log)
    assert len(log.split().train) == 42


def test_plain_numbers_can_be_the_time():
    frame = pd.DataFrame({"step": np.arange(60)[::-1], "x": np.arange(60) % 7, "click": np.arange(60) % 2})
    splits = TabularLog.from_frame(frame, labels="click", time="step").split()
    assert splits.frames["test"]["step"].min() > splits.frames["valid"]["step"].max()


def test_names_that_torch_does_not_allow():
    frame = pd.DataFrame({"x": np.arange(60) % 7, "type": np.arange(60) % 2, "a.b": np.arange(60) // 30})
    log = TabularLog.from_frame(frame, labels=["type", "a.b"])
    splits = log.split()
    model = SharedBottom(splits.schema, splits.tasks, 2, (4,), (2,))
    assert list(evaluate(model, splits.test)) == ["type_label", "a_b"]


def test_files(tmp_path):
    frame = nasty()
    frame.to_csv(tmp_path / "log.csv.gz", index=False)
    log = TabularLog.from_file(tmp_path / "log.csv.gz", labels=LABELS, **ROLES)
    assert len(log.split().train) > 200
    with pytest.raises(FileNotFoundError, match="no file"):
        TabularLog.from_file(tmp_path / "none.csv", labels="click")
    (tmp_path / "log.xlsx").write_text("")
    with pytest.raises(ValueError, match=r"expected \.csv"):
        TabularLog.from_file(tmp_path / "log.xlsx", labels="click")
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(ValueError, match="cannot be read"):
        TabularLog.from_file(tmp_path / "empty.csv", labels="click")


def test_parquet_is_read_or_its_reader_is_named(tmp_path):
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        (tmp_path / "log.parquet").write_bytes(b"PAR1")
        with pytest.raises(ImportError, match="pip install pyarrow"):
            TabularLog.from_file(tmp_path / "log.parquet", labels="click")
        return
    nasty()[["price", "zip", "click"]].to_parquet(tmp_path / "log.parquet")
    assert len(TabularLog.from_file(tmp_path / "log.parquet", labels="click").frame) == N


def test_the_frame_given_is_left_alone():
    frame, copy = nasty(), nasty()
    TabularLog.from_frame(frame, labels=LABELS, **ROLES)
    pd.testing.assert_frame_equal(frame, copy)


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**62), 2**62),
    st.floats(),
    st.text(max_size=6),
    st.dates(dt.date(1900, 1, 1), dt.date(2100, 1, 1)),
    st.datetimes(dt.datetime(1900, 1, 1), dt.datetime(2100, 1, 1)),
    st.decimals(allow_nan=False, allow_infinity=False, places=2, min_value=-1000, max_value=1000).map(
        Decimal
    ),
    st.binary(max_size=4),
    st.lists(st.integers(), max_size=2),
)
COLUMN = st.one_of(
    st.lists(VALUES, min_size=30, max_size=30),
    *(
        st.lists(kind, min_size=30, max_size=30)
        for kind in (
            st.floats(),
            st.integers(-5, 5),
            st.booleans(),
            st.text(max_size=3),
            st.none() | st.dates(),
        )
    ),
)


@settings(max_examples=120, deadline=None)
@given(columns=st.lists(COLUMN, min_size=1, max_size=4), label=COLUMN | st.just([0, 1] * 15))
def test_any_table_is_used_or_refused_in_words(columns, label):
    """Whatever stands in a table: finite tensors, or a ValueError that names the culprit."""
    frame = pd.DataFrame({f"c{i}": pd.Series(values, dtype=object) for i, values in enumerate(columns)})
    frame = frame.infer_objects().assign(y=pd.Series(label, dtype=object).infer_objects())
    try:
        log = TabularLog.from_frame(frame, labels=["y"])
        splits = log.split(seed=1)
    except ValueError as error:
        assert len(str(error)) > 30
        return
    for part in (splits.train, splits.valid, splits.test):
        assert part.numeric.isfinite().all()
        sizes = list(splits.schema.categorical.values())
        assert all(part.categorical[:, i].max() < size for i, size in enumerate(sizes))
        assert all(values.isfinite().all() for values in part.labels.values())
    assert str(log) and len(log.table()) == len(columns) + 1
