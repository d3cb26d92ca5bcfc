"""One case for each kind of input that would give a silent wrong number: each gets its error, in words that name it."""

from __future__ import annotations

import ast
import math
from functools import cache

import pandas as pd
import pytest
import torch
from helpers import MIXED_TASKS, ROOT, toy_frame, toy_splits

from mtl_helpers import data, gradients, losses, metrics, models, training
from mtl_helpers.data import FeatureEncoder, MultiTaskDataset, Schema, Task

SCHEMA = Schema(("x", "z"), {"user_id": 5, "item": 3})
EQUAL = {"click": 1.0, "kind": 1.0, "dwell": 1.0}


@cache
def splits() -> data.Splits:
    return toy_splits(300)


def train(**arguments):
    torch.manual_seed(0)
    net = arguments.pop("net", None) or models.SharedBottom(splits().schema, MIXED_TASKS)
    rows = arguments.pop("train", splits().train)
    return training.fit(net, rows, **{"epochs": 1, "progress": False} | arguments)


def fitted(columns: list[str] | None = None, **changed) -> FeatureEncoder:
    return FeatureEncoder(["x"] if columns is None else columns, []).fit(toy_frame(50).assign(**changed))


def encode(task: Task, labels: list) -> MultiTaskDataset:
    frame = pd.DataFrame({"x": range(len(labels)), "a": labels})
    return MultiTaskDataset.from_frame(frame, FeatureEncoder(["x"], []).fit(frame), [task])


def parts(**columns):
    return data.split_by_time(toy_frame(200).assign(**columns))


B, C, R = Task("a"), Task("a", "multiclass", 3), Task("a", "regression")
ZERO = torch.zeros
CASES = {
    # tasks and labels
    "unknown kind": (ValueError, "kind is 'ranking'", lambda: Task("a", kind="ranking")),
    "one name twice": (ValueError, "name of its own", lambda: models.SharedBottom(SCHEMA, [B, B])),
    "no label column": (KeyError, "'b' needs a column 'b'", lambda: encode(Task("b"), [0, 1])),
    "text labels": (ValueError, "must be numbers.*'yes'", lambda: encode(B, ["yes", "no"])),
    "a 2 in a binary label": (ValueError, "0 or 1; found 2", lambda: encode(B, [0, 1, 2])),
    "class too high": (ValueError, "0 to 2; found 3", lambda: encode(C, [0, 3])),
    "half a class": (ValueError, "whole.*found 0.5", lambda: encode(C, [0.5])),
    "infinite label": (ValueError, "finite.*found inf", lambda: encode(R, [1, math.inf])),
    # features
    "infinite feature": (ValueError, "infinite", lambda: fitted(x=math.inf)),
    "no such feature": (KeyError, "needs a column 'y'", lambda: fitted(["y"])),
    "one column twice": (
        ValueError,
        "'x' stands more than once",
        lambda: fitted().transform(pd.concat([toy_frame(5), toy_frame(5)[["x"]]], axis=1)),
    ),
    "a part is missing": (
        KeyError,
        "valid",
        lambda: data.prepare({"train": toy_frame(9)}, [Task("click")], ["x"], []),
    ),
    "label as feature": (
        ValueError,
        "'click' is the label",
        lambda: data.prepare(parts(), MIXED_TASKS, ["x", "click"], []),
    ),
    # splits, batches
    "a split without rows": (ValueError, "No row for train", lambda: data.split_by_time(toy_frame(1))),
    "one user": (ValueError, "n_samples=1", lambda: data.split_by_user(toy_frame(50).assign(user_id=7))),
    "too many labels": (ValueError, "there are", lambda: data.hide_labels(splits().train, "click", 9999)),
    "unknown unit": (
        ValueError,
        "price .* is no price in EUR or cent",
        lambda: data.clean_items(data.load_shop().items.assign(price_unit="yen")),
    ),
    # losses, models
    "column of logits": (ValueError, r"\(4, 1\).*\(4,\)", lambda: losses.task_loss(B, ZERO(4, 1), ZERO(4))),
    "float classes": (TypeError, "int64.*float32", lambda: losses.task_loss(C, ZERO(4, 3), ZERO(4))),
    "category the schema lacks": (
        IndexError,
        "category is below 0 or too high.*'item': 3",
        lambda: models.SharedBottom(SCHEMA, MIXED_TASKS)(ZERO(1, 2), torch.tensor([[0, 3]])),
    ),
    # training, strategies
    "a weight is missing": (
        ValueError,
        "one for each of",
        lambda: train(weights={"click": 1.0, "kind": 1.0}),
    ),
    "no rows": (ValueError, "0 rows", lambda: train(train=splits().train.take([]))),
    "NaN in a gradient": (
        ValueError,
        "NaN",
        lambda: gradients.combine("MGDA", torch.tensor([[1.0, math.nan], [0.0, 1.0]])),
    ),
    # metrics
    "logits for probabilities": (ValueError, "Logits", lambda: metrics.log_loss([0, 1], [-3.0, 4.0])),
}


@pytest.mark.parametrize("name", CASES)
def test_each_kind_of_wrong_number_is_refused_in_words(name):
    error, says, do = CASES[name]
    with pytest.raises(error, match=says):
        do()


def test_no_module_unpickles():
    """torch.load only with weights_only, and neither pickle, eval, exec nor numpy's pickles anywhere."""
    for path in sorted((ROOT / "mtl_helpers").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            keywords = {word.arg: ast.unparse(word.value) for word in node.keywords}
            assert called not in ("eval", "exec", "pickle.load", "pickle.loads", "pd.read_pickle"), path
            assert keywords.get("allow_pickle") != "True", path
            if called == "torch.load":
                assert keywords.get("weights_only") == "True", path


def test_nothing_listens_and_nothing_knows_pickle():
    """Neither the package nor a notebook imports a server, a socket or a format that can carry code; but for joblib in
    notebook 10, whose worker processes read nothing but what that notebook hands them."""
    servers = "socket socketserver http.server xmlrpc wsgiref"
    unwanted = set(f"{servers} pickle cloudpickle marshal shelve dill joblib".split())
    texts = [*(ROOT / "mtl_helpers").rglob("*.py"), *(ROOT / "notebooks" / "source").glob("[0-9]*.py")]
    assert len(texts) > 30
    for path in texts:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
            else:
                continue
            found = {name for name in names if name in unwanted or name.partition(".")[0] in unwanted}
            found -= (
                {"joblib", "joblib.Parallel", "joblib.delayed"} if path.stem == "10_to_production" else set()
            )
            assert not found, f"{path.name} imports {found}"
