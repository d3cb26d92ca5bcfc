"""What simple and neural models reach on the simulated shop, between a floor and the truth.

    python notebooks/studies/nb01_baselines.py            # everything, then the table: on two cores under an hour
    python notebooks/studies/nb01_baselines.py --table    # the table of what is there

Writes ``01_baselines.csv``, a row for each shop, contestant, task and setting, as it comes; what is there is not run
again. Two processes of one thread share the shops, first those that tune; on more cores, start it for some shops
(``--shops 0``) or contestants each: all write to one file.

**Primary contrast**, stated before the study was run: shared bottom (click, purchase, next_category) minus single-task,
AUC of purchase, all labels, no ids, each at its own best epoch and setting; expected: a small plus. All other contrasts
are exploratory, with Holm's correction over them.

- A shop is ``ShopConfig(seed=s)``: users, products and log are new. Two shops tune, ten others are reported.
- Split by time 70/10/20; purchases of the last four training days are unknown, since some are pending.
- Every contestant (nine, with those at one stop) tries 30 settings of learning rate and decay, and keeps for each task
  that with the lowest validation log-loss on the tuning shops, weighted by the truth for click and purchase; labels
  decide which epoch is kept. "One stop": one setting and epoch, by the sum of the losses. A best setting at the end of
  a grid is marked "edge", save for the lowest decay, which hardly decays.
- Logistic regression is the same code without hidden layers. AdamW, batches of 1,024, at most 25 epochs, patience 3;
  tasks weigh 1 / (loss of the best constant).
- AUC and log-loss are weighted by the truth: what labels give in expectation, without their noise; "by labels" is what
  a real log shows. Floor: the product's past click rate, times the conversion for purchases; the majority.
  Ceiling: the true probabilities; for the next category ``hidden_state`` of ``nb00_shop_card.py``.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache, partial
from itertools import product
from multiprocessing import get_context

import numpy as np
import pandas as pd
import torch
from nb00_shop_card import hidden_state
from study import Table, command_line

from mtl_helpers import data
from mtl_helpers.metrics import auc, expected_auc, expected_log_loss, holm, mean_interval, paired_difference
from mtl_helpers.models import SharedBottom, count_parameters
from mtl_helpers.training import fit, predict
from mtl_helpers.weighting import constant_losses

TUNING, REPORTED = (0, 1), tuple(range(100, 110))
TRAINING = {"epochs": 25, "patience": 3, "stop": "each", "progress": False}
DECAYS = (0.01, 0.1, 1.0, 3.0, 10.0)
LINEAR = {"embedding_dim": 1, "hidden": (), "tower": ()}, (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
NETWORK = {"embedding_dim": 4}, (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
TASKS = tuple(task.name for task in data.SHOP_TASKS)
ALONE, TOGETHER = tuple((name,) for name in TASKS), (TASKS,)
PLAIN = tuple(name for name in data.SHOP_CATEGORICAL if name != "last_sub_category")
COUNTS, ALL = (data.SHOP_COUNTS, PLAIN), (data.SHOP_NUMERIC, data.SHOP_CATEGORICAL)
WITH_IDS = data.SHOP_NUMERIC, (*data.SHOP_CATEGORICAL, *data.SHOP_IDS)
BOUNDS = "bounds"
CONTESTANTS = {  # numeric and categorical features, model, its learning rates, which tasks share one
    "logistic regression, counts": (*COUNTS, *LINEAR, ALONE),
    "logistic regression": (*ALL, *LINEAR, ALONE),
    "logistic regression + ids": (*WITH_IDS, *LINEAR, ALONE),
    "single-task": (*ALL, *NETWORK, ALONE),
    "single-task + ids": (*WITH_IDS, *NETWORK, ALONE),
    "shared bottom": (*ALL, *NETWORK, TOGETHER),
    "shared bottom + ids": (*WITH_IDS, *NETWORK, TOGETHER),
}
PRIMARY = ("shared bottom", "single-task", "purchase")
PAIRS = (
    ("logistic regression", "logistic regression, counts"),
    ("single-task", "logistic regression"),
    ("shared bottom", "single-task"),
    ("shared bottom", "shared bottom, one stop"),
    *((f"{name} + ids", name) for name in ("logistic regression", "single-task", "shared bottom")),
)
KEY, SETTING = ["contestant", "task"], ["lr", "weight_decay"]
SHOWN = {"click": ("auc", "log_loss"), "purchase": ("auc", "log_loss", "auc_by_labels")}
SHOWN |= {"next_category": ("accuracy", "log_loss")}
MEASURED = "parameters epoch valid auc log_loss auc_by_labels accuracy".split()
COLUMNS = ["shop", *KEY, *SETTING, *MEASURED]


def measures(task: str, said: np.ndarray, frame: pd.DataFrame) -> dict[str, float]:
    """Of probabilities: (n,) for click and purchase, (n, 8) for next_category."""
    if task == "next_category":
        known = frame[task].notna().to_numpy()
        y, p = frame[task][known].to_numpy(int), said[known]
        right = np.clip(p[np.arange(len(y)), y], 1e-7, 1)
        return {"log_loss": -np.log(right).mean(), "accuracy": (p.argmax(1) == y).mean()}
    truth = frame[f"p_{task}"]
    found = {"auc": expected_auc(truth, said), "log_loss": expected_log_loss(truth, said)}
    return found | {"auc_by_labels": auc(frame[task], said)}


@lru_cache(1)
def shop_of(seed: int) -> tuple[data.Shop, dict[str, pd.DataFrame]]:
    shop = data.simulate(data.ShopConfig(seed=seed))
    frame = data.shop_frame(shop).merge(shop.truth, on="impression_id")
    return shop, data.shop_splits(frame, pending="unknown")


def bounds(shop: data.Shop, frames: dict[str, pd.DataFrame]) -> Iterator[dict]:
    train, test = frames["train"], frames["test"]
    bought = train["purchase"].mean() / train.loc[train["purchase"].notna(), "click"].mean()
    shares = train["next_category"].value_counts(normalize=True).reindex(range(8), fill_value=0)
    popular = {"click": test["item_past_ctr"], "purchase": bought * test["item_past_ctr"]}
    truth = {name: test[f"p_{name}"] for name in popular} | {"next_category": hidden_state(shop, frames)}
    popular["next_category"] = np.tile(shares.to_numpy(), (len(test), 1))
    for name, said in (("floor", popular), ("truth", truth)):
        yield from ({"contestant": name, "task": t, **measures(t, said[t], test)} for t in TASKS)


def trained(name: str, splits: data.Splits, group: tuple, setting: tuple, seed: int) -> Iterator[dict]:
    """Fit one model to the tasks of a group: a row for each, and for each at one stop if they are several."""
    train, valid = splits.train.select(group), splits.valid.select(group)
    scale = {task: 1 / loss for task, loss in constant_losses(train).items()}
    rule = {"weights": scale, "monitor": scale, "lr": setting[0], "weight_decay": setting[1], "seed": seed}
    torch.manual_seed(seed)
    model = SharedBottom(splits.schema, train.tasks, **CONTESTANTS[name][2])
    history = fit(model, train, valid, **rule, **TRAINING)
    together = dict.fromkeys(group, history.best_epoch)
    kinds = (name, history.best_states, history.best_epochs), (f"{name}, one stop", None, together)
    for full_name, states, epochs in kinds[: len(group)]:
        judged = {}
        for part in ("valid", "test"):
            said = predict(model, getattr(splits, part), states=states)
            judged[part] = {task: measures(task, said[task].numpy(), splits.frames[part]) for task in group}
        losses = {task: judged["valid"][task]["log_loss"] for task in group}
        total = sum(scale[task] * loss for task, loss in losses.items())
        for task in group:
            row = {"contestant": full_name, "task": task, **dict(zip(SETTING, setting, strict=True))}
            row |= {"parameters": count_parameters(model), "epoch": epochs[task]}
            yield row | judged["test"][task] | {"valid": losses[task] if states else total}


def chosen(table: pd.DataFrame) -> pd.DataFrame:
    """The setting of each contestant and task with the lowest mean validation loss over the tuning shops."""
    tuned = table[table["shop"].isin(TUNING)].groupby([*KEY, *SETTING])["valid"].agg(["mean", "size"])
    if len(tuned) < 9 * 3 * 30 or (tuned["size"] < len(TUNING)).any():
        raise SystemExit(f"First run the tuning shops: --shops {' '.join(map(str, TUNING))}")
    return tuned.loc[tuned.groupby(KEY)["mean"].idxmin()].reset_index().set_index(KEY)[SETTING]


def run(table: Table, seed: int, names: list[str]) -> None:
    """Write the rows of one shop that are not there yet."""
    best = None if seed in TUNING else chosen(table.rows())
    if BOUNDS in names and best is not None and not table.has(shop=seed, contestant="truth"):
        table.add(bounds(*shop_of(seed)), shop=seed)
    for name in (name for name in names if name != BOUNDS):
        numeric, categorical, _, rates, groups = CONTESTANTS[name]
        for group in groups:
            keys = list(product((name, f"{name}, one stop")[: len(group)], group))
            own = {} if best is None else {key: tuple(best.loc[key]) for key in keys}
            todo = table.todo(keys, product(rates, DECAYS), own, shop=seed)
            if todo:
                splits = data.prepare(shop_of(seed)[1], data.SHOP_TASKS, numeric, categorical)
            for setting, asked in todo.items():
                rows = trained(name, splits, group, setting, seed)
                table.add((row for row in rows if (row["contestant"], row["task"]) in asked), shop=seed)
        print(f"shop {seed}, {name}: done", flush=True)


def report(table: pd.DataFrame) -> None:
    """Print means over the reported shops with 95 % intervals, then the contrasts."""
    best, values = chosen(table), table[~table["shop"].isin(TUNING)].set_index(KEY)
    settled = best.reindex(values.index).fillna(0) == values[SETTING].fillna(0)  # no row of a smaller grid
    values = values[settled.all(axis=1)].set_index("shop", append=True).sort_index()
    for task, metrics in SHOWN.items():
        head = ["contestant", *metrics, "learning rate, decay"]
        print(f"\n**{task}**\n\n| {' | '.join(head)} |\n{'|---' * len(head)}|")
        for name in ("floor", *best.index.unique(0), "truth"):
            cells = [mean_interval(values.loc[(name, task), metric]) for metric in metrics]
            shown = " | ".join(f"{cell.mean:.4f} ± {cell.high - cell.mean:.4f}" for cell in cells)
            lr, decay = best.loc[(name, task)] if (name, task) in best.index else ("", "")
            rates = CONTESTANTS[name.removesuffix(", one stop")][3] if lr else ()
            edge = " edge" if lr in rates[:1] + rates[-1:] or decay == DECAYS[-1] else ""
            print(f"| {name} | {shown} | {lr} {decay}{edge} |")
    found = {}
    for a, b, task in [PRIMARY, *((*pair, task) for pair in PAIRS for task in SHOWN)]:
        pair = [values.loc[(name, task), SHOWN[task][0]].sort_index() for name in (a, b)]
        found[a, b, task] = paired_difference(*pair), pair[0] - pair[1]
    rest = {key: gaps for key, (_, gaps) in found.items() if key != PRIMARY}
    adjusted = holm(rest) | holm({PRIMARY: found[PRIMARY][1]})
    print("\n| contrast | task | difference | p (Holm; the first is the primary one) |\n|---|---|---|---|")
    for (a, b, task), (interval, _) in found.items():
        print(f"| {a} − {b} | {task} | {interval} | {adjusted[a, b, task]:.3f} |")


if __name__ == "__main__":
    parser = command_line(__doc__, shops=(*TUNING, *REPORTED), only=(BOUNDS, *CONTESTANTS))
    parser.add_argument("--table", action="store_true", help="print what is there and run nothing")
    options = parser.parse_args()
    table = Table(options.out / "01_baselines.csv", "nb01_baselines.py", COLUMNS, KEY, SETTING)
    with ProcessPoolExecutor(2, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        for tuning in (True, False):
            seeds = [seed for seed in options.shops if (seed in TUNING) == tuning and not options.table]
            list(pool.map(partial(run, table, names=options.only), seeds))
    if options.table or set(REPORTED) <= set(table.rows()["shop"]):
        report(table.rows())
