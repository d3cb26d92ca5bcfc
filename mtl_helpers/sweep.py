"""Many task weightings trained at once: from a list of weights to a Pareto front in seconds.

Taught in notebook 04; its result drives the weight slider of notebook 00. :func:`sweep` stacks the parameters of
several models, (K, …) instead of (…), and takes one step for all.
"""

from __future__ import annotations

import copy
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import product

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from mtl_helpers.data.tables import Batch, MultiTaskDataset, Task
from mtl_helpers.losses import check_weights, label_counts, task_losses
from mtl_helpers.metrics import LOWER_IS_BETTER, pareto_mask
from mtl_helpers.models.layers import FeatureLayer
from mtl_helpers.training import MAIN_METRIC, check_parts, has_label, measured

__all__ = ["Sweep", "pareto_mask", "simplex_grid", "sweep"]

Build = Callable[[], nn.Module]


@dataclass(repr=False)
class Sweep:
    """What a sweep has trained and measured.

    weightings : one row per weighting, one column per task.
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
            torch.manual_seed(int(self.runs["seed"][row]))
            model = self.build()
        model.load_state_dict(model.state_dict() | {name: of[row] for name, of in self.parameters.items()})
        return model.cpu().eval()

    def pareto(self, metric: str | Mapping[str, str] = "loss") -> pd.DataFrame:
        """Each weighting's final validation metric of each task, mean over seeds, and whether another one beats it.

        ``metric`` is one name for all tasks, or ``{task: name}``; losses and RMSE are better low, all others high. A
        row per weighting: ``weighting``, one column per task, and ``dominated`` (see :func:`pareto_mask`).
        """
        names, final = list(self.weightings), self.final("valid")
        chosen = dict.fromkeys(names, metric) if isinstance(metric, str) else metric
        rows = final[final["metric"] == final["task"].map(chosen)]
        table = rows.groupby(["weighting", "task"])["value"].mean().unstack().rename_axis(columns=None)
        if missing := [name for name in names if name not in table]:
            raise ValueError(f"No valid {metric!r} of {', '.join(missing)}: it has {set(final['metric'])}.")
        front = pareto_mask(table[names], maximise=[chosen[name] not in LOWER_IS_BETTER for name in names])
        return table[names].assign(dominated=~front).reset_index()


def simplex_grid(tasks: Sequence[Task | str], n: int, lowest: float = 0.0) -> list[dict[str, float]]:
    """Evenly spaced weights of two or more tasks that sum to 1, as a list for :func:`sweep`.

    ``n`` points lie along each edge of the simplex: n weightings for two tasks, n·(n+1)/2 for three. No weight falls
    below ``lowest``; above 0 it leaves out the corners, which do not train every task.
    """
    names, free = [getattr(task, "name", task) for task in tasks], 1 - lowest * len(tasks)
    if len(names) < 2 or n < 2 or lowest < 0 or free <= 0:
        wanted = f"two or more tasks, n of 2 or more, and lowest from 0 to below 1/{len(names)}"
        raise ValueError(f"A grid needs {wanted}; got {len(names)} tasks, n = {n}, lowest = {lowest}.")
    cuts = (cut for cut in product(range(n), repeat=len(names)) if sum(cut) == n - 1)
    shares = ([lowest + free * part / (n - 1) for part in cut] for cut in cuts)
    return [dict(zip(names, each, strict=True)) for each in shares]


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
    """Train one model for each weighting (and seed) with AdamW, all weightings at once.

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
    starts = {}
    for seed in seeds:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            starts[int(seed)] = build()
    first = starts[seeds[0]]
    check_parts("sweep", first, train, valid, epochs)
    names = [task.name for task in first.tasks]
    labelled = valid is not None and all(has_label(valid, name) for name in names)
    if keep != "last" and not (keep == "best" and labelled):
        raise ValueError(f"keep is {keep!r}: expected 'last', or 'best' with labels to validate every task.")
    frame = pd.DataFrame(weightings, dtype=float).reset_index(drop=True)
    for row in frame.to_dict("records") or [{}]:
        check_weights(row, names)
    frame, adam = frame[names], {"lr": lr, "weight_decay": weight_decay}
    stacked = _stacks(first.to(train.device), next(train.batches(5, shuffle=False)))
    groups = [_Group(start.to(train.device), stacked, frame, seed, adam) for seed, start in starts.items()]
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
    runs = pd.concat([group.runs for group in groups], ignore_index=True)
    kept = {name: torch.cat([group.kept[name] for group in groups]).cpu() for name in groups[0].kept}
    records = pd.concat(records, ignore_index=True)
    return Sweep(tuple(first.tasks), frame, records, runs, kept, stopped, build)


class _Group:
    """The models of one seed: one for each weighting, from the same start and on the same batches."""

    def __init__(self, start: nn.Module, stacked: bool, frame: pd.DataFrame, seed: int, adam: dict) -> None:
        self.tasks, device = start.tasks, next(start.parameters()).device
        self.runs = pd.DataFrame({"weighting": frame.index, "seed": seed, "epoch": 0})
        self.weights = torch.tensor(frame.to_numpy(), dtype=torch.float32, device=device)
        self.together = _Together(start, len(frame), stacked)
        trained = [value for value in self.together.parameters() if value.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, fused=device.type in ("cpu", "cuda"), **adam)
        self.generator = torch.Generator().manual_seed(seed)
        self.score = self.best = np.zeros(len(frame))  # weighted validation loss, last and lowest
        self.kept: dict[str, Tensor] = {}

    def run_epoch(
        self, epoch: int, train: MultiTaskDataset, valid: MultiTaskDataset | None, batch_size: int
    ) -> list[pd.DataFrame]:
        """Train for an epoch and measure; the records."""
        self.together.train()
        sums, counts = torch.zeros_like(self.weights), torch.zeros_like(self.weights[0])
        for batch in train.batches(batch_size, generator=self.generator):
            losses = task_losses(self.tasks, self.together(batch), batch)
            losses = torch.stack(list(losses.values()), dim=1)
            self.optimizer.zero_grad(set_to_none=True)
            (losses * self.weights).sum().backward()
            self.optimizer.step()
            count = label_counts(self.tasks, batch)
            sums += losses.detach() * count
            counts += count
        means = (sums / counts).cpu().double().numpy()
        found = [("train", task.name, "loss", means[:, i]) for i, task in enumerate(self.tasks)]
        found += [] if valid is None else self._measure(valid, batch_size)
        keys = self.runs[["weighting", "seed"]].assign(epoch=epoch)
        columns = ("split", "task", "metric", "value")
        return [keys.assign(**dict(zip(columns, row, strict=True))) for row in found]

    @torch.no_grad()
    def _measure(self, data: MultiTaskDataset, batch_size: int) -> list[tuple[str, str, str, np.ndarray]]:
        """(split, task, metric, (K,)) of each task, as :func:`mtl_helpers.training.evaluate` gives them."""
        self.together.eval()
        parts, found = {task.name: [] for task in self.tasks}, []
        for batch in data.batches(batch_size, shuffle=False):
            for name, logits in self.together(batch).items():
                parts[name].append(logits.clone())
        for task in self.tasks:
            each = [measured(task, logits, data) for logits in torch.cat(parts[task.name], dim=1)]
            for metric in ("loss", MAIN_METRIC[task.kind]):
                values = np.array([of_model.get(metric, math.nan) for of_model in each])
                found.append(("valid", task.name, metric, values))
        losses = np.stack([values for *_, metric, values in found if metric == "loss"], axis=1)
        self.score = (losses * self.weights.cpu().numpy()).sum(1)
        return found

    def keep(self, epoch: int, best: bool) -> None:
        """Set this epoch's parameters aside; with ``best``, of those runs alone whose weighted loss is their lowest."""
        chosen = self.score < self.best if best and self.kept else np.full(len(self.runs), True)
        self.best = np.where(chosen, self.score, self.best)
        self.runs.loc[chosen, "epoch"] = epoch
        now = {name: value.detach().clone() for name, value in self.together.model.named_parameters()}
        for name, value in self.kept.items():
            now[name][~chosen] = value[~chosen]
        self.kept = now


class _Together(nn.Module):
    """K models from one start, with parameters (K, …): a batch → ``{task: logits (K, n, …)}``.

    With ``stacked`` its layers compute for K models, and what they give lasts until the next call; without,
    ``torch.func.vmap`` transforms the model.
    """

    def __init__(self, start: nn.Module, k: int, stacked: bool) -> None:
        super().__init__()
        self.model, self.k, self.stacked, self.memory = copy.deepcopy(start), k, stacked, _Memory()
        for name, value in start.named_parameters():
            path, _, own = name.rpartition(".")
            many = nn.Parameter(torch.stack([value.detach()] * k), value.requires_grad)
            setattr(self.model.get_submodule(path), own, many)
        for layer in self.model.modules() if stacked else ():
            if type(layer) in STACKED:
                name, work = STACKED[type(layer)]
                setattr(layer, name, partial(work, layer, self.memory))

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        self.memory.taken.clear()
        if self.stacked:
            return self.model(batch.numeric.expand(self.k, -1, -1), batch.categorical)
        given, parameters = (batch.numeric, batch.categorical), dict(self.model.named_parameters())
        return vmap(lambda own: functional_call(self.model, own, given), randomness="different")(parameters)


def _stacks(model: nn.Module, batch: Batch) -> bool:
    """Whether a model's layers can compute for K models: they give its own logits and slopes on a few rows."""

    def tried(stacked: bool) -> list[Tensor]:
        together, generator = _Together(model, 3, stacked), torch.Generator().manual_seed(0)
        for layer in together.modules():  # as in training, but that dropout draws
            layer.training = "Dropout" not in type(layer).__name__
        with torch.no_grad():  # another model each, and no weight that hides others by being 0
            for value in together.parameters():
                value += 0.3 * torch.randn(value.shape, generator=generator).to(value)
        logits = list(together(batch).values())
        slopes = [torch.randn(each.shape, generator=generator).to(each) for each in logits]
        trained = [value for value in together.parameters() if value.requires_grad]
        found = torch.autograd.grad(logits, trained, slopes, allow_unused=True)
        return [each.detach().clone() for each in (*logits, *found) if each is not None]

    wanted = tried(stacked=False)
    try:
        found = tried(stacked=True)
    except Exception:  # no place for one axis more, no bias, a layer that another one has overwritten
        return False
    if [each.shape for each in found] != [each.shape for each in wanted]:
        return False
    return all(torch.allclose(*pair, rtol=1e-4, atol=1e-4) for pair in zip(found, wanted, strict=True))


class _Memory:
    """Memory for the layers of one step, handed out again in the next: new memory is slow at first use."""

    def __init__(self) -> None:
        self.held, self.taken = defaultdict(list), Counter()

    def take(self, like: Tensor, *shape: int) -> Tensor:
        held, number = self.held[shape], self.taken[shape]
        self.taken[shape] += 1
        if number == len(held):
            held.append(like.new_empty(shape))
        return held[number]


class _Linear(torch.autograd.Function):
    """K linear layers: (K, n, in), weight (K, out, in) and bias (K, out) → (K, n, out)."""

    @staticmethod
    def forward(ctx, memory: _Memory, inputs: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.memory = memory
        ctx.save_for_backward(inputs, weight)
        out = memory.take(bias, *inputs.shape[:2], weight.shape[1])
        return torch.baddbmm(bias.unsqueeze(1), inputs, weight.mT, out=out)

    @staticmethod
    def backward(ctx, slope: Tensor) -> tuple[Tensor | None, ...]:
        (inputs, weight), below = ctx.saved_tensors, None
        if ctx.needs_input_grad[1]:
            below = torch.bmm(slope, weight, out=ctx.memory.take(slope, *inputs.shape))
        return None, below, torch.bmm(slope.mT, inputs), slope.sum(1)


class _ReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, inputs: Tensor) -> Tensor:
        ctx.mark_dirty(inputs.relu_())
        ctx.save_for_backward(inputs)
        return inputs

    @staticmethod
    def backward(ctx, slope: Tensor) -> Tensor:
        (out,) = ctx.saved_tensors  # its readers have taken their backward steps: its memory is free
        return torch.ops.aten.threshold_backward.grad_input(slope, out, 0, grad_input=out)


class _Features(torch.autograd.Function):
    """K feature layers: tables (K, rows, d), numeric (K, n, D) or (n, D), index (n, C) → (K, n, C·d + D)."""

    @staticmethod
    def forward(ctx, memory: _Memory, table: Tensor, numeric: Tensor, index: Tensor) -> Tensor:
        (k, _, d), (n, c) = table.shape, index.shape
        ctx.memory, ctx.index, ctx.table, ctx.numeric = memory, index.flatten(), table.shape, numeric.shape
        found = torch.index_select(table, 1, ctx.index, out=memory.take(table, k, n * c, d))
        out = memory.take(table, k, n, c * d + numeric.shape[-1])
        return torch.cat([found.view(k, n, c * d), numeric.expand(k, n, -1)], dim=-1, out=out)

    @staticmethod
    def backward(ctx, slope: Tensor) -> tuple[Tensor | None, ...]:
        (k, rows, d), n = ctx.table, slope.shape[1]
        c = len(ctx.index) // n
        aside = ctx.memory.take(slope, n, c, k, d)  # K vectors side by side: one sum serves all tables
        aside.copy_(slope[..., : c * d].unflatten(-1, (c, d)).movedim(0, -2))
        wide = slope.new_zeros(rows, k * d).index_add_(0, ctx.index, aside.view(n * c, k * d))
        below = slope[..., c * d :].sum_to_size(ctx.numeric) if ctx.needs_input_grad[2] else None
        return None, wide.view(rows, k, d).transpose(0, 1), below, None


STACKED = {
    nn.Linear: ("forward", lambda layer, memory, x: _Linear.apply(memory, x, layer.weight, layer.bias)),
    nn.ReLU: ("forward", lambda layer, memory, x: _ReLU.apply(x)),
    FeatureLayer: ("joined", lambda layer, memory, *x: _Features.apply(memory, layer.embedding.weight, *x)),
}
