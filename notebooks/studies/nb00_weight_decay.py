"""Which weight decay the course uses: validation losses of the shared bottom over a grid, on simulated shops.

    python notebooks/studies/nb00_weight_decay.py [--shops 3]

AdamW shrinks parameters by lr · decay a step. Shops are new ones, never the shipped log; only validation rows are
looked at: the sum of the tasks' losses, each over what its base rate loses. On three shops 0 to 1 are a tie, with and
without ids, at both rates (the sign differs between shops), and 3 or more is worse: the course uses 0.1. The rule was
read off that table, not fixed before. Writes notebooks/results/00_weight_decay.csv row by row, and resumes.
"""

from __future__ import annotations

from functools import cache
from itertools import product

import torch
from study import Table, command_line

from mtl_helpers import data
from mtl_helpers.models import SharedBottom
from mtl_helpers.training import evaluate, fit
from mtl_helpers.weighting import constant_losses

DECAYS, RATES, FIRST_SHOP = (0.0, 0.01, 0.1, 1.0, 3.0, 10.0, 30.0), (1e-3, 3e-3), 201
KEYS = ["shop", "ids", "lr", "decay"]
COLUMNS = [*KEYS, "epoch", "loss", *(task.name for task in data.SHOP_TASKS)]


@cache
def splits_of(seed: int, ids: bool) -> data.Splits:
    shop = data.simulate(data.ShopConfig(seed=seed, n_users=720, n_impressions=80_000))
    columns = [*data.SHOP_CATEGORICAL, *(data.SHOP_IDS if ids else ())]
    return data.prepare(data.shop_splits(data.shop_frame(shop)), data.SHOP_TASKS, data.SHOP_NUMERIC, columns)


def row_of(seed: int, ids: bool, lr: float, decay: float) -> dict:
    """Fit one model: its best epoch, the sum of its losses, and each task's AUC or accuracy."""
    splits = splits_of(seed, ids)
    torch.manual_seed(seed)
    model = SharedBottom(splits.schema, splits.tasks, embedding_dim=4)
    settings = {"lr": lr, "weight_decay": decay, "seed": seed, "progress": False}
    history = fit(model, splits.train, splits.valid, epochs=20, patience=3, **settings)
    values, base = evaluate(model, splits.valid), constant_losses(splits.train)
    loss = round(sum(values[name]["loss"] / base[name] for name in values), 5)
    found = {name: round(v.get("auc", v["accuracy"]), 4) for name, v in values.items()}
    return {"epoch": history.best_epoch, "loss": loss} | found


if __name__ == "__main__":
    options = command_line(__doc__, shops=3).parse_args()
    command = f"nb00_weight_decay.py --shops {options.shops}"
    table = Table(options.out / "00_weight_decay.csv", command, COLUMNS, KEYS)
    for key in product(range(FIRST_SHOP, FIRST_SHOP + options.shops), (False, True), RATES, DECAYS):
        if key not in table.done():
            table.add([dict(zip(KEYS, key, strict=True)) | row_of(*key)])
    print(table.rows().groupby(KEYS[1:]).mean().drop(columns="shop").round(4))
