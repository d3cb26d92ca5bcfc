# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # 08 · Rare, missing, unlabelled
#
# **Promise.** When you leave this page you know what a rare label costs, what re-sampling, weights, a GAN and attention
# give back, how to mend the probabilities they bend, and what to do with rows whose label is hidden or was never known.
#
# {{colab_badge}} · [glossary](glossary.md) · about 90 minutes to read, 2 minutes to run on two CPU cores (no GPU needed) ·
# builds on notebooks 01, 02 and 05

# %%
# {{setup}}

# %% tags=["plumbing"]
# @title Imports, and where you are in the course
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from IPython.display import Markdown
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits as bce
from torch.nn.functional import logsigmoid

import mtl_helpers
from mtl_helpers.data import (
    SHOP_CATEGORICAL,
    SHOP_NUMERIC,
    SHOP_TASKS,
    history_sequences,
    load_shop,
    prepare,
    shop_frame,
    shop_splits,
)
from mtl_helpers.metrics import (
    auc,
    correct_downsampling,
    expected_auc,
    expected_log_loss,
    holm,
    mean_interval,
)
from mtl_helpers.models import GatedBottom, HistoryBottom, RowGAN, SharedBottom
from mtl_helpers.models.rare import (
    Contrast,
    adjusted_logits,
    corrupt,
    doubly_robust,
    focal_loss,
    focal_probability,
    info_nce,
)
from mtl_helpers.training import predict
from mtl_helpers.widgets import Explorer, choice_slider, course_map, guess, slider
from mtl_helpers.widgets import figures as plots

torch.set_num_threads(1)  # models this small need no more
CLICK, PURCHASE = SHOP_TASKS[:2]
ORANGE, BLUE = (plots.task_style(name)["color"] for name in ("purchase", "click"))
INK, WINE, NAVY, OLIVE, BROWN, GREY = "#222222", "#882255", "#332288", "#999933", "#8C510A", "#8C8C8C"


def number(value, digits=3):
    return plots.minus(f"{round(value, digits) + 0.0:+.{digits}f}")  # never −0.000


def span(i, digits=3):
    """Mean and interval of a difference, in words."""
    return f"{number(i.mean, digits)} [{number(i.low, digits)}, {number(i.high, digits)}]"


def judge(differences):
    """Of each contrast, shop by shop: interval, Holm's p, and what they allow us to say."""
    p, verdicts = holm(differences), {}
    for name, each in differences.items():
        i = mean_interval(each)
        word = "a tie" if p[name] >= 0.05 else "ahead" if i.mean > 0 else "behind"
        verdicts[name] = i, p[name], word
    return verdicts


def tell(verdict, digits=3):
    i, p, word = verdict
    return f"{span(i, digits)}, {word}, p {'< .001' if p < 0.0005 else f'= {p:.3f}'.replace('0.', '.')}"


def standing(verdicts):
    """Those that Holm's correction leaves."""
    return {name for name, (_, _, word) in verdicts.items() if word != "a tie"}


course_map("08")

# %% [markdown]
# ## The question of this page
#
# A shop logs 24,000 impressions. Of 500 of them it knows whether they led to a {{purchase}}; two or three did. The other
# rows have features and no label. Can a model learn from them all the same, by a task that needs no label: say which
# cells of a row were replaced, or recognise a row behind a disguise? This is what the article calls *unsupervised
# multi-task learning*.

# %%
g_first = guess("500 labels: AUC of purchase, with such a task minus alone?", -0.05, 0.15, 0.005)
g_first

# %% tags=["plumbing"]
# @title Stored runs: eight shops, each contestant at the setting that three others chose
results = Path(mtl_helpers.__file__).parents[1] / "notebooks" / "results" / "08_rare.csv"
study = pd.read_csv(results, comment="#", dtype={"budget": str})
tuned, reported = study[study["shop"] < 100], study[study["shop"] >= 100]
means = tuned.groupby(["part", "world", "budget", "contestant", "lr", "weight_decay", "own"])["valid"].mean()
picked = means.loc[means.groupby(level=[0, 1, 2, 3]).idxmax()].reset_index()


def runs(part, name, budget="all", what="auc", world="hidden", own=None):
    """One figure a shop."""
    found = reported[(reported["part"] == part) & (reported["contestant"] == name)]
    found = found[(found["budget"] == budget) & (found["world"] == world)]
    if own is not None:
        found = found[np.isclose(found["own"], own)]
    return found.set_index("shop")[what].sort_index()


def gains(part, names, base, **where):
    """Differences to a base, shop by shop."""
    return {name: runs(part, name, **where) - runs(part, base, **where) for name in names}


BUDGETS = (500, 1500, 5000)
WAYS = {
    "alone": GREY, "logistic regression": BROWN, "reconstruction": NAVY, "contrast": WINE,
    "contrast first": OLIVE, "self-training": "#44576B", "click": BLUE,
}  # fmt: skip
SAID = {"click": "sharing with click"}
fig = plots.figure(plots.HEIGHT)
left, right = fig.subplots(1, 2, width_ratios=(1.15, 1))
for name, color in WAYS.items():
    level = [runs("labels", name, str(budget)).mean() for budget in BUDGETS]
    left.plot(BUDGETS, level, "o-", color=color, label=SAID.get(name, name))
left.set(xscale="log", xlabel="known purchase labels", ylabel="AUC of purchase")
left.set_xticks(BUDGETS, [f"{budget:,}" for budget in BUDGETS])
left.minorticks_off()
plots.name_lines(left)
left.set_title("Eight shops, by the truth")
band = left.axvline(500, color=plots.HERE, lw=12, alpha=0.5, animated=True)
others = [name for name in WAYS if name != "alone"]
lines = [right.plot([], [], color=WAYS[name], lw=2.4, animated=True)[0] for name in others]
dots = [right.plot([], [], "o", color=WAYS[name], ms=8, mec="white", animated=True)[0] for name in others]
gaps = {
    (name, b): each for b in BUDGETS for name, each in gains("labels", others, "alone", budget=str(b)).items()
}
by_label = judge(gaps)
ends = [end for i, _, _ in by_label.values() for end in (i.low, i.high)]
right.set(xlim=(min(ends) - 0.01, max(ends) + 0.01), xlabel="AUC, minus alone (95 %)")
right.set_yticks(range(len(others)), [SAID.get(name, name) for name in others])
right.set_ylim(len(others) - 0.5, -0.5)
right.axvline(0, color=INK, lw=1)
right.set_title("The difference, shop by shop")


def at_budget(state):
    budget = state["budget"]
    band.set_xdata([budget] * 2)
    for y, (name, line, dot) in enumerate(zip(others, lines, dots, strict=True)):
        i, _, word = by_label[name, budget]
        line.set_data([i.low, i.high], [y, y])
        dot.set_data([i.mean], [y])
        dot.set_markerfacecolor("white" if word == "a tie" else WAYS[name])
        dot.set_markeredgecolor(WAYS[name] if word == "a tie" else "white")
    ahead, behind = (
        [SAID.get(n, n) for n in others if by_label[n, budget][2] == word] for word in ("ahead", "behind")
    )
    return (
        f"{budget:,} labels, after Holm's correction over all {len(by_label)} contrasts: ahead of alone "
        f"{', '.join(ahead) or 'none'}; behind {', '.join(behind) or 'none'}; the others are ties (hollow)."
    )


Explorer(
    fig,
    [choice_slider("budget", "label budget", BUDGETS, 500, unit="rows", fmt=",")],
    at_budget,
    title="What helps where purchase labels are few",
)

# %% tags=["plumbing"]
# @title The answer
with_task = (runs("labels", "reconstruction", "500") + runs("labels", "contrast", "500")) / 2
(primary,) = judge({"primary": with_task - runs("labels", "alone", "500")}).values()
shared = by_label["click", 500]
display(g_first.answer(primary[0].mean, digits=3))
lesson = {
    "ahead": "The unlabelled rows do teach something.",
    "behind": "The unlabelled rows do harm.",
    "a tie": f"Eight shops would have shown a true difference of {0.69 * (primary[0].high - primary[0].low):.2f} four times in five; smaller ones can hide.",
}
Markdown(
    f"The one contrast that was written down before the study ran, the mean of *reconstruction* and *contrast* trained "
    f"jointly, minus *alone*, at 500 labels: **{tell(primary)}**. {lesson[primary[2]]} Sharing with the *clicks* of all "
    f"24,000 rows, a label that costs nothing: {tell(shared)} (Holm, {len(by_label)} contrasts). Section 7 takes these tasks apart. First: what is so "
    f"hard about a rare label?"
)

# %% [markdown]
# *How it was run.* Small shops of 48,000 rows, half of them for training, all new in each. Every contestant tried thirteen settings of learning rate, decay
# and a knob of its own, spread evenly over the logarithms of wide ranges, on three shops that are not shown, and kept the
# best by the truth. (Self-training takes the setting of *alone*.) Of the treatments of section 2, *as it is* starts at p = ½;
# started at the base rate it is *logit adjustment*, so this is the base that another treatment has to beat. Test figures are weighted by the true probabilities. A
# verdict, *ahead* or *behind*, needs p < .05 after Holm's correction over all contrasts of its figure; all else is *a tie*. The
# study, `notebooks/studies/nb08_rare.py`, made all stored figures of this page.


# %% tags=["plumbing"]
# @title Had the tuning room?
def at_edge(knob):
    """Choices at the lowest or highest of the thirteen values of a knob."""
    tried = tuned.groupby(["part", "world", "budget", "contestant"])[knob]
    ends = picked.set_index(["part", "world", "budget", "contestant"])[knob]
    low, high = tried.min(), tried.max()
    edge = ends[((ends == low) | (ends == high)) & (low < high)].index
    return [
        f"{way} ({int(n):,} labels)"
        if n != "all"
        else f"{way} ({part}{f', {world}' if part == 'selection' else ''})"
        for part, world, n, way in edge
    ]


edges = {
    words: at_edge(knob)
    for words, knob in (("learning rate", "lr"), ("decay", "weight_decay"), ("own knob", "own"))
}
half_ = [n for n in edges["learning rate"] if n in ("contrast (500 labels)", "reconstruction (500 labels)")]
Markdown(
    f"Of {len(picked)} choices these took the lowest or highest of thirteen values, so that a better one may lie beyond: "
    + "; ".join(f"of the {knob} {', '.join(found) or 'none'}" for knob, found in edges.items())
    + f". By chance alone it would be about {2 * len(picked) / 13:.0f} for each. "
    + f"{'Half' if len(half_) == 1 else 'All'} of the primary contrast is among them: {' and '.join(half_)}."
    * bool(half_)
)

# %% [markdown]
# ## 1 · What does rarity do to a figure?
#
# Fewer {{purchase}}s, same model, same ranking. Does its AUC become worse, or only less certain? How many positives must a
# test part hold until AUC is known to ± .02?

# %%
g_many = guess("Positives needed for AUC ± 0.02?", 0, 1000, 10)
g_many

# %% tags=["plumbing"]
# @title The shop: its latest 60,000 rows split by time, with the truth kept apart
log = load_shop()
frame = shop_frame(log).tail(60_000).merge(log.truth, on="impression_id")
data = prepare(shop_splits(frame), SHOP_TASKS, SHOP_NUMERIC, SHOP_CATEGORICAL, device=device)
rows = data.train.select(("click", "purchase"))
if FAST:
    rows = rows.take(slice(0, 12_000))
truth = {part: data.frames[part]["p_purchase"].to_numpy() for part in ("valid", "test")}
base_rate = rows.labels["purchase"].mean().item()
STEPS = 40 if FAST else 250


def batches_of(part, size=512, seed=0):
    order = torch.Generator().manual_seed(seed)
    while True:
        full = (batch for batch in part.batches(size, generator=order) if len(batch) == size)
        yield from full


def begin(model, part):
    """Each tower starts at its base rate, so that few steps suffice."""
    for name in model.names:
        rate = part.labels[name].mean().item()
        nn.init.constant_(model.towers[name].head.bias, np.log(rate / (1 - rate)))
    return model.to(device)


def train(model, objective, steps=STEPS, lr=3e-3, decay=1.0):
    """AdamW, no decay of biases."""
    matrices = [p for p in model.parameters() if p.dim() > 1]
    biases = [p for p in model.parameters() if p.dim() == 1]
    groups = {"params": matrices, "weight_decay": decay}, {"params": biases, "weight_decay": 0.0}
    optimizer = torch.optim.AdamW(groups, lr=lr)
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        objective().backward()
        optimizer.step()
    return model


def single(part, seed=0, loss=bce, at_rate=True, steps=None):
    """A model of purchase alone."""
    torch.manual_seed(seed)
    model = SharedBottom(data.schema, [PURCHASE], embedding_dim=4).to(device)
    begin(model, part)
    if not at_rate:
        nn.init.zeros_(model.towers["purchase"].head.bias)
    size = min(512, len(part) // 8)
    stream = batches_of(part, size, seed)
    steps = steps or min(STEPS, max(30, 4 * len(part) // size))

    def objective():
        batch = next(stream)
        return loss(model(batch.numeric, batch.categorical)["purchase"], batch.labels["purchase"])

    return train(model, objective, steps)  # at most four times through all rows


plain = single(rows)
said = predict(plain, data.test)["purchase"].double().numpy()

# %% tags=["plumbing"]
# @title Labels drawn again and again, thinner and thinner
KEEP = (1.0, 0.5, 0.2, 0.1, 0.05, 0.02)
rng = np.random.default_rng(0)
rank = said.argsort().argsort() + 1.0
full = expected_auc(truth["test"], said)
drawn = {}
for keep in KEEP:
    y = rng.random((40 if FAST else 300, len(said))) < keep * truth["test"]
    count = y.sum(1)
    wins = y @ rank - count * (count + 1) / 2
    with np.errstate(invalid="ignore", divide="ignore"):
        drawn[keep] = count, wins / (count * (len(said) - count))
positives = np.array([count.mean() for count, _ in drawn.values()])
spread = np.array([np.nanstd(found) for _, found in drawn.values()])
middle = np.array([np.nanmean(found) for _, found in drawn.values()])
q2 = 2 * full**2 / (1 + full)  # two negatives below one positive (Hanley and McNeil, 1982)
theory = np.sqrt((q2 - full**2) / positives)
needed = (q2 - full**2) / (0.02 / 1.96) ** 2
tenth = np.empty(len(said), int)
for k, part_ in enumerate(np.array_split(said.argsort(), 10)):
    tenth[part_] = k
within = np.eye(10)[tenth]
GAPS = {
    "the model": said,
    "always the base rate": np.full(len(said), base_rate),
    "the truth itself": truth["test"],
}
gaps_ = {name: [] for name in GAPS}  # mean gap of ten bins, over the rate
for keep in KEEP:
    y = rng.random((40 if FAST else 300, len(said))) < keep * truth["test"]
    for name, p_ in GAPS.items():
        away = np.abs(y @ within - keep * p_ @ within).sum(1) / (keep * truth["test"].sum())
        gaps_[name].append(away.mean())
fig = plots.figure(3.1)
left, right, third = fig.subplots(1, 3)
bins = np.linspace(max(0.0, full - 0.35), min(1.0, full + 0.35), 41)
heights = {
    keep: np.histogram(found[np.isfinite(found)], bins, density=True)[0] for keep, (_, found) in drawn.items()
}
(bars,) = left.plot([], [], drawstyle="steps-mid", color=ORANGE, animated=True)
left.axvline(full, color=INK, lw=1, ls="--")
left.set(xlim=(bins[0], bins[-1]), ylim=(0, 1.05 * max(h.max() for h in heights.values())))
left.set(xlabel="AUC (dashed: by the truth)", ylabel="density")
left.set_title("AUC: no bias, more width", fontsize=10)
for (name, level), look in zip(gaps_.items(), ("o-", "s--", "^:"), strict=True):
    third.plot(positives, level, look, color={"o": WINE, "s": GREY, "^": OLIVE}[look[0]], label=name)
third.set(xscale="log", xlabel="positives in the test part", ylabel="gap of ten bins / rate")
third.xaxis.set_ticks((2, 10, 50), ["2", "10", "50"])
third.minorticks_off()
third.set_title("Calibration drowns in noise", fontsize=10)
(here_gap,) = third.plot([], [], "o", color=plots.HERE, mec=INK, ms=11, animated=True)
right.plot(positives, spread, "o-", color=INK, label="drawn")
right.plot(positives, theory, ":", color=GREY, label="√((Q − A²) / positives)")
right.set(xscale="log", yscale="log", xlabel="positives in the test part", ylabel="deviation of AUC")
for axis, ticks in ((right.xaxis, (2, 10, 50)), (right.yaxis, (0.01, 0.03, 0.1, 0.3))):
    axis.set_ticks(ticks, [f"{tick:g}" for tick in ticks])
right.minorticks_off()
right.axhline(0.02 / 1.96, color=GREY, lw=1, ls="--")
right.set_title(f"± 0.02 takes {needed:,.0f} positives", fontsize=10)
(here_thin,) = right.plot([], [], "o", color=plots.HERE, mec=INK, ms=11, animated=True)
plots.legend_outside(fig)
g_many.mark(right)


def thin(state):
    k = KEEP.index(state["keep"])
    count, found = drawn[state["keep"]]
    bars.set_data((bins[1:] + bins[:-1]) / 2, heights[state["keep"]])
    here_thin.set_data([positives[k]], [spread[k]])
    here_gap.set_data([positives[k]], [gaps_["the model"][k]])
    model_gap, base_gap, true_gap = (level[k] for level in gaps_.values())
    low, high = np.nanquantile(found, (0.025, 0.975))
    rate = state["keep"] * truth["test"].mean()
    loss = expected_log_loss(state["keep"] * truth["test"], state["keep"] * said)
    floor = expected_log_loss(np.full(2, rate), np.full(2, rate))
    lost = int((count == 0).sum())
    return (
        f"{positives[k]:.0f} positives of {len(said):,}: AUC {middle[k]:.3f} on average, 95 % of draws from {low:.2f} "
        f"to {high:.2f}; log-loss {loss:.4f}, always the base rate {floor:.4f} (a ratio of {loss / floor:.2f}); "
        f"calibration gap over the rate: the model {model_gap:.0%}, the base rate {base_gap:.0%}, even the truth {true_gap:.0%}. "
        f"Purchases over their expectation: ± {1.96 / np.sqrt(positives[k]):.0%}."
        + f" {lost} draws hold no purchase: no AUC."
        * bool(lost)
    )


display(g_many.answer(needed, digits=0))
Explorer(
    fig,
    [choice_slider("keep", "purchases kept", KEEP, 0.1, fmt=".0%")],
    thin,
    title="AUC of one model on thinner and thinner labels",
)

# %% [markdown]
# (In the legend A is the AUC, and Q = 2A² / (1 + A) the chance that one purchase stands above *two* drawn negatives, by Hanley
# and McNeil.) Rarity is **no bias** of AUC: negatives alone do not move it. It is **variance**, and what counts is the number of
# positives, not of rows. Log-loss falls as the label thins, and says nothing by that: compare it with the base rate's own.
# A calibration is no better known than the number of positives allows: ± 1.96 / √positives.
#
# That was measuring. *Learning* from few positives does get worse: the slider on top. So what can be done in training?
#
# ## 2 · Seven treatments
#
# | treatment | what it does | what the model then says |
# |---|---|---|
# | class weight w | a positive counts w times | odds times w |
# | focal loss, γ | rows that are right already count less: $-(1-p_t)^\gamma \log p_t$ | pulled towards ½ |
# | logit adjustment, τ | trains $f + \tau \log\frac{\pi}{1-\pi}$, ranks by $f$ | odds times $((1-\pi)/\pi)^\tau$ |
# | down-sampling, r | a share r of the negatives stays | odds times 1/r |
# | over-sampling, SMOTE, GAN | positives r times as frequent: copies, points between, made rows | odds times r |
#
# (SMOTE-NC of imbalanced-learn is SMOTE for mixed columns: numbers lie between two rows, categories are voted on. Ours
# takes those of the nearer row.) Each bends the probabilities, most in a way that can be undone. By hand, odds for odds:

# %%
rate = 0.05
yes, no = (np.flatnonzero(rows.labels["purchase"].cpu() == value) for value in (1, 0))
kept = np.random.default_rng(0).permutation(no)[: int(rate * len(no))]
sampled = single(rows.take(np.concatenate([yes, kept])))
q = predict(sampled, data.test)["purchase"].double().numpy()

odds = rate * q / (1 - q)  # dropping negatives had multiplied them by 1 / rate
by_hand = odds / (1 + odds)
assert np.allclose(by_hand, correct_downsampling(q, rate))

# %% [markdown]
# Drag the share of negatives that is kept. What happens to the order, to the probabilities, and to them after the
# correction? Each model goes through its rows at most four times, so fewer rows are a shorter training.

# %%
g_raw = guess("1 % of the negatives kept: p before correction, times the truth?", 1, 100, 1)
g_raw

# %% tags=["plumbing"]
# @title The sampling rate, on trained models
RATES = (0.01, 0.03, 0.1, 0.3, 1.0)
answers = {}
for rate in RATES:
    kept = np.random.default_rng(0).permutation(no)[: int(rate * len(no))]
    part = rows.take(np.concatenate([yes, kept]))
    raw = predict(single(part), data.test)["purchase"].double().numpy()
    answers[rate] = raw, correct_downsampling(raw, rate), len(part)
fig = plots.figure(3.2)
left, right = fig.subplots(1, 2, width_ratios=(1.2, 1))


def curve(p):
    parts = np.array_split(p.argsort(), 10)
    return [p[r].mean() for r in parts], [truth["test"][r].mean() for r in parts]


left.plot([5e-4, 1], [5e-4, 1], color=GREY, lw=1, ls="--", label="the truth")
(before,) = left.plot([], [], "o-", color=WINE, label="before the correction", animated=True)
(after,) = left.plot([], [], "s-", color=INK, label="after", animated=True)
left.set(xscale="log", yscale="log", xlim=(5e-4, 1), ylim=(5e-4, 0.1))
left.set(xlabel="p that the model says, ten bins", ylabel="true p, mean of the bin")
left.set_title("Bent, and straightened")
by_rate = np.array([[expected_log_loss(truth["test"], p) for p in pair[:2]] for pair in answers.values()])
floor = expected_log_loss(truth["test"], np.full(len(said), base_rate))
best = expected_log_loss(truth["test"], truth["test"])
right.plot(RATES, by_rate[:, 0], "o-", color=WINE)
right.plot(RATES, by_rate[:, 1], "s-", color=INK)
for level, name in ((floor, "base rate"), (best, "truth")):
    right.axhline(level, color=GREY, lw=1, ls="--")
    place = {"xycoords": right.get_yaxis_transform(), "va": "center", "annotation_clip": False}
    right.annotate(name, (1.02, level), fontsize=8, color="#555555", **place)
right.set(xscale="log", yscale="log", xlabel="share of negatives kept", ylabel="log-loss (nats)")
for axis, ticks in ((right.xaxis, RATES), (right.yaxis, (0.03, 0.05, 0.1, 0.2, 0.5))):
    axis.set_ticks(ticks, [f"{tick:g}" for tick in ticks])
right.minorticks_off()
right.set_title("Log-loss needs the correction")
(here_rate,) = right.plot([], [], "o", color=plots.HERE, mec=INK, ms=11, animated=True)
plots.legend_outside(fig, left)


def at_rate(state):
    raw, mended, n = answers[state["rate"]]
    before.set_data(*curve(raw))
    after.set_data(*curve(mended))
    here_rate.set_data([state["rate"]], [by_rate[RATES.index(state["rate"]), 0]])
    level = truth["test"].mean()
    return (
        f"{state['rate']:.0%} of the negatives, {n:,} rows: AUC {expected_auc(truth['test'], raw):.3f}. "
        f"Mean p {raw.mean() / level:.1f} times the truth before, {mended.mean() / level:.2f} after."
    )


bent = answers[0.01][0].mean() / truth["test"].mean()
display(g_raw.answer(bent, digits=0))
Explorer(
    fig,
    [choice_slider("rate", "negatives kept", RATES, 0.01, fmt=".0%")],
    at_rate,
    title="Down-sampling bends probabilities",
)

# %% [markdown]
# **Where the correction falls short.** It takes one factor for all rows. That is right when each negative had the same
# chance to stay. Suppose a shop logs all rows of positions 1 to 4, and of the lower ones every twentieth negative:

# %% tags=["plumbing"]
# @title One factor for two kinds of row
upper = data.frames["train"]["position"].to_numpy()[: len(rows)] <= 4
kept_ = no[upper[no] | (np.random.default_rng(0).random(len(no)) < 0.05)]
lopsided = predict(single(rows.take(np.concatenate([yes, kept_]))), data.test)["purchase"].double().numpy()
one = correct_downsampling(lopsided, len(kept_) / len(no))
top_half = data.frames["test"]["position"].to_numpy() <= 4
own = np.where(top_half, lopsided, correct_downsampling(lopsided, 0.05))
ways = {"all rows kept": said, "lopsided, one factor": one, "lopsided, own factors": own}
shown = pd.DataFrame(
    {
        name: {
            "positions 1 to 4": p[top_half].mean() / truth["test"][top_half].mean(),
            "positions 5 to 8": p[~top_half].mean() / truth["test"][~top_half].mean(),
            "AUC": expected_auc(truth["test"], p),
        }
        for name, p in ways.items()
    }
).T.rename_axis("predicted / true purchases")
display(plots.table(shown, digits=2))
tilt = {name: shown.loc[name].iloc[1] / shown.loc[name].iloc[0] for name in ways}
aucs = shown["AUC"]
worst, rest_ = (abs(np.log(tilt[f"lopsided, {name}"])) for name in ("one factor", "own factors"))
beyond = tilt["lopsided, own factors"] < 1 < tilt["lopsided, one factor"]
left_over = (
    "mended" if rest_ < 0.1
    else ("more than mended, now it is too little" if beyond else "most of it is mended, not all")
    + " (one model, one start; one possible reason: it saw few negatives of the lower half)"
    if beyond or rest_ < 0.6 * worst
    else "hardly better"
)  # fmt: skip
Markdown(
    f"With one factor the lower half is said to buy {tilt['lopsided, one factor']:.1f} times as much as the upper one, relative to the truth (with all rows kept "
    f"{tilt['all rows kept']:.1f}), and the AUC is {aucs['lopsided, one factor'] - aucs['all rows kept']:+.3f} off".replace(
        "-", "−"
    )
    + (
        ": the *order* is bent, too. "
        if aucs["lopsided, one factor"] < aucs["all rows kept"] - 0.01
        else ": here the order hardly moves. "
    )
    + f"With own factors the lower half is said to buy {tilt['lopsided, own factors']:.1f} times as much: {left_over}. The factor belongs to the row, and the log must hold it. "
    f"Something like it happens by itself when the mix of rows or the base rate **shifts** after training: a correction restores the rates of the *training* log, and no other."
)

# %% [markdown]
# **Focal loss is not proper.** Its minimiser does not say the true probability. But what it says can be turned back:
# set the derivative of the expected loss to zero and solve for the truth. By hand, and from the package:

# %%
z, y, gamma = torch.tensor([2.0, -1.0, 0.5]), torch.tensor([1.0, 1.0, 0.0]), 2.0
p_t = torch.where(y == 1, z.sigmoid(), 1 - z.sigmoid())
by_hand = (-((1 - p_t) ** gamma) * p_t.log()).mean()
assert torch.isclose(by_hand, focal_loss(z, y, gamma))

# %% tags=["plumbing"]
# @title What a perfect minimiser of the focal loss says
grid = torch.linspace(1e-4, 1 - 1e-4, 999).double()
fig = plots.figure(2.5)
left, right = fig.subplots(1, 2)
left.plot([0, 1], [0, 1], color=INK, label="γ = 0: cross-entropy")
for gamma, color in ((0.5, OLIVE), (1.0, WINE), (2.0, NAVY)):
    left.plot(focal_probability(grid, gamma), grid, color=color, label=f"γ = {gamma:g}")
left.set(xlabel="true probability", ylabel="what the model says", xlim=(0, 1), ylim=(0, 1))
left.set_title("Pulled towards one half")
plots.legend_outside(fig, left)
z = torch.linspace(-6, 6, 200)
for gamma, color in ((0.0, INK), (0.5, OLIVE), (1.0, WINE), (2.0, NAVY)):
    loss = torch.stack([focal_loss(each[None], torch.zeros(1), gamma) for each in z])
    right.plot(z.sigmoid(), loss, color=color)
right.set(xlabel="p of a row without purchase", ylabel="its loss (nats)", xlim=(0, 1), ylim=(0, 4))
right.set_title("Easy negatives nearly vanish")
fig

# %% [markdown]
# **Logit adjustment with one logit is a head start.** Between many classes it moves their borders. With a single logit the
# shift $\tau\log\frac{\pi}{1-\pi}$ is a constant that the bias can hold as well. Two trainings of 40 steps (with more,
# rounding parts any two): one adjusted, one whose bias starts at the base rate. The same numbers?


# %%
def adjusted(f, y):
    return bce(adjusted_logits(f, base_rate), y)


shifted = single(rows, at_rate=False, loss=adjusted, steps=40)
f = predict(shifted, data.test)["purchase"].double().logit()
started = predict(single(rows, steps=40), data.test)["purchase"]
gap = (adjusted_logits(f, base_rate).sigmoid() - started).abs().max().item()

# %% tags=["plumbing"]
# @title They are; and what all treatments give at equal tuning
names = [
    "class weight", "focal loss", "logit adjustment", "down-sampling", "over-sampling", "SMOTE", "GAN",
]  # fmt: skip
found = gains("treatments", names, "as it is")
by_treatment = judge(found)
stands = standing(by_treatment)
others_ = [name for name in names if name != "logit adjustment"]
by_start = judge(gains("treatments", others_, "logit adjustment"))
fig = plots.figure(3.2)
left, right = fig.subplots(1, 2, width_ratios=(1.35, 1), sharey=True)
plots.interval_rows(left, found, holm=stands, digits=3)
left.set_xlabel("AUC of purchase, minus as it is (which starts at p = ½)")
best_name = max(by_treatment, key=lambda name: by_treatment[name][0].mean)
left.set_title(f"{len(stands) or 'None'} of {len(names)} survive Holm")
for row, name in enumerate(names):
    raw, mended = (runs("treatments", name, what=what).mean() for what in ("raw_log_loss", "log_loss"))
    right.plot([raw, mended], [row, row], color="#C9CED4", lw=2)
    right.plot(raw, row, "o", color=WINE, label="before the correction" if not row else None)
    right.plot(mended, row, "s", color=INK, label="after" if not row else None)
base_loss = runs("floor", "base rate, loss", what="log_loss").mean()
right.axvline(base_loss, color=GREY, ls="--", lw=1, label="always the base rate")
right.axvline(
    runs("floor", "truth, loss", what="log_loss").mean(), color=GREY, ls=":", lw=1.4, label="the truth"
)
right.set(xscale="log", xlabel="log-loss (nats)")
ticks = (0.03, 0.05, 0.1, 0.2, 0.3)
right.xaxis.set_ticks(ticks, [f"{tick:g}" for tick in ticks])
right.minorticks_off()
right.tick_params(axis="y", labelleft=False)
right.set_title("Probabilities")
plots.legend_outside(fig, right)
display(fig)
best_start = max(by_start, key=lambda name: by_start[name][0].mean)
ahead_of_start = ", ".join(name for name, each in by_start.items() if each[2] == "ahead")
lost_lead = [n for n in others_ if by_treatment[n][2] == "ahead" and by_start[n][2] != "ahead"]
levels_ = {n: runs("treatments", n, what="log_loss").mean() for n in ["as it is", *names]}
under_base, over_base = ([n for n, v in levels_.items() if (v < base_loss) == yes_] for yes_ in (True, False))
Markdown(
    f"Adjusted and started at the base rate differ by {gap:.0e} in probability: one and the same model. Highest mean of the seven: {best_name}, "
    f"{tell(by_treatment[best_name])}. A star survives Holm's correction, a hollow dot does not.\n\n**But *as it is* starts at p = ½.** "
    f"Against the start at the base rate, *logit adjustment*, in a family of {len(by_start)} of its own: ahead {ahead_of_start or 'nothing'}; "
    f"behind {', '.join(n for n, v in by_start.items() if v[2] == 'behind') or 'nothing'}. Highest: {best_start}, {tell(by_start[best_start])}. "
    + (f"So {', '.join(lost_lead)} lost the lead: a good part of it was the start. " if lost_lead else "")
    + f"In log-loss, after the correction, {len(under_base)} of {len(names) + 1} stand below always saying the base rate ({base_loss:.4f})"
    + (f"; not {', '.join(over_base)}." if over_base else ".")
)


# %% tags=["plumbing"]
# @title The same as a table, with floors and ceiling, and what it costs
def written_start(name):
    if name not in by_start:
        return ""
    return span(by_start[name][0]) + " ★" * (name in standing(by_start))


def kilobytes(model):
    return 4 * sum(p.numel() for p in model.parameters()) / 1000


rows_ = {}
for name in ["as it is", *names]:
    rows_[name] = {
        "AUC": runs("treatments", name).mean(),
        "minus logit adjustment": written_start(name),
        "log-loss": runs("treatments", name, what="log_loss").mean(),
        "calibration gap, %": 100 * runs("treatments", name, what="calibration").mean(),
        "steps": round(runs("treatments", name, what="step").mean()),
        "seconds": runs("treatments", name, what="seconds").mean(),
    }
for name in ("popularity", "click model", "truth"):
    rows_[f"({name})"] = {"AUC": runs("floor", name).mean(), "minus logit adjustment": ""}
rows_["(truth)"]["log-loss"] = runs("floor", "truth, loss", what="log_loss").mean()
rows_["(always the base rate)"] = {"AUC": 0.5, "minus logit adjustment": "", "log-loss": base_loss}
cost = pd.DataFrame(rows_).T.infer_objects().rename_axis("treatment")
display(plots.table(cost, digits=3))
(rival,) = judge({"": runs("floor", "click model") - runs("treatments", best_name)}).values()
Markdown(
    f"In brackets: ranked by past click rate, by a model of the click alone, by the truth, not at all. The click model, which never saw a purchase, against {best_name}, the best "
    f"treatment: {tell(rival)}. Calibration gap: of ten bins, by the truth, so its floor is 0. Memory: the parameters of the model take {kilobytes(plain):.0f} kB, AdamW twice "
    f"that again; generator and critic of section 3 {kilobytes(RowGAN(data.schema)):.0f} kB on top."
)

# %% [markdown]
# **What surprised you?** A treatment of the loss adds no information about who buys. It changes how fast a model learns, and
# when it is stopped. What does add information is another label: section 7 and notebook 02.
#
# ## 3 · A generator of rare rows
#
# If positives are few, why not make more? A *generative adversarial network*: a generator turns noise into rows, a critic
# tells them from true ones, and each learns from the other. Ours is conditional (the label is an input), of the
# Wasserstein kind with gradient penalty, and its categories are drawn by Gumbel-softmax, so that gradients pass. One
# step of each, on one screen:

# %%
torch.manual_seed(0)
gan = RowGAN(data.schema).to(device)
true_rows = gan.rows(rows.numeric, rows.categorical)  # numbers, and categories one hot
kinds = torch.arange(128, device=device).remainder(2).float()  # half are rare
pick = torch.where(
    kinds == 1,
    torch.tensor(np.random.default_rng(0).choice(yes, 128), device=device),
    torch.tensor(np.random.default_rng(1).choice(no, 128), device=device),
)
true, made = true_rows[pick], gan.make(kinds)

share = torch.rand(128, 1, device=device)  # a point between a true and a made row
between = (share * true + (1 - share) * made.detach()).requires_grad_()
scored_between = gan.scores(between, kinds).sum()
(slope,) = torch.autograd.grad(scored_between, between, create_graph=True)
penalty = ((slope.norm(dim=1) - 1) ** 2).mean()  # the critic's slope is to be 1

gap = gan.scores(true, kinds).mean() - gan.scores(made.detach(), kinds).mean()
critic_loss = 10 * penalty - gap  # see true and made apart
generator_loss = -gan.scores(made, kinds).mean()  # be taken for true

# %% [markdown]
# The package repeats that three to one, keeps the generator whose columns come nearest to the true ones, and stops one
# that diverges. How well can a forest tell its rows from true ones? ½ would be perfect, 1 a give-away.

# %%
g_forest = guess("AUC of a forest that tells made from true purchases?", 0.5, 1, 0.01)
g_forest

# %%
torch.manual_seed(0)
gan = RowGAN(data.schema).to(device)
history = gan.train_on(rows, "purchase", steps=50 if FAST else 400)

# %% tags=["plumbing"]
# @title Does it work? Four looks
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import cross_val_predict


def cells(numeric, categorical):
    return np.concatenate([numeric.cpu().numpy(), categorical.cpu().numpy()], axis=1)


real_part = rows.take(yes)
n_real = len(yes)
torch.manual_seed(1)
near = torch.cdist(real_part.numeric, real_part.numeric).topk(6, largest=False).indices[:, 1:]
second = near[torch.arange(n_real), torch.randint(5, (n_real,), device=device)]
share = torch.rand(n_real, 1, device=device)
smote = (
    torch.lerp(real_part.numeric, real_part.numeric[second], share),
    torch.where(share < 0.5, real_part.categorical, real_part.categorical[second]),
)
gan_rows = gan.sample(n_real)
try:  # SMOTE for mixed columns by imbalanced-learn, where that is installed
    from imblearn.over_sampling import SMOTENC
except ImportError:
    SMOTENC = None
real = cells(real_part.numeric, real_part.categorical)
made_by = {"GAN": cells(*gan_rows), "SMOTE": cells(*smote)}


def told_apart(made):
    x, label = np.concatenate([real, made]), np.repeat([0, 1], [len(real), len(made)])
    forest = RandomForestClassifier(100, min_samples_leaf=3, random_state=0)
    return auc(label, cross_val_predict(forest, x, label, cv=3, method="predict_proba")[:, 1])


forests = {name: told_apart(made) for name, made in made_by.items()}
if SMOTENC:
    every, kind_ = cells(rows.numeric, rows.categorical), rows.labels["purchase"].cpu().numpy()
    codes_ = [*range(len(SHOP_NUMERIC), every.shape[1])]
    sampler = SMOTENC(codes_, sampling_strategy={1: 2 * n_real}, random_state=0)
    forests["SMOTE-NC"] = told_apart(sampler.fit_resample(every, kind_)[0][-n_real:])
numbers = slice(0, len(SHOP_NUMERIC))
later = data.test.numeric[data.test.labels["purchase"] == 1]
distance = {
    name: torch.cdist(each, real_part.numeric).min(1).values.cpu().numpy()
    for name, each in {"true, later": later, "GAN": gan_rows[0], "SMOTE": smote[0]}.items()
}
fig = plots.figure(4.1)
axes = fig.subplots(2, 2)
(a, b), (c, d) = axes
order = [
    SHOP_NUMERIC.index(name)
    for name in ("log_price", "age", "user_past_ctr", "item_seen", "days_since_click")
]
for shift, (name, x) in zip((-0.25, 0, 0.25), {"true": real, **made_by}.items(), strict=True):
    quart = np.quantile(x[:, order], (0.1, 0.5, 0.9), axis=0)
    color = {"true": ORANGE, "GAN": WINE, "SMOTE": OLIVE}[name]
    at_ = np.arange(len(order)) + shift
    a.vlines(at_, quart[0], quart[2], color=color, lw=3)
    a.plot(at_, quart[1], "o", color=color, mec="white", label=name)
a.set_xticks(range(len(order)), ["price", "age", "user's ctr", "item seen", "days since"], fontsize=8)
a.set(title="Marginals: 10, 50, 90 %", ylabel="standard deviations")
for name, color in (("GAN", WINE), ("SMOTE", OLIVE)):
    upper = np.triu_indices(len(SHOP_NUMERIC), 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        pair = [np.corrcoef(x[:, numbers].T)[upper] for x in (real, made_by[name])]
    b.plot(*pair, ".", color=color, ms=2.5)
b.plot([-1, 1], [-1, 1], color=GREY, lw=1, ls="--")
b.set(title="Correlations of columns", xlabel="true", ylabel="made", xlim=(-1, 1), ylim=(-1, 1))
for name, values in distance.items():
    color = {"true, later": ORANGE, "GAN": WINE, "SMOTE": OLIVE}[name]
    dash = "--" if name == "true, later" else "-"
    c.plot(np.sort(values), np.linspace(0, 1, len(values)), color=color, ls=dash)
a.plot([], [], color=ORANGE, ls="--", label="true, later (distance)")
c.set(title="Distance to the nearest training purchase", xlabel="distance", ylabel="share of rows")
c.set(xlim=(0, np.quantile(distance["true, later"], 0.98) * 1.2), ylim=(0, 1))
d.barh([*forests], [*forests.values()], color=[WINE, OLIVE, NAVY][: len(forests)], height=0.5)
d.axvline(0.5, color=GREY, ls="--", lw=1)
plots.value_labels(d, ".2f")
d.set(xlim=(0.4, 1.1), xlabel="AUC of the forest (dashed: chance)", title="Told from true rows")
g_forest.mark(d)
plots.legend_outside(fig, a)
display(fig, g_forest.answer(forests["GAN"]))
near_, far_ = np.median(distance["GAN"]), np.median(distance["true, later"])
Markdown(
    f"A made row lies {near_:.1f} from the nearest training purchase, a true later one {far_:.1f} (medians): "
    + ("it does not merely remember. " if near_ > 0.5 * far_ else "it remembers. ")
    + f"SMOTE's rows lie between two training rows by construction, {np.median(distance['SMOTE']):.1f} away."
    + (f" imbalanced-learn's SMOTE-NC: {forests['SMOTE-NC']:.2f}." if SMOTENC else "")
)

# %% [markdown]
# **When it breaks.** Take the penalty away, or raise the learning rate, and look at how far the made numbers spread:
# *mode collapse* is a generator that found one row the critic likes, and says it again and again. And a run that diverges is named and stopped.

# %% tags=["plumbing"]
# @title Collapse and divergence, provoked
pairs = {*map(tuple, rows.categorical[:, :2].cpu().tolist())}


def fits(codes):
    return np.mean([tuple(row) in pairs for row in codes[:, :2].tolist()])


runs_ = {"as it is": (gan, history)}
for name, how in {"no penalty": {"penalty": 0.0}, "learning rate 3": {"lr": 3.0}}.items():
    torch.manual_seed(0)
    other = RowGAN(data.schema).to(device)
    story = other.train_on(rows, "purchase", steps=50 if FAST else 150, **how)
    runs_[name] = other, story
shown, PRODUCTS = {}, f"different products among {n_real}"
two_columns = [SHOP_NUMERIC.index(name) for name in ("log_price", "user_past_ctr")]
fig = plots.figure(2.1)
panels = dict(zip(runs_, fig.subplots(1, 3, sharex=True, sharey=True), strict=True))
for name, (each, story) in runs_.items():
    numeric, codes = each.sample(n_real)
    panels[name].plot(*real[:, two_columns].T, ".", color="#C9CED4", ms=4)
    panels[name].plot(*numeric[:200, two_columns].cpu().T, ".", color=WINE, ms=3)
    ended = story.attrs["stopped"].partition(":")[0].replace("diverged at", "stopped at")
    early = ended + (": untrained" if ended == "stopped at step 1" else "")
    title = f"{name}\n({early})" if ended else name
    panels[name].set_title(title, fontsize=9)
    panels[name].set(xlabel="log price", xlim=(-3, 3), ylim=(-3, 4))
    codes = codes[:, :3].cpu().numpy()  # category, sub-category, brand
    shown[name] = {
        PRODUCTS: len(np.unique(codes, axis=0)),
        "sub-category belongs to category": fits(codes),
        "deviation of numbers": numeric.std(0).mean().item(),
        "distance of the marginals": each.distance(true_rows[torch.as_tensor(yes, device=device)]),
        "stopped": story.attrs["stopped"].partition(":")[0] or "no",
    }
some = real[:, len(SHOP_NUMERIC) :][:, :3]
shown["(true purchases)"] = {
    PRODUCTS: len(np.unique(some, axis=0)),
    "sub-category belongs to category": 1.0,
    "deviation of numbers": real[:, numbers].std(0).mean(),
}
panels["as it is"].set_ylabel("user's click rate")
shown_ = pd.DataFrame(shown).T.infer_objects().astype({PRODUCTS: int})
display(fig, plots.table(shown_.rename_axis("generator"), digits=2))
spread_ = {name: each["deviation of numbers"] for name, each in shown.items()}
wrong = 1 - shown["as it is"]["sub-category belongs to category"]
Markdown(
    f"Of the generator's own rows {wrong:.0%} show a product that cannot be, such as a puzzle under *garden*. That is one thing the forest can see. One possible reason: "
    f"each category is drawn by itself, and {n_real} purchases are few to learn which go together. Without the penalty the numbers spread over {spread_['no penalty']:.2f} standard deviations instead of {spread_['(true purchases)']:.2f}"
    f"{': they crowd together' if spread_['no penalty'] < 0.5 * spread_['as it is'] else ''} "
    f"({shown['no penalty'][PRODUCTS]} different products, {shown['as it is'][PRODUCTS]} with it: the count alone would {'have shown it' if shown['no penalty'][PRODUCTS] < 0.5 * shown['as it is'][PRODUCTS] else 'not have shown it'}). Grey: true purchases; wine: made ones; "
    f"the third run {'was stopped' if shown['learning rate 3']['stopped'] != 'no' else 'went on'}."
)


# %% tags=["plumbing"]
# @title Bad input has a name
def tried(call):
    try:
        return call()
    except ValueError as error:
        return f"refused: {error}"


one_class = rows.take(no)
stopped = runs_["learning rate 3"][1].attrs["stopped"] or "went on"
some_, nil = torch.ones(4), torch.zeros(4)
bad_input = {
    "AUC of one class": f"{auc(np.zeros(4), np.arange(4.0))}: not defined, and no guess of one half",
    "a generator without one rare row": tried(
        lambda: RowGAN(data.schema).to(device).train_on(one_class, "purchase")
    ),
    "a generator that diverges": f"{stopped}; the best one is kept",
    "propensities of 0, clip 0.05": f"{doubly_robust(some_, some_, nil):.0f}: no row weighs more than 1 / 0.05",
    "a clip of 0": tried(lambda: doubly_robust(some_, some_, nil, clip=0.0)),
}
plots.table(pd.Series(bad_input, name="what comes back").rename_axis("given").to_frame())

# %% [markdown]
# Now what it is for. In training, positives are made r times as frequent; the slider says which share of the new ones
# comes from the generator instead of being copies. All else is that of over-sampling at its best setting.

# %% tags=["plumbing"]
# @title The share of made rows
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)


def at_share(share, what="auc"):
    if share:
        return runs("treatments", "GAN", f"share {share}", what)
    return runs("treatments", "over-sampling", what=what)


by_share = judge({share: at_share(share) - at_share(0.0) for share in SHARES[1:]})
fig = plots.figure(2.8)
left, right = fig.subplots(1, 2)
for ax, what, label in ((left, "auc", "AUC of purchase"), (right, "log_loss", "log-loss after correction")):
    each = pd.DataFrame({share: at_share(share, what) for share in SHARES})
    ends = [mean_interval(each[share]) for share in SHARES]
    ax.vlines(SHARES, [i.low for i in ends], [i.high for i in ends], color="#C9CED4", lw=2.4)
    ax.plot(SHARES, each.mean(), "o-", color=WINE)
    ax.set(xlabel="share of the new positives that is made", ylabel=label, xlim=(-0.05, 1.05))
left.set_title("Eight shops, means with 95 %")
right.axhline(base_loss, color=GREY, ls="--", lw=1)
right.set_title("Dashed: always the base rate")
share_marks = [ax.axvline(0, color=plots.HERE, lw=10, alpha=0.5, animated=True) for ax in (left, right)]


def shares(state):
    share = state["share"]
    for mark in share_marks:
        mark.set_xdata([share, share])
    text = f"{share:.0%} made: AUC {at_share(share).mean():.3f}"
    if share:
        text += f", against copies alone {tell(by_share[share])}"
    return f"{text}; log-loss {at_share(share, 'log_loss').mean():.4f}."


display(
    Explorer(
        fig,
        [choice_slider("share", "share of made rows", SHARES, 0.5, fmt=".0%")],
        shares,
        title="Over-sampling with a share of generated rows",
    )
)
(own_tuning,) = judge({"": runs("treatments", "GAN") - runs("treatments", "over-sampling")}).values()
cost_ = (
    runs("treatments", "GAN", what="seconds").mean()
    / runs("treatments", "over-sampling", what="seconds").mean()
)
knobs_ = picked[picked["part"] == "treatments"].set_index("contestant")[["lr", "weight_decay", "own"]]
alike = np.allclose(knobs_.loc["GAN"], knobs_.loc["over-sampling"])
Markdown(
    f"With settings of its own, the generator against plain copies: {tell(own_tuning)}, at {cost_:.0f} times the time. "
    + "(This is the slider's 100 %: tuning chose the same setting for both.) " * alike
    + "A "
    "generator learns who buys from the same few purchases; it cannot know more of them than they say."
)

# %% [markdown]
# ## 4 · Attention for the rare task
#
# "Use attention" can mean two things. **(a)** A user's past clicks are summed up *for this candidate*: an event counts as
# much as it says about the product shown (DIN). **(b)** Each task weighs the *columns* before the shared layers
# (squeeze-and-excitation). By hand, (a) for one row with three past clicks:

# %%
torch.manual_seed(0)
event, candidate = torch.randn(3, 8), torch.randn(8)  # vectors of sub-categories
times = torch.tensor([[0.1, 0.0], [0.8, 0.0], [1.2, 1.0]])  # log hours, bought
weigh = nn.Sequential(nn.Linear(26, 16), nn.ReLU(), nn.Linear(16, 1))
wanted = candidate.expand(3, -1)
weights = weigh(torch.cat([event, wanted, event * wanted, times], dim=1))  # (3, 1)
summary = (weights * torch.cat([event, times], dim=1)).sum(0)  # one vector for the user

# %% tags=["plumbing"]
# @title Two models trained on click and purchase, and their maps
past = history_sequences(frame, 10)
subs = data.encoder.categories_["sub_category"]
of_item = frame.drop_duplicates("item_id").set_index("item_id")["sub_category"]
code = np.zeros(len(log.items) + 1, np.int64)
code[of_item.index + 1] = subs.get_indexer(of_item) + 1
events = torch.from_numpy(code[past["item"]]).to(device)
hours = np.concatenate([np.log1p(past["hours"]) / 3, past["bought"]], axis=1).astype(np.float32)
hours = torch.from_numpy(hours).to(device)
known = frame["impression_id"].isin(data.frames["train"]["impression_id"]).to_numpy()
index = torch.as_tensor(np.flatnonzero(known)[: len(rows)], device=device)
told = replace(
    rows,
    numeric=torch.cat([rows.numeric, hours[index]], 1),
    categorical=torch.cat([rows.categorical, events[index]], 1),
)


def pair(kind, part, seed=0):
    torch.manual_seed(seed)
    model = begin(kind(data.schema, (CLICK, PURCHASE), embedding_dim=4), part)
    stream, unit = batches_of(part, seed=seed), {}
    for task in ("click", "purchase"):
        rate = part.labels[task].mean().item()
        unit[task] = -(rate * np.log(rate) + (1 - rate) * np.log(1 - rate))

    def objective():
        batch = next(stream)
        logits = model(batch.numeric, batch.categorical)
        return sum(bce(logits[task], batch.labels[task]) / unit[task] for task in unit)

    return train(model, objective).eval()


attentive, gated = pair(HistoryBottom, told), pair(GatedBottom, rows)
with torch.no_grad():
    weight = attentive.attention(told.numeric, told.categorical)[0].cpu().numpy()
    gates = gated.gate(gated.features(rows.numeric, rows.categorical))
of_sub = pd.Series([*subs], index=range(1, len(subs) + 1))
parent = frame.drop_duplicates("sub_category").set_index("sub_category")["category"]
there = told.categorical[:, -10:].cpu().numpy()
want = rows.categorical[:, SHOP_CATEGORICAL.index("sub_category")].cpu().numpy()
seen, ahead = there > 0, np.repeat(want[:, None], 10, axis=1)
kind = pd.DataFrame(
    {
        "candidate": of_sub.reindex(ahead[seen]).map(parent).to_numpy(),
        "event": of_sub.reindex(there[seen]).map(parent).to_numpy(),
        "same": ahead[seen] == there[seen],
        "weight": weight[seen],
        "hours": told.numeric[:, len(SHOP_NUMERIC) : len(SHOP_NUMERIC) + 10].cpu().numpy()[seen],
    }
)
fig = plots.figure(3.6)
left, right = fig.subplots(1, 2, width_ratios=(1, 1.15))
grid = kind.pivot_table(index="candidate", columns="event", values="weight")
extent = np.abs(grid.to_numpy()).max()
left.imshow(grid, cmap="PuOr_r", vmin=-extent, vmax=extent, aspect="auto")
for (i, j), value in np.ndenumerate(grid.to_numpy()):
    ink = "white" if abs(value) > 0.7 * extent else INK
    left.text(j, i, plots.minus(f"{value:.2f}"), ha="center", va="center", fontsize=7, color=ink)
left.set_xticks(range(len(grid)), grid.columns, rotation=45, ha="right", fontsize=8)
left.set_yticks(range(len(grid)), grid.index, fontsize=8)
left.set(xlabel="past click", ylabel="candidate", title="(a) weight of an event")
left.grid(visible=False)
columns = [*SHOP_CATEGORICAL, *SHOP_NUMERIC]
mean = pd.DataFrame({task: gate.mean(0).cpu() for task, gate in gates.items()}, index=columns)
top = mean.sub(1).abs().max(axis=1).nlargest(12).index
mean = mean.loc[top].sort_values("purchase")
y = np.arange(len(mean))
for task, color in (("click", BLUE), ("purchase", ORANGE)):
    right.plot(mean[task], y, plots.task_style(task)["marker"], color=color, label=task)
right.hlines(y, mean.min(axis=1), mean.max(axis=1), color="#C9CED4", lw=1.5, zorder=0.9)
right.axvline(1, color=INK, lw=1)
right.set_yticks(y, mean.index, fontsize=8)
right.set(xlabel="gate (1: as it is)", title="(b) how much a column counts, by task")
plots.legend_outside(fig, right)
display(fig)
mine, rest = (kind.loc[kind["same"] == same, "weight"].mean() for same in (True, False))
Markdown(
    f"(a) An event of the candidate's own sub-category weighs {number(mine, 2)} on average, any other {number(rest, 2)}. Weights are a network's output, not shares: they may be negative, "
    f"and need not sum to one. (b) The twelve columns whose gates moved most. One shop, one start: maps of one model, no findings."
)

# %% [markdown]
# Maps look convincing whether or not they help. Does {{purchase}} gain? *Mean of history* is the control: the same events, without
# attention.

# %%
g_att = guess("AUC of purchase: attention minus a shared bottom without it?", -0.03, 0.03, 0.002)
g_att

# %% tags=["plumbing"]
# @title Effect, eight shops
found = gains("attention", ("gates", "mean of history", "attention"), "shared bottom")
found["attention − its control"] = runs("attention", "attention") - runs("attention", "mean of history")
by_map = judge(found)
stands = standing(by_map)
fig = plots.figure(2.2)
ax = fig.subplots()
plots.interval_rows(ax, found, holm=stands, digits=3)
ax.set_xlabel(
    "AUC of purchase, minus a shared bottom of click and purchase; last row: minus the mean of history"
)
ax.set_title(f"{len(stands) or 'None'} of 4 survive Holm's correction")
g_att.mark(ax)
display(fig, g_att.answer(by_map["attention"][0].mean, digits=3))
Markdown(
    f"Attention: {tell(by_map['attention'])}; against the plain mean of the same ten events {tell(by_map['attention − its control'])}. Gates: {tell(by_map['gates'])}. One possible reason: the features of this shop already count a user's clicks by "
    f"category, day and week, so a history tells little that is new; with longer histories and millions of rows DIN's authors report gains."
)

# %% [markdown]
# ## 5 · Calibrate each task before fusion
#
# A ranked list adds what a row brings: $s = a\,p(\text{click}) + m \cdot \text{price} \cdot p(\text{purchase})$, say 5 cents a
# {{click}} and a margin of 10 % of what is sold. Now every probability must mean what it says: a {{purchase}} model whose
# odds are inflated, by down-sampling without correction for example, drowns the {{click}}s. Its AUC would not tell.
# How much of the money stays if the odds are ten times too high?

# %%
g_money = guess("Money kept with purchase odds ten times too high?", 80, 100, 0.5, "%")
g_money

# %% tags=["plumbing"]
# @title One miscalibrated task bends the list
two = pair(SharedBottom, rows)
p = {part: predict(two, getattr(data, part)) for part in ("valid", "test")}
p = {part: {task: v.double().numpy() for task, v in found.items()} for part, found in p.items()}
test_frame = data.frames["test"].reset_index(drop=True)
price = test_frame["price"].to_numpy()
worth = 0.05 * test_frame["p_click"].to_numpy() + 0.10 * price * test_frame["p_purchase"].to_numpy()
session = test_frame.groupby("session_id").ngroup().to_numpy()


user = test_frame.groupby("user_id").ngroup().to_numpy()


def by_user(score):
    """What the three best of each session's products bring from each user, EUR, by the truth."""
    order = np.lexsort((-score, session))
    start = np.r_[True, session[order][1:] != session[order][:-1]]
    place = np.arange(len(order)) - np.maximum.accumulate(np.where(start, np.arange(len(order)), 0))
    top = order[place < 3]
    return np.bincount(user[top], worth[top], minlength=user.max() + 1)


def first_three(score):
    return by_user(score).sum()


def scored(click, purchase, factor=1.0):
    purchase = np.clip(purchase, 0, 1 - 1e-9)
    odds = factor * purchase / (1 - purchase)
    return 0.05 * click + 0.10 * price * odds / (1 + odds)


FACTORS = tuple(10.0 ** np.arange(-3, 3.1, 0.25))
ideal, chance = first_three(worth), np.mean([first_three(rng.random(len(worth))) for _ in range(5)])
earned = np.array([first_three(scored(p["test"]["click"], p["test"]["purchase"], f)) for f in FACTORS])
exact = np.array([first_three(scored(test_frame["p_click"], test_frame["p_purchase"], f)) for f in FACTORS])
unbent, middle_ = first_three(scored(p["test"]["click"], p["test"]["purchase"])), FACTORS.index(1.0)
fig = plots.figure(2.7)
ax = fig.subplots()
ax.plot(FACTORS, 100 * exact / ideal, color=GREY, label="true probabilities, bent")
ax.plot(FACTORS, 100 * earned / ideal, color=INK, label="the model's")
ax.axhline(100 * chance / ideal, color=GREY, ls="--", lw=1, label="random order")
ax.set(xscale="log", xlabel="factor on the odds of purchase", ylabel="% of the ideal money")
ax.set_title("First three products of each session, by the truth")
(here,) = ax.plot([], [], "o", color=plots.HERE, mec=INK, ms=11, animated=True)
plots.legend_outside(fig)


def bend(state):
    k = int(np.argmin(np.abs(np.log10(FACTORS) - state["log"])))
    here.set_data([FACTORS[k]], [100 * earned[k] / ideal])
    return (
        f"Odds × {FACTORS[k]:.3g}: the list earns {earned[k]:,.0f} EUR, {earned[k] / unbent - 1:+.1%} against unbent; "
        f"with true probabilities {exact[k] / ideal - 1:+.1%}. The AUC of purchase is the same at every stop."
        + f" This model earns most at × {FACTORS[int(earned.argmax())]:.2g}."
    )


kept_money = 100 * exact[FACTORS.index(10.0)] / ideal
display(g_money.answer(kept_money, digits=1))
Explorer(
    fig,
    [slider("log", "log10 of the factor", -3.0, 3.0, 2.0, step=0.25)],
    bend,
    title="A miscalibrated task bends the ranked list",
)

# %% [markdown]
# The guess is answered with the true probabilities, so that calibration alone is at fault. Three ways to mend it, each fitted
# on validation rows: **Platt** (a logistic regression of the logit), **isotonic** (any rising step function), **temperature**
# (the logit divided by one number). Each is a few lines of scikit-learn. Fit them for all rows, or per segment?

# %%
from scipy.optimize import minimize_scalar
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression


def logit(p):
    return np.log(p / (1 - p))


def platt(p, y):
    line = LogisticRegression(C=1e6).fit(logit(p)[:, None], y)
    return lambda p: line.predict_proba(logit(p)[:, None])[:, 1]


def isotonic(p, y):
    return IsotonicRegression(y_min=1e-5, out_of_bounds="clip").fit(p, y).predict


def temperature(p, y):
    def loss(t):
        q = np.clip(1 / (1 + np.exp(-logit(p) / t)), 1e-9, 1 - 1e-9)
        return -np.mean(y * np.log(q) + (1 - y) * np.log1p(-q))

    best = minimize_scalar(loss, bounds=(0.1, 5), method="bounded").x
    return lambda p: 1 / (1 + np.exp(-logit(p) / best))


# %% tags=["plumbing"]
# @title Calibrated on validation, judged on test by the truth
def gap_of(p, true):
    return np.mean([abs(p[r].mean() - true[r].mean()) for r in np.array_split(p.argsort(), 10)])


y_valid = {task: data.valid.labels[task].cpu().numpy() for task in ("click", "purchase")}
seg = {part: data.frames[part]["surface"].to_numpy() for part in ("valid", "test")}
bent_ = {
    "as trained": p,
    "down-sampled, not corrected": {
        part: {**found, "purchase": 20 * found["purchase"] / (1 + 19 * found["purchase"])}
        for part, found in p.items()
    },
}
redrawn = np.random.default_rng(0).poisson(1, (300, user.max() + 1))  # users drawn anew
ideal_by_user, out = by_user(worth), {}
for state, given in bent_.items():
    for name, way in {"none": None, "Platt": platt, "isotonic": isotonic, "temperature": temperature}.items():
        for each in ("all rows", "per surface") if way is platt else ("all rows",):
            mended = {}
            for task in ("click", "purchase"):
                mended[task] = given["test"][task].copy()
                for group in sorted(set(seg["test"])) if each == "per surface" else (None,):
                    v, t = (np.full(len(s), True) if group is None else s == group for s in seg.values())
                    enough = y_valid[task][v].sum() >= 2
                    if way and enough:
                        mended[task][t] = way(given["valid"][task][v], y_valid[task][v])(
                            given["test"][task][t]
                        )
            out[state, name, each] = {
                "gap of purchase, %": 100 * gap_of(mended["purchase"], truth["test"]),
                "AUC of purchase": expected_auc(truth["test"], mended["purchase"]),
            }
            money = by_user(scored(mended["click"], mended["purchase"]))
            without = money if name == "none" else without
            change = 100 * (redrawn @ (money - without)) / (redrawn @ ideal_by_user)
            out[state, name, each] |= {
                "% of the ideal money": 100 * money.sum() / ideal,
                "minus none, ± 95 %": ""
                if name == "none"
                else f"{number(100 * (money - without).sum() / ideal, 1)} ± {1.96 * change.std():.1f}",
            }
shown = pd.DataFrame(out).T.infer_objects()
shown = shown.rename_axis(["purchase model", "calibration", "fitted on"]).reset_index()
gap_at = {key: each["gap of purchase, %"] for key, each in out.items()}
start_gap, bent_gap = (gap_at[state, "none", "all rows"] for state in bent_)
mended_gaps = [gap for (state, name, _), gap in gap_at.items() if state == "as trained" and name != "none"]
worse = sum(gap > start_gap for gap in mended_gaps)
temp, line_ = (gap_at[[*bent_][1], name, "all rows"] for name in ("temperature", "Platt"))
display(plots.table(shown, digits=2))
n_valid = int(y_valid["purchase"].sum())
again = {
    part: predict(pair(SharedBottom, rows, 1), getattr(data, part))["purchase"] for part in ("valid", "test")
}
again = {part: v.double().numpy() for part, v in again.items()}
stale, own_ = (
    gap_of(platt(given, y_valid["purchase"])(again["test"]), truth["test"])
    for given in (p["valid"]["purchase"], again["valid"])
)
Markdown(
    f"The validation part holds {n_valid} purchases, so its own rate is known to ± {1.96 / np.sqrt(n_valid):.0%} only: no calibration on it can be relied on to do better "
    f"than that, and each segment has fewer. Of the model **as trained**, whose gap was {start_gap:.2f} %, {worse} of {len(mended_gaps)} calibrations made it worse ({min(mended_gaps):.2f} to {max(mended_gaps):.2f} %)"
    + (": calibrate only what is bent. " if worse > len(mended_gaps) / 2 else ". ")
    + f"The **bent** one comes from {bent_gap:.2f} to {line_:.2f} % by Platt and to {temp:.2f} % by temperature: that one turns all about p = ½ and has no knob for the level, "
    f"so {'a rest stays' if temp > 2 * line_ else 'what it gives is luck of the numbers'}. Isotonic makes ties, which cost AUC. Money: ± is from users drawn anew; what is smaller is noise.\n\n**After a retraining** with "
    f"another start, the old Platt line leaves a gap of {100 * stale:.2f} %, one fitted to the new model {100 * own_:.2f} %."
)

# %% [markdown]
# A calibration belongs to one trained model and is fitted anew after each retraining, on rows later than those that
# trained it. The order of work: train, correct what sampling did (a known factor), calibrate on validation, fuse, rank.
#
# ## 6 · Labels that selection hides
#
# A {{purchase}} is only seen where there was a {{click}}. So a model of $p(\text{purchase} \mid \text{click})$ learns from clicked rows, and is
# used on all. Clicked rows are no random sample: who clicks, likes. How much higher is that probability among clicks than among
# all impressions?

# %%
g_sel = guess("p(purchase | click): among clicks, times its mean over all rows?", 1, 4, 0.1)
g_sel

# %% tags=["plumbing"]
# @title By the truth
given, clicked = (test_frame[name].to_numpy() for name in ("p_purchase_given_click", "p_click"))
ratio = (given * clicked).sum() / clicked.sum() / given.mean()
edges = np.quantile(given, np.linspace(0, 1, 41))
fig = plots.figure(2.6)
ax = fig.subplots()
grid_ = np.geomspace(max(edges[1], 1e-4), 0.6, 50)
for weights_, color, name in (
    (np.ones_like(given), GREY, "all impressions"),
    (clicked, BLUE, "clicked ones"),
):
    height, _ = np.histogram(given, grid_, weights=weights_ / weights_.sum())
    ax.stairs(height, grid_, color=color, lw=2, label=name)
    ax.axvline(np.average(given, weights=weights_), color=color, ls="--", lw=1.4)
ax.set(xscale="log", xlabel="true p(purchase given click); dashed: the means", ylabel="share of rows")
ax.set_title(f"Among clicks it is {ratio:.1f} times as high")
plots.legend_outside(fig)
display(fig, g_sel.answer(ratio, digits=1))

# %% [markdown]
# Notebook 06 drew the first answer, ESMM: it learns the product of both probabilities, on all rows. Some of that gap lies in features, which the model sees: it can be mended. Some lies in tastes that no column holds.
# The tools, for a row's error e (or value), whether it was seen o, and the **propensity** p that it is seen:
#
# - *naive*: mean of e over seen rows.
# - *ESMM*: learn p(click) · p(purchase | click) on all rows (notebook 06).
# - *IPS*: mean of o·e/p over **all** rows; a row that is seldom seen stands for many.
# - *doubly robust (DR)*: mean of ê + o (e − ê)/p with a guess ê for every row: right when either p or ê is.
# - *ESCM²*: ESMM's loss plus IPS or DR.
#
# By hand, and from the package:

# %%
o = torch.tensor([1.0, 0.0, 1.0, 0.0])
e = torch.tensor([0.2, 9.0, 0.6, 9.0])  # 9: never seen
prop, guessed = torch.tensor([0.5, 0.1, 0.9, 0.02]), torch.tensor([0.3, 0.4, 0.5, 0.1])
clip = prop.clamp(min=0.05)  # a propensity of 0 would weigh infinitely
ips = (o * e / clip).mean()
dr = (guessed + o * (e - guessed) / clip).mean()
assert torch.isclose(ips, doubly_robust(e, o, prop))
assert torch.isclose(dr, doubly_robust(e, o, prop, guessed))

# %% [markdown]
# Two worlds in each of eight shops. **Hidden**: the shop's own clicks, which follow tastes that no column holds. **Observed**:
# clicks drawn anew from probabilities that a model makes of the features alone. In each we estimate the mean of
# p(purchase | click) over all impressions, whose truth is known, with a propensity that is learned. Drag the clip.

# %%
g_bias = guess("Hidden selection: IPS off by how much, at a clip of 0.01?", -50, 150, 5, "%")
g_bias

# %% tags=["plumbing"]
# @title Propensity clipping, eight shops
CLIPS, WORLDS = (0.01, 0.02, 0.05, 0.1, 0.2), ("observed", "hidden")
ESTIMATES = {"naive": GREY, "IPS": WINE, "DR": NAVY, "IPS, true propensity": OLIVE}


def bias(name, world, clip):
    own = 0.0 if name == "naive" else clip
    mean, true_ = (runs("estimate", name, what=w, world=world, own=own) for w in ("mean", "true_mean"))
    return 100 * (mean / true_ - 1)


biases = {
    (name, world, clip): mean_interval(bias(name, world, clip))
    for name in ESTIMATES
    for world in WORLDS
    for clip in CLIPS
}
ends = [end for i in biases.values() for end in (i.low, i.high)]
fig = plots.figure(3.2)
marks = {}
for ax, world in zip(fig.subplots(1, 2, sharey=True), WORLDS, strict=True):
    for y, (name, color) in enumerate(ESTIMATES.items()):
        line = ax.plot([], [], color=color, lw=2.4, animated=True)[0]
        marks[name, world] = line, ax.plot([], [], "o", color=color, ms=8, mec="white", animated=True)[0], y
    ax.axvline(0, color=INK, lw=1)
    ax.set(xlim=(min(ends) - 8, max(ends) + 8), xlabel="bias of the estimate, %")
    ax.set_title(f"{world.capitalize()} selection")
    ax.set_yticks(range(len(ESTIMATES)), list(ESTIMATES))
    ax.set_ylim(len(ESTIMATES) - 0.5, -0.5)


def clipped(state):
    for (name, world), (line, dot, y) in marks.items():
        i = biases[name, world, state["clip"]]
        line.set_data([i.low, i.high], [y, y])
        dot.set_data([i.mean], [y])
    text = [
        f"{world}: "
        + ", ".join(f"{name} {biases[name, world, state['clip']].mean:+.0f} %" for name in ESTIMATES)
        for world in WORLDS
    ]
    hid, seen_ips = (biases["IPS", world, state["clip"]] for world in ("hidden", "observed"))
    warning = (
        " IPS under hidden selection comes near 0: two errors of opposite sign, not a cure; under observed "
        f"selection the same clip gives {number(seen_ips.mean, 0)} %."
    ) * (not hid.excludes_zero and seen_ips.high < 0)
    return f"Propensities raised to {state['clip']:g}. Bias, {'; '.join(text)}.{warning}"


Explorer(
    fig,
    [choice_slider("clip", "clip", CLIPS, 0.01, fmt="g")],
    clipped,
    title="Estimates of p(purchase given click) over all impressions",
)

# %% tags=["plumbing"]
# @title What it says
low = {(n, w): biases[n, w, 0.01] for n in ESTIMATES for w in WORLDS}


def off_by(name, world):
    i = low[name, world]
    return f"{number(i.mean, 0)} % [{number(i.low, 0)}, {number(i.high, 0)}]"


mended_ = not low["DR", "observed"].excludes_zero
missed = low["IPS", "observed"].excludes_zero
dr_half = (low["DR", "observed"].high - low["DR", "observed"].low) / 2
p_seen, q_, N = np.maximum(clicked, 0.01), given * clicked, 19_000  # rows of a study's shop
clip_bias = 100 * ((q_ / p_seen).mean() / given.mean() - 1)  # exact: what is expected, by the truth
wide = 196 * np.sqrt((q_ / p_seen**2).mean() / N / 8) / given.mean()
Markdown(
    f"At the smallest clip: **observed** selection, naive {off_by('naive', 'observed')}, IPS {off_by('IPS', 'observed')}, DR {off_by('DR', 'observed')}: "
    + (f"DR's interval covers 0 (it could hide ± {dr_half:.0f} %). " if mended_ else "DR is off, too. ")
    + ("IPS is *not* mended: its interval leaves 0 out. " if missed else "IPS covers 0, too. ")
    + f"**Hidden** selection, naive {off_by('naive', 'hidden')}, IPS {off_by('IPS', 'hidden')}, DR {off_by('DR', 'hidden')}: "
    + (
        "a learned propensity does not see what decided, so the bias stays. "
        if low["IPS", "hidden"].low > 0 and low["DR", "hidden"].low > 0
        else "here the intervals are too wide to tell. "
    )
    + f"With the *true* propensity, which no shop has, IPS is off by {off_by('IPS, true propensity', 'hidden')}. The clip explains about {number(clip_bias, 0)} % (exact, on this page's shop); "
    f"purchases that were not in yet when the log was cut count as none, which takes some more; and about a hundred purchases a shop leave the mean of eight shops ± {wide:.0f} %. IPS is skewed, too: seldom far too high, mostly a little too low. "
    f"Raising the clip lowers variance and pulls IPS down: rows that were seldom seen count too little."
)

# %% [markdown]
# Estimating a mean is one thing, training a model another. Six models of p(purchase | click), each at its best of thirteen settings,
# judged on **all** impressions by the truth.

# %% tags=["plumbing"]
# @title Six ways to learn from selected labels
SIX = ("ESMM", "IPS", "DR", "ESCM²-IPS", "ESCM²-DR")
fig = plots.figure(2.9)
axes = fig.subplots(1, 2, sharey=True)
six = {
    (name, world): each
    for world in WORLDS
    for name, each in gains("selection", SIX, "naive", what="log_loss", world=world).items()
}
by_loss = judge(six)
for ax, world in zip(axes, WORLDS, strict=True):
    found = {name: six[name, world] for name in SIX}
    stands = {name for name, of in standing(by_loss) if of == world}
    plots.interval_rows(ax, found, holm=stands, digits=4)
    ax.set_xlabel("log-loss, minus naive (low is good)")
    ax.set_title(f"{world.capitalize()}: {len(stands)} of 5 survive Holm")
    ax.locator_params(axis="x", nbins=4)
display(fig)
level_ = {
    (name, world): mean_interval(
        100
        * (
            runs("selection", name, what="mean", world=world)
            / runs("selection", name, what="true_mean", world=world)
            - 1
        )
    )
    for name in ("naive", *SIX)
    for world in WORLDS
}
shown = pd.DataFrame(
    {
        f"{label}, {world}": {
            name: runs("selection", name, what=what, world=world).mean() for name in ("naive", *SIX)
        }
        for world in WORLDS
        for what, label in (("auc", "AUC"), ("product_auc", "AUC of p(click) · p"))
    }
    | {
        f"mean p off by, {w}": {n: f"{number(level_[n, w].mean, 0)} %" for n in ("naive", *SIX)}
        for w in WORLDS
    }
)
display(plots.table(shown.rename_axis("model"), digits=3))


def off(name, world):
    i = level_[name, world]
    return f"{number(i.mean, 0)} % [{number(i.low, 0)}, {number(i.high, 0)}]"


# log-loss: a mean below 0 is the better one
good, bad = (
    [f"{n} ({w})" for (n, w), (_, _, word) in by_loss.items() if word == sign] for sign in ("behind", "ahead")
)
too_high = [n for n in ("naive", *SIX) if level_[n, "hidden"].low > 0]
Markdown(
    f"Log-loss lower than naive's after Holm's correction over {len(by_loss)} contrasts: {', '.join(good) or 'none'}; higher: {', '.join(bad) or 'none'}. The mean of what they say is "
    f"off, naive: {off('naive', 'observed')} under observed and {off('naive', 'hidden')} under hidden selection; DR: {off('DR', 'observed')} and {off('DR', 'hidden')}; ESCM²-DR: "
    f"{off('ESCM²-DR', 'observed')} and {off('ESCM²-DR', 'hidden')}. Under hidden selection {len(too_high)} of {len(SIX) + 1} models promise too much. "
    + (f"For *estimates* DR mended observed selection, within ± {dr_half:.0f} %; " if mended_ else "")
    + ("for *trained models* no loss was told from naive. " if not good and not bad else "")
    + "What would mend hidden selection, though not run here, is data: show some products at random, so that propensities are known."
)

# %% [markdown]
# ## 7 · Rows without a label
#
# Back to the first question. Both auxiliary tasks begin with a corrupted row: some cells are replaced by that column's value
# in another row. **Reconstruction** says what stood there. **Contrast** (SCARF) finds, for each row, its own corrupted copy
# among those of the batch. By hand:

# %%
torch.manual_seed(0)
x, c = rows.numeric[:64], rows.categorical[:64]
hit = torch.rand(x.shape, device=device) < 0.6
donor = torch.randint(64, x.shape, device=device)  # a row of its own for every cell
disguised = torch.where(hit, x.gather(0, donor), x)

a, b = (each / each.norm(dim=1, keepdim=True) for each in (x, disguised))
likeness = a @ b.T  # row i against every copy
by_hand = -likeness.log_softmax(1).diagonal().mean()
assert torch.isclose(by_hand, info_nce(x, disguised))

# Reconstruction: say what stood there before; of replaced cells alone, numbers by
# squared error, categories by cross-entropy.
head = nn.Linear(x.shape[1], x.shape[1], device=device)
reconstruction = ((head(disguised) - x) ** 2)[hit].mean()
assert torch.equal(corrupt(x, c, 0.0)[0], x)

# %% [markdown]
# A real encoder learns it from Z instead of the raw cells. Trained on all rows without any label: can it see through the
# disguise? And does its Z know more of {{purchase}} than a fresh one, by a logistic regression on 500 labels?

# %% tags=["plumbing"]
# @title A contrastive pre-training, watched
torch.manual_seed(0)
bottom = SharedBottom(data.schema, [PURCHASE], embedding_dim=4).to(device)
fresh = deepcopy(bottom)
task = Contrast(bottom).to(device)
stream, losses = batches_of(rows, 256), []


def objective():
    batch = next(stream)
    loss = task(batch.numeric, batch.categorical)
    losses.append(loss.item())
    return loss


train(task, objective, steps=60 if FAST else 300, decay=0.0)
sample = torch.as_tensor(np.r_[yes[:20], np.random.default_rng(0).choice(no, 480)], device=device)


def probe(model):
    with torch.no_grad():
        z_ = [
            model.represent(part.numeric, part.categorical).cpu().numpy()
            for part in (rows.take(sample), data.test)
        ]
    scale = z_[0].std(0) + 1e-6
    label = rows.labels["purchase"][sample].cpu().numpy()
    line = LogisticRegression(C=0.01, max_iter=500).fit(z_[0] / scale, label)
    return expected_auc(truth["test"], line.predict_proba(z_[1] / scale)[:, 1])


probes = {"fresh": probe(fresh), "after contrast": probe(bottom), "after purchase, all labels": probe(plain)}
fig = plots.figure(2.5)
left, right = fig.subplots(1, 2)
left.plot(losses, color=WINE, lw=1)
left.axhline(np.log(256), color=GREY, ls="--", lw=1)
left.set(xlabel="step", ylabel="loss (nats)", title="Recognising a row (dashed: chance)")
right.barh(list(probes), list(probes.values()), color=[GREY, WINE, ORANGE], height=0.55)
plots.value_labels(right, ".3f")
right.set(xlim=(0.4, 1.0), xlabel="AUC of purchase, a line on Z", title="500 rows, 20 of them purchases")
right.invert_yaxis()
display(fig)
end_, gained = np.mean(losses[-20:]), probes["after contrast"] - probes["fresh"]
answer_ = "no, not by more than .02" if abs(gained) < 0.02 else "yes" if gained > 0 else "no, less"
Markdown(
    f"Through the disguise: {'yes' if end_ < np.log(256) - 1 else 'hardly'}, the loss falls from {np.log(256):.2f} nats (chance) to {end_:.2f}, as if one guessed among "
    f"{np.exp(end_):.0f} rows instead of 256. More of the purchase: {answer_} ({number(gained)} of AUC; one sample of 500 rows, one start; all labels: {number(probes['after purchase, all labels'] - probes['fresh'])})."
)

# %% tags=["plumbing"]
# @title Jointly, first, or by oneself: all budgets
written = {
    f"{budget:,} labels": {
        SAID.get(n, n): span(by_label[n, budget][0]) + " ★" * ((n, budget) in standing(by_label))
        for n in others
    }
    for budget in BUDGETS
}
display(plots.table(pd.DataFrame(written).rename_axis("AUC, minus alone")))
two_ways = judge(
    {
        "first": runs("labels", "contrast first", "500") - runs("labels", "contrast", "500"),
        "clicks only": runs("floor", "click model") - runs("labels", "alone", "500"),
    }
)
Markdown(
    f"{len(standing(by_label))} of {len(by_label)} contrasts carry a star. Contrast *first* against contrast *jointly*, at 500 labels: {tell(two_ways['first'])}. A model of the click "
    f"alone, which never saw a purchase, against *alone*: {tell(two_ways['clicks only'])}. Only the contrast was tried first. One possible reason why so little is gained: the features were made by hand to tell who buys, and leave little structure to discover; "
    f"raw text or long histories leave more (notebook 09)."
)

# %% [markdown]
# **Self-training.** A model labels the rows it is surest of, and learns from them; where it is wrong, its own mistakes come
# back as labels. Here the teacher saw 500 rows, 20 of them purchases: more than the shop would have, so its odds are corrected
# as in section 2. It is asked about rows it never saw.

# %% tags=["plumbing"]
# @title How right is a sure model?
few, unseen = rows.take(sample), np.setdiff1d(np.arange(len(rows)), sample.cpu())
teacher = single(few)
others_unseen = rows.take(torch.as_tensor(unseen, device=device))
sure = predict(teacher, others_unseen)["purchase"].double().numpy()
sure = correct_downsampling(sure, (480 / len(no)) / (20 / len(yes)))  # negatives over purchases
order = sure.argsort()[::-1]
label = others_unseen.labels["purchase"].cpu().numpy()
tops = [max(1, int(share * len(order))) for share in (0.0005, 0.001, 0.005, 0.02, 0.1)]
right_ = [label[order[:n]].mean() for n in tops]
fig = plots.figure(2.6)
ax = fig.subplots()
ax.plot(tops, right_, "o-", color=ORANGE, label="truly purchases")
ax.plot(tops, [sure[order[:n]].mean() for n in tops], "s--", color=INK, label="what the teacher believes")
ax.axhline(base_rate, color=GREY, ls="--", lw=1, label="base rate")
ax.set(xscale="log", yscale="symlog", ylim=(0, 1))
ax.set_yscale("symlog", linthresh=0.005)
ax.set(xlabel="rows labelled as purchases, surest first", ylabel="share")
n_top, is_right, believed = tops[2], right_[2], sure[order[: tops[2]]].mean()
noise = 1.96 * np.sqrt(believed * (1 - believed) / n_top)
verdict = (
    "is as right as it believes, within noise" if abs(is_right - believed) <= noise
    else "believes too much" if believed > is_right
    else "is more right than it believes"
)  # fmt: skip
ax.set_title(f"Surest {n_top} rows: {is_right:.1%} purchases, believed {believed:.1%}: it {verdict}")
plots.legend_outside(fig)
display(fig)
fail = by_label["self-training", 500]
Markdown(
    f"Of the surest {n_top} rows {is_right:.1%} are purchases, so {1 - is_right:.0%} of such labels would be wrong. In the study, with 500 labels: against *alone* {tell(fail)}.\n\n"
    f"**What surprised you?** The teacher {verdict} ({is_right:.1%} against {believed:.1%} ± {noise:.1%}), yet its surest rows are {'mostly no' if is_right < 0.5 else 'mostly'} purchases: "
    "with a rare label the surest is not sure. And a task without labels competes with every label that is cheap."
)

# %% [markdown]
# ## My label is rare: what first?

# %% tags=["plumbing"]
# @title A decision table, with what this page measured
no_better = not good
unlabelled = {"a tie": "not shown to help", "ahead": "helps, too", "behind": "does harm"}[primary[2]]
beyond = ahead_of_start or "nothing was shown to add to that"
rival_ = by_label["click", 500], by_label["click", 1500]
advice = [
    ("few positives in the test part", "an interval before a model", f"± .02 of AUC takes {needed:,.0f} positives"),
    ("another label is plenty and related", "share with it; its own model is the rival", f"click, minus alone, at 500 labels: {tell(rival_[0])}; at 1,500: {tell(rival_[1])}"),
    ("training is too slow", "drop negatives, correct the odds", f"AUC, minus the base-rate start: {tell(by_start['down-sampling'])}"),
    ("only the loss can change", "start the bias at the base rate", f"AUC, minus a start at ½: {tell(by_treatment['logit adjustment'])}"),
    ("", f"then: {beyond}", f"highest: {best_start}, minus the base-rate start: {tell(by_start[best_start])}"),
    ("probabilities are added up", "undo the known factor; calibrate what is bent", f"odds × 100 cost {1 - exact[FACTORS.index(100.0)] / ideal:.0%} of the money"),
    ("someone proposes a GAN", "over-sampling at equal tuning; the forest's AUC", f"GAN, minus copies: {tell(own_tuning)}; forest {forests['GAN']:.2f}"),
    ("only selected rows know the label", f"randomise a little traffic; {'no loss beat naive here' if no_better else ', '.join(good) + ' beat naive'}", f"bias left, hidden: naive {off_by('naive', 'hidden')}, DR {off_by('DR', 'hidden')}"),
    ("many rows have no label at all", f"a cheaper label first; a task without labels: {unlabelled}", f"auxiliary tasks at 500: {tell(primary)}"),
]  # fmt: skip
plots.table(pd.DataFrame(advice, columns=["if", "then", "measured here"]))

# %% [markdown]
# ## Exercises
#
# Each has a stub that returns `...` and a check that tells you where you are. Stuck? Type `hint("08.focal", 1)` into a
# cell; levels go up to 3. `solution("08.focal")` shows commented source.
#
# **Exercise 1. Odds after sampling.**


# %%
from mtl_helpers.check import check, hint, solution, use


def undo_sampling(q, rate):
    """True probabilities from those of a model trained on a share of the negatives.

    q (n,) tensor, what the model says; rate, the share of negatives kept, 0 < rate ≤ 1.
    For example q = [0.5], rate = 0.1 gives [0.0909]: odds of 1 become odds of 0.1.
    """
    return ...


# %%
check("08.undo_sampling", undo_sampling)

# %% [markdown]
# **Exercise 2. The focal loss.**


# %%
def focal(logits, labels, gamma):
    """Mean of −(1 − p_t)^γ log p_t, a scalar; a gradient must flow to the logits.

    logits, labels (n,) float; p_t is the probability of what happened: p where the
    label is 1, 1 − p where it is 0. For example logits [0.], labels [1.], gamma 2
    give 0.1733.
    """
    return ...


# %%
check("08.focal", focal)

# %% [markdown]
# **Exercise 3. A mean over all rows from those that were seen.**


# %%
def selected_mean(values, seen, propensity, clip):
    """Inverse propensity estimate of the mean of ``values`` over all rows, a scalar.

    All (n,) float; values count where seen is 1. Propensities below clip count as clip.
    For example values [2., 9.], seen [1., 0.], propensity [0.5, 0.1], clip 0.05: 2.
    """
    return ...


# %%
check("08.selected_mean", selected_mean)

# %% [markdown]
# **Exercise 4. SCARF's corruption.**


# %%
def corrupt_rows(cells, hit, donors):
    """Cells (n, C) of which those where hit (n, C) is True come from other rows.

    Cell (i, c) then takes the value of column c in row donors[i, c], (n, C) int64.
    For example cells [[1.], [2.]], hit [[True], [False]] and donors [[1], [0]] give
    [[2.], [2.]].
    """
    return ...


# %%
check("08.corrupt_rows", corrupt_rows)

# %% tags=["plumbing"]
# @title Your functions at work
mend, mean_of = use("08.undo_sampling", undo_sampling), use("08.selected_mean", selected_mean)
fixed = mend(torch.tensor(answers[0.01][0]), 0.01)
seen_ = torch.tensor([1.0, 0.0, 1.0, 0.0])
Markdown(
    f"After 1 % of the negatives: mean p {answers[0.01][0].mean():.3f}, with yours **{fixed.mean():.4f}**; the truth {truth['test'].mean():.4f}. A mean of four rows of "
    f"which two were seen: **{mean_of(torch.tensor([1.0, 9.0, 3.0, 9.0]), seen_, torch.tensor([0.5, 0.5, 0.9, 0.1]), 0.05):.2f}**."
)

# %% [markdown]
# ## Self-check
#
# **1. "With 1 % positives an AUC of .95 is worth less than with 50 %."** True?
#
# <details><summary>Answer</summary>
#
# Not less, only less certain: AUC does not depend on the base rate. Its uncertainty depends on the number of positives
# (section 1). What the base rate does change is precision.
# </details>
#
# **2. "After down-sampling the order of the list is wrong until probabilities are corrected."** True?
#
# <details><summary>Answer</summary>
#
# No: the correction is monotone, so the order by this one task stays (section 2). It becomes wrong when the score adds
# this probability to something else (section 5).
# </details>
#
# **3. "IPS makes a model that was trained on clicks unbiased."** True?
#
# <details><summary>Answer</summary>
#
# If the propensities are right given all that decided, and none is near zero. Section 6: with selection by hidden taste
# a learned propensity is not enough.
# </details>

# %% [markdown]
# ## Summary
#
# - Rarity is variance: count positives, print intervals. Treatments of the loss and the sample bend probabilities: undo
#   the known factor by hand, the rest by calibration on later rows. Whether they better the order is to be measured.
# - Made rows know no more than the rows they were made from, and attention shows a map whether or not it helps. Ask for
#   the contrast at equal tuning, over several shops.
# - No loss of this page was a cure for selection by what no feature holds; what would mend it, though not run here, is data:
#   some products shown at random. Before unlabelled rows, look for a plentiful related label.
#
# **What the toy hides.** The features are made for these tasks; raw text, pictures and long sequences leave more for
# self-supervision to find (notebook 09 takes that up). **In production** keep the sampling rate of each row in the log: without it nothing can be
# corrected later.
#
# **Next:** [09_large_model_features](09_large_model_features.ipynb): vectors of large models as features, and what they cost.

# %% [markdown]
# ## References
#
# - X. He et al., *Practical Lessons from Predicting Clicks on Ads at Facebook*, ADKDD 2014: down-sampling and its correction.
# - T.-Y. Lin et al., *Focal Loss for Dense Object Detection*, ICCV 2017. N. Charoenphakdee et al., *On Focal Loss for
#   Class-Posterior Probability Estimation*, CVPR 2021: what its scores mean.
# - A. K. Menon et al., *Long-Tail Learning via Logit Adjustment*, ICLR 2021.
# - N. V. Chawla et al., *SMOTE: Synthetic Minority Over-sampling Technique*, JAIR 16, 2002.
# - I. Gulrajani et al., *Improved Training of Wasserstein GANs*, NeurIPS 2017.
# - G. Zhou et al., *Deep Interest Network for Click-Through Rate Prediction*, KDD 2018. J. Hu et al.,
#   *Squeeze-and-Excitation Networks*, CVPR 2018. T. Huang et al., *FiBiNET*, RecSys 2019.
# - X. Ma et al., *Entire Space Multi-Task Model*, SIGIR 2018. H. Wang et al., *ESCM²: Entire Space Counterfactual
#   Multi-Task Model for Post-Click Conversion Rate Estimation*, SIGIR 2022. X. Wang et al., *Doubly Robust Joint Learning
#   for Recommendation on Data Missing Not at Random*, ICML 2019.
# - D. Bahri et al., *SCARF: Self-Supervised Contrastive Learning using Random Feature Corruption*, ICLR 2022.
# - J. A. Hanley and B. J. McNeil, *The Meaning and Use of the Area under a Receiver Operating Characteristic (ROC)
#   Curve*, Radiology 143, 1982.
