"""Exercises of notebook 03: a gradient by hand, log-sum-exp, the weight that balances two gradients."""

import torch
import torch.nn.functional as F

from mtl_helpers.exercises import Case, exercise


def cross_entropy_gradient(logits, labels, mask, temperature):
    p = (logits / temperature).softmax(dim=1)
    y = F.one_hot(labels, logits.shape[1])
    # p − y is the gradient with respect to logits/τ; the chain rule divides by τ, the mean by
    # the known rows.
    return (p - y) * mask[:, None] / (temperature * mask.sum())


def rows_of_logits(rng):
    yield torch.zeros(1, 2), torch.tensor([0]), torch.tensor([True]), 2.0
    for m, c, temperature in ((3, 2, 1.0), (6, 4, 0.5), (20, 5, 3.0)):
        mask = torch.tensor(rng.random(m) < 0.6)
        mask[:2] = torch.tensor([True, False])
        logits, labels = torch.tensor(rng.normal(0, 2, (m, c))).float(), torch.tensor(rng.integers(0, c, m))
        yield logits, labels, mask, temperature
    z = torch.tensor([[1000.0, 0.0, 999.0], [-1000.0, -1001.0, -1002.0], [400.0, 401.0, 300.0]])
    yield Case((z, torch.tensor([0, 1, 2]), torch.tensor([True, True, True]), 1.5), "large logits")


def _without_shift(z, y, m, t):
    e = (z / t).exp()
    return (e / e.sum(1, keepdim=True) - F.one_hot(y, z.shape[1])) * m[:, None] / (t * m.sum())


def _slope(z, y, mask, t):
    return (z / t).softmax(1) - F.one_hot(y, z.shape[1])


def log_sum_exp(z):
    # The largest logit of each row, taken from all, makes the largest exponent 0: nothing can
    # overflow, and the sum is at least 1, so that its logarithm is finite. Outside of the
    # logarithm it is added again.
    a = z.max(dim=1, keepdim=True).values
    return a[:, 0] + (z - a).exp().sum(dim=1).log()


def hard_rows(rng):
    yield (torch.tensor(rng.normal(0, 2, (3, 2))).float(),)
    yield (torch.tensor(rng.normal(0, 3, (20, 6))),)
    high, low = torch.tensor([[1000.0, 0.0, 999.0]]), torch.tensor([[-1000.0, -1000.0, -1001.0]])
    yield Case((high,), "large logits")
    yield Case((low,), "very negative logits")
    yield Case((torch.cat([high, low]),), "one row high, one low")
    yield Case((torch.tensor([[-torch.inf, 2.0, 1.0]]),), "one class is ruled out")


def balancing_weight(g1, g2):
    # (1 − w) a = w b, solved for w: the longer gradient gets the smaller weight.
    a, b = g1.norm().item(), g2.norm().item()
    return a / (a + b)


def two_gradients(rng):
    for size, scale in ((2, 1.0), (7, 30.0), (7, 0.01), (50, 3.0)):
        yield scale * torch.tensor(rng.normal(size=size)).float(), torch.tensor(rng.normal(size=size)).float()
    g = torch.tensor(rng.normal(size=5)).float()
    yield Case((g, -g), "opposite gradients of the same length")


EXERCISES = (
    exercise(
        cross_entropy_gradient,
        rows_of_logits,
        lambda z, y, m, t: _slope(z, y, m, t) * m[:, None] / m.sum(),
        "The temperature is inside the softmax, but the chain rule divides by it once more.",
        lambda z, y, m, t: _slope(z, y, m, t) * m[:, None] / (t * len(z)),
        "You divide by all rows. The loss is the mean over the rows with a known label.",
        lambda z, y, m, t: _slope(z, y, m, t) / (t * m.sum()),
        "Rows without a label must get gradient 0: multiply by the mask.",
        lambda z, y, m, t: -cross_entropy_gradient(z, y, m, t),
        "The sign: the gradient is p − y. It points uphill, and descent subtracts it.",
        _without_shift,
        "Your softmax overflows: e^1000 is infinite. Take each row's largest logit away, or `.softmax(1)`.",
        lambda z, y, m, t: _slope(z, y, m, t) * m[:, None] / t,
        "That is the gradient of a sum. The mean divides by the number of known rows.",
        lambda z, y, m, t: (z.softmax(1) - F.one_hot(y, z.shape[1])) * m[:, None] / m.sum(),
        "You left the temperature out: the softmax is one of z / τ, and the chain rule divides by τ.",
        lambda z, y, m, t: _slope(z, y, m, t) * m[:, None] * t / m.sum(),
        "You multiply by τ. The chain rule of z / τ divides by it.",
        lambda z, y, m, t: ((z / t).softmax(0) - F.one_hot(y, z.shape[1])) * m[:, None] / (t * m.sum()),
        "Your softmax runs over the rows. The classes of one row compete: dim=1.",
        hints=(
            "Start from p − y with p = softmax(z / τ).",
            "Two numbers divide it: one comes from the chain rule, one from the mean. The mask multiplies.",
            "`(p - F.one_hot(labels, C)) * mask[:, None] / (temperature * mask.sum())`.",
        ),
    ),
    exercise(
        log_sum_exp,
        hard_rows,
        lambda z: z.exp().sum(1).log(),
        "e^1000 is infinite, and e^(−1000) is 0 with an infinite logarithm. Make the largest exponent 0 first.",
        lambda z: (z - z.max(1, keepdim=True).values).exp().sum(1).log(),
        "You took the largest logit away and did not add it again outside of the logarithm.",
        lambda z: z.max() + (z - z.max()).exp().sum(1).log(),
        "You take one maximum for the whole table, and rows far below it vanish. Each row needs its own.",
        lambda z: z.max(1).values,
        "That is the largest logit alone. It comes close only if one logit is far above the others.",
        lambda z: z.clamp(-80, 80).exp().sum(1).log(),
        "A clamp changes logits above it. Take the row's largest away instead: that changes nothing.",
        lambda z: z.max(1).values + (z - z.max(1, keepdim=True).values).exp().sum(1),
        "The logarithm of the sum is missing.",
        lambda z: z.max(1).values + (z - z.max(1, keepdim=True).values).exp().mean(1).log(),
        "You take the mean of the exponentials. Log-sum-exp takes their sum.",
        hints=(
            "Which number, taken from all logits of a row, makes the largest exponent 0?",
            "log Σ e^(z) = a + log Σ e^(z − a) for every a. Which a is safe?",
            "`a = z.max(dim=1, keepdim=True).values`, then `a[:, 0] + (z - a).exp().sum(dim=1).log()`.",
        ),
    ),
    exercise(
        balancing_weight,
        two_gradients,
        lambda g1, g2: g2.norm().item() / (g1.norm() + g2.norm()).item(),
        "That is the weight of the first task. w belongs to the second: the quiet one gets more.",
        lambda g1, g2: (g1 @ g1 / (g1 @ g1 + g2 @ g2)).item(),
        "You compare squared lengths. Take the square root, as `.norm()` does.",
        lambda g1, g2: (g1.norm() / g2.norm()).item(),
        "That is the ratio w / (1 − w). Solve (1 − w) a = w b for w.",
        lambda g1, g2: (g1.abs().sum() / (g1.abs().sum() + g2.abs().sum())).item(),
        "You measure length by the sum of absolute values. ‖g‖ is the root of the sum of squares.",
        lambda g1, g2: 1 / (g1.norm() + g2.norm()).item(),
        "The sum of the lengths belongs below the line; above it stands the length of g1.",
        hints=(
            "Only the two lengths matter. Call them a and b.",
            "Solve (1 − w) a = w b for w.",
            "w = a / (a + b), with a = `g1.norm().item()`.",
        ),
    ),
)
