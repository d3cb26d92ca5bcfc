"""What the studies share: the package on the path, the command line, how a table is stored, networks side by side."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Iterable
from pathlib import Path

import pandas as pd
import torch
from torch import nn

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))


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


class SideBySide(nn.Module):
    """A network for each task, in one model: they train side by side and share nothing."""

    def __init__(self, nets: Iterable[nn.Module]) -> None:
        super().__init__()
        self.nets = nn.ModuleList(nets)
        self.tasks = tuple(task for net in self.nets for task in net.tasks)

    def forward(self, numeric: torch.Tensor, categorical: torch.Tensor) -> dict[str, torch.Tensor]:
        return {name: out for net in self.nets for name, out in net(numeric, categorical).items()}
