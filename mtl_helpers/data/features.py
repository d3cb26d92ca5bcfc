"""From a pandas table to splits as tensors: cleaning, splitting, leaks, a guess at the columns, and `prepare`.

Taught in notebook 01 and used by every later one. The path is always the same: clean a frame, split it, fit a
:class:`FeatureEncoder` on the training part only, and turn each part into a :class:`MultiTaskDataset`, whose
batches are slices of tensors that already lie on the device. :func:`prepare` does the last two steps at once.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from mtl_helpers.data.encoder import FeatureEncoder, vector_lengths
from mtl_helpers.data.tables import MultiTaskDataset, Schema, Task, check_tasks, need_columns, read_labels
from mtl_helpers.metrics import auc

__all__ = [
    "Splits",
    "check_leaks",
    "clip_outliers",
    "convert_units",
    "drop_duplicate_rows",
    "guess_features",
    "prepare",
    "split_by_time",
    "split_by_user",
    "tidy_text",
]


LEAK_AUC, MIN_POSITIVES, FEW = 0.95, 20, 20
CODE_NAME = re.compile(
    r"(^|_|(?<=[a-z])(?=[A-Z]))(id|ids|code|zip|zipcode|postcode|type|category|categorical|class|group|brand|customer|user"
    r"|item|product|shop|store|seller|city|region|country)(_?\d+)?$|^\d+$",
    re.IGNORECASE,
)
MOMENT_NAME = re.compile(r"(^|_)(time|timestamp|date|datetime|ts)$|_at$", re.IGNORECASE)
DATE_TEXT = re.compile(r"^\s*\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}([ T].*)?$")


def drop_duplicate_rows(frame: pd.DataFrame) -> pd.DataFrame:
    """Drop rows that repeat an earlier row in every column (a log that was written twice), and renumber."""
    return frame.drop_duplicates(ignore_index=True)


def tidy_text(values: pd.Series) -> pd.Series:
    """Strip blanks around text and lower its case, so that ``" Books"`` and ``"books"`` are one category."""
    return values.str.strip().str.lower()


def convert_units(values: pd.Series, unit: pd.Series, factors: dict[str, float]) -> pd.Series:
    """Multiply each value by the factor of its unit, e.g. ``{"EUR": 1, "cent": 0.01}``.

    Raises ValueError for a unit without a factor: a silent guess would be off by that factor.
    """
    unknown = sorted(set(unit.dropna().unique()) - set(factors)) + (
        ["(missing)"] if unit.isna().any() else []
    )
    if unknown:
        raise ValueError(f"No factor for unit {', '.join(unknown)}: known are {', '.join(factors)}.")
    return values * unit.map(factors).astype(float)


def clip_outliers(values: pd.Series, k: float = 3.0, log: bool = False) -> pd.Series:
    """Clip values further than ``k`` interquartile ranges outside the quartiles (Tukey's far-out fences for k = 3).

    ``log=True`` measures on the log scale, right for prices and counts; all values must then be positive.
    Missing values stay missing.
    """
    if log and (values.dropna() <= 0).any():
        raise ValueError(f"clip_outliers(log=True) needs values above 0; {values.name!r} has {values.min()}.")
    scale = np.log(values) if log else values
    low, high = scale.quantile(0.25), scale.quantile(0.75)
    fence = scale.clip(low - k * (high - low), high + k * (high - low))
    return np.exp(fence) if log else fence


def _check_fractions(fractions: Sequence[float]) -> tuple[float, float, float]:
    if len(fractions) != 3 or min(fractions) <= 0 or abs(sum(fractions) - 1) > 1e-6:
        raise ValueError(f"fractions are {tuple(fractions)}: expected three numbers above 0 that sum to 1.")
    return tuple(fractions)


def split_by_user(
    frame: pd.DataFrame, user: str = "user_id", fractions: Sequence[float] = (0.7, 0.15, 0.15), seed: int = 0
) -> dict[str, pd.DataFrame]:
    """Split at random, all rows of a user together, into ``{"train", "valid", "test"}``.

    Answers "how well does the model serve users it has never seen?". Fractions count users, not rows.
    """
    from sklearn.model_selection import GroupShuffleSplit

    need_columns(frame, [user], "split_by_user")
    _, valid_share, test_share = _check_fractions(fractions)
    users = frame[user].nunique()
    if users < 3:
        raise ValueError(
            f"split_by_user got {users} user{'s' * (users != 1)} and {len(frame) or 'no'} rows: expected 3 "
            "users or more, one for each part."
        )

    def cut(part: pd.DataFrame, share: float) -> tuple[pd.DataFrame, pd.DataFrame]:
        keep, off = next(
            GroupShuffleSplit(n_splits=1, test_size=share, random_state=seed).split(part, groups=part[user])
        )
        return part.iloc[keep], part.iloc[off]

    rest, test = cut(frame, test_share)
    train, valid = cut(rest, valid_share / (1 - test_share))
    return {"train": train, "valid": valid, "test": test}


def split_by_time(
    frame: pd.DataFrame, time: str = "timestamp", fractions: Sequence[float] = (0.7, 0.15, 0.15)
) -> dict[str, pd.DataFrame]:
    """Split at two moments: train on the past, validate on what follows, test on the latest rows.

    Rows that share a moment stay in one part. Answers "how well will it do tomorrow?".
    """
    need_columns(frame, [time], "split_by_time")
    train_share, valid_share, _ = _check_fractions(fractions)
    if not len(frame):
        raise ValueError("split_by_time got a table with no row.")
    moments = frame[time].sort_values(kind="stable").reset_index(drop=True)
    first, second = (moments.iloc[int(len(moments) * s)] for s in (train_share, train_share + valid_share))
    parts = {
        "train": frame[frame[time] < first],
        "valid": frame[(frame[time] >= first) & (frame[time] < second)],
        "test": frame[frame[time] >= second],
    }
    if empty := [name for name, part in parts.items() if not len(part)]:
        cure = "give it more rows or other fractions"
        raise ValueError(f"split_by_time leaves {' and '.join(empty)} with no row of {len(frame)}: {cure}.")
    return parts


def check_leaks(
    frames: dict[str, pd.DataFrame],
    features: Sequence[str],
    tasks: Sequence[Task],
    *,
    time: str | None = None,
    user: str | None = None,
) -> pd.DataFrame:
    """Look for the usual leaks between a training and a test frame; one row per check.

    Checks that no label is among the features; that no row of the test part stands in the training part; that
    training ends before validation and validation before test (``time`` given); that no user is in two parts
    (``user`` given); and that no single feature alone reaches an AUC of 0.95 on a binary label with 20 or more positive
    rows (an outcome in disguise, such as dwell time). That AUC is of one half of the training rows, scored by what the
    other half says of the feature: the direction of a number, the label's mean for each category.

    Returns a frame with columns ``check``, ``passed`` and ``finding``.
    """
    rows: list[tuple[str, bool, str]] = []

    def note(check: str, faults: list[str], fine: str) -> None:
        rows.append((check, not faults, "; ".join(faults) or fine))

    labels = [task.label_column for task in check_tasks(tasks)]
    note("no label among the features", [name for name in labels if name in features], "none")
    columns = dict.fromkeys([*features, *labels, *([time] if time else [])])
    columns = [column for column in columns if not len(vector_lengths(frames["train"][column]))]
    hashes = {part: pd.util.hash_pandas_object(frame[columns], index=False) for part, frame in frames.items()}
    shared = int(hashes["test"].isin(hashes["train"]).sum())
    note("no test row stands in train", [f"{shared} rows do"] if shared else [], "none does")
    if time:
        order = [
            (a, b)
            for a, b in (("train", "valid"), ("valid", "test"))
            if frames[a][time].max() >= frames[b][time].min()
        ]
        note("parts follow each other in time", [f"{a} reaches into {b}" for a, b in order], "they do")
    if user:
        both = len(set(frames["train"][user]) & set(frames["test"][user]))
        note("no user in train and test", [f"{both} users are"] if both else [], "none is")
    scores = {}
    for task in tasks:
        y = read_labels(frames["train"], task)[0]
        if task.kind == "binary" and min((y == 0).sum(), (y == 1).sum()) >= MIN_POSITIVES:
            known = ~np.isnan(y)
            for column in features:
                if column not in labels:
                    scores[column, task.name] = _held_out_auc(frames["train"].loc[known, column], y[known])
    scores = {pair: score for pair, score in scores.items() if not np.isnan(score)}
    faults = [f"{c} alone reaches AUC {v:.3f} on {t}" for (c, t), v in scores.items() if v >= LEAK_AUC]
    best = max(scores, key=scores.get, default=None)
    fine = (
        f"the strongest is {best[0]} on {best[1]}, AUC {scores[best]:.3f}"
        if best
        else "too few positive rows to tell"
    )
    note("no feature is an outcome in disguise", faults, fine)
    return pd.DataFrame(rows, columns=["check", "passed", "finding"])


def _held_out_auc(values: pd.Series, y: np.ndarray) -> float:
    """AUC of one feature on each half of the rows, by the direction or the category means of the other half."""
    if len(vector_lengths(values)):
        return float("nan")
    rows, _ = pd.factorize(values)
    rows, half = rows + 1, np.random.default_rng(0).permutation(len(y)) % 2 == 0
    number = None
    if pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values):
        number = values.astype(float)
        number = number.fillna(number.min() - 1).to_numpy()  # a missing value can be the leak itself
    found = []
    for fitted, scored in ((half, ~half), (~half, half)):
        seen = np.bincount(rows[fitted], minlength=rows.max() + 1)
        sums = np.bincount(rows[fitted], y[fitted], minlength=rows.max() + 1)
        best = auc(y[scored], ((sums + y[fitted].mean()) / (seen + 1))[rows[scored]])
        if number is not None:
            direction = 1 if auc(y[fitted], number[fitted]) >= 0.5 else -1
            best = max(best, auc(y[scored], direction * number[scored]))
        found.append(best)
    return float(np.mean(found))


def guess_features(
    frame: pd.DataFrame,
    labels: str | Task | Sequence[str | Task],
    *,
    time: str | None = None,
    user: str | None = None,
) -> tuple[list[str], list[str], pd.DataFrame]:
    """Propose which columns of a table are numbers and which are categories; you know better, so read the reasons.

    Parameters
    ----------
    labels : the columns to predict, or their tasks. time, user : columns by which you will split. The time is no
        feature; the user's id is a category (leave it out when you test on new users).

    Returns
    -------
    ``numeric`` and ``categorical``, lists of columns for :func:`prepare`, and a table with one row a column: ``use``
    (``numeric``, ``categorical``, ``dropped``, ``label``) and ``why``.
    """
    labels = [labels] if isinstance(labels, (str, Task)) else labels
    labels = [label.label_column if isinstance(label, Task) else label for label in labels]
    given = [*labels, *([time] if time else []), *([user] if user else [])]
    need_columns(frame, [*given, *frame.columns], "guess_features")
    told = dict.fromkeys(labels, ("label", "you said so"))
    told |= {time: ("dropped", "the time of the split")} if time else {}
    told |= {user: ("categorical", "ids of users")} if user else {}
    table = pd.DataFrame(
        [told.get(column) or _guess(frame[column], str(column)) for column in frame],
        index=pd.Index(frame.columns, name="column"),
        columns=["use", "why"],
    )
    return *(table.index[table["use"] == use].tolist() for use in ("numeric", "categorical")), table


def _guess(values: pd.Series, name: str) -> tuple[str, str]:
    """What one column is used as, and why."""
    lengths, known = vector_lengths(values), values.dropna()
    if len(lengths) == 1 and isinstance(known.iloc[0][0] if lengths[0] else None, (int, float, np.number)):
        return "numeric", f"vectors of {lengths[0]} numbers"
    if len(lengths):
        return "dropped", "lists in its cells: make one 0/1 column of each value, or vectors of one length"
    try:
        distinct = known.nunique()
    except (TypeError, NotImplementedError):
        return "dropped", "its cells are no single values"
    every_row = len(known) >= 20 and distinct > 0.95 * len(known)
    if not len(known) or (distinct == 1 and len(known) == len(values)):
        return "dropped", "it holds nothing" if not len(known) else "one value in every row"
    if pd.api.types.is_bool_dtype(known):
        return "categorical", "yes or no"
    if pd.api.types.is_numeric_dtype(known) and not pd.api.types.is_complex_dtype(known):
        if not bool((known % 1 == 0).all()):
            return "numeric", "numbers"
        if MOMENT_NAME.search(name):
            return "dropped", "a moment, by its name: make features of it, such as the hour"
        coded = CODE_NAME.search(name)
        if every_row and (coded or float(known.max() - known.min()) == len(known) - 1):
            return "dropped", "another number in (nearly) every row, as a row number has"
        if coded or distinct <= FEW:
            why = "by its name" if coded else f"only {distinct} values"
            return (
                "categorical",
                f"whole numbers that look like codes ({why}): if amounts, move it to numeric",
            )
        return "numeric", "whole numbers of many values: if codes, move it to categorical"
    texts = pd.Series(known.unique()).head(2000)
    first = str(texts.iloc[0])
    if not isinstance(texts.iloc[0], (str, int, float)) or DATE_TEXT.match(first):
        return "dropped", "dates or the like: make numbers of them, such as days before the event"
    texts = texts.astype(str)
    numbers = pd.to_numeric(texts, errors="coerce")
    if numbers.notna().all() and not (numbers % 1 == 0).all():
        return "numeric", "numbers written as text"
    if texts.str.contains(r"[|;]|^\[|,(?=\S)").mean() > 0.5:
        return (
            "dropped",
            "several values in a cell, or a decimal comma: make a column of each (str.get_dummies), or numbers",
        )
    if texts.str.contains(" ").mean() > 0.5 and texts.str.len().mean() > 30:
        return "dropped", "free text: make vectors of it first"
    if every_row and not CODE_NAME.search(name):
        return "dropped", "another value in (nearly) every row"
    return "categorical", f"{distinct:,} values"


@dataclass
class Splits:
    """Training, validation and test data that share one encoder; ``frames`` keeps the rows they were made from."""

    train: MultiTaskDataset
    valid: MultiTaskDataset
    test: MultiTaskDataset
    frames: dict[str, pd.DataFrame]
    encoder: FeatureEncoder
    tasks: tuple[Task, ...]

    @property
    def schema(self) -> Schema:
        return self.encoder.schema


def prepare(
    frames: dict[str, pd.DataFrame],
    tasks: Sequence[Task],
    numeric: Sequence[str],
    categorical: Sequence[str],
    *,
    min_count: int = 1,
    weight: str | None = None,
    device: torch.device | str = "cpu",
) -> Splits:
    """Fit the encoder on ``frames["train"]`` and encode all three parts.

    Regression labels are standardised by the training labels (``MultiTaskDataset.scales``).

    Parameters
    ----------
    frames : ``{"train", "valid", "test"}``, as the split functions return them.
    min_count : see :class:`FeatureEncoder`.
    weight : column of row weights, 0 or more: how much a row counts in the losses.

    Raises
    ------
    ValueError : a feature is a label or a copy of one; a binary label has no 0 in training. KeyError : a part or
    column is missing.
    """
    missing = [part for part in ("train", "valid", "test") if part not in frames]
    if missing:
        raise KeyError(f"prepare needs frames named train, valid and test; {', '.join(missing)} is missing.")
    tasks = check_tasks(tasks)
    for task in tasks:
        _refuse_label_copies(frames["train"], task, [*numeric, *categorical])
    encoder = FeatureEncoder(numeric, categorical, min_count).fit(frames["train"], tasks)
    parts = {
        part: MultiTaskDataset.from_frame(frames[part], encoder, tasks, weight).to(device)
        for part in ("train", "valid", "test")
    }
    return Splits(**parts, frames=dict(frames), encoder=encoder, tasks=tasks)


def _refuse_label_copies(train: pd.DataFrame, task: Task, features: Sequence[str]) -> None:
    """ValueError when a feature is the label in other words (yes and no, cents), or when no label is negative."""
    y = read_labels(train, task)[0]
    known = np.flatnonzero(~np.isnan(y) & ((y >= 0) | (task.kind != "multiclass")))
    if task.kind == "binary" and len(known) and y[known].all():
        cure = f"if missing means no, write fillna({{{task.label_column!r}: 0}}); else add rows where it did not happen"
        raise ValueError(f"Label {task.label_column!r} is 1 wherever it is known in training: {cure}.")

    def is_copy(column: str, rows: np.ndarray) -> bool:
        values, labels = train[column].iloc[rows], y[rows]
        if len(vector_lengths(values)):
            return False
        if task.kind == "regression":
            values = pd.to_numeric(values, errors="coerce").to_numpy(float, na_value=np.nan)
            if not np.isfinite(values).all() or np.ptp(values) == 0:
                return False
            return abs(np.corrcoef(values, labels)[0, 1]) > 1 - 1e-9
        return np.array_equal(pd.factorize(values)[0], pd.factorize(labels)[0])

    several = len(known) >= MIN_POSITIVES and np.ptp(y[known]) > 0
    need_columns(train, features, "prepare")
    for column in features:
        copy = several and is_copy(column, known[:1000]) and is_copy(column, known)
        if column == task.label_column or copy:
            what = "is" if column == task.label_column else "is a copy of"
            raise ValueError(f"The feature {column!r} {what} the label {task.label_column!r}: leave it out.")
