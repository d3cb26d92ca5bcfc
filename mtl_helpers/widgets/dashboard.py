"""The shop owner's dashboard: task weights, fusion and diversity over live product lists and what they earn.

Taught in notebook 05. A :class:`Shopfront` holds the predictions of models that were trained with different task
weights, and turns a setting into lists and their figures; :func:`shop_dashboard` puts sliders on it.

A setting has three parts, and each acts at another place:

1. task weights choose one of the trained models;
2. fusion exponents make one score of its predictions, s = Π pᵢ^aᵢ · price^c;
3. diversity re-ranks by category (:func:`mtl_helpers.ranking.mmr`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.transforms import Transform
from numpy.typing import ArrayLike

from mtl_helpers.losses import check_weights
from mtl_helpers.ranking import (
    catalogue_coverage,
    category_coverage,
    expected_revenue,
    exposure,
    gini,
    mmr,
    ndcg_at_k,
    novelty,
    top_k,
    user_mean,
)
from mtl_helpers.sweep import pareto_mask
from mtl_helpers.widgets import figures as plots
from mtl_helpers.widgets.explorer import Explorer, dropdown, slider
from mtl_helpers.widgets.weights import Simplex

__all__ = ["Shopfront", "shop_dashboard"]

SMALLEST = 1e-12  # predictions and prices of 0 have no logarithm; they count as this much
PER_ROW, MOST_CARDS = 5, 10
SIZE = (9.6, 5.6)
GREY, INK = "#777777", "#222222"
BAR_COLORS = ("#0072B2", "#D55E00", "#009E73")
CATEGORY_COLORS = ("#56B4E9", "#E69F00", "#009E73", "#CC79A7", "#0072B2", "#D55E00", "#F0E442", "#7A5195")
DIVERSITIES = (0.0, 0.2, 0.5)
VARIED_EXPONENTS = (0.0, 0.5, 1.0, 1.5)


@dataclass(eq=False)
class Shopfront:
    """What a shop could show to U users out of I items, under each of K trained task weightings.

    Parameters
    ----------
    items : (I rows) with columns ``category``, ``brand`` and ``price``, 0 or more. Its rows are the items 0 … I − 1 of
        all other arrays.
    users : (U,) names for the picker, all different.
    weightings : (K rows), a column of weights for each task, as ``Sweep.weightings`` has them.
    predictions : ``{signal: (K, U, I)}``, one to three; probabilities, or other values of 0 or more. Row k belongs to
        weighting k.
    true_purchase : (U, I) true purchase probability of an impression at the first place.
    relevance : (U, I), 0 or more, for NDCG: say, what was bought later. ``true_purchase`` unless given.
    counts : (I,) past interactions, for novelty; without them there is no such figure.
    position_factors : (k,) what each place leaves of the purchase probability; 1 unless told.
    k : length of a list, 1 to 10.

    Raises ValueError or KeyError, in words, for shapes that do not fit, NaN, negative prices or predictions, missing
    categories, and a catalogue smaller than k.

    Example
    -------
    >>> front = Shopfront(
    ...     items=pd.DataFrame({"category": ["books", "toys", "toys"], "brand": list("abc"), "price": [9.0, 5, 7]}),
    ...     users=["Ann", "Bo"],
    ...     weightings=pd.DataFrame({"buy": [0.2, 0.8], "next": [0.8, 0.2]}),
    ...     predictions={"p_buy": np.full((2, 2, 3), 0.1), "p_next": np.full((2, 2, 3), 1 / 3)},
    ...     true_purchase=np.full((2, 3), 0.1),
    ...     k=2,
    ... )
    >>> lists = front.rank(weighting=0, exponents={"p_buy": 1, "price": 1}, diversity=0.5)
    >>> lists.tolist()
    [[0, 2], [0, 2]]
    >>> round(front.measure(lists)["revenue"])
    800
    """

    items: pd.DataFrame
    users: Sequence[str]
    weightings: pd.DataFrame
    predictions: Mapping[str, ArrayLike]
    true_purchase: ArrayLike
    relevance: ArrayLike | None = None
    counts: ArrayLike | None = None
    position_factors: ArrayLike | None = None
    k: int = 10
    _cache: dict[str, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        missing = [name for name in ("category", "brand", "price") if name not in self.items]
        if missing:
            raise KeyError(f"items lack the columns {missing}; they have {list(self.items)}.")
        self.items = self.items.reset_index(drop=True)
        self.users = [str(user) for user in self.users]
        if len(set(self.users)) < len(self.users) or not self.users:
            raise ValueError("users need different names, at least one: the picker shows them.")
        if not 1 <= self.k <= MOST_CARDS:
            raise ValueError(f"k is {self.k}: a page shows 1 to {MOST_CARDS} products.")
        names = list(self.weightings)
        for number, row in enumerate(self.weightings.to_dict("records")):
            try:
                check_weights(row, names)
            except ValueError as error:
                raise ValueError(f"Weighting {number}: {error}") from None
        self.weightings = self.weightings.reset_index(drop=True).astype(float)
        shape = (len(self.weightings), len(self.users), len(self.items))
        if not 1 <= len(self.predictions) <= 3 or "price" in self.predictions:
            raise ValueError(
                f"predictions need one to three signals beside price; got {[*self.predictions]}."
            )
        self.predictions = {name: np.asarray(values) for name, values in self.predictions.items()}
        for name, values in self.predictions.items():
            if values.shape != shape:
                raise ValueError(
                    f"predictions of {name!r} have shape {values.shape}, expected (weightings, users, items) = {shape}."
                )
            if not (np.isfinite(values).all() and values.min() >= 0):
                raise ValueError(f"predictions of {name!r} hold NaN, infinite or negative values.")
        self.true_purchase = np.asarray(self.true_purchase, float)
        self.relevance = self.true_purchase if self.relevance is None else np.asarray(self.relevance, float)
        for name, values in {"true_purchase": self.true_purchase, "relevance": self.relevance}.items():
            if values.shape != shape[1:]:
                raise ValueError(f"{name} has shape {values.shape}, expected (users, items) = {shape[1:]}.")
        self._price = self.items["price"].to_numpy(float)
        self._category = self.items["category"].to_numpy()
        # one trial, so that whatever cannot be measured is said now and not under a slider
        self.measure(self.rank(0, dict.fromkeys(self.predictions, 1.0)))

    @property
    def signals(self) -> tuple[str, ...]:
        """What may have an exponent: the predictions, and price."""
        return (*self.predictions, "price")

    def nearest(self, weights: Mapping[str, float]) -> tuple[int, bool]:
        """The trained weighting nearest to these weights, and whether it is exactly that one; weights are shares."""
        check_weights(weights, list(self.weightings))
        shares = self.weightings.to_numpy()
        shares = shares / shares.sum(1, keepdims=True)
        wanted = np.array([weights[name] for name in self.weightings], float)
        distance = np.abs(shares - wanted / wanted.sum()).max(1)
        return int(distance.argmin()), bool(distance.min() < 1e-4)

    def scores(self, weighting: int, exponents: Mapping[str, float]) -> np.ndarray:
        """The fused scores Π pᵢ^aᵢ · price^c of every user and item, (U, I), as shares of the user's best.

        Raises ValueError for exponents of other signals, below 0 or not finite.
        """
        unknown = [name for name in exponents if name not in self.signals]
        if unknown:
            raise ValueError(f"No signal {', '.join(unknown)}; there are {', '.join(self.signals)}.")
        wrong = {name: a for name, a in exponents.items() if not (math.isfinite(a) and a >= 0)}
        if wrong:
            raise ValueError(f"A fusion exponent is a finite number, 0 or more; got {wrong}.")
        if not 0 <= weighting < len(self.weightings):
            raise ValueError(f"No weighting {weighting}: there are 0 to {len(self.weightings) - 1}.")
        if self._cache.get("weighting") != weighting:
            raised = {name: values[weighting] for name, values in self.predictions.items()}
            logs = {name: np.log(np.maximum(p, SMALLEST, dtype=float)) for name, p in raised.items()}
            logs["price"] = np.log(np.maximum(self._price, SMALLEST))
            self._cache = {"weighting": weighting, "logs": logs}
        total = np.zeros(self.true_purchase.shape)
        for name, a in exponents.items():
            if a:
                total += a * self._cache["logs"][name]
        return np.exp(total - total.max(1, keepdims=True))

    def rank(self, weighting: int, exponents: Mapping[str, float], diversity: float = 0.0) -> np.ndarray:
        """Every user's list under a setting, (U, k) positions of items, best first."""
        scores = self.scores(weighting, exponents)
        return mmr(scores, self._category, self.k, diversity) if diversity else top_k(scores, self.k)

    def measure(self, lists: np.ndarray) -> dict[str, float]:
        """The figures of lists (U, k), as :mod:`mtl_helpers.ranking` defines them, means over users.

        ``revenue`` (expected, per 1,000 impressions), ``ndcg``, ``coverage`` (of the catalogue), ``categories`` (shown
        to a user, as a share of all), ``gini`` (of exposure, places by their factor) and, where counts were given,
        ``novelty`` (bits).
        """
        n = len(self.items)
        revenue = expected_revenue(lists, self.true_purchase, self._price, self.position_factors)
        found = {
            "revenue": float(revenue.mean()),
            "ndcg": user_mean(ndcg_at_k(self.relevance, lists)),
            "coverage": catalogue_coverage(lists, n),
            "categories": float(category_coverage(lists, self._category).mean()),
            "gini": gini(exposure(lists, n, self.position_factors)),
        }
        if self.counts is not None:
            found["novelty"] = float(novelty(lists, self.counts).mean())
        return found

    def settings(
        self,
        exponents: Sequence[Mapping[str, float]],
        diversities: Sequence[float] = DIVERSITIES,
        weightings: Sequence[int] | None = None,
    ) -> pd.DataFrame:
        """Measure every combination: a row each, with ``weighting``, ``exponents``, ``diversity`` and the figures."""
        rows = []
        for weighting in range(len(self.weightings)) if weightings is None else weightings:
            for powers in exponents:
                for diversity in diversities:
                    figures = self.measure(self.rank(weighting, powers, diversity))
                    rows.append(
                        {
                            "weighting": weighting,
                            "exponents": dict(powers),
                            "diversity": diversity,
                            **figures,
                        }
                    )
        return pd.DataFrame(rows)


def shop_dashboard(
    front: Shopfront,
    *,
    exponents: Mapping[str, float],
    weights: Mapping[str, float] | None = None,
    diversity: float = 0.0,
    user: str | None = None,
    settings: pd.DataFrame | None = None,
    highest: float = 2.0,
    currency: str = "EUR",
) -> Explorer:
    """Steer a shop's lists: ten product cards, their figures against today's setting, revenue against coverage.

    The first state is *today's setting*, which the others are compared with. Task-weight sliders stop at trained
    weightings; where these leave holes, the nearest is shown and the reading says so. Cards show a product's category,
    brand, price and predictions; bars are shares of the largest prediction that this user has for any product.

    Parameters
    ----------
    front : the predictions and the truth.
    exponents : today's, one to four of ``front.signals``; these get sliders from 0 to ``highest``, in quarters.
    weights : today's task weights; the trained weighting nearest to equal weights unless told.
    diversity : today's, 0 to 1. user : whose list comes first; the first unless told.
    settings : as ``front.settings`` makes it, for the picture of revenue and coverage; unless given, every weighting
        with today's exponents, and today's weighting with other exponents, each at three diversities.
    currency : said with prices.

    Example
    -------
    >>> front = Shopfront(
    ...     items=pd.DataFrame({"category": ["books", "toys", "toys"], "brand": list("abc"), "price": [9.0, 5, 7]}),
    ...     users=["Ann", "Bo"],
    ...     weightings=pd.DataFrame({"buy": [0.2, 0.8], "next": [0.8, 0.2]}),
    ...     predictions={"p_buy": np.full((2, 2, 3), 0.1), "p_next": np.full((2, 2, 3), 1 / 3)},
    ...     true_purchase=np.full((2, 3), 0.1),
    ...     k=2,
    ... )
    >>> dashboard = shop_dashboard(front, exponents={"p_buy": 1, "p_next": 0, "price": 0})
    >>> dashboard.set(price_exponent=1, diversity=0.5, user="Bo").state["price_exponent"]
    1.0

    Controls are named ``<task>_weight`` (several weightings only), ``<signal>_exponent``, ``diversity`` and ``user``.
    """
    if not exponents:
        raise ValueError(f"exponents need one to four of {', '.join(front.signals)}; got none.")
    tasks, many = list(front.weightings), len(front.weightings) > 1 and front.weightings.shape[1] > 1
    first, _ = front.nearest(weights or dict.fromkeys(tasks, 1.0))
    shares = front.weightings.to_numpy()
    shares = shares / shares.sum(1, keepdims=True)

    low, step = _weight_steps(shares)
    simplex = Simplex(tasks, low, step)
    high = round(low + simplex.total * step, 10)
    at_first = simplex.snap(shares[first])
    knobs_w = [
        slider(f"{name}_weight", name, low, high, at_first[name], step=step, fmt=".2f")
        for name in tasks
        if many
    ]
    knobs_a = [
        slider(f"{name}_exponent", name, 0.0, highest, a, step=0.25, fmt=".2f")
        for name, a in exponents.items()
    ]
    knobs_l = [
        slider("diversity", "diversity", 0.0, 1.0, diversity, step=0.05, fmt=".2f"),
        dropdown("user", "user", front.users, user),
    ]

    def link(state: dict, moved: str) -> dict:
        if not moved.endswith("_weight"):
            return state
        now = {name: state[f"{name}_weight"] for name in tasks}
        return state | {f"{n}_weight": w for n, w in simplex(now, moved.removesuffix("_weight")).items()}

    def setting(state: Mapping[str, Any]) -> tuple[dict[str, float], int, bool, dict[str, float], float]:
        chosen = {name: state[f"{name}_weight"] for name in tasks} if many else dict(front.weightings.iloc[0])
        powers = {name: state[f"{name}_exponent"] for name in exponents}
        return chosen, *front.nearest(chosen), powers, state["diversity"]

    controls = [*knobs_w, *knobs_a, *knobs_l]
    start = {control.name: control.value for control in controls}
    _, today_at, _, powers, spread = setting(start)
    today_lists = front.rank(today_at, powers, spread)
    today = front.measure(today_lists)
    if settings is None:
        others = [
            powers | {name: value}
            for name in powers
            for value in VARIED_EXPONENTS
            if value != powers[name] and (value or any(a for n, a in powers.items() if n != name))
        ]
        settings = front.settings([powers], sorted({*DIVERSITIES, spread}))
        settings = pd.concat([settings, front.settings(others, DIVERSITIES, [today_at])], ignore_index=True)

    figure = plots.figure(*SIZE)
    figure.set_layout_engine("none")  # three boxes of fixed places: cards need the whole width
    note = "bars: share of this user's largest prediction; ▲▼ places, and new products, against today's list"
    figure.text(0.988, 0.46, note, ha="right", va="center", fontsize=7, color=GREY)
    cards = _Cards(figure.add_axes((0.01, 0.48, 0.98, 0.42)), front, currency)
    bars = _Changes(figure.add_axes((0.175, 0.085, 0.355, 0.31)), today, settings, front, currency)
    here = _draw_front(figure.add_axes((0.615, 0.085, 0.37, 0.31)), settings, today, currency)

    def update(state: dict) -> tuple[str, str]:
        chosen, at, exact, powers, spread = setting(state)
        lists = front.rank(at, powers, spread)
        now = front.measure(lists)
        row = front.users.index(state["user"])
        score = " · ".join(f"{name}^{a:.2f}" for name, a in powers.items() if a) or "1"
        model = " + ".join(f"{weight:.2f} {name}" for name, weight in chosen.items())
        place = "" if exact else " (not trained: the nearest trained weighting is shown)"
        moved, text = cards.show(row, lists[row], today_lists[row], at)
        cards.head(
            f"Top {front.k} for {state['user']}:  score = {score},  diversity {spread:.2f}", model + place
        )
        bars.show(now)
        here.set_data([now["coverage"] * 100], [now["revenue"]])
        beaten = int(
            ((settings["revenue"] > now["revenue"]) & (settings["coverage"] > now["coverage"])).sum()
        )
        said = (
            f"{state['user']}: score = {score}, diversity {spread:.2f}, loss = {model}{place}. Over all "
            f"{len(front.users):,} users: revenue {now['revenue']:,.1f} {currency} per 1,000 impressions "
            f"({_change(now['revenue'], today['revenue'])} against today), NDCG@{front.k} {now['ndcg']:.4f} "
            f"(today {today['ndcg']:.4f}), {now['coverage']:.1%} of the catalogue shown "
            f"(today {today['coverage']:.1%}), {beaten} of {len(settings)} ready-made settings earn and show more. "
            f"{moved} of {front.k} products are new to this user's list."
        )
        if not any(powers.values()):
            said += (
                " All exponents are 0: every product scores the same, so lists follow the catalogue's order."
            )
        return said, f"The list: {text}"

    groups = {
        "Task weights": [control.name for control in knobs_w],
        "Exponents": [control.name for control in knobs_a],
        "List": [control.name for control in knobs_l],
    }
    groups = {heading: names for heading, names in groups.items() if names}
    title = "The shop owner's dashboard"
    return Explorer(figure, controls, update, title=title, link=link if many else None, groups=groups)


# --- parts of the picture ---------------------------------------------------------------------------------------


class _Cards:
    """Product cards, five in a row: place and move, category, brand and price, a bar for each prediction."""

    def __init__(self, axis: Axes, front: Shopfront, currency: str) -> None:
        self.axis, self.front, self.currency = axis, front, currency
        rows = math.ceil(front.k / PER_ROW)
        axis.set(xlim=(0, PER_ROW), ylim=(rows, 0), xticks=(), yticks=())
        axis.grid(visible=False)
        axis.set_frame_on(False)
        names = list(dict.fromkeys(front.items["category"]))
        self.color = {name: CATEGORY_COLORS[i % len(CATEGORY_COLORS)] for i, name in enumerate(names)}
        self.corner = [((place % PER_ROW) + 0.02, place // PER_ROW + 0.03) for place in range(front.k)]
        frames = [_box(x, y, 0.95, 0.93) for x, y in self.corner]
        axis.add_collection(PolyCollection(frames, facecolors="white", edgecolors="#cccccc", lw=1))
        self.stripes = axis.add_collection(
            PolyCollection([_box(x, y, 0.03, 0.93) for x, y in self.corner], animated=True)
        )
        self.bars = axis.add_collection(PolyCollection([], animated=True))
        self.stamps = axis.add_artist(_Stamps(axis))
        self.stamps.set_clip_on(False)
        above = {"transform": axis.transAxes}
        self.title = self.stamps.add(0.004, 1.185, 11, **above)
        self.model = self.stamps.add(0.004, 1.08, 9, color=GREY, **above)
        self.texts, self.values = [], []
        for x, y in self.corner:
            for row, name in enumerate(front.predictions):
                at = (x + 0.07, y + self._line(row))
                axis.text(*at, _short(name, 13), color=GREY, fontsize=7, va="center", parse_math=False)
            add = self.stamps.add
            self.texts.append(
                (
                    add(x + 0.07, y + 0.14, 8, weight="bold"),
                    add(x + 0.92, y + 0.14, 8, right=True, color=GREY),
                    add(x + 0.07, y + 0.33, 8),
                )
            )
            rows_here = range(len(front.predictions))
            self.values.append([add(x + 0.92, y + self._line(row), 7, right=True) for row in rows_here])

    @staticmethod
    def _line(row: int) -> float:
        return 0.51 + 0.155 * row

    def head(self, title: str, model: str) -> None:
        # the reading says both in full
        self.stamps.say(self.title, _short(title, 125))
        self.stamps.say(self.model, _short(f"Model trained with loss = {model}", 155))

    def show(self, user: int, items: np.ndarray, before: np.ndarray, weighting: int) -> tuple[int, str]:
        """Draw a user's list; returns how many products are new to it, and the list in words."""
        old = {item: place for place, item in enumerate(before.tolist())}
        verts, colors, said = [], [], []
        table = self.front.items
        for place, item in enumerate(items.tolist()):
            x, y = self.corner[place]
            category, brand, price = (table[name].iloc[item] for name in ("category", "brand", "price"))
            cost, was = f"{price:,.2f} {self.currency}", old.get(item)
            step = (
                "new"
                if was is None
                else ""
                if was == place
                else f"{'▲' if was > place else '▼'}{abs(was - place)}"
            )
            what, mark, whose = self.texts[place]
            self.stamps.say(what, f"{place + 1}  {_short(str(category), 15)}")
            self.stamps.say(mark, step)
            self.stamps.say(whose, f"{_short(str(brand), max(4, 22 - len(cost)))} · {cost}")
            numbers = []
            for row, (name, values) in enumerate(self.front.predictions.items()):
                own = values[weighting, user]
                value, most = float(own[item]), float(own.max())
                verts.append(
                    _box(x + 0.42, y + self._line(row) - 0.05, 0.28 * value / most if most else 0, 0.1)
                )
                colors.append(BAR_COLORS[row])
                self.stamps.say(self.values[place][row], _digits(value))
                numbers.append(f"{name} {_digits(value)}")
            said.append(f"{place + 1} {category}, {brand}, {cost} ({', '.join(numbers)})")
        self.bars.set_verts(verts)
        self.bars.set_facecolor(colors)
        self.stripes.set_facecolor([self.color[table["category"].iloc[item]] for item in items])
        return sum(item not in old for item in items.tolist()), "; ".join(said)


class _Stamps(Artist):
    """Many short texts that come again and again: each word is drawn once and then stamped.

    Rendering glyphs is most of what a move costs, and a dashboard shows the same names, prices and rounded numbers over
    and over.
    """

    MOST = 2000  # words kept

    def __init__(self, axis: Axes) -> None:
        super().__init__()
        self.set_animated(True)
        self.axis, self.places, self.kept = axis, [], {}
        self._paper: dict[tuple, Any] = {}

    def add(
        self,
        x: float,
        y: float,
        size: float,
        *,
        right: bool = False,
        weight: str = "normal",
        color: str = INK,
        transform: Transform | None = None,
    ) -> int:
        """A place for a text, by its left or right end and its middle; returns its number."""
        at = (transform or self.axis.transData, (x, y))
        self.places.append((*at, right, (size, weight, color), [""]))
        return len(self.places) - 1

    def say(self, place: int, text: str) -> None:
        self.places[place][-1][0] = text
        self.stale = True

    def draw(self, renderer: Any) -> None:
        gc = renderer.new_gc()
        for transform, at, right, style, (text,) in self.places:
            if not text:
                continue
            _, _, space, below = self._write_with(style)
            stamps = [self._stamp(word, style) for word in text.split(" ")]
            left, middle = transform.transform(at)
            if right:
                left -= sum(width for _, width in stamps) + space * (len(stamps) - 1)
            for image, width in stamps:
                if width:
                    renderer.draw_image(gc, round(left), round(middle - below), image)
                left += width + space
        gc.restore()

    def _write_with(self, style: tuple[float, str, str]) -> tuple[Any, Any, float, float]:
        """What a style is written with: pen, words, the width of a space, how far paper hangs below the middle."""
        if style not in self._paper:
            size, weight, color = style
            dpi = self.axis.figure.dpi
            paper = Figure(figsize=(4, 0.25), dpi=dpi)
            pen = FigureCanvasAgg(paper).get_renderer()
            words = paper.text(0, 0.3, "", fontsize=size, weight=weight, color=color, parse_math=False)
            widths = []
            for text in ("a b", "ab"):
                words.set_text(text)
                widths.append(words.get_window_extent(pen).width)
            below = (0.3 * 0.25 + 0.36 * size / 72) * dpi
            self._paper[style] = (pen, words, widths[0] - widths[1], below)
        return self._paper[style]

    def _stamp(self, word: str, style: tuple[float, str, str]) -> tuple[np.ndarray, float]:
        """RGBA of a word, rows upwards as draw_image wants them, and how far the next one is."""
        found = self.kept.get((word, style))
        if found is None:
            if len(self.kept) >= self.MOST:
                self.kept.clear()
            pen, words, _, _ = self._write_with(style)
            pen.clear()
            words.set_text(word)
            words.draw(pen)
            width = words.get_window_extent(pen).width if word else 0.0
            image = np.asarray(pen.buffer_rgba())[::-1, : math.ceil(width) + 1].copy()
            found = self.kept[word, style] = (image, width)
        return found


class _Changes:
    """A bar for each figure: its change against today, as a share."""

    def __init__(
        self, axis: Axes, today: Mapping[str, float], settings: pd.DataFrame, front: Shopfront, currency: str
    ) -> None:
        self.today = today
        labels = {
            "revenue": f"{currency} per 1,000 shown",
            "ndcg": f"NDCG@{front.k}",
            "coverage": "catalogue shown",
            "categories": "categories per list",
            "gini": "Gini of exposure",
            "novelty": "novelty (bits)",
        }
        names = list(today)
        changes = [
            abs(settings[name] / today[name] - 1).max() for name in names if name in settings and today[name]
        ]
        self.limit = 1.1 * max(0.05, min(1.0, np.nanmax([*changes, 0.05])))
        axis.axvline(0, color="black", lw=1)
        limit = self.limit * 100
        axis.set(xlim=(-limit, 2.1 * limit), ylim=(len(names) - 0.4, -0.6), xlabel="change against today, %")
        axis.set_xticks([tick for tick in axis.get_xticks() if abs(tick) <= limit])
        axis.set_yticks(range(len(names)), [labels[name] for name in names])
        axis.grid(visible=False, axis="y")
        axis.set_title("All users, against today's setting")
        made = axis.barh(range(len(names)), np.zeros(len(names)), height=0.55, color="#0072B2", animated=True)
        self.bars = dict(zip(names, made, strict=True))
        self.stamps = axis.add_artist(_Stamps(axis))
        self.texts = {name: self.stamps.add(1.1 * limit, row, 9) for row, name in enumerate(names)}

    def show(self, now: Mapping[str, float]) -> None:
        for name, bar in self.bars.items():
            change = now[name] / self.today[name] - 1 if self.today[name] else 0.0
            bar.set_width(100 * float(np.clip(np.nan_to_num(change), -self.limit, self.limit)))
            value = f"{now[name]:,.1f}" if name == "revenue" else f"{now[name]:.3f}"
            self.stamps.say(self.texts[name], f"{value}  ({_change(now[name], self.today[name])})")


def _draw_front(axis: Axes, settings: pd.DataFrame, today: Mapping[str, float], currency: str) -> Any:
    """Revenue against coverage: all settings, their Pareto front, today's, and the one that moves."""
    points = settings[["coverage", "revenue"]].to_numpy(float)
    front = points[pareto_mask(points, maximise=True)]
    front = front[np.argsort(front[:, 0])]
    axis.plot(
        points[:, 0] * 100, points[:, 1], "o", color="#bbbbbb", ms=3.5, lw=0, label="ready-made settings"
    )
    axis.plot(front[:, 0] * 100, front[:, 1], "-", color=INK, lw=1.4, marker=".", label="their Pareto front")
    axis.plot(today["coverage"] * 100, today["revenue"], "s", color="#E69F00", ms=9, label="today", lw=0)
    axis.margins(0.12)
    axis.set_ylim(top=axis.get_ylim()[1] + 0.45 * (axis.get_ylim()[1] - axis.get_ylim()[0]))
    axis.set(xlabel="catalogue shown, %", ylabel=f"revenue per 1,000, {currency}")
    axis.set_title("What each setting earns and shows")
    axis.set_autoscale_on(False)
    style = {"color": "#D55E00", "ms": 10, "mec": "white", "lw": 0, "clip_on": False}
    here = axis.plot([], [], "D", label="you are here", animated=True, **style)[0]
    legend = axis.legend(fontsize=8, ncols=2, loc="upper center")
    for handle in legend.legend_handles:  # a copy of what moves would move with it
        handle.set_animated(False)
    return here


# --- small things -----------------------------------------------------------------------------------------------


def _box(x: float, y: float, width: float, height: float) -> list[tuple[float, float]]:
    return [(x, y), (x + width, y), (x + width, y + height), (x, y + height)]


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _digits(value: float) -> str:
    return f"{value:.3f}" if value >= 0.01 else f"{value:.1e}" if 0 < value < 1e-4 else f"{value:.4f}"


def _change(now: float, then: float) -> str:
    if not (math.isfinite(now) and math.isfinite(then)):
        return "undefined"
    return f"{round(now / then - 1, 4) + 0.0:+.1%}" if then else ("±0" if now == then else "from 0")


def _weight_steps(shares: np.ndarray) -> tuple[float, float]:
    """Lowest weight and step of the sliders: the trained grid's own where it has one, else 0 and 0.05."""
    stops = np.unique(shares.round(9))
    if len(stops) > 1:
        low, gap = float(stops[0]), float(np.diff(stops).min())
        whole = np.append((stops - low) / gap, (1 - shares.shape[1] * low) / gap)
        if gap > 0.004 and np.abs(whole - whole.round()).max() < 1e-4:
            return low, gap
    return 0.0, 0.05
