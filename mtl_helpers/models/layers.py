"""Layers that every model is made of: input and features, hidden layers, task towers.

Taught in notebooks 01 and 02. Models of several tasks are in :mod:`mtl_helpers.models.sharing`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mtl_helpers.data.tables import Schema, Task

__all__ = ["FeatureLayer", "Tower", "count_parameters", "mlp"]


def mlp(n_in: int, hidden: Sequence[int], dropout: float = 0.0) -> nn.Sequential:
    """Linear and ReLU for each width in ``hidden`` (then dropout, if any)."""
    layers: list[nn.Module] = []
    for n_out in hidden:
        layers += [nn.Linear(n_in, n_out), nn.ReLU()]
        if dropout:
            layers.append(nn.Dropout(dropout))
        n_in = n_out
    return nn.Sequential(*layers)


class LookUp(nn.Embedding):
    """An embedding whose backward pass takes, on a CPU, a quarter of the time: the same vectors and gradients."""

    def forward(self, index: Tensor) -> Tensor:
        if not self.weight.is_cpu:
            return super().forward(index)
        return self.weight.index_select(0, index.flatten()).unflatten(0, index.shape)


class FeatureLayer(nn.Module):
    """Input layer: an embedding for each categorical column beside the numeric columns.

    All columns share one table; column c's category k is row ``offset[c] + k``, so that one look-up serves all.
    Vectors start at N(0, 0.1²): PyTorch's default N(0, 1) would drown the standardised numeric columns.

    Shapes: numeric (n, D) and categorical (n, C) → (n, C·embedding_dim + D).
    """

    def __init__(self, schema: Schema, embedding_dim: int = 8) -> None:
        super().__init__()
        self.schema, sizes = schema, list(schema.categorical.values())
        self.n_out = len(sizes) * embedding_dim + len(schema.numeric)
        self.embedding = LookUp(max(sum(sizes), 1), embedding_dim)
        nn.init.normal_(self.embedding.weight, std=0.1)
        starts = torch.tensor([sum(sizes[:i]) for i in range(len(sizes))], dtype=torch.long)
        self.register_buffer("offset", starts)

    def forward(self, numeric: Tensor, categorical: Tensor) -> Tensor:
        given = (numeric.shape[-1], categorical.shape[-1])
        wanted = (len(self.schema.numeric), len(self.schema.categorical))
        if given != wanted:
            raise ValueError(f"Got {given} numeric and categorical columns, expected {wanted}.")
        if not given[1]:
            return numeric
        try:
            return self.joined(numeric, categorical + self.offset)
        except (IndexError, RuntimeError) as error:
            if "out of" not in str(error):  # a category that falls into the next column's rows is not noticed
                raise
            known = f"the schema has so many of each column: {self.schema.categorical}"
            raise IndexError(f"A category is below 0 or too high; {known}.") from None

    def joined(self, numeric: Tensor, index: Tensor) -> Tensor:
        """The vectors of rows (n, C) of the table, then the numeric columns."""
        return torch.cat([self.embedding(index).flatten(-2), numeric], dim=-1)


class Tower(nn.Module):
    """Task layer: a small MLP from the shared representation (n, n_in) to one task's logits."""

    def __init__(self, n_in: int, task: Task, hidden: Sequence[int] = (16,), dropout: float = 0.0) -> None:
        super().__init__()
        self.hidden = mlp(n_in, hidden, dropout)
        self.head = nn.Linear(hidden[-1] if hidden else n_in, task.n_outputs)
        self.multiclass = task.kind == "multiclass"

    def forward(self, shared: Tensor) -> Tensor:
        logits = self.head(self.hidden(shared))
        return logits if self.multiclass else logits.squeeze(-1)


def count_parameters(module: nn.Module) -> int:
    """Number of trainable numbers in a module."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)
