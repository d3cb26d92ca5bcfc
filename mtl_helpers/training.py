"""Training, early stopping and prediction for every model of the course.

Taught in notebook 02. :func:`fit` is a thin shell around :func:`training_steps`, the loop that a widget drives too.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.func import functional_call

from mtl_helpers.data.tables import Batch, MultiTaskDataset, Task, need_dataset
from mtl_helpers.files import Checkpoint
from mtl_helpers.losses import check_weights, label_counts, task_loss, to_prediction
from mtl_helpers.metrics import LOWER_IS_BETTER, accuracy, auc
from mtl_helpers.weighting import Fixed, Weighting

__all__ = ["History", "Step", "TrainingDiverged", "evaluate", "fit", "predict", "training_steps"]

METRICS = {  # of labels (n,) and probabilities (n,) or (n, n_classes), or values (n,)
    "binary": {"auc": auc, "accuracy": accuracy},
    "multiclass": {"accuracy": lambda labels, p: float(np.mean(p.argmax(-1) == labels))},
    "regression": {"rmse": lambda labels, values: float(np.sqrt(np.mean((values - labels) ** 2)))},
}
MAIN_METRIC = {kind: next(iter(metrics)) for kind, metrics in METRICS.items()}
Values = dict[str, dict[str, float]]  # {task: {metric: value}}
States = Mapping[str, Mapping[str, Tensor]]  # {task: state_dict}


class TrainingDiverged(RuntimeError):
    """A loss became NaN or infinite."""

    def __init__(self, task: str, epoch: int, step: int, value: float) -> None:
        super().__init__(
            f"The loss of task {task!r} became {value} in epoch {epoch}, step {step}. Usual causes: a learning rate or "
            "task weight that is too large, inputs not standardised. The model keeps its best weights."
        )


@dataclass
class Step:
    """One optimiser step: its epoch and number (from 1), each task's loss before it, and the batch."""

    epoch: int
    number: int
    losses: dict[str, Tensor]
    batch: Batch


@dataclass
class History:
    """What happened in a training run.

    records : one ``{"epoch", "split", "task", "metric", "value"}`` for each number that was measured. A training loss
        is the mean over the epoch's labelled rows, each measured before its step.
    best_epoch : the epoch whose weights the model has now (from 1; 0 when not one epoch was finished).
    best_epochs, best_states : after ``stop="each"``, each task's own best epoch and the weights it had then.
    stopped : ``"finished"``, ``"early"`` (validation stopped improving) or ``"interrupted"`` (by the reader).
    """

    records: list[dict] = field(default_factory=list)
    best_epoch: int = 0
    best_epochs: dict[str, int] = field(default_factory=dict)
    best_states: States = field(default_factory=dict, repr=False)
    stopped: str = "finished"

    def frame(self) -> pd.DataFrame:
        """All records as a tidy table."""
        return pd.DataFrame(self.records, columns=["epoch", "split", "task", "metric", "value"])

    def curve(self, task: str, metric: str = "loss", split: str = "valid") -> pd.Series:
        """One metric by epoch."""
        rows = self.frame().query("task == @task and metric == @metric and split == @split")
        return rows.set_index("epoch")["value"]

    def add(self, epoch: int, split: str, values: Values) -> None:
        self.records += [
            {"epoch": epoch, "split": split, "task": task, "metric": metric, "value": value}
            for task, metrics in values.items()
            for metric, value in metrics.items()
        ]


def training_steps(
    model: nn.Module,
    train: MultiTaskDataset,
    optimizer: torch.optim.Optimizer,
    *,
    weights: Mapping[str, float] | Weighting | None = None,
    batch_size: int = 1024,
    epochs: int = 1,
    generator: torch.Generator | None = None,
    checkpoint: Checkpoint | None = None,
) -> Iterator[Step]:
    """Train, yielding a :class:`Step` after each optimiser step.

    ``weights`` is read at every step, so changing the dictionary changes the training from the next step on.
    ``checkpoint`` is written after each epoch; a run that finds one goes on behind it.
    Raises :class:`TrainingDiverged` before a loss that is not finite can spoil the model.
    """
    strategy = weights if isinstance(weights, Weighting) else Fixed(model.tasks, weights)
    names, own = ([task.name for task in part.tasks] for part in (model, strategy))
    if own != names:
        raise ValueError(f"The weighting is for {own}, the model for {names}.")
    strategy.to(train.device).begin(model, optimizer)
    done = checkpoint.load() if checkpoint else 0
    for epoch in range(done + 1, epochs + 1):
        for number, batch in enumerate(train.batches(batch_size, generator=generator), start=1):
            if not model.training:  # somebody may have evaluated between two steps
                model.train()
            losses = strategy.losses(model, batch)
            values, counts = torch.stack([losses.detach(), label_counts(model.tasks, batch)]).tolist()
            for name, value in zip(names, values, strict=True):
                if not math.isfinite(value):
                    raise TrainingDiverged(name, epoch, number, value)
            strategy.present = [i for i, count in enumerate(counts) if count]
            optimizer.zero_grad(set_to_none=True)
            strategy.backward(losses, model)
            strategy.step(optimizer)
            strategy.after_step(partial(strategy.losses, model, batch))
            yield Step(epoch, number, dict(zip(names, losses.detach(), strict=True)), batch)
        if checkpoint:
            strategy.once(partial(checkpoint.save, epoch))


def fit(
    model: nn.Module,
    train: MultiTaskDataset,
    valid: MultiTaskDataset | None = None,
    *,
    epochs: int = 20,
    batch_size: int = 1024,
    lr: float = 1e-3,
    weight_decay: float = 0.0,
    weights: Mapping[str, float] | Weighting | None = None,
    patience: int = 3,
    monitor: str | Mapping[str, float] = "loss",
    stop: str = "together",
    seed: int = 0,
    progress: bool = True,
    checkpoint: str | Path | None = None,
) -> History:
    """Train a model with AdamW; stop early on validation and keep the weights of the best epoch.

    AdamW (Loshchilov and Hutter, ICLR 2019) decays parameters beside the gradient step, by lr · weight_decay a step:
    a common factor of all task weights changes nothing.

    Parameters
    ----------
    model : moved to the data's device and changed in place.
    train, valid : data whose labels cover the model's tasks. Without ``valid`` all epochs are run.
    epochs : at most; ``patience`` of them without a better validation end the run. batch_size : rows a step.
    weights : ``{task: weight}`` of L = Σ wᵢ Lᵢ, read at every step; 1 each when None. Or a :class:`Weighting`.
    monitor : ``"loss"`` (sum of the validation losses, weighted if the weights are fixed), ``"task.metric"``, such as
        ``"purchase.auc"``, or ``{task: weight}`` of another sum of the validation losses.
    stop : ``"together"``: one best epoch for all tasks, by the monitor. ``"each"``: the best epoch of each task, by its
        own validation loss, is kept too (``History.best_states``); ``patience`` then counts from the last of them.
    seed : of the order of the batches; initial weights and dropout follow the global one.
    checkpoint : a file, written after each epoch. If it is there at the start, the run goes on from it.

    Returns a History, after KeyboardInterrupt too: the run ends there, and the model keeps its best weights. Raises
    TrainingDiverged when a loss becomes NaN or infinite; TypeError or ValueError when data, weights or monitor do not
    fit the model, or the monitor is undefined on the validation data (no label, an AUC of one class).
    """
    from tqdm.auto import tqdm

    check_parts("fit", model, train, valid, epochs)
    strategy = weights if isinstance(weights, Weighting) else Fixed(model.tasks, weights)
    names, best = [task.name for task in model.tasks], _Best(model, monitor, strategy, stop)
    optimizer = torch.optim.AdamW(model.to(train.device).parameters(), lr=lr, weight_decay=weight_decay)
    generator = torch.Generator().manual_seed(seed)
    how = {"weights": strategy, "batch_size": batch_size, "epochs": epochs, "generator": generator}
    history = History()
    if checkpoint:
        parts = {"model": model, "optimizer": optimizer, "weights": strategy, "order": generator}
        how["checkpoint"] = Checkpoint(checkpoint, **parts, best=best.found, history=vars(history))
    steps, per_epoch = training_steps(model, train, optimizer, **how), -(-len(train) // batch_size)
    bar = tqdm(total=epochs * per_epoch, unit="step", disable=not progress, leave=False)
    sums, counts = torch.zeros(2, len(names), device=train.device)
    try:
        for step in steps:
            count = label_counts(model.tasks, step.batch)
            sums += torch.stack([step.losses[name] for name in names]) * count
            counts += count
            bar.update()
            if step.number < per_epoch:
                continue
            epoch, means = step.epoch, sums / counts
            history.add(epoch, "train", {n: {"loss": v} for n, v in zip(names, means.tolist(), strict=True)})
            sums, counts = torch.zeros_like(sums), torch.zeros_like(counts)
            if valid is None:
                history.best_epoch = epoch
                strategy.after_epoch(means, None)
                continue
            values = strategy.once(partial(evaluate, model, valid))
            for name, found in values.items():
                if has_label(valid, name) and not math.isfinite(found["loss"]):
                    raise TrainingDiverged(name, epoch, step.number, found["loss"])
            history.add(epoch, "valid", values)
            waited = best.see(epoch, values, history)
            strategy.after_epoch(means, means.new_tensor([values[name]["loss"] for name in names]))
            bar.set_postfix_str(f"epoch {epoch}, best {history.best_epoch}")
            if waited >= patience:
                history.stopped = "early"
                break
    except KeyboardInterrupt:
        history.stopped = "interrupted"
    finally:
        steps.close()
        bar.close()
        best.restore()
    return history


class _Best:
    """Remembers the weights of the best epoch by the monitor and, with ``stop="each"``, of each task's own."""

    def __init__(
        self, model: nn.Module, monitor: str | Mapping[str, float], strategy: Weighting, stop: str
    ) -> None:
        if stop not in ("together", "each"):
            raise ValueError(f"stop is {stop!r}: expected 'together' or 'each'.")
        self.model, self.monitor, self.found = model, str(monitor), {}  # {what: (score, epoch, state)}
        self.scores = {self.monitor: _watched(monitor, strategy)}
        self.each = [task.name for task in model.tasks] if stop == "each" else []
        self.scores |= {name: _watched(f"{name}.loss", strategy) for name in self.each}

    def see(self, epoch: int, values: Values, history: History) -> int:
        """Take an epoch's validation into account; returns for how many epochs nothing that counts has improved."""
        state = None
        for what, score in self.scores.items():
            if math.isnan(now := score(values)):
                raise ValueError(f"{what!r} is undefined on the validation data: no label, or one class.")
            if now < self.found.get(what, (math.inf,))[0]:
                state = state or copy.deepcopy(self.model.state_dict())
                self.found[what] = now, epoch, state
        history.best_epoch = self.found[self.monitor][1]
        history.best_epochs = {name: self.found[name][1] for name in self.each}
        history.best_states = {name: self.found[name][2] for name in self.each}
        return epoch - max(history.best_epochs.values(), default=history.best_epoch)

    def restore(self) -> None:
        if self.found:
            self.model.load_state_dict(self.found[self.monitor][2])


def _watched(monitor: str | Mapping[str, float], strategy: Weighting) -> Callable[[Values], float]:
    """What early stopping lowers, as a function of the validation's values."""
    weights = {task.name: 1.0 for task in strategy.tasks}
    if isinstance(monitor, Mapping):
        check_weights(monitor, list(weights))
        weights = monitor
    elif monitor != "loss":
        choices = [f"{t.name}.{metric}" for t in strategy.tasks for metric in ("loss", *METRICS[t.kind])]
        if monitor not in choices:
            raise ValueError(f"monitor is {monitor!r}: expected 'loss' or one of {', '.join(choices)}.")
        (name, _, metric), sign = monitor.rpartition("."), 1 if monitor.endswith(LOWER_IS_BETTER) else -1
        return lambda values: sign * values[name].get(metric, math.nan)
    elif isinstance(strategy, Fixed) and strategy.weights is not None:
        # strategies whose weights move have no fixed yardstick of their own, so theirs is the plain sum
        weights = strategy.weights
    return lambda values: sum(weight * values[name]["loss"] for name, weight in weights.items() if weight)


def check_parts(
    what: str, model: nn.Module, train: MultiTaskDataset, valid: MultiTaskDataset | None, epochs: int
) -> None:
    """Raise TypeError or ValueError unless the parts can train the model, for one epoch or more."""
    need_tasks(model)
    names = [task.name for task in model.tasks]
    for part in (train, train if valid is None else valid):
        need_dataset(part, what)
        if not len(part) or not set(names) <= set(part.labels):
            given, asked = f"{len(part)} rows with labels for {', '.join(part.labels)}", ", ".join(names)
            raise ValueError(f"{what} needs rows with labels for {asked}; got {given}.")
        if hasattr(model, "check_data"):
            model.check_data(part)
    if empty := [name for name in names if not has_label(train, name)]:
        raise ValueError(f"No training row has a label of {', '.join(empty)}: leave that task out.")
    if epochs < 1:
        raise ValueError(f"epochs is {epochs}: expected 1 or more.")


def need_tasks(model: nn.Module) -> None:
    if not hasattr(model, "tasks"):
        cure = "give a bare model (of DataParallel take .module)"
        raise TypeError(f"{type(model).__name__} has no .tasks: {cure}.")


def has_label(data: MultiTaskDataset, name: str) -> bool:
    return name not in data.masks or bool(data.masks[name].any())


@torch.no_grad()
def _logits(model: nn.Module, data: MultiTaskDataset, states: States | None) -> dict[str, Tensor]:
    """Logits of every task, each with its own state of the model if there are states."""
    need_tasks(model)
    need_dataset(data, type(model).__name__)
    was_training, names = model.training, [task.name for task in model.tasks]
    model.eval()

    def answer(numeric: Tensor, categorical: Tensor) -> dict[str, Tensor]:
        if not states:
            return model(numeric, categorical)
        return {n: functional_call(model, dict(states[n]), (numeric, categorical))[n] for n in names}

    try:
        parts = [answer(batch.numeric, batch.categorical) for batch in data.batches(8192, shuffle=False)]
    finally:
        model.train(was_training)
    return {name: torch.cat([part[name] for part in parts]) for name in names}


def predict(model: nn.Module, data: MultiTaskDataset, states: States | None = None) -> dict[str, Tensor]:
    """``{task: tensor}``: predictions of every task, on the CPU, in the order of the rows.

    Probabilities (n,) of a binary task, (n, n_classes) of a multiclass task; values (n,) of a regression task in the
    unit of its labels (undoing ``data.scales``). With ``states``, ``{task: state_dict}`` such as
    ``History.best_states``, each task is predicted with its own.
    """
    logits = _logits(model, data, states)
    return {task.name: to_prediction(task, logits[task.name], data.scales).cpu() for task in model.tasks}


def evaluate(model: nn.Module, data: MultiTaskDataset, states: States | None = None) -> Values:
    """``{task: {metric: value}}`` over the labelled rows: ``loss``, and ``auc``, ``accuracy`` (of p ≥ 0.5) or ``rmse``.

    The loss is what training minimises: of standardised labels for a regression task with ``data.scales``, and with
    ``data.weights`` a weighted mean. The metrics count every row alike, and ``rmse`` is in the label's own unit. A task
    without a label has NaN. ``states`` as in :func:`predict`.
    """
    logits = _logits(model, data, states)
    return {task.name: measured(task, logits[task.name], data) for task in model.tasks}


def measured(task: Task, logits: Tensor, data: MultiTaskDataset) -> dict[str, float]:
    """What :func:`evaluate` says of one task, from its logits; without metrics where they are not finite."""
    labels, mask = data.labels[task.name], data.masks.get(task.name)
    loss = task_loss(task, logits, labels, mask, data.weights).item()
    values = {"loss": loss if has_label(data, task.name) else math.nan}
    if math.isfinite(logits.sum().item()):
        truth = to_prediction(task, labels, data.scales) if task.kind == "regression" else labels
        known = slice(None) if mask is None else mask.cpu()
        # accuracy asks for the largest probability: that is the largest logit
        found = logits if task.kind == "multiclass" else to_prediction(task, logits, data.scales)
        y, said = (part.cpu()[known].numpy() for part in (truth, found))
        values |= {name: of(y, said) if len(y) else math.nan for name, of in METRICS[task.kind].items()}
    return values
