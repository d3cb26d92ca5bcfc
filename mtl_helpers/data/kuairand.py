"""KuaiRand-Pure: real impressions of a video app, read from the publisher's archive as downloaded.

Taught in notebook 02, where the shop's findings are tried on real clicks, long views and likes, and in notebook 07.

The data are by Gao et al., *KuaiRand: An Unbiased Sequential Recommendation Dataset with Randomly Exposed Videos*,
CIKM 2022, https://doi.org/10.1145/3511808.3557624. The publisher's terms (https://kuairand.com) apply; this package
holds none of the rows. :func:`load_kuairand` fetches the archive once into a cache folder, checks it against the
publisher's checksum, and reads three tables straight out of it without unpacking anything to disk.
"""

from __future__ import annotations

import datetime as dt
import gzip
import io
import os
import re
import tarfile
import zlib
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple

import numpy as np
import pandas as pd

from mtl_helpers.data.download import Source
from mtl_helpers.data.tables import Task

__all__ = [
    "KUAIRAND_CATEGORICAL",
    "KUAIRAND_MD5",
    "KUAIRAND_NUMERIC",
    "KUAIRAND_OUTCOMES",
    "KUAIRAND_PLAY_TASK",
    "KUAIRAND_TASKS",
    "KUAIRAND_URL",
    "KUAIRAND_WIDE_CATEGORICAL",
    "KUAIRAND_WIDE_NUMERIC",
    "BadArchive",
    "KuaiRandUnavailable",
    "kuairand_available",
    "load_kuairand",
    "split_by_date",
]

KUAIRAND_URL = "https://zenodo.org/records/10439422/files/KuaiRand-Pure.tar.gz"
KUAIRAND_MD5 = "0820331067a3784d9691136f772b35a7"  # as the publisher states it

KUAIRAND_TASKS = (Task("click"), Task("long_view"), Task("like"))
"""Did the user open the video, watch most of it, like it? Roughly 44 %, 31 % and 2 % of the rows are positive."""

KUAIRAND_PLAY_TASK = Task("play_time", "regression", label="log_play")
"""For how long did it run? log(1 + seconds), cut off at the video's length.

A video that ran to its end says only "at least this long": what the user would have watched of a longer one is
*censored*. ``finished`` marks those rows, about one in seven.
"""

KUAIRAND_NUMERIC = (
    "log_duration",
    "aspect_ratio",
    "log_follows",
    "log_fans",
    "log_friends",
    "log_register_days",
)
KUAIRAND_CATEGORICAL = (
    "user_id",
    "video_id",
    "tab",
    "hour",
    "user_active_degree",
    "is_live_streamer",
    "is_video_author",
    "onehot_feat0",
    "onehot_feat1",
    "onehot_feat2",
    "onehot_feat6",
    "onehot_feat7",
    "onehot_feat8",
    "onehot_feat9",
    "onehot_feat10",
    "video_type",
    "upload_type",
    "music_type",
    "tag",
)
KUAIRAND_WIDE_NUMERIC = (*KUAIRAND_NUMERIC, "log_video_age_days")
KUAIRAND_WIDE_CATEGORICAL = (*KUAIRAND_CATEGORICAL, "author_id")
"""The features of user and video with two more: who made the video, and how many days before it went online."""

KUAIRAND_OUTCOMES = (
    "click",
    "long_view",
    "like",
    "follow",
    "comment",
    "forward",
    "hate",
    "play_time_ms",
    "log_play",
    "finished",
)
"""What happened after the video was shown: labels or outcomes, never features."""


class KuaiRandUnavailable(FileNotFoundError):
    """The archive is not here and could not be fetched. The message names the ways to get it."""


class BadArchive(ValueError):
    """The archive is damaged, hostile, or not laid out as the publisher's. The message names file, column and row."""


# --------------------------------------------------------------------------------------------------- the tables


class _Number(NamedTuple):
    """A column that must hold whole numbers from ``low`` to ``high``; ``empty`` stands in for a missing one."""

    dtype: str
    low: float
    high: float
    empty: int | None = None
    whole: bool = True


_FLAG = _Number("int8", 0, 1)
_ID = _Number("int32", 0, 2**31 - 1)
_COUNT = _Number("int32", 0, 2**31 - 1)
_CODE = _Number("int16", -32768, 32767, empty=-1)
_SIZE = _Number("float32", 0, 1e6, empty=0, whole=False)
_TEXT = None

_FOLDER = "KuaiRand-Pure/data/"
_LOG = _FOLDER + "log_standard_4_22_to_5_08_pure.csv"
_USERS = _FOLDER + "user_features_pure.csv"
_VIDEOS = _FOLDER + "video_features_basic_pure.csv"

_TABLES: dict[str, dict[str, _Number | None]] = {
    _LOG: {
        "user_id": _ID,
        "video_id": _ID,
        "date": _Number("int32", 19700101, 29991231),
        "hourmin": _Number("int16", 0, 2359),
        "time_ms": _Number("int64", 0, 4_102_444_800_000),
        "is_click": _FLAG,
        "is_like": _FLAG,
        "is_follow": _FLAG,
        "is_comment": _FLAG,
        "is_forward": _FLAG,
        "is_hate": _FLAG,
        "long_view": _FLAG,
        "play_time_ms": _COUNT,
        "duration_ms": _COUNT,
        "tab": _Number("int8", 0, 127),
    },
    _USERS: {
        "user_id": _ID,
        "user_active_degree": _TEXT,
        "is_live_streamer": _CODE,
        "is_video_author": _CODE,
        "follow_user_num": _COUNT,
        "fans_user_num": _COUNT,
        "friend_user_num": _COUNT,
        "register_days": _COUNT,
        **{name: _CODE for name in KUAIRAND_CATEGORICAL if name.startswith("onehot_feat")},
    },
    _VIDEOS: {
        "video_id": _ID,
        "author_id": _Number("int32", 0, 2**31 - 1, empty=-1),
        "video_type": _TEXT,
        "upload_dt": _TEXT,
        "upload_type": _TEXT,
        "server_width": _SIZE,
        "server_height": _SIZE,
        "music_type": _CODE,
        "tag": _TEXT,
    },
}

_CHUNK_ROWS = 200_000
_MAX_UNPACKED = 2 * 2**30  # bytes; the publisher's archive unpacks to a small part of this
_AGAIN = "Download it again, or pass the path of a good copy."
_CHINA_MS = 8 * 3_600_000  # the log was kept in China Standard Time, UTC+8
_UNKNOWN_STREAMER = -124  # how the publisher writes "not known" in is_live_streamer


# --------------------------------------------------------------------------------------------------- public


def load_kuairand(
    path_or_url: str | os.PathLike | None = None,
    cache: str | os.PathLike | None = None,
    progress: bool = True,
    checksum: str | None = "auto",
) -> pd.DataFrame:
    """Read KuaiRand-Pure: one row per distinct impression of the standard log of 22 April to 8 May 2022.

    Parameters
    ----------
    path_or_url : the publisher's ``KuaiRand-Pure.tar.gz`` as downloaded, or an address to fetch it from. ``None`` takes
        the path in the environment variable ``MTL_KUAIRAND``, else the copy in the cache folder, else the publisher's
        address. A download goes to a ``.part`` file, continues where an earlier one stopped if the server allows it,
        and gets its final name only once it is complete and its checksum is right.
    cache : folder for the download; default ``MTL_CACHE``, else ``mtl_helpers`` in the platform's cache folder.
        Git never sees it: it gets a ``.gitignore`` of its own.
    progress : show a bar while downloading.
    checksum : md5 as hex. ``"auto"`` expects the publisher's for what is downloaded and checks nothing on a local path,
        since a subset of the rows in the same layout is welcome too and has another checksum. Give the digits to check
        a local file, or ``None`` to check nothing.

    Returns
    -------
    DataFrame, in the order of the log, with

    - ``user_id``, ``video_id``; ``date`` and ``hour`` as the publisher logged them (they may differ from the moment by
      an hour or two); ``timestamp``, the moment in China Standard Time;
    - the features :data:`KUAIRAND_WIDE_NUMERIC` and :data:`KUAIRAND_WIDE_CATEGORICAL`, which contain
      :data:`KUAIRAND_NUMERIC` and :data:`KUAIRAND_CATEGORICAL`. Counts, the duration in seconds and the age in days
      come as ``log(1 + x)``. A missing number is NaN, a missing code or author −1, a missing text NaN;
    - the outcomes :data:`KUAIRAND_OUTCOMES`, among them the labels of :data:`KUAIRAND_TASKS` and of
      :data:`KUAIRAND_PLAY_TASK`. ``play_time_ms`` is known only after the fact: it decides ``long_view`` and is no
      feature.

    Rows of the log that repeat another in every column are dropped here, before any split can put the two copies in
    different parts. The month-wide video statistics of the archive are left out: they count the test days as well.

    Raises
    ------
    KuaiRandUnavailable : the file is not there, or could not be downloaded.
    BadArchive : the file is damaged, or not what the publisher's file looks like.
    """
    source = _source()
    path, fetched = source.locate(path_or_url, cache, progress, checksum)
    if not fetched and checksum not in (None, "auto"):
        source.verify(path, checksum)
    return _assemble(_read_archive(path))


def kuairand_available(cache: str | os.PathLike | None = None) -> Path | None:
    """The archive that ``load_kuairand()`` would read without touching the network, or None if there is none."""
    return _source().available(cache)


def split_by_date(
    frame: pd.DataFrame,
    valid_day: str | int | dt.date | None = None,
    test_day: str | int | dt.date | None = None,
    date: str = "date",
) -> dict[str, pd.DataFrame]:
    """Split by whole days: train on the earlier days, validate on the next, test on the latest.

    Parameters
    ----------
    frame : has the days in the column ``date``.
    valid_day, test_day : first day of validation and of test, as ``20220501``, ``"2022-05-01"`` or a date; default the
        second last and the last day of the frame. Validation ends the day before ``test_day``; test goes to the end.

    Returns ``{"train", "valid", "test"}``. Raises ValueError if a part would be empty.
    """
    if date not in frame:
        raise KeyError(
            f"split_by_date needs a column {date!r}; the table has {', '.join(map(str, frame.columns))}."
        )
    days = pd.DatetimeIndex(sorted(frame[date].unique()))
    if len(days) < 3:
        raise ValueError(
            f"The rows span {len(days)} day(s): expected 3 or more, for train, validation and test."
        )
    test = _day(test_day) if test_day is not None else days[-1]
    before = days[days < test]
    if valid_day is None and not len(before):
        raise ValueError(f"test_day is {test:%Y-%m-%d}, but the rows start only on {days[0]:%Y-%m-%d}.")
    valid = _day(valid_day) if valid_day is not None else before[-1]
    if valid >= test:
        raise ValueError(f"valid_day {valid:%Y-%m-%d} must lie before test_day {test:%Y-%m-%d}.")
    when = frame[date]
    parts = {
        "train": frame[when < valid],
        "valid": frame[(when >= valid) & (when < test)],
        "test": frame[when >= test],
    }
    empty = [name for name, part in parts.items() if part.empty]
    if empty:
        raise ValueError(
            f"No rows for {' and '.join(empty)} with valid_day {valid:%Y-%m-%d} and test_day {test:%Y-%m-%d}: "
            f"the rows go from {days[0]:%Y-%m-%d} to {days[-1]:%Y-%m-%d}."
        )
    return parts


def _day(day: str | int | dt.date) -> pd.Timestamp:
    try:
        return pd.Timestamp(str(day)).normalize()
    except ValueError:
        raise ValueError(f"{day!r} is no day: write it as 20220501 or '2022-05-01'.") from None


# --------------------------------------------------------------------------------------------------- finding the file


def _source() -> Source:
    return Source(
        title="KuaiRand-Pure",
        url=KUAIRAND_URL,
        file="KuaiRand-Pure.tar.gz",
        md5=KUAIRAND_MD5,
        variable="MTL_KUAIRAND",
        call="load_kuairand",
        missing=KuaiRandUnavailable,
        damaged=BadArchive,
    )


# --------------------------------------------------------------------------------------------------- reading


class _Unpacked:
    """The archive's bytes after decompression, in one pass; turns every way they can fail into a BadArchive."""

    def __init__(self, path: Path, file: IO[bytes]) -> None:
        self.path, self.gzip, self.count = path, gzip.GzipFile(fileobj=file), 0
        self.error: BadArchive | None = None

    def read(self, size: int = -1) -> bytes:
        try:
            block = self.gzip.read(size)
        except EOFError:
            self._fail(f"{self.path} ends in the middle: the download is incomplete. {_AGAIN}")
        except (OSError, zlib.error) as error:
            self._fail(f"{self.path} is damaged, or is not a .tar.gz archive ({error}). {_AGAIN}")
        self.count += len(block)
        if self.count > _MAX_UNPACKED:
            self._fail(
                f"{self.path} unpacks to more than {_MAX_UNPACKED / 2**30:.3g} GiB, which KuaiRand-Pure does not."
            )
        return block

    def _fail(self, message: str) -> None:
        self.error = BadArchive(message)
        raise self.error from None


def _read_archive(path: Path) -> dict[str, pd.DataFrame]:
    """Read the three tables out of the archive in one pass. Nothing is written to disk."""
    tables: dict[str, pd.DataFrame] = {}
    others: list[str] = []
    with path.open("rb") as file:
        unpacked = _Unpacked(path, file)
        try:
            with tarfile.open(fileobj=unpacked, mode="r|") as archive:
                for member in archive:
                    _refuse_hostile(path, member)
                    if member.name not in _TABLES:
                        others.append(member.name)
                    elif member.name in tables:
                        raise BadArchive(
                            f"{path} holds {member.name} twice, so it is unclear which counts. {_AGAIN}"
                        )
                    elif not member.isreg():
                        raise BadArchive(f"{path}: {member.name} is a folder, expected a file. {_AGAIN}")
                    else:
                        tables[member.name] = _read_table(
                            member.name, io.BufferedReader(_Forward(archive.extractfile(member)), 1 << 16)
                        )
            while unpacked.read(1 << 20):  # to the end, where gzip compares its own checksum
                pass
        except BadArchive:
            raise
        except Exception as error:
            # a failed read can reach us in the clothes of the tar or the CSV reader
            if unpacked.error:
                raise unpacked.error from None
            if isinstance(error, (tarfile.TarError, UnicodeDecodeError, ValueError, EOFError)):
                raise BadArchive(f"{path} cannot be read as a tar archive ({error}). {_AGAIN}") from error
            raise
    missing = [name for name in _TABLES if name not in tables]
    if missing:
        seen = (
            f"It holds {', '.join(others[:8])}{' …' if len(others) > 8 else ''}."
            if others
            else "It is empty otherwise."
        )
        raise BadArchive(
            f"{path} lacks {' and '.join(missing)}. {seen} Expected the publisher's file as downloaded "
            f"from {KUAIRAND_URL}."
        )
    return tables


class _Forward(io.RawIOBase):
    """A member read once from front to back; says that it cannot seek, which a streamed tar's own file cannot say."""

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__()
        self.file = file

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:
        block = self.file.read(len(buffer))
        buffer[: len(block)] = block
        return len(block)


def _refuse_hostile(path: Path, member: tarfile.TarInfo) -> None:
    name = PurePosixPath(member.name.replace("\\", "/"))
    if name.is_absolute() or ".." in name.parts or re.match(r"[A-Za-z]:", member.name) or "\0" in member.name:
        fault = "a path that leads outside the archive"
    elif not (member.isreg() or member.isdir()) or member.issparse():
        fault = "a link, device or other entry that is no plain file"
    else:
        return
    raise BadArchive(
        f"{path} holds {member.name!r}, {fault}: the publisher's archive has none, so it is not read. {_AGAIN}"
    )


def _read_table(name: str, file: IO[bytes]) -> pd.DataFrame:
    """Read one CSV in chunks, each checked and narrowed to its final types before the next is read."""
    columns = _TABLES[name]
    text = {column: str for column, rule in columns.items() if rule is _TEXT}
    # only the log's other columns matter: they tell a repeated row from a similar one
    keep = None if name == _LOG else lambda column: column in columns or column.split(".")[0] in columns
    chunks = []
    try:
        with pd.read_csv(file, chunksize=_CHUNK_ROWS, dtype=text, usecols=keep, encoding="utf-8") as reader:
            for chunk in reader:
                if not chunks:
                    _check_header(name, chunk)
                chunks.append(_narrow(name, chunk))
    except pd.errors.EmptyDataError:
        raise BadArchive(f"{name} is empty, expected a header and rows. {_AGAIN}") from None
    except pd.errors.ParserError as error:
        raise BadArchive(f"{name} is no well-formed CSV ({str(error).strip()}). {_AGAIN}") from error
    except UnicodeDecodeError as error:
        raise BadArchive(f"{name} is not UTF-8 text ({error}). {_AGAIN}") from error
    if not sum(map(len, chunks)):
        raise BadArchive(f"{name} has a header but no rows. {_AGAIN}")
    table = pd.concat(chunks, ignore_index=True).drop_duplicates(ignore_index=True)
    for column in text:
        table[column] = table[column].astype("category")
    if name == _LOG:
        return table[list(columns)]
    key = next(iter(columns))
    doubled = table[key].duplicated()
    if doubled.any():
        raise BadArchive(
            f"{name} describes {key} {table[key][doubled].iloc[0]} twice, differently: expected one row each. {_AGAIN}"
        )
    return table.set_index(key)


def _check_header(name: str, chunk: pd.DataFrame) -> None:
    missing = [column for column in _TABLES[name] if column not in chunk]
    if missing:
        found = ", ".join(map(str, chunk.columns[:40]))
        raise BadArchive(
            f"{name} lacks the column{'s' * (len(missing) > 1)} {', '.join(missing)}; it has {found}. Expected the "
            f"publisher's KuaiRand-Pure, not another version of KuaiRand. {_AGAIN}"
        )
    twice = [column for column in _TABLES[name] if f"{column}.1" in chunk]
    if twice:
        raise BadArchive(f"{name} has the column {twice[0]} twice, so it is unclear which counts. {_AGAIN}")


def _narrow(name: str, chunk: pd.DataFrame) -> pd.DataFrame:
    if not isinstance(chunk.index, pd.RangeIndex):
        raise BadArchive(f"{name} has more values in a row than columns in its header. {_AGAIN}")
    narrow = {}
    for column in chunk:
        rule = _TABLES[name].get(column)
        if rule is not None:
            narrow[column] = _check_numbers(name, chunk[column], rule)
        elif pd.api.types.is_integer_dtype(chunk[column].dtype):
            narrow[column] = pd.to_numeric(chunk[column], downcast="integer")
        else:
            narrow[column] = chunk[column]
    return pd.DataFrame(narrow)


def _check_numbers(name: str, values: pd.Series, rule: _Number) -> pd.Series:
    """Return the column in its final type, or name the first row that cannot be."""

    def refuse(bad: pd.Series, expected: str) -> None:
        where = bad.idxmax()
        value = values[where]
        shown = "nothing" if pd.isna(value) else repr(str(value))
        raise BadArchive(
            f"{name}, line {where + 2}, column {values.name}: found {shown}, expected {expected}. {_AGAIN}"
        )

    kind = "a whole number" if rule.whole else "a number"
    if pd.api.types.is_numeric_dtype(values.dtype) and not pd.api.types.is_bool_dtype(values.dtype):
        numbers = values
    else:
        numbers = pd.to_numeric(
            values.astype(object).where(values.isna(), values.astype(str)), errors="coerce"
        )
        if (bad := numbers.isna() & values.notna()).any():
            refuse(bad, kind)
    empty = numbers.isna()
    if empty.any() and rule.empty is None:
        refuse(empty, kind)
    numbers = numbers.fillna(rule.empty) if empty.any() else numbers
    if (bad := (numbers < rule.low) | (numbers > rule.high)).any():
        refuse(bad, f"{kind} from {rule.low:.12g} to {rule.high:.12g}")
    if rule.whole and numbers.dtype.kind == "f" and (bad := numbers % 1 != 0).any():
        refuse(bad, kind)
    return numbers.astype(rule.dtype)


# --------------------------------------------------------------------------------------------------- joining


def _assemble(tables: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Join log, users and videos, and derive the features. The log's rows and their order are kept."""
    log = tables[_LOG]
    users = tables[_USERS].reindex(log["user_id"].to_numpy())
    videos = tables[_VIDEOS].reindex(log["video_id"].to_numpy())
    users["is_live_streamer"] = users["is_live_streamer"].replace(_UNKNOWN_STREAMER, -1)
    height, width = (videos[side].where(videos[side] > 0) for side in ("server_height", "server_width"))
    date = _dates(log["date"])
    uploaded = pd.to_datetime(pd.Series(videos["upload_dt"].astype(object).to_numpy()), errors="coerce")
    age = (date.reset_index(drop=True) - uploaded).dt.days.clip(lower=0)
    played, length = log["play_time_ms"], log["duration_ms"]
    finished = (played >= length) & (length > 0)
    columns = {
        "user_id": log["user_id"],
        "video_id": log["video_id"],
        "date": date,
        "hour": (log["hourmin"] // 100).astype("int8"),
        "timestamp": (log["time_ms"] + _CHINA_MS).astype("datetime64[ms]"),
        "tab": log["tab"],
        "log_duration": _log1p(log["duration_ms"] / 1000),
        "aspect_ratio": (width / height).astype("float32"),
        "log_follows": _log1p(users["follow_user_num"]),
        "log_fans": _log1p(users["fans_user_num"]),
        "log_friends": _log1p(users["friend_user_num"]),
        "log_register_days": _log1p(users["register_days"]),
        "log_video_age_days": _log1p(age),
    }
    for name, table in ((_USERS, users), (_VIDEOS, videos)):
        for column in KUAIRAND_WIDE_CATEGORICAL:
            rule = _TABLES[name].get(column)
            if column in table and rule is not None:
                columns[column] = table[column].fillna(-1).astype(rule.dtype)  # -1: no such user or video
            elif column in table:
                columns[column] = table[column]
    columns["log_play"] = _log1p(played.where(~finished, length) / 1000)
    columns["finished"] = finished
    for column in KUAIRAND_OUTCOMES:
        if column not in columns:
            columns[column] = log[column if column in log else f"is_{column}"]
    # users and videos carry their own ids as index: only the order of the rows counts
    return pd.DataFrame({name: column.reset_index(drop=True) for name, column in columns.items()})


def _log1p(values: pd.Series) -> pd.Series:
    return np.log1p(values.astype("float32"))


def _dates(values: pd.Series) -> pd.Series:
    days = pd.to_datetime(values.astype(str), format="%Y%m%d", errors="coerce")
    if days.isna().any():
        wrong = values[days.isna()].iloc[0]
        raise BadArchive(
            f"{_LOG}, column date: {wrong} is no day of the calendar, expected one like 20220425. {_AGAIN}"
        )
    return days.astype("datetime64[ms]")
