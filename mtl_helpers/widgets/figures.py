"""The look of the course, and the figures that more than one notebook draws.

Every function builds a :class:`matplotlib.figure.Figure` of its own, without pyplot, and returns it; as the last line
of a cell it shows once. Tasks, models and metrics each keep colours of their own in the whole course.
"""

from __future__ import annotations

import base64
import html
import re
import zlib
from collections.abc import Collection, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from IPython import get_ipython
from IPython.display import HTML
from matplotlib import rcParams
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator
from pandas.io.formats.style import Styler

from mtl_helpers.metrics import Interval, mean_interval

if TYPE_CHECKING:
    from mtl_helpers.training import History

__all__ = [
    "epochs", "figure", "interval_rows", "learning_curves", "legend_outside", "metric_name", "minus", "model_style",
    "name_lines", "stored_picture", "table", "task_style", "use_course_style", "value_labels", "within",
]  # fmt: skip

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
# Models and metrics: from Tol's muted palette, none of a task's colours.
MODEL_STYLES = {
    "single task": {"color": "#8C8C8C", "marker": "o", "linestyle": ":"},
    "shared bottom": {"color": "#222222", "marker": "s", "linestyle": "-"},
    "mmoe": {"color": "#882255", "marker": "D", "linestyle": "--"},
    "ple": {"color": "#332288", "marker": "^", "linestyle": "-."},
    "cgc": {"color": "#999933", "marker": "v", "linestyle": "--"},
    "cross stitch": {"color": "#8C510A", "marker": "P", "linestyle": ":"},
    "esmm": {"color": "#44576B", "marker": "X", "linestyle": "-"},
    "aitm": {"color": "#6B6B00", "marker": "*", "linestyle": "-."},
    "stem": {"color": "#AA4466", "marker": "<", "linestyle": "-"},
    "pepnet": {"color": "#117733", "marker": ">", "linestyle": "--"},
}
ALIASES = {"shared": "shared bottom", **dict.fromkeys(("single", "separate", "alone"), "single task")}
METRIC_STYLES = {
    "precision": {"color": "#332288", "marker": "o", "linestyle": "-"},
    "recall": {"color": "#882255", "marker": "s", "linestyle": "--"},
    "accuracy": {"color": "#8C510A", "marker": "D", "linestyle": "-."},
}
GREY, INK, HERE = "#777777", "#222222", "#F0E442"  # HERE: the point that a slider moves
HALO = [withStroke(linewidth=3, foreground="white")]  # path effects of texts that may cross a line
WIDTH, HEIGHT = 8.6, 3.7  # inches: of every figure, and of a demo
SHARPNESS = 2  # pixels of a picture to one of the page, which has 100 an inch

STYLE = {
    "figure.facecolor": "white",
    "axes.facecolor": "white",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
}


def use_course_style() -> None:
    """Set the course's matplotlib style, and make a Figure show as a picture wherever IPython runs."""
    rcParams.update(STYLE)
    shell = get_ipython()
    if shell is not None:
        shell.display_formatter.formatters["image/png"].for_type(Figure, _shown)


def figure(height: float = 3.6) -> Figure:
    """An empty figure of the one width that lays itself out; ``height`` in inches. Add axes with ``.subplots()``."""
    made = Figure(figsize=(WIDTH, height), dpi=100 * SHARPNESS, layout="constrained")
    made.get_layout_engine().set(w_pad=0.09, h_pad=0.07)  # room at the edges, for dark pages
    FigureCanvasAgg(made)
    return made


def _shown(fig: Figure) -> tuple[bytes, dict[str, int]]:
    """PNG bytes and the size at which the page shows them."""
    buffer, (width, height) = BytesIO(), fig.get_size_inches()
    fig.savefig(buffer, format="png", dpi=fig.dpi)
    return buffer.getvalue(), {"width": round(100 * width), "height": round(100 * height)}


def stored_picture(path: str | Path, caption: str) -> HTML:
    """A PNG that was stored when its data were at hand, for a reader who lacks them."""
    picture = base64.b64encode(Path(path).read_bytes()).decode("ascii")
    said = html.escape(f"{caption} From the author's run: the data are not here.")
    return HTML(
        f'<figure style="margin:0"><img src="data:image/png;base64,{picture}" alt="{html.escape(caption)}" '
        f'width="{WIDTH * 100:.0f}" style="max-width:100%;height:auto"><figcaption>{said}</figcaption></figure>'
    )


def task_style(name: str) -> dict[str, str]:
    """Colour, marker and line style of a task; an unknown name gets one that stays the same in every session."""
    return dict(TASK_STYLES.get(name) or OTHER_TASKS[zlib.crc32(name.encode()) % len(OTHER_TASKS)])


def model_style(name: str) -> dict[str, str]:
    """Colour, marker and line style of a model, which no task has: "shared bottom", "MMoE", "PLE", "single task"."""
    known = name.lower().replace("-", " ").replace("_", " ")
    found, others = MODEL_STYLES.get(ALIASES.get(known, known)), list(MODEL_STYLES.values())
    return dict(found or others[zlib.crc32(known.encode()) % len(others)])


def metric_name(metric: str) -> str:
    """A metric as labels have it: AUC and RMSE in capitals, a word as it is."""
    return metric if metric == "accuracy" else metric.upper()


def minus(text: str) -> str:
    """A text whose numbers have true minus signs."""
    return re.sub(r"(?<![\w)])-(?=[\d.])", "−", text)


def within(ax: Axes, low: float | None = None, high: float | None = None, axis: str = "y") -> None:
    """Cuts an axis at what the quantity allows: a loss is 0 or more, a share from 0 to 1."""
    shown = ax.get_ylim() if axis == "y" else ax.get_xlim()
    ax.set(**{f"{axis}lim": np.clip(shown, low, high)})


def epochs(ax: Axes) -> None:
    """Makes the x axis one of epochs: whole numbers."""
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel("epoch")


def legend_outside(fig: Figure, ax: Axes | None = None) -> None:
    """One legend of all panels, or of one, below them and never on data."""
    found = {}
    for panel in fig.axes if ax is None else [ax]:
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    made = fig.legend(
        found.values(), found.keys(), loc="outside lower left", ncols=min(7, len(found)), fontsize=8
    )
    for handle in made.legend_handles:
        handle.set_animated(False)  # a copy of what moves would move with it


def name_lines(ax: Axes) -> None:
    """Labels at the right ends of the lines instead of a legend, moved apart where they would touch."""
    lines = [line for line in ax.lines if not line.get_label().startswith("_")]
    ends = {line: line.get_xydata()[np.isfinite(line.get_ydata())][-1] for line in lines}
    ax.autoscale_view()
    low, high = ax.get_ylim()
    gap = 14 / 72 / (ax.figure.get_size_inches()[1] * 0.75) * (high - low)
    place = {"xytext": (5, 0), "textcoords": "offset points", "va": "center", "annotation_clip": False}
    right, last = max((end[0] for end in ends.values()), default=0.0), -np.inf
    for line in sorted(lines, key=lambda line: ends[line][1]):
        last = max(last + gap, ends[line][1])
        look = {"color": line.get_color(), "fontsize": 9, "path_effects": HALO}
        ax.annotate(line.get_label(), (right, last), **look, **place)


def value_labels(ax: Axes, fmt: str = ".3f") -> None:
    """Writes every bar's value beside its end, with a halo against lines that cross it."""
    for bars in ax.containers:
        ax.bar_label(bars, fmt=lambda v: minus(f"{v:{fmt}}"), padding=3, fontsize=9, path_effects=HALO)
    ax.margins(**{"x" if bars.orientation == "horizontal" else "y": 0.15})


def learning_curves(history: History, title: str) -> Figure:
    """Training and validation losses by epoch, one panel a task; the kept epoch is marked."""
    frame = history.frame().query("metric == 'loss'")
    tasks = list(dict.fromkeys(frame["task"]))
    fig = figure(3.0)
    for ax, task in zip(fig.subplots(1, len(tasks), squeeze=False)[0], tasks, strict=True):
        color = task_style(task)["color"]
        for split, style in (("train", ":"), ("valid", "-")):
            rows = frame[(frame["task"] == task) & (frame["split"] == split)]
            ax.plot(rows["epoch"], rows["value"], style, color=color)
        ax.axvline(history.best_epoch, color="#999999", linewidth=1)
        side = "right" if history.best_epoch > frame["epoch"].max() / 2 else "left"
        look = {"ha": side, "va": "bottom", "fontsize": 8, "color": "#666666"}
        kept, over = f"kept: epoch {history.best_epoch}", ax.get_xaxis_transform()
        ax.text(history.best_epoch, 1, kept, transform=over, **look)
        ax.set_title(task, pad=16)
        ax.set_ylabel("loss (nats)")
        epochs(ax)
        within(ax, 0)
    lines = [Line2D([], [], color=INK, linestyle=dashes) for dashes in (":", "-")]
    fig.legend(lines, ["training", "validation"], loc="outside lower left", ncols=2)
    fig.suptitle(title, x=0.01, ha="left")
    return fig


def interval_rows(
    ax: Axes,
    rows: Mapping[str, Interval | Sequence[float]],
    *,
    styles: Mapping[str, dict] | None = None,
    holm: Collection[str] | None = None,
    zero: bool = True,
    digits: int = 4,
) -> dict[str, Interval]:
    """A row per name, from the top: a dot with its interval, the number at the right edge. Returns the intervals.

    rows : an Interval for each name, or one value per run, which show as pale dots. styles : ``{name: style}``.
    holm : names whose difference survives Holm's correction: these get a star, the others a hollow dot; without it
        every dot is filled. zero : the rows are differences: a line at 0, numbers with their sign.
    """
    intervals = {}
    for y, (name, values) in enumerate(rows.items()):
        style = (styles or {}).get(name) or {"color": INK, "marker": "o"}
        color, found = style["color"], values
        if not isinstance(values, Interval):
            found = mean_interval(values)
            jitter = np.linspace(-0.16, 0.16, len(values)) if len(values) > 1 else [0]
            ax.plot(values, y + np.asarray(jitter), "o", color=color, alpha=0.35, markersize=4)
        intervals[name], stands = found, holm is None or name in holm
        ax.plot([found.low, found.high], [y, y], color=color, linewidth=2.4)
        hollow = {"markerfacecolor": "white", "markeredgewidth": 1.6}
        fill = {"markeredgecolor": "white"} if stands else hollow
        ax.plot(found.mean, y, style["marker"], color=color, markersize=8, **fill)
        text = minus(f"{round(found.mean, digits) + 0.0:{'+' if zero else ''}.{digits}f}")
        text += " ★" * (holm is not None and stands)
        place = {"xycoords": ax.get_yaxis_transform(), "va": "center", "annotation_clip": False}
        ax.annotate(text, (1.01, y), fontsize=9, color=color, path_effects=HALO, **place)
    if zero:
        ax.axvline(0, color=INK, linewidth=1, zorder=0.9)
    ax.set_yticks(range(len(rows)), list(rows))
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.grid(axis="y", visible=False)
    ax.locator_params(axis="x", nbins=6)
    return intervals


def table(frame: pd.DataFrame, best: Mapping[str, str] | None = None, digits: int = 3) -> Styler:
    """A frame to be read: text left, numbers with few digits and a true minus, the best of a column bold.

    best : ``{column: "max" or "min"}``. digits : decimals of numbers below 100. An index without a name is hidden if it
    only counts. Bold is written into the cells, so that GitHub shows it, which drops styles.
    """
    best = best or {}

    def write(value: Any, goal: float | None) -> str:
        if isinstance(value, (bool, np.bool_)):
            return "yes" if value else "no"
        if not isinstance(value, (int, float, np.number)):
            return html.escape(str(value))
        if value != value:
            return "–"
        whole = isinstance(value, (int, np.integer)) or abs(value) >= 100
        text = minus(f"{value:,.0f}" if whole else f"{value:.{digits}f}")
        return f"<b>{text}</b>" if goal is not None and value == goal else text

    goals = {column: getattr(frame[column], best[column])() if column in best else None for column in frame}
    uuid = f"{zlib.crc32(frame.to_csv().encode()):x}"  # the same at every build
    shown = Styler(frame, uuid=uuid, cell_ids=False).format(
        {column: lambda v, goal=goal: write(v, goal) for column, goal in goals.items()}
    )
    words = [column for column in frame if not pd.api.types.is_numeric_dtype(frame[column])]
    shown = shown.set_properties(subset=words, **{"text-align": "left"})
    heads = {"th": "text-align: left", "td": "padding: 3px 12px"}
    looks = [{"selector": part, "props": look} for part, look in heads.items()]
    counts = isinstance(frame.index, pd.RangeIndex) and frame.index.name is None
    return (shown.hide(axis="index") if counts else shown).set_table_styles(looks)
