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

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtl_helpers.data.tables import Schema, Task, check_tasks
from mtl_helpers.models.layers import FeatureLayer, Tower, _check_share, _check_widths, count_parameters, mlp

__all__ = [
    "AITM",
    "ESMM",
    "PLE",
    "CrossStitch",
    "Experts",
    "MMoE",
    "SharedBottom",
    "SingleTask",
    "match_parameters",
]


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

    def from_shared(self, shared: Tensor) -> dict[str, Tensor]:
        return {name: tower(shared) for name, tower in self.towers.items()}

    def forward(self, numeric: Tensor, categorical: Tensor) -> dict[str, Tensor]:
        return self.from_shared(self.represent(numeric, categorical))

    def last_shared_layer(self) -> list[nn.Parameter]:
        return list(self.bottom.parameters())[-2:-1] or [self.features.embedding.weight]

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


class Experts(nn.Module):
    """Several MLPs of one shape, side by side, each layer one batched product. They start as different as any layers.

    Parameters
    ----------
    n : how many. n_in : width of the input. hidden : widths of each one's layers, at least one.

    Shapes: (n_rows, n_in), seen by all, or (n, n_rows, n_in), one input each → (n, n_rows, hidden[-1]).
    """

    def __init__(self, n: int, n_in: int, hidden: Sequence[int], dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = dropout
        self.biases, self.weights = nn.ParameterList(), nn.ParameterList()  # so that weights are listed last
        for width_in, width in zip([n_in, *hidden], hidden, strict=False):
            layers = [nn.Linear(width_in, width) for _ in range(n)]
            self.weights.append(torch.stack([layer.weight.detach() for layer in layers]))
            self.biases.append(torch.stack([layer.bias.detach() for layer in layers]))

    def forward(self, inputs: Tensor) -> Tensor:
        return _run([self], inputs)


def _run(groups: Sequence[Experts], inputs: Tensor) -> Tensor:
    """The experts of all groups in one pass. (n, in) or (experts, n, in) → (experts, n, out)."""
    hidden = inputs
    for weights, biases in zip(
        zip(*(group.weights for group in groups), strict=True),
        zip(*(group.biases for group in groups), strict=True),
        strict=True,
    ):
        weight = weights[0] if len(groups) == 1 else torch.cat(weights)
        bias = biases[0] if len(groups) == 1 else torch.cat(biases)
        if (
            hidden.dim() == 2
        ):  # all read the same rows: their matrices, one above the other, are one wide layer
            wide = F.linear(hidden, weight.flatten(0, 1), bias.flatten()).relu()
            hidden = wide.unflatten(-1, bias.shape).transpose(0, 1)
        else:
            hidden = torch.baddbmm(bias.unsqueeze(1), hidden, weight.mT).relu()
        hidden = F.dropout(hidden, groups[0].dropout, groups[0].training)
    return hidden


def _softmax_gates(logits: Tensor, dropout: float, training: bool) -> Tensor:
    """Gates over the last axis, which sum to one; in training, experts are left out at random and the rest rescaled."""
    gates = logits.softmax(-1)
    if not dropout or not training:
        return gates
    kept = F.dropout(gates, dropout)
    total = kept.sum(-1, keepdim=True)
    return torch.where(total > 0, kept / total.clamp(min=1e-12), gates)


def _mix(gates: Tensor, *experts: Tensor) -> Tensor:
    """Σₑ gateₑ · expertₑ. Gates (n, experts), and experts (some, n, d), perhaps in several parts → (n, d)."""
    parts = gates.T.unsqueeze(-1).split([len(part) for part in experts])
    mixed = [(gate * part).sum(0) for gate, part in zip(parts, experts, strict=True)]
    return mixed[0] if len(mixed) == 1 else mixed[0] + mixed[1]


class _Sharing(nn.Module):
    """What the models of several tasks have in common: tasks, schema, settings, the feature layer and the towers."""

    def __init__(self, schema: Schema, tasks: Sequence[Task], **settings: object) -> None:
        super().__init__()
        self.tasks, self.schema = check_tasks(tasks), schema
        self.settings = {
            name: value if value is None or isinstance(value, (int, float, str)) else tuple(value)
            for name, value in settings.items()
        }
        self.features = FeatureLayer(schema, settings["embedding_dim"])

    def forward(self, numeric: Tensor, categorical: Tensor) -> dict[str, Tensor]:
        return self.from_shared(self.represent(numeric, categorical))

    def last_shared_layer(self) -> list[nn.Parameter]:
        """The weights whose gradients GradNorm compares: the last that the losses of all tasks reach."""
        return [self.features.embedding.weight]

    def _add_towers(self, width: int) -> None:
        tower, dropout = self.settings["tower"], self.settings["dropout"]
        self.towers = nn.ModuleDict({task.name: Tower(width, task, tower, dropout) for task in self.tasks})

    def _apply_towers(self, inputs: Sequence[Tensor]) -> dict[str, Tensor]:
        return {name: tower(own) for (name, tower), own in zip(self.towers.items(), inputs, strict=True)}

    def task_parameters(self, name: str) -> Iterator[nn.Parameter]:
        yield from self.towers[name].parameters()


class CrossStitch(_Sharing):
    """Cross-stitch networks (Misra et al., CVPR 2016, eq. 1): a column per task, mixed after every layer.

    After layer l, task t reads h̃ₜ = Σₛ αₜₛ hₛ with a learned matrix α (T, T) per layer: the identity shares nothing,
    equal entries share all. It needs T times the hidden layers of a shared bottom of the same widths.

    Parameters
    ----------
    column : widths of each task's own layers, at least one. keep : αₜₜ at the start; the rest of 1 goes to the others.
        tower, embedding_dim, dropout : as for :class:`SharedBottom`.
    """

    def __init__(
        self,
        schema: Schema,
        tasks: Sequence[Task],
        embedding_dim: int = 8,
        column: Sequence[int] = (64, 32),
        tower: Sequence[int] = (16,),
        keep: float = 0.9,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(
            schema, tasks, embedding_dim=embedding_dim, column=column, tower=tower, keep=keep, dropout=dropout
        )
        _check_widths("CrossStitch", "column", column)
        n, width = len(self.tasks), self.features.n_out
        self.columns = nn.ModuleList()
        for n_out in column:
            self.columns.append(Experts(n, width, (n_out,), dropout))
            width = n_out
        self._add_towers(width)
        start = torch.full((n, n), (1 - keep) / max(n - 1, 1)).fill_diagonal_(keep if n > 1 else 1.0)
        self.stitches = nn.ParameterList([nn.Parameter(start.clone()) for _ in column])

    def represent(self, numeric: Tensor, categorical: Tensor) -> Tensor:
        """The columns' outputs before the last stitch, (T, n, column[-1])."""
        hidden = self.features(numeric, categorical)
        for i, column in enumerate(self.columns):
            hidden = column(hidden if i == 0 else self._stitch(i - 1, hidden))
        return hidden

    def from_shared(self, columns: Tensor) -> dict[str, Tensor]:
        return self._apply_towers(self._stitch(-1, columns).unbind(0))

    def last_shared_layer(self) -> list[nn.Parameter]:
        return [self.columns[-1].weights[-1]]

    def _stitch(self, layer: int, hidden: Tensor) -> Tensor:
        return torch.tensordot(self.stitches[layer], hidden, 1)

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        yield from self.stitches
        yield from self.features.parameters()
        yield from self.columns.parameters()


class MMoE(_Sharing):
    """Multi-gate mixture of experts (Ma et al., KDD 2018, eq. 6-8): shared experts, and a gate per task.

    Task t's tower reads Σₑ gₜ(x)ₑ · expertₑ(x) with gₜ(x) = softmax(Wₜ x) over the experts; x are the features.

    Parameters
    ----------
    n_experts : how many. expert : widths of each one's layers, at least one.
    expert_dropout : in training, the chance that a task's gate leaves an expert out for a row (the other experts' gates
        are scaled up to sum to one), so that no gate can rely on a single expert (Zhao et al., RecSys 2019, §4.2).
        tower, embedding_dim, dropout : as for :class:`SharedBottom`.
    """

    def __init__(
        self,
        schema: Schema,
        tasks: Sequence[Task],
        embedding_dim: int = 8,
        n_experts: int = 4,
        expert: Sequence[int] = (64, 32),
        tower: Sequence[int] = (16,),
        dropout: float = 0.0,
        expert_dropout: float = 0.0,
    ) -> None:
        super().__init__(
            schema,
            tasks,
            embedding_dim=embedding_dim,
            n_experts=n_experts,
            expert=expert,
            tower=tower,
            dropout=dropout,
            expert_dropout=expert_dropout,
        )
        _check_widths("MMoE", "expert", expert)
        _check_share("expert_dropout", expert_dropout)
        if n_experts < 1:
            raise ValueError(f"n_experts is {n_experts}: expected 1 or more.")
        self.experts = Experts(n_experts, self.features.n_out, expert, dropout)
        self._add_towers(expert[-1])
        self.gates = nn.ModuleDict(
            {task.name: nn.Linear(self.features.n_out, n_experts) for task in self.tasks}
        )

    def represent(self, numeric: Tensor, categorical: Tensor) -> tuple[Tensor, Tensor]:
        """The features (n, F), which the gates read, and the experts' outputs (n_experts, n, expert[-1])."""
        features = self.features(numeric, categorical)
        return features, self.experts(features)

    def last_shared_layer(self) -> list[nn.Parameter]:
        return [self.experts.weights[-1]]

    def from_shared(self, shared: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        features, experts = shared
        return self._apply_towers([_mix(gates, experts) for gates in self._open_gates(features).unbind(-2)])

    def _open_gates(self, features: Tensor) -> Tensor:
        """(n, T, n_experts)"""
        weight = torch.cat([gate.weight for gate in self.gates.values()])
        bias = torch.cat([gate.bias for gate in self.gates.values()])
        logits = F.linear(features, weight, bias).unflatten(-1, (len(self.tasks), -1))
        return _softmax_gates(logits, self.settings["expert_dropout"], self.training)

    def expert_use(self, numeric: Tensor, categorical: Tensor) -> dict[str, Tensor]:
        """``{task: gates (n, n_experts)}``; each row sums to one. Columns are named by :attr:`expert_names`."""
        gates = self._open_gates(self.features(numeric, categorical))
        return dict(zip(self.gates, gates.unbind(-2), strict=True))

    @property
    def expert_names(self) -> tuple[str, ...]:
        return tuple(f"expert {i + 1}" for i in range(self.settings["n_experts"]))

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        yield from self.features.parameters()
        yield from self.experts.parameters()

    def task_parameters(self, name: str) -> Iterator[nn.Parameter]:
        yield from self.gates[name].parameters()
        yield from self.towers[name].parameters()


SHARED = "shared"


class _Level(nn.Module):
    """One level of :class:`PLE`: a group of experts per task and a shared one, and a gate per group that reads on."""

    def __init__(
        self,
        n_in: int,
        hidden: Sequence[int],
        names: Sequence[str],
        counts: tuple[int, int],
        last: bool,
        dropout: float,
    ) -> None:
        super().__init__()
        own, shared = counts
        self.names, self.own = tuple(names), nn.ModuleDict()
        if own:
            self.own.update({name: Experts(own, n_in, hidden, dropout) for name in names})
        self.shared = Experts(shared, n_in, hidden, dropout)
        self.gates = nn.ModuleDict({name: nn.Linear(n_in, own + shared) for name in names})
        self.shared_gate = None if last else nn.Linear(n_in, own * len(names) + shared)


class PLE(_Sharing):
    """Progressive layered extraction (Tang et al., RecSys 2020): experts of each task's own beside shared ones.

    With one level this is customised gate control, CGC (eq. 1-4): task t's gate mixes its own and the shared experts,
    never those of another task. With more (eq. 5-7), a shared gate over *all* experts of a level feeds the shared
    experts of the next one, task t's mixture feeds task t's, and each gate reads the mixture its experts read.

    Parameters
    ----------
    n_specific : experts of each task's own; with 0 and one level this is :class:`MMoE`. n_shared : 1 or more.
    expert : widths of an expert's layers, the same on each level. levels : 1 or more.
    expert_dropout : as for :class:`MMoE`. tower, embedding_dim, dropout : as for :class:`SharedBottom`.
    """

    def __init__(
        self,
        schema: Schema,
        tasks: Sequence[Task],
        embedding_dim: int = 8,
        n_specific: int = 1,
        n_shared: int = 1,
        expert: Sequence[int] = (64, 32),
        levels: int = 1,
        tower: Sequence[int] = (16,),
        dropout: float = 0.0,
        expert_dropout: float = 0.0,
    ) -> None:
        super().__init__(
            schema,
            tasks,
            embedding_dim=embedding_dim,
            n_specific=n_specific,
            n_shared=n_shared,
            expert=expert,
            levels=levels,
            tower=tower,
            dropout=dropout,
            expert_dropout=expert_dropout,
        )
        _check_widths("PLE", "expert", expert)
        _check_share("expert_dropout", expert_dropout)
        if n_specific < 0 or n_shared < 1 or levels < 1:
            raise ValueError(
                f"PLE got n_specific={n_specific}, n_shared={n_shared}, levels={levels}: expected n_specific of 0 or "
                "more, n_shared and levels of 1 or more."
            )
        names, n_in = [task.name for task in self.tasks], self.features.n_out
        self.levels = nn.ModuleList()
        for level in range(levels):
            last = level == levels - 1
            self.levels.append(_Level(n_in, expert, names, (n_specific, n_shared), last, dropout))
            n_in = expert[-1]
        self._add_towers(n_in)

    def represent(self, numeric: Tensor, categorical: Tensor) -> Tensor:
        """The features, (n, F): all that every task looks at."""
        return self.features(numeric, categorical)

    def last_shared_layer(self) -> list[nn.Parameter]:
        return [self.levels[-1].shared.weights[-1]]

    def from_shared(self, features: Tensor) -> dict[str, Tensor]:
        inputs = [features]
        for level in self.levels:
            inputs = self._climb(level, inputs)
        return self._apply_towers(inputs)

    def _climb(self, level: _Level, inputs: list[Tensor]) -> list[Tensor]:
        """One level. Takes the features, or a mixture per task and the shared one; returns the next mixtures."""
        experts = self._run_experts(level, inputs)
        n, shared = self.settings["n_specific"], self.settings["n_shared"]
        *own, common = experts.split([n] * len(self.tasks) + [shared]) if n else (experts,)
        mixtures = []
        for i, gate in enumerate(level.gates.values()):
            seen = (own[i], common) if n else (common,)
            mixtures.append(_mix(self._open(gate, inputs[i % len(inputs)]), *seen))
        if level.shared_gate is not None:
            mixtures.append(_mix(self._open(level.shared_gate, inputs[-1]), experts))
        return mixtures

    def _run_experts(self, level: _Level, inputs: list[Tensor]) -> Tensor:
        """Outputs of all experts of a level, those of task 1 first, the shared ones last, (experts, n, d)."""
        groups = [*level.own.values(), level.shared]
        if len(inputs) == 1:
            return _run(groups, inputs[0])
        n = self.settings["n_specific"]
        own = [each for each in inputs[:-1] for _ in range(n)]
        return _run(groups, torch.stack([*own, *[inputs[-1]] * self.settings["n_shared"]]))

    def _open(self, gate: nn.Linear, inputs: Tensor) -> Tensor:
        """(n, experts)"""
        return _softmax_gates(gate(inputs), self.settings["expert_dropout"], self.training)

    def expert_use(self, numeric: Tensor, categorical: Tensor) -> dict[str, Tensor]:
        """``{task: gates (n, experts)}`` of the last level; each row sums to one.

        Columns are named by :attr:`expert_names`; those of other tasks' experts are 0.
        """
        inputs = [self.features(numeric, categorical)]
        for level in self.levels[:-1]:
            inputs = self._climb(level, inputs)
        n, found = self.settings["n_specific"], {}
        for i, (name, gate) in enumerate(self.levels[-1].gates.items()):
            gates = self._open(gate, inputs[i % len(inputs)])
            spread = gates.new_zeros(*gates.shape[:-1], len(self.expert_names))
            spread[..., i * n : (i + 1) * n] = gates[..., :n]
            spread[..., len(self.tasks) * n :] = gates[..., n:]
            found[name] = spread
        return found

    @property
    def expert_names(self) -> tuple[str, ...]:
        own = [f"{task.name} {i + 1}" for task in self.tasks for i in range(self.settings["n_specific"])]
        return (*own, *(f"{SHARED} {i + 1}" for i in range(self.settings["n_shared"])))

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        yield from self.features.parameters()
        for level in self.levels[:-1]:
            yield from level.own.parameters()
            if self._mixtures_reach_all(level):
                yield from level.gates.parameters()
            yield from level.shared_gate.parameters()
            yield from level.shared.parameters()
        yield from self.levels[-1].shared.parameters()

    def task_parameters(self, name: str) -> Iterator[nn.Parameter]:
        for level in self.levels:
            if not self._mixtures_reach_all(level):
                yield from level.gates[name].parameters()
        if self.levels[-1].own:
            yield from self.levels[-1].own[name].parameters()
        yield from self.towers[name].parameters()

    def _mixtures_reach_all(self, level: _Level) -> bool:
        """Whether a task's mixture feeds experts of the next level that the shared gate there looks at."""
        return bool(level.own) and level not in self.levels[-2:]


class ESMM(_Sharing):
    """Entire space multi-task model (Ma et al., SIGIR 2018, eq. 3): p(buy) = p(click) · p(buy | click).

    Each task of the chain happens only where the one before it did. Its tower predicts the *conditional* probability;
    the logits that are returned are those of the product, so every task can be trained on all impressions, and p(buy)
    is never above p(click). Tasks outside the chain have a tower of their own, as in a shared bottom.

    Parameters
    ----------
    chain : names of binary tasks, in the order in which they happen; all tasks, in order, when None.
    bottom : widths of the shared layers. The paper shares only the embeddings: ``bottom=()`` and a taller ``tower``.
        tower, embedding_dim, dropout : as for :class:`SharedBottom`.
    """

    def __init__(
        self,
        schema: Schema,
        tasks: Sequence[Task],
        embedding_dim: int = 8,
        chain: Sequence[str] | None = None,
        bottom: Sequence[int] = (64, 32),
        tower: Sequence[int] = (16,),
        dropout: float = 0.0,
    ) -> None:
        super().__init__(
            schema,
            tasks,
            embedding_dim=embedding_dim,
            chain=chain,
            bottom=bottom,
            tower=tower,
            dropout=dropout,
        )
        self.chain = _check_chain(self.tasks, chain)
        kinds = {task.name: task.kind for task in self.tasks}
        wrong = [name for name in self.chain if kinds[name] != "binary"]
        if wrong:
            raise ValueError(
                f"ESMM multiplies probabilities along {' → '.join(self.chain)}, but {wrong[0]!r} is a "
                f"{kinds[wrong[0]]} task: name the binary tasks in chain=(…)."
            )
        self.bottom = mlp(self.features.n_out, bottom, dropout)
        self._add_towers(bottom[-1] if bottom else self.features.n_out)

    def represent(self, numeric: Tensor, categorical: Tensor) -> Tensor:
        """The shared representation Z, (n, bottom[-1])."""
        return self.bottom(self.features(numeric, categorical))

    def last_shared_layer(self) -> list[nn.Parameter]:
        return list(self.bottom.parameters())[-2:-1] or [self.features.embedding.weight]

    def from_shared(self, shared: Tensor) -> dict[str, Tensor]:
        logits = {name: tower(shared) for name, tower in self.towers.items()}
        for before, name in zip(self.chain, self.chain[1:], strict=False):
            logits[name] = _logit_of_product(logits[before], logits[name])
        return logits

    def conditional(self, numeric: Tensor, categorical: Tensor) -> dict[str, Tensor]:
        """``{task: logits}`` of p(task | the task before it in the chain): what the towers themselves say."""
        shared = self.represent(numeric, categorical)
        return {name: tower(shared) for name, tower in self.towers.items()}

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        for name in self.chain[:-1]:  # the losses of later tasks reach these towers too
            yield from self.towers[name].parameters()
        yield from self.features.parameters()
        yield from self.bottom.parameters()

    def task_parameters(self, name: str) -> Iterator[nn.Parameter]:
        if name not in self.chain[:-1]:
            yield from self.towers[name].parameters()


def _logit_of_product(a: Tensor, b: Tensor) -> Tensor:
    """logit(σ(a) σ(b)) = −log(e^−a + e^−b + e^−(a+b)), which no a or b can overflow; at most min(a, b)."""
    return -torch.logsumexp(torch.stack([-a, -b, -(a + b)]), dim=0)


class _Transfer(nn.Module):
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


class AITM(_Sharing):
    """Adaptive information transfer (Xi et al., KDD 2021): a column per task; each passes what it knows to the next.

    z₁ = q₁ and zₜ = attention over {info(zₜ₋₁), qₜ}, where qₜ is column t's output; tower t reads zₜ. Only the
    embeddings are shared by all. The paper's calibrator, a penalty on p(next) > p(before), is a term of the loss, not
    of this model.

    Parameters
    ----------
    chain : names of tasks, in the order in which they happen; all tasks, in order, when None. Others stand alone.
    column : widths of each task's own layers, at least one.
        tower, embedding_dim, dropout : as for :class:`SharedBottom`.
    """

    def __init__(
        self,
        schema: Schema,
        tasks: Sequence[Task],
        embedding_dim: int = 8,
        chain: Sequence[str] | None = None,
        column: Sequence[int] = (64, 32),
        tower: Sequence[int] = (16,),
        dropout: float = 0.0,
    ) -> None:
        super().__init__(
            schema,
            tasks,
            embedding_dim=embedding_dim,
            chain=chain,
            column=column,
            tower=tower,
            dropout=dropout,
        )
        _check_widths("AITM", "column", column)
        self.chain = _check_chain(self.tasks, chain)
        names = [task.name for task in self.tasks]
        self.columns = nn.ModuleDict(
            {name: Experts(1, self.features.n_out, column, dropout) for name in names}
        )
        self._add_towers(column[-1])
        self.transfers = nn.ModuleDict({name: _Transfer(column[-1]) for name in self.chain[1:]})

    def represent(self, numeric: Tensor, categorical: Tensor) -> Tensor:
        """The features, (n, F): all that every task looks at."""
        return self.features(numeric, categorical)

    def from_shared(self, features: Tensor) -> dict[str, Tensor]:
        columns = _run(list(self.columns.values()), features)
        hidden = dict(zip(self.columns, columns.unbind(0), strict=True))
        for before, name in zip(self.chain, self.chain[1:], strict=False):
            hidden[name] = self.transfers[name](hidden[before], hidden[name])
        return self._apply_towers([hidden[name] for name in self.towers])

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        for name in self.chain[1:-1]:
            yield from self.transfers[name].parameters()
        yield from self.features.parameters()
        for name in self.chain[:-1]:  # the losses of later tasks reach these columns too
            yield from self.columns[name].parameters()

    def task_parameters(self, name: str) -> Iterator[nn.Parameter]:
        if name not in self.chain[:-1]:
            yield from self.columns[name].parameters()
            if name in self.transfers:
                yield from self.transfers[name].parameters()
        yield from self.towers[name].parameters()


def _check_chain(tasks: Sequence[Task], chain: Sequence[str] | None) -> tuple[str, ...]:
    names = [task.name for task in tasks]
    if isinstance(chain, str):
        raise TypeError(
            f"chain is the text {chain!r}: expected names of tasks, such as ('click', 'purchase')."
        )
    chain = tuple(names if chain is None else chain)
    if not chain or len(set(chain)) < len(chain) or not set(chain) <= set(names):
        raise ValueError(f"chain is {chain}: expected different names of {', '.join(names)}.")
    return chain


def match_parameters(
    like: nn.Module, kinds: Mapping[str, type | tuple[type, Mapping[str, object]]], **settings: object
) -> dict[str, Callable[[], nn.Module]]:
    """Models of other kinds with as many parameters as one at hand: a fair comparison in one call.

    The widths of ``bottom``, ``expert`` or ``column`` are scaled by a common factor until the total is as near as whole
    widths allow; the towers and the embedding keep their size.

    Parameters
    ----------
    like : the model that sets the schema, the tasks and the number of parameters.
    kinds : ``{label: (class, its settings)}``; a class alone takes its defaults. settings : for all kinds.

    Returns
    -------
    ``{label: build}``; ``build()`` makes a new model each time, ready for ``fit`` or ``sweep``.

    Raises
    ------
    ValueError : a kind has more parameters than ``like`` even with layers one unit wide.
    """
    target, found = count_parameters(like), {}
    for label, entry in kinds.items():
        kind, own = entry if isinstance(entry, tuple) else (entry, {})
        found[label] = _matched(kind, like, {**settings, **own}, target)
    return found


def _matched(
    kind: type, like: nn.Module, settings: Mapping[str, object], target: int
) -> Callable[[], nn.Module]:
    with torch.random.fork_rng(devices=[]):
        full = kind(like.schema, like.tasks, **settings).settings
        keys = [name for name in ("bottom", "expert", "column") if full.get(name)]

        def build(factor: float) -> Callable[[], nn.Module]:
            widths = {name: tuple(max(1, round(factor * width)) for width in full[name]) for name in keys}
            return partial(kind, like.schema, like.tasks, **{**full, **widths})

        def gap(factor: float) -> int:
            return count_parameters(build(factor)()) - target

        low, high = 0.0, 1.0
        if not keys or gap(low) > 0:
            raise ValueError(
                f"{kind.__name__} has {target + gap(low)} parameters with the narrowest layers, more than the {target} "
                "to match: use fewer experts, or a larger model to compare with."
            )
        while gap(high) < 0:
            low, high = high, 2 * high
        for _ in range(20):
            middle = (low + high) / 2
            low, high = (middle, high) if gap(middle) < 0 else (low, middle)
        return build(min((low, high), key=lambda factor: abs(gap(factor))))
