# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # Start here: one model, several labels
#
# **Promise.** When you leave this page you know where your code runs, you have moved your first task weight,
# and you know the shop that the whole course works with.
#
# {{colab_badge}} · [glossary](glossary.md) · about 25 minutes to read, under one minute to run on two CPU cores (no GPU needed) · builds on nothing but PyTorch

# %% [markdown]
# ## What multi-task learning is for a recommender
#
# A shop shows you a product. Will you **click** it? Will you **buy** it? Which **category** will you look at
# next?
#
# These are three labels for one and the same input. You can train three models. Or you can train one model
# with three outputs, whose first layers are shared. The second way is *multi-task learning* (MTL). It is
# smaller, and a rare label may profit from a frequent one. It may also suffer from it: that tension is the
# subject of the course.

# %% [markdown]
# **You will be able to**
#
# - *read* the device report, and *change* the device;
# - *drag* a task weight, and *say* what its picture shows;
# - *describe* the shop: who sees what, and how rare each label is;
# - *tell apart* what a model may read from what only the simulator knows.
#
# To run a cell, click it and press <kbd>Shift</kbd>+<kbd>Enter</kbd>. To run them all: *Run → Run All Cells*.

# %%
# {{setup}}

# %% [markdown]
# ## 1 · Where am I running?
#
# The line above is the short form. Here is the whole report.

# %%
from mtl_helpers.notebook import device_report, get_device

report = device_report(device)
print(report)

# %% [markdown]
# The same in words:

# %%
where = {"cuda": "a GPU (cuda)", "mps": "an Apple GPU", "xpu": "an Intel GPU", "cpu": "the CPU"}[report.kind]
print(f"Training runs on {where}: {report.name}.")
print("Tables and figures are made on the CPU, whatever the device; predictions come back to it.")
if report.kind == "cpu":
    print(f"CPU threads in use: {report.threads}. That is enough: the course is sized for a laptop.")
bf16 = {True: "native here", False: "not native here", None: "not known here"}[report.bf16]
print(f"bfloat16, a number format of 16 bits, is {bf16}. This course does not need it.")
print("To do:", report.hint or "nothing.")

# %% [markdown]
# **Another device?**
#
# - On Colab: *Runtime → Change runtime type*, pick a GPU, *Save*. Then run the notebook again from its first
#   cell.
# - Anywhere: set the environment variable `MTL_DEVICE` to `cpu`, `cuda`, `cuda:1`, `mps` or `xpu`. In a
#   notebook, put `%env MTL_DEVICE=cpu` into a cell above the setup cell.
#
# A wrong name does no harm. The next cell asks for one that does not exist.

# %%
import warnings

with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    fallback = get_device("toaster")
print("You get:", fallback)
print("You are told:", caught[0].message)

# %% [markdown]
# **In a hurry?** `%env FAST=1` above the setup cell makes every notebook of the course use fewer rows, seeds
# and epochs. It shows that everything works. Its findings are not to be trusted, and the notebooks then say
# so.

# %%
print("FAST is on: short runs, findings need the full run." if FAST else "FAST is off: these are full runs.")

# %% [markdown]
# ## 2 · A slider that moves
#
# First the data: a log of a simulated shop. Each row is one product shown to one user. You will see it in
# pictures below; for now we only load it, split it by time, and turn it into tensors.

# %%
import numpy as np
import pandas as pd

from mtl_helpers.data import (
    SHOP_CATEGORICAL,
    SHOP_NUMERIC,
    SHOP_TASKS,
    load_shop,
    prepare,
    shop_frame,
    shop_splits,
)

# %%
shop = load_shop()
frame = shop_frame(shop)  # cleaned and joined; notebook 01 does this step by step
parts = shop_splits(frame)  # train on the past, validate on what follows, test on the latest rows
tasks = SHOP_TASKS[:2]  # click and purchase
splits = prepare(parts, tasks, SHOP_NUMERIC, SHOP_CATEGORICAL, device=device)
print(
    "train: numeric", tuple(splits.train.numeric.shape), "categorical", tuple(splits.train.categorical.shape)
)

# %% [markdown]
# One model has two losses, one for each label. Training needs one number. So we mix them with a **task
# weight** $w$:
#
# $$L = (1-w)\,L_{\text{click}} + w\,L_{\text{purchase}}$$
#
# We do not guess what $w$ does. We train a whole family of models: every weighting, each with several random
# seeds.

# %%
weights = (0.02, 0.25, 0.5, 0.75, 0.98) if FAST else (0.02, 0.15, 0.3, 0.5, 0.7, 0.85, 0.98)
weightings = [{"click": 1 - w, "purchase": w} for w in weights]
seeds = range(2 if FAST else 5)
rows = torch.arange(0, len(splits.train), 10 if FAST else 5, device=device)  # a modest part of the log
few = splits.train.take(rows)
print(f"{len(weightings)} weightings × {len(seeds)} seeds, trained on {len(few):,} rows each")

# %%
import time

from mtl_helpers.models import SharedBottom
from mtl_helpers.sweep import sweep

started = time.perf_counter()
family = sweep(
    lambda: SharedBottom(splits.schema, tasks, embedding_dim=4),
    few, splits.valid, weightings=weightings, seeds=seeds,
    epochs=2 if FAST else 4, lr=3e-3, weight_decay=0.1, keep="best",
)  # fmt: skip
print(f"{len(family.runs)} models trained in {time.perf_counter() - started:.1f} seconds, {family.stopped}.")

# %% [markdown]
# **What the two axes are.** Each model is one point: to the right, how well it ranks clicks; upwards, how
# well it ranks purchases. Both are AUC: the chance that a row with the event scores above a row without it.
# One half is a coin, one is perfect. Up and to the right is better.
#
# **Predict.** The slider starts with nearly all weight on clicks. You move it towards purchases. Which way
# does the point go? Does purchase AUC rise all the way? Write it down.

# %%
from mtl_helpers.widgets import weight_explorer

explorer = weight_explorer(family, start=weightings[0])  # nearly all weight on clicks
explorer

# %% [markdown]
# Drag the slider, or press <kbd>Tab</kbd> until it has the focus and use the arrow keys. The line under the
# picture reads it aloud.
#
# - *Left:* every dot is a trained weighting, the mean of its seeds. On the **Pareto front** no other dot is
#   better at both tasks. The star steps from dot to dot, and the line says where it stands.
# - *Middle:* what this weighting wins or loses against equal weights. *Right:* the losses while it trained.
#
# **What surprised you?** Compare with what you wrote. Then let the numbers speak.

# %%
from mtl_helpers.metrics import paired_difference

final = family.final("valid").query("metric == 'auc'")
reached = final.pivot_table(index="seed", columns=["task", "weighting"], values="value")
last, middle = len(weights) - 1, weights.index(0.5)
for task in ("click", "purchase"):
    for before, after in ((0, middle), (middle, last)):
        gap = paired_difference(reached[task][after], reached[task][before])
        said = "rises" if gap.mean > 0 else "falls"
        said = said if gap.excludes_zero else "shows no clear change"
        print(f"w from {weights[before]} to {weights[after]}: {task} AUC {said}: {gap}")

# %% [markdown]
# Each line gives the change of the AUC. The brackets are 95 % intervals over seeds: the same shop, other
# initial weights and another order of the rows. They do not say what another shop would give. These are
# validation rows; the test rows stay closed until notebook 01.

# %%
if FAST:
    print("FAST: few seeds, few rows. Draw no conclusion from the lines above.")
few_bought = int(splits.valid.labels["purchase"].sum())
print(f"The validation part holds {few_bought} purchases among {len(splits.valid):,} rows:")
print("a purchase AUC rests on them alone, so small differences deserve your doubt.")

# %% [markdown]
# ## 3 · The shop in five pictures
#
# The shop is simulated, and its raw log is as dirty as a real one. Here we look at the cleaned tables;
# notebook 01 does the cleaning. The rules of the simulation are in `datasets/shop/README.md`. The pictures
# describe all rows; no model is chosen by them.

# %%
from mtl_helpers.data import clean_items, clean_users

users, items = clean_users(shop.users), clean_items(shop.items)
sessions = frame["session_id"].nunique()
print(f"{len(users):,} users, {len(items):,} items, {len(frame):,} impressions in {sessions:,} sessions,")
print(f"{frame['timestamp'].min():%d %B %Y} to {frame['timestamp'].max():%d %B %Y}. The first rows:")
frame[["timestamp", "user_id", "item_id", "position", "category", "price", "click", "purchase"]].head(4)

# %% [markdown]
# ### Picture one: users and items

# %%
import seaborn as sns
from IPython.display import display

from mtl_helpers.data import TIERS
from mtl_helpers.widgets.figures import figure, task_style

print("Loyalty tiers, from the lowest:", ", ".join(TIERS))
median_price = items.groupby("category")["price"].median().sort_values(ascending=False)
by_price = list(median_price.index)
tier = users["loyalty_tier"].value_counts(normalize=True)

# %%
fig = figure(3.4)
left, middle, right = fig.subplots(1, 3, width_ratios=(1, 0.95, 1.4))
sns.histplot(x=users["age"], bins=range(15, 86, 5), ax=left, color="#56B4E9")
left.set(title=f"Half are {users['age'].median():.0f} or younger", xlabel="age (years)", ylabel="users")
sns.countplot(x=users["loyalty_tier"], order=list(TIERS), ax=middle, color="#56B4E9")
middle.set(title=f"Most common tier: {tier.index[0]}", xlabel="loyalty tier", ylabel="users")
sns.boxplot(x=items["price"], y=items["category"], order=by_price, ax=right, color="#E69F00", fliersize=2)
right.set(title=f"Dearest: {by_price[0]}; cheapest: {by_price[-1]}", xscale="log")
right.set(xlabel="price (EUR)", ylabel="")
display(fig)
print(f"The median age is {users['age'].median():.0f}; {users['age'].isna().sum()} ages are not known.")
largest, smallest = tier.index[0], tier.index[-1]
print(f"The largest tier is {largest} ({tier[largest]:.0%}), the smallest {smallest} ({tier[smallest]:.0%}).")
print(f"The median price falls from {median_price.iloc[0]:.0f} EUR ({by_price[0]})")
print(f"to {median_price.iloc[-1]:.0f} EUR ({by_price[-1]}). A box holds the middle half of a category.")

# %% [markdown]
# ### Picture two: the funnel
#
# Of all products that are shown, some are clicked. Of those, some are bought.
#
# **Predict.** Which share of the impressions ends in a purchase? Write a number down.

# %%
counts = {"shown": len(frame), "clicked": int(frame["click"].sum()), "bought": int(frame["purchase"].sum())}
colors = ["#999999", task_style("click")["color"], task_style("purchase")["color"]]
fig = figure(2.4)
ax = fig.subplots()
ax.barh(list(counts), list(counts.values()), color=colors)
for row, count in enumerate(counts.values()):
    ax.text(count, row, f"  {count:,} ({count / len(frame):.1%})", va="center")
ax.set(xlabel="impressions", xlim=(0, len(frame) * 1.25), ylim=(2.5, -0.5))
ax.set_title(f"One impression in {len(frame) / counts['bought']:.0f} is bought")
ax.grid(axis="y", visible=False)
display(fig)
print(f"{counts['clicked'] / counts['shown']:.2%} of what is shown is clicked: the click-through rate (CTR).")
print(f"{counts['bought'] / counts['clicked']:.1%} of what is clicked is bought: the conversion rate (CVR).")

# %% [markdown]
# A purchase needs a click. So the purchase is the rare label, the click the frequent one, and both come from
# the same people. That is why a shop tries multi-task learning at all.

# %% [markdown]
# ### Picture three: the position
#
# A page shows eight products, one below the other. Does it matter where in the list a product stands?

# %%
place = frame.groupby("position")["click"].agg(["mean", "size"])
half = 1.96 * (place["mean"] * (1 - place["mean"]) / place["size"]) ** 0.5
top, bottom = place["mean"].iloc[0], place["mean"].iloc[-1]
apart = top - half.iloc[0] > bottom + half.iloc[-1]
print(pd.DataFrame({"click rate": place["mean"], "± (95 %)": half, "rows": place["size"]}).round(4))

# %%
fig = figure(3)
ax = fig.subplots()
blue = task_style("click")["color"]
ax.errorbar(place.index, 100 * place["mean"], 100 * half, color=blue, marker="o", capsize=4)
ax.set(xlabel="position in the list (1 = top)", ylabel="click rate (%)", xticks=place.index, ylim=(0, None))
times = f"The top is clicked {top / bottom:.1f} times as often as the bottom"
ax.set_title(times if apart else "Top and bottom cannot be told apart")
display(fig)
print(f"Click rate {top:.2%} at the top, {bottom:.2%} at the bottom. The bars are 95 % intervals, as if")
print(
    "all rows were independent." + (" Those of top and bottom do not overlap." if apart else " They overlap.")
)

# %% [markdown]
# Is that the position's own doing? The shop's old ranker puts the products it likes on top. So better
# products may stand there anyway, and the log mixes both causes. Keep the question. The hidden truth will
# answer it.

# %% [markdown]
# ### Picture four: tastes
#
# On the left, what the log shows: the click rate of each age group in each category. On the right, what the
# log hides: the group's mean taste, which the simulator drew before anything was shown.
#
# **Predict.** How alike will the two be?

# %%
from mtl_helpers.data import AGE_GROUPS, CATEGORIES, make_world

known = frame[frame["age_group"] != "unknown"]
seen = 100 * known.pivot_table(index="category", columns="age_group", values="click")[list(AGE_GROUPS)]
group = known.drop_duplicates("user_id").set_index("user_id")["age_group"]
world = make_world(shop.config)  # what the simulator knows
taste = world.taste[group.index].reshape(
    len(group), len(CATEGORIES), -1
)  # (users, categories, sub-categories)
taste = pd.DataFrame(taste.mean(2), columns=CATEGORIES)
hidden = taste.groupby(group.to_numpy()).mean().T.loc[seen.index, seen.columns]
r = np.corrcoef(seen.to_numpy().ravel(), hidden.to_numpy().ravel())[0, 1]
print("seen", seen.shape, "hidden", hidden.shape, f"correlation {r:.2f}")

# %%
fig = figure(3.6)
left, right = fig.subplots(1, 2, sharey=True)
look = {"annot": True, "fmt": ".1f", "annot_kws": {"size": 8}}
sns.heatmap(seen, ax=left, cmap="viridis", cbar_kws={"label": "click rate (%)"}, **look)
taste_bar = {"label": "taste (std. deviations)"}
sns.heatmap(hidden, ax=right, cmap="coolwarm", center=0, cbar_kws=taste_bar, **look)
left.set(title="Seen: clicks", xlabel="age (years)", ylabel="")
right.set(title=f"Hidden: taste; correlation with the left {r:.2f}", xlabel="age (years)", ylabel="")
display(fig)

# %%
row, column = np.unravel_index(seen.to_numpy().argmax(), seen.shape)
rank = int((hidden.to_numpy() > hidden.iloc[row, column]).sum()) + 1
rate = seen.iloc[row, column]
print(f"Most clicked: {seen.index[row]} for ages {seen.columns[column]}, {rate:.1f} % of impressions;")
print(f"by hidden taste that pair is number {rank} of {seen.size}.")
print(f"Over all {seen.size} pairs, clicks and hidden taste correlate with {r:.2f}.")

# %% [markdown]
# Age group, region and loyalty tier are half of a taste. The other half belongs to the person alone. A model
# has to find it in what the person clicked before.

# %% [markdown]
# ### Picture five: time

# %%
hourly = frame.groupby("hour")["session_id"].nunique() / frame["timestamp"].dt.date.nunique()
shades = {"train": "#999999", "valid": "#56B4E9", "test": "#E69F00"}
day = (frame["timestamp"] - frame["timestamp"].min().normalize()).dt.days + 1
clicks = {name: part["click"].groupby(day.loc[part.index]).sum() for name, part in parts.items()}
clicks = pd.DataFrame(clicks).fillna(0)
print(clicks.sum().astype(int).to_dict(), "clicks in", len(clicks), "days")

# %%
fig = figure(3)
left, right = fig.subplots(1, 2, width_ratios=(1, 1.6))
left.bar(hourly.index, hourly, color="#777777")
left.set(title=f"Busiest at {hourly.idxmax()} h, calmest at {hourly.idxmin()} h")
left.set(xlabel="hour of the day", ylabel="sessions per day")
for i, name in enumerate(clicks):
    below = clicks.iloc[:, :i].sum(axis=1)
    right.bar(clicks.index, clicks[name], bottom=below, color=shades[name], label=name)
right.set(title="Train on the past, test on the latest days", xlabel="day of the log", ylabel="clicks")
right.set_ylim(0, 1.2 * clicks.sum(axis=1).max())
right.legend(ncols=3, loc="upper left")
display(fig)

# %%
for name, part in parts.items():
    first, latest = part["timestamp"].min(), part["timestamp"].max()
    print(f"{name:6}{len(part):7,} rows  {first:%d %b %H:%M} to {latest:%d %b %H:%M}")
print("A bar with two colours is a day that the cut runs through.")

# %% [markdown]
# A model is used tomorrow. So it is trained on the past and judged on what comes later: no row of the future
# may leak into training.
#
# Last, the three labels of the course. `next_category` is the category of the user's first click in a later
# session.

# %%
train = parts["train"]
for task in SHOP_TASKS:
    known = train[task.name].dropna()
    if task.kind == "binary":
        print(f"{task.name:14}{len(known):7,} labels, {int(known.sum()):6,} of them yes ({known.mean():.2%})")
    else:
        print(f"{task.name:14}{len(known):7,} labels in {task.n_classes} classes")
gap = train["next_category"].isna().mean()
print(f"No next click is known for {gap:.0%} of the {len(train):,} training rows:")
print("a gap that a model has to skip in its loss.")

# %% [markdown]
# ## 4 · The hidden truth
#
# A real log holds what happened. It never holds how likely that was. Here the simulator drew each click with
# a probability that it wrote into a file apart. **No model ever reads this file.** We use it to judge.

# %%
log = frame.merge(shop.truth, on="impression_id")
print("The least likely click, one from the middle, the likeliest:")
some = log.sort_values("p_click").iloc[[0, len(log) // 2, -1]]
some[["p_click", "click", "p_purchase_given_click", "p_purchase", "purchase"]]

# %% [markdown]
# **Predict.** Suppose a model knew these true probabilities. Would it rank perfectly, with an AUC of one?

# %%
from mtl_helpers.data import bayes_auc

ceiling = bayes_auc(shop)
clicked = log[log["click"] == 1]
cases = {
    "click": (log["click"], log["p_click"]),
    "purchase": (log["purchase"], log["p_purchase"]),
    "purchase_given_click": (clicked["purchase"], clicked["p_purchase_given_click"]),
}
truth = pd.DataFrame({"AUC of the truth": ceiling})
truth["observed rate"] = {name: happened.mean() for name, (happened, _) in cases.items()}
truth["mean true probability"] = {name: p.mean() for name, (_, p) in cases.items()}
truth.round(4)

# %% [markdown]
# The first column is the **Bayes ceiling**: the AUC of somebody who knows every probability and still cannot
# foresee the dice. No model can expect to pass it; only luck on few rows can.

# %%
from mtl_helpers.metrics import auc

valid = parts["valid"].merge(shop.truth, on="impression_id")
for task in ("click", "purchase"):
    ours = reached[task][weights.index(0.5)].mean()
    best = auc(valid[task], valid[f"p_{task}"])
    print(f"{task}: equal weights reach {ours:.3f} on the validation rows; the truth reaches {best:.3f}.")

# %% [markdown]
# You will see this pair in most notebooks: what a model reaches, and what was there to reach. Part of this gap
# may be our hurry: some of the rows, a few epochs. The next notebooks take their time.
#
# Now the question from picture three. We ask the simulator what would have happened if the products at the
# bottom had been shown on top.

# %%
low = log[log["position"] == log["position"].max()]
moved, _ = world.probabilities(low["user_id"], low["item_id"], low["timestamp"], 1, low["surface"])
on_top, own = log.loc[log["position"] == 1, "p_click"].mean(), low["p_click"].mean()
share = (moved.mean() - own) / (on_top - own)
print(f"True click probability, mean: {own:.2%} at the bottom, {on_top:.2%} at the top.")
print(f"The bottom's own products, shown at the top: {moved.mean():.2%}.")
print(f"So {share:.0%} of the gap is the position's doing; the rest is better products on top.")

# %% [markdown]
# The log alone could not have told you that. A simulator can, and so you can check a method against the truth
# before you trust it on real data, where there is none.

# %% [markdown]
# ## 5 · The map of the course
#
# Read in this order. The table looks into your folder: what is there is a link.

# %%
from pathlib import Path

from IPython.display import Markdown

import mtl_helpers

course = {
    "00_start_here": "where you run, the shop, a first slider",
    "01_single_task_baseline": "from the raw log to one model per task; why accuracy lies",
    "02_shared_bottom": "one bottom, one tower per task; when sharing helps and when it hurts",
    "03_loss_math": "the loss and its gradient, by hand and by autograd",
    "04_weighting_strategies": "manual, adaptive, data-based weights; combining gradients",
    "05_ecommerce_case": "three tasks, one ranked list, money",
    "06_sharing_architectures": "experts and gates: who shares what",
    "07_real_data": "real logs, where nobody knows the truth",
}

# %%
folder = Path(mtl_helpers.__file__).parents[1] / "notebooks"
lines = ["| notebook | the one idea | state |", "|---|---|---|"]
for name, idea in course.items():
    there = (folder / f"{name}.ipynb").exists()
    here = "you are here" if name.startswith("00") else "ready" if there else "planned"
    shown = f"[{name}]({name}.ipynb)" if there else name
    lines.append(f"| {shown} | {idea} | {here} |")
Markdown("\n".join(lines))

# %% [markdown]
# On Colab these links lead nowhere. There, *File → Open notebook → GitHub* lists all notebooks.

# %% [markdown]
# ## 6 · How sliders work
#
# **Sliders**
#
# - By mouse: drag. By keyboard: <kbd>Tab</kbd> until the slider has the focus, then the arrow keys.
# - *Reset* goes back to the first state.
# - The line under the picture says in words what it shows. It changes with the slider.
# - No kernel, for instance on GitHub? Then you see a still picture of the first state.
# - A dead slider after opening a notebook: run it, *Run → Run All Cells*.
#
# You can drive a slider from code as well:

# %%
another = weight_explorer(family)  # one that is not shown, so yours stays where you left it
for value in (weights[0], weights[-1]):
    print(another.set(purchase=value).reading)

# %% [markdown]
# **When something looks odd**: *Kernel → Restart Kernel and Run All Cells*. Every notebook of the course runs
# from top to bottom without your doing anything, exercises included.

# %% [markdown]
# ## 7 · Exercises
#
# You get a function that returns `...`. Replace the dots, run the cell, then the check below it. The check never
# raises. It says one of four things, with a mark and in words:
#
# - ○ *not attempted*, ✓ *correct*;
# - ✗ *not yet*, with an input, what was expected, what came, and often a hint for that very mistake;
# - ! *your code raised …*, with your own line.

# %%
from mtl_helpers.check import check, hint, progress, solution, use

# %% [markdown]
# ### Exercise one, done together: a click rate
#
# The click rate of a table is its clicks divided by its rows. Labels are zeros and ones, so that is the mean
# of the column.


# %%
def click_rate(log):
    """log: a table with a column `click` of 0 and 1, (n rows). Returns clicks / rows, a number.

    Example: three rows with click 1, 0, 0 give 1/3.
    """
    return log["click"].mean()


# %%
check("00.click_rate", click_rate)

# %% [markdown]
# The check tried it on several random tables, not on one: an answer that fits a single example does not pass.
#
# **Stuck?** `hint("00.click_rate", 1)` is a nudge, level 2 shows the way, level 3 is nearly the solution. Then there is
# `solution("00.click_rate")`, commented source. Type them into any cell, with the name of any exercise:

# %%
hint("00.click_rate", 1)

# %%
solution("00.click_rate")

# %% [markdown]
# ### Exercise two: a conversion rate
#
# Now you. Which share of the **clicked** rows was bought?


# %%
def conversion_rate(log):
    """log: a table with columns `click` and `purchase` of 0 and 1, (n rows). Returns purchases / clicks, a number.

    Example: clicks 1, 1, 0 and purchases 1, 0, 0 give 1/2.
    """
    return ...


# %%
check("00.conversion_rate", conversion_rate)

# %% [markdown]
# A later cell that needs your function takes it through `use`: yours if it passes, the solution's if not. So every
# notebook runs from top to bottom, solved or unsolved.

# %%
rate = use("00.conversion_rate", conversion_rate)
for name, rows in frame.groupby("surface"):
    print(f"{name}: {rate(rows):.1%} of the clicks end in a purchase")

# %% [markdown]
# ### Exercise three: read the device report
#
# How many rows can the device hold at once? Print `report` if you have forgotten what it says.


# %%
def rows_that_fit(report, bytes_per_row):
    """report: a DeviceReport, as in section one. bytes_per_row: a whole number.

    Returns how many rows fit into *half* of the device's memory, a whole number. `report.memory_gb` counts in
    GB of 10**9 bytes, or is None when the device does not say: then the answer is 0.
    Example: 16.0 GB and 400 bytes a row give 20,000,000.
    """
    return ...


# %%
check("00.rows_that_fit", rows_that_fit)

# %% [markdown]
# ### Exercise four: mix two losses
#
# Write the formula of section two as code.


# %%
def mixed_loss(loss_click, loss_purchase, w):
    """loss_click, loss_purchase: tensors, shape (). w: weight of the purchase. Returns a tensor, shape (),
    through which a gradient flows to both losses.

    Example: losses 2 and 4 with w = 0.25 give 2.5.
    """
    return ...


# %%
check("00.mixed_loss", mixed_loss)

# %% [markdown]
# **What have I passed?** A correct answer is noted in a file on your computer. Nothing depends on it.

# %%
progress()

# %% [markdown]
# **A word you do not know?** The [glossary](glossary.md) has each term in English and Chinese, and the section that
# teaches it. On Colab, open `notebooks/glossary.md` in the repository instead.

# %% [markdown]
# ## Self-check
#
# **1.** You double the weight of a task. Must its metric get better?
#
# <details><summary>Answer</summary>No. The weight says how much the optimiser cares, not what can be learned.
# Noise, too few labels or the wrong amount of training can eat the gain. Section two
# shows it: the lines printed under the slider say where a metric rose, fell, or showed no clear change.</details>
#
# **2.** The true probabilities have an AUC below one. Is the simulator broken?
#
# <details><summary>Answer</summary>No. A product with a small probability is sometimes clicked, and one with
# a large probability mostly is not. That is chance, and no model can foresee it. The ceiling, printed
# in section four, says how much of the ranking is there to be learned.</details>
#
# **3.** The top of the list is clicked more often than the bottom. Does moving a product to the top gain it
# that whole difference?
#
# <details><summary>Answer</summary>Not if better products stand on top already. The log mixes both causes.
# The last cell of section four separates them: it asks what the same products would have got on top.</details>

# %% [markdown]
# ## Summary
#
# - Multi-task learning is one model with several outputs. Their losses are mixed by task weights, and a
#   trained family of models shows what a weight does.
# - In the shop a purchase needs a click. The rare label and the frequent one are about the same people.
# - The simulator knows the true probabilities. Models never read them; you use them as a ceiling and as a
#   judge.
#
# **What the toy hides.** A person's taste never changes here, stock never runs out, and a log of a real shop has
# millions of users and hundreds of columns. *In production* nobody hands you a ceiling: you test on live
# traffic instead.

# %% [markdown]
# ## References
#
# - R. Caruana, *Multitask Learning*, Machine Learning 28, 1997: the idea, and why a shared layer can help
#   (sections 1 to 3).
# - S. Ruder, *An Overview of Multi-Task Learning in Deep Neural Networks*, arXiv:1706.05098, 2017.
# - X. Ma et al., *Entire Space Multi-Task Model*, SIGIR 2018, arXiv:1804.07931: impression → click → purchase
#   (section 2).
# - The course grew out of the article “A multi-task learning framework for large-model recommender systems”.
#
# **Next:** [01_single_task_baseline](01_single_task_baseline.ipynb), where the raw log gets cleaned and every
# task gets a model of its own.
