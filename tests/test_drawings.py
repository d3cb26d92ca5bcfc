"""Drawings: arrows stand on the borders of boxes, text fits, and each says in words what it shows."""

from __future__ import annotations

import html
import re
from itertools import combinations, product
from xml.etree import ElementTree

import pytest

import drawings
from drawings import course_map, draw
from mtl_helpers import widgets

TWO, FOUR = ("click", "purchase"), ("click", "purchase", "long_view", "next_category")
CASES = [(name, tasks) for name in drawings.PLANS for tasks in (TWO, FOUR)]
EACH = pytest.mark.parametrize(("name", "tasks"), CASES)


@EACH
def test_arrows_stand_on_borders_and_share_no_end(name, tasks):
    arrows = draw(name, tasks).arrows
    for source, target, start, end in arrows:
        if source.x == target.x:
            assert start == (source.middle[0], source.y + source.height) and end == (
                target.middle[0],
                target.y,
            )
            continue
        assert start[0] == source.x + source.width and end[0] == target.x >= start[0] + 20
        assert all(
            abs(y - box.middle[1]) <= box.height / 2 - 4 for box, (_, y) in ((source, start), (target, end))
        )
    ends = [point for arrow in arrows for point in arrow[2:]]
    assert len(set(ends)) == len(ends)


@EACH
def test_text_fits_and_boxes_keep_apart(name, tasks):
    drawing = draw(name, tasks)
    height = int(ElementTree.fromstring(drawing.svg).get("height"))
    for box in drawing.boxes:
        assert max(drawings.text_width(*line) for line in box.lines) <= box.width - 16
        assert (
            box.x >= 10
            and box.x + box.width <= drawings.WIDTH - 10
            and 40 <= box.y <= height - box.height - 10
        )
    for a, b in combinations(drawing.boxes, 2):
        assert a.x + a.width < b.x or a.y + a.height < b.y or b.y + b.height < a.y


@EACH
def test_a_drawing_says_what_it_shows(name, tasks):
    svg = draw(name, tasks).svg
    root = ElementTree.fromstring(svg)
    words, said = "".join(root.itertext()), root.get("aria-label")
    assert root.get("role") == "img" and all(task in said and task in words for task in tasks)
    assert "{" not in words + said and "<style" not in svg and " id=" not in svg


def test_what_is_stored_is_what_would_be_drawn():
    stored = {path.stem: path.read_text(encoding="utf-8") for path in drawings.PICTURES.iterdir()}
    drawn = {name: f"{svg}\n" for name, svg in drawings.every().items()}
    assert stored == drawn, "run `python notebooks/source/drawings.py`"


@pytest.mark.parametrize(
    ("shown", "drawn"),
    [
        (widgets.draw("esmm"), draw("esmm", drawings.THREE)),
        (widgets.draw("shared_bottom", tasks=TWO), draw("shared_bottom", TWO)),
        (widgets.course_map("02"), course_map("02")),
    ],
    ids=repr,
)
def test_a_page_shows_what_is_stored(shown, drawn):
    bundle = shown._repr_mimebundle_()
    assert bundle["image/svg+xml"] == drawn.svg
    assert bundle["text/plain"] == repr(shown) == ElementTree.fromstring(drawn.svg).get("aria-label")
    assert f'alt="{html.escape(repr(shown))}"' in bundle["text/html"]


def test_the_map_is_low_and_knows_where_one_is():
    svg = course_map("02").svg
    root = ElementTree.fromstring(svg)
    assert int(root.get("height")) <= 110
    assert svg.count("l4 4") == 2 and "notebook 02" in root.get("aria-label")


@pytest.mark.parametrize("here", drawings.STATIONS)
def test_words_of_neighbouring_stations_do_not_touch(here):
    found = re.findall(
        r'<text x="(\d+)" y="(\d+)" font-size="([\d.]+)"[^>]*>([^<]+)</text>', course_map(here).svg
    )
    assert len(found) > 3 * len(drawings.STATIONS)
    for left, right in product(found, found):
        if left[1] == right[1] and int(left[0]) < int(right[0]):
            half = sum(drawings.text_width(text, size=float(size)) / 2 for *_, size, text in (left, right))
            assert int(right[0]) - int(left[0]) > half, (left[3], right[3])


@pytest.mark.parametrize(
    ("call", "given", "known"),
    [
        (widgets.draw, ("perceptron",), "mmoe-click-purchase-next_category"),
        (widgets.draw, ("esmm", ("purchase", "click")), "esmm-click-purchase,"),
        (widgets.course_map, ("11",), "course-10"),
    ],
)
def test_what_is_not_there_is_answered_with_what_is(call, given, known):
    with pytest.raises(ValueError, match=known):
        call(*given)
