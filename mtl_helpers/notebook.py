"""What every notebook does once its setup cell has found this package. Explained in notebook 00."""

from __future__ import annotations

import os
import platform

import torch

from mtl_helpers.device import device_report, get_device
from mtl_helpers.seeds import seed_everything

__all__ = ["start"]


def start(seed: int = 0) -> tuple[torch.device, bool]:
    """Seed all generators, pick the device, set the course's look, and print where the notebook runs.

    Parameters
    ----------
    seed : int, default 0
        See `mtl_helpers.seeds.seed_everything`.

    Returns
    -------
    device : torch.device
        Where to train; see `mtl_helpers.device.get_device` and the environment variable ``MTL_DEVICE``.
    FAST : bool
        True if the environment variable ``FAST`` is 1: the notebook then makes short runs on few rows.
    """
    from mtl_helpers.plots import use_course_style

    seed_everything(seed)
    use_course_style()
    device = get_device()
    fast = os.environ.get("FAST") == "1"
    report = device_report(device)
    print(
        f"Python {platform.python_version()} · torch {torch.__version__} · {device} ({report.name})"
        + (" · FAST=1: short runs" if fast else "")
    )
    if report.hint:
        print("Hint:", report.hint)
    return device, fast
