"""Rare, missing, unlabelled: losses for rare labels and for what selection hides, self-supervision, attention, and a
generative adversarial network that makes rows of a rare class.

Taught in notebook 08. The networks keep the contract of :mod:`mtl_helpers.models.sharing`.
"""

from __future__ import annotations

import math
from copy import deepcopy

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, gumbel_softmax, logsigmoid, normalize, one_hot

from mtl_helpers.data.tables import MultiTaskDataset, Schema
from mtl_helpers.models.layers import mlp
from mtl_helpers.models.sharing import SharedBottom

__all__ = [
    "Contrast",
    "GatedBottom",
    "HistoryBottom",
    "RowGAN",
    "TargetAttention",
    "adjusted_logits",
    "corrupt",
]
__all__ += ["doubly_robust", "focal_loss", "focal_probability", "info_nce"]
NOISE = 32  # numbers that a made row is made from


def focal_loss(logits: Tensor, labels: Tensor, gamma: float) -> Tensor:
    """Mean of −(1 − p_t)^γ log p_t, where p_t is the probability of what happened (Lin et al., ICCV 2017, eq. 4)."""
    signed = logits * (2 * labels - 1)
    return -((gamma * logsigmoid(-signed)).exp() * logsigmoid(signed)).mean()


def focal_probability(q: Tensor, gamma: float) -> Tensor:
    """The probability η at which the focal loss is lowest when the model says q: it is not proper. Where the slope
    of its expectation is 0, η / (1 − η) = A(1 − q) / A(q), A(q) = (1 − q)^γ / q − γ (1 − q)^(γ − 1) log q
    (Charoenphakdee et al., CVPR 2021)."""
    q = q.double().clamp(1e-9, 1 - 1e-9)
    up, down = ((1 - p) ** gamma / p - gamma * (1 - p) ** (gamma - 1) * p.log() for p in (1 - q, q))
    return up / (up + down)


def adjusted_logits(logits: Tensor, rate: float, tau: float = 1.0) -> Tensor:
    """Logits for the loss, f + τ log(π / (1 − π)) with the base rate π (Menon et al., ICLR 2021, eq. 10): f itself then
    ranks as if both classes were as frequent. With one logit the shift is only a start for its bias."""
    return logits + tau * math.log(rate / (1 - rate))


def doubly_robust(
    errors: Tensor, seen: Tensor, propensity: Tensor, imputed: Tensor | float = 0.0, clip: float = 0.05
) -> Tensor:
    """Estimate of the mean error over all rows (n,), a scalar: mean(ê + o (e − ê) / p), where ``errors`` e count if
    ``seen`` o is 1. Inverse propensity scoring (IPS) without ``imputed`` errors ê; with them doubly robust (DR), right
    when p or ê is (Wang et al., ICML 2019). A ``propensity`` p below ``clip`` counts as that."""
    if clip <= 0:
        raise ValueError(f"clip is {clip}: a propensity of 0 would weigh a row infinitely; expected above 0.")
    return (imputed + seen * (errors - imputed) / propensity.clamp(min=clip)).mean()


def corrupt(numeric: Tensor, categorical: Tensor, rate: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rows of which each cell is, with probability ``rate``, that of another row drawn at random: numeric (n, D),
    categorical (n, C), and where it was, bool (n, D) and (n, C) (Bahri et al., *SCARF*, ICLR 2022, algorithm 1)."""
    made, where = [], []
    for cells in (numeric, categorical):
        where.append(torch.rand(cells.shape, device=cells.device) < rate)
        donors = torch.randint(len(cells), cells.shape, device=cells.device)
        made.append(torch.where(where[-1], cells.gather(0, donors), cells))
    return *made, *where


def info_nce(a: Tensor, b: Tensor) -> Tensor:
    """Mean −log softmax of the cosines of row i of ``a`` with all rows of ``b``, at row i; both (n, d)."""
    return cross_entropy(normalize(a, dim=1) @ normalize(b, dim=1).T, torch.arange(len(a), device=a.device))


class Contrast(nn.Module):
    """A task without labels: find a row's copy, 60 % of its cells corrupted, among all of a batch. Called with rows it
    gives its loss (SCARF)."""

    def __init__(self, model: SharedBottom) -> None:
        super().__init__()
        self.model, width = model, model.settings["hidden"][-1]
        self.head = nn.Sequential(*mlp(width, (width,)), nn.Linear(width, width))

    def forward(self, numeric: Tensor, categorical: Tensor) -> Tensor:
        both = (numeric, categorical), corrupt(numeric, categorical, 0.6)[:2]
        return info_nce(*(self.head(self.model.represent(*rows)) for rows in both))


class GatedBottom(SharedBottom):
    """A shared bottom whose tasks each weigh the columns first: squeeze and excitation (Hu et al., CVPR 2018, eq. 2-4;
    over columns: Huang et al., *FiBiNET*, RecSys 2019)."""

    def __init__(self, *args, **layers) -> None:
        super().__init__(*args, **layers)
        embedded = [self.settings["embedding_dim"]] * len(self.schema.categorical)
        sizes = torch.tensor(embedded + [1] * len(self.schema.numeric))
        n = len(sizes)
        self.register_buffer("column", torch.arange(n).repeat_interleave(sizes))
        self.register_buffer("sizes", sizes, persistent=False)
        self.gates = nn.ModuleDict({name: mlp(n, (8,)).append(nn.Linear(8, n)) for name in self.names})

    def gate(self, features: Tensor) -> dict[str, Tensor]:
        """``{task: (n, columns)}``: how much each column counts, from 0 to 2."""
        sums = features.new_zeros(features.shape[0], len(self.sizes)).index_add(1, self.column, features)
        squeezed = sums / self.sizes
        return {name: 2 * gate(squeezed).sigmoid() for name, gate in self.gates.items()}

    def represent(self, numeric: Tensor, categorical: Tensor) -> tuple[Tensor, ...]:
        features = self.features(numeric, categorical)
        return tuple(self.bottom(features * gate[:, self.column]) for gate in self.gate(features).values())

    def from_shared(self, shared: tuple[Tensor, ...]) -> dict[str, Tensor]:
        return {name: self.towers[name](z) for name, z in zip(self.names, shared, strict=True)}


class TargetAttention(nn.Module):
    """How much each of a user's events (n, L, width) counts for the candidate, which stands beside each (n, L, width):
    weights (n, L), 0 where no event is ``there``, else by a network that sees both and ``more`` (n, L, M); they need
    not sum to 1 (Zhou et al., *Deep Interest Network*, KDD 2018, eq. 3)."""

    def __init__(self, width: int, more: int) -> None:
        super().__init__()
        self.weigh = nn.Sequential(*mlp(3 * width + more, (16,)), nn.Linear(16, 1))

    def forward(self, events: Tensor, there: Tensor, candidate: Tensor, more: Tensor) -> Tensor:
        return self.weigh(torch.cat([events, candidate, events * candidate, more], -1)).squeeze(-1) * there


class HistoryBottom(SharedBottom):
    """A shared bottom that also reads a user's last ``length`` events by :class:`TargetAttention`. Events stand behind
    a row's columns: ``categorical`` (n, C + L), their sub-category, numbered as the candidate's, 0 where there is none;
    ``numeric`` (n, D + 2L), log hours since, and if it was bought."""

    def __init__(self, *args, length: int = 10, **layers) -> None:
        super().__init__(*args, **layers)
        self.candidate, dim = list(self.schema.categorical).index("sub_category"), 8
        self.length = self.settings["length"] = length
        self.event = nn.Embedding(self.schema.categorical["sub_category"], dim, padding_idx=0)
        self.weigh = TargetAttention(dim, 2)
        self.bottom = self.network(self.features.n_out + dim + 2)
        self.last_shared = [self.bottom]

    def attention(self, numeric: Tensor, categorical: Tensor) -> tuple[Tensor, Tensor]:
        """Weights of the events (n, L), and the events (n, L, width)."""
        subs = categorical[:, -self.length :]
        events, times = self.event(subs), numeric[:, -2 * self.length :].unflatten(1, (2, self.length)).mT
        wanted = self.event(categorical[:, self.candidate]).unsqueeze(1).expand_as(events)
        return self.weigh(events, subs > 0, wanted, times), torch.cat([events, times], -1)

    def represent(self, numeric: Tensor, categorical: Tensor) -> Tensor:
        weights, events = self.attention(numeric, categorical)
        features = self.features(numeric[:, : -2 * self.length], categorical[:, : -self.length])
        return self.bottom(torch.cat([features, (weights.unsqueeze(-1) * events).sum(1)], dim=1))


class RowGAN(nn.Module):
    """Conditional WGAN-GP for numbers and categories, these by Gumbel-softmax (Gulrajani et al., NeurIPS 2017,
    algorithm 1). The critic scores rows; the gap between true and made ones estimates how far apart they are."""

    def __init__(self, schema: Schema) -> None:
        super().__init__()
        self.widths = [len(schema.numeric), *schema.categorical.values()]
        n = sum(self.widths)
        self.generator = nn.Sequential(*mlp(NOISE + 1, (64, 64)), nn.Linear(64, n))
        self.critic = nn.Sequential(*mlp(n + 1, (64, 64)), nn.Linear(64, 1))

    def rows(self, numeric: Tensor, categorical: Tensor) -> Tensor:
        """Rows as the critic reads them, categories one hot: (n, D + Σ sizes)."""
        hot = [one_hot(code, size) for code, size in zip(categorical.T, self.widths[1:], strict=True)]
        return torch.cat([numeric, *hot], dim=1)

    def make(self, labels: Tensor) -> Tensor:
        """One made row for each label (n,)."""
        noise = torch.randn(len(labels), NOISE, device=labels.device)
        numbers, *logits = self.generator(torch.cat([noise, labels[:, None]], 1)).split(self.widths, 1)
        return torch.cat([numbers, *(gumbel_softmax(part, 0.5, hard=True) for part in logits)], dim=1)

    @torch.no_grad()
    def sample(self, n: int) -> tuple[Tensor, Tensor]:
        """Made rows of the rare class as a model reads them: numeric (n, D), categorical (n, C)."""
        numbers, *hot = self.make(self.critic[0].weight.new_ones(n)).split(self.widths, dim=1)
        return numbers, torch.stack([part.argmax(1) for part in hot], dim=1)

    def scores(self, rows: Tensor, labels: Tensor) -> Tensor:
        return self.critic(torch.cat([rows, labels[:, None]], dim=1)).squeeze(-1)

    def penalty(self, true: Tensor, made: Tensor, labels: Tensor) -> Tensor:
        """Mean of (‖∇ score‖ − 1)² at points between true and made rows."""
        between = torch.lerp(made, true, torch.rand(len(true), 1, device=true.device)).requires_grad_()
        (slope,) = torch.autograd.grad(self.scores(between, labels).sum(), between, create_graph=True)
        return ((slope.norm(dim=1) - 1) ** 2).mean()

    @torch.no_grad()
    def distance(self, true: Tensor) -> float:
        """Mean over columns of |mean of 1,000 made rare rows − mean of true ones|."""
        return (self.make(true.new_ones(1000)).mean(0) - true.mean(0)).abs().mean().item()

    def train_on(
        self, data: MultiTaskDataset, task: str, steps: int = 400, lr: float = 1e-3, penalty: float = 10.0
    ) -> pd.DataFrame:
        """Alternate three steps of the critic and one of the generator, on batches half of each class.

        Returns a table with a row every 50 steps: ``gap`` of the critic, ``distance`` of the rare rows, by which the
        best generator is kept. A gap that is not finite, or beyond 1,000, ends it; ``attrs["stopped"]`` says so.
        """
        rows, rare = self.rows(data.numeric, data.categorical), data.labels[task] == 1
        kinds = [kind.nonzero().squeeze(1) for kind in (rare, ~rare)]
        if not all(map(len, kinds)):
            raise ValueError(
                f"{task} is 1 in {len(kinds[0])} of {len(rows)} rows: a generator needs both classes."
            )
        labels = torch.arange(128, device=rows.device).remainder(2).float()
        nets = self.critic, self.generator
        adams = [torch.optim.Adam(net.parameters(), lr, betas=(0.0, 0.9)) for net in nets]
        seen, best, stopped = [], (float("inf"), deepcopy(self.state_dict())), ""
        for step in range(1, steps + 1):
            for _ in range(3):
                drawn = (kind[torch.randint(len(kind), (128,), device=rows.device)] for kind in kinds)
                true, made = rows[torch.where(labels == 1, *drawn)], self.make(labels).detach()
                gap = self.scores(true, labels).mean() - self.scores(made, labels).mean()
                adams[0].zero_grad()
                (penalty * self.penalty(true, made, labels) - gap).backward()
                adams[0].step()
            adams[1].zero_grad()
            (-self.scores(self.make(labels), labels).mean()).backward()
            adams[1].step()
            if not abs(gap.item()) <= 1000:  # NaN too
                stopped = f"diverged at step {step}: the critic's gap is {gap.item():.3g}"
                break
            if step % 50 == 0:
                seen.append({"step": step, "gap": gap.item(), "distance": self.distance(rows[rare])})
                if seen[-1]["distance"] < best[0]:
                    best = seen[-1]["distance"], deepcopy(self.state_dict())
        self.load_state_dict(best[1])
        history = pd.DataFrame(seen, columns=["step", "gap", "distance"])
        history.attrs["stopped"] = stopped
        return history
