"""A trained model leaves the notebook: exported programs, and one user's list. Taught in notebook 10."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from mtl_helpers.data.shop_world import CATEGORIES
from mtl_helpers.models import Fusion, load_model

__all__ = ["OnnxModel", "Ranker", "export_onnx", "export_program"]


def export_program(model: nn.Module, numeric: Tensor, categorical: Tensor) -> torch.export.ExportedProgram:
    """The model as a graph of tensor operations, for any number of rows; the rows given are an example."""
    rows = {0: torch.export.Dim("rows")}
    return torch.export.export(model.eval(), (numeric, categorical), dynamic_shapes=(rows, rows))


def export_onnx(model: nn.Module, numeric: Tensor, categorical: Tensor, path: str | Path) -> OnnxModel:
    """The same as an ONNX file, which engines without Python read. Needs onnx, onnxscript and onnxruntime."""
    program = export_program(model, numeric, categorical)
    names = {"input_names": ["numeric", "categorical"]}
    names |= {"output_names": list(program.module()(numeric, categorical))}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)  # of every operation that this model does not use
        torch.onnx.export(program, (), path, dynamo=True, external_data=False, verbose=False, **names)
        logging.disable(logging.NOTSET)
    return OnnxModel(path)


class OnnxModel:
    """An ONNX file, run by onnxruntime on one thread: ``(numeric, categorical) → {task: logits}``, as the model."""

    def __init__(self, path: str | Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.names = [output.name for output in self.session.get_outputs()]

    def __call__(self, numeric: Tensor, categorical: Tensor) -> dict[str, Tensor]:
        given = {"numeric": numeric.numpy(), "categorical": categorical.numpy()}
        return dict(zip(self.names, map(torch.from_numpy, self.session.run(None, given)), strict=True))


class Ranker:
    """A saved model and the rows that may be asked about, encoded once: each user with every product.

    ``rows`` is a table such as that of :func:`mtl_helpers.models.candidates`, with the saved encoder's columns.
    """

    def __init__(self, folder: str | Path, rows: pd.DataFrame) -> None:
        self.model, encoder = load_model(folder)
        self.version = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))["weights"][6:14]
        self.numeric, self.categorical = encoder.transform(rows)
        self.users, self.items = rows.groupby("user_id").indices, rows["item_id"].to_numpy()
        self.category = torch.from_numpy(pd.Index(CATEGORIES).get_indexer(rows["category"]))

    @torch.inference_mode()
    def rank(self, user: int, k: int, weights: Mapping[str, float]) -> list[dict[str, Any]]:
        """The user's k best products by Π pᵢ^wᵢ, each with its probabilities and reasons: for which task it is how
        much likelier than the average product. ``next_category`` is the chance of the product's own category."""
        rows = torch.from_numpy(self.users[user])
        logits = self.model(self.numeric[rows], self.categorical[rows])
        said = {name: z.sigmoid() for name, z in logits.items() if z.ndim == 1}
        if "next_category" in logits:
            chances = logits["next_category"].softmax(-1)
            said["next_category"] = chances.gather(1, self.category[rows, None])[:, 0]
        score, times = Fusion(weights)(said), {name: p / p.mean() for name, p in said.items()}
        found = []
        for i in score.topk(min(k, len(rows))).indices.tolist():
            best = sorted(weights, key=lambda name: -weights[name] * times[name][i].log().item())
            one = {name: round(p[i].item(), 6) for name, p in (said | {"score": score}).items()}
            one["reasons"] = [f"{name} {times[name][i].item():.1f} × the average product's" for name in best]
            found.append({"item": int(self.items[rows[i]]), **one})
        return found
