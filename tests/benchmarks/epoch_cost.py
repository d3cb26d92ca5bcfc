"""What `fit` costs over a training loop written by hand, on the same tensors, as a ratio in one run.

    python tests/benchmarks/epoch_cost.py [--rows 80000] [--repeats 9]

Both train the shared-bottom model with three tasks (one of them half labelled) by Adam. Their epochs take turns, so
that a slow moment of the machine hits both; the median of the paired ratios is what counts.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from mtl_helpers.data import MultiTaskDataset, Schema, Task
from mtl_helpers.models import SharedBottom
from mtl_helpers.training import fit

TASKS = (Task("click"), Task("purchase"), Task("category", "multiclass", 8))
SCHEMA = Schema(
    tuple(f"x{i}" for i in range(8)), {"user": 4000, "item": 800, **{f"c{i}": 12 for i in range(8)}}
)


def make_data(rows: int) -> MultiTaskDataset:
    generator = torch.Generator().manual_seed(0)
    sizes = list(SCHEMA.categorical.values())
    categorical = torch.stack([torch.randint(0, size, (rows,), generator=generator) for size in sizes], dim=1)
    labels = {
        "click": (torch.rand(rows, generator=generator) < 0.06).float(),
        "purchase": (torch.rand(rows, generator=generator) < 0.015).float(),
        "category": torch.randint(0, 8, (rows,), generator=generator),
    }
    masks = {"category": torch.rand(rows, generator=generator) < 0.5}
    return MultiTaskDataset(torch.randn(rows, 8, generator=generator), categorical, labels, masks, TASKS)


def epoch_by_hand(model: SharedBottom, data: MultiTaskDataset, batch_size: int) -> float:
    """One epoch as a reader would write it for exactly these three tasks."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    click, purchase, category = (data.labels[task.name] for task in TASKS)
    mask, total = data.masks["category"], 0.0
    order = torch.randperm(len(data))
    for start in range(0, len(data), batch_size):
        rows = order[start : start + batch_size]
        out = model(data.numeric[rows], data.categorical[rows])
        known = mask[rows].float()
        rare = F.cross_entropy(out["category"], category[rows], reduction="none")
        loss = (
            F.binary_cross_entropy_with_logits(out["click"], click[rows])
            + F.binary_cross_entropy_with_logits(out["purchase"], purchase[rows])
            + (rare * known).sum() / known.sum().clamp(min=1)
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.item()
    return total


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=80_000)
    parser.add_argument("--batch-size", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    data = make_data(options.rows)
    torch.manual_seed(0)
    by_hand, fitted = SharedBottom(SCHEMA, TASKS), SharedBottom(SCHEMA, TASKS)
    hand_seconds, fit_seconds = [], []
    for repeat in range(options.repeats + 1):
        start = time.perf_counter()
        epoch_by_hand(by_hand, data, options.batch_size)
        middle = time.perf_counter()
        fit(fitted, data, epochs=1, batch_size=options.batch_size, progress=False)
        end = time.perf_counter()
        if repeat:  # the first pair warms up
            hand_seconds.append(middle - start)
            fit_seconds.append(end - middle)
    ratios = sorted(f / h for f, h in zip(fit_seconds, hand_seconds, strict=True))
    load = f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"
    print(
        f"{options.rows:,} rows, batch {options.batch_size}, {torch.get_num_threads()} threads, load {load}"
    )
    print("| loop | median s an epoch |\n|---|---|")
    print(f"| by hand | {statistics.median(hand_seconds):.3f} |")
    print(f"| `fit` | {statistics.median(fit_seconds):.3f} |")
    print(
        f"\nratio fit / by hand: median {statistics.median(ratios):.3f} (from {ratios[0]:.3f} to {ratios[-1]:.3f})"
    )


if __name__ == "__main__":
    main()
