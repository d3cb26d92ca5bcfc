"""A JupyterLab and a Chromium for the browser tests; without them the tests are skipped, and say why."""

from __future__ import annotations

import nbformat
import pytest
from lab import (
    BROKEN,
    DEMOS,
    EXPLORERS,
    GUESSES,
    LIVE,
    SETUP,
    Book,
    Lab,
    missing,
    open_browser,
    write_notebook,
)
from solved import NOTEBOOKS, solved


@pytest.fixture(scope="module")  # not longer: while Playwright is open, asyncio.run() does not work elsewhere
def lab(tmp_path_factory):
    if reason := missing():
        pytest.skip(reason)
    root = tmp_path_factory.mktemp("course")
    demos = [f"widget_demos.{name}()" for name in EXPLORERS]
    write_notebook(root / DEMOS, [SETUP, *demos, BROKEN, *GUESSES])
    for copy in "ab":
        cells = [
            SETUP,
            "live = widget_demos.live(); live",
            "import json; print(json.dumps([live.used, live.shares]))",
        ]
        write_notebook(root / LIVE.format(copy), cells)
    server = Lab(root, FAST="1", MTL_STRICT="1", MTL_PROGRESS=str(root / "progress.json"))
    for path in NOTEBOOKS:
        nbformat.write(solved(path), root / "notebooks" / path.name)
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
        if path in (DEMOS, LIVE.format("a"), LIVE.format("b")):
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
