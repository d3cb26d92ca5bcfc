"""What each notebook costs: seconds in full and with FAST=1, peak memory, size of its outputs.

    python tests/benchmarks/course_cost.py [NN …] [--fast-only]

Runs every notebook (or those that are named) in a kernel of its own, as the build does, writes nothing, and prints a
table and the import time of the helper package. Real data are used where MTL_KUAIRAND and MTL_CENSUS name them.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
EXECUTE = ROOT / "notebooks" / "source" / "execute.py"
PASSIVE = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0", "MTL_BUILD": "1"}
IMPORTS = """
import time, torch, pandas
start = time.perf_counter()
from mtl_helpers import data, gradients, metrics, models, ranking, sweep, training, weighting, widgets
print(time.perf_counter() - start)
"""


def cost(path: Path, fast: bool) -> tuple[float, float, float]:
    """Seconds on the clock, processor seconds, and peak megabytes of the kernel (or of what drives it)."""
    env = {**os.environ, **PASSIVE}
    env.pop("FAST", None)
    if fast:
        env["FAST"] = "1"
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, str(EXECUTE), str(path)], env=env)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if status:
        raise SystemExit(f"{path.name} failed")
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes there, in kB on Linux
    return seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * unit / 1e6


def import_seconds(repeats: int = 5) -> float:
    """Fastest of several fresh interpreters: what the package adds to `import torch, pandas`."""
    runs = (
        subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, text=True, check=True, cwd=ROOT)
        for _ in range(repeats)
    )
    return min(float(run.stdout) for run in runs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="such as 01; by default all")
    parser.add_argument("--fast-only", action="store_true", help="leave the full runs out")
    options = parser.parse_args()
    paths = [
        path
        for path in sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))
        if not options.names or any(path.stem.startswith(name) for name in options.names)
    ]
    load = os.getloadavg()[0]
    print("| notebook | full s | of it processor s | FAST=1 s | peak MB | file kB |")
    print("|---|---|---|---|---|---|")
    sums = [0.0, 0.0, 0.0]
    for path in paths:
        fast, _, peak = cost(path, fast=True)
        full, processor = 0.0, 0.0
        if not options.fast_only:
            full, processor, peak = cost(path, fast=False)
        sums = [total + value for total, value in zip(sums, (full, processor, fast), strict=True)]
        size = path.stat().st_size / 1000
        print(
            f"| {path.stem} | {full:.0f} | {processor:.0f} | {fast:.0f} | {peak:.0f} | {size:.0f} |",
            flush=True,
        )
    print(f"| all | {sums[0]:.0f} | {sums[1]:.0f} | {sums[2]:.0f} | | |")
    print(f"\n{os.cpu_count()} cores; load average {load:.1f} at the start. ", end="")
    print(f"Importing mtl_helpers adds {import_seconds():.2f} s to `import torch, pandas`.")


if __name__ == "__main__":
    main()
