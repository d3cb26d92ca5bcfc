"""The e-commerce case of notebook 05: one model that knows who buys, which category a user favours, what comes next.

===================== ===================================== =================================================
task                  question                              may read
===================== ===================================== =================================================
``click, purchase``   will this user click, buy this item?  user, moment, item, both together, position
``next_category``     category of the user's next click?    user and moment: no candidate is asked about
``next_item``         item of the user's next click?        user and moment; the score is a dot product u · v
===================== ===================================== =================================================
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from mtl_helpers.data.features import Splits, prepare
from mtl_helpers.data.shop import Shop
from mtl_helpers.data.shop_log import SHOP_NUMERIC, SHOP_TASKS, clean_items, shop_frame, shop_splits
from mtl_helpers.data.shop_world import CATEGORIES, World
from mtl_helpers.data.tables import Schema, Task, check_tasks
from mtl_helpers.models.layers import FeatureLayer, mlp

# fmt: off
__all__ = [
    "CASE_CATEGORICAL", "CASE_NUMERIC", "ITEM_COLUMNS", "PAIR_COLUMNS", "USER_COLUMNS", "CaseModel", "candidates",
    "case_data", "case_frames", "case_model", "case_tasks", "item_table", "score_candidates", "true_values",
]
# fmt: on

_USER = ("age", "signup_days", "user_past_clicks", "user_past_ctr", "days_since_click")
USER_COLUMNS = (
    (*_USER, *(f"past_{category}" for category in CATEGORIES)),
    ("region", "loyalty_tier", "age_group", "surface", "last_sub_category"),
)
"""What is known before an item is chosen: numeric and categorical columns of the user and the moment. The user_id is
encoded too, but a model reads it only when asked: with a handful of clicks a user, ids are learned by heart."""
ITEM_COLUMNS = ("log_price", "price_vs_category"), ("category", "sub_category", "brand")
PAIR_COLUMNS = tuple(n for n in SHOP_NUMERIC if n not in (*USER_COLUMNS[0], *ITEM_COLUMNS[0])), ("position",)
"""What is known only of an item at a moment, of a user and an item together, or of the place on the page."""
CASE_NUMERIC = (*USER_COLUMNS[0], *ITEM_COLUMNS[0], *PAIR_COLUMNS[0])
CASE_CATEGORICAL = ("user_id", *USER_COLUMNS[1], *ITEM_COLUMNS[1], *PAIR_COLUMNS[1])


def case_tasks(n_items: int) -> tuple[Task, ...]:
    """click, purchase, next_category and next_item."""
    return *SHOP_TASKS, Task("next_item", "multiclass", n_items)


def case_frames(shop: Shop) -> dict[str, pd.DataFrame]:
    """``{"train", "valid", "test"}``: the latest 80,000 rows of :func:`shop_frame` (their features know the whole log),
    split by time. ``next_item`` and ``next_category`` are asked on a session's first row; elsewhere they are NaN."""
    frame, asked = shop_frame(shop).tail(80_000).reset_index(drop=True), ["next_item", "next_category"]
    frame[asked] = frame[asked].mask(frame.duplicated("session_id"))
    return shop_splits(frame)


def case_data(frames: dict[str, pd.DataFrame], n_items: int, device: torch.device | str = "cpu") -> Splits:
    """Encode the frames of :func:`case_frames`."""
    return prepare(frames, case_tasks(n_items), CASE_NUMERIC, CASE_CATEGORICAL, device=device)


class CaseModel(nn.Module):
    """A shared user bottom, a shared item bottom, and a tower for each task.

    u = f(user, moment) and v = g(item), both (n, 32). Binary tasks: tower([u, v, u·v elementwise, pair columns]).
    Multiclass tasks over the catalogue (as many classes as items): u Vᵀ + b with V = g(all items), (n_items, 32), so
    that retrieval is a search for the largest dot product. Other multiclass tasks: a linear layer on u.
    ``n_items`` sizes the catalogue, which :meth:`set_catalogue` fills in; ``user_ids``: embed the user_id as well.
    """

    def __init__(self, schema: Schema, tasks: Sequence[Task], n_items: int, user_ids: bool = False) -> None:
        super().__init__()
        self.tasks, self.schema, width = check_tasks(tasks), schema, 32
        self.settings = {"n_items": n_items, "user_ids": user_ids}
        user = (USER_COLUMNS[0], ("user_id", *USER_COLUMNS[1])) if user_ids else USER_COLUMNS
        self._parts, self.features = {}, nn.ModuleDict()
        for part, (numbers, codes) in {"user": user, "item": ITEM_COLUMNS, "pair": PAIR_COLUMNS}.items():
            own = Schema(numbers, {column: schema.categorical[column] for column in codes})
            self.features[part] = FeatureLayer(own, embedding_dim=4)
            places = [list(schema.numeric).index(column) for column in numbers]
            self._parts[part] = places, [list(schema.categorical).index(column) for column in codes]
        self.user = mlp(self.features["user"].n_out, (2 * width, width))
        self.item = mlp(self.features["item"].n_out, (width,)).append(nn.Linear(width, width))
        joined = 3 * width + self.features["pair"].n_out
        self.towers = nn.ModuleDict()
        for task in self.tasks:
            if task.kind == "binary":
                self.towers[task.name] = mlp(joined, (width // 2,)).append(nn.Linear(width // 2, 1))
            elif task.n_outputs != n_items:
                self.towers[task.name] = nn.Linear(width, task.n_outputs)
        self.bias = nn.Parameter(torch.zeros(n_items))
        self.register_buffer("item_numeric", torch.zeros(n_items, len(ITEM_COLUMNS[0])))
        self.register_buffer("item_codes", torch.zeros(n_items, len(ITEM_COLUMNS[1]), dtype=torch.long))

    @torch.no_grad()
    def set_catalogue(self, numeric: Tensor, categorical: Tensor, clicks: Tensor) -> CaseModel:
        """Take the items' own columns out of encoded rows, one an item in the order of the classes; ``clicks``
        (n_items,) start the bias at the log of each item's share: popularity, untrained."""
        places, codes = self._parts["item"]
        self.item_numeric.copy_(numeric[:, places])
        self.item_codes.copy_(categorical[:, codes])
        smoothed = clicks.double() + 0.5
        self.bias.copy_((smoothed / smoothed.sum()).log())
        return self

    def feature_vectors(self, part: str, numeric: Tensor, categorical: Tensor) -> Tensor:
        """Embeddings, then numeric columns, of ``"user"``, ``"item"`` or ``"pair"``: (n, features of that part)."""
        places, codes = self._parts[part]
        return self.features[part](numeric[..., places], categorical[..., codes])

    def user_vectors(self, numeric: Tensor, categorical: Tensor) -> Tensor:
        """u, (n, 32)."""
        return self.user(self.feature_vectors("user", numeric, categorical))

    def item_vectors(self) -> Tensor:
        """V, one row for each item of the catalogue, (n_items, 32)."""
        return self.item(self.features["item"](self.item_numeric, self.item_codes))

    def pair_logits(self, u: Tensor, v: Tensor, pair: Tensor) -> dict[str, Tensor]:
        """Logits (n,) of the binary tasks, from u, v and the pair's features."""
        both = torch.cat([u, v, u * v, pair], dim=-1)
        binary = [task.name for task in self.tasks if task.kind == "binary"]
        return {name: self.towers[name](both).squeeze(-1) for name in binary}

    def user_logits(self, u: Tensor) -> dict[str, Tensor]:
        """Logits (n, classes) of the multiclass tasks, which know of no candidate."""
        names = [task.name for task in self.tasks if task.kind == "multiclass"]
        own = {name: self.towers[name](u) for name in names if name in self.towers}
        return own | {
            name: u @ self.item_vectors().mT + self.bias.unsqueeze(-2) for name in names if name not in own
        }

    def forward(self, numeric: Tensor, categorical: Tensor) -> dict[str, Tensor]:
        """``{task: logits}``."""
        u = self.user_vectors(numeric, categorical)
        v = self.item(self.feature_vectors("item", numeric, categorical))
        pairs = self.feature_vectors("pair", numeric, categorical)
        return self.pair_logits(u, v, pairs) | self.user_logits(u)


def candidates(shop: Shop, people: ArrayLike) -> pd.DataFrame:
    """The rows to be ranked: each of these users with every item, first on the home page of the evening after the log.

    U user_ids, I items → U · I rows of a case frame, the items of the first user first, in the order of item_id.
    """
    asked = pd.MultiIndex.from_product([people, np.sort(shop.items["item_id"])], names=["user_id", "item_id"])
    asked = asked.to_frame(index=False).assign(position=1, surface="home", click=0, purchase=0)
    asked["impression_id"], n_items = 10**9 + asked.index, len(shop.items)
    asked["session_id"] = asked["impression_id"] // n_items * n_items
    last = pd.to_datetime(shop.impressions["timestamp"]).max()
    asked["timestamp"] = (last.ceil("D") + pd.Timedelta(hours=20)).isoformat()
    return shop_frame(replace(shop, impressions=pd.concat([shop.impressions, asked]))).tail(len(asked))


def item_table(shop: Shop, train: pd.DataFrame) -> pd.DataFrame:
    """The catalogue, an item a row, in the order of item_id: cleaned, with ``log_price``, ``price_vs_category``, and
    ``clicks`` in the training rows. ValueError when item_ids, the classes of ``next_item``, are not 0, 1, 2, …."""
    items = clean_items(shop.items).sort_values("item_id", ignore_index=True)
    if not (items["item_id"] == np.arange(len(items))).all():
        raise ValueError("item_ids must run 0, 1, 2, … without a gap: they are the classes of next_item.")
    log_price = np.log(items["price"])
    clicks = train.groupby("item_id")["click"].sum().reindex(items["item_id"], fill_value=0)
    dear = log_price - log_price.groupby(items["category"]).transform("mean")
    return items.assign(log_price=log_price, price_vs_category=dear, clicks=clicks.to_numpy())


def case_model(
    data: Splits, items: pd.DataFrame, tasks: Sequence[Task] | None = None, **settings
) -> CaseModel:
    """A :class:`CaseModel` for encoded case data, with its catalogue filled in from :func:`item_table`."""
    own = ["item_id", *ITEM_COLUMNS[0], *ITEM_COLUMNS[1]]
    rows = data.frames["train"].head(1).drop(columns=own).merge(items[own], how="cross")
    numeric, categorical = data.encoder.transform(rows)
    model = CaseModel(data.schema, tasks or data.tasks, len(items), **settings)
    return model.set_catalogue(numeric, categorical, torch.tensor(items["clicks"].to_numpy()))


@torch.no_grad()
def score_candidates(
    model: CaseModel, data: Splits, table: pd.DataFrame, items: pd.DataFrame
) -> dict[str, np.ndarray]:
    """Every signal of every row of :func:`candidates`: (U, I) probabilities.

    Binary tasks under their own names; ``category``, the chance that the user's next click is in the item's category;
    ``next``, the chance that it is this item. The last two are asked once a user.
    """
    numeric, codes = (x.to(model.bias.device) for x in data.encoder.transform(table))
    once = slice(None, None, len(items))
    u, v = model.eval().user_vectors(numeric[once], codes[once]), model.item_vectors()
    pairs = model.feature_vectors("pair", numeric, codes).split(len(items))
    logits = [model.pair_logits(own.expand_as(v), v, pair) for own, pair in zip(u, pairs, strict=True)]
    signals = {name: torch.stack([one[name] for one in logits]).sigmoid().cpu().numpy() for name in logits[0]}
    category = pd.Index(CATEGORIES).get_indexer(pd.Index(items["category"]))
    for name, value in model.user_logits(u).items():
        p = value.softmax(-1).cpu().numpy()
        signals |= {"category": p[:, category]} if name == "next_category" else {"next": p}
    return signals


def true_values(world: World, table: pd.DataFrame) -> dict[str, np.ndarray]:
    """The simulator's ``{"click", "purchase_given_click", "purchase"}`` of rows, such as :func:`candidates`, at their
    own moment and place, each (U, I) probabilities, a user a row: for judging, never for training."""
    asked = (table[name].to_numpy() for name in ("user_id", "item_id", "timestamp", "position", "surface"))
    shape = table["user_id"].nunique(), -1
    click, bought = (p.reshape(shape) for p in world.probabilities(*asked))
    return {"click": click, "purchase_given_click": bought, "purchase": click * bought}
