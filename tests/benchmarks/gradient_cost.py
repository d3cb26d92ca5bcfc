"""What combining the tasks' gradients costs over a plain step, as ratios in one run.

    python tests/benchmarks/gradient_cost.py [--rounds 40] [--tasks 2 4 8]

A shared bottom 136-256-128 with towers of 16 units, batch 1024, UPGrad throughout (its solver is cheap in both
libraries). One step is forward, backward and combination, without the optimiser. The contestants take turns in every
round; figures are medians of rounds, ratios medians of the ratio within a round.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from functools import partial

import torch
from timing import command_line, machine, ratios, show, take_turns
from torch import Tensor

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
        schema = Schema(tuple(f"x{i}" for i in range(WIDTH)), {})
        self.model = SharedBottom(schema, self.tasks, hidden=(256, 128))
        self.model.features.requires_grad_(False)  # no categories: its table is never looked up
        labels = {task.name: (torch.rand(BATCH) < 0.3).float() for task in self.tasks}
        self.batch = Batch(torch.randn(BATCH, WIDTH), torch.zeros(BATCH, 0, dtype=torch.long), labels)
        self.shared = list(self.model.bottom.parameters())
        at_representation, exact = (
            CombinedGradients(self.tasks, "UPGrad", at=at) for at in ("representation", "parameters")
        )
        self.steps = {
            "plain sum": lambda: self.losses().sum().backward(),
            "ours, at the representation": partial(self.ours, at_representation),
            "ours, exact": partial(self.ours, exact),
            "loop of autograd.grad": self.loop_of_grad,
            "torchjd 0.18, exact": self.torchjd,
        }

    def losses(self) -> Tensor:
        found = task_losses(self.tasks, self.model(self.batch.numeric, self.batch.categorical), self.batch)
        return torch.stack([found[task.name] for task in self.tasks])

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


def measure(n_tasks: int, rounds: int) -> Iterator[dict[str, object]]:
    contest = Contest(n_tasks)
    runs = take_turns(contest.steps, rounds, warm=3, before=contest.model.zero_grad)
    for name, run in runs.items():
        middle = {
            "processor ms": 1000 * statistics.median(run.cpu),
            "ratio to plain": statistics.median(ratios(run.cpu, runs["plain sum"].cpu)),
        }
        yield {"tasks": n_tasks, "step": name} | {key: f"{value:.2f}" for key, value in middle.items()}


def main() -> None:
    options = command_line(__doc__, rounds=40, tasks=[2, 4, 8])
    print(f"{machine()}, {torch.get_num_threads()} threads, {options.rounds} rounds\n")
    show(row for n_tasks in options.tasks for row in measure(n_tasks, options.rounds))


if __name__ == "__main__":
    main()
