"""Tasks, features and batches: from a pandas table to tensors on the device.

Taught in notebook 01 (cleaning, encoding, splitting) and used by every later one.

The path is always the same: clean a frame, split it, fit a :class:`FeatureEncoder` on the training part only,
and turn each part into a :class:`MultiTaskDataset`, whose batches are slices of tensors that already lie on the
device. :func:`prepare` does the last two steps at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import torch
from torch import Tensor

__all__ = [
    "Batch",
    "FeatureEncoder",
    "MultiTaskDataset",
    "Schema",
    "Splits",
    "Task",
    "check_leaks",
    "clip_outliers",
    "convert_units",
    "drop_duplicate_rows",
    "hide_labels",
    "prepare",
    "split_by_time",
    "split_by_user",
    "tidy_text",
]

KINDS = ("binary", "multiclass", "regression")


@dataclass(frozen=True)
class Task:
    """One thing to predict.

    Parameters
    ----------
    name : key of this task in every dictionary of logits, labels, losses and weights.
    kind : ``"binary"`` (one logit), ``"multiclass"`` (``n_classes`` logits) or ``"regression"`` (one value).
    n_classes : number of classes; needed for, and only for, a multiclass task.
    label : column that holds the label; the task's name unless given.
    """

    name: str
    kind: str = "binary"
    n_classes: int | None = None
    label: str | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(
                f"Task {self.name!r}: kind is {self.kind!r}, expected one of {', '.join(KINDS)}."
            )
        if self.kind == "multiclass" and (self.n_classes is None or self.n_classes < 2):
            raise ValueError(
                f"Task {self.name!r} is multiclass: give n_classes of 2 or more, got {self.n_classes}."
            )
        if self.kind != "multiclass" and self.n_classes is not None:
            raise ValueError(
                f"Task {self.name!r} is {self.kind}: leave n_classes out (it came as {self.n_classes})."
            )

    @property
    def n_outputs(self) -> int:
        """Number of logits its tower ends in."""
        return self.n_classes if self.kind == "multiclass" else 1

    @property
    def label_column(self) -> str:
        return self.label or self.name


def check_tasks(tasks: Sequence[Task]) -> tuple[Task, ...]:
    """Return the tasks as a tuple; raise ValueError when there is none or two share a name."""
    tasks = (tasks,) if isinstance(tasks, Task) else tuple(tasks)
    names = [task.name for task in tasks]
    if not names:
        raise ValueError("No task was given: expected at least one Task.")
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise ValueError(
            f"Task names must differ, but {', '.join(map(repr, doubled))} stands more than once."
        )
    return tasks


# ------------------------------------------------------------------------------------------------- cleaning


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


# ------------------------------------------------------------------------------------------------- splitting


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
    from .metrics import auc

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


# ------------------------------------------------------------------------------------------------- encoding


@dataclass(frozen=True)
class Schema:
    """What a model needs to know of its input: names of numeric columns, and each categorical column's cardinality.

    A cardinality counts the bucket 0, which stands for unknown and missing values.
    """

    numeric: tuple[str, ...]
    categorical: dict[str, int]


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


# ------------------------------------------------------------------------------------------------- tensors


@dataclass
class Batch:
    """Rows a model sees at once: ``numeric`` (n, D), ``categorical`` (n, C), ``labels`` and ``masks`` by task, (n,)."""

    numeric: Tensor
    categorical: Tensor
    labels: dict[str, Tensor]
    masks: dict[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.numeric)


@dataclass
class MultiTaskDataset:
    """A table as tensors on one device, with one label tensor a task.

    Attributes
    ----------
    numeric : float32 (n, D). categorical : int64 (n, C).
    labels : ``{task: (n,)}``, float32 for binary and regression, int64 for multiclass. A missing label is stored as 0.
    masks : ``{task: bool (n,)}``, True where the label is known; only for tasks with missing labels.
    tasks : the tasks, in order.
    """

    numeric: Tensor
    categorical: Tensor
    labels: dict[str, Tensor]
    masks: dict[str, Tensor]
    tasks: tuple[Task, ...]

    @classmethod
    def from_frame(
        cls, frame: pd.DataFrame, encoder: FeatureEncoder, tasks: Sequence[Task]
    ) -> MultiTaskDataset:
        """Encode a frame; labels that are NaN (or negative, for multiclass) count as missing."""
        numeric, categorical = encoder.transform(frame)
        tasks, labels, masks = check_tasks(tasks), {}, {}
        for task in tasks:
            labels[task.name], known = _encode_labels(frame, task)
            if not bool(known.all()):
                masks[task.name] = known
        return cls(numeric, categorical, labels, masks, tasks)

    def __len__(self) -> int:
        return len(self.numeric)

    @property
    def device(self) -> torch.device:
        return self.numeric.device

    def to(self, device: torch.device | str) -> MultiTaskDataset:
        return self._map(lambda tensor: tensor.to(device))

    def take(self, index: Tensor | Sequence[int] | slice) -> MultiTaskDataset:
        """The rows of ``index``, in that order, as a new dataset."""
        if not isinstance(index, slice):
            index = torch.as_tensor(index, device=self.device)
            index = index if index.numel() else index.long()  # an empty list comes as floats
        return self._map(lambda tensor: tensor[index])

    def select(self, tasks: Sequence[str]) -> MultiTaskDataset:
        """The same rows with only the named tasks (the tensors are shared, not copied)."""
        known = {task.name: task for task in self.tasks}
        missing = [name for name in tasks if name not in known]
        if missing:
            raise KeyError(f"No task {', '.join(map(repr, missing))}; this dataset has {', '.join(known)}.")
        return MultiTaskDataset(
            self.numeric,
            self.categorical,
            {name: self.labels[name] for name in tasks},
            {name: self.masks[name] for name in tasks if name in self.masks},
            tuple(known[name] for name in tasks),
        )

    def batches(
        self,
        batch_size: int,
        shuffle: bool = True,
        generator: torch.Generator | None = None,
        drop_last: bool = False,
    ) -> Iterator[Batch]:
        """Yield :class:`Batch` after batch; ``generator`` (a CPU generator) fixes the order.

        No row is collated by itself: a batch is one gather per tensor, on the device the tensors lie on.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}: expected 1 or more.")
        n = len(self)
        order = torch.randperm(n, generator=generator).to(self.device) if shuffle else None
        for start in range(0, n - batch_size + 1 if drop_last else n, batch_size):
            rows = slice(start, start + batch_size) if order is None else order[start : start + batch_size]
            yield Batch(
                self.numeric[rows],
                self.categorical[rows],
                {name: label[rows] for name, label in self.labels.items()},
                {name: mask[rows] for name, mask in self.masks.items()},
            )

    def _map(self, change: Callable[[Tensor], Tensor]) -> MultiTaskDataset:
        return MultiTaskDataset(
            change(self.numeric),
            change(self.categorical),
            {name: change(label) for name, label in self.labels.items()},
            {name: change(mask) for name, mask in self.masks.items()},
            self.tasks,
        )


def _encode_labels(frame: pd.DataFrame, task: Task) -> tuple[Tensor, Tensor]:
    """Label tensor (missing as 0) and the mask of known labels; ValueError when a label does not fit its task."""
    if task.label_column not in frame:
        raise KeyError(
            f"Task {task.name!r} needs a column {task.label_column!r}; the table has "
            f"{', '.join(map(str, frame.columns))}."
        )
    try:
        values = frame[task.label_column].astype(float).to_numpy()
    except (TypeError, ValueError) as error:
        raise ValueError(f"Labels of task {task.name!r} must be numbers: {error}.") from None
    known = ~np.isnan(values)
    if task.kind == "multiclass":
        known &= values >= 0
    seen = values[known]
    if task.kind == "binary":
        fits, expected = np.isin(seen, (0, 1)), "0 or 1"
    elif task.kind == "multiclass":
        fits, expected = (
            (seen == np.floor(seen)) & (seen < task.n_classes),
            f"whole numbers from 0 to {task.n_classes - 1}",
        )
    else:
        fits, expected = np.isfinite(seen), "finite numbers"
    if not fits.all():
        raise ValueError(
            f"Labels of {task.kind} task {task.name!r} must be {expected}; found {seen[~fits][0]:g}."
        )
    dtype = np.int64 if task.kind == "multiclass" else np.float32
    return torch.from_numpy(np.where(known, values, 0).astype(dtype)), torch.from_numpy(known)


def hide_labels(dataset: MultiTaskDataset, task: str, keep: int | float, seed: int = 0) -> MultiTaskDataset:
    """Keep only some labels of one task, chosen at random: the knob of label scarcity.

    Parameters
    ----------
    keep : how many labelled rows stay (a whole number) or which share of them (a float between 0 and 1).
    """
    if task not in dataset.labels:
        raise KeyError(f"No task {task!r}; this dataset has {', '.join(dataset.labels)}.")
    mask = dataset.masks.get(task, torch.ones(len(dataset), dtype=torch.bool, device=dataset.device))
    known = mask.nonzero().squeeze(-1)
    number = round(keep * len(known)) if isinstance(keep, float) else keep
    if not 0 <= number <= len(known):
        raise ValueError(f"keep={keep} asks for {number} labels of {task!r}; there are {len(known)}.")
    # numpy's generator: torch's would draw the very order in which fit(seed=seed) visits the rows of its first epoch
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(known)))
    chosen = known[order[:number].to(dataset.device)]
    kept = torch.zeros_like(mask)
    kept[chosen] = True
    labels = dataset.labels | {
        task: torch.where(kept, dataset.labels[task], torch.zeros_like(dataset.labels[task]))
    }
    return MultiTaskDataset(
        dataset.numeric, dataset.categorical, labels, dataset.masks | {task: kept}, dataset.tasks
    )


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
