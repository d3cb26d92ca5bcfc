"""Sliders over the formulas of a multi-task loss: one softmax, two losses, two gradients.

Taught in notebook 03. Nothing is trained here: each picture is computed from its formula at every move. The functions
that hold the formulas (:func:`weighted_optimum`, :func:`two_gradients`, :func:`combine_two`) are checked there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.quiver import Quiver
from numpy.typing import ArrayLike

from mtl_helpers.gradients import METHODS, combine
from mtl_helpers.widgets import figures as plots
from mtl_helpers.widgets.explorer import Explorer, choice_slider, dropdown, slider

__all__ = ["combine_two", "logit_explorer", "quadratic", "two_gradients", "two_gradients_explorer"]
__all__ += ["two_losses_explorer", "weighted_optimum"]

HEIGHT = 3.8
CLASS_COLORS = ("#56B4E9", "#7A5195", "#666666")
FIRST, SECOND = plots.task_style("click")["color"], plots.task_style("purchase")["color"]
METHOD_STYLES = {  # colour, marker at the tip, its size, filled or not: methods that agree stay visible together
    "sum": ("#222222", "o", 13, False),
    "normalised sum": ("#888888", "s", 11, False),
    "PCGrad": ("#009E73", "D", 6, True),
    "MGDA": ("#7A5195", "X", 8, True),
    "CAGrad": ("#56B4E9", "*", 11, True),
}
OTHER_METHOD = ("#E69F00", "v", 8, True)
PLANE = {"xlabel": "shared parameter θ₁", "ylabel": "shared parameter θ₂", "aspect": "equal"}
UNITS = (0.01, 0.1, 1.0, 10.0, 100.0)


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
    middle.set_ylim(-0.4, 15)
    curve = middle.plot(grid, 0 * grid, color="#222222", animated=True)[0]
    dot = middle.plot([], [], "o", color="#222222", ms=9, mec="white", animated=True)[0]

    def update(state: dict) -> str:
        z, t, label = state["logit"], state["temperature"], classes.index(state["label"])
        log_p = (torch.tensor([z, *others], dtype=torch.float64) / t).log_softmax(0).numpy()
        p, loss = np.exp(log_p), -log_p[label]
        slope = (p - np.eye(len(classes))[label]) / t
        shown = [(each, f"{each:.3f}", 0.01) for each in p] + [(each, f"{each:+.3f}", 0.05) for each in slope]
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
    curvatures : (2, 2, 2), a positive definite matrix for each task. centres : (2, 2), its optimum.
    """
    a, c = np.asarray(curvatures, float), np.asarray(centres, float)
    shares = np.r_[0, np.geomspace(1e-4, 0.5, 60), 1 - np.geomspace(0.5, 1e-4, 60)[1:], 1]
    path = np.array([weighted_optimum(a, c, (1 - share, share)) for share in shares])
    front = np.column_stack([quadratic(path, a[i], c[i]) for i in (0, 1)])

    fig = plots.figure(HEIGHT)
    left, right = fig.subplots(1, 2, width_ratios=(1.25, 1))
    low, high = c.min(0) - 1.3, c.max(0) + 1.3
    mesh = np.stack(np.meshgrid(np.linspace(low[0], high[0], 80), np.linspace(low[1], high[1], 80)), axis=-1)
    for i, color in enumerate((FIRST, SECOND)):
        values = quadratic(mesh, a[i], c[i])
        levels = np.array([0.02, 0.1, 0.25, 0.5, 1]) * front[:, i].max()
        left.contour(mesh[..., 0], mesh[..., 1], values, levels, colors=color, linewidths=0.9, alpha=0.8)
        left.plot(*c[i], "os"[i], color=color, ms=10, mec="white", label=f"optimum of task {i + 1}")
    left.plot(*path.T, color="#222222", lw=1.2, ls="--", label="optima of all weights")
    left.set(**PLANE, xlim=(low[0], high[0]), ylim=(low[1], high[1]), title="Parameter space")
    left.legend(fontsize=8, loc="upper right", frameon=True, framealpha=0.9)
    right.plot(*front.T, color="#222222", lw=1.2, ls="--")
    x, y = reach = front.max(0)
    right.set(xlim=(-0.08 * x, 1.1 * x), ylim=(-0.08 * y, 1.1 * y), title="Pareto front and its tangent")
    right.set(xlabel="loss of task 1 (original unit)", ylabel="loss of task 2")
    look = {"color": "#222222", "ms": 9, "mec": "white", "animated": True}
    here, there = (ax.plot([], [], "D", **look)[0] for ax in (left, right))
    tangent = right.plot([], [], color="#E69F00", lw=1.6, animated=True)[0]
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
        unit = "" if state["unit"] == 1 else f" and loss 1 written {state['unit']:g} times as large"
        share, cancel = scaled / scaled.sum(), f"the two weighted gradients, {length:.3g} long, cancel"
        if length < 1e-9:
            cancel = f"task {1 + int(weights[0] < 0.5)} pulls alone and stands at its own optimum"
        return (
            f"With weights {weights[0]:.2f} and {weights[1]:.2f}{unit}, the tasks count as {share[0]:.3f} to "
            f"{share[1]:.3f}. At the joint optimum task 1 loses {losses[0]:.3f} and task 2 {losses[1]:.3f}; {cancel}."
        )

    knobs = [
        slider("weight", "weight of task 2", 0.0, 1.0, 0.5, step=0.01, unit="task 1 gets the rest"),
        choice_slider("unit", "loss 1 multiplied by", UNITS, 1.0, unit="a change of unit", fmt="g"),
    ]
    return Explorer(fig, knobs, update, title="Two quadratic losses, one weight")


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
    if method not in METHODS:
        known = ", ".join(["sum", "normalised sum", *METHODS])
        raise ValueError(f"method is {method!r}: expected one of {known}.")
    return combine(method, torch.as_tensor(rows)).numpy()


def two_gradients_explorer(
    methods: Sequence[str] = ("sum", "normalised sum", "PCGrad", "MGDA", "CAGrad"),
) -> Explorer:
    """Two task gradients by angle and length, and the joint direction that each method makes of them.

    Left: the arrows; the dotted line is the hull of the two gradients. Right: the cosine of each joint direction with
    each gradient; a step against a direction with a negative cosine raises that task's loss.
    methods : any of "sum", "normalised sum" and the names in ``gradients.METHODS``.
    """
    fig, at, tips, colors = plots.figure(4.3), np.arange(len(methods)), [], [FIRST, SECOND]
    left, right = fig.subplots(1, 2, width_ratios=(1.35, 1))
    left.set(**PLANE, xlim=(-3.2, 4.2), ylim=(-0.7, 4.0), title="Gradients and joint directions")
    hull = left.plot([], [], ":", color="#888888", lw=1.4, animated=True)[0]
    for name in methods:
        color, marker, size, full = METHOD_STYLES.get(name, OTHER_METHOD)
        look = {"color": color, "ms": size, "mfc": color if full else "none", "animated": True}
        tips += left.plot([], [], marker, mew=1.8, lw=0, label=name, **look)
        colors.append(color)
    arrows = _arrows(left, colors, 0.008)
    look = {"fontsize": 12, "ha": "center", "animated": True}
    names = [left.text(0, 0, name, color=color, **look) for name, color in (("g₁", FIRST), ("g₂", SECOND))]
    left.legend(fontsize=8, loc="upper right", frameon=True, framealpha=0.9, markerscale=0.75)
    bars = []
    for i, (shift, color) in enumerate(((-0.19, FIRST), (0.19, SECOND)), 1):
        bars += right.barh(at + shift, 0.0 * at, 0.34, color=color, animated=True)
        right.barh([-9], [0], color=color, label=f"task {i}")
    right.axvline(0, color="black", lw=1)
    right.set(xlim=(-1.05, 1.05), ylim=(len(methods) - 0.4, -0.6), yticks=at, yticklabels=methods)
    right.set(xlabel="cosine with the task's gradient", title="Positive: a step helps the task")
    right.grid(axis="y", visible=False)
    right.legend(fontsize=8, loc="lower left", frameon=True)

    def update(state: dict) -> str:
        rows = two_gradients(state["angle"], state["length"])
        made = np.array([combine_two(name, rows) for name in methods])
        arrows.set_UVC(*np.vstack([rows, made]).T)
        hull.set_data(*rows.T)
        for tip, point in zip(tips, made, strict=True):
            tip.set_data(point[:1], point[1:])
        for text, row in zip(names, rows, strict=True):
            text.set_position(row * (1 + 0.22 / np.linalg.norm(row)) + (0, -0.1))
        sizes = np.linalg.norm(made, axis=1, keepdims=True)
        sizes[sizes < 1e-9] = np.nan  # no direction
        cosines = made @ rows.T / (sizes * np.linalg.norm(rows, axis=1))
        for bar, value in zip(bars, np.nan_to_num(cosines.T).flat, strict=True):
            bar.set_width(value)
        return _read_two(state["angle"], dict(zip(methods, cosines, strict=True)))

    knobs = [
        slider("angle", "angle between the gradients", 0, 180, 135, step=1, unit="degrees"),
        slider("length", "length of g₂", 0.1, 3.0, 2.0, step=0.1, unit="g₁ has 1"),
    ]
    return Explorer(fig, knobs, update, title="Two gradients and what methods make of them")


def _read_two(angle: float, cosines: dict[str, np.ndarray]) -> str:
    inner = np.cos(np.deg2rad(angle))
    kind = "agree" if inner > 1e-9 else "conflict" if inner < -1e-9 else "are at right angles"
    said, (name, (first, second)) = (
        f"The gradients {kind} (cosine {inner:+.2f}).",
        next(iter(cosines.items())),
    )
    if np.isfinite(first):
        said += f" The {name} has cosine {first:+.2f} with g₁ and {second:+.2f} with g₂."
    hurt = {name: row.argmin() + 1 for name, row in cosines.items() if row.min() < -1e-6}
    raised = "".join(f" A {name} step raises the loss of task {task}." for name, task in hurt.items())
    still = [name for name, row in cosines.items() if np.isnan(row).any()]
    tail = f" No direction is left for {', '.join(still)}." if still else ""
    return said + (raised or " No method raises a task's loss.") + tail
