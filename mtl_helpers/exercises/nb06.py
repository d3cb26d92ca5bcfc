"""Exercises of notebook 06: a gate's mixture, the logit of a product, a load term."""

import torch
from torch.nn.functional import logsigmoid

from mtl_helpers.exercises import Case, exercise


def gated_mixture(gate_logits, experts):
    # Softmax over the experts, the last axis, so that each row's shares sum to one.
    shares = gate_logits.softmax(-1)
    # Experts come first in `experts`, rows first in `shares`: turn the shares, then weigh and add up the experts.
    return (shares.T.unsqueeze(-1) * experts).sum(0)


def mixtures(rng):
    for n, e, d in ((2, 2, 1), (5, 3, 4), (7, 4, 2), (4, 4, 4)):
        yield torch.randn(n, e) * float(rng.uniform(0.5, 2)), torch.randn(e, n, d)
    yield Case((torch.randn(3, 1), torch.randn(1, 3, 2)), "there is one expert only")
    yield Case((torch.tensor([[200.0, 198.0], [-300.0, -301.0]]), torch.randn(2, 2, 3)), "large logits")


def _without_shift(gate_logits, experts):
    e = gate_logits.exp()
    return ((e / e.sum(-1, keepdim=True)).T.unsqueeze(-1) * experts).sum(0)


def logit_of_product(a, b):
    # 1 / (p q) = (1 + e^-a)(1 + e^-b), so the odds against are e^-a + e^-b + e^-(a+b).
    return -torch.logsumexp(torch.stack([-a, -b, -(a + b)]), dim=0)


def two_logits(rng):
    for n, scale in ((3, 1.0), (8, 3.0)):
        yield torch.randn(n) * scale, torch.randn(n) * scale
    yield Case((torch.tensor([40.0, 60.0, 45.0]), torch.tensor([50.0, 80.0, 43.0])), "both nearly certain")
    yield Case((torch.tensor([-120.0, -3.0]), torch.tensor([2.0, -150.0])), "one is nearly impossible")


def load_term(gates):
    # How much each expert is used over all rows …
    use = gates.mean(0)
    # … and how unequal that is: the squared coefficient of variation.
    return use.var(unbiased=False) / use.mean() ** 2


def gate_tables(rng):
    for n, e, sharp in ((3, 2, 1.0), (40, 4, 2.0), (25, 8, 4.0)):
        yield ((torch.randn(n, e) * sharp + torch.randn(e)).softmax(-1),)
    yield Case((torch.eye(4),), "each row uses one expert, and all are used alike")
    yield Case((torch.full((6, 3), 1 / 3),), "every gate is undecided")


EXERCISES = (
    exercise(
        gated_mixture,
        mixtures,
        lambda gate_logits, experts: experts.mean(0),
        "That is the plain mean of the experts. Each row has shares of its own.",
        lambda gate_logits, experts: (gate_logits.softmax(0).T.unsqueeze(-1) * experts).sum(0),
        "Your shares sum to one over the rows. They must sum to one over the experts: the last axis.",
        _without_shift,
        "Your softmax overflows for large logits. Take each row's largest logit away first, or `.softmax(-1)`.",
        lambda gate_logits, experts: (gate_logits.T.unsqueeze(-1) * experts).sum(0),
        "You weigh with the logits. Shares are their softmax.",
        lambda gate_logits, experts: (gate_logits.softmax(-1).T.unsqueeze(-1) * experts).mean(0),
        "The shares sum to one already: add the weighted experts up, do not average them.",
        hints=(
            "First the shares: which axis of `gate_logits` counts the experts?",
            "Bring the shares to shape (experts, rows, 1); then they multiply `experts` of shape (experts, rows, d).",
            "`(gate_logits.softmax(-1).T.unsqueeze(-1) * experts).sum(0)`.",
        ),
        atol=1e-5,
    ),
    exercise(
        logit_of_product,
        two_logits,
        lambda a, b: a + b,
        "Adding logits multiplies odds, not probabilities.",
        lambda a, b: a * b,
        "You multiply the logits. Multiply the probabilities, then go back to a logit.",
        lambda a, b: a.sigmoid() * b.sigmoid(),
        "That is the probability itself; its logit is asked for.",
        lambda a, b: logsigmoid(a) + logsigmoid(b),
        "That is log p. A logit is log p − log(1 − p).",
        lambda a, b: torch.log(a.sigmoid() * b.sigmoid()),
        "That is log p, and a sigmoid that rounds to 0 makes it infinite. A logit is log p − log(1 − p).",
        lambda a, b: torch.log(a.sigmoid() * b.sigmoid()) - torch.log1p(-a.sigmoid() * b.sigmoid()),
        "Infinite at the ends, where a sigmoid rounds to 0 or 1. Stay with a and b, and use logsumexp.",
        hints=(
            "Write 1 / (p q) with e^-a and e^-b, and subtract one: those are the odds against.",
            "The odds against are e^-a + e^-b + e^-(a+b). The logit is minus their logarithm.",
            "`-torch.logsumexp(torch.stack([-a, -b, -(a + b)]), dim=0)`.",
        ),
        atol=1e-5,
    ),
    exercise(
        load_term,
        gate_tables,
        lambda gates: (gates.var(-1, unbiased=False) / gates.mean(-1) ** 2).mean(),
        "You punish every row that prefers an expert. Average over rows first: only total use must be even.",
        lambda gates: gates.mean(0).var() / gates.mean() ** 2,
        "Divide by the number of experts, not by one less: `unbiased=False`.",
        lambda gates: gates.mean(0).std(unbiased=False) / gates.mean(),
        "The coefficient of variation is asked for squared.",
        lambda gates: gates.mean(0).var(unbiased=False),
        "Divide by the squared mean use, so that the term means the same for any number of experts.",
        hints=(
            "What is each expert's use, over all rows?",
            "Take the mean over the rows, then that vector's variance over its squared mean.",
            "`use = gates.mean(0)`, then `use.var(unbiased=False) / use.mean() ** 2`.",
        ),
    ),
)
