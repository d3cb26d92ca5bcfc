"""All weighting strategies against a tuned fixed weighting, on the shop and on KuaiRand-Pure.

    python notebooks/studies/nb04_strategies.py [--data shop kuairand] [--seeds 10] [--out notebooks/results]

Writes ``04_strategies_<data>.csv`` (one row per strategy, seed, task: test metric, steps, epoch kept) and
``04_cost.csv`` (cost of a step, as a ratio to equal weights, interleaved in one process); notebook 04 reads them.

What is kept equal: model, optimiser, batches of a seed, epochs at most, patience, and what stops a run: the sum of the
validation losses, each divided by what the best constant loses. Strategies keep the defaults of their papers. The fixed
weighting is tuned on a data set of its own (seed 1000, not reported): 36 weightings on the simplex, 3 starts each, by
the same validation sum. A seed draws a whole new shop; on KuaiRand it draws the training rows, the initial weights and
the order of batches, while the test day stays. Test rows are scored once a run.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import pandas as pd
import torch
from study import command_line, store

from mtl_helpers.data import (
    KUAIRAND_CATEGORICAL,
    KUAIRAND_NUMERIC,
    KUAIRAND_TASKS,
    SHOP_CATEGORICAL,
    SHOP_NUMERIC,
    SHOP_TASKS,
    MultiTaskDataset,
    ShopConfig,
    Splits,
    load_kuairand,
    prepare,
    shop_frame,
    shop_splits,
    simulate,
    split_by_date,
)
from mtl_helpers.gradients import METHODS, CombinedGradients
from mtl_helpers.models import SharedBottom
from mtl_helpers.sweep import simplex_grid, sweep
from mtl_helpers.training import evaluate, fit, training_steps
from mtl_helpers.weighting import (
    DWA,
    FAMO,
    GLS,
    IMTLL,
    STCH,
    Fixed,
    GradNorm,
    RandomWeighting,
    UncertaintyWeighting,
    ValidationGap,
    Weighting,
    constant_losses,
    entropy_weights,
    rarity_weights,
)

TUNING_SEED = 1000
KUAIRAND_ROWS = 20_000
TRAINING = {"epochs": 40, "patience": 3, "batch_size": 1024, "lr": 1e-3, "weight_decay": 0.1}
Make = Callable[[MultiTaskDataset], Weighting]


def strategies(tuned: dict[str, float]) -> dict[str, Make]:
    """Every strategy by name, made from the training data."""
    own = {"UW": UncertaintyWeighting, "DWA": DWA, "GradNorm": GradNorm, "RLW": RandomWeighting}
    own |= {"IMTL-L": IMTLL, "GLS": GLS, "FAMO": FAMO, "STCH": STCH}
    return {
        "equal weights": lambda data: Fixed(data.tasks),
        "tuned fixed": lambda data: Fixed(data.tasks, tuned),
        "rarity": lambda data: Fixed(data.tasks, rarity_weights(data)),
        "entropy": lambda data: Fixed(data.tasks, entropy_weights(data)),
        "validation gap": lambda data: ValidationGap(data.tasks, constant_losses(data)),
        **{name: lambda data, kind=kind: kind(data.tasks) for name, kind in own.items()},
        **{name: lambda data, name=name: CombinedGradients(data.tasks, name) for name in METHODS},
    }


def shop(seed: int) -> Splits:
    frames = shop_splits(shop_frame(simulate(ShopConfig(seed=seed, n_users=720, n_impressions=80_000))))
    return prepare(frames, SHOP_TASKS, SHOP_NUMERIC, SHOP_CATEGORICAL)


def kuairand() -> Callable[[int], Splits]:
    """Draws training rows by seed."""
    frames = split_by_date(load_kuairand(progress=False))

    def draw(seed: int) -> Splits:
        train = frames["train"].sample(KUAIRAND_ROWS, random_state=seed)
        columns = (KUAIRAND_TASKS, KUAIRAND_NUMERIC, KUAIRAND_CATEGORICAL)
        return prepare(frames | {"train": train}, *columns, min_count=2)

    return draw


def build(splits: Splits) -> SharedBottom:
    return SharedBottom(splits.schema, splits.tasks, embedding_dim=4)


def tune(splits: Splits) -> dict[str, float]:
    """The weighting with the lowest normalised validation loss, mean of three starts."""
    grid = simplex_grid(splits.tasks, 8, lowest=0.02)
    settings = {"epochs": 12, "progress": False} | {key: TRAINING[key] for key in ("lr", "weight_decay")}
    swept = sweep(
        lambda: build(splits), splits.train, splits.valid, weightings=grid, seeds=(0, 1, 2), **settings
    )
    constants = constant_losses(splits.train)
    losses = swept.records.query("split == 'valid' and metric == 'loss'")
    total = losses["value"] / losses["task"].map(constants)
    by_epoch = total.groupby([losses["weighting"], losses["seed"], losses["epoch"]]).sum()
    best = by_epoch.groupby(["weighting", "seed"]).min().groupby("weighting").mean().idxmin()
    return {name: round(value, 4) for name, value in grid[best].items()}


def compare(name: str, source: Callable[[int], Splits], seeds: int) -> tuple[pd.DataFrame, dict[str, float]]:
    tuned = tune(source(TUNING_SEED))
    print(f"{name}: tuned fixed weights {tuned}", flush=True)
    rows = []
    for seed in range(seeds):
        splits = source(seed)
        for strategy, make in strategies(tuned).items():
            found, epoch = run(make, splits, seed)
            rows += [
                (name, strategy, seed, task, metric, round(value, 6), epoch)
                for task, metrics in found.items()
                for metric, value in metrics.items()
                if metric in ("loss", "auc" if "auc" in metrics else "accuracy")
            ]
        print(f"{name}: seed {seed} done", flush=True)
    columns = ["data", "strategy", "seed", "task", "metric", "value", "epoch"]
    return pd.DataFrame(rows, columns=columns), tuned


def run(make: Make, splits: Splits, seed: int) -> tuple[dict[str, dict[str, float]], int]:
    """Train once; what the test rows say, and the epoch kept."""
    torch.manual_seed(seed)
    model = build(splits)
    monitor = {task: 1 / loss for task, loss in constant_losses(splits.train).items()}
    own = {"weights": make(splits.train), "monitor": monitor, "seed": seed, "progress": False}
    history = fit(model, splits.train, splits.valid, **own, **TRAINING)
    return evaluate(model, splits.test), history.best_epoch


def cost(splits: Splits, rounds: int = 25) -> pd.DataFrame:
    """Seconds a step of each strategy, as the median ratio to equal weights within a round."""
    running = {}
    for name, make in strategies({task.name: 1.0 for task in splits.tasks}).items():
        model = build(splits)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        running[name] = training_steps(
            model, splits.train, optimizer, weights=make(splits.train), epochs=rounds, batch_size=1024
        )
    seconds: dict[str, list[float]] = {name: [] for name in running}
    for number in range(rounds + 3):
        for name, steps in running.items():
            start = time.perf_counter()
            next(steps)
            if number >= 3:
                seconds[name].append(time.perf_counter() - start)
    ratios = {
        name: round(statistics.median(s / b for s, b in zip(own, seconds["equal weights"], strict=True)), 3)
        for name, own in seconds.items()
    }
    return pd.DataFrame(list(ratios.items()), columns=["strategy", "ratio"])


def main() -> None:
    options = command_line(__doc__, seeds=10)
    options.add_argument("--data", nargs="*", choices=("shop", "kuairand"), default=["shop", "kuairand"])
    options = options.parse_args()

    def write(name: str, table: pd.DataFrame) -> None:
        store(options.out / f"04_{name}.csv", "nb04_strategies.py", table)

    for name in options.data:
        table, tuned = compare(name, shop if name == "shop" else kuairand(), options.seeds)
        write(f"strategies_{name}", table)
        weights = pd.DataFrame({"data": name, "task": list(tuned), "weight": list(tuned.values())})
        write(f"tuned_{name}", weights)
    write("cost", cost(shop(TUNING_SEED)))


if __name__ == "__main__":
    main()
