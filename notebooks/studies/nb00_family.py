"""The family of models that moves under notebook 00's first slider: task weights and seeds on the shipped shop.

    python notebooks/studies/nb00_family.py [--seeds 8]

A shared bottom on click and purchase, trained on all training rows for each of seven weightings and each seed;
validation rows alone are looked at. Notebook 00 trains the first seed anew and compares. Writes
notebooks/results/00_family.csv: the records of :func:`mtl_helpers.sweep.sweep`, with the tasks' weights and the epoch
whose parameters were kept.
"""

from __future__ import annotations

from study import command_line, store

from mtl_helpers import data
from mtl_helpers.models import SharedBottom
from mtl_helpers.sweep import sweep

WEIGHTS = (0.02, 0.15, 0.3, 0.5, 0.7, 0.85, 0.98)  # of the purchase; the click gets the rest
SETTINGS = {"epochs": 6, "lr": 3e-3, "weight_decay": 0.1, "keep": "best"}


if __name__ == "__main__":
    options = command_line(__doc__, seeds=8).parse_args()
    tasks, frames = data.SHOP_TASKS[:2], data.shop_splits(data.shop_frame(data.load_shop()))
    shop = data.prepare(frames, tasks, data.SHOP_NUMERIC, data.SHOP_CATEGORICAL)
    family = sweep(
        lambda: SharedBottom(shop.schema, tasks, embedding_dim=4), shop.train, shop.valid,
        weightings=[{"click": 1 - w, "purchase": w} for w in WEIGHTS], seeds=range(options.seeds), **SETTINGS,
    )  # fmt: skip
    records = family.records.merge(family.runs.rename(columns={"epoch": "kept"}))
    records = records.merge(family.weightings.add_prefix("weight_"), left_on="weighting", right_index=True)
    command = f"nb00_family.py --seeds {options.seeds}"
    store(options.out / "00_family.csv", command, records, float_format="%.5g")
    print(family.final("valid").groupby(["task", "metric", "weighting"])["value"].mean().unstack().round(4))
    print(family.runs.groupby("weighting")["epoch"].mean())
