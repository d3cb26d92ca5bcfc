"""The look of the course, and the figures that more than one notebook draws.

Every function builds a :class:`matplotlib.figure.Figure` of its own, without pyplot, and returns it; as the last line
of a cell it shows once. A task keeps its colour, marker and line style in the whole course.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from io import BytesIO

import numpy as np
from matplotlib import rcParams
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from mtl_helpers.metrics import Interval, mean_interval
from mtl_helpers.training import History

__all__ = [
    "figure",
    "figure_png",
    "interval_dots",
    "learning_curves",
    "paired_dots",
    "task_style",
    "use_course_style",
]

# Okabe and Ito's palette, told apart by readers with any colour vision; markers and dashes say it a second time.
TASK_STYLES = {
    "click": {"color": "#0072B2", "marker": "o", "linestyle": "-"},
    "purchase": {"color": "#D55E00", "marker": "s", "linestyle": "--"},
    "next_category": {"color": "#009E73", "marker": "^", "linestyle": "-."},
    "long_view": {"color": "#E69F00", "marker": "v", "linestyle": "--"},
    "like": {"color": "#CC79A7", "marker": "D", "linestyle": ":"},
}
OTHER_TASKS = (
    {"color": "#56B4E9", "marker": "P", "linestyle": "-"},
    {"color": "#7A5195", "marker": "X", "linestyle": "--"},
    {"color": "#666666", "marker": "*", "linestyle": ":"},
)
GREY, INK = "#777777", "#222222"
WIDTH, HEIGHT = 8.6, 3.7  # inches: of every figure, and of a demo

STYLE = {
    "figure.dpi": 100,
    "figure.facecolor": "white",
    "axes.facecolor": "white",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.labelsize": 10,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "font.size": 10,
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
}


def use_course_style() -> None:
    """Set the course's matplotlib style, and make a Figure show as a picture wherever IPython runs."""
    rcParams.update(STYLE)
    try:
        from IPython import get_ipython
    except ImportError:
        return
    shell = get_ipython()
    if shell is not None:
        shell.display_formatter.formatters["image/png"].for_type(Figure, figure_png)


def figure(height: float = 3.6) -> Figure:
    """An empty figure of the one width that lays itself out; ``height`` in inches. Add axes with ``.subplots()``."""
    made = Figure(figsize=(WIDTH, height), layout="constrained")
    FigureCanvasAgg(made)
    return made


def figure_png(fig: Figure) -> bytes:
    """The figure as PNG bytes."""
    buffer = BytesIO()
    fig.savefig(buffer, format="png", dpi=fig.dpi)
    return buffer.getvalue()


def task_style(name: str) -> dict[str, str]:
    """Colour, marker and line style of a task; an unknown name gets one that stays the same in every session."""
    return dict(TASK_STYLES.get(name) or OTHER_TASKS[zlib.crc32(name.encode()) % len(OTHER_TASKS)])


def learning_curves(history: History, metric: str = "loss", title: str = "") -> Figure:
    """Training and validation curves by epoch, one panel a task; the kept epoch is marked."""
    frame = history.frame().query("metric == @metric")
    tasks = list(dict.fromkeys(frame["task"]))
    if not tasks:
        known = sorted(set(history.frame()["metric"]))
        raise ValueError(f"This history has no metric {metric!r}: it has {known}.")
    fig = figure(3.0)
    for ax, task in zip(fig.subplots(1, len(tasks), squeeze=False)[0], tasks, strict=True):
        color = task_style(task)["color"]
        for split, style in (("train", ":"), ("valid", "-")):
            rows = frame.query("task == @task and split == @split")
            if len(rows):
                ax.plot(rows["epoch"], rows["value"], style, color=color, label=f"{split}")
        ax.axvline(history.best_epoch, color="#999999", linewidth=1)
        side = "right" if history.best_epoch > frame["epoch"].max() / 2 else "left"
        look = {"ha": side, "va": "top", "fontsize": 8, "color": "#666666"}
        place = {"xycoords": ("data", "axes fraction"), "xytext": (-3, -2), "textcoords": "offset points"}
        ax.annotate(f"kept: epoch {history.best_epoch}", (history.best_epoch, 1), **place, **look)
        ax.set(title=task, xlabel="epoch", ylabel=f"{metric}" + (" (nats)" if metric == "loss" else ""))
        ax.legend(loc="best")
    if title:
        fig.suptitle(title, x=0.01, ha="left")
    return fig


def interval_dots(
    ax: Axes,
    rows: Mapping[str, Sequence[float]],
    styles: Mapping[str, dict] | None = None,
    level: float = 0.95,
) -> dict[str, Interval]:
    """On one axes, a row per name: each run as a pale dot, their mean with its interval as a strong one.

    Parameters
    ----------
    rows : ``{name: one value per seed}``, drawn from the top. styles : ``{name: task_style(...)}``.

    Returns
    -------
    ``{name: Interval}``, as drawn.
    """
    intervals = {}
    for y, (name, values) in enumerate(rows.items()):
        style = (styles or {}).get(name) or {"color": "#222222", "marker": "o"}
        intervals[name] = found = mean_interval(values, level)
        jitter = np.linspace(-0.16, 0.16, len(values)) if len(values) > 1 else [0]
        ax.plot(values, y + np.asarray(jitter), "o", color=style["color"], alpha=0.35, markersize=4)
        ax.plot([found.low, found.high], [y, y], color=style["color"], linewidth=2.4)
        ax.plot(found.mean, y, style["marker"], color=style["color"], markersize=8, markeredgecolor="white")
    ax.set_yticks(range(len(rows)), list(rows))
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.grid(axis="y", visible=False)
    return intervals


def paired_dots(
    ax: Axes, differences: Mapping[str, Sequence[float]], better: str, worse: str, level: float = 0.95
) -> dict[str, Interval]:
    """Like :func:`interval_dots` for differences: a line at 0, and which side favours whom."""
    intervals = interval_dots(ax, differences, {name: task_style(name) for name in differences}, level)
    ax.axvline(0, color="#222222", linewidth=1)
    low, high = ax.get_xlim()
    reach = max(abs(low), abs(high))
    ax.set_xlim(-reach, reach)
    for x, align, text in ((0.01, "left", f"← {worse}"), (0.99, "right", f"{better} →")):
        ax.text(x, 1.01, text, transform=ax.transAxes, ha=align, va="bottom", fontsize=9, color="#666666")
    return intervals
