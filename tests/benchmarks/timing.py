"""Contestants that take turns, so that a slow moment of the machine hits all of them, and the tables they end in."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))


@dataclass
class Runs:
    """What one contestant did, round by round: seconds on the clock and of the processor, and what it returned."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    returned: list = field(default_factory=list)


def take_turns(
    work: Mapping[str, Callable], rounds: int, warm: int = 1, before: Callable = int
) -> dict[str, Runs]:
    """Call each contestant once a round, in an order that turns. Calls of ``before`` are not timed, nor are ``warm``
    rounds at first, but what these returned comes first too."""
    runs, names = {name: Runs() for name in work}, list(work)
    for _ in range(warm + rounds):
        for name in names:
            before()
            clock, processor = time.perf_counter(), time.process_time()
            runs[name].returned.append(work[name]())
            runs[name].wall.append(time.perf_counter() - clock)
            runs[name].cpu.append(time.process_time() - processor)
        names = names[1:] + names[:1]
    for run in runs.values():
        del run.wall[:warm], run.cpu[:warm]
    return runs


def ratios(seconds: list[float], base: list[float]) -> list[float]:
    """Within each round."""
    return [mine / other for mine, other in zip(seconds, base, strict=True)]


def spread(values: list[float], form: str = ".2f") -> str:
    """Median and range, as text."""
    return f"{statistics.median(values):{form}} ({min(values):{form}}–{max(values):{form}})"


def show(rows: Iterable[Mapping[str, object]]) -> None:
    """Print a markdown table, each row as soon as it is there; the first one's keys are the columns."""
    for number, row in enumerate(rows):
        if not number:
            print("| " + " | ".join(row) + " |\n" + "|---" * len(row) + "|")
        print("| " + " | ".join(map(str, row.values())) + " |", flush=True)


def command_line(text: str, **defaults: object) -> argparse.Namespace:
    """What was typed: an option for each keyword. False makes it a flag, a list takes several of a kind, a tuple takes
    words without an option's name."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in defaults.items():
        option = f"--{name.replace('_', '-')}"
        if isinstance(value, tuple):
            parser.add_argument(name, nargs="*", default=value)
        elif isinstance(value, list):
            parser.add_argument(option, nargs="+", type=type(value[0]), default=value)
        elif value is False:
            parser.add_argument(option, action="store_true")
        else:
            parser.add_argument(option, type=type(value), default=value)
    return parser.parse_args()


def load() -> str:
    return f"load {os.getloadavg()[0]:.1f}"


def machine() -> str:
    versions = f"Python {platform.python_version()}, torch {importlib.metadata.version('torch')}"
    return f"{platform.machine()}, {os.cpu_count()} cores, {versions}, {load()}"
