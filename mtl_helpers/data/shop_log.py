"""The shop's raw log made ready for learning: cleaned, joined, with features of the past only, and split.

Taught in notebook 01 (from the raw log to features). :func:`clean_users`, :func:`clean_items` and
:func:`clean_impressions` undo the dirt, :func:`shop_frame` joins and adds features that look at earlier sessions only,
:func:`shop_splits` cuts the result without a leak, and :func:`bayes_auc` is the ceiling of every model.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from mtl_helpers.data.features import split_by_time, split_by_user
from mtl_helpers.data.shop import Shop
from mtl_helpers.data.shop_world import AGE_EDGES, AGE_GROUPS, CATEGORIES
from mtl_helpers.data.tables import Task
from mtl_helpers.metrics import auc

# fmt: off
__all__ = [
    "PRIOR_CTR", "PRIOR_VIEWS", "SHOP_CATEGORICAL", "SHOP_NUMERIC", "SHOP_TASKS", "bayes_auc", "clean_impressions",
    "clean_items", "clean_users", "clip_outliers", "convert_units", "drop_duplicate_rows", "mask_future_labels",
    "shop_frame", "shop_splits", "tidy_text",
]

PRIOR_CTR = 0.05
PRIOR_VIEWS = 20.0
"""``PRIOR_VIEWS`` imagined views at ``PRIOR_CTR`` smooth the past click rates. Chosen beforehand, so nothing leaks."""

SHOP_NUMERIC = (
    "log_price", "price_vs_category", "rating", "launched_days", "age", "signup_days",
    "user_past_clicks", "user_past_ctr", "item_past_ctr", "user_category_past_clicks",
)
SHOP_CATEGORICAL = (
    "user_id", "item_id", "category", "brand", "region", "loyalty_tier", "age_group", "channel",
    "hour", "weekday", "position",
)
# fmt: on
SHOP_TASKS = (Task("click"), Task("purchase"), Task("next_category", kind="multiclass", n_classes=8))


def drop_duplicate_rows(frame: pd.DataFrame) -> pd.DataFrame:
    """Drop rows that repeat an earlier row in every column (a log that was written twice), and renumber."""
    return frame.drop_duplicates(ignore_index=True)


def tidy_text(values: pd.Series) -> pd.Series:
    """Strip blanks around text and lower its case, so that ``" Books"`` and ``"books"`` are one category."""
    return values.str.strip().str.lower()


def convert_units(values: pd.Series, unit: pd.Series, factors: dict[str, float]) -> pd.Series:
    """Multiply each value by the factor of its unit, e.g. ``{"EUR": 1, "cent": 0.01}``.

    Raises ValueError for a unit without a factor: a silent guess would be off by that factor.
    """
    if unknown := sorted(set(unit.fillna("(missing)")) - set(factors)):
        raise ValueError(f"No factor for unit {', '.join(unknown)}: known are {', '.join(factors)}.")
    return values * unit.map(factors).astype(float)


def clip_outliers(values: pd.Series, k: float = 3.0, log: bool = False) -> pd.Series:
    """Clip values further than ``k`` interquartile ranges outside the quartiles (Tukey's far-out fences for k = 3).

    ``log=True`` measures on the log scale, right for prices and counts; all values must then be positive.
    Missing values stay missing.
    """
    if log and (values.dropna() <= 0).any():
        raise ValueError(f"clip_outliers(log=True) needs values above 0; {values.name!r} has {values.min()}.")
    scale = np.log(values) if log else values
    low, high = scale.quantile(0.25), scale.quantile(0.75)
    fence = scale.clip(low - k * (high - low), high + k * (high - low))
    return np.exp(fence) if log else fence


def _refuse(values: pd.Series, bad: pd.Series, why: str) -> None:
    """Stop at the first of ``values`` that is ``bad``: going on would give wrong numbers without a word."""
    if bad.any():
        raise ValueError(f"{values.name} {values[bad].iloc[0]!s} {why}.")


def clean_users(users: pd.DataFrame) -> pd.DataFrame:
    """Drop duplicate rows and turn impossible ages (below 14, above 100) into missing ones.

    A missing age stays missing: the encoder fills it with the mean of the training rows.
    """
    users = drop_duplicate_rows(users)
    _refuse(users["user_id"], users["user_id"].duplicated(), "stands for two different rows")
    return users.assign(
        age=users["age"].where(users["age"].between(14, 100)),
        region=tidy_text(users["region"]),
        loyalty_tier=tidy_text(users["loyalty_tier"]),
    )


def clean_items(items: pd.DataFrame) -> pd.DataFrame:
    """Drop duplicate rows, tidy the categories, bring all prices to EUR and clip outliers within their category.

    The column ``price_unit`` goes. A missing rating stays missing.
    """
    items = drop_duplicate_rows(items)
    _refuse(items["item_id"], items["item_id"].duplicated(), "stands for two different rows")
    items = items.assign(
        category=tidy_text(items["category"]),
        brand=tidy_text(items["brand"]),
        price=convert_units(items["price"], items["price_unit"], {"EUR": 1.0, "cent": 0.01}),
    )
    unknown = ~items["category"].isin(CATEGORIES)
    _refuse(items["category"], unknown, f"is unknown: expected one of {', '.join(CATEGORIES)}")
    _refuse(items["price"], items["price"] <= 0, "is not above 0")
    clipped = items.groupby("category")["price"].transform(lambda price: clip_outliers(price, log=True))
    return items.assign(price=clipped.round(2)).drop(columns="price_unit")


def clean_impressions(impressions: pd.DataFrame) -> pd.DataFrame:
    """Drop duplicate rows, read the timestamps and sort by time.

    Raises ValueError when a timestamp cannot be read, an impression id stands for two different rows, a session
    has two timestamps, a label is not 0 or 1, or something was bought without a click.
    """
    log = drop_duplicate_rows(impressions)
    _refuse(log["impression_id"], log["impression_id"].duplicated(), "stands for two different rows")
    for name in ("click", "purchase"):
        _refuse(log[name], ~log[name].isin((0, 1)), "is not 0 or 1")
    _refuse(log["impression_id"], log["purchase"] > log["click"], "was bought without a click")
    moment = pd.to_datetime(log["timestamp"], format="ISO8601").astype("datetime64[s]")
    log = log.assign(timestamp=moment, channel=tidy_text(log["channel"]))
    log = log.sort_values(["timestamp", "impression_id"], kind="stable", ignore_index=True)
    sessions = log[["session_id", "timestamp"]].drop_duplicates()["session_id"]
    _refuse(sessions, sessions.duplicated(), "has two timestamps")
    return log


def shop_frame(shop: Shop) -> pd.DataFrame:
    """Clean, join and extract features: one row an impression, sorted by time.

    Holds the columns of the three tables and

    - ``hour``, ``weekday`` (Monday is 0) of the timestamp; ``log_price``; ``price_vs_category``, the log price minus
      the mean log price of the item's category in the catalogue; ``age_group`` ("unknown" without an age);
    - ``user_past_clicks``, ``user_past_ctr``, ``item_past_ctr``, ``user_category_past_clicks``: history, counted
      over strictly earlier timestamps only, hence never over the row's own session. The click rates are smoothed:
      (clicks + PRIOR_VIEWS * PRIOR_CTR) / (views + PRIOR_VIEWS);
    - ``next_category``, a label: class (place in :data:`CATEGORIES`) of the user's next click at a later timestamp,
      the first one in order of position when that session has several; NaN when the log holds none.
      ``next_click_time`` is the moment of that click. Both look into the future: split with :func:`shop_splits`,
      or call :func:`mask_future_labels` on every part that ends before the log does.

    ``dwell_seconds``, ``next_click_time`` and the labels are outcomes. None belongs among the features.

    Raises ValueError when the log names a user or an item that its table does not have.
    """
    log, users, items = clean_impressions(shop.impressions), clean_users(shop.users), clean_items(shop.items)
    for key, table in (("user_id", users), ("item_id", items)):
        _refuse(log[key], ~log[key].isin(table[key]), "is in the log, but not in its table")
    items = items.assign(log_price=np.log(items["price"]))
    items["price_vs_category"] = items["log_price"] - items.groupby("category")["log_price"].transform("mean")
    groups = pd.cut(users["age"], [0, *AGE_EDGES[1:-1], np.inf], right=False, labels=list(AGE_GROUPS))
    users = users.assign(age_group=groups.astype(object).where(groups.notna(), "unknown").astype(str))

    frame = log.merge(users, on="user_id", how="left").merge(items, on="item_id", how="left")
    frame = frame.assign(hour=frame["timestamp"].dt.hour, weekday=frame["timestamp"].dt.day_of_week)
    return _add_next_click(_add_history(frame))


def _add_history(frame: pd.DataFrame) -> pd.DataFrame:
    moment = frame["timestamp"].to_numpy().astype("datetime64[s]").astype(np.int64)
    click = frame["click"].to_numpy(np.int64)
    user, item = frame["user_id"].to_numpy(), frame["item_id"].to_numpy()
    both = user.astype(np.int64) * len(CATEGORIES) + _category_codes(frame["category"])
    user_views, user_clicks = _past(user, moment, click)
    item_views, item_clicks = _past(item, moment, click)
    return frame.assign(
        user_past_clicks=user_clicks,
        user_past_ctr=(user_clicks + PRIOR_VIEWS * PRIOR_CTR) / (user_views + PRIOR_VIEWS),
        item_past_ctr=(item_clicks + PRIOR_VIEWS * PRIOR_CTR) / (item_views + PRIOR_VIEWS),
        user_category_past_clicks=_past(both, moment, click)[1],
    )


def _past(key: np.ndarray, moment: np.ndarray, click: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows and clicks with the same key at strictly earlier moments, for each row."""
    order = np.lexsort((moment, key))
    key, moment, click = key[order], moment[order], click[order]
    place = np.arange(len(key))
    clicks_before = np.cumsum(click) - click
    new_key = np.r_[True, key[1:] != key[:-1]][: len(key)]
    new_moment = new_key | np.r_[True, moment[1:] != moment[:-1]][: len(key)]
    # The first row of this key, and the first row of this key at this moment: what lies between them is the past.
    first = np.maximum.accumulate(np.where(new_key, place, 0))
    now = np.maximum.accumulate(np.where(new_moment, place, 0))
    views, clicks = np.empty((2, len(key)), dtype=np.int64)
    views[order] = now - first
    clicks[order] = clicks_before[now] - clicks_before[first]
    return views, clicks


def _add_next_click(frame: pd.DataFrame) -> pd.DataFrame:
    clicks = frame.loc[frame["click"] == 1, ["user_id", "timestamp", "session_id", "position", "category"]]
    clicks = clicks.sort_values(["timestamp", "session_id", "position"], kind="stable")
    clicks = clicks.drop_duplicates(["user_id", "timestamp"])
    clicks = clicks.assign(
        next_category=_category_codes(clicks["category"]).astype(float), next_click_time=clicks["timestamp"]
    )
    return pd.merge_asof(
        frame,
        clicks[["timestamp", "user_id", "next_category", "next_click_time"]],
        on="timestamp",
        by="user_id",
        direction="forward",
        allow_exact_matches=False,
    )


def _category_codes(category: pd.Series) -> np.ndarray:
    return pd.Index(CATEGORIES).get_indexer(pd.Index(category))


def mask_future_labels(frame: pd.DataFrame, until: pd.Timestamp | str | None) -> pd.DataFrame:
    """Forget next clicks at or after ``until``: whoever trains at that moment cannot know them yet.

    Sets ``next_category`` to NaN and ``next_click_time`` to NaT there; all rows stay, so other tasks keep theirs.
    """
    if until is None:
        return frame
    known = frame["next_click_time"] < pd.Timestamp(until)
    return frame.assign(
        next_category=frame["next_category"].where(known),
        next_click_time=frame["next_click_time"].where(known),
    )


def shop_splits(
    frame: pd.DataFrame, split: str = "time", fractions: Sequence[float] = (0.7, 0.15, 0.15), seed: int = 0
) -> dict[str, pd.DataFrame]:
    """Split a :func:`shop_frame` into ``{"train", "valid", "test"}`` without a leak from the future.

    Parameters
    ----------
    split : ``"time"`` cuts at two moments and masks each ``next_category`` that is decided only after its part has
        ended; ``"user"`` keeps all rows of a user together (a next click belongs to the same user, so none is masked).
        By user, all parts cover the same weeks: ``item_past_ctr`` of a test row counts earlier clicks of training
        users, as it would in a running shop.
    seed : of the random choice of users; a split by time has none.
    """
    if split == "user":
        return split_by_user(frame, fractions=fractions, seed=seed)
    if split != "time":
        raise ValueError(f"split is {split!r}, expected 'time' or 'user'.")
    parts = split_by_time(frame, fractions=fractions)
    ends = {
        "train": parts["valid"]["timestamp"].min(),
        "valid": parts["test"]["timestamp"].min(),
        "test": None,
    }
    return {name: mask_future_labels(part, ends[name]) for name, part in parts.items()}


def bayes_auc(shop: Shop) -> dict[str, float]:
    """AUC of the true probabilities: no model can expect more.

    Returns ``click`` and ``purchase`` over all impressions, and ``purchase_given_click`` over the clicked ones.
    """
    log = shop.impressions.drop_duplicates("impression_id").merge(shop.truth, on="impression_id")
    clicked = log[log["click"] == 1]
    return {
        "click": float(auc(log["click"].to_numpy(), log["p_click"].to_numpy())),
        "purchase": float(auc(log["purchase"].to_numpy(), log["p_purchase"].to_numpy())),
        "purchase_given_click": float(
            auc(clicked["purchase"].to_numpy(), clicked["p_purchase_given_click"].to_numpy())
        ),
    }
