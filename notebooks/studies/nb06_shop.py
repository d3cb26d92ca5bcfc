"""All sharing architectures on the shop, with as many parameters and as much tuning for each.

    python notebooks/studies/nb06_shop.py [--seeds 5] [--out notebooks/results]

Writes ``06_shop.csv``: a row per architecture, seed, task and metric, on test rows; notebook 06 reads it.

A seed draws a whole new shop. Every architecture is trained with the same three learning rates and keeps the one with
the lowest validation loss (sum over the tasks, each divided by what the best constant loses); the test rows are scored
once, with that one. Optimiser, batches, epochs at most and patience are the same. Widths are scaled so that all have as
many parameters as a shared bottom of 128-64; single-task stands for three networks of 64-32, each with an embedding
table of its own, and has more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pandas as pd
import torch
from study import SideBySide, command_line, store
from torch import nn

from mtl_helpers.data import (
    SHOP_CATEGORICAL,
    SHOP_NUMERIC,
    SHOP_TASKS,
    ShopConfig,
    Splits,
    prepare,
    shop_frame,
    shop_splits,
    simulate,
)
from mtl_helpers.models import (
    AITM,
    ESMM,
    PLE,
    CrossStitch,
    MMoE,
    SharedBottom,
    SingleTask,
    count_parameters,
    match_parameters,
)
from mtl_helpers.training import evaluate, fit
from mtl_helpers.weighting import constant_losses

RATES = (3e-4, 1e-3, 3e-3)
TRAINING = {"epochs": 30, "patience": 3, "batch_size": 1024, "weight_decay": 0.1, "progress": False}
FUNNEL = ("click", "purchase")
KINDS = {
    "shared-bottom": SharedBottom,
    "cross-stitch": CrossStitch,
    "MMoE": (MMoE, {"n_experts": 4}),
    "CGC": (PLE, {"n_specific": 1, "n_shared": 1}),
    "PLE, 2 levels": (PLE, {"n_specific": 1, "n_shared": 1, "levels": 2}),
    "ESMM": (ESMM, {"chain": FUNNEL}),
    "AITM": (AITM, {"chain": FUNNEL}),
}


def shop(seed: int) -> Splits:
    frames = shop_splits(shop_frame(simulate(ShopConfig(seed=seed, n_users=720, n_impressions=80_000))))
    return prepare(frames, SHOP_TASKS, SHOP_NUMERIC, SHOP_CATEGORICAL)


def builds(splits: Splits) -> Mapping[str, Callable[[], nn.Module]]:
    like = SharedBottom(splits.schema, splits.tasks, embedding_dim=4, hidden=(128, 64))
    alone = lambda: SideBySide(SingleTask(splits.schema, task, embedding_dim=4) for task in splits.tasks)  # noqa: E731
    return {"single-task": alone, **match_parameters(like, KINDS, embedding_dim=4)}


def best_of(build: Callable[[], nn.Module], splits: Splits, seed: int) -> tuple[nn.Module, float]:
    """The model with the lowest validation loss, and its learning rate."""
    constants = constant_losses(splits.train)
    found = []
    for lr in RATES:
        torch.manual_seed(seed)
        model = build()
        monitor = {task: 1 / loss for task, loss in constants.items()}
        fit(model, splits.train, splits.valid, lr=lr, monitor=monitor, seed=seed, **TRAINING)
        valid = sum(v["loss"] / constants[task] for task, v in evaluate(model, splits.valid).items())
        found.append((valid, lr, model))
    _, lr, model = min(found, key=lambda entry: entry[0])
    return model, lr


def main() -> None:
    options = command_line(__doc__, seeds=5).parse_args()
    rows = []
    for seed in range(options.seeds):
        splits = shop(seed)
        for name, build in builds(splits).items():
            model, lr = best_of(build, splits, seed)
            key = {"model": name, "seed": seed, "lr": lr, "parameters": count_parameters(model)}
            rows += [
                {**key, "task": task, "metric": metric, "value": round(values[metric], 5)}
                for task, values in evaluate(model, splits.test).items()
                for metric in ("loss", "auc" if "auc" in values else "accuracy")
            ]
        print(f"seed {seed} done", flush=True)
        command = f"nb06_shop.py --seeds {options.seeds}"
        store(options.out / "06_shop.csv", command, pd.DataFrame(rows))


if __name__ == "__main__":
    main()
