"""Fusion: many predictions, one ranking score, with exponents set by hand or fitted (notebooks 02 and 05)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Fusion", "LearnedFusion"]


class Fusion(nn.Module):
    """Fusion layer: many predictions, one ranking score.

    ``kind="sum"``: s = Σ aᵢ pᵢ. ``kind="power"``: s = Π pᵢ^aᵢ, a product of probabilities when all aᵢ are 1.
    ``weights`` is ``{task: aᵢ}``, 0 or more, so that both rise with each prediction; tasks not named do not count.
    """

    def __init__(self, weights: Mapping[str, float], kind: str = "power") -> None:
        super().__init__()
        if kind not in ("power", "sum"):
            raise ValueError(f"Fusion kind is {kind!r}, expected 'power' or 'sum'.")
        if not weights or any(not weight >= 0 for weight in weights.values()):
            raise ValueError(f"Fusion weights must be 0 or more, at least one task; got {dict(weights)}.")
        self.kind, self.weights = kind, dict(weights)

    def forward(self, predictions: Mapping[str, Tensor]) -> Tensor:
        """``{task: (n,)}`` probabilities (or values above 0) → score (n,)."""
        stacked = torch.stack([_named(predictions, name) for name in self.weights], dim=-1)
        weights = stacked.new_tensor(list(self.weights.values()))
        return stacked @ weights if self.kind == "sum" else stacked.pow(weights).prod(dim=-1)


def _named(predictions: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in predictions:
        raise KeyError(f"Fusion needs a prediction of {name!r}; got those of {', '.join(predictions)}.")
    return torch.as_tensor(predictions[name])


SMALLEST = 1e-6  # probabilities are kept this far from 0 and 1


class LearnedFusion:
    """A small fusion that is fitted on a target and rises, or stays, with each of its inputs.

    score = σ(b + Σ wᵢ φᵢ(pᵢ)) with wᵢ > 0, where φ is the log-odds of a probability or the log of a value above 0 such
    as a price. It is a logistic regression whose ``weights`` cannot be negative. With logs alone it ranks as
    ``Fusion(weights, kind="power")``: Π pᵢ^wᵢ = exp(Σ wᵢ log pᵢ). It computes in float64 on the CPU. ``inputs`` is
    ``{name: "log_odds" or "log"}``, or names, which then all are probabilities.
    """

    def __init__(self, inputs: Mapping[str, str] | Sequence[str]) -> None:
        self.inputs = dict(inputs) if isinstance(inputs, Mapping) else dict.fromkeys(inputs, "log_odds")
        if wrong := set(self.inputs.values()) - {"log_odds", "log"}:
            raise ValueError(f"An input is one of log_odds, log; got {', '.join(map(repr, wrong))}.")
        self.weights, self.bias = dict.fromkeys(self.inputs, 1.0), 0.0

    def _phi(self, predictions: Mapping[str, Tensor]) -> Tensor:
        """The inputs φ, (n, inputs)."""
        columns = []
        for name, kind in self.inputs.items():
            values = _named(predictions, name).detach().cpu().double()
            if not (values.isfinite() & (values >= 0) & ((values <= 1) | (kind == "log"))).all():
                raise ValueError(f"Input {name!r} holds NaN, infinite or negative values, or values above 1.")
            columns.append(values.logit(SMALLEST) if kind == "log_odds" else values.clamp(min=SMALLEST).log())
        return torch.stack(columns, dim=-1)

    def __call__(self, predictions: Mapping[str, Tensor]) -> Tensor:
        """``{name: (n,)}`` → probability of the target (n,); a weighted fit shifts it, not the order."""
        x = self._phi(predictions)
        return torch.sigmoid(x @ x.new_tensor(list(self.weights.values())) + self.bias)

    def fit(
        self,
        predictions: Mapping[str, Tensor],
        target: Tensor,
        sample_weight: Tensor | None = None,
        l2: float = 1e-4,
    ) -> LearnedFusion:
        """Fit by L-BFGS on the mean (weighted) cross-entropy + l2·Σ w² of the standardised inputs. Returns itself.

        Fit on validation rows: on training rows the predictions look better than they are. ``target`` (n,) is 0 or 1,
        both present (else ValueError); ``sample_weight`` (n,) such as prices, when a bought row counts by its price.
        """
        x, y = self._phi(predictions), torch.as_tensor(target).cpu().double()
        w = torch.ones_like(y) if sample_weight is None else torch.as_tensor(sample_weight).cpu().double()
        if y.shape != x.shape[:1] or w.shape != y.shape or not (w.isfinite() & (w >= 0)).all():
            raise ValueError("Target and sample_weight need one number for each row, weights of 0 or more.")
        if not ((y == 0) | (y == 1)).all() or not (w * y).sum() or not (w * (1 - y)).sum():
            raise ValueError("The target must be 0 or 1 in every row, and both must have weight.")
        w, shift, spread = w / w.sum(), x.mean(0), x.std(0)
        scale = torch.where(spread > 1e-9, spread, 1.0)  # the penalty takes a constant input's weight down
        x = (x - shift) / scale  # so that weights of very different size are learned alike
        v, b = torch.full_like(shift, 0.5413), torch.logit((y * w).sum())  # softplus(.5413) is 1
        v.requires_grad_(), b.requires_grad_()
        how = {"max_iter": 100, "tolerance_grad": 1e-9, "tolerance_change": 1e-12}
        optimizer = torch.optim.LBFGS([v, b], line_search_fn="strong_wolfe", **how)

        def loss() -> Tensor:
            optimizer.zero_grad()
            slopes = F.softplus(v)
            entropy = F.binary_cross_entropy_with_logits(x @ slopes + b, y, weight=w, reduction="sum")
            value = entropy + l2 * (slopes**2).sum()
            value.backward()
            return value

        optimizer.step(loss)
        found = F.softplus(v.detach()) / scale
        self.weights = dict(zip(self.inputs, found.tolist(), strict=True))
        self.bias = (b.detach() - found @ shift).item()
        return self
