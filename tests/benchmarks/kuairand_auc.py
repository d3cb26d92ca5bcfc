"""AUC of single-task models and of the shared bottom on KuaiRand-Pure's real rows, as a markdown table.

    python tests/benchmarks/kuairand_auc.py [--archive PATH] [--rows 20000 100000] [--seeds 5] [--out results.csv]

What is compared: per task, one model of its own against one shared bottom for click, long_view and like; then the same
with most like labels hidden. Days split the rows: training on the earlier ones, validation on the second last, test on
the last.

What is kept equal: layers, embeddings, epochs at most, patience, batch size, and the search: each model picks learning
rate and weight decay from the same grid, by its validation AUC on one tuning seed that is not reported. A single-task
model picks for its task; the shared bottom picks one pair for all its tasks (their mean AUC) and stops on the sum of
its losses, except where it says "for like": then like alone decides both, and what it does to the others is shown.

The test day is scored once for each reported run, after all choices. A seed draws the training rows, the labels that
are hidden, the initial weights and the order of the batches; both sides of a pair share it. Intervals are 95 %
Student-t over seeds: they tell how much another draw of these would change the result, not another test day.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from mtl_helpers.data import MultiTaskDataset, Splits, Task, hide_labels, prepare
from mtl_helpers.data.kuairand import (
    KUAIRAND_CATEGORICAL,
    KUAIRAND_NUMERIC,
    KUAIRAND_TASKS,
    BadArchive,
    KuaiRandUnavailable,
    load_kuairand,
    split_by_date,
)
from mtl_helpers.metrics import mean_interval, paired_difference
from mtl_helpers.models import SharedBottom, SingleTask
from mtl_helpers.notebook import seed_everything
from mtl_helpers.training import evaluate, fit

GRID = [(lr, decay) for lr in (1e-3, 3e-3) for decay in (1e-4, 3e-4, 1e-3)]
TUNING_SEED = 1000
EPOCHS, PATIENCE, BATCH = 20, 3, 1024
MIN_COUNT = 2  # a category seen once shares the unknown bucket, which is thereby trained


@dataclass(frozen=True)
class Contestant:
    """One model: its tasks, and what its validation looks at (None: all of its tasks)."""

    name: str
    tasks: tuple[Task, ...]
    aim: str | None = None

    def fit_and_score(
        self, data: Splits, part: str, setting: tuple[float, float], seed: int
    ) -> dict[str, float]:
        """Train with one setting of the grid; AUC by task on ``part``, which is "valid" or "test"."""
        seed_everything(seed)
        train, batch = data.train, BATCH
        if len(self.tasks) == 1:
            model = SingleTask(data.schema, self.tasks[0])
            train, batch = labelled_rows(train, self.tasks[0].name)
        else:
            model = SharedBottom(data.schema, self.tasks)
        fit(
            model,
            train,
            data.valid,
            epochs=EPOCHS,
            patience=PATIENCE,
            batch_size=batch,
            lr=setting[0],
            weight_decay=setting[1],
            monitor=f"{self.aim}.loss" if self.aim else "loss",
            seed=seed,
            progress=False,
        )
        return {name: values["auc"] for name, values in evaluate(model, getattr(data, part)).items()}

    def tune(self, data: Splits) -> tuple[float, float]:
        """The setting of the grid with the best validation AUC."""

        def score(setting: tuple[float, float]) -> float:
            values = self.fit_and_score(data, "valid", setting, TUNING_SEED)
            return values[self.aim] if self.aim else float(np.mean(list(values.values())))

        return max(GRID, key=score)


def labelled_rows(train: MultiTaskDataset, task: str) -> tuple[MultiTaskDataset, int]:
    """Only the rows a single-task model can learn from, in batches that make as many steps an epoch as all rows do."""
    if task not in train.masks:
        return train, BATCH
    rows = train.masks[task].nonzero().squeeze(-1)
    return train.take(rows), max(1, round(BATCH * len(rows) / len(train)))


@dataclass(frozen=True)
class Experiment:
    """A number of training rows, the models compared, and how many like labels are kept (None: all)."""

    rows: int
    contestants: tuple[Contestant, ...]
    like_labels: int | None = None

    def data(self, frames: dict[str, pd.DataFrame], seed: int) -> Splits:
        train = frames["train"]
        if self.rows < len(train):
            train = train.sample(self.rows, random_state=seed)
        splits = prepare(
            {**frames, "train": train},
            KUAIRAND_TASKS,
            KUAIRAND_NUMERIC,
            KUAIRAND_CATEGORICAL,
            min_count=MIN_COUNT,
        )
        if self.like_labels is not None:
            splits.train = hide_labels(splits.train, "like", self.like_labels, seed=seed)
        return splits

    def run(self, frames: dict[str, pd.DataFrame], seeds: Sequence[int]) -> list[dict]:
        tuning = self.data(frames, TUNING_SEED)
        settings = {one.name: one.tune(tuning) for one in self.contestants}
        records = []
        for seed in seeds:
            splits = self.data(frames, seed)
            for one in self.contestants:
                scores = one.fit_and_score(splits, "test", settings[one.name], seed)
                lr, decay = settings[one.name]
                records += [
                    {
                        "train_rows": len(splits.train),
                        "like_labels": self.like_labels or len(splits.train),
                        "model": one.name,
                        "task": task,
                        "seed": seed,
                        "test_auc": auc,
                        "lr": lr,
                        "weight_decay": decay,
                    }
                    for task, auc in scores.items()
                ]
        return records


def experiments(rows: Sequence[int], like_labels: int) -> list[Experiment]:
    click, _, like = KUAIRAND_TASKS
    alone = tuple(Contestant(f"single {task.name}", (task,)) for task in KUAIRAND_TASKS)
    shared = (Contestant("shared", KUAIRAND_TASKS), Contestant("shared, for like", KUAIRAND_TASKS, "like"))
    plans = [Experiment(number, (*alone, *shared)) for number in rows]
    scarce = (
        Contestant("single click", (click,)),
        Contestant("single like", (like,)),
        Contestant("shared, for like", (click, like), "like"),
    )
    return [*plans, Experiment(max(rows), scarce, like_labels)]


def table(records: pd.DataFrame) -> str:
    """Markdown: a line for each experiment, shared model and task, with the paired difference to the single model."""
    lines = [
        "| training rows | like labels | shared model | task | single AUC | shared AUC | shared − single |",
        "|---|---|---|---|---|---|---|",
    ]
    for (rows, likes), part in records.groupby(["train_rows", "like_labels"], sort=False):
        scores = part.pivot(index="seed", columns=["model", "task"], values="test_auc")
        for model in part["model"].unique():
            if model.startswith("single"):
                continue
            for task in scores[model].columns:
                single, shared = scores[(f"single {task}", task)].to_numpy(), scores[(model, task)].to_numpy()
                gap = paired_difference(shared, single)
                verdict = f"**{gap.mean:+.4f}**" if gap.excludes_zero else f"{gap.mean:+.4f}"
                lines.append(
                    f"| {rows:,} | {likes:,} | {model} | {task} | {plus_minus(single)} | {plus_minus(shared)} "
                    f"| {verdict} [{gap.low:+.4f}, {gap.high:+.4f}] |"
                )
    return "\n".join(lines)


def plus_minus(values: np.ndarray) -> str:
    interval = mean_interval(values)
    return f"{interval.mean:.4f} ± {interval.high - interval.mean:.4f}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--archive", help="KuaiRand-Pure.tar.gz; default MTL_KUAIRAND, the cache, or a download"
    )
    parser.add_argument(
        "--rows", type=int, nargs="+", default=[20_000, 100_000], help="training rows, at most"
    )
    parser.add_argument(
        "--like-labels", type=int, default=5_000, help="like labels kept in the last experiment"
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--out", type=Path, help="write every reported AUC to this CSV file")
    arguments = parser.parse_args()
    if arguments.seeds < 2:
        parser.error("--seeds must be 2 or more: an interval needs them")
    torch.set_num_threads(arguments.threads)
    try:
        frame = load_kuairand(arguments.archive)
    except (KuaiRandUnavailable, BadArchive) as error:
        print(error, file=sys.stderr)
        return 1

    frames = split_by_date(frame)
    start = time.perf_counter()
    records: list[dict] = []
    for plan in experiments(arguments.rows, arguments.like_labels):
        records += plan.run(frames, range(arguments.seeds))
        done = f"{plan.rows:,} rows, {plan.like_labels or 'all'} like labels"
        print(f"{done}: done after {time.perf_counter() - start:.0f} s", file=sys.stderr)
    results = pd.DataFrame(records)

    print(table(results))
    print(
        f"\n{arguments.seeds} seeds; mean ± half of the 95 % t-interval over seeds; bold: the interval excludes 0.\n"
    )
    for part, rows in frames.items():
        rates = ", ".join(f"{task.name} {rows[task.label_column].mean():.3f}" for task in KUAIRAND_TASKS)
        days = " to ".join(f"{day:%Y-%m-%d}" for day in sorted({rows["date"].min(), rows["date"].max()}))
        print(f"- {part}: {len(rows):,} rows of {days}; positives: {rates}")
    for (rows, likes), part in results.groupby(["train_rows", "like_labels"], sort=False):
        chosen = (
            f"{row.model} {row.lr:g}/{row.weight_decay:g}"
            for row in part.drop_duplicates("model").itertuples()
        )
        print(f"- learning rate/weight decay at {rows:,} rows, {likes:,} like labels: {'; '.join(chosen)}")
    print(
        f"- Python {platform.python_version()}, torch {torch.__version__}, numpy {np.__version__}, "
        f"pandas {pd.__version__}; {arguments.threads} threads, {time.perf_counter() - start:.0f} s"
    )
    if arguments.out:
        results.to_csv(arguments.out, index=False, float_format="%.6f")
        print(f"- every run: {arguments.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
