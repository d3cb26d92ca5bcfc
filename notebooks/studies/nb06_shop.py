"""All sharing architectures on the shop: equally large, equally tuned, each at one stop and at each task's own.

    python notebooks/studies/nb06_shop.py --shops 0 --only CGC        # tune; then the same for shop 1
    python notebooks/studies/nb06_shop.py --shops 200 --only CGC      # report; an hour of one core in all

Writes ``06_shop.csv``, a row for each shop, contestant, task and setting, as it comes; what is there is not run again.
**Primary contrast**, stated before the study was run: the mean of the gated architectures (MMoE, CGC, PLE of two
levels) minus shared bottom, mean AUC of click and purchase, each task at its own stop, equal parameters, no ids, eight
shops; expected: a small plus. All else is exploratory, with Holm's correction.

- Small shops, ``ShopConfig(432, n_impressions=48_000, seed=s)``: all is new in each. Split by time 50/20/30. Two tune,
  eight others are reported. Purchases that may still be pending are unknown; the next category is asked once a session.
- Every contestant tries twelve settings of learning rate and decay and keeps, for each task, that with the best
  validation on the tuning shops: AUC weighted by the truth, for the next category accuracy. Labels decide which epoch
  is kept: AUC, or accuracy. "One stop": one setting and one epoch, by the sum of the three. Test AUCs are weighted by
  the truth, over all rows and within each channel (``surface``).
- AdamW, 24 steps an epoch, at most 25 epochs, patience 5. Tasks weigh 1 / (loss of the best constant), purchase a tenth
  of that: so it was best on the tuning shops of ``nb02_sharing.py``, which are the same.
- As many parameters as a shared bottom of 128-64 with vectors of 4, save for the models of one task or channel, which
  are whole shared bottoms. AITM has its calibrator, alpha 0.6 as in the paper; ``upside_down`` is the share of test
  rows on which a purchase is called likelier than a click. "AITM, no calibrator" takes AITM's settings.
- Floors: the product's past click rate, the shares of the next categories. Ceiling: the true probabilities. Logistic
  regression is the same code without hidden layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import cache
from itertools import product

import numpy as np
import pandas as pd
import torch
from study import Best, Table, best_epochs, command_line, prepared, small_shop
from torch import nn

from mtl_helpers import data, models
from mtl_helpers.losses import task_losses
from mtl_helpers.metrics import expected_auc
from mtl_helpers.training import evaluate, predict
from mtl_helpers.weighting import Fixed, constant_losses

TUNING, REPORTED = (0, 1), tuple(range(200, 208))
TASKS = tuple(task.name for task in data.SHOP_TASKS)
CHANNELS, FUNNEL = ("home", "category page", "email"), ("click", "purchase")
DECAYS, RATES, LINEAR_RATES = (0.1, 1.0, 10.0), (2e-4, 1e-3, 5e-3, 2.5e-2), (1e-2, 3e-2, 1e-1)
LIKE = {"embedding_dim": 4, "hidden": (128, 64)}
KINDS = {
    "cross-stitch": models.CrossStitch,
    "MMoE": (models.MMoE, {"n_experts": 4}),
    "CGC": (models.PLE, {"n_specific": 1, "n_shared": 1}),
    "PLE, 2 levels": (models.PLE, {"n_specific": 1, "n_shared": 1, "levels": 2}),
    "ESMM": (models.ESMM, {"chain": FUNNEL}),
    "AITM": (models.AITM, {"chain": FUNNEL}),
    "AITM, no calibrator": (models.AITM, {"chain": FUNNEL}),
    "STEM": models.STEM,
    "PEPNet": (models.PEPNet, {"scene": "surface"}),
}
GATED = ("MMoE", "CGC", "PLE, 2 levels")
ALONE = {"logistic regression": {"embedding_dim": 1, "hidden": (), "tower": ()}, "single-task": LIKE}
SHARED = ("shared bottom", "shared bottom, no channel", *(f"{channel} model" for channel in CHANNELS))
CONTESTANTS = (*ALONE, *SHARED, *KINDS)
KEY, SETTING = ["contestant", "task"], ["lr", "weight_decay"]
COLUMNS = ["shop", *KEY, *SETTING, "parameters", "epoch", "valid", "auc", *CHANNELS]
COLUMNS += ["log_loss", "accuracy", "upside_down"]


class Calibrated(Fixed):
    """Fixed weights, plus 0.6 · the batch's mean of max(p(buy) − p(click), 0): AITM's calibrator (Xi et al., 2021)."""

    def losses(self, model: nn.Module, batch: data.Batch) -> torch.Tensor:
        logits = model(batch.numeric, batch.categorical)
        click, purchase = (logits[name].sigmoid() for name in FUNNEL)
        self.penalty = 0.6 * (purchase - click).clamp(min=0).mean()
        return torch.stack(list(task_losses(self.tasks, logits, batch).values()))

    def backward(self, losses: torch.Tensor, model: nn.Module) -> None:
        self.effective = self._now(losses)
        ((losses * self.effective).sum() + self.penalty).backward()


def shop_of(seed: int) -> data.Splits:
    frames = small_shop(seed)[1]
    again = pd.concat(frames.values()).duplicated("session_id")
    for name, frame in frames.items():
        frames[name] = frame.assign(next_category=frame["next_category"].mask(again[frame.index]))
    return prepared(frames)


def builder(name: str, splits: data.Splits, tasks: tuple) -> Callable[[], nn.Module]:
    """Of a contestant's model, ready to be called: the match of sizes is done once."""
    if name in KINDS:
        like = models.SharedBottom(splits.schema, tasks, **LIKE)
        return models.match_parameters(like, {name: KINDS[name]}, embedding_dim=4)[name]
    return lambda: models.SharedBottom(splits.schema, tasks, **ALONE.get(name, LIKE))


def scores(model: nn.Module, part: data.MultiTaskDataset) -> dict[str, float]:
    """By labels: what decides which epoch is kept; .5 where a small channel has one class."""
    found = evaluate(model, part)
    return {t: np.nan_to_num(v["auc" if "auc" in v else "accuracy"], nan=0.5) for t, v in found.items()}


def trained(name: str, make: Callable, parts: tuple, setting: tuple, seed: int) -> tuple[nn.Module, Best]:
    """Fit one model: it and, for each task and for their sum, the best epoch and the weights it had then."""
    (train, valid), (lr, decay) = parts, setting
    weights = {t: (0.1 if t == "purchase" else 1) / loss for t, loss in constant_losses(train).items()}
    torch.manual_seed(seed)
    model, batch = make(), int(np.clip(len(train) // 24, 64, 1024))
    strategy = (Calibrated if name == "AITM" else Fixed)(train.tasks, weights)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=decay)

    def with_sum() -> dict[str, float]:
        found = scores(model, valid)
        return found | {"sum": sum(found.values())}

    how = {"weights": strategy, "seed": seed, "patience": 5, "batch_size": batch, "epochs": 25}
    return model, best_epochs(model, train, optimizer, with_sum, **how)


def measures(task: str, said: np.ndarray, frame: pd.DataFrame) -> dict[str, float]:
    if task == "next_category":
        known = frame[task].notna().to_numpy()
        y, p = frame[task][known].to_numpy(int), said[known]
        log_loss = -np.log(np.clip(p[np.arange(len(y)), y], 1e-7, 1)).mean()
        return {"log_loss": log_loss, "accuracy": (p.argmax(1) == y).mean()}
    p = frame[f"p_{task}"].to_numpy()
    found = {"auc": expected_auc(p, said)}
    for channel in CHANNELS:
        rows = (frame["surface"] == channel).to_numpy()
        found[channel] = expected_auc(p[rows], said[rows]) if rows.any() else np.nan
    return found


def bounds(splits: data.Splits) -> Iterator[dict]:
    frame, classes = splits.frames["test"], splits.frames["train"]["next_category"]
    shares = classes.value_counts(normalize=True).reindex(range(8), fill_value=0)
    for task, (name, said) in product(FUNNEL, (("floor", "item_past_ctr"), ("truth", "p_{}"))):
        found = measures(task, frame[said.format(task)].to_numpy(), frame)
        yield {"contestant": name, "task": task, **found}
    found = measures("next_category", np.tile(shares.to_numpy(), (len(frame), 1)), frame)
    yield {"contestant": "floor", "task": "next_category", **found}


def judged(name: str, splits: data.Splits, run: tuple[nn.Module, Best]) -> Iterator[dict]:
    """Rows of one trained model: each task at its own best epoch, then all at one."""
    (model, best), tasks = run, tuple(task.name for task in run[0].tasks)
    for stop in ("each", "together")[: 1 + (len(tasks) > 1)]:
        states = {task: best[task if stop == "each" else "sum"][2] for task in tasks}
        said = {k: predict(model, getattr(splits, k), states) for k in ("valid", "test")}
        found = {k: {t: measures(t, said[k][t].numpy(), splits.frames[k]) for t in tasks} for k in said}
        gains = {t: v.get("auc", v.get("accuracy")) for t, v in found["valid"].items()}
        upside = np.nan
        if len(tasks) > 1:
            upside = (said["test"]["purchase"] > said["test"]["click"]).float().mean().item()
        for task in tasks:
            full = name if stop == "each" else f"{name}, one stop"
            row = {"contestant": full, "task": task, "parameters": models.count_parameters(model)}
            row |= {"epoch": best[task if stop == "each" else "sum"][1], "upside_down": upside}
            valid = gains[task] if stop == "each" else sum(gains.values())
            yield row | found["test"][task] | {"valid": valid}


def run(table: Table, seed: int, names: list[str]) -> None:
    """Write the rows of one shop that are not there yet: all settings where it tunes, else the chosen ones."""
    whole, tunes = cache(lambda: shop_of(seed)), seed in TUNING
    if not tunes and "shared bottom" in names and not table.has(shop=seed, contestant="truth"):
        table.add(bounds(whole()), shop=seed)
    for name in (name for name in names if not tunes or name != "AITM, no calibrator"):
        grid = list(product(LINEAR_RATES if name == "logistic regression" else RATES, DECAYS))
        for tasks in [(task,) for task in TASKS] if name in ALONE else [TASKS]:
            keys = [*product((name, f"{name}, one stop")[: 1 + (len(tasks) > 1)], tasks)]
            as_tuned = {key: (key[0].replace("AITM, no calibrator", "AITM"), key[1]) for key in keys}
            best = {} if tunes else table.chosen(as_tuned.values(), shop=TUNING)
            chosen = {key: best[tuned] for key, tuned in as_tuned.items() if tuned in best}
            todo = table.todo(keys, grid, chosen, shop=seed)
            if todo:
                splits = channel_of(name, whole())
                parts = splits.train.select(tasks), splits.valid.select(tasks)
                make = builder(name, splits, parts[0].tasks)
            for setting, own in todo.items():
                rows = judged(name, splits, trained(name, make, parts, setting, seed))
                rows = [row for row in rows if (row["contestant"], row["task"]) in own]
                table.add(rows, shop=seed, **dict(zip(SETTING, setting, strict=True)))
        print(f"shop {seed}, {name}: done", flush=True)


def channel_of(name: str, whole: data.Splits) -> data.Splits:
    """What a contestant may see: the rows of one channel, rows without their channel, or all."""
    if name not in SHARED[1:]:
        return whole
    splits = deepcopy(whole)
    if name == "shared bottom, no channel":
        column = [*splits.schema.categorical].index("surface")
        for part in (splits.train, splits.valid, splits.test):
            part.categorical[:, column] = 0
    else:
        for part in ("train", "valid", "test"):
            own = (splits.frames[part]["surface"] == name.removesuffix(" model")).to_numpy().nonzero()[0]
            splits.frames[part] = splits.frames[part].iloc[own]
            setattr(splits, part, getattr(splits, part).take(torch.tensor(own)))
    return splits


if __name__ == "__main__":
    options = command_line(__doc__, shops=(*TUNING, *REPORTED), only=CONTESTANTS).parse_args()
    torch.set_num_threads(1)
    table = Table(options.out / "06_shop.csv", "nb06_shop.py", COLUMNS, KEY, SETTING)
    for seed in options.shops:
        run(table, seed, options.only)
