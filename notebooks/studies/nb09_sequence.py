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
  None of these was tuned on its own: the stored ones ran at learning rate 3e-3, decay 0.01, which was the transformer's
  setting until more were tried (a run from scratch takes the present one). Tasks weigh 1 / (loss of the best constant).
- AdamW, about 1,024 rows a step in whole sessions, at most 8 epochs, patience 2; on the validation part AUC by labels,
  or the share of right next categories, or of next items among the ten likeliest, says which epoch is kept, for each
  task. AUCs of the test part are weighted by the truth.
- Each of the first five contestants tries sixteen settings of learning rate and decay on the two tuning shops and keeps
  that with the highest sum of the test AUCs of click and purchase there.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import product
from pathlib import Path

import pandas as pd
import torch
from study import append, begin, command_line, score, trained

from mtl_helpers import data
from mtl_helpers.metrics import expected_auc
from mtl_helpers.models import SequenceBottom, SharedBottom, count_parameters

TUNING, REPORTED = (0, 1), tuple(range(100, 108))
RATES, DECAYS, BATCH = (3e-4, 1e-3, 3e-3, 1e-2), (0.01, 0.1, 1.0, 10.0), 1024
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
SETTING = ["lr", "weight_decay"]
COLUMNS = ["shop", "contestant", "task", *SETTING, "epoch", "parameters", "value"]
TELLS_HISTORY = ("last_sub_category",)


class Shop:
    """A shop's parts, encoded without and with the features made of the history; and its products."""

    def __init__(self, config: data.ShopConfig) -> None:
        shop = data.simulate(config)
        frame = data.shop_frame(shop).merge(shop.truth, on="impression_id")
        self.frame, self.frames = frame, data.shop_splits(frame)
        tasks = (*data.SHOP_TASKS, data.Task("next_item", "multiclass", config.n_items))
        plain = [name for name in data.SHOP_CATEGORICAL if name not in TELLS_HISTORY]
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


def run(seed: int, names: tuple[str, ...], grid: list[tuple[float, float]], path: Path) -> None:
    """Write the rows of one shop that are not there yet: all settings where it tunes, else the chosen ones."""
    table = pd.read_csv(path, comment="#")
    sums = (
        table[table["shop"].isin(TUNING)].dropna(subset="lr").groupby(["contestant", *SETTING])["value"].sum()
    )
    mine = table[table["shop"] == seed]
    shop = Shop(data.ShopConfig(900, n_impressions=100_000, seed=seed))
    write = partial(append, path, shop=seed)
    if "counts" in names and "truth" not in set(mine["contestant"]):
        write(floors(shop))
    for name in names:
        settings = grid
        if seed not in TUNING:
            settings = [sums[name if name in TUNED else "transformer"].idxmax()]
        if name in FURTHER and seed not in REPORTED[:5]:
            continue
        done = set(mine.loc[mine["contestant"] == name, SETTING].itertuples(index=False, name=None))
        for setting in settings:
            if setting not in done:
                write(rows_of(name, shop, seed, *setting))
    print(f"shop {seed}: {', '.join(names)}", flush=True)


if __name__ == "__main__":
    parser = command_line(__doc__)
    parser.add_argument("--shops", type=int, nargs="*", default=(*TUNING, *REPORTED))
    parser.add_argument("--only", nargs="*", default=tuple(CONTESTANTS), choices=tuple(CONTESTANTS))
    parser.add_argument("--rates", type=float, nargs="*", default=RATES)
    parser.add_argument("--decays", type=float, nargs="*", default=DECAYS)
    chosen = parser.parse_args()
    path = chosen.out / "09_sequence.csv"
    begin(path, "nb09_sequence.py", COLUMNS)
    for seed in chosen.shops:
        run(seed, tuple(chosen.only), list(product(chosen.rates, chosen.decays)), path)
