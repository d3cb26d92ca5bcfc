"""MMoE's synthetic experiment: does a shared bottom fall behind as two tasks have less in common?

    python notebooks/studies/nb06_correlation.py [--seeds 10] [--out notebooks/results]

Writes ``06_correlation.csv`` (a row per correlation, model, seed and metric: test error over the label's variance, mean
of both tasks; for MMoE also how far the tasks' gates differ), ``06_gates.csv`` (mean gates by task and segment, and
number of experts) and ``06_correlation_tuned.csv`` (the learning rates); notebook 06 reads them.

What is kept equal: data of a seed, number of parameters, optimiser, batches, epochs at most, patience (on validation)
and the tuning: each model gets the best of the same three learning rates, by validation loss at correlation 0.5 on two
seeds that are not reported. A seed draws new directions, waves, rows, initial weights and order of batches; it keeps
them when the correlation changes. Test rows are scored once a run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import pandas as pd
import torch
from study import SideBySide, command_line, store
from torch import nn

from mtl_helpers.data import Task
from mtl_helpers.data.correlated import CorrelatedTasks, correlated_tasks
from mtl_helpers.models import PLE, MMoE, SharedBottom, SingleTask, count_parameters, match_parameters
from mtl_helpers.training import evaluate, fit

CORRELATIONS = (0.0, 0.25, 0.5, 0.75, 1.0)
RATES = (3e-3, 1e-2, 3e-2)
TRAINING = {"epochs": 80, "patience": 5, "batch_size": 256, "progress": False}
SIZE = {"embedding_dim": 1, "tower": (8,)}
TUNING_SEEDS, TUNING_CORRELATION = (1000, 1001), 0.5
SEGMENTS = 4


def builds(data: CorrelatedTasks) -> Mapping[str, Callable[[], nn.Module]]:
    """Models by name, all with about as many parameters as MMoE with 8 experts of 16 units.

    "separate" stands for two single-task networks, which share nothing.
    """
    like = MMoE(data.schema, data.tasks, n_experts=8, hidden=(16,), **SIZE)
    kinds = {
        "shared-bottom": (SharedBottom, {"hidden": (64,)}),
        "MMoE": (MMoE, {"n_experts": 8, "hidden": (16,)}),
        "CGC": (PLE, {"n_specific": 2, "n_shared": 4, "hidden": (16,)}),
        "MMoE, 4 experts": (MMoE, {"n_experts": 4, "hidden": (32,)}),
        "MMoE, 2 experts": (MMoE, {"n_experts": 2, "hidden": (64,)}),
    }

    def separate() -> nn.Module:
        def alone(task: Task, width: int) -> nn.Module:
            return SingleTask(data.schema, task, hidden=(width,), **SIZE)

        target = count_parameters(like)
        sizes = {w: 2 * count_parameters(alone(data.tasks[0], w)) for w in range(1, 300)}
        width = min(sizes, key=lambda w: abs(sizes[w] - target))
        return SideBySide(alone(task, width) for task in data.tasks)

    return {**match_parameters(like, kinds, **SIZE), "separate": separate}


Build = Callable[[], nn.Module]


def train(build: Build, data: CorrelatedTasks, lr: float, seed: int) -> tuple[nn.Module, float]:
    """A trained model, and its best validation loss."""
    torch.manual_seed(seed)
    model = build()
    history = fit(model, data.train, data.valid, lr=lr, seed=seed, **TRAINING)
    valid = history.frame().query("split == 'valid' and metric == 'loss'").groupby("epoch")["value"].sum()
    return model, valid[history.best_epoch]


def tune() -> dict[str, float]:
    """The learning rate of each model."""
    losses: dict[tuple[str, float], list[float]] = {}
    for seed in TUNING_SEEDS:
        data = correlated_tasks(TUNING_CORRELATION, seed)
        for name, build in builds(data).items():
            for lr in RATES:
                losses.setdefault((name, lr), []).append(train(build, data, lr, seed)[1])
    table = pd.Series({key: np.mean(values) for key, values in losses.items()}).unstack()
    print(table.round(3).to_string(), flush=True)
    return table.idxmin(axis=1).to_dict()


def error(model: nn.Module, data: CorrelatedTasks) -> float:
    """Test error of both tasks, as a share of the label's variance, averaged."""
    found = evaluate(model, data.test)
    return float(np.mean([v["loss"] / data.test.labels[name].var().item() for name, v in found.items()]))


@torch.no_grad()
def read_gates(model: MMoE, data: CorrelatedTasks) -> tuple[pd.DataFrame, float]:
    """Mean gate by task, segment and expert; and the mean distance (total variation) of the two tasks' gates.

    Segments are quarters of the test rows by the first task's w₁ᵀx.
    """
    model.eval()
    use = model.expert_use(data.test.numeric, data.test.categorical)
    place = (data.test.numeric @ data.directions[0]).argsort().argsort() * SEGMENTS // len(data.test)
    rows = [
        {"task": task, "segment": s, "expert": e, "gate": round(gate, 4)}
        for task, gates in use.items()
        for s in range(SEGMENTS)
        for e, gate in enumerate(gates[place == s].mean(0).tolist())
    ]
    first, second = use.values()
    return pd.DataFrame(rows), float((first - second).abs().sum(-1).mean() / 2)


def study(seeds: int, rates: Mapping[str, float]) -> Iterator[tuple[pd.DataFrame, pd.DataFrame]]:
    """After each seed, what is known so far: errors, and gates."""
    records, gates = [], []
    for seed in range(seeds):
        for correlation in CORRELATIONS:
            data = correlated_tasks(correlation, seed)
            labels = torch.stack(list(data.train.labels.values())).double()
            for name, build in builds(data).items():
                if "experts" in name and seed >= 3:  # only their gates are shown
                    continue
                model, _ = train(build, data, rates[name], seed)
                found = {
                    "error": error(model, data),
                    "parameters": count_parameters(model),
                    "label_correlation": torch.corrcoef(labels)[0, 1].item(),
                }
                if isinstance(model, MMoE):
                    table, found["gate_distance"] = read_gates(model, data)
                    key = {"correlation": correlation, "n_experts": model.settings["n_experts"], "seed": seed}
                    gates.append(table.assign(**key))
                key = {"correlation": correlation, "model": name, "seed": seed}
                records += [
                    {**key, "metric": metric, "value": round(value, 5)} for metric, value in found.items()
                ]
        print(f"seed {seed} done", flush=True)
        yield pd.DataFrame(records), pd.concat(gates)


def main() -> None:
    options = command_line(__doc__, seeds=10).parse_args()

    def write(name: str, table: pd.DataFrame) -> None:
        store(options.out / f"06_{name}.csv", f"nb06_correlation.py --seeds {options.seeds}", table)

    rates = tune()
    write("correlation_tuned", pd.DataFrame({"model": list(rates), "lr": list(rates.values())}))
    columns = ["correlation", "n_experts", "seed", "task", "segment", "expert", "gate"]
    for table, gates in study(options.seeds, rates):
        write("correlation", table)
        write("gates", gates[columns])
    errors = table.query("metric == 'error'").groupby(["model", "correlation"])["value"]
    print(errors.mean().unstack().round(4).to_string())


if __name__ == "__main__":
    main()
