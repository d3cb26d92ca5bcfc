# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # 03 · Loss math: every formula, checked twice
#
# **Promise.** You derive the loss of a multi-task model by hand, in small steps. After each formula a cell
# compares it with PyTorch's automatic differentiation and with finite differences, so you need to believe nothing.
#
# {{colab_badge}} · [glossary](glossary.md) · about 75 minutes to read, under one minute to run on two CPU cores (no GPU needed) · builds on
# [02_shared_bottom](02_shared_bottom.ipynb)

# %% [markdown]
# **You will be able to**
#
# - *derive* cross-entropy from a likelihood, and its gradient p − y;
# - *explain* why losses take logits, and *repair* one that does not;
# - *predict* what a task weight does to shared and to own parameters, under SGD and under Adam;
# - *check* any gradient that you derive;
# - *build* a model with convolutional towers, shape by shape.

# %%
# {{setup}}

# %%
import copy

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from IPython.display import display
from torch import nn

# %%
from mtl_helpers import gradients, losses
from mtl_helpers.data import (
    SHOP_CATEGORICAL,
    SHOP_NUMERIC,
    SHOP_TASKS,
    MultiTaskDataset,
    Schema,
    Task,
    load_shop,
    prepare,
    shop_frame,
    shop_splits,
)
from mtl_helpers.metrics import mean_interval, paired_difference
from mtl_helpers.models import SharedBottom, count_parameters
from mtl_helpers.notebook import seed_everything
from mtl_helpers.training import evaluate, fit, predict, training_steps
from mtl_helpers.weighting import constant_losses
from mtl_helpers.widgets import figures as plots
from mtl_helpers.widgets import formulas as loss_demos

# %% [markdown]
# ## Recap: one bottom, several towers
#
# Notebook 02 built this model. Values flow to the right. After the loss is known, gradients flow back to the
# left, and they meet in the shared bottom. This page is about the arrows on the right, and about that meeting.


# %%
def draw_box(ax, x, y, text, color="#222222"):
    box = {"boxstyle": "round,pad=0.45", "fc": "white", "ec": color, "lw": 1.6}
    ax.text(x, y, text, ha="center", va="center", color=color, fontsize=10, bbox=box)


def draw_arrow(ax, start, end, color, style="-|>", line="-"):
    ax.annotate(
        "", end, start, arrowprops={"arrowstyle": style, "color": color, "lw": 1.5, "linestyle": line}
    )


# %%
fig = plots.figure(3.3)
ax = fig.subplots()
ax.set(xlim=(0.2, 10.2), ylim=(-0.2, 3.2))
ax.axis("off")
draw_box(ax, 0.8, 1.5, "features\nX")
draw_box(ax, 2.7, 1.5, "shared bottom\nZ = f(X)")
draw_box(ax, 9.5, 1.5, "total loss\n$L = \\sum w_i L_i$")
draw_arrow(ax, (1.22, 1.5), (1.98, 1.5), "#222222")
for i, (y, name) in enumerate(
    zip((2.7, 1.5, 0.3), ("click", "purchase", "next_category"), strict=True), start=1
):
    color = plots.task_style(name)["color"]
    draw_box(ax, 5.6, y, f"tower {name}\n$Y_{i} = g_{i}(Z)$", color)
    draw_box(ax, 7.7, y, f"loss $L_{i}$", color)
    draw_arrow(ax, (3.42, 1.6), (4.68, y + 0.1), "#222222")
    draw_arrow(ax, (4.68, y - 0.1), (3.42, 1.4), color, line="--")
    draw_arrow(ax, (6.52, y), (7.32, y), "#222222")
    draw_arrow(ax, (8.06, y), (9.0, 1.5), "#222222")
display(fig)
print("Solid arrows: the forward pass. Dashed: one gradient per task comes back to the bottom.")

# %% [markdown]
# ## Symbols and names
#
# | symbol | meaning | name in code |
# |---|---|---|
# | $X$ | features of a batch | `batch.numeric`, `batch.categorical` |
# | $m$ | samples (rows) in the batch | `len(batch)` |
# | $Z=f(X)$ | shared representation | `model.represent(...)` |
# | $Y_i=g_i(Z)$ | output of task $i$: its logits $z$ | `logits[name]` |
# | $p$ | probabilities, from logits | `p` |
# | $y$ | labels; one-hot in formulas | `labels`, `Y` |
# | $C$ | classes of a task | `task.n_classes` |
# | $T$ | tasks | `len(model.tasks)` |
# | $L_i$ | loss of task $i$ | `losses.task_loss` |
# | $w_i$ | weight of task $i$ | `weights[name]` |
# | $L=\sum_i w_i L_i$ | total loss | `losses.weighted_sum` |
# | $\theta$ | shared parameters | `model.shared_parameters()` |
# | $\varphi_i$ | own parameters of task $i$ | `model.task_parameters(name)` |
# | $g_i=\partial L_i/\partial\theta$ | shared gradient of task $i$ | a row of `J` |
#
# Beware of one clash: $g_i(\cdot)$ with brackets is a tower, $g_i$ without is a gradient. Papers write both so.

# %%
frames = shop_splits(shop_frame(load_shop()))
splits = prepare(frames, SHOP_TASKS, SHOP_NUMERIC, SHOP_CATEGORICAL)
batch = next(splits.train.batches(1024, generator=torch.Generator().manual_seed(0)))
seed_everything(0)
model = SharedBottom(splits.schema, splits.tasks, embedding_dim=4)
Z = model.represent(batch.numeric, batch.categorical)
logits = model(batch.numeric, batch.categorical)
print("X:", tuple(batch.numeric.shape), "numeric,", tuple(batch.categorical.shape), "categorical")
print("Z = f(X):", tuple(Z.shape), "· m =", len(batch), "samples · T =", len(model.tasks), "tasks")

# %%
for i, task in enumerate(model.tasks, start=1):
    same = torch.equal(model.towers[task.name](Z), logits[task.name])
    shape = tuple(logits[task.name].shape)
    print(f"Y_{i} = g_{i}(Z), {task.name}: {shape} · tower(Z) equals model(X): {same}")

# %% [markdown]
# ## The two checks
#
# A derivative is a slope, so you can measure it. Move one entry a little to both sides and see how the loss
# changes:
#
# $$\frac{\partial L}{\partial x_k}\approx\frac{L(x+h e_k)-L(x-h e_k)}{2h}$$
#
# Autograd computes the same slope exactly. A formula that agrees with both is right. We work in float64, because
# the difference of two nearly equal numbers loses digits.


# %%
def finite_differences(loss, x, h=1e-5):
    """Slope of a scalar loss(x) in every entry of x, by two evaluations each."""
    slopes = torch.zeros_like(x)
    for k in range(x.numel()):
        step = torch.zeros_like(x)
        step.view(-1)[k] = h
        slopes.view(-1)[k] = (loss(x + step) - loss(x - step)) / (2 * h)
    return slopes


# %%
def check_gradient(name, loss, x, by_hand):
    """Compare a gradient derived by hand with autograd and finite differences; stop if wrong."""
    x = x.detach().clone().requires_grad_()
    (auto,) = torch.autograd.grad(loss(x), x)
    with torch.no_grad():
        slopes = finite_differences(loss, x)
    size = auto.abs().max().clamp(min=1)  # large slopes are compared relative to their size
    gaps = [((by_hand - other).abs().max() / size).item() for other in (auto, slopes)]
    print(f"{name}: hand − autograd {gaps[0]:.0e}, hand − finite differences {gaps[1]:.0e}")
    assert gaps[0] < 1e-9 and gaps[1] < 1e-6, "the formula is wrong"


# %%
x = torch.tensor([0.3, -1.2, 2.0], dtype=torch.float64)
check_gradient("d sum(x³) = 3x²", lambda x: (x**3).sum(), x, 3 * x**2)
try:
    check_gradient("d sum(x³) = 2x², a slip", lambda x: (x**3).sum(), x, 2 * x**2)
except AssertionError as error:
    print("The check stops:", error)

# %% [markdown]
# ## 1 · Which loss does a likelihood ask for?
#
# A tower ends in logits $z$, one per class, any real numbers. The softmax makes probabilities of them:
#
# $$p_c=\frac{e^{z_c}}{\sum_{k=1}^{C}e^{z_k}}$$

# %%
z = [[2.0, 0.5, -1.0], [0.0, 0.0, 0.0], [-0.5, 1.5, 3.0], [1.0, -2.0, 0.3]]
z = torch.tensor(z, dtype=torch.float64)
labels = torch.tensor([0, 1, 2, 1])
m, C = z.shape
p = z.exp() / z.exp().sum(dim=1, keepdim=True)
print("z:", tuple(z.shape), f"m = {m} samples, C = {C} classes")
print(p.numpy().round(3))
print("each row sums to", p.sum(dim=1).numpy().round(6))

# %% [markdown]
# **Predict** (write it down). Row two has three equal logits. What will its loss be? Which row has the largest?
#
# A good model gives the labels that really came a high probability. The rows are independent, so that probability
# is a product, the *likelihood*:
#
# $$\prod_{n=1}^{m}p_{n,y_n}$$

# %%
p_of_label = p[torch.arange(m), labels]
likelihood = p_of_label.prod()
print("p of each label:", p_of_label.numpy().round(3))
print(f"likelihood: {likelihood:.5f}")
many = likelihood.float() ** 2500
print(f"of 10,000 such rows, in float32: {many:.1f}" + (many == 0).item() * ", too small to be a number")

# %% [markdown]
# A product of many small numbers vanishes. Its logarithm does not, and it turns the product into a sum. Change the
# sign, so that small is good, and divide by $m$, so that the size of the batch does not matter:
#
# $$L=-\frac1m\sum_{n=1}^{m}\log p_{n,y_n}$$

# %%
each = -p_of_label.log()
loss = -likelihood.log() / m
print("loss of each row:", each.numpy().round(3), "nats; log 3 =", round(float(np.log(3)), 3))
print(f"their mean {each.mean():.6f} = −log(likelihood) / m {loss:.6f}")
worst = each.argmax().item()
print(f"Row {worst + 1} has the largest loss: its label got p = {p_of_label[worst]:.3f}.")

# %% [markdown]
# Textbooks write the same with one-hot labels $y_{n,c}$, which are 1 for the class that came and 0 for all others:
#
# $$L=-\frac1m\sum_{n=1}^{m}\;\sum_{c=1}^{C}y_{n,c}\log p_{n,c}$$
#
# Two sums, two jobs: the **sum over classes** picks one entry per row; the **mean over samples** averages rows.

# %%
Y = F.one_hot(labels, C).double()
over_classes = -(Y * p.log()).sum(dim=1)
by_hand = over_classes.mean(dim=0)
category = Task("category", "multiclass", n_classes=3)
print("Y", tuple(Y.shape), "→ sum over classes", tuple(over_classes.shape), "→ mean over samples")
print(f"by hand:                        {by_hand:.6f}")
print(f"F.cross_entropy:                {F.cross_entropy(z, labels):.6f}")
print(f"mtl_helpers.losses.task_loss:   {losses.task_loss(category, z, labels):.6f}")

# %% [markdown]
# ### When m and C change places
#
# The article's formula mixes the number of samples $m$ and the number of classes $C$. We reconstruct what its
# readers would code. First: one index for both sums, running to $m$.
#
# **Predict.** What happens with more samples than classes? And with fewer?


# %%
def one_index_loss(Y, p):
    """−(1/m) Σ y_i log p_i with i from 1 to m, where i is meant to name a class."""
    return -sum((Y[:, i] * p[:, i].log()).sum() for i in range(len(Y))) / len(Y)


try:
    one_index_loss(Y, p)
except IndexError:
    print(f"{m} samples, {C} classes: there is no class number {C + 1}, the program stops.")
few = slice(2, 4)
right, wrong = F.cross_entropy(z[few], labels[few]), one_index_loss(Y[few], p[few])
print(f"2 samples: right loss {right:.3f}, one index {wrong:.3f}")
print("No error this time: the third class is never looked at, and its rows cost nothing.")

# %% [markdown]
# The second reading keeps both sums and divides by the wrong number. To see it, take a model that says nothing:
# all logits zero, so every class gets $1/C$. Its honest loss is $\log C$, in any batch.


# %%
def three_averages(m, C):
    labels = torch.arange(m) % C
    total = F.cross_entropy(torch.zeros(m, C), labels, reduction="sum").item()
    return {
        "samples": m,
        "classes": C,
        "log C": np.log(C),
        "÷ m (right)": total / m,
        "÷ C": total / C,
        "÷ mC": total / (m * C),
    }


averages = pd.DataFrame([three_averages(*size) for size in ((64, 3), (1024, 3), (64, 8), (1024, 8))])
display(averages.round(3))

# %%
rows = averages.set_index(["samples", "classes"])
growth = rows.loc[(1024, 3), "÷ C"] / rows.loc[(64, 3), "÷ C"]
shrink = rows.loc[(64, 3)] / rows.loc[(64, 8)]
print(f"÷ C: {1024 // 64} times the rows give {growth:.0f} times the loss, and steps as much larger.")
print(f"÷ m: 3 classes against 8 weigh {shrink['÷ m (right)']:.2f} to 1.")
print(f"÷ mC: they weigh {shrink['÷ mC']:.2f} to 1: each task got a weight 1/C that nobody chose.")

# %% [markdown]
# ### The gradient is p − y
#
# Take one row with label $y$. Its loss is $-\log p_y=-z_y+\log\sum_k e^{z_k}$. Differentiate by $z_c$:
#
# - the first term gives $-1$ if $c$ is the label, else $0$: that is $-y_c$;
# - the second gives $e^{z_c}/\sum_k e^{z_k}=p_c$.
#
# With the mean over samples:
#
# $$\frac{\partial L}{\partial z_{n,c}}=\frac{p_{n,c}-y_{n,c}}{m}$$

# %%
slope = (p - Y) / m
check_gradient("softmax cross-entropy", lambda z: F.cross_entropy(z, labels), z, slope)
print(slope.numpy().round(3))
print("each row sums to", slope.sum(dim=1).abs().numpy().round(6), "· one gains, the others lose")

# %% [markdown]
# ### A temperature
#
# Divide all logits by a temperature $\tau$ before the softmax. By the chain rule the gradient is divided by $\tau$ too:
#
# $$\frac{\partial L}{\partial z_{n,c}}=\frac{p_{n,c}-y_{n,c}}{\tau\,m},\qquad p=\mathrm{softmax}(z/\tau)$$

# %%
for temperature in (0.5, 1.0, 4.0):
    slope = ((z / temperature).softmax(dim=1) - Y) / (temperature * m)
    check_gradient(f"τ = {temperature}", lambda z, t=temperature: F.cross_entropy(z / t, labels), z, slope)
for temperature in (0.5, 4.0):
    print(f"row 1, p at τ = {temperature}:", (z[0] / temperature).softmax(0).numpy().round(3))

# %% [markdown]
# **Predict.** The label is *toys*. You raise the logit of *books* from its middle to its right end. Does the loss
# bend, or become a straight line? How large can the gradient of *toys* get? Then warm the softmax up.

# %%
logit_demo = loss_demos.logit_explorer()
logit_demo

# %%
tail = [-F.log_softmax(torch.tensor([value, 1.0, 0.0]), 0)[1].item() for value in (4.0, 5.0, 6.0)]
print(f"Loss from logit 4 to 5: {tail[1] - tail[0]:+.3f}; from 5 to 6: {tail[2] - tail[1]:+.3f}.")
print("Far right it is nearly a line of slope 1: a wrong answer is corrected firmly, and no harder.")

# %% [markdown]
# **What surprised you?** The gradient has no factor that vanishes for a confident wrong answer. That is what the
# logarithm buys: it undoes the exponential of the softmax.

# %% [markdown]
# ## 2 · Why do losses take logits?
#
# A click has two outcomes, so one logit is enough. Fix the logit of "no" at 0, and the softmax becomes the sigmoid:
#
# $$\sigma(z)=\frac{e^{z}}{e^{0}+e^{z}}=\frac{1}{1+e^{-z}}$$
#
# Cross-entropy becomes *binary cross-entropy* (BCE): $L=-y\log p-(1-y)\log(1-p)$ with $p=\sigma(z)$.

# %%
z = torch.tensor([-2.0, 0.0, 1.5], dtype=torch.float64)
y = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)
pair = torch.stack([torch.zeros_like(z), z], dim=1)
p = 1 / (1 + (-z).exp())
naive = (-y * p.log() - (1 - y) * (1 - p).log()).mean()
print("logits (m,):", tuple(z.shape), "→ pairs (m, 2):", tuple(pair.shape))
print("sigmoid equals softmax of (0, z):", torch.allclose(p, pair.softmax(1)[:, 1]))
print(f"BCE {naive:.6f} · two-class cross-entropy {F.cross_entropy(pair, y.long()):.6f}")

# %% [markdown]
# **Predict.** The model is very sure of a click, logit 100, and the label says no click. In float32, what is
# $\log(1-\sigma(100))$? What is its gradient? What should they be?


# %%
def naive_bce(z, y):
    p = torch.sigmoid(z)
    return -y * torch.log(p) - (1 - y) * torch.log(1 - p)


def loss_and_slope(loss, value, label=0.0):
    z = torch.tensor(value, requires_grad=True)  # float32, as in training
    found = loss(z, torch.tensor(label))
    return found.item(), torch.autograd.grad(found, z)[0].item()


for value in (5.0, 15.0, 20.0, 100.0):
    print("logit {:5.0f}: loss {:8.4f}, gradient {:.4f}".format(value, *loss_and_slope(naive_bce, value)))


# %%
def is_broken(value):
    return not np.isfinite(loss_and_slope(naive_bce, float(value))[0])


breaks = next(value for value in range(1, 200) if is_broken(value))
gap, left_over = torch.finfo(torch.float32).eps / 2, 1 / (1 + np.exp(breaks))
print(f"From logit {breaks} on, float32 rounds p to exactly 1, and log(1 − p) is log 0.")
print(f"The numbers just below 1 are {gap:.0e} apart; 1 − σ({breaks}) is only {left_over:.0e}.")
print(f"Its gradient is {loss_and_slope(naive_bce, 100.0)[1]}: infinity from the log times zero from σ′.")
print("One such row, and a training step turns every parameter into nan.")

# %% [markdown]
# ### The form that cannot overflow
#
# Put $p=\sigma(z)$ into the loss and simplify *before* computing. Since $-\log\sigma(z)=\log(1+e^{-z})$ and
# $-\log(1-\sigma(z))=\log(1+e^{z})$:
#
# $$L=\log(1+e^{z})-yz=\max(z,0)-yz+\log\left(1+e^{-|z|}\right)$$
#
# The last exponential has an exponent of at most 0, so it never overflows.


# %%
def stable_bce(z, y):
    return torch.maximum(z, torch.zeros_like(z)) - y * z + torch.log1p(torch.exp(-z.abs()))


for value in (5.0, 20.0, 100.0):
    print("logit {:5.0f}: loss {:8.4f}, gradient {:.4f}".format(value, *loss_and_slope(stable_bce, value)))
helper = losses.task_loss(Task("click"), torch.tensor([100.0]), torch.tensor([0.0]))
print("the helper at logit 100:", helper.item())

# %% [markdown]
# Its gradient follows from two classes of section 1, with $p-y$ for the class "yes":
#
# $$\frac{\partial L}{\partial z_n}=\frac{\sigma(z_n)-y_n}{m}$$

# %%
slope = (z.sigmoid() - y) / len(z)
check_gradient("BCE on logits", lambda z: F.binary_cross_entropy_with_logits(z, y), z, slope)
check_gradient("our stable form", lambda z: stable_bce(z, y).mean(), z, slope)
helper = losses.task_loss(Task("click"), z, y)
print(f"loss by hand {stable_bce(z, y).mean():.6f} · helper {helper:.6f}")

# %% [markdown]
# **A clamp only hides the hole.** `nn.BCELoss` takes probabilities and cuts the logarithm off. Look at what is
# left at a logit where the naive form broke.


# %%
def clamped_bce(z, y):
    return F.binary_cross_entropy(torch.sigmoid(z), y)


for name, loss in (("sigmoid, then BCELoss", clamped_bce), ("BCE on logits", stable_bce)):
    print("{:22s} at logit 20: loss {:6.1f}, gradient {:.1f}".format(name, *loss_and_slope(loss, 20.0)))
dead = loss_and_slope(clamped_bce, 20.0)[1] == 0
print("The worst mistake gets", "no gradient: it is never corrected." if dead else "some gradient.")

# %%
forms = {"naive": naive_bce, "sigmoid, then BCELoss": clamped_bce, "on logits": stable_bce}
grid = torch.linspace(0, 30, 121)
curves = {name: np.array([loss_and_slope(form, z) for z in grid.tolist()]) for name, form in forms.items()}
at_end = {name: curve[-1] for name, curve in curves.items()}
for name, (loss, slope) in at_end.items():
    print(f"{name:22s} at logit 30: loss {loss:.1f}, gradient {slope:.1f}")

# %%
fig = plots.figure(3.2)
left, right = fig.subplots(1, 2)
looks = {
    "naive": ("#D55E00", "-", 6),
    "sigmoid, then BCELoss": ("#777777", "--", 2),
    "on logits": ("#0072B2", "-", 2),
}
for name, (color, line, width) in looks.items():
    values = np.where(np.isfinite(curves[name]), curves[name], np.nan)
    left.plot(grid, values[:, 0], line, color=color, lw=width, label=name, alpha=0.8)
    right.plot(grid, values[:, 1], line, color=color, lw=width, label=name, alpha=0.8)
other = "sigmoid, then BCELoss"
left.set(xlabel="logit, label is 0", ylabel="loss (nats)", title=f"Naive BCE ends before {breaks}")
right.set(xlabel="logit, label is 0", ylabel="gradient", title="One form keeps its gradient")
left.legend(loc="upper left")
display(fig)
jump, rest = at_end[other]
print(f"Left: the thick line stops where the loss is infinite; the clamped one jumps to {jump:.0f}.")
print(f"Right, at the end: gradient {at_end['on logits'][1]:.0f} on logits, {rest:.0f} where it was clamped.")

# %% [markdown]
# ### The same trick for the softmax: log-sum-exp
#
# Softmax needs $\log\sum_c e^{z_c}$. In float32 $e^{100}$ is infinite. Take the largest logit $a=\max_c z_c$ out
# of the sum first; then no exponent is above 0:
#
# $$\log\sum_c e^{z_c}=a+\log\sum_c e^{z_c-a},\qquad\frac{\partial}{\partial z_c}\log\sum_k e^{z_k}=p_c$$

# %%
row = torch.tensor([100.0, 1.0, 0.0])
a = row.max()
stable = a + (row - a).exp().sum().log()
print("naive: log-sum-exp", row.exp().sum().log().item(), "· p", (row.exp() / row.exp().sum()).tolist())
print("stable: log-sum-exp", stable.item(), "· torch.logsumexp", row.logsumexp(0).item())


def log_sum(z):
    return z.max() + (z - z.max()).exp().sum().log()


z = torch.tensor([2.0, 0.5, -1.0], dtype=torch.float64)
check_gradient("the gradient of log-sum-exp is the softmax", log_sum, z, z.softmax(0))

# %% [markdown]
# **What surprised you?** The formula on paper was right all along. Only the order of the operations changed. So a
# model should return logits, and the loss should apply sigmoid or softmax. All models of this course do.

# %% [markdown]
# ## 3 · What about missing labels, and numbers as labels?
#
# Not every row has every label. The shop's `next_category` is unknown while the user has not clicked again. Let
# $k_n$ be 1 where the label is known. Average over the known rows only:
#
# $$L=\frac{\sum_n k_n\,\ell_n}{\sum_n k_n},\qquad\frac{\partial L}{\partial z_n}=k_n\,\frac{p_n-y_n}{\sum_j k_j}$$

# %%
z = torch.tensor([-2.0, 0.4, 1.5, 0.8], dtype=torch.float64)
y = torch.tensor([0.0, 1.0, 0.0, 0.0], dtype=torch.float64)  # a missing label is stored as 0
known = torch.tensor([True, True, False, False])
click = Task("click")
slope = known * (z.sigmoid() - y) / known.sum()
check_gradient("masked BCE", lambda z: losses.task_loss(click, z, y, known), z, slope)
print("gradient:", slope.numpy().round(3), "· rows without a label pull at nothing")

# %% [markdown]
# **Predict.** You forget the mask in the denominator and divide by all $m$ rows. What have you done to the task?

# %%
rows = F.binary_cross_entropy_with_logits(z, y, reduction="none")
right, wrong = losses.task_loss(click, z, y, known), (rows * known).mean()
mask = batch.masks["next_category"]
print(f"÷ known rows {right:.4f}, ÷ all rows {wrong:.4f}: {wrong / right:.2f} times as much")
print(f"{known.double().mean():.2f} of the labels are known: the same number. It became a hidden weight.")
print(f"In the shop's batch it would be {mask.float().mean():.2f} for next_category, another in each batch.")
empty = losses.task_loss(click, z, y, torch.zeros(4, dtype=torch.bool))
print(f"Without any known label the helper's loss is {empty:.0f}, not nan.")

# %% [markdown]
# ### Regression: mean squared error
#
# If labels scatter around the prediction $\hat y$ like a normal distribution with a fixed spread, the negative
# log-likelihood is the squared error, up to constants:
#
# $$L=\frac1m\sum_n(\hat y_n-y_n)^2,\qquad\frac{\partial L}{\partial\hat y_n}=\frac{2(\hat y_n-y_n)}{m}$$

# %%
euros = torch.tensor([12.0, 30.0, 7.5, 18.0], dtype=torch.float64)
guess = torch.tensor([10.0, 22.0, 11.0, 15.0], dtype=torch.float64)
spend = Task("spend", "regression")
slope = 2 * (guess - euros) / len(euros)
check_gradient("mean squared error", lambda g: losses.task_loss(spend, g, euros), guess, slope)

# %% [markdown]
# **Predict.** Write the same labels and guesses in cents. By what factor does the loss grow? And its gradient?


# %%
def squared_error(guess, factor):
    return losses.task_loss(spend, guess, euros * factor)


for unit, factor in (("euros", 1), ("cents", 100), ("thousands of euros", 0.001)):
    slope = 2 * (guess - euros) * factor / len(euros)
    check_gradient(f"in {unit}", lambda g, k=factor: squared_error(g, k), guess * factor, slope)
    loss = squared_error(guess * factor, factor)
    print(f"  loss {loss:.6g}, largest gradient {slope.abs().max():.4g}")
print("A factor k in the unit: k times the gradient, k² times the loss. The guesses are as good as before.")

# %% [markdown]
# **What surprised you?** A mean over the wrong rows and a change of unit are both task weights in disguise. So what
# does a task weight do?

# %% [markdown]
# ## 4 · What does a task weight do to the gradients?
#
# Differentiate $L=\sum_i w_iL_i$. Tower $i$ appears in $L_i$ alone. The bottom appears in every loss:
#
# $$\frac{\partial L}{\partial\varphi_i}=w_i\frac{\partial L_i}{\partial\varphi_i},\qquad
# \frac{\partial L}{\partial\theta}=\sum_{i=1}^{T}w_i\,g_i$$
#
# **Predict.** You double the weight of purchases. Does the gradient of the click tower change? That of the bottom?


# %%
def flat_gradient(loss, parameters):
    """Gradient in all given parameters, as one vector; 0 where a parameter plays no part."""
    parameters = list(parameters)
    found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    parts = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]
    return torch.cat([part.flatten() for part in parts])


# %%
names = [task.name for task in model.tasks]
exact = copy.deepcopy(model).double()
batch.numeric = batch.numeric.double()
batch.labels = {n: y.double() if y.is_floating_point() else y for n, y in batch.labels.items()}
weights = {"click": 1.0, "purchase": 5.0, "next_category": 0.2}
L = losses.task_losses(exact.tasks, exact(batch.numeric, batch.categorical), batch)
total = losses.weighted_sum(L, weights)
print({name: round(value.item(), 4) for name, value in L.items()})
print(f"L = Σ w L: by hand {sum(weights[n] * L[n] for n in names):.6f}, helper {total:.6f}")

# %%
J = torch.stack([flat_gradient(L[name], exact.shared_parameters()) for name in names])
w = torch.tensor([weights[name] for name in names], dtype=torch.float64)
shared = flat_gradient(total, exact.shared_parameters())
print("J, one row per task:", tuple(J.shape))
print(f"shared: autograd of L − Σ wᵢ gᵢ, largest difference {(shared - w @ J).abs().max():.0e}")

# %%
for name, neighbour in zip(names, names[1:] + names[:1], strict=True):
    tower = list(exact.task_parameters(name))
    gap = (flat_gradient(total, tower) - weights[name] * flat_gradient(L[name], tower)).abs().max()
    other = flat_gradient(L[neighbour], tower).abs().max()
    print(f"tower {name}: against wᵢ ∂Lᵢ/∂φᵢ {gap:.0e}; largest gradient from {neighbour}: {other:.0f}")

# %% [markdown]
# Finite differences in all of these parameters would take long. One number checks them together: move *all*
# parameters a little along a random direction $v$. The slope of the loss must be the inner product of gradient and $v$.


# %%
def total_along(step, direction):
    moved = copy.deepcopy(exact)
    with torch.no_grad():
        for p, v in zip(moved.parameters(), direction, strict=True):
            p.add_(step * v)
        found = losses.task_losses(moved.tasks, moved(batch.numeric, batch.categorical), batch)
        return losses.weighted_sum(found, weights)


seed_everything(1)
direction = [torch.randn_like(p) for p in exact.parameters()]
slope = (total_along(1e-8, direction) - total_along(-1e-8, direction)) / 2e-8
by_gradient = flat_gradient(total, exact.parameters()) @ torch.cat([v.flatten() for v in direction])
print(f"{count_parameters(exact):,} parameters at once:")
gap = abs(slope - by_gradient)
print(f"finite difference {slope:.5f}, gradient · v {by_gradient:.5f}, apart {gap:.0e}")

# %% [markdown]
# ### Whose gradient is it?
#
# The bottom gets one vector. The share of task $i$ in it is $w_i\,g_i\cdot g/\lVert g\rVert^2$ with $g=\sum_j w_jg_j$.
# The shares add up to 1; a negative share belongs to a task that the step works against.


# %%
def shares(J, w):
    g = w @ J
    return w * (J @ g) / (g @ g)


equal = shares(J, torch.ones(3, dtype=torch.float64))
print("equal weights:", {n: round(s.item(), 3) for n, s in zip(names, equal, strict=True)})
print("our weights:  ", {n: round(s.item(), 3) for n, s in zip(names, shares(J, w), strict=True)})
print(f"sums: {equal.sum():.6f}, {shares(J, w).sum():.6f}")

# %% [markdown]
# ### A loss scale is not importance
#
# A model that always answers the base rate $r$ of a binary label has a known loss, the *entropy* of the label:
#
# $$H(r)=-r\log r-(1-r)\log(1-r)$$
#
# **Predict.** Purchases are rare and pay the shop's bills. Is their loss larger or smaller than that of clicks?

# %%
constants = constant_losses(splits.train)
rates = {name: splits.train.labels[name].mean().item() for name in ("click", "purchase")}
for name, rate in rates.items():
    by_hand = -rate * np.log(rate) - (1 - rate) * np.log(1 - rate)
    print(f"{name}: base rate {rate:.4f}, entropy {by_hand:.4f}, helper {constants[name]:.4f} nats")


# %%
def entropy(r):
    return (-r * r.log() - (1 - r) * (1 - r).log()).sum()


rate = torch.tensor([rates["click"]], dtype=torch.float64)
check_gradient("H′(r) = log((1 − r)/r)", entropy, rate, ((1 - rate) / rate).log())

# %%
fig = plots.figure(3.2)
ax = fig.subplots()
r = np.linspace(1e-4, 1 - 1e-4, 400)
ax.plot(r, -r * np.log(r) - (1 - r) * np.log(1 - r), color="#222222")
for name, rate in rates.items():
    style = plots.task_style(name)
    ax.plot(rate, constants[name], style["marker"], color=style["color"], ms=9)
    ax.text(rate + 0.025, constants[name] - 0.012, f"{name}: {constants[name]:.3f}")
ax.set(xlabel="base rate r of a binary label", ylabel="entropy H(r) (nats)")
rare, common = sorted(rates, key=rates.get)
less = constants[rare] < constants[common]
ax.set_title(f"{rare}, the rarer label, has {'less' if less else 'more'} loss to begin with")
display(fig)

# %%
loud, quiet = max(constants, key=constants.get), min(constants, key=constants.get)
times = constants[loud] / constants[quiet]
print(f"Untrained, {loud} ({constants[loud]:.2f} nats) shows {times:.0f} times the loss of {quiet}.")
print("That says how many classes there are and how rare a label is, not what a sale is worth.")

# %% [markdown]
# ### The unit of a label is a weight
#
# Now a toy of two tasks over the same features: a click, and the spend, a regression in some unit. Same people,
# same spending; only the unit changes.


# %%
def toy(unit=1.0, n=2048):
    g = torch.Generator().manual_seed(3)
    X = torch.randn(n, 6, generator=g, dtype=torch.float64)
    taste = X[:, 0] + 0.6 * X[:, 1]
    clicks = torch.bernoulli((taste - 1).sigmoid(), generator=g)
    euros = 3 + 2 * X[:, 0] - 1.5 * X[:, 2] + torch.randn(n, generator=g, dtype=torch.float64)
    tasks = (Task("click"), Task("spend", "regression"))
    nothing = torch.zeros(n, 0, dtype=torch.long)
    return MultiTaskDataset(X, nothing, {"click": clicks, "spend": unit * euros}, {}, tasks)


def toy_model(seed=0):
    seed_everything(seed)
    schema = Schema(tuple(f"x{k}" for k in range(6)), {})
    return SharedBottom(schema, toy(n=2).tasks, hidden=(16,), tower=(8,)).double()


# %%
def toy_shares(unit, seed):
    """Share of each task in the shared gradient of a fresh model, with equal weights."""
    data, model = toy(unit), toy_model(seed)
    L = losses.task_losses(model.tasks, model(data.numeric, data.categorical), data)
    J = torch.stack([flat_gradient(loss, model.shared_parameters()) for loss in L.values()])
    return shares(J, torch.ones(2, dtype=torch.float64)).numpy()


units = {"thousands of euros": 0.001, "euros": 1.0, "cents": 100.0}
part = {name: [toy_shares(unit, seed)[1] for seed in range(10)] for name, unit in units.items()}
for name, found in part.items():
    print(f"spend in {name:18s}: share of the shared gradient {mean_interval(found)}")
gap = paired_difference(part["cents"], part["thousands of euros"])
side = "clear of zero" if gap.low > 0 else "not clear of zero"
print(f"cents − thousands: {gap} (10 initialisations), {side}")

# %% [markdown]
# **What surprised you?** Nobody touched a weight; the unit alone did this. In thousands of euros all labels are
# almost zero, and what is left of the spend's gradient comes from the fresh model's own random answers. Standardise regression labels before you train, and then choose weights on purpose.

# %% [markdown]
# ## 5 · What if the tasks disagree?
#
# Take two losses over the same two parameters, each a bowl with its own lowest point $c_i$ and curvature $A_i$:
#
# $$L_i(\theta)=\tfrac12(\theta-c_i)^\top A_i(\theta-c_i)$$
#
# Set the gradient of $w_1L_1+w_2L_2$ to zero and solve:
#
# $$\theta^*=(w_1A_1+w_2A_2)^{-1}(w_1A_1c_1+w_2A_2c_2)$$

# %%
A = torch.tensor([[[1.0, 0.0], [0.0, 4.0]], [[3.0, 1.5], [1.5, 1.5]]], dtype=torch.float64)
c = torch.tensor([[-1.5, -0.5], [1.5, 1.0]], dtype=torch.float64)


def bowls(theta):
    return torch.stack([0.5 * (theta - c[i]) @ A[i] @ (theta - c[i]) for i in (0, 1)])


w = torch.tensor([0.7, 0.3], dtype=torch.float64)
theta = torch.linalg.solve(w[0] * A[0] + w[1] * A[1], w[0] * A[0] @ c[0] + w[1] * A[1] @ c[1])
print("θ* by hand:", theta.numpy().round(4))
print("θ* helper: ", loss_demos.weighted_optimum(A, c, w).round(4))
check_gradient("slope at θ* is zero", lambda t: w @ bowls(t), theta, torch.zeros_like(theta))

# %% [markdown]
# At $\theta^*$ neither task is content. Their weighted gradients are equal, and opposite: $w_1g_1=-w_2g_2$. So no
# small step helps one without hurting the other; $\theta^*$ is *Pareto optimal*.

# %%
own = torch.stack([A[i] @ (theta - c[i]) for i in (0, 1)])
for i in (0, 1):
    check_gradient(f"g{i + 1} = A(θ − c)", lambda t, i=i: bowls(t)[i], theta, own[i])
print("w₁g₁ =", (w[0] * own[0]).numpy().round(4), " w₂g₂ =", (w[1] * own[1]).numpy().round(4))
print("losses there:", bowls(theta).numpy().round(3))

# %% [markdown]
# **Predict.** Slide the weight from 0 to 1: on what curve will the optimum move, a straight line? Then leave the
# weight at one half and multiply loss 1 by 100. Where does the optimum go?

# %%
bowl_demo = loss_demos.two_losses_explorer(A, c)
bowl_demo

# %%
probe = loss_demos.two_losses_explorer(A, c)  # a second one, so that yours stays where you left it
for weight in (0.5, 100 / 101):
    print(*probe.set(weight=weight, unit=100.0).reading.split(" At "), sep="\n  At ")

# %% [markdown]
# **What surprised you?** A change of unit leaves the curve as it is and slides you along it. The right weight
# slides you back. A weight chooses a point on the front; it cannot move the front. On the right you see the same as
# geometry: the weights are the slope of the line that touches the front.

# %% [markdown]
# ### Two gradients, one step
#
# Away from the optimum, two gradients meet in the bottom. Take a small step $-\eta d$. To first order the loss of
# task $i$ changes by $-\eta\,g_i\cdot d$. So a direction $d$ with $g_i\cdot d<0$ harms task $i$.

# %%
theta = torch.tensor([-1.0, -0.4], dtype=torch.float64)
G = torch.stack([A[i] @ (theta - c[i]) for i in (0, 1)])
d, zero = G.sum(dim=0), torch.zeros(1, dtype=torch.float64)
for i in (0, 1):
    slope = -(G[i] @ d)[None]
    check_gradient(f"dL{i + 1}/dη = −g·d", lambda eta, i=i: bowls(theta - eta * d)[i], zero, slope)
    print(f"  a step along the sum {'lowers' if slope < 0 else 'raises'} L{i + 1}: slope {slope.item():.2f}")

# %% [markdown]
# The plain sum lets the longer gradient win. Four other recipes, each from one idea:
#
# - **normalised sum**: give both gradients length 1, then add;
# - **PCGrad**: cut from each gradient the part that conflicts with the other, then add;
# - **MGDA**: the shortest vector between the two arrow tips;
# - **CAGrad**: close to the mean, yet as good as possible for the task that is worse off.

# %%
G = torch.from_numpy(loss_demos.two_gradients(angle=135, length=2.0))
g1, g2 = G
pcgrad = (g1 - (g1 @ g2) / (g2 @ g2) * g2) + (g2 - (g1 @ g2) / (g1 @ g1) * g1)
t = ((g1 - g2) @ g1 / ((g1 - g2) @ (g1 - g2))).clamp(0, 1)
mgda = (1 - t) * g1 + t * g2
check_gradient(
    "MGDA: d‖(1−t)g₁ + tg₂‖²/dt = 0",
    lambda t: ((1 - t) * g1 + t * g2).square().sum(),
    t[None],
    torch.zeros(1),
)
for name, by_hand in (("PCGrad", pcgrad), ("MGDA", mgda)):
    print(name, "by hand", by_hand.numpy().round(4), "· helper", gradients.combine(name, G).numpy().round(4))

# %% [markdown]
# CAGrad looks in a disc around the mean gradient $g_0$, with radius $0.4\,\lVert g_0\rVert$. There it takes the $d$
# whose smaller $g_i\cdot d$ is largest. By hand: try the points of the circle.

# %%
g0 = G.mean(dim=0)
turn = torch.linspace(0, 2 * torch.pi, 100_001, dtype=torch.float64)
circle = g0 + 0.4 * g0.norm() * torch.stack([turn.cos(), turn.sin()], dim=1)
best = circle[(circle @ G.T).min(dim=1).values.argmax()]
print("circle:", tuple(circle.shape), "· best by hand", best.numpy().round(3))
print("gradients.combine('CAGrad', G):     ", gradients.combine("CAGrad", G).numpy().round(3))

# %% [markdown]
# **Predict.** Two gradients at 135 degrees; the second is twice as long. Which recipes will harm task 1? Now make
# the second one shorter than the first: who is harmed? At what angle do PCGrad and the sum become one arrow?

# %%
gradient_demo = loss_demos.two_gradients_explorer()
gradient_demo

# %%
probe = loss_demos.two_gradients_explorer()
for angle, length in ((60, 2.0), (135, 2.0), (135, 0.3), (180, 1.0)):
    print(f"{angle} degrees, length {length}:")
    print("  " + probe.set(angle=angle, length=length).reading.replace(". ", ".\n  "))

# %% [markdown]
# **What surprised you?** Up to 90 degrees there is no conflict, and PCGrad is the sum. Lengths differ by convention:
# some recipes add, some average. Compare directions first. A lower training loss of both tasks for one small step is
# also not yet a better model: notebook 04 puts all of these to the test.

# %% [markdown]
# ## 6 · Do weights matter under Adam?
#
# SGD steps by $-\eta\,g$. Ten times the weights, ten times the step. Adam divides a running mean of the gradient by
# the root of a running mean of its square:
#
# $$\Delta=-\eta\,\frac{\hat m}{\sqrt{\hat v}+\epsilon}$$
#
# **Predict.** Multiply *all* weights by 10. What happens to $\hat m$, to $\sqrt{\hat v}$, to the step?


# %%
def adam_by_hand(gradients, lr=0.01, beta1=0.9, beta2=0.999, eps=1e-8):
    m = v = x = 0.0
    for t, g in enumerate(gradients, start=1):
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g**2
        x -= lr * (m / (1 - beta1**t)) / ((v / (1 - beta2**t)) ** 0.5 + eps)
    return x


sequence = np.random.default_rng(0).normal(0.5, 1, 50)
x = torch.zeros(1, dtype=torch.float64, requires_grad=True)
adam = torch.optim.Adam([x], lr=0.01)
for g in sequence:
    x.grad = torch.tensor([g])
    adam.step()
print(f"50 steps: by hand {adam_by_hand(sequence):.8f}, torch {x.item():.8f}")
print(f"all gradients times 10: {adam_by_hand(10 * sequence):.8f}")
print(f"all gradients times 1e-9: {adam_by_hand(1e-9 * sequence):.8f}")

# %% [markdown]
# The factor cancels, until gradients become so small that $\epsilon$ counts. Now a whole model: train the toy twice,
# from the same start, on the same batches, and follow all parameters. The spend is standardised this time.

# %%
STEPS = 40 if FAST else 150
toy_data = toy()
euros = toy_data.labels["spend"]
toy_data.labels["spend"] = (euros - euros.mean()) / euros.std()


def groups_of(model):
    towers = {f"{task} tower": list(model.task_parameters(task)) for task in model.towers}
    return {"bottom": list(model.shared_parameters())} | towers


def positions(model):
    flat = nn.utils.parameters_to_vector
    return {name: flat(ps).detach().clone() for name, ps in groups_of(model).items()}


# %%
def path(weights, optimizer, frozen=False, **settings):
    """Train the toy; {group: (steps, parameters)}, each step as the way from the start."""
    model = toy_model()
    for p in model.shared_parameters():
        p.requires_grad_(not frozen)
    made = optimizer([p for p in model.parameters() if p.requires_grad], **{"lr": 0.003} | settings)
    order, start, found = torch.Generator().manual_seed(0), positions(model), []
    steps = training_steps(model, toy_data, made, weights=weights, batch_size=256, epochs=99, generator=order)
    for _, _step in zip(range(STEPS), steps, strict=False):
        found.append(positions(model))
    return {name: torch.stack([at[name] for at in found]) - start[name] for name in start}


# %% [markdown]
# We compare each run with the run of weights 1 and 1. The measure: how far apart the two are, per unit of the
# way that the first one has gone. 0 means the same path.


# %%
def apart(click, spend, *how, **settings):
    """How far weights (click, spend) lead from the path of weights (1, 1): {group: (steps,)}."""
    one = path({"click": 1.0, "spend": 1.0}, *how, **settings)
    other = path({"click": click, "spend": spend}, *how, **settings)
    return {
        name: ((other[name] - r).norm(dim=1) / r.norm(dim=1)).numpy() for name, r in one.items() if r.any()
    }


Adam, SGD, AdamW = torch.optim.Adam, torch.optim.SGD, torch.optim.AdamW
runs = {"Adam, both × 10": apart(10, 10, Adam), "SGD, both × 10": apart(10, 10, SGD)}
for name, found in runs.items():
    print(f"{name}: after {STEPS} steps the bottoms are {found['bottom'][-1]:.1e} of the way apart")

# %% [markdown]
# So what does change something under Adam? **Predict** for each line of the next table which groups move apart:
# a smaller ε; only the *ratio* of the weights changed; the same with a frozen bottom, for both optimisers; all
# weights tiny; weight decay inside the gradient (Adam) or beside it (AdamW).

# %%
runs |= {
    "Adam with ε = 1e-14, both × 10": apart(10, 10, Adam, eps=1e-14),
    "Adam, only spend × 10": apart(1, 10, Adam),
    "Adam, only spend × 10, bottom frozen": apart(1, 10, Adam, True),
    "SGD, only spend × 10, bottom frozen": apart(1, 10, SGD, True),
    "Adam, both × 1e-8": apart(1e-8, 1e-8, Adam),
    "Adam, weight decay 0.05, both × 10": apart(10, 10, Adam, weight_decay=0.05),
    "AdamW, weight decay 0.05, both × 10": apart(10, 10, AdamW, weight_decay=0.05),
}
last = pd.DataFrame({name: {group: way[-1] for group, way in run.items()} for name, run in runs.items()}).T


def in_words(value):
    return "frozen" if pd.isna(value) else f"{value:.0e} " + ("same" if value < 0.01 else "MOVED")


display(last.map(in_words))
print("Entries: distance between the runs / way travelled; below 1 % counts as the same path.")

# %%
fig = plots.figure(3.2)
ax = fig.subplots()
looks = {
    "SGD, both × 10": ("bottom", "#D55E00", "-"),
    "Adam, only spend × 10": ("bottom", "#0072B2", "--"),
    "Adam, both × 10": ("bottom", "#222222", ":"),
    "Adam, only spend × 10, bottom frozen": ("spend tower", "#7A5195", "-."),
}
for name, (group, color, line) in looks.items():
    ax.plot(range(1, STEPS + 1), runs[name][group], line, color=color, label=f"{name}:\n{group}")
same = last.loc["Adam, both × 10"].max() < 0.01
ratio = last.loc["Adam, only spend × 10", "bottom"] > 0.01
ax.set(yscale="log", xlabel="optimiser step", ylabel="distance / way travelled")
finding = "only the ratio of the weights counts" if same and ratio else "read the table"
ax.set_title(f"Under Adam, {finding}")
ax.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8)
display(fig)
order = sorted(looks, key=lambda name: -runs[name][looks[name][0]][-1])
print("From top to bottom at the last step:", *order, sep="\n  ")

# %% [markdown]
# In words, line by line:

# %%
lines = (
    ("all weights × 10", "Adam, both × 10", "bottom"),
    ("all × 10, ε smaller", "Adam with ε = 1e-14, both × 10", "bottom"),
    ("ratio changed", "Adam, only spend × 10", "bottom"),
    ("ratio, bottom frozen", "Adam, only spend × 10, bottom frozen", "spend tower"),
    ("the same under SGD", "SGD, only spend × 10, bottom frozen", "spend tower"),
    ("all weights tiny", "Adam, both × 1e-8", "bottom"),
    ("all × 10, decay inside", "Adam, weight decay 0.05, both × 10", "bottom"),
    ("all × 10, decay beside", "AdamW, weight decay 0.05, both × 10", "bottom"),
)
for text, line, group in lines:
    value = last.loc[line, group]
    path_is = "same path" if value < 0.01 else "another path"
    print(f"{text:23s} {group:12s} {path_is:13s} ({value:.0e} of the way)")

# %% [markdown]
# **What surprised you?** Under Adam a task weight is a ratio between tasks where they share parameters. It is not a
# learning rate for a tower; give the tower a parameter group of its own for that. Weight decay inside Adam's
# gradient makes the common scale count again. So `fit` decays beside it, as AdamW does.

# %% [markdown]
# ## 7 · The article's worked example, made to run
#
# A thousand input numbers become 256 features; three tasks of three classes read them through convolutional towers.
# The article's program is reconstructed here from that description. **Predict** what `Conv2d` says to a batch of 256
# features.

# %%
f = nn.Sequential(nn.Linear(1000, 256), nn.ReLU())
X = torch.randn(32, 1000)
Z = f(X)
print("X", tuple(X.shape), "→ Z", tuple(Z.shape))
try:
    nn.Conv2d(256, 64, kernel_size=3)(Z)
except RuntimeError as error:
    print("Conv2d refuses:", str(error).splitlines()[0])
print("In words: it expects images (samples, channels, height, width). Z has no height and no width.")

# %% [markdown]
# The usual quick repair is to invent the missing axes. It fails for a second reason.

# %%
try:
    nn.Conv2d(256, 64, kernel_size=3)(Z[:, :, None, None])
except RuntimeError as error:
    print("Conv2d refuses again:", str(error).splitlines()[0])
print("In words: each of the 256 images is 1 by 1, and a window of 3 by 3 does not fit into it.")

# %% [markdown]
# What does fit: read the 256 features as *one* signal of length 256, for `Conv1d`. Or as one image of 16 by 16, for
# `Conv2d`. A stride of 4 keeps the output short.

# %%
signal = Z.unflatten(1, (1, 256))
waves = nn.Conv1d(1, 8, kernel_size=8, stride=4)(signal)
flat = waves.relu().flatten(1)
z = nn.Linear(flat.shape[1], 3)(flat)
for name, step in {"signal": signal, "Conv1d": waves, "flatten": flat, "logits": z}.items():
    print(f"{name:8s}", tuple(step.shape))
image = Z.unflatten(1, (1, 16, 16))
seen = nn.Conv2d(1, 8, kernel_size=3)(image)
print("or image", tuple(image.shape), "→ Conv2d", tuple(seen.shape))

# %% [markdown]
# ### Data with a known answer
#
# Six hidden tastes show in 1000 noisy columns. A known rule turns tastes into class probabilities, and labels are
# drawn from them. So we know the best accuracy anyone can reach: always answer the likeliest class of the rule.

# %%
tasks = tuple(Task(name, "multiclass", n_classes=3) for name in ("brand", "budget", "channel"))
N_TRAIN, N_REST = (1200, 600) if FAST else (4000, 2000)


def draw(seed, noise=3.0):
    g, n = torch.Generator().manual_seed(seed), N_TRAIN + 2 * N_REST
    tastes = torch.randn(n, 6, generator=g)
    X = tastes @ torch.randn(6, 1000, generator=g) / 6**0.5 + noise * torch.randn(n, 1000, generator=g)
    rule = torch.randn(3, 6, 3, generator=g) / 6**0.5
    truth = torch.einsum("nk,tkc->tnc", 2 * tastes, rule).softmax(-1)
    labels = {t.name: torch.multinomial(truth[i], 1, generator=g)[:, 0] for i, t in enumerate(tasks)}
    data = MultiTaskDataset(X, torch.zeros(n, 0, dtype=torch.long), labels, {}, tasks)
    cuts = (slice(0, N_TRAIN), slice(N_TRAIN, N_TRAIN + N_REST), slice(N_TRAIN + N_REST, n))
    return [data.take(cut).to(device) for cut in cuts], truth[:, cuts[2]]


(train, valid, test), truth = draw(seed=0)
print("X", tuple(train.numeric.shape))
print("true probabilities (tasks, samples, classes)", tuple(truth.shape))

# %%
for i, task in enumerate(tasks):
    y = test.labels[task.name].cpu()
    hit = (truth[i].argmax(-1) == y).double().mean()
    largest = torch.bincount(y, minlength=3).max() / len(y)
    bayes = truth[i].amax(-1).mean()
    print(f"{task.name:8s} Bayes accuracy {bayes:.3f} expected, {hit:.3f} on these labels;")
    print(f"         always the largest class {largest:.3f}")

# %% [markdown]
# ### The model
#
# It keeps the course's contract: `model(numeric, categorical)` gives `{task: logits}`, and `model.tasks` names the
# tasks. So `fit` and `evaluate` take it as they are. For comparison, dense towers with nearly as many parameters.


# %%
def conv_tower():
    return nn.Sequential(
        nn.Unflatten(1, (1, 256)), nn.Conv1d(1, 8, 8, stride=4), nn.ReLU(), nn.Flatten(), nn.Linear(504, 3)
    )


def dense_tower():
    return nn.Sequential(nn.Linear(256, 6), nn.ReLU(), nn.Linear(6, 3))


class ArticleModel(nn.Module):
    def __init__(self, tower):
        super().__init__()
        self.tasks = tasks
        self.f = nn.Sequential(nn.Linear(1000, 256), nn.ReLU())
        self.towers = nn.ModuleDict({task.name: tower() for task in tasks})

    def forward(self, numeric, categorical):
        Z = self.f(numeric)
        return {name: tower(Z) for name, tower in self.towers.items()}


# %%
for name, tower in (("convolution", conv_tower), ("dense", dense_tower)):
    candidate = ArticleModel(tower).to(device)
    made = candidate(train.numeric[:32], train.categorical[:32])
    own = count_parameters(candidate.towers["brand"])
    print(f"{name}: {own:,} parameters a tower, {count_parameters(candidate):,} in all")
    print("  logits", {task: tuple(z.shape) for task, z in made.items()})

# %% [markdown]
# Five draws of the data, each with its own rule. Both models get the same learning rates to choose from, by
# validation loss, and the same stopping rule. The test rows are used once, by the chosen model.

# %%
SEEDS, RATES = (2, (1e-3,)) if FAST else (5, (3e-4, 1e-3))
SETTINGS = {"epochs": 4 if FAST else 8, "batch_size": 256, "patience": 2, "progress": False}


def train_article(tower, seed, train, valid):
    tried = []
    for lr in RATES:
        seed_everything(seed)
        model = ArticleModel(tower)
        history = fit(model, train, valid, **SETTINGS, lr=lr, seed=seed)
        best = history.frame().query("split == 'valid' and metric == 'loss'")
        loss = best.loc[best["epoch"] == history.best_epoch, "value"].sum()
        tried.append((loss, lr, model))
    return min(tried, key=lambda found: found[0])[2]


# %%
results = []
for seed in range(SEEDS):
    (train, valid, test), truth = draw(seed)
    for name, tower in (("convolution", conv_tower), ("dense", dense_tower)):
        trained = train_article(tower, seed, train, valid)
        found, p = evaluate(trained, test), predict(trained, test)
        for i, task in enumerate(tasks):
            off = (p[task.name] - truth[i]).abs().mean().item()
            bayes = truth[i].amax(-1).mean().item()
            results.append((seed, name, task.name, found[task.name]["accuracy"], bayes, off))
results = pd.DataFrame(results, columns=["seed", "towers", "task", "accuracy", "bayes", "off"])
per_seed = results.groupby(["towers", "seed"])[["accuracy", "bayes", "off"]].mean()
print(per_seed.groupby("towers").mean().round(3))

# %%
conv, dense = per_seed.loc["convolution"], per_seed.loc["dense"]
gap = paired_difference(conv["accuracy"], dense["accuracy"])
tie = gap.low <= 0 <= gap.high
winner = "a tie" if tie else f"{'convolution' if gap.mean > 0 else 'dense'} is ahead"
winner = "too few runs to tell" if FAST else winner
left_over = mean_interval(conv["bayes"] - conv["accuracy"])
print(f"Convolution stays {left_over} below the Bayes accuracy (mean and 95 % interval).")
print(f"Convolution minus dense: {gap}, {SEEDS} draws: {winner}.")

# %%
fig = plots.figure(2.9)
left, right = fig.subplots(1, 2)
rows = {"Bayes optimum": conv["bayes"], "convolution": conv["accuracy"], "dense": dense["accuracy"]}
looks = {"Bayes optimum": "#777777", "convolution": "#0072B2", "dense": "#D55E00"}
styles = {name: {"color": color, "marker": "o"} for name, color in looks.items()}
shown = plots.interval_dots(left, rows, styles)
left.set(xlabel="test accuracy, mean of three tasks", title="How close to the best possible?")
plots.interval_dots(right, {"difference": conv["accuracy"] - dense["accuracy"]})
right.axvline(0, color="black", lw=1)
right.set(xlabel="accuracy of convolution − dense", title=f"Same data, two towers: {winner}")
display(fig)
means = ", ".join(f"{name} {interval.mean:.3f}" for name, interval in shown.items())
print(f"Left: {means} (pale dots: single draws).")
print(f"Right: the interval of the difference {'includes' if tie else 'excludes'} zero: {winner}.")

# %% [markdown]
# ### Is a convolution right here?
#
# A convolution looks for one small pattern everywhere, among *neighbours*. Pixels and words have neighbours.
# The 256 outputs of a linear layer have none: their order is arbitrary. Shuffle them, and a dense layer can
# follow by shuffling its columns. A convolution has one kernel for all places, and no columns to shuffle.

# %%
order = torch.randperm(256, generator=torch.Generator().manual_seed(0))
Z, dense_layer, conv_layer = f(X), nn.Linear(256, 3), conv_tower()
shuffled = nn.Linear(256, 3)
shuffled.load_state_dict({"weight": dense_layer.weight[:, order], "bias": dense_layer.bias})
same = (shuffled(Z[:, order]) - dense_layer(Z)).abs().max().item()
changed = (conv_layer(Z[:, order]) - conv_layer(Z)).abs().max().item()
print(f"dense, columns shuffled along: logits change by {same:.0e}")
print(f"convolution: logits change by {changed:.2f}")

# %% [markdown]
# **What surprised you?** The convolution learns all the same, because the linear layer before it is trained along
# and can arrange its outputs. So its idea is not *used*, it is *tolerated*. Reach for a convolution when the input has an order
# that means something: a session's clicks in time, for instance.

# %% [markdown]
# ## Exercises
#
# Each has a stub that returns `...` and a check that tells you where you are. Stuck? Type `hint("03.log_sum_exp", 1)`
# into a cell; levels go up to 3. `solution("03.log_sum_exp")` shows commented source.
#
# **Exercise 1. The gradient of softmax cross-entropy, by hand**, with a temperature and a mask. No autograd.


# %%
from mtl_helpers.check import check, hint, solution, use


def cross_entropy_gradient(logits, labels, mask, temperature):
    """Gradient of the mean cross-entropy of softmax(logits / temperature) over rows with a known label.

    logits (m, C) float, labels (m,) int64, mask (m,) bool with at least one True, temperature > 0; returns (m, C).
    logits [[0., 0.]], labels [0], mask [True], temperature 2 give [[-0.25, 0.25]].
    """
    return ...


# %%
check("03.cross_entropy_gradient", cross_entropy_gradient)

# %% [markdown]
# **Exercise 2. Log-sum-exp that survives anything**, without `torch.logsumexp` or `log_softmax`.


# %%
def log_sum_exp(z):
    """log Σ_c exp(z[n, c]) for each row of z (n, C) float; returns (n,).

    Logits may be 1000, −1000, or −inf for a class that is ruled out; one logit of each row is finite.
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
    """The w in [0, 1] with ‖(1 − w) g1‖ = ‖w g2‖, a float; g1 and g2 (P,) are not zero.

    g1 of length 3 and g2 of length 1 give 0.75: the quiet task gets the larger weight.
    """
    return ...


# %%
check("03.balancing_weight", balancing_weight)

# %%
balance = use("03.balancing_weight", balancing_weight)
g1, g2 = torch.tensor([3.0, 0.0]), torch.tensor([-0.5, 0.5])
w = balance(g1, g2)
print(f"lengths {g1.norm():.2f} and {g2.norm():.2f}: w = {w:.3f}")
print(f"weighted lengths {((1 - w) * g1).norm():.3f} and {(w * g2).norm():.3f}")

# %% [markdown]
# ## Self-check
#
# Answer aloud before you unfold.
#
# **1. "A larger loss means a more important task."**
# <details><summary>Answer</summary>
#
# No. A loss is large because its label has many classes, a base rate near one half, or a large unit. Section 4
# changed the unit and got another bottom. Importance is your decision; a weight is where you write it down.
# </details>
#
# **2. "Weights that sum to one keep the step size."**
# <details><summary>Answer</summary>
#
# No. The length of Σ wᵢ gᵢ depends on the lengths and angles of the gradients, not on the sum of the weights: opposite
# gradients can cancel: see the cell below these questions. Under Adam the common scale of the weights cancels anyway, and the learning rate sets the step.
# </details>
#
# **3. "The loss on logits is another loss than BCE on probabilities."**
# <details><summary>Answer</summary>
#
# On paper they are the same function of z. In float32 (section 2) they are not: rounded probabilities lose what the logit still
# knows. The form on logits computes the same loss in an order that cannot overflow.
# </details>

# %%
g1 = torch.tensor([1.0, 0.0])
for angle in (0, 90, 180):
    g2 = torch.tensor([np.cos(np.radians(angle)), np.sin(np.radians(angle))], dtype=torch.float32)
    step = 0.5 * g1 + 0.5 * g2  # the weights sum to one, the gradients have length 1
    print(f"gradients {angle:3d}° apart: the weighted sum has length {step.norm():.3f}")

# %% [markdown]
# ## Summary
#
# - Cross-entropy is a negative log-likelihood: sum over classes, mean over (known) samples. Its gradient is p − y.
# - Give losses logits. Sigmoid and softmax belong inside the loss, where the largest exponent can be made 0.
# - A weight scales its tower's gradient and takes part in a sum at the bottom. Units, base rates, class counts and wrong
#   denominators are weights too. Under Adam only the ratio counts.
#
# **What the toy hides.** Two bowls have one optimum each, and every point of their front is found by some weight. Losses of
# deep models are not convex: some trade-offs are reached by no weighted sum, and gradients are noisy estimates from a batch.
#
# **In production.** Log each loss next to the loss of its best constant, and each task's share of the shared gradient.
# Standardise regression labels. With mixed precision compute losses in float32. Stop on the first loss that is not finite,
# and name its task.

# %% [markdown]
# ## References
#
# - I. Goodfellow, Y. Bengio, A. Courville, *Deep Learning*, MIT Press 2016, section 6.2 (output units and
#   cross-entropy).
# - C. M. Bishop, *Pattern Recognition and Machine Learning*, Springer 2006, section 4.3 (logistic regression, softmax).
# - R. Caruana, *Multitask Learning*, Machine Learning 28, 1997.
# - J.-A. Désidéri, *Multiple-gradient descent algorithm (MGDA) for multiobjective optimization*, Comptes Rendus
#   Mathématique 350, 2012.
# - D. P. Kingma, J. Ba, *Adam: A Method for Stochastic Optimization*, ICLR 2015 (section 2.1: invariance to scale).
# - A. Kendall, Y. Gal, R. Cipolla, *Multi-Task Learning Using Uncertainty to Weigh Losses*, CVPR 2018.
# - T. Yu and others, *Gradient Surgery for Multi-Task Learning* (PCGrad), NeurIPS 2020.
# - B. Liu and others, *Conflict-Averse Gradient Descent for Multi-task Learning* (CAGrad), NeurIPS 2021.
#
# **Next:** [04_weighting_strategies](04_weighting_strategies.ipynb): who chooses the weights, you or the data?
