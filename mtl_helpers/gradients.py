"""Combining the gradients of several tasks where they share parameters.

Taught in notebook 04. Let J (T, P) hold one task's gradient of the shared parameters per row. Every method here maps
the Gramian J Jᵀ (T, T) to weights w (T,) and steps along Jᵀ w = Σ wᵢ gᵢ; heads always get their own task's gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from mtl_helpers.data.tables import Batch, Task
from mtl_helpers.losses import task_losses
from mtl_helpers.weighting import Weighting

__all__ = [
    "METHODS", "CombinedGradients",
    "aligned_mtl", "cagrad", "combine", "imtl_g", "mgda", "nash_mtl", "pcgrad", "upgrad",
]  # fmt: skip

Method = Callable[..., np.ndarray]  # Gramian (T, T) → weights (T,)


def pcgrad(gram: np.ndarray, rng: np.random.Generator | None = None) -> np.ndarray:
    """PCGrad (Yu et al., NeurIPS 2020, algorithm 1): cut from each gradient what conflicts with another.

    Row i loses its component along gⱼ whenever they have a negative inner product, for all j in the order that ``rng``
    draws (None: 0, 1, 2, …), always against the *original* gⱼ; the results are summed.
    """
    n = len(gram)
    own = np.eye(n)
    for i in range(n):
        others = [j for j in range(n) if j != i]
        for j in others if rng is None else rng.permutation(others):
            inner = own[i] @ gram[:, j]
            if inner < 0 and gram[j, j] > 0:
                own[i, j] -= inner / gram[j, j]
    return own.sum(0)


def mgda(gram: np.ndarray) -> np.ndarray:
    """MGDA (Désidéri, 2012; Sener and Koltun, NeurIPS 2018, eq. 3): the shortest vector in the gradients' convex hull.

    min ‖Σ wᵢ gᵢ‖² over w ≥ 0, Σ w = 1, solved exactly: with v = s·w the problem min ‖Jᵀv‖² + (Σv − 1)², v ≥ 0 has the
    same direction, and is a non-negative least-squares problem.
    """
    from scipy.optimize import nnls

    root = _root(gram)
    v, _ = nnls(np.vstack([root, np.ones(len(gram))]), np.r_[np.zeros(len(root)), 1.0])
    return v / v.sum()


def cagrad(gram: np.ndarray, c: float = 0.4) -> np.ndarray:
    """CAGrad (Liu et al., NeurIPS 2021, algorithm 1), not rescaled: near the mean, but kind to the worst-off task.

    d = g₀ + c‖g₀‖ g_w / ‖g_w‖ with g₀ the mean gradient and w minimising g_w·g₀ + c‖g₀‖‖g_w‖ over the simplex. A ``c``
    of 0 gives the mean gradient; below 1 the mean loss still converges.
    """
    from scipy.optimize import minimize

    n, scale = len(gram), np.trace(gram) / len(gram)
    mean = np.full(n, 1 / n)
    if scale <= 0:
        return mean
    g = gram / scale
    radius = c * np.sqrt(max(mean @ g @ mean, 0.0))

    def value(w: np.ndarray) -> tuple[float, np.ndarray]:
        norm = np.sqrt(max(w @ g @ w, 1e-18))
        return float(w @ g @ mean + radius * norm), g @ mean + radius * (g @ w) / norm

    # the objective is convex, so the better of two starts is only a guard against a solver that stops at its start
    simplex = {"type": "eq", "fun": lambda w: w.sum() - 1, "jac": lambda w: np.ones(n)}
    limits = {"bounds": [(0, 1)] * n, "constraints": simplex, "options": {"ftol": 1e-14, "maxiter": 200}}
    starts = mean, np.clip(mgda(gram), 0, 1)
    found = [minimize(value, start, jac=True, method="SLSQP", **limits) for start in starts]
    w = np.clip(min(found, key=lambda result: result.fun).x, 0, 1)
    norm = np.sqrt(max(w @ g @ w, 0.0))
    return mean + radius / norm * w if norm > 1e-9 else mean


def nash_mtl(gram: np.ndarray) -> np.ndarray:
    """Nash-MTL (Navon et al., ICML 2022): the bargaining solution, G w = 1/w with w > 0.

    The equation is the stationary point of the strictly convex ½ wᵀGw − Σ log wᵢ, found by damped Newton steps.
    Opposite gradients have no finite solution; a ridge of 1e-9 on the cosines keeps w finite there.
    """
    lengths = np.sqrt(np.clip(np.diag(gram), 0, None))
    lengths[lengths == 0] = 1.0
    # the solution for unit gradients, divided by the lengths, is the solution for the gradients themselves
    cosines = gram / np.outer(lengths, lengths) + 1e-9 * np.eye(len(gram))
    w = np.full(len(gram), 1 / np.sqrt(len(gram)))
    for _ in range(500):
        slope = cosines @ w - 1 / w
        step = np.linalg.solve(cosines + np.diag(1 / w**2), slope)
        decrement = np.sqrt(max(slope @ step, 0.0))
        w = np.maximum(w - step / (1 + decrement if decrement > 0.25 else 1), 0.1 * w)
        if decrement < 1e-10:
            break
    return w / lengths


def imtl_g(gram: np.ndarray) -> np.ndarray:
    """IMTL-G (Liu et al., ICLR 2021, eq. 5): the combination with equal projections on all unit gradients, Σ w = 1.

    w ∝ G⁺ d with d the gradients' lengths. Weights may be negative. Zero gradients get 0; equal weights where
    no such combination exists.
    """
    kept, lengths, cosines = _cosines(gram)
    v = np.linalg.pinv(cosines, hermitian=True) @ np.ones(len(kept))
    w = np.zeros(len(gram))
    w[kept] = v / lengths
    # unit gradients that face each other have no common projection but 0
    solved = np.allclose(cosines @ v, 1) and abs(w.sum()) > 1e-12 * np.abs(w).max(initial=0)
    return w / w.sum() if solved else np.full(len(w), 1 / len(w))


def aligned_mtl(gram: np.ndarray) -> np.ndarray:
    """Aligned-MTL (Senushkin et al., CVPR 2023, algorithm 1): J's principal components made equal, averaged."""
    mean = np.full(len(gram), 1 / len(gram))
    values, vectors = np.linalg.eigh(gram)
    kept = values > values.max() * len(gram) * np.finfo(float).eps
    if not kept.any():
        return mean
    values, vectors = values[kept], vectors[:, kept]
    return np.sqrt(values.min()) * (vectors / np.sqrt(values)) @ vectors.T @ mean


def upgrad(gram: np.ndarray) -> np.ndarray:
    """UPGrad (Quinton and Rey, 2024): project each gradient on the cone of directions that harm no task, then average.

    The projection of gᵢ is Jᵀ(eᵢ + u) with u ≥ 0 minimising its length: a non-negative least-squares problem.
    """
    from scipy.optimize import nnls

    kept, lengths, cosines = _cosines(gram)
    root, w = _root(cosines), np.zeros(len(gram))
    projections = [unit + nnls(root, -root @ unit)[0] for unit in np.eye(len(kept))]
    for length, projection in zip(lengths, projections, strict=True):
        w[kept] += length * projection / lengths / len(gram)
    return w


def _cosines(gram: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which gradients are not zero, their lengths, and the Gramian of their directions."""
    lengths = np.sqrt(np.clip(np.diag(gram), 0, None))
    kept = np.flatnonzero(lengths)
    lengths = lengths[kept]
    return kept, lengths, gram[np.ix_(kept, kept)] / np.outer(lengths, lengths)


def _root(gram: np.ndarray) -> np.ndarray:
    """R (T, T) with RᵀR = G / mean squared gradient length."""
    scale = np.trace(gram) / max(len(gram), 1)
    values, vectors = np.linalg.eigh(gram / scale if scale > 0 else gram)
    return np.sqrt(np.clip(values, 0, None))[:, None] * vectors.T


METHODS: dict[str, Method] = {
    "PCGrad": pcgrad,
    "MGDA": mgda,
    "CAGrad": cagrad,
    "Nash-MTL": nash_mtl,
    "IMTL-G": imtl_g,
    "Aligned-MTL": aligned_mtl,
    "UPGrad": upgrad,
}


def combine(method: str | Method, jacobian: Tensor) -> Tensor:
    """The combined gradient Jᵀ w (P,) of a Jacobian (T, P), a row a task; ValueError for NaN or infinity in it."""
    if not torch.isfinite(jacobian).all():
        raise ValueError("combine got gradients with NaN or infinity in them.")
    weights = _method(method)(_gramian(jacobian))
    return torch.as_tensor(weights, dtype=jacobian.dtype, device=jacobian.device) @ jacobian


def _method(method: str | Method) -> Method:
    found = METHODS.get(method, method)
    if isinstance(found, str):
        raise ValueError(f"method is {method!r}: expected one of {', '.join(METHODS)}.")
    return found


def _gramian(jacobian: Tensor) -> np.ndarray:
    return (jacobian @ jacobian.T).cpu().double().numpy()  # on the way, not every device has float64


class CombinedGradients(Weighting):
    """Train with one of :data:`METHODS`, or with a function of the Gramian (T, T), in place of a weighted sum.

    ``at="parameters"`` combines the exact gradients of the shared parameters, at the cost of T backward passes through
    them. ``at="representation"`` needs one: it measures the gradients at the shared representation (the shortcut of
    Sener and Koltun, 2018: an upper bound for MGDA, an approximation for the others). That is what ``model.represent``
    returns, the last tensors that all tasks look at: a shared bottom's output Z; MMoE's experts' outputs, and the
    features that its gates read; PLE's and AITM's features. Shared parameters above it, as ESMM's click tower, get the
    same weights.
    """

    def __init__(self, tasks: Sequence[Task], method: str | Method, at: str = "representation") -> None:
        super().__init__(tasks)
        if at not in ("parameters", "representation"):
            raise ValueError(f"at is {at!r}: expected 'parameters' or 'representation'.")
        self.method, self.at = _method(method), at
        self.rng = np.random.default_rng(0)  # of PCGrad's orders
        self._below: tuple[Tensor, ...] = ()  # the shared representation, and the copies that the towers read
        self._copies: tuple[Tensor, ...] = ()

    def losses(self, model: nn.Module, batch: Batch) -> Tensor:
        """The losses (T,); at the representation, the towers read a copy that is cut off from what lies below."""
        shared = model.represent(batch.numeric, batch.categorical)
        if self.at == "representation":
            self._below = shared if isinstance(shared, tuple) else (shared,)
            self._copies = tuple(part.detach().requires_grad_() for part in self._below)
            shared = self._copies if isinstance(shared, tuple) else self._copies[0]
        # kept apart: a backward pass through their stack would run every tower for every task
        self._losses = list(task_losses(self.tasks, model.from_shared(shared), batch).values())
        return torch.stack([loss.detach() for loss in self._losses])

    def backward(self, losses: Tensor, model: nn.Module) -> None:
        params, shared = [p for p in model.parameters() if p.requires_grad], set(model.shared_parameters())
        inputs = [*self._copies, *params]
        rows = [torch.autograd.grad(L, inputs, retain_graph=True, allow_unused=True) for L in self._losses]
        columns = [*zip(*rows, strict=True)]  # for a tensor: each task's gradient; None where there is none
        flows, own = columns[: len(self._copies)], columns[len(self._copies) :]
        common = [column for p, column in zip(params, own, strict=True) if p in shared]
        self.effective = self._weights(flows or common, losses)
        for p, column in zip(params, own, strict=True):
            p.grad = _summed(column, self.effective if p in shared else None)
        arrived = zip(self._below, flows, strict=True)
        down = [(part, _summed(flow, self.effective)) for part, flow in arrived if part.requires_grad]
        if down:
            torch.autograd.backward(*zip(*down, strict=True))
        self._below, self._copies, self._losses = (), (), []

    def _weights(self, columns: Sequence[Sequence[Tensor | None]], losses: Tensor) -> Tensor:
        """The method's weights (T,) for gradients given in parts; 0 for a task without a label."""
        gram = np.zeros((self.n_tasks, self.n_tasks))
        for column in columns:
            at = [i for i, grad in enumerate(column) if grad is not None]
            if at:
                gram[np.ix_(at, at)] += _gramian(torch.stack([column[i].flatten() for i in at]))
        weights = torch.zeros_like(losses)
        if self.present:
            gram = gram[np.ix_(self.present, self.present)]
            found = self.method(gram, self.rng) if self.method is pcgrad else self.method(gram)
            weights[self.present] = torch.tensor(found, dtype=losses.dtype, device=losses.device)
        return weights


def _summed(column: Sequence[Tensor | None], weights: Tensor | None) -> Tensor | None:
    """Σ wᵢ gᵢ over the gradients that exist; without weights their sum."""
    parts = [(i, grad) for i, grad in enumerate(column) if grad is not None]
    parts = [grad if weights is None else weights[i] * grad for i, grad in parts]
    return sum(parts[1:], parts[0]) if parts else None
