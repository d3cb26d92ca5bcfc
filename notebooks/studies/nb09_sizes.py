"""Do tasks that share a sequence model harm each other more when it is small, and do their weights matter more?

    python notebooks/studies/nb09_sizes.py                               # on one core about 13 minutes
    python notebooks/studies/nb09_sizes.py --shops 100 --sizes 4 16      # after shop 0, which tunes

Writes ``09_sizes.csv``, a row for each shop, width, set of tasks, weight and task, as it comes; what is there is not
run again. *Transfer* is the AUC of click of the model that has all four tasks minus that of the model that has click
alone. **Primary contrast**, stated before the study was run: transfer at 4 wide minus transfer at 64 wide, five
shops; expected: minus, for four tasks have less room in a small state. Second: the AUC of purchase with its weight
times 8 minus times 1/8, at 4 wide minus at 64 wide; expected: plus. All else is exploratory.

- ``ShopConfig(540, n_impressions=60_000, seed=s)``: all is new in each; 70/10/20 by time. Counts and the last 20
  clicks, no ids, as in ``nb09_sequence.py``, read by a transformer of one block; state and bottom are 4, 16 or 64 wide.
- Tasks weigh 1 / (loss of the best constant); with click and purchase, that of purchase times 1/8, 1 and 8.
- AdamW, decay 1, 1,024 rows a step in whole sessions, at most 8 epochs, patience 2; each task at its own best epoch of
  validation. Each width with each set of tasks tries three learning rates on shop 0 and keeps that with the highest
  mean AUC of click and purchase (those that it has), at the usual weights; other weights use that rate untuned. AUCs
  are weighted by the truth.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from itertools import product

import torch
from nb09_sequence import BOTH, NEXT, Shop, floors, judged
from study import Table, command_line, trained

from mtl_helpers import data
from mtl_helpers.models import SequenceBottom, count_parameters
from mtl_helpers.weighting import constant_losses

TUNING, REPORTED = 0, tuple(range(100, 105))
RATES, SIZES, TILTS = (1e-3, 3e-3, 1e-2), (4, 16, 64), (1.0, 0.125, 8.0)
TASKS = {"click": BOTH[:1], "purchase": BOTH[1:], "click and purchase": BOTH, "all four": BOTH + NEXT}
KEY = ["width", "tasks", "tilt"]
COLUMNS = ["shop", *KEY, "lr", "task", "epoch", "parameters", "value"]


def rows_of(shop: Shop, seed: int, width: int, tasks: str, tilt: float, lr: float) -> Iterator[dict]:
    """Fit one model: a row for each task."""
    events, parts = shop.with_events(20, TASKS[tasks])
    torch.manual_seed(seed)
    known = shop.counts.schema, parts[0].tasks, events, shop.products
    model = SequenceBottom(*known, width=width, hidden=(2 * width, width))
    weights = {task: 1 / loss for task, loss in constant_losses(parts[0]).items()}
    if "purchase" in weights:
        weights["purchase"] *= tilt
    row = dict(zip([*KEY, "lr"], (width, tasks, tilt, lr), strict=True)) | {
        "parameters": count_parameters(model)
    }
    for task, epoch, said in trained(model, parts, seed, lr, 1.0, weights=weights):
        yield row | {"task": task.name, "epoch": epoch, "value": judged(shop, task, said, parts[2])}


def run(table: Table, seed: int, sizes: list[int]) -> None:
    """Write the rows of one shop that are not there yet: all learning rates where it tunes, else the chosen ones."""
    shop = cache(lambda: Shop(data.ShopConfig(540, n_impressions=60_000, seed=seed)))
    if 4 in sizes and not table.has(shop=seed, tasks="truth"):
        table.add(({"tasks": row.pop("contestant"), **row} for row in floors(shop())), shop=seed)
    for width, tasks in product(sizes, TASKS):
        tilts = TILTS if tasks == "click and purchase" and seed != TUNING else (1.0,)
        keys, chosen = [(width, tasks, tilt) for tilt in tilts], {}
        if seed != TUNING:
            chosen = dict.fromkeys(
                keys, table.best("value", shop=TUNING, width=width, tasks=tasks, task=BOTH)
            )
        for (lr,), own in table.todo(keys, product(RATES), chosen, shop=seed).items():
            for key in own:
                table.add(rows_of(shop(), seed, *key, lr), shop=seed)
    print(f"shop {seed}: {sizes}", flush=True)


if __name__ == "__main__":
    options = command_line(__doc__, shops=(TUNING, *REPORTED), sizes=SIZES).parse_args()
    table = Table(options.out / "09_sizes.csv", "nb09_sizes.py", COLUMNS, KEY, ["lr"])
    for seed in options.shops:
        run(table, seed, options.sizes)
