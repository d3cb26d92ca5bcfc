"""What each notebook costs: seconds in full and with FAST=1, peak memory, size of its outputs; and what a shop costs.

    python tests/benchmarks/cost.py [NN …] [--fast-only] [--repeats 3]

Runs every notebook (or those that are named) in a kernel of its own, as the build does, writes nothing, and prints a
table and the import time of the helper package. Real data are used where MTL_KUAIRAND and MTL_CENSUS name them. Then
processor seconds of simulating 140,000 rows (at most 2), and the peak memory of a process that simulates 1,000,000 rows
of 9,000 users (at most 1,500 MB) and then also makes their features.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from timing import ROOT, command_line, machine, show

EXECUTE = ROOT / "notebooks" / "source" / "execute.py"
PASSIVE = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0", "MTL_BUILD": "1"}
IMPORTS = """
import time, torch, pandas
start = time.perf_counter()
from mtl_helpers import data, gradients, metrics, models, ranking, sweep, training, weighting, widgets
print(time.perf_counter() - start)
"""

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


def cost(path: Path, fast: bool) -> tuple[float, float, float]:
    """Seconds on the clock, processor seconds, and peak megabytes of the kernel (or of what drives it)."""
    env = {name: value for name, value in os.environ.items() if name != "FAST"} | PASSIVE
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, EXECUTE, path], env=env | ({"FAST": "1"} if fast else {}))
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if status:
        raise SystemExit(f"{path.name} failed")
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes there, in kB on Linux
    return seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * unit / 1e6


def costs(paths: list[Path], fast_only: bool) -> Iterator[dict[str, object]]:
    table = []
    for path in paths:
        fast, _, peak = cost(path, fast=True)
        full, processor, peak = (0.0, 0.0, peak) if fast_only else cost(path, fast=False)
        row = {"full s": full, "of it processor s": processor, "FAST=1 s": fast, "peak MB": peak}
        table.append({**row, "file kB": path.stat().st_size / 1000})
        yield {"notebook": path.stem, **{key: f"{value:.0f}" for key, value in table[-1].items()}}
    sums = {
        key: f"{sum(row[key] for row in table):.0f}" for key in ("full s", "of it processor s", "FAST=1 s")
    }
    yield {"notebook": "all", **sums, "peak MB": "", "file kB": ""}


def measured(work: str, seconds: bool = False) -> float:
    """What a fresh process of one thread prints."""
    env = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    settings = {"env": env, "capture_output": True, "text": True, "check": True}
    return float(subprocess.run([sys.executable, "-c", CODE.format(work, seconds)], **settings).stdout)


def main() -> None:
    options = command_line(__doc__, names=("",), fast_only=False, repeats=3)
    start, paths = machine(), sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))
    paths = [path for path in paths if path.stem.startswith(tuple(options.names))]
    show(costs(paths, options.fast_only))
    fresh = {"args": [sys.executable, "-c", IMPORTS], "capture_output": True, "cwd": ROOT, "check": True}
    seconds = min(float(subprocess.run(**fresh).stdout) for _ in range(5))
    print(f"\n{start} at the start. Importing mtl_helpers adds {seconds:.2f} s to `import torch, pandas`.")
    figures = {
        "140,000 rows, s": min(measured(SMALL, seconds=True) for _ in range(options.repeats)),
        "importing the package, MB": measured("pass"),
        "1,000,000 rows simulated, peak MB": measured(LARGE),
        "and their features, peak MB": measured(f"{LARGE}; shop_frame(shop)"),
    }
    show({"": name, "measured": f"{value:,.2f}"} for name, value in figures.items())


if __name__ == "__main__":
    main()
