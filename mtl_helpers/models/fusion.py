"""Fusion: many predictions, one ranking score, with exponents set by hand or fitted (notebooks 02 and 05)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Fusion", "LearnedFusion"]


class Fusion(nn.Module):
    """Fusion layer: many predictions, one ranking score s = Π pᵢ^aᵢ, a product of probabilities when all aᵢ are 1.

    ``weights`` is ``{task: aᵢ}``, 0 or more, so that s rises with each prediction; tasks not named do not count.
    """

    def __init__(self, weights: Mapping[str, float]) -> None:
        super().__init__()
        if not weights or any(not weight >= 0 for weight in weights.values()):
            raise ValueError(f"Fusion weights must be 0 or more, at least one task; got {dict(weights)}.")
        self.weights = dict(weights)

    def forward(self, predictions: Mapping[str, Tensor]) -> Tensor:
        """``{task: (n,)}`` probabilities (or values above 0) → score (n,)."""
        stacked = torch.stack([torch.as_tensor(predictions[name]) for name in self.weights], dim=-1)
        return stacked.pow(stacked.new_tensor(list(self.weights.values()))).prod(dim=-1)


class LearnedFusion:
    """A small fusion of probabilities that is fitted on a target and rises, or stays, with each of its inputs.

    score = σ(b + Σ wᵢ log(pᵢ / (1 − pᵢ))), a logistic regression whose ``weights`` cannot be negative, in float64.
    """

    def __init__(self, inputs: Sequence[str]) -> None:
        self.weights, self.bias = dict.fromkeys(inputs, 1.0), 0.0

    def log_odds(self, predictions: Mapping[str, Tensor]) -> Tensor:
        """Of the inputs, (n, inputs)."""
        given = [torch.as_tensor(predictions[name]).detach().cpu().double() for name in self.weights]
        p = torch.stack(given, dim=-1)
        if not ((p >= 0) & (p <= 1)).all():
            raise ValueError(f"A prediction of {', '.join(self.weights)} is NaN, negative or above 1.")
        return p.logit(1e-6)  # kept this far from 0 and 1

    def __call__(self, predictions: Mapping[str, Tensor]) -> Tensor:
        """``{name: (n,)}`` → probability of the target (n,)."""
        x = self.log_odds(predictions)
        return torch.sigmoid(x @ x.new_tensor(list(self.weights.values())) + self.bias)

    def fit(self, predictions: Mapping[str, Tensor], target: Tensor) -> LearnedFusion:
        """Fit by L-BFGS on the mean cross-entropy + 1e-4·Σ w² of the standardised inputs. Returns itself.

        Fit on validation rows: on training rows the predictions look better than they are. ``target`` (n,) is 0 or 1,
        both present (else ValueError).
        """
        x, y = self.log_odds(predictions), torch.as_tensor(target).cpu().double()
        if y.unique().tolist() != [0, 1]:
            raise ValueError("The target must be 0 or 1 in every row, and both must be there.")
        shift, spread = x.mean(0), x.std(0)
        scale = torch.where(spread > 1e-9, spread, 1.0)  # the penalty takes a constant input's weight down
        x = (x - shift) / scale  # so that weights of very different size are learned alike
        v, b = torch.full_like(shift, 0.5413), torch.logit(y.mean())  # softplus(.5413) is 1
        v.requires_grad_(), b.requires_grad_()
        how = {"max_iter": 100, "tolerance_grad": 1e-9, "tolerance_change": 1e-12}
        optimizer = torch.optim.LBFGS([v, b], line_search_fn="strong_wolfe", **how)

        def loss() -> Tensor:
            optimizer.zero_grad()
            slopes = F.softplus(v)
            entropy = F.binary_cross_entropy_with_logits(x @ slopes + b, y)
            value = entropy + 1e-4 * (slopes**2).sum()
            value.backward()
            return value

        optimizer.step(loss)
        found = F.softplus(v.detach()) / scale
        self.weights = dict(zip(self.weights, found.tolist(), strict=True))
        self.bias = (b.detach() - found @ shift).item()
        return self
