# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # 02 · Shared bottom: one model, several tasks
#
# **Promise.** When you leave this page you can build a multi-task model in twenty lines, train it with one loss
# per task, and say from evidence where sharing helps, where it hurts, and where it makes no difference.
#
# {{colab_badge}} · [glossary](glossary.md) · about 90 minutes to read, three to four minutes to run on two CPU cores (no GPU needed) · builds on
# notebook 01

# %% [markdown]
# **You will be able to**
#
# - *draw* and *code* the four layers: input, feature extraction, task layers, fusion;
# - *count* what a shared model saves;
# - *write* a training loop with one masked loss per task, and a test loop that does not lie;
# - *judge* shared against single-task models by paired differences over many shops;
# - *steer* the trade-off with task weights, even while the model trains.

# %%
# {{setup}}

# %%
import time
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import nn

# %%
from mtl_helpers.data import (
    CATEGORIES,
    SHOP_CATEGORICAL,
    SHOP_NUMERIC,
    SHOP_TASKS,
    ShopConfig,
    hide_labels,
    load_shop,
    make_world,
    prepare,
    shop_frame,
    shop_splits,
    simulate,
)
from mtl_helpers.metrics import accuracy, auc, mean_interval, paired_difference
from mtl_helpers.models import Fusion, SharedBottom, SingleTask, count_parameters
from mtl_helpers.training import evaluate, fit, predict
from mtl_helpers.widgets import figures as plots

torch.set_num_threads(1)  # models this small need no more, and more threads stumble on a busy machine

# %% [markdown]
# ## Recap: one model per task
#
# Notebook 01 trained one model for each task and found that accuracy lies on rare labels; AUC does not. Here are
# the baselines again, one run each, measured on validation rows. To keep this page quick, it takes the latest 80,000 rows
# of the log; their features still look back over all of it.

# %%
log = load_shop()
frame = shop_frame(log).tail(80_000)
data = prepare(shop_splits(frame), SHOP_TASKS, SHOP_NUMERIC, SHOP_CATEGORICAL, device=device)
if FAST:
    data.train = data.train.take(slice(0, 14_000))
settings = {"lr": 3e-3, "weight_decay": 0.1, "epochs": 3 if FAST else 15, "progress": False}
print({part: len(getattr(data, part)) for part in ("train", "valid", "test")}, "rows")

# %%
alone = {}
for task in data.tasks:
    torch.manual_seed(0)
    alone[task.name] = SingleTask(data.schema, task, embedding_dim=4)
    history = fit(alone[task.name], data.train, data.valid, **settings)
    found = evaluate(alone[task.name], data.valid)[task.name]
    print(f"{task.name:14} kept epoch {history.best_epoch}:", {k: round(v, 4) for k, v in found.items()})

# %%
labels = {name: data.valid.labels[name].cpu().numpy() for name in ("click", "purchase")}
scores = {name: predict(alone[name], data.valid)[name].numpy() for name in labels}
recap = {"accuracy": (accuracy, lambda y: 1 - y.mean()), "AUC": (auc, lambda y: 0.5)}
fig, lead = plots.figure(2.2), {}
for ax, (measure, (of, lazy)) in zip(fig.subplots(1, 2), recap.items(), strict=True):
    for row, (name, y) in enumerate(labels.items()):
        ax.barh(row, of(y, scores[name]), color=plots.task_style(name)["color"], height=0.5)
        ax.plot([lazy(y)] * 2, [row - 0.4, row + 0.4], color="black")
    lead[measure] = max(of(y, scores[name]) - lazy(y) for name, y in labels.items())
    ax.set(yticks=range(2), yticklabels=list(labels), xlim=(0, 1), xlabel=f"{measure} (validation)")
    ax.set_title(f"{measure}: at most {lead[measure]:.2f} above the line")
display(fig)
print("Black line: a model that knows nothing (always no, or a coin). Accuracy cannot tell ours from it")
print(f"(lead {lead['accuracy']:.4f}), AUC can (lead {lead['AUC']:.2f}).")

# %% [markdown]
# ## 1 · Which layers can tasks share?
#
# A recommender reads the same input for every task: who, what, where, when. Only the answers differ.
#
# **Predict.** Which part of a model could serve all three tasks? Which part must be a task's own? Write it down,
# then look.

# %%
n_numeric, n_categorical = len(data.schema.numeric), len(data.schema.categorical)
columns = {
    "input": [f"numeric\n(n, {n_numeric})", f"categorical\n(n, {n_categorical})"],
    "feature extraction": [f"embed, join\n(n, {4 * n_categorical + n_numeric})", "bottom\n64 → 32 units"],
    "task layers": [f"{task.name}\ntower: {task.n_outputs} out" for task in data.tasks],
    "fusion": ["one score"],
    "output": ["ranked list"],
}
places = {name: np.linspace(1, -1, len(boxes)) if len(boxes) > 1 else [0] for name, boxes in columns.items()}
arrows = [((0, 1), (1, 1)), ((0, -1), (1, 1)), ((1, 1), (1, -1)), ((3, 0), (4, 0))]
arrows += [((1, -1), (2, y)) for y in (1, 0, -1)] + [((2, y), (3, 0)) for y in (1, 0, -1)]

# %%
fig = plots.figure(3.2)
ax = fig.subplots()
ax.set(xlim=(-0.45, 4.4), ylim=(-1.4, 1.9))
ax.axis("off")
line = {"arrowstyle": "->", "color": "#888888", "shrinkA": 34, "shrinkB": 34}
for start, end in arrows:
    ax.annotate("", end, start, arrowprops=line)
for x, (title, boxes) in enumerate(columns.items()):
    ax.text(x, 1.75, title, ha="center", weight="bold")
    for y, text in zip(places[title], boxes, strict=True):
        color = plots.task_style(text.split("\n")[0])["color"] if title == "task layers" else "#444444"
        look = {"boxstyle": "round,pad=0.5", "facecolor": "white", "edgecolor": color}
        ax.text(x, y, text, ha="center", va="center", fontsize=9, color=color, bbox=look)
display(fig)
print("From the left: one input, one shared extraction Z = f(X), a tower Y_i = g_i(Z) for each of")
print(f"{len(data.tasks)} tasks, then one score per item, then the list that a user sees.")

# %% [markdown]
# The colours are the tasks: only the towers are coloured, because only they belong to one task. This is *hard
# parameter sharing*, the oldest form of multi-task learning (Caruana, 1997).
#
# The whole model fits on one screen:


# %%
class TinySharedBottom(nn.Module):
    def __init__(self, schema, tasks, dim=4):
        super().__init__()
        sizes = list(schema.categorical.values())
        self.embedding = nn.Embedding(sum(sizes), dim)
        nn.init.normal_(self.embedding.weight, std=0.1)
        self.register_buffer("offset", torch.tensor([0, *np.cumsum(sizes)[:-1].tolist()]))
        width = len(sizes) * dim + len(schema.numeric)
        self.bottom = nn.Sequential(nn.Linear(width, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU())
        self.towers = nn.ModuleDict()
        for task in tasks:
            self.towers[task.name] = nn.Sequential(
                nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, task.n_outputs)
            )

    def forward(self, numeric, categorical):
        vectors = self.embedding(categorical + self.offset).flatten(1)
        shared = self.bottom(torch.cat([vectors, numeric], dim=1))
        return {name: tower(shared).squeeze(-1) for name, tower in self.towers.items()}


# %% [markdown]
# Follow five rows through it, one layer at a time.

# %%
torch.manual_seed(0)
tiny = TinySharedBottom(data.schema, data.tasks).to(device)
numeric, categorical = data.train.numeric[:5], data.train.categorical[:5]
vectors = tiny.embedding(categorical + tiny.offset)
features = torch.cat([vectors.flatten(1), numeric], dim=1)
shared = tiny.bottom(features)
layers = {"input, numeric": numeric, "input, categorical": categorical, "embeddings": vectors}
layers |= {"features X": features, "shared Z = f(X)": shared}
layers |= {f"tower {name}": tower(shared) for name, tower in tiny.towers.items()}
for name, tensor in layers.items():
    print(f"{name:20}", tuple(tensor.shape))

# %% [markdown]
# One logit for a yes/no task (`forward` drops the last 1), eight for eight categories. No sigmoid and no softmax yet:
# they live inside the loss.
#
# The helper package has the same model with options. With the same seed it must give the same numbers:

# %%
torch.manual_seed(0)
model = SharedBottom(data.schema, data.tasks, embedding_dim=4, hidden=(64, 32), tower=(16,)).to(device)
ours, theirs = tiny(numeric, categorical), model(numeric, categorical)
worst = max((ours[name] - theirs[name]).abs().max().item() for name in ours)
print(f"largest difference of a logit: {worst:.1e} →", "equal" if worst < 1e-5 else "not equal")

# %% [markdown]
# ## 2 · What does sharing save?
#
# **Predict.** Three tasks in one model instead of three models: how many parameters are left? A third? Half? How
# much training time?
#
# Count by hand first.


# %%
rows, width = sum(data.schema.categorical.values()), 4 * n_categorical + n_numeric
outputs = [task.n_outputs for task in data.tasks]


def by_hand(outputs):
    bottom = (width * 64 + 64) + (64 * 32 + 32)
    towers = sum((32 * 16 + 16) + (16 * k + k) for k in outputs)
    return {"embeddings": rows * 4, "bottom": bottom, "towers": towers}


one, singles = by_hand(outputs), [by_hand([k]) for k in outputs]
print("one shared model:", one)
print("by hand:", sum(one.values()), "| counted:", count_parameters(model))
total = sum(count_parameters(m) for m in alone.values())
print("single models by hand:", sum(sum(s.values()) for s in singles), "| counted:", total)

# %%
parts = pd.DataFrame({f"{len(outputs)} single models": pd.DataFrame(singles).sum(), "1 shared model": one})
fig = plots.figure(2.0)
ax = fig.subplots()
left = np.zeros(2)
for part, color in zip(parts.index, ("#bbbbbb", "#777777", "#D55E00"), strict=True):
    ax.barh(list(parts), parts.loc[part], left=left, color=color, label=part, height=0.55)
    left += parts.loc[part].to_numpy()
share = left[1] / left[0]
ax.set(xlabel="parameters")
ax.set_title(f"The shared model keeps {share:.0%} of the parameters")
ax.legend(loc="upper right", ncols=3)
display(fig)
embedded = parts.loc["embeddings", "1 shared model"] / left[1]
tower = parts.loc["towers", "1 shared model"] / len(outputs) / left[1]
print(f"{embedded:.0%} of the shared model are embeddings, read by all tasks; a tower is {tower:.1%} of it.")

# %% [markdown]
# With N tasks and towers this small, one shared model is about 1/N of N models. Not "half": it depends on N, and
# on how much is shared.
#
# Time is another matter. It depends on the machine, so measure it, best of three:


# %%
def train_once(tasks):
    fresh = SharedBottom(data.schema, tasks, 4)
    start = time.perf_counter()
    fit(fresh, data.train, epochs=1, progress=False)
    return time.perf_counter() - start


def predict_once(tasks):
    m = model if len(tasks) > 1 else alone[tasks[0].name]
    start = time.perf_counter()
    predict(m, data.valid)
    return time.perf_counter() - start


for job in (train_once, predict_once):
    times = [(job(data.tasks), sum(job([task]) for task in data.tasks)) for _ in range(1 if FAST else 3)]
    ratio = min(t for t, _ in times) / min(t for _, t in times)
    name = job.__name__.split("_")[0]
    print(f"{name:8} one shared model took {ratio:.2f} of the time of {len(outputs)} single ones")

# %% [markdown]
# These ratios belong to this run on this machine. Run the cell again and see how much they wander.
#
# **What surprised you?** Parameters and time need not shrink alike: the towers still run once per task.

# %% [markdown]
# ## 3 · One loop, three losses
#
# The article that this course grew out of has a model with three heads (buy, click, category), a training loop
# and a test loop. Such programs tend to share a few faults. We meet two of them before we write the loop.
#
# **Predict.** A category head with *one* output unit, trained with cross-entropy: what is its loss?

# %%
one_unit = torch.randn(6, 1, requires_grad=True)
loss = F.cross_entropy(one_unit, torch.zeros(6, dtype=torch.long))
loss.backward()
print("loss:", loss.item(), " largest gradient:", one_unit.grad.abs().max().item())
print("A softmax over one unit is always 1. The loss is perfect and nothing is learned.")

# %% [markdown]
# Second fault: a label that is not known. Who never clicks again in the log has no next category. The data set
# stores such a gap as class 0, with a mask beside it. What if a loop ignores the mask?

# %%
stored, mask = data.train.labels["next_category"], data.train.masks["next_category"]
print("labels", tuple(stored.shape), "mask", tuple(mask.shape), f"known: {mask.float().mean():.1%}")
ignoring = (stored == 0).float().mean().item()
honest = (stored[mask] == 0).float().mean().item()
print(f"Ignoring the mask, {ignoring:.0%} of the rows say {CATEGORIES[0]!r}.")
print(f"Among known labels it is {honest:.0%}.")

# %% [markdown]
# | fault | what goes wrong | what to do |
# |---|---|---|
# | no nonlinearity between layers | the deep model is a linear one | ReLU after each hidden layer |
# | sigmoid or softmax, then a loss that expects logits | squashed twice, weak gradients | losses on logits |
# | one output unit, cross-entropy | loss 0, gradient 0 | one unit per class |
# | missing labels count as class 0 | the model learns the gaps | a mask per task |
# | testing in training mode, with gradients | dropout on, memory wasted | `eval()`, `no_grad()` |

# %% [markdown]
# Now the losses, one per task: $L = \sum_i w_i L_i$.


# %%
def three_losses(logits, batch):
    known = batch.masks["next_category"]
    return {
        "click": F.binary_cross_entropy_with_logits(logits["click"], batch.labels["click"]),
        "purchase": F.binary_cross_entropy_with_logits(logits["purchase"], batch.labels["purchase"]),
        "next_category": F.cross_entropy(
            logits["next_category"][known], batch.labels["next_category"][known]
        ),
    }


batch = next(data.train.batches(1024, generator=torch.Generator().manual_seed(0)))
losses = three_losses(tiny(batch.numeric, batch.categorical), batch)
print({name: tuple(loss.shape) for name, loss in losses.items()}, "→ three numbers")
print({name: round(loss.item(), 4) for name, loss in losses.items()})

# %% [markdown]
# The training loop: forward once, three losses, one weighted sum, one backward.

# %%
weights = {"click": 1.0, "purchase": 1.0, "next_category": 1.0}
optimizer = torch.optim.AdamW(tiny.parameters(), lr=3e-3, weight_decay=0.1)
order = torch.Generator().manual_seed(0)
tiny.train()
for epoch in (1, 2):
    for batch in data.train.batches(1024, generator=order):
        losses = three_losses(tiny(batch.numeric, batch.categorical), batch)
        total = sum(weights[name] * loss for name, loss in losses.items())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    print("epoch", epoch, "last batch", {name: round(loss.item(), 3) for name, loss in losses.items()})

# %% [markdown]
# And the test loop, with accuracies: evaluation mode, no gradients, known labels only.


# %%
@torch.no_grad()
def accuracies(model, part):
    model.eval()
    right = {task.name: [] for task in part.tasks}
    for batch in part.batches(4096, shuffle=False):
        for name, logits in model(batch.numeric, batch.categorical).items():
            said = logits.argmax(-1) if name == "next_category" else (logits >= 0).float()
            hit = said == batch.labels[name]
            right[name].append(hit[batch.masks[name]] if name in batch.masks else hit)
    return {name: torch.cat(hits).float().mean().item() for name, hits in right.items()}


mine = accuracies(tiny, data.valid)
print({name: round(value, 4) for name, value in mine.items()})

# %% [markdown]
# The same from the helpers: `fit` is that loop, `evaluate` is that test.

# %%
torch.manual_seed(0)
model = SharedBottom(data.schema, data.tasks, embedding_dim=4)
fit(model, data.train, epochs=2, lr=3e-3, weight_decay=0.1, weights=weights, seed=0, progress=False)
helper = evaluate(model, data.valid)
worst = max(abs(mine[name] - helper[name]["accuracy"]) for name in mine)
print({name: round(found["accuracy"], 4) for name, found in helper.items()})
print(f"largest difference: {worst:.1e} →", "equal" if worst < 1e-3 else "not equal")

# %% [markdown]
# Good accuracies? Put the lazy answer beside them, and AUC.
#
# **Predict.** We now train to the end, with early stopping on the *sum* of the validation losses. Compared with
# the three single models, will click and purchase gain or lose?

# %%
quiet = weights | {"next_category": 0.1}
plans = {
    "three heads, equal": {"weights": weights},
    "three heads, equal, stop on click": {"weights": weights, "monitor": "click.loss"},
    "three heads, category × 0.1": {"weights": quiet},
}
heads = {}
for label, plan in plans.items():
    torch.manual_seed(0)
    heads[label] = SharedBottom(data.schema, data.tasks, embedding_dim=4)
    history = fit(heads[label], data.train, data.valid, **settings, **plan)
    print(f"{label:34} kept epoch {history.best_epoch} of {history.frame()['epoch'].max()}")

# %%
measured = {"alone": {}} | {label: evaluate(m, data.valid) for label, m in heads.items()}
for m in alone.values():
    measured["alone"] |= evaluate(m, data.valid)
known = data.valid.masks["next_category"]
common = torch.bincount(data.valid.labels["next_category"][known]).max().item() / known.sum().item()
lazy = {name: {"auc": 0.5, "accuracy": 1 - y.mean()} for name, y in labels.items()}
measured["majority class"] = lazy | {"next_category": {"accuracy": common}}
table = {
    label: {f"{name} {k}": found[name][k] for name in found for k in ("auc", "accuracy") if k in found[name]}
    for label, found in measured.items()
}
pd.DataFrame(table).T.round(4)

# %%
base = table["alone"]["click auc"]
for label in heads:
    print(f"{label:34} click AUC against the model alone: {table[label]['click auc'] - base:+.4f}")
loud = measured["three heads, equal"]
total = sum(found["loss"] for found in loud.values())
best = max(
    found["next_category"]["accuracy"] for label, found in measured.items() if label != "majority class"
)
beaten = "beats" if best > common else "no model beats"
print(f"next_category: best accuracy {best:.4f}; {beaten} the majority class, {common:.4f}.")
print("Share of the sum:", {name: f"{found['loss'] / total:.0%}" for name, found in loud.items()})

# %% [markdown]
# The category loss counts eight classes, so it fills most of the sum. That is no sign of importance, only of
# units. But early stopping listens to the sum, so it listens to the loudest task.
#
# The middle row stops on the click loss instead. What then still separates it from the last row happens in the
# shared layers: whose gradient moves them?

# %%
from mtl_helpers.widgets import gradient_shares

probe = next(data.train.batches(1024, generator=torch.Generator().manual_seed(1)))
for label, plan in plans.items():
    shares = gradient_shares(heads[label], probe, plan["weights"])
    shown = ", ".join(f"{name} {share:.0%}" for name, share in shares.items())
    print(f"{label:34} {shown}")

# %% [markdown]
# The shares are measured at the kept weights, on one batch. One run on one shop proves little; section 5 repeats
# the comparison on ten shops.
#
# Validation chooses the model. Then, once, the test rows:

# %%
chosen = max(heads, key=lambda label: table[label]["click auc"] + table[label]["purchase auc"])
final = heads[chosen]
print("chosen on validation:", chosen)
for name, found in evaluate(final, data.test).items():
    print(f"test {name:14}", {k: round(v, 4) for k, v in found.items()})
print("accuracies by hand:", {name: round(value, 4) for name, value in accuracies(final, data.test).items()})

# %% [markdown]
# ## 4 · From three predictions to one ranked list
#
# A user sees one list, so three predictions must become one score. That is the fusion layer:
# $s = \prod_i p_i^{a_i}$, with one exponent $a_i$ per task.
#
# **Predict.** If purchase gets all the weight, what happens to the clicks of the list?

# %%
toy = {"click": torch.tensor([0.20, 0.05]), "purchase": torch.tensor([0.01, 0.02])}
print("by hand:", (toy["click"] ** 1.0 * toy["purchase"] ** 2.0).tolist())
print("Fusion :", Fusion({"click": 1.0, "purchase": 2.0})(toy).tolist(), "power")
print("Fusion :", Fusion({"click": 1.0, "purchase": 2.0}, kind="sum")(toy).tolist(), "sum")

# %% [markdown]
# Take one user and score the whole catalogue, on the evening after the log ends: a row for every item, at position 1.
# `shop_frame` gives these rows the features that they would have had.

# %%
evening = frame["timestamp"].max().ceil("D") + pd.Timedelta(hours=20)


def candidates(users):
    """Each user on that evening, with every item of the catalogue: (users × items) rows of features."""
    asked = pd.MultiIndex.from_product([users, log.items["item_id"]], names=["user_id", "item_id"])
    asked = asked.to_frame(index=False)
    asked = asked.assign(impression_id=10**9 + asked.index, session_id=10**9 + asked["user_id"])
    asked = asked.assign(timestamp=evening.isoformat(), position=1, surface="home", click=0, purchase=0)
    return shop_frame(replace(log, impressions=pd.concat([log.impressions, asked]))).tail(len(asked))


user = int(frame["user_id"].value_counts().index[0])
table = candidates([user])
print("candidates of user", user, table.shape)


# %%
@torch.no_grad()
def three_predictions(table):
    numeric, categorical = (tensor.to(device) for tensor in data.encoder.transform(table))
    logits = {name: tensor.cpu() for name, tensor in final.eval()(numeric, categorical).items()}
    p = {name: logits[name].sigmoid() for name in ("click", "purchase")}
    # the third: how likely is the item's own category to be the next one?
    own = torch.tensor([CATEGORIES.index(name) for name in table["category"]])
    return p | {"category": logits["next_category"].softmax(-1).gather(1, own[:, None]).squeeze(1)}


p = three_predictions(table)
print({name: tuple(value.shape) for name, value in p.items()})

# %%
score = Fusion({"click": 1.0, "purchase": 1.0, "category": 0.5})(p)
print("score", tuple(score.shape))
top = score.topk(5).indices.numpy()
shown = table.iloc[top][["item_id", "category", "price"]]
shown = shown.assign(**{f"p({name})": value[top].numpy().round(4) for name, value in p.items()})
shown.assign(score=score[top].numpy()).reset_index(drop=True)

# %% [markdown]
# Is it a good list? In a real shop you would have to show it. Here the simulator knows the true probabilities, so a few
# exponents can be compared at once, over the lists of many users.

# %%
world = make_world(log.config)


def true_values(table):
    """What the simulator knows: expected clicks, purchases and turnover of each candidate."""
    p_click, p_buy = world.probabilities(table["user_id"], table["item_id"], table["timestamp"])
    bought = p_click * p_buy
    return {"clicks": p_click, "purchases": bought, "turnover (EUR)": bought * table["price"].to_numpy()}


# %%
people = frame["user_id"].drop_duplicates().sample(10 if FAST else 100, random_state=0)
rows = []
for _, table in candidates(people).groupby("user_id"):
    p, true = three_predictions(table), true_values(table)
    for exponents in ((1, 0, 0), (0, 1, 0), (1, 1, 0), (0, 0, 1), (1, 1, 0.5)):
        top = Fusion(dict(zip(p, exponents, strict=True)))(p).topk(5).indices.numpy()
        rows.append(dict(zip(p, exponents, strict=True)) | {name: v[top].sum() for name, v in true.items()})
compared = pd.DataFrame(rows).groupby(["click", "purchase", "category"]).mean()
compared.round(3)

# %%
for column in compared:
    best = tuple(float(x) for x in compared[column].idxmax())
    print(f"most {column:14} with exponents (click, purchase, category) = {best}")
print(f"Expected per list of five at position 1, mean over {len(people)} users.")
print("One model, one shop: an illustration.")

# %% [markdown]
# The exponents are a business decision made *after* training. They are not the task weights, which act *during*
# training. Notebook 05 makes them sliders, with money on the other axis.

# %% [markdown]
# ## 5 · Does sharing win?
#
# One run proves nothing. So we draw ten whole new shops: other users, other tastes, other items. In each we train
# every contestant on the same rows, and look at the *difference within the shop*.
#
# **Predict.** Click and purchase, each alone, against both in one model. Who gains?


# %%
def new_shop(seed, relatedness=0.8):
    """A new shop: train on the first 35 % of its log, validate on 15 %, test on the last half."""
    n = 20_000 if FAST else 60_000
    config = ShopConfig(seed=seed, relatedness=relatedness, n_users=n * 9 // 1000, n_impressions=n)
    drawn = simulate(config)
    parts = shop_splits(shop_frame(drawn), fractions=(0.35, 0.15, 0.5))
    return prepare(parts, SHOP_TASKS, SHOP_NUMERIC, SHOP_CATEGORICAL, device=device)


shops = {seed: new_shop(seed) for seed in range(1, 4 if FAST else 11)}
sizes = {part: len(getattr(shops[1], part)) for part in ("train", "valid", "test")}
bought = [int(s.test.labels["purchase"].sum()) for s in shops.values()]
print(len(shops), "shops of", sizes, "rows;", min(bought), "to", max(bought), "purchases in the test rows")

# %% [markdown]
# A large test part makes small differences visible. Short training keeps this page quick. Both sides get the same
# layers, the same start, the same number of steps (14 an epoch), the same patience.


# %%
def train(schema, tasks, rows, valid, seed, decay):
    """One run; a single task gets a SingleTask model, several share a bottom."""
    torch.manual_seed(seed)
    model = SharedBottom(schema, tasks, 4) if len(tasks) > 1 else SingleTask(schema, tasks[0], 4)
    steps = {"batch_size": -(-len(rows) // 14), "epochs": 2 if FAST else 20}
    fit(model, rows, valid, lr=1e-2, weight_decay=decay, seed=seed, progress=False, **steps)
    return model


CLICK, PURCHASE, CATEGORY = SHOP_TASKS
DECAYS = (1.0, 3.0) if FAST else (1.0, 3.0, 10.0)

# %% [markdown]
# The same tuning for each side: three strengths of weight decay on a shop that is *not* among the ten, chosen by
# validation loss.


# %%
def tune(contestants, decays):
    """{name: weight decay with the lowest validation loss}, from {name: (schema, tasks, rows, valid)}."""
    best = {}
    for name, setting in contestants.items():
        runs = [evaluate(train(*setting, 0, decay), setting[-1]) for decay in decays]
        sums = [sum(found["loss"] for found in run.values()) for run in runs]
        best[name] = decays[int(np.argmin(sums))]
    return best


spare = new_shop(100)
teams = {"click": (CLICK,), "purchase": (PURCHASE,), "both": (CLICK, PURCHASE), "three": SHOP_TASKS}
rounds = {name: (spare.schema, tasks, spare.train, spare.valid) for name, tasks in teams.items()}
decay = tune(rounds, DECAYS)
print("chosen weight decay:", decay)

# %%
records = []
for seed, s in shops.items():
    for name, tasks in teams.items():
        trained = train(s.schema, tasks, s.train, s.valid, seed, decay[name])
        for task, found in evaluate(trained, s.test).items():
            if task != "next_category":
                records.append({"shop": seed, "team": name, "task": task, "auc": found["auc"]})
runs = pd.DataFrame(records).pivot(index="shop", columns=["team", "task"], values="auc")
runs.mean().round(4).rename("test AUC, mean over shops").to_frame().T


# %%
def words(interval, winner="sharing", loser="the single model"):
    """What an interval of differences allows us to say."""
    if interval.n < 5:
        return "too few runs for a claim"
    if not interval.excludes_zero:
        return "a tie"
    return f"{winner if interval.mean > 0 else loser} is ahead"


def gains(team):
    """{task: test AUC of the team minus that of the single model, one value per shop}."""
    return {task: (runs[team, task] - runs[task, task]).to_numpy() for task in ("click", "purchase")}


# %%
def headline(intervals):
    """One line for several tasks, grouped by verdict."""
    said = {}
    for name, interval in intervals.items():
        said.setdefault(words(interval), []).append(name)
    return "; ".join(f"{verdict} on {' and '.join(names)}" for verdict, names in said.items())


def say_interval(label, i, *names):
    print(f"{label:41} {i.mean:+.4f} [{i.low:+.4f}, {i.high:+.4f}] over {i.n}: {words(i, *names)}")


# %%
fig = plots.figure(2.6)
sharing = {}
titles = {"both": "click + purchase", "three": "all three, equal weights"}
for ax, (team, title) in zip(fig.subplots(1, 2), titles.items(), strict=True):
    sharing[team] = plots.paired_dots(ax, gains(team), "sharing better", "single better")
    ax.set_xlabel(f"test AUC gained, {title}")
fig.suptitle(f"Left, two tasks in one model: {headline(sharing['both'])}", x=0.01, ha="left", fontsize=11)
display(fig)
for team, intervals in sharing.items():
    for task, i in intervals.items():
        say_interval(f"{titles[team]}: {task}", i)

# %% [markdown]
# Each pale dot is a shop, the strong mark their mean, the line its 95 % interval. A line that crosses zero is a
# tie.
# **What surprised you?** Many readers expect sharing to win by default. One possible reason when it does not: with
# plenty of labels for every task there is little to borrow, while one stopping time has to suit all.

# %% [markdown]
# Why pair? Compare how much shops differ with how much the difference varies inside a shop:

# %%
for task in ("click", "purchase"):
    spread = runs[task, task].std()
    paired = gains("both")[task].std(ddof=1)
    print(f"{task:9} AUC varies by {spread:.4f} between shops; the difference within a shop by {paired:.4f}")

# %% [markdown]
# ## 6 · Where it helps: scarce labels
#
# Purchases are rare, and often known for few rows only: returns come late, a partner reports a sample. Clicks are
# complete.
#
# **Predict.** With 500 rows that know about purchases, against all of them: where does the click data help more?
#
# The single model trains on the labelled rows alone. The shared one sees every click. Validation labels stay
# complete for both.

# %%
BUDGETS = (500, 2_000) if FAST else (500, 2_000, 8_000)


def hide(s, seed, budget):
    """Training rows of the shared model (purchase labels hidden) and of the single one (labelled rows)."""
    hidden = hide_labels(s.train, "purchase", budget, seed=seed)
    return hidden, hidden.take(hidden.masks["purchase"].nonzero().squeeze(-1))


all_rows, few_rows = hide(shops[1], 1, BUDGETS[0])
print(f"shared model: {len(all_rows)} rows, {int(all_rows.masks['purchase'].sum())} with a purchase label")
print(f"single model: {len(few_rows)} rows, {int(few_rows.labels['purchase'].sum())} purchases among them")

# %% [markdown]
# Small data wants other regularisation, so both sides are tuned again, for each budget, on the spare shop.

# %%
scarce = {}
for budget in BUDGETS:
    all_rows, few_rows = hide(spare, 100, budget)
    single = (spare.schema, (PURCHASE,), few_rows, spare.valid)
    shared = (spare.schema, (CLICK, PURCHASE), all_rows, spare.valid)
    scarce[budget] = tune({"single-task": single, "shared-bottom": shared}, DECAYS)
    print(f"{budget:6,} labels, chosen weight decay: {scarce[budget]}")


# %%
def scarce_pair(s, seed, budget):
    """Test AUC of purchase, single and shared, when only ``budget`` rows have a purchase label."""
    all_rows, few_rows = hide(s, seed, budget)
    single = train(s.schema, (PURCHASE,), few_rows, s.valid, seed, scarce[budget]["single-task"])
    shared = train(s.schema, (CLICK, PURCHASE), all_rows, s.valid, seed, scarce[budget]["shared-bottom"])
    pair = {"single-task": single, "shared-bottom": shared}
    return {name: evaluate(model, s.test)["purchase"]["auc"] for name, model in pair.items()}


some, everything = list(shops)[:8], sizes["train"]
auc_of = {(budget, seed): scarce_pair(shops[seed], seed, budget) for budget in BUDGETS for seed in some}
for seed in some:  # all labels: trained in section 5
    single, shared = runs.loc[seed, ("purchase", "purchase")], runs.loc[seed, ("both", "purchase")]
    auc_of[everything, seed] = {"single-task": single, "shared-bottom": shared}
wide = pd.DataFrame(auc_of).T.rename_axis(["label_budget", "seed"])
wide.groupby("label_budget").mean().round(4)

# %% [markdown]
# Each stop of this slider is a set of trained models. Move it from few labels to all.

# %%
from mtl_helpers.widgets import scarcity_explorer

tidy = wide.reset_index().melt(["label_budget", "seed"], var_name="model", value_name="auc")
scarcity_explorer(tidy, split="test")

# %%
for budget, rows in wide.groupby(level=0):
    say_interval(f"{budget:,} purchase labels", paired_difference(rows["shared-bottom"], rows["single-task"]))

# %% [markdown]
# **What surprised you?** Where the interval excludes zero, a task that knows little has borrowed from one that knows
# much. That is no gift of the architecture. It is data, reached through a shared bottom.

# %% [markdown]
# ## 7 · Does it hurt when tastes disagree?
#
# The shop has a knob for this. `relatedness` is the correlation between what makes a user click and what makes
# the same user buy: at 1 the same taste, at 0 unrelated, at −1 opposed. Until now it stood at 0.8.
#
# A task that gets worse because layers are shared suffers *negative transfer*.
#
# **Predict.** Draw the gain from sharing against relatedness, once with all labels, once with 2,000.


# %%
def knob_run(seed, rho):
    """Gains from sharing in one shop whose tastes have this relatedness."""
    s, found = new_shop(seed, rho), {}
    for name in ("click", "purchase", "both"):
        found[name] = evaluate(train(s.schema, teams[name], s.train, s.valid, seed, decay[name]), s.test)
    few = scarce_pair(s, seed, 2_000)
    gain = {task: found["both"][task]["auc"] - found[task][task]["auc"] for task in ("click", "purchase")}
    return gain | {"purchase, 2,000 labels": few["shared-bottom"] - few["single-task"]}


# %% [markdown]
# What users buy changes what they are after next, so the knob moves their later clicks, too, and all models are trained
# anew. Those at 0.8 are there already, from sections 5 and 6.

# %%
known = {}
for n, seed in enumerate(some[:5]):
    few = wide.loc[(2_000, seed)]
    known[0.8, seed] = {task: values[n] for task, values in gains("both").items()}
    known[0.8, seed]["purchase, 2,000 labels"] = few["shared-bottom"] - few["single-task"]
    for rho in (0.0, -1.0):
        known[rho, seed] = knob_run(seed, rho)
knob = pd.DataFrame(known).T.rename_axis(["relatedness", "shop"])
by_rho = knob.unstack("relatedness")
trend = {name: mean_interval(by_rho[name][0.8] - by_rho[name][-1.0]) for name in knob}
knob.groupby("relatedness").mean().round(4)

# %%
fig = plots.figure(3.0)
for ax, name in zip(fig.subplots(1, 3), knob, strict=True):
    look = plots.task_style(name.split(",")[0])
    for rho, values in knob[name].groupby("relatedness"):
        i = mean_interval(values)
        ax.plot([rho] * len(values), values, "o", color=look["color"], alpha=0.3, markersize=4)
        ax.errorbar(rho, i.mean, i.high - i.mean, fmt=look["marker"], color=look["color"], capsize=4)
    ax.axhline(0, color="#222222", linewidth=1)
    slope = {"a tie": "no trend", "too few runs for a claim": "too few"}.get(words(trend[name]), "a trend")
    ax.set(title=f"{name}: {slope}", xlabel="relatedness of tastes", xlim=(-1.3, 1.1))
fig.axes[0].set_ylabel("test AUC gained by sharing")
display(fig)
for name in knob:
    for rho, values in knob[name].groupby("relatedness"):
        say_interval(f"{name}, relatedness {rho:+.1f}", mean_interval(values))

# %% [markdown]
# Nine intervals at once: now and then one excludes zero by luck. The sharper question is whether the knob matters at
# all. Compare the gain at 0.8 with the gain at −1, within each shop:

# %%
for name, i in trend.items():
    say_interval(f"{name}: 0.8 minus −1", i, "the gain at 0.8", "the gain at −1")

# %% [markdown]
# **What surprised you?** Opposed tastes need not ruin a shared model. A tower may flip a sign: "likes books"
# serves both the task that loves books and the task that avoids them. What tasks compete for is capacity, steps
# and one stopping time.
#
# So the loud third task of section 5 is worth a second look.

# %%
for task, values in gains("three").items():
    i = mean_interval(gains("both")[task] - values)
    say_interval(f"{task}: two tasks minus three", i, "the two-task model", "the three-task model")

# %% [markdown]
# ## 8 · Task weights: steer it
# Weights are the cheapest remedy. We train a whole family of three-task models at once, one for each weighting, in one
# shop of the ten. All run the same epochs, so only the weights differ. Then a slider moves through *trained* models.
#
# **Predict.** Where must the weight of next_category lie so that click and purchase catch up with the models
# alone?

# %%
from mtl_helpers.sweep import simplex_grid, sweep

s = shops[1]
grid = simplex_grid(s.tasks, 3 if FAST else 5, lowest=0.02)
steps = {"epochs": 2 if FAST else 8, "batch_size": 2000, "lr": 1e-2, "weight_decay": decay["click"]}
family = sweep(
    lambda: SharedBottom(s.schema, s.tasks, 4),
    s.train,
    s.valid,
    weightings=grid,
    seeds=(0, 1),
    keep="last",
    progress=False,
    **steps,
)
print(family)

# %%
main = {"click": "auc", "purchase": "auc", "next_category": "accuracy"}
level = {}
for task in s.tasks:
    made = train(s.schema, (task,), s.train, s.valid, 0, decay["click"])
    level[task.name] = evaluate(made, s.valid)[task.name][main[task.name]]
print("single-task models, validation:", {name: round(value, 4) for name, value in level.items()})

# %%
from mtl_helpers.widgets import weight_explorer

weight_explorer(family, baselines=level)

# %%
front = family.pareto(main)
for name in main:
    best = front.loc[front[name].idxmax()]
    w = family.weightings.loc[int(best["weighting"])]
    at = ", ".join(f"{value:.2f} {task}" for task, value in w.items())
    print(f"best {name:14} {best[name]:.4f} ({best[name] - level[name]:+.4f} against alone): {at}")
print((~front["dominated"]).sum(), "of", len(front), "weightings are on the Pareto front.")

# %% [markdown]
# The bars are gains over the single-task models, on validation rows of one shop, two seeds. They show *how*
# weights act. They don't show which weights are best in general.
#
# Now change weights **while** a model trains. Press *Start*, drag, and watch whose gradient moves the shared
# layers. *Pause* and *Stop* do what they say.

# %%
from mtl_helpers.widgets import live_training

torch.manual_seed(0)
live = live_training(SharedBottom(s.schema, s.tasks, 4), s.train, s.valid, lr=3e-3)
live

# %% [markdown]
# **What surprised you?** The share of the gradient is not the share of the weights. Notebook 04 is
# about that difference.

# %% [markdown]
# ## 9 · Real videos
#
# The shop is ours, so it may flatter us. KuaiRand-Pure is a real log of a video app: `click`, `long_view`,
# `like`. If the publisher's archive is on this machine, the same comparison runs on it. If not, the next cells
# say so and go on.

# %%
from mtl_helpers.data import public

VIDEO_TASKS, days = public.KUAIRAND_TASKS, None
if public.kuairand_available():
    days = public.split_by_date(public.load_kuairand(progress=False))
    print({part: len(rows) for part, rows in days.items()}, "rows, split by date")
    print("share of yes:", days["train"][[t.name for t in VIDEO_TASKS]].mean().round(3).to_dict())
else:
    print("KuaiRand-Pure is not on this machine, so this section has nothing to show. To fetch it once, run")
    print("public.load_kuairand() in a new cell (it downloads the publisher's archive), then this section.")

# %% [markdown]
# 20,000 training rows, drawn anew for each seed from the same days; tuned as before on a draw that is not among
# the five.


# %%
NUMERIC, CATEGORICAL = public.KUAIRAND_NUMERIC, public.KUAIRAND_CATEGORICAL
cut = 5 if FAST else 1
limits = {"train": 20_000 // cut, "valid": 8_000 // cut, "test": 20_000 // cut}


def draw(seed):
    """Rows of a seed, with the same test rows for all."""
    seeds = {"train": seed, "valid": seed, "test": 0}
    parts = {k: rows.sample(min(limits[k], len(rows)), random_state=seeds[k]) for k, rows in days.items()}
    return prepare(parts, VIDEO_TASKS, NUMERIC, CATEGORICAL, device=device)


video_teams = {task.name: (task,) for task in VIDEO_TASKS} | {"shared": VIDEO_TASKS}
if days is not None:
    d = draw(100)
    rounds = {name: (d.schema, tasks, d.train, d.valid) for name, tasks in video_teams.items()}
    video_decay = tune(rounds, (0.03, 0.1) if FAST else (0.03, 0.1, 0.3))
    print("chosen weight decay:", video_decay)

# %%
videos = []
for seed in range(1, 3 if FAST else 6) if days is not None else []:
    d, row = draw(seed), {}
    for name, tasks in video_teams.items():
        trained = train(d.schema, tasks, d.train, d.valid, seed, video_decay[name])
        row |= {(name == "shared", task): m["auc"] for task, m in evaluate(trained, d.test).items()}
    videos.append(row)
video_gains = {t.name: [row[True, t.name] - row[False, t.name] for row in videos] for t in VIDEO_TASKS}

# %%
if videos:
    fig = plots.figure(2.6)
    ax = fig.subplots()
    intervals = plots.paired_dots(ax, video_gains, "sharing better", "single better")
    ax.set_xlabel("test AUC gained by sharing (KuaiRand-Pure)")
    fig.suptitle(f"Real videos: {headline(intervals)}", x=0.01, ha="left", fontsize=11)
    display(fig)
    for name, i in intervals.items():
        before, after = (np.mean([row[shared, name] for row in videos]) for shared in (False, True))
        say_interval(f"{name}: {before:.4f} → {after:.4f}", i)
else:
    print("No archive, no figure.")

# %% [markdown]
# Five draws of training rows and starts, one set of test days: the interval covers the draws, not the days.

# %% [markdown]
# ## Exercises
#
# Each has a stub that returns `...` and a check that tells you where you are. Stuck? Type `hint("02.add_task", 1)` into
# a cell; levels go up to 3. `solution("02.add_task")` shows commented source.
#
# **Exercise 1. A third task, without touching the bottom.** Give a trained model a new tower.


# %%
from mtl_helpers.check import check, hint, solution, use


def add_task(model, task):
    """Add a tower for ``task`` to a SharedBottom, leave all else as it is, and return the model.

    The new tower maps the shared representation (n, width), where width is ``model.settings["hidden"][-1]``,
    to logits, as the package's own towers do: (n, n_classes) for a multiclass task, (n,) for a yes/no task
    (squeeze the 1). ``model.tasks``, a tuple, must list the new task.
    Example: for n = 5 the model then also returns logits of shape (5, 8) for next_category, (5,) for purchase.
    """
    return ...


# %%
check("02.add_task", add_task)

# %% [markdown]
# **Exercise 2. How much is shared?**


# %%
def shared_share(model):
    """Share of the parameters of a SharedBottom that all its tasks use, a float between 0 and 1.

    A model with 900 shared and 100 tower parameters gives 0.9.
    """
    return ...


# %%
check("02.shared_share", shared_share)

# %%
grow, measure = use("02.add_task", add_task), use("02.shared_share", shared_share)
model = SharedBottom(data.schema, (CLICK, PURCHASE), 4).to(device)
before = measure(model)
print(f"shared: {before:.1%} with two tasks, {measure(grow(model, CATEGORY)):.1%} with a third")

# %% [markdown]
# **Exercise 3. A loss that skips gaps, even when a batch has no label at all.**


# %%
def masked_loss(logits, labels, mask):
    """Mean binary cross-entropy over rows with a known label, a scalar tensor.

    logits, labels (n,) float, mask (n,) bool. Rows with mask False must not count; if all are
    False the loss is 0 and its gradient is 0, never NaN. For example logits [0., 9.], labels
    [1., 0.], mask [True, False] give log 2 = 0.6931.
    """
    return ...


# %%
check("02.masked_loss", masked_loss)

# %% [markdown]
# ## Self-check
#
# **1. "Multi-task learning always helps the smaller task."** True?
#
# <details><summary>Answer</summary>
#
# No. It can help a task that is short of labels, when another task knows something useful. Section 5 asks twice
# about the same task in the same shops: purchase with one partner, and with two. Look at both intervals.
# </details>
#
# **2. "A larger loss means a more important task."** True?
#
# <details><summary>Answer</summary>
#
# No. The size of a loss depends on its units: eight classes cost more nats than a rare yes or no. The weight says
# how much a task matters; without one, the loudest loss decides. Section 3 shows the shares.
# </details>
#
# **3. "Sharing saves half the parameters."** True?
#
# <details><summary>Answer</summary>
#
# Only by accident. With N tasks and small towers, about 1/N is left (section 2). With large towers or small
# embeddings, less is saved. And saved parameters are not saved time.
# </details>

# %%
scarce_gain = paired_difference(*(wide.loc[BUDGETS[0]][name] for name in ("shared-bottom", "single-task")))
print(f"One shared model keeps {share:.0%} of the parameters of {len(outputs)} single ones.")
print("Test AUC gained by sharing:")
say_interval("click, all labels", sharing["both"]["click"])
say_interval("purchase, all labels", sharing["both"]["purchase"])
say_interval(f"purchase, {BUDGETS[0]:,} labels", scarce_gain)
if FAST:
    print("FAST=1: these are short runs on few rows. Conclusions need the full run.")

# %% [markdown]
# ## Summary
#
# - A shared bottom reads the input once, Z = f(X); each task adds a small tower, Y_i = g_i(Z); fusion makes one
#   score.
# - The loop sums one masked loss per task. The sum follows the loudest loss, so weights are part of the model.
# - Sharing is a trade. Judge it by paired differences over several data sets, task by task, and call a tie a tie.
# %% [markdown]
# **What the toy hides.** The catalogue is small, a person's taste never changes, and purchase labels go missing at
# random. In a real log they go missing for a reason.
#
# **In production** a shared model is also one deployment, one feature pipeline and one training job. That can
# decide more than AUC does. It also means that a change for one task re-trains all others: watch every metric at each
# release.

# %% [markdown]
# ## References
#
# - R. Caruana, *Multitask Learning*, Machine Learning 28, 1997: hard parameter sharing, and why related tasks
#   help.
# - S. Ruder, *An Overview of Multi-Task Learning in Deep Neural Networks*, 2017, arXiv:1706.05098: a map of the
#   field.
# - T. Standley et al., *Which Tasks Should Be Learned Together in Multi-task Learning?*, ICML 2020: groups that
#   help and hurt.
# - J. Ma et al., *Modeling Task Relationships in Multi-task Learning with Multi-gate Mixture-of-Experts*, KDD
#   2018: section 3 varies task correlation on purpose, as section 7 does here.
# - C. Gao et al., *KuaiRand: An Unbiased Sequential Recommendation Dataset with Randomly Exposed Videos*, CIKM
#   2022.
#
# **Next:** [03_loss_math](03_loss_math.ipynb): the losses and their gradients, derived and then checked.
