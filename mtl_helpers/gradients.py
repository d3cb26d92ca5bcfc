"""Combining the gradients of several tasks where they share parameters.

Taught in notebook 04. Let J (T, P) hold one task's gradient of the shared parameters per row. Every method
here finds weights from the Gramian J Jᵀ (T, T) alone and steps along Jᵀ w; heads always get their own task's gradient.
:class:`CombinedGradients` runs a method in ``fit``: over the exact gradients of the shared parameters, or over those at
the shared representation Z, which need one backward pass through the bottom in all.
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
    "METHODS",
    "CombinedGradients",
    "aligned_mtl",
    "cagrad",
    "combine",
    "imtl_g",
    "mgda",
    "nash_mtl",
    "pcgrad",
    "upgrad",
]


def pcgrad(gram: np.ndarray, rng: np.random.Generator | None = None) -> np.ndarray:
    """PCGrad (Yu et al., NeurIPS 2020, algorithm 1): cut from each gradient what conflicts with another.

    Row i loses its component along gⱼ whenever they have a negative inner product, for all j in random order, always
    against the *original* gⱼ; the results are summed.

    Parameters
    ----------
    gram : (T, T), inner products of the gradients. rng : draws the orders; None visits 0, 1, 2, …

    Returns
    -------
    w (T,) such that the combined gradient is Σ wᵢ gᵢ.
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
    root = _root(gram)
    v = _nnls(np.vstack([root, np.ones(len(gram))]), np.r_[np.zeros(len(root)), 1.0])
    return v / v.sum()


def cagrad(gram: np.ndarray, c: float = 0.4) -> np.ndarray:
    """CAGrad (Liu et al., NeurIPS 2021, algorithm 1), not rescaled: near the mean, but kind to the worst-off task.

    d = g₀ + c‖g₀‖ g_w / ‖g_w‖ with g₀ the mean gradient and w minimising g_w·g₀ + c‖g₀‖‖g_w‖ over the simplex.

    Parameters
    ----------
    c : 0 gives the mean gradient; below 1 the mean loss still converges.
    """
    from scipy.optimize import minimize

    n = len(gram)
    scale = np.trace(gram) / n
    if scale <= 0:
        return np.full(n, 1 / n)
    g = gram / scale
    mean = np.full(n, 1 / n)
    radius = c * np.sqrt(max(mean @ g @ mean, 0.0))

    def value(w: np.ndarray) -> tuple[float, np.ndarray]:
        norm = np.sqrt(max(w @ g @ w, 1e-18))
        return float(w @ g @ mean + radius * norm), g @ mean + radius * (g @ w) / norm

    # the objective is convex, so the better of two starts is only a guard against a solver that stops at its start
    found = [
        minimize(
            value,
            start,
            jac=True,
            method="SLSQP",
            bounds=[(0, 1)] * n,
            constraints={"type": "eq", "fun": lambda w: w.sum() - 1, "jac": lambda w: np.ones(n)},
            options={"ftol": 1e-14, "maxiter": 200},
        )
        for start in (mean, np.clip(mgda(gram), 0, 1))
    ]
    w = np.clip(min(found, key=lambda result: result.fun).x, 0, 1)
    norm = np.sqrt(max(w @ g @ w, 0.0))
    return mean + radius / norm * w if norm > 1e-9 else mean


def nash_mtl(gram: np.ndarray) -> np.ndarray:
    """Nash-MTL (Navon et al., ICML 2022): the bargaining solution, G w = 1/w with w > 0.

    The equation is the stationary point of the strictly convex ½ wᵀGw − Σ log wᵢ, found by damped Newton steps.
    Opposite gradients have no finite solution; a ridge of 1e-9 on the cosines keeps w finite there.
    """
    lengths = np.sqrt(np.clip(np.diag(gram), 0, None))
    lengths = np.where(lengths > 0, lengths, 1.0)
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
    w, n = np.zeros(len(gram)), len(gram)
    w[kept] = v / lengths
    # unit gradients that face each other have no common projection but 0
    solved = np.allclose(cosines @ v, 1) and abs(w.sum()) > 1e-12 * np.abs(w).max(initial=0)
    return w / w.sum() if solved else np.full(n, 1 / n)


def aligned_mtl(gram: np.ndarray) -> np.ndarray:
    """Aligned-MTL (Senushkin et al., CVPR 2023, algorithm 1): J's principal components made equal, averaged."""
    n = len(gram)
    values, vectors = np.linalg.eigh(gram)
    kept = values > values.max() * n * np.finfo(float).eps
    if not kept.any():
        return np.full(n, 1 / n)
    values, vectors = values[kept], vectors[:, kept]
    balance = np.sqrt(values.min()) * (vectors / np.sqrt(values)) @ vectors.T
    return balance @ np.full(n, 1 / n)


def upgrad(gram: np.ndarray) -> np.ndarray:
    """UPGrad (Quinton and Rey, 2024): project each gradient on the cone of directions that harm no task, then average.

    The projection of gᵢ is Jᵀ(eᵢ + u) with u ≥ 0 minimising its length: a non-negative least-squares problem.
    """
    kept, lengths, cosines = _cosines(gram)
    root, w = _root(cosines), np.zeros(len(gram))
    projections = [unit + _nnls(root, -root @ unit) for unit in np.eye(len(kept))]
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


def _nnls(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    from scipy.optimize import nnls

    return nnls(a, b)[0]


METHODS: dict[str, Callable[..., np.ndarray]] = {
    "PCGrad": pcgrad,
    "MGDA": mgda,
    "CAGrad": cagrad,
    "Nash-MTL": nash_mtl,
    "IMTL-G": imtl_g,
    "Aligned-MTL": aligned_mtl,
    "UPGrad": upgrad,
}


def combine(method: str | Callable[[np.ndarray], np.ndarray], jacobian: Tensor) -> Tensor:
    """The combined gradient Jᵀ w (P,) of a Jacobian (T, P), one gradient a row."""
    method = _method(method)
    if jacobian.dim() != 2 or not torch.isfinite(jacobian).all():
        found = "with NaN or infinite entries" if jacobian.dim() == 2 else f"of shape {tuple(jacobian.shape)}"
        raise ValueError(f"combine got gradients {found}: expected a finite Jacobian (T, P), a row a task.")
    weights = method(_gramian(jacobian))
    return torch.as_tensor(weights, dtype=jacobian.dtype, device=jacobian.device) @ jacobian


def _method(method: str | Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
    if isinstance(method, str) and method not in METHODS:
        raise ValueError(f"method is {method!r}: expected one of {', '.join(METHODS)}.")
    return METHODS[method] if isinstance(method, str) else method


def _gramian(jacobian: Tensor) -> np.ndarray:
    return (jacobian @ jacobian.T).cpu().double().numpy()  # on the way, not every device has float64


class CombinedGradients(Weighting):
    """Train with one of :data:`METHODS` (or a function of the Gramian) in place of a weighted sum.

    Parameters
    ----------
    tasks : of the model. method : a name in METHODS, or a function (T, T) → (T,).
    at : ``"parameters"`` combines the exact gradients of the shared parameters, at the cost of T backward passes
        through them; ``"representation"`` measures the gradients at the shared representation and needs one (the
        shortcut of Sener and Koltun, 2018: an upper bound for MGDA, an approximation for the others). The
        representation is what ``model.represent`` returns, the last tensors that all tasks look at: a shared
        bottom's output Z; MMoE's experts' outputs, and the features that its gates read; PLE's and AITM's features.
        Shared parameters above it, such as ESMM's click tower, get the same weights.
    seed : of PCGrad's random orders.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        method: str | Callable[[np.ndarray], np.ndarray],
        at: str = "representation",
        seed: int = 0,
    ) -> None:
        super().__init__(tasks)
        self.method = _method(method)
        if at not in ("parameters", "representation"):
            raise ValueError(f"at is {at!r}: expected 'parameters' or 'representation'.")
        self.name, self.at = method if isinstance(method, str) else method.__name__, at
        self.rng = np.random.default_rng(seed)
        self._below: tuple[Tensor, ...] = ()
        self._copies: tuple[Tensor, ...] = ()

    def begin(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        if not hasattr(model, "from_shared"):
            raise ValueError(
                f"{type(model).__name__} has no shared bottom whose gradients could be combined: it needs represent, "
                "from_shared and shared_parameters, as SharedBottom has them."
            )

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

    def weigh(self, gram: np.ndarray) -> np.ndarray:
        """Weights (T,) of the method for one Gramian."""
        return self.method(gram, self.rng) if self.method is pcgrad else self.method(gram)

    def backward(self, losses: Tensor, model: nn.Module) -> None:
        params, shared = [p for p in model.parameters() if p.requires_grad], set(model.shared_parameters())
        grads = [
            torch.autograd.grad(loss, [*self._copies, *params], retain_graph=True, allow_unused=True)
            for loss in self._losses
        ]
        columns = list(
            zip(*grads, strict=True)
        )  # for a tensor: each task's gradient; None where there is none
        flows, own = columns[: len(self._copies)], columns[len(self._copies) :]
        common = [column for p, column in zip(params, own, strict=True) if p in shared]
        weights = self._weights(flows or common, losses)
        for p, column in zip(params, own, strict=True):
            p.grad = _combined(weights if p in shared else None, column)
        below = [pair for pair in zip(self._below, flows, strict=True) if pair[0].requires_grad]
        if below:
            parts, flows = zip(*below, strict=True)
            torch.autograd.backward(parts, [_combined(weights, flow) for flow in flows])
        self._below, self._copies, self._losses = (), (), []

    def _weights(self, columns: Sequence[Sequence[Tensor | None]], losses: Tensor) -> Tensor:
        """The method's weights (T,) for gradients given in parts; 0 for a task without a label."""
        gram = np.zeros((self.n_tasks, self.n_tasks))
        for column in columns:
            rows = [(i, grad.flatten()) for i, grad in enumerate(column) if grad is not None]
            if rows:
                at, stack = zip(*rows, strict=True)
                gram[np.ix_(at, at)] += _gramian(torch.stack(stack))
        self.effective = torch.zeros_like(losses)
        if self.present:
            found = self.weigh(gram[np.ix_(self.present, self.present)])
            self.effective[self.present] = torch.tensor(found, dtype=losses.dtype, device=losses.device)
        return self.effective


def _combined(weights: Tensor | None, column: Sequence[Tensor | None]) -> Tensor | None:
    """Σ wᵢ gᵢ over the gradients that exist; without weights their sum."""
    if weights is not None:
        column = [None if grad is None else w * grad for w, grad in zip(weights, column, strict=True)]
    parts = [grad for grad in column if grad is not None]
    return sum(parts[1:], parts[0]) if parts else None
