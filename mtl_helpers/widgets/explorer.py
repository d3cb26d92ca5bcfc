"""The one mechanism under every demo of the course: ipywidgets controls that drive a figure.

A demo is a figure with persistent artists, a few controls, and a function that moves the artists to a state:

    state (name -> value)  ->  update(state) moves artists, returns one line  ->  PNG  ->  <img> in the notebook

The picture goes into one ``HTML`` widget as a data URI, so a move costs one message and never a blank frame. Taught in
notebook 00 (the first slider). Written for ipywidgets 7 and 8.
"""

from __future__ import annotations

import base64
import html
import math
import struct
import sysconfig
import textwrap
import traceback
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ipywidgets
import numpy as np
from ipywidgets import Widget
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from mtl_helpers.widgets.figures import WIDTH, minus

__all__ = ["Explorer", "Stage", "choice_slider", "dropdown", "encode_png", "slider", "undefined"]

State = dict[str, Any]
TRACK, NARROW = 190, 130  # pixels of a slider and its number, at least; and under headings
# ipywidgets gives slider handles no name; a picture beside them does, as soon as it is shown.
NAMING = (
    "setTimeout(() => this.closest('.widget-vbox')?.querySelectorAll('.widget-hslider').forEach(s => "
    "s.querySelector('[role=slider]')?.setAttribute('aria-label', s.querySelector('label').textContent)), 200)"
)
PIXEL = "R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"
NAMES_SLIDERS = f'<img alt="" hidden src="data:image/gif;base64,{PIXEL}" onload="{NAMING}">'
SHOWN = "max-width:100%;height:auto;border-radius:6px"
LAYOUT = (
    "<style>.mtl-knobs .widget-readout{min-width:44px}.mtl-knobs .widget-html{height:20px}"
    ".mtl-knobs .widget-html-content{line-height:20px}"
    ".mtl-beside{display:grid!important;grid-template-columns:minmax(270px,1fr) 2.1fr;gap:0 14px;max-width:900px}"
    ".mtl-beside>.widget-html,.mtl-beside>.widget-html>div,.mtl-beside .mtl-demo{display:contents}"
    ".mtl-beside .mtl-demo>:not(.mtl-above){grid-column:1/-1}"
    ".mtl-beside .jupyter-button{width:auto!important;padding:0 7px;height:25px;line-height:25px;font-size:12px}"
    ".mtl-beside .widget-hslider{height:26px;margin:0 2px}</style>"
)


def slider(
    name: str, label: str, low: float, high: float, value: float, *, step: float = 0.01, unit: str = "", fmt: str = ""
) -> Widget:  # fmt: skip
    """A slider from ``low`` to ``high`` in steps; whole numbers when ``step`` is an int.

    ``value`` is its start, put on the nearest step (ValueError outside the range); ``fmt`` formats it (``".2f"``).
    """
    whole = isinstance(step, int)
    fmt = fmt or ("d" if whole else f".{max(1, math.ceil(-math.log10(step) - 1e-9))}f")

    def settled(wanted: float) -> float:
        if not low - 1e-9 <= wanted <= high + 1e-9:
            raise ValueError(f"{name!r} goes from {low:g} to {high:g} and got {wanted!r}")
        on_step = low + round((wanted - low) / step) * step
        stop = min((on_step, high), key=lambda stop: (stop > high + 1e-9, abs(stop - wanted)))
        return round(stop) if whole else round(stop, 10)

    kind, ends = ipywidgets.IntSlider if whole else ipywidgets.FloatSlider, {"min": low, "max": high}
    made = _control(kind, name, label, unit, **ends, step=step, value=settled(value), readout_format=fmt)
    made.settled, made.said = settled, lambda value: format(value, fmt)
    return made


def choice_slider(
    name: str, label: str, values: Sequence[Any], value: Any = None, *, unit: str = "", fmt: str = ""
) -> Widget:
    """A slider that stops at the given values only, such as the label budgets that were really trained."""
    return _choice(ipywidgets.SelectionSlider, name, label, values, value, unit, fmt)


def dropdown(name: str, label: str, options: Sequence[Any], value: Any = None) -> Widget:
    """A menu of options."""
    return _choice(ipywidgets.Dropdown, name, label, options, value)


def _choice(kind: type, name: str, label: str, values: Any, value: Any, unit="", fmt="") -> Widget:
    values = [each.item() if isinstance(each, np.generic) else each for each in values]
    texts = [format(each, fmt) for each in values]

    def settled(wanted: Any) -> Any:
        for each in values:
            if each == wanted or (isinstance(each, float) and math.isclose(each, wanted, rel_tol=1e-6)):
                return each
        raise ValueError(f"{name!r} takes one of {values} and got {wanted!r}")

    pairs, start = list(zip(texts, values, strict=True)), values[0] if value is None else settled(value)
    made = _control(kind, name, label, unit, options=pairs, value=start)
    made.settled, made.said = settled, lambda value: texts[values.index(value)]
    return made


def _control(kind: type, name: str, label: str, unit: str = "", **options: Any) -> Widget:
    """A widget with a ``name``. It gets ``settled``, which puts a value on its stops, as a browser has it, which rounds
    to seven digits (ValueError outside them), and ``said``, a value as captions and alt texts have it."""
    label = f"{label} ({unit})" if unit else label
    made = kind(description=label, layout={"width": "auto"}, **options)
    made.name = name
    return made


def encode_png(pixels: np.ndarray) -> bytes:
    """PNG bytes of an (height, width, 3 or 4) uint8 array, without its alpha; in a third of the time Pillow takes."""
    rows = np.ascontiguousarray(pixels[..., :3]).reshape(len(pixels), -1)
    filtered = np.empty((rows.shape[0], rows.shape[1] + 1), np.uint8)
    filtered[:, 0] = 2  # PNG filter type "up"
    filtered[0, 1:] = rows[0]
    np.subtract(rows[1:], rows[:-1], out=filtered[1:, 1:])
    packer = zlib.compressobj(1, zlib.DEFLATED, 15, 9)
    body = packer.compress(filtered) + packer.flush()
    header = struct.pack(">IIBBBBB", rows.shape[1] // 3, rows.shape[0], 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in ((b"IHDR", header), (b"IDAT", body), (b"IEND", b""))
    )


class Stage:
    """A figure drawn again and again: only its ``animated=True`` artists move, over a cached background.

    A layout engine runs once, at the first draw, so axes never jump. An update that touches anything not animated
    marks the figure stale (matplotlib does), and the next draw is a full one; ``full_draws`` counts those.
    """

    def __init__(self, figure: Figure) -> None:
        self.figure, self.canvas, self.full_draws = figure, FigureCanvasAgg(figure), 0

    def draw(self) -> np.ndarray:
        """The figure as it stands: (height, width, 4) uint8, a view that the next draw overwrites."""
        if not self.full_draws and self.figure.get_layout_engine() is not None:
            self.figure.draw_without_rendering()
            self.figure.set_layout_engine("none")
        if self.figure.stale or not self.full_draws:
            self.canvas.draw()
            self.full_draws += 1
            self._background = self.canvas.copy_from_bbox(self.figure.bbox)
            found = self.figure.findobj(lambda artist: artist.get_animated())
            self._moving = sorted(found, key=lambda artist: artist.get_zorder())
        else:
            self.canvas.restore_region(self._background)
        for artist in self._moving:
            artist.draw(self.canvas.get_renderer())
        return np.asarray(self.canvas.buffer_rgba())


def undefined(values: Mapping[str, float]) -> str:
    """Names the NaN among metrics: ``"undefined: buy AUC"``, or nothing when every number is finite."""
    names = [name for name, value in values.items() if not math.isfinite(value)]
    return "undefined: " + ", ".join(names) if names else ""


class Explorer:
    """Controls above, a figure below, one line that reads it. The last expression of a cell shows it.

    Parameters
    ----------
    figure : made with ``matplotlib.figure.Figure``; mark what moves ``animated=True``.
    controls : from :func:`slider`, :func:`choice_slider`, :func:`dropdown`, with distinct names; or ``{heading:
        controls}``, a row of them under each heading.
    update : ``update(state)`` moves artists to the state (control name -> value) and returns the reading; or the
        reading, what else a screen reader should hear of the picture, and HTML to stand above it, its text escaped.
    title : what the picture shows, the start of its alt text.
    link : ``link(state, moved) -> state`` settles the other controls when ``moved`` changed, for weights that add up
        to one. buttons : ``(label, callback)`` pairs, shown before Reset; one labelled "Reset" takes its place.
    beside : the controls stand in a column beside what ``update`` puts above the picture.

    An error inside ``update`` at construction is raised. Later it appears under the picture, with the line of yours
    that raised it, and in ``.error``; it goes at the next state that works. Without a kernel (GitHub) the stored
    picture of the first state is what is seen.

    Drive it without a browser: ``explorer.set(weight=.3)``, then ``.state``, ``.reading``, ``.error``, ``.png()``;
    ``.first`` is its first state.
    """

    def __init__(
        self, figure: Figure, controls: Iterable[Widget] | Mapping[str, Iterable[Widget]],
        update: Callable[[State], str | tuple[str, ...]], *, title: str,
        link: Callable[[State, str], State] = lambda state, moved: state,
        buttons: Sequence[tuple[str, Callable[[], None]]] = (), beside: bool = False,
    ) -> None:  # fmt: skip
        self.groups = dict(controls) if isinstance(controls, Mapping) else {"": list(controls)}
        every = [control for row in self.groups.values() for control in row]
        self.controls = {control.name: control for control in every}
        if len(self.controls) < len(every):
            raise ValueError(f"controls need distinct names; got {[control.name for control in every]}")
        self.title, self.update, self.link = title, update, link
        self.figure, self.stage, self.error, self._longest = figure, Stage(figure), "", ""
        self.state = self.first = {name: control.value for name, control in self.controls.items()}
        self._picture = ipywidgets.HTML()
        self._draw()
        self._static = self._captioned()
        figure.set_dpi(100)  # what moves has fewer pixels than what is stored, so that a drag is quick
        self.stage = Stage(figure)
        self._draw()
        self.widget = ipywidgets.VBox([self._knobs(buttons), self._picture])
        if beside:
            self.widget.add_class("mtl-beside")
        for name, control in self.controls.items():
            control.observe(lambda change, name=name: self._moved(name, change["new"]), names="value")

    def set(self, **values: Any) -> Explorer:
        """Moves controls as a reader would, in the given order. Raises KeyError or ValueError on a bad one."""
        state = self.state
        for name, value in values.items():
            if name not in self.controls:
                raise KeyError(f"no control {name!r}; there are {list(self.controls)}")
            state = self.link({**state, name: self.controls[name].settled(value)}, name)
        self._accept(state)
        return self

    def go(self, **values: Any) -> None:
        """Puts controls there as they are, past ``link``."""
        self._accept(self.state | values)

    def reset(self) -> None:
        """Back to the first state."""
        self._accept(self.first)

    def refresh(self) -> None:
        """Draws the present state again, after the data behind the figure changed."""
        self.error = ""
        self._press(self._draw)

    def show_error(self, exception: BaseException) -> None:
        """Puts an error under the picture, until the next state that works."""
        self.error = explain(exception)
        self._picture.value = self.html()

    def _press(self, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as exception:  # shown to the reader, who may be mid-drag: the widget must outlive it
            self.show_error(exception)

    def _moved(self, name: str, value: Any) -> None:
        value = self.controls[name].settled(value)
        if value != self.state[name]:  # the reader's hand, not ours
            self._accept(self.link({**self.state, name: value}, name))

    def _accept(self, state: State) -> None:
        self.state = {name: control.settled(state[name]) for name, control in self.controls.items()}
        for name, control in self.controls.items():
            if control.settled(control.value) != self.state[name]:
                control.value = self.state[name]
        self.refresh()

    def _draw(self) -> None:
        said = self.update(dict(self.state))
        self.reading, more, self._above = (said, "", "") if isinstance(said, str) else said
        self.reading = minus(self.reading)
        self._longest = max(self._longest, self.reading + self.reading[: len(self.reading) // 5], key=len)
        self._png = encode_png(self.stage.draw())
        said = {c.name: f"{c.description} = {c.said(c.value)}" for c in self.controls.values()}
        rows = {heading: ", ".join(said[c.name] for c in row) for heading, row in self.groups.items()}
        texts = (f"{heading}: {row}" if heading else row for heading, row in rows.items())
        self._settings = minus("; ".join(texts))
        self.alt = ". ".join(part for part in (self.title, self._settings, self.reading, more) if part)
        self._picture.value = self.html()

    def png(self) -> bytes:
        """The picture of the last state that worked."""
        return self._png

    def html(self) -> str:
        """Picture, reading and, if any, the error."""
        width, height = (self.figure.get_size_inches() * 100).round().astype(int)
        look = "color:#b00020;white-space:pre-wrap;margin:4px 0"
        problem = f'<pre class="mtl-error" role="alert" style="{look}">{html.escape(self.error)}</pre>'
        return (
            f'{LAYOUT}<figure class="mtl-demo" style="margin:0;max-width:{width}px">'
            f'<div class="mtl-above">{self._above}</div>'
            f'<img src="data:image/png;base64,'
            f'{base64.b64encode(self._png).decode("ascii")}" alt="{html.escape(self.alt)}" width="{width}" '
            f'height="{height}" decoding="sync" onload="{NAMING}" style="{SHOWN}">'
            f'<figcaption style="display:grid;line-height:1.35">'
            f'<span role="status" style="grid-area:1/1">{html.escape(self.reading)}</span>'
            f'<span aria-hidden="true" style="grid-area:1/1;visibility:hidden">{html.escape(self._longest)}</span>'
            f"</figcaption>{problem if self.error else ''}</figure>"
        )

    def _captioned(self) -> bytes:
        """The picture with the controls' values and the reading printed below, for readers without a kernel."""
        pixels = np.array(self.stage.draw())
        dpi, wide = self.figure.dpi, self.figure.get_figwidth()
        columns = max(40, int(wide * 100 / 7))
        lines = textwrap.wrap(f"[{self._settings}]", columns) + textwrap.wrap(self.reading, columns)
        strip = Figure(figsize=(wide, 0.18 * (len(lines) + 1)), dpi=dpi)
        look = {"va": "top", "fontsize": 8.6, "parse_math": False, "color": "#333333"}
        strip.text(0.01, 0.9, "\n".join(lines), **look)
        below = Stage(strip).draw()[:, : pixels.shape[1]]
        return encode_png(np.concatenate([pixels[:, : below.shape[1]], below]))

    def _knobs(self, buttons: Sequence[tuple[str, Callable[[], None]]]) -> Widget:
        """The controls in one grid of equal cells, under their headings; the buttons at the right end, Reset last."""
        wide = 8 + round(6.8 * max(len(control.description) for control in self.controls.values()))
        for control in self.controls.values():
            control.style.description_width = f"{wide}px"
        cell = wide + (NARROW if len(self.groups) > 1 else TRACK)
        columns = f"repeat(auto-fill, minmax(min(100%, {cell}px), 1fr))"
        layout = {"grid_template_columns": columns, "grid_gap": "0 12px"}
        layout |= {} if len(self.groups) > 1 else {"flex": f"1 1 {cell}px"}
        rows, self.buttons = [], {}
        for heading, row in self.groups.items():
            rows += [ipywidgets.HTML(f"<b>{html.escape(heading)}</b>")] if heading else []
            rows.append(ipywidgets.GridBox(list(row), layout=layout))
        for label, action in {**dict(buttons), "Reset": dict(buttons).get("Reset", self.reset)}.items():
            width = {"width": f"{44 + 7 * len(label)}px"}
            self.buttons[label] = pressed = ipywidgets.Button(description=label, layout=width)
            pressed.on_click(lambda _button, action=action: self._press(action))
        box = ipywidgets.HBox(
            [*self.buttons.values()], layout={"margin": "0 0 0 auto", "flex_flow": "row wrap"}
        )
        rows[0] = ipywidgets.HBox([rows[0], box], layout={"flex_flow": "row wrap"})
        made = ipywidgets.VBox(rows, layout={"max_width": f"{100 * WIDTH:.0f}px"})
        made.add_class("mtl-knobs")
        return made

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> tuple[dict, dict]:
        view = {"version_major": 2, "version_minor": 0, "model_id": self.widget.model_id}
        picture = {"image/png": base64.b64encode(self._static).decode("ascii")}
        said = {"text/plain": f"{self.title}. {self.reading}"}
        size = {"image/png": {"width": round(self.figure.get_figwidth() * 100)}}
        return {"application/vnd.jupyter.widget-view+json": view, **picture, **said}, size


def explain(exception: BaseException) -> str:
    """Type, message, and the reader's own line: the innermost one outside this package and installed libraries."""
    said, frames = f"{type(exception).__name__}: {exception}", traceback.extract_tb(exception.__traceback__)
    if not frames:
        return said
    paths = [sysconfig.get_paths()[key] for key in ("stdlib", "purelib", "platlib")]
    others = (str(Path(__file__).parents[1]), "<frozen", *paths)
    frame = ([each for each in frames if not each.filename.startswith(others)] or frames)[-1]
    return f"{said}\n  in {frame.name}, line {frame.lineno}: {frame.line}"
