"""Two task losses in the plane, on which weighting methods can be watched.

Taught in notebook 04. The functions are those of Liu et al., *Conflict-Averse Gradient Descent for Multi-task
Learning*, NeurIPS 2021, appendix: two narrow valleys lead to a common Pareto front, and on the way there the mean of
both losses has places where one task's large gradient hides the other's. ``notebooks/studies/nb04_strategies.py`` walks
there.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mtl_helpers.gradients import METHODS

__all__ = ["FRONT", "STARTS", "WALKERS", "plane_losses"]

STARTS = ((-8.5, 7.5), (-8.5, -5.0), (9.0, 9.0))  # of the papers
FRONT = np.stack([np.linspace(-7, 7, 101), np.full(101, -8.3552)], axis=1)  # the Pareto front
WALKERS = ("Mean", *METHODS)
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
