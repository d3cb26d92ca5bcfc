"""Who shares what: models of several tasks, from a shared bottom to gated experts and to tasks that follow each other.

Taught in notebooks 01 (single task), 02 (shared bottom) and 06 (all others). One contract for all:
``model(numeric, categorical)`` gives ``{task: logits}``, (n,) for binary and regression tasks and (n, n_classes) for
multiclass tasks: ``from_shared(represent(numeric, categorical))``, first the last tensors that several tasks look at,
then the rest. ``task_parameters(name)`` are reached by that task's loss alone, ``shared_parameters()`` are all others;
``schema``, ``tasks`` and ``settings`` (the other arguments) are enough to build a model again.

Every model takes the arguments of :class:`SharingModel`: ``schema`` of the encoded features; ``tasks`` to predict, in
order; ``embedding_dim=8``, width of a category's vector; ``hidden=(64, 32)``, widths of the layers of the bottom, a
task's column or an expert; ``tower=(16,)``, widths of each task's last own layers, may be empty; ``dropout=0``, share
of units left out. ``chain`` names tasks in the order in which they happen (all, in order, when None).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtl_helpers.data.tables import MultiTaskDataset, Schema, Task, check_tasks
from mtl_helpers.models.layers import FeatureLayer, Tower, count_parameters, mlp

__all__ = ["AITM", "ESMM", "PLE", "CrossStitch", "MMoE", "SharedBottom", "SharingModel", "SingleTask"]
__all__ += ["complete_chain", "match_parameters"]


class SharingModel(nn.Module):
    """What all models here have in common. ``owned`` names the dictionaries of which each task owns its own entry."""

    owned: tuple[str, ...] = ("towers",)

    def __init__(
        self,
        schema: Schema,
        tasks: Sequence[Task],
        embedding_dim: int = 8,
        hidden: Sequence[int] = (64, 32),
        tower: Sequence[int] = (16,),
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.schema, self.tasks = schema, check_tasks(tasks)
        self.settings = {"embedding_dim": embedding_dim, "hidden": tuple(hidden), "tower": tuple(tower)}
        self.settings["dropout"] = dropout
        self.names = [task.name for task in self.tasks]
        self.features = FeatureLayer(schema, embedding_dim)
        self.last_shared: list[nn.Module] = []  # networks that all tasks read; none but the embeddings here

    def network(self, n_in: int) -> nn.Sequential:
        """Layers of the widths ``hidden``: a bottom, a task's column or an expert."""
        return mlp(n_in, self.settings["hidden"], self.settings["dropout"])

    def make_towers(self) -> nn.ModuleDict:
        width = [self.features.n_out, *self.settings["hidden"]][-1]
        own = self.settings["tower"], self.settings["dropout"]
        return nn.ModuleDict({task.name: Tower(width, task, *own) for task in self.tasks})

    def represent(self, numeric: Tensor, categorical: Tensor) -> Tensor | tuple[Tensor, ...]:
        """The last tensors that several tasks look at; here the features, (n, F)."""
        return self.features(numeric, categorical)

    def forward(self, numeric: Tensor, categorical: Tensor) -> dict[str, Tensor]:
        return self.from_shared(self.represent(numeric, categorical))

    def task_parameters(self, name: str) -> Iterator[nn.Parameter]:
        for group in self.owned:
            yield from getattr(self, group)[name].parameters()

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        own = {id(p) for name in self.names for p in self.task_parameters(name)}
        yield from (p for p in self.parameters() if id(p) not in own)

    def last_shared_layer(self) -> list[nn.Parameter]:
        """The weights whose gradients GradNorm compares: the last that the losses of all tasks reach."""
        weights = [list(network.parameters())[-2] for network in self.last_shared]  # after it comes its bias
        return weights or [self.features.embedding.weight]


class SharedBottom(SharingModel):
    """Hard parameter sharing (Caruana, *Multitask Learning*, 1997): one bottom, one tower per task.

    Z = f(X) is computed once; task i predicts Yᵢ = gᵢ(Z). ``hidden`` may be empty.
    """

    def __init__(self, *args, **layers) -> None:
        super().__init__(*args, **layers)
        self.bottom = self.network(self.features.n_out)
        self.last_shared = [self.bottom] if len(self.bottom) else []
        self.towers = self.make_towers()

    def represent(self, numeric: Tensor, categorical: Tensor) -> Tensor:
        """The shared representation Z, (n, hidden[-1])."""
        return self.bottom(self.features(numeric, categorical))

    def from_shared(self, shared: Tensor) -> dict[str, Tensor]:
        return {name: tower(shared) for name, tower in self.towers.items()}


class SingleTask(SharedBottom):
    """The baseline: the same layers for one task alone."""

    def __init__(self, schema: Schema, task: Task, *args, **layers) -> None:
        super().__init__(schema, [task], *args, **layers)


class CrossStitch(SharingModel):
    """Cross-stitch networks (Misra et al., CVPR 2016, eq. 1): a column per task, mixed after every layer.

    After layer l, task t reads h̃ₜ = Σₛ αₜₛ hₛ with a learned matrix α (T, T) per layer: the identity shares nothing,
    equal entries share all. At the start αₜₜ is 0.9; the rest of 1 goes to the others.
    """

    def __init__(self, *args, **layers) -> None:
        super().__init__(*args, **layers)
        n, hidden = len(self.tasks), self.settings["hidden"]
        self.layers = nn.ModuleList(
            nn.ModuleDict({name: mlp(n_in, [n_out], self.settings["dropout"]) for name in self.names})
            for n_in, n_out in pairwise([self.features.n_out, *hidden])
        )
        start = torch.full((n, n), (1 - 0.9) / max(n - 1, 1)).fill_diagonal_(0.9 if n > 1 else 1.0)
        self.last_shared = list(self.layers[-1].values())
        self.stitches = nn.ParameterList(nn.Parameter(start.clone()) for _ in hidden)
        self.towers = self.make_towers()

    def represent(self, numeric: Tensor, categorical: Tensor) -> Tensor:
        """The columns' outputs before the last stitch, (T, n, hidden[-1])."""
        columns = [self.features(numeric, categorical)] * len(self.tasks)
        for i, layer in enumerate(self.layers):
            if i:
                columns = torch.tensordot(self.stitches[i - 1], columns, 1)
            columns = torch.stack([layer[name](h) for name, h in zip(self.names, columns, strict=True)])
        return columns

    def from_shared(self, columns: Tensor) -> dict[str, Tensor]:
        stitched = dict(zip(self.names, torch.tensordot(self.stitches[-1], columns, 1), strict=True))
        return {name: tower(stitched[name]) for name, tower in self.towers.items()}


def mix(shares: Tensor, outputs: Sequence[Tensor]) -> Tensor:
    """Σₑ g(x)ₑ · outputₑ: gates (n, E) and E outputs (n, d) → (n, d)."""
    return sum(share * output for share, output in zip(shares.split(1, -1), outputs, strict=True))


class MMoE(SharingModel):
    """Multi-gate mixture of experts (Ma et al., KDD 2018, eq. 6-8): shared experts, and a gate per task.

    Task t's tower reads hₜ = Σₑ gₜ(x)ₑ · expertₑ(x) with gₜ(x) = softmax(Wₜ x) over the experts; x are the features. In
    training, experts are left out of a gate with chance ``expert_dropout`` and the others scaled up to sum to one, so
    that no gate can rely on a single expert (Zhao et al., RecSys 2019, §4.2).
    """

    owned = ("gates", "towers")

    def __init__(self, *args, n_experts: int = 4, expert_dropout: float = 0.0, **layers) -> None:
        super().__init__(*args, **layers)
        self.settings |= {"n_experts": n_experts, "expert_dropout": expert_dropout}
        n_in = self.features.n_out
        self.experts = nn.ModuleList(self.network(n_in) for _ in range(n_experts))
        self.last_shared = list(self.experts)
        self.gates = nn.ModuleDict({name: nn.Linear(n_in, n_experts) for name in self.names})
        self.towers = self.make_towers()

    def represent(self, numeric: Tensor, categorical: Tensor) -> tuple[Tensor, ...]:
        """The features (n, F), which the gates read, and each expert's output (n, hidden[-1])."""
        x = self.features(numeric, categorical)
        return x, *(expert(x) for expert in self.experts)

    def from_shared(self, shared: tuple[Tensor, ...]) -> dict[str, Tensor]:
        x, *outputs = shared
        shares = self.open_gates(x)
        return {name: tower(mix(shares[name], outputs)) for name, tower in self.towers.items()}

    def open_gates(self, x: Tensor) -> dict[str, Tensor]:
        gates, leave_out = {}, self.settings["expert_dropout"]
        for name, gate in self.gates.items():
            gates[name] = shares = gate(x).softmax(-1)
            if leave_out and self.training:
                kept = F.dropout(shares, leave_out)
                total = kept.sum(-1, keepdim=True)
                gates[name] = torch.where(total > 0, kept / total.clamp(min=1e-12), shares)
        return gates

    def expert_use(self, numeric: Tensor, categorical: Tensor) -> dict[str, Tensor]:
        """``{task: gates (n, n_experts)}``; each row sums to one."""
        return self.open_gates(self.features(numeric, categorical))


class Level(nn.Module):
    """One level of :class:`PLE`: experts of each task and shared ones, a gate per task, one for the shared."""

    def __init__(self, model: PLE, n_in: int, last: bool) -> None:
        super().__init__()
        names, own, shared = model.names, model.settings["n_specific"], model.settings["n_shared"]

        def experts(n: int) -> nn.ModuleList:
            return nn.ModuleList(model.network(n_in) for _ in range(n))

        self.own = nn.ModuleDict({name: experts(own) for name in names})
        self.shared = experts(shared)
        self.gates = nn.ModuleDict({name: nn.Linear(n_in, own + shared) for name in names})
        self.shared_gate = None if last else nn.Linear(n_in, own * len(names) + shared)


class PLE(SharingModel):
    """Progressive layered extraction (Tang et al., RecSys 2020): experts of each task's own beside shared ones.

    With one level this is customised gate control, CGC (eq. 1-4): task t's gate mixes its own and the shared experts,
    never those of another (without own ones: MMoE). With more (eq. 5-7), a shared gate over *all* experts of a level
    feeds the shared experts of the next, task t's mixture feeds task t's, and a gate reads what its experts read.
    """

    def __init__(self, *args, n_specific: int = 1, n_shared: int = 1, levels: int = 1, **layers) -> None:
        super().__init__(*args, **layers)
        self.settings |= {"n_specific": n_specific, "n_shared": n_shared, "levels": levels}
        widths = [self.features.n_out, *self.settings["hidden"][-1:] * (levels - 1)]
        self.levels = nn.ModuleList(Level(self, n_in, i == levels) for i, n_in in enumerate(widths, 1))
        self.last_shared = list(self.levels[-1].shared)
        self.towers = self.make_towers()

    def from_shared(self, features: Tensor) -> dict[str, Tensor]:
        read, common = dict.fromkeys(self.names, features), features
        for level in self.levels:
            shared, everything = [expert(common) for expert in level.shared], []
            for name in self.names:
                own = [expert(read[name]) for expert in level.own[name]]
                read[name] = mix(level.gates[name](read[name]).softmax(-1), own + shared)
                everything += own
            if level.shared_gate is not None:
                common = mix(level.shared_gate(common).softmax(-1), everything + shared)
        return {name: tower(read[name]) for name, tower in self.towers.items()}

    def task_parameters(self, name: str) -> Iterator[nn.Parameter]:
        # a mixture of a lower level feeds the task's next experts, which the shared gate there shows to all tasks
        for level in self.levels[-2:] if self.settings["n_specific"] else self.levels:
            yield from level.gates[name].parameters()
        yield from (*self.levels[-1].own[name].parameters(), *self.towers[name].parameters())


def check_chain(names: Sequence[str], chain: Sequence[str] | None) -> tuple[str, ...]:
    chain = tuple(names if chain is None else chain)
    if not chain or len(set(chain)) < len(chain) or not set(chain) <= set(names):
        raise ValueError(f"chain is {chain}: expected different names of {', '.join(names)}.")
    return chain


class ESMM(SharedBottom):
    """Entire space multi-task model (Ma et al., SIGIR 2018, eq. 3): p(buy) = p(click) · p(buy | click).

    Each task of the chain happens only where the one before it did. Its tower predicts the *conditional* probability;
    the logits that are returned are those of the product, so every task is trained on all impressions, and p(buy)
    is never above p(click). All else is as in :class:`SharedBottom`. The paper shares only the embeddings:
    ``hidden=()`` and a taller ``tower``. Raises ValueError when a task of the chain is not binary.
    """

    def __init__(self, *args, chain: Sequence[str] | None = None, **layers) -> None:
        super().__init__(*args, **layers)
        self.settings["chain"] = self.chain = check_chain(self.names, chain)
        if wrong := [t.name for t in self.tasks if t.name in self.chain and t.kind != "binary"]:
            raise ValueError(f"ESMM multiplies probabilities; {wrong} of its chain are not binary.")

    def from_shared(self, shared: Tensor) -> dict[str, Tensor]:
        logits = super().from_shared(shared)
        for before, name in pairwise(self.chain):
            a, b = logits[before], logits[name]
            # logit(σ(a) σ(b)) = −log(e^−a + e^−b + e^−(a+b)): at most min(a, b), and no a or b can overflow it
            logits[name] = -torch.logsumexp(torch.stack([-a, -b, -(a + b)]), dim=0)
        return logits

    def conditional(self, numeric: Tensor, categorical: Tensor) -> dict[str, Tensor]:
        """``{task: logits}`` of p(task | the task before it in the chain): what the towers themselves say."""
        return super().from_shared(self.represent(numeric, categorical))

    def task_parameters(self, name: str) -> Iterator[nn.Parameter]:
        if name not in self.chain[:-1]:  # the losses of later tasks reach the earlier towers too
            yield from self.towers[name].parameters()

    def check_data(self, data: MultiTaskDataset) -> None:
        """Refuse labels that cannot be a chain's, or that lack what did not happen: ``fit`` and ``sweep`` call this."""
        for before, name in pairwise(self.chain):
            did_not = did_not_happen(data, before)
            if (data.labels[name][did_not] > 0).any():
                raise ValueError(f"Some rows have {name!r} without {before!r}, which it needs in a chain.")
            if name in data.masks and not data.masks[name][did_not].all():
                missing = f"{name!r} is unknown where {before!r} did not happen, but ESMM needs all rows"
                raise ValueError(f"{missing}: if it is a no there, use complete_chain(data, {self.chain}).")


def complete_chain(data: MultiTaskDataset, chain: Sequence[str]) -> MultiTaskDataset:
    """The rows of a usual conversion log; a missing label after an event that did not happen becomes a no."""
    for before, name in pairwise(chain):
        if name in data.masks:  # what is unknown is 0 already
            known = data.masks[name] | did_not_happen(data, before)
            data = replace(data, masks=data.masks | {name: known})
    return data


def did_not_happen(data: MultiTaskDataset, task: str) -> Tensor:
    """Where a task's label is known and 0, (n,)."""
    never = data.labels[task] == 0
    return never & data.masks[task] if task in data.masks else never


class Transfer(nn.Module):
    """AITM's adaptive information transfer (eq. 3-6): attention over what comes from the task before and one's own."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.info = nn.Sequential(nn.Linear(width, width), nn.ReLU())
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))

    def forward(self, before: Tensor, own: Tensor) -> Tensor:
        both = torch.stack([self.info(before), own], dim=-2)
        scores = (self.query(both) * self.key(both)).sum(-1) / both.shape[-1] ** 0.5
        return (scores.softmax(-1).unsqueeze(-1) * self.value(both)).sum(-2)


class AITM(SharingModel):
    """Adaptive information transfer (Xi et al., KDD 2021): a column per task; each passes what it knows to the next.

    z₁ = q₁ and zₜ = attention over {info(zₜ₋₁), qₜ}, where qₜ is column t's output; tower t reads zₜ. Tasks outside the
    chain share the embeddings alone. Nothing forces p(next) ≤ p(before): the paper's calibrator is a term of the loss.
    """

    def __init__(self, *args, chain: Sequence[str] | None = None, **layers) -> None:
        super().__init__(*args, **layers)
        self.settings["chain"] = self.chain = check_chain(self.names, chain)
        self.columns = nn.ModuleDict({name: self.network(self.features.n_out) for name in self.names})
        width = self.settings["hidden"][-1]
        self.transfers = nn.ModuleDict({name: Transfer(width) for name in self.chain[1:]})
        self.towers = self.make_towers()

    def from_shared(self, features: Tensor) -> dict[str, Tensor]:
        z = {name: column(features) for name, column in self.columns.items()}
        for before, name in pairwise(self.chain):
            z[name] = self.transfers[name](z[before], z[name])
        return {name: tower(z[name]) for name, tower in self.towers.items()}

    def task_parameters(self, name: str) -> Iterator[nn.Parameter]:
        groups = [self.towers] if name in self.chain[:-1] else [self.towers, self.columns, self.transfers]
        for group in groups:  # the losses of later tasks reach the earlier columns too
            yield from group[name].parameters() if name in group else ()


def match_parameters(
    like: nn.Module, kinds: Mapping[str, type | tuple[type, Mapping[str, object]]], **settings: object
) -> dict[str, Callable[[], nn.Module]]:
    """Models of other kinds with as many parameters as ``like``, of its schema and tasks: a fair comparison.

    ``kinds`` is ``{label: (class, its settings)}``, a class alone takes its defaults; ``settings`` are for all kinds.
    The widths ``hidden`` are scaled by a common factor until the total is as near as whole widths allow; the towers
    and the embedding keep their size. Returns ``{label: build}``; ``build()`` makes a new model each time, ready for
    ``fit`` or ``sweep``. Raises ValueError when a kind is too large even with layers one unit wide.
    """
    target, found = count_parameters(like), {}

    def scaled(plain: partial, hidden: Sequence[int], factor: float) -> partial:
        return partial(plain, hidden=tuple(max(1, round(factor * width)) for width in hidden))

    def gap(make: Callable[[], nn.Module]) -> int:
        return count_parameters(make()) - target

    with torch.random.fork_rng(devices=[]):
        for label, pair in kinds.items():
            kind, own = pair if isinstance(pair, tuple) else (pair, {})
            plain = partial(kind, like.schema, like.tasks, **{**settings, **own})
            of, low, high = partial(scaled, plain, plain().settings["hidden"]), 0.0, 1.0
            if gap(of(low)) > 0:
                raise ValueError(f"{label} is larger even with layers of width 1: use fewer experts.")
            while gap(of(high)) < 0:
                low, high = high, 2 * high
            for _ in range(20):
                middle = (low + high) / 2
                low, high = (middle, high) if gap(of(middle)) < 0 else (low, middle)
            found[label] = min(of(low), of(high), key=lambda make: abs(gap(make)))
    return found
