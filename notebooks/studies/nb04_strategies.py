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

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from nb00_shop_card import hidden_state
from study import ROOT, begin

from mtl_helpers import data, weighting
from mtl_helpers.gradients import METHODS, CombinedGradients, combine
from mtl_helpers.losses import label_counts
from mtl_helpers.metrics import auc, expected_auc
from mtl_helpers.models import SharedBottom
from mtl_helpers.sweep import simplex_grid
from mtl_helpers.training import predict, training_steps
from mtl_helpers.widgets.landscape import STARTS, WALKERS, plane_losses

TUNING, FIRST, EPOCHS, PATIENCE, BATCH = (0, 1), 100, 16, 3, 1024
GRID = (3e-3, 1e-2, 3e-2), (0.1, 1.0, 3.0)
WIDER = {3e-3: 1e-3, 1e-3: 3e-4, 1e-2: 3e-3, 3e-2: 1e-1}  # the next rate beyond an end
LINEAR, RATES = {"embedding_dim": 1, "hidden": (), "tower": ()}, (1e-2, 3e-2, 1e-1)
PARTS = ("shop", "kuairand", "kurin", "front", "weights", "cost", "walks")
SETTING = ["ratio", "lr", "weight_decay"]
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
        shop = data.simulate(data.ShopConfig(432, n_impressions=48_000, seed=seed))
        frame = data.shop_frame(shop).merge(shop.truth, on="impression_id")
        frames = data.split_by_time(frame, fractions=(0.5, 0.2, 0.3))
        starts = [frames[part]["timestamp"].min() for part in ("valid", "test")]
        known = data.mask_future_labels(frames["train"], starts[0], pending="unknown")
        valid = data.mask_future_labels(frames["valid"], starts[1])
        frames |= {"train": known, "valid": valid.assign(purchase=frames["valid"]["purchase"])}
        self.splits = data.prepare(frames, data.SHOP_TASKS, data.SHOP_NUMERIC, data.SHOP_CATEGORICAL)
        test, popular = frames["test"], torch.tensor(frames["test"]["item_past_ctr"].to_numpy())
        majority = np.eye(8)[[int(known["next_category"].mode()[0])] * len(test)]
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


SOURCES = {"shop": (Shop, TUNING, 10), "kuairand": (KuaiRand, (0,), 8)}


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
        weights = {
            task: weight * float(part) for (task, weight), part in zip(weights.items(), parts, strict=False)
        }
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
    how = {"batch_size": BATCH, "epochs": EPOCHS, "generator": torch.Generator().manual_seed(seed)}
    sums, counts, best = 0, 0, {}
    for step in training_steps(model, splits.train, optimizer, weights=given, **how):
        count = label_counts(splits.tasks, step.batch)
        sums, counts = sums + torch.stack([*step.losses.values()]) * count, counts + count
        if step.number < -(-len(splits.train) // BATCH):
            continue
        given.after_epoch(sums / counts, None)
        sums, counts = 0, 0
        said, frame = predict(model, splits.valid), splits.frames["valid"]
        scores = {task.name: measure(task, said[task.name], frame, False) for task in splits.tasks}
        for what, score in (*scores.items(), ("joint", way(scores, source))):
            if score > best.get(what, (-9,))[0]:
                best[what] = score, step.epoch, deepcopy(model.state_dict())
        if step.epoch >= max(epoch for _, epoch, _ in best.values()) + PATIENCE:
            break
    for stop in ("joint", "each")[: len(splits.tasks)]:
        states = {task.name: best[task.name if stop == "each" else "joint"] for task in splits.tasks}
        found = {}
        for part in ("valid", "test"):
            said = predict(
                model, getattr(splits, part), {task: state for task, (*_, state) in states.items()}
            )
            found[part] = {t.name: measure(t, said[t.name], splits.frames[part], True) for t in splits.tasks}
        row = {"contestant": name, "stop": stop, **dict(zip(SETTING, setting, strict=True))}
        epochs = ":".join(str(epoch) for _, epoch, _ in states.values())
        yield row | {"epochs": epochs, "valid": way(found["valid"], source), **found["test"]}


def way(values: dict[str, float], source: Shop | KuaiRand) -> float:
    """The score: the mean way from floor to truth, or the mean where there is no truth."""
    floor, truth = source.bounds
    if np.isnan([*truth.values()]).any():
        return float(np.mean([*values.values()]))
    return float(np.mean([(v - floor[task]) / (truth[task] - floor[task]) for task, v in values.items()]))


class Table:
    """A csv that grows by whole rows."""

    def __init__(self, path: Path, columns: list[str]) -> None:
        self.path, self.columns = path, columns
        begin(path, "nb04_strategies.py", columns)

    def read(self) -> pd.DataFrame:
        return pd.read_csv(self.path, comment="#", dtype={"ratio": str}).fillna({"ratio": ""})

    def write(self, rows: Iterator[dict] | list[dict]) -> None:
        text = pd.DataFrame(rows).reindex(columns=self.columns).round(5)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(text.to_csv(index=False, header=False))


def settings_of(name: str, table: pd.DataFrame, seed: int, tuning: tuple) -> list[tuple]:
    """On a tuning draw all settings of a contestant, else the best one."""
    rates, decays = (RATES if name.startswith("logistic") else GRID[0]), GRID[1]
    ratios = [""]
    if name == "tuned fixed":
        ratios = [":".join(f"{w:.2f}" for w in row.values()) for row in simplex_grid(list("abc"), 3, 0.05)]
        ratios.append("0.33:0.33:0.33")
    rows = table[(table["contestant"] == name.removesuffix(", exact")) & (table["stop"] == "joint")]
    means = rows[rows["draw"].isin(tuning)].groupby(SETTING)["valid"].agg(["mean", "size"])
    means = means.loc[means["size"] == len(tuning), "mean"]
    if seed not in tuning:
        if len(means) < 9:
            raise SystemExit(f"{name} is not tuned yet: first run --draws {' '.join(map(str, tuning))}")
        return [means.idxmax()]
    if name.endswith("exact"):
        return []
    if len(means):  # where the best lies at an end of what was tried, the grid goes on
        rates, decays = sorted({*rates, *means.index.unique("lr")}), sorted({*decays, *means.index.unique(2)})
        _, rate, decay = means.idxmax()
        rates += [WIDER[rate]] if rate in (rates[0], rates[-1]) and rate in WIDER else []
        decays += [10.0] if decay == 3 else []
    return list(product(ratios, rates, decays))


def compare(which: str, draws: list[int], part: tuple[int, int], out: Path) -> None:
    make, tuning, _ = SOURCES[which]
    for seed in draws:
        source = make(seed)
        names = [task.name for task in source.splits.tasks]
        columns = ["draw", "contestant", "stop", *SETTING, "epochs", "valid", *names]
        table = Table(out / f"04_{which}.csv", columns)
        everyone = [
            *MULTI,
            *(f"{kind} {name}" for kind, name in product(("single-task", "logistic"), names)),
        ]
        here = table.read()
        jobs = [(name, s) for name in everyone for s in settings_of(name, here, seed, tuning)]
        if part[0] == 0 and not ((here["draw"] == seed) & (here["contestant"] == "truth")).any():
            bounds = zip(("floor", "truth"), source.bounds, strict=True)
            table.write([{"draw": seed, "contestant": name, **values} for name, values in bounds])
        done = set(here[["draw", "contestant", *SETTING]].itertuples(index=False, name=None))
        for name, setting in jobs[part[0] :: part[1]]:
            if (seed, name, *setting) in done:
                continue
            kind, _, task = name.partition(" ")
            splits = only(source.splits, [task] if kind in ("single-task", "logistic") else names)
            layers = LINEAR if kind == "logistic" else None
            rows = trained(source, splits, name, seed, setting, layers=layers)
            table.write([{"draw": seed, **row} for row in rows])
        print(f"{which} {seed}: {len(jobs[part[0] :: part[1]])} runs", flush=True)


def regularise(draws: list[int], part: tuple[int, int], out: Path) -> None:
    """Decay × common scale of the loss, at one learning rate."""
    for seed in draws:
        source = Shop(seed)
        columns = ["draw", "optimiser", "scale", "contestant", "stop", *SETTING, "epochs", "valid"]
        table = Table(out / "04_regularise.csv", [*columns, *source.bounds[0]])
        here = table.read()[["draw", "optimiser", "scale", "contestant", "weight_decay"]]
        done = set(here.itertuples(index=False, name=None))
        jobs = [
            (optimiser, round(scale, 5), name, decay)
            for optimiser, decays in DECAYS.items()
            for name, decay, scale in product(REGULARISED, decays, SCALES)
        ]
        for optimiser, scale, name, decay in jobs[part[0] :: part[1]]:
            if (seed, optimiser, scale, name, decay) not in done:
                found = trained(source, source.splits, name, seed, ("", 1e-2, decay), optimiser, scale)
                table.write([{"draw": seed, "optimiser": optimiser, "scale": scale, **row} for row in found])


def front(draws: list[int], part: tuple[int, int], out: Path) -> None:
    """Click and purchase alone: fixed weights from end to end, at two settings, and where strategies land."""
    for seed in draws:
        source = Shop(seed)
        here = Table(out / "04_shop.csv", []).read()
        splits = only(source.splits, ["click", "purchase"])
        columns = ["draw", "contestant", "stop", *SETTING, "epochs", "valid", "click", "purchase"]
        table = Table(out / "04_front.csv", columns)
        key = ["draw", "contestant", *SETTING]
        done = set(table.read()[key].itertuples(index=False, name=None))
        ratios = [f"{1 - share:.2f}:{share:.2f}" for share in SHARES]
        jobs = [("fixed", ratio, rule) for rule, ratio in product(("entropy", "tuned fixed"), ratios)]
        jobs += [(name, "", name) for name in FRONT]
        for name, ratio, rule in jobs[part[0] :: part[1]]:
            setting = (ratio, *settings_of(rule, here, seed, TUNING)[0][1:])
            if (seed, name, *setting) not in done:
                rows = trained(source, splits, name, seed, setting)
                table.write([{"draw": seed, **row} for row in rows])


def weights(seed: int, out: Path, every: int = 4) -> None:
    """What a strategy gave to each task, as shares that sum to 1, mean over every few steps."""
    source = Shop(seed)
    here, names = Table(out / "04_shop.csv", []).read(), list(source.bounds[0])
    table = Table(out / "04_weights.csv", ["contestant", "step", *names])
    for name in (*ADAPTIVE, *METHODS):
        if name not in set(table.read()["contestant"]):
            seen = []
            list(
                trained(
                    source, source.splits, name, seed, settings_of(name, here, seed, TUNING)[0], seen=seen
                )
            )
            shares = np.array(seen) / np.sum(seen, axis=1, keepdims=True)
            blocks = [shares[at : at + every].mean(0) for at in range(0, len(shares), every)]
            table.write(
                [
                    {"contestant": name, "step": (at + 1) * every, **dict(zip(names, block, strict=True))}
                    for at, block in enumerate(blocks)
                ]
            )


def cost(out: Path, rounds: int = 25) -> None:
    """Seconds a step of each strategy, as the median ratio to equal weights within a round."""
    splits, running = Shop(0).splits, {}
    for name in MULTI:
        model = SharedBottom(splits.schema, splits.tasks, embedding_dim=4)
        optimizer = torch.optim.AdamW(model.parameters())
        given = strategy(name, splits.train)
        running[name] = training_steps(
            model, splits.train, optimizer, weights=given, epochs=rounds, batch_size=BATCH
        )
    seconds: dict[str, list[float]] = {name: [] for name in running}
    for number, (name, steps) in product(range(rounds + 3), running.items()):
        start = time.perf_counter()
        next(steps)
        if number >= 3:
            seconds[name].append(time.perf_counter() - start)
    plain = np.array(seconds["equal"])
    ratios = [
        {"contestant": n, "ratio": statistics.median(np.array(own) / plain)} for n, own in seconds.items()
    ]
    Table(out / "04_steps.csv", ["contestant", "ratio"]).write(ratios)


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
    """The walks over two losses in the plane, at two scales of the first; half an hour."""
    table = Table(out / "04_walks.csv", ["scale", "method", "start", "step", "x1", "x2"])
    for scale in (1.0, 0.1):
        path = descend(WALKERS, scale, steps, every)
        rows = [(*index, *path[index]) for index in np.ndindex(path.shape[:3])]
        found = pd.DataFrame(rows, columns=["step", "method", "start", "x1", "x2"]).assign(scale=scale)
        found["method"] = found["method"].map(dict(enumerate(WALKERS)))
        found["step"], found["start"] = found["step"] * every, found["start"] + 1
        table.write(found.to_dict("records"))


def main() -> None:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("--data", choices=PARTS, default="shop")
    parser.add_argument("--draws", type=int, nargs="+", default=[*TUNING, *range(FIRST, FIRST + 10)])
    parser.add_argument("--part", default="0/1", help="the k-th of n parts of the runs, as k/n")
    parser.add_argument("--out", type=Path, default=ROOT / "notebooks" / "results")
    options = parser.parse_args()
    torch.set_num_threads(1)
    part = tuple(int(number) for number in options.part.split("/"))
    started = time.process_time()
    jobs: dict[str, Callable[[], None]] = {
        "kurin": lambda: regularise(options.draws, part, options.out),
        "front": lambda: front(options.draws, part, options.out),
        "weights": lambda: weights(FIRST, options.out),
        "cost": lambda: cost(options.out),
        "walks": lambda: walks(options.out),
    }
    jobs.get(options.data, lambda: compare(options.data, options.draws, part, options.out))()
    print(f"{options.data} {options.draws} {options.part}: {time.process_time() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main()
