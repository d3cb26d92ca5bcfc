"""The dashboard's lists and figures are those of ranking and Fusion, and every control answers."""

from __future__ import annotations

import base64
import re
import sys
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.image import imread as read_png

sys.path.insert(0, str(Path(__file__).parent / "browser"))

import widget_demos as demos

from mtl_helpers import ranking
from mtl_helpers.models import Fusion
from mtl_helpers.sweep import pareto_mask
from mtl_helpers.widgets import Shopfront, shop_dashboard

POWERS = {"purchase": 1.0, "favourite": 0.5, "next item": 0.0, "price": 0.25}


def small(**options) -> Shopfront:
    return demos.shopfront(users=30, items=120, points=4, **options)


@pytest.fixture(scope="module")
def front():
    return small()


def parts(**changes) -> dict:
    """What a small Shopfront is made from, with some of it replaced."""
    front = small()
    made = {
        name: getattr(front, name)
        for name in ("items", "users", "weightings", "predictions", "true_purchase", "counts")
    }
    return made | changes


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


@pytest.mark.parametrize("factors", [None, 0.8 ** np.arange(10)])
def test_figures_are_those_of_ranking(factors):
    bought = np.random.default_rng(0).random((30, 120)) < 0.05
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
    bare = small(counts=None)
    assert "novelty" not in bare.measure(lists)
    assert bare.measure(lists)["ndcg"] == ranking.user_mean(ranking.ndcg_at_k(truth, lists))


def test_nearest_weighting(front):
    for k, row in front.weightings.iterrows():
        assert front.nearest({name: 7 * weight for name, weight in row.items()}) == k
    at = front.nearest({"purchase": 0.9, "next_category": 0.05, "next_item": 0.05})
    assert front.weightings["purchase"].iloc[at] == front.weightings["purchase"].max()


def test_settings_are_all_combinations(front):
    table = front.settings([{"purchase": 1}, POWERS], (0, 0.5), [0, 2])
    assert len(table) == 8 and set(table["weighting"]) == {0, 2}
    for row in table.to_dict("records"):
        figures = front.measure(front.rank(row["weighting"], row["exponents"], row["diversity"]))
        assert {name: row[name] for name in figures} == figures


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
    explorer = shop_dashboard(front, exponents=POWERS)
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
    today_lists = front.rank(front.nearest(dict.fromkeys(front.weightings, 1)), POWERS)
    explorer = shop_dashboard(front, exponents=POWERS)
    coverage, revenue = explorer.figure.axes[1].lines[0].get_xydata().T
    explorer.buttons["Today"].click()
    explorer.set(purchase_weight=1.0, price_exponent=1.0, diversity=0.4, user="user 9")
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
    explorer = shop_dashboard(front, exponents=POWERS).set(user="user 3")
    explorer.buttons["Today"].click()
    assert "(+0.0%)" in explorer.reading and explorer.state["user"] == "user 3"
    weighting = front.nearest(dict.fromkeys(front.weightings, 1))
    for place, item in enumerate(front.rank(weighting, POWERS)[3]):
        row = front.items.iloc[item]
        p = front.predictions["purchase"][weighting, 3, item]
        assert f"{place + 1} {row['category']}, {row['brand']}, {row['price']:,.2f} EUR (" in explorer.alt
        assert f"purchase {p:.3f}" in explorer.alt or p < 0.01


def test_presets_lead_to_ready_made_settings_and_the_first_is_the_dearest(front):
    explorer = shop_dashboard(front, exponents=POWERS)
    first, best = said(explorer), explorer.figure.axes[1].lines[0].get_xydata()
    assert first["revenue"] == pytest.approx(best[:, 1].max(), abs=0.06)
    explorer.set(diversity=1.0).buttons["Most money"].click()
    assert said(explorer) == first
    for label in ("Widest", "Surprise me"):
        explorer.buttons[label].click()
        now = explorer.figure.axes[1].lines[-1].get_xydata()[0]
        assert np.isclose(best, now).all(1).any() and not explorer.error, label


def test_cards_show_titles_and_the_products_own_pictures():
    pixels = np.random.default_rng(0).integers(0, 255, (120, 8, 8, 3)).astype(np.uint8)
    made = parts(pictures=pixels)
    made["items"] = made["items"].assign(title=[f"Thing {i}" for i in range(120)])
    front = Shopfront(**made)
    explorer = shop_dashboard(front, exponents=POWERS)
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
    explorer = shop_dashboard(Shopfront(**made), exponents=POWERS)
    trained = made["weightings"].to_numpy().round(6).tolist()
    for name in made["weightings"]:
        for _, value in explorer.controls[f"{name}_weight"].options:
            explorer.set(**{f"{name}_weight": value})
            assert explorer.state[f"{name}_weight"] == value
            assert [explorer.state[f"{task}_weight"] for task in made["weightings"]] in trained


@pytest.mark.parametrize("tasks", [1, 2, 4])
def test_other_numbers_of_tasks(tasks):
    names = ["a", "b", "c", "d"][:tasks]
    grid = pd.DataFrame(np.eye(tasks) * 0.8 + 0.2 / tasks, columns=names)
    made = parts(weightings=grid)
    made["predictions"] = {name: p[:tasks] for name, p in made["predictions"].items()}
    explorer = shop_dashboard(Shopfront(**made, k=3), exponents={"purchase": 1})
    assert len(explorer.controls) == (tasks if tasks > 1 else 0) + 3
    explorer.set(diversity=1.0, purchase_exponent=0)
    assert "every product scores the same" in explorer.reading and not explorer.error


def test_the_front_is_the_pareto_front(front):
    dots, line = shop_dashboard(front, exponents=POWERS).figure.axes[1].lines[:2]
    assert len(dots.get_xydata()) > 3 * len(front.weightings)
    mask = pareto_mask(dots.get_xydata(), maximise=True)
    expected = dots.get_xydata()[mask]
    assert line.get_xydata() == pytest.approx(expected[np.argsort(expected[:, 0])])


def test_text_from_the_data_is_only_text():
    made = parts()
    made["items"] = made["items"].assign(brand='<img src=x onerror="a"> $\\frac{', category="<b>$x$</b>")
    explorer = shop_dashboard(Shopfront(**made), exponents=POWERS)
    explorer.set(diversity=0.5)
    assert not explorer.error and "<img src=x" not in explorer.html() and "&lt;img src=x" in explorer.html()


# ------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"k": 11}, "1 to 10 products"),
        ({"users": ["a"] * 30}, "different names"),
        ({"true_purchase": np.zeros((3, 3))}, r"expected \(users, items\) = \(30, 120\)"),
        ({"true_purchase": np.full((30, 120), 1.5)}, "Probabilities"),
        ({"relevance": np.full((30, 120), -1.0)}, "0 or more"),
        (
            {"predictions": {"purchase": np.zeros((1, 30, 120))}},
            r"\(weightings, users, items\) = \(10, 30, 120\)",
        ),
        ({"predictions": {"purchase": np.full((10, 30, 120), np.nan)}}, "NaN"),
        ({"predictions": {"purchase": np.full((10, 30, 120), -0.1)}}, "negative"),
        ({"predictions": {"price": np.ones((10, 30, 120))}}, "beside price"),
        ({"predictions": {}}, "one to three"),
        ({"position_factors": [1.0, 0.5]}, "10 numbers|10 finite"),
        ({"counts": -np.ones(120)}, "counts"),
    ],
)
def test_parts_that_do_not_fit(change, says):
    with pytest.raises(ValueError, match=says):
        Shopfront(**parts(**change))


def test_bad_items_and_weightings(front):
    items = front.items
    with pytest.raises(KeyError, match=r"lack the columns \['brand'\]"):
        Shopfront(**parts(items=items.drop(columns="brand")))
    unknown = items.assign(category=items["category"].where(items.index != 4))
    for wrong, says in ((items.assign(price=-1.0), "prices"), (unknown, "categor")):
        with pytest.raises(ValueError, match=says):
            Shopfront(**parts(items=wrong))
    for value, says in ((-0.1, "0 or more"), (np.nan, "finite"), (0.0, "All task weights are 0")):
        wrong = front.weightings.copy()
        wrong.iloc[2] = value
        with pytest.raises(ValueError, match=says):
            Shopfront(**parts(weightings=wrong))
    made = parts(items=items.iloc[:5], true_purchase=front.true_purchase[:, :5], counts=None)
    made["predictions"] = {name: p[:, :, :5] for name, p in made["predictions"].items()}
    with pytest.raises(ValueError, match="k is 10"):
        Shopfront(**made)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda f: f.rank(0, {"sale": 1}), "No signal sale; there are purchase"),
        (lambda f: f.rank(0, {"purchase": -1}), "0 or more"),
        (lambda f: f.rank(0, {"purchase": float("nan")}), "finite"),
        (lambda f: f.rank(0, {"purchase": 1}, 2), "diversity"),
        (lambda f: shop_dashboard(f, exponents={}), "one to four"),
        (lambda f: shop_dashboard(f, exponents={"purchase": 1}).set(user="nobody"), "takes one of"),
        (lambda f: shop_dashboard(f, exponents={"purchase": 1}, weights={"purchase": -1}), "expected one"),
    ],
)
def test_settings_that_cannot_be(front, call, says):
    with pytest.raises(ValueError, match=says):
        call(front)
