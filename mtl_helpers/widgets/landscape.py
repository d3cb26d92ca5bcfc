"""Two task losses in the plane, on which weighting methods can be watched.

Taught in notebook 04. The functions are those of Liu et al., *Conflict-Averse Gradient Descent for Multi-task
Learning*, NeurIPS 2021, appendix: two narrow valleys lead to a common Pareto front, and on the way there the mean of
both losses has places where one task's large gradient hides the other's.

Walks take a hundred thousand steps, so all starts go at once and methods use their closed forms for two tasks
(:func:`two_task_weights`, equal to those of :mod:`mtl_helpers.gradients`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

__all__ = ["FRONT", "STARTS", "WALKERS", "descend", "plane_gradients", "plane_losses", "two_task_weights"]

STARTS = ((-8.5, 7.5), (-8.5, -5.0), (9.0, 9.0))  # of the papers
FRONT = np.stack([np.linspace(-7, 7, 101), np.full(101, -8.3552)], axis=1)  # the Pareto front
WALKERS = ("Mean", "PCGrad", "MGDA", "CAGrad", "Nash-MTL", "IMTL-G", "Aligned-MTL", "UPGrad")
FLOOR = 5e-6


def plane_losses(x: Tensor, scale: float = 1.0) -> Tensor:
    """Both losses at points of the plane: (…, 2) → (…, 2).

    scale : multiplies the first loss; 1 in the CAGrad paper, 0.1 in those of Nash-MTL and FAMO.
    """
    x1, x2 = x[..., 0], x[..., 1]
    upper, lower = torch.tanh(x2 / 2).clamp(min=0), torch.tanh(-x2 / 2).clamp(min=0)
    losses = []
    for inside, centre in ((0.5 * (-x1 - 7) + torch.tanh(x2), 7), (0.5 * (7 - x1) - torch.tanh(x2), -7)):
        valley = inside.abs().clamp(min=FLOOR).log() + 6
        bowl = ((x1 - centre) ** 2 + 0.1 * (x2 + 8) ** 2) / 10 - 20
        losses.append(valley * upper + bowl * lower)
    return torch.stack([scale * losses[0], losses[1]], dim=-1)


def plane_gradients(points: np.ndarray, scale: float = 1.0) -> np.ndarray:
    """Gradients of both losses at points (n, 2): (n, 2 losses, 2 coordinates), derived by hand."""
    x1, x2 = points.T
    tanh, half = np.tanh(x2), np.tanh(x2 / 2)
    up, down, slope = half > 0, half < 0, 0.5 * (1 - half**2)
    rows = np.empty((len(points), 2, 2))
    valleys = (0.5 * (-x1 - 7) + tanh, 1.0, 7.0), (0.5 * (7 - x1) - tanh, -1.0, -7.0)
    for i, (inside, bend, centre) in enumerate(valleys):
        live = np.abs(inside) > FLOOR
        steep = live / np.where(live, inside, 1.0)
        value = np.log(np.maximum(np.abs(inside), FLOOR)) + 6
        bowl = ((x1 - centre) ** 2 + 0.1 * (x2 + 8) ** 2) / 10 - 20
        rows[:, i, 0] = -0.5 * steep * half * up - 0.2 * (x1 - centre) * half * down
        above = bend * (1 - tanh**2) * steep * half + value * slope
        below = 0.02 * (x2 + 8) * half + bowl * slope
        rows[:, i, 1] = above * up - below * down
    rows[:, 0] *= scale
    return rows


def two_task_weights(method: str, gram: np.ndarray) -> np.ndarray:
    """Closed forms, for two tasks, of :mod:`mtl_helpers.gradients`: inner products (n, 2, 2) → weights (n, 2)."""
    a, b, d = gram[:, 0, 0], gram[:, 0, 1], gram[:, 1, 1]
    tiny = 1e-12 * (a + d) + 1e-300
    if method == "Mean":
        return np.full((len(a), 2), 0.5)
    if method in ("PCGrad", "UPGrad"):
        cut = np.minimum(b, 0)
        weights = np.stack([1 - cut / np.maximum(a, tiny), 1 - cut / np.maximum(d, tiny)], axis=1)
        return weights if method == "PCGrad" else weights / 2
    if method == "MGDA":
        first = np.clip((d - b) / np.maximum(a + d - 2 * b, tiny), 0, 1)
        return np.stack([first, 1 - first], axis=1)
    if method == "IMTL-G":
        lengths = np.sqrt(np.stack([d, a], axis=1))
        return lengths / np.maximum(lengths.sum(1, keepdims=True), 1e-300)
    if method == "Nash-MTL":
        product = np.sqrt(np.maximum(a * d, 1e-300))
        bargain = 1 / np.sqrt(np.maximum(1 + b / product, 1e-9))
        return bargain[:, None] / np.sqrt(np.maximum(np.stack([a, d], axis=1), tiny[:, None]))
    if method == "Aligned-MTL":
        spread = np.sqrt((a - d) ** 2 / 4 + b * b)
        shrink = np.sqrt(np.clip(((a + d) / 2 - spread) / np.maximum((a + d) / 2 + spread, 1e-300), 0, 1))
        angle = np.arctan2(2 * b, a - d) / 2
        top = np.stack([np.cos(angle), np.sin(angle)], axis=1)
        # both principal directions of (½, ½), the larger one cut to the size of the smaller
        return 0.5 - ((1 - shrink) * top.sum(1) / 2)[:, None] * top
    if method == "CAGrad":
        return _cagrad_of_two(a, b, d, tiny)
    raise ValueError(f"method is {method!r}: expected one of {', '.join(WALKERS)}.")


def _cagrad_of_two(a: np.ndarray, b: np.ndarray, d: np.ndarray, tiny: np.ndarray) -> np.ndarray:
    """Set the slope of t ↦ g_w·g₀ + r‖g_w‖ to zero: with u = p·t + q it is r·√p·u / √(u² + det) = k."""
    r = 0.4 * np.sqrt(np.maximum(a + 2 * b + d, 0)) / 2
    p, q, k = np.maximum(a - 2 * b + d, tiny), b - d, (d - a) / 2
    spare = r * r * p - k * k
    u = np.sign(k) * np.sqrt(k * k * np.maximum(a * d - b * b, 0) / np.where(spare > 0, spare, 1))
    t = np.where(spare > 0, np.clip((u - q) / p, 0, 1), k > 0)
    w = np.stack([t, 1 - t], axis=1)
    length = np.sqrt(np.maximum(t * t * a + 2 * t * (1 - t) * b + (1 - t) ** 2 * d, 0))
    return 0.5 + np.where(length > np.sqrt(tiny), r / np.maximum(length, 1e-300), 0)[:, None] * w


def descend(
    methods: Sequence[str] = WALKERS, *, scale: float = 1.0, steps: int = 100_000, keep_every: int = 200
) -> np.ndarray:
    """Walk from :data:`STARTS` with Adam along each method's combined gradient, all walks at once.

    scale : of the first loss. Returns (kept, methods, starts, 2) points: the starts, one after every ``keep_every``
    steps, and the ends.
    """
    points = np.tile(np.array(STARTS), (len(methods), 1, 1))
    moment, square, path = np.zeros_like(points), np.zeros_like(points), [points]
    for step in range(1, steps + 1):
        rows = plane_gradients(points.reshape(-1, 2), scale).reshape(*points.shape[:2], 2, 2)
        gram = rows @ rows.swapaxes(-1, -2)
        weights = np.stack([two_task_weights(method, gram[i]) for i, method in enumerate(methods)])
        slope = (weights[..., None, :] @ rows)[..., 0, :]
        moment = 0.9 * moment + 0.1 * slope
        square = 0.999 * square + 0.001 * slope**2
        points = points - 1e-3 * moment / (1 - 0.9**step) / (np.sqrt(square / (1 - 0.999**step)) + 1e-8)
        if step % keep_every == 0 or step == steps:
            path.append(points)
    return np.stack(path)
