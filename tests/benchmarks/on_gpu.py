"""What a real GPU does: the CPU's numbers, rows a second, memory.

    python tests/benchmarks/on_gpu.py

Trains the same model from the same seed on the CPU and on the GPU, once and again, with a plain sum, a strategy that
learns its weights and one that combines gradients, and a sweep on both. Prints a markdown table. All notebooks
run there by ``MTL_DEVICE=cuda python tests/benchmarks/cost.py --fast-only``.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from functools import partial

import torch
from timing import machine, show

from mtl_helpers import data
from mtl_helpers.gradients import CombinedGradients
from mtl_helpers.models import MMoE, SharedBottom
from mtl_helpers.sweep import simplex_grid, sweep
from mtl_helpers.training import fit, predict
from mtl_helpers.weighting import Fixed, UncertaintyWeighting

EPOCHS, BATCH = 3, 1024
CONTESTANTS = {
    "shared bottom": (SharedBottom, Fixed),
    "MMoE": (MMoE, Fixed),
    "shared bottom, UW": (SharedBottom, UncertaintyWeighting),
    "shared bottom, PCGrad": (SharedBottom, lambda tasks: CombinedGradients(tasks, "PCGrad")),
}


def prepared(frames: dict, device: str) -> data.Splits:
    return data.prepare(frames, data.SHOP_TASKS[:2], data.SHOP_NUMERIC, data.SHOP_CATEGORICAL, device=device)


def trained(device: str, frames: dict, name: str) -> tuple[dict, float]:
    """Predictions on the test rows, on the CPU, and training rows a second."""
    build, weigh = CONTESTANTS[name]
    splits = prepared(frames, device)
    torch.manual_seed(0)
    model = build(splits.schema, splits.tasks).to(device)
    start, settings = time.perf_counter(), {"epochs": EPOCHS, "batch_size": BATCH, "progress": False}
    fit(model, splits.train, weights=weigh(splits.tasks), **settings)
    said = predict(model, splits.test)  # waits for the device
    return said, EPOCHS * len(splits.train) / (time.perf_counter() - start)


def both(frames: dict) -> Iterator[dict[str, object]]:
    for name in CONTESTANTS:
        trained("cuda", frames, name)  # warms up
        torch.cuda.reset_peak_memory_stats()
        (on_cpu, cpu), (on_gpu, gpu), (again, _) = (
            trained(device, frames, name) for device in ("cpu", "cuda", "cuda")
        )
        gap, twice = (
            max((on_gpu[task] - other[task]).abs().max().item() for task in on_gpu)
            for other in (on_cpu, again)
        )
        speeds = {"": name, "CPU rows/s": f"{cpu:,.0f}", "GPU rows/s": f"{gpu:,.0f}"}
        gaps = {"largest difference of a probability": f"{gap:.1e}", "GPU twice": f"{twice:.1e}"}
        yield {**speeds, **gaps, "peak MB": f"{torch.cuda.max_memory_allocated() / 1e6:.0f}"}


def swept(device: str, frames: dict) -> str:
    splits = prepared(frames, device)
    start, settings = time.perf_counter(), {"weightings": simplex_grid(splits.tasks, 33), "progress": False}
    build = partial(SharedBottom, splits.schema, splits.tasks)
    family = sweep(build, splits.train, splits.valid, epochs=EPOCHS, **settings)
    seconds = time.perf_counter() - start
    loss = family.final("valid").query("metric == 'loss'")["value"].mean()
    return f"sweep of 33 weightings on {device}: {seconds:.1f} s, mean validation loss {loss:.6f}"


def main() -> None:
    if not torch.cuda.is_available():
        sys.exit("No CUDA device here.")
    print(f"{torch.cuda.get_device_name()}, {machine()}\n")
    frames = data.shop_splits(data.shop_frame(data.load_shop()).tail(80_000))
    show(both(frames))
    for device in ("cpu", "cuda", "cuda"):
        print(swept(device, frames), flush=True)


if __name__ == "__main__":
    main()
