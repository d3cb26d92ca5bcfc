"""Drawings: who shares what in each architecture of the course, and where in the course a notebook stands.

They lie ready in the folder ``pictures``, where ``notebooks/source/drawings.py`` puts them.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path
from xml.etree import ElementTree

__all__ = ["course_map", "draw"]

PICTURES = Path(__file__).parent / "pictures"


class Drawing:
    """What IPython shows: in an <img>, which JupyterLab shows of a notebook that it does not trust, too."""

    def __init__(self, name: str) -> None:
        known = sorted(path.stem for path in PICTURES.glob("*.svg"))
        if name not in known:
            raise ValueError(f"There is no drawing {name!r}: there are {', '.join(known)}.")
        self.svg = (PICTURES / f"{name}.svg").read_text(encoding="utf-8").strip()
        self.alt = ElementTree.fromstring(self.svg).get("aria-label")

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, str]:
        picture = f"data:image/svg+xml;base64,{base64.b64encode(self.svg.encode()).decode()}"
        shown = f'<img src="{picture}" alt="{escape(self.alt)}" style="max-width:100%">'
        return {"image/svg+xml": self.svg, "text/html": shown, "text/plain": self.alt}

    def __repr__(self) -> str:
        return self.alt


def draw(name: str, tasks: Sequence[str] = ("click", "purchase", "next_category")) -> Drawing:
    """Who shares what in an architecture, as a picture for these tasks."""
    return Drawing("-".join([name, *tasks]))


def course_map(here: str) -> Drawing:
    """The notebooks as stations on a line; those before ``here`` are ticked."""
    return Drawing(f"course-{here}")
