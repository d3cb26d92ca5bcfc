"""A user's last clicks as the shared bottom of several tasks: their mean, attention by the candidate, a transformer.

Taught in notebook 09. The model holds the table of :func:`mtl_helpers.data.session_events`; the last two categorical
columns of its input are a row's session and its candidate, item_id + 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtl_helpers.data.content import AGES
from mtl_helpers.data.tables import Schema, Task
from mtl_helpers.models.layers import FeatureLayer, Tower
from mtl_helpers.models.rare import TargetAttention
from mtl_helpers.models.sharing import SharingModel

__all__ = ["CausalTransformer", "SequenceBottom"]


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
    events : int64 (S + 1, L, 3), of :func:`session_events`.
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
