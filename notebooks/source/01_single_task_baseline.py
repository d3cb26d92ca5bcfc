# %% [markdown]
# # One task, done properly: the single-task baseline
#
# You take a dirty shop log, turn it into honest features, and train one model for one task. You also learn which
# numbers to believe, because every later notebook is measured against this one.
#
# {{colab_badge}} · [glossary](glossary.md)
#
# About ninety minutes to read, four to five minutes to run on two CPU cores (no GPU needed) ·
# builds on `00_start_here`

# %% [markdown]
# ## You will be able to
#
# - **mend** a raw log, fault by fault, and say what each mend changed;
# - **build** features that look at the past only, and **catch** one that does not;
# - **write** a model for one task from scratch, and get the same losses from the helper package;
# - **judge** a model on a rare label by AUC, log-loss, precision and recall, with intervals;
# - **debug** a two-task program, fault by fault.

# %%
# {{setup}}

# %% [markdown]
# ## Recap: the shop and its rare label
#
# The shop shows products. Some are clicked, and of the clicked ones a few are bought. Notebook 00 moved a slider
# between these tasks. Here there are no weights yet: one task at a time. Look at how rare the label is that earns money.

# %%
import numpy as np
import pandas as pd

from mtl_helpers.data import load_shop
from mtl_helpers.widgets.figures import figure, task_style

shop = load_shop()
labels = shop.impressions[["click", "purchase"]]
counts = {"shown": len(labels), **labels.sum().to_dict()}
fig = figure(1.9)
ax = fig.subplots()
for name, n in counts.items():
    ax.barh(name, n, color="#bbbbbb" if name == "shown" else task_style(name)["color"])
    ax.text(n, name, f" {n:,}", va="center")
ax.set(xscale="log", xlim=(100, 1_000_000), xlabel="rows of the raw log (log scale)")
ax.invert_yaxis()
ax.set_title(f"One row in {counts['shown'] / counts['purchase']:.0f} is a purchase")
display(fig)
print("Reading, in raw rows:", ", ".join(f"{name} {n:,}" for name, n in counts.items()))

# %% [markdown]
# ## Question 1: what is wrong with this log?
#
# A shop stores three tables. They are as tidy as such tables usually are.

# %%
for name in ("impressions", "users", "items"):
    table = getattr(shop, name)
    print(f"{name}: {len(table):,} rows, {table.shape[1]} columns")
    display(table.head(2))

# %% [markdown]
# > **Predict.** Write down five faults that such tables may have. For each one, say what it would do to a model that
# > never hears of it.
#
# Start with the log. A row that was written twice counts twice in every average. Worse, one copy may land in the
# training rows and the other in the test rows.

# %%
log = shop.impressions
copies = log[log.duplicated(keep=False)]
print(f"{log.duplicated().sum():,} rows repeat an earlier row in every column. The first pair:")
copies.head(2)

# %% [markdown]
# Mend it by hand: keep a row only if it has not been seen before. Then let the helper do the same.

# %%
from mtl_helpers.data import drop_duplicate_rows

by_hand = log[~log.duplicated()].reset_index(drop=True)
distinct = drop_duplicate_rows(log)
print(f"{len(log):,} rows → {len(distinct):,} rows")
print("by hand and by the helper equal:", by_hand.equals(distinct))

# %% [markdown]
# Next, the users. Which ages does the shop believe in?

# %%
age = shop.users["age"]
impossible = age.notna() & ~age.between(14, 100)
print(f"ages missing: {age.isna().sum()} of {len(age):,}")
print(f"ages impossible: {impossible.sum()}, namely {sorted(age[impossible].unique().tolist())}")
print(f"mean age as stored: {age.mean():.1f} years")
print(f"mean age without the impossible ones: {age[~impossible].mean():.1f} years")

# %% [markdown]
# An impossible age is an age nobody told us. So it becomes missing, like the others. It is not replaced here: what to
# fill in is learned later, from training rows alone.

# %%
from mtl_helpers.data import clean_users

by_hand = age.where(age.between(14, 100))
users = clean_users(shop.users)
print(f"missing before: {age.isna().sum()}, after: {users['age'].isna().sum()}")
print(f"range after: {users['age'].min():.0f} to {users['age'].max():.0f} years")
print("by hand and by the helper equal:", by_hand.equals(users["age"]))

# %% [markdown]
# Now the items. How many categories does the shop sell?

# %%
category = shop.items["category"]
print(f"distinct spellings: {category.nunique()}")
books = sorted(category[category.str.contains("book", case=False)].unique())
print("one of them, as stored:", books)

# %%
from mtl_helpers.data import tidy_text

by_hand = category.str.strip().str.lower()
tidied = tidy_text(category)
print(f"{category.nunique()} spellings → {tidied.nunique()} categories:", *sorted(tidied.unique()))
print("by hand and by the helper equal:", by_hand.equals(tidied))

# %% [markdown]
# To a model each spelling would be a category of its own, with a vector of its own, learned from fewer rows.
#
# Prices come in two units. And somewhere a decimal point slipped.

# %%
from mtl_helpers.data import convert_units

price, unit = shop.items["price"], shop.items["price_unit"]
print(unit.value_counts().to_string())
by_hand = price.where(unit == "EUR", price / 100)
euros = convert_units(price, unit, {"EUR": 1.0, "cent": 0.01})
print(f"median as stored {price.median():.2f}, in euros {euros.median():.2f}")
print("by hand and by the helper equal:", np.allclose(by_hand, euros))
print(f"still there: a product of {euros.max():,.2f} EUR, category {tidied[euros.idxmax()]}")

# %% [markdown]
# Is that product dear, or a slip? Compare it with its own category, on the log scale, because prices grow by factors.
# Tukey's rule calls a value *far out* when it lies more than three interquartile ranges beyond the quartiles.

# %%
from mtl_helpers.data import clip_outliers

worst = euros.idxmax()
peers = np.log(euros[tidied == tidied[worst]])
low, high = peers.quantile(0.25), peers.quantile(0.75)
fence = np.exp(high + 3 * (high - low))
clipped = clip_outliers(euros[tidied == tidied[worst]], log=True)
moves = ~np.isclose(clipped, np.exp(peers))
print(f"upper fence of {tidied[worst]} by hand: {fence:,.2f} EUR")
print(f"the helper clips the slip to: {clipped[worst]:,.2f} EUR")
print(f"prices of this category that moved: {moves.sum()} of {len(peers)}")


# %% [markdown]
# `clean_items` does all of this for every category. Here are the prices before and after.

# %%
from mtl_helpers.data import clean_items

items = clean_items(shop.items)
moved = ~np.isclose(items["price"], price)
spans = [p.groupby(tidied).max() / p.groupby(tidied).min() for p in (price, items["price"])]
before, after = (span.median() for span in spans)
print(f"{moved.sum()} of {len(price)} prices were mended")
print(f"dearest over cheapest, in the median category: ×{before:,.0f} before, ×{after:,.0f} after")

# %%
names = sorted(tidied.unique())
fig = figure(3.3)
left, right = fig.subplots(1, 2, sharex=True, sharey=True)
rows = [names.index(name) for name in tidied] + np.linspace(-0.25, 0.25, len(price))
for ax, values, label in ((left, price, "as stored (EUR or cent)"), (right, items["price"], "mended (EUR)")):
    ax.plot(values[~moved], rows[~moved], ".", color="#999999", ms=3, label="unchanged")
    ax.plot(values[moved], rows[moved], "x", color="#D55E00", ms=4, label="mended")
    ax.set(xscale="log", xlabel=f"price, {label}")
left.set_yticks(range(len(names)), names)
right.legend(loc="lower right", fontsize=8)
fig.suptitle(
    f"Mending shrinks the spread within a category by a factor of {before / after:,.0f}", x=0.01, ha="left"
)
display(fig)
print("Reading: as stored, each category has a second cloud to the right, the prices in cents; after")
top, now = price.max(), items["price"].max()
print(f"mending there is one cloud each, and the highest price falls from {top:,.0f} to {now:,.0f}.")


# %% [markdown]
# The log itself: duplicates go, timestamps become moments, contradictions are refused. Then the account of what changed.

# %%
from mtl_helpers.data import clean_impressions

impressions = clean_impressions(shop.impressions)
still = users["age"].notna() & ~users["age"].between(14, 100)
found = {
    "log rows": (len(log), len(impressions)),
    "impossible ages": (impossible.sum(), still.sum()),
    "missing ages": (age.isna().sum(), users["age"].isna().sum()),
    "spellings of categories": (category.nunique(), items["category"].nunique()),
}
pd.DataFrame(found, index=["before", "after"]).T


# %% [markdown]
# Impossible ages became missing ones, and missing ages stay missing. Cleaning corrects what is known to be wrong; it
# does not invent what is unknown.
#
# **What surprised you?** Which of your five faults was there, and which one had you not thought of?

# %% [markdown]
# ## Question 2: which features may a model see?
#
# `shop_frame` joins the clean tables and extracts features. Some are read off a row: the hour, the log price, the price
# against its category. Others are history: what had this user clicked *before* this session?

# %%
from textwrap import fill

from mtl_helpers.data import SHOP_CATEGORICAL, SHOP_NUMERIC, shop_frame

frame = shop_frame(shop)
print(f"{len(frame):,} rows, {frame.shape[1]} columns")
for kind, names in (("numeric", SHOP_NUMERIC), ("categorical", SHOP_CATEGORICAL)):
    print(fill(f"{kind}: {', '.join(names)}", 90))
frame[["timestamp", "hour", "log_price", "price_vs_category", "user_past_clicks", "click"]].tail(3)

# %% [markdown]
# Check two of them by hand. The price against its category is a difference of logs. The history counts clicks before
# the session began.

# %%
logs = np.log(items["price"])
against = (logs - logs.groupby(items["category"]).transform("mean"))[frame["item_id"]]
print("price_vs_category equal:", np.allclose(against, frame["price_vs_category"]))
busiest = frame["user_id"].value_counts().index[0]
rows = frame[frame["user_id"] == busiest]
past = [((rows["timestamp"] < now) & (rows["click"] == 1)).sum() for now in rows["session_start"]]
print(f"user {busiest}: {len(rows)} rows, {rows['click'].sum()} clicks")
print("user_past_clicks equal:", past == rows["user_past_clicks"].tolist())

# %% [markdown]
# Why only what was before? The short way would be each user's click rate over the whole log. It contains the row's own
# click, and the clicks of next week.
#
# > **Predict.** Which of the two orders the clicks better: the rate over the whole log or the rate of the past? Which of
# > the two would you have in a running shop?

# %%
from mtl_helpers.metrics import auc

whole_log = frame.groupby("user_id")["click"].transform("mean")
clicks = frame["click"].to_numpy()
print(f"AUC for click, user's rate over the whole log: {auc(clicks, whole_log):.3f}")
print(f"AUC for click, user's rate in the past:        {auc(clicks, frame['user_past_ctr']):.3f}")
past_seen = (frame["user_past_clicks"] > 0).mean()
print(f"rows whose user has clicked before: {past_seen:.0%}")

# %% [markdown]
# AUC is the chance that a random clicked row scores above a random unclicked one; more on it below. The difference is
# not skill. It is the answer, written into the question.
#
# ### Split first, fit afterwards
#
# Means, spreads and vocabularies are learned too. So the split comes first, and there are two honest ones.

# %%
from mtl_helpers.data import shop_splits

splits_of = {"time": shop_splits(frame, "time"), "user": shop_splits(frame, "user")}
for name, parts in splits_of.items():
    known = parts["test"]["user_id"].isin(parts["train"]["user_id"]).mean()
    ends, begins = parts["train"]["timestamp"].max(), parts["test"]["timestamp"].min()
    print(f"split by {name}:", ", ".join(f"{part} {len(rows):,} rows" for part, rows in parts.items()))
    print(f"   training ends {ends:%d %b}, test begins {begins:%d %b}")
    print(f"   test rows whose user stands in the training rows: {known:.0%}")


# %% [markdown]
# - **By time** asks: *how well will the model do tomorrow*, on the users it mostly knows?
# - **By user** asks: *how well does it serve people it has never seen?*
#
# A shop retrains every night, so this course splits by time. Test rows are for the end; choices are made on validation
# rows.
#
# Now encoding, by hand. A category becomes a whole number. Number zero is kept for the unknown.

# %%
parts = splits_of["time"]
brands = sorted(parts["train"]["brand"].unique())
vocabulary = {name: code for code, name in enumerate(brands, start=1)}
codes = parts["valid"]["brand"].map(vocabulary).fillna(0).astype(int).to_numpy()
mean, spread = parts["train"]["age"].mean(), parts["train"]["age"].std(ddof=0)
scaled_age = ((parts["valid"]["age"] - mean) / spread).fillna(0.0).to_numpy()
print("brands known from training:", len(vocabulary), "| some codes:", codes[::1000][:5])
print(f"age in training rows: mean {mean:.1f}, spread {spread:.1f} years")
print("some ages, scaled:", scaled_age[::1000][:5].round(2))


# %% [markdown]
# `prepare` fits a `FeatureEncoder` on the training rows, encodes all three parts, and lays the tensors on the device.

# %%
from mtl_helpers.data import SHOP_TASKS, prepare

data = prepare(parts, SHOP_TASKS, SHOP_NUMERIC, SHOP_CATEGORICAL, device=device)
print("numeric", tuple(data.train.numeric.shape), "categorical", tuple(data.train.categorical.shape))
print("labels", {name: tuple(label.shape) for name, label in data.train.labels.items()})
brand = data.valid.categorical[:, SHOP_CATEGORICAL.index("brand")].cpu().numpy()
years = data.valid.numeric[:, SHOP_NUMERIC.index("age")].cpu().numpy()
print("brand codes by hand and by the helper equal:", np.array_equal(brand, codes))
print("scaled ages by hand and by the helper equal:", np.allclose(years, scaled_age, atol=1e-5))

# %% [markdown]
# A brand that the shop takes in tomorrow gets the unknown bucket, and the model still answers. New products need no
# bucket at all: no feature is an id, so a product is known by its category, its brand, its price.

# %%
stranger = parts["valid"].head(1).assign(brand="brand-99", age=np.nan)
numeric, categorical = data.encoder.transform(stranger)
print("code of a brand never seen:", categorical[0, SHOP_CATEGORICAL.index("brand")].item())
print("age never told, scaled:", numeric[0, SHOP_NUMERIC.index("age")].item(), "(the training mean)")
unseen = (~parts["valid"]["item_id"].isin(parts["train"]["item_id"])).mean()
print(f"validation rows whose product was never shown in training: {unseen:.1%}")

# %% [markdown]
# ### A feature that is too good
#
# The log has a column we have not used: `dwell_seconds`, the time spent on the product's page, empty without a visit.
# Surely interest helps. We fill the empty ones with zero and add it. The model is a black box for now; the next section
# opens it.
#
# > **Predict.** By how much will the AUC for purchase rise on the validation rows?

# %%
from mtl_helpers.models import SingleTask
from mtl_helpers.notebook import seed_everything
from mtl_helpers.training import evaluate, fit

click, purchase, next_category = SHOP_TASKS
with_dwell = {
    name: rows.assign(dwell_seconds=rows["dwell_seconds"].fillna(0)) for name, rows in parts.items()
}
more = [*SHOP_NUMERIC, "dwell_seconds"]
leaky = prepare(with_dwell, [purchase], more, SHOP_CATEGORICAL, device=device)
reached = {}
for name, candidate in (("without", data), ("with", leaky)):
    seed_everything(0)
    model = SingleTask(candidate.schema, purchase, embedding_dim=4)
    fit(model, candidate.train, candidate.valid, lr=3e-3, weight_decay=0.1, progress=False)
    reached[name] = evaluate(model, candidate.valid)["purchase"]["auc"]
    print(f"validation AUC for purchase {name} dwell_seconds: {reached[name]:.3f}")

# %% [markdown]
# Before you celebrate: this shop is simulated, so we know the true probability of every row. Scoring with the truth
# itself is the *Bayes optimum*. No honest model can expect to do better.

# %%
truth = parts["valid"][["impression_id"]].merge(shop.truth, on="impression_id", how="left")
ceiling = auc(parts["valid"]["purchase"], truth["p_purchase"])
print(f"Bayes optimum on the same rows: {ceiling:.3f}")
for name, value in reached.items():
    print(f"{name:7s} dwell_seconds: {value - ceiling:+.3f} from the optimum")
above = reached["with"] > ceiling
print("Better than the truth: something leaks." if above else "Not above the ceiling.")

# %% [markdown]
# A real shop has no such ceiling to compare with. It has questions to ask, and `check_leaks` asks them.

# %%
from mtl_helpers.data import check_leaks

pd.set_option("display.max_colwidth", 100)
check_leaks(with_dwell, more, SHOP_TASKS, time="timestamp")

# %% [markdown]
# The last line finds it. Dwell time is measured *after* the click; at the moment of showing the product nobody knows
# it. Out it goes.

# %%
features = [*SHOP_NUMERIC, *SHOP_CATEGORICAL]
report = check_leaks(parts, features, SHOP_TASKS, time="timestamp")
by_user = check_leaks(splits_of["user"], features, SHOP_TASKS, user="user_id")
print("split by time, all checks pass:", bool(report["passed"].all()))
print("split by user, all checks pass:", bool(by_user["passed"].all()))
report

# %% [markdown]
# The check finds outcomes in disguise that are *strong*. Would it have caught the click rate over the whole log? Think
# about it; an exercise returns to it.
#
# **What surprised you?** How close had you come to believing it?

# %% [markdown]
# ## Question 3: what is inside the black box?
#
# Four steps: look up a vector for each category, put the vectors beside the numbers, pass them through an MLP, and
# read one logit. The look-up first. It is a matrix product with a one-hot vector, without the product.

# %%
from itertools import pairwise

import torch
from torch import nn

seed_everything(0)
sizes = list(data.schema.categorical.values())
offset = torch.tensor([0, *np.cumsum(sizes)[:-1].tolist()])
table = nn.Embedding(sum(sizes), 4)
nn.init.normal_(table.weight, std=0.1)
first_row = data.train.categorical[:1].cpu() + offset
one_hot = nn.functional.one_hot(first_row, sum(sizes)).float()
vectors = table(first_row)
print("codes", tuple(first_row.shape), "one-hot", tuple(one_hot.shape))
print("vectors", tuple(vectors.shape))
print("one-hot product and look-up equal:", torch.allclose(one_hot @ table.weight, vectors))

# %% [markdown]
# All columns share one table; `offset` says where each column begins. The rest of the model:

# %%
n_in = len(sizes) * 4 + len(SHOP_NUMERIC)
widths = (n_in, 64, 32, 16, 1)
layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
table, layers, offset = table.to(device), layers.to(device), offset.to(device)


def by_hand(numeric, categorical):
    h = torch.cat([table(categorical + offset).flatten(1), numeric], dim=1)
    for layer in layers[:-1]:
        h = torch.relu(layer(h))
    return layers[-1](h).squeeze(1)


logits = by_hand(data.train.numeric[:5], data.train.categorical[:5])
print("input", (5, n_in), "→ logits", tuple(logits.shape))

# %% [markdown]
# The loss is the binary cross-entropy. Written on the logit $z$, it never takes the log of a rounded zero:
#
# $$\ell(z, y) = \max(z, 0) - z\,y + \log\left(1 + e^{-|z|}\right)$$


# %%
def bce(z, y):
    return (z.clamp(min=0) - z * y + torch.log1p(torch.exp(-z.abs()))).mean()


z, y = torch.tensor([-2.0, 0.5, 3.0]), torch.tensor([0.0, 1.0, 1.0])
p = z.sigmoid()
defined = -(y * p.log() + (1 - y) * (1 - p).log()).mean()
print(f"from the definition: {defined:.6f}")
print(f"on the logits:       {bce(z, y):.6f}")

# %% [markdown]
# And the loop: shuffle, take a batch, step. Nothing is hidden between you and AdamW.

# %%
weights = [*table.parameters(), *layers.parameters()]
optimizer = torch.optim.AdamW(weights, lr=3e-3, weight_decay=0.1)
generator = torch.Generator().manual_seed(0)
n_rows, target = len(data.train), data.train.labels["purchase"]
hand_curve = []
for _ in range(3):
    total = 0.0
    for index in torch.randperm(n_rows, generator=generator).to(device).split(1024):
        loss = bce(by_hand(data.train.numeric[index], data.train.categorical[index]), target[index])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.item() * len(index)
    hand_curve.append(total / n_rows)
print("training loss by epoch:", [round(value, 6) for value in hand_curve])

# %% [markdown]
# The same from `mtl_helpers`: `SingleTask` for the model, `fit` for the loop. Same seed, so the same first weights and
# the same order of rows.
#
# > **Predict.** Equal to how many digits?

# %%
seed_everything(0)
twin = SingleTask(data.schema, purchase, embedding_dim=4, hidden=(64, 32), tower=(16,))
history = fit(twin, data.train, epochs=3, lr=3e-3, weight_decay=0.1, seed=0, progress=False)
helper_curve = history.curve("purchase", split="train").tolist()
for epoch, (mine, theirs) in enumerate(zip(hand_curve, helper_curve, strict=True), start=1):
    print(f"epoch {epoch}: by hand {mine:.6f}, helper {theirs:.6f}")
print("losses equal to six digits:", np.allclose(hand_curve, helper_curve, rtol=0, atol=1e-6))
drift = (twin.features.embedding.weight - table.weight).abs().max().item()
print(f"largest difference between two embedding weights after training: {drift:.1e}")

# %% [markdown]
# A few epochs of training rows say nothing about tomorrow. `fit` watches the validation rows, stops when they no longer
# improve, and keeps the best weights.

# %%
from mtl_helpers.widgets.figures import learning_curves

seed_everything(0)
baseline = SingleTask(data.schema, purchase, embedding_dim=4)
history = fit(baseline, data.train, data.valid, lr=3e-3, weight_decay=0.1, progress=False)
valid, train = history.curve("purchase"), history.curve("purchase", split="train")
turns = "validation turns" if valid.iloc[-1] > valid.min() else "validation still falls"
falls = "falls on" if train.is_monotonic_decreasing else "wavers"
fig = learning_curves(history, title=f"Training loss {falls}, {turns}")
fig.axes[0].set_ylim(0.9 * train.min(), 1.1 * valid.max())
display(fig)
print(
    f"Reading: validation loss is lowest in epoch {history.best_epoch}, at {valid.min():.4f} nats,", end=" "
)
print(f"and ends at {valid.iloc[-1]:.4f}.")
print(f"Training loss starts above the frame, at {train.iloc[0]:.4f}, and ends at {train.iloc[-1]:.4f}.")


# %% [markdown]
# **What surprised you?** How soon does this model begin to learn its training rows by heart?

# %% [markdown]
# ## Question 4: is this model any good?
#
# Programs like the one we mend below report accuracy. The article this course grew out of, “A multi-task learning
# framework for large-model recommender systems”, gives values such as the two in the next cell for purchase.
#
# > **Predict.** What is the accuracy, on our log, of a model that always says *no purchase*?

# %%
from mtl_helpers.metrics import accuracy

reported = (0.88, 0.85)
y_valid = data.valid.labels["purchase"].cpu().numpy()
never = accuracy(y_valid, np.zeros(len(y_valid)))
print(f"always no, on our log: {never:.4f}  ({y_valid.mean():.2%} of the rows are purchases)")
for value in reported:
    words = "less than" if value < never else "no less than"
    print(f"reported {value}: {words} always no here; it beats always no only where more than")
    print(f"   {1 - value:.0%} of the rows are purchases")


# %% [markdown]
# We do not have the article's data, so we cannot say how rare purchases were there. That is the point: without the
# positive rate, an accuracy says nothing.

# %%
fig = figure(3)
ax = fig.subplots()
shares = np.geomspace(0.005, 0.5, 200)
ax.plot(shares, 1 - shares, color="#222222", label="always no")
for name in ("click", "purchase"):
    share, style = data.valid.labels[name].mean().item(), task_style(name)
    mark, color = style["marker"], style["color"]
    ax.plot(share, 1 - share, mark, color=color, ms=9, label=f"{name} in our log")
for value, dash in zip(reported, ("--", ":"), strict=True):
    ax.axhline(value, color="#777777", linestyle=dash, label=f"reported: {value}")
ax.set(xscale="log", xlabel="positive rate (log scale)", ylabel="accuracy")
ax.set_xticks([0.01, 0.03, 0.1, 0.3], ["1 %", "3 %", "10 %", "30 %"])
ax.minorticks_off()
beaten = "beats" if never > max(reported) else "does not beat"
ax.set_title(f"Doing nothing {beaten} the reported accuracies on a log like ours")
ax.legend(loc="lower left")
display(fig)
print("Reading: a model that does nothing has an accuracy of one minus the positive rate;")
print("the rarer the purchases, the better it looks.")

# %% [markdown]
# And our own model? Ask how often it dares to say yes at the usual threshold of one half.

# %%
from mtl_helpers.training import predict

p_valid = predict(baseline, data.valid)["purchase"].numpy()
said_yes = int((p_valid >= 0.5).sum())
reach = accuracy(y_valid, p_valid)
print(f"highest probability it gives: {p_valid.max():.3f}")
print(f"rows at or above one half: {said_yes} of {len(p_valid):,}")
print(f"accuracy {reach:.4f}, always no {never:.4f}")
print("To accuracy, the two are the same model." if reach == never else "Accuracy tells them apart, barely.")


# %% [markdown]
# ### Two measures that look at probabilities
#
# **AUC** is about order: the share of (positive, negative) pairs that are ranked rightly. **Log-loss** is about the
# probabilities themselves: the mean of $-\log$ of what was given to the thing that happened.

# %%
from mtl_helpers.metrics import log_loss

positive, negative = p_valid[y_valid == 1], p_valid[y_valid == 0]
gap = positive[:, None] - negative[None, :]
above = (gap > 0).mean() + (gap == 0).mean() / 2
given = np.where(y_valid == 1, p_valid, 1 - p_valid)
print("pairs", gap.shape)
print(f"AUC by hand {above:.6f}, helper {auc(y_valid, p_valid):.6f}")
print(f"log-loss by hand {-np.log(given).mean():.6f}, helper {log_loss(y_valid, p_valid):.6f}")

# %% [markdown]
# > **Predict.** Take the square root of every probability. What happens to the AUC? To the log-loss?

# %%
constant = np.full(len(y_valid), data.train.labels["purchase"].mean().item())
versions = {"the model": p_valid, "its square root": p_valid**0.5, "the training rate": constant}
for name, score in versions.items():
    order, cost = auc(y_valid, score), log_loss(y_valid, score)
    print(f"{name:18s} AUC {order:.4f}   log-loss {cost:.4f} nats   mean {score.mean():.4f}")
print(f"{'what happened':18s} share of purchases {y_valid.mean():.4f}")

# %% [markdown]
# The order is untouched, so the AUC is too. But the probabilities have become promises that nobody keeps. You need both
# measures: one for ranking, one for anything that multiplies a probability by money.
#
# ### Not one number: an interval
#
# One shop is one draw of luck. So we draw fresh shops: other users, other products, other clicks. First the
# settings, chosen on the validation rows of the shop you know, then frozen.


# %%
EPOCHS = 5 if FAST else 20


def train_single(splits, task, seed, lr):
    seed_everything(seed)
    model = SingleTask(splits.schema, task, embedding_dim=4)
    settings = {"epochs": EPOCHS, "lr": lr, "weight_decay": 0.1, "patience": 3}
    fit(model, splits.train, splits.valid, seed=seed, progress=False, **settings)
    return model


lrs, grid = (3e-3,) if FAST else (1e-3, 3e-3), {}
for task in SHOP_TASKS:
    for lr in lrs:
        found = evaluate(train_single(data, task, 0, lr), data.valid)
        grid[task.name, lr] = found[task.name]["loss"]
by_rate = pd.Series(grid).unstack().rename_axis(index="task", columns="learning rate")
best_lr = by_rate.idxmin(axis=1).to_dict()
print("kept:", best_lr, "\nvalidation loss (nats) by learning rate:")
by_rate.round(4)

# %%
from mtl_helpers.data import ShopConfig, simulate

SEEDS = range(1, 3) if FAST else range(1, 9)
N_ROWS = 20_000 if FAST else 80_000


def fresh_shop(seed):
    drawn = simulate(ShopConfig(seed=seed, n_users=N_ROWS * 9 // 1000, n_impressions=N_ROWS))
    pieces = shop_splits(shop_frame(drawn))
    splits = prepare(pieces, SHOP_TASKS, SHOP_NUMERIC, SHOP_CATEGORICAL, device=device)
    splits.frames.clear()  # the tensors are all we need from here on
    rows = pieces["test"][["impression_id"]]
    return splits, rows.merge(drawn.truth, on="impression_id", how="left")


shops = [fresh_shop(seed) for seed in SEEDS]
bought = [int(splits.test.labels["purchase"].sum()) for splits, _ in shops]
print(f"{len(shops)} fresh shops, purchases in their test rows: {bought}")
if FAST:
    print("FAST=1: few and small shops. The code is the same, but conclusions need the full run.")

# %% [markdown]
# Train the purchase model on each, and look at the test rows of each: once, here. The spread covers both the luck of
# the data and the luck of the first weights.

# %%
scores = []
for seed, (splits, _) in zip(SEEDS, shops, strict=True):
    model = train_single(splits, purchase, seed, best_lr["purchase"])
    labels = splits.test.labels["purchase"].cpu().numpy()
    scores.append((labels, predict(model, splits.test)["purchase"].numpy()))
highest = max(p.max() for _, p in scores)
print(f"trained {len(scores)} models; highest probability any of them gives: {highest:.2f}")


# %%
from mtl_helpers.metrics import mean_interval, paired_difference

rate = [splits.train.labels["purchase"].mean().item() for splits, _ in shops]
measured = {
    "accuracy, model": [accuracy(y, p) for y, p in scores],
    "accuracy, always no": [accuracy(y, 0 * p) for y, p in scores],
    "log-loss, model": [log_loss(y, p) for y, p in scores],
    "log-loss, constant rate": [log_loss(y, 0 * p + r) for (y, p), r in zip(scores, rate, strict=True)],
    "AUC, model": [auc(y, p) for y, p in scores],
}
for name, values in measured.items():
    print(f"{name:26s} {mean_interval(values)}")
print("mean over shops with its interval at 95 %")

# %% [markdown]
# Each shop has its model and its do-nothing rival, so compare them in pairs, shop by shop. An interval that includes
# zero is a tie. One that only just misses zero is borderline: more shops might turn it, so do not build on it.


# %%
def verdict(difference, up, down):
    """Words for an interval of differences."""
    half = (difference.high - difference.low) / 2
    nearest = min(abs(difference.low), abs(difference.high))
    words = up if difference.mean > 0 else down
    if not difference.excludes_zero:
        words = "a tie"
    elif nearest < half / 5:
        words = f"borderline, {words}"
    return f"{words}: {difference.mean:+.4f} [{difference.low:+.4f}, {difference.high:+.4f}]"


# %%
contests = {
    "accuracy, model − always no": ("accuracy, model", "accuracy, always no"),
    "log-loss (nats), constant − model": ("log-loss, constant rate", "log-loss, model"),
}
for name, (a, b) in contests.items():
    gap = paired_difference(measured[a], measured[b])
    print(f"{name:34s}", verdict(gap, "the model wins", "the do-nothing rival wins"))
over = mean_interval(np.array(measured["AUC, model"]) - 0.5)
print(f"{'AUC, model − chance':34s}", verdict(over, "the model wins", "chance wins"))


# %% [markdown]
# The same predictions, three verdicts. Accuracy asks only whether a probability crosses one half, and here that is the
# wrong question.
#
# A better one: *if I may only flag some rows, how many of them are right, and how many purchases do I find?* That is
# **precision** and **recall**, and both depend on the threshold.

# %%
from mtl_helpers.metrics import precision_recall

thresholds, table_rows = (0.005, 0.01, 0.02, 0.05, 0.1, 0.5), []
for cut in thresholds:
    pairs = np.array([precision_recall(y, p, cut) for y, p in scores])
    row = {"threshold": cut, "shops with nothing flagged": int(np.isnan(pairs[:, 0]).sum())}
    for column, name in enumerate(("precision", "recall")):
        known = pairs[~np.isnan(pairs[:, column]), column]
        row[name] = mean_interval(known) if len(known) == len(pairs) else None
    table_rows.append(row)
shown = pd.DataFrame(table_rows).set_index("threshold")
for name in ("precision", "recall"):
    shown[name] = [str(value) if value else "undefined" for value in shown[name]]
shown[["precision", "recall", "shops with nothing flagged"]]


# %%
fig = figure(3)
ax = fig.subplots()
for name, color, marker in (("precision", "#0072B2", "o"), ("recall", "#D55E00", "s")):
    known = [row for row in table_rows if row[name]]
    x, spans = [row["threshold"] for row in known], [row[name] for row in known]
    ax.plot(x, [span.mean for span in spans], label=name, color=color, marker=marker)
    low, high = [span.low for span in spans], [span.high for span in spans]
    ax.fill_between(x, low, high, color=color, alpha=0.2)
ax.set(xscale="log", ylim=(0, 1), xlabel="threshold (probability, log scale)", ylabel="share")
ax.set_xticks(thresholds, [f"{cut:g}" for cut in thresholds])
ax.minorticks_off()
usable = [row for row in table_rows if row["precision"]]
a, b = ((row["precision"].mean, row["recall"].mean) for row in (usable[0], usable[-1]))
trade = b[0] > a[0] and b[1] < a[1]
ax.set_title(f"A higher threshold {'buys' if trade else 'does not buy'} precision with recall")
ax.legend()
display(fig)

# %%
print(f"Reading: from threshold {usable[0]['threshold']:g} to {usable[-1]['threshold']:g}", end=" ")
print(f"precision goes from {a[0]:.3f} to {b[0]:.3f}, recall from {a[1]:.3f} to {b[1]:.3f}.")
print(f"Bands: 95 % intervals over {len(shops)} shops. No point where some shop flags nothing.")

# %% [markdown]
# Now you choose. The slider moves the threshold over the validation rows of the shop you know.
#
# > **Predict.** Move it from one half downwards. Which curve moves first, and does accuracy ever reward you?

# %%
from mtl_helpers.widgets import threshold_explorer

explorer = threshold_explorer(y_valid, p_valid, name="purchase", threshold=0.5)
explorer

# %% [markdown]
# **What surprised you?** Find the threshold at which a newsletter to the flagged users would find half of the buyers.
# What does accuracy think of it?

# %% [markdown]
# ## Question 5: how far are we from the best possible?
#
# Three tasks, one model each: `click`, `purchase`, and `next_category`, the category this user clicks next. The last
# one has as many classes as the shop has categories, and many rows without a label.
#
# > **Predict.** Which task comes closest to its ceiling: the frequent click or the rare purchase?

# %%
click_auc, next_hit, common_hit = [], [], []
for seed, (splits, _) in zip(SEEDS, shops, strict=True):
    model = train_single(splits, click, seed, best_lr["click"])
    click_auc.append(evaluate(model, splits.test)["click"]["auc"])
    model = train_single(splits, next_category, seed, best_lr["next_category"])
    next_hit.append(evaluate(model, splits.test)["next_category"]["accuracy"])
    halves = (splits.train, splits.test)
    seen, asked = (h.labels["next_category"][h.masks["next_category"]] for h in halves)
    common_hit.append((asked == seen.bincount(minlength=8).argmax()).float().mean().item())
print("click AUC:                                ", mean_interval(click_auc))
print("next_category accuracy, model:            ", mean_interval(next_hit))
print("next_category accuracy, commonest class:  ", mean_interval(common_hit))


# %% [markdown]
# The ceiling: the AUC of the *true* probabilities on exactly these test rows. It is below one, since even who knows
# every taste cannot know today's whim.

# %%
by_task = {"click": click_auc, "purchase": measured["AUC, model"]}
ceilings = {name: [] for name in by_task}
for splits, true in shops:
    for name in by_task:
        ceilings[name].append(auc(splits.test.labels[name].cpu().numpy(), true[f"p_{name}"]))
for name, values in by_task.items():
    way = (np.array(values) - 0.5) / (np.array(ceilings[name]) - 0.5)
    print(f"{name:9s} model {mean_interval(values)}   Bayes optimum {mean_interval(ceilings[name])}")
    print(f"          share of the way from chance to the optimum: {mean_interval(way)}")

# %%
from mtl_helpers.widgets.figures import interval_dots

fig = figure(2.6)
ax = fig.subplots()
interval_dots(ax, by_task, {name: task_style(name) for name in by_task})
for row, name in enumerate(by_task):
    top = mean_interval(ceilings[name])
    ax.plot([top.low, top.high], [row, row], color="#222222", linewidth=2.4)
    ax.plot(top.mean, row, "*", color="#222222", ms=13, label="" if row else "Bayes optimum")
ax.axvline(0.5, color="#777777", linestyle=":", label="chance")
ax.set(xlim=(0.48, 1.0), xlabel=f"AUC on test rows of {len(shops)} shops")
ax.legend(loc="center", bbox_to_anchor=(0.25, 0.5))
gaps = {name: paired_difference(ceilings[name], values) for name, values in by_task.items()}
room = all(gap.low > 0 for gap in gaps.values())
ax.set_title(f"{'Both models leave' if room else 'No clear'} room below the optimum")
display(fig)
for name, gap in gaps.items():
    print(f"Reading: {name} lies {gap.mean:.3f} [{gap.low:.3f}, {gap.high:.3f}] below its optimum.")

# %% [markdown]
# Every pale dot is one shop; the strong mark is the mean with its interval. `next_category` has no star, because the
# file of truths holds no probability for it. Its yardstick is the commonest class.

# %%
fig = figure(2.2)
ax = fig.subplots()
looks = {"commonest class": {"color": "#777777", "marker": "o"}, "model": task_style("next_category")}
interval_dots(ax, {"commonest class": common_hit, "model": next_hit}, looks)
next_gain = paired_difference(next_hit, common_hit)
words = verdict(next_gain, "the model is ahead", "the commonest class is ahead")
ax.set(xlabel="accuracy on test rows", title=f"next_category: {words.split(':')[0]}")
display(fig)
print("Reading, model − commonest class:", words)

# %% [markdown]
# Back to the two with a star. Which one is closer to it, measured in the way from chance to the optimum?

# %%
ways = [(np.array(by_task[n]) - 0.5) / (np.array(ceilings[n]) - 0.5) for n in ("click", "purchase")]
words = verdict(paired_difference(*ways), "click comes closer", "purchase comes closer")
print("share of the way, click − purchase:", words)

# %% [markdown]
# The gap between model and star is what better learning could still win. It is why we look for help from other tasks.
#
# ### What would a random split have promised?
#
# Suppose we shuffle the rows and cut. Rows of one session, and of one user's week, then lie on both sides.
#
# > **Predict.** For which task does the shuffled split promise more than the split by time?


# %%
def shuffled_parts(rows, seed):
    order = np.random.default_rng(seed).permutation(len(rows))
    pieces = np.split(order, [int(0.7 * len(rows)), int(0.85 * len(rows))])
    names = ("train", "valid", "test")
    return {name: rows.iloc[index] for name, index in zip(names, pieces, strict=True)}


promise = {"purchase": [], "next_category": []}
for seed in SEEDS[:5]:
    drawn = simulate(ShopConfig(seed=seed, n_users=N_ROWS * 9 // 1000, n_impressions=N_ROWS))
    pieces = shuffled_parts(shop_frame(drawn), seed)
    mixed = prepare(pieces, SHOP_TASKS, SHOP_NUMERIC, SHOP_CATEGORICAL, device=device)
    for task, metric in ((purchase, "auc"), (next_category, "accuracy")):
        model = train_single(mixed, task, seed, best_lr[task.name])
        promise[task.name].append(evaluate(model, mixed.test)[task.name][metric])
print(f"trained on {len(promise['purchase'])} shuffled shops")

# %%
honest = {"purchase": measured["AUC, model"][:5], "next_category": next_hit[:5]}
for name, values in promise.items():
    gap = paired_difference(values, honest[name])
    print(f"{name}: shuffled {mean_interval(values)}, by time {mean_interval(honest[name])}")
    print("   shuffled − by time:", verdict(gap, "shuffling promises more", "shuffling promises less"))


# %% [markdown]
# All rows of a session share one `next_category`, and so do many rows of one user's week. A shuffled split lets a
# model look the answer up, the more, the longer it trains. A split is a question; make sure it is yours.

# %% [markdown]
# ## Question 6: can we mend the article's project program?
#
# The article ends in a small two-task program: buy or not, and which category. We do not have its text. What follows is
# a **reconstruction** from its known faults, fed with our numeric features. It stays on the CPU, because one of the
# faults would leave a GPU unusable until the kernel restarts.


# %%
class ReconstructedNet(nn.Module):
    def __init__(self, n_features, n_categories=8):
        super().__init__()
        self.first = nn.Linear(n_features, 64)
        self.second = nn.Linear(64, 32)
        self.buy = nn.Linear(32, 3)
        self.category = nn.Linear(32, n_categories)

    def forward(self, x):
        z = self.second(self.first(x))
        return self.buy(z), torch.softmax(self.category(z), dim=1)


x, buy = data.train.numeric.cpu(), data.train.labels["purchase"].cpu()
known = data.train.masks["next_category"].cpu()
category_label = data.train.labels["next_category"].cpu()
category_label = category_label.where(known, torch.tensor(-100))  # -100 means: no label
print("x", tuple(x.shape), "buy", tuple(buy.shape), "category", tuple(category_label.shape))


# %%
def reconstructed_training(net, x, buy, category, epochs=30):
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    buy_loss, category_loss = nn.BCELoss(), nn.CrossEntropyLoss()
    for _ in range(epochs):
        buy_out, category_out = net(x)
        loss = buy_loss(buy_out, buy) + category_loss(category_out, category)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


# %% [markdown]
# > **Predict.** Read both cells slowly. There are six faults. How many can you find before running anything?
#
# Run it as it is, and print what Python says.


# %%
def attempt(training, net):
    try:
        curve = training(net, x, buy, category_label)
    except Exception as error:
        print(fill(f"{type(error).__name__}: {error}", 90))
        return None
    print(f"it runs: loss {curve[0]:.3f} → {curve[-1]:.3f}")
    return curve


seed_everything(0)
attempt(reconstructed_training, ReconstructedNet(x.shape[1]))

# %% [markdown]
# **Fault one: three outputs against one label.** Buy or not is one question with one logit. Mend the head.


# %%
class OneLogit(ReconstructedNet):
    def __init__(self, n_features):
        super().__init__(n_features)
        self.buy = nn.Linear(32, 1)  # ← mended

    def forward(self, x):
        buy_out, category_out = super().forward(x)
        return buy_out.squeeze(-1), category_out


seed_everything(0)
print("buy output", tuple(OneLogit(x.shape[1])(x)[0].shape), "label", tuple(buy.shape))
attempt(reconstructed_training, OneLogit(x.shape[1]))

# %% [markdown]
# **Fault two: a loss for probabilities, fed with logits.** A logit can be any number. Mend it with the loss that takes
# logits. A sigmoid in front would run too, but it rounds sure answers to zero or one, and their gradient is lost.


# %%
def training_on_logits(net, x, buy, category, epochs=30):
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    buy_loss, category_loss = nn.BCEWithLogitsLoss(), nn.CrossEntropyLoss()  # ← mended
    for _ in range(epochs):
        buy_out, category_out = net(x)
        loss = buy_loss(buy_out, buy) + category_loss(category_out, category)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


seed_everything(0)
attempt(training_on_logits, OneLogit(x.shape[1]))

# %% [markdown]
# **Fault three: a list that nobody made.** The smallest of them.


# %%
def training(net, x, buy, category, epochs=30):
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    buy_loss, category_loss = nn.BCEWithLogitsLoss(), nn.CrossEntropyLoss()
    curve = []  # ← mended
    for _ in range(epochs):
        buy_out, category_out = net(x)
        loss = buy_loss(buy_out, buy) + category_loss(category_out, category)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        curve.append(loss.item())
    return curve


seed_everything(0)
running = OneLogit(x.shape[1])
curve = attempt(training, running)

# %% [markdown]
# It runs, and now it is dangerous, because the faults that are left say nothing. Here is the only figure it would
# report: accuracy, on the rows it was trained on.

# %%
with torch.no_grad():
    said = running(x)[0].sigmoid()
print(f"training accuracy for purchase: {accuracy(buy, said):.4f}")
print(f"a model that never says yes:    {accuracy(buy, torch.zeros_like(buy)):.4f}")
print(f"rows on which it says yes: {int((said >= 0.5).sum())} of {len(buy):,}")

# %% [markdown]
# **Fault four: accuracy on training rows.** You know the cure from question four: rows the model never saw, and AUC and
# log-loss.
#
# **Fault five: no nonlinearity.** Two linear layers in a row are one linear layer. Multiply them out:

# %%
with torch.no_grad():
    weight = running.second.weight @ running.first.weight
    bias = running.second.weight @ running.first.bias + running.second.bias
    two_layers, one_layer = running.second(running.first(x)), x @ weight.T + bias
print("first", tuple(running.first.weight.shape), "second", tuple(running.second.weight.shape))
print("their product", tuple(weight.shape))
print(f"largest difference, two layers or one: {(two_layers - one_layer).abs().max().item():.1e}")
print("the same function:", torch.allclose(two_layers, one_layer, atol=1e-4))

# %% [markdown]
# **Fault six: softmax before cross-entropy.** The loss already contains a softmax. A second one squeezes every score
# into the range from zero to one, so that even certainty cannot bring the loss to zero.

# %%
margin = torch.linspace(-4, 12, 100)
sure = torch.zeros(100, 8)
sure[:, 0] = margin  # the right class is class 0
right = torch.zeros(100, dtype=torch.long)
once = nn.functional.cross_entropy(sure, right, reduction="none")
twice = nn.functional.cross_entropy(sure.softmax(1), right, reduction="none")
floor = np.log1p(7 / np.e)
print(f"loss at the largest margin: {once[-1]:.4f} on logits, {twice[-1]:.4f} after a softmax")
print(f"lowest value the second one can ever reach, log(1 + 7/e): {floor:.4f} nats")

# %%
fig = figure(2.8)
ax = fig.subplots()
ax.plot(margin, once, color="#009E73", label="cross-entropy on logits")
ax.plot(margin, twice, color="#D55E00", linestyle="--", label="cross-entropy after a softmax")
ax.axhline(floor, color="#777777", linestyle=":", label="floor")
ax.set(xlabel="logit of the right class (the others are 0)", ylabel="loss (nats)")
ax.set_title(f"With two softmaxes the loss stops at {twice.min():.2f} nats")
ax.legend()
display(fig)
pull = [-torch.gradient(loss, spacing=(margin,))[0][0].item() for loss in (once, twice)]
print(f"Reading: the dashed curve never passes {floor:.2f} and is flat where the answer is badly wrong.")
print(f"At the left end the slope is {pull[0]:.3f} on logits and {pull[1]:.3f} after a softmax.")


# %% [markdown]
# All six mended, in one model that keeps the course's contract: features in, one dictionary of logits out. It also gets
# the embeddings that our baseline has, to make the comparison fair.

# %%
from mtl_helpers.models import FeatureLayer


class MendedNet(nn.Module):
    def __init__(self, schema):
        super().__init__()
        self.tasks = (purchase, next_category)
        self.features = FeatureLayer(schema, embedding_dim=4)
        self.first, self.second = nn.Linear(self.features.n_out, 64), nn.Linear(64, 32)
        self.buy, self.category = nn.Linear(32, 1), nn.Linear(32, 8)

    def forward(self, numeric, categorical):
        z = torch.relu(self.first(self.features(numeric, categorical)))
        z = torch.relu(self.second(z))
        return {"purchase": self.buy(z).squeeze(-1), "next_category": self.category(z)}


few = data.valid.take(range(5)).to("cpu")
out = MendedNet(data.schema)(few.numeric, few.categorical)
print({name: tuple(logits.shape) for name, logits in out.items()})

# %% [markdown]
# It is tuned as the baseline was: the same two learning rates, the same validation rows, the same patience. Does its
# loss fall?


# %%
def train_mended(splits, seed, lr, weights=None):
    seed_everything(seed)
    model = MendedNet(splits.schema)
    settings = {"epochs": EPOCHS, "weight_decay": 0.1, "patience": 3, "progress": False}
    history = fit(model, splits.train, splits.valid, lr=lr, weights=weights, seed=seed, **settings)
    found = {name: values["loss"] for name, values in evaluate(model, splits.valid).items()}
    return model, history, found


tried = {lr: train_mended(data, 0, lr) for lr in lrs}
mended_lr = min(tried, key=lambda lr: sum(tried[lr][2].values()))
for lr, (_, _, found) in tried.items():
    print(f"learning rate {lr:g}:", {name: round(loss, 4) for name, loss in found.items()})
print(f"kept, by the sum of both validation losses: {mended_lr:g}")

# %%
_, history, found = tried[mended_lr]
falls = all(history.curve(name, split="train").is_monotonic_decreasing for name in found)
title = "Both training losses fall" if falls else "The training losses do not fall steadily"
display(learning_curves(history, title=title))
ratio = found["next_category"] / found["purchase"]
print(f"Reading: the weights of epoch {history.best_epoch} are kept, by the sum of both validation losses.")
print(f"In that sum the category loss is {ratio:.0f} times the purchase loss.")


# %% [markdown]
# > **Predict.** Sound code, two tasks, more labels to learn from. Does its purchase head beat the baseline that knows
# > only purchases?

# %%
plain = []
for seed, (splits, _) in zip(SEEDS, shops, strict=True):
    model = train_mended(splits, seed, mended_lr)[0]
    plain.append(evaluate(model, splits.test)["purchase"]["auc"])
plain_gap = paired_difference(plain, measured["AUC, model"])
print("purchase AUC, mended program:", mean_interval(plain))
print("purchase AUC, our baseline:  ", mean_interval(measured["AUC, model"]))
print("mended − baseline:", verdict(plain_gap, "the mended program wins", "the baseline wins"))

# %% [markdown]
# Correct code is not yet a good model. The two losses are added as they come, though one is many times the other. So
# try one thing: give each loss a weight that makes a constant guess cost the same in both tasks.

# %%
base = data.train.labels["purchase"].mean().item()
entropy = -(base * np.log(base) + (1 - base) * np.log(1 - base))
guess = {"purchase": float(entropy), "next_category": float(np.log(8))}
scale = {"purchase": 1.0, "next_category": guess["purchase"] / guess["next_category"]}
print("loss of a constant guess (nats):", {name: round(value, 4) for name, value in guess.items()})
print("weights:", {name: round(value, 4) for name, value in scale.items()})
losses_at = {lr: train_mended(data, 0, lr, scale)[2] for lr in lrs}
total = {lr: sum(scale[name] * loss for name, loss in found.items()) for lr, found in losses_at.items()}
scaled_lr = min(total, key=total.get)
print(f"learning rate kept, by the weighted validation loss: {scaled_lr:g}")

# %%
scaled = []
for seed, (splits, _) in zip(SEEDS, shops, strict=True):
    model = train_mended(splits, seed, scaled_lr, scale)[0]
    scaled.append(evaluate(model, splits.test)["purchase"]["auc"])
scaled_gap = paired_difference(scaled, measured["AUC, model"])
weight_gap = paired_difference(scaled, plain)
print("weighted − as they come:", verdict(weight_gap, "weights help purchase", "weights hurt purchase"))
print("weighted − baseline:    ", verdict(scaled_gap, "the two tasks win", "the baseline wins"))


# %%
fig = figure(2.6)
ax = fig.subplots()
alone = "purchase alone (baseline)"
rows = {"losses as they come": plain, "losses weighted": scaled, alone: measured["AUC, model"]}
colors = dict(zip(rows, ("#CC79A7", "#0072B2", "#777777"), strict=True))
looks = {name: {"color": color, "marker": "o"} for name, color in colors.items()}
spans = interval_dots(ax, rows, looks)
ax.set(xlabel=f"purchase AUC on test rows of {len(shops)} shops")
back = 1 - scaled_gap.mean / plain_gap.mean
helps = weight_gap.excludes_zero and weight_gap.mean > 0
ax.set_title(f"Weights win back {back:.0%} of the lost AUC" if helps else "No clear effect of the weights")
display(fig)
for name, span in spans.items():
    print(f"Reading: {name} {span}")
print(
    f"The gap to the baseline was {-plain_gap.mean:.4f} AUC as they come, and is {-scaled_gap.mean:.4f} weighted."
)


# %% [markdown]
# What a second task does to the first one depends on its weight. That single knob is what the rest of the course is
# about.
#
# **What surprised you?** Which of the six faults would you have shipped?

# %% [markdown]
# ## Exercises
#
# Replace each `...` and run the check below it. Stuck? Type `hint("01.precision_at", 1)` into a cell; levels go up to 3.
# `solution("01.precision_at")` shows commented source.
#
# **Exercise 1. Precision at a threshold.**


# %%
from mtl_helpers.check import check, hint, solution, use


def precision_at(labels, probabilities, threshold):
    """Share of flagged rows that are positive.

    labels, probabilities : (n,) arrays; labels are 0 or 1. Flag p ≥ threshold.
    NaN when nothing is flagged.

    Example: precision_at(np.array([1, 0, 1]), np.array([.9, .8, .1]), .5) → 0.5
    """
    return ...


# %%
check("01.precision_at", precision_at)

# %%
precision = use("01.precision_at", precision_at)
for cut in (0.01, 0.05, 0.1):
    print(f"flag above {cut:.0%}: precision {precision(y_valid, p_valid, cut):.3f}")

# %% [markdown]
# **Exercise 2. Spot the leaks.** Six candidate features for the *click* model. Which may it not see? The
# single-feature AUC on the training rows is a clue; it does not tell you everything.


# %%
def candidates(log):
    """Six features of a log in the order of time, some of which know a click too early."""
    items, user = log.groupby("item_id")["click"], log["user_id"]
    moment = log["timestamp"].where(log["click"] == 1)
    coming = moment.groupby(user).shift(-1).groupby(user).bfill()  # this user's next click
    return pd.DataFrame(
        {
            "weekday": log["weekday"],
            "item_past_ctr": (items.cumsum() - log["click"] + 0.06) / (items.cumcount() + 1),
            "item_month_ctr": items.transform("mean"),
            "session_clicks": log.groupby("session_id")["click"].transform("sum"),
            "price_vs_category": log["price_vs_category"],
            "days_to_next_click": (coming - log["timestamp"]).dt.days.fillna(-1),
        }
    )


# %%
past = parts["train"].sort_values("timestamp", kind="stable").head(20_000).reset_index(drop=True)
for name, values in candidates(past).items():
    found = auc(past["click"], values)
    print(f"{name:20s} AUC {max(found, 1 - found):.3f}")

# %% [markdown]
# Write a detector that needs no AUC. Suppose one click had come out the other way. A feature that was known when the
# product was shown cannot notice, in that row or an earlier one.


# %%
def leaking(make_features, log, rows):
    """The names of the features that know a label too early, a set.

    make_features : a function; make_features(log) is a table with one column a feature, (n rows), without NaN.
    log : a table in the order of time, (n rows), with the label in the column `click`, 0 or 1.
    rows : the row numbers at which to try, one at a time.

    Example: a column that counts all clicks of a session leaks, so {"session_clicks"}.
    """
    return ...


# %%
check("01.leaking", leaking)

# %%
detect = use("01.leaking", leaking)
tried = np.random.default_rng(0).integers(0, len(past), 20).tolist()
leaks = detect(candidates, past, tried)
print("leaks:", ", ".join(sorted(leaks)))
print("honest:", ", ".join(name for name in candidates(past) if name not in leaks))

# %% [markdown]
# Now compare with the AUCs above. A check by numbers finds strong leaks. The question “did the shop know this when it
# showed the product?” finds the weak ones, too.

# %% [markdown]
# **Exercise 3. A log-loss that does not overflow.** The obvious formula breaks on confident models:

# %%
far = torch.tensor([-200.0, 200.0])
wrong = torch.tensor([1.0, 0.0])
chance = far.sigmoid()
print("obvious formula:", -(wrong * chance.log() + (1 - wrong) * (1 - chance).log()).mean().item())


# %%
def stable_log_loss(logits, labels):
    """Mean binary cross-entropy.

    logits, labels : (n,) tensors; labels are 0 or 1.
    Returns a scalar tensor, finite for any finite logits, through which a gradient flows.
    Example: stable_log_loss(torch.tensor([-200., 200.]), torch.tensor([1., 0.])) → tensor(200.)
    """
    return ...


# %%
check("01.stable_log_loss", stable_log_loss)

# %% [markdown]
# ## Self-check
#
# True or false, and why? Say your answer aloud before you open the fold.
#
# **1. A higher accuracy means a better model.**
#
# <details><summary>Answer</summary>
#
# False on a rare label. The model that always says no has an accuracy of one minus the positive rate, and question 4
# showed that accuracy could hardly tell our model from it while log-loss and AUC could.
#
# </details>
#
# **2. A higher AUC means better probabilities.**
#
# <details><summary>Answer</summary>
#
# False. AUC sees the order only. In question 4, under *Two measures that look at probabilities*, the square root of all
# probabilities left it as it was and made the log-loss far worse.
#
# </details>
#
# **3. A random split of the rows is enough, as long as no row is in two parts.**
#
# <details><summary>Answer</summary>
#
# False. Rows of one session or one user's week share answers. For `next_category` the shuffled split of question 5
# promised what no split by time could keep. For `purchase`, read what the cell said before you generalise: a leak hits
# some tasks and spares others.
#
# </details>

# %% [markdown]
# ## Summary
#
# - Clean first, split second, fit third. A feature is honest if the shop knows it at the moment of showing the product.
# - On a rare label, accuracy rewards doing nothing. Use AUC for order and log-loss for probabilities, with an
#   interval over several draws, and precision and recall for decisions.
# - A single-task model is a serious rival. Two tasks added as they come are not automatically better than one.
#
# **What the toy hides.** A person's taste never changes, so tomorrow resembles yesterday. Every product and user of
# the log is known to the tables. The ceiling is known. And the log was written by one old ranker: we judge the model on rows that ranker chose to show.
#
# **In production** features are logged at the moment of serving and trained on as logged, so that no later value slips
# in. Purchases arrive hours or days after the click, here as there: `shop_splits` counts one that is not in when
# training ends as none, although it is rather missing than negative. And the split follows time.

# %% [markdown]
# ## References
#
# - T. Fawcett, *An introduction to ROC analysis*, Pattern Recognition Letters 27, 2006, on AUC and what it means.
# - J. Davis and M. Goadrich, *The relationship between Precision-Recall and ROC curves*, ICML 2006.
# - H. He and E. A. Garcia, *Learning from Imbalanced Data*, IEEE Transactions on Knowledge and Data Engineering 21,
#   2009.
# - S. Kaufman, S. Rosset, C. Perlich and O. Stitelman, *Leakage in Data Mining: Formulation, Detection, and Avoidance*,
#   ACM Transactions on Knowledge Discovery from Data 6, 2012.
# - J. W. Tukey, *Exploratory Data Analysis*, Addison-Wesley 1977, on quartiles and fences.
#
# **Next:** [02_shared_bottom](02_shared_bottom.ipynb): how tasks share what they learn, when it helps, and when it
# hurts.
