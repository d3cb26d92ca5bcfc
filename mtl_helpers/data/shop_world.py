"""A simulated shop, set by realism: its log looks like a shop's, and its true probabilities are known.

Taught in notebook 00 (the shop in pictures); ``datasets/shop/README.md`` tells how a row comes about.
:class:`ShopConfig` holds the knobs. A :class:`World` holds what users want and what products are, and knows the true
probabilities of any user, product, moment and position. :mod:`mtl_helpers.data.shop_run` lets its shop run,
:mod:`mtl_helpers.data.shop` turns that into files, :mod:`mtl_helpers.data.shop_log` prepares them for learning.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from mtl_helpers.data.shop_content import describe

__all__ = [
    "AGE_GROUPS",
    "CATEGORIES",
    "PAGE",
    "REGIONS",
    "SUB_CATEGORIES",
    "SURFACES",
    "TIERS",
    "ShopConfig",
    "World",
]

SUB_CATEGORIES = {
    "books": ("novels", "cookbooks", "travel guides", "comics"),
    "electronics": ("headphones", "lamps", "cameras", "speakers"),
    "fashion": ("jackets", "shoes", "bags", "hats"),
    "home": ("chairs", "cushions", "vases", "clocks"),
    "beauty": ("soaps", "perfumes", "creams", "brushes"),
    "sports": ("balls", "mats", "bottles", "bikes"),
    "toys": ("puzzles", "dolls", "kites", "blocks"),
    "garden": ("pots", "seeds", "tools", "lanterns"),
}
CATEGORIES = tuple(SUB_CATEGORIES)
"""Names of the categories. A name's place is its class in ``next_category``."""
SUBS = tuple(sub for subs in SUB_CATEGORIES.values() for sub in subs)
PARENT = np.arange(len(SUBS)) // 4  # category of a sub-category
_TYPICAL_PRICE = np.array([18.0, 120.0, 55.0, 60.0, 22.0, 50.0, 25.0, 30.0])
SURFACES = ("home", "category page", "email")
REGIONS = ("north", "south", "east", "west", "centre", "islands")
TIERS = ("bronze", "silver", "gold", "platinum")
AGE_GROUPS = ("18-24", "25-34", "35-44", "45-54", "55+")
AGE_EDGES = (18, 25, 35, 45, 55, 81)
PAGE = 8
"""Products a page shows, at positions 1 to 8. A session has one to five pages."""
DAY = 86_400
START = np.datetime64("2025-03-03T00:00:00", "s")  # a Monday

# Random streams: each has its own child seed, so that a change to one leaves the others as they are.
_USERS, _ITEMS, _TRENDS, LOG, _WORDS, DIRT, PICTURES = range(7)


@dataclass(frozen=True)
class ShopConfig:
    """The knobs of the simulated shop.

    Parameters
    ----------
    n_users, n_items : size of the user base and of the catalogue (at least 200, 25 a category).
    n_impressions : distinct rows of the log, a multiple of 8 (a page shows 8 products). The raw log has about 1 %
        more, because some rows were written twice. days : length of the log.
    relatedness : correlation ρ of what makes a user click and what makes the same user buy: 1 "same taste", 0
        "unrelated", -1 "opposed". Purchase taste = ρ · click taste + √(1 - ρ²) · independent taste.
    click_rate, conversion : clicks per impression, and purchases per click. Met to about a tenth: what users do
        feeds back on what they are shown.
    seed : the same config gives the same shop.
    """

    n_users: int = 1800
    n_items: int = 1000
    n_impressions: int = 200_000
    days: int = 42
    relatedness: float = 0.8
    click_rate: float = 0.073
    conversion: float = 0.075
    seed: int = 0

    def __post_init__(self) -> None:
        sizes = self.n_impressions >= PAGE and self.n_impressions % PAGE == 0 and self.n_items >= 200
        shares = -1 <= self.relatedness <= 1 and 0 < self.click_rate < 0.5 and 0 < self.conversion < 0.5
        if not (sizes and shares and self.n_users >= 10):
            raise ValueError(
                f"{self}: n_impressions is a multiple of {PAGE} (a page), n_items 200 or more, n_users 10 or more, "
                "relatedness in [-1, 1], click_rate and conversion between 0 and 0.5."
            )


def generator(config: ShopConfig, key: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(config.seed, spawn_key=(key,))))


# ------------------------------------------------------------------------------------------------- the hidden world


class World:
    """What the simulator knows and a shop does not.

    ``users`` and ``items`` are the tables a shop sees, before any dirt. Of users: ``eager``, ``activity``,
    ``price_sensitivity`` (n_users,); ``taste`` and ``taste_purchase`` for sub-categories (n_users, 32), ``style_taste``
    and ``style_taste_purchase`` for three axes of style (n_users, 3), all of standard deviation 1. Of items: ``sub``,
    ``quality``, ``appeal``, ``relative_price`` (on the log scale, within the category), ``first_day`` of the log on
    which it can be shown (n_items,); ``style`` (n_items, 3). ``complement`` (32,) is the sub-category that goes with
    one; ``trend`` (days, n_items) what is in fashion. ``log`` is the clean log with its truth, one row an impression,
    sorted by time; :func:`mtl_helpers.data.make_world` fills it in.
    """

    click_intercept, purchase_intercept = -3.8, -4.4

    def __init__(self, config: ShopConfig) -> None:
        self.config = config
        self._draw_users(generator(config, _USERS))
        self._draw_items(generator(config, _ITEMS))
        rng = generator(config, _TRENDS)
        items = self._walk(rng, config.n_items, deviation=0.35, half_life=7)
        self.trend = items + self._walk(rng, len(SUBS), deviation=0.12, half_life=14)[:, self.sub]
        self.log, self.pages = {}, {}

    def _draw_users(self, rng: np.random.Generator) -> None:
        n, rho = self.config.n_users, self.config.relatedness
        group = rng.choice(5, n, p=(0.16, 0.28, 0.22, 0.18, 0.16))
        region = rng.choice(6, n, p=(0.24, 0.20, 0.18, 0.18, 0.14, 0.06))
        tier = rng.choice(4, n, p=(0.50, 0.28, 0.16, 0.06))

        def taste(width: int) -> np.ndarray:
            """Half of it follows from age group, region and tier."""
            kinds = (1.0, 5, group), (0.7, 6, region), (0.7, 4, tier)
            known = sum(share * rng.standard_normal((number, width))[of] for share, number, of in kinds)
            return _standardise(_standardise(known) + rng.standard_normal((n, width)))

        def pair(width: int) -> tuple[np.ndarray, np.ndarray]:
            click, other = taste(width), taste(width)
            # without the chance correlation of the two draws the knob means exactly what it says
            other = _standardise(other - (other * click).mean(0) * click)
            return click, rho * click + np.sqrt(1 - rho**2) * other

        categories, subs = pair(len(CATEGORIES)), pair(len(SUBS))
        self.taste, self.taste_purchase = (
            0.8 * category[:, PARENT] + 0.6 * sub for category, sub in zip(categories, subs, strict=True)
        )
        self.style_taste, self.style_taste_purchase = pair(3)
        edges = np.array(AGE_EDGES)
        users = {
            "user_id": np.arange(n),
            "age": edges[group] + np.floor(rng.random(n) * np.diff(edges)[group]).astype(np.int64),
            "region": np.array(REGIONS, object)[region],
            "loyalty_tier": np.array(TIERS, object)[tier],
            "signup_days": np.floor(30 + (200 + 250 * tier) * rng.exponential(size=n)).astype(np.int64),
        }
        self.users, self.eager = pd.DataFrame(users), rng.standard_normal(n)
        sensitivity, activity = np.array([[1.4, 1.1, 0.9, 0.6], [0.8, 1.0, 1.4, 1.8]])[:, tier]
        self.price_sensitivity = sensitivity * np.exp(0.3 * rng.standard_normal(n))
        self.activity = activity * np.exp(0.8 * rng.standard_normal(n))

    def _draw_items(self, rng: np.random.Generator) -> None:
        n = self.config.n_items
        size = np.exp(0.25 * rng.standard_normal(len(SUBS))) * np.linspace(1.1, 0.9, len(CATEGORIES))[PARENT]
        self.sub = rng.choice(len(SUBS), n, p=size / size.sum())
        self.sub[: 2 * len(SUBS)] = np.tile(np.arange(len(SUBS)), 2)  # no sub-category stays empty
        category = PARENT[self.sub]
        brand = category * 5 + rng.integers(0, 5, n)
        self.quality = _standardise(0.5 * rng.standard_normal(40)[brand] + 0.85 * rng.standard_normal(n))
        self.relative_price = 0.45 * _standardise(0.35 * self.quality + 0.94 * rng.standard_normal(n))
        new = len(SUBS) + rng.permutation(n - len(SUBS))[: n // 8]
        self.first_day = np.zeros(n, np.int64)
        self.first_day[new] = rng.integers(1, self.config.days, len(new))
        self.appeal, self.style = rng.standard_normal(n), rng.standard_normal((n, 3))
        self.appeal -= (np.bincount(category, self.appeal) / np.bincount(category))[
            category
        ]  # no darling category
        ring = rng.permutation(len(SUBS))
        self.complement = np.roll(ring, 1)[
            np.argsort(ring)
        ]  # each goes with one other, and one other with it
        age = np.where(
            self.first_day > 0, -self.first_day, np.floor(300 * rng.exponential(size=n)).astype(int)
        )
        items = {
            "item_id": np.arange(n),
            "category": np.array(CATEGORIES, object)[category],
            "sub_category": np.array(SUBS, object)[self.sub],
            "brand": np.array([f"brand-{k + 1:02d}" for k in range(40)], object)[brand],
            "price": np.round(_TYPICAL_PRICE[category] * np.exp(self.relative_price), 2),
            "on_sale_since": np.datetime_as_string(START.astype("datetime64[D]") - age).astype(object),
        }
        hidden = np.column_stack([self.quality, self.appeal, self.style])
        words = describe(items["sub_category"], items["brand"], hidden, generator(self.config, _WORDS))
        self.items = pd.DataFrame(items | words)

    def _walk(self, rng: np.random.Generator, n: int, deviation: float, half_life: float) -> np.ndarray:
        """(days, n) random walks that come back to 0."""
        keep, steps = 0.5 ** (1 / half_life), deviation * rng.standard_normal((self.config.days, n))
        for day in range(1, self.config.days):
            steps[day] = keep * steps[day - 1] + np.sqrt(1 - keep**2) * steps[day]
        return steps

    def probabilities(self, user, item, time, position=1, surface="home") -> tuple[np.ndarray, np.ndarray]:
        """True probabilities of an impression at a moment, whether it was shown or not.

        The user's state is what the log left it in: all clicks, purchases and views before ``time`` count, and the
        mission is that of the last page opened at or before ``time`` (none before the first).

        Parameters
        ----------
        user, item : user_id and item_id. time : timestamps, or seconds since the log's start. position : 1 to 8.
            surface : a name from :data:`SURFACES`. All may be arrays; they are broadcast as numpy does.

        Returns
        -------
        p_click and p_purchase_given_click, of the broadcast shape. Their product is the probability that the
        impression leads to a purchase, be it days later.
        """
        if not np.issubdtype(np.asarray(time).dtype, np.number):
            time = (np.asarray(time).astype("datetime64[s]") - START).astype(np.int64)
        email = np.asarray(surface) == SURFACES[2]
        user, item, time, position, email = np.broadcast_arrays(user, item, time, position, email)
        pages, sub, key = self.pages, self.sub[item], user.astype(np.int64) << 32 | time.astype(np.int64)

        def last_page(side: str) -> tuple[np.ndarray, np.ndarray]:
            """The user's last page before (or at) the moment, and whether there is one."""
            page = np.searchsorted(pages["key"], key, side=side) - 1
            return page, (page >= 0) & (pages["key"][page] >> 32 == user)

        (now, open_), (before, known) = last_page("right"), last_page("left")
        mission = np.where(open_, pages["mission"][now], -1)
        gap = np.where(known, time - (pages["key"][before] & 0xFFFFFFFF), 0)
        excitement = np.where(known, faded(pages["excitement"][before, sub], gap, 1), 0)
        satiation = np.where(known, faded(pages["satiation"][before, sub], gap, 15), 0)
        view = (user.astype(np.int64) * self.config.n_items + item) << 32
        seen = np.searchsorted(pages["views"], view | time) - np.searchsorted(pages["views"], view)
        day = np.clip(time // DAY, 0, self.config.days - 1)
        click, purchase = self.utilities(user, item, day, email, mission, excitement, satiation, seen)
        return position**-0.45 * sigmoid(click), sigmoid(purchase)

    def utilities(self, user, item, day, email, mission, excitement, satiation, seen):
        """Log-odds of a click on a product that is looked at, and of a purchase after it."""
        sub, style, views = self.sub[item], self.style[item], np.log1p(seen)
        price = self.price_sensitivity[user] * self.relative_price[item]
        wanted, goes_with = sub == mission, sub == self.complement[mission]
        # who it is and what it is ...
        click = self.click_intercept + 0.4 * self.eager[user] + 0.8 * self.taste[user, sub] - 0.3 * email
        click = click + 0.5 * (self.style_taste[user] * style).sum(-1) + 0.35 * self.quality[item]
        click = click + 0.5 * self.appeal[item] + self.trend[day, item] - 0.3 * price
        purchase = self.purchase_intercept + 0.7 * self.taste_purchase[user, sub] + 0.5 * self.quality[item]
        purchase = purchase + 0.35 * (self.style_taste_purchase[user] * style).sum(-1) - price
        # ... and what the user is after, has lately clicked, bought and seen
        click = click + 1.4 * wanted + 0.6 * goes_with + 0.9 * np.minimum(excitement, 2)
        click = click - 1.2 * satiation - 0.25 * views
        purchase = purchase + 1.0 * wanted + 0.3 * goes_with + 0.3 * views - 1.5 * satiation
        return click, purchase


def faded(values: np.ndarray, seconds: np.ndarray, half_life: float) -> np.ndarray:
    """Values after some seconds, with a half-life in days."""
    return (values * 0.5 ** np.minimum(seconds / (half_life * DAY), 100)).astype(np.float32)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def _standardise(values: np.ndarray) -> np.ndarray:
    return (values - values.mean(0)) / values.std(0)
