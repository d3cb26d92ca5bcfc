# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # Real data: the seesaw, the gift, and the third decimal
#
# **Promise.** You will see on real logs when sharing hurts, when it helps, and when it makes no difference, and take
# a table of your own to a multi-task model in ten lines.
#
# {{colab_badge}} · [glossary](glossary.md) · about ninety minutes to read, under one minute to run on two CPU cores (no GPU needed) · builds on
# [04_weighting_strategies](04_weighting_strategies.ipynb); MMoE and PLE are explained in notebook 06

# %% [markdown]
# **You will be able to**
#
# - *split* a log by time and *find* statistics that leak;
# - *show* a seesaw and a transfer with paired intervals over seeds;
# - *read* cold rows, grouped AUC and calibration over days;
# - *compute* how many seeds a difference needs before it may be claimed;
# - *turn* any table into a multi-task data set.

# %%
# {{setup}}

# %% tags=["plumbing"]
# @title Where this notebook stands in the course
from mtl_helpers.widgets import course_map

course_map("07")

# %% [markdown]
# ## Recap: sharing is a bet
#
# On the shop, sharing paid where labels were scarce and cost where a loud third task joined. There we knew the truth. Here we
# do not, so everything rests on held-out days, seeds and intervals.

# %% tags=["plumbing"]
# @title Imports
from pathlib import Path

import numpy as np
import pandas as pd
from IPython.display import display

import mtl_helpers
from mtl_helpers.data import check_leaks, prepare, public
from mtl_helpers.metrics import auc, mean_interval, paired_difference
from mtl_helpers.models import PLE, SharedBottom, SingleTask
from mtl_helpers.training import evaluate, fit
from mtl_helpers.widgets import figures as plots

torch.set_num_threads(1)  # models this small need no more, and more threads stumble on a busy machine

# %% [markdown]
# Two kinds of cells follow. Some read **tables** of really trained runs, stored beside this notebook; they work
# anywhere. Others are **live**: they need the data on this machine and are skipped without it.

# %%
LIVE = public.kuairand_available() is not None
frame = public.load_kuairand(progress=False) if LIVE else None
folder = Path(mtl_helpers.__file__).parents[1] / "notebooks" / "results"


def table(name):
    """A stored table; its first line is the command that makes it."""
    path = folder / f"07_{name}.csv"
    print("made by:", path.read_text().splitlines()[0].lstrip("# "))
    return pd.read_csv(path, comment="#")


print(
    "KuaiRand-Pure:", f"{len(frame):,} rows, live cells run" if LIVE else "not here, live cells are skipped"
)
if not LIVE:
    print("To fetch it once: public.load_kuairand(), or set MTL_KUAIRAND to a copy. Then run again.")

# %% [markdown]
# ## 1 · A log of videos
#
# KuaiRand-Pure holds impressions of a video app (Gao et al., CIKM 2022). Three labels you know, and a fourth that is
# no yes or no: for how long did the video run?

# %%
if LIVE:
    days = frame.groupby("date")[["click", "long_view", "like"]].agg(["mean"]).droplevel(1, axis=1)
    days.insert(0, "rows", frame.groupby("date").size())
    display(days.round(3))
    print(f"{frame['user_id'].nunique():,} users, {frame['video_id'].nunique():,} videos,", end=" ")
    print(f"{frame['author_id'].nunique():,} authors")
else:
    print("skipped: no data here")

# %% [markdown]
# ### Play time is censored
#
# A video of ten seconds that ran to its end says "at least ten". What the user would have watched of a longer one is
# not observed: the value is *censored*. Others never started by themselves and have zero.

# %% tags=["plumbing"]
# @title Figure: play time is censored
title = "Where the video ends, the label ends too"
if LIVE:
    fig = plots.figure(2.8)
    ax = fig.subplots()
    bins = np.linspace(0, frame["log_play"].max(), 50)
    played = [frame.loc[frame["finished"] == done, "log_play"] for done in (False, True)]
    names = ["left before the end", "ran to the end"]
    ax.hist(played, bins, stacked=True, color=["#BBBBBB", "#882255"], label=names)
    ax.set(xlabel="log(1 + seconds played)", ylabel="rows", title=title)
    plots.legend_outside(fig)
    display(fig)
    censored, zero = frame["finished"].mean(), (frame["log_play"] == 0).mean()
    print(f"{censored:.1%} of rows are censored, {zero:.1%} are zero.")
else:
    display(plots.stored_picture(folder / "07_play_time.png", f"{title}."))

# %% [markdown]
# We keep the censored value as it is, cut off at the video's length. The model then predicts *time played of this
# video*, which is what was observed, and not *interest*. Dropping the censored rows would be worse. See why:

# %%
if LIVE:
    kept = frame.loc[~frame["finished"], "log_play"]
    print(
        f"mean log(1 + s): all rows {frame['log_play'].mean():.3f}, without censored rows {kept.mean():.3f}"
    )
    short = frame["log_duration"] < frame["log_duration"].median()
    for name, rows in (("short", short), ("long", ~short)):
        print(f"{name} videos: {frame.loc[rows, 'finished'].mean():.1%} censored")
    print("Dropping them drops the best-watched rows, and mostly those of short videos.")

# %% [markdown]
# ## 2 · A split that tells the truth
#
# Tomorrow's clicks must not help today. Train on the earlier days, validate on the second last, test on the last. An
# id that training has hardly seen shares the bucket "unknown".

# %%
TASKS = public.KUAIRAND_TASKS
NUMERIC, CATEGORICAL = public.KUAIRAND_WIDE_NUMERIC, public.KUAIRAND_WIDE_CATEGORICAL
if LIVE:
    parts = public.split_by_date(frame)
    data = prepare(parts, TASKS, NUMERIC, CATEGORICAL, min_count=2, device=device)
    for name in ("user_id", "video_id", "author_id"):
        codes = data.test.categorical[:, CATEGORICAL.index(name)]
        print(f"{name}: {(codes == 0).float().mean().item():.1%} of test rows are in the unknown bucket")
    display(check_leaks(parts, [*NUMERIC, *CATEGORICAL], TASKS, time="date"))

# %% [markdown]
# **Predict.** A colleague adds a feature: each author's click rate. Three versions: over *all* days, over the training
# days, and over the training days *without the row itself*. Which of them lie?

# %%
if LIVE:
    train, test = parts["train"], parts["test"]
    every = frame.groupby("author_id")["click"].mean()
    by = train.groupby("author_id")["click"].agg(["sum", "count", "mean"])
    rest = train["author_id"].map(by["sum"]) - train["click"]
    others = rest / (train["author_id"].map(by["count"]) - 1).where(lambda n: n > 0)
    mean = train["click"].mean()
    versions = {
        "all days": (train["author_id"].map(every), test["author_id"].map(every)),
        "training days": (train["author_id"].map(by["mean"]), test["author_id"].map(by["mean"])),
        "without the row": (others, test["author_id"].map(by["mean"])),
    }
    found = {
        name: [auc(p["click"], v.fillna(mean)) for p, v in zip((train, test), pair, strict=True)]
        for name, pair in versions.items()
    }

# %%
if LIVE:
    shown = pd.DataFrame(found, index=["train AUC", "test AUC"]).T
    display(shown.round(4))
    honest = shown.loc["without the row"]
    print(
        f"All days: {shown.loc['all days', 'test AUC'] - honest['test AUC']:+.4f} test AUC that no future day repeats."
    )
    gap = shown.loc["training days", "train AUC"] - honest["train AUC"]
    print(f"Training days: {gap:+.4f} in training only; the model learns to trust it too much.")
else:
    print("skipped: no data here")

# %% [markdown]
# The first lie flatters the test score; you would ship it. The second makes the model worse and shows in no check of
# the split. You will write the third version in exercise one.

# %% [markdown]
# ## 3 · The seesaw
#
# One model a task against one shared bottom for all three, then MMoE and PLE. All were tuned with six trials each and
# stopped by the same validation number; the test day was scored once a run. A seed draws four fifths of the training
# rows, the initial weights and the batches.
#
# **Predict.** Likes are rare. Does sharing with clicks help or hurt them, when *all* their labels are there?

# %%
runs = table("seesaw")
names = [task.name for task in TASKS]


def against(rows, model, task, metric="auc"):
    """Values of a model and of the single-task model of a task, by seed."""
    wide = rows[(rows["metric"] == metric) & (rows["task"] == task)].pivot(
        index="seed", columns="model", values="value"
    )
    return wide[model].to_numpy(), wide[f"single {task}"].to_numpy()


def verdict(gap):
    return "a tie" if not gap.excludes_zero else "better" if gap.mean > 0 else "worse"


print(runs["model"].nunique(), "models ×", runs["seed"].nunique(), "seeds")

# %% [markdown]
# By hand first: eight seeds, two AUCs each, one difference a seed.

# %%
shared, single = against(runs, "shared bottom", "like")
gaps = shared - single
half = 2.365 * gaps.std(ddof=1) / np.sqrt(len(gaps))  # Student's t, 7 degrees of freedom
print("differences:", gaps.round(4))
print(f"by hand {gaps.mean():.4f} [{gaps.mean() - half:.4f}, {gaps.mean() + half:.4f}]")
print("helper ", paired_difference(shared, single))


# %% tags=["plumbing"]
# @title Figure: differences to single-task models
def draw_against_single(rows, models, metric="auc", label="test AUC minus the single-task model's"):
    """One panel a task, one row a model; filled: the interval excludes zero."""
    fig = plots.figure(1.0 + 0.34 * len(models))
    for ax, task in zip(fig.subplots(1, len(names), sharey=True), names, strict=True):
        color, marker = plots.task_style(task)["color"], plots.task_style(task)["marker"]
        gaps = [paired_difference(*against(rows, model, task, metric)) for model in models]
        for y, gap in enumerate(gaps):
            ax.plot([gap.low, gap.high], [y, y], color=color, lw=2)
            ax.plot(gap.mean, y, marker, color=color, mfc=color if gap.excludes_zero else "white", ms=7)
        ax.axvline(0, color="#222222", lw=1)
        up, down = sum(gap.low > 0 for gap in gaps), sum(gap.high < 0 for gap in gaps)
        ax.set(ylim=(len(models) - 0.5, -0.5), title=f"{task}: {up} better, {down} worse")
        ax.set_yticks(range(len(models)), models)
        ax.locator_params(axis="x", nbins=4)
    fig.supxlabel(label, fontsize=10)
    return fig


# %%
def read_against_single(rows, models, metric="auc"):
    for task in names:
        said = {model: verdict(paired_difference(*against(rows, model, task, metric))) for model in models}
        kinds = {kind: [m for m, v in said.items() if v == kind] for kind in ("better", "worse", "a tie")}
        print(f"{task}:", "; ".join(f"{kind}: {', '.join(found)}" for kind, found in kinds.items() if found))


architectures = ["shared bottom", "MMoE", "PLE"]
display(draw_against_single(runs, architectures))
read_against_single(runs, architectures)

# %%
gains = {task: paired_difference(*against(runs, "shared bottom", task)) for task in names}
for task, gap in gains.items():
    print(f"{task}: {gap.mean:+.4f} [{gap.low:+.4f}, {gap.high:+.4f}], {verdict(gap)}")
up = [task for task, gap in gains.items() if gap.low > 0]
down = [task for task, gap in gains.items() if gap.high < 0]
print(
    "A seesaw." if up and down else "No seesaw here.",
    f"Up: {', '.join(up) or 'none'}; down: {', '.join(down) or 'none'}.",
)

# %% [markdown]
# One end rises a little, the other falls a lot. Gates and experts of one's own are meant to stop that: read off above
# whether they did. They all shared the embeddings, and the stopping rule.

# %% [markdown]
# ### What weights and gradients change
#
# Now the shared bottom with other weightings, at the same six trials. "For like" lets the validation loss of like
# alone choose and stop.

# %%
methods = ["shared bottom", "tuned fixed weights", "UW", "DWA", "RLW", "FAMO", "PCGrad", "Aligned-MTL"]
methods.append("shared bottom, for like")
display(draw_against_single(runs, methods))
read_against_single(runs, methods)
count = len(methods) * len(names)
print(f"{count} intervals at 95 %: about {0.05 * count:.0f} would exclude zero by chance alone.")

# %%
means = runs[runs["metric"] == "auc"].groupby(["model", "task"])["value"].mean().unstack()
rank = means.loc[methods].rank(ascending=False)
both = sorted(means.loc[methods].index, key=lambda m: rank.loc[m].mean())
print(
    f"correlation of the methods' click and like AUC: {means.loc[methods, ['click', 'like']].corr().iloc[0, 1]:.2f}"
)
dominant = [m for m in methods if all(paired_difference(*against(runs, m, t)).low > 0 for t in names)]
print("better than single-task models on every task:", ", ".join(dominant) or "none")
means.loc[methods].round(4)

# %% [markdown]
# Look along the rows. What saves like costs click and long view: a method picks a place *on* the seesaw. That may be
# exactly what you want; it is a choice of priorities, made by a formula.

# %% [markdown]
# Live, if you have the data: one draw of rows, one seed. One run proves nothing; it shows that the table can be made.

# %%
if LIVE:
    few = data.train.take(slice(0, 10_000 if FAST else 40_000))
    settings = {"lr": 1e-3, "weight_decay": 0.1, "epochs": 2 if FAST else 8, "progress": False}
    torch.manual_seed(0)
    models = {"single": SingleTask(data.schema, TASKS[2]), "shared": SharedBottom(data.schema, TASKS)}
    for name, model in models.items():
        fit(model, few.select(["like"]) if name == "single" else few, data.valid, **settings)
        print(f"{name}: validation AUC of like {evaluate(model, data.valid)['like']['auc']:.4f}")
else:
    print("skipped: no data here")

# %% [markdown]
# ## 4 · A fourth task of another kind
#
# Play time is a regression: its loss is a squared error, in squared log-seconds. **Predict.** Add it to the sum with
# weight one. What happens to like?

# %%
four = table("play")
for model in ("shared, equal weights", "shared, entropy weights"):
    print(model)
    for task in names:
        gap = paired_difference(*against(four, model, task))
        print(
            f"  {task}: AUC {gap.mean:+.4f} [{gap.low:+.4f}, {gap.high:+.4f}] against single-task: {verdict(gap)}"
        )
    gap = paired_difference(*against(four, model, "play_time", "rmse"))
    words = "a tie" if not gap.excludes_zero else "worse" if gap.mean > 0 else "better"
    print(f"  play_time: RMSE {gap.mean:+.4f} [{gap.low:+.4f}, {gap.high:+.4f}]: {words}")

# %% [markdown]
# Entropy weights divide each loss by that of its best constant (notebook 04). By hand: what do the four tasks lose
# before anything is learned?

# %%
if LIVE:
    play = public.KUAIRAND_PLAY_TASK
    y = parts["train"]["log_play"]
    p = parts["train"][names].mean()
    constant = -(p * np.log(p) + (1 - p) * np.log(1 - p))
    print({name: round(float(value), 3) for name, value in constant.items()}, "nats")
    print(
        f"play_time: {y.var():.3f} squared log-seconds, {y.var() / constant['like']:.0f} times the loss of like"
    )

# %%
equal, entropy = (
    paired_difference(*against(four, m, "like")) for m in ("shared, equal weights", "shared, entropy weights")
)
change = paired_difference(
    against(four, "shared, entropy weights", "like")[0], against(four, "shared, equal weights", "like")[0]
)
print(
    f"like, entropy minus equal weights: {change.mean:+.4f} [{change.low:+.4f}, {change.high:+.4f}], {verdict(change)}"
)
print(
    f"against the single-task model: {equal.mean:+.4f} with equal weights, {entropy.mean:+.4f} with entropy weights"
)

# %% [markdown]
# ## 5 · The gift: few likes, many clicks
#
# Now hide most like labels and keep all clicks. It is the situation of every new button. **Predict.** At which numbers
# of labels will sharing pay, and where will it be a tie?

# %%
from mtl_helpers.widgets import scarcity_explorer

budget = table("budget")
likes = budget[(budget["task"] == "like") & (budget["metric"] == "auc")].rename(columns={"value": "auc"})
kinds = {"single like": "single-task", "shared bottom, for like": "shared-bottom"}
likes = likes.assign(model=likes["model"].map(kinds), label_budget=likes["like_labels"])
scarcity_explorer(likes, task="like", split="test")

# %%
wide = likes.pivot(index=["label_budget", "seed"], columns="model", values="auc")
for labels, rows in wide.groupby(level=0):
    gap = paired_difference(rows["shared-bottom"], rows["single-task"])
    likes_there = f" (about {labels * parts['train']['like'].mean():,.0f} likes)" if LIVE else ""
    print(
        f"{labels:,} labels{likes_there}: {gap.mean:+.4f} [{gap.low:+.4f}, {gap.high:+.4f}], {verdict(gap)}"
    )

# %% [markdown]
# Both sides were tuned anew at each budget, and stopped on the same fully labelled validation day: with few labels of
# your own you would have a noisier stop. **What surprised you?** The same architecture, the same tasks; only the
# number of labels differs. Where labels are fewest the interval is widest: a gift is hardest to prove where it is
# hoped for most.

# %% [markdown]
# ## 6 · Behind the average
#
# ### Cold users and cold videos
#
# An overall AUC mixes users the model knows with users in the unknown bucket.

# %%
models = {"single": "#777777", "shared bottom": "#222222", "MMoE": "#56B4E9", "PLE": "#E69F00"}
groups = ["auc_warm_user", "auc_cold_user", "auc_warm_video", "auc_cold_video"]
means = runs[runs["metric"].isin(groups)].groupby(["task", "metric", "model"])["value"]
seen = {key: mean_interval(values) for key, values in means}
seen |= {(t, g, "single"): found for (t, g, m), found in list(seen.items()) if m == f"single {t}"}
size = runs[(runs["seed"] == 0) & (runs["model"] == "shared bottom")].set_index(["metric", "task"])["value"]
for kind in ("user", "video"):
    there = int(size[f"positives_cold_{kind}", "like"])
    print(f"cold {kind}s: {int(size[f'rows_cold_{kind}', 'click']):,} test rows with {there} likes (seed 0)")

# %% tags=["plumbing"]
# @title Figure: behind the average
fig = plots.figure(2.9)
for ax, task in zip(fig.subplots(1, 3), names, strict=True):
    for x, group in enumerate(groups):
        for shift, (model, color) in enumerate(models.items()):
            found, at = seen[task, group, model], x + 0.16 * (shift - 1.5)
            ax.plot([at, at], [found.low, found.high], lw=2, color=color)
            ax.plot(at, found.mean, "os^D"[shift], ms=5, color=color, label="" if x else model)
    ax.set_xticks(range(4), ["warm\nuser", "cold\nuser", "warm\nvideo", "cold\nvideo"])
    ax.set(title=task, ylabel="test AUC")
fig.axes[2].legend(fontsize=8, loc="upper left")
display(fig)
print("Each mark is a mean over seeds with its interval; the four groups hold different rows.")

# %%
for kind in ("user", "video"):
    for task in names:
        drop = (
            seen[task, f"auc_cold_{kind}", "shared bottom"].mean
            - seen[task, f"auc_warm_{kind}", "shared bottom"].mean
        )
        print(f"{task}, shared bottom: cold {kind}s {drop:+.3f} AUC against warm ones")
few = int(size["positives_cold_video", "like"])
print(
    f"{few} likes on cold videos are too few to speak of; and cold rows are other rows, not the same ones made cold."
)

# %% [markdown]
# ### Within a user
#
# A ranking is shown to *one* user. Grouped AUC asks whether a user's own rows are in the right order. A model that
# only knows who clicks much scores well overall and says nothing there.

# %%
for task in names:
    rows = runs[(runs["task"] == task) & runs["metric"].isin(["auc", "grouped_auc"])]
    wide = rows.pivot_table(index="metric", columns="model", values="value")
    shown = {m: wide[f"single {task}" if m == "single" else m].round(3).to_dict() for m in models}
    print(task, shown)
display(draw_against_single(runs, architectures, "grouped_auc", "grouped AUC minus the single-task model's"))
read_against_single(runs, architectures, "grouped_auc")

# %% [markdown]
# ### Day after day
#
# Trained on two days, stopped on a third, then left alone for five. A holiday lies among them.

# %% tags=["plumbing"]
# @title Figure: day after day
drift = table("drift")
drift[["day", "what"]] = drift["metric"].str.split(" ", n=1, expand=True)
drift = drift[drift["model"] == "shared bottom"]
fig = plots.figure(2.7)
for ax, task in zip(fig.subplots(1, 3), names, strict=True):
    style = plots.task_style(task)
    wide = drift[drift["task"] == task].pivot_table(index="day", columns=["what", "seed"], values="value")
    said, days = wide["predicted"], [day[5:] for day in wide.index]
    ax.plot(days, wide["observed"].mean(axis=1), "k--", marker="x", label="observed")
    ax.plot(days, said.mean(axis=1), color=style["color"], marker=style["marker"], label="predicted")
    ax.fill_between(days, said.min(axis=1), said.max(axis=1), color=style["color"], alpha=0.2)
    worst = (said.mean(axis=1) / wide["observed"].mean(axis=1) - 1).abs().max()
    ax.set(title=f"{task}: off by up to {worst:.0%}", ylabel="share of yes", xlabel="day (month-day)")
fig.axes[0].legend(fontsize=8)
display(fig)
print("Predicted: mean over seeds, band from the lowest to the highest seed.")

# %%
for task in names:
    rows = drift[drift["task"] == task]
    wide = rows.pivot_table(index=["seed", "day"], columns="what", values="value")
    ratio = (wide["predicted"] / wide["observed"]).unstack()
    first, last = mean_interval(ratio.iloc[:, 0]), mean_interval(ratio.iloc[:, -1])
    print(
        f"{task}: predicted / observed {first.mean:.2f} on the first day, {last.mean:.2f} on the last;",
        end=" ",
    )
    print(
        f"AUC {wide['auc'].unstack().iloc[:, 0].mean():.3f} and {wide['auc'].unstack().iloc[:, -1].mean():.3f}"
    )

# %% [markdown]
# The order of the rows can hold while the probabilities drift. If you only rank, you may not care; if you multiply
# by money, you do.

# %% [markdown]
# ## 7 · Census: a contest in the third decimal
#
# The papers on MMoE and PLE compare on Census-Income: income above 50,000 dollars, and never married. Both labels
# leave the features. Published figures differ by set-up, so read them as bands.

# %%
published = pd.DataFrame(
    {"income": [0.9198, 0.9560, 0.9579, 0.9593], "never_married": [0.9748, 0.9948, 0.9950, 0.9950]},
    index=[
        "single-task (one source)",
        "shared bottom (torch-rechub)",
        "MMoE (torch-rechub)",
        "PLE (torch-rechub)",
    ],
)
persons = table("census")
ours = persons[persons["metric"] == "auc"]
bands = {(m, t): mean_interval(v["value"]) for (t, m), v in ours.groupby(["task", "model"], sort=False)}
for (model, task), found in bands.items():
    print(f"{model:24} {task:14} {found}")
published

# %% tags=["plumbing"]
# @title Figure: Census beside published figures
fig = plots.figure(2.6)
order = ["shared bottom", "MMoE", "PLE"]
for ax, task in zip(fig.subplots(1, 2, sharey=True), ("income", "never_married"), strict=True):
    for y, model in enumerate(order):
        gap = paired_difference(*against(ours, model, task))
        ax.plot([gap.low, gap.high], [y, y], color="#222222", lw=2)
        ax.plot(gap.mean, y, "o", color="#222222", mfc="#222222" if gap.excludes_zero else "white")
    ax.axvline(0, color="#777777", lw=1)
    ax.axvspan(-0.001, 0.001, color="#E69F00", alpha=0.2)
    ax.set(title=task, xlabel="AUC minus single-task (band: ±.001)", yticks=range(3), ylim=(2.5, -0.5))
    ax.set_yticklabels(order)
    ax.locator_params(axis="x", nbins=4)
display(fig)
for task in ("income", "never_married"):
    found = {model: paired_difference(*against(ours, model, task)) for model in order}
    print(f"{task}:", "; ".join(f"{m} {g.mean:+.4f}, {verdict(g)}" for m, g in found.items()))

# %%
wide = ours.pivot(index="seed", columns=["model", "task"], values="value")
for task in ("income", "never_married"):
    for model in ("MMoE", "PLE"):
        gap = paired_difference(wide[model, task], wide["shared bottom", task])
        print(
            f"{task}, {model} minus shared bottom: {gap.mean:+.4f} [{gap.low:+.4f}, {gap.high:+.4f}], {verdict(gap)}"
        )
spans = published.max() - published.min()
print("published figures span", spans.round(3).to_dict(), "AUC: far more than any of these differences")

# %% [markdown]
# `never_married` is nearly written in the features: a column on the household says "Child under 18 never married".
# A score near one there is no feat. A live look, if you have the file:

# %%
if public.census_available():
    people = public.load_census(progress=False)
    rate = people.groupby("detailed_household_summary_in_household", observed=True)["never_married"].agg(
        ["mean", "size"]
    )
    display(rate.sort_values("size", ascending=False).round(3).head(6))
    alone = auc(
        people["never_married"],
        people["detailed_household_summary_in_household"].astype(object).map(rate["mean"]),
    )
    print(f"This one column alone reaches AUC {alone:.3f}.")
else:
    print(
        "skipped: no file. Set MTL_CENSUS to census-income.test.gz, or run public.load_census() to download it."
    )

# %% [markdown]
# ### How many seeds for a thousandth?
#
# The mean of $n$ paired differences scatters by $s/\sqrt n$. To see a true difference $d$ in four attempts of five, at
# the five per cent level, you need about $n = (2.8\,s/d)^2$.

# %%
from mtl_helpers.widgets.explorer import Explorer, slider

spread = {
    (model, task): (np.subtract(*against(ours, model, task))).std(ddof=1)
    for model in order
    for task in ("income", "never_married")
}
for (model, task), s in spread.items():
    print(f"{model}, {task}: s = {s:.4f}, seeds for .001: {max(2, int(np.ceil((2.8 * s / 0.001) ** 2)))}")

# %%
from scipy.stats import nct, t


def power(d, s, n):
    """Chance that the 95 % t-interval of n paired differences excludes zero if the true difference is d."""
    edge, shift = t.ppf(0.975, n - 1), d * np.sqrt(n) / s
    wrong_side = np.nan_to_num(nct.cdf(-edge, n - 1, shift))  # scipy gives NaN where it is all but 0
    return float(nct.sf(edge, n - 1, shift) + wrong_side)


s = spread["MMoE", "income"]
draws = np.random.default_rng(0).normal(0.001, s, (4000, 8))
excluded = np.abs(draws.mean(1)) > t.ppf(0.975, 7) * draws.std(1, ddof=1) / np.sqrt(8)
print(
    f"power at 8 seeds, d = .001: formula {power(0.001, s, 8):.3f}, by 4,000 simulated studies {excluded.mean():.3f}"
)

# %% tags=["plumbing"]
# @title Widget: power, drawn
fig = plots.figure(3)
ax = fig.subplots()
counts = np.arange(2, 61)
curve = ax.plot([], [], color="#0072B2", animated=True)[0]
dot = ax.plot([], [], "o", color="#D55E00", ms=9, animated=True)[0]
ax.axhline(0.8, color="#777777", ls=":")
_ = ax.set(
    xlim=(0, 61),
    ylim=(0, 1.02),
    xlabel="seeds",
    ylabel="chance to see it",
    title="MMoE against single-task, income",
)


# %% tags=["plumbing"]
# @title Widget: power, moved
def draw_power(state):
    d = state["difference"] / 1000
    curve.set_data(counts, [power(d, s, n) for n in counts])
    dot.set_data([state["seeds"]], [power(d, s, state["seeds"])])
    return f"A true difference of {d:.4f} AUC: {state['seeds']} seeds see it in {power(d, s, state['seeds']):.0%} of studies."


knobs = [slider("difference", "true difference, thousandths of AUC", 0.2, 5, 1, step=0.2)]
knobs.append(slider("seeds", "seeds", 2, 60, 5, step=1))
Explorer(fig, knobs, draw_power, title="Power of a comparison by seeds")

# %% [markdown]
# On income, a difference of a thousandth from one run, or three, says next to nothing. Splits of different seeds
# overlap, too, so these intervals are a little too narrow.

# %% [markdown]
# ## 8 · Your own log
#
# Name the labels; `guess_features` proposes what the other columns are, with its reasons, and you overrule. The shop's
# raw log has a column that is known only after the click: the guess cannot know that, `check_leaks` sees it.

# %%
from mtl_helpers.data import Task, check_leaks, guess_features, prepare, split_by_time

raw = pd.read_csv(folder.parents[1] / "datasets" / "shop" / "impressions.csv.gz").drop_duplicates()
own_tasks = (Task("click"), Task("purchase"))
numeric, categorical, table = guess_features(raw, own_tasks, time="timestamp", user="user_id")
own_parts = split_by_time(raw)
display(table)
display(check_leaks(own_parts, [*numeric, *categorical], own_tasks, time="timestamp"))

# %%
numeric = [name for name in numeric if name != "dwell_seconds"]
categorical = [name for name in categorical if name != "session_id"]

# %% [markdown]
# From here it is what you know. With a file of your own: `pd.read_csv("log.csv")` in place of the shop's log.

# %%
splits = prepare(own_parts, own_tasks, numeric, categorical, min_count=2)
torch.manual_seed(0)
model = PLE(splits.schema, splits.tasks, embedding_dim=4)
fit(model, splits.train, splits.valid, epochs=2 if FAST else 4, lr=3e-3, weight_decay=0.1, progress=False)
print(
    {task: round(values["auc"], 4) for task, values in evaluate(model, splits.valid).items()},
    "validation AUC",
)
new = splits.encoder.transform(raw.tail(3))
print("new rows as tensors:", tuple(new[0].shape), tuple(new[1].shape))

# %% [markdown]
# Try another split: `split_by_user` tests on users never seen; leave the user's id out then, for it says nothing of
# them. Whole numbers of few values as a label (stars from one to five) are classes or amounts: you say which, by `Task`.

# %% [markdown]
# ## Exercises
#
# `check` answers in words; `hint` and `solution` help (see notebook 00).
#
# ### Exercise one: a statistic without its own label

# %%
from mtl_helpers.check import check


def rate_of_others(ids, labels):
    """ids (n,), labels (n,) of 0 and 1: arrays. Returns (n,): for each row the mean label of the *other* rows with its
    id; where there are none, the mean label of all other rows.

    Example: ids 3, 3, 8 with labels 1, 0, 1 give 0, 1, 0.5.
    """
    return ...


# %%
check("07.rate_of_others", rate_of_others)

# %% [markdown]
# Stuck? `mtl_helpers.check.hint("07.rate_of_others", 1)`; the commented answer is at
# `mtl_helpers.check.solution("07.rate_of_others")`.
#
# ### Exercise two: a paired interval


# %%
def paired_interval(a, b, quantile):
    """a, b (n,): a metric of two models on the same n seeds, arrays; quantile: Student's t. Returns low and high of the
    interval of the mean of a − b, an array (2,).

    Example: differences of 1 and 3 with quantile 1 give 1 and 3.
    """
    return ...


# %%
check("07.paired_interval", paired_interval)

# %% [markdown]
# Hints and answer as before, under `"07.paired_interval"`.
#
# ### Exercise three: how many seeds?


# %%
def seeds_needed(sd, gap):
    """sd: deviation of one paired difference; gap: the true difference. Returns the smallest whole number n for which
    2.8 · sd / √n is at most gap.

    Example: sd = gap gives 8.
    """
    return ...


# %%
check("07.seeds_needed", seeds_needed)

# %% [markdown]
# ## Self-check
#
# **1.** Your shared model gains on one task and loses on another. A method moves the loss to a third task. Is it better?
#
# <details><summary>Answer</summary>It sits elsewhere on the seesaw of section three. It is better only if no task loses, or if you said
# beforehand what each task is worth.</details>
#
# **2.** Transfer helped a label that had few examples. Will it help after a year of logging?
#
# <details><summary>Answer</summary>Section five moves that very knob: with all labels there the gain is no longer seen.
# Measure again when the budget has grown.</details>
#
# **3.** Eight seeds give an interval that excludes zero on the test day. Does it hold tomorrow?
#
# <details><summary>Answer</summary>The interval speaks of another draw of training rows, not of another day. Section six
# shows how days differ.</details>

# %% [markdown]
# ## Summary
#
# - Same tasks, same model: sharing cost a rare label with all its labels there, and helped it at some smaller budgets.
# - Methods choose a place on the seesaw. Compare with single-task models *and* tuned weights, at the same budget.
# - On the papers' benchmark all differences are in the third decimal. A power calculation tells whether your seeds
#   could have seen them at all.
#
# **What this hides.** A week of a small log, a few thousand videos. *In production* the log is biased by the system that
# showed it, labels arrive late, and the model is trained again every day.

# %% [markdown]
# ## References
#
# - C. Gao et al., *KuaiRand: An Unbiased Sequential Recommendation Dataset with Randomly Exposed Videos*, CIKM 2022.
# - J. Ma et al., *Modeling Task Relationships in Multi-task Learning with Multi-gate Mixture-of-Experts*, KDD 2018,
#   section 6 (Census-Income).
# - H. Tang et al., *Progressive Layered Extraction*, RecSys 2020 (the seesaw phenomenon, section 3).
# - H. Zhu et al., *Optimized Cost per Click in Taobao Display Advertising*, KDD 2017, eq. 12 (grouped AUC).
# - T. Lane, R. Kohavi, *Census-Income (KDD)*, UCI Machine Learning Repository, doi 10.24432/C5N30T.
# - X. Bouthillier et al., *Accounting for Variance in Machine Learning Benchmarks*, MLSys 2021.
