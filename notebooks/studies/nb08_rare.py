"""A rare label, labels that selection hides, rows without a label: what helps the purchase?

    python notebooks/studies/nb08_rare.py                                        # all, on one core about 50 minutes
    python notebooks/studies/nb08_rare.py --parts "labels 500" --shops 0 1 2 101   # one part; shops 0 to 2 tune

Appends to ``08_rare.csv`` a row for each run; what is there is not run again. **Primary contrast**, stated before the
study was run: with 500 training rows whose purchase label is known (at least one of them a purchase; the clicks of no
row are used), an auxiliary task on all 24,000 rows, the mean of *reconstruction* and *contrast*, trained jointly, minus
*alone*: AUC of purchase, eight shops; expected: plus. All else is exploratory.

- Small shops as in ``nb02_sharing.py``: all is new in each. Three tune, eight others are reported. Test figures are
  weighted by the truth; which step is kept is decided by the AUC of the validation labels.
- Every contestant tries thirteen settings, spread evenly over the logarithms of learning rate, decay and a knob of its
  own, and keeps that of the highest mean validation figure on the tuning shops, by the truth. Biases have no decay;
  towers start at the base rate, but for *treatments*, where that start is what logit adjustment is about.
- A first tuning, on grids of 4 to 8 settings, chose many of their ends; ranges were widened and the study begun anew.
  Two reported shops had run by then, for 500 labels; nobody had looked at them.
- ``labels``: 500, 1,500 or 5,000 known purchase labels. One step reads a batch of labelled rows and, for
  the auxiliary task, one of all rows; so all contestants take the same steps on labelled rows. *Click* shares with the
  clicks of all rows. *Self-training* adds the surest thousandth of *alone* as yes, its lower half as no, at
  the setting of *alone*.
- ``treatments``: all labels. Figures of probabilities come before and after the correction that belongs
  to the treatment. *Over-sampling*, *SMOTE* and *GAN* make the rare class r times as frequent: by copies, by points
  between a row and one of its five nearest, by made rows. "share": that of the made, at over-sampling's setting.
- ``attention``: click and purchase: a gate a task, the mean of the last ten clicks, attention to them.
- ``selection``: purchase given click, for all rows, of which only clicked ones tell. *hidden*: the shop's
  own clicks, which follow tastes that no feature holds. *observed*: clicks drawn anew from what a model makes of the
  features, so that nothing unseen decides. ``estimate``: no model, only the mean of that probability.
- How each part trains stands in ``nb08_parts.py``.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from time import perf_counter

import numpy as np
import torch
from nb08_parts import Answer, attentive, case, estimates, few_labels, floors, selected, treated, with_history
from study import Table, command_line

from mtl_helpers import data
from mtl_helpers.metrics import expected_auc, expected_log_loss

TUNING, REPORTED = (0, 1, 2), tuple(range(101, 109))
BUDGETS, SHARES = ("500", "1500", "5000"), (0.25, 0.5, 0.75, 1.0)
RATE, NONE, WEIGHT, OFTEN = (1e-3, 0.05), (0.0, 0.0), (0.02, 50.0), (2.0, 300.0)
STRONG, DECAY = (0.5, 50.0), (0.1, 30.0)  # for few labels, for all
LABELS = {
    **dict.fromkeys(("alone", "contrast first"), (RATE, STRONG, NONE)),
    "logistic regression": ((3e-4, 0.2), (0.5, 15.0), NONE),
    **dict.fromkeys(("reconstruction", "contrast", "click"), (RATE, STRONG, WEIGHT)),
}
OWN = {
    "as it is": NONE,
    "focal loss": (0.25, 4.0),
    "logit adjustment": (0.25, 2.0),
    "down-sampling": (0.01, 0.9),
}
OWN |= dict.fromkeys(("class weight", "over-sampling", "SMOTE", "GAN"), OFTEN)
TREATMENTS = {name: (RATE, DECAY, own) for name, own in OWN.items()}
ATTENTION = dict.fromkeys(("shared bottom", "gates", "mean of history", "attention"), (RATE, DECAY, NONE))
SELECTION = {
    **dict.fromkeys(("naive", "ESMM", "IPS", "DR"), (RATE, DECAY, NONE)),
    **dict.fromkeys(("ESCM²-IPS", "ESCM²-DR"), (RATE, DECAY, WEIGHT)),
}
PARTS = {  # part, world, budget, and of each contestant the ranges of learning rate, decay and its own knob
    **{f"labels {budget}": ("labels", "hidden", budget, LABELS) for budget in BUDGETS},
    "treatments": ("treatments", "hidden", "all", TREATMENTS),
    "attention": ("attention", "hidden", "all", ATTENTION),
    **{f"selection {world}": ("selection", world, "all", SELECTION) for world in ("hidden", "observed")},
}
KEY, SETTING = ["part", "world", "contestant", "budget"], ["lr", "weight_decay", "own"]
FIGURES = "step valid auc log_loss raw_log_loss calibration mean true_mean product_auc seconds".split()
COLUMNS = ["shop", *KEY, *SETTING, *FIGURES]


def calibration(truth: np.ndarray, p: np.ndarray) -> float:
    """Mean gap of ten bins of equal count, by the true probabilities: its floor is 0."""
    bins = np.array_split(np.argsort(p, kind="stable"), 10)
    return float(np.mean([abs(truth[rows].mean() - p[rows].mean()) for rows in bins]))


def measured(answer: Answer, shop: data.Splits, raw: Answer | None = None) -> dict[str, float]:
    """Of probabilities of a purchase; ``raw`` are those before their correction."""
    valid, truth = (shop.frames[part]["p_purchase"].to_numpy() for part in ("valid", "test"))
    p, before = answer(shop.test).double().numpy(), (raw or answer)(shop.test).double().numpy()
    return {
        "valid": expected_auc(valid, answer(shop.valid)),
        "auc": expected_auc(truth, p),
        "log_loss": expected_log_loss(truth, p),
        "raw_log_loss": expected_log_loss(truth, before),
        "calibration": calibration(truth, p),
        "mean": p.mean(),
        "true_mean": truth.mean(),
    }


def measured_given_click(chances: Answer, shop: data.Splits) -> dict[str, float]:
    """Of the probabilities of a click, and of a purchase given a click."""
    given = {part: shop.frames[part]["p_purchase_given_click"].to_numpy() for part in ("valid", "test")}
    (_, valid), (click, test) = chances(shop.valid), chances(shop.test)
    return {
        "valid": -expected_log_loss(given["valid"], valid),
        "auc": expected_auc(given["test"], test),
        "log_loss": expected_log_loss(given["test"], test),
        "calibration": calibration(given["test"], test.double().numpy()),
        "mean": test.mean().item(),
        "true_mean": given["test"].mean(),
        "product_auc": expected_auc(shop.frames["test"]["p_purchase"], click * test),
    }


def run_one(part: str, world: str, name: str, budget: str, setting: tuple, seed: int) -> dict:
    if part == "selection":
        model, step = selected(name, seed, world, setting)
        return measured_given_click(model.chances, case(seed, world)[0]) | {"step": step}
    how = {"labels": few_labels, "treatments": treated, "attention": attentive}[part]
    answer, step, *raw = how(name, seed, budget, setting)
    shop = with_history(seed) if name in ("attention", "mean of history") else case(seed)[0]
    return measured(answer, shop, *raw) | {"step": step}


def grid(ranges: tuple) -> Iterator[tuple]:
    """Thirteen points spread evenly over the logarithms of the ranges, at the same places for all contestants."""
    for k in range(13):
        places = [(k * step % 13 + 0.5) / 13 for step in (1, 5, 3)]
        pairs = zip(ranges, places, strict=True)
        yield tuple(float(f"{low * (high / low) ** at:.3g}") if high else 0.0 for (low, high), at in pairs)


def jobs(table: Table, part: str, seed: int) -> Iterator[tuple]:
    """Contestant, budget and setting of each run of a part on one shop."""
    kind, world, budget, contestants = PARTS[part]
    if seed in TUNING:
        yield from ((name, budget, at) for name, ranges in contestants.items() for at in grid(ranges))
        return
    best = table.chosen([(kind, world, name, budget) for name in contestants], shop=TUNING)
    best = {name: setting for (_, _, name, _), setting in best.items()}
    yield from ((name, budget, at) for name, at in best.items())
    if kind == "labels":
        yield "self-training", budget, (*best["alone"][:2], 0.3)
    if kind == "treatments":
        yield from (("GAN", f"share {share}", best["over-sampling"]) for share in SHARES)


def run(table: Table, part: str, seed: int) -> None:
    """Write the rows of one shop that are not there yet."""
    (kind, world, *_), done = PARTS[part], table.done(shop=seed)
    for name, budget, setting in jobs(table, part, seed):
        key = (kind, world, name, budget, *setting)
        if key not in done:
            begun = perf_counter()
            figures = run_one(kind, world, name, budget, setting, seed)
            figures |= {"shop": seed, "seconds": perf_counter() - begun}
            table.add([dict(zip([*KEY, *SETTING], key, strict=True)) | figures])
    other = {"selection observed": "estimate", "treatments": "floor"}.get(part)
    if other and seed not in TUNING and not table.has(shop=seed, part=other):
        same = {"part": other, "world": "hidden", "budget": "all"} | dict.fromkeys(SETTING, 0.0)
        found = estimates(seed) if other == "estimate" else floors(seed)
        table.add((same | row for row in found), shop=seed)
    print(f"{part}, shop {seed}", flush=True)


if __name__ == "__main__":
    options = command_line(__doc__, shops=(*TUNING, *REPORTED), parts=tuple(PARTS)).parse_args()
    torch.set_num_threads(1)
    table = Table(options.out / "08_rare.csv", "nb08_rare.py", COLUMNS, KEY, SETTING, budget=str)
    for seed, part in product(options.shops, options.parts):
        run(table, part, seed)
