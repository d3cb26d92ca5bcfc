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
In the notebook, a stub that returns ``...`` under a docstring with shapes and a worked example, and in the next cell
``check("05.recall_at", recall_at)``. In ``mtl_helpers/exercises/nb05.py``::

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
            "05.recall_at", recall_at, recall_cases,
            mistakes=(
                Mistake(lambda s, r, k: r[np.argsort(-s)[:k]].mean(), "You divide by k …"),
                Mistake(lambda s, r, k: r[np.argsort(s)[:k]].sum() / r.sum(), "argsort sorts …"),
                Mistake(lambda s, r, k: r[np.argsort(-s)[:k]].sum(), "A share, not a count …"),
            ),
            hints=("a nudge", "the way", "nearly the solution"),
        ),
    )

The reference is the solution that a reader sees: comment why, and give it the stub's parameters. Both run on the same
cases, twice: with a fixed seed, so that the first failing input stays the same while a reader mends, and with a seed
drawn from the reader's code, so that no answer can be written for known inputs. Say the limits in ``cases`` (nothing
flagged, one class, huge logits, lists in another order): whatever is not in them is not checked.

Shape and numbers of an answer must be the reference's; tensor, array, list, float32 and float64 are all one. The
gradient counts only if ``gradients`` names arguments. An answer may not change its arguments (unless in ``changes``),
draw from the global generators (unless ``draws``) or leave autograd off. Where several answers are right, or the answer
is a model, ``observe`` turns it into facts that can be compared. A mistake's hint is shown if that mistake explains all
that is wrong, so two mistakes must differ somewhere in the cases. The tests demand three, each with a hint of its own.
"""

from __future__ import annotations

import contextlib
import datetime
import html
import inspect
import json
import os
import sys
import textwrap
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import platformdirs
import torch
from torch import nn

from mtl_helpers.exercises import Exercise, Mistake, all_exercises, find
from mtl_helpers.exercises.compare import Outcome, difference, draw_cases, kind, run, show
from mtl_helpers.files import write_atomically
from mtl_helpers.notebook import get_device

__all__ = ["Answer", "check", "hint", "progress", "progress_file", "solution", "use"]

FIRST_SEED = 20
MARKS = {"not attempted": "○", "correct": "✓", "not yet": "✗", "raised": "!", "check failed": "?", "note": ""}


class NotPassed(AssertionError):
    """Raised in strict mode only: what the check would have answered."""


@dataclass(frozen=True)
class Answer:
    """What a check, a hint or a solution says: a headline, then lines of (label, text).

    ``state`` is ``"not attempted"``, ``"correct"``, ``"not yet"``, ``"raised"``, ``"check failed"`` (the course's own
    fault) or ``"note"``. Shown as the last expression of a cell; ``str(answer)`` is the same in plain text.
    """

    state: str
    headline: str
    lines: tuple[tuple[str, str], ...] = ()

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
    why = {"not attempted": "is not written yet", "check failed": "could not be checked"}
    why = why.get(answer.state, "does not pass its check yet")
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
    """The answer to a function, recorded nowhere. What goes wrong outside of it is said to be ours."""
    id = exercise.id
    if fn is ...:
        return _not_attempted(id)
    if not callable(fn):
        text = f"expected your function, got {show(fn)}. Write check({id!r}, name), without calling it."
        return Answer("not yet", f"not yet · {id}", (("problem", text),))
    try:
        return _try(exercise, fn)
    except Exception as error:
        said = (
            ("error", _explain(error)),
            ("next", "nothing for you to mend: the course's own code is at fault"),
        )
        return Answer("check failed", f"the check itself failed, not your code · {id}", said)


def _try(exercise: Exercise, fn: Callable[..., Any]) -> Answer:
    id, names = exercise.id, list(inspect.signature(exercise.reference).parameters)
    try:
        given = inspect.signature(fn)
        given.bind(*draw_cases(exercise, FIRST_SEED)[0].args)
    except ValueError:  # a builtin without a readable signature
        pass
    except TypeError:
        text = f"expected a function of ({', '.join(names)}), got one of ({', '.join(given.parameters)})."
        return Answer(
            "not yet", f"not yet · {id}", (("problem", f"{text} Keep the parameters of the stub."),)
        )
    # A second seed that changes with the code, so that an answer cannot be written for known inputs.
    code = getattr(fn, "__code__", None)
    drawn = zlib.crc32(code.co_code + repr(code.co_consts).encode()) if code is not None else FIRST_SEED + 1
    # What is to be trained must work on the GPU, too, if there is one; other answers may come from NumPy.
    trained = exercise.gradients or exercise.observe
    for place in (None, *(_accelerators() if trained else ())):
        expected, _ = run(exercise.reference, exercise, (FIRST_SEED, drawn), place)
        if error := next((one.error for one in expected if one.error is not None), None):
            if place is not None:
                continue  # the device lacks an operation that the solution itself needs
            raise error
        got, printed = run(fn, exercise, (FIRST_SEED, drawn), place)
        if got[0].raw is ...:
            return _not_attempted(id)
        said = (("it printed", textwrap.shorten(printed, 400, placeholder=" …")),) if printed.strip() else ()
        pairs = list(zip(expected, got, strict=False))
        failing = [n for n, (right, own) in enumerate(pairs) if _problem(exercise, right, own)]
        if failing:
            seeds = (FIRST_SEED, drawn)
            mistake = _explaining(exercise, seeds, place, got, failing)
            case = [case for seed in seeds for case in draw_cases(exercise, seed, place)][failing[0]]
            state, headline, lines = _fault(exercise, case.args, case.note, *pairs[failing[0]])
            advice = ("hint", mistake.hint) if mistake else ("next", f'hint("{id}")')
            return Answer(state, f"{headline} · {id}", (*lines, advice, *said))
    return Answer("correct", f"correct · {id}", said)


def _not_attempted(id: str) -> Answer:
    lines = (("next", f'replace the `...`, run both cells. Stuck? hint("{id}")'),)
    return Answer("not attempted", f"not attempted · {id}", lines)


def _accelerators() -> list[torch.device]:
    return [device] if (device := get_device()).type != "cpu" else []


def _explain(error: BaseException) -> str:
    from mtl_helpers.widgets.explorer import explain

    return explain(error)


def _fault(
    exercise: Exercise, args: tuple[Any, ...], note: str, right: Outcome, own: Outcome
) -> tuple[str, str, list[tuple[str, str]]]:
    """State, headline and lines about a case that fails."""
    problem = _problem(exercise, right, own)
    differing = (
        difference(right.value, own.value, exercise.rtol, exercise.atol) if own.error is None else None
    )
    at = differing.at if differing else ()
    names = inspect.signature(exercise.reference).parameters
    shown = [f"{name} = {show(value, at)}" for name, value in zip(names, args, strict=False)]
    lines = [("input", "\n".join(shown + [f"({note})"] * bool(note)))]
    if own.error is not None and not own.unusable:
        lines += [("error", _explain(own.error)), ("expected", show(right.value))]
        return "raised", f"your code raised {type(own.error).__name__}", lines
    if problem != "another number":
        lines.append(("problem", problem))
    if differing:
        lines += [("expected", show(right.value, at)), ("got", show(own.value, at))]
    elif "gradient with respect to" in problem:
        for label, outcome in (("expected", right), ("got", own)):
            slopes = (f"d/d{name} = {show(one)}" for name, one in outcome.gradients.items())
            lines.append((label, "; ".join(slopes)))
    return "not yet", "not yet", lines


def _problem(exercise: Exercise, expected: Outcome, got: Outcome) -> str:
    """What is wrong with one outcome, in words; empty if nothing is."""
    if got.error is not None and not got.unusable:
        return f"raised {type(got.error).__name__}"
    if got.raw is ...:
        return "your function returns `...` here: a branch is still empty"
    if isinstance(expected.raw, nn.Module) and not isinstance(got.raw, type(expected.raw)):
        absent = " Is there a `return`?" if got.raw is None else ""
        return f"expected {kind(expected.raw)}, got {kind(got.raw)}.{absent}"
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
            which = (
                "another one" if own.isfinite().all() else "not finite: training would spoil the parameters"
            )
            return f"the value is right, its gradient with respect to {name} is {which}"
    return ""


def _explaining(
    exercise: Exercise, seeds: Sequence[int], place: Any, got: list[Outcome], failing: list[int]
) -> Mistake | None:
    """The planted mistake that explains all that is wrong; of several the one that agrees most often elsewhere."""
    best, most = None, -1
    for mistake in exercise.mistakes:
        planted, _ = run(mistake.answer, exercise, seeds, place)
        pairs = zip(planted, got, strict=False)
        agreeing = {n for n, (one, own) in enumerate(pairs) if _same(exercise, one, own)}
        if agreeing.issuperset(failing) and len(agreeing) > most:
            best, most = mistake, len(agreeing)
    return best


def _same(exercise: Exercise, a: Outcome, b: Outcome) -> bool:
    """Whether two outcomes are alike to the reader."""
    if a.error is not None or b.error is not None:
        return type(a.error) is type(b.error)
    if a.fault != b.fault or difference(a.value, b.value, exercise.rtol, exercise.atol):
        return False
    # Where the value is NaN or infinite, ways to compute it differ in their gradients without meaning to.
    if isinstance(a.value, torch.Tensor) and not a.value.isfinite().all():
        return True
    return not difference(a.gradients, b.gradients, exercise.rtol, exercise.atol)


def _settle(answer: Answer, strict: bool = False) -> Answer:
    if (strict or os.environ.get("MTL_STRICT") == "1") and answer.state != "correct":
        raise NotPassed(str(answer))
    return answer


# --- progress ---------------------------------------------------------------------------------------------------


def progress_file() -> Path:
    """Where passed exercises are kept: ``MTL_PROGRESS``, or a file in your state folder. Delete it to start anew."""
    named = os.environ.get("MTL_PROGRESS")
    own = platformdirs.user_state_path("mtl-for-recommenders", appauthor=False) / "progress.json"
    return Path(named).expanduser() if named else own


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


def _remember(id: str) -> None:
    path, (passed, _) = progress_file(), _passed()
    if id in passed:
        return
    passed[id] = datetime.date.today().isoformat()
    with contextlib.suppress(OSError):  # nothing depends on it
        path.parent.mkdir(parents=True, exist_ok=True)
        with write_atomically(path) as file:
            file.write(json.dumps({"passed": passed}, indent=1).encode())


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
    lines.append(("kept", "in one file on this computer: progress_file() names it, delete it to start anew"))
    return Answer("note", f"{done} of {len(exercises)} exercises passed (✓ passed, ○ open)", tuple(lines))


# --- python -m mtl_helpers.check --------------------------------------------------------------------------------


def listing() -> Iterator[str]:
    """All exercises with their planted mistakes and hints, line by line."""
    exercises = all_exercises()
    planted = sum(len(exercise.mistakes) for exercise in exercises.values())
    yield f"{len(exercises)} exercises, {planted} planted mistakes"
    for id, exercise in exercises.items():
        yield ""
        yield f"{id}{inspect.signature(exercise.reference)}"
        for level, text in enumerate(exercise.hints, start=1):
            yield f"  hint {level}   {text}"
        for mistake in exercise.mistakes:
            answer = _examine(exercise, mistake.answer)
            found = "brings up" if ("hint", mistake.hint) in answer.lines else "DOES NOT BRING UP"
            yield f"  mistake  [{answer.state}] {found}: {mistake.hint}"


if __name__ == "__main__":
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # a console that knows no ✓ shows a question mark
    for line in listing():
        print(line)
