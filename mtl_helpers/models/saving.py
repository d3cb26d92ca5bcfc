"""Save a trained model with all it needs, load it elsewhere, and answer "what should this user see?".

Taught in notebook 05. A saved model is a folder with two files: ``config.json`` (class, tasks, schema, settings, and
the encoder's state) and ``model-….safetensors`` (the weights). Neither can hold code, so a folder from a stranger can
be wrong but not dangerous. :class:`Recommender` scores one user against a whole catalogue.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from mtl_helpers.data.features import FeatureEncoder
from mtl_helpers.data.tables import Schema, Task
from mtl_helpers.ranking import mmr, top_k
from mtl_helpers.training import (
    check_plain,
    check_same_tensors,
    plain_tensors,
    read_tensors,
    write_atomically,
)

__all__ = ["Recommender", "load_model", "model_classes", "save_model"]

FORMAT = "mtl_helpers model 1"
MODULES = ("sharing", "funnel", "case")
LARGEST_SETTING = 10_000_000  # of a whole number in a config; a larger one is damage or mischief
CONFIG_KEYS = ("format", "class", "tasks", "schema", "settings", "encoder", "weights_sha256")


# ------------------------------------------------------------------------------------------------- saving, loading


def model_classes() -> dict[str, type[nn.Module]]:
    """``{name: class}`` of the models that can be saved: those of the package made from a schema and tasks."""
    found = {}
    for module in MODULES:
        if importlib.util.find_spec(f"{__package__}.{module}") is None:
            continue
        for name, value in vars(importlib.import_module(f".{module}", __package__)).items():
            if isinstance(value, type) and issubclass(value, nn.Module) and not name.startswith("_"):
                names = inspect.signature(value).parameters
                if "schema" in names and {"task", "tasks"} & set(names):
                    found[name] = value
    return found


def save_model(folder: str | Path, model: nn.Module, encoder: FeatureEncoder) -> Path:
    """Save a model of the package and the encoder that it was trained with.

    Weights come first, under a name made of their checksum; then ``config.json``, which names them, is moved into its
    place. So a crash at any moment leaves the folder with the old model or with the new one.

    Parameters
    ----------
    folder : made if it is not there; a model that lies in it is replaced. model : of a class in
        :func:`model_classes`. encoder : fitted; its schema must be the model's.

    Raises
    ------
    ValueError : another class, or an encoder that does not fit.
    TypeError : a category or setting that JSON cannot hold.
    """
    from safetensors.torch import save

    name = type(model).__name__
    if model_classes().get(name) is not type(model):
        raise ValueError(f"{name} cannot be saved: expected a model of {', '.join(sorted(model_classes()))}.")
    _compare_schemas(encoder.schema, model.schema, "The encoder", "the model")
    weights = save(plain_tensors(model))
    digest = hashlib.sha256(weights).hexdigest()
    config = {
        "format": FORMAT,
        "class": name,
        "tasks": [asdict(task) for task in model.tasks],
        "schema": asdict(model.schema),
        "settings": dict(model.settings),
        "encoder": encoder.state(),
        "weights_sha256": digest,
    }
    check_plain(config, "saved model")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    target = _weights_file(folder, digest)
    write_atomically(target, weights)
    text = json.dumps(config, indent=1, ensure_ascii=False, allow_nan=False)
    write_atomically(folder / "config.json", text.encode("utf-8"))
    for old in folder.glob("model-*.safetensors"):
        if old != target:
            old.unlink(missing_ok=True)
    return folder


def load_model(folder: str | Path, schema: Schema | None = None) -> tuple[nn.Module, FeatureEncoder]:
    """Build the saved model again, in evaluation mode on the CPU; its scores are those of the model that was saved.

    Parameters
    ----------
    folder : written by :func:`save_model`.
    schema : what the caller's data looks like, if a model for other columns must be refused.

    Raises
    ------
    FileNotFoundError : no folder, config or weights. ValueError : the config is no saved model of this version, names
    a class that the package does not have, has another schema, or does not fit the weights; or a file is damaged.
    """
    folder = Path(folder)
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"No saved model in {folder}: there is no config.json.")
    config = _read_config(path)
    try:
        tasks = [Task(**task) for task in config["tasks"]]
        saved = Schema(tuple(config["schema"]["numeric"]), dict(config["schema"]["categorical"]))
        encoder = FeatureEncoder.from_state(config["encoder"])
        settings = {name: _setting(name, value) for name, value in config["settings"].items()}
        _compare_schemas(encoder.schema, saved, "its encoder", "its schema")
        cls = model_classes().get(config["class"])
        if cls is None:
            raise ValueError(
                f"its class is {config['class']!r}, expected one of {', '.join(sorted(model_classes()))}"
            )
        given = {"task": tasks[0]} if "task" in inspect.signature(cls).parameters else {"tasks": tasks}
        if "task" in given and len(tasks) != 1:
            raise ValueError(f"{config['class']} has one task, the config names {len(tasks)}")
        with torch.device("meta"):  # shapes only: a config cannot make us fill the memory
            model = cls(saved, **given, **settings)
        target = _weights_file(folder, config["weights_sha256"])
    except (LookupError, TypeError, AttributeError, ValueError, RuntimeError, ArithmeticError) as error:
        raise ValueError(f"config.json is damaged or no saved model: {_words(error)}") from None
    if schema is not None:
        _compare_schemas(saved, schema, "The saved model", "your data")
    if not target.is_file():
        raise FileNotFoundError(f"The weights {target.name} are missing in {folder}.")
    if hashlib.sha256(target.read_bytes()).hexdigest() != config["weights_sha256"]:
        raise ValueError(f"{target.name} is damaged: its checksum is not the one in config.json.")
    state, _ = read_tensors(target)
    check_same_tensors(state, model, target.name)
    model.load_state_dict(state, assign=True)
    return model.eval(), encoder


def _read_config(path: Path) -> dict[str, Any]:
    def no_constant(text: str) -> None:
        raise ValueError(f"{text} is no number")

    try:
        config = json.loads(path.read_text(encoding="utf-8"), parse_constant=no_constant)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"config.json is damaged or no saved model: {_words(error)}") from None
    if not isinstance(config, dict) or not isinstance(config.get("format"), str):
        raise ValueError("config.json is no saved model: it has no format.")
    if config["format"] != FORMAT:
        raise ValueError(
            f"This model has the format {config['format']!r}; this version of the package reads {FORMAT!r}."
        )
    missing = [key for key in CONFIG_KEYS if key not in config]
    if missing:
        raise ValueError(f"config.json is damaged or no saved model: {', '.join(missing)} missing.")
    return config


def _words(error: BaseException) -> str:
    name = type(error).__name__
    return f"{error}" if isinstance(error, ValueError) else f"{name}: {error}"[:300]


def _weights_file(folder: Path, digest: object) -> Path:
    if not isinstance(digest, str) or not re.fullmatch("[0-9a-f]{64}", digest):
        raise ValueError(f"weights_sha256 is {digest!r:.80}, expected 64 hexadecimal digits")
    return folder / f"model-{digest[:16]}.safetensors"


def _setting(name: str, value: object) -> object:
    """A constructor's argument: lists become tuples; what no model takes is refused."""
    if isinstance(value, list):
        return tuple(_setting(name, part) for part in value)
    if isinstance(value, dict):
        return {key: _setting(name, part) for key, part in value.items()}
    if isinstance(value, int | float) and not isinstance(value, bool) and not abs(value) <= LARGEST_SETTING:
        raise ValueError(f"setting {name!r} is {value}, more than {LARGEST_SETTING:,}")
    return value


def _compare_schemas(one: Schema, other: Schema, first: str, second: str) -> None:
    if list(one.numeric) != list(other.numeric):
        raise ValueError(
            f"{first} has the numeric columns {list(one.numeric)}, {second} {list(other.numeric)}."
        )
    if list(one.categorical.items()) != list(other.categorical.items()):
        differ = [
            f"{name}: {one.categorical.get(name, 'none')} and {other.categorical.get(name, 'none')}"
            for name in dict.fromkeys([*one.categorical, *other.categorical])
            if one.categorical.get(name) != other.categorical.get(name)
        ]
        raise ValueError(
            f"{first} and {second} differ in categorical columns: {'; '.join(differ) or 'their order'} categories."
        )


# ------------------------------------------------------------------------------------------------- one user's list


class Recommender:
    """One user against the whole catalogue: features, one forward pass, fusion, the best k.

    The catalogue is encoded once, at construction; a request only puts the user's columns beside it.

    Parameters
    ----------
    model, encoder : as :func:`load_model` returns them.
    items : (I rows) with ``item_id`` and the columns of the model's schema that belong to items; all other columns are
        kept for the answer. A ``price`` column becomes a signal, with 0 or more.
    users : (U rows) with ``user_id`` and the columns that belong to users.
    context : ``{column: value}`` of what is the same for every item in a request, such as hour or position.
    pairs : ``{numeric column: (U, I)}`` of what belongs to a user and an item together.
    classes : ``{multiclass task: (I,)}`` which class each item stands for; its probability is the item's signal.
        Without it a multiclass task gives no signal.
    fusion : ``{signal: (I,)} → (I,)``, such as :class:`mtl_helpers.models.Fusion` or a fitted ``LearnedFusion``.
    item_id, user_id : names of the id columns.

    Raises ValueError or KeyError, in words, when a column of the schema stands nowhere or twice, ids repeat, prices are
    negative or the fusion asks for a signal that is not there.

    Example
    -------
    >>> model, encoder = load_model("shop_model")                                            # doctest: +SKIP
    >>> shop = Recommender(model, encoder, items, users, context={"hour": 20, "position": 1},
    ...                    fusion=Fusion({"click": 1, "purchase": 1, "price": 0.5}))         # doctest: +SKIP
    >>> shop.recommend(user_id=17, k=10)                                                     # doctest: +SKIP
    """

    def __init__(
        self,
        model: nn.Module,
        encoder: FeatureEncoder,
        items: pd.DataFrame,
        users: pd.DataFrame,
        *,
        fusion: Callable[[Mapping[str, Tensor]], Tensor],
        context: Mapping[str, object] | None = None,
        pairs: Mapping[str, ArrayLike] | None = None,
        classes: Mapping[str, ArrayLike] | None = None,
        item_id: str = "item_id",
        user_id: str = "user_id",
    ) -> None:
        _compare_schemas(encoder.schema, model.schema, "The encoder", "the model")
        self.model, self.fusion = model.eval(), fusion
        self.device = next(model.parameters()).device
        self._items, self._item_at = _indexed(items, item_id, "items")
        users, self._user_at = _indexed(users, user_id, "users")
        context, pairs = dict(context or {}), dict(pairs or {})
        columns = [*encoder.numeric, *encoder.categorical]
        places = {"items": self._items, "users": users, "context": context, "pairs": pairs}
        source = {column: [name for name, place in places.items() if column in place] for column in columns}
        for column, found in source.items():
            if len(found) != 1:
                where = "nowhere" if not found else f"in {' and in '.join(found)}"
                raise ValueError(
                    f"The model reads {column!r}, which stands {where}; expected exactly one place."
                )
        wrong = [column for column in pairs if column not in encoder.numeric]
        if wrong:
            raise ValueError(f"pairs hold {wrong[0]!r}, which is no numeric column of the model.")
        owner = {column: found[0] for column, found in source.items()}

        def encode(rows: pd.DataFrame, name: str) -> tuple[Tensor, Tensor]:
            # columns of the others only have to be there; their numbers are not used
            others = {c: self._borrowed(c, owner[c], places) for c in columns if owner[c] != name}
            frame = pd.DataFrame({**{c: rows[c] for c in columns if owner[c] == name}}, index=rows.index)
            return encoder.transform(frame.assign(**others))

        alike = pd.DataFrame({name: [value] for name, value in context.items()} | {"": [0]})
        self._numeric, self._categorical = encode(self._items, "items")
        self._user = encode(users, "users")
        moment = encode(alike, "context")
        self._columns = {
            name: tuple(
                torch.tensor([i for i, column in enumerate(kind) if owner[column] == name], dtype=torch.long)
                for kind in (encoder.numeric, encoder.categorical)
            )
            for name in ("users", "context")
        }
        numeric, categorical = self._columns["context"]
        self._numeric[:, numeric] = moment[0][:, numeric]
        self._categorical[:, categorical] = moment[1][:, categorical]
        self._pairs = []
        for column, values in pairs.items():
            at, table = encoder.numeric.index(column), np.asarray(values, float)
            if table.shape != (len(users), len(self._items)):
                raise ValueError(
                    f"pairs[{column!r}] has shape {table.shape}, expected (users, items) = "
                    f"({len(users)}, {len(self._items)})."
                )
            scaled = np.nan_to_num((table - encoder.mean_[at]) / encoder.scale_[at], nan=0.0)
            self._pairs.append((at, torch.from_numpy(scaled.astype(np.float32))))
        self._classes = {}
        for task in model.tasks:
            if task.kind != "multiclass" or task.name not in (classes or {}):
                continue
            codes = np.asarray(classes[task.name])
            if codes.shape != (len(self._items),) or codes.dtype.kind not in "iu":
                raise ValueError(f"classes[{task.name!r}] needs a whole number for each of the items.")
            if codes.min() < 0 or codes.max() >= task.n_classes:
                raise ValueError(f"classes[{task.name!r}] must lie in 0 … {task.n_classes - 1}.")
            self._classes[task.name] = torch.from_numpy(codes.astype(np.int64))
        self._price = None
        if "price" in self._items:
            price = self._items["price"].to_numpy(float)
            if not (np.isfinite(price) & (price >= 0)).all():
                raise ValueError("Prices must be finite and 0 or more: clean the items first.")
            self._price = torch.from_numpy(price.astype(np.float32))
        self.signals(self._user_at[0])  # one trial, so that what does not fit is said now

    @staticmethod
    def _borrowed(column: str, owner: str, places: Mapping[str, Any]) -> Any:
        if owner == "pairs":
            return 0.0
        return places[owner][column] if owner == "context" else places[owner][column].iloc[0]

    def __len__(self) -> int:
        """Number of items in the catalogue."""
        return len(self._items)

    def signals(self, user_id: object) -> dict[str, Tensor]:
        """Every signal and the fused ``"score"`` of all items for one user, ``{name: (I,)}`` on the CPU."""
        row = _place(self._user_at, user_id, "user")
        numeric, categorical = self._numeric.clone(), self._categorical.clone()
        for rows, own, columns in zip(
            (numeric, categorical), self._user, self._columns["users"], strict=True
        ):
            rows[:, columns] = own[row, columns]
        for at, table in self._pairs:
            numeric[:, at] = table[row]
        with torch.inference_mode():
            logits = self.model(numeric.to(self.device), categorical.to(self.device))
            found = {}
            for task in self.model.tasks:
                values = logits[task.name].cpu()
                if task.kind == "binary":
                    found[task.name] = values.sigmoid()
                elif task.kind == "regression":
                    found[task.name] = values
                elif task.name in self._classes:
                    classes = self._classes[task.name]
                    found[task.name] = values.softmax(-1).gather(1, classes[:, None])[:, 0]
            if self._price is not None:
                found["price"] = self._price
            try:
                score = self.fusion(found)
            except KeyError as error:
                raise ValueError(
                    f"The fusion lacks a signal ({error.args[0]}). There are {', '.join(found)}; multiclass tasks "
                    "are signals when classes say which class each item stands for."
                ) from None
            return found | {"score": score}

    def recommend(
        self,
        user_id: object,
        k: int = 10,
        *,
        exclude: Iterable[object] = (),
        diversity: float = 0.0,
        category: str = "category",
    ) -> pd.DataFrame:
        """The best k items of a user, best first; equal scores go by their order in the catalogue.

        Parameters
        ----------
        user_id, k : whose list, and how long. exclude : ids of items that must not come, say those just bought.
        diversity : 0 to 1, as for :func:`mtl_helpers.ranking.mmr`, over the item column ``category``.

        Returns
        -------
        k rows: the items' own columns, then the signals and ``score``.

        Raises
        ------
        KeyError : an unknown user or item. ValueError : k larger than what is left of the catalogue; NaN scores.
        """
        found = {name: values.numpy() for name, values in self.signals(user_id).items()}
        keep = np.arange(len(self))
        left_out = [_place(self._item_at, item, "item") for item in exclude]
        if left_out:
            keep = np.setdiff1d(keep, left_out)
            if len(keep) < k:
                raise ValueError(f"k is {k}, but only {len(keep)} items are left after exclude.")
        scores = found["score"][None, keep]
        if diversity:
            if category not in self._items:
                raise KeyError(
                    f"diversity needs the item column {category!r}; there are {list(self._items)}."
                )
            best = mmr(scores, self._items[category].to_numpy()[keep], k, diversity)[0]
        else:
            best = top_k(scores, k)[0]
        rows = keep[best]
        table = self._items.iloc[rows].reset_index(drop=True)
        own = {name: values[rows] for name, values in found.items() if name not in table}
        return pd.concat([table, pd.DataFrame(own)], axis=1)


def _indexed(frame: pd.DataFrame, column: str, what: str) -> tuple[pd.DataFrame, pd.Index]:
    if column not in frame:
        raise KeyError(f"{what} need a column {column!r}; they have {', '.join(map(str, frame.columns))}.")
    if not len(frame):
        raise ValueError(f"{what} have no rows.")
    index = pd.Index(frame[column])
    if not index.is_unique or index.hasnans:
        raise ValueError(f"{what} need one row for each {column}, but some repeat or are missing.")
    return frame.reset_index(drop=True), index


def _place(index: pd.Index, key: object, what: str) -> int:
    try:
        return index.get_loc(key)
    except (KeyError, TypeError, pd.errors.InvalidIndexError):
        some = ", ".join(repr(value) for value in index[:3].tolist())
        raise KeyError(f"No {what} {key!r}: {len(index):,} are known, such as {some}.") from None
