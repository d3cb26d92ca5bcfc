"""What training 33 task weightings at once saves, side by side in one run.

    python tests/benchmarks/sweep_speed.py [--repeats 5] [--threads 2] [--shop]

Four ways to train the same 33 models (64 → 128 → 64 → two tasks, Adam, 20,000 rows, batches of 1,024, 5 epochs):

(a) one after the other, fed by ``DataLoader(TensorDataset)``, as most tutorials do;
(b) one after the other, batches indexed from tensors in memory;
(c) ``mtl_helpers.sweep``, all at once (and its engine for any model, ``torch.func.vmap``);
(d) a bound, not a training: only the products that forward and backward pass cannot do without, at the rate at which
    this machine multiplies large matrices.

They take turns, so that a slow moment of the machine hits all of them. Seconds on the clock depend on what else runs;
the processor seconds beside them do less. ``--shop`` times 33 weightings × 3 seeds on the shop instead.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from mtl_helpers import sweep as sweep_module
from mtl_helpers.data import MultiTaskDataset, Schema, Task
from mtl_helpers.models import SharedBottom
from mtl_helpers.sweep import _onednn_is_faster, simplex_grid, sweep

ROWS, FEATURES, HIDDEN, BATCH, EPOCHS, MODELS = 20_000, 64, (128, 64), 1024, 5, 33
TASKS = (Task("click"), Task("buy"))
SCHEMA = Schema(tuple(f"x{i}" for i in range(FEATURES)), {})
GRID = simplex_grid(TASKS, MODELS)


def make_data() -> MultiTaskDataset:
    generator = torch.Generator().manual_seed(0)
    numeric = torch.randn(ROWS, FEATURES, generator=generator)
    logits = numeric @ torch.randn(FEATURES, 2, generator=generator) / 8
    labels = (torch.rand(ROWS, 2, generator=generator) < logits.sigmoid()).float()
    return MultiTaskDataset(
        numeric,
        torch.zeros(ROWS, 0, dtype=torch.long),
        {"click": labels[:, 0].clone(), "buy": labels[:, 1].clone()},
        {},
        TASKS,
    )


def build() -> SharedBottom:
    return SharedBottom(SCHEMA, TASKS, hidden=HIDDEN, tower=())


def one_model(batches: Callable, weights: dict[str, float]) -> float:
    """The usual loop; returns the last epoch's mean loss."""
    torch.manual_seed(0)
    model = build()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(EPOCHS):
        total = 0.0
        for numeric, categorical, click, buy in batches():
            out = model(numeric, categorical)
            loss = weights["click"] * F.binary_cross_entropy_with_logits(out["click"], click)
            loss = loss + weights["buy"] * F.binary_cross_entropy_with_logits(out["buy"], buy)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(click)
    return total / ROWS


def loader_loop(data: MultiTaskDataset, models: int) -> None:
    loader = DataLoader(
        TensorDataset(data.numeric, data.categorical, *data.labels.values()), batch_size=BATCH, shuffle=True
    )
    for weights in GRID[:: MODELS // models][:models]:
        one_model(lambda: loader, weights)


def memory_loop(data: MultiTaskDataset, models: int) -> None:
    click, buy = data.labels.values()

    def batches():
        order = torch.randperm(ROWS)
        for start in range(0, ROWS, BATCH):
            rows = order[start : start + BATCH]
            yield data.numeric[rows], data.categorical[rows], click[rows], buy[rows]

    for weights in GRID[:: MODELS // models][:models]:
        one_model(batches, weights)


def products_at_full_rate(size: int = 2048) -> tuple[float, float]:
    """Seconds for the products of one sweep, and the rate (flop/s) of a large product that they assume."""
    a, b, out = (torch.randn(size, size) for _ in range(3))
    seconds = []
    for _ in range(9):
        start = time.perf_counter()
        torch.mm(a, b, out=out)
        seconds.append(time.perf_counter() - start)
    rate = 2 * size**3 / min(seconds)
    shapes = list(zip((FEATURES, *HIDDEN), (*HIDDEN, len(TASKS)), strict=True))
    # each layer: output and weight gradient; input gradient too, but not of the first layer
    products = sum(2 * n_in * n_out * (3 if i else 2) for i, (n_in, n_out) in enumerate(shapes))
    return MODELS * EPOCHS * ROWS * products / rate, rate


def timed(work: Callable[[], object]) -> tuple[float, float]:
    clock, processor = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - clock, time.process_time() - processor


def load() -> str:
    return f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"


def compare(repeats: int, few: int) -> None:
    data = make_data()

    def ours(engine: str) -> None:
        sweep(build, data, weightings=GRID, epochs=EPOCHS, batch_size=BATCH, engine=engine, progress=False)

    ways = {
        "(a) DataLoader loop": (lambda: loader_loop(data, few), MODELS / few),
        "(b) loop in memory": (lambda: memory_loop(data, MODELS), 1),
        "(c) `sweep`": (lambda: ours("auto"), 1),
        "(c) with plain `baddbmm`": (lambda: with_plain_products(lambda: ours("auto")), 1),
        '(c) with `engine="vmap"`': (lambda: ours("vmap"), 1),
    }
    bound = "(d) products alone"
    clock: dict[str, list[float]] = {name: [] for name in [*ways, bound]}
    processor: dict[str, list[float]] = {name: [] for name in [*ways, bound]}
    rates, loads = [], [load()]
    ours("auto")  # warm up
    for _ in range(repeats):
        for name, (work, factor) in ways.items():
            for seconds, value in zip((clock, processor), timed(work), strict=True):
                seconds[name].append(value * factor)
        value, rate = products_at_full_rate()
        clock[bound].append(value)
        processor[bound].append(value * torch.get_num_threads())
        rates.append(rate)
        loads.append(load())
    print(
        f"{MODELS} weightings × {ROWS:,} rows × {FEATURES} features, MLP {HIDDEN}, batch {BATCH}, {EPOCHS} epochs, "
        f"Adam; {torch.get_num_threads()} threads, torch {torch.__version__}, {repeats} repeats\n"
        f"load {loads[0]} before, then {', '.join(loads[1:])}; oneDNN products {_onednn_is_faster()}\n"
        f"(a) is {few} models scaled to {MODELS}; (d) is at {max(rates) / 1e9:.0f} GFLOP/s of `torch.mm`\n\n"
        "| | best s | median s | best processor s | as a multiple of (c): best, median |\n|---|---|---|---|---|"
    )
    ours_best, ours_median = min(clock["(c) `sweep`"]), statistics.median(clock["(c) `sweep`"])
    for name in clock:
        best, median = min(clock[name]), statistics.median(clock[name])
        print(
            f"| {name} | {best:.2f} | {median:.2f} | {min(processor[name]):.2f} | "
            f"{best / ours_best:.2f}, {median / ours_median:.2f} |"
        )
    print(
        f"\n(c) takes {ours_best / min(clock[bound]):.2f} (best) and "
        f"{ours_median / statistics.median(clock[bound]):.2f} (median) times (d)"
    )


def with_plain_products(work: Callable[[], object]) -> None:
    """Without oneDNN's kernels, as on a machine where they are no faster."""
    chosen, sweep_module._onednn_is_faster = sweep_module._onednn_is_faster, lambda: False
    try:
        work()
    finally:
        sweep_module._onednn_is_faster = chosen


def shop(epochs: int, batch_size: int) -> None:
    from mtl_helpers.data import prepare
    from mtl_helpers.data.shop import (
        SHOP_CATEGORICAL,
        SHOP_NUMERIC,
        SHOP_TASKS,
        load_shop,
        shop_frame,
        shop_splits,
    )

    tasks = [task for task in SHOP_TASKS if task.name in ("click", "purchase")]
    splits = prepare(shop_splits(shop_frame(load_shop())), tasks, SHOP_NUMERIC, SHOP_CATEGORICAL)
    start = load()
    result = None

    def work() -> None:
        nonlocal result
        result = sweep(
            lambda: SharedBottom(splits.schema, tasks),
            splits.train,
            splits.valid,
            weightings=simplex_grid(tasks, MODELS),
            seeds=(0, 1, 2),
            epochs=epochs,
            batch_size=batch_size,
            progress=False,
        )

    clock, processor = timed(work)
    print(
        f"{result!r}: {len(splits.train):,} + {len(splits.valid):,} rows, {len(splits.schema.categorical)} categorical "
        f"columns with {sum(splits.schema.categorical.values()):,} categories, {len(splits.schema.numeric)} numeric; "
        f"{epochs} epochs, batch {batch_size}: {clock:.1f} s ({processor:.1f} processor s), "
        f"{torch.get_num_threads()} threads, load {start} to {load()}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--few", type=int, default=3, help="models that (a) trains")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--shop", action="store_true")
    parser.add_argument("--epochs", type=int, default=5, help="of --shop")
    parser.add_argument("--batch-size", type=int, default=1024, help="of --shop")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.shop:
        shop(options.epochs, options.batch_size)
    else:
        compare(options.repeats, options.few)


if __name__ == "__main__":
    main()
