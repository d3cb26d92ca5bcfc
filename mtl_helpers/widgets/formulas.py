"""Sliders over the formulas of a multi-task loss: one softmax, two losses, a front with a dent, two gradients.

Taught in notebook 03. Nothing is trained here: each picture is computed from its formula at every move. The functions
that hold the formulas (:func:`weighted_optimum`, :func:`two_gradients`, :func:`combine_two`) are checked there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.quiver import Quiver
from numpy.typing import ArrayLike

from mtl_helpers.gradients import combine
from mtl_helpers.widgets import figures as plots
from mtl_helpers.widgets.explorer import Explorer, choice_slider, dropdown, slider

__all__ = [
    "combine_two", "front_explorer", "logit_explorer", "quadratic", "two_gradients", "two_gradients_explorer",
    "two_losses_explorer", "weighted_optimum",
]  # fmt: skip

HEIGHT = 3.4
CLASS_COLORS = ("#56B4E9", "#7A5195", "#666666")
TASKS = ("click", "purchase")
FIRST, SECOND = (plots.task_style(name)["color"] for name in TASKS)
METHOD_STYLES = (("#222222", "o"), ("#888888", "s"), ("#4C7A8A", "D"), ("#7A5195", "X"), ("#6B6B00", "*"))
UNITS = (0.01, 0.1, 1.0, 10.0, 100.0, 1000.0)


def logit_explorer() -> Explorer:
    """Probabilities, cross-entropy and its gradient of one row under its logits and a temperature.

    The slider moves the logit of the first of three classes; those of the other two stay at 1 and 0.
    """
    classes, others = ("books", "toys", "garden"), (1.0, 0.0)
    grid, places = np.linspace(-6, 6, 121), range(len(classes))
    rows = torch.tensor([[z, *others] for z in grid], dtype=torch.float64)

    fig = plots.figure(HEIGHT)
    left, middle, right = fig.subplots(1, 3, width_ratios=(1, 1.2, 1))
    left.set(title="Probabilities p", ylabel="probability", ylim=(0, 1.1))
    right.set(title="Gradient (p − y) / τ", ylabel="nats per unit of logit", ylim=(-2.2, 2.2))
    right.axhline(0, color="black", lw=1)
    bars, texts = [], []
    for ax in (left, right):
        ax.set(xlim=(-0.6, 2.6), xticks=places, xticklabels=classes)
        ax.grid(axis="x", visible=False)
        bars += ax.bar(places, [0] * 3, color=CLASS_COLORS, animated=True)
        texts += [ax.text(i, 0, "", ha="center", animated=True) for i in places]
    middle.set(title="Loss −log p(label)", xlabel=f"logit of {classes[0]}", ylabel="nats", xlim=(-6.2, 6.2))
    middle.set_ylim(0, 15)
    curve = middle.plot(grid, 0 * grid, color="#222222", animated=True)[0]
    dot = middle.plot([], [], "o", color="#222222", ms=9, mec="white", animated=True)[0]

    def update(state: dict) -> str:
        z, t, label = state["logit"], state["temperature"], classes.index(state["label"])
        log_p = (torch.tensor([z, *others], dtype=torch.float64) / t).log_softmax(0).numpy()
        p, loss = np.exp(log_p), -log_p[label]
        slope = (p - np.eye(len(classes))[label]) / t
        shown = [(each, f"{each:.3f}", 0.01) for each in p]
        shown += [(each, plots.minus(f"{each:+.3f}"), 0.05) for each in slope]
        for bar, text, (height, says, gap) in zip(bars, texts, shown, strict=True):
            up = height >= 0
            bar.set_height(height)
            text.set(text=says, y=height + (gap if up else -gap), va="bottom" if up else "top")
        curve.set_ydata(-(rows / t).log_softmax(1)[:, label])
        dot.set_data([z], [loss])
        top = int(p.argmax())
        bet = "the label has the largest probability" if top == label else f"the model bets on {classes[top]}"
        return (
            f"The label is {classes[label]} and gets probability {p[label]:.3f}, a loss of {loss:.2f} nats: {bet}. "
            f"A step against the gradient lifts {classes[label]} with strength {-slope[label]:.3f} and lowers the "
            f"others by the same in all."
        )

    knobs = [
        slider("logit", f"logit of {classes[0]}", -6.0, 6.0, 2.0, step=0.1),
        slider("temperature", "temperature τ", 0.5, 5.0, 1.0, step=0.1),
        dropdown("label", "label", classes, classes[1]),
    ]
    return Explorer(fig, knobs, update, title="Softmax cross-entropy of one row")


def quadratic(points: ArrayLike, curvature: ArrayLike, centre: ArrayLike) -> np.ndarray:
    """½ (θ − c)ᵀ A (θ − c) for points (…, 2); A is (2, 2), c is (2,)."""
    away = np.asarray(points, float) - np.asarray(centre, float)
    return 0.5 * np.einsum("...i,ij,...j->...", away, np.asarray(curvature, float), away)


def weighted_optimum(curvatures: ArrayLike, centres: ArrayLike, weights: ArrayLike) -> np.ndarray:
    """The θ (P,) that minimises Σ wᵢ ½ (θ − cᵢ)ᵀ Aᵢ (θ − cᵢ): (Σ wᵢ Aᵢ)⁻¹ Σ wᵢ Aᵢ cᵢ.

    curvatures : (T, P, P), symmetric and positive definite. centres : (T, P). weights : (T,), 0 or more, not all 0.
    """
    a, c, w = (np.asarray(part, float) for part in (curvatures, centres, weights))
    return np.linalg.solve(np.einsum("t,tij->ij", w, a), np.einsum("t,tij,tj->i", w, a, c))


def two_losses_explorer(curvatures: ArrayLike, centres: ArrayLike) -> Explorer:
    """Two quadratic task losses over two shared parameters, one weight, and the unit of the first loss.

    Left: contours, each task's optimum and the weighted one with the two weighted gradients, which cancel there.
    Right: the same optima as pairs of losses, the Pareto front. Both losses are drawn in their original unit.
    curvatures : (2, 2, 2), one positive definite matrix a task. centres : (2, 2), each task's optimum.
    """
    a, c = np.asarray(curvatures, float), np.asarray(centres, float)
    shares = np.r_[0, np.geomspace(1e-4, 0.5, 60), 1 - np.geomspace(0.5, 1e-4, 60)[1:], 1]
    path = np.array([weighted_optimum(a, c, (1 - share, share)) for share in shares])
    front = np.column_stack([quadratic(path, a[i], c[i]) for i in (0, 1)])

    low, high = c.min(0) - 1, c.max(0) + 1
    fig, left, right = _panels((low[0], high[0]), (low[1], high[1]))
    mesh = np.stack(np.meshgrid(*np.linspace(low, high, 90).T), axis=-1)
    for i, (task, color) in enumerate(zip(TASKS, (FIRST, SECOND), strict=True)):
        levels = np.array([0.03, 0.2, 0.6]) * front[:, i].max()
        grid = mesh[..., 0], mesh[..., 1], quadratic(mesh, a[i], c[i])
        left.contour(*grid, levels, colors=color, linewidths=0.9)
        left.plot(*c[i], "os"[i], color=color, ms=10, mec="white")
        look = {"textcoords": "offset points", "ha": "center", "color": color, "path_effects": plots.HALO}
        left.annotate(f"best for {task}", c[i], ((44, -22), (0, 13))[i], **look)
    for ax, line in ((left, path), (right, front)):
        ax.plot(*line.T, color="#222222", lw=1.2, ls="--")
    left.set(xlabel="shared parameter θ₁", ylabel="shared parameter θ₂", title="Where the joint optimum lies")
    x, y = reach = front.max(0)
    right.set(xlabel="loss of click (original unit)", ylabel="loss of purchase")
    right.set(title="The same on the front", xlim=(-0.08 * x, 1.1 * x), ylim=(-0.08 * y, 1.1 * y))
    look = {"color": "#222222", "ms": 9, "mec": "white", "animated": True}
    here, there = (ax.plot([], [], "D", **look)[0] for ax in (left, right))
    tangent = right.plot([], [], color="#888888", lw=1.6, animated=True)[0]
    arrows = _arrows(left, [FIRST, SECOND], 0.011, zorder=4)

    def update(state: dict) -> str:
        weights = np.array([1 - state["weight"], state["weight"]])
        scaled = weights * (state["unit"], 1.0)
        theta = weighted_optimum(a, c, scaled)
        losses = np.array([quadratic(theta, a[i], c[i]) for i in (0, 1)])
        pulls = np.array([-scaled[i] * a[i] @ (theta - c[i]) for i in (0, 1)])
        length = np.linalg.norm(pulls[0])
        arrows.set_offsets([theta, theta])
        arrows.set_UVC(*(pulls / max(length, 1e-9) * (0.8 if length > 1e-9 else 0)).T)
        here.set_data([theta[0]], [theta[1]])
        there.set_data([losses[0]], [losses[1]])
        along = np.array([scaled[1], -scaled[0]]) * reach.max() / np.linalg.norm(scaled)
        tangent.set_data(*np.array([losses - 2 * along, losses + 2 * along]).T)
        share, times = scaled / scaled.sum(), f"{state['unit']:g}"
        unit = "" if times == "1" else f" and the loss of click written {times} times as large"
        alone = f"{TASKS[int(weights[0] < 0.5)]} pulls alone and stands at its own optimum"
        cancel = alone if length < 1e-9 else f"the two weighted gradients, {length:.3g} long, cancel"
        return (
            f"With weights {weights[0]:.2f} and {weights[1]:.2f}{unit}, the tasks count as {share[0]:.3f} to "
            f"{share[1]:.3f}. At the joint optimum click loses {losses[0]:.3f} and purchase {losses[1]:.3f}; {cancel}."
        )

    knobs = [
        slider("weight", "weight of purchase", 0.0, 1.0, 0.5, step=0.01, unit="click gets the rest"),
        choice_slider("unit", "loss of click multiplied by", UNITS, 100.0, fmt="g"),
    ]
    return Explorer(fig, knobs, update, title="Two quadratic losses, one weight")


def front_explorer(a: float) -> Explorer:
    """Two losses that saturate, 1 − exp(−(θ ∓ a)²): their front has a dent that no weighted sum reaches.

    Left: both losses, their weighted sum and the larger of the weighted two (Tchebycheff), each with its minimum.
    Right: the front, what either rule finds over all weights, and the line of the weights, which touches from below.
    """
    theta, stops = np.linspace(-1.6, 1.6, 1601), np.linspace(0, 1, 51)
    pair = np.stack([1 - np.exp(-((theta - side) ** 2)) for side in (a, -a)])
    rules = {"weighted sum": (np.sum, "#222222", "o"), "Tchebycheff rule": (np.max, "#4C7A8A", "D")}

    fig, moving = plots.figure(HEIGHT), {}
    left, right = fig.subplots(1, 2, width_ratios=(1.25, 1))
    for values, task, color, dashes in zip(pair, TASKS, (FIRST, SECOND), ("-", "--"), strict=True):
        left.plot(theta, values, dashes, color=color, lw=1, label=f"loss of {task}")
    left.set(xlabel="shared parameter θ", ylabel="loss", ylim=(0, 1.02), title="One parameter, two rules")
    right.plot(*pair[:, np.abs(theta) <= a], color="#d5d5d5", lw=7)
    right.set(xlabel="loss of click", ylabel="loss of purchase", title="What all weights find")
    right.set(xlim=(-0.05, 1.02), ylim=(-0.05, 1.02))
    line = right.plot([], [], color="#888888", lw=1.4, animated=True)[0]
    for name, (rule, color, marker) in rules.items():
        found = [pair[:, rule([[1 - w], [w]] * pair, axis=0).argmin()] for w in stops]
        right.plot(*np.transpose(found), ".", color=color, ms=3)
        curve = left.plot([], [], lw=2, color=color, label=name, animated=True)[0]
        look = {"color": color, "ms": 10, "mec": "white", "animated": True}
        moving[name] = rule, curve, *(ax.plot([], [], marker, **look)[0] for ax in (left, right))
    plots.legend_outside(fig)

    def update(state: dict) -> str:
        weights, said = np.array([[1 - state["weight"]], [state["weight"]]]), []
        for name, (rule, curve, low, point) in moving.items():
            values = rule(weights * pair, axis=0)
            best = values.argmin()
            at = pair[:, [best]]
            curve.set_data(theta, values)
            low.set_data(theta[[best]], values[[best]])
            point.set_data(*at)
            if name == "weighted sum":
                line.set_data(*(at + weights[::-1] * [[2], [-2]] * [-1, 1]))
            lost = " and ".join(f"{loss:.2f}" for loss in at.flat)
            said.append(f"the {name} is least at θ = {theta[best]:.2f}, with losses {lost}")
        return plots.minus(f"Weights {weights[0, 0]:.2f} and {weights[1, 0]:.2f}: {'; '.join(said)}.")

    knobs = [slider("weight", "weight of purchase", 0.0, 1.0, 0.49, step=0.01, unit="click gets the rest")]
    return Explorer(fig, knobs, update, title="A front with a dent, and two rules")


def _panels(x: tuple, y: tuple) -> tuple[Figure, Axes, Axes]:
    """A figure with two axes of one height; in the left one, x and y have equal units."""
    wide, below, above = 3.9, 0.55, 0.35
    tall = wide * (y[1] - y[0]) / (x[1] - x[0])
    fig = plots.figure(below + tall + above)
    fig.set_layout_engine("none")
    bottom, height = below / fig.get_figheight(), tall / fig.get_figheight()
    left = fig.add_axes((0.07, bottom, wide / plots.WIDTH, height), xlim=x, ylim=y)
    return fig, left, fig.add_axes((0.66, bottom, 0.33, height))


def _arrows(ax: Axes, colors: list[str], width: float, **look: Any) -> Quiver:
    """Moving arrows from the origin, in the axes' units."""
    none = np.zeros(len(colors))
    look |= {"angles": "xy", "scale_units": "xy", "scale": 1, "animated": True}
    return ax.quiver(none, none, none, none, color=colors, width=width, **look)


def two_gradients(angle: float, length: float) -> np.ndarray:
    """g₁ = (1, 0) and g₂ of a length at an angle (degrees) to it, as rows of a (2, 2) array."""
    turn = np.deg2rad(angle)
    return np.array([[1.0, 0.0], [length * np.cos(turn), length * np.sin(turn)]])


def combine_two(method: str, rows: np.ndarray) -> np.ndarray:
    """What a method makes of gradients (T, P): "sum", "normalised sum" (of unit vectors) or one of METHODS. (P,)."""
    if method == "sum":
        return rows.sum(0)
    if method == "normalised sum":
        lengths = np.linalg.norm(rows, axis=1, keepdims=True)
        return (rows / np.maximum(lengths, 1e-12)).sum(0)
    return combine(method, torch.as_tensor(rows)).numpy()


def two_gradients_explorer(
    methods: Sequence[str] = ("sum", "normalised sum", "PCGrad", "MGDA", "CAGrad"),
) -> Explorer:
    """Two task gradients by angle and length, and the joint direction that each method makes of them.

    Left: both gradients, and each method's direction on a ring of its own; the shaded directions harm no task. Right:
    the cosine of each direction with each gradient; a step against one with a negative cosine raises that task's loss.
    methods : any of "sum", "normalised sum" and the names in ``gradients.METHODS``.
    """
    fig, left, right = _panels((-2.1, 2.1), (-0.3, 2.1))
    left.set_title("Directions, one ring a method; shaded: no task is harmed")
    left.set(xticks=[], yticks=[], frame_on=False)
    at, half, tips, bars, names = np.arange(len(methods)), np.linspace(0, np.pi, 90), [], [], []
    rings = 1.2 + 0.2 * at
    safe = left.fill([0, 0, 0], [0, 0, 0], color="#222222", alpha=0.08, lw=0, animated=True)[0]
    arrows = _arrows(left, [FIRST, SECOND], 0.014, zorder=3)
    look = {"ha": "center", "va": "center", "animated": True, "path_effects": plots.HALO}
    for task, color, shift in zip(TASKS, (FIRST, SECOND), (-0.19, 0.19), strict=True):
        names.append(left.text(0, 0, task, color=color, **look))
        bars += right.barh(at + shift, 0.0 * at, 0.34, color=color, animated=True)
    for i, ((color, marker), ring) in enumerate(zip(METHOD_STYLES, rings, strict=False)):
        left.plot(ring * np.cos(half), ring * np.sin(half), color="#dddddd", lw=0.8)
        tips += left.plot([], [], marker + "-", color=color, ms=9, lw=1, markevery=[1], animated=True)
        right.plot(1.2, i, marker, color=color, ms=9)
    right.axvline(0, color="black", lw=1)
    right.set(xlim=(-1.05, 1.35), ylim=(len(methods) - 0.4, -0.6), yticks=at, yticklabels=methods)
    right.set(xlabel="cosine with the task's gradient", title="Above 0: a step helps the task")
    right.set(xticks=[-1, -0.5, 0, 0.5, 1])
    right.grid(axis="y", visible=False)

    def update(state: dict) -> str:
        rows = two_gradients(state["angle"], state["length"])
        made = np.array([combine_two(name, rows) for name in methods])
        lengths, sizes = np.linalg.norm(rows, axis=1), np.linalg.norm(made, axis=1, keepdims=True)
        sizes[sizes < 1e-9] = np.nan  # no direction
        made /= sizes
        cosines = made @ (rows / lengths[:, None]).T
        arrows.set_UVC(*(rows / max(lengths)).T)
        edge = np.deg2rad(np.linspace(state["angle"] - 90, 90, 30))
        safe.set_xy([(0, 0), *zip(2 * np.cos(edge), 2 * np.sin(edge), strict=True)])
        for tip, ring, point in zip(tips, rings, made, strict=True):
            tip.set_data([0, ring * point[0]], [0, ring * point[1]])
        for text, row in zip(names, rows, strict=True):
            text.set_position(row / max(lengths) * 0.6 - (0, 0.16))
        for bar, value in zip(bars, np.nan_to_num(cosines.T).flat, strict=True):
            bar.set_width(value)
        return _read_two(state, dict(zip(methods, cosines, strict=True)))

    knobs = [
        slider("angle", "angle between the gradients", 0, 180, 135, step=1, unit="degrees"),
        slider("length", "length of purchase's", 0.1, 3.0, 2.0, step=0.1, unit="click's is 1"),
    ]
    return Explorer(fig, knobs, update, title="Two gradients and what methods make of them")


def _read_two(state: dict[str, float], cosines: dict[str, np.ndarray]) -> str:
    inner = np.cos(np.deg2rad(state["angle"]))
    kind = "agree" if inner > 1e-9 else "conflict" if inner < -1e-9 else "are at right angles"
    said = ""
    for i, task in enumerate(TASKS):
        hurt = [name for name, row in cosines.items() if row[i] < -1e-6]
        said += f" Along {', '.join(hurt)} the loss of {task} rises." if hurt else ""
    still = [name for name, row in cosines.items() if np.isnan(row).any()]
    said = said or " No step harms a task."
    said += f" No direction is left for {', '.join(still)}." if still else ""
    name, (first, second) = next(iter(cosines.items()))
    if np.isfinite(first):
        both = f"cosine {first:.2f} with that of click and {second:.2f} with that of purchase"
        kind += f"; the {name} has {both}"
    return plots.minus(f"Purchase's gradient is {state['length']:g} times click's: they {kind}.") + said
