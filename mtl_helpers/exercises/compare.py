"""Call a function on an exercise's cases, and say how its answers differ. The engine room of :mod:`mtl_helpers.check`.

The function runs as any cell does: code that never ends is stopped with ■ (KeyboardInterrupt passes through).
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import io
import random
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from mtl_helpers.exercises import Case, Exercise

__all__ = ["Difference", "Outcome", "difference", "draw_cases", "kind", "run", "show"]

MOST = 8  # entries of an axis that are shown
WIDTH = 160  # characters of a value that are shown


@dataclass
class Outcome:
    """What one call did. ``value`` is its result ``raw``, or the facts observed about it.

    ``error`` was raised by the function or, if there is a result, by that when it was used. ``fault`` says what the
    call did that it may not.
    """

    value: Any = None
    raw: Any = None
    error: BaseException | None = None
    gradients: dict[str, Tensor | None] = field(default_factory=dict)
    fault: str = ""

    @property
    def raised(self) -> bool:
        return self.error is not None and self.raw is None


def draw_cases(exercise: Exercise, seed: int, device: torch.device | None = None) -> list[Case]:
    """The cases of an exercise: new objects at every call, the same numbers for the same seed."""
    with kept_random_state():
        torch.default_generator.manual_seed(seed)
        drawn = list(exercise.cases(np.random.default_rng(seed)))

    def there(value: Any) -> Any:
        return value.to(device) if device and isinstance(value, (Tensor, nn.Module)) else value

    cases = (case if isinstance(case, Case) else Case(tuple(case)) for case in drawn)
    return [Case(tuple(map(there, case.args)), case.note) for case in cases]


def random_state() -> dict[Callable[..., None], Any]:
    """Where the global generators of Python, NumPy and torch stand, by what puts each back there."""
    numpy, by_torch = np.random.get_state(legacy=False), torch.get_rng_state()
    return {random.setstate: random.getstate(), np.random.set_state: numpy, torch.set_rng_state: by_torch}


@contextlib.contextmanager
def kept_random_state() -> Iterator[None]:
    before = random_state()
    try:
        yield
    finally:
        for put_back, state in before.items():
            put_back(state)


def run(
    fn: Callable[..., Any], exercise: Exercise, seeds: Sequence[int], device: torch.device | None = None
) -> tuple[list[Outcome], str]:
    """A function's outcomes, one a case (none after one of ``...``), and what it printed."""
    outcomes, printed = [], io.StringIO()
    streams = contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed)
    with kept_random_state(), warnings.catch_warnings(), torch.enable_grad(), streams[0], streams[1]:
        warnings.simplefilter("ignore")
        for seed in seeds:
            for number, case in enumerate(draw_cases(exercise, seed, device)):
                # A state of our own: code that seeds a generator is found out even if it uses the reader's seed.
                for seeding in (torch.default_generator.manual_seed, random.seed, np.random.seed):
                    seeding(90_001 + number)
                outcomes.append(_call(fn, case.args, exercise))
                if outcomes[-1].raw is ...:
                    return outcomes, printed.getvalue()
    return outcomes, printed.getvalue()


def _call(fn: Callable[..., Any], given: tuple[Any, ...], exercise: Exercise) -> Outcome:
    kept = dict(zip(inspect.signature(exercise.reference).parameters, given, strict=False))
    leaves = {name: kept[name].detach().clone().requires_grad_() for name in exercise.gradients}
    # No leaves go in, so that code may change them in place and be told so.
    args = copy.deepcopy(kept) | {name: leaf * 1 for name, leaf in leaves.items()}
    outcome, state = Outcome(), random_state()
    try:
        outcome.raw = outcome.value = fn(*args.values())
    except (Exception, SystemExit) as error:
        outcome.error = error
        return outcome
    changed = [n for n in kept if n not in exercise.changes and difference(kept[n], args[n], 0, 0)]
    if not torch.is_grad_enabled():
        outcome.fault = "your code leaves autograd switched off. Use `with torch.no_grad():`"
        torch.set_grad_enabled(True)
    elif not exercise.draws and difference(state, random_state()):
        said = "your code draws from, or seeds, the global random generators. The answer needs no chance"
        outcome.fault = said
    elif changed:
        said = f"your code changes its argument {' and '.join(changed)}, which the caller still needs"
        outcome.fault = said
    try:
        if exercise.observe is not None and outcome.raw is not None and outcome.raw is not ...:
            outcome.value = exercise.observe(outcome.raw, *args.values())
        elif leaves and isinstance(outcome.raw, Tensor) and outcome.raw.requires_grad:
            found = torch.autograd.grad(outcome.raw.sum(), list(leaves.values()), allow_unused=True)
            outcome.gradients = dict(zip(leaves, found, strict=True))
    except Exception as error:
        outcome.error = error
    return outcome


class Difference(NamedTuple):
    """How two values differ, in words, and the entry where (empty if nowhere in particular)."""

    words: str
    at: tuple[int, ...] = ()


def difference(expected: Any, got: Any, rtol: float = 1e-4, atol: float = 1e-6) -> Difference | None:
    """How an answer differs from the expected one in shape or numbers, whatever they come in; None if it does not.

    0 and 1 will do for False and True. A table is compared by pandas, anything without numbers by ``==``.
    """
    unlike = Difference(f"expected {kind(expected)}, got {kind(got)}")
    if got is None and expected is not None:
        return Difference(f"{unlike.words}. Is there a `return`?")
    if isinstance(expected, nn.Module) and isinstance(got, nn.Module):
        expected, got = dict(expected.state_dict()), dict(got.state_dict())
    if isinstance(expected, dict) and isinstance(got, dict):
        if set(expected) != set(got):
            return Difference(f"expected the keys {sorted(map(str, expected))}, got {sorted(map(str, got))}")
        found = ((key, difference(expected[key], got[key], rtol, atol)) for key in expected)
        return next((Difference(f"{key}: {one.words}", one.at) for key, one in found if one), None)
    if isinstance(expected, pd.DataFrame) and isinstance(got, pd.DataFrame):
        try:
            return pd.testing.assert_frame_equal(got, expected, check_dtype=False, rtol=rtol, atol=atol)
        except AssertionError as error:
            return Difference(" ".join(str(error).split()))
    a, b = _numbers(expected), _numbers(got)
    if a is None or b is None:
        if type(expected) is not type(got):
            return unlike
        same = expected is got or np.all(expected == got)
        return None if same else Difference(f"expected {show(expected)}, got {show(got)}")
    if a.shape != b.shape:
        return unlike
    wrong = ~torch.isclose(b, a, rtol, atol, equal_nan=True)
    if not wrong.any():
        return None
    if not wrong.ndim:
        return Difference("another number")
    at = tuple(wrong.nonzero()[0].tolist())
    one = f"entry {list(at)}: expected {_text(a[at].item())}, got {_text(b[at].item())}"
    return Difference(f"{one} ({int(wrong.sum())} of {wrong.numel()} differ)", at)


def _numbers(value: Any) -> Tensor | None:
    """The numbers of a value as a float64 tensor on the CPU; None if it holds anything else."""
    if isinstance(value, Tensor):
        return value.detach().cpu().double()
    if isinstance(value, (list, tuple)):
        value = [one.tolist() if isinstance(one, Tensor) else one for one in value]
    try:
        array = np.asarray(value)
    except ValueError:  # lists of different lengths
        return None
    return torch.tensor(array.astype(float)) if array.dtype.kind in "biuf" else None


def kind(value: Any) -> str:
    """What a value is, in words."""
    if isinstance(value, (Tensor, np.ndarray)) and value.ndim:
        return f"{'a tensor' if isinstance(value, Tensor) else 'an array'} of shape {tuple(value.shape)}"
    if value is None or isinstance(value, (bool, np.bool_)):
        return "None" if value is None else "True or False"
    if isinstance(value, (int, float, np.number, Tensor, np.ndarray)):
        return "a number"
    if isinstance(value, (list, tuple)):
        return f"a {type(value).__name__} of {len(value)}"
    name = "function" if inspect.isroutine(value) else type(value).__name__
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"


def show(value: Any, at: tuple[int, ...] = ()) -> str:
    """A value on one line, cut short; of a large array the part around the entry ``at``."""
    text = " ".join(_text(value, at).split())
    return text if len(text) <= WIDTH else text[: WIDTH - 1] + "…"


def _text(value: Any, at: tuple[int, ...] = ()) -> str:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return f"{value + 0.0:.{12 if value.is_integer() else 5}g}"
    if isinstance(value, (Tensor, np.ndarray, pd.Series)):
        return _array_text(value, at)
    if isinstance(value, pd.DataFrame):
        columns = "; ".join(f"{name} {_nested(value[name].tolist())}" for name in value.columns)
        return f"table of {len(value)} rows: {columns}"
    if isinstance(value, nn.Module):
        tasks = ", ".join(task.name for task in getattr(value, "tasks", ()))
        return type(value).__name__ + f" with the tasks {tasks}" * bool(tasks)
    if isinstance(value, (list, tuple)) and len(value) > MOST and at:
        return "list: " + _array_text(np.asarray(_numbers(value)), at)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key!r}: {_text(one)}" for key, one in value.items()) + "}"
    if isinstance(value, (set, frozenset)):
        return "{" + ", ".join(sorted(map(_text, value))) + "}" if value else "an empty set"
    if isinstance(value, list):
        return f"[{', '.join(map(_text, value))}]"
    if isinstance(value, tuple):
        return f"({', '.join(map(_text, value))}{',' * (len(value) == 1)})"
    return f"the function {value.__name__}" if inspect.isroutine(value) else repr(value)


def _array_text(value: Any, at: tuple[int, ...]) -> str:
    part, name, shape = value.tolist(), "tensor" if isinstance(value, Tensor) else "array", tuple(value.shape)
    size = f" of shape {shape}" if len(shape) > 1 or shape > (MOST,) else ""
    whole = f"{name}{_nested(part)}{size}" if shape else f"{name}({_nested(part)})"
    hidden = len(whole) > WIDTH or any(i >= MOST for i in at)
    if not hidden or len(at) != len(shape) or any(i >= n for i, n in zip(at, shape, strict=True)):
        return whole
    for i in at[:-1]:
        part = part[i]
    first = max(0, at[-1] - MOST // 2)
    place = ", ".join([*map(str, at[:-1]), f"{first}:{min(first + MOST, len(part))}"])
    return f"{name}[{place}] = {_nested(part[first : first + MOST])}{size}"


def _nested(value: Any) -> str:
    """A nested list with short numbers; long ones keep their first entries."""
    if not isinstance(value, list):
        return _text(value)
    return "[" + ", ".join([*map(_nested, value[:MOST]), *["…"] * (len(value) > MOST)]) + "]"
