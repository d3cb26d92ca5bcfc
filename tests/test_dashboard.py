"""The dashboard's lists and figures are those of ranking and Fusion, and every control answers."""

from __future__ import annotations

import base64
import re
from dataclasses import fields
from io import BytesIO

import numpy as np
import pandas as pd
import pytest
import torch
import widget_demos as demos
from matplotlib.image import imread as read_png

from mtl_helpers import ranking
from mtl_helpers.models import Fusion
from mtl_helpers.sweep import pareto_mask
from mtl_helpers.widgets import Shopfront, TrainedWeights, shop_dashboard

POWERS = {"purchase": 1.0, "favourite": 0.5, "next item": 0.0, "price": 0.25}
EQUAL = {"purchase": 1.0, "next_category": 1.0, "next_item": 1.0}


def small(**options) -> Shopfront:
    return demos.shopfront(users=30, items=120, points=4, **options)


@pytest.fixture(scope="module")
def front():
    return small()


def parts(**changes) -> dict:
    """What a small Shopfront is made from, with some of it replaced."""
    front = small()
    return {part.name: getattr(front, part.name) for part in fields(front)} | changes


@pytest.mark.parametrize("diversity", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("powers", [POWERS, {"purchase": 2.0}, {"price": 1}, dict.fromkeys(POWERS, 0.0)])
def test_lists_are_those_of_fusion_and_mmr(front, powers, diversity):
    for weighting in (0, 5):
        signals = {name: torch.from_numpy(p[weighting]).double() for name, p in front.predictions.items()}
        price = torch.tensor(front.items["price"].to_numpy())
        signals["price"] = price.expand(len(front.users), -1)
        fused = Fusion(powers).double()(signals).numpy()
        expected = ranking.mmr(fused, front.items["category"], front.k, diversity)
        assert (front.rank(weighting, powers, diversity) == expected).all()


def test_figures_are_those_of_ranking():
    bought, factors = np.random.default_rng(0).random((30, 120)) < 0.05, 0.8 ** np.arange(10)
    front = small(relevance=bought, position_factors=factors)
    lists = front.rank(3, POWERS, 0.2)
    truth, price, categories = front.true_purchase, front.items["price"], front.items["category"]
    expected = {
        "revenue": ranking.expected_revenue(lists, truth, price, factors).mean(),
        "ndcg": ranking.user_mean(ranking.ndcg_at_k(bought, lists)),
        "coverage": ranking.catalogue_coverage(lists, 120),
        "categories": ranking.category_coverage(lists, categories).mean(),
        "gini": ranking.gini(ranking.exposure(lists, 120, factors)),
        "novelty": ranking.novelty(lists, front.counts).mean(),
    }
    assert front.measure(lists) == pytest.approx(expected)


def test_nearest_weighting(front):
    trained = TrainedWeights(front.weightings)
    for k, row in front.weightings.iterrows():
        assert trained.nearest({name: 7 * weight for name, weight in row.items()}) == k
    at = trained.nearest({"purchase": 0.9, "next_category": 0.05, "next_item": 0.05})
    assert front.weightings["purchase"].iloc[at] == front.weightings["purchase"].max()


# ------------------------------------------------------------------------------------------------- the picture


def said(explorer) -> dict[str, float]:
    """Numbers in a reading."""
    found = re.search(
        r"users: ([\d,.]+) EUR .*?NDCG@10 ([\d.]+) .*? ([\d.]+)% of the catalogue.*?(\d+) of (\d+) ready-made.* "
        r"(\d+) of 10 products",
        explorer.reading,
    )
    names = ("revenue", "ndcg", "coverage", "beaten", "settings", "new")
    return dict(zip(names, (float(text.replace(",", "")) for text in found.groups()), strict=True))


def test_every_control_changes_picture_numbers_and_list(front):
    explorer = shop_dashboard(front, exponents=POWERS, weights=EQUAL)
    assert list(explorer.groups) == ["Task weights", "Exponents"] and len(explorer.controls) == 9
    for name, control in explorer.controls.items():
        explorer.reset()
        before, reading, alt = explorer.html(), explorer.reading, explorer.alt
        choices = [value for _, value in getattr(control, "options", ())]
        value = choices[3] if choices else control.max
        explorer.set(**{name: value})
        assert not explorer.error and explorer.reading != reading and explorer.alt != alt, name
        assert explorer.html() != before, name
        listed = explorer.alt.split("The list: ")[1]
        assert listed != alt.split("The list: ")[1] or name.startswith("next"), name
    explorer.reset()
    assert explorer.html() == before


def test_the_reading_says_the_figures_of_the_setting(front):
    today_lists = front.rank(TrainedWeights(front.weightings).nearest(EQUAL), POWERS)
    explorer = shop_dashboard(front, exponents=POWERS, weights=EQUAL)
    coverage, revenue = explorer.figure.axes[1].lines[0].get_xydata().T
    explorer.buttons["Today"].click()
    explorer.set(purchase=1.0, price_exponent=1.0, diversity=0.4, user="user 9")
    weighting = int(front.weightings["purchase"].argmax())
    lists = front.rank(weighting, POWERS | {"price": 1.0}, 0.4)
    figures, found = front.measure(lists), said(explorer)
    assert found["revenue"] == pytest.approx(figures["revenue"], abs=0.06)
    assert found["ndcg"] == pytest.approx(figures["ndcg"], abs=6e-5)
    assert found["coverage"] == pytest.approx(100 * figures["coverage"], abs=0.06)
    better = (revenue > figures["revenue"]) & (coverage / 100 > figures["coverage"])
    assert (found["beaten"], found["settings"]) == (better.sum(), len(better))
    assert found["new"] == len(set(lists[9]) - set(today_lists[9]))
    assert "user 9: score = purchase × favourite⁰·⁵ × price, diversity 0.40" in explorer.reading


def test_a_screen_reader_hears_the_list(front):
    explorer = shop_dashboard(front, exponents=POWERS, weights=EQUAL).set(user="user 3")
    explorer.buttons["Today"].click()
    assert "(+0.0%)" in explorer.reading and explorer.state["user"] == "user 3"
    weighting = TrainedWeights(front.weightings).nearest(EQUAL)
    for place, item in enumerate(front.rank(weighting, POWERS)[3]):
        row = front.items.iloc[item]
        p = front.predictions["purchase"][weighting, 3, item]
        assert f"{place + 1} {row['title']}, {row['brand']}, {row['price']:,.2f} EUR (" in explorer.alt
        assert f"purchase {p:.3f}" in explorer.alt or p < 0.01


def test_presets_lead_to_ready_made_settings_and_the_first_is_the_dearest(front):
    explorer = shop_dashboard(front, exponents=POWERS, weights=EQUAL)
    first, best = said(explorer), explorer.figure.axes[1].lines[0].get_xydata()
    assert first["revenue"] == pytest.approx(best[:, 1].max(), abs=0.06)
    explorer.set(diversity=1.0).buttons["Most money"].click()
    assert said(explorer) == first
    for label in ("Widest", "Surprise me"):
        explorer.buttons[label].click()
        now = explorer.figure.axes[1].lines[-1].get_xydata()[0]
        assert np.isclose(best, now).all(1).any() and not explorer.error, label


def test_cards_show_titles_and_the_products_own_pictures():
    front = small()
    pixels = front.pictures
    explorer = shop_dashboard(front, exponents=POWERS, weights=EQUAL)
    drawn = re.findall(r'base64,([^"]+)" alt=""', explorer.html())
    named = [int(number) for number in re.findall(r"Thing (\d+)</div>", explorer.html())]
    assert len(drawn) == len(named) == 10
    assert [pixels[item].tolist() for item in named] == [
        (255 * read_png(BytesIO(base64.b64decode(png)), "png")[..., :3]).round().astype(int).tolist()
        for png in drawn
    ]


@pytest.mark.parametrize("keep", [range(10), [0, 3, 5, 6, 9]])
def test_sliders_stop_at_trained_weightings_even_with_holes(keep):
    made = parts()
    made["weightings"] = made["weightings"].iloc[list(keep)]
    made["predictions"] = {name: p[list(keep)] for name, p in made["predictions"].items()}
    explorer = shop_dashboard(Shopfront(**made), exponents=POWERS, weights=EQUAL)
    trained = made["weightings"].to_numpy().round(6).tolist()
    for name in made["weightings"]:
        for _, value in explorer.controls[name].options:
            explorer.set(**{name: value})
            assert explorer.state[name] == value
            assert [explorer.state[task] for task in made["weightings"]] in trained


@pytest.mark.parametrize("tasks", [2, 4])
def test_other_numbers_of_tasks(tasks):
    names = ["a", "b", "c", "d"][:tasks]
    grid = pd.DataFrame(np.eye(tasks) * 0.8 + 0.2 / tasks, columns=names)
    made = parts(weightings=grid)
    made["predictions"] = {name: p[:tasks] for name, p in made["predictions"].items()}
    front = Shopfront(**made | {"k": 3, "position_factors": np.ones(3)})
    explorer = shop_dashboard(front, exponents={"purchase": 1}, weights=dict.fromkeys(names, 1.0))
    assert len(explorer.controls) == tasks + 3
    explorer.set(diversity=1.0, purchase_exponent=0)
    assert "every product scores the same" in explorer.reading and not explorer.error


def test_the_front_is_the_pareto_front(front):
    dots, line = shop_dashboard(front, exponents=POWERS, weights=EQUAL).figure.axes[1].lines[:2]
    assert len(dots.get_xydata()) > 3 * len(front.weightings)
    mask = pareto_mask(dots.get_xydata(), maximise=True)
    expected = dots.get_xydata()[mask]
    assert line.get_xydata() == pytest.approx(expected[np.argsort(expected[:, 0])])


def test_text_from_the_data_is_only_text():
    made = parts()
    made["items"] = made["items"].assign(brand='<img src=x onerror="a"> $\\frac{', title="<b>$x$</b>")
    explorer = shop_dashboard(Shopfront(**made), exponents=POWERS, weights=EQUAL)
    explorer.set(diversity=0.5)
    assert not explorer.error and "<img src=x" not in explorer.html() and "&lt;img src=x" in explorer.html()


# ------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"k": 121}, "k is 121"),
        ({"users": ["a"] * 30}, "different names"),
        ({"true_purchase": np.zeros((3, 3))}, r"must be \(users, items\)"),
        ({"true_purchase": np.full((30, 120), 1.5)}, "Probabilities"),
        ({"relevance": np.full((30, 120), -1.0)}, "0 or more"),
        ({"predictions": {"purchase": np.zeros((1, 30, 120))}}, r"\(10, 30, 120\) numbers"),
        ({"predictions": {"purchase": np.full((10, 30, 120), np.nan)}}, "finite"),
        ({"predictions": {"purchase": np.full((10, 30, 120), -0.1)}}, "0 or more"),
        ({"position_factors": [1.0, 0.5]}, "10 numbers|10 finite"),
        ({"counts": -np.ones(120)}, "counts"),
    ],
)
def test_parts_that_do_not_fit(change, says):
    with pytest.raises(ValueError, match=says):
        shop_dashboard(Shopfront(**parts(**change)), exponents={"purchase": 1.0}, weights=EQUAL)


def test_bad_items(front):
    unknown = front.items.assign(category=front.items["category"].where(front.items.index != 4))
    for wrong, says in ((front.items.assign(price=-1.0), "prices"), (unknown, "categor")):
        with pytest.raises(ValueError, match=says):
            shop_dashboard(Shopfront(**parts(items=wrong)), exponents={"purchase": 1.0}, weights=EQUAL)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda f: f.rank(0, {"sale": 1}), "sale"),
        (lambda f: f.rank(0, {"purchase": float("nan")}), "NaN"),
        (lambda f: f.rank(0, {"purchase": 1}, 2), "diversity"),
        (lambda f: shop_dashboard(f, exponents={"purchase": 1}, weights={"purchase": 1}), "next_category"),
    ],
)
def test_settings_that_cannot_be(front, call, says):
    with pytest.raises((KeyError, ValueError), match=says):
        call(front)
