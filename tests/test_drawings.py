"""Drawings: arrows stand on the borders of boxes, text fits, and each says in words what it shows."""

from __future__ import annotations

import html
import re
from itertools import combinations, product
from xml.etree import ElementTree

import pytest

from mtl_helpers.widgets import drawings
from mtl_helpers.widgets.drawings import course_map, draw

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
    bundle = draw(name, tasks)._repr_mimebundle_()
    svg = ElementTree.fromstring(bundle["image/svg+xml"])
    assert f'alt="{html.escape(bundle["text/plain"])}"' in bundle["text/html"]
    assert svg.get("role") == "img" and svg.get("aria-label") == repr(draw(name, tasks))
    assert all(task in svg.get("aria-label") for task in tasks)
    words = "".join(svg.itertext())
    assert all(task in words for task in tasks) and "{" not in words
    assert "<style" not in draw(name).svg and " id=" not in draw(name).svg


def test_the_map_is_low_and_knows_where_one_is():
    drawing = course_map("02")
    assert int(ElementTree.fromstring(drawing.svg).get("height")) <= 110
    assert drawing.svg.count("l4 4") == 2 and "notebook 02" in drawing.alt


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


@pytest.mark.parametrize(("call", "known"), [(draw, "mmoe"), (course_map, "07")])
def test_an_unknown_name_is_answered_with_the_known_ones(call, known):
    with pytest.raises(ValueError, match=known):
        call("perceptron")
