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

from collections.abc import Callable, Iterator
from copy import copy, deepcopy

import numpy as np
import pandas as pd
import torch
from nb10_refresh import COLUMNS as REFRESHED
from nb10_refresh import DAYS, PAGE, REPORTED, Log, best_rate, best_setting, last, replay, warmed
from study import Table, command_line

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


def replaced(name: str, value: object) -> Callable[[pd.DataFrame, np.ndarray], pd.DataFrame]:
    return lambda frame, rows: frame.assign(**{name: frame[name].mask(rows, value)})


FAULTS = {
    "price in cents": cents,
    "price in cents, one region": lambda f, rows: cents(f, rows & (f["region"] == "south").to_numpy()),
    "last click missing": replaced("last_sub_category", "none"),
    "click counter stuck": replaced("item_past_ctr", data.PRIOR_CTR),
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


def run(table: Table, seed: int, setting: tuple) -> None:
    """Write the days of the faults that are not there yet; of a tuning shop the quiet ones alone."""
    faults = ("none",) if seed in TUNING else ("none", *FAULTS, "tastes move")
    todo = [fault for fault in faults if not table.has(shop=seed, fault=fault)]
    if not todo:
        return
    (rate, *warm), log = setting, Log(seed, False, WARM, USERS)
    model = last(warmed(log, log.known, *warm))
    start, cuts = int(np.searchsorted(log.shown, FAULT - 1e-6)), log.cuts(1.0)
    learn = log.refresher(model, rate, warm[1], "wait")
    early = replay(model, log.rows, [c for c in cuts if c <= start], learn)  # the state when the fault begins
    for fault in todo:
        other, days = log, range(WARM + WEEK, DAYS)
        if fault != "none":
            other = Log(seed, True, WARM, USERS) if fault == "tastes move" else faulty(log, fault)
            days = range(FAULT, FAULT + LASTS)
        net = deepcopy(model)
        learn_on = other.refresher(net, rate, warm[1], "wait")
        learn_on.optimizer.load_state_dict(learn.optimizer.state_dict())
        stop = int(np.searchsorted(other.shown, days.stop - 1e-6))
        later = replay(net, other.rows, sorted({c for c in [*cuts, stop] if start <= c <= stop}), learn_on)
        said = {task: torch.cat([early[task], later[task]]).numpy() for task in early}
        whole = copy(other)
        for name in ("shown", "paid", "day"):
            setattr(whole, name, getattr(other, name)[:stop])
        whole.frame = other.frame[:stop]
        table.add(watched(whole, said, days), shop=seed, fault=fault)
    print(f"shop {seed}: watched", flush=True)


if __name__ == "__main__":
    options = command_line(__doc__, shops=(*TUNING, *REPORTED)).parse_args()
    torch.set_num_threads(1)
    tuned = Table(options.out / "10_refresh.csv", "nb10_refresh.py", REFRESHED)
    setting = (best_rate(tuned, "daily"), *best_setting(tuned))
    table = Table(options.out / "10_watch.csv", "nb10_watch.py", COLUMNS)
    for seed in options.shops:
        run(table, seed, setting)
