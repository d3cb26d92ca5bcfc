"""Contestants that take turns, so that a slow moment of the machine hits all of them, and the tables they end in.

The folder of the package under test comes first on the path: this checkout, or the one that MTL_CHECKOUT names.
"""

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
sys.path.insert(0, os.environ.get("MTL_CHECKOUT", str(ROOT)))


@dataclass
class Runs:
    """What one contestant did, round by round: seconds on the clock and of the processor, and what it returned."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    returned: list = field(default_factory=list)


def take_turns(
    contestants: Mapping[str, Callable[[], object]],
    rounds: int,
    warm: int = 1,
    before: Callable[[], object] = lambda: None,
) -> dict[str, Runs]:
    """Run each contestant once a round, in an order that turns. ``before`` each is untimed; so are ``warm`` rounds,
    whose returned values come first."""
    runs, names = {name: Runs() for name in contestants}, list(contestants)
    for number in range(warm + rounds):
        at = number % len(names)
        for name in names[at:] + names[:at]:
            before()
            clock, processor = time.perf_counter(), time.process_time()
            runs[name].returned.append(contestants[name]())
            spent = time.perf_counter() - clock, time.process_time() - processor
            if number >= warm:
                runs[name].wall.append(spent[0])
                runs[name].cpu.append(spent[1])
    return runs


def ratios(seconds: list[float], base: list[float]) -> list[float]:
    """Within each round."""
    return [mine / other for mine, other in zip(seconds, base, strict=True)]


def spread(values: list[float], form: str = ".2f") -> tuple[str, str]:
    """Median and range, as text."""
    low, middle, high = (f"{value:{form}}" for value in (min(values), statistics.median(values), max(values)))
    return middle, f"{low}–{high}"


def show(rows: Iterable[Mapping[str, object]]) -> None:
    """Print a markdown table, each row as soon as it is there; the first one's keys are the columns."""
    for number, row in enumerate(rows):
        if not number:
            print("| " + " | ".join(row) + " |\n" + "|---" * len(row) + "|")
        print("| " + " | ".join(map(str, row.values())) + " |", flush=True)


def parser(text: str, **numbers: int) -> argparse.ArgumentParser:
    """A command line with a whole number for each keyword, its default."""
    made = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in numbers.items():
        made.add_argument(f"--{name}", type=int, default=default, help=f"by default {default}")
    return made


def load() -> str:
    return f"load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "load unknown"


def machine() -> str:
    return (
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
        f"torch {importlib.metadata.version('torch')}, {load()}"
    )
