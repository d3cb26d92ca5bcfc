"""Training, early stopping, prediction and checkpoints for every model of the course.

Taught in notebook 02. :func:`fit` is a thin shell around :func:`training_steps`, the loop itself, so that a widget can
drive the same loop step by step.
"""

from __future__ import annotations

import copy
import json
import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from mtl_helpers.data.tables import Batch, MultiTaskDataset, Task
from mtl_helpers.losses import check_weights, task_loss, task_losses
from mtl_helpers.metrics import accuracy, auc
from mtl_helpers.weighting import Fixed, Weighting

__all__ = [
    "History",
    "Step",
    "TrainingDiverged",
    "evaluate",
    "fit",
    "load_checkpoint",
    "predict",
    "task_metrics",
    "save_checkpoint",
    "training_steps",
]

LOWER_IS_BETTER = ("loss", "rmse")


class TrainingDiverged(RuntimeError):
    """A loss became NaN or infinite; ``task``, ``epoch`` and ``step`` say where."""

    def __init__(self, task: str, epoch: int, step: int, value: float) -> None:
        super().__init__(
            f"The loss of task {task!r} became {value} in epoch {epoch}, step {step}. Usual causes: a learning rate "
            "or task weight that is too large, or inputs that are not standardised. The model keeps its best weights."
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
    records : one ``{"epoch", "split", "task", "metric", "value"}`` for each number that was measured.
    best_epoch : the epoch whose weights the model has now (from 1; 0 when not one epoch was finished).
    stopped : ``"finished"``, ``"early"`` (validation stopped improving) or ``"interrupted"`` (by the reader).
    """

    records: list[dict] = field(default_factory=list)
    best_epoch: int = 0
    stopped: str = "finished"

    def frame(self) -> pd.DataFrame:
        """All records as a tidy table."""
        return pd.DataFrame(self.records, columns=["epoch", "split", "task", "metric", "value"])

    def curve(self, task: str, metric: str = "loss", split: str = "valid") -> pd.Series:
        """One metric by epoch."""
        rows = self.frame().query("task == @task and metric == @metric and split == @split")
        return rows.set_index("epoch")["value"]

    def add(self, epoch: int, split: str, values: Mapping[str, Mapping[str, float]]) -> None:
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
    bf16: bool = False,
) -> Iterator[Step]:
    """Train, yielding a :class:`Step` after each optimiser step.

    ``weights`` is read at every step, so changing the dictionary changes the training from the next step on.
    Raises :class:`TrainingDiverged` before a loss that is not finite can spoil the model, ValueError when model and
    data lie on different devices.
    """
    _check_place(model, train)
    strategy = weights if isinstance(weights, Weighting) else Fixed(model.tasks, weights)
    strategy.to(train.device).begin(model, optimizer)
    try:
        yield from _steps(model, train, optimizer, strategy, batch_size, epochs, generator, bf16)
    finally:
        strategy.end()


def _steps(
    model: nn.Module,
    train: MultiTaskDataset,
    optimizer: torch.optim.Optimizer,
    strategy: Weighting,
    batch_size: int,
    epochs: int,
    generator: torch.Generator | None,
    bf16: bool,
) -> Iterator[Step]:
    names = [task.name for task in model.tasks]

    def losses_of(batch: Batch) -> Tensor:
        with torch.autocast(train.device.type, torch.bfloat16) if bf16 else nullcontext():
            logits = model(batch.numeric, batch.categorical)
        losses = task_losses(model.tasks, {name: value.float() for name, value in logits.items()}, batch)
        return torch.stack([losses[name] for name in names])

    for epoch in range(1, epochs + 1):
        for number, batch in enumerate(train.batches(batch_size, generator=generator), start=1):
            if not model.training:  # somebody may have evaluated between two steps
                model.train()
            losses = losses_of(batch)
            for name, value in zip(names, losses.tolist(), strict=True):
                if not math.isfinite(value):
                    raise TrainingDiverged(name, epoch, number, value)
            optimizer.zero_grad(set_to_none=True)
            strategy.backward(losses, model)
            optimizer.step()
            strategy.after_step(lambda batch=batch: losses_of(batch))
            yield Step(epoch, number, dict(zip(names, losses.detach(), strict=True)), batch)


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
    seed: int = 0,
    progress: bool = True,
    bf16: bool = False,
) -> History:
    """Train a model with Adam; stop early on validation and keep the weights of the best epoch.

    Parameters
    ----------
    model : any model of :mod:`mtl_helpers.models`; it is moved to the data's device and changed in place.
    train, valid : data whose labels cover the model's tasks. Without ``valid`` all epochs are run.
    epochs : at most. batch_size : rows a step. lr, weight_decay : of Adam.
    weights : ``{task: weight}`` of the sum L = Σ wᵢ Lᵢ, read at every step; 1 each when None. Or a strategy of
        :mod:`mtl_helpers.weighting` or :mod:`mtl_helpers.gradients`.
    patience : epochs without a better validation before stopping.
    monitor : ``"loss"`` (sum of the validation losses, weighted if the weights are fixed) or ``"task.metric"``, e.g.
        ``"purchase.auc"``; or ``{task: weight}`` for a weighted sum of the validation losses of your own.
    seed : of the order of the batches. Initial weights and dropout follow the global seed (``seed_everything``).
    progress : show a bar.
    bf16 : multiply matrices of the forward pass in bfloat16 (``torch.autocast``): faster on recent GPUs. Parameters,
        losses and validation stay in float32.

    Returns
    -------
    History. After KeyboardInterrupt too: the run ends there, and the model keeps its best weights.

    Raises
    ------
    TrainingDiverged : a loss became NaN or infinite; the model has its best weights so far.
    ValueError, KeyError : data, weights or monitor do not fit the model.
    """
    from tqdm.auto import tqdm

    names = [task.name for task in model.tasks]
    for part in (train, valid):
        if part is not None and (not len(part) or not set(names) <= set(part.labels)):
            raise ValueError(
                f"fit needs rows with labels for {', '.join(names)}; got {len(part)} rows with labels for "
                f"{', '.join(part.labels)}."
            )
    if valid is not None and valid.device != train.device:
        raise ValueError(
            f"The training data are on {train.device}, the validation data on {valid.device}: move one of them, "
            f"say by valid.to({str(train.device)!r})."
        )
    for what, value in (("epochs", epochs), ("batch_size", batch_size), ("patience", patience)):
        if value < 1:
            raise ValueError(f"{what} is {value}: expected 1 or more.")
    if not 0 < lr < math.inf:
        raise ValueError(f"lr is {lr}: expected a number above 0, such as 1e-3.")
    if not 0 <= weight_decay < math.inf:
        raise ValueError(f"weight_decay is {weight_decay}: expected 0 or more.")
    strategy = weights if isinstance(weights, Weighting) else Fixed(model.tasks, weights)
    if [task.name for task in strategy.tasks] != names:
        raise ValueError(
            f"The weighting is made for {[t.name for t in strategy.tasks]}, the model for {names}."
        )
    model.to(train.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr, weight_decay=weight_decay)
    history, keeper = History(), _BestWeights(model, monitor, strategy, names)
    generator = torch.Generator().manual_seed(seed)
    steps = training_steps(
        model,
        train,
        optimizer,
        weights=strategy,
        batch_size=batch_size,
        epochs=epochs,
        generator=generator,
        bf16=bf16,
    )
    per_epoch = -(-len(train) // batch_size)
    bar = tqdm(total=epochs * per_epoch, unit="step", disable=not progress, leave=False)
    sums = torch.zeros(len(names), device=train.device)
    try:
        for step in steps:
            sums += torch.stack([step.losses[name] for name in names]) * len(step.batch)
            bar.update()
            if step.number < per_epoch:
                continue
            means = (sums / len(train)).tolist()
            history.add(
                step.epoch, "train", {name: {"loss": mean} for name, mean in zip(names, means, strict=True)}
            )
            sums.zero_()
            if valid is None:
                history.best_epoch = step.epoch
                strategy.after_epoch(torch.tensor(means), None)
                continue
            values = evaluate(model, valid)
            for name in names:
                if not np.isfinite(values[name]["loss"]):
                    raise TrainingDiverged(name, step.epoch, step.number, values[name]["loss"])
            history.add(step.epoch, "valid", values)
            history.best_epoch = keeper.see(step.epoch, values)
            strategy.after_epoch(torch.tensor(means), torch.tensor([values[name]["loss"] for name in names]))
            bar.set_postfix_str(
                f"epoch {step.epoch}, best {history.best_epoch}, {keeper.monitor} {keeper.last:.4f}"
            )
            if step.epoch - history.best_epoch >= patience:
                history.stopped = "early"
                break
    except KeyboardInterrupt:
        history.stopped = "interrupted"
    finally:
        steps.close()
        bar.close()
        keeper.restore()
    return history


class _BestWeights:
    """Remembers the weights of the best validation so far."""

    def __init__(
        self, model: nn.Module, monitor: str | Mapping[str, float], strategy: Weighting, names: list[str]
    ) -> None:
        self.model = model
        if isinstance(monitor, Mapping):
            check_weights(monitor, names)
            self.monitor, self.weights = "loss", monitor
        else:
            # strategies whose weights move have no fixed yardstick of their own, so theirs is the plain sum
            self.monitor, self.weights = monitor, strategy.weights if isinstance(strategy, Fixed) else None
        self.best, self.epoch, self.state, self.last = np.inf, 0, None, float("nan")
        self.task, _, self.metric = self.monitor.partition(".")
        if self.monitor != "loss" and (self.task not in names or not self.metric):
            raise ValueError(
                f"monitor is {monitor!r}: expected 'loss' or 'task.metric' with a task of {', '.join(names)}."
            )

    def see(self, epoch: int, values: Mapping[str, Mapping[str, float]]) -> int:
        """Take the validation of an epoch into account; return the best epoch so far."""
        if self.monitor == "loss":
            self.last = sum((self.weights or {}).get(name, 1.0) * v["loss"] for name, v in values.items())
            score = self.last
        else:
            if self.metric not in values[self.task]:
                raise ValueError(f"monitor {self.monitor!r}: {self.task} has {', '.join(values[self.task])}.")
            self.last = values[self.task][self.metric]
            score = self.last if self.metric in LOWER_IS_BETTER else -self.last
        if score < self.best or self.state is None:
            self.best = score if np.isfinite(score) else np.inf
            self.epoch, self.state = epoch, copy.deepcopy(self.model.state_dict())
        return self.epoch

    def restore(self) -> None:
        if self.state is not None:
            self.model.load_state_dict(self.state)


def _check_place(model: nn.Module, data: MultiTaskDataset) -> None:
    for parameter in model.parameters():
        if parameter.device != data.device:
            raise ValueError(
                f"The model is on {parameter.device}, the data on {data.device}: move one of them, "
                f"say by model.to({str(data.device)!r})."
            )
        return


@torch.no_grad()
def _logits(model: nn.Module, data: MultiTaskDataset, batch_size: int) -> dict[str, Tensor]:
    _check_place(model, data)
    was_training = model.training
    model.eval()
    try:
        parts = [model(batch.numeric, batch.categorical) for batch in data.batches(batch_size, shuffle=False)]
    finally:
        model.train(was_training)
    return {task.name: torch.cat([part[task.name] for part in parts]) for task in model.tasks}


def _to_prediction(task: Task, logits: Tensor) -> Tensor:
    if task.kind == "binary":
        return logits.sigmoid()
    return logits.softmax(-1) if task.kind == "multiclass" else logits


def predict(model: nn.Module, data: MultiTaskDataset, batch_size: int = 8192) -> dict[str, Tensor]:
    """Predictions of every task, on the CPU, in the order of the rows.

    Returns
    -------
    ``{task: tensor}``: probabilities (n,) of a binary task, (n, n_classes) of a multiclass task, values (n,) of a
    regression task.

    Raises ValueError when model and data lie on different devices.
    """
    logits = _logits(model, data, batch_size)
    return {task.name: _to_prediction(task, logits[task.name]).cpu() for task in model.tasks}


def task_metrics(
    task: Task, predictions: object, labels: object, mask: object | None = None
) -> dict[str, float]:
    """The metrics the course reports for one task, over labelled rows.

    Binary: ``auc``, ``accuracy`` (threshold 0.5). Multiclass: ``accuracy``. Regression: ``rmse``.

    Parameters
    ----------
    predictions : probabilities (n,) or (n, n_classes), or values (n,). mask : True where the label is known.
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


def evaluate(model: nn.Module, data: MultiTaskDataset, batch_size: int = 8192) -> dict[str, dict[str, float]]:
    """``{task: {metric: value}}`` over the labelled rows: the loss and the metrics of ``metrics.task_metrics``."""
    logits, values = _logits(model, data, batch_size), {}
    for task in model.tasks:
        labels, mask = data.labels[task.name], data.masks.get(task.name)
        loss = task_loss(task, logits[task.name], labels, mask).item()
        values[task.name] = {"loss": loss}
        if np.isfinite(logits[task.name].sum().item()):
            prediction = _to_prediction(task, logits[task.name]).cpu()
            values[task.name] |= task_metrics(
                task, prediction, labels.cpu(), None if mask is None else mask.cpu()
            )
    return values


# ------------------------------------------------------------------------------------------------- checkpoints


FORMAT = "mtl_helpers checkpoint 2"


def save_checkpoint(path: str | Path, model: nn.Module, **extra: object) -> Path:
    """Save a model's weights and plain extra values (numbers, text, lists, dictionaries) in one safetensors file.

    The extra values stand as JSON in the file's metadata; tuples come back as lists. The file is written beside its
    target and moved there at the end: a crash leaves the old file as it was.

    Raises
    ------
    FileNotFoundError : the folder does not exist. TypeError : an extra value that JSON cannot hold.
    """
    from safetensors.torch import save

    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"Folder {path.parent} does not exist: create it before saving {path.name}.")
    for name, value in extra.items():
        check_plain(value, f"extra value {name!r}")
    metadata = {"format": FORMAT, "extra": json.dumps(extra)}
    write_atomically(path, save(plain_tensors(model), metadata))
    return path


def load_checkpoint(path: str | Path, model: nn.Module) -> dict[str, object]:
    """Load weights saved by :func:`save_checkpoint` into a model of the same shape; return the extra values.

    The file holds numbers and text only: it cannot run code.

    Raises
    ------
    FileNotFoundError : no such file. ValueError : no checkpoint, or one of another model; the model is unchanged.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"No checkpoint at {path}.")
    state, metadata = read_tensors(path)
    try:
        if metadata.get("format") != FORMAT:
            raise ValueError(f"its format is {metadata.get('format')!r}, expected {FORMAT!r}")
        extra = json.loads(metadata["extra"])
        if not isinstance(extra, dict):
            raise ValueError("its extra values are no dictionary")
    except (KeyError, ValueError, RecursionError) as error:
        raise ValueError(
            f"{path.name} is no checkpoint of save_checkpoint, or is damaged ({error})."
        ) from None
    check_same_tensors(state, model, path.name)
    model.load_state_dict(state)
    return extra


# What saved models (module serving) need too.


def plain_tensors(model: nn.Module) -> dict[str, Tensor]:
    """A model's state as tensors of their own on the CPU, which safetensors asks for."""
    return {name: value.detach().cpu().contiguous().clone() for name, value in model.state_dict().items()}


def check_plain(value: object, what: str) -> None:
    """Raise TypeError unless JSON gives the value back: None, bool, number, text, lists and dictionaries of these."""
    if isinstance(value, dict):
        wrong = [key for key in value if not isinstance(key, str)]
        if wrong:
            raise TypeError(f"The {what} has a key {wrong[0]!r}: only text can be a key, as in JSON.")
        for key, part in value.items():
            check_plain(part, f"{what}[{key!r}]")
    elif isinstance(value, list | tuple):
        for part in value:
            check_plain(part, what)
    elif type(value) not in (type(None), bool, int, float, str):
        raise TypeError(
            f"The {what} holds a {type(value).__name__}: expected numbers, text, lists and dictionaries. "
            "Convert it first, say by .item() or .tolist()."
        )


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file; ValueError when it is something else or damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            return {name: file.get_tensor(name).clone() for name in file.keys()}, metadata
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path.name} is no safetensors file, or is damaged ({error}).") from None


def check_same_tensors(state: Mapping[str, Tensor], model: nn.Module, what: str) -> None:
    """Raise ValueError unless the names, shapes and kinds of number are the model's."""
    own, saved = (
        {name: (tuple(value.shape), str(value.dtype)) for name, value in tensors.items()}
        for tensors in (model.state_dict(), state)
    )
    differing = sorted(name for name in own.keys() | saved.keys() if own.get(name) != saved.get(name))
    if differing:
        name = differing[0]
        raise ValueError(
            f"{what} holds another model: {len(differing)} tensors differ, first {name} "
            f"(file {saved.get(name, 'has none')}, model {own.get(name, 'has none')})."
        )


def write_atomically(path: Path, content: bytes) -> None:
    """Write beside the target, then move there: a crash leaves an old file as it was."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
