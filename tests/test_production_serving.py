"""Exported programs answer as the model does, and a server loses nothing, whatever is sent and exchanged."""

from __future__ import annotations

import socket

import nb10_serving as study
import numpy as np
import pytest
import torch

from mtl_helpers.data import (
    SHOP_CATEGORICAL,
    SHOP_NUMERIC,
    SHOP_TASKS,
    load_shop,
    prepare,
    shop_frame,
    shop_splits,
)
from mtl_helpers.models import Fusion, SharedBottom, candidates, save_model, score_rows
from mtl_helpers.production.serving import Ranker, export_onnx

NAMES = "SingleTask SharedBottom CrossStitch MMoE PLE ESMM AITM STEM PEPNet GatedBottom HistoryBottom"
NAMES = [*NAMES.split(), "ContentBottom", "SequenceBottom", "CaseModel"]
WEIGHTS = {"click": 1.0, "purchase": 1.0}


@pytest.fixture(scope="module")
def zoo():
    return {name: rest for name, *rest in study.architectures(load_shop(), 200)}


def test_the_study_knows_every_architecture(zoo):
    assert list(zoo) == NAMES


@pytest.fixture
def exported(zoo):
    """A model of that name and its rows, and what an export looks at: 64 of them."""

    def make(name: str):
        build, rows = zoo[name]
        torch.manual_seed(0)
        return build().eval(), rows, [x[:64] for x in rows]

    return make


@pytest.mark.parametrize("name", ["SharedBottom", "SequenceBottom"])
def test_a_saved_program_answers_as_the_model_for_any_number_of_rows(name, exported, tmp_path):
    model, rows, few = exported(name)
    torch.export.save(study.export_program(model, *few), tmp_path / "model.pt2")
    assert study.gap(model, torch.export.load(tmp_path / "model.pt2").module(), rows) < 1e-6


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[] if n in ("SharedBottom", "AITM") else pytest.mark.slow) for n in NAMES],
)
def test_onnx_made_of_the_program_answers_as_the_model_for_any_number_of_rows(name, exported, tmp_path):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    model, rows, few = exported(name)
    assert study.gap(model, export_onnx(model, *few, tmp_path / "m.onnx"), rows) < 1e-5


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    """Two saved models, and the rows of three users."""
    shop = load_shop()
    ready = prepare(shop_splits(shop_frame(shop).tail(6000)), SHOP_TASKS, SHOP_NUMERIC, SHOP_CATEGORICAL)
    folders = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        fresh = SharedBottom(ready.schema, ready.tasks)
        folders.append(save_model(tmp_path_factory.mktemp("models") / str(seed), fresh, ready.encoder))
    return folders, candidates(shop, [3, 5, 8]), fresh, ready.encoder


def test_a_list_has_the_scores_of_the_raw_rows_in_order_and_reasons(shelf):
    folders, rows, model, encoder = shelf
    found = Ranker(folders[1], rows).rank(5, 7, WEIGHTS)
    own = rows[rows["user_id"] == 5]
    said = score_rows(model, encoder, own)
    fused = Fusion(WEIGHTS)({name: torch.from_numpy(said[name]) for name in WEIGHTS}).numpy()
    best = np.argsort(-fused)[:7]
    assert [one["item"] for one in found] == own["item_id"].iloc[best].tolist()
    np.testing.assert_allclose([one["score"] for one in found], fused[best], atol=1e-6)
    for task in WEIGHTS:
        np.testing.assert_allclose([one[task] for one in found], said[task][best], atol=1e-6)
    times = said["click"][best[0]] / said["click"].mean()
    assert (
        f"click {times:.1f} × the average product's" in found[0]["reasons"] and len(found[0]["reasons"]) == 2
    )


@pytest.fixture(scope="module")
def app(shelf):
    pytest.importorskip("fastapi")
    pytest.importorskip("httpx")
    pytest.importorskip("uvicorn")
    return study.from_page("make_app")(Ranker(shelf[0][0], shelf[1]))


@pytest.mark.parametrize(
    ("wish", "status", "word"),
    [
        ({"user": 3, "k": 2}, 200, "items"),
        ({"user": 3, "k": 0}, 422, "greater than or equal to 1"),
        ({"user": 3, "k": 5000}, 422, "less than or equal to 100"),
        ({"user": "three"}, 422, "valid integer"),
        ({"user": 3, "weights": {"click": -1}}, 422, "greater than or equal to 0"),
        ({"user": 3, "weights": {"clicks": 1}}, 422, "'click' or 'purchase'"),
        ({"user": 3, "weights": {}}, 422, "at least 1"),
        ({"users": 3}, 422, "Field required"),
        ({"user": 4}, 404, "no features of user 4"),
        ([], 422, "valid dictionary"),
    ],
)
def test_a_wrong_request_is_refused_with_words(app, wish, status, word):
    from fastapi.testclient import TestClient

    reply = TestClient(app).post("/rank", json=wish)
    assert reply.status_code == status and word in reply.text


def test_two_hundred_requests_and_a_new_model_and_nothing_is_lost(app, shelf):
    folders, rows, *_ = shelf
    served, hammer = map(study.from_page, ("served", "hammer"))
    old, new = app.state.ranker, Ranker(folders[1], rows)
    bodies = [{"user": (3, 5, 8)[i % 3], "k": 10} for i in range(100)]
    with served(app) as address:
        first = hammer(f"{address}/rank", bodies)
        app.state.ranker = new
        second = hammer(f"{address}/rank", bodies)
    app.state.ranker = old
    assert (first["status"] == 200).all() and (second["status"] == 200).all()
    assert set(first["model"]) == {old.version} and set(second["model"]) == {new.version} != {old.version}
    port = int(address.rpartition(":")[2])
    with socket.socket() as knock:
        assert knock.connect_ex(("127.0.0.1", port)) != 0  # nothing listens afterwards


def test_milliseconds_are_a_median_and_a_tail():
    calls = []
    middle, late = study.milliseconds(lambda: calls.append(0), 50)
    assert len(calls) == 51 and 0 < middle <= late
