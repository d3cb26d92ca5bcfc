"""The e-commerce case: one model that knows who buys, which category a user favours, and what comes next.

Taught in notebook 05, which also writes the model by hand. :func:`case_frames` adds the case's features and labels to
a shop, :func:`case_data` encodes them, :class:`CaseModel` is the model, :func:`candidates` makes the rows to be ranked.

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

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from mtl_helpers.data.features import Splits, prepare
from mtl_helpers.data.shop import Shop
from mtl_helpers.data.shop_log import PRIOR_CTR, clean_items, shop_frame, shop_splits
from mtl_helpers.data.shop_world import CATEGORIES, World
from mtl_helpers.data.tables import Schema, Task, check_tasks
from mtl_helpers.models.layers import FeatureLayer, mlp

__all__ = ["CASE_CATEGORICAL", "CASE_NUMERIC", "ITEM_COLUMNS", "PAIR_COLUMNS", "USER_COLUMNS", "CaseModel"]
__all__ += ["candidates", "case_data", "case_frames", "case_model", "case_tasks", "item_table"]
__all__ += ["score_candidates", "true_values"]

PAST = tuple(f"past_{category}" for category in CATEGORIES)
USER_COLUMNS = (
    ("age", "signup_days", "user_past_clicks", "user_past_ctr", "days_since_click", *PAST),
    ("region", "loyalty_tier", "age_group", "surface", "last_sub_category"),
)
"""What is known before an item is chosen: numeric and categorical columns of the user and the moment. The user_id is
encoded too, but a model reads it only when asked: with a handful of clicks a user, ids are learned by heart."""
ITEM_COLUMNS = ("log_price", "price_vs_category"), ("category", "sub_category", "brand")
PAIR_COLUMNS = ("item_past_ctr", "days_on_sale", "category_clicks_week", "same_sub_as_last"), ("position",)
"""What is known only of an item at a moment, of a user and an item together, or of the place on the page."""
CASE_NUMERIC = (*USER_COLUMNS[0], *ITEM_COLUMNS[0], *PAIR_COLUMNS[0])
CASE_CATEGORICAL = ("user_id", *USER_COLUMNS[1], *ITEM_COLUMNS[1], *PAIR_COLUMNS[1])


def case_tasks(n_items: int) -> tuple[Task, ...]:
    """click, purchase, next_category and next_item."""
    classes = {"next_category": len(CATEGORIES), "next_item": n_items}
    return Task("click"), Task("purchase"), *(Task(name, "multiclass", n) for name, n in classes.items())


def case_frames(shop: Shop) -> dict[str, pd.DataFrame]:
    """``{"train", "valid", "test"}`` of a shop, split by time, with the case's features and labels.

    The latest 80,000 rows of :func:`shop_frame` (their features know the whole log), with ``category_clicks_week``, a
    user's past clicks on the item's category. ``next_item``, ``next_category``: on a session's first row, else NaN.
    """
    frame = shop_frame(shop).tail(80_000).reset_index(drop=True)
    asked = ["next_item", "next_category"]
    frame[asked] = frame[asked].mask(frame.duplicated("session_id"))
    own = frame[list(PAST)].to_numpy()[np.arange(len(frame)), _categories_of(frame)]
    return shop_splits(frame.assign(category_clicks_week=own))


def _categories_of(table: pd.DataFrame) -> np.ndarray:
    """Each row's category as its number in CATEGORIES."""
    return pd.Index(CATEGORIES).get_indexer(pd.Index(table["category"]))


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
        return own | {name: u @ self.item_vectors().T + self.bias for name in names if name not in own}

    def forward(self, numeric: Tensor, categorical: Tensor) -> dict[str, Tensor]:
        """``{task: logits}``."""
        u = self.user_vectors(numeric, categorical)
        v = self.item(self.feature_vectors("item", numeric, categorical))
        return self.pair_logits(u, v, self.feature_vectors("pair", numeric, categorical)) | self.user_logits(
            u
        )


def candidates(rows: pd.DataFrame, items: pd.DataFrame) -> pd.DataFrame:
    """Each row's user and moment with every item of ``items`` in its place, at position 1: the rows to be ranked.

    U ``rows`` of a case frame, I ``items`` as of :func:`item_table` → U · I rows, the items of the first user first.
    """
    user = rows[["timestamp", *USER_COLUMNS[0], "user_id", *USER_COLUMNS[1]]]
    item = items[["item_id", "on_sale_since", *ITEM_COLUMNS[0], *ITEM_COLUMNS[1], "price", "item_past_ctr"]]
    table = user.merge(item, how="cross")
    return table.assign(
        days_on_sale=(table["timestamp"] - table["on_sale_since"]).dt.days,
        category_clicks_week=rows[list(PAST)].to_numpy()[:, _categories_of(items)].ravel(),
        same_sub_as_last=(table["last_sub_category"] == table["sub_category"]).astype(float),
        position=1,
    )


def item_table(shop: Shop, train: pd.DataFrame) -> pd.DataFrame:
    """The catalogue as a model may know it when training ends: an item a row, in the order of item_id.

    Beside the cleaned columns: ``log_price``, ``price_vs_category``, ``clicks`` in the training rows, and the last
    ``item_past_ctr`` there. Raises ValueError when item_ids, the classes of ``next_item``, are not 0, 1, 2, ….
    """
    items = clean_items(shop.items).sort_values("item_id", ignore_index=True)
    if not (items["item_id"] == np.arange(len(items))).all():
        raise ValueError("item_ids must run 0, 1, 2, … without a gap: they are the classes of next_item.")
    log_price, shown = np.log(items["price"]), train.groupby("item_id")
    return items.assign(
        log_price=log_price,
        price_vs_category=log_price - log_price.groupby(items["category"]).transform("mean"),
        clicks=shown["click"].sum().reindex(items["item_id"], fill_value=0),
        item_past_ctr=shown["item_past_ctr"].last().reindex(items["item_id"], fill_value=PRIOR_CTR),
    )


def case_model(
    data: Splits, items: pd.DataFrame, tasks: Sequence[Task] | None = None, **settings
) -> CaseModel:
    """A :class:`CaseModel` for encoded case data, with its catalogue filled in from :func:`item_table`."""
    numeric, categorical = data.encoder.transform(candidates(data.frames["train"].head(1), items))
    model = CaseModel(data.schema, tasks or data.tasks, len(items), **settings)
    return model.set_catalogue(numeric, categorical, torch.tensor(items["clicks"].to_numpy()))


@torch.no_grad()
def score_candidates(
    model: CaseModel, data: Splits, rows: pd.DataFrame, items: pd.DataFrame
) -> dict[str, np.ndarray]:
    """Every signal of every candidate: (U, I) probabilities for U rows of a case frame and I items.

    Binary tasks under their own names; ``category``, the chance that the user's next click is in the item's category;
    ``next``, the chance that it is this item. The last two are asked once a user.
    """
    numeric, codes = (x.to(model.bias.device) for x in data.encoder.transform(candidates(rows, items)))
    once = slice(None, None, len(items))
    u, v = model.eval().user_vectors(numeric[once], codes[once]), model.item_vectors()
    pairs = model.feature_vectors("pair", numeric, codes).split(len(items))
    logits = [model.pair_logits(own.expand_as(v), v, pair) for own, pair in zip(u, pairs, strict=True)]
    signals = {name: torch.stack([one[name] for one in logits]).sigmoid().cpu().numpy() for name in logits[0]}
    for name, value in model.user_logits(u).items():
        p = value.softmax(-1).cpu().numpy()
        signals |= {"category": p[:, _categories_of(items)]} if name == "next_category" else {"next": p}
    return signals


def true_values(world: World, rows: pd.DataFrame, items: pd.DataFrame) -> dict[str, np.ndarray]:
    """The simulator's ``{"click", "purchase_given_click", "purchase"}`` of U rows' candidates at position 1, each
    (U, I) probabilities: for judging, never for training."""
    user, moment, surface = (rows[name].to_numpy()[:, None] for name in ("user_id", "timestamp", "surface"))
    click, bought = world.probabilities(user, items["item_id"].to_numpy()[None, :], moment, 1, surface)
    return {"click": click, "purchase_given_click": bought, "purchase": click * bought}
