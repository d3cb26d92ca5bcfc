"""What training 33 task weightings at once saves, side by side in one run.

    python tests/benchmarks/sweep_speed.py [--repeats 5] [--threads 2]

Ways to train the same 33 models (64 → 128 → 64 → two tasks, AdamW, 20,000 rows, batches of 1,024, 5 epochs):

(a) one after the other, fed by ``DataLoader(TensorDataset)``, as most tutorials do;
(b) one after the other, batches indexed from tensors in memory;
(c) ``mtl_helpers.sweep``.

They take turns, so that a slow moment of the machine hits all of them. Seconds on the clock depend on what else runs;
the processor seconds beside them do less.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from timing import command_line, machine, ratios, show, spread, take_turns
from torch.utils.data import DataLoader, TensorDataset

from mtl_helpers.data import MultiTaskDataset, Schema, Task
from mtl_helpers.models import SharedBottom
from mtl_helpers.sweep import simplex_grid, sweep

ROWS, FEATURES, HIDDEN, BATCH, EPOCHS, MODELS = 20_000, 64, (128, 64), 1024, 5, 33
FEW = 3  # models that (a) trains, scaled up to all
TASKS = (Task("click"), Task("buy"))
SCHEMA = Schema(tuple(f"x{i}" for i in range(FEATURES)), {})
FIRST = f"(a) DataLoader loop, {FEW} models scaled to {MODELS}"
GRID = simplex_grid(TASKS, MODELS)


def make_data() -> MultiTaskDataset:
    generator = torch.Generator().manual_seed(0)
    numeric = torch.randn(ROWS, FEATURES, generator=generator)
    logits = numeric @ torch.randn(FEATURES, 2, generator=generator) / 8
    labels = (torch.rand(ROWS, 2, generator=generator) < logits.sigmoid()).float()
    named = {"click": labels[:, 0].clone(), "buy": labels[:, 1].clone()}
    return MultiTaskDataset(numeric, torch.zeros(ROWS, 0, dtype=torch.long), named, {}, TASKS)


def build() -> SharedBottom:
    return SharedBottom(SCHEMA, TASKS, 8, HIDDEN, ())


def one_by_one(batches: Callable[[], Iterable], grid: list[dict[str, float]]) -> None:
    """The usual loop, for each weighting."""
    for weights in grid:
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


def ours(data: MultiTaskDataset) -> None:
    sweep(build, data, weightings=GRID, epochs=EPOCHS, batch_size=BATCH, progress=False)


def ways(data: MultiTaskDataset) -> dict[str, Callable[[], None]]:
    tensors = (data.numeric, data.categorical, *data.labels.values())
    loader = DataLoader(TensorDataset(*tensors), batch_size=BATCH, shuffle=True)

    def in_memory() -> Iterable:
        return (tuple(tensor[rows] for tensor in tensors) for rows in torch.randperm(ROWS).split(BATCH))

    return {
        FIRST: lambda: one_by_one(loader.__iter__, GRID[:FEW]),
        "(b) loop in memory": lambda: one_by_one(in_memory, GRID),
        "(c) `sweep`": lambda: ours(data),
    }


def main() -> None:
    options = command_line(__doc__, repeats=5, threads=torch.get_num_threads())
    torch.set_num_threads(options.threads)
    print(
        f"{MODELS} weightings × {ROWS:,} rows × {FEATURES} features, MLP {HIDDEN}, batch {BATCH}, {EPOCHS} epochs; "
        f"{options.threads} threads, {options.repeats} repeats; {machine()}\n"
    )
    runs = take_turns(ways(make_data()), options.repeats)
    for seconds in (runs[FIRST].wall, runs[FIRST].cpu):
        seconds[:] = [MODELS / FEW * s for s in seconds]
    show(
        {
            "": name,
            "best s": f"{min(run.wall):.2f}",
            "median s": f"{statistics.median(run.wall):.2f}",
            "best processor s": f"{min(run.cpu):.2f}",
            "processor time ÷ (c), pair by pair": spread(ratios(run.cpu, runs["(c) `sweep`"].cpu)),
        }
        for name, run in runs.items()
    )


if __name__ == "__main__":
    main()
