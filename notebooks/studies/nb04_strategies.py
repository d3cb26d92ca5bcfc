"""Who should choose the task weights? All strategies, equally tuned, on small shops and on KuaiRand-Pure.

    python notebooks/studies/nb04_strategies.py --draws 0 --part 0/2    # half of the contestants, tuning shop 0

**Primary contrast**, stated before the study was run: uncertainty weighting minus equal weights, each at its own
learning rate and decay, one checkpoint for all tasks, in the mean over three tasks of the way from the floor to the
truth, ten shops; expected: plus. All else is exploratory, with Holm's correction within a table.

- Small shops, ``ShopConfig(432, n_impressions=48_000, seed=s)``, all new in each; split by time 50/20/30, no ids.
  KuaiRand: 20,000 of 92,034 training rows drawn by seed (two draws share about 22 % of theirs), no ids; the days of
  validation and test stay. Draws 0 and 1 tune, 100 to 109 (KuaiRand 100 to 107) are reported.
- Every contestant tries 3 learning rates × 3 decays with AdamW on two shops (KuaiRand: on one draw) and keeps the pair
  with the best validation score; tuned fixed weights try 7 ratios on top, so their tuning costs seven times as much.
  Where the best pair lies at an end, run the tuning draws again: the grid goes on by a rate, or by decay 10. It went on
  twice, after a first table had been read; 0.3 diverged. Decay 0.1 hardly decays, so it is no "edge".
- Score: mean over tasks of (metric − floor) / (truth − floor); AUC of click and purchase, accuracy of next_category.
  Floors: the product's past click rate, the majority; for the truth of next_category see nb00_shop_card.py. KuaiRand
  has no truth: the mean AUC. Labels decide which epoch is kept (by the score, ``joint``, or each task's own metric,
  ``each``), metrics weighted by the truth decide the rest.
- The same for all: ``SharedBottom(embedding_dim=4)``, batches of 1,024, at most 16 epochs, patience 3; a single-task
  model and logistic regression tune and stop for their own task.
- Own knobs: log-variances of UW and IMTL-L move at .05 ("UW, slow": at the model's rate); STCH as its authors run it,
  with one epoch of warm-up; GradNorm α 1.5, DWA T 2, CAGrad c .4, FAMO as in the papers. Gradients are combined at the
  shared representation; "exact" rows combine those of the parameters, at the settings of their twins.

Writes ``04_shop.csv`` and ``04_kuairand.csv``, a row a run and stop. Further parts, by ``--data``: ``kurin`` (decay ×
common scale of the loss, Adam with L2 inside and AdamW), ``front`` (click and purchase alone, fixed weights and
strategies), ``weights`` (what a strategy gave to each task, by step), ``cost`` (a step's time over a plain one's),
``walks`` (of the landscape). A row that is there is not run again.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache, partial
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from nb00_shop_card import hidden_state
from study import Table, best_epochs, command_line, prepared, small_shop

from mtl_helpers import data, weighting
from mtl_helpers.gradients import METHODS, CombinedGradients, combine
from mtl_helpers.metrics import auc, expected_auc
from mtl_helpers.models import SharedBottom
from mtl_helpers.sweep import simplex_grid
from mtl_helpers.training import predict, training_steps
from mtl_helpers.widgets.landscape import STARTS, WALKERS, plane_losses

TUNING, FIRST, EPOCHS, PATIENCE, BATCH = (0, 1), 100, 16, 3, 1024
GRID = (3e-3, 1e-2, 3e-2), (0.1, 1.0, 3.0)
WIDER = {3e-3: 1e-3, 1e-3: 3e-4, 1e-2: 3e-3, 3e-2: 1e-1}  # the next rate beyond an end
LINEAR, RATES = {"embedding_dim": 1, "hidden": (), "tower": ()}, (1e-2, 3e-2, 1e-1)
SETTING = ["ratio", "lr", "weight_decay"]
SHOP_TASKS, VIDEO_TASKS = ([task.name for task in tasks] for tasks in (data.SHOP_TASKS, data.KUAIRAND_TASKS))
RUN = ["contestant", "stop", *SETTING, "epochs", "valid"]
TABLES = {  # columns
    "shop": ["draw", *RUN, *SHOP_TASKS],
    "kuairand": ["draw", *RUN, *VIDEO_TASKS],
    "regularise": ["draw", "optimiser", "scale", *RUN, *SHOP_TASKS],
    "front": ["draw", *RUN, "click", "purchase"],
    "weights": ["contestant", "step", *SHOP_TASKS],
    "steps": ["contestant", "ratio"],
    "walks": ["scale", "method", "start", "step", "x1", "x2"],
}
ADAPTIVE = {
    "UW": weighting.UncertaintyWeighting,
    "UW, slow": lambda tasks: weighting.UncertaintyWeighting(tasks, lr=None),
    "IMTL-L": weighting.IMTLL,
    "DWA": weighting.DWA,
    "GradNorm": weighting.GradNorm,
    "RLW": weighting.RandomWeighting,
    "GLS": weighting.GLS,
    "STCH": lambda tasks: weighting.STCH(tasks, mu=1.0, warm_up=1),
    "FAMO": weighting.FAMO,
}
FIXED, EXACT = ("equal", "tuned fixed", "entropy", "rarity"), ("PCGrad", "MGDA", "UPGrad")
MULTI = (*FIXED, *ADAPTIVE, *METHODS, *(f"{name}, exact" for name in EXACT))
SHARES = (0.03, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 0.97)  # of purchase, of the sum of both weights
FRONT = ("equal", *(name for name in ADAPTIVE if "slow" not in name), "PCGrad", "MGDA", "CAGrad", "Nash-MTL")
SCALES, REGULARISED = (1 / 30, 1.0, 30.0), ("equal", "UW", "MGDA")
DECAYS = {"Adam, L2 inside": (0.0, 1e-4, 1e-3, 1e-2), "AdamW": (0.0, 0.1, 1.0, 3.0)}


def measure(task: data.Task, said: torch.Tensor, frame: pd.DataFrame, truth: bool) -> float:
    """AUC, weighted by the truth where there is one and it is asked for, or accuracy of a multiclass task."""
    if task.kind == "multiclass":
        known = frame[task.name].notna().to_numpy()
        return float((said.numpy().argmax(1)[known] == frame[task.name][known]).mean())
    if truth and f"p_{task.name}" in frame:
        return expected_auc(frame[f"p_{task.name}"], said)
    return auc(frame[task.name], said)


class Shop:
    """One small shop: its splits, and floor and truth of each task."""

    def __init__(self, seed: int) -> None:
        shop, frames = small_shop(seed)
        known = data.mask_future_labels(frames["valid"], frames["test"]["timestamp"].min())
        frames |= {"valid": known.assign(purchase=frames["valid"]["purchase"])}
        self.splits = prepared(frames)
        test, popular = frames["test"], torch.tensor(frames["test"]["item_past_ctr"].to_numpy())
        majority = np.eye(8)[[int(frames["train"]["next_category"].mode()[0])] * len(test)]
        floor = {"click": popular, "purchase": popular, "next_category": torch.tensor(majority)}
        truth = {name: torch.tensor(test[f"p_{name}"].to_numpy()) for name in ("click", "purchase")}
        truth["next_category"] = torch.tensor(hidden_state(shop, frames))
        self.bounds = [
            {task.name: measure(task, said[task.name], test, True) for task in self.splits.tasks}
            for said in (floor, truth)
        ]


class KuaiRand:
    """One draw of training rows; floor: the video's rate of clicks in them."""

    def __init__(self, seed: int) -> None:
        frames = data.split_by_date(data.load_kuairand(progress=False))
        train = frames["train"].sample(20_000, random_state=seed)
        plain = [name for name in data.KUAIRAND_CATEGORICAL if name not in ("user_id", "video_id")]
        columns = data.KUAIRAND_TASKS, data.KUAIRAND_NUMERIC, plain
        self.splits = data.prepare(frames | {"train": train}, *columns, min_count=2)
        rates = train.groupby("video_id")["click"].agg(["sum", "size"])
        rates = (rates["sum"] + 10 * train["click"].mean()) / (rates["size"] + 10)
        said = torch.tensor(frames["test"]["video_id"].map(rates).fillna(train["click"].mean()).to_numpy())
        floor = {t.name: measure(t, said, frames["test"], False) for t in self.splits.tasks}
        self.bounds = [floor, dict.fromkeys(floor, np.nan)]


SOURCES = {"shop": (Shop, TUNING, SHOP_TASKS), "kuairand": (KuaiRand, (0,), VIDEO_TASKS)}


def strategy(name: str, train: data.MultiTaskDataset, ratio: str = "") -> weighting.Weighting:
    """``ratio`` multiplies the weights that make all constant losses one."""
    base = name.removesuffix(", exact")
    if base in ADAPTIVE:
        return ADAPTIVE[base](train.tasks)
    if base in METHODS:
        return CombinedGradients(train.tasks, base, "representation" if base == name else "parameters")
    weights = dict.fromkeys((task.name for task in train.tasks), 1.0)
    if name == "rarity":
        weights = weighting.rarity_weights(train)
    elif name != "equal":
        weights, parts = weighting.entropy_weights(train), ratio.split(":") if ratio else (1,) * 9
        weights = {task: weights[task] * float(part) for task, part in zip(weights, parts, strict=False)}
    return weighting.Fixed(train.tasks, weights)


def only(splits: data.Splits, names: list[str]) -> data.Splits:
    parts = {part: getattr(splits, part).select(names) for part in ("train", "valid", "test")}
    return replace(splits, **parts, tasks=tuple(task for task in splits.tasks if task.name in names))


def scaled(made: weighting.Weighting, model: torch.nn.Module, scale: float) -> weighting.Weighting:
    """The same strategy, with every gradient of the model times a factor."""
    step = made.step

    def louder(optimizer: torch.optim.Optimizer) -> None:
        for p in model.parameters():
            if p.grad is not None:
                p.grad *= scale
        step(optimizer)

    made.step = louder
    return made


def trained(
    source: Shop | KuaiRand, splits: data.Splits, name: str, seed: int, setting: tuple,
    optimiser: str = "AdamW", scale: float = 1.0, layers: dict | None = None, seen: list | None = None,
) -> Iterator[dict]:  # fmt: skip
    """Fit one model: a row for one checkpoint and, with several tasks, one for each task's own. ``seen`` takes the
    weights of each step."""
    ratio, lr, weight_decay = setting
    torch.manual_seed(seed)
    model = SharedBottom(splits.schema, splits.tasks, **(layers or {"embedding_dim": 4}))
    kind = torch.optim.AdamW if optimiser == "AdamW" else torch.optim.Adam
    optimizer = kind(model.parameters(), lr=lr, weight_decay=weight_decay, fused=True)
    given = scaled(strategy(name, splits.train, ratio), model, scale)
    if seen is not None:
        hook = given.after_step
        given.after_step = lambda again: (hook(again), seen.append(given.effective.tolist()))

    def scores() -> dict[str, float]:
        said, frame = predict(model, splits.valid), splits.frames["valid"]
        found = {task.name: measure(task, said[task.name], frame, False) for task in splits.tasks}
        return found | {"joint": way(found, source)}

    how = {"weights": given, "seed": seed, "patience": PATIENCE, "batch_size": BATCH, "epochs": EPOCHS}
    best = best_epochs(model, splits.train, optimizer, scores, **how)
    for stop in ("joint", "each")[: len(splits.tasks)]:
        of = {task.name: best[task.name if stop == "each" else "joint"] for task in splits.tasks}
        states, found = {task: state for task, (*_, state) in of.items()}, {}
        for part in ("valid", "test"):
            said = predict(model, getattr(splits, part), states)
            found[part] = {t.name: measure(t, said[t.name], splits.frames[part], True) for t in splits.tasks}
        row = {"contestant": name, "stop": stop, **dict(zip(SETTING, setting, strict=True))}
        epochs = ":".join(str(epoch) for _, epoch, _ in of.values())
        yield row | {"epochs": epochs, "valid": way(found["valid"], source), **found["test"]}


def way(values: dict[str, float], source: Shop | KuaiRand) -> float:
    """The score: the mean way from floor to truth, or the mean where there is no truth."""
    floor, truth = source.bounds
    if np.isnan([*truth.values()]).any():
        return float(np.mean([*values.values()]))
    return float(np.mean([(v - floor[task]) / (truth[task] - floor[task]) for task, v in values.items()]))


def settings_of(name: str, tuned: pd.DataFrame, seed: int, tuning: tuple) -> list[tuple]:
    """On a tuning draw all settings of a contestant, else the best one; ``tuned``: the rows of those draws."""
    rates, decays = (RATES if name.startswith("logistic") else GRID[0]), GRID[1]
    ratios = [""]
    if name == "tuned fixed":
        ratios = [":".join(f"{w:.2f}" for w in row.values()) for row in simplex_grid(list("abc"), 3, 0.05)]
        ratios.append("0.33:0.33:0.33")
    rows = tuned[tuned["contestant"] == name.removesuffix(", exact")]
    means = rows.groupby(SETTING)["valid"].agg(["mean", "size"])
    means = means.loc[means["size"] == len(tuning), "mean"]
    if seed not in tuning:
        if len(means) < 9:
            raise SystemExit(f"{name} is not tuned yet: first run --draws {' '.join(map(str, tuning))}")
        return [means.idxmax()]
    if name.endswith("exact"):
        return []
    if len(means):  # where the best lies at an end of what was tried, the grid goes on
        _, rate, decay = means.idxmax()
        rates = {*rates, *means.index.unique("lr")} - {0.3}  # it diverged
        decays = {*decays, *means.index.unique("weight_decay")}
        rates |= {WIDER[rate]} if rate in (min(rates), max(rates)) and rate in WIDER else set()
        decays |= {10.0} if decay == 3 else set()
    return list(product(ratios, sorted(rates), sorted(decays)))


def table_of(out: Path, name: str, key: tuple = ("contestant",), setting: tuple = tuple(SETTING)) -> Table:
    kinds = {"ratio": str} if set(SETTING) <= set(TABLES[name]) else {}
    path = out / f"04_{name}.csv"
    return Table(path, "nb04_strategies.py", TABLES[name], key, setting, digits=5, **kinds)


def compare(which: str, seed: int, part: slice, out: Path) -> None:
    """All contestants, at all settings where the draw tunes."""
    (make, tuning, names), table = SOURCES[which], table_of(out, which)
    source = cache(lambda: make(seed))
    everyone = [*MULTI, *(f"{kind} {name}" for kind, name in product(("single-task", "logistic"), names))]
    tuned = table.rows(draw=tuning, stop="joint")
    jobs = [(name, setting) for name in everyone for setting in settings_of(name, tuned, seed, tuning)]
    if not part.start and not table.has(draw=seed, contestant="truth"):
        for name, values in zip(("floor", "truth"), source().bounds, strict=True):
            table.add([{"contestant": name, **values}], draw=seed)
    done = table.done(draw=seed)
    for name, setting in jobs[part]:
        if (name, *setting) not in done:
            kind, _, task = name.partition(" ")
            splits = only(source().splits, [task] if kind in ("single-task", "logistic") else names)
            layers = LINEAR if kind == "logistic" else None
            table.add(trained(source(), splits, name, seed, setting, layers=layers), draw=seed)
    print(f"{which} {seed}: {len(jobs[part])} runs", flush=True)


def regularise(seed: int, part: slice, out: Path) -> None:
    """Decay × common scale of the loss, at one learning rate."""
    source, table = (
        cache(lambda: Shop(seed)),
        table_of(out, "regularise", ("optimiser", "scale"), ("contestant", "weight_decay")),
    )
    jobs = [
        (optimiser, round(scale, 5), name, decay)
        for optimiser, decays in DECAYS.items()
        for name, decay, scale in product(REGULARISED, decays, SCALES)
    ]
    done = table.done(draw=seed)
    for optimiser, scale, name, decay in jobs[part]:
        if (optimiser, scale, name, decay) not in done:
            rows = trained(source(), source().splits, name, seed, ("", 1e-2, decay), optimiser, scale)
            table.add(rows, draw=seed, optimiser=optimiser, scale=scale)


def front(seed: int, part: slice, out: Path) -> None:
    """Click and purchase alone: fixed weights from end to end, at two settings, and where strategies land."""
    source, table = cache(lambda: Shop(seed)), table_of(out, "front")
    tuned = table_of(out, "shop").rows(draw=TUNING, stop="joint")
    ratios = [f"{1 - share:.2f}:{share:.2f}" for share in SHARES]
    jobs = [("fixed", ratio, rule) for rule, ratio in product(("entropy", "tuned fixed"), ratios)]
    jobs += [(name, "", name) for name in FRONT]
    done = table.done(draw=seed)
    for name, ratio, rule in jobs[part]:
        setting = (ratio, *settings_of(rule, tuned, seed, TUNING)[0][1:])
        if (name, *setting) not in done:
            splits = only(source().splits, ["click", "purchase"])
            table.add(trained(source(), splits, name, seed, setting), draw=seed)


def weights(out: Path, seed: int = FIRST, every: int = 4) -> None:
    """What a strategy gave to each task, as shares that sum to 1, mean over every few steps."""
    source, table = cache(lambda: Shop(seed)), table_of(out, "weights")
    tuned = table_of(out, "shop").rows(draw=TUNING, stop="joint")
    for name in (*ADAPTIVE, *METHODS):
        if not table.has(contestant=name):
            setting, seen = settings_of(name, tuned, seed, TUNING)[0], []
            list(trained(source(), source().splits, name, seed, setting, seen=seen))
            shares = np.array(seen) / np.sum(seen, axis=1, keepdims=True)
            blocks = [shares[at : at + every].mean(0) for at in range(0, len(shares), every)]
            found = pd.DataFrame(blocks, columns=SHOP_TASKS).assign(contestant=name)
            table.add(found.assign(step=(found.index + 1) * every).to_dict("records"))


def cost(out: Path, rounds: int = 25) -> None:
    """Seconds a step of each strategy, as the median ratio to equal weights within a round."""
    table, running = table_of(out, "steps"), {}
    if table.has(contestant="equal"):
        return
    splits, how = Shop(0).splits, {"epochs": rounds, "batch_size": BATCH}
    for name in MULTI:
        model = SharedBottom(splits.schema, splits.tasks, embedding_dim=4)
        optimizer, given = torch.optim.AdamW(model.parameters()), strategy(name, splits.train)
        running[name] = training_steps(model, splits.train, optimizer, weights=given, **how)
    seconds: dict[str, list[float]] = {name: [] for name in running}
    for number, (name, steps) in product(range(rounds + 3), running.items()):
        start = time.perf_counter()
        next(steps)
        if number >= 3:
            seconds[name].append(time.perf_counter() - start)
    plain = np.array(seconds["equal"])
    for name, own in seconds.items():
        table.add([{"contestant": name, "ratio": statistics.median(np.array(own) / plain)}])


def slopes(points: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
    """Gradients of both losses at points (…, 2) that ask for one: (…, 2 losses, 2 coordinates)."""
    totals = plane_losses(points, scale).flatten(0, -2).sum(0)  # a point moves its own losses alone
    return torch.stack([torch.autograd.grad(L, points, retain_graph=True)[0] for L in totals], dim=-2)


def descend(methods: Sequence[str], scale: float, steps: int, every: int) -> np.ndarray:
    """(kept, methods, starts, 2) points, one after every so many steps of Adam along a method's combined gradient."""
    points = torch.tensor([STARTS] * len(methods), dtype=torch.float64, requires_grad=True)
    adam, path = torch.optim.Adam([points], lr=1e-3), [points.tolist()]
    for step in range(1, steps + 1):
        rows = slopes(points, scale)
        points.grad = rows.mean(-2)
        for walk in np.ndindex(points.shape[:2]):
            if (method := methods[walk[0]]) != "Mean":
                points.grad[walk] = combine(method, rows[walk])
        adam.step()
        if step % every == 0:
            path.append(points.tolist())
    return np.array(path)


def walks(out: Path, steps: int = 100_000, every: int = 2_000) -> None:
    """The walks over two losses in the plane, at two scales of the first; more than an hour.

    Those that are stored were walked with closed forms of the methods. Walked by the package's own at scale 1, the same
    starts are at the front after 40, 60, 90 and 100 thousand steps; IMTL-G and PCGrad end elsewhere along it.
    """
    table = table_of(out, "walks")
    for scale in (1.0, 0.1):
        if table.has(scale=scale):
            continue
        path = descend(WALKERS, scale, steps, every)
        rows = [(*index, *path[index]) for index in np.ndindex(path.shape[:3])]
        found = pd.DataFrame(rows, columns=["step", "method", "start", "x1", "x2"]).assign(scale=scale)
        found["method"] = found["method"].map(dict(enumerate(WALKERS)))
        found["step"], found["start"] = found["step"] * every, found["start"] + 1
        table.add(found.to_dict("records"))


if __name__ == "__main__":
    parser = command_line(__doc__, draws=(*TUNING, *range(FIRST, FIRST + 10)))
    of_draws = {"shop": partial(compare, "shop"), "kuairand": partial(compare, "kuairand")}
    of_draws |= {"kurin": regularise, "front": front}
    once = {"weights": weights, "cost": cost, "walks": walks}
    parser.add_argument("--data", choices=(*of_draws, *once), default="shop")
    parser.add_argument("--part", default="0/1", help="the k-th of n parts of the runs, as k/n")
    options = parser.parse_args()
    torch.set_num_threads(1)
    first, step = (int(number) for number in options.part.split("/"))
    for seed in options.draws if options.data in of_draws else ():
        of_draws[options.data](seed, slice(first, None, step), options.out)
    if options.data in once:
        once[options.data](options.out)
