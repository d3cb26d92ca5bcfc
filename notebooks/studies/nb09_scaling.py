"""Does a larger sequence model pay, and does it pay more when it has more tasks?

    python notebooks/studies/nb09_scaling.py --device cuda               # on a large GPU about two minutes
    python notebooks/studies/nb09_scaling.py --rows 200000 --sizes 16    # on one core about two minutes

Writes ``09_scaling.csv``, a row for each size, set of tasks and task, as it comes; what is there is not run again, and
no run begins after ``--seconds``. **Primary contrast**, stated before the study was run: all four tasks minus click and
purchase, AUC of click at 256 wide, of a million rows; expected: plus. One shop, two initialisations a row at
most: this describes, it proves nothing.

- ``ShopConfig(n_users, n_impressions=rows, seed=200)`` with 111 impressions a user, as in the shipped shop; 70/10/20 by
  time. Counts and the last 50 clicks, no ids, as in ``nb09_sequence.py``, read by a transformer of one, two or four
  blocks, 16, 64 or 256 wide (six blocks, 512 wide), with the bottom as wide as the state is.
- AdamW, decay 0.3, 1,024 rows a step of 200,000, 4,096 of a million, at most 5 epochs, patience 2; the learning rate is
  3e-3 · √(16 / width), not tuned. Each task at its own best epoch of validation.
"""

from __future__ import annotations

import time
from functools import partial
from itertools import product

import pandas as pd
import torch
from nb09_sequence import BOTH, NEXT, Shop, floors, judged
from study import append, begin, command_line, trained

from mtl_helpers import data
from mtl_helpers.models import SequenceBottom, count_parameters

SIZES = {16: (1, 2), 256: (4, 8), 64: (2, 4), 512: (6, 8)}  # width: blocks, heads; the ends first
TASKS = {"all four": BOTH + NEXT, "click and purchase": BOTH, "click": BOTH[:1]}
COLUMNS = [
    "rows",
    "width",
    "parameters",
    "in_embeddings",
    "tasks",
    "task",
    "seed",
    "epoch",
    "seconds",
    "device",
    "value",
]


if __name__ == "__main__":
    parser = command_line(__doc__, rows=1_000_000, seconds=150, length=50, seeds=2)
    parser.add_argument("--sizes", type=int, nargs="*", default=tuple(SIZES))
    parser.add_argument("--device", default="cpu")
    chosen, began = parser.parse_args(), time.perf_counter()
    path = chosen.out / "09_scaling.csv"
    begin(path, "nb09_scaling.py", COLUMNS)
    table = pd.read_csv(path, comment="#")
    done = set(table[["rows", "width", "tasks", "seed"]].itertuples(index=False, name=None))
    write = partial(append, path, rows=chosen.rows)
    torch.set_float32_matmul_precision("high")
    shop = Shop(data.ShopConfig(chosen.rows // 111, n_impressions=chosen.rows, seed=200))
    events, parts = shop.with_events(chosen.length, BOTH + NEXT)
    parts = [part.to(chosen.device) for part in parts]
    print(f"the shop is ready after {time.perf_counter() - began:.0f} s", flush=True)
    if 16 in chosen.sizes and chosen.rows not in set(table.loc[table["tasks"].isna(), "rows"]):
        write([row | {"device": row["contestant"]} for row in floors(shop)])
    for seed, width, tasks in product(range(chosen.seeds), chosen.sizes, TASKS):
        start = time.perf_counter()
        if (chosen.rows, width, tasks, seed) in done or start - began > chosen.seconds:
            continue
        torch.manual_seed(seed)
        of, (depth, heads) = [part.select(TASKS[tasks]) for part in parts], SIZES[width]
        known = shop.counts.schema, of[0].tasks, events, shop.products
        hidden = (max(width, 64), 32)
        model = SequenceBottom(*known, width=width, depth=depth, heads=heads, hidden=hidden)
        batch = 1024 if chosen.rows < 500_000 else 4096
        found = trained(model, of, seed, 3e-3 * (16 / width) ** 0.5, 0.3, epochs=5, batch_size=batch)
        rows = [(task, epoch, judged(shop, task, said, of[2])) for task, epoch, said in found]
        row = {"width": width, "tasks": tasks, "seed": seed, "parameters": count_parameters(model)}
        row |= {
            "in_embeddings": sum(p.numel() for name, p in model.named_parameters() if "embedding" in name)
        }
        row |= {"device": torch.cuda.get_device_name() if chosen.device == "cuda" else chosen.device}
        row |= {"seconds": round(time.perf_counter() - start, 1)}
        write([row | {"task": task.name, "epoch": epoch, "value": value} for task, epoch, value in rows])
        print(f"{width} wide, {tasks}: {row['seconds']} s", flush=True)
