"""Folded cells, and how much of a page is code, prose, pictures and print."""

from __future__ import annotations

import base64
import io

import nbformat.v4 as v4
import pytest
from PIL import Image

import build
from pages import shares, too_much


def png(width: int, height: int) -> str:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height)).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def page(code: int = 10, folded: bool = False, picture: int = 0, printed: int = 0):
    """A notebook of one code cell with so many lines, a picture so high and so many printed lines."""
    cell = v4.new_code_cell("\n".join(["x = 1"] * code))
    if folded:
        cell.metadata["jupyter"] = {"source_hidden": True}
    if picture:
        cell.outputs.append(v4.new_output("display_data", {"image/png": png(400, picture)}))
    if printed:
        cell.outputs.append(v4.new_output("stream", text="number\n" * printed))
    return v4.new_notebook(cells=[v4.new_markdown_cell("A word.\n\n" * 5), cell])


def test_a_title_folds_a_cell():
    text = "# %% [markdown]\n# {{colab_badge}}\n\n# %%\n# {{setup}}\n"
    text += "\n# %%\n# @title Draw it\n1\n\n# %%\n# a title\n1\n"
    folded = [
        cell.metadata
        for cell in build.parse("x", text, "https://example.org").cells
        if cell.cell_type == "code"
    ]
    assert [bool(metadata) for metadata in folded] == [False, True, False]
    assert folded[1] == {"cellView": "form", "jupyter": {"source_hidden": True}}


def test_shares_sum_to_one_and_follow_what_is_seen():
    plain, folded = shares(page(code=40, picture=300)), shares(page(code=40, folded=True, picture=300))
    assert sum(plain.values()) == pytest.approx(1) and sum(folded.values()) == pytest.approx(1)
    assert folded["code"] < 0.1 < plain["code"] and folded["pictures"] > plain["pictures"]
    assert shares(page(printed=30))["print"] > 0.4
    wide = v4.new_notebook(cells=[v4.new_markdown_cell(f"![x](data:image/png;base64,{png(1740, 400)})")])
    assert 0.5 < shares(wide)["pictures"] < 1  # 200 high, as the page shrinks it


@pytest.mark.parametrize(
    "notebook, word",
    [
        (page(code=80, picture=300), "code"),
        (page(code=2), "pictures"),
        (page(picture=500, printed=9), "print"),
    ],
)
def test_a_page_beyond_its_limits_is_told(notebook, word):
    assert any(complaint.startswith(word) for complaint in too_much(shares(notebook)))
    assert too_much(shares(page(code=4, picture=400))) == []
