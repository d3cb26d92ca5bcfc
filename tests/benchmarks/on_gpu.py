"""What a real GPU does: all notebooks on it, the CPU's numbers, rows a second, memory.

    python tests/benchmarks/on_gpu.py [--notebooks]

Trains the same model from the same seed on the CPU and on the GPU, once and again, with a plain sum, a strategy that
learns its weights and one that combines gradients, and a sweep on both. Prints a markdown table. ``--notebooks`` first
runs every notebook with FAST=1 and MTL_DEVICE=cuda, four at a time.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
from mtl_helpers.data import (  # noqa: E402
    SHOP_CATEGORICAL,
    SHOP_NUMERIC,
    SHOP_TASKS,
    load_shop,
    prepare,
    shop_frame,
    shop_splits,
)
from mtl_helpers.gradients import CombinedGradients  # noqa: E402
from mtl_helpers.models import MMoE, SharedBottom  # noqa: E402
from mtl_helpers.sweep import simplex_grid, sweep  # noqa: E402
from mtl_helpers.training import fit, predict  # noqa: E402
from mtl_helpers.weighting import UncertaintyWeighting  # noqa: E402

EPOCHS, BATCH = 3, 1024


def notebooks() -> None:
    env = {**os.environ, "FAST": "1", "MTL_DEVICE": "cuda", "MTL_BUILD": "1", "OMP_NUM_THREADS": "4"}

    def run(path: Path) -> str:
        start = time.perf_counter()
        command = [sys.executable, str(ROOT / "notebooks/source/execute.py"), str(path)]
        done = subprocess.run(command, env=env, capture_output=True, text=True)
        seconds = time.perf_counter() - start
        return f"{path.stem}: {'ran' if not done.returncode else 'FAILED'} in {seconds:.0f} s\n{done.stderr[-1500:]}"

    with ThreadPoolExecutor(4) as pool:
        for line in pool.map(run, sorted((ROOT / "notebooks").glob("0*.ipynb"))):
            print(line.strip(), flush=True)


def trained(device: str, frames: dict, build, weights) -> tuple[dict, float]:
    """Predictions on the test rows, on the CPU, and training rows a second."""
    splits = prepare(frames, SHOP_TASKS[:2], SHOP_NUMERIC, SHOP_CATEGORICAL, device=device)
    torch.manual_seed(0)
    model = build(splits).to(device)
    start = time.perf_counter()
    fit(model, splits.train, weights=weights(splits.tasks), epochs=EPOCHS, batch_size=BATCH, progress=False)
    said = predict(model, splits.test)  # waits for the device
    return said, EPOCHS * len(splits.train) / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--notebooks", action="store_true", help="run the notebooks first")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("No CUDA device here.")
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {os.cpu_count()} CPU cores\n")
    if options.notebooks:
        notebooks()
    frames = shop_splits(shop_frame(load_shop()))
    contestants = {
        "shared bottom": (lambda s: SharedBottom(s.schema, s.tasks), lambda tasks: None),
        "MMoE": (lambda s: MMoE(s.schema, s.tasks), lambda tasks: None),
        "shared bottom, UW": (lambda s: SharedBottom(s.schema, s.tasks), UncertaintyWeighting),
        "shared bottom, PCGrad": (
            lambda s: SharedBottom(s.schema, s.tasks),
            lambda tasks: CombinedGradients(tasks, "PCGrad"),
        ),
    }
    print("\n| | CPU rows/s | GPU rows/s | largest difference of a probability | GPU twice | peak MB |")
    print("|---|---|---|---|---|---|")
    for name, (build, weights) in contestants.items():
        trained("cuda", frames, build, weights)  # warms up
        torch.cuda.reset_peak_memory_stats()
        (on_cpu, cpu), (on_gpu, gpu), (again, _) = (
            trained(device, frames, build, weights) for device in ("cpu", "cuda", "cuda")
        )
        gap, twice = (
            max((on_gpu[task] - other[task]).abs().max().item() for task in on_gpu)
            for other in (on_cpu, again)
        )
        peak = torch.cuda.max_memory_allocated() / 1e6
        print(f"| {name} | {cpu:,.0f} | {gpu:,.0f} | {gap:.1e} | {twice:.1e} | {peak:.0f} |", flush=True)
    for device in ("cpu", "cuda", "cuda"):
        splits = prepare(frames, SHOP_TASKS[:2], SHOP_NUMERIC, SHOP_CATEGORICAL, device=device)
        start = time.perf_counter()
        family = sweep(
            lambda splits=splits: SharedBottom(splits.schema, splits.tasks),
            splits.train,
            splits.valid,
            weightings=simplex_grid(splits.tasks, 33),
            epochs=EPOCHS,
            progress=False,
        )
        seconds, loss = (
            time.perf_counter() - start,
            family.final("valid").query("metric == 'loss'")["value"].mean(),
        )
        print(
            f"sweep of 33 weightings on {device}: {seconds:.1f} s, mean validation loss {loss:.6f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
