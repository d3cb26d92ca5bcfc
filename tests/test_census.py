"""Census-Income: reader, split and errors, on small files made here and on the official test file if present."""

from __future__ import annotations

import gzip
import os
import urllib.error
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mtl_helpers.data import census, check_leaks, prepare
from mtl_helpers.data.census import (
    CENSUS_CATEGORICAL,
    CENSUS_NUMERIC,
    CENSUS_TASKS,
    BadCensusFile,
    CensusUnavailable,
    census_available,
    load_census,
    split_census,
)


def line(age=30, marital="Never married", hispanic="All other", gains=0, income="- 50000.", weight=1000.5):
    """One row in the publisher's layout: 42 values, each after a blank."""
    values = dict.fromkeys(census._COLUMNS, "Not in universe")
    values |= dict.fromkeys(CENSUS_NUMERIC, 0) | {"age": age, "capital_gains": gains, "year": 95}
    values |= {"marital_stat": marital, "hispanic_origin": hispanic, "instance_weight": weight}
    values |= {"migration_prev_res_in_sunbelt": "?", "income": income}
    return ", ".join(str(values[name]) for name in census._COLUMNS) + "\n"


SMALL = [
    line(),
    line(40, "Divorced", "NA", 100, "50000+."),
    line(50, "Married-civilian spouse present", "?"),
] * 10


@pytest.fixture(autouse=True)
def clean_surroundings(monkeypatch, tmp_path):
    monkeypatch.delenv("MTL_CENSUS", raising=False)
    monkeypatch.setenv("MTL_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def file(tmp_path) -> Path:
    path = tmp_path / "census-income.test.gz"
    path.write_bytes(gzip.compress("".join(SMALL).encode()))
    return path


def test_features_and_labels_are_apart():
    assert len(CENSUS_NUMERIC) == 7 and len(CENSUS_CATEGORICAL) == 32
    assert not {"marital_stat", "income", "never_married", "instance_weight"} & {
        *CENSUS_NUMERIC,
        *CENSUS_CATEGORICAL,
    }


def test_rows_become_labels_and_features(file):
    frame = load_census(file)
    assert set(frame) == {*CENSUS_NUMERIC, *CENSUS_CATEGORICAL, "income", "never_married", "file"}
    assert frame["income"].tolist() == [0, 1, 0] * 10
    assert frame["never_married"].tolist() == [1, 0, 0] * 10
    assert frame["age"].tolist()[:3] == [30, 40, 50]
    assert frame["capital_gains"].tolist()[:2] == pytest.approx([0, np.log(101)])
    assert frame["hispanic_origin"].astype(object).tolist()[:2] == ["All other", "NA"]  # an answer, not a gap
    assert frame["hispanic_origin"].isna().tolist()[:3] == [False, False, True]
    assert frame["migration_prev_res_in_sunbelt"].isna().all()


def test_plain_file_folder_and_environment_read_the_same(file, tmp_path, monkeypatch):
    whole = load_census(file)
    plain = tmp_path / "plain" / "census-income.test"
    plain.parent.mkdir()
    plain.write_text("".join(SMALL))
    pd.testing.assert_frame_equal(load_census(plain), whole)
    pd.testing.assert_frame_equal(load_census(plain.parent), whole)
    monkeypatch.setenv("MTL_CENSUS", str(file))
    pd.testing.assert_frame_equal(load_census(), whole)
    assert census_available() == [file]
    monkeypatch.setenv("MTL_CENSUS", str(tmp_path / "gone"))
    assert census_available() == []
    with pytest.raises(CensusUnavailable, match="MTL_CENSUS.*does not exist"):
        load_census()


def test_both_files_of_a_folder_are_joined_and_split_as_published(file):
    (file.parent / "census-income.data").write_text("".join(SMALL[::-1]) + line(60, hispanic="Cuban"))
    frame = load_census(file.parent)
    assert frame["file"].value_counts().to_dict() == {"data": 31, "test": 30}
    assert "Cuban" in set(frame["hispanic_origin"])
    parts = split_census(frame)
    assert {part: set(rows["file"]) for part, rows in parts.items()} == {
        "train": {"data"},
        "valid": {"test"},
        "test": {"test"},
    }
    assert [len(rows) for rows in parts.values()] == [31, 15, 15]


def test_split_of_one_file_uses_each_row_once_and_follows_the_seed(file):
    frame = load_census(file)
    parts = split_census(frame, seed=1)
    assert [len(rows) for rows in parts.values()] == [21, 4, 5]
    assert sorted(i for rows in parts.values() for i in rows.index) == list(range(30))
    assert not parts["test"].index.equals(split_census(frame, seed=2)["test"].index)
    with pytest.raises(ValueError, match="got 5 rows"):
        split_census(frame.head())


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "is empty"),
        ("a,b\n1,2\n", "cannot be read|last column"),
        (line(age="old"), "cannot be read"),
        (line(income="60000"), "line 1.*'60000'"),
        (line() + line(marital="?"), "marital status"),
    ],
)
def test_other_files_are_refused(tmp_path, content, words):
    path = tmp_path / "census-income.data"
    path.write_text(content)
    with pytest.raises(BadCensusFile, match=words):
        load_census(path)


def test_cut_off_and_empty_folder_are_refused(file, tmp_path):
    cut = tmp_path / "cut.test.gz"
    cut.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(BadCensusFile):
        load_census(cut)
    (tmp_path / "empty").mkdir()
    with pytest.raises(CensusUnavailable, match="neither"):
        load_census(tmp_path / "empty")
    with pytest.raises(CensusUnavailable, match="is an address"):
        load_census("https://example.org/census")


def test_without_network_the_ways_are_named(monkeypatch):
    def offline(*_, **__):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr("urllib.request.urlopen", offline)
    assert census_available() == []
    with pytest.raises(CensusUnavailable) as caught:
        load_census(progress=False)
    for word in ("no route", "census-income.data.gz", "MTL_CENSUS", "load_census"):
        assert word in str(caught.value)


def test_downloads_both_files_and_checks_them(monkeypatch, file, tmp_path):
    """Both official files, as served; a file with too few rows is refused even where no checksum is known."""
    served = {"data": file.read_bytes(), "test": file.read_bytes()}

    class Reply:
        def __init__(self, body):
            self.body, self.status, self.headers = body, 200, {"Content-Length": str(len(body))}

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def read(self, size):
            block, self.body = self.body[:size], self.body[size:]
            return block

    monkeypatch.setattr(
        "urllib.request.urlopen",
        lambda request, **_: Reply(served["data" if ".data." in request.full_url else "test"]),
    )
    with pytest.raises(BadCensusFile, match="checksum"):
        load_census(progress=False)
    monkeypatch.setattr(census, "_MD5", {"data": None, "test": None})
    with pytest.raises(BadCensusFile, match="30 rows, expected 199,523"):
        load_census(progress=False)
    monkeypatch.setattr(census, "_ROWS", {"data": 30, "test": 30})
    assert len(load_census(progress=False)) == 60
    assert len(census_available()) == 2


@pytest.fixture(scope="module")
def real() -> pd.DataFrame:
    """The official rows: what MTL_CENSUS names, else a copy beside the checkout, else skip."""
    given = os.environ.get("MTL_CENSUS")
    path = (
        Path(given) if given else next(Path(__file__).parents[2].glob("*/data/census-income.test.gz"), None)
    )
    if path is None or not path.exists():
        pytest.skip("no Census-Income file: set MTL_CENSUS to a copy to run this")
    return load_census(path)


def test_real_rows_look_as_published(real):
    test = real[real["file"] == "test"]
    if len(test):
        assert len(test) == 99_762
        assert test["income"].mean() == pytest.approx(0.062, abs=0.001)
        assert test["never_married"].mean() == pytest.approx(0.432, abs=0.001)
    assert real["age"].between(0, 90).all()
    assert all(real[name].nunique() <= 55 for name in CENSUS_CATEGORICAL)


def test_real_rows_go_through_prepare_without_label_leaks(real):
    parts = split_census(real)
    splits = prepare(parts, CENSUS_TASKS, CENSUS_NUMERIC, CENSUS_CATEGORICAL)
    assert splits.train.categorical.shape[1] == 32 and bool(splits.test.numeric.isfinite().all())
    report = check_leaks(parts, [*CENSUS_NUMERIC, *CENSUS_CATEGORICAL], CENSUS_TASKS).set_index("check")
    assert report.loc["no label among the features", "passed"]
    assert report.loc["no feature is an outcome in disguise", "passed"]
