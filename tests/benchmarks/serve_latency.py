"""How long one user waits: 800 items, three tasks, one request at a time on the CPU.

    python tests/benchmarks/serve_latency.py [--requests 2000] [--items 800] [--threads 1]

A request puts the user's columns beside the encoded catalogue, runs one forward pass, fuses the tasks' predictions and
picks the ten best. Its parts are timed by themselves beside the whole. Prints a markdown table.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from mtl_helpers.data import FeatureEncoder, Task
from mtl_helpers.models import Fusion, SharedBottom
from mtl_helpers.models.saving import Recommender, load_model, save_model

TASKS = (Task("click"), Task("purchase"), Task("next_category", "multiclass", 8))
USER_COLUMNS, ITEM_COLUMNS = ("age", "signup_days", "user_past_ctr"), ("log_price", "rating", "launched_days")


def shop(n_items: int, n_users: int = 4000) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Items and users with as many columns as the simulated shop's."""
    rng = np.random.default_rng(0)
    items = pd.DataFrame(
        {
            "item_id": np.arange(n_items),
            "price": np.exp(rng.normal(3, 0.8, n_items)).round(2),
            "category": rng.integers(0, 8, n_items),
            "brand": rng.integers(0, 40, n_items),
        }
        | {name: rng.normal(size=n_items) for name in ITEM_COLUMNS}
    )
    users = pd.DataFrame(
        {
            "user_id": np.arange(n_users),
            "region": rng.integers(0, 6, n_users),
            "loyalty_tier": rng.integers(0, 4, n_users),
        }
        | {name: rng.normal(size=n_users) for name in USER_COLUMNS}
    )
    return items, users


def recommender(n_items: int, folder: Path) -> Recommender:
    """An untrained model, saved and loaded: waiting does not depend on what was learned."""
    items, users = shop(n_items)
    n = max(len(items), len(users))
    frame = pd.concat([items.iloc[np.arange(n) % len(items)].reset_index(drop=True), users], axis=1)
    frame["hour"], frame["position"] = np.arange(n) % 24, 1 + np.arange(n) % 5
    categorical = ["user_id", "item_id", "category", "brand", "region", "loyalty_tier", "hour", "position"]
    encoder = FeatureEncoder([*USER_COLUMNS, *ITEM_COLUMNS], categorical).fit(frame)
    torch.manual_seed(0)
    save_model(folder, SharedBottom(encoder.schema, TASKS), encoder)
    model, encoder = load_model(folder)
    return Recommender(
        model,
        encoder,
        items,
        users,
        fusion=Fusion({"click": 1.0, "purchase": 1.0, "next_category": 0.5, "price": 0.5}),
        context={"hour": 20, "position": 1},
        classes={"next_category": items["category"]},
    )


def times(work: Callable[[int], object], requests: int) -> tuple[float, float]:
    """Median and 99th percentile, ms."""
    for user in range(20):
        work(user)
    taken = []
    for user in range(requests):
        start = time.perf_counter()
        work(user)
        taken.append(1000 * (time.perf_counter() - start))
    return float(np.median(taken)), float(np.quantile(taken, 0.99))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--items", type=int, default=800)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        served = recommender(args.items, Path(folder))
    numeric, categorical = served._numeric, served._categorical

    def forward(user: int) -> None:
        with torch.inference_mode():
            served.model(numeric, categorical)

    rows = {
        "forward pass alone": forward,
        "signals and fused score": lambda user: served.signals(user % 4000),
        "top 10, as a table": lambda user: served.recommend(user % 4000),
        "top 10 with diversity 0.3": lambda user: served.recommend(user % 4000, diversity=0.3),
    }
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, {args.threads} thread(s), load {os.getloadavg()[0]:.1f}, "
        f"Python {platform.python_version()}, torch {torch.__version__}; one user × {args.items} items × "
        f"{len(TASKS)} tasks, {args.requests} requests\n"
    )
    print("| one request | median ms | p99 ms |\n|---|---|---|")
    for name, work in rows.items():
        median, p99 = times(work, args.requests)
        print(f"| {name} | {median:.2f} | {p99:.2f} |", flush=True)
    print(f"\nload at the end {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
