"""Two public data sets, fetched once from their publishers, checked, and read as downloaded. No row is held here.

Used in notebooks 02 and 07. KuaiRand-Pure, real impressions of a video app: Gao et al., *KuaiRand: An Unbiased
Sequential Recommendation Dataset with Randomly Exposed Videos*, CIKM 2022, https://doi.org/10.1145/3511808.3557624;
terms at https://kuairand.com. Census-Income (KDD), on which the papers on MMoE and PLE compare models: Lane and Kohavi,
UCI Machine Learning Repository, https://doi.org/10.24432/C5N30T (CC BY 4.0).
"""

from __future__ import annotations

import gzip
import hashlib
import http.client
import os
import tarfile
import urllib.request
import zlib
from pathlib import Path

import numpy as np
import pandas as pd

from mtl_helpers.data.features import split_at
from mtl_helpers.data.tables import Task
from mtl_helpers.files import write_atomically

# fmt: off
__all__ = [
    "CENSUS_CATEGORICAL", "CENSUS_NUMERIC", "CENSUS_TASKS", "KUAIRAND_CATEGORICAL", "KUAIRAND_NUMERIC",
    "KUAIRAND_OUTCOMES", "KUAIRAND_TASKS", "KUAIRAND_WIDE_CATEGORICAL", "KUAIRAND_WIDE_NUMERIC", "census_available",
    "fetch", "kuairand_available", "load_census", "load_kuairand", "split_by_date",
]

KUAIRAND_TASKS = (Task("click"), Task("long_view"), Task("like"))
"""Did the user open the video, watch most of it, like it? Roughly 44 %, 31 % and 2 % of the rows are positive."""
KUAIRAND_NUMERIC = ("log_duration", "aspect_ratio", "log_follows", "log_fans", "log_friends", "log_register_days")
_USER_CODES = ("is_live_streamer", "is_video_author", *(f"onehot_feat{i}" for i in (0, 1, 2, 6, 7, 8, 9, 10)))
KUAIRAND_CATEGORICAL = ("user_id", "video_id", "tab", "hour", "user_active_degree", *_USER_CODES,
                        "video_type", "upload_type", "music_type", "tag")
KUAIRAND_WIDE_NUMERIC = (*KUAIRAND_NUMERIC, "log_video_age_days")
KUAIRAND_WIDE_CATEGORICAL = (*KUAIRAND_CATEGORICAL, "author_id")
"""The features of user and video with two more: how many days before it went online, and who made it."""
_FLAGS = ("click", "like", "follow", "comment", "forward", "hate")  # the log writes them as is_click …
KUAIRAND_OUTCOMES = (*_FLAGS, "long_view", "play_time_ms", "log_play", "finished")
"""What happened after the video was shown: labels or outcomes, never features. ``log_play`` is log(1 + seconds) it ran,
cut off at the video's length, where it is ``finished``: what the user would have watched of a longer one is unknown."""

CENSUS_TASKS = (Task("income"), Task("never_married"))
"""Income above 50,000 dollars (6 % of the rows), never married (43 %)."""
_DOLLARS = ("wage_per_hour", "capital_gains", "capital_losses", "dividends_from_stocks")
CENSUS_NUMERIC = ("age", *_DOLLARS, "num_persons_worked_for_employer", "weeks_worked_in_year")
_CENSUS = """
age class_of_worker detailed_industry_recode detailed_occupation_recode education wage_per_hour
enroll_in_edu_inst_last_wk marital_stat major_industry_code major_occupation_code race hispanic_origin sex
member_of_a_labor_union reason_for_unemployment full_or_part_time_employment_stat capital_gains capital_losses
dividends_from_stocks tax_filer_stat region_of_previous_residence state_of_previous_residence
detailed_household_and_family_stat detailed_household_summary_in_household instance_weight migration_code_change_in_msa
migration_code_change_in_reg migration_code_move_within_reg live_in_this_house_1_year_ago migration_prev_res_in_sunbelt
num_persons_worked_for_employer family_members_under_18 country_of_birth_father country_of_birth_mother
country_of_birth_self citizenship own_business_or_self_employed fill_inc_questionnaire_for_veterans_admin
veterans_benefits weeks_worked_in_year year income
""".split()  # as the publisher's census-income.names lists them
_NO_FEATURES = ("marital_stat", "income", "instance_weight")  # two labels, and a weight, which no classifier may use
CENSUS_CATEGORICAL = tuple(name for name in _CENSUS if name not in CENSUS_NUMERIC + _NO_FEATURES)

_KUAIRAND = "https://zenodo.org/records/10439422/files/KuaiRand-Pure.tar.gz", "0820331067a3784d9691136f772b35a7"
_UCI = "https://archive.ics.uci.edu/ml/machine-learning-databases/census-income-mld/census-income."
_CENSUS_FILES = (f"{_UCI}data.gz", None), (f"{_UCI}test.gz", "a8c39dce642efb4d17f28ebe74a3c271")  # address, MD5
_KINDS = {
    "log_standard_4_22_to_5_08_pure.csv": {
        "int8": f"tab long_view is_{' is_'.join(_FLAGS)}", "int16": "hourmin", "int64": "time_ms",
        "int32": "user_id video_id date play_time_ms duration_ms"},
    "user_features_pure.csv": {
        "int32": "user_id follow_user_num fans_user_num friend_user_num register_days",
        "category": "user_active_degree", "float64": " ".join(_USER_CODES)},
    "video_features_basic_pure.csv": {
        "int32": "video_id", "float64": "author_id music_type", "float32": "server_width server_height",
        "category": "video_type upload_type tag", "str": "upload_dt"},
}
_DTYPES = {file: {name: kind for kind in kinds for name in kinds[kind].split()} for file, kinds in _KINDS.items()}
_LOG, _RANDOM = "log_standard_4_22_to_5_08_pure.csv", "log_random_4_22_to_5_08_pure.csv"
# fmt: on
_DAMAGES = (tarfile.TarError, EOFError, gzip.BadGzipFile, zlib.error, KeyError, ValueError)


def fetch(url: str, md5: str | None = None, progress: bool = True) -> Path:
    """Download a file once into the cache folder (``MTL_CACHE``, else ``mtl_helpers`` in the platform's) and return its
    path; what lies there was checked when it came. Raises OSError without a network or with another checksum than
    ``md5`` (hex); it says how to go on by hand."""
    from tqdm.auto import tqdm

    if (path := _cached(url)).is_file():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        digest, agent = hashlib.md5(usedforsecurity=False), {"User-Agent": "mtl_helpers"}
        request = urllib.request.Request(url, headers=agent)  # some servers refuse urllib's own agent
        with urllib.request.urlopen(request, timeout=30) as reply, write_atomically(path) as file:
            total = int(reply.headers.get("Content-Length") or 0) or None
            with tqdm(total=total, unit="B", unit_scale=True, desc=path.name, disable=not progress) as bar:
                while block := reply.read(1 << 16):
                    digest.update(block)
                    bar.update(file.write(block))
            if file.tell() < (total or 0) or md5 not in (None, digest.hexdigest()):
                raise OSError(f"{file.tell():,} bytes came that are not the whole published file")
    except (OSError, http.client.HTTPException) as error:
        raise OSError(f"Could not fetch {url} ({error}): try again, or save it by hand as {path}.") from error
    return path


def _cached(url: str) -> Path:
    from platformdirs import user_cache_path

    return Path(os.environ.get("MTL_CACHE") or user_cache_path("mtl_helpers", False)) / url.rsplit("/", 1)[-1]


def kuairand_available() -> Path | None:
    """The archive that :func:`load_kuairand` would read without touching the network, or None if there is none."""
    path = Path(os.environ.get("MTL_KUAIRAND") or _cached(_KUAIRAND[0])).expanduser()
    return path if path.is_file() else None


def load_kuairand(
    path: str | Path | None = None, progress: bool = True, random: bool = False
) -> pd.DataFrame | None:
    """Read KuaiRand-Pure: one row per distinct impression of the standard log of 22 April to 8 May 2022, in its order;
    with ``random``, of the videos shown at random in those days instead (None if the archive has no such log).

    ``path`` names the publisher's ``KuaiRand-Pure.tar.gz`` as downloaded, or some of its rows in the same layout; by
    default what the environment variable ``MTL_KUAIRAND`` names, else the publisher's, by :func:`fetch`. Returns

    - ``user_id``, ``video_id``; ``date`` and ``hour`` as the publisher logged them (they may differ from the moment by
      an hour or two); ``timestamp``, the moment in China Standard Time;
    - the features :data:`KUAIRAND_WIDE_NUMERIC` and :data:`KUAIRAND_WIDE_CATEGORICAL`. Counts, the duration in seconds
      and the age in days come as ``log(1 + x)``. A missing number or text is NaN, a missing code or author −1;
    - the outcomes :data:`KUAIRAND_OUTCOMES`, among them the labels; ``play_time_ms`` decides ``long_view``.

    Rows that repeat another in every column are dropped before any split can part the two copies. The archive's
    month-wide video statistics are left out: they count the test days as well. Raises OSError when the file is not
    there and cannot be fetched, ValueError when it is damaged or another.
    """
    path = Path(path or os.environ.get("MTL_KUAIRAND") or fetch(*_KUAIRAND, progress)).expanduser()
    log, *others = (_RANDOM if random else _LOG), *list(_DTYPES)[1:]
    tables = {}
    try:
        with tarfile.open(path) as archive:  # read where it lies: nothing is unpacked to disk
            for member in archive:
                if (name := member.name.rsplit("/", 1)[-1]) in (log, *others):
                    # of the log all columns: they tell a repeated row from a similar one
                    kinds = _DTYPES[_LOG if name == log else name]
                    wanted = None if name == log else list(kinds)
                    table = pd.read_csv(archive.extractfile(member), dtype=kinds, usecols=wanted)
                    tables[name] = table.drop_duplicates(ignore_index=True)[list(kinds)]
        if random and log not in tables:
            return None
        return _assemble(*(tables[name] for name in (log, *others)))
    except _DAMAGES as error:
        raise ValueError(f"{path} is damaged, or is not {_KUAIRAND[0]} as published: {error}.") from error


def _assemble(log: pd.DataFrame, users: pd.DataFrame, videos: pd.DataFrame) -> pd.DataFrame:
    """Join the three tables and derive the features. The log's rows and their order are kept."""
    keys = (users, "user_id"), (videos, "video_id")
    users, videos = (table.set_index(key).reindex(log[key]).reset_index(drop=True) for table, key in keys)
    users = users.replace({"is_live_streamer": {-124: -1}})  # how the publisher writes "not known"
    sides = videos[["server_width", "server_height"]].where(lambda pixels: pixels > 0)
    date = pd.to_datetime(log["date"].astype(str), format="%Y%m%d").astype("datetime64[ms]")
    played, length = log["play_time_ms"], log["duration_ms"]
    uploaded = pd.to_datetime(videos["upload_dt"].astype(object), errors="coerce")
    finished = (played >= length) & (length > 0)
    counts = ("follow_user_num", "fans_user_num", "friend_user_num", "register_days")
    logs = dict(zip(KUAIRAND_NUMERIC[2:], (users[name] for name in counts), strict=True))
    logs |= {"log_duration": length / 1000, "log_play": played.where(~finished, length) / 1000}
    logs["log_video_age_days"] = (date - uploaded).dt.days.clip(lower=0)
    frame = log[
        ["user_id", "video_id", "tab"]
    ].assign(
        date=date,
        hour=(log["hourmin"] // 100).astype("int8"),
        timestamp=(log["time_ms"] + 8 * 3_600_000).astype("datetime64[ms]"),  # China Standard Time, UTC+8
        aspect_ratio=sides["server_width"] / sides["server_height"],
        finished=finished,
        user_active_degree=users["user_active_degree"],
        music_type=videos["music_type"].fillna(-1).astype("int16"),
        author_id=videos["author_id"].fillna(-1).astype("int32"),
        **users[[*_USER_CODES]].fillna(-1).astype("int16"),
        **videos[["video_type", "upload_type", "tag"]],
        **{name: log[f"is_{name}" if name in _FLAGS else name] for name in KUAIRAND_OUTCOMES[:8]},
    )
    return frame.assign(**np.log1p(pd.DataFrame(logs).astype("float32")))


def split_by_date(
    frame: pd.DataFrame, valid_day: str | None = None, test_day: str | None = None
) -> dict[str, pd.DataFrame]:
    """Split by whole days of ``date`` into ``{"train", "valid", "test"}``. ``valid_day`` and ``test_day`` are the first
    days of their parts, as ``"2022-05-01"``; by default the second last and the last of the frame."""
    second_last, last = frame["date"].drop_duplicates().sort_values().tail(2)
    return split_at(
        frame, frame["date"], pd.Timestamp(valid_day or second_last), pd.Timestamp(test_day or last)
    )


def census_available() -> list[Path]:
    """The files that :func:`load_census` would read without touching the network; empty if there are none."""
    named = os.environ.get("MTL_CENSUS")
    paths = [Path(named).expanduser()] if named else [_cached(url) for url, _ in _CENSUS_FILES]
    return paths if all(path.is_file() for path in paths) else []


def load_census(path: str | Path | None = None, progress: bool = True) -> pd.DataFrame:
    """Read Census-Income: one row a person.

    ``path`` names one official file, ``census-income.data`` or ``.test``, as it is or as ``.gz``; by default what the
    environment variable ``MTL_CENSUS`` names, else both, by :func:`fetch`. Returns the labels ``income`` and
    ``never_married`` (0 or 1), :data:`CENSUS_NUMERIC` (amounts of money as ``log(1 + dollars)``) and
    :data:`CENSUS_CATEGORICAL` (missing values NaN), and ``file``, ``"data"`` or ``"test"``, which is no feature. Raises
    OSError when a file is not there and cannot be fetched, ValueError when it is damaged or another.
    """
    named = path or os.environ.get("MTL_CENSUS")
    paths = [Path(named)] if named else [fetch(url, md5, progress) for url, md5 in _CENSUS_FILES]
    texts, tables = (*CENSUS_CATEGORICAL, "marital_stat", "income"), []
    dtypes = dict.fromkeys(CENSUS_NUMERIC, "float32") | dict.fromkeys(texts, "category")
    layout = {"header": None, "names": _CENSUS, "index_col": False, "skipinitialspace": True}
    missing = {"na_values": "?", "keep_default_na": False}  # hispanic_origin has an answer "NA"
    for path in paths:
        try:
            table = pd.read_csv(path.expanduser(), dtype=dtypes, usecols=list(dtypes), **layout, **missing)
            table["income"] = table["income"].astype(object).map({"- 50000.": 0, "50000+.": 1}).astype("int8")
            if table.empty:
                raise ValueError("it has no row")
        except _DAMAGES as error:
            raise ValueError(f"{path} is damaged, or is not Census-Income as published: {error}.") from error
        table["never_married"] = (table.pop("marital_stat") == "Never married").astype("int8")
        table[list(_DOLLARS)] = np.log1p(table[list(_DOLLARS)])
        # as plain text, so that two files' codes can be joined
        tables.append(table.astype(dict.fromkeys(CENSUS_CATEGORICAL, object)))
        tables[-1]["file"] = "data" if ".data" in path.name else "test"
    return pd.concat(tables, ignore_index=True).astype(dict.fromkeys(CENSUS_CATEGORICAL, "category"))
