"""Run somebody's function with care, and compare what comes out. The engine room of :mod:`mtl_helpers.check`.

The function runs in a thread of its own, for three reasons. It can be stopped when its time is up, on every system and
in a notebook's main thread, where signals cannot do it (Windows has no SIGALRM): Python is asked to raise an exception
in that thread. Autograd's switch belongs to a thread, so code that leaves it off harms nobody. And code that cannot be
stopped, because it waits inside one call of a compiled library, is left behind while the reader gets an answer.
"""

from __future__ import annotations

import contextlib
import ctypes
import inspect
import io
import random
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mtl_helpers.exercises import Case, Exercise

__all__ = ["Outcome", "Run", "difference", "draw_cases", "run", "show", "trusted"]

GRACE = 1.0  # seconds in which stopped code may still end
MOST_PRINTED = 400  # characters of what the code printed that are kept


class TimeUp(SystemExit):
    """Raised inside code that took too long. No Exception, so that ``except Exception`` does not catch it.

    ``except BaseException`` and a bare ``except`` do catch it. So when it is made, in the thread that it stops, it has
    Python call ``_again`` before the next line of the code, which is then the handler's first, outside of its ``try``.
    """

    def __init__(self) -> None:
        super().__init__()
        frame = sys._getframe(1)
        while frame is not None and frame.f_code.co_filename != __file__:
            frame.f_trace = _again
            frame = frame.f_back
        sys.settrace(_again)


def _again(frame: Any, event: str, argument: Any) -> None:
    """A trace function that stops the code at its next line; functions called from there are left in peace."""
    if event == "line":
        raise TimeUp


@dataclass
class Outcome:
    """What one call did. ``value`` is its result, or the facts observed about it.

    ``gradients`` has a tensor or None for each argument that must get one; it is None if nothing can flow at all.
    """

    value: Any = None
    raw: Any = None
    error: BaseException | None = None
    gradients: dict[str, Tensor | None] | None = None
    changed: tuple[str, ...] = ()
    drew: bool = False
    autograd_off: bool = False


@dataclass
class Run:
    """A function's outcomes, one a case; what it printed; ``stopped`` says where it was when its time was up."""

    outcomes: list[Outcome] = field(default_factory=list)
    printed: str = ""
    stopped: str = ""
    left_behind: bool = False


# --- inputs -----------------------------------------------------------------------------------------------------


def draw_cases(exercise: Exercise, seed: int, device: str | torch.device | None = None) -> list[Case]:
    """The cases of an exercise: new objects at every call, the same numbers for the same seed."""
    with kept_random_state():
        torch.manual_seed(seed)
        cases = [
            case if isinstance(case, Case) else Case(tuple(case))
            for case in exercise.cases(np.random.default_rng(seed))
        ]
    if device is None:
        return cases
    return [replace(case, args=tuple(_moved(arg, device) for arg in case.args)) for case in cases]


def _moved(value: Any, device: str | torch.device) -> Any:
    return value.to(device) if isinstance(value, (Tensor, nn.Module)) else value


@contextlib.contextmanager
def kept_random_state() -> Iterator[None]:
    """Puts Python's, NumPy's and torch's global generators back afterwards."""
    before = random.getstate(), np.random.get_state(), torch.random.get_rng_state()
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.random.set_rng_state(before[2])


def _random_state() -> tuple[Any, ...]:
    """The state of the global generators, in a form that can be compared."""
    return (
        random.getstate(),
        *(str(part.tobytes() if isinstance(part, np.ndarray) else part) for part in np.random.get_state()),
        torch.random.get_rng_state().numpy().tobytes(),
    )


# --- one call ---------------------------------------------------------------------------------------------------


def _call(fn: Callable[..., Any], case: Case, untouched: Case, exercise: Exercise) -> Outcome:
    """Calls ``fn`` on a case; ``untouched`` holds equal arguments that nobody changes."""
    names = list(inspect.signature(exercise.reference).parameters)
    args, leaves = list(case.args), {}
    for name in exercise.gradients:
        place = names.index(name)
        leaves[name] = args[place].detach().clone().requires_grad_()
        args[place] = leaves[name] * 1  # no leaf, so that code may change it in place and be told so
    outcome, state = Outcome(), _random_state()
    try:
        outcome.raw = outcome.value = fn(*args)
    except TimeUp:
        raise
    except BaseException as error:
        outcome.error = error
        return outcome
    outcome.autograd_off = not torch.is_grad_enabled()
    torch.set_grad_enabled(True)
    outcome.drew = not exercise.draws and state != _random_state()
    outcome.changed = tuple(
        name
        for name, before, after in zip(names, untouched.args, args, strict=False)
        if not (name in exercise.changes or inspect.isroutine(before))
        and difference(before, after, rtol=0, atol=0)
    )
    if outcome.raw is ...:
        return outcome
    if exercise.observe is not None:
        try:
            outcome.value = exercise.observe(outcome.raw, *args)
        except TimeUp:
            raise
        except BaseException as error:
            outcome.error = error
    elif exercise.gradients:
        outcome.gradients = _gradients(outcome.raw, leaves)
    if isinstance(outcome.value, Tensor):
        outcome.value = outcome.value.detach()
    return outcome


def _gradients(value: Any, leaves: dict[str, Tensor]) -> dict[str, Tensor | None] | None:
    """d(Σ kᵢ valueᵢ)/d leaf for some fixed k: no gradient can hide behind symmetry."""
    if not isinstance(value, Tensor) or not value.requires_grad:
        return None
    factors = torch.linspace(0.5, 1.5, value.numel(), dtype=value.dtype, device=value.device)
    total = (value * factors.reshape(value.shape)).sum()
    return dict(
        zip(leaves, torch.autograd.grad(total, list(leaves.values()), allow_unused=True), strict=True)
    )


# --- many calls, guarded ----------------------------------------------------------------------------------------


def trusted(fn: Callable[..., Any], exercise: Exercise, seeds: Sequence[int], device: Any = None) -> Run:
    """Runs a function of the course itself, here and now."""
    result = Run()
    with kept_random_state(), warnings.catch_warnings(), torch.enable_grad():
        warnings.simplefilter("ignore")
        _all_cases(fn, exercise, seeds, device, result)
    return result


def _all_cases(
    fn: Callable[..., Any], exercise: Exercise, seeds: Sequence[int], device: Any, result: Run
) -> None:
    for seed in seeds:
        pairs = zip(draw_cases(exercise, seed, device), draw_cases(exercise, seed, device), strict=True)
        for number, (case, untouched) in enumerate(pairs):
            # A state of our own: code that seeds a generator is found out even if it uses the reader's seed.
            torch.manual_seed(90_001 + number)
            random.seed(90_001 + number)
            np.random.seed(90_001 + number)
            outcome = _call(fn, case, untouched, exercise)
            result.outcomes.append(outcome)
            if outcome.raw is ...:
                return


class _Tap(io.TextIOBase):
    """Takes what is printed, and keeps the beginning."""

    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> int:
        if len(self.text) <= MOST_PRINTED:
            self.text += str(text)[: MOST_PRINTED + 1]
        return len(text)


def run(
    fn: Callable[..., Any], exercise: Exercise, seeds: Sequence[int], seconds: float, device: Any = None
) -> Run:
    """Runs a reader's function on all cases, for at most ``seconds``. Never raises, save KeyboardInterrupt."""
    result, tap = Run(), _Tap()

    def work() -> None:
        with contextlib.suppress(TimeUp):
            _all_cases(fn, exercise, seeds, device, result)
        sys.settrace(None)

    with (
        kept_random_state(),
        warnings.catch_warnings(),
        contextlib.redirect_stdout(tap),
        contextlib.redirect_stderr(tap),
    ):
        warnings.simplefilter("ignore")
        thread = threading.Thread(target=work, name="exercise", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # a Python in the browser has no threads: then there is no time limit either
            _all_cases(fn, exercise, seeds, device, result)
        else:
            _wait(thread, seconds, result)
    result.printed = tap.text
    return result


def _wait(thread: threading.Thread, seconds: float, result: Run) -> None:
    deadline = time.monotonic() + seconds
    try:
        while thread.is_alive() and time.monotonic() < deadline:
            thread.join(0.05)
    except KeyboardInterrupt:  # the reader pressed stop
        _stop(thread)
        raise
    if thread.is_alive():
        result.stopped = _where(thread) or "inside a compiled library"
        result.left_behind = not _stop(thread)
        result.outcomes = list(result.outcomes)  # a thread left behind may go on appending to the old list


def _where(thread: threading.Thread) -> str:
    """The reader's line at which a thread is now."""
    from mtl_helpers.widgets.explorer import own_line

    frame = sys._current_frames().get(thread.ident or 0)
    return own_line(traceback.extract_stack(frame)) if frame else ""


def _stop(thread: threading.Thread) -> bool:
    """Has TimeUp raised in a thread until it ends, for at most GRACE seconds. Says whether it ended."""
    deadline = time.monotonic() + GRACE
    while thread.is_alive() and time.monotonic() < deadline:
        with contextlib.suppress(AttributeError):  # not every Python has this call
            ctypes.pythonapi.PyThreadState_SetAsyncExc(
                ctypes.c_ulong(thread.ident or 0), ctypes.py_object(TimeUp)
            )
        thread.join(0.05)
    return not thread.is_alive()


# --- comparing --------------------------------------------------------------------------------------------------


def difference(expected: Any, got: Any, rtol: float = 1e-4, atol: float = 1e-6, what: str = "") -> str:
    """How two values differ, in words; empty if they agree.

    A number may come as Python's, NumPy's or a tensor of shape (). A tensor must agree in shape, dtype and device, an
    array in shape and in being of bool, whole or real numbers.
    """
    prefix = f"{what}: " if what else ""
    if got is None and expected is not None:
        return f"{prefix}expected {_kind(expected)}, got None. Is there a `return`?"
    if isinstance(expected, nn.Module):
        if not isinstance(got, nn.Module):
            return f"{prefix}expected a model, got {_kind(got)}"
        return difference(dict(expected.state_dict()), dict(got.state_dict()), rtol, atol, what)
    if _is_number(expected):
        if not _is_number(got):
            return f"{prefix}expected {_kind(expected)}, got {_kind(got)}"
        if isinstance(expected, (bool, np.bool_)) != _is_bool(got):
            return f"{prefix}expected {_kind(expected)}, got {_kind(got)}"
        close = np.isclose(float(got), float(expected), rtol=rtol, atol=atol, equal_nan=True)
        return "" if close else f"{prefix}another number"
    if isinstance(expected, (Tensor, np.ndarray)):
        return _array_difference(expected, got, rtol, atol, prefix)
    if type(expected).__module__.startswith("pandas"):
        return _table_difference(expected, got, rtol, atol, prefix)
    if isinstance(expected, dict):
        if not isinstance(got, dict):
            return f"{prefix}expected a dict, got {_kind(got)}"
        if set(expected) != set(got):
            return f"{prefix}expected the keys {sorted(map(str, expected))}, got {sorted(map(str, got))}"
        pairs = ((expected[key], got[key], str(key)) for key in expected)
    elif isinstance(expected, (list, tuple)):
        if not isinstance(got, (list, tuple)):
            return f"{prefix}expected {_kind(expected)}, got {_kind(got)}"
        if len(expected) != len(got):
            return f"{prefix}expected {len(expected)} values, got {len(got)}"
        pairs = ((a, b, f"value {i}") for i, (a, b) in enumerate(zip(expected, got, strict=True), start=1))
    else:
        try:
            same = expected is got or bool(expected == got)
        except Exception:
            same = False
        if same:
            return ""
        if type(expected) is not type(got):
            return f"{prefix}expected {_kind(expected)}, got {_kind(got)}"
        return f"{prefix}another value"
    for one, other, name in pairs:
        if found := difference(one, other, rtol, atol, f"{what}, {name}" if what else name):
            return found
    return ""


def _array_difference(expected: Any, got: Any, rtol: float, atol: float, prefix: str) -> str:
    if isinstance(expected, Tensor) != isinstance(got, Tensor) or not hasattr(got, "shape"):
        return f"{prefix}expected {_kind(expected)}, got {_kind(got)}"
    if not isinstance(got, (Tensor, np.ndarray, np.generic)):
        return f"{prefix}expected {_kind(expected)}, got {_kind(got)}"
    if tuple(expected.shape) != tuple(got.shape):
        return f"{prefix}expected shape {tuple(expected.shape)}, got shape {tuple(got.shape)}"
    if isinstance(expected, Tensor):
        if expected.dtype != got.dtype:
            return f"{prefix}expected {expected.dtype}, got {got.dtype}"
        if expected.device != got.device:
            return f"{prefix}expected a tensor on {expected.device}, got one on {got.device}"
        if expected.device.type == "meta":  # it has no values
            return ""
        a, b = expected.detach().cpu(), got.detach().cpu()
        # NumPy knows neither bfloat16 nor a tensor that requires a gradient
        if not a.dtype.is_floating_point and not a.dtype.is_complex:
            return "" if torch.equal(a, b) else f"{prefix}other numbers"
        close = torch.isclose(b.double(), a.double(), rtol=rtol, atol=atol, equal_nan=True)
        return "" if bool(close.all()) else f"{prefix}other numbers"
    if _number_kind(expected.dtype) != _number_kind(got.dtype):
        return f"{prefix}expected an array of {expected.dtype}, got one of {got.dtype}"
    if expected.dtype.kind in "biufc":
        return "" if np.allclose(got, expected, rtol, atol, equal_nan=True) else f"{prefix}other numbers"
    return "" if bool(np.all(expected == got)) else f"{prefix}other values"


def _table_difference(expected: Any, got: Any, rtol: float, atol: float, prefix: str) -> str:
    import pandas as pd

    if isinstance(expected, pd.Series) and isinstance(got, pd.Series):
        expected, got = expected.to_frame("values"), got.to_frame("values")
    if not (isinstance(expected, pd.DataFrame) and isinstance(got, pd.DataFrame)):
        same = type(expected) is type(got) and bool(np.all(expected == got))
        return "" if same else f"{prefix}expected {_kind(expected)}, got {_kind(got)}"
    if list(expected.columns) != list(got.columns):
        return f"{prefix}expected the columns {list(expected.columns)}, got {list(got.columns)}"
    if len(expected) != len(got):
        return f"{prefix}expected {len(expected)} rows, got {len(got)}"
    if not expected.index.equals(got.index):
        return f"{prefix}other row labels, or rows in another order"
    try:
        pd.testing.assert_frame_equal(
            expected, got, check_exact=not rtol, rtol=rtol or 1e-5, atol=atol or 1e-8
        )
    except AssertionError:
        return f"{prefix}other values"
    return ""


def _is_number(value: Any) -> bool:
    if isinstance(value, (bool, int, float, np.number, np.bool_)):
        return True
    return isinstance(value, (Tensor, np.ndarray)) and value.shape == ()


def _is_bool(value: Any) -> bool:
    return isinstance(value, (bool, np.bool_)) or getattr(value, "dtype", None) in (
        torch.bool,
        np.dtype(bool),
    )


def _number_kind(dtype: np.dtype) -> str:
    return "i" if dtype.kind in "iu" else dtype.kind


# --- showing ----------------------------------------------------------------------------------------------------


def _kind(value: Any) -> str:
    """What a value is, in words."""
    if value is None:
        return "None"
    if isinstance(value, Tensor):
        where = "" if value.device.type == "cpu" else f" on {value.device}"
        return f"a tensor of shape {tuple(value.shape)}, {value.dtype}{where}"
    if isinstance(value, np.ndarray):
        return f"an array of shape {value.shape}, {value.dtype}"
    if isinstance(value, (bool, np.bool_)):
        return "True or False"
    if isinstance(value, (int, np.integer)):
        return "a whole number"
    if isinstance(value, (float, np.floating)):
        return "a number"
    if inspect.isroutine(value):
        return "a function"
    name = type(value).__name__
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"


def show(value: Any, width: int = 160) -> str:
    """A value on one line, cut at ``width`` characters."""
    text = " ".join(_text(value).split())
    return text if len(text) <= width else text[: width - 1] + "…"


def _text(value: Any) -> str:
    if isinstance(value, (bool, np.bool_, str)) or value is None:
        return repr(value.item() if isinstance(value, np.bool_) else value)
    if isinstance(value, (float, np.floating)):
        return f"{float(value):.5g}"
    if isinstance(value, np.integer):
        return str(int(value))
    if isinstance(value, Tensor) and value.device.type == "meta":
        return _kind(value)
    if isinstance(value, Tensor):
        known = value.detach().cpu()
        return f"tensor{_numbers(known.float() if known.is_floating_point() else known)}{_shape(value)}"
    if isinstance(value, np.ndarray):
        return f"array{_numbers(value)}{_shape(value)}"
    if hasattr(value, "columns") and hasattr(value, "to_dict"):
        columns = "; ".join(f"{name} {_numbers(value[name].to_numpy())}" for name in value.columns)
        return f"table of {len(value)} rows: {columns}"
    if isinstance(value, nn.Module):
        tasks = [task.name for task in getattr(value, "tasks", ())]
        return type(value).__name__ + (f" with the tasks {', '.join(tasks)}" if tasks else "")
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key!r}: {_text(one)}" for key, one in value.items()) + "}"
    if isinstance(value, (set, frozenset)):
        return "{" + ", ".join(sorted(map(_text, value))) + "}" if value else "an empty set"
    if isinstance(value, (list, tuple)):
        inside = ", ".join(map(_text, value))
        return f"[{inside}]" if isinstance(value, list) else f"({inside}{',' * (len(value) == 1)})"
    if inspect.isroutine(value):
        return f"the function {value.__name__}"
    return repr(value)


def _shape(value: Any) -> str:
    return f" of shape {tuple(value.shape)}" if value.ndim > 1 or value.shape[:1] > (8,) else ""


def _numbers(value: Any, most: int = 8) -> str:
    """A nested list with short numbers; long ones keep their first entries."""
    if value.ndim == 0:
        return f"({_text(value.item())})"
    shown = [_text(one.item()) if one.ndim == 0 else _numbers(one) for one in map(np.asarray, value[:most])]
    return "[" + ", ".join(shown + ["…"] * (len(value) > most)) + "]"
