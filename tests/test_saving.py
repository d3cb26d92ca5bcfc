"""Saved models come back with the same scores, on raw rows too, whatever type their ids have later."""

from __future__ import annotations

import json
import os

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import MIXED_TASKS, toy_splits

from mtl_helpers.data import FeatureEncoder, Schema, Task, prepare
from mtl_helpers.models import SharedBottom, case, load_model, model_classes, save_model, score_rows
from mtl_helpers.training import fit, predict

TWO = (Task("click"), Task("purchase"))


@pytest.fixture(scope="module")
def splits():
    return toy_splits()


def same(a, b, data) -> bool:
    one, two = predict(a, data), predict(b, data)
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("name", sorted(set(model_classes()) - {"CaseModel"}))
def test_every_model_comes_back_with_the_same_scores(splits, tmp_path, name):
    cls = model_classes()[name]
    own = {"scene": "item"} if name == "PEPNet" else {}
    model = cls(splits.schema, TWO[0] if name == "SingleTask" else TWO, dropout=0.3, embedding_dim=3, **own)
    loaded, _ = load_model(save_model(tmp_path / "model", model, splits.encoder))
    assert type(loaded) is cls and loaded.settings == model.settings and loaded.tasks == model.tasks
    assert same(model, loaded, splits.test) and not loaded.training


def test_the_e_commerce_model_keeps_its_catalogue(tmp_path):
    schema = Schema(case.CASE_NUMERIC, dict.fromkeys(case.CASE_CATEGORICAL, 7))
    model = case.CaseModel(schema, case.case_tasks(5), n_items=5)
    numeric, codes = torch.randn(9, len(schema.numeric)), torch.randint(0, 7, (9, len(schema.categorical)))
    model.set_catalogue(numeric[:5], codes[:5], torch.arange(5))
    frame = pd.DataFrame(np.arange(12)[:, None] % 6, columns=["one"])
    frame = frame[["one"] * (len(numeric[0]) + len(codes[0]))]
    frame.columns = [*schema.numeric, *schema.categorical]
    encoder = FeatureEncoder(schema.numeric, list(schema.categorical)).fit(frame)
    loaded, _ = load_model(save_model(tmp_path, model, encoder))
    before, after = model.eval()(numeric, codes), loaded(numeric, codes)
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.fixture(scope="module")
def strangers(tmp_path_factory):
    """A table as somebody else keeps it: its test rows, their scores before saving, and what was loaded."""
    rng, rows = np.random.default_rng(0), 900
    table = pd.DataFrame({"customer no.": rng.integers(1000, 1040, rows), "205": rng.integers(0, 9, rows)})
    table["Größe"] = rng.choice(["S", "M", "<L>"], rows)
    table["paid €"] = rng.lognormal(3, 1, rows)
    table["bought?"] = (rng.random(rows) < 1 / (1 + np.exp(table["205"] - 4))).astype(int)
    table["waited ms"] = 60_000 + 5_000 * table["205"] + rng.normal(0, 900, rows)
    parts = {"train": table[:600], "valid": table[600:750], "test": table[750:]}
    tasks = (Task("bought?"), Task("waited ms", "regression"))
    splits = prepare(parts, tasks, ["paid €"], ["customer no.", "205", "Größe"])
    torch.manual_seed(0)
    model = SharedBottom(splits.schema, tasks)
    fit(model, splits.train, splits.valid, epochs=4, lr=1e-2, progress=False)
    folder = save_model(tmp_path_factory.mktemp("model"), model, splits.encoder)
    return parts["test"], predict(model, splits.test), load_model(folder)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", [int, str, float, "Int64", "int64[pyarrow]", "category", "string"])
def test_raw_rows_score_as_before_whatever_type_their_ids_have(strangers, kind):
    if "pyarrow" in str(kind):
        pytest.importorskip("pyarrow")
    rows, before, (model, encoder) = strangers
    rows = rows.drop(columns=["bought?", "waited ms"]).astype({"customer no.": kind, "205": kind})
    scores = score_rows(model, encoder, rows)
    assert all(np.allclose(scores[name], before[name], rtol=1e-6, atol=1e-6) for name in before)
    assert 60_000 < scores["waited ms"].mean() < 100_000  # in the label's unit


def test_rows_that_are_mostly_unknown_warn(strangers):
    rows, _, (model, encoder) = strangers
    with pytest.warns(UserWarning, match=r"customer no\."):
        score_rows(model, encoder, rows.assign(**{"customer no.": rows["customer no."] + 5000}))


@pytest.mark.parametrize("failing", ["model", "config", "nothing"])
def test_saving_again_replaces_the_model_unless_it_crashes(splits, tmp_path, monkeypatch, failing):
    first, second = (SharedBottom(splits.schema, MIXED_TASKS, hidden=hidden) for hidden in ((9,), (8,)))
    save_model(tmp_path, first, splits.encoder)
    replace = os.replace

    def disk_full(source, target):
        if target.name.startswith(failing):
            raise OSError("No space left on device")
        replace(source, target)

    monkeypatch.setattr("os.replace", disk_full)
    if failing == "nothing":
        save_model(tmp_path, second, splits.encoder)
        assert len(list(tmp_path.iterdir())) == 2
    else:
        with pytest.raises(OSError, match="space"):
            save_model(tmp_path, second, splits.encoder)
    assert same(load_model(tmp_path)[0], second if failing == "nothing" else first, splits.test)
    assert not list(tmp_path.glob(".*"))


def test_what_cannot_be_saved(splits, tmp_path):
    class Mine(SharedBottom):
        pass

    with pytest.raises(ValueError, match="Mine cannot be saved"):
        save_model(tmp_path, Mine(splits.schema, TWO), splits.encoder)
    other = Schema(("q",), splits.schema.categorical)
    with pytest.raises(ValueError, match="another model's"):
        save_model(tmp_path, SharedBottom(other, TWO), splits.encoder)


@pytest.mark.parametrize(
    "change", [{"class": "Nobody"}, {"settings": {"hidden": [3]}}, {"settings": {"x": 1}}]
)
def test_damage_is_said(splits, tmp_path, change):
    save_model(tmp_path, SharedBottom(splits.schema, TWO), splits.encoder)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises((ValueError, RuntimeError), match=r"damaged|size mismatch"):
        load_model(tmp_path)
    for weights in tmp_path.glob("model-*"):
        weights.unlink()
    with pytest.raises((FileNotFoundError, ValueError)):
        load_model(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        load_model(tmp_path / "nowhere")
