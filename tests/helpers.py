"""Small tables and datasets that several test files use."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from mtl_helpers.data import Splits, Task, prepare, split_by_time

ROOT = Path(__file__).resolve().parents[1]
MIXED_TASKS = (Task("click"), Task("kind", "multiclass", 3), Task("dwell", "regression"))


def toy_frame(n: int = 600, seed: int = 0) -> pd.DataFrame:
    """A log with a learnable binary, multiclass (half missing) and regression (half missing) label."""
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame(
        {
            "timestamp": np.arange(n),
            "user_id": rng.integers(0, 30, n),
            "item": rng.choice(list("abcdef"), n),
            "x": rng.normal(size=n),
            "z": rng.normal(10, 4, n),
        }
    )
    logit = 2 * frame["x"] + (frame["item"] == "a") - 1
    frame["click"] = (rng.random(n) < 1 / (1 + np.exp(-logit))).astype(int)
    frame["kind"] = np.where(rng.random(n) < 0.5, -1, (frame["x"] > 0.5).astype(int) + (frame["z"] > 10))
    frame["dwell"] = np.where(frame["click"] == 1, frame["x"] + 0.1 * rng.normal(size=n), np.nan)
    return frame


def toy_splits(n: int = 600, seed: int = 0, tasks: tuple[Task, ...] = MIXED_TASKS) -> Splits:
    return prepare(split_by_time(toy_frame(n, seed)), tasks, ["x", "z"], ["user_id", "item"])
