"""What a hostile or hurried reader hands to the package, and the answer each must get.

``python tests/bad_inputs.py`` prints the table with the outcome of every case; ``test_bad_inputs.py`` asserts it. A
case is kept when exactly the promised type of error comes, its message names the cause, and every file in the case's
folder is byte for byte what it was.
"""

from __future__ import annotations

import errno
import math
import os
import re
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from unittest import mock

import numpy as np
import pandas as pd
import torch

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]

from helpers import MIXED_TASKS, toy_frame, toy_splits

from mtl_helpers import data, gradients, losses, metrics, models, ranking, sweep, training, weighting, widgets
from mtl_helpers.data import FeatureEncoder, MultiTaskDataset, Schema, Task, shop, tabular
from mtl_helpers.models import fusion
from mtl_helpers.models import saving as serving

Do = Callable[[Path], object]
SCHEMA = Schema(("x", "z"), {"user_id": 5, "item": 3})
EQUAL = {"click": 1.0, "kind": 1.0, "dwell": 1.0}


@dataclass(frozen=True)
class Case:
    """``do(folder)`` must raise exactly ``error`` with a message that matches ``says``, and leave the folder alone."""

    area: str
    what: str
    error: type[BaseException]
    says: str
    do: Do
    prepare: Do | None = None

    @property
    def name(self) -> str:
        return f"{self.area}: {self.what}"


CASES: list[Case] = []


def bad(
    area: str, what: str, error: type[BaseException], says: str, do: Do, prepare: Do | None = None
) -> None:
    CASES.append(Case(area, what, error, says, do, prepare))


def outcome(case: Case, folder: Path) -> str:
    """``"kept"``, or what is wrong with the answer."""
    if case.prepare:
        case.prepare(folder)
    before = contents(folder)
    try:
        got = case.do(folder)
    except BaseException as error:
        if type(error) is not case.error:
            return f"raised {type(error).__name__} ({error}), expected {case.error.__name__}"
        if not re.search(case.says, str(error)):
            return f"the message does not name the cause ({case.says!r}): {error}"
    else:
        return f"raised nothing and returned {str(got)[:60]}"
    after = contents(folder)
    if after != before:
        return f"files were changed: {sorted(set(before) ^ set(after)) or 'their contents'}"
    return "kept"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@cache
def splits() -> data.Splits:
    return toy_splits(300)


def model(**settings) -> models.SharedBottom:
    torch.manual_seed(0)
    return models.SharedBottom(splits().schema, MIXED_TASKS, hidden=(8,), tower=(4,), **settings)


def train(**arguments):
    return training.fit(
        arguments.pop("net", None) or model(),
        arguments.pop("train", splits().train),
        **{"epochs": 1, "progress": False} | arguments,
    )


def table(**columns) -> pd.DataFrame:
    """The toy log with columns replaced."""
    return toy_frame(50).assign(**columns)


def encode(task: Task, labels: list) -> MultiTaskDataset:
    frame = pd.DataFrame({"x": range(len(labels)), task.name: labels})
    return MultiTaskDataset.from_frame(frame, FeatureEncoder(["x"], []).fit(frame), [task])


# --- tasks and tables -------------------------------------------------------------------------------------------

bad("tasks", "unknown kind", ValueError, "kind is 'ranking'", lambda _: Task("a", kind="ranking"))
bad(
    "tasks",
    "multiclass without classes",
    ValueError,
    "give n_classes",
    lambda _: Task("a", kind="multiclass"),
)
bad("tasks", "one class", ValueError, "2 or more, got 1", lambda _: Task("a", kind="multiclass", n_classes=1))
bad("tasks", "binary with classes", ValueError, "leave n_classes out", lambda _: Task("a", n_classes=2))
bad("tasks", "none at all", ValueError, "No task", lambda _: models.SharedBottom(SCHEMA, []))
bad(
    "tasks",
    "one name twice",
    ValueError,
    "'a' stands more",
    lambda _: models.SharedBottom(SCHEMA, [Task("a")] * 2),
)
bad("labels", "no such column", KeyError, "needs a column 'buy'", lambda _: encode_from(Task("buy")))
bad("labels", "text", ValueError, "must be numbers", lambda _: encode(Task("a"), ["yes", "no"]))
bad("labels", "a 2 in a binary label", ValueError, "0 or 1; found 2", lambda _: encode(Task("a"), [0, 1, 2]))
bad(
    "labels",
    "class too high",
    ValueError,
    "0 to 2; found 3",
    lambda _: encode(Task("a", "multiclass", 3), [0, 3]),
)
bad(
    "labels",
    "half a class",
    ValueError,
    "whole.*found 0.5",
    lambda _: encode(Task("a", "multiclass", 3), [0.5]),
)
bad(
    "labels",
    "infinite",
    ValueError,
    "finite.*found inf",
    lambda _: encode(Task("a", "regression"), [1, math.inf]),
)
bad("features", "none", ValueError, "no column", lambda _: FeatureEncoder([], []))
bad("features", "no rows", ValueError, "without rows", lambda _: FeatureEncoder(["x"], []).fit(table()[:0]))
bad(
    "features",
    "no such column",
    KeyError,
    "'y' is not a column",
    lambda _: FeatureEncoder(["y"], []).fit(table()),
)
bad(
    "features",
    "text as number",
    ValueError,
    "'item' holds",
    lambda _: FeatureEncoder(["item"], []).fit(table()),
)
bad(
    "features", "infinite", ValueError, "infinite", lambda _: FeatureEncoder(["x"], []).fit(table(x=math.inf))
)
bad(
    "features",
    "used before fit",
    RuntimeError,
    "call fit",
    lambda _: FeatureEncoder(["x"], []).transform(table()),
)
bad(
    "features",
    "two columns of one name",
    ValueError,
    "'x' stands 2 times",
    lambda _: FeatureEncoder(["x"], []).fit(pd.concat([table(), table()[["x"]]], axis=1)),
)
bad(
    "splits",
    "shares above 1",
    ValueError,
    "sum to 1",
    lambda _: data.split_by_time(table(), fractions=(1, 1, 1)),
)
bad(
    "splits",
    "a share below 0",
    ValueError,
    "above 0",
    lambda _: data.split_by_user(table(), fractions=(2, -0.5, -0.5)),
)
bad("splits", "no such column", KeyError, "'when'", lambda _: data.split_by_time(table(), time="when"))
bad("splits", "no rows, by time", ValueError, "no row", lambda _: data.split_by_time(table()[:0]))
bad("splits", "no rows, by user", ValueError, "no row", lambda _: data.split_by_user(table()[:0]))
bad("splits", "one row, by time", ValueError, "train.*no row", lambda _: data.split_by_time(table()[:1]))
bad("splits", "one user", ValueError, "1 user", lambda _: data.split_by_user(table(user_id=7)))
bad(
    "splits",
    "a part is missing",
    KeyError,
    "valid is missing",
    lambda _: data.prepare({"train": table(), "test": table()}, MIXED_TASKS, ["x"], []),
)
bad("batches", "of no rows", ValueError, "batch_size is 0", lambda _: next(splits().train.batches(0)))
bad("batches", "an unknown task", KeyError, "No task 'buy'", lambda _: splits().train.select(["buy"]))
bad("batches", "a row too far", IndexError, "999.*300|999.*210", lambda _: splits().train.take([999]))
bad("scarcity", "an unknown task", KeyError, "'buy'", lambda _: data.hide_labels(splits().train, "buy", 5))
bad(
    "scarcity",
    "too many labels",
    ValueError,
    "there are",
    lambda _: data.hide_labels(splits().train, "click", 9999),
)
bad(
    "scarcity", "a share above 1", ValueError, "1.5", lambda _: data.hide_labels(splits().train, "click", 1.5)
)
bad(
    "cleaning",
    "an unknown unit",
    ValueError,
    "unit yen",
    lambda _: data.convert_units(pd.Series([1.0]), pd.Series(["yen"]), {"EUR": 1}),
)
bad(
    "cleaning",
    "a negative price",
    ValueError,
    "above 0",
    lambda _: data.clip_outliers(pd.Series([-1.0]), log=True),
)


def encode_from(task: Task) -> MultiTaskDataset:
    return MultiTaskDataset.from_frame(table(), FeatureEncoder(["x"], []).fit(table()), [task])


# --- weights, losses, models ------------------------------------------------------------------------------------

for what, weights, says in (
    ("one is missing", {"click": 1.0, "kind": 1.0}, "one for each of"),
    ("an unknown task", EQUAL | {"buy": 1.0}, "'buy'"),
    ("below 0", EQUAL | {"kind": -1.0}, "'kind': -1"),
    ("not a number", EQUAL | {"kind": math.nan}, "'kind': nan"),
    ("infinite", EQUAL | {"kind": math.inf}, "'kind': inf"),
    ("all 0", dict.fromkeys(EQUAL, 0.0), "All task weights are 0"),
    ("text", EQUAL | {"kind": "much"}, "'kind': 'much'"),
):
    bad("task weights", what, ValueError, says, lambda _, weights=weights: train(weights=weights))
bad(
    "losses",
    "logits of another shape",
    ValueError,
    r"'a'.*\(4, 1\).*\(4,\)",
    lambda _: losses.task_loss(Task("a"), torch.zeros(4, 1), torch.zeros(4)),
)
bad(
    "losses",
    "three outputs for one binary label",
    ValueError,
    r"'a'.*\(4, 3\).*\(4,\)",
    lambda _: losses.task_loss(Task("a"), torch.zeros(4, 3), torch.zeros(4)),
)
bad(
    "losses",
    "one output for three classes",
    ValueError,
    r"'a'.*\(4,\).*\(4, 3\)",
    lambda _: losses.task_loss(Task("a", "multiclass", 3), torch.zeros(4), torch.zeros(4, dtype=torch.long)),
)
bad(
    "losses",
    "float labels for classes",
    TypeError,
    "'a'.*int64.*float32",
    lambda _: losses.task_loss(Task("a", "multiclass", 3), torch.zeros(4, 3), torch.zeros(4)),
)
bad("models", "a negative width", ValueError, "-3", lambda _: model_of(hidden=(-3,)))
bad("models", "dropout of 2", ValueError, "dropout.*2", lambda _: model_of(dropout=2.0))
bad("models", "embedding of width 0", ValueError, "embedding_dim is 0", lambda _: model_of(embedding_dim=0))
bad(
    "models",
    "a category that the schema lacks",
    IndexError,
    "'item'.*3.*0 to 2",
    lambda _: models.SharedBottom(SCHEMA, MIXED_TASKS)(torch.zeros(1, 2), torch.tensor([[0, 3]])),
)
bad(
    "models",
    "too few numeric columns",
    ValueError,
    r"1 numeric.*expected 2",
    lambda _: models.SharedBottom(SCHEMA, MIXED_TASKS)(torch.zeros(1, 1), torch.tensor([[0, 0]])),
)
bad("fusion", "a negative exponent", ValueError, "0 or more", lambda _: models.Fusion({"click": -1}))
bad("fusion", "NaN as exponent", ValueError, "0 or more", lambda _: models.Fusion({"click": math.nan}))
bad("fusion", "no task", ValueError, "at least one", lambda _: models.Fusion({}))
bad(
    "fusion",
    "an unknown kind",
    ValueError,
    "kind is 'mean'",
    lambda _: models.Fusion({"click": 1}, kind="mean"),
)
bad(
    "fusion",
    "a prediction is missing",
    KeyError,
    "'purchase'.*click",
    lambda _: models.Fusion({"click": 1, "purchase": 1})({"click": torch.rand(3)}),
)


def model_of(**settings) -> models.SharedBottom:
    return models.SharedBottom(SCHEMA, MIXED_TASKS, **settings)


# --- training ---------------------------------------------------------------------------------------------------

bad("training", "no rows", ValueError, "0 rows", lambda _: train(train=splits().train.take([])))
bad(
    "training",
    "labels of other tasks",
    ValueError,
    "click",
    lambda _: train(train=splits().train.select(["kind"])),
)
bad("training", "0 epochs", ValueError, "epochs is 0", lambda _: train(epochs=0))
bad("training", "a negative learning rate", ValueError, "lr is -1", lambda _: train(lr=-1.0))
bad("training", "NaN as learning rate", ValueError, "lr is nan", lambda _: train(lr=math.nan))
bad(
    "training",
    "a huge learning rate",
    training.TrainingDiverged,
    "task .click.|task .dwell.",
    lambda _: train(lr=1e30, epochs=9),
)
bad("training", "negative decay", ValueError, "weight_decay is -1", lambda _: train(weight_decay=-1.0))
bad(
    "training",
    "patience below 1",
    ValueError,
    "patience is 0",
    lambda _: train(valid=splits().valid, patience=0),
)
bad(
    "training",
    "watching an unknown task",
    ValueError,
    "'buy.auc'",
    lambda _: train(monitor="buy.auc", valid=splits().valid),
)
bad(
    "training",
    "watching an unknown metric",
    ValueError,
    "click has",
    lambda _: train(monitor="click.f1", valid=splits().valid),
)
bad(
    "training",
    "a strategy for other tasks",
    ValueError,
    r"\['a'\]",
    lambda _: train(weights=weighting.DWA([Task("a")])),
)
bad(
    "training",
    "gradients of a model that shares nothing",
    ValueError,
    "no shared bottom",
    lambda _: train(
        net=models.SingleTask(splits().schema, MIXED_TASKS[0]),
        weights=gradients.CombinedGradients(MIXED_TASKS[:1], "PCGrad"),
    ),
)


def nan_feature(_):
    spoilt = splits().train.take(slice(None))
    spoilt.numeric[3, 0] = math.nan
    return train(train=spoilt)


bad(
    "devices",
    "a model here, data there",
    ValueError,
    "model is on cpu.*data on meta.*model.to",
    lambda _: training.predict(model(), splits().test.to("meta")),
)
bad(
    "devices",
    "training here, validation there",
    ValueError,
    "training data are on cpu.*validation data on meta",
    lambda _: train(valid=splits().valid.to("meta")),
)
bad(
    "devices",
    "the loop alone, with data there",
    ValueError,
    "model is on cpu.*data on meta",
    lambda _: next(
        training.training_steps(model(), splits().train.to("meta"), torch.optim.SGD([torch.ones(1)]))
    ),
)
bad("training", "NaN among the features", training.TrainingDiverged, "click", nan_feature)

# --- strategies -------------------------------------------------------------------------------------------------

bad(
    "strategies",
    "DWA at temperature 0",
    ValueError,
    "temperature is 0",
    lambda _: weighting.DWA(MIXED_TASKS, 0),
)
bad("strategies", "STCH with mu 0", ValueError, "mu is 0", lambda _: weighting.STCH(MIXED_TASKS, mu=0))
bad(
    "strategies",
    "an unknown method",
    ValueError,
    "'sgd'",
    lambda _: gradients.CombinedGradients(MIXED_TASKS, "sgd"),
)
bad(
    "strategies",
    "an unknown place",
    ValueError,
    "at is 'loss'",
    lambda _: gradients.CombinedGradients(MIXED_TASKS, "MGDA", at="loss"),
)
bad(
    "strategies",
    "an unknown method of combine",
    ValueError,
    "'sgd'",
    lambda _: gradients.combine("sgd", torch.ones(2, 3)),
)
bad(
    "strategies",
    "one gradient as a vector",
    ValueError,
    r"\(3,\).*\(T, P\)",
    lambda _: gradients.combine("MGDA", torch.ones(3)),
)
bad(
    "strategies",
    "NaN in a gradient",
    ValueError,
    "NaN",
    lambda _: gradients.combine("MGDA", torch.tensor([[1.0, math.nan], [0.0, 1.0]])),
)

# --- metrics ----------------------------------------------------------------------------------------------------

bad("metrics", "two lengths", ValueError, r"\(2,\).*\(3,\)", lambda _: metrics.auc([0, 1], [0.1, 0.2, 0.3]))
bad(
    "metrics",
    "NaN scores",
    ValueError,
    "1 of 2 scores are NaN",
    lambda _: metrics.auc([0, 1], [0.1, math.nan]),
)
bad("metrics", "missing labels", ValueError, "found nan", lambda _: metrics.auc([0, math.nan], [0.1, 0.2]))
bad("metrics", "labels 1 and 2", ValueError, "found 2", lambda _: metrics.accuracy([1, 2], [0.1, 0.2]))
bad(
    "metrics",
    "logits for probabilities",
    ValueError,
    "logit",
    lambda _: metrics.log_loss([0, 1], [-3.0, 4.0]),
)
bad(
    "metrics",
    "logits, calibration",
    ValueError,
    "logit",
    lambda _: metrics.calibration_error([0, 1], [-3.0, 4.0]),
)
bad(
    "metrics",
    "groups of another length",
    ValueError,
    "one group per row",
    lambda _: metrics.grouped_auc([0, 1], [0, 1], [1]),
)
bad(
    "metrics",
    "no bins",
    ValueError,
    "bins is 0",
    lambda _: metrics.calibration_error([0, 1], [0.1, 0.2], bins=0),
)
bad("metrics", "interval of one run", ValueError, "two or more", lambda _: metrics.mean_interval([0.7]))
bad("metrics", "interval with NaN", ValueError, "finite", lambda _: metrics.mean_interval([0.7, math.nan]))
bad(
    "metrics",
    "pairs that are none",
    ValueError,
    "2 and 3",
    lambda _: metrics.paired_difference([1, 2], [1, 2, 3]),
)
bad("metrics", "a level of 95", ValueError, "level is 95", lambda _: metrics.mean_interval([1, 2], level=95))

# --- the shop ---------------------------------------------------------------------------------------------------


@cache
def small_shop() -> shop.Shop:
    return shop.simulate(shop.ShopConfig(n_users=20, n_items=20, n_impressions=200))


def shop_with(table_name: str, **columns) -> pd.DataFrame:
    raw = {name: getattr(small_shop(), name) for name in ("users", "items", "impressions", "truth")}
    raw[table_name] = raw[table_name].assign(**columns)
    return shop.shop_frame(shop.Shop(**raw, config=None))


for what, error, says, knobs in (
    ("half a user", TypeError, "n_users is 0.5", {"n_users": 0.5}),
    ("three users", ValueError, "n_users is 3, expected 10", {"n_users": 3}),
    ("rows that fill no session", ValueError, "multiple of 5", {"n_impressions": 7}),
    ("more purchases than clicks", ValueError, "purchase_rate", {"click_rate": 0.01, "purchase_rate": 0.02}),
    ("relatedness of 2", ValueError, "relatedness is 2", {"relatedness": 2}),
    ("NaN as rate", ValueError, "click_rate is nan", {"click_rate": math.nan}),
    ("a negative seed", ValueError, "seed is -1", {"seed": -1}),
    ("99 categories", ValueError, "n_categories is 99", {"n_categories": 99}),
):
    bad("shop", what, error, says, lambda _, knobs=knobs: shop.ShopConfig(**knobs))


def world() -> shop.World:
    return shop.make_world(small_shop().config)


bad("shop", "an unknown user", ValueError, "user runs from 99", lambda _: world().probabilities(99, 0))
bad("shop", "an unknown item", ValueError, "item runs from -1", lambda _: world().probabilities(0, -1))
bad("shop", "position 0", ValueError, "position", lambda _: world().probabilities(0, 0, position=0))
bad("shop", "an unknown channel", ValueError, "'fax'", lambda _: world().probabilities(0, 0, channel="fax"))
bad(
    "shop",
    "a user outside the table",
    ValueError,
    "user_id that the table of users",
    lambda _: shop_with("impressions", user_id=77),
)
bad(
    "shop",
    "bought without a click",
    ValueError,
    "without a click",
    lambda _: shop_with("impressions", click=0, purchase=1),
)
bad("shop", "a click of 3", ValueError, "click holds 3", lambda _: shop_with("impressions", click=3))
bad("shop", "no time", ValueError, "ISO", lambda _: shop_with("impressions", timestamp="yesterday"))
bad("shop", "an unknown category", ValueError, "'cars'", lambda _: shop_with("items", category="cars"))
bad("shop", "negative prices", ValueError, "price", lambda _: shop_with("items", price=-5.0))
bad("shop", "no folder", FileNotFoundError, "nowhere", lambda folder: shop.load_shop(folder / "nowhere"))


def damaged_shop(folder: Path) -> None:
    shop.write_shop(small_shop().config, folder)
    path = folder / "impressions.csv.gz"
    path.write_bytes(path.read_bytes()[:500])


bad("shop", "a file cut short", ValueError, "impressions.csv.gz", shop.load_shop, damaged_shop)

# --- a table of the reader's own --------------------------------------------------------------------------------


def own_table(**columns) -> pd.DataFrame:
    """Sixty rows with a yes or no, a price and names as they are found in the wild."""
    rng = np.random.default_rng(0)
    names = ['=HYPERLINK("http://x")', "<img src=x onerror=alert(1)>", "plain"]
    table = {
        "when": pd.date_range("2024-01-01", periods=60, freq="h"),
        "brand": rng.choice(names, 60),
        "price": rng.random(60),
        "bought": rng.integers(0, 2, 60),
    }
    return pd.DataFrame(table | columns)


def own(labels="bought", table: Callable[[], pd.DataFrame] = own_table, **options):
    return lambda _: tabular.TabularLog.from_frame(table(), labels=labels, **options)


def own_file(name: str):
    return lambda folder: tabular.TabularLog.from_file(folder / name, labels=["bought"])


bad("own table", "a label that is no column", KeyError, "'paid'.*when, brand", own(["paid"]))
bad("own table", "no label", ValueError, "labels is empty", own([]))
bad("own table", "no rows", ValueError, "no rows", own(table=lambda: own_table().head(0)))
bad("own table", "one class", ValueError, "'bought'.*every row", own(table=lambda: own_table(bought=1)))
bad("own table", "a date as label", ValueError, "'when' holds dates", own(["when"]))
bad(
    "own table",
    "spreadsheet formulas as numbers",
    ValueError,
    "'sum' is to be a number but holds '=1.1'",
    own({"sum": "regression"}, lambda: own_table(sum=["=1+1", "=1+2"] * 30)),
)
bad(
    "own table",
    "infinite labels",
    ValueError,
    "'spent' holds infinite",
    own(["spent"], lambda: own_table(spent=[0.5, math.inf] * 30)),
)
bad(
    "own table",
    "the label in other words",
    tabular.LabelLeak,
    "'receipt' alone gives label 'bought' away.*ignore",
    own(table=lambda: own_table(receipt=own_table()["bought"].map({0: "none", 1: "printed"}))),
)
bad("own table", "an unknown kind", ValueError, "'ordinal'", own({"bought": "ordinal"}))
bad("own table", "no file", FileNotFoundError, "log.csv", own_file("log.csv"))
bad(
    "own table",
    "an empty file",
    ValueError,
    "log.csv",
    own_file("log.csv"),
    lambda f: (f / "log.csv").touch(),
)
bad(
    "own table",
    "a picture called csv",
    ValueError,
    "log.csv cannot be read",
    own_file("log.csv"),
    lambda f: (f / "log.csv").write_bytes(bytes(range(128, 256)) * 9),
)
bad(
    "own table",
    "a workbook",
    ValueError,
    "log.xlsx.*expected .csv",
    own_file("log.xlsx"),
    lambda f: (f / "log.xlsx").touch(),
)
bad(
    "own table",
    "a split by a column that was not named",
    ValueError,
    "by='user'.*user=",
    lambda _: own()(_).split(by="user"),
)

# --- checkpoints and sweeps -------------------------------------------------------------------------------------


def saved(folder: Path) -> Path:
    return training.save_checkpoint(folder / "best", model())


def cut(folder: Path) -> None:
    path = saved(folder)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def pickled(folder: Path) -> None:
    torch.save({"model": {}, "extra": Trap()}, folder / "best")


class Trap:
    """Would write a file if it were unpickled."""

    def __reduce__(self):
        return (Path.touch, (Path("trap-was-sprung"),))


def full_disk(folder: Path):
    with mock.patch("os.replace", side_effect=OSError(errno.ENOSPC, "No space left on device")):
        return saved(folder)


def load(folder: Path):
    return training.load_checkpoint(folder / "best", model())


bad("checkpoint", "not there", FileNotFoundError, "best", load)
bad("checkpoint", "a folder that is not there", FileNotFoundError, "create it", lambda f: saved(f / "no"))
bad(
    "checkpoint",
    "text",
    ValueError,
    "best is no",
    load,
    lambda f: (f / "best").write_text("hello"),
)
bad("checkpoint", "empty", ValueError, "best is no", load, lambda f: (f / "best").write_bytes(b""))
bad("checkpoint", "cut short", ValueError, "best is no", load, cut)
bad("checkpoint", "a pickle with code", ValueError, "best is no", load, pickled)
bad(
    "checkpoint",
    "of another model",
    ValueError,
    "another model",
    lambda f: training.load_checkpoint(f / "best", model(embedding_dim=3)),
    saved,
)
bad("checkpoint", "the disk is full", OSError, "No space", full_disk, saved)
bad("checkpoint", "the disk is full, first time", OSError, "No space", full_disk)


def unwritable(folder: Path, save: Do):
    """As for a reader who may not write there; root may write anywhere."""
    refuse = PermissionError(errno.EACCES, "Permission denied", str(folder))
    with mock.patch("tempfile.mkstemp", side_effect=refuse), mock.patch("os.mkdir", side_effect=refuse):
        return save(folder)


bad(
    "checkpoint",
    "a folder that nobody may write to",
    PermissionError,
    "Permission denied.*box|Permission denied.*tmp",
    lambda f: unwritable(f, saved),
    saved,
)


def run_sweep(**arguments):
    return sweep.sweep(
        model, splits().train, **{"weightings": [EQUAL], "epochs": 1, "progress": False} | arguments
    )


bad("sweep", "no weighting", ValueError, "one or more", lambda _: run_sweep(weightings=[]))
bad("sweep", "one dictionary", ValueError, "one or more", lambda _: run_sweep(weightings=EQUAL))
bad(
    "sweep",
    "a negative weight",
    ValueError,
    "-1",
    lambda _: run_sweep(weightings=[EQUAL, EQUAL | {"kind": -1}]),
)
bad("sweep", "one seed twice", ValueError, r"seeds is \[1, 1\]", lambda _: run_sweep(seeds=[1, 1]))
bad("sweep", "the best of no validation", ValueError, "validation", lambda _: run_sweep(keep="best"))
bad("sweep", "a grid of one task", ValueError, "two or more tasks", lambda _: sweep.simplex_grid(["a"]))
bad("sweep", "a front of one number", ValueError, r"\(3,\)", lambda _: sweep.pareto_mask(np.zeros(3)))

# --- lists, serving ---------------------------------------------------------------------------------------------

SCORES = np.arange(12.0).reshape(2, 6)
bad("lists", "a catalogue smaller than k", ValueError, "k is 9.*6 items", lambda _: ranking.top_k(SCORES, 9))
bad("lists", "k of 0", ValueError, "k is 0", lambda _: ranking.top_k(SCORES, 0))
bad("lists", "NaN scores", ValueError, "NaN", lambda _: ranking.top_k(np.full((1, 3), math.nan), 1))
bad("lists", "one score for all", ValueError, r"\(3,\)", lambda _: ranking.top_k(np.zeros(3), 1))
bad(
    "lists",
    "diversity of 2",
    ValueError,
    "diversity is 2",
    lambda _: ranking.mmr(SCORES, list("abcabc"), 3, 2.0),
)
bad("lists", "too few categories", ValueError, "6 items", lambda _: ranking.mmr(SCORES, ["a"], 3, 0.5))
bad("lists", "an unknown item", ValueError, "item 7", lambda _: ranking.recall_at_k(SCORES > 3, [[7], [0]]))
bad(
    "lists",
    "an item twice",
    ValueError,
    "more than once",
    lambda _: ranking.recall_at_k(SCORES > 3, [[1, 1], [0, 1]]),
)
bad("lists", "negative relevance", ValueError, "0 or more", lambda _: ranking.ndcg_at_k(-SCORES, [[1], [0]]))
bad("lists", "negative exposure", ValueError, "0 or more", lambda _: ranking.gini([-1.0, 2.0]))
bad(
    "lists",
    "negative prices",
    ValueError,
    "prices are negative",
    lambda _: ranking.expected_revenue([[0], [1]], SCORES / 12, [-1.0] * 6),
)
bad(
    "lists",
    "purchases that are no probabilities",
    ValueError,
    r"\[0, 1\]",
    lambda _: ranking.expected_revenue([[0], [1]], SCORES, [1.0] * 6),
)


def served(folder: Path) -> Path:
    return serving.save_model(folder / "model", model(), splits().encoder)


def edited(old: str, new: str) -> Do:
    def prepare(folder: Path) -> None:
        config = served(folder) / "config.json"
        text = config.read_text()
        assert old in text
        config.write_text(text.replace(old, new))

    return prepare


def without_weights(folder: Path) -> None:
    served(folder)
    for path in (folder / "model").glob("*.safetensors"):
        path.unlink()


def spoilt_weights(folder: Path) -> None:
    served(folder)
    (path,) = (folder / "model").glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:-4] + b"evil")


def load_served(folder: Path):
    return serving.load_model(folder / "model")


bad("serving", "nothing saved", FileNotFoundError, "config.json", load_served)
bad("serving", "no weights", FileNotFoundError, "are missing", load_served, without_weights)
bad("serving", "changed weights", ValueError, "checksum", load_served, spoilt_weights)
bad(
    "serving", "a config that is no JSON", ValueError, "config.json is damaged", load_served, edited("{", "<")
)
bad(
    "serving",
    "an unknown class",
    ValueError,
    "os.system",
    load_served,
    edited('"SharedBottom"', '"os.system"'),
)
bad(
    "serving",
    "another format",
    ValueError,
    "format|version",
    load_served,
    edited("mtl_helpers model 1", "mtl_helpers model 9"),
)
bad(
    "serving",
    "a path out of the folder",
    ValueError,
    "64 hexadecimal",
    load_served,
    edited('"weights_sha256": "', '"weights_sha256": "../../'),
)
bad(
    "serving",
    "another schema",
    ValueError,
    "schema|columns",
    lambda f: serving.load_model(f / "model", schema=SCHEMA),
    served,
)
bad(
    "serving",
    "a model of the reader's own",
    ValueError,
    "Linear",
    lambda f: serving.save_model(f / "m", torch.nn.Linear(1, 1), splits().encoder),
)
bad(
    "fusion",
    "a learned one of negative inputs",
    ValueError,
    "negative",
    lambda _: fusion.LearnedFusion({"p": "log_odds"})({"p": torch.tensor([-0.1])}),
)

# --- who shares what --------------------------------------------------------------------------------------------

bad(
    "sharing",
    "a funnel of a regression",
    ValueError,
    "not binary",
    lambda _: models.ESMM(SCHEMA, MIXED_TASKS),
)
bad(
    "sharing",
    "a funnel of unknown tasks",
    ValueError,
    "buy",
    lambda _: models.ESMM(SCHEMA, MIXED_TASKS, chain=("click", "buy")),
)
bad(
    "sharing",
    "a funnel as text",
    ValueError,
    "different names",
    lambda _: models.AITM(SCHEMA, MIXED_TASKS, chain="click"),
)
bad(
    "sharing",
    "more parameters than are to be matched",
    ValueError,
    "parameters",
    lambda _: models.match_parameters(model(), {"big": (models.MMoE, {"n_experts": 500})}),
)

# --- demos ------------------------------------------------------------------------------------------------------

demo = widgets.threshold_explorer
bad("demos", "a range that is none", ValueError, "low < high", lambda _: widgets.slider("w", "w", 1, 0, 0.5))
bad("demos", "a start outside", ValueError, "goes from 0 to 1", lambda _: widgets.slider("w", "w", 0, 1, 5))
bad("demos", "no choice", ValueError, "at least one", lambda _: widgets.dropdown("w", "w", []))
bad("demos", "two lengths", ValueError, "2", lambda _: demo([0, 1], [0.1, 0.2, 0.3]))
bad("demos", "a probability of 2", ValueError, "2", lambda _: demo([0, 1], [0.1, 2.0]))
bad("demos", "an unknown control", KeyError, "'speed'", lambda _: demo([0, 1], [0.1, 0.2]).set(speed=3))
bad(
    "demos",
    "a value beyond the end",
    ValueError,
    "threshold",
    lambda _: demo([0, 1], [0.1, 0.2]).set(threshold=3),
)


def main() -> int:
    rows = []
    for case in CASES:
        with tempfile.TemporaryDirectory() as folder:
            rows.append((case, outcome(case, Path(folder))))
    print("| area | input | error | outcome |\n|---|---|---|---|")
    for case, result in rows:
        print(f"| {case.area} | {case.what} | {case.error.__name__} | {result} |")
    kept = sum(result == "kept" for _, result in rows)
    print(f"\n{kept} of {len(rows)} bad inputs get the promised answer.")
    return int(kept < len(rows))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
