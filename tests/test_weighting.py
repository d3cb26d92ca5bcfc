"""Weighting strategies: the same properties for every one, then each against torchjd or its defining equation."""

from __future__ import annotations

import copy
import math
from functools import partial

import numpy as np
import pytest
import torch
from helpers import MIXED_TASKS, toy_splits

from mtl_helpers.data import MultiTaskDataset, Schema, Task, hide_labels
from mtl_helpers.gradients import METHODS, CombinedGradients
from mtl_helpers.losses import label_counts
from mtl_helpers.models import SharedBottom
from mtl_helpers.training import evaluate, fit
from mtl_helpers.weighting import (
    DWA,
    FAMO,
    GLS,
    IMTLL,
    STCH,
    Fixed,
    GradNorm,
    RandomWeighting,
    UncertaintyWeighting,
    constant_losses,
    entropy_weights,
    rarity_weights,
)

STRATEGIES = {
    "fixed": lambda tasks: Fixed(tasks),
    "UW": UncertaintyWeighting,
    "IMTL-L": IMTLL,
    "DWA": DWA,
    "RLW": RandomWeighting,
    "GLS": GLS,
    "STCH": STCH,
    "FAMO": FAMO,
    "GradNorm": GradNorm,
}
each = pytest.mark.parametrize("name", STRATEGIES)
SERIES = torch.tensor([[1.0, 0.5, 2.0]]) * torch.tensor([0.9, 0.99, 0.7]) ** torch.arange(6)[:, None]
FALL = torch.tensor([0.99, 0.95, 0.9])
BINARY = tuple(Task(name) for name in "abc")


@pytest.fixture(scope="module")
def splits():
    return toy_splits(1200)


def make(splits, tasks=MIXED_TASKS):
    torch.manual_seed(0)
    return SharedBottom(splits.schema, tasks)


def drive(strategy, series=SERIES, fall=FALL):
    """Feed a strategy a series of losses, without a model; return the effective weights of each step."""
    seen = []
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    strategy.begin(None, optimizer)
    for losses in series:
        leaf = losses.clone().requires_grad_()
        optimizer.zero_grad()
        strategy(leaf).backward()
        seen.append(leaf.grad.clone())
        optimizer.step()
        if isinstance(strategy, GradNorm):  # gradient norms, one of them 0
            strategy.weights = strategy.updated(losses, losses * (losses > losses.min()))
        strategy.after_step(lambda losses=losses: losses * fall)
        strategy.after_epoch(losses, None)
    return torch.stack(seen)


class TestEveryStrategy:
    @each
    def test_trains_a_model_and_reports_its_weights(self, name, splits):
        model, strategy = make(splits), STRATEGIES[name](MIXED_TASKS)
        how = {"epochs": 12, "batch_size": 128, "lr": 3e-3, "patience": 12, "progress": False}
        before = evaluate(model, splits.valid)
        fit(model, splits.train, splits.valid, weights=strategy, **how)
        after = evaluate(model, splits.valid)
        assert all(after[task]["loss"] < before[task]["loss"] for task in ("click", "dwell"))
        assert list(strategy.current()) == ["click", "kind", "dwell"]
        assert all(math.isfinite(weight) for weight in strategy.current().values())

    @each
    def test_stays_finite_on_tiny_and_huge_losses(self, name):
        for scale in (1e-8, 1e8):
            weights = drive(STRATEGIES[name](MIXED_TASKS), scale * SERIES)
            assert torch.isfinite(weights).all() and (weights >= 0).all()

    @each
    def test_one_task_trains_like_a_single_task(self, name, splits):
        tasks, data = MIXED_TASKS[:1], splits.train.select(["click"])
        plain, strategic = make(splits, tasks), make(splits, tasks)
        fit(plain, data, epochs=1, batch_size=128, progress=False)
        fit(strategic, data, epochs=1, batch_size=128, weights=STRATEGIES[name](tasks), progress=False)
        a, b = (evaluate(model, data)["click"]["loss"] for model in (plain, strategic))
        assert a == pytest.approx(b, abs=0.02)

    @pytest.mark.parametrize("name", sorted(set(STRATEGIES) - {"RLW"}))  # whose draws belong to places
    def test_order_of_tasks_does_not_matter(self, name):
        forward = drive(STRATEGIES[name](MIXED_TASKS))
        backward = drive(STRATEGIES[name](MIXED_TASKS[::-1]), SERIES.flip(1), FALL.flip(0))
        assert torch.allclose(backward.flip(1), forward, atol=1e-6)

    @pytest.mark.parametrize("name", ["UW", "IMTL-L", "DWA", "GLS", "STCH", "FAMO"])
    def test_equal_tasks_get_equal_weights(self, name):
        weights = drive(STRATEGIES[name](BINARY), torch.tensor([[1.0], [0.8], [0.5]]).expand(3, 3), 0.9)
        assert torch.allclose(weights, weights.mean(1, keepdim=True).expand(3, 3))

    @each
    def test_state_is_saved_and_restored(self, name):
        strategy, other = STRATEGIES[name](MIXED_TASKS), STRATEGIES[name](MIXED_TASKS)
        drive(strategy)
        other.load_state_dict(copy.deepcopy(strategy.state_dict()))
        assert torch.equal(drive(strategy), drive(other))

    @each
    def test_wrong_tasks_are_refused(self, name, splits):
        with pytest.raises(ValueError, match="The weighting is for"):
            fit(make(splits), splits.train, weights=STRATEGIES[name](MIXED_TASKS[:2]), progress=False)


EVERY = STRATEGIES | {
    f"{name} {at}": partial(CombinedGradients, method=name, at=at)
    for name in METHODS
    for at in ("representation", "parameters")
}


def state_of(strategy) -> dict:
    """All that a strategy remembers, by name: what it keeps of each task, and its optimiser's memory of it."""
    found = {name: value.clone() for name, value in strategy.state_dict().items() if torch.is_tensor(value)}
    found.pop("effective")
    if isinstance(strategy, FAMO):
        memory = strategy.optimizer.state[strategy.w]
        found |= {name: value.clone() for name, value in memory.items()}
    return found


def without_the_last(tasks, make_it, strategy):
    """The strategy of all tasks but the last, in the state of the one given."""
    alone = make_it(tasks[:-1])
    state = copy.deepcopy(strategy.state_dict())
    for name, value in state.items():
        if torch.is_tensor(value) and value.shape == (len(tasks),):
            state[name] = value[:-1]
    if isinstance(strategy, FAMO):
        del state["_extra_state"]
    alone.load_state_dict(state, strict=False)
    if isinstance(strategy, CombinedGradients):
        alone.rng = copy.deepcopy(strategy.rng)
    return alone


@pytest.fixture(scope="module")
def scarce():
    """14,000 rows, 20 of which have a label of the third task, none of them in the first 512."""
    names, draw = ("a", "b", "rare"), torch.Generator().manual_seed(0)
    x = torch.randn(14_000, 3, generator=draw)
    noise = [torch.randn(14_000, generator=draw) for _ in names]
    labels = {task: (x[:, i] + noise[i] > 0).float() for i, task in enumerate(names)}
    mask = torch.zeros(14_000, dtype=torch.bool)
    mask[torch.randperm(14_000, generator=draw)[:20]] = True
    mask[:512] = False
    none = torch.zeros(14_000, 0, dtype=torch.long)
    return MultiTaskDataset(x, none, labels, {"rare": mask}, tuple(Task(task) for task in names))


class TestATaskWithoutALabel:
    """20 labels of one task in 14,000 rows: in most batches it has none."""

    @pytest.mark.parametrize("name", EVERY)
    def test_is_left_out_of_the_step(self, name, scarce):
        tasks = scarce.tasks
        torch.manual_seed(0)
        model = SharedBottom(Schema(("x", "y", "z"), {}), tasks, hidden=(8,), tower=())
        strategy = EVERY[name](tasks)
        optimizer = torch.optim.AdamW([*model.parameters()], lr=1e-2)
        strategy.begin(model, optimizer)
        left_out = 0
        for batch in scarce.batches(512, shuffle=False):
            before = state_of(strategy)
            alone = without_the_last(tasks, EVERY[name], strategy)
            twin = copy.deepcopy(model)
            losses = strategy.losses(model, batch)
            strategy.present = label_counts(tasks, batch).nonzero().flatten().tolist()
            optimizer.zero_grad()
            strategy.backward(losses, model)
            strategy.step(optimizer)
            strategy.after_step(partial(strategy.losses, model, batch))
            if 2 in strategy.present:
                continue
            left_out += 1
            alone.backward(alone.losses(twin, batch), twin)
            assert strategy.effective[2] == 0
            assert torch.allclose(strategy.effective[:2], alone.effective, rtol=1e-5, atol=1e-7)
            for key, value in state_of(strategy).items():
                if value.shape == (3,):
                    assert torch.equal(value[2], before.get(key, value)[2]) or before[key][2].isnan(), key
            for (key, p), q in zip(model.named_parameters(), twin.parameters(), strict=True):
                if q.grad is not None:
                    assert torch.allclose(p.grad, q.grad, rtol=1e-4, atol=1e-7), key
        assert left_out > 10

    def test_a_batch_without_any_label_changes_nothing(self):
        strategy = FAMO(BINARY)
        strategy.present = []
        losses = torch.zeros(3, requires_grad=True)
        strategy.backward(losses, None)
        strategy.after_step(lambda: losses)
        assert not losses.grad.any() and not strategy.w.any()

    def test_an_epoch_without_its_label_leaves_its_weight(self):
        strategy = DWA(MIXED_TASKS)
        for epoch in range(3):
            strategy.after_epoch(torch.tensor([0.9**epoch, 0.5**epoch, math.nan]), None)
        assert strategy.weights[2] == 1 and strategy.weights.sum().item() == pytest.approx(3)
        assert strategy.weights[0] != strategy.weights[1]


class TestAgainstTorchjd:
    losses = torch.tensor([[1.0, 0.5, 2.0], [0.8, 0.45, 1.0], [0.7, 0.44, 0.6], [0.65, 0.4, 0.61]])

    @pytest.fixture(autouse=True)
    def oracle(self):
        self.jd = pytest.importorskip("torchjd.scalarization")

    def test_uncertainty_weighting_of_regressions(self):
        ours, theirs = UncertaintyWeighting([Task(name, "regression") for name in "abc"]), self.jd.UW(3)
        optimizers = [torch.optim.SGD(module.parameters(), lr=0.3) for module in (ours, theirs)]
        for losses in self.losses:
            totals = [module(losses) for module in (ours, theirs)]
            assert totals[0].item() == pytest.approx(totals[1].item(), abs=1e-6)
            for total, optimizer in zip(totals, optimizers, strict=True):
                optimizer.zero_grad()
                total.backward()
                optimizer.step()
        assert torch.allclose(ours.log_variance, theirs.log_var, atol=1e-6)

    def test_imtl_l(self):
        ours, theirs = IMTLL(BINARY), self.jd.IMTLL(3)
        with torch.no_grad():
            ours.log_scale.copy_(torch.tensor([0.3, -1.0, 2.0]))
            theirs.log_scale.copy_(ours.log_scale)
        assert ours(self.losses[0]).item() == pytest.approx(theirs(self.losses[0]).item(), abs=1e-6)

    def test_dwa(self):
        ours, theirs = DWA(BINARY, temperature=2.0), self.jd.DWA(temperature=2.0)
        for losses in self.losses:
            assert ours(losses).item() == pytest.approx(theirs(losses).item(), abs=1e-6)
            ours.after_epoch(losses, None)
            theirs.step()
        assert not torch.allclose(ours.weights, torch.ones(3), atol=1e-3)

    def test_geometric_mean_and_stch(self):
        for losses in self.losses:
            assert GLS(BINARY)(losses).item() == pytest.approx(self.jd.GeometricMean()(losses).item())
            assert STCH(BINARY, 0.05)(losses).item() == pytest.approx(self.jd.STCH(0.05)(losses).item())

    def test_famo(self):
        ours, theirs = FAMO(BINARY), self.jd.FAMO(3)
        for before, after in zip(self.losses[:-1], self.losses[1:], strict=True):
            assert ours(before).item() == pytest.approx(theirs(before).item(), abs=1e-5)
            ours.after_step(lambda after=after: after)
            theirs.update(after)
            assert torch.allclose(ours.w, theirs._w, atol=1e-5)

    def test_random_weights_have_the_same_distribution(self):
        torch.manual_seed(0)
        first = torch.tensor([1.0, 0, 0])
        made = RandomWeighting(BINARY), self.jd.Random()
        ours, theirs = (np.array([module(first).item() for _ in range(3000)]) for module in made)
        assert ours.mean() == pytest.approx(1 / 3, abs=0.02)
        deciles = [0.1, 0.5, 0.9]
        assert np.quantile(ours, deciles) == pytest.approx(np.quantile(theirs, deciles), abs=0.03)


class TestDefiningEquations:
    def test_uncertainty_of_a_classification_is_the_paper_s(self):
        strategy = UncertaintyWeighting([Task("a"), Task("b", "multiclass", 3), Task("c", "regression")])
        a, s, losses = (torch.tensor(row) for row in ([1, 1, 0.5], [0.2, -0.4, 1.0], [0.5, 1.5, 2.0]))
        strategy.log_variance.data = s
        assert strategy(losses).item() == pytest.approx(
            (a * (-s).exp() * losses + s / 2).sum().item(), abs=1e-6
        )

    def test_gradnorm_moves_weights_down_its_loss(self, splits):
        model, strategy = make(splits), GradNorm(MIXED_TASKS, alpha=0.5, lr=0.01)
        batch = next(splits.train.batches(256, generator=torch.Generator().manual_seed(0)))
        losses = strategy.losses(model, batch)
        (layer,) = model.last_shared_layer()
        assert layer is model.bottom[2].weight
        norms = [torch.autograd.grad(loss, layer, retain_graph=True)[0].norm() for loss in losses]
        norms, losses = torch.stack(norms), losses.detach()
        strategy.first = losses * torch.tensor([1.0, 1.5, 0.7])
        rate = losses / strategy.first
        target = norms.mean() * (rate / rate.mean()) ** 0.5
        weights, h = torch.ones(3, requires_grad=True), 0.01
        (slope,) = torch.autograd.grad((weights * norms - target).abs().sum(), weights)
        moved, step = strategy.updated(losses, norms), 1 - h * slope / norms.mean()
        assert torch.allclose(moved, 3 * step / step.sum(), atol=1e-4)
        assert moved.sum().item() == pytest.approx(3)

    def test_dwa_without_history_is_equal_and_is_not_polluted_by_ones(self):
        strategy = DWA(BINARY)
        strategy.after_epoch(torch.tensor([0.01, 1.0, 5.0]), None)
        assert torch.equal(strategy.weights, torch.ones(3))
        strategy.after_epoch(torch.tensor([0.005, 0.9, 5.0]), None)
        expected = 3 * torch.softmax(torch.tensor([0.5, 0.9, 1.0]) / 2, 0)
        assert torch.allclose(strategy.weights, expected, atol=1e-6)

    def test_stch_with_warm_up_then_weighs_by_the_inverse_loss_of_the_warm_up(self):
        strategy, losses = STCH(BINARY, mu=1.0, warm_up=2), torch.tensor([0.5, 0.05, 2.0], requires_grad=True)
        assert strategy(losses).item() == pytest.approx(losses.log().sum().item())
        for means in ([9.0, 9.0, 9.0], [1.0, 0.1, 4.0]):
            strategy.after_epoch(torch.tensor(means), None)
        strategy(losses).backward()
        shares = losses.grad / losses.grad.sum()
        assert torch.allclose(
            shares, torch.tensor([1, 10, 0.25]) / 11.25
        )  # μ = 1: the log of a sum of ratios

    @pytest.mark.parametrize(("given", "rate"), [(0.05, 0.05), (None, 1e-3)])
    def test_log_variances_have_a_rate_of_their_own(self, splits, given, rate):
        model = make(splits)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        UncertaintyWeighting(MIXED_TASKS, lr=given).begin(model, optimizer)
        assert [group["lr"] for group in optimizer.param_groups] == [1e-3, rate]


class TestFromData:
    def test_constant_losses_are_what_the_best_constant_loses(self, splits):
        data, found = splits.train, constant_losses(splits.train)
        rate = data.labels["click"].mean().item()
        entropy = -rate * math.log(rate) - (1 - rate) * math.log(1 - rate)
        assert found["click"] == pytest.approx(entropy, rel=1e-5)
        known = data.labels["kind"][data.masks["kind"]]
        shares = np.bincount(known.numpy()) / len(known)
        assert found["kind"] == pytest.approx(-(shares * np.log(shares)).sum(), rel=1e-5)
        dwell = data.labels["dwell"][data.masks["dwell"]].numpy()
        assert found["dwell"] == pytest.approx(dwell.var(), rel=1e-4)

    def test_entropy_weights_make_the_constants_equal(self, splits):
        weights, constants = entropy_weights(splits.train), constant_losses(splits.train)
        products = [weights[name] * constants[name] for name in weights]
        assert products == pytest.approx([products[0]] * 3)
        assert sum(weights.values()) == pytest.approx(3)

    def test_rarity_weights(self, splits):
        rate = splits.train.labels["click"].mean().item()
        weights = rarity_weights(splits.train)
        assert weights["click"] / weights["kind"] == pytest.approx(rate**-0.5, rel=1e-4)
        assert sum(weights.values()) == pytest.approx(3)

    def test_nothing_to_weight_by(self, splits):
        with pytest.raises(ValueError, match="'kind' has not one label"):
            entropy_weights(hide_labels(splits.train, "kind", 0))
        without = splits.train.take(splits.train.labels["click"] == 0)
        with pytest.raises(ValueError, match="no positive"):
            rarity_weights(without)


@pytest.mark.parametrize(
    ("make_it", "word"),
    [
        (lambda: DWA(BINARY, temperature=0), "temperature is 0"),
        (lambda: STCH(BINARY, mu=-1), "mu is -1"),
        (lambda: Fixed(BINARY, {"a": 1}), "each of"),
    ],
)
def test_bad_settings(make_it, word):
    with pytest.raises(ValueError, match=word):
        make_it()
