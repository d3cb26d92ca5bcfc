"""Training, early stopping and prediction for every model of the course.

Taught in notebook 02. :func:`fit` is a thin shell around :func:`training_steps`, the loop itself, so that a widget can
drive the same loop step by step.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.func import functional_call

from mtl_helpers.data.tables import Batch, MultiTaskDataset, Task, need_dataset
from mtl_helpers.losses import check_weights, label_counts, task_loss
from mtl_helpers.metrics import accuracy, auc
from mtl_helpers.weighting import Fixed, Weighting

__all__ = [
    "History",
    "Step",
    "TrainingDiverged",
    "evaluate",
    "fit",
    "predict",
    "task_metrics",
    "training_steps",
]

MAIN_METRIC = {"binary": "auc", "multiclass": "accuracy", "regression": "rmse"}
LOWER_IS_BETTER = ("loss", "rmse")
Values = dict[str, dict[str, float]]  # {task: {metric: value}}
States = Mapping[str, Mapping[str, Tensor]]  # {task: state_dict of the model}


class TrainingDiverged(RuntimeError):
    """A loss became NaN or infinite; ``task``, ``epoch`` and ``step`` say where."""

    def __init__(self, task: str, epoch: int, step: int, value: float) -> None:
        super().__init__(
            f"The loss of task {task!r} became {value} in epoch {epoch}, step {step}. Usual causes: a learning rate or "
            "task weight that is too large, inputs not standardised. The model keeps its best weights."
        )
        self.task, self.epoch, self.step = task, epoch, step


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

    Attributes
    ----------
    records : one ``{"epoch", "split", "task", "metric", "value"}`` for each number that was measured. A training loss
        is the mean over the epoch's labelled rows, each measured before its step.
    best_epoch : the epoch whose weights the model has now (from 1; 0 when not one epoch was finished).
    stopped : ``"finished"``, ``"early"`` (validation stopped improving) or ``"interrupted"`` (by the reader).
    best_epochs, best_states : after ``stop="each"``, ``{task: epoch of its own lowest validation loss}`` and the
        model's ``state_dict`` then; ``predict(model, data, states=history.best_states)`` reads each task from its own.
    """

    records: list[dict] = field(default_factory=list)
    best_epoch: int = 0
    stopped: str = "finished"
    best_epochs: dict[str, int] = field(default_factory=dict)
    best_states: dict[str, dict[str, Tensor]] = field(default_factory=dict, repr=False)

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
) -> Iterator[Step]:
    """Train, yielding a :class:`Step` after each optimiser step.

    ``weights`` is read at every step, so changing the dictionary changes the training from the next step on.
    Raises :class:`TrainingDiverged` before a loss that is not finite can spoil the model.
    """
    _check_place(model, train)
    strategy = _as_strategy(model, weights)
    strategy.to(train.device).begin(model, optimizer)
    for epoch in range(1, epochs + 1):
        for number, batch in enumerate(train.batches(batch_size, generator=generator), start=1):
            yield Step(epoch, number, _step(model, optimizer, strategy, batch, (epoch, number)), batch)


def _as_strategy(model: nn.Module, weights: Mapping[str, float] | Weighting | None) -> Weighting:
    strategy = weights if isinstance(weights, Weighting) else Fixed(model.tasks, weights)
    names, own = [task.name for task in model.tasks], [task.name for task in strategy.tasks]
    if own != names:
        raise ValueError(f"The weighting is for {own}, the model for {names}.")
    return strategy


def _step(
    model: nn.Module, optimizer: torch.optim.Optimizer, strategy: Weighting, batch: Batch, at: tuple[int, int]
) -> dict[str, Tensor]:
    """One step on one batch, ``at`` (epoch, number); the losses before it."""
    names = [task.name for task in model.tasks]
    if not model.training:  # somebody may have evaluated between two steps
        model.train()
    losses = strategy.losses(model, batch)
    values, counts = torch.stack([losses.detach(), label_counts(model.tasks, batch)]).tolist()
    strategy.present = [i for i, count in enumerate(counts) if count]
    for name, value in zip(names, values, strict=True):
        if not math.isfinite(value):
            raise TrainingDiverged(name, *at, value)
    optimizer.zero_grad(set_to_none=True)
    strategy.backward(losses, model)
    strategy.step(optimizer)
    strategy.after_step(lambda: strategy.losses(model, batch))
    return dict(zip(names, losses.detach(), strict=True))


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
) -> History:
    """Train a model with AdamW; stop early on validation and keep the weights of the best epoch.

    AdamW (Loshchilov and Hutter, ICLR 2019) decays parameters beside the gradient step, by lr · weight_decay a step:
    a common factor of all task weights changes nothing.

    Parameters
    ----------
    model : any model of :mod:`mtl_helpers.models`; it is moved to the data's device and changed in place.
    train, valid : data whose labels cover the model's tasks. Without ``valid`` all epochs are run.
    epochs : at most. batch_size : rows a step. lr, weight_decay : of AdamW.
    weights : ``{task: weight}`` of the sum L = Σ wᵢ Lᵢ, read at every step; 1 each when None. Or a strategy of
        :mod:`mtl_helpers.weighting` or :mod:`mtl_helpers.gradients`.
    patience : epochs without a better validation before stopping.
    monitor : ``"loss"`` (sum of the validation losses, weighted if the weights are fixed) or ``"task.metric"``, e.g.
        ``"purchase.auc"``; or ``{task: weight}`` for a weighted sum of the validation losses of your own.
    stop : ``"together"``: one best epoch for all tasks, by the monitor. ``"each"``: the best epoch of each task, by its
        own validation loss, is remembered too (``History.best_states``), and training stops when no task has improved
        for ``patience`` epochs.
    seed : of the order of the batches; initial weights and dropout follow the global one. progress : show a bar.

    Returns a History, after KeyboardInterrupt too: the run ends there, and the model keeps its best weights.
    TrainingDiverged when a loss becomes NaN or infinite; TypeError or ValueError when data, weights or monitor do not
    fit the model, or the monitor is undefined on the validation data (no label, an AUC of one class).
    """
    from tqdm.auto import tqdm

    check_parts("fit", model, train, valid, epochs=epochs, batch_size=batch_size, patience=patience)
    names = [task.name for task in model.tasks]
    strategy = _as_strategy(model, weights)
    model.to(train.device)
    history, best = History(), _Best(model, monitor, strategy, stop)
    steps = training_steps(
        model,
        train,
        torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=weight_decay),
        weights=strategy,
        batch_size=batch_size,
        epochs=epochs,
        generator=torch.Generator().manual_seed(seed),
    )
    per_epoch = -(-len(train) // batch_size)
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
            means = sums / counts
            losses = dict(zip(names, means.tolist(), strict=True))
            history.add(step.epoch, "train", {name: {"loss": loss} for name, loss in losses.items()})
            sums, counts = torch.zeros_like(sums), torch.zeros_like(counts)
            if valid is None:
                history.best_epoch = step.epoch
                strategy.after_epoch(means, None)
                continue
            values = _validated(model, valid, step)
            history.add(step.epoch, "valid", values)
            waited = best.see(step.epoch, values, history)
            strategy.after_epoch(means, means.new_tensor([values[name]["loss"] for name in names]))
            bar.set_postfix_str(f"epoch {step.epoch}, best {history.best_epoch}")
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


def _validated(model: nn.Module, valid: MultiTaskDataset, step: Step) -> Values:
    values = evaluate(model, valid)
    for name, found in values.items():
        if not math.isfinite(found["loss"]) and has_label(valid, name):
            raise TrainingDiverged(name, step.epoch, step.number, found["loss"])
    return values


class _Best:
    """Remembers the weights of the best epoch, and with ``stop="each"`` those of each task's own best epoch."""

    def __init__(
        self, model: nn.Module, monitor: str | Mapping[str, float], strategy: Weighting, stop: str
    ) -> None:
        names = [task.name for task in model.tasks]
        self.model, self.monitor, self.weights = model, monitor, dict.fromkeys(names, 1.0)
        if isinstance(monitor, Mapping):
            check_weights(monitor, names)
            self.monitor, self.weights = "loss", monitor
        elif isinstance(strategy, Fixed) and strategy.weights is not None:
            # strategies whose weights move have no fixed yardstick of their own, so theirs is the plain sum
            self.weights = strategy.weights
        if self.monitor != "loss" and self.monitor.partition(".")[0] not in names:
            raise ValueError(f"monitor is {monitor!r}: expected 'loss' or 'task.metric', a task of {names}.")
        if stop not in ("together", "each"):
            raise ValueError(f"stop is {stop!r}: expected 'together' or 'each'.")
        self.each = names if stop == "each" else []
        self.best: dict[str, tuple[float, int, dict[str, Tensor]]] = {}  # score, epoch, state

    def see(self, epoch: int, values: Values, history: History) -> int:
        """Take an epoch's validation into account; return for how many epochs nothing that counts has improved."""
        state = None
        for what, score in self._scores(values).items():
            if math.isnan(score):
                raise ValueError(
                    f"{what!r} is undefined on the validation data: no label, or one class only."
                )
            if what not in self.best or score < self.best[what][0]:
                state = state or copy.deepcopy(self.model.state_dict())
                self.best[what] = (score, epoch, state)
        history.best_epoch, own = self.best[self.monitor][1], {n: self.best[f"{n}.loss"] for n in self.each}
        history.best_epochs = {name: best[1] for name, best in own.items()}
        history.best_states = {name: best[2] for name, best in own.items()}
        return epoch - max(history.best_epochs.values(), default=history.best_epoch)

    def _scores(self, values: Values) -> dict[str, float]:
        """What is watched, low being good."""
        scores = {f"{name}.loss": values[name]["loss"] for name in self.each}
        if self.monitor == "loss":
            losses = [weight * values[name]["loss"] for name, weight in self.weights.items() if weight]
            return scores | {"loss": sum(losses)}
        task, _, metric = self.monitor.partition(".")
        if metric not in values[task]:
            raise ValueError(f"monitor is {self.monitor!r}: {task} has {', '.join(values[task])}.")
        return scores | {self.monitor: values[task][metric] * (1 if metric in LOWER_IS_BETTER else -1)}

    def restore(self) -> None:
        if self.best:
            self.model.load_state_dict(self.best[self.monitor][2])


def check_parts(
    what: str, model: nn.Module, train: MultiTaskDataset, valid: MultiTaskDataset | None, **counts: int
) -> None:
    """Raise unless the parts can train the model and each count is 1 or more."""
    _check_kinds(model, train, *[] if valid is None else [valid])
    names = [task.name for task in model.tasks]
    for part in (train, train if valid is None else valid):
        if not len(part) or not set(names) <= set(part.labels):
            given, asked = f"{len(part)} rows with labels for {', '.join(part.labels)}", ", ".join(names)
            raise ValueError(f"{what} needs rows with labels for {asked}; got {given}.")
        if hasattr(model, "check_data"):
            model.check_data(part)
    empty = [name for name in names if not has_label(train, name)]
    if empty:
        raise ValueError(f"No training row has a label of {', '.join(empty)}: leave that task out.")
    if valid is not None and valid.device != train.device:
        raise ValueError(f"Training data are on {train.device}, validation on {valid.device}.")
    wrong = {name: value for name, value in counts.items() if value < 1}
    if wrong:
        raise ValueError(f"{', '.join(f'{n} is {v}' for n, v in wrong.items())}: expected 1 or more.")


def _check_kinds(model: nn.Module, *parts: object) -> None:
    if not hasattr(model, "tasks"):
        raise TypeError(
            f"{type(model).__name__} has no .tasks: give a bare model (of DataParallel take .module)."
        )
    for part in parts:
        need_dataset(part, type(model).__name__)


def has_label(data: MultiTaskDataset, name: str) -> bool:
    return name not in data.masks or bool(data.masks[name].any())


def _check_place(model: nn.Module, data: MultiTaskDataset) -> None:
    _check_kinds(model, data)
    place = next((parameter.device for parameter in model.parameters()), data.device)
    if place != data.device:
        raise ValueError(f"The model is on {place}, the data on {data.device}: move one, say by model.to(…).")


@torch.no_grad()
def _logits(
    model: nn.Module, data: MultiTaskDataset, batch_size: int, states: States | None
) -> dict[str, Tensor]:
    """Logits of every task, each with its own state of the model if there are states."""
    _check_place(model, data)
    was_training = model.training
    model.eval()
    try:
        found: dict[str, list[Tensor]] = {task.name: [] for task in model.tasks}
        for batch in data.batches(batch_size, shuffle=False):
            given = (batch.numeric, batch.categorical)
            logits = {} if states else model(*given)
            for name, parts in found.items():
                own = functional_call(model, dict(states[name]), given) if states else logits
                parts.append(own[name])
    finally:
        model.train(was_training)
    return {name: torch.cat(parts) for name, parts in found.items()}


def _to_prediction(task: Task, logits: Tensor, data: MultiTaskDataset) -> Tensor:
    if task.kind == "regression":
        mean, std = data.scales.get(task.name, (0.0, 1.0))
        return logits * std + mean
    return logits.sigmoid() if task.kind == "binary" else logits.softmax(-1)


def predict(
    model: nn.Module, data: MultiTaskDataset, batch_size: int = 8192, states: States | None = None
) -> dict[str, Tensor]:
    """``{task: tensor}``: predictions of every task, on the CPU, in the order of the rows.

    Probabilities (n,) of a binary task, (n, n_classes) of a multiclass task; values (n,) of a regression task in the
    unit of its labels (undoing ``data.scales``). With ``states``, ``{task: state_dict}`` such as
    ``History.best_states``, each task is predicted with its own.
    """
    logits = _logits(model, data, batch_size, states)
    return {task.name: _to_prediction(task, logits[task.name], data).cpu() for task in model.tasks}


def task_metrics(
    task: Task, predictions: object, labels: object, mask: object | None = None
) -> dict[str, float]:
    """The metrics the course reports for one task, over labelled rows.

    Binary: ``auc``, ``accuracy`` (threshold 0.5). Multiclass: ``accuracy``. Regression: ``rmse``. ``predictions`` are
    probabilities (n,) or (n, n_classes), or values (n,); ``mask`` is True where the label is known.
    """
    values, y = np.asarray(predictions), np.asarray(labels)
    if mask is not None:
        known = np.asarray(mask, dtype=bool)
        values, y = values[known], y[known]
    if task.kind == "binary":
        return {"auc": auc(y, values), "accuracy": accuracy(y, values)}
    if not len(y):
        return {"accuracy" if task.kind == "multiclass" else "rmse": float("nan")}
    if task.kind == "multiclass":
        return {"accuracy": float(np.mean(values.argmax(-1) == y))}
    return {"rmse": float(np.sqrt(np.mean((values - y) ** 2)))}


def evaluate(
    model: nn.Module, data: MultiTaskDataset, batch_size: int = 8192, states: States | None = None
) -> Values:
    """``{task: {metric: value}}`` over the labelled rows: the loss and the metrics of :func:`task_metrics`.

    The loss is what training minimises: of standardised labels for a regression task with ``data.scales``, and with
    ``data.weights`` a weighted mean. The metrics count every row alike, and ``rmse`` is in the label's own unit. A task
    without a label has NaN. ``states`` as in :func:`predict`.
    """
    logits, values = _logits(model, data, batch_size, states), {}
    for task in model.tasks:
        own, labels, mask = logits[task.name], data.labels[task.name], data.masks.get(task.name)
        loss = task_loss(task, own, labels, mask, data.weights).item()
        values[task.name] = {"loss": loss if has_label(data, task.name) else float("nan")}
        if np.isfinite(own.sum().item()):
            prediction = _to_prediction(task, own, data).cpu()
            truth = _to_prediction(task, labels, data) if task.kind == "regression" else labels
            known = None if mask is None else mask.cpu()
            values[task.name] |= task_metrics(task, prediction, truth.cpu(), known)
    return values
