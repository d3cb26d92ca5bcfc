"""The formulas behind the demos of notebook 03."""

import numpy as np
import pytest
import torch

from mtl_helpers.gradients import METHODS
from mtl_helpers.widgets import formulas as loss_demos

A = np.array([[[1.0, 0.0], [0.0, 4.0]], [[3.0, 1.5], [1.5, 1.5]]])
C = np.array([[-1.5, -0.5], [1.5, 1.0]])


@pytest.mark.parametrize("weights", [(0.7, 0.3), (1.0, 0.0), (0.001, 5.0)])
def test_weighted_optimum_has_no_slope(weights):
    theta = torch.tensor(loss_demos.weighted_optimum(A, C, weights), requires_grad=True)
    away = [theta - torch.tensor(c) for c in C]
    losses = [0.5 * away[i] @ torch.tensor(A[i]) @ away[i] for i in (0, 1)]
    assert loss_demos.quadratic(theta.detach(), A[0], C[0]) == pytest.approx(losses[0].item())
    (slope,) = torch.autograd.grad(weights[0] * losses[0] + weights[1] * losses[1], theta)
    assert slope.abs().max() < 1e-12


def test_two_gradients_have_the_angle_and_length_asked_for():
    g1, g2 = loss_demos.two_gradients(120, 2.5)
    assert np.linalg.norm(g2) == pytest.approx(2.5)
    assert g1 @ g2 / 2.5 == pytest.approx(-0.5)


def test_combinations_of_two_gradients():
    rows = loss_demos.two_gradients(135, 2.0)
    np.testing.assert_allclose(loss_demos.combine_two("sum", rows), rows[0] + rows[1])
    np.testing.assert_allclose(loss_demos.combine_two("normalised sum", rows), rows[0] + rows[1] / 2)
    for method in METHODS:
        assert np.isfinite(loss_demos.combine_two(method, rows)).all()
    with pytest.raises(ValueError, match="expected one of PCGrad"):
        loss_demos.combine_two("median", rows)


def test_the_weighted_sum_jumps_over_the_dent_and_tchebycheff_stands_in_it():
    demo = loss_demos.front_explorer(0.9)
    before, after = (demo.set(weight=weight).reading for weight in (0.49, 0.51))
    assert "sum is least at θ = 0.9" in before or "sum is least at θ = 0.8" in before
    assert "sum is least at θ = −0.9" in after or "sum is least at θ = −0.8" in after
    assert "rule is least at θ = 0.0" in before


def test_any_method_can_be_drawn():
    demo = loss_demos.two_gradients_explorer(("UPGrad", "Aligned-MTL", "sum"))
    assert "sum" in demo.set(angle=170, length=3.0).reading
