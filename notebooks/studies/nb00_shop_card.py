"""Figures of the shop's data card: what the truth allows for what comes next.

python notebooks/studies/nb00_shop_card.py            # of the shipped shop
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from mtl_helpers.data import CATEGORIES, Shop, World, make_world
from mtl_helpers.data.shop_world import PARENT


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
