"""One loss per task, computed on logits, over labelled rows only.

Taught in notebook 02 (the training loop) and taken apart in notebook 03 (the loss math).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Real

import torch
import torch.nn.functional as F
from torch import Tensor

from mtl_helpers.data.tables import Batch, Task

__all__ = ["check_weights", "task_loss", "task_losses", "weighted_sum"]


def task_loss(task: Task, logits: Tensor, labels: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean loss of one task over its labelled rows.

    Binary: sigmoid cross-entropy on the logit. Multiclass: softmax cross-entropy on the logits. Regression: squared
    error. The sigmoid and the softmax are inside the loss, where they cannot overflow.

    Parameters
    ----------
    logits : (n,) for binary and regression, (n, n_classes) for multiclass.
    labels : (n,); float for binary and regression, int64 for multiclass.
    mask : bool (n,), True where the label is known; None when all are. Without one known label the loss is 0.

    Returns
    -------
    A scalar tensor.

    Raises
    ------
    ValueError, TypeError : logits or labels have another shape or dtype than the task's.
    """
    _check(task, logits, labels)
    if mask is None:
        return _row_losses(task, logits, labels, "mean")
    mask = mask.to(logits.dtype)
    return (_row_losses(task, logits, labels, "none") * mask).sum(-1) / mask.sum(-1).clamp(min=1)


def _check(task: Task, logits: Tensor, labels: Tensor) -> None:
    wanted = (*labels.shape, task.n_classes) if task.kind == "multiclass" else tuple(labels.shape)
    if tuple(logits.shape) != wanted:
        raise ValueError(
            f"Task {task.name!r} ({task.kind}) has logits of shape {tuple(logits.shape)} for labels of shape "
            f"{tuple(labels.shape)}: expected {wanted}."
        )
    if labels.dtype.is_floating_point == (task.kind == "multiclass"):
        wanted, given = (
            ("int64" if task.kind == "multiclass" else "float"),
            str(labels.dtype).removeprefix("torch."),
        )
        raise TypeError(f"Labels of {task.kind} task {task.name!r} must be {wanted}, got {given}.")


def _row_losses(task: Task, logits: Tensor, labels: Tensor, reduction: str) -> Tensor:
    if task.kind == "binary":
        return F.binary_cross_entropy_with_logits(logits, labels, reduction=reduction)
    if task.kind == "multiclass":
        return F.cross_entropy(logits, labels, reduction=reduction)
    return F.mse_loss(logits, labels, reduction=reduction)


def task_losses(tasks: Sequence[Task], logits: Mapping[str, Tensor], batch: Batch) -> dict[str, Tensor]:
    """``{task: mean loss}`` of a batch, for all tasks."""
    return {
        task.name: task_loss(task, logits[task.name], batch.labels[task.name], batch.masks.get(task.name))
        for task in tasks
    }


def check_weights(weights: Mapping[str, float], names: Sequence[str]) -> None:
    """Raise ValueError unless each named task has one weight, finite, not negative, and not all are 0."""
    unknown, missing = sorted(set(weights) - set(names)), sorted(set(names) - set(weights))
    if unknown or missing:
        raise ValueError(
            f"Weights are given for {', '.join(map(repr, weights)) or 'no task'}; expected one for each of "
            f"{', '.join(map(repr, names))}."
        )
    bad = {
        name: weight
        for name, weight in weights.items()
        if not isinstance(weight, Real) or not math.isfinite(weight) or weight < 0
    }
    if bad:
        raise ValueError(f"A task weight must be a finite number, 0 or more; got {bad}.")
    if not any(weights.values()):
        raise ValueError(
            "All task weights are 0: nothing would be learned. Give at least one task a weight above 0."
        )


def weighted_sum(losses: Mapping[str, Tensor], weights: Mapping[str, float] | None = None) -> Tensor:
    """L = Σ wᵢ Lᵢ; every weight is 1 when ``weights`` is None."""
    if weights is None:
        return torch.stack(list(losses.values())).sum(0)
    return torch.stack([weights[name] * loss for name, loss in losses.items()]).sum(0)
