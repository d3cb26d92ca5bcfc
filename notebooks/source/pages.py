"""How a notebook's page looks: its tasks' colours, and how much of it is code, prose, pictures, tables and print.

Heights are estimated in pixels, as in JupyterLab at a window of 1,300 px. A folded cell counts as its bar.
"""

from __future__ import annotations

import base64
import re
import struct
import sys
from pathlib import Path

from nbformat import NotebookNode

sys.path.insert(
    0, str(Path(__file__).resolve().parents[2])
)  # this copy's package, wherever another is installed

from mtl_helpers.widgets.figures import TASK_STYLES

LIMITS = {"code": (0.0, 0.38), "pictures": (0.18, 1.0), "print": (0.0, 0.06)}
"""Smallest and largest share of a page's height."""
PICTURE, WIDTH, LETTERS = 300, 870, 118  # height where none is told, width of a page, letters of a line
PNG = re.compile(r"data:image/png;base64,([A-Za-z0-9+/=]+)")

TASK = re.compile(r"\{\{(" + "|".join(TASK_STYLES) + r")\}\}")


def color_tasks(text: str) -> str:
    """Each ``{{task}}`` as bold words in the task's colour; GitHub drops the colour and keeps the words."""
    span = '<span style="color:{}">**{}**</span>'
    return TASK.sub(lambda task: span.format(TASK_STYLES[task[1]]["color"], task[1].replace("_", " ")), text)


def png_height(encoded: str, told: float | None = None) -> float:
    """Height on the page: as told, else the picture's own, shrunk to the page's width."""
    width, height = struct.unpack(">II", base64.b64decode(encoded[:64])[16:24])
    return told or height * min(1.0, WIDTH / width)


def prose_height(text: str) -> float:
    lines = [re.sub(r"\(http[^)]*\)", "", line) for line in text.splitlines() if line.strip()]
    heights = [52 if line.startswith("#") else 22 * (1 + len(line) // LETTERS) for line in lines]
    return sum(heights) + 14 * text.count("\n\n") + 12


def markup(text: str) -> tuple[str, float]:
    """A shown text as its kind and height, when it is HTML."""
    pictures = PNG.findall(text)
    if pictures or "<svg" in text:
        return "pictures", sum(map(png_height, pictures)) + PICTURE * text.count("<svg")
    if "<tr" in text:
        return "tables", 25 * text.count("<tr") + 12
    return "print", 20 * (1 + len(re.sub(r"<[^>]+>", "", text)) // LETTERS)


def shown(output: NotebookNode) -> tuple[str, float]:
    """An output's kind and height."""
    data = output.get("data", {})
    if "image/png" in data:
        told = output.metadata.get("image/png", {}).get("height")
        return "pictures", png_height(data["image/png"], told) + 10
    if "image/svg+xml" in data:
        return "pictures", PICTURE
    if "text/html" in data:
        return markup(data["text/html"])
    if "text/markdown" in data:
        return "prose", prose_height(data["text/markdown"])
    text = output.get("text", data.get("text/plain", "")).rstrip("\n")
    return "print", 17 * (text.count("\n") + 1) + 8 if text.strip() else 0


def shares(notebook: NotebookNode) -> dict[str, float]:
    """Share of the page's height of each kind; they sum to 1."""
    heights = dict.fromkeys(("code", "prose", "pictures", "tables", "print"), 0.0)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            heights["prose"] += prose_height(
                re.sub(r"data:image[^\")]*|<svg.*?</svg>", "", cell.source, flags=re.S)
            )
            heights["pictures"] += sum(map(png_height, PNG.findall(cell.source)))
            heights["pictures"] += PICTURE * len(re.findall(r"<svg|!\[[^\]]*\]\((?!data:)", cell.source))
            continue
        folded = cell.metadata.get("jupyter", {}).get("source_hidden")
        heights["code"] += 24 if folded else 18 * (cell.source.count("\n") + 1) + 16
        for kind, height in map(shown, cell.outputs):
            heights[kind] += height
    total = sum(heights.values()) or 1.0
    return {kind: height / total for kind, height in heights.items()}


def describe(page: dict[str, float]) -> str:
    return ", ".join(f"{kind} {share:.0%}" for kind, share in page.items())


def too_much(page: dict[str, float]) -> list[str]:
    """Which shares lie beyond their limits, in words."""
    return [
        f"{kind} takes {page[kind]:.0%} of the page, expected {low:.0%} to {high:.0%}"
        for kind, (low, high) in LIMITS.items()
        if kind in page and not low <= page[kind] <= high
    ]
