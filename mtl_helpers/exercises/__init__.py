"""The exercises of the course, one module a notebook; :mod:`mtl_helpers.check` tells how to write one.

``nb01.py`` holds the exercises of notebook 01 in a tuple ``EXERCISES``. Nothing is imported until a check asks.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["Case", "Exercise", "Mistake", "all_exercises", "exercise", "find"]

# numbers, in order
NOTEBOOKS = sorted(entry.name[2:] for entry in pkgutil.iter_modules(__path__) if entry.name.startswith("nb"))


@dataclass(frozen=True)
class Case:
    """One call of the reader's function: its arguments, and what is special about them (``note``, may be empty)."""

    args: tuple[Any, ...]
    note: str = ""


@dataclass(frozen=True)
class Mistake:
    """A wrong answer that readers give, and its hint, shown when all that is wrong is what ``answer`` would give."""

    answer: Callable[..., Any]
    hint: str


@dataclass(frozen=True)
class Exercise:
    """One exercise; its ``id``, ``"01.precision_at"``, is its notebook and the name of the reference.

    reference : the solution, a function with the stub's parameters and comments that say why; ``solution`` prints it.
    cases : ``cases(rng) -> iterable of Case`` (a bare tuple of arguments will do). ``rng`` is a NumPy generator, and
        torch's global generator is seeded too: the same seed must give the same arguments.
    mistakes : at least three.
    hints : three, from a nudge to nearly the solution.
    gradients : names of tensor arguments to which a gradient must flow from the returned scalar; the stub says so.
    observe : ``observe(result, *args) -> facts``; facts are compared instead of the result itself. For answers that
        are no plain values, such as a model, or of which several are right.
    changes : names of arguments that the function may change.
    draws : whether it may use the global random generators, as a function that makes a layer does.
    rtol, atol : how near numbers must come.
    """

    reference: Callable[..., Any]
    cases: Callable[[np.random.Generator], Iterable[Case | tuple[Any, ...]]]
    mistakes: tuple[Mistake, ...]
    hints: tuple[str, str, str]
    gradients: tuple[str, ...] = ()
    observe: Callable[..., Any] | None = None
    changes: tuple[str, ...] = ()
    draws: bool = False
    rtol: float = 1e-4
    atol: float = 1e-6

    @property
    def notebook(self) -> str:
        return self.reference.__module__[-2:]

    @property
    def name(self) -> str:
        return self.reference.__name__

    @property
    def id(self) -> str:
        return f"{self.notebook}.{self.name}"


def exercise(
    reference: Callable[..., Any], cases: Callable[..., Any], *planted: Any, **rest: Any
) -> Exercise:
    """An exercise whose mistakes are ``planted``: an answer, its hint, the next answer, its hint, and so on."""
    pairs = zip(planted[::2], planted[1::2], strict=True)
    return Exercise(reference, cases, tuple(Mistake(answer, hint) for answer, hint in pairs), **rest)


def all_exercises(numbers: Iterable[str] = NOTEBOOKS) -> dict[str, Exercise]:
    """The exercises of the notebooks with these numbers, by id, in order."""
    modules = (importlib.import_module(f"{__name__}.nb{number}") for number in numbers)
    return {one.id: one for module in modules for one in module.EXERCISES}


def find(id: str) -> Exercise:
    """The exercise with an id. Raises KeyError in words when there is none."""
    known = all_exercises({str(id).partition(".")[0]} & set(NOTEBOOKS))
    if id in known:
        return known[id]
    raise KeyError(f"There is no exercise {id!r}. There are: {', '.join(known or all_exercises())}.")
