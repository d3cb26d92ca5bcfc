# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # Sharing architectures: who shares what?
#
# **Promise.** You will build five well-known ways to share layers, by hand, see what their gates decide, and
# learn what it takes to say that one is better than another.
#
# {{colab_badge}} · [glossary](glossary.md) · about ninety minutes to read, about a minute to run on two CPU cores (no GPU needed) · builds on
# [02_shared_bottom](02_shared_bottom.ipynb) and [04_weighting_strategies](04_weighting_strategies.ipynb)

# %% [markdown]
# **You will be able to**
#
# - *build* cross-stitch, MMoE, CGC/PLE, ESMM and AITM, and *say* which parameters each task owns;
# - *read* gates as a map of experts by task and by segment;
# - *provoke* a collapsed gate, and *mend* it in three ways;
# - *compare* architectures with the same number of parameters and the same tuning.

# %%
# {{setup}}

# %% tags=["plumbing"]
# @title Where this notebook stands in the course
from mtl_helpers.widgets import course_map

course_map("06")

# %% [markdown]
# ## Recap: a shared bottom shares everything below its towers
#
# In notebook 02 every task read the same representation. In notebook 04 we weighed losses and gradients, and
# left the network alone. Now we change the network: what is shared, and who decides. We train on the latest 80,000
# rows of the log, which keeps the notebook quick; their features know the whole log.

# %% tags=["plumbing"]
# @title Imports
from IPython.display import display

from mtl_helpers.data import (
    SHOP_CATEGORICAL,
    SHOP_NUMERIC,
    SHOP_TASKS,
    load_shop,
    prepare,
    shop_frame,
    shop_splits,
)
from mtl_helpers.widgets import figures as plots

frames = shop_splits(shop_frame(load_shop()).tail(80_000))
splits = prepare(frames, SHOP_TASKS, SHOP_NUMERIC, SHOP_CATEGORICAL, device=device)
names = [task.name for task in splits.tasks]
batch = next(splits.train.batches(6, shuffle=False))
print(
    "tasks", names, "· numeric", tuple(batch.numeric.shape), "· categorical", tuple(batch.categorical.shape)
)

# %% [markdown]
# `mtl_helpers.models` has them all, with one contract: `model(numeric, categorical)` gives one tensor of logits
# per task. Each knows which parameters a single task owns and which are shared.

# %%
from mtl_helpers.models import AITM, ESMM, PLE, CrossStitch, MMoE, SharedBottom, count_parameters

FUNNEL = ("click", "purchase")
makers = {
    "shared-bottom": lambda: SharedBottom(splits.schema, splits.tasks, embedding_dim=4),
    "cross-stitch": lambda: CrossStitch(splits.schema, splits.tasks, embedding_dim=4),
    "MMoE": lambda: MMoE(splits.schema, splits.tasks, embedding_dim=4),
    "CGC": lambda: PLE(splits.schema, splits.tasks, embedding_dim=4),
    "PLE, 2 levels": lambda: PLE(splits.schema, splits.tasks, embedding_dim=4, levels=2),
    "ESMM": lambda: ESMM(splits.schema, splits.tasks, embedding_dim=4, chain=FUNNEL),
    "AITM": lambda: AITM(splits.schema, splits.tasks, embedding_dim=4, chain=FUNNEL),
}

# %%
import pandas as pd


def owners(model):
    """Numbers of parameters: of the embedding, of other layers that tasks share, and owned by each task."""
    table = count_parameters(model.features)
    shared = sum(p.numel() for p in model.shared_parameters()) - table
    own = {name: sum(p.numel() for p in model.task_parameters(name)) for name in names}
    return {"embedding": table, "shared layers": shared, **own}


who = pd.DataFrame({label: owners(make()) for label, make in makers.items()}).T
who

# %% tags=["plumbing"]
# @title Figure: parameters of the architectures
fig = plots.figure(3.2)
ax, start = fig.subplots(), 0
colors = {"shared layers": "#BBBBBB"} | {name: plots.task_style(name)["color"] for name in names}
for part, color in colors.items():
    ax.barh(who.index, who[part], left=start, color=color, label=part)
    start = start + who[part]
ax.set(xlabel="parameters above the embedding", ylim=(len(who) - 0.5, -0.5))
most = who[names].sum(axis=1).div(who[list(colors)].sum(axis=1)).idxmax()
ax.set_title(f"Owned by one task or shared: {most} gives tasks the largest part of their own")
ax.grid(axis="y", visible=False)
ax.legend(ncols=2, loc="upper right", frameon=True)
display(fig)
least = who[names].sum(axis=1).div(who[list(colors)].sum(axis=1)).idxmin()
print(
    f"{most} leaves most to single tasks, {least} least. Counts differ too: compare only after matching them."
)

# %% [markdown]
# ## 1 · Cross-stitch: let tasks lean on each other
#
# Give every task a column of layers of its own. After each layer, mix the columns:
#
# $$\tilde h_t = \sum_s \alpha_{ts}\, h_s$$
#
# With $\alpha$ the identity, nothing is shared. With equal entries, all is.
#
# **Predict.** Training starts near the identity. Will a task learn to lean more on the others, or less?

# %%
from mtl_helpers.widgets import draw

draw("cross_stitch")

# %%
torch.manual_seed(0)
stitched = makers["cross-stitch"]().to(device)
x = stitched.features(batch.numeric, batch.categorical)
hidden = [x, x, x]
for layer, alpha in zip(stitched.layers, stitched.stitches, strict=True):
    own = [layer[name](h) for name, h in zip(names, hidden, strict=True)]
    hidden = [sum(alpha[t, s] * own[s] for s in range(3)) for t in range(3)]
    print("a column's weights", tuple(layer["click"][0].weight.shape), "→ hidden", tuple(hidden[0].shape))
by_hand = stitched.towers["click"](hidden[0])
package = stitched(batch.numeric, batch.categorical)["click"]
print("equal:", torch.allclose(by_hand, package, atol=1e-5))

# %%
from mtl_helpers.training import evaluate, fit

rows = splits.train.take(slice(None, None, 4 if FAST else 1))
SETTINGS = {"lr": 3e-3, "weight_decay": 0.1, "batch_size": 1024, "progress": False}
before = stitched.stitches[-1].detach().cpu().clone()
fit(stitched, rows, splits.valid, epochs=2 if FAST else 8, **SETTINGS)
after = stitched.stitches[-1].detach().cpu()
print(pd.DataFrame(after.numpy().round(2), index=names, columns=names))


def lean(a):
    return ((a.sum(1) - a.diagonal()) / a.sum(1)).mean().item()


print(
    f"Share that comes from other tasks: {lean(before):.0%} at the start, {lean(after):.0%} after training."
)

# %% [markdown]
# ## 2 · MMoE: shared experts, a gate per task
#
# Multi-gate mixture of experts. All experts are shared. Each task has a gate that looks at the input and says
# how much of each expert it wants:
#
# $$h_t = \sum_e g_t(x)_e\, \mathrm{expert}_e(x), \qquad g_t(x) = \mathrm{softmax}(W_t x)$$

# %%
draw("mmoe")

# %%
torch.manual_seed(0)
mmoe = makers["MMoE"]().to(device)
x = mmoe.features(batch.numeric, batch.categorical)
experts = [expert(x) for expert in mmoe.experts]
gate = mmoe.gates["click"](x).softmax(-1)
mixed = sum(gate[:, e : e + 1] * experts[e] for e in range(4))
print(f"gate {tuple(gate.shape)} · {len(experts)} experts {tuple(experts[0].shape)} → {tuple(mixed.shape)}")
same = torch.allclose(mmoe.towers["click"](mixed), mmoe(batch.numeric, batch.categorical)["click"], atol=1e-5)
print("equal:", same)

# %% [markdown]
# ## 3 · CGC and PLE: some experts belong to one task
#
# In MMoE a task that wants its own expert must win it by its gate. *Customised gate control* gives it one: task
# $t$'s gate sees the experts of task $t$ and the shared ones, never another task's.

# %%
draw("ple")

# %%
torch.manual_seed(0)
cgc = makers["CGC"]().to(device)
level = cgc.levels[0]
x = cgc.features(batch.numeric, batch.categorical)
seen = torch.stack([expert(x) for expert in (*level.own["purchase"], *level.shared)])
gate = level.gates["purchase"](x).softmax(-1)
mixed = torch.einsum("ne,end->nd", gate, seen)
print("experts that purchase sees", tuple(seen.shape), "· gate", tuple(gate.shape), "→", tuple(mixed.shape))
logits = cgc(batch.numeric, batch.categorical)
print("equal:", torch.allclose(cgc.towers["purchase"](mixed), logits["purchase"], atol=1e-5))

# %% [markdown]
# *Progressive layered extraction* stacks such levels. Between them a **shared gate** sees all experts, so that
# the shared experts of the next level read a mixture of everything.
#
# **Predict.** In a PLE of two levels, which tasks' losses reach the click expert of the first level?

# %%
ple = makers["PLE, 2 levels"]().to(device)
reached = {}
for name in names:
    ple.zero_grad()
    ple(batch.numeric, batch.categorical)[name].sum().backward()
    reached[name] = [lvl.own["click"][0][0].weight.grad is not None for lvl in ple.levels]
print(pd.DataFrame(reached, index=["click expert, level 1", "click expert, level 2"]))
wide_open = all(reached[name][0] for name in names)
print("Level 1 is reached by", "every task, through the shared gate." if wide_open else "some tasks only.")

# %% [markdown]
# ## 4 · ESMM and AITM: tasks that follow each other
#
# A purchase needs a click. ESMM builds that in: its purchase tower predicts $p(\text{buy} \mid \text{click})$,
# and the model returns the product. A shared bottom knows nothing of the order.
#
# **Predict.** On how many validation rows does a shared bottom say that a purchase is likelier than a click?

# %%
draw("esmm")

# %%
from mtl_helpers.training import predict


def upside_down(model):
    """Number of validation rows on which a purchase is called likelier than a click."""
    p = predict(model, splits.valid)
    return int((p["purchase"] > p["click"]).sum())


# %%
trained, counts = {}, {}
for label in ("shared-bottom", "ESMM"):
    torch.manual_seed(0)
    trained[label] = makers[label]().to(device)
    counts[label] = [upside_down(trained[label])]
    fit(trained[label], rows, splits.valid, epochs=2 if FAST else 8, **SETTINGS)
    counts[label].append(upside_down(trained[label]))
    print(
        f"{label}: {counts[label][0]} of {len(splits.valid)} rows before training, {counts[label][1]} after"
    )
learned = counts["shared-bottom"][1] < 0.001 * len(splits.valid)
print(
    "The shared bottom",
    "has learned the order from the labels;" if learned else "still breaks the order;",
    end=" ",
)
print("ESMM cannot break it, not even untrained.")

# %% [markdown]
# The contract wants *logits*, and a product of probabilities rounds to 0 or 1 at the ends. With logits $a$ and
# $b$ the odds against the product are $e^{-a} + e^{-b} + e^{-(a+b)}$, so its logit is minus their logarithm.

# %%
esmm = trained["ESMM"]
inside = esmm.conditional(batch.numeric, batch.categorical)
inside = {name: value.cpu().double() for name, value in inside.items()}
a, b = inside["click"], inside["purchase"]
product = a.sigmoid() * b.sigmoid()
by_hand = torch.log(product / (1 - product))
stable = -torch.logsumexp(torch.stack([-a, -b, -(a + b)]), dim=0)
package = esmm(batch.numeric, batch.categorical)["purchase"].cpu().double()
print("equal:", torch.allclose(by_hand, stable), torch.allclose(stable, package, atol=1e-5))
far = torch.tensor([60.0])
print("at a = b = 60: naive", torch.log(far.sigmoid() ** 2 / (1 - far.sigmoid() ** 2)).item(), end=", ")
print("stable", -torch.logsumexp(torch.stack([-far, -far, -2 * far]), dim=0).item())

# %% [markdown]
# AITM passes *features* along the funnel instead of probabilities. The purchase column attends to two things:
# what the click column hands over, and its own output.

# %%
draw("aitm")

# %%
torch.manual_seed(0)
aitm = makers["AITM"]().to(device)
x = aitm.features(batch.numeric, batch.categorical)
q = {name: column(x) for name, column in aitm.columns.items()}
link = aitm.transfers["purchase"]
both = torch.stack([link.info(q["click"]), q["purchase"]], dim=1)
scores = (link.query(both) * link.key(both)).sum(-1) / both.shape[-1] ** 0.5
z = (scores.softmax(-1).unsqueeze(-1) * link.value(both)).sum(1)
print("two sources", tuple(both.shape), "· attention", tuple(scores.shape), "→", tuple(z.shape))
logits = aitm(batch.numeric, batch.categorical)
print("equal:", torch.allclose(aitm.towers["purchase"](z), logits["purchase"], atol=1e-5))

# %% [markdown]
# ## 5 · Does a gate help when tasks have little in common?
#
# The MMoE paper asks this with tasks of known correlation. Two unit vectors $w_1, w_2$ have cosine $p$; each task
# is a wavy line along its own: $y_k = w_k^\top x + \sum_i \sin(i\, w_k^\top x + \beta_i) + \varepsilon$.

# %%
from mtl_helpers.data.correlated import correlated_tasks

pair = correlated_tasks(correlation=0.5, seed=0)
w1, w2 = pair.directions
s = pair.test.numeric @ w1
waves = sum(torch.sin(i * s + beta) for i, beta in enumerate(pair.phases, start=1))
rest = pair.test.labels["first"] - (s + waves)
print(f"cosine {w1 @ w2:.2f}; what is left of the first label is noise of size {rest.std():.2f}")

# %% [markdown]
# **Predict.** Four models with equally many parameters: which loses most as $p$ falls from one to zero: the
# shared bottom, MMoE, CGC, or two separate networks?

# %%
from pathlib import Path

import mtl_helpers
from mtl_helpers.metrics import mean_interval, paired_difference

folder = Path(mtl_helpers.__file__).parents[1] / "notebooks" / "results"
study = pd.read_csv(folder / "06_correlation.csv", comment="#")
errors = study.query("metric == 'error'")
kinds = ["separate", "shared-bottom", "MMoE", "CGC"]
sizes = study.query("metric == 'parameters'").groupby("model")["value"].first()
print({kind: int(sizes[kind]) for kind in kinds}, "parameters;", errors["seed"].nunique(), "seeds")
print("made by: python notebooks/studies/nb06_correlation.py")

# %% tags=["plumbing"]
# @title How the models are drawn
LOOK = {
    "separate": {"color": "#777777", "marker": "o", "linestyle": "--"},
    "shared-bottom": {"color": "#222222", "marker": "s", "linestyle": "-"},
    "MMoE": {"color": "#0072B2", "marker": "^", "linestyle": "-"},
    "CGC": {"color": "#D55E00", "marker": "D", "linestyle": "-."},
}
table = errors.pivot(index=["correlation", "seed"], columns="model", values="value")
levels = sorted(errors["correlation"].unique())


def against(a, b, p):
    """Interval of the paired difference in error, model a minus model b, at correlation p."""
    return paired_difference(table.loc[p, a].dropna(), table.loc[p, b].loc[table.loc[p, a].dropna().index])


# %% tags=["plumbing"]
# @title Figure: error against relatedness
fig = plots.figure(3.8)
left, right = fig.subplots(1, 2)
for kind in kinds:
    left.plot(levels, [table.loc[p, kind].mean() for p in levels], label=kind, **LOOK[kind])
for shift, kind in enumerate(["separate", "MMoE", "CGC"]):
    gaps, at = [against(kind, "shared-bottom", p) for p in levels], [p + 0.015 * (shift - 1) for p in levels]
    right.vlines(at, [g.low for g in gaps], [g.high for g in gaps], color=LOOK[kind]["color"], lw=2)
    right.plot(at, [g.mean for g in gaps], **(LOOK[kind] | {"linestyle": "none"}))
right.axhline(0, color="#222222", lw=1)
left.set(xlabel="correlation of the tasks", ylabel="test error / label variance", ylim=(0, None))
right.set(xlabel="correlation of the tasks", ylabel="difference to shared-bottom")
left.set_title(f"Lowest mean at p = 0: {table.loc[levels[0], kinds].mean().idxmin()}")
right.set_title("Paired differences, intervals at 95 %")
left.legend(frameon=True, ncols=2, loc="lower left")
display(fig)

# %%
for kind in ("MMoE", "CGC", "separate"):
    found = {p: against(kind, "shared-bottom", p) for p in levels}
    sides = {
        "below": [f"{p:g}" for p, g in found.items() if g.high < 0],
        "above": [f"{p:g}" for p, g in found.items() if g.low > 0],
    }
    said = [f"{side} the shared bottom's error at p = {', '.join(ps)}" for side, ps in sides.items() if ps]
    print(
        f"{kind}:",
        "; ".join([*said, "a tie elsewhere"]) if said else "a tie with the shared bottom at every p",
    )
print(f"{3 * len(levels)} intervals at 95 %: about one would exclude zero by chance alone.")

# %% [markdown]
# That compares models at one $p$. The paper's claim is about the *slope*: how much does a model lose between
# identical and unrelated tasks, on the same rows and waves?


# %%
def lost(kind):
    """Error at the lowest correlation minus error at the highest, by seed."""
    return table.loc[levels[0], kind] - table.loc[levels[-1], kind]


for kind in kinds:
    gap = mean_interval(lost(kind))
    verdict = "it falls behind" if gap.low > 0 else "it gains" if gap.high < 0 else "a tie"
    print(f"{kind}: {gap.mean:+.3f} [{gap.low:+.3f}, {gap.high:+.3f}], {verdict}")
extra = paired_difference(lost("shared-bottom"), lost("MMoE"))
seen = "seen" if extra.low > 0 else "NOT seen here"
print(f"Shared bottom loses {extra.mean:+.3f} [{extra.low:+.3f}, {extra.high:+.3f}] more than MMoE: {seen}.")

# %% [markdown]
# Whatever the last line says is our answer for this size, this many rows and this tuning. Runs differ a lot from
# seed to seed, because the waves decide how hard the problem is; look at the width of the intervals first.
#
# Is the table what you would get? Run a slice of it.

# %%
rates = pd.read_csv(folder / "06_correlation_tuned.csv", comment="#").set_index("model")["lr"]


def trained_pair(p, build, lr, epochs=5 if FAST else 80, weights=None, seed=0):
    """Train one model as the study does; return it with its data."""
    data = correlated_tasks(p, seed)
    on = [part.to(device) for part in (data.train, data.valid, data.test)]
    torch.manual_seed(seed)
    model = build(data).to(device)
    fit(model, on[0], on[1], lr=lr, epochs=epochs, patience=5, batch_size=256, seed=seed,
        weights=weights, progress=False)  # fmt: skip
    return model, data, on[2]


def error_of(model, test):
    return sum(v["loss"] / test.labels[t].var().item() for t, v in evaluate(model, test).items()) / 2


# %%
small = {"embedding_dim": 1, "tower": (8,)}


def eight(data):
    return MMoE(data.schema, data.tasks, n_experts=8, hidden=(16,), **small)


model, _, test = trained_pair(0.0, eight, rates["MMoE"])
now, stored = error_of(model, test), table.loc[(0.0, 0), "MMoE"]
print(f"MMoE, p = 0, seed 0: now {now:.4f}, stored {stored:.4f}", "(FAST: too few epochs to compare)" * FAST)

# %% [markdown]
# ## 6 · Gates that you can read
#
# A gate is a small table: how much of each expert does a task take? Average it over a *segment* of the rows and
# you get a heat-map. Here a segment is a quarter of the test rows, by the first task's $w_1^\top x$.
#
# **Predict.** At correlation one both tasks are the same. Will their rows of the map look alike?

# %%
import numpy as np

gates = pd.read_csv(folder / "06_gates.csv", comment="#")
distance = study.query("metric == 'gate_distance'").copy()
distance["n_experts"] = distance["model"].map({"MMoE": 8, "MMoE, 4 experts": 4, "MMoE, 2 experts": 2})


def gate_map(p, n_experts, seed):
    """(2 tasks, 4 segments, 8 experts); experts that are not there are NaN."""
    keys = {"correlation": p, "n_experts": n_experts, "seed": seed}
    rows = gates[np.logical_and.reduce([gates[name] == value for name, value in keys.items()])]
    found = np.full((2, 4, 8), np.nan)
    tasks = rows["task"].map({"first": 0, "second": 1})
    found[tasks, rows["segment"], rows["expert"]] = rows["gate"]
    return found


first_row = gate_map(0.5, 4, 0)[0, 0]
print("gate map", gate_map(0.5, 4, 0).shape, "· a task's row sums to", np.nansum(first_row).round(2))

# %% tags=["plumbing"]
# @title Figure: gates of one model
fig = plots.figure(3.4)
*maps, ax = fig.subplots(1, 3, width_ratios=(1, 1, 0.9))
images = []
for panel, task in zip(maps, ("first", "second"), strict=True):
    images.append(panel.imshow(gate_map(0.5, 4, 0)[0], cmap="viridis", vmin=0, vmax=1, aspect="auto"))
    panel.set(title=f"{task} task", xlabel="expert", xticks=range(8), yticks=range(4))
    panel.set_xticklabels(range(1, 9))
    panel.set_yticklabels(["lowest", "low", "high", "highest"] if task == "first" else [])
    panel.grid(visible=False)
maps[0].set_ylabel("quarter of the rows by w₁ᵀx")
fig.colorbar(images[1], ax=maps, label="mean gate", fraction=0.05)
ax.set(xlabel="correlation", ylabel="distance of the gates", xlim=(-0.05, 1.05), ylim=(0, 1))
ax.set_title("How far tasks differ")
dots = ax.plot([], [], "o", color="#0072B2", alpha=0.35, animated=True)[0]
line = ax.plot([], [], "-", color="#0072B2", animated=True)[0]
here = ax.plot([], [], "o", color="#D55E00", ms=10, mfc="none", mew=2, animated=True)[0]

# %% tags=["plumbing"]
# @title Widget: gates, drawn
from mtl_helpers.widgets.explorer import Explorer, choice_slider


def draw_gates(state):
    found = gate_map(state["p"], state["n"], state["seed"])
    for image, values in zip(images, found, strict=True):
        image.set_data(values)
    rows = distance[distance["n_experts"] == state["n"]]
    mean = rows.groupby("correlation")["value"].mean()
    dots.set_data(rows["correlation"], rows["value"])
    line.set_data(mean.index, mean)
    own = rows.query("correlation == @state['p'] and seed == @state['seed']")["value"].iloc[0]
    here.set_data([state["p"]], [own])
    top = [int(np.nan_to_num(values).mean(0).argmax()) + 1 for values in found]
    alike = "the same expert" if top[0] == top[1] else "different experts"
    return f"The tasks' gates differ by {own:.2f} (0: alike, 1: nothing in common); most used: {alike}, {top[0]} and {top[1]}."


# %% tags=["plumbing"]
# @title Widget: gates, moved
seeds = sorted(set(gates.query("n_experts == 4")["seed"]))
knobs = [
    choice_slider("p", "correlation", levels),
    choice_slider("n", "number of experts", [2, 4, 8], 4),
    choice_slider("seed", "seed", seeds),
]
Explorer(fig, knobs, draw_gates, title="Mean gate by task, segment and expert")

# %%
from itertools import pairwise

wide = distance.query("n_experts == 8").pivot(index="seed", columns="correlation", values="value")
fall = paired_difference(wide[levels[0]], wide[levels[-1]])
says = "fall as the tasks become one" if fall.low > 0 else "do not clearly fall"
print(
    f"8 experts: the gates' distances {says}: p = 0 minus p = 1 is {fall.mean:+.2f} [{fall.low:+.2f}, {fall.high:+.2f}]."
)
inner = [paired_difference(wide[a], wide[b]) for a, b in pairwise(levels[:-1])]
clear = sum(gap.excludes_zero for gap in inner)
print(f"Between neighbouring correlations below 1, {clear} of {len(inner)} differences exclude zero.")

# %% [markdown]
# Each picture is a model that was really trained. Turn *seed* before you believe a pattern: which expert does what
# is arbitrary, only the likeness of the two maps has a meaning.
#
# **What surprised you?** Note what happens between the lowest correlations, and where the maps become alike.

# %% [markdown]
# ## 7 · A gate that collapses, and three remedies
#
# A softmax that starts sure of one expert sends nearly all gradient there. The expert improves, the gate becomes
# surer, and the others stay as they were born. Provoke it: add a large bias for expert one.


# %%
def four(data, bias=0.0, **settings):
    model = MMoE(data.schema, data.tasks, n_experts=4, hidden=(32,), **small, **settings)
    for gate in model.gates.values():
        gate.bias.data[0] += bias
    return model


def use_of(model, test):
    """Mean use of each expert over rows and tasks, and the effective number of experts: exp(entropy)."""
    model.eval()
    with torch.no_grad():
        tables = torch.stack(list(model.expert_use(test.numeric, test.categorical).values()))
    mean = tables.mean((0, 1)).cpu()
    return [round(share, 2) for share in mean.tolist()], torch.special.entr(mean).sum().exp().item()


# %% [markdown]
# Remedies: a **neutral start**; **dropout of experts**, which takes the favourite away now and then; a **load
# term**, the squared coefficient of variation of the experts' mean use, added to the loss. The last is a small
# strategy: it keeps what the gates read, and adds its term to the total.

# %%
from mtl_helpers.weighting import Fixed


class Balanced(Fixed):
    """Σ Lᵢ plus 0.1 · CV² of the experts' mean use, for each gate."""

    def begin(self, model, optimizer):
        self.hook = model.features.register_forward_hook(lambda module, inputs, out: setattr(self, "x", out))

    def backward(self, losses, model):
        use = torch.stack([gate(self.x).softmax(-1).mean(0) for gate in model.gates.values()])
        load = (use.var(1, unbiased=False) / use.mean(1) ** 2).sum()
        (losses.sum() + 0.1 * load).backward()

    def end(self):
        self.hook.remove()


# %% [markdown]
# **Predict.** Which of the remedies brings back all four experts, and does the error follow?

# %%
SURE = 6.0
variants = {
    "neutral start": (lambda data: four(data), None),
    "sure start": (lambda data: four(data, SURE), None),
    "sure + expert dropout": (lambda data: four(data, SURE, expert_dropout=0.3), None),
    "sure + load term": (lambda data: four(data, SURE), Balanced(pair.tasks)),
}
collapse = {}
for label, (build, strategy) in variants.items():
    for seed in range(1 if FAST else 3):
        model, _, test = trained_pair(0.5, build, 1e-2, epochs=4 if FAST else 25, weights=strategy, seed=seed)
        collapse[label, seed] = (*use_of(model, test), error_of(model, test))
    print(f"{label}: use of the experts, last seed {collapse[label, seed][0]}")

# %% tags=["plumbing"]
# @title Figure: remedies against collapse
fig = plots.figure(2.8)
for ax, place, label in zip(fig.subplots(1, 2, sharey=True), (1, 2), ("experts", "error"), strict=True):
    rows = {name: [v[place] for (n, _), v in collapse.items() if n == name] for name in variants}
    ax.barh(list(rows), [np.mean(values) for values in rows.values()], color="#9DB8CC")
    for y, values in enumerate(rows.values()):
        ax.plot(values, [y] * len(values), "o", color="#222222", ms=5)
    ax.set(xlabel="effective experts (of 4)" if label == "experts" else "test error / label variance")
    ax.grid(axis="y", visible=False)
ax.set_ylim(3.6, -0.6)
number = {name: np.mean([v[1] for (n, _), v in collapse.items() if n == name]) for name in variants}
fig.suptitle(f"A sure start leaves {number['sure start']:.1f} of 4 experts; bars are means, dots are seeds")
display(fig)
for name in variants:
    err = np.mean([v[2] for (n, _), v in collapse.items() if n == name])
    print(f"{name}: {number[name]:.1f} experts in use, error {err:.3f}")

# %% [markdown]
# Even use is not the goal; a low error is. Read both panels: a remedy that keeps all experts busy need not make the
# model better, and its strength is one more thing to tune. These are few seeds: the errors are examples, not a ranking.
#
# There is a second collapse. If all experts *start as twins* and the gates at zero, nothing ever tells them apart:


# %%
def twins(data):
    model = four(data)
    for expert in model.experts:
        expert.load_state_dict(model.experts[0].state_dict())
    for gate in model.gates.values():
        gate.weight.data.zero_(), gate.bias.data.zero_()
    return model


model, _, _ = trained_pair(0.5, twins, 1e-2, epochs=3)
weights = torch.stack([expert[0].weight for expert in model.experts])
print("largest difference between experts after training:", (weights - weights[:1]).abs().max().item())
fresh = torch.stack([expert[0].weight for expert in four(pair).experts])
print(f"with a random start it is {(fresh - fresh[:1]).abs().max():.2f} before the first step")

# %% [markdown]
# ## 8 · Which one for the shop?
#
# Rules: as many parameters for all but single-task, three learning rates for each, the best by validation, test
# rows scored once. Each seed draws a whole new shop (stored results, from the shop's first edition), so an interval
# covers data as well as initial weights.
#
# Matching the parameters is one call:

# %%
from mtl_helpers.models import match_parameters

like = SharedBottom(splits.schema, splits.tasks, embedding_dim=4, hidden=(128, 64))
matched = match_parameters(
    like, {"MMoE": (MMoE, {"n_experts": 4}), "cross-stitch": CrossStitch}, embedding_dim=4
)
for label, build in {"shared-bottom": lambda: like, **matched}.items():
    model = build()
    widths = model.settings["hidden"]
    print(f"{label}: {count_parameters(model):,} parameters with layers of {widths}")

# %% [markdown]
# **Predict.** How many of the seven beat the shared bottom on *every* task?

# %%
shops = pd.read_csv(folder / "06_shop.csv", comment="#")
scores = shops.query("metric != 'loss'").pivot(index="seed", columns=["model", "task"], values="value")
order = list(dict.fromkeys(shops["model"]))
others = [model for model in order if model != "shared-bottom"]
versus = {(m, t): paired_difference(scores[m, t], scores["shared-bottom", t]) for m in others for t in names}
print(f"{len(scores)} shops; parameters", shops.groupby("model", sort=False)["parameters"].first().to_dict())
print(
    "learning rates chosen:", shops.groupby("lr")["model"].count().div(2 * len(names)).astype(int).to_dict()
)
low = shops["lr"].min()
share = (shops["lr"] == low).mean()
print(f"The lowest of the grid, {low:g}, was best in {share:.0%} of the runs", end=" ")
print("(at the edge: a lower one might do better still)." if share > 0.3 else "(not at the edge).")
print("made by: python notebooks/studies/nb06_shop.py")

# %% tags=["plumbing"]
# @title Figure: architectures on the shop
fig = plots.figure(3.4)
for ax, task in zip(fig.subplots(1, 3, sharey=True), names, strict=True):
    color = plots.task_style(task)["color"]
    for y, model in enumerate(others):
        gap = versus[model, task]
        ax.plot([gap.low, gap.high], [y, y], color=color, lw=2)
        ax.plot(gap.mean, y, "o", color=color, mfc=color if gap.excludes_zero else "white")
    ax.axvline(0, color="#222222", lw=1)
    measure = "accuracy" if task == "next_category" else "AUC"
    ax.set(title=task, xlabel=f"{measure}, minus shared bottom", ylim=(len(others) - 0.5, -0.5))
    ax.set_yticks(range(len(others)), others)
display(fig)
for task in names:
    better = [m for m in others if versus[m, task].low > 0]
    worse = [m for m in others if versus[m, task].high < 0]
    print(
        f"{task}: above the shared bottom {', '.join(better) or 'none'}; below {', '.join(worse) or 'none'}."
    )

# %% [markdown]
# A filled dot is an interval that excludes zero. With this many intervals one or two exclude it by chance.
#
# Beating a shared bottom is one question. The other is whether the *architectures* differ among themselves, or
# from networks that share nothing.

# %%
everywhere = [m for m in others if all(versus[m, t].low > 0 for t in names)]
print("Above the shared bottom on every task:", ", ".join(everywhere) or "none")
for task in names:
    mean = scores.xs(task, axis=1, level="task").mean().drop("single-task").sort_values()
    top, second = mean.index[-1], mean.index[-2]
    gap = paired_difference(scores[top, task], scores[second, task])
    alone = paired_difference(scores[top, task], scores["single-task", task])
    tie = "a tie" if not gap.excludes_zero else "a difference"
    print(f"{task}: first {top}, then {second} ({gap.mean:+.4f}, {tie});", end=" ")
    word = "tie" if not alone.excludes_zero else "above" if alone.mean > 0 else "below"
    print(f"{top} against single-task {alone.mean:+.4f}: {word}.")

# %% [markdown]
# "First" was picked after looking, so its lead is flattered: treat it as a candidate, not as a winner.
#
# | your situation | try | why |
# |---|---|---|
# | start here | a shared bottom, tuned | cheap, and the yardstick for the rest |
# | one event needs another | ESMM, or AITM | ESMM builds the order in, AITM passes the earlier step on; section 4 |
# | one task suffers from sharing | CGC: give it an expert of its own | section 3 |
# | many tasks, unknown kinship | MMoE, and look at its gates | sections 2 and 6 |
# | a gate uses one expert | neutral start, expert dropout, load term | section 7 |

# %% [markdown]
# ## 9 · Exercises
#
# `check` answers in words. `hint("06.gated_mixture")` gives a nudge, `hint("06.gated_mixture", 3)` nearly all.

# %%
from mtl_helpers.check import check, hint  # noqa: F401


def gated_mixture(gate_logits, experts):
    """gate_logits (n, E) and experts (E, n, d), tensors. Returns the mixture (n, d): softmax shares over the experts.

    Example: with equal logits it is the mean of the experts.
    """
    return ...


check("06.gated_mixture", gated_mixture)


# %%
def logit_of_product(a, b):
    """a and b (n,): logits of two probabilities. Returns the logits (n,) of their product, finite for large a and b.

    Example: a = b = 0 gives log(1/3), because 0.5 · 0.5 has odds of one to three.
    """
    return ...


check("06.logit_of_product", logit_of_product)


# %%
def load_term(gates):
    """gates (n, E): each row sums to one. Returns a scalar: the squared coefficient of variation of the mean use.

    Example: gates that all pick expert 1 of 4 give 3; even use gives 0.
    """
    return ...


check("06.load_term", load_term)

# %% [markdown]
# ## Self-check
#
# **1.** Two tasks' gates look alike. Are the tasks alike?
#
# <details><summary>Answer</summary>Not necessarily. Towers can still differ, and experts can hold what both need.
# Section six shows how much the gates' distance moves with the correlation, and how much with the seed.</details>
#
# **2.** MMoE with four experts beats a shared bottom that has one expert's layers. Did the gates help?
#
# <details><summary>Answer</summary>You cannot tell: it has more parameters. Match them first, then tune both
# equally, as section five does.</details>
#
# **3.** ESMM's purchase tower is trained on all impressions. Does its conversion estimate inherit the bias of
# "clicked rows only"?
#
# <details><summary>Answer</summary>Its losses do not (section four): both are defined on every impression. Its
# conversion may: it is p(buy) / p(click), and what it says of rows nobody clicks no label corrects. Notebook 05, section
# five, measures it against the truth.</details>

# %% [markdown]
# ## Summary
#
# - Architectures differ in which parameters a single task owns, and in who decides: nobody (shared bottom), a
#   learned matrix (cross-stitch), a gate that reads the input (MMoE, PLE), or the order of events (ESMM, AITM).
# - A gate can be read, and it can collapse. Look at its use before you explain anything with it.
# - Match parameters and tuning before you compare. What is left is often smaller than the spread over seeds.
#
# **What the toy hides.** Experts pay when there are many tasks and far more data than here. *In production* gates
# and extra towers cost latency on every request, and every expert must be kept alive through retraining.

# %% [markdown]
# ## References
#
# - I. Misra et al., *Cross-Stitch Networks for Multi-task Learning*, CVPR 2016, eq. 1.
# - J. Ma et al., *Modeling Task Relationships in Multi-task Learning with Multi-gate Mixture-of-Experts*, KDD 2018.
# - H. Tang et al., *Progressive Layered Extraction (PLE)*, RecSys 2020.
# - X. Ma et al., *Entire Space Multi-Task Model*, SIGIR 2018, eq. 3.
# - D. Xi et al., *Modeling the Sequential Dependence among Audience Multi-step Conversions with Multi-task Learning
#   in Targeted Display Advertising* (AITM), KDD 2021.
# - N. Shazeer et al., *Outrageously Large Neural Networks*, ICLR 2017, section 4 (the load term).
# - Z. Zhao et al., *Recommending What Video to Watch Next*, RecSys 2019 (dropout of experts).
#
# **Next:** [07_real_data](07_real_data.ipynb): the seesaw, and transfer when labels are scarce.
