"""Vectors, pictures and histories as shared input: projection, gates over modalities, LoRA; attention to past clicks.

Taught in notebook 09. A model holds the tables of :mod:`mtl_helpers.data.content`; the last categorical columns of its
input say which product, or session and candidate, a row is about (:func:`mtl_helpers.data.attach`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtl_helpers.data.content import AGES
from mtl_helpers.data.tables import Schema, Task
from mtl_helpers.models.layers import FeatureLayer, Tower
from mtl_helpers.models.rare import TargetAttention
from mtl_helpers.models.sharing import SharedBottom, SharingModel

__all__ = ["CausalTransformer", "ContentBottom", "LoRA", "SequenceBottom", "picture_net"]


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
        self.modality_dropout = modality_dropout
        self.readers, self.norms = nn.ModuleDict(), nn.ModuleDict()
        for name, table in contents.items():
            flat = nn.Dropout(content_dropout), nn.Linear(table.shape[-1], width)
            self.readers[name] = picture_net(width) if table.ndim == 4 else nn.Sequential(*flat)
            self.norms[name] = nn.LayerNorm(width)
            there = table[~table.flatten(1).isnan().any(1)]
            mean, scale = (there.mean(0), there.std(0).clamp(min=1e-6)) if table.ndim == 2 else (0.5, 0.25)
            self.register_buffer(f"{name}_mean", torch.as_tensor(mean))
            self.register_buffer(f"{name}_scale", torch.as_tensor(scale))
        self.gate = nn.Linear(width * len(contents), len(contents)) if fusion == "gate" else None
        n_in = self.features.n_out + width * (1 if fusion == "gate" else len(contents))
        self.bottom = self.network(n_in)
        self.last_shared = [self.bottom]
        self.set_contents(contents)

    def set_contents(self, contents: Mapping[str, Tensor]) -> None:
        """Exchange the tables, such as for products that came later; a modality that is not given is missing."""
        some = next(iter(contents.values()))
        for name in self.readers:
            mean, scale = getattr(self, f"{name}_mean"), getattr(self, f"{name}_scale")
            shape = mean.shape if mean.ndim else (3, 32, 32)
            table = contents.get(name, torch.full((len(some), *shape), torch.nan))
            if table.shape[1:] != shape:
                raise ValueError(
                    f"A row of {name!r} is {tuple(table.shape[1:])}; in training {tuple(shape)}."
                )
            table = (table.to(mean) - mean) / scale
            self.register_buffer(f"{name}_table", table.nan_to_num(0.0), persistent=False)
            self.register_buffer(f"{name}_there", ~table.flatten(1).isnan().any(1), persistent=False)

    def read(self, product: Tensor) -> tuple[Tensor, Tensor]:
        """Of products (n,): hₘ (n, M, width), zeros where missing, and which are there (n, M)."""
        distinct, rows = product.unique(return_inverse=True)  # a picture is looked at once a batch
        found, there = [], []
        for name, reader in self.readers.items():
            there.append(getattr(self, f"{name}_there")[distinct])
            vectors = reader(getattr(self, f"{name}_table")[distinct])
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


class Block(nn.Module):
    """Attention to the past, then a layer for each position; each adds to what it reads (pre-norm)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.norm, self.inner_norm = heads, nn.LayerNorm(width), nn.LayerNorm(width)
        self.query_key_value, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.inner = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, may_look: Tensor) -> Tensor:
        n, length, width = x.shape
        parts = self.query_key_value(self.norm(x)).view(n, length, 3, self.heads, width // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        heads = F.scaled_dot_product_attention(query, key, value, attn_mask=may_look)
        x = x + self.out(heads.transpose(1, 2).reshape(n, length, width))
        return x + self.inner(self.inner_norm(x))


class CausalTransformer(nn.Module):
    """Events (n, L, width), the latest last, and which are there (n, L) → states (n, L, width), each of its own event
    and those before it (Kang and McAuley, *Self-Attentive Sequential Recommendation*, ICDM 2018). A learned start
    stands before every history: an empty one has a state. Positions count from the end: padding changes nothing."""

    def __init__(self, width: int, length: int, layers: int, heads: int) -> None:
        super().__init__()
        self.start = nn.Parameter(0.1 * torch.randn(width))
        self.position = nn.Parameter(0.1 * torch.randn(length, width))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, events: Tensor, there: Tensor) -> Tensor:
        n, length, width = events.shape
        if length > len(self.position):
            raise ValueError(f"Histories hold {length} events; the model was made for {len(self.position)}.")
        x = events + self.position[len(self.position) - length :]
        x = torch.cat([self.start.expand(n, 1, width), x * there[..., None]], 1)
        seen = F.pad(there, (1, 0), value=True)
        past = torch.ones(length + 1, length + 1, dtype=torch.bool, device=x.device).tril()
        for block in self.blocks:
            x = block(x, past & seen[:, None, None, :])
        return self.norm(x)[:, 1:]


class SequenceBottom(SharingModel):
    """A history read once, its state s shared by all tasks.

    Tasks about the candidate, which are binary, read Z = bottom([features, s, c, s · c]), with the candidate's vector c
    and its position on the page among the features; tasks about what comes next, multiclass, read s alone.

    Parameters
    ----------
    events : int64 (S + 1, L, 3), of :func:`session_events`; the last two categorical columns of the input are a row's
        session and its candidate, item_id + 1.
    products : of :func:`product_codes`: what a product is, as an event and as a candidate; ids if they are a column.
    reader : ``"mean"`` of the events, ``"target"``: :class:`TargetAttention`, or ``"transformer"``.
    width : of events and state. depth, heads : blocks of the transformer, and their heads.
    """

    def __init__(
        self, schema: Schema, tasks: Sequence[Task], events: Tensor, products: tuple[Tensor, dict[str, int]], *,
        reader: str = "transformer", width: int = 32, depth: int = 1, heads: int = 2, **layers,
    ) -> None:  # fmt: skip
        super().__init__(schema, tasks, **layers)
        for name, table in (("events", events), ("codes", products[0])):
            self.register_buffer(name, table, persistent=False)
        sizes = products[1] | {"age": AGES + 1, "bought": 3}
        self.parts = FeatureLayer(Schema((), sizes), self.settings["embedding_dim"])
        self.event = nn.Sequential(nn.Linear(self.parts.n_out, width), nn.LayerNorm(width))
        makers = {
            "mean": nn.Identity,
            "target": lambda: TargetAttention(width, width),
            "transformer": lambda: CausalTransformer(width, events.shape[1], depth, heads),
        }
        self.kind, self.reader = reader, makers[reader]()
        self.state = nn.Linear(width, width)
        self.last_shared = [self.state]
        self.bottom = self.network(self.features.n_out + 3 * width)
        ends = {"binary": (self.settings["hidden"][-1], self.settings["tower"]), "multiclass": (width, ())}
        towers = ((task, *ends[task.kind]) for task in self.tasks)
        self.towers = nn.ModuleDict({task.name: Tower(n, task, hidden) for task, n, hidden in towers})
        self.after = {task.name for task in self.tasks if task.kind == "multiclass"}

    def read_events(self, events: Tensor) -> Tensor:
        """Vectors of events (…, 3): (…, width)."""
        codes = torch.cat([self.codes[events[..., 0]], events[..., 1:]], -1)
        return self.event(self.parts(codes.new_empty((*codes.shape[:-1], 0), dtype=torch.float32), codes))

    def read_history(self, session: Tensor, candidate: Tensor) -> Tensor:
        """The state of each row, (n, width)."""
        distinct, rows = session.unique(return_inverse=True)  # a history is read once for all its rows
        events, there = self.read_events(self.events[distinct]), self.events[distinct, :, 0] > 0
        if self.kind == "target":
            events, there = events[rows], there[rows]
            candidate = candidate[:, None].expand_as(events)
            weights = self.reader(events, there, candidate, events - candidate)
            return self.state((weights[..., None] * events).sum(1))
        if self.kind == "mean":
            n = there.sum(1, keepdim=True).clamp(min=1)
            return self.state((events * there[..., None]).sum(1) / n)[rows]
        return self.state(self.reader(events, there)[:, -1])[rows]

    def represent(self, numeric: Tensor, categorical: Tensor) -> tuple[Tensor, Tensor]:
        """Z (n, hidden[-1]) of tasks about the candidate, and the state (n, width) of those about what comes next."""
        session, product = categorical[:, -2:].unbind(-1)
        candidate = self.read_events(F.pad(product[:, None], (0, 2)))  # an event that has not happened yet
        features = self.features(numeric, categorical[:, :-2])
        state = self.read_history(session, candidate)
        return self.bottom(torch.cat([features, state, candidate, state * candidate], -1)), state

    def from_shared(self, shared: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        return {name: tower(shared[name in self.after]) for name, tower in self.towers.items()}
