"""A user's last clicks as the shared bottom: does reading them in order pay, how many of them, and for which task?

    python notebooks/studies/nb09_sequence.py                            # on one core about 15 minutes
    python notebooks/studies/nb09_sequence.py --shops 100 --only mean transformer

Writes ``09_sequence.csv``, a row for each shop, contestant, setting and task, as it comes; what is there is not run
again. Shops 0 and 1 tune: run them first. **Primary contrast**, stated before the study was run: transformer minus mean
of the history, both of click and purchase, AUC of click, eight shops; expected: plus. All else is exploratory.

- Half shops, ``ShopConfig(900, n_impressions=100_000, seed=s)``: all is new in each. Split by time 70/10/20.
  ``counts`` is the shared bottom 64-32 on the table and counts, ``history features`` adds the course's made by hand
  (fading sums, the last click's sub-category). The others add to ``counts`` the last 20 clicks before the session
  began, as sub-category, brand, age and whether bought, no ids: their mean, attention by the candidate, or a
  transformer with one block, 32 wide.
- Tasks: click and purchase; the transformer with a task more or less, and with other lengths, on five of the shops.
  None of these was tuned: they run at learning rate 3e-3, decay 0.01, which was the transformer's setting until more
  were tried. Tasks weigh 1 / (loss of the best constant).
- AdamW, about 1,024 rows a step in whole sessions, at most 8 epochs, patience 2; on the validation part AUC by labels,
  or the share of right next categories, or of next items among the ten likeliest, says which epoch is kept, for each
  task. AUCs of the test part are weighted by the truth.
- Each of the first five contestants tries sixteen settings of learning rate and decay on the two tuning shops and keeps
  that with the highest sum of the test AUCs of click and purchase there; where it lay at an end, ``--decays`` went on.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from itertools import product

import pandas as pd
import torch
from study import Table, command_line, score, trained

from mtl_helpers import data
from mtl_helpers.metrics import expected_auc
from mtl_helpers.models import SequenceBottom, SharedBottom, count_parameters

TUNING, REPORTED = (0, 1), tuple(range(100, 108))
RATES, DECAYS = (3e-4, 1e-3, 3e-3, 1e-2), (0.01, 0.1, 1.0, 10.0)
BOTH, NEXT = ("click", "purchase"), ("next_category", "next_item")
TUNED = {  # how the history is read, tasks, length
    "counts": (None, BOTH, 20),
    "history features": (None, BOTH, 20),
    "mean": ("mean", BOTH, 20),
    "target": ("target", BOTH, 20),
    "transformer": ("transformer", BOTH, 20),
}
FURTHER = {
    "click alone": ("transformer", BOTH[:1], 20),
    "purchase alone": ("transformer", BOTH[1:], 20),
    "with next_category": ("transformer", (*BOTH, NEXT[0]), 20),
    "with next_item": ("transformer", (*BOTH, NEXT[1]), 20),
    "all four": ("transformer", BOTH + NEXT, 20),
    **{f"length {n}": ("transformer", BOTH, n) for n in (1, 5, 50)},
}
CONTESTANTS = TUNED | FURTHER
UNTUNED, SETTING = (3e-3, 0.01), ["lr", "weight_decay"]
COLUMNS = ["shop", "contestant", "task", *SETTING, "epoch", "parameters", "value"]


class Shop:
    """A shop's parts, encoded without and with the features made of the history; and its products."""

    def __init__(self, config: data.ShopConfig) -> None:
        shop = data.simulate(config)
        frame = data.shop_frame(shop).merge(shop.truth, on="impression_id")
        self.frame, self.frames = frame, data.shop_splits(frame)
        tasks = (*data.SHOP_TASKS, data.Task("next_item", "multiclass", config.n_items))
        plain = [name for name in data.SHOP_CATEGORICAL if name != "last_sub_category"]
        self.counts = data.prepare(self.frames, tasks, data.SHOP_COUNTS, plain)
        self.history = data.prepare(self.frames, tasks, data.SHOP_NUMERIC, data.SHOP_CATEGORICAL)
        self.products = data.product_codes(data.clean_items(shop.items), ("sub_category", "brand"))

    def with_events(
        self, length: int, tasks: tuple[str, ...]
    ) -> tuple[torch.Tensor, list[data.SessionDataset]]:
        """The events of all sessions, and the three parts pointing at them."""
        events, session = data.session_events(self.frame, length)
        of, parts = pd.Series(session, self.frame.index), []
        for name, frame in self.frames.items():
            rows = of[frame.index].to_numpy(), frame["item_id"].to_numpy() + 1
            part = data.attach(getattr(self.counts, name).select(tasks), *rows)
            parts.append(data.SessionDataset(**vars(part)))
        return events, parts


def rows_of(name: str, shop: Shop, seed: int, lr: float, weight_decay: float) -> Iterator[dict]:
    reader, tasks, length = CONTESTANTS[name]
    torch.manual_seed(seed)
    if reader is None:
        splits = shop.history if name == "history features" else shop.counts
        parts = [part.select(tasks) for part in (splits.train, splits.valid, splits.test)]
        model = SharedBottom(splits.schema, parts[0].tasks, embedding_dim=4)
    else:
        events, parts = shop.with_events(length, tasks)
        known = shop.counts.schema, parts[0].tasks, events, shop.products
        model = SequenceBottom(*known, reader=reader, embedding_dim=8)
    row = {"contestant": name, "lr": lr, "weight_decay": weight_decay, "parameters": count_parameters(model)}
    for task, epoch, said in trained(model, parts, seed, lr, weight_decay):
        yield row | {"task": task.name, "epoch": epoch, "value": judged(shop, task, said, parts[2])}


def judged(shop: Shop, task: data.Task, said: torch.Tensor, test: data.MultiTaskDataset) -> float:
    if task.kind == "binary":
        return expected_auc(shop.frames["test"][f"p_{task.name}"], said)
    return score(task, said, test.labels[task.name], test.masks.get(task.name))


def floors(shop: Shop) -> Iterator[dict]:
    """Popularity and the truth; of what comes next, the likeliest of the training part."""
    test, train = shop.frames["test"], shop.frames["train"]
    for task, (name, said) in product(BOTH, (("popularity", "item_past_ctr"), ("truth", "p_{}"))):
        value = expected_auc(test[f"p_{task}"], test[said.format(task)])
        yield {"contestant": name, "task": task, "value": value}
    for task, n in zip(NEXT, (1, 10), strict=True):
        best = train[task].value_counts().index[:n]
        yield {"contestant": "popularity", "task": task, "value": test[task].dropna().isin(best).mean()}


def run(table: Table, seed: int, names: list[str], grid: list[tuple]) -> None:
    """Write the rows of one shop that are not there yet: all settings where it tunes, else the chosen ones."""
    shop = cache(lambda: Shop(data.ShopConfig(900, n_impressions=100_000, seed=seed)))
    if "counts" in names and not table.has(shop=seed, contestant="truth"):
        table.add(floors(shop()), shop=seed)
    for name in names:
        chosen = {}
        if name in FURTHER:
            if seed not in REPORTED[:5]:
                continue
            chosen = {(name,): UNTUNED}
        elif seed not in TUNING:
            chosen = table.chosen([(name,)], "value", shop=TUNING)
        for setting in table.todo([(name,)], grid, chosen, shop=seed):
            table.add(rows_of(name, shop(), seed, *setting), shop=seed)
    print(f"shop {seed}: {', '.join(names)}", flush=True)


if __name__ == "__main__":
    known = {"shops": (*TUNING, *REPORTED), "only": tuple(CONTESTANTS), "rates": RATES, "decays": DECAYS}
    options = command_line(__doc__, **known).parse_args()
    table = Table(options.out / "09_sequence.csv", "nb09_sequence.py", COLUMNS, ["contestant"], SETTING)
    for seed in options.shops:
        run(table, seed, options.only, list(product(options.rates, options.decays)))
