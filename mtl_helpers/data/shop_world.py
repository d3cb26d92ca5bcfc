"""A simulated shop, set by realism: its log looks like a shop's, and its true probabilities are known.

Taught in notebook 00; ``datasets/shop/README.md`` tells how a row comes about. A :class:`World` holds what users want
and what products are; in a :class:`Run` its shop is open; :mod:`mtl_helpers.data.shop` turns that into files.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from mtl_helpers.data.shop_content import describe

__all__ = ["AGE_GROUPS", "CATEGORIES", "PAGE", "SURFACES", "TIERS", "ShopConfig", "World", "make_world"]

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
_USERS, _ITEMS, _TRENDS, _LOG, _WORDS, DIRT, PICTURES = range(7)


@dataclass(frozen=True)
class ShopConfig:
    """The knobs of the simulated shop; the same config gives the same shop.

    ``relatedness`` is the correlation ρ of what makes a user click and what makes the same user buy: 1 "same taste", 0
    "unrelated", -1 "opposed". Rates are met to about a tenth: what users do feeds back on what they are shown.
    """

    n_users: int = 1800  # 10 or more
    n_items: int = 1000  # 200 or more, 25 a category
    n_impressions: int = 200_000  # distinct rows, a multiple of 8: whole pages
    days: int = 42
    relatedness: float = 0.8
    click_rate: float = 0.073  # clicks per impression
    conversion: float = 0.075  # purchases per click
    seed: int = 0

    def __post_init__(self) -> None:
        sizes = self.n_users >= 10, self.n_items >= 200, self.n_impressions % PAGE == 0 < self.n_impressions
        rates = abs(self.relatedness) <= 1, 0 < self.click_rate < 0.5, 0 < self.conversion < 0.5
        if not all(sizes + rates):
            rule = f"10 users or more, 200 items or more, impressions a multiple of {PAGE}, relatedness in [-1, 1]"
            raise ValueError(f"{self}: expected {rule}, rates between 0 and 0.5.")


class World:
    """What the simulator knows and a shop does not; ``users`` and ``items`` are the tables it sees, before any dirt.
    :func:`make_world` adds ``log``, clean and with its truth, one row an impression, and ``pages``, which say what
    state they left their users in."""

    def __init__(self, config: ShopConfig) -> None:
        self.config, self.click_intercept, self.purchase_intercept = config, -3.8, -4.4
        self._draw_users(generator(config, _USERS))
        self._draw_items(generator(config, _ITEMS))
        rng, walks = generator(config, _TRENDS), []  # what is in fashion: random walks that come back to 0
        for n, deviation, half_life in (config.n_items, 0.35, 7), (len(SUBS), 0.12, 14):
            keep, steps = 0.5 ** (1 / half_life), deviation * rng.standard_normal((config.days, n))
            for day in range(1, config.days):
                steps[day] = keep * steps[day - 1] + np.sqrt(1 - keep**2) * steps[day]
            walks.append(steps)
        self.trend = walks[0] + walks[1][:, self.sub]

    def _draw_users(self, rng: np.random.Generator) -> None:
        n, rho, edges = self.config.n_users, self.config.relatedness, np.array(AGE_EDGES)
        group = rng.choice(5, n, p=(0.16, 0.28, 0.22, 0.18, 0.16))
        region = rng.choice(6, n, p=(0.24, 0.20, 0.18, 0.18, 0.14, 0.06))
        tier = rng.choice(4, n, p=(0.50, 0.28, 0.16, 0.06))

        def pair(width: int) -> tuple[np.ndarray, np.ndarray]:
            """Tastes in clicks and purchases (n, width); half follows from age group, region and tier."""
            drawn, kinds = [], ((1.0, 5, group), (0.7, 6, region), (0.7, 4, tier))
            for _ in range(2):
                known = sum(share * rng.standard_normal((number, width))[of] for share, number, of in kinds)
                drawn.append(_standardise(_standardise(known) + rng.standard_normal((n, width))))
            click, other = drawn
            # without the chance correlation of the two draws the knob means exactly what it says
            other = _standardise(other - (other * click).mean(0) * click)
            return click, rho * click + np.sqrt(1 - rho**2) * other

        # for sub-categories (n_users, 32), and for three axes of style (n_users, 3)
        both = zip(pair(len(CATEGORIES)), pair(len(SUBS)), strict=True)
        self.taste, self.taste_purchase = (0.8 * category[:, PARENT] + 0.6 * sub for category, sub in both)
        self.style_taste, self.style_taste_purchase = pair(3)
        users = {
            "user_id": np.arange(n),
            "age": edges[group] + np.floor(rng.random(n) * np.diff(edges)[group]).astype(np.int64),
            "region": np.array(REGIONS, object)[region],
            "loyalty_tier": np.array(TIERS, object)[tier],
            "signup_days": np.floor(30 + (200 + 250 * tier) * rng.exponential(size=n)).astype(np.int64),
        }
        self.users, self.eager = pd.DataFrame(users), rng.standard_normal(n)
        self.price_sensitivity = np.array([1.4, 1.1, 0.9, 0.6])[tier] * np.exp(0.3 * rng.standard_normal(n))
        self.activity = np.array([0.8, 1.0, 1.4, 1.8])[tier] * np.exp(0.8 * rng.standard_normal(n))

    def _draw_items(self, rng: np.random.Generator) -> None:
        n, n_subs = self.config.n_items, len(SUBS)
        size = np.exp(0.25 * rng.standard_normal(n_subs)) * np.linspace(1.1, 0.9, len(CATEGORIES))[PARENT]
        self.sub = rng.choice(n_subs, n, p=size / size.sum())
        self.sub[: 2 * n_subs] = np.tile(np.arange(n_subs), 2)  # no sub-category stays empty
        category = PARENT[self.sub]
        brand = category * 5 + rng.integers(0, 5, n)
        self.quality = _standardise(0.5 * rng.standard_normal(40)[brand] + 0.85 * rng.standard_normal(n))
        # on the log scale, within the category
        self.relative_price = 0.45 * _standardise(0.35 * self.quality + 0.94 * rng.standard_normal(n))
        new = n_subs + rng.permutation(n - n_subs)[: n // 8]
        self.first_day = np.zeros(n, np.int64)  # of the log, on which it can be shown
        self.first_day[new] = rng.integers(1, self.config.days, len(new))
        self.appeal, self.style = rng.standard_normal(n), rng.standard_normal((n, 3))
        # no category is everybody's darling
        self.appeal -= (np.bincount(category, self.appeal) / np.bincount(category))[category]
        ring = rng.permutation(n_subs)
        self.complement = np.roll(ring, 1)[np.argsort(ring)]  # (32,): each goes with the one before it
        age = np.floor(300 * rng.exponential(size=n)).astype(int)
        since = START.astype("datetime64[D]") + np.where(self.first_day > 0, self.first_day, -age)
        items = {
            "item_id": np.arange(n),
            "category": np.array(CATEGORIES, object)[category],
            "sub_category": np.array(SUBS, object)[self.sub],
            "brand": np.array([f"brand-{k + 1:02d}" for k in range(40)], object)[brand],
            "price": np.round(_TYPICAL_PRICE[category] * np.exp(self.relative_price), 2),
            "on_sale_since": np.datetime_as_string(since).astype(object),
        }
        self.hidden = np.column_stack([self.quality, self.appeal, self.style])
        words = describe(items["sub_category"], items["brand"], self.hidden, generator(self.config, _WORDS))
        self.items = pd.DataFrame(items | words)

    def probabilities(self, user, item, time, position=1, surface="home") -> tuple[np.ndarray, np.ndarray]:
        """True p_click and p_purchase_given_click of an impression, shown or not; their product is the probability of
        a purchase, be it days later. ``user`` and ``item`` are ids, ``time`` timestamps or seconds since the log's
        start, ``position`` 1 to 8, ``surface`` a name from :data:`SURFACES`; all may be arrays, which are broadcast.
        The user's state is what the log left it in: what was before ``time`` counts, and the mission of the last page
        opened by then."""
        if not np.issubdtype(np.asarray(time).dtype, np.number):
            time = (np.asarray(time).astype("datetime64[s]") - START).astype(np.int64)
        email = np.asarray(surface) == SURFACES[2]
        user, item, time, position, email = np.broadcast_arrays(user, item, time, position, email)
        pages, user, sub = self.pages, user.astype(np.int64), self.sub[item]
        # the user's last page by the moment, and before it; its key is the user, then the second
        key = user << 32 | time
        now, before = (np.searchsorted(pages["key"], key, side) - 1 for side in ("right", "left"))
        opened, known = ((page >= 0) & (pages["key"][page] >> 32 == user) for page in (now, before))
        mission = np.where(opened, pages["mission"][now], -1)
        gap = np.where(known, time - (pages["key"][before] & 0xFFFFFFFF), 0)
        excitement = np.where(known, faded(pages["excitement"][before, sub], gap, 1), 0)
        satiation = np.where(known, faded(pages["satiation"][before, sub], gap, 15), 0)
        view = (user * self.config.n_items + item) << 32
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


def generator(config: ShopConfig, key: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(config.seed, spawn_key=(key,))))


def faded(values: np.ndarray, seconds: np.ndarray, half_life: float | np.ndarray) -> np.ndarray:
    """Values after some seconds, with a half-life in days."""
    return (values * 0.5 ** np.minimum(seconds / (half_life * DAY), 100)).astype(np.float32)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def _standardise(values: np.ndarray) -> np.ndarray:
    return (values - values.mean(0)) / values.std(0)


class Run:
    """The shop while it is open: users come with a mission; an old ranker, which counts clicks every night, fills their
    pages; what they click, buy and have seen changes what they want next."""

    def __init__(self, world: World) -> None:
        config, rng = world.config, generator(world.config, _LOG)
        self.world, self.rng, self.pages = world, rng, []
        self.state = np.zeros((3, config.n_users, len(SUBS)), np.float32)
        self.excitement, self.satiation, self.affinity = self.state
        self.seen = np.zeros((config.n_users, config.n_items), np.uint16)
        self.last, self.mission = np.zeros(config.n_users, np.int64), np.full(config.n_users, -1)
        wish = np.exp(world.taste)  # divided by its mean: no sub-category is everybody's mission
        self.wishes = np.cumsum(wish / np.average(wish, 0, world.activity), 1)
        self.clicks, self.views = np.full(config.n_items, 1.5), np.full(config.n_items, 20.0)
        total = config.n_impressions // PAGE
        pages = np.minimum(rng.geometric(0.5, total), 5)
        pages = pages[: np.searchsorted(np.cumsum(pages), total) + 1]
        pages[-1] -= pages.sum() - total
        hours = np.arange(config.days * 24)  # quiet nights, busy weekends
        clock, weekend = hours % 24, hours // 24 % 7 >= 5
        traffic = 0.15 + np.exp(-(((clock - 13) / 4.0) ** 2)) + 1.4 * np.exp(-(((clock - 20.5) / 2.5) ** 2))
        passed = np.append(0.0, np.cumsum(np.where(weekend, 1.3, 1.0) * traffic))
        moment = np.interp(rng.random(len(pages)) * passed[-1], passed, np.arange(len(passed)) * 3600.0)
        moment = np.sort(np.minimum(np.floor(moment), config.days * DAY - 1).astype(np.int64))
        user = rng.choice(config.n_users, len(pages), p=world.activity / world.activity.sum())
        surface = rng.choice(3, len(pages), p=(0.65, 0.25, 0.10))
        # a user's sessions of one day come one after the other; those of different users run side by side
        turn = pd.Series(user).groupby([user, moment // DAY]).cumcount().to_numpy()
        for today in range(config.days):
            first, here = len(self.pages), np.flatnonzero(moment // DAY == today)
            for k in range(turn[here].max(initial=-1) + 1):
                session = here[turn[here] == k]
                start = np.maximum(moment[session], self.last[user[session]] + 1800)
                self._session(session, user[session], start, today, surface[session], pages[session])
            keep = 0.5 ** (1 / 7)  # at night the day is counted; older days fade with a half-life of a week
            self.clicks = keep * self.clicks + (1 - keep) * 1.5
            self.views = keep * self.views + (1 - keep) * 20
            for page in self.pages[first:]:
                np.add.at(self.clicks, page["item"], page["click"])
                np.add.at(self.views, page["item"], 1)

    def _session(self, session, user, start, day, surface, pages) -> None:
        rng = self.rng
        keeps = (start - self.last[user] < 4 * DAY) & (rng.random(len(user)) < 0.65)
        keeps &= self.mission[user] >= 0
        self._wait(user, start)
        self.mission[user] = np.where(keeps, self.mission[user], self._new_mission(user))
        pool, score = self.rank(user, day, surface)
        for page in range(pages.max()):
            more = pages > page
            item, value = (x[more, PAGE * page : PAGE * (page + 1)] for x in (pool, score))
            # a stranger takes one of the places 3 to 8 of three pages in four: else new ones would never be seen
            stranger, place = rng.integers(0, len(self.views), len(item)), rng.integers(2, PAGE, len(item))
            free = (rng.random(len(item)) < 0.75) & (self.world.first_day[stranger] <= day)
            free &= ~(pool[more] == stranger[:, None]).any(1)
            item = np.where(free[:, None] & (np.arange(PAGE) == place[:, None]), stranger[:, None], item)
            self._show(session[more], user[more], start[more] + 60 * page, surface[more], item, value)

    def _wait(self, user: np.ndarray, moment: np.ndarray) -> None:
        gap, half_lives = (moment - self.last[user])[:, None], np.array([1, 15, 20])[:, None, None]
        self.state[:, user] = faded(self.state[:, user], gap, half_lives)
        self.last[user] = moment

    def _new_mission(self, user: np.ndarray) -> np.ndarray:
        wishes = self.wishes[user]
        return (wishes < self.rng.random((len(user), 1)) * wishes[:, -1:]).sum(1)

    def rank(self, user, day, surface) -> tuple[np.ndarray, np.ndarray]:
        """The old ranker: 40 products a user (n, 40), best first, by last night's click rates and the user's clicks."""
        world, affinity = self.world, self.affinity[user].astype(float)
        rate = np.log(self.clicks / self.views)
        rate[world.first_day > day] = -np.inf
        kin = affinity.reshape(len(user), -1, 4).sum(2)[:, PARENT]
        interest = np.log(0.25 + affinity + 0.25 * kin)[:, world.sub]
        rough = 0.7 * rate + 1.0 * interest + 0.6 * self.rng.gumbel(size=interest.shape)
        away = PARENT[world.sub] != PARENT[self.mission[user]][:, None]
        rough[(surface == 1)[:, None] & away] -= 1e6
        pool = np.argpartition(-rough, 40, axis=1)[:, :40]
        recent = np.minimum(self.excitement[user[:, None], world.sub[pool]], 2)
        score = rate[pool] + 0.6 * np.take_along_axis(interest, pool, 1) + 0.3 * recent
        score = score + 0.3 * self.rng.gumbel(size=pool.shape)
        order = np.argsort(-score, axis=1, kind="stable")
        return np.take_along_axis(pool, order, 1), np.take_along_axis(score, order, 1)

    def _show(self, session, user, moment, surface, item, score) -> None:
        """Draw clicks and purchases on a page each; both change what is wanted next."""
        world, rng, who, sub = self.world, self.rng, user[:, None], self.world.sub[item]
        self._wait(user, moment)
        day, mission = np.minimum(moment // DAY, world.config.days - 1), self.mission[user]
        state = self.excitement[who, sub], self.satiation[who, sub], self.seen[who, item]
        email = (surface == 2)[:, None]
        click, purchase = world.utilities(who, item, day[:, None], email, mission[:, None], *state)
        p_click, p_purchase = np.arange(1, PAGE + 1) ** -0.45 * sigmoid(click), sigmoid(purchase)
        clicked = rng.random(item.shape) < p_click
        bought = clicked & (rng.random(item.shape) < p_purchase)
        np.add.at(self.seen, (who, item), 1)
        kind, row, place = np.nonzero(np.stack([clicked, bought, clicked]))
        np.add.at(self.state, (kind, user[row], sub[row, place]), 1)
        row, place = np.nonzero(clicked & (rng.random(item.shape) < 0.25))
        self.mission[user[row]] = sub[row, place]
        row, place = np.nonzero(bought)
        onward, goes_with = rng.random(len(row)) < 0.4, world.complement[sub[row, place]]
        self.mission[user[row]] = np.where(onward, goes_with, self._new_mission(user[row]))
        page = {"session": session, "user": user, "moment": moment, "surface": surface, "mission": mission}
        page |= {"excitement": self.excitement[user], "satiation": self.satiation[user], "item": item}
        page |= {"score": score, "p_click": p_click, "p_purchase_given_click": p_purchase}
        self.pages.append(page | {"click": clicked, "purchase": bought})

    def records(self) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """The log, and what :meth:`World.probabilities` looks up: pages by user and moment, and who saw what when."""
        pages = {name: np.concatenate([page.pop(name) for page in self.pages]) for name in [*self.pages[0]]}
        key = pages["user"].astype(np.int64) << 32 | pages["moment"]
        order = np.argsort(key)
        state = {name: pages.pop(name)[order] for name in ("mission", "excitement", "satiation")}
        order, state["key"] = np.lexsort((pages["session"], pages["moment"])), key[order]
        pages = {name: values[order] for name, values in pages.items()}
        log = {name: np.repeat(x, PAGE) if x.ndim == 1 else x.ravel() for name, x in pages.items()}
        view = (log["user"].astype(np.int64) * self.world.config.n_items + log["item"]) << 32
        state["views"] = np.sort(view | log["moment"])
        return log | {"position": np.tile(np.arange(1, PAGE + 1), len(order))}, state


def make_world(config: ShopConfig | None = None) -> World:
    """Draw the hidden world of a config and let its shop run: always the same one."""
    config = config or ShopConfig()
    pilot = replace(config, n_users=min(config.n_users, 400), n_impressions=min(config.n_impressions, 40_000))
    world, small = World(config), World(pilot)
    for _ in range(2):  # two short runs find the intercepts that give the wanted rates
        log, _ = Run(small).records()
        small.click_intercept += np.log(config.click_rate / max(log["click"].mean(), 1e-3))
        conversion = log["p_purchase_given_click"][log["click"]].mean()
        small.purchase_intercept += np.log(config.conversion / conversion)
    world.click_intercept = round(float(small.click_intercept), 3)
    world.purchase_intercept = round(float(small.purchase_intercept), 3)
    world.log, world.pages = Run(world).records()
    return world
