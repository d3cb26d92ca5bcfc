"""Exercises: an answer that helps, graded hints, commented solutions. Explained in notebook 00.

A reader needs four calls. Each answers in words and never raises::

    check("01.precision_at", precision_at)     not attempted, correct, not yet (and why), or: your code raised …
    hint("01.precision_at", 2)                 levels 1 to 3
    solution("01.precision_at")                commented source
    progress()                                 what has been passed so far, on this computer

A later cell that needs the function takes ``use("01.precision_at", precision_at)``: the reader's function if it passes,
the reference otherwise. ``strict=True``, or the environment variable ``MTL_STRICT=1``, raises instead of answering.
``python -m mtl_helpers.check`` lists all exercises with their planted mistakes and hints.

How to write an exercise
------------------------
In the notebook, a stub that returns ``...`` under a docstring with shapes and a worked example. In the next cell::

    check("05.recall_at", recall_at)

In ``mtl_helpers/exercises/nb05.py``::

    import numpy as np
    from mtl_helpers.exercises import Case, Exercise, Mistake

    def recall_at(scores, relevant, k):
        best = np.argsort(-scores)[:k]  # the k best, best first
        return relevant[best].sum() / relevant.sum()

    def recall_cases(rng):
        for n, k in ((5, 1), (12, 4), (12, 12)):
            relevant = rng.random(n) < 0.4
            relevant[rng.integers(n)] = True  # at least one
            yield rng.normal(size=n), relevant, k
        yield Case((np.array([3.0, 2.0]), np.array([False, True]), 1), "the only relevant one is missed")

    EXERCISES = (
        Exercise(
            "05.recall_at", "recall at k", recall_at, recall_cases,
            mistakes=(
                Mistake("precision", lambda s, r, k: r[np.argsort(-s)[:k]].mean(), "You divide by k …"),
                Mistake("worst first", lambda s, r, k: r[np.argsort(s)[:k]].sum() / r.sum(), "argsort sorts …"),
                Mistake("hits", lambda s, r, k: r[np.argsort(-s)[:k]].sum(), "A share, not a count …"),
            ),
            hints=("a nudge", "the way", "nearly the solution"),
        ),
    )

The reference is what a reader sees of the solution: comment why, and give it the stub's parameters. Both are run on the
same cases, twice: once with a fixed seed, so that the first failing input stays the same while a reader mends, and once
with a seed drawn from the reader's code, so that no answer can be written for known inputs. Say the limits in ``cases``
(nothing flagged, one class, huge logits, float64), for whatever is not in them is not checked.

A reader's answer is compared with the reference in kind, shape, dtype, device and numbers, and in the gradient if
``gradients`` names arguments. It may not change its arguments (unless in ``changes``), draw from the global random
generators (unless ``draws``) or leave autograd off. Where several answers are right, or the answer is a model,
``observe`` turns it into facts that can be compared. The hint of a mistake is shown if that mistake explains all that
is wrong with the answer, so two mistakes of one exercise must differ somewhere in the cases. The tests demand
at least three, each with a hint of its own that its answer brings up.
"""

from __future__ import annotations

import datetime
import html
import inspect
import json
import os
import sys
import textwrap
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from mtl_helpers.exercises import Case, Exercise, Mistake, all_exercises, find
from mtl_helpers.exercises import compare as trial
from mtl_helpers.exercises.compare import Outcome, Run

__all__ = ["Answer", "check", "hint", "progress", "progress_file", "reset_progress", "solution", "use"]

SECONDS = (
    5.0  # that a reader's function may take for all cases together; the references take a fraction of one
)
FIRST_SEED = 20
MARKS = {"not attempted": "○", "correct": "✓", "not yet": "✗", "raised": "!", "note": ""}


class NotPassed(AssertionError):
    """Raised in strict mode only: what the check would have answered."""


@dataclass(frozen=True)
class Answer:
    """What a check, a hint or a solution says: a headline, then lines of (label, text).

    ``state`` is ``"not attempted"``, ``"correct"``, ``"not yet"``, ``"raised"`` or ``"note"``. Shown as the last
    expression of a cell; ``str(answer)`` is the same in plain text.
    """

    state: str
    headline: str
    lines: tuple[tuple[str, str], ...] = field(default=())

    def __repr__(self) -> str:
        width = max((len(label) for label, _ in self.lines), default=0)
        shown = [f"{MARKS[self.state]} {self.headline}".strip()]
        for label, text in self.lines:
            first, *rest = text.splitlines() or [""]
            shown.append(f"    {label:{width}}  {first}" if width else f"    {first}")
            shown += [f"    {'':{width}}  {line}".rstrip() if width else f"    {line}" for line in rest]
        return "\n".join(shown)

    def _repr_html_(self) -> str:
        """The same without colours of its own, so that it reads in a dark theme, too."""
        rows = "".join(
            '<div style="display:flex;gap:1em"><span style="flex:0 0 5.5em;opacity:.8">'
            f'{html.escape(label)}</span><span style="white-space:pre-wrap;font-family:monospace;min-width:0">'
            f"{html.escape(text)}</span></div>"
            if label
            else f'<pre style="margin:4px 0;overflow-x:auto;white-space:pre">{html.escape(text)}</pre>'
            for label, text in self.lines
        )
        return (
            f'<div class="mtl-check" role="status" style="line-height:1.5;padding:2px 0">'
            f"<strong>{html.escape(str(self).splitlines()[0])}</strong>{rows}</div>"
        )


# --- what a reader calls ----------------------------------------------------------------------------------------


def check(id: str, fn: Callable[..., Any], *, strict: bool = False) -> Answer:
    """Try a function on an exercise's cases and say in words what came of it.

    Parameters
    ----------
    id : the exercise, such as ``"01.precision_at"``.
    fn : your function.
    strict : raise AssertionError unless it is correct. The environment variable ``MTL_STRICT=1`` does the same.

    Returns
    -------
    Answer, which a notebook shows if the call ends its cell. A correct one is noted in the progress file.
    """
    try:
        exercise = find(id)
    except KeyError as error:
        return _settle(Answer("note", error.args[0]), strict)
    answer = _examine(exercise, fn)
    if answer.state == "correct":
        _remember(id)
    return _settle(answer, strict)


def use(id: str, fn: Callable[..., Any]) -> Callable[..., Any]:
    """``fn`` if it passes its check, else the reference, with a printed notice. Raises KeyError on an unknown id."""
    exercise = find(id)
    answer = _examine(exercise, fn)
    if answer.state == "correct":
        return fn
    _settle(answer)
    why = "is not written yet" if answer.state == "not attempted" else "does not pass its check yet"
    print(f"Your {exercise.name} {why}: from here on the solution's version is used.")
    return exercise.reference


def hint(id: str, level: int = 1) -> Answer:
    """A hint to an exercise: level 1 is a nudge, level 3 is nearly the solution."""
    try:
        exercise = find(id)
    except KeyError as error:
        return _settle(Answer("note", error.args[0]))
    if level not in (1, 2, 3):
        return Answer("note", f"Hints of {id} have levels 1, 2 and 3; got {level!r}.")
    after = f'hint("{id}", {level + 1})' if level < 3 else f'solution("{id}")'
    lines = (("hint", exercise.hints[level - 1]), ("more", after))
    return Answer("note", f"{id} · hint {level} of 3", lines)


def solution(id: str) -> Answer:
    """The commented source of a solution."""
    try:
        exercise = find(id)
    except KeyError as error:
        return _settle(Answer("note", error.args[0]))
    source = textwrap.dedent(inspect.getsource(exercise.reference)).rstrip()
    return Answer("note", f"{id} · one solution of many", (("", source),))


# --- the check --------------------------------------------------------------------------------------------------


def _examine(exercise: Exercise, fn: Callable[..., Any]) -> Answer:
    """The answer to a function, recorded nowhere."""
    id = exercise.id
    if fn is ...:
        return _not_attempted(id)
    if not callable(fn):
        text = f"expected your function, got {trial.show(fn)}. Write check({id!r}, name), without calling it."
        return Answer("not yet", f"not yet · {id}", (("problem", text),))
    problem = _wrong_parameters(exercise, fn)
    if problem:
        return Answer("not yet", f"not yet · {id}", (("problem", problem),))
    seeds = (FIRST_SEED, _seed_from(fn))
    for place in (None, *_accelerators()):
        expected = trial.trusted(exercise.reference, exercise, seeds, place)
        if any(outcome.error is not None for outcome in expected.outcomes) and place is not None:
            continue  # the device lacks an operation that the solution itself needs
        got = trial.run(fn, exercise, seeds, SECONDS, place)
        if got.outcomes and got.outcomes[0].raw is ...:
            return _not_attempted(id)
        answer = _first_fault(exercise, seeds, place, expected, got)
        if answer is not None:
            return answer
    return Answer("correct", f"correct · {id}", _printed(got))


def _not_attempted(id: str) -> Answer:
    lines = (("next", f'replace the `...`, run both cells. Stuck? hint("{id}")'),)
    return Answer("not attempted", f"not attempted · {id}", lines)


def _wrong_parameters(exercise: Exercise, fn: Callable[..., Any]) -> str:
    names = list(inspect.signature(exercise.reference).parameters)
    try:
        given = inspect.signature(fn)
        case = trial.draw_cases(exercise, FIRST_SEED)[0]
        given.bind(*case.args)
    except ValueError:  # a builtin without a readable signature
        return ""
    except TypeError:
        return (
            f"expected a function of ({', '.join(names)}), got one of ({', '.join(given.parameters)}). "
            "Keep the parameters of the stub."
        )
    return ""


def _seed_from(fn: Callable[..., Any]) -> int:
    """A seed that changes with the code, so that an answer cannot be written for known inputs."""
    code = getattr(fn, "__code__", None)
    return zlib.crc32(code.co_code + repr(code.co_consts).encode()) if code is not None else FIRST_SEED + 1


def _accelerators() -> list[Any]:
    """The GPU, if there is one: what works on the CPU must work there."""
    from mtl_helpers.notebook import get_device

    device = get_device()
    return [] if device.type == "cpu" else [device]


def _first_fault(
    exercise: Exercise, seeds: tuple[int, ...], place: Any, expected: Run, got: Run
) -> Answer | None:
    """The answer to the first case that fails; None if none does."""
    faults = [
        (number, problem)
        for number, (right, own) in enumerate(zip(expected.outcomes, got.outcomes, strict=False))
        if (problem := _problem(exercise, right, own))
    ]
    if not faults and not got.stopped:
        return None
    cases = [case for seed in seeds for case in trial.draw_cases(exercise, seed, place)]
    if not faults:
        return _too_slow(exercise, cases, got)
    number, problem = faults[0]
    right, own, case = expected.outcomes[number], got.outcomes[number], cases[number]
    mistake = _explaining(exercise, seeds, place, got, [number for number, _ in faults])
    advice = ("hint", mistake.hint) if mistake else ("next", f'hint("{exercise.id}")')
    lines = [("input", _input(exercise, case))]
    if own.error is not None:
        from mtl_helpers.widgets.explorer import explain

        said = explain(own.error)
        state, headline = "raised", f"your code raised {type(own.error).__name__} · {exercise.id}"
        lines += [("error", said), ("expected", trial.show(right.value))]
    else:
        state, headline = "not yet", f"not yet · {exercise.id}"
        if problem != "another number":
            lines.append(("problem", problem))
        if trial.difference(right.value, own.value, exercise.rtol, exercise.atol):
            lines += [("expected", trial.show(right.value)), ("got", trial.show(own.value))]
        elif "gradient with respect to" in problem:
            lines += [("expected", _gradient_text(right)), ("got", _gradient_text(own))]
    return Answer(state, headline, (*lines, advice, *_printed(got)))


def _gradient_text(outcome: Outcome) -> str:
    return "; ".join(f"d/d{name} = {trial.show(one)}" for name, one in (outcome.gradients or {}).items())


def _problem(exercise: Exercise, expected: Outcome, got: Outcome) -> str:
    """What is wrong with one outcome, in words; empty if nothing is."""
    if got.error is not None:
        return f"raised {type(got.error).__name__}"
    if got.raw is ...:
        return "your function returns `...` here: a branch is still empty"
    if got.autograd_off:
        return (
            "your code leaves autograd switched off. Use `with torch.no_grad():`, which switches it on again"
        )
    if got.drew:
        return (
            "your code draws from, or seeds, the global random generators, which other cells share. "
            "The answer needs no chance"
        )
    if got.changed:
        return (
            f"your code changes its argument {' and '.join(got.changed)}, which the caller still needs. "
            "Work on a copy, or use operations that return a new object"
        )
    if found := trial.difference(expected.value, got.value, exercise.rtol, exercise.atol):
        return found
    if not exercise.gradients or exercise.observe is not None:
        return ""
    if got.gradients is None and expected.gradients is not None:
        return (
            "the number is right, but autograd cannot see how it was computed, so nothing could be trained on it. "
            "`.item()`, `.detach()`, `float()`, NumPy, `torch.tensor(…)` and `no_grad` cut the graph"
        )
    for name, gradient in (expected.gradients or {}).items():
        own = (got.gradients or {}).get(name)
        if gradient is not None and own is None:
            return f"the value is right, but no gradient reaches {name}: it was detached on the way"
        if (
            gradient is not None
            and own is not None
            and trial.difference(gradient, own, exercise.rtol, exercise.atol)
        ):
            finite = bool(own.isfinite().all())
            return f"the value is right, its gradient with respect to {name} is " + (
                "another one" if finite else "not finite: the backward pass would spoil the parameters"
            )
    return ""


def _explaining(
    exercise: Exercise, seeds: tuple[int, ...], place: Any, got: Run, failing: list[int]
) -> Mistake | None:
    """The planted mistake that explains all that is wrong; of several the one that agrees most often elsewhere."""
    best, most = None, -1
    for mistake in exercise.mistakes:
        outcomes = trial.trusted(mistake.answer, exercise, seeds, place).outcomes
        agreeing = {
            number
            for number, (own, planted) in enumerate(zip(got.outcomes, outcomes, strict=False))
            if _same(exercise, planted, own)
        }
        if agreeing.issuperset(failing) and len(agreeing) > most:
            best, most = mistake, len(agreeing)
    return best


def _same(exercise: Exercise, a: Outcome, b: Outcome) -> bool:
    """Whether two outcomes are alike to the reader."""
    if a.error is not None or b.error is not None:
        return type(a.error) is type(b.error)
    if (a.autograd_off, a.drew, a.changed) != (b.autograd_off, b.drew, b.changed):
        return False
    if trial.difference(a.value, b.value, exercise.rtol, exercise.atol):
        return False
    # Where the value is NaN or infinite, ways to compute it differ in their gradients without meaning to.
    if isinstance(a.value, Tensor) and not bool(a.value.isfinite().all()):
        return True
    return not trial.difference(a.gradients, b.gradients, exercise.rtol, exercise.atol)


def _too_slow(exercise: Exercise, cases: list[Case], got: Run) -> Answer:
    text = f"your code did not finish within {SECONDS:g} seconds and was stopped. Does a loop never end?"
    if got.left_behind:
        text = (
            f"your code did not finish within {SECONDS:g} seconds and could not be stopped: it waits inside one call. "
            "It may slow this notebook down until you restart the kernel"
        )
    case = cases[min(len(got.outcomes), len(cases) - 1)]
    lines = [("input", _input(exercise, case)), ("problem", text), ("it was at", got.stopped)]
    lines.append(("next", f'hint("{exercise.id}")'))
    return Answer("not yet", f"not yet · {exercise.id}", (*lines, *_printed(got)))


def _input(exercise: Exercise, case: Case) -> str:
    names = inspect.signature(exercise.reference).parameters
    args = [f"{name} = {trial.show(value)}" for name, value in zip(names, case.args, strict=False)]
    return "\n".join(args + ([f"({case.note})"] if case.note else [])) or "no arguments"


def _printed(got: Run) -> tuple[tuple[str, str], ...]:
    text = got.printed.strip()
    if not text:
        return ()
    kept = text[: trial.MOST_PRINTED] + (" …" if len(text) > trial.MOST_PRINTED else "")
    return (("it printed", "\n".join(kept.splitlines()[:6])),)


def _settle(answer: Answer, strict: bool = False) -> Answer:
    if (strict or os.environ.get("MTL_STRICT") == "1") and answer.state != "correct":
        raise NotPassed(str(answer))
    return answer


# --- progress ---------------------------------------------------------------------------------------------------


def progress_file() -> Path:
    """Where passed exercises are kept: ``MTL_PROGRESS``, or a file in your own state folder."""
    if named := os.environ.get("MTL_PROGRESS"):
        return Path(named).expanduser()
    if sys.platform == "win32":
        folder = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        folder = Path.home() / "Library" / "Application Support"
    else:
        folder = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    return folder / "mtl-for-recommenders" / "progress.json"


def _passed() -> tuple[dict[str, str], str]:
    """``{id: day}`` of passed exercises, and a complaint about the file, if any."""
    path = progress_file()
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["passed"]
        return {str(id): str(day) for id, day in found.items()}, ""
    except FileNotFoundError:
        return {}, ""
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return {}, f"{path} cannot be read ({type(error).__name__}); it starts anew with your next pass."


def _write(passed: dict[str, str]) -> str:
    """Writes the file at once or not at all; returns a complaint, if any."""
    path = progress_file()
    partial = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps({"passed": passed}, indent=1), encoding="utf-8")
        os.replace(partial, path)
    except OSError as error:
        return f"{path} cannot be written ({error.strerror or error}); your progress is not kept."
    return ""


def _remember(id: str) -> None:
    passed, _ = _passed()
    if id not in passed:
        _write({**passed, id: datetime.date.today().isoformat()})


def progress() -> Answer:
    """Which exercises have been passed on this computer. Nothing in the course depends on it."""
    passed, complaint = _passed()
    exercises = all_exercises()
    notebooks: dict[str, list[str]] = {}
    for id, exercise in exercises.items():
        mark = MARKS["correct" if id in passed else "not attempted"]
        notebooks.setdefault(exercise.notebook, []).append(f"{mark} {exercise.name}")
    done = sum(id in passed for id in exercises)
    lines = [(notebook, "   ".join(names)) for notebook, names in notebooks.items()]
    lines += [("note", complaint)] if complaint else []
    lines.append(
        ("kept", "in one file on this computer: progress_file() names it, reset_progress() empties it")
    )
    return Answer("note", f"{done} of {len(exercises)} exercises passed (✓ passed, ○ open)", tuple(lines))


def reset_progress() -> Answer:
    """Forget all passed exercises."""
    complaint = _write({}) if progress_file().exists() else ""
    return Answer("note", complaint or "Progress is empty now.")


# --- python -m mtl_helpers.check --------------------------------------------------------------------------------


def listing() -> Iterator[str]:
    """All exercises with their planted mistakes and hints, line by line."""
    exercises = all_exercises()
    planted = sum(len(exercise.mistakes) for exercise in exercises.values())
    yield f"{len(exercises)} exercises, {planted} planted mistakes"
    for id, exercise in exercises.items():
        yield ""
        yield f"{id}{inspect.signature(exercise.reference)}: {exercise.title}"
        for level, text in enumerate(exercise.hints, start=1):
            yield f"  hint {level}   {text}"
        for mistake in exercise.mistakes:
            answer = _examine(exercise, mistake.answer)
            found = "brings up" if ("hint", mistake.hint) in answer.lines else "DOES NOT BRING UP"
            yield f"  mistake  {mistake.what}"
            yield f"           [{answer.state}] {found}: {mistake.hint}"


if __name__ == "__main__":
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # a console that knows no ✓ shows a question mark
    for line in listing():
        print(line)
