"""Two regressions that are as related as one likes: the synthetic data of the MMoE paper.

Taught in notebook 06. Two tasks read the same input through two directions, whose cosine is the knob.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from mtl_helpers.data.tables import MultiTaskDataset, Schema, Task

__all__ = ["CORRELATED_TASKS", "CorrelatedTasks", "correlated_tasks"]

CORRELATED_TASKS = (Task("first", "regression"), Task("second", "regression"))
FEATURES, WAVES, NOISE = 50, 3, 0.1
"""Of x; sines on each straight line; standard deviation of the labels' errors."""


@dataclass
class CorrelatedTasks:
    """Train, validation and test rows of the two tasks, and what they were made from: ``directions`` (2, 50), unit
    vectors w₁ and w₂ with w₁·w₂ = correlation, and ``phases`` (3,), βᵢ. The 50 numeric columns are standard normal."""

    train: MultiTaskDataset
    valid: MultiTaskDataset
    test: MultiTaskDataset
    directions: Tensor
    phases: Tensor
    schema: Schema
    tasks: tuple[Task, ...] = CORRELATED_TASKS


def correlated_tasks(
    correlation: float, seed: int = 0, rows: tuple[int, int, int] = (8000, 2000, 4000)
) -> CorrelatedTasks:
    """Draw a pair of tasks (Ma et al., *Modeling Task Relationships … MMoE*, KDD 2018, §3.2).

    w₁ = u₁ and w₂ = p u₁ + √(1 − p²) u₂ with orthogonal unit vectors u₁, u₂ and p the ``correlation``, -1 to 1; task k
    is yₖ = wₖᵀx + Σᵢ sin(i wₖᵀx + βᵢ) + ε. With p = 1 both tasks are one but for their noise. The labels' own
    correlation rises with p, but is not p. The same ``seed`` with another p keeps x, u₁, u₂, β; ``rows`` are those of
    train, valid and test.
    """
    generator = torch.Generator().manual_seed(seed)
    basis, _ = torch.linalg.qr(torch.randn(FEATURES, 2, generator=generator))
    second = correlation * basis[:, 0] + math.sqrt(1 - correlation**2) * basis[:, 1]
    directions = torch.stack([basis[:, 0], second])
    phases = 2 * torch.pi * torch.rand(WAVES, generator=generator)
    x = torch.randn(sum(rows), FEATURES, generator=generator)
    errors = NOISE * torch.randn(sum(rows), 2, generator=generator)
    labels, order = {}, torch.arange(1, WAVES + 1, dtype=x.dtype)
    for task, direction, error in zip(CORRELATED_TASKS, directions, errors.T, strict=True):
        s = x @ direction
        labels[task.name] = s + (order * s[:, None] + phases).sin().sum(-1) + error
    schema, no_codes = (
        Schema(tuple(f"x{i}" for i in range(FEATURES)), {}),
        torch.zeros(len(x), 0, dtype=torch.long),
    )
    everything = MultiTaskDataset(x, no_codes, labels, {}, CORRELATED_TASKS)
    starts = (0, rows[0], rows[0] + rows[1], sum(rows))
    parts = [everything.take(slice(a, b)) for a, b in pairwise(starts)]
    return CorrelatedTasks(*parts, directions, phases, schema)
