# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # 07 · Real data: what the seesaw is made of
#
# **Promise.** When you leave this page you can take a table "sharing costs us the rare task" apart into its causes, say
# how far an interval over draws of one log reaches, and turn a log of your own into a multi-task data set.
#
# {{colab_badge}} · [glossary](glossary.md) · about 60 minutes to read, one minute to run on two CPU cores (no GPU needed) · builds on
# notebooks 02 and 04; PLE and MMoE are explained in notebook 06

# %%
# {{setup}}

# %% tags=["plumbing"]
# @title Imports, and where you are in the course
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from IPython.display import Markdown

import mtl_helpers
from mtl_helpers.data import (
    MultiTaskDataset,
    Task,
    check_leaks,
    guess_features,
    prepare,
    public,
    split_by_time,
)
from mtl_helpers.metrics import auc, holm, mean_interval, reliability_curve
from mtl_helpers.models import PLE, SharedBottom, SingleTask
from mtl_helpers.training import evaluate, fit, predict
from mtl_helpers.weighting import constant_losses
from mtl_helpers.widgets import course_map, draw, guess, scarcity_explorer
from mtl_helpers.widgets import figures as plots
from mtl_helpers.widgets.explorer import Explorer, slider

torch.set_num_threads(1)  # models this small need no more, and more threads stumble on a busy machine
TASKS = public.KUAIRAND_TASKS
NAMES = [task.name for task in TASKS]
folder = Path(mtl_helpers.__file__).parents[1] / "notebooks" / "results"


def number(value, digits=4):
    return f"{value:+.{digits}f}".replace("-", "−")


def span(i, digits=4):
    """Mean and interval of a difference, in words."""
    return f"{number(i.mean, digits)} [{number(i.low, digits)}, {number(i.high, digits)}]"


def says(interval, up="ahead", down="behind"):
    """What an interval of differences allows us to say."""
    return (up if interval.mean > 0 else down) if interval.excludes_zero else "a tie"


course_map("07")

# %% [markdown]
# ## The question of this page
#
# A video app predicts three things of each video it shows: {{click}}, {{long_view}} and {{like}}. A team replaces its three
# models by one shared bottom, as quick as possible: losses added as they come, a learning rate of .001, one stop, nothing
# tuned. The three old models were tuned with care. On the test day, what does sharing cost the rare task, {{like}}?

# %%
g_like = guess("AUC of like, the new model minus the old one?", -0.15, 0.05, 0.005)
g_like

# %% tags=["plumbing"]
# @title Stored runs: what the tuning draw chose, and eight reported draws
SETTING = ["lr", "weight_decay", "weights"]
UNTUNED = (0.001, 0.01, "one")


def stored(name):
    return pd.read_csv(folder / f"07_{name}.csv", comment="#", dtype={"budget": str})


def choice(table, contestant, budget="all"):
    """Settings by the draw that tuned: of each task at its own stop, and of all tasks together."""
    rows = table[(table["seed"] >= 1000) & (table["contestant"] == contestant)]
    rows = rows[rows["budget"] == budget]
    valid = rows.groupby(["stop", "task", *SETTING])["valid"].mean()
    own = {task: valid["each"][task].idxmin() for task in rows["task"].unique()}
    return own | {"one": valid["together"].groupby(SETTING).mean().idxmin()}


def of(table, contestant, task, setting="own", stop="each", budget="all", metric="auc"):
    """One value a draw. ``setting``: the task's "own", the "one" that suits all, or three values."""
    rows = table[(table["seed"] < 1000) & (table["contestant"] == contestant)]
    rows = rows[(rows["budget"] == budget) & (rows["task"] == task) & (rows["stop"] == stop)]
    if contestant != "popularity":
        if isinstance(setting, str):
            setting = choice(table, contestant, budget)[task if setting == "own" else setting]
        rows = rows[(rows[SETTING] == list(setting)).all(axis=1)]
    return rows.set_index("seed")[metric].sort_index()


def stretched(values, ratio=1.0):
    """Draws that share rows are less than one piece of news each: scattered as for a fresh log."""
    values = np.asarray(values)
    return values.mean() + (values - values.mean()) * np.sqrt(1 + len(values) * ratio)


def wider(values, ratio=1.0):
    """The interval for a fresh log."""
    return mean_interval(stretched(values, ratio))


def edges(table, budget="all"):
    """Whose chosen learning rate or decay lies at an end of its grid, in words."""
    found, tuned = {}, table[(table["seed"] >= 1000) & (table["budget"] == budget)]
    for contestant, rows in tuned.groupby("contestant", sort=False):
        for task in rows["task"].unique():
            setting = choice(table, contestant, budget)[task]
            if any(setting[k] in (rows[SETTING[k]].min(), rows[SETTING[k]].max()) for k in (0, 1)):
                found.setdefault(contestant, []).append(task.replace("_", " "))
    return "; ".join(f"{name} ({', '.join(tasks)})" for name, tasks in found.items())


runs = stored("seesaw")
one = choice(runs, "shared bottom")["one"]
DECAY = (one[0], 0.01, one[2])
STEPS = {  # what is changed, and the model one has then
    "sharing itself": ("shared bottom", "own", "each"),
    "one stop for all": ("shared bottom", "own", "together"),
    "one setting for all": ("shared bottom", "one", "together"),
    "decay not tuned": ("shared bottom", DECAY, "together"),
    "rate not tuned": ("shared bottom", UNTUNED, "together"),
}
levels = {task: {"single-task": of(runs, "single-task", task)} for task in NAMES}
for task in NAMES:
    levels[task] |= {step: of(runs, name, task, *how) for step, (name, *how) in STEPS.items()}
naive = {task: levels[task]["rate not tuned"] - levels[task]["single-task"] for task in NAMES}

# %% tags=["plumbing"]
# @title The usual table, as dots
fig = plots.figure(2.1)
ax = fig.subplots()
styles = {task: plots.task_style(task) for task in NAMES}
usual = plots.interval_rows(ax, {task: naive[task].to_numpy() for task in NAMES}, styles=styles)
up = [task for task in NAMES if usual[task].low > 0]
down = [task for task in NAMES if usual[task].high < 0]
said = "A seesaw" if up and down else "Nobody loses" if up else "Nobody gains"
ax.set(
    xlabel="test AUC, quick shared bottom minus careful single-task models",
    title=f"{said}. {'Up: ' + ', '.join(up) + '; down' if up else 'Down'}: {', '.join(down) or 'none'}",
)
g_like.mark(ax)
display(fig, g_like.answer(naive["like"].mean(), digits=3))
Markdown(
    "Pale dots are eight draws of half the training rows, bars 95 % intervals over them. "
    + (
        "Tables like this one have a name, *the seesaw*: one task up, another down. "
        if up and down
        else "Papers have a name for such tables, *the seesaw*: what one task gains another loses. Here "
        + ("nobody loses. " if up else "nobody gains: it is the losing half of one. ")
    )
    + "The usual conclusion is that these tasks do not get along, and the usual cure another architecture. This page asks first "
    "**what the number is made of**."
)

# %% [markdown]
# ## 1 · A log of videos, and what its labels mean
#
# KuaiRand-Pure holds impressions of the app Kuaishou (Gao et al., CIKM 2022): who was shown which video, on which day,
# and what happened. Before a model, the labels. What is a {{click}} in a feed where the next video starts by itself?

# %%
g_click = guess(
    "In the feed, a 'click' is …",
    choices=["a tap on the screen", "7 s of play", "18 s of play", "the whole video"],
)
g_click

# %%
LIVE = public.kuairand_available() is not None
frame = public.load_kuairand(progress=False) if LIVE else None
if LIVE:
    seconds = frame["play_time_ms"] / 1000
    feed, grid = frame["tab"] == 1, frame["tab"] == 0  # one by one; a page of covers

# %% tags=["plumbing"]
# @title Figure: eight days of labels, what a click is, where play time ends
title = "Where 7 seconds pass, a click begins; where the video ends, play time ends"
if LIVE:
    fig = plots.figure(2.9)
    left, ax, right = fig.subplots(1, 3)
    days = frame.groupby("date")[NAMES].mean()
    for task in NAMES:
        look = plots.task_style(task)
        left.plot(range(len(days)), days[task], label=task, **look)
    left.set_xticks(range(0, len(days), 3), days.index.strftime("%d %b")[::3], fontsize=8)
    left.set(title="Share of yes, by day", ylim=(0, 0.55))
    plots.name_lines(left)
    left.set_xlim(-0.4, len(days) + 2.6)
    bins = np.arange(0, 26, 0.5)
    shown = [seconds[feed & (frame["click"] == said)] for said in (0, 1)]
    ax.hist(shown, bins, stacked=True, color=["#BBBBBB", "#0072B2"], label=["no click", "counted as a click"])
    ax.axvline(7, color="#222222", lw=1)
    ax.set(title="In the feed", xlabel="seconds played", ylabel="rows")
    played = [frame.loc[frame["finished"] == done, "log_play"] for done in (False, True)]
    names = ["left before the end", "ran to the end"]
    right.hist(played, np.linspace(0, 6, 40), stacked=True, color=["#D4DAE1", "#882255"], label=names)
    right.set(title="All rows", xlabel="log(1 + seconds played)", ylabel="rows")
    for line in left.lines:
        line.set_label("_named")
    plots.legend_outside(fig)
    fig.suptitle(title, x=0.01, ha="left", fontsize=11)
    display(fig)
else:
    display(plots.stored_picture(folder / "07_play_time.png", f"{title}."))

# %% tags=["plumbing"]
# @title In words
facts = ""
if LIVE:
    long = seconds[feed & (frame["click"] == 1)] >= 7
    short = seconds[feed & (frame["click"] == 0)] >= 7.01
    facts = (
        f"Here: {len(frame):,} rows of {frame['user_id'].nunique():,} users and {frame['video_id'].nunique():,} videos. In the feed "
        f"{long.mean():.0%} of clicks played for 7 s or longer, and {short.mean():.1%} of the others; on the page of covers, where one does tap, "
        f"{frame.loc[grid, 'click'].mean():.0%} of rows are clicks. {frame['finished'].mean():.0%} of all rows ran to the end. "
    )
display(g_click.answer("7 s of play"))
Markdown(
    f"{facts}The publisher says so: in the single-column feed a click is a *valid play*, more than 7 s, or the whole of a shorter video; "
    "a long view is 18 s, or the whole. So two of our three tasks are **two thresholds of one number**, the seconds played, and the "
    "third is a tap on a heart. And a video that ran to its end says *at least* so many seconds: the number is censored. Dropping those rows would "
    "drop the best-watched ones; a model of seconds predicts *time played of this video*, not interest."
)

# %% [markdown]
# ### A split that tells the truth
#
# Tomorrow's clicks must not help today: train on the earlier days, validate on the second last, test on the last. A
# colleague adds a feature, each author's click rate, in three versions: over *all* days, over the training days, and over
# the training days *without the row itself*. How much test AUC does the first one only pretend to have?

# %%
g_leak = guess("Test AUC, rate over all days minus the honest rate?", 0, 0.2, 0.005)
g_leak

# %%
if LIVE:
    parts = public.split_by_date(frame)
    train, test = parts["train"], parts["test"]
    by = train.groupby("author_id")["click"].agg(["sum", "count", "mean"])
    rest = train["author_id"].map(by["sum"]) - train["click"]
    others = rest / (train["author_id"].map(by["count"]) - 1).where(lambda n: n > 0)
    past = test["author_id"].map(by["mean"])
    every = frame.groupby("author_id")["click"].mean()
    rates = {
        "all days": (train["author_id"].map(every), test["author_id"].map(every)),
        "training days": (train["author_id"].map(by["mean"]), past),
        "without the row": (others, past),
    }

# %% tags=["plumbing"]
# @title Figure: which of them lie?
title = "One rate lies about the test day, two about the training days"
if LIVE:
    mean = train["click"].mean()
    found = {
        name: [auc(p["click"], v.fillna(mean)) for p, v in zip((train, test), pair, strict=True)]
        for name, pair in rates.items()
    }
    fig = plots.figure(2.6)
    ax = fig.subplots()
    for shift, (part, color) in enumerate({"train": "#BBBBBB", "test": "#44576B"}.items()):
        at = np.arange(3) + 0.4 * (shift - 0.5)
        ax.barh(at, [pair[shift] for pair in found.values()], 0.36, color=color, label=part)
    plots.value_labels(ax)
    ax.set_yticks(range(3), list(found))
    ax.set(xlim=(0.5, 0.8), xlabel="AUC of click, by the rate alone", title=title)
    ax.invert_yaxis()
    plots.legend_outside(fig)
    lie = found["all days"][1] - found["without the row"][1]
    display(fig, g_leak.answer(lie, digits=3))
else:
    display(plots.stored_picture(folder / "07_leak.png", f"{title}."))

# %% [markdown]
# The first flatters the test score: you would ship it. Both the first and the second hold the row's own click, so a model
# of training days trusts them too much; the second shows in no check of the split. You write the third in exercise one.

# %% [markdown]
# ## 2 · The seesaw, taken apart
#
# Between "three careful models" and "one quick model" more than sharing has changed. Walk the way in five steps:
#
# 1. **sharing itself**: a shared bottom whose tasks each keep their own best setting and epoch;
# 2. **one stop for all**: the epoch that suits the sum;
# 3. **one setting for all**: learning rate, decay and loss weights that suit the sum;
# 4. **decay not tuned**: AdamW's default of .01;
# 5. **rate not tuned**: a learning rate of .001, losses added as they come.
#
# Which step costs {{like}} the most?

# %%
g_step = guess("Which step costs like the most?", choices=list(STEPS))
g_step

# %% tags=["plumbing"]
# @title The waterfall
steps = {}
for task in NAMES:
    before = levels[task]["single-task"]
    for step in STEPS:
        steps[step, task] = levels[task][step] - before
        before = levels[task][step]
log = {key: mean_interval(values) for key, values in steps.items()}
fresh = {key: wider(values) for key, values in steps.items()}
p = holm(steps)
fig = plots.figure(3.6)
axes = fig.subplots(1, 3, sharex=True, sharey=True)
for ax, task in zip(axes, NAMES, strict=True):
    color, at = plots.task_style(task)["color"], 0.0
    place = {"xycoords": ax.get_yaxis_transform(), "va": "center", "fontsize": 9, "annotation_clip": False}
    for row, step in enumerate(STEPS):
        gap, wide, stands = log[step, task], fresh[step, task], p[step, task] <= 0.05
        ax.barh(row, gap.mean, left=at, color=color, height=0.6, alpha=1 if stands else 0.4)
        ax.plot([at + wide.low, at + wide.high], [row, row], color="#777777", lw=0.8)
        ax.plot([at + gap.low, at + gap.high], [row, row], color="#222222", lw=2)
        at += gap.mean
        ax.plot([at, at], [row + 0.3, row + 0.7], color="#999999", lw=0.8)
        ax.annotate(f"{number(gap.mean, 3)}{' ★' if stands else ''}", (1.01, row), color=color, **place)
    total = naive[task].mean()
    ax.barh(len(STEPS), total, color="#222222", height=0.6)
    ax.annotate(number(total, 3), (1.01, len(STEPS)), color="#222222", **place)
    ax.axvline(0, color="#222222", lw=1)
    ax.set(title=task, ylim=(len(STEPS) + 0.5, -0.5), xlabel="AUC minus single-task")
    ax.grid(axis="y", visible=False)
    ax.locator_params(axis="x", nbins=3)
axes[0].set_yticks(range(len(STEPS) + 1), [*STEPS, "all together"])
worst = {task: min(STEPS, key=lambda step: log[step, task].mean) for task in NAMES}
part_ = log["sharing itself", "like"].mean / naive["like"].mean()
fig.suptitle(
    f"Like: {number(naive['like'].mean(), 3)}, {part_:.0%} of it by sharing itself; most by: {worst['like']}",
    x=0.01,
    ha="left",
    fontsize=11,
)
display(fig, g_step.answer(worst["like"]))
primary, reach = log["sharing itself", "like"], fresh["sharing itself", "like"]
Markdown(
    f"**The one contrast that was written down before the study ran**: AUC of like, shared bottom minus single-task, both at their best: "
    f"**{span(primary)}**, {says(primary)} in this log; for a fresh log of this size {span(reach)}, {says(reach)} (a true difference of about "
    f"{2.9 * steps['sharing itself', 'like'].std() / np.sqrt(8):.3f} would have been seen in four studies of five of this log, of {2.9 * steps['sharing itself', 'like'].std() * np.sqrt(1 + 1 / 8):.3f} in fresh ones). The table on top said "
    f"{number(naive['like'].mean())}. Dark bars survive Holm's correction over the fifteen steps (★) in this log, pale ones do not. Thick whiskers: other halves of this "
    "log; thin ones: a fresh log (below). The order of the steps is ours; another order would share the costs out somewhat differently."
)

# %% [markdown]
# ### At their best: sharing, PLE, and the floors
#
# A difference says nothing of how good both sides are. So look at levels, too, and put floors
# beside them: a video's own past rate, and **logistic regression on the same features**.

# %% tags=["plumbing"]
# @title Levels, floors, and who lies below them
rows = {
    "popularity": ("popularity", "own", "each"),
    "logistic regression": ("logistic regression", "own", "each"),
    "single-task": ("single-task", "own", "each"),
    "single-task, untuned": ("single-task", UNTUNED, "each"),
    "shared, own settings": ("shared bottom", "own", "each"),
    "shared, one setting": ("shared bottom", "one", "each"),
    "shared, one stop": ("shared bottom", "one", "together"),
    "PLE, one setting": ("PLE", "one", "each"),
    "PLE, one stop": ("PLE", "one", "together"),
}
looks = {"PLE": "PLE", "sha": "shared bottom", "sin": "single task"}
fig, level = plots.figure(3.4), {}
for ax, task in zip(fig.subplots(1, 3, sharey=True), NAMES, strict=True):
    for y, (label, (name, *how)) in enumerate(rows.items()):
        level[label, task] = of(runs, name, task, *how)
        i = mean_interval(level[label, task])
        look = (
            plots.model_style(looks[label[:3]]) if label[:3] in looks else {"color": "#B0A000", "marker": "X"}
        )
        fill = "white" if "one stop" in label or "untuned" in label else look["color"]
        ax.plot([i.low, i.high], [y, y], color=look["color"], lw=2.4)
        ax.plot(i.mean, y, look["marker"], color=look["color"], mfc=fill, ms=7)
        place = {
            "xycoords": ax.get_yaxis_transform(),
            "va": "center",
            "fontsize": 8,
            "annotation_clip": False,
        }
        ax.annotate(f"{i.mean:.3f}", (1.01, y), color=look["color"], path_effects=plots.HALO, **place)
    ax.axvline(level["logistic regression", task].mean(), color="#B0A000", lw=1, ls="--")
    ax.set(title=task, xlabel="test AUC", ylim=(len(rows) - 0.5, -0.5))
    ax.grid(axis="y", visible=False)
    ax.locator_params(axis="x", nbins=4)
fig.axes[0].set_yticks(range(len(rows)), list(rows))
nets = [label for label in rows if label not in ("popularity", "logistic regression")]
floor = {
    (label, task): level[label, task] - level["logistic regression", task] for label in nets for task in NAMES
}
below = {task: [m for m in nets if mean_interval(floor[m, task]).high < 0] for task in NAMES}
surely = {task: [m for m in nets if wider(floor[m, task]).high < 0] for task in NAMES}
above = {task: [m for m in nets if mean_interval(floor[m, task]).low > 0] for task in NAMES}
fig.suptitle(
    "Networks above / below logistic regression, in this log: "
    + "; ".join(f"{task} {len(above[task])} / {len(below[task])}" for task in NAMES),
    x=0.01,
    ha="left",
    fontsize=11,
)
display(fig)
ple = {task: mean_interval(level["PLE, one stop", task] - level["shared, one stop", task]) for task in NAMES}
tuning = {
    "alone": mean_interval(level["single-task", "like"] - level["single-task, untuned", "like"]),
    "shared": mean_interval(level["shared, one stop", "like"] - levels["like"]["rate not tuned"]),
}
Markdown(
    f"Of {len(nets)} networks "
    + ", ".join(f"{len(below[task])} ({task.replace('_', ' ')})" for task in NAMES)
    + " lie below logistic regression in this log, and "
    + ", ".join(str(len(surely[task])) for task in NAMES)
    + " by the interval for a fresh log (next section): "
    + (
        "**here the quarrel is one below the floor.** Vectors of ids with a handful of rows each are learned by heart; a linear "
        "model with one number an id learns less by heart. A floor in the table would have asked for another model before another way of sharing. "
        if sum(map(len, below.values())) > len(nets)
        else "sharing is judged among models that are worth having. "
    )
    + f"\n\nIn this log tuning is worth {span(tuning['alone'], 3)} to the single-task model of like and {span(tuning['shared'], 3)} to the shared one at one stop: "
    + (
        "the model of three tasks has more to get wrong, so **whoever does not tune blames sharing**. "
        if tuning["shared"].low > tuning["alone"].high
        else "both sides need it. "
    )
    + f"PLE minus shared bottom, as one model with one stop: {'; '.join(f'{task} {span(ple[task], 3)}, {says(ple[task])}' for task in NAMES)}. "
    + (f"A best setting at an end of its grid: {edges(runs)}." if edges(runs) else "")
)

# %% [markdown]
# ### How far does an interval reach?
#
# Each draw takes half of the training rows. Two halves of one log share rows, so eight draws are not eight logs: more draws
# would shrink the interval to nothing, though the log stays the only one. How far is *this* log from another? As far as
# one half of it from another half: a half of $n$ rows scatters around the whole log by $\sigma^2/(n/2) - \sigma^2/n = \sigma^2/n$, and so
# does the log around the app. So $\bar d \pm t\, s \sqrt{1/J + 1}$ for $J$ draws. By hand, for the primary contrast:

# %%
d = (levels["like"]["sharing itself"] - levels["like"]["single-task"]).to_numpy()
t = 2.365  # the 97.5 % point of Student's t with 7 degrees of freedom
for_this_log = t * d.std(ddof=1) * np.sqrt(1 / len(d))
for_a_fresh_log = t * d.std(ddof=1) * np.sqrt(1 / len(d) + 1)

# %% tags=["plumbing"]
# @title Equal?
same = np.isclose(d.mean() - for_a_fresh_log, reach.low, atol=1e-4)
Markdown(
    f"{number(d.mean())} ± {for_this_log:.4f} for other halves of this log, ± {for_a_fresh_log:.4f} for a fresh log "
    f"({'equal to' if same else 'not equal to'} the thin whisker above). Neither speaks of another *day*: the test day has "
    f"{'366' if not LIVE else int(parts['test']['like'].sum())} likes, and one day only."
)

# %% [markdown]
# With the archive at hand, train one of these runs again: the first draw, the single-task model of {{like}} at its own best.

# %%
if LIVE:
    lr, decay, _ = choice(runs, "single-task")["like"]
    half = parts["train"].sample(frac=0.5, random_state=0)
    columns = public.KUAIRAND_WIDE_NUMERIC, public.KUAIRAND_WIDE_CATEGORICAL
    data = prepare(parts | {"train": half}, TASKS, *columns, min_count=2)
    torch.manual_seed(0)
    alone = SingleTask(data.schema, TASKS[2])
    settings = {"lr": lr, "weight_decay": decay, "patience": 2, "progress": False}
    likes, judge = data.train.select(["like"]), data.valid.select(["like"])
    fit(alone, likes, judge, epochs=1 if FAST else 12, **settings)
    again = evaluate(alone, data.test)["like"]["auc"]

# %% tags=["plumbing"]
# @title The same?
told = of(runs, "single-task", "like").iloc[0]
Markdown(
    f"Test AUC of like, trained now{' for one epoch only' if FAST else ''}: **{again:.4f}**; stored, from another machine: **{told:.4f}**."
    if LIVE
    else "*KuaiRand-Pure is not on this machine, so this run is skipped and pictures of raw rows are stored ones. "
    "`public.load_kuairand()` fetches it once; `MTL_KUAIRAND` names a copy. All tables of trained runs are here.*"
)

# %% [markdown]
# ### The unbiased test
#
# The log holds what the app *chose* to show. For two weeks it also showed videos drawn at random: those rows are the test
# that no ranker has chosen. `load_kuairand(random=True)` reads them, where the archive has them.

# %%
chance = public.load_kuairand(random=True) if LIVE else None
if chance is not None:
    chance = chance[chance["date"] >= parts["test"]["date"].min()]
    unbiased = MultiTaskDataset.from_frame(chance, data.encoder, data.tasks)

# %% tags=["plumbing"]
# @title Shown by the app, shown at random
if chance is None:
    display(Markdown("*No random-exposure rows are here, so this test is skipped.*"))
else:
    both = {"shown by the app": data.test, "shown at random": unbiased}
    rows = [
        (name, len(part), int(part.labels["like"].sum()), evaluate(alone, part)["like"]["auc"])
        for name, part in both.items()
    ]
    display(plots.table(pd.DataFrame(rows, columns=["test rows", "rows", "likes", "AUC of like"])))

# %% [markdown]
# **What surprised you?** Most of such a table can be made without any conflict between tasks. Ask of each such table: were both
# sides tuned, did each task have its own stop, and where is the floor?

# %% [markdown]
# ## 3 · A gift? Few likes, many clicks
#
# Every new button starts here: all rows know whether there was a {{click}}, few know of the {{like}}. Hide most like labels.
# Over 1,000, 3,000 and 10,000 labelled rows together, what does a shared bottom of both tasks gain?

# %%
g_few = guess("AUC of like, shared minus single, three budgets?", -0.05, 0.1, 0.005)
g_few

# %% tags=["plumbing"]
# @title The slider
few = stored("budget")
BUDGETS = {"1000": 1_000, "3000": 3_000, "10000": 10_000, "all": 46_000}
table = pd.DataFrame(
    {"label_budget": n, "model": model, "seed": draw_, "auc": value}
    for budget, n in BUDGETS.items()
    for model, name in (("single-task", "single-task"), ("shared-bottom", "shared bottom"))
    for draw_, value in of(few, name, "like", budget=budget).items()
)
by_click = of(runs, "single-task", "click", metric="like_auc")
linear = {budget: of(few, "logistic regression", "like", budget=budget) for budget in BUDGETS}
references = {
    "popularity, all labels": of(runs, "popularity", "like").mean(),
    "ranked by a click model": by_click.mean(),
}
beside = {"references": references, "names_at": 0.64}
scarcity_explorer(table, task="like", split="test day", each="draw", **beside)

# %% tags=["plumbing"]
# @title The answer, in one contrast
gain = {
    b: of(few, "shared bottom", "like", budget=b) - of(few, "single-task", "like", budget=b) for b in BUDGETS
}
pooled = sum(gain[b] for b in ("1000", "3000", "10000")) / 3
over_lr = {b: of(few, "shared bottom", "like", budget=b) - linear[b] for b in BUDGETS}
pooled_lr = sum(over_lr[b] for b in ("1000", "3000", "10000")) / 3
over_click = of(few, "shared bottom", "like", budget="1000") - by_click
answers = {
    "gain over single-task": pooled,
    "… with all labels": gain["all"],
    "gain over logistic regression": pooled_lr,
    "1,000 labels: over a click model": over_click,
}
fig = plots.figure(2.1)
ax = fig.subplots()
shown = plots.interval_rows(ax, {name: values.to_numpy() for name, values in answers.items()})
for y, values in enumerate(answers.values()):
    ax.plot([wider(values).low, wider(values).high], [y, y], color="#777777", lw=0.8, zorder=0)
gift = shown["gain over single-task"]
verdict = f"{says(gift, 'sharing helps', 'sharing hurts')}{' in this log' * gift.excludes_zero}"
ax.set(
    xlabel="AUC of like, shared bottom minus …",
    title=f"Few labels, mean of three budgets: {verdict}, {number(gift.mean, 3)}",
)
g_few.mark(ax)
display(fig, g_few.answer(gift.mean, digits=3))
unseen = 2.9 * pooled.std() / np.sqrt(len(pooled))
reads = {
    name: f"{says(i)} in this log, {span(i, 3)}; for a fresh one {says(wider(answers[name]))}"
    for name, i in shown.items()
}
Markdown(
    f"The contrast stated beforehand: **{span(gift)}** in this log, {span(wider(pooled))} for a fresh one ({says(wider(pooled))}). "
    f"One pooled contrast, not an interval a budget: it could have seen a true gain of about {unseen:.3f} in four studies of five. With all labels: {span(shown['… with all labels'])}, "
    f"{says(shown['… with all labels'])}. The rivals decide what it is worth. Against logistic regression on the same few labels the shared bottom is {reads['gain over logistic regression']}. "
    f"With 1,000 labels against a model that never saw a like and ranks by p(click): {reads['1,000 labels: over a click model']}."
)

# %% [markdown]
# Both sides were tuned anew at each budget, with six trials, and stopped on a validation day that knows all likes: with few
# labels of your own your stop would be noisier. **What surprised you?** On the shop of notebook 02 a model of clicks alone
# was the rival to beat. Here a {{click}} is seven seconds of play and a {{like}} is a tap on a heart: see how little the dashed
# line of the click model knows of likes.

# %% [markdown]
# ## 4 · Behind the average
#
# ### Cold rows, and the order within a user
#
# An overall AUC mixes users the model knows with users in the bucket "unknown" (fewer than two training rows). And a list
# is shown to *one* user: grouped AUC asks for the order of each user's own rows. Does sharing look different there?

# %% tags=["plumbing"]
# @title Differences to single-task, by kind of row
KINDS = {"auc": "all rows", "auc_warm_user": "known users", "auc_cold_user": "unknown users"}
KINDS |= {"auc_warm_video": "known videos", "auc_cold_video": "unknown videos"}
KINDS["grouped_auc"] = "within a user"
gaps = {}
for task, (metric, label) in product(NAMES, KINDS.items()):
    shared, single = (of(runs, name, task, metric=metric) for name in ("shared bottom", "single-task"))
    gaps[task, label] = (shared - single).to_numpy()
p_kind = holm(gaps)
fig = plots.figure(2.7)
for ax, task in zip(fig.subplots(1, 3, sharey=True), NAMES, strict=True):
    shown = {label: gaps[task, label] for label in KINDS.values()}
    marked = {label for label in shown if p_kind[task, label] <= 0.05}
    plots.interval_rows(ax, shown, styles=dict.fromkeys(shown, plots.task_style(task)), holm=marked, digits=3)
    ax.set(title=task, xlabel="AUC, shared − single")
    ax.locator_params(axis="x", nbins=3)
fig.suptitle("Both at their own best; ★ survives Holm over all eighteen", x=0.01, ha="left", fontsize=11)
display(fig)
overall = {task: mean_interval(of(runs, "single-task", task)) for task in NAMES}
inside = {task: mean_interval(of(runs, "single-task", task, metric="grouped_auc")) for task in NAMES}
Markdown(
    "Much of an overall AUC is knowing *who* clicks and *where*: single-task falls from "
    + ", ".join(f"{overall[task].mean:.3f} to {inside[task].mean:.3f} ({task})" for task in NAMES)
    + " within a user. Unknown videos hold few likes, so their intervals are wide, and cold rows are other rows, not the same ones made cold."
)

# %% [markdown]
# ### Day after day
#
# Trained on two days, stopped on a third, then left alone for five, a holiday among them. Order or probability: which
# decays first? And what does the cheapest cure do, taking yesterday's error off the odds?

# %% tags=["plumbing"]
# @title Five days alone
drift = stored("drift")
chosen_ = choice(drift, "shared bottom")["one"]
left_alone = drift[
    (drift["contestant"] == "shared bottom") & (drift["stop"] == "together") & (drift["seed"] < 1000)
]
left_alone = left_alone[(left_alone[SETTING] == list(chosen_)).all(axis=1)]
fig = plots.figure(2.9)
off = {}
for ax, task in zip(fig.subplots(1, 3), NAMES, strict=True):
    look, mine = plots.task_style(task), left_alone[left_alone["task"] == task]
    wide = mine.pivot(index="day", columns="seed")
    seen, told = wide["observed"].mean(axis=1), wide["predicted"]
    odds = (told.T / (1 - told.T)).T
    factor = (seen / (1 - seen)).to_numpy()[:, None] / odds  # what would have set each day right
    mended = odds * factor.shift(1)
    mended = mended / (1 + mended)
    days = [day[5:] for day in wide.index]
    ax.plot(days, seen, "k--", marker="x", label="observed")
    ax.plot(days, told.mean(axis=1), color=look["color"], marker=look["marker"], label="predicted")
    ax.plot(days, mended.mean(axis=1), color=look["color"], ls=":", label="yesterday's error taken off")
    ax.fill_between(days, told.min(axis=1), told.max(axis=1), color=look["color"], alpha=0.2)
    off[task] = [(abs(x.mean(axis=1) / seen - 1)).iloc[1:].mean() for x in (told, mended)]
    area = wide["auc"].mean(axis=1)
    ax.set(title=f"{task}: off by {off[task][0]:.0%}", ylabel="share of yes", xlabel="month-day")
    ax.tick_params(axis="x", labelsize=8)
    off[task] += [area.iloc[0], area.iloc[-1]]
plots.legend_outside(fig, fig.axes[0])
display(fig)
Markdown(
    "Band: lowest to highest of eight draws. AUC on the first and the last day: "
    + ", ".join(f"{task} {values[2]:.3f}, {values[3]:.3f}" for task, values in off.items())
    + ". Mean error of the predicted share, as it is and mended: "
    + ", ".join(f"{task} {values[0]:.0%}, {values[1]:.0%}" for task, values in off.items())
    + ". If you only rank, a shift of all odds does not matter; if you multiply by money, it does, and one number a day "
    + (
        "mends most of it here."
        if sum(v[1] for v in off.values()) < 0.6 * sum(v[0] for v in off.values())
        else "does not mend all of it: one has to train again."
    )
)

# %% [markdown]
# ## 5 · Census: a contest in the third decimal
#
# The papers on MMoE and PLE compare on Census-Income: income above 50,000 dollars, and never married. Published figures
# differ by set-up, so read each source by itself: differences *within* a source, never between two.

# %% tags=["plumbing"]
# @title Published, by source; and here
SOURCES = {
    "IJANMC 2024-0005": {
        "single-task": (0.9198, 0.9748),
        "shared bottom": (0.9148, None),
        "MMoE": (0.9152, None),
        "PLE": (0.9161, None),
    },
    "torch-rechub, README": {
        "shared bottom": (0.9560, 0.9948),
        "MMoE": (0.9579, 0.9950),
        "PLE": (0.9593, 0.9950),
    },
}
people = stored("census")
ours = {"logistic regression": ("logistic regression", "own"), "single-task": ("single-task", "own")}
ours |= {name: (name, "one") for name in ("shared bottom", "MMoE", "PLE")}
fig = plots.figure(2.4)
axes = fig.subplots(1, 3, sharey=True)
for ax, (source, values) in zip(axes, SOURCES.items(), strict=False):
    for y, name in enumerate(ours):
        if name in values:
            look = plots.model_style(name)
            ax.plot(values[name][0], y, look["marker"], color=look["color"], ms=8)
            ax.annotate(
                f"{values[name][0]:.4f}",
                (values[name][0], y),
                xytext=(7, -3),
                textcoords="offset points",
                fontsize=8,
            )
    middle = np.mean([value[0] for value in values.values()])
    ax.set(title=source, xlim=(middle - 0.006, middle + 0.006), xlabel="income, AUC")
for y, (name, how) in enumerate(ours.items()):
    i = mean_interval(of(people, how[0], "income", how[1]))
    look = plots.model_style(name) if y else {"color": "#B0A000", "marker": "X"}
    axes[2].plot([i.low, i.high], [y, y], color=look["color"], lw=2)
    axes[2].plot(i.mean, y, look["marker"], color=look["color"], ms=8)
    axes[2].annotate(f"{i.mean:.4f}", (i.mean, y), xytext=(7, 5), textcoords="offset points", fontsize=8)
here = [of(people, n, "income", how).mean() for n, how in ours.values()]
axes[2].set(title="this course, eight splits", xlabel="income, AUC", ylim=(len(ours) - 0.5, -0.5))
axes[2].set_xlim((max(here) + min(here)) / 2 - 0.006, (max(here) + min(here)) / 2 + 0.006)
axes[0].set_yticks(range(len(ours)), list(ours))
for ax in axes:
    ax.locator_params(axis="x", nbins=3)
first = SOURCES["IJANMC 2024-0005"]
best_here = max(ours, key=lambda name: of(people, ours[name][0], "income", ours[name][1]).mean())
fig.suptitle(
    f"Axes of equal length, {0.012:.3f} wide. Highest here: {best_here}", x=0.01, ha="left", fontsize=11
)
display(fig)
Markdown(
    f"Between the two sources lie {SOURCES['torch-rechub, README']['shared bottom'][0] - first['shared bottom'][0]:.3f} for the *same* model: set-up, not method. The source that has a single-task "
    f"model puts it {number(first['single-task'][0] - first['PLE'][0])} above its best shared one; torch-rechub has none."
)

# %% [markdown]
# ### Splits that overlap
#
# Eight times the file was split anew, 70/15/15. Each pair of splits shares most rows, so the plain interval is too short:
# Nadeau and Bengio (2003) add the ratio of test to training rows, $\sqrt{1/J + n_{test}/n_{train}}$ instead of $\sqrt{1/J}$.

# %% tags=["plumbing"]
# @title Minus single-task, on the same split
RATIO = 15 / 70
fig = plots.figure(2.5)
census_gap = {
    (name, task): (of(people, name, task, "one") - of(people, "single-task", task)).to_numpy()
    for task in ("income", "never_married")
    for name in ("shared bottom", "MMoE", "PLE")
}
corrected = {key: wider(values, RATIO) for key, values in census_gap.items()}
plain = {key: mean_interval(values) for key, values in census_gap.items()}
p_six = holm({key: stretched(values, RATIO) for key, values in census_gap.items()})
kept = [key for key in p_six if p_six[key] <= 0.05]
lost = [key for key in plain if plain[key].excludes_zero and key not in kept]
for ax, task in zip(fig.subplots(1, 2, sharey=True), ("income", "never_married"), strict=True):
    shown = {name: corrected[name, task] for name in ("shared bottom", "MMoE", "PLE")}
    marked = {name for name in shown if (name, task) in kept}
    plots.interval_rows(ax, shown, styles={name: plots.model_style(name) for name in shown}, holm=marked)
    for y, name in enumerate(shown):
        ax.plot([plain[name, task].low, plain[name, task].high], [y + 0.2] * 2, color="#999999", lw=1.5)
    ax.axvspan(-0.001, 0.001, color="#DDDDDD", alpha=0.6, zorder=0)
    ax.set(title=task.replace("_", " "), xlabel="AUC minus single-task (grey band: ±.001)")
fig.suptitle(
    f"Of six differences {len(kept)} stand{'s' * (len(kept) == 1)} (★: corrected for overlap, then Holm)",
    x=0.01,
    ha="left",
    fontsize=11,
)
display(fig)
said_lost, said_kept = (
    ", ".join(f"{name} on {task.replace('_', ' ')}" for name, task in keys) or "none" for keys in (lost, kept)
)
mmoe = corrected["MMoE", "income"]
Markdown(
    f"Stated beforehand: income, MMoE minus single-task: **{span(mmoe)}**, {says(mmoe)}. Thin grey: the plain interval, {np.sqrt(1 + 8 * RATIO):.2f} times too short. "
    f"It would have claimed what the corrected one, with Holm over the six, does not: {said_lost}. What stands: {said_kept}"
    + (", less than a thousandth." if kept and all(abs(corrected[k].mean) < 0.001 for k in kept) else ".")
)

# %% [markdown]
# `never_married` is nearly written in the features: a column on the household says "Child under 18 never married". A score
# near one is no feat there. With the file at hand, that one column alone:

# %%
told = "*The file is not here (`MTL_CENSUS` names a copy).*"
if public.census_available():
    persons = public.load_census(progress=False)
    home = persons["detailed_household_summary_in_household"].astype(object)
    share = persons.groupby(home)["never_married"].mean()
    found = auc(persons["never_married"], home.map(share))
    told = f"AUC of never married by this column alone: **{found:.3f}**."
Markdown(told)

# %% [markdown]
# ### How many splits for a thousandth?
#
# A tie is only as good as its power. Simulate studies: each split's difference is the true one, plus luck that all splits
# of a file share, plus its own. How often does the plain interval cry "found!" when the true difference is **zero**?

# %%
g_alarm = guess("False alarms of the plain interval, eight splits?", 0, 50, 1, "%")
g_alarm

# %%
rng, n = np.random.default_rng(0), 30  # 4,000 studies of up to 30 splits
alike = RATIO / (1 + RATIO)  # correlation of two splits
common = rng.normal(size=(4000, 1)) * np.sqrt(alike)
luck = common + rng.normal(size=(4000, n)) * np.sqrt(1 - alike)

# %% tags=["plumbing"]
# @title Widget: power by simulation
from scipy.stats import t as student

counts = np.arange(2, n + 1)
means = np.cumsum(luck, 1)[:, 1:] / counts
spreads = np.sqrt((np.cumsum(luck**2, 1)[:, 1:] - counts * means**2) / (counts - 1))
edge = student.ppf(0.975, counts - 1) * spreads
halves = {"plain": edge * np.sqrt(1 / counts), "corrected": edge * np.sqrt(1 / counts + RATIO)}
s = census_gap["MMoE", "income"].std(ddof=1)
scale_ = s / np.sqrt(1 - alike)  # the deviation between splits of one file is their own luck's alone
fig = plots.figure(3)
ax = fig.subplots()
curves = {
    name: ax.plot([], [], color=color, ls=style, label=f"{name} interval", animated=True)[0]
    for name, color, style in (("plain", "#999999", "--"), ("corrected", "#222222", "-"))
}
dot = ax.plot([], [], "o", color="#882255", ms=9, animated=True)[0]
ax.axhline(0.8, color="#777777", ls=":")
ax.axhline(0.05, color="#777777", ls=":")
ax.set(xlim=(0, n + 1), ylim=(0, 1.02), xlabel="splits", ylabel="studies that claim it")
ax.set_title("MMoE against single-task, income")
plots.legend_outside(fig)


def found_in(name, d):
    """Share of simulated studies whose interval excludes zero, by number of splits."""
    return (np.abs(means + d / scale_) > halves[name]).mean(0)


def draw_power(state):
    d, at = state["difference"] / 1000, state["splits"]
    shares = {name: found_in(name, d) for name in curves}
    for name, curve in curves.items():
        curve.set_data(counts, shares[name])
    dot.set_data([at], [shares["corrected"][at - 2]])
    both = {name: values[at - 2] for name, values in shares.items()}
    what = "A true difference of zero" if not d else f"A true difference of {d:.4f}"
    return f"{what}: {at} splits claim it in {both['corrected']:.0%} of studies, with the plain interval in {both['plain']:.0%}."


alarms = {name: found_in(name, 0)[8 - 2] for name in curves}
display(g_alarm.answer(100 * alarms["plain"], digits=0))
knobs = [slider("difference", "true difference, thousandths of AUC", 0.0, 5.0, 0.0, step=0.2)]
knobs.append(slider("splits", "splits", 2, n, 8, step=1))
Explorer(fig, knobs, draw_power, title="Power of a comparison by splits")

# %% tags=["plumbing"]
# @title What eight splits can see
grid_ = np.arange(0, 0.02, 0.0001)
needs = {
    key: next((d for d in grid_ if (np.abs(means[:, 6] + d / (v.std(ddof=1) / np.sqrt(1 - alike))) > halves["corrected"][:, 6]).mean() >= 0.8), np.nan)
    for key, v in census_gap.items()
}  # fmt: skip
Markdown(
    f"At a true difference of zero the plain interval claims one in {alarms['plain']:.0%} of studies, the corrected in {alarms['corrected']:.0%} (5 % is meant). "
    "Eight splits see in four studies of five a true difference of: "
    + ", ".join(f"{name} {value:.4f} ({task.replace('_', ' ')})" for (name, task), value in needs.items())
    + ". More splits help little: the luck that all of them share stays. A second file would."
)

# %% [markdown]
# ## 6 · Your own log
#
# Any table will do: name the labels, split by time, let `guess_features` propose what the columns are, read its reasons,
# overrule it. The shop's raw rows stand for yours.

# %%
shop = folder.parents[1] / "datasets" / "shop"
raw = pd.read_csv(shop / "impressions.csv.gz").drop_duplicates().tail(60_000)
items = pd.read_csv(shop / "items.csv.gz")
own = (Task("click"), Task("purchase"))
own_parts = split_by_time(raw, time="timestamp")
numeric, categorical, why = guess_features(raw, own, time="timestamp", user="user_id")
leaks = check_leaks(own_parts, [*numeric, *categorical], own, time="timestamp")

# %% tags=["plumbing"]
# @title What it proposes, and what check_leaks finds
display(plots.table(why.reset_index()))
plots.table(leaks)

# %% [markdown]
# Dwell time is known only *after* the click: the guess cannot know, `check_leaks` sees it. And `item_id` is a **code**, a
# whole number that means nothing: a category. Two kinds of column are neither number nor category. **Vectors** (a text's
# embedding) stand as lists of one length in their cells, and become that many numbers. **Multi-hot** values (the words of
# a title, tags, genres) are several in a cell, and need a 0/1 column each. From raw rows to a model:

# %%
vectors = np.load(shop / "text_vectors.npz")["wordllama"][:, :16].astype(float)
items["title_vector"] = list(vectors)  # a list in each cell
words = items["title"].str.lower().str.findall(r"[a-z-]{4,}")  # several in each cell
words = words.str.join("|").str.get_dummies()
words = words[words.sum().nlargest(12).index].add_prefix("says_")  # multi-hot
rows = raw.merge(items.join(words), on="item_id")
numeric = ["position", "price", "title_vector", *words]
categorical = ["surface", "category", "brand"]
splits = prepare(split_by_time(rows), own, numeric, categorical, min_count=5)
model = PLE(splits.schema, splits.tasks, embedding_dim=4)
how = {"lr": 3e-3, "weight_decay": 1.0, "progress": False}
fit(model, splits.train, splits.valid, epochs=1 if FAST else 3, **how)
new = splits.encoder.transform(rows.tail(3))  # tomorrow's rows, as tensors

# %% tags=["plumbing"]
# @title What became of the columns
values = evaluate(model, splits.test)
kinds = [
    ("position, price", "numbers", "2 standardised numbers"),
    ("title_vector", "a list of 16 numbers in each cell", "16 numbers, title_vector_0 …"),
    (f"{', '.join(list(words)[:2])} …", "several words in a cell", f"{words.shape[1]} columns of 0 and 1"),
    ("surface, category, brand", "text or codes", "a row each of an embedding table; 0 is 'unknown'"),
]
display(plots.table(pd.DataFrame(kinds, columns=["raw column", "what it holds", "what the model gets"])))
Markdown(
    f"New rows as tensors: {tuple(new[0].shape)} numbers, {tuple(new[1].shape)} codes. Test AUC: "
    + ", ".join(f"{task} {found['auc']:.3f}" for task, found in values.items())
    + "."
)

# %% [markdown]
# ### One event a row
#
# Many logs have no labels at all, only events: *view*, *click*, *buy*, one a row. A row a *decision* is what we need, with
# a column a task. The tasks are a pivot; a view without a click is the "no" that trains a model.

# %%
key = ["session_id", "user_id", "item_id"]
moments = raw.set_index(key)
kinds_ = {
    "view": moments["timestamp"],
    "click": moments["timestamp"][moments["click"] == 1],
    "buy": moments["purchase_time"][moments["purchase"] == 1],
}
events = pd.concat(kinds_, names=["event"]).rename("time").reset_index()

first_time = events.pivot_table("time", index=key, columns="event", aggfunc="min")
pivoted = first_time.notna().astype(int).assign(time=first_time["view"]).reset_index()

# %% tags=["plumbing"]
# @title Before and after
bought = events.loc[events["event"] == "buy"].iloc[0]
sample = events[(events["session_id"] == bought["session_id"])].tail(4)
left_, right_ = sample.reset_index(drop=True), pivoted[pivoted["session_id"] == bought["session_id"]]
display(plots.table(left_), plots.table(right_.sort_values("buy").tail(3).reset_index(drop=True)))
agree = pivoted[["click", "buy"]].sum().to_dict()
truth_ = raw.groupby(key)[["click", "purchase"]].max().sum().to_dict()
Markdown(
    f"{len(events):,} events became {len(pivoted):,} decisions with {agree['click']:,} clicks and {agree['buy']:,} purchases (the shop's own table: {truth_['click']:,} "
    f"and {truth_['purchase']:,}). Look twice at two things: an event that comes *after* your cut-off is unknown, not "
    "no; and without views in the log there is no 'no'."
)

# %% [markdown]
# ### Only yes: negatives that you sample
#
# Some logs keep clicks only, or keep every click and a tenth of the rest. What do the probabilities of a model mean then?
# Train on all clicks and a share $r$ of the others. Dropping them multiplies the odds by $1/r$, so
# $p = \dfrac{q}{q + (1 - q)/r}$. A third case: no views at all, and "no" is a random product of the catalogue.

# %%
g_ratio = guess("A tenth of the 'no' kept: mean said over true?", 0.5, 12, 0.5, "×")
g_ratio

# %%
r = 0.1
base = split_by_time(rows)
learn = base["train"].drop(columns=["timestamp"])
yes, no = learn[learn["click"] == 1], learn[learn["click"] == 0]
drawn = items.join(words).sample(4 * len(yes), replace=True, random_state=0)  # products
where = yes[["position", "surface"]].sample(4 * len(yes), replace=True, random_state=1)
invented = drawn.reset_index(drop=True).join(where.reset_index(drop=True))
invented["click"] = 0
variants = {
    "all rows": learn,
    "a tenth of the no": pd.concat([yes, no.sample(frac=r, random_state=0)]),
    "no = a random product": pd.concat([yes, invented]),
}
said = {}
for name, part in variants.items():
    made = prepare(base | {"train": part}, own[:1], numeric, categorical, min_count=5)
    torch.manual_seed(0)
    net, batch = SingleTask(made.schema, own[0], embedding_dim=4), len(part) // 40
    fit(net, made.train, epochs=1 if FAST else 4, batch_size=batch, **how)
    said[name] = predict(net, made.test)["click"].numpy()
q = said["a tenth of the no"]
said["… corrected by hand"] = q / (q + (1 - q) / r)

# %% tags=["plumbing"]
# @title Said and observed
y = base["test"]["click"].to_numpy()
fig = plots.figure(3.1)
ax, right = fig.subplots(1, 2, width_ratios=(1.5, 1))
looks_ = {"all rows": ("#222222", "s"), "a tenth of the no": ("#882255", "D")}
looks_ |= {"… corrected by hand": ("#999933", "v"), "no = a random product": ("#332288", "^")}
for name, (color, marker) in looks_.items():
    curve = reliability_curve(y, said[name])
    ax.plot(curve["predicted"], curve["observed"], marker=marker, color=color, label=name)
ax.plot([0.01, 0.9], [0.01, 0.9], color="#777777", ls=":")
ax.set(
    xscale="log",
    yscale="log",
    xlabel="said (mean of a tenth of the test rows)",
    ylabel="observed share of clicks",
)
over = {name: said[name].mean() / y.mean() for name in looks_}
order = {name: auc(y, said[name]) for name in looks_}
right.barh(list(over), list(over.values()), color=[looks_[name][0] for name in over], height=0.5)
right.axvline(1, color="#222222", lw=1)
right.invert_yaxis()
right.set(xlabel="mean said over observed")
right.set_yticks(range(4), [f"{name}\nAUC {order[name]:.3f}" for name in over], fontsize=8)
plots.value_labels(right, ".1f")
ax.set_title(
    f"A tenth of the no: said / observed {over['a tenth of the no']:.1f}; corrected {over['… corrected by hand']:.1f}"
)
plots.legend_outside(fig, ax)
display(fig, g_ratio.answer(over["a tenth of the no"], digits=1))
Markdown(
    f"The order hardly cares ({order['all rows']:.3f} against {order['a tenth of the no']:.3f}), and the odds are set right by one number, as long as the kept rows are a *random* share. "
    f"Against random products the model answers another question, *clicked, or drawn from the catalogue?*, with AUC {order['no = a random product']:.3f} on real "
    f"impressions and a mean of {over['no = a random product']:.1f} times the click rate. No factor brings it back: there is no click rate in that log. Rank with it; never multiply by money."
)

# %% [markdown]
# ### Several data sets, one model
#
# A partner's log knows clicks but no purchases. Put one table under the other: what a row does not know is NaN, a *mask*
# skips it in that task's loss, and a column says where a row came from.

# %%
cut = len(base["train"]) // 5
ours_ = base["train"].tail(cut).assign(source="ours")
partner = base["train"].head(-cut).assign(source="partner")
partner["purchase"] = np.nan  # it does not know
later = {part: base[part].assign(source="ours") for part in ("valid", "test")}
sets = {"ours alone": ours_, "both, by masks": pd.concat([ours_, partner])}
known, tested, columns_ = {}, {}, [*categorical, "source"]
for name, part in sets.items():
    made = prepare(later | {"train": part}, own, numeric, columns_, min_count=5)
    known[name] = part[["click", "purchase"]].notna().sum()  # the others are masked
    torch.manual_seed(0)
    net = SharedBottom(made.schema, own, embedding_dim=4)
    fit(net, made.train, made.valid, epochs=1 if FAST else 6, **how)
    values = evaluate(net, made.test)
    tested[name] = {task: found["auc"] for task, found in values.items()}

# %% tags=["plumbing"]
# @title What each task has seen
shown = pd.DataFrame(
    {
        "rows": {name: len(part) for name, part in sets.items()},
        "click labels": {name: known[name]["click"] for name in sets},
        "purchase labels": {name: known[name]["purchase"] for name in sets},
        "test AUC, click": {name: tested[name]["click"] for name in sets},
        "test AUC, purchase": {name: tested[name]["purchase"] for name in sets},
    }
).rename_axis("trained on")
display(plots.table(shown))
Markdown(
    "One run each: it shows *that* it works, not that it pays. A partner's clicks may come from other users, other prices, another page: "
    "compare with your own rows alone, as section 3 does, before you keep them."
)

# %% [markdown]
# ## Exercises
#
# Each has a stub that returns `...` and a check that tells you where you are. Stuck? Type `hint("07.rate_of_others", 1)`
# into a cell; levels go up to 3. `solution("07.rate_of_others")` shows commented source.
#
# **Exercise 1. A statistic without its own label.**

# %%
from mtl_helpers.check import check, hint, solution


def rate_of_others(ids, labels):
    """For each row the mean label of the *other* rows with its id, an array (n,).

    ids (n,), labels (n,) of 0 and 1: arrays. Where an id has no other row: the mean
    label of all other rows. For example ids 3, 3, 8 with labels 1, 0, 1 give 0, 1, 0.5.
    """
    return ...


# %%
check("07.rate_of_others", rate_of_others)

# %% [markdown]
# **Exercise 2. An interval for draws that share rows.**


# %%
def paired_interval(a, b, quantile, ratio):
    """Low and high of the interval of the mean of a − b, an array (2,).

    a, b (n,): a metric of two models on the same n draws; quantile: Student's t; ratio:
    what the draws have in common, such as test rows / training rows of re-splits. The
    half-width is quantile · s · √(1/n + ratio). Differences of 1 and 3 with quantile 1
    and ratio 0 give 1 and 3.
    """
    return ...


# %%
check("07.paired_interval", paired_interval)

# %% [markdown]
# **Exercise 3. How many seeds?** A rule of thumb for *fresh* draws (with Student's t: about two more).


# %%
def seeds_needed(sd, gap):
    """The smallest whole number n for which 2.8 · sd / √n is at most gap.

    sd: deviation of one paired difference; gap: the true difference. sd = gap gives 8.
    """
    return ...


# %%
check("07.seeds_needed", seeds_needed)

# %% [markdown]
# ## Self-check
#
# **1. "On our log sharing costs the rare task three points."** What do you ask?
#
# <details><summary>Answer</summary>
#
# Whether both sides were tuned, whether each task had its own setting and stop, and where logistic regression lies.
# Section 2 takes such a number apart.
# </details>
#
# **2. Eight re-splits give an interval that excludes zero.** Is there a difference?
#
# <details><summary>Answer</summary>
#
# Not yet: re-splits share rows. With the correction of section 5 the interval is about 1.6 times as long; and it speaks of
# this file, not of another year.
# </details>
#
# **3. Your log keeps clicks and 5 % of the rest.** What do the model's probabilities mean?
#
# <details><summary>Answer</summary>
#
# Odds that are 20 times too high, and one formula sets them right (section 6). If the negatives are random products
# instead of views, no formula does.
# </details>

# %% [markdown]
# ## Summary
#
# - A seesaw is a sum: sharing, one stop, one setting, what was not tuned. Take it apart before you buy an architecture,
#   and put logistic regression beside it.
# - Draws and re-splits of one log share rows: widen the interval, pool the contrast, say how small a difference it could
#   have seen. Never mix published figures of two sources.
# - Your own log: labels from events, codes as categories, vectors, multi-hot columns, masks for what a data set does not
#   know, and one formula for sampled negatives.
#
# **What this hides.** A week of a small log, a few thousand videos, chosen by the system that showed them. *In production*
# labels arrive late and the model is trained again every day.

# %% [markdown]
# ## References
#
# - C. Gao et al., *KuaiRand: An Unbiased Sequential Recommendation Dataset with Randomly Exposed Videos*, CIKM 2022.
# - J. Ma et al., *Modeling Task Relationships in Multi-task Learning with Multi-gate Mixture-of-Experts*, KDD 2018,
#   section 6 (Census-Income).
# - H. Tang et al., *Progressive Layered Extraction*, RecSys 2020 (the seesaw phenomenon, section 3).
# - C. Nadeau, Y. Bengio, *Inference for the Generalization Error*, Machine Learning 52, 2003.
# - X. He et al., *Practical Lessons from Predicting Clicks on Ads at Facebook*, ADKDD 2014, section 6.3 (sampled
#   negatives).
# - H. Zhu et al., *Optimized Cost per Click in Taobao Display Advertising*, KDD 2017, eq. 12 (grouped AUC).
# - X. Bouthillier et al., *Accounting for Variance in Machine Learning Benchmarks*, MLSys 2021.
# - T. Lane, R. Kohavi, *Census-Income (KDD)*, UCI Machine Learning Repository, doi 10.24432/C5N30T; published figures:
#   IJANMC 2024-0005, and the README of [torch-rechub](https://github.com/datawhalechina/torch-rechub).
#
# **Next:** [08_rare_missing_unlabelled](08_rare_missing_unlabelled.ipynb), for labels that are rare, hidden or not there.
