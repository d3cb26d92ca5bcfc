"""One loss per task, computed on logits, over labelled rows only.

Taught in notebook 02 (the training loop) and taken apart in notebook 03 (the loss math).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Real

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, mse_loss

from mtl_helpers.data.tables import Batch, Task

__all__ = ["check_weights", "label_counts", "task_loss", "task_losses", "to_prediction", "weighted_sum"]

BY_KIND = {"binary": binary_cross_entropy_with_logits, "multiclass": cross_entropy, "regression": mse_loss}


def task_loss(
    task: Task, logits: Tensor, labels: Tensor, mask: Tensor | None = None, weights: Tensor | None = None
) -> Tensor:
    """Mean loss of one task over its labelled rows: a scalar; (K,) for K models.

    Binary: sigmoid cross-entropy on the logit. Multiclass: softmax cross-entropy on the logits. Regression: squared
    error. The sigmoid and the softmax are inside the loss, where they cannot overflow.

    Parameters
    ----------
    logits : (n,) for binary and regression, (n, n_classes) for multiclass; (K, …) for K models at once.
    labels : (n,); float for binary and regression, int64 for multiclass.
    mask : bool (n,), True where the label is known; None when all are. Without one known label the loss is 0.
    weights : (n,), how much each row counts in the mean; None when all count alike.

    Raises ValueError or TypeError when logits or labels have another shape or dtype than the task's.
    """
    classes = task.kind == "multiclass"
    wanted = (*labels.shape, task.n_classes) if classes else tuple(labels.shape)
    found = tuple(logits.shape)
    if found[-len(wanted) :] != wanted:
        raise ValueError(f"Task {task.name!r} ({task.kind}): logits {found}, labels ask for {wanted}.")
    if labels.dtype.is_floating_point == classes:
        dtype = "int64" if classes else "float"
        raise TypeError(f"Labels of {task.kind} task {task.name!r} must be {dtype}, got {labels.dtype}.")
    labels = labels.expand(*found[: -len(wanted)], *labels.shape)
    shape = labels.shape
    if classes and task.n_classes < 16:  # which of two ways to take K models at once is faster on a CPU
        logits = logits.movedim(-1, 1)
    elif classes:
        logits, labels = logits.flatten(0, -2), labels.flatten()
    rows = BY_KIND[task.kind](logits, labels, reduction="none").view(shape)
    if mask is None and weights is None:
        return rows.mean(-1)
    share = mask.to(rows.dtype) if weights is None else weights if mask is None else weights * mask
    return (rows * share).sum(-1) / share.sum(-1).clamp(min=1e-12)


def task_losses(tasks: Sequence[Task], logits: Mapping[str, Tensor], batch: Batch) -> dict[str, Tensor]:
    """``{task: mean loss}`` of a batch, for all tasks."""
    known = {task.name: (batch.labels[task.name], batch.masks.get(task.name)) for task in tasks}
    return {task.name: task_loss(task, logits[task.name], *known[task.name], batch.weights) for task in tasks}


def label_counts(tasks: Sequence[Task], batch: Batch) -> Tensor:
    """How many labelled rows (or how much row weight) stand behind each task's mean loss, (T,)."""
    each = torch.ones(len(batch), device=batch.numeric.device) if batch.weights is None else batch.weights
    masks = [batch.masks.get(task.name) for task in tasks]
    return torch.stack([each.sum() if mask is None else (each * mask).sum() for mask in masks])


def check_weights(weights: Mapping[str, float], names: Sequence[str]) -> None:
    """Raise ValueError unless each named task has one weight, finite, not negative, and not all are 0."""
    if set(weights) != set(names):
        given, wanted = (", ".join(map(repr, tasks)) or "no task" for tasks in (weights, names))
        raise ValueError(f"Weights are given for {given}; expected one for each of {wanted}.")
    if bad := {name: w for name, w in weights.items() if not (isinstance(w, Real) and 0 <= w < math.inf)}:
        raise ValueError(f"A task weight must be a finite number, 0 or more; got {bad}.")
    if not any(weights.values()):
        raise ValueError("All task weights are 0: nothing would be learned. Give one task a weight above 0.")


def to_prediction(task: Task, logits: Tensor, scales: Mapping[str, tuple[float, float]]) -> Tensor:
    """Probabilities, or a value in the unit of its labels, whose mean and deviation ``scales`` holds."""
    if task.kind == "regression":
        mean, deviation = scales.get(task.name, (0.0, 1.0))
        return logits * deviation + mean
    return logits.sigmoid() if task.kind == "binary" else logits.softmax(-1)


def weighted_sum(losses: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """L = Σ wᵢ Lᵢ."""
    return torch.stack([weights[name] * loss for name, loss in losses.items()]).sum(0)
