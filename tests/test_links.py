"""Every link and path that a reader can follow within the repository leads somewhere."""

from __future__ import annotations

import base64
import re
from pathlib import Path

import jupytext
import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"\[[^\]]*\]\((?!https?:|mailto:|#)([^)\s#]+)(#[^)\s]*)?\)")
HTML = re.compile(r'(?:src|href)="(?!https?:|#)([^"#]+)()"')
NAMED = re.compile(r"`((?:tests|notebooks|mtl_helpers|datasets|\.ci|\.github)/[\w./-]+)`")
COMMAND = re.compile(r"python ((?:tests|notebooks)/[\w./-]+\.py)")
PAGES = [
    ROOT / "README.md",
    ROOT / "README.zh.md",
    ROOT / "tests" / "benchmarks" / "README.md",
    *sorted((ROOT / ".github").glob("*.md")),
    *sorted((ROOT / "datasets").rglob("*.md")),
]
PAGES += sorted((ROOT / "notebooks").glob("*.md"))
TEXTS = sorted((ROOT / "notebooks" / "source").glob("[0-9]*.py"))


def anchors(page: Path) -> set[str]:
    """The headings of a page, as GitHub and JupyterLab name them."""
    headings = re.findall(r"^#+ +(.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def broken(text: str, folder: Path) -> list[str]:
    found = []
    for target, anchor in LINK.findall(text) + HTML.findall(text):
        path = folder / target
        if not path.exists():
            found.append(target)
        elif anchor and path.suffix == ".md" and anchor[1:] not in anchors(path):
            found.append(target + anchor)
    found += [path for path in NAMED.findall(text) if "NN" not in path and not (ROOT / path).exists()]
    return found + [
        path for path in COMMAND.findall(text) if "NAME" not in path and not (ROOT / path).exists()
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_pages(page):
    assert broken(page.read_text(encoding="utf-8"), page.parent) == []


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: text.stem)
def test_notebooks(text):
    cells = jupytext.read(text, fmt="py:percent").cells
    prose = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    prose = re.sub(r"\$[^$]*\$", "", prose)  # brackets of a formula are no link
    assert broken(prose, ROOT / "notebooks") == []


def test_planted_faults_are_found():
    text = "[a](nowhere.md) [b](README.md#no-such-heading) `tests/nothing.py` and python tests/gone.py [c](https://x.y)"
    text += '<img src="gone.png">'
    assert broken(text, ROOT) == [
        "nowhere.md",
        "README.md#no-such-heading",
        "gone.png",
        "tests/nothing.py",
        "tests/gone.py",
    ]


@pytest.mark.parametrize(
    ("notebook", "says", "picture"),
    [
        ("05_ecommerce_case", "shop_dashboard(", "05_dashboard"),
        ("07_real_data", 'stored_picture(folder / "07_play_time.png"', "07_play_time"),
        ("07_real_data", 'stored_picture(folder / "07_leak.png"', "07_leak"),
    ],
)
def test_a_stored_picture_is_the_one_in_its_notebook(notebook, says, picture):
    """Built anew, the notebook has a new picture: copy it to notebooks/results."""
    cells = nbformat.read(ROOT / "notebooks" / f"{notebook}.ipynb", as_version=4).cells
    (cell,) = [cell for cell in cells if cell.cell_type == "code" and says in cell.source]
    stored = [output.data["image/png"] for output in cell.outputs if "image/png" in output.get("data", {})]
    kept = base64.b64encode((ROOT / "notebooks" / "results" / f"{picture}.png").read_bytes()).decode()
    assert [one.replace("\n", "") for one in stored] == [kept]
