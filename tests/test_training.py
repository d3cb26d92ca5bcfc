"""The training loop: what it learns, when it stops, and what is left when something goes wrong."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from helpers import MIXED_TASKS, toy_splits

from mtl_helpers import training
from mtl_helpers.data import Task
from mtl_helpers.gradients import CombinedGradients
from mtl_helpers.losses import task_losses
from mtl_helpers.models import SharedBottom, SingleTask
from mtl_helpers.training import (
    TrainingDiverged,
    evaluate,
    fit,
    load_checkpoint,
    predict,
    save_checkpoint,
    training_steps,
)
from mtl_helpers.weighting import GradNorm


def make(seed: int = 0, tasks=MIXED_TASKS, **options):
    torch.manual_seed(seed)
    return SharedBottom(toy_splits().schema, tasks, **options)


def weights_of(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


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
    fit(
        ours,
        splits.train,
        epochs=2,
        batch_size=100,
        seed=7,
        progress=False,
        weights={"click": 1, "kind": 2, "dwell": 0.5},
    )
    optimizer, generator = torch.optim.Adam(by_hand.parameters(), lr=1e-3), torch.Generator().manual_seed(7)
    for _ in range(2):
        for batch in splits.train.batches(100, generator=generator):
            losses = task_losses(MIXED_TASKS, by_hand(batch.numeric, batch.categorical), batch)
            optimizer.zero_grad()
            (losses["click"] + 2 * losses["kind"] + 0.5 * losses["dwell"]).backward()
            optimizer.step()
    assert torch.equal(weights_of(ours), weights_of(by_hand))


def test_same_seed_same_weights(splits):
    runs = []
    for seed in (0, 0, 1):
        model = make()
        fit(model, splits.train, splits.valid, epochs=2, seed=seed, progress=False)
        runs.append(weights_of(model))
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])


def test_a_weight_of_zero_leaves_a_tower_untouched(splits):
    model = make()
    before = copy.deepcopy(dict(model.towers["kind"].named_parameters()))
    fit(model, splits.train, epochs=1, weights={"click": 1, "kind": 0, "dwell": 1}, progress=False)
    assert all(torch.equal(before[name], p) for name, p in model.towers["kind"].named_parameters())


def test_weights_are_read_at_every_step(splits):
    model, weights = make(), {"click": 1.0, "kind": 0.0, "dwell": 0.0}
    steps = training_steps(
        model, splits.train, torch.optim.Adam(model.parameters()), weights=weights, batch_size=64
    )
    next(steps)
    before = model.towers["kind"].head.weight.clone()
    next(steps)
    assert torch.equal(before, model.towers["kind"].head.weight)
    weights["kind"] = 1.0
    next(steps)
    assert not torch.equal(before, model.towers["kind"].head.weight)


class TestEarlyStopping:
    def test_best_weights_come_back(self, splits):
        model = make()
        history = fit(
            model, splits.train, splits.valid, epochs=200, lr=2e-2, batch_size=64, patience=2, progress=False
        )
        assert history.stopped == "early"
        curves = history.frame().query("split == 'valid' and metric == 'loss'")
        total = curves.groupby("epoch")["value"].sum()
        assert total.idxmin() == history.best_epoch == total.index.max() - 2
        now = sum(values["loss"] for values in evaluate(model, splits.valid).values())
        assert now == pytest.approx(total.min(), rel=1e-6)

    def test_monitor_of_one_task(self, splits):
        model = make()
        history = fit(
            model,
            splits.train,
            splits.valid,
            epochs=6,
            lr=1e-2,
            monitor="click.auc",
            patience=9,
            progress=False,
        )
        curve = history.curve("click", "auc")
        assert history.best_epoch == curve.idxmax()
        assert evaluate(model, splits.valid)["click"]["auc"] == pytest.approx(curve.max())

    def test_monitor_of_ones_own_weights(self, splits):
        history = fit(
            make(),
            splits.train,
            splits.valid,
            epochs=6,
            lr=1e-2,
            monitor={"click": 0, "kind": 1, "dwell": 0},
            patience=9,
            progress=False,
        )
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
        train = splits.train.take(slice(None))
        model = make()
        fit(model, train, splits.valid, epochs=2, batch_size=64, progress=False)
        start = weights_of(model)
        train.labels["dwell"] = train.labels["dwell"].clone()
        row = int(train.masks["dwell"].nonzero()[5])
        train.labels["dwell"][row] = float("nan")
        with pytest.raises(TrainingDiverged, match=r"'dwell' became nan in epoch 1, step \d+") as caught:
            fit(model, train, splits.valid, epochs=2, batch_size=64, progress=False)
        assert caught.value.task == "dwell" and caught.value.epoch == 1
        assert torch.isfinite(weights_of(model)).all()
        assert not torch.equal(start, weights_of(model)) or caught.value.step == 1

    def test_divergence_after_a_good_epoch_restores_that_epoch(self, splits, monkeypatch):
        model, per_epoch = make(), -(-len(splits.train) // 64)
        real, calls, good = training.task_losses, [], {}

        def breaks_later(tasks, logits, batch):
            calls.append(1)
            if len(calls) == per_epoch + 1:
                good["weights"] = weights_of(model)
            losses = real(tasks, logits, batch)
            return (
                losses if len(calls) < per_epoch + 4 else losses | {"click": losses["click"] * float("inf")}
            )

        monkeypatch.setattr(training, "task_losses", breaks_later)
        with pytest.raises(TrainingDiverged, match=r"'click' became inf in epoch 2, step 4"):
            fit(model, splits.train, splits.valid, epochs=5, batch_size=64, progress=False)
        assert torch.equal(weights_of(model), good["weights"])

    def test_too_large_a_learning_rate(self, splits):
        model = make()
        with pytest.raises(TrainingDiverged, match="learning rate"):
            fit(model, splits.train, splits.valid, epochs=20, lr=1e12, batch_size=64, progress=False)

    def test_interrupting_keeps_the_best_weights(self, splits, monkeypatch):
        model, seen, good = make(), [], {}
        real = training.evaluate

        def interrupted(model, data):
            values = real(model, data)
            seen.append(1)
            if len(seen) == 1:
                good["weights"] = weights_of(model)
            if len(seen) == 2:
                raise KeyboardInterrupt
            return values

        monkeypatch.setattr(training, "evaluate", interrupted)
        history = fit(model, splits.train, splits.valid, epochs=9, progress=False)
        assert (history.stopped, history.best_epoch) == ("interrupted", 1)
        assert torch.equal(weights_of(model), good["weights"])

    def test_data_without_the_models_labels(self, splits):
        with pytest.raises(ValueError, match="click"):
            fit(make(), splits.train.select(["kind"]), progress=False)
        with pytest.raises(ValueError, match="0 rows"):
            fit(make(), splits.train.take([]), progress=False)
        with pytest.raises(ValueError, match="epochs is 0"):
            fit(make(), splits.train, epochs=0, progress=False)

    def test_a_task_without_one_label_does_not_break_training(self, splits):
        train = splits.train.take(slice(None))
        train.masks["kind"] = torch.zeros_like(train.masks["kind"])
        history = fit(make(), train, splits.valid, epochs=1, progress=False)
        assert history.curve("kind", split="train").tolist() == [0.0]


class TestBfloat16:
    @pytest.mark.parametrize("weights", [None, "GradNorm", "PCGrad"])
    def test_it_learns_the_same_to_within_rounding(self, splits, weights):
        losses = []
        for bf16 in (False, True):
            model = make()
            strategy = {
                None: None,
                "GradNorm": GradNorm(model.tasks),
                "PCGrad": CombinedGradients(model.tasks, "PCGrad"),
            }[weights]
            fit(model, splits.train, splits.valid, epochs=4, weights=strategy, progress=False, bf16=bf16)
            assert all(p.dtype == torch.float32 for p in model.parameters())
            losses.append([values["loss"] for values in evaluate(model, splits.test).values()])
        assert losses[0] != losses[1], "bfloat16 was not used"
        assert np.allclose(*losses, rtol=0.03)


class TestPredict:
    def test_probabilities_in_row_order(self, splits):
        model = make()
        out = predict(model, splits.test, batch_size=17)
        assert ((out["click"] > 0) & (out["click"] < 1)).all()
        assert torch.allclose(out["kind"].sum(-1), torch.ones(len(splits.test)))
        whole = model(splits.test.numeric, splits.test.categorical)
        assert torch.allclose(out["click"], whole["click"].sigmoid(), atol=1e-6)
        assert torch.allclose(out["dwell"], whole["dwell"], atol=1e-6)

    def test_dropout_is_off_and_the_mode_comes_back(self, splits):
        model = make(dropout=0.5).train()
        assert torch.equal(predict(model, splits.test)["click"], predict(model, splits.test)["click"])
        assert model.training

    def test_single_task_model_on_data_with_more_tasks(self, splits):
        values = evaluate(SingleTask(splits.schema, Task("click")), splits.test)
        assert set(values) == {"click"} and set(values["click"]) == {"loss", "auc", "accuracy"}


class TestCheckpoints:
    def test_round_trip(self, splits, tmp_path):
        model, other = make(0), make(1)
        extra = {"epoch": 4, "weights": {"click": 0.5}, "note": "naïve", "curve": [1, 2.5, None, True]}
        path = save_checkpoint(tmp_path / "best.safetensors", model, **extra)
        assert load_checkpoint(path, other) == extra
        assert torch.equal(weights_of(model), weights_of(other))
        assert [p.name for p in tmp_path.iterdir()] == ["best.safetensors"]

    def test_a_tuple_comes_back_as_a_list(self, tmp_path):
        path = save_checkpoint(tmp_path / "best.safetensors", make(), widths=(64, 32))
        assert load_checkpoint(path, make()) == {"widths": [64, 32]}

    @pytest.mark.parametrize("value", [np.float32(1), torch.ones(1), {1, 2}, {"deep": [object()]}, {1: "a"}])
    def test_extra_values_that_would_come_back_altered_are_refused(self, tmp_path, value):
        with pytest.raises(TypeError, match="extra value 'mine'"):
            save_checkpoint(tmp_path / "best.safetensors", make(), mine=value)
        assert not list(tmp_path.iterdir())

    def test_any_safetensors_reader_can_open_it(self, tmp_path):
        from safetensors.torch import load_file

        model = make()
        found = load_file(save_checkpoint(tmp_path / "best.safetensors", model))
        assert found.keys() == model.state_dict().keys()
        assert all(torch.equal(value, found[name]) for name, value in model.state_dict().items())

    def test_a_crash_while_saving_leaves_the_old_file(self, tmp_path, monkeypatch):
        path = save_checkpoint(tmp_path / "best.pt", make(0), epoch=1)
        old = path.read_bytes()

        def disk_full(source, target):
            raise OSError("No space left on device")

        monkeypatch.setattr(training.os, "replace", disk_full)
        with pytest.raises(OSError, match="space"):
            save_checkpoint(path, make(1), epoch=2)
        assert path.read_bytes() == old
        assert [p.name for p in tmp_path.iterdir()] == ["best.pt"]

    def test_files_that_are_no_checkpoint(self, tmp_path):
        from safetensors.torch import save

        model = make()
        before = weights_of(model).clone()
        saved = save_checkpoint(tmp_path / "ok.pt", model).read_bytes()
        (tmp_path / "text.pt").write_text("hello")
        (tmp_path / "cut.pt").write_bytes(saved[: len(saved) // 2])
        torch.save({"model": model.state_dict(), "extra": {}}, tmp_path / "torch.pt")
        for name, metadata in {
            "bare.pt": None,
            "old.pt": {"format": "mtl_helpers checkpoint 1", "extra": "{}"},
            "list.pt": {"format": training.FORMAT, "extra": "[1]"},
            "json.pt": {"format": training.FORMAT, "extra": "{'a': 1"},
            "none.pt": {"format": training.FORMAT},
            "deep.pt": {"format": training.FORMAT, "extra": "[" * 100_000},
        }.items():
            (tmp_path / name).write_bytes(save(training.plain_tensors(model), metadata))
        refused = ("text", "cut", "torch", "bare", "old", "list", "json", "none", "deep")
        for name in (f"{stem}.pt" for stem in refused):
            with pytest.raises(ValueError, match=name):
                load_checkpoint(tmp_path / name, model)
        with pytest.raises(FileNotFoundError, match=r"nowhere\.pt"):
            load_checkpoint(tmp_path / "nowhere.pt", model)
        assert torch.equal(before, weights_of(model))

    def test_code_in_a_file_is_not_run(self, tmp_path):
        class Evil:
            def __reduce__(self):
                return (np.save, (str(tmp_path / "owned.npy"), 1))

        torch.save({"model": {}, "extra": Evil()}, tmp_path / "evil.pt")
        with pytest.raises(ValueError, match=r"evil\.pt"):
            load_checkpoint(tmp_path / "evil.pt", make())
        assert not (tmp_path / "owned.npy").exists()

    def test_another_models_weights(self, tmp_path):
        path = save_checkpoint(tmp_path / "small.pt", make(bottom=(8,)))
        with pytest.raises(ValueError, match=r"another model: .* first bottom"):
            load_checkpoint(path, make())
        double = save_checkpoint(tmp_path / "double.pt", make().double())
        with pytest.raises(ValueError, match=r"another model: .*float64"):
            load_checkpoint(double, make())

    def test_missing_folder(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="create it"):
            save_checkpoint(tmp_path / "no" / "best.pt", make())
