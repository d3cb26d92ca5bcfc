"""Who shares what: the same properties for every architecture, then each against its paper's equations."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from helpers import MIXED_TASKS, ROOT, toy_splits
from torch import nn

from mtl_helpers.data import Batch, Schema, Task, hide_labels, prepare
from mtl_helpers.gradients import METHODS, CombinedGradients
from mtl_helpers.losses import task_losses
from mtl_helpers.models import (
    AITM,
    ESMM,
    PLE,
    STEM,
    CrossStitch,
    MMoE,
    PEPNet,
    SharedBottom,
    SingleTask,
    complete_chain,
    count_parameters,
    match_parameters,
)
from mtl_helpers.sweep import sweep
from mtl_helpers.training import fit, predict, training_steps
from mtl_helpers.weighting import Fixed, GradNorm

SPLITS = toy_splits()
SCHEMA = SPLITS.schema
FUNNEL = (Task("click"), Task("cart"), Task("purchase"))
SMALL = {"embedding_dim": 4, "tower": (5,)}

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
    "STEM": (STEM, {"hidden": (12, 8)}),
    "PEPNet": (PEPNet, {"hidden": (12, 8), "scene": "item", "gate": 5}),
}
each = pytest.mark.parametrize("label", KINDS)
both = pytest.mark.parametrize("tasks", [MIXED_TASKS, FUNNEL], ids=["mixed", "funnel"])


def build(label, tasks=MIXED_TASKS, seed=0, schema=SCHEMA, **more):
    kind, settings = KINDS[label]
    if kind is ESMM and "chain" not in more:  # it needs to know which of the mixed tasks are probabilities
        more["chain"] = tuple(task.name for task in tasks if task.kind == "binary")
    if seed is not None:
        torch.manual_seed(seed)
    return kind(schema, tasks, **(SMALL | settings | more))


def rows(n=64):
    return next(SPLITS.train.batches(n, shuffle=False))


def call(model, batch=None):
    batch = rows() if batch is None else batch
    return model(batch.numeric, batch.categorical)


class TestEveryArchitecture:
    @each
    @pytest.mark.parametrize("tower", [(5,), ()])
    def test_shapes_of_mixed_tasks_and_a_row_does_not_depend_on_its_neighbours(self, label, tower):
        model, batch = build(label, tower=tower).eval(), rows()
        whole, alone = call(model, batch), model(batch.numeric[5:6], batch.categorical[5:6])
        for n, logits in ((64, whole), (1, alone)):
            shapes = {name: tuple(value.shape) for name, value in logits.items()}
            assert shapes == {"click": (n,), "kind": (n, 3), "dwell": (n,)}
        assert all(torch.allclose(whole[name][5:6], alone[name], atol=1e-6) for name in whole)

    @each
    @both
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
            assert all(p.grad is not None for p in model.last_shared_layer())
        assert all(len(reached[p]) > 1 for p in shared)
        for name, parameters in own.items():  # an expert may be dead at the start
            assert all(reached[p] <= {name} for p in parameters)

    @each
    def test_as_many_parameters_as_the_equations_say(self, label):
        everything = (913, 1595, 1748, 3076, 2048, 3617, 1886, 913, 2153, 2329, 1729)
        shared = (396, 1078, 1060, 396, 1063, 2452, 1036, 396, 1016, 396, 663)
        expected = dict(zip(KINDS, zip(everything, shared, strict=True), strict=True))
        schema = Schema(("x", "z"), {"user_id": 5, "item": 3})
        model = build(label, schema=schema, embedding_dim=8, tower=(16,))
        assert (count_parameters(model), sum(p.numel() for p in model.shared_parameters())) == expected[label]

    @each
    def test_one_task_and_one_expert_are_the_single_task_net(self, label):
        if "level" in label or label in ("PLE, shared experts only", "STEM", "PEPNet"):
            pytest.skip("more than one level, another embedding or gate")
        one = {"MMoE": {"n_experts": 1}, "CGC": {"n_specific": 0}}.get(label, {})
        single = SingleTask(SCHEMA, FUNNEL[0], **SMALL, hidden=(12, 8))
        model = build(label, FUNNEL[:1], **one)
        layers = [p for name, p in model.named_parameters() if "gate" not in name and "stitch" not in name]
        with torch.no_grad():
            for ours, theirs in zip(layers, single.parameters(), strict=True):
                ours.copy_(theirs)
        assert torch.allclose(call(single)["click"], call(model)["click"], atol=1e-6)

    @each
    def test_learns_from_masked_labels_whatever_the_order_of_tasks(self, label):
        turned, order = (MIXED_TASKS[2], MIXED_TASKS[0], MIXED_TASKS[1]), torch.tensor([2, 0, 1])
        chain = {"chain": ("click", "dwell")} if label == "AITM" else {}
        model, other = build(label, **chain), build(label, turned, seed=1, **chain)
        state = model.state_dict()
        for name, value in state.items():
            if name.startswith("stitches"):
                state[name] = value[order][:, order]
            elif label == "STEM" and name.startswith("gates"):  # a row an expert, the shared one last
                state[name] = value[[2, 0, 1, 3]]
            elif "shared_gate" in name:
                n, own = KINDS[label][1]["n_specific"], 3 * KINDS[label][1]["n_specific"]
                groups = value[:own].unflatten(0, (3, n))[order].flatten(0, 1) if n else value[:0]
                state[name] = torch.cat([groups, value[own:]])
        other.load_state_dict(state)
        histories, how = [], {"epochs": 6, "batch_size": 64, "lr": 5e-3, "progress": False}
        for hidden, (net, tasks) in enumerate(((model, MIXED_TASKS), (other, turned))):
            data = hide_labels(SPLITS.train, "click", 200).select([task.name for task in tasks])
            data.labels["click"] = data.labels["click"].masked_fill(~data.masks["click"], hidden)
            histories.append(fit(net, data, **how))
        for task in MIXED_TASKS:
            ours, theirs = (history.curve(task.name, split="train").to_numpy() for history in histories)
            assert ours == pytest.approx(theirs, abs=1e-3) and ours[-1] < ours[0], task

    @each
    def test_a_sweep_ends_where_fit_ends(self, label):
        weights, data = {"click": 1.0, "kind": 0.5, "dwell": 2.0}, SPLITS.train.take(range(200))
        settings = {"epochs": 2, "batch_size": 50, "progress": False}
        both = [weights, dict.fromkeys(weights, 1.0)]
        found = sweep(lambda: build(label, seed=None), data, weightings=both, seeds=[4], **settings)
        model = build(label, seed=4)
        fit(model, data, weights=weights, seed=4, **settings)
        theirs = predict(found.model(0), SPLITS.test)
        for name, values in predict(model, SPLITS.test).items():
            assert torch.allclose(values, theirs[name], atol=2e-4), name

    @each
    def test_dropout_acts_in_training_only(self, label):
        model = build(label, dropout=0.5)
        assert not torch.equal(call(model)["click"], call(model)["click"])
        model.eval()
        assert torch.equal(call(model)["click"], call(model)["click"])

    @each
    @pytest.mark.parametrize("schema", [Schema(("x", "z"), {}), Schema((), {"user_id": 5, "item": 3})])
    def test_only_numbers_or_only_categories(self, label, schema):
        if label == "PEPNet" and not schema.categorical:
            pytest.skip("a scene is a category")
        numeric = torch.randn(9, len(schema.numeric))
        categorical = torch.randint(0, 3, (9, len(schema.categorical)))
        assert build(label, schema=schema)(numeric, categorical)["kind"].shape == (9, 3)


class TestWithStrategies:
    @each
    @pytest.mark.parametrize("method", ["GradNorm", *METHODS])
    def test_a_step_moves_every_parameter(self, label, method):
        for at in ("representation", "parameters"):
            model = build(label)
            before = {name: p.detach().clone() for name, p in model.named_parameters()}
            strategy = (
                CombinedGradients(MIXED_TASKS, method, at=at) if method in METHODS else GradNorm(MIXED_TASKS)
            )
            sgd, n = torch.optim.SGD(model.parameters(), lr=0.1), len(SPLITS.train)
            list(training_steps(model, SPLITS.train, sgd, weights=strategy, batch_size=n))
            for name, p in model.named_parameters():  # weights that sum to zero would leave it where it was
                assert torch.isfinite(p).all() and not torch.equal(p, before[name]), name

    @each
    @both
    @pytest.mark.parametrize("at", ["representation", "parameters"])
    def test_combined_weights_reach_the_shared_parameters_alone_and_the_gramian_is_exact(
        self, label, tasks, at
    ):
        model, plain, grams, batch = build(label, tasks), build(label, tasks), [], rows(200)
        if tasks is FUNNEL:
            batch = Batch(batch.numeric, batch.categorical, {t.name: batch.labels["click"] for t in tasks})
        weights = [1.0, 2.0, 0.5]
        strategy = CombinedGradients(tasks, lambda g: grams.append(g) or np.array(weights), at=at)
        strategy.begin(model, None)
        strategy.backward(strategy.losses(model, batch), model)
        losses = list(task_losses(tasks, call(plain, batch), batch).values())
        shared, how = list(plain.shared_parameters()), {"retain_graph": True, "materialize_grads": True}
        grads = [torch.autograd.grad(loss, shared, **how) for loss in losses]
        sum(losses).backward()
        for p, *parts in zip(shared, *grads, strict=True):
            p.grad = sum(w * part for w, part in zip(weights, parts, strict=True))
        if label == "STEM" and at == "representation":  # a task's own table and expert lie below
            for task, w in zip(tasks, weights, strict=True):
                for p in (*plain.own[task.name].parameters(), *plain.experts[task.name].parameters()):
                    p.grad *= w
        for p, q in zip(plain.parameters(), model.parameters(), strict=True):
            assert torch.allclose(p.grad, q.grad, atol=1e-6)
        if at == "parameters":
            matrix = torch.stack([torch.cat([g.flatten() for g in parts]) for parts in grads]).double()
            assert torch.allclose(torch.from_numpy(grams[0]), matrix @ matrix.T, rtol=1e-4, atol=1e-9)


def softmax(values):
    powers = [torch.exp(value - max(values)) for value in values]
    return [power / sum(powers) for power in powers]


def by_hand(network, x):
    """Linear and ReLU layers, one row and one unit at a time: x (in,) → (out,)."""
    for layer in (module for module in network if isinstance(module, nn.Linear)):
        x = torch.stack(
            [(unit @ x + b).clamp(min=0) for unit, b in zip(layer.weight, layer.bias, strict=True)]
        )
    return x


def mixture(gate, x, outputs):
    shares = softmax([unit @ x + b for unit, b in zip(gate.weight, gate.bias, strict=True)])
    return sum(share * output for share, output in zip(shares, outputs, strict=True))


class TestAgainstThePapersEquations:
    """Row by row and expert by expert: what each tower reads."""

    def compare(self, model, read_by_towers):
        batch = rows(6)
        got, features = call(model, batch), model.features(batch.numeric, batch.categorical)
        for i in range(6):
            for name, h in read_by_towers(features[i]).items():
                tower = model.towers[name]
                expected = tower.head.weight @ by_hand(tower.hidden, h) + tower.head.bias
                assert torch.allclose(got[name][i], expected.squeeze(), atol=1e-5), name

    def test_mmoe(self):
        model = build("MMoE")

        def read(x):
            outputs = [by_hand(expert, x) for expert in model.experts]
            return {name: mixture(gate, x, outputs) for name, gate in model.gates.items()}

        self.compare(model, read)

    @pytest.mark.parametrize("label", [name for name in KINDS if name.startswith(("CGC", "PLE"))])
    def test_ple(self, label):
        model = build(label)
        names = [task.name for task in MIXED_TASKS]

        def read(x):
            inputs = dict.fromkeys([*names, "shared"], x)
            for level in model.levels:
                shared = [by_hand(expert, inputs["shared"]) for expert in level.shared]
                own = {name: [by_hand(expert, inputs[name]) for expert in level.own[name]] for name in names}
                after = {n: mixture(level.gates[n], inputs[n], own[n] + shared) for n in names}
                if level is not model.levels[-1]:
                    everything = own["click"] + own["kind"] + own["dwell"] + shared
                    after["shared"] = mixture(level.shared_gate, inputs["shared"], everything)
                inputs = after
            return inputs

        self.compare(model, read)

    def test_cross_stitch(self):
        model = build("cross-stitch")
        with torch.no_grad():
            for stitch in model.stitches:
                stitch.add_(0.3 * torch.randn_like(stitch))

        def read(x):
            hidden = [x, x, x]
            for layer, stitch in zip(model.layers, model.stitches, strict=True):
                own = [by_hand(column, h) for column, h in zip(layer.values(), hidden, strict=True)]
                hidden = [sum(stitch[t, s] * own[s] for s in range(3)) for t in range(3)]
            return {task.name: h for task, h in zip(MIXED_TASKS, hidden, strict=True)}

        self.compare(model, read)

    def test_aitm(self):
        model = build("AITM", chain=("click", "dwell", "kind"))

        def attend(link, before, own):
            pair = [by_hand(link.info, before), own]
            shares = softmax([(link.query(u) @ link.key(u)) / len(own) ** 0.5 for u in pair])
            return sum(share * link.value(u) for share, u in zip(shares, pair, strict=True))

        def read(x):
            q = {name: by_hand(column, x) for name, column in model.columns.items()}
            dwell = attend(model.transfers["dwell"], q["click"], q["dwell"])
            return q | {"dwell": dwell, "kind": attend(model.transfers["kind"], dwell, q["kind"])}

        self.compare(model, read)

    def test_stem_and_no_gradient_into_the_experts_of_others(self):
        model, batch = build("STEM"), rows(6)
        names = [task.name for task in MIXED_TASKS]
        views = {name: model.own[name](batch.numeric, batch.categorical) for name in names}

        def read(x):
            (i,) = (model.features(batch.numeric, batch.categorical) == x).all(-1).nonzero()[0]
            outputs = [by_hand(model.experts[name], views[name][i]) for name in names]
            outputs.append(by_hand(model.experts["shared"], x))
            return {name: mixture(gate, views[name][i] + x, outputs) for name, gate in model.gates.items()}

        self.compare(model, read)
        call(model)["click"].sum().backward()
        for group in (model.own, model.experts):
            for name, module in group.items():
                reached = any(p.grad is not None and p.grad.any() for p in module.parameters())
                assert reached == (name in ("click", "shared"))
        assert model.features.embedding.weight.grad.any()

    def test_pepnet_and_a_gate_of_one_is_the_shared_bottom(self):
        model, batch = build("PEPNet"), rows(6)
        scenes = model.scenes(batch.categorical[:, model.column])
        features = model.features(batch.numeric, batch.categorical)

        def unit(gate, x):
            return 2 * torch.sigmoid(gate[2].weight @ by_hand(gate[:2], x) + gate[2].bias)

        def read(x):
            (i,) = (features == x).all(-1).nonzero()[0]
            scaled = x * unit(model.epnet, torch.cat([scenes[i], x]))
            shared, prior = by_hand(model.bottom, scaled), torch.cat([scenes[i], scaled])
            return {name: shared * unit(gate, prior) for name, gate in model.ppnet.items()}

        self.compare(model, read)
        with torch.no_grad():
            for gate in (model.epnet, *model.ppnet.values()):
                gate[2].weight.zero_(), gate[2].bias.zero_()
        plain = SharedBottom(SCHEMA, MIXED_TASKS, **SMALL, hidden=(12, 8))
        plain.load_state_dict(model.state_dict(), strict=False)
        for name, logits in call(plain).items():
            assert torch.allclose(logits, call(model)[name], atol=1e-6)

    def test_aitms_calibrator_as_the_notebook_has_it(self):
        text = (ROOT / "notebooks" / "source" / "06_sharing_architectures.py").read_text(encoding="utf-8")
        cell = text[text.index("class Calibrated") :].split("# %%")[0]
        scope = {"torch": torch, "Fixed": Fixed, "task_losses": task_losses, "TASKS": ["click", "purchase"]}
        exec(cell, scope)
        tasks, weights = (Task("click"), Task("purchase")), {"click": 1.0, "purchase": 3.0}
        model, batch = build("AITM", tasks), rows(200)
        batch.labels["purchase"] = batch.labels["click"]
        strategy = scope["Calibrated"](tasks, weights)
        strategy.backward(strategy.losses(model, batch), model)
        logits = call(model, batch)
        over = (logits["purchase"].sigmoid() - logits["click"].sigmoid()).clamp(min=0)
        assert over.any()
        losses = task_losses(tasks, logits, batch)
        total = losses["click"] + 3 * losses["purchase"] + 0.6 * over.mean()
        for p, g in zip(
            model.parameters(), torch.autograd.grad(total, list(model.parameters())), strict=True
        ):
            assert torch.allclose(p.grad, g, atol=1e-6)

    def test_dropped_experts_leave_gates_that_sum_to_one(self):
        model, batch = build("MMoE", expert_dropout=0.6), rows(400)
        gates = model.expert_use(batch.numeric, batch.categorical)["click"]
        assert torch.allclose(gates.sum(-1), torch.ones(400), atol=1e-5)
        assert 0.3 < (gates == 0).float().mean() < 0.7
        assert (model.eval().expert_use(batch.numeric, batch.categorical)["click"] > 0).all()


class TestESMM:
    def model(self, seed=0, scale=1.0):
        torch.manual_seed(seed)
        model = ESMM(SCHEMA, FUNNEL, **SMALL)
        with torch.no_grad():
            for tower in model.towers.values():
                tower.head.weight.mul_(scale)
        return model

    @pytest.mark.parametrize("scale", [1, 30, 1e3, 1e6])
    def test_a_later_event_is_never_likelier_and_gradients_stay_finite(self, scale):
        for seed in range(5):
            logits = call(model := self.model(seed, scale), rows(400))
            assert (logits["purchase"] <= logits["cart"]).all() and (logits["cart"] <= logits["click"]).all()
            nn.functional.softplus(-logits["purchase"]).sum().backward()
            assert all(torch.isfinite(p.grad).all() for p in model.parameters())

    def test_probabilities_and_gradients_are_those_of_the_product(self):
        model, batch = self.model().double(), rows(50)
        numeric, labels = batch.numeric.double(), (torch.arange(50) % 3 == 0).double()
        inside = {k: v.sigmoid() for k, v in model.conditional(numeric, batch.categorical).items()}
        got = model(numeric, batch.categorical)
        product = inside["click"] * inside["cart"]
        assert torch.allclose(got["cart"].sigmoid(), product)
        assert torch.allclose(got["purchase"].sigmoid(), product * inside["purchase"])
        losses = [
            nn.functional.binary_cross_entropy(product, labels),
            nn.functional.binary_cross_entropy_with_logits(got["cart"], labels),
        ]
        parts = list(model.bottom.parameters())
        by_product, by_logit = (torch.autograd.grad(loss, parts, retain_graph=True) for loss in losses)
        assert all(torch.allclose(a, b) for a, b in zip(by_product, by_logit, strict=True))

    def test_chain_sets_the_order_and_others_stand_alone(self):
        logits = call(model := ESMM(SCHEMA, FUNNEL, chain=("cart", "click")))
        assert (logits["click"] <= logits["cart"]).all() and model.settings["chain"] == ("cart", "click")
        assert not list(model.task_parameters("cart")) and list(model.task_parameters("purchase"))

    def log(self, bought_anyway=False):
        """A conversion log: nobody knows of a purchase where there was no click."""
        tasks = (Task("click"), Task("dwell"))  # dwell, known only after a click, becomes the purchase
        frames = {
            name: frame.assign(dwell=(frame["dwell"] > 0.5).where(frame["click"] == 1))
            for name, frame in SPLITS.frames.items()
        }
        if bought_anyway:
            row = frames["train"].index[frames["train"]["click"] == 0][0]
            frames["train"].loc[row, "dwell"] = 1.0
        return prepare(frames, tasks, ["x", "z"], ["user_id", "item"]).train, tasks

    def test_a_conversion_log_is_refused_unless_said_to_mean_not_bought(self):
        train, tasks = self.log()
        make = lambda: ESMM(SCHEMA, tasks, **SMALL)  # noqa: E731
        with pytest.raises(ValueError, match="complete_chain"):
            fit(make(), train, epochs=1, progress=False)
        with pytest.raises(ValueError, match="complete_chain"):
            sweep(make, train, weightings=[{"click": 1, "dwell": 1}], progress=False)
        whole = complete_chain(train, ("click", "dwell"))
        assert torch.equal(whole.labels["dwell"], train.labels["dwell"]) and whole.masks["dwell"].all()
        torch.manual_seed(1)
        fit(model := make(), whole, epochs=60, lr=1e-2, progress=False)
        bought = predict(model, whole)["dwell"].mean().item()  # of all rows; of the clicked ones far more
        assert bought == pytest.approx(whole.labels["dwell"].mean().item(), abs=0.03)

    def test_an_unknown_purchase_after_a_click_stays_unknown_and_one_without_a_click_is_refused(self):
        train, tasks = self.log()
        clicked = (train.labels["click"] == 1).nonzero()[0]
        train.masks["dwell"][clicked] = False
        whole = complete_chain(train, ("click", "dwell"))
        assert whole.masks["dwell"].sum() == len(train) - 1 and not whole.masks["dwell"][clicked]
        fit(ESMM(SCHEMA, tasks, **SMALL), whole, epochs=1, progress=False)
        train, _ = self.log(bought_anyway=True)
        for data in (train, complete_chain(train, ("click", "dwell"))):
            with pytest.raises(ValueError, match="'dwell' without 'click'"):
                fit(ESMM(SCHEMA, tasks, **SMALL), data, epochs=1, progress=False)


class TestMatching:
    def test_counts_are_as_near_as_widths_allow(self):
        kinds = {"cross-stitch": CrossStitch, "MMoE": (MMoE, {"n_experts": 6}), "PLE": (PLE, {"levels": 2})}
        kinds |= {"AITM": AITM, "shared bottom": SharedBottom, "ESMM": (ESMM, {"chain": ("click",)})}
        like = SharedBottom(SCHEMA, MIXED_TASKS, hidden=(128, 64))
        torch.manual_seed(0)
        builds = match_parameters(like, kinds, embedding_dim=8)
        drawn = torch.rand(1)
        torch.manual_seed(0)
        assert torch.equal(torch.rand(1), drawn)  # matching draws nothing
        for label, make in builds.items():
            assert count_parameters(make()) == pytest.approx(count_parameters(like), rel=0.06), label
        assert builds["MMoE"]().settings["n_experts"] == 6
        assert builds["shared bottom"]().settings == like.settings

    def test_a_kind_that_cannot_be_small_enough(self):
        like = SharedBottom(SCHEMA, MIXED_TASKS, hidden=(2,))
        with pytest.raises(ValueError, match="fewer experts"):
            match_parameters(like, {"MMoE": (MMoE, {"n_experts": 50})})


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: ESMM(SCHEMA, MIXED_TASKS), "'kind', 'dwell'.* not binary"),
        (lambda: ESMM(SCHEMA, FUNNEL, chain=("click", "like")), "names of click, cart, purchase"),
        (lambda: ESMM(SCHEMA, FUNNEL, chain=("click", "click")), "different names"),
        (lambda: AITM(SCHEMA, FUNNEL, chain="click"), "different names"),
        (lambda: AITM(SCHEMA, FUNNEL, chain=()), "chain is"),
    ],
)
def test_errors_in_words(make, words):
    with pytest.raises(ValueError, match=words):
        make()
