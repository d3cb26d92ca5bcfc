"""What the simulated shop costs: python tests/benchmarks/shop_cost.py [--repeats 3]

Processor seconds of simulating 140,000 rows (at most 2), and the peak memory of a process that simulates 1,000,000 rows
of 9,000 users (at most 1,500 MB) and then also makes their features.
"""

from __future__ import annotations

import subprocess
import sys

from timing import ROOT, command_line, show

CODE = """
import resource, time
from mtl_helpers.data import ShopConfig, shop_frame, simulate
for _ in range(1 + {1}):  # the first time warms up
    start = time.process_time()
    {0}
print(time.process_time() - start if {1} else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6)
"""
SMALL, LARGE = (
    f"shop = simulate(ShopConfig(n_impressions={rows}, n_users={users}))"
    for rows, users in ((140_000, 1_260), (1_000_000, 9_000))
)


def measured(work: str, seconds: bool = False) -> float:
    """What a fresh process of one thread prints."""
    env = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    settings = {"env": env, "capture_output": True, "text": True, "check": True}
    return float(subprocess.run([sys.executable, "-c", CODE.format(work, seconds)], **settings).stdout)


def main() -> None:
    repeats = command_line(__doc__, repeats=3).repeats
    figures = {
        "140,000 rows, s": min(measured(SMALL, seconds=True) for _ in range(repeats)),
        "importing the package, MB": measured("pass"),
        "1,000,000 rows simulated, peak MB": measured(LARGE),
        "and their features, peak MB": measured(f"{LARGE}; shop_frame(shop)"),
    }
    show({"": name, "measured": f"{value:,.2f}"} for name, value in figures.items())


if __name__ == "__main__":
    main()
