"""The plane of two losses: published values, gradients by autograd, closed forms against the general methods."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mtl_helpers.gradients import METHODS
from mtl_helpers.widgets.landscape import (
    FRONT,
    STARTS,
    WALKERS,
    descend,
    plane_gradients,
    plane_losses,
    two_task_weights,
)


def test_published_values():
    points = torch.tensor([[-8.5, 7.5], [9.0, 9.0], [0.0, -8.3552]], dtype=torch.float64)
    expected = torch.tensor([[6.5524, 7.9008], [7.9440, 6.6915], [-15.0916, -15.0916]], dtype=torch.float64)
    assert torch.allclose(plane_losses(points), expected, atol=2e-4)
    rows = plane_gradients(points.numpy())
    assert rows[0] == pytest.approx(np.array([[-0.2854, 0.0073], [-0.0740, 0.0087]]), abs=1e-4)
    cosine = rows[2, 0] @ rows[2, 1] / np.linalg.norm(rows[2, 0]) / np.linalg.norm(rows[2, 1])
    assert cosine == pytest.approx(-1, abs=1e-4)


def test_gradients_are_those_of_autograd():
    points = np.random.default_rng(0).uniform(-10, 10, (300, 2))
    x = torch.tensor(points, requires_grad=True)
    losses = plane_losses(x, scale=0.1)
    for i in range(2):
        expected = torch.autograd.grad(losses[:, i].sum(), x, retain_graph=True)[0].numpy()
        assert np.allclose(plane_gradients(points, 0.1)[:, i], expected, atol=1e-10)


def test_the_front_is_pareto_stationary():
    rows = plane_gradients(FRONT[1:-1])
    assert (rows[:, 0, 0] * rows[:, 1, 0] < 0).all()
    mgda = two_task_weights("MGDA", rows @ rows.transpose(0, 2, 1))
    assert np.abs((mgda[:, None] @ rows)[:, 0]).max() < 1e-2


@pytest.mark.parametrize("method", [name for name in WALKERS if name != "Mean"])
def test_closed_forms_equal_the_general_methods(method):
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(60, 2, 3)) * np.exp(rng.normal(size=(60, 2, 1)))
    gram = rows @ rows.transpose(0, 2, 1)
    expected = np.array([METHODS[method](g) for g in gram])
    assert np.allclose(two_task_weights(method, gram), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", WALKERS)
@pytest.mark.parametrize(
    "rows",
    [[[0.0, 0], [0, 0]], [[1.0, 0], [-1, 0]], [[1.0, 0], [0, 0]], [[1e8, 0], [0, 1e-8]], [[1.0, 1], [1, 1]]],
)
def test_closed_forms_stay_finite(method, rows):
    rows = np.array([rows])
    assert np.isfinite(two_task_weights(method, rows @ rows.transpose(0, 2, 1))).all()


def test_adam_is_torchs():
    ours = descend(["Mean"], steps=300)[-1, 0]
    for start, end in zip(STARTS, ours, strict=True):
        x = torch.tensor(start, dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.Adam([x], lr=1e-3)
        for _ in range(300):
            optimizer.zero_grad()
            plane_losses(x).mean().backward()
            optimizer.step()
        assert np.allclose(end, x.detach().numpy(), atol=1e-6)


@pytest.mark.slow
def test_the_mean_sticks_where_cagrad_arrives():
    mean, cagrad = descend(["Mean", "CAGrad"])[-1]
    assert mean[0] == pytest.approx([-5.07, 2.19], abs=0.05)
    assert mean[2] == pytest.approx([5.04, 2.30], abs=0.05)
    assert np.allclose(cagrad, [0, -8.36], atol=0.05)


def test_an_unknown_method_is_refused():
    with pytest.raises(ValueError, match="'Sum'"):
        descend(["Sum"], steps=1)
