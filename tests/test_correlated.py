"""The synthetic pair of tasks is what its docstring says."""

from __future__ import annotations

import math

import pytest
import torch

from mtl_helpers.data.correlated import correlated_tasks


@pytest.mark.parametrize("p", [-0.5, 0.0, 0.3, 0.9, 1.0])
def test_directions_are_unit_vectors_with_the_asked_cosine(p):
    first, second = correlated_tasks(p, seed=2).directions
    assert first.norm().item() == pytest.approx(1, abs=1e-5)
    assert second.norm().item() == pytest.approx(1, abs=1e-5)
    assert (first @ second).item() == pytest.approx(p, abs=1e-5)


def test_labels_by_hand():
    data = correlated_tasks(0.4, seed=1, rows=(300, 2, 2))
    for task, w in zip(("first", "second"), data.directions, strict=True):
        (a, b, c), errors = data.phases.tolist(), []
        for x, label in zip(data.train.numeric, data.train.labels[task].tolist(), strict=True):
            s = float(w @ x)
            errors.append(label - s - math.sin(s + a) - math.sin(2 * s + b) - math.sin(3 * s + c))
        assert max(map(abs, errors)) < 0.4 and torch.tensor(errors).std().item() == pytest.approx(
            0.1, rel=0.15
        )


def test_one_seed_keeps_the_rows_and_the_first_task_when_the_correlation_changes():
    a, b = (correlated_tasks(p, seed=5, rows=(50, 5, 5)) for p in (0.0, 0.8))
    assert torch.equal(a.train.numeric, b.train.numeric)
    assert torch.equal(a.train.labels["first"], b.train.labels["first"])
    assert not torch.equal(a.train.labels["second"], b.train.labels["second"])
    assert not torch.equal(a.train.numeric, correlated_tasks(0.0, seed=6, rows=(50, 5, 5)).train.numeric)
