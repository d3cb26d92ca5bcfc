"""Products without one impression in training: what do ids, words and semantic ids tell of them?

    python notebooks/studies/nb09_content.py                             # on one core about 13 minutes
    python notebooks/studies/nb09_content.py --shops 100 101 --only ids text

Writes ``09_content.csv``, a row for each shop, contestant, setting, population and task, as it comes; what is there is
not run again. Shops 0 and 1 tune: run them first. **Primary contrast**, stated before the study was run: ids and text
minus ids alone, AUC of click on cold products, eight shops; expected: plus. All else is exploratory.

- Whole shops, ``ShopConfig(seed=s)``: all is new in each. Split by time 50/10/40, so that some 60 products and 3,000
  rows of the test part are *cold*: none of their impressions is in training. The others are *warm*. Features are
  the course's, among them past click rates, which a new product soon has, too: the floor ``table``. Ids are those of
  products; rare ones (below 20 impressions) share the vector of unknown ones, which is thereby learned.
- Words: TF-IDF and SVD to 64 numbers, learned from the texts of the products in training. Semantic ids: residual
  k-means on them, 3 × 16. ``hidden``: what the simulator hides of a product (quality, appeal, styles) in place of its
  words, the most that any content could tell. ``text, counts hidden``: as ``text``, with the product's past click rate
  and clicks of the week forgotten in half of the training rows, as if it were new (after Volkovs et al., *DropoutNet*,
  NeurIPS 2017).
- Shared bottom 64-32 of click and purchase, AdamW, 1,024 rows a step, at most 8 epochs, patience 2; tasks weigh
  1 / (loss of the best constant). AUC by labels on the validation part says which epoch is kept, for each task.
- Every contestant tries sixteen settings of learning rate and decay on the two tuning shops and keeps, for each
  population, that with the highest sum of its test AUCs of both tasks there; where it lay at an end, ``--rates`` and
  ``--decays`` went on. AUCs are weighted by the truth.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from itertools import product

import numpy as np
import pandas as pd
import torch
from study import Table, command_line, trained

from mtl_helpers import data
from mtl_helpers.metrics import expected_auc
from mtl_helpers.models import ContentBottom, SharedBottom, count_parameters

TUNING, REPORTED = (0, 1), tuple(range(100, 108))
RATES, DECAYS = (3e-4, 1e-3, 3e-3, 1e-2), (0.01, 0.1, 1.0, 10.0)
TASKS, PARTS = ("click", "purchase"), ("train", "valid", "test")
CONTESTANTS = {  # further categorical columns, contents
    "table": ((), ()),
    "ids": (("item_id",), ()),
    "text": ((), ("text",)),
    "ids and text": (("item_id",), ("text",)),
    "semantic ids": (("code_0", "code_1", "code_2"), ()),
    "text, counts hidden": ((), ("text",)),
    "hidden": ((), ("hidden",)),
}
KEY, SETTING = ["contestant", "population"], ["lr", "weight_decay"]
COLUMNS = ["shop", *KEY, "task", *SETTING, "epoch", "rows", "products", "parameters", "auc"]


class Shop:
    """A shop's parts, its cold rows and its contents."""

    def __init__(self, seed: int) -> None:
        self.seed, shop = seed, data.simulate(data.ShopConfig(seed=seed))
        frame = data.shop_frame(shop).merge(shop.truth, on="impression_id")
        parts = data.split_by_time(frame, fractions=(0.5, 0.1, 0.4))
        known = np.isin(np.arange(len(shop.items)), parts["train"]["item_id"])
        text = data.tfidf_vectors(data.text_of(shop.items), 64, known)
        codes, books = data.residual_codes(text[known], (16, 16, 16))
        codes = pd.DataFrame(codes_of(text, books), columns=["code_0", "code_1", "code_2"])
        parts = {name: part.join(codes, on="item_id") for name, part in parts.items()}
        known_by_then = data.mask_future_labels(parts["train"], parts["valid"]["timestamp"].min())
        self.frames, self.tasks = parts | {"train": known_by_then}, data.SHOP_TASKS[:2]
        self.contents = {
            "text": torch.from_numpy(text).float(),
            "hidden": torch.from_numpy(shop.hidden.drop(columns="item_id").to_numpy(np.float32, copy=True)),
        }
        cold = ~known[parts["test"]["item_id"]]
        self.rows = {"cold": cold, "warm": ~cold}

    def splits(self, name: str) -> data.Splits:
        categorical, frames = (*data.SHOP_CATEGORICAL, *CONTESTANTS[name][0]), self.frames
        if name.endswith("counts hidden"):
            train, new = frames["train"], np.random.default_rng(self.seed).random(len(frames["train"])) < 0.5
            hidden = {"item_past_ctr": data.PRIOR_CTR, "item_clicks_week": 0.0}
            frames = frames | {"train": train.assign(**{k: train[k].mask(new, v) for k, v in hidden.items()})}
        return data.prepare(frames, self.tasks, data.SHOP_NUMERIC, categorical, min_count=20)


def codes_of(vectors: np.ndarray, books: list[np.ndarray]) -> np.ndarray:
    """Semantic ids of vectors: at each level the nearest code vector to what is left."""
    rest, codes = vectors, []
    for book in books:
        codes.append(((rest[:, None] - book) ** 2).sum(-1).argmin(1))
        rest = rest - book[codes[-1]]
    return np.stack(codes, 1)


def rows_of(name: str, shop: Shop, splits: data.Splits, lr: float, weight_decay: float) -> Iterator[dict]:
    """Fit one model: a row for each task and population, each task at its own best epoch."""
    contents = {what: shop.contents[what] for what in CONTESTANTS[name][1]}
    torch.manual_seed(shop.seed)
    layers, parts = {"embedding_dim": 4}, {part: getattr(splits, part) for part in PARTS}
    if contents:
        model = ContentBottom(splits.schema, shop.tasks, contents, width=16, content_dropout=0.2, **layers)
        items = {part: shop.frames[part]["item_id"].to_numpy() for part in PARTS}
        parts = {part: data.attach(rows, items[part]) for part, rows in parts.items()}
    else:
        model = SharedBottom(splits.schema, shop.tasks, **layers)
    frame, row = shop.frames["test"], {"contestant": name, "lr": lr, "weight_decay": weight_decay}
    row |= {"parameters": count_parameters(model)}
    for task, epoch, said in trained(model, parts.values(), shop.seed, lr, weight_decay):
        for population, rows in shop.rows.items():
            found = judged(frame[rows], task.name, said.numpy()[rows])
            yield row | {"population": population, "task": task.name, "epoch": epoch} | found


def judged(frame: pd.DataFrame, task: str, said: np.ndarray) -> dict:
    n = {"rows": len(frame), "products": frame["item_id"].nunique()}
    return n | {"auc": expected_auc(frame[f"p_{task}"], said)}


def bounds(shop: Shop) -> Iterator[dict]:
    frame, columns = shop.frames["test"], (("popularity", "item_past_ctr"), ("truth", "p_{}"))
    for (name, column), task, (population, rows) in product(columns, TASKS, shop.rows.items()):
        found = judged(frame[rows], task, frame.loc[rows, column.format(task)].to_numpy())
        yield {"contestant": name, "population": population, "task": task} | found


def run(table: Table, seed: int, names: list[str], grid: list[tuple]) -> None:
    """Write the rows of one shop that are not there yet: all settings where it tunes, else the chosen ones."""
    shop = cache(lambda: Shop(seed))
    if "table" in names and not table.has(shop=seed, contestant="truth"):
        table.add(bounds(shop()), shop=seed)
    for name in names:
        keys = list(product([name], ("cold", "warm")))
        chosen = {} if seed in TUNING else table.chosen(keys, "auc", shop=TUNING)
        todo = table.todo(keys, grid, chosen, shop=seed)
        splits = shop().splits(name) if todo else None
        for setting in todo:
            table.add(rows_of(name, shop(), splits, *setting), shop=seed)
    print(f"shop {seed}: {', '.join(names)}", flush=True)


if __name__ == "__main__":
    known = {"shops": (*TUNING, *REPORTED), "only": tuple(CONTESTANTS), "rates": RATES, "decays": DECAYS}
    options = command_line(__doc__, **known).parse_args()
    table = Table(options.out / "09_content.csv", "nb09_content.py", COLUMNS, KEY, SETTING)
    for seed in options.shops:
        run(table, seed, options.only, list(product(options.rates, options.decays)))
