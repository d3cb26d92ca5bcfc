"""Properties that hold for any input, searched for counterexamples by hypothesis."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from sklearn.metrics import roc_auc_score

from mtl_helpers import gradients, metrics
from mtl_helpers.data import CATEGORIES, Task, clean_items
from mtl_helpers.losses import task_loss
from mtl_helpers.sweep import pareto_mask

settings.register_profile("course", max_examples=40, deadline=None, derandomize=True)
settings.load_profile("course")

BINARY, CLASSES, VALUE = Task("b"), Task("c", "multiclass", 3), Task("v", "regression")
numbers = st.floats(-1e4, 1e4, width=32)
seeds = st.integers(0, 2**32 - 1)


@st.composite
def scored(draw, least: int = 2):
    """0/1 labels and scores of one length; few distinct scores, so that ties are common."""
    n = draw(st.integers(least, 40))
    labels = draw(npst.arrays(int, n, elements=st.integers(0, 1)))
    scores = draw(npst.arrays(float, n, elements=st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.9, 1.0])))
    return labels, scores


# --- losses -----------------------------------------------------------------------------------------------------


@given(npst.arrays(np.float32, st.integers(1, 20), elements=numbers), seeds)
def test_binary_loss_is_finite_above_zero_and_its_gradient_bounded(logits, seed):
    logits = torch.tensor(logits, requires_grad=True)
    labels = torch.randint(0, 2, logits.shape, generator=torch.Generator().manual_seed(seed)).float()
    loss = task_loss(BINARY, logits, labels)
    loss.backward()
    assert torch.isfinite(loss) and loss >= 0
    assert torch.allclose(logits.grad, (logits.detach().sigmoid() - labels) / len(labels), atol=1e-6)


@given(st.sampled_from([BINARY, CLASSES, VALUE]), st.integers(1, 20), seeds)
def test_a_masked_row_counts_for_nothing(task, n, seed):
    draw = torch.Generator().manual_seed(seed)
    logits = torch.randn((n, 3) if task is CLASSES else (n,), generator=draw, requires_grad=True)
    labels = torch.randint(0, 2, (n,), generator=draw)
    labels = labels if task is CLASSES else labels.float()
    mask = torch.rand(n, generator=draw) < 0.5
    loss = task_loss(task, logits, labels, mask)
    loss.backward()
    assert not logits.grad[~mask].any()
    if mask.any():
        assert torch.allclose(loss, task_loss(task, logits[mask], labels[mask]), rtol=1e-5)
    else:
        assert loss == 0


# --- metrics ----------------------------------------------------------------------------------------------------


@given(scored())
def test_auc_is_scikit_learns_and_turns_over_with_the_scores(pair):
    labels, scores = pair
    value = metrics.auc(labels, scores)
    if len(set(labels)) < 2:
        assert np.isnan(value)
        return
    assert value == pytest.approx(roc_auc_score(labels, scores))
    assert metrics.auc(labels, -scores) == pytest.approx(1 - value)
    assert metrics.auc(labels, np.exp(scores)) == pytest.approx(value), "only the order counts"


# --- gradients --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", gradients.METHODS)
@given(n_tasks=st.integers(1, 4), width=st.integers(4, 9), seed=seeds)
def test_one_shared_gradient_is_left_alone_in_direction(name, n_tasks, width, seed):
    row = torch.randn(width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    combined = gradients.combine(name, row.repeat(n_tasks, 1))
    cosine = torch.nn.functional.cosine_similarity(combined, row, dim=0)
    assert torch.isfinite(combined).all() and cosine > 1 - 1e-6


@pytest.mark.parametrize("name", ["MGDA", "Nash-MTL", "UPGrad"])
@given(n_tasks=st.integers(2, 4), seed=seeds)
def test_no_task_is_pushed_uphill(name, n_tasks, seed):
    jacobian = torch.randn(n_tasks, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    combined = gradients.combine(name, jacobian)
    assert (jacobian @ combined >= -1e-6 * jacobian.norm() * combined.norm()).all()


# --- fronts -----------------------------------------------------------------------------------------------------


POINTS = st.tuples(st.integers(1, 15), st.integers(1, 4))


@given(npst.arrays(float, POINTS, elements=st.integers(0, 5).map(float)))
def test_a_front_is_what_pairwise_comparison_says(points):
    def dominated(i: int) -> bool:
        return any((q <= points[i]).all() and (q < points[i]).any() for q in points)

    assert pareto_mask(points).tolist() == [not dominated(i) for i in range(len(points))]


# --- cleaning ---------------------------------------------------------------------------------------------------

SPELLINGS = st.sampled_from([str.upper, str.title, str.lower, " {}".format, "{}  ".format])


@given(
    st.lists(
        st.tuples(st.sampled_from(CATEGORIES), SPELLINGS, st.integers(1, 10**6), st.booleans()), min_size=1
    )
)
def test_cleaning_leaves_a_row_a_product_in_one_spelling_and_one_unit(drawn):
    names, spellings, cents, in_cents = map(list, zip(*drawn, strict=True))
    written = [spell(name) for name, spell in zip(names, spellings, strict=True)]
    euros, units = pd.Series(cents) / 100, np.where(in_cents, "cent", "EUR")
    items = pd.DataFrame(
        {"item_id": range(len(drawn)), "category": written, "brand": "a", "price_unit": units}
    )
    items = items.assign(price=np.where(in_cents, cents, euros), on_sale_since="2025-01-01")
    clean = clean_items(pd.concat([items, items.sample(frac=0.5, random_state=0)]))
    assert clean["item_id"].tolist() == items["item_id"].tolist() and clean["category"].tolist() == names
    for _, own in clean.assign(euros=euros).sort_values("euros").groupby("category"):
        assert own["price"].is_monotonic_increasing
        assert own["price"].between(own["euros"].min() - 0.01, own["euros"].max() + 0.01).all()
