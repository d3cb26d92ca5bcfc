"""Tasks, schema, data sets and batches: a table as tensors on the device.

Taught in notebook 01 and used by every later one. `features` makes these from a pandas table; here nothing is fitted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

__all__ = ["Batch", "MultiTaskDataset", "Schema", "Task", "hide_labels"]

KINDS = ("binary", "multiclass", "regression")


@dataclass(frozen=True)
class Task:
    """One thing to predict.

    ``name`` is the column of its label, and its key in every dictionary of logits, labels, losses and weights; ``kind``
    ``"binary"`` (one logit), ``"multiclass"`` (``n_classes`` logits, needed for, and only for, this kind) or
    ``"regression"`` (one value).
    """

    name: str
    kind: str = "binary"
    n_classes: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"Task {self.name!r}: kind is {self.kind!r}, expected one of {KINDS}.")
        if (self.n_classes or 0) < 2 if self.kind == "multiclass" else self.n_classes is not None:
            rule = "a multiclass task needs 2 or more, any other kind none"
            raise ValueError(f"Task {self.name!r} is {self.kind} with n_classes={self.n_classes}: {rule}.")

    @property
    def n_outputs(self) -> int:
        """Number of logits its tower ends in."""
        return self.n_classes if self.kind == "multiclass" else 1


def check_tasks(tasks: Task | Sequence[Task]) -> tuple[Task, ...]:
    """Return the tasks as a tuple; raise ValueError when there is none or two share a name."""
    tasks = (tasks,) if isinstance(tasks, Task) else tuple(tasks)
    names = [task.name for task in tasks]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"Expected one Task or more, each with a name of its own, got {names or 'none'}.")
    return tasks


def need_columns(frame: pd.DataFrame, columns: Sequence[str], use: str) -> None:
    """Raise KeyError when a column that ``use`` needs is missing, ValueError when it is doubled."""
    for column in columns:
        if column not in frame:
            raise KeyError(f"{use} needs a column {column!r}; the table has {', '.join(map(str, frame))}.")
        if frame[column].ndim > 1:
            raise ValueError(f"The column {column!r} stands more than once: rename or drop the others.")


def need_dataset(data: Any, use: str) -> None:
    """Raise TypeError when a table or loader was passed in place of a :class:`MultiTaskDataset`."""
    if not isinstance(data, MultiTaskDataset):
        cure = "pass a part of prepare(frames, tasks, numeric, categorical), such as splits.train"
        raise TypeError(f"{use} needs a MultiTaskDataset and got a {type(data).__name__}: {cure}.")


@dataclass(frozen=True)
class Schema:
    """What a model needs to know of its input: names, and of each category its cardinality, with the bucket 0."""

    numeric: tuple[str, ...]
    categorical: dict[str, int]


@dataclass
class MultiTaskDataset:
    """A table, or some of its rows, as tensors on one device, with one label tensor a task.

    ``scales`` is ``{task: (mean, deviation)}`` of the training labels of regression tasks, which were standardised:
    ``label * deviation + mean`` is in the unit of the table. Empty where the labels are as they came.
    """

    numeric: Tensor  # float32 (n, D)
    categorical: Tensor  # int64 (n, C)
    labels: dict[str, Tensor]  # (n,), int64 for multiclass tasks, else float32; a missing label is 0
    masks: dict[str, Tensor] = field(default_factory=dict)  # bool (n,), True where known; if any are not
    tasks: tuple[Task, ...] = ()
    weights: Tensor | None = None  # float32 (n,), how much each row counts; None where all count alike
    scales: dict[str, tuple[float, float]] = field(default_factory=dict)

    @classmethod
    def from_frame(cls, frame: pd.DataFrame, encoder: Any, tasks: Sequence[Task]) -> MultiTaskDataset:
        """Encode a frame with a fitted :class:`FeatureEncoder`. Labels that are NaN (or negative, for multiclass) count
        as missing."""
        numeric, categorical = encoder.transform(frame)
        tasks, labels, masks = check_tasks(tasks), {}, {}
        scales = {task.name: encoder.scales[task.name] for task in tasks if task.name in encoder.scales}
        for task in tasks:
            values, known = read_labels(frame, task)
            mean, spread = scales.get(task.name, (0, 1))
            dtype = np.int64 if task.kind == "multiclass" else np.float32
            labels[task.name] = torch.from_numpy(np.where(known, (values - mean) / spread, 0).astype(dtype))
            masks |= {} if known.all() else {task.name: torch.from_numpy(known)}
        return cls(numeric, categorical, labels, masks, tasks, scales=scales)

    def __len__(self) -> int:
        return len(self.numeric)

    @property
    def device(self) -> torch.device:
        return self.numeric.device

    def to(self, device: torch.device | str) -> MultiTaskDataset:
        return self._changed(lambda tensor: tensor.to(device))

    def take(self, index: Tensor | Sequence[int] | slice) -> MultiTaskDataset:
        """The rows of ``index``, in that order, as a new dataset."""
        if not isinstance(index, slice):  # an empty list would come as floats
            index = torch.as_tensor(index if len(index) else np.empty(0, np.int64), device=self.device)
        return self._changed(lambda tensor: tensor[index])

    def select(self, tasks: Sequence[str]) -> MultiTaskDataset:
        """The same rows with only the named tasks (the tensors are shared, not copied)."""
        known, parts = {task.name: task for task in self.tasks}, (self.labels, self.masks, self.scales)
        labels, masks, scales = ({name: part[name] for name in tasks if name in part} for part in parts)
        kept = tuple(known[name] for name in tasks)
        return replace(self, tasks=kept, labels=labels, masks=masks, scales=scales)

    def batches(
        self, batch_size: int, shuffle: bool = True, generator: torch.Generator | None = None
    ) -> Iterator[Batch]:
        """Yield batches, each one gather per tensor on its device; ``generator`` (on the CPU) fixes the order."""
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}: expected 1 or more.")
        order = torch.randperm(len(self), generator=generator).to(self.device) if shuffle else None
        for start in range(0, len(self), batch_size):
            rows = slice(start, start + batch_size) if order is None else order[start : start + batch_size]
            yield self._changed(lambda tensor, rows=rows: tensor[rows])

    def _changed(self, change: Callable[[Tensor], Tensor]) -> MultiTaskDataset:
        """The same with every tensor changed."""
        labels, masks = ({k: change(v) for k, v in part.items()} for part in (self.labels, self.masks))
        tensors = {"numeric": change(self.numeric), "categorical": change(self.categorical)}
        weights = None if self.weights is None else change(self.weights)
        return replace(self, labels=labels, masks=masks, weights=weights, **tensors)


Batch = MultiTaskDataset  # the rows that a model sees at once are a small data set


def read_labels(frame: pd.DataFrame, task: Task) -> tuple[np.ndarray, np.ndarray]:
    """Labels (n,) as float64 and which are known (n,) bool; ValueError when one does not fit its task."""
    need_columns(frame, [task.name], f"Task {task.name!r}")
    try:
        values = frame[task.name].astype(float).to_numpy()
    except (TypeError, ValueError) as error:
        rule = "1 for yes, 0 for no, NaN where it is not known"
        raise ValueError(f"Labels of task {task.name!r} must be numbers, {rule}: {error}.") from None
    known = ~np.isnan(values)
    if task.kind == "multiclass":
        known &= values >= 0
    seen, last = values[known], max(task.n_outputs - 1, 1)
    fits, expected = np.isfinite(seen), "finite numbers"
    if task.kind != "regression":
        fits = np.isin(seen, range(last + 1))
        expected = f"whole numbers from 0 to {last}" if last > 1 else "0 or 1"
    if len(odd := seen[~fits]):
        raise ValueError(f"Labels of {task.kind} task {task.name!r} must be {expected}; found {odd[0]:g}.")
    return values, known


def hide_labels(dataset: MultiTaskDataset, task: str, keep: int, seed: int = 0) -> MultiTaskDataset:
    """Keep only so many labels of one task, chosen at random: the knob of label scarcity."""
    mask = dataset.masks.get(task, torch.ones_like(dataset.labels[task], dtype=torch.bool))
    known = mask.nonzero().squeeze(-1)
    if not 0 <= keep <= len(known):
        raise ValueError(f"hide_labels shall keep {keep} labels of {task!r}; there are {len(known)}.")
    # numpy's generator: torch's would draw the very order in which fit(seed=seed) visits the rows of its first epoch
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(known))).to(dataset.device)
    kept = torch.zeros_like(mask)
    kept[known[order[:keep]]] = True
    labels = dataset.labels | {task: dataset.labels[task].masked_fill(~kept, 0)}
    return replace(dataset, labels=labels, masks=dataset.masks | {task: kept})
