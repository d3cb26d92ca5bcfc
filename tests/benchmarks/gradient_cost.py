"""What combining the tasks' gradients costs over a plain step, as ratios in one run.

    python tests/benchmarks/gradient_cost.py [--rounds 40]

A shared bottom 136-256-128 with towers of 16 units, batch 1024, UPGrad throughout (its solver is cheap in both
libraries). One step is forward, backward and combination, without the optimiser. The contestants take turns in every
round; figures are medians of rounds, ratios medians of the ratio within a round.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from mtl_helpers.data import Batch, Schema, Task
from mtl_helpers.gradients import CombinedGradients, combine
from mtl_helpers.losses import task_losses
from mtl_helpers.models import SharedBottom

BATCH, WIDTH = 1024, 136


class Contest:
    """One model and batch, and a step of every contestant."""

    def __init__(self, n_tasks: int) -> None:
        torch.manual_seed(0)
        self.tasks = tuple(Task(f"t{i}") for i in range(n_tasks))
        self.model = SharedBottom(
            Schema(tuple(f"x{i}" for i in range(WIDTH)), {}), self.tasks, hidden=(256, 128)
        )
        self.model.features.requires_grad_(False)  # no categories: its table is never looked up
        labels = {task.name: (torch.rand(BATCH) < 0.3).float() for task in self.tasks}
        self.batch = Batch(torch.randn(BATCH, WIDTH), torch.zeros(BATCH, 0, dtype=torch.long), labels)
        self.shared = list(self.model.bottom.parameters())
        self.exact = self.strategy("parameters")
        self.at_representation = self.strategy("representation")

    def strategy(self, at: str) -> CombinedGradients:
        return CombinedGradients(self.tasks, "UPGrad", at=at)

    def losses(self) -> Tensor:
        found = task_losses(self.tasks, self.model(self.batch.numeric, self.batch.categorical), self.batch)
        return torch.stack([found[task.name] for task in self.tasks])

    def plain(self) -> None:
        self.losses().sum().backward()

    def ours(self, strategy: CombinedGradients) -> None:
        strategy.begin(self.model, None)
        strategy.backward(strategy.losses(self.model, self.batch), self.model)

    def loop_of_grad(self) -> None:
        """One full backward pass a task, heads included; then the combination."""
        losses, rows = self.losses(), []
        for task, loss in zip(self.tasks, losses, strict=True):
            own = list(self.model.task_parameters(task.name))
            grads = torch.autograd.grad(loss, [*self.shared, *own], retain_graph=True)
            for p, grad in zip(own, grads[len(self.shared) :], strict=True):
                p.grad = grad
            rows.append(torch.cat([grad.flatten() for grad in grads[: len(self.shared)]]))
        combined = combine("UPGrad", torch.stack(rows))
        for p, part in zip(self.shared, combined.split([p.numel() for p in self.shared]), strict=True):
            p.grad = part.view_as(p)

    def torchjd(self) -> None:
        from torchjd.aggregation import UPGrad
        from torchjd.autojac import jac_to_grad, mtl_backward

        shared = self.model.represent(self.batch.numeric, self.batch.categorical)
        logits = {name: tower(shared) for name, tower in self.model.towers.items()}
        losses = list(task_losses(self.tasks, logits, self.batch).values())
        mtl_backward(losses, features=shared)
        jac_to_grad(self.shared, UPGrad())

    def contestants(self) -> dict:
        return {
            "plain sum": self.plain,
            "ours, at the representation": lambda: self.ours(self.at_representation),
            "ours, exact": lambda: self.ours(self.exact),
            "loop of autograd.grad": self.loop_of_grad,
            "torchjd 0.18, exact": self.torchjd,
        }


def measure(n_tasks: int, rounds: int) -> dict[str, list[float]]:
    contest = Contest(n_tasks)
    runs = contest.contestants()
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 3):
        for name, step in runs.items():
            contest.model.zero_grad(set_to_none=True)
            start = time.perf_counter()
            step()
            if number >= 3:  # the first rounds warm up
                seconds[name].append(time.perf_counter() - start)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--tasks", type=int, nargs="+", default=[2, 4, 8])
    options = parser.parse_args()
    load = f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, load {load}, {options.rounds} rounds\n"
    )
    print("| tasks | step | median ms | ratio to plain |\n|---|---|---|---|")
    for n_tasks in options.tasks:
        seconds = measure(n_tasks, options.rounds)
        for name, values in seconds.items():
            ratio = statistics.median(v / p for v, p in zip(values, seconds["plain sum"], strict=True))
            print(f"| {n_tasks} | {name} | {1000 * statistics.median(values):.2f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
