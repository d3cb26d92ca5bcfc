"""Who shares what: models of several tasks, from a shared bottom to gated experts.

Taught in notebooks 01 (single task), 02 (shared bottom) and 06 (all others, and those of
:mod:`mtl_helpers.models.funnel`). One contract for all:
``model(numeric, categorical)`` gives ``{task: logits}``, (n,) for binary and regression tasks and (n, n_classes) for
multiclass tasks. It is ``from_shared(represent(numeric, categorical))``: first the last tensors that several tasks
look at, then the rest. ``task_parameters(name)`` are reached by that task's loss alone, ``shared_parameters()`` are all
others; ``last_shared_layer()`` are the weights at which GradNorm compares the tasks. ``tasks``, ``schema`` and
``settings`` (the other arguments) are enough to build a model again.

Arguments that mean the same everywhere: ``schema`` of the encoded features; ``tasks`` to predict, in order;
``embedding_dim``, width of a category's vector; ``hidden``, widths of the layers of the bottom, a task's column or an
expert; ``tower``, widths of each task's last own layers, may be empty; ``dropout``, share of units left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtl_helpers.data.tables import Schema, Task, check_tasks
from mtl_helpers.models.layers import FeatureLayer, Tower, count_parameters, mlp

__all__ = [
    "PLE",
    "CrossStitch",
    "MMoE",
    "SharedBottom",
    "SharingModel",
    "SingleTask",
    "match_parameters",
]


class SharingModel(nn.Module):
    """What all models here have in common. ``given``: the ``locals()`` of the constructor, its arguments by name."""

    def __init__(self, given: Mapping[str, object]) -> None:
        super().__init__()
        self.schema, self.tasks = given["schema"], check_tasks(given["tasks"])
        self.settings = {
            name: tuple(value) if isinstance(value, (list, tuple)) else value
            for name, value in given.items()
            if name not in ("self", "__class__", "schema", "tasks")
        }
        self.names = [task.name for task in self.tasks]
        self.features = FeatureLayer(self.schema, self.settings["embedding_dim"])

    def make_towers(self, width: int) -> nn.ModuleDict:
        tower, dropout = self.settings["tower"], self.settings["dropout"]
        return nn.ModuleDict({task.name: Tower(width, task, tower, dropout) for task in self.tasks})

    def represent(self, numeric: Tensor, categorical: Tensor) -> Tensor | tuple[Tensor, ...]:
        """The last tensors that several tasks look at; here the features, (n, F)."""
        return self.features(numeric, categorical)

    def forward(self, numeric: Tensor, categorical: Tensor) -> dict[str, Tensor]:
        return self.from_shared(self.represent(numeric, categorical))

    def task_parameters(self, name: str) -> Iterator[nn.Parameter]:
        yield from self.towers[name].parameters()

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        own = {id(p) for name in self.names for p in self.task_parameters(name)}
        yield from (p for p in self.parameters() if id(p) not in own)

    def last_shared_layer(self) -> list[nn.Parameter]:
        """The weights whose gradients GradNorm compares: the last that the losses of all tasks reach."""
        return [self.features.embedding.weight]


def last_weights(networks: Iterable[nn.Module]) -> list[nn.Parameter]:
    return [list(network.parameters())[-2] for network in networks]  # a layer's bias comes after its weight


class SharedBottom(SharingModel):
    """Hard parameter sharing (Caruana, *Multitask Learning*, 1997): one bottom, one tower per task.

    Z = f(X) is computed once; task i predicts Y_i = g_i(Z). ``hidden`` may be empty.
    """

    def __init__(
        self,
        schema: Schema,
        tasks: Sequence[Task],
        embedding_dim: int = 8,
        hidden: Sequence[int] = (64, 32),
        tower: Sequence[int] = (16,),
        dropout: float = 0.0,
    ) -> None:
        super().__init__(locals())
        self.bottom = mlp(self.features.n_out, hidden, dropout)
        self.towers = self.make_towers(hidden[-1] if hidden else self.features.n_out)

    def represent(self, numeric: Tensor, categorical: Tensor) -> Tensor:
        """The shared representation Z, (n, hidden[-1])."""
        return self.bottom(self.features(numeric, categorical))

    def from_shared(self, shared: Tensor) -> dict[str, Tensor]:
        return {name: tower(shared) for name, tower in self.towers.items()}

    def last_shared_layer(self) -> list[nn.Parameter]:
        return last_weights([self.bottom]) if self.settings["hidden"] else super().last_shared_layer()


class SingleTask(SharedBottom):
    """The baseline: the same layers for one task alone. The other arguments are those of :class:`SharedBottom`."""

    def __init__(self, schema: Schema, task: Task, *args: object, **settings: object) -> None:
        super().__init__(schema, [task], *args, **settings)


class CrossStitch(SharingModel):
    """Cross-stitch networks (Misra et al., CVPR 2016, eq. 1): a column per task, mixed after every layer.

    After layer l, task t reads h̃ₜ = Σₛ αₜₛ hₛ with a learned matrix α (T, T) per layer: the identity shares nothing,
    equal entries share all. It needs T times the hidden layers of a shared bottom of the same widths. ``keep`` is αₜₜ
    at the start; the rest of 1 goes to the others.
    """

    def __init__(
        self,
        schema: Schema,
        tasks: Sequence[Task],
        embedding_dim: int = 8,
        hidden: Sequence[int] = (64, 32),
        tower: Sequence[int] = (16,),
        keep: float = 0.9,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(locals())
        n, widths = len(self.tasks), [self.features.n_out, *hidden]
        self.layers = nn.ModuleList(
            nn.ModuleDict({name: mlp(n_in, [n_out], dropout) for name in self.names})
            for n_in, n_out in pairwise(widths)
        )
        start = torch.full((n, n), (1 - keep) / max(n - 1, 1)).fill_diagonal_(keep if n > 1 else 1.0)
        self.stitches = nn.ParameterList(nn.Parameter(start.clone()) for _ in hidden)
        self.towers = self.make_towers(widths[-1])

    def represent(self, numeric: Tensor, categorical: Tensor) -> Tensor:
        """The columns' outputs before the last stitch, (T, n, hidden[-1])."""
        columns = [self.features(numeric, categorical)] * len(self.tasks)
        for i, layer in enumerate(self.layers):
            if i:
                columns = torch.tensordot(self.stitches[i - 1], columns, 1)
            columns = torch.stack([layer[name](h) for name, h in zip(self.names, columns, strict=True)])
        return columns

    def from_shared(self, columns: Tensor) -> dict[str, Tensor]:
        stitched = torch.tensordot(self.stitches[-1], columns, 1)
        return {name: tower(h) for (name, tower), h in zip(self.towers.items(), stitched, strict=True)}

    def last_shared_layer(self) -> list[nn.Parameter]:
        return last_weights(self.layers[-1].values())


class ExpertDropout(nn.Module):
    """In training, leaves experts out of each row's gates (…, E) at random and scales the others up to sum to one.

    So no gate can rely on a single expert (Zhao et al., RecSys 2019, §4.2). ``p`` is an expert's chance to be left out.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, gates: Tensor) -> Tensor:
        if not (self.p and self.training):
            return gates
        kept = F.dropout(gates, self.p)
        total = kept.sum(-1, keepdim=True)
        return torch.where(total > 0, kept / total.clamp(min=1e-12), gates)


def mix(gate: Tensor, outputs: Sequence[Tensor]) -> Tensor:
    """Σₑ gateₑ · outputₑ. Gate (n, E) and E outputs (n, d) → (n, d)."""
    return sum(share * output for share, output in zip(gate.split(1, -1), outputs, strict=True))


class MMoE(SharingModel):
    """Multi-gate mixture of experts (Ma et al., KDD 2018, eq. 6-8): shared experts, and a gate per task.

    Task t's tower reads hₜ = Σₑ gₜ(x)ₑ · expertₑ(x) with gₜ(x) = softmax(Wₜ x) over the experts; x are the features.
    ``expert_dropout``: see :class:`ExpertDropout`.
    """

    def __init__(
        self,
        schema: Schema,
        tasks: Sequence[Task],
        embedding_dim: int = 8,
        n_experts: int = 4,
        hidden: Sequence[int] = (64, 32),
        tower: Sequence[int] = (16,),
        dropout: float = 0.0,
        expert_dropout: float = 0.0,
    ) -> None:
        super().__init__(locals())
        n_in = self.features.n_out
        self.experts = nn.ModuleList(mlp(n_in, hidden, dropout) for _ in range(n_experts))
        self.gates = nn.ModuleDict({name: nn.Linear(n_in, n_experts) for name in self.names})
        self.leave_out = ExpertDropout(expert_dropout)
        self.towers = self.make_towers(hidden[-1])

    def represent(self, numeric: Tensor, categorical: Tensor) -> tuple[Tensor, ...]:
        """The features (n, F), which the gates read, and each expert's output (n, hidden[-1])."""
        x = self.features(numeric, categorical)
        return x, *(expert(x) for expert in self.experts)

    def open_gates(self, x: Tensor) -> dict[str, Tensor]:
        return {name: self.leave_out(gate(x).softmax(-1)) for name, gate in self.gates.items()}

    def from_shared(self, shared: tuple[Tensor, ...]) -> dict[str, Tensor]:
        x, *experts = shared
        gates = self.open_gates(x)
        return {name: tower(mix(gates[name], experts)) for name, tower in self.towers.items()}

    def expert_use(self, numeric: Tensor, categorical: Tensor) -> dict[str, Tensor]:
        """``{task: gates (n, n_experts)}``; each row sums to one."""
        return self.open_gates(self.features(numeric, categorical))

    def task_parameters(self, name: str) -> Iterator[nn.Parameter]:
        yield from (*self.gates[name].parameters(), *self.towers[name].parameters())

    def last_shared_layer(self) -> list[nn.Parameter]:
        return last_weights(self.experts)


class _Level(nn.Module):
    """One level of :class:`PLE`: experts of each task and shared ones, a gate per task, one for the shared."""

    def __init__(self, n_in: int, names: Sequence[str], settings: Mapping[str, object], last: bool) -> None:
        super().__init__()
        own, shared = settings["n_specific"], settings["n_shared"]

        def experts(number: int) -> nn.ModuleList:
            return nn.ModuleList(mlp(n_in, settings["hidden"], settings["dropout"]) for _ in range(number))

        self.own = nn.ModuleDict({name: experts(own) for name in names})
        self.shared = experts(shared)
        self.gates = nn.ModuleDict({name: nn.Linear(n_in, own + shared) for name in names})
        self.shared_gate = None if last else nn.Linear(n_in, own * len(names) + shared)


class PLE(SharingModel):
    """Progressive layered extraction (Tang et al., RecSys 2020): experts of each task's own beside shared ones.

    With one level this is customised gate control, CGC (eq. 1-4): task t's gate mixes its own and the shared experts,
    never those of another task. With more (eq. 5-7), a shared gate over *all* experts of a level feeds the shared
    experts of the next one, task t's mixture feeds task t's, and each gate reads the mixture its experts read.
    With ``n_specific=0`` (no experts of a task's own) and one level this is :class:`MMoE`.
    """

    def __init__(
        self,
        schema: Schema,
        tasks: Sequence[Task],
        embedding_dim: int = 8,
        n_specific: int = 1,
        n_shared: int = 1,
        hidden: Sequence[int] = (64, 32),
        levels: int = 1,
        tower: Sequence[int] = (16,),
        dropout: float = 0.0,
        expert_dropout: float = 0.0,
    ) -> None:
        super().__init__(locals())
        widths = [self.features.n_out, *[hidden[-1]] * levels]
        self.levels = nn.ModuleList(
            _Level(n_in, self.names, self.settings, last=i == levels - 1)
            for i, n_in in enumerate(widths[:levels])
        )
        self.leave_out = ExpertDropout(expert_dropout)
        self.towers = self.make_towers(widths[-1])

    def from_shared(self, features: Tensor) -> dict[str, Tensor]:
        read, common = dict.fromkeys(self.names, features), features
        for level in self.levels:
            own = {name: [expert(read[name]) for expert in level.own[name]] for name in self.names}
            shared = [expert(common) for expert in level.shared]
            read = {name: self._mix(level.gates[name], read[name], own[name] + shared) for name in self.names}
            if level.shared_gate is not None:  # the last level has none
                everything = [output for outputs in own.values() for output in outputs] + shared
                common = self._mix(level.shared_gate, common, everything)
        return {name: tower(read[name]) for name, tower in self.towers.items()}

    def _mix(self, gate: nn.Linear, x: Tensor, outputs: Sequence[Tensor]) -> Tensor:
        return mix(self.leave_out(gate(x).softmax(-1)), outputs)

    def task_parameters(self, name: str) -> Iterator[nn.Parameter]:
        # a mixture of a lower level feeds the task's next experts, which the shared gate there shows to all tasks
        for level in self.levels[-2:] if self.settings["n_specific"] else self.levels:
            yield from level.gates[name].parameters()
        yield from (*self.levels[-1].own[name].parameters(), *self.towers[name].parameters())

    def last_shared_layer(self) -> list[nn.Parameter]:
        return last_weights(self.levels[-1].shared)


def match_parameters(
    like: nn.Module, kinds: Mapping[str, type | tuple[type, Mapping[str, object]]], **settings: object
) -> dict[str, Callable[[], nn.Module]]:
    """Models of other kinds with as many parameters as one at hand: a fair comparison in one call.

    The widths ``hidden`` are scaled by a common factor until the total is as near as whole widths allow; the towers
    and the embedding keep their size.

    Parameters
    ----------
    like : the model that sets the schema, the tasks and the number of parameters.
    kinds : ``{label: (class, its settings)}``; a class alone takes its defaults. settings : for all kinds.

    Returns
    -------
    ``{label: build}``; ``build()`` makes a new model each time, ready for ``fit`` or ``sweep``.

    Raises ValueError when a kind has more parameters than ``like`` even with layers one unit wide.
    """
    pairs = {label: kind if isinstance(kind, tuple) else (kind, {}) for label, kind in kinds.items()}
    with torch.random.fork_rng(devices=[]):
        return {label: _matched(kind, like, {**settings, **own}) for label, (kind, own) in pairs.items()}


def _matched(kind: type, like: nn.Module, settings: Mapping[str, object]) -> Callable[[], nn.Module]:
    hidden, target = kind(like.schema, like.tasks, **settings).settings["hidden"], count_parameters(like)

    def build(factor: float) -> Callable[[], nn.Module]:
        widths = tuple(max(1, round(factor * width)) for width in hidden)
        return partial(kind, like.schema, like.tasks, **{**settings, "hidden": widths})

    def gap(factor: float) -> int:
        return count_parameters(build(factor)()) - target

    low, high = 0.0, 1.0
    if gap(low) > 0:
        raise ValueError(
            f"{kind.__name__} has {gap(low)} parameters too many even with layers of width 1: use fewer experts."
        )
    while gap(high) < 0:
        low, high = high, 2 * high
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (middle, high) if gap(middle) < 0 else (low, middle)
    return build(min((low, high), key=lambda factor: abs(gap(factor))))
