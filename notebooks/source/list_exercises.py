"""All exercises with their hints, and the planted mistakes, each with what a check says of it.

python notebooks/source/list_exercises.py
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(
    0, str(Path(__file__).resolve().parents[2])
)  # this copy's package, wherever another is installed

from mtl_helpers.check import examine
from mtl_helpers.exercises import Exercise, all_exercises


def listing(exercises: dict[str, Exercise]) -> Iterator[str]:
    """Line by line; ``exercises`` by id."""
    yield f"{len(exercises)} exercises, {sum(len(one.mistakes) for one in exercises.values())} planted mistakes"
    for id, exercise in exercises.items():
        yield from ("", f"{id}{inspect.signature(exercise.reference)}")
        for level, text in enumerate(exercise.hints, start=1):
            yield f"  hint {level}   {text}"
        for mistake in exercise.mistakes:
            answer = examine(exercise, mistake.answer)
            found = "brings up" if ("hint", mistake.hint) in answer.lines else "DOES NOT BRING UP"
            yield f"  mistake  [{answer.state}] {found}: {mistake.hint}"


if __name__ == "__main__":
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # a console that knows no ✓ shows a question mark
    for line in listing(all_exercises()):
        print(line)
