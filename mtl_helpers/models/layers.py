"""The models of the course: input → feature extraction → task layers → fusion.

Taught in notebooks 01 (single task), 02 (shared bottom) and 06 (who shares what: :class:`CrossStitch`, :class:`MMoE`,
:class:`PLE`, :class:`ESMM`, :class:`AITM`). All share one contract: ``model(numeric, categorical)`` returns
``{task name: logits}``, (n,) for binary and regression tasks and (n, n_classes) for multiclass tasks.
Each keeps what it was made from in ``tasks``, ``schema`` and ``settings`` (its other arguments), so that a saved model
can be built again.

Models of several tasks also say who owns what. ``task_parameters(name)`` are reached by that task's loss alone;
``shared_parameters()`` are all others, those next to the towers last. ``represent(numeric, categorical)`` gives the
last tensors that several tasks look at, one tensor or a tuple; a model's forward pass calls it exactly once.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mtl_helpers.data.tables import Schema, Task

__all__ = ["FeatureLayer", "Tower", "count_parameters", "mlp"]


def mlp(n_in: int, hidden: Sequence[int], dropout: float = 0.0) -> nn.Sequential:
    """Linear and ReLU for each width in ``hidden`` (then dropout, if any)."""
    if any(width < 1 for width in hidden):
        raise ValueError(f"Widths of layers are {tuple(hidden)}: expected whole numbers of 1 or more.")
    _check_share("dropout", dropout)
    layers: list[nn.Module] = []
    for n_out in hidden:
        layers += [nn.Linear(n_in, n_out), nn.ReLU()]
        if dropout:
            layers.append(nn.Dropout(dropout))
        n_in = n_out
    return nn.Sequential(*layers)


class FeatureLayer(nn.Module):
    """Input layer: an embedding for each categorical column beside the numeric columns.

    All columns share one table; column c's category k is row ``offset[c] + k``, so that one look-up serves all.
    Vectors start at N(0, 0.1²): PyTorch's default N(0, 1) would drown the standardised numeric columns.

    Shapes: numeric (n, D) and categorical (n, C) → (n, C·embedding_dim + D).
    """

    def __init__(self, schema: Schema, embedding_dim: int = 8) -> None:
        super().__init__()
        if embedding_dim < 1:
            raise ValueError(f"embedding_dim is {embedding_dim}: expected 1 or more.")
        self.schema, sizes = schema, list(schema.categorical.values())
        self.n_out = len(sizes) * embedding_dim + len(schema.numeric)
        self.embedding = nn.Embedding(max(sum(sizes), 1), embedding_dim)
        nn.init.normal_(self.embedding.weight, std=0.1)
        self.register_buffer(
            "offset", torch.tensor([sum(sizes[:i]) for i in range(len(sizes))], dtype=torch.long)
        )

    def forward(self, numeric: Tensor, categorical: Tensor) -> Tensor:
        given = (numeric.shape[-1], categorical.shape[-1])
        wanted = (len(self.schema.numeric), len(self.schema.categorical))
        if given != wanted:
            raise ValueError(
                f"Got {given[0]} numeric and {given[1]} categorical columns, expected {wanted[0]} and {wanted[1]}."
            )
        try:
            vectors = self.embedding(categorical + self.offset)
        except IndexError:
            raise IndexError(self._stranger(categorical)) from None
        return torch.cat([vectors.flatten(-2), numeric], dim=-1)

    def _stranger(self, categorical: Tensor) -> str:
        """Names a category outside its column's range (one that falls into the next column's rows is not noticed)."""
        for values, (name, size) in zip(categorical.unbind(-1), self.schema.categorical.items(), strict=True):
            odd = values[(values < 0) | (values >= size)]
            if odd.numel():
                return f"Column {name!r} holds the category {int(odd[0])}; the schema knows 0 to {size - 1}."
        return "A categorical column holds a category that the schema does not know."


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


def _check_widths(model: str, name: str, widths: Sequence[int]) -> None:
    if not widths:
        raise ValueError(f"{model} got {name}=(): expected at least one width, such as (64, 32).")


def _check_share(name: str, value: float) -> None:
    if not 0 <= value < 1:
        raise ValueError(f"{name} is {value}: expected 0 or more, below 1.")


def count_parameters(module: nn.Module) -> int:
    """Number of trainable numbers in a module."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)
