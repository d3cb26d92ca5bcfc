"""The models of the course: input → feature extraction → task layers → fusion.

Taught in notebooks 01 (single task) and 02 (shared bottom). All share one contract: ``model(numeric, categorical)``
returns ``{task name: logits}``, (n,) for binary and regression tasks and (n, n_classes) for multiclass tasks.
Each keeps what it was made from in ``tasks``, ``schema`` and ``settings`` (its other arguments), so that a saved model
can be built again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from .data import Schema, Task, check_tasks

__all__ = ["FeatureLayer", "Fusion", "SharedBottom", "SingleTask", "Tower", "count_parameters", "mlp"]


def mlp(n_in: int, hidden: Sequence[int], dropout: float = 0.0) -> nn.Sequential:
    """Linear and ReLU for each width in ``hidden`` (then dropout, if any)."""
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
        sizes = list(schema.categorical.values())
        self.n_out = len(sizes) * embedding_dim + len(schema.numeric)
        self.embedding = nn.Embedding(max(sum(sizes), 1), embedding_dim)
        nn.init.normal_(self.embedding.weight, std=0.1)
        self.register_buffer(
            "offset", torch.tensor([sum(sizes[:i]) for i in range(len(sizes))], dtype=torch.long)
        )

    def forward(self, numeric: Tensor, categorical: Tensor) -> Tensor:
        vectors = self.embedding(categorical + self.offset)
        return torch.cat([vectors.flatten(-2), numeric], dim=-1)


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


class SharedBottom(nn.Module):
    """Hard parameter sharing (Caruana, *Multitask Learning*, 1997): one bottom, one tower per task.

    Z = f(X) is computed once; task i predicts Y_i = g_i(Z).

    Parameters
    ----------
    schema : of the encoded features. tasks : what to predict, in order.
    embedding_dim : width of a category's vector. bottom : widths of the shared layers; may be empty.
    tower : widths of each task's own layers; may be empty. dropout : share of units dropped in training.
    """

    def __init__(
        self,
        schema: Schema,
        tasks: Sequence[Task],
        embedding_dim: int = 8,
        bottom: Sequence[int] = (64, 32),
        tower: Sequence[int] = (16,),
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.tasks, self.schema = check_tasks(tasks), schema
        self.settings = {
            "embedding_dim": embedding_dim,
            "bottom": tuple(bottom),
            "tower": tuple(tower),
            "dropout": dropout,
        }
        self.features = FeatureLayer(schema, embedding_dim)
        self.bottom = mlp(self.features.n_out, bottom, dropout)
        width = bottom[-1] if bottom else self.features.n_out
        self.towers = nn.ModuleDict({task.name: Tower(width, task, tower, dropout) for task in self.tasks})

    def represent(self, numeric: Tensor, categorical: Tensor) -> Tensor:
        """The shared representation Z, (n, bottom[-1])."""
        return self.bottom(self.features(numeric, categorical))

    def forward(self, numeric: Tensor, categorical: Tensor) -> dict[str, Tensor]:
        shared = self.represent(numeric, categorical)
        return {name: tower(shared) for name, tower in self.towers.items()}

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        yield from self.features.parameters()
        yield from self.bottom.parameters()

    def task_parameters(self, name: str) -> Iterator[nn.Parameter]:
        yield from self.towers[name].parameters()


class SingleTask(nn.Module):
    """The baseline: the same layers, for one task alone. Parameters as for :class:`SharedBottom`."""

    def __init__(
        self,
        schema: Schema,
        task: Task,
        embedding_dim: int = 8,
        hidden: Sequence[int] = (64, 32),
        tower: Sequence[int] = (16,),
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.tasks, self.schema = check_tasks([task]), schema
        self.settings = {
            "embedding_dim": embedding_dim,
            "hidden": tuple(hidden),
            "tower": tuple(tower),
            "dropout": dropout,
        }
        self.features = FeatureLayer(schema, embedding_dim)
        self.hidden = mlp(self.features.n_out, hidden, dropout)
        self.tower = Tower(hidden[-1] if hidden else self.features.n_out, task, tower, dropout)

    def forward(self, numeric: Tensor, categorical: Tensor) -> dict[str, Tensor]:
        return {self.tasks[0].name: self.tower(self.hidden(self.features(numeric, categorical)))}


class Fusion(nn.Module):
    """Fusion layer: many predictions, one ranking score.

    ``kind="sum"``: s = Σ aᵢ pᵢ. ``kind="power"``: s = Π pᵢ^aᵢ, a product of probabilities when all aᵢ are 1.
    Both rise with each prediction, because no exponent may be negative.

    Parameters
    ----------
    weights : ``{task: aᵢ}``, 0 or more; tasks that are not named do not count.
    """

    def __init__(self, weights: Mapping[str, float], kind: str = "power") -> None:
        super().__init__()
        if kind not in ("power", "sum"):
            raise ValueError(f"Fusion kind is {kind!r}, expected 'power' or 'sum'.")
        if not weights or any(not weight >= 0 for weight in weights.values()):
            raise ValueError(f"Fusion weights must be 0 or more, at least one task; got {dict(weights)}.")
        self.kind, self.names = kind, tuple(weights)
        self.register_buffer("weights", torch.tensor([float(weight) for weight in weights.values()]))

    def forward(self, predictions: Mapping[str, Tensor]) -> Tensor:
        """``{task: (n,)}`` probabilities (or values above 0) → score (n,)."""
        stacked = torch.stack([predictions[name] for name in self.names], dim=-1)
        if self.kind == "sum":
            return stacked @ self.weights
        return stacked.pow(self.weights).prod(dim=-1)


def count_parameters(module: nn.Module) -> int:
    """Number of trainable numbers in a module."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)
