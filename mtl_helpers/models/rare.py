"""Rare, missing, unlabelled: losses for rare labels and for what selection hides, attention, self-supervision.

Taught in notebook 08. Each loss takes logits or one loss a row and gives a scalar; the networks keep the contract of
:mod:`mtl_helpers.models.sharing`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, logsigmoid, normalize

from mtl_helpers.models.layers import mlp
from mtl_helpers.models.sharing import SharedBottom

__all__ = ["Contrast", "GatedBottom", "HistoryBottom", "Reconstruction", "adjusted_logits", "corrupt"]
__all__ += ["doubly_robust", "focal_loss", "focal_probability", "info_nce"]


def focal_loss(logits: Tensor, labels: Tensor, gamma: float = 2.0) -> Tensor:
    """Mean of −(1 − p_t)^γ log p_t, where p_t is the probability of what happened (Lin et al., ICCV 2017, eq. 4)."""
    signed = logits * (2 * labels - 1)
    return -((gamma * logsigmoid(-signed)).exp() * logsigmoid(signed)).mean()


def focal_probability(q: Tensor, gamma: float) -> Tensor:
    """The probability η at which the focal loss is lowest when the model says q: focal loss is not proper.

    Setting the derivative of −η (1 − q)^γ log q − (1 − η) q^γ log(1 − q) to 0 gives η / (1 − η) = A(1 − q) / A(q) with
    A(q) = (1 − q)^γ / q − γ (1 − q)^(γ − 1) log q (Charoenphakdee et al., CVPR 2021, theorem 11).
    """
    q = q.double().clamp(1e-9, 1 - 1e-9)

    def slope(q: Tensor) -> Tensor:
        return (1 - q) ** gamma / q - gamma * (1 - q) ** (gamma - 1) * q.log()

    return slope(1 - q) / (slope(q) + slope(1 - q))


def adjusted_logits(logits: Tensor, rate: float, tau: float = 1.0) -> Tensor:
    """Logits for the loss (Menon et al., ICLR 2021, eq. 10, two classes): f + τ log(π / (1 − π)), π the base rate.

    f itself then ranks as if both classes were as frequent. With one logit the shift is only a start for its bias.
    """
    return logits + tau * math.log(rate / (1 - rate))


def doubly_robust(
    errors: Tensor, seen: Tensor, propensity: Tensor, imputed: Tensor | float = 0.0, clip: float = 0.05
) -> Tensor:
    """Estimate of the mean error over all rows from the errors of those that were seen, a scalar.

    mean(ê + o (e − ê) / p): inverse propensity scoring (IPS) when the imputed errors ê are 0; doubly robust (DR) else,
    right when either p or ê is (Wang et al., ICML 2019, eq. 4). All are (n,); ``errors`` count where ``seen`` is 1,
    ``propensity`` is the probability of being seen, raised to ``clip`` where it is below: 0 would weigh infinitely.
    """
    if clip <= 0:
        raise ValueError(f"clip is {clip}: a propensity of 0 would weigh a row infinitely; expected above 0.")
    return (imputed + seen * (errors - imputed) / propensity.clamp(min=clip)).mean()


def corrupt(numeric: Tensor, categorical: Tensor, rate: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rows of which each cell is, with probability ``rate``, that of another row drawn at random: numeric (n, D),
    categorical (n, C), and where it was, bool (n, D) and (n, C) (Bahri et al., *SCARF*, ICLR 2022, algorithm 1)."""
    made, where = [], []
    for cells in (numeric, categorical):
        hit = torch.rand(cells.shape, device=cells.device) < rate
        other = torch.randint(len(cells), cells.shape, device=cells.device)
        made.append(torch.where(hit, cells.gather(0, other), cells))
        where.append(hit)
    return *made, *where


def info_nce(a: Tensor, b: Tensor) -> Tensor:
    """Mean −log softmax of the cosines of row i of ``a`` with all rows of ``b``, at row i; both (n, d)."""
    likeness = normalize(a, dim=1) @ normalize(b, dim=1).T
    return cross_entropy(likeness, torch.arange(len(a), device=a.device))


class Reconstruction(nn.Module):
    """An auxiliary task that needs no label: name the replaced 30 % of the cells from Z of the corrupted row.

    ``forward(numeric, categorical)`` is its loss: the mean over columns of squared errors and cross-entropies.
    """

    def __init__(self, model: SharedBottom) -> None:
        super().__init__()
        self.model = model
        self.widths = [len(model.schema.numeric), *model.schema.categorical.values()]
        self.head = nn.Linear(model.settings["hidden"][-1], sum(self.widths))

    def forward(self, numeric: Tensor, categorical: Tensor) -> Tensor:
        *rows, numbers, codes = corrupt(numeric, categorical, 0.3)
        said, *logits = self.head(self.model.represent(*rows)).split(self.widths, dim=1)
        losses = [((said - numeric) ** 2)[numbers].mean()]
        for column, (asked, hit) in enumerate(zip(logits, codes.T, strict=True)):
            losses.append(cross_entropy(asked[hit], categorical[hit, column]))
        return torch.stack(losses).nan_to_num().mean()  # a small batch may leave a column as it is


class Contrast(nn.Module):
    """The other one: find a row's corrupted copy among those of all rows of the batch (SCARF, 60 % of its cells)."""

    def __init__(self, model: SharedBottom) -> None:
        super().__init__()
        self.model, width = model, model.settings["hidden"][-1]
        self.head = nn.Sequential(*mlp(width, (width,)), nn.Linear(width, width))

    def forward(self, numeric: Tensor, categorical: Tensor) -> Tensor:
        copies = corrupt(numeric, categorical, 0.6)[:2]
        return info_nce(
            *(self.head(self.model.represent(*rows)) for rows in ((numeric, categorical), copies))
        )


class GatedBottom(SharedBottom):
    """A shared bottom whose tasks each weigh the columns first: a squeeze-and-excitation block a task (Hu et al., CVPR
    2018, eq. 2-4; over columns: Huang et al., *FiBiNET*, RecSys 2019). The layers after it are shared."""

    def __init__(self, *args, **layers) -> None:
        super().__init__(*args, **layers)
        dims = [self.settings["embedding_dim"]] * len(self.schema.categorical) + [1] * len(
            self.schema.numeric
        )
        self.register_buffer("column", torch.arange(len(dims)).repeat_interleave(torch.tensor(dims)))
        n = len(dims)
        self.gates = nn.ModuleDict(
            {name: nn.Sequential(nn.Linear(n, 8), nn.ReLU(), nn.Linear(8, n)) for name in self.names}
        )

    def gate(self, features: Tensor) -> dict[str, Tensor]:
        """``{task: (n, columns)}``: how much each column counts, 1 unless learned otherwise; 0 to 2."""
        sums = features.new_zeros(len(features), int(self.column[-1]) + 1).index_add(1, self.column, features)
        squeezed = sums / torch.bincount(self.column)
        return {name: 2 * gate(squeezed).sigmoid() for name, gate in self.gates.items()}

    def represent(self, numeric: Tensor, categorical: Tensor) -> tuple[Tensor, ...]:
        features = self.features(numeric, categorical)
        gates = self.gate(features).values()
        return tuple(self.bottom(features * gate[:, self.column]) for gate in gates)

    def from_shared(self, shared: tuple[Tensor, ...]) -> dict[str, Tensor]:
        return {name: self.towers[name](z) for name, z in zip(self.names, shared, strict=True)}


class HistoryBottom(SharedBottom):
    """A shared bottom that also reads a user's last events, each weighed by how much it says of the candidate.

    DIN (Zhou et al., KDD 2018, eq. 3): the user's vector is Σ a(event, candidate) · event, with weights from a small
    network that do not sum to 1; ``attend=False`` takes the plain mean. A row's events stand after its columns:
    ``categorical`` (n, C + L), their sub-category, numbered as the candidate's, 0 where there is none; ``numeric``
    (n, D + 2L), log hours since, and if it was bought.
    """

    def __init__(self, *args, length: int = 10, attend: bool = True, **layers) -> None:
        super().__init__(*args, **layers)
        self.settings |= {"length": length, "attend": attend}
        self.candidate, dim = list(self.schema.categorical).index("sub_category"), 8
        self.event = nn.Embedding(self.schema.categorical["sub_category"], dim, padding_idx=0)
        self.weigh = nn.Sequential(*mlp(3 * dim + 2, (16,)), nn.Linear(16, 1))
        self.bottom = self.network(self.features.n_out + dim + 2)
        self.last_shared = [self.bottom]

    def attention(self, numeric: Tensor, categorical: Tensor) -> tuple[Tensor, Tensor]:
        """Weights of the events (n, L), and the events (n, L, width)."""
        length = self.settings["length"]
        subs, times = categorical[:, -length:], numeric[:, -2 * length :].unflatten(1, (2, length)).mT
        events, there = self.event(subs), (subs > 0).float()
        wanted = self.event(categorical[:, self.candidate]).unsqueeze(1).expand_as(events)
        weights = there / there.sum(1, keepdim=True).clamp(min=1)
        if self.settings["attend"]:
            weights = there * self.weigh(torch.cat([events, wanted, events * wanted, times], -1)).squeeze(-1)
        return weights, torch.cat([events, times], -1)

    def represent(self, numeric: Tensor, categorical: Tensor) -> Tensor:
        length = self.settings["length"]
        weights, events = self.attention(numeric, categorical)
        features = self.features(numeric[:, : -2 * length], categorical[:, :-length])
        return self.bottom(torch.cat([features, (weights.unsqueeze(-1) * events).sum(1)], dim=1))
