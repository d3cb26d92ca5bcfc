"""From the shop's raw log to rows a model can learn from: clean, join, look back, split.

:func:`shop_frame` cleans and joins the tables and adds features of strictly earlier sessions; :func:`shop_splits` cuts
the frame by time without a leak; :func:`history_sequences` gives the last events of every row's user for models that
read sequences.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from mtl_helpers.data.features import split_by_time, split_by_user
from mtl_helpers.data.second.shop import Shop
from mtl_helpers.data.second.world import AGE_EDGES, AGE_GROUPS, CATEGORIES
from mtl_helpers.data.shop_log import clip_outliers, convert_units, drop_duplicate_rows, tidy_text
from mtl_helpers.data.tables import Task
from mtl_helpers.metrics import expected_auc

__all__ = [
    "PRIOR_CTR",
    "PRIOR_VIEWS",
    "SHOP_CATEGORICAL",
    "SHOP_COUNTS",
    "SHOP_HISTORY",
    "SHOP_IDS",
    "SHOP_NUMERIC",
    "SHOP_TASKS",
    "bayes_auc",
    "clean_impressions",
    "clean_items",
    "clean_users",
    "history_sequences",
    "mask_future_labels",
    "shop_frame",
    "shop_splits",
]

PRIOR_CTR, PRIOR_VIEWS = 0.07, 20.0
"""``PRIOR_VIEWS`` imagined views at ``PRIOR_CTR`` smooth the past click rates. Chosen beforehand, so nothing leaks."""
WAIT = pd.Timedelta(days=4)
"""How long a click's purchase is waited for: nine of ten are in by then."""
SHOP_TASKS = (
    Task("click"),
    Task("purchase"),
    Task("next_category", kind="multiclass", n_classes=len(CATEGORIES)),
)
SHOP_IDS = ("user_id", "item_id")
SHOP_CATEGORICAL = (
    *("category", "sub_category", "brand", "region", "loyalty_tier", "age_group"),
    *("surface", "hour", "weekday", "position", "last_sub_category"),
)
SHOP_COUNTS = (
    *("log_price", "price_vs_category", "days_on_sale", "age", "signup_days"),
    *(
        "user_past_clicks",
        "user_past_ctr",
        "item_past_ctr",
        "user_category_past_clicks",
        "user_brand_past_clicks",
    ),
)
"""Numeric columns of the tables, and counts over all earlier sessions."""
SHOP_HISTORY = (
    *(
        "sub_clicks_day",
        "category_clicks_day",
        "sub_clicks_week",
        "sub_bought",
        "item_seen",
        "item_clicks_week",
    ),
    *("days_since_click", "same_sub_as_last", *(f"past_{name}" for name in CATEGORIES)),
)
"""What a user did lately: fading sums (half-life a day, a week, a fortnight), and the last click."""
SHOP_NUMERIC = (*SHOP_COUNTS, *SHOP_HISTORY)


# ------------------------------------------------------------------------------------------------- cleaning


def clean_users(users: pd.DataFrame) -> pd.DataFrame:
    """Drop duplicate rows and turn impossible ages (below 14, above 100) into missing ones."""
    users = _unique(drop_duplicate_rows(users), "user_id")
    return users.assign(
        age=users["age"].where(users["age"].between(14, 100)),
        region=tidy_text(users["region"]),
        loyalty_tier=tidy_text(users["loyalty_tier"]),
    )


def clean_items(items: pd.DataFrame) -> pd.DataFrame:
    """Drop duplicate rows, tidy the categories, bring all prices to EUR and clip outliers within their category."""
    items = _unique(drop_duplicate_rows(items), "item_id")
    price = convert_units(items["price"], items["price_unit"], {"EUR": 1.0, "cent": 0.01})
    items = items.assign(category=tidy_text(items["category"]), brand=tidy_text(items["brand"]), price=price)
    unknown = sorted(set(items["category"].fillna("(missing)")) - set(CATEGORIES))
    if unknown:
        raise ValueError(
            f"Unknown category {', '.join(map(repr, unknown))}: expected one of {', '.join(CATEGORIES)}."
        )
    clipped = items.groupby("category")["price"].transform(lambda price: clip_outliers(price, log=True))
    on_sale = pd.to_datetime(items["on_sale_since"])
    return items.assign(price=clipped.round(2), on_sale_since=on_sale).drop(columns="price_unit")


def clean_impressions(impressions: pd.DataFrame) -> pd.DataFrame:
    """Drop duplicate rows, read the timestamps and sort by time.

    Raises ValueError when an impression id stands for two different rows, a label is not 0 or 1, or something was
    bought without a click.
    """
    log = _unique(drop_duplicate_rows(impressions), "impression_id")
    stamps = {
        name: pd.to_datetime(log[name]).astype("datetime64[s]") for name in ("timestamp", "purchase_time")
    }
    log = log.assign(**stamps, surface=tidy_text(log["surface"]))
    if not log[["click", "purchase"]].isin((0, 1)).all(axis=None) or (log["purchase"] > log["click"]).any():
        raise ValueError("click and purchase must be 0 or 1, and nothing is bought without a click.")
    return log.sort_values(["timestamp", "impression_id"], kind="stable", ignore_index=True)


def _unique(frame: pd.DataFrame, key: str) -> pd.DataFrame:
    twice = frame.loc[frame[key].duplicated(), key]
    if len(twice):
        raise ValueError(f"{key} {twice.iloc[0]} stands for two different rows: expected each {key} once.")
    return frame


# ------------------------------------------------------------------------------------------------- features


def shop_frame(shop: Shop) -> pd.DataFrame:
    """Clean, join and extract features: one row an impression, sorted by time.

    Holds the columns of the three tables and

    - ``hour``, ``weekday`` (Monday is 0), ``session_start``; ``log_price``; ``price_vs_category``, the log price minus
      the mean log price of the item's category in the catalogue; ``age_group`` ("unknown" without an age);
      ``days_on_sale``;
    - :data:`SHOP_COUNTS` and :data:`SHOP_HISTORY`, over events strictly before the session began. Click rates are
      smoothed: (clicks + PRIOR_VIEWS * PRIOR_CTR) / (views + PRIOR_VIEWS). ``last_sub_category`` is that of the user's
      last click ("none" without one);
    - labels that look ahead: ``next_category`` (class in :data:`CATEGORIES`) and ``next_item`` of the user's first
      click in a later session, at ``next_click_time``; ``spend_7d``, EUR the user spends within 7 days after the
      session began. NaN when the log does not hold them. Split with :func:`shop_splits`, which cuts them.

    ``dwell_seconds``, ``purchase_time``, ``next_click_time`` and the labels are outcomes: never features.
    """
    log, users, items = clean_impressions(shop.impressions), clean_users(shop.users), clean_items(shop.items)
    items = items.assign(log_price=np.log(items["price"]))
    items["price_vs_category"] = items["log_price"] - items.groupby("category")["log_price"].transform("mean")
    groups = pd.cut(users["age"], [0, *AGE_EDGES[1:-1], np.inf], right=False, labels=list(AGE_GROUPS))
    users = users.assign(age_group=groups.astype(object).where(groups.notna(), "unknown").astype(str))
    frame = log.merge(users, on="user_id", how="left").merge(items, on="item_id", how="left")
    frame = frame.assign(
        hour=frame["timestamp"].dt.hour,
        weekday=frame["timestamp"].dt.day_of_week,
        session_start=frame.groupby("session_id")["timestamp"].transform("min"),
        days_on_sale=(frame["timestamp"] - frame["on_sale_since"]).dt.days,
    )
    return _add_future(_add_history(frame))


class _Events:
    """Rows with the same key at a moment of theirs: sums of a value over those before each row's session began."""

    def __init__(self, frame: pd.DataFrame, *key: str, moment: str = "timestamp") -> None:
        zero = frame["session_start"].min()
        self.group = frame.groupby(list(key), sort=False).ngroup().to_numpy().astype(np.int64) << 32
        self.moment = (frame[moment] - zero).dt.total_seconds().fillna(2**31).to_numpy().astype(np.int64)
        self.start = (frame["session_start"] - zero).dt.total_seconds().to_numpy().astype(np.int64)
        self.order = np.argsort(self.group | self.moment, kind="stable")
        self.events = (self.group | self.moment)[self.order]
        self.first, self.end = self.before(-self.start), self.before(0)

    def before(self, later: np.ndarray | int) -> np.ndarray:
        """How many events stand before a row's session start plus some seconds, counted over all keys."""
        return np.searchsorted(self.events, self.group | (self.start + later))

    def total(self, values: np.ndarray, later: int = 0) -> np.ndarray:
        """Sum over all earlier events, or, with ``later`` seconds, over those that soon after the session's start."""
        running = np.concatenate([[0], np.cumsum(values[self.order])])
        return (
            running[self.before(later)] - running[self.end]
            if later
            else running[self.end] - running[self.first]
        )

    def fading(self, values: np.ndarray, half_life: float) -> np.ndarray:
        """The sum of value · ½^(days ago / half_life)."""
        risen = pd.Series((values * 2 ** (np.minimum(self.moment, 2**24) / 86_400 / half_life))[self.order])
        running = risen.groupby(self.group[self.order]).cumsum().to_numpy()
        found = np.where(self.end > self.first, running[self.end - 1], 0)
        return found * 2 ** (-self.start / 86_400 / half_life)


def _add_history(frame: pd.DataFrame) -> pd.DataFrame:
    click, one = frame["click"].to_numpy(float), np.ones(len(frame))
    user, item, seen = (_Events(frame, *key) for key in (["user_id"], ["item_id"], ["user_id", "item_id"]))
    category, sub, brand = (_Events(frame, "user_id", name) for name in ("category", "sub_category", "brand"))
    bought = _Events(frame, "user_id", "sub_category", moment="purchase_time")
    columns = {
        "user_past_clicks": user.total(click),
        "user_past_ctr": (user.total(click) + PRIOR_VIEWS * PRIOR_CTR) / (user.total(one) + PRIOR_VIEWS),
        "item_past_ctr": (item.total(click) + PRIOR_VIEWS * PRIOR_CTR) / (item.total(one) + PRIOR_VIEWS),
        "user_category_past_clicks": category.total(click),
        "user_brand_past_clicks": brand.total(click),
        "sub_clicks_day": sub.fading(click, 1),
        "category_clicks_day": category.fading(click, 1),
        "sub_clicks_week": sub.fading(click, 7),
        "sub_bought": bought.fading(frame["purchase"].to_numpy(float), 15),
        "item_seen": np.log1p(seen.total(one)),
        "item_clicks_week": np.log1p(item.fading(click, 7)),
    }
    for name in CATEGORIES:
        columns[f"past_{name}"] = user.fading(click * (frame["category"] == name), 7)
    last = frame.loc[frame["click"] == 1, ["user_id", "timestamp", "sub_category"]]
    last = last.rename(columns={"timestamp": "last_click", "sub_category": "last_sub_category"})
    order = frame[["session_start", "user_id"]].sort_values("session_start", kind="stable")
    found = (
        pd.merge_asof(
            order,
            last,
            left_on="session_start",
            right_on="last_click",
            by="user_id",
            allow_exact_matches=False,
        )
        .set_axis(order.index)
        .sort_index()
    )
    columns["days_since_click"] = (
        (frame["session_start"] - found["last_click"]).dt.total_seconds() / 86_400
    ).fillna(60)
    columns["days_since_click"] = np.log1p(columns["days_since_click"])
    columns["last_sub_category"] = found["last_sub_category"].fillna("none")
    columns["same_sub_as_last"] = (found["last_sub_category"] == frame["sub_category"]).astype(float)
    return frame.assign(**columns)


def _add_future(frame: pd.DataFrame) -> pd.DataFrame:
    clicks = frame.loc[frame["click"] == 1, ["user_id", "session_start", "timestamp", "category", "item_id"]]
    clicks = clicks.drop_duplicates(["user_id", "session_start"]).sort_values("session_start", kind="stable")
    clicks = clicks.assign(category=pd.Index(CATEGORIES).get_indexer(clicks["category"]).astype(float))
    names = {"timestamp": "next_click_time", "category": "next_category", "item_id": "next_item"}
    order = frame[["session_start", "user_id"]].sort_values("session_start", kind="stable")
    later = {"on": "session_start", "by": "user_id", "direction": "forward", "allow_exact_matches": False}
    found = pd.merge_asof(order, clicks.rename(columns=names), **later).set_axis(order.index).sort_index()
    paid = _Events(frame, "user_id", moment="purchase_time")
    spend = paid.total((frame["purchase"] * frame["price"]).to_numpy(float), later=7 * 86_400)
    full = frame["session_start"] + pd.Timedelta(days=7) <= frame["timestamp"].max()
    return frame.assign(
        **{name: found[name] for name in names.values()}, spend_7d=np.where(full, spend, np.nan)
    )


def history_sequences(frame: pd.DataFrame, length: int = 20) -> dict[str, np.ndarray]:
    """The last clicks of each row's user before the session began, latest first, for models that read sequences.

    Returns
    -------
    ``item`` (n, length) int64: item_id + 1, or 0 where there is no further click; ``sub_category`` (n, length), a
    number of its own for each name, likewise; ``hours`` (n, length) float32, since then; ``bought`` (n, length), if
    the click's purchase was in when the session began.
    """
    clicks = frame[frame["click"] == 1]
    event = clicks.sort_values(["user_id", "timestamp"], kind="stable").reset_index(drop=True)
    zero = frame["timestamp"].min()
    second = ((event["timestamp"] - zero).dt.total_seconds()).to_numpy().astype(np.int64)
    start = ((frame["session_start"] - zero).dt.total_seconds()).to_numpy().astype(np.int64)
    user = frame["user_id"].to_numpy().astype(np.int64) << 32
    keys = event["user_id"].to_numpy().astype(np.int64) << 32 | second
    end, first = np.searchsorted(keys, user | start), np.searchsorted(keys, user)
    place = end[:, None] - 1 - np.arange(length)
    there = place >= first[:, None]
    place = np.where(there, place, 0)
    sub = pd.factorize(frame["sub_category"], sort=True)[1].get_indexer(event["sub_category"])
    paid = ((event["purchase_time"] - zero).dt.total_seconds()).fillna(2**31).to_numpy()
    return {
        "item": np.where(there, event["item_id"].to_numpy()[place] + 1, 0),
        "sub_category": np.where(there, sub[place] + 1, 0),
        "hours": np.where(there, (start[:, None] - second[place]) / 3600, 0).astype(np.float32),
        "bought": there & (paid[place] < start[:, None]),
    }


# ------------------------------------------------------------------------------------------------- splitting


def mask_future_labels(frame: pd.DataFrame, until: pd.Timestamp | str | None) -> pd.DataFrame:
    """Forget labels that whoever trains at the moment ``until`` cannot know yet; all rows stay.

    Next clicks at or after it; ``spend_7d`` of the last seven days; ``purchase`` of the last four, in which many are
    still pending: unknown, not "no". An earlier purchase that is not in by then counts as none.
    """
    if until is None:
        return frame
    until = pd.Timestamp(until)
    known = frame["next_click_time"] < until
    bought = (frame["purchase_time"] < until).astype(float)
    return frame.assign(
        **{name: frame[name].where(known) for name in ("next_category", "next_item", "next_click_time")},
        spend_7d=frame["spend_7d"].where(frame["session_start"] + pd.Timedelta(days=7) <= until),
        purchase=bought.where(frame["timestamp"] + WAIT <= until),
    )


def shop_splits(
    frame: pd.DataFrame, split: str = "time", fractions: Sequence[float] = (0.7, 0.1, 0.2), seed: int = 0
) -> dict[str, pd.DataFrame]:
    """Split a :func:`shop_frame` into ``{"train", "valid", "test"}`` without a leak from the future.

    Parameters
    ----------
    split : ``"time"`` cuts at two moments. Labels of the training part that look ahead are cut at its end; in the
        other two, next clicks are, while purchases are judged as the whole log knows them. ``"user"`` keeps all rows of
        a user together, over the same weeks: a next click belongs to the same user, so nothing is masked.
    seed : of the random choice of users; a split by time has none.
    """
    if split == "user":
        return split_by_user(frame, fractions=fractions, seed=seed)
    if split != "time":
        raise ValueError(f"split is {split!r}, expected 'time' or 'user'.")
    parts = split_by_time(frame, fractions=fractions)
    ends = {"train": parts["valid"]["timestamp"].min(), "valid": parts["test"]["timestamp"].min()}
    cut = {name: mask_future_labels(part, ends.get(name)) for name, part in parts.items()}
    return cut | {"valid": cut["valid"].assign(purchase=parts["valid"]["purchase"])}


def bayes_auc(shop: Shop) -> dict[str, float]:
    """AUC of the true probabilities, weighted by themselves: no model can expect more.

    Returns ``click`` and ``purchase`` over all impressions, and ``purchase_given_click`` over clicks.
    """
    click, given, purchase = (
        shop.truth[name] for name in ("p_click", "p_purchase_given_click", "p_purchase")
    )
    return {
        "click": expected_auc(click, click),
        "purchase": expected_auc(purchase, purchase),
        "purchase_given_click": expected_auc(given, given, click),
    }
