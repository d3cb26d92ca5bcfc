"""Built notebooks whose exercises are solved, and a run of one."""

from __future__ import annotations

import ast
import inspect
import os
from pathlib import Path

import nbformat

from execute import execute
from mtl_helpers.exercises import all_exercises

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))


def solved(path: Path) -> nbformat.NotebookNode:
    """A notebook in which the solution of each exercise, as its reader sees it, follows the stub at once."""
    notebook = nbformat.read(path, as_version=4)
    for exercise in all_exercises([path.stem[:2]]).values():
        (cell,) = (cell for cell in notebook.cells if f"\ndef {exercise.name}(" in f"\n{cell.source}")
        lines = cell.source.splitlines()
        (stub,) = (node for node in ast.parse(cell.source).body if getattr(node, "name", "") == exercise.name)
        lines[stub.end_lineno : stub.end_lineno] = [
            "",
            "",
            *inspect.getsource(exercise.reference).splitlines(),
        ]
        cell.source = "\n".join(lines)
    return notebook


def run(notebook: nbformat.NotebookNode) -> None:
    """Run a notebook with FAST=1 where the notebooks lie; an exercise that is not solved ends it."""
    env = {name: value for name, value in os.environ.items() if name != "MTL_DEVICE"}
    execute(notebook, NOTEBOOKS[0].parent, env | {"FAST": "1", "MTL_BUILD": "1", "MTL_STRICT": "1"})
