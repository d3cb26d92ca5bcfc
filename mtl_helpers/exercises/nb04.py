"""Exercises of notebook 04: uncertainty weighting, DWA, PCGrad for two tasks, dominated points."""

import numpy as np
import torch

from mtl_helpers.exercises import Case, exercise


def uncertainty_total(losses, log_variance):
    # The first term lowers the weight of a task that is thought noisy, the second makes noise
    # cost something. With s = log σ², e^(−s) is 1/σ² and s/2 is log σ.
    return (torch.exp(-log_variance) * losses + log_variance / 2).sum()


def losses_and_variances(rng):
    yield torch.tensor([1.0, 2.0]), torch.zeros(2)
    for k in (2, 3, 6):
        yield torch.tensor(rng.random(k)).float(), torch.tensor(rng.normal(size=k)).float()
    yield Case((torch.tensor([0.02]), torch.tensor([-4.0])), "one task, far surer than its loss")


def dwa_weights(last, before, temperature=2.0):
    # A task whose loss fell little has a ratio near 1 and gets more weight.
    grown = np.exp(last / before / temperature)
    return len(last) * grown / grown.sum()


def two_epochs(rng):
    yield np.array([0.2, 1.0, 0.5]), np.array([0.4, 1.0, 0.6]), 2.0
    for k, temperature in ((2, 2.0), (3, 0.5), (5, 1.0)):
        yield rng.uniform(0.1, 1, k), rng.uniform(0.5, 3, k), temperature
    equal = rng.uniform(0.1, 1, 4)
    yield Case((0.9 * equal, equal, 2.0), "all losses fell by the same share")
    yield Case((rng.uniform(0.1, 1, 3), rng.uniform(0.5, 3, 3), 1e6), "a huge temperature levels weights")


def _dwa(ratio, total=None):
    def answer(last, before, temperature=2.0):
        grown = np.exp(ratio(last, before, temperature))
        return (len(last) if total is None else total) * grown / grown.sum()

    return answer


def pcgrad_of_two(g1, g2):
    # A negative inner product is a conflict; without one nothing is taken away.
    dot = min(g1 @ g2, 0)
    # Each loses its part along the *original* other gradient.
    return (g1 - dot / (g2 @ g2) * g2) + (g2 - dot / (g1 @ g1) * g1)


def gradient_pairs(rng):
    yield Case((np.array([1.0, 0.2]), np.array([-0.8, 0.9])), "a conflict")
    yield Case((np.array([1.0, 0.2]), np.array([0.8, 0.9])), "no conflict")
    for size in (2, 5, 30):
        a, b = rng.normal(size=size), rng.normal(size=size)
        b = b - (a @ b) / (a @ a) * a  # at a right angle, then bent to either side
        yield Case((a, 3 * (b - 0.5 * a)), "a conflict")
        yield Case((a, 3 * (b + 0.5 * a)), "no conflict")


def _one_after_the_other(g1, g2):
    first = g1 - min(g1 @ g2, 0) / (g2 @ g2) * g2
    return first + g2 - min(first @ g2, 0) / (first @ first) * first


def _lengths_not_squared(g1, g2):
    dot = min(g1 @ g2, 0)
    return g1 - dot / np.linalg.norm(g2) * g2 + g2 - dot / np.linalg.norm(g1) * g1


def dominated(points):
    # points[None] runs over the others, points[:, None] over the points that are judged: (n,
    # n, 2) comparisons.
    as_good = (points[None] <= points[:, None]).all(-1)
    better = (points[None] < points[:, None]).any(-1)
    return (as_good & better).any(1)


def clouds(rng):
    yield Case((np.array([[1.0, 1.0], [2.0, 1.0]]),), "equal on one task")
    yield Case((np.array([[1.0, 2.0], [1.0, 2.0], [3.0, 0.0]]),), "equal points do not dominate each other")
    for n in (8, 40):
        yield (rng.normal(size=(n, 2)),)
    yield Case((rng.integers(0, 4, (15, 2)).astype(float),), "many ties")


EXERCISES = (
    exercise(
        uncertainty_total,
        losses_and_variances,
        lambda losses, s: (torch.exp(-s) * losses).sum(),
        "Without the second term, log σ = s/2, a growing variance makes every loss vanish.",
        lambda losses, s: (torch.exp(-s) * losses / 2 + s / 2).sum(),
        "The half before the loss belongs to squared errors (regression). Cross-entropy has none.",
        lambda losses, s: (torch.exp(s) * losses + s / 2).sum(),
        "You multiply by the variance. A noisy task must weigh less: divide, e^(−s).",
        lambda losses, s: (torch.exp(-s) * losses + s / 2).mean(),
        "You take the mean over the tasks. Asked for is the sum.",
        lambda losses, s: (torch.exp(-s) * losses + s).sum(),
        "The second term is log σ. With s = log σ² that is s/2.",
        lambda losses, s: (torch.exp(-s.detach()) * losses + s.detach() / 2).sum(),
        "The log-variances are detached, so they would never be learned.",
        hints=(
            "Each task has two terms. The second one stops the variance from growing.",
            "With s = log σ²: the loss divided by the variance, plus log σ.",
            "The sum over tasks of `torch.exp(-log_variance) * losses + log_variance / 2`.",
        ),
        gradients=("losses", "log_variance"),
    ),
    exercise(
        dwa_weights,
        two_epochs,
        _dwa(lambda last, before, t: before / last / t),
        "The ratio is upside down: the task whose loss fell *less* gets more weight, so last over before.",
        _dwa(lambda last, before, t: last / before),
        "The temperature is missing: it divides the ratio before the exponential.",
        _dwa(lambda last, before, t: last / before / t, total=1),
        "Your weights sum to 1. DWA scales them to sum to the number of tasks, as equal weights of 1 do.",
        _dwa(lambda last, before, t: last / t),
        "You take the losses themselves, which depend on their units. Take how they changed: last over before.",
        hints=(
            "How much of its loss did each task keep? That ratio has no unit.",
            "A softmax of the ratios with a temperature, then scaled so that the weights sum to K.",
            "`grown = np.exp(last / before / temperature)`, then `len(last) * grown / grown.sum()`.",
        ),
    ),
    exercise(
        pcgrad_of_two,
        gradient_pairs,
        lambda g1, g2: g1 + g2,
        "That is the plain sum. When the inner product is negative, each must lose its part along the other.",
        lambda g1, g2: g1 - g1 @ g2 / (g2 @ g2) * g2 + g2 - g1 @ g2 / (g1 @ g1) * g1,
        "You project even where the gradients agree, and throw progress away. Only if the inner product is "
        "negative.",
        _one_after_the_other,
        "Only one of the two gives way: once it is projected, it no longer conflicts with the other. Project "
        "each against the *original* other.",
        _lengths_not_squared,
        "You divide by the other's length. The projection divides by its square, g·g.",
        lambda g1, g2: pcgrad_of_two(g1, g2) / 2,
        "You take the mean of the two; PCGrad adds them.",
        hints=(
            "When do two gradients conflict? Look at the sign of `g1 @ g2`.",
            "Only then: take from each its part along the *original* other, (g1·g2 / g2·g2) g2, and add what is left.",
            "`dot = min(g1 @ g2, 0)`, then `(g1 - dot / (g2 @ g2) * g2) + (g2 - dot / (g1 @ g1) * g1)`.",
        ),
    ),
    exercise(
        dominated,
        clouds,
        lambda p: (p[None] < p[:, None]).all(-1).any(1),
        "A point that ties on one task and is better on the other dominates, too.",
        lambda p: (p[None] <= p[:, None]).all(-1).any(1),
        "Every point is as good as itself, so you mark them all. Ask for “better on one” as well.",
        lambda p: ((p[None] <= p[:, None]).all(-1) & ~np.eye(len(p), dtype=bool)).any(1),
        "Two equal points: neither is better on any task, so neither dominates. Ask for “better on one”.",
        lambda p: dominated(-p),
        "These are losses: smaller is better.",
        lambda p: ~dominated(p),
        "You mark the front. Asked for are the dominated points.",
        lambda p: (p[None] < p[:, None]).any(-1).any(1),
        "Better on one task is not enough: the other point must not be worse on the other task.",
        hints=(
            "Compare every point with every other, on both tasks.",
            "`points[None]` against `points[:, None]` gives (n, n, 2) comparisons. Two conditions, joined by &.",
            "`(others <= own).all(-1) & (others < own).any(-1)`, then `.any(1)` over the others.",
        ),
    ),
)
