"""Private training: the clipped sum against a loop over rows, the accountant against Opacus, what a row can move."""

from __future__ import annotations

import pytest
import torch
from helpers import toy_splits
from nb10_privacy import fit_private, noise_for

from mtl_helpers.losses import label_counts, task_losses, weighted_sum
from mtl_helpers.models import MMoE, SharedBottom
from mtl_helpers.production.privacy import clipped_sum, epsilon
from mtl_helpers.training import evaluate

WEIGHTS = {"click": 1.0, "kind": 0.5, "dwell": 2.0}


def whole(data):
    return next(data.batches(len(data), shuffle=False))


def by_loop(model, data, clip):
    """The same sum, one row at a time."""
    total = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for i in range(len(data)):
        row = whole(data.take([i]))
        losses = task_losses(model.tasks, model(row.numeric, row.categorical), row)
        grads = torch.autograd.grad(weighted_sum(losses, WEIGHTS), [*model.parameters()], allow_unused=True)
        length = sum(g.square().sum() for g in grads).sqrt()
        for part, g in zip(total.values(), grads, strict=True):
            part += g * (clip / length).clamp(max=1)
    return total


def by_opacus(model, data, clip):
    opacus, batch = pytest.importorskip("opacus"), whole(data)
    watched, sgd = (
        opacus.GradSampleModule(model, loss_reduction="sum"),
        torch.optim.SGD(model.parameters(), lr=1),
    )
    how = {"noise_multiplier": 0.0, "max_grad_norm": clip, "expected_batch_size": 1}
    private = opacus.optimizers.DPOptimizer(sgd, loss_reduction="sum", **how)
    losses = task_losses(model.tasks, watched(batch.numeric, batch.categorical), batch)
    counts = dict(zip(losses, label_counts(model.tasks, batch), strict=True))
    weighted_sum({name: loss * counts[name] for name, loss in losses.items()}, WEIGHTS).backward()
    private.clip_and_accumulate()
    return {name: p.summed_grad for name, p in model.named_parameters()}


@pytest.mark.parametrize("kind", [SharedBottom, MMoE])
@pytest.mark.parametrize("clip", [0.5, 100.0])
@pytest.mark.parametrize("theirs", [by_loop, by_opacus])
def test_clipped_sum_is_that_of_a_loop_over_rows_and_of_opacus(kind, clip, theirs):
    torch.manual_seed(0)
    splits = toy_splits()
    model, rows = kind(splits.schema, splits.tasks), splits.train.take(range(30))
    assert not rows.masks["kind"].all() and not rows.masks["dwell"].all()
    found, wanted = clipped_sum(model, whole(rows), WEIGHTS, clip), theirs(model, rows, clip)
    assert set(found) == set(wanted)
    for name, part in wanted.items():
        torch.testing.assert_close(found[name], part, rtol=1e-4, atol=1e-5)


# what Opacus 1.6.0 says at δ = 1e-5: (noise, chance of a row, steps)
OPACUS = {
    (1.0, 0.02, 1000): 4.3242,
    (1.5, 0.02, 1000): 2.1588,
    (2.0, 0.05, 250): 1.9284,
    (4.0, 0.05, 250): 0.8245,
}


@pytest.mark.parametrize("case", OPACUS)
def test_accountant_agrees_with_stored_figures_of_opacus_and_is_no_less(case):
    assert OPACUS[case] - 1e-4 <= epsilon(*case) <= 1.005 * OPACUS[case]


def test_accountant_agrees_with_opacus():
    accountants = pytest.importorskip("opacus.accountants")
    for noise in (1.0, 2.0, 5.0):
        theirs = accountants.RDPAccountant()
        theirs.history = [(noise, 0.1, 300)]
        # it tries orders between the whole ones, too: tighter at low noise
        wanted = theirs.get_epsilon(1e-5)
        assert wanted - 1e-3 <= epsilon(noise, 0.1, 300) <= 1.06 * wanted


def test_more_steps_cost_more_and_more_noise_less():
    assert epsilon(2, 0.05, 100) < epsilon(2, 0.05, 400) < epsilon(1, 0.05, 400)
    for wanted in (0.5, 2.0, 8.0):
        noise = noise_for(wanted, 0.05, 200)
        assert epsilon(noise, 0.05, 200) == pytest.approx(wanted, rel=1e-3)


def test_training_learns_repeats_and_draws_the_wanted_number_of_rows(monkeypatch):
    splits, sizes = toy_splits(3000), []
    monkeypatch.setattr(
        "nb10_privacy.clipped_sum",
        lambda model, batch, *rest: sizes.append(len(batch)) or clipped_sum(model, batch, *rest),
    )

    def trained(noise):
        torch.manual_seed(0)
        model = SharedBottom(splits.schema, splits.tasks)
        fit_private(model, splits.train, WEIGHTS, clip=2.0, noise=noise, rows=200, steps=60, lr=1e-2)
        return model

    quiet, again, loud = trained(0.0), trained(0.0), trained(50.0)
    assert all(torch.equal(a, b) for a, b in zip(quiet.parameters(), again.parameters(), strict=True))
    aucs = [evaluate(model, splits.valid)["click"]["auc"] for model in (quiet, loud)]
    assert aucs[0] > 0.8 > aucs[1]
    assert 190 < sum(sizes) / len(sizes) < 210 and len(set(sizes)) > 10  # Poisson sampling
