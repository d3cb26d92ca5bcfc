"""Combining the gradients of several tasks where they share parameters.

Taught in notebook 04. Let J (T, P) hold one task's gradient of the shared parameters per row. Every method
here finds weights from the Gramian J Jᵀ (T, T) alone and steps along Jᵀ w; heads always get their own task's gradient.
:class:`CombinedGradients` runs a method in ``fit``: over the exact gradients of the shared parameters, or over those at
the shared representation Z, which need one backward pass through the bottom in all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from mtl_helpers.data.tables import Task
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

    w ∝ G⁺ d with d the gradients' lengths. Weights may be negative; equal ones are used where the sum is 0.
    """
    n = len(gram)
    w = np.linalg.pinv(gram, hermitian=True) @ np.sqrt(np.clip(np.diag(gram), 0, None))
    total = w.sum()
    return w / total if abs(total) > 1e-12 * max(np.abs(w).max(), 1e-300) else np.full(n, 1 / n)


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
    n, root = len(gram), _root(gram)
    return np.mean([unit + _nnls(root, -root @ unit) for unit in np.eye(n)], axis=0)


def _root(gram: np.ndarray) -> np.ndarray:
    """R (T, T) with RᵀR = G / mean squared gradient length."""
    scale = np.trace(gram) / len(gram)
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
        raise ValueError(
            f"combine got gradients {found}: expected a finite Jacobian (T, P), a row for each task."
        )
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
        self._shared: tuple[Tensor, ...] = ()
        self._copies: tuple[Tensor, ...] = ()
        self._own: dict[str, Tensor] = {}
        self._undo: list[Callable[[], None]] = []

    def begin(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Let the towers read copies of the shared representation that are cut off from the graph below."""
        if not hasattr(model, "represent") or not hasattr(model, "shared_parameters"):
            raise ValueError(
                f"{type(model).__name__} has no shared bottom whose gradients could be combined: it needs the methods "
                "represent and shared_parameters, as SharedBottom has them."
            )
        self.end()
        represent = model.represent

        def cut(numeric: Tensor, categorical: Tensor) -> Tensor | tuple[Tensor, ...]:
            found = represent(numeric, categorical)
            if not torch.is_grad_enabled():
                return found
            self._own = {}
            self._shared = (found,) if isinstance(found, Tensor) else tuple(found)
            self._copies = tuple(part.detach().requires_grad_() for part in self._shared)
            return self._copies[0] if isinstance(found, Tensor) else self._copies

        model.represent = cut  # on this object alone, until end()
        self._undo = [partial(delattr, model, "represent")]
        shared = {id(p) for p in model.shared_parameters()}
        towers = getattr(model, "towers", {})
        if not any(id(p) in shared for name in towers for p in towers[name].parameters()):
            # where each tower reads the representation itself, and only its task's loss reaches it, a copy for each
            # separates the tasks in one backward pass
            self._undo += [
                towers[name].register_forward_pre_hook(partial(self._give_own, name)).remove
                for name in towers
            ]

    def _give_own(self, name: str, tower: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor] | None:
        if not torch.is_grad_enabled() or not any(inputs[0] is copy for copy in self._copies):
            return None
        self._own[name] = inputs[0].detach().requires_grad_()
        return (self._own[name],)

    def end(self) -> None:
        for undo in self._undo:
            undo()
        self._undo, self._shared, self._copies, self._own = [], (), (), {}

    def weigh(self, gram: np.ndarray) -> np.ndarray:
        """Weights (T,) of the method for one Gramian."""
        return self.method(gram, self.rng) if self.method is pcgrad else self.method(gram)

    def backward(self, losses: Tensor, model: nn.Module) -> None:
        shared = [p for p in model.shared_parameters() if p.requires_grad]
        if len(self._own) == self.n_tasks:
            self._backward_once(losses, shared)
            return
        known = {id(p) for p in shared}
        heads = [p for p in model.parameters() if p.requires_grad and id(p) not in known]
        at_copies, at_shared = [], []
        for loss in losses:
            wanted = [*self._copies, *shared, *heads]
            found = list(torch.autograd.grad(loss, wanted, retain_graph=True, allow_unused=True))
            at_copies.append([_or_zeros(found.pop(0), copy) for copy in self._copies])
            at_shared.append([found.pop(0) for _ in shared])  # None for what lies below the cut
            for p, grad in zip(heads, found, strict=True):
                _add_grad(p, grad)
        if self.at == "representation":
            weights = self._weights(at_copies, losses)
            for p, rows in zip(shared, zip(*at_shared, strict=True), strict=True):
                if any(row is not None for row in rows):
                    _add_grad(p, _combined(weights, [_or_zeros(row, p) for row in rows]))
            flows = [_combined(weights, rows) for rows in zip(*at_copies, strict=True)]
            torch.autograd.backward(*self._that_need(flows))
            return
        for below, above in zip(at_copies, at_shared, strict=True):
            parts, flows = self._that_need(below)
            lower = torch.autograd.grad(parts, [*shared, *heads], flows, retain_graph=True, allow_unused=True)
            above[:] = [
                _or_zeros(low, p) if high is None else high + _or_zeros(low, p)
                for p, low, high in zip(shared, lower, above, strict=False)
            ]
            for p, grad in zip(heads, lower[len(shared) :], strict=True):
                _add_grad(p, grad)
        weights = self._weights(at_shared, losses)
        for p, rows in zip(shared, zip(*at_shared, strict=True), strict=True):
            p.grad = _combined(weights, rows)

    def _backward_once(self, losses: Tensor, shared: list[nn.Parameter]) -> None:
        losses.sum().backward()  # through the towers only: each loss reaches its own tower and its own copy
        (bottom,) = self._shared
        slopes = [_or_zeros(self._own[task.name].grad, bottom) for task in self.tasks]
        if self.at == "representation":
            flow = _combined(self._weights([[slope] for slope in slopes], losses), slopes)
            if bottom.requires_grad:
                bottom.backward(flow)
            return
        rows = []
        for slope in slopes:
            found = torch.autograd.grad(bottom, shared, slope, retain_graph=True, allow_unused=True)
            rows.append([_or_zeros(grad, p) for p, grad in zip(shared, found, strict=True)])
        weights = self._weights(rows, losses)
        for p, grads in zip(shared, zip(*rows, strict=True), strict=True):
            p.grad = _combined(weights, grads)

    def _that_need(self, flows: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """The parts of the representation that depend on a parameter, and the flows into them."""
        pairs = [(part, flow) for part, flow in zip(self._shared, flows, strict=True) if part.requires_grad]
        return [part for part, _ in pairs], [flow for _, flow in pairs]

    def _weights(self, rows: Sequence[Sequence[Tensor]], like: Tensor) -> Tensor:
        """The method's weights for the gradients of the tasks, each given in parts."""
        gram = sum(
            _gramian(torch.stack([part.flatten() for part in parts])) for parts in zip(*rows, strict=True)
        )
        self.effective = torch.tensor(self.weigh(gram), dtype=like.dtype, device=like.device)
        return self.effective


def _combined(weights: Tensor, rows: Sequence[Tensor]) -> Tensor:
    stack = torch.stack(list(rows))  # in bfloat16 where the forward pass was
    return torch.tensordot(weights, stack.to(weights.dtype), 1).to(stack.dtype)


def _or_zeros(grad: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if grad is None else grad


def _add_grad(p: Tensor, grad: Tensor | None) -> None:
    if grad is not None:
        p.grad = grad if p.grad is None else p.grad + grad
