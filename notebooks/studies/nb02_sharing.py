"""When does a task with few labels gain from a bottom that it shares, and what hurts those that share?

    python notebooks/studies/nb02_sharing.py                    # on one core about 25 minutes
    python notebooks/studies/nb02_sharing.py --only "three tasks"

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

from collections.abc import Iterator
from functools import cache
from itertools import product

import numpy as np
import torch
from study import Table, best_epochs, command_line, prepared, small_shop

from mtl_helpers import data
from mtl_helpers.metrics import auc, expected_auc
from mtl_helpers.models import SharedBottom
from mtl_helpers.training import predict
from mtl_helpers.weighting import constant_losses

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
    judged = [task for task in tasks if task in BOTH]

    def scores() -> dict[str, float]:
        said = predict(model, valid)
        found = {task: auc(valid.labels[task], said[task]) for task in judged}
        return found | {"sum": sum(found.values())}

    how = {"weights": weights, "seed": seed, "patience": 5, "batch_size": batch, "epochs": 25}
    best = best_epochs(model, train, optimizer, scores, **how)
    for task in judged:
        _, epoch, state = best[task]
        said, tested = (predict(model, part, dict.fromkeys(tasks, state))[task] for part in (valid, test))
        row = dict(zip([*KEY, *SETTING], (name, budget, task, lr, weight_decay), strict=True))
        row |= {"epoch": epoch, "valid": expected_auc(shop.frames["valid"][f"p_{task}"], said)}
        for ranked in BOTH if name == "click model" else (task,):
            yield row | {"task": ranked, "auc": expected_auc(shop.frames["test"][f"p_{ranked}"], tested)}


def bounds(shop: data.Splits) -> Iterator[dict]:
    test = shop.frames["test"]
    for task, (name, said) in product(BOTH, (("popularity", "item_past_ctr"), ("truth", "p_{}"))):
        value = expected_auc(test[f"p_{task}"], test[said.format(task)])
        yield {"contestant": name, "budget": "all", "task": task, "auc": value}


def run(table: Table, seed: int, names: list[str], relatedness: float = 0.8, units: int = 64) -> None:
    """Write the rows of one shop that are not there yet: all settings where it tunes, else the chosen ones."""
    here, usual = {"shop": seed, "relatedness": relatedness, "units": units}, units == 64
    shop = cache(lambda: prepared(small_shop(seed, relatedness=relatedness)[1]))
    if "click model" in names and not table.has(contestant="truth", **here):
        table.add(bounds(shop()), **here)
    for name in names:
        tasks, layers, rates, budgets = CONTESTANTS[name]
        for budget in budgets if usual and relatedness == 0.8 else ("all",):
            keys = [(name, budget, task) for task in tasks if task in BOTH]
            if seed not in TUNING and budget != "all":
                keys = [(name, budget, "purchase")]
            chosen = {} if seed in TUNING else table.chosen(keys, shop=TUNING)
            for setting, own in table.todo(keys, product(rates, DECAYS), chosen, **here).items():
                rows = trained(name, shop(), (seed, budget, *setting), layers if usual else layers | NARROW)
                rows = [row for row in rows if name == "click model" or tuple(row[k] for k in KEY) in own]
                table.add(rows, **here)
    print(f"shop {seed}, relatedness {relatedness}, {units} units: {', '.join(names)}", flush=True)


if __name__ == "__main__":
    options = command_line(__doc__, only=tuple(CONTESTANTS)).parse_args()
    table = Table(options.out / "02_sharing.csv", "nb02_sharing.py", COLUMNS, KEY, SETTING)
    for seed in (*TUNING, *REPORTED):
        run(table, seed, options.only)
    for knob, seed in product(
        ((-1.0, 64), (0.8, 8)), REPORTED[:5] if set(FIRST) <= set(options.only) else ()
    ):
        run(table, seed, FIRST, *knob)
