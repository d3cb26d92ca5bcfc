"""Exercises of notebook 07: a statistic that does not leak, a paired interval, how many seeds."""

import numpy as np

from mtl_helpers.exercises import Case, exercise


def rate_of_others(ids, labels):
    # Sums and counts per id, brought back to the rows …
    _, codes = np.unique(ids, return_inverse=True)
    total, count = np.bincount(codes, labels)[codes], np.bincount(codes)[codes]
    # … without the row itself: its own label is what is to be predicted.
    overall = (labels.sum() - labels) / (len(labels) - 1)
    # An id seen once has no others; the rate of all other rows stands in.
    return np.where(count > 1, (total - labels) / np.maximum(count - 1, 1), overall)


def sums(ids, labels):
    same = ids[:, None] == ids
    return same @ labels, same.sum(1)


def logs(rng):
    for n, k in ((6, 2), (20, 5), (30, 12)):
        yield rng.integers(0, k, n), (rng.random(n) < 0.4).astype(float)
    yield Case((np.array([3, 3, 8]), np.array([1.0, 0.0, 1.0])), "one id is seen only once")
    yield Case((np.arange(5), np.array([1.0, 0.0, 1.0, 1.0, 0.0])), "every id is seen only once")


def paired_interval(a, b, quantile, ratio):
    # One difference per seed: what both runs of a seed share cancels.
    gap = a - b
    # Standard error of a mean: 1/n for what is new in each run, and the ratio for what all runs have in common.
    half = quantile * gap.std(ddof=1) * np.sqrt(1 / len(gap) + ratio)
    return np.array([gap.mean() - half, gap.mean() + half])


def runs(rng):
    for n, ratio in ((3, 0.0), (5, 15 / 70), (10, 1.0)):
        luck = rng.normal(0.75, 0.03, n)
        yield luck + rng.normal(0.004, 0.002, n), luck + rng.normal(0, 0.002, n), 2.5, ratio
    yield Case((np.array([0.7, 0.8]), np.array([0.6, 0.9]), 12.7, 0.0), "there are two fresh draws only")


def seeds_needed(sd, gap):
    # The mean of n differences scatters by sd / sqrt(n). To see `gap` in 80 % of attempts at the 5 % level it has to
    # be 1.96 + 0.84 = 2.8 times as large as that (with Student's t in place of the normal: about two seeds more).
    return int(np.ceil((2.8 * sd / gap) ** 2))


def spreads(rng):
    for _ in range(4):
        yield float(rng.uniform(0.0005, 0.004)), float(rng.uniform(0.0006, 0.002))
    yield Case((0.004, 0.001), "four times the difference in one run")
    yield Case((5.0, 1.0), "n comes out whole: 196")
    yield Case((0.001, 0.004), "one seed would do")


EXERCISES = (
    exercise(
        rate_of_others,
        logs,
        lambda ids, labels: np.divide(*sums(ids, labels)),
        "Your rate contains the label of the row it is given to: a leak. Leave that row out.",
        lambda ids, labels: (sums(ids, labels)[0] - labels) / np.maximum(sums(ids, labels)[1] - 1, 1),
        "An id seen once has no others. Zero would be a guess; give it the rate of all other rows.",
        lambda ids, labels: np.where(
            sums(ids, labels)[1] > 1,
            (sums(ids, labels)[0] - labels) / sums(ids, labels)[1],
            (labels.sum() - labels) / (len(labels) - 1),
        ),
        "You left the row out of the sum but not out of the count.",
        lambda ids, labels: np.where(sums(ids, labels)[1] > 1, rate_of_others(ids, labels), labels.mean()),
        "For an id seen once you take the mean of all rows. It holds the row's own label: leave that out.",
        lambda ids, labels: (labels.sum() - labels) / (len(labels) - 1),
        "That is the rate of all other rows. Take the rows of the same id where there are any.",
        hints=(
            "What would a row's own label do in its feature, at test time, when the label is not known yet?",
            "Per id, sum and count: `np.bincount` over `np.unique(..., return_inverse=True)`; subtract the row.",
            "`(total - labels) / (count - 1)` where count > 1, else `(labels.sum() - labels) / (len(labels) - 1)`.",
        ),
    ),
    exercise(
        paired_interval,
        runs,
        lambda a, b, quantile, ratio: (
            (a - b).mean()
            + np.array([-1, 1]) * quantile * np.sqrt((a.var(ddof=1) + b.var(ddof=1)) * (1 / len(a) + ratio))
        ),
        "You add the two variances, as for runs that share nothing. Take one difference per seed first.",
        lambda a, b, quantile, ratio: (a - b).mean() + np.array([-1, 1]) * quantile * (a - b).std(ddof=1),
        "That is how far one run scatters. The mean of n of them scatters less, by the root of n.",
        lambda a, b, quantile, ratio: paired_interval(a, b, quantile, 0.0),
        "You leave the ratio out: draws that share rows are not new evidence each.",
        lambda a, b, quantile, ratio: paired_interval(a, b, quantile * (1 - 1 / len(a)) ** 0.5, ratio),
        "NumPy's std divides by n unless told: with few seeds use ddof=1.",
        lambda a, b, quantile, ratio: paired_interval(b, a, quantile, ratio),
        "The sign is turned: a − b is asked for.",
        hints=(
            "The two runs of a seed share their luck. Which number per seed is free of it?",
            "Mean of the differences, plus and minus quantile times their standard error.",
            "`gap = a - b`; half = `quantile * gap.std(ddof=1) * np.sqrt(1 / len(gap) + ratio)`.",
        ),
    ),
    exercise(
        seeds_needed,
        spreads,
        lambda sd, gap: int(np.ceil(2.8 * sd / gap)),
        "The error falls with the root of n, so n grows with the square of the ratio.",
        lambda sd, gap: int((2.8 * sd / gap) ** 2),
        "One seed too few: round up.",
        lambda sd, gap: int((2.8 * sd / gap) ** 2) + 1,
        "One seed too many where n comes out whole, as with `int(x) + 1` or <. Round up with `np.ceil`, or take ≤.",
        lambda sd, gap: max(2, int(np.ceil((2.8 * sd / gap) ** 2))),
        "You never answer 1. An interval needs two seeds, but asked for is the smallest n of the formula.",
        lambda sd, gap: int(np.ceil((1.96 * sd / gap) ** 2)),
        "With 1.96 alone the interval excludes zero in one attempt out of two. Add 0.84 for 80 %.",
        hints=(
            "How far does the mean of n differences scatter, if one scatters by sd?",
            "2.8 times sd / sqrt(n) must be at most the difference: solve for n, and round up.",
            "`int(np.ceil((2.8 * sd / gap) ** 2))`.",
        ),
    ),
)
