"""Exercises of notebook 00: two rates, and a mix of two losses."""

import pandas as pd
import torch

from mtl_helpers.exercises import Case, exercise


def click_rate(log):
    # A label is 0 or 1, so its mean is the share of ones.
    return log["click"].mean()


def conversion_rate(log):
    # Of the clicks, not of the rows: a purchase needs a click first.
    return log["purchase"].sum() / log["click"].sum()


def logs(rng):
    """Small logs in which a purchase needs a click; the first is tiny, so that it can be read."""
    for n, rate in ((5, 0.6), (30, 0.5), (200, 0.2), (200, 0.9)):
        click = rng.random(n) < rate
        click[:3] = True, True, False
        bought = click & (rng.random(n) < 0.4)
        bought[0] = True
        order = rng.permutation(n)
        yield (pd.DataFrame({"click": click[order].astype(int), "purchase": bought[order].astype(int)}),)


def mixed_loss(loss_click, loss_purchase, w):
    # The weights 1 − w and w add up to one. Both losses stay tensors, so that autograd sees
    # them.
    return (1 - w) * loss_click + w * loss_purchase


def two_losses(rng):
    yield torch.tensor(2.0), torch.tensor(4.0), 0.25
    for _ in range(3):
        yield torch.tensor(rng.random()), torch.tensor(rng.random()), float(rng.uniform(0.1, 0.9))
    yield Case((torch.tensor(0.3), torch.tensor(0.7), 0.0), "w is 0: only the click counts")
    yield Case((torch.tensor(0.3), torch.tensor(0.7), 1.0), "w is 1: only the purchase counts")


EXERCISES = (
    exercise(
        click_rate,
        logs,
        lambda log: log["click"].sum(),
        "You count the clicks. Divide by the rows.",
        lambda log: len(log) / log["click"].sum(),
        "Upside down: the smaller number, the clicks, belongs on top.",
        lambda log: log["purchase"].mean(),
        "You take the purchases; the clicks are in the column `click`.",
        lambda log: 100 * log["click"].mean(),
        "You answer in percent. A share lies between 0 and 1.",
        hints=(
            "How many of the rows have a 1?",
            "The mean of zeros and ones is the share of ones.",
            'Return `log["click"].mean()`.',
        ),
    ),
    exercise(
        conversion_rate,
        logs,
        lambda log: log["purchase"].mean(),
        "You divide by all rows. Which rows could have become a purchase at all?",
        lambda log: log["click"].sum() / log["purchase"].sum(),
        "Upside down: the smaller number, the purchases, belongs on top.",
        lambda log: 100 * log["purchase"].sum() / log["click"].sum(),
        "You answer in percent. A share lies between 0 and 1.",
        lambda log: log["click"].mean(),
        "That is the click rate of exercise one. Here the clicks are what you divide by.",
        hints=(
            "Two numbers: how many were bought, and how many could have been.",
            "Divide by the number of clicks, not by the number of rows.",
            "Sum the column `purchase`, sum the column `click`, divide the first by the second.",
        ),
    ),
    exercise(
        mixed_loss,
        two_losses,
        lambda loss_click, loss_purchase, w: w * loss_click + (1 - w) * loss_purchase,
        "The weights are swapped: w belongs to the purchase.",
        lambda loss_click, loss_purchase, w: loss_click + w * loss_purchase,
        "The click counts in full, whatever w is. The two weights must add up to one.",
        lambda loss_click, loss_purchase, w: (loss_click + loss_purchase) / 2,
        "That is the plain mean; w does not appear in it.",
        lambda loss_click, loss_purchase, w: (1 - w) * loss_click.item() + w * loss_purchase.item(),
        "`.item()` makes plain numbers of tensors. Leave the losses as tensors: training needs their gradient.",
        hints=(
            "The two weights add up to one.",
            "The purchase has weight w. At w = 0 only the click is left, so what is its weight?",
            "(1 − w) times the click's loss, plus w times the purchase's.",
        ),
        gradients=("loss_click", "loss_purchase"),
    ),
)
