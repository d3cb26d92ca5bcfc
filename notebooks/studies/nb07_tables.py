"""Real logs: what is the seesaw made of, does sharing help where labels are scarce, and who wins on Census?

    python notebooks/studies/nb07_tables.py seesaw 1000          # the draw that tunes, then …
    python notebooks/studies/nb07_tables.py seesaw 0 1 2 3 4 5 6 7 --only "single-task" "shared bottom"
    python notebooks/studies/nb07_tables.py budget|drift|census 1000 0 1 …

``MTL_KUAIRAND`` and ``MTL_CENSUS`` name the data. Writes ``07_<study>.csv``, a row for each fit, task and stop, as it
comes; what is there is not run again. **Primary contrasts**, stated before the studies were run (all else is
exploratory):

- seesaw: AUC of like on the test day, shared bottom of three tasks minus single-task, each task at its own best setting
  and epoch, half of the training rows, eight draws. Expected: within ±.01; most of what a usual table shows against
  sharing is one stop and one setting for all tasks.
- budget: AUC of like, shared bottom of click and like minus single-task, mean over 1,000, 3,000 and 10,000 labels,
  each at its own best setting and epoch, eight draws. Expected: plus.
- census: AUC of income, MMoE minus single-task, at its own best epoch, eight splits. Expected: within ±.002.

What is kept equal: embeddings of 8, layers of 64 and 32 (an expert has them too), towers of 16, batches of 1,024, at
most 12 epochs, patience 2, AdamW. Everybody has 18 trials (budget and census 6, drift 4) on one draw that is not
reported: learning rate and decay, and for several tasks also what their losses weigh: 1, or 1 / (loss of the best
constant). A setting is chosen, and an epoch kept, by validation log-loss over that of the best constant: of one task
(stop "each") or of the sum (stop "together"). The shared bottom of "seesaw" is reported at each task's own best
setting, at the one that suits the sum, at that one with AdamW's default decay .01, and at (.001, .01, losses as they
come), which nobody tuned; single-task models at the first and the last; PLE, drift and census at the one setting.

A seed draws half of the training rows (Census: a split 70/15/15), the hidden labels, initial weights and batches. Two
halves share a quarter of the log, half of their own rows; the test day stays. A first look at the tuning draw showed
that ids help here and that decays above 10 do not, which set the grids.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from itertools import product

import numpy as np
import pandas as pd
import torch
from study import Table, command_line

from mtl_helpers import data
from mtl_helpers.data import public
from mtl_helpers.metrics import auc, calibration_error, grouped_auc
from mtl_helpers.models import PLE, MMoE, SharedBottom
from mtl_helpers.training import evaluate, fit, predict
from mtl_helpers.weighting import constant_losses

TUNING = 1000  # seeds from here on tune
EPOCHS, PATIENCE, BATCH, DEFAULT_DECAY = 12, 2, 1024, 0.01
LINEAR = {"embedding_dim": 1, "hidden": (), "tower": ()}
VIDEOS, PEOPLE = public.KUAIRAND_TASKS, public.CENSUS_TASKS
PAIR = (VIDEOS[0], VIDEOS[2])
KEY, SETTING = ["contestant", "budget", "task"], ["lr", "weight_decay", "weights"]
FIGURES = ["auc", "loss", "grouped_auc", "calibration_error"]
FIGURES += [f"auc_{how}_{what}" for what in ("user", "video") for how in ("cold", "warm")] + ["like_auc"]
COLUMNS = ["seed", *KEY, *SETTING, "stop", "epoch", "valid"]
DAYS = [*COLUMNS, "day", "auc", "observed", "predicted"]


def grid(rates: tuple, decays: tuple, weights: tuple = ("one",)) -> tuple:
    return tuple(product(rates, decays, weights))


RATES, BOTH = (1e-3, 3e-3, 1e-2), ("one", "constant")
ALONE = grid(RATES, (0.1, 0.3, 1, 3, 10, 30))
LOGISTIC = grid((3e-3, 1e-2, 3e-2), (0.01, 0.03, 0.1, 0.3, 1, 3))
TOGETHER, FEW = grid(RATES, (1, 3, 10), BOTH), grid((1e-3, 3e-3), (0.1, 1, 3))
FEW_LINEAR, FEW_TOGETHER = grid((1e-2, 3e-2), (0.03, 0.1, 1)), grid(RATES, (1,), BOTH)
DRIFT, DRIFT_TOGETHER = grid((1e-3, 3e-3), (1, 10)), grid((1e-3, 3e-3), (1,), BOTH)
STUDIES = {  # contestant: model, lists of tasks, settings, layers, which settings are reported
    "seesaw": {
        "logistic regression": (SharedBottom, [[t] for t in VIDEOS], LOGISTIC, LINEAR, ("own",)),
        "single-task": (SharedBottom, [[t] for t in VIDEOS], ALONE, {}, ("own", "default")),
        "shared bottom": (SharedBottom, [VIDEOS], TOGETHER, {}, ("own", "one", "undecayed", "default")),
        "PLE": (PLE, [VIDEOS], TOGETHER, {}, ("one",)),
    },
    "budget": {
        "logistic regression": (SharedBottom, [[VIDEOS[2]]], FEW_LINEAR, LINEAR, ("own",)),
        "single-task": (SharedBottom, [[VIDEOS[2]]], grid(RATES, (1, 10)), {}, ("own",)),
        "shared bottom": (SharedBottom, [PAIR], FEW_TOGETHER, {}, ("like",)),
    },
    "drift": {
        "single-task": (SharedBottom, [[t] for t in VIDEOS], DRIFT, {}, ("own",)),
        "shared bottom": (SharedBottom, [VIDEOS], DRIFT_TOGETHER, {}, ("one",)),
    },
    "census": {
        "logistic regression": (SharedBottom, [[t] for t in PEOPLE], FEW_LINEAR, LINEAR, ("own",)),
        "single-task": (SharedBottom, [[t] for t in PEOPLE], FEW, {}, ("own",)),
        "shared bottom": (SharedBottom, [PEOPLE], FEW, {}, ("one",)),
        "MMoE": (MMoE, [PEOPLE], FEW, {}, ("one",)),
        "PLE": (PLE, [PEOPLE], FEW, {}, ("one",)),
    },
}  # fmt: skip
BUDGETS = {"budget": ("1000", "3000", "10000", "all")}


@cache
def log(study: str) -> dict[str, pd.DataFrame] | pd.DataFrame:
    if study == "census":
        return public.load_census(progress=False)
    days = {"valid_day": "2022-04-27", "test_day": "2022-04-28"} if study == "drift" else {}
    return public.split_by_date(public.load_kuairand(progress=False), **days)


def split_census(frame: pd.DataFrame, seed: int) -> dict[str, pd.DataFrame]:
    """At random. With both files, train is the publisher's ``.data`` and ``.test`` is halved, as in Ma et al. (KDD
    2018, section 6.2); one file is cut 70, 15, 15."""
    order = np.random.default_rng(seed).permutation(len(frame))
    if set(frame["file"]) == {"data", "test"}:
        is_test = (frame["file"] == "test").to_numpy()
        train, rest = np.flatnonzero(~is_test), order[is_test[order]]
        valid, test = np.split(rest, [len(rest) // 2])
    else:
        train, valid, test = np.split(order, [int(0.7 * len(order)), int(0.85 * len(order))])
    return {"train": frame.iloc[train], "valid": frame.iloc[valid], "test": frame.iloc[test]}


def draw(study: str, seed: int) -> data.Splits:
    if study == "census":
        parts = split_census(log(study), seed)
        return data.prepare(parts, PEOPLE, public.CENSUS_NUMERIC, public.CENSUS_CATEGORICAL)
    half = log(study)["train"].sample(frac=0.5, random_state=seed)
    columns = public.KUAIRAND_WIDE_NUMERIC, public.KUAIRAND_WIDE_CATEGORICAL
    return data.prepare(log(study) | {"train": half}, VIDEOS, *columns, min_count=2)


def trained(
    drawn: data.Splits, setup: tuple, tasks: list, name: str, key: tuple
) -> Iterator[tuple[dict, dict]]:
    """Fit one model: for each task and stop a row, and predictions of the test rows if the seed is reported."""
    (model, _, _, layers, _), (seed, budget, (lr, weight_decay, weights)) = setup, key
    names, batch = [task.name for task in tasks], BATCH
    train = drawn.train.select(names)
    if budget != "all":
        train = data.hide_labels(train, "like", int(budget), seed=seed)
    scale = {task: 1 / loss for task, loss in constant_losses(train).items()}
    if len(tasks) == 1 and budget != "all":  # the rows that tell, in as many steps an epoch as all rows make
        rows = train.masks["like"].nonzero().squeeze(-1)
        train, batch = train.take(rows), max(1, round(BATCH * len(rows) / len(train)))
    torch.manual_seed(seed)
    net = model(drawn.schema, tasks, **layers)
    how = {
        "lr": lr,
        "weight_decay": weight_decay,
        "epochs": EPOCHS,
        "patience": PATIENCE,
        "batch_size": batch,
    }
    how |= {"weights": scale if weights == "constant" else None, "monitor": scale, "seed": seed}
    done = fit(net, train, drawn.valid.select(names), stop="each", progress=False, **how)
    for stop, states in (("each", done.best_states), ("together", None)):
        found = evaluate(net, drawn.valid, states)
        said = predict(net, drawn.test, states) if seed < TUNING else {}
        for task in names:
            key = (seed, name, budget, task, lr, weight_decay, weights)
            row = dict(zip(["seed", *KEY, *SETTING], key, strict=True))
            epoch = done.best_epochs[task] if states else done.best_epoch
            yield row | {"stop": stop, "epoch": epoch, "valid": found[task]["loss"] * scale[task]}, said


def measured(study: str, drawn: data.Splits, row: dict, said: dict) -> Iterator[dict]:
    """The row with what its predictions of the test rows are worth; of drift a row for each day."""
    if row["seed"] >= TUNING:
        yield row
        return
    task, frame = row["task"], drawn.frames["test"]
    y, p = drawn.test.labels[task].numpy(), said[task].numpy()
    if study == "drift":
        when = frame["date"].dt.strftime("%Y-%m-%d").to_numpy()
        for day in np.unique(when):
            now = when == day
            found = {"auc": auc(y[now], p[now]), "observed": y[now].mean(), "predicted": p[now].mean()}
            yield row | {"day": day} | found
        return
    row |= {"auc": auc(y, p), "loss": float(-np.log(np.where(y == 1, p, 1 - p).clip(1e-7)).mean())}
    row["calibration_error"] = calibration_error(y, p)
    if study == "seesaw":
        row["grouped_auc"] = grouped_auc(y, p, frame["user_id"].to_numpy())
        for what in ("user", "video"):
            place = public.KUAIRAND_WIDE_CATEGORICAL.index(f"{what}_id")
            cold = drawn.test.categorical[:, place].numpy() == 0
            row |= {f"auc_cold_{what}": auc(y[cold], p[cold]), f"auc_warm_{what}": auc(y[~cold], p[~cold])}
        row["like_auc"] = auc(drawn.test.labels["like"].numpy(), p)  # likes ranked by this task's prediction
    yield row


def floors(drawn: data.Splits, seed: int) -> Iterator[dict]:
    """Popularity: a video's share of yes in training, pulled towards the mean of all by twenty rows."""
    train, test = drawn.frames["train"], drawn.frames["test"]
    for task in (task.name for task in VIDEOS):
        by, mean = train.groupby("video_id")[task].agg(["sum", "count"]), train[task].mean()
        rate = test["video_id"].map((by["sum"] + 20 * mean) / (by["count"] + 20)).fillna(mean)
        row = {"seed": seed, "contestant": "popularity", "budget": "all", "task": task, "stop": "each"}
        yield row | {"auc": auc(test[task], rate)}


def chosen(table: Table, name: str, budget: str, tasks: list, roles: tuple) -> list[tuple]:
    """The settings that reported draws run, by the tuning draw."""
    names = tuple(task.name for task in tasks)
    rows = table.rows(contestant=name, budget=budget, task=names)
    mean = rows[rows["seed"] >= TUNING].groupby(["stop", "task", *SETTING])["valid"].mean()
    own = {task: mean["each"][task].idxmin() for task in names}
    one = mean["together"].groupby(SETTING).mean().idxmin()
    found = {"own": [*own.values()], "like": [own.get("like")], "one": [one]}
    found |= {"undecayed": [(one[0], DEFAULT_DECAY, one[2])], "default": [(1e-3, DEFAULT_DECAY, "one")]}
    return list(dict.fromkeys(setting for role in roles for setting in found[role]))


def run(table: Table, study: str, seed: int, names: list) -> None:
    """Write the rows of one seed that are not there yet."""
    drawn, done = cache(lambda: draw(study, seed)), table.done(seed=seed)
    if study == "seesaw" and seed < TUNING and not table.has(seed=seed, contestant="popularity"):
        table.add(floors(drawn(), seed))
    for name, budget in product(names, BUDGETS.get(study, ("all",))):
        _, teams, settings, _, roles = STUDIES[study][name]
        for tasks in teams:
            for setting in settings if seed >= TUNING else chosen(table, name, budget, tasks, roles):
                if (name, budget, tasks[0].name, *setting) not in done:
                    rows = trained(drawn(), STUDIES[study][name], tasks, name, (seed, budget, setting))
                    table.add(one for row, said in rows for one in measured(study, drawn(), row, said))
    print(f"{study} {seed}: {', '.join(names)}", flush=True)


if __name__ == "__main__":
    parser = command_line(__doc__)
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("seeds", nargs="+", type=int)
    parser.add_argument("--only", nargs="+", help="contestants; all if left out")
    options = parser.parse_args()
    torch.set_num_threads(1)
    path, columns = (
        options.out / f"07_{options.study}.csv",
        DAYS if options.study == "drift" else [*COLUMNS, *FIGURES],
    )
    table = Table(path, f"nb07_tables.py {options.study}", columns, KEY, SETTING, budget=str)
    for seed in options.seeds:
        run(table, options.study, seed, options.only or list(STUDIES[options.study]))
