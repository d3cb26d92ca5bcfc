"""Public data: fetched whole or not at all, read as published; on small files made here, on real rows if present."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import tarfile
import urllib.error
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from mtl_helpers.data import MultiTaskDataset, prepare, public
from mtl_helpers.data.public import census_available, fetch, kuairand_available, load_census, load_kuairand
from mtl_helpers.models import SharedBottom
from mtl_helpers.training import evaluate, fit
from mtl_helpers.weighting import constant_losses

LOG, USERS, VIDEOS = public._DTYPES
REAL = {name: os.environ.get(name, "") for name in ("MTL_KUAIRAND", "MTL_CENSUS")}


@pytest.fixture(autouse=True)
def clean_surroundings(monkeypatch, tmp_path):
    for name in REAL:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MTL_CACHE", str(tmp_path / "cache"))


def small_tables() -> dict[str, pd.DataFrame]:
    """Three days, four users, three videos, in the publisher's columns; the third row repeats the second."""
    row = np.arange(12)
    log = pd.DataFrame({"user_id": row % 4, "video_id": row % 3, "play_time_ms": row * 1000})
    log = log.assign(date=np.repeat([20220425, 20220430, 20220501], 4), hourmin=[0, 100, 100, 2300] * 3)
    log = log.assign(time_ms=1650812741436 + row * 60_000, tab=1, duration_ms=10_000)
    log = log.assign(is_click=[1, 0, 0, 1] * 3, long_view=[1, 0, 0, 0] * 3)
    log[["is_like", "is_follow", "is_comment", "is_forward", "is_hate", "profile_stay_time"]] = 0
    log.loc[2] = log.loc[1]
    users = pd.DataFrame({"user_id": range(4), "is_live_streamer": [-124, 1, 0, -124], "is_video_author": 1})
    users["user_active_degree"] = ["full_active", "UNKNOWN", "low_active", "full_active"]
    users = users.assign(follow_user_num=[0, 9, 99, 999], fans_user_num=3)
    users = users.assign(friend_user_num=0, register_days=400)
    for i in range(18):
        users[f"onehot_feat{i}"] = [1, 2, np.nan, 4] if i == 1 else i
    videos = pd.DataFrame({"video_id": range(3), "author_id": [7, 8, 9], "video_type": "NORMAL"})
    videos = videos.assign(upload_type=["Web", "Kmovie", "Web"], upload_dt=["2022-04-20", None, "2022-04-28"])
    videos = videos.assign(server_width=[720.0, 1280.0, np.nan], server_height=[1280.0, 720.0, 720.0])
    videos = videos.assign(music_type=[9.0, np.nan, 4.0], tag=["39", None, "3,12"])
    return {LOG: log, USERS: users, VIDEOS: videos}


def pack(path: Path, change=lambda tables: None) -> Path:
    tables = small_tables()
    change(tables)
    with tarfile.open(path, "w:gz") as archive:
        for name, table in {**tables, "readme.csv": pd.DataFrame({"x": [1]})}.items():
            content = table.to_csv(index=False).encode()
            entry = tarfile.TarInfo(f"KuaiRand-Pure/data/{name}")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


@pytest.fixture
def archive(tmp_path) -> Path:
    return pack(tmp_path / "KuaiRand-Pure.tar.gz")


def test_one_row_per_distinct_row_with_features_and_labels(archive, tmp_path):
    before = set(tmp_path.iterdir())
    frame = load_kuairand(archive)
    assert len(frame) == 11 and set(tmp_path.iterdir()) == before  # nothing is unpacked
    features = {*public.KUAIRAND_WIDE_NUMERIC, *public.KUAIRAND_WIDE_CATEGORICAL}
    outcomes = {*public.KUAIRAND_OUTCOMES}
    assert features | outcomes < {*frame} and not features & outcomes
    row = frame.iloc[1]
    assert (row["user_id"], row["video_id"], row["hour"], row["author_id"]) == (1, 1, 1, 8)
    assert row["timestamp"] == pd.Timestamp("2022-04-24 23:06:41.436")  # in China
    logs = row["log_duration"], row["log_follows"], frame.loc[0, "log_video_age_days"]
    assert logs == pytest.approx(np.log([11, 10, 6]))


def test_missing_values_and_unknown_ids_are_marked_not_dropped(tmp_path):
    def change(tables):
        tables[USERS] = tables[USERS].query("user_id != 3")

    frame = load_kuairand(pack(tmp_path / "a.tar.gz", change))
    user, video = (dict(list(frame.groupby(name))) for name in ("user_id", "video_id"))
    assert len(frame) == 11
    assert user[3]["log_fans"].isna().all() and (user[3]["is_video_author"] == -1).all()
    assert (user[0]["is_live_streamer"] == -1).all()  # -124: not known
    assert (user[2]["onehot_feat1"] == -1).all()
    assert (video[1]["music_type"] == -1).all() and video[1]["tag"].isna().all()
    assert video[2]["aspect_ratio"].isna().all()


def test_videos_shown_at_random_are_read_if_the_archive_has_them(archive, tmp_path):
    def change(tables):
        tables[public._RANDOM] = tables[LOG].tail(5).assign(is_click=1)

    both = pack(tmp_path / "b.tar.gz", change)
    assert load_kuairand(archive, random=True) is None
    assert load_kuairand(both).equals(load_kuairand(archive))  # the standard log is what it was
    shown, usual = load_kuairand(both, random=True), load_kuairand(archive)
    same = usual.tail(5).reset_index(drop=True)
    assert shown["click"].eq(1).all() and shown.drop(columns="click").equals(same.drop(columns="click"))
    # the encoder of the usual rows takes them as they are
    parts = public.split_by_date(usual)
    splits = prepare(parts, public.KUAIRAND_TASKS, public.KUAIRAND_NUMERIC, public.KUAIRAND_CATEGORICAL)
    asked = MultiTaskDataset.from_frame(shown, splits.encoder, splits.tasks)
    assert len(asked) == 5 and asked.labels["click"].eq(1).all()
    assert asked.categorical.equal(torch.cat([splits.valid.categorical[-1:], splits.test.categorical]))


def test_play_time_is_cut_off_at_the_length_and_says_so(tmp_path):
    def change(tables):
        tables[LOG].loc[tables[LOG].index[-1], "duration_ms"] = 0

    frame = load_kuairand(pack(tmp_path / "a.tar.gz", change))
    assert frame["finished"].tolist() == [False] * 9 + [True, False]  # without a length nothing is finished
    assert np.expm1(frame["log_play"]).tolist()[9:] == pytest.approx([10, 11])


def test_frame_goes_through_prepare_and_later_days_change_nothing(tmp_path):
    def later(tables):
        tables[LOG].loc[8:, ["user_id", "tab"]] = 2, 5

    def splits(path):
        parts = public.split_by_date(load_kuairand(path))
        return prepare(parts, public.KUAIRAND_TASKS, public.KUAIRAND_NUMERIC, public.KUAIRAND_CATEGORICAL)

    one, two = splits(pack(tmp_path / "a.tar.gz")), splits(pack(tmp_path / "b.tar.gz", later))
    assert (len(one.train), len(one.valid), len(one.test)) == (3, 4, 4)
    assert one.schema == two.schema
    assert one.train.numeric.equal(two.train.numeric) and one.valid.categorical.equal(two.valid.categorical)


OTHER_TABLES = {
    "user_features": lambda tables: tables.pop(USERS),
    "is_click": lambda tables: tables[LOG].pop("is_click"),
    "'x'": lambda tables: tables[LOG].__setitem__("tab", "x"),
    "day": lambda tables: tables[LOG].__setitem__("date", 20220432),
    "dupl": lambda tables: tables.update(
        {USERS: pd.concat([tables[USERS], tables[USERS].assign(fans_user_num=9)])}
    ),
}


@pytest.mark.parametrize("word", OTHER_TABLES)
def test_another_table_is_refused_by_name(tmp_path, word):
    with pytest.raises(ValueError, match=f"(?s)damaged, or is not .*{word}"):
        load_kuairand(pack(tmp_path / "a.tar.gz", OTHER_TABLES[word]))


@pytest.mark.parametrize("content", [lambda whole: b"", lambda whole: b"hello", lambda whole: whole[:-600]])
def test_what_is_no_whole_archive_is_refused(archive, content):
    archive.write_bytes(content(archive.read_bytes()))
    with pytest.raises(ValueError, match="damaged"):
        load_kuairand(archive)


def test_split_by_days(archive):
    frame = load_kuairand(archive)
    for days in ((None, None), ("2022-04-30", "2022-05-01")):
        parts = public.split_by_date(frame, *days)
        assert [part["date"].dt.day.unique().tolist() for part in parts.values()] == [[25], [30], [1]]
    with pytest.raises(ValueError, match="No row for valid"):
        public.split_by_date(frame, test_day="2022-04-25")
    with pytest.raises(ValueError, match="No row for train"):
        public.split_by_date(frame[frame["date"] > "2022-04-25"])


def line(age=30, marital="Never married", hispanic="All other", gains=0, income="- 50000."):
    """One row in the publisher's layout: 42 values, each after a blank."""
    values = dict.fromkeys(public._CENSUS, "Not in universe")
    values |= dict.fromkeys(public.CENSUS_NUMERIC, 0) | {"age": age, "capital_gains": gains, "year": 95}
    values |= {"marital_stat": marital, "hispanic_origin": hispanic, "instance_weight": 1000.5}
    values |= {"migration_prev_res_in_sunbelt": "?", "income": income}
    return ", ".join(str(values[name]) for name in public._CENSUS) + "\n"


PEOPLE = (line() + line(40, "Divorced", "NA", 100, "50000+.") + line(50, "Widowed", "?")).encode()


def test_rows_become_labels_and_features(tmp_path, monkeypatch):
    persons = tmp_path / "census-income.test.gz"
    persons.write_bytes(gzip.compress(PEOPLE))
    frame = load_census(persons)
    assert len(public.CENSUS_NUMERIC) == 7 and len(public.CENSUS_CATEGORICAL) == 32
    assert {*frame} == {*public.CENSUS_NUMERIC, *public.CENSUS_CATEGORICAL, "income", "never_married", "file"}
    assert frame["income"].tolist() == [0, 1, 0] and frame["never_married"].tolist() == [1, 0, 0]
    assert frame["capital_gains"].tolist() == pytest.approx([0, np.log(101), 0])
    assert frame["hispanic_origin"].tolist()[1] == "NA" and frame["hispanic_origin"].isna().tolist()[2]
    monkeypatch.setenv("MTL_CENSUS", str(persons))
    assert census_available() == [persons] and load_census().equals(frame)


@pytest.mark.parametrize("content", ["", "a,b\n1,2\n", line(income="95"), line(age="old")])
def test_another_file_is_refused(tmp_path, content):
    (tmp_path / "c.test").write_text(content)
    with pytest.raises(ValueError, match=r"c\.test is damaged, or is not Census-Income"):
        load_census(tmp_path / "c.test")


@pytest.fixture
def net(monkeypatch):
    """``{end of an address: bytes}`` that answer; ``cut`` drops all but so many bytes; ``asked`` lists the requests."""

    class Net(dict):
        cut = None

    found = Net()
    found.asked = []

    def answer(request, timeout):
        found.asked.append(request.full_url)
        for end, body in found.items():
            if request.full_url.endswith(end):
                reply = io.BufferedReader(io.BytesIO(body[: found.cut]))
                reply.headers = {"Content-Length": str(len(body))}
                return reply
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", answer)
    return found


def test_fetched_once_and_checked_once(net, monkeypatch, archive):
    body = archive.read_bytes()
    net[".tar.gz"] = body
    monkeypatch.setattr(public, "_KUAIRAND", (public._KUAIRAND[0], hashlib.md5(body).hexdigest()))
    assert kuairand_available() is None
    first = load_kuairand(progress=False)
    assert first.equals(load_kuairand(archive)) and load_kuairand().equals(first)
    assert len(net.asked) == 1 and kuairand_available().read_bytes() == body


def test_census_fetches_both_files(net, monkeypatch):
    net["data.gz"] = net["test.gz"] = gzip.compress(PEOPLE)
    files = tuple((url, None) for url, _ in public._CENSUS_FILES)
    monkeypatch.setattr(public, "_CENSUS_FILES", files)
    assert load_census(progress=False)["file"].tolist() == ["data"] * 3 + ["test"] * 3
    assert len(census_available()) == 2


@pytest.mark.parametrize("fault", ["interrupted", "another file", "no network"])
def test_a_download_that_fails_leaves_nothing_and_starts_anew(net, tmp_path, fault):
    url, body = "https://example.org/a.bin", b"x" * 100_000
    if fault != "no network":
        net["a.bin"] = body
    net.cut = 70_000 if fault == "interrupted" else None
    md5 = "0" * 32 if fault == "another file" else hashlib.md5(body).hexdigest()
    with pytest.raises(OSError, match=f"Could not fetch {url} .*save it by hand as .*a.bin"):
        fetch(url, md5, progress=False)
    assert not list((tmp_path / "cache").iterdir())
    net["a.bin"], net.cut = body, None
    assert fetch(url, hashlib.md5(body).hexdigest(), progress=False).read_bytes() == body


@pytest.mark.parametrize("name", REAL)
def test_a_path_that_is_not_there(tmp_path, monkeypatch, name):
    videos = name == "MTL_KUAIRAND"
    monkeypatch.setenv(name, str(tmp_path / "nowhere"))
    assert not (kuairand_available() if videos else census_available())
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_kuairand() if videos else load_census()


@pytest.mark.skipif(not REAL["MTL_KUAIRAND"], reason="MTL_KUAIRAND names no archive")
def test_real_videos():
    frame = load_kuairand(REAL["MTL_KUAIRAND"])
    parts = public.split_by_date(frame)
    columns = public.KUAIRAND_WIDE_NUMERIC, public.KUAIRAND_WIDE_CATEGORICAL
    splits = prepare(parts, public.KUAIRAND_TASKS, *columns)
    rates = {name: labels.mean().item() for name, labels in splits.train.labels.items()}
    assert 0.3 < rates["click"] < 0.6 and 0.2 < rates["long_view"] < 0.4 and 0.005 < rates["like"] < 0.05
    assert parts["train"]["date"].max() < parts["valid"]["date"].min() < parts["test"]["date"].min()


@pytest.mark.skipif(not REAL["MTL_CENSUS"], reason="MTL_CENSUS names no file")
def test_real_persons():
    frame = load_census(REAL["MTL_CENSUS"])
    assert frame["income"].mean() == pytest.approx(0.062, abs=0.005)
    assert frame["never_married"].mean() == pytest.approx(0.43, abs=0.02)
    assert len({task.name for task in public.CENSUS_TASKS} & {*frame}) == 2


@pytest.mark.slow
@pytest.mark.skipif(not REAL["MTL_KUAIRAND"], reason="MTL_KUAIRAND names no archive")
def test_conclusions_of_notebook_07_hold_on_three_fresh_draws_of_rows():
    """Untuned sharing costs like much, little of it by sharing itself; logistic regression lies above the networks."""
    frames, found = public.split_by_date(load_kuairand(REAL["MTL_KUAIRAND"])), []
    columns = public.KUAIRAND_WIDE_NUMERIC, public.KUAIRAND_WIDE_CATEGORICAL
    for seed in (500, 501, 502):
        half = frames["train"].sample(frac=0.5, random_state=seed)
        data = prepare(frames | {"train": half}, public.KUAIRAND_TASKS, *columns, min_count=2)
        scale = {task: 1 / loss for task, loss in constant_losses(data.train).items()}

        def like(
            tasks, data=data, scale=scale, weights=None, lr=1e-3, decay=0.01, stop="each", seed=seed, **layers
        ):
            torch.manual_seed(seed)
            net, train = (
                SharedBottom(data.schema, tasks, **layers),
                data.train.select([t.name for t in tasks]),
            )
            monitor = {task.name: scale[task.name] for task in tasks}
            how = {
                "lr": lr,
                "weight_decay": decay,
                "weights": weights,
                "epochs": 12,
                "patience": 2,
                "seed": seed,
            }
            done = fit(net, train, data.valid, stop=stop, monitor=monitor, progress=False, **how)
            return evaluate(net, data.test, done.best_states or None)["like"]["auc"]

        alone, three = data.tasks[2:], data.tasks
        linear = {"embedding_dim": 1, "hidden": (), "tower": ()}
        found.append((
            like(alone, lr=1e-3, decay=3.0),
            like(three, lr=3e-3, decay=3.0, weights=scale),
            like(three, stop="together"),
            like(alone, lr=1e-2, **linear),
        ))  # fmt: skip
    single, shared, naive, logistic = np.mean(found, axis=0)
    assert single - naive > 0.02 and abs(shared - single) < (single - naive) / 2
    assert logistic > max(single, shared)
