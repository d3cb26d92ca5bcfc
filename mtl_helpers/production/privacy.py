"""Private training: each row's gradient clipped, their sum noised; and what the steps add up to.

Taught in notebook 10, which takes the gradients row by row. Abadi et al., *Deep Learning with Differential Privacy*,
CCS 2016. A neighbour is the same table with one **row** more or less: someone with k rows is hidden k times as weakly.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from mtl_helpers.data.tables import Batch
from mtl_helpers.losses import label_counts, task_losses

__all__ = ["clipped_sum", "epsilon"]


def clipped_sum(
    model: nn.Module, batch: Batch, weights: Mapping[str, float], clip: float
) -> dict[str, Tensor]:
    """The sum of the rows' gradients, each shortened to the length ``clip``, over all parameters together; a row's loss
    is Σ weight · loss over its known labels. For models of linear layers and embeddings, each used once: a linear
    layer's gradient of a row is an outer product, so that its length is known without it (Goodfellow,
    arXiv:1510.01799)."""
    seen, names = [], {id(p): name for name, p in model.named_parameters()}
    kinds = [layer for layer in model.modules() if isinstance(layer, (nn.Linear, nn.Embedding))]
    hooks = [
        layer.register_forward_hook(lambda layer, x, out: seen.append((layer, x[0], out))) for layer in kinds
    ]
    losses = task_losses(model.tasks, model(batch.numeric, batch.categorical), batch)
    for hook in hooks:
        hook.remove()
    total = sum(
        weights[t] * loss * n
        for (t, loss), n in zip(losses.items(), label_counts(model.tasks, batch), strict=True)
    )
    slopes = torch.autograd.grad(total, [out for _, _, out in seen])
    parts = [(layer, x.detach(), slope) for (layer, x, _), slope in zip(seen, slopes, strict=True)]
    length = sum(
        slope.flatten(1).square().sum(1) * (x.square().sum(1) + 1 if isinstance(layer, nn.Linear) else 1)
        for layer, x, slope in parts
    ).sqrt()
    factor, sums = (clip / length.clamp(min=1e-12)).clamp(max=1), {}
    for layer, x, slope in parts:
        slope = torch.einsum("n,n...->n...", factor, slope)
        if isinstance(layer, nn.Linear):
            sums[names[id(layer.weight)]], sums[names[id(layer.bias)]] = slope.T @ x, slope.sum(0)
        else:
            table = torch.zeros_like(layer.weight)
            sums[names[id(layer.weight)]] = table.index_add(0, x.flatten(), slope.flatten(0, 1))
    return sums


def epsilon(noise: float, rate: float, steps: int, delta: float = 1e-5) -> float:
    """ε of so many steps that each draw a row with chance ``rate`` (0 < rate < 1): Rényi divergences of whole orders
    (Mironov et al., arXiv:1908.10530, eq. 3) and their conversion (Canonne et al., NeurIPS 2020, prop. 12)."""
    from scipy.special import gammaln, logsumexp

    a, k = np.arange(2, 257)[:, None], np.arange(257)
    choose = gammaln(a + 1) - gammaln(k + 1) - gammaln(np.maximum(a - k, 0) + 1)
    terms = choose + k * np.log(rate) + (a - k) * np.log1p(-rate) + k * (k - 1) / (2 * noise**2)
    a, moments = a[:, 0], logsumexp(np.where(k <= a, terms, -np.inf), axis=1)
    bounds = steps * moments / (a - 1) + np.log1p(-1 / a) - (np.log(delta) + np.log(a)) / (a - 1)
    return max(0.0, float(bounds.min()))
