"""Fusion by hand, and the learned one against scikit-learn's logistic regression."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from mtl_helpers.metrics import auc
from mtl_helpers.models import Fusion, LearnedFusion


def draw(n: int = 20_000, weights=(1.0, 0.5, 0.8), seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    p = torch.rand(3, n, generator=generator) * 0.8 + 0.1
    z = torch.tensor(weights) @ p.logit()
    target = (torch.rand(n, generator=generator) < torch.sigmoid(z - 1)).float()
    return dict(zip(NAMES, p, strict=True)), target


NAMES = ("click", "buy", "like")


def test_it_is_the_logistic_regression_where_that_has_positive_weights():
    predictions, target = draw()
    fusion = LearnedFusion(NAMES).fit(predictions, target)
    x = torch.stack([p.double().logit() for p in predictions.values()], 1)
    shift, scale = x.mean(0), x.std(0)
    x = (x - shift) / scale
    exact = LogisticRegression(C=1 / (2e-4 * len(x)), tol=1e-8).fit(x, target)  # the same penalty
    assert list(fusion.weights.values()) == pytest.approx(exact.coef_[0] / scale.numpy(), rel=1e-4)
    assert fusion(predictions).numpy() == pytest.approx(exact.predict_proba(x)[:, 1], abs=1e-4)
    assert list(fusion.weights.values()) == pytest.approx([1.0, 0.5, 0.8], abs=0.06)


def test_an_input_that_misleads_gets_next_to_no_weight_but_never_a_negative_one():
    predictions, target = draw(weights=(1.0, -1.0, 0.0))
    fusion = LearnedFusion(NAMES).fit(predictions, target)
    assert 0 <= fusion.weights["buy"] < 0.02 and fusion.weights["click"] > 0.7


@pytest.mark.parametrize("seed", range(3))
def test_the_score_rises_with_each_input(seed):
    predictions, target = draw(400, seed=seed)
    fusion = LearnedFusion(NAMES).fit(predictions, target)
    before = fusion(predictions)
    for name in NAMES:
        more = predictions[name] + 0.02
        assert (fusion({**predictions, name: more}) >= before).all()
        assert (fusion({**predictions, name: more}) > before).any()


def test_it_beats_each_input_alone_on_new_rows():
    predictions, target = draw(seed=0)
    fresh, labels = draw(seed=1)
    fusion = LearnedFusion(NAMES).fit(predictions, target)
    assert auc(labels, fusion(fresh)) > max(auc(labels, fresh[name]) for name in NAMES) + 0.02


def test_fitting_again_gives_the_same_and_starts_anew():
    predictions, target = draw(500)
    once = LearnedFusion(NAMES).fit(predictions, target).weights
    assert LearnedFusion(NAMES).fit(*draw(300, seed=5)).fit(predictions, target).weights == once


def test_certain_predictions_and_constant_inputs_stay_finite():
    predictions, target = draw(300)
    predictions["click"][:5], predictions["click"][5:9] = 0, 1
    predictions["buy"][:] = 0.3
    fusion = LearnedFusion(NAMES).fit(predictions, target)
    assert fusion(predictions).isfinite().all() and all(np.isfinite(list(fusion.weights.values())))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"target": torch.zeros(50)}, "both must be there"),
        ({"target": torch.full((50,), 0.5)}, "0 or 1"),
        ({"target": torch.full((50,), float("nan"))}, "0 or 1"),
        ({"click": torch.full((50,), 1.2)}, "above 1"),
        ({"click": torch.full((50,), float("nan"))}, "NaN"),
        ({"buy": torch.full((50,), -0.1)}, "negative"),
    ],
)
def test_bad_input_is_named(change, says):
    predictions, target = draw(50)
    given = {"target": target, **predictions} | change
    y = given.pop("target")
    with pytest.raises(ValueError, match=says):
        LearnedFusion(NAMES).fit(given, y)


PREDICTIONS = {"click": torch.tensor([0.1, 0.5, 0.9]), "purchase": torch.tensor([0.2, 0.2, 0.4])}


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ({"click": 1, "purchase": 1}, lambda click, buy: click * buy),
        ({"click": 0.5, "purchase": 2}, lambda click, buy: click**0.5 * buy**2),
        ({"click": 1}, lambda click, buy: click),
        ({"click": 0, "purchase": 1}, lambda click, buy: buy),
    ],
)
def test_the_product_rises_with_each_prediction_that_counts(weights, expected):
    fusion = Fusion(weights)
    assert torch.allclose(fusion(PREDICTIONS), expected(*PREDICTIONS.values()))
    for name in weights:
        more = fusion(PREDICTIONS | {name: PREDICTIONS[name] + 0.05})
        assert (more > fusion(PREDICTIONS)).all() if weights[name] else torch.equal(more, fusion(PREDICTIONS))


@pytest.mark.parametrize("weights", [{}, {"click": -1}, {"click": float("nan")}])
def test_bad_weights(weights):
    with pytest.raises(ValueError, match="0 or more"):
        Fusion(weights)
