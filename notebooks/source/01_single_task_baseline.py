# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # 01 · One task, done properly: the single-task baseline
#
# **Promise.** When you leave this page you can take a dirty log to one model for one task, and say which of its
# numbers to believe: every later notebook is measured against this one.
#
# {{colab_badge}} · [glossary](glossary.md) · about 50 minutes to read, a minute and a half to run on two CPU cores
# (no GPU needed) · builds on notebook 00

# %%
# {{setup}}

# %% tags=["plumbing"]
# @title Imports, and where you are in the course
import inspect
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from IPython.display import Markdown
from torch import nn

import mtl_helpers
from mtl_helpers.check import check, hint, solution, use
from mtl_helpers.data import (
    SHOP_CATEGORICAL,
    SHOP_COUNTS,
    SHOP_NUMERIC,
    SHOP_TASKS,
    ShopConfig,
    check_leaks,
    clean_impressions,
    clean_items,
    clean_users,
    load_shop,
    prepare,
    shop_frame,
    shop_splits,
    simulate,
)
from mtl_helpers.metrics import (
    accuracy,
    auc,
    calibration_error,
    expected_auc,
    holm,
    log_loss,
    mean_interval,
    reliability_curve,
)
from mtl_helpers.models import SharedBottom, SingleTask
from mtl_helpers.notebook import seed_everything
from mtl_helpers.training import fit, predict
from mtl_helpers.weighting import constant_losses
from mtl_helpers.widgets import course_map, draw, guess, threshold_explorer
from mtl_helpers.widgets import figures as plots

course_map("01")

# %% tags=["plumbing"]
# @title Load the shop and train one model for purchases (section 3 opens it)
ROWS = 20_000 if FAST else 80_000
SETTINGS = {"epochs": 25, "lr": 1e-3, "weight_decay": 1.0, "progress": False}
SETTINGS |= {"epochs": 3, "lr": 3e-3} if FAST else {}
click, purchase, next_category = SHOP_TASKS


def latest(parts):
    """The latest training rows whose purchase is known, as late ones still come in."""
    return parts | {"train": parts["train"].dropna(subset=["purchase"]).tail(ROWS)}


def train_single(splits):
    seed_everything(0)
    model = SingleTask(splits.schema, purchase, embedding_dim=4)
    return model, fit(model, splits.train, splits.valid, **SETTINGS)


shop = load_shop()
frame = shop_frame(shop)
parts = latest(shop_splits(frame, "time", pending="unknown"))
data = prepare(parts, SHOP_TASKS, SHOP_NUMERIC, SHOP_CATEGORICAL, device=device)
model, history = train_single(data)
y = data.valid.labels["purchase"].cpu().numpy()
p = predict(model, data.valid)["purchase"].numpy()
truth = shop.truth.set_index("impression_id").loc[parts["valid"]["impression_id"]]
p_true = truth["p_purchase"].to_numpy()

# %% [markdown]
# ## Whom would you write to?
#
# A shop wants to write to the people who will buy. A model has given each of its next impressions a probability of
# {{purchase}}; you choose from which probability on to flag one. **Precision** is the share of the flagged rows that
# are bought, **recall** the share of the bought rows that are flagged, **accuracy** the share of all rows that are
# judged rightly. At the start half of the buyers are found. **Drag the threshold**: where does accuracy want you to go?

# %%
half = float(np.median(p[y == 1]).round(4))
threshold_explorer(y, p, name="purchase", threshold=half)

# %% [markdown]
# Accuracy likes the right end, where the model flags nobody and finds nothing. On a rare label it rewards
# doing nothing. So this page asks four things of one model for one task: are its data clean, are its features honest,
# does it learn, and **is it any good**? At the end we take apart a program that learns next to nothing.

# %% [markdown]
# ## 1 · What is wrong with this log?
#
# A shop stores three tables: impressions (one product shown once to one user), users and items. Here are four items.
# How many categories do you count, and which product is the dearest?

# %%
log, users, items = shop.impressions, shop.users, shop.items
columns = ["item_id", "category", "price", "price_unit", "title"]
plots.table(items[columns].iloc[4:8].reset_index(drop=True), digits=2)

# %%
faults = ["rows written twice", "impossible ages", "spellings", "prices in cents"]
fault = guess("Which fault touches the largest share of its table?", choices=faults)
fault

# %% [markdown]
# Mend them by hand, and a fifth that hides among the prices. Rows written twice go; cents are divided by 100. A category
# is its text without blanks and capitals. An impossible age is an age that nobody told us. A price that lies more than
# three interquartile ranges outside its category's quartiles (Tukey's *far out*) is a slipped decimal point, and is cut
# back to that fence.

# %%
twice = log.duplicated()
age = users["age"].where(users["age"].between(14, 100))
category = items["category"].str.strip().str.lower()
euros = items["price"].where(items["price_unit"] == "EUR", items["price"] / 100)

logs = np.log(euros)  # prices grow by factors
low, high = (logs.groupby(category).transform("quantile", q) for q in (0.25, 0.75))
price = np.exp(logs.clip(low - 3 * (high - low), high + 3 * (high - low))).round(2)

# %% [markdown]
# The same from `mtl_helpers`. It also reads timestamps and refuses what contradicts itself, such as a purchase without
# a click.

# %%
clean = clean_items(items)
assert len(clean_impressions(log)) == len(log) - twice.sum()
assert clean_users(users)["age"].equals(age)
assert clean["category"].equals(category) and np.allclose(clean["price"], price)

# %% tags=["plumbing"]
# @title Draw what the mends touched, and the prices before and after
touched = {
    "rows written twice": twice.mean(),
    "impossible ages": (users["age"].notna() & age.isna()).mean(),
    "spellings": (items["category"] != category).mean(),
    "prices in cents": (items["price_unit"] != "EUR").mean(),
}
names = sorted(category.unique())
moved = ~np.isclose(price, items["price"])
stored = items["price"]
spread = [values.groupby(category).agg(np.ptp).median() for values in (stored, price)]
fig = plots.figure(3.2)
left, right = fig.subplots(1, 2, width_ratios=(1, 1.6))
left.barh(list(touched), [100 * share for share in touched.values()], color=plots.GREY)
plots.value_labels(left, ".1f")
left.set(xlabel="rows of its table (%)", title="What was touched")
left.invert_yaxis()
fault.mark(left)
rows = np.array([names.index(name) for name in category])
rows = rows + np.linspace(-0.25, 0.25, len(rows))
look = {"color": plots.INK, "linestyle": "none", "ms": 4}
right.plot(price[~moved], rows[~moved], ".", color="#CFCFCF", label="right as stored")
right.plot(items["price"][moved], rows[moved], marker="x", label="wrong", **look)
right.plot(price[moved], rows[moved], marker="o", mfc="none", label="mended", **look)
right.set(xscale="log", xlabel="price (EUR, or cents where wrong)")
right.set_title("Two clouds become one")
right.set_yticks(range(len(names)), names)
plots.legend_outside(fig, right)
fig.suptitle(
    f"{moved.sum()} of {len(price)} prices were wrong; mended, the range of a category "
    f"shrinks {spread[0] / spread[1]:,.0f}-fold",
    x=0.01,
    ha="left",
)
display(fig)
fault.answer(max(touched, key=touched.get))

# %% [markdown]
# To a model each spelling would be a category of its own. A row written twice counts twice, and may land in the
# training rows and in the test rows. Missing ages stay missing: cleaning corrects what is known to be wrong, it does
# not invent what is unknown.
#
# **What surprised you?** Which of these faults had you not thought of?

# %% [markdown]
# ## 2 · Which features may a model see?
#
# `shop_frame` joins the tables and adds features. Some are read off a row, such as the hour or the price against its
# category. Others are history, and history has one rule: **only what was known when the product was shown**. Check one
# of them by hand.

# %%
user = frame[frame["user_id"] == frame["user_id"].mode()[0]]  # the busiest one
clicked = user.loc[user["click"] == 1, "timestamp"]
past = [(clicked < start).sum() for start in user["session_start"]]
assert past == user["user_past_clicks"].tolist()
shown = ["timestamp", "hour", "price_vs_category", "user_past_clicks", "click"]
some = user[shown].iloc[[0, 400, -1]].astype({"user_past_clicks": int})
plots.table(some.reset_index(drop=True))

# %% [markdown]
# ### A feature that is too good
#
# **AUC** is the chance that a random bought row gets a higher score than a random other one. The log has one more column:
# `dwell_seconds`, the time spent on the product's page, empty without a visit. Surely interest helps. We write zero
# where it is empty, and add it.

# %%
before = f"Without dwell_seconds the AUC is {auc(y, p):.2f}."
dwell = guess(f"{before} And with it?", 0.5, 1.0)
dwell

# %%
more, with_dwell = [*SHOP_NUMERIC, "dwell_seconds"], {}
for name, rows in parts.items():
    seconds = rows["dwell_seconds"].fillna(0)
    with_dwell[name] = rows.assign(dwell_seconds=seconds)
leaky = prepare(with_dwell, [purchase], more, SHOP_CATEGORICAL, device=device)
p_leaky = predict(train_single(leaky)[0], leaky.valid)["purchase"].numpy()
reached = {"without dwell_seconds": auc(y, p), "with dwell_seconds": auc(y, p_leaky)}
reached["the truth itself"] = auc(y, p_true)  # this shop is simulated: we know it

# %% tags=["plumbing"]
# @title Draw the three AUCs
fig = plots.figure(2.0)
ax = fig.subplots()
look = plots.task_style("purchase")["color"]
ax.barh(list(reached), list(reached.values()), color=[look, look, plots.GREY])
ax.set(xlim=(0.5, 1.08), xlabel="AUC of purchase on validation rows (0.5 is chance)")
ax.set_xticks(np.arange(0.5, 1.01, 0.1))
ax.axvline(reached["the truth itself"], color=plots.INK, ls=":", lw=1.2)
for row, value in enumerate(reached.values()):
    ax.text(value + 0.005, row, f"{value:.3f}", va="center", path_effects=plots.HALO)
ax.invert_yaxis()
above = reached["with dwell_seconds"] > reached["the truth itself"]
leak = "Better than the truth: something leaks"
ax.set_title(leak if above else "Not above the ceiling")
dwell.mark(ax)
display(fig)
dwell.answer(reached["with dwell_seconds"])

# %% [markdown]
# Scored by the true probabilities, the AUC is the *ceiling*: no honest model can expect more. Dwell time is measured **after** the click, so it knows the answer.
# That is a **leak**. A real shop has no ceiling to look at, but it has questions to ask, and `check_leaks` asks them:

# %%
found = check_leaks(with_dwell, more, SHOP_TASKS, time="timestamp")
plots.table(found)

# %% [markdown]
# ### Split first, fit afterwards
#
# Means, spreads and vocabularies are learned, too; so `prepare` fits them on the training rows alone, and the split
# comes first. There are three that people use.

# %%
order = np.random.default_rng(0).permutation(len(frame))
cuts = np.split(order, [int(0.7 * len(frame)), int(0.8 * len(frame))])
splits_of = {
    "by time": shop_splits(frame, "time"),
    "by user": shop_splits(frame, "user"),
    "shuffled rows": dict(zip(parts, (frame.iloc[rows] for rows in cuts), strict=True)),
}

# %%
session = guess("Shuffled: test rows whose session is in training?", 0, 100, 1, "%")
session

# %% tags=["plumbing"]
# @title Draw the three splits, and what test rows share with training rows
shared = {}
fig = plots.figure(4.6)
axes = fig.subplots(2, 3, height_ratios=(1.5, 1))
looks = {"train": "#D5D5D5", "valid": "#8C8C8C", "test": plots.INK}
users_drawn = frame["user_id"].drop_duplicates().sample(30, random_state=0).tolist()
rng = np.random.default_rng(1)
for ax, (name, three) in zip(axes[0], splits_of.items(), strict=True):
    drawn = pd.concat(rows.assign(part=part) for part, rows in three.items())
    drawn = drawn[drawn["user_id"].isin(users_drawn)].sample(frac=1, random_state=0)
    place = drawn["user_id"].map(users_drawn.index)
    place = place + rng.uniform(-0.35, 0.35, len(drawn))
    ax.scatter(drawn["timestamp"], place, s=4, c=drawn["part"].map(looks))
    for part, color in looks.items():
        ax.plot([], [], "o", color=color, label=part)
    days = pd.date_range(frame["timestamp"].min().normalize(), periods=4, freq="14D")
    ax.set_xticks(days, [f"{day:%d %b}" for day in days])
    ax.set(title=name, xlabel="day", ylabel="30 users", yticks=[])
    ax.grid(visible=False)
    train, test = three["train"], three["test"]
    last_day = train["timestamp"].max().normalize()
    shared[name] = {
        "of a user in training": test["user_id"].isin(train["user_id"]).mean(),
        "before the last training day": (test["timestamp"] < last_day).mean(),
        "of a session in training": test["session_id"].isin(train["session_id"]).mean(),
    }
shared = 100 * pd.DataFrame(shared)
for ax, (what, values) in zip(axes[1], shared.iterrows(), strict=True):
    ax.barh(list(values.index), values, color="#8C8C8C")
    plots.value_labels(ax, ".0f")
    ax.set(title=what, xlabel="test rows (%)", xlim=(0, 125), xticks=(0, 50, 100))
    ax.invert_yaxis()
    ax.label_outer(remove_inner_ticks=False)
session.mark(axes[1, 2])
plots.legend_outside(fig, axes[0, 0])
ahead = shared.loc["before the last training day", "by user"]
title = f"The split by user sees the future: {ahead:.0f} % of its test rows lie before"
fig.suptitle(f"{title} the last training day", x=0.01, ha="left")
display(fig)
session.answer(shared.loc["of a session in training", "shuffled rows"], digits=0)

# %% [markdown]
# - **By time** asks: *how well will the model do tomorrow*, mostly on people it knows? A shop retrains again and again,
#   so this course splits by time.
# - **By user** asks: *how well does it serve strangers?* But it trains on days that come after the test rows: what sold
#   next week is no secret to it. A split for strangers *tomorrow* would cut by both.
# - **Shuffled rows** ask nothing that a shop wants to know. All rows of a session share one {{next_category}}, the
#   category of the user's first click in a later session, so nearly every answer stands among the training rows.
#
# **What surprised you?** Would you have noticed the leak in the second split?

# %% [markdown]
# ## 3 · What is inside the black box?
#
# Look up a vector (an **embedding**) for each category, put the vectors beside the numbers, pass them through three
# layers, and read one number, the **logit**. Its sigmoid is the probability.

# %%
draw("single_task", tasks=("purchase",))

# %% [markdown]
# By hand. All columns share one table of vectors, and `offset` says where each begins. The loss is the binary
# cross-entropy, written on the logit $z$ so that it never takes the log of a rounded zero:
# $\ell(z, y) = \max(z, 0) - z\,y + \log(1 + e^{-|z|})$.

# %%
sizes = list(data.schema.categorical.values())
seed_everything(0)
table = nn.Embedding(sum(sizes), 4)
nn.init.normal_(table.weight, std=0.1)
widths = (4 * len(sizes) + len(SHOP_NUMERIC), 64, 32, 16, 1)
layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
table, layers = table.to(device), layers.to(device)
offset = torch.tensor([0, *np.cumsum(sizes)[:-1]], device=device)


def by_hand(numeric, categorical):
    h = torch.cat([table(categorical + offset).flatten(1), numeric], dim=1)
    for layer in layers[:-1]:
        h = torch.relu(layer(h))
    return layers[-1](h).squeeze(1)


def bce(z, y):
    return (z.clamp(min=0) - z * y + torch.log1p(torch.exp(-z.abs()))).mean()


# %% [markdown]
# And the loop: shuffle, take a batch, step. Nothing is hidden between you and AdamW.

# %%
both, how = [*table.parameters(), *layers.parameters()], ("lr", "weight_decay")
optimizer = torch.optim.AdamW(both, **{name: SETTINGS[name] for name in how})
generator = torch.Generator().manual_seed(0)
train, hand_curve = data.train, []
for _ in range(3):
    total = 0.0
    for rows in torch.randperm(len(train), generator=generator).to(device).split(1024):
        z = by_hand(train.numeric[rows], train.categorical[rows])
        loss = bce(z, train.labels["purchase"][rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.item() * len(rows)
    hand_curve.append(total / len(train))

# %% [markdown]
# The same from `mtl_helpers` is what the cell *Load the shop …* at the top ran: `SingleTask` for the model, `fit` for the loop,
# with the same seed. `fit` also watches the validation rows and keeps the best weights. Equal to how many digits?

# %% tags=["plumbing"]
# @title Draw the training of the helper, and ours on top
fall, valid = history.curve("purchase", split="train"), history.curve("purchase")
apart = np.abs(fall.to_numpy()[:3] - hand_curve).max()
fig = plots.figure(2.9)
ax = fig.subplots()
look = plots.task_style("purchase")["color"]
ax.plot(fall.index, fall, ":", color=look, label="training")
ax.plot(valid.index, valid, "-", color=look, label="validation")
look = {"color": plots.INK, "ms": 9, "mew": 2, "label": "training, by hand"}
ax.plot([1, 2, 3], hand_curve, "x", **look)
ax.axvline(history.best_epoch, color="#999999", lw=1)
ax.set(ylabel="loss (nats)", yscale="log")
ax.set_yticks([0.03, 0.05, 0.1, 0.2, 0.5], ["0.03", "0.05", "0.1", "0.2", "0.5"])
ax.minorticks_off()
plots.epochs(ax)
plots.legend_outside(fig)
same = "to six digits" if apart < 1e-6 else f"to within {apart:.0e}"
ax.set_title(f"By hand and by the helper: the same losses {same}")
display(fig)
Markdown(
    f"The grey line marks epoch {history.best_epoch}, whose weights are kept: "
    f"validation loss {valid.min():.5f} nats, against {valid.iloc[-1]:.5f} at the end."
)

# %% [markdown]
# ### Who chose the learning rate and the weight decay?
#
# Validation rows did, for every pair on a grid. It takes about an hour, so its rows are stored (`01_baselines.csv`;
# its first line is the command): two shops tune, and ten others are for judging. The validation loss of clicks and
# purchases weighs each row by its true probability, which takes luck out of the choice.

# %% tags=["plumbing"]
# @title Read the stored study, and draw how the validation loss depends on the settings
path = Path(mtl_helpers.__file__).parents[1] / "notebooks/results/01_baselines.csv"
study = pd.read_csv(path, comment="#")
key, setting = ["contestant", "task"], ["lr", "weight_decay"]
tuned = study[study["shop"] < 2].groupby([*key, *setting])["valid"].mean()
best = tuned.groupby(key).idxmin().str[2:]
fig = plots.figure(3.0)
edges = []
for ax, task in zip(fig.subplots(1, 3, sharey=True), SHOP_TASKS, strict=True):
    grid = tuned["single-task", task.name].unstack("lr")
    lr, decay = best["single-task", task.name]
    row, column = grid.index.get_loc(decay), grid.columns.get_loc(lr)
    inside = 0 < column < len(grid.columns) - 1 and row < len(grid) - 1
    edges += [] if inside else [task.name.replace("_", " ")]
    excess = 100 * (grid / grid.min().min() - 1)
    look = {"cmap": "Greys", "vmin": 0, "vmax": 5, "origin": "lower", "aspect": "auto"}
    picture, color = ax.imshow(excess, **look), plots.task_style(task.name)["color"]
    ax.plot(column, row, "*", color=color, ms=15)
    column, row = grid.columns.get_loc(SETTINGS["lr"]), grid.index.get_loc(1.0)
    ax.plot(column, row, "o", color=color, mfc="none", ms=13)
    names = [f"{lr:g}" for lr in grid.columns]
    ax.set_xticks(range(len(names)), names, rotation=45)
    ax.set_yticks(range(len(grid)), [f"{each:g}" for each in grid.index])
    ax.set(title=task.name.replace("_", " "), xlabel="learning rate")
    ax.grid(visible=False)
fig.axes[0].set_ylabel("weight decay")
fig.colorbar(picture, ax=fig.axes, label="loss above the best (%)", extend="max")
where = "inside the grid for all three tasks"
where = f"at the edge for {' and '.join(edges)}" if edges else where
fig.suptitle(f"The best setting (★) lies {where}", x=0.01, ha="left")
display(fig)
paid, decay_best = tuned["single-task", "purchase"], best["single-task", "purchase"][1]
cost = paid[SETTINGS["lr"], SETTINGS["weight_decay"]] / paid.min() - 1
Markdown(
    f"For purchases the best decay is {decay_best / 0.01:.0f} times AdamW's default of "
    "0.01. This page trains at ○, which needs fewer epochs and costs "
    f"{cost:.1%} of the validation loss. (The lowest decay hardly decays, so it counts "
    "as inside the grid.)"
)

# %% [markdown]
# **What surprised you?** Would you have looked for a decay that strong?

# %% [markdown]
# ## 4 · Is this model any good?
#
# The article this course grew out of, “A multi-task learning framework for large-model recommender systems”, reports an
# accuracy of 0.88 and 0.85 for its two tasks. It gives no base rate: we cannot know how rare its positives were. For
# ours we can. What does a model reach that always says *no*?

# %% tags=["plumbing"]
# @title Draw the accuracy of a model that always says no
reported, shares = (0.88, 0.85), np.geomspace(0.003, 0.4, 200)
fig = plots.figure(2.9)
ax = fig.subplots()
ax.plot(shares, 1 - shares, color=plots.GREY)
ax.text(0.2, 0.815, "always no", color=plots.GREY, path_effects=plots.HALO)
for name in ("click", "purchase"):
    share, look = data.valid.labels[name].mean().item(), plots.task_style(name)
    ax.plot(share, 1 - share, look["marker"], color=look["color"], ms=9)
    where = (1.08 * share, 1.005 - share)
    ax.text(*where, f"{name}: {1 - share:.3f}", color=look["color"])
for value in reported:
    ax.axhline(value, color=plots.INK, ls="--", lw=1)
    ax.text(0.0031, value + 0.004, f"reported: {value}", path_effects=plots.HALO)
ax.set(xscale="log", xlabel="share of positive rows (log scale)", ylabel="accuracy")
ax.set(ylim=(0.65, 1.04))
ax.set_xticks([0.005, 0.01, 0.03, 0.1, 0.3], ["0.5 %", "1 %", "3 %", "10 %", "30 %"])
ax.minorticks_off()
never = 1 - y.mean()
beats = "beats" if never > max(reported) else "does not beat"
ax.set_title(f"Doing nothing {beats} the reported accuracies on a log like ours")
display(fig)
gain = accuracy(y, p) - never
said = "exactly as much" if gain == 0 else f"{gain:+.4f} from that"
Markdown(
    f"Always no reaches {never:.4f} for purchases, and our model {said}: its highest "
    f"probability is {p.max():.2f}. An accuracy of {reported[0]} beats always no only "
    f"where more than {1 - reported[0]:.0%} of the rows are positive."
)

# %% [markdown]
# ### Two measures that look at probabilities
#
# **AUC** looks at the order: of all pairs of a bought and another row, which share is ranked rightly? **Log-loss**
# looks at the probabilities: the mean of $-\log$ of what was given to the thing that happened. By hand in torch, and
# the same from `mtl_helpers`:

# %%
bought, score = torch.tensor(y) == 1, torch.tensor(p, dtype=torch.float64)
gap = score[bought][:, None] - score[~bought]  # every pair
order_right = (gap > 0).double().mean() + (gap == 0).double().mean() / 2
surprise = -torch.where(bought, score, 1 - score).log().mean()
assert np.isclose(order_right, auc(y, p)) and np.isclose(surprise, log_loss(y, p))

# %%
choices = ["AUC", "log-loss", "both", "neither"]
root = guess("Take the root of every probability. What gets worse?", choices=choices)
root

# %% tags=["plumbing"]
# @title Draw what the square root does
constant = np.full(len(y), data.train.labels["purchase"].mean().item())
versions = {"the model": p, "its square root": p**0.5, "the training rate": constant}
fig = plots.figure(1.9)
look, axes = plots.task_style("purchase")["color"], fig.subplots(1, 2, sharey=True)
measures = {"AUC": auc, "log-loss": log_loss}
for ax, (name, of) in zip(axes, measures.items(), strict=True):
    values = [of(y, score) for score in versions.values()]
    ax.barh(list(versions), values, color=[look, plots.INK, "#BBBBBB"])
    plots.value_labels(ax, ".4f")
    ax.set(title=name, xlabel="nats" if name == "log-loss" else "0.5 is chance")
    ax.margins(x=0.25)
    ax.invert_yaxis()
fig.axes[1].invert_yaxis()
order, cost = (of(y, p**0.5) - of(y, p) for of in measures.values())
what = {(True, False): "AUC", (False, True): "log-loss", (True, True): "both"}
what = what.get((order < -1e-9, cost > 1e-9), "neither")
fig.suptitle(f"The square root makes {what} worse", x=0.01, ha="left")
display(fig)
root.answer(what)

# %% [markdown]
# The order is untouched, and so is the AUC. But the probabilities have become promises that nobody keeps. You need
# both: the order to rank, and the probabilities wherever they are multiplied by money.
#
# ### Are the probabilities right?
#
# **Calibration**: of the rows called one per cent, one per cent should happen. Sort the rows by what the model says, cut
# them into ten equal bins, and compare each bin's mean probability with its share of purchases. The mean gap is the
# calibration error. But even *perfect* probabilities show a gap on finitely many rows: their **noise floor**. Draw
# labels from the model's own probabilities, so that they are perfect, and measure again.

# %%
bins = score.argsort(stable=True).tensor_split(10)
gaps = [len(i) * (bought[i].double().mean() - score[i].mean()).abs() for i in bins]
error = (sum(gaps) / len(score)).item()
assert np.isclose(error, calibration_error(y, p))

rng = np.random.default_rng(0)
floor = [calibration_error(rng.random(len(p)) < p, p) for _ in range(200)]

# %% tags=["plumbing"]
# @title Draw the calibration curve, and the error beside its noise floor
curve = reliability_curve(y, p)
low, high = np.quantile(floor, [0.025, 0.975])
fig = plots.figure(3.1)
left, right = fig.subplots(1, 2)
top = 1.1 * max(curve["high"].max(), curve["predicted"].max())
left.plot([0, top], [0, top], color="#999999", lw=1)
look = plots.task_style("purchase")["color"]
whiskers = [curve["observed"] - curve["low"], curve["high"] - curve["observed"]]
said, seen = curve["predicted"], curve["observed"]
left.errorbar(said, seen, whiskers, fmt="s", color=look, capsize=3)
left.set(xlabel="said: mean probability of a bin", ylabel="seen: share of purchases")
left.set(title="Ten bins, with 95 % intervals", xlim=(0, top), ylim=(0, top))
right.hist(floor, bins=25, color="#BBBBBB")
right.axvline(error, color=look, lw=2)
place = {"va": "top", "path_effects": plots.HALO}
right.text(error, right.get_ylim()[1], " the model", color=look, **place)
right.set(xlabel="calibration error", ylabel="of 200 draws")
right.set_title("Perfect probabilities err, too")
right.locator_params(axis="x", nbins=5)
plots.within(right, 0, axis="x")
inside = error <= high
fig.suptitle(
    f"Calibration error {error:.4f}, noise floor {np.mean(floor):.4f}: "
    + ("no fault can be seen" if inside else "more than noise"),
    x=0.01,
    ha="left",
)
display(fig)
Markdown(
    f"{int(y.sum())} purchases in {len(y):,} rows: perfect probabilities would err by "
    f"{low:.4f} to {high:.4f} in 95 of 100 draws."
)

# %% [markdown]
# ### Not one number: an interval
#
# One shop is one draw of luck. The stored study judged each model on **ten other shops** (other users, products and
# clicks). Its AUC weighs each row by its true probability, which takes the luck of a few test purchases out. The floor is
# the product's past click rate, or the commonest category; the ceiling is the truth.

# %%
net = guess("AUC of purchase: network − logistic regression?", -0.05, 0.05, 0.001)
net

# %%
SEED = 7  # one fresh shop, drawn once, judged once: try another number
size = {"n_users": 200, "n_impressions": 16_000} if FAST else {}
fresh = simulate(ShopConfig(seed=SEED, **size))
pieces = latest(shop_splits(shop_frame(fresh), "time", pending="unknown"))
splits = prepare(pieces, [purchase], SHOP_NUMERIC, SHOP_CATEGORICAL, device=device)
p_fresh = predict(train_single(splits)[0], splits.test)["purchase"].numpy()
true = fresh.truth.set_index("impression_id").loc[pieces["test"]["impression_id"]]
fresh_auc = expected_auc(true["p_purchase"], p_fresh)

# %% tags=["plumbing"]
# @title Draw every model between its floor and its ceiling, over ten shops
judged = study[study["shop"] >= 100].set_index(key)
mine, kept = judged[setting].apply(tuple, axis=1), best.reindex(judged.index)
judged = judged[(mine == kept) | kept.isna()]
judged = judged.set_index("shop", append=True).sort_index()
metric = {"click": "auc", "purchase": "auc", "next_category": "accuracy"}
models = {
    "floor": "floor",
    "logistic regression, counts only": "logistic regression, counts",
    "logistic regression": "logistic regression",
    "network": "single-task",
    "network + ids": "single-task + ids",
    "ceiling: the truth": "truth",
}
ends, grey = ("floor", "ceiling: the truth"), {"color": plots.GREY, "marker": "|"}
fig, way = plots.figure(3.0), {}
for ax, task in zip(fig.subplots(1, 3, sharey=True), metric, strict=True):
    column = judged[metric[task]]
    values = {name: column[stored, task].to_numpy() for name, stored in models.items()}
    styles = dict.fromkeys(models, plots.task_style(task)) | dict.fromkeys(ends, grey)
    found = plots.interval_rows(ax, values, styles=styles, zero=False, digits=3)
    low, top = (found[name].mean for name in ends)
    way[task] = (found["network"].mean - low) / (top - low)
    ax.set(title=task.replace("_", " "), xlabel=metric[task].replace("auc", "AUC"))
    ax.locator_params(axis="x", nbins=4)
    if task == "purchase":
        ax.plot(fresh_auc, 3, "*", color=plots.INK, ms=12, mec="white", zorder=9)
        inside = values["network"].min() <= fresh_auc <= values["network"].max()
closest = max(way, key=way.get).replace("_", " ")
fig.suptitle(f"{closest.capitalize()} comes closest to its ceiling", x=0.01, ha="left")
display(fig)
shares = [f"{way[task]:.0%} of the way for {task.replace('_', ' ')}" for task in way]
Markdown(
    "Pale dots are shops, the strong mark is their mean with its 95 % interval. From "
    f"floor to ceiling the network comes {', '.join(shares)}. ★ is your fresh shop: "
    f"{fresh_auc:.3f}, {'inside' if inside else 'outside'} the range of the ten, "
    f"though trained on its latest {len(splits.train):,} rows alone."
)

# %% [markdown]
# Differences are taken shop by shop, since what a shop is lucky in, it is lucky in for both. Nine differences have nine
# chances to look large; **Holm's** correction takes that into account, and only what survives it gets a star.

# %% tags=["plumbing"]
# @title Draw the differences, with Holm's correction over all nine
pairs = {
    "history − counts only": ("logistic regression", "logistic regression, counts"),
    "network − logistic regression": ("single-task", "logistic regression"),
    "network: with ids − without": ("single-task + ids", "single-task"),
}
gaps = {}
for task, of in metric.items():
    wide = judged[of].unstack("shop")
    for name, (a, b) in pairs.items():
        gaps[task, name] = (wide.loc[a, task] - wide.loc[b, task]).dropna().to_numpy()
stars = {which for which, p in holm(gaps).items() if p < 0.05}
fig = plots.figure(2.3)
for ax, task in zip(fig.subplots(1, 3, sharey=True), metric, strict=True):
    values = {name: gaps[task, name] for name in pairs}
    surviving = {name for name in pairs if (task, name) in stars}
    styles = dict.fromkeys(pairs, plots.task_style(task))
    plots.interval_rows(ax, values, styles=styles, holm=surviving, digits=3)
    ax.set(title=task.replace("_", " "), xlabel=metric[task].replace("auc", "AUC"))
    ax.locator_params(axis="x", nbins=3)
    ax.tick_params(axis="x", labelsize=8)
    if task == "purchase":
        net.mark(ax)
interval = mean_interval(gaps["purchase", "network − logistic regression"])
who = "beats" if interval.mean > 0 else "loses to"
who = who if ("purchase", "network − logistic regression") in stars else "ties with"
fig.suptitle(f"On purchases the network {who} logistic regression", x=0.01, ha="left")
display(fig)
net.answer(interval.mean, digits=3)

# %% tags=["plumbing"]
# @title Say what the stars mean
with_ids = [(task, "network: with ids − without") for task in ("click", "purchase")]
lost = [-gaps[which].mean() for which in with_ids]
learnt = ", as if it learned them by heart. So ids are no features in this course."
grid_ends = tuned["single-task + ids", "purchase"].unstack("lr").columns[[0, -1]]
at_edge = best["single-task + ids", "purchase"][0] in grid_ends
Markdown(
    f"Ten shops tell a difference of about {interval.high - interval.mean:.3f} in "
    "the purchase AUC from none. User and product ids cost the network "
    f"{lost[0]:.3f} AUC of clicks and {lost[1]:.3f} of purchases"
    + (learnt if set(with_ids) <= stars else ".")
    + at_edge * " (The best learning rate with ids lies at the edge of its grid.)"
)

# %% [markdown]
# What lies between the network and its ceiling is what better learning could still win. Purchases are few to learn
# from; so we look for help from other tasks.
#
# **What surprised you?** How much did you expect from a network, against a line?

# %% [markdown]
# ## 5 · Can we mend the article's shopping project?
#
# The article ends in a small program: ten columns, one label made binary, a random 80/20 split, one layer of 128 for
# two tasks (likes shopping; category), Adam, a hundred steps on all rows at once, `round()` for the prediction,
# accuracies of 0.88 and 0.85. What follows is **a program of ours with its set-up and its faults**, on our rows.

# %%
ten = [data.schema.numeric.index(name) for name in SHOP_COUNTS]
few = data.train.take(range(len(data.train) - 20_000, len(data.train))).to("cpu")
x, later = few.numeric[:, ten], data.valid.numeric[:, ten].cpu()
label, known = few.labels["purchase"], few.masks["next_category"]
c = few.labels["next_category"].where(known, torch.tensor(-100))  # -100: no label


# %%
def project(x, y, steps):
    torch.manual_seed(42)
    train = torch.rand(len(x)) < 0.8
    extract = nn.Linear(10, 128)
    likes, category = nn.Linear(128, 1), nn.Linear(128, 3)
    layers = nn.ModuleList([extract, likes, category])
    optimizer = torch.optim.Adam(layers.parameters(), lr=1e-3)
    loss_of, losses = nn.BCELoss(), []
    for _ in range(steps):
        z = extract(x[train])
        loss = loss_of(likes(z), y[train]) + loss_of(category(z), y[train])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    said = likes(extract(x[~train]))
    right = (said.round() == y[~train]).float().mean().item()
    return right, losses, lambda x: likes(extract(x))


# %% [markdown]
# Read it slowly: how many faults do you find before you run anything? Each mend changes a line of the program's text,
# and we run it after each.

# %%
flat = "nn.Sequential(nn.Linear(128, 1), nn.Flatten(0))"
entropy = "nn.functional.cross_entropy(category(z), c[train])"
relu = "nn.Sequential(nn.Linear(10, 128), nn.ReLU())"
mends = {
    "as it stands": {},
    "scores (n, 1), labels (n,)": {"nn.Linear(128, 1)": flat},
    "a loss of probabilities, fed with logits": {"BCELoss": "BCEWithLogitsLoss"},
    "one label for both tasks: no category": {
        "nn.Linear(128, 3)": "nn.Linear(128, 8)",
        "loss_of(category(z), y[train])": entropy,
    },
    "a logit, rounded": {"said.round()": "said.sigmoid().round()"},
    "losses never filled": {".step()": ".step(), losses.append(loss.item())"},
    "no nonlinearity": {"nn.Linear(10, 128)": relu},
}

# %%
text, runs = inspect.getsource(project), {}
for name, changes in mends.items():
    for old, new in changes.items():
        text = text.replace(old, new)
    scope = dict(globals())
    try:
        exec(text, scope)
        runs[name] = scope["project"](x, label, steps=10 if FAST else 100)
    except (ValueError, RuntimeError) as error:
        runs[name] = f"{type(error).__name__}: {error}"

# %% tags=["plumbing"]
# @title Show each mend and what came of it
rows = []
for name, changes in mends.items():
    run, line = runs[name], " and ".join(changes.values())
    if not isinstance(run, str):
        right, curve, _ = run
        fall = f"loss {curve[0]:.2f} → {curve[-1]:.2f}" if curve else "an empty curve"
        run = f"it runs: accuracy {right:.4f}, {fall}"
    rows.append((name, line or "–", run.partition(" is deprecated")[0]))
plots.table(pd.DataFrame(rows, columns=["fault", "mended by", "and now"]))

# %% [markdown]
# Three faults speak up. The rest is silent, and so more dangerous. A rounded logit is some whole number far below zero,
# hardly ever a label; mended, the accuracy jumps to that of *always no*. Now all of it runs, the loss falls, and the
# accuracy beats the article's. Is it any good? Ask for the order, on rows of later days.

# %%
worth = guess("The mended program: AUC of its purchases on later rows?", 0.3, 1.0)
worth

# %% [markdown]
# And let it have what our baseline has: all features, batches, early stopping. The two losses are added as they come;
# then once more, each divided by the loss of its best constant guess, so that both tasks start alike.

# %%
two = (purchase, next_category)
names = [task.name for task in two]
train, valid = data.train.select(names), data.valid.select(names)
scale = {name: 1 / loss for name, loss in constant_losses(train).items()}
weightings, said = {"losses as they come": None, "losses on one scale": scale}, {}
for name, weights in weightings.items():
    seed_everything(0)
    pair = SharedBottom(data.schema, two, embedding_dim=4)
    fit(pair, train, valid, weights=weights, **SETTINGS)
    said[name] = predict(pair, valid)["purchase"].numpy()

# %% tags=["plumbing"]
# @title Draw the loss that falls, and how well each version ranks purchases
with torch.no_grad():
    ladder = {
        "the program, linear": runs["losses never filled"][2](later),
        "the program, with ReLU": runs["no nonlinearity"][2](later),
        "our features and loop:\nlosses as they come": said["losses as they come"],
        "our features and loop:\nlosses on one scale": said["losses on one scale"],
        "purchase alone (section 3)": p,
    }
reach = {name: expected_auc(p_true, np.asarray(said)) for name, said in ladder.items()}
fig = plots.figure(3.3)
left, right = fig.subplots(1, 2, width_ratios=(1, 1.5))
for which, dash in (("losses never filled", "-"), ("no nonlinearity", "--")):
    curve = runs[which][1]
    left.plot(range(1, len(curve) + 1), curve, dash, color=plots.INK)
    name, gap = ("linear", 8) if dash == "-" else ("with ReLU", -16)
    place = {"xytext": (0, gap), "textcoords": "offset points", "ha": "right"}
    left.annotate(name, (len(curve), curve[-1]), **place)
left.set(xlabel="step", ylabel="sum of both losses (nats)", title="The loss falls")
left.margins(y=0.2)
shared = plots.model_style("shared bottom")["color"]
alone = plots.model_style("alone")["color"]
colors, values = ["#CFCFCF", "#CFCFCF", shared, shared, alone], list(reach.values())
right.barh(list(reach), [value - 0.5 for value in values], left=0.5, color=colors)
for row, value in enumerate(values):
    side, gap = ("left", 0.006) if value > 0.5 else ("right", -0.006)
    look = {"ha": side, "va": "center", "path_effects": plots.HALO}
    right.text(value + gap, row, f"{value:.3f}", **look)
right.axvline(0.5, color=plots.INK, lw=1)
right.set(xlim=(0.4, 0.87), xlabel="AUC of purchase on later rows (0.5 is chance)")
right.set_title("What it is worth")
right.invert_yaxis()
worth.mark(right)
coin, cost = abs(values[1] - 0.5) < 0.08, values[3] - values[2]
end = "a coin ranks as well" if coin else "it is far from the baseline"
title = f"All six faults mended, {end}"
title += f"; the scale of the losses costs {cost:.2f} AUC" if cost > 0.02 else ""
fig.suptitle(title, x=0.01, ha="left")
display(fig)
worth.answer(values[1], digits=3)

# %% tags=["plumbing"]
# @title Say how loud each task is
constants = constant_losses(train)
louder = constants["next_category"] / constants["purchase"]
Markdown(
    "The AUC weighs each row by its true probability, so that the luck of "
    f"{int(y.sum())} purchases is out of it. In the plain sum a constant guess costs "
    f"{louder:.0f} times as much in next category as in purchase: nearly every step "
    "serves the louder task."
)

# %% [markdown]
# The ReLU *is* right: without it two linear layers in a row are one linear layer. But correct code is not yet a good
# model. What a second task does to the first depends on its **weight**: that one knob is what the rest of the course is
# about.
#
# **What surprised you?** Which of the faults would you have shipped?

# %% [markdown]
# ## Exercises
#
# Replace each `...` and run the check below it. Stuck? Type `hint("01.precision_at", 1)` into a cell; levels go up to
# 3. `solution("01.precision_at")` shows commented source.
#
# **Exercise 1. Precision at a threshold**, the curve of the first slider.


# %%
def precision_at(labels, probabilities, threshold):
    """Share of flagged rows that are positive, a number; NaN when nothing is flagged.

    labels, probabilities : (n,) arrays; labels are 0 or 1. Flag p ≥ threshold.

    Example: precision_at(np.array([1, 0, 1]), np.array([.9, .8, .1]), .5) → 0.5
    """
    return ...


# %%
check("01.precision_at", precision_at)

# %% [markdown]
# **Exercise 2. Spot the leaks.** Six candidate features for the *click* model. Which may it not see? Write a detector
# that needs no AUC. Suppose one click had come out the other way. A feature that was known when the product was shown
# cannot notice, in that row or an earlier one.


# %%
def candidates(log):
    """Six features of a log in the order of time; some know a click too early."""
    items, user = log.groupby("item_id")["click"], log["user_id"]
    moment = log["timestamp"].where(log["click"] == 1)
    coming = moment.groupby(user).shift(-1).groupby(user).bfill()  # the next click
    earlier = items.cumsum() - log["click"]
    features = {
        "weekday": log["weekday"],
        "item_past_ctr": (earlier + 0.06) / (items.cumcount() + 1),
        "item_month_ctr": items.transform("mean"),
        "session_clicks": log.groupby("session_id")["click"].transform("sum"),
        "price_vs_category": log["price_vs_category"],
        "days_to_next_click": (coming - log["timestamp"]).dt.days.fillna(-1),
    }
    return pd.DataFrame(features)


# %%
def leaking(make_features, log, rows):
    """The names of the features that know a label too early, a set.

    make_features : a function; make_features(log) is a table with one column a
        feature, (n rows), without NaN.
    log : a table in the order of time, (n rows); its column click is 0 or 1.
        Leave it as it is: work on a copy.
    rows : the row numbers at which to try, one at a time.

    Example: a column that counts all clicks of a session leaks: {"session_clicks"}.
    """
    return ...


# %%
check("01.leaking", leaking)

# %%
past, detect = frame.head(20_000).reset_index(drop=True), use("01.leaking", leaking)
tried = np.random.default_rng(0).integers(0, len(past), 20).tolist()
leaks = detect(candidates, past, tried)
clue = {name: auc(past["click"], values) for name, values in candidates(past).items()}
rows = [(name, max(one, 1 - one), name in leaks) for name, one in clue.items()]
plots.table(pd.DataFrame(rows, columns=["feature", "AUC alone", "leaks"]))

# %% [markdown]
# A check by numbers, such as `check_leaks`, finds strong leaks. The question “did the shop know this when it showed the
# product?” finds the weak ones, too.
#
# **Exercise 3. A log-loss that does not overflow.** Minus the log of a sigmoid is infinite for a confident model that
# is wrong: the sigmoid of −200 rounds to zero.


# %%
def stable_log_loss(logits, labels):
    """Mean binary cross-entropy, a scalar tensor through which a gradient flows.

    logits, labels : (n,) tensors of one dtype; labels are 0 or 1.
    Finite for any finite logits.
    Example: stable_log_loss(torch.tensor([-200., 200.]), torch.tensor([1., 0.]))
    gives tensor(200.)
    """
    return ...


# %%
check("01.stable_log_loss", stable_log_loss)

# %% [markdown]
# ## Self-check
#
# True or false, and why? Say your answer aloud before you open the fold.
#
# **1. A higher accuracy means a better model.**
#
# <details><summary>Answer</summary>
#
# False on a rare label. In the first picture of section 4 the model that always says no has an accuracy of one minus
# the positive rate, and our model cannot be told from it; its AUC and log-loss can.
#
# </details>
#
# **2. A higher AUC means better probabilities.**
#
# <details><summary>Answer</summary>
#
# False. AUC sees the order only. In section 4 the square root of all probabilities left it as it was and made the
# log-loss far worse.
#
# </details>
#
# **3. A calibration error above zero shows that the probabilities are wrong.**
#
# <details><summary>Answer</summary>
#
# False. In section 4 perfect probabilities err, too, on that many rows: only an error above that noise floor says
# anything.
#
# </details>

# %% [markdown]
# ## Summary
#
# - Clean first, split second, fit third. A feature is honest if the shop knows it when it shows the product; a split is
#   honest if nobody trains on days that come after the test.
# - On a rare label accuracy rewards doing nothing. Use AUC for the order and log-loss for the probabilities, calibration
#   beside its noise floor, and an interval over several shops, between a floor and a ceiling.
# - A single-task model is a serious rival, and logistic regression is one to it. Two tasks added as they come may be
#   worse than one.
#
# **What the toy hides.** The ceiling is known. The log was written by one old ranker: we judge the model on rows that
# ranker chose to show. Purchases arrive hours or days after the click, here as there: on this page those of the last
# four training days count as unknown. In production, features are logged at the moment of serving and trained on as
# logged, so that no later value slips in.

# %% [markdown]
# ## References
#
# - T. Fawcett, *An introduction to ROC analysis*, Pattern Recognition Letters 27, 2006, on AUC and what it means.
# - S. Kaufman, S. Rosset, C. Perlich and O. Stitelman, *Leakage in Data Mining: Formulation, Detection, and Avoidance*,
#   ACM Transactions on Knowledge Discovery from Data 6, 2012.
# - M. P. Naeini, G. F. Cooper and M. Hauskrecht, *Obtaining Well Calibrated Probabilities Using Bayesian Binning*,
#   AAAI 2015, on the calibration error.
# - S. Holm, *A Simple Sequentially Rejective Multiple Test Procedure*, Scandinavian Journal of Statistics 6, 1979.
# - J. W. Tukey, *Exploratory Data Analysis*, Addison-Wesley 1977, on quartiles and fences.
#
# **Next:** [02_shared_bottom](02_shared_bottom.ipynb): how tasks share what they learn, when it helps, and when it
# hurts.
