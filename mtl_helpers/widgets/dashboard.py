"""The shop owner's dashboard: task weights, fusion and diversity over live product lists and what they earn.

Taught in notebook 05. A setting acts at three places: task weights choose one of the trained models, fusion exponents
make one score of its predictions, and diversity re-ranks by category (:func:`mtl_helpers.ranking.mmr`).
"""

from __future__ import annotations

import base64
import html
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from numpy.typing import ArrayLike

from mtl_helpers import ranking
from mtl_helpers.metrics import pareto_mask
from mtl_helpers.widgets.explorer import Explorer, dropdown, encode_png, slider
from mtl_helpers.widgets.figures import GREY, HERE, INK, figure, legend_outside, minus, task_style, within
from mtl_helpers.widgets.weights import TrainedWeights

__all__ = ["Shopfront", "shop_dashboard"]

SMALLEST = 1e-12  # predictions and prices of 0 have no logarithm; they count as this much
RAISED = str.maketrans("0123456789.", "⁰¹²³⁴⁵⁶⁷⁸⁹·")
HEIGHT = 2.0
CURRENCY = "EUR"
TASKS = {"buy": "purchase", "category": "next_category", "next": "next_item"}  # what predicts a signal
BETTER, WORSE = "#117733", "#882255"
DIVERSITIES = (0.0, 0.2, 0.5)
VARIED_EXPONENTS = (0.0, 0.5, 1.0, 1.5)
LABELS = {
    "revenue": f"{CURRENCY} per 1,000 shown",
    "ndcg": "NDCG@{k}",
    "coverage": "catalogue shown",
    "categories": "categories per list",
    "gini": "Gini of exposure",
    "novelty": "novelty (bits)",
}


@dataclass(eq=False)
class Shopfront:
    """What a shop could show to U users out of I items, under each of K trained task weightings.

    items : (I rows) with columns ``title``, ``category``, ``brand`` and ``price``; item i of all arrays is its row i.
    users : (U,) names for the picker, all different.
    weightings : (K rows), a column of weights for each task, as ``Sweep.weightings`` has them.
    predictions : ``{signal: (K, U, I)}``, probabilities or other values of 0 or more; price is a further signal.
    true_purchase : (U, I) true purchase probability of an impression at the first place.
    relevance : (U, I), 0 or more, for NDCG: say, what was bought later.
    counts : (I,) past interactions, for novelty.
    pictures : (I, side, side, 3) uint8, for the cards.
    position_factors : (k,) what each place leaves of the purchase probability. k : length of a list.

    Raises ValueError for parts that do not fit each other or cannot be measured.
    """

    items: pd.DataFrame
    users: Sequence[str]
    weightings: pd.DataFrame
    predictions: Mapping[str, ArrayLike]
    true_purchase: ArrayLike
    relevance: ArrayLike
    counts: ArrayLike
    pictures: np.ndarray
    position_factors: ArrayLike
    k: int

    def __post_init__(self) -> None:
        if len(set(self.users)) < len(self.users):
            raise ValueError("users need different names: the picker shows them.")
        shape = len(self.weightings), len(self.users), len(self.items)
        for name, values in self.predictions.items():
            if values.shape != shape or not (values.min() >= 0 and values.max() < math.inf):
                wanted = f"(weightings, users, items) = {shape} numbers, finite and 0 or more"
                raise ValueError(f"predictions of {name!r} are {wanted}; got {values.shape}.")
        self.encoded = [base64.b64encode(encode_png(each)).decode("ascii") for each in self.pictures]

    def rank(self, weighting: int, exponents: Mapping[str, float], diversity: float = 0.0) -> np.ndarray:
        """Every user's list under a setting, (U, k) positions of items, best first, by s = Π pᵢ^aᵢ · price^c."""
        total = np.zeros((len(self.users), len(self.items)))
        for name, a in exponents.items():
            if a:
                raised = self.items[name].to_numpy() if name == "price" else self.predictions[name][weighting]
                total += a * np.log(np.maximum(raised, SMALLEST, dtype=float))
        if not diversity:
            return ranking.top_k(total, self.k)
        shares = np.exp(total - total.max(1, keepdims=True))  # of the user's best
        return ranking.mmr(shares, self.items["category"], self.k, diversity)

    def measure(self, lists: np.ndarray) -> dict[str, float]:
        """The figures of lists (U, k), as :mod:`mtl_helpers.ranking` defines them, means over users.

        ``revenue`` (expected, per 1,000 impressions), ``ndcg``, ``coverage`` (of the catalogue), ``categories`` (shown
        to a user, as a share of all), ``gini`` (of exposure, places by their factor) and ``novelty`` (bits).
        """
        n, factors, price = len(self.items), self.position_factors, self.items["price"]
        return {
            "revenue": float(ranking.expected_revenue(lists, self.true_purchase, price, factors).mean()),
            "ndcg": ranking.user_mean(ranking.ndcg_at_k(self.relevance, lists)),
            "coverage": ranking.catalogue_coverage(lists, n),
            "categories": float(ranking.category_coverage(lists, self.items["category"]).mean()),
            "gini": ranking.gini(ranking.exposure(lists, n, factors)),
            "novelty": float(ranking.novelty(lists, self.counts).mean()),
        }


def shop_dashboard(
    front: Shopfront, *, exponents: Mapping[str, float], weights: Mapping[str, float]
) -> Explorer:
    """Steer a shop's lists: product cards, their figures against today's setting, revenue against coverage.

    Ready-made settings are every weighting with today's exponents, and today's weighting with other exponents, each at
    three diversities; buttons lead to today's, to the one that earns most, which is the first state, to the one that
    shows most of the catalogue, and to any of them. Task-weight sliders stand on trained weightings. Cards show a
    product's picture, title, brand, price and predictions; bars are shares of the largest prediction that this user
    has for any product.

    exponents : today's, of predictions and ``price``; these get sliders from 0 to 2, in quarters.
    weights : today's task weights; the trained weighting nearest to them counts.

    Controls are named as the tasks, ``<signal>_exponent``, ``diversity`` and ``user``.
    """
    trained = TrainedWeights(front.weightings)
    start = trained.nearest(weights)
    shown = front.rank(start, exponents)
    today, settings = front.measure(shown), _ready_made(front, exponents, start)
    dearest, widest = (settings.loc[settings[name].idxmax()] for name in ("revenue", "coverage"))
    knobs = [
        slider(f"{name}_exponent", name, 0.0, 2.0, dearest["exponents"][name], step=0.25, fmt=".2f")
        for name in exponents
    ]
    knobs.append(slider("diversity", "diversity", 0.0, 1.0, dearest["diversity"], step=0.05))
    groups = {
        "Task weights": trained.sliders(trained.names, dearest["weighting"]),
        "Exponents": [*knobs, dropdown("user", "user", front.users)],
    }
    fig = figure(HEIGHT)
    left, right = fig.subplots(1, 2, width_ratios=(1.2, 1))
    move_bars = _draw_changes(left, today, settings, front.k)
    here = _draw_front(right, settings, today)

    def update(state: Mapping[str, Any]) -> tuple[str, str, str]:
        user, at = front.users.index(state["user"]), trained.row(state)
        powers = {name: state[f"{name}_exponent"] for name in exponents}
        lists = front.rank(at, powers, state["diversity"])
        now = front.measure(lists)
        move_bars(now)
        here.set_data([now["coverage"] * 100], [now["revenue"]])
        better = (settings["revenue"] > now["revenue"]) & (settings["coverage"] > now["coverage"])
        cards, text, new = _cards(front, user, lists[user].tolist(), shown[user].tolist(), at)
        said = (
            f"{state['user']}: {_recipe(front, powers, state['diversity'], at)}. All {len(front.users):,} users: "
            f"{now['revenue']:,.1f} {CURRENCY} per 1,000 shown "
            f"({_signed(_change(now['revenue'], today['revenue']))}), NDCG@{front.k} {now['ndcg']:.4f} (today "
            f"{today['ndcg']:.4f}), {now['coverage']:.1%} of the catalogue (today {today['coverage']:.1%}); "
            f"{int(better.sum())} of {len(better)} ready-made settings earn and show more. {new} of {front.k} products "
            "are new on this page."
        )
        return said, f"The list: {text}", cards

    def go(setting: pd.Series) -> None:
        state = {f"{name}_exponent": a for name, a in setting["exponents"].items()}
        state |= zip(trained.names, trained.shares[setting["weighting"]], strict=True)
        board.go(**state, diversity=setting["diversity"])

    now = settings[(settings["weighting"] == start) & (settings["diversity"] == 0)].iloc[0]
    presets = {"Today": now, "Most money": dearest, "Widest": widest}
    buttons = [(label, lambda setting=setting: go(setting)) for label, setting in presets.items()]
    buttons.append(("Surprise me", lambda: go(settings.iloc[random.randrange(len(settings))])))
    board = Explorer(
        fig, groups, update,
        title="The shop owner's dashboard", link=trained.link, buttons=buttons, beside=True,
    )  # fmt: skip
    return board


def _recipe(front: Shopfront, powers: Mapping[str, float], diversity: float, at: int) -> str:
    """Score, diversity and loss of a setting, in words."""
    raised = [name + f"{a:g}".translate(RAISED) * (a != 1) for name, a in powers.items() if a]
    score = " × ".join(raised) or "1 (every product scores the same: lists follow the catalogue's order)"
    model = " + ".join(f"{weight:.2f} {name}" for name, weight in front.weightings.iloc[at].items())
    return f"score = {score}, diversity {diversity:.2f}, loss = {model}"


def _ready_made(front: Shopfront, exponents: Mapping[str, float], today: int) -> pd.DataFrame:
    """A row for each setting: ``weighting``, ``exponents``, ``diversity`` and the figures."""
    varied = [{**exponents, name: a} for name in exponents for a in VARIED_EXPONENTS]
    others = [powers for powers in varied if any(powers.values()) and powers != exponents]
    every = [*product(range(len(front.weightings)), [exponents], DIVERSITIES)]
    every += product([today], others, DIVERSITIES)
    made = pd.DataFrame(every, columns=["weighting", "exponents", "diversity"])
    return made.join(pd.DataFrame([front.measure(front.rank(*setting)) for setting in every]))


def _cards(front: Shopfront, user: int, items: list[int], before: list[int], at: int) -> tuple[str, str, int]:
    """A user's list as HTML cards, in two rows, and in words; how many were not in the list before."""
    cards, said = "", []
    for place, (item, row) in enumerate(zip(items, front.items.iloc[items].to_dict("records"), strict=True)):
        moved, color = "new", BETTER
        if item in before:
            up = before.index(item) - place
            moved, color = f"{'▲' if up > 0 else '▼'}{abs(up)}" * (up != 0), BETTER if up > 0 else WORSE
        bars, numbers = "", []
        for name, values in front.predictions.items():
            value, most = float(values[at, user, item]), float(values[at, user].max())
            fill, share = task_style(TASKS.get(name, name))["color"], 100 * value / most if most else 0
            bar = f'<span><span style="{BAR};width:{share:.0f}%;background:{fill}"></span></span>'
            bars += f'<div style="{ROW}"><span>{html.escape(name)}</span>{bar}{_digits(value)}</div>'
            numbers.append(f"{name} {_digits(value)}")
        title, cost = row["title"], f"{row['price']:,.2f} {CURRENCY}"
        picture = f'<img src="data:image/png;base64,{front.encoded[item]}" alt="" style="{PICTURE}">'
        cards += (
            f'<div style="{CARD}"><div style="{LINE}"><b>{place + 1}</b><b style="color:{color}">{moved}</b></div>'
            f'<div style="{SHOWN}">{picture}<div style="{TITLE}">{html.escape(title)}</div></div>'
            f'<div style="{LINE}"><span>{html.escape(row["brand"])}</span><b>{cost}</b></div>{bars}</div>'
        )
        said.append(f"{place + 1} {title}, {row['brand']}, {cost} ({', '.join(numbers)})")
    wide = 100 // max(4, (len(items) + 1) // 2) - 2
    columns = f"grid-template-columns:repeat(auto-fill,minmax(clamp(100px,{wide}%,138px),1fr))"
    return f'<div style="{GRID};{columns}">{cards}</div>', "; ".join(said), len(set(items) - set(before))


GRID = "display:grid;gap:5px;margin-bottom:4px;width:0;min-width:100%"  # cards do not widen the page
CARD = (
    "border:1px solid #ccc;border-radius:6px;padding:2px 6px;font-size:11px;line-height:1.3;overflow:hidden"
)
PICTURE = "width:64px;height:64px;border-radius:4px;image-rendering:pixelated"
SHOWN = "display:flex;gap:5px"
TITLE = "height:64px;line-height:1.4;overflow:hidden"
LINE = "display:flex;justify-content:space-between;white-space:nowrap;overflow:hidden"
ROW = "display:grid;grid-template-columns:4.6em 1fr auto;gap:4px;align-items:center;white-space:nowrap"
BAR = "display:block;height:7px"


def _draw_changes(ax: Axes, today: Mapping[str, float], settings: pd.DataFrame, k: int) -> Callable:
    """A bar for each figure, its change against today as a share; returns what moves them."""
    names = list(today)
    changes = (settings[names] / pd.Series(today) - 1).abs().max()  # up to 1, so that no fall is cut
    limit = 110 * float(np.clip(changes.max(), 0.05, 1.0))
    ax.axvline(0, color="black", lw=1)
    ax.set(xlim=(-limit, 2.1 * limit), ylim=(len(names) - 0.4, -0.6), xlabel="change against today, %")
    ax.set_xticks([tick for tick in ax.get_xticks() if abs(tick) <= limit])
    ax.set_yticks(range(len(names)), [LABELS[name].format(k=k) for name in names])
    ax.grid(visible=False, axis="y")
    ax.set_title("All users, against today's setting")
    bars = ax.barh(range(len(names)), np.zeros(len(names)), height=0.6, animated=True)
    look = {"va": "center", "fontsize": 9, "animated": True}
    texts = [ax.text(1.1 * limit, row, "", **look) for row in range(len(names))]

    def move(now: Mapping[str, float]) -> None:
        for name, bar, text in zip(names, bars, texts, strict=True):
            change = _change(now[name], today[name])
            color = INK if name in ("gini", "novelty") else BETTER if change > 0 else WORSE
            bar.set(width=np.clip(100 * np.nan_to_num(change), -limit, limit), color=color)
            text.set_color(color if change else INK)
            value = f"{now[name]:,.1f}" if name == "revenue" else f"{now[name]:.3f}"
            text.set_text(f"{value}  ({_signed(change)})")

    return move


def _draw_front(ax: Axes, settings: pd.DataFrame, today: Mapping[str, float]) -> Line2D:
    """Revenue against coverage: all settings, their Pareto front, today's, and the one that moves."""
    points = settings[["coverage", "revenue"]].to_numpy(float) * (100, 1)
    front = points[pareto_mask(points, maximise=True)]
    front = front[np.argsort(front[:, 0])]
    ax.plot(*points.T, "o", color="#bbbbbb", ms=3.5, lw=0, label="ready-made settings")
    ax.plot(*front.T, "-", color=INK, lw=1.4, marker=".", label="their Pareto front")
    style = {"ms": 8, "mec": "white", "lw": 0}
    ax.plot(today["coverage"] * 100, today["revenue"], "s", color=GREY, label="today", **style)
    ax.margins(0.12)
    ax.autoscale_view()
    within(ax, 0, axis="x")
    ax.set(xlabel="catalogue shown, %", ylabel=CURRENCY)
    ax.set_title("What each setting earns and shows")
    ax.set_autoscale_on(False)
    style = {"color": HERE, "ms": 10, "mec": "black", "lw": 0, "clip_on": False}
    here = ax.plot([], [], "D", label="you are here", animated=True, **style)[0]
    legend_outside(ax.figure)
    return here


def _digits(value: float) -> str:
    return f"{value:.3f}" if value >= 0.01 else f"{value:.1e}" if 0 < value < 1e-4 else f"{value:.4f}"


def _change(now: float, then: float) -> float:
    return now / then - 1 if then else math.nan


def _signed(share: float) -> str:
    return minus(f"{round(share, 4) + 0.0:+.1%}") if math.isfinite(share) else "undefined"
