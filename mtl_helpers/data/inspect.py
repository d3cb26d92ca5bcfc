"""Taught in notebook 01: a look at a table before it is learned from: leaks, and which columns are numbers."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import pandas as pd

from mtl_helpers.data.features import MIN_POSITIVES, vector_lengths
from mtl_helpers.data.tables import Task, check_tasks, need_columns, read_labels
from mtl_helpers.metrics import auc

__all__ = ["check_leaks", "guess_features"]

LEAK_AUC, FEW = 0.95, 20
CODE_NAME = re.compile(
    r"(?i)(^|_|(?<=[a-z])(?=[A-Z]))(id|ids|code|zip|zipcode|postcode|type|category|categorical|class|group|brand|customer"
    r"|user|item|product|shop|store|seller|city|region|country)(_?\d+)?$|^\d+$"
)
DATE_TEXT = re.compile(r"^\s*\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}([ T].*)?$")


def check_leaks(
    frames: dict[str, pd.DataFrame], features: Sequence[str], tasks: Sequence[Task], time: str | None = None
) -> pd.DataFrame:
    """Look for the usual leaks between a training and a test frame; one row per check (``check, passed, finding``).

    Checks that no label is among the features; that no row of the test part stands in the training part; that
    training ends before validation and validation before test (``time`` given); and that no single feature alone
    reaches an AUC of 0.95 on a binary label with 20 or more positive rows (an outcome in disguise, such as dwell time).
    That AUC is of one half of the training rows, scored by what the other half says of the feature: the direction of a
    number, the label's mean for each category.
    """
    train, labels = frames["train"], [task.name for task in check_tasks(tasks)]
    plain = [name for name in features if name not in labels and not len(vector_lengths(train[name]))]
    both = (frames[part][[*plain, *labels, *([time] if time else [])]] for part in ("train", "test"))
    seen, asked = (pd.util.hash_pandas_object(rows, index=False) for rows in both)
    shared = int(asked.isin(seen).sum())
    found = [  # what is checked, what is wrong, what to say if nothing is
        ("no label among the features", [name for name in labels if name in features], "none"),
        ("no test row stands in train", [f"{shared} rows do"] if shared else [], "none does"),
    ]
    if time:
        pairs = (("train", "valid"), ("valid", "test"))
        late = [f"{a} reaches into {b}" for a, b in pairs if frames[a][time].max() >= frames[b][time].min()]
        found.append(("parts follow each other in time", late, "they do"))
    scores = {}
    for task in tasks:
        y, known = read_labels(train, task)
        if task.kind == "binary" and min((y == 0).sum(), (y == 1).sum()) >= MIN_POSITIVES:
            for column in plain:
                scores[column, task.name] = _held_out_auc(train.loc[known, column], y[known])
    high = [f"{c} alone reaches AUC {v:.3f} on {t}" for (c, t), v in scores.items() if v >= LEAK_AUC]
    best = max(scores, key=scores.get, default=("", ""))
    strongest = f"the strongest is {best[0]} on {best[1]}, AUC {scores.get(best, 0):.3f}"
    fine = strongest if scores else "too few positive rows"
    found.append(("no feature is an outcome in disguise", high, fine))
    rows = [(check, not faults, "; ".join(faults) or fine) for check, faults, fine in found]
    return pd.DataFrame(rows, columns=["check", "passed", "finding"])


def _held_out_auc(values: pd.Series, y: np.ndarray) -> float:
    """AUC of one feature on each half of the rows, by the direction or the category means of the other half."""
    rows, half = pd.factorize(values)[0] + 1, np.random.default_rng(0).permutation(len(y)) % 2 == 0
    number = None
    if pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values):
        number = values.astype(float)
        number = number.fillna(number.min() - 1).to_numpy()  # a missing value can be the leak itself
    found = []
    for fitted, scored in ((half, ~half), (~half, half)):
        seen = np.bincount(rows[fitted], minlength=rows.max() + 1)
        sums = np.bincount(rows[fitted], y[fitted], minlength=rows.max() + 1)
        best = auc(y[scored], ((sums + y[fitted].mean()) / (seen + 1))[rows[scored]])
        if number is not None:
            direction = 1 if auc(y[fitted], number[fitted]) >= 0.5 else -1
            best = max(best, auc(y[scored], direction * number[scored]))
        found.append(best)
    return float(np.mean(found))


def guess_features(
    frame: pd.DataFrame, tasks: Sequence[Task], time: str | None = None, user: str | None = None
) -> tuple[list[str], list[str], pd.DataFrame]:
    """Propose which columns of a table are numbers and which are categories; you know better, so read the reasons.

    ``time`` and ``user`` are the columns by which you will split: the time is no feature, the user's id a category
    (leave it out when you test on new users). Returns ``numeric`` and ``categorical``, columns for :func:`prepare`, and
    a table of each column's ``use`` (``numeric``, ``categorical``, ``dropped``, ``label``) and ``why``.
    """
    told = {task.name: ("label", "you said so") for task in tasks}
    told |= {time: ("dropped", "the time of the split")} if time else {}
    told |= {user: ("categorical", "ids of users")} if user else {}
    need_columns(frame, [*told, *frame.columns], "guess_features")
    guessed = [told.get(column) or _guess(frame[column], str(column)) for column in frame]
    table = pd.DataFrame(guessed, pd.Index(frame.columns, name="column"), ["use", "why"])
    return *(table.index[table["use"] == use].tolist() for use in ("numeric", "categorical")), table


def _guess(values: pd.Series, name: str) -> tuple[str, str]:
    """What one column is used as, and why."""
    lengths, known = vector_lengths(values), values.dropna()
    if len(lengths) == 1 and isinstance(known.iloc[0][0] if lengths[0] else None, (int, float, np.number)):
        return "numeric", f"vectors of {lengths[0]} numbers"
    if len(lengths):
        return "dropped", "lists in its cells: make one 0/1 column of each value, or vectors of one length"
    distinct = known.nunique()
    every_row = len(known) >= 20 and distinct > 0.95 * len(known)
    if not len(known) or (distinct == 1 and len(known) == len(values)):
        return "dropped", "one value in every row" if len(known) else "it holds nothing"
    if pd.api.types.is_bool_dtype(known):
        return "categorical", "yes or no"
    if pd.api.types.is_numeric_dtype(known):
        if not bool((known % 1 == 0).all()):
            return "numeric", "numbers"
        coded = CODE_NAME.search(name)
        if every_row and (coded or float(known.max() - known.min()) == len(known) - 1):
            return "dropped", "another number in (nearly) every row, as a row number has"
        if coded or distinct <= FEW:
            why = "by its name" if coded else f"only {distinct} values"
            return "categorical", f"whole numbers like codes ({why}): if they are amounts, move it to numeric"
        return "numeric", "whole numbers of many values: if codes, move it to categorical"
    texts = pd.Series(known.unique()).head(2000)
    if not isinstance(texts.iloc[0], (str, int, float)) or DATE_TEXT.match(str(texts.iloc[0])):
        return "dropped", "dates or the like: make numbers of them, such as days before the event"
    if texts.astype(str).str.contains(r"[|;]|^\[|,(?=\S)").mean() > 0.5:
        return "dropped", "several values in a cell, or a decimal comma: make 0/1 columns, or numbers"
    if every_row and not CODE_NAME.search(name):
        return "dropped", "another value in (nearly) every row"
    return "categorical", f"{distinct:,} values"
