"""A guess before the answer, in every notebook. It is kept while the kernel runs, also when its cell runs again."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

import ipywidgets
from IPython.display import Markdown
from matplotlib.axes import Axes

from mtl_helpers.widgets.explorer import NAMES_SLIDERS
from mtl_helpers.widgets.figures import HALO, minus

__all__ = ["guess"]

COLOR = "#8B5A00"  # of no task and no model
_given: dict[str, Any] = {}  # question -> guess, in this session


class guess:
    """Asks; the last expression of a cell shows it. Without a kernel the question alone is seen.

    question : in words. low, high, step, unit : of the slider. choices : names, instead of a slider.
    ``value`` is None until the reader touched it; :meth:`mark` and :meth:`answer` work either way.

    >>> guess("How much of the loss is noise?", unit="%", high=100, step=1).answer(40, digits=0).data
    'It is **40%**.'
    """

    def __init__(
        self, question: str, low: float = 0.0, high: float = 1.0, step: float = 0.01, unit: str = "",
        choices: Sequence[str] = (),
    ) -> None:  # fmt: skip
        self.question, self.step, self.unit, self.choices = question, step, unit, list(choices)
        look = {"description": "your guess", "style": {"description_width": "initial"}}
        if choices:
            self.control = ipywidgets.ToggleButtons(options=self.choices, value=self.value, **look)
            self.control.style.button_width = "auto"
        else:
            look |= {"layout": {"width": "480px", "max_width": "100%"}, "readout": False}
            start = (low + high) / 2 if self.value is None else self.value
            self.control = ipywidgets.FloatSlider(start, min=low, max=high, step=step, **look)
        self.control.observe(self._take, names="value")
        asked = ipywidgets.HTML(html.escape(question) + NAMES_SLIDERS)
        self._said = ipywidgets.HTML(self._words())
        row = ipywidgets.Box([self.control, self._said], layout={"flex_flow": "row wrap"})
        self.widget = ipywidgets.VBox([asked, row])
        self.widget.add_class("mtl-guess")

    @property
    def value(self) -> Any:
        """The guess, or None."""
        return _given.get(self.question)

    def _take(self, change: dict) -> None:
        _given[self.question] = change["new"]
        self._said.value = self._words()

    def _words(self) -> str:
        if self.value is None:
            return "" if self.choices else "move the slider"
        return "noted" if self.choices else f"<b>{self._number(self.value, self.step)}</b>, noted"

    def _number(self, value: float, step: float) -> str:
        digits = len(f"{step:.6f}".rstrip("0").split(".")[1])
        space = " " * bool(self.unit and self.unit != "%")
        return minus(f"{value:.{digits}f}{space}{self.unit}")

    def mark(self, ax: Axes, axis: str = "x") -> None:
        """Draws the guess at its place on an axis: a dashed line, or beside the tick of the chosen name."""
        look = {"color": COLOR, "fontweight": "bold", "fontsize": 9}
        if self.value is None:
            return
        if self.choices:
            for which, text in ((ax.xaxis, "{}\n▴ your guess"), (ax.yaxis, "your guess ▸ {}")):
                names = [label.get_text() for label in which.get_ticklabels()]
                if self.value in names:
                    at = names.index(self.value)
                    names[at] = text.format(self.value)
                    which.set_ticks(which.get_ticklocs(), names)
                    which.get_ticklabels()[at].set(**look)
            return
        upright = axis == "x"
        (ax.axvline if upright else ax.axhline)(self.value, color=COLOR, ls="--", lw=1.6, zorder=8)
        xy, ha, va, over = (self.value, 0.98), "left", "top", ax.get_xaxis_transform()
        if not upright:
            xy, ha, va, over = (0.99, self.value), "right", "bottom", ax.get_yaxis_transform()
        look |= {"xytext": (3, 2), "textcoords": "offset points", "zorder": 9, "path_effects": HALO}
        ax.annotate("your guess", xy, xycoords=over, ha=ha, va=va, **look)

    def answer(self, truth: float | str, digits: int = 2) -> Markdown:
        """The answer in words, beside the guess if there is one."""
        is_ = f"**{truth if self.choices else self._number(truth, 10.0**-digits)}**"
        if self.value is None:
            return Markdown(f"It is {is_}.")
        if self.choices:
            said = "right" if self.value == truth else f"it is {is_}"
            return Markdown(f"You chose *{self.value}*: {said}.")
        step, gap = min(self.step, 10.0**-digits), round(self.value - truth, 9)
        said = f"{self._number(abs(gap), step)} too {'high' if gap > 0 else 'low'}"
        if abs(gap) <= max(self.step, 10.0**-digits) / 2 + 1e-9:
            said = "well guessed"
        return Markdown(f"You guessed {self._number(self.value, step)}; it is {is_}: {said}.")

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        view = {"version_major": 2, "version_minor": 0, "model_id": self.widget.model_id}
        still = f"**Your guess:** {self.question}" + f" ({' · '.join(self.choices)})" * bool(self.choices)
        return {"application/vnd.jupyter.widget-view+json": view, "text/markdown": still, "text/plain": still}
