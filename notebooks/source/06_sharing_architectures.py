# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # 06 · Sharing architectures: who shares what?
#
# **Promise.** When you leave this page you can build seven ways to share layers by hand, read what their gates decide, and
# say from evidence what they gave over a shared bottom of the same size.
#
# {{colab_badge}} · [glossary](glossary.md) · about 90 minutes to read, 1½ minutes to run on two CPU cores (no GPU needed) · builds on
# [02_shared_bottom](02_shared_bottom.ipynb)

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
from torch import nn

import mtl_helpers
from mtl_helpers.data import (
    SHOP_CATEGORICAL,
    SHOP_NUMERIC,
    SHOP_TASKS,
    load_shop,
    prepare,
    shop_frame,
    shop_splits,
)
from mtl_helpers.data.correlated import correlated_tasks
from mtl_helpers.losses import task_losses
from mtl_helpers.metrics import Interval, holm, mean_interval, paired_difference
from mtl_helpers.models import (
    AITM,
    ESMM,
    PLE,
    STEM,
    CrossStitch,
    MMoE,
    PEPNet,
    SharedBottom,
    count_parameters,
    match_parameters,
)
from mtl_helpers.training import evaluate, fit, predict, training_steps
from mtl_helpers.weighting import Fixed, constant_losses
from mtl_helpers.widgets import course_map, draw, guess
from mtl_helpers.widgets import figures as plots
from mtl_helpers.widgets.explorer import Explorer, choice_slider

torch.set_num_threads(1)  # models this small need no more, and more threads stumble on a busy machine
TASKS = [task.name for task in SHOP_TASKS]
FUNNEL = ("click", "purchase")
COLORS = {name: plots.task_style(name)["color"] for name in TASKS}


def says(interval, up="above", down="below"):
    """What an interval of differences allows us to say."""
    return (up if interval.mean > 0 else down) if interval.excludes_zero else "a tie"


def number(value, digits=4):
    return plots.minus(f"{value:+.{digits}f}")


def span(i, digits=4):
    """Mean and interval of a difference, in words."""
    return f"{number(i.mean, digits)} [{number(i.low, digits)}, {number(i.high, digits)}]"


def listed(names):
    names = list(names)
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names) or "none"


def same(*pairs):
    """Do tensors made by hand equal those of the package? One line a pair."""
    rows = [(name, str(tuple(a.shape)), bool(torch.allclose(a, b, atol=1e-5))) for name, a, b in pairs]
    return plots.table(pd.DataFrame(rows, columns=["what", "shape", "by hand = mtl_helpers"]))


course_map("06")

# %% [markdown]
# ## The question of this page
#
# A shared bottom shares everything below its towers. Since 2016 a dozen architectures have promised better: let each task
# *choose* what it shares. Their papers report gains. But a new architecture often brings more parameters, and more care in
# tuning. Give all of them the same size and the same number of trials: what is left of the gain?
#
# Three gated architectures (MMoE, CGC, PLE) against a shared bottom, {{click}} and {{purchase}}, eight whole new shops:

# %%
g_all = guess("AUC, mean of the gated minus shared bottom?", -0.03, 0.03, 0.002, "AUC")
g_all

# %% [markdown]
# Section 8 has the answer. Until then we build them. Keep an eye on one thing: **who decides** what is shared.

# %%
draw("shared_bottom")

# %% tags=["plumbing"]
# @title The shop: its latest 80,000 rows, split by time
frames = shop_splits(shop_frame(load_shop()).tail(80_000))
data = prepare(frames, SHOP_TASKS, SHOP_NUMERIC, SHOP_CATEGORICAL, device=device)
rows = data.train.take(slice(None, None, 4 if FAST else 1))
EPOCHS = 2 if FAST else 6
constants = constant_losses(rows)
WEIGHTS = {t: (0.1 if t == "purchase" else 1) / constants[t] for t in TASKS}
SETTINGS = {"lr": 3e-3, "weight_decay": 1.0, "batch_size": 1024, "progress": False}
batch = next(data.train.batches(6, shuffle=False))
x6, c6 = batch.numeric, batch.categorical

# %% [markdown]
# One contract for all: `model(numeric, categorical)` gives a tensor of logits for each task. Each model knows which
# parameters a single task owns. Which gives its tasks the largest share of their own? And which the smallest?

# %%
kinds = {
    "shared bottom": SharedBottom,
    "cross-stitch": CrossStitch,
    "MMoE": MMoE,
    "CGC": PLE,
    "PLE, 2 levels": (PLE, {"levels": 2}),
    "ESMM": (ESMM, {"chain": FUNNEL}),
    "AITM": (AITM, {"chain": FUNNEL}),
    "STEM": STEM,
    "PEPNet": (PEPNet, {"scene": "surface"}),
}
like = SharedBottom(data.schema, data.tasks, embedding_dim=4, hidden=(128, 64))
makers = match_parameters(like, kinds, embedding_dim=4)  # scales the widths
g_own = guess("Largest share owned by single tasks?", choices=list(kinds)[1:])
g_own

# %% tags=["plumbing"]
# @title Who owns the parameters
who = {}
for label, make in makers.items():
    model = make()
    shared = sum(p.numel() for p in model.shared_parameters())
    own = {name: sum(p.numel() for p in model.task_parameters(name)) for name in TASKS}
    who[label] = {"shared": shared, **own}
who = pd.DataFrame(who).T
part = who[TASKS].sum(axis=1) / who.sum(axis=1)
fig = plots.figure(3.2)
ax, start = fig.subplots(), np.zeros(len(who))
for name in who:
    ax.barh(who.index, who[name], left=start, color=COLORS.get(name, "#BBBBBB"), label=name, height=0.65)
    start += who[name]
for y, (label, share) in enumerate(part.items()):
    widths = "-".join(map(str, makers[label]().settings["hidden"]))
    text = f"own {share:.0%}, layers of {widths}"
    ax.text(who.loc[label].sum() + 200, y, text, va="center", fontsize=9, color="#222222")
ax.set(xlabel="parameters", ylim=(len(who) - 0.5, -0.5), xlim=(0, 1.3 * who.sum(axis=1).max()))
ax.set_title(f"The same size, shared differently: {part.idxmax()} gives single tasks {part.max():.0%}")
ax.grid(axis="y", visible=False)
g_own.mark(ax, axis="y")
plots.legend_outside(fig, ax)
display(fig, g_own.answer(part.drop("shared bottom").idxmax()))
Markdown(
    f"From {who.sum(axis=1).min():,.0f} to {who.sum(axis=1).max():,.0f} parameters: `match_parameters` scales the widths. More experts then mean *narrower* ones. "
    f"Least own: {listed(part[part == part.min()].index)}. In a cross-stitch even a task's column is reached by every loss: the stitches lead there."
)

# %% [markdown]
# ## 1 · Cross-stitch: a learned matrix decides
#
# Give every task a column of layers of its own, and after each layer mix the columns:
#
# $$\tilde h_t = \sum_s \alpha_{ts}\, h_s$$
#
# With $\alpha$ the identity, nothing is shared. With equal entries, all is. The same $\alpha$ serves every row.

# %%
draw("cross_stitch")

# %%
torch.manual_seed(0)
stitched = makers["cross-stitch"]().to(device)
hidden = [stitched.features(x6, c6)] * 3
for layer, alpha in zip(stitched.layers, stitched.stitches, strict=True):
    own = [layer[name](h) for name, h in zip(TASKS, hidden, strict=True)]
    hidden = [sum(alpha[t, s] * own[s] for s in range(3)) for t in range(3)]
logits = stitched(x6, c6)["click"]
same(("click's logits", stitched.towers["click"](hidden[0]), logits))

# %% [markdown]
# Training starts near the identity: nine tenths of a task's input are its own. Will the tasks come to lean on each other?
# The paper's authors let $\alpha$ learn 100 to 1,000 times as fast as the layers, with plain SGD. Under AdamW, where a step is
# about as long as the rate, ten times is much. We try both.

# %%
g_lean = guess("Share from other tasks, α at 10 times the rate?", 0, 100, 1, "%")
g_lean


# %%
def train_stitches(factor):
    """A trained cross-stitch network; α learns at ``factor`` times the layers' rate."""
    torch.manual_seed(0)
    model = makers["cross-stitch"]().to(device)
    alphas = {id(alpha) for alpha in model.stitches}
    layers = [p for p in model.parameters() if id(p) not in alphas]
    slow = {"params": layers, "weight_decay": 1.0}
    fast = {"params": list(model.stitches), "weight_decay": 0.0, "lr": factor * 3e-3}
    optimizer = torch.optim.AdamW([slow, fast], lr=3e-3)
    how = {"epochs": EPOCHS, "generator": torch.Generator().manual_seed(0)}
    list(training_steps(model, rows, optimizer, weights=WEIGHTS, **how))
    return model


# %% tags=["plumbing"]
# @title The last stitch, at the start and after training
found = {"at the start": makers["cross-stitch"]()}
found |= {f"α at the layers' rate{' × 10' * (f > 1)}": train_stitches(f) for f in (1, 10)}


def lean(a):
    """Share of the weights, by size, that a task gives to the others."""
    a = a.abs()
    return ((a.sum(1) - a.diagonal()) / a.sum(1)).mean().item()


fig = plots.figure(2.9)
leans = {}
short = ["click", "purchase", "next"]
axes = fig.subplots(1, 3, sharey=True)
for ax, (label, model) in zip(axes, found.items(), strict=True):
    alpha = model.stitches[-1].detach().cpu()
    leans[label] = lean(alpha)
    image = ax.imshow(alpha, cmap="PuOr_r", vmin=-1.2, vmax=1.2, aspect="auto")
    for t, s in product(range(3), repeat=2):
        ax.text(s, t, plots.minus(f"{alpha[t, s]:.2f}"), ha="center", va="center", path_effects=plots.HALO)
    ax.set(title=f"{label}:\n{leans[label]:.0%} from others", xticks=range(3), yticks=range(3))
    ax.set_xticklabels(short)
    ax.set_yticklabels(short)
    ax.grid(visible=False)
axes[0].set_ylabel("task that reads")
axes[1].set_xlabel("column that is read")
display(fig, g_lean.answer(100 * leans["α at the layers' rate × 10"], digits=0))
Markdown(
    f"At the layers' own rate the share from others goes from {leans['at the start']:.0%} to {list(leans.values())[1]:.0%}; "
    f"at ten times that rate {list(leans.values())[2]:.0%}. How much tasks share hangs on the start and on this rate, not on the data alone. One run each: an example, not a finding."
)

# %% [markdown]
# ## 2 · MMoE: a gate a task decides, row by row
#
# All experts are shared. Each task has a gate that looks at the row and says how much of each expert it wants:
#
# $$h_t = \sum_e g_t(x)_e\, \mathrm{expert}_e(x), \qquad g_t(x) = \mathrm{softmax}(W_t x)$$

# %%
draw("mmoe")

# %%
torch.manual_seed(0)
mmoe = makers["MMoE"]().to(device)
x = mmoe.features(x6, c6)
experts = [expert(x) for expert in mmoe.experts]
gate = mmoe.gates["click"](x).softmax(-1)
mixed = sum(gate[:, e : e + 1] * experts[e] for e in range(4))
use = mmoe.expert_use(x6, c6)["click"]
logits = mmoe(x6, c6)["click"]
by_hand = mmoe.towers["click"](mixed)
same(("click's gate", gate, use), ("click's logits", by_hand, logits))

# %% [markdown]
# ## 3 · CGC and PLE: some experts belong to one task
#
# In MMoE a task that wants an expert to itself must win it by its gate. *Customised gate control* gives it one: task $t$'s
# gate sees the experts of task $t$ and the shared ones, never another task's.

# %%
draw("ple")

# %%
torch.manual_seed(0)
cgc = makers["CGC"]().to(device)
level = cgc.levels[0]
x = cgc.features(x6, c6)
seen = torch.stack([expert(x) for expert in (*level.own["purchase"], *level.shared)])
gate = level.gates["purchase"](x).softmax(-1)
mixed = torch.einsum("ne,end->nd", gate, seen)
same(("purchase's logits", cgc.towers["purchase"](mixed), cgc(x6, c6)["purchase"]))

# %% [markdown]
# *Progressive layered extraction* stacks such levels. Between them a **shared gate** sees all experts, so that the shared
# experts of the next level read a mixture of everything. Which tasks' losses reach the click expert of the first level?

# %%
g_reach = guess("Who trains click's expert?", choices=["click alone", "all three"])
g_reach

# %% tags=["plumbing"]
# @title Ask the gradients
ple = makers["PLE, 2 levels"]().to(device)
reached = {}
for name in TASKS:
    ple.zero_grad()
    ple(x6, c6)[name].sum().backward()
    reached[f"loss of {name}"] = [lvl.own["click"][0][0].weight.grad is not None for lvl in ple.levels]
display(
    plots.table(
        pd.DataFrame(reached, index=["click expert, level 1", "click expert, level 2"]).rename_axis(
            "reached by"
        )
    )
)
g_reach.answer("all three" if all(row[0] for row in reached.values()) else "click alone")

# %% [markdown]
# "Own" expert means: own *at the last level*. Further down the shared gate opens every door.
#
# ## 4 · ESMM and AITM: the order of events decides
#
# A {{purchase}} needs a {{click}}. ESMM builds that in: its purchase tower says $p(\text{buy} \mid \text{click})$, and the
# model returns the product. AITM hands *features* down the funnel instead: the purchase column attends to what the click
# column passes on, and to its own output.

# %%
draw("esmm")

# %%
draw("aitm")

# %%
torch.manual_seed(0)
aitm = makers["AITM"]().to(device)
x = aitm.features(x6, c6)
q = {name: column(x) for name, column in aitm.columns.items()}
link = aitm.transfers["purchase"]
both = torch.stack([link.info(q["click"]), q["purchase"]], dim=1)
attention = (link.query(both) * link.key(both)).sum(-1) / both.shape[-1] ** 0.5
z = (attention.softmax(-1).unsqueeze(-1) * link.value(both)).sum(1)
same(("purchase's logits", aitm.towers["purchase"](z), aitm(x6, c6)["purchase"]))

# %% [markdown]
# Nothing in those lines forbids $p(\text{buy}) > p(\text{click})$. AITM's order is a *penalty*, the calibrator: the loss gains
# $\alpha \cdot \max(p_\text{buy} - p_\text{click}, 0)$, with $\alpha = 0.6$ in the paper. As a strategy it is short:


# %%
class Calibrated(Fixed):
    def losses(self, model, batch):
        logits = model(batch.numeric, batch.categorical)
        click, buy = logits["click"].sigmoid(), logits["purchase"].sigmoid()
        self.penalty = 0.6 * (buy - click).clamp(min=0).mean()
        return torch.stack(list(task_losses(self.tasks, logits, batch).values()))

    def backward(self, losses, model):
        weights = losses.new_tensor([self.weights[name] for name in TASKS])
        ((weights * losses).sum() + self.penalty).backward()


# %% [markdown]
# Four models, before and after training: on how many validation rows is a purchase called likelier than a click?

# %%
g_order = guess("AITM without calibrator, trained: rows upside down?", 0, 100, 1, "%")
g_order

# %% tags=["plumbing"]
# @title Rows upside down
teams = {
    "shared bottom": ("shared bottom", WEIGHTS),
    "AITM, no calibrator": ("AITM", WEIGHTS),
    "AITM": ("AITM", Calibrated(data.tasks, WEIGHTS)),
    "ESMM": ("ESMM", WEIGHTS),
}


def upside_down(model):
    p = predict(model, data.valid)
    return (p["purchase"] > p["click"]).float().mean().item()


order, trained = {}, {}
for label, (name, weights) in teams.items():
    untrained = []
    for seed in reversed(range(3 if FAST else 10)):
        torch.manual_seed(seed)
        trained[label] = makers[name]().to(device)
        untrained.append(100 * upside_down(trained[label]))
    fit(trained[label], rows, epochs=EPOCHS, weights=weights, **SETTINGS)
    order[label] = untrained, [100 * upside_down(trained[label])]
fig = plots.figure(2.6)
axes = fig.subplots(1, 2, sharey=True)
for ax, when, place in zip(
    axes, (f"untrained, mean of {len(untrained)} starts", "trained"), (0, 1), strict=True
):
    values = [np.mean(order[label][place]) for label in teams]
    colors = [plots.model_style(label.split(",")[0])["color"] for label in teams]
    ax.barh(list(teams), values, color=colors, height=0.6)
    for y, label in enumerate(teams):
        ax.plot(order[label][place], [y] * len(order[label][place]), ".", color="#AAAAAA", ms=5)
    plots.value_labels(ax, ".1f")
    ax.set(xlabel="% of rows with p(buy) > p(click)", title=when)
    ax.set_xlim(0, 110 if not place else max(1, 1.3 * max(values)))
axes[0].set_ylim(3.5, -0.5)
clicks, buys = (data.train.labels[name].sum().item() for name in FUNNEL)
never = [label for label in teams if max(map(max, order[label])) == 0]
fig.suptitle(f"Never upside down, trained or not: {listed(never)}", x=0.01, ha="left", fontsize=11)
display(fig, g_order.answer(order["AITM, no calibrator"][1][0], digits=0))
Markdown(
    f"Only ESMM *cannot* break the order. The others learn it, as far as they do, from labels in which it always holds: clicks are {clicks / buys:.0f} times as many as "
    "purchases, so a trained model seldom errs. The calibrator matters where the two rates are close, or where a model is young."
)

# %% [markdown]
# **A product as a logit.** The contract wants logits, and a product of probabilities rounds to 0 or 1 at the ends. With
# logits $a$ and $b$ the odds against the product are $e^{-a} + e^{-b} + e^{-(a+b)}$: its logit is minus their logarithm.

# %%
esmm = trained["ESMM"]
inside = esmm.conditional(x6, c6)
a, b = (inside[name].cpu().double() for name in FUNNEL)
p = a.sigmoid() * b.sigmoid()
naive = torch.log(p / (1 - p))
stable = -torch.logsumexp(torch.stack([-a, -b, -(a + b)]), dim=0)
far = torch.tensor([60.0])
ends = [torch.log(far.sigmoid() ** 2 / (1 - far.sigmoid() ** 2)).item()]
ends += [-torch.logsumexp(torch.stack([-far, -far, -2 * far]), dim=0).item()]

# %% tags=["plumbing"]
# @title Equal, and what happens far out
display(
    same(
        ("naive and stable", naive, stable),
        ("stable and package", stable, esmm(x6, c6)["purchase"].cpu().double()),
    )
)
Markdown(f"At $a = b = 60$ the naive way says {ends[0]:.0f}, the stable one {ends[1]:.2f}.")

# %% [markdown]
# ## 5 · STEM: embeddings of a task's own
#
# So far all tasks read the same embeddings. But a product that is often looked at and seldom bought should lie elsewhere
# for {{click}} than for {{purchase}}; one vector cannot lie in two places. *Shared and task-specific embeddings* (STEM,
# 2024) keep a table a task beside the shared one, and an expert on each. Every gate reads all experts, but **no gradient
# flows from a task into another task's expert**: everybody may look, nobody may spoil.

# %%
draw("stem")

# %%
torch.manual_seed(0)
stem = makers["STEM"]().to(device)
x0 = stem.features(x6, c6)
xs = {name: stem.own[name](x6, c6) for name in TASKS}
h = {name: stem.experts[name](xs[name]) for name in TASKS}
own = [h[name] if name == "purchase" else h[name].detach() for name in TASKS]
gate = stem.gates["purchase"](xs["purchase"] + x0).softmax(-1)
seen = torch.stack([*own, stem.experts["shared"](x0)], dim=1)
mixed = (gate.unsqueeze(-1) * seen).sum(1)
buy = stem.towers["purchase"](mixed)
buy.sum().backward()
trains = {name: stem.own[name].embedding.weight.grad is not None for name in TASKS}

# %% tags=["plumbing"]
# @title Equal, and who trains which table
display(same(("purchase's logits", buy, stem(x6, c6)["purchase"])))
tables = sum(count_parameters(part) for part in (stem.features, *stem.own.values()))
with_ids = 4 * len([*TASKS, "shared"]) * (len(load_shop().users) + len(load_shop().items))
Markdown(
    f"The loss of purchase trains the table of {listed(name for name, yes in trains.items() if yes)}, beside the shared one. Without ids the four tables are {tables / count_parameters(stem):.0%} of "
    f"this model; with user and product ids they would hold {with_ids:,} numbers more, and in production nearly everything is table. STEM's home is there: "
    "do not expect much of it on a shop whose ids we leave out."
)

# %% [markdown]
# ## 6 · PEPNet: one model, many scenes
#
# A shop shows products on its home page, on category pages and in e-mails: three *scenes*, with other users, other layouts,
# other rates. One model a scene starves the small ones. One model for all lets the large one rule. Multi-scenario models
# share layers across scenes as multi-task models share them across tasks, and the same trade follows.

# %%
g_scene = guess("E-mail clicks: AUC, own model minus one for all?", -0.1, 0.1, 0.005)
g_scene

# %% [markdown]
# The plainest answer: the scene is a feature like any other. *PEPNet* (2023) gives it a lever instead. A small network
# reads the scene $s$ beside the features, without sending gradients into them, and answers with factors between 0 and 2:
# $\delta = 2\,\sigma(W_2\,\mathrm{ReLU}(W_1 [s, \mathrm{sg}(X)]))$. EPNet scales the features, PPNet what each tower reads.

# %%
draw("pepnet")

# %%
torch.manual_seed(0)
pepnet = makers["PEPNet"]().to(device)
x = pepnet.features(x6, c6)
s = pepnet.scenes(c6[:, pepnet.column])
delta = 2 * pepnet.epnet(torch.cat([s, x.detach()], dim=1))
scaled = x * delta
shared = pepnet.bottom(scaled)
prior = torch.cat([s, scaled.detach()], dim=1)
gated = shared * 2 * pepnet.ppnet["click"](prior)
logits = pepnet(x6, c6)["click"]
by_hand = pepnet.towers["click"](gated)
same(("Z", shared, pepnet.represent(x6, c6)[1]), ("click's logits", by_hand, logits))

# %% tags=["plumbing"]
# @title What its gates do in each scene, after training
torch.manual_seed(0)
pepnet = makers["PEPNet"]().to(device)
fit(pepnet, rows, epochs=EPOCHS, weights=WEIGHTS, **SETTINGS)
CHANNELS = ("home", "category page", "email")
surface = data.frames["valid"]["surface"].to_numpy()
with torch.no_grad():
    v = data.valid
    x = pepnet.eval().features(v.numeric, v.categorical)
    delta = 2 * pepnet.epnet(torch.cat([pepnet.scenes(v.categorical[:, pepnet.column]), x], dim=1)).cpu()
width = 4 * len(data.schema.categorical)
cuts = [delta[:, 4 * i : 4 * i + 4].mean(1) for i in range(len(data.schema.categorical))]
columns = [*data.schema.categorical, *data.schema.numeric]
by_column = torch.stack([*cuts, *delta[:, width:].T], dim=1).numpy()
means = np.array([by_column[surface == channel].mean(0) for channel in CHANNELS])
top = np.argsort(-np.ptp(means, axis=0))[:9]
fig = plots.figure(2.7)
ax = fig.subplots()
spread = max(0.05, np.abs(means[:, top] - 1).max())
image = ax.imshow(means[:, top], cmap="PuOr_r", vmin=1 - spread, vmax=1 + spread, aspect="auto")
for i, j in product(range(3), range(len(top))):
    ax.text(j, i, f"{means[i, top[j]]:.2f}", ha="center", va="center", fontsize=9, path_effects=plots.HALO)
ax.set_yticks(range(3), CHANNELS)
ax.set_xticks(range(len(top)), [columns[j].replace("_", "\n") for j in top], fontsize=8)
ax.grid(visible=False)
ax.set_title(f"EPNet's mean factors: {columns[top[0]]} differs most between scenes (1: left as it is)")
fig.colorbar(image, ax=ax, fraction=0.03)
display(fig)

# %% tags=["plumbing"]
# @title Stored runs: eight shops, each contestant at its best setting
folder = Path(mtl_helpers.__file__).parents[1] / "notebooks" / "results"
table = pd.read_csv(folder / "06_shop.csv", comment="#")
KEYS, SETTING = ["contestant", "task"], ["lr", "weight_decay"]
tuned = table[table["shop"] < 100].groupby([*KEYS, *SETTING])["valid"].mean().reset_index()
ends = {side: tuned.groupby("contestant")["lr"].transform(side) for side in ("min", "max")}
tuned["edge"] = (tuned["lr"] == ends["min"]) | (tuned["lr"] == ends["max"])
tuned["edge"] |= tuned["weight_decay"] == tuned["weight_decay"].max()
best = tuned.loc[tuned.groupby(KEYS)["valid"].idxmax()].set_index(KEYS)["edge"]
study = table[table["shop"] >= 100].set_index([*KEYS, "shop"]).sort_index()
study["score"] = study["auc"].fillna(study["accuracy"])


def of(contestant, task, column="score"):
    """One AUC (accuracy for next_category) a shop."""
    return study.loc[(contestant, task), column]


# %% tags=["plumbing"]
# @title Scenes, measured
rivals = {"scene left out": "shared bottom, no channel", "PEPNet": "PEPNet", "a model a scene": None}
scene_gaps = {}
for channel, (label, name), task in product(CHANNELS, rivals.items(), FUNNEL):
    theirs = of(name or f"{channel} model", task, channel)
    scene_gaps[channel, label, task] = theirs - of("shared bottom", task, channel)
holds = {key for key, p in holm(scene_gaps).items() if p <= 0.05}
fig = plots.figure(3.3)
for ax, channel in zip(fig.subplots(1, 3), CHANNELS, strict=True):
    shown = {(la, t): scene_gaps[channel, la, t].to_numpy() for la, t in product(rivals, FUNNEL)}
    label_of = {key: f"{key[0]}, {key[1]}" if channel == "home" else " " * i for i, key in enumerate(shown)}
    styles = {label_of[key]: plots.task_style(key[1]) for key in shown}
    stars = [label_of[la, t] for c, la, t in holds if c == channel]
    plots.interval_rows(ax, {label_of[k]: v for k, v in shown.items()}, styles=styles, holm=stars, digits=3)
    ax.locator_params(axis="x", nbins=3)
    n = (data.frames["train"]["surface"] == channel).mean()
    ax.set(title=f"{channel}, {n:.0%} of rows", xlabel="AUC minus scene as a feature")
own_mail = mean_interval(scene_gaps["email", "a model a scene", "click"])
fig.suptitle(
    f"A model of its own, AUC of click in e-mails: {number(own_mail.mean, 3)}", x=0.01, ha="left", fontsize=11
)
display(fig)
pep = {c: mean_interval(scene_gaps[c, "PEPNet", "click"]) for c in CHANNELS}
lost = [
    f"{c} ({t})"
    for c, la, t in scene_gaps
    if la == "a model a scene" and (c, la, t) in holds and scene_gaps[c, la, t].mean() < 0
]
display(g_scene.answer(own_mail.mean, digits=3))
Markdown(
    f"Filled with a star: survives Holm's correction over these {len(scene_gaps)} contrasts. A model a scene loses on {listed(lost)}. PEPNet against the scene as a plain feature, "
    f"AUC of click: home {span(pep['home'], 3)}, {says(pep['home'])}; category page {span(pep['category page'], 3)}, {says(pep['category page'])}; e-mail {span(pep['email'], 3)}, {says(pep['email'])}."
)

# %% [markdown]
# Is that fair to PEPNet? In this simulator an e-mail lowers the log-odds of a click by a constant, and a category page
# shows one category: nobody *wants* something else there. A feature says all of that. PEPNet was built for apps whose
# scenes differ in kind. The table tests whether its levers cost anything where they are not needed.
#
# ## 7 · Does a gate help when tasks have little in common?
#
# The MMoE paper asks this with tasks of known relatedness. Two unit vectors $w_1, w_2$ have cosine $p$; each task is a
# wavy line along its own: $y_k = w_k^\top x + \sum_i \sin(i\, w_k^\top x + \beta_i) + \varepsilon$. At $p = 1$ both tasks
# are one.

# %%
pair = correlated_tasks(correlation=0.5, seed=0)
w1, w2 = pair.directions
s = pair.test.numeric @ w1
waves = sum(torch.sin(i * s + beta) for i, beta in enumerate(pair.phases, start=1))
rest = pair.test.labels["first"] - (s + waves)
facts = {"cosine of w₁ and w₂": (w1 @ w2).item(), "left over, std": rest.std().item()}

# %% tags=["plumbing"]
# @title The two tasks
fig = plots.figure(2.5)
left, right = fig.subplots(1, 2)
for ax, w, name in ((left, w1, "first"), (right, w2, "second")):
    along = pair.test.numeric @ w
    ax.plot(along[:1500], pair.test.labels[name][:1500], ".", color="#9DB8CC", ms=3)
    ax.set(title=f"The {name} task along its own direction", xlabel="wᵀx", ylabel="label")
display(fig)
Markdown(
    ", ".join(f"{name}: {value:.2f}" for name, value in facts.items())
    + ": the formula leaves the noise, nothing else."
)

# %% [markdown]
# Three models of the same size, sixteen seeds: a shared bottom, MMoE with the paper's eight experts of 16 units, two
# separate networks. By how much does MMoE change the shared bottom's test error, mean over $p$ = 0, .5 and 1?

# %%
g_error = guess("MMoE's error against the shared bottom's?", -60, 60, 1, "%")
g_error

# %% tags=["plumbing"]
# @title Sixteen seeds, on the log scale
runs = pd.read_csv(folder / "06_correlation.csv", comment="#")
told = runs[runs["seed"] < 1000]
errors = told.pivot(index=["correlation", "seed"], columns="model", values="error")
logs, levels = np.log(errors), sorted(told["correlation"].unique())
ratio = {m: (logs[m] - logs["shared bottom"]).unstack(0) for m in ("MMoE", "separate")}
primary = mean_interval(ratio["MMoE"].mean(axis=1))
slope = ratio["MMoE"][levels[0]] - ratio["MMoE"][levels[-1]]
steeper, p_values = mean_interval(slope), holm({"level": ratio["MMoE"].mean(axis=1), "slope": slope})


def percent(i):
    """A difference of logs as a change in per cent."""
    return Interval(*(100 * np.expm1([i.mean, i.low, i.high])), i.n)


fig = plots.figure(3.2)
left, right = fig.subplots(1, 2)
for model in ("separate", "shared bottom", "MMoE"):
    look = plots.model_style(model)
    left.plot(levels, np.exp(logs[model].groupby("correlation").mean()), label=model, **look)
floor = np.exp(np.log(told["floor"]).mean())
left.axhline(floor, color="#777777", lw=1, ls=":")
left.annotate("the noise", (1, floor), va="bottom", ha="right", fontsize=8, path_effects=plots.HALO)
left.set(yscale="log", xlabel="p, cosine of the two tasks", ylabel="test error / label variance")
left.set_xticks(levels)
left.set_title("Error, geometric mean (best constant: 1)")
shown, styles = {}, {}
for model, p in product(("MMoE", "separate"), levels):
    shown[f"{model}, p = {p:g}"] = percent(mean_interval(ratio[model][p]))
    styles[f"{model}, p = {p:g}"] = plots.model_style(model)
plots.interval_rows(right, shown, styles=styles, digits=0)
right.set_xlabel("error minus shared bottom's, %")
right.set_title(
    f"MMoE is {says(primary, 'worse', 'better')}, by {number(percent(primary).mean, 0)} % over all p"
    if primary.excludes_zero
    else "MMoE ties over all p"
)
plots.legend_outside(fig, left)
display(fig, g_error.answer(percent(primary).mean, digits=0))
hard = np.exp(logs["shared bottom"].groupby("seed").mean())
level_std, tuning = ratio["MMoE"].mean(axis=1).std(), runs[runs["seed"] >= 1000]
needed = [int(np.ceil((2.8 * std / np.log1p(0.25)) ** 2)) + 2 for std in (level_std, slope.std())]
rate = tuning.groupby(["model", "lr", "weight_decay"])["valid"].mean().groupby("model").idxmin().str[1]
at_end = [model for model, lr in rate.items() if lr in (tuning["lr"].min(), tuning["lr"].max())]
Markdown(
    f"Primary contrast: **{number(percent(primary).mean, 0)} % [{number(percent(primary).low, 0)}, {number(percent(primary).high, 0)}]**, {says(primary, 'MMoE is worse', 'MMoE is better')} "
    f"(Holm p {p_values['level']:.2f}). The paper's *claim* is about the slope: a shared bottom should fall further behind as $p$ falls. From $p = 1$ to 0 MMoE's error against it changes by "
    f"{number(percent(steeper).mean, 0)} % [{number(percent(steeper).low, 0)}, {number(percent(steeper).high, 0)}], {says(steeper, 'the wrong way', 'as claimed')} (p {p_values['slope']:.2f}). "
    f"**The size it would take:** to see a change of a quarter four times in five, about {needed[0]} seeds for the level and {needed[1]} for the slope. The waves of one seed make its problem {hard.max() / hard.min():.0f} times harder "
    f"than those of another. Learning rate at an end of its grid: {listed(at_end)}."
)

# %% [markdown]
# Is the table what you would get? Run one of its rows, on your machine, now.

# %%
row = runs.query("model == 'MMoE' and seed == 0 and correlation == 0").iloc[0]
small = {"embedding_dim": 1, "tower": (8,)}


def eight(data):
    how = {"n_experts": 8, "hidden": (16,), **small}
    MMoE(data.schema, data.tasks, **how)  # the study builds one to count its parameters
    return MMoE(data.schema, data.tasks, **how)


def trained_pair(p, build, lr, decay=0.0, epochs=80, weights=None, seed=0):
    """Train one model as the study does; return it with its test rows."""
    data = correlated_tasks(p, seed)
    on = [part.to(device) for part in (data.train, data.valid, data.test)]
    torch.manual_seed(seed)
    model = build(data).to(device)
    how = {"batch_size": 256, "patience": 5, "weights": weights, "progress": False}
    how |= {"epochs": 3 if FAST else epochs, "lr": lr, "weight_decay": decay}
    fit(model, on[0], on[1], seed=seed, **how)
    return model, on[2]


# %% tags=["plumbing"]
# @title Stored and now
def error_of(model, test):
    return sum(v["loss"] / test.labels[t].var().item() for t, v in evaluate(model, test).items()) / 2


model, test = trained_pair(0.0, eight, row["lr"], row["weight_decay"])
plots.table(
    pd.DataFrame(
        {
            "error, stored": [row["error"]],
            "error, now": [error_of(model, test)],
            "epochs at most": [3 if FAST else 80],
        }
    ),
    digits=4,
)

# %% [markdown]
# ### Gates that you can read
#
# A gate is a small table: how much of each expert does a task take? Average it over a *segment* of the rows and you get a
# map; here a segment is a quarter of the test rows, by the first task's $w_1^\top x$. At $p = 1$ both tasks are the same.
# Will their maps look alike?

# %%
g_gates = guess("Distance of the two tasks' gates at p = 1?", 0, 1, 0.05)
g_gates

# %% tags=["plumbing"]
# @title Gates, as maps: move p
gates = pd.read_csv(folder / "06_gates.csv", comment="#")


def gate_map(p, seed):
    """(2 tasks, 4 segments, 8 experts)."""
    found = gates[(gates["correlation"] == p) & (gates["seed"] == seed)]
    return found.sort_values(["task", "segment", "expert"])["gate"].to_numpy().reshape(2, 4, 8)


apart = told[told["model"] == "MMoE"].pivot(index="seed", columns="correlation", values="gate_distance")
fig = plots.figure(3.4)
*maps, ax = fig.subplots(1, 3, width_ratios=(1, 1, 0.8))
images = []
for panel, task in zip(maps, ("first", "second"), strict=True):
    images.append(panel.imshow(gate_map(0.5, 0)[0], cmap="viridis", vmin=0, vmax=1, aspect="auto"))
    panel.set(title=f"{task} task", xlabel="expert", xticks=range(8), yticks=range(4))
    panel.set_xticklabels(range(1, 9))
    panel.set_yticklabels(["lowest", "low", "high", "highest"] if task == "first" else [])
    panel.grid(visible=False)
maps[0].set_ylabel("quarter of the rows by w₁ᵀx")
fig.colorbar(images[1], ax=maps, label="mean gate", fraction=0.05)
ax.set(
    xlabel="p", ylabel="distance of the gates", xlim=(-0.1, 1.1), ylim=(0, 1), title="How far tasks differ"
)
color = plots.model_style("MMoE")["color"]
ax.plot(*apart.stack().reset_index()[["correlation", 0]].to_numpy().T, "o", color=color, alpha=0.3)
ax.plot(levels, apart.mean(), "-", color=color)
g_gates.mark(ax, axis="y")
here = ax.plot([], [], "o", color="#222222", ms=11, mfc="none", mew=2, animated=True)[0]


def draw_gates(state):
    found = gate_map(state["p"], state["seed"])
    for image, values in zip(images, found, strict=True):
        image.set_data(values)
    own = apart.loc[state["seed"], state["p"]]
    here.set_data([state["p"]], [own])
    top = [int(values.mean(0).argmax()) + 1 for values in found]
    alike = "the same expert" if top[0] == top[1] else "different experts"
    return f"The tasks' gates differ by {own:.2f} (0: alike, 1: nothing in common); most used: {alike}, {top[0]} and {top[1]}."


knobs = [choice_slider("p", "p", levels, 0.5), choice_slider("seed", "seed", sorted(set(gates["seed"])))]
Explorer(fig, knobs, draw_gates, title="Mean gate by task, segment and expert")

# %% tags=["plumbing"]
# @title The answer
fall = paired_difference(apart[levels[0]], apart[levels[-1]])
display(g_gates.answer(apart[levels[-1]].mean()))
Markdown(
    f"Distance 0: alike; 1: nothing in common. From $p = 1$ to 0 it {'grows' if fall.low > 0 else 'does not clearly grow'}: {span(fall, 2)}. Each picture is a model that was really "
    "trained. Turn *seed* before you believe a pattern: which expert does what is arbitrary, only the likeness of the two maps has a meaning."
)

# %% [markdown]
# ### A gate that collapses
#
# A softmax that starts sure of one expert sends nearly all gradient there. The expert improves, the gate becomes surer,
# and the others stay as they were born. Provoke it with a large bias for expert one. Three remedies are taught everywhere:
# a **neutral start**; **dropout of experts**, which takes the favourite away now and then; a **load term**, the squared
# coefficient of variation of the experts' mean use, added to the loss.


# %%
def four(data, bias=0.0, **settings):
    settings |= {"n_experts": 4, "hidden": (32,), **small}
    model = MMoE(data.schema, data.tasks, **settings)
    for gate in model.gates.values():
        gate.bias.data[0] += bias
    return model


class Balanced(Fixed):
    """Σ Lᵢ plus 0.1 · CV² of the experts' mean use, for each gate."""

    def begin(self, model, optimizer):
        keep = lambda module, inputs, out: setattr(self, "x", out)  # noqa: E731
        self.hook = model.features.register_forward_hook(keep)

    def backward(self, losses, model):
        use = torch.stack([g(self.x).softmax(-1).mean(0) for g in model.gates.values()])
        load = (use.var(1, unbiased=False) / use.mean(1) ** 2).sum()
        (losses.sum() + 0.1 * load).backward()


# %%
STARTS = ["neutral", "sure", "sure + dropout", "sure + load term"]
g_collapse = guess("Lowest test error?", choices=STARTS)
g_collapse

# %% tags=["plumbing"]
# @title Experts in use, and the error
SURE = 6.0
variants = {
    "neutral": (four, None),
    "sure": (lambda data: four(data, SURE), None),
    "sure + dropout": (lambda data: four(data, SURE, expert_dropout=0.3), None),
    "sure + load term": (lambda data: four(data, SURE), Balanced(pair.tasks)),
}
collapse = []
for (label, (build, strategy)), seed in product(variants.items(), range(1 if FAST else 4)):
    model, test = trained_pair(0.5, build, 1e-2, epochs=25, weights=strategy, seed=seed)
    with torch.no_grad():
        use = torch.stack(list(model.eval().expert_use(test.numeric, test.categorical).values())).mean((0, 1))
    experts = torch.special.entr(use).sum().exp().item()
    collapse.append({"start": label, "seed": seed, "experts": experts, "error": error_of(model, test)})
collapse = pd.DataFrame(collapse)
mean = collapse.groupby("start", sort=False)[["error", "experts"]].mean()
fig = plots.figure(2.8)
axes = fig.subplots(1, 2, sharey=True)
said = {"error": "test error / label variance", "experts": "experts in use (of 4), exp of the entropy"}
for ax, (what, label) in zip(axes, said.items(), strict=True):
    ax.barh(list(variants), mean[what], color="#C9B3C6", height=0.6)
    for y, name in enumerate(variants):
        dots = collapse.loc[collapse["start"] == name, what]
        ax.plot(dots, [y] * len(dots), "o", color="#222222", ms=5)
    ax.set(xlabel=label, ylim=(3.5, -0.5))
    ax.grid(axis="y", visible=False)
lowest, busiest = mean["error"].idxmin(), mean["experts"].idxmax()
fig.suptitle(f"Lowest error: {lowest}; most experts in use: {busiest}", x=0.01, ha="left", fontsize=11)
g_collapse.mark(axes[0], axis="y")
display(fig, g_collapse.answer(lowest))
pairs = collapse.pivot(index="seed", columns="start", values="error")
words = []
for name in variants:
    if name != "sure" and len(pairs) > 1:
        i = percent(paired_difference(np.log(pairs[name]), np.log(pairs["sure"])))
        words.append(
            f"{name} {number(i.mean, 0)} % [{number(i.low, 0)}, {number(i.high, 0)}], {says(i, 'worse', 'better')}"
        )
Markdown(
    f"A sure start leaves {mean.loc['sure', 'experts']:.1f} of four experts. "
    + (f"Error against it, over {len(pairs)} seeds: {'; '.join(words)}. " if words else "")
    + "**Even use is not the goal, a low error is.** A remedy that keeps all experts busy need not make the model better, and its strength is one more thing to tune: "
    "mend a gate because the error is high, not because the map is dark."
)

# %% [markdown]
# There is a second collapse. If all experts *start as twins* and the gates at zero, nothing ever tells them apart:


# %%
def twins(data):
    model = four(data)
    for expert in model.experts:
        expert.load_state_dict(model.experts[0].state_dict())
    for gate in model.gates.values():
        nn.init.zeros_(gate.weight)
        nn.init.zeros_(gate.bias)
    return model


model, _ = trained_pair(0.5, twins, 1e-2, epochs=3)
weights = torch.stack([expert[0].weight for expert in model.experts])
apart_now = (weights - weights[:1]).abs().max().item()

# %% tags=["plumbing"]
# @title Still twins?
Markdown(
    f"Largest difference between experts after training: **{apart_now:g}**. Random starts are what makes experts differ."
)

# %% [markdown]
# ## 8 · Which one for the shop?
#
# Eight shops that are new in everything. All have the size of the shared bottom, save the single-task models, which are
# whole networks of that size; each tried twelve settings of learning rate and decay on two other shops. Every task is shown
# at **its own stop**: its own setting, its own epoch. No ids. AITM has its calibrator.
# (`notebooks/studies/nb06_shop.py`.)

# %% tags=["plumbing"]
# @title Everybody against the shared bottom
GATED = ("MMoE", "CGC", "PLE, 2 levels")
others = ["single-task", "cross-stitch", *GATED, "ESMM", "AITM", "STEM", "PEPNet"]
both = {m: (of(m, "click") + of(m, "purchase")) / 2 for m in [*others, "shared bottom"]}
primary_gap = sum(both[m] for m in GATED) / 3 - both["shared bottom"]
main = mean_interval(primary_gap)
gaps = {(m, t): of(m, t) - of("shared bottom", t) for m, t in product(others, TASKS)}
holds = {key for key, p in holm(gaps).items() if p <= 0.05}
fig, found = plots.figure(4.2), {}
for ax, task in zip(fig.subplots(1, 3), TASKS, strict=True):
    names = others if task == "click" else [" " * i for i in range(len(others))]
    rows_ = dict(zip(names, (gaps[m, task].to_numpy() for m in others), strict=True))
    styles = dict.fromkeys(names, plots.task_style(task))
    stars = [name for name, m in zip(names, others, strict=True) if (m, task) in holds]
    intervals = plots.interval_rows(ax, rows_, styles=styles, holm=stars, digits=3)
    ax.locator_params(axis="x", nbins=4)
    found |= {(m, task): i for m, i in zip(others, intervals.values(), strict=True)}
    ax.set(title=task, xlabel=f"{'accuracy' if task == 'next_category' else 'AUC'} − shared bottom")
up = [f"{m} ({t})" for m, t in holds if found[m, t].mean > 0]
down = [f"{m} ({t})" for m, t in holds if found[m, t].mean < 0]
fig.suptitle(
    f"Above the shared bottom: {listed(sorted(up))}; below: {listed(sorted(down))}",
    x=0.01,
    ha="left",
    fontsize=11,
)
display(fig, g_all.answer(main.mean, digits=3))
weak = of("shared bottom", "next_category")
odd = (
    f" In one shop the shared bottom itself fails on the next category ({weak.min():.2f}, median {weak.median():.2f}): the dots far to the right are its misfortune, not the others' merit."
    if weak.min() < 0.6 * weak.median()
    else ""
)
power = {t: np.mean([(found[m, t].high - found[m, t].low) / 2 for m in others]) for t in TASKS}
Markdown(
    f"**The contrast that was written down first**, the mean of MMoE, CGC and PLE minus shared bottom, AUC of click and purchase: **{span(main)}**, {says(main)} (p {holm({0: primary_gap})[0]:.3f}). "
    f"Everything else is exploratory; a star survives Holm's correction over {len(gaps)} contrasts. A tie is no proof of nothing: differences below about "
    f"{power['click']:.3f} (click), {power['purchase']:.3f} (purchase) and {power['next_category']:.3f} (next category) would go unseen here."
    + odd
)

# %% [markdown]
# The levels themselves, with floors and ceiling. And the price of **one stop**: one setting and one epoch for all tasks,
# which is how one model would be shipped. Which costs more: the wrong architecture, or the wrong stop?

# %%
g_stop = guess("Which moves AUC more?", choices=["architecture", "one stop for all", "not decided"])
g_stop

# %% tags=["plumbing"]
# @title Own stops, one stop
fig = plots.figure(4.0)
axes, everybody = fig.subplots(1, 2, sharey=True), ["shared bottom", *others[1:]]
for ax, task in zip(axes, FUNNEL, strict=True):
    color = COLORS[task]
    for y, m in enumerate(everybody):
        own, one = of(m, task).mean(), of(f"{m}, one stop", task).mean()
        ax.plot([own, one], [y, y], color=color, lw=1.5)
        ax.plot(own, y, "o", color=color, ms=8, label="own stop" if not y else None)
        ax.plot(one, y, "o", color=color, mfc="white", ms=7, label="one stop" if not y else None)
    for name, style in (("logistic regression", ":"), ("single-task", "--"), ("floor", "-.")):
        ax.axvline(
            of(name, task).mean(),
            color="#777777",
            lw=1.2,
            ls=style,
            label="popularity" if name == "floor" else name,
        )
    ax.set(title=f"{task} (the truth: {of('truth', task).mean():.3f})", xlabel="AUC")
axes[0].set_yticks(range(len(everybody)), everybody)
axes[0].set_ylim(len(everybody) - 0.5, -0.5)
plots.legend_outside(fig, axes[0])
one_stop = {
    m: (both[m] - (of(f"{m}, one stop", "click") + of(f"{m}, one stop", "purchase")) / 2) for m in everybody
}
cost = {"one stop for all": sum(one_stop.values()) / len(one_stop)}
first, *_, last = sorted(everybody, key=lambda m: -both[m].mean())
cost["architecture"] = both[first] - sum(both[m] for m in everybody) / len(everybody)
price, arch = (mean_interval(values) for values in cost.values())
lead = paired_difference(*cost.values())
moved = says(lead, *cost) if lead.excludes_zero else "not decided"
fig.suptitle(
    f"One stop costs {price.mean:.3f} AUC on average, an architecture picked blindly {arch.mean:.3f}: {says(lead, 'the stop is dearer', 'the architecture is dearer')}",
    x=0.01,
    ha="left",
    fontsize=11,
)
display(fig, g_stop.answer(moved))
Markdown(
    f"Mean over all architectures and shops. One stop instead of own stops costs {span(price)}; an architecture picked blindly, instead of the one best in hindsight "
    f"({first}), {span(arch)}; the difference is {span(lead)}. The worst choice ({last}) costs {both[first].mean() - both[last].mean():.4f}."
)

# %% tags=["plumbing"]
# @title The same as a table
names = ["floor", "logistic regression", "single-task", *everybody, "AITM, no calibrator", "truth"]
shown = {}
for m in names:
    line = {t: of(m, t).mean() if (m, t) in study.index.droplevel("shop") else np.nan for t in TASKS}
    known = (m, "click") in best.index
    line["parameters"] = f"{of(m, 'click', 'parameters').mean():,.0f}" if m not in ("floor", "truth") else "–"
    line["upside down, %"] = 100 * of(m, "click", "upside_down").mean()
    line["setting at an edge"] = listed(t for t in TASKS if best.get((m, t), False)) if known else "–"
    shown[m] = line
shown = pd.DataFrame(shown).T.infer_objects()
for column in (*TASKS, "upside down, %"):
    shown[column] = shown[column].astype(float)
plots.table(shown.rename_axis("own stops, mean of the shops"))

# %% tags=["plumbing"]
# @title What a reader may take home
calibrated = paired_difference(of("AITM", "purchase"), of("AITM, no calibrator", "purchase"))
alone = {t: paired_difference(of("shared bottom", t), of("single-task", t)) for t in TASKS}
pep_all = mean_interval(gaps["PEPNet", "click"])


def verdict(name):
    parts = [
        f"{t}: {says(found[name, t])}"
        if (name, t) in holds or not found[name, t].excludes_zero
        else f"{t}: {says(found[name, t])}, not after Holm"
        for t in TASKS
    ]
    return "; ".join(parts)


advice = [
    (
        "you start",
        "a shared bottom, tuned, each task at its own stop",
        f"one stop cost {span(price, 3)}; against single-task: "
        + "; ".join(f"{t} {says(i)}" for t, i in alone.items()),
    ),
    (
        "one event needs another",
        "ESMM where the order must hold",
        f"it cannot break it (section 4). {verdict('ESMM')}",
    ),
    (
        "a long funnel",
        "AITM with its calibrator",
        f"{verdict('AITM')}; the calibrator moved purchase by {span(calibrated, 3)}",
    ),
    ("one task suffers", "CGC: an expert of its own", verdict("CGC")),
    ("many tasks, unknown kinship", "MMoE, and look at its gates", verdict("MMoE")),
    ("large id tables", "STEM", f"not tried with ids. Without: {verdict('STEM')}"),
    ("scenes that differ in kind", "PEPNet; first the scene as a feature", verdict("PEPNet")),
]
plots.table(pd.DataFrame(advice, columns=["if", "try", "against the shared bottom, here"]))

# %% [markdown]
# ## Exercises
#
# `check` answers in words. `hint("06.gated_mixture")` gives a nudge, `hint("06.gated_mixture", 3)` nearly all.

# %%
from mtl_helpers.check import check, hint  # noqa: F401


def gated_mixture(gate_logits, experts):
    """gate_logits (n, E) and experts (E, n, d), tensors. Returns the mixture (n, d).

    Softmax shares over the experts. Example: equal logits give the experts' mean.
    """
    return ...


check("06.gated_mixture", gated_mixture)


# %%
def logit_of_product(a, b):
    """a and b (n,): logits of two probabilities. Returns the logits of their product.

    Shape (n,), finite for large a and b. With a = b = 0 it is log(1/3): 0.5 · 0.5
    has odds of one to three.
    """
    return ...


check("06.logit_of_product", logit_of_product)


# %%
def load_term(gates):
    """gates (n, E): each row sums to one. Returns a scalar tensor with a gradient.

    The squared coefficient of variation of the mean use: gates that all pick expert 1
    of 4 give 3; even use gives 0.
    """
    return ...


check("06.load_term", load_term)

# %% [markdown]
# ## Self-check
#
# **1.** Two tasks' gates look alike. Are the tasks alike?
#
# <details><summary>Answer</summary>Not necessarily. Towers can still differ, and experts can hold what both need. Section
# 7 shows how much the gates' distance moves with p, and how much with the seed.</details>
#
# **2.** A trained AITM never calls a purchase likelier than a click. Is the order built in?
#
# <details><summary>Answer</summary>No. It is learned, and pushed by a penalty, the calibrator. On rows unlike those it has
# seen it may break. ESMM returns a product: there it cannot (section 4).</details>
#
# **3.** ESMM's purchase tower is trained on all impressions. Does its conversion estimate inherit the bias of "clicked
# rows only"?
#
# <details><summary>Answer</summary>Its losses do not (section 4): both are defined on every impression. Its conversion may:
# it is p(buy) / p(click), and what it says of rows nobody clicks no label corrects. Notebook 05 measures it against the
# truth.</details>

# %% [markdown]
# ## Summary
#
# - Architectures differ in who decides what is shared: nobody (shared bottom), a learned matrix (cross-stitch), a gate that
#   reads the row (MMoE, PLE), the order of events (ESMM, AITM), the embeddings (STEM), the scene (PEPNet).
# - A gate can be read, and it can collapse. Judge a remedy by the error, not by even use.
# - Match parameters and tuning, give every task its own stop, state one contrast first. What is left of the gain is in
#   section 8, with the differences that it could not have seen.
#
# **What the toy hides.** Three tasks, no ids, rows by the ten thousand. Experts were built for many tasks and far more
# data, STEM for tables of millions of ids, PEPNet for scenes that differ in kind. **In production** gates and extra towers
# cost latency on every request, and every expert must be kept alive through retraining.

# %% [markdown]
# ## References
#
# - I. Misra et al., *Cross-Stitch Networks for Multi-task Learning*, CVPR 2016, eq. 1.
# - J. Ma et al., *Modeling Task Relationships in Multi-task Learning with Multi-gate Mixture-of-Experts*, KDD 2018. Its
#   gates have no bias; ours have one.
# - H. Tang et al., *Progressive Layered Extraction (PLE)*, RecSys 2020.
# - X. Ma et al., *Entire Space Multi-Task Model*, SIGIR 2018, eq. 3.
# - D. Xi et al., *Modeling the Sequential Dependence among Audience Multi-step Conversions with Multi-task Learning in
#   Targeted Display Advertising* (AITM), KDD 2021.
# - L. Su et al., *STEM: Unleashing the Power of Embeddings for Multi-task Recommendation*, AAAI 2024, arXiv:2308.13537.
# - J. Chang et al., *PEPNet: Parameter and Embedding Personalized Network for Infusing with Personalized Prior
#   Information*, KDD 2023, arXiv:2302.01115.
# - N. Shazeer et al., *Outrageously Large Neural Networks*, ICLR 2017, section 4 (the load term).
# - Z. Zhao et al., *Recommending What Video to Watch Next*, RecSys 2019 (dropout of experts).
#
# **Next:** [07_real_data](07_real_data.ipynb): the seesaw, and transfer when labels are scarce.
