"""Vectors and pictures of products as shared input: projection, gates over modalities, LoRA.

Taught in notebook 09. The model holds a table for each modality, with a row for each product; the last categorical
column of its input says which product a row is about (:func:`mtl_helpers.data.attach`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from mtl_helpers.data.tables import Schema, Task
from mtl_helpers.models.sharing import SharedBottom

__all__ = ["ContentBottom", "LoRA", "picture_net"]


def picture_net(width: int) -> nn.Sequential:
    """A small convolutional network: pictures (n, 3, 32, 32) → (n, width), in three steps that halve each side."""
    layers: list[nn.Module] = [nn.AvgPool2d(2)]
    for n_in, n_out in ((3, 16), (16, 16)):
        layers += [nn.Conv2d(n_in, n_out, 3, stride=2, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(16 * 4 * 4, width))


class ContentBottom(SharedBottom):
    """A shared bottom that reads products' contents beside the other features.

    Each modality m becomes hₘ = LayerNorm(Wₘ · dropout(vₘ)) (n, width), or LayerNorm(CNN(picture)). The bottom reads
    all hₘ side by side, zeros where a product has none, or with ``fusion="gate"`` Σₘ gₘ hₘ, g = softmax(W [h₁ … h_M])
    over the modalities that are there: gates one can read.

    Parameters
    ----------
    contents : ``{modality: float (P, d), or pictures (P, 3, 32, 32)}``; a row with a NaN is missing. Vectors are
        standardised by the products that are there.
    width : of hₘ. content_dropout : share of a vector's numbers left out in training.
    modality_dropout : chance that, in training, a row does without a modality, drawn for each (never without all that
        it has): the cure for modalities that are missing later.
    """

    def __init__(
        self, schema: Schema, tasks: Sequence[Task], contents: Mapping[str, Tensor], *, fusion: str = "concat",
        width: int = 16, content_dropout: float = 0.0, modality_dropout: float = 0.0, **layers,
    ) -> None:  # fmt: skip
        super().__init__(schema, tasks, **layers)
        if fusion not in ("concat", "gate"):
            raise ValueError(f"fusion is {fusion!r}: expected 'concat' or 'gate'.")
        self.modality_dropout, self.modalities = modality_dropout, tuple(contents)
        self.readers, self.norms = nn.ModuleDict(), nn.ModuleDict()
        for name, table in contents.items():
            flat = nn.Dropout(content_dropout), nn.Linear(table.shape[-1], width)
            self.readers[name] = picture_net(width) if table.ndim == 4 else nn.Sequential(*flat)
            self.norms[name] = nn.LayerNorm(width)
            there = table[~table.flatten(1).isnan().any(1)]
            moments = (there.mean(0), there.std(0).clamp(min=1e-6)) if table.ndim == 2 else (0.5, 0.25)
            for what, value in zip(("mean", "scale"), moments, strict=True):
                self.register_buffer(f"{name}_{what}", torch.as_tensor(value))
        self.gate = nn.Linear(width * len(contents), len(contents)) if fusion == "gate" else None
        n_in = self.features.n_out + width * (1 if fusion == "gate" else len(contents))
        self.bottom = self.network(n_in)
        self.last_shared = [self.bottom]
        self.set_contents(contents)

    def set_contents(self, contents: Mapping[str, Tensor]) -> None:
        """Exchange the tables, such as for products that came later; a modality that is not given is missing."""
        some = next(iter(contents.values()))
        for name in self.modalities:
            mean, scale = getattr(self, f"{name}_mean"), getattr(self, f"{name}_scale")
            shape = mean.shape if mean.ndim else (3, 32, 32)
            table = contents.get(name, torch.full((len(some), *shape), torch.nan))
            if table.shape[1:] != shape:
                given, wanted = (" × ".join(map(str, size)) for size in (table.shape[1:], shape))
                raise ValueError(f"A row of {name!r} has {given} numbers; in training it had {wanted}.")
            table = (table.to(mean) - mean) / scale
            there = ~table.flatten(1).isnan().any(1)
            for what, value in (("table", table.nan_to_num(0.0)), ("there", there)):
                self.register_buffer(f"{name}_{what}", value, persistent=False)

    def read(self, product: Tensor) -> tuple[Tensor, Tensor]:
        """Of products (n,): hₘ (n, M, width), zeros where missing, and which are there (n, M)."""
        distinct, rows = product.unique(return_inverse=True)  # a picture is looked at once a batch
        found, there = [], []
        for name in self.modalities:
            there.append(getattr(self, f"{name}_there")[distinct])
            vectors = self.readers[name](getattr(self, f"{name}_table")[distinct])
            found.append(self.norms[name](vectors) * there[-1][:, None])
        found, there = torch.stack(found, 1)[rows], torch.stack(there, 1)[rows]
        if self.training and self.modality_dropout:
            kept = there & (torch.rand_like(found[..., 0]) >= self.modality_dropout)
            there = torch.where(kept.any(1, keepdim=True), kept, there)
            found = found * there[..., None]
        return found, there

    def shares(self, found: Tensor, there: Tensor) -> Tensor:
        """The gates (n, M): 0 for what is missing, else summing to one."""
        logits = self.gate(found.flatten(1)).masked_fill(~there, -1e9)
        return logits.softmax(-1) * there

    def represent(self, numeric: Tensor, categorical: Tensor) -> Tensor:
        features = self.features(numeric, categorical[:, :-1])
        found, there = self.read(categorical[:, -1])
        content = found.flatten(1)
        if self.gate is not None:
            content = (self.shares(found, there)[..., None] * found).sum(1)
        return self.bottom(torch.cat([features, content], -1))


class LoRA(nn.Module):
    """A frozen linear layer with a trained update of low rank, y = W x + b + (8 / r) B A x (Hu et al., *LoRA*, ICLR
    2022, eq. 3). B starts at 0, so that nothing changes at first; rank 0 is the frozen layer."""

    def __init__(self, layer: nn.Linear, rank: int) -> None:
        super().__init__()
        self.layer, self.scale = layer.requires_grad_(False), 8 / max(rank, 1)
        self.a = nn.Parameter(torch.randn(rank, layer.in_features) / layer.in_features**0.5)
        self.b = nn.Parameter(torch.zeros(layer.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + self.scale * (x @ self.a.T) @ self.b.T
