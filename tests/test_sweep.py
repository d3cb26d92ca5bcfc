"""The sweep: many models at once must be what each would have been alone; fronts; files."""

from __future__ import annotations

import itertools
import json
import zipfile

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import MIXED_TASKS, toy_frame, toy_splits
from torch import nn

from mtl_helpers import sweep as module
from mtl_helpers.data import MultiTaskDataset, Schema, Task, prepare, split_by_time
from mtl_helpers.models import SharedBottom, SingleTask
from mtl_helpers.sweep import Sweep, hypervolume, load_sweep, pareto_mask, simplex_grid, sweep
from mtl_helpers.training import evaluate, fit, predict

TWO = (Task("click"), Task("dwell", "regression"))
WEIGHTS = [
    {"click": 1.0, "kind": 1.0, "dwell": 1.0},
    {"click": 0.0, "kind": 2.0, "dwell": 0.5},
    {"click": 0.2, "kind": 0.1, "dwell": 0.0},
]
SETTINGS = {"epochs": 3, "batch_size": 100, "lr": 3e-3}


@pytest.fixture(scope="module")
def splits():
    return toy_splits(900)


class Gated(nn.Module):
    """A model that only vmap can stack: experts, a gate, a normalisation, and a parameter that is never used."""

    def __init__(self, schema, tasks):
        super().__init__()
        self.tasks = tasks
        self.norm = nn.LayerNorm(len(schema.numeric))
        self.experts = nn.Parameter(0.5 * torch.randn(3, len(schema.numeric), 8))
        self.gate = nn.Linear(len(schema.numeric), 3)
        self.heads = nn.ModuleDict({task.name: nn.Linear(8, task.n_outputs) for task in tasks})
        self.unused = nn.Parameter(torch.ones(2))

    def forward(self, numeric, categorical):
        hidden = torch.einsum("ni,eio->noe", self.norm(numeric), self.experts).relu()
        mixed = (hidden * self.gate(numeric).softmax(-1).unsqueeze(-2)).sum(-1)
        logits = {name: head(mixed) for name, head in self.heads.items()}
        return {
            task.name: logits[task.name] if task.kind == "multiclass" else logits[task.name].squeeze(-1)
            for task in self.tasks
        }


BUILDERS = {
    "shared bottom": lambda schema, tasks: SharedBottom(schema, tasks, hidden=(16, 8), tower=(4,)),
    "deep towers": lambda schema, tasks: SharedBottom(schema, tasks, hidden=(8,), tower=(6, 4)),
    "heads only": lambda schema, tasks: SharedBottom(schema, tasks, hidden=(12, 6), tower=()),
    "no bottom": lambda schema, tasks: SharedBottom(schema, tasks, hidden=(), tower=(5,)),
    "linear": lambda schema, tasks: SharedBottom(schema, tasks, hidden=(), tower=()),
    "gated": Gated,
}


@pytest.fixture(params=["stacked", "onednn", "vmap"])
def engine(request, monkeypatch):
    """The argument ``engine``; the batched one with either kind of product."""
    if request.param == "vmap":
        return "vmap"
    if request.param == "onednn":
        try:
            module._linear(torch.ones(1, 1), torch.ones(1, 1), None, "none")
        except (AttributeError, RuntimeError):
            pytest.skip("this torch has no oneDNN kernels")
        monkeypatch.setattr(module, "WORTH_ONEDNN", 1)
    monkeypatch.setattr(module, "_onednn_is_faster", lambda: request.param == "onednn")
    return "batched"


def alone(build, train, valid=None, *, weights, seed=0, **settings):
    """A run of its own, as the docstring of ``sweep`` gives it."""
    torch.manual_seed(seed)
    model = build()
    patience = settings.get("epochs", 1)
    history = fit(
        model, train, valid, weights=weights, seed=seed, patience=patience, progress=False, **settings
    )
    return model, history


def assert_equal_to_runs_alone(result, build, train, valid, weightings, **settings):
    for run in result.runs.itertuples():
        own = settings | {"lr": run.lr}
        model, history = alone(build, train, weights=weightings[run.weighting], seed=run.seed, **own)
        mine = result.records[(result.records[["weighting", "seed", "lr"]] == [*run[1:4]]).all(axis=1)]
        curves = mine[mine["split"] == "train"].sort_values(["epoch"], kind="stable")["value"]
        assert curves.to_numpy() == pytest.approx(history.frame()["value"].to_numpy(), abs=1e-4)
        measured = evaluate(model, valid)
        last = mine[(mine["split"] == "valid") & (mine["epoch"] == settings["epochs"])]
        for row in last.itertuples():
            # rounding breaks ties (units that are dead for many rows), and metrics of ranks count them
            slack = 5e-3 if row.metric in ("auc", "accuracy") else 1e-4
            assert row.value == pytest.approx(measured[row.task][row.metric], abs=slack, nan_ok=True)
        stacked = result.model(run.weighting, run.seed, run.lr)
        for (name, value), expected in zip(stacked.named_parameters(), model.parameters(), strict=True):
            assert torch.allclose(value, expected, atol=1e-4), name


class TestEqualToSingleRuns:
    @pytest.mark.parametrize("kind", [name for name in BUILDERS if name != "gated"])
    def test_three_tasks_masks_embeddings_two_seeds(self, splits, engine, kind):
        def build():
            return BUILDERS[kind](splits.schema, MIXED_TASKS)

        result = sweep(
            build,
            splits.train,
            splits.valid,
            weightings=WEIGHTS,
            seeds=(0, 5),
            engine=engine,
            progress=False,
            **SETTINGS,
        )
        assert len(result.runs) == 6
        assert_equal_to_runs_alone(result, build, splits.train, splits.valid, WEIGHTS, **SETTINGS)

    def test_a_model_that_only_vmap_can_stack(self, splits):
        def build():
            return Gated(splits.schema, MIXED_TASKS)

        settings = SETTINGS | {"weight_decay": 0.1}
        result = sweep(
            build, splits.train, splits.valid, weightings=WEIGHTS, seeds=(1,), progress=False, **settings
        )
        assert_equal_to_runs_alone(result, build, splits.train, splits.valid, WEIGHTS, **settings)

    def test_numeric_or_categorical_columns_alone(self, engine):
        parts = split_by_time(toy_frame(600))
        for numeric, categorical in ((["x", "z"], []), ([], ["user_id", "item"])):
            splits = prepare(parts, MIXED_TASKS, numeric, categorical)

            def build(schema=splits.schema):
                return SharedBottom(schema, MIXED_TASKS, hidden=(8,), tower=(4,))

            settings = SETTINGS | {"weight_decay": 0.01}
            result = sweep(
                build,
                splits.train,
                splits.valid,
                weightings=WEIGHTS,
                engine=engine,
                progress=False,
                **settings,
            )
            assert_equal_to_runs_alone(result, build, splits.train, splits.valid, WEIGHTS, **settings)

    def test_learning_rates_and_a_single_task(self, splits, engine):
        def build():
            return SingleTask(splits.schema, Task("click"), hidden=(8, 8), tower=(4,))

        weights = [{"click": 1.0}, {"click": 0.3}]
        result = sweep(
            build,
            splits.train,
            splits.valid,
            weightings=weights,
            seeds=(0, 1),
            lrs=(1e-3, 1e-2),
            engine=engine,
            epochs=2,
            batch_size=128,
            progress=False,
        )
        assert len(result.runs) == 8
        assert_equal_to_runs_alone(
            result, build, splits.train, splits.valid, weights, epochs=2, batch_size=128
        )

    def test_at_the_size_of_the_benchmark(self, monkeypatch):
        """Wide enough for the kernels that small models do not use, whatever this machine would choose."""
        generator = torch.Generator().manual_seed(0)
        numeric = torch.randn(3000, 64, generator=generator)
        tasks, schema = (Task("click"), Task("buy")), Schema(tuple(f"x{i}" for i in range(64)), {})
        labels = {task.name: (numeric[:, i] > 0.3).float() for i, task in enumerate(tasks)}
        data = MultiTaskDataset(numeric, torch.zeros(3000, 0, dtype=torch.long), labels, {}, tasks)

        def build():
            return SharedBottom(schema, tasks, hidden=(128, 64), tower=())

        grid = simplex_grid(tasks, 3)
        for faster in (False, torch.backends.mkldnn.is_available()):
            monkeypatch.setattr(module, "_onednn_is_faster", lambda faster=faster: faster)
            result = sweep(build, data, data, weightings=grid, epochs=2, progress=False)
            assert_equal_to_runs_alone(result, build, data, data, grid, epochs=2)

    @pytest.mark.parametrize("chunk", [1, 2, 4])
    def test_in_chunks(self, splits, chunk):
        def build():
            return SharedBottom(splits.schema, MIXED_TASKS, hidden=(8,))

        whole, parts = (
            sweep(
                build,
                splits.train,
                splits.valid,
                weightings=WEIGHTS,
                seeds=(0, 1),
                chunk=size,
                epochs=2,
                progress=False,
            )
            for size in (None, chunk)
        )
        key = ["weighting", "seed", "epoch", "split", "task", "metric"]
        both = whole.records.merge(parts.records, on=key)
        assert len(both) == len(whole.records) == len(parts.records)
        assert np.allclose(both["value_x"], both["value_y"], atol=1e-5)
        pd.testing.assert_frame_equal(whole.runs, parts.runs)

    def test_as_many_models_as_memory_holds(self, splits, monkeypatch):
        def build():
            return SharedBottom(splits.schema, MIXED_TASKS)

        seen = []
        real = module._Stack.__init__
        monkeypatch.setattr(
            module._Stack, "__init__", lambda *given: (seen.append(len(given[3])), real(*given))[1]
        )
        for free, expected in ((2**34, [6]), (0, [1] * 6)):
            seen.clear()
            monkeypatch.setattr(module, "_free_memory", lambda device, free=free: free)
            sweep(build, splits.train, weightings=WEIGHTS, seeds=(0, 1), epochs=1, progress=False)
            assert seen == expected

    def test_best_epoch_of_each_run(self, splits):
        def build():
            return SharedBottom(splits.schema, MIXED_TASKS, hidden=(16,))

        settings = {"epochs": 8, "batch_size": 50, "lr": 2e-2}
        result = sweep(
            build, splits.train, splits.valid, weightings=WEIGHTS, keep="best", progress=False, **settings
        )
        assert result.runs["epoch"].nunique() > 1
        for run in result.runs.itertuples():
            model, history = alone(
                build, splits.train, splits.valid, weights=WEIGHTS[run.weighting], **settings
            )
            assert run.epoch == history.best_epoch
            measured = evaluate(model, splits.valid)
            for row in result.final("valid").query("weighting == @run.weighting").itertuples():
                slack = 5e-3 if row.metric in ("auc", "accuracy") else 1e-4
                assert row.value == pytest.approx(measured[row.task][row.metric], abs=slack)


@pytest.fixture(scope="module")
def result(splits):
    grid = simplex_grid(MIXED_TASKS, 3)
    return sweep(
        lambda: SharedBottom(splits.schema, MIXED_TASKS, hidden=(8,)),
        splits.train,
        splits.valid,
        weightings=grid,
        seeds=(0, 1),
        epochs=2,
        progress=False,
    )


class TestResult:
    def test_records_are_tidy(self, result):
        records = result.records
        assert list(records) == ["weighting", "seed", "lr", "epoch", "split", "task", "metric", "value"]
        assert not records.duplicated([c for c in records if c != "value"]).any()
        assert set(zip(records["split"], records["task"], records["metric"], strict=True)) == {
            *itertools.product(["train", "valid"], ["click", "kind", "dwell"], ["loss"]),
            ("valid", "click", "auc"),
            ("valid", "kind", "accuracy"),
            ("valid", "dwell", "rmse"),
        }
        assert len(records) == 6 * 2 * 2 * 9
        assert (result.final()["epoch"] == 2).all() and len(result.final()) == 6 * 2 * 9
        assert set(result.final("train")["split"]) == {"train"}
        assert "6 weightings × 2 seeds, 12 models, finished" in repr(result)

    def test_models_and_predictions(self, result, splits):
        model = result.model(3, seed=1)
        expected = predict(model, splits.test)
        by_number = result.predict(splits.test, 3, seed=1)
        by_weights = result.predict(splits.test, dict(result.weightings.iloc[3]), seed=1)
        for name in ("click", "kind", "dwell"):
            assert torch.equal(by_number[name], expected[name])
            assert torch.equal(by_weights[name], expected[name])
        assert not torch.equal(result.predict(splits.test, 3, seed=0)["click"], expected["click"])
        assert not model.training

    @pytest.mark.parametrize(
        ("asked", "problem"),
        [
            ({"weighting": 6}, "weightings 0 to 5"),
            ({"weighting": 0, "seed": 9}, r"seeds \[0, 1\]"),
            ({"weighting": 0, "lr": 0.5}, r"learning rates \[0.001\]"),
            ({"weighting": {"click": 0.3, "kind": 0.3, "dwell": 0.4}}, "No weighting"),
            ({"weighting": {"click": 1}}, "expected one for each"),
        ],
    )
    def test_runs_that_are_not_there(self, result, asked, problem):
        with pytest.raises(ValueError, match=problem):
            result.model(**asked)

    def test_another_build(self, result, splits):
        other = Sweep(**{**result.__dict__, "build": lambda: SharedBottom(splits.schema, MIXED_TASKS)})
        with pytest.raises(ValueError, match=r"another model .*: bottom\.0\.weight has shape \(64"):
            other.model(0)
        other.build = None
        with pytest.raises(ValueError, match="build"):
            other.model(0)

    def test_pareto_is_the_mean_over_seeds(self, result):
        table = result.pareto()
        assert list(table) == ["weighting", "lr", "click", "kind", "dwell", "dominated"]
        final = result.final("valid").query("metric == 'loss' and task == 'kind'")
        assert table["kind"].to_numpy() == pytest.approx(
            final.groupby("weighting")["value"].mean().to_numpy()
        )
        assert (~table["dominated"]).to_numpy().tolist() == pareto_mask(
            table[["click", "kind", "dwell"]]
        ).tolist()
        mixed = result.pareto({"click": "auc", "kind": "accuracy", "dwell": "rmse"})
        points = mixed[["click", "kind", "dwell"]].to_numpy()
        assert (~mixed["dominated"]).tolist() == pareto_mask(points * [-1, -1, 1]).tolist()
        with pytest.raises(ValueError, match=r"no valid 'auc' of task 'kind'; it has .*accuracy"):
            result.pareto("auc")
        with pytest.raises(ValueError, match="no test 'loss'"):
            result.pareto(split="test")

    def test_only_training_data(self, splits):
        result = sweep(
            lambda: SharedBottom(splits.schema, TWO),
            splits.train,
            weightings=simplex_grid(TWO, 3),
            epochs=1,
            progress=False,
        )
        assert set(result.records["split"]) == {"train"}
        assert len(result.pareto(split="train")) == 3

    def test_a_table_of_weightings(self, splits):
        table = pd.DataFrame({"dwell": [1, 0], "click": [1, 2]}, index=["a", "b"])
        result = sweep(
            lambda: SharedBottom(splits.schema, TWO), splits.train, weightings=table, epochs=1, progress=False
        )
        assert result.weightings.to_dict("list") == {"click": [1.0, 2.0], "dwell": [1.0, 0.0]}

    def test_a_task_without_a_label(self, splits, engine):
        train, valid = splits.train.take(slice(None)), splits.valid.take(slice(None))
        for data in (train, valid):
            data.masks["kind"] = torch.zeros(len(data), dtype=torch.bool)
        result = sweep(
            lambda: SharedBottom(splits.schema, MIXED_TASKS),
            train,
            valid,
            weightings=WEIGHTS,
            epochs=1,
            engine=engine,
            progress=False,
        )
        kind = result.records.query("task == 'kind'")
        assert (kind.query("metric == 'loss'")["value"] == 0).all()
        assert kind.query("metric == 'accuracy'")["value"].isna().all()
        assert not len(result.diverged)


class TestWhatIsLeftAlone:
    def test_a_weight_of_zero_leaves_a_tower_untouched(self, splits, engine):
        torch.manual_seed(4)
        fresh = SharedBottom(splits.schema, MIXED_TASKS)
        result = sweep(
            lambda: SharedBottom(splits.schema, MIXED_TASKS),
            splits.train,
            weightings=WEIGHTS,
            seeds=(4,),
            epochs=1,
            engine=engine,
            progress=False,
        )
        trained = dict(result.model(1).named_parameters())
        for name, value in fresh.named_parameters():
            assert torch.equal(trained[name], value) == name.startswith("towers.click"), name

    def test_the_global_generator_and_the_data(self, splits):
        torch.manual_seed(0)
        expected = torch.rand(3)
        before = splits.train.numeric.clone()
        torch.manual_seed(0)
        result = sweep(
            lambda: SharedBottom(splits.schema, TWO),
            splits.train,
            weightings=simplex_grid(TWO, 2),
            epochs=1,
            progress=False,
        )
        result.model(0)
        assert torch.equal(torch.rand(3), expected)
        assert torch.equal(splits.train.numeric, before)

    def test_a_run_that_diverges(self, splits, engine):
        def build():
            return SharedBottom(splits.schema, TWO, hidden=(8,))

        grid = simplex_grid(TWO, 3)
        result = sweep(
            build,
            splits.train,
            splits.valid,
            weightings=grid,
            lrs=(1e-3, 1e30),
            epochs=2,
            batch_size=64,
            engine=engine,
            progress=False,
        )
        assert set(result.diverged["lr"]) == {1e30}
        broken = result.final("valid").query("lr == 1e30 and weighting == 1")
        assert broken["value"].isna().any()
        fine = result.records.query("lr == 0.001")
        assert np.isfinite(fine["value"]).all()
        model, _ = alone(build, splits.train, weights=grid[1], epochs=2, batch_size=64)
        expected = evaluate(model, splits.valid)["click"]["loss"]
        row = fine.query("weighting == 1 and epoch == 2 and task == 'click' and split == 'valid'")
        assert row.query("metric == 'loss'")["value"].item() == pytest.approx(expected, abs=1e-4)


class TestInterrupting:
    def interrupted(self, splits, monkeypatch, after: int, **settings):
        real, calls = module._Stack.evaluate, []

        def evaluate_until(stack, data, batch_size):
            calls.append(1)
            if len(calls) > after:
                raise KeyboardInterrupt
            return real(stack, data, batch_size)

        monkeypatch.setattr(module._Stack, "evaluate", evaluate_until)
        return sweep(
            lambda: SharedBottom(splits.schema, TWO),
            splits.train,
            splits.valid,
            weightings=simplex_grid(TWO, 3),
            seeds=(0, 1),
            epochs=3,
            progress=False,
            **settings,
        )

    def test_finished_epochs_are_kept(self, splits, monkeypatch):
        result = self.interrupted(splits, monkeypatch, after=2)
        assert result.stopped == "interrupted" and (result.runs["epoch"] == 2).all() and len(result.runs) == 6
        measured = evaluate(result.model(1, seed=1), splits.valid)
        row = result.final("valid").query(
            "weighting == 1 and seed == 1 and task == 'click' and metric == 'auc'"
        )
        assert row["value"].item() == pytest.approx(measured["click"]["auc"], abs=1e-6)

    def test_finished_chunks_are_kept(self, splits, monkeypatch):
        result = self.interrupted(splits, monkeypatch, after=4, chunk=3)
        assert result.runs["epoch"].tolist() == [3, 3, 3, 1, 1, 1]
        assert len(result.pareto()) == 3

    def test_before_the_first_epoch_ends(self, splits, monkeypatch, tmp_path):
        result = self.interrupted(splits, monkeypatch, after=0)
        assert result.stopped == "interrupted" and not len(result.runs) and not len(result.records)
        with pytest.raises(ValueError, match="No run with weighting 0"):
            result.model(0)
        again = load_sweep(result.save(tmp_path / "empty.npz"))
        assert again.stopped == "interrupted" and not len(again.runs)


class TestRefused:
    @pytest.mark.parametrize(
        ("changed", "problem"),
        [
            ({"weightings": []}, "weightings is empty"),
            ({"weightings": {"click": 1, "dwell": 1}}, "is a dict"),
            ({"weightings": [3]}, "Weighting 0 is 3"),
            ({"weightings": [{"click": 1, "dwell": 1}, {"click": 1, "dwell": -1}]}, "Weighting 1: .*-1"),
            ({"weightings": [{"click": float("nan"), "dwell": 1}]}, "Weighting 0: .*nan"),
            ({"weightings": [{"click": 0, "dwell": 0}]}, "Weighting 0: All task weights are 0"),
            ({"weightings": [{"click": 1, "buy": 1}]}, "'buy'.*expected one for each of 'click', 'dwell'"),
            ({"weightings": pd.DataFrame({"click": [1.0]})}, "expected one for each"),
            ({"seeds": ()}, r"seeds is \[\]"),
            ({"seeds": (1, 1)}, "all different"),
            ({"lrs": (0.1, -1)}, "learning rate must be"),
            ({"epochs": 0}, "epochs is 0"),
            ({"batch_size": 0}, "batch_size is 0"),
            ({"chunk": 0}, "chunk is 0"),
            ({"keep": "first"}, "keep is 'first'"),
            ({"keep": "best", "valid": None}, "with validation data"),
            ({"engine": "fast"}, "engine is 'fast'"),
        ],
    )
    def test_settings(self, splits, changed, problem):
        given = {
            "valid": splits.valid,
            "weightings": simplex_grid(TWO, 3),
            "epochs": 1,
            "progress": False,
        } | changed
        with pytest.raises((ValueError, TypeError), match=problem):
            sweep(lambda: SharedBottom(splits.schema, TWO), splits.train, **given)

    def test_data(self, splits):
        def build():
            return SharedBottom(splits.schema, TWO)

        grid = simplex_grid(TWO, 2)
        with pytest.raises(ValueError, match="labels for click, dwell"):
            sweep(build, splits.train.select(["click"]), weightings=grid, progress=False)
        with pytest.raises(ValueError, match="got 0 rows"):
            sweep(build, splits.train.take([]), weightings=grid, progress=False)

    def test_something_that_is_no_model(self, splits):
        with pytest.raises(TypeError, match="build returned Linear"):
            sweep(lambda: nn.Linear(2, 2), splits.train, weightings=WEIGHTS, progress=False)

    def test_batch_norm(self, splits):
        def build():
            model = SharedBottom(splits.schema, TWO)
            model.bottom.append(nn.BatchNorm1d(32))
            return model

        with pytest.raises(ValueError, match=r"cannot be stacked: its layer bottom\.4 \(BatchNorm1d\)"):
            sweep(build, splits.train, weightings=simplex_grid(TWO, 2), progress=False)

    def test_a_model_that_vmap_refuses(self, splits):
        class Branches(SharedBottom):
            def forward(self, numeric, categorical):
                logits = super().forward(numeric, categorical)
                return {name: value if value.sum() > 0 else -value for name, value in logits.items()}

        with pytest.raises(ValueError, match="cannot be stacked: torch.func.vmap refuses it"):
            sweep(
                lambda: Branches(splits.schema, TWO),
                splits.train,
                weightings=simplex_grid(TWO, 2),
                progress=False,
            )

    def test_dropout_and_changed_models_go_to_vmap(self, splits):
        def tanh(model):
            model.bottom[1] = nn.Tanh()
            return model

        def frozen(model):
            model.bottom[0].weight.requires_grad_(False)
            return model

        for change, reason in (
            (lambda model: SharedBottom(splits.schema, TWO, dropout=0.3), "bottom is not a chain"),
            (tanh, "bottom is not a chain"),
            (frozen, "frozen"),
            (lambda model: Gated(splits.schema, TWO), "it is a Gated"),
        ):

            def build(change=change):
                return change(SharedBottom(splits.schema, TWO))

            settings = {"weightings": simplex_grid(TWO, 2), "epochs": 1, "progress": False}
            result = sweep(build, splits.train, **settings)
            assert np.isfinite(result.records["value"]).all()
            with pytest.raises(ValueError, match=rf"engine='batched' cannot train this model: .*{reason}"):
                sweep(build, splits.train, engine="batched", **settings)

    def test_frozen_parameters_stay(self, splits):
        def build():
            model = SharedBottom(splits.schema, MIXED_TASKS)
            model.features.embedding.weight.requires_grad_(False)
            return model

        result = sweep(build, splits.train, splits.valid, weightings=WEIGHTS, progress=False, **SETTINGS)
        assert_equal_to_runs_alone(result, build, splits.train, splits.valid, WEIGHTS, **SETTINGS)


class TestFronts:
    def test_mask_by_hand(self):
        points = [[1, 4], [2, 2], [4, 1], [3, 3], [2, 2], [np.nan, 0], [1, 5]]
        assert pareto_mask(points).tolist() == [True, True, True, False, True, False, False]
        assert pareto_mask(points, maximise=[False, True]).tolist() == [False] * 6 + [True]
        assert pareto_mask(np.zeros((0, 2))).tolist() == []

    @pytest.mark.parametrize("objectives", [1, 2, 3, 4])
    def test_mask_against_its_definition(self, objectives):
        points = np.random.default_rng(objectives).integers(0, 6, (60, objectives)).astype(float)

        def dominated(b):
            return any((a <= b).all() and (a < b).any() for a in points)

        assert pareto_mask(points).tolist() == [not dominated(b) for b in points]
        assert pareto_mask(-points, maximise=True).tolist() == pareto_mask(points).tolist()

    def test_volume_by_hand(self):
        assert hypervolume([[1, 1]], [3, 4]) == 6
        assert hypervolume([[1, 3], [2, 1], [2, 3], [9, 0]], [4, 4]) == 3 + 6 - 2
        assert hypervolume([[0.6, 0.7], [0.8, 0.6]], [0.5, 0.5], maximise=True) == pytest.approx(0.04)
        assert hypervolume([[1, 1, 1], [0, 2, 1]], [2, 3, 3]) == 4 + 4 - 2
        assert hypervolume([[5, 5], [np.nan, 0]], [4, 4]) == 0
        assert hypervolume(np.zeros((0, 3)), [1, 1, 1]) == 0

    @pytest.mark.parametrize("objectives", [2, 3])
    def test_volume_against_inclusion_and_exclusion(self, objectives):
        rng = np.random.default_rng(7)
        points, reference = rng.random((9, objectives)), np.full(objectives, 0.9)
        total = 0.0
        for size in range(1, 10):
            for chosen in itertools.combinations(points, size):
                total -= (-1) ** size * np.clip(reference - np.max(chosen, axis=0), 0, None).prod()
        assert hypervolume(points, reference) == pytest.approx(total, abs=1e-12)

    @pytest.mark.parametrize("objectives", [2, 3])
    def test_volume_against_monte_carlo(self, objectives):
        rng = np.random.default_rng(3)
        points = rng.random((40, objectives)) + 0.1
        shots = 1.2 * rng.random((200_000, objectives))
        hit = np.zeros(len(shots), dtype=bool)
        for point in points:
            hit |= (shots >= point).all(axis=1)
        assert hypervolume(points, np.full(objectives, 1.2)) == pytest.approx(
            hit.mean() * 1.2**objectives, abs=0.006
        )

    def test_shapes(self):
        with pytest.raises(ValueError, match="expected"):
            pareto_mask([1, 2, 3])
        with pytest.raises(ValueError, match="3 entries for 2"):
            pareto_mask([[1, 2]], maximise=[True, False, True])
        for points, reference in (([[1, 2]], [1, 2, 3]), ([[1, 2, 3, 4]], [5, 5, 5, 5])):
            with pytest.raises(ValueError, match=r"\(n, 2\) or \(n, 3\)"):
                hypervolume(points, reference)


class TestGrid:
    def test_two_tasks(self):
        grid = simplex_grid(TWO)
        assert (
            len(grid) == 33 and grid[0] == {"click": 0, "dwell": 1} and grid[-1] == {"click": 1, "dwell": 0}
        )
        assert grid[16] == {"click": 0.5, "dwell": 0.5}

    @pytest.mark.parametrize(("tasks", "n", "count"), [("ab", 5, 5), ("abc", 8, 36), ("abcd", 4, 20)])
    def test_evenly_on_the_simplex(self, tasks, n, count):
        points = pd.DataFrame(simplex_grid(list(tasks), n))
        assert len(points) == count and not points.duplicated().any()
        assert np.allclose(points.sum(axis=1), 1) and points.min().min() == 0
        assert np.allclose(points * (n - 1), np.round(points * (n - 1)))
        assert len(simplex_grid("abc")) == 36

    def test_lowest_weight(self):
        points = pd.DataFrame(simplex_grid("abc", 4, lowest=0.1))
        assert points.min().min() == pytest.approx(0.1) and points.max().max() == pytest.approx(0.8)
        assert np.allclose(points.sum(axis=1), 1)

    def test_refused(self):
        for given in ((["a"], 3), (["a", "b"], 1)):
            with pytest.raises(ValueError, match="two or more"):
                simplex_grid(*given)
        with pytest.raises(ValueError, match="lowest"):
            simplex_grid("ab", 3, lowest=0.5)


class TestFiles:
    def test_round_trip(self, result, splits, tmp_path):
        path = result.save(tmp_path / "sweep.npz")
        again = load_sweep(path, result.build)
        for part in ("weightings", "records", "runs"):
            pd.testing.assert_frame_equal(getattr(again, part), getattr(result, part), check_dtype=False)
        assert again.tasks == result.tasks and again.stopped == "finished"
        assert torch.equal(again.predict(splits.test, 5)["kind"], result.predict(splits.test, 5)["kind"])
        assert again.pareto().equals(result.pareto())
        assert [file.name for file in tmp_path.iterdir()] == ["sweep.npz"]

    def test_no_pickle_inside(self, result, tmp_path):
        with np.load(result.save(tmp_path / "sweep.npz"), allow_pickle=False) as file:
            assert all(file[name].dtype != object for name in file.files)

    def test_object_columns(self, result, tmp_path):
        """Pandas 2 keeps text as objects."""
        old = Sweep(**result.__dict__)
        old.records = old.records.astype(dict.fromkeys(("split", "task", "metric"), object))
        again = load_sweep(old.save(tmp_path / "sweep.npz"))
        assert again.records["task"].tolist() == result.records["task"].tolist()

    def test_a_crash_while_saving_leaves_the_old_file(self, result, tmp_path, monkeypatch):
        path = result.save(tmp_path / "sweep.npz")
        old = path.read_bytes()

        def disk_full(file, **arrays):
            file.write(b"half")
            raise OSError("No space left on device")

        monkeypatch.setattr(np, "savez_compressed", disk_full)
        with pytest.raises(OSError, match="space"):
            result.save(path)
        assert path.read_bytes() == old
        assert [file.name for file in tmp_path.iterdir()] == ["sweep.npz"]

    def test_files_that_are_no_sweep(self, result, tmp_path):
        saved = result.save(tmp_path / "ok.npz").read_bytes()
        (tmp_path / "text.npz").write_text("hello")
        (tmp_path / "empty.npz").write_bytes(b"")
        (tmp_path / "cut.npz").write_bytes(saved[: len(saved) // 2])
        middle = len(saved) // 3
        (tmp_path / "damaged.npz").write_bytes(
            saved[:middle] + bytes(b ^ 0xFF for b in saved[middle : middle + 200]) + saved[middle + 200 :]
        )
        np.savez(tmp_path / "other.npz", x=np.arange(3))
        np.savez(tmp_path / "pickled.npz", head=np.array([{"a": 1}], dtype=object), allow_pickle=True)
        np.save(tmp_path / "array.npy", np.arange(3))
        np.savez(tmp_path / "newer.npz", head=np.array(json.dumps({"format": "mtl_helpers sweep 9"})))
        with zipfile.ZipFile(tmp_path / "zip.npz", "w") as file:
            file.writestr("head", "{}")
        for name in ("text", "empty", "cut", "damaged", "other", "pickled", "newer", "zip"):
            with pytest.raises(ValueError, match=rf"{name}\.npz is no file of Sweep\.save"):
                load_sweep(tmp_path / f"{name}.npz")
        with pytest.raises(ValueError, match=r"array\.npy"):
            load_sweep(tmp_path / "array.npy")
        with pytest.raises(FileNotFoundError, match=r"none\.npz"):
            load_sweep(tmp_path / "none.npz")
        with pytest.raises(FileNotFoundError, match="create it"):
            result.save(tmp_path / "no" / "sweep.npz")
