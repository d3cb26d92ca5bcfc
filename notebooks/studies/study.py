"""What the studies share: the package on the path, the command line, how a table is stored, training with a best epoch
for each task, networks side by side."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Iterable, Iterator
from copy import deepcopy
from pathlib import Path

import pandas as pd
import torch
from torch import nn

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from mtl_helpers.data import Task  # noqa: E402  (the path comes first)
from mtl_helpers.metrics import auc  # noqa: E402
from mtl_helpers.training import predict, training_steps  # noqa: E402
from mtl_helpers.weighting import constant_losses  # noqa: E402


def command_line(text: str, **numbers: int) -> argparse.ArgumentParser:
    """A whole number for each keyword, its default; and ``--out``, the folder of the tables."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--out", type=Path, default=ROOT / "notebooks" / "results")
    return parser


def store(path: Path, command: str, table: pd.DataFrame, **form: object) -> None:
    """Write a table; its first line is the command that makes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = table.to_csv(index=False, lineterminator="\n", **form)
    path.write_text(f"# python notebooks/studies/{command}\n{text}", encoding="utf-8")


def append(path: Path, rows: Iterable[dict], /, **same: object) -> None:
    """Add rows to a table, in one write; ``same`` is what all of them share."""
    columns = pd.read_csv(path, comment="#", nrows=0).columns
    text = pd.DataFrame(rows).assign(**same).reindex(columns=columns).round(6)
    with path.open("a", encoding="utf-8") as file:
        file.write(text.to_csv(index=False, header=False, lineterminator="\n"))


def begin(path: Path, command: str, columns: Iterable[str]) -> None:
    """Make a table without rows, unless it is there; of several processes that begin at once, one does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    own = path.with_suffix(f".{os.getpid()}")
    own.write_text(f"# python notebooks/studies/{command}\n{','.join(columns)}\n", encoding="utf-8")
    with contextlib.suppress(FileExistsError):
        os.link(own, path)
    own.unlink()


def score(task: Task, said: torch.Tensor, labels: torch.Tensor, known: torch.Tensor | None) -> float:
    """By labels: AUC, or the share of right classes, or of items among the ten likeliest."""
    if task.kind == "binary":
        return auc(labels.cpu(), said)
    known = slice(None) if known is None else known
    likeliest = said.to(labels.device)[known].topk(10 if task.name == "next_item" else 1).indices
    return float((likeliest == labels[known][:, None]).any(1).float().mean())


def trained(
    model: nn.Module, parts: Iterable, seed: int, lr: float, weight_decay: float, **how: int | dict
) -> Iterator[tuple[Task, int, torch.Tensor]]:
    """Fit a model; yields a task, its best epoch, and what the model of that epoch says of the test part."""
    train, valid, test = parts
    model.to(train.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=weight_decay)
    weights = {task: 1 / loss for task, loss in constant_losses(train).items()}
    how = {"batch_size": 1024, "epochs": 8, "weights": weights} | how
    order, best = torch.Generator().manual_seed(seed), {}
    for step in training_steps(model, train, optimizer, generator=order, **how):
        if step.number < -(-len(train) // how["batch_size"]):
            continue
        said = predict(model, valid)
        for task in model.tasks:
            value = score(task, said[task.name], valid.labels[task.name], valid.masks.get(task.name))
            if value > best.get(task.name, (-1,))[0]:
                best[task.name] = value, step.epoch, deepcopy(model.state_dict())
        if step.epoch >= max(epoch for _, epoch, _ in best.values()) + 2:
            break
    said = predict(model, test, {name: state for name, (_, _, state) in best.items()})
    for task in model.tasks:
        yield task, best[task.name][1], said[task.name]


class SideBySide(nn.Module):
    """A network for each task, in one model: they train side by side and share nothing."""

    def __init__(self, nets: Iterable[nn.Module]) -> None:
        super().__init__()
        self.nets = nn.ModuleList(nets)
        self.tasks = tuple(task for net in self.nets for task in net.tasks)

    def forward(self, numeric: torch.Tensor, categorical: torch.Tensor) -> dict[str, torch.Tensor]:
        return {name: out for net in self.nets for name, out in net(numeric, categorical).items()}
