"""The training loop: what it learns, when it stops, and what is left when something goes wrong."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from helpers import MIXED_TASKS, toy_frame, toy_splits

from mtl_helpers import gradients, training, weighting
from mtl_helpers.data import Task, hide_labels
from mtl_helpers.gradients import METHODS, CombinedGradients
from mtl_helpers.losses import task_losses
from mtl_helpers.models import SharedBottom, SingleTask
from mtl_helpers.training import TrainingDiverged, evaluate, fit, predict, training_steps
from mtl_helpers.weighting import DWA, FAMO, GLS, GradNorm, RandomWeighting

QUICK = {"epochs": 6, "lr": 1e-2, "patience": 9, "progress": False}


def make(**options):
    torch.manual_seed(0)
    return SharedBottom(toy_splits().schema, MIXED_TASKS, **options)


def weights_of(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def without_labels(data, name):
    nothing = torch.zeros(len(data), dtype=torch.bool)
    return replace(data, masks=data.masks | {name: nothing})


@pytest.fixture(scope="module")
def splits():
    return toy_splits(1200)


def test_three_kinds_of_task_are_learned(splits):
    model = make()
    before = evaluate(model, splits.test)
    history = fit(model, splits.train, splits.valid, epochs=40, batch_size=128, lr=5e-3, progress=False)
    after = evaluate(model, splits.test)
    assert after["click"]["auc"] > 0.85
    assert after["kind"]["accuracy"] > before["kind"]["accuracy"] + 0.1
    assert after["dwell"]["rmse"] < 0.6 * before["dwell"]["rmse"]
    assert set(history.frame()["metric"]) == {"loss", "auc", "accuracy", "rmse"}


def test_equals_the_loop_written_by_hand(splits):
    ours, by_hand = make(), make()
    weights = {"click": 1, "kind": 2, "dwell": 0.5}
    fit(ours, splits.train, epochs=2, batch_size=100, seed=7, weights=weights, progress=False)
    optimizer = torch.optim.AdamW(by_hand.parameters(), lr=1e-3, weight_decay=0.0)
    generator = torch.Generator().manual_seed(7)
    for _ in range(2):
        for batch in splits.train.batches(100, generator=generator):
            losses = task_losses(MIXED_TASKS, by_hand(batch.numeric, batch.categorical), batch)
            optimizer.zero_grad()
            (losses["click"] + 2 * losses["kind"] + 0.5 * losses["dwell"]).backward()
            optimizer.step()
    assert torch.equal(weights_of(ours), weights_of(by_hand))


def test_weights_are_read_at_every_step(splits):
    model, weights = make(), {"click": 1.0, "kind": 0.0, "dwell": 0.0}
    optimizer = torch.optim.Adam(model.parameters())
    steps = training_steps(model, splits.train, optimizer, weights=weights, batch_size=64)
    next(steps)
    before = model.towers["kind"].head.weight.clone()
    next(steps)
    assert torch.equal(before, model.towers["kind"].head.weight)
    weights["kind"] = 1.0
    next(steps)
    assert not torch.equal(before, model.towers["kind"].head.weight)


class TestEarlyStopping:
    def test_best_weights_come_back(self, splits):
        model, how = make(), QUICK | {"epochs": 200, "lr": 2e-2, "patience": 2, "batch_size": 64}
        history = fit(model, splits.train, splits.valid, **how)
        assert history.stopped == "early"
        curves = history.frame().query("split == 'valid' and metric == 'loss'")
        total = curves.groupby("epoch")["value"].sum()
        assert total.idxmin() == history.best_epoch == total.index.max() - 2
        now = sum(values["loss"] for values in evaluate(model, splits.valid).values())
        assert now == pytest.approx(total.min(), rel=1e-6)

    def test_monitor_of_one_task_or_of_ones_own_weights(self, splits):
        model = make()
        history = fit(model, splits.train, splits.valid, monitor="click.auc", **QUICK)
        curve = history.curve("click", "auc")
        assert history.best_epoch == curve.idxmax()
        assert evaluate(model, splits.valid)["click"]["auc"] == pytest.approx(curve.max())
        own = {"click": 0, "kind": 1, "dwell": 0}
        history = fit(make(), splits.train, splits.valid, monitor=own, **QUICK)
        assert history.best_epoch == history.curve("kind").idxmin()
        with pytest.raises(ValueError, match="each of"):
            fit(make(), splits.train, splits.valid, monitor={"click": 1}, progress=False)

    @pytest.mark.parametrize("monitor", ["auc", "buy.auc", "click", "click.rmse"])
    def test_unknown_monitor(self, splits, monitor):
        with pytest.raises(ValueError, match=r"monitor"):
            fit(make(), splits.train, splits.valid, epochs=1, monitor=monitor, progress=False)

    def test_without_validation_the_last_epoch_stays(self, splits):
        history = fit(make(), splits.train, epochs=3, progress=False)
        assert (history.best_epoch, history.stopped) == (3, "finished")
        assert set(history.frame()["split"]) == {"train"}


class TestThingsThatGoWrong:
    def test_nan_in_one_task_names_it_and_keeps_the_best_weights(self, splits):
        train, model = splits.train.take(slice(None)), make()
        train.labels["dwell"] = train.labels["dwell"].clone()
        train.labels["dwell"][train.masks["dwell"].nonzero()[5]] = float("nan")
        with pytest.raises(TrainingDiverged, match=r"'dwell' became nan in epoch 1, step \d+"):
            fit(model, train, splits.valid, epochs=2, batch_size=64, progress=False)
        assert torch.isfinite(weights_of(model)).all()

    def test_divergence_after_a_good_epoch_restores_that_epoch(self, splits, monkeypatch):
        model, per_epoch = make(), -(-len(splits.train) // 64)
        real, calls, good = weighting.task_losses, [], {}

        def breaks_later(tasks, logits, batch):
            calls.append(1)
            if len(calls) == per_epoch + 1:
                good["weights"] = weights_of(model)
            losses = real(tasks, logits, batch)
            return losses | {"click": losses["click"] * (1 if len(calls) < per_epoch + 4 else float("inf"))}

        monkeypatch.setattr(weighting, "task_losses", breaks_later)
        with pytest.raises(TrainingDiverged, match=r"'click' became inf in epoch 2, step 4"):
            fit(model, splits.train, splits.valid, epochs=5, batch_size=64, progress=False)
        assert torch.equal(weights_of(model), good["weights"])

    def test_interrupting_keeps_the_best_weights(self, splits, monkeypatch):
        model, seen, real = make(), [], training.evaluate

        def interrupted(model, data):
            seen.append(weights_of(model))
            if len(seen) == 2:
                raise KeyboardInterrupt
            return real(model, data)

        monkeypatch.setattr(training, "evaluate", interrupted)
        history = fit(model, splits.train, splits.valid, epochs=9, progress=False)
        assert (history.stopped, history.best_epoch) == ("interrupted", 1)
        assert torch.equal(weights_of(model), seen[0])

    def test_data_that_cannot_train_the_model(self, splits):
        for data, epochs, words in (
            (splits.train.select(["kind"]), 1, "click"),
            (splits.train, 0, "epochs is 0"),
            (without_labels(splits.train, "kind"), 1, "No training row has a label of kind"),
        ):
            with pytest.raises(ValueError, match=words):
                fit(make(), data, epochs=epochs, progress=False)
        for data in (toy_frame(60), torch.utils.data.DataLoader([1, 2])):
            words = f"needs a MultiTaskDataset and got a {type(data).__name__}"
            with pytest.raises(TypeError, match=words):
                fit(make(), splits.train, data, progress=False)
            with pytest.raises(TypeError, match=words):
                predict(make(), data)
        for call in (fit, predict):
            with pytest.raises(TypeError, match="DataParallel take .module"):
                call(torch.nn.DataParallel(make()), splits.train)

    def test_an_undefined_monitor_stops_with_a_sentence(self, splits):
        valid, equal = without_labels(splits.valid, "kind"), {"click": 1, "kind": 1, "dwell": 0}
        clicked = splits.valid.take(splits.valid.labels["click"].nonzero().squeeze(-1))
        asked = [(valid, monitor) for monitor in ("loss", "kind.accuracy", "kind.loss", equal)]
        for data, monitor in [*asked, (clicked, "click.auc")]:
            with pytest.raises(ValueError, match="undefined on the validation data"):
                fit(make(), splits.train, data, monitor=monitor, progress=False)
        fit(
            make(), splits.train, valid, monitor="click.auc", epochs=1, progress=False
        )  # kind is not asked about


class TestPredict:
    def test_probabilities_in_row_order(self, splits):
        model = make()
        out = predict(model, splits.test)
        assert ((out["click"] > 0) & (out["click"] < 1)).all()
        assert torch.allclose(out["kind"].sum(-1), torch.ones(len(splits.test)))
        whole = model(splits.test.numeric, splits.test.categorical)
        assert torch.allclose(out["click"], whole["click"].sigmoid(), atol=1e-6)
        mean, std = splits.test.scales["dwell"]
        assert torch.allclose(out["dwell"], whole["dwell"] * std + mean, atol=1e-6)

    def test_dropout_is_off_and_the_mode_comes_back(self, splits):
        model = make(dropout=0.5).train()
        assert torch.equal(predict(model, splits.test)["click"], predict(model, splits.test)["click"])
        assert model.training

    def test_single_task_model_on_data_with_more_tasks(self, splits):
        values = evaluate(SingleTask(splits.schema, Task("click")), splits.test)
        assert set(values) == {"click"} and set(values["click"]) == {"loss", "auc", "accuracy"}


@pytest.fixture(scope="module")
def run(splits):
    model = make()
    settings = {"epochs": 60, "lr": 2e-2, "batch_size": 64, "patience": 4, "progress": False}
    return model, fit(model, splits.train, splits.valid, stop="each", **settings)


class TestEachTasksOwnBest:
    """stop="each": a task is predicted with the weights of its own best epoch."""

    def test_best_epochs_differ_and_each_is_the_lowest(self, run):
        _, history = run
        assert len(set(history.best_epochs.values())) > 1
        for name, epoch in history.best_epochs.items():
            assert epoch == history.curve(name).idxmin()
        assert history.stopped == "early"
        assert history.frame()["epoch"].max() == max(history.best_epochs.values()) + 4

    def test_predictions_come_from_each_tasks_own_epoch(self, run, splits):
        model, history = run
        values = evaluate(model, splits.valid, states=history.best_states)
        before = weights_of(model)
        predicted = predict(model, splits.valid, states=history.best_states)
        for name, epoch in history.best_epochs.items():
            assert values[name]["loss"] == pytest.approx(history.curve(name).loc[epoch], rel=1e-6)
            model_then = make()
            model_then.load_state_dict(history.best_states[name])
            assert torch.equal(predicted[name], predict(model_then, splits.valid)[name])
        assert torch.equal(before, weights_of(model))

    def test_the_model_itself_keeps_the_joint_best(self, run, splits):
        model, history = run
        total = sum(history.curve(name) for name in history.best_epochs)
        assert history.best_epoch == total.idxmin()
        assert sum(v["loss"] for v in evaluate(model, splits.valid).values()) == pytest.approx(
            total.min(), rel=1e-6
        )

    def test_together_keeps_no_states(self, splits):
        history = fit(make(), splits.train, splits.valid, epochs=1, progress=False)
        assert not history.best_epochs and not history.best_states
        with pytest.raises(ValueError, match="stop is 'never'"):
            fit(make(), splits.train, stop="never", progress=False)


def test_training_loss_is_the_mean_over_labelled_rows_not_over_batches(splits):
    """Few labels: most batches have none, and must not pull the mean down; DWA reads that mean."""
    seen = []

    class Spy(DWA):
        def after_epoch(self, train, valid):
            seen.append(train)
            super().after_epoch(train, valid)

    model, train = make(), hide_labels(splits.train, "kind", 12, seed=1)
    how = {"epochs": 1, "lr": 1e-12, "batch_size": 16, "progress": False}
    history = fit(model, train, weights=Spy(MIXED_TASKS), **how)
    means = [history.curve(task.name, split="train").item() for task in MIXED_TASKS]
    assert seen[0].tolist() == means
    assert means == pytest.approx([values["loss"] for values in evaluate(model, train).values()], rel=1e-4)


def test_row_weights_equal_duplicated_rows(splits):
    times = torch.arange(len(splits.train)) % 3
    weighted = replace(splits.train, weights=times.float())
    doubled = splits.train.take(torch.arange(len(times)).repeat_interleave(times))
    ends, numbers = [], []
    for data in (weighted, doubled, splits.train):
        model = make()
        history = fit(model, data, epochs=3, batch_size=10_000, lr=1e-2, progress=False)
        ends.append(weights_of(model))
        numbers.append([*history.frame()["value"], *(v["loss"] for v in evaluate(model, data).values())])
    assert torch.allclose(ends[0], ends[1], atol=1e-5) and np.allclose(numbers[0], numbers[1], atol=1e-5)
    assert not torch.allclose(ends[0], ends[2], atol=1e-4)


def test_regression_is_reported_in_the_labels_unit(splits):
    scaled = replace(splits.test, scales={"dwell": (3000.0, 500.0)})
    model = make()
    raw = replace(splits.test, scales={})
    plain, ours = predict(model, raw)["dwell"], predict(model, scaled)["dwell"]
    assert torch.allclose(ours, plain * 500 + 3000)
    before, now = evaluate(model, raw)["dwell"], evaluate(model, scaled)["dwell"]
    assert now["loss"] == before["loss"] and now["rmse"] == pytest.approx(500 * before["rmse"], rel=1e-4)


STRATEGIES = {  # whose papers promise, or whose formulas show, that a common factor of all losses changes nothing
    "DWA": DWA,
    "RLW": RandomWeighting,
    "GLS": GLS,
    "FAMO": FAMO,  # its weights follow falls of log losses, in which a factor cancels
    "GradNorm": GradNorm,  # its weights follow quotients of losses and of gradient norms
    **{name: partial(CombinedGradients, method=name) for name in METHODS},
}


@pytest.mark.parametrize("name", ["fixed", *STRATEGIES])
def test_a_common_factor_changes_nothing(splits, monkeypatch, name):
    """Adam's step is free of the gradient's scale, and AdamW's decay stands beside it. Without its ε: where a gradient
    vanishes (rare categories), 1e-8 is not small against it."""
    monkeypatch.setattr(torch.optim, "AdamW", partial(torch.optim.AdamW, eps=1e-30))
    ends, real = [], task_losses
    for scale in (1.0, 1 / 30, 30.0):
        model, weights = make(), {"click": scale, "kind": 2 * scale, "dwell": 0.5 * scale}
        if name != "fixed":
            weights = STRATEGIES[name](MIXED_TASKS)
            for module in (weighting, gradients):
                scaled = lambda *given, by=scale: {task: by * loss for task, loss in real(*given).items()}  # noqa: E731
                monkeypatch.setattr(module, "task_losses", scaled)
        settings = {"epochs": 3, "batch_size": 64, "lr": 3e-3, "weight_decay": 1.0, "progress": False}
        fit(model, splits.train, weights=weights, **settings)
        ends.append(weights_of(model))
    one, *others = ends
    assert all((one - other).norm() < 1e-3 * (one - weights_of(make())).norm() for other in others)
