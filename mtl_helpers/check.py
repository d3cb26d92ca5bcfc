"""Exercises: an answer that helps, graded hints, commented solutions. Explained in notebook 00.

A reader needs four calls, which answer in words and never raise::

    check("01.precision_at", precision_at)     not attempted, correct, not yet (and why), or: your code raised …
    hint("01.precision_at", 2)                 levels 1 to 3
    solution("01.precision_at")                commented source
    progress()                                 what has been passed so far, on this computer

A later cell takes ``use("01.precision_at", precision_at)``: the reader's function if it passes, else the reference.
``MTL_STRICT=1`` raises instead of answering; ``python notebooks/source/list_exercises.py`` lists all exercises.

The reader's function and the reference run on the same cases (:class:`~mtl_helpers.exercises.Exercise`), with a fixed
seed, so that the first failing input stays the same, and with one drawn from the reader's code, so that no answer can
be written for known inputs. Limits that are not in ``cases`` are not checked. Shape and numbers count, not whether they
come as tensor, array, list, float32 or float64. An answer may not change its arguments, draw from the global generators
or leave autograd off, unless the exercise allows it. A mistake's hint is shown if it explains all that is wrong, so
mistakes must differ somewhere in the cases.
"""

from __future__ import annotations

import contextlib
import html
import inspect
import json
import os
import textwrap
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import platformdirs
import torch
from torch import nn

from mtl_helpers.exercises import Exercise, all_exercises, find
from mtl_helpers.exercises.compare import Outcome, difference, draw_cases, kind, run, show
from mtl_helpers.files import write_atomically
from mtl_helpers.notebook import get_device
from mtl_helpers.widgets.explorer import explain

__all__ = ["Answer", "check", "hint", "progress", "progress_file", "solution", "use"]

FIRST_SEED = 20
MARKS = {"not attempted": "○", "correct": "✓", "not yet": "✗", "raised": "!", "check failed": "?", "note": ""}


@dataclass(frozen=True)
class Answer:
    """What a check, a hint or a solution says: a headline, then lines of (label, text). Notebooks show it, as str does.

    ``state``: "not attempted", "correct", "not yet", "raised", "check failed" (the course's own fault) or "note".
    """

    state: str
    headline: str
    lines: tuple[tuple[str, str], ...] = ()

    def __repr__(self) -> str:
        width = max((len(label) for label, _ in self.lines), default=0)
        shown = [f"{MARKS[self.state]} {self.headline}".strip()]
        indent = " " * (width + 6 if width else 4)
        for label, text in self.lines:
            shown.append(f"    {label}".ljust(len(indent)) + text.replace("\n", f"\n{indent}"))
        return "\n".join(shown)

    def _repr_html_(self) -> str:
        """The same without colours of its own, so that it reads in a dark theme, too."""
        said = f"<strong>{html.escape(str(self).splitlines()[0])}</strong>"
        for label, text in ((html.escape(label), html.escape(text)) for label, text in self.lines):
            head = f'<span style="flex:0 0 5.5em;opacity:.8">{label}</span>'
            body = f'<span style="white-space:pre-wrap;font-family:monospace;min-width:0">{text}</span>'
            source = f'<pre style="margin:4px 0;overflow-x:auto;white-space:pre">{text}</pre>'
            said += f'<div style="display:flex;gap:1em">{head}{body}</div>' if label else source
        return f'<div class="mtl-check" role="status" style="line-height:1.5;padding:2px 0">{said}</div>'


def check(id: str, fn: Callable[..., Any]) -> Answer:
    """Try your function ``fn`` on the cases of the exercise ``id`` and say in words what came of it.

    The environment variable ``MTL_STRICT=1`` raises AssertionError unless it is correct. A correct one is noted in the
    progress file.
    """
    try:
        answer = examine(find(id), fn)
    except KeyError as error:
        return _settle(Answer("note", error.args[0]))
    passed, _ = _passed()
    if answer.state == "correct" and id not in passed:
        path = progress_file()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with write_atomically(path) as file:
                file.write(json.dumps({"passed": [*passed, id]}, indent=1).encode())
        except OSError as error:  # nothing depends on it
            said = f"{path}: {error.strerror}, so progress() will not know of it"
            answer = replace(answer, lines=(*answer.lines, ("not kept", said)))
    return _settle(answer)


def use(id: str, fn: Callable[..., Any]) -> Callable[..., Any]:
    """``fn`` if it passes its check, else the reference, with a printed notice. Raises KeyError on an unknown id."""
    exercise = find(id)
    answer = examine(exercise, fn)
    if answer.state == "correct":
        return fn
    _settle(answer)
    known = {"not attempted": "is not written yet", "check failed": "could not be checked"}
    why = known.get(answer.state, "does not pass its check yet")
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
    return Answer("note", f"{id} · hint {level} of 3", (("hint", exercise.hints[level - 1]), ("more", after)))


def solution(id: str) -> Answer:
    """The commented source of a solution."""
    try:
        exercise = find(id)
    except KeyError as error:
        return _settle(Answer("note", error.args[0]))
    source = textwrap.dedent(inspect.getsource(exercise.reference)).rstrip()
    return Answer("note", f"{id} · one solution of many", (("", source),))


def examine(exercise: Exercise, fn: Callable[..., Any]) -> Answer:
    """The answer to a function, recorded nowhere. What goes wrong outside of it is said to be ours."""
    id, names = exercise.id, list(inspect.signature(exercise.reference).parameters)
    stuck = f'replace the `...`, run both cells. Stuck? hint("{id}")'
    untouched = Answer("not attempted", f"not attempted · {id}", (("next", stuck),))
    if fn is ...:
        return untouched
    try:
        if not callable(fn):
            text = f"expected your function, got {show(fn)}. Write check({id!r}, name), without calling it."
            return Answer("not yet", f"not yet · {id}", (("problem", text),))
        try:
            with contextlib.suppress(ValueError):  # a builtin without a readable signature
                given = inspect.signature(fn)
                given.bind(*draw_cases(exercise, FIRST_SEED)[0].args)
        except TypeError:
            text = f"expected a function of ({', '.join(names)}), got one of ({', '.join(given.parameters)})."
            text += " Keep the parameters of the stub."
            return Answer("not yet", f"not yet · {id}", (("problem", text),))
        # A second seed that changes with the code, so that an answer cannot be written for known inputs.
        code = getattr(fn, "__code__", None)
        own = zlib.crc32(code.co_code + repr(code.co_consts).encode()) if code else FIRST_SEED + 1
        seeds = FIRST_SEED, own
        # What is to be trained must work on the GPU, too, if there is one; other answers may come from NumPy.
        trained = exercise.gradients or exercise.observe
        for place in (None, get_device()) if trained and get_device().type != "cpu" else (None,):
            expected, _ = run(exercise.reference, exercise, seeds, place)
            if error := next((one.error for one in expected if one.error is not None), None):
                if place is not None:
                    continue  # the device lacks an operation that the solution itself needs
                raise error
            got, printed = run(fn, exercise, seeds, place)
            if got[0].raw is ...:
                return untouched
            said = [("it printed", textwrap.shorten(printed, 400, placeholder=" …"))] * bool(printed.strip())
            if fault := _fault(exercise, seeds, place, expected, got, said):
                return fault
        return Answer("correct", f"correct · {id}", tuple(said))
    except Exception as error:
        ours = ("next", "nothing for you to mend: the course's own code is at fault")
        said = f"the check itself failed, not your code · {id}"
        return Answer("check failed", said, (("error", explain(error)), ours))


def _fault(
    exercise: Exercise, seeds: Any, place: Any, expected: list[Outcome], got: list[Outcome], said: list[Any]
) -> Answer | None:
    """About the first case that fails, if any, with the hint of the planted mistake that explains all that is wrong; of
    several the one that agrees most often elsewhere."""
    problems = [_problem(exercise, *both) for both in zip(expected, got, strict=False)]
    failing = [n for n, problem in enumerate(problems) if problem]
    if not failing:
        return None
    advice, most = ("next", f'hint("{exercise.id}")'), -1
    for mistake in exercise.mistakes:
        planted, _ = run(mistake.answer, exercise, seeds, place)
        agreeing = {n for n, both in enumerate(zip(planted, got, strict=False)) if _same(exercise, *both)}
        if agreeing.issuperset(failing) and len(agreeing) > most:
            advice, most = ("hint", mistake.hint), len(agreeing)
    case = [case for seed in seeds for case in draw_cases(exercise, seed, place)][failing[0]]
    right, own, problem = expected[failing[0]], got[failing[0]], problems[failing[0]]
    differing = own.error is None and difference(right.value, own.value, exercise.rtol, exercise.atol)
    at = differing.at if differing else ()
    names = inspect.signature(exercise.reference).parameters
    shown = [f"{name} = {show(value, at)}" for name, value in zip(names, case.args, strict=False)]
    lines = [("input", "\n".join(shown + [f"({case.note})"] * bool(case.note)))]
    state = headline = "not yet"
    if own.raised:
        state, headline = "raised", f"your code raised {type(own.error).__name__}"
        lines += [("error", explain(own.error)), ("expected", show(right.value))]
    elif problem != "another number":
        lines.append(("problem", problem))
    if differing and exercise.observe is None:  # of facts, the problem names the one
        lines += [("expected", show(right.value, at)), ("got", show(own.value, at))]
    elif "gradient with respect to" in problem:
        for label, outcome in (("expected", right), ("got", own)):
            slopes = (f"d/d{name} = {show(one)}" for name, one in outcome.gradients.items())
            lines.append((label, "; ".join(slopes)))
    return Answer(state, f"{headline} · {exercise.id}", (*lines, advice, *said))


def _problem(exercise: Exercise, expected: Outcome, got: Outcome) -> str:
    """What is wrong with one outcome, in words; empty if nothing is."""
    if got.raised:
        return f"raised {type(got.error).__name__}"
    if got.raw is ...:
        return "your function returns `...` here: a branch is still empty"
    if isinstance(expected.raw, nn.Module) and not isinstance(got.raw, type(expected.raw)):
        forgotten = " Is there a `return`?" * (got.raw is None)
        return f"expected {kind(expected.raw)}, got {kind(got.raw)}.{forgotten}"
    if got.error is not None:
        return f"what you return fails when it is used: {type(got.error).__name__}: {got.error}"
    if got.fault:
        return got.fault
    if found := difference(expected.value, got.value, exercise.rtol, exercise.atol):
        return found.words
    if expected.gradients and not got.gradients:
        return (
            "the number is right, but autograd cannot see how it was computed, so nothing could be trained on it. "
            "`.item()`, `.detach()`, `float()`, NumPy, `torch.tensor(…)` and `no_grad` cut the graph"
        )
    for name, gradient in expected.gradients.items():
        own = got.gradients[name]
        if own is None:
            return f"the value is right, but no gradient reaches {name}: it was detached on the way"
        if difference(gradient, own, exercise.rtol, exercise.atol):
            spoils = "not finite: training would spoil the parameters"
            which = "another one" if own.isfinite().all() else spoils
            return f"the value is right, its gradient with respect to {name} is {which}"
    return ""


def _same(exercise: Exercise, a: Outcome, b: Outcome) -> bool:
    """Whether two outcomes are alike to the reader."""
    if a.error is not None or b.error is not None:
        return type(a.error) is type(b.error)
    if a.fault != b.fault or difference(a.value, b.value, exercise.rtol, exercise.atol):
        return False
    # Where the value is NaN or infinite, ways to compute it differ in their gradients without meaning to.
    wild = isinstance(a.value, torch.Tensor) and not a.value.isfinite().all()
    return wild or not difference(a.gradients, b.gradients, exercise.rtol, exercise.atol)


def _settle(answer: Answer) -> Answer:
    if os.environ.get("MTL_STRICT") == "1" and answer.state != "correct":
        raise AssertionError(str(answer))
    return answer


def progress_file() -> Path:
    """Where passed exercises are kept: ``MTL_PROGRESS``, or a file in your state folder. Delete it to start anew."""
    own = platformdirs.user_state_path("mtl-for-recommenders", appauthor=False) / "progress.json"
    return Path(os.environ.get("MTL_PROGRESS") or own).expanduser()


def _passed() -> tuple[list[str], str]:
    """Ids of passed exercises, and a complaint about the file, if any."""
    path = progress_file()
    try:
        return list(json.loads(path.read_text(encoding="utf-8"))["passed"]), ""
    except FileNotFoundError:
        return [], ""
    except (OSError, ValueError, KeyError, TypeError) as error:
        return [], f"{path} cannot be read ({type(error).__name__}); it starts anew with your next pass."


def progress() -> Answer:
    """Which exercises have been passed on this computer. Nothing in the course depends on it."""
    passed, complaint = _passed()
    exercises = all_exercises()
    notebooks: dict[str, str] = {}
    for id, exercise in exercises.items():
        before = f"{notebooks[exercise.notebook]}   " if exercise.notebook in notebooks else ""
        notebooks[exercise.notebook] = f"{before}{'✓' if id in passed else '○'} {exercise.name}"
    lines = [*notebooks.items(), *[("note", complaint)] * bool(complaint)]
    lines.append(("kept", "in one file on this computer: progress_file() names it, delete it to start anew"))
    done = len(exercises.keys() & passed)
    return Answer("note", f"{done} of {len(exercises)} exercises passed (✓ passed, ○ open)", tuple(lines))
