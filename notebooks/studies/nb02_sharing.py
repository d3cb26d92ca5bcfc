"""When does a task with few labels gain from a bottom that it shares, and what hurts those that share?

    python notebooks/studies/nb02_sharing.py                    # on one core about 25 minutes
    python notebooks/studies/nb02_sharing.py "three tasks"      # one contestant

Writes ``02_sharing.csv``, a row for each shop, contestant, budget, task and setting, as it comes; what is there is not
run again. **Primary contrast**, stated before the study was run: shared bottom of click and purchase minus single-task,
AUC of purchase, mean over the two scarcest budgets (1,500 and 4,000 rows whose purchase label is known), each at its
own best epoch and setting, no ids, ten shops; expected: plus. All else is exploratory.

- Small shops, ``ShopConfig(432, n_impressions=48_000, seed=s)``: all is new in each. Split by time 50/20/30. Two tune,
  ten others are reported. Clicks are known in all training rows, purchases in rows drawn at random.
- Every contestant tries 12 settings of learning rate and decay at each budget and keeps, for each task, that with the
  highest validation AUC on the tuning shops, weighted by the truth; AUC by labels decides which epoch is kept. Test
  AUCs are weighted by the truth.
- AdamW, 16 to 24 steps an epoch, at most 25 epochs, patience 5; tasks weigh 1 / (loss of the best constant).
- A first run chose settings and epochs by log-loss. With seven purchases that kept models which had hardly moved: all
  lay below popularity, and the primary contrast was +.055 [.040, .070]. "Purchase × 0.1", a tenth of that weight,
  was added then.
- What may hurt: a third task; opposed tastes (relatedness −1) and a narrow bottom (8 units), with all labels on five
  of the shops, at the settings found for relatedness .8 and 64 units.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from copy import deepcopy
from functools import partial
from itertools import product

import numpy as np
import pandas as pd
import torch
from study import ROOT, append, begin

from mtl_helpers import data
from mtl_helpers.metrics import auc, expected_auc
from mtl_helpers.models import SharedBottom
from mtl_helpers.training import predict, training_steps
from mtl_helpers.weighting import constant_losses

RESULTS = ROOT / "notebooks" / "results" / "02_sharing.csv"
TUNING, REPORTED = (0, 1), tuple(range(100, 110))
BUDGETS, DECAYS = ("1500", "4000", "all"), (0.1, 1.0, 10.0)
LINEAR = {"embedding_dim": 1, "hidden": (), "tower": ()}, (3e-3, 1e-2, 3e-2, 1e-1)
NETWORK, NARROW = ({"embedding_dim": 4}, (1e-3, 3e-3, 1e-2, 3e-2)), {"hidden": (8,), "tower": ()}
BOTH = ("click", "purchase")
CONTESTANTS = {  # tasks, layers and learning rates, budgets
    "single-task": (("purchase",), *NETWORK, BUDGETS),
    "shared bottom": (BOTH, *NETWORK, BUDGETS),
    "click model": (("click",), *NETWORK, ("all",)),
    "shared bottom, purchase × 0.1": (BOTH, *NETWORK, BUDGETS),
    "logistic regression": (("purchase",), *LINEAR, BUDGETS),
    "three tasks": ((*BOTH, "next_category"), *NETWORK, ("all",)),
}
FIRST = tuple(CONTESTANTS)[:3]
KEY, SETTING = ["contestant", "budget", "task"], ["lr", "weight_decay"]
COLUMNS = ["shop", "relatedness", "units", *KEY, *SETTING, "epoch", "valid", "auc"]


def shop_of(seed: int, relatedness: float) -> data.Splits:
    shop = data.simulate(data.ShopConfig(432, n_impressions=48_000, relatedness=relatedness, seed=seed))
    frame = data.shop_frame(shop).merge(shop.truth, on="impression_id")
    parts = data.split_by_time(frame, fractions=(0.5, 0.2, 0.3))
    known = data.mask_future_labels(parts["train"], parts["valid"]["timestamp"].min(), pending="unknown")
    return data.prepare(parts | {"train": known}, data.SHOP_TASKS, data.SHOP_NUMERIC, data.SHOP_CATEGORICAL)


def trained(name: str, shop: data.Splits, key: tuple, layers: dict) -> Iterator[dict]:
    """Fit one model: a row for each of its tasks, at its own best epoch."""
    (seed, budget, lr, weight_decay), tasks = key, CONTESTANTS[name][0]
    train, valid, test = (part.select(tasks) for part in (shop.train, shop.valid, shop.test))
    if budget != "all":
        train = data.hide_labels(train, "purchase", int(budget), seed=seed)
    if tasks == ("purchase",):
        train = train.take(train.masks["purchase"].nonzero().squeeze(-1))
    weights = {task: 1 / loss for task, loss in constant_losses(train).items()}
    if name.endswith("× 0.1"):
        weights["purchase"] *= 0.1
    torch.manual_seed(seed)
    model, batch = SharedBottom(shop.schema, train.tasks, **layers), int(np.clip(len(train) // 16, 64, 1024))
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=weight_decay)
    how = {"batch_size": batch, "epochs": 25, "generator": torch.Generator().manual_seed(seed)}
    best, judged = {}, [task for task in tasks if task in BOTH]
    for step in training_steps(model, train, optimizer, weights=weights, **how):
        if step.number < -(-len(train) // batch):
            continue
        said = predict(model, valid)
        scores = {task: auc(valid.labels[task], said[task]) for task in judged}
        for what, score in (*scores.items(), ("sum", sum(scores.values()))):
            if score > best.get(what, (0,))[0]:
                best[what] = score, step.epoch, deepcopy(model.state_dict())
        if step.epoch >= max(epoch for _, epoch, _ in best.values()) + 5:
            break
    for task in judged:
        _, epoch, state = best[task]
        said, tested = (predict(model, part, dict.fromkeys(tasks, state))[task] for part in (valid, test))
        row = dict(zip([*KEY, *SETTING], (name, budget, task, lr, weight_decay), strict=True))
        row |= {"epoch": epoch, "valid": expected_auc(shop.frames["valid"][f"p_{task}"], said)}
        for ranked in BOTH if name == "click model" else (task,):
            yield row | {"task": ranked, "auc": expected_auc(shop.frames["test"][f"p_{ranked}"], tested)}


def run(seed: int, names: tuple, relatedness: float = 0.8, units: int = 64) -> None:
    """Write the rows of one shop that are not there yet: all settings where it tunes, else the chosen ones."""
    table, here = (
        pd.read_csv(RESULTS, comment="#"),
        {"shop": seed, "relatedness": relatedness, "units": units},
    )
    means = table[table["shop"].isin(TUNING)].groupby([*KEY, *SETTING])["valid"].mean()
    best = None if seed in TUNING else means.groupby(KEY).idxmax().map(lambda key: key[-2:])
    mine, shop, usual = table.merge(pd.DataFrame([here])), shop_of(seed, relatedness), units == 64
    done = set(mine[[*KEY, *SETTING]].itertuples(index=False, name=None))
    write = partial(append, RESULTS, **here)
    if "truth" not in set(mine["contestant"]) and "click model" in names:
        test = shop.frames["test"]
        for task, (name, said) in product(BOTH, (("popularity", "item_past_ctr"), ("truth", "p_{}"))):
            value = expected_auc(test[f"p_{task}"], test[said.format(task)])
            write([{"contestant": name, "budget": "all", "task": task, "auc": value}])
    for name in names:
        tasks, layers, rates, budgets = CONTESTANTS[name]
        budgets = budgets if usual and relatedness == 0.8 else ("all",)
        for budget, setting in product(budgets, product(rates, DECAYS)):
            asked = {(name, budget, task) for task in tasks if task in BOTH}
            if best is not None:
                asked -= {key for key in asked if best[key] != setting}
                asked -= {(name, budget, "click")} if budget != "all" else set()
            if not {(*key, *setting) for key in asked} <= done:
                rows = trained(name, shop, (seed, budget, *setting), layers if usual else layers | NARROW)
                write(row for row in rows if name == "click model" or tuple(row[k] for k in KEY) in asked)
    print(f"shop {seed}, relatedness {relatedness}, {units} units: {', '.join(names)}", flush=True)


if __name__ == "__main__":
    chosen = tuple(sys.argv[1:]) or tuple(CONTESTANTS)
    begin(RESULTS, "nb02_sharing.py", COLUMNS)
    for seed in (*TUNING, *REPORTED):
        run(seed, chosen)
    for knob, seed in product(((-1.0, 64), (0.8, 8)), REPORTED[:5] if set(FIRST) <= set(chosen) else ()):
        run(seed, FIRST, *knob)
