# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # 09 · Large-model features: words, pictures, sequences
#
# **Promise.** When you leave this page you can feed texts, pictures and histories to a multi-task model, test what an
# encoder really knows, read a causal transformer on one screen, and say what each of them costs.
#
# {{colab_badge}} · [glossary](glossary.md) · about 60 minutes to read, 2 minutes to run on two CPU cores (no GPU needed) ·
# builds on notebooks 01, 02 and 06

# %%
# {{setup}}

# %% tags=["plumbing"]
# @title Imports, and where you are in the course
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from IPython.display import Markdown
from torch import nn

import mtl_helpers
from mtl_helpers import data as shop_data
from mtl_helpers.data import SHOP_CATEGORICAL, SHOP_NUMERIC, SHOP_TASKS, load_shop
from mtl_helpers.metrics import expected_auc
from mtl_helpers.models import (
    CausalTransformer,
    ContentBottom,
    LoRA,
    SequenceBottom,
    SharedBottom,
    count_parameters,
)
from mtl_helpers.training import fit, predict
from mtl_helpers.weighting import constant_losses
from mtl_helpers.widgets import Explorer, course_map, draw, dropdown, guess, slider
from mtl_helpers.widgets import figures as plots

torch.set_num_threads(1)  # models this small need no more, and more threads stumble on a busy machine
folder = Path(mtl_helpers.__file__).parents[1] / "notebooks" / "results"
BOTH = ("click", "purchase")
COLORS = {name: plots.task_style(name)["color"] for name in (*BOTH, "next_category", "next_item")}


def number(value, digits=3):
    return f"{value:+.{digits}f}".replace("-", "−")


course_map("09")

# %% [markdown]
# ## The question of this page
#
# A product goes on sale today. Nobody has seen it, so its id means nothing, and its past click rate is a guess. But it
# has a title and a description. An **encoder** turns them into a vector, and a vector is something a model can read.
#
# The simulator wrote each text from hidden quantities: quality, appeal, three axes of style. A linear reader learns to read
# them off the vectors of half of the products. Then it reads the other half twice: in the shop's own wording, and **in
# synonyms that the shop never uses**. How much does an encoder keep that only counts words?

# %%
g_words = guess("Counting words, on words never seen: mean rank correlation?", -0.2, 1, 0.01)
g_words

# %% tags=["plumbing"]
# @title What a linear reader can tell
wording = pd.read_csv(folder / "09_wording.csv", comment="#")
means = wording.groupby(["encoder", "wording"])["correlation"].mean().unstack()
NAMES = {"tfidf": "TF-IDF", "wordllama": "WordLlama", "minilm": "MiniLM"}
means = means.loc[list(NAMES)].rename(NAMES)
own, new = means["the shop's"], means["never seen"]
wording = wording.replace({"encoder": NAMES})
fig = plots.figure(2.8)
ax = fig.subplots()
for row, (name, one) in enumerate(means.iterrows()):
    ax.plot(one, [row, row], color="#B4BDC7", lw=3, zorder=1)
    for kind, fill in (("the shop's", "#222222"), ("never seen", "white")):
        dots = wording[(wording["encoder"] == name) & (wording["wording"] == kind)]["correlation"]
        ax.plot(
            dots,
            [row + 0.2] * len(dots),
            "o",
            ms=4,
            color="#8A99A9",
            mfc=fill if fill == "white" else "#8A99A9",
        )
        ax.plot(one[kind], row, "o", ms=10, mec="#222222", mfc=fill, label=kind if row == 0 else None)
ax.set_yticks(range(3), list(means.index))
ax.set_ylim(2.6, -0.5)
ax.axvline(0, color="#222222", lw=1)
ax.set(xlabel="rank correlation with what the text says (small: the five quantities)", xlim=(-0.25, 1))
ax.set_title(f"On words never seen, {new.idxmax()} keeps the most: {new.max():.2f}")
g_words.mark(ax)
plots.legend_outside(fig, ax)
display(fig, g_words.answer(new["TF-IDF"]))
Markdown(
    f"In the shop's own wording counting words reads {own['TF-IDF']:.2f}, with nothing to download: templates reward it. On synonyms it "
    f"reads {new['TF-IDF']:.2f}, WordLlama {new['WordLlama']:.2f} and MiniLM {new['MiniLM']:.2f}. An encoder pays where wording varies, "
    f"and that is what has to be measured *before* it is paid for."
)

# %% [markdown]
# *How it was run.* One shop, 1,000 products, five quantities (the small dots); ridge regression, its strength chosen on the
# half that it learns from. It describes these encoders on these texts. The study is
# `notebooks/studies/nb09_text_vectors.py`.
#
# ## 1 · What "large" may mean
#
# The article behind this course speaks of *large-model* recommenders. Three roads go by that name:
#
# | road | what is large | what the recommender sees | here |
# |---|---|---|---|
# | **features** | an encoder trained on other data: text, pictures | its vectors, fixed or tuned a little | sections 2 to 5, built |
# | **sequences** | a transformer over billions of events (HSTU, MTGR, OneRec) | its state, the shared bottom of many tasks | section 6, built small |
# | **language** | a language model that names the next product | nothing else: it *is* the recommender | described in section 5 |
#
# The first two change what the shared bottom of notebook 02 reads, and leave towers, losses and weights as they are. The
# third replaces them, and needs a model that does not fit a laptop; its idea, products as short sentences of codes, does.
#
# ## 2 · Words into vectors
#
# The three encoders, from none to some knowledge of English: **TF-IDF** counts words and reduces the counts to 64 numbers;
# **WordLlama** averages word vectors cut out of a language model; **MiniLM** is a transformer of six layers. Their vectors
# of the shop's 1,000 products lie beside the data, so that you need none of them. Pick a product
# and see its nearest: by words, by the pixels of its picture, by the vector that a model learned for its id.

# %% tags=["plumbing"]
# @title The shop, and its nearest products by five kinds of vectors
shop = load_shop()
items = shop_data.clean_items(shop.items)
vectors = shop_data.stored_vectors()
sheet = shop_data.SHOP_FOLDER / "pictures.png"
sheet = shop_data.read_rgb(sheet) if sheet.is_file() else shop_data.pictures(shop)
tiles = shop_data.tiles(sheet, len(items))

# the log of this page: its latest 80,000 rows, split by time
frame = shop_data.shop_frame(shop).merge(shop.truth, on="impression_id").tail(80_000)
parts = shop_data.shop_splits(frame)
encoded = parts, SHOP_TASKS[:2], SHOP_NUMERIC
ready = shop_data.prepare(*encoded, SHOP_CATEGORICAL, device=device)
weights = {task: 1 / loss for task, loss in constant_losses(ready.train).items()}
EPOCHS = 1 if FAST else 5
how = {"epochs": EPOCHS, "lr": 3e-3, "weight_decay": 1.0, "weights": weights, "progress": False}
rows = {
    part: shop_data.attach(getattr(ready, part), parts[part]["item_id"].to_numpy())
    for part in ("train", "valid", "test")
}
if FAST:
    rows["train"] = rows["train"].take(slice(0, 14_000))

# vectors of ids, as a model of click and purchase learned them; zeros for a product that it never saw
ids = shop_data.prepare(*encoded, (*SHOP_CATEGORICAL, "item_id", "user_id"), device=device)
torch.manual_seed(0)
with_ids = SharedBottom(ids.schema, ids.tasks)
fit(with_ids, ids.train, ids.valid, **how)
place = ids.encoder.categories_["item_id"].get_indexer(items["item_id"].astype(str)) + 1
offset = with_ids.features.offset[len(SHOP_CATEGORICAL)].item()
learned = with_ids.features.embedding.weight.detach().cpu().numpy()[offset + place] * (place > 0)[:, None]
flat = tiles.flatten(1)
looks = {
    **vectors,
    "picture (pixels)": F.normalize(flat - flat.mean(0)).numpy(),
    "id (learned)": F.normalize(torch.tensor(learned)).numpy(),
}

fig = plots.figure(2.4)
axes = fig.subplots(1, 6)
shown = [ax.imshow(np.ones((32, 32, 3)), animated=True) for ax in axes]
names = [ax.text(16, 34, "", ha="center", va="top", fontsize=7, animated=True) for ax in axes]
heads = [ax.text(16, -3, "", ha="center", fontsize=9, animated=True) for ax in axes]
for ax in axes:
    ax.axis("off")
    ax.set_ylim(52, -8)


def wrapped(title, width=19):
    lines = [""]
    for word in title.split():
        lines = [*lines, ""] if len(lines[-1]) + len(word) > width else lines
        lines[-1] += f"{word} "
    return "\n".join(lines)


def show_nearest(state):
    table = looks[state["encoder"]]
    near = table @ table[state["product"]]
    order = np.argsort(-near, kind="stable")
    five = [state["product"], *order[order != state["product"]][:5]]
    for picture, name, head, item in zip(shown, names, heads, five, strict=True):
        picture.set_data(tiles[item].permute(1, 2, 0).numpy())
        name.set_text(wrapped(items["title"][item]))
        head.set_text("chosen" if item == five[0] else f"cosine {near[item]:.2f}")
    same = (items["sub_category"][five[1:]] == items["sub_category"][five[0]]).sum()
    kind = items["sub_category"][five[0]]
    return f"{items['title'][five[0]]}, by {state['encoder']}: {same} of its five nearest are {kind}."


Explorer(
    fig,
    [slider("product", "product", 0, 999, 7, step=1), dropdown("encoder", "by", list(looks), "minilm")],
    show_nearest,
    title="A product and its five nearest",
)

# %% tags=["plumbing"]
# @title How often the five nearest are of the same kind
kinds, same_kind = items["sub_category"].to_numpy(), {}
for name, table in looks.items():
    near = table @ table.T
    np.fill_diagonal(near, -2)
    five = np.argsort(-near, axis=1, kind="stable")[:, :5]
    same_kind[name] = (kinds[five] == kinds[:, None]).mean()
chance = (kinds[:, None] == kinds).mean()
fig = plots.figure(2.2)
ax = fig.subplots()
ax.barh(list(same_kind), list(same_kind.values()), color="#8A99A9", height=0.55)
plots.value_labels(ax, ".2f")
ax.axvline(chance, color="#222222", lw=1, ls=":")
ax.set(xlim=(0, 1.05), xlabel="share of the five nearest in the product's sub-category (dotted: at random)")
ax.set_title(f"{max(same_kind, key=same_kind.get)} knows the kind best: {max(same_kind.values()):.0%}")
ax.invert_yaxis()
display(fig)
Markdown(
    "The kind of thing stands in the table of products, too. What *else* a vector knows has to be read off it, as on top. The vector of an id is made of clicks "
    f"alone, with a handful for each product: {same_kind['id (learned)']:.0%} of its neighbours are of the same kind ({chance:.0%} at random). "
    "Its model read the sub-category in a column of its own, so the id had no need to tell it."
)

# %% [markdown]
# ## 3 · Vectors into the shared bottom
#
# Each product has one row in a table of vectors; a row of the log says which product it is about. The model looks the
# vector up, **drops** a part of it, **projects** it to 16 numbers, **normalises** them, and lays them beside the other
# features. In four lines:

# %%
text = torch.tensor(vectors["tfidf"])
text = (text - text.mean(0)) / text.std(0)
product = torch.tensor([7, 7, 412])  # three rows of a log, two about one product
project, norm = nn.Linear(64, 16), nn.LayerNorm(16)
content = norm(project(F.dropout(text[product], 0.2)))
assert content.shape == (3, 16)

# %% [markdown]
# From the package, with its table of contents; `attach` has put the product's number behind the categories of each row:

# %%
contents = {"text": torch.tensor(vectors["tfidf"]), "picture": tiles}
torch.manual_seed(0)
reader = ContentBottom(ready.schema, ready.tasks, {"text": contents["text"]}).eval()
found, there = reader.read(product)
by_hand = reader.norms["text"](reader.readers["text"][1](text[product]))
torch.testing.assert_close(found[:, 0], by_hand, rtol=1e-4, atol=1e-5)

# %% [markdown]
# **Frozen or tuned?** The vectors above stay as they came. To let the tasks change an encoder without training all of it,
# LoRA adds a product of two thin matrices to a frozen layer, $y = Wx + \frac{\alpha}{r} B A x$. $B$ starts at 0, so training
# begins exactly at the frozen model:

# %%
frozen = nn.Linear(384, 384)
tuned_ = LoRA(frozen, rank=8)
x = torch.randn(2, 384)
torch.testing.assert_close(tuned_(x), frozen(x))
share = count_parameters(tuned_) / sum(p.numel() for p in frozen.parameters())
Markdown(f"Trained: **{share:.1%}** as many numbers as the layer has.")

# %% [markdown]
# ## 4 · Pictures, gates, and a modality that goes missing
#
# A small convolutional network reads the picture and is trained *with the tasks*, from the same losses. Text and picture
# now say the same thing twice. A **gate** decides, product by product, how much of each to take:
# $z = \sum_m g_m h_m$ with $g = \mathrm{softmax}(W[h_1, h_2])$.
#
# Then the evening comes when the picture service is down. What happens to the AUC of {{click}}? One model has never
# missed a picture. The other did without one modality in a third of its training rows, drawn at random: *modality dropout*.

# %%
g_missing = guess(
    "Pictures gone while serving: which loses less?", choices=["trained with all", "modality dropout"]
)
g_missing

# %%
models = {}
for name, chance in (("trained with all", 0.0), ("modality dropout", 0.33)):
    torch.manual_seed(0)
    models[name] = ContentBottom(
        ready.schema, ready.tasks, contents, fusion="gate", width=16, modality_dropout=chance
    )
    fit(models[name], rows["train"], rows["valid"], **how)

# %% tags=["plumbing"]
# @title Gates, and what is left without pictures or words
serve, gates = {}, {}
for name, model in models.items():
    with torch.no_grad():
        gates[name] = model.eval().shares(*model.read(torch.arange(1000, device=device)))[:, 0].cpu()
    for gone in ("nothing", "picture", "text"):
        model.set_contents({k: table for k, table in contents.items() if k != gone})
        said = predict(model, rows["test"])["click"]
        serve[name, gone] = expected_auc(parts["test"]["p_click"], said)
    model.set_contents(contents)
fig = plots.figure(2.8)
left, right = fig.subplots(1, 2, width_ratios=(1, 1.3))
looks_of = {"trained with all": ("#222222", "s"), "modality dropout": ("#882255", "D")}
for name, (color, marker) in looks_of.items():
    left.hist(gates[name], bins=np.linspace(0, 1, 31), histtype="step", lw=2, color=color, label=name)
    values = [serve[name, gone] for gone in ("nothing", "picture", "text")]
    shift = 0.06 if marker == "D" else -0.06
    right.plot(np.arange(3) + shift, values, marker, color=color, ms=8, label=name)
left.set(
    title="The gate's share of text, 1,000 products", xlabel="share of text", ylabel="products", xlim=(0, 1)
)
right.set_xticks(range(3), ["nothing", "the picture", "the text"])
right.set(xlabel="missing while serving", ylabel="AUC of click", xlim=(-0.5, 2.5))
loss_of = {name: serve[name, "nothing"] - serve[name, "picture"] for name in models}
robust = min(loss_of, key=loss_of.get)
right.set_title(f"Without pictures {robust} loses less")
plots.legend_outside(fig, right)
display(fig, g_missing.answer(robust))
Markdown(
    "Lost without pictures: "
    + ", ".join(f"{name} {number(-value, 4)}" for name, value in loss_of.items())
    + f". With all there, modality dropout stands at {serve['modality dropout', 'nothing']:.4f} and the other at "
    f"{serve['trained with all', 'nothing']:.4f}. One shop, one start: it shows *how* to test it, not which is better everywhere."
)

# %% [markdown]
# **What surprised you?** Look at the gate of the model that was trained with all: what it leans on is what it will miss.
# (`set_contents` exchanges the tables of a trained model, such as for tomorrow's products. A modality that is left out is
# *missing*, not zero: the gate gives it no share.)
#
# ## 5 · Semantic ids
#
# An id is a name without meaning. A **semantic id** is a short sentence: the first code says roughly what the product is,
# each further one says more exactly. Residual k-means makes them: cluster the vectors, subtract the centres, cluster what
# is left, and so on. A new product gets codes at once, and its codes have been *trained* by others that share them.

# %%
known_vectors = vectors["minilm"]
codes, books = shop_data.residual_codes(known_vectors, (16, 16, 16))
rest = known_vectors - sum(book[codes[:, level]] for level, book in enumerate(books))
left_over = rest.var() / known_vectors.var()

# %% tags=["plumbing"]
# @title What three codes keep, and a codebook that collapsed
sizes = (2, 4, 8, 16) if FAST else (2, 4, 8, 16, 32, 64)
curve = []
for size in sizes:
    c, b = shop_data.residual_codes(known_vectors, (size,) * 3)
    remaining = known_vectors.copy()
    for level in range(3):
        remaining = remaining - b[level][c[:, level]]
        curve.append(
            (
                size,
                level + 1,
                remaining.var() / known_vectors.var(),
                len(np.unique(c[:, : level + 1], axis=0)),
            )
        )
curve = pd.DataFrame(curve, columns=["size", "codes", "left", "distinct"])

rng = np.random.default_rng(0)


def plain_kmeans(start, rounds=10):
    """Centres that move to the mean of what is nearest to them; one that nothing is near never moves again."""
    book = start.copy()
    for _ in range(rounds):
        nearest = ((known_vectors[:, None] - book) ** 2).sum(-1).argmin(1)
        for k in np.unique(nearest):
            book[k] = known_vectors[nearest == k].mean(0)
    return np.bincount(nearest, minlength=len(book))


use_of = {
    "drawn from noise": plain_kmeans(rng.normal(0, 0.3, (16, known_vectors.shape[1])).astype(np.float32)),
    "drawn from products": plain_kmeans(known_vectors[rng.choice(1000, 16, replace=False)]),
}
fig = plots.figure(2.9)
left, middle, right = fig.subplots(1, 3)
for level, marker in ((1, "o"), (2, "s"), (3, "^")):
    part = curve[curve["codes"] == level]
    left.plot(
        part["size"],
        part["left"],
        marker,
        ls="-",
        color="#222222",
        alpha=0.3 * level + 0.1,
        label=f"{level} code{'s' * (level > 1)}",
    )
    middle.plot(part["size"], part["distinct"], marker, ls="-", color="#222222", alpha=0.3 * level + 0.1)
for ax in (left, middle):
    ax.set(xscale="log", xlabel="codes in a book")
    ax.set_xticks(sizes, sizes)
    ax.minorticks_off()
left.set(ylim=(0, 1), title="Variance left over")
middle.set(ylim=(0, 1000), title="Different ids, of 1,000")
for shift, (name, used) in zip((-0.2, 0.2), use_of.items(), strict=True):
    color = "#882255" if "noise" in name else "#222222"
    right.bar(np.arange(16) + shift, np.sort(used)[::-1], width=0.4, color=color, label=name)
alive = {name: int((used > 0).sum()) for name, used in use_of.items()}
right.set(
    title=f"Alive: {alive['drawn from noise']} and {alive['drawn from products']} of 16",
    xlabel="code, by use",
    ylabel="products",
)
plots.legend_outside(fig)
display(fig)
Markdown(
    f"Three books of 16 leave {left_over:.0%} of the variance and give {len(np.unique(codes, axis=0))} different ids to 1,000 products; the others *collide*: they share one. "
    f"A codebook **collapses** when codes start where no product is: {alive['drawn from noise']} of 16 are ever used. Starting from products mends it "
    f"({alive['drawn from products']} of 16). The course's `residual_codes` starts that way."
)

# %% [markdown]
# Here the third road begins: a transformer that *generates* the codes of the next product, one after the other, is a
# recommender with a vocabulary of 48 words instead of a million products (TIGER; OneRec serves such a model). This page
# describes it and does not build it: with four clicks a user there is too little to learn a language from.
#
# ## 6 · Sequences: a transformer as the shared bottom
#
# What a user clicked lately is a sentence, too. Read it once, into a state; let all tasks share the state.

# %%
draw("transformer", tasks=("click", "purchase", "next_category"))

# %% [markdown]
# The heart of it on one screen. Each event asks (*query*) all events (*keys*) how much they matter, and takes the weighted
# mean of what they say (*values*). The mask forbids looking ahead, so that the state of each event is what was known *then*:


# %%
def attention(x, query, key, value):
    """Events (L, d), oldest first → (L, d)."""
    q, k, v = x @ query, x @ key, x @ value
    scores = q @ k.T / q.shape[1] ** 0.5
    future = torch.ones(len(x), len(x), dtype=torch.bool).triu(1)
    return scores.masked_fill(future, -torch.inf).softmax(1) @ v


torch.manual_seed(0)
x, three = torch.randn(5, 8), [torch.randn(8, 8) for _ in range(3)]
ours = attention(x, *three)
theirs = F.scaled_dot_product_attention(*(x[None] @ w for w in three), is_causal=True)[0]
torch.testing.assert_close(ours, theirs)

# %% [markdown]
# *HSTU* (Zhai et al., 2024), the block behind recommenders of a trillion parameters, changes two things: no softmax, so
# that how *many* events match is kept, and a gate instead of the feed-forward layer, $\mathrm{norm}(A v) \odot u$ with $A =
# \mathrm{SiLU}(q k^\top)/L$. Does the package's transformer really not see the future? Change the last two events:

# %%
torch.manual_seed(0)
causal = CausalTransformer(width=8, length=6, layers=2, heads=2)
events, here = torch.randn(1, 6, 8), torch.ones(1, 6, dtype=torch.bool)
other = events.clone()
other[:, 4:] = torch.randn(1, 2, 8)
moved = (causal(events, here) - causal(other, here)).abs().amax(-1)[0].tolist()

# %% tags=["plumbing"]
# @title Which states moved
fig = plots.figure(2.0)
ax = fig.subplots()
ax.bar(range(1, 7), moved, color=["#222222"] * 4 + ["#882255"] * 2, width=0.6)
ax.set(xlabel="event (5 and 6 were exchanged)", ylabel="change of its state")
still = max(moved[:4]) < 1e-5
ax.set_title("The states of events 1 to 4 " + ("stay where they are" if still else "move: that is a leak"))
fig

# %% [markdown]
# ### Larger models
#
# "Scaling laws" say that a sequence model gains with every tenfold of its size. Does it here, and does it gain more with more
# tasks? The state may serve {{click}} alone, {{click}} and {{purchase}}, or also the {{next_category}} and the next product.
# A larger shop of the same kind, a million rows, on one GPU; a state 16 to 256 wide, one to four blocks deep.

# %%
g_scale = guess("From 16 to 256 wide (four tasks, a million rows): AUC of click?", -0.03, 0.05, 0.001)
g_scale

# %% tags=["plumbing"]
# @title Stored runs: parameters × tasks
scaling = pd.read_csv(folder / "09_scaling.csv", comment="#")
LINES = {"click": ("#8C8C8C", "o"), "click and purchase": ("#222222", "s"), "all four": ("#332288", "^")}
fig = plots.figure(3.2)
for ax, task in zip(fig.subplots(1, 2), BOTH, strict=True):
    for name, (color, marker) in LINES.items():
        part = scaling[(scaling["tasks"] == name) & (scaling["task"] == task)].sort_values("parameters")
        if len(part):
            ax.plot(part["parameters"], part["value"], marker, ls="-", color=color, label=name)
    ax.set(xscale="log", xlabel="parameters", ylabel=f"AUC of {task}", title=task)
plots.legend_outside(fig)
clicks = scaling[scaling["task"] == "click"]
level = clicks.dropna(subset="tasks").groupby(["tasks", "width"])["value"].mean()
floor = clicks[clicks["tasks"].isna()].set_index("device")["value"]
grown, two = (level[name, 256] - level[name, 16] for name in ("all four", "click and purchase"))
more = level["all four", 256] - level["click and purchase", 256]
if g_scale.value is not None:
    fig.axes[0].axhline(level["all four", 16] + g_scale.value, color="#8B5A00", ls="--", lw=1.6)
capped = (scaling.dropna(subset="tasks")["epoch"] == 5).mean()
display(fig, g_scale.answer(grown, digits=3))
Markdown(
    f"From 16 to 256 wide, {level.index.get_level_values(1).nunique()} sizes, the AUC of click moves by **{number(grown)}** with four tasks and by {number(two)} with two "
    f"(popularity {floor['popularity']:.3f}, the truth {floor['truth']:.3f}). The contrast written down before, four tasks minus two at 256 wide: {number(more)}.\n\n"
    f"*One shop, one start a point: no interval, no claim.* The learning rate follows the width by a rule and was not tuned, and for {capped:.0%} of the "
    f"points the best epoch was the fifth, the last that was run: longer runs may order them otherwise. `notebooks/studies/nb09_scaling.py`, on an H100."
)

# %% [markdown]
# **What surprised you?** A law of scaling is a law of data *and* parameters, at a training that fits both. Who enlarges one
# alone may see nothing.
#
# ## 7 · What it costs
#
# Everything above has to be served, too. What does each model hold, and how long do 1,000 scores take, here and now?

# %% tags=["plumbing"]
# @title Parameters, tables beside them, and a stopwatch
history, session = shop_data.session_events(frame, 20)
products = shop_data.product_codes(items, ("sub_category", "brand"))
of = pd.Series(session, frame.index)
thousand = parts["test"].tail(1000)
base = ready.test.take(slice(len(parts["test"]) - 1000, len(parts["test"])))
own = thousand["item_id"].to_numpy()
id_rows = ids.test.take(slice(len(parts["test"]) - 1000, len(parts["test"])))
by_product = shop_data.attach(base, own)
by_session = shop_data.attach(base, of[thousand.index].to_numpy(), own + 1)
schema, tasks = ready.schema, ready.tasks
torch.manual_seed(0)
contest = {
    "table": (SharedBottom(schema, tasks), base, 0),
    "with ids of users and products": (with_ids, id_rows, 0),
    "with text": (ContentBottom(schema, tasks, {"text": contents["text"]}), by_product, 64_000 * 4),
    "with text and pictures": (ContentBottom(schema, tasks, contents), by_product, (64_000 + 3_072_000) * 4),
    "transformer, 20 clicks": (
        SequenceBottom(schema, tasks, history, products),
        by_session,
        history.numel() * 8,
    ),
}
found = []
for name, (model, some, beside) in contest.items():
    model, times = model.to(device).eval(), []
    for _ in range(2 if FAST else 9):
        begun = time.perf_counter()
        with torch.no_grad():
            model(some.numeric, some.categorical)
        times.append(1000 * (time.perf_counter() - begun))
    embedded = sum(p.numel() for k, p in model.named_parameters() if "embedding" in k)
    found.append(
        (name, count_parameters(model), embedded / count_parameters(model), beside / 1e6, np.median(times))
    )
cost = pd.DataFrame(
    found,
    columns=["model", "parameters", "share in embeddings", "tables beside it, MB", "ms for 1,000 scores"],
)
cost = cost.set_index("model")
display(plots.table(cost, digits=2))
Markdown(
    f"Most of a model with ids is its table of vectors: {cost['share in embeddings'].iloc[1]:.0%} here, with 1,000 products; with a million it would be {8e6 / (8e6 + cost['parameters'].iloc[0]):.1%}. "
    "Vectors of texts are computed once a product and cached. The pictures' network runs at each call here; cached, it costs what text costs. A history is read once a session, not once a score. "
)

# %% [markdown]
# **What would you ship?** Costs are known before a model is trained; gains are not. Draw the line that your latency allows
# through the table, and test what is left as notebook 02 tests sharing: paired, on several draws, against features made by
# hand.
#
# ## Exercises
#
# Each has a stub that returns `...` and a check that tells you where you are. Stuck? Type `hint("09.neighbours", 1)` into a
# cell; levels go up to 3. `solution("09.neighbours")` shows commented source.
#
# **Exercise 1. Neighbours that exist by then.** "Similar products" must not show what is not on sale yet.


# %%
from mtl_helpers.check import check, hint, solution, use


def neighbours(vectors, product, on_sale, k):
    """Rows of the k products that are most like ``product``, nearest first, int (k,).

    vectors (n, d) of any length: compare by the cosine. on_sale (n,) bool: only these may
    be returned, and never the product itself. At least k may be. For example vectors
    [[1, 0], [5, 1], [0, 1]], product 0, all on sale and k = 1 give [1].
    """
    return ...


# %%
check("09.neighbours", neighbours)

# %% [markdown]
# **Exercise 2. LoRA's update.**


# %%
def lora(x, weight, a, b, scale):
    """A frozen layer with an update of low rank: y = W x + scale · B A x, without a bias.

    x (n, d_in), weight (d_out, d_in), a (r, d_in), b (d_out, r), tensors → (n, d_out).
    r may be 0: then y is what the frozen layer gives. With scale 0, too.
    """
    return ...


# %%
check("09.lora", lora)

# %% [markdown]
# **Exercise 3. Who may look at whom?**


# %%
def may_look(there):
    """The mask of a causal transformer: bool (n, L, L), True where row i may look at j.

    there (n, L) bool is True for an event, False for padding. A place looks at the events
    up to itself, and always at itself, padding too: a softmax over nothing is NaN.
    """
    return ...


# %%
check("09.may_look", may_look)

# %% [markdown]
# **Exercise 4. The semantic id of a new product.** The codebooks are there; which codes does it get?


# %%
def semantic_ids(vectors, books):
    """Codes (n, levels) of vectors (n, d), the coarsest first; books is a list of (size, d).

    At each level: the nearest code vector (Euclidean) to what the levels before left over.
    For example [[3.9]] with the books [[0.0], [4.0]] and [[0.0], [-0.1]] gives [[1, 1]].
    """
    return ...


# %%
check("09.semantic_ids", semantic_ids)

# %% tags=["plumbing"]
# @title Your functions at work
nearest, coded = use("09.neighbours", neighbours), use("09.semantic_ids", semantic_ids)
day = pd.Timestamp("2025-03-20")
on_sale = (items["on_sale_since"] <= day).to_numpy()
five = nearest(vectors["minilm"], 7, on_sale, 3)
agree = (coded(known_vectors, books) == codes).mean()
Markdown(
    f"Nearest to *{items['title'][7]}* on {day:%d %B}: {'; '.join(items['title'][i] for i in five)}. "
    f"Your codes agree with the course's for {agree:.0%}."
)

# %% [markdown]
# ## Self-check
#
# **1. "A product without clicks has no features."** True?
#
# <details><summary>Answer</summary>
#
# No. It has a category, a brand and a price from the first second, and words and a picture. What the latter add to the
# former has to be measured on products that were not in training.
# </details>
#
# **2. "The encoder that reads the shop's texts best is the best encoder."** True?
#
# <details><summary>Answer</summary>
#
# No. In wording that it was fitted on, counting words is hard to beat. The question is what happens with wording that comes
# later (the figure on top).
# </details>
#
# **3. "A transformer needs a causal mask."** True?
#
# <details><summary>Answer</summary>
#
# Only if more than its last state is used, or the history holds events after the moment that is predicted. With a mask,
# one pass gives the state after *each* event, and no state knows its future (section 6).
# </details>

# %% [markdown]
# ## Summary
#
# - Content enters a shared bottom as cached vectors: drop, project, normalise. Towers, losses and weights stay as they were.
# - Gates say how much of each modality is used; modality dropout prepares for the evening when one is missing. Semantic ids
#   turn vectors into a few codes that new products share with old ones.
# - A causal transformer reads a history once for all tasks, and no state knows its future. Larger is not better by itself.
#
# **What the toy hides.** Texts here come from templates, and the pictures are drawn shapes. **In production** the encoder
# changes, too: all cached vectors change with it, and a model that was trained on the old ones must not be served the new.

# %% [markdown]
# ## References
#
# - G. Zhou et al., *Deep Interest Network for Click-Through Rate Prediction*, KDD 2018: attention by the candidate.
# - W.-C. Kang and J. McAuley, *Self-Attentive Sequential Recommendation*, ICDM 2018: the causal transformer.
# - J. Zhai et al., *Actions Speak Louder than Words: Trillion-Parameter Sequential Transducers for Generative
#   Recommendations*, ICML 2024: HSTU.
# - S. Rajput et al., *Recommender Systems with Generative Retrieval*, NeurIPS 2023: TIGER and semantic ids.
# - J. Deng et al., *OneRec: Unifying Retrieve and Rank with Generative Recommender and Iterative Preference Alignment*,
#   2025, arXiv:2502.18965.
# - R. Han et al., *MTGR: Industrial-Scale Generative Recommendation Framework in Meituan*, CIKM 2025, arXiv:2505.18654.
# - E. J. Hu et al., *LoRA: Low-Rank Adaptation of Large Language Models*, ICLR 2022.
# - J. Hu et al., *Squeeze-and-Excitation Networks*, CVPR 2018: gates over what a network sees.
# - M. Volkovs et al., *DropoutNet: Addressing Cold Start in Recommender Systems*, NeurIPS 2017.
#
# **Next:** back to [00_start_here](00_start_here.ipynb), or to your own log in [07_real_data](07_real_data.ipynb).
