"""A guess: kept for the session, drawn into the answering figure, put into words."""

from __future__ import annotations

import pytest

from mtl_helpers.widgets import guess
from mtl_helpers.widgets.figures import figure


def made(value=None, question="Which?", **options):
    asked = guess(question, **options)
    if value is not None:
        asked.control.value = value
    return asked


def test_nothing_is_guessed_until_it_is_touched_and_then_it_is_kept():
    assert guess("How large?").value is None
    made(0.6, "How large?")
    again = guess("How large?")
    assert again.value == again.control.value == 0.6 and "0.60" in again._said.value
    assert guess("How small?").value is None


@pytest.mark.parametrize(
    ("value", "truth", "says"),
    [
        (None, 0.83, "It is **0.83 AUC**."),
        (0.6, 0.83, "You guessed 0.60 AUC; it is **0.83 AUC**: 0.23 AUC too low."),
        (0.9, 0.83, "You guessed 0.90 AUC; it is **0.83 AUC**: 0.07 AUC too high."),
        (0.83, 0.8312, "You guessed 0.83 AUC; it is **0.83 AUC**: well guessed."),
        (0.2, -0.5, "You guessed 0.20 AUC; it is **−0.50 AUC**: 0.70 AUC too high."),
    ],
)
def test_the_answer_in_words(value, truth, says):
    assert made(value, f"What of {truth} and {value}?", unit="AUC").answer(truth).data == says


@pytest.mark.parametrize(
    ("value", "says"),
    [(None, "It is **b**."), ("a", "You chose *a*: it is **b**."), ("b", "You chose *b*: right.")],
)
def test_a_choice_is_right_or_wrong(value, says):
    assert made(value, f"Is it {value}?", choices=["a", "b"]).answer("b").data == says


@pytest.mark.parametrize("axis", ["x", "y"])
def test_a_number_is_a_line_at_its_place(axis):
    ax = figure().subplots()
    guess("Where does nobody point?").mark(ax, axis)
    assert not ax.lines and not ax.texts
    made(0.4, f"Where on {axis}?").mark(ax, axis)
    assert set(getattr(ax.lines[0], f"get_{axis}data")()) == {0.4} and ax.texts[0].get_text() == "your guess"


@pytest.mark.parametrize(("bars", "axis"), [("bar", "x"), ("barh", "y")])
def test_a_choice_is_marked_at_its_tick(bars, axis):
    ax = figure().subplots()
    getattr(ax, bars)(["a", "b"], [1, 2])
    made("b", f"Which {bars}?", choices=["a", "b"]).mark(ax)
    labels = [label.get_text() for label in getattr(ax, f"get_{axis}ticklabels")()]
    assert labels[0] == "a" and "your guess" in labels[1] and "b" in labels[1]


def test_what_a_notebook_stores_is_one_line():
    bundle = guess("Who wins?", choices=["a", "b"])._repr_mimebundle_()
    assert bundle["text/markdown"] == "**Your guess:** Who wins? (a · b)"
    assert bundle["application/vnd.jupyter.widget-view+json"]["model_id"]
