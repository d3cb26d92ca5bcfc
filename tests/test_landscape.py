"""The plane of two losses: published values, and that the stored walks are those of the package's methods."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import ROOT
from nb04_strategies import descend, slopes

from mtl_helpers.gradients import METHODS
from mtl_helpers.widgets.landscape import FRONT, WALKERS, plane_losses


def test_published_values():
    points = torch.tensor([[-8.5, 7.5], [9.0, 9.0], [0.0, -8.3552]], dtype=torch.float64, requires_grad=True)
    expected = torch.tensor([[6.5524, 7.9008], [7.9440, 6.6915], [-15.0916, -15.0916]], dtype=torch.float64)
    assert torch.allclose(plane_losses(points), expected, atol=2e-4)
    rows = slopes(points).numpy()
    assert rows[0] == pytest.approx(np.array([[-0.2854, 0.0073], [-0.0740, 0.0087]]), abs=1e-4)
    cosine = rows[2, 0] @ rows[2, 1] / np.linalg.norm(rows[2, 0]) / np.linalg.norm(rows[2, 1])
    assert cosine == pytest.approx(-1, abs=1e-4)
    assert np.allclose(slopes(points, 0.1).numpy(), rows * [[0.1], [1]])


def test_the_front_is_pareto_stationary():
    rows = slopes(torch.tensor(FRONT[1:-1], requires_grad=True)).numpy()
    assert (rows[:, 0, 0] * rows[:, 1, 0] < 0).all()
    assert max(np.abs(METHODS["MGDA"](each @ each.T) @ each).max() for each in rows) < 1e-2


@pytest.mark.parametrize(
    "methods", [["Mean", "PCGrad"], pytest.param(WALKERS[2:], marks=pytest.mark.slow)], ids=str
)
def test_the_stored_walks_are_those_of_the_methods(methods):
    stored = pd.read_csv(ROOT / "notebooks" / "results" / "04_walks.csv", comment="#")
    begun = stored.query("scale == 1 and step == 2000").set_index("method")
    for method, ends in zip(methods, descend(methods, 1.0, 2000, 2000)[1], strict=True):
        assert np.abs(ends - begun.loc[method, ["x1", "x2"]].to_numpy()).max() < 1e-3, method
