# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # 03 · Loss math: what a task weight really does
#
# **Promise.** You derive the loss of a multi-task model in small steps, and the cell below each formula checks it
# with PyTorch's automatic differentiation. So you need to believe nothing.
#
# {{colab_badge}} · [glossary](glossary.md) · about 90 minutes with a pencil, one minute to run on two CPU cores (no
# GPU needed) · builds on [02_shared_bottom](02_shared_bottom.ipynb)

# %%
# {{setup}}

# %% tags=["plumbing"]
# @title Imports
from functools import partial

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from IPython.display import Markdown, display
from torch import nn

from mtl_helpers import data, gradients, losses, weighting
from mtl_helpers.data import Task
from mtl_helpers.models import SharedBottom, count_parameters
from mtl_helpers.notebook import seed_everything
from mtl_helpers.training import training_steps
from mtl_helpers.widgets import course_map, draw, guess
from mtl_helpers.widgets import figures as plots
from mtl_helpers.widgets import formulas as loss_demos

# %% tags=["plumbing"]
# @title You are here
BROKEN = "#8B1A1A"  # of a formula that fails; no task has this colour
doubles = partial(torch.tensor, dtype=torch.float64)
course_map("03")

# %% [markdown]
# ## When is one half not a half?
#
# Two tasks share two parameters. The loss of each is a bowl with a lowest point of its own. Both weigh one half, and
# yet {{click}} gets nearly all it wants: its loss is a sum over 100 rows, where a mean was meant. **Find the weight of
# {{purchase}} that makes up for it.** Then set the factor back to 1.

# %%
A = doubles([[[1.0, 0.0], [0.0, 4.0]], [[3.0, 1.5], [1.5, 1.5]]])  # curvatures
c = doubles([[-1.5, -0.5], [1.5, 1.0]])  # lowest points
bowl_demo = loss_demos.two_losses_explorer(A, c)
bowl_demo

# %% [markdown]
# So a weight alone says little. What does it multiply? Five questions lead there:
#
# 1. What is one task's loss, and what went wrong in the formula of the article behind this course?
# 2. Which rows count in it?
# 3. What does a weight do to the gradients?
# 4. Does that survive Adam?
# 5. What if the tasks disagree, and what can no weight reach?

# %% [markdown]
# ## 1 · What is one task's loss?
#
# The shared bottom makes a representation of the features. Each task reads it in a tower of its own. The losses are
# weighted and summed:
#
# $$Z=f(X),\qquad Y_i=g_i(Z),\qquad L=\sum_{i=1}^{T}w_i\,L_i$$

# %% tags=["plumbing"]
# @title Draw the model
draw("shared_bottom", tasks=("click", "purchase", "next_category"))

# %% [markdown]
# | symbol | meaning | name in code |
# |---|---|---|
# | $m$, $C$, $T$ | samples (rows), classes of a task, tasks | `len(batch)`, `task.n_classes`, `len(model.tasks)` |
# | $z$, $p$ | logits that a tower returns, the probabilities made of them | `logits[name]`, `p` |
# | $y$ | labels, one-hot in formulas: 1 for the class that came | `labels`, `Y` |
# | $\theta$, $\varphi_i$ | shared parameters, those of tower $i$ | `model.shared_parameters()`, `model.task_parameters(name)` |
# | $g_i=\partial L_i/\partial\theta$ | shared gradient of task $i$ (without brackets; $g_i(Z)$ is the tower) | a row of `J` |

# %% tags=["plumbing"]
# @title Load the shop, a batch of it and an untrained model
frames = data.shop_splits(data.shop_frame(data.load_shop()))
splits = data.prepare(frames, data.SHOP_TASKS, data.SHOP_NUMERIC, data.SHOP_CATEGORICAL)
names = [task.name for task in splits.tasks]
batch = next(splits.train.batches(4096, generator=torch.Generator().manual_seed(0)))


def new_model(seed, tasks=splits.tasks):
    seed_everything(seed)
    return SharedBottom(splits.schema, tasks, embedding_dim=4)


model = new_model(0)

# %%
Z = model.represent(batch.numeric, batch.categorical)  # f(X)
by_hand = {name: tower(Z) for name, tower in model.towers.items()}  # g_i(Z)
logits = model(batch.numeric, batch.categorical)
assert all(torch.equal(by_hand[name], logits[name]) for name in names)
said = ", ".join(f"{name} {tuple(logits[name].shape)}" for name in names)
Markdown(f"Z {tuple(Z.shape)} → {said}: the towers over Z are the model.")

# %% [markdown]
# ### The article's formula
#
# The article behind this course prints the loss of task $i$ so, and says: $m$ samples, $C$ classes.
#
# $$L_i=-\frac1m\sum_{j=1}^{C}y_{ij}\log\hat y_{ij}$$
#
# Read it as a program. The sum runs over the classes of *one* row: no index says which row. Still it is divided by the
# number of rows. Some readers take $j$ for the row as well, others mend it by a mean over everything:


# %%
def one_row(Y, p):  # as printed: of which row? we take the first
    return -(Y[0] * p[0].log()).sum() / len(Y)


def one_index(Y, p):  # j names the class and the row: a diagonal
    m, C = Y.shape
    return -sum(Y[j, j] * p[j, j].log() for j in range(C)) / m


def mean_of_all(Y, p):  # divides by m · C
    return -(Y * p.log()).mean()


def two_sums(Y, p):  # corrected: a sum over classes, a mean over rows
    return -(Y * p.log()).sum(dim=1).mean(dim=0)


# %% [markdown]
# Try all four on an honest model that knows nothing: each of 8 classes gets ⅛, so whatever the label is, a row costs
# log 8 = 2.08 nats.

# %% tags=["plumbing"]
# @title Guess first: the loss as printed
asked = "Its loss on 1,024 rows, by the formula as printed?"
printed_guess = guess(asked, high=2.5, unit="nats")
printed_guess

# %% tags=["plumbing"]
# @title Compute: loss, and rows that get a gradient, by batch size
FORMS = {"two sums": two_sums, "÷ mC": mean_of_all}
FORMS |= {"j is row and class": one_index, "as printed": one_row}
SIZES, C = (16, 64, 256, 1024, 4096), 8


def of_nothing(form, m):
    """Loss of the know-nothing model, and the rows on which it depends."""
    Y = F.one_hot(torch.arange(m) % C, C).float()
    z = torch.zeros(m, C, requires_grad=True)
    loss = form(Y, z.softmax(dim=1))
    (slope,) = torch.autograd.grad(loss, z)
    return loss.item(), (slope.abs().sum(dim=1) > 1e-9).sum().item()


found = {name: np.array([of_nothing(f, m) for m in SIZES]) for name, f in FORMS.items()}
shrinks = found["as printed"][-1, 0] < 0.1 * found["as printed"][0, 0]
flat = np.ptp(found["two sums"][:, 0]) < 1e-4

# %% tags=["plumbing"]
# @title Draw the four formulas
fig = plots.figure(3.3)
left, right = fig.subplots(1, 2)
LOOKS = ("D-", "#222222"), ("^-.", "#aaaaaa"), ("s--", BROKEN), ("o-", BROKEN)
for (name, values), (line, color) in zip(found.items(), LOOKS, strict=True):
    look = {"color": color, "ms": 6, "lw": 4 if name == "two sums" else 1.8}
    for ax, column in ((left, 0), (right, 1)):
        ax.plot(SIZES, values[:, column], line, label=name, **look)
left.set(xscale="log", xlabel="samples m", ylabel="loss (nats)", ylim=(-0.05, 2.5))
left.set_title("As printed, more rows make the loss vanish" if shrinks else "The loss")
right.set(xscale="log", yscale="log", xlabel="samples m", ylabel="rows with a gradient")
right.set_title("… and one row teaches" if found["as printed"][-1, 1] == 1 else "")
for ax in (left, right):
    ax.set_xticks(SIZES, SIZES)
    ax.minorticks_off()
left.annotate("log C, the honest loss", (16, 2.2), fontsize=9)
printed_guess.mark(left, axis="y")
plots.legend_outside(fig, left)
display(fig)
printed_guess.answer(found["as printed"][SIZES.index(1024), 0], digits=4)

# %% [markdown]
# The corrected formula needs two indices, $n$ for rows and $c$ for classes. The **sum over classes** picks one entry of
# each row; the **mean over samples** averages rows. Dividing by $mC$ keeps all rows, but hides a weight $1/C$ that
# nobody chose: a task of 8 classes then counts 2.7 times less than one of 3.
#
# $$L_i=-\frac1m\sum_{n=1}^{m}\sum_{c=1}^{C}y_{nc}\log p_{nc}$$
#
# It is not a convention. A good model gives the labels that came a high probability: $\prod_n p_{n,y_n}$, the
# *likelihood*. Of 10,000 rows that product is too small to be a number. Its logarithm is a sum, minus makes small
# good, and ÷ m makes batches comparable. That is **cross-entropy**.

# %%
z = [[2.0, 0.5, -1.0], [0.0, 0.0, 0.0], [-0.5, 1.5, 3.0], [1.0, -2.0, 0.3]]
z, labels = doubles(z), torch.tensor([0, 1, 2, 1])
m, C = z.shape
p = z.exp() / z.exp().sum(dim=1, keepdim=True)  # softmax
Y = F.one_hot(labels, C).double()
likelihood = p[torch.arange(m), labels].prod()
by_hand = two_sums(Y, p)
helper = losses.task_loss(Task("shelf", "multiclass", n_classes=3), z, labels)
for same in (-likelihood.log() / m, F.cross_entropy(z, labels), helper):
    torch.testing.assert_close(by_hand, same)
said = "−log(likelihood)/m, the two sums, `F.cross_entropy` and `losses.task_loss`"
Markdown(f"✓ {said}: all **{by_hand:.4f}** nats.")


# %% [markdown]
# ### Its gradient is p − y
#
# Take one row. Its loss is $-z_y+\log\sum_k e^{z_k}$. By $z_c$, the first term gives $-y_c$ and the second
# $e^{z_c}/\sum_k e^{z_k}=p_c$. If all logits are divided by a **temperature** $\tau$ first, the chain rule divides by
# $\tau$ once more:
#
# $$\frac{\partial L}{\partial z_{nc}}=\frac{p_{nc}-y_{nc}}{\tau\,m},\qquad p=\mathrm{softmax}(z/\tau)$$
#
# The gradients derived on this page go through the next cell (those of a whole network, in section 3, are compared with
# autograd alone). It compares what is derived by hand with autograd, and with a slope that is measured by two evaluations. In float64, since the difference of nearly equal numbers loses digits.


# %%
def check_gradient(formula, loss, x, by_hand, h=1e-5):
    """Stop unless by_hand is the gradient of loss at x; return a sentence."""
    x = x.detach().double().requires_grad_()
    (auto,) = torch.autograd.grad(loss(x), x)
    steps = h * torch.eye(x.numel(), dtype=x.dtype).view(-1, *x.shape)
    with torch.no_grad():
        slopes = [(loss(x + step) - loss(x - step)) / (2 * h) for step in steps]
    slopes = torch.stack(slopes).view(x.shape)
    size = auto.abs().max().clamp(min=1)  # large slopes: relative to their size
    gaps = [((by_hand - other).abs().max() / size).item() for other in (auto, slopes)]
    assert gaps[0] < 1e-9 and gaps[1] < 1e-6, f"{formula} is wrong"
    return f"✓ {formula}: autograd {gaps[0]:.0e}, two evaluations {gaps[1]:.0e} away. "


# %%
said = ""
for tau in (0.5, 1.0, 4.0):
    slope = ((z / tau).softmax(dim=1) - Y) / (tau * m)
    loss = partial(lambda z, tau: F.cross_entropy(z / tau, labels), tau=tau)
    said += check_gradient(f"(p − y)/(τm) at τ = {tau}", loss, z, slope)
try:
    check_gradient("a slip, without τ", loss, z, slope * tau)
except AssertionError as error:
    said += f"✗ The check can fail, too: {error}."
Markdown(said)

# %% [markdown]
# The label below is *toys*. Raise the logit of *books* to its right end: does the loss bend, or become a straight
# line? How large can the gradient get? Then warm the softmax up.

# %% tags=["plumbing"]
# @title Move a logit and the temperature
logit_demo = loss_demos.logit_explorer()
logit_demo

# %% [markdown]
# The gradient has no factor that vanishes for a confident wrong answer. That is what the logarithm buys: it undoes
# the exponential of the softmax, and far out the loss is a line of slope 1/τ.
#
# ### Why do losses take logits?
#
# A click has two outcomes, so one logit will do. Fix that of "no" at 0, and the softmax becomes the sigmoid
# $\sigma(z)=1/(1+e^{-z})$, cross-entropy becomes *binary cross-entropy* (BCE). On paper it can be written in two ways:
#
# $$L=-y\log\sigma(z)-(1-y)\log(1-\sigma(z))\;=\;\max(z,0)-yz+\log\left(1+e^{-|z|}\right)$$


# %%
def naive(z, y):  # the left form
    p = torch.sigmoid(z)
    return -y * torch.log(p) - (1 - y) * torch.log(1 - p)


def clamped(z, y):  # the usual repair: nn.BCELoss cuts the logarithm off
    return F.binary_cross_entropy(torch.sigmoid(z), y)


def on_logits(z, y):  # the right form: no exponent is above 0
    return torch.maximum(z, torch.zeros_like(z)) - y * z + torch.log1p((-z.abs()).exp())


# %% tags=["plumbing"]
# @title Guess first: the gradient of a clamped loss
asked = "Float32, logit 20, no click came: the gradient after sigmoid and BCELoss?"
logit_guess = guess(asked)
logit_guess


# %% tags=["plumbing"]
# @title Compute: loss and gradient of the three forms, logits 0 to 30
def loss_and_slope(form, value):
    z = torch.tensor(value, requires_grad=True)  # float32, as in training
    loss = form(z, torch.tensor(0.0))
    return loss.item(), torch.autograd.grad(loss, z)[0].item()


grid = torch.linspace(0, 30, 241).tolist()
FORMS = {"naive": naive, "sigmoid, then BCELoss": clamped, "on logits": on_logits}
curves = {
    name: np.array([loss_and_slope(form, value) for value in grid])
    for name, form in FORMS.items()  # three forms
}
breaks = grid[int(np.argmin(np.isfinite(curves["naive"][:, 0])))]
dead = {name: curve[-1, 1] == 0 for name, curve in curves.items()}
alive = curves["on logits"][-1, 1] > 0.99

# %% tags=["plumbing"]
# @title Draw the three forms
fig = plots.figure(3.4)
left, right = fig.subplots(1, 2)
LOOKS = ((BROKEN, "-", 6), ("#999999", "--", 2.4), ("#222222", "-", 1.8))
for (name, curve), (color, line, width) in zip(curves.items(), LOOKS, strict=True):
    shown = np.where(np.isfinite(curve), curve, np.nan)
    for ax, column in ((left, 0), (right, 1)):
        ax.plot(grid, shown[:, column], line, color=color, lw=width, label=name)
left.set(xlabel="logit; the label is 0", ylabel="loss (nats)")
left.set_title(f"Naive BCE is infinite from logit {breaks:.1f} on")
right.set(xlabel="logit; the label is 0", ylabel="gradient", ylim=(-0.05, 1.1))
stuck = dead["sigmoid, then BCELoss"] and alive
title = "Clamped, the worst mistake is never corrected"
right.set_title(title if stuck else "The gradients")
plots.legend_outside(fig, left)
logit_guess.mark(right, axis="y")
display(fig)
logit_guess.answer(loss_and_slope(clamped, 20.0)[1])

# %%
z, y = doubles([-2, 0.4, 1.5]), doubles([0, 1, 0])
slope = (z.sigmoid() - y) / len(z)  # p − y again
helper = partial(losses.task_loss, Task("click"), labels=y)
ours = lambda z: on_logits(z, y).mean()
said = check_gradient("(σ(z) − y)/m, our form", ours, z, slope)
said += check_gradient("the same for `losses.task_loss`", helper, z, slope)


def stable_log_sum(z):  # the largest logit leaves the sum: no exponent above 0
    return z.max() + (z - z.max()).exp().sum().log()


said += check_gradient("log Σ eᶻ has slope softmax(z)", stable_log_sum, z, z.softmax(0))
Markdown(said)

# %% [markdown]
# **What surprised you?** The formula on paper was right all along; only the order of the operations changed. The
# softmax needs the same trick, **log-sum-exp**: take the row's largest logit out before you exponentiate (exercise 2).
# So a model returns logits, and the loss applies sigmoid or softmax. All models of this course do.

# %% [markdown]
# ## 2 · Which rows count?
#
# Not every row has every label: the shop's {{next_category}} is unknown while a user has not clicked in a later session. Let $k_n$ be 1
# where the label is known, else 0, and average over the known rows:
#
# $$L=\frac{\sum_n k_n\,\ell_n}{\sum_n k_n},\qquad\frac{\partial L}{\partial z_n}=k_n\,\frac{p_n-y_n}{\sum_j k_j}$$

# %%
z, y = doubles([-2, 0.4, 1.5, 0.8]), doubles([0, 1, 0, 0])
known = torch.tensor([True, True, False, False])
slope = known * (z.sigmoid() - y) / known.sum()
helper = partial(losses.task_loss, Task("click"), labels=y, mask=known)
by_hand = (F.binary_cross_entropy_with_logits(z, y, reduction="none") * known).sum() / 2
torch.testing.assert_close(by_hand, helper(z))
Markdown(check_gradient("k (p − y) / Σk", helper, z, slope))

# %% [markdown]
# Here a missing label was stored as 0, as the course's loader does, too. Tables come with NaN in its place. Then
# $0\cdot\mathrm{NaN}$ is not 0 but NaN, and four ways to leave a row out are no longer the same:

# %%
picked = torch.Generator().manual_seed(0)
known = torch.rand(len(batch), generator=picked) > 0.1
y = batch.labels["click"].masked_fill(~known, float("nan"))  # a tenth is missing
bce = partial(F.binary_cross_entropy_with_logits, reduction="none")
zero, count = torch.zeros(()), known.sum()
clean = torch.where(known, y, zero)
WAYS = {
    "loss × mask": lambda z: (bce(z, y) * known).sum() / count,
    "where() on the loss": lambda z: torch.where(known, bce(z, y), zero).sum() / count,
    "where() on the labels": lambda z: (bce(z, clean) * known).sum() / count,
    "index the known rows": lambda z: bce(z[known], y[known]).mean(),
}

# %% tags=["plumbing"]
# @title Guess first: which mask is the trap
mask_guess = guess("Which way gives a right loss and ruins the model?", choices=[*WAYS])
mask_guess

# %% tags=["plumbing"]
# @title Compute: one SGD step each way, and what a wrong denominator does
report = {}
for way, loss_of in WAYS.items():
    fresh = new_model(0)
    loss = loss_of(fresh(batch.numeric, batch.categorical)["click"])
    loss.backward()
    torch.optim.SGD(fresh.parameters(), lr=0.1).step()
    used = [*fresh.shared_parameters(), *fresh.task_parameters("click")]
    lost = torch.cat([q.isnan().flatten() for q in used]).double().mean()
    report[way] = {"loss": loss.item(), "parameters lost": lost.item()}
report = pd.DataFrame(report).T
fine, kept = report["loss"].notna(), report["parameters lost"] == 0
traps = [*report.index[fine & ~kept]]
batches = splits.train.batches(1024, generator=torch.Generator().manual_seed(1))
shares = [each.masks["next_category"].double().mean().item() for each in batches]

# %% tags=["plumbing"]
# @title Draw what is left of the model
fig = plots.figure(2.9)
left, right = fig.subplots(1, 2, width_ratios=(1.2, 1))
places = range(len(report))
colors = ["#222222" if safe else BROKEN for safe in kept]
left.barh(places, report["parameters lost"], color=colors)
for i, (_, row) in enumerate(report.iterrows()):
    said = "nan" if np.isnan(row["loss"]) else f"{row['loss']:.3f}"
    inside = row["parameters lost"] > 0.5
    where = {"x": 0.98, "ha": "right", "color": "white"} if inside else {"x": 0.02}
    left.text(y=i, s=f"the loss says {said}", va="center", **where)
left.set_yticks(places, report.index)
left.set(xlim=(0, 1), ylim=(3.5, -0.5), xlabel="share of NaN parameters after one step")
left.set_title(f"{(~kept).sum()} of {len(kept)} ways ruin the model")
mask_guess.mark(left)
right.plot(shares, color=plots.task_style("next_category")["color"], lw=1.2)
right.set(ylim=(0, 1.02), xlabel="batch of 1,024 rows", ylabel="known share")
right.set_title(f"÷ all rows hides a weight of {np.mean(shares):.2f}")
display(fig)
mask_guess.answer(traps[0] if len(traps) == 1 else "none, or more than one")

# %% [markdown]
# **What surprised you?** `where` after the loss shows the right number, and its backward pass multiplies 0 by NaN all
# the same. Choose *before* the arithmetic: clean the labels, or index the rows. And on the right: who forgets the mask
# in the denominator gives {{next_category}} a weight that changes with every batch. Which leads to the question what
# a weight does.

# %% [markdown]
# ## 3 · What does a task weight do to the gradients?
#
# Differentiate $L=\sum_i w_iL_i$. Tower $i$ stands in $L_i$ alone, the bottom in every loss:
#
# $$\frac{\partial L}{\partial\varphi_i}=w_i\frac{\partial L_i}{\partial\varphi_i},\qquad
# \frac{\partial L}{\partial\theta}=\sum_{i=1}^{T}w_i\,g_i$$


# %%
def flat_gradient(loss, parameters):
    """Gradient in all given parameters as one vector."""
    how = {"retain_graph": True, "materialize_grads": True}  # 0 where it plays no part
    found = torch.autograd.grad(loss, [*parameters], **how)
    return torch.cat([part.flatten() for part in found])


w = torch.tensor([1.0, 5.0, 0.2])
weights = dict(zip(names, w.tolist(), strict=True))
L = losses.task_losses(model.tasks, model(batch.numeric, batch.categorical), batch)
total = losses.weighted_sum(L, weights)  # by autograd
J = torch.stack([flat_gradient(L[name], model.shared_parameters()) for name in names])
shared = flat_gradient(total, model.shared_parameters())
torch.testing.assert_close(shared, w @ J, rtol=1e-4, atol=1e-7)
for name in names:
    tower = [*model.task_parameters(name)]
    own = weights[name] * flat_gradient(L[name], tower)
    torch.testing.assert_close(flat_gradient(total, tower), own, rtol=1e-4, atol=1e-7)
Markdown(f"✓ {J.shape[1]:,} shared parameters get Σ wᵢ gᵢ, each tower wᵢ ∂Lᵢ/∂φᵢ.")

# %% [markdown]
# A tower feels its own weight only. The bottom gets *one* vector $g=\sum_j w_jg_j$, and the share of task $i$ in it is
# $w_i\,g_i\cdot g/\lVert g\rVert^2$. The shares add up to 1; a negative one belongs to a task that the step works against.
#
# In this shop a {{purchase}} comes in one row of two hundred. A model that always says that base rate $r$ has a small loss, the
# **entropy** of the label, $H(r)=-r\log r-(1-r)\log(1-r)$. Is the rare task therefore a quiet one?

# %% tags=["plumbing"]
# @title Guess first: the share of a rare label
asked = "Untrained, equal weights: how much of the shared gradient is purchase's?"
share_guess = guess(asked)
share_guess


# %%
def shares_of(model, batch):
    """Loss of each task, and its share in the gradient of the plain sum."""
    L = losses.task_losses(model.tasks, model(batch.numeric, batch.categorical), batch)
    parameters = [*model.shared_parameters()]
    J = torch.stack([flat_gradient(loss, parameters) for loss in L.values()])
    g = J.sum(dim=0)
    return [loss.item() for loss in L.values()], (J @ g / (g @ g)).tolist()


# %% tags=["plumbing"]
# @title Start the last biases at the base rates
def say_base_rates(model, rows):
    """Set the last bias of each tower so that it says its label's base rates."""
    for task in rows.tasks:
        y = rows.labels[task.name][rows.masks.get(task.name, slice(None))]
        rates = y.long().bincount() / len(y)
        logits = rates.log() if task.n_classes else (rates[1] / rates[0]).log()
        with torch.no_grad():
            model.towers[task.name].head.bias.copy_(logits)
    return model


# %% tags=["plumbing"]
# @title Compute: untrained models, before and after their biases are set
SEEDS = 2 if FAST else 10
fresh = [shares_of(new_model(seed), batch) for seed in range(SEEDS)]
ready = (say_base_rates(new_model(seed), splits.train) for seed in range(SEEDS))
settled = [shares_of(each, batch) for each in ready]
first, later = np.array(fresh), np.array(settled)  # (models, loss or share, task)
constants = weighting.constant_losses(splits.train)
by_task = dict(zip(names, range(len(names)), strict=True))
purchase = by_task["purchase"]
before, after = (runs[:, 1, purchase].mean() for runs in (first, later))
others = np.delete(first[:, 1], purchase, axis=1).max(axis=1)
louder = int((first[:, 1, purchase] > others).sum())
title = f"Purchase is the loudest in {louder} of {SEEDS} untrained models, "
title += f"and gives {100 * after:.1f} % of the gradient later"
spreads = (first[:, 0].mean(axis=0), [*constants.values()])
spreads = (max(each) / min(each) for each in spreads)
spread = "Largest / smallest loss: dots {:.1f}, bars {:.0f}".format(*spreads)

# %% tags=["plumbing"]
# @title Draw losses and shares
fig = plots.figure(3.4)
left, right = fig.subplots(1, 2, sharey=True)
for name, i in by_task.items():
    style = plots.task_style(name)
    look = {"color": style["color"], "marker": style["marker"], "lw": 0}
    left.plot(first[:, 0, i], np.full(SEEDS, i), **look, alpha=0.5)
    left.plot(constants[name], i, "|", color=style["color"], ms=26, mew=3)
    for runs, lift, fill in ((first, -0.13, style["color"]), (later, 0.13, "white")):
        part = runs[:, 1, i]
        ends = [part.min(), part.max()]
        right.plot(ends, [i + lift] * 2, color=style["color"])
        right.plot(part.mean(), i + lift, **look, ms=9, mfc=fill)
left.set_yticks(range(len(names)), names)
left.set(xscale="log", ylim=(2.5, -0.5), title=spread)
left.set_xlabel("loss (nats): ● untrained, ┃ best constant")
right.set(xlim=(-0.03, 1.03), title="Share of the shared gradient, mean and range")
right.set_xlabel("share: ● untrained, ○ base rates known")
fig.suptitle(title, x=0.01, ha="left", fontsize=11)
share_guess.mark(right)

# %% tags=["plumbing"]
# @title Show it with your guess of the share
display(fig)
share_guess.answer(before)

# %%
r = splits.train.labels["purchase"].double().mean()
entropy = lambda r: -r * r.log() - (1 - r) * (1 - r).log()
np.testing.assert_allclose(entropy(r).item(), constants["purchase"])
Markdown(
    check_gradient("H′(r) = log((1 − r)/r)", entropy, r, ((1 - r) / r).log())
    + f"H({r:.4f}) = {entropy(r):.4f} nats, as `weighting.constant_losses` says."
)

# %% [markdown]
# Two different things are called "the size of a loss". The dots on the left are losses of an *untrained* model, which says
# about ½ to every yes/no question: on nearly all rows it errs about the rarest label in the same direction, those gradients
# add up, and on average {{purchase}} moves the bottom most. The bars are losses of the *best constant*. Once the towers
# know the base rates, the rare label is the quietest. Neither number says what a sale is worth.
#
# ### The unit of a label is a weight
#
# With mean squared error, $L=\frac1m\sum_n(\hat y_n-y_n)^2$ and $\partial L/\partial\hat y_n=2(\hat y_n-y_n)/m$, a factor $k$ in the unit of
# the label makes $k$ times the gradient and $k^2$ times the loss. A toy of two tasks, a click and the money spent:


# %% tags=["plumbing"]
# @title A toy: a click and money spent, over six features
def toy(unit=1.0, n=2048):
    g = torch.Generator().manual_seed(3)
    X = torch.randn(n, 6, generator=g).double()
    clicks = torch.bernoulli((X[:, 0] + 0.6 * X[:, 1] - 1).sigmoid(), generator=g)
    euros = 3 + 2 * X[:, 0] - 1.5 * X[:, 2] + torch.randn(n, generator=g).double()
    tasks, nothing = (Task("click"), Task("spend", "regression")), torch.zeros(n, 0)
    labels = {"click": clicks, "spend": unit * euros}
    return data.MultiTaskDataset(X, nothing.long(), labels, {}, tasks)


def toy_model(seed=0):
    seed_everything(seed)
    schema = data.Schema(tuple(f"x{k}" for k in range(6)), {})
    return SharedBottom(schema, toy(n=2).tasks, hidden=(16,), tower=(8,)).double()


# %% tags=["plumbing"]
# @title Compute and draw: who moves the bottom, by the unit of the money
UNITS = {"in thousands of euros": 0.001, "in euros": 1.0, "in cents": 100.0}
of_spend = {
    name: [shares_of(toy_model(seed), toy(unit))[1][1] for seed in range(10)]
    for name, unit in UNITS.items()  # ten models each
}
fig = plots.figure(2.2)
ax = fig.subplots()
styles = dict.fromkeys(UNITS, plots.task_style("spend"))
found = plots.interval_rows(ax, of_spend, styles=styles, zero=False, digits=2)
ax.set(xlabel="spend's share of the shared gradient (10 untrained models)")
clear = found["in cents"].low > found["in thousands of euros"].high
ax.set_title("Nobody touched a weight; the unit did this" if clear else "No trend")
fig

# %%
guessed, euros, said = doubles([10, 22, 11]), doubles([12, 30, 7]), ""
for unit, k in (("euros", 1), ("cents", 100)):
    slope = 2 * k * (guessed - euros) / 3
    loss = partial(losses.task_loss, Task("spend", "regression"), labels=k * euros)
    said += check_gradient(f"2(ŷ − y)/m in {unit}", loss, k * guessed, slope)
    said += f"The loss is {loss(k * guessed):,.1f}. "
Markdown(said)

# %% [markdown]
# **What surprised you?** A task is loud because its label is far from what the model says now, because it has many classes, a
# large unit or a wrong denominator. All of these are weights that nobody chose. So: standardise regression labels, start
# the last biases at the base rates, and only then choose weights on purpose.

# %% [markdown]
# ## 4 · Do weights survive Adam?
#
# SGD steps by $-\eta\,g$: ten times the weights, ten times the step. Adam divides a running mean of the gradient by the
# root of a running mean of its square. A common factor of all weights cancels, until gradients are so small that
# $\epsilon$ counts:
#
# $$\Delta=-\eta\,\frac{\hat m}{\sqrt{\hat v}+\epsilon}$$


# %%
def adam_by_hand(gradients, lr=0.01, beta1=0.9, beta2=0.999, eps=1e-8):
    m = v = x = 0.0
    for t, g in enumerate(gradients, start=1):
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g**2
        x -= lr * (m / (1 - beta1**t)) / ((v / (1 - beta2**t)) ** 0.5 + eps)
    return x


# %%
sequence = np.random.default_rng(0).normal(0.5, 1, 50)
x = torch.zeros(1, dtype=torch.float64, requires_grad=True)
adam = torch.optim.Adam([x], lr=0.01)
for g in sequence:
    x.grad = doubles([g])
    adam.step()
np.testing.assert_allclose(adam_by_hand(sequence), x.item())
one, ten, tiny = (adam_by_hand(k * sequence) for k in (1, 10, 1e-9))
said = f"50 steps of g end at {one:.5f}, of 10 g at {ten:.5f}, of 10⁻⁹ g at {tiny:.5f}."
Markdown(plots.minus(f"✓ by hand as in torch. {said}"))

# %% [markdown]
# Real training adds **weight decay**. Adam with L2 puts it *into* the gradient, $g+\lambda\theta$, where it competes with the
# weighted losses. AdamW keeps it *beside* the step. Train the toy twice, from one start and on the same batches, once with
# weights 1 and 1, once with others. How far apart are the two runs, per unit of the way that the first one went? 0 means the
# same path.

# %% tags=["plumbing"]
# @title Guess first: three optimisers
adam_guess = guess(
    "All weights × 10: exactly one of these three takes another path. Which?",
    choices=["Adam", "Adam with decay", "AdamW with decay"],
)
adam_guess

# %% tags=["plumbing"]
# @title Train the toy along two paths
STEPS = 20 if FAST else 150
toy_data = toy()
money = toy_data.labels["spend"]
toy_data.labels["spend"] = (money - money.mean()) / money.std()


def positions(model):
    groups = {"bottom": model.shared_parameters()}
    groups |= {name: model.task_parameters(name) for name in model.towers}
    flat = nn.utils.parameters_to_vector
    return {name: flat(part).detach().clone() for name, part in groups.items()}


# %% tags=["plumbing"]
# @title Train, and measure the way
def path(weights, optimizer, frozen=False, **settings):
    """Train the toy; the way of each group of parameters from its start."""
    model, order = toy_model(), torch.Generator().manual_seed(0)
    for q in model.shared_parameters():
        q.requires_grad_(not frozen)
    free = [q for q in model.parameters() if q.requires_grad]
    made = optimizer(free, **{"lr": 0.003} | settings)
    how = {"weights": dict(zip(("click", "spend"), weights, strict=True)), "epochs": 99}
    how |= {"batch_size": 256}
    start = positions(model)
    steps = training_steps(model, toy_data, made, generator=order, **how)
    for _, _step in zip(range(STEPS), steps, strict=False):
        pass
    return {name: end - start[name] for name, end in positions(model).items()}


# %%
def apart(weights, *how, **settings):
    """Distance from the run with weights 1 and 1, per unit of its way."""
    one, other = path((1.0, 1.0), *how, **settings), path(weights, *how, **settings)
    moved = {name: way.norm() for name, way in one.items() if way.any()}
    gaps = {name: (other[name] - one[name]).norm() / way for name, way in moved.items()}
    return {name: gap.item() for name, gap in gaps.items()}


# %%
Adam, AdamW, SGD, decay = torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD, 0.05
RUNS = {
    "SGD": apart((10, 10), SGD),
    "Adam": apart((10, 10), Adam),
    "Adam, ε = 1e-14": apart((10, 10), Adam, eps=1e-14),
    "Adam with decay": apart((10, 10), Adam, weight_decay=decay),
    "AdamW with decay": apart((10, 10), AdamW, weight_decay=decay),
    "Adam, tiny weights": apart((1e-8, 1e-8), Adam),
    "Adam, one weight": apart((1, 10), Adam),
    "Adam, bottom frozen": apart((1, 10), Adam, True),
    "SGD, bottom frozen": apart((1, 10), SGD, True),
}
runs = pd.DataFrame(RUNS).T

# %% tags=["plumbing"]
# @title Which runs part?
moved = runs.max(axis=1) > 0.01
of_three = [name for name in adam_guess.choices if moved[name]]
answer = of_three[0] if len(of_three) == 1 else "none, or more than one"
title = "Decay inside Adam makes the size of the weights count; AdamW does not"
title = title if answer == "Adam with decay" else "Which runs part?"

# %% tags=["plumbing"]
# @title Draw all nine lines
fig = plots.figure(4.2)
ax = fig.subplots()
ax.axvspan(1e-14, 0.01, color="#222222", alpha=0.06)
for i, group in enumerate(runs):
    look = plots.task_style(group) | {"linestyle": ""}
    look |= {"color": "#222222", "marker": "D"} if group == "bottom" else {}
    name, at = group + " tower" * (group != "bottom"), np.arange(9) + 0.2 * (i - 1)
    ax.plot(runs[group].clip(lower=3e-14), at, ms=8, label=name, **look)
ax.set_yticks(range(len(runs)), runs.index)
ax.set(xscale="log", xlim=(1e-14, 30), ylim=(8.5, -0.5), title=title)
ax.set_xlabel("distance between the two runs / way travelled (0 stands at the left)")
for y, text in ((0, "all weights × 10"), (5, "all × 1e-8"), (6, "only spend × 10")):
    ax.axhline(y - 0.5, color="#999999", lw=0.8)
    ax.text(2e-14, y, text, va="center", fontweight="bold", color="#555555")
ax.text(0.008, 8.2, "the same path", ha="right", color="#555555")
ax.text(0.012, 8.2, "another", color="#555555")
plots.legend_outside(fig)

# %% tags=["plumbing"]
# @title Show it with your guess
adam_guess.mark(ax)
display(fig)
adam_guess.answer(answer)

# %% [markdown]
# Read it in three groups. **All weights × 10**: SGD goes elsewhere (its learning rate grew tenfold); Adam does not, and what is
# left is $\epsilon$, as the smaller one shows; decay inside the gradient brings the size of the weights back, decay beside it does
# not. **All × 10⁻⁸**: below $\epsilon$ even Adam stops. **Only one weight × 10**: the *ratio* changed, and with it the bottom.
# But with a frozen bottom the tower of *spend* does not notice: under Adam a weight is not a tower's learning rate.
#
# **So this course uses AdamW.** Strategies of notebook 04 differ in the sum of their weights. Under Adam with L2 each of them
# would get a regularisation of its own, and the comparison would measure that. Under AdamW only ratios count, up to $\epsilon$:

# %% tags=["plumbing"]
# @title Weights × 1/30 and × 30 against × 1, under AdamW and under Adam with L2
KINDS = {"AdamW": (AdamW, 1e-8), "AdamW, ε = 1e-14": (AdamW, 1e-14)}
KINDS |= {"Adam with L2": (Adam, 1e-8)}
scaled = {
    (name, text): max(apart((k, k), kind, weight_decay=decay, eps=eps).values())
    for name, (kind, eps) in KINDS.items()  # against weights 1 and 1
    for text, k in {"1/30": 1 / 30, "30": 30.0}.items()
}
gaps = [*scaled.values()]
fig = plots.figure(2.4)
ax = fig.subplots()
ax.barh(range(6), gaps, color=["#222222" if gap < 0.1 else BROKEN for gap in gaps])
ax.set_yticks(range(6), [f"{name}, × {text}" for name, text in scaled])
plots.value_labels(ax, ".4f")
ax.set(ylim=(5.5, -0.5), xlabel="distance / way, of the group that parted most")
most, least = 100 * max(gaps[:2]), 100 * min(gaps[4:])
title = f"A common factor: ≤ {most:.1f} % apart under AdamW, ≥ {least:.0f} % under L2"
ax.set_title(title)
fig

# %% [markdown]
# ### A total that may be negative
#
# Some strategies learn the weights. *Uncertainty weighting* adds $e^{-s_i}L_i+\tfrac12s_i$ for each task, with a learned $s_i$, so
# that it cannot just set all weights to 0. Its derivative by $s$ is $\tfrac12-e^{-s}L$, zero at $s=\log 2L$, and there the term is
# $\tfrac12(1+\log 2L)$. For $L<1/(2e)=0.184$ that is below 0.

# %%
s, loss = doubles([0.3, -1.0]), doubles([constants["click"], constants["purchase"]])
term = lambda s: ((-s).exp() * loss + s / 2).sum()
said = check_gradient("½ − e⁻ˢL", term, s, 0.5 - (-s).exp() * loss)
best = (2 * loss).log()
said += check_gradient("zero at s = log 2L", term, best, 0 * best)
torch.testing.assert_close(term(best), 0.5 * (1 + best).sum())
uw = weighting.UncertaintyWeighting((Task("click"), Task("purchase"))).double()
uw.log_variance.data = best
torch.testing.assert_close(uw(loss).detach(), term(best))
said += "At the losses of the best constants both terms together can fall to "
Markdown(said + plots.minus(f"**{term(best):.2f}**") + ", as the helper says.")

# %% tags=["plumbing"]
# @title Train click and purchase with it
pair, log = splits.train.select(("click", "purchase")), []
pair_model, uw = new_model(0, pair.tasks), weighting.UncertaintyWeighting(pair.tasks)
optimizer = AdamW(pair_model.parameters(), lr=0.02)
how = {"weights": uw, "epochs": 9, "generator": torch.Generator().manual_seed(0)}
steps = training_steps(pair_model, pair, optimizer, **how)
for _, step in zip(range(60 if FAST else 200), steps, strict=False):
    now, w = torch.stack([*step.losses.values()]), (-uw.log_variance).exp().detach()
    total = (w * now - 0.5 * w.log()).sum()
    log.append([total.item(), *now.tolist(), *w.tolist()])
log = pd.DataFrame(log, columns=["total", "click", "purchase", "w click", "w purchase"])

# %% tags=["plumbing"]
# @title Draw the total, the losses and the weights
fig = plots.figure(3.0)
left, right = fig.subplots(1, 2)
left.plot(log["total"], color="#222222", label="total")
left.axhline(0, color="black", lw=1)
for name in ("click", "purchase"):
    style = plots.task_style(name)
    look = {"color": style["color"], "ls": style["linestyle"], "label": name}
    left.plot(log[name], **look)
    right.plot(log[f"w {name}"], **look)
below = int((log["total"] < 0).idxmax()) if (log["total"] < 0).any() else None
left.set(xlabel="optimiser step", ylabel="nats")
left.set_title("No negative total" if below is None else f"Negative from step {below}")
right.set(xlabel="optimiser step", ylabel="learned weight $e^{-s}$", ylim=(0, None))
times = log["w purchase"].iloc[-1] / log["w purchase"].iloc[0]
right.set_title(f"Purchase's weight ends {times:.0f} times as large")
plots.legend_outside(fig, left)
fig

# %% [markdown]
# **What surprised you?** A falling total is no news: it falls while $s$ falls. Watch the tasks' own losses, unweighted, on
# validation rows, and the weights themselves. Nothing is wrong with a negative total, but a rule such as "stop when
# the total rises by one per cent" has no meaning for it.

# %% [markdown]
# ## 5 · What if the tasks disagree?
#
# Back to the two bowls $L_i(\theta)=\tfrac12(\theta-c_i)^\top A_i(\theta-c_i)$ of the first slider. Set the gradient of
# $w_1L_1+w_2L_2$ to zero and solve:
#
# $$\theta^*=(w_1A_1+w_2A_2)^{-1}(w_1A_1c_1+w_2A_2c_2)$$


# %%
def bowls(theta):
    away = theta - c
    return 0.5 * torch.einsum("ti,tij,tj->t", away, A, away)


w = doubles([0.7, 0.3])
wA = w[:, None, None] * A
theta = torch.linalg.solve(wA.sum(0), (wA @ c[..., None]).sum(0)[:, 0])
helper = torch.from_numpy(loss_demos.weighted_optimum(A, c, w))
torch.testing.assert_close(theta, helper)
g1, g2 = (A[i] @ (theta - c[i]) for i in (0, 1))
torch.testing.assert_close(w[0] * g1, -w[1] * g2)
said = check_gradient("the slope at θ* is 0", lambda t: w @ bowls(t), theta, 0 * theta)
said += check_gradient("g₁ = A₁(θ − c₁)", lambda t: bowls(t)[0], theta, g1)
Markdown(said + "And w₁g₁ = −w₂g₂: neither task is content; they pull equally hard.")

# %% [markdown]
# So no small step helps one without hurting the other: $\theta^*$ is **Pareto optimal**. A weight chooses a point on
# the front of such points, and a change of unit slides you along it; neither moves the front. On the first slider's
# right panel the weights are the slope of the line that touches the front.
#
# ### Two gradients, one step
#
# Away from the optimum two gradients meet in the bottom. A small step $-\eta d$ changes loss $i$ by $-\eta\,g_i\cdot d$, so a
# direction with $g_i\cdot d<0$ harms task $i$. The plain sum lets the longer gradient win. Other recipes, each from one idea:
# **normalised sum** (both get length 1), **PCGrad** (cut from each the part that conflicts with the other), **MGDA** (the
# shortest vector that ends on the line between the two tips), **CAGrad** (near the mean, yet as good as possible for the worse-off).

# %%
G = torch.from_numpy(loss_demos.two_gradients(angle=135, length=2.0))
g1, g2 = G
pcgrad = (g1 - (g1 @ g2) / (g2 @ g2) * g2) + (g2 - (g1 @ g2) / (g1 @ g1) * g1)
t = ((g1 - g2) @ g1 / ((g1 - g2) @ (g1 - g2))).clamp(0, 1)
mgda = (1 - t) * g1 + t * g2
for name, by_hand in (("PCGrad", pcgrad), ("MGDA", mgda)):
    torch.testing.assert_close(by_hand, gradients.combine(name, G))
squared = lambda t: ((1 - t) * g1 + t * g2).square().sum()
said = check_gradient("MGDA: ‖(1−t)g₁ + tg₂‖² is least", squared, t[None], 0 * t[None])
theta, zero = doubles([-1, -0.4]), doubles([0])
g1, g2 = (A[i] @ (theta - c[i]) for i in (0, 1))
along = lambda eta: bowls(theta - eta * (g1 + g2))[1]
said += check_gradient("dL₂/dη = −g₂·d", along, zero, -(g2 @ (g1 + g2))[None])
Markdown(said + "PCGrad and MGDA as in `gradients.combine`.")

# %% [markdown]
# Two gradients at 135 degrees; that of {{purchase}} is twice as long. Which recipes harm {{click}}? Make it *shorter* than the
# other: who is harmed now? At what angle do PCGrad and the sum become one?

# %% tags=["plumbing"]
# @title Turn a gradient
gradient_demo = loss_demos.two_gradients_explorer()
gradient_demo

# %% [markdown]
# Up to 90 degrees there is no conflict, and PCGrad is the sum. CAGrad promises care for the worse-off, and yet:

# %%
short = torch.from_numpy(loss_demos.two_gradients(angle=135, length=0.3))
change = short @ gradients.combine("CAGrad", short)  # below 0: harm
said = "harms purchase, bound to be near the mean" if change[1] < 0 else "harms none"
change = "{:.2f} and {:.2f}".format(*change.tolist())
Markdown(plots.minus(f"With lengths 1 and 0.3, gᵢ·d is {change}: it {said}."))

# %% [markdown]
# A lower training loss for one small step is not yet a better model: notebook 04 puts all of these to the test.
#
# ### A front that no weight reaches
#
# Bowls are kind: every point of their front is the optimum of some weights. Now two losses that *saturate*: a task
# that is far from its optimum hardly feels a further step. One shared parameter will do; 1 is {{click}}, 2 {{purchase}}:
#
# $$L_1(\theta)=1-e^{-(\theta-a)^2},\qquad L_2(\theta)=1-e^{-(\theta+a)^2},\qquad a=0.9$$
#
# Besides the weighted sum there is the **Tchebycheff** rule: make the *largest* weighted loss as small as possible.

# %%
theta, a = torch.linspace(-1.5, 1.5, 3001).double(), 0.9
L1, L2 = 1 - (-((theta - a) ** 2)).exp(), 1 - (-((theta + a) ** 2)).exp()
w = torch.linspace(0, 1, 101).double()[:, None]  # of purchase
by_sum = ((1 - w) * L1 + w * L2).argmin(dim=1)
by_max = torch.maximum((1 - w) * L1, w * L2).argmin(dim=1)
here = doubles([0.2])
slope = 2 * (here - a) * (-((here - a) ** 2)).exp()
well = lambda t: (1 - (-((t - a) ** 2)).exp()).sum()
Markdown(check_gradient("L₁′ = 2(θ − a)e^(−(θ−a)²)", well, here, slope))

# %% tags=["plumbing"]
# @title Guess first: the jump
asked = "Slide the weight of the sum from 0 to 1: how much of the front is skipped?"
front_guess = guess(asked, high=100, step=1, unit="%")
front_guess

# %% tags=["plumbing"]
# @title Where on the front does each weight lead?
front = torch.stack([L1, L2], dim=1)[theta.abs() <= a]
length = front.diff(dim=0).norm(dim=1).cumsum(0)


def along_front(chosen):
    """Percent of the way along the front at which each choice stands."""
    place = (theta[chosen].clamp(-a, a) + a) / (2 * a) * (len(length) - 1)
    return (100 * length[place.round().long()] / length[-1]).numpy()


at = {"Tchebycheff": along_front(by_max), "weighted sum": along_front(by_sum)}
jumps = {name: np.abs(np.diff(places)).max() for name, places in at.items()}
jump, smooth = jumps["weighted sum"], jumps["Tchebycheff"]
edge = int(np.abs(np.diff(at["weighted sum"])).argmax())

# %% tags=["plumbing"]
# @title Draw the front
fig = plots.figure(3.5)
left, right = fig.subplots(1, 2)
left.plot(*front.T, color="#cccccc", lw=6, label="front")
right.axhspan(*at["weighted sum"][[edge, edge + 1]], color="#222222", alpha=0.06)
LOOKS = (by_max, "#4C7A8A", "."), (by_sum, "#222222", "o")
for (name, places), (chosen, color, mark) in zip(at.items(), LOOKS, strict=True):
    left.plot(L1[chosen], L2[chosen], mark, color=color, ms=5, label=name)
    right.plot(w[:, 0], places, mark, color=color, ms=5)
left.set(xlabel="loss of click", ylabel="loss of purchase")
title = "No weight reaches the middle of the front" if jump > 20 else "The front"
left.set_title(title)
right.set(xlabel="weight of purchase", ylabel="% of the way along the front")
right.set_title(f"Largest jump: {jump:.0f} %; Tchebycheff {smooth:.0f} %")
plots.legend_outside(fig)
front_guess.mark(right, axis="y")
display(fig)
front_guess.answer(jump, digits=0)

# %% [markdown]
# Drag the weight across one half and watch the left panel: the sum has *two* valleys, and the lower one changes. On
# the right, the line of the weights touches the front from below; a dent it cannot touch.

# %% tags=["plumbing"]
# @title Move the weight over the dent
front_demo = loss_demos.front_explorer(a)
front_demo


# %%
def descend(total, start, steps=400, lr=0.05):
    t = torch.tensor(start, dtype=torch.float64, requires_grad=True)
    for _ in range(steps):
        pair = torch.stack([1 - (-((t - a) ** 2)).exp(), 1 - (-((t + a) ** 2)).exp()])
        (slope,) = torch.autograd.grad(total(pair), t)
        with torch.no_grad():
            t -= lr * slope
    return t.item()


smooth_max = weighting.STCH((Task("click"), Task("purchase")), mu=0.02)
starts = (-1.0, -0.3, 0.3, 1.0)
ends = {"the sum": [descend(torch.sum, start) for start in starts]}
ends["STCH"] = [descend(smooth_max, start) for start in starts]
ends = {name: np.round(found, 2) + 0.0 for name, found in ends.items()}
said = "; ".join(f"{name} ends at θ = {found}" for name, found in ends.items())
Markdown(plots.minus(f"From four starts, equal weights: {said}."))

# %% [markdown]
# **What surprised you?** Gradient descent sees the same: with equal weights the sum ends at one task's side, which one
# depends on the start; the *smooth* Tchebycheff loss of the package, `weighting.STCH`, ends in the middle. Whether the
# front of a real model has such a dent is a question for data: notebook 04 draws fronts of trained models.

# %% [markdown]
# ## An aside: the article's worked example, made to run
#
# It has 1,000 input numbers, a dense extractor to 256 features, and convolutional towers for three tasks of three classes. Its
# program puts a `Conv2d` on a batch of vectors. Here is what PyTorch says to that, to the usual quick repair, and to a
# form that fits: one *signal* of length 256.

# %% tags=["plumbing"]
# @title Three towers to try
f = nn.Sequential(nn.Linear(1000, 256), nn.ReLU())
Z = f(torch.randn(32, 1000, generator=torch.Generator().manual_seed(0)))
tower = nn.Sequential(
    nn.Unflatten(1, (1, 256)),
    nn.Conv1d(1, 8, 8, stride=4),
    nn.ReLU(),
    nn.Flatten(),
    nn.Linear(504, 3),
)
TRIES = {
    "Conv2d(256, 64, 3) on Z": lambda: nn.Conv2d(256, 64, 3)(Z),
    "… on Z[:, :, None, None]": lambda: nn.Conv2d(256, 64, 3)(Z[:, :, None, None]),
    "Conv1d over one signal": lambda: tower(Z),
}

# %% tags=["plumbing"]
# @title Try them
rows = []
for name, attempt in TRIES.items():
    try:
        said = f"works: logits {tuple(attempt().shape)}"
    except RuntimeError as error:
        said = "refuses: " + str(error).split(",")[0].splitlines()[0]
    rows.append({"tower": name, "what PyTorch says": said})
plots.table(pd.DataFrame(rows).set_index("tower"))

# %% [markdown]
# It runs. Is it right? A convolution looks for one pattern everywhere among *neighbours*, and the 256 outputs of a linear
# layer have no neighbours: their order is arbitrary. Shuffle them. A dense tower follows exactly by shuffling its
# columns; a convolution has one kernel for all places and cannot follow.

# %%
order = torch.randperm(256, generator=torch.Generator().manual_seed(0))
dense, moved = nn.Linear(256, 3), nn.Linear(256, 3)
moved.load_state_dict({"weight": dense.weight[:, order], "bias": dense.bias})
follows = (moved(Z[:, order]) - dense(Z)).abs().max().item()
stays = (tower(Z[:, order]) - tower(Z)).abs().max().item()
Markdown(
    f"Shuffled, dense changes its logits by {follows:.0e}, convolution by {stays:.2f}. "
    f"Parameters: {count_parameters(tower):,} against {count_parameters(dense):,}."
)

# %% [markdown]
# So reach for a convolution where the order of the input means something: a session's clicks in time, words, pixels.

# %% [markdown]
# ## Exercises
#
# Each has a stub that returns `...` and a check that tells you where you are. Stuck? `hint("03.log_sum_exp", 1)` in a
# cell; levels go up to 3. `solution("03.log_sum_exp")` shows commented source.
#
# **Exercise 1. The gradient of softmax cross-entropy, by hand**, with a temperature and a mask. No autograd.


# %%
from mtl_helpers.check import check, hint, solution, use


def cross_entropy_gradient(logits, labels, mask, temperature):
    """Gradient of the mean cross-entropy of softmax(logits / temperature),
    averaged over the rows whose label is known.

    logits (m, C) float, with values up to 1000; labels (m,) int64;
    mask (m,) bool with at least one True; temperature > 0.
    Returns the gradient with respect to logits, a tensor (m, C).
    logits [[0., 0.]], labels [0], mask [True], temperature 2
    give [[-0.25, 0.25]].
    """
    return ...


# %%
check("03.cross_entropy_gradient", cross_entropy_gradient)

# %% [markdown]
# **Exercise 2. Log-sum-exp that survives anything**, without `torch.logsumexp` or `log_softmax`.


# %%
def log_sum_exp(z):
    """log Σ_c exp(z[n, c]) for each row of z (n, C) float; returns (n,).

    Logits may be 1000, −1000, or −inf for a class that is ruled out;
    one logit of each row is finite. Values alone are compared: no
    gradient is demanded here.
    [[0., 0.], [1000., 0.]] give [0.6931, 1000.].
    """
    return ...


# %%
check("03.log_sum_exp", log_sum_exp)

# %% [markdown]
# **Exercise 3. The weight that balances two gradients.** Find $w$ so that $(1-w)\,g_1$ and $w\,g_2$ are equally
# long.


# %%
def balancing_weight(g1, g2):
    """The w in [0, 1] with ‖(1 − w) g1‖ = ‖w g2‖, a float.

    g1 and g2 are tensors (P,), not zero. g1 of length 3 and g2 of
    length 1 give 0.75: the quiet task gets the larger weight.
    """
    return ...


# %%
check("03.balancing_weight", balancing_weight)

# %%
balance = use("03.balancing_weight", balancing_weight)
g1, g2 = torch.tensor([3.0, 0.0]), torch.tensor([-0.5, 0.5])
w = balance(g1, g2)
lengths = f"{((1 - w) * g1).norm():.3f} and {(w * g2).norm():.3f}"
Markdown(f"Lengths {g1.norm():.2f}, {g2.norm():.2f}: w = {w:.3f} makes them {lengths}.")

# %% [markdown]
# ## Self-check
#
# Answer aloud before you unfold.
#
# **1. "A larger loss means a more important task."**
# <details><summary>Answer</summary>
#
# No. Section 3: a loss is large because of its classes, its base rate, its unit, or because the model is untrained. The rarest label
# was loud at first and whispered later, while a sale was worth the same. Importance is your decision; a weight is where you
# write it down.
# </details>
#
# **2. "Weights that sum to one keep the step size."**
# <details><summary>Answer</summary>
#
# No. The length of Σ wᵢ gᵢ depends on lengths and angles: with weights of one half, two gradients of length 1 give a step of
# length 1, 0.71 or 0 at 0, 90 or 180 degrees (section 5: set the two
# gradients to 180 degrees and length 1, and no direction is left for the sum). Under AdamW a common scale cancels anyway.
# </details>
#
# **3. "With the right weights I can have any trade-off."**
# <details><summary>Answer</summary>
#
# Only where the front is convex. The last picture of section 5 shows a dent that the weighted sum jumps over, whatever the
# step of the weights; the Tchebycheff rule stands in it.
# </details>

# %% [markdown]
# ## Summary
#
# - Cross-entropy is a negative log-likelihood: a sum over classes, a mean over *known* rows. Its gradient is p − y. Give
#   losses logits, and clean NaN before the arithmetic.
# - A weight scales its tower's gradient and takes part in a sum at the bottom. Units, base rates, class counts and wrong
#   denominators are weights too. Under AdamW only ratios count.
# - A weight chooses a point on the front. It cannot move the front, and where the front has a dent no weight leads into it.
#
# **In production.** Log each loss next to the loss of its best constant, and each task's share of the shared gradient. Start
# last biases at the base rates. With mixed precision compute losses in float32. Stop on the first loss that is not finite, and
# name its task.

# %% [markdown]
# ## References
#
# - I. Goodfellow, Y. Bengio, A. Courville, *Deep Learning*, MIT Press 2016, section 6.2 (output units and
#   cross-entropy).
# - C. M. Bishop, *Pattern Recognition and Machine Learning*, Springer 2006, section 4.3 (logistic regression, softmax).
# - R. Caruana, *Multitask Learning*, Machine Learning 28, 1997.
# - K. Miettinen, *Nonlinear Multiobjective Optimization*, Kluwer 1999 (weighted sums and Tchebycheff on fronts that are not
#   convex).
# - J.-A. Désidéri, *Multiple-gradient descent algorithm (MGDA) for multiobjective optimization*, Comptes Rendus
#   Mathématique 350, 2012.
# - D. P. Kingma, J. Ba, *Adam: A Method for Stochastic Optimization*, ICLR 2015 (section 2.1: invariance to scale).
# - I. Loshchilov, F. Hutter, *Decoupled Weight Decay Regularization* (AdamW), ICLR 2019.
# - A. Kendall, Y. Gal, R. Cipolla, *Multi-Task Learning Using Uncertainty to Weigh Losses*, CVPR 2018.
# - T. Yu and others, *Gradient Surgery for Multi-Task Learning* (PCGrad), NeurIPS 2020.
# - B. Liu and others, *Conflict-Averse Gradient Descent for Multi-task Learning* (CAGrad), NeurIPS 2021.
# - X. Lin and others, *Smooth Tchebycheff Scalarization for Multi-Objective Optimization* (STCH), ICML 2024.
#
# **Next:** [04_weighting_strategies](04_weighting_strategies.ipynb): who chooses the weights, you or the data?
