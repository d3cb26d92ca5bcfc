"""More rows than memory: what a pass over parquet files costs, and whether their order is random enough.

    python notebooks/studies/nb10_stream.py           # about ten minutes on one core; needs Linux, pyarrow and duckdb
    python notebooks/studies/nb10_stream.py --shops 2 --most 1000000

Writes ``10_stream.csv`` (cost) and ``10_order.csv`` (order).

Cost: the shop's log, 200,000 rows with all features, is copied to fifty files in row groups of 10,000: 10⁷ rows. This
measures memory and time, not learning. Each line is a process of its own that trains a shared bottom for one pass
(batches of 8,192), or counts each product's clicks, in one thread; it tells its peak memory as the system knows it (a
third of a GB is torch and pandas themselves) and the seconds that its processor computed, which other programs do not
change. "stream": buffers of 16 row groups. "in memory": all files read by pandas, then one dataset.

Order: eight new shops of 48,000 rows; the first 70 % train. Their files lie by day, or by category within a day's order
as partitioned stores lay them. A shared bottom is trained for three passes in file order, in file order with a
shuffled buffer, with row groups drawn from everywhere into it, and fully shuffled. **Primary contrast**, stated
before the study was run: row groups from everywhere minus full shuffle, files by category, AUC of click by the truth;
expected: a tie. Everything else is exploratory. The learning rate is that of the page (3e-3, decay 1), not tuned.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from itertools import product
from pathlib import Path

import pandas as pd
import torch
from study import command_line, store

from mtl_helpers import data
from mtl_helpers.metrics import expected_auc
from mtl_helpers.models import SharedBottom
from mtl_helpers.production.streaming import buffers
from mtl_helpers.training import predict, training_steps
from mtl_helpers.weighting import constant_losses

COLUMNS = [*data.SHOP_NUMERIC, *data.SHOP_CATEGORICAL, *(task.name for task in data.SHOP_TASKS)]
KEYS = ["item_id", "timestamp"]
KINDS = ("stream", "in memory", "count, duckdb", "count, pandas")
ORDERS = ("file order", "buffer", "row groups from everywhere", "full shuffle")
COUNT = "SELECT item_id, count(*) AS views, sum(click) AS clicks FROM read_parquet({}) GROUP BY item_id"


def trained(parts, schema, weights: dict, passes: int, batch_size: int = 1024) -> tuple[SharedBottom, int]:
    """A shared bottom after some passes; ``parts(pass, generator)`` gives the datasets of one. And how many rows."""
    torch.manual_seed(0)
    model, generator = SharedBottom(schema, data.SHOP_TASKS), torch.Generator().manual_seed(0)
    optimizer, rows = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=1.0), 0
    for _ in range(passes):
        for part in parts(generator):
            how = {"weights": weights, "generator": generator, "batch_size": batch_size}
            rows += sum(len(step.batch) for step in training_steps(model, part, optimizer, **how))
    return model, rows


def one_cost(kind: str, folder: Path, n_files: int) -> None:
    """Run in a process of its own; one line of JSON."""
    torch.set_num_threads(1)
    files = sorted(folder.glob("*.parquet"))[:n_files]
    weights = dict.fromkeys((task.name for task in data.SHOP_TASKS), 1.0)
    if not kind.startswith("count"):
        encoder = data.FeatureEncoder(data.SHOP_NUMERIC, data.SHOP_CATEGORICAL)
        schema = encoder.fit(pd.read_parquet(files[0], columns=COLUMNS).iloc[:100_000]).schema
    began = time.process_time()
    if kind == "stream":
        rows = trained(lambda g: buffers(files, encoder, data.SHOP_TASKS, 16, g), schema, weights, 1, 8192)[1]
    elif kind == "in memory":
        frame = pd.concat([pd.read_parquet(file, columns=COLUMNS) for file in files], ignore_index=True)
        whole = data.MultiTaskDataset.from_frame(frame, encoder, data.SHOP_TASKS)
        rows = trained(lambda g: [whole], schema, weights, 1, 8192)[1]
    elif kind == "count, duckdb":
        import duckdb

        with duckdb.connect(config={"memory_limit": "500MB", "threads": 1}) as engine:
            rows = int(engine.sql(COUNT.format([str(file) for file in files])).df()["views"].sum())
    else:
        frame = pd.concat([pd.read_parquet(file, columns=["item_id", "click"]) for file in files])
        rows = int(frame.groupby("item_id")["click"].agg(["size", "sum"])["size"].sum())
    seconds = time.process_time() - began
    # Linux's ru_maxrss would begin with that of the process that started this one
    peak = re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text(encoding="ascii"))
    print(json.dumps({"rows": rows, "seconds": seconds, "peak_mb": int(peak[1]) / 1024}))


def costs(folder: Path, most: int) -> pd.DataFrame:
    frame = data.shop_frame(data.load_shop())[[*COLUMNS, *KEYS]]
    n_files = [n for n in (1, 5, 50) if n * len(frame) <= most]
    frame.to_parquet(folder / "00.parquet", row_group_size=10_000)
    for i in range(1, n_files[-1]):
        shutil.copy(folder / "00.parquet", folder / f"{i:02}.parquet")
    found = []
    for kind, n in product(KINDS, n_files):
        if kind == "in memory" and n > 5:  # it would not fit
            continue
        command = [sys.executable, __file__, "--one", kind, str(folder), str(n)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found.append({"kind": kind, "cores": 1, **json.loads(done.stdout.splitlines()[-1])})
        print(found[-1], flush=True)
    return pd.DataFrame(found)


def ordered(files: list[Path], encoder: data.FeatureEncoder, order: str, whole: data.MultiTaskDataset):
    """A function that gives the datasets of one pass. Four row groups of 1,000 rows are a buffer."""

    def parts(generator: torch.Generator):
        if order == "full shuffle":
            return [whole]
        if order == "row groups from everywhere":
            return buffers(files, encoder, data.SHOP_TASKS, 4, generator)
        own = buffers(files, encoder, data.SHOP_TASKS, 4)
        return own if order == "buffer" else (Unshuffled(**vars(part)) for part in own)

    return parts


class Unshuffled(data.MultiTaskDataset):
    def batches(self, batch_size: int, shuffle: bool = True, generator: torch.Generator | None = None):
        return super().batches(batch_size, shuffle=False)


def orders(folder: Path, seed: int) -> list[dict]:
    """AUC of each way to lay and to read one shop's rows."""
    shop = data.simulate(data.ShopConfig(432, n_impressions=48_000, seed=seed))
    frame = data.shop_frame(shop).merge(shop.truth, on="impression_id")
    parts = data.split_by_time(frame)
    train = data.mask_future_labels(parts["train"], parts["valid"]["timestamp"].min())
    splits = data.prepare(parts | {"train": train}, data.SHOP_TASKS, data.SHOP_NUMERIC, data.SHOP_CATEGORICAL)
    weights, found = {t: 1 / loss for t, loss in constant_losses(splits.train).items()}, []
    for layout, order in product(("by day", "by category"), ORDERS):
        laid = train if layout == "by day" else train.sort_values("category", kind="stable")
        file = folder / f"{layout}.parquet"
        laid.to_parquet(file, row_group_size=1000)
        whole = data.MultiTaskDataset.from_frame(laid, splits.encoder, data.SHOP_TASKS)
        model, _ = trained(ordered([file], splits.encoder, order, whole), splits.schema, weights, 3)
        said = predict(model, splits.test)
        row = {"shop": seed, "layout": layout, "order": order}
        for task in ("click", "purchase"):
            row[task] = expected_auc(parts["test"][f"p_{task}"].to_numpy(), said[task].numpy())
        found.append(row)
    print(f"shop {seed}: done", flush=True)
    return found


if __name__ == "__main__":
    parser = command_line(__doc__, shops=8, most=10_000_000)
    parser.add_argument("--one", nargs=3, help="what, folder and number of files: one measurement")
    parser.add_argument("--only", choices=("cost", "order"))
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    if chosen.one:
        one_cost(chosen.one[0], Path(chosen.one[1]), int(chosen.one[2]))
        sys.exit()
    with tempfile.TemporaryDirectory() as name:
        if chosen.only != "cost":
            rows = [row for seed in range(300, 300 + chosen.shops) for row in orders(Path(name), seed)]
            store(chosen.out / "10_order.csv", "nb10_stream.py", pd.DataFrame(rows).round(5))
        if chosen.only != "order":
            store(chosen.out / "10_stream.csv", "nb10_stream.py", costs(Path(name), chosen.most).round(3))
