"""Training, weighting, sweeps and serving on a pretended GPU: they run there, and give the CPU's numbers.

What a real GPU adds, its own rounding and its speed, cannot be seen this way.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fake_device import Elsewhere, FakeDevice
from helpers import MIXED_TASKS, toy_frame, toy_splits

from mtl_helpers import gradients, models, weighting
from mtl_helpers.data import ShopConfig, hide_labels, simulate
from mtl_helpers.models import PLE, CrossStitch, MMoE, SharedBottom, SingleTask
from mtl_helpers.models import case as ecommerce
from mtl_helpers.models.fusion import LearnedFusion
from mtl_helpers.models.saving import load_model, save_model, score_rows
from mtl_helpers.sweep import simplex_grid, sweep
from mtl_helpers.training import evaluate, fit, predict, training_steps
from mtl_helpers.widgets.live import live_training

KINDS = ("cuda", "mps")
SPLITS = toy_splits(300)
kind = pytest.mark.parametrize("kind", KINDS)


def make(seed: int = 0, of=SharedBottom, tasks=MIXED_TASKS, **settings):
    torch.manual_seed(seed)
    return of(SPLITS.schema, tasks, embedding_dim=3, tower=(4,), **settings)


def numbers(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().cpu().flatten() for p in model.parameters()])


def parts(place: str) -> tuple:
    return SPLITS.train.to(place), SPLITS.valid.to(place)


def both(kind: str, work):
    """``work(place)`` on the CPU and on the pretended device."""
    here = work("cpu")
    with FakeDevice(kind):
        return here, work(kind)


@kind
def test_the_fake_refuses_what_a_gpu_refuses(kind):
    here = torch.ones(3)
    with FakeDevice(kind) as device:
        there = torch.ones(3, device=kind)
        assert there.device == torch.device(kind, 0) and (there + 1).device == there.device
        assert (there + torch.tensor(2.0)).tolist() == [3.0, 3.0, 3.0]  # a scalar may come from the host
        for wrong in (lambda: there + here, lambda: torch.cat([there, here]), lambda: here[there.long()]):
            with pytest.raises(RuntimeError, match="same device"):
                wrong()
        with pytest.raises(TypeError, match="can't convert"):
            there.numpy()
        if kind == "mps":
            with pytest.raises(TypeError, match="float64"):
                there.double()
        else:
            assert there.double().dtype == torch.float64
        assert torch.equal(there.cpu(), here) and there[torch.tensor([0, 2])].shape == (2,)
        before = device.transfers
        assert there.sum().item() == 3.0 and there.tolist() == [1.0] * 3 and there.cpu().shape == (3,)
        assert device.transfers - before == 3


MODELS = {
    "shared bottom": (SharedBottom, {"hidden": (8, 6)}),
    "cross-stitch": (CrossStitch, {"hidden": (8, 6)}),
    "single task": (SingleTask, {"hidden": (8,), "tasks": MIXED_TASKS[0]}),
    "MMoE": (MMoE, {"n_experts": 3, "hidden": (8, 6), "expert_dropout": 0.2}),
    "PLE": (PLE, {"hidden": (8, 6), "levels": 2}),
    "ESMM": (models.ESMM, {"hidden": (8, 6), "chain": ("click",)}),
    "AITM": (models.AITM, {"hidden": (8, 6)}),
}


@kind
@pytest.mark.parametrize("label", MODELS)
def test_every_model_trains_there_to_the_same_numbers(kind, label, tmp_path):
    of, settings = MODELS[label]

    def work(place):
        train, valid = parts(place)
        model = make(of=of, dropout=0.1, **settings)
        torch.manual_seed(1)
        history = fit(model, train, valid, epochs=2, batch_size=64, progress=False)
        assert isinstance(next(model.parameters()), Elsewhere) == (place != "cpu")
        said = predict(model, valid)
        assert not any(isinstance(values, Elsewhere) for values in said.values())
        save_model(tmp_path / place, model, SPLITS.encoder)
        return numbers(model), history.frame(), said, evaluate(model, valid)

    (one, first, said, scores), (two, second, again, same_scores) = both(kind, work)
    assert torch.equal(one, two) and first.equals(second) and scores == same_scores
    assert all(torch.equal(said[name], again[name]) for name in said)
    moved, _ = load_model(tmp_path / kind)  # a model trained on a GPU opens where there is none
    assert torch.equal(numbers(moved), one)


SIMPLE = ("UncertaintyWeighting", "DWA", "GradNorm", "RandomWeighting", "GLS", "STCH", "IMTLL", "FAMO")
STRATEGIES = (
    {name: lambda name=name: getattr(weighting, name)(MIXED_TASKS) for name in SIMPLE}
    | {name: lambda name=name: gradients.CombinedGradients(MIXED_TASKS, name) for name in gradients.METHODS}
    | {
        "fixed": lambda: {"click": 1.0, "kind": 0.5, "dwell": 2.0},
        "entropy": lambda: weighting.entropy_weights(SPLITS.train),
    }
)


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_trains_there_to_the_same_numbers(name):
    """On Apple's, the stricter one; none asks which one it is."""

    def work(place):
        train, valid = parts(place)
        model, strategy = make(hidden=(8, 6)), STRATEGIES[name]()
        fit(model, train, valid, epochs=2, batch_size=64, weights=strategy, progress=False)
        return numbers(model), getattr(strategy, "current", dict)()

    (one, weights), (two, same) = both("mps", work)
    assert torch.equal(one, two)
    assert weights == same


def test_a_step_waits_for_the_gpu_once():
    """The losses are looked at, since they may be NaN; nothing else comes back to the host."""
    with FakeDevice("cuda") as device:
        train, _ = parts("cuda")
        model = make(hidden=(8, 6)).to("cuda")
        optimizer = torch.optim.Adam(model.parameters())
        before = device.transfers
        steps = sum(1 for _ in training_steps(model, train, optimizer, batch_size=64))
        assert steps == 4 and device.transfers - before == steps


@kind
@pytest.mark.parametrize("dropout", [0.0, 1e-9])
def test_a_sweep_runs_there(kind, dropout):
    def work(place):
        def model():
            return SharedBottom(SPLITS.schema, MIXED_TASKS, hidden=(8, 6), dropout=dropout)

        settings = {
            "weightings": simplex_grid(["click", "kind", "dwell"], 4),
            "seeds": (0, 1),
            "progress": False,
        }
        result = sweep(model, *parts(place), epochs=2, batch_size=64, **settings)
        return result.records.sort_values(list(result.records.columns[:4])).reset_index(drop=True)

    here, there = both(kind, work)
    assert len(here) == len(there) and np.allclose(here["value"], there["value"], rtol=1e-5, atol=1e-6)


@kind
def test_labels_weights_fusion_and_auc_work_there(kind):
    said = {"click": torch.rand(50), "purchase": torch.rand(50)}
    bought = (torch.rand(50) < 0.3).float()

    def work(place):
        train, _ = parts(place)
        hidden = hide_labels(train, "click", 20, seed=1)
        fusion, there = LearnedFusion(list(said)), {name: p.to(place) for name, p in said.items()}
        scores = fusion.fit(there, bought.to(place))(there).detach()
        tensors = hidden.masks["click"].cpu(), hidden.take([3, 1]).numeric.cpu(), scores.cpu()
        return tensors, (fusion.weights, weighting.entropy_weights(train), weighting.rarity_weights(train))

    (tensors, values), (others, same) = both(kind, work)
    assert all(torch.equal(one, two) for one, two in zip(tensors, others, strict=True))
    assert values == same


@kind
def test_live_training_runs_there(kind):
    def work(place):
        train, valid = parts(place)
        live = live_training(make(hidden=(8, 6)), train, valid, batch_size=64)
        live.explorer.set(click=0.9)
        live.run_steps(3)
        return numbers(live.model)

    one, two = both(kind, work)
    assert torch.equal(one, two)


def same(one, two) -> None:
    assert one.keys() == two.keys() and all(np.array_equal(one[name], two[name]) for name in one)


@kind
def test_the_case_scores_its_catalogue_there(kind):
    config = ShopConfig(n_users=40, n_items=200, n_impressions=4_000, seed=3)
    log = simulate(config)
    frames = ecommerce.case_frames(log)
    items, asked = ecommerce.item_table(log, frames["train"]), ecommerce.candidates(log, [3, 1, 7])

    def work(place):
        data = ecommerce.case_data(frames, config.n_items, place)
        torch.manual_seed(0)
        model = ecommerce.case_model(data, items)
        fit(model, data.train, data.valid, epochs=1, progress=False)
        return ecommerce.score_candidates(model, data, asked, items)

    same(*both(kind, work))


@kind
def test_a_loaded_model_scores_raw_rows_there(kind, tmp_path):
    save_model(tmp_path / "model", make(), SPLITS.encoder)

    def work(place):
        model, encoder = load_model(tmp_path / "model")
        return score_rows(model.to(place), encoder, toy_frame(20, seed=9))

    same(*both(kind, work))
