"""The one mechanism under every demo of the course: sliders that drive a figure.

A demo is a figure with persistent artists, a few controls, and a function that moves the artists to a state:

    state (name -> value)  ->  update(state) moves artists, returns one line  ->  PNG  ->  <img> in the notebook

The picture goes into one ``HTML`` widget as a data URI, so a move costs one message and never a blank frame. Artists
marked ``animated=True`` are drawn over a cached background; whatever else an update touches triggers one full redraw.
Taught in notebook 00 (the first slider); the demos built on it are in :mod:`mtl_helpers.widgets`.
"""

from __future__ import annotations

import base64
import html
import linecache
import math
import struct
import sysconfig
import textwrap
import traceback
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

__all__ = [
    "Control",
    "Explorer",
    "Stage",
    "choice_slider",
    "dropdown",
    "encode_png",
    "slider",
    "toggle",
    "undefined",
]

State = dict[str, Any]
MAX_SLIDERS = 4  # to a demo, or to a group of one
MAX_GROUPS = 3
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"


# --- controls ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Control:
    """One knob of a demo. Build it with :func:`slider`, :func:`choice_slider`, :func:`dropdown` or :func:`toggle`.

    ``options`` holds the allowed values of a choice; ``low``, ``high``, ``step`` bound a slider; ``fmt`` is the
    format of its number (``".2f"``).
    """

    name: str
    label: str
    kind: str
    value: Any
    low: float = 0.0
    high: float = 1.0
    step: float = 0.01
    options: tuple[Any, ...] = ()
    unit: str = ""
    fmt: str = ""
    hint: str = ""

    @property
    def is_slider(self) -> bool:
        return self.kind in ("slider", "choice_slider")

    @property
    def description(self) -> str:
        return f"{self.label} ({self.unit})" if self.unit else self.label

    def check(self, value: Any) -> Any:
        """The value as the control keeps it. Raises ValueError when the control cannot take it."""
        if self.kind == "toggle":
            return bool(value)
        if self.kind == "slider":
            number = float(value)
            if not self.low - 1e-9 <= number <= self.high + 1e-9:
                raise ValueError(f"{self.name!r} goes from {self.low} to {self.high} and got {value!r}")
            # A browser's slider stops at its steps and its end. Numbers between them would come back altered.
            steps = self.low + round((number - self.low) / self.step) * self.step
            number = min((steps, self.high), key=lambda stop: (stop > self.high + 1e-9, abs(stop - number)))
            return round(number) if isinstance(self.step, int) else round(number, 10)
        for option in self.options:
            if option == value:
                return option
        raise ValueError(f"{self.name!r} takes one of {list(self.options)} and got {value!r}")

    def same(self, a: Any, b: Any) -> bool:
        """Whether two values are one to the reader; a browser rounds a slider's numbers to seven digits."""
        return abs(a - b) < 1e-3 * self.step if self.kind == "slider" else a == b

    def text(self, value: Any) -> str:
        """The value in words, as slider, caption and alt text show it."""
        if self.kind == "toggle":
            return "on" if value else "off"
        return format(value, self.fmt) if self.fmt else str(value)

    def build(self) -> Any:
        """The ipywidgets widget, in terms that versions 7 and 8 share."""
        import ipywidgets

        common = {"description": self.description, "style": {"description_width": "initial"}}
        wide = {"layout": ipywidgets.Layout(width=f"{300 + 7 * len(self.description)}px", max_width="100%")}
        if self.kind == "slider":
            whole = isinstance(self.step, int)
            cls = ipywidgets.IntSlider if whole else ipywidgets.FloatSlider
            form = {} if whole else {"readout_format": self.fmt}
            made = cls(
                value=self.value,
                min=self.low,
                max=self.high,
                step=self.step,
                continuous_update=True,
                **form,
                **common,
                **wide,
            )
        elif self.kind == "choice_slider":
            pairs = [(self.text(option), option) for option in self.options]
            made = ipywidgets.SelectionSlider(
                options=pairs, value=self.value, continuous_update=True, **common, **wide
            )
        elif self.kind == "dropdown":
            pairs = [(self.text(option), option) for option in self.options]
            made = ipywidgets.Dropdown(options=pairs, value=self.value, **common)
        else:
            made = ipywidgets.Checkbox(value=self.value, description=self.description, indent=False)
        _tooltip(made, self.hint)
        return made


def slider(
    name: str,
    label: str,
    low: float,
    high: float,
    value: float,
    *,
    step: float = 0.01,
    unit: str = "",
    fmt: str = "",
    hint: str = "",
) -> Control:
    """A slider from ``low`` to ``high`` in steps; whole numbers when ``step`` is an int.

    ``value`` is its start, put on the nearest step. Raises ValueError when the range is empty or does not hold it.
    """
    if not (math.isfinite(low) and math.isfinite(high) and low < high and step > 0):
        raise ValueError(f"slider {name!r} needs low < high and step > 0, got {low}, {high}, {step}")
    if not fmt:
        fmt = "d" if isinstance(step, int) else f".{max(1, math.ceil(-math.log10(step) - 1e-9))}f"
    control = Control(name, label, "slider", value, low, high, step, unit=unit, fmt=fmt, hint=hint)
    return replace(control, value=control.check(value))


def choice_slider(
    name: str,
    label: str,
    values: Sequence[Any],
    value: Any = None,
    *,
    unit: str = "",
    fmt: str = "",
    hint: str = "",
) -> Control:
    """A slider that stops at the given values only, such as the label budgets that were really trained."""
    return _choice("choice_slider", name, label, values, value, unit, fmt, hint)


def dropdown(
    name: str,
    label: str,
    options: Sequence[Any],
    value: Any = None,
    *,
    unit: str = "",
    fmt: str = "",
    hint: str = "",
) -> Control:
    """A menu of options."""
    return _choice("dropdown", name, label, options, value, unit, fmt, hint)


def toggle(name: str, label: str, value: bool = False, *, hint: str = "") -> Control:
    """A box to tick."""
    return Control(name, label, "toggle", bool(value), hint=hint)


def _choice(
    kind: str, name: str, label: str, options: Sequence[Any], value: Any, unit: str, fmt: str, hint: str
) -> Control:
    kept = tuple(option.item() if isinstance(option, np.generic) else option for option in options)
    if not kept:
        raise ValueError(f"{name!r} needs at least one value to choose from")
    control = Control(name, label, kind, kept[0], options=kept, unit=unit, fmt=fmt, hint=hint)
    if value is None:
        return control
    return replace(control, value=control.check(value))


def _tooltip(widget: Any, text: str) -> None:
    """ipywidgets 8 names it ``tooltip``, 7 ``description_tooltip`` (its sliders have no ``tooltip``)."""
    if text:
        name = "tooltip" if widget.has_trait("tooltip") else "description_tooltip"
        setattr(widget, name, text)


# --- pictures ---------------------------------------------------------------------------------------------------


def encode_png(pixels: np.ndarray) -> bytes:
    """PNG bytes of an (height, width, 3 or 4) uint8 array; the alpha channel is dropped.

    Rows are stored as differences from the row above and packed at zlib's fastest level: for a 900x380 figure a
    third of the time that Pillow's fastest setting takes.
    """
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

    ``layout`` engines run once, at the first draw, and are then switched off, so axes never jump. An update that
    touches anything not animated marks the figure stale (matplotlib does this by itself), and the next draw is a
    full one. ``full_draws`` counts those.
    """

    def __init__(self, figure: Figure) -> None:
        self.figure = figure
        self.canvas = FigureCanvasAgg(figure)
        self.full_draws = 0
        self._background: Any = None
        self._moving: list[Any] = []

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.canvas.get_width_height()

    def draw(self) -> np.ndarray:
        """The figure as it stands: (height, width, 4) uint8, a view that the next draw overwrites."""
        if self.figure.stale or self._background is None:
            self._draw_background()
        else:
            self.canvas.restore_region(self._background)
        renderer = self.canvas.get_renderer()
        for artist in self._moving:
            artist.draw(renderer)
        return np.asarray(self.canvas.buffer_rgba())

    def png(self) -> bytes:
        return encode_png(self.draw())

    def _draw_background(self) -> None:
        if not self.full_draws and self.figure.get_layout_engine() is not None:
            self.figure.draw_without_rendering()
            self.figure.set_layout_engine("none")
        self.canvas.draw()
        self.full_draws += 1
        self._background = self.canvas.copy_from_bbox(self.figure.bbox)
        found = self.figure.findobj(lambda artist: artist.get_animated())
        self._moving = sorted(found, key=lambda artist: artist.get_zorder())


def undefined(values: Mapping[str, float]) -> str:
    """Names the NaN among metrics: ``"undefined: buy AUC"``, or nothing when every number is finite.

    >>> undefined({"click": .7, "buy": float("nan")})
    'undefined: buy'
    """
    names = [name for name, value in values.items() if value is None or not math.isfinite(value)]
    return "undefined: " + ", ".join(names) if names else ""


# --- the explorer -----------------------------------------------------------------------------------------------


class Explorer:
    """Controls above, a figure below, one line that reads it. The last expression of a cell shows it.

    Parameters
    ----------
    figure : an object-oriented ``matplotlib.figure.Figure``; mark what moves ``animated=True``.
    controls : at most four sliders, any number of menus and boxes, with distinct names.
    update : ``update(state)`` moves artists to the state (control name -> value) and returns the reading, or a pair:
        the reading, and what else a screen reader should hear of the picture (a list that it shows, say).
    title : what the picture shows, the start of its alt text.
    link : optional ``link(state, moved) -> state``: settles the other controls when ``moved`` changed, for weights
        that must add up to one.
    buttons : optional ``(label, callback)`` pairs, shown before Reset; one labelled "Reset" takes its place.
    groups : ``{heading: names of controls}`` for a demo with more sliders: a row of controls under each heading, at
        most three rows with at most four sliders each, so that a reader turns one group at a time.
    width : of the picture in the page, px; the figure's own width unless told.

    An error inside ``update`` at construction is raised. Later it appears under the picture, with the line of yours
    that raised it, and in ``.error``; it goes at the next state that works. Without a kernel (GitHub) the stored
    picture of the first state is what is seen.

    Drive it without a browser: ``explorer.set(weight=.3)``, then ``.state``, ``.reading``, ``.error``, ``.png()``.
    """

    def __init__(
        self,
        figure: Figure,
        controls: Iterable[Control],
        update: Callable[[State], str],
        *,
        title: str,
        link: Callable[[State, str], State] | None = None,
        buttons: Sequence[tuple[str, Callable[[], None]]] = (),
        groups: Mapping[str, Sequence[str]] | None = None,
        width: int | None = None,
    ) -> None:
        controls = list(controls)
        self.controls = {control.name: control for control in controls}
        if len(self.controls) < len(controls):
            raise ValueError(f"controls need distinct names, got {[control.name for control in controls]}")
        self.groups = _checked_groups(self.controls, groups)
        self.title, self.link, self.buttons = title, link, tuple(buttons)
        self.stage = Stage(figure)
        self.update = update
        self.error = ""
        self._state = self._initial()
        self._width = width or self.stage.size[0]
        self._widgets: dict[str, Any] = {}
        self._box: Any = None
        self._silent = False
        self._show(self.state)
        self._static = self._captioned()

    # state

    @property
    def figure(self) -> Figure:
        return self.stage.figure

    @property
    def state(self) -> State:
        """A copy of what the controls say now."""
        return dict(self._state)

    def set(self, **values: Any) -> Explorer:
        """Moves controls as a reader would, in the given order. Raises KeyError or ValueError on a bad one."""
        state = self.state
        for name, value in values.items():
            if name not in self.controls:
                raise KeyError(f"no control {name!r}; there are {list(self.controls)}")
            state[name] = self.controls[name].check(value)
            if self.link is not None:
                state = self.link(state, name)
        self._accept(state)
        return self

    def reset(self) -> None:
        """Back to the first state."""
        self._accept(self._initial())

    def refresh(self) -> None:
        """Draws the present state again, after the data behind the figure changed."""
        try:
            self._show(self.state)
            self.error = ""
        except Exception as exception:  # shown to the reader, who may be mid-drag: the widget must outlive it
            self.error = explain(exception)
        self._send()

    def show_error(self, exception: BaseException) -> None:
        """Puts an error under the picture, until the next state that works."""
        self.error = explain(exception)
        self._send()

    def _send(self) -> None:
        if self._box is not None:
            self._picture.value = self.html()

    def _show(self, state: State) -> None:
        said = self.update(state)
        self.reading, more = said if isinstance(said, tuple) else (str(said), "")
        self._png = self.stage.png()
        self._alt = ". ".join(part for part in (self.title, self.controls_text(), self.reading, more) if part)

    def _initial(self) -> State:
        return {name: control.value for name, control in self.controls.items()}

    def _accept(self, state: State) -> None:
        self._state = {name: self.controls[name].check(state[name]) for name in self.controls}
        self._silent = True
        try:
            for name, widget in self._widgets.items():
                if not self.controls[name].same(widget.value, self._state[name]):
                    widget.value = self._state[name]
        finally:
            self._silent = False
        self.refresh()

    def _moved(self, name: str, value: Any) -> None:
        """A control says that it changed: by the reader's hand, unless we are just setting it."""
        control = self.controls[name]
        if self._silent or control.same(value, self._state[name]):
            return
        state = {**self._state, name: control.check(value)}
        self._accept(self.link(state, name) if self.link is not None else state)

    # pictures

    def png(self) -> bytes:
        """The picture of the last state that worked."""
        return self._png

    @property
    def alt(self) -> str:
        """What a screen reader says of the picture: title, controls, reading."""
        return self._alt

    def controls_text(self) -> str:
        """The state in words: ``label budget (rows) = 250``, group by group."""
        said = {
            name: f"{knob.description} = {knob.text(self._state[name])}"
            for name, knob in self.controls.items()
        }
        rows = {heading: ", ".join(said[name] for name in names) for heading, names in self.groups.items()}
        return "; ".join(f"{heading}: {row}" if heading else row for heading, row in rows.items())

    def html(self) -> str:
        """Picture, reading and, if any, the error."""
        width, height = self.stage.size
        height = round(height * self._width / width)
        problem = (
            f'<pre class="mtl-error" role="alert" style="color:#b00020;white-space:pre-wrap;margin:4px 0">'
            f"{html.escape(self.error)}</pre>"
            if self.error
            else ""
        )
        source = base64.b64encode(self._png).decode("ascii")
        return (
            f'<figure class="mtl-demo" style="margin:0"><img src="data:image/png;base64,{source}" '
            f'alt="{html.escape(self.alt)}" width="{self._width}" height="{height}" decoding="sync" '
            f'style="max-width:100%;height:auto">'
            f'<figcaption role="status" style="line-height:1.4;min-height:2.8em;max-width:{self._width}px">'
            f"{html.escape(self.reading)}</figcaption>{problem}</figure>"
        )

    def _captioned(self) -> bytes:
        """The picture with the controls' values and the reading printed below, for readers without a kernel."""
        pixels = np.array(self.stage.draw())
        per_line = max(40, pixels.shape[1] // 7)
        lines = textwrap.wrap(f"[{self.controls_text()}]", per_line) if self.controls else []
        lines += textwrap.wrap(self.reading, per_line)
        dpi = self.figure.dpi
        strip = Figure(figsize=(pixels.shape[1] / dpi, 18 * (len(lines) + 1) / dpi), dpi=dpi)
        strip.text(
            0.01, 0.9, "\n".join(lines), va="top", fontsize=72 * 12 / dpi, parse_math=False, color="#333333"
        )
        below = Stage(strip).draw()[:, : pixels.shape[1]]
        return encode_png(np.concatenate([pixels[:, : below.shape[1]], below]))

    # the notebook's side

    @property
    def widget(self) -> Any:
        """The ipywidgets box, made on first use."""
        if self._box is None:
            self._build()
        return self._box

    def _build(self) -> None:
        import ipywidgets

        for name, control in self.controls.items():
            self._widgets[name] = made = control.build()
            if made.value != self._state[name]:
                made.value = self._state[name]
            made.observe(lambda change, name=name: self._moved(name, change["new"]), names="value")
        pressed = {**dict(self.buttons), "Reset": dict(self.buttons).get("Reset", self.reset)}
        row = [self._button(label, action) for label, action in pressed.items()]
        layout = {"display": "flex", "flex_flow": "row wrap", "align_items": "center"}
        boxes = [
            ipywidgets.Box([self._widgets[name] for name in names], layout=ipywidgets.Layout(**layout))
            for names in self.groups.values()
        ]
        boxes[-1].children += tuple(row)
        knobs = boxes[0]
        if any(self.groups):
            for name, control in self.controls.items():
                if control.is_slider:  # three fit beside the heading
                    self._widgets[name].layout.width = "250px"
            knobs = ipywidgets.VBox(
                [
                    ipywidgets.HBox([self._heading(heading), box])
                    for heading, box in zip(self.groups, boxes, strict=True)
                ]
            )
        self._picture = ipywidgets.HTML(value=self.html())
        self._box = ipywidgets.VBox([knobs, self._picture])

    @staticmethod
    def _heading(text: str) -> Any:
        import ipywidgets

        layout = ipywidgets.Layout(width="100px", flex="0 0 auto")
        return ipywidgets.HTML(f"<b>{html.escape(text)}</b>", layout=layout)

    def _button(self, label: str, action: Callable[[], None]) -> Any:
        import ipywidgets

        button = ipywidgets.Button(description=label, layout=ipywidgets.Layout(width="90px"))
        _tooltip(button, "back to the first state" if label == "Reset" else label)

        def press(_button: Any) -> None:
            try:
                action()
            except Exception as exception:
                self.show_error(exception)

        button.on_click(press)
        return button

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        return {
            WIDGET_VIEW: {"version_major": 2, "version_minor": 0, "model_id": self.widget.model_id},
            "image/png": base64.b64encode(self._static).decode("ascii"),
            "text/plain": f"{self.title}. {self.reading}",
        }


def _checked_groups(
    controls: Mapping[str, Control], groups: Mapping[str, Sequence[str]] | None
) -> dict[str, tuple[str, ...]]:
    """The rows of controls by heading; one row without a heading when no groups are given."""
    rows = {heading: tuple(names) for heading, names in (groups or {"": controls}).items()}
    placed = [name for names in rows.values() for name in names]
    if sorted(placed) != sorted(controls):
        raise ValueError(f"groups must name each of {list(controls)} once, got {placed}")
    if len(rows) > MAX_GROUPS:
        raise ValueError(
            f"at most {MAX_GROUPS} groups of controls to a demo, got {len(rows)}: split it in two"
        )
    for heading, names in rows.items():
        sliders = sum(controls[name].is_slider for name in names)
        if sliders > MAX_SLIDERS:
            raise ValueError(
                f"at most {MAX_SLIDERS} sliders to a demo or to a group of one, got {sliders}: split it in two"
                + (f" (group {heading!r})" if heading else "")
            )
    return rows


def explain(exception: BaseException) -> str:
    """Type, message, and the reader's own line: the innermost one outside this package and installed libraries."""
    said = f"{type(exception).__name__}: {exception}"
    line = own_line(traceback.extract_tb(exception.__traceback__))
    return f"{said}\n  in {line}" if line else said


def own_line(frames: Sequence[traceback.FrameSummary]) -> str:
    """``function, line 3: code`` of the innermost of some frames that is the reader's own; empty without frames."""
    ours = str(Path(__file__).parents[1])
    libraries = tuple(sysconfig.get_paths()[key] for key in ("stdlib", "purelib", "platlib"))
    own = [frame for frame in frames if not frame.filename.startswith((ours, *libraries, "<frozen"))]
    if not frames:
        return ""
    frame = (own or list(frames))[-1]
    line = linecache.getline(frame.filename, frame.lineno or 0).strip() or (frame.line or "")
    return f"{frame.name}, line {frame.lineno}: {line}"
