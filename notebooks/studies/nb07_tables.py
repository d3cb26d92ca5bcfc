"""The tables of notebook 07, from really trained models: one command each.

    python notebooks/studies/nb07_tables.py seesaw    # one model a task, shared bottom, MMoE, PLE, weightings
    python notebooks/studies/nb07_tables.py budget    # few like labels, many clicks
    python notebooks/studies/nb07_tables.py play      # play time as a fourth task
    python notebooks/studies/nb07_tables.py drift     # trained once, measured day by day
    python notebooks/studies/nb07_tables.py census    # Census-Income

Each writes ``notebooks/results/07_<name>.csv``: one row for each run, task and metric; its first line is the command.
``MTL_KUAIRAND`` and ``MTL_CENSUS`` name the data (see ``mtl_helpers.data.public``).

What is kept equal: embeddings of 8, layers of 64 and 32 units (an expert has them too), towers of 16, batches of 1,024,
20 epochs at most, patience 3. Every contestant is tuned with the same number of trials on one tuning draw that is not
reported: learning rate and weight decay, six pairs; the tuned fixed weights instead spend their six on three weights of
like at two of the pairs. One number decides a trial and when to stop: the sum of the validation losses, each divided by
what the best constant loses ("for like": like's alone). Test rows are scored once a run.

A seed draws 80 % of the training rows (Census: the whole split), the hidden labels, the initial weights and the order
of batches; contestants of a seed share them. The test day stays: no interval here speaks of another day.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from study import command_line, store

from mtl_helpers.data import MultiTaskDataset, Splits, Task, hide_labels, prepare
from mtl_helpers.data.public import (
    CENSUS_CATEGORICAL,
    CENSUS_NUMERIC,
    CENSUS_TASKS,
    KUAIRAND_PLAY_TASK,
    KUAIRAND_TASKS,
    KUAIRAND_WIDE_CATEGORICAL,
    KUAIRAND_WIDE_NUMERIC,
    load_census,
    load_kuairand,
    split_by_date,
)
from mtl_helpers.gradients import CombinedGradients
from mtl_helpers.metrics import auc, calibration_error, grouped_auc, mean_interval, paired_difference
from mtl_helpers.models import PLE, MMoE, SharedBottom, SingleTask, count_parameters
from mtl_helpers.notebook import seed_everything
from mtl_helpers.training import evaluate, fit, predict
from mtl_helpers.weighting import (
    DWA,
    FAMO,
    Fixed,
    RandomWeighting,
    UncertaintyWeighting,
    Weighting,
    constant_losses,
    entropy_weights,
)

TUNING_SEED = 1000
SHARE = 0.8  # of the training rows, drawn by seed
EPOCHS, PATIENCE, BATCH = 20, 3, 1024
RATES = (1e-3, 3e-3)
KUAIRAND_GRID = tuple((lr, decay, 1.0) for lr in RATES for decay in (0.1, 1.0, 3.0))
LIKE_GRID = tuple((lr, 3e-4, like) for lr in RATES for like in (0.3, 3.0, 10.0))
CENSUS_GRID = tuple((lr, decay, 1.0) for lr in RATES for decay in (0.0, 0.01, 0.1))
BUDGETS = (1_000, 2_500, 5_000, 10_000, 20_000, 40_000)

Setting = tuple[float, float, float]  # learning rate, weight decay, weight of like


def labelled_rows(train: MultiTaskDataset, task: str) -> tuple[MultiTaskDataset, int]:
    """Only the rows a single-task model can learn from, in batches that make as many steps an epoch as all rows do."""
    if task not in train.masks:
        return train, BATCH
    rows = train.masks[task].nonzero().squeeze(-1)
    return train.take(rows), max(1, round(BATCH * len(rows) / len(train)))


@dataclass(frozen=True)
class Contestant:
    """A model and how it is weighted. ``aim``: the one task that decides, where not all do."""

    name: str
    tasks: tuple[Task, ...]
    build: Callable = SharedBottom
    weigh: Callable[[Sequence[Task], Setting, MultiTaskDataset], Weighting] = lambda tasks, *_: Fixed(tasks)
    aim: str | None = None
    grid: Sequence[Setting] = KUAIRAND_GRID

    def fit(self, data: Splits, setting: Setting, seed: int) -> tuple[torch.nn.Module, float]:
        """The trained model, and its validation number: the lower, the better."""
        seed_everything(seed)
        names = [task.name for task in self.tasks]
        train, batch = data.train.select(names), BATCH
        if len(names) == 1:
            model = SingleTask(data.schema, self.tasks[0])
            train, batch = labelled_rows(train, names[0])
        else:
            model = self.build(data.schema, self.tasks)
        constants = constant_losses(data.train.select(names))
        monitor = {name: 1 / constants[name] if self.aim in (None, name) else 0.0 for name in names}
        settings = dict(zip(("lr", "weight_decay"), setting, strict=False), monitor=monitor, seed=seed)
        settings |= {"epochs": EPOCHS, "patience": PATIENCE, "batch_size": batch, "progress": False}
        fit(model, train, data.valid, weights=self.weigh(train.tasks, setting, train), **settings)
        found = evaluate(model, data.valid)
        return model, sum(monitor[name] * found[name]["loss"] for name in names)

    def tune(self, data: Splits) -> Setting:
        return min(self.grid, key=lambda setting: self.fit(data, setting, TUNING_SEED)[1])


def alone(tasks: Sequence[Task], grid: Sequence[Setting] = KUAIRAND_GRID) -> tuple[Contestant, ...]:
    return tuple(Contestant(f"single {task.name}", (task,), grid=grid) for task in tasks)


def architectures(tasks: Sequence[Task], grid: Sequence[Setting] = KUAIRAND_GRID) -> tuple[Contestant, ...]:
    kinds = {"shared bottom": SharedBottom, "MMoE": MMoE, "PLE": PLE}
    return tuple(Contestant(name, tasks, kind, grid=grid) for name, kind in kinds.items())


def run(
    contestants: Sequence[Contestant],
    draw: Callable[[int], Splits],
    seeds: Sequence[int],
    score: Callable[[torch.nn.Module, Splits], Iterator[tuple[str, str, float]]],
    **columns: object,
) -> list[dict]:
    """Tune each, train it for each seed, score it once."""
    tuning, records = draw(TUNING_SEED), []
    settings = {one.name: one.tune(tuning) for one in contestants}
    for seed in seeds:
        data = draw(seed)
        for one in contestants:
            setting = settings[one.name]
            model, _ = one.fit(data, setting, seed)
            before = {**columns, "model": one.name}
            after = dict(zip(("lr", "weight_decay", "like_weight"), setting, strict=True))
            after["parameters"] = count_parameters(model)
            records += [
                {**before, "task": task, "seed": seed, "metric": metric, "value": value, **after}
                for task, metric, value in score(model, data)
            ]
    return records


def plain_scores(model: torch.nn.Module, data: Splits) -> Iterator[tuple[str, str, float]]:
    for task, values in evaluate(model, data.test).items():
        for metric in ("auc", "rmse", "loss"):
            if metric in values:
                yield task, metric, values[metric]


def detailed_scores(model: torch.nn.Module, data: Splits) -> Iterator[tuple[str, str, float]]:
    """AUC of all test rows; within users; of rows whose user or video training has (almost) not seen; calibration."""
    found, users = predict(model, data.test), data.frames["test"]["user_id"].to_numpy()
    codes = data.test.categorical
    cold = {
        name: (codes[:, KUAIRAND_WIDE_CATEGORICAL.index(column)] == 0).numpy()
        for name, column in (("user", "user_id"), ("video", "video_id"))
    }
    for task, scores in found.items():
        y, p = data.test.labels[task].numpy(), scores.numpy()
        yield task, "auc", auc(y, p)
        yield task, "grouped_auc", grouped_auc(y, p, users)
        yield task, "calibration_error", calibration_error(y, p)
        for name, rows in cold.items():
            yield task, f"auc_cold_{name}", auc(y[rows], p[rows])
            yield task, f"auc_warm_{name}", auc(y[~rows], p[~rows])
            yield task, f"rows_cold_{name}", float(rows.sum())
            yield task, f"positives_cold_{name}", float(y[rows].sum())


def kuairand_draw(
    tasks: Sequence[Task], like_labels: int | None = None, **days: object
) -> Callable[[int], Splits]:
    frames = split_by_date(load_kuairand(progress=False), **days)
    columns = (tasks, KUAIRAND_WIDE_NUMERIC, KUAIRAND_WIDE_CATEGORICAL)

    def draw(seed: int) -> Splits:
        train = frames["train"].sample(frac=SHARE, random_state=seed)
        made = prepare(frames | {"train": train}, *columns, min_count=2)
        if like_labels is not None and like_labels < len(train):
            made.train = hide_labels(made.train, "like", like_labels, seed=seed)
        return made

    return draw


# ------------------------------------------------------------------------------------------------- the tables


def seesaw(seeds: Sequence[int]) -> list[dict]:
    three = KUAIRAND_TASKS
    strategies = {
        "UW": lambda tasks, *_: UncertaintyWeighting(tasks),
        "DWA": lambda tasks, *_: DWA(tasks),
        "RLW": lambda tasks, *_: RandomWeighting(tasks),
        "FAMO": lambda tasks, *_: FAMO(tasks),
        "PCGrad": lambda tasks, *_: CombinedGradients(tasks, "PCGrad"),
        "Aligned-MTL": lambda tasks, *_: CombinedGradients(tasks, "Aligned-MTL"),
    }

    def tuned(tasks: Sequence[Task], setting: Setting, *_: object) -> Fixed:
        return Fixed(tasks, {"click": 1.0, "long_view": 1.0, "like": setting[2]})

    detailed = (*alone(three), *architectures(three))
    contestants = (
        *detailed,
        Contestant("tuned fixed weights", three, weigh=tuned, grid=LIKE_GRID),
        *(Contestant(name, three, weigh=weigh) for name, weigh in strategies.items()),
        Contestant("shared bottom, for like", three, aim="like"),
    )
    records, names = (
        run(contestants, kuairand_draw(three), seeds, detailed_scores),
        [c.name for c in detailed],
    )
    return [
        row for row in records if row["metric"] == "auc" or row["model"] in names
    ]  # the table stays small


def budget(seeds: Sequence[int]) -> list[dict]:
    click, _, like = KUAIRAND_TASKS
    contestants = (
        Contestant("single like", (like,)),
        Contestant("shared bottom, for like", (click, like), aim="like"),
    )
    records = []
    for number in (*BUDGETS, None):
        draw = kuairand_draw((click, like), number)
        labels = number or len(draw(0).train)
        records += run(contestants, draw, seeds, plain_scores, like_labels=labels)
        print(f"{labels:,} like labels done", file=sys.stderr)
    return records


def play(seeds: Sequence[int]) -> list[dict]:
    four = (*KUAIRAND_TASKS, KUAIRAND_PLAY_TASK)
    contestants = (
        *alone(four),
        Contestant("shared, equal weights", four),
        Contestant(
            "shared, entropy weights", four, weigh=lambda tasks, _, data: Fixed(tasks, entropy_weights(data))
        ),
    )
    return run(contestants, kuairand_draw(four), seeds, plain_scores)


def drift(seeds: Sequence[int]) -> list[dict]:
    """Trained on two days, stopped on the third, then measured on each of the next five."""
    tasks = KUAIRAND_TASKS
    draw = kuairand_draw(tasks, valid_day="2022-04-27", test_day="2022-04-28")

    def by_day(model: torch.nn.Module, data: Splits) -> Iterator[tuple[str, str, float]]:
        days = data.frames["test"]["date"].dt.strftime("%Y-%m-%d").to_numpy()
        for task, scores in predict(model, data.test).items():
            y, p = data.test.labels[task].numpy(), scores.numpy()
            for day in np.unique(days):
                rows = days == day
                yield task, f"{day} auc", auc(y[rows], p[rows])
                yield task, f"{day} observed", float(y[rows].mean())
                yield task, f"{day} predicted", float(p[rows].mean())
                yield task, f"{day} calibration_error", calibration_error(y[rows], p[rows])

    return run((*alone(tasks), Contestant("shared bottom", tasks)), draw, seeds, by_day)


def split_census(frame: pd.DataFrame, seed: int) -> dict[str, pd.DataFrame]:
    """At random. With both files, train is the publisher's ``.data`` and ``.test`` is halved, as in Ma et al. (KDD
    2018, section 6.2); one file is cut 70, 15, 15."""
    order = np.random.default_rng(seed).permutation(len(frame))
    if set(frame["file"]) == {"data", "test"}:
        is_test = (frame["file"] == "test").to_numpy()
        train, rest = np.flatnonzero(~is_test), order[is_test[order]]
        valid, test = np.split(rest, [len(rest) // 2])
    else:
        train, valid, test = np.split(order, [int(0.7 * len(order)), int(0.85 * len(order))])
    return {"train": frame.iloc[train], "valid": frame.iloc[valid], "test": frame.iloc[test]}


def census(seeds: Sequence[int]) -> list[dict]:
    frame = load_census(progress=False)

    def draw(seed: int) -> Splits:
        return prepare(split_census(frame, seed), CENSUS_TASKS, CENSUS_NUMERIC, CENSUS_CATEGORICAL)

    contestants = alone(CENSUS_TASKS, CENSUS_GRID) + architectures(CENSUS_TASKS, CENSUS_GRID)
    return run(contestants, draw, seeds, plain_scores)


TABLES = {"seesaw": seesaw, "budget": budget, "play": play, "drift": drift, "census": census}


def summary(records: pd.DataFrame) -> str:
    """Markdown: each model's mean AUC with its interval, and the paired difference to the single-task model."""
    rows = records[records["metric"] == "auc"]
    before = ["like_labels"] if "like_labels" in rows else []
    found = {
        key: part["value"].to_numpy() for key, part in rows.groupby([*before, "task", "model"], sort=False)
    }
    lines = [
        f"| {' | '.join([*before, 'model', 'task', 'auc', 'minus single-task'])} |",
        "|---" * (4 + len(before)) + "|",
    ]
    for (*labels, task, model), values in found.items():
        gap, base = "", found.get((*labels, task, f"single {task}"), ())
        if not model.startswith("single") and len(base) == len(values):
            difference = paired_difference(values, base)
            gap = f"{difference.mean:+.4f} [{difference.low:+.4f}, {difference.high:+.4f}]"
        shown = [*(f"{value:,}" for value in labels), model, task, str(mean_interval(values)), gap]
        lines.append(f"| {' | '.join(shown)} |")
    return "\n".join(lines)


def main() -> None:
    options = command_line(__doc__, seeds=6, threads=1)
    options.add_argument("tables", nargs="+", choices=TABLES)
    options = options.parse_args()
    torch.set_num_threads(options.threads)
    for name in options.tables:
        start = time.perf_counter()
        records = pd.DataFrame(TABLES[name](range(options.seeds)))
        command = f"nb07_tables.py {name} --seeds {options.seeds}"
        store(options.out / f"07_{name}.csv", command, records, float_format="%.6g")
        if name != "drift":
            print(summary(records))
        print(f"{name}: {options.seeds} seeds, {time.perf_counter() - start:.0f} s\n", flush=True)


if __name__ == "__main__":
    main()
