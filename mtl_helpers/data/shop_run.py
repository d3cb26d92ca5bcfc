"""The shop runs: sessions, pages, clicks and purchases, and an old ranker that counts them every night.

Users come with a mission; the old ranker fills their pages; what they click, buy and have seen changes what they want
next.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd

from mtl_helpers.data.shop_world import DAY, LOG, PAGE, PARENT, ShopConfig, World, faded, generator, sigmoid

__all__ = ["make_world"]

_POOL = 40  # products the old ranker considers in a session


def make_world(config: ShopConfig | None = None) -> World:
    """Draw the hidden world of a config and let its shop run: always the same one."""
    config = config or ShopConfig()
    world, most = World(config), {"n_users": 400, "n_impressions": 40_000}
    pilot = World(replace(config, **{name: min(getattr(config, name), n) for name, n in most.items()}))
    for _ in range(2):  # two short runs find the intercepts that give the wanted rates
        log, _ = Run(pilot).records()
        pilot.click_intercept += np.log(config.click_rate / max(log["click"].mean(), 1e-3))
        conversion = log["p_purchase_given_click"][log["click"]].mean()
        pilot.purchase_intercept += np.log(config.conversion / conversion)
    world.click_intercept = round(float(pilot.click_intercept), 3)
    world.purchase_intercept = round(float(pilot.purchase_intercept), 3)
    world.log, world.pages = Run(world).records()
    return world


class Run:
    """The shop while it runs: what each user wants and has seen, what the old ranker has counted, page after page."""

    def __init__(self, world: World) -> None:
        n_users, n_items = world.config.n_users, world.config.n_items
        self.world, self.rng = world, generator(world.config, LOG)
        self.excitement, self.satiation, self.affinity = np.zeros((3, *world.taste.shape), np.float32)
        self.seen = np.zeros((n_users, n_items), np.uint16)
        self.last, self.mission = np.zeros(n_users, np.int64), np.full(n_users, -1)
        wish = np.exp(world.taste)  # divided by its mean: no sub-category is everybody's mission
        self.wishes = np.cumsum(wish / np.average(wish, 0, world.activity), 1)
        self.clicks, self.views = np.full(n_items, 1.5), np.full(n_items, 20.0)
        self.pages: list[dict[str, np.ndarray]] = []
        self._run()

    def _run(self) -> None:
        config, rng = self.world.config, self.rng
        total = config.n_impressions // PAGE
        pages = np.minimum(rng.geometric(0.5, total), 5)
        pages = pages[: np.searchsorted(np.cumsum(pages), total) + 1]
        pages[-1] -= pages.sum() - total
        moment = np.sort(_moments(config, rng.random(len(pages))))
        user = rng.choice(config.n_users, len(pages), p=self.world.activity / self.world.activity.sum())
        surface = rng.choice(3, len(pages), p=(0.65, 0.25, 0.10))
        # a user's sessions of one day come one after the other; those of different users run side by side
        turn = pd.Series(user).groupby([user, moment // DAY]).cumcount().to_numpy()
        for today in range(config.days):
            first, here = len(self.pages), np.flatnonzero(moment // DAY == today)
            for k in range(turn[here].max(initial=-1) + 1):
                session = here[turn[here] == k]
                start = np.maximum(moment[session], self.last[user[session]] + 1800)
                self._session(session, user[session], start, today, surface[session], pages[session])
            self._night(self.pages[first:])

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
        gap = (moment - self.last[user])[:, None]
        for values, half_life in ((self.excitement, 1), (self.satiation, 15), (self.affinity, 20)):
            values[user] = faded(values[user], gap, half_life)
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
        pool = np.argpartition(-rough, _POOL, axis=1)[:, :_POOL]
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
        happenings = (clicked, self.excitement), (clicked, self.affinity), (bought, self.satiation)
        for happened, state in happenings:
            row, place = np.nonzero(happened)
            np.add.at(state, (user[row], sub[row, place]), 1)
        row, place = np.nonzero(clicked & (rng.random(item.shape) < 0.25))
        self.mission[user[row]] = sub[row, place]
        row, place = np.nonzero(bought)
        onward, goes_with = rng.random(len(row)) < 0.4, world.complement[sub[row, place]]
        self.mission[user[row]] = np.where(onward, goes_with, self._new_mission(user[row]))
        page = {"session": session, "user": user, "moment": moment, "surface": surface, "mission": mission}
        page |= {"excitement": self.excitement[user], "satiation": self.satiation[user], "item": item}
        page |= {"score": score, "p_click": p_click, "p_purchase_given_click": p_purchase}
        self.pages.append(page | {"click": clicked, "purchase": bought})

    def _night(self, pages: list[dict[str, np.ndarray]]) -> None:
        """Count the day; older days fade with a half-life of a week."""
        keep = 0.5 ** (1 / 7)
        self.clicks, self.views = keep * self.clicks + (1 - keep) * 1.5, keep * self.views + (1 - keep) * 20
        for page in pages:
            np.add.at(self.clicks, page["item"], page["click"])
            np.add.at(self.views, page["item"], 1)

    def records(self) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """The clean log with its truth, one row an impression, sorted by time; and what :meth:`World.probabilities`
        looks up: the state every page left its user in, by user and moment, and who saw what when. Once only."""
        pages = {name: np.concatenate([page.pop(name) for page in self.pages]) for name in [*self.pages[0]]}
        key = pages["user"].astype(np.int64) << 32 | pages["moment"]
        order = np.argsort(key)
        state = {name: pages.pop(name)[order] for name in ("mission", "excitement", "satiation")}
        state["key"], order = key[order], np.lexsort((pages["session"], pages["moment"]))
        log = {
            name: np.repeat(values[order], PAGE) if values.ndim == 1 else values[order].ravel()
            for name, values in pages.items()
        }
        log["position"] = np.tile(np.arange(1, PAGE + 1), len(order))
        view = (log["user"].astype(np.int64) * len(self.views) + log["item"]) << 32
        return log, state | {"views": np.sort(view | log["moment"])}


def _moments(config: ShopConfig, share: np.ndarray) -> np.ndarray:
    """Seconds since the start at which the given shares of the traffic have passed (quiet nights, busy weekends)."""
    hours = np.arange(config.days * 24)
    clock, weekend = hours % 24, hours // 24 % 7 >= 5
    traffic = 0.15 + np.exp(-(((clock - 13) / 4.0) ** 2)) + 1.4 * np.exp(-(((clock - 20.5) / 2.5) ** 2))
    passed = np.concatenate([[0.0], np.cumsum(np.where(weekend, 1.3, 1.0) * traffic)])
    seconds = np.interp(share * passed[-1], passed, np.arange(len(passed)) * 3600.0)
    return np.minimum(np.floor(seconds), config.days * DAY - 1).astype(np.int64)
