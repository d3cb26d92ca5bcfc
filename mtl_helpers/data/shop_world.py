"""The hidden world of the simulated shop: who likes what, who would buy what, and the traffic.

Notebook 00 shows it in pictures. :class:`ShopConfig` holds the knobs, :func:`make_world` draws tastes and qualities and
solves for the intercepts that give the wanted rates; :mod:`mtl_helpers.data.shop` draws the log from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

__all__ = [
    "AGE_GROUPS",
    "CATEGORIES",
    "CHANNELS",
    "REGIONS",
    "SESSION_LENGTH",
    "TIERS",
    "ShopConfig",
    "World",
    "make_world",
]

# fmt: off
CATEGORIES = (
    "books", "electronics", "fashion", "home", "beauty", "sports", "toys", "garden", "groceries", "music", "pets",
    "office",
)
# fmt: on
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

# Random streams: each has its own child seed, so that a change to one leaves the others as they are.
_USERS, _ITEMS, DIRT, _CALIBRATION, LOG = range(5)
_CALIBRATION_SESSIONS = 12_000
_CANDIDATES = 12


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

    Raises ValueError for a value outside of these.
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
        for name, fine, wanted in (
            ("n_users", self.n_users >= 10, "10 or more"),
            ("n_items", self.n_items >= 20, "20 or more"),
            ("n_impressions", self.n_impressions > 0 == self.n_impressions % 5, "a multiple of 5"),
            ("n_categories", 2 <= self.n_categories <= len(CATEGORIES), f"2 to {len(CATEGORIES)}"),
            ("relatedness", -1 <= self.relatedness <= 1, "-1 (opposed tastes) to 1 (same taste)"),
            ("days", self.days >= 1, "1 or more"),
            ("click_rate", self.click_rate <= 0.5, "0.5 or less"),
            ("purchase_rate", 0 < self.purchase_rate < self.click_rate, "above 0 and below click_rate"),
        ):
            if not fine:
                raise ValueError(f"ShopConfig: {name} is {getattr(self, name)}, expected {wanted}.")

    @property
    def categories(self) -> tuple[str, ...]:
        """Names of this shop's categories."""
        return CATEGORIES[: self.n_categories]


def generator(config: ShopConfig, *key: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(config.seed, spawn_key=key)))


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
    return _solve_intercepts(World(config, **_draw_users(config), **_draw_items(config)))


def _draw_users(config: ShopConfig) -> dict:
    rng = generator(config, _USERS)
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
            "region": names_of(REGIONS, region),
            "loyalty_tier": names_of(TIERS, tier),
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
    rng = generator(config, _ITEMS)
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
            "category": names_of(CATEGORIES, category),
            "brand": names_of(
                [f"brand-{k + 1:02d}" for k in range(n_categories * BRANDS_PER_CATEGORY)], brand
            ),
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
    rng = generator(config, _CALIBRATION)
    n = _CALIBRATION_SESSIONS
    moment = moments(config, (np.arange(n) + 0.5) / n)
    user, item, channel = draw_sessions(world, rng, n)
    hour = np.repeat(moment // 3600 % 24, SESSION_LENGTH)
    position = np.tile(np.arange(1, SESSION_LENGTH + 1), n)
    click, purchase = _utilities(world, user, item, position, hour, channel)
    click_intercept = _bisect(lambda b: _sigmoid(click + b).mean(), config.click_rate)
    p_click = _sigmoid(click + click_intercept)
    purchase_intercept = _bisect(lambda b: (p_click * _sigmoid(purchase + b)).mean(), config.purchase_rate)
    return replace(world, click_intercept=click_intercept, purchase_intercept=purchase_intercept)


def _bisect(rate, target: float) -> float:
    low, high = -30.0, 30.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if rate(middle) < target else (low, middle)
    return round((low + high) / 2, 6)  # rounded, so that the last bit of a sum cannot change the log


def draw_sessions(
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


def moments(config: ShopConfig, share: np.ndarray) -> np.ndarray:
    """Seconds since the start at which the given shares of the traffic have passed (quiet nights, busy weekends)."""
    hours = np.arange(config.days * 24)
    clock, weekend = hours % 24, hours // 24 % 7 >= 5
    traffic = 0.15 + np.exp(-(((clock - 13) / 4.0) ** 2)) + 1.4 * np.exp(-(((clock - 20.5) / 2.5) ** 2))
    passed = np.concatenate([[0.0], np.cumsum(np.where(weekend, 1.3, 1.0) * traffic)])
    seconds = np.interp(share * passed[-1], passed, np.arange(len(passed)) * 3600.0)
    return np.minimum(np.floor(seconds), config.days * 86_400 - 1).astype(np.int64)


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


def names_of(names: Sequence[str], codes: np.ndarray) -> pd.Series:
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
        raise ValueError(f"Unknown channel {str(channel[codes < 0][0])!r}: expected {', '.join(CHANNELS)}.")
    return codes
