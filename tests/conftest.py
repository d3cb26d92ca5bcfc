"""A worker of several (pytest -n 2) has one thread, and so have the kernels that it starts."""

import os

if "PYTEST_XDIST_WORKER" in os.environ:  # before torch is imported
    os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
