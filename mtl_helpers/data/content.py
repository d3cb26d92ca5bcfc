"""What a shop knows beyond its table: vectors of texts, pictures, semantic ids, and what each user clicked lately.

Taught in notebook 09. These are tables with a row for each product or session, row 0 standing for "none"; rows of a
:class:`MultiTaskDataset` point into them by the columns that :func:`attach` adds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from mtl_helpers.data.shop import SHOP_FOLDER
from mtl_helpers.data.shop_content import SIZE
from mtl_helpers.data.shop_log import history_sequences
from mtl_helpers.data.tables import Batch, MultiTaskDataset

__all__ = [
    "SessionDataset", "attach", "product_codes", "read_rgb", "residual_codes", "session_events", "stored_vectors",
    "text_of", "tfidf_vectors", "tiles",
]  # fmt: skip
AGES = 12  # steps of how long ago an event was, each twice the last: from half an hour to six weeks


def text_of(items: pd.DataFrame) -> list[str]:
    """Title and description of each product in one text; empty where both are missing."""
    title, description = (items[name].fillna("") for name in ("title", "description"))
    return (title + ". " + description).str.removeprefix(". ").tolist()


def tfidf_vectors(texts: Sequence[str], width: int, known: np.ndarray | None = None) -> np.ndarray:
    """TF-IDF of words and pairs of words in ``width`` dimensions by SVD, (n, width) of length 1 (0 without a known
    word). Words and directions are learned from the ``known`` texts, (n,) bool; from all when None."""
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.pipeline import make_pipeline

    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    encoder = make_pipeline(words, TruncatedSVD(width, random_state=0))
    encoder.fit([text for text, use in zip(texts, known, strict=True) if use] if known is not None else texts)
    vectors = encoder.transform(texts)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)


def stored_vectors() -> dict[str, np.ndarray]:
    """``{encoder: float32 (n_items, d)}`` of the shipped shop's texts, as ``nb09_text_vectors.py`` computed them."""
    with np.load(SHOP_FOLDER / "text_vectors.npz") as file:
        return {name: file[name].astype(np.float32) for name in file.files}


def read_rgb(path: str | Path) -> np.ndarray:
    """The pixels (height, width, 3) of a PNG such as :func:`write_shop` makes."""
    from matplotlib.image import imread

    return (255 * imread(path)[..., :3]).round().astype(np.uint8)


def tiles(sheet: np.ndarray, n: int) -> Tensor:
    """Of a sheet of pictures, the first n as float32 (n, 3, 32, 32) in [0, 1]."""
    cut = sheet.reshape(-1, SIZE, sheet.shape[1] // SIZE, SIZE, 3).transpose(0, 2, 4, 1, 3)
    return torch.from_numpy(cut.reshape(-1, 3, SIZE, SIZE)[:n] / np.float32(255))


def residual_codes(vectors: np.ndarray, sizes: Sequence[int]) -> tuple[np.ndarray, list[np.ndarray]]:
    """Semantic ids by residual k-means: codes (n, levels) and the codebooks, each (size, d). Each level clusters what
    those before it left over; the sum of a product's code vectors approximates its vector (Rajput et al., *Recommender
    Systems with Generative Retrieval*, NeurIPS 2023, §3.1, with k-means in place of RQ-VAE)."""
    from sklearn.cluster import KMeans

    rest, codes, books = np.asarray(vectors, np.float64), [], []
    for size in sizes:
        found = KMeans(size, n_init=4, random_state=0).fit(rest)
        codes.append(found.labels_)
        books.append(found.cluster_centers_)
        rest = rest - books[-1][codes[-1]]
    return np.stack(codes, 1), books


def product_codes(items: pd.DataFrame, columns: Sequence[str]) -> tuple[Tensor, dict[str, int]]:
    """Each product's categories as codes, (n_items + 1, C) with zeros in row 0, and how many codes a column has."""
    codes = np.stack([pd.factorize(items[name], sort=True)[0] + 1 for name in columns], 1)
    sizes = dict(zip(columns, (int(n) + 1 for n in codes.max(0)), strict=True))
    return torch.from_numpy(np.vstack([np.zeros((1, len(columns))), codes]).astype(np.int64)), sizes


def session_events(frame: pd.DataFrame, length: int = 20) -> tuple[Tensor, np.ndarray]:
    """What a session's user clicked before it began, at most ``length`` events: int64 (n_sessions + 1, length, 3), the
    oldest first, padded with zeros *in front*; and each row's session, (n,), from 1 on.

    An event is item_id + 1, how long ago it was (1 to 12: below half an hour, an hour, two …) and 1 + if it was bought.
    """
    session, first = pd.factorize(frame["session_id"])[0] + 1, ~frame["session_id"].duplicated().to_numpy()
    found = {name: part[first][:, ::-1] for name, part in history_sequences(frame, length).items()}
    age = 1 + np.clip(np.ceil(np.log2(np.maximum(found["hours"], 0.01) * 2)), 0, AGES - 1)
    there = found["item"] > 0
    events = np.stack([found["item"], age * there, (1 + found["bought"]) * there], -1).astype(np.int64)
    return torch.from_numpy(np.concatenate([np.zeros_like(events[:1]), events])), session


def attach(data: MultiTaskDataset, *columns: np.ndarray) -> MultiTaskDataset:
    """The dataset with further whole numbers (n,) behind its categorical columns: rows of tables that a model holds."""
    more = torch.from_numpy(np.stack(columns, 1).astype(np.int64)).to(data.device)
    return replace(data, categorical=torch.cat([data.categorical, more], 1))


class SessionDataset(MultiTaskDataset):
    """Rows whose second-last attached column is their session: batches hold whole sessions in a random order (cut where
    a batch is full), so that a model reads each history about once an epoch, not once a row."""

    def batches(
        self, batch_size: int, shuffle: bool = True, generator: torch.Generator | None = None
    ) -> Iterator[Batch]:
        session, rows = self.categorical[:, -2], self
        if shuffle:
            place = torch.randperm(int(session.max()) + 1, generator=generator).to(self.device)
            rows = self.take(place[session].argsort(stable=True))
        return MultiTaskDataset.batches(rows, batch_size, shuffle=False)
