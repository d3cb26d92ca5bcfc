"""The shop's raw log made ready for learning: cleaned, joined, with features of the past only, and split.

Taught in notebook 01 (from the raw log to features). :func:`clean_users`, :func:`clean_items` and
:func:`clean_impressions` undo the dirt, :func:`shop_frame` joins and adds features that look at earlier sessions only,
:func:`history_sequences` gives each row's last clicks to models that read sequences, :func:`shop_splits` cuts the
frame without a leak, and :func:`bayes_auc` is the ceiling of every model.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from mtl_helpers.data.features import split_by_time, split_by_user
from mtl_helpers.data.shop import Shop
from mtl_helpers.data.shop_world import AGE_EDGES, AGE_GROUPS, CATEGORIES
from mtl_helpers.data.tables import Task
from mtl_helpers.metrics import expected_auc

# fmt: off
__all__ = [
    "PRIOR_CTR", "PRIOR_VIEWS", "SHOP_CATEGORICAL", "SHOP_COUNTS", "SHOP_HISTORY", "SHOP_IDS", "SHOP_NUMERIC",
    "SHOP_TASKS", "bayes_auc", "clean_impressions", "clean_items", "clean_users", "clip_outliers", "convert_units",
    "drop_duplicate_rows", "history_sequences", "mask_future_labels", "shop_frame", "shop_splits", "tidy_text",
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
_WAIT = pd.Timedelta(days=4)  # nine of ten purchases are in by then


# ------------------------------------------------------------------------------------------------- cleaning


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
    tidied = {name: tidy_text(users[name]) for name in ("region", "loyalty_tier")}
    return users.assign(age=users["age"].where(users["age"].between(14, 100)), **tidied)


def clean_items(items: pd.DataFrame) -> pd.DataFrame:
    """Drop duplicate rows, tidy the categories, bring all prices to EUR and clip outliers within their category.

    The column ``price_unit`` goes; ``on_sale_since`` becomes a date.
    """
    items = drop_duplicate_rows(items)
    _refuse(items["item_id"], items["item_id"].duplicated(), "stands for two different rows")
    items = items.assign(
        category=tidy_text(items["category"]),
        brand=tidy_text(items["brand"]),
        price=convert_units(items["price"], items["price_unit"], {"EUR": 1.0, "cent": 0.01}),
        on_sale_since=pd.to_datetime(items["on_sale_since"]),
    )
    expected = f"is unknown: expected one of {', '.join(CATEGORIES)}"
    _refuse(items["category"], ~items["category"].isin(CATEGORIES), expected)
    clipped = items.groupby("category")["price"].transform(clip_outliers, log=True)
    return items.assign(price=clipped.round(2)).drop(columns="price_unit")


def clean_impressions(impressions: pd.DataFrame) -> pd.DataFrame:
    """Drop duplicate rows, read the timestamps and sort by time.

    Raises ValueError when an impression id stands for two different rows, a label is not 0 or 1, or something was
    bought without a click.
    """
    log = drop_duplicate_rows(impressions)
    _refuse(log["impression_id"], log["impression_id"].duplicated(), "stands for two different rows")
    for name in ("click", "purchase"):
        _refuse(log[name], ~log[name].isin((0, 1)), "is no label: expected 0 or 1")
    _refuse(log["impression_id"], log["purchase"] > log["click"], "was bought without a click")
    for name in ("timestamp", "purchase_time"):
        log[name] = pd.to_datetime(log[name]).astype("datetime64[s]")
    return log.sort_values(["timestamp", "impression_id"], kind="stable", ignore_index=True)


# ------------------------------------------------------------------------------------------------- features


def shop_frame(shop: Shop) -> pd.DataFrame:
    """Clean, join and extract features: one row an impression, sorted by time.

    Holds the columns of the three tables and

    - ``hour``, ``weekday`` (Monday is 0), ``session_start``; ``log_price``; ``price_vs_category``, the log price minus
      the mean log price of the item's category in the catalogue; ``age_group`` ("unknown" without an age);
      ``days_on_sale``;
    - :data:`SHOP_COUNTS` and :data:`SHOP_HISTORY`, over events strictly before the session began. Click rates are
      smoothed: (clicks + PRIOR_VIEWS · PRIOR_CTR) / (views + PRIOR_VIEWS). ``last_sub_category`` is that of the
      user's last click ("none" without one);
    - labels that look ahead: ``next_category`` (class in :data:`CATEGORIES`) and ``next_item`` of the user's first
      click in a later session, at ``next_click_time``; ``spend_7d``, EUR the user spends within 7 days after the
      session began. NaN when the log does not hold them. Split with :func:`shop_splits`, which cuts them.

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
    frame = frame.assign(
        hour=frame["timestamp"].dt.hour,
        weekday=frame["timestamp"].dt.day_of_week,
        session_start=frame.groupby("session_id")["timestamp"].transform("min"),
        days_on_sale=(frame["timestamp"] - frame["on_sale_since"]).dt.days,
    )
    return frame.assign(**_history(frame)).assign(**_future(frame))


class _Events:
    """Rows with the same key at a moment of theirs: sums of a value over those before each row's session began.

    Key and second share one sorted int64, so that a search finds where a row's past ends.
    """

    def __init__(self, frame: pd.DataFrame, *key: str, moment: str = "timestamp") -> None:
        self.group = frame.groupby(list(key), sort=False).ngroup().to_numpy().astype(np.int64) << 32
        self.moment, self.start = _seconds(frame, moment), _seconds(frame, "session_start")
        self.order = np.argsort(self.group | self.moment, kind="stable")
        self.events = (self.group | self.moment)[self.order]
        self.first, self.end = self._before(-self.start), self._before(0)

    def _before(self, later: np.ndarray | int) -> np.ndarray:
        """How many events stand before a row's session start plus some seconds, counted over all keys."""
        return np.searchsorted(self.events, self.group | (self.start + later))

    def total(self, values: np.ndarray | float, later: int = 0) -> np.ndarray:
        """Sum over all earlier events, or, with ``later`` seconds, over those that soon after the session's start."""
        running = np.concatenate([[0], np.cumsum(np.broadcast_to(values, self.order.shape)[self.order])])
        last, first = (self._before(later), self.end) if later else (self.end, self.first)
        return running[last] - running[first]

    def fading(self, values: np.ndarray, half_life: float) -> np.ndarray:
        """The sum of value · ½^(days ago / half_life)."""
        risen = pd.Series((values * 2 ** (np.minimum(self.moment, 2**24) / 86_400 / half_life))[self.order])
        running = risen.groupby(self.group[self.order]).cumsum().to_numpy()
        found = np.where(self.end > self.first, running[self.end - 1], 0)
        return found * 2 ** (-self.start / 86_400 / half_life)


def _seconds(frame: pd.DataFrame, moment: str) -> np.ndarray:
    """Whole seconds since the log's first session; far in the future where the moment is missing."""
    since = (frame[moment] - frame["session_start"].min()).dt.total_seconds()
    return since.fillna(2**31).to_numpy().astype(np.int64)


def _history(frame: pd.DataFrame) -> dict[str, np.ndarray]:
    click, bought = frame["click"].to_numpy(float), frame["purchase"].to_numpy(float)
    user, item, seen = (_Events(frame, *key) for key in (["user_id"], ["item_id"], ["user_id", "item_id"]))
    category, sub, brand = (_Events(frame, "user_id", name) for name in ("category", "sub_category", "brand"))
    paid = _Events(frame, "user_id", "sub_category", moment="purchase_time")
    rates = {
        f"{name}_past_ctr": (past.total(click) + PRIOR_VIEWS * PRIOR_CTR) / (past.total(1.0) + PRIOR_VIEWS)
        for name, past in (("user", user), ("item", item))
    }
    last = frame.loc[frame["click"] == 1, ["user_id", "timestamp", "sub_category"]]
    last = last.rename(columns={"timestamp": "last_click", "sub_category": "last_sub_category"})
    last = _nearest(frame, last, "last_click", "backward")
    days = (frame["session_start"] - last["last_click"]).dt.total_seconds() / 86_400
    return rates | {
        "user_past_clicks": user.total(click),
        "user_category_past_clicks": category.total(click),
        "user_brand_past_clicks": brand.total(click),
        "sub_clicks_day": sub.fading(click, 1),
        "category_clicks_day": category.fading(click, 1),
        "sub_clicks_week": sub.fading(click, 7),
        "sub_bought": paid.fading(bought, 15),
        "item_seen": np.log1p(seen.total(1.0)),
        "item_clicks_week": np.log1p(item.fading(click, 7)),
        **{f"past_{name}": user.fading(click * (frame["category"] == name), 7) for name in CATEGORIES},
        "days_since_click": np.log1p(days.fillna(60)),
        "last_sub_category": last["last_sub_category"].fillna("none"),
        "same_sub_as_last": (last["last_sub_category"] == frame["sub_category"]).astype(float),
    }


def _future(frame: pd.DataFrame) -> dict[str, pd.Series | np.ndarray]:
    clicks = frame.loc[frame["click"] == 1, ["user_id", "session_start", "timestamp", "category", "item_id"]]
    clicks = clicks.drop_duplicates(["user_id", "session_start"])
    clicks = clicks.assign(category=pd.Index(CATEGORIES).get_indexer(clicks["category"]).astype(float))
    names = {"timestamp": "next_click_time", "category": "next_category", "item_id": "next_item"}
    found = _nearest(frame, clicks.rename(columns=names), "session_start", "forward")
    paid = _Events(frame, "user_id", moment="purchase_time")
    spend = paid.total((frame["purchase"] * frame["price"]).to_numpy(float), later=7 * 86_400)
    full = frame["session_start"] + pd.Timedelta(days=7) <= frame["timestamp"].max()
    return {name: found[name] for name in names.values()} | {"spend_7d": np.where(full, spend, np.nan)}


def _nearest(frame: pd.DataFrame, events: pd.DataFrame, moment: str, direction: str) -> pd.DataFrame:
    """For each row its user's nearest event strictly before, or after, the session began."""
    order = frame[["session_start", "user_id"]].sort_values("session_start", kind="stable")
    events = events.sort_values(moment, kind="stable")
    join = {"left_on": "session_start", "right_on": moment, "by": "user_id", "allow_exact_matches": False}
    return pd.merge_asof(order, events, direction=direction, **join).set_axis(order.index).sort_index()


def history_sequences(frame: pd.DataFrame, length: int = 20) -> dict[str, np.ndarray]:
    """The last clicks of each row's user before the session began, latest first, for models that read sequences.

    Returns
    -------
    ``item`` (n, length) int64: item_id + 1, or 0 where there is no further click; ``sub_category`` (n, length), a
    number of its own for each name, likewise; ``hours`` (n, length) float32, since then; ``bought`` (n, length), if
    the click's purchase was in when the session began.
    """
    frame = frame.reset_index(drop=True)
    event = frame[frame["click"] == 1].sort_values(["user_id", "timestamp"], kind="stable")
    second, paid = (_seconds(frame, name)[event.index] for name in ("timestamp", "purchase_time"))
    start = _seconds(frame, "session_start")
    user = frame["user_id"].to_numpy().astype(np.int64) << 32
    keys = event["user_id"].to_numpy().astype(np.int64) << 32 | second
    end, first = np.searchsorted(keys, user | start), np.searchsorted(keys, user)
    place = end[:, None] - 1 - np.arange(length)
    there = place >= first[:, None]
    place = np.where(there, place, 0)
    sub = pd.factorize(frame["sub_category"], sort=True)[1].get_indexer(event["sub_category"])
    return {
        "item": np.where(there, event["item_id"].to_numpy()[place] + 1, 0),
        "sub_category": np.where(there, sub[place] + 1, 0),
        "hours": np.where(there, (start[:, None] - second[place]) / 3600, 0).astype(np.float32),
        "bought": there & (paid[place] < start[:, None]),
    }


# ------------------------------------------------------------------------------------------------- splitting


def mask_future_labels(frame: pd.DataFrame, until: pd.Timestamp, pending: str = "no") -> pd.DataFrame:
    """Forget what whoever trains at the moment ``until`` cannot know yet; all rows stay.

    Next clicks at or after it and ``spend_7d`` of the last seven days become NaN. A purchase that is not in by then
    counts as none, or, with ``pending="unknown"``, ``purchase`` of the last four days, in which many are pending, is
    NaN: unbiased, at the price of the latest rows.
    """
    known = frame["next_click_time"] < until
    bought = (frame["purchase_time"] < until).astype(float)
    return frame.assign(
        **{name: frame[name].where(known) for name in ("next_category", "next_item", "next_click_time")},
        spend_7d=frame["spend_7d"].where(frame["session_start"] + pd.Timedelta(days=7) <= until),
        purchase=bought.where(frame["timestamp"] + _WAIT <= until) if pending == "unknown" else bought,
    )


def shop_splits(
    frame: pd.DataFrame,
    split: str = "time",
    fractions: Sequence[float] = (0.7, 0.1, 0.2),
    seed: int = 0,
    pending: str = "no",
) -> dict[str, pd.DataFrame]:
    """Split a :func:`shop_frame` into ``{"train", "valid", "test"}`` without a leak from the future.

    Parameters
    ----------
    split : ``"time"`` cuts at two moments. The training part knows what was known at its end
        (:func:`mask_future_labels`, which takes ``pending``); in the validation part next clicks are cut, too, while
        purchases are judged as the whole log knows them, as in the test part. ``"user"`` keeps all rows of a user
        together, over the same weeks: a next click belongs to the same user, so nothing is masked.
    seed : of the random choice of users; a split by time has none.
    """
    if split == "user":
        return split_by_user(frame, fractions=fractions, seed=seed)
    if split != "time" or pending not in ("no", "unknown"):
        raise ValueError(
            f"split={split!r}, pending={pending!r}: expected 'time' or 'user', 'no' or 'unknown'."
        )
    parts = split_by_time(frame, fractions=fractions)
    train = mask_future_labels(parts["train"], parts["valid"]["timestamp"].min(), pending)
    valid = mask_future_labels(parts["valid"], parts["test"]["timestamp"].min())
    return parts | {"train": train, "valid": valid.assign(purchase=parts["valid"]["purchase"])}


def bayes_auc(shop: Shop) -> dict[str, float]:
    """AUC of the true probabilities, weighted by themselves: no model can expect more.

    Returns ``click`` and ``purchase`` over all impressions, and ``purchase_given_click`` over clicks.
    """
    click, given, bought = (shop.truth[f"p_{name}"] for name in ("click", "purchase_given_click", "purchase"))
    aucs = {"click": expected_auc(click, click), "purchase": expected_auc(bought, bought)}
    return aucs | {"purchase_given_click": expected_auc(given, given, click)}
