"""A simulated shop whose true click and purchase probabilities are known.

Taught in notebooks 00 (the shop in pictures) and 01 (from the raw log to features); every later notebook uses it.

The module has two halves. The first simulates: :class:`ShopConfig` holds the knobs, :func:`make_world` the hidden
tastes and qualities, :func:`simulate` the log as a shop would store it, with dirt and with the truth laid apart,
:func:`iter_impressions` the same log in blocks, for millions of rows. The second half prepares the log for learning:
:func:`clean_users`, :func:`clean_items` and :func:`clean_impressions`, then :func:`shop_frame` joins them and adds
features that look at earlier sessions only, and :func:`shop_splits` cuts the result without a leak.

``python -m mtl_helpers.data.shop [folder]`` writes the shipped files anew, to the same bytes.
"""

from __future__ import annotations

import gzip
import io
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from numbers import Integral, Real
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from mtl_helpers.data.features import (
    clip_outliers,
    convert_units,
    drop_duplicate_rows,
    split_by_time,
    split_by_user,
    tidy_text,
)
from mtl_helpers.data.tables import Task
from mtl_helpers.files import write_atomically

__all__ = [
    "AGE_GROUPS",
    "CATEGORIES",
    "CHANNELS",
    "PRIOR_CTR",
    "PRIOR_VIEWS",
    "REGIONS",
    "SESSION_LENGTH",
    "SHOP_CATEGORICAL",
    "SHOP_FOLDER",
    "SHOP_NUMERIC",
    "SHOP_TASKS",
    "TIERS",
    "Shop",
    "ShopBlock",
    "ShopConfig",
    "World",
    "bayes_auc",
    "clean_impressions",
    "clean_items",
    "clean_users",
    "iter_impressions",
    "load_shop",
    "make_world",
    "mask_future_labels",
    "shop_frame",
    "shop_splits",
    "simulate",
    "write_shop",
]

CATEGORIES = (
    "books",
    "electronics",
    "fashion",
    "home",
    "beauty",
    "sports",
    "toys",
    "garden",
    "groceries",
    "music",
    "pets",
    "office",
)
"""Names of the categories; a shop of n uses the first n. A name's place is its class in ``next_category``."""
TYPICAL_PRICE = np.array([18.0, 180.0, 45.0, 60.0, 22.0, 50.0, 25.0, 40.0, 8.0, 15.0, 20.0, 30.0])
CHANNELS = ("app", "web", "email")
REGIONS = ("north", "south", "east", "west", "centre", "islands")
TIERS = ("bronze", "silver", "gold", "platinum")
AGE_GROUPS = ("18-24", "25-34", "35-44", "45-54", "55+")
AGE_EDGES = (18, 25, 35, 45, 55, 81)
BRANDS_PER_CATEGORY = 5
SESSION_LENGTH = 5
"""Products a session shows, at positions 1 to 5."""
START = np.datetime64("2025-03-03T00:00:00", "s")  # a Monday

SHOP_FOLDER = Path(__file__).resolve().parents[2] / "datasets" / "shop"
"""Where the shipped files lie in a checkout."""

PRIOR_CTR = 0.05
PRIOR_VIEWS = 20.0
"""``PRIOR_VIEWS`` imagined views at ``PRIOR_CTR`` smooth the past click rates. Chosen beforehand, so nothing leaks."""

SHOP_NUMERIC = (
    "log_price",
    "price_vs_category",
    "rating",
    "launched_days",
    "age",
    "signup_days",
    "user_past_clicks",
    "user_past_ctr",
    "item_past_ctr",
    "user_category_past_clicks",
)
SHOP_CATEGORICAL = (
    "user_id",
    "item_id",
    "category",
    "brand",
    "region",
    "loyalty_tier",
    "age_group",
    "channel",
    "hour",
    "weekday",
    "position",
)
SHOP_TASKS = (
    Task("click"),
    Task("purchase"),
    Task("next_category", kind="multiclass", n_classes=8),
)

# Random streams: each has its own child seed, so that a change to one leaves the others as they are.
_USERS, _ITEMS, _DIRT, _CALIBRATION, _LOG = range(5)
# The log is drawn in chunks of this many sessions, whatever block size a reader asks for.
_CHUNK_SESSIONS = 4096
_CALIBRATION_SESSIONS = 12_000
_CANDIDATES = 12
_DUPLICATE_SHARE = 0.01


# ------------------------------------------------------------------------------------------------- the knobs


@dataclass(frozen=True)
class ShopConfig:
    """The knobs of the simulated shop.

    Parameters
    ----------
    n_users, n_items : size of the user base (at least 10) and of the catalogue (at least 20).
    n_impressions : distinct rows of the log, a multiple of 5 (a session shows 5 products). The raw log has about
        1 % more, because some rows were written twice.
    n_categories : 2 to 12.
    relatedness : correlation rho of click taste and purchase taste: 1 "same taste", 0 "unrelated", -1 "opposed".
        purchase taste = rho * click taste + sqrt(1 - rho^2) * independent taste.
    click_rate, purchase_rate : shares of all impressions that are clicked and bought; purchases need a click, so
        0 < purchase_rate < click_rate <= 0.5.
    days : length of the log.
    seed : whole number; the same config gives the same shop.

    Raises TypeError or ValueError for a value outside of these.
    """

    n_users: int = 4000
    n_items: int = 800
    n_impressions: int = 80_000
    n_categories: int = 8
    relatedness: float = 0.8
    click_rate: float = 0.06
    purchase_rate: float = 0.015
    days: int = 28
    seed: int = 0

    def __post_init__(self) -> None:
        for name, low in {
            "n_users": 10,
            "n_items": 20,
            "n_impressions": 5,
            "n_categories": 2,
            "days": 1,
            "seed": 0,
        }.items():
            value = getattr(self, name)
            if not isinstance(value, Integral) or isinstance(value, bool):
                raise TypeError(f"ShopConfig: {name} is {value!r}, expected a whole number.")
            object.__setattr__(self, name, int(value))
            if value < low:
                raise ValueError(f"ShopConfig: {name} is {value}, expected {low} or more.")
        for name in ("relatedness", "click_rate", "purchase_rate"):
            value = getattr(self, name)
            if not isinstance(value, Real) or isinstance(value, bool):
                raise TypeError(f"ShopConfig: {name} is {value!r}, expected a number.")
            object.__setattr__(self, name, float(value))
        if self.n_impressions % SESSION_LENGTH:
            raise ValueError(
                f"ShopConfig: n_impressions is {self.n_impressions}, expected a multiple of {SESSION_LENGTH}: "
                f"every session shows {SESSION_LENGTH} products."
            )
        if self.n_categories > len(CATEGORIES):
            raise ValueError(
                f"ShopConfig: n_categories is {self.n_categories}, expected at most {len(CATEGORIES)}."
            )
        if not -1 <= self.relatedness <= 1:
            raise ValueError(
                f"ShopConfig: relatedness is {self.relatedness}, expected a number "
                "from -1 (opposed tastes) to 1 (same taste)."
            )
        if not 0 < self.purchase_rate < self.click_rate <= 0.5:
            raise ValueError(
                f"ShopConfig: click_rate is {self.click_rate} and purchase_rate {self.purchase_rate}, expected "
                "0 < purchase_rate < click_rate <= 0.5 (both count over all impressions, and only clicks can buy)."
            )

    @property
    def categories(self) -> tuple[str, ...]:
        """Names of this shop's categories."""
        return CATEGORIES[: self.n_categories]


def _generator(config: ShopConfig, *key: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(config.seed, spawn_key=key)))


# ------------------------------------------------------------------------------------------------- the hidden world


@dataclass(frozen=True, eq=False)
class World:
    """What the simulator knows and a shop does not: tastes, price sensitivity, quality, popularity.

    Attributes
    ----------
    users, items : the tables a shop could see, before any dirt.
    click_taste, purchase_taste : (n_users, n_categories), mean 0, variance 1.
    price_sensitivity, activity : (n_users,), above 0.
    category : (n_items,) position of the item's category in :data:`CATEGORIES`.
    quality, relative_price : (n_items,); the price is relative to its category, on the log scale.
    popularity : (n_items,), above 0; how often the old ranker considers an item.
    """

    config: ShopConfig
    users: pd.DataFrame
    items: pd.DataFrame
    click_taste: np.ndarray
    purchase_taste: np.ndarray
    price_sensitivity: np.ndarray
    activity: np.ndarray
    category: np.ndarray
    quality: np.ndarray
    relative_price: np.ndarray
    popularity: np.ndarray
    click_intercept: float = 0.0
    purchase_intercept: float = 0.0

    def probabilities(self, user, item, position=1, hour=12, channel="app") -> tuple[np.ndarray, np.ndarray]:
        """True probabilities of impressions, whether they were ever shown or not.

        Parameters
        ----------
        user, item : user_id and item_id. position : 1, 2, … hour : 0 to 23. channel : a name from
            :data:`CHANNELS` or its place there. All may be numbers or arrays; they are broadcast as numpy does.

        Returns
        -------
        p_click and p_purchase_given_click, of the broadcast shape. Their product is the purchase probability of
        the impression.
        """
        user = _whole(user, "user", 0, self.config.n_users - 1)
        item = _whole(item, "item", 0, self.config.n_items - 1)
        position = _whole(position, "position", 1, None)
        hour = _whole(hour, "hour", 0, 23)
        click, purchase = _utilities(self, user, item, position, hour, _channel_codes(channel))
        return _sigmoid(click + self.click_intercept), _sigmoid(purchase + self.purchase_intercept)


def make_world(config: ShopConfig | None = None) -> World:
    """Draw the hidden world of a config: always the same one, in well under a second."""
    config = config or ShopConfig()
    world = World(config, **_draw_users(config), **_draw_items(config))
    return _solve_intercepts(world)


def _draw_users(config: ShopConfig) -> dict:
    rng = _generator(config, _USERS)
    n, n_categories = config.n_users, config.n_categories
    group = _choose(rng, n, (0.16, 0.28, 0.22, 0.18, 0.16))
    edges = np.array(AGE_EDGES)
    age = edges[group] + np.floor(rng.random(n) * (edges[group + 1] - edges[group])).astype(np.int64)
    region = _choose(rng, n, (0.24, 0.20, 0.18, 0.18, 0.14, 0.06))
    tier = _choose(rng, n, (0.50, 0.28, 0.16, 0.06))
    signup_days = np.floor(30 + (200 + 250 * tier) * -np.log1p(-rng.random(n))).astype(np.int64)

    def taste() -> np.ndarray:
        by_age = rng.standard_normal((len(AGE_GROUPS), n_categories))
        by_region = rng.standard_normal((len(REGIONS), n_categories))
        own = rng.standard_normal((n, n_categories))
        return _standardise(
            np.sqrt(0.35) * by_age[group] + np.sqrt(0.15) * by_region[region] + np.sqrt(0.5) * own
        )

    click_taste = taste()
    other = taste()
    # Without the chance correlation of the two draws the knob means exactly what it says.
    other = _standardise(other - (other * click_taste).mean() * click_taste)
    rho = config.relatedness
    purchase_taste = rho * click_taste + np.sqrt(1 - rho**2) * other
    sensitivity = np.array([1.8, 1.4, 1.0, 0.6])[tier] * np.exp(0.3 * rng.standard_normal(n))
    activity = np.array([0.8, 1.0, 1.4, 1.8])[tier] * np.exp(0.8 * rng.standard_normal(n))
    users = pd.DataFrame(
        {
            "user_id": np.arange(n),
            "age": age,
            "region": _names(REGIONS, region),
            "loyalty_tier": _names(TIERS, tier),
            "signup_days": signup_days,
        }
    )
    return {
        "users": users,
        "click_taste": click_taste,
        "purchase_taste": purchase_taste,
        "price_sensitivity": sensitivity,
        "activity": activity,
    }


def _draw_items(config: ShopConfig) -> dict:
    rng = _generator(config, _ITEMS)
    n, n_categories = config.n_items, config.n_categories
    weights = np.linspace(1.5, 0.5, n_categories)
    category = _choose(rng, n, weights / weights.sum())
    category[:n_categories] = np.arange(n_categories)  # no category stays empty
    brand = category * BRANDS_PER_CATEGORY + rng.integers(0, BRANDS_PER_CATEGORY, n)
    brand_quality = rng.standard_normal(n_categories * BRANDS_PER_CATEGORY)
    quality = 0.6 * brand_quality[brand] + 0.8 * rng.standard_normal(n)
    relative_price = 0.15 * quality + 0.4 * rng.standard_normal(n)
    price = np.round(np.maximum(TYPICAL_PRICE[category] * np.exp(relative_price), 0.5), 2)
    rating = np.round(np.clip(3.6 + 0.5 * quality + 0.35 * rng.standard_normal(n), 1, 5), 1)
    popularity = np.exp(0.3 * quality + 0.7 * rng.standard_normal(n))
    items = pd.DataFrame(
        {
            "item_id": np.arange(n),
            "category": _names(CATEGORIES, category),
            "brand": _names([f"brand-{k + 1:02d}" for k in range(n_categories * BRANDS_PER_CATEGORY)], brand),
            "price": price,
            "rating": rating,
            "launched_days": 1 + np.floor(300 * -np.log1p(-rng.random(n))).astype(np.int64),
        }
    )
    return {
        "items": items,
        "category": category,
        "quality": quality,
        "relative_price": relative_price,
        "popularity": popularity,
    }


def _utilities(world: World, user, item, position, hour, channel) -> tuple[np.ndarray, np.ndarray]:
    """Log-odds of a click, and of a purchase after it, before the intercepts."""
    category, quality = world.category[item], world.quality[item]
    click = (
        1.1 * world.click_taste[user, category]
        + 0.6 * quality
        - 0.5 * np.log(position)
        + 0.15 * np.cos(2 * np.pi * (hour - 20) / 24)
        + np.array([0.1, 0.0, -0.2])[channel]
    )
    purchase = (
        1.1 * world.purchase_taste[user, category]
        + 0.6 * quality
        - world.price_sensitivity[user] * world.relative_price[item]
    )
    return click, np.broadcast_to(purchase, np.shape(click))


def _solve_intercepts(world: World) -> World:
    """Find the intercepts that give the wanted rates on a sample of sessions drawn for this purpose."""
    config = world.config
    rng = _generator(config, _CALIBRATION)
    n = _CALIBRATION_SESSIONS
    moment = _moments(config, (np.arange(n) + 0.5) / n)
    user, item, channel = _draw_sessions(world, rng, n)
    hour = np.repeat(moment // 3600 % 24, SESSION_LENGTH)
    position = np.tile(np.arange(1, SESSION_LENGTH + 1), n)
    click, purchase = _utilities(world, user, item, position, hour, channel)
    click_intercept = _bisect(lambda b: _sigmoid(click + b).mean(), config.click_rate)
    p_click = _sigmoid(click + click_intercept)
    purchase_intercept = _bisect(lambda b: (p_click * _sigmoid(purchase + b)).mean(), config.purchase_rate)
    state = {field.name: getattr(world, field.name) for field in fields(world)}
    return World(**state | {"click_intercept": click_intercept, "purchase_intercept": purchase_intercept})


def _bisect(rate, target: float) -> float:
    low, high = -30.0, 30.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if rate(middle) < target else (low, middle)
    return round((low + high) / 2, 6)  # rounded, so that the last bit of a sum cannot change the log


# ------------------------------------------------------------------------------------------------- the log


class ShopBlock(NamedTuple):
    """A stretch of the log: raw ``impressions`` and the ``truth`` of the same impression ids."""

    impressions: pd.DataFrame
    truth: pd.DataFrame


@dataclass(frozen=True, eq=False)
class Shop:
    """A shop's raw tables, as :func:`simulate` or :func:`load_shop` return them.

    Attributes
    ----------
    users, items, impressions : the raw tables, dirt included (columns in ``datasets/shop/README.md``).
    truth : impression_id, p_click, p_purchase_given_click, p_purchase. For judging, never for training.
    config : the knobs; None when files were loaded that carry none.
    """

    users: pd.DataFrame
    items: pd.DataFrame
    impressions: pd.DataFrame
    truth: pd.DataFrame
    config: ShopConfig | None

    def __repr__(self) -> str:
        return (
            f"Shop({len(self.users):,} users, {len(self.items):,} items, {len(self.impressions):,} raw rows, "
            f"config={self.config})"
        )


def simulate(config: ShopConfig | None = None) -> Shop:
    """Draw a whole shop: its raw tables, with dirt, and the truth apart."""
    config = config or ShopConfig()
    world = make_world(config)
    blocks = list(_blocks(world, config.n_impressions))
    users, items = _dirty_tables(world)
    return Shop(
        users,
        items,
        pd.concat([block.impressions for block in blocks], ignore_index=True),
        pd.concat([block.truth for block in blocks], ignore_index=True),
        config,
    )


def iter_impressions(config: ShopConfig | None = None, block_rows: int = 65_536) -> Iterator[ShopBlock]:
    """Yield the log of :func:`simulate` block by block, so that millions of rows need the memory of one block.

    Parameters
    ----------
    block_rows : distinct impressions of a block (the last one may be shorter); duplicates come on top. The rows are
        the same for every block size: chunks of fixed size draw from child seeds of their own.
    """
    if not isinstance(block_rows, Integral) or isinstance(block_rows, bool) or block_rows < 1:
        raise ValueError(f"block_rows is {block_rows!r}, expected a whole number of 1 or more.")
    return _blocks(make_world(config), int(block_rows))


def _blocks(world: World, block_rows: int) -> Iterator[ShopBlock]:
    n_sessions = world.config.n_impressions // SESSION_LENGTH
    pending: list[dict[str, np.ndarray]] = []
    held = 0
    for chunk in range(-(-n_sessions // _CHUNK_SESSIONS)):
        columns = _draw_chunk(world, chunk, n_sessions)
        pending.append(columns)
        held += len(columns["impression_id"])
        if held >= block_rows:
            joined = _join(pending)
            cut = held - held % block_rows
            for start in range(0, cut, block_rows):
                yield _block({name: values[start : start + block_rows] for name, values in joined.items()})
            pending, held = [{name: values[cut:] for name, values in joined.items()}], held - cut
    if held:
        yield _block(_join(pending))


def _join(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _draw_chunk(world: World, chunk: int, n_sessions: int) -> dict[str, np.ndarray]:
    """Draw the sessions of one chunk, in order of time."""
    config = world.config
    rng = _generator(config, _LOG, chunk)
    session = np.arange(chunk * _CHUNK_SESSIONS, min((chunk + 1) * _CHUNK_SESSIONS, n_sessions))
    # Session s falls into the s-th of n equal slices of the traffic, so the log is sorted without a sort.
    moment = _moments(config, (session + rng.random(len(session))) / n_sessions)
    user, item, channel = _draw_sessions(world, rng, len(session))
    position = np.tile(np.arange(1, SESSION_LENGTH + 1), len(session))
    moment, session = np.repeat(moment, SESSION_LENGTH), np.repeat(session, SESSION_LENGTH)
    p_click, p_purchase = world.probabilities(user, item, position, moment // 3600 % 24, channel)
    n = len(session)
    click = rng.random(n) < p_click
    purchase = click & (rng.random(n) < p_purchase)
    dwell = np.exp(3.2 + 0.35 * world.quality[item] + 0.9 * purchase + 0.5 * rng.standard_normal(n))
    return {
        "impression_id": session * SESSION_LENGTH + position - 1,
        "session_id": session,
        "moment": moment,
        "user_id": user,
        "item_id": item,
        "position": position,
        "channel": channel,
        "click": click.astype(np.int64),
        "purchase": purchase.astype(np.int64),
        "dwell_seconds": np.where(click, np.clip(np.rint(dwell), 1, 1800), np.nan),
        "p_click": p_click,
        "p_purchase_given_click": p_purchase,
        "copies": 1 + (rng.random(n) < _DUPLICATE_SHARE),
    }


def _draw_sessions(
    world: World, rng: np.random.Generator, n: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Users, products and channels of n sessions, five rows a session.

    The old ranker draws twelve candidates by popularity and shows the five best by its noisy idea of popularity
    and taste.
    """
    user = _draw_weighted(rng, n, world.activity)
    channel = _choose(rng, n, (0.55, 0.35, 0.10))
    candidates = np.empty((n, _CANDIDATES), dtype=np.int64)
    for j in range(_CANDIDATES):
        item = _draw_weighted(rng, n, world.popularity)
        while (taken := (candidates[:, :j] == item[:, None]).any(1)).any():
            item = np.where(taken, (item + 1) % world.config.n_items, item)
        candidates[:, j] = item
    taste = world.click_taste[user[:, None], world.category[candidates]]
    score = 0.4 * np.log(world.popularity[candidates]) + 0.4 * taste + rng.standard_normal(candidates.shape)
    best = np.argsort(-score, axis=1, kind="stable")[:, :SESSION_LENGTH]
    shown = np.take_along_axis(candidates, best, axis=1).ravel()
    return np.repeat(user, SESSION_LENGTH), shown, np.repeat(channel, SESSION_LENGTH)


def _moments(config: ShopConfig, share: np.ndarray) -> np.ndarray:
    """Seconds since the start at which the given shares of the traffic have passed (quiet nights, busy weekends)."""
    hours = np.arange(config.days * 24)
    clock, weekend = hours % 24, hours // 24 % 7 >= 5
    traffic = 0.15 + np.exp(-(((clock - 13) / 4.0) ** 2)) + 1.4 * np.exp(-(((clock - 20.5) / 2.5) ** 2))
    passed = np.concatenate([[0.0], np.cumsum(np.where(weekend, 1.3, 1.0) * traffic)])
    seconds = np.interp(share * passed[-1], passed, np.arange(len(passed)) * 3600.0)
    return np.minimum(np.floor(seconds), config.days * 86_400 - 1).astype(np.int64)


def _block(columns: dict[str, np.ndarray]) -> ShopBlock:
    """Turn columns of distinct impressions into the raw log and its truth."""
    truth = pd.DataFrame(
        {
            "impression_id": columns["impression_id"],
            "p_click": np.round(columns["p_click"], 6),
            "p_purchase_given_click": np.round(columns["p_purchase_given_click"], 6),
            "p_purchase": np.round(columns["p_click"] * columns["p_purchase_given_click"], 6),
        }
    )
    rows = np.repeat(np.arange(len(columns["copies"])), columns["copies"])
    raw = {name: values[rows] for name, values in columns.items()}
    stamps = np.datetime_as_string(START + raw.pop("moment").astype("timedelta64[s]"))
    raw["channel"] = _names(CHANNELS, raw["channel"])
    raw["timestamp"] = pd.Series(stamps.astype(object))
    return ShopBlock(pd.DataFrame(raw)[list(_COLUMNS["impressions"])], truth)


def _dirty_tables(world: World) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The shop's users and items with the faults real tables have."""
    rng = _generator(world.config, _DIRT)
    users, items = world.users.copy(), world.items.copy()
    n = len(users)
    age = users["age"].to_numpy(float)
    age[rng.random(n) < 0.08] = np.nan
    odd = rng.random(n) < 0.005
    odd[rng.integers(0, n)] = True
    age[odd] = np.where(rng.random(n) < 0.7, 999.0, 0.0)[odd]
    users["age"] = age

    n = len(items)
    spelling = rng.integers(0, 12, n)
    spell = {0: str.upper, 1: str.title, 2: lambda name: f" {name}", 3: lambda name: f"{name.title()}  "}
    items["category"] = pd.Series(
        [spell.get(k, str)(c) for k, c in zip(spelling, items["category"], strict=True)]
    )
    price = items["price"].to_numpy(float).copy()
    cents = rng.random(n) < 0.15
    slip = rng.integers(0, n)
    price[slip] = np.round(price[slip] * 1000, 2)  # somebody lost a decimal point
    price = np.where(cents, np.rint(price * 100), price)
    rating = items["rating"].to_numpy(float).copy()
    rating[rng.random(n) < 0.03] = np.nan
    items["price"], items["rating"] = price, rating
    items["price_unit"] = _names(("EUR", "cent"), cents.astype(np.int64))
    return users[list(_COLUMNS["users"])], items[list(_COLUMNS["items"])]


# ------------------------------------------------------------------------------------------------- files

# Columns of each file and what they hold: a whole number, a number that may be missing, or text.
_COLUMNS = {
    "users": {
        "user_id": "whole",
        "age": "number",
        "region": "text",
        "loyalty_tier": "text",
        "signup_days": "whole",
    },
    "items": {
        "item_id": "whole",
        "category": "text",
        "brand": "text",
        "price": "number",
        "price_unit": "text",
        "rating": "number",
        "launched_days": "whole",
    },
    "impressions": {
        "impression_id": "whole",
        "session_id": "whole",
        "timestamp": "text",
        "user_id": "whole",
        "item_id": "whole",
        "position": "whole",
        "channel": "text",
        "click": "whole",
        "purchase": "whole",
        "dwell_seconds": "number",
    },
    "truth": {
        "impression_id": "whole",
        "p_click": "number",
        "p_purchase_given_click": "number",
        "p_purchase": "number",
    },
}
_DECIMALS = {"price": 2, "rating": 1, "p_click": 6, "p_purchase_given_click": 6, "p_purchase": 6}
_CONFIG_FILE = "config.json"


def write_shop(config: ShopConfig | None = None, folder: str | Path = SHOP_FOLDER) -> list[Path]:
    """Simulate a shop and write its files; the same config gives the same bytes.

    Writes ``users``, ``items``, ``impressions`` and ``truth`` as ``.csv.gz`` and the knobs as ``config.json``.
    Each file appears only when it is whole. Returns the paths.
    """
    config = config or ShopConfig()
    shop = simulate(config)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    contents = {_CONFIG_FILE: (json.dumps(asdict(config), indent=2) + "\n").encode()}
    for name in _COLUMNS:
        contents[f"{name}.csv.gz"] = _gzip(_csv(getattr(shop, name), _COLUMNS[name]))
    for name, content in contents.items():
        with write_atomically(folder / name) as file:
            file.write(content)
    return [folder / name for name in contents]


def _csv(frame: pd.DataFrame, columns: dict[str, str]) -> bytes:
    text = frame.copy()
    for name, kind in columns.items():
        if kind == "number":
            form = f"%.{_DECIMALS.get(name, 0)}f"
            text[name] = pd.Series(["" if value != value else form % value for value in frame[name].tolist()])
    return text.to_csv(index=False, lineterminator="\n").encode()


def _gzip(content: bytes) -> bytes:
    buffer = io.BytesIO()
    # No name and no time in the header: the bytes depend on the content (and the zlib) alone.
    with gzip.GzipFile(filename="", mode="wb", compresslevel=9, fileobj=buffer, mtime=0) as file:
        file.write(content)
    return buffer.getvalue()


def load_shop(folder: str | Path | None = None) -> Shop:
    """Read a shop's files.

    Parameters
    ----------
    folder : where they lie; :data:`SHOP_FOLDER` by default. When that default holds no shop (the package was
        installed without the data), the same shop is simulated in memory.

    Raises FileNotFoundError when a folder or a file of it is missing, ValueError when a file lacks a column or
    holds text where a number is expected.
    """
    if folder is None:
        if not any((SHOP_FOLDER / f"{name}.csv.gz").is_file() for name in _COLUMNS):
            return simulate(ShopConfig())
        folder = SHOP_FOLDER
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"There is no folder {folder}. Give the folder that holds users.csv.gz, items.csv.gz, impressions.csv.gz "
            "and truth.csv.gz, or write one with write_shop(config, folder)."
        )
    tables = {name: _read_table(folder / f"{name}.csv.gz", columns) for name, columns in _COLUMNS.items()}
    return Shop(**tables, config=_read_config(folder / _CONFIG_FILE))


def _read_table(path: Path, columns: dict[str, str]) -> pd.DataFrame:
    if not path.is_file():
        raise FileNotFoundError(
            f"{path.name} is missing in {path.parent}: write the shop anew with write_shop."
        )
    try:
        frame = pd.read_csv(path, keep_default_na=False, na_values=[""])
    except (OSError, EOFError, UnicodeDecodeError, ValueError) as error:
        raise ValueError(
            f"{path} could not be read as a gzipped CSV ({error}): write it anew with write_shop."
        ) from error
    _check_columns(frame, columns, path.name)
    frame = frame[list(columns)]
    for name, kind in columns.items():
        if kind == "text":
            continue
        numbers = pd.to_numeric(frame[name], errors="coerce")
        bad = (
            numbers.isna() & frame[name].notna() if kind == "number" else numbers.isna() | (numbers % 1 != 0)
        )
        if bad.any():
            row = int(np.argmax(bad.to_numpy()))
            value = frame[name].iloc[row]
            wanted = "a whole number" if kind == "whole" else "a number or nothing"
            shown = "nothing" if pd.isna(value) else repr(str(value))
            raise ValueError(f"{path.name}, line {row + 2}: {name} is {shown}, expected {wanted}.")
        frame = frame.assign(**{name: numbers.astype(np.int64 if kind == "whole" else np.float64)})
    return frame


def _read_config(path: Path) -> ShopConfig | None:
    if not path.is_file():
        return None
    try:
        return ShopConfig(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{path} does not hold a shop's knobs ({error}): write it anew with write_shop."
        ) from error


def _check_columns(frame: pd.DataFrame, columns: Sequence[str], what: str) -> None:
    missing = [name for name in columns if name not in frame]
    if missing:
        raise ValueError(
            f"{what} lacks the column {', '.join(missing)}: expected {', '.join(columns)}, "
            f"came with {', '.join(map(str, frame.columns))}."
        )


# ------------------------------------------------------------------------------------------------- cleaning


def clean_users(users: pd.DataFrame) -> pd.DataFrame:
    """Drop duplicate rows and turn impossible ages (below 14, above 100) into missing ones.

    A missing age stays missing: the encoder fills it with the mean of the training rows.
    """
    _check_columns(users, _COLUMNS["users"], "The table of users")
    users = _unique(drop_duplicate_rows(users), "user_id")
    return users.assign(
        age=users["age"].where(users["age"].between(14, 100)),
        region=tidy_text(users["region"]),
        loyalty_tier=tidy_text(users["loyalty_tier"]),
    )


def clean_items(items: pd.DataFrame) -> pd.DataFrame:
    """Drop duplicate rows, tidy the categories, bring all prices to EUR and clip outliers within their category.

    The column ``price_unit`` goes. A missing rating stays missing.
    """
    _check_columns(items, _COLUMNS["items"], "The table of items")
    items = _unique(drop_duplicate_rows(items), "item_id")
    items = items.assign(
        category=tidy_text(items["category"]),
        brand=tidy_text(items["brand"]),
        price=convert_units(items["price"], items["price_unit"], {"EUR": 1.0, "cent": 0.01}),
    )
    unknown = sorted(set(items["category"].fillna("(missing)")) - set(CATEGORIES))
    if unknown:
        raise ValueError(
            f"Unknown category {', '.join(map(repr, unknown))}: expected one of {', '.join(CATEGORIES)}."
        )
    if (items["price"] <= 0).any():
        raise ValueError(
            f"The table of items holds a price of {items['price'].min():g} EUR: expected prices above 0."
        )
    clipped = items.groupby("category")["price"].transform(lambda price: clip_outliers(price, log=True))
    return items.assign(price=clipped.round(2)).drop(columns="price_unit")


def clean_impressions(impressions: pd.DataFrame) -> pd.DataFrame:
    """Drop duplicate rows, read the timestamps and sort by time.

    Raises ValueError when a timestamp cannot be read, an impression id stands for two different rows, a session
    has two timestamps, a label is not 0 or 1, or something was bought without a click.
    """
    _check_columns(impressions, _COLUMNS["impressions"], "The table of impressions")
    log = _unique(drop_duplicate_rows(impressions), "impression_id")
    try:
        log = log.assign(timestamp=pd.to_datetime(log["timestamp"], format="ISO8601").astype("datetime64[s]"))
    except (ValueError, TypeError) as error:
        raise ValueError(f"A timestamp is not in ISO form such as 2025-03-03T08:15:00: {error}") from error
    for name in ("click", "purchase"):
        odd = log.loc[~log[name].isin((0, 1)), name]
        if len(odd):
            raise ValueError(f"The column {name} holds {odd.iloc[0]}: expected 0 or 1.")
    unclicked = log.loc[log["purchase"] > log["click"], "impression_id"]
    if len(unclicked):
        raise ValueError(
            f"Impression {unclicked.iloc[0]} was bought without a click: the labels contradict each other."
        )
    log = log.assign(channel=tidy_text(log["channel"]))
    log = log.sort_values(["timestamp", "impression_id"], kind="stable", ignore_index=True)
    moments = log[["session_id", "timestamp"]].drop_duplicates()["session_id"]
    if moments.duplicated().any():
        raise ValueError(
            f"Session {moments[moments.duplicated()].iloc[0]} has two timestamps: expected one, the moment its list "
            "was shown."
        )
    return log


def _unique(frame: pd.DataFrame, key: str) -> pd.DataFrame:
    twice = frame.loc[frame[key].duplicated(), key]
    if len(twice):
        raise ValueError(f"{key} {twice.iloc[0]} stands for two different rows: expected each {key} once.")
    return frame


# ------------------------------------------------------------------------------------------------- features


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
    for key, table, name in (("user_id", users, "users"), ("item_id", items, "items")):
        unknown = log.loc[~log[key].isin(table[key]), key].unique()
        if len(unknown):
            some = ", ".join(map(str, unknown[:5])) + (", …" if len(unknown) > 5 else "")
            raise ValueError(
                f"The log names {len(unknown)} {key} that the table of {name} does not have: {some}."
            )
    items = items.assign(log_price=np.log(items["price"]))
    items["price_vs_category"] = items["log_price"] - items.groupby("category")["log_price"].transform("mean")
    groups = pd.cut(users["age"], [0, *AGE_EDGES[1:-1], np.inf], right=False, labels=list(AGE_GROUPS))
    users = users.assign(age_group=groups.astype(object).where(groups.notna(), "unknown").astype(str))

    frame = log.merge(users, on="user_id", how="left").merge(items, on="item_id", how="left")
    if len(frame) != len(log):
        raise ValueError(
            f"The join made {len(frame)} rows out of {len(log)}: expected one row an impression."
        )
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
    _check_columns(frame, ("next_category", "next_click_time"), "The table")
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
    from mtl_helpers.metrics import auc

    log = shop.impressions.drop_duplicates("impression_id").merge(shop.truth, on="impression_id")
    clicked = log[log["click"] == 1]
    return {
        "click": float(auc(log["click"].to_numpy(), log["p_click"].to_numpy())),
        "purchase": float(auc(log["purchase"].to_numpy(), log["p_purchase"].to_numpy())),
        "purchase_given_click": float(
            auc(clicked["purchase"].to_numpy(), clicked["p_purchase_given_click"].to_numpy())
        ),
    }


# ------------------------------------------------------------------------------------------------- small helpers


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def _standardise(values: np.ndarray) -> np.ndarray:
    centred = values - values.mean()
    return centred / np.sqrt((centred**2).mean())


def _choose(rng: np.random.Generator, n: int, shares: Sequence[float]) -> np.ndarray:
    """Draw n places 0, 1, … with the given shares."""
    return np.searchsorted(np.cumsum(shares)[:-1], rng.random(n), side="right")


def _draw_weighted(rng: np.random.Generator, n: int, weights: np.ndarray) -> np.ndarray:
    edges = np.cumsum(weights)
    return np.searchsorted(edges[:-1], rng.random(n) * edges[-1], side="right")


def _names(names: Sequence[str], codes: np.ndarray) -> pd.Series:
    return pd.Series(np.array(names, dtype=object)[codes])


def _whole(values, name: str, low: int, high: int | None) -> np.ndarray:
    values = np.asarray(values)
    if not np.issubdtype(values.dtype, np.integer):
        raise TypeError(f"{name} must hold whole numbers, got {values.dtype}.")
    if values.size and (values.min() < low or (high is not None and values.max() > high)):
        span = f"{low} to {high}" if high is not None else f"{low} or more"
        raise ValueError(f"{name} runs from {values.min()} to {values.max()}, expected {span}.")
    return values


def _channel_codes(channel) -> np.ndarray:
    channel = np.asarray(channel)
    if np.issubdtype(channel.dtype, np.integer):
        return _whole(channel, "channel", 0, len(CHANNELS) - 1)
    codes = pd.Index(CHANNELS).get_indexer(pd.Index(channel.astype(object).ravel())).reshape(channel.shape)
    if (codes < 0).any():
        raise ValueError(
            f"Unknown channel {str(channel[codes < 0].ravel()[0])!r}: expected one of {', '.join(CHANNELS)}."
        )
    return codes


def _main(arguments: Sequence[str]) -> None:
    if len(arguments) > 1 or any(argument.startswith("-") for argument in arguments):
        raise SystemExit("Usage: python -m mtl_helpers.data.shop [folder]")
    paths = write_shop(ShopConfig(), arguments[0] if arguments else SHOP_FOLDER)
    shop = load_shop(paths[0].parent)
    log = shop.impressions.drop_duplicates()
    for path in paths:
        print(f"{path}  {path.stat().st_size / 1e3:,.1f} kB")
    print(f"click rate {log['click'].mean():.4f}, purchase rate {log['purchase'].mean():.4f}")
    print("Bayes-optimal AUC: " + ", ".join(f"{name} {value:.4f}" for name, value in bayes_auc(shop).items()))


if __name__ == "__main__":
    _main(sys.argv[1:])
