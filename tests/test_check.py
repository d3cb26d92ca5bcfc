"""Exercises: each reference passes, each stub is not attempted, each planted mistake brings up its own hint."""

from __future__ import annotations

import dataclasses
import html
import inspect
import json
import random
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import jupytext
import numpy as np
import pandas as pd
import platformdirs
import pytest
import torch
import torch.nn.functional as F
from fake_device import FakeDevice
from helpers import ROOT
from sklearn.metrics import precision_score

import build
from list_exercises import listing
from mtl_helpers.check import check, hint, progress, progress_file, solution, use
from mtl_helpers.exercises import Exercise, Mistake, all_exercises, compare, find
from mtl_helpers.gradients import combine
from mtl_helpers.metrics import correct_downsampling

SOURCES = build.find_sources()
EXERCISES = all_exercises()
engine = sys.modules["mtl_helpers.check"]


@pytest.fixture(autouse=True)
def own_progress(tmp_path, monkeypatch) -> Path:
    """No test touches the progress of whoever runs it."""
    path = tmp_path / "state" / "progress.json"
    monkeypatch.setenv("MTL_PROGRESS", str(path))
    monkeypatch.delenv("MTL_STRICT", raising=False)
    return path


def every(exercises=EXERCISES):
    return pytest.mark.parametrize("exercise", exercises.values(), ids=list(exercises))


@every()
def test_every_planted_mistake_brings_up_its_own_hint(exercise):
    shown = list(listing({exercise.id: exercise}))
    assert shown[0] == f"1 exercises, {len(exercise.mistakes)} planted mistakes"
    assert shown[2].startswith(f"{exercise.id}(")
    for mistake in exercise.mistakes:
        (line,) = (line for line in shown if line.endswith(f": {mistake.hint}"))
        assert re.match(r"  mistake  \[(not yet|raised)\] brings up:", line), line


@every()
def test_an_exercise_is_complete(exercise):
    assert re.fullmatch(r"\d\d\.[a-z_0-9]+", exercise.id)
    assert len(exercise.mistakes) >= 3 and len(exercise.hints) == 3
    texts = [*exercise.hints, *(mistake.hint for mistake in exercise.mistakes)]
    assert len(set(texts)) == len(texts)
    assert all(len(text) > 10 and text[-1] in ".?)" for text in texts), texts
    for level, text in enumerate(exercise.hints, start=1):
        assert text in str(hint(exercise.id, level))
    shown = str(solution(exercise.id))
    assert "#" in shown, "the solution is commented"
    namespace = dict(vars(sys.modules[exercise.reference.__module__]))
    exec(textwrap.dedent(shown.partition("\n")[2]), namespace)
    assert str(check(exercise.id, namespace[exercise.name])) == f"✓ correct · {exercise.id}"


@every()
def test_neither_a_constant_nor_known_inputs_pass(exercise):
    outcomes, _ = compare.run(exercise.reference, exercise, [engine.FIRST_SEED])
    cases = compare.draw_cases(exercise, engine.FIRST_SEED)
    known = {compare.show(case.args): one.raw for case, one in zip(cases, outcomes, strict=True)}
    for fake in (
        lambda *args: outcomes[0].raw,
        lambda *args: known.get(compare.show(args), outcomes[-1].raw),
    ):
        assert check(exercise.id, fake).state in ("not yet", "raised")


WORKED = "00.click_rate"  # which the notebook solves together with the reader
HERE = {id: one for id, one in EXERCISES.items() if any(name[:2] == one.notebook for name in SOURCES)}


def code_cells(exercise: Exercise) -> list[str]:
    (path,) = (path for name, path in SOURCES.items() if name.startswith(exercise.notebook))
    notebook = jupytext.reads(path.read_text(encoding="utf-8"), fmt="py:percent")
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


def stub_of(exercise: Exercise) -> Callable:
    (cell,) = (cell for cell in code_cells(exercise) if f"def {exercise.name}(" in cell)
    namespace = {"np": np, "torch": torch, "pd": pd, "check": lambda id, fn: None}
    exec(cell[cell.index(f"def {exercise.name}(") :], namespace)
    return namespace[exercise.name]


@every(HERE)
def test_the_stub_is_not_attempted(exercise):
    stub = stub_of(exercise)
    assert list(inspect.signature(stub).parameters) == list(inspect.signature(exercise.reference).parameters)
    assert stub.__doc__ and re.search(r"\b(example|for|gives?)\b", stub.__doc__, re.IGNORECASE)
    answer = check(exercise.id, stub)
    assert answer.state == ("correct" if exercise.id == WORKED else "not attempted")
    assert sum(f'check("{exercise.id}", {exercise.name})' in cell for cell in code_cells(exercise)) == 1


@pytest.mark.parametrize("name", SOURCES)
def test_a_notebook_checks_exercises_that_exist_and_has_three_questions_with_proofs(name):
    text = SOURCES[name].read_text(encoding="utf-8")
    asked = set(re.findall(r'\b(?:check|use|hint|solution)\("(\d\d\.\w+)"', text))
    assert {id for id in EXERCISES if id.startswith(name[:2])} <= asked <= set(EXERCISES)
    part = text.partition("# ## Self-check")[2].partition("# ## Summary")[0]
    answers = re.findall(r"<details><summary>Answer</summary>(.*?)</details>", part, re.DOTALL)
    assert len(answers) == len(re.findall(r"^# \*\*\d\.", part, re.MULTILINE)) == 3
    assert all(re.search(r"\b(section|question|cell|picture)", answer, re.IGNORECASE) for answer in answers)
    assert "](glossary.md)" in text


def by_autograd(z, y, mask, t):
    z = z.clone().requires_grad_()
    return torch.autograd.grad(F.cross_entropy(z[mask] / t, y[mask]), z)[0]


def brute_force(points):
    return [any((q <= p).all() and (q < p).any() for q in points) for p in points]


ORACLES = {
    "01.precision_at": lambda y, p, t: precision_score(y, p >= t, zero_division=np.nan),
    "01.stable_log_loss": F.binary_cross_entropy_with_logits,
    "02.masked_loss": lambda z, y, m: (
        F.binary_cross_entropy_with_logits(z[m], y[m]) if m.any() else 0 * z.sum()
    ),
    "03.log_sum_exp": lambda z: z.logsumexp(1),
    "03.cross_entropy_gradient": by_autograd,
    "03.balancing_weight": lambda g1, g2: float(g1.norm() / (g1.norm() + g2.norm())),
    "04.pcgrad_of_two": lambda g1, g2: combine("PCGrad", torch.tensor(np.stack([g1, g2]))),
    "04.dominated": brute_force,
    "05.undo_downsampling": correct_downsampling,
}


@pytest.mark.parametrize("id", ORACLES)
def test_references_agree_with_libraries_and_defining_equations(id):
    exercise = find(id)
    for case in (case for seed in range(3) for case in compare.draw_cases(exercise, seed)):
        assert compare.difference(ORACLES[id](*case.args), exercise.reference(*case.args), 1e-5, 1e-7) is None


RATE = "00.conversion_rate"


def right(log):
    return log["purchase"].sum() / log["click"].sum()


def recurses(log):
    return recurses(log)


def first(act):
    """The right answer after an act with the log."""
    return lambda log: (act(log), right(log))[1]


@pytest.mark.parametrize(
    ("code", "state", "said"),
    [
        (recurses, "raised", "RecursionError"),
        (first(lambda log: sys.exit("enough")), "raised", "SystemExit: enough"),
        (first(lambda log: print("looking at", len(log), "rows")), "correct", "looking at 5 rows"),
        (first(lambda log: log.insert(0, "rate", 0.5)), "not yet", "changes its argument log"),
        (first(lambda log: log.iloc.__setitem__((0, 0), 7)), "not yet", "changes its argument log"),
        (first(lambda log: torch.manual_seed(90_000)), "not yet", "global random generators"),
        (first(lambda log: np.random.rand()), "not yet", "global random generators"),
        (lambda log: None, "not yet", "Is there a `return`?"),
        (lambda log: "0.4", "not yet", "expected a number, got a str"),
        (lambda log: np.array([right(log)]), "not yet", "got an array of shape (1,)"),
        (lambda log: torch.tensor(right(log)), "correct", ""),
        (lambda log, extra: 1, "not yet", "expected a function of (log)"),
        (0.4, "not yet", "expected your function, got 0.4"),
        (..., "not attempted", ""),
    ],
)
def test_it_is_answered_in_words(code, state, said, capsys):
    before = torch.random.get_rng_state(), random.getstate(), np.random.get_state()[1].tobytes()
    answer = check(RATE, code)
    assert answer.state == state
    assert said in str(answer)
    assert capsys.readouterr() == ("", ""), "what the code prints is shown in the answer alone"
    assert torch.equal(before[0], torch.random.get_rng_state())
    assert before[1:] == (random.getstate(), np.random.get_state()[1].tobytes())
    assert len(str(answer)) < 2000


def test_stop_ends_code_that_never_ends_and_leaves_no_trace():
    """■ raises KeyboardInterrupt: it reaches the reader, and generators and autograd are as before."""

    def endless(log):
        torch.manual_seed(3)
        torch.set_grad_enabled(False)
        raise KeyboardInterrupt

    before = torch.random.get_rng_state()
    with pytest.raises(KeyboardInterrupt):
        check(RATE, endless)
    assert torch.equal(before, torch.random.get_rng_state()) and torch.is_grad_enabled()


def test_an_error_comes_with_the_readers_own_line():
    def typo(log):
        return log["clicks"].sum()

    text = str(check(RATE, typo))
    assert text.startswith(f"! your code raised KeyError · {RATE}")
    said = 'return log["clicks"].sum()', "in typo, line", "log = table of 5 rows: click ["
    assert all(part in text for part in said)


mixed = find("00.mixed_loss").reference


def in_place(a, b, w):
    a *= 1 - w
    return a + w * b


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (lambda a, b, w: (torch.set_grad_enabled(False), mixed(a, b, w))[1], "leaves autograd switched off"),
        (torch.no_grad()(lambda a, b, w: mixed(a, b, w)), "autograd cannot see how it was computed"),
        (lambda a, b, w: mixed(a.detach(), b, w), "no gradient reaches loss_click"),
        (in_place, "changes its argument loss_click"),
    ],
)
def test_gradients_must_flow(code, said):
    assert said in str(check("00.mixed_loss", code))
    assert torch.is_grad_enabled()
    with torch.no_grad():
        assert check("00.mixed_loss", mixed).state == "correct", "where the reader switched autograd off, too"
        assert not torch.is_grad_enabled()


@pytest.mark.parametrize(
    ("expected", "got", "said"),
    [
        (torch.zeros(3), torch.zeros(3, 1), "expected a tensor of shape (3,), got a tensor of shape (3, 1)"),
        (np.zeros(3), [0.0, 0.0], "expected an array of shape (3,), got a list of 2"),
        (np.zeros(2), [0.0, torch.tensor(0.0)], ""),
        (np.array([False, True]), [0, 1], ""),
        (np.arange(20.0), [*range(19), 7], "entry [19]: expected 19, got 7 (1 of 20 differ)"),
        (np.zeros((3, 2)), np.eye(3)[:, :2], "entry [0, 0]: expected 0, got 1 (2 of 6 differ)"),
        (float("nan"), float("nan"), ""),
        (float("nan"), 0.0, "another number"),
        ({"a": 1}, {"b": 1}, "expected the keys ['a'], got ['b']"),
        ({"a": {"b": 1}}, {"a": {"b": 2}}, "a: b: another number"),
        ({"a"}, ["a"], "expected a set, got a list"),
        (pd.DataFrame({"x": [1]}), pd.DataFrame({"x": [1.0]}), ""),
        (pd.DataFrame({"x": [1]}), pd.DataFrame({"y": [1]}), "columns"),
        (pd.DataFrame({"x": [1]}), pd.DataFrame({"x": [2]}), "different"),
    ],
)
def test_differences_are_said_in_words(expected, got, said):
    found = compare.difference(expected, got)
    assert (found is None) == (said == "")
    assert found is None or said in found.words


def test_the_entry_that_differs_is_shown_wherever_it_lies():
    wide = torch.arange(60.0).reshape(3, 20) / 7
    for value, at, said in (
        (list(range(30)), (29,), "array[25:30] = [25, 26, 27, 28, 29] of shape (30,)"),
        (wide, (2, 19), "8.4286] of shape (3, 20)"),
        (np.arange(3.0), (1,), "array[0, 1, 2]"),
    ):
        assert said in compare.show(value, at)

    def last_is_wrong(ids, labels):
        found = find("07.rate_of_others").reference(ids, labels)
        found[-1] += len(ids) > 10
        return found

    lines = dict(check("07.rate_of_others", last_is_wrong).lines)
    assert lines["expected"] != lines["got"] and "entry [19]" in lines["problem"]
    assert "ids = array[15:20]" in lines["input"], "the inputs of that entry, too"


def test_gradients_are_shown_at_their_size():
    """Of losses 1 and 2 with log-variances 0, the total's gradient is 1 and 1; minus L + 1/2 the other."""
    total = find("04.uncertainty_total").reference
    lines = dict(check("04.uncertainty_total", lambda losses, s: total(losses, s.detach() + 0 * s)).lines)
    assert lines["expected"] == "d/dlosses = tensor[1, 1]; d/dlog_variance = tensor[-0.5, -1.5]"
    assert lines["got"] == "d/dlosses = tensor[1, 1]; d/dlog_variance = tensor[0, 0]"


def broken(*args):
    raise ZeroDivisionError("ours")


@pytest.mark.parametrize("part", ["reference", "cases", "observe"])
def test_a_fault_of_the_course_is_not_called_the_readers(part, monkeypatch, capsys):
    made = dataclasses.replace(find("02.add_task"), **{part: broken})
    if part == "reference":
        made = dataclasses.replace(made, reference=lambda model, task: broken())
    monkeypatch.setattr(engine, "find", lambda id: made)
    answer = check("02.add_task", find("02.add_task").reference)
    assert answer.state == "check failed" and "not your code" in str(answer) and "ours" in str(answer)
    assert use("02.add_task", broken) is made.reference
    assert "could not be checked" in capsys.readouterr().out


def test_what_is_returned_is_used_and_a_failure_there_is_said_so():
    def narrow(model, task):
        model.towers[task.name] = torch.nn.Linear(3, task.n_outputs)
        model.tasks = (*model.tasks, task)
        return model

    for result, said in ((None, "None. Is there a `return`?"), (torch.nn.Linear(3, 1), "a Linear")):
        answer = str(check("02.add_task", lambda model, task, result=result: result))
        assert f"expected a SharedBottom, got {said}" in answer and "raised" not in answer
    answer = check("02.add_task", narrow)
    assert answer.state == "not yet" and "fails when it is used: RuntimeError" in str(answer)
    lines = dict(check("02.add_task", find("02.add_task").mistakes[1].answer).lines)
    assert "model.tasks: expected 'a tuple of click" in lines["problem"]
    assert lines.keys() == {"input", "problem", "hint"}, "the facts, cut short, would look alike"


def reference_as(form, id):
    return id, lambda *args: form(find(id).reference(*args))


@pytest.mark.parametrize(
    ("id", "answer"),
    [
        reference_as(torch.Tensor.numpy, "03.cross_entropy_gradient"),
        reference_as(list, "03.log_sum_exp"),
        reference_as(lambda answer: answer.astype(int).tolist(), "04.dominated"),
        reference_as(pd.Series, "07.rate_of_others"),
        ("01.stable_log_loss", lambda z, y: F.softplus(torch.where(y > 0.5, -z, z).double()).mean()),
        ("03.log_sum_exp", lambda z: np.logaddexp.reduce(z.numpy(), 1)),
        ("06.logit_of_product", lambda a, b: (p := F.logsigmoid(a) + F.logsigmoid(b)) - (-p.expm1()).log()),
        ("06.load_term", lambda gates: (u := gates.numpy().mean(0)).var() / u.mean() ** 2),
    ],
)
def test_an_unusual_right_answer_passes(id, answer):
    assert str(check(id, answer)) == f"✓ correct · {id}"


def test_what_works_on_the_cpu_only_is_found_on_the_device(monkeypatch):
    with FakeDevice("cuda"):
        monkeypatch.setattr(engine, "get_device", lambda: torch.device("cuda"))
        assert check("02.masked_loss", find("02.masked_loss").reference).state == "correct"

        def here(logits, labels, mask):
            return find("02.masked_loss").reference(logits, labels, mask & torch.ones(len(mask), dtype=bool))

        assert "same device" in str(check("02.masked_loss", here))
        assert check("03.log_sum_exp", lambda z: np.logaddexp.reduce(z.numpy(), 1)).state == "correct"


def test_the_mistake_that_explains_everything_wins():
    """A reader who treats one case apart still gets the hint; one with an error more gets none that is wrong."""

    def half_mended(log):
        return right(log) if len(log) == 5 else log["purchase"].mean()

    def two_errors(log):
        return log["purchase"].mean() if len(log) == 5 else 1 - right(log)

    assert find(RATE).mistakes[0].hint in str(check(RATE, half_mended))
    assert "hint " not in str(check(RATE, two_errors)).replace('hint("', "")

    def selected(logits, labels, mask):
        """A mean over no rows is NaN as 0/0 is, with another gradient."""
        return F.binary_cross_entropy_with_logits(logits[mask], labels[mask])

    assert find("02.masked_loss").mistakes[2].hint in str(check("02.masked_loss", selected))

    def more_digits(a, b):
        """Goes further before a sigmoid rounds to 1, and not far enough."""
        return torch.logit(a.double().sigmoid() * b.double().sigmoid())

    assert find("06.logit_of_product").mistakes[-1].hint in str(check("06.logit_of_product", more_digits))


FOUR = {"not attempted": lambda log: ..., "correct": right}
FOUR |= {"not yet": lambda log: 0.5, "raised": lambda log: 1 / 0}


@pytest.mark.parametrize("state", FOUR)
def test_an_answer_reads_as_plain_text_and_needs_no_colour(state):
    answer = check(RATE, FOUR[state])
    first = str(answer).splitlines()[0]
    assert answer.state == state and first == f"{engine.MARKS[state]} {answer.headline}"
    assert (state if state != "raised" else "your code raised ZeroDivisionError") in first
    page = answer._repr_html_()
    assert not any(word in page + str(answer) for word in ("color", "background", "\x1b", "\t"))
    bare = html.unescape(re.sub(r"<[^>]+>", " ", page))
    assert all(part in bare for part in (answer.headline, *(text for line in answer.lines for text in line)))


def test_output_that_looks_like_html_is_shown_as_text_and_marks_differ():
    page = check(RATE, lambda log: "<script>alert(1)</script>")._repr_html_()
    assert "<script>" not in page and "&lt;script&gt;" in page
    assert len({engine.MARKS[state] for state in FOUR}) == 4


@pytest.mark.parametrize("state", ["not attempted", "not yet", "raised"])
def test_strict_raises(state, monkeypatch):
    monkeypatch.setenv("MTL_STRICT", "1")
    for call in (check, use):
        with pytest.raises(AssertionError, match=RATE):
            call(RATE, FOUR[state])
    assert check(RATE, right).state == "correct"


def test_use_gives_yours_or_the_solution(capsys):
    assert use(RATE, right) is right
    assert capsys.readouterr().out == ""
    for state, said in (("not attempted", "is not written yet"), ("not yet", "does not pass")):
        assert use(RATE, FOUR[state]) is find(RATE).reference
        assert said in capsys.readouterr().out
    with pytest.raises(KeyError, match="no exercise '00.nothing'.*00.conversion_rate"):
        use("00.nothing", right)


@pytest.mark.parametrize("id", ["00.nothing", "", "77.x", None])
def test_an_unknown_exercise_or_level_is_answered_in_words(id):
    for call in (lambda id: check(id, right), hint, solution):
        assert "There is no exercise" in str(call(id))
    assert "levels 1, 2 and 3" in str(hint(RATE, 4))


def test_progress_is_kept(own_progress):
    assert progress().headline.startswith(f"0 of {len(EXERCISES)} ")
    check(RATE, FOUR["not yet"])
    assert not own_progress.exists()
    check(RATE, right)
    use("00.mixed_loss", find("00.mixed_loss").reference)
    assert list(json.loads(own_progress.read_text(encoding="utf-8"))["passed"]) == [RATE]
    assert "✓ conversion_rate" in str(progress()) and "○ mixed_loss" in str(progress())
    check(RATE, FOUR["raised"])
    assert "✓ conversion_rate" in str(progress()), "what was passed once stays passed"
    assert [path.name for path in own_progress.parent.iterdir()] == [own_progress.name]


@pytest.mark.parametrize("content", [b"{not json", b'{"passed": 3}', b"\xff\xfe\x00"])
def test_a_damaged_file_is_not_fatal(own_progress, content):
    own_progress.parent.mkdir()
    own_progress.write_bytes(content)
    assert "cannot be read" in str(progress())
    assert check(RATE, right).state == "correct"
    assert "cannot be read" not in str(progress()) and "✓ conversion_rate" in str(progress())


def test_the_file_lies_in_the_readers_state_folder_and_need_not_be_written(tmp_path, monkeypatch):
    blocked = tmp_path / "a file"
    blocked.write_text("")
    monkeypatch.setenv("MTL_PROGRESS", str(blocked / "progress.json"))
    answer = check(RATE, right)
    assert answer.state == "correct"
    assert answer.lines[-1][0] == "not kept" and "progress() will not know" in answer.lines[-1][1]
    assert progress().headline.startswith("0 of")
    monkeypatch.delenv("MTL_PROGRESS")
    assert progress_file() == platformdirs.user_state_path("mtl-for-recommenders", False) / "progress.json"


def test_the_listing_says_which_mistake_does_not_come():
    none = Mistake(right, "A hint that never comes.")
    blind = dataclasses.replace(find(RATE), mistakes=(none,))
    assert any("DOES NOT BRING UP" in line for line in listing({RATE: blind}))
    command = [sys.executable, "-u", "notebooks/source/list_exercises.py"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline().startswith(b"%d exercises" % len(EXERCISES))
        process.kill()
