"""The pages that need no kernel, in Chromium: every demo's slider moves its picture, and no request leaves a page."""

from __future__ import annotations

import base64
import io
import os

import nbformat
import numpy as np
import pytest
import widget_demos
from lab import GUESSES, REPO, SETUP, missing, open_browser
from PIL import Image

from build import clean
from execute import execute
from states import FIRST_CELL, all_states

pytestmark = pytest.mark.browser
MOVING = ("threshold", "scarcity", "weights_of_two", "weights_of_three", "logits")
STILL = ("dashboard", "live")
TEXT = """\
# 00 · Demos

**Promise.** They move.

Next is [00_more](00_more.ipynb), and $L_i=-\\tfrac1m\\sum_n y_n\\log p_n$."""
LOOKS = {"wide": (1200, "light"), "dark": (1200, "dark"), "narrow": (390, "light")}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Pages of a notebook with a demo of each kind."""
    if reason := missing():
        pytest.skip(reason)
    pytest.importorskip("latex2mathml", reason="latex2mathml is not installed")
    from web import write_site

    out = tmp_path_factory.mktemp("site")
    demos = [f"# @title Move {name}\nwidget_demos.{name}()" for name in (*MOVING, *STILL)]
    cells = [FIRST_CELL, SETUP.replace("'..'", repr(str(REPO))), *demos, *GUESSES]
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    book.cells.insert(0, nbformat.v4.new_markdown_cell(TEXT))
    execute(book, out, {**os.environ, "MTL_BUILD": "1", "FAST": "1"})
    clean(book)
    write_site({"00_demos": book}, "# Glossary\n\n[00](00_demos.ipynb)", out)
    return out


@pytest.fixture(scope="module")
def browser(site):
    with open_browser() as chromium:
        yield chromium


@pytest.fixture
def opened(browser, site):
    """Opens a page in a look; fails if it asked for anything but itself, or if its script failed."""
    contexts, wrong = [], []

    def open_page(name: str = "00_demos", look: str = "wide"):
        width, scheme = LOOKS[look]
        contexts.append(browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme))
        page = contexts[-1].new_page()
        address = (site / f"{name}.html").as_uri()
        page.on("request", lambda r: r.url.startswith(("data:", address)) or wrong.append(r.url))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.goto(address)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not wrong


def pixels(demo) -> bytes:
    return demo.locator(".stage").screenshot()


@pytest.mark.parametrize("look", LOOKS)
def test_every_slider_moves_its_picture_by_keyboard(opened, look):
    page = opened(look=look)
    demos = page.locator(".demo")
    assert demos.count() == len(MOVING)
    for demo in demos.all():
        image, said = demo.locator("img").first, demo.get_by_role("status")
        demo.scroll_into_view_if_needed()  # once: after another scroll the same picture may have other pixels
        for slider in demo.get_by_role("slider").all():
            before, alt, value = pixels(demo), image.get_attribute("alt"), slider.input_value()
            slider.focus()
            for key in ("End", "ArrowLeft"):
                page.keyboard.press(key)
            if slider.input_value() == value:
                page.keyboard.press("Home")
            assert pixels(demo) != before and image.get_attribute("alt") != alt
            assert demo.locator(".over").evaluate("layer => layer.hidden || layer.naturalWidth > 0")
            assert said.inner_text() in image.get_attribute("alt")
            assert slider.get_attribute("aria-valuetext") in image.get_attribute("alt")
        for menu in demo.get_by_role("combobox").all():
            before = pixels(demo)
            menu.select_option(index=2)
            assert pixels(demo) != before


@pytest.mark.parametrize("look", LOOKS)
def test_the_page_reads_well(opened, look):
    page = opened(look=look)
    assert page.evaluate("document.documentElement.scrollWidth") <= LOOKS[look][0]
    ink, ground = page.evaluate(
        "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"
        ".map(color => color.match(/\\d+/g).slice(0, 3).reduce((a, b) => a + b / 765, 0))"
    )
    assert (ink > 0.85 and ground < 0.15) if look == "dark" else (ink < 0.15 and ground > 0.85)
    assert page.locator(".demo img").first.bounding_box()["width"] >= 600


def test_sliders_that_are_linked_move_each_other(opened):
    demo = opened().locator(".demo").nth(MOVING.index("weights_of_three"))
    sliders = demo.get_by_role("slider").all()
    for slider in sliders:
        slider.press("End")
        shares = [float(each.get_attribute("aria-valuetext")) for each in sliders]
        assert sum(shares) == pytest.approx(1) and float(slider.get_attribute("aria-valuetext")) == 1


def test_the_mouse_moves_a_slider_and_a_click_unfolds_code(opened):
    page = opened()
    demo = page.locator(".demo").first
    before, box = pixels(demo), demo.get_by_role("slider").bounding_box()
    page.mouse.click(box["x"] + 0.9 * box["width"], box["y"] + box["height"] / 2)
    assert pixels(demo) != before
    code = page.get_by_text("widget_demos.threshold()")
    assert not code.is_visible()
    page.get_by_text("Move threshold").click()
    assert code.is_visible() and page.locator("details").count() == 1 + len(MOVING) + len(STILL)


def test_what_needs_a_kernel_is_said(opened):
    page = opened()
    assert page.get_by_text("This demo needs a kernel").count() == len(STILL)
    assert page.get_by_text("in a running notebook only").count() == 2
    note = page.locator(".note").inner_text()
    assert f"too: {len(MOVING)}." in note and f"marked ({len(STILL) + 2})" in note
    assert page.locator("math").count() == 1 and "$" not in page.locator("main p").first.inner_text()


def test_pages_lead_to_each_other(opened, site):
    page = opened("index")
    assert page.get_by_role("row", name="00 Demos They move.").get_by_role("link").get_attribute("href") == (
        "00_demos.html"
    )
    assert 'href="00_more.html"' in (site / "00_demos.html").read_text(encoding="utf-8")
    assert 'href="00_demos.html"' in (site / "glossary.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", MOVING)
def test_a_page_shows_what_the_explorer_draws(site, name):
    """First picture and what is laid over it, put together here, against the explorer's own picture of that state."""
    from web import over

    states = all_states(getattr(widget_demos, name)())["states"]
    first, *others = (
        np.asarray(Image.open(io.BytesIO(base64.b64decode(state["png"]))).convert("RGB")) for state in states
    )
    assert over(first, first) is None
    height, width, _ = first.shape
    for drawn in others[:: max(1, len(others) // 12)]:
        left, top, _, _, part = over(first, drawn)
        picture = Image.fromarray(first)
        layer = Image.open(io.BytesIO(base64.b64decode(part)))
        picture.paste(layer, (round(left * width / 100), round(top * height / 100)), layer)
        assert np.abs(np.asarray(picture).astype(int) - drawn).max() <= 8  # of 255
