"""Figures of the shop's data card: what the truth of the shipped shop allows, and what simple rules reach.

python notebooks/studies/nb00_shop_card.py
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import study  # noqa: F401  (the package on the path)
from sklearn.linear_model import LogisticRegression

from mtl_helpers import data
from mtl_helpers.data import CATEGORIES, PAGE, Shop, World, make_world
from mtl_helpers.data.shop_world import PARENT, SUBS
from mtl_helpers.metrics import expected_auc


def bayes_auc(shop: Shop) -> dict[str, float]:
    """AUC of the true probabilities, weighted by themselves: no model can expect more. Of ``click`` and ``purchase``
    over all impressions, and of ``purchase_given_click`` over clicks."""
    click, given, bought = (shop.truth[f"p_{name}"] for name in ("click", "purchase_given_click", "purchase"))
    aucs = {"click": expected_auc(click, click), "purchase": expected_auc(bought, bought)}
    return aucs | {"purchase_given_click": expected_auc(given, given, click)}


def page_of(world: World, frame: pd.DataFrame) -> np.ndarray:
    """Row numbers, in the world's pages, of the last page of each row's session."""
    end = frame.groupby("session_id")["timestamp"].transform("max")
    second = (end - pd.Timestamp("2025-03-03")).dt.total_seconds().to_numpy(np.int64)
    return np.searchsorted(world.pages["key"], frame["user_id"].to_numpy(np.int64) << 32 | second)


def hidden_state(shop: Shop, frames: dict[str, pd.DataFrame]) -> np.ndarray:
    """Probabilities (n, 8) of the next click's category for the test rows, from what the simulator knows of a user.

    That is, when the row's session ends: the mission of its last page, what excites the user, and which missions the
    user tends to. How they decide is fitted on the training rows by logistic regression, since the old ranker, which
    has a say, is too involved for a formula. So it is an estimate of the ceiling from below.
    """
    world, of_category = make_world(shop.config), np.eye(len(CATEGORIES))[PARENT]
    wish = np.exp(world.taste)
    wish = wish / np.average(wish, 0, world.activity)

    def state(frame: pd.DataFrame) -> np.ndarray:
        page, user = page_of(world, frame), frame["user_id"].to_numpy()
        wishes = (wish[user] / wish[user].sum(1, keepdims=True)) @ of_category
        excited = np.minimum(world.pages["excitement"][page], 2) @ of_category
        return np.hstack([of_category[world.pages["mission"][page]], excited, np.log(wishes)])

    rows = frames["train"].dropna(subset=["next_category"]).drop_duplicates("session_id")
    model = LogisticRegression(max_iter=2000).fit(state(rows), rows["next_category"].astype(int))
    return model.predict_proba(state(frames["test"]))


def first_click(world: World) -> tuple[float, float]:
    """Given that a page of 8 is clicked: how often the first click is where the truth expects it most, and on top."""
    p = world.log["p_click"].reshape(-1, PAGE)
    first = p * np.cumprod(np.hstack([np.ones((len(p), 1)), 1 - p[:, :-1]]), axis=1)
    return first.max(1).sum() / first.sum(), first[:, 0].sum() / first.sum()


if __name__ == "__main__":
    shop = data.load_shop()
    frames = data.shop_splits(data.shop_frame(shop))
    train, test = frames["train"], frames["test"]
    known = test["next_category"].notna().to_numpy()
    y = test["next_category"][known].astype(int)
    parent = dict(zip(SUBS, PARENT, strict=True)) | {"none": -1}
    clicked = train.loc[train["click"] == 1, "item_id"].value_counts().index
    said = hidden_state(shop, frames)[known]
    print({name: round(value, 4) for name, value in bayes_auc(shop).items()})
    found = {
        "next category, largest class of the training part": (y == train["next_category"].mode()[0]).mean(),
        "next category is that of the last click": (y == test["last_sub_category"][known].map(parent)).mean(),
        "next category from the hidden state": (said.argmax(1) == y).mean(),
        "log-loss of the hidden state": -np.log(said[np.arange(len(y)), y]).mean(),
        "next item, the most clicked": (test["next_item"][known] == clicked[0]).mean(),
        "next item, among the ten most clicked": test["next_item"][known].isin(clicked[:10]).mean(),
        "first click of a page, by the truth, and at position 1": first_click(make_world(shop.config)),
    }
    for what, value in found.items():
        print(f"{what}: {np.round(value, 3)}")
