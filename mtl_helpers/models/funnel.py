"""Tasks that follow each other, such as click → purchase: ESMM multiplies probabilities, AITM passes on features.

Taught in notebook 06. The contract and the arguments are those of :mod:`mtl_helpers.models.sharing`; ``chain`` names
the tasks in the order in which they happen (all, in order, when None).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor, nn

from mtl_helpers.data.tables import MultiTaskDataset, Schema, Task
from mtl_helpers.models.layers import mlp
from mtl_helpers.models.sharing import SharingModel, last_weights

__all__ = ["AITM", "ESMM", "complete_chain"]


class ESMM(SharingModel):
    """Entire space multi-task model (Ma et al., SIGIR 2018, eq. 3): p(buy) = p(click) · p(buy | click).

    Each task of the chain happens only where the one before it did. Its tower predicts the *conditional* probability;
    the logits that are returned are those of the product, so every task is trained on all impressions, and p(buy)
    is never above p(click). Tasks outside the chain have a tower of their own, as in a shared bottom. The paper shares
    only the embeddings: ``hidden=()`` and a taller ``tower``.

    Raises ValueError when a task of the chain is not binary.
    """

    def __init__(
        self,
        schema: Schema,
        tasks: Sequence[Task],
        embedding_dim: int = 8,
        chain: Sequence[str] | None = None,
        hidden: Sequence[int] = (64, 32),
        tower: Sequence[int] = (16,),
        dropout: float = 0.0,
    ) -> None:
        super().__init__(locals())
        self.chain = _check_chain(self.tasks, chain)
        if wrong := [t.name for t in self.tasks if t.name in self.chain and t.kind != "binary"]:
            raise ValueError(
                f"ESMM multiplies probabilities, but {wrong} are not binary: name those that are in chain=(…)."
            )
        self.bottom = mlp(self.features.n_out, hidden, dropout)
        self.towers = self.make_towers(hidden[-1] if hidden else self.features.n_out)

    def represent(self, numeric: Tensor, categorical: Tensor) -> Tensor:
        """The shared representation Z, (n, hidden[-1])."""
        return self.bottom(self.features(numeric, categorical))

    def from_shared(self, shared: Tensor) -> dict[str, Tensor]:
        logits = {name: tower(shared) for name, tower in self.towers.items()}
        for before, name in pairwise(self.chain):
            logits[name] = _logit_of_product(logits[before], logits[name])
        return logits

    def conditional(self, numeric: Tensor, categorical: Tensor) -> dict[str, Tensor]:
        """``{task: logits}`` of p(task | the task before it in the chain): what the towers themselves say."""
        shared = self.represent(numeric, categorical)
        return {name: tower(shared) for name, tower in self.towers.items()}

    def task_parameters(self, name: str) -> Iterator[nn.Parameter]:
        if name not in self.chain[:-1]:  # the losses of later tasks reach the earlier towers too
            yield from self.towers[name].parameters()

    def last_shared_layer(self) -> list[nn.Parameter]:
        return last_weights([self.bottom]) if self.settings["hidden"] else super().last_shared_layer()

    def check_data(self, data: MultiTaskDataset) -> None:
        """Refuse labels that cannot be a chain's, or that lack what did not happen: ``fit`` calls this."""
        for before, name in pairwise(self.chain):
            label, known, did_not = _after(data, before, name)
            if (label[did_not & known] > 0).any():
                raise ValueError(
                    f"Some rows have {name!r} without {before!r}: in a chain one needs the other."
                )
            if not known[did_not].all():
                raise ValueError(
                    f"{name!r} is unknown where {before!r} did not happen, but ESMM learns from all rows: if it did "
                    f"not happen there either, train on complete_chain(data, {self.chain})."
                )


def complete_chain(data: MultiTaskDataset, chain: Sequence[str]) -> MultiTaskDataset:
    """The same rows of a usual conversion log, where a missing label after an event that did not happen becomes a no.

    >>> train = complete_chain(splits.train, ("click", "purchase"))  # not clicked, so not bought  # doctest: +SKIP
    """
    for before, name in pairwise(chain):
        label, known, did_not = _after(data, before, name)
        label = label.where(known | ~did_not, 0.0)
        data = replace(data, labels=data.labels | {name: label}, masks=data.masks | {name: known | did_not})
    return data


def _after(data: MultiTaskDataset, before: str, name: str) -> tuple[Tensor, Tensor, Tensor]:
    """Labels of a task, where they are known, and where the task before it is known not to have happened, (n,)."""
    everywhere = torch.ones(len(data), dtype=torch.bool, device=data.device)
    did_not = (data.labels[before] == 0) & data.masks.get(before, everywhere)
    return data.labels[name], data.masks.get(name, everywhere), did_not


def _logit_of_product(a: Tensor, b: Tensor) -> Tensor:
    """logit(σ(a) σ(b)) = −log(e^−a + e^−b + e^−(a+b)), which no a or b can overflow; at most min(a, b)."""
    return -torch.logsumexp(torch.stack([-a, -b, -(a + b)]), dim=0)


class Transfer(nn.Module):
    """AITM's adaptive information transfer (eq. 3-6): attention over what comes from the task before and one's own."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.info = nn.Sequential(nn.Linear(width, width), nn.ReLU())
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))

    def forward(self, before: Tensor, own: Tensor) -> Tensor:
        """(n, d) and (n, d) → (n, d)."""
        both = torch.stack([self.info(before), own], dim=-2)
        scores = (self.query(both) * self.key(both)).sum(-1) / both.shape[-1] ** 0.5
        return (scores.softmax(-1).unsqueeze(-1) * self.value(both)).sum(-2)


class AITM(SharingModel):
    """Adaptive information transfer (Xi et al., KDD 2021): a column per task; each passes what it knows to the next.

    z₁ = q₁ and zₜ = attention over {info(zₜ₋₁), qₜ}, where qₜ is column t's output; tower t reads zₜ. Only the
    embeddings are shared by all. Tasks outside the chain stand alone. Nothing forces p(next) ≤ p(before): the paper's
    calibrator, a penalty on the contrary, is a term of the loss and not of this model.
    """

    def __init__(
        self,
        schema: Schema,
        tasks: Sequence[Task],
        embedding_dim: int = 8,
        chain: Sequence[str] | None = None,
        hidden: Sequence[int] = (64, 32),
        tower: Sequence[int] = (16,),
        dropout: float = 0.0,
    ) -> None:
        super().__init__(locals())
        self.chain = _check_chain(self.tasks, chain)
        self.columns = nn.ModuleDict({name: mlp(self.features.n_out, hidden, dropout) for name in self.names})
        self.transfers = nn.ModuleDict({name: Transfer(hidden[-1]) for name in self.chain[1:]})
        self.towers = self.make_towers(hidden[-1])

    def from_shared(self, features: Tensor) -> dict[str, Tensor]:
        z = {name: column(features) for name, column in self.columns.items()}
        for before, name in pairwise(self.chain):
            z[name] = self.transfers[name](z[before], z[name])
        return {name: tower(z[name]) for name, tower in self.towers.items()}

    def task_parameters(self, name: str) -> Iterator[nn.Parameter]:
        if name not in self.chain[:-1]:  # the losses of later tasks reach the earlier columns too
            yield from self.columns[name].parameters()
            if name in self.transfers:
                yield from self.transfers[name].parameters()
        yield from self.towers[name].parameters()


def _check_chain(tasks: Sequence[Task], chain: Sequence[str] | None) -> tuple[str, ...]:
    names = [task.name for task in tasks]
    chain = tuple(names if chain is None else chain)
    if not chain or len(set(chain)) < len(chain) or not set(chain) <= set(names):
        raise ValueError(f"chain is {chain}: expected different names of {', '.join(names)}.")
    return chain
