"""From any table to a multi-task model: guess what each column is, say so, and let the reader overrule.

Taught in notebook 07. Five lines from a log to predictions::

    log = TabularLog.from_frame(frame, user="user_id", item="video_id", labels=["click", "like"], time="shown_at")
    print(log)                                     # what was guessed, column by column
    splits = log.split()                           # by time, by user, or at random
    model = SharedBottom(splits.schema, splits.tasks)
    fit(model, splits.train, splits.valid)

:meth:`TabularLog.from_file` reads a csv or parquet file first. Splitting and encoding are those of ``data``: categories
and scales are learned from the training rows alone.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn

from mtl_helpers.data.features import Splits, prepare, split_by_time, split_by_user
from mtl_helpers.data.tables import Task, check_tasks

__all__ = ["ColumnGuess", "LabelLeak", "TabularLog"]

KINDS = ("number", "category", "date", "text", "drop")
_ENOUGH = 0.95  # this share of a column's values must read as numbers or dates
_MOST_CLASSES = 50
_LEAK = 0.98
_LEAK_ROWS = 50_000  # looked at when searching for leaks
_YES, _NO = {"yes", "y", "true", "t"}, {"no", "n", "false", "f"}
_CODE_NAME = re.compile(
    r"(^|_|(?<=[a-z])(?=[A-Z]))(id|ids|code|zip|zipcode|postcode|type|category|class|group)$", re.IGNORECASE
)
_TIME_NAME = re.compile(r"time|date|(^|_)ts($|_)|_at$", re.IGNORECASE)
_DATE_TEXT = re.compile(r"^\s*\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}([ T].*)?$")


class LabelLeak(ValueError):
    """A feature gives a label away. The message names both and the ways out."""


@dataclass(frozen=True)
class ColumnGuess:
    """What was made of one column: ``used_as`` in a few words, ``why``, and the features that came of it."""

    column: str
    used_as: str
    why: str
    features: tuple[str, ...] = ()


@dataclass
class _Feature:
    """How one feature is computed from a column, on this table and on any later one."""

    name: str
    column: str
    make: str  # number, log, category, hour, weekday, days, length
    fills: float = 0.0


@dataclass
class TabularLog:
    """A table whose columns have been given a role. Made by :meth:`from_frame` or :meth:`from_file`.

    Attributes
    ----------
    tasks : one per label. numeric, categorical : names of the features.
    guesses : a :class:`ColumnGuess` per column, in the table's order; ``print(log)`` shows them.
    frame : the features, the labels as numbers, and the user, item and time columns.
    classes : ``{task: values}``, what class 0, 1, … of a multiclass task stands for.
    notes : what else the reader should know.
    """

    frame: pd.DataFrame
    tasks: tuple[Task, ...]
    numeric: tuple[str, ...]
    categorical: tuple[str, ...]
    guesses: list[ColumnGuess]
    classes: dict[str, list]
    user: str | None = None
    item: str | None = None
    time: str | None = None
    min_count: int = 2
    notes: list[str] = field(default_factory=list)
    _recipe: list[_Feature] = field(default_factory=list, repr=False)

    @classmethod
    def from_file(cls, path: str | os.PathLike, **options: object) -> TabularLog:
        """Read a ``.csv`` (also ``.gz``, ``.zip``, ``.tsv``) or ``.parquet`` file, then :meth:`from_frame`.

        Raises FileNotFoundError, or ValueError for another ending; ImportError when parquet has no reader installed.
        """
        path = Path(path).expanduser()
        if not path.is_file():
            raise FileNotFoundError(f"{path} is no file. Give the path of a csv or parquet file.")
        endings = [ending.lower() for ending in path.suffixes]
        if ".parquet" in endings:
            try:
                return cls.from_frame(pd.read_parquet(path), **options)
            except ImportError as error:
                raise ImportError(
                    "Reading parquet needs a package more: python -m pip install pyarrow. Or save the table as csv."
                ) from error
        if not {".csv", ".tsv", ".txt"} & set(endings):
            raise ValueError(
                f"{path.name} ends in {path.suffix or 'nothing'}: expected .csv, .tsv or .parquet."
            )
        separator = "\t" if ".tsv" in endings else ","
        try:
            frame = pd.read_csv(path, sep=separator, low_memory=False)
        except (pd.errors.EmptyDataError, pd.errors.ParserError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} cannot be read as a table: {error}.") from error
        return cls.from_frame(frame, **options)

    @classmethod
    def from_frame(
        cls,
        frame: pd.DataFrame,
        *,
        labels: str | Sequence[str] | Mapping[str, str | None],
        user: str | None = None,
        item: str | None = None,
        time: str | None = None,
        kinds: Mapping[str, str] | None = None,
        ignore: Sequence[str] = (),
        allow: Sequence[str] = (),
        min_count: int = 2,
    ) -> TabularLog:
        """Give every column a role.

        Parameters
        ----------
        frame : one row per event. It is not changed.
        labels : the columns to predict. A mapping settles a task's kind: ``{"rating": "regression", "click": None}``;
            None leaves it to the guess (0/1, yes/no and booleans are binary, text is multiclass, fractions are
            regression; whole numbers of few values could be two things, so they must be settled). Missing labels are
            masked in training.
        user, item : columns of ids; they become categories, however they are written.
        time : when the event happened, as a date, text or number. Of the moment itself, the features are the hour and
            the day of the week.
        kinds : overrules the guess: ``{column: "number" | "category" | "date" | "text" | "drop"}``.
        ignore : columns to leave out, such as outcomes known only afterwards.
        allow : features to keep although they nearly give a label away.
        min_count : a category seen less often in training shares the bucket "unknown", which is thereby trained.

        Raises
        ------
        LabelLeak : a feature gives a label away.
        TypeError, KeyError, ValueError : the table, a name or a label cannot be used; the message says which and why.
        """
        frame, given_kinds = _checked_frame(frame), dict(kinds or {})
        wanted = _wanted_labels(labels)
        for name, use in [
            *((name, "labels") for name in wanted),
            *(
                (name, use)
                for name, use in ((user, "user"), (item, "item"), (time, "time"))
                if name is not None
            ),
            *((name, "kinds") for name in given_kinds),
            *((name, "ignore") for name in ignore),
            *((name, "allow") for name in allow),
        ]:
            _need(frame, name, use)
        roles = {
            name: use for name, use in ((user, "user"), (item, "item"), (time, "time")) if name is not None
        }
        for name in wanted:
            if name in roles:
                raise ValueError(
                    f"Column {name!r} is given as a label and as {roles[name]}: it can be only one."
                )
        if len(roles) < sum(name is not None for name in (user, item, time)):
            raise ValueError("user, item and time must be three different columns.")
        for name, kind in given_kinds.items():
            if kind not in KINDS:
                raise ValueError(f"kinds[{name!r}] is {kind!r}: expected one of {', '.join(KINDS)}.")
            if name in wanted:
                raise ValueError(f"{name!r} is a label: settle its kind in labels, not in kinds.")
        if min_count < 1:
            raise ValueError(f"min_count is {min_count}: expected 1 or more.")

        tasks, columns, classes, label_words = [], {}, {}, {}
        for name, kind in wanted.items():
            task, values, names, words = _label(frame[name], name, kind)
            tasks.append(task)
            columns[name], label_words[name] = values, words
            if names is not None:
                classes[task.name] = names
        moments = _moments(frame[time], time) if time is not None else None

        guesses, recipe = [], []
        for name in frame.columns:
            if name in wanted:
                guesses.append(ColumnGuess(name, f"label, {label_words[name][0]}", label_words[name][1]))
                continue
            kind = "drop" if name in ignore else given_kinds.get(name)
            why = "you said so" if kind else ""
            if kind is None and name in (user, item):
                kind, why = "category", "ids"
            if kind is None and name == time:
                kind, why = "date", "the moment of the event"
            taken = set(frame.columns) | {feature.name for feature in recipe}
            guess, made = _guess(frame[name], name, kind, why, moments, name == time, min_count, taken)
            guesses.append(guess)
            recipe += made

        log = cls(
            pd.DataFrame(index=frame.index),
            check_tasks(tasks),
            (),
            (),
            guesses,
            classes,
            user,
            item,
            time,
            min_count,
        )
        log._recipe, log._names = recipe, {}
        built = log._build(frame, moments)
        for feature in list(recipe):  # a weekday that is always Monday
            if feature.make in ("hour", "weekday", "days", "length") and built[feature.name].nunique() < 2:
                recipe.remove(feature)
                built = built.drop(columns=feature.name)
        log.numeric = tuple(f.name for f in recipe if f.make in ("number", "log", "days", "length"))
        log.categorical = tuple(f.name for f in recipe if f.make in ("category", "hour", "weekday"))
        if not recipe:
            raise ValueError(
                "No column is left to predict from. What was made of them:\n" + "\n".join(log._lines())
            )
        for name, values in columns.items():
            built[name] = values
        if user is not None and user not in built:
            built[user] = _categories(frame[user])
        if moments is not None:
            built[time if time not in built else f"{time} (moment)"] = moments
        log.frame = built
        _refuse_leaks(log, set(allow))
        if moments is not None and (twice := int(built.duplicated().sum())):
            log.frame = built.drop_duplicates()
            log.notes.append(f"{twice:,} rows repeat another in everything used, the moment too: dropped.")
        elif twice := int(built.duplicated().sum()):
            log.notes.append(
                f"{twice:,} rows repeat another in everything used. If one event was written twice, drop the copies "
                "first: a copy in the test part is a leak."
            )
        return log

    def split(
        self,
        by: str | None = None,
        fractions: Sequence[float] = (0.7, 0.15, 0.15),
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> Splits:
        """Training, validation and test data, encoded, as ``fit`` takes them.

        Parameters
        ----------
        by : ``"time"`` trains on the past and tests on the latest rows; ``"user"`` tests on users never seen, whose id
            then is no feature; ``"rows"`` is random. Default: by time if there is one, else by user, else rows.
        fractions : of train, validation and test. seed : of the random splits. device : where the tensors go.

        Raises ValueError if a part would be empty, or if the training part lacks one of a label's two values.
        """
        by = by or ("time" if self.time else "user" if self.user else "rows")
        if by not in ("time", "user", "rows"):
            raise ValueError(f"by is {by!r}: expected 'time', 'user' or 'rows'.")
        if by != "rows" and getattr(self, by) is None:
            raise ValueError(f"split(by={by!r}) needs from_frame(…, {by}=<column>).")
        frame, categorical = self.frame, self.categorical
        if len(frame) < 3:
            raise ValueError(f"{len(frame)} row(s) cannot be cut into train, validation and test.")
        if by == "time":
            column = f"{self.time} (moment)" if f"{self.time} (moment)" in frame else self.time
            if missing := int(frame[column].isna().sum()):
                raise ValueError(
                    f"{missing:,} rows have no {self.time!r}, so they are neither before nor after: drop them first."
                )
            parts = split_by_time(frame, column, fractions)
        elif by == "user":
            users = frame[self.user]
            if users.nunique(dropna=False) < 3:
                raise ValueError(
                    f"Column {self.user!r} has fewer than three users: split by rows or by time."
                )
            codes = pd.Series(pd.factorize(users)[0], index=frame.index)
            parts = split_by_user(frame.assign(**{"\0": codes}), "\0", fractions, seed)
            parts = {part: rows.drop(columns="\0") for part, rows in parts.items()}
            categorical = tuple(name for name in categorical if name != self.user)
            if not categorical and not self.numeric:
                raise ValueError(
                    "Without the user's id, which says nothing about new users, there is no feature left."
                )
        else:
            order = np.random.default_rng(seed).permutation(len(frame))
            # split_by_time of a random moment is a random split, with its checks of the fractions
            shuffled = frame.assign(**{"\0": order})
            parts = split_by_time(shuffled, "\0", fractions)
            parts = {part: rows.drop(columns="\0") for part, rows in parts.items()}
        if empty := [part for part, rows in parts.items() if rows.empty]:
            raise ValueError(
                f"Split by {by}, {' and '.join(empty)} would be empty: the table has {len(frame):,} rows. Change the "
                "fractions, or split in another way."
            )
        for task in self.tasks:
            known = parts["train"][task.label_column].dropna()
            if known.nunique() < 2:
                raise ValueError(
                    f"The training part has {'only one value' if len(known) else 'not one value'} of label "
                    f"{task.label_column!r}, so nothing can be learned of it: split in another way, or drop the label."
                )
        return prepare(parts, self.tasks, self.numeric, categorical, min_count=self.min_count, device=device)

    def features(self, frame: pd.DataFrame) -> pd.DataFrame:
        """The features of new rows, computed as they were here; ``splits.encoder.transform`` takes the result.

        Labels may be absent; a column that a feature is made of may not.
        """
        frame = _checked_frame(frame)
        for feature in self._recipe:
            _need(frame, feature.column, "features")
        moments = (
            _moments(frame[self.time], self.time) if self.time is not None and self.time in frame else None
        )
        return self._build(frame, moments)

    def table(self) -> pd.DataFrame:
        """The guesses as a table: column, used as, why."""
        return pd.DataFrame(
            [(guess.column, guess.used_as, guess.why) for guess in self.guesses],
            columns=["column", "used as", "why"],
        )

    def __str__(self) -> str:
        head = (
            f"{len(self.frame):,} rows; {len(self.tasks)} task{'s' * (len(self.tasks) > 1)}; {len(self.numeric)} "
            f"numeric and {len(self.categorical)} categorical features"
        )
        overrule = 'To overrule: kinds={column: "number", "category", "date", "text" or "drop"}, labels={column: kind}.'
        return "\n".join([head, *self._lines(), *(f"Note: {note}" for note in self.notes), overrule])

    def _lines(self) -> list[str]:
        width = max((len(guess.column) for guess in self.guesses), default=0)
        return [f"  {g.column:<{width}}  {g.used_as}" + (f": {g.why}" if g.why else "") for g in self.guesses]

    def _build(self, frame: pd.DataFrame, moments: pd.Series | None) -> pd.DataFrame:
        made = {}
        for feature in self._recipe:
            values = frame[feature.column]
            if feature.make == "category":
                made[feature.name] = _categories(values)
            elif feature.make in ("number", "log"):
                numbers = _numbers(values)
                numbers[~_usable(numbers)] = np.nan
                if feature.make == "log":
                    numbers = np.log1p(np.clip(numbers, 0, None))
                made[feature.name] = numbers.astype(np.float32)
            elif feature.make == "length":
                made[feature.name] = np.array(
                    [
                        np.nan if value is None or value is pd.NA or value != value else len(str(value))
                        for value in values
                    ],
                    dtype=np.float32,
                )
            else:
                dates = moments if feature.column == self.time and moments is not None else _dates(values)
                if feature.make == "hour":
                    made[feature.name] = dates.dt.hour.astype("float32").to_numpy()
                elif feature.make == "weekday":
                    made[feature.name] = dates.dt.day_of_week.astype("float32").to_numpy()
                else:
                    since = moments if moments is not None and _is_date(moments) else pd.Timestamp(0)
                    made[feature.name] = ((dates - since) / pd.Timedelta(days=1)).astype("float32").to_numpy()
        return pd.DataFrame(made, index=frame.index)


# ------------------------------------------------------------------------------------------------- the table


def _checked_frame(frame: pd.DataFrame) -> pd.DataFrame:
    if not isinstance(frame, pd.DataFrame):
        raise TypeError(
            f"Expected a pandas DataFrame, got {type(frame).__name__}. For a file use from_file(path)."
        )
    if isinstance(frame.columns, pd.MultiIndex):
        raise ValueError("The columns have several levels: flatten them to plain names first.")
    if not len(frame):
        raise ValueError("The table has no rows.")
    names = [str(name) for name in frame.columns]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(
            f"Column name {', '.join(map(repr, twice))} stands more than once: rename or drop, so that it is clear "
            "which counts."
        )
    frame = frame.copy(deep=False)
    frame.columns = names
    return frame.reset_index(drop=True)


def _need(frame: pd.DataFrame, name: str, use: str) -> None:
    if name not in frame:
        close = difflib.get_close_matches(str(name), list(frame.columns), 1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise KeyError(
            f"{use} names {name!r}, which is no column.{hint} There are {', '.join(frame.columns[:30])}."
        )


def _wanted_labels(labels: str | Sequence[str] | Mapping[str, str | None]) -> dict[str, str | None]:
    wanted = (
        {labels: None}
        if isinstance(labels, str)
        else dict(labels)
        if isinstance(labels, Mapping)
        else dict.fromkeys(labels)
    )
    if not wanted:
        raise ValueError("labels is empty: name at least one column to predict.")
    for name, kind in wanted.items():
        if kind not in (None, "binary", "multiclass", "regression"):
            raise ValueError(
                f"labels[{name!r}] is {kind!r}: expected 'binary', 'multiclass', 'regression' or None."
            )
    return wanted


def _is_date(values: pd.Series) -> bool:
    return pd.api.types.is_datetime64_any_dtype(values.dtype) or isinstance(values.dtype, pd.PeriodDtype)


def _is_bool(values: pd.Series) -> bool:
    return pd.api.types.is_bool_dtype(values.dtype) and not isinstance(values.dtype, pd.CategoricalDtype)


def _is_number(values: pd.Series) -> bool:
    dtype = values.dtype
    return (
        pd.api.types.is_numeric_dtype(dtype)
        and not _is_bool(values)
        and not pd.api.types.is_complex_dtype(dtype)
    )


def _name_of(value: object) -> str:
    """How a category is written: 3, 3.0 and " 3" are one."""
    if isinstance(value, (float, np.floating)) and float(value).is_integer():
        value = int(value)
    return str(value).strip()


def _factorize(values: pd.Series) -> tuple[np.ndarray, list[str], list]:
    """Codes (−1: missing), the names of the codes, and one original value for each."""
    if isinstance(values.dtype, pd.SparseDtype):
        values = values.sparse.to_dense()
    try:
        codes, uniques = pd.factorize(values)
    except TypeError:  # lists and dictionaries cannot be compared; their text can
        codes, uniques = pd.factorize(values.map(lambda value: value if _is_missing(value) else str(value)))
    uniques = list(uniques)
    names = [_name_of(value) for value in uniques]
    index, kept = pd.factorize(np.array([*names, ""], dtype=object)[:-1])
    kept = [str(name) for name in kept]
    index = np.where(np.array([name == "" for name in names], dtype=bool), -1, index) if names else index
    codes = np.where(codes < 0, -1, np.append(index, -1)[codes]).astype(np.int64)
    if "" in kept:  # an empty text is a missing one
        at = kept.index("")
        kept.pop(at)
        codes = np.where(codes > at, codes - 1, codes)
    first = dict(zip(reversed(names), reversed(uniques), strict=True))
    return codes, kept, [first[name] for name in kept]


def _is_missing(value: object) -> bool:
    return value is None or value is pd.NA or value is pd.NaT or (isinstance(value, float) and value != value)


def _categories(values: pd.Series) -> pd.Categorical:
    codes, names, _ = _factorize(values)
    return pd.Categorical.from_codes(codes, pd.Index(names, dtype=object))


def _numbers(values: pd.Series) -> np.ndarray:
    """float64; NaN where there is no number."""
    if isinstance(values.dtype, pd.SparseDtype):
        values = values.sparse.to_dense()
    if pd.api.types.is_timedelta64_dtype(values.dtype):
        return (values / pd.Timedelta(days=1)).to_numpy(float).copy()
    if _is_number(values) or _is_bool(values):
        return values.to_numpy(dtype=float, na_value=np.nan).copy()
    codes, names, _ = _factorize(values)
    parsed = pd.to_numeric(pd.Series(names, dtype=object), errors="coerce").to_numpy(float)
    return np.append(parsed, np.nan)[codes]


def _usable(numbers: np.ndarray) -> np.ndarray:
    """Finite, and small enough to be squared and to fit float32."""
    return np.abs(numbers) < 1e30


def _dates(values: pd.Series) -> pd.Series:
    """datetime64 in UTC without a zone; NaT where there is no date."""
    if isinstance(values.dtype, pd.PeriodDtype):
        values = values.dt.to_timestamp()
    if pd.api.types.is_datetime64_any_dtype(values.dtype):
        return values.dt.tz_convert(None) if getattr(values.dt, "tz", None) is not None else values
    if _is_number(values):
        numbers = _numbers(values)
        known = numbers[np.isfinite(numbers)]
        unit = "ms" if len(known) and np.median(np.abs(known)) > 1e11 else "s"
        numbers[~(np.abs(numbers) < 1e13)] = np.nan
        return pd.Series(pd.to_datetime(numbers, unit=unit, errors="coerce"), index=values.index)
    codes, names, _ = _factorize(values)
    slashes = [re.match(r"(\d{1,2})[/.](\d{1,2})[/.]\d{4}", name) for name in names]
    day_first = any(found and int(found[1]) > 12 for found in slashes)
    parsed = pd.to_datetime(
        pd.Series([*names, None], dtype=object), errors="coerce", format="mixed", utc=True, dayfirst=day_first
    ).dt.tz_convert(None)
    return pd.Series(parsed.to_numpy()[codes], index=values.index)


def _moments(values: pd.Series, name: str) -> pd.Series:
    """The time column in a form that can be ordered: dates if it holds dates, else its numbers."""
    if _is_date(values) or not _is_number(values):
        dates = _dates(values)
        if not _is_date(values) and dates.notna().sum() < _ENOUGH * values.notna().sum():
            numbers = _numbers(values)
            if np.isfinite(numbers).sum() < _ENOUGH * values.notna().sum():
                example = values.dropna().iloc[0] if values.notna().any() else "nothing"
                raise ValueError(
                    f"time={name!r} holds values such as {str(example)!r}, which are neither dates nor numbers."
                )
            return pd.Series(numbers, index=values.index)
        if not dates.notna().any():
            raise ValueError(f"time={name!r} holds not one date.")
        return dates
    return (
        _dates(values) if _looks_like_epoch(values, name) else pd.Series(_numbers(values), index=values.index)
    )


def _looks_like_epoch(values: pd.Series, name: str) -> bool:
    numbers = _numbers(values)
    known = numbers[np.isfinite(numbers)]
    in_seconds = len(known) and ((known > 3e8) & (known < 4e9)).mean() > _ENOUGH
    in_ms = len(known) and ((known > 3e11) & (known < 4e12)).mean() > _ENOUGH
    return bool((in_seconds or in_ms) and _TIME_NAME.search(name))


# ------------------------------------------------------------------------------------------------- labels


def _label(
    values: pd.Series, name: str, kind: str | None
) -> tuple[Task, np.ndarray, list | None, tuple[str, str]]:
    """The task, its labels as numbers (NaN: missing), the names of its classes, and what to say."""
    codes, names, _ = _factorize(values)
    known = codes >= 0
    if not known.any():
        raise ValueError(f"Label {name!r} holds no value at all: there is nothing to learn. Leave it out.")
    if len(names) == 1:
        raise ValueError(
            f"Label {name!r} is {names[0]!r} in every row: there is nothing to learn. Leave it out."
        )
    if _is_date(values):
        raise ValueError(
            f"Label {name!r} holds dates: turn it into a number, such as days until it happened."
        )
    numbers = _numbers(values)
    numeric = bool(np.isfinite(numbers[known]).all())
    if (
        numeric
        and not _is_number(values)
        and not _is_bool(values)
        and any(re.match(r"0\d", text) for text in names)
    ):
        numeric = False  # leading zeros: codes, not numbers
    whole = numeric and bool((numbers[known] % 1 == 0).all())
    lowered = {text.lower() for text in names}
    yes_no = len(names) == 2 and len(lowered & _YES) == 1 and len(lowered & _NO) == 1
    zero_one = numeric and set(np.unique(numbers[known])) == {0.0, 1.0}
    way_out = f'Say which: labels={{"{name}": "…"}}.'
    if kind is None:
        if zero_one or yes_no or _is_bool(values):
            kind = "binary"
        elif np.isinf(numbers[known]).any():
            raise ValueError(f"Label {name!r} holds infinite values: replace them, or set them missing.")
        elif not numeric:
            if len(names) > _MOST_CLASSES:
                raise ValueError(
                    f"Label {name!r} is text with {len(names):,} different values: too many for a multiclass guess. "
                    f'Group them, or insist with labels={{"{name}": "multiclass"}}.'
                )
            kind = "multiclass"
        elif whole and len(names) == 2:
            low, high = sorted(np.unique(numbers[known]))
            raise ValueError(
                f"Label {name!r} holds {low:g} and {high:g}: is it binary (which one is yes?), multiclass or a number? "
                f'Turn it into 0 and 1, or say labels={{"{name}": "multiclass"}} or "regression".'
            )
        elif whole and len(names) <= 20:
            raise ValueError(
                f'Label {name!r} holds {len(names)} whole numbers, which may be classes or amounts: "multiclass" or '
                f'"regression"? {way_out}'
            )
        else:
            kind = "regression"

    missing = 1 - known.mean()
    gap = f", {missing:.1%} missing and masked" if missing else ""
    task_name, label = _task_name(name), name
    if kind == "binary":
        if yes_no:
            yes = next(i for i, text in enumerate(names) if text.lower() in _YES)
            numbers = np.where(known, codes == yes, np.nan)
        elif not (zero_one or _is_bool(values)):
            shown = ", ".join(sorted(names)[:4])
            raise ValueError(
                f"Label {name!r} is to be binary but holds {shown}: expected 0 and 1, or yes and no."
            )
        words = ("binary", f"{np.nanmean(numbers):.1%} yes{gap}")
        return Task(task_name, label=label), numbers.astype(float), None, words
    if kind == "multiclass":
        order = np.argsort(
            np.array([*map(float, names)]) if numeric else np.array(names, dtype=object), kind="stable"
        )
        rank = np.empty(len(names))
        rank[order] = np.arange(len(names))
        classes = [names[i] for i in order]
        words = (
            f"multiclass, {len(names)} classes",
            f"{', '.join(classes[:5])}{'…' * (len(classes) > 5)}{gap}",
        )
        return (
            Task(task_name, "multiclass", len(names), label),
            np.append(rank, np.nan)[codes],
            classes,
            words,
        )
    if not numeric:
        raise ValueError(f"Label {name!r} is to be a number but holds {sorted(names)[0]!r}.")
    seen = numbers[known]
    if not _usable(seen).all():
        raise ValueError(
            f"Label {name!r} holds {seen[~_usable(seen)][0]:g}: numbers beyond 1e30 cannot be learned."
        )
    words = ("regression", f"from {seen.min():.4g} to {seen.max():.4g}, mean {seen.mean():.4g}{gap}")
    return Task(task_name, "regression", label=label), np.where(known, numbers, np.nan), None, words


def _task_name(column: str) -> str:
    """A name that a torch module may have."""
    name = column.replace(".", "_") or "label"
    return f"{name}_label" if hasattr(nn.ModuleDict(), name) else name


# ------------------------------------------------------------------------------------------------- columns


def _guess(
    values: pd.Series,
    name: str,
    kind: str | None,
    why: str,
    moments: pd.Series | None,
    is_time: bool,
    min_count: int,
    taken: set[str],
) -> tuple[ColumnGuess, list[_Feature]]:
    """What to make of a column, and the features that are made of it."""
    if kind == "drop":
        return ColumnGuess(name, "left out", why), []
    codes, names, originals = _factorize(values)
    n_known, distinct = int((codes >= 0).sum()), len(names)
    gap = f", {1 - n_known / len(values):.1%} missing" if n_known < len(values) else ""
    if not distinct:
        return ColumnGuess(name, "left out", "it holds nothing"), []
    if distinct == 1 and not gap:
        return ColumnGuess(name, "left out", f"it is {names[0][:40]!r} in every row"), []
    counts = np.bincount(codes[codes >= 0], minlength=distinct)
    if kind is None:
        kind, why = _kind_of(values, name, names, originals, counts)
    if kind == "drop":
        return ColumnGuess(name, "left out", why), []

    if kind == "number":
        numbers = _numbers(values)
        finite = _usable(numbers)
        odd = n_known - int(finite.sum())
        if not finite.any():
            raise ValueError(f"Column {name!r} is to be a number but holds {names[0]!r}.")
        tail = numbers[finite]
        middle, far = np.quantile(tail, (0.5, 0.99))
        long_tail = tail.min() >= 0 and far > 20 * max(middle, 1e-9) and far > 20
        words = [why] if why else []
        if odd:
            words.append(f"{odd:,} values that are no finite number, or beyond 1e30, count as missing")
        if long_tail:
            words.append("log(1 + x), for its long tail")
        shown = f"number, {tail.min():.4g} to {tail.max():.4g}{gap}"
        made = _Feature(name, name, "log" if long_tail else "number")
        return ColumnGuess(name, shown, "; ".join(words), (name,)), [made]
    if kind == "category":
        rare = int((counts < min_count).sum())
        words = [why] if why else []
        if rare:
            words.append(f"{rare:,} of them seen less than {min_count} times count as unknown")
        shown = f"category, {distinct:,} value{'s' * (distinct > 1)}{gap}"
        return ColumnGuess(name, shown, "; ".join(words), (name,)), [_Feature(name, name, "category")]
    if kind == "text":
        made = _free(f"{name} (length)", taken)
        words = "; ".join(filter(None, [why, "only its length is used, not what it says"]))
        return ColumnGuess(name, f"text{gap}", words, (made,)), [_Feature(made, name, "length")]

    # a date
    dates = moments if is_time else _dates(values)
    if not _is_date(dates):
        return ColumnGuess(name, "time, for the split only", "numbers, not dates"), []
    if not dates.notna().any():
        raise ValueError(f"Column {name!r} is to be a date but holds {names[0]!r}.")
    span = f"{dates.min():%Y-%m-%d} to {dates.max():%Y-%m-%d}{gap}"
    if is_time:
        made = [_Feature(_free(f"{name} ({part})", taken), name, part) for part in ("hour", "weekday")]
        words = "gives the hour and the day of the week, and the order of the rows"
        return ColumnGuess(name, f"time, {span}", words, tuple(f.name for f in made)), made
    if moments is not None and _is_date(moments):
        after = float((dates > moments)[dates.notna()].mean())
        if after > 0.01 and why != "you said so":
            words = f"{after:.1%} of its dates lie after the event, when nobody could know them"
            return ColumnGuess(name, "left out", words), []
        words = "as days before or after the event"
    else:
        words = "as days since 1970"
    made = _Feature(_free(f"{name} (days)", taken), name, "days")
    return ColumnGuess(name, f"date, {span}", words, (made.name,)), [made]


def _free(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "'"
    return name


def _kind_of(
    values: pd.Series, name: str, names: list[str], originals: list, counts: np.ndarray
) -> tuple[str, str]:
    """The kind of a column, from its values and, for numbers that may be codes, from its name."""
    distinct, n_known = len(names), int(counts.sum())
    if _is_bool(values) or all(isinstance(value, (bool, np.bool_)) for value in originals):
        return "category", "true or false"
    if _is_date(values):
        return "date", ""
    if pd.api.types.is_timedelta64_dtype(values.dtype):
        return "number", "a duration, in days"
    unique = distinct == n_known and n_known >= 20
    nearly = distinct >= 0.95 * n_known and n_known >= 20  # a log written twice repeats its keys
    if _is_number(values):
        numbers = _numbers(values)
        known = numbers[np.isfinite(numbers)]
        whole = len(known) > 0 and bool((known % 1 == 0).all())
        if whole and _looks_like_epoch(values, name):
            return "date", "a time stamp"
        if whole and ((nearly and _CODE_NAME.search(name)) or (unique and np.ptp(known) == len(known) - 1)):
            return "drop", "another number in (nearly) every row, as a row number has"
        if whole and _CODE_NAME.search(name):
            return "category", "whole numbers, and the name says id or code"
        return "number", ""
    if pd.api.types.is_complex_dtype(values.dtype):
        return "drop", "complex numbers"
    if isinstance(values.dtype, pd.CategoricalDtype):
        return "category", ""
    texts = sum(isinstance(value, str) for value in originals)
    if texts < distinct and all(hasattr(value, "strftime") for value in originals):
        return "date", ""
    parsed = pd.to_numeric(pd.Series(names, dtype=object), errors="coerce").to_numpy(float)
    is_number = np.isfinite(parsed) & np.array(
        [not isinstance(value, (bool, np.bool_)) for value in originals]
    )
    zeros = any(re.match(r"0\d", text) for text in names)
    if counts[is_number].sum() >= _ENOUGH * n_known and not zeros and not _CODE_NAME.search(name):
        return "number", "" if texts < distinct else "numbers written as text"
    if zeros and is_number.all():
        return "category", "leading zeros, so codes"
    looks = np.array([bool(_DATE_TEXT.match(text)) for text in names])
    if counts[looks].sum() >= _ENOUGH * n_known:
        dates = _dates(
            pd.Series([text for text, fits in zip(names, looks, strict=True) if fits], dtype=object)
        )
        if dates.notna().mean() >= _ENOUGH:
            return "date", "written as text"
    length = float(np.average([len(text) for text in names], weights=counts))
    spaced = float(np.average([" " in text for text in names], weights=counts))
    if distinct > 0.5 * n_known and n_known >= 20 and length > 20 and spaced > 0.5:
        return "text", "long and different in most rows"
    if nearly:
        return "drop", "another value in (nearly) every row"
    if 0 < texts < distinct:
        return "category", "text and other values mixed, all taken as text"
    return "category", ""


# ------------------------------------------------------------------------------------------------- leaks


def _refuse_leaks(log: TabularLog, allow: set[str]) -> None:
    """Raise LabelLeak for a feature that gives a label away by itself."""
    frame = log.frame
    if len(frame) > _LEAK_ROWS:
        frame = frame.sample(_LEAK_ROWS, random_state=0)
    origin = {feature.name: feature.column for feature in log._recipe}
    for task in log.tasks:
        y_all = frame[task.label_column].to_numpy(float)
        for name in (*log.numeric, *log.categorical):
            if origin[name] in allow or origin[name] in (log.user, log.item) or name in allow:
                continue
            x = frame[name]
            known = ~np.isnan(y_all)
            if known.sum() < 20 or len(np.unique(y_all[known])) < 2:
                continue
            score = _giveaway(task, x[known], y_all[known], name in log.numeric)
            if score is not None and score[0] >= _LEAK:
                raise LabelLeak(
                    f"Column {origin[name]!r} alone gives label {task.label_column!r} away, with {score[1]} "
                    f"{score[0]:.3f}. "
                    "It is probably the label in other words, or something known only afterwards. Leave it out with "
                    f"ignore=[{origin[name]!r}], or keep it with allow=[{origin[name]!r}] if it is known beforehand."
                )


def _giveaway(task: Task, x: pd.Series, y: np.ndarray, numeric: bool) -> tuple[float, str] | None:
    """How well one feature alone predicts a label, and by which measure; None where that says nothing."""
    from mtl_helpers.metrics import auc

    if numeric or not isinstance(x.dtype, pd.CategoricalDtype):
        values = x.to_numpy(float)
        if task.kind == "regression":
            both = ~np.isnan(values)
            if both.sum() < 20 or np.ptp(values[both]) == 0 or np.ptp(y[both]) == 0:
                return None
            ranks = [pd.Series(v[both]).rank().to_numpy() for v in (values, y)]
            return abs(float(np.corrcoef(*ranks)[0, 1])), "rank correlation"
        if task.kind == "binary":
            # a missing value can be the leak itself, so it counts as a value below all others
            low = np.nanmin(values) - 1 if not np.isnan(values).all() else 0.0
            found = auc(y, np.where(np.isnan(values), low, values))
            return max(found, 1 - found), "AUC"
        codes = pd.factorize(values)[0]
    else:
        codes = x.cat.codes.to_numpy().astype(np.int64)
    codes = codes - codes.min()
    groups = codes.max() + 1
    if groups * 5 > len(codes):
        return None  # a handful of rows each fit any label
    if task.kind == "multiclass":
        table = np.zeros((groups, task.n_classes))
        np.add.at(table, (codes, y.astype(int)), 1)
        baseline = table.sum(0).max() / len(y)
        return (float(table.max(1).sum() / len(y)), "accuracy") if baseline < 0.9 else None
    means = np.bincount(codes, y) / np.maximum(np.bincount(codes), 1)
    if task.kind == "binary":
        return float(auc(y, means[codes])), "AUC"
    spread = y.var()
    return (
        (float(1 - ((y - means[codes]) ** 2).mean() / spread), "explained variance") if spread > 0 else None
    )
