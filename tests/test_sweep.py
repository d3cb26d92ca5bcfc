"""The sweep: many models at once must be what each would have been alone; fronts and grids."""

from __future__ import annotations

import itertools
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import MIXED_TASKS, toy_frame, toy_splits
from torch import nn

from mtl_helpers import sweep as module
from mtl_helpers.data import Task, hide_labels, prepare, split_by_time
from mtl_helpers.models import MMoE, SharedBottom, SingleTask
from mtl_helpers.models.layers import FeatureLayer
from mtl_helpers.sweep import pareto_mask, simplex_grid, sweep
from mtl_helpers.training import evaluate, fit, predict

VALID = toy_splits().valid
TWO = (Task("click"), Task("dwell", "regression"))
WEIGHTS = [
    {"click": 1.0, "kind": 1.0, "dwell": 1.0},
    {"click": 0.0, "kind": 2.0, "dwell": 0.5},
    {"click": 0.2, "kind": 0.1, "dwell": 0.0},
]
SETTINGS = {"epochs": 3, "batch_size": 100, "lr": 3e-3, "weight_decay": 0.5, "progress": False}


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
        return {t.name: self.heads[t.name](mixed).reshape(-1, *[3] * (t.n_outputs > 1)) for t in self.tasks}


class Odd(nn.Module):
    """What layers that compute for several models may get wrong, each way in a model of its own."""

    def __init__(self, schema, tasks, way):
        super().__init__()
        self.tasks, self.way, self.features = tasks, way, FeatureLayer(schema, 4)
        columns = len(schema.numeric)
        self.before, self.first = nn.Linear(columns, columns), nn.Linear(self.features.n_out, 6)
        self.act, self.more = nn.ReLU(), nn.Linear(6, 6)
        nn.init.zeros_(self.more.weight)
        self.heads = nn.ModuleDict({task.name: nn.Linear(6, task.n_outputs) for task in tasks})

    def forward(self, numeric, categorical):
        if self.way == "learned input":
            numeric = self.before(numeric)
        if self.way == "own check":
            assert numeric.dim() == 2
        hidden = self.first(self.features(numeric, categorical))
        shown = self.act(hidden)
        if self.way == "zero residual":  # reads what the activation has overwritten
            shown = shown + self.more(hidden)
        if self.way == "rows in training" and self.training:
            shown = shown + 0.1 * shown.mean(0)
        if self.way == "overwritten twice":
            shown = shown * self.act(hidden)
        logits = {name: head(shown) for name, head in self.heads.items()}
        return {t.name: logits[t.name] if t.n_classes else logits[t.name].squeeze(-1) for t in self.tasks}


def frozen(schema, tasks):
    model = SharedBottom(schema, tasks, hidden=(), tower=())
    model.features.embedding.weight.requires_grad_(False)
    return model


STACKED = {
    "shared bottom": lambda schema, tasks: SharedBottom(schema, tasks, hidden=(16, 8), tower=(6, 4)),
    "no bottom": lambda schema, tasks: SharedBottom(schema, tasks, hidden=(), tower=(5,)),
    "dropped": lambda schema, tasks: SharedBottom(schema, tasks, hidden=(8,), dropout=1e-9),
    "experts": lambda schema, tasks: MMoE(schema, tasks, n_experts=2, tower=(4,)),
    "frozen": frozen,
    "learned input": partial(Odd, way="learned input"),
}
WAYS = "own check", "zero residual", "rows in training", "overwritten twice"
BUILDERS = {**STACKED, "gated": Gated, **{way: partial(Odd, way=way) for way in WAYS}}


@pytest.fixture(params=["stacked", "vmap"])
def engine(request, monkeypatch):
    """Either way to call several models at once, where the sweep would choose the first."""
    if request.param == "vmap":
        monkeypatch.setattr(module, "_stacks", lambda model, batch: False)


def alone(build, train, valid=None, *, weights, seed=0, **settings):
    """A run of its own, as the docstring of ``sweep`` gives it."""
    torch.manual_seed(seed)
    model, settings = build(), settings | {"patience": settings["epochs"]}
    return model, fit(model, train, valid, weights=weights, seed=seed, **settings)


def check(build, train, valid, weightings=WEIGHTS, **settings):
    """A sweep whose every model, curve and metric is that of a run of its own."""
    settings = SETTINGS | settings
    result = sweep(build, train, valid, weightings=weightings, **settings)
    seeds = settings.pop("seeds", (0,))
    assert len(result.runs) == len(weightings) * len(seeds)
    for run in result.runs.itertuples():
        model, history = alone(build, train, weights=weightings[run.weighting], seed=run.seed, **settings)
        mine = result.records.query("weighting == @run.weighting and seed == @run.seed")
        curves = mine[mine["split"] == "train"].sort_values("epoch", kind="stable")["value"]
        assert curves.to_numpy() == pytest.approx(history.frame()["value"].to_numpy(), abs=1e-4)
        measured = evaluate(model, valid)
        for row in mine[(mine["split"] == "valid") & (mine["epoch"] == settings["epochs"])].itertuples():
            expected = pytest.approx(measured[row.task][row.metric], abs=slack(row), nan_ok=True)
            assert row.value == expected
        ours = result.model(run.weighting, run.seed)
        for (name, value), expected in zip(ours.named_parameters(), model.parameters(), strict=True):
            assert torch.allclose(value, expected, atol=1e-4), name


def slack(row):
    """Rounding breaks ties (units that are dead for many rows), and metrics of ranks count them."""
    return 5e-3 if row.metric in ("auc", "accuracy") else 1e-4


class TestEqualToSingleRuns:
    @pytest.mark.parametrize("kind", BUILDERS)
    def test_three_tasks_masks_embeddings_nine_models(self, splits, kind):
        def build():
            return BUILDERS[kind](splits.schema, MIXED_TASKS)

        stacked = module._stacks(build(), next(splits.train.batches(5, shuffle=False)))
        assert stacked == (kind in STACKED)
        check(build, splits.train, splits.valid, seeds=(0, 5, 7))

    def test_numeric_or_categorical_columns_alone(self, engine):
        parts = split_by_time(toy_frame(600))
        for numeric, categorical in ((["x", "z"], []), ([], ["user_id", "item"])):
            data = prepare(parts, MIXED_TASKS, numeric, categorical)
            build = partial(SharedBottom, data.schema, MIXED_TASKS, hidden=(8,), tower=(4,))
            check(build, data.train, data.valid)

    def test_one_task_few_labels_row_weights_and_a_unit(self, splits, engine):
        """Batches without a label, rows that count differently, and regression in another unit."""
        train, valid = (
            replace(part, weights=torch.arange(len(part)) % 3 / 2, scales={"dwell": (9.0, 4.0)})
            for part in (hide_labels(splits.train, "dwell", 6), splits.valid)
        )
        for task in (Task("click"), Task("dwell", "regression")):
            build = partial(SingleTask, splits.schema, task, hidden=(8, 8), tower=(4,))
            check(build, train, valid, [{task.name: 1.0}, {task.name: 0.3}])

    def test_best_epoch_of_each_run(self, splits):
        build = partial(SharedBottom, splits.schema, MIXED_TASKS, hidden=(16,))
        settings = {"epochs": 8, "batch_size": 50, "lr": 2e-2, "progress": False}
        result = sweep(build, splits.train, splits.valid, weightings=WEIGHTS, keep="best", **settings)
        assert result.runs["epoch"].nunique() > 1
        for run in result.runs.itertuples():
            weights = WEIGHTS[run.weighting]
            model, history = alone(build, splits.train, splits.valid, weights=weights, **settings)
            assert run.epoch == history.best_epoch
            for measured in (evaluate(m, splits.valid) for m in (model, result.model(run.weighting))):
                for row in result.final("valid").query("weighting == @run.weighting").itertuples():
                    assert row.value == pytest.approx(measured[row.task][row.metric], abs=slack(row))

    def test_a_run_that_breaks_keeps_its_best_epoch(self, splits):
        """Its loss is NaN from some epoch on: that is no loss of 0."""
        build, grid = partial(SharedBottom, splits.schema, TWO, hidden=(8,)), [{"click": 1.0, "dwell": 1.0}]
        how = SETTINGS | {"lr": 1e12, "keep": "best"}
        result = sweep(build, splits.train, splits.valid, weightings=grid, **how)
        losses = result.records.query("split == 'valid' and metric == 'loss' and epoch == 3")["value"]
        assert losses.isna().any() and result.runs["epoch"].tolist() == [1]

    def test_same_seed_same_bits(self, splits):
        build, grid = partial(Gated, splits.schema, TWO), simplex_grid(TWO, 9)
        one, two = (sweep(build, splits.train, splits.valid, weightings=grid, **SETTINGS) for _ in range(2))
        pd.testing.assert_frame_equal(one.records, two.records, check_exact=True)
        assert all(torch.equal(value, two.parameters[name]) for name, value in one.parameters.items())


@pytest.fixture(scope="module")
def result(splits):
    build = partial(SharedBottom, splits.schema, MIXED_TASKS, hidden=(8,))
    grid = simplex_grid(MIXED_TASKS, 3)
    return sweep(build, splits.train, splits.valid, weightings=grid, seeds=(0, 1), epochs=2, progress=False)


class TestResult:
    def test_records_are_tidy(self, result):
        records = result.records
        assert list(records) == ["weighting", "seed", "epoch", "split", "task", "metric", "value"]
        assert not records.duplicated([c for c in records if c != "value"]).any()
        kinds = set(zip(records["split"], records["task"], records["metric"], strict=True))
        losses = itertools.product(["train", "valid"], ["click", "kind", "dwell"], ["loss"])
        main = {("valid", "click", "auc"), ("valid", "kind", "accuracy"), ("valid", "dwell", "rmse")}
        assert kinds == main | {*losses}
        assert len(records) == 6 * 2 * 2 * 9
        assert (result.final()["epoch"] == 2).all() and len(result.final()) == 6 * 2 * 9
        assert set(result.final("train")["split"]) == {"train"}
        assert "6 weightings × 2 seeds, 12 models, finished" in repr(result)

    def test_models(self, result, splits):
        model = result.model(3, seed=1)
        assert not model.training
        other = predict(result.model(3), splits.test)["click"]
        assert not torch.equal(predict(model, splits.test)["click"], other)
        for asked in ((6, None), (0, 9)):
            with pytest.raises(KeyError, match=str(max(asked[0], asked[1] or 0))):
                result.model(*asked)

    def test_a_model_has_the_random_parts_of_its_seed(self, splits):
        def build():
            model = SharedBottom(splits.schema, TWO, hidden=(4,))
            model.register_buffer("drawn", torch.randn(4))
            return model

        grid = simplex_grid(TWO, 2)
        result = sweep(build, splits.train, weightings=grid, seeds=(3,), epochs=1, progress=False)
        torch.manual_seed(3)
        assert torch.equal(result.model(1).drawn, build().drawn)

    def test_pareto_is_the_mean_over_seeds(self, result):
        table, names = result.pareto(), ["click", "kind", "dwell"]
        assert list(table) == ["weighting", *names, "dominated"]
        final = result.final("valid").query("metric == 'loss' and task == 'kind'")
        mean = final.groupby("weighting")["value"].mean().to_numpy()
        assert table["kind"].to_numpy() == pytest.approx(mean)
        assert (~table["dominated"]).tolist() == pareto_mask(table[names]).tolist()
        mixed = result.pareto({"click": "auc", "kind": "accuracy", "dwell": "rmse"})
        assert (~mixed["dominated"]).tolist() == pareto_mask(mixed[names].to_numpy() * [-1, -1, 1]).tolist()
        with pytest.raises(ValueError, match=r"No valid 'auc' of kind, dwell: it has .*'accuracy'"):
            result.pareto("auc")


class TestWhatIsLeftAlone:
    def test_the_global_generator_and_the_data(self, splits):
        torch.manual_seed(0)
        expected, before = torch.rand(3), splits.train.numeric.clone()
        torch.manual_seed(0)
        build = partial(SharedBottom, splits.schema, TWO)
        sweep(build, splits.train, weightings=simplex_grid(TWO, 2), epochs=1, progress=False).model(0)
        assert torch.equal(torch.rand(3), expected) and torch.equal(splits.train.numeric, before)

    def test_runs_beside_one_that_diverges(self, splits, engine):
        build, settings = partial(SharedBottom, splits.schema, TWO, hidden=(8,)), {"epochs": 1, "lr": 1e-3}
        grid = [{"click": 1.0, "dwell": 1.0}, {"click": 1.0, "dwell": 1e38}]
        train = splits.train.take(slice(None))
        train.labels = train.labels | {"dwell": 1e3 * train.labels["dwell"]}
        result = sweep(build, train, splits.valid, weightings=grid, progress=False, **settings)
        broken = result.records.query("weighting == 1 and split == 'valid'")["value"]
        assert broken.isna().any() and np.isfinite(result.records.query("weighting == 0")["value"]).all()
        model, _ = alone(build, train, weights=grid[0], progress=False, **settings)
        ours = dict(result.model(0).named_parameters())
        assert all(torch.allclose(ours[name], value, atol=1e-4) for name, value in model.named_parameters())


@pytest.mark.parametrize(("after", "epoch"), [(0, None), (4, 2), (5, 2)])
def test_interrupting_keeps_the_finished_epochs(splits, monkeypatch, after, epoch):
    real, calls = module._Group._measure, []

    def measured(group, *given):
        calls.append(1)
        if len(calls) > after:
            raise KeyboardInterrupt
        return real(group, *given)

    monkeypatch.setattr(module._Group, "_measure", measured)
    build, grid = partial(SharedBottom, splits.schema, TWO), simplex_grid(TWO, 3)
    how = {"weightings": grid, "seeds": (0, 1), "epochs": 9, "progress": False}
    if epoch is None:
        with pytest.raises(KeyboardInterrupt):
            sweep(build, splits.train, splits.valid, **how)
        return
    result = sweep(build, splits.train, splits.valid, **how)
    assert result.stopped == "interrupted"
    assert (result.runs["epoch"] == epoch).all() and len(result.runs) == 6
    found = evaluate(result.model(1, seed=1), splits.valid)["click"]["auc"]
    row = result.final("valid").query("weighting == 1 and seed == 1 and task == 'click' and metric == 'auc'")
    assert row["value"].item() == pytest.approx(found, abs=1e-6)


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"weightings": []}, "given for no task"),
        ({"weightings": [{"click": 1, "dwell": 1}, {"click": 1, "dwell": -1}]}, "-1"),
        ({"weightings": pd.DataFrame({"click": [1.0]})}, "expected one for each"),
        ({"seeds": (1, 1)}, "all different"),
        ({"epochs": 0}, "epochs is 0"),
        ({"keep": "first"}, "keep is 'first'"),
        ({"keep": "best", "valid": None}, "with labels to validate"),
        ({"train": toy_splits().train.select(["kind"])}, "labels for click, dwell"),
        ({"train": toy_frame(60)}, "got a DataFrame"),
        ({"batch_size": -5}, "batch_size is -5"),
        ({"valid": replace(VALID, categorical=VALID.categorical[:, :1])}, "expected"),
        ({"valid": replace(VALID, numeric=VALID.numeric[:, :1])}, "expected"),
        ({"valid": replace(VALID, categorical=VALID.categorical + 99)}, "too high"),
    ],
)
def test_settings_and_data_that_are_refused(splits, changed, problem):
    given = {"train": splits.train, "valid": splits.valid, "weightings": simplex_grid(TWO, 3)} | changed
    with pytest.raises((ValueError, TypeError, IndexError), match=problem):
        sweep(partial(SharedBottom, splits.schema, TWO), progress=False, **given)


def test_models_that_vmap_cannot_call(splits):
    class Branches(Gated):
        def forward(self, numeric, categorical):
            logits = super().forward(numeric, categorical)
            return {name: value if value.sum() > 0 else -value for name, value in logits.items()}

    normed = SharedBottom(splits.schema, TWO)
    normed.bottom.append(nn.BatchNorm1d(32))
    for model, problem in ((Branches(splits.schema, TWO), "vmap: .* control flow"), (normed, "running_mean")):
        with pytest.raises(RuntimeError, match=problem):
            sweep(lambda model=model: model, splits.train, weightings=simplex_grid(TWO, 2), progress=False)


def test_front_by_hand():
    points = [[1, 4], [2, 2], [4, 1], [3, 3], [2, 2], [np.nan, 0], [1, 5]]
    assert pareto_mask(points).tolist() == [True, True, True, False, True, False, False]
    assert pareto_mask(points, maximise=[False, True]).tolist() == [False] * 6 + [True]
    assert pareto_mask(np.zeros((0, 2))).tolist() == []
    other = np.random.default_rng(0).integers(0, 6, (60, 3)).astype(float)
    assert pareto_mask(-other, maximise=True).tolist() == pareto_mask(other).tolist()


@pytest.mark.parametrize(("tasks", "n", "count"), [("ab", 5, 5), ("abc", 8, 36), ("abcd", 4, 20)])
def test_a_grid_lies_evenly_on_the_simplex(tasks, n, count):
    points = pd.DataFrame(simplex_grid(list(tasks), n))
    assert len(points) == count and not points.duplicated().any()
    assert np.allclose(points.sum(axis=1), 1) and points.min().min() == 0
    assert np.allclose(points * (n - 1), np.round(points * (n - 1)))


def test_a_grid_s_size_order_and_lowest_weight():
    grid = simplex_grid(TWO, 33)
    assert len(grid) == 33 and grid[16] == {"click": 0.5, "dwell": 0.5} and len(simplex_grid("abc", 8)) == 36
    assert grid[0] == {"click": 0, "dwell": 1} and grid[-1] == {"click": 1, "dwell": 0}
    points = pd.DataFrame(simplex_grid("abc", 4, lowest=0.1))
    assert points.min().min() == pytest.approx(0.1) and points.max().max() == pytest.approx(0.8)
    assert np.allclose(points.sum(axis=1), 1)
    for tasks, n, lowest in (("a", 3, 0.0), ("ab", 1, 0.0), ("ab", 3, 0.5)):
        with pytest.raises(ValueError, match="two or more tasks, n of 2 or more, and lowest from 0"):
            simplex_grid(tasks, n, lowest=lowest)
