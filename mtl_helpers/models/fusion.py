"""A fusion layer that learns its exponents.

Taught in notebook 05, after the hand-set :class:`mtl_helpers.models.Fusion`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Fusion", "LearnedFusion"]


class Fusion(nn.Module):
    """Fusion layer: many predictions, one ranking score.

    ``kind="sum"``: s = Σ aᵢ pᵢ. ``kind="power"``: s = Π pᵢ^aᵢ, a product of probabilities when all aᵢ are 1.
    Both rise with each prediction, because no exponent may be negative.

    Parameters
    ----------
    weights : ``{task: aᵢ}``, 0 or more; tasks that are not named do not count.
    """

    def __init__(self, weights: Mapping[str, float], kind: str = "power") -> None:
        super().__init__()
        if kind not in ("power", "sum"):
            raise ValueError(f"Fusion kind is {kind!r}, expected 'power' or 'sum'.")
        if not weights or any(not weight >= 0 for weight in weights.values()):
            raise ValueError(f"Fusion weights must be 0 or more, at least one task; got {dict(weights)}.")
        self.kind, self.names = kind, tuple(weights)
        self.register_buffer("weights", torch.tensor([float(weight) for weight in weights.values()]))

    def forward(self, predictions: Mapping[str, Tensor]) -> Tensor:
        """``{task: (n,)}`` probabilities (or values above 0) → score (n,)."""
        missing = [name for name in self.names if name not in predictions]
        if missing:
            raise KeyError(
                f"Fusion needs a prediction of {', '.join(map(repr, missing))}; got those of {', '.join(predictions)}."
            )
        stacked = torch.stack([predictions[name] for name in self.names], dim=-1)
        if self.kind == "sum":
            return stacked @ self.weights
        return stacked.pow(self.weights).prod(dim=-1)


INPUTS = ("log_odds", "log")
SMALLEST = 1e-6  # probabilities are kept this far from 0 and 1


class LearnedFusion(nn.Module):
    """A small fusion that is fitted on a target and rises, or stays, with each of its inputs.

    score = σ(b + Σ wᵢ φᵢ(pᵢ)) with wᵢ = softplus(vᵢ) > 0, where φ is the log-odds of a probability or the log of a
    value above 0 such as a price. It is a logistic regression whose weights cannot be negative. With logs alone it
    ranks as ``Fusion(weights, kind="power")``: Π pᵢ^wᵢ = exp(Σ wᵢ log pᵢ). It computes in float64 on the CPU, wherever
    its inputs lie.

    Parameters
    ----------
    inputs : ``{name: "log_odds" or "log"}``, or names, which then all are probabilities.

    >>> fusion = LearnedFusion({"click": "log_odds", "price": "log"})
    >>> fusion({"click": torch.tensor([.1, .2]), "price": torch.tensor([9., 9.])}).shape
    torch.Size([2])
    """

    def __init__(self, inputs: Mapping[str, str] | Sequence[str]) -> None:
        super().__init__()
        kinds = dict(inputs) if isinstance(inputs, Mapping) else dict.fromkeys(inputs, "log_odds")
        if not kinds or isinstance(inputs, str):
            raise ValueError(
                f"LearnedFusion needs names of inputs, such as ['click', 'purchase']; got {inputs!r}."
            )
        wrong = {name: kind for name, kind in kinds.items() if kind not in INPUTS}
        if wrong:
            raise ValueError(f"An input is one of {', '.join(INPUTS)}; got {wrong}.")
        self.inputs, self.names = kinds, tuple(kinds)
        # inputs are standardised inside, so that weights of very different size are learned alike
        self.register_buffer("shift", torch.zeros(len(kinds)))
        self.register_buffer("scale", torch.ones(len(kinds)))
        self.raw = nn.Parameter(torch.full((len(kinds),), 0.5413))  # softplus gives 1
        self.bias = nn.Parameter(torch.zeros(()))

    def _inputs(self, predictions: Mapping[str, Tensor]) -> Tensor:
        missing = [name for name in self.names if name not in predictions]
        if missing:
            raise ValueError(f"LearnedFusion needs {', '.join(missing)}; got {', '.join(predictions)}.")
        columns = []
        for name, kind in self.inputs.items():
            values = torch.as_tensor(predictions[name]).cpu()
            if not (torch.isfinite(values).all() and bool((values >= 0).all())):
                raise ValueError(f"Input {name!r} holds negative, infinite or NaN values.")
            if kind == "log_odds":
                if bool((values > 1).any()):
                    raise ValueError(f"Input {name!r} holds values above 1: expected probabilities.")
                columns.append(torch.logit(values.double(), SMALLEST))
            else:
                columns.append(values.double().clamp(min=SMALLEST).log())
        return (torch.stack(columns, dim=-1) - self.shift.cpu()) / self.scale.cpu()

    def forward(self, predictions: Mapping[str, Tensor]) -> Tensor:
        """``{name: (n,)}`` → probability of the target (n,); a weighted fit shifts it, not the order."""
        return torch.sigmoid(
            self._inputs(predictions) @ F.softplus(self.raw.cpu()).double() + self.bias.cpu()
        )

    @property
    def weights(self) -> dict[str, float]:
        """``{name: wᵢ}``, the exponents: how much the score's log-odds rise with a unit of φᵢ."""
        found = (F.softplus(self.raw.detach().cpu()).double() / self.scale.cpu()).tolist()
        return dict(zip(self.names, found, strict=True))

    def fit(
        self,
        predictions: Mapping[str, Tensor],
        target: Tensor,
        sample_weight: Tensor | None = None,
        *,
        l2: float = 1e-4,
        steps: int = 100,
    ) -> LearnedFusion:
        """Fit by L-BFGS on the mean (weighted) cross-entropy + l2·Σ w² of the standardised inputs. Returns itself.

        Fit on validation rows: on training rows the predictions look better than they are.

        Parameters
        ----------
        predictions : ``{name: (n,)}``. target : (n,), 0 or 1, both classes present.
        sample_weight : (n,), 0 or more, such as prices, when a bought row counts by what it brings.

        Raises ValueError for anything else. The same input gives the same weights.
        """
        y = torch.as_tensor(target).cpu().double()
        columns = {name: torch.as_tensor(predictions[name]) for name in self.names if name in predictions}
        lengths = {name: tuple(column.shape) for name, column in columns.items()}
        if y.ndim != 1 or any(shape != y.shape for shape in lengths.values()):
            raise ValueError(f"Target has shape {tuple(y.shape)}, inputs {lengths}: expected one 1-D length.")
        if not bool(((y == 0) | (y == 1)).all()):
            raise ValueError("The target must be 0 or 1 in every row: drop rows without a label.")
        if not 0 < y.sum() < len(y):
            raise ValueError(
                f"The target has {int(y.sum())} ones in {len(y)} rows: both classes are needed to fit a fusion."
            )
        w = torch.ones_like(y) if sample_weight is None else torch.as_tensor(sample_weight).cpu().double()
        if w.shape != y.shape or not (torch.isfinite(w).all() and bool((w >= 0).all())) or not w.sum():
            raise ValueError(
                "sample_weight needs a finite number, 0 or more, for each row, and not all may be 0."
            )
        for weighted in (w[y == 1].sum(), w[y == 0].sum()):
            if not weighted:
                raise ValueError("All rows of one class have weight 0: both classes are needed.")
        w = w / w.sum()
        with torch.no_grad():
            self.shift.zero_()
            self.scale.fill_(1.0)
            x = self._inputs(columns)
            shift, spread = x.mean(0), x.std(0)
            # a constant input carries nothing: it keeps its scale and the penalty takes its weight down
            scale = torch.where(spread > 1e-9, spread, 1.0)
            self.shift.copy_(shift)
            self.scale.copy_(scale)
            x = (x - self.shift.cpu()) / self.scale.cpu()
            self.raw.fill_(0.5413)
            self.bias.copy_(torch.logit((y * w).sum()))
        v, b = (p.detach().cpu().double().requires_grad_() for p in (self.raw, self.bias))
        optimizer = torch.optim.LBFGS(
            [v, b], max_iter=steps, line_search_fn="strong_wolfe", tolerance_grad=1e-9, tolerance_change=1e-12
        )

        def loss() -> Tensor:
            optimizer.zero_grad()
            slopes = F.softplus(v)
            entropy = F.binary_cross_entropy_with_logits(x @ slopes + b, y, weight=w, reduction="sum")
            value = entropy + l2 * (slopes**2).sum()
            value.backward()
            return value

        optimizer.step(loss)
        with torch.no_grad():
            self.raw.copy_(v)
            self.bias.copy_(b)
        return self
