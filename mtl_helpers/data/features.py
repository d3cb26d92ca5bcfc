"""Tasks, features and batches: from a pandas table to tensors on the device.

Taught in notebook 01 (cleaning, encoding, splitting) and used by every later one.

The path is always the same: clean a frame, split it, fit a :class:`FeatureEncoder` on the training part only,
and turn each part into a :class:`MultiTaskDataset`, whose batches are slices of tensors that already lie on the
device. :func:`prepare` does the last two steps at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from mtl_helpers.data.tables import MultiTaskDataset, Schema, Task, check_tasks

__all__ = [
    "FeatureEncoder",
    "Splits",
    "check_leaks",
    "clip_outliers",
    "convert_units",
    "drop_duplicate_rows",
    "prepare",
    "split_by_time",
    "split_by_user",
    "tidy_text",
]


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


def _need_column(frame: pd.DataFrame, column: str, use: str) -> None:
    if column not in frame:
        raise KeyError(
            f"{use} needs a column {column!r}; the table has {', '.join(map(str, frame.columns))}."
        )


def _need_rows(parts: dict[str, pd.DataFrame], use: str, rows: int) -> dict[str, pd.DataFrame]:
    empty = [name for name, part in parts.items() if not len(part)]
    if empty:
        raise ValueError(
            f"{use} leaves the {' and '.join(empty)} part with no row, out of {rows}: give it more rows or other "
            "fractions."
        )
    return parts


def split_by_user(
    frame: pd.DataFrame, user: str = "user_id", fractions: Sequence[float] = (0.7, 0.15, 0.15), seed: int = 0
) -> dict[str, pd.DataFrame]:
    """Split at random, all rows of a user together, into ``{"train", "valid", "test"}``.

    Answers "how well does the model serve users it has never seen?". Fractions count users, not rows.
    """
    from sklearn.model_selection import GroupShuffleSplit

    _need_column(frame, user, "split_by_user")
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
    _need_column(frame, time, "split_by_time")
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
    return _need_rows(parts, "split_by_time", len(frame))


def check_leaks(
    frames: dict[str, pd.DataFrame],
    features: Sequence[str],
    tasks: Sequence[Task],
    *,
    time: str | None = None,
    user: str | None = None,
    suspicious_auc: float = 0.95,
) -> pd.DataFrame:
    """Look for the usual leaks between a training and a test frame; one row per check.

    Checks that no label is among the features; that no row of the test part stands in the training part; that
    training ends before validation and validation before test (``time`` given); that no user is in two parts
    (``user`` given); and that no single numeric feature alone reaches ``suspicious_auc`` on a binary label (an
    outcome in disguise, such as dwell time).

    Returns a frame with columns ``check``, ``passed`` and ``finding``.
    """
    from mtl_helpers.metrics import auc

    rows: list[tuple[str, bool, str]] = []

    def note(check: str, faults: list[str], fine: str) -> None:
        rows.append((check, not faults, "; ".join(faults) or fine))

    labels = [task.label_column for task in check_tasks(tasks)]
    note("no label among the features", [name for name in labels if name in features], "none")
    columns = [*dict.fromkeys([*features, *labels, *([time] if time else [])])]
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
    train, faults, best = frames["train"], [], ("", 0.5)
    for column in train[list(features)].select_dtypes("number"):
        # a missing value can be the leak itself, so it counts as a value below all others
        values = train[column].astype(float)
        values = values.fillna(values.min() - 1).to_numpy()
        for task in tasks:
            if task.kind != "binary":
                continue
            y = train[task.label_column].to_numpy(float)
            known = ~np.isnan(y)
            score = auc(y[known], values[known])
            score = max(score, 1 - score)
            if score >= suspicious_auc:
                faults.append(f"{column} alone reaches AUC {score:.3f} on {task.name}")
            if score > best[1]:
                best = (f"{column} on {task.name}", score)
    note("no feature is an outcome in disguise", faults, f"the strongest is {best[0]}, AUC {best[1]:.3f}")
    return pd.DataFrame(rows, columns=["check", "passed", "finding"])


class FeatureEncoder:
    """Turn a frame's columns into tensors, with everything fitted on the training frame.

    Numeric columns are standardised (mean 0, variance 1 on the training rows); a missing value becomes 0, the mean.
    Categorical columns become integers 1, 2, …; 0 is the bucket of values that are missing, were never seen in
    training, or were seen fewer than ``min_count`` times there.

    Parameters
    ----------
    numeric, categorical : column names.
    min_count : how often a category must stand in the training frame to get a number of its own.
    """

    def __init__(self, numeric: Sequence[str], categorical: Sequence[str], min_count: int = 1) -> None:
        self.numeric, self.categorical, self.min_count = tuple(numeric), tuple(categorical), min_count
        if not self.numeric and not self.categorical:
            raise ValueError(
                "FeatureEncoder got no column: name at least one numeric or categorical feature."
            )

    def fit(self, frame: pd.DataFrame) -> FeatureEncoder:
        """Learn means, deviations and categories from the training frame. Returns itself."""
        if not len(frame):
            raise ValueError("FeatureEncoder.fit got a frame without rows.")
        numbers = self._numbers(frame)
        with np.errstate(all="ignore"):
            observed = (~np.isnan(numbers)).sum(0)
            mean = np.where(observed > 0, np.nansum(numbers, 0) / np.maximum(observed, 1), 0.0)
            spread = np.sqrt(np.nansum((numbers - mean) ** 2, 0) / np.maximum(observed, 1))
        self.mean_, self.scale_ = mean, np.where(spread > 1e-12, spread, 1.0)
        self.categories_ = {}
        for column in self.categorical:
            counts = self._column(frame, column).value_counts()
            self.categories_[column] = pd.Index(sorted(counts.index[counts >= self.min_count]))
        return self

    def transform(self, frame: pd.DataFrame) -> tuple[Tensor, Tensor]:
        """Return ``numeric`` (n, D) float32 and ``categorical`` (n, C) int64."""
        self._check_fitted()
        numbers = (self._numbers(frame) - self.mean_) / self.scale_
        codes = np.zeros((len(frame), len(self.categorical)), dtype=np.int64)
        for i, column in enumerate(self.categorical):
            codes[:, i] = self.categories_[column].get_indexer(self._column(frame, column)) + 1
        return torch.from_numpy(np.nan_to_num(numbers, nan=0.0).astype(np.float32)), torch.from_numpy(codes)

    @property
    def schema(self) -> Schema:
        self._check_fitted()
        return Schema(self.numeric, {column: len(known) + 1 for column, known in self.categories_.items()})

    def _check_fitted(self) -> None:
        if not hasattr(self, "categories_"):
            raise RuntimeError("This FeatureEncoder has not seen data yet: call fit(train_frame) first.")

    @staticmethod
    def _column(frame: pd.DataFrame, column: str) -> pd.Series:
        if column not in frame:
            raise KeyError(
                f"Feature {column!r} is not a column; the table has {', '.join(map(str, frame.columns))}."
            )
        values = frame[column]
        if values.ndim > 1:
            raise ValueError(
                f"The column {column!r} stands {values.shape[1]} times in the table: rename or drop the others."
            )
        return values

    def _numbers(self, frame: pd.DataFrame) -> np.ndarray:
        out = np.empty((len(frame), len(self.numeric)))
        for i, name in enumerate(self.numeric):
            column = self._column(frame, name)
            try:
                out[:, i] = column.astype(float)
            except (TypeError, ValueError) as error:
                raise ValueError(
                    f"Numeric feature {name!r} holds something that is no number ({error}): clean the column or "
                    "list it as categorical."
                ) from None
            if np.isinf(out[:, i]).any():
                raise ValueError(
                    f"Numeric feature {name!r} holds infinite values: replace them before encoding."
                )
        return out


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
    device: torch.device | str = "cpu",
) -> Splits:
    """Fit the encoder on ``frames["train"]`` and encode all three parts.

    Parameters
    ----------
    frames : ``{"train", "valid", "test"}``, as the split functions return them.
    """
    missing = [part for part in ("train", "valid", "test") if part not in frames]
    if missing:
        raise KeyError(f"prepare needs frames named train, valid and test; {', '.join(missing)} is missing.")
    encoder = FeatureEncoder(numeric, categorical, min_count).fit(frames["train"])
    parts = {
        part: MultiTaskDataset.from_frame(frames[part], encoder, tasks).to(device)
        for part in ("train", "valid", "test")
    }
    return Splits(**parts, frames=dict(frames), encoder=encoder, tasks=check_tasks(tasks))
