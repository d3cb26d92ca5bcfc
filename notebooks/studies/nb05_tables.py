"""What do fusion, task weights and five corrections bring a shop, over whole new shops?

    python notebooks/studies/nb05_tables.py --shops 0 1 --parts tune      # every contestant, 9 minutes on one core
    python notebooks/studies/nb05_tables.py --shops 0 1 --parts weights   # then
    python notebooks/studies/nb05_tables.py                               # eight shops, about 1½ minutes each

Writes ``05_case.csv``, a row for each shop, part, name and measure, as a part is done; what is there is not run again.
**Primary contrast**, stated before the study was run: pages ranked by p(purchase) · price minus pages ranked by
p(purchase), logarithm of the true EUR per 1,000 impressions, over eight shops; expected: plus. All else is exploratory.

- A shop is ``ShopConfig(seed=s)``: users, tastes, products, log are new. Shops 0 and 1 tune and are not reported.
- Pages are the eight best of the whole catalogue for 300 users drawn from those of the test part, on the evening after
  the log. What they are worth is exact: the simulator's probability of each user, product and moment, at each of its
  eight places.
- Every contestant tries seven settings of learning rate and decay and keeps that with the highest validation score on
  the tuning shops: AUCs weighted by the truth, or recall@10. Labels alone decide which epoch is kept. The case is tuned
  at equal shares; its seven task weights are compared at that setting, tuning shops included, so that whoever chooses
  among them by a validation score can do it there.
- AdamW, 55 steps an epoch for all, at most 14 epochs, patience 3. Test rows are scored once.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from functools import cache, cached_property, partial
from itertools import product

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from study import Table, command_line
from torch import Tensor, nn

from mtl_helpers.data import Batch, MultiTaskDataset, ShopConfig, Task, make_world, prepare, simulate
from mtl_helpers.metrics import auc, correct_downsampling, expected_auc, expected_log_loss
from mtl_helpers.models import case as ecommerce
from mtl_helpers.models.fusion import LearnedFusion
from mtl_helpers.ranking import catalogue_coverage, expected_revenue, recall_at_k, top_k
from mtl_helpers.sweep import simplex_grid
from mtl_helpers.weighting import constant_losses

SETTINGS = tuple((lr, step / lr) for lr, step in product((3e-3, 1e-2, 3e-2), (1e-4, 1e-3, 1e-2)))[1:-1]
"""Learning rate and weight decay; AdamW shrinks weights by their product a step."""
EPOCHS, STEPS, PATIENCE, USERS, PAGE = 14, 55, 3, 300, 8
THREE = ("purchase", "next_category", "next_item")
GRID = [dict.fromkeys(THREE, 1 / 3), *simplex_grid(THREE, 3, lowest=0.02)]
"""Shares of three tasks; click, the helper, has a whole one for itself. A weight is a share / loss of a constant."""
TRUTH = {"click": "p_click", "purchase": "p_purchase", "conversion": "p_purchase_given_click"}
RARE = ("plain", "class weight", "focal", "down-sampled", "over-sampled")
SOFTMAX = ("full", "sampled", "sampled, corrected")
CONTESTANTS = {"case": ("click", *THREE), "user ids": ("click", *THREE), "ESMM": ("click", "conversion")}
CONTESTANTS |= {"clicks only": ("conversion",), "position known": ("click",), "position ignored": ("click",)}
CONTESTANTS |= dict.fromkeys(RARE, ("purchase",)) | dict.fromkeys(SOFTMAX, ("next_item",))
RATE = 0.1  # share of the negatives that down-sampling keeps
Row = tuple[str, str, float]


class Case:
    """One shop, prepared."""

    def __init__(self, seed: int, table: Table) -> None:
        self.seed, self.shop, self.table = seed, simulate(ShopConfig(seed=seed)), table
        frames = ecommerce.case_frames(self.shop)
        self.items = ecommerce.item_table(self.shop, frames["train"])
        for name, frame in frames.items():
            known = frame.assign(conversion=frame["purchase"].where(frame["click"] == 1))
            frames[name] = known.merge(self.shop.truth, on="impression_id")
        self.frames = frames
        tasks = (*ecommerce.case_tasks(len(self.items)), Task("conversion"))
        self.data = prepare(self.frames, tasks, ecommerce.CASE_NUMERIC, ecommerce.CASE_CATEGORICAL)
        self.constants = constant_losses(self.data.train)
        clicks = torch.tensor(self.items["clicks"].to_numpy(), dtype=torch.float32) + 0.5
        self.share, self.price = clicks / clicks.sum(), self.items["price"].to_numpy()

    @cached_property
    def pages(self) -> pd.DataFrame:
        """The users to be served with every product."""
        people = np.sort(self.frames["test"]["user_id"].unique())
        return ecommerce.candidates(self.shop, np.random.default_rng(self.seed).choice(people, USERS, False))

    @cached_property
    def truth(self) -> dict[str, np.ndarray]:
        world = make_world(self.shop.config)
        first = self.pages.head(1)[["user_id", "item_id", "timestamp"]].to_numpy()[0]
        places = world.probabilities(*first, np.arange(1, PAGE + 1))[0]
        self.factors = places / places[0]  # a place acts as a factor on the probability of a click
        return ecommerce.true_values(world, self.pages)

    def tuned(self, name: str) -> tuple[float, float]:
        """The setting that the tuning shops chose."""
        return tuple(map(float, self.table.best("value", part=f"tune {name}")[0].split()))

    def rows(self, name: str) -> MultiTaskDataset:
        """What a contestant trains on."""
        train, asked = self.data.train, CONTESTANTS[name][0]
        if len(CONTESTANTS[name]) == 1 and asked in train.masks:
            train = train.take(train.masks[asked].nonzero().squeeze(-1))
        if name == "position ignored":
            train = self.at_place(train, 1)
        if name in ("down-sampled", "over-sampled"):
            y, generator = train.labels["purchase"], torch.Generator().manual_seed(self.seed)
            yes, no = (y == 1).nonzero().squeeze(-1), (y == 0).nonzero().squeeze(-1)
            few = no[torch.rand(len(no), generator=generator) < RATE]
            train = train.take(torch.cat([yes, few] if name == "down-sampled" else [yes.repeat(10), no]))
        return train

    def at_place(self, part: MultiTaskDataset, place: int) -> MultiTaskDataset:
        codes = part.categorical.clone()
        known = [int(value) for value in self.data.encoder.categories_["position"]]
        codes[:, list(self.data.schema.categorical).index("position")] = 1 + known.index(place)
        return replace(part, categorical=codes)


def halves(model: nn.Module, rows: Batch | MultiTaskDataset) -> tuple[Tensor, dict[str, Tensor]]:
    """User vectors and the logits of yes/no tasks: those of the catalogue cost more, and few rows ask for them."""
    u = model.user_vectors(rows.numeric, rows.categorical)
    item, pair = (model.feature_vectors(name, rows.numeric, rows.categorical) for name in ("item", "pair"))
    return u, model.pair_logits(u, model.item(item), pair)


@torch.no_grad()
def answers(model: nn.Module, part: MultiTaskDataset) -> dict[str, np.ndarray]:
    """Probabilities of yes/no tasks."""
    return {name: z.sigmoid().numpy().astype(float) for name, z in halves(model, part)[1].items()}


def loss_of(case: Case, name: str, model: nn.Module, batch: Batch, row: int, generator) -> Tensor:
    """A contestant's training loss: each task's mean over the rows that know it, over that of the best constant."""
    known, y = batch.masks["next_item"], batch.labels
    if name in SOFTMAX[1:]:
        return sampled_softmax(case, model, batch, name != "sampled", generator)
    u, z = halves(model, batch)
    if name == "ESMM":  # p(purchase) = p(click) · p(conversion), on every row
        log_p = F.logsigmoid(z["click"]) + F.logsigmoid(z.pop("conversion"))
        z["purchase"] = log_p - torch.log1p(-log_p.exp().clamp(max=1 - 1e-6))
    found = {task: F.binary_cross_entropy_with_logits(z[task], y[task], reduction="none") for task in z}
    if name == "class weight":
        found["purchase"] = found["purchase"] * (1 + 9 * y["purchase"])
    elif name == "focal":
        found["purchase"] = found["purchase"] * (y["purchase"] - z["purchase"].sigmoid()) ** 2
    if known.any():
        of_user = model.user_logits(u[known]).items()
        found |= {task: F.cross_entropy(z, y[task][known], reduction="none") for task, z in of_user}
    shares = GRID[row] if len(CONTESTANTS[name]) == 4 else {}
    return sum(shares.get(task, 1) / case.constants[task] * loss.mean() for task, loss in found.items())


def sampled_softmax(case: Case, model: nn.Module, batch: Batch, correct: bool, generator) -> Tensor:
    """Loss of next_item over the true item and 50 that are drawn by their share q of the clicks; with ``correct``
    each logit loses log q (Yi et al., RecSys 2019), lest popular items be pushed down."""
    wanted = batch.labels["next_item"]
    u, v = model.user_vectors(batch.numeric, batch.categorical), model.item_vectors()
    drawn = torch.multinomial(case.share, 50, replacement=True, generator=generator)
    bias = model.bias - (case.share.log() if correct else 0.0)
    true = (u * v[wanted]).sum(-1) + bias[wanted]
    others = u @ v[drawn].T + bias[drawn]
    others = others.masked_fill(drawn[None, :] == wanted[:, None], -1e9)  # a hit is no negative
    return F.cross_entropy(torch.cat([true[:, None], others], 1), torch.zeros_like(wanted))


def quality(case: Case, model: nn.Module, truth: bool = False) -> float:
    """On validation rows: the sum of a model's AUCs, by labels or weighted by the truth; of next items alone recall."""
    frame, said = case.frames["valid"], answers(model, case.data.valid)
    clicked, found = frame["click"] == 1, 0.0
    for name, p in said.items():
        rows = clicked if name == "conversion" else slice(None)
        weight = frame["p_click"] if name == "conversion" else None
        labels = auc(frame[name][rows], p[rows])
        found += expected_auc(frame[TRUTH[name]], p, weight) if truth else labels
    return found if said else recall(case, model, "valid")


@torch.no_grad()
def recall(case: Case, model: nn.Module | None, part: str) -> float:
    """Mean recall@10 over the rows that know their next item; of popularity without a model."""
    data = getattr(case.data, part)
    first = data.take(data.masks["next_item"].nonzero().squeeze(-1))
    logits = case.share.expand(len(first), -1)
    if model is not None:
        logits = model.user_logits(model.user_vectors(first.numeric, first.categorical))["next_item"]
    wanted = F.one_hot(first.labels["next_item"], logits.shape[1]).numpy()
    return float(recall_at_k(wanted, top_k(logits, 10)).mean())


def learn(case: Case, name: str, setting: tuple | None = None, row: int = 0, seed: int | None = None):
    """Train a contestant; its best epoch's model and the seconds of an epoch."""
    (lr, decay), seed = setting or case.tuned(name), case.seed if seed is None else seed
    train, generator = case.rows(name), torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    tasks = [task for task in case.data.tasks if task.name in CONTESTANTS[name]]
    model = ecommerce.case_model(case.data, case.items, tasks, user_ids=name == "user ids")
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=decay)
    best, state, chosen, seconds = -1.0, None, 0, 0.0
    for epoch in range(1, EPOCHS + 1):
        start = time.process_time()
        for batch in train.batches(max(len(train) // STEPS, 32), generator=generator):
            optimizer.zero_grad()
            loss_of(case, name, model, batch, row, generator).backward()
            optimizer.step()
        seconds += time.process_time() - start
        if (now := quality(case, model)) > best:
            best, state, chosen = now, deepcopy(model.state_dict()), epoch
        elif epoch >= chosen + PATIENCE:
            break
    model.load_state_dict(state)
    return model, seconds / epoch


def tune(name: str, case: Case) -> Iterator[Row]:
    """A contestant at every setting."""
    for lr, decay in SETTINGS:
        yield f"{lr:.4g} {decay:.4g}", "valid", quality(case, learn(case, name, (lr, decay))[0], truth=True)


def tasks(case: Case) -> Iterator[Row]:
    """What the case reaches with user ids; next items by three losses; floors and the truth."""
    test = case.frames["test"]
    yield from (("user ids", *row) for row in measured(case, learn(case, "user ids")[0], "test"))
    for name in SOFTMAX:
        model, seconds = learn(case, name)
        yield name, "recall", recall(case, model, "test")
        yield name, "seconds_per_epoch", seconds
    for name in ("click", "purchase"):
        yield "truth", f"{name}_auc", expected_auc(test[TRUTH[name]], test[TRUTH[name]])
        yield "popularity", f"{name}_auc", expected_auc(test[TRUTH[name]], test["item_past_ctr"])
    common = case.frames["train"]["next_category"].mode()[0]
    yield "most frequent", "category_accuracy", (test["next_category"].dropna() == common).mean()
    yield "popularity", "recall", recall(case, None, "test")
    yield "chance", "recall", 10 / len(case.items)


@torch.no_grad()
def measured(case: Case, model: nn.Module, part: str) -> Iterator[tuple[str, float]]:
    """Of the four tasks, on a part; AUCs weighted by the truth."""
    data = getattr(case.data, part)
    for task, p in answers(model, data).items():
        yield f"{task}_auc", expected_auc(case.frames[part][TRUTH[task]], p)
    first = data.take(data.masks["next_category"].nonzero().squeeze(-1))
    said = model.user_logits(model.user_vectors(first.numeric, first.categorical))["next_category"]
    yield "category_accuracy", (said.argmax(-1) == first.labels["next_category"]).double().mean()
    yield "recall", recall(case, model, part)


def worth(case: Case, scores: np.ndarray) -> dict[str, float]:
    """True expected worth of each user's page, means per 1,000 impressions; and what it shows."""
    lists, one = top_k(scores, PAGE), np.ones(len(case.price))
    asked = {"revenue": ("purchase", case.price), "purchases": ("purchase", one), "clicks": ("click", one)}
    found = {}
    for name, (chance, prices) in asked.items():
        found[name] = expected_revenue(lists, case.truth[chance], prices, case.factors).mean()
    return found | {"coverage": catalogue_coverage(lists, len(one)), "price": np.median(case.price[lists])}


def fused(case: Case, model: nn.Module) -> dict[str, np.ndarray]:
    """Scores of every user and product, by name of the fusion."""
    s = ecommerce.score_candidates(model, case.data, case.pages, case.items)
    s, price = {name: torch.from_numpy(p).double() for name, p in s.items()}, case.price
    seen = {name: torch.from_numpy(p) for name, p in answers(model, case.data.valid).items()}
    learned = LearnedFusion(["click", "purchase"]).fit(seen, case.data.valid.labels["purchase"])(s)
    click, buy = s["click"].numpy(), s["purchase"].numpy()
    found = {"buy": buy, "click": click, "click · buy": click * buy, "learned": learned.numpy()}
    found |= {f"{name} · √price": p * price**0.5 for name, p in found.items() if name != "learned"}
    found |= {f"{name} · price": found[name] * price for name in ("buy", "click", "click · buy", "learned")}
    found["sum"] = click + buy + s["category"].numpy() + s["next"].numpy()
    return found | {"category · click": s["category"].numpy() * click, "next items": s["next"].numpy()}


def weights(case: Case) -> Iterator[Row]:
    """Seven task weights, each with every fusion; equal ones from three more starts; what was offered, ranked anew."""
    rows = [(row, case.seed) for row in range(len(GRID))]
    for row, seed in [*rows, *((0, case.seed + 1000 * k) for k in (1, 2, 3))]:
        model, *_ = learn(case, "case", None, row, seed)
        name = f"weights {row}" if seed == case.seed else f"start {seed // 1000}"
        for part in ("valid", "test"):
            yield from ((name, f"{part} {what}", value) for what, value in measured(case, model, part))
        for fusion, scores in fused(case, model).items():
            yield from ((f"{name}, {fusion}", *pair) for pair in worth(case, scores).items())
        if name == "weights 0":
            yield from offered(case, answers(model, case.data.test))
    floors = {"popularity": case.pages["item_past_ctr"], "last week": case.pages["item_clicks_week"]}
    scores = {name: column.to_numpy().reshape(USERS, -1) for name, column in floors.items()}
    scores["chance"] = np.random.default_rng(case.seed).random(scores["popularity"].shape)
    true = case.truth["purchase"]
    scores |= {"truth: buy": true, "truth: buy · price": true * case.price}
    for name, values in scores.items():
        yield from ((name, *pair) for pair in worth(case, values).items())


def offered(case: Case, p: dict[str, np.ndarray]) -> Iterator[Row]:
    """Sessions that were offered two pages or more: the worth of the first page as it was, and of the best eight."""
    test = case.frames["test"]
    more = (test.groupby("session_id")["item_id"].transform("size") > PAGE).to_numpy()
    rows, first = test[more], test[more]["position"].to_numpy() ** 0.45
    given, click = rows["p_purchase_given_click"].to_numpy(), rows["p_click"].to_numpy() * first
    p = {name: values[more] for name, values in p.items()}
    scores = {"old ranker": -np.arange(len(rows)), "chance": np.random.default_rng(0).random(len(rows))}
    scores |= {"popularity": rows["item_past_ctr"].to_numpy(), "truth": click * given, **p}
    scores["click · buy"], scores["buy · price"] = p["click"] * p["purchase"], p["purchase"] * rows["price"]
    for name, score in scores.items():
        page = rows[["session_id", "price"]].assign(score=score, click=click, bought=click * given)
        page["place"] = page.groupby("session_id")["score"].rank(ascending=False, method="first")
        page = page[page["place"] <= PAGE]
        sold, sessions = page["bought"] * page["place"] ** -0.45, page["session_id"].nunique()
        clicks = page["click"] * page["place"] ** -0.45
        for what, each in {"purchases": sold, "revenue": sold * page["price"], "clicks": clicks}.items():
            yield f"offered, {name}", what, each.sum() / sessions


def funnel(case: Case) -> Iterator[Row]:
    """Conversion estimated on clicked rows alone and over the entire space, against the true conversion."""
    test = case.frames["test"]
    truth, clicked = test["p_purchase_given_click"].to_numpy(), test["click"].to_numpy() == 1
    alone, click, whole = (learn(case, name)[0] for name in ("clicks only", "position known", "ESMM"))
    both = answers(alone, case.data.test) | answers(click, case.data.test)
    for name, p in {"clicks only": both, "ESMM": answers(whole, case.data.test)}.items():
        said, product = p["conversion"], p["click"] * p["conversion"]
        yield name, "ratio", said.mean() / truth.mean()
        yield name, "ratio_clicked", said[clicked].mean() / truth[clicked].mean()
        yield name, "conversion_auc", expected_auc(truth, said, test["p_click"])
        yield name, "conversion_auc_all", expected_auc(truth, said)
        yield name, "purchase_auc", expected_auc(test["p_purchase"], product)
        yield name, "purchase_ratio", product.mean() / test["p_purchase"].mean()
    yield "truth", "clicked_against_all", truth[clicked].mean() / truth.mean()


def rare(case: Case) -> Iterator[Row]:
    """Five ways to treat a rare label, and what sets their probabilities right."""
    test, bought = case.frames["test"], case.data.valid.labels["purchase"]
    for name in RARE:
        model, _ = learn(case, name)
        seen, p = (answers(model, part)["purchase"] for part in (case.data.valid, case.data.test))
        slope = LearnedFusion(["p"]).fit({"p": torch.from_numpy(seen)}, bought)
        found = {name: p, f"{name}, recalibrated": slope({"p": torch.from_numpy(p)}).numpy()}
        yield name, "slope", slope.weights["p"]
        if name not in ("plain", "focal"):  # all three multiply the odds by ten
            found[f"{name}, corrected"] = correct_downsampling(p, RATE)
        for label, q in found.items():
            yield label, "auc", expected_auc(test["p_purchase"], q)
            yield label, "log_loss", expected_log_loss(test["p_purchase"], q)
            yield label, "ratio", q.mean() / test["p_purchase"].mean()
    rate = case.frames["train"]["purchase"].mean()
    yield "constant", "log_loss", expected_log_loss(test["p_purchase"], np.full(len(test), rate))
    yield "truth", "log_loss", expected_log_loss(test["p_purchase"], test["p_purchase"])


def position(case: Case) -> Iterator[Row]:
    """The effect of the place on the page, as the log of a ratio; and what ignoring it costs at place 1."""
    rate, test = case.frames["train"].groupby("position")["click"].mean(), case.frames["test"]
    yield "counted", "effect", np.log(rate[5] / rate[1])
    yield "truth", "effect", -0.45 * np.log(5)
    truth = test["p_click"] * test["position"] ** 0.45  # at place 1
    for name in ("position known", "position ignored"):
        model, _ = learn(case, name)
        first, fifth = (answers(model, case.at_place(case.data.test, place))["click"] for place in (1, 5))
        yield name, "effect", np.log(fifth.mean() / first.mean())
        yield name, "auc", expected_auc(truth, first)
        yield name, "excess_loss", expected_log_loss(truth, first) - expected_log_loss(truth, truth)
        yield name, "ratio", first.mean() / truth.mean()


PARTS = {part.__name__: part for part in (tasks, weights, funnel, rare, position)}
TUNING = {f"tune {name}": partial(tune, name) for name in CONTESTANTS}


if __name__ == "__main__":
    parser = command_line(__doc__, shops=tuple(range(100, 108)))
    parser.add_argument("--parts", nargs="+", choices=["tune", *PARTS, *TUNING], default=list(PARTS))
    options = parser.parse_args()
    asked = [name for part in options.parts for name in (TUNING if part == "tune" else [part])]
    columns = ("shop", "part", "name", "measure", "value")
    table = Table(options.out / "05_case.csv", "nb05_tables.py", columns, setting=["name"])
    for seed in options.shops:
        case, done = cache(partial(Case, seed, table)), set(table.rows(shop=seed)["part"])
        for part in (part for part in asked if part not in done):
            start, rows = time.process_time(), (PARTS | TUNING)[part](case())
            found = [dict(zip(columns[2:], (*names, float(x)), strict=True)) for *names, x in rows]
            table.add(found, shop=seed, part=part)
            print(f"shop {seed}: {part} {time.process_time() - start:.0f} s", flush=True)
