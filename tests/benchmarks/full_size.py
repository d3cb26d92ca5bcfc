"""Seconds per epoch and peak memory at full size, estimated with rows we have.

    python tests/benchmarks/full_size.py log      # KuaiRand's rows repeated to 1.4 million, two epochs of two models
    python tests/benchmarks/full_size.py table    # a table of a million rows, 15 columns of all kinds, to tensors

``log`` is an *estimate*: it repeats the rows of ``MTL_KUAIRAND`` up to the number the publisher states for the full
log (1,436,609), so it has as many rows as the full log but only the users and videos at hand. Peak memory is
what the operating system counted for the whole process, Python and torch included; each figure needs its own run.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from mtl_helpers.data import prepare
from mtl_helpers.data.kuairand import (
    KUAIRAND_PLAY_TASK,
    KUAIRAND_TASKS,
    KUAIRAND_WIDE_CATEGORICAL,
    KUAIRAND_WIDE_NUMERIC,
    load_kuairand,
)
from mtl_helpers.data.tabular import TabularLog
from mtl_helpers.models import PLE, SharedBottom
from mtl_helpers.training import fit

FULL_ROWS = 1_436_609


def peak() -> str:
    kilo = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "darwin" else 1)
    return f"peak memory {kilo / 2**20:.2f} GiB"


def log() -> None:
    frame = load_kuairand(progress=False)
    times = -(-FULL_ROWS // len(frame))
    full = pd.concat([frame] * times, ignore_index=True).head(FULL_ROWS)
    few = frame.head(1000)
    start = time.perf_counter()
    splits = prepare(
        {"train": full, "valid": few, "test": few},
        (*KUAIRAND_TASKS, KUAIRAND_PLAY_TASK),
        KUAIRAND_WIDE_NUMERIC,
        KUAIRAND_WIDE_CATEGORICAL,
        min_count=2,
    )
    print(
        f"{len(splits.train):,} rows ({times} times {len(frame):,}); encoded in {time.perf_counter() - start:.1f} s"
    )
    for kind in (SharedBottom, PLE):
        seconds = []
        for _ in range(2):
            model, start = kind(splits.schema, splits.tasks), time.perf_counter()
            fit(model, splits.train, epochs=1, batch_size=1024, progress=False)
            seconds.append(time.perf_counter() - start)
        print(
            f"{kind.__name__}: {min(seconds):.1f} s an epoch (best of 2: {', '.join(f'{s:.1f}' for s in seconds)})"
        )
    print(f"{torch.get_num_threads()} threads, {peak()}; an estimate, since rows were repeated")


def table(rows: int = 1_000_000) -> None:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "user_id": rng.integers(0, 200_000, rows),
            "item_id": [f"item-{v}" for v in rng.zipf(1.3, rows).clip(max=50_000)],
            "shown_at": pd.Timestamp("2024-01-01")
            + pd.to_timedelta(np.sort(rng.integers(0, 10**7, rows)), unit="s"),
            "signup": pd.Series(pd.date_range("2020-01-01", periods=1000).strftime("%Y-%m-%d"))
            .sample(rows, replace=True, random_state=0)
            .to_numpy(),
            "city": [f"city {v}" for v in rng.zipf(1.5, rows).clip(max=5000)],
            "member": pd.array(
                np.where(rng.random(rows) < 0.1, None, rng.random(rows) < 0.5), dtype="boolean"
            ),
            "price": rng.lognormal(3, 1, rows),
            "views": rng.pareto(1, rows).round(),
            "mixed": rng.choice(np.array([1, "1", 2.5, None, "x"], dtype=object), rows),
            "empty": np.full(rows, np.nan),
            "number_text": [f"{v:.2f}" for v in rng.normal(size=rows)],
            "device": pd.Categorical(rng.choice(["phone", "tablet", "desk"], rows)),
            "click": (rng.random(rows) < 0.1).astype(int),
            "rating": np.where(rng.random(rows) < 0.9, np.nan, rng.normal(3, 1, rows)),
        }
    )
    print(
        f"the table alone: {frame.memory_usage(deep=True).sum() / 2**30:.2f} GiB in pandas; so far {peak()}"
    )
    start = time.perf_counter()
    made = TabularLog.from_frame(
        frame, labels=["click", "rating"], user="user_id", item="item_id", time="shown_at"
    )
    read = time.perf_counter() - start
    splits = made.split()
    split = time.perf_counter() - start - read
    print(f"{rows:,} rows: roles in {read:.0f} s, split and tensors in {split:.0f} s")
    start = time.perf_counter()
    fit(SharedBottom(splits.schema, splits.tasks), splits.train, splits.valid, epochs=1, progress=False)
    print(f"one epoch and validation: {time.perf_counter() - start:.0f} s; {peak()}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("log", "table"))
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    {"log": log, "table": table}[options.what]()


if __name__ == "__main__":
    main()
