"""From a pandas table to splits as tensors: splitting, one encoder from raw rows to tensors, and `prepare`.

Taught in notebook 01 and used by every later one. The path is always the same: split a clean frame, fit a
:class:`FeatureEncoder` on the training part only, and turn each part into a :class:`MultiTaskDataset`, whose
batches are slices of tensors on the device. :func:`prepare` does the last two steps at once.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from mtl_helpers.data.tables import MultiTaskDataset, Schema, Task, check_tasks, need_columns, read_labels

__all__ = ["FeatureEncoder", "Splits", "prepare", "split_by_time", "split_by_user"]

MIN_POSITIVES = 20  # fewer rows of a class prove nothing of a feature


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
        raise ValueError(f"split_by_user got {users} user(s): expected 3 or more, one for each part.")

    def cut(part: pd.DataFrame, share: float) -> tuple[pd.DataFrame, pd.DataFrame]:
        splitter = GroupShuffleSplit(n_splits=1, test_size=share, random_state=seed)
        keep, off = next(splitter.split(part, groups=part[user]))
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


class FeatureEncoder:
    """Turn a frame's columns into tensors, with everything fitted on the training frame.

    Numeric columns are standardised (mean 0, variance 1 on the training rows); a missing value becomes 0, the mean. A
    column of vectors (lists or arrays of one length d) becomes the d numeric features ``name_0`` … ``name_{d-1}``.
    Categorical columns become integers 1, 2, …; 0 is the bucket of values that are missing, were never seen in
    training, or were seen fewer than ``min_count`` times there. Categories compare as what they mean: 7, 7.0 and "7"
    are one, whatever the dtype in training and later; text stays as it is written, so "007" is another.

    Parameters
    ----------
    numeric, categorical : column names.
    min_count : how often a category must stand in the training frame to get a number of its own.

    Attributes
    ----------
    categories_ : ``{column: Index of text}``, in the order of their integers. mean_, scale_ : of the numeric features.
    scales : ``{task: (mean, deviation)}`` of regression labels, when fitted with their tasks.
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
        need_columns(frame, [*self.numeric, *self.categorical], "FeatureEncoder")
        blocks = [_numbers(frame, name) for name in self.numeric]
        self.widths_ = [1 if block.ndim == 1 else block.shape[1] for block in blocks]
        self.mean_, self.scale_ = _mean_and_spread(np.column_stack([np.empty((len(frame), 0)), *blocks]))
        self.categories_, self.rare_ = {}, {}
        for column in self.categorical:
            texts, codes, order = _categories(frame[column])
            counts = np.bincount(codes[codes >= 0], minlength=len(texts))
            kept = [i for i in order if counts[i] >= self.min_count]
            self.categories_[column] = pd.Index([texts[i] for i in kept], dtype=object)
            self.rare_[column] = 1 - float(counts[kept].sum() / max(counts.sum(), 1))
        for task in tasks:
            if task.kind == "regression":
                mean, spread = _mean_and_spread(read_labels(frame, task)[0][:, None])
                self.scales[task.name] = (float(mean[0]), float(spread[0]))
        return self

    def transform(self, frame: pd.DataFrame) -> tuple[Tensor, Tensor]:
        """Return ``numeric`` (n, D) float32 and ``categorical`` (n, C) int64.

        Warns when more than half of a categorical column is unknown although it is there.
        """
        self._check_fitted()
        need_columns(frame, [*self.numeric, *self.categorical], "FeatureEncoder")
        numbers = np.empty((len(frame), len(self.mean_)))
        ends = np.cumsum([0, *self.widths_])
        for name, width, start in zip(self.numeric, self.widths_, ends, strict=False):
            block = _numbers(frame, name).reshape(len(frame), -1)
            found = block.shape[1]
            if found != width and len(frame):
                raise ValueError(f"Feature {name!r} has {found} numbers a row; in training it had {width}.")
            numbers[:, start : start + width] = block
        codes = np.zeros((len(frame), len(self.categorical)), dtype=np.int64)
        for i, column in enumerate(self.categorical):
            texts, rows, _ = _categories(frame[column])
            table = self.categories_[column].get_indexer(texts) + 1
            codes[:, i] = np.append(table, 0)[rows]
            unknown, known = (codes[:, i] == 0) & (rows >= 0), (rows >= 0).sum()
            if len(texts) > 1 and unknown.sum() > known * (0.5 + self.rare_[column] / 2):
                warnings.warn(
                    f"{unknown.sum():,} of {known:,} values of {column!r} were not seen in training, such as "
                    f"{texts[rows[unknown][0]]!r} (training had {self.categories_[column][:1].tolist()}), and count as "
                    "unknown: write them as in training, or leave the column out.",
                    stacklevel=2,
                )
        numbers = (numbers - self.mean_) / self.scale_
        return torch.from_numpy(np.nan_to_num(numbers, nan=0.0).astype(np.float32)), torch.from_numpy(codes)

    @property
    def schema(self) -> Schema:
        self._check_fitted()
        names = []
        for name, width in zip(self.numeric, self.widths_, strict=True):
            names += [name] if width == 1 else [f"{name}_{i}" for i in range(width)]
        return Schema(tuple(names), {column: len(known) + 1 for column, known in self.categories_.items()})

    def state(self) -> dict[str, Any]:
        """Everything that was fitted, as numbers, text, lists and dictionaries: what ``json`` can write."""
        self._check_fitted()
        return {
            "numeric": list(self.numeric),
            "categorical": list(self.categorical),
            "min_count": int(self.min_count),
            "widths": self.widths_,
            "mean": self.mean_.tolist(),
            "scale": self.scale_.tolist(),
            "categories": {name: known.tolist() for name, known in self.categories_.items()},
            "rare": self.rare_,
            "scales": {name: list(pair) for name, pair in self.scales.items()},
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> FeatureEncoder:
        """The encoder whose :meth:`state` this was."""
        encoder = cls(state["numeric"], state["categorical"], state["min_count"])
        encoder.widths_, encoder.rare_ = list(state["widths"]), dict(state["rare"])
        encoder.mean_, encoder.scale_ = (np.array(state[part], dtype=float) for part in ("mean", "scale"))
        encoder.categories_ = {c: pd.Index(state["categories"][c], dtype=object) for c in encoder.categorical}
        encoder.scales = {name: tuple(pair) for name, pair in state["scales"].items()}
        size, values = sum(encoder.widths_), np.concatenate([encoder.mean_, encoder.scale_])
        if len(values) != 2 * size or not np.isfinite(values).all() or not (encoder.scale_ > 0).all():
            raise ValueError("The encoder's means or scales do not fit its columns: the state is damaged.")
        return encoder

    def _check_fitted(self) -> None:
        if not hasattr(self, "categories_"):
            raise RuntimeError("This FeatureEncoder has not seen data yet: call fit(train_frame) first.")


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

    Raises ValueError when a feature is a label or a copy of one, or a binary label has no 0 in training; KeyError when
    a part or column is missing.
    """
    names = ("train", "valid", "test")
    if missing := [part for part in names if part not in frames]:
        raise KeyError(f"prepare needs frames named train, valid and test; {', '.join(missing)} is missing.")
    tasks = check_tasks(tasks)
    for task in tasks:
        _refuse_label_copies(frames["train"], task, [*numeric, *categorical])
    encoder = FeatureEncoder(numeric, categorical, min_count).fit(frames["train"], tasks)
    parts = [MultiTaskDataset.from_frame(frames[part], encoder, tasks, weight).to(device) for part in names]
    return Splits(*parts, dict(frames), encoder, tasks)


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


def _mean_and_spread(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation of the known values of each column of (n, D); 1 for the deviation of a constant."""
    observed = (~np.isnan(numbers)).sum(0)
    mean = np.where(observed > 0, np.nansum(numbers, 0) / np.maximum(observed, 1), 0.0)
    spread = np.sqrt(np.nansum((numbers - mean) ** 2, 0) / np.maximum(observed, 1))
    return mean, np.where(spread > 1e-12, spread, 1.0)


def vector_lengths(values: pd.Series) -> np.ndarray:
    """Lengths that occur among the lists and arrays in a column's cells; none where its cells are no lists."""
    if values.dtype != object and "list" not in str(values.dtype):
        return np.array([], int)
    lengths = [len(cell) for cell in values if isinstance(cell, (list, tuple, np.ndarray))]
    return np.unique(lengths)


def _numbers(frame: pd.DataFrame, name: str) -> np.ndarray:
    """A numeric column as float64 (n,), or (n, d) where its cells are vectors; missing as NaN."""
    lengths = vector_lengths(frame[name])
    if len(lengths) > 1:
        cure = "make one 0/1 column of each value, or vectors of one length"
        raise ValueError(f"The cells of {name!r} are lists of {lengths[0]} to {lengths[-1]} values: {cure}.")
    try:
        if len(lengths):
            gap = np.full(lengths[0], np.nan)
            cells = [cell if isinstance(cell, (list, tuple, np.ndarray)) else gap for cell in frame[name]]
            numbers = np.array(cells, dtype=float)
        else:
            numbers = frame[name].astype(float).to_numpy()
    except (TypeError, ValueError) as error:
        why = f"something that is no number ({error}): clean it or list it as categorical"
        raise ValueError(f"Numeric feature {name!r} holds {why}.") from None
    if np.isinf(numbers).any():
        raise ValueError(f"Numeric feature {name!r} holds infinite values: replace them before encoding.")
    return numbers


def _categories(values: pd.Series) -> tuple[list[str], np.ndarray, list[int]]:
    """The different categories of a column as text, the position of each row's (-1: missing), and their order:
    numbers by size, then text by the alphabet. Works on the distinct values alone."""
    try:
        rows, found = pd.factorize(values)
    except (TypeError, NotImplementedError):
        cure = "make one 0/1 column of each value, or numeric vectors of one length"
        raise ValueError(f"The cells of {values.name!r} are lists, no categories: {cure}.") from None
    if pd.api.types.is_integer_dtype(found):  # a million ids: the same, without looking at each
        found = found.tolist()
        return list(map(str, found)), rows, sorted(range(len(found)), key=found.__getitem__)
    written = [_written(value) for value in found]
    texts = list(dict.fromkeys(written))
    if len(texts) < len(written):  # 7 and "7" in one column, as read in pieces
        warnings.warn(
            f"The column {values.name!r} holds a value as number and as text; both count as one category: read it with "
            "dtype=str if they differ.",
            stacklevel=3,
        )
        place = {text: i for i, text in enumerate(texts)}
        rows = np.append([place[text] for text in written], -1)[rows]
    kinds = (bool, int, float, np.number, np.bool_, Decimal)
    numbers = {text: value for text, value in zip(written, found, strict=True) if isinstance(value, kinds)}

    def rank(i: int) -> tuple[bool, float, str]:
        return texts[i] not in numbers, numbers.get(texts[i], 0), texts[i]

    return texts, rows, sorted(range(len(texts)), key=rank)


def _written(value: Any) -> str:
    """A category as text: 7 and 7.0 as "7", a day as "2024-05-01", text as it is."""
    if isinstance(value, (float, np.floating, Decimal)) and value == value // 1:
        return str(int(value))
    return value if isinstance(value, str) else str(value).removesuffix(" 00:00:00")
