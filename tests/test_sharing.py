"""Who shares what: the same properties for every architecture, then each against a plain implementation."""

from __future__ import annotations

import itertools
from typing import ClassVar

import pytest
import torch
from helpers import MIXED_TASKS, toy_splits
from torch import nn

from mtl_helpers.data import Schema, Task, hide_labels
from mtl_helpers.gradients import METHODS, CombinedGradients
from mtl_helpers.losses import task_losses, weighted_sum
from mtl_helpers.models import (
    AITM,
    ESMM,
    PLE,
    CrossStitch,
    Experts,
    MMoE,
    SharedBottom,
    SingleTask,
    count_parameters,
    match_parameters,
)
from mtl_helpers.models.saving import load_model, save_model
from mtl_helpers.sweep import sweep
from mtl_helpers.training import fit, load_checkpoint, predict, save_checkpoint, training_steps
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
    ValidationGap,
    constant_losses,
)

SPLITS = toy_splits()
SCHEMA = SPLITS.schema
FUNNEL = (Task("click"), Task("cart"), Task("purchase"))
SMALL = {"embedding_dim": 4, "tower": (5,)}

# label → (class, settings); ESMM needs to know which of the mixed tasks are probabilities
KINDS = {
    "shared bottom": (SharedBottom, {"hidden": (12, 8)}),
    "cross-stitch": (CrossStitch, {"hidden": (12, 8)}),
    "MMoE": (MMoE, {"n_experts": 3, "hidden": (12, 8)}),
    "CGC": (PLE, {"n_specific": 2, "n_shared": 1, "hidden": (12, 8)}),
    "PLE, 2 levels": (PLE, {"n_specific": 1, "n_shared": 2, "hidden": (8,), "levels": 2}),
    "PLE, 3 levels": (PLE, {"n_specific": 2, "n_shared": 2, "hidden": (8,), "levels": 3}),
    "PLE, shared experts only": (PLE, {"n_specific": 0, "n_shared": 3, "hidden": (8,), "levels": 3}),
    "ESMM": (ESMM, {"hidden": (12, 8)}),
    "AITM": (AITM, {"hidden": (12, 8)}),
}
each = pytest.mark.parametrize("label", KINDS)


def build(label, tasks=MIXED_TASKS, seed=0, schema=SCHEMA, **more):
    kind, settings = KINDS[label]
    if kind is ESMM and "chain" not in more:
        more["chain"] = tuple(task.name for task in tasks if task.kind == "binary")
    if seed is not None:
        torch.manual_seed(seed)
    return kind(schema, tasks, **SMALL, **settings, **more)


def rows(n=64, part="train"):
    return next(getattr(SPLITS, part).batches(n, shuffle=False))


def call(model, batch=None):
    batch = rows() if batch is None else batch
    return model(batch.numeric, batch.categorical)


class TestEveryArchitecture:
    @each
    def test_shapes_of_mixed_tasks(self, label):
        shapes = {name: tuple(logits.shape) for name, logits in call(build(label)).items()}
        assert shapes == {"click": (64,), "kind": (64, 3), "dwell": (64,)}

    @each
    @pytest.mark.parametrize("n", [1, 2])
    def test_few_rows_and_no_tower(self, label, n):
        kind, settings = KINDS[label]
        chain = {"chain": ("click",)} if kind is ESMM else {}
        model = kind(SCHEMA, MIXED_TASKS, embedding_dim=4, tower=(), **settings, **chain)
        assert call(model, rows(n))["kind"].shape == (n, 3)

    @each
    def test_a_row_does_not_depend_on_its_neighbours(self, label):
        model = build(label).eval()
        batch = rows()
        for name, logits in call(model, batch).items():
            alone = model(batch.numeric[5:6], batch.categorical[5:6])[name]
            assert torch.allclose(logits[5:6], alone, atol=1e-6)

    @each
    def test_gradient_reaches_every_parameter(self, label):
        model, batch = build(label), rows(len(SPLITS.train))
        weighted_sum(task_losses(MIXED_TASKS, call(model, batch), batch)).backward()
        for name, p in model.named_parameters():
            assert p.grad is not None and p.grad.abs().sum() > 0, name

    @each
    @pytest.mark.parametrize("tasks", [MIXED_TASKS, FUNNEL], ids=["mixed", "funnel"])
    def test_own_parameters_are_reached_by_one_loss_and_shared_ones_by_several(self, label, tasks):
        model = build(label, tasks)
        own = {task.name: {id(p) for p in model.task_parameters(task.name)} for task in tasks}
        shared = {id(p) for p in model.shared_parameters()}
        listed = [*shared, *itertools.chain(*own.values())]
        assert sorted(listed) == sorted(id(p) for p in model.parameters())  # all of them, each once
        reached = {id(p): set() for p in model.parameters()}
        for task in tasks:
            model.zero_grad(set_to_none=True)
            call(model, rows(400))[task.name].sin().sum().backward()
            for p in model.parameters():
                if p.grad is not None and p.grad.abs().sum() > 0:
                    reached[id(p)].add(task.name)
        assert all(len(reached[p]) > 1 for p in shared)
        for name, parameters in own.items():
            assert all(reached[p] <= {name} for p in parameters)  # an expert may be dead at the start

    @each
    def test_the_order_of_tasks_does_not_matter(self, label):
        turned = (MIXED_TASKS[2], MIXED_TASKS[0], MIXED_TASKS[1])
        chain = {"chain": ("click", "dwell")} if label == "AITM" else {}
        model, other = build(label, **chain), build(label, turned, seed=1, **chain)
        order = torch.tensor([2, 0, 1])
        state = model.state_dict()
        for name, value in state.items():
            if name.startswith("stitches"):
                state[name] = value[order][:, order]
            elif name.startswith("columns") and label == "cross-stitch":
                state[name] = value[order]
            elif "shared_gate" in name:
                n, own = KINDS[label][1]["n_specific"], 3 * KINDS[label][1]["n_specific"]
                groups = value[:own].unflatten(0, (3, n))[order].flatten(0, 1) if n else value[:0]
                state[name] = torch.cat([groups, value[own:]])
        other.load_state_dict(state)
        expected, got = call(model), call(other)
        assert list(got) == ["dwell", "click", "kind"]
        for name, logits in expected.items():
            assert torch.allclose(logits, got[name], atol=1e-5), name

    @pytest.mark.parametrize(
        ("kind", "settings"),
        [
            (SharedBottom, {"hidden": (12, 8)}),
            (CrossStitch, {"hidden": (12, 8)}),
            (MMoE, {"n_experts": 1, "hidden": (12, 8)}),
            (PLE, {"n_specific": 0, "n_shared": 1, "hidden": (12, 8)}),
            (ESMM, {"hidden": (12, 8)}),
            (AITM, {"hidden": (12, 8)}),
        ],
    )
    def test_one_task_and_one_expert_are_the_single_task_net(self, kind, settings):
        single = SingleTask(SCHEMA, FUNNEL[0], **SMALL, hidden=(12, 8))
        model = kind(SCHEMA, FUNNEL[:1], **SMALL, **settings)
        model.features.load_state_dict(single.features.state_dict())
        model.towers["click"].load_state_dict(single.tower.state_dict())
        hidden = [
            p for name, p in model.named_parameters() if name.split(".")[0] in PARTS and "gate" not in name
        ]
        layers = list(single.hidden.parameters())
        with torch.no_grad():
            for shape in {p.shape for p in layers}:  # the four differ in shape
                (ours,) = (p for p in hidden if p.squeeze(0).shape == shape)
                (theirs,) = (p for p in layers if p.shape == shape)
                ours.copy_(theirs.view_as(ours))
        assert torch.allclose(call(single)["click"], call(model)["click"], atol=1e-6)

    @each
    def test_rebuilt_from_its_settings(self, label, tmp_path):
        model = build(label)
        fit(model, SPLITS.train, epochs=1, progress=False)
        path = save_checkpoint(tmp_path / "model.pt", model)
        again = type(model)(model.schema, model.tasks, **model.settings)
        load_checkpoint(path, again)
        before, after = predict(model, SPLITS.test), predict(again, SPLITS.test)
        assert all(torch.equal(before[name], after[name]) for name in before)

    @each
    def test_saved_for_serving_and_loaded_again(self, label, tmp_path):
        model = build(label).eval()
        folder = save_model(tmp_path / "model", model, SPLITS.encoder)
        again, _ = load_model(folder)
        assert type(again) is type(model) and again.settings == model.settings
        before, after = predict(model, SPLITS.test), predict(again, SPLITS.test)
        assert all(torch.equal(before[name], after[name]) for name in before)

    @each
    def test_learns_with_missing_labels(self, label):
        data = hide_labels(SPLITS.train, "click", keep=0.5, seed=1)
        model = build(label)
        first = fit(model, data, epochs=12, batch_size=64, lr=5e-3, progress=False)
        for task in MIXED_TASKS:
            curve = first.curve(task.name, split="train")
            assert curve.iloc[-1] < curve.iloc[0]

    @each
    def test_a_batch_without_one_label_teaches_nothing_about_its_task(self, label):
        data = hide_labels(SPLITS.train, "dwell", keep=0)
        model = build(label)
        batch = next(data.batches(64, shuffle=False))
        task_losses(MIXED_TASKS, call(model, batch), batch)["dwell"].backward()
        assert all(p.grad is None or not p.grad.any() for p in model.parameters())

    @each
    def test_same_seed_same_model_and_other_seed_another(self, label):
        a, b, c = (build(label, seed=seed) for seed in (0, 0, 1))
        assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))
        assert not torch.equal(call(a)["click"], call(c)["click"])

    @each
    def test_a_sweep_ends_where_fit_ends(self, label):
        weights = {"click": 1.0, "kind": 0.5, "dwell": 2.0}
        data = SPLITS.train.take(range(200))
        found = sweep(
            lambda: build(label, seed=None),
            data,
            weightings=[weights, dict.fromkeys(weights, 1.0)],
            seeds=[4],
            epochs=2,
            batch_size=50,
        )
        torch.manual_seed(4)
        model = build(label, seed=None)
        fit(model, data, epochs=2, batch_size=50, weights=weights, seed=4, progress=False)
        theirs = found.predict(SPLITS.test, 0)
        for name, values in predict(model, SPLITS.test).items():
            assert torch.allclose(values, theirs[name], atol=2e-4), name

    @each
    def test_dropout_acts_in_training_only(self, label):
        model = build(label, dropout=0.5)
        assert not torch.equal(call(model)["click"], call(model)["click"])
        model.eval()
        assert torch.equal(call(model)["click"], call(model)["click"])


PARTS = ("bottom", "columns", "experts", "levels")

STRATEGIES = {
    "fixed": lambda: Fixed(MIXED_TASKS),
    "gap": lambda: ValidationGap(MIXED_TASKS, constant_losses(SPLITS.train)),
    "UW": lambda: UncertaintyWeighting(MIXED_TASKS),
    "IMTL-L": lambda: IMTLL(MIXED_TASKS),
    "DWA": lambda: DWA(MIXED_TASKS),
    "RLW": lambda: RandomWeighting(MIXED_TASKS),
    "GLS": lambda: GLS(MIXED_TASKS),
    "STCH": lambda: STCH(MIXED_TASKS),
    "FAMO": lambda: FAMO(MIXED_TASKS),
    "GradNorm": lambda: GradNorm(MIXED_TASKS),
}


class TestWithStrategies:
    def moved(self, label, strategy):
        model = build(label)
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        steps = training_steps(
            model,
            SPLITS.train,
            torch.optim.SGD(model.parameters(), lr=0.1),
            weights=strategy,
            batch_size=len(SPLITS.train),
        )
        list(steps)
        for name, p in model.named_parameters():
            assert torch.isfinite(p).all() and not torch.equal(p, before[name]), name
        assert "represent" not in vars(model)

    @each
    @pytest.mark.parametrize("strategy", STRATEGIES)
    def test_a_step_moves_every_parameter(self, label, strategy):
        self.moved(label, STRATEGIES[strategy]())

    @each
    @pytest.mark.parametrize("at", ["representation", "parameters"])
    @pytest.mark.parametrize("method", METHODS)
    def test_a_combined_step_moves_every_parameter(self, label, method, at):
        # one that sums to zero weights would leave a parameter where it was
        self.moved(label, CombinedGradients(MIXED_TASKS, method, at=at))

    def grads(self, label, strategy, tasks=MIXED_TASKS):
        model, batch = build(label, tasks), rows(200)
        if strategy is not None:
            strategy.begin(model, None)
        logits = call(model, batch) if strategy is None else strategy.logits(model, batch)
        if tasks is FUNNEL:
            losses = torch.stack(
                [logits[task.name].sigmoid().mean() * (i + 1) for i, task in enumerate(tasks)]
            )
        else:
            losses = torch.stack(list(task_losses(tasks, logits, batch).values()))
        if strategy is None:
            losses.sum().backward(retain_graph=True)
        else:
            strategy.backward(losses, model)
        return model, losses, {name: p.grad for name, p in model.named_parameters()}

    @each
    @pytest.mark.parametrize("tasks", [MIXED_TASKS, FUNNEL], ids=["mixed", "funnel"])
    @pytest.mark.parametrize("at", ["representation", "parameters"])
    def test_weights_of_one_are_the_plain_sum(self, label, tasks, at):
        *_, plain = self.grads(label, None, tasks)
        *_, ours = self.grads(label, CombinedGradients(tasks, lambda g: g.diagonal() * 0 + 1, at=at), tasks)
        for name, grad in plain.items():
            assert torch.allclose(grad, ours[name], atol=1e-6), name

    @each
    @pytest.mark.parametrize("tasks", [MIXED_TASKS, FUNNEL], ids=["mixed", "funnel"])
    def test_the_gramian_at_the_parameters_is_exact(self, label, tasks):
        seen = []
        self.grads(
            label, CombinedGradients(tasks, lambda g: seen.append(g) or g.diagonal(), at="parameters"), tasks
        )
        model, losses, _ = self.grads(label, None, tasks)
        shared = list(model.shared_parameters())
        gradients = [
            torch.autograd.grad(loss, shared, retain_graph=True, allow_unused=True) for loss in losses
        ]
        matrix = torch.stack(
            [
                torch.cat(
                    [
                        (torch.zeros_like(p) if g is None else g).flatten()
                        for g, p in zip(row, shared, strict=True)
                    ]
                )
                for row in gradients
            ]
        ).double()
        assert torch.allclose(torch.from_numpy(seen[0]), matrix @ matrix.T, rtol=1e-4, atol=1e-9)

    def test_gradnorm_looks_at_the_layer_below_the_towers(self):
        wanted = {
            "shared bottom": "bottom.2.weight",
            "cross-stitch": "columns.1.weights.0",
            "MMoE": "experts.weights.1",
            "CGC": "levels.0.shared.weights.1",
            "PLE, 2 levels": "levels.1.shared.weights.0",
            "ESMM": "bottom.2.weight",
            "AITM": "features.embedding.weight",
        }
        for label, name in wanted.items():
            model = build(label)
            (found,) = model.last_shared_layer()
            assert found is dict(model.named_parameters())[name]


class TestExperts:
    def test_experts_differ_at_the_start_and_are_scaled_like_any_layer(self):
        torch.manual_seed(0)
        experts = Experts(4, 20, (16, 8))
        for weight, bias in zip(experts.weights, experts.biases, strict=True):
            for a, b in itertools.combinations(range(4), 2):
                assert (weight[a] - weight[b]).abs().max() > 0.05
                assert (bias[a] - bias[b]).abs().max() > 0.01
        like = nn.Linear(20, 1600).weight
        assert experts.weights[0].std().item() == pytest.approx(like.std().item(), rel=0.1)

    @pytest.mark.parametrize("hidden", [(16,), (16, 8), (16, 8, 4)])
    def test_one_product_equals_a_loop(self, hidden):
        experts, x = Experts(5, 20, hidden), torch.randn(7, 20)
        together = experts(x)
        own = experts(x.expand(5, 7, 20))
        for e in range(5):
            h = x
            for weight, bias in zip(experts.weights, experts.biases, strict=True):
                h = torch.relu(h @ weight[e].T + bias[e])
            assert torch.allclose(together[e], h, atol=1e-5)
            assert torch.allclose(own[e], h, atol=1e-5)

    @pytest.mark.parametrize("label", ["MMoE", "CGC", "PLE, 2 levels", "PLE, 3 levels"])
    def test_gates_sum_to_one_and_see_only_what_is_theirs(self, label):
        model, batch = build(label), rows()
        use = model.expert_use(batch.numeric, batch.categorical)
        assert list(use) == ["click", "kind", "dwell"]
        for task, gates in use.items():
            assert gates.shape == (64, len(model.expert_names))
            assert torch.allclose(gates.sum(-1), torch.ones(64), atol=1e-6)
            for i, name in enumerate(model.expert_names):
                allowed = name.split()[0] in (task, "shared", "expert")
                assert bool((gates[:, i] > 0).all()) == allowed, (task, name)

    @pytest.mark.parametrize("label", ["MMoE", "CGC", "PLE, 2 levels"])
    def test_dropped_experts_leave_gates_that_sum_to_one(self, label):
        model = build(label, expert_dropout=0.6)
        batch = rows(400)
        gates = model.expert_use(batch.numeric, batch.categorical)["click"]
        assert torch.allclose(gates.sum(-1), torch.ones(400), atol=1e-5)
        model.eval()
        full = model.expert_use(batch.numeric, batch.categorical)["click"]
        assert 0.3 < (gates[full > 0] == 0).float().mean() < 0.7


def softmax(values):
    top = max(values)
    powers = [torch.exp(value - top) for value in values]
    return [power / sum(powers) for power in powers]


def by_hand(layers, x):
    """An expert's layers, one row at a time: x (in,) → (out,)."""
    for weight, bias in layers:
        x = torch.stack([max(unit @ x + b, torch.tensor(0.0)) for unit, b in zip(weight, bias, strict=True)])
    return x


def experts_of(module):
    n = module.weights[0].shape[0]
    return [[(w[e], b[e]) for w, b in zip(module.weights, module.biases, strict=True)] for e in range(n)]


def mixture(gate, x, outputs):
    shares = softmax([unit @ x + b for unit, b in zip(gate.weight, gate.bias, strict=True)])
    assert len(shares) == len(outputs)
    return sum(share * output for share, output in zip(shares, outputs, strict=True))


class TestAgainstAPlainImplementation:
    """Row by row and expert by expert, straight from the papers' equations."""

    def compare(self, model, row_mixtures):
        batch = rows(6)
        got = call(model, batch)
        features = model.features(batch.numeric, batch.categorical)
        for i in range(6):
            for name, h in row_mixtures(features[i]).items():
                tower = model.towers[name]
                for layer in tower.hidden:
                    h = layer(h)
                expected = tower.head(h)
                assert torch.allclose(got[name][i], expected.squeeze(), atol=1e-5), name

    @pytest.mark.parametrize("seed", range(3))
    def test_mmoe(self, seed):
        model = build("MMoE", seed=seed)

        def mixtures(x):
            outputs = [by_hand(layers, x) for layers in experts_of(model.experts)]
            return {task.name: mixture(model.gates[task.name], x, outputs) for task in MIXED_TASKS}

        self.compare(model, mixtures)

    @pytest.mark.parametrize("label", [name for name in KINDS if name.startswith(("CGC", "PLE"))])
    @pytest.mark.parametrize("seed", range(2))
    def test_ple(self, label, seed):
        model = build(label, seed=seed)
        names = [task.name for task in MIXED_TASKS]

        def mixtures(x):
            read = dict.fromkeys([*names, "shared"], x)
            for level in model.levels:
                shared = [by_hand(layers, read["shared"]) for layers in experts_of(level.shared)]
                own = {
                    name: [by_hand(layers, read[name]) for layers in experts_of(level.own[name])]
                    if level.own
                    else []
                    for name in names
                }
                nxt = {name: mixture(level.gates[name], read[name], own[name] + shared) for name in names}
                if level.shared_gate is not None:
                    everything = [output for name in names for output in own[name]] + shared
                    nxt["shared"] = mixture(level.shared_gate, read["shared"], everything)
                read = nxt
            return {name: read[name] for name in names}

        self.compare(model, mixtures)

    def test_cross_stitch(self):
        model = build("cross-stitch")
        with torch.no_grad():
            for stitch in model.stitches:
                stitch.add_(0.3 * torch.randn_like(stitch))

        def mixtures(x):
            hidden = [x, x, x]
            for column, stitch in zip(model.columns, model.stitches, strict=True):
                own = [by_hand(layers, h) for layers, h in zip(experts_of(column), hidden, strict=True)]
                hidden = [sum(stitch[t, s] * own[s] for s in range(3)) for t in range(3)]
            return {task.name: h for task, h in zip(MIXED_TASKS, hidden, strict=True)}

        self.compare(model, mixtures)

    def test_aitm(self):
        model = build("AITM", chain=("click", "dwell", "kind"))

        def attend(link, before, own):
            both = [torch.relu(link.info[0](before)), own]
            shares = softmax([(link.query(u) @ link.key(u)) / len(own) ** 0.5 for u in both])
            return sum(share * link.value(u) for share, u in zip(shares, both, strict=True))

        def mixtures(x):
            q = {name: by_hand(experts_of(column)[0], x) for name, column in model.columns.items()}
            click = q["click"]
            dwell = attend(model.transfers["dwell"], click, q["dwell"])
            return {"click": click, "dwell": dwell, "kind": attend(model.transfers["kind"], dwell, q["kind"])}

        self.compare(model, mixtures)

    def test_ple_with_shared_experts_only_is_mmoe(self):
        ple = PLE(SCHEMA, MIXED_TASKS, n_specific=0, n_shared=4)
        mmoe = MMoE(SCHEMA, MIXED_TASKS, n_experts=4)
        names = {"levels.0.shared.": "experts.", "levels.0.gates.": "gates."}
        state = {}
        for name, value in ple.state_dict().items():
            for old, new in names.items():
                name = name.replace(old, new)
            state[name] = value
        mmoe.load_state_dict(state)
        for name, logits in call(ple).items():
            assert torch.allclose(logits, call(mmoe)[name], atol=1e-6)
        assert count_parameters(ple) == count_parameters(mmoe)

    def test_cross_stitch_with_the_identity_shares_only_the_embedding(self):
        model = build("cross-stitch", keep=1.0)
        columns = [f"columns.{i}.weights.0" for i in range(2)]
        call(model)["click"].sum().backward()
        for name in columns:
            grad = dict(model.named_parameters())[name].grad
            assert grad[0].any() and not grad[1:].any()


class TestESMM:
    def model(self, seed=0, scale=1.0):
        torch.manual_seed(seed)
        model = ESMM(SCHEMA, FUNNEL, **SMALL)
        with torch.no_grad():
            for tower in model.towers.values():
                tower.head.weight.mul_(scale)
        return model

    @pytest.mark.parametrize("scale", [1, 30, 1e3, 1e6])
    def test_a_later_event_is_never_likelier(self, scale):
        for seed in range(5):
            logits = call(self.model(seed, scale), rows(400))
            p = {name: value.sigmoid() for name, value in logits.items()}
            assert all(torch.isfinite(value).all() for value in logits.values())
            assert (logits["purchase"] <= logits["cart"]).all() and (logits["cart"] <= logits["click"]).all()
            assert (p["purchase"] <= p["cart"]).all() and (p["cart"] <= p["click"]).all()

    def test_probabilities_are_the_product_of_the_conditionals(self):
        model, batch = self.model(), rows(50)
        inside = {
            k: v.double().sigmoid() for k, v in model.conditional(batch.numeric, batch.categorical).items()
        }
        got = {name: value.double().sigmoid() for name, value in call(model, batch).items()}
        assert torch.allclose(got["click"], inside["click"])
        assert torch.allclose(got["cart"], inside["click"] * inside["cart"], atol=1e-7)
        assert torch.allclose(
            got["purchase"], inside["click"] * inside["cart"] * inside["purchase"], atol=1e-7
        )

    def test_the_loss_is_the_cross_entropy_of_the_product_and_so_is_its_gradient(self):
        model, batch = self.model().double(), rows(50)
        numeric, labels = batch.numeric.double(), (torch.arange(50) % 3 == 0).double()
        inside = model.conditional(numeric, batch.categorical)
        p = inside["click"].sigmoid() * inside["cart"].sigmoid()
        by_product = nn.functional.binary_cross_entropy(p, labels)
        by_logit = nn.functional.binary_cross_entropy_with_logits(
            model(numeric, batch.categorical)["cart"], labels
        )
        assert torch.allclose(by_product, by_logit)
        parts = list(model.bottom.parameters())
        for a, b in zip(
            torch.autograd.grad(by_product, parts), torch.autograd.grad(by_logit, parts), strict=True
        ):
            assert torch.allclose(a, b)

    def test_extreme_logits_keep_a_finite_gradient(self):
        model, batch = self.model(scale=1e6), rows(200)
        nn.functional.binary_cross_entropy_with_logits(
            call(model, batch)["purchase"], torch.ones(200)
        ).backward()
        assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)

    def test_tasks_outside_the_chain_stand_alone(self):
        model = build("ESMM")
        assert model.chain == ("click",)
        assert set(model.task_parameters("click"))

    def test_chain_sets_the_order(self):
        torch.manual_seed(0)
        model = ESMM(SCHEMA, FUNNEL, chain=("cart", "click"))
        logits = call(model)
        assert (logits["click"] <= logits["cart"]).all()
        assert model.settings["chain"] == ("cart", "click")


class TestMatching:
    KINDS: ClassVar = {
        "cross-stitch": CrossStitch,
        "MMoE": (MMoE, {"n_experts": 6}),
        "PLE": (PLE, {"levels": 2}),
        "AITM": AITM,
        "shared bottom": SharedBottom,
        "ESMM": (ESMM, {"chain": ("click",)}),
    }

    def test_counts_are_as_near_as_widths_allow(self):
        like = SharedBottom(SCHEMA, MIXED_TASKS, hidden=(128, 64))
        builds = match_parameters(like, self.KINDS, embedding_dim=8)
        assert list(builds) == list(self.KINDS)
        for label, make in builds.items():
            assert count_parameters(make()) == pytest.approx(count_parameters(like), rel=0.06), label
        assert builds["MMoE"]().settings["n_experts"] == 6
        assert builds["shared bottom"]().settings == like.settings

    def test_it_draws_nothing_and_builds_anew(self):
        torch.manual_seed(0)
        first = torch.rand(1)
        like = SharedBottom(SCHEMA, FUNNEL)
        torch.manual_seed(0)
        make = match_parameters(like, {"MMoE": MMoE})["MMoE"]
        assert torch.equal(torch.rand(1), first)
        assert make() is not make()

    def test_a_kind_that_cannot_be_small_enough(self):
        like = SharedBottom(SCHEMA, MIXED_TASKS, hidden=(2,))
        with pytest.raises(ValueError, match="fewer experts"):
            match_parameters(like, {"MMoE": (MMoE, {"n_experts": 50})})


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: MMoE(SCHEMA, FUNNEL, n_experts=0), ValueError, "n_experts is 0"),
        (lambda: MMoE(SCHEMA, FUNNEL, hidden=()), ValueError, "at least one width"),
        (lambda: MMoE(SCHEMA, FUNNEL, expert_dropout=1.0), ValueError, "below 1"),
        (lambda: PLE(SCHEMA, FUNNEL, n_shared=0), ValueError, "n_shared=0"),
        (lambda: PLE(SCHEMA, FUNNEL, levels=0), ValueError, "levels=0"),
        (lambda: CrossStitch(SCHEMA, FUNNEL, hidden=()), ValueError, "at least one width"),
        (lambda: ESMM(SCHEMA, MIXED_TASKS), ValueError, "'kind' is a multiclass task"),
        (lambda: ESMM(SCHEMA, FUNNEL, chain=("click", "like")), ValueError, "names of click, cart, purchase"),
        (lambda: ESMM(SCHEMA, FUNNEL, chain=("click", "click")), ValueError, "different names"),
        (lambda: AITM(SCHEMA, FUNNEL, chain="click"), TypeError, "the text 'click'"),
        (lambda: AITM(SCHEMA, FUNNEL, chain=()), ValueError, "chain is"),
    ],
)
def test_errors_in_words(make, error, words):
    with pytest.raises(error, match=words):
        make()


@pytest.mark.parametrize(
    "schema", [Schema(("x", "z"), {}), Schema((), {"user_id": 5, "item": 3})], ids=["numbers", "codes"]
)
@each
def test_only_numbers_or_only_categories(label, schema):
    model = build(label, schema=schema)
    numeric = torch.randn(9, len(schema.numeric))
    categorical = torch.randint(0, 3, (9, len(schema.categorical)))
    assert model(numeric, categorical)["kind"].shape == (9, 3)
