"""A JupyterLab and a Chromium for the browser tests; without them the tests are skipped, and say why."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

HERE = str(Path(__file__).parent)
sys.path.insert(0, HERE)

from lab import DEMOS, EXPLORERS, LIVE, Book, Lab, missing, open_browser, write_notebook  # noqa: E402

WRITTEN = (DEMOS, LIVE.format("a"), LIVE.format("b"))
SETUP = (
    f"# @title Setup\nimport sys; sys.path[:0] = ['..', {HERE!r}]\n"
    "import widget_demos\n"
    "from mtl_helpers.notebook import start; start()"
)
GUESSES = (
    "asked = widget_demos.guess('How far?', unit='AUC'); asked",
    "named = widget_demos.guess('Who?', choices=['click', 'purchase']); named",
    "print(asked.answer(0.9).data, named.answer('purchase').data)",
)
BROKEN = """\
from mtl_helpers.widgets import Explorer, dropdown, figure, slider
fig = figure(2)
line, = fig.subplots().plot([0], [0], "o", animated=True)

def show(state):
    line.set(data=([0], [0.04 * (1 - state["w"])]), color=state["color"], markersize=20 if state["big"] else 5)
    reciprocal = 1 / round(1 - state["w"], 6)
    return f"1 / (1 - w) is {reciprocal:.2f}, a {'big' if state['big'] else 'small'} {state['color']} point"

controls = [slider("w", "weight", 0, 1, 0.9, step=0.1), dropdown("color", "color", ["red", "blue"])]
controls += [dropdown("big", "big", [False, True])]
Explorer(fig, controls, show, title="An update that fails at w = 1")"""


@pytest.fixture(scope="module")  # not longer: while Playwright is open, asyncio.run() does not work elsewhere
def lab(tmp_path_factory):
    if reason := missing():
        pytest.skip(reason)
    root = tmp_path_factory.mktemp("course")
    demos = [f"widget_demos.{name}()" for name in EXPLORERS]
    write_notebook(root / DEMOS, [SETUP, *demos, BROKEN, *GUESSES])
    for copy in "ab":
        cells = [SETUP, "live = widget_demos.live(); live", "print(live.frame().to_json(orient='split'))"]
        write_notebook(root / LIVE.format(copy), cells)
    server = Lab(root, FAST="1")
    yield server
    server.stop()


@pytest.fixture(scope="module")  # not longer: while Playwright is open, asyncio.run() does not work elsewhere
def browser(lab):
    with open_browser() as chromium:
        yield chromium


@pytest.fixture(scope="module")
def demo_book(browser, lab):
    """Opens one of the notebooks written above and runs it, once for all tests of a module."""
    books: dict[str, Book] = {}

    def opened(path: str) -> Book:
        if path not in books:
            books[path] = Book(browser, lab, path)
            books[path].run_all()
        return books[path]

    yield opened
    close(books.values())


@pytest.fixture
def open_book(browser, lab, demo_book):
    """Opens any notebook and runs it; those of the course are closed, kernel and all, after the test."""
    books = []

    def opened(path: str) -> Book:
        if path in WRITTEN:
            return demo_book(path)
        books.append(Book(browser, lab, path))
        books[-1].run_all()
        return books[-1]

    yield opened
    close(books)


def close(books) -> None:
    """Closes notebooks; fails if a request left the machine."""
    foreign = [url for book in books for url in book.foreign]
    for book in books:
        book.close()
    assert not foreign, f"requests that left the machine: {foreign}"
