"""A small generative adversarial network that makes rows of a rare class. Taught in notebook 08."""

from __future__ import annotations

from copy import deepcopy

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.functional import gumbel_softmax, one_hot

from mtl_helpers.data.tables import MultiTaskDataset, Schema
from mtl_helpers.models.layers import mlp

__all__ = ["RowGAN"]
NOISE = 32  # numbers that a row is made from


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
