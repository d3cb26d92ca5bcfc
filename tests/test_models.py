"""Every model keeps the contract: {task: logits}, gradients everywhere, towers that stay apart."""

from __future__ import annotations

import torch

from mtl_helpers.data import Schema, Task
from mtl_helpers.models import FeatureLayer, Tower

SCHEMA = Schema(("x", "z"), {"user_id": 5, "item": 3})


def batch(n: int = 7):
    return torch.randn(n, 2), torch.stack([torch.randint(0, 5, (n,)), torch.randint(0, 3, (n,))], dim=1)


def test_each_column_has_rows_of_its_own_in_the_table():
    layer = FeatureLayer(SCHEMA, embedding_dim=4)
    numeric = torch.zeros(1, 2)
    out = layer(numeric, torch.tensor([[2, 1]]))
    assert out.shape == (1, 10)
    assert torch.equal(out[0, :4], layer.embedding.weight[2])
    assert torch.equal(out[0, 4:8], layer.embedding.weight[5 + 1])


def test_tower_keeps_the_class_axis_of_two_classes():
    assert Tower(4, Task("m", "multiclass", 2))(torch.randn(5, 4)).shape == (5, 2)
