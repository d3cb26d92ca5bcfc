"""Every model keeps the contract: {task: logits}, gradients everywhere, towers that stay apart."""

from __future__ import annotations

import pytest
import torch
from helpers import MIXED_TASKS, toy_splits

from mtl_helpers.data import Schema, Task
from mtl_helpers.losses import task_losses, weighted_sum
from mtl_helpers.models import FeatureLayer, Fusion, SharedBottom, SingleTask, Tower, count_parameters

SCHEMA = Schema(("x", "z"), {"user_id": 5, "item": 3})


def batch(n: int = 7):
    return torch.randn(n, 2), torch.stack([torch.randint(0, 5, (n,)), torch.randint(0, 3, (n,))], dim=1)


@pytest.mark.parametrize("tower", [(16,), ()])
@pytest.mark.parametrize("bottom", [(64, 32), ()])
def test_shapes(bottom, tower):
    model = SharedBottom(SCHEMA, MIXED_TASKS, hidden=bottom, tower=tower)
    shapes = {name: tuple(logits.shape) for name, logits in model(*batch()).items()}
    assert shapes == {"click": (7,), "kind": (7, 3), "dwell": (7,)}


def test_each_column_has_rows_of_its_own_in_the_table():
    layer = FeatureLayer(SCHEMA, embedding_dim=4)
    numeric = torch.zeros(1, 2)
    out = layer(numeric, torch.tensor([[2, 1]]))
    assert out.shape == (1, 10)
    assert torch.equal(out[0, :4], layer.embedding.weight[2])
    assert torch.equal(out[0, 4:8], layer.embedding.weight[5 + 1])


def test_only_numbers_or_only_categories():
    assert FeatureLayer(Schema(("x", "z"), {}))(batch()[0], torch.zeros(7, 0, dtype=torch.long)).shape == (
        7,
        2,
    )
    assert FeatureLayer(Schema((), {"user_id": 5, "item": 3}))(torch.zeros(7, 0), batch()[1]).shape == (7, 16)


def test_gradient_reaches_every_parameter():
    data = toy_splits().train
    model = SharedBottom(toy_splits().schema, MIXED_TASKS)
    one = next(data.batches(len(data)))
    weighted_sum(task_losses(MIXED_TASKS, model(one.numeric, one.categorical), one)).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_a_task_trains_the_bottom_and_its_own_tower_only():
    model = SharedBottom(SCHEMA, MIXED_TASKS)
    model(*batch())["click"].sum().backward()
    assert all(p.grad is not None for p in model.shared_parameters())
    assert all(p.grad is not None for p in model.task_parameters("click"))
    assert all(p.grad is None for name in ("kind", "dwell") for p in model.task_parameters(name))


def test_shared_and_task_parameters_are_all_there_is():
    model = SharedBottom(SCHEMA, MIXED_TASKS)
    parts = [
        *model.shared_parameters(),
        *(p for task in MIXED_TASKS for p in model.task_parameters(task.name)),
    ]
    assert sum(p.numel() for p in parts) == count_parameters(model)
    assert len({id(p) for p in parts}) == len(parts)


def test_one_task_shared_bottom_is_the_single_task_model():
    task = Task("click")
    torch.manual_seed(0)
    single = SingleTask(SCHEMA, task)
    torch.manual_seed(0)
    shared = SharedBottom(SCHEMA, [task])
    inputs = batch()
    assert torch.equal(single(*inputs)["click"], shared(*inputs)["click"])
    assert count_parameters(single) == count_parameters(shared)


def test_parameter_count_by_hand():
    model = SingleTask(SCHEMA, Task("click"), embedding_dim=8, hidden=(64, 32), tower=(16,))
    table, bottom = 8 * 8, (18 * 64 + 64) + (64 * 32 + 32)
    assert count_parameters(model) == table + bottom + (32 * 16 + 16) + (16 + 1)


def test_tower_keeps_the_class_axis_of_two_classes():
    assert Tower(4, Task("m", "multiclass", 2))(torch.randn(5, 4)).shape == (5, 2)


PREDICTIONS = {"click": torch.tensor([0.1, 0.5, 0.9]), "purchase": torch.tensor([0.2, 0.2, 0.4])}


class TestFusion:
    def test_power_and_sum(self):
        assert torch.allclose(
            Fusion({"click": 1, "purchase": 1})(PREDICTIONS), PREDICTIONS["click"] * PREDICTIONS["purchase"]
        )
        power = Fusion({"click": 0.5, "purchase": 2})(PREDICTIONS)
        assert torch.allclose(power, PREDICTIONS["click"] ** 0.5 * PREDICTIONS["purchase"] ** 2)
        assert torch.allclose(
            Fusion({"click": 2, "purchase": 3}, "sum")(PREDICTIONS),
            2 * PREDICTIONS["click"] + 3 * PREDICTIONS["purchase"],
        )
        assert torch.allclose(Fusion({"click": 1})(PREDICTIONS), PREDICTIONS["click"])

    @pytest.mark.parametrize("kind", ["power", "sum"])
    def test_rises_with_each_prediction(self, kind):
        fusion = Fusion({"click": 0.7, "purchase": 1.3}, kind)
        for name in PREDICTIONS:
            assert (fusion(PREDICTIONS | {name: PREDICTIONS[name] + 0.05}) > fusion(PREDICTIONS)).all()

    def test_an_exponent_of_zero_ignores_the_task(self):
        fusion = Fusion({"click": 0, "purchase": 1})
        assert torch.allclose(fusion(PREDICTIONS | {"click": torch.zeros(3)}), PREDICTIONS["purchase"])

    @pytest.mark.parametrize("weights", [{}, {"click": -1}, {"click": float("nan")}])
    def test_bad_weights(self, weights):
        with pytest.raises(ValueError, match="0 or more"):
            Fusion(weights)

    def test_bad_kind(self):
        with pytest.raises(ValueError, match="'product'"):
            Fusion({"click": 1}, "product")
