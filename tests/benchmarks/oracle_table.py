"""Each weighting and gradient method against an independent implementation: the largest difference found.

    python tests/benchmarks/oracle_table.py

Loss weightings are fed the same series of losses; gradient methods the same 60 random Jacobians (2, 3 and 5 tasks) at
float64, where the difference is that of the combined vectors, relative to the oracle's length.
"""

from __future__ import annotations

import itertools
import sys
import warnings
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from mtl_helpers import weighting as ours
from mtl_helpers.data import Task
from mtl_helpers.gradients import METHODS, combine, mgda, nash_mtl, pcgrad

LOSSES = torch.tensor(
    [[1.0, 0.5, 2.0], [0.8, 0.45, 1.0], [0.7, 0.44, 0.6], [0.65, 0.4, 0.61]], dtype=torch.float64
)
TASKS = [Task(name, "regression") for name in "abc"]


def learned(own: torch.nn.Module, oracle: torch.nn.Module) -> float:
    """Totals along a descent of the learned weights."""
    own, oracle = own.double(), oracle.double()
    optimizers = [torch.optim.SGD(module.parameters(), lr=0.3) for module in (own, oracle)]
    worst = 0.0
    for losses in LOSSES.repeat(5, 1):
        totals = [module(losses) for module in (own, oracle)]
        worst = max(worst, abs((totals[0] - totals[1]).item()))
        for total, optimizer in zip(totals, optimizers, strict=True):
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
    return worst


def stateless(own: torch.nn.Module, oracle: torch.nn.Module) -> float:
    own = own.double()
    return max(abs((own(losses) - oracle(losses)).item()) for losses in LOSSES)


def dwa(oracle) -> float:
    own, worst = ours.DWA(TASKS).double(), 0.0
    for losses in LOSSES.repeat(3, 1):
        worst = max(worst, abs((own(losses) - oracle(losses)).item()))
        own.after_epoch(losses, None)
        oracle.step()
    return worst


def famo(oracle) -> float:
    own, worst = ours.FAMO(TASKS).double(), 0.0
    oracle = oracle.double()
    for before, after in itertools.pairwise(LOSSES.repeat(5, 1)):
        worst = max(worst, abs((own(before) - oracle(before)).item()))
        own.after_step(lambda after=after: after)
        oracle.update(after)
    return worst


def jacobians():
    for n, seed in itertools.product((2, 3, 5), range(20)):
        generator = torch.Generator().manual_seed(seed)
        yield torch.randn(n, 20, generator=generator, dtype=torch.float64) + 0.3 * (seed % 2)


def combined(method, oracle, most_tasks: int = 5) -> float:
    worst = 0.0
    for j in jacobians():
        if len(j) <= most_tasks:
            expected = oracle(j)
            worst = max(worst, ((combine(method, j) - expected).norm() / expected.norm()).item())
    return worst


def nearest_order(oracle) -> float:
    """PCGrad draws orders: the distance to the nearest of 60 draws of the oracle."""
    worst, rng = 0.0, np.random.default_rng(0)
    for j in itertools.islice((j for j in jacobians() if len(j) <= 3), 20):
        theirs = torch.stack([oracle(j) for _ in range(60)])
        d = combine(lambda gram: pcgrad(gram, rng), j)
        worst = max(worst, ((theirs - d).norm(dim=1).min() / d.norm()).item())
    return worst


def residual(method, check) -> float:
    return max(check(j, (j @ j.T).numpy(), method((j @ j.T).numpy())) for j in jacobians())


def hull_gap(j, gram, w) -> float:
    """How far w is from the condition of the shortest vector: gᵢ·d ≥ ‖d‖² for all i, relative to ‖d‖²."""
    d = w @ gram
    return float(max((w @ gram @ w - d).max() / max(w @ gram @ w, 1e-12), 0))


def main() -> None:
    from torchjd import aggregation as a
    from torchjd import scalarization as s
    from torchjd.linalg import QuadprogProjector

    warnings.filterwarnings("ignore")
    torch.manual_seed(0)
    jd = "torchjd 0.18 "
    rows = [
        ("UW (regression form)", jd + "UW", learned(ours.UncertaintyWeighting(TASKS), s.UW(3))),
        ("IMTL-L", jd + "IMTLL", learned(ours.IMTLL(TASKS), s.IMTLL(3))),
        ("DWA", jd + "DWA", dwa(s.DWA(temperature=2.0))),
        ("GLS", jd + "GeometricMean", stateless(ours.GLS(TASKS), s.GeometricMean())),
        ("STCH", jd + "STCH", stateless(ours.STCH(TASKS, 0.05), s.STCH(0.05))),
        ("FAMO", jd + "FAMO", famo(s.FAMO(3))),
        ("PCGrad", jd + "PCGrad, nearest order", nearest_order(a.PCGrad())),
        ("MGDA, 2–3 tasks", jd + "MGDA(1e-9, 5000)", combined(mgda, a.MGDA(epsilon=1e-9, max_iters=5000), 3)),
        ("MGDA, 2–5 tasks", "optimality condition", residual(mgda, hull_gap)),
        ("CAGrad", jd + "CAGrad (its solver stops at about 1e-4)", combined("CAGrad", a.CAGrad(c=0.4))),
        ("Nash-MTL", jd + "FairGrad(alpha=1)", combined(nash_mtl, a.FairGrad(alpha=1.0))),
        ("Nash-MTL", "G w = 1/w", residual(nash_mtl, lambda j, g, w: float(np.abs(g @ w * w - 1).max()))),
        ("IMTL-G", jd + "IMTLG", combined("IMTL-G", a.IMTLG())),
        ("Aligned-MTL", jd + "AlignedMTL", combined("Aligned-MTL", a.AlignedMTL())),
        (
            "UPGrad",
            jd + "UPGrad(reg_eps=1e-12)",
            combined("UPGrad", a.UPGrad(projector=QuadprogProjector(reg_eps=1e-12))),
        ),
    ]
    assert set(METHODS) <= {name.split(",")[0] for name, *_ in rows}
    print("| method | against | largest difference |\n|---|---|---|")
    for name, against, worst in rows:
        print(f"| {name} | {against} | {worst:.1e} |")
    print(
        "\nGradNorm, RLW and data-based weights have no oracle: tests/test_weighting.py checks their equations."
    )


if __name__ == "__main__":
    main()
