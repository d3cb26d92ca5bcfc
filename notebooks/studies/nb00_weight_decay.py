"""Which weight decay the course uses: validation losses of the shared bottom over a grid, on simulated shops.

    python notebooks/studies/nb00_weight_decay.py [--shops 3]

AdamW shrinks parameters by lr · decay a step. Shops are new ones, never the shipped log; only validation rows are
looked at: the sum of the tasks' losses, each over what its base rate loses. On three shops 0 to 1 are a tie, with and
without ids, at both rates (the sign differs between shops), and 3 or more is worse: the course uses 0.1. The rule was
read off that table, not fixed before. Writes notebooks/results/00_weight_decay.csv row by row, and resumes.
"""

from __future__ import annotations

import pandas as pd
import torch
from study import command_line, store

from mtl_helpers import data
from mtl_helpers.models import SharedBottom
from mtl_helpers.training import evaluate, fit
from mtl_helpers.weighting import constant_losses

DECAYS, RATES, FIRST_SHOP = (0.0, 0.01, 0.1, 1.0, 3.0, 10.0, 30.0), (1e-3, 3e-3), 201
KEYS = ["shop", "ids", "lr", "decay"]


def main() -> None:
    options = command_line(__doc__, shops=3).parse_args()
    target = options.out / "00_weight_decay.csv"
    found = pd.read_csv(target, comment="#") if target.exists() else pd.DataFrame(columns=KEYS)
    done = set(found[KEYS].itertuples(index=False, name=None))
    rows = found.to_dict("records")
    for seed in range(FIRST_SHOP, FIRST_SHOP + options.shops):
        shop = data.simulate(data.ShopConfig(seed=seed, n_users=720, n_impressions=80_000))
        frames = data.shop_splits(data.shop_frame(shop))
        for ids in (False, True):
            columns = [*data.SHOP_CATEGORICAL, *(data.SHOP_IDS if ids else ())]
            splits = data.prepare(frames, data.SHOP_TASKS, data.SHOP_NUMERIC, columns)
            for key in [(seed, ids, lr, decay) for lr in RATES for decay in DECAYS]:
                if key in done:
                    continue
                torch.manual_seed(seed)
                model = SharedBottom(splits.schema, splits.tasks, embedding_dim=4)
                settings = {"lr": key[2], "weight_decay": key[3], "seed": seed, "progress": False}
                history = fit(model, splits.train, splits.valid, epochs=20, patience=3, **settings)
                values, base = evaluate(model, splits.valid), constant_losses(splits.train)
                row = dict(zip(KEYS, key, strict=True)) | {"epoch": history.best_epoch}
                row["loss"] = round(sum(values[name]["loss"] / base[name] for name in values), 5)
                row |= {name: round(v.get("auc", v["accuracy"]), 4) for name, v in values.items()}
                rows.append(row)
                store(target, f"nb00_weight_decay.py --shops {options.shops}", pd.DataFrame(rows))
    means = pd.DataFrame(rows).groupby(KEYS[1:]).mean(numeric_only=True)
    print(means.drop(columns="shop").round(4))


if __name__ == "__main__":
    main()
