"""A shop's log replayed, score then learn: how often must the model that serves be refreshed?

    python notebooks/studies/nb10_refresh.py                    # on one core about 6 minutes
    python notebooks/studies/nb10_refresh.py --shops 0 1 100    # tuning shops first

Writes ``10_refresh.csv``, a row for each shop, contestant and day, as it comes; what is there is not run again. Rows of
tuning shops have the mean of their days and no day. **Primary contrast**, stated before the study was run: a model
refreshed daily minus the one that never is, mean AUC of click and purchase over the days 21 to 41, eight shops;
expected: plus, and small, for little of the shop drifts. All else is exploratory, with Holm's correction.

- Whole shops, ``ShopConfig(450, n_impressions=48_000, seed=s)``: all is new in each. The first 21 days warm up one
  model, from which all contestants start: shared bottom 64-32, no ids, encoder of the warm-up, purchases as known then.
- Each row of the days after is scored as if it stood first on its page, and judged against the truth there; then it may
  be learned, once: after a week, a day, an hour, or every eight pages. Purchases are learned four days later ("wait").
- "late ...": the daily one, with purchases not in yet as a no, with fake-negative weights, or with what only the
  future knows. "55+: alone": five passes over two weeks of users of 55 and more, then judged in the last week on
  all others and on them; "with memory" each step draws as many rows of the warm-up. "season": in the same shops the
  log-odds of a click move by N(0, 1) for each sub-category on day 28; what is clicked and bought then is drawn anew.
- Warm-up: three learning rates, four decays, five numbers of epochs. Every contestant then tries four learning rates
  ("55+" takes the daily one's, "late, hourly" the hourly one's). Both on two tuning shops, by mean AUC of the tasks
  (warm-up: trained on 18 days, judged on three).
- ``money``: EUR for 1,000 impressions if each page is sorted by purchase probability times price.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import replace
from functools import partial
from itertools import pairwise, product

import numpy as np
import pandas as pd
import torch
from study import Table, command_line
from torch.nn.functional import binary_cross_entropy_with_logits as bce

from mtl_helpers import data
from mtl_helpers.data.shop_world import START
from mtl_helpers.metrics import expected_auc, expected_log_loss
from mtl_helpers.models import SharedBottom
from mtl_helpers.training import predict, training_steps
from mtl_helpers.weighting import constant_losses

TUNING, REPORTED = (0, 1), tuple(range(100, 108))
WARM, SEASON, DAYS, PAGE, GROUP = 21, 28, 42, 8, "55+"
RATES, DECAYS, EPOCHS = (3e-4, 1e-3, 3e-3), (0.3, 1.0, 3.0, 10.0), (2, 4, 8, 16, 24)
REFRESH, BATCH = (1e-4, 3e-4, 1e-3, 3e-3), 512
TASKS = data.SHOP_TASKS[:2]
CONTESTANTS = {  # days between two refreshes, and how late purchases are learned
    "weekly": (7.0, "wait"),
    "daily": (1.0, "wait"),
    "hourly": (1 / 24, "wait"),
    "every 8 pages": (0.0, "wait"),
    "late: naive": (1.0, "naive"),
    "late: fake negatives": (1.0, "fake negatives"),
    "late: oracle": (1.0, "oracle"),
    "late, hourly: naive": (1 / 24, "naive"),
    "late, hourly: fake negatives": (1 / 24, "fake negatives"),
}
INTERVALS, BEFORE = ("never", *list(CONTESTANTS)[:4]), f"{GROUP}: before, on others"
TUNED_AS = {name: "hourly" for name in CONTESTANTS if name.startswith("late, hourly")} | {BEFORE: "daily"}
SETTING = ["lr", "weight_decay", "epochs"]
MEASURES = [f"{what}_{task.name}" for what in ("auc", "loss", "said") for task in TASKS] + ["money"]
COLUMNS = ["shop", "season", "contestant", *SETTING, "day", *MEASURES]


def with_season(shop: data.Shop) -> data.Shop:
    """The shop in which tastes of all users move on day 28; its truth knows."""
    rng = np.random.default_rng(shop.config.seed)
    log = shop.impressions.drop_duplicates("impression_id").sort_values("impression_id", ignore_index=True)
    time, place = pd.to_datetime(log["timestamp"]), log["position"].to_numpy() ** -0.45
    later = ((time - START).dt.total_seconds() >= SEASON * 86_400).to_numpy()
    sub = pd.factorize(shop.items.set_index("item_id")["sub_category"].reindex(log["item_id"]))[0]
    truth, first = shop.truth, np.clip(shop.truth["p_click"] / place, 1e-6, 1 - 1e-6)
    moved = np.log(first / (1 - first)) + rng.standard_normal(32)[sub]
    p = truth["p_click"].where(~later, place / (1 + np.exp(-moved)))
    click = np.where(later, rng.random(len(log)) < p, log["click"])
    delay = pd.to_timedelta(0.28 * np.exp(2 * rng.standard_normal(len(log))), unit="D").round("s")
    bought = later & (click > 0) & (rng.random(len(log)) < truth["p_purchase_given_click"])
    bought &= time + delay < time.max()
    paid = (time + delay).dt.strftime("%Y-%m-%dT%H:%M:%S").where(bought)
    log = log.assign(
        click=click.astype(int),
        purchase=np.where(later, bought, log["purchase"]).astype(int),
        purchase_time=paid.where(later, log["purchase_time"]),
    )
    truth = truth.assign(p_click=p, p_purchase=p * truth["p_purchase_given_click"])
    return replace(shop, impressions=log, truth=truth)


def replay(
    model: torch.nn.Module, log: data.MultiTaskDataset, cuts: Sequence[int], learn: Callable[[int, int], None] | None
) -> dict[str, torch.Tensor]:  # fmt: skip
    """Test, then train: the rows from one cut to the next are scored by the model as it stands, and only then may it
    learn from them.

    log : rows in the order of time. cuts : ascending positions in it, at which the model is refreshed. learn : called
    with the first and the last position (excluded) of the rows just scored; None never refreshes. Returns
    ``{task: probabilities}`` of the rows from the first cut to the last.
    """
    said = []
    for start, stop in pairwise(cuts):
        said.append(predict(model, log.take(slice(start, stop))))
        if learn is not None:
            learn(start, stop)
    return {name: torch.cat([part[name] for part in said]) for name in said[0]}


def arrivals(
    shown: np.ndarray, paid: np.ndarray, begin: float, end: float, late: str, wait: float = 4.0
) -> tuple[np.ndarray, np.ndarray]:
    """Which rows a refresh at the moment ``end`` learns a label of purchase from, and the labels: both (k,).

    shown, paid : (n,) moments in days; ``paid`` is infinite without a purchase. begin : the refresh before. late :

    - "naive": rows shown since then; not paid by now is a no.
    - "wait": rows whose ``wait`` days ended since then; not paid by now is a no.
    - "fake negatives": rows shown since then are all a no, and rows *paid* since then come again as a yes.
    - "oracle": rows shown since then, with what only the future knows.
    """
    lag = wait if late == "wait" else 0.0
    rows = np.flatnonzero((shown >= begin - lag) & (shown < end - lag))
    if late == "fake negatives":
        yes = np.flatnonzero((paid >= begin) & (paid < end))
        return np.r_[rows, yes], np.r_[np.zeros(len(rows)), np.ones(len(yes))]
    return rows, (paid[rows] < (np.inf if late == "oracle" else end)).astype(float)


def fake_negative_weights(p: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Importance weights of rows that first come as a no and, if bought, once more as a yes: 1 + p of a yes,
    (1 − p)(1 + p) of a no, for then the yes are p / (1 + p) of what arrives (Ktena et al., RecSys 2019)."""
    return torch.where(labels > 0, 1 + p, (1 - p) * (1 + p))


class Refresher:
    """Learns from the rows between two cuts of a :func:`replay`: each click once, purchases as they become known.

    shown, paid, late : as in :func:`arrivals`. memory : positions of old rows, of which each step draws as many as it
    has new ones; none by default. A step has at most 256 new rows, and its share of the purchases.
    """

    def __init__(
        self, model: torch.nn.Module, log: data.MultiTaskDataset, shown: np.ndarray, paid: np.ndarray, *, lr: float,
        weight_decay: float, weights: dict[str, float], late: str = "fake negatives",
        memory: np.ndarray | None = None,
    ) -> None:  # fmt: skip
        self.model, self.log, self.shown, self.paid, self.late = model, log, shown, paid, late
        self.weights, self.memory, self.rng = weights, memory, np.random.default_rng(0)
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=weight_decay)

    def __call__(self, start: int, stop: int) -> None:
        begin, now = (self.shown[i - 1] + 1e-6 if i else -np.inf for i in (start, stop))
        rows, bought = arrivals(self.shown, self.paid, begin, now, self.late)
        fresh, order = self.rng.permutation(np.arange(start, stop)), self.rng.permutation(len(rows))
        parts = (np.array_split(each, -(-len(fresh) // 256)) for each in (fresh, rows[order], bought[order]))
        for own, late, label in zip(*parts, strict=True):
            if self.memory is not None:
                old = self.rng.choice(self.memory, len(own))
                own, late, label = np.r_[own, old], np.r_[late, old], np.r_[label, self.paid[old] < now]
            self.step(own, late, torch.from_numpy(label).float())

    def step(self, own: np.ndarray, late: np.ndarray, bought: torch.Tensor) -> None:
        """One step: sums over rows by one fixed number, for at night a few rows meet the purchases of a whole day."""
        both, n = self.log.take(np.r_[own, late]), len(own)
        logits = self.model.train()(both.numeric, both.categorical)
        click, purchase = logits["click"][:n], logits["purchase"][n:]
        weight = torch.ones_like(bought)
        if self.late == "fake negatives":
            weight = fake_negative_weights(purchase.detach().sigmoid(), bought)
        loss = self.weights["click"] * bce(click, both.labels["click"][:n], reduction="sum")
        loss = loss + self.weights["purchase"] * bce(purchase, bought, weight, reduction="sum")
        self.optimizer.zero_grad()
        (loss / 256).backward()
        self.optimizer.step()


class Log:
    """A shop's log as tensors in the order of time, and what judges it."""

    def __init__(self, seed: int, season: bool, warm: int = WARM, users: int = 450) -> None:
        shop = data.simulate(data.ShopConfig(users, n_impressions=users * 320 // 3, seed=seed))
        shop = with_season(shop) if season else shop
        frame = data.shop_frame(shop).merge(shop.truth, on="impression_id")
        self.frame, self.seed, self.warm = frame, seed, warm
        since = [(frame[name] - START).dt.total_seconds() / 86_400 for name in ("timestamp", "purchase_time")]
        self.shown, self.paid = since[0].to_numpy(), since[1].fillna(np.inf).to_numpy()
        self.day, self.first = self.shown.astype(int), int(np.searchsorted(self.shown, warm))
        self.after = np.arange(self.first, len(frame))
        known = frame.assign(purchase=(self.paid < warm).astype(float))[: self.first]
        self.encoder = data.FeatureEncoder(data.SHOP_NUMERIC, data.SHOP_CATEGORICAL).fit(known)
        self.rows, self.known = (
            data.MultiTaskDataset.from_frame(part, self.encoder, TASKS) for part in (frame, known)
        )
        losses = constant_losses(self.known)
        self.weights = {"click": 1 / losses["click"], "purchase": 0.1 / losses["purchase"]}
        place = data.SHOP_CATEGORICAL.index("position")
        top = self.rows.categorical.clone()
        top[:, place] = self.encoder.categories_["position"].get_loc("1") + 1
        self.on_top = replace(self.rows, categorical=top)
        looked = frame["position"].to_numpy() ** -0.45  # share of users who look there
        self.truth = {task.name: frame[f"p_{task.name}"].to_numpy() / looked for task in TASKS}

    def cuts(self, width: float) -> list[int]:
        """Positions at which the model is refreshed."""
        if width == 0:
            return [*range(self.first, len(self.shown), 8 * PAGE), len(self.shown)]
        moments = np.arange(self.warm, DAYS - width / 2, width) - 1e-6
        return [*np.unique(np.searchsorted(self.shown, moments)).tolist(), len(self.shown)]

    def refresher(self, model: torch.nn.Module, lr: float, decay: float, late: str, **more) -> Refresher:
        how = {"lr": lr, "weight_decay": decay, "weights": self.weights, "late": late} | more
        return Refresher(model, self.rows, self.shown, self.paid, **how)

    def judged(self, said: dict[str, np.ndarray], rows: np.ndarray) -> Iterator[dict]:
        """A row of measures for each day; ``rows`` are whole pages."""
        price, place = self.frame["price"].to_numpy(), np.arange(1, PAGE + 1) ** -0.45
        for day in np.unique(self.day[rows]):
            here = self.day[rows] == day
            found = {"day": day}
            for task, p in self.truth.items():
                p, s = p[rows][here], said[task][here]
                found |= {f"auc_{task}": expected_auc(p, s), f"loss_{task}": expected_log_loss(p, s)}
                found[f"said_{task}"] = s.sum() / p.sum()
            pages = [
                (x[rows][here] if len(x) > len(here) else x[here]).reshape(-1, PAGE)
                for x in (self.truth["purchase"], price, said["purchase"])
            ]
            order = np.argsort(-pages[1] * pages[2], axis=1, kind="stable")
            worth = np.take_along_axis(pages[0] * pages[1], order, 1)
            found["money"] = 1000 * (worth * place).mean()
            yield {name: round(value, 4) for name, value in found.items()}


def warmed(log: Log, rows: data.MultiTaskDataset, lr: float, decay: float, epochs: int) -> Iterator:
    """A model after each epoch of its training."""
    torch.manual_seed(log.seed)
    model = SharedBottom(log.encoder.schema, TASKS, embedding_dim=4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=decay)
    how = {"epochs": epochs, "batch_size": BATCH, "generator": torch.Generator().manual_seed(log.seed)}
    for step in training_steps(model, rows, optimizer, weights=log.weights, **how):
        if step.number == -(-len(rows) // BATCH):
            yield step.epoch, model


def last(steps: Iterator) -> torch.nn.Module:
    *_, (_, model) = steps
    return model


def scored(model: torch.nn.Module, log: Log, name: str, lr: float, decay: float) -> dict[str, np.ndarray]:
    """Probabilities of all rows after the warm-up, by a copy of the model that learns on the way."""
    model, learn, cuts = deepcopy(model), None, [log.first, len(log.shown)]
    if name != "never":
        width, late = CONTESTANTS[name]
        learn, cuts = log.refresher(model, lr, decay, late), log.cuts(width)
    said = replay(model, log.on_top, cuts, learn)
    return {task: p.numpy() for task, p in said.items()}


def narrow(model: torch.nn.Module, log: Log, lr: float, decay: float, how: str) -> Iterator[tuple[str, list]]:
    """Measures in the last week, on users outside one group and inside, after two weeks of its rows alone."""
    model, inside = deepcopy(model), (log.frame["age_group"] == GROUP).to_numpy()
    own = np.flatnonzero(inside & (log.day >= log.warm) & (log.day < DAYS - 7))
    kept = np.r_[np.arange(log.first), own]
    more = {"late": "oracle", "memory": np.arange(log.first) if how == "with memory" else None}
    learn = Refresher(model, log.rows.take(kept), log.shown[kept], log.paid[kept], lr=lr, weight_decay=decay,
                      weights=log.weights, **more)  # fmt: skip
    for _ in range(0 if how == "before" else 5):
        learn(log.first, len(kept))
    for where, rows in (("others", ~inside), (GROUP, inside)):
        rows = np.flatnonzero(rows & (log.day >= DAYS - 7))
        said = {task: p.numpy() for task, p in predict(model, log.on_top.take(rows)).items()}
        yield f"{GROUP}: {how}, on {where}", list(log.judged(said, rows))


def mean_of(days: Iterator[dict]) -> dict:
    return pd.DataFrame(days).drop(columns="day").mean().to_dict()


def best_setting(table: Table) -> tuple[float, float, int]:
    """Learning rate, decay and epochs of the warm-up with the best mean AUC over the tuning shops."""
    return best_of(table, "warm-up", SETTING)


def best_rate(table: Table, contestant: str) -> float:
    return best_of(table, contestant, "lr")


def best_of(table: Table, contestant: str, what: str | list[str]) -> tuple | float:
    rows = table.rows(shop=TUNING, contestant=contestant)
    both = (rows["auc_click"] + rows["auc_purchase"]) / 2
    return rows.assign(both=both).groupby(what)["both"].mean().idxmax()


def tune(table: Table, seed: int) -> None:
    """Warm-up settings, then the learning rate of every contestant; the warm-up's of the shops tuned so far."""
    done = table.done(shop=seed)
    rest = [pair for pair in product(RATES, DECAYS) if ("warm-up", *pair, max(EPOCHS)) not in done]
    if rest:
        early = Log(seed, False, WARM - 3)
        rows = np.flatnonzero((early.day >= WARM - 3) & (early.day < WARM))
        for lr, decay in rest:
            found = []
            for epoch, model in warmed(early, early.known, lr, decay, max(EPOCHS)):
                if epoch in EPOCHS:
                    said = {t: p.numpy() for t, p in predict(model, early.on_top.take(rows)).items()}
                    found.append(mean_of(early.judged(said, rows)) | {"epochs": epoch})
            table.add(found, shop=seed, season=0, contestant="warm-up", lr=lr, weight_decay=decay)
    _, decay, epochs = setting = best_setting(table)
    names = [name for name in CONTESTANTS if "late, hourly" not in name]
    done = {(name, lr) for name, lr, *_ in done}
    rest = [pair for pair in product(names, REFRESH) if pair not in done]
    if rest:
        log = Log(seed, False)
        model = last(warmed(log, log.known, *setting))
        for name, lr in rest:
            row = mean_of(log.judged(scored(model, log, name, lr, decay), log.after))
            row |= {"lr": lr, "weight_decay": decay, "epochs": epochs}
            table.add([row], shop=seed, season=0, contestant=name)


def run(table: Table, seed: int) -> None:
    """Write the rows of one reported shop that are not there yet, without and with a season."""
    (rate, decay, epochs), model = best_setting(table), None
    for season, names in enumerate((["never", *CONTESTANTS, BEFORE], INTERVALS)):
        here = {"shop": seed, "season": season}
        done = set(table.rows(**here)["contestant"])
        todo = [name for name in ("truth", *names) if name not in done]
        if todo:
            log, write = (
                Log(seed, bool(season)),
                partial(table.add, **here, weight_decay=decay, epochs=epochs),
            )
            model = model or last(
                warmed(log, log.known, rate, decay, epochs)
            )  # the season begins after the warm-up
        for name in todo:
            if name == "truth":
                for bound, p in bounds(log):
                    write(log.judged({task: p[task][log.after] for task in p}, log.after), contestant=bound)
                continue
            lr = rate if name == "never" else best_rate(table, TUNED_AS.get(name, name))
            if name != BEFORE:
                write(log.judged(scored(model, log, name, lr, decay), log.after), contestant=name, lr=lr)
                continue
            for how in ("before", "alone", "with memory"):
                for what, days in narrow(model, log, lr, decay, how):
                    write(days, contestant=what, lr=lr)
        print(f"shop {seed}{', season' * season}: done", flush=True)


def bounds(log: Log) -> Iterator[tuple[str, dict]]:
    yield "truth", log.truth
    for name, column in (("popularity", "item_past_ctr"), ("old ranker", "old_score")):
        score = log.frame[column].to_numpy()
        yield name, dict.fromkeys(log.truth, score if score.min() > 0 else 1 / (1 + np.exp(-score)))


if __name__ == "__main__":
    options = command_line(__doc__, shops=(*TUNING, *REPORTED)).parse_args()
    torch.set_num_threads(1)
    table = Table(options.out / "10_refresh.csv", "nb10_refresh.py", COLUMNS, ["contestant"], SETTING)
    for seed in options.shops:
        (tune if seed in TUNING else run)(table, seed)
