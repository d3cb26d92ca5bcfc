"""The tables of notebook 05: every comparison of the e-commerce case over whole new shops.

    python notebooks/studies/nb05_tables.py [--shops 8] [--only tasks funnel rare position business]
                                                [--out notebooks/results]

Writes ``05_<part>.csv``, which names this command in its first line and has a row for each shop, contestant, measure.
A shop is ``ShopConfig(seed=s)`` for s = 1, 2, …: other users, tastes and items, so intervals over shops cover data and
initial weights. Within a shop all contestants see the same rows and number of epochs; validation chooses the epoch;
test rows are scored once. About two minutes a shop on two busy cores.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from study import command_line, store
from torch import Tensor, nn

from mtl_helpers.data import Batch, MultiTaskDataset, ShopConfig, Task, make_world, simulate
from mtl_helpers.losses import task_losses
from mtl_helpers.metrics import auc, calibration_error, correct_downsampling, log_loss
from mtl_helpers.models import case_data, case_frames, case_model, item_table, score_candidates, true_values
from mtl_helpers.models.fusion import LearnedFusion
from mtl_helpers.ranking import catalogue_coverage, expected_revenue, exposure, gini, recall_at_k, top_k
from mtl_helpers.sweep import simplex_grid, sweep
from mtl_helpers.training import evaluate, fit, predict

# Chosen on the shipped shop (seed 0), which is not among the shops compared.
WEIGHTS = {"click": 1.0, "purchase": 1.0, "next_category": 0.03, "next_item": 0.01}
# about 1 / loss of a constant
MONITOR = {"click": 3.8, "purchase": 32.0, "next_category": 0.5, "next_item": 0.19}
TRAINING = {"epochs": 20, "lr": 3e-3, "weight_decay": 1.0, "patience": 3, "progress": False}
SWEEP = {"epochs": 4, "lr": 5e-3, "weight_decay": 0.1, "keep": "best", "progress": False}
K, USERS = 10, 200
Row = tuple[str, str, float]


class Case:
    """One shop, prepared."""

    def __init__(self, seed: int) -> None:
        shop = simulate(ShopConfig(seed=seed))
        self.seed, self.world = seed, make_world(shop.config)
        self.frames = case_frames(shop)
        self.data = case_data(self.frames, shop.config.n_items)
        self.items = item_table(shop, self.frames["train"])
        self.rows = self.frames["test"].drop_duplicates("user_id").head(USERS)
        self.truth = true_values(self.world, self.rows, self.items)
        sensitive = self.world.price_sensitivity[self.rows["user_id"]]
        new = self.rows["user_past_clicks"].to_numpy() == 0
        careful = sensitive >= np.quantile(sensitive, 2 / 3)
        self.segments = {"new": new, "known": ~new, "price-sensitive": careful, "other": ~careful}

    def model(self, **settings) -> nn.Module:
        torch.manual_seed(self.seed)
        return case_model(self.data, self.items, **settings)

    def fit(self, model: nn.Module, **own) -> nn.Module:
        fit(model, self.data.train, self.data.valid, seed=self.seed, **TRAINING, **own)
        return model

    def score(self, model: nn.Module) -> dict[str, np.ndarray]:
        """``{signal: (U, I)}`` for the test users."""
        return score_candidates(model, self.data, self.rows, self.items)

    def money(self, scores: np.ndarray) -> dict[str, float]:
        """True expected worth of the top-10 lists per 1,000 impressions, by segment too."""
        lists = top_k(scores, K)
        price, factors = self.items["price"].to_numpy(), np.arange(1, K + 1) ** -0.45
        buys = expected_revenue(lists, self.truth["purchase"], np.ones(len(price)), factors).mean()
        revenue = expected_revenue(lists, self.truth["purchase"], price, factors)
        return {
            "revenue": revenue.mean(),
            **{f"revenue, {name}": revenue[rows].mean() for name, rows in self.segments.items()},
            "purchases": buys,
            "coverage": catalogue_coverage(lists, len(price)),
            "gini": gini(exposure(lists, len(price), factors)),
        }


def recall(logits: np.ndarray, data: MultiTaskDataset) -> float:
    known = data.masks["next_item"].numpy()
    wanted = F.one_hot(data.labels["next_item"][known], logits.shape[1]).numpy()
    return float(recall_at_k(wanted, top_k(logits[known], K)).mean())


def by_hand(model: nn.Module, batches: Callable, loss_of: Callable, score: Callable[[], float]) -> float:
    """Train by a loss that ``fit`` does not have, keep the epoch of the best score; the seconds of an epoch."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.1)
    best, state, seconds, epochs = -1.0, None, 0.0, 12
    for _ in range(epochs):
        start = time.perf_counter()
        for batch in batches():
            loss = loss_of(batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        seconds += time.perf_counter() - start
        if (now := score()) > best:
            best, state = now, copy.deepcopy(model.state_dict())
    model.load_state_dict(state)
    return seconds / epochs


# ------------------------------------------------------------------------------------------------- next items


def sampled_softmax(
    model: nn.Module, batch: Batch, share: Tensor, correct: bool, generator: torch.Generator
) -> Tensor:
    """Loss of next_item over the true item and 50 items drawn by their share q of the clicks.

    With ``correct`` each logit loses log q (Yi et al., RecSys 2019): without it popular items, which are drawn as
    negatives most often, are pushed down.
    """
    wanted = batch.labels["next_item"]
    u, v = model.user_vectors(batch.numeric, batch.categorical), model.item_vectors()
    drawn = torch.multinomial(share, 50, replacement=True, generator=generator)
    bias = model.bias - (share.log() if correct else 0.0)
    true = (u * v[wanted]).sum(-1) + bias[wanted]
    others = u @ v[drawn].T + bias[drawn]
    others = others.masked_fill(drawn[None, :] == wanted[:, None], -1e9)  # a hit is no negative
    return F.cross_entropy(torch.cat([true[:, None], others], 1), torch.zeros(len(wanted), dtype=torch.long))


def train_next(case: Case, kind: str) -> tuple[nn.Module, float]:
    """Train next_item on its labelled rows by one kind of softmax; the best validation recall's model, seconds."""
    task = [task for task in case.data.tasks if task.name == "next_item"]
    model = case.model(tasks=task)
    train = case.data.train.take(case.data.train.masks["next_item"].nonzero().squeeze(-1))
    valid = case.data.valid.select(["next_item"])
    clicks = case.items["clicks"].to_numpy(float) + 0.5
    share = torch.tensor(clicks / clicks.sum(), dtype=torch.float32)
    generator = torch.Generator().manual_seed(case.seed)

    def loss_of(batch: Batch) -> Tensor:
        if kind != "full":
            return sampled_softmax(model, batch, share, kind == "sampled, corrected", generator)
        return task_losses(task, model(batch.numeric, batch.categorical), batch)["next_item"]

    def score() -> float:
        return recall(predict(model, valid)["next_item"].numpy(), valid)

    return model, by_hand(model, partial(train.batches, 256, generator=generator), loss_of, score)


def tasks(case: Case) -> Iterator[Row]:
    """What the three tasks reach: with and without user ids; next items by three losses, popularity, chance."""
    test = case.data.test
    for name, ids in (("counts", False), ("user ids", True)):
        model = case.fit(case.model(user_ids=ids), weights=WEIGHTS, monitor=MONITOR)
        found = evaluate(model, test)
        yield name, "click_auc", found["click"]["auc"]
        yield name, "purchase_auc", found["purchase"]["auc"]
        yield name, "category_accuracy", found["next_category"]["accuracy"]
        yield name, "recall", recall(predict(model, test)["next_item"].numpy(), test)
    known = case.data.train.masks["next_category"]
    common = torch.bincount(case.data.train.labels["next_category"][known]).argmax()
    known = test.masks["next_category"]
    yield "most frequent", "category_accuracy", (test.labels["next_category"][known] == common).float().mean()
    clicks = np.tile(case.items["clicks"].to_numpy(float), (len(test), 1))
    yield "popularity", "recall", recall(clicks, test)
    yield "chance", "recall", K / len(case.items)
    for kind in ("full", "sampled", "sampled, corrected"):
        model, seconds = train_next(case, kind)
        yield f"{kind} softmax", "recall", recall(predict(model, test)["next_item"].numpy(), test)
        yield f"{kind} softmax", "seconds_per_epoch", seconds


# ------------------------------------------------------------------------------------------------- funnel


class EntireSpace(nn.Module):
    """ESMM (Ma et al., SIGIR 2018): click and conversion towers; the purchase logit is that of their product."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.tasks = model, (Task("click"), Task("purchase"))

    def forward(self, numeric: Tensor, categorical: Tensor) -> dict[str, Tensor]:
        logits = self.model(numeric, categorical)
        log_p = F.logsigmoid(logits["click"]) + F.logsigmoid(logits["conversion"])
        return {"click": logits["click"], "purchase": log_p - torch.log1p(-log_p.exp().clamp(max=1 - 1e-6))}


def funnel(case: Case) -> Iterator[Row]:
    """Conversion estimated on clicked rows alone and over the entire space, against the true conversion."""
    data, test = case.data, case.frames["test"]
    args = (test[name].to_numpy() for name in ("user_id", "item_id", "timestamp", "position", "surface"))
    p_click, truth = case.world.probabilities(*args)
    clicked = [part.take(part.labels["click"].nonzero().squeeze(-1)) for part in (data.train, data.valid)]
    alone = case.model(tasks=[Task("purchase")])
    fit(alone, *clicked, seed=case.seed, batch_size=128, **TRAINING | {"epochs": 40})
    click = case.fit(case.model(tasks=[Task("click")]))
    whole = EntireSpace(case.model(tasks=[Task("click"), Task("conversion")]))
    case.fit(whole, monitor={"click": 1.0, "purchase": 1.0})
    with torch.no_grad():
        inner = whole.model(data.test.numeric, data.test.categorical)
    p = predict(click, data.test)["click"].numpy()
    found = {
        "clicks only": (predict(alone, data.test)["purchase"].numpy(), p),
        "ESMM": (inner["conversion"].sigmoid().numpy(), inner["click"].sigmoid().numpy()),
    }
    was_clicked = test["click"].to_numpy() == 1
    labels = test["purchase"].to_numpy()
    for name, (conversion, click_p) in found.items():
        yield name, "ratio", conversion.mean() / truth.mean()
        yield name, "ratio_clicked", conversion[was_clicked].mean() / labels[was_clicked].mean()
        yield name, "rmse", float(np.sqrt(np.mean((conversion - truth) ** 2)))
        yield name, "correlation", np.corrcoef(conversion, truth)[0, 1]
        yield name, "purchase_auc", auc(labels, click_p * conversion)
        yield name, "purchase_ratio", (click_p * conversion).mean() / (p_click * truth).mean()
        yield name, "purchase_loss", log_loss(labels, click_p * conversion)
    yield "truth", "clicked_against_all", truth[was_clicked].mean() / truth.mean()


# ------------------------------------------------------------------------------------------------- rare purchases


def rare(case: Case) -> Iterator[Row]:
    """Five ways to treat a rare label, with the same model, epochs and choice by validation AUC."""
    data, task, rate = case.data, [Task("purchase")], 0.1
    train, valid, test = (part.select(["purchase"]) for part in (data.train, data.valid, data.test))
    y = train.labels["purchase"]
    positive, negative = (y == 1).nonzero().squeeze(-1), (y == 0).nonzero().squeeze(-1)
    generator = torch.Generator().manual_seed(case.seed)
    few = negative[torch.rand(len(negative), generator=generator) < rate]
    weight = torch.tensor(10.0)

    def focal(z: Tensor, y: Tensor) -> Tensor:
        miss = torch.where(y == 1, 1 - z.sigmoid(), z.sigmoid())
        return (miss**2 * F.binary_cross_entropy_with_logits(z, y, reduction="none")).mean()

    plain = F.binary_cross_entropy_with_logits
    plans: dict[str, tuple[Callable, Tensor | None]] = {
        "plain": (plain, None),
        "class weight": (lambda z, y: plain(z, y, pos_weight=weight), None),
        "focal": (focal, None),
        "down-sampled": (plain, torch.cat([positive, few])),
        "over-sampled": (plain, torch.cat([positive.repeat(10), negative])),
    }
    labels = test.labels["purchase"].numpy()
    steps = -(-len(train) // 1024)  # an epoch, for all
    for name, (loss_of, rows) in plans.items():
        model, used = case.model(tasks=task), train if rows is None else train.take(rows)
        order, size = torch.Generator().manual_seed(case.seed), max(len(used) // steps, 1)
        by_hand(
            model,
            partial(used.batches, size, generator=order),
            lambda b: loss_of(model(b.numeric, b.categorical)["purchase"], b.labels["purchase"]),  # noqa: B023
            lambda: evaluate(model, valid)["purchase"]["auc"],  # noqa: B023
        )
        p = predict(model, test)["purchase"].numpy().astype(float)
        found = {name: p}
        if name == "down-sampled":
            found["down-sampled, corrected"] = correct_downsampling(p, rate)
        for label, q in found.items():
            yield label, "auc", auc(labels, q)
            yield label, "calibration_error", calibration_error(labels, q)
            yield label, "ratio", q.mean() / labels.mean()


# ------------------------------------------------------------------------------------------------- position


def fixed_position(data: MultiTaskDataset, place: int, code: int) -> MultiTaskDataset:
    codes = data.categorical.clone()
    codes[:, place] = code
    return replace(data, categorical=codes)


def position(case: Case) -> Iterator[Row]:
    """The effect of the place on the page: counted, learned, true; and what ignoring it costs."""
    data, train, test = case.data, case.frames["train"], case.frames["test"]
    place = list(data.schema.categorical).index("position")
    codes = {int(p): code for code, p in enumerate(data.encoder.categories_["position"], start=1)}
    ctr = train.groupby("position")["click"].mean()
    odds = np.log(ctr / (1 - ctr))
    yield "counted", "effect", odds[5] - odds[1]
    args = [test[name].to_numpy() for name in ("user_id", "item_id", "timestamp")]
    truth, fifth = (case.world.probabilities(*args, p, test["surface"].to_numpy())[0] for p in (1, 5))
    yield "truth", "effect", np.mean(np.log(fifth / (1 - fifth)) - np.log(truth / (1 - truth)))
    top = fixed_position(data.test, place, codes[1])
    for name in ("position known", "position ignored"):
        parts = [data.train, data.valid]
        if name == "position ignored":
            parts = [fixed_position(part, place, codes[1]) for part in parts]
        model = case.model(tasks=[Task("click")])
        fit(model, *parts, seed=case.seed, **TRAINING)
        p = predict(model, top)["click"].numpy().astype(float)
        excess = truth * np.log(truth / p) + (1 - truth) * np.log((1 - truth) / (1 - p))
        yield name, "excess_loss", excess.mean()
        yield name, "correlation", pd.Series(p).corr(pd.Series(truth), method="spearman")
        yield name, "ratio", p.mean() / truth.mean()
        if name == "position known":
            last = predict(model, fixed_position(data.test, place, codes[5]))["click"].numpy().astype(float)
            yield "learned", "effect", np.mean(np.log(last / (1 - last)) - np.log(p / (1 - p)))


# ------------------------------------------------------------------------------------------------- business

# 15 weightings of the three tasks; click, the first half of the funnel, goes with purchase.
GRID = simplex_grid(["purchase", "next_category", "next_item"], 5, lowest=0.02)
WEIGHTINGS = [{"click": w["purchase"], **w} for w in GRID]


def business(case: Case) -> Iterator[Row]:
    """Each weighting's validation metrics and the true worth of its lists; then fusions; then baselines."""
    data = case.data
    family = sweep(case.model, data.train, data.valid, weightings=WEIGHTINGS, seeds=[case.seed], **SWEEP)
    price = case.items["price"].to_numpy()
    for row in family.weightings.index:
        model = family.model(row)
        found = evaluate(model, data.valid)
        name = f"weighting {row}"
        for task in ("click", "purchase"):
            yield name, f"{task}_auc", found[task]["auc"]
            yield name, f"{task}_accuracy", found[task]["accuracy"]
        yield name, "category_accuracy", found["next_category"]["accuracy"]
        yield name, "recall", recall(predict(model, data.valid)["next_item"].numpy(), data.valid)
        bought = case.score(model)["purchase"]
        yield name, "purchases", case.money(bought)["purchases"]
        for measure in ("revenue", "coverage"):
            yield name, measure, case.money(bought * price)[measure]
    model = case.fit(case.model(), weights=WEIGHTS, monitor=MONITOR)
    s = case.score(model)
    lists = {
        "buy": s["purchase"],
        "click": s["click"],
        "buy · price": s["purchase"] * price,
        "click · buy · price": s["click"] * s["purchase"] * price,
        "buy · √price": s["purchase"] * np.sqrt(price),
        "sum": s["click"] + s["purchase"] + s["category"] + s["next"],
        "favourite category": s["category"] + 1e-6 * s["next"],
        "next items": s["next"],
    }
    bought, cost = data.valid.labels["purchase"], torch.tensor(case.frames["valid"]["price"].to_numpy())
    seen = {**predict(model, data.valid), "price": cost}
    everything = {name: torch.tensor(s[name]) for name in ("click", "purchase")}
    everything["price"] = torch.tensor(price).expand(s["click"].shape)
    inputs = {"click": "log_odds", "purchase": "log_odds"}
    learned = LearnedFusion(inputs).fit(seen, bought, None)
    worth = torch.where(bought == 1, cost / cost.mean(), 1.0)
    by_price = LearnedFusion({**inputs, "price": "log"}).fit(seen, bought, worth)
    with torch.no_grad():
        lists |= {"learned": learned(everything).numpy(), "learned, by price": by_price(everything).numpy()}
    lists["popularity"] = np.tile(case.items["clicks"].to_numpy(float), (len(case.rows), 1))
    lists["chance"] = np.random.default_rng(case.seed).random((len(case.rows), len(price)))
    lists["truth: buy · price"] = case.truth["purchase"] * price
    for name, scores in lists.items():
        for measure, value in case.money(scores).items():
            yield name, measure, value


PARTS = {"tasks": tasks, "funnel": funnel, "rare": rare, "position": position, "business": business}


def main() -> None:
    options = command_line(__doc__, shops=8)
    options.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    options = options.parse_args()
    rows: dict[str, list[tuple]] = {part: [] for part in options.only}
    for seed in range(1, options.shops + 1):
        case = Case(seed)
        for part in options.only:
            start = time.perf_counter()
            rows[part] += [(seed, *names, round(float(value), 6)) for *names, value in PARTS[part](case)]
            print(f"shop {seed}: {part} {time.perf_counter() - start:.0f} s", flush=True)
            table = pd.DataFrame(rows[part], columns=["shop", "name", "measure", "value"])
            store(options.out / f"05_{part}.csv", "nb05_tables.py", table)


if __name__ == "__main__":
    main()
