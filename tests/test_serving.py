"""Saved models come back with the same scores, strangers' folders are refused, and one user gets the right list."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import MIXED_TASKS, toy_frame, toy_splits

from mtl_helpers.data import FeatureEncoder, Schema, Task
from mtl_helpers.models import Fusion, SharedBottom, SingleTask
from mtl_helpers.models import saving as serving
from mtl_helpers.models.fusion import LearnedFusion
from mtl_helpers.models.saving import Recommender, load_model, model_classes, save_model
from mtl_helpers.ranking import mmr, top_k
from mtl_helpers.training import predict

TWO = (Task("click"), Task("purchase"))


@pytest.fixture(scope="module")
def splits():
    return toy_splits()


def make(splits, tasks=MIXED_TASKS, **options) -> SharedBottom:
    torch.manual_seed(0)
    return SharedBottom(splits.schema, tasks, **options)


def same(a, b, data) -> bool:
    one, two = predict(a, data), predict(b, data)
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def changed(folder, **changes) -> None:
    """Rewrite parts of a config."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# ------------------------------------------------------------------------------------------------- saving, loading


@pytest.mark.parametrize("name", sorted(set(model_classes()) - {"CaseModel"}))
def test_every_model_comes_back_with_the_same_scores(splits, tmp_path, name):
    torch.manual_seed(0)
    cls = model_classes()[name]
    model = cls(splits.schema, TWO[0] if name == "SingleTask" else TWO, dropout=0.3)
    if "tower" in model.settings:
        model = cls(splits.schema, TWO[0] if name == "SingleTask" else TWO, tower=(5, 3), embedding_dim=3)
    loaded, encoder = load_model(save_model(tmp_path / "model", model, splits.encoder))
    assert type(loaded) is cls and loaded.settings == model.settings and loaded.tasks == model.tasks
    assert same(model, loaded, splits.test) and not loaded.training
    frame = toy_frame(50, seed=9)
    assert all(
        torch.equal(a, b)
        for a, b in zip(encoder.transform(frame), splits.encoder.transform(frame), strict=True)
    )


def case_model():
    ecommerce = pytest.importorskip("mtl_helpers.models.case")
    schema = Schema(ecommerce.CASE_NUMERIC, dict.fromkeys(ecommerce.CASE_CATEGORICAL, 7))
    torch.manual_seed(0)
    model = ecommerce.CaseModel(schema, ecommerce.case_tasks(5), n_items=5)
    numeric, codes = torch.randn(9, len(schema.numeric)), torch.randint(0, 7, (9, len(schema.categorical)))
    model.set_catalogue(numeric[:5], codes[:5], torch.zeros(5))
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {name: rng.normal(size=12) for name in schema.numeric}
        | {name: np.arange(12) % 6 for name in schema.categorical}
    )
    encoder = FeatureEncoder(schema.numeric, list(schema.categorical)).fit(frame)
    return model, encoder, numeric, codes


def test_the_e_commerce_model_keeps_its_catalogue(tmp_path):
    model, encoder, numeric, codes = case_model()
    loaded, _ = load_model(save_model(tmp_path, model, encoder))
    before, after = model.eval()(numeric, codes), loaded(numeric, codes)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_loaded_models_can_be_trained_on(splits, tmp_path):
    loaded, _ = load_model(save_model(tmp_path, make(splits), splits.encoder))
    assert all(p.requires_grad and not p.is_meta for p in loaded.parameters())
    assert not any(b.is_meta for b in loaded.buffers())


def test_categories_of_every_kind_come_back(tmp_path):
    frame = pd.DataFrame(
        {
            "text": ["é", "b", "b", None],
            "whole": [3, 10, 2, 3],
            "half": [0.5, 1.5, np.nan, 0.5],
            "flag": [True, False, True, True],
            "x": [1.0, 2, 3, np.nan],
        }
    )
    encoder = FeatureEncoder(["x"], ["text", "whole", "half", "flag"]).fit(frame)
    model = SingleTask(encoder.schema, Task("click"))
    _, loaded = load_model(save_model(tmp_path, model, encoder))
    other = pd.concat([frame, pd.DataFrame({"text": ["z"], "whole": [11], "half": [9.0], "flag": [False]})])
    for a, b in zip(encoder.transform(other), loaded.transform(other), strict=True):
        assert torch.equal(a, b)
    assert loaded.schema == encoder.schema and loaded.min_count == 1


def test_saving_again_replaces_the_model(splits, tmp_path):
    torch.manual_seed(1)
    first, second = make(splits), SharedBottom(splits.schema, MIXED_TASKS, hidden=(8,))
    save_model(tmp_path, first, splits.encoder)
    save_model(tmp_path, second, splits.encoder)
    assert len(list(tmp_path.iterdir())) == 2
    assert same(load_model(tmp_path)[0], second, splits.test)


@pytest.mark.parametrize("failing", ["model", "config"])
def test_a_crash_while_saving_leaves_the_old_model(splits, tmp_path, monkeypatch, failing):
    first = make(splits)
    save_model(tmp_path, first, splits.encoder)
    write = serving.write_atomically

    def disk_full(path, content):
        if path.name.startswith(failing):
            raise OSError("No space left on device")
        write(path, content)

    monkeypatch.setattr(serving, "write_atomically", disk_full)
    with pytest.raises(OSError, match="space"):
        save_model(tmp_path, SharedBottom(splits.schema, MIXED_TASKS, hidden=(8,)), splits.encoder)
    assert same(load_model(tmp_path)[0], first, splits.test)


def test_what_cannot_be_saved(splits, tmp_path):
    class Mine(SharedBottom):
        pass

    with pytest.raises(ValueError, match="Mine cannot be saved: expected a model of .*SharedBottom"):
        save_model(tmp_path, Mine(splits.schema, MIXED_TASKS), splits.encoder)
    with pytest.raises(ValueError, match="differ in categorical columns: user_id"):
        save_model(tmp_path, make(splits), FeatureEncoder(["x", "z"], ["user_id", "item"]).fit(toy_frame(5)))
    assert not list(tmp_path.iterdir())


def test_another_schema_is_refused(splits, tmp_path):
    save_model(tmp_path, make(splits), splits.encoder)
    load_model(tmp_path, schema=splits.schema)
    with pytest.raises(ValueError, match=r"numeric columns \['x', 'z'\], your data \['x'\]"):
        load_model(tmp_path, schema=Schema(("x",), splits.schema.categorical))
    more = {**splits.schema.categorical, "item": 99}
    with pytest.raises(ValueError, match="differ in categorical columns: item: 7 and 99"):
        load_model(tmp_path, schema=Schema(splits.schema.numeric, more))


def test_missing_and_damaged_files(splits, tmp_path):
    with pytest.raises(FileNotFoundError, match="no config.json"):
        load_model(tmp_path)
    save_model(tmp_path, make(splits), splits.encoder)
    (weights,) = tmp_path.glob("*.safetensors")
    content = weights.read_bytes()
    for bad in (content[:-1], content[:-1] + b"\x7f", b""):
        weights.write_bytes(bad)
        with pytest.raises(ValueError, match="checksum"):
            load_model(tmp_path)
    weights.unlink()
    with pytest.raises(FileNotFoundError, match="weights model-.* are missing"):
        load_model(tmp_path)


HOSTILE = [
    ({"format": "mtl_helpers model 9"}, "format 'mtl_helpers model 9'; this version"),
    ({"format": 3}, "no format"),
    ({"class": "Popen"}, "'Popen', expected one of"),
    ({"class": "FeatureLayer"}, "expected one of"),
    ({"class": ["SharedBottom"]}, "TypeError"),
    ({"class": "SingleTask"}, "has one task"),
    ({"tasks": []}, "no saved model"),
    ({"tasks": [{"name": "click", "kind": "sum"}]}, "expected one of binary"),
    ({"tasks": [{"name": "click", "evil": 1}]}, "unexpected keyword"),
    ({"schema": {"numeric": ["x", "z"]}}, "categorical"),
    ({"schema": {"numeric": ["x", "z"], "categorical": {"user_id": 10**30, "item": 7}}}, "user_id"),
    ({"settings": {"embedding_dim": 10**12}}, "more than"),
    ({"settings": {"embedding_dim": 9_000_000}}, "tensors differ"),
    ({"settings": {"embedding_dim": -3}}, "no saved model"),
    ({"settings": {"hidden": ["a"]}}, "no saved model"),
    ({"settings": {"colour": 1}}, "unexpected keyword"),
    ({"settings": [1]}, "AttributeError"),
    ({"settings": {}}, None),  # the defaults are what was saved
    ({"settings": {"tower": [3]}}, "holds another model"),
    ({"encoder": {}}, "KeyError"),
    ({"encoder": "x"}, "no saved model"),
    ({"weights_sha256": "../../etc/passwd"}, "64 hexadecimal digits"),
    ({"weights_sha256": "0" * 64}, "missing"),
    ({"weights_sha256": 5}, "64 hexadecimal digits"),
]


@pytest.mark.parametrize(("change", "says"), HOSTILE)
def test_configs_that_are_wrong_or_hostile(splits, tmp_path, change, says):
    save_model(tmp_path, make(splits), splits.encoder)
    changed(tmp_path, **change)
    if says is None:
        load_model(tmp_path)
        return
    with pytest.raises((ValueError, FileNotFoundError), match=says):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"mean": [0.0]}, "state is damaged"),
        ({"mean": ["a", 0]}, "could not convert"),
        ({"scale": [1.0, 0.0]}, "state is damaged"),
        ({"categories": {"user_id": ["1", "2"], "item": ["a"]}}, "differ in categorical columns"),
    ],
)
def test_encoders_that_are_wrong(splits, tmp_path, change, says):
    save_model(tmp_path, make(splits), splits.encoder)
    encoder = json.loads((tmp_path / "config.json").read_text())["encoder"] | change
    changed(tmp_path, encoder=encoder)
    with pytest.raises(ValueError, match=says):
        load_model(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{", "null", "[" * 100_000, '{"format": NaN}', "\x00", '"a"'])
def test_texts_that_are_no_config(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config\.json"):
        load_model(tmp_path)


def test_every_part_of_a_config_is_needed(splits, tmp_path):
    save_model(tmp_path, make(splits), splits.encoder)
    path = tmp_path / "config.json"
    whole = json.loads(path.read_text())
    for key in whole:
        path.write_text(json.dumps({name: value for name, value in whole.items() if name != key}))
        with pytest.raises(ValueError, match=rf"config\.json.*({key}|no format)"):
            load_model(tmp_path)


# ------------------------------------------------------------------------------------------------- one user's list

ITEMS = pd.DataFrame(
    {
        "item_id": [f"i{n}" for n in range(8)],
        "item": [*"abcdef", "new", "a"],
        "z": np.linspace(0, 20, 8),
        "price": [5.0, 8, 2, 9, 4, 7, 1, 3],
        "category": list("xxyyxxyy"),
    }
)
USERS = pd.DataFrame({"user_id": [3, 11, 999]})
POWERS = {"click": 1.0, "price": 0.5}


def recommender(splits, **options) -> Recommender:
    torch.manual_seed(0)
    model = SharedBottom(splits.schema, MIXED_TASKS)
    with torch.no_grad():
        for p in model.parameters():
            p *= 3  # so that scores differ visibly
    given = {"fusion": Fusion(POWERS), "context": {"x": 0.4}} | options
    return Recommender(model, splits.encoder, given.pop("items", ITEMS), given.pop("users", USERS), **given)


def by_hand(shop, splits, user_id, x=0.4) -> dict[str, np.ndarray]:
    """Every pair encoded from a full table, and the plain forward pass."""
    frame = ITEMS.assign(user_id=user_id, x=x)
    logits = shop.model(*splits.encoder.transform(frame))
    found = {"click": logits["click"].sigmoid(), "dwell": logits["dwell"], "kind": logits["kind"].softmax(-1)}
    return {name: values.detach().numpy() for name, values in found.items()}


@pytest.mark.parametrize("user_id", [3, 11, 999])
def test_scores_are_those_of_the_plain_way(splits, user_id):
    shop = recommender(splits)
    found, expected = shop.signals(user_id), by_hand(shop, splits, user_id)
    assert found["click"].numpy() == pytest.approx(expected["click"], rel=1e-5)
    assert found["dwell"].numpy() == pytest.approx(expected["dwell"], rel=1e-5)
    assert "kind" not in found
    score = expected["click"] * ITEMS["price"] ** 0.5
    assert found["score"].numpy() == pytest.approx(score, rel=1e-5)
    table = shop.recommend(user_id, k=5)
    assert table["item_id"].tolist() == ITEMS["item_id"].to_numpy()[top_k([score], 5)[0]].tolist()
    assert table["score"].is_monotonic_decreasing and table["price"].tolist() == [
        ITEMS.set_index("item_id")["price"][item] for item in table["item_id"]
    ]


def test_one_forward_pass_a_request(splits):
    shop = recommender(splits)
    calls = []
    shop.model.register_forward_hook(lambda *_: calls.append(1))
    shop.recommend(3, k=2)
    assert len(calls) == 1


def test_requests_leave_nothing_behind(splits):
    shop = recommender(splits)
    first = shop.recommend(3, k=8)
    shop.recommend(11, k=7, exclude=["i1"])
    pd.testing.assert_frame_equal(shop.recommend(3, k=8), first)


def test_classes_turn_a_multiclass_task_into_a_signal(splits):
    codes = np.arange(8) % 3
    shop = recommender(splits, classes={"kind": codes}, fusion=Fusion({"kind": 1.0}))
    expected = by_hand(shop, splits, 3)["kind"][np.arange(8), codes]
    assert shop.signals(3)["score"].numpy() == pytest.approx(expected, rel=1e-5)


def test_pairs_belong_to_user_and_item(splits):
    x = np.random.default_rng(0).normal(size=(3, 8))
    x[1, 2] = np.nan
    shop = recommender(splits, context={}, pairs={"x": x})
    for row, user in enumerate(USERS["user_id"]):
        expected = by_hand(shop, splits, user, x[row])["click"]
        assert shop.signals(user)["click"].numpy() == pytest.approx(expected, rel=1e-5)


def test_exclude_and_diversity(splits):
    shop = recommender(splits)
    whole = shop.recommend(3, k=8)["item_id"].tolist()
    rest = [item for item in whole if item not in (whole[0], whole[3])]
    assert shop.recommend(3, k=6, exclude=[whole[0], whole[3]])["item_id"].tolist() == rest
    scores = shop.signals(3)["score"].numpy()
    expected = ITEMS["item_id"].to_numpy()[mmr([scores], ITEMS["category"], 4, 0.8)[0]]
    assert shop.recommend(3, k=4, diversity=0.8)["item_id"].tolist() == expected.tolist()


def test_a_learned_fusion_serves_too(splits):
    shop = recommender(splits, fusion=LearnedFusion({"click": "log_odds", "price": "log"}))
    assert np.isfinite(shop.recommend(3, k=3)["score"]).all()


def test_a_saved_model_serves_the_same_list(splits, tmp_path):
    shop = recommender(splits)
    loaded, encoder = load_model(save_model(tmp_path, shop.model, splits.encoder))
    again = Recommender(loaded, encoder, ITEMS, USERS, fusion=Fusion(POWERS), context={"x": 0.4})
    pd.testing.assert_frame_equal(again.recommend(11, k=8), shop.recommend(11, k=8))


@pytest.mark.parametrize(
    ("call", "kind", "says"),
    [
        (lambda s: s.recommend(4, k=2), KeyError, "No user 4: 3 are known, such as 3, 11, 999"),
        (lambda s: s.recommend("3", k=2), KeyError, "No user '3'"),
        (lambda s: s.recommend([3], k=2), KeyError, "No user"),
        (lambda s: s.recommend(3, k=2, exclude=["i99"]), KeyError, "No item 'i99': 8 are known"),
        (lambda s: s.recommend(3, k=9), ValueError, "k is 9, but the catalogue has 8 items"),
        (lambda s: s.recommend(3, k=8, exclude=["i1"]), ValueError, "only 7 items are left"),
        (lambda s: s.recommend(3, k=2, diversity=0.5, category="kind"), KeyError, "item column 'kind'"),
        (lambda s: s.recommend(3, k=2, diversity=3), ValueError, "diversity is 3"),
    ],
)
def test_requests_that_cannot_be_answered(splits, call, kind, says):
    with pytest.raises(kind, match=says):
        call(recommender(splits))


@pytest.mark.parametrize(
    ("options", "kind", "says"),
    [
        ({"context": {}}, ValueError, "'x', which stands nowhere"),
        ({"context": {"x": 0.4, "z": 1.0}}, ValueError, "'z', which stands in items and in context"),
        ({"items": ITEMS.drop(columns="item_id")}, KeyError, "items need a column 'item_id'"),
        ({"items": ITEMS.iloc[:0]}, ValueError, "items have no rows"),
        ({"items": ITEMS.assign(item_id="i")}, ValueError, "some repeat"),
        ({"users": pd.DataFrame({"user_id": [3, None]})}, ValueError, "missing"),
        ({"items": ITEMS.assign(price=-1.0)}, ValueError, "Prices"),
        ({"items": ITEMS.assign(z="tall")}, ValueError, "'z' holds something that is no number"),
        ({"fusion": Fusion({"buy": 1.0})}, ValueError, "lacks a signal .*buy.* are click, dwell, price"),
        ({"fusion": Fusion({"kind": 1.0})}, ValueError, "lacks a signal .*kind"),
        ({"classes": {"kind": np.full(8, 3)}}, ValueError, "0 … 2"),
        ({"classes": {"kind": np.zeros(3, int)}}, ValueError, "whole number for each"),
        (
            {"context": {}, "pairs": {"x": np.zeros((8, 3))}},
            ValueError,
            r"expected \(users, items\) = \(3, 8\)",
        ),
        ({"pairs": {"price": np.zeros((3, 8))}}, ValueError, "no numeric column"),
    ],
)
def test_parts_that_do_not_fit(splits, options, kind, says):
    with pytest.raises(kind, match=says):
        recommender(splits, **options)
