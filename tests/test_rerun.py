"""Readers press Run on a cell more than once, and start in the middle after a restart."""

from __future__ import annotations

import copy
import os
from pathlib import Path

import nbformat
import pytest

from execute import CellFailed, execute

ROOT = Path(__file__).resolve().parents[1]
FAST = {**os.environ, "FAST": "1", "MTL_BUILD": "1"}


def read(name: str) -> nbformat.NotebookNode:
    (path,) = (ROOT / "notebooks").glob(f"{name}_*.ipynb")
    return nbformat.read(path, as_version=4)


def again(cell: nbformat.NotebookNode) -> nbformat.NotebookNode:
    twin = copy.deepcopy(cell)
    twin.id = f"{cell.id[:8]}-too"
    return twin


@pytest.mark.slow
@pytest.mark.parametrize("name", ["03"])
def test_every_cell_may_be_run_twice(name):
    notebook, cells = read(name), []
    for cell in notebook.cells:
        cells.append(cell)
        if cell.cell_type == "code":
            cells.append(again(cell))
    notebook.cells = cells
    execute(notebook, ROOT / "notebooks", FAST)


@pytest.mark.slow
def test_after_a_restart_the_missing_name_is_named_and_the_top_cell_can_be_run_again():
    notebook = read("00")
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    notebook.cells = code[len(code) // 2 :]
    with pytest.raises(CellFailed, match="name '.+' is not defined|No module named 'mtl_helpers'"):
        execute(notebook, ROOT / "notebooks", FAST)
    notebook.cells = [code[0], again(code[0])]
    execute(notebook, ROOT / "notebooks", FAST)
