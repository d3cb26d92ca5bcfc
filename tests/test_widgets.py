"""The demos without a browser: what a state draws and says, and what happens when an update fails."""

from __future__ import annotations

import asyncio
import base64
import html
import io
import os
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
import widget_demos as demos
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from PIL import Image
from sklearn.metrics import accuracy_score, precision_score, recall_score

from mtl_helpers.losses import task_losses
from mtl_helpers.models import SharedBottom
from mtl_helpers.training import TrainingDiverged, training_steps
from mtl_helpers.widgets import (
    Explorer,
    Stage,
    TrainedWeights,
    choice_slider,
    dropdown,
    encode_png,
    gradient_shares,
    live_training,
    minus,
    scarcity_explorer,
    slider,
    threshold_explorer,
    undefined,
    weight_explorer,
)


def small(update=None, controls=None, **options) -> Explorer:
    """A point that a slider ``x`` moves along a line, unless told otherwise."""
    figure = Figure(figsize=(3, 2), dpi=100)
    (point,) = figure.subplots().plot([0], [0], "o", animated=True)

    def show(state: dict) -> str:
        point.set_data([0], [0.04 * (state["x"] - 0.5)])
        return f"x is {state['x']:.2f}"

    controls = [slider("x", "place", 0, 1, 0.5)] if controls is None else controls
    return Explorer(figure, controls, update or show, title="A point", **options)


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def some_states(explorer: Explorer) -> list[dict]:
    """Each control at its ends and in between, one at a time."""
    states = []
    for name, control in explorer.controls.items():
        if hasattr(control, "options"):
            values = [value for _, value in control.options]
        else:
            values = [control.min, (control.min + control.max) / 2, control.max]
        states += [{name: value} for value in values[:: max(1, len(values) // 4)]]
    return states


@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from([3, 4]), st.integers(0, 2**32 - 1))
def test_png_gives_the_pixels_back(height, width, channels, seed):
    drawn = np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)
    assert (pixels(encode_png(drawn)) == drawn[..., :3]).all()


@pytest.mark.parametrize("name", demos.ALL)
def test_moving_only_what_moves_gives_the_picture_of_a_full_redraw(name):
    demo = demos.ALL[name]()
    explorer = getattr(demo, "explorer", demo)
    for state in some_states(explorer):
        explorer.set(**state)
        assert not explorer.error and "nan" not in explorer.reading
        assert (pixels(explorer.png()) == Stage(explorer.figure).draw()[..., :3]).all(), state
    assert explorer.stage.full_draws == 1 and plt.get_fignums() == []
    before = pixels(explorer.png())
    explorer.figure.axes[0].set_title("another title")
    explorer.refresh()
    assert explorer.stage.full_draws == 2 and (pixels(explorer.png()) != before).any()


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: slider("x", "x", 0, 1, 2), "goes from 0 to 1"),
        (lambda: choice_slider("x", "x", [1, 2], 3), r"one of \[1, 2\]"),
        (lambda: small(controls=[slider("x", "x", 0, 1, 0)] * 2), "distinct names"),
        (lambda: small(controls={head: [slider("x", "x", 0, 1, 0)] for head in "ab"}), "distinct names"),
        (lambda: small().set(x=7), "goes from 0 to 1"),
        (lambda: small().set(y=1), "no control 'y'; there are"),
        (lambda: weight_explorer(demos.MadeUpSweep(), baselines={"click": [0.7] * 3}), "purchase"),
        (lambda: weight_explorer(demos.MadeUpSweep(), start={"click": 1}), "purchase"),
        (lambda: threshold_explorer([0, 1], [0.1]), "one length"),
        (lambda: threshold_explorer([0, 1], [0.1, 3.2]), "Logits"),
        (lambda: threshold_explorer([0, 1], [0.1, float("nan")]), "NaN"),
        (lambda: scarcity_explorer(table({9: [0.1]}).drop(columns="seed")), "seed"),
        (lambda: scarcity_explorer(table({9: [0.1]}).replace("shared-bottom", "mmoe")), "shared-bottom"),
        (
            lambda: weight_explorer(demos.MadeUpSweep()).set(purchase=0.3),
            "'purchase' takes one of .* got 0.3",
        ),
    ],
)
def test_what_cannot_be_shown_is_refused(make, says):
    with pytest.raises((KeyError, ValueError), match=says):
        make()


@given(st.floats(0, 1), st.sampled_from([0.01, 0.05, 0.3, 1 / 60]))
def test_a_slider_stops_at_its_steps_and_its_end(value, step):
    stop = slider("x", "x", 0, 1, value, step=step).value
    on_step = abs(stop / step - round(stop / step)) < 1e-6
    assert on_step or stop == 1
    assert abs(stop - value) <= step / 2 + 1e-9


def test_every_kind_of_control_reaches_the_update():
    budget = choice_slider("budget", "budget", np.array([100, 1000]), fmt=",")
    controls = [
        slider("whole", "whole", 1, 9, 3, step=1),
        budget,
        dropdown("model", "model", ["a", "b"], "b"),
    ]
    seen = []
    explorer = small(
        lambda state: seen.append(state) or str(state),
        [*controls, dropdown("log", "log axis", [False, True])],
    )
    assert "whole = 3, budget = 100, model = b, log axis = False" in explorer.alt
    explorer.set(whole=4, budget=1000, model="a", log=True)
    assert seen[0] == {"whole": 3, "budget": 100, "model": "b", "log": False}
    assert seen[-1] == explorer.state == {"whole": 4, "budget": 1000, "model": "a", "log": True}
    assert type(seen[0]["whole"]) is int and type(seen[0]["budget"]) is int
    assert "budget = 1,000" in explorer.alt and "log axis = True" in explorer.alt


def test_controls_picture_reading_and_alt_text_follow_each_other():
    explorer = small()
    before, update = explorer.png(), explorer.update
    picture, knob = explorer.widget.children[1], explorer.controls["x"]
    explorer.set(x=0.9)
    assert explorer.png() != before and knob.value == 0.9 and "x is 0.90" in picture.value
    assert explorer.alt == "A point. place = 0.90. x is 0.90" and explorer.reading == "x is 0.90"
    knob.value = 0.25
    assert explorer.state == {"x": 0.25} and "x is 0.25" in picture.value
    explorer.update = None
    knob.value = 0.2500001  # what a browser rounds is no move
    assert explorer.state == {"x": 0.25} and not explorer.error
    explorer.update = update
    explorer.buttons["Reset"].click()
    assert explorer.state == {"x": 0.5} and knob.value == 0.5 and explorer.png() == before


def test_groups_are_rows_under_their_headings():
    groups = {str(row): [f"{row}{i}" for i in range(size)] for row, size in enumerate((4, 2, 1))}
    controls = {head: [slider(name, name, 0, 1, 0.5) for name in names] for head, names in groups.items()}
    explorer = small(lambda state: f"sum {sum(state.values()):.2f}", controls)
    rows = explorer.widget.children[0].children
    first, buttons = rows[0].children
    assert [head.value for head in (first, *rows[2::2])] == [f"<b>{i}</b>" for i in range(3)]
    assert [len(grid.children) for grid in rows[1::2]] == [4, 2, 1]
    assert buttons.children == (explorer.buttons["Reset"],), "Reset stands at the right end"
    rows[3].children[1].value = 1.0
    assert explorer.state["11"] == 1.0 and explorer.reading == "sum 4.00"
    assert "0: 00 = 0.50, 01 = 0.50, 02 = 0.50, 03 = 0.50; 1: 10 = 0.50, 11 = 1.00; 2: 20" in explorer.alt


def test_text_is_escaped_and_what_else_is_in_the_picture_is_for_screen_readers():
    controls = {"<i>x": [slider("x", "place", 0, 1, 0.5)]}
    explorer = small(lambda state: ("<b>1 < 2</b>", "a list & more", ""), controls)
    assert explorer.reading == "<b>1 < 2</b>" and explorer.alt.endswith("1 < 2</b>. a list & more")
    assert "<b" not in explorer.html() and "&lt;b&gt;1 &lt; 2&lt;/b&gt;" in explorer.html()
    assert explorer.html().count("a list &amp; more") == 1
    assert explorer.widget.children[0].children[0].children[0].value == "<b>&lt;i&gt;x</b>"


@pytest.mark.parametrize(
    ("wrong", "says", "line"),
    [
        (lambda: 1 / len("<large>"[7:]), "ZeroDivisionError: ", '1 / len("<large>"[7:])'),
        (lambda: np.linspace(0, 1, 3)[int("seven")], "ValueError: ", 'int("seven")'),
        (lambda: pd.DataFrame({"a": [1]})["b"], "KeyError: 'b'", '["b"]'),  # beneath a library
    ],
)
def test_an_error_is_shown_with_the_readers_line_and_goes_with_the_next_good_state(wrong, says, line):
    explorer = small(lambda state: str(wrong()) if state["x"] > 0.8 else "fine")
    picture = explorer.widget.children[1]
    good = explorer.png()
    explorer.set(x=0.9)
    assert explorer.error.startswith(says) and line in explorer.error
    assert html.escape(line) in picture.value and 'role="alert"' in picture.value
    assert explorer.png() == good and explorer.alt.endswith("fine")
    explorer.set(x=0.1)
    assert explorer.error == "" and "Error" not in picture.value


def test_an_error_at_once_is_raised_and_that_of_a_button_shown():
    with pytest.raises(ZeroDivisionError):
        small(lambda state: 1 / 0)
    explorer = small(buttons=[("Fail", lambda: 1 / 0)])
    explorer.buttons["Fail"].click()
    assert "ZeroDivisionError" in explorer.error


def test_what_a_notebook_stores():
    explorer = small()
    bundle, size = explorer._repr_mimebundle_()
    assert set(bundle) == {"application/vnd.jupyter.widget-view+json", "image/png", "text/plain"}
    assert bundle["application/vnd.jupyter.widget-view+json"]["model_id"] == explorer.widget.model_id
    assert bundle["text/plain"] == "A point. x is 0.50" and size == {"image/png": {"width": 300}}
    stored, live = pixels(base64.b64decode(bundle["image/png"])), pixels(explorer.png())
    assert (stored[: len(live)] == live).all() and len(stored) > len(live), "the reading is printed below"
    explorer.set(x=0.9)
    assert explorer._repr_mimebundle_()[0]["image/png"] == bundle["image/png"], "the first state is kept"


@pytest.mark.parametrize("python", [p for p in (sys.executable, os.environ.get("MTL_COLAB_PYTHON")) if p])
def test_every_control_of_every_demo_answers(python):
    command = [python, str(Path(demos.__file__).with_name("drive_widgets.py"))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]


def test_threshold_counts_what_scikit_learn_counts():
    labels, probabilities = demos.scores(3000)
    explorer = threshold_explorer(torch.tensor(labels), torch.tensor(probabilities), threshold=0.05)
    for _, stop in explorer.controls["threshold"].options[::6]:
        explorer.set(threshold=stop)
        said = probabilities >= stop
        if said.any():
            assert f"(precision {precision_score(labels, said):.3f})" in explorer.reading
        assert f"recall {recall_score(labels, said):.3f}; " in explorer.reading
        accuracy = f"accuracy {accuracy_score(labels, said):.4f} against {1 - labels.mean():.4f}"
        assert accuracy in explorer.reading


def test_threshold_names_what_has_no_value():
    explorer = threshold_explorer([0, 0, 0], [0.1, 0.2, 0.3], threshold=0.5)
    assert "there is no precision" in explorer.reading and "undefined: recall" in explorer.reading
    assert undefined({"click": 0.7, "buy": float("nan")}) == "undefined: buy"
    assert undefined({"click": 0.7}) == ""


def table(gains: dict[int, list[float]]) -> pd.DataFrame:
    """Runs whose paired differences are ``gains[budget]``."""
    rows = []
    for budget, values in gains.items():
        for seed, gain in enumerate(values):
            base = 0.6 + seed / 100
            rows += [(budget, "single-task", seed, base), (budget, "shared-bottom", seed, base + gain)]
    return pd.DataFrame(rows, columns=["label_budget", "model", "seed", "auc"])


@pytest.mark.parametrize(
    ("gains", "says"),
    [
        ([0.02, 0.021, 0.022], "gain +0.0210 over 3 seeds, 95 % interval"),
        ([0.02, 0.021, 0.022], "excludes zero: sharing helps"),
        ([-0.02, 0.02, 0.001], "includes zero: a tie"),
        ([-0.02, -0.021, -0.022], "excludes zero: sharing hurts"),
    ],
)
def test_scarcity_claims_only_what_the_interval_allows(gains, says):
    assert says in scarcity_explorer(table({100: [0.0, 0.01], 200: gains})).set(budget=200).reading


def test_scarcity_refuses_what_has_no_interval():
    frame = table({100: [0.02, 0.021, 0.022]})
    for missing in (frame.assign(auc=frame["auc"].where(frame.index != 1)), frame.iloc[:2]):
        with pytest.raises(ValueError, match="two or more finite values"):
            scarcity_explorer(missing)


def final_auc(sweep, weighting: int) -> pd.Series:
    final = sweep.final()
    rows = final[(final["weighting"] == weighting) & (final["metric"] == "auc") & (final["split"] == "valid")]
    return rows.groupby("task")["value"].mean()


def test_a_trained_weighting_shows_its_own_numbers_against_the_baselines():
    sweep = demos.MadeUpSweep()
    sweep.records = sweep.records.sample(frac=1, random_state=0)  # rows in any order
    versus = {"click": 0.7, "purchase": 0.71}
    explorer = weight_explorer(sweep, baselines={name: [value] * 3 for name, value in versus.items()})
    for index in (0, 7, 16):
        explorer.set(purchase=sweep.weightings["purchase"][index])
        for name, value in final_auc(sweep, index).items():
            assert minus(f"{name} AUC {value:.4f} ({value - versus[name]:+.4f})") in explorer.reading
    assert "(trained, " in explorer.reading and "Against single-task" in explorer.reading
    assert "Against equal weights: click AUC" in weight_explorer(sweep).reading


@pytest.mark.parametrize("seed", range(3))
def test_three_weights_show_a_trained_model_wherever_they_are_put(seed):
    sweep = demos.MadeUpSweep(("click", "cart", "purchase"))
    rng = np.random.default_rng(seed)
    sweep.weightings = pd.DataFrame(rng.dirichlet((1, 1, 1), 21), columns=list(sweep.weightings)).round(3)
    shares = sweep.weightings.div(sweep.weightings.sum(axis=1), axis=0)
    explorer = weight_explorer(sweep)
    for name in rng.choice(list(explorer.controls), 8):
        wanted = rng.choice([value for _, value in explorer.controls[name].options])
        explorer.set(**{name: wanted})
        assert explorer.state[name] == wanted
        (index,) = np.flatnonzero((shares - pd.Series(explorer.state)).abs().max(axis=1) < 2e-6)
        for task, value in explorer.state.items():
            assert f"{value:.3f} {task}" in explorer.reading
            assert f"{task} AUC {final_auc(sweep, index)[task]:.4f}" in explorer.reading


def test_weights_are_shares_of_their_sum_and_start_at_the_nearest_trained_ones():
    sweep = demos.MadeUpSweep()
    reading = weight_explorer(sweep, start={"click": 1, "purchase": 3}).reading
    sweep.weightings = sweep.weightings * 8
    assert weight_explorer(sweep, start={"click": 2, "purchase": 6}).reading == reading
    assert "0.26 click + 0.74 purchase (trained" in reading


def test_a_lower_error_is_a_gain():
    sweep = demos.MadeUpSweep()
    rows = sweep.records["task"].eq("click") & sweep.records["metric"].eq("auc")
    sweep.records.loc[rows, "metric"] = "rmse"
    reading = weight_explorer(sweep, baselines={"click": [1.0] * 3, "purchase": [1.0] * 3}).reading
    click, purchase = reading.split("click RMSE ")[1], reading.split("purchase AUC ")[1]
    assert "(+" in click.split(",")[0] and "(−" in purchase


def test_diverged_runs_leave_gaps_and_are_named():
    sweep = demos.MadeUpSweep()
    broken = (sweep.records["weighting"] == 8) & (sweep.records["task"] == "purchase")
    sweep.records.loc[broken, "value"] = np.nan
    explorer = weight_explorer(sweep, start={"click": 1, "purchase": 1})
    assert "undefined: purchase" in explorer.reading and not explorer.error
    assert "undefined" not in explorer.set(purchase=0.98).reading


def test_a_sweep_of_one_task_or_without_the_metric_is_refused():
    sweep = demos.MadeUpSweep()
    sweep.records = sweep.records[sweep.records["metric"] == "loss"]
    with pytest.raises(KeyError, match="click"):
        weight_explorer(sweep)
    sweep.weightings = sweep.weightings[["click"]]
    with pytest.raises(ValueError, match="two or three tasks"):
        weight_explorer(sweep)


def test_pushing_a_weight_away_and_back_brings_the_others_back():
    trained = TrainedWeights(demos.MadeUpSweep(("a", "b", "c")).weightings)
    state = first = {"a": 0.2, "b": 0.6, "c": 0.2}
    for value in (0.4, 0.8, 1.0, 0.6, 0.2):
        state = trained.link({**state, "a": value}, "a")
        assert state["a"] == value and sum(state.values()) == pytest.approx(1)
    assert state == first
    state = trained.link({**trained.link({**state, "a": 1.0}, "a"), "b": 0.2}, "b")
    assert state == {"a": 0.8, "b": 0.2, "c": 0.0}, "another slider begins anew"


def live_from_scratch(pace: float = 60.0, epochs: int = 50) -> live_training:
    live = demos.live()
    live.pace, live.epochs = pace, epochs
    live._begin()
    return live


def test_live_training_is_the_course_s_training_loop_with_weights_read_each_step():
    train, schema = demos.clicks_and_purchases()
    torch.manual_seed(0)
    model = SharedBottom(schema, train.tasks, hidden=(32, 16), tower=(8,))
    weights = {"click": 0.5, "purchase": 0.5}
    optimizer, generator = torch.optim.AdamW(model.parameters(), lr=1e-3), torch.Generator().manual_seed(0)
    how = {"weights": weights, "batch_size": 256, "epochs": 50, "generator": generator}
    steps = training_steps(model, train, optimizer, **how)
    expected = []
    for number, step in zip(range(1, 81), steps, strict=False):
        expected += [step.losses["click"].item(), step.losses["purchase"].item()]
        if number == 50:
            weights["purchase"] = 0.0
    live = live_from_scratch()
    live.run_steps(50).explorer.set(purchase=0.0)
    live.run_steps(30)
    assert [loss for losses in live.losses for loss in losses.values()] == expected
    assert [used["purchase"] for used in live.used] == [0.5] * 50 + [0.0] * 30
    shares = {step: share["purchase"] for step, share in live.shares}
    assert all((share > 0) == (step <= 50) for step, share in shares.items()) and len(shares) == 16
    assert [step for step, _ in live.metrics] == [1, 20, 40, 60, 80]


def test_gradient_shares_are_norms_over_their_sum():
    train, schema = demos.clicks_and_purchases(500)
    model = SharedBottom(schema, train.tasks, hidden=(8,), tower=(4,), dropout=0.5)
    model.train()
    batch = next(iter(train.batches(500, shuffle=False)))
    weights = {"click": 0.2, "purchase": 3.0}
    state = torch.get_rng_state()
    found = gradient_shares(model, batch, weights)
    assert model.training and (torch.get_rng_state() == state).all(), "dropout draws nothing"
    model.eval()
    norms = {}
    for name, weight in weights.items():
        model.zero_grad()
        (weight * task_losses(model.tasks, model(batch.numeric, batch.categorical), batch)[name]).backward()
        norms[name] = torch.cat([p.grad.flatten() for p in model.shared_parameters()]).norm().item()
    total = sum(norms.values())
    assert found == pytest.approx({name: norm / total for name, norm in norms.items()}, rel=1e-4)
    assert np.isnan(gradient_shares(model, batch, {"click": 0, "purchase": 0})["click"])


def test_live_training_ends_and_begins_again():
    assert (demos.live().status, demos.live().step) == ("paused", 40)
    live = live_from_scratch(epochs=2)
    live.run_steps(1000)
    assert (live.status, live.step) == ("finished", 2 * 32)
    losses = live.losses
    live.run_steps(64)
    assert live.losses == losses, "from the untrained model, with the same batches"
    with pytest.raises(RuntimeError, match="event loop"):
        live.start()
    live.explorer.set(click=0.9)
    live.reset()
    assert (live.status, live.step) == ("paused", 40) and live.weights == {"click": 0.5, "purchase": 0.5}


def in_a_loop(test):
    return lambda: asyncio.run(test())


async def until(condition, turns: int = 20_000) -> None:
    while not condition():
        turns -= 1
        assert turns, "it never happened"
        await asyncio.sleep(0.001)


@in_a_loop
async def test_start_pause_stop_reset():
    live = live_from_scratch(pace=1000)
    live.start()
    live.start()
    assert len(asyncio.all_tasks()) - 1 == 1 and live.running
    for press, status in ((live.pause, "paused"), (live.stop, "stopped"), (live.reset, "paused")):
        await until(lambda: live.step > 20)
        press()
        halted = live.step
        assert press != live.reset or halted == 40
        await asyncio.sleep(0.05)
        assert (live.status, live.step, len(asyncio.all_tasks()) - 1) == (status, halted, 0)
        live.start()
        assert live.step == (halted if status == "paused" else 0), "after a stop it begins again"
    live.stop()


@in_a_loop
async def test_another_training_pauses_the_first():
    first = live_from_scratch()
    first.start()
    await until(lambda: first.step > 2)
    second = live_from_scratch()
    await asyncio.sleep(0)
    assert first.status == "paused" and len(asyncio.all_tasks()) - 1 == 0
    second.start()
    first.start()
    await asyncio.sleep(0)
    assert (first.status, second.status, len(asyncio.all_tasks()) - 1) == ("running", "paused", 1)
    first.stop()


@in_a_loop
async def test_it_yields_between_slices_of_training_and_reads_its_sliders():
    live = live_from_scratch(pace=1e9, epochs=100)
    live.start()
    turns = moved = 0
    while live.step < 200:
        await asyncio.sleep(0)
        turns += 1
        if live.step > 100 and not moved:
            moved = live.step
            live.explorer.controls["click"].value = 1.0
    live.stop()
    used = [weights["click"] for weights in live.used]
    assert set(used[:moved]) == {0.5} and set(used[moved:]) == {1.0} and turns >= 20


def test_a_training_that_diverges_says_so_and_can_begin_again():
    broken = live_from_scratch()
    broken.train.numeric[5000:] = float("nan")

    async def script() -> None:
        broken.start()
        await until(lambda: broken.status == "failed")
        await asyncio.sleep(0)
        assert len(asyncio.all_tasks()) - 1 == 0

    asyncio.run(script())
    assert "TrainingDiverged: The loss of task" in broken.explorer.error
    with pytest.raises(TrainingDiverged):
        broken.run_steps(100)
