"""A watch over a model that is refreshed daily: is it silent on quiet days, and which alarm sees which fault?

    python notebooks/studies/nb10_watch.py             # on one core about 5 minutes, after nb10_refresh.py

Writes ``10_watch.csv``, a row for each shop, fault and day, as it comes. Shops and models as in ``nb10_refresh.py``,
with twice the users and rows, warmed up on 14 days; each day is compared with the seven before. Days 21 to 41 are
quiet; a fault begins on day 28 and lasts ten days, and the model goes on learning from what it gets. Limits are 1.5
times the largest value on 84 quiet days of four shops. Reported: the share of quiet days with an alarm in eight other
shops, by alarm, and in how many of the eight a fault was seen while it lasted.

A first version, with half the rows and another scale for inputs, rang on 3 of 126 quiet days and was changed; the
shops are new in size, not in seed.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy, deepcopy

import numpy as np
import pandas as pd
import torch
from nb10_refresh import DAYS, PAGE, REPORTED, Log, best_rate, best_setting, last, replay, warmed
from study import append, begin, command_line

from mtl_helpers import data
from mtl_helpers.data import SHOP_CATEGORICAL, SHOP_NUMERIC
from mtl_helpers.production.watch import calibration_z, day_report

TUNING = (0, 1, 2, 3)
WARM, FAULT, WEEK, MATURE, LASTS, USERS = 14, 28, 7, 4, 10, 900
FEATURES = [name for name in (*SHOP_NUMERIC, *SHOP_CATEGORICAL) if name != "weekday"]  # it moves every day
ALARMS = ["inputs", "scores", "click", "purchase", "loss", "coverage"]
COLUMNS = ["shop", "fault", "day", *ALARMS, "worst"]


def cents(frame: pd.DataFrame, rows: np.ndarray) -> pd.DataFrame:
    raised = {name: frame[name] + np.log(100) * rows for name in ("log_price", "price_vs_category")}
    return frame.assign(**raised)


def lost(frame: pd.DataFrame, name: str, rows: np.ndarray, share: float) -> pd.DataFrame:
    gone = rows & (np.random.default_rng(0).random(len(frame)) < share)
    return frame.assign(**{name: frame[name].mask(gone, 0)})


FAULTS = {
    "price in cents": cents,
    "price in cents, one region": lambda f, rows: cents(f, rows & (f["region"] == "south").to_numpy()),
    "last click missing": lambda f, rows: f.assign(
        last_sub_category=f["last_sub_category"].mask(rows, "none")
    ),
    "click counter stuck": lambda f, rows: f.assign(
        item_past_ctr=f["item_past_ctr"].mask(rows, data.PRIOR_CTR)
    ),
    "half of the clicks lost": lambda f, rows: lost(f, "click", rows, 0.5),
    "purchases lost": lambda f, rows: lost(f, "purchase", rows, 1.0),
}


def faulty(log: Log, fault: str) -> Log:
    """The log as the shop would get it with a fault from day 28 on."""
    frame = FAULTS[fault](log.frame, log.day >= FAULT)
    made = copy(log)
    made.frame, made.paid = frame, np.where((frame["purchase"] > 0) | (log.day < FAULT), log.paid, np.inf)
    tasks = data.SHOP_TASKS[:2]
    made.rows = data.MultiTaskDataset.from_frame(frame, log.encoder, tasks)
    return made


def watched(log: Log, said: dict[str, np.ndarray], days: range) -> Iterator[dict]:
    """A report for each day; ``said`` are probabilities of the rows after the warm-up, where they were shown."""
    frame = log.frame[log.first :].assign(day=log.day[log.first :], paid=log.paid[log.first :])
    frame = frame.assign(**{f"said_{task}": p for task, p in said.items()})
    pages = frame["said_click"].to_numpy().reshape(-1, PAGE)
    frame["top"] = (np.argsort(np.argsort(-pages, axis=1), axis=1) < 3).ravel()
    for day in days:
        past, today = frame[frame["day"].between(day - WEEK, day - 1)], frame[frame["day"] == day]
        report = {"day": day} | day_report(past, today, FEATURES)
        late = frame[
            frame["day"].between(day - MATURE - 2, day - MATURE)
        ]  # three days whose purchases are in
        bought, p = (frame["paid"] < day).astype(float), frame["said_purchase"]
        before = frame["day"].between(day - MATURE - 9, day - MATURE - 3)
        bias = bought[before].sum() / p[before].sum() if before.any() else 1.0
        yield report | {"purchase": calibration_z(bought[late.index], p[late.index] * bias)}


def run(path, seed: int, setting: tuple) -> None:
    table = pd.read_csv(path, comment="#")
    done, log = set(table.loc[table["shop"] == seed, "fault"]), Log(seed, False, WARM, USERS)
    model = last(warmed(log, log.known, *setting[1:]))
    start = int(np.searchsorted(log.shown, FAULT - 1e-6))
    cuts = log.cuts(1.0)
    learn = log.refresher(model, setting[0], setting[2], "wait")
    early = replay(model, log.rows, [c for c in cuts if c <= start], learn)  # the state when the fault begins
    for fault in ("none", *FAULTS, "tastes move"):
        if fault in done or (seed in TUNING and fault != "none"):
            continue
        other = (
            log
            if fault == "none"
            else Log(seed, True, WARM, USERS)
            if fault == "tastes move"
            else faulty(log, fault)
        )
        net = deepcopy(model)
        learn_on = other.refresher(net, setting[0], setting[2], "wait")
        learn_on.optimizer.load_state_dict(learn.optimizer.state_dict())
        stop = (
            len(other.shown) if fault == "none" else int(np.searchsorted(other.shown, FAULT + LASTS - 1e-6))
        )
        later = replay(net, other.rows, sorted({c for c in [*cuts, stop] if start <= c <= stop}), learn_on)
        said = {task: torch.cat([early[task], later[task]]).numpy() for task in early}
        whole = copy(other)
        for name in ("shown", "paid", "day"):
            setattr(whole, name, getattr(other, name)[:stop])
        whole.frame = other.frame[:stop]
        days = range(WARM + WEEK, DAYS) if fault == "none" else range(FAULT, FAULT + LASTS)
        append(path, list(watched(whole, said, days)), shop=seed, fault=fault)
    print(f"shop {seed}: watched", flush=True)


def limits(table: pd.DataFrame) -> pd.Series:
    """Of each alarm, from the quiet days of the tuning shops."""
    quiet = table[table["shop"].isin(TUNING) & (table["fault"] == "none")]
    return 1.5 * quiet[ALARMS].abs().max()


if __name__ == "__main__":
    parser = command_line(__doc__)
    parser.add_argument("--shops", type=int, nargs="*", default=(*TUNING, *REPORTED))
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    tuned = pd.read_csv(chosen.out / "10_refresh.csv", comment="#")
    setting = (best_rate(tuned, "daily"), *best_setting(tuned))
    path = chosen.out / "10_watch.csv"
    begin(path, "nb10_watch.py", COLUMNS)
    for seed in chosen.shops:
        run(path, seed, setting)
    table = pd.read_csv(path, comment="#")
    fired = table[ALARMS].abs() > limits(table)
    print(limits(table).round(3).to_string())
    print(fired[table["fault"] == "none"].groupby(table["shop"]).mean().round(3).to_string())
    print(fired.groupby([table["fault"], table["shop"]]).any().groupby("fault").sum().to_string())
