"""Tests that run two at a time (pytest -n 2): a worker has one thread, and so have the kernels that it starts."""

import os

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # before torch is imported
    os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Half of the tests each, in order, so that neighbours share their fixtures; who is done early takes some over."""
    from xdist.scheduler import WorkStealingScheduling

    return WorkStealingScheduling(config, log)
