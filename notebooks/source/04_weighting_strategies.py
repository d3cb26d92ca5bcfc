# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # Weighting strategies: who chooses the task weights?
#
# **Promise.** You will run every well-known way to balance tasks, see each of them break, and know what to try
# first on your own data.
#
# {{colab_badge}} · [glossary](glossary.md) · about ninety minutes to read, about three minutes to run on two CPU cores (no GPU needed) · builds on
# [03_loss_math](03_loss_math.ipynb)

# %% [markdown]
# **You will be able to**
#
# - *set* task weights by hand, from the data, and by methods that adapt while training;
# - *combine* the gradients of several tasks, and *say* what each method promises;
# - *provoke* the failure of each, and *recognise* it in a curve;
# - *compare* strategies honestly, against fixed weights that were tuned.

# %%
# {{setup}}

# %% tags=["plumbing"]
# @title Where this notebook stands in the course
from mtl_helpers.widgets import course_map

course_map("04")

# %% [markdown]
# ## Recap: losses have no common scale
#
# Notebook 03 showed it: a loss is in the unit of its task. Below is what each task loses when it always says
# the same thing. Summing the three losses as they are is already a choice.
#
# The notebook trains on the latest 80,000 rows of the log, which keeps it quick; their features know the whole log.

# %% tags=["plumbing"]
# @title Imports
import numpy as np
import pandas as pd
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
from mtl_helpers.weighting import constant_losses
from mtl_helpers.widgets import figures as plots

# %%
frames = shop_splits(shop_frame(load_shop()).tail(80_000))
splits = prepare(frames, SHOP_TASKS, SHOP_NUMERIC, SHOP_CATEGORICAL, device=device)
names = [task.name for task in splits.tasks]
constants = constant_losses(splits.train)
print({name: round(loss, 3) for name, loss in constants.items()}, "nats")

# %% tags=["plumbing"]
# @title Figure: losses have no common scale
fig = plots.figure(2.2)
ax = fig.subplots()
ax.barh(names, [constants[name] for name in names], color=[plots.task_style(name)["color"] for name in names])
largest, smallest = max(constants, key=constants.get), min(constants, key=constants.get)
ax.set(xlabel="loss of the best constant (nats)", ylim=(2.5, -0.5))
ax.set_title(f"{largest} is the loudest task, {smallest} the quietest")
ax.grid(axis="y", visible=False)
display(fig)
times = constants[largest] / constants[smallest]
print(f"Whoever always says the same loses {times:.0f} times as much on {largest} as on {smallest}.")

# %% [markdown]
# One model serves the whole notebook, and one function trains it. A *strategy* is an object that turns the
# losses of a batch into one training step; `fit` takes it as its `weights`.

# %%
from mtl_helpers.models import SharedBottom
from mtl_helpers.training import evaluate, fit

SETTINGS = {"lr": 1e-3, "weight_decay": 0.1, "batch_size": 1024, "progress": False}


def build(seed=0, tasks=splits.tasks):
    torch.manual_seed(seed)
    return SharedBottom(splits.schema, tasks, embedding_dim=4).to(device)


def watch(strategy, epochs=3 if FAST else 8, seed=0):
    """Train with a strategy; return the weights it gave at each step, scaled to sum to the number of tasks."""
    seen, hook = [], strategy.after_step
    strategy.after_step = lambda recompute: (hook(recompute), seen.append(strategy.effective.cpu().numpy()))
    rows = splits.train.take(slice(None, None, 2))
    fit(build(seed), rows, splits.valid, weights=strategy, epochs=epochs, patience=epochs, **SETTINGS)
    seen = np.array(seen)
    return strategy.n_tasks * seen / seen.sum(1, keepdims=True)


# %% [markdown]
# ## 1 · By hand
#
# Choose a weighting, train, look, choose again. It is slow, so we train a whole family at once: every
# weighting of a grid over the triangle of three weights.
#
# **Predict.** Give nearly all weight to purchases. Does the purchase AUC reach its best there?

# %%
from mtl_helpers.sweep import simplex_grid, sweep

family = sweep(
    build, splits.train.take(slice(None, None, 2)), splits.valid,
    weightings=simplex_grid(splits.tasks, 4 if FAST else 6, lowest=0.05), seeds=(0, 1),
    epochs=2 if FAST else 6, lr=3e-3, weight_decay=0.1, keep="best", progress=False,
)  # fmt: skip
print(family)

# %%
from mtl_helpers.widgets import weight_explorer

weight_explorer(family)

# %% [markdown]
# Moving one slider moves the other two to a trained weighting that fits, so the weights always add up to one. That
# loses nothing: with AdamW a common factor does not change the path.

# %%
front = family.pareto({"click": "auc", "purchase": "auc", "next_category": "accuracy"})
kept = front[~front["dominated"]]
print(f"{len(kept)} of {len(front)} weightings are not dominated: no other one is better on every task.")
best = family.weightings.loc[front["purchase"].idxmax()]
print("Best for purchase on validation:", {name: round(float(best[name]), 2) for name in names})

# %% [markdown]
# **What surprised you?** A front that many weightings share means that the choice is yours, not the data's.
# Everything below is a way of choosing without looking.

# %% [markdown]
# ## 2 · From the data
#
# Count before you train. Two recipes: make each task's *constant* loss equal (entropy), or weight a label by
# how rare it is (rarity, here with a square root).

# %%
from mtl_helpers.weighting import entropy_weights, rarity_weights

by_hand = {name: 1 / loss for name, loss in constants.items()}
by_hand = {name: 3 * weight / sum(by_hand.values()) for name, weight in by_hand.items()}
table = pd.DataFrame({"entropy": entropy_weights(splits.train), "rarity": rarity_weights(splits.train)})
print("entropy by hand:", {name: round(weight, 3) for name, weight in by_hand.items()})
assert np.allclose(list(by_hand.values()), table.loc[list(by_hand), "entropy"])
table.round(3)

# %% [markdown]
# Where it breaks: the recipe knows the labels, not the model. A task that is rare *and* unlearnable gets the
# same push as one that is rare and easy.

# %% [markdown]
# ## 3 · Adaptive weights
#
# ### Uncertainty weighting
#
# *Problem:* scales differ, and nobody wants to tune. *Idea:* learn a variance for each task. For
# classification, with $s_i=\log\sigma_i^2$ (Kendall, Gal, Cipolla, CVPR 2018):
#
# $$L=\sum_i e^{-s_i}L_i+\tfrac12 s_i \qquad\text{(regression: } \tfrac12 e^{-s_i}L_i+\tfrac12 s_i)$$

# %%
from mtl_helpers.weighting import UncertaintyWeighting

losses = torch.tensor([0.22, 0.07, 2.0])
s = torch.tensor([0.1, -0.3, 0.5])
by_hand = (torch.exp(-s) * losses + 0.5 * s).sum()
helper = UncertaintyWeighting(splits.tasks)
helper.log_variance.data = s
print(f"by hand {by_hand:.6f}, helper {helper(losses).item():.6f}")
assert torch.isclose(by_hand, helper(losses))

# %% [markdown]
# Set the derivative by $s_i$ to zero: $e^{-s_i}=1/(2L_i)$. The weight is the inverse of the loss.
#
# **Predict.** A purchase is rare, so its loss is small. Where does its weight go?

# %%
optimum = {name: 1 / (2 * loss) for name, loss in constants.items()}
print("weights at the optimum, if losses stay constant:", {k: round(v, 2) for k, v in optimum.items()})
rare = constants["purchase"] / 10
print(
    f"Ten times rarer still, a loss of about {rare:.3f}: weight {1 / (2 * rare):.0f}, and on without bound."
)

# %%
uncertain = UncertaintyWeighting(splits.tasks)
model = build()
optimizer = torch.optim.SGD(uncertain.parameters(), lr=0.3)  # only the weights learn, losses are held
for _ in range(400):
    optimizer.zero_grad()
    uncertain(torch.tensor(list(constants.values())).to(uncertain.log_variance)).backward()
    optimizer.step()
reached = torch.exp(-uncertain.log_variance).tolist()
print("reached:", {name: round(weight, 2) for name, weight in zip(names, reached, strict=True)})

# %% [markdown]
# It reaches the formula's weights. So *uncertainty* is, for rare labels, another word for *small loss*: the
# rarer a label, the louder it gets, whether or not it can be learned.
#
# **IMTL-L** (Liu et al., ICLR 2021) is its twin, $\sum_i e^{s_i}L_i-s_i$, which draws every scaled loss to one.

# %%
from mtl_helpers.weighting import IMTLL

twin = IMTLL(splits.tasks)
optimizer = torch.optim.SGD(twin.parameters(), lr=0.3)
for _ in range(400):
    optimizer.zero_grad()
    twin(torch.tensor(list(constants.values()))).backward()
    optimizer.step()
scaled = twin.log_scale.exp().detach() * torch.tensor(list(constants.values()))
print("scaled losses:", [round(value, 3) for value in scaled.tolist()])

# %% [markdown]
# ### Dynamic weight average
#
# *Idea:* a task whose loss falls slowly gets more (Liu, Johns, Davison, CVPR 2019). With
# $r_i = L_i(t-1)/L_i(t-2)$ and temperature $T$: $\;w_i = K\,\mathrm{softmax}(r_i/T)$.

# %%
from mtl_helpers.weighting import DWA

epochs = torch.tensor([[0.30, 0.10, 2.1], [0.24, 0.08, 2.0], [0.23, 0.075, 1.98]])
dwa = DWA(splits.tasks, temperature=2.0)
for epoch in epochs:
    dwa.after_epoch(epoch, None)
ratio = epochs[2] / epochs[1]
by_hand = 3 * torch.softmax(ratio / 2.0, dim=0)
print("by hand", by_hand.numpy().round(4), "helper", dwa.weights.numpy().round(4))
assert torch.allclose(by_hand, dwa.weights)

# %% [markdown]
# Where it breaks: once losses flatten, all ratios are near one, so the weights are near equal, and what moves
# them is the noise of an epoch. Look at the size of the movement:

# %%
weights = np.array([watch(DWA(splits.tasks), seed=seed)[-1] for seed in range(2 if FAST else 3)])
moved = np.abs(weights - 1).max()
print("last weights, one row a seed:\n", weights.round(4))
words = "equal weights with jitter" if moved < 0.05 else "still more than jitter"
print(f"After the last epoch no weight is further than {moved:.3f} from one: {words}.")

# %% [markdown]
# ### GradNorm, RLW, GLS, STCH, FAMO
#
# - **GradNorm** (Chen et al., ICML 2018): make the weighted gradients at the last shared layer equally long,
#   corrected by how fast each task learns.
# - **RLW** (Lin et al., TMLR 2022): draw random weights at every step. A litmus test.
# - **GLS** (Chennupati et al., 2019): minimise the geometric mean, $\big(\prod L_i\big)^{1/K}$.

# %%
from mtl_helpers.weighting import GLS

values = torch.tensor([0.22, 0.07, 2.0], requires_grad=True)
mean = GLS(splits.tasks)(values)
mean.backward()
print("weights of GLS:", values.grad.numpy().round(3))
print("mean / (K · loss):", (mean / (3 * values)).detach().numpy().round(3))
assert torch.allclose(values.grad, (mean / (3 * values)).detach())

# %% [markdown]
# So GLS, too, weights by the inverse loss. It needs no parameter, and a loss near zero breaks it.
#
# - **STCH** (Lin et al., ICML 2024): a soft maximum, $\mu\log\sum_i e^{\lambda_iL_i/\mu}$: train whoever is
#   worst off.
# - **FAMO** (Liu et al., NeurIPS 2023): move the weights so that all *log*-losses fall at one rate; it looks
#   at the losses once more after each step.

# %%
from mtl_helpers.weighting import FAMO, STCH

values = torch.tensor(list(constants.values()), requires_grad=True)
STCH(splits.tasks, mu=0.1)(values).backward()
share = values.grad / values.grad.sum()
print("share of each task under STCH:", {n: round(v, 4) for n, v in zip(names, share.tolist(), strict=True)})
print(
    f"With losses of different scales “worst off” means “largest unit”: {names[int(share.argmax())]} alone."
)

# %% [markdown]
# Now all of them at work. The menu picks a strategy, the slider a step. The curves are the weights that each
# strategy gave while it trained a model on the shop.

# %%
from mtl_helpers.weighting import GradNorm, RandomWeighting

ADAPTIVE = {
    "UW": UncertaintyWeighting, "IMTL-L": IMTLL, "DWA": DWA, "GradNorm": GradNorm,
    "RLW": RandomWeighting, "GLS": GLS, "STCH": STCH, "FAMO": FAMO,
}  # fmt: skip
traces = {name: watch(make(splits.tasks)) for name, make in ADAPTIVE.items()}
print({name: trace.shape for name, trace in traces.items()})

# %% tags=["plumbing"]
# @title Widget: weights while training, drawn
from mtl_helpers.widgets.explorer import Explorer, dropdown, slider

fig = plots.figure(3.4)
ax = fig.subplots()
steps = len(traces["UW"])
curves = {n: ax.plot([], [], animated=True, label=n, **plots.task_style(n))[0] for n in names}
for curve in curves.values():
    curve.set(marker="", linewidth=2)
dots = {n: ax.plot([], [], ms=8, animated=True, **plots.task_style(n))[0] for n in names}
line = ax.axvline(0, color="#999999", lw=1, animated=True)
ax.set(xlim=(0, steps), ylim=(0, 3.05), xlabel="step", ylabel="weight (the three sum to 3)")
ax.set_title("What each strategy gave to each task")
plots.legend_outside(fig)


# %% tags=["plumbing"]
# @title Widget: weights while training, moved
def draw(state):
    trace, at = traces[state["strategy"]], state["step"] - 1
    for i, name in enumerate(names):
        curves[name].set_data(np.arange(1, steps + 1), trace[:, i])
        dots[name].set_data([at + 1], [trace[at, i]])
    line.set_xdata([at + 1])
    given = ", ".join(f"{name} {trace[at, i]:.2f}" for i, name in enumerate(names))
    return f"{state['strategy']} at step {at + 1}: {given}. Range over the run: {trace.min():.2f} to {trace.max():.2f}."


apart = max(traces, key=lambda name: np.ptp(traces[name], axis=1).mean())
knobs = [dropdown("strategy", "strategy", list(traces), apart)]
knobs.append(slider("step", "step", 1, steps, steps // 2, step=1))
Explorer(fig, knobs, draw, title="Effective task weights over time")

# %%
ends = pd.DataFrame({name: trace[-20:].mean(0) for name, trace in traces.items()}, index=names).T
loud = ends.idxmax(axis=1)
for task in names:
    chosen = list(loud[loud == task].index)
    print(f"most weight on {task} at the end: {', '.join(chosen) or 'no strategy'}")
ends.round(2)

# %% [markdown]
# **What surprised you?** Methods that all promise *balance* end up in opposite corners. Balance of what?
# Of log-losses, of gradient lengths, of the worst case: these are different wishes.

# %% [markdown]
# ## 4 · Combining gradients
#
# The next family looks at the tasks' gradients of the shared parameters, one row each in a matrix $J$. Each
# method finds weights from the inner products $G=JJ^\top$ and steps along $J^\top w$. Heads always get their own
# gradient.
#
# | method | what it asks for |
# |---|---|
# | PCGrad (Yu et al., NeurIPS 2020) | cut from each gradient what points against another |
# | MGDA (Désidéri 2012; Sener, Koltun 2018) | the shortest vector in the hull of the gradients |
# | CAGrad (Liu et al., NeurIPS 2021) | near the mean, as kind as possible to the worst-off task |
# | Nash-MTL (Navon et al., ICML 2022) | a bargain: $Gw=1/w$ |
# | IMTL-G (Liu et al., ICLR 2021) | equal progress along every unit gradient |
# | Aligned-MTL (Senushkin et al., CVPR 2023) | no direction of $J$ louder than another |
# | UPGrad (Quinton, Rey 2024) | the mean of gradients projected so that no task is harmed |

# %%
from mtl_helpers.widgets.formulas import two_gradients_explorer

two_gradients_explorer(["sum", "PCGrad", "MGDA", "CAGrad", "Nash-MTL"])

# %% [markdown]
# **Predict.** Put the angle at its largest. Which methods still move, and whom do they help?
#
# PCGrad for two tasks, by hand. If $g_1\cdot g_2<0$, take from $g_1$ its part along $g_2$, and the other way
# round, against the *original* gradients; then sum.

# %%
from mtl_helpers.gradients import METHODS, combine

J = torch.tensor([[1.0, 0.2], [-0.8, 0.9]])
dot = J[0] @ J[1]
first = J[0] - dot / (J[1] @ J[1]) * J[1]
second = J[1] - dot / (J[0] @ J[0]) * J[0]
print("inner product", round(dot.item(), 3), "→ by hand", (first + second).numpy().round(4))
print("helper", combine("PCGrad", J).numpy().round(4))
assert torch.allclose(first + second, combine("PCGrad", J))

# %% [markdown]
# ### Where they break
#
# **PCGrad's order.** With three tasks the result depends on the order of the projections. The paper draws it
# at random, so the step is random too.

# %%
from mtl_helpers.gradients import pcgrad

J3 = torch.tensor([[1.0, 0.0, 0.3], [-0.8, 0.9, 0.0], [-0.3, -0.9, 0.4]], dtype=torch.float64)
gram = (J3 @ J3.T).numpy()
rng = np.random.default_rng(0)
steps_seen = {tuple((pcgrad(gram, rng) @ J3.numpy()).round(4)) for _ in range(200)}
print(f"{len(steps_seen)} different steps from the same gradients; the first coordinates:")
print(sorted({float(step[0]) for step in steps_seen}))

# %% [markdown]
# **MGDA loves the small.** The shortest vector of the hull leans to the shortest gradient. Shrink one task's
# gradient, which is what happens when its loss has converged or is measured in a larger unit:

# %%
from mtl_helpers.gradients import mgda

for factor in (1.0, 0.3, 0.1, 0.01):
    rows = J * torch.tensor([[1.0], [factor]])
    w = mgda((rows @ rows.T).double().numpy())
    print(
        f"second gradient × {factor}: weights {w.round(4)}, step length {np.linalg.norm(w @ rows.numpy()):.4f}"
    )

# %% [markdown]
# **Opposite gradients.** Nothing helps both. Some methods stop, others take a side.

# %%
facing = torch.tensor([[1.0, 0.0], [-0.5, 0.0]], dtype=torch.float64)
rows = []
for method in METHODS:
    step = combine(method, facing)
    rows.append({"method": method, "step": step.numpy().round(4), "helps task 1": (step @ facing[0]).item() > 1e-6,
                 "helps task 2": (step @ facing[1]).item() > 1e-6})  # fmt: skip
pd.DataFrame(rows)

# %% [markdown]
# ### Do the shop's tasks conflict at all?
#
# **Predict.** Click and purchase come from the same people. What is the sign of their gradients' cosine?

# %%
from mtl_helpers.gradients import CombinedGradients

seen = []  # cosines of the three pairs, one row a step


def plain_sum(gram):
    """Weights of one, and a note of the cosines on the way."""
    length = np.sqrt(np.diag(gram))
    seen.append((gram / np.outer(length, length))[np.triu_indices(3, 1)])
    return np.ones(len(gram))


# %%
fit(
    build(),
    splits.train,
    weights=CombinedGradients(splits.tasks, plain_sum),
    epochs=2 if FAST else 5,
    **SETTINGS,
)
cosines = np.array(seen)
pairs = ["click · purchase", "click · next_category", "purchase · next_category"]
print({pair: f"{np.mean(cosines[:, i] < 0):.0%} of steps conflict" for i, pair in enumerate(pairs)})

# %% tags=["plumbing"]
# @title Figure: do the gradients conflict?
fig = plots.figure(3)
ax = fig.subplots()
window = 15
for i, (pair, style) in enumerate(zip(pairs, ("-", "--", ":"), strict=True)):
    smooth = np.convolve(cosines[:, i], np.ones(window) / window, mode="valid")
    ax.plot(
        np.arange(len(smooth)) + window, smooth, style, color=("#222222", "#7A5195", "#56B4E9")[i], label=pair
    )
ax.axhline(0, color="#999999", lw=1)
ax.set(xlabel="step", ylabel=f"cosine (mean of {window} steps)")
late = cosines[-50:].mean(0)
ax.set_title(f"At the end the mean cosines lie between {late.min():.2f} and {late.max():.2f}")
ax.legend()
display(fig)
print(
    "A method that only acts on conflicts has something to do in the steps below zero, and nothing elsewhere."
)

# %% [markdown]
# ### What it costs
#
# Exact gradients need one backward pass through the bottom for each task. At the shared representation $Z$ one
# pass is enough, because the towers' gradients meet there. Both are in `CombinedGradients(…, at=…)`.

# %%
import time

from mtl_helpers.training import training_steps


def step_times(weights, steps=12):
    """Seconds of each optimiser step."""
    model, seconds = build(), []
    run = training_steps(model, splits.train, torch.optim.Adam(model.parameters()), weights=weights)
    for _ in range(steps):
        started = time.perf_counter()
        next(run)
        seconds.append(time.perf_counter() - started)
    return np.median(seconds[2:])


plain = step_times(None)
for at in ("representation", "parameters"):
    ratio = step_times(CombinedGradients(splits.tasks, "UPGrad", at=at)) / plain
    print(f"UPGrad at the {at}: {ratio:.1f} times a plain step, here and now")

# %% [markdown]
# ## 5 · A landscape where it matters
#
# Two losses in a plane, from the CAGrad paper. Two valleys lead to a common front. On the way the mean of both
# losses has places where one gradient is so large that the other task is not heard.
#
# **Predict.** Which starts lead the plain mean to the front?

# %%
from mtl_helpers.widgets.landscape import FRONT, STARTS, WALKERS, descend, plane_losses

scales = (1.0,) if FAST else (1.0, 0.1)
walk = 10_000 if FAST else 100_000
paths = {scale: descend(scale=scale, steps=walk, keep_every=walk // 200) for scale in scales}
print("points kept, methods, starts, coordinates:", paths[1.0].shape)


def at_front(points):
    """Ends within half a unit of the front."""
    gap = np.linalg.norm(points[..., None, :] - FRONT, axis=-1).min(-1)
    return gap < 0.5


arrived = pd.DataFrame({scale: at_front(path[-1]).sum(1) for scale, path in paths.items()}, index=WALKERS)
arrived.rename(columns=lambda scale: f"arrive, of {len(STARTS)} starts (first loss × {scale})")

# %%
ends = {name: paths[1.0][-1, WALKERS.index(name)] for name in ("Mean", "CAGrad")}
for name, points in ends.items():
    print(f"{name} ends at", "; ".join(f"({x:.2f}, {y:.2f})" for x, y in points))
if FAST:
    print("FAST: a tenth of the steps; the walks need all of them to arrive.")
else:
    stuck = len(STARTS) - int(arrived.loc["Mean", 1.0])
    print(
        f"The mean is stuck from {stuck} of {len(STARTS)} starts; the paper reports two. CAGrad: as the table says."
    )

# %% tags=["plumbing"]
# @title Widget: the landscape, drawn
grid = np.stack(np.meshgrid(np.linspace(-10, 10, 160), np.linspace(-10, 10, 160)), axis=-1)
height = plane_losses(torch.tensor(grid)).mean(-1).numpy()
fig = plots.figure(4.2)
ax, side = fig.subplots(1, 2, width_ratios=(1.3, 1))
ax.contour(grid[..., 0], grid[..., 1], height, levels=16, cmap="Greys", linewidths=0.7)
ax.plot(*FRONT.T, color="#009E73", lw=4, alpha=0.6, label="Pareto front")
ax.plot(*np.array(STARTS).T, "k*", ms=10, lw=0, label="starts")
ax.set(xlabel="parameter x₁", ylabel="parameter x₂", title="Contours: mean of both losses")
_ = ax.legend(loc="upper center", ncols=2, fontsize=8)

# %% tags=["plumbing"]
# @title Widget: the fall of the mean loss, drawn
falls = {"ylabel": "mean of both losses", "title": "How the mean loss falls"}
side.set(xlim=(0, walk), ylim=(-20, 15), xlabel="step", **falls)
walkers = []  # for each start: its trail, its head, its curve
for i, dash in enumerate(("-", "--", ":")):
    look = {"color": "#D55E00", "ls": dash, "animated": True}
    curve = side.plot([], [], label=f"start {i + 1}", **look)[0]
    walkers.append(
        (ax.plot([], [], **look)[0], ax.plot([], [], "o", color="#D55E00", ms=8, animated=True)[0], curve)
    )
_ = side.legend()


# %% tags=["plumbing"]
# @title Widget: the landscape, moved
def draw_walk(state):
    path = paths[state["scale"]][:, WALKERS.index(state["method"])]
    upto = 1 + round(state["share"] / 100 * (len(path) - 1))
    values = plane_losses(torch.tensor(path), state["scale"]).mean(-1).numpy()
    told, there = [], at_front(path[upto - 1])
    for i, (trail, head, curve) in enumerate(walkers):
        shown = upto if state["start"] in ("all", str(i + 1)) else 0
        trail.set_data(*path[:shown, i].T)
        head.set_data(*path[max(shown - 1, 0) : shown, i].T)
        curve.set_data(np.linspace(0, walk, len(path))[:shown], values[:shown, i])
        told += [f"start {i + 1} {'at the front' if there[i] else 'not at the front'}"] * bool(shown)
    steps_made = (upto - 1) * walk // 200
    return f"{state['method']}, first loss × {state['scale']}, after {steps_made:,} steps: {', '.join(told)}."


# %% tags=["plumbing"]
# @title Widget: controls of the landscape
knobs = [
    dropdown("method", "method", list(WALKERS)),
    dropdown("start", "start", ["all", "1", "2", "3"]),
    dropdown("scale", "first loss ×", list(scales)),
    slider("share", "how far", 0, 100, 90, step=1, unit="% of the steps"),
]
Explorer(fig, knobs, draw_walk, title="Walks over two losses")

# %% [markdown]
# The contours are those of the unscaled mean. Change the scale of the first loss: some methods do not notice,
# others take another way.
#
# Keep in mind what this landscape is: a trap built on purpose. The question is whether your model's loss has
# such traps.

# %% [markdown]
# ## 6 · Weights while training
#
# Press *Start*, then move a slider while the model trains. The sliders are read at every step.
#
# **Predict.** Set the weight of `next_category` to zero. Which curves react, and how fast?

# %%
from mtl_helpers.widgets import live_training

live = live_training(build(), splits.train, splits.valid, lr=1e-3)
live

# %% [markdown]
# ## 7 · Where do strategies end, seen from the front?
#
# Two tasks are easier to draw. Here is the front of fixed weightings for click and purchase, and the end point
# of each strategy, trained with the same seeds, rows and settings.

# %%
two = splits.tasks[:2]
half, valid = (
    splits.train.select(["click", "purchase"]).take(slice(None, None, 2)),
    splits.valid.select(["click", "purchase"]),
)
shared_seeds = (0,) if FAST else (0, 1, 2)
budget = {"epochs": 3 if FAST else 8}
pair = sweep(
    lambda: SharedBottom(splits.schema, two, embedding_dim=4), half, valid,
    weightings=simplex_grid(two, 7 if FAST else 13, lowest=0.03), seeds=shared_seeds,
    lr=1e-3, weight_decay=0.1, keep="best", progress=False, **budget,
)  # fmt: skip
line_of = pair.pareto("auc")[["click", "purchase"]].to_numpy()
print(pair)


# %%
def end_point(make):
    """Mean validation AUC of click and purchase over the seeds."""
    found = []
    for seed in shared_seeds:
        model = build(seed, two)
        fit(model, half, valid, weights=make(), monitor={t: 1 / constants[t] for t in ("click", "purchase")},
            seed=seed, patience=8, **budget, **SETTINGS)  # fmt: skip
        values = evaluate(model, valid)
        found.append([values["click"]["auc"], values["purchase"]["auc"]])
    return np.mean(found, axis=0)


chosen = {name: ADAPTIVE[name] for name in (("UW", "GLS") if FAST else ADAPTIVE)}
makes = {name: (lambda make=make: make(two)) for name, make in chosen.items()}
makes |= {
    name: (lambda name=name: CombinedGradients(two, name))
    for name in ("PCGrad", "MGDA", "CAGrad", "Nash-MTL")
}
points = {name: end_point(make) for name, make in makes.items()}
print({name: point.round(4).tolist() for name, point in points.items()})

# %% tags=["plumbing"]
# @title Figure: end points over the front
fig = plots.figure(4)
ax = fig.subplots()
ax.plot(*line_of.T, "o-", color="#999999", ms=4, label="fixed weights")
ax.plot(*np.array(list(points.values())).T, "o", color="#8C510A", ms=6, label="strategies")
look = {"color": plots.HERE, "mec": "black", "ms": 10, "animated": True}
marker = ax.plot([], [], "s", label="your weight", **look)[0]
ring = ax.plot([], [], "o", label="your strategy", **look)[0]
ax.set(xlabel="click AUC (validation)", ylabel="purchase AUC (validation)")
ax.set_title("Fixed weights and strategies, means over seeds")
ax.margins(0.12)
plots.legend_outside(fig)
purchase_weights = [round(float(w), 3) for w in pair.weightings["purchase"]]


# %% tags=["plumbing"]
# @title Widget: end points over the front
from mtl_helpers.widgets.explorer import choice_slider


def draw_front(state):
    here, spot = line_of[purchase_weights.index(state["weight"])], points[state["strategy"]]
    marker.set_data(*here[:, None])
    ring.set_data(*spot[:, None])
    near = purchase_weights[int(np.linalg.norm(line_of - spot, axis=1).argmin())]
    yours = f"Purchase weight {state['weight']}: click {here[0]:.4f}, purchase {here[1]:.4f}."
    theirs = f"{state['strategy']}: click {spot[0]:.4f}, purchase {spot[1]:.4f}"
    return f"{yours} {theirs}; the nearest fixed weighting has purchase weight {near}."


knobs = [
    choice_slider("weight", "purchase weight", sorted(purchase_weights)),
    dropdown("strategy", "strategy", list(points)),
]
Explorer(fig, knobs, draw_front, title="Strategies over the front of fixed weights")

# %% [markdown]
# These are validation figures of one shop and few seeds. They show *where* strategies land. They do not show
# which is better; that takes the next section.

# %% [markdown]
# ## 8 · The honest comparison
#
# Rules: same model, optimiser, batches, budget and stopping rule for all; strategies keep their papers'
# defaults; the fixed weighting is **tuned** on data of its own. Each seed draws a whole new shop, and for
# KuaiRand new training rows. Everything is a difference to the tuned fixed weights of the same seed. The stored shops
# are of the shop's first edition: other users, products and rates than the log above.
#
# The stopping rule is the sum of the validation losses, each over its constant. It takes part in the game: a
# strategy that lets one task overfit early is stopped early for all tasks.

# %%
from pathlib import Path

import mtl_helpers
from mtl_helpers.metrics import mean_interval, paired_difference

folder = Path(mtl_helpers.__file__).parents[1] / "notebooks" / "results"


def results(name):
    """A stored table; its first line names the command that made it."""
    return pd.read_csv(folder / f"04_{name}.csv", comment="#")


runs = {data: results(f"strategies_{data}") for data in ("shop", "kuairand")}
tuned = {data: results(f"tuned_{data}").set_index("task")["weight"] for data in runs}
for data, table in runs.items():
    print(f"{data}: {table['strategy'].nunique()} strategies × {table['seed'].nunique()} seeds,", end=" ")
    print("tuned fixed weights", tuned[data].to_dict())
print("made by: python notebooks/studies/nb04_strategies.py")

# %% [markdown]
# **Predict.** How many of the strategies beat tuned fixed weights on *every* task of the shop?


# %%
def differences(data):
    """{(strategy, task): interval of the paired difference to tuned fixed weights} on test rows."""
    table = runs[data].query("metric != 'loss'")
    wide = table.pivot(index="seed", columns=["strategy", "task"], values="value")
    return {
        (strategy, task): paired_difference(wide[strategy, task], wide["tuned fixed", task])
        for strategy, task in wide.columns
        if strategy != "tuned fixed"
    }


# %% tags=["plumbing"]
# @title Figure: differences to tuned fixed weights
def draw_differences(data):
    """One panel a task, one row a strategy: mean difference with its interval."""
    found = differences(data)
    tasks = list(dict.fromkeys(task for _, task in found))
    rows = list(dict.fromkeys(strategy for strategy, _ in found))
    fig = plots.figure(5)
    for ax, task in zip(fig.subplots(1, len(tasks), sharey=True), tasks, strict=True):
        color = plots.task_style(task)["color"]
        for y, strategy in enumerate(rows):
            gap = found[strategy, task]
            ax.plot([gap.low, gap.high], [y, y], color=color, lw=2, alpha=1 if gap.excludes_zero else 0.45)
            ax.plot(gap.mean, y, "o", color=color, mfc=color if gap.excludes_zero else "white")
        ax.axvline(0, color="#222222", lw=1)
        ax.set(title=task, xlabel="difference to tuned fixed", ylim=(len(rows) - 0.5, -0.5))
        ax.set_yticks(range(len(rows)), rows)
    return fig


# %% tags=["plumbing"]
# @title The figure in words
def read_differences(data):
    """Say in words what the intervals of one data set support."""
    found = differences(data)
    tasks = list(dict.fromkeys(task for _, task in found))
    for task in tasks:
        better = [s for (s, t), gap in found.items() if t == task and gap.low > 0]
        worse = [s for (s, t), gap in found.items() if t == task and gap.high < 0]
        print(f"{task}: above tuned fixed {', '.join(better) or 'none'}; below {', '.join(worse) or 'none'}.")
    sure = [s for s in dict.fromkeys(s for s, _ in found) if all(found[s, t].low > 0 for t in tasks)]
    print(f"{data}: above on every task: {', '.join(sure) or 'no strategy'}.")
    print(
        f"{len(found)} intervals at 95 %: about {0.05 * len(found):.0f} would exclude zero by chance alone."
    )


display(draw_differences("shop"))
read_differences("shop")

# %% [markdown]
# A filled dot is an interval that excludes zero. The first two columns are AUC, `next_category` is accuracy.

# %%
display(draw_differences("kuairand"))
read_differences("kuairand")

# %% [markdown]
# On KuaiRand the test day is the same for every seed, so these intervals tell what another draw of training
# rows would change, not another day.
#
# ### One figure for all tasks: the mean rank
#
# Rank the strategies on each task and seed (one is best) and average.


# %%
def mean_ranks(data):
    table = runs[data].query("metric != 'loss'")
    ranks = table.assign(rank=table.groupby(["seed", "task"])["value"].rank(ascending=False))
    by_seed = ranks.groupby(["strategy", "seed"])["rank"].mean().unstack()
    found = {name: mean_interval(row.to_numpy()) for name, row in by_seed.iterrows()}
    return pd.Series({name: f"{gap.mean:.1f} [{gap.low:.1f}, {gap.high:.1f}]" for name, gap in found.items()})


cost = results("cost").set_index("strategy")["ratio"]
board = pd.DataFrame({data: mean_ranks(data) for data in runs}).join(cost.rename("cost of a step"))
board.sort_values("shop", key=lambda column: column.str.split().str[0].astype(float))

# %% [markdown]
# The cost is the time of a step divided by that of equal weights, measured once when the table was made.
#
# ### Is the table what you would get?
#
# Run a slice again, here, on the shop of today, and compare it with the stored rows of the first edition.

# %%
slice_of = {"equal weights": None, "GLS": GLS(splits.tasks)}
stored = runs["shop"].query("seed == 0 and metric != 'loss'").set_index(["strategy", "task"])["value"]
monitor = {name: 1 / loss for name, loss in constants.items()}
for name, strategy in slice_of.items():
    model = build(0)
    plan = {"weights": strategy, "monitor": monitor, "epochs": 2 if FAST else 40, "patience": 3}
    fit(model, splits.train, splits.valid, **plan, **SETTINGS)
    now = {t: v.get("auc", v["accuracy"]) for t, v in evaluate(model, splits.test).items()}
    gaps = [abs(now[task] - stored[name, task]) for task in names]
    print(
        f"{name}: largest difference to the stored row {max(gaps):.4f}",
        "(FAST: too few epochs to compare)" * FAST,
    )

# %% [markdown]
# Another edition of the shop gives other figures, so this difference is no check. On one edition the same machine
# gives the same figures; another processor rounds otherwise, and early stopping can turn that into the third decimal.
#
# ### What others found
#
# Xin et al. (NeurIPS 2022) and Kurin et al. (NeurIPS 2022) reran many multi-task optimisers with tuned
# baselines. Both report that a fixed weighting, tuned and regularised like the rest, is not beaten reliably.

# %%
for data in runs:
    found = differences(data)
    tasks = list(dict.fromkeys(task for _, task in found))
    everywhere = [s for s in {s for s, _ in found} if all(found[s, t].low > 0 for t in tasks)]
    nowhere_worse = [s for s in {s for s, _ in found} if all(found[s, t].high >= 0 for t in tasks)]
    verdict = "agrees with them" if not everywhere else f"does not agree: {', '.join(sorted(everywhere))}"
    print(f"{data}: {len(everywhere)} strategies above tuned fixed on every task, so it {verdict}.")
    print(f"  not below it on any task: {', '.join(sorted(nowhere_worse)) or 'none'}")

# %% [markdown]
# **What surprised you?** Read the two data sets side by side. A strategy that does well on one and badly on
# the other has not learned to balance; its habit happened to fit.

# %% [markdown]
# ## 9 · How do I choose?
#
# | your situation | start with | why: see |
# |---|---|---|
# | you can train a family of models | fixed weights, tuned by a sweep | sections 1 and 8 |
# | no time to tune | a strategy that ranks well on both data sets (printed below) | section 8 |
# | losses in different units | make the units equal first: entropy weights | recap, section 2 |
# | the rare label matters most | more weight on it, by hand or by inverse losses; watch who pays | sections 3, 8 |
# | losses have flattened | not DWA: it is equal weights by then | section 3 |
# | a task does not move at all | a gradient method, at the representation | sections 4 and 5 |
# | one task has converged | not MGDA | section 4 |
# | you have a favourite method | run RLW and tuned fixed weights beside it | section 8 |

# %%
numbers = board[list(runs)].apply(lambda column: column.str.split().str[0].astype(float))
both = numbers.mean(axis=1).sort_values()
print(
    "Best mean rank over both data sets:",
    ", ".join(f"{name} ({rank:.1f})" for name, rank in both.head(4).items()),
)
print("Worst:", ", ".join(f"{name} ({rank:.1f})" for name, rank in both.tail(3).items()))
print(
    f"For comparison: tuned fixed {both['tuned fixed']:.1f}, equal weights {both['equal weights']:.1f}, RLW {both['RLW']:.1f}."
)

# %% [markdown]
# **Questions that come up**
#
# - *Must weights sum to one?* No. With AdamW a common factor changes nothing; ratios count.
# - *More weight on the rare task?* Try it on the front (section 1): its metric may not follow its weight.
# - *Retune when data change?* Yes. Weights fit a data set and a budget; the two tables of section 8 differ.
# - *Is adaptive better than fixed?* Section 8 answers for two data sets. Elsewhere, run the comparison.

# %% [markdown]
# ## 10 · Exercises
#
# Replace the dots, run the cell, run the check below it. Stuck? Type `hint("04.dominated", 1)` into a cell; levels go
# up to 3. `solution("04.dominated")` shows commented source.

# %% [markdown]
# ### Exercise one: uncertainty weighting in a few lines


# %%
from mtl_helpers.check import check, hint, solution, use


def uncertainty_total(losses, log_variance):
    """losses (K,), log_variance (K,): tensors. Returns the total for classification tasks, a scalar tensor,
    through which a gradient flows to both.

    Example: losses 1 and 2 with log-variances 0 and 0 give 3.
    """
    return ...


# %%
check("04.uncertainty_total", uncertainty_total)

# %% [markdown]
# ### Exercise two: the weights of DWA


# %%
def dwa_weights(last, before, temperature=2.0):
    """last, before: mean losses (K,) of the last epoch and the one before, arrays. Returns weights (K,) that sum to K.

    Example: equal ratios give a weight of 1 for each task.
    """
    return ...


# %%
check("04.dwa_weights", dwa_weights)

# %% [markdown]
# ### Exercise three: PCGrad for two tasks


# %%
def pcgrad_of_two(g1, g2):
    """g1, g2: gradients (P,), arrays, not zero. Returns the combined gradient (P,).

    Example: gradients that agree are simply added.
    """
    return ...


# %%
check("04.pcgrad_of_two", pcgrad_of_two)

# %% [markdown]
# ### Exercise four: dominated points


# %%
def dominated(points):
    """points (n, 2): losses of two tasks, an array. Returns a bool array (n,), True where another point is at least as
    good on both tasks and better on one.

    Example: of (1, 1) and (2, 1) the second is dominated.
    """
    return ...


# %%
check("04.dominated", dominated)

# %%
beaten = use("04.dominated", dominated)
for bend in (-1, 0, 1):  # losses that fall and rise together, are unrelated, or are traded for each other
    one, two = np.random.default_rng(0).normal(size=(2, 200))
    cloud = np.stack([one, 0.3 * two - bend * one], axis=1)
    print(f"trade-off {bend:+d}: {len(cloud) - sum(beaten(cloud))} of {len(cloud)} points are on the front")

# %% [markdown]
# ## Self-check
#
# **1.** A method keeps all weighted losses equal. Are the tasks balanced?
#
# <details><summary>Answer</summary>In that sense only. Section three shows methods that balance losses,
# log-losses or gradient lengths, and end with different weights. Which sense matters is for you to say.</details>
#
# **2.** Two gradients never conflict. What does PCGrad do?
#
# <details><summary>Answer</summary>It adds them, as the plain sum does. The cell in section four counts how
# often the shop's gradients conflict at all.</details>
#
# **3.** A paper reports that its method beats *equal* weights on four of five tasks. What do you ask?
#
# <details><summary>Answer</summary>Whether fixed weights were tuned with the same effort, how many seeds there
# were, and what the intervals say. Section eight compares with both, and they are not the same baseline.</details>

# %% [markdown]
# ## Summary
#
# - Strategies differ in what they balance: losses, log-losses, gradient lengths, conflicts. Each has a failure
#   that you can provoke.
# - Two tasks with different base rates have losses of different size. Methods that weight by the inverse loss
#   favour the rare task, learnable or not.
# - Fixed weights, tuned, are a hard baseline. Compare with them, with seeds and intervals, or do not compare.
#
# **What the toy hides.** Three tasks are few. With dozens of tasks tuning by a grid is no
# longer possible. *In production* weights are revisited when the business changes its mind, and a method that
# costs a second pass costs real money.

# %% [markdown]
# ## References
#
# - A. Kendall, Y. Gal, R. Cipolla, *Multi-Task Learning Using Uncertainty to Weigh Losses*, CVPR 2018, eq. 7, 10.
# - S. Liu, E. Johns, A. Davison, *End-to-End Multi-Task Learning with Attention*, CVPR 2019, section 3 (DWA).
# - Z. Chen et al., *GradNorm*, ICML 2018. L. Liu et al., *Towards Impartial Multi-task Learning*, ICLR 2021.
# - B. Lin et al., *Reasonable Effectiveness of Random Weighting*, TMLR 2022; *Smooth Tchebycheff*, ICML 2024.
# - B. Liu et al., *FAMO*, NeurIPS 2023, and *Conflict-Averse Gradient Descent*, NeurIPS 2021.
# - T. Yu et al., *Gradient Surgery*, NeurIPS 2020. O. Sener, V. Koltun, *Multi-Task Learning as Multi-Objective
#   Optimization*, NeurIPS 2018. A. Navon et al., *Multi-Task Learning as a Bargaining Game*, ICML 2022.
# - D. Senushkin et al., *Independent Component Alignment*, CVPR 2023. P. Quinton, V. Rey, *Jacobian Descent for
#   Multi-Objective Optimization*, arXiv:2406.16232.
# - D. Xin et al., *Do Current Multi-Task Optimization Methods in Deep Learning Even Help?*, NeurIPS 2022.
# - V. Kurin et al., *In Defense of the Unitary Scalarization for Deep Multi-Task Learning*, NeurIPS 2022.
#
# **References of the article, corrected.** *Recommender Systems: The Textbook* (2016) is by Charu Aggarwal. No
# paper titled “Unsupervised Multi-Task Learning for Image Representation” could be found; the nearest is
# C. Doersch, A. Zisserman, *Multi-task Self-Supervised Visual Learning*, ICCV 2017. On weighting, read Kendall
# et al. for the idea and Xin et al. for the doubt.
#
# **Next:** [05_ecommerce_case](05_ecommerce_case.ipynb), three tasks, one ranked list, and money.
