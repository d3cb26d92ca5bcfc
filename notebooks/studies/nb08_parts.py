"""How the parts of ``nb08_rare.py`` train: few labels, treatments of a rare label, attention, selection.

A contestant is a function of its name, the shop's seed, a budget (or a world) and a setting of learning rate, decay and
its own knob; it returns what answers, and the step that was best.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import replace
from functools import cache, partial
from itertools import islice, product

import numpy as np
import pandas as pd
import torch
from study import prepared, small_shop
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits as bce
from torch.nn.functional import cross_entropy

from mtl_helpers import data
from mtl_helpers.metrics import auc, correct_downsampling, expected_auc, expected_log_loss
from mtl_helpers.models import rare
from mtl_helpers.models.sharing import SharedBottom
from mtl_helpers.training import predict

CLICK, PURCHASE = data.SHOP_TASKS[:2]
BOTH, HISTORY, CLIPS = ("click", "purchase"), 10, (0.01, 0.02, 0.05, 0.1, 0.2)
NETWORK, STRAIGHT = {"embedding_dim": 4}, {"embedding_dim": 1, "hidden": (), "tower": ()}
Answer = Callable[[data.MultiTaskDataset], Tensor]  # rows -> probabilities


def train(
    model: nn.Module, batches: Iterator[data.Batch], loss: Callable[[data.Batch], Tensor], judge: Callable[[], float],
    setting: tuple, steps: int = 300,
) -> int:  # fmt: skip
    """AdamW, judged every 25 steps, until four of them brought nothing; the best parameters are put back. Returns their
    step."""
    lr, weight_decay, *_ = setting
    biases, others = ([p for p in model.parameters() if (p.dim() == 1) == bias] for bias in (True, False))
    groups = {"params": others, "weight_decay": weight_decay}, {"params": biases, "weight_decay": 0.0}
    optimizer, best = torch.optim.AdamW(groups, lr=lr), (-1.0, 0, {})
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        loss(next(batches)).backward()
        optimizer.step()
        if step % 25:
            continue
        if (score := judge()) > best[0]:
            best = score, step, deepcopy(model.state_dict())
        elif step >= best[1] + 100:
            break
    model.load_state_dict(best[2])
    return best[1]


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
    return {name: rows.labels[name].mean().item() for name in BOTH}


def loss_of(model: nn.Module, name: str, batch: data.Batch) -> Tensor:
    return bce(model(batch.numeric, batch.categorical)[name], batch.labels[name])


def judge_of(model: nn.Module, rows: data.MultiTaskDataset, name: str = "purchase") -> Callable[[], float]:
    return lambda: auc(rows.labels[name], predict(model, rows)[name])


@cache
def case(seed: int, world: str = "hidden") -> tuple[data.Splits, data.MultiTaskDataset]:
    """A shop, and its training rows whose purchase is known. In the world "observed" its clicks are drawn anew, from a
    click model's own probabilities, and its purchases after them, from the truth."""
    shop = prepared(small_shop(seed)[1])
    known = shop.train.masks["purchase"].nonzero().squeeze(-1)
    if world == "hidden":
        return shop, shop.train.select(BOTH).take(known)
    model, rng = click_model(seed), np.random.default_rng(seed)
    for name in ("train", "valid", "test"):
        part, given = getattr(shop, name), shop.frames[name]["p_purchase_given_click"].to_numpy()
        p = predict(model, part)["click"].double().numpy()
        shop.frames[name] = shop.frames[name].assign(p_click=p, p_purchase=p * given)
        click = rng.random(len(p)) < p
        bought = click & (rng.random(len(p)) < given)
        labels = {"click": torch.from_numpy(click).float(), "purchase": torch.from_numpy(bought).float()}
        setattr(shop, name, replace(part.select(BOTH), labels=labels, masks={}))
    return shop, shop.train.take(known)


@cache
def click_model(seed: int, world: str = "hidden") -> SharedBottom:
    shop, rows = case(seed, world)
    torch.manual_seed(seed)
    model = SharedBottom(shop.schema, [CLICK], 4)
    loss, judge = partial(loss_of, model, "click"), judge_of(model, shop.valid, "click")
    train(model, stream(rows, 512, seed), loss, judge, (3e-3, 1.0))
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


AUXILIARY = {
    "reconstruction": (Reconstruction, 2.4),
    "contrast": (rare.Contrast, np.log(256)),
}  # and its unit


@cache
def trained_first(name: str, seed: int) -> SharedBottom:
    shop, _ = case(seed)
    torch.manual_seed(seed)
    model = SharedBottom(shop.schema, (CLICK, PURCHASE), 4)
    task, batches = AUXILIARY[name][0](model), stream(shop.train, 256, seed)
    optimizer = torch.optim.AdamW(task.parameters(), lr=3e-3)
    for batch in islice(batches, 300):
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
    model = SharedBottom(
        shop.schema, (CLICK, PURCHASE), **(STRAIGHT if name == "logistic regression" else NETWORK)
    )
    if name.endswith("first"):
        model = deepcopy(trained_first(name.split()[0], seed))
    whole, everything, helper = model, stream(shop.train, 256, seed), None
    if name in AUXILIARY:
        kind, unit = AUXILIARY[name]
        whole = kind(model)
        helper = lambda batch: whole(batch.numeric, batch.categorical)  # noqa: E731
    elif name in ("click", "self-training"):
        rows, task = shop.train, "click"
        if name == "self-training":
            teacher, _ = few_labels("alone", seed, budget, (*setting[:2], 0.0))
            rows, task = self_labelled(rows, teacher(rows)), "purchase"
        everything, unit = stream(rows, 256, seed), entropy(rows.labels[task])
        helper = partial(loss_of, model, task)
    begin(model, **rates_of(few) | {"click": rates_of(shop.train)["click"]})
    batches, scale = stream(few, int(np.clip(len(few) // 8, 64, 256)), seed), entropy(few.labels["purchase"])

    def loss(batch: data.Batch) -> Tensor:
        main = loss_of(model, "purchase", batch) / scale
        return main + own * (helper(next(everything)) / unit) if helper else main

    step = train(whole, batches, loss, judge_of(model, shop.valid), setting, steps=200)
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
    labels = dict.fromkeys(BOTH, torch.ones(n))
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
    drawn = rows.take(torch.cat([yes, no, copies]))
    if not made:
        return drawn
    pool = made_rows(name, seed)
    return joined(drawn, pool.take(torch.arange(made) % len(pool)))


def joined(a: data.MultiTaskDataset, b: data.MultiTaskDataset) -> data.MultiTaskDataset:
    labels = {task: torch.cat([a.labels[task], b.labels[task]]) for task in BOTH}
    numeric, codes = torch.cat([a.numeric, b.numeric]), torch.cat([a.categorical, b.categorical])
    return replace(a, labels=labels, masks={}, numeric=numeric, categorical=codes)


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

    def loss(batch: data.Batch) -> Tensor:
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

    batches = stream(rows, min(512, len(rows) // 8), seed)
    return corrected, train(model, batches, loss, judge_of(model, shop.valid), setting), raw


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
    times = torch.from_numpy(np.concatenate([np.log1p(past["hours"]) / 3, past["bought"]], axis=1)).float()
    sizes = [len(part) for part in shop.frames.values()]
    for name, own, codes in zip(shop.frames, times.split(sizes), events.split(sizes), strict=True):
        part = getattr(shop, name).select(BOTH)
        numeric, categorical = torch.cat([part.numeric, own], 1), torch.cat([part.categorical, codes], 1)
        setattr(shop, name, replace(part, numeric=numeric, categorical=categorical))
    return shop


class MeanHistory(rare.HistoryBottom):
    """The control: the same events, without attention."""

    def attention(self, numeric: Tensor, categorical: Tensor) -> tuple[Tensor, Tensor]:
        there = (categorical[:, -self.length :] > 0).float()
        return there / there.sum(1, keepdim=True).clamp(min=1), super().attention(numeric, categorical)[1]


def attentive(name: str, seed: int, budget: str, setting: tuple) -> tuple[Answer, int]:
    shop = with_history(seed) if name in ("attention", "mean of history") else case(seed)[0]
    rows = shop.train.select(BOTH)
    rows = rows.take(rows.masks["purchase"].nonzero().squeeze(-1))
    torch.manual_seed(seed)
    kinds = {"gates": rare.GatedBottom, "mean of history": MeanHistory, "attention": rare.HistoryBottom}
    model = kinds.get(name, SharedBottom)(shop.schema, (CLICK, PURCHASE), embedding_dim=4)
    begin(model, **rates_of(rows))
    scale = {task: entropy(rows.labels[task]) for task in BOTH}

    def loss(batch: data.Batch) -> Tensor:
        logits = model(batch.numeric, batch.categorical)
        return sum(bce(logits[task], batch.labels[task]) / scale[task] for task in scale)

    judge = judge_of(model, shop.valid.select(BOTH))
    step = train(model, stream(rows, 512, seed), loss, judge, setting)
    return lambda part: predict(model, part)["purchase"], step


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
    model = Selective(shop.schema)
    given = rows.labels["purchase"][rows.labels["click"] == 1]
    units = {task: entropy(rows.labels[task]) for task in BOTH} | {"given": entropy(given)}
    begin(model, click=rates_of(rows)["click"], purchase=given.mean().item(), imputed=given.mean().item())

    def loss(batch: data.Batch) -> Tensor:
        return selection_loss(name, model(batch.numeric, batch.categorical), batch.labels, units, setting[2])

    def judge() -> float:
        click, given = model.chances(shop.valid)
        return auc(shop.valid.labels["purchase"], click * given)

    return model, train(model, stream(rows, 512, seed), loss, judge, setting)


def estimates(seed: int) -> Iterator[dict]:
    """Mean of p(purchase given click) over all training rows, from the purchases of clicked ones, and its truth."""
    keep = case(seed)[0].train.masks["purchase"].numpy()
    for world in ("hidden", "observed"):
        shop, rows = case(seed, world)
        frame = shop.frames["train"][keep]
        click, bought = rows.labels["click"].double(), rows.labels["purchase"].double()
        learned = predict(click_model(seed, world), rows)["click"].double()
        true = torch.from_numpy(frame["p_click"].to_numpy())
        guess = selected("naive", seed, world, (3e-3, 10.0, 0.0))[0].chances(rows)[1].double()
        means = {("naive", 0.0): (click * bought).sum() / click.sum()}
        given = {"IPS": (learned, 0.0), "DR": (learned, guess), "IPS, true propensity": (true, 0.0)}
        for (name, by), clip in product(given.items(), CLIPS):
            means[name, clip] = rare.doubly_robust(bought, click, *by, clip)
        same = {"world": world, "true_mean": frame["p_purchase_given_click"].to_numpy().mean()}
        for (name, clip), value in means.items():
            yield same | {"contestant": name, "own": clip, "mean": value.item()}


def floors(seed: int) -> Iterator[dict]:
    shop = case(seed)[0]
    frame, clicks = shop.frames["test"], predict(click_model(seed), shop.test)["click"]
    said = {"popularity": frame["item_past_ctr"], "click model": clicks, "truth": frame["p_purchase"]}
    for name, scores in said.items():
        yield {"contestant": name, "auc": expected_auc(frame["p_purchase"], scores)}
    truth, rate = frame["p_purchase"].to_numpy(), rates_of(case(seed)[1])["purchase"]
    for name, p in {"base rate": np.full(len(truth), rate), "truth": truth}.items():
        yield {"contestant": f"{name}, loss", "log_loss": expected_log_loss(truth, p)}
