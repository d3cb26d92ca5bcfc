"""Gradient methods: the same properties for every one, then each against torchjd or its defining equation."""

from __future__ import annotations

import itertools
from decimal import Decimal, localcontext
from fractions import Fraction
from importlib import import_module

import numpy as np
import pytest
import torch
from helpers import MIXED_TASKS

from mtl_helpers.gradients import (
    METHODS,
    CombinedGradients,
    cagrad,
    combine,
    imtl_g,
    mgda,
    nash_mtl,
    pcgrad,
    upgrad,
)

each = pytest.mark.parametrize("name", METHODS)


def jacobian(n: int = 3, seed: int = 0, p: int = 20) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, p, generator=generator, dtype=torch.float64) + 0.3


def gram(j: torch.Tensor) -> np.ndarray:
    return (j @ j.T).numpy()


class TestEveryMethod:
    @each
    def test_order_of_tasks_does_not_matter(self, name):
        j = jacobian(2)
        swap = [1, 0]
        assert np.allclose(METHODS[name](gram(j))[swap], METHODS[name](gram(j[swap])), atol=1e-6)
        if name != "PCGrad":  # whose orders are random for more than two tasks
            j, swap = jacobian(4, seed=3), [2, 0, 3, 1]
            assert np.allclose(METHODS[name](gram(j))[swap], METHODS[name](gram(j[swap])), atol=1e-5)

    @each
    def test_a_common_scale_changes_only_the_length(self, name):
        j = jacobian()
        a, b = combine(name, j), combine(name, 1000 * j)
        assert torch.cosine_similarity(a, b, dim=0).item() == pytest.approx(1, abs=1e-6)
        power = b.norm() / a.norm()
        assert power.item() == pytest.approx(1 if name == "Nash-MTL" else 1000, rel=1e-3)

    @each
    def test_stays_finite_on_zero_opposite_and_extreme_gradients(self, name):
        for rows in (
            [[0.0, 0, 0], [0, 0, 0]],
            [[1.0, 2, 3], [0, 0, 0]],
            [[1.0, 2, 3], [-1, -2, -3]],
            [[1e-8, 0, 0], [0, 1e8, 0]],
            [[1e8, 1e8, 0], [1e8, 1e8, 1]],
            [[1.0, 0, 0], [-1, 1e-9, 0], [0, 0, 1]],
        ):
            assert torch.isfinite(combine(name, torch.tensor(rows, dtype=torch.float64))).all(), rows


class TestAgainstTorchjd:
    @pytest.fixture(autouse=True)
    def oracle(self):
        self.jd = pytest.importorskip("torchjd.aggregation")

    def compare(self, ours, theirs, tasks=(2, 3, 5), atol=1e-5):
        for n, seed in itertools.product(tasks, range(5)):
            j = jacobian(n, seed) - (0.3 if seed % 2 else 0)
            expected = theirs(j)
            close = torch.allclose(combine(ours, j), expected, atol=atol * float(expected.norm() + 1))
            assert close, (n, seed)

    def test_mgda(self):
        theirs = self.jd.MGDA(epsilon=1e-9, max_iters=5000)
        self.compare(mgda, theirs, tasks=(2, 3))
        for seed in range(
            5
        ):  # with five tasks Frank-Wolfe has not converged after 5000 steps: ours must be shorter
            j = jacobian(5, seed)
            d = combine(mgda, j)
            assert d.norm() <= theirs(j).norm() + 1e-12
            assert (j @ d >= d @ d - 1e-9).all()  # what makes it the shortest vector of the hull

    def test_cagrad(self):
        # torchjd's solver stops at about 1e-4 in the weights; ours must be that close and reach no worse a minimum
        self.compare(cagrad, self.jd.CAGrad(c=0.4), atol=1e-4)
        for n, seed in itertools.product((2, 3, 5), range(5)):
            g = gram(jacobian(n, seed) - (0.3 if seed % 2 else 0))
            theirs = self.jd.CAGradWeighting(c=0.4)(torch.tensor(g)).numpy()
            assert self.cagrad_objective(g, cagrad(g)) <= self.cagrad_objective(g, theirs) + 1e-9

    @staticmethod
    def cagrad_objective(g, weights):
        n = len(g)
        g, mean = g / np.trace(g), np.full(n, 1 / n)
        w = (weights - mean) / (weights - mean).sum()
        return w @ g @ mean + 0.4 * np.sqrt(mean @ g @ mean) * np.sqrt(w @ g @ w)

    def test_nash_mtl(self):
        self.compare(nash_mtl, self.jd.FairGrad(alpha=1.0))
        for n, seed in itertools.product((2, 3), range(3)):
            j = jacobian(n, seed)
            theirs = self.jd.NashMTL(n_tasks=n, max_norm=0.0, optim_niter=200)(j)
            assert torch.cosine_similarity(combine(nash_mtl, j), theirs, dim=0).item() > 1 - 1e-3

    def test_imtl_g_aligned_mtl_and_upgrad(self):
        projector = import_module("torchjd.linalg").QuadprogProjector(reg_eps=1e-12)
        self.compare(imtl_g, self.jd.IMTLG())
        self.compare(METHODS["Aligned-MTL"], self.jd.AlignedMTL())
        self.compare(upgrad, self.jd.UPGrad(projector=projector))

    def test_pcgrad_is_one_of_torchjds_orders(self):
        j = jacobian(3, seed=1) - 0.3
        torch.manual_seed(0)
        theirs = [self.jd.PCGrad()(j) for _ in range(200)]
        rng = np.random.default_rng(0)
        ours = [combine(lambda g: pcgrad(g, rng), j) for _ in range(200)]
        for d in ours:
            assert min((d - other).norm().item() for other in theirs) < 1e-6
        assert len({tuple(d.round(decimals=6).tolist()) for d in ours}) > 1


class TestDefiningEquations:
    def test_pcgrad_of_two_tasks_by_hand(self):
        j = torch.tensor([[1.0, 0.0], [-1.0, 1.0]], dtype=torch.float64)
        first = j[0] - (j[0] @ j[1]) / (j[1] @ j[1]) * j[1]
        second = j[1] - (j[1] @ j[0]) / (j[0] @ j[0]) * j[0]
        assert torch.allclose(combine(pcgrad, j), first + second)
        agree = torch.tensor([[1.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
        assert torch.allclose(combine(pcgrad, agree), agree.sum(0))

    def test_mgda_is_shorter_than_any_other_of_the_hull(self):
        j = jacobian(3, seed=4, p=4) - 0.2
        others = torch.tensor(np.random.default_rng(0).dirichlet(np.ones(3), 20_000))
        assert combine(mgda, j).norm() <= (others @ j).norm(dim=1).min() + 1e-9
        assert mgda(gram(j)).min() >= 0 and mgda(gram(j)).sum() == pytest.approx(1)

    @pytest.mark.parametrize("seed", range(5))
    def test_nash_solves_the_bargain(self, seed):
        g = gram(jacobian(4, seed) - 0.3)
        w = nash_mtl(g)
        assert w.min() > 0
        assert np.allclose(g @ w, 1 / w, rtol=1e-5)

    def test_cagrad_without_c_is_the_mean_and_stays_in_its_ball(self):
        j = jacobian(3) - 0.3
        mean = j.mean(0)
        assert torch.allclose(combine(lambda g: cagrad(g, 0.0), j), mean, atol=1e-7)
        assert (combine(cagrad, j) - mean).norm().item() == pytest.approx(0.4 * mean.norm().item(), rel=1e-4)

    def test_cagrad_helps_the_worst_off_task_most(self):
        j = jacobian(3, seed=2) - 0.3
        mean, d = j.mean(0), combine(cagrad, j)
        worst = (j @ d).min()
        rng = torch.Generator().manual_seed(0)
        for _ in range(500):
            other = torch.randn(j.shape[1], generator=rng, dtype=torch.float64)
            other = mean + 0.4 * mean.norm() * other / other.norm()
            assert (j @ other).min() <= worst + 1e-6


def inner_products(j: list[list[Fraction]]) -> list[list[Fraction]]:
    return [[sum(a * b for a, b in zip(p, q, strict=True)) for q in j] for p in j]


def exact_upgrad(j: list[list[Fraction]]) -> list[Fraction]:
    """Each gradient's projection on the dual cone, by trying every set of active constraints; in rational numbers."""
    n, weights, inner = len(j), [Fraction(0)] * len(j), inner_products(j)
    for i in range(n):
        sets = (active for size in range(n + 1) for active in itertools.combinations(range(n), size))
        found = next(filter(None, (projected(inner, i, active) for active in sets)))
        weights = [w + u for w, u in zip(weights, found, strict=True)]
    return [sum(w * row[c] for w, row in zip(weights, j, strict=True)) / n for c in range(len(j[0]))]


def projected(inner, i, active):
    """Weights eᵢ + u with multipliers u ≥ 0 of the active constraints that harm no task; None if there are none."""
    u = solved([[inner[a][b] for b in active] for a in active], [-inner[a][i] for a in active])
    if u is None or min(u, default=0) < 0:
        return None
    weights = [Fraction(k == i) for k in range(len(inner))]
    for k, value in zip(active, u, strict=True):
        weights[k] += value
    harmless = all(sum(w * x for w, x in zip(weights, row, strict=True)) >= 0 for row in inner)
    return weights if harmless else None


def solved(a, b):
    """The solution of a x = b by Gauss and Jordan; None when a is singular."""
    rows = [[*row, value] for row, value in zip(a, b, strict=True)]
    for k in range(len(rows)):
        pivot = next((r for r in range(k, len(rows)) if rows[r][k]), None)
        if pivot is None:
            return None
        rows[k], rows[pivot] = rows[pivot], rows[k]
        rows[k] = [x / rows[k][k] for x in rows[k]]
        for r in {*range(len(rows))} - {k}:
            rows[r] = [x - rows[r][k] * y for x, y in zip(rows[r], rows[k], strict=True)]
    return [row[-1] for row in rows]


def exact_imtl_g(j: list[list[Fraction]]) -> list[Fraction]:
    """Equal projections on the unit gradients, weights that sum to one, among the gradients that are not zero."""
    j = [row for row in j if any(row)]
    inner = inner_products(j)
    lengths = [root(inner[i][i]) for i in range(len(j))]
    w = solved(inner, lengths)
    return [sum(x * row[c] for x, row in zip(w, j, strict=True)) / sum(w) for c in range(len(j[0]))]


def root(square: Fraction) -> Fraction:
    with localcontext() as context:
        context.prec = 60
        return Fraction((Decimal(square.numerator) / Decimal(square.denominator)).sqrt())


@pytest.mark.parametrize(("method", "exact"), [(upgrad, exact_upgrad), (imtl_g, exact_imtl_g)])
@pytest.mark.parametrize("kind", ["norms from 1e-6 to 1e6", "a zero row", "conflict"])
def test_exact_on_unequal_lengths_and_zero_rows(method, exact, kind):
    rng = np.random.default_rng(0)
    for _ in range(40):
        j = rng.normal(size=(rng.integers(2, 5), 6))
        if kind == "conflict":
            j -= 1.5 * j.mean(0)
        if kind == "norms from 1e-6 to 1e6":
            j *= 10 ** rng.uniform(-6, 6, (len(j), 1))
        if kind == "a zero row":
            j[rng.integers(len(j))] = 0
        expected = exact([[Fraction(x) for x in row] for row in j.tolist()])
        got = combine(method, torch.tensor(j)).numpy()
        length = np.linalg.norm(np.array(expected, dtype=float))
        error = np.array([float(Fraction(a) - b) for a, b in zip(got.tolist(), expected, strict=True)])
        assert np.linalg.norm(error) <= 1e-12 * length


def test_names_that_do_not_exist():
    with pytest.raises(ValueError, match="'Adam'"):
        CombinedGradients(MIXED_TASKS, "Adam")
    with pytest.raises(ValueError, match="'heads'"):
        CombinedGradients(MIXED_TASKS, "MGDA", at="heads")
