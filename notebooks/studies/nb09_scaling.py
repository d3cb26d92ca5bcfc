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
from itertools import product

import torch
from nb09_sequence import BOTH, NEXT, Shop, floors, judged
from study import Table, command_line, trained

from mtl_helpers import data
from mtl_helpers.models import SequenceBottom, count_parameters

SIZES = {16: (1, 2), 256: (4, 8), 64: (2, 4), 512: (6, 8)}  # width: blocks, heads; the ends first
TASKS = {"all four": BOTH + NEXT, "click and purchase": BOTH, "click": BOTH[:1]}
KEY = ["seed", "width", "tasks"]
COLUMNS = "rows width parameters in_embeddings tasks task seed epoch seconds device value".split()


def rows_of(shop: Shop, parts: list, events: torch.Tensor, rows: int, key: tuple) -> list[dict]:
    """Fit one model: a row for each task."""
    start, (seed, width, tasks) = time.perf_counter(), key
    torch.manual_seed(seed)
    parts, (depth, heads) = [part.select(TASKS[tasks]) for part in parts], SIZES[width]
    known, device = (shop.counts.schema, parts[0].tasks, events, shop.products), parts[0].device
    model = SequenceBottom(*known, width=width, depth=depth, heads=heads, hidden=(max(width, 64), 32))
    how = {"epochs": 5, "batch_size": 1024 if rows < 500_000 else 4096}
    found = [
        {"task": task.name, "epoch": epoch, "value": judged(shop, task, said, parts[2])}
        for task, epoch, said in trained(model, parts, seed, 3e-3 * (16 / width) ** 0.5, 0.3, **how)
    ]
    same = dict(zip(KEY, key, strict=True)) | {"parameters": count_parameters(model)}
    same["in_embeddings"] = sum(p.numel() for name, p in model.named_parameters() if "embedding" in name)
    same["device"] = torch.cuda.get_device_name() if device.type == "cuda" else device.type
    same["seconds"] = round(time.perf_counter() - start, 1)
    return [row | same for row in found]


if __name__ == "__main__":
    parser = command_line(__doc__, rows=1_000_000, seconds=150, length=50, seeds=2, sizes=tuple(SIZES))
    parser.add_argument("--device", default="cpu")
    options, began = parser.parse_args(), time.perf_counter()
    table = Table(options.out / "09_scaling.csv", "nb09_scaling.py", COLUMNS, KEY)
    keys = product(range(options.seeds), options.sizes, TASKS)
    todo = [key for key in keys if key not in table.done(rows=options.rows)]
    bounds = 16 in options.sizes and not table.has(rows=options.rows, device="truth")
    if todo or bounds:
        torch.set_float32_matmul_precision("high")
        shop = Shop(data.ShopConfig(options.rows // 111, n_impressions=options.rows, seed=200))
        events, parts = shop.with_events(options.length, BOTH + NEXT)
        parts = [part.to(options.device) for part in parts]
        print(f"the shop is ready after {time.perf_counter() - began:.0f} s", flush=True)
    if bounds:
        table.add((row | {"device": row["contestant"]} for row in floors(shop)), rows=options.rows)
    for key in todo:
        if time.perf_counter() - began <= options.seconds:
            table.add(rows_of(shop, parts, events, options.rows, key), rows=options.rows)
            print(key, flush=True)
