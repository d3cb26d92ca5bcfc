"""Task losses against their definitions, written out in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import MIXED_TASKS

from mtl_helpers.data import Batch, Task
from mtl_helpers.losses import check_weights, task_loss, task_losses, weighted_sum

BINARY, MULTI, REGRESSION = Task("b"), Task("m", "multiclass", 4), Task("r", "regression")


def draw(task: Task, n: int = 50):
    generator = torch.Generator().manual_seed(0)
    shape = (n, 4) if task.kind == "multiclass" else (n,)
    logits = 3 * torch.randn(shape, generator=generator, dtype=torch.float64)
    if task.kind == "multiclass":
        labels = torch.randint(0, 4, (n,), generator=generator)
    elif task.kind == "binary":
        labels = torch.randint(0, 2, (n,), generator=generator).double()
    else:
        labels = torch.randn(n, generator=generator, dtype=torch.float64)
    mask = torch.rand(n, generator=generator) < 0.4
    return logits.requires_grad_(), labels, mask


def by_definition(task: Task, logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    if task.kind == "binary":
        p = 1 / (1 + np.exp(-logits))
        return -(labels * np.log(p) + (1 - labels) * np.log(1 - p))
    if task.kind == "multiclass":
        p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        return -np.log(p[np.arange(len(labels)), labels])
    return (logits - labels) ** 2


@pytest.mark.parametrize("task", [BINARY, MULTI, REGRESSION], ids=lambda task: task.kind)
def test_equals_the_definition_with_and_without_mask(task):
    logits, labels, mask = draw(task)
    rows = by_definition(task, logits.detach().numpy(), labels.numpy())
    assert task_loss(task, logits, labels).item() == pytest.approx(rows.mean())
    assert task_loss(task, logits, labels, mask).item() == pytest.approx(rows[mask.numpy()].mean())
    everyone = torch.ones_like(mask)
    assert task_loss(task, logits, labels, everyone).item() == pytest.approx(rows.mean())


@pytest.mark.parametrize("n_classes", [4, 15, 16, 40])
def test_of_several_models_at_once_each_has_its_own(n_classes):
    task, generator = Task("m", "multiclass", n_classes), torch.Generator().manual_seed(0)
    logits = torch.randn(3, 50, n_classes, generator=generator)
    labels = torch.randint(0, n_classes, (50,), generator=generator)
    mask, weights = labels > 0, torch.rand(50, generator=generator)
    for given in ((), (mask,), (None, weights), (mask, weights)):
        alone = torch.stack([task_loss(task, own, labels, *given) for own in logits])
        assert torch.allclose(task_loss(task, logits, labels, *given), alone)


def test_logits_of_a_hundred_stay_finite():
    far = torch.tensor([100.0, -100.0, 1e4])
    assert task_loss(BINARY, far, torch.tensor([0.0, 1.0, 0.0])).item() == pytest.approx(
        (100 + 100 + 1e4) / 3
    )
    assert torch.isfinite(
        task_loss(MULTI, far[:, None].expand(3, 4) * torch.arange(4), torch.tensor([0, 1, 2]))
    )


def test_all_tasks_of_a_batch():
    n = 8
    batch = Batch(
        torch.zeros(n, 1),
        torch.zeros(n, 1, dtype=torch.long),
        {"click": torch.ones(n), "kind": torch.zeros(n, dtype=torch.long), "dwell": torch.zeros(n)},
        {"dwell": torch.arange(n) < 2},
    )
    logits = {"click": torch.zeros(n), "kind": torch.zeros(n, 3), "dwell": torch.arange(n).float()}
    losses = task_losses(MIXED_TASKS, logits, batch)
    assert losses["click"].item() == pytest.approx(np.log(2))
    assert losses["kind"].item() == pytest.approx(np.log(3))
    assert losses["dwell"].item() == pytest.approx(0.5)


def test_weighted_sum():
    losses = {"a": torch.tensor(2.0), "b": torch.tensor(3.0)}
    assert weighted_sum(losses, {"a": 0.5, "b": 2}).item() == 7


@pytest.mark.parametrize(
    ("weights", "word"),
    [
        ({"a": 1}, "each of 'a', 'b'"),
        ({"a": 1, "b": 1, "c": 1}, "each of 'a', 'b'"),
        ({"a": -1, "b": 1}, "0 or more"),
        ({"a": float("nan"), "b": 1}, "finite"),
        ({"a": 0, "b": 0}, "All task weights are 0"),
    ],
)
def test_bad_weights(weights, word):
    with pytest.raises(ValueError, match=word):
        check_weights(weights, ["a", "b"])
