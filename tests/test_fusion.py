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
    click, buy = torch.rand(2, n, generator=generator) * 0.8 + 0.1
    price = torch.exp(torch.randn(n, generator=generator) + 3)
    z = weights[0] * torch.logit(click) + weights[1] * torch.logit(buy) + weights[2] * (price.log() - 3)
    target = (torch.rand(n, generator=generator) < torch.sigmoid(z - 1)).float()
    return {"click": click, "buy": buy, "price": price}, target


KINDS = {"click": "log_odds", "buy": "log_odds", "price": "log"}


@pytest.mark.parametrize("weighted", [False, True])
def test_it_is_the_logistic_regression_where_that_has_positive_weights(weighted):
    predictions, target = draw()
    w = torch.rand(len(target), generator=torch.Generator().manual_seed(1)) * predictions["price"]
    w = w if weighted else None
    fusion = LearnedFusion(KINDS).fit(predictions, target, w, l2=0)
    x = torch.stack([predictions["click"].logit(), predictions["buy"].logit(), predictions["price"].log()], 1)
    exact = LogisticRegression(C=np.inf, tol=1e-8).fit(x, target, w if w is None else w / w.mean())
    assert list(fusion.weights.values()) == pytest.approx(exact.coef_[0], rel=2e-3 if weighted else 1e-3)
    if not weighted:
        assert fusion(predictions).numpy() == pytest.approx(exact.predict_proba(x)[:, 1], abs=1e-4)
        assert list(fusion.weights.values()) == pytest.approx([1.0, 0.5, 0.8], abs=0.06)


def test_an_input_that_misleads_gets_next_to_no_weight_but_never_a_negative_one():
    predictions, target = draw(weights=(1.0, -1.0, 0.0))
    fusion = LearnedFusion(KINDS).fit(predictions, target)
    assert 0 <= fusion.weights["buy"] < 0.02 and fusion.weights["click"] > 0.7


@pytest.mark.parametrize("seed", range(3))
def test_the_score_rises_with_each_input(seed):
    predictions, target = draw(400, seed=seed)
    fusion = LearnedFusion(KINDS).fit(predictions, target)
    before = fusion(predictions)
    for name in KINDS:
        more = predictions[name] * (1.05 if name == "price" else 1) + (name != "price") * 0.02
        assert (fusion({**predictions, name: more}) >= before).all()
        assert (fusion({**predictions, name: more}) > before).any()


def test_with_logs_it_ranks_as_the_product_of_powers():
    predictions, target = draw(500)
    fusion = LearnedFusion(dict.fromkeys(KINDS, "log")).fit(predictions, target)
    product = Fusion(fusion.weights)({name: p.double() for name, p in predictions.items()})
    assert torch.corrcoef(torch.stack([fusion(predictions).logit(), product.log()]))[0, 1] > 1 - 1e-9


def test_it_beats_each_input_alone_on_new_rows():
    predictions, target = draw(seed=0)
    fresh, labels = draw(seed=1)
    fusion = LearnedFusion(KINDS).fit(predictions, target)
    assert auc(labels, fusion(fresh)) > max(auc(labels, fresh[name]) for name in KINDS) + 0.02


def test_fitting_again_gives_the_same_and_starts_anew():
    predictions, target = draw(500)
    once = LearnedFusion(KINDS).fit(predictions, target).weights
    assert LearnedFusion(KINDS).fit(*draw(300, seed=5)).fit(predictions, target).weights == once


def test_certain_predictions_and_constant_inputs_stay_finite():
    predictions, target = draw(300)
    predictions["click"][:5], predictions["click"][5:9] = 0, 1
    predictions["buy"][:] = 0.3
    predictions["price"][0] = 0
    fusion = LearnedFusion(KINDS).fit(predictions, target)
    assert fusion(predictions).isfinite().all() and all(np.isfinite(list(fusion.weights.values())))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"target": torch.zeros(50)}, "both must have weight"),
        ({"target": torch.full((50,), 0.5)}, "0 or 1"),
        ({"target": torch.full((50,), float("nan"))}, "0 or 1"),
        ({"target": torch.ones(3)}, "each row"),
        ({"click": torch.full((50,), 1.2)}, "above 1"),
        ({"click": torch.full((50,), float("nan"))}, "NaN"),
        ({"price": torch.full((50,), -1.0)}, "negative"),
        ({"sample_weight": torch.full((50,), -1.0)}, "0 or more"),
        ({"sample_weight": torch.full((50,), float("nan"))}, "0 or more"),
        ({"sample_weight": draw(50)[1]}, "both must have weight"),
    ],
)
def test_bad_input_is_named(change, says):
    predictions, target = draw(50)
    given = {"target": target, "sample_weight": None, **predictions} | change
    y, w = given.pop("target"), given.pop("sample_weight")
    with pytest.raises(ValueError, match=says):
        LearnedFusion(KINDS).fit(given, y, w)


def test_missing_inputs_and_unknown_kinds():
    predictions, _ = draw(50)
    with pytest.raises(KeyError, match="'price'; got those of click, buy"):
        LearnedFusion(KINDS)({name: predictions[name] for name in ("click", "buy")})
    with pytest.raises(ValueError, match="log_odds, log"):
        LearnedFusion({"click": "logit"})


PREDICTIONS = {"click": torch.tensor([0.1, 0.5, 0.9]), "purchase": torch.tensor([0.2, 0.2, 0.4])}


@pytest.mark.parametrize(
    ("weights", "kind", "expected"),
    [
        ({"click": 1, "purchase": 1}, "power", lambda click, buy: click * buy),
        ({"click": 0.5, "purchase": 2}, "power", lambda click, buy: click**0.5 * buy**2),
        ({"click": 2, "purchase": 3}, "sum", lambda click, buy: 2 * click + 3 * buy),
        ({"click": 1}, "power", lambda click, buy: click),
        ({"click": 0, "purchase": 1}, "power", lambda click, buy: buy),
    ],
)
def test_power_and_sum_rise_with_each_prediction_that_counts(weights, kind, expected):
    fusion = Fusion(weights, kind)
    assert torch.allclose(fusion(PREDICTIONS), expected(*PREDICTIONS.values()))
    for name in weights:
        more = fusion(PREDICTIONS | {name: PREDICTIONS[name] + 0.05})
        assert (more > fusion(PREDICTIONS)).all() if weights[name] else torch.equal(more, fusion(PREDICTIONS))


@pytest.mark.parametrize("weights", [{}, {"click": -1}, {"click": float("nan")}])
def test_bad_weights(weights):
    with pytest.raises(ValueError, match="0 or more"):
        Fusion(weights)


def test_bad_kind():
    with pytest.raises(ValueError, match="'product'"):
        Fusion({"click": 1}, "product")
