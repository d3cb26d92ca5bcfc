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
import time
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import cache
from itertools import combinations
from pathlib import Path
from threading import Barrier, local

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from torch import Tensor, nn
from torch.func import functional_call, vmap

from mtl_helpers.data.tables import Batch, MultiTaskDataset, Task
from mtl_helpers.losses import check_weights, task_loss, task_losses
from mtl_helpers.metrics import batched_auc
from mtl_helpers.models.layers import FeatureLayer
from mtl_helpers.models.sharing import SharedBottom, SingleTask
from mtl_helpers.training import LOWER_IS_BETTER, predict

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
        with torch.random.fork_rng():
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
        chosen = dict.fromkeys(names, metric) if isinstance(metric, str) else dict(metric)
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
                np.savez_compressed(file, **arrays)
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
    if not len(points):
        return 0.0
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
    train, valid : data with labels for the model's tasks. ``valid`` is measured after each epoch. The models are
        trained on the device of ``train``.
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
    method = _choose_engine(engine, template, tasks, train)
    runs = pd.DataFrame(
        [(w, seed, rate, 0) for rate in lrs for seed in seeds for w in range(len(weights_frame))],
        columns=RUN_COLUMNS,
    )
    chunk, block = _sizes(method, train, batch_size, len(weights_frame), chunk)
    chunks = [runs.iloc[start : start + chunk] for start in range(0, len(runs), chunk)]
    per_epoch = -(-len(train) // batch_size)
    bar = tqdm(total=len(chunks) * epochs * per_epoch, unit="step", disable=not progress, leave=False)
    records: list[pd.DataFrame] = []
    finished: list[tuple[pd.DataFrame, dict[str, Tensor]]] = []
    stopped = "finished"
    workers = _Workers(torch.get_num_threads() if method.threaded else 1)
    try:
        for part in chunks:
            weights = torch.tensor(weights_frame.to_numpy()[part["weighting"]], dtype=torch.float32)
            stack = _Stack(method, workers, part, weights.to(train.device), starts, block, weight_decay)
            try:
                for epoch in range(1, epochs + 1):
                    values = {"train": stack.train_epoch(train, batch_size, bar.update)}
                    if valid is not None:
                        values["valid"] = stack.evaluate(valid, max(batch_size, 256))
                    rows = [_tidy(part, epoch, split, measured) for split, measured in values.items()]
                    stack.keep(epoch, values["valid"] if keep == "best" else None)
                    records += rows
                    bar.set_postfix_str(f"epoch {epoch} of {epochs}, {len(part)} of {len(runs)} models")
            finally:
                if stack.epochs:
                    finished.append((stack.runs, stack.parameters()))
                del stack  # with its gradients and moments, before the next chunk comes
    except KeyboardInterrupt:
        stopped = "interrupted"
    finally:
        workers.close()
        bar.close()
    if not finished:
        nothing = {name: value[None][:0].cpu() for name, value in starts[seeds[0]].items()}
        finished, records = [(runs.iloc[:0], nothing)], [pd.DataFrame(columns=RECORD_COLUMNS)]
    return Sweep(
        tasks,
        weights_frame,
        pd.concat(records, ignore_index=True),
        pd.concat([trained for trained, _ in finished], ignore_index=True),
        {name: torch.cat([own[name] for _, own in finished]) for name in starts[seeds[0]]},
        stopped,
        build,
    )


def _build_starts(
    build: Build, seeds: list[int], device: torch.device
) -> tuple[nn.Module, dict[int, dict[str, Tensor]]]:
    """A model to be called with other parameters than its own, and the initial parameters of each seed."""
    starts: dict[int, dict[str, Tensor]] = {}
    model = None
    for seed in seeds:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
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
    """The models of one chunk, their parameters stacked to (K, …), and their optimiser.

    Forward and backward passes go block by block: so many models that their activations stay in the processor's cache.
    The models of a block share seed and learning rate, hence their batches.
    """

    def __init__(
        self,
        engine: _Vmap | _Mlp,
        workers: _Workers,
        runs: pd.DataFrame,
        weights: Tensor,
        starts: Mapping[int, Mapping[str, Tensor]],
        block: int,
        weight_decay: float,
    ) -> None:
        self.engine, self.workers, self.tasks, self.weights = engine, workers, engine.tasks, weights
        self.runs = runs.reset_index(drop=True)
        self.epochs = 0
        self.stacked = engine.pack([starts[seed] for seed in self.runs["seed"]])
        self.gradients = {name: torch.zeros_like(self.stacked[name]) for name in engine.trainable}
        self.kept: dict[str, Tensor] = {}
        self.best = torch.full((len(runs),), float("inf"), dtype=torch.float64)
        self.generators = {
            seed: torch.Generator().manual_seed(seed) for seed in self.runs["seed"].unique().tolist()
        }
        self.blocks: dict[int, list[_Block]] = {seed: [] for seed in self.generators}
        groups: list[dict] = []
        for rate, same_rate in self.runs.groupby("lr", sort=False):
            groups.append({"params": self._leaves(same_rate.index), "lr": rate})
            for seed, rows in same_rate.groupby("seed", sort=False):
                for first in range(rows.index[0], rows.index[-1] + 1, block):
                    part = slice(first, min(first + block, rows.index[-1] + 1))
                    values = {name: value[part] for name, value in self.stacked.items()}
                    slopes = {name: value[part] for name, value in self.gradients.items()}
                    self.blocks[seed].append(_Block(part, weights[part], engine.members(values, slopes)))
        self.optimizer = torch.optim.AdamW(
            groups, weight_decay=weight_decay, fused=weights.device.type in ("cpu", "cuda")
        )

    def _leaves(self, rows: pd.Index) -> list[Tensor]:
        """Views of some neighbouring models' parameters, for the optimiser: they share memory with the stack."""
        part, leaves = slice(rows[0], rows[-1] + 1), []
        for name, gradient in self.gradients.items():
            leaves.append(self.stacked[name][part].requires_grad_())
            leaves[-1].grad = gradient[part]
        return leaves

    def train_epoch(
        self, train: MultiTaskDataset, batch_size: int, tick: Callable[[], object]
    ) -> dict[str, dict[str, np.ndarray]]:
        """One pass over the data; ``{task: {"loss": (K,)}}``, means over the rows as they were met."""
        self.engine.template.train()
        sums = torch.zeros_like(self.weights)
        streams = [train.batches(batch_size, generator=generator) for generator in self.generators.values()]

        def work(block: _Block, ready: object, n: int) -> None:
            losses = self.engine.gradients(block.members, block.weights, ready)
            sums[block.part].add_(losses, alpha=n)

        for batches in zip(*streams, strict=True):
            jobs = []
            for blocks, batch in zip(self.blocks.values(), batches, strict=True):
                ready = self.engine.prepare(batch)
                jobs += [(block, ready, len(batch)) for block in blocks]
            self.workers.run(work, jobs)
            self.optimizer.step()
            tick()
        means = (sums / len(train)).cpu().double().numpy()
        return {task.name: {"loss": means[:, i]} for i, task in enumerate(self.tasks)}

    def evaluate(self, data: MultiTaskDataset, batch_size: int) -> dict[str, dict[str, np.ndarray]]:
        """``{task: {metric: (K,)}}``, as :func:`mtl_helpers.training.evaluate` measures each model."""
        self.engine.template.eval()
        ready = [
            self.engine.prepare(batch, backward=False) for batch in data.batches(batch_size, shuffle=False)
        ]
        out: dict[str, dict[str, np.ndarray]] = {task.name: {} for task in self.tasks}
        place = data.device if data.device.type == "cuda" else torch.device("cpu")  # others have no float64
        labels, masks = (
            {name: value.to(place) for name, value in part.items()} for part in (data.labels, data.masks)
        )

        def work(block: _Block) -> None:
            parts = [self.engine.logits(block.members, batch) for batch in ready]
            for task in self.tasks:
                logits = torch.cat([part[task.name] for part in parts], dim=1).to(place)
                measured = _measure(task, logits, labels[task.name], masks.get(task.name))
                for metric, values in measured.items():
                    column = out[task.name].setdefault(metric, np.full(len(self.runs), np.nan))
                    column[block.part] = values.cpu().double().numpy()

        self.workers.run(work, [(block,) for blocks in self.blocks.values() for block in blocks])
        return out

    def keep(self, epoch: int, values: Mapping[str, Mapping[str, np.ndarray]] | None) -> None:
        """Set this epoch's parameters aside; with values, only those of runs whose weighted loss is their lowest."""
        runs, best = self.runs.copy(), self.best
        chosen = torch.ones(len(runs), dtype=torch.bool)
        if values is not None:
            losses = torch.from_numpy(np.stack([values[task.name]["loss"] for task in self.tasks], axis=1))
            total = (losses * self.weights.cpu().double()).sum(1)
            chosen = total < best
            best = torch.where(chosen, total, best)
            chosen |= torch.tensor(not self.epochs)
        runs.loc[chosen.numpy(), "epoch"] = epoch
        if bool(chosen.all()):
            kept = {name: value.clone() for name, value in self.stacked.items()}
        else:
            chosen = chosen.to(self.weights.device)
            kept = {
                name: torch.where(chosen.view(-1, *[1] * (value.dim() - 1)), value, self.kept[name])
                for name, value in self.stacked.items()
            }
        # all at once, so that an interruption leaves one epoch or the other
        self.epochs, self.runs, self.best, self.kept = epoch, runs, best, kept

    def parameters(self) -> dict[str, Tensor]:
        """The kept parameters under the model's own names, (K, …), on the CPU."""
        return {name: value.cpu() for name, value in self.engine.unpack(self.kept).items()}


class _Workers:
    """Threads that take the blocks one by one, each computing with one thread of its own.

    Better than all threads on one small product: they need not wait for each other within a step, which costs most when
    something else is running on the machine.
    """

    def __init__(self, threads: int) -> None:
        self.pool = _single_threaded_pool(threads) if threads > 1 else None

    def run(self, work: Callable[..., None], jobs: Sequence[tuple]) -> None:
        if self.pool is None or len(jobs) == 1:
            for job in jobs:
                work(*job)
        else:
            for done in [self.pool.submit(work, *job) for job in jobs]:
                done.result()

    def close(self) -> None:
        if self.pool is not None:
            self.pool.shutdown(cancel_futures=True)


def _single_threaded_pool(size: int) -> ThreadPoolExecutor:
    """Threads in which torch computes without helpers; the calling thread keeps its own."""
    before, ready = torch.get_num_threads(), Barrier(size + 1)
    pool = ThreadPoolExecutor(size, initializer=torch.set_num_threads, initargs=(1,))
    for _ in range(size):
        pool.submit(ready.wait)
    ready.wait()
    torch.set_num_threads(before)  # what one thread sets, threads that start later take over
    return pool


@dataclass
class _Block:
    """Some models of a stack: their rows in it, their (k, T) weights, and their tensors as the engine wants them."""

    part: slice
    weights: Tensor
    members: list[_Member]


@dataclass
class _Member:
    """Parameters, and where their gradients are written: of k stacked models, or of a single one."""

    values: dict[str, Tensor]
    slopes: dict[str, Tensor]


def _measure(task: Task, logits: Tensor, labels: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
    """Loss and metric of each model, (K,), from logits (K, n) or (K, n, classes); NaN where there is none."""
    loss = vmap(lambda own: task_loss(task, own, labels, mask))(logits)
    known = slice(None) if mask is None else mask
    logits, labels = logits[:, known], labels[known]
    if not len(labels):
        score = torch.full_like(loss, float("nan"))
    elif task.kind == "binary":
        score = batched_auc(logits.sigmoid(), labels)
    elif task.kind == "multiclass":
        score = (logits.argmax(-1) == labels).double().mean(-1)
    else:
        score = (logits - labels).square().mean(-1).sqrt()
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


# ------------------------------------------------------------------------------------------------- any model


class _Vmap:
    """Any model: ``torch.func.vmap`` over a call of the model with stacked parameters."""

    threaded = False  # functional_call puts parameters into the one template

    def __init__(self, template: nn.Module, tasks: tuple[Task, ...]) -> None:
        self.template, self.tasks = template, tasks
        self.trainable = [name for name, value in template.named_parameters() if value.requires_grad]

    def check(self, batch: Batch) -> None:
        """Try two models on some rows; ValueError when vmap cannot transform the model."""
        state = {name: value.detach() for name, value in self.template.named_parameters()}
        stacked = self.pack([state, state])
        slopes = {name: torch.full_like(stacked[name], float("nan")) for name in self.trainable}
        (member,) = self.members(stacked, slopes)
        for name in self.trainable:
            member.values[name].grad = None
        try:
            with torch.random.fork_rng():
                self._backward(member, torch.ones(2, len(self.tasks), device=batch.numeric.device), batch)
        except RuntimeError as error:
            raise ValueError(
                f"This model cannot be stacked: torch.func.vmap refuses it ({str(error).splitlines()[0]}). Train one "
                "model after the other with fit instead."
            ) from error
        # as in fit, a parameter that no output depends on is left alone, even by weight decay
        self.trainable = [name for name in self.trainable if member.values[name].grad is not None]

    def pack(self, states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Parameters of K models → stacked."""
        return {name: torch.stack([state[name] for state in states]) for name in states[0]}

    def unpack(self, stacked: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Stacked → ``{the model's name of a parameter: (K, …)}``."""
        return dict(stacked)

    def members(self, values: dict[str, Tensor], slopes: dict[str, Tensor]) -> list[_Member]:
        """A block's tensors: leaves for autograd, which share the memory of the stack."""
        leaves = {name: value.detach() for name, value in values.items()}
        for name, slope in slopes.items():
            leaves[name].requires_grad_().grad = slope
        return [_Member(leaves, slopes)]

    def prepare(self, batch: Batch, backward: bool = True) -> Batch:
        """What the models of all blocks need of a batch, once."""
        return batch

    def gradients(self, members: list[_Member], weights: Tensor, batch: Batch) -> Tensor:
        """Write the gradient of Σ wᵢ Lᵢ where it belongs; return the losses (k, T)."""
        for slope in members[0].slopes.values():
            slope.zero_()
        return self._backward(members[0], weights, batch)

    def _backward(self, member: _Member, weights: Tensor, batch: Batch) -> Tensor:
        def one(parameters: dict[str, Tensor]) -> Tensor:
            logits = functional_call(self.template, parameters, (batch.numeric, batch.categorical))
            losses = task_losses(self.tasks, logits, batch)
            return torch.stack([losses[task.name] for task in self.tasks])

        losses = vmap(one, randomness="different")(dict(member.values))
        (losses * weights).sum().backward()
        return losses.detach()

    @torch.no_grad()
    def logits(self, members: list[_Member], batch: Batch) -> dict[str, Tensor]:
        """``{task: (k, n) or (k, n, classes)}``."""

        def one(parameters: dict[str, Tensor]) -> dict[str, Tensor]:
            return functional_call(self.template, parameters, (batch.numeric, batch.categorical))

        return vmap(one, randomness="different")(dict(members[0].values))

    def activation_bytes(self, batch: Batch) -> int:
        """Memory that one model's forward pass leaves behind for its backward pass."""
        sizes: list[int] = []

        def note(tensor: Tensor) -> Tensor:
            sizes.append(tensor.numel() * tensor.element_size())
            return tensor

        self.template.train()
        with torch.random.fork_rng(), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            logits = self.template(batch.numeric, batch.categorical)
            torch.stack(list(task_losses(self.tasks, logits, batch).values())).sum()
        return sum(sizes)


# ------------------------------------------------------------------------------------------------- shared bottoms


@dataclass
class _Layer:
    """One linear layer of the network that holds a model's bottom and all its towers.

    Towers side by side make one layer: ``parts`` are (name of the nn.Linear, its rows, its columns).
    """

    parts: list[tuple[str, slice, slice]]
    n_out: int
    n_in: int
    relu: bool
    mask: Tensor | None = None  # (n_out, n_in), 0 where towers must not see each other


@dataclass
class _Ready:
    """A batch, the (n·C,) rows of the embedding table that it reads, and what all models' backward passes share."""

    batch: Batch
    index: Tensor
    numeric_columns: Tensor | None = None  # (D, n)
    order: Tensor | None = None  # of the look-ups, sorted by the row of the table that they read …
    starts: Tensor | None = None  # … and where each row's look-ups start in that order, (rows of the table,)


class _Mlp:
    """Shared-bottom and single-task models: forward and backward pass by hand.

    A parameter or activation has one axis more than the model's own, K-major, with :class:`_StackedProducts`; or
    :class:`_OneDnnProducts` goes from model to model. The gradient of the embedding tables is a sum over segments of
    rows that were sorted once for all models.
    """

    def __init__(self, template: nn.Module, tasks: tuple[Task, ...]) -> None:
        self.template, self.tasks = template, tasks
        self.layers = _chain(template)
        table = template.features.embedding.weight
        self.products = (
            _OneDnnProducts() if table.device.type == "cpu" and _onednn_is_faster() else _StackedProducts()
        )
        self.offset, (self.n_rows, self.width) = template.features.offset, table.shape
        self.n_columns = len(self.offset)
        self.n_embedded = self.n_columns * self.width
        self.n_numeric = template.features.n_out - self.n_embedded
        self.threaded = table.device.type == "cpu"
        self.buffers = _Buffers()
        self.trainable = ["table"]
        for i in range(len(self.layers)):
            self.trainable += [*self._matrices(i), f"bias{i}"]
        ends = np.cumsum([task.n_outputs for task in tasks]).tolist()
        self.outputs = [slice(end - task.n_outputs, end) for task, end in zip(tasks, ends, strict=True)]

    def _matrices(self, i: int) -> list[str]:
        """Names of layer i's matrices: the first layer has one for the embeddings and one for the numeric columns."""
        if i:
            return [f"weight{i}"]
        return ["embedded0"] * bool(self.n_embedded) + ["numeric0"] * bool(self.n_numeric)

    def pack(self, states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        table = torch.stack([state[TABLE] for state in states])
        stacked = {"table": table}
        for i, layer in enumerate(self.layers):
            weight = table.new_zeros(len(states), layer.n_out, layer.n_in)
            stacked[f"bias{i}"] = table.new_zeros(len(states), layer.n_out)
            for name, rows, columns in layer.parts:
                weight[:, rows, columns] = torch.stack([state[f"{name}.weight"] for state in states])
                stacked[f"bias{i}"][:, rows] = torch.stack([state[f"{name}.bias"] for state in states])
            names = self._matrices(i)
            cut = [self.n_embedded, self.n_numeric] if len(names) == 2 else [layer.n_in]
            stacked |= dict(zip(names, (w.contiguous() for w in weight.split(cut, dim=-1)), strict=True))
        return stacked

    def unpack(self, stacked: Mapping[str, Tensor]) -> dict[str, Tensor]:
        named = {TABLE: stacked["table"]}
        for i, layer in enumerate(self.layers):
            weight = torch.cat([stacked[name] for name in self._matrices(i)], dim=-1)
            for name, rows, columns in layer.parts:
                named[f"{name}.weight"] = weight[:, rows, columns].contiguous()
                named[f"{name}.bias"] = stacked[f"bias{i}"][:, rows].contiguous()
        return {name: named[name] for name, _ in self.template.named_parameters()}

    def members(self, values: dict[str, Tensor], slopes: dict[str, Tensor]) -> list[_Member]:
        if self.products.stacked:
            return [_Member(values, slopes)]
        return [
            _Member(
                {name: value[i] for name, value in values.items()},
                {name: slope[i] for name, slope in slopes.items()},
            )
            for i in range(len(values["bias0"]))
        ]

    def prepare(self, batch: Batch, backward: bool = True) -> _Ready:
        ready = _Ready(batch, (batch.categorical + self.offset).flatten())
        if backward and batch.numeric.device.type == "cpu":
            ready.numeric_columns = batch.numeric.t().contiguous()
            ordered, order = ready.index.int().sort(stable=True)
            ready.order = order.int()
            ready.starts = torch.searchsorted(
                ordered, torch.arange(self.n_rows, dtype=torch.int32), out_int32=True
            )
        return ready

    @torch.no_grad()
    def gradients(self, members: list[_Member], weights: Tensor, ready: _Ready) -> Tensor:
        passes = [self._forward(i, member.values, ready) for i, member in enumerate(members)]
        logits, losses = self._join([inputs.pop() for inputs in passes]), []
        flow = torch.empty_like(logits)  # d(Σ wᵢ Lᵢ) / d(logits), (k, n, outputs)
        labels, masks = ready.batch.labels, ready.batch.masks
        for i, (task, part) in enumerate(zip(self.tasks, self.outputs, strict=True)):
            loss, slope = _loss_and_slope(task, logits[..., part], labels[task.name], masks.get(task.name))
            losses.append(loss)
            torch.mul(slope, weights[:, i, None, None], out=flow[..., part])
        flows = [flow] if self.products.stacked else flow
        for member, inputs, own in zip(members, passes, flows, strict=True):
            self._backward(member, inputs, own, ready)
        return torch.stack(losses, dim=1)

    @torch.no_grad()
    def logits(self, members: list[_Member], ready: _Ready) -> dict[str, Tensor]:
        logits = self._join([self._forward(0, member.values, ready)[-1].clone() for member in members])
        parts = {task.name: logits[..., part] for task, part in zip(self.tasks, self.outputs, strict=True)}
        return {
            task.name: (
                parts[task.name] if task.kind == "multiclass" else parts[task.name].squeeze(-1)
            ).contiguous()
            for task in self.tasks
        }

    def _join(self, logits: list[Tensor]) -> Tensor:
        """(k, n, outputs)"""
        return logits[0] if self.products.stacked else torch.stack(logits)

    def _forward(self, place: int, values: dict[str, Tensor], ready: _Ready) -> list:
        """The inputs of each layer, (…, n, in), the first as a list of embeddings and numbers; then the logits."""
        lead, n = values["bias0"].shape[:-1], len(ready.batch)
        first = []
        if self.n_columns:
            vectors = self.buffers.get(place, values["table"], *lead, len(ready.index), self.width)
            torch.index_select(values["table"], -2, ready.index, out=vectors)
            first.append(vectors.view(*lead, n, self.n_embedded))
        if self.n_numeric:
            first.append(ready.batch.numeric.expand(*lead, n, self.n_numeric))
        inputs = [first]
        for i, layer in enumerate(self.layers):
            below = inputs[-1] if i == 0 else [inputs[-1]]
            matrices = [values[name] for name in self._matrices(i)]
            inputs.append(self.products.forward((place, i), below, matrices, values[f"bias{i}"], layer.relu))
        return inputs

    def _backward(self, member: _Member, inputs: list, flow: Tensor, ready: _Ready) -> None:
        values, slopes, products = member.values, member.slopes, self.products
        for i in reversed(range(len(self.layers))):
            names = self._matrices(i)
            for name, below in zip(names, inputs[i] if i == 0 else [inputs[i]], strict=True):
                columns = ready.numeric_columns if name == "numeric0" else None
                products.weight_gradient(flow, below, columns, slopes[name])
                if self.layers[i].mask is not None:
                    slopes[name].mul_(self.layers[i].mask)
            torch.sum(flow, -2, out=slopes[f"bias{i}"])
            if i:
                flow = products.input_gradient(i, flow, values[names[0]])
                # in place, and in one pass: 0 where the ReLU below gave 0
                torch.ops.aten.threshold_backward.grad_input(flow, inputs[i], 0, grad_input=flow)
            elif self.n_columns:
                flow = products.input_gradient(i, flow, values[names[0]])
                self._table_gradient(slopes["table"], flow.view(*flow.shape[:-2], -1, self.width), ready)

    def _table_gradient(self, slope: Tensor, flow: Tensor, ready: _Ready) -> None:
        """Add up the gradients (…, n·C, d) of vectors that came from the same row of a table, into (…, rows, d)."""
        if ready.order is None:
            slope.zero_().index_add_(flow.dim() - 2, ready.index, flow)
            return
        order, starts = ready.order, ready.starts
        if flow.dim() == 3:
            shift = torch.arange(len(flow), dtype=torch.int32)[:, None] * flow.shape[1]
            order, starts = (order + shift).flatten(), (starts + shift).flatten()
        summed = F.embedding_bag(order, flow.reshape(-1, self.width), starts, mode="sum")
        slope.copy_(summed.view_as(slope))

    def activation_bytes(self, batch: Batch) -> int:
        return 4 * len(batch) * sum([self.n_embedded, *(layer.n_out for layer in self.layers)])


TABLE = "features.embedding.weight"


class _Buffers(local):
    """Each thread's own memory, which is written anew, not allocated anew, in every step."""

    def __init__(self) -> None:
        self.held: dict[tuple, Tensor] = {}

    def get(self, place: object, like: Tensor, *shape: int) -> Tensor:
        key = (place, shape)
        if key not in self.held:
            self.held[key] = like.new_empty(shape)
        return self.held[key]


class _StackedProducts:
    """Products of k models at once, (k, n, in) by (k, in, out), on every device."""

    stacked = True

    def __init__(self) -> None:
        self.buffers = _Buffers()

    def forward(
        self, place: tuple, inputs: list[Tensor], matrices: list[Tensor], bias: Tensor, relu: bool
    ) -> Tensor:
        """Σ input · matrixᵀ + bias, then perhaps ReLU. What it returns is valid until the next call for its place."""
        start = bias.unsqueeze(1)
        out = self.buffers.get(place, bias, *inputs[0].shape[:-1], bias.shape[-1])
        for values, matrix in zip(inputs, matrices, strict=True):
            start = torch.baddbmm(start, values, matrix.mT, out=out)
        return out.relu_() if relu else out

    def input_gradient(self, layer: int, flow: Tensor, matrix: Tensor) -> Tensor:
        out = self.buffers.get(("back", layer), flow, *flow.shape[:-1], matrix.shape[-1])
        return torch.bmm(flow, matrix, out=out)

    def weight_gradient(self, flow: Tensor, inputs: Tensor, columns: Tensor | None, out: Tensor) -> None:
        torch.bmm(flow.mT, inputs, out=out)


class _OneDnnProducts:
    """Products of one model, (n, in) by (in, out), by oneDNN's kernels, with bias and ReLU in the same pass.

    ``torch.mm`` calls MKL, which leaves the wide registers of processors that are not Intel's unused; there these
    kernels are up to twice as fast. They have no public name for dense float32 tensors, so they are only used after
    :func:`_onednn_is_faster` has tried them.
    """

    stacked = False

    def forward(
        self, place: tuple, inputs: list[Tensor], matrices: list[Tensor], bias: Tensor, relu: bool
    ) -> Tensor:
        *others, last = zip(inputs, matrices, strict=True)
        if not others:
            if last[0].shape[0] * last[1].numel() >= WORTH_ONEDNN:
                return _linear(*last, bias, "relu" if relu else "none")
            out = torch.addmm(bias, last[0], last[1].t())
        else:
            out = _linear(*others[0], bias, "none").addmm_(last[0], last[1].t())
        return out.relu_() if relu else out

    def input_gradient(self, layer: int, flow: Tensor, matrix: Tensor) -> Tensor:
        if flow.shape[0] * matrix.numel() >= WORTH_ONEDNN:
            return _linear(flow, matrix.t(), None, "none")
        return torch.mm(flow, matrix)

    def weight_gradient(self, flow: Tensor, inputs: Tensor, columns: Tensor | None, out: Tensor) -> None:
        # oneDNN wants the left factor row by row: take the ready transpose, or transpose the narrower one
        worth = flow.shape[0] * out.numel() / WORTH_ONEDNN
        if columns is not None and worth >= 0.5:
            out.copy_(_linear(columns, flow.t(), None, "none").t())
        elif worth < 3:
            torch.mm(flow.t(), inputs, out=out)
        elif inputs.shape[1] < flow.shape[1]:
            out.copy_(_linear(inputs.t(), flow.t(), None, "none").t())
        else:
            out.copy_(_linear(flow.t(), inputs.t(), None, "none"))


WORTH_ONEDNN = 900_000  # multiplications from which its dearer call (10 µs) pays


def _linear(inputs: Tensor, matrix: Tensor, bias: Tensor | None, then: str) -> Tensor:
    """input · matrixᵀ + bias, then ``"relu"`` or ``"none"``."""
    return torch.ops.mkldnn._linear_pointwise.default(inputs, matrix, bias, then, [], "")


@cache
def _onednn_is_faster() -> bool:
    """Whether this torch has the kernels, they are right, and at least a fifth faster than ``torch.addmm``."""
    if not torch.backends.mkldnn.is_available():
        return False
    with _single_threaded_pool(1) as pool:
        return pool.submit(_try_onednn).result()


def _try_onednn() -> bool:
    generator = torch.Generator().manual_seed(0)
    inputs, matrix, bias = (
        torch.randn(*size, generator=generator) for size in ((1024, 64), (128, 64), (128,))
    )
    right = torch.addmm(bias, inputs, matrix.t()).relu_()
    try:
        same = torch.allclose(_linear(inputs, matrix, bias, "relu"), right, rtol=1e-4, atol=1e-4)
        slopes = _linear(inputs.t(), right.t(), None, "none")
    except (AttributeError, RuntimeError, TypeError):  # not in this build of torch, or with other arguments
        return False
    same &= torch.allclose(slopes, inputs.t() @ right, rtol=1e-3, atol=1e-2)

    def seconds(work: Callable[[], object]) -> float:
        start = time.perf_counter()
        work()
        return time.perf_counter() - start

    usual = min(seconds(lambda: torch.addmm(bias, inputs, matrix.t()).relu_()) for _ in range(15))
    ours = min(seconds(lambda: _linear(inputs, matrix, bias, "relu")) for _ in range(15))
    return same and ours * 1.2 < usual


def _loss_and_slope(task: Task, logits: Tensor, labels: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """:func:`mtl_helpers.losses.task_loss` of each model, (k,), and its derivative by the logits, (k, n, outputs)."""
    if task.kind == "multiclass":
        logs = logits.log_softmax(-1)
        picked = labels.expand(logs.shape[:-1]).unsqueeze(-1)
        rows = -logs.gather(-1, picked).squeeze(-1)
        slope = logs.exp_().scatter_add_(-1, picked, -torch.ones_like(picked, dtype=logs.dtype))
    else:
        logits = logits.squeeze(
            -1
        ).contiguous()  # elementwise functions crawl over a slice of interleaved tasks
        truth = labels.expand_as(logits)
        if task.kind == "binary":
            rows = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
            slope = logits.sigmoid().sub_(truth)
        else:
            slope = logits - truth
            rows, slope = slope.square(), slope * 2
        slope = slope.unsqueeze(-1)
    if mask is None:
        return rows.mean(-1), slope.div_(rows.shape[-1])
    share = mask.to(rows.dtype)
    share = share / share.sum().clamp(min=1)
    return rows @ share, slope.mul_(share[:, None])


def _chain(template: nn.Module) -> list[_Layer]:
    """The layers of a shared-bottom or single-task model; ValueError with the reason when it is something else."""
    if type(template) in (SharedBottom, SingleTask):
        trunk, towers = "bottom", [f"towers.{task.name}" for task in template.tasks]
    else:
        raise ValueError(f"it is a {type(template).__name__}, neither SharedBottom nor SingleTask")

    def linears(path: str) -> list[tuple[str, nn.Linear]]:
        layers = list(template.get_submodule(path).named_children())
        kinds = [type(layer) for _, layer in layers]
        if kinds != [nn.Linear, nn.ReLU] * (len(kinds) // 2):
            raise ValueError(f"{path} is not a chain of Linear and ReLU")
        return [(f"{path}.{name}", layer) for name, layer in layers[::2]]

    shared = [[part] for part in linears(trunk)]
    own = [
        [*linears(f"{tower}.hidden"), (f"{tower}.head", template.get_submodule(f"{tower}.head"))]
        for tower in towers
    ]
    if len({len(layers) for layers in own}) > 1:
        raise ValueError("its towers differ in depth")
    groups = [*shared, *zip(*own, strict=True)]
    layers, n_in = [], template.features.n_out
    for depth, group in enumerate(groups):
        apart = depth > len(
            shared
        )  # from its second layer on, a tower sees only its own part of the layer below
        parts, row, column = [], 0, 0
        for name, linear in group:
            columns = slice(column, column + linear.in_features) if apart else slice(0, n_in)
            parts.append((name, slice(row, row + linear.out_features), columns))
            row, column = row + linear.out_features, column + linear.in_features
        mask = None
        if apart and len(group) > 1:
            mask = template.features.embedding.weight.new_zeros(row, n_in)
            for _, rows, columns in parts:
                mask[rows, columns] = 1
        layers.append(_Layer(parts, row, n_in, depth < len(groups) - 1, mask))
        n_in = row
    names = [name for layer in layers for name, _, _ in layer.parts]
    known = {TABLE, *(f"{name}.{kind}" for name in names for kind in ("weight", "bias"))}
    if (
        known != {name for name, _ in template.named_parameters()}
        or type(template.features) is not FeatureLayer
    ):
        raise ValueError("it has other parameters than a SharedBottom has")
    if any(value.dtype != torch.float32 or not value.requires_grad for value in template.parameters()):
        raise ValueError("a parameter is frozen or not float32")
    return layers


# ------------------------------------------------------------------------------------------------- choices


def _choose_engine(
    name: str, template: nn.Module, tasks: tuple[Task, ...], train: MultiTaskDataset
) -> _Vmap | _Mlp:
    if name not in ("auto", "batched", "vmap"):
        raise ValueError(f"engine is {name!r}: expected 'auto', 'batched' or 'vmap'.")
    if name != "vmap":
        try:
            return _Mlp(template, tasks)
        except ValueError as reason:
            if name == "batched":
                raise ValueError(
                    f"engine='batched' cannot train this model: {reason}. Use engine='auto'."
                ) from None
    engine = _Vmap(template, tasks)
    engine.check(next(train.batches(4, shuffle=False)))
    return engine


def _sizes(
    engine: _Vmap | _Mlp, train: MultiTaskDataset, batch_size: int, group: int, chunk: int | None
) -> tuple[int, int]:
    """How many models train at once, and how many of them are in a block.

    group : models that share seed and learning rate.
    """
    batch = next(train.batches(min(batch_size, len(train)), shuffle=False))
    activations = max(engine.activation_bytes(batch), 1)
    device, free = train.device, _free_memory(train.device)
    parameters = sum(value.numel() * value.element_size() for value in engine.template.parameters())
    if device.type == "cpu":
        # as many models as the cache of a thread holds, but enough blocks to keep all threads busy
        threads = torch.get_num_threads() if engine.threaded else 1
        cache = CACHE_BYTES if engine.threaded else 4 * CACHE_BYTES  # vmap gains more by fewer calls
        block = min(int(max(cache // activations, 1)), -(-group // threads))
    else:
        block = int(max(free // 8 // activations, 1))
    block = min(block, group)
    if chunk is None:
        # parameters, gradients, two moments, the kept copy and what unpacking needs; half the memory stays free
        chunk = int(max((free // 2 - 4 * block * activations) // (6 * parameters), 1))
    return chunk, min(block, chunk)


CACHE_BYTES = 3_500_000  # activations of a thread's models; between 1 and 8 MB the speed hardly changes


def _free_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        with open("/proc/meminfo") as file:
            lines = dict(line.split(":", 1) for line in file)
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return 2 * 2**30
