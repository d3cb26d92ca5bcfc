"""What training 33 task weightings at once saves, side by side in one run.

    python tests/benchmarks/sweep_speed.py [--repeats 5] [--threads 2]

Ways to train the same 33 models (64 → 128 → 64 → two tasks, AdamW, 20,000 rows, batches of 1,024, 5 epochs):

(a) one after the other, fed by ``DataLoader(TensorDataset)``, as most tutorials do;
(b) one after the other, batches indexed from tensors in memory;
(c) ``mtl_helpers.sweep``, stacked layers;
(d) ``mtl_helpers.sweep`` as it trains any other model, by ``torch.func.vmap``.

They take turns, so that a slow moment of the machine hits all of them. Seconds on the clock depend on what else runs;
the processor seconds beside them do less.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from mtl_helpers import sweep as sweep_module
from mtl_helpers.data import MultiTaskDataset, Schema, Task
from mtl_helpers.models import SharedBottom
from mtl_helpers.sweep import simplex_grid, sweep

ROWS, FEATURES, HIDDEN, BATCH, EPOCHS, MODELS = 20_000, 64, (128, 64), 1024, 5, 33
FEW = 3  # models that (a) trains, scaled up to all
TASKS = (Task("click"), Task("buy"))
SCHEMA = Schema(tuple(f"x{i}" for i in range(FEATURES)), {})
GRID = simplex_grid(TASKS, MODELS)


def make_data() -> MultiTaskDataset:
    generator = torch.Generator().manual_seed(0)
    numeric = torch.randn(ROWS, FEATURES, generator=generator)
    logits = numeric @ torch.randn(FEATURES, 2, generator=generator) / 8
    labels = (torch.rand(ROWS, 2, generator=generator) < logits.sigmoid()).float()
    named = {"click": labels[:, 0].clone(), "buy": labels[:, 1].clone()}
    return MultiTaskDataset(numeric, torch.zeros(ROWS, 0, dtype=torch.long), named, {}, TASKS)


def build() -> SharedBottom:
    return SharedBottom(SCHEMA, TASKS, hidden=HIDDEN, tower=())


def one_model(batches: Callable, weights: dict[str, float]) -> None:
    """The usual loop."""
    torch.manual_seed(0)
    model = build()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
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


def loader_loop(data: MultiTaskDataset) -> None:
    tensors = TensorDataset(data.numeric, data.categorical, *data.labels.values())
    loader = DataLoader(tensors, batch_size=BATCH, shuffle=True)
    for weights in GRID[:FEW]:
        one_model(lambda: loader, weights)


def memory_loop(data: MultiTaskDataset) -> None:
    click, buy = data.labels.values()

    def batches():
        for rows in torch.randperm(ROWS).split(BATCH):
            yield data.numeric[rows], data.categorical[rows], click[rows], buy[rows]

    for weights in GRID:
        one_model(batches, weights)


def ours(data: MultiTaskDataset) -> None:
    sweep(build, data, weightings=GRID, epochs=EPOCHS, batch_size=BATCH, progress=False)


def by_vmap(data: MultiTaskDataset) -> None:
    with patch.object(sweep_module, "_together", lambda model, batch: sweep_module._Together(model, False)):
        ours(data)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    data = make_data()
    ways = {
        f"(a) DataLoader loop, {FEW} models scaled to {MODELS}": (loader_loop, MODELS / FEW),
        "(b) loop in memory": (memory_loop, 1),
        "(c) `sweep`": (ours, 1),
        "(d) `sweep` by vmap": (by_vmap, 1),
    }
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    ours(data)  # warm up
    for _ in range(options.repeats):
        for name, (work, factor) in ways.items():
            clock, processor = time.perf_counter(), time.process_time()
            work(data)
            spent = (time.perf_counter() - clock, time.process_time() - processor)
            seconds[name].append((factor * spent[0], factor * spent[1]))
    print(
        f"{MODELS} weightings × {ROWS:,} rows × {FEATURES} features, MLP {HIDDEN}, batch {BATCH}, {EPOCHS} epochs; "
        f"{options.threads} threads, torch {torch.__version__}, {options.repeats} repeats\n\n"
        "| | best s | median s | best processor s | processor time as a multiple of (c), median of pairs |\n"
        "|---|---|---|---|---|"
    )
    for name, spent in seconds.items():
        clock, processor = zip(*spent, strict=True)
        pairs = [mine / base for mine, (_, base) in zip(processor, seconds["(c) `sweep`"], strict=True)]
        print(
            f"| {name} | {min(clock):.2f} | {statistics.median(clock):.2f} | {min(processor):.2f} | "
            f"{statistics.median(pairs):.2f} |"
        )


if __name__ == "__main__":
    main()
