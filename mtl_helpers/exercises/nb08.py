"""Exercises of notebook 08: odds after sampling, the focal loss, a mean from what was selected, corrupted rows."""

import torch
from torch.nn.functional import logsigmoid

from mtl_helpers.exercises import Case, exercise


def undo_sampling(q, rate):
    odds = rate * q / (1 - q)  # fewer negatives had raised the odds by 1 / rate
    return odds / (1 + odds)


def sampled(rng):
    return [(torch.tensor(rng.uniform(0.05, 0.95, 6)), rate) for rate in (0.5, 0.1, 0.01)]


def focal(logits, labels, gamma):
    signed = logits * (2 * labels - 1)  # the logit of what happened
    return -((1 - signed.sigmoid()) ** gamma * logsigmoid(signed)).mean()


def rare_labels(rng):
    return [(torch.randn(9) * 2, (torch.arange(9) % 3 == 0).float(), gamma) for gamma in (0.5, 2.0, 3.0)]


def selected_mean(values, seen, propensity, clip):
    # Seen one time in ten, a row stands for ten.
    return (seen * values / propensity.clamp(min=clip)).mean()


def selections(rng):
    p = torch.rand(40) * 0.8 + 0.15
    yield torch.rand(40) + 1, (torch.rand(40) < p).float(), p, 0.1
    p = torch.tensor([0.0, 0.02, 0.5, 0.9])
    yield Case((torch.tensor([1.0, 2, 3, 4]), torch.tensor([1.0, 1, 0, 1]), p, 0.1), "a propensity is 0")


def corrupt_rows(cells, hit, donors):
    return torch.where(hit, cells.gather(0, donors), cells)  # cells[donors[i, c], c]


def tables(rng):
    return [(torch.randn(n, 3), torch.rand(n, 3) < 0.5, torch.randint(n, (n, 3))) for n in (4, 9, 30)]


# fmt: off
EXERCISES = (
    exercise(
        undo_sampling, sampled,
        lambda q, rate: q * rate,
        "You scale the probability. What sampling scales are the odds q / (1 − q).",
        lambda q, rate: q / (q + (1 - q) * rate),
        "The wrong way round: dropping negatives made the rows look more positive, so the odds must fall.",
        lambda q, rate: rate * q / (1 - q),
        "Those are odds. Turn them back into a probability: odds / (1 + odds).",
        hints=("A share `rate` of the negatives was kept. By which factor did the odds change?",
               "The odds rose by 1 / rate. Take `rate * q / (1 - q)`, and go back to a probability.",
               "`odds = rate * q / (1 - q)`, then `odds / (1 + odds)`."),
    ),
    exercise(
        focal, rare_labels,
        lambda z, y, g: ((z * (2 * y - 1)).sigmoid() ** g * -logsigmoid(z * (2 * y - 1))).mean(),
        "You favour the easy rows: the factor is (1 − p_t), how wrong the model was.",
        lambda z, y, g: ((1 - z.sigmoid()) ** g * -logsigmoid(z * (2 * y - 1))).mean(),
        "Your factor takes 1 − p in every row. Where the label is 0, what happened has probability 1 − p.",
        lambda z, y, g: -((1 - (z * (2 * y - 1)).sigmoid()) ** g * logsigmoid(z * (2 * y - 1))).sum(),
        "You sum over the rows. Asked for is their mean.",
        hints=("First p_t, the probability of what happened: p where the label is 1, else 1 − p.",
               "Its logit is `logits * (2 * labels - 1)`; `logsigmoid` of that is log p_t.",
               "With `s = logits * (2 * labels - 1)`: minus the mean of `(1 - s.sigmoid()) ** gamma * logsigmoid(s)`."),
        gradients=("logits",),
    ),
    exercise(
        selected_mean, selections,
        lambda v, s, p, c: (s * v).sum() / s.sum(),
        "That is the mean of the rows that were seen: it forgets that some are seen more easily.",
        lambda v, s, p, c: (s * v / p.clamp(min=c)).sum() / s.sum(),
        "Divide by all rows, seen or not: the weights already make the seen ones stand for all.",
        lambda v, s, p, c: (s * v / p.clamp(max=1 - c)).mean(),
        "A propensity near 0 makes a weight without bound. Raise propensities below `clip` to `clip`.",
        hints=("A row that is seen one time in ten stands for ten rows.",
               "Weigh what was seen by 1 / propensity, where propensities below `clip` are raised to it.",
               "`(seen * values / propensity.clamp(min=clip)).mean()`."),
    ),
    exercise(
        corrupt_rows, tables,
        lambda x, h, d: torch.where(h, x[d[:, 0]], x),
        "All cells of a row come from one donor. Each cell has a donor of its own: `donors[i, c]`.",
        lambda x, h, d: torch.where(h, x, x.gather(0, d)),
        "You replace the cells that should stay: `hit` is True where a cell changes.",
        lambda x, h, d: x * ~h,
        "You blank the cells. SCARF fills in the same column's value of another row.",
        hints=("For row i and column c, the new value is `cells[donors[i, c], c]`.",
               "`cells.gather(0, donors)` takes exactly those; then choose by `hit`.",
               "`torch.where(hit, cells.gather(0, donors), cells)`."),
    ),
)
# fmt: on
