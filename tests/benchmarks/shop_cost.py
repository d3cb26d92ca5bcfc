"""What the simulated shop costs: seconds of one core, megabytes of memory and of disk.

    python tests/benchmarks/shop_cost.py [--repeats 3]

Prints the processor seconds that simulating 140,000 rows takes (the plan: at most 2), the peak memory of a process that
simulates 1,000,000 rows of 9,000 users (at most 1,500 MB) and then also makes their features, and the size of the
shipped folder (at most 7 MB).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
SECONDS = """
import time
from mtl_helpers.data import ShopConfig, make_world, simulate
{work}
start = time.process_time()
{work}
print(time.process_time() - start)
"""
MEMORY = """
import resource
from mtl_helpers.data import ShopConfig, shop_frame, simulate
{work}
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""
ROWS = "shop = simulate(ShopConfig(n_impressions={}, n_users={}))"


def measured(code: str, work: str) -> float:
    """What a fresh process of one thread prints."""
    run = [sys.executable, "-c", code.format(work=work)]
    threads = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return float(subprocess.run(run, env=threads, capture_output=True, text=True, check=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    repeats = range(parser.parse_args().repeats)
    small, large = ROWS.format(140_000, 1_260), ROWS.format(1_000_000, 9_000)
    world = "make_world(ShopConfig(n_impressions=140_000, n_users=1_260))"
    rows = {
        "its world alone, 140,000 rows, s": min(measured(SECONDS, world) for _ in repeats),
        "all tables, 140,000 rows, s": min(measured(SECONDS, small) for _ in repeats),
        "importing the package, MB": measured(MEMORY, "pass"),
        "1,000,000 rows simulated, peak MB": measured(MEMORY, large),
        "and their features, peak MB": measured(MEMORY, f"{large}\nshop_frame(shop)"),
        "folder, MB": sum(file.stat().st_size for file in (ROOT / "datasets/shop").iterdir()) / 1e6,
    }
    for name, value in rows.items():
        print(f"| {name} | {value:,.2f} |")


if __name__ == "__main__":
    main()
