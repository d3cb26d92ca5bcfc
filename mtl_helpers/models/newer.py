"""Two newer ideas about what to share: embeddings of a task's own, and gates that know the scene.

Taught in notebook 06. Both follow the contract of :mod:`mtl_helpers.models.sharing`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mtl_helpers.models.layers import FeatureLayer, LookUp
from mtl_helpers.models.sharing import SharedBottom, SharingModel, mix

__all__ = ["STEM", "PEPNet"]


class STEM(SharingModel):
    """Shared and task-specific embeddings (Su et al., AAAI 2024): a table and an expert for each task and for all.

    xₜ are the features with task t's own embeddings, x₀ with the shared ones. Task t's gate, softmax(Wₜ (xₜ + x₀)),
    mixes *all* experts, but no gradient flows from task t into another task's expert: every task reads what the others
    see, and none can spoil it ("all forward, task-specific backward").
    """

    owned = ("own", "experts", "gates", "towers")

    def __init__(self, *args, **layers) -> None:
        super().__init__(*args, **layers)
        n_in, views = self.features.n_out, [*self.names, "shared"]
        own = {name: FeatureLayer(self.schema, self.settings["embedding_dim"]) for name in self.names}
        self.own = nn.ModuleDict(own)
        self.experts = nn.ModuleDict({name: self.network(n_in) for name in views})
        self.gates = nn.ModuleDict({name: nn.Linear(n_in, len(views)) for name in self.names})
        self.last_shared = [self.experts["shared"]]
        self.towers = self.make_towers()

    def represent(self, numeric: Tensor, categorical: Tensor) -> tuple[Tensor, ...]:
        """x₀, the shared expert's output, then each task's xₜ and its expert's output."""
        inputs = [self.features(numeric, categorical)]
        inputs += [own(numeric, categorical) for own in self.own.values()]
        outputs = [self.experts[name](x) for name, x in zip(["shared", *self.names], inputs, strict=True)]
        return tuple(part for pair in zip(inputs, outputs, strict=True) for part in pair)

    def from_shared(self, parts: tuple[Tensor, ...]) -> dict[str, Tensor]:
        (common, shared), *own = zip(parts[::2], parts[1::2], strict=True)
        logits = {}
        for (x, _), name in zip(own, self.names, strict=True):
            seen = [h if other == name else h.detach() for (_, h), other in zip(own, self.names, strict=True)]
            shares = self.gates[name](x + common).softmax(-1)
            logits[name] = self.towers[name](mix(shares, [*seen, shared]))
        return logits


def gate_unit(n_in: int, n_out: int, width: int) -> nn.Sequential:
    """PEPNet's Gate NU without the factor 2: Linear, ReLU, Linear, sigmoid."""
    return nn.Sequential(nn.Linear(n_in, width), nn.ReLU(), nn.Linear(width, n_out), nn.Sigmoid())


class PEPNet(SharedBottom):
    """Gates that know the scene (Chang et al., KDD 2023), upon a shared bottom.

    The prior is the scene's vector s, beside the features x without their gradient. EPNet scales the features, x ⊙ δ
    with δ = 2 σ(…[s, x]); PPNet likewise scales each unit that tower t reads, Z ⊙ δₜ, with the scaled features in the
    prior. A gate of 1 leaves all as it was. ``scene`` is a categorical column; ``gate`` units are inside each Gate NU.
    """

    owned = ("ppnet", "towers")

    def __init__(self, *args, scene: str, gate: int = 8, **layers) -> None:
        super().__init__(*args, **layers)
        self.settings |= {"scene": scene, "gate": gate}
        self.column, size = [*self.schema.categorical].index(scene), self.settings["embedding_dim"]
        self.scenes = LookUp(self.schema.categorical[scene], size)
        n_in = self.features.n_out
        n_out = [n_in, *self.settings["hidden"]][-1]
        self.epnet = gate_unit(size + n_in, n_in, gate)
        self.ppnet = nn.ModuleDict({name: gate_unit(size + n_in, n_out, gate) for name in self.names})

    def represent(self, numeric: Tensor, categorical: Tensor) -> tuple[Tensor, Tensor]:
        """PPNet's prior and Z, which the towers read through their gates."""
        x, scene = self.features(numeric, categorical), self.scenes(categorical[..., self.column])
        x = x * 2 * self.epnet(torch.cat([scene, x.detach()], dim=-1))
        return torch.cat([scene, x.detach()], dim=-1), self.bottom(x)

    def from_shared(self, parts: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        prior, shared = parts
        return {n: tower(shared * 2 * self.ppnet[n](prior)) for n, tower in self.towers.items()}
