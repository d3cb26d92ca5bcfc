"""Rows a second in one process and in several, and many trainings by three engines.

    python notebooks/studies/nb10_processes.py                 # about six minutes on two cores; needs ray
    python notebooks/studies/nb10_processes.py --most 16       # where there are as many cores

Writes ``10_processes.csv`` and ``10_engines.csv``; both name the cores of the machine.

Processes: torchrun starts 1, 2, 4 … of them (gloo, a thread each). Together they train a shared bottom on the shop's
log, 1,024 and 8,192 rows a step in all, with layers of 64-32 and of 1024-512. After three steps to warm up, rows a
second by the clock (``rows_s``), which other programs slow down, and by the seconds that the busiest process computed
(``rows_cpu_s``): what could be had if each had a core of its own and no message took time. The median of the starts.

Engines: eight weightings of click against purchase on each of two shops of 24,000 rows, two epochs, the same
``sweep`` of two weightings as the unit of work: one after the other, by joblib, by Ray; and all weightings of a shop in
one ``sweep``. Seconds include the engine's start; ``gap`` is the largest difference of a validation AUC from the first.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from functools import partial
from itertools import islice, product

import pandas as pd
import torch
from joblib import Parallel, delayed
from study import command_line, store

from mtl_helpers import data
from mtl_helpers.models import SharedBottom, count_parameters
from mtl_helpers.sweep import simplex_grid, sweep
from mtl_helpers.training import training_steps
from mtl_helpers.weighting import Fixed

SIZES = {"64-32": ((64, 32), 200_000), "1024-512": ((1024, 512), 30_000)}  # layers, rows to train on
BATCHES, SPEEDS = (1024, 8192), ("rows_cpu_s", "rows_s")
ENGINES = ("one process", "joblib", "Ray", "one sweep a shop")


def worker() -> None:
    """One of torchrun's processes; the first prints a line of JSON for each size and batch."""
    from mtl_helpers.production.distributed import across, processes

    torch.set_num_threads(1)
    parts = data.shop_splits(data.shop_frame(data.load_shop()))
    splits = data.prepare(parts, data.SHOP_TASKS, data.SHOP_NUMERIC, data.SHOP_CATEGORICAL)
    with processes() as device:
        for (size, (hidden, rows)), batch in product(SIZES.items(), BATCHES):
            torch.manual_seed(0)
            model = SharedBottom(splits.schema, splits.tasks, hidden=hidden).to(device)
            optimizer, how = torch.optim.AdamW(model.parameters()), {"batch_size": batch, "epochs": 100}
            strategy = across(Fixed(splits.tasks))
            steps = training_steps(model, splits.train.to(device), optimizer, weights=strategy, **how)
            list(islice(steps, 3))
            began = [time.process_time(), time.perf_counter()]
            trained = sum(len(step.batch) for step in islice(steps, -(-rows // batch)))
            taken = torch.tensor([time.process_time() - began[0], time.perf_counter() - began[1]])
            torch.distributed.all_reduce(taken, torch.distributed.ReduceOp.MAX)
            row = {"size": size, "parameters": count_parameters(model), "batch": batch}
            row |= {"device": device.type, **dict(zip(SPEEDS, (trained / taken).tolist(), strict=True))}
            if not int(os.environ["RANK"]):
                print(json.dumps(row), flush=True)


def speeds(most: int, starts: int) -> pd.DataFrame:
    rows = []
    for n, _ in product([2**k for k in range(most.bit_length())], range(starts)):
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={n}"]
        done = subprocess.run([*command, __file__, "--worker"], stdout=subprocess.PIPE, text=True, check=True)
        found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        rows += [{"processes": n, **row} for row in found]
        print(pd.DataFrame(found).to_string(), flush=True)
    keys = ["processes", "size", "parameters", "batch", "device"]
    return pd.DataFrame(rows).groupby(keys, sort=False)[[*SPEEDS]].median().round().reset_index()


def work(job: tuple) -> pd.Series:
    """One unit: some weightings on one shop, the first of them the ``at``-th; AUCs. It needs nothing else."""
    shop, splits, weightings, at = job
    torch.set_num_threads(1)
    build = partial(SharedBottom, splits.schema, splits.train.tasks)
    how = {"weightings": weightings, "epochs": 2, "lr": 3e-3, "progress": False}
    found = sweep(build, splits.train, splits.valid, **how).final("valid").query("metric == 'auc'")
    found = found.assign(shop=shop, weighting=found["weighting"] + at)
    return found.set_index(["shop", "weighting", "task"])["value"]


def engines() -> pd.DataFrame:
    shops, many = [], simplex_grid(("click", "purchase"), 8, lowest=0.05)
    for seed in (300, 301):
        shop = data.shop_frame(data.simulate(data.ShopConfig(216, n_impressions=24_000, seed=seed)))
        parts = data.shop_splits(shop)
        known = data.SHOP_TASKS[:2], data.SHOP_NUMERIC, data.SHOP_CATEGORICAL
        splits = data.prepare(parts, *known)
        splits.frames.clear()  # they need not travel
        shops.append((seed, splits))
    jobs = [(*shop, many[at : at + 2], at) for shop in shops for at in range(0, len(many), 2)]
    rows, first = [], None
    for engine in ENGINES:
        began = time.perf_counter()
        if engine == "Ray":
            import ray

            os.environ["RAY_raylet_start_wait_time_s"] = "120"  # a busy machine takes its time
            ray.init(include_dashboard=False, log_to_driver=False)
            task = ray.remote(work)
            found = ray.get([task.remote(job) for job in jobs])
            ray.shutdown()
        elif engine == "joblib":
            found = Parallel(n_jobs=-1)(delayed(work)(job) for job in jobs)
        else:
            found = [
                work(job)
                for job in (jobs if engine == "one process" else [(*shop, many, 0) for shop in shops])
            ]
        seconds = time.perf_counter() - began
        aucs = pd.concat(found).sort_index()
        first = aucs if first is None else first
        rows.append({"engine": engine, "seconds": round(seconds, 2), "gap": (aucs - first).abs().max()})
        print(rows[-1], flush=True)
    return pd.DataFrame(rows)


if __name__ == "__main__":
    parser = command_line(__doc__, most=2, starts=3)
    parser.add_argument("--worker", action="store_true", help="as torchrun calls it")
    parser.add_argument("--only", choices=("processes", "engines"))
    chosen = parser.parse_args()
    if chosen.worker:
        worker()
        sys.exit()
    torch.set_num_threads(1)
    cores = os.cpu_count()
    if chosen.only != "engines":
        table = speeds(chosen.most, chosen.starts).assign(cores=cores)
        store(chosen.out / "10_processes.csv", "nb10_processes.py", table)
    if chosen.only != "processes":
        store(chosen.out / "10_engines.csv", "nb10_processes.py", engines().assign(cores=cores))
