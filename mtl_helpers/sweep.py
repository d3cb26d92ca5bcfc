"""Many task weightings trained at once: from a list of weights to a Pareto front in seconds.

Taught in notebook 04 (weighting strategies); its result drives the weight slider of notebook 00. Instead of training
one model after another, :func:`sweep` stacks the parameters of all of them, (K, …) instead of (…), and takes one step
for all: the same start, the same batches and the same Adam as :func:`mtl_helpers.training.fit`, so each of the K models
ends where a run of its own would have ended.
"""

from __future__ import annotations

import json
import os
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn
from torch.func import functional_call, vmap

from .data import Batch, MultiTaskDataset, Task
from .losses import check_weights, task_loss, task_losses
from .metrics import batched_auc
from .training import LOWER_IS_BETTER, predict

__all__ = ["Sweep", "hypervolume", "load_sweep", "pareto_mask", "simplex_grid", "sweep"]

Build = Callable[[], nn.Module]
RECORD_COLUMNS = ["weighting", "seed", "lr", "epoch", "split", "task", "metric", "value"]
RUN_COLUMNS = ["weighting", "seed", "lr", "epoch"]


# ------------------------------------------------------------------------------------------------- the result


@dataclass(repr=False)
class Sweep:
    """What a sweep has trained and measured.

    Attributes
    ----------
    tasks : the tasks, in order.
    weightings : one row per weighting, one column per task; its index numbers the weightings from 0.
    records : tidy table with columns ``weighting``, ``seed``, ``lr``, ``epoch`` (from 1), ``split`` (``"train"`` or
        ``"valid"``), ``task``, ``metric`` and ``value``. ``loss`` for every task (on ``"train"`` the mean over the
        epoch's batches, before each step); on ``"valid"`` also ``auc`` (binary), ``accuracy`` (multiclass) or
        ``rmse`` (regression).
    runs : one row per trained model: ``weighting``, ``seed``, ``lr``, and the ``epoch`` whose parameters are kept.
    parameters : ``{name: tensor (runs, …)}`` on the CPU, row r being the model of row r of ``runs``.
    stopped : ``"finished"``, or ``"interrupted"`` when the reader stopped it: then only finished epochs are kept.
    build : the function that makes a model to put parameters into.
    """

    tasks: tuple[Task, ...]
    weightings: pd.DataFrame
    records: pd.DataFrame
    runs: pd.DataFrame
    parameters: dict[str, Tensor]
    stopped: str = "finished"
    build: Build | None = field(default=None, compare=False)

    def __repr__(self) -> str:
        seeds, lrs = self.runs["seed"].nunique(), self.runs["lr"].nunique()
        more = f" × {lrs} learning rates" if lrs > 1 else ""
        names = ", ".join(task.name for task in self.tasks)
        return (
            f"Sweep of {names}: {len(self.weightings)} weightings × {seeds} seeds{more}, {len(self.runs)} models, "
            f"{self.stopped}"
        )

    @property
    def diverged(self) -> pd.DataFrame:
        """The runs in which a loss became NaN or infinite."""
        losses = self.records[self.records["metric"] == "loss"]
        broken = losses[~np.isfinite(losses["value"])]
        key = ["weighting", "seed", "lr"]
        return self.runs.merge(broken[key].drop_duplicates(), on=key)

    def final(self, split: str | None = None) -> pd.DataFrame:
        """The records of the epoch whose parameters are kept (``runs.epoch``): what :meth:`model` would measure.

        That is the last finished epoch, or the best one of each run after ``sweep(…, keep="best")``.
        """
        rows = self.records.merge(self.runs, on=RUN_COLUMNS)
        return rows if split is None else rows[rows["split"] == split].reset_index(drop=True)

    def model(
        self, weighting: int | Mapping[str, float], seed: int | None = None, lr: float | None = None
    ) -> nn.Module:
        """A model with the parameters of one run, on the CPU and in evaluation mode.

        ``weighting`` is a row number of ``weightings`` or the weights themselves; seed and learning rate are the
        first ones unless given.
        """
        row = self._run(weighting, seed, lr)
        if self.build is None:
            raise ValueError("This sweep has no build function: load it with load_sweep(path, build).")
        with torch.random.fork_rng(devices=[]):
            model = self.build()
        own = {name: tuple(value.shape) for name, value in model.named_parameters()}
        kept = {name: tuple(value.shape[1:]) for name, value in self.parameters.items()}
        if own != kept:
            name = next(name for name in [*own, *kept] if own.get(name) != kept.get(name))
            raise ValueError(
                f"build makes another model than the one that was trained: {name} has shape "
                f"{own.get(name, 'none')}, the sweep's has {kept.get(name, 'none')}."
            )
        with torch.no_grad():
            for name, value in model.named_parameters():
                value.copy_(self.parameters[name][row])
        return model.eval()

    def predict(
        self,
        data: MultiTaskDataset,
        weighting: int | Mapping[str, float],
        seed: int | None = None,
        lr: float | None = None,
    ) -> dict[str, Tensor]:
        """``{task: predictions}`` of one run, as :func:`mtl_helpers.training.predict` gives them."""
        return predict(self.model(weighting, seed, lr).to(data.device), data)

    def pareto(self, metric: str | Mapping[str, str] = "loss", split: str = "valid") -> pd.DataFrame:
        """Each weighting's final metric of each task, mean over seeds, and whether another one beats it.

        Parameters
        ----------
        metric : one name for all tasks, or ``{task: name}``. Losses and RMSE are better low, all others high.

        Returns
        -------
        A row per weighting (and learning rate, if several were asked) with ``weighting``, ``lr``, one column per task
        and ``dominated``: another row is at least as good on every task and better on one. A row with NaN is
        dominated.
        """
        names = [task.name for task in self.tasks]
        chosen = {name: metric for name in names} if isinstance(metric, str) else dict(metric)
        final = self.final(split)
        columns = {}
        for name in names:
            rows = final[(final["task"] == name) & (final["metric"] == chosen.get(name))]
            if not len(rows):
                known = final[final["task"] == name]["metric"].unique()
                raise ValueError(
                    f"The sweep has no {split} {chosen.get(name)!r} of task {name!r}; it has "
                    f"{', '.join(known) or 'nothing for that split'}."
                )
            columns[name] = rows.groupby(["weighting", "lr"])["value"].mean()
        table = pd.DataFrame(columns)
        better_high = [chosen[name] not in LOWER_IS_BETTER for name in names]
        table["dominated"] = ~pareto_mask(table.to_numpy(float), better_high)
        return table.reset_index()

    def save(self, path: str | Path) -> Path:
        """Write everything but ``build`` to one compressed ``.npz`` file that holds arrays and text only, no pickle.

        It is written beside its target and moved there at the end: a crash leaves an old file as it was.
        """
        path = Path(path)
        if not path.parent.is_dir():
            raise FileNotFoundError(
                f"Folder {path.parent} does not exist: create it before saving {path.name}."
            )
        head = {"format": FORMAT, "tasks": [asdict(task) for task in self.tasks], "stopped": self.stopped}
        arrays = {"head": np.array(json.dumps(head))}
        for part, frame in (
            ("weightings", self.weightings),
            ("records", self.records),
            ("runs", self.runs),
        ):
            for column in frame:
                values = frame[column].to_numpy()
                numeric = np.issubdtype(values.dtype, np.number) if values.dtype != object else False
                arrays[f"{part}/{column}"] = values if numeric else values.astype(str)
        arrays |= {f"parameters/{name}": value.numpy() for name, value in self.parameters.items()}
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                np.savez_compressed(file, allow_pickle=False, **arrays)
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        return path

    def _run(self, weighting: int | Mapping[str, float], seed: int | None, lr: float | None) -> int:
        """Row number in ``runs``."""
        if isinstance(weighting, Mapping):
            names = [task.name for task in self.tasks]
            check_weights(weighting, names)
            wanted = [float(weighting[name]) for name in names]
            same = np.isclose(self.weightings[names].to_numpy(float), wanted, rtol=1e-6, atol=1e-9).all(1)
            if not same.any():
                raise ValueError(f"No weighting {dict(weighting)} was trained; see sweep.weightings.")
            weighting = int(same.argmax())
        rows = self.runs
        if seed is None and len(rows):
            seed = rows["seed"].iloc[0]
        if lr is None and len(rows):
            lr = rows["lr"].iloc[0]
        found = np.flatnonzero((rows["weighting"] == weighting) & (rows["seed"] == seed) & (rows["lr"] == lr))
        if not len(found):
            raise ValueError(
                f"No run with weighting {weighting}, seed {seed} and learning rate {lr}: there are weightings 0 to "
                f"{len(self.weightings) - 1}, seeds {rows['seed'].unique().tolist()} and learning rates "
                f"{rows['lr'].unique().tolist()}."
            )
        return int(found[0])


FORMAT = "mtl_helpers sweep 1"


def load_sweep(path: str | Path, build: Build | None = None) -> Sweep:
    """Read a sweep that :meth:`Sweep.save` wrote; ``build`` is needed for its ``model`` and ``predict`` only.

    Raises
    ------
    FileNotFoundError : no such file. ValueError : the file is damaged or something else.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"No sweep at {path}.")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        head = json.loads(str(arrays.pop("head")))
        if head["format"] != FORMAT:
            raise ValueError(f"format {head['format']!r} instead of {FORMAT!r}")
        parts: dict[str, dict] = {"weightings": {}, "records": {}, "runs": {}, "parameters": {}}
        for name, value in arrays.items():
            part, _, column = name.partition("/")
            parts[part][column] = torch.from_numpy(value) if part == "parameters" else value
        tasks = tuple(Task(**task) for task in head["tasks"])
        return Sweep(
            tasks,
            pd.DataFrame(parts["weightings"])[[task.name for task in tasks]],
            pd.DataFrame(parts["records"])[RECORD_COLUMNS],
            pd.DataFrame(parts["runs"])[RUN_COLUMNS],
            parts["parameters"],
            head["stopped"],
            build,
        )
    except (
        OSError,
        EOFError,
        KeyError,
        TypeError,
        ValueError,
        AttributeError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise ValueError(
            f"{path.name} is no file of Sweep.save, or is damaged ({type(error).__name__}: {error})."
        ) from error


# ------------------------------------------------------------------------------------------------- weightings


def simplex_grid(
    tasks: Sequence[Task] | Sequence[str], n: int | None = None, lowest: float = 0.0
) -> list[dict[str, float]]:
    """Evenly spaced task weights that sum to 1, as a list for :func:`sweep`.

    Parameters
    ----------
    tasks : two or more, as Task or by name.
    n : points along each edge of the simplex: n weightings for two tasks, n·(n+1)/2 for three. 33 for two tasks and 8
        (36 weightings) for more, unless given.
    lowest : no weight falls below it; above 0 it leaves out the corners, where a task is not trained at all.
    """
    names = [task.name if isinstance(task, Task) else task for task in tasks]
    n = (33 if len(names) == 2 else 8) if n is None else n
    if len(names) < 2 or n < 2:
        raise ValueError(
            f"A grid needs two or more tasks and n of 2 or more; got {len(names)} tasks, n = {n}."
        )
    if not 0 <= lowest < 1 / len(names):
        raise ValueError(f"lowest is {lowest}: expected 0 or more, below 1/{len(names)}.")
    steps, grid = n - 1, []
    # k − 1 bars among steps + k − 1 places cut the whole into k parts
    for bars in combinations(range(steps + len(names) - 1), len(names) - 1):
        ends = (-1, *bars, steps + len(names) - 1)
        parts = [ends[i + 1] - ends[i] - 1 for i in range(len(names))]
        free = 1 - lowest * len(names)
        grid.append({name: lowest + free * part / steps for name, part in zip(names, parts, strict=True)})
    return grid


def _weightings_frame(
    weightings: pd.DataFrame | Sequence[Mapping[str, float]], names: list[str]
) -> pd.DataFrame:
    if isinstance(weightings, pd.DataFrame):
        rows = weightings.to_dict("records")
    elif isinstance(weightings, Mapping) or not isinstance(weightings, Sequence):
        raise TypeError(
            f"weightings is a {type(weightings).__name__}: expected a list of {{task: weight}} or a table with a "
            "column per task."
        )
    else:
        rows = list(weightings)
    if not rows:
        raise ValueError("weightings is empty: give at least one {task: weight}.")
    for number, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise TypeError(f"Weighting {number} is {row!r}: expected {{task: weight}}.")
        try:
            check_weights(row, names)
        except (ValueError, TypeError) as error:
            raise ValueError(f"Weighting {number}: {error}") from None
    return pd.DataFrame([[float(row[name]) for name in names] for row in rows], columns=names)


# ------------------------------------------------------------------------------------------------- fronts


def _as_losses(points: ArrayLike, maximise: bool | Sequence[bool]) -> np.ndarray:
    """(n, m) with every column better when lower."""
    points = np.asarray(points, dtype=float)
    if points.ndim != 2:
        raise ValueError(f"points has shape {points.shape}: expected (points, objectives).")
    signs = np.where(np.asarray(maximise, dtype=bool), -1.0, 1.0)
    if signs.ndim and len(signs) != points.shape[1]:
        raise ValueError(f"maximise has {len(signs)} entries for {points.shape[1]} objectives.")
    return points * signs


def pareto_mask(points: ArrayLike, maximise: bool | Sequence[bool] = False) -> np.ndarray:
    """True for each point that no other point dominates: that is on the Pareto front.

    A point dominates another when it is at least as good in every objective and better in one; equal points do not
    dominate each other. A point with NaN is never on the front and dominates nothing.

    Parameters
    ----------
    points : (n, m), one column per objective. maximise : for all objectives or one for each; low is better by default.
    """
    points = _as_losses(points, maximise)
    known = ~np.isnan(points).any(1)
    with np.errstate(invalid="ignore"):
        as_good = (points[:, None] <= points[None]).all(-1)
        better = (points[:, None] < points[None]).any(-1)
    return known & ~(as_good & better & known[:, None]).any(0)


def hypervolume(points: ArrayLike, reference: ArrayLike, maximise: bool | Sequence[bool] = False) -> float:
    """Area (two objectives) or volume (three) that the points dominate, up to a reference point.

    Larger is better: one number for a whole front. Points that do not beat the reference in every objective, and points
    with NaN, add nothing.

    Parameters
    ----------
    points : (n, 2) or (n, 3). reference : a point that is worse than those that should count, (2,) or (3,).
    maximise : for all objectives or one for each; low is better by default.
    """
    points = _as_losses(points, maximise)
    reference = _as_losses(np.atleast_2d(np.asarray(reference, dtype=float)), maximise)[0]
    if points.shape[1] not in (2, 3) or len(reference) != points.shape[1]:
        raise ValueError(
            f"hypervolume needs points (n, 2) or (n, 3) and a reference of that width; got {points.shape} and "
            f"{reference.shape}."
        )
    points = points[(points < reference).all(1)]
    if points.shape[1] == 2:
        return _area(points, reference)
    points = points[np.argsort(points[:, 2])]
    tops = np.append(points[1:, 2], reference[2])  # between two heights the dominated area stays the same
    return float(
        sum(
            _area(points[: i + 1, :2], reference[:2]) * (top - points[i, 2])
            for i, top in enumerate(tops)
            if top > points[i, 2]
        )
    )


def _area(points: np.ndarray, reference: np.ndarray) -> float:
    area, height = 0.0, reference[1]
    for x, y in points[np.lexsort((points[:, 1], points[:, 0]))]:
        if y < height:
            area += (reference[0] - x) * (height - y)
            height = y
    return float(area)


# ------------------------------------------------------------------------------------------------- training


def sweep(
    build: Build,
    train: MultiTaskDataset,
    valid: MultiTaskDataset | None = None,
    *,
    weightings: pd.DataFrame | Sequence[Mapping[str, float]],
    seeds: Sequence[int] = (0,),
    lrs: Sequence[float] | None = None,
    epochs: int = 10,
    batch_size: int = 1024,
    lr: float = 1e-3,
    weight_decay: float = 0.0,
    keep: str = "last",
    chunk: int | None = None,
    engine: str = "auto",
    progress: bool = True,
) -> Sweep:
    """Train one model for each weighting (× seed × learning rate), all at once, with Adam.

    The model of weighting w and seed s is what this gives, to within rounding::

        torch.manual_seed(s)
        model = build()
        fit(model, train, weights=w, seed=s, epochs=epochs, batch_size=batch_size, lr=lr)

    Dropout is the exception: it draws other units than a run of its own would.

    Parameters
    ----------
    build : function without arguments that returns a fresh model, e.g. ``lambda: SharedBottom(schema, tasks)``.
    train, valid : data with labels for the model's tasks. ``valid`` is measured after each epoch. The models are trained
        on the device of ``train``.
    weightings : ``[{task: weight}, …]``, or a table with a column per task; see :func:`simplex_grid`.
    seeds : each gives its own initial parameters and order of batches.
    lrs : learning rates to try instead of the one ``lr``.
    epochs, batch_size, lr, weight_decay : as in :func:`mtl_helpers.training.fit`, but without early stopping.
    keep : which parameters of each run stay: ``"last"`` epoch, or ``"best"``, the epoch of its lowest weighted
        validation loss (as ``fit`` with patience ≥ epochs would keep).
    chunk : how many models train at once; as many as memory holds unless given.
    engine : ``"batched"`` multiplies stacked matrices, ``"vmap"`` transforms the model by ``torch.func.vmap``: slower,
        but for any model. ``"auto"`` takes the first where it gives the model's own results, else the second.
    progress : show a bar.

    Returns
    -------
    Sweep. After KeyboardInterrupt too, with the epochs that were finished. A run whose loss becomes NaN or infinite has
    NaN from there on (``Sweep.diverged``) and leaves the others alone.

    Raises
    ------
    ValueError, TypeError : data, weightings or settings do not fit, or the model cannot be stacked (BatchNorm).
    """
    from tqdm.auto import tqdm

    seeds = [int(seed) for seed in seeds]
    lrs = [float(lr)] if lrs is None else [float(rate) for rate in lrs]
    for what, values in (("seeds", seeds), ("lrs", lrs)):
        if not values or len(set(values)) < len(values):
            raise ValueError(f"{what} is {values}: expected one or more values, all different.")
    if not all(0 < rate < float("inf") for rate in lrs):
        raise ValueError(f"A learning rate must be a number above 0; got {lrs}.")
    for what, value in (("epochs", epochs), ("batch_size", batch_size), ("chunk", chunk)):
        if value is not None and value < 1:
            raise ValueError(f"{what} is {value}: expected 1 or more.")
    if keep not in ("last", "best") or (keep == "best" and valid is None):
        raise ValueError(f"keep is {keep!r}: expected 'last', or 'best' together with validation data.")
    template, starts = _build_starts(build, seeds, train.device)
    tasks = tuple(template.tasks)
    names = [task.name for task in tasks]
    for part in (train, valid):
        if part is not None and (not len(part) or not set(names) <= set(part.labels)):
            raise ValueError(
                f"sweep needs rows with labels for {', '.join(names)}; got {len(part)} rows with labels for "
                f"{', '.join(part.labels)}."
            )
    weights_frame = _weightings_frame(weightings, names)
    train = train.select(names)
    valid = None if valid is None else valid.select(names).to(train.device)
    engine = _choose_engine(engine, template, tasks, train)
    runs = pd.DataFrame(
        [(w, seed, rate, 0) for seed in seeds for rate in lrs for w in range(len(weights_frame))],
        columns=RUN_COLUMNS,
    )
    chunk, block = _sizes(template, tasks, train, batch_size, len(weights_frame), chunk)
    chunks = [runs.iloc[start : start + chunk] for start in range(0, len(runs), chunk)]
    per_epoch = -(-len(train) // batch_size)
    bar = tqdm(total=len(chunks) * epochs * per_epoch, unit="step", disable=not progress, leave=False)
    records: list[pd.DataFrame] = []
    finished: list[_Stack] = []
    stopped = "finished"
    try:
        for part in chunks:
            weights = torch.tensor(weights_frame.to_numpy()[part["weighting"]], dtype=torch.float32)
            stack = _Stack(
                template, tasks, engine, part, weights.to(train.device), starts, block, weight_decay
            )
            finished.append(stack)
            for epoch in range(1, epochs + 1):
                losses = stack.train_epoch(train, batch_size, bar.update)
                values = [("train", losses)]
                if valid is not None:
                    values.append(("valid", stack.evaluate(valid, max(batch_size, 256))))
                stack.keep(epoch, values[-1][1] if keep == "best" else None)
                records += [_tidy(part, epoch, split, measured) for split, measured in values]
                bar.set_postfix_str(f"epoch {epoch} of {epochs}, {len(part)} of {len(runs)} models")
    except KeyboardInterrupt:
        stopped = "interrupted"
    finally:
        bar.close()
    finished = [stack for stack in finished if stack.epochs]
    kept = pd.concat([stack.runs for stack in finished], ignore_index=True) if finished else runs.iloc[:0]
    parameters = {
        name: torch.cat([stack.kept[name].cpu() for stack in finished]) if finished else value[None][:0].cpu()
        for name, value in starts[seeds[0]].items()
    }
    table = pd.concat(records, ignore_index=True) if records else pd.DataFrame(columns=RECORD_COLUMNS)
    return Sweep(tasks, weights_frame, table, kept, parameters, stopped, build)


def _build_starts(
    build: Build, seeds: list[int], device: torch.device
) -> tuple[nn.Module, dict[int, dict[str, Tensor]]]:
    """A model to be called with other parameters than its own, and the initial parameters of each seed."""
    starts: dict[int, dict[str, Tensor]] = {}
    model = None
    for seed in seeds:
        with torch.random.fork_rng(devices=[]):
            torch.random.default_generator.manual_seed(seed)
            model = build()
        if not isinstance(model, nn.Module) or not hasattr(model, "tasks"):
            raise TypeError(
                f"build returned {type(model).__name__}: expected a model with .tasks, as those of mtl_helpers.models."
            )
        starts[seed] = {name: value.detach().to(device).clone() for name, value in model.named_parameters()}
        shapes = [
            {name: value.shape for name, value in start.items()} for start in (starts[seed], starts[seeds[0]])
        ]
        if shapes[0] != shapes[1]:
            raise ValueError(f"build makes other parameters for seed {seed} than for seed {seeds[0]}.")
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._NormBase) and module.track_running_stats:
            raise ValueError(
                f"This model cannot be stacked: its layer {name} ({type(module).__name__}) changes running averages as "
                "it trains, and stacked models would share them. Use LayerNorm, or train one model after the other."
            )
    return model.to(device), starts


class _Stack:
    """The models of one chunk, each parameter stacked to (K, …), and their optimiser.

    Forward and backward passes go block by block: so many models that their activations stay in the processor's cache.
    The models of a block share seed and learning rate, hence their batches.
    """

    def __init__(
        self,
        template: nn.Module,
        tasks: tuple[Task, ...],
        engine: str,
        runs: pd.DataFrame,
        weights: Tensor,
        starts: Mapping[int, Mapping[str, Tensor]],
        block: int,
        weight_decay: float,
    ) -> None:
        self.template, self.tasks, self.weights = template, tasks, weights
        self.forward = ENGINES[engine]
        self.runs = runs.reset_index(drop=True)
        self.epochs = 0
        seeds = self.runs["seed"].tolist()
        self.parameters = {
            name: torch.stack([starts[seed][name] for seed in seeds]) for name in starts[seeds[0]]
        }
        self.kept: dict[str, Tensor] = {}
        self.best = torch.full((len(seeds),), float("inf"), dtype=torch.float64)
        self.generators = {seed: torch.Generator().manual_seed(seed) for seed in dict.fromkeys(seeds)}
        trainable = {name: value.requires_grad for name, value in template.named_parameters()}
        self.blocks: dict[int, list[_Block]] = {seed: [] for seed in self.generators}
        groups = []
        for (seed, rate), rows in self.runs.groupby(["seed", "lr"], sort=False):
            for first in range(rows.index[0], rows.index[-1] + 1, block):
                part = slice(first, min(first + block, rows.index[-1] + 1))
                # detached views: leaves for autograd that share the memory of the stack
                leaves = {
                    name: value[part].detach().requires_grad_(trainable[name])
                    for name, value in self.parameters.items()
                }
                self.blocks[seed].append(_Block(part, leaves, weights[part]))
                groups.append(
                    {"params": [leaf for leaf in leaves.values() if leaf.requires_grad], "lr": rate}
                )
        fused = weights.device.type in ("cpu", "cuda")
        self.optimizer = torch.optim.Adam(groups, weight_decay=weight_decay, fused=fused)

    def train_epoch(
        self, train: MultiTaskDataset, batch_size: int, tick: Callable[[], object]
    ) -> dict[str, dict[str, np.ndarray]]:
        """One pass over the data; ``{task: {"loss": (K,)}}``, means over the rows as they were met."""
        self.template.train()
        sums = torch.zeros(self.weights.shape, dtype=torch.float32, device=self.weights.device)
        streams = [train.batches(batch_size, generator=generator) for generator in self.generators.values()]
        for batches in zip(*streams, strict=True):
            self.optimizer.zero_grad(set_to_none=True)
            for blocks, batch in zip(self.blocks.values(), batches, strict=True):
                for block in blocks:
                    losses = self.forward(self.template, self.tasks, block.leaves, batch)
                    (losses * block.weights).sum().backward()
                    sums[block.part] += losses.detach() * len(batch)
            self.optimizer.step()
            tick()
        means = (sums / len(train)).double().cpu().numpy()
        return {task.name: {"loss": means[:, i]} for i, task in enumerate(self.tasks)}

    @torch.no_grad()
    def evaluate(self, data: MultiTaskDataset, batch_size: int) -> dict[str, dict[str, np.ndarray]]:
        """``{task: {metric: (K,)}}``, as :func:`mtl_helpers.training.evaluate` measures each model."""
        self.template.eval()
        out: dict[str, dict[str, list[np.ndarray]]] = {task.name: {} for task in self.tasks}
        for block in [block for blocks in self.blocks.values() for block in blocks]:
            parts = [
                self.forward.logits(self.template, block.leaves, batch)
                for batch in data.batches(batch_size, shuffle=False)
            ]
            for task in self.tasks:
                logits = torch.cat([part[task.name] for part in parts], dim=1)
                measured = _measure(task, logits, data.labels[task.name], data.masks.get(task.name))
                for metric, values in measured.items():
                    out[task.name].setdefault(metric, []).append(values.double().cpu().numpy())
        return {
            name: {metric: np.concatenate(values) for metric, values in metrics.items()}
            for name, metrics in out.items()
        }

    def keep(self, epoch: int, values: Mapping[str, Mapping[str, np.ndarray]] | None) -> None:
        """Set this epoch's parameters aside; with values, only those of runs whose weighted loss is their lowest."""
        self.epochs = epoch
        if not self.kept:
            self.kept = {name: value.clone() for name, value in self.parameters.items()}
        chosen = torch.ones(len(self.runs), dtype=torch.bool)
        if values is not None:
            losses = torch.from_numpy(np.stack([values[task.name]["loss"] for task in self.tasks], axis=1))
            total = (losses * self.weights.double().cpu()).sum(1)
            chosen = total < self.best
            self.best = torch.where(chosen, total, self.best)
            chosen |= epoch == 1
        self.runs.loc[chosen.numpy(), "epoch"] = epoch
        chosen = chosen.to(self.weights.device)
        for name, value in self.parameters.items():
            self.kept[name][chosen] = value[chosen]


@dataclass
class _Block:
    """Some models of a stack: their rows in it, their parameters, their (k, T) weights."""

    part: slice
    leaves: dict[str, Tensor]
    weights: Tensor


def _measure(task: Task, logits: Tensor, labels: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
    """Loss and metric of each model, (K,), from logits (K, n) or (K, n, classes); NaN where there is none."""
    loss = _stacked_loss(task, logits, labels, mask)
    known = slice(None) if mask is None else mask
    logits, labels = logits[:, known], labels[known]
    if not len(labels):
        score = torch.full_like(loss, float("nan"))
    elif task.kind == "binary":
        score = batched_auc(logits.sigmoid(), labels)
    elif task.kind == "multiclass":
        score = (logits.argmax(-1) == labels).double().mean(-1)
    else:
        score = (logits - labels).square().double().mean(-1).sqrt()
    name = {"binary": "auc", "multiclass": "accuracy", "regression": "rmse"}[task.kind]
    return {"loss": loss, name: torch.where(loss.isfinite(), score, float("nan"))}


def _tidy(
    runs: pd.DataFrame, epoch: int, split: str, values: Mapping[str, Mapping[str, np.ndarray]]
) -> pd.DataFrame:
    parts = [
        runs[["weighting", "seed", "lr"]].assign(
            epoch=epoch, split=split, task=task, metric=metric, value=value
        )
        for task, metrics in values.items()
        for metric, value in metrics.items()
    ]
    return pd.concat(parts, ignore_index=True)[RECORD_COLUMNS]


# ------------------------------------------------------------------------------------------------- engines


def _stacked_loss(task: Task, logits: Tensor, labels: Tensor, mask: Tensor | None) -> Tensor:
    """:func:`mtl_helpers.losses.task_loss` of each model: logits (K, n) or (K, n, classes) → (K,)."""
    return vmap(lambda own: task_loss(task, own, labels, mask))(logits)


class _Vmap:
    """``torch.func.vmap`` over the model itself: right for every model that vmap can transform."""

    def __call__(
        self, template: nn.Module, tasks: tuple[Task, ...], leaves: Mapping[str, Tensor], batch: Batch
    ) -> Tensor:
        """Losses (K, T)."""

        def one(parameters: dict[str, Tensor]) -> Tensor:
            logits = functional_call(template, parameters, (batch.numeric, batch.categorical))
            losses = task_losses(tasks, logits, batch)
            return torch.stack([losses[task.name] for task in tasks])

        return vmap(one, randomness="different")(dict(leaves))

    def logits(self, template: nn.Module, leaves: Mapping[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """``{task: (K, n) or (K, n, classes)}``."""

        def one(parameters: dict[str, Tensor]) -> dict[str, Tensor]:
            return functional_call(template, parameters, (batch.numeric, batch.categorical))

        return vmap(one, randomness="different")(dict(leaves))


ENGINES = {"vmap": _Vmap()}


def _choose_engine(engine: str, template: nn.Module, tasks: tuple[Task, ...], train: MultiTaskDataset) -> str:
    return "vmap"


def _sizes(
    template: nn.Module,
    tasks: tuple[Task, ...],
    train: MultiTaskDataset,
    batch_size: int,
    group: int,
    chunk: int | None,
) -> tuple[int, int]:
    return chunk or 10**9, 33
