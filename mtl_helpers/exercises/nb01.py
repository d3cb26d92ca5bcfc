"""Exercises of notebook 01: precision at a threshold, leaks, a log-loss that does not overflow."""

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, softplus

from mtl_helpers.exercises import Case, exercise


def precision_at(labels, probabilities, threshold):
    flagged = probabilities >= threshold
    # With nothing flagged there is nothing to divide by: the answer is unknown, not 0.
    if not flagged.any():
        return float("nan")
    # Among the flagged rows the mean of the labels is the share of ones.
    return labels[flagged].mean()


def flagged_rows(rng):
    for n, threshold in ((6, 0.5), (40, 0.3), (500, 0.05), (500, 0.8)):
        yield (rng.random(n) < 0.3).astype(int), rng.random(n).round(3), threshold
    yield Case((np.array([1, 0, 0]), np.array([0.5, 0.5, 0.2]), 0.5), "two rows lie exactly at the threshold")
    yield Case((np.array([1, 0]), np.array([0.1, 0.2]), 0.9), "nothing is flagged")


def leaking(make_features, log, rows):
    before = make_features(log)
    found = set()
    for row in rows:
        # Suppose the label of this row had come out the other way. Work on a copy: the log
        # stays as it is.
        click = log["click"].to_numpy().copy()
        click[row] = 1 - click[row]
        after = make_features(log.assign(click=click))
        # Rows are in the order of time, so whatever was known when this row or an earlier one
        # was shown must not have changed. Later rows may change: for them this label is the
        # past.
        changed = (before.iloc[: row + 1] != after.iloc[: row + 1]).any()
        found |= set(before.columns[changed])
    return found


def feature_makers(rng):
    """Functions that make features of a log: honest ones, and ones that know a label too early."""
    always = ["past", "own", "future"]
    for n, count, tried, step in ((8, 3, None, 1), (14, 4, 0, 1), (14, 5, 1, -1), (20, 7, None, -1)):
        kinds = rng.permutation([name for name in FEATURES if name not in always])[: count - 3]
        chosen = dict(zip(rng.permutation(list("abcdefg"))[:count].tolist(), [*always, *kinds], strict=True))
        click = rng.permutation(np.arange(n) % 2)
        log = pd.DataFrame({"item": rng.integers(0, 3, n), "click": click})

        def make_features(log, chosen=chosen):
            item, click = log["item"].to_numpy(), log["click"].to_numpy()
            return pd.DataFrame({name: FEATURES[kind](item, click) for name, kind in chosen.items()})

        rows = np.arange(n) if tried is None else np.flatnonzero(click == tried)
        yield make_features, log, rows[::step].tolist()


def _same_item(item):
    return (item[:, None] == item) * 1.0


FEATURES = {  # each a matrix (rows, rows) that says which clicks a row sees, times the clicks
    "past": lambda item, click: np.tril(_same_item(item), -1) @ click,
    "own": lambda item, click: np.tril(_same_item(item)) @ click,
    "month": lambda item, click: _same_item(item) @ click / _same_item(item).sum(1),
    "future": lambda item, click: np.triu(np.ones((len(item),) * 2), 1) @ click,
    "place": lambda item, click: np.arange(len(item)),
    "shown": lambda item, click: np.tril(_same_item(item), -1).sum(1),
    "recent": lambda item, click: np.tril(np.triu(np.ones((len(item),) * 2), -3), -1) @ click,
}


def _compare_rows(upto=lambda row: (0, row + 1), other=lambda click: 1 - click, stays=None):
    """``leaking`` that compares other rows than it should, tries another click, or flips in ``stays(log)`` for good."""

    def answer(make_features, log, rows):
        before, found, spoiled = make_features(log), set(), stays and stays(log)
        for row in rows:
            changed = spoiled if stays else log.copy()
            changed.loc[row, "click"] = other(changed.loc[row, "click"])
            after = make_features(changed)
            found |= set(before.columns[(before != after).iloc[slice(*upto(row))].any()])
        return found

    return answer


def stable_log_loss(logits, labels):
    # −log σ(z) = log(1 + e^(−z)) and −log(1 − σ(z)) = log(1 + e^z). softplus(u) is log(1 +
    # e^u), and for a large u it returns u instead of computing e^u. For both labels at once:
    return (nn.functional.softplus(logits) - labels * logits).mean()


def confident_logits(rng):
    for n, width in ((5, 1.0), (40, 5.0)):
        yield torch.tensor(rng.normal(0, width, n)).float(), torch.tensor(rng.integers(0, 2, n)).float()
    logits, labels = torch.tensor(rng.normal(0, 3, 9)), torch.tensor(rng.integers(0, 2, 9)).double()
    yield Case((logits, labels), "in float64")
    far = torch.tensor([-200.0, 200.0, 30.0])
    wrong, right = torch.tensor([1.0, 0.0, 1.0]), torch.tensor([0.0, 1.0, 1.0])
    yield Case((far, wrong), "very sure and mostly wrong")
    yield Case((50 * far, right), "logits of ten thousand")


def _by_probability(margin=0.0):
    def answer(logits, labels):
        p = logits.sigmoid().clamp(margin, 1 - margin)
        return -(labels * p.log() + (1 - labels) * (1 - p).log()).mean()

    return answer


EXERCISES = (
    exercise(
        precision_at,
        flagged_rows,
        lambda y, p, t: (y[p >= t].sum() / y.sum()) if (p >= t).any() else float("nan"),
        "That is recall: you divide by all positives. Precision divides by the flagged rows.",
        lambda y, p, t: y[p > t].mean() if (p > t).any() else float("nan"),
        "A row exactly at the threshold is flagged, too: ≥, not >.",
        lambda y, p, t: y[p >= t].mean() if (p >= t).any() else 0.0,
        "With nothing flagged you answer 0. That would say “all wrong”; the answer is unknown: NaN.",
        lambda y, p, t: ((p >= t) == y).mean(),
        "That is accuracy: it counts the rows that were rightly left alone. Look at the flagged rows only.",
        hints=(
            "Which rows are flagged? Look at no others.",
            "`flagged = probabilities >= threshold` is a mask. What is the mean of a 0/1 array over a mask?",
            "`labels[flagged].mean()`, and `float('nan')` if `flagged.any()` is False.",
        ),
    ),
    exercise(
        leaking,
        feature_makers,
        _compare_rows(lambda row: (0, None)),
        "You accuse honest features: later rows may know this label. Compare the rows up to and with the "
        "flipped one.",
        _compare_rows(lambda row: (0, row)),
        "You miss features that contain the row's own label: the flipped row itself must not change either.",
        _compare_rows(lambda row: (row, row + 1)),
        "You look at the flipped row alone. An earlier row that knows this click leaks, too.",
        _compare_rows(other=lambda click: 1),
        "You set the click to 1. Where it is 1 already nothing changes: flip it, 1 − click.",
        _compare_rows(other=lambda click: 0),
        "You set the click to 0. Where it is 0 already nothing changes: flip it, 1 − click.",
        lambda make, log, rows: set(make(log).columns) - leaking(make, log, rows),
        "You return the honest features. Asked for are the ones that leak.",
        lambda make, log, rows: leaking(make, log, rows[:1]),
        "You try the first row alone. Is the `return` inside of the loop?",
        lambda make, log, rows: leaking(make, log, rows[-1:]),
        "You keep what the last row shows, and forget the others. Gather: `found |= …`.",
        _compare_rows(stays=pd.DataFrame.copy),
        "A flipped click stays flipped while you try the next row. Take a new copy for each.",
        _compare_rows(stays=lambda log: log),
        "You flip labels in the log itself, and they stay flipped. Flip them in a copy.",
        hints=(
            "What would happen to an honest feature of row i if the label of row i had come out the other way?",
            "Flip one label in a copy of the log, make the features again, and see which columns changed in the rows "
            "up to and with that one.",
            "For each row: `click[row] = 1 - click[row]` in a copy, `after = make_features(log.assign(click=click))`, "
            "then `(before.iloc[: row + 1] != after.iloc[: row + 1]).any()` tells which columns changed.",
        ),
    ),
    exercise(
        stable_log_loss,
        confident_logits,
        _by_probability(),
        "The sigmoid rounds to 0 or 1, and log 0 is infinite. Go from the logit to the loss without the "
        "probability in between.",
        _by_probability(1e-7),
        "Clamping hides the overflow and caps the loss: a very wrong row costs as much as a fairly wrong "
        "one, and its gradient is 0.",
        lambda z, y: (softplus(z) - y * z).sum(),
        "You sum over the rows. Asked for is the mean.",
        lambda z, y: (softplus(z) - (1 - y) * z).mean(),
        "The labels are swapped: for label 1 a large logit must cost little.",
        lambda z, y: (z.clamp(min=0) - y * z + (-z).exp().log1p()).mean(),
        "Beside max(z, 0) the exponent is −|z|: for a negative z, e^(−z) counts it twice and overflows.",
        lambda z, y: binary_cross_entropy_with_logits(z.sigmoid(), y),
        "The sigmoid is taken twice: once by you, once by the function that expects logits.",
        hints=(
            "Where does the obvious formula lose the number: in the sigmoid or in the logarithm?",
            "−log σ(z) = log(1 + e^(−z)), and `torch.nn.functional.softplus(u)` is log(1 + e^u) without overflow.",
            "For label 1 the loss is softplus(−z) = softplus(z) − z, for label 0 it is softplus(z). One formula for "
            "both: softplus(z) − y·z.",
        ),
        gradients=("logits",),
    ),
)
