"""The front door: README's pictures are the notebooks', and every notebook stands in every list of notebooks."""

from __future__ import annotations

import re
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image
from test_links import ROOT, TEXTS

import front

README, CHINESE = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "README.zh.md"))
PLANS = (ROOT / "notebooks" / "TEACHING.md").read_text(encoding="utf-8")
IMAGE = re.compile(r'<img src="(notebooks/pictures/[\w.]+)" width="\d+" alt="([^"]+)">')
AGAIN = "run `python notebooks/source/front.py`"


def pixels(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture.convert("RGB")).astype(int)


def test_the_readme_is_short():
    assert README.count("\n") <= 150
    assert CHINESE.count("\n") <= 45


@pytest.mark.parametrize("page", [README, CHINESE], ids=["English", "Chinese"])
def test_every_picture_is_there_and_has_a_text(page):
    found = IMAGE.findall(page)
    assert len(found) == page.count("<img") > 0
    assert all((ROOT / path).is_file() and len(alt) > 15 for path, alt in found)


def test_every_picture_is_shown():
    shown = {path for path, _ in IMAGE.findall(README)}
    assert {str(path.relative_to(ROOT).as_posix()) for path in front.PICTURES.iterdir()} == shown


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: text.stem)
def test_a_notebook_has_its_row_in_both_languages(text):
    (row,) = re.findall(rf"^\| <a href.*{text.stem}\.ipynb.*$", README, re.MULTILINE)
    assert row.count(f"notebooks/{text.stem}.ipynb") == 2 and f"pictures/{text.stem[:2]}.png" in row
    told = re.search(r"about (\d+) minutes", text.read_text(encoding="utf-8"))
    assert row.rstrip(" |").endswith(f"| {told[1]}")
    assert CHINESE.count(f"](notebooks/{text.stem}.ipynb)") == 1


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: text.stem)
def test_a_thumbnail_shows_what_its_notebook_stores(text):
    stored, drawn = Image.open(front.PICTURES / f"{text.stem[:2]}.png"), front.thumbnail(text.stem)
    assert stored.size == drawn.size == front.SIZE
    assert abs(pixels(stored) - pixels(drawn)).mean() < 4, AGAIN


def test_the_slider_moves_through_the_frames_of_the_widget():
    path = front.PICTURES / "slider.gif"
    assert path.stat().st_size < 2_000_000
    with Image.open(path) as moving:
        frames = front.slider()
        assert moving.n_frames == len(frames) == 12 and moving.info["loop"] == 0
        for at, drawn in enumerate(frames):
            moving.seek(at)
            assert abs(pixels(moving) - pixels(drawn)).mean() < 4, AGAIN
    assert min(abs(pixels(a) - pixels(b)).mean() for a, b in pairwise(frames)) > 0.1


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: text.stem)
def test_the_plans_name_sections_that_exist(text):
    number = text.stem[:2]
    assert re.search(rf"\b{number}\b", PLANS)
    headings = set(re.findall(r"^# ## (\d+) · ", text.read_text(encoding="utf-8"), re.MULTILINE))
    for said in re.findall(rf"\b{number}, sections? (\d+(?:(?:, | to | and )\d+(?! min))*)", PLANS):
        assert set(re.findall(r"\d+", said)) <= headings, said


def test_the_plans_name_exercises_that_exist():
    from mtl_helpers.check import all_exercises

    assert set(re.findall(r"`(\d\d\.\w+)`", PLANS)) <= set(all_exercises())
