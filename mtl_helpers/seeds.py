"""One call that makes a run repeatable. Taught in notebook 00."""

from __future__ import annotations

import operator
import random

import numpy as np
import torch

__all__ = ["seed_everything"]


def seed_everything(seed: int = 0) -> torch.Generator:
    """Seed Python's ``random``, NumPy's global generator and torch on every device.

    Parameters
    ----------
    seed : int, default 0
        A whole number from 0 to 2**32 - 1, the range that NumPy accepts.

    Returns
    -------
    torch.Generator
        A fresh CPU generator with the same seed. Hand it to code that shuffles, so that its order does not depend
        on how many random numbers were drawn elsewhere.

    Raises
    ------
    TypeError, ValueError
        If `seed` is no whole number, or lies outside the range.

    Notes
    -----
    The same seed gives the same numbers on the same machine with the same versions. Another GPU, another number of
    threads or another torch release may round differently.
    """
    try:
        if isinstance(seed, bool):
            raise TypeError
        seed = operator.index(seed)
    except TypeError:
        raise TypeError(
            f"seed must be a whole number such as 0; got {seed!r} ({type(seed).__name__})."
        ) from None
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed must lie between 0 and 2**32 - 1 (4294967295); got {seed}.")
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    return torch.Generator().manual_seed(seed)
