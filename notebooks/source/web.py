"""The course as pages that need no kernel: ``python notebooks/source/build.py --site OUT``.

nbconvert writes each executed notebook by ``web/page.html.j2``; formulas become MathML. An explorer hands over its
states, drawn (``states.py``); a page holds the first one, and of the others what differs from it, among which
``web/move.js`` picks.
A page is one file: style, script, pictures and states are inside, so no request leaves it.
"""

from __future__ import annotations

import base64
import html
import io
import json
import math
import re
from pathlib import Path

import latex2mathml.converter
import nbformat
import numpy as np
from nbconvert.exporters import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from nbformat import NotebookNode
from PIL import Image
from pygments.formatters import HtmlFormatter

from mtl_helpers.widgets.figures import minus
from states import STATES

__all__ = ["demo", "write_site"]

WEB = Path(__file__).resolve().parent / "web"
LEVEL = 17  # what moves has 16 levels of each colour
PNG = re.compile(r"data:image/png;base64,([A-Za-z0-9+/=\s]+)")
HOME = {"index.html": "The course", "glossary.html": "Glossary"}
TITLE = "Multi-task learning for recommender systems"


# --- text ---------------------------------------------------------------------------------------------------


class Renderer(IPythonRenderer):
    """Markdown with formulas as MathML, which browsers draw by themselves, and links to pages, not to notebooks."""

    def block_math(self, body: str) -> str:
        formula = latex2mathml.converter.convert(body, display="block")
        return formula.replace("<mi>log</mi>", '<mo form="prefix" lspace="0.17em" rspace="0.17em">log</mo>')

    def inline_math(self, body: str) -> str:
        return self.block_math(body).replace('display="block"', 'display="inline"')

    def link(self, text: str, url: str, title: str | None = None) -> str:
        return super().link(text, re.sub(r"^([\w-]+)\.(ipynb|md)(?=#|$)", r"\1.html", url), title)


def style() -> str:
    light, dark = (
        HtmlFormatter(style=name).get_style_defs(".highlight") for name in ("default", "github-dark")
    )
    own = (WEB / "style.css").read_text(encoding="utf-8")
    return f"{light}\n@media (prefers-color-scheme: dark) {{\n{dark}\n}}\n{own}"


# --- demos --------------------------------------------------------------------------------------------------


def decode(png: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(png)))


def webp(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", lossless=True, method=4)
    return base64.b64encode(buffer.getvalue()).decode()


def over(first: np.ndarray, pixels: np.ndarray) -> list | None:
    """What differs from the first picture: its left, top, width and height in percent, and a WebP; None if nothing."""
    differs = (pixels != first).any(axis=2)
    rows, columns = np.flatnonzero(differs.any(axis=1)), np.flatnonzero(differs.any(axis=0))
    if not len(rows):
        return None
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    few = np.round(pixels / LEVEL) * LEVEL  # white stays white: nothing of the first picture shines through
    part = np.dstack([few, differs * 255])[top:bottom, left:right].astype(np.uint8)
    part[part[..., 3] == 0] = 0
    height, width = differs.shape
    place = left / width, top / height, (right - left) / width, (bottom - top) / height
    return [*(round(100 * float(share), 4) for share in place), webp(Image.fromarray(part))]


def knob(control: dict, at: int) -> str:
    label, stops = html.escape(control["label"]), control["stops"]
    if control["menu"]:
        options = "".join(
            f'<option value="{i}"{" selected" * (i == at)}>{html.escape(stop)}</option>'
            for i, stop in enumerate(stops)
        )
        return f'<label><span>{label}</span><select disabled autocomplete="off">{options}</select></label>'
    slider = f'<input type="range" min="0" max="{len(stops) - 1}" value="{at}" disabled autocomplete="off">'
    value = f'<b aria-hidden="true">{html.escape(stops[at])}</b>'
    return f"<label><span>{label}</span>{slider}{value}</label>"


def demo(drawn: dict) -> str:
    """The HTML of an explorer from its drawn states."""
    for control in drawn["controls"]:
        control["label"], control["stops"] = (
            minus(control["label"]),
            [minus(stop) for stop in control["stops"]],
        )
    states, layers = drawn["states"], []
    pictures = [np.asarray(decode(state.pop("png")).convert("RGB")) for state in states]
    for state, picture in zip(states, pictures, strict=True):
        layer = over(pictures[0], picture)
        if layer is not None and layer not in layers:
            layers.append(layer)
        state["layer"] = None if layer is None else layers.index(layer)
    ends = [state.pop("ends") for state in states]
    if len(states) == math.prod(len(control["stops"]) for control in drawn["controls"]):
        ends = None  # no control moves another one
    data = json.dumps({**drawn, "layers": layers, "ends": ends}, ensure_ascii=False, separators=(",", ":"))
    height, width, _ = pictures[0].shape
    readings = [html.escape(state["reading"]) for state in states]
    knobs = "".join(map(knob, drawn["controls"], states[0]["at"]))
    size = f'width="{width}" height="{height}" decoding="sync"'
    return (
        f'<figure class="demo"><div class="knobs">{knobs}</div><div class="stage"><div>'
        f'<img src="data:image/webp;base64,{webp(Image.fromarray(pictures[0]))}" alt="" {size}>'
        f'<img class="over" alt="" hidden decoding="sync"></div></div>'
        f'<figcaption><span role="status">{readings[0]}</span>'
        f'<span class="longest" aria-hidden="true">{max(readings, key=len)}</span></figcaption>'
        f'<script type="application/json">{data.replace("<", chr(92) + "u003c")}</script></figure>'
    )


# --- pages --------------------------------------------------------------------------------------------------


def settle(notebook: NotebookNode) -> tuple[int, int]:
    """Turns widgets into what moves or says that it needs a kernel; how many demos move, how many widgets do not."""
    moving = still = 0
    for cell in notebook.cells:
        if cell.source.startswith("# @title "):
            title, _, cell.source = cell.source.removeprefix("# @title ").partition("\n")
            cell.metadata.update(title=title, alt=title)
        for data in (output.get("data", {}) for output in cell.get("outputs", [])):
            guess = data.get("text/markdown", "").startswith("**Your guess:**")
            is_demo, drawn = STATES in data, data.pop(STATES, None)
            moving, still = moving + bool(drawn), still + (guess or (is_demo and not drawn))
            if guess:
                data["text/markdown"] += " *(Noted and compared in a running notebook only.)*"
            elif drawn:
                data["text/html"] = demo(drawn)
            elif is_demo:
                said = "This demo needs a kernel: open the notebook in JupyterLab or on Colab to move it."
                picture = f'src="data:image/png;base64,{data["image/png"]}" width="860"'
                alt = html.escape(data["text/plain"])
                data["text/html"] = f'<img {picture} alt="{alt}"><p class="needs-kernel">{said}</p>'
    return moving, still


def write_page(notebook: NotebookNode, path: Path, links: dict[str, str], title: str) -> None:
    """Writes one notebook, executed and cleaned, as a page; ``links`` are address -> text."""
    exporter = HTMLExporter(template_name="classic", template_file=str(WEB / "page.html.j2"))
    exporter.exclude_input_prompt = exporter.exclude_output_prompt = True
    exporter.register_filter(
        "markdown2html", lambda text: MarkdownWithMath(Renderer(escape=False)).render(text)
    )
    resources = {
        "title": title,
        "style": style(),
        "script": (WEB / "move.js").read_text(encoding="utf-8"),
        "links": "".join(f'<a href="{url}">{html.escape(text)}</a>' for url, text in links.items()),
    }
    page, _ = exporter.from_notebook_node(notebook, resources)
    page = PNG.sub(lambda png: f"data:image/webp;base64,{webp(decode(png[1]))}", page)  # smaller by a third
    path.write_text(page, encoding="utf-8")


def headline(notebook: NotebookNode) -> str:
    return notebook.cells[0].source.splitlines()[0].lstrip("# ")


def write_site(books: dict[str, NotebookNode], glossary: str, out: Path) -> None:
    """Pages of the notebooks by name, executed and cleaned, with an index and the glossary."""
    out.mkdir(parents=True, exist_ok=True)
    names, rows = list(books), []
    for at, (name, book) in enumerate(books.items()):
        moving, still = settle(book)
        exercises = sum(cell.source.startswith("check(") for cell in book.cells if cell.cell_type == "code")
        note = f"This page needs no kernel. Demos that move here, too: {moving}. What needs a kernel: guesses and "
        note += f"larger demos, which are marked ({still}), and exercises ({exercises}); for these start the notebook "
        note += "in JupyterLab or on Colab."
        promise = " ".join(book.cells[0].source.split("\n\n")[1].removeprefix("**Promise.** ").split())
        rows.append(
            f"| {name[:2]} | [{headline(book).split(' · ')[-1]}]({name}.html) | {promise} | {moving} |"
        )
        book.cells.insert(1, nbformat.v4.new_markdown_cell(f'<p class="note">{note}</p>'))
        links = HOME | {
            f"{other}.html": f"← {headline(books[other])}" for other in names[max(at - 1, 0) : at]
        }
        links |= {f"{other}.html": f"{headline(books[other])} →" for other in names[at + 1 : at + 2]}
        write_page(book, out / f"{name}.html", links, headline(book))
    table = "\n".join(["| | notebook | promise | demos that move here |", "|---|---|---|---|", *rows])
    welcome = f"# {TITLE}\n\n" + (WEB / "welcome.md").read_text(encoding="utf-8") + "\n" + table
    for stem, text in (("index", welcome), ("glossary", glossary)):
        page = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(text)])
        write_page(page, out / f"{stem}.html", HOME, TITLE)
