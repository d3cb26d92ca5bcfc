"""The shop's raw log made ready for learning: cleaned, joined, with features of the past only, and split.

Taught in notebook 01: three functions undo the dirt, :func:`shop_frame` joins and adds features, :func:`shop_splits`
cuts without a leak; :func:`history_sequences` is for models that read sequences (notebooks 08 and 09).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd

from mtl_helpers.data.features import split_by_time, split_by_user
from mtl_helpers.data.shop import Shop
from mtl_helpers.data.shop_world import AGE_EDGES, AGE_GROUPS, CATEGORIES
from mtl_helpers.data.tables import Task

# fmt: off
__all__ = [
    "PRIOR_CTR", "PRIOR_VIEWS", "SHOP_CATEGORICAL", "SHOP_COUNTS", "SHOP_HISTORY", "SHOP_IDS", "SHOP_NUMERIC",
    "SHOP_TASKS", "clean_impressions", "clean_items", "clean_users", "history_sequences",
    "mask_future_labels", "shop_frame", "shop_splits",
]

PRIOR_CTR, PRIOR_VIEWS = 0.07, 20.0
"""``PRIOR_VIEWS`` imagined views at ``PRIOR_CTR`` smooth the past click rates. Chosen beforehand, so nothing leaks."""
SHOP_TASKS = (Task("click"), Task("purchase"), Task("next_category", kind="multiclass", n_classes=8))
SHOP_IDS = ("user_id", "item_id")
"""No features by default: with a handful of clicks a user, a model learns ids by heart."""
SHOP_CATEGORICAL = (
    "category", "sub_category", "brand", "region", "loyalty_tier", "age_group", "surface", "hour", "weekday",
    "position", "last_sub_category",
)
SHOP_COUNTS = (
    "log_price", "price_vs_category", "days_on_sale", "age", "signup_days", "user_past_clicks", "user_past_ctr",
    "item_past_ctr", "user_category_past_clicks", "user_brand_past_clicks",
)
"""Numeric columns of the tables, and counts over all earlier sessions."""
SHOP_HISTORY = (
    "sub_clicks_day", "category_clicks_day", "sub_clicks_week", "sub_bought", "item_seen", "item_clicks_week",
    "days_since_click", "same_sub_as_last", *(f"past_{name}" for name in CATEGORIES),
)
"""What a user did lately: fading sums (half-life a day, a week, a fortnight), and the last click."""
SHOP_NUMERIC = (*SHOP_COUNTS, *SHOP_HISTORY)
# fmt: on


def _refuse(values: pd.Series, bad: pd.Series, why: str) -> None:
    """Stop at the first of ``values`` that is ``bad``: going on would give wrong numbers without a word."""
    if bad.any():
        raise ValueError(f"{values.name} {values[bad].iloc[0]!s} {why}.")


def _tidied(table: pd.DataFrame, key: str, *texts: str) -> pd.DataFrame:
    """The distinct rows, one for each ``key``; texts without blanks around them, in lower case: " Books" is "books"."""
    table = table.drop_duplicates(ignore_index=True)
    _refuse(table[key], table[key].duplicated(), "stands for two different rows")
    return table.assign(**{name: table[name].str.strip().str.lower() for name in texts})


def clean_users(users: pd.DataFrame) -> pd.DataFrame:
    """Drop duplicate rows, tidy the texts and turn impossible ages (below 14, above 100) into missing ones, which the
    encoder fills with the mean of the training rows. Raises ValueError for a doubled id."""
    users = _tidied(users, "user_id", "region", "loyalty_tier")
    return users.assign(age=users["age"].where(users["age"].between(14, 100)))


def clean_items(items: pd.DataFrame) -> pd.DataFrame:
    """Drop duplicate rows, tidy the texts, bring all prices to EUR (``price_unit`` goes), clip those beyond Tukey's
    far-out fences of their category on the log scale, read ``on_sale_since`` as a date. Raises ValueError for a doubled
    id, an unknown category or unit, a price that is not above 0."""
    items = _tidied(items, "item_id", "category", "brand")
    _refuse(items["category"], ~items["category"].isin(CATEGORIES), "is unknown")
    factor = items.pop("price_unit").map({"EUR": 1.0, "cent": 0.01})
    _refuse(items["price"], factor.isna() | (items["price"] <= 0), "is no price in EUR or cent")
    logs = np.log(items["price"] * factor)
    low, high = (logs.groupby(items["category"]).transform("quantile", q) for q in (0.25, 0.75))
    price = np.exp(logs.clip(low - 3 * (high - low), high + 3 * (high - low)))
    return items.assign(price=price.round(2), on_sale_since=pd.to_datetime(items["on_sale_since"]))


def clean_impressions(impressions: pd.DataFrame) -> pd.DataFrame:
    """Drop duplicate rows, read the timestamps and sort by time. Raises ValueError for a doubled id."""
    log = _tidied(impressions, "impression_id")
    for name in ("timestamp", "purchase_time"):
        log[name] = pd.to_datetime(log[name]).astype("datetime64[s]")
    return log.sort_values(["timestamp", "impression_id"], kind="stable", ignore_index=True)


def shop_frame(shop: Shop) -> pd.DataFrame:
    """Clean, join and extract features: one row an impression, sorted by time. Adds to the columns of the tables

    - ``session_start`` and the features of the moment and the tables: ``weekday`` is 0 on Mondays, ``age_group``
      "unknown" without an age, ``price_vs_category`` the log price minus the mean of its category;
    - features of events strictly before the session began, ``last_sub_category`` "none" without a click. Click rates
      are smoothed: (clicks + PRIOR_VIEWS · PRIOR_CTR) / (views + PRIOR_VIEWS);
    - labels that look ahead, NaN when the log does not hold them: ``next_category`` (class in :data:`CATEGORIES`) and
      ``next_item`` of the user's first click in a later session, at ``next_click_time``; ``spend_7d``, EUR that the
      user pays in the 7 days after the session began. :func:`shop_splits` cuts them.

    ``dwell_seconds``, ``purchase_time``, ``next_click_time`` and the labels are outcomes: never features. Raises
    ValueError for a user or an item that its table does not know.
    """
    log, users, items = clean_impressions(shop.impressions), clean_users(shop.users), clean_items(shop.items)
    for name, table in (("user_id", users), ("item_id", items)):
        _refuse(log[name], ~log[name].isin(table[name]), "is in the log, but not in its table")
    items["log_price"] = np.log(items["price"])
    items["price_vs_category"] = items["log_price"] - items.groupby("category")["log_price"].transform("mean")
    groups = pd.cut(users["age"], [0, *AGE_EDGES[1:-1], np.inf], right=False, labels=list(AGE_GROUPS))
    users["age_group"] = groups.cat.add_categories("unknown").fillna("unknown").astype(str)
    frame = log.merge(users, on="user_id", how="left").merge(items, on="item_id", how="left")
    moment = frame["timestamp"]
    frame["hour"], frame["weekday"] = moment.dt.hour, moment.dt.day_of_week
    frame["session_start"] = frame.groupby("session_id")["timestamp"].transform("min")
    frame["days_on_sale"] = (moment - frame["on_sale_since"]).dt.days
    later = _nearest_click(frame, "session_start", "forward", ["timestamp", "category", "item_id"])
    number = {name: float(k) for k, name in enumerate(CATEGORIES)}
    labels = {"next_click_time": later["timestamp"], "next_category": later["category"].map(number)}
    price = (frame["purchase"] * frame["price"]).to_numpy(float)
    soon, before = (_earlier(frame, "user_id", moment="purchase_time", days=days)(price) for days in (7, 0))
    week = frame["session_start"] + pd.Timedelta(days=7)
    labels["spend_7d"] = pd.Series(soon - before).where(week <= moment.max())
    return frame.assign(**_history(frame), **labels, next_item=later["item_id"])


def _earlier(frame: pd.DataFrame, *key: str, moment: str = "timestamp", days: int = 0) -> Callable:
    """A function of values and a half-life in days: for each row (n,), the sum of value · ½^(days ago / half-life) over
    the rows of the same key whose moment lies before the row's session began, or so many days after."""
    group = frame.groupby(list(key), sort=False).ngroup().to_numpy().astype(np.int64) << 32
    since = (frame[name] - frame["session_start"].min() for name in ("session_start", moment))
    # whole seconds; what is missing lies far in the future
    start, second = (x.dt.total_seconds().fillna(2**31).to_numpy().astype(np.int64) for x in since)
    start += 86_400 * days
    order = np.argsort(group | second, kind="stable")
    # key and second share one sorted int64, in which a search finds where a row's past begins and ends
    first, end = (np.searchsorted((group | second)[order], group | moment) for moment in (0, start))
    kept = order, group[order] >> 32, first, end, start, np.minimum(second, 2**24)
    order, group, first, end, start, second = (part.astype(np.int32) for part in kept)

    def past(values: np.ndarray, half_life: float = np.inf) -> np.ndarray:
        risen = pd.Series((values * 2 ** (second / 86_400 / half_life))[order])
        running = risen.groupby(group).cumsum().to_numpy()
        return np.where(end > first, running[end - 1], 0) * 2 ** (-start / 86_400 / half_life)

    return past


def _history(frame: pd.DataFrame) -> dict[str, np.ndarray]:
    click, shown, prior = frame["click"].to_numpy(float), np.ones(len(frame)), PRIOR_VIEWS * PRIOR_CTR
    user, item = _earlier(frame, "user_id"), _earlier(frame, "item_id")
    kinds = ("category", "sub_category", "brand", "item_id")
    category, sub, brand, seen = (_earlier(frame, "user_id", name) for name in kinds)
    paid = _earlier(frame, "user_id", "sub_category", moment="purchase_time")
    last = _nearest_click(frame, "timestamp", "backward", ["sub_category"])
    days = (frame["session_start"] - last["timestamp"]).dt.total_seconds() / 86_400
    of = frame["category"].to_numpy()
    return {
        "user_past_ctr": (user(click) + prior) / (user(shown) + PRIOR_VIEWS),
        "item_past_ctr": (item(click) + prior) / (item(shown) + PRIOR_VIEWS),
        "user_past_clicks": user(click),
        "user_category_past_clicks": category(click),
        "user_brand_past_clicks": brand(click),
        "sub_clicks_day": sub(click, 1),
        "category_clicks_day": category(click, 1),
        "sub_clicks_week": sub(click, 7),
        "sub_bought": paid(frame["purchase"].to_numpy(float), 15),
        "item_seen": np.log1p(seen(shown)),
        "item_clicks_week": np.log1p(item(click, 7)),
        **{f"past_{name}": user(click * (of == name), 7) for name in CATEGORIES},
        "days_since_click": np.log1p(days.fillna(60)),
        "last_sub_category": last["sub_category"].fillna("none"),
        "same_sub_as_last": (last["sub_category"] == frame["sub_category"]).astype(float),
    }


def _nearest_click(frame: pd.DataFrame, moment: str, direction: str, columns: list[str]) -> pd.DataFrame:
    """Of each row's user, the last click before, or the first one in a session after, the row's session began."""
    rows = frame[["session_start", "user_id"]].sort_values("session_start", kind="stable")
    clicks = frame.loc[frame["click"] == 1, ["user_id", moment, *columns]].sort_values(moment, kind="stable")
    join = {"left_on": "session_start", "right_on": moment, "by": "user_id", "allow_exact_matches": False}
    return pd.merge_asof(rows, clicks, direction=direction, **join).set_axis(rows.index).sort_index()


def history_sequences(frame: pd.DataFrame, length: int = 20) -> dict[str, np.ndarray]:
    """The last clicks of each row's user before the session began, latest first, for models that read sequences.

    Each (n, length): ``item``, item_id + 1, or 0 where there is no further click; ``hours`` since then, float32;
    ``bought``, if its purchase was in when the session began.
    """
    event = frame[frame["click"] == 1].sort_values(["user_id", "timestamp"], kind="stable")
    earlier = _earlier(frame, "user_id")(frame["click"].to_numpy(float)).astype(np.int64)
    there = np.arange(length) < earlier[:, None]
    last = np.searchsorted(event["user_id"], frame["user_id"]) + earlier - 1
    place = np.where(there, last[:, None] - np.arange(length), 0)
    names = ("item_id", "timestamp", "purchase_time")
    item, clicked, paid = (event[name].to_numpy()[place] for name in names)
    start = frame["session_start"].to_numpy()[:, None]
    return {
        "item": np.where(there, item + 1, 0),
        "hours": np.where(there, (start - clicked) / np.timedelta64(1, "h"), 0).astype(np.float32),
        "bought": there & (paid < start),
    }


def mask_future_labels(frame: pd.DataFrame, until: pd.Timestamp, pending: str = "no") -> pd.DataFrame:
    """Forget what whoever trains at the moment ``until`` cannot know yet; all rows stay. Next clicks at or after it
    become NaN, as does ``spend_7d`` of the last week. A purchase that is not in by then counts as none; with
    ``pending="unknown"``, ``purchase`` of the last four days (nine of ten are in by then) is NaN: unbiased."""
    known, bought = frame["next_click_time"] < until, (frame["purchase_time"] < until).astype(float)
    labels = {name: frame[name].where(known) for name in ("next_category", "next_item", "next_click_time")}
    labels["spend_7d"] = frame["spend_7d"].where(frame["session_start"] + pd.Timedelta(days=7) <= until)
    settled = (frame["timestamp"] + pd.Timedelta(days=4) <= until) | (pending == "no")
    return frame.assign(**labels, purchase=bought.where(settled))


def shop_splits(frame: pd.DataFrame, split: str = "time", pending: str = "no") -> dict[str, pd.DataFrame]:
    """Split a :func:`shop_frame` 70 / 10 / 20 into ``{"train", "valid", "test"}`` without a leak from the future: by
    ``"time"`` at two moments, where training knows what was known at its end (:func:`mask_future_labels`), validation
    too, but for purchases: the whole log judges them, as in the test part. By ``"user"`` all rows of a user stay
    together, next clicks with them: nothing is masked."""
    if split == "user":
        return split_by_user(frame, fractions=(0.7, 0.1, 0.2))
    if split != "time" or pending not in ("no", "unknown"):
        raise ValueError(f"{split=}, {pending=}: expected 'time' or 'user', 'no' or 'unknown'.")
    parts = split_by_time(frame, fractions=(0.7, 0.1, 0.2))
    train = mask_future_labels(parts["train"], parts["valid"]["timestamp"].min(), pending)
    valid = mask_future_labels(parts["valid"], parts["test"]["timestamp"].min())
    return parts | {"train": train, "valid": valid.assign(purchase=parts["valid"]["purchase"])}
