"""Save a trained model with all that it needs, load it elsewhere, and score raw rows there.

Taught in notebook 05. A saved model is a folder with two files: ``config.json`` (class, tasks, schema, settings and the
encoder's state) and ``model-….safetensors`` (the weights). Neither can hold code.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn

from mtl_helpers.data.features import FeatureEncoder
from mtl_helpers.data.tables import Schema, Task
from mtl_helpers.files import write_atomically
from mtl_helpers.losses import to_prediction
from mtl_helpers.models import case, newer, sharing

__all__ = ["load_model", "model_classes", "save_model", "score_rows"]


def model_classes() -> dict[str, type[nn.Module]]:
    """``{name: class}`` of the models that can be saved: those of the package."""
    plain = (sharing.SingleTask, sharing.SharedBottom, sharing.CrossStitch, sharing.MMoE, sharing.PLE)
    others = sharing.ESMM, sharing.AITM, newer.STEM, newer.PEPNet, case.CaseModel
    return {one.__name__: one for one in (*plain, *others)}


def save_model(folder: str | Path, model: nn.Module, encoder: FeatureEncoder) -> Path:
    """Save a model of the package (:func:`model_classes`) and the encoder that it was trained with; return the folder.

    The weights come first, under a name made of their checksum; then the config, which names them, takes its place.
    So a crash at any moment leaves the old model of the folder or the new one. Raises ValueError for another class or
    another model's encoder, TypeError for a setting that JSON cannot hold.
    """
    from safetensors.torch import save

    name = type(model).__name__
    if model_classes().get(name) is not type(model):
        raise ValueError(f"{name} cannot be saved: expected a model of {', '.join(sorted(model_classes()))}.")
    if encoder.schema != model.schema:
        raise ValueError(f"The encoder is another model's: its {encoder.schema} is not {model.schema}.")
    weights = save({key: value.cpu().contiguous().clone() for key, value in model.state_dict().items()})
    folder, file = Path(folder), f"model-{hashlib.sha256(weights).hexdigest()[:16]}.safetensors"
    config = {
        "class": name,
        "tasks": [asdict(task) for task in model.tasks],
        "schema": asdict(model.schema),
        "settings": dict(model.settings),
        "encoder": encoder.state(),
        "weights": file,
    }
    text = json.dumps(config, indent=1, ensure_ascii=False, allow_nan=False)
    folder.mkdir(parents=True, exist_ok=True)
    for target, content in ((file, weights), ("config.json", text.encode())):
        with write_atomically(folder / target) as opened:
            opened.write(content)
    for old in folder.glob("model-*.safetensors"):
        if old.name != file:
            old.unlink(missing_ok=True)
    return folder


def load_model(folder: str | Path) -> tuple[nn.Module, FeatureEncoder]:
    """Build the saved model again, in evaluation mode on the CPU, and its encoder; their scores are those before.

    Raises FileNotFoundError without config or weights, ValueError or RuntimeError when they are damaged or do not fit.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    folder = Path(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    try:
        tasks, cls = [Task(**task) for task in config["tasks"]], model_classes()[config["class"]]
        schema = Schema(tuple(config["schema"]["numeric"]), config["schema"]["categorical"])
        settings = {k: tuple(v) if isinstance(v, list) else v for k, v in config["settings"].items()}
        model = cls(schema, tasks[0] if cls is sharing.SingleTask else tasks, **settings)
        model.load_state_dict(load((folder / Path(config["weights"]).name).read_bytes()), strict=True)
        return model.eval(), FeatureEncoder.from_state(config["encoder"])
    except (KeyError, TypeError, SafetensorError) as error:
        raise ValueError(f"{folder} holds no saved model, or a damaged one: {error!r}.") from error


@torch.inference_mode()
def score_rows(model: nn.Module, encoder: FeatureEncoder, rows: pd.DataFrame) -> dict[str, np.ndarray]:
    """``{task: predictions}`` of raw rows, as :func:`mtl_helpers.training.predict` gives them; no label is needed.

    Probabilities (n,) of a binary task, (n, n_classes) of a multiclass task, values (n,) in the label's own unit.
    """
    device = next(model.parameters()).device
    logits = model.eval()(*(tensor.to(device) for tensor in encoder.transform(rows)))
    said = {task.name: to_prediction(task, logits[task.name], encoder.scales) for task in model.tasks}
    return {name: values.cpu().numpy() for name, values in said.items()}
