"""Exercises of notebook 10: test then train, a mean over two machines, clipping and noise, drift in one number."""

import numpy as np
import torch

from mtl_helpers.exercises import Case, exercise


def test_then_train(state, x, y, predict, learn, delay):
    said = []
    for i in range(len(x)):
        said.append(predict(state, x[i]))  # first the test: these labels lie in the future
        if i >= delay:  # then the labels that have come in by now
            state = learn(state, x[i - delay], y[i - delay])
    return said


def line(w, x):
    return x @ w


def step(w, x, y):
    return w + 0.1 * x.T @ (y - x @ w) / len(y)


def days(rng):
    for n, delay in ((5, 0), (6, 2)):
        x = rng.normal(size=(n, 8, 3))
        yield rng.normal(size=3), x, x @ [1.0, -2, 3], line, step, delay
    x = rng.normal(size=(2, 4, 3))
    yield Case((np.zeros(3), x, x[..., 0], line, step, 3), "no label arrives in time")


def _replay(state, x, y, predict, learn, delay, serve="latest", learn_from="latest"):
    said, states = [], {"latest": state, "first": state}
    for i in range(len(x)):
        come = max(i - delay, 0)
        states["next"] = learn(states[learn_from], x[come], y[come]) if i >= delay else states["latest"]
        said.append(predict(states[serve], x[i]))
        states["latest"] = states["next"]
    return said


def rank_losses(losses, masks):
    # All labels of all ranks: what an all-reduce gives to each of them.
    labels = masks.sum().clamp(min=1)
    # DDP divides the sum of the ranks' gradients by their number: take it back.
    return len(masks) * (losses * masks).sum(1) / labels


def ranks(rng):
    for world, n in ((2, 6), (2, 9), (4, 5)):
        yield torch.rand(world, n) + 0.5, torch.rand(world, n) < torch.linspace(0.3, 0.9, world)[:, None]
    yield Case(
        (torch.rand(2, 4) + 1, torch.tensor([[False] * 4, [True] * 3 + [False]])), "a rank without a label"
    )


def private_mean(gradients, bound, sigma, noise):
    norms = gradients.norm(dim=1, keepdim=True)
    # Long rows are shortened to the bound, short ones stay: no row counts more.
    clipped = gradients * (bound / norms.clamp(min=1e-12)).clamp(max=1)
    # The noise hides one row, so it is as large as one row may be.
    return (clipped.sum(0) + sigma * bound * noise) / len(gradients)


def private_batches(rng):
    for n, d, bound, sigma in ((6, 4, 1.0, 0.5), (9, 3, 2.5, 1.5)):
        yield torch.randn(n, d) * (torch.rand(n, 1) * 4), bound, sigma, torch.randn(d)
    yield Case((torch.zeros(3, 2), 0.7, 1.0, torch.randn(2)), "a row whose gradient is 0")


def stability(before, after, bins):
    # Bins that hold equally many of the old values, open at both ends.
    edges = np.quantile(before, np.linspace(0, 1, bins + 1)[1:-1])
    counts = [np.bincount(np.searchsorted(edges, x, side="right"), minlength=bins) for x in (before, after)]
    # Half a row more in each bin: an empty one would make the logarithm infinite.
    p, q = ((count + 0.5) / (count.sum() + 0.5 * bins) for count in counts)
    return float(((q - p) * np.log(q / p)).sum())


def populations(rng):
    for n, m, shift, bins in ((200, 90, 0.0, 5), (150, 150, 0.8, 10)):
        yield rng.exponential(size=n), rng.exponential(size=m) + shift, bins
    yield Case((rng.normal(size=60), rng.normal(6, 1, 40), 4), "bins that no new value falls into")


def _inner(x, bins):
    return np.quantile(x, np.linspace(0, 1, bins + 1)[1:-1])


def _index(before, after, bins, edges, half=0.5, factor=np.subtract):
    counts = [np.bincount(np.searchsorted(edges, x, side="right"), minlength=bins) for x in (before, after)]
    p, q = ((count + half) / (count.sum() + half * bins) for count in counts)
    return float((factor(q, p) * np.log(q / p)).sum())


# fmt: off
EXERCISES = (
    exercise(
        test_then_train, days,
        lambda *a: _replay(*a, serve="next"),
        "You learn from a day before you predict it: the test has seen its answers.",
        lambda *a: _replay(*a, serve="first"),
        "Every day is predicted by the first state. What was learned must serve the next day.",
        lambda *a: _replay(*a[:5], 0),
        "You ignore the delay: a day's labels are known only `delay` days later.",
        lambda *a: _replay(*a, learn_from="first"),
        "You learn from the first state each time, and forget the days between.",
        hints=(
            "One loop. In it, two lines whose order is the exercise.",
            "At day i the labels that have just come in are those of day `i - delay`, if there is one.",
            "Predict `x[i]`; then, `if i >= delay`, `state = learn(state, x[i - delay], y[i - delay])`.",
        ),
    ),
    exercise(
        rank_losses, ranks,
        lambda z, m: (z * m).sum(1) / m.sum(1).clamp(min=1),
        "Each rank divides by its own labels: a label on a rank with few counts more than one on the other.",
        lambda z, m: (z * m).sum(1) / m.sum().clamp(min=1),
        "DDP takes the *mean* over ranks. Yours comes out smaller, by the number of ranks.",
        lambda z, m: (z * m).mean(1),
        "You divide by rows. Rows without a label do not count, above the line or below.",
        lambda z, m: len(z) * z.sum(1) / m.sum().clamp(min=1),
        "Losses of rows without a label are in your sum.",
        hints=(
            "Write down what the mean of your answers over the ranks must be, and solve for one rank.",
            "The divisor is the same on every rank: all labels, `masks.sum()`.",
            "`len(masks) * (losses * masks).sum(1) / masks.sum().clamp(min=1)`.",
        ),
    ),
    exercise(
        private_mean, private_batches,
        lambda g, b, s, z: (g.sum(0) * (b / g.sum(0).norm().clamp(min=1e-12)).clamp(max=1) + s * b * z) / len(g),
        "You clip the sum. One row with a huge gradient still decides its direction: clip row by row.",
        lambda g, b, s, z: ((g * b / g.norm(dim=1, keepdim=True).clamp(min=1e-12)).sum(0) + s * b * z) / len(g),
        "Short gradients are stretched to the bound. They stay as they are.",
        lambda g, b, s, z: private_mean(g, b, s / b, z),
        "The noise must grow with the bound: its deviation is sigma · bound.",
        lambda g, b, s, z: (private_mean(g, b, 0, z) + s * b * z),
        "Add the noise to the sum, then divide by the number of rows.",
        lambda g, b, s, z: (g.clamp(-b, b).sum(0) + s * b * z) / len(g),
        "You clip number by number. The bound is for the length of a row's whole gradient.",
        hints=(
            "Three steps: shorten each row, sum and add noise, divide.",
            "A row's factor is `bound / norm`, but never above 1.",
            "`clipped = gradients * (bound / norms.clamp(min=1e-12)).clamp(max=1)`.",
        ),
    ),
    exercise(
        stability, populations,
        lambda a, b, k: _index(a, b, k, _inner(b, k)),
        "Your bins follow the new values. The old ones set them, once and for all days.",
        lambda a, b, k: _index(a, b, k, np.linspace(a.min(), a.max(), k + 1)[1:-1]),
        "Your bins are equally wide. They must hold equally many of the old values.",
        lambda a, b, k: _index(a, b, k, _inner(a, k), half=0),
        "A bin may be empty. Half a row more in each keeps the logarithm finite.",
        lambda a, b, k: _index(a, b, k, _inner(a, k), factor=lambda q, p: q),
        "That is the divergence one way. The index has (q − p) in front of the logarithm, and is symmetric.",
        hints=(
            "Edges from `before`; shares of both in the same bins; one sum.",
            "`np.quantile(before, np.linspace(0, 1, bins + 1)[1:-1])`, then `searchsorted` and `bincount`.",
            "`p = (count + 0.5) / (count.sum() + 0.5 * bins)`, likewise q, then `((q - p) * np.log(q / p)).sum()`.",
        ),
    ),
)
