"""A rare label, labels that selection hides, rows without a label: what helps the purchase?

    python notebooks/studies/nb08_rare.py --out notebooks/results       # all, on one core about 50 minutes
    python notebooks/studies/nb08_rare.py --part "labels 500" --shop 101   # one part on one shop

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
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import replace
from functools import cache
from itertools import product
from pathlib import Path
from time import perf_counter

import numpy as np
import pandas as pd
import torch
from nb02_sharing import shop_of
from study import append, command_line
from study import begin as begin_table
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits as bce
from torch.nn.functional import cross_entropy

from mtl_helpers import data
from mtl_helpers.metrics import auc, correct_downsampling, expected_auc, expected_log_loss
from mtl_helpers.models import rare
from mtl_helpers.models.sharing import SharedBottom
from mtl_helpers.training import predict

TUNING, REPORTED = (0, 1, 2), tuple(range(101, 109))
CLICK, PURCHASE = data.SHOP_TASKS[:2]
BUDGETS, SHARES, CLIPS = ("500", "1500", "5000"), (0.25, 0.5, 0.75, 1.0), (0.01, 0.02, 0.05, 0.1, 0.2)
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
FIGURES = [
    "step",
    "valid",
    "auc",
    "log_loss",
    "raw_log_loss",
    "calibration",
    "mean",
    "true_mean",
    "product_auc",
]
COLUMNS = ["shop", *KEY, *SETTING, *FIGURES, "seconds"]
HISTORY = 10
NETWORK, STRAIGHT = {"embedding_dim": 4}, {"embedding_dim": 1, "hidden": (), "tower": ()}
Answer = Callable[[data.MultiTaskDataset], Tensor]  # rows -> probabilities


def train(
    parts: nn.Module, objective: Callable[[], Tensor], judge: Callable[[], float], setting: tuple, steps: int = 300
) -> int:  # fmt: skip
    """AdamW, judged every 25 steps, until four of them brought nothing; the best parameters are put back. Returns their
    step."""
    biases = [value for value in parts.parameters() if value.dim() == 1]
    groups = [
        {"params": [value for value in parts.parameters() if value.dim() > 1], "weight_decay": setting[1]}
    ]
    optimizer = torch.optim.AdamW([*groups, {"params": biases, "weight_decay": 0.0}], lr=setting[0])
    best = (-1.0, 0, {})
    for step in range(1, steps + 1):
        optimizer.zero_grad(set_to_none=True)
        objective().backward()
        optimizer.step()
        if step % 25 == 0:
            best = max(best, (judge(), -step, parts.state_dict()), key=lambda found: found[:2])
            if best[1] == -step:
                best = (*best[:2], deepcopy(best[2]))
            elif step + best[1] >= 100:
                break
    parts.load_state_dict(best[2])
    return -best[1]


def stream(rows: data.MultiTaskDataset, size: int, seed: int) -> Iterator[data.Batch]:
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield from rows.batches(size, generator=generator)


def entropy(labels: Tensor) -> float:
    """Loss of the best constant."""
    rate = labels.mean().item()
    return -(rate * np.log(rate) + (1 - rate) * np.log(1 - rate))


def begin(model: SharedBottom, **rates: float) -> None:
    """Let towers start at base rates."""
    for name, rate in rates.items():
        nn.init.constant_(model.towers[name].head.bias, np.log(rate / (1 - rate)))


def rates_of(rows: data.MultiTaskDataset) -> dict[str, float]:
    return {name: rows.labels[name].mean().item() for name in ("click", "purchase")}


def loss_of(model: nn.Module, batch: data.Batch, name: str) -> Tensor:
    return bce(model(batch.numeric, batch.categorical)[name], batch.labels[name])


def judge_of(model: nn.Module, rows: data.MultiTaskDataset, name: str = "purchase") -> Callable[[], float]:
    return lambda: auc(rows.labels[name], predict(model, rows)[name])


def calibration(truth: np.ndarray, p: np.ndarray) -> float:
    """Mean gap of ten bins of equal count, by the true probabilities: its floor is 0."""
    bins = np.array_split(np.argsort(p, kind="stable"), 10)
    return float(np.mean([abs(truth[rows].mean() - p[rows].mean()) for rows in bins]))


@cache
def case(seed: int, world: str = "hidden") -> tuple[data.Splits, data.MultiTaskDataset]:
    """A shop, and its training rows whose purchase is known. In the world "observed" its clicks are drawn anew, from a
    click model's own probabilities, and its purchases after them, from the truth."""
    shop = shop_of(seed, 0.8)
    known = shop.train.masks["purchase"].nonzero().squeeze(-1)
    if world == "hidden":
        return shop, shop.train.select(("click", "purchase")).take(known)
    model, rng = click_model(seed), np.random.default_rng(seed)
    for name in ("train", "valid", "test"):
        part, given = getattr(shop, name), shop.frames[name]["p_purchase_given_click"].to_numpy()
        p = predict(model, part)["click"].double().numpy()
        shop.frames[name] = shop.frames[name].assign(p_click=p, p_purchase=p * given)
        click = rng.random(len(p)) < p
        drawn = {"click": click, "purchase": click & (rng.random(len(p)) < given)}
        labels = {task: torch.from_numpy(found.astype(np.float32)) for task, found in drawn.items()}
        setattr(shop, name, replace(part.select(("click", "purchase")), labels=labels, masks={}))
    return shop, shop.train.take(known)


@cache
def click_model(seed: int, world: str = "hidden") -> SharedBottom:
    shop, rows = case(seed, world)
    torch.manual_seed(seed)
    model, batches = SharedBottom(shop.schema, [CLICK], 4), stream(rows, 512, seed)
    train(
        model,
        lambda: loss_of(model, next(batches), "click"),
        judge_of(model, shop.valid, "click"),
        (3e-3, 1.0),
    )
    return model


# Part "labels"
@cache
def labelled(seed: int, budget: int) -> data.MultiTaskDataset:
    """Rows drawn at random, again until one of them is a purchase."""
    rows, again = case(seed)[1], 0
    while True:
        drawn = data.hide_labels(rows, "purchase", budget, seed=seed + 1000 * again)
        drawn, again = drawn.take(drawn.masks["purchase"].nonzero().squeeze(-1)), again + 1
        if drawn.labels["purchase"].any():
            return drawn


class Reconstruction(nn.Module):
    """Name the replaced 30 % of the cells from Z of the corrupted row: the mean over columns of squared errors and
    cross-entropies."""

    def __init__(self, model: SharedBottom) -> None:
        super().__init__()
        self.model = model
        self.widths = [len(model.schema.numeric), *model.schema.categorical.values()]
        self.head = nn.Linear(model.settings["hidden"][-1], sum(self.widths))

    def forward(self, numeric: Tensor, categorical: Tensor) -> Tensor:
        *rows, numbers, codes = rare.corrupt(numeric, categorical, 0.3)
        said, *logits = self.head(self.model.represent(*rows)).split(self.widths, dim=1)
        losses = [((said - numeric) ** 2)[numbers].mean()]
        for column, (asked, hit) in enumerate(zip(logits, codes.T, strict=True)):
            losses.append(cross_entropy(asked[hit], categorical[hit, column]))
        return torch.stack(losses).nan_to_num().mean()  # a small batch may leave a column as it is


def auxiliary(name: str, model: SharedBottom) -> nn.Module:
    return {"reconstruction": Reconstruction, "contrast": rare.Contrast}[name](model)


@cache
def trained_first(name: str, seed: int) -> SharedBottom:
    rows = case(seed)[0].train
    torch.manual_seed(seed)
    model, batches = SharedBottom(case(seed)[0].schema, (CLICK, PURCHASE), 4), stream(rows, 256, seed)
    task = auxiliary(name, model)
    optimizer = torch.optim.AdamW(task.parameters(), lr=3e-3)
    for _ in range(300):
        batch = next(batches)
        optimizer.zero_grad()
        task(batch.numeric, batch.categorical).backward()
        optimizer.step()
    return model


def self_labelled(rows: data.MultiTaskDataset, p: Tensor) -> data.MultiTaskDataset:
    """The surest thousandth as purchases, the lower half as none."""
    order = p.argsort(descending=True)
    chosen = torch.cat([order[: len(p) // 1000], order[len(p) // 2 :]])
    made = (torch.arange(len(chosen)) < len(p) // 1000).float()
    return replace(rows.select(["purchase"]).take(chosen), labels={"purchase": made}, masks={})


def few_labels(name: str, seed: int, budget: str, setting: tuple) -> tuple[Answer, int]:
    (shop, _), few, own = case(seed), labelled(seed, int(budget)), setting[2]
    torch.manual_seed(seed)
    layers, parts, other = STRAIGHT if name == "logistic regression" else NETWORK, None, None
    model = SharedBottom(shop.schema, (CLICK, PURCHASE), **layers)
    if name.endswith("first"):
        model = deepcopy(trained_first(name.split()[0], seed))
    everything = stream(shop.train, 256, seed)
    if name in ("reconstruction", "contrast"):
        parts, unit = auxiliary(name, model), np.log(256) if name == "contrast" else 2.4
        other = lambda batch: parts(batch.numeric, batch.categorical) / unit  # noqa: E731
    elif name in ("click", "self-training"):
        rows, task = shop.train, "click"
        if name == "self-training":
            teacher, _ = few_labels("alone", seed, budget, (*setting[:2], 0.0))
            rows, task = self_labelled(rows, teacher(rows)), "purchase"
        everything, unit = stream(rows, 256, seed), entropy(rows.labels[task])
        other = lambda batch: loss_of(model, batch, task) / unit  # noqa: E731
    begin(model, **rates_of(few) | {"click": rates_of(shop.train)["click"]})
    batches, scale = stream(few, int(np.clip(len(few) // 8, 64, 256)), seed), entropy(few.labels["purchase"])

    def objective() -> Tensor:
        loss = loss_of(model, next(batches), "purchase") / scale
        return loss if other is None else loss + own * other(next(everything))

    step = train(parts or model, objective, judge_of(model, shop.valid), setting, steps=200)
    return lambda part: predict(model, part)["purchase"], step


# Part "treatments"
@cache
def made_rows(name: str, seed: int) -> data.MultiTaskDataset:
    """Purchases that never happened, as many as there are distinct ones times 30."""
    shop, rows = case(seed)
    bought = rows.take((rows.labels["purchase"] == 1).nonzero().squeeze(-1))
    torch.manual_seed(seed)
    n = 30 * len(bought)
    if name == "GAN":
        maker = rare.RowGAN(shop.schema)
        maker.train_on(rows, "purchase", steps=300)
        numeric, categorical = maker.sample(n)
    else:
        near = torch.cdist(bought.numeric, bought.numeric).topk(6, largest=False).indices[:, 1:]
        first = torch.arange(n) % len(bought)
        second, share = near[first, torch.randint(5, (n,))], torch.rand(n, 1)
        numeric = torch.lerp(bought.numeric[first], bought.numeric[second], share)
        categorical = torch.where(share < 0.5, bought.categorical[first], bought.categorical[second])
    labels = dict.fromkeys(("click", "purchase"), torch.ones(n))
    return replace(rows, numeric=numeric, categorical=categorical, labels=labels, masks={})


def resampled(name: str, seed: int, own: float, share: float) -> data.MultiTaskDataset:
    """Training rows after down-sampling, or with the purchases ``own`` times as many, a share of the new ones made."""
    rows = case(seed)[1]
    yes, no = ((rows.labels["purchase"] == value).nonzero().squeeze(-1) for value in (1, 0))
    rng = torch.Generator().manual_seed(seed)
    if name == "down-sampling":
        kept = torch.randperm(len(no), generator=rng)[: round(own * len(no))]
        return rows.take(torch.cat([yes, no[kept]]))
    extra = round((own - 1) * len(yes))
    made = round(share * extra)
    copies = yes[torch.arange(extra - made) % len(yes)]
    drawn, parts = rows.take(torch.cat([yes, no, copies])), []
    if made:
        pool = made_rows(name, seed)
        parts = [pool.take(torch.arange(made) % len(pool))]
    return joined([drawn, *parts])


def joined(parts: list[data.MultiTaskDataset]) -> data.MultiTaskDataset:
    labels = {task: torch.cat([part.labels[task] for part in parts]) for task in ("click", "purchase")}
    cells = {name: torch.cat([getattr(part, name) for part in parts]) for name in ("numeric", "categorical")}
    return replace(parts[0], labels=labels, masks={}, **cells)


def treated(name: str, seed: int, budget: str, setting: tuple) -> tuple[Answer, int, Answer]:
    (shop, rows), own = case(seed), setting[2]
    rate = rows.labels["purchase"].mean().item()
    torch.manual_seed(seed)
    model = SharedBottom(shop.schema, [PURCHASE], 4)
    share = {"over-sampling": 0.0, "SMOTE": 1.0, "GAN": 1.0}.get(name, 0.0)
    if budget.startswith("share"):
        share = float(budget.split()[1])
    if name in ("down-sampling", "over-sampling", "SMOTE", "GAN"):
        rows = resampled(name, seed, own, share)
    batches = stream(rows, min(512, len(rows) // 8), seed)

    def objective() -> Tensor:
        batch = next(batches)
        logits, labels = model(batch.numeric, batch.categorical)["purchase"], batch.labels["purchase"]
        if name == "focal loss":
            return rare.focal_loss(logits, labels, own)
        if name == "logit adjustment":
            logits = rare.adjusted_logits(logits, rate, own)
        return bce(logits, labels, pos_weight=torch.tensor(own if name == "class weight" else 1.0))

    def raw(part: data.MultiTaskDataset) -> Tensor:
        return predict(model, part)["purchase"]

    def corrected(part: data.MultiTaskDataset) -> Tensor:
        q = raw(part)
        if name == "focal loss":
            return rare.focal_probability(q, own)
        if name == "logit adjustment":
            return rare.adjusted_logits(q.double().logit(), rate, own).sigmoid()
        factor = own if name == "down-sampling" else 1 / max(own, 1)
        return torch.from_numpy(correct_downsampling(q.double(), factor))

    return corrected, train(model, objective, judge_of(model, shop.valid), setting), raw


# Part "attention"
@cache
def with_history(seed: int) -> data.Splits:
    """The shop's parts with the last clicks of each row's user, as ``HistoryBottom`` reads them."""
    shop = deepcopy(case(seed)[0])
    frame = pd.concat(shop.frames.values())
    past, subs = data.history_sequences(frame, HISTORY), shop.encoder.categories_["sub_category"]
    of_item = frame.drop_duplicates("item_id").set_index("item_id")["sub_category"]
    code = np.zeros(frame["item_id"].max() + 2, np.int64)
    code[of_item.index + 1] = subs.get_indexer(of_item) + 1
    events = torch.from_numpy(code[past["item"]])
    times = np.concatenate([np.log1p(past["hours"]) / 3, past["bought"]], axis=1).astype(np.float32)
    ends = np.cumsum([len(part) for part in shop.frames.values()])
    for name, end in zip(shop.frames, ends, strict=True):
        part, rows = getattr(shop, name), slice(end - len(shop.frames[name]), end)
        numeric = torch.cat([part.numeric, torch.from_numpy(times[rows])], 1)
        categorical = torch.cat([part.categorical, events[rows]], 1)
        setattr(
            shop, name, replace(part.select(("click", "purchase")), numeric=numeric, categorical=categorical)
        )
    return shop


class MeanHistory(rare.HistoryBottom):
    """The control: the same events, without attention."""

    def attention(self, numeric: Tensor, categorical: Tensor) -> tuple[Tensor, Tensor]:
        there = (categorical[:, -self.length :] > 0).float()
        return there / there.sum(1, keepdim=True).clamp(min=1), super().attention(numeric, categorical)[1]


def attentive(name: str, seed: int, budget: str, setting: tuple) -> tuple[Answer, int]:
    history = name in ("attention", "mean of history")
    shop = with_history(seed) if history else case(seed)[0]
    rows = shop.train.select(("click", "purchase"))
    rows = rows.take(rows.masks["purchase"].nonzero().squeeze(-1))
    torch.manual_seed(seed)
    kind = {"gates": rare.GatedBottom, "shared bottom": SharedBottom, "mean of history": MeanHistory}
    kind = kind.get(name, rare.HistoryBottom)
    model, batches = kind(shop.schema, (CLICK, PURCHASE), embedding_dim=4), stream(rows, 512, seed)
    begin(model, **rates_of(rows))
    scale = {task: entropy(rows.labels[task]) for task in ("click", "purchase")}

    def objective() -> Tensor:
        batch = next(batches)
        logits = model(batch.numeric, batch.categorical)
        return sum(bce(logits[task], batch.labels[task]) / scale[task] for task in scale)

    valid = shop.valid.select(("click", "purchase"))
    return lambda part: predict(model, part)["purchase"], train(
        model, objective, judge_of(model, valid), setting
    )


# Part "selection"
class Selective(SharedBottom):
    """Click, purchase given click, and what the latter's error would be where nobody clicked."""

    def __init__(self, schema: data.Schema) -> None:
        super().__init__(schema, (CLICK, PURCHASE, data.Task("imputed")), 4)

    def chances(self, part: data.MultiTaskDataset) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            found = self(part.numeric, part.categorical)
        return found["click"].sigmoid(), found["purchase"].sigmoid()


def selection_loss(
    name: str, logits: dict[str, Tensor], labels: dict[str, Tensor], units: dict, own: float
) -> Tensor:
    click, bought = labels["click"], labels["purchase"]
    a, b = logits["click"], logits["purchase"]
    loss, error = bce(a, click) / units["click"], bce(b, bought, reduction="none") / units["given"]
    propensity = a.sigmoid().detach()
    if name == "naive":
        return loss + (click * error).sum() / click.sum().clamp(min=1)
    if name == "ESMM" or name.startswith("ESCM"):
        both = -torch.logsumexp(torch.stack([-a, -b, -(a + b)]), dim=0)
        loss = loss + bce(both, bought) / units["purchase"]
    if name == "ESMM":
        return loss
    factor = own if name.startswith("ESCM") else 1.0
    if name.endswith("IPS"):
        return loss + factor * rare.doubly_robust(error, click, propensity)
    pseudo = logits["imputed"].sigmoid()
    imputed = bce(b, pseudo.detach(), reduction="none") / units["given"]
    guessed = bce(b.detach(), pseudo, reduction="none") / units["given"]
    imputation = rare.doubly_robust((error.detach() - guessed) ** 2, click, propensity)
    return loss + factor * (rare.doubly_robust(error, click, propensity, imputed) + imputation)


def selected(name: str, seed: int, world: str, setting: tuple) -> tuple[Selective, int]:
    shop, rows = case(seed, world)
    torch.manual_seed(seed)
    model, batches = Selective(shop.schema), stream(rows, 512, seed)
    units = {task: entropy(rows.labels[task]) for task in ("click", "purchase")}
    given = rows.labels["purchase"][rows.labels["click"] == 1]
    units["given"] = entropy(given)
    begin(model, click=rates_of(rows)["click"], purchase=given.mean().item(), imputed=given.mean().item())

    def objective() -> Tensor:
        batch = next(batches)
        return selection_loss(name, model(batch.numeric, batch.categorical), batch.labels, units, setting[2])

    def judge() -> float:
        click, given = model.chances(shop.valid)
        return auc(shop.valid.labels["purchase"], click * given)

    return model, train(model, objective, judge, setting)


def estimates(seed: int) -> Iterator[dict]:
    """Mean of p(purchase given click) over all training rows, from the purchases of clicked ones, and its truth."""
    for world in ("hidden", "observed"):
        yield from estimates_in(world, seed)


def estimates_in(world: str, seed: int) -> Iterator[dict]:
    shop, rows = case(seed, world)
    frame = shop.frames["train"]
    keep = case(seed)[0].train.masks["purchase"].numpy()
    click, bought = rows.labels["click"].double(), rows.labels["purchase"].double()
    learned = predict(click_model(seed, world), rows)["click"].double()
    true = torch.from_numpy(frame["p_click"].to_numpy()[keep])
    guess = selected("naive", seed, world, (3e-3, 10.0, 0.0))[0].chances(rows)[1].double()
    means = {"naive": {0.0: (click * bought).sum() / click.sum()}}
    for name, propensity, imputed in (
        ("IPS", learned, 0.0),
        ("DR", learned, guess),
        ("IPS, true propensity", true, 0.0),
    ):
        means[name] = {clip: rare.doubly_robust(bought, click, propensity, imputed, clip) for clip in CLIPS}
    truth = frame["p_purchase_given_click"].to_numpy()[keep].mean()
    for name, found in means.items():
        for clip, value in found.items():
            yield {"world": world, "contestant": name, "own": clip, "mean": value.item(), "true_mean": truth}


# All parts
def floors(seed: int) -> Iterator[dict]:
    shop = case(seed)[0]
    frame, clicks = shop.frames["test"], predict(click_model(seed), shop.test)["click"]
    said = {"popularity": frame["item_past_ctr"], "click model": clicks, "truth": frame["p_purchase"]}
    for name, scores in said.items():
        yield {"contestant": name, "auc": expected_auc(frame["p_purchase"], scores)}
    truth = frame["p_purchase"].to_numpy()
    for name, p in (
        ("base rate", np.full(len(truth), rates_of(case(seed)[1])["purchase"])),
        ("truth", truth),
    ):
        yield {"contestant": f"{name}, loss", "log_loss": expected_log_loss(truth, p)}


def measured(answer: Answer, shop: data.Splits, raw: Answer | None = None) -> dict[str, float]:
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


def run_one(part: str, world: str, name: str, budget: str, setting: tuple, seed: int) -> dict:
    if part == "selection":
        (shop, _), (model, step) = case(seed, world), selected(name, seed, world, setting)
        given = {key: shop.frames[key]["p_purchase_given_click"].to_numpy() for key in ("valid", "test")}
        (_, valid), (click, test) = model.chances(shop.valid), model.chances(shop.test)
        figures = {
            "valid": -expected_log_loss(given["valid"], valid),
            "auc": expected_auc(given["test"], test),
            "log_loss": expected_log_loss(given["test"], test),
            "calibration": calibration(given["test"], test.double().numpy()),
            "mean": test.mean().item(),
            "true_mean": given["test"].mean(),
            "product_auc": expected_auc(shop.frames["test"]["p_purchase"], click * test),
        }
        return figures | {"step": step}
    how = {"labels": few_labels, "treatments": treated, "attention": attentive}[part]
    answer, step, *raw = how(name, seed, budget, setting)
    shop = with_history(seed) if name in ("attention", "mean of history") else case(seed)[0]
    return measured(answer, shop, *raw) | {"step": step}


def grid(ranges: tuple) -> Iterator[tuple]:
    """Thirteen points spread evenly over the logarithms of the ranges, for all contestants the same."""
    for k in range(13):
        places = [(k * step % 13 + 0.5) / 13 for step in (1, 5, 3)]
        pairs = zip(ranges, places, strict=True)
        yield tuple(float(f"{low * (high / low) ** at:.3g}") if high else 0.0 for (low, high), at in pairs)


def chosen(part: str, world: str, name: str, budget: str, table: pd.DataFrame) -> tuple:
    """The setting that the tuning shops chose."""
    asked = {"part": part, "world": world, "contestant": name, "budget": budget}
    rows = table[table["shop"].isin(TUNING)].merge(pd.DataFrame([asked]))
    return rows.groupby(SETTING)["valid"].mean().idxmax()


def jobs(part: str, seed: int, table: pd.DataFrame) -> Iterator[tuple]:
    """(contestant, budget, setting) of each run of a part on one shop."""
    kind, world, budget, contestants = PARTS[part]
    if seed in TUNING:
        yield from ((name, budget, at) for name, ranges in contestants.items() for at in grid(ranges))
        return
    found = {name: chosen(kind, world, name, budget, table) for name in contestants}
    yield from ((name, budget, at) for name, at in found.items())
    if kind == "labels":
        yield "self-training", budget, (*found["alone"][:2], 0.3)
    if kind == "treatments":
        yield from (("GAN", f"share {share}", found["over-sampling"]) for share in SHARES)


def run(part: str, seed: int, path: Path) -> None:
    table = pd.read_csv(path, comment="#", dtype={"budget": str})
    done = set(table[table["shop"] == seed][[*KEY, *SETTING]].itertuples(index=False, name=None))
    kind, world, *_ = PARTS[part]
    for name, budget, setting in jobs(part, seed, table):
        key = dict(zip([*KEY, *SETTING], (kind, world, name, budget, *setting), strict=True))
        if tuple(key.values()) not in done:
            begun = perf_counter()
            figures = run_one(kind, world, name, budget, setting, seed)
            append(path, [key | figures | {"seconds": perf_counter() - begun}], shop=seed)
    other = {"selection observed": "estimate", "treatments": "floor"}.get(part)
    if other and seed not in TUNING and other not in set(table["part"][table["shop"] == seed]):
        same = {"part": other, "world": "hidden", "budget": "all"} | dict.fromkeys(SETTING, 0.0)
        found = estimates(seed) if other == "estimate" else floors(seed)
        append(path, (same | row for row in found), shop=seed)
    print(f"{part}, shop {seed}", flush=True)


def main() -> None:
    asked = command_line(__doc__, shop=-1)
    asked.add_argument("--part", choices=PARTS)
    asked = asked.parse_args()
    torch.set_num_threads(1)
    path = asked.out / "08_rare.csv"
    begin_table(path, "nb08_rare.py", COLUMNS)
    shops = (*TUNING, *REPORTED) if asked.shop < 0 else (asked.shop,)
    for seed, part in product(shops, [asked.part] if asked.part else PARTS):
        run(part, seed, path)


if __name__ == "__main__":
    main()
