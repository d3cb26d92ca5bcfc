"""From a pandas table to splits as tensors: splitting, one encoder from raw rows to tensors, and `prepare`.

Taught in notebook 01, used by all. The path is always the same: split a clean frame, fit a :class:`FeatureEncoder` on
the training part only, and turn each part into a :class:`MultiTaskDataset`; :func:`prepare` does the last two steps.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from mtl_helpers.data.tables import MultiTaskDataset, Schema, Task, check_tasks, need_columns, read_labels

__all__ = ["FeatureEncoder", "Splits", "prepare", "split_by_time", "split_by_user"]

LISTS = (list, tuple, np.ndarray)
MIN_POSITIVES = 20  # fewer rows of a class prove nothing of a feature
PARTS = ("train", "valid", "test")
CURE = "make one 0/1 column of each value, or numeric vectors of one length"  # for lists in cells


def _check_fractions(fractions: Sequence[float]) -> None:
    if len(fractions) != 3 or min(fractions) <= 0 or abs(sum(fractions) - 1) > 1e-6:
        raise ValueError(f"fractions are {tuple(fractions)}: expected three numbers above 0 that sum to 1.")


def split_by_user(
    frame: pd.DataFrame, user: str = "user_id", fractions: Sequence[float] = (0.7, 0.15, 0.15)
) -> dict[str, pd.DataFrame]:
    """Split at random, all rows of a user together, into ``{"train", "valid", "test"}``: how well does the model serve
    users it has never seen? Fractions count users, not rows."""
    from sklearn.model_selection import GroupShuffleSplit

    _check_fractions(fractions)
    parts = {"train": frame}
    for name, share in (("test", fractions[2]), ("valid", fractions[1] / (1 - fractions[2]))):
        splitter, rest = GroupShuffleSplit(1, test_size=share, random_state=0), parts["train"]
        keep, off = next(splitter.split(rest, groups=rest[user]))
        parts |= {"train": rest.iloc[keep], name: rest.iloc[off]}
    return {name: parts[name] for name in PARTS}


def split_by_time(
    frame: pd.DataFrame, time: str = "timestamp", fractions: Sequence[float] = (0.7, 0.15, 0.15)
) -> dict[str, pd.DataFrame]:
    """Split at two moments, train on the past, validate on what follows, test on the latest rows: how well will the
    model do tomorrow? Rows that share a moment stay in one part."""
    _check_fractions(fractions)
    moments = frame[time].sort_values(kind="stable")
    cuts = [int(len(moments) * share) for share in (fractions[0], fractions[0] + fractions[1])]
    return split_at(frame, frame[time], *moments.iloc[cuts])


def split_at(frame: pd.DataFrame, when: pd.Series, valid: Any, test: Any) -> dict[str, pd.DataFrame]:
    """Cut where the moments ``valid`` and ``test`` begin; ValueError when a part would be empty."""
    rows = {"train": when < valid, "valid": (when >= valid) & (when < test), "test": when >= test}
    if empty := " and ".join(name for name, part in rows.items() if not part.any()):
        raise ValueError(f"No row for {empty}, cut at {valid} and {test} of {when.min()} to {when.max()}.")
    return {name: frame[part] for name, part in rows.items()}


class FeatureEncoder:
    """Turn a frame's columns into tensors, with everything fitted on the training frame.

    Numeric columns are standardised (mean 0, variance 1 on the training rows); a missing value becomes 0, the mean. A
    column of vectors (lists or arrays of one length d) becomes the d numeric features ``name_0`` … ``name_{d-1}``.
    Categorical columns become integers 1, 2, …; 0 is the bucket of values that are missing, were never seen in
    training, or were seen fewer than ``min_count`` times there. Categories compare as what they mean: 7, 7.0 and "7"
    are one, whatever the dtype in training and later; text stays as it is written, so "007" is another.

    ``numeric`` and ``categorical`` are names of columns. Fitted: ``categories_``, ``{column: Index of text}``, in the
    order of their integers; ``mean_`` and ``scale_`` of numeric features; ``scales``, ``{task: (mean, deviation)}`` of
    the labels of regression tasks.
    """

    def __init__(self, numeric: Sequence[str], categorical: Sequence[str], min_count: int = 1) -> None:
        self.numeric, self.categorical, self.min_count = tuple(numeric), tuple(categorical), min_count
        self.scales: dict[str, tuple[float, float]] = {}
        if not self.numeric and not self.categorical:
            raise ValueError("FeatureEncoder got no column: name at least one numeric or categorical one.")

    def fit(self, frame: pd.DataFrame, tasks: Sequence[Task] = ()) -> FeatureEncoder:
        """Learn means, deviations and categories from the training frame, and the scale of the labels of regression
        ``tasks``. Returns itself."""
        if not len(frame):
            raise ValueError("FeatureEncoder.fit got a frame without rows.")
        blocks = [_numbers(frame, name) for name in self.numeric]
        self.widths_ = [block.shape[1] for block in blocks]
        self.mean_, self.scale_ = _mean_and_spread(np.hstack([np.empty((len(frame), 0)), *blocks]))
        self.categories_, self.rare_ = {}, {}
        for column in self.categorical:
            texts, rows = _categories(frame, column)
            counts = np.bincount(rows[rows >= 0], minlength=len(texts))
            kept = counts >= self.min_count
            self.categories_[column] = texts[kept]
            self.rare_[column] = 1 - float(counts[kept].sum() / max(counts.sum(), 1))
        for task in tasks:
            if task.kind == "regression":
                self.scales[task.name] = tuple(map(float, _mean_and_spread(read_labels(frame, task)[0])))
        return self

    def transform(self, frame: pd.DataFrame) -> tuple[Tensor, Tensor]:
        """Return ``numeric`` (n, D) float32 and ``categorical`` (n, C) int64. Warns when more than half of a
        categorical column is unknown although it is there."""
        blocks = [_numbers(frame, *column) for column in zip(self.numeric, self.widths_, strict=True)]
        numbers = (np.hstack([np.empty((len(frame), 0)), *blocks]) - self.mean_) / self.scale_
        codes = np.zeros((len(frame), len(self.categorical)), np.int64)
        for i, column in enumerate(self.categorical):
            texts, rows = _categories(frame, column)
            codes[:, i] = np.append(self.categories_[column].get_indexer(texts) + 1, 0)[rows]
            unknown, known = (codes[:, i] == 0) & (rows >= 0), (rows >= 0).sum()
            if len(texts) > 1 and unknown.sum() > known * (0.5 + self.rare_[column] / 2):
                what = f"{unknown.sum():,} of {known:,} values of {column!r} were not seen in training"
                some = f"{texts[rows[unknown][0]]!r} (training had {self.categories_[column][:1].tolist()})"
                cure = "and count as unknown: write them as in training, or leave the column out"
                warnings.warn(f"{what}, such as {some}, {cure}.", stacklevel=2)
        return torch.from_numpy(np.nan_to_num(numbers, nan=0.0).astype(np.float32)), torch.from_numpy(codes)

    @property
    def schema(self) -> Schema:
        names = []
        for name, width in zip(self.numeric, self.widths_, strict=True):
            names += [name] if width == 1 else [f"{name}_{i}" for i in range(width)]
        return Schema(tuple(names), {column: len(known) + 1 for column, known in self.categories_.items()})

    def state(self) -> dict[str, Any]:
        """Everything that was fitted, as numbers, text, lists and dictionaries: what ``json`` can write."""
        kept = {name.rstrip("_"): value for name, value in vars(self).items()}
        return json.loads(json.dumps(kept, default=lambda array: array.tolist()))

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> FeatureEncoder:
        """The encoder whose :meth:`state` this was."""
        encoder = cls(state["numeric"], state["categorical"], state["min_count"])
        encoder.widths_, encoder.rare_ = state["widths"], state["rare"]
        encoder.mean_, encoder.scale_ = np.array(state["mean"]), np.array(state["scale"])
        encoder.categories_ = {c: pd.Index(state["categories"][c], dtype=object) for c in encoder.categorical}
        encoder.scales = {name: tuple(pair) for name, pair in state["scales"].items()}
        return encoder


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
    frames: dict[str, pd.DataFrame], tasks: Sequence[Task], numeric: Sequence[str], categorical: Sequence[str], *,
    min_count: int = 1, device: torch.device | str = "cpu",
) -> Splits:  # fmt: skip
    """Fit the encoder on ``frames["train"]`` and encode all three parts, ``{"train", "valid", "test"}``.

    ``min_count`` is that of :class:`FeatureEncoder`. Regression labels are standardised by the training labels
    (``MultiTaskDataset.scales``). Raises ValueError when a feature is a label or a copy of one, or a binary label has
    no 0 in training; KeyError when a part or column is missing.
    """
    tasks = check_tasks(tasks)
    for task in tasks:
        _refuse_label_copies(frames["train"], task, [*numeric, *categorical])
    encoder = FeatureEncoder(numeric, categorical, min_count).fit(frames["train"], tasks)
    parts = [MultiTaskDataset.from_frame(frames[part], encoder, tasks).to(device) for part in PARTS]
    return Splits(*parts, dict(frames), encoder, tasks)


def _refuse_label_copies(train: pd.DataFrame, task: Task, features: Sequence[str]) -> None:
    """ValueError when a feature is the label in other words (yes and no, cents), or when no label is negative."""
    label, (y, known) = task.name, read_labels(train, task)
    known = np.flatnonzero(known)
    if task.kind == "binary" and len(known) and y[known].all():
        cure = f"if missing means no, write fillna({{{label!r}: 0}}); else add rows where it did not happen"
        raise ValueError(f"Label {label!r} is 1 wherever it is known in training: {cure}.")
    need_columns(train, features, "prepare")

    def is_copy(column: str, rows: np.ndarray) -> bool:
        values = train[column].iloc[rows]
        if task.kind == "regression":
            values = pd.to_numeric(values, errors="coerce").to_numpy(float, na_value=np.nan)
            return 0 < np.ptp(values) < np.inf and abs(np.corrcoef(values, y[rows])[0, 1]) > 1 - 1e-9
        return np.array_equal(pd.factorize(values)[0], pd.factorize(y[rows])[0])

    several = len(known) >= MIN_POSITIVES and np.ptp(y[known]) > 0
    for column in features:
        telling = several and not len(vector_lengths(train[column]))
        if column == label or (telling and is_copy(column, known[:1000]) and is_copy(column, known)):
            what = "is" if column == label else "is a copy of"
            raise ValueError(f"The feature {column!r} {what} the label {label!r}: leave it out.")


def _mean_and_spread(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation of the known values of each column of (n, D); 1 for the deviation of a constant."""
    observed = np.maximum((~np.isnan(numbers)).sum(0), 1)
    mean = np.nansum(numbers, 0) / observed
    spread = np.sqrt(np.nansum((numbers - mean) ** 2, 0) / observed)
    return mean, np.where(spread > 1e-12, spread, 1.0)


def vector_lengths(values: pd.Series) -> np.ndarray:
    """Lengths that occur among the lists and arrays in a column's cells; none where its cells are no lists."""
    cells = values if values.dtype == object or "list" in str(values.dtype) else ()
    return np.unique([len(cell) for cell in cells if isinstance(cell, LISTS)])


def _numbers(frame: pd.DataFrame, name: str, width: int | None = None) -> np.ndarray:
    """A numeric column as float64 (n, d), d > 1 where its cells are vectors; missing as NaN."""
    need_columns(frame, [name], "FeatureEncoder")
    values, lengths = frame[name], vector_lengths(frame[name])
    if len(lengths) > 1:
        raise ValueError(f"The cells of {name!r} are lists of {lengths[0]} to {lengths[-1]}: {CURE}.")
    if not len(lengths) and (width or 1) > 1 and values.isna().all():
        return np.full((len(values), width), np.nan)
    if len(lengths):
        values = [cell if isinstance(cell, LISTS) else np.full(lengths[0], np.nan) for cell in values]
    try:
        numbers = np.array(values, dtype=float) if len(lengths) else values.astype(float).to_numpy()[:, None]
    except (TypeError, ValueError) as error:
        why = f"something that is no number ({error}): clean it or list it as categorical"
        raise ValueError(f"Numeric feature {name!r} holds {why}.") from None
    if np.isinf(numbers).any():
        raise ValueError(f"Numeric feature {name!r} holds infinite values: replace them before encoding.")
    if width not in (None, numbers.shape[1]):
        raise ValueError(f"{name!r} has {numbers.shape[1]} numbers a row; in training it had {width}.")
    return numbers


def _categories(frame: pd.DataFrame, name: str) -> tuple[pd.Index, np.ndarray]:
    """The different categories of a column as text, numbers by size, then text by the alphabet, and the position of
    each row's (-1: missing). Works on the distinct values alone."""
    need_columns(frame, [name], "FeatureEncoder")
    try:
        rows, found = pd.factorize(frame[name])
    except (TypeError, NotImplementedError):
        raise ValueError(f"The cells of {name!r} are lists, no categories: {CURE}.") from None
    if pd.api.types.is_integer_dtype(found):  # a million ids: the same, without looking at each
        rows, found = pd.factorize(frame[name], sort=True)
        return pd.Index(list(map(str, found)), dtype=object), rows

    whole = [isinstance(value, (float, np.floating)) and value == value // 1 for value in found]
    texts = [str(int(value) if is_whole else value) for value, is_whole in zip(found, whole, strict=True)]
    kinds = (bool, int, float, np.number, np.bool_)
    numbers = {text: value for text, value in zip(texts, found, strict=True) if isinstance(value, kinds)}
    if len(set(texts)) < len(texts):  # 7 and "7" in one column, as read in pieces
        cure = "both count as one category: read it with dtype=str if they differ"
        warnings.warn(f"The column {name!r} holds a value as number and as text; {cure}.", stacklevel=3)
    index = pd.Index(sorted(set(texts), key=lambda t: (t not in numbers, numbers.get(t, 0), t)), dtype=object)
    return index, np.append(index.get_indexer(texts), -1)[rows]
