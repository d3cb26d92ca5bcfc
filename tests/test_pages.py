"""Folded cells, and how much of a page is code, prose, pictures and print."""

from __future__ import annotations

import base64
import io

import nbformat.v4 as v4
import pytest
from PIL import Image

import build
from pages import TASK_STYLES, shares, too_much


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


HEAD = "# %% [markdown]\n# {{colab_badge}}\n\n# %%\n# {{setup}}\n"
PLUMBING = '\n# %% tags=["plumbing"]\n'


def parsed(text: str):
    return build.parse("x", HEAD + text, "https://example.org").cells[1:]


def test_plumbing_is_folded_and_so_is_the_setup_cell():
    setup, drawing, lesson = parsed(PLUMBING + "# @title Draw it\n1\n\n# %%\n# a title\n1\n")
    for cell in (setup, drawing):
        assert cell.source.startswith("# @title ")
        folded = {"tags": ["plumbing"], "cellView": "form", "jupyter": {"source_hidden": True}}
        assert cell.metadata == folded
    assert lesson.metadata == {}


@pytest.mark.parametrize(
    "text, complaint",
    [
        (PLUMBING + "1", "cell 3: a cell tagged plumbing must begin"),
        (PLUMBING + "# @title \n1", "must begin with `# @title What it does`"),
        ("\n# %%\n# @title Draw it\n1", "cell 3: it has a title, so head it"),
        ((PLUMBING + "# @title Draw it\n1\n") * 2, "two folded cells are called `# @title Draw it`"),
    ],
)
def test_a_fold_that_readers_could_not_name_is_refused(text, complaint):
    with pytest.raises(build.BuildError, match=complaint):
        parsed(text)


def test_the_name_of_a_task_gets_its_colour():
    (_, prose) = parsed("\n# %% [markdown]\n# A {{click}}, the {{next_category}} and {{colour}}.\n")
    blue, green = (TASK_STYLES[task]["color"] for task in ("click", "next_category"))
    click, category = f'style="color:{blue}">**click**<', f'style="color:{green}">**next category**<'
    assert click in prose.source and category in prose.source and "{{colour}}" in prose.source


def test_shares_sum_to_one_and_follow_what_is_seen():
    plain, folded = shares(page(code=40, picture=300)), shares(page(code=40, folded=True, picture=300))
    assert sum(plain.values()) == pytest.approx(1) and sum(folded.values()) == pytest.approx(1)
    assert folded["code"] < 0.1 < plain["code"] and folded["pictures"] > plain["pictures"]
    assert shares(page(printed=30))["print"] > 0.4
    wide = v4.new_notebook(cells=[v4.new_markdown_cell(f"![x](data:image/png;base64,{png(1740, 400)})")])
    assert 0.5 < shares(wide)["pictures"] < 1  # 200 high, as the page shrinks it


def test_shares_of_a_small_page():
    cell = v4.new_code_cell(
        "# @title Draw it\n" + "x = 1\n" * 30, metadata={"jupyter": {"source_hidden": True}}
    )
    cell.outputs = [
        v4.new_output(
            "display_data", {"image/png": png(1740, 800)}
        ),  # 400 high on the page, and 10 around it
        v4.new_output("stream", text="one\ntwo\n"),
        v4.new_output("display_data", {"text/html": "<table><tr><td>1</td></tr><tr><td>2</td></tr></table>"}),
    ]
    cells = [v4.new_markdown_cell("# A title\n\nA line."), v4.new_code_cell("a\nb\nc"), cell]
    heights = {"code": 24 + 70, "prose": 52 + 22 + 14 + 12, "pictures": 410, "tables": 62, "print": 42}
    expected = {kind: height / sum(heights.values()) for kind, height in heights.items()}
    assert shares(v4.new_notebook(cells=cells)) == pytest.approx(expected, abs=0.01)


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
