"""Exercises of notebook 05: recall and coverage, fusion by powers, undoing down-sampling."""

import math

import numpy as np
import torch

from mtl_helpers.exercises import Case, exercise


def recall_and_coverage(lists, bought, n_items):
    # A user who bought nothing has no recall: there is nothing to find.
    shares = [
        len(set(items.tolist()) & wanted) / len(wanted)
        for items, wanted in zip(lists, bought, strict=True)
        if wanted
    ]
    # Coverage looks at all lists together: an item counts once, however many lists show it.
    return float(np.mean(shares)), len(np.unique(lists)) / n_items


def top_lists(rng):
    for users, k, n_items in ((2, 2, 5), (6, 3, 10), (20, 5, 40)):
        lists = np.stack([rng.permutation(n_items)[:k] for _ in range(users)])
        bought = [set(rng.permutation(n_items)[: rng.integers(1, 5)].tolist()) for _ in range(users)]
        bought[0] |= {int(lists[0, 0])}
        yield lists, bought, n_items
    lists = np.array([[0, 1], [3, 4], [2, 1]])
    yield Case((lists, [{0, 7}, set(), {1}], 8), "the second user bought nothing")


def _other_recall(lists, bought, n_items, share):
    shares = [share(set(a.tolist()), b) for a, b in zip(lists, bought, strict=True) if b]
    return float(np.mean(shares)), len(np.unique(lists)) / n_items


def power_fusion(probabilities, exponents):
    score = 1.0
    for task, exponent in exponents.items():
        # An exponent of 0 gives 1, so that this task does not count; a larger one stretches
        # its differences.
        score = score * probabilities[task] ** exponent
    return score


def predictions_and_exponents(rng):
    for n, tasks in ((3, ["click", "purchase"]), (20, ["click", "purchase", "like"])):
        p = {task: torch.tensor(rng.uniform(0.01, 0.99, n)).float() for task in tasks}
        yield p, {task: float(rng.uniform(0.2, 3)) for task in tasks}
    p = {"click": torch.tensor([0.5, 0.1]), "purchase": torch.tensor([0.02, 0.3])}
    yield Case((p, {"click": 1.0, "purchase": 0.0}), "an exponent of 0: the purchase does not count")
    yield Case((p, {"purchase": 2.0}), "a task without an exponent does not count")
    yield Case((p, {"purchase": 0.5, "click": 2.0}), "the exponents come in another order")
    tiny = {"click": torch.tensor([0.0, 0.5]), "purchase": torch.tensor([0.5, 0.5])}
    yield Case((tiny, {"click": 1.0, "purchase": 2.0}), "a probability of 0")


def undo_downsampling(p, keep):
    # Keeping a share of the negatives multiplies the odds p / (1 − p) by 1 / keep. Multiply
    # them back.
    odds = keep * p / (1 - p)
    return odds / (1 + odds)


def sampled_probabilities(rng):
    for n, keep in ((3, 0.1), (30, 0.5), (30, 0.01)):
        yield rng.uniform(0.02, 0.98, n), keep
    yield Case((rng.uniform(0.02, 0.98, 3), 1.0), "nothing was dropped: nothing changes")
    yield Case((np.array([0.0, 0.5]), 0.2), "a probability of 0 stays 0")


EXERCISES = (
    exercise(
        recall_and_coverage,
        top_lists,
        lambda lists, bought, n: _other_recall(lists, bought, n, lambda a, b: len(a & b) / len(a)),
        "You divide the hits by k: that is precision. Recall divides by what the user bought.",
        lambda lists, bought, n: _other_recall(lists, bought, n, lambda a, b: bool(a & b)),
        "You count users with at least one hit: the hit rate. Recall is the share of each user's purchases "
        "that was found.",
        lambda lists, bought, n: (recall_and_coverage(lists, bought, n)[0], lists.size / n),
        "Coverage counts an item once, however many lists show it: `np.unique`.",
        lambda lists, bought, n: recall_and_coverage(lists, [b or {-1} for b in bought], n),
        "A user who bought nothing counts as a miss with you. There was nothing to find: leave that user out.",
        lambda lists, bought, n: (
            recall_and_coverage(lists, bought, n)[0],
            len(np.unique(lists[[bool(b) for b in bought]])) / n,
        ),
        "Your coverage skips the lists of users who bought nothing. They count, too: only recall skips them.",
        lambda lists, bought, n: recall_and_coverage(lists, bought, n)[::-1],
        "The two numbers are in the wrong order: recall first, then coverage.",
        hints=(
            "Recall belongs to one user at a time, coverage to all lists together.",
            "Per user: hits divided by the number of bought items, users without a purchase left out; then the mean. "
            "Coverage: different items in all lists, divided by the catalogue.",
            "`len(set(items.tolist()) & wanted) / len(wanted)` for each user; `len(np.unique(lists)) / n_items`.",
        ),
    ),
    exercise(
        power_fusion,
        predictions_and_exponents,
        lambda p, powers: sum(a * p[task] for task, a in powers.items()),
        "That is fusion by a sum: one good prediction makes up for a hopeless one. Multiply the powers.",
        lambda p, powers: math.prod(a * p[task] for task, a in powers.items()),
        "You multiply by the exponent: a factor common to all items that changes no order. Raise p to it.",
        lambda p, powers: math.prod(x**a for x, a in zip(p.values(), powers.values(), strict=False)),
        "You pair the two dicts by their order. Pair them by the task's name: `probabilities[task]`.",
        lambda p, powers: math.prod(a ** p[task] for task, a in powers.items()),
        "Base and exponent are swapped: it is p ** a.",
        lambda p, powers: math.prod(x ** powers.get(task, 1.0) for task, x in p.items()),
        "A task without an exponent must not count. Go through `exponents`, not through `probabilities`.",
        hints=(
            "Which exponent makes a task count for nothing, and what does p to that power give?",
            "A product over the tasks of p ** a. Start from 1.",
            "`for task, a in exponents.items(): score = score * probabilities[task] ** a`.",
        ),
    ),
    exercise(
        undo_downsampling,
        sampled_probabilities,
        lambda p, keep: keep * p,
        "Multiplying probabilities works only near 0; at p = 1 it gives the share kept. It is the odds "
        "that are scaled.",
        lambda p, keep: p / (p + keep * (1 - p)),
        "You make the probabilities larger still. Dropped negatives had made them too large.",
        lambda p, keep: keep * p / (1 - p),
        "Those are odds. Turn them into probabilities: odds / (1 + odds).",
        lambda p, keep: p,
        "You return what the model says of the thinned log. There, positives are more frequent than in truth.",
        hints=(
            "Dropping negatives leaves the number of positives as it is. What happens to their ratio?",
            "The odds p / (1 − p) were multiplied by 1 / keep. Multiply them back, then return to probabilities.",
            "`odds = keep * p / (1 - p)`, then `odds / (1 + odds)`.",
        ),
    ),
)
