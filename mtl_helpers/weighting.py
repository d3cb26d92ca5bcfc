"""Strategies that turn the losses of several tasks into one training step.

Taught in notebook 04. ``fit(…, weights=strategy)`` runs a strategy: :meth:`Weighting.forward` maps the losses to the
total that is differentiated; hooks after a step and an epoch let it learn from what happened. The module ``gradients``
has the strategies that need more than the losses.

A task without one label in a batch is left out of that step: the others get the weights that the strategy would give
them if they were all there is, and what it remembers of that task stays as it was.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mtl_helpers.data.tables import Batch, MultiTaskDataset, Task, check_tasks
from mtl_helpers.losses import check_weights, task_losses

__all__ = [
    "DWA", "FAMO", "GLS", "STCH", "Fixed", "GradNorm", "IMTLL", "RandomWeighting", "UncertaintyWeighting",
    "Weighting", "constant_losses", "entropy_weights", "rarity_weights",
]  # fmt: skip


class Weighting(nn.Module):
    """Base of all strategies, the plain sum; ``tasks`` are the model's, in its order.

    Subclasses override :meth:`forward` and, where they need it, the hooks; ``state_dict`` saves what they learn.
    ``effective`` (T,) is what multiplied each task's gradient in the last step; ``present`` are the positions of the
    tasks with a label in this batch, written down by the training step.
    """

    def __init__(self, tasks: Sequence[Task]) -> None:
        super().__init__()
        self.tasks = check_tasks(tasks)
        self.n_tasks = len(self.tasks)
        self.present = list(range(self.n_tasks))
        self.register_buffer("effective", torch.ones(self.n_tasks))

    lr: float | None = None  # of what a strategy learns, None: the model's

    def begin(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Before the first step: hand learnable weights to the model's optimiser, in a group of their own."""
        if own := [p for p in self.parameters() if p.requires_grad]:
            rate = self.lr or optimizer.defaults["lr"]
            optimizer.add_param_group({"params": own, "weight_decay": 0.0, "lr": rate})

    def losses(self, model: nn.Module, batch: Batch) -> Tensor:
        """Run the model; one loss a task, (T,), 0 for one without a label."""
        logits = model(batch.numeric, batch.categorical)
        return torch.stack(list(task_losses(self.tasks, logits, batch).values()))

    def pick(self, values: Tensor) -> Tensor:
        """Of one value a task, (T,), those of the present tasks, (P,)."""
        return values if len(self.present) == self.n_tasks else values[self.present]

    def forward(self, losses: Tensor) -> Tensor:
        """Losses of the present tasks, (P,) → the total, a scalar."""
        return losses.sum()

    def backward(self, losses: Tensor, model: nn.Module) -> None:
        """Fill ``.grad`` of the model (and of the strategy's own parameters) from the losses (T,)."""
        leaf = losses.detach().requires_grad_()
        if self.present:
            self(self.pick(leaf)).backward()
        self.effective = torch.zeros_like(losses) if leaf.grad is None else leaf.grad.detach()
        losses.backward(self.effective)

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """The optimiser's step. Its momentum must not move what is kept of a task that was left out."""
        kept, absent = [], [i for i in range(self.n_tasks) if i not in self.present]
        for p in self.parameters() if absent else ():
            memory = (value for value in optimizer.state.get(p, {}).values() if torch.is_tensor(value))
            kept += [(value, value.clone()) for value in (p.data, *memory) if value.shape == p.shape]
        optimizer.step()
        for value, before in kept:
            value[absent] = before[absent]

    def after_step(self, recompute: Callable[[], Tensor]) -> None:
        """After the optimiser's step; ``recompute()`` runs the batch again and gives its losses (T,)."""

    def after_epoch(self, train: Tensor, valid: Tensor | None) -> None:
        """After an epoch, with its mean training losses and validation losses, if any: (T,), NaN without a label."""

    def once(self, work: Callable[[], Any]) -> Any:
        """What ``work()`` gives; of several processes that train together, one does it and tells the others."""
        return work()

    def current(self) -> dict[str, float]:
        """The weights of the last step, by task."""
        return dict(zip((task.name for task in self.tasks), self.effective.tolist(), strict=True))


class Fixed(Weighting):
    """L = Σ wᵢ Lᵢ with weights chosen by hand; a tuned one is the baseline that the others must beat.

    ``weights`` is ``{task: weight}``, 1 each when None; it is read at every step, so a slider may change it.
    """

    def __init__(self, tasks: Sequence[Task], weights: Mapping[str, float] | None = None) -> None:
        super().__init__(tasks)
        if weights is not None:
            check_weights(weights, [task.name for task in self.tasks])
        self.weights = weights

    def forward(self, losses: Tensor) -> Tensor:
        return (losses * self.pick(self._now(losses))).sum()

    def backward(self, losses: Tensor, model: nn.Module) -> None:
        self.effective = self._now(losses)  # known, so the total need not be differentiated to find them
        losses.backward(self.effective)

    def _now(self, losses: Tensor) -> Tensor:
        given = self.weights or {task.name: 1.0 for task in self.tasks}
        values = [given[t.name] if i in self.present else 0.0 for i, t in enumerate(self.tasks)]
        return losses.new_tensor(values)


def constant_losses(data: MultiTaskDataset) -> dict[str, float]:
    """What each task would lose if the model always said the label's mean or base rates: the scale of its loss.

    Binary and multiclass: the entropy of the known labels in nats. Regression: their variance.
    """
    found = {}
    for task in data.tasks:
        if not len(labels := _known(data, task.name)):
            raise ValueError(f"Task {task.name!r} has not one label: nothing to weight it by.")
        if task.kind == "regression":
            found[task.name] = labels.double().var(unbiased=False).item()
        else:
            shares = torch.bincount(labels.long(), minlength=2).double() / len(labels)
            found[task.name] = -torch.xlogy(shares, shares).sum().item()
    return found


def entropy_weights(data: MultiTaskDataset) -> dict[str, float]:
    """Fixed weights 1 / (loss of the best constant), scaled to sum to T: every task starts at one unit of loss."""
    return _normalised({name: 1 / max(loss, 1e-12) for name, loss in constant_losses(data).items()})


def rarity_weights(data: MultiTaskDataset) -> dict[str, float]:
    """Fixed weights 1 / √(base rate), scaled to sum to T; a task that is not binary counts as base rate 1."""
    rates = {task.name: 1.0 for task in data.tasks}
    for task in (task for task in data.tasks if task.kind == "binary"):
        rates[task.name] = _known(data, task.name).double().mean().item()
        if not rates[task.name] > 0:
            raise ValueError(f"Task {task.name!r} has no positive label: its rarity is not defined.")
    return _normalised({name: rate**-0.5 for name, rate in rates.items()})


def _known(data: MultiTaskDataset, name: str) -> Tensor:
    return data.labels[name][data.masks.get(name, slice(None))].cpu()  # not every device has float64


def _normalised(weights: Mapping[str, float]) -> dict[str, float]:
    total = sum(weights.values())
    return {name: len(weights) * weight / total for name, weight in weights.items()}


class _Moving(Weighting):
    """Weights (T,) that a hook moves; their sum stays T."""

    def __init__(self, tasks: Sequence[Task]) -> None:
        super().__init__(tasks)
        self.register_buffer("weights", torch.ones(self.n_tasks))

    def forward(self, losses: Tensor) -> Tensor:
        return (losses * self.pick(self.weights)).sum()

    def _share(self, values: Tensor) -> None:
        """Weights ∝ values (T,), 0 or more; a task that was not measured (NaN) keeps its own."""
        known = torch.isfinite(values)
        if (total := values[known].sum()) > 0:
            moved = self.weights[known].sum() * values[known] / total
            self.weights = self.weights.masked_scatter(known, moved)


class UncertaintyWeighting(Weighting):
    """Homoscedastic uncertainty: Σ aᵢ e^(−sᵢ) Lᵢ + ½ sᵢ with learned sᵢ = log σᵢ²; aᵢ is ½ for regression, else 1.

    Kendall, Gal, Cipolla, CVPR 2018, eq. 7 (regression) and 10 (classification). At its optimum e^(−s) = 1/(2 a L), so
    a small loss, as of a rare label, gets a large weight. Adam moves s by about ``lr`` a step: it has a long way to go.
    """

    def __init__(self, tasks: Sequence[Task], lr: float | None = 0.05) -> None:
        super().__init__(tasks)
        self.lr = lr
        self.log_variance = nn.Parameter(torch.zeros(self.n_tasks))
        factor = [0.5 if task.kind == "regression" else 1.0 for task in self.tasks]
        self.register_buffer("factor", torch.tensor(factor))

    def forward(self, losses: Tensor) -> Tensor:
        s = self.pick(self.log_variance)
        return (self.pick(self.factor) * torch.exp(-s) * losses + 0.5 * s).sum()


class IMTLL(Weighting):
    """Σ e^(sᵢ) Lᵢ − sᵢ with learned sᵢ, so that scaled losses tend to 1 (Liu et al., ICLR 2021, IMTL-L, eq. 6)."""

    lr = 0.05

    def __init__(self, tasks: Sequence[Task]) -> None:
        super().__init__(tasks)
        self.log_scale = nn.Parameter(torch.zeros(self.n_tasks))

    def forward(self, losses: Tensor) -> Tensor:
        s = self.pick(self.log_scale)
        return (s.exp() * losses - s).sum()


class DWA(_Moving):
    """Dynamic weight average: w ∝ exp(r / temperature), rᵢ = Lᵢ(epoch − 1) / Lᵢ(epoch − 2), scaled to sum to T.

    Liu, Johns, Davison, CVPR 2019, eq. 7, with unweighted mean losses. Equal in the first two epochs, without a ratio.
    """

    def __init__(self, tasks: Sequence[Task], temperature: float = 2.0) -> None:
        super().__init__(tasks)
        if not temperature > 0:
            raise ValueError(f"temperature is {temperature}: expected a number above 0.")
        self.temperature = temperature
        self.register_buffer("previous", torch.full((self.n_tasks,), math.nan))

    def after_epoch(self, train: Tensor, valid: Tensor | None) -> None:
        now = train.detach().to(self.previous)
        scaled = now / self.previous.clamp(min=1e-12) / self.temperature
        self._share((scaled - scaled.nan_to_num().max()).exp())  # less the largest, so that none overflows
        self.previous = torch.where(torch.isfinite(now), now, self.previous)


class RandomWeighting(Weighting):
    """RLW (Lin et al., TMLR 2022): softmax of new standard normals at every step; what does not beat it is no gain."""

    def __init__(self, tasks: Sequence[Task]) -> None:
        super().__init__(tasks)
        self.generator = torch.Generator().manual_seed(0)

    def forward(self, losses: Tensor) -> Tensor:
        drawn = self.pick(torch.randn(self.n_tasks, generator=self.generator)).softmax(0)
        return (losses * drawn.to(losses)).sum()

    def get_extra_state(self) -> Tensor:
        return self.generator.get_state()

    def set_extra_state(self, state: Tensor) -> None:
        self.generator.set_state(state.cpu())


class GLS(Weighting):
    """Geometric mean L of the losses (Chennupati et al., CVPR workshops 2019): weights L / (T Lᵢ), free of units."""

    def forward(self, losses: Tensor) -> Tensor:
        return losses.clamp(min=1e-12).log().mean().exp()


class STCH(Weighting):
    """Smooth Tchebycheff: μ log Σ exp(λᵢ (Lᵢ − zᵢ) / μ), a soft maximum (Lin et al., ICML 2024, eq. 8).

    λᵢ is 1/T and the loss to aim at, zᵢ, 0. The smaller ``mu``, above 0, the closer to the plain maximum. With a
    ``warm_up`` of epochs, as in the authors' program (μ = 1): Σ log Lᵢ in those; then log(Lᵢ / its mean over the last
    of them) takes the place of λᵢ Lᵢ.
    """

    def __init__(self, tasks: Sequence[Task], mu: float = 0.1, warm_up: int = 0) -> None:
        super().__init__(tasks)
        if not mu > 0:
            raise ValueError(f"mu is {mu}: expected a number above 0.")
        self.mu, self.warm_up = mu, warm_up
        self.register_buffer("epoch", torch.tensor(0))
        self.register_buffer("scale", torch.ones(self.n_tasks))

    def forward(self, losses: Tensor) -> Tensor:
        said = losses / len(losses)
        if self.warm_up:
            said = (losses / self.pick(self.scale)).clamp(min=1e-12).log()
        return said.sum() if self.epoch < self.warm_up else self.mu * torch.logsumexp(said / self.mu, dim=0)

    def after_epoch(self, train: Tensor, valid: Tensor | None) -> None:
        self.epoch += 1
        if self.epoch == self.warm_up:
            self.scale = train.detach().nan_to_num(1.0).to(self.scale)


class FAMO(Weighting):
    """Fast adaptive multitask optimisation (Liu et al., NeurIPS 2023, algorithm 1): equal rates of log-loss decrease.

    The step uses c Σ zᵢ log Lᵢ with z = softmax(w); after it, Adam (with the paper's settings) moves w by how much each
    log-loss fell. That takes the losses of the same batch once more, one forward pass a step.
    """

    def __init__(self, tasks: Sequence[Task]) -> None:
        super().__init__(tasks)
        self.w = nn.Parameter(torch.zeros(self.n_tasks), requires_grad=False)
        self.optimizer = torch.optim.Adam([self.w], lr=0.025, weight_decay=1e-3)

    def begin(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer.param_groups[0]["params"] = [self.w]  # another object now, if it was moved to a device

    def forward(self, losses: Tensor) -> Tensor:
        self._before = losses.detach().clamp(min=1e-8)
        z = self.pick(self.w.detach()).softmax(0)
        return (z * losses.clamp(min=1e-8).log()).sum() / (z / self._before).sum()

    def after_step(self, recompute: Callable[[], Tensor]) -> None:
        if not self.present:
            return
        fall = self._before.log() - self.pick(recompute().detach()).clamp(min=1e-8).log()
        z, self.w.grad = self.pick(self.w).softmax(0), torch.zeros_like(self.w)
        self.w.grad[self.present] = z * (fall - (z * fall).sum())  # softmax's Jacobian times the fall
        self.step(self.optimizer)

    def get_extra_state(self) -> dict:
        return self.optimizer.state_dict()

    def set_extra_state(self, state: dict) -> None:
        self.optimizer.load_state_dict(state)


class GradNorm(_Moving):
    """Gradient normalisation (Chen et al., ICML 2018): weighted gradient norms are drawn to a common size.

    Gᵢ = ‖∇_W wᵢ Lᵢ‖ at the last shared layer W; the target is mean(G) · rᵢ^alpha with rᵢ the task's inverse training
    rate, (Lᵢ / Lᵢ(first step)) over its mean: alpha 0 makes all norms equal. The weights descend Σ |Gᵢ − targetᵢ|
    (targets held constant, eq. 2) by a gradient step ``lr`` of their own and are scaled back to sum to T.
    """

    def __init__(self, tasks: Sequence[Task], alpha: float = 1.5, lr: float = 0.025) -> None:
        super().__init__(tasks)
        self.alpha, self.lr = alpha, lr
        self.register_buffer("first", torch.full((self.n_tasks,), math.nan))

    def backward(self, losses: Tensor, model: nn.Module) -> None:
        layer = model.last_shared_layer()
        grads = [torch.autograd.grad(losses[i], layer, retain_graph=True) for i in self.present]
        super().backward(losses, model)
        if grads:
            norms = torch.stack([torch.cat([part.flatten() for part in grad]).norm() for grad in grads])
            self.weights = self.updated(self.pick(losses.detach()), norms)

    def updated(self, losses: Tensor, norms: Tensor) -> Tensor:
        """All weights (T,) after one step, from losses and unweighted gradient norms of the present tasks, (P,)."""
        first, weights = self.pick(self.first), self.pick(self.weights)
        self.first[self.present] = first = torch.where(torch.isnan(first), losses, first)
        rate, size = losses / first.clamp(min=1e-12), weights * norms
        target = size.mean() * (rate / rate.mean().clamp(min=1e-12)) ** self.alpha
        step = self.lr * torch.sign(size - target) * norms / norms.mean().clamp(min=1e-12)
        moved = (weights - step).clamp(min=1e-4)
        found = self.weights.clone()
        found[self.present] = weights.sum() * moved / moved.sum()  # the sum stays T
        return found
