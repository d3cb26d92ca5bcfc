"""Many task weightings trained at once: from a list of weights to a Pareto front in seconds.

Taught in notebook 04; its result drives the weight slider of notebook 00. :func:`sweep` stacks the parameters of
several models, (K, …) instead of (…), and takes one step for all: the same start, batches and AdamW as
:func:`mtl_helpers.training.fit`, so each of the K models ends where a run of its own would have ended.
"""

from __future__ import annotations

import copy
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, vmap

from mtl_helpers.data.tables import Batch, MultiTaskDataset, Task
from mtl_helpers.losses import check_weights, label_counts, task_losses
from mtl_helpers.metrics import LOWER_IS_BETTER, batched_auc, pareto_mask
from mtl_helpers.training import MAIN_METRIC, check_parts, has_label

__all__ = ["Sweep", "pareto_mask", "simplex_grid", "sweep"]

Build = Callable[[], nn.Module]


@dataclass(repr=False)
class Sweep:
    """What a sweep has trained and measured.

    weightings : one row per weighting, numbered from 0, one column per task.
    records : columns ``weighting``, ``seed``, ``epoch`` (from 1), ``split`` (``"train"`` or ``"valid"``), ``task``,
        ``metric`` and ``value``: each task's ``loss`` (on ``"train"`` the mean over the epoch's labelled rows, before
        each step), on ``"valid"`` also its main metric. NaN from where a loss became NaN or infinite.
    runs : one row per trained model: ``weighting``, ``seed``, and the ``epoch`` whose parameters are kept.
    parameters : ``{name: tensor (runs, …)}`` on the CPU, row r being the model of row r of ``runs``.
    stopped : ``"finished"``, or ``"interrupted"`` when the reader stopped it: then only finished epochs are kept.
    build : the function that makes a model to put parameters into.
    """

    tasks: tuple[Task, ...]
    weightings: pd.DataFrame
    records: pd.DataFrame
    runs: pd.DataFrame
    parameters: dict[str, Tensor]
    stopped: str
    build: Build = field(compare=False)

    def __repr__(self) -> str:
        names, models, seeds = ", ".join(self.weightings), len(self.runs), self.runs["seed"].nunique()
        many = f"{len(self.weightings)} weightings × {seeds} seeds, {models} models"
        return f"Sweep of {names}: {many}, {self.stopped}"

    def final(self, split: str | None = None) -> pd.DataFrame:
        """The records of the epoch whose parameters are kept, ``runs.epoch``: what :meth:`model` would measure."""
        rows = self.records.merge(self.runs, on=["weighting", "seed", "epoch"])
        return rows if split is None else rows[rows["split"] == split].reset_index(drop=True)

    def model(self, weighting: int, seed: int | None = None) -> nn.Module:
        """The model of one row of ``weightings`` (and the first seed unless given): on the CPU, in evaluation mode."""
        rows = self.runs.reset_index().set_index(["weighting", "seed"])["index"]
        row = rows[weighting, self.runs["seed"][0] if seed is None else seed]
        with torch.random.fork_rng():
            model = self.build()
        model.load_state_dict(model.state_dict() | {name: of[row] for name, of in self.parameters.items()})
        return model.cpu().eval()

    def pareto(self, metric: str | Mapping[str, str] = "loss", split: str = "valid") -> pd.DataFrame:
        """Each weighting's final metric of each task, mean over seeds, and whether another one beats it.

        ``metric`` is one name for all tasks, or ``{task: name}``. Losses and RMSE are better low, all others high. A
        row per weighting with ``weighting``, one column per task and ``dominated``: another row is at least as good on
        every task and better on one. A row with NaN is dominated.
        """
        names, final = list(self.weightings), self.final(split)
        chosen = dict.fromkeys(names, metric) if isinstance(metric, str) else metric
        rows = final[final["metric"] == final["task"].map(chosen)]
        table = rows.groupby(["weighting", "task"])["value"].mean().unstack().rename_axis(columns=None)
        if missing := [name for name in names if name not in table]:
            raise ValueError(f"No {split} {metric!r} of {', '.join(missing)}: it has {set(final['metric'])}.")
        high = [chosen[name] not in LOWER_IS_BETTER for name in names]
        front = pareto_mask(table[names], maximise=high)
        return table[names].assign(dominated=~front).reset_index()


def simplex_grid(
    tasks: Sequence[Task] | Sequence[str], n: int | None = None, lowest: float = 0.0
) -> list[dict[str, float]]:
    """Evenly spaced weights of two or more tasks that sum to 1, as a list for :func:`sweep`.

    ``n`` points lie along each edge of the simplex: n weightings for two tasks (33 unless given), n·(n+1)/2 for three
    (36 unless given: n = 8). No weight falls below ``lowest``; above 0 it leaves out the corners, where a task is not
    trained at all.
    """
    names = [task.name if isinstance(task, Task) else task for task in tasks]
    n, free = (33 if len(names) == 2 else 8) if n is None else n, 1 - lowest * len(names)
    if len(names) < 2 or n < 2 or lowest < 0 or free <= 0:
        wanted = f"two or more tasks, n of 2 or more, and lowest from 0 to below 1/{len(names)}"
        raise ValueError(f"A grid needs {wanted}; got {len(names)} tasks, n = {n}, lowest = {lowest}.")
    cuts = [cut for cut in product(range(n), repeat=len(names)) if sum(cut) == n - 1]
    return [
        {name: lowest + free * part / (n - 1) for name, part in zip(names, cut, strict=True)} for cut in cuts
    ]


def sweep(
    build: Build,
    train: MultiTaskDataset,
    valid: MultiTaskDataset | None = None,
    *,
    weightings: pd.DataFrame | Sequence[Mapping[str, float]],
    seeds: Sequence[int] = (0,),
    epochs: int = 10,
    batch_size: int = 1024,
    lr: float = 1e-3,
    weight_decay: float = 0.0,
    keep: str = "last",
    progress: bool = True,
) -> Sweep:
    """Train one model for each weighting (and seed) with AdamW, several at once.

    The model of weighting w and seed s is what this gives, to within rounding (but dropout draws other units)::

        torch.manual_seed(s)
        model = build()
        fit(model, train, weights=w, seed=s, epochs=epochs, batch_size=batch_size, lr=lr)

    Parameters
    ----------
    build : returns a fresh model, such as ``lambda: SharedBottom(schema, tasks)``.
    train, valid : data on the device to train on, with labels for the model's tasks; an epoch ends by measuring valid.
    weightings : ``[{task: weight}, …]``, or a table with a column per task; see :func:`simplex_grid`.
    seeds : each gives its own initial parameters and order of batches.
    epochs, batch_size, lr, weight_decay : as in :func:`mtl_helpers.training.fit`, but without early stopping.
    keep : which parameters of each run stay: ``"last"`` epoch, or ``"best"``, the epoch of its lowest weighted
        validation loss (as ``fit`` with patience ≥ epochs would keep).

    Returns a Sweep; after KeyboardInterrupt too, if an epoch was finished. Raises ValueError or TypeError when data,
    weightings or settings do not fit, RuntimeError when ``torch.func.vmap`` cannot call the model (BatchNorm).
    """
    from tqdm.auto import tqdm

    if not len(seeds) or len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds is {seeds}: expected one or more, all different.")
    starts = []
    for seed in seeds:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            starts.append(build())
    check_parts("sweep", starts[0], train, valid, epochs)
    names = [task.name for task in starts[0].tasks]
    labelled = valid is not None and all(has_label(valid, name) for name in names)
    if keep != "last" and not (keep == "best" and labelled):
        raise ValueError(f"keep is {keep!r}: expected 'last', or 'best' with labels to validate every task.")
    frame = pd.DataFrame(weightings, dtype=float).reset_index(drop=True)
    for row in frame.to_dict("records") or [{}]:
        check_weights(row, names)
    frame, adam = frame[names], {"lr": lr, "weight_decay": weight_decay}
    stacked = _stacks(starts[0].to(train.device), next(train.batches(5, shuffle=False)))
    groups = [
        _Group(start.to(train.device), stacked, frame, int(seed), adam)
        for seed, start in zip(seeds, starts, strict=True)
    ]
    records, stopped = [], "finished"
    bar = tqdm(total=epochs * len(groups), unit="epoch", disable=not progress, leave=False)
    try:
        for epoch in range(1, epochs + 1):
            fresh = []
            for group in groups:
                fresh += group.run_epoch(epoch, train, valid, batch_size)
                bar.update()
            for group in groups:
                group.keep(epoch, keep == "best")
            records += fresh
    except KeyboardInterrupt:
        if not records:
            raise
        stopped = "interrupted"
    finally:
        bar.close()
    records, runs = (
        pd.concat(parts, ignore_index=True) for parts in (records, [group.runs for group in groups])
    )
    kept = {name: torch.cat([group.kept[name] for group in groups]).cpu() for name in groups[0].kept}
    return Sweep(tuple(starts[0].tasks), frame, records, runs, kept, stopped, build)


class _Group:
    """The models of one seed: one for each weighting, from the same start and on the same batches."""

    def __init__(
        self, start: nn.Module, stacked: bool, weightings: pd.DataFrame, seed: int, adam: dict
    ) -> None:
        self.tasks = start.tasks
        self.runs = pd.DataFrame({"weighting": weightings.index, "seed": seed, "epoch": 0})
        device = next(start.parameters()).device
        self.weights = torch.tensor(weightings.to_numpy(), dtype=torch.float32, device=device)
        self.together = _Together(start, len(weightings), _Memory(device) if stacked else None)
        trained = [value for value in self.together.parameters() if value.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, fused=device.type in ("cpu", "cuda"), **adam)
        self.generator = torch.Generator().manual_seed(seed)
        self.score = self.best = torch.zeros(len(weightings))  # weighted validation loss, last and lowest
        self.kept: dict[str, Tensor] = {}

    def run_epoch(
        self, epoch: int, train: MultiTaskDataset, valid: MultiTaskDataset | None, batch_size: int
    ) -> list[pd.DataFrame]:
        """Train for an epoch and measure; the records."""
        self.together.train()
        sums, counts = torch.zeros_like(self.weights), torch.zeros_like(self.weights[0])
        for batch in train.batches(batch_size, generator=self.generator):
            losses = self._losses(self.together(batch), batch)
            self.optimizer.zero_grad(set_to_none=True)
            (losses * self.weights).sum().backward()
            self.optimizer.step()
            count = label_counts(self.tasks, batch)
            sums += losses.detach() * count
            counts += count
        means = sums / counts
        found = [("train", task.name, "loss", means[:, i]) for i, task in enumerate(self.tasks)]
        found += [] if valid is None else self._measure(valid, batch_size)
        keys = self.runs[["weighting", "seed"]].assign(epoch=epoch)
        return [
            keys.assign(split=split, task=task, metric=metric, value=values.cpu().double().numpy())
            for split, task, metric, values in found
        ]

    def _losses(self, logits: dict[str, Tensor], batch: Batch) -> Tensor:
        """Each task's mean loss, (K, T)."""
        return torch.stack(list(task_losses(self.tasks, logits, batch).values()), dim=1)

    @torch.no_grad()
    def _measure(self, data: MultiTaskDataset, batch_size: int) -> list[tuple[str, str, str, Tensor]]:
        """(split, task, metric, (K,)) of each task, as :func:`mtl_helpers.training.evaluate` gives them."""
        self.together.eval()
        parts = [
            {name: logits.clone() for name, logits in self.together(batch).items()}
            for batch in data.batches(batch_size, shuffle=False)
        ]
        logits = {task.name: torch.cat([part[task.name] for part in parts], dim=1) for task in self.tasks}
        found = []
        losses = self._losses(logits, data).cpu()
        self.score = (losses * self.weights.cpu()).sum(1)
        for task, loss in zip(self.tasks, losses.T, strict=True):
            known = data.masks.get(task.name, slice(None))
            own, labels = logits[task.name][:, known], data.labels[task.name][known]
            if task.kind == "binary":
                value = batched_auc(own.sigmoid().cpu(), labels.cpu())
            elif task.kind == "multiclass":
                value = (own.argmax(-1) == labels).float().mean(-1)
            else:
                value = data.scales.get(task.name, (0.0, 1.0))[1] * (own - labels).square().mean(-1).sqrt()
            loss = loss if has_label(data, task.name) else torch.full_like(loss, math.nan)
            value = torch.where(loss.isfinite(), value.cpu(), math.nan)
            found += [("valid", task.name, "loss", loss), ("valid", task.name, MAIN_METRIC[task.kind], value)]
        return found

    def keep(self, epoch: int, best: bool) -> None:
        """Set this epoch's parameters aside; with ``best``, of those runs alone whose weighted loss is their lowest."""
        chosen = self.score < self.best if best and self.kept else torch.full_like(self.score, True).bool()
        self.best = torch.where(chosen, self.score, self.best)
        self.runs.loc[chosen.numpy(), "epoch"] = epoch
        named = self.together.model.named_parameters()
        now, old = {name: value.detach().clone() for name, value in named}, ~chosen
        for name, value in self.kept.items():
            now[name][old] = value[old]
        self.kept = now


class _Together(nn.Module):
    """K models from one start, with parameters (K, …): a batch → ``{task: logits (K, n, …)}``.

    With a memory, its layers compute for K models and the logits are valid until the memory's next use; without one,
    ``torch.func.vmap`` transforms the model.
    """

    def __init__(self, start: nn.Module, k: int, memory: _Memory | None) -> None:
        super().__init__()
        self.model, self.k, self.memory = copy.deepcopy(start), k, memory
        for name, value in start.named_parameters():
            path, _, own = name.rpartition(".")
            many = nn.Parameter(torch.stack([value.detach()] * k), value.requires_grad)
            setattr(self.model.get_submodule(path), own, many)
        for layer in self.model.modules() if memory else ():
            layer.__class__ = STACKED.get(type(layer), type(layer))
            layer.memory = memory

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        if self.memory:
            self.memory.taken.clear()
            return self.model(batch.numeric.expand(self.k, -1, -1), batch.categorical)
        given, parameters = (batch.numeric, batch.categorical), dict(self.model.named_parameters())
        return vmap(lambda own: functional_call(self.model, own, given), randomness="different")(parameters)


def _stacks(model: nn.Module, batch: Batch) -> bool:
    """Whether a model is made of layers that can compute for K models: they give its own logits on a few rows."""
    stacked, mapped = (_Together(model, 3, memory).eval() for memory in (_Memory(batch.numeric.device), None))
    with torch.no_grad():
        for value in (*stacked.parameters(), *mapped.parameters()):
            value *= value.new_tensor([1, -1, 0.5]).view(-1, *[1] * (value.dim() - 1))
        wanted = mapped(batch)
        try:
            found = stacked(batch)
        except (RuntimeError, ValueError, IndexError):  # its own forward pass has no place for one axis more
            return False
    return all(torch.allclose(found[name], wanted[name], rtol=1e-4, atol=1e-5) for name in wanted)


class _Memory:
    """Memory of one block's step, handed out again in the next: it stays in the processor's cache."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.held, self.taken = device, defaultdict(list), Counter()

    def take(self, *shape: int) -> Tensor:
        held, number = self.held[shape], self.taken[shape]
        self.taken[shape] += 1
        if number == len(held):
            held.append(torch.empty(shape, device=self.device))
        return held[number]


class _LinearStep(torch.autograd.Function):
    @staticmethod
    def forward(ctx, memory: _Memory, inputs: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.memory = memory
        ctx.save_for_backward(inputs, weight)
        out = memory.take(*inputs.shape[:2], weight.shape[1])
        return torch.baddbmm(bias.unsqueeze(1), inputs, weight.mT, out=out)

    @staticmethod
    def backward(ctx, slope: Tensor) -> tuple[Tensor | None, ...]:
        inputs, weight = ctx.saved_tensors
        below = (
            torch.bmm(slope, weight, out=ctx.memory.take(*inputs.shape)) if ctx.needs_input_grad[1] else None
        )
        return None, below, torch.bmm(slope.mT, inputs), slope.sum(1)


class _ReLUStep(torch.autograd.Function):
    @staticmethod
    def forward(ctx, inputs: Tensor) -> Tensor:
        ctx.mark_dirty(inputs.relu_())
        ctx.save_for_backward(inputs)
        return inputs

    @staticmethod
    def backward(ctx, slope: Tensor) -> Tensor:
        (out,) = ctx.saved_tensors  # whoever read it has taken its own backward step: its memory is free
        return torch.ops.aten.threshold_backward.grad_input(slope, out, 0, grad_input=out)


class _Linears(nn.Linear):
    """K linear layers: weight (K, out, in), bias (K, out); (K, n, in) → (K, n, out)."""

    def forward(self, inputs: Tensor) -> Tensor:
        return _LinearStep.apply(self.memory, inputs, self.weight, self.bias)


class _ReLUs(nn.ReLU):
    def forward(self, inputs: Tensor) -> Tensor:
        return _ReLUStep.apply(inputs)


class _Embeddings(nn.Embedding):
    """K tables, (K, rows, d), read side by side in one look-up: indices (…) → (K, …, d)."""

    def forward(self, index: Tensor) -> Tensor:
        k, _, width = self.weight.shape
        found = F.embedding(index, self.weight.transpose(0, 1).flatten(1))
        return found.unflatten(-1, (k, width)).movedim(-2, 0)


STACKED = {nn.Linear: _Linears, nn.ReLU: _ReLUs, nn.Embedding: _Embeddings}
