"""KuaiRand: reader, downloader and day split, on small archives made here and on the real rows if present."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import tarfile
import threading
import urllib.error
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mtl_helpers.data import check_leaks, kuairand, prepare
from mtl_helpers.data.download import cache_folder
from mtl_helpers.data.kuairand import (
    KUAIRAND_CATEGORICAL,
    KUAIRAND_NUMERIC,
    KUAIRAND_OUTCOMES,
    KUAIRAND_PLAY_TASK,
    KUAIRAND_TASKS,
    KUAIRAND_WIDE_CATEGORICAL,
    KUAIRAND_WIDE_NUMERIC,
    BadArchive,
    KuaiRandUnavailable,
    kuairand_available,
    load_kuairand,
    split_by_date,
)

LOG, USERS, VIDEOS = kuairand._LOG, kuairand._USERS, kuairand._VIDEOS


# ------------------------------------------------------------------------------------------------ small archives


def small_tables() -> dict[str, pd.DataFrame]:
    """Three days, four users, three videos, in the publisher's columns; the third row repeats the second."""
    rows = 12
    log = pd.DataFrame(
        {
            "user_id": np.arange(rows) % 4,
            "video_id": np.arange(rows) % 3,
            "date": np.repeat([20220425, 20220430, 20220501], 4),
            "hourmin": [0, 100, 100, 2300] * 3,
            "time_ms": 1650812741436 + np.arange(rows) * 60_000,
            "is_click": [1, 0, 0, 1] * 3,
            "is_like": 0,
            "is_follow": 0,
            "is_comment": 0,
            "is_forward": 0,
            "is_hate": 0,
            "long_view": [1, 0, 0, 0] * 3,
            "play_time_ms": np.arange(rows) * 1000,
            "duration_ms": 10_000,
            "profile_stay_time": 0,
            "comment_stay_time": 0,
            "is_profile_enter": 0,
            "is_rand": 0,
            "tab": 1,
        }
    )
    log.loc[2] = log.loc[1]
    users = pd.DataFrame(
        {"user_id": range(4), "user_active_degree": ["full_active", "UNKNOWN", "low_active", "full_active"]}
    )
    users = users.assign(
        is_lowactive_period=0,
        is_live_streamer=[-124, 1, 0, -124],
        is_video_author=1,
        follow_user_num=[0, 9, 99, 999],
        fans_user_num=3,
        friend_user_num=0,
        register_days=400,
    )
    for i in range(18):
        users[f"onehot_feat{i}"] = [1, 2, np.nan, 4] if i == 1 else i
    videos = pd.DataFrame(
        {
            "video_id": range(3),
            "author_id": [7, 8, 9],
            "video_type": "NORMAL",
            "upload_dt": ["2022-04-20", None, "2022-04-28"],
            "upload_type": ["Web", "Kmovie", "Web"],
            "server_width": [720.0, 1280.0, np.nan],
            "server_height": [1280.0, 720.0, 720.0],
            "music_type": [9.0, np.nan, 4.0],
            "tag": ["39", None, "3,12"],
        }
    )
    return {LOG: log, USERS: users, VIDEOS: videos}


def csv(table: pd.DataFrame) -> bytes:
    return table.to_csv(index=False).encode()


def entry(name: str, **fields) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    for key, value in fields.items():
        setattr(info, key, value)
    return info


def pack(path: Path, files, extra=()) -> Path:
    """Write (name, bytes) pairs, then bare TarInfo entries, as a .tar.gz."""
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files:
            archive.addfile(entry(name, size=len(content)), io.BytesIO(content))
        for info in extra:
            archive.addfile(info)
    return path


def small_files() -> dict[str, bytes]:
    return {name: csv(table) for name, table in small_tables().items()}


@pytest.fixture
def archive(tmp_path) -> Path:
    return pack(tmp_path / "small.tar.gz", small_files().items())


@pytest.fixture(autouse=True)
def clean_surroundings(monkeypatch, tmp_path):
    """No test reads the tester's own settings or writes to the tester's own cache."""
    monkeypatch.delenv("MTL_KUAIRAND", raising=False)
    monkeypatch.setenv("MTL_CACHE", str(tmp_path / "cache"))


# ------------------------------------------------------------------------------------------------ reading


def test_frame_has_one_row_per_distinct_log_row_with_features_and_labels(archive):
    frame = load_kuairand(archive)
    assert len(frame) == 11  # 12 less the repeated one
    features = {*KUAIRAND_WIDE_NUMERIC, *KUAIRAND_WIDE_CATEGORICAL}
    assert features | {*KUAIRAND_OUTCOMES, "date", "timestamp"} == set(frame)
    assert {*KUAIRAND_NUMERIC, *KUAIRAND_CATEGORICAL} < features
    assert frame["click"].tolist() == [1, 0, 1] + [1, 0, 0, 1] * 2
    assert frame["video_id"].tolist() == [0, 1, 0, 1, 2, 0, 1, 2, 0, 1, 2]  # the log's order
    assert frame["hour"].tolist() == [0, 1, 23] + [0, 1, 1, 23] * 2
    assert frame["date"].iloc[0] == pd.Timestamp("2022-04-25")
    assert frame["timestamp"].iloc[0] == pd.Timestamp("2022-04-24 23:05:41.436")
    first = frame.iloc[0]
    assert first["log_duration"] == pytest.approx(np.log(11))
    assert first["aspect_ratio"] == pytest.approx(720 / 1280)
    assert frame["log_follows"].tolist()[:3] == pytest.approx([0, np.log(10), np.log(1000)])
    assert frame.memory_usage(deep=True).sum() / len(frame) < 400


def test_missing_values_and_unknown_ids_are_marked_not_dropped(tmp_path):
    tables = small_tables()
    tables[USERS] = tables[USERS].iloc[:3]
    frame = load_kuairand(pack(tmp_path / "a.tar.gz", ((n, csv(t)) for n, t in tables.items())))
    assert len(frame) == 11
    stranger = frame[frame["user_id"] == 3]
    assert (stranger["onehot_feat1"] == -1).all() and stranger["log_fans"].isna().all()
    assert stranger["user_active_degree"].isna().all()
    known = frame.drop_duplicates("user_id").set_index("user_id")
    assert known["is_live_streamer"].tolist()[:2] == [-1, 1]  # the publisher's -124 means unknown
    assert known.loc[2, "onehot_feat1"] == -1
    by_video = frame.drop_duplicates("video_id").set_index("video_id")
    assert by_video.loc[1, "music_type"] == -1 and pd.isna(by_video.loc[1, "tag"])
    assert np.isnan(by_video.loc[2, "aspect_ratio"])


def test_no_outcome_is_a_feature():
    assert not set(KUAIRAND_OUTCOMES) & {*KUAIRAND_WIDE_NUMERIC, *KUAIRAND_WIDE_CATEGORICAL}
    assert KUAIRAND_PLAY_TASK.label_column in KUAIRAND_OUTCOMES and KUAIRAND_PLAY_TASK.kind == "regression"
    assert [task.label_column for task in KUAIRAND_TASKS] == ["click", "long_view", "like"]
    assert {task.kind for task in KUAIRAND_TASKS} == {"binary"}


def test_members_of_no_interest_are_ignored(tmp_path):
    files = [("KuaiRand-Pure/LICENSE", b"terms"), *small_files().items(), (USERS + ".bak", b"\xff\xfe")]
    path = pack(tmp_path / "a.tar.gz", files, [entry("KuaiRand-Pure", type=tarfile.DIRTYPE)])
    pd.testing.assert_frame_equal(
        load_kuairand(path), load_kuairand(pack(tmp_path / "b.tar.gz", small_files().items()))
    )


def test_chunks_do_not_change_the_result(archive, monkeypatch):
    whole = load_kuairand(archive)
    monkeypatch.setattr(kuairand, "_CHUNK_ROWS", 2)
    pd.testing.assert_frame_equal(load_kuairand(archive), whole)


def test_reading_writes_nothing(archive, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    load_kuairand(archive)
    assert sorted(tmp_path.rglob("*")) == before


def test_play_time_is_cut_off_at_the_length_and_says_so(archive):
    frame = load_kuairand(archive)  # videos of 10 s, played for 0, 1, 3, 4, … 11 s
    seconds = [0, 1, 3, 4, 5, 6, 7, 8, 9, 10, 11]
    assert frame["play_time_ms"].tolist() == [1000 * value for value in seconds]
    assert frame["log_play"].tolist() == pytest.approx(np.log1p(np.minimum(seconds, 10)))
    assert frame["finished"].tolist() == [value >= 10 for value in seconds]


def test_a_video_without_a_length_is_never_finished(tmp_path):
    tables = small_tables()
    tables[LOG]["duration_ms"] = 0
    frame = load_kuairand(pack(tmp_path / "a.tar.gz", ((n, csv(t)) for n, t in tables.items())))
    assert not frame["finished"].any()
    assert frame["log_play"].max() == pytest.approx(np.log(12))


def test_author_and_age_come_from_the_video(tmp_path):
    tables = small_tables()
    tables[VIDEOS] = tables[VIDEOS].iloc[:2]  # video 2 is described nowhere
    frame = load_kuairand(pack(tmp_path / "a.tar.gz", ((n, csv(t)) for n, t in tables.items())))
    assert frame["author_id"].tolist() == [{0: 7, 1: 8, 2: -1}[video] for video in frame["video_id"]]
    assert frame["log_video_age_days"].iloc[0] == pytest.approx(np.log(6))  # 20 to 25 April
    assert frame.loc[frame["video_id"] > 0, "log_video_age_days"].isna().all()


def test_unseen_users_videos_and_authors_share_the_unknown_bucket(archive):
    parts = split_by_date(load_kuairand(archive))
    parts["test"] = parts["test"].assign(user_id=99, video_id=99, author_id=-1)
    splits = prepare(parts, KUAIRAND_TASKS, KUAIRAND_WIDE_NUMERIC, KUAIRAND_WIDE_CATEGORICAL)
    for column in ("user_id", "video_id", "author_id"):
        at = KUAIRAND_WIDE_CATEGORICAL.index(column)
        assert (splits.test.categorical[:, at] == 0).all()
        assert (splits.train.categorical[:, at] > 0).all()


def test_later_days_change_nothing_the_model_is_given(archive):
    """Planted: absurd values after the split. Encoder and training tensors must not notice."""
    frame = load_kuairand(archive)
    altered = frame.copy()
    late = altered["date"] >= altered["date"].unique()[1]
    altered.loc[late, list(KUAIRAND_WIDE_NUMERIC)] = 1e6
    altered.loc[late, ["user_id", "video_id", "author_id"]] = 12345
    altered.loc[late, ["click", "long_view", "like"]] = 1
    made = [
        prepare(split_by_date(rows), KUAIRAND_TASKS, KUAIRAND_WIDE_NUMERIC, KUAIRAND_WIDE_CATEGORICAL)
        for rows in (frame, altered)
    ]
    assert made[0].schema == made[1].schema
    assert made[0].train.numeric.equal(made[1].train.numeric)
    assert made[0].train.categorical.equal(made[1].train.categorical)
    assert all(made[0].train.labels[name].equal(made[1].train.labels[name]) for name in made[0].train.labels)


def test_frame_goes_through_prepare(archive):
    frame = load_kuairand(archive)
    tasks = (*KUAIRAND_TASKS, KUAIRAND_PLAY_TASK)
    splits = prepare(split_by_date(frame), tasks, KUAIRAND_NUMERIC, KUAIRAND_CATEGORICAL)
    assert [len(part) for part in (splits.train, splits.valid, splits.test)] == [3, 4, 4]
    assert splits.train.categorical.shape[1] == len(KUAIRAND_CATEGORICAL)
    assert bool(splits.test.numeric.isfinite().all())


# ------------------------------------------------------------------------------------------------ bad archives


def edit(name: str, change) -> dict[str, bytes]:
    tables = small_tables()
    tables[name] = change(tables[name].astype(object))
    return {n: csv(t) for n, t in tables.items()}


def put(row: int, column: str, value):
    def change(table):
        table.loc[row, column] = value
        return table

    return change


BAD_TABLES = {
    "text for a number": (
        LOG,
        put(4, "duration_ms", "long"),
        ["log_standard", "line 6", "duration_ms", "'long'", "whole"],
    ),
    "text for a label": (LOG, put(0, "is_click", "yes"), ["line 2", "is_click", "'yes'"]),
    "label beyond 1": (LOG, put(7, "long_view", 2), ["line 9", "long_view", "'2'", "0 to 1"]),
    "label missing": (LOG, put(3, "is_like", None), ["line 5", "is_like", "nothing"]),
    "fraction": (LOG, put(3, "user_id", 1.5), ["line 5", "user_id", "'1.5'"]),
    "infinite": (LOG, put(3, "play_time_ms", "inf"), ["line 5", "play_time_ms", "'inf'"]),
    "id too large": (LOG, put(3, "video_id", 10**25), ["line 5", "video_id"]),
    "negative count": (
        USERS,
        put(1, "fans_user_num", -5),
        ["user_features", "line 3", "fans_user_num", "'-5'"],
    ),
    "True for 1": (LOG, lambda t: t.assign(is_click=True), ["line 2", "is_click", "'True'"]),
    "no such day": (LOG, lambda t: t.assign(date=20220231), ["20220231", "calendar"]),
    "text among sizes": (
        VIDEOS,
        put(2, "server_width", "wide"),
        ["video_features", "line 4", "server_width", "'wide'"],
    ),
    "missing column": (
        LOG,
        lambda t: t.drop(columns="long_view"),
        ["log_standard", "lacks the column long_view"],
    ),
    "missing columns": (
        USERS,
        lambda t: t.drop(columns=["onehot_feat7", "register_days"]),
        ["register_days, onehot_feat7"],
    ),
    "no rows": (VIDEOS, lambda t: t.iloc[:0], ["video_features", "no rows"]),
    "one user, two descriptions": (USERS, put(1, "user_id", 0), ["user_features", "user_id 0 twice"]),
}


@pytest.mark.parametrize("case", BAD_TABLES)
@pytest.mark.parametrize("chunk_rows", [3, 1000])
def test_bad_table_is_refused_by_name_column_and_line(case, chunk_rows, tmp_path, monkeypatch):
    monkeypatch.setattr(kuairand, "_CHUNK_ROWS", chunk_rows)
    name, change, words = BAD_TABLES[case]
    path = pack(tmp_path / "bad.tar.gz", edit(name, change).items())
    with pytest.raises(BadArchive) as caught:
        load_kuairand(path)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"user_id,video_id\n1,2,3,4\n", "lacks the column"),
        (b"\x00\xff\xfe\n", "log_standard"),
        (small_files()[LOG] + b"1,2,3" + b",4" * 40, "log_standard"),
        (small_files()[LOG].replace(b"\n", b",9,9\n").replace(b",9,9\n", b"\n", 1), "more values in a row"),
        (small_files()[LOG].replace(b"is_rand", b"is_click", 1), "is_click twice"),
        (small_files()[LOG].replace(b",1\n", b",\xff\n", 3), "log_standard"),
    ],
)
def test_malformed_csv(content, words, tmp_path):
    path = pack(tmp_path / "bad.tar.gz", ({**small_files(), LOG: content}).items())
    with pytest.raises(BadArchive, match=words):
        load_kuairand(path)


@pytest.mark.parametrize(
    "hostile",
    [
        entry("../escape.csv"),
        entry("KuaiRand-Pure/data/../../../escape.csv"),
        entry("/etc/escape.csv"),
        entry("..\\escape.csv"),
        entry("C:\\escape.csv"),
        entry("link.csv", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
        entry(USERS, type=tarfile.SYMTYPE, linkname="../../../../etc/passwd"),
        entry("hard.csv", type=tarfile.LNKTYPE, linkname=LOG),
        entry("fifo", type=tarfile.FIFOTYPE),
        entry("device", type=tarfile.CHRTYPE),
        entry("sparse", type=tarfile.GNUTYPE_SPARSE),
    ],
    ids=lambda info: info.name,
)
def test_hostile_members_are_refused(hostile, tmp_path):
    path = pack(tmp_path / "bad.tar.gz", small_files().items(), [hostile])
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(BadArchive, match="not read"):
        load_kuairand(path)
    assert sorted(tmp_path.rglob("*")) == before


def test_members_that_are_twice_missing_or_folders(tmp_path):
    files = small_files()
    with pytest.raises(BadArchive, match=r"holds .*user_features.* twice"):
        load_kuairand(pack(tmp_path / "twice.tar.gz", [*files.items(), (USERS, files[USERS])]))
    with pytest.raises(BadArchive, match=r"lacks KuaiRand-Pure/data/user_features_pure\.csv\. It holds"):
        load_kuairand(
            pack(tmp_path / "less.tar.gz", [(LOG, files[LOG]), (VIDEOS, files[VIDEOS]), ("other", b"")])
        )
    with pytest.raises(BadArchive, match="is a folder"):
        load_kuairand(pack(tmp_path / "dir.tar.gz", [], [entry(LOG, type=tarfile.DIRTYPE)]))
    with pytest.raises(BadArchive, match=r"lacks .* and .* and .*empty otherwise"):
        load_kuairand(pack(tmp_path / "empty.tar.gz", []))


def test_truncated_anywhere_is_refused(archive, tmp_path):
    whole = archive.read_bytes()
    cut = tmp_path / "cut.tar.gz"
    for size in [0, 1, 10, 40, len(whole) // 2, len(whole) - 9, len(whole) - 8, len(whole) - 1]:
        cut.write_bytes(whole[:size])
        with pytest.raises(BadArchive):
            load_kuairand(cut)


def test_a_tar_cut_inside_sound_gzip_is_refused(archive, tmp_path):
    plain = gzip.decompress(archive.read_bytes())
    cut = tmp_path / "cut.tar.gz"
    for size in [100, 700, 1200, 3000]:
        cut.write_bytes(gzip.compress(plain[:size]))
        with pytest.raises(BadArchive):
            load_kuairand(cut)


def test_flipped_bytes_never_give_another_frame(archive, tmp_path):
    """Damage is refused, or sits where it changes no value: gzip's own checksum is read to the end."""
    whole, sound = bytearray(archive.read_bytes()), load_kuairand(archive)
    damaged = tmp_path / "damaged.tar.gz"
    for at in range(0, len(whole), 37):
        copy = bytearray(whole)
        copy[at] ^= 0x55
        damaged.write_bytes(copy)
        try:
            frame = load_kuairand(damaged)
        except BadArchive:
            continue
        pd.testing.assert_frame_equal(frame, sound)


def test_other_files_are_refused(tmp_path):
    page = tmp_path / "page.tar.gz"
    page.write_bytes(b"<html>404</html>")
    with pytest.raises(BadArchive, match=r"not a \.tar\.gz"):
        load_kuairand(page)
    page.write_bytes(gzip.compress(b"no tar at all" * 1000))
    with pytest.raises(BadArchive, match="tar archive"):
        load_kuairand(page)


def test_bombs_are_refused(archive, monkeypatch):
    monkeypatch.setattr(kuairand, "_MAX_UNPACKED", 4000)
    with pytest.raises(BadArchive, match="unpacks to more"):
        load_kuairand(archive)


def test_local_checksum_only_when_asked(archive):
    right = hashlib.md5(archive.read_bytes()).hexdigest()
    assert len(load_kuairand(archive)) == len(load_kuairand(archive, checksum=right)) == 11
    with pytest.raises(BadArchive, match=f"{right}, expected 00ff"):
        load_kuairand(archive, checksum="00ff")


# ------------------------------------------------------------------------------------------------ where it looks


def offline(*_, **__):
    raise urllib.error.URLError("no route to host")


def test_offline_without_a_file_names_the_ways(monkeypatch, tmp_path):
    monkeypatch.setattr("urllib.request.urlopen", offline)
    assert kuairand_available() is None
    with pytest.raises(KuaiRandUnavailable) as caught:
        load_kuairand(progress=False)
    for word in (
        "no route",
        "1. run",
        "2. download https://zenodo.org",
        "3. name a copy",
        "MTL_KUAIRAND",
        "shop",
    ):
        assert word in str(caught.value)
    assert isinstance(caught.value, FileNotFoundError)
    assert not cache_files(tmp_path)


def test_environment_names_the_file(monkeypatch, archive, tmp_path):
    monkeypatch.setattr("urllib.request.urlopen", offline)
    monkeypatch.setenv("MTL_KUAIRAND", str(archive))
    assert kuairand_available() == archive
    assert len(load_kuairand()) == 11
    monkeypatch.setenv("MTL_KUAIRAND", str(tmp_path / "gone.tar.gz"))
    assert kuairand_available() is None
    with pytest.raises(KuaiRandUnavailable, match=r"MTL_KUAIRAND.*does not exist"):
        load_kuairand()
    with pytest.raises(KuaiRandUnavailable, match="is a folder"):
        load_kuairand(tmp_path)


def test_cached_file_is_used_and_checked(monkeypatch, archive, tmp_path):
    monkeypatch.setattr("urllib.request.urlopen", offline)
    cached = tmp_path / "mine" / "KuaiRand-Pure.tar.gz"
    cached.parent.mkdir()
    cached.write_bytes(archive.read_bytes())
    assert kuairand_available(cache=cached.parent) == cached
    with pytest.raises(BadArchive, match="checksum"):
        load_kuairand(cache=cached.parent)
    assert len(load_kuairand(cache=cached.parent, checksum=None)) == 11
    monkeypatch.setattr(kuairand, "KUAIRAND_MD5", hashlib.md5(archive.read_bytes()).hexdigest())
    assert len(load_kuairand(cache=cached.parent)) == 11


@pytest.mark.parametrize(
    ("platform", "variable", "tail"),
    [
        ("linux", "XDG_CACHE_HOME", "mtl_helpers"),
        ("win32", "LOCALAPPDATA", "mtl_helpers"),
        ("darwin", "HOME", "Library/Caches/mtl_helpers"),
    ],
)
def test_default_cache_folder(platform, variable, tail, monkeypatch, tmp_path):
    monkeypatch.delenv("MTL_CACHE")
    monkeypatch.setattr("sys.platform", platform)
    monkeypatch.setenv(variable, str(tmp_path))
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert cache_folder(None) == tmp_path / tail


# ------------------------------------------------------------------------------------------------ downloading


class Server:
    """Serves one body on 127.0.0.1. Knobs: ``ranges``, ``cut`` (bytes to send before hanging up, per request)."""

    def __init__(self, body: bytes) -> None:
        self.body, self.ranges, self.cuts, self.seen, self.status = body, True, [], [], 200
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                asked = self.headers.get("Range")
                outer.seen.append(asked)
                start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and outer.ranges else 0
                if outer.status != 200:
                    self.send_error(outer.status)
                    return
                if start >= len(outer.body) and start:
                    self.send_response(416)
                    self.send_header("Content-Range", f"bytes */{len(outer.body)}")
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                self.send_response(206 if start else 200)
                if start:
                    self.send_header(
                        "Content-Range", f"bytes {start}-{len(outer.body) - 1}/{len(outer.body)}"
                    )
                self.send_header("Content-Length", str(len(outer.body) - start))
                self.end_headers()
                cut = outer.cuts.pop(0) if outer.cuts else None
                self.wfile.write(outer.body[start:] if cut is None else outer.body[start : start + cut])

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/KuaiRand-Pure.tar.gz"
        self.md5 = hashlib.md5(body).hexdigest()
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()


@pytest.fixture
def server(tmp_path):
    # the padding does not compress, so the transfer takes several blocks
    padding = np.random.default_rng(0).bytes(400_000)
    one = Server(
        pack(tmp_path / "served.tar.gz", [*small_files().items(), ("padding", padding)]).read_bytes()
    )
    yield one
    one.http.shutdown()
    one.http.server_close()


def cache_files(tmp_path) -> list[str]:
    folder = tmp_path / "cache"
    return (
        sorted(path.name for path in folder.iterdir() if path.name != ".gitignore" and path.suffix != ".lock")
        if folder.exists()
        else []
    )


def fetch(server: Server, **options) -> pd.DataFrame:
    return load_kuairand(server.url, **{"progress": False, "checksum": server.md5, **options})


def test_download_once_then_cache(server, tmp_path, monkeypatch):
    assert len(fetch(server)) == 11
    assert len(cache_files(tmp_path)) == 1 and cache_files(tmp_path)[0].endswith(".tar.gz")
    assert (tmp_path / "cache" / ".gitignore").read_text() == "*\n"
    monkeypatch.setenv("MTL_KUAIRAND", server.url)
    assert kuairand_available().name == cache_files(tmp_path)[0]
    assert len(load_kuairand(progress=False, checksum=server.md5)) == 11
    assert server.seen == [None]


def test_two_at_once_fetch_it_once(server, tmp_path):
    with ThreadPoolExecutor(2) as pool:
        lengths = [len(frame) for frame in pool.map(lambda _: fetch(server), range(2))]
    assert lengths == [11, 11]
    assert len(cache_files(tmp_path)) == 1 and server.seen == [None]


def test_publishers_address_is_the_default(server, monkeypatch):
    monkeypatch.setattr(kuairand, "KUAIRAND_URL", server.url)
    monkeypatch.setattr(kuairand, "KUAIRAND_MD5", server.md5)
    assert len(load_kuairand(progress=False)) == 11
    assert kuairand_available().name == "KuaiRand-Pure.tar.gz"


def test_progress_bar_counts_the_bytes(server, capsys):
    fetch(server, progress=True)
    assert "KuaiRand-Pure" in capsys.readouterr().err


def interrupt_after(blocks: int, monkeypatch) -> None:
    from tqdm.auto import tqdm

    class Interrupting(tqdm):
        calls = 0

        def update(self, n=1):
            Interrupting.calls += 1
            if Interrupting.calls == blocks:
                raise KeyboardInterrupt
            return super().update(n)

    monkeypatch.setattr("tqdm.auto.tqdm", Interrupting)


def test_interrupt_keeps_the_part_and_the_next_call_resumes(server, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt_after(2, patch)
        with pytest.raises(KeyboardInterrupt):
            fetch(server)
    (part,) = cache_files(tmp_path)
    assert part.endswith(".part")
    size = (tmp_path / "cache" / part).stat().st_size
    assert 0 < size < len(server.body)
    assert len(fetch(server)) == 11
    assert server.seen == [None, f"bytes={size}-"]
    assert not any(name.endswith(".part") for name in cache_files(tmp_path))


def test_server_without_ranges_restarts(server, tmp_path, monkeypatch):
    server.ranges = False
    with monkeypatch.context() as patch:
        interrupt_after(2, patch)
        with pytest.raises(KeyboardInterrupt):
            fetch(server)
    assert len(fetch(server)) == 11
    assert len(cache_files(tmp_path)) == 1


def test_dropped_connections_are_taken_up_again(server, tmp_path):
    server.cuts = [100_000, 150_000]
    assert len(fetch(server)) == 11
    assert server.seen == [None, "bytes=100000-", "bytes=250000-"]


def test_connection_that_keeps_dropping_reports_and_keeps_the_part(server, tmp_path):
    server.cuts = [100_000, 0, 0, 0]
    with pytest.raises(KuaiRandUnavailable, match="100,000 bytes are kept"):
        fetch(server)
    assert len(server.seen) == 2  # a try that gained nothing is the last
    assert [name.endswith(".part") for name in cache_files(tmp_path)] == [True]


def test_complete_part_is_not_fetched_again(server, tmp_path):
    target = kuairand._source().cached(server.url)
    target.parent.mkdir()
    target.with_name(target.name + ".part").write_bytes(server.body)
    assert len(fetch(server)) == 11
    assert server.seen == [f"bytes={len(server.body)}-"]


@pytest.mark.parametrize("stale", [b"x" * 5000, b"x" * 10_000_000], ids=["shorter", "longer"])
def test_part_of_another_file_is_replaced(server, tmp_path, stale):
    target = kuairand._source().cached(server.url)
    target.parent.mkdir()
    target.with_name(target.name + ".part").write_bytes(stale)
    assert len(fetch(server)) == 11
    assert target.read_bytes() == server.body


def test_wrong_checksum_leaves_nothing(server, tmp_path):
    with pytest.raises(BadArchive, match=f"{server.md5}, expected {kuairand.KUAIRAND_MD5}"):
        load_kuairand(server.url, progress=False)
    assert cache_files(tmp_path) == []
    assert len(fetch(server)) == 11


@pytest.mark.parametrize("status", [403, 404, 500])
def test_refusals_by_the_server(server, tmp_path, status):
    server.status = status
    with pytest.raises(KuaiRandUnavailable, match="Three ways"):
        fetch(server)
    assert cache_files(tmp_path) == []


def test_closed_port(tmp_path):
    with pytest.raises(KuaiRandUnavailable, match="Could not download"):
        load_kuairand("http://127.0.0.1:9/KuaiRand-Pure.tar.gz", progress=False)


def test_cache_that_cannot_be_written(server, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(KuaiRandUnavailable, match="Could not write"):
        fetch(server, cache=tmp_path / "file" / "cache")


# ------------------------------------------------------------------------------------------------ split by date


def days(*stamps: str) -> pd.DataFrame:
    return pd.DataFrame({"date": pd.to_datetime(list(stamps)), "row": range(len(stamps))})


FIVE = days("2022-05-02", "2022-04-29", "2022-05-01", "2022-04-30", "2022-05-02", "2022-04-28")


def test_split_takes_the_last_two_days_by_default():
    parts = split_by_date(FIVE)
    assert {name: part["row"].tolist() for name, part in parts.items()} == {
        "train": [1, 3, 5],
        "valid": [2],
        "test": [0, 4],
    }


@pytest.mark.parametrize(
    "form", [lambda d: d, lambda d: int(d.replace("-", "")), pd.Timestamp, lambda d: pd.Timestamp(d).date()]
)
def test_split_at_given_days(form):
    parts = split_by_date(FIVE, form("2022-04-29"), form("2022-05-01"))
    assert {name: part["row"].tolist() for name, part in parts.items()} == {
        "train": [5],
        "valid": [1, 3],
        "test": [0, 2, 4],
    }


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((20220502, 20220501), "must lie before"),
        ((20220401, 20220501), "No rows for train"),
        ((20220501, 20220601), "No rows for test"),
        ((None, 20220401), "start only on"),
        (("soon", None), "is no day"),
    ],
)
def test_split_refuses_days_that_leave_a_part_empty(arguments, words):
    with pytest.raises(ValueError, match=words):
        split_by_date(FIVE, *arguments)


def test_split_needs_three_days_and_the_column():
    with pytest.raises(ValueError, match="2 day"):
        split_by_date(days("2022-05-01", "2022-05-02"))
    with pytest.raises(KeyError, match="date"):
        split_by_date(FIVE[["row"]])


# ------------------------------------------------------------------------------------------------ the real rows


REAL = os.environ.get("MTL_KUAIRAND")


@pytest.fixture(scope="session")
def real() -> pd.DataFrame:
    """The publisher's rows: the archive MTL_KUAIRAND names, else a copy beside the checkout, else skip."""
    beside = Path(__file__).parents[2].glob("*/data/KuaiRand-Pure*.tar.gz")
    path = Path(REAL).expanduser() if REAL else next(beside, None)
    if path is None or not path.is_file():
        pytest.skip("no KuaiRand archive: set MTL_KUAIRAND to a copy to run this")
    return load_kuairand(path)


def test_real_rows_look_as_published(real):
    assert len(real) > 50_000
    assert not real[["user_id", "video_id", "timestamp", *KUAIRAND_OUTCOMES]].isna().any().any()
    rates = real[["click", "long_view", "like"]].mean()
    assert rates["click"] == pytest.approx(0.44, abs=0.03)
    assert rates["long_view"] == pytest.approx(0.31, abs=0.03)
    assert rates["like"] == pytest.approx(0.018, abs=0.005)
    assert real["date"].between("2022-04-22", "2022-05-08").all()
    assert real.memory_usage(deep=True).sum() / len(real) < 120  # bytes a row


def test_real_rows_split_by_day_without_leaks(real):
    parts = split_by_date(real)
    assert parts["train"]["date"].max() < parts["valid"]["date"].min() <= parts["valid"]["date"].max()
    assert parts["valid"]["date"].max() < parts["test"]["date"].min()
    assert sum(map(len, parts.values())) == len(real)
    features = [*KUAIRAND_WIDE_NUMERIC, *KUAIRAND_WIDE_CATEGORICAL]
    report = check_leaks(parts, features, KUAIRAND_TASKS, time="date")
    assert report["passed"].all(), report.to_string()


def test_real_rows_play_time_would_leak(real):
    """Why it is no feature: it nearly decides long_view."""
    report = check_leaks(split_by_date(real), ["play_time_ms"], KUAIRAND_TASKS, time="date")
    assert not report["passed"].all()
