"""Every model keeps the contract: {task: logits}, gradients everywhere, towers that stay apart."""

from __future__ import annotations

import pytest
import torch
from helpers import MIXED_TASKS

from mtl_helpers.data import Schema, Task
from mtl_helpers.models import FeatureLayer, SharedBottom, SingleTask, Tower, count_parameters

SCHEMA = Schema(("x", "z"), {"user_id": 5, "item": 3})


def batch(n: int = 7):
    return torch.randn(n, 2), torch.stack([torch.randint(0, 5, (n,)), torch.randint(0, 3, (n,))], dim=1)


@pytest.mark.parametrize("tower", [(16,), ()])
@pytest.mark.parametrize("bottom", [(64, 32), ()])
def test_shapes(bottom, tower):
    model = SharedBottom(SCHEMA, MIXED_TASKS, hidden=bottom, tower=tower)
    shapes = {name: tuple(logits.shape) for name, logits in model(*batch()).items()}
    assert shapes == {"click": (7,), "kind": (7, 3), "dwell": (7,)}


def test_each_column_has_rows_of_its_own_in_the_table():
    layer = FeatureLayer(SCHEMA, embedding_dim=4)
    numeric = torch.zeros(1, 2)
    out = layer(numeric, torch.tensor([[2, 1]]))
    assert out.shape == (1, 10)
    assert torch.equal(out[0, :4], layer.embedding.weight[2])
    assert torch.equal(out[0, 4:8], layer.embedding.weight[5 + 1])


def test_parameter_count_by_hand():
    model = SingleTask(SCHEMA, Task("click"), embedding_dim=8, hidden=(64, 32), tower=(16,))
    table, bottom = 8 * 8, (18 * 64 + 64) + (64 * 32 + 32)
    assert count_parameters(model) == table + bottom + (32 * 16 + 16) + (16 + 1)


def test_tower_keeps_the_class_axis_of_two_classes():
    assert Tower(4, Task("m", "multiclass", 2))(torch.randn(5, 4)).shape == (5, 2)
