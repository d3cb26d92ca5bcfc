"""Losses for rare, selected and missing labels against their equations written another way, and the networks."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import toy_splits
from nb08_parts import selection_loss
from scipy.optimize import minimize_scalar

from mtl_helpers.data import Schema, Task
from mtl_helpers.models import GatedBottom, HistoryBottom, RowGAN, SharedBottom
from mtl_helpers.models.rare import (
    Contrast,
    adjusted_logits,
    corrupt,
    doubly_robust,
    focal_loss,
    focal_probability,
    info_nce,
)

SCHEMA = Schema(("price", "age"), {"sub_category": 5, "region": 3})
TASKS = (Task("click"), Task("purchase"))


def rows_of(n: int = 40):
    torch.manual_seed(0)
    return torch.randn(n, 2), torch.stack([torch.randint(1, 5, (n,)), torch.randint(3, (n,))], dim=1)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_loss_is_cross_entropy_times_how_wrong_the_model_was(gamma):
    z, y = np.random.default_rng(0).normal(0, 3, 30), np.arange(30) % 3 == 0
    said = np.where(y, 1 / (1 + np.exp(-z)), 1 / (1 + np.exp(z)))
    found = focal_loss(torch.tensor(z), torch.tensor(y).double(), gamma)
    assert found.item() == pytest.approx(np.mean((1 - said) ** gamma * -np.log(said)))
    far = torch.tensor([200.0, -200.0], requires_grad=True)
    focal_loss(far, torch.tensor([0.0, 1.0]), gamma).backward()
    assert far.grad.tolist() == pytest.approx([0.5, -0.5])


@pytest.mark.parametrize(("truth", "gamma"), [*itertools.product((0.003, 0.2, 0.5, 0.9), (0.5, 1.0, 3.0))])
def test_focal_probability_undoes_what_a_minimiser_of_the_focal_loss_says(truth, gamma):
    def expected(z):
        z = torch.full((2,), z, dtype=torch.float64)
        each = [focal_loss(z, torch.full((2,), label).double(), gamma).item() for label in (1.0, 0.0)]
        return truth * each[0] + (1 - truth) * each[1]

    z = minimize_scalar(expected, bounds=(-12, 12), method="bounded", options={"xatol": 1e-9}).x
    said = torch.tensor([1 / (1 + math.exp(-z))])
    assert focal_probability(said, gamma).item() == pytest.approx(truth, rel=1e-3)
    assert abs(said.item() - truth) > 1e-3 or truth == 0.5  # what it says is not the probability


def test_adjusted_logits_weigh_the_odds_by_the_prior():
    f, rate, tau = torch.linspace(-3, 3, 7).double(), 0.02, 0.7
    odds = f.exp() * (rate / (1 - rate)) ** tau
    torch.testing.assert_close(adjusted_logits(f, rate, tau).sigmoid(), odds / (1 + odds))


def test_weights_of_ips_and_dr_are_right_on_average_over_what_is_seen():
    """All 2ⁿ ways to see n rows, each with its probability: the expectation, without a random draw."""
    rng = np.random.default_rng(0)
    error, p, guess = rng.random(6), rng.uniform(0.1, 0.9, 6), 1 + rng.random(6)
    wrong = np.clip(p + 0.3, 0, 1)

    def expected(propensity, imputed):
        total = 0.0
        for seen in itertools.product((0, 1), repeat=6):
            chance = np.prod(np.where(seen, p, 1 - p))
            given = map(torch.tensor, (error, np.array(seen, float), propensity))
            total += chance * doubly_robust(*given, torch.tensor(imputed), clip=1e-6).item()
        return total

    assert expected(p, np.zeros(6)) == pytest.approx(error.mean())
    assert expected(p, guess) == pytest.approx(error.mean())  # a wrong guess, the right propensity
    assert expected(wrong, error) == pytest.approx(error.mean())  # the right guess, a wrong propensity
    assert expected(wrong, np.zeros(6)) != pytest.approx(error.mean(), rel=0.05)
    assert expected(wrong, guess) != pytest.approx(error.mean(), rel=0.01)


def test_losses_of_six_models_of_selected_labels_are_their_equations():
    """As the study of notebook 08 trains them; in units of the losses of constants."""
    rng = np.random.default_rng(0)
    logits = {name: rng.normal(-1, 1, 50) for name in ("click", "purchase", "imputed")}
    click = rng.random(50) < 0.4
    bought = click & (rng.random(50) < 0.5)
    units = {"click": 0.5, "given": 0.25, "purchase": 0.125}
    p, q, r = (1 / (1 + np.exp(-logits[name])) for name in logits)

    def entropy(label, said):
        return -(label * np.log(said) + (1 - label) * np.log(1 - said))

    weight, error = click / np.maximum(p, 0.05), entropy(bought, q) / 0.25
    guess = entropy(r, q) / 0.25
    ips = np.mean(weight * error)
    dr = np.mean(guess + weight * (error - guess)) + np.mean(weight * (error - guess) ** 2)
    seen, both = entropy(click, p).mean() / 0.5, entropy(bought, p * q).mean() / 0.125
    expected = {"naive": seen + error[click].mean(), "ESMM": seen + both, "IPS": seen + ips, "DR": seen + dr}
    expected |= {"ESCM²-IPS": seen + both + 3 * ips, "ESCM²-DR": seen + both + 3 * dr}
    given = {name: torch.tensor(value) for name, value in logits.items()}
    labels = {"click": torch.tensor(click).double(), "purchase": torch.tensor(bought).double()}
    for name, value in expected.items():
        assert selection_loss(name, given, labels, units, 3.0).item() == pytest.approx(value), name


def test_propensities_of_zero_are_clipped_and_a_clip_of_zero_is_refused():
    one, nil = torch.ones(4), torch.zeros(4)
    assert doubly_robust(one, one, nil, clip=0.1).item() == pytest.approx(10)
    assert doubly_robust(one, nil, nil, imputed=2 * one).item() == 2
    with pytest.raises(ValueError, match="clip is 0"):
        doubly_robust(one, one, nil, clip=0.0)


def test_corruption_takes_cells_of_the_same_column_at_the_given_rate():
    numeric = torch.arange(4000.0).reshape(2000, 2) + torch.tensor([0.0, 1e6])
    categorical = torch.arange(2000)[:, None] + torch.tensor([0, 10_000])
    torch.manual_seed(0)
    made = corrupt(numeric, categorical, 0.3)
    for cells, changed, hit in zip((numeric, categorical), made[:2], made[2:], strict=True):
        assert hit.float().mean().item() == pytest.approx(0.3, abs=0.02)
        assert torch.equal(changed[~hit], cells[~hit])
        for column in range(2):
            assert torch.isin(changed[:, column], cells[:, column]).all()
        both = hit.all(1)  # each column of a row draws a row of its own
        assert (changed[both] - changed[both].roll(1, 1)).unique(dim=0).shape[0] > 100
    kept = corrupt(numeric, categorical, 0.0)
    assert torch.equal(kept[0], numeric)
    assert torch.equal(kept[1], categorical)


def test_info_nce_is_the_mean_log_of_a_softmax_of_cosines():
    a, b = np.random.default_rng(0).normal(size=(2, 7, 4))
    total = 0.0
    for i in range(7):
        cosines = [a[i] @ b[k] / np.linalg.norm(a[i]) / np.linalg.norm(b[k]) for k in range(7)]
        weights = np.exp(np.array(cosines))
        total -= math.log(weights[i] / weights.sum())
    assert info_nce(torch.tensor(a), torch.tensor(b)).item() == pytest.approx(total / 7)


def test_the_contrast_reaches_the_bottom_and_can_be_learned():
    torch.manual_seed(0)
    numeric, categorical = rows_of(300)
    numeric[:, 1] = 2 * numeric[:, 0] + categorical[:, 0]  # something to find
    task = Contrast(SharedBottom(SCHEMA, TASKS, 4))
    first, optimizer = task(numeric, categorical).item(), torch.optim.Adam(task.parameters(), 1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        task(numeric, categorical).backward()
        assert all(p.grad is not None for p in task.model.shared_parameters())
        optimizer.step()
    assert task(numeric, categorical).item() < first - 0.1
    assert math.isfinite(task(numeric[:1], categorical[:1]).item())


def test_gates_of_one_leave_a_shared_bottom_as_it_is():
    torch.manual_seed(0)
    gated = GatedBottom(SCHEMA, TASKS, 4)
    for gate in gated.gates.values():
        torch.nn.init.zeros_(gate[-1].weight), torch.nn.init.zeros_(gate[-1].bias)
    plain = SharedBottom(SCHEMA, TASKS, 4)
    plain.load_state_dict(
        {k: v for k, v in gated.state_dict().items() if not k.startswith(("gates", "column"))}
    )
    for name, logits in gated(*rows_of()).items():
        torch.testing.assert_close(logits, plain(*rows_of())[name])


def test_a_gate_squeezes_each_column_to_its_mean_and_is_its_tasks_own():
    gated = GatedBottom(SCHEMA, TASKS, 4)
    features = gated.features(*rows_of())
    squeezed = torch.cat(
        [features[:, :4].mean(1, True), features[:, 4:8].mean(1, True), features[:, 8:]], dim=1
    )
    for name, found in gated.gate(features).items():
        torch.testing.assert_close(found, 2 * torch.sigmoid(gated.gates[name](squeezed)))
    gated(*rows_of())["click"].sum().backward()
    assert gated.gates["click"][0].weight.grad is not None
    assert gated.gates["purchase"][0].weight.grad is None


def history_rows(n: int = 30, length: int = 4):
    numeric, categorical = rows_of(n)
    events = torch.randint(0, 5, (n, length)) * (torch.rand(n, length) < 0.7)
    events[0] = 0
    return torch.cat([numeric, torch.rand(n, 2 * length)], 1), torch.cat([categorical, events], 1)


def test_history_sums_weighted_events_and_skips_gaps():
    torch.manual_seed(0)
    model = HistoryBottom(SCHEMA, TASKS, 4, length=4)
    numeric, categorical = history_rows()
    weights, events = model.attention(numeric, categorical)
    there = categorical[:, -4:] > 0
    assert (weights[~there] == 0).all()
    for i, k in ((1, 0), (2, 3), (5, 1)):
        hours, bought = numeric[i, 2 + k], numeric[i, 6 + k]
        event, wanted = model.event.weight[categorical[i, 2 + k]], model.event.weight[categorical[i, 0]]
        torch.testing.assert_close(events[i, k], torch.cat([event, hours[None], bought[None]]))
        said = model.weigh.weigh(torch.cat([event, wanted, event * wanted, hours[None], bought[None]])).item()
        assert weights[i, k].item() == pytest.approx(said * there[i, k].item(), abs=1e-6)
    order = torch.tensor([3, 1, 0, 2])  # the order of events says nothing but their time
    turned = torch.cat([categorical[:, :2], categorical[:, 2:][:, order]], 1)
    moved = torch.cat([numeric[:, :2], numeric[:, 2:6][:, order], numeric[:, 6:][:, order]], 1)
    for name, logits in model(numeric, categorical).items():
        torch.testing.assert_close(logits, model(moved, turned)[name])


def rare_rows():
    part = toy_splits(tasks=(Task("click"),))
    return part.schema, replace(part.train, numeric=part.train.numeric + 3)


def test_gan_makes_rows_of_the_schema_and_comes_nearer_to_the_true_ones():
    torch.manual_seed(0)
    schema, train = rare_rows()
    gan = RowGAN(schema)
    true = gan.rows(train.numeric, train.categorical)
    assert true.shape[1] == len(schema.numeric) + sum(schema.categorical.values())
    picked = true[train.labels["click"] == 1]
    before = gan.distance(picked)
    history = gan.train_on(train, "click", steps=150)
    assert history["step"].tolist() == [50, 100, 150]
    assert history.attrs["stopped"] == ""
    assert gan.distance(picked) < before / 2
    numeric, categorical = gan.sample(20)
    assert numeric.shape == (20, 2)
    assert (categorical < torch.tensor(list(schema.categorical.values()))).all()
    made = gan.make(torch.ones(20))[:, 2:]
    assert made.sum(1).tolist() == pytest.approx([2.0] * 20)  # one category a column


def test_penalty_is_zero_for_a_critic_of_slope_one():
    schema, train = rare_rows()
    gan = RowGAN(schema)
    n = sum(gan.widths)
    gan.critic = torch.nn.Linear(n + 1, 1)
    torch.nn.init.constant_(gan.critic.weight, 1 / math.sqrt(n))
    true = gan.rows(train.numeric[:9], train.categorical[:9])
    assert gan.penalty(true, gan.make(torch.ones(9)), torch.ones(9)).item() == pytest.approx(0, abs=1e-10)


def test_a_generator_that_diverges_is_stopped_and_named_and_the_best_kept():
    torch.manual_seed(0)
    schema, train = rare_rows()
    gan = RowGAN(schema)
    history = gan.train_on(train, "click", steps=500, lr=3.0, penalty=0.0)
    assert "diverged at step" in history.attrs["stopped"]
    assert all(value.isfinite().all() for value in gan.state_dict().values())
    assert gan.sample(3)[0].isfinite().all()


@pytest.mark.parametrize("label", [0, 1])
def test_a_generator_refuses_rows_of_one_class(label):
    schema, train = rare_rows()
    one = train.take((train.labels["click"] == label).nonzero().squeeze(1))
    with pytest.raises(ValueError, match="both classes"):
        RowGAN(schema).train_on(one, "click", steps=1)
