# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # 10 · To production: export, serve, renew, spread, protect, watch
#
# **Promise.** When you leave this page you can hand a multi-task model to those who run it: as an artefact, behind an
# address, learning from yesterday's log, on more rows and machines than yours, without giving its users away, and with an
# alarm that tells a fault from a quiet day.
#
# {{colab_badge}} · [glossary](glossary.md) · about 75 minutes to read, 2½ minutes to run on two CPU cores (no GPU needed) ·
# builds on notebooks 01, 02 and 05

# %%
# {{setup}}

# %% tags=["plumbing"]
# @title Imports, and where you are in the course
import json
import os
import shutil
import subprocess
import tempfile
import time
from importlib.util import find_spec

import numpy as np
import pandas as pd
import torch.nn.functional as F
from IPython.display import Markdown
from torch import nn

import mtl_helpers
from mtl_helpers.data import (
    CATEGORIES,
    SHOP_CATEGORICAL,
    SHOP_NUMERIC,
    SHOP_TASKS,
    load_shop,
    prepare,
    shop_frame,
    shop_splits,
)
from mtl_helpers.metrics import expected_auc, mean_interval, paired_difference
from mtl_helpers.models import (
    Fusion,
    SharedBottom,
    candidates,
    count_parameters,
    load_model,
    save_model,
    score_rows,
)
from mtl_helpers.production.serving import (
    Ranker,
    export_onnx,
    export_program,
    hammer,
    milliseconds,
    served,
)
from mtl_helpers.training import evaluate, fit, predict
from mtl_helpers.weighting import constant_losses
from mtl_helpers.widgets import Explorer, course_map, draw, dropdown, guess, slider
from mtl_helpers.widgets import figures as plots

torch.set_num_threads(1)  # models this small need no more, and more threads stumble on a busy machine
folder = Path(mtl_helpers.__file__).parents[1] / "notebooks" / "results"
work = Path(tempfile.mkdtemp(prefix="mtl10_"))  # all that this page writes; the last cell removes it
TASKS = [task.name for task in SHOP_TASKS]
COLORS = {name: plots.task_style(name)["color"] for name in TASKS}
EPOCHS = 1 if FAST else 5


def stored(name):
    """A table that a study of this page has stored."""
    return pd.read_csv(folder / name, comment="#")


def number(value, digits=3):
    return f"{value:+.{digits}f}".replace("-", "−")


def span(i, digits=3):
    """Mean and interval of a difference, in words."""
    return f"{number(i.mean, digits)} [{number(i.low, digits)}, {number(i.high, digits)}]"


def says(interval, up="ahead", down="behind"):
    """What an interval of differences allows us to say."""
    return (up if interval.mean > 0 else down) if interval.excludes_zero else "a tie"


def without(*packages):
    """None when these are installed; else a line that says what follows instead."""
    if gone := [name for name in packages if find_spec(name) is None]:
        how_to = '`pip install "mtl-helpers[production]"`, or the packages by name, runs it here'
        return Markdown(f"*{', '.join(gone)} is not installed: what follows was stored. {how_to}.*")


course_map("10")

# %% [markdown]
# ## The question of this page
#
# A notebook ends where a shop begins. There a model is asked a thousand times a second, by programs that send what it has
# never seen; yesterday's tastes are not today's; the log does not fit a laptop; users may ask to be forgotten; and at night
# nobody looks at a learning curve. **What must hold before a model may be left alone?**
#
# | section | the question | who keeps the engine |
# |---|---|---|
# | 1 | Does the file that leaves give the same scores as the model that stayed? | torch.export, ONNX |
# | 2 | Is every request answered, also while the model is exchanged? | FastAPI, uvicorn |
# | 3 | How often must a model learn, and what when labels come late? | a loop of ten lines |
# | 4 | What if the log is larger than memory? | pyarrow, duckdb |
# | 5 | What if one machine is too slow? | torchrun, joblib, Ray |
# | 6 | What do a log and a model give away? | torch.func, Opacus |
# | 7 | Why this product, and when must somebody be woken? | captum |
#
# The engines are *kept by others*, and this page does not write its own. Where one is not installed, its section says so
# in a line and shows what was stored when it was. Our three tasks stay: {{click}}, {{purchase}}, {{next_category}}.

# %% tags=["plumbing"]
# @title The shop, its latest 80,000 rows, and the model of this page
shop = load_shop()
frame = shop_frame(shop).merge(shop.truth, on="impression_id").tail(80_000)
parts = shop_splits(frame)
if FAST:
    parts["train"] = parts["train"].tail(14_000)
data = prepare(parts, SHOP_TASKS, SHOP_NUMERIC, SHOP_CATEGORICAL, device=device)
weights = {task: 1 / loss for task, loss in constant_losses(data.train).items()}
how = {"epochs": EPOCHS, "lr": 3e-3, "weight_decay": 1.0, "weights": weights, "progress": False}
torch.manual_seed(0)
model = SharedBottom(data.schema, data.tasks)
fit(model, data.train, data.valid, **how)
model = model.eval()
at_home = predict(model, data.test)
told = {task: expected_auc(parts["test"][f"p_{task}"], at_home[task].cpu()) for task in ("click", "purchase")}
Markdown(
    f"Trained: a shared bottom with {count_parameters(model):,} numbers and three towers. On the latest fifth of the rows its AUC is "
    f"{told['click']:.3f} for click and {told['purchase']:.3f} for purchase, weighted by the truth as everywhere in the course."
)

# %% [markdown]
# ## 1 · A trained model as an artefact
#
# **What leaves.** Weights alone are worth nothing elsewhere: they expect columns in an order, categories as numbers, means
# that were subtracted. An **artefact** holds all of it, and no code: the encoder's state and the schema as JSON, the weights
# as safetensors. Loaded elsewhere it must score *raw rows* as the model did that stayed.

# %%
saved = save_model(work / "model", model, data.encoder)
loaded, encoder = load_model(saved)
raw = parts["test"].drop(columns=["click", "purchase", "next_category"])  # no label needed
away = score_rows(loaded, encoder, raw)
for task in TASKS:
    np.testing.assert_allclose(away[task], at_home[task].cpu(), rtol=0, atol=1e-6)

# %% [markdown]
# ### Rows it has never seen
#
# The rows that arrive are not the rows of the notebook: numbers come as text, a column is missing, a brand is new. Two
# answers are right: **the same scores**, or **a refusal with words**. A third is the dangerous one: other scores, without a
# word. Which of the nine cases below gets it?

# %%
g_rows = guess("Nine odd ways to send a row: how many give a score without a word?", 0, 9, 1, "ways")
g_rows

# %% tags=["plumbing"]
# @title Nine ways to send a row
import warnings

hundred = raw.tail(100)
usual = score_rows(loaded, encoder, hundred)


ways = {
    "columns in another order": hundred[sorted(hundred.columns)],
    "numbers as float32": hundred.assign(age=hundred["age"].astype("float32")),
    "position as text (“1”)": hundred.assign(position=hundred["position"].astype(str)),
    "brand as a pandas category": hundred.assign(brand=hundred["brand"].astype("category")),
    "a brand never seen, in every row": hundred.assign(brand="brand of tomorrow"),
    "age missing in every row": hundred.assign(age=np.nan),
    "no column of the price": hundred.drop(columns="log_price"),
    "age as a word": hundred.assign(age="forty"),
    "age in the wrong unit (months)": hundred.assign(age=hundred["age"] * 12),
}
answers = []
for way, table in ways.items():
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            got = score_rows(loaded, encoder, table)
            gap = max(np.abs(got[task] - usual[task]).max() for task in TASKS)
            words = str(warned[0].message)[:70] + " …" if warned else ""
            answer = "the same" if gap < 1e-6 else f"others, by up to {gap:.2f}"
        except (KeyError, ValueError) as error:
            answer, words = "refused", str(error).strip("'\"")[:70] + " …"
    answers.append((way, answer, words))
answers = pd.DataFrame(answers, columns=["what arrives", "scores", "words"]).set_index("what arrives")
silent = answers[answers["scores"].str.startswith("others") & (answers["words"] == "")]
display(plots.table(answers))
display(g_rows.answer(len(silent), digits=0))
Markdown(
    f"Other scores without a word: **{'; '.join(silent.index)}**. An encoder cannot know better: a missing age counts as the mean, as it did in training, and 480 is a "
    "number like any other. Types, order and names can be checked row by row; *units and shares of missing values only against yesterday's rows*. Section 7 does that."
)

# %% [markdown]
# ### Without the class, without Python
#
# `load_model` needs this course's Python. `torch.export` follows the model once and keeps the **graph** of its tensor
# operations, for any number of rows if told so. ONNX writes the same graph in a format that engines in C++, Java or a
# browser read. Both must give the same scores, for 1 row and for 1,000:

# %%
rows_ = data.test.numeric[:1000].cpu(), data.test.categorical[:1000].cpu()
program = export_program(loaded, rows_[0][:64], rows_[1][:64])  # 64 rows: an example
torch.export.save(program, work / "model.pt2")
graph = torch.export.load(work / "model.pt2").module()
with torch.no_grad():
    for n in (1, 1000):
        here, there = (f(rows_[0][:n], rows_[1][:n]) for f in (loaded, graph))
        assert max((here[task] - there[task]).abs().max() for task in TASKS) < 1e-6

# %% [markdown]
# Does that hold for *every* architecture of the course? And what does one answer cost: all 1,000 products for one user, on
# one thread?

# %%
g_onnx = guess("ONNX against PyTorch, shared bottom: time of an answer?", 10, 200, 5, "%")
g_onnx

# %% tags=["plumbing"]
# @title Fourteen architectures, exported: equal scores, and milliseconds
table = stored("10_artefacts.csv").set_index("model")
fig = plots.figure(4.2)
ax = fig.subplots()
for i, one in enumerate(table.to_dict("records")):
    for shift, engine, color, marker in ((-0.14, "eager", "#8A99A9", "o"), (0.14, "onnx", "#222222", "D")):
        ax.plot([one[f"{engine}_p50"], one[f"{engine}_p99"]], [i + shift] * 2, color=color, lw=1.6)
        label = {"eager": "PyTorch", "onnx": "onnxruntime"}[engine] if i == 0 else None
        ax.plot(one[f"{engine}_p50"], i + shift, marker, color=color, ms=6, label=label)
ax.set_yticks(range(len(table)), list(table.index))
ax.invert_yaxis()
ax.set(
    xscale="log",
    xlabel="milliseconds for one user and 1,000 products, one thread: median, line to the 99th percentile",
)
ratio = table["onnx_p50"] / table["eager_p50"]
faster = int((ratio < 1).sum())
ax.set_title(f"onnxruntime is faster for {faster} of {len(table)} architectures")
plots.legend_outside(fig, ax)
display(fig, g_onnx.answer(100 * ratio["SharedBottom"], digits=0))
short = table.assign(
    **{
        "saved, kB": table["saved_kb"],
        "ONNX, kB": table["onnx_kb"],
        "gap of torch.export": table["program_gap"],
        "gap of ONNX": table["onnx_gap"],
    }
)[["parameters", "saved, kB", "ONNX, kB", "gap of torch.export", "gap of ONNX"]]
shown = short.copy()
for column in ("gap of torch.export", "gap of ONNX"):
    shown[column] = [f"{gap:.0e}".replace("-", "−") if gap else "0" for gap in short[column]]
for column in ("parameters", "saved, kB", "ONNX, kB"):
    shown[column] = [f"{value:,.0f}" for value in short[column]]
display(plots.table(shown))
Markdown(
    f"The lines are long because the machine was busy: a 99th percentile is mostly *waiting for the processor*. The largest difference in a logit is {short['gap of torch.export'].max():.0e} for torch.export and {short['gap of ONNX'].max():.0e} for ONNX, on 1 row and on 1,000: "
    f"{'equal in float32' if short['gap of ONNX'].max() < 1e-5 else 'NOT equal'}. The study is `notebooks/studies/nb10_serving.py`; the shapes of the graph "
    "are fixed but for the number of rows, so a new brand in the encoder needs a new export."
)

# %% [markdown]
# A model answers within a millisecond or two. Where, then, does the time of an answer go?

# %% tags=["plumbing"]
# @title Where the time of one answer goes, here and now
people = np.sort(parts["test"]["user_id"].unique())[: 4 if FAST else 20]
evening = candidates(shop, people)  # each of them with every product, on the next evening
one_user = evening[evening["user_id"] == people[0]]
codes_ = encoder.transform(one_user)
both = Fusion({"click": 1.0, "purchase": 1.0})
with torch.no_grad():
    logits_ = loaded(*codes_)
times = 20 if FAST else 100
with torch.inference_mode():
    steps_ = {
        "encode 1,000 raw rows": milliseconds(lambda: encoder.transform(one_user), max(times // 5, 4)),
        "score them (PyTorch)": milliseconds(lambda: loaded(*codes_), times),
        "fuse and take the best 10": milliseconds(
            lambda: both({k: logits_[k].sigmoid() for k in ("click", "purchase")}).topk(10), times
        ),
    }
fig = plots.figure(1.9)
ax = fig.subplots()
for i, (middle, late) in enumerate(steps_.values()):
    ax.barh(i, middle, color="#8A99A9", height=0.55)
    ax.plot([middle, late], [i, i], color="#222222", lw=1.4)
ax.set_yticks(range(3), list(steps_))
ax.invert_yaxis()
share_ = steps_["score them (PyTorch)"][0] / sum(middle for middle, _ in steps_.values())
ax.set(
    xlabel="milliseconds (bar: median, line to the 99th percentile)",
    title=f"The model takes {share_:.0%} of the time of an answer",
)
display(fig)
Markdown(
    "A faster graph would speed up the smallest part. Raw rows are what a notebook has; a shop keeps them **encoded**, in a *feature store*, and so does the server below: "
    "it encodes each user's rows once, when a model is loaded, *with that model's encoder*. Exchanging one without the other is a classic accident."
)

# %% [markdown]
# ## 2 · Serve it
#
# A server is a function with an address. `Ranker` holds one artefact and the encoded rows; `rank` gives a user's best
# products with the scores of all tasks, their fusion, and reasons. FastAPI puts it behind `/rank`, and **pydantic** reads
# what comes in against a declaration, so that a wrong request never reaches the model:


# %%
def make_app(ranker):
    from typing import Literal

    from fastapi import FastAPI, HTTPException
    from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat

    class Wish(BaseModel):
        model_config = ConfigDict(extra="forbid")  # a mistyped name is a mistake
        user: int = Field(ge=0)
        k: int = Field(10, ge=1, le=100)
        weights: dict[Literal["click", "purchase"], NonNegativeFloat] = Field(
            {"click": 1.0, "purchase": 1.0}, min_length=1
        )

    app = FastAPI()
    app.state.ranker = ranker

    @app.post("/rank")
    def rank(wish: Wish):
        now = app.state.ranker  # one model from the first line to the last
        if wish.user not in now.users:
            raise HTTPException(404, f"There are no features of user {wish.user}.")
        items = now.rank(wish.user, wish.k, wish.weights)
        return {"user": wish.user, "model": now.version, "items": items}

    return app


# %% tags=["plumbing"]
# @title Asked in process: one good request, and five that are wrong
engines = "fastapi", "uvicorn", "httpx"
first = int(people[0])
wishes = {
    "user 12, best 3": {"user": first, "k": 3},
    "k = 5000": {"user": first, "k": 5000},
    "user “twelve”": {"user": "twelve"},
    "weight −1 for click": {"user": first, "weights": {"click": -1}},
    "weight for “clicks”": {"user": first, "weights": {"clicks": 1}},
    "“users” instead of “user”": {"users": first},
    "a user without features": {"user": 10**9},
}
wishes = {name.replace("12", str(first)): wish for name, wish in wishes.items()}
ranker = Ranker(saved, evening)
best3 = pd.DataFrame(ranker.rank(first, 3, {"click": 1.0, "purchase": 1.0}))
names_ = shop.items.set_index("item_id")["title"]
best3 = best3.assign(product=best3["item"].map(names_), reasons=best3["reasons"].str.join("; "))
best3 = best3[["product", "score", *TASKS, "reasons"]]
display(plots.table(best3.set_index("product"), digits=3))
if without(*engines):
    display(without(*engines))
else:
    from fastapi.testclient import TestClient

    client = TestClient(make_app(ranker))
    replies = []
    for name, wish in wishes.items():
        reply = client.post("/rank", json=wish)
        detail = reply.json().get("detail", "")
        detail = (
            detail
            if isinstance(detail, str)
            else "; ".join(f"{'.'.join(map(str, d['loc'][1:]))}: {d['msg']}" for d in detail)
        )
        replies.append((name, reply.status_code, detail or f"{len(reply.json()['items'])} products"))
    display(plots.table(pd.DataFrame(replies, columns=["request", "status", "words"]).set_index("request")))

# %% [markdown]
# The table on top is what one user gets: all tasks, the fused score, and for each task how much likelier the product is than
# the average one. These *reasons* say which task speaks for a product, not why the model thinks so; section 7 asks that. Each
# wrong request got 422 and the name of the field; a user without features got 404.
#
# ### Two hundred requests, and a new model in the middle
#
# Overnight a new model was trained. Stopping the server drops requests. Instead the *reference* to the ranker is exchanged,
# in one assignment: requests that run keep the old one to their end. 200 requests come over the loopback address, eight at
# once; while they come the model is exchanged. How much slower is the slowest in a hundred than the median?

# %%
g_tail = guess("p99 over p50, eight requests at once?", 1, 20, 0.5, "times")
g_tail

# %% tags=["plumbing"]
# @title Two hundred requests, eight at once
if without(*engines):
    seen = stored("10_requests.csv")
    display(without(*engines))
else:
    torch.manual_seed(1)
    newer = SharedBottom(data.schema, data.tasks)
    fit(newer, data.train, data.valid, **how | {"epochs": 1})
    app = make_app(ranker)
    count = 80 if FAST else 200
    bodies = [{"user": int(people[i % len(people)]), "k": 10} for i in range(count)]
    import threading

    def exchange():
        """The new model is read and its rows are encoded beside the running one; then one assignment."""
        app.state.ranker = Ranker(save_model(work / "newer", newer, data.encoder), evening)

    with served(app) as address:
        hammer(f"{address}/rank", bodies[:8])  # the first ones wake the threads
        other = threading.Timer(0.15, exchange)
        other.start()
        seen = hammer(f"{address}/rank", bodies)
        other.join()
        after = hammer(f"{address}/rank", bodies[:8])
    seen = pd.concat([seen, after.assign(second=after["second"] + seen["second"].max())], ignore_index=True)
middle_, late_ = np.percentile(seen["ms"], (50, 99))
versions = list(dict.fromkeys(seen.sort_values("second")["model"]))
fig = plots.figure(3.0)
ax = fig.subplots()
for version, color, marker, label in zip(
    versions, ("#8A99A9", "#882255"), "oD", ("the old model", "the new one"), strict=False
):
    dots = seen[seen["model"] == version]
    ax.plot(1000 * dots["second"], dots["ms"], marker, color=color, ms=4, label=f"{label} ({len(dots)})")
for value, name in ((middle_, "p50"), (late_, "p99")):
    ax.axhline(value, color="#222222", lw=1, ls=":")
    ax.annotate(
        f" {name} {value:.0f} ms", (1, value), xycoords=("axes fraction", "data"), va="center", fontsize=9
    )
if g_tail.value is not None:
    ax.axhline(g_tail.value * middle_, color="#8B5A00", ls="--", lw=1.6)
plots.within(ax, low=0)
lost = int((seen["status"] != 200).sum())
ax.set(xlabel="the request began after … ms", ylabel="ms until the answer")
ax.set_title(f"{len(seen)} requests, {'none' if lost == 0 else lost} lost, {len(versions)} models")
plots.legend_outside(fig, ax)
display(fig, g_tail.answer(late_ / middle_, digits=1))
Markdown(
    f"The median answer took {middle_:.0f} ms, the 99th percentile **{late_:.0f} ms**, and {'nothing was lost' if lost == 0 else f'{lost} were lost'}. Server and clients share "
    "one Python here, and eight requests stand in line for it: these are numbers of a laptop. Loading the new model takes the time of the running one, so the tail grows in the middle. "
    "In production it is loaded by a second process, and a balancer moves the requests over."
)

# %% [markdown]
# **What surprised you?** The model was never the slow part: features are, and waiting is. Whoever promises a latency
# promises a *percentile under a load*, never a mean.

# %% [markdown]
# ## 7 · Explain and watch
#
# Two questions are left, and they come from people: a user's "why this product?", and the colleague's on duty, "must I get up?"

# %% [markdown]
# ## 8 · Before it goes live: a checklist
#
# | ask | shown by | section |
# |---|---|---|
# | Does the artefact score raw rows as the model did? | a test on 1 and on 1,000 rows, in the pipeline | 1 |
# | What happens to a row that is odd? | each case the same score or a refusal; units watched | 1, 7 |
# | Is every wrong request told why? | 422 with the field's name | 2 |
# | What is promised: p99 at which load? | a measured load, with the model exchanged in the middle | 2 |
# | How old may the model be? | a replay of the own log: test, then train | 3 |
# | When is a label final? | the delay's distribution; which correction | 3 |
# | Does training fit memory, and is it shuffled? | peak memory; labels by batch | 4 |
# | Do two machines learn what one learns? | equal weights, also with missing labels | 5 |
# | What does it give away? | an attack of one's own; ε, told with δ | 6 |
# | Can a user be forgotten? | deletion and retraining, rehearsed | 6 |
# | Why this product? | two attributions that agree | 7 |
# | Who is woken, and when not? | the alarm on a planted fault, and on quiet days | 7 |
# | How do we go back? | yesterday's artefact, one assignment away | 2 |
#
# ## Exercises
#
# Each has a stub that returns `...` and a check that tells you where you are. Stuck? Type `hint("10.stability", 1)` into a
# cell; levels go up to 3. `solution("10.stability")` shows commented source.
#
# **Exercise 1. Test, then train.** The loop of section 3, with labels that come `delay` days late.


# %%
from mtl_helpers.check import check, hint, solution, use


def test_then_train(state, x, y, predict, learn, delay):
    """Predictions of each day by what was known on that morning: a list, one a day.

    x[i] and y[i] are day i's features and labels; predict(state, x[i]) gives predictions,
    learn(state, x[i], y[i]) a new state. Labels of a day are known ``delay`` days later:
    after day i is predicted, day i - delay (if there is one) is learned. delay may be 0.
    """
    return ...


# %%
check("10.test_then_train", test_then_train)

# %% [markdown]
# **Exercise 2. One mean over two machines.** DDP averages the gradients of its ranks. What must each rank return so that the
# average is the mean over *all* labelled rows?


# %%
def rank_losses(losses, masks):
    """The loss of each rank, (world,), whose mean over ranks is the mean of all labelled rows.

    losses (world, n): each rank's losses, row by row. masks (world, n) bool: which rows have
    a label. A rank may have none, and returns 0. Two ranks with the losses [1, 1] and [4, 9],
    where the 9 has no label, return [4/3, 8/3]: their mean is 2, as (1 + 1 + 4) / 3 is.
    """
    return ...


# %%
check("10.rank_losses", rank_losses)

# %% [markdown]
# **Exercise 3. Clip, then add noise.** The step of DP-SGD that hides a single row.


# %%
def private_mean(gradients, bound, sigma, noise):
    """The mean gradient (d,) of rows (n, d), in which no row can be seen.

    Each row is shortened to length ``bound`` if it is longer; the rows are summed; noise
    (d,), of deviation 1, is added times sigma · bound; all is divided by n. A row of
    zeros stays one.
    """
    return ...


# %%
check("10.private_mean", private_mean)

# %% [markdown]
# **Exercise 4. Drift in one number.** The *population stability index*: Σ (q − p) ln(q / p) over bins.


# %%
def stability(before, after, bins):
    """Population stability index of new values against old ones, a float; 0 is no change.

    The old values' quantiles bound the bins, which are open at both ends; a value on an
    edge belongs to the bin above. Shares: (count + 0.5) / (n + 0.5 · bins), p of before
    (n,), q of after (m,). For example before 0, 1, 2, 3 and after 2, 3, 3, 3 in two bins.
    """
    return ...


# %%
check("10.stability", stability)

# %% tags=["plumbing"]
# @title Your index at work: what drifts between training and the latest rows?
index = use("10.stability", stability)
old, new = parts["train"], parts["test"]
moved_ = pd.Series(
    {name: index(old[name].dropna().to_numpy(), new[name].dropna().to_numpy(), 10) for name in SHOP_NUMERIC}
)
moved_ = moved_.sort_values(ascending=False).head(8)
fig = plots.figure(2.6)
ax = fig.subplots()
ax.barh(list(moved_.index), moved_, color=["#882255" if v > 0.25 else "#8A99A9" for v in moved_], height=0.6)
plots.value_labels(ax, ".2f")
ax.axvline(0.25, color="#222222", lw=1, ls=":")
ax.invert_yaxis()
ax.set(xlabel="population stability index (dotted: the customary .25)")
ax.set_title(f"{int((moved_ > 0.25).sum())} of {len(SHOP_NUMERIC)} features move by more than .25")
ax.set_xlim(0, max(0.4, 1.15 * moved_.max()))
display(fig)
Markdown(
    f"**{moved_.index[0]}** moves most. Nobody's taste need have changed: counts over the whole past grow with the log. An index sees *that* a feature moves, "
    "never whether it matters."
)

# %% [markdown]
# ## Self-check
#
# **1. "The file loads, so the model is the same."** True?
#
# <details><summary>Answer</summary>
#
# No. It is the same when it scores the same raw rows alike: with its encoder, for one row and for many (section 1). An
# encoder of last week with the weights of today loads without a word.
# </details>
#
# **2. "Two machines halve the time."** True?
#
# <details><summary>Answer</summary>
#
# Not for models as small as ours: there the exchange of gradients costs more than it saves (section 5). And unless the mean
# over labelled rows is global, two machines do not even learn the same.
# </details>
#
# **3. "We publish no data, only a model, so nobody's data can leak."** True?
#
# <details><summary>Answer</summary>
#
# No. A model that was fitted too well answers differently on rows that it has seen (section 6). What bounds it is
# a privacy budget, and that costs accuracy.
# </details>
#

# %% [markdown]
# ## Summary
#
# - What leaves is encoder, schema and weights together, tested on raw rows; a graph (torch.export, ONNX) is the same model
#   without its class.
# - A server refuses with words, promises a percentile under a load, and exchanges its model without dropping a request.
# - How often to learn, how to shard, how to spread and how much privacy to pay for are *measured* on the own log, each
#   against the plainest alternative.
# - Watch inputs, calibration and coverage; an alarm that fires on quiet days will be switched off.
#
# **What the toy hides.** One machine played all parts, and the shop's drift is written into it. **In production** most
# faults lie in between: a column that changed its unit, a cache that kept the old encoder, a clock in another time zone.

# %% tags=["plumbing"]
# @title Cleared away: all that this page wrote
shutil.rmtree(work, ignore_errors=True)

# %% [markdown]
# ## References
#
# - D. Sculley et al., *Hidden Technical Debt in Machine Learning Systems*, NeurIPS 2015.
# - E. Breck et al., *The ML Test Score: A Rubric for ML Production Readiness*, IEEE Big Data 2017.
# - J. Gama, R. Sebastião and P. P. Rodrigues, *On Evaluating Stream Learning Algorithms*, Machine Learning 90, 2013: test,
#   then train.
# - The documentation of [torch.export](https://docs.pytorch.org/docs/stable/export.html), [ONNX Runtime](https://onnxruntime.ai/docs/)
#   and [FastAPI](https://fastapi.tiangolo.com/).
#
# **Next:** back to [00_start_here](00_start_here.ipynb), or to your own log in [07_real_data](07_real_data.ipynb).
