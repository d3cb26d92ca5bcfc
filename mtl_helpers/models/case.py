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
from mtl_helpers.data.shop_log import PRIOR_CTR, PRIOR_VIEWS, clean_items, shop_frame, shop_splits
from mtl_helpers.data.shop_world import CATEGORIES, World
from mtl_helpers.data.tables import Schema, Task, check_tasks
from mtl_helpers.models.layers import FeatureLayer, mlp

__all__ = ["CASE_CATEGORICAL", "CASE_NUMERIC", "ITEM_COLUMNS", "PAIR_COLUMNS", "USER_COLUMNS", "CaseModel"]
__all__ += ["candidates", "case_data", "case_frames", "case_model", "case_tasks", "item_table"]
__all__ += ["score_candidates", "true_values"]

PAST = tuple(f"past_{category}" for category in CATEGORIES[:8])
"""Clicks of the user on each category, in sessions before this one."""
USER_COLUMNS = (
    ("age", "signup_days", "user_past_clicks", "user_past_ctr", *PAST),
    ("region", "loyalty_tier", "age_group", "channel"),
)
"""What is known before an item is chosen: numeric and categorical columns of the user and the moment. The user_id is
encoded too, but a model reads it only when asked: with a click or two a user, ids are learned by heart."""
ITEM_COLUMNS = (
    ("log_price", "price_vs_category", "rating", "launched_days"),
    ("item_id", "category", "brand"),
)
PAIR_COLUMNS = (("item_past_ctr", "user_category_past_clicks"), ("position",))
"""What is known only of an item at a moment, of a user and an item together, or of the place on the page."""
CASE_NUMERIC = (*USER_COLUMNS[0], *ITEM_COLUMNS[0], *PAIR_COLUMNS[0])
CASE_CATEGORICAL = ("user_id", *USER_COLUMNS[1], *ITEM_COLUMNS[1], *PAIR_COLUMNS[1])


def case_tasks(n_items: int) -> tuple[Task, ...]:
    """click, purchase, next_category and next_item."""
    classes = {"next_category": len(PAST), "next_item": n_items}
    return Task("click"), Task("purchase"), *(Task(name, "multiclass", n) for name, n in classes.items())


def case_frames(shop: Shop) -> dict[str, pd.DataFrame]:
    """``{"train", "valid", "test"}`` of a shop, split by time, with the case's features and labels.

    Beyond :func:`shop_frame`: the columns ``past_<category>``, and ``next_item``, the item_id of the
    next click at a later moment. As with ``next_category``, a click that falls after its part has ended is unknown.
    Both labels are asked once a session, on its first row; elsewhere they are NaN.
    """
    frame = shop_frame(shop)
    clicks = pd.DataFrame({name: (frame["category"] == name[5:]) * frame["click"] for name in PAST})
    now = clicks.groupby([frame["user_id"], frame["timestamp"]]).sum()
    before = (now.groupby(level=0).cumsum() - now).reset_index()  # in strictly earlier sessions
    frame = frame.merge(before, on=["user_id", "timestamp"], how="left", validate="many_to_one")
    clicked = frame.loc[frame["click"] == 1, ["user_id", "timestamp", "item_id"]]
    clicked = clicked.drop_duplicates(["user_id", "timestamp"])  # in the order of position
    clicked = clicked.rename(columns={"timestamp": "next_click_time", "item_id": "next_item"})
    parts = {}
    for name, part in shop_splits(frame).items():
        # the split has forgotten the moments it cannot know, so the join finds no item for them
        part = part.merge(clicked, on=["user_id", "next_click_time"], how="left", validate="many_to_one")
        asked = ["next_item", "next_category"]
        parts[name] = part.assign(**part[asked].where(part["position"] == 1))
    return parts


def _categories_of(items: pd.DataFrame) -> np.ndarray:
    """Each item's category as its number in CATEGORIES, (I,)."""
    return pd.Index(CATEGORIES).get_indexer(pd.Index(items["category"]))


def case_data(frames: dict[str, pd.DataFrame], n_items: int, device: torch.device | str = "cpu") -> Splits:
    """Encode the frames of :func:`case_frames`."""
    return prepare(frames, case_tasks(n_items), CASE_NUMERIC, CASE_CATEGORICAL, device=device)


class CaseModel(nn.Module):
    """A shared user bottom, a shared item bottom, and a tower for each task.

    u = f(user, moment) and v = g(item), both (n, width). Binary tasks: tower([u, v, u·v elementwise, pair columns]).
    Multiclass tasks over the catalogue (as many classes as items): u Vᵀ + b with V = g(all items), (n_items, width),
    so that retrieval is a search for the largest dot product. Other multiclass tasks: a linear layer on u.
    ``n_items`` sizes the catalogue, which :meth:`set_catalogue` fills in; ``user_ids``: embed the user_id as well.
    """

    def __init__(
        self,
        schema: Schema,
        tasks: Sequence[Task],
        n_items: int,
        embedding_dim: int = 4,
        width: int = 32,
        user_ids: bool = False,
    ) -> None:
        super().__init__()
        self.tasks, self.schema = check_tasks(tasks), schema
        self.settings = {"n_items": n_items, "embedding_dim": embedding_dim, "width": width}
        self.settings["user_ids"] = user_ids
        user = (USER_COLUMNS[0], ("user_id", *USER_COLUMNS[1])) if user_ids else USER_COLUMNS
        self._parts, self.features = {}, nn.ModuleDict()
        for part, (numbers, codes) in {"user": user, "item": ITEM_COLUMNS, "pair": PAIR_COLUMNS}.items():
            own = Schema(numbers, {column: schema.categorical[column] for column in codes})
            self.features[part] = FeatureLayer(own, embedding_dim)
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
        """Take the items' own columns out of encoded rows, one row an item in the order of the classes; ``clicks``
        (n_items,) of the training rows start the bias at the log of each item's share: popularity, untrained."""
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
        """u, (n, width)."""
        return self.user(self.feature_vectors("user", numeric, categorical))

    def item_vectors(self) -> Tensor:
        """V, one row for each item of the catalogue, (n_items, width)."""
        return self.item(self.features["item"](self.item_numeric, self.item_codes))

    def forward(
        self, numeric: Tensor, categorical: Tensor, only: Sequence[str] | None = None
    ) -> dict[str, Tensor]:
        """``{task: logits}`` of all tasks, or of those in ``only``."""
        u = self.user_vectors(numeric, categorical)
        v = self.item(self.feature_vectors("item", numeric, categorical))
        both = torch.cat([u, v, u * v, self.feature_vectors("pair", numeric, categorical)], dim=-1)
        logits = {}
        for task in self.tasks:
            if only is not None and task.name not in only:
                continue
            if task.kind == "binary":
                logits[task.name] = self.towers[task.name](both).squeeze(-1)
            elif task.name in self.towers:
                logits[task.name] = self.towers[task.name](u)
            else:
                logits[task.name] = u @ self.item_vectors().T + self.bias
        return logits


def candidates(rows: pd.DataFrame, items: pd.DataFrame) -> pd.DataFrame:
    """Each row's user and moment with every item of ``items`` in its place, at position 1: the rows to be ranked.

    U ``rows`` of a case frame, I ``items`` as of :func:`item_table` → U · I rows, the items of the first user first.
    """
    own = [*USER_COLUMNS[0], "user_id", *USER_COLUMNS[1]]
    user = rows[own].take(np.repeat(np.arange(len(rows)), len(items))).reset_index(drop=True)
    item = items[[*ITEM_COLUMNS[0], *ITEM_COLUMNS[1], "price", "item_past_ctr"]]
    table = pd.concat([user, pd.concat([item] * len(rows), ignore_index=True)], axis=1)
    past = rows[list(PAST)].to_numpy()[:, _categories_of(items)]
    return table.assign(user_category_past_clicks=past.ravel(), position=1)


def item_table(shop: Shop, train: pd.DataFrame) -> pd.DataFrame:
    """The catalogue as a model may know it when training ends: an item a row, in the order of item_id.

    Beside the cleaned columns: ``log_price``, ``price_vs_category``, and, counted on the training rows, ``clicks`` and
    the smoothed ``item_past_ctr``. Raises ValueError when item_ids, the classes of ``next_item``, are not 0, 1, 2, ….
    """
    items = clean_items(shop.items).sort_values("item_id", ignore_index=True)
    if not (items["item_id"] == np.arange(len(items))).all():
        raise ValueError("item_ids must run 0, 1, 2, … without a gap: they are the classes of next_item.")
    log_price = np.log(items["price"])
    counts = train.groupby("item_id")["click"].agg(["sum", "count"]).reindex(items["item_id"], fill_value=0)
    clicks, views = counts["sum"].to_numpy(), counts["count"].to_numpy()
    return items.assign(
        log_price=log_price,
        price_vs_category=log_price - log_price.groupby(items["category"]).transform("mean"),
        clicks=clicks,
        item_past_ctr=(clicks + PRIOR_VIEWS * PRIOR_CTR) / (views + PRIOR_VIEWS),
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
    model.eval()
    table = data.encoder.transform(candidates(rows, items))
    encoded = [tensor.to(model.bias.device) for tensor in table]
    binary = [task.name for task in model.tasks if task.kind == "binary"]
    parts = [model(*part, only=binary) for part in zip(*(t.split(16_384) for t in encoded), strict=True)]
    signals = {name: torch.cat([part[name] for part in parts]).sigmoid() for name in binary}
    signals = {name: p.reshape(len(rows), len(items)).cpu().numpy() for name, p in signals.items()}
    once = [tensor[:: len(items)] for tensor in encoded]
    others = [task.name for task in model.tasks if task.kind == "multiclass"]
    for name, logits in model(*once, only=others).items():
        p = logits.softmax(-1).cpu().numpy()
        if p.shape[1] == len(items):
            signals["next"] = p
        elif name == "next_category":
            signals["category"] = p[:, _categories_of(items)]
    return signals


def true_values(world: World, rows: pd.DataFrame, items: pd.DataFrame) -> dict[str, np.ndarray]:
    """What the simulator knows of the candidates of U rows, at position 1: for judging, never for training.

    ``{"click", "purchase_given_click", "purchase"}``, each (U, I) probabilities.
    """
    user, hour, channel = (rows[name].to_numpy()[:, None] for name in ("user_id", "hour", "channel"))
    click, bought = world.probabilities(user, items["item_id"].to_numpy()[None, :], 1, hour, channel)
    return {"click": click, "purchase_given_click": bought, "purchase": click * bought}
