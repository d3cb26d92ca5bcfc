# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # The e-commerce case: three tasks, one list, and what it earns
#
# **Promise.** You will take a shop's raw log to a ranked list, steer it like the owner, and say in euros and with
# an interval what each decision did.
#
# {{colab_badge}} · [glossary](glossary.md) · about two hours to read, two to three minutes to run on two CPU cores (no GPU needed) · builds on
# [04_weighting_strategies](04_weighting_strategies.ipynb)

# %% [markdown]
# **You will be able to**
#
# - *design* tasks, inputs and towers for a shop, and *see* where a design leaks;
# - *fuse* predictions into one list, and *say* what calibration has to do with it;
# - *measure* a list: accuracy, coverage, revenue;
# - *handle* the funnel, rare purchases and position bias;
# - *test* a change in an A/B test, *explain* one recommendation, and *serve* the model.

# %%
# {{setup}}

# %% tags=["plumbing"]
# @title Where this notebook stands in the course
from mtl_helpers.widgets import course_map

course_map("05")

# %% tags=["plumbing"]
# @title Imports
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch.nn.functional as F
from IPython.display import display
from torch import nn

import mtl_helpers
from mtl_helpers import metrics, ranking
from mtl_helpers.data import CATEGORIES, MultiTaskDataset, Task, load_shop, make_world, prepare, shop_frame
from mtl_helpers.metrics import mean_interval, paired_difference
from mtl_helpers.models import Fusion, SharedBottom, mlp
from mtl_helpers.models import case as ecommerce
from mtl_helpers.training import evaluate, fit, predict
from mtl_helpers.widgets import figures as plots

# %% [markdown]
# ## Recap: somebody has to choose the weights
#
# Notebook 04 ended with fixed weights, tuned, as the baseline that is hard to beat. Now there is an owner who
# wants something, and money to measure it. She asks the article's three questions:
#
# 1. Will this user *buy* this product?
# 2. Which *category* does the user favour?
# 3. Which *other products* may the user like?

# %% [markdown]
# ## 1 · From the log to tasks
#
# **Predict.** Which of the three questions is about a *product*, and which about the *user* alone? Write it down:
# the whole design follows from it.

# %%
shop = load_shop()
frames = ecommerce.case_frames(shop)
items = ecommerce.item_table(shop, frames["train"])
data = ecommerce.case_data(frames, len(items), device)
train = frames["train"]
for name in ("click", "purchase"):
    print(f"{name:14} {len(train):6,} labels, {train[name].mean():.1%} of them a yes")
for name in ("next_category", "next_item"):
    print(f"{name:14} {train[name].notna().sum():6,} labels, {train[name].nunique()} classes")

# %% [markdown]
# The case takes the latest 80,000 rows of the log, so that the notebook stays quick; what the features count goes
# back to its first day.
#
# `next_category` and `next_item` are the category and the item of the user's *next click*. Why not of the next
# purchase? Count them above. Clicks are plentiful; a handful of purchases cannot teach hundreds of classes.
#
# `click` is a helper nobody asked for: every purchase starts with one.

# %% [markdown]
# ### The first check is on the joins
#
# A wrong join breaks a recommender silently. Whoever joins, counts before and after. And a label that looks
# into the future must stop at the end of its part.

# %%
whole = pd.concat(frames.values())
print("one row an impression:", whole["impression_id"].is_unique)
print("users and items known:", whole[["age_group", "price"]].notna().all(axis=None))
for part, later in (("train", "valid"), ("valid", "test")):
    inside = frames[part]["next_click_time"].max() < frames[later]["timestamp"].min()
    print(f"{part}: no label is decided after its end:", bool(inside))


# %%
def with_value(table, column, value):
    """A copy whose first row holds a value that should not be there."""
    return table.assign(**{column: table[column].where(table.index > 0, value)})


once = shop.impressions.drop_duplicates()
broken = {
    "unknown user": replace(shop, impressions=with_value(once, "user_id", 99_999)),
    "unknown item": replace(shop, impressions=with_value(once, "item_id", 99_999)),
    "negative price": replace(shop, items=with_value(shop.items, "price", -5.0)),
}
for what, log in broken.items():
    try:
        shop_frame(log)
        print(f"{what}: ACCEPTED")
    except ValueError as error:
        print(f"{what}: {error}")

# %% [markdown]
# ### A wrong turn: everything goes into one bottom
#
# The shared bottom of notebook 02 reads user, item and position, then answers all questions.
#
# **Predict.** Ask it for one user's favourite category, once for each product of the shop. How many answers will
# you get?

# %%
epochs = 2 if FAST else 20
settings = {"epochs": epochs, "lr": 3e-3, "weight_decay": 1.0, "progress": False}
torch.manual_seed(0)
naive = SharedBottom(data.schema, data.tasks[:3], embedding_dim=4)
fit(naive, data.train, data.valid, **settings | {"epochs": 2})
one = frames["test"].iloc[[0]]
table = MultiTaskDataset(
    *data.encoder.transform(ecommerce.candidates(shop, one["user_id"])), {}, {}, data.tasks[:3]
)
answers = predict(naive, table.to(device))["next_category"]
best = int(answers[0].argmax())
low, high = answers[:, best].min(), answers[:, best].max()
print(f"{len(answers.unique(dim=0))} different answers for one user, {tuple(answers.shape)}")
print(f"The chance of {CATEGORIES[best]} runs from {low:.2f} to {high:.2f},")
print("depending on a product that does not matter.")

# %% [markdown]
# A user's favourite cannot depend on the candidate. At serving there is no candidate yet. So the user and the
# moment get a bottom of their own, *u*, and an item gets one, *v*:
#
# | task | reads |
# |---|---|
# | click, purchase | u, v, u·v, and what belongs to the pair (position, past rates) |
# | next_category | u |
# | next_item | u · v for every v of the catalogue |


# %%
from mtl_helpers.widgets import draw

draw("two_towers")


# %%
class TinyCase(nn.Module):
    """The design on one screen: user (n, 33), item (n, 14), pair (n, 8) features in."""

    def __init__(self, n_user, n_item, n_pair, width=32):
        super().__init__()
        self.user, self.item = (
            mlp(n_user, (2 * width, width)),
            mlp(n_item, (width,)).append(nn.Linear(width, width)),
        )

        def tower():
            return mlp(3 * width + n_pair, (width // 2,)).append(nn.Linear(width // 2, 1))

        self.click, self.purchase, self.category = tower(), tower(), nn.Linear(width, 8)

    def forward(self, user, item, pair, catalogue, bias):
        u, v, all_v = self.user(user), self.item(item), self.item(catalogue)
        both = torch.cat([u, v, u * v, pair], dim=-1)
        logits = {"click": self.click(both).squeeze(-1), "purchase": self.purchase(both).squeeze(-1)}
        return logits | {"next_category": self.category(u), "next_item": u @ all_v.T + bias}


# %% [markdown]
# `CaseModel` is the same with embeddings in front. Give both the same weights: they must agree.

# %%
torch.manual_seed(0)
model = ecommerce.case_model(data, items).to(device)
rows = (data.train.numeric[:5], data.train.categorical[:5])
parts = [model.feature_vectors(part, *rows) for part in ("user", "item", "pair")]
tiny = TinyCase(*(part.shape[-1] for part in parts)).to(device)
tiny.user, tiny.item, tiny.category = model.user, model.item, model.towers["next_category"]
tiny.click, tiny.purchase = model.towers["click"], model.towers["purchase"]
ours = tiny(*parts, model.features["item"](model.item_numeric, model.item_codes), model.bias)
for name, logits in model(*rows).items():
    print(f"{name:14} {tuple(logits.shape)!s:9} largest difference {(logits - ours[name]).abs().max():.0e}")

# %% [markdown]
# ### Train it
#
# First the lesson of notebooks 03 and 04, on these tasks: what does each lose when it always says the same?

# %%
from mtl_helpers.weighting import constant_losses

constants = constant_losses(data.train)
loud, quiet = max(constants, key=constants.get), min(constants, key=constants.get)
fig = plots.figure(2)
ax = fig.subplots()
ax.barh(list(constants), constants.values(), color=[plots.task_style(name)["color"] for name in constants])
ax.set(xlabel="loss of the best constant (nats)", ylim=(3.5, -0.5))
ax.set_title(f"{loud} is {constants[loud] / constants[quiet]:.0f} times as loud as {quiet}")
display(fig)
print({name: round(float(value), 3) for name, value in constants.items()})

# %% [markdown]
# So the two loud tasks are turned down. `MONITOR` puts all losses in the same unit before it chooses the epoch.

# %%
WEIGHTS = {"click": 1.0, "purchase": 1.0, "next_category": 0.03, "next_item": 0.01}
MONITOR = {name: 1 / loss for name, loss in constants.items()}


def train_case(weights=WEIGHTS, seed=0, **options):
    torch.manual_seed(seed)
    made = ecommerce.case_model(data, items, **options)
    history = fit(made, data.train, data.valid, weights=weights, monitor=MONITOR, seed=seed, **settings)
    return made, history


model, history = train_case()
print("kept epoch", history.best_epoch)
plots.learning_curves(history)

# %% [markdown]
# Read each panel for itself: the tasks overfit at different times, and one epoch has to suit all.
#
# ### What did the tasks learn?
#
# Each needs a baseline that knows nothing about the user. **Predict.** Ten of a thousand products: how often
# will the next click be among them, by chance, by popularity, by the model?


# %%
def one_hot(labels, n):
    return F.one_hot(labels, n).numpy()


def recall_at_10(scores, part):
    """Mean recall@10 over the rows of a part whose next item is known; scores (n, items)."""
    known = part.masks["next_item"].cpu()
    wanted = one_hot(part.labels["next_item"].cpu()[known], len(items))
    return ranking.user_mean(ranking.recall_at_k(wanted, ranking.top_k(scores[known.numpy()], 10)))


popular = np.tile(items["clicks"].to_numpy(float), (len(data.valid), 1))
said = predict(model, data.valid)["next_item"].numpy()
found = {"popularity": recall_at_10(popular, data.valid), "model": recall_at_10(said, data.valid)}
print("recall@10 on validation: chance", 10 / len(items), {k: round(v, 4) for k, v in found.items()})
pd.DataFrame(evaluate(model, data.valid)).T.round(3)

# %% [markdown]
# One shop and a few hundred rows prove little. The same on eight whole new shops, made by
# `python notebooks/studies/nb05_tables.py`, which also stores every other comparison of this notebook (all of these
# come from the shop's first edition, with other users, products and rates than the log above):

# %%
folder = Path(mtl_helpers.__file__).parents[1] / "notebooks" / "results"


def over_shops(part, measure):
    """One row a shop, one column a contestant, on test rows."""
    table = pd.read_csv(folder / f"05_{part}.csv", comment="#").query("measure == @measure")
    return table.pivot(index="shop", columns="name", values="value")


gaps = {}


def verdict(label, a, b, digits=4, sign=1):
    """Print the interval of a − b over shops and what it allows us to say. sign=-1: low is better."""
    gap = gaps[label] = paired_difference(a, b)
    word = "a tie" if not gap.excludes_zero else "better" if sign * gap.mean > 0 else "worse"
    low, mean, high = (f"{x:+.{digits}f}" for x in (gap.low, gap.mean, gap.high))
    print(f"{label}: {mean} [{low}, {high}] over {gap.n} shops: {word}")


# %%
table = over_shops("tasks", "recall")
print(table[["chance", "popularity", "user ids", "counts"]].mean().round(4).to_dict())
verdict("recall@10, model − popularity", table["counts"], table["popularity"])
table = over_shops("tasks", "category_accuracy")
verdict("favourite category, model − most frequent", table["counts"], table["most frequent"])

# %% [markdown]
# ### A second wrong turn: give the model the user's id
#
# Every shop has ids, so why not embed them? `counts` above reads what a user *did* (clicks per category);
# this contestant reads the `user_id` as well.

# %%
for measure in ("click_auc", "purchase_auc", "category_accuracy", "recall"):
    table = over_shops("tasks", measure)
    verdict(f"{measure:17} with ids − without", table["user ids"], table["counts"])
per_user = train.groupby("user_id")["click"].sum()
print(f"The median user of the training log has {per_user.median():.0f} click(s).")
print("A vector for each user is soon learned by heart.")

# %% [markdown]
# Where ids do not help, leave them out: the model is smaller, and a new user is no special case.

# %% [markdown]
# ## 2 · Next items: full or sampled softmax?
#
# A softmax over the catalogue needs a logit for every item. With millions of items nobody computes that: one
# *samples* some negatives. Items drawn by popularity *q* are pushed down as often as they are drawn, unless each
# logit is corrected by $-\log q$ (Yi et al., RecSys 2019).

# %%
wanted = data.train.masks["next_item"].nonzero().squeeze(-1)[:256]
rows = data.train.take(wanted)
clicks = torch.tensor(items["clicks"].to_numpy(), dtype=torch.float32, device=device) + 0.5
share = clicks / clicks.sum()
drawn = torch.multinomial(share, 50, replacement=True)
with torch.no_grad():
    u, v = model.user_vectors(rows.numeric, rows.categorical), model.item_vectors()
full = u @ v.T + model.bias
print("u", tuple(u.shape), "V", tuple(v.shape), "full logits", tuple(full.shape), "sampled", (len(u), 51))

# %%
label = rows.labels["next_item"]
exact = F.cross_entropy(full, label).item()
for name, correction in {"sampled": 0.0, "sampled, corrected": share.log()}.items():
    logits = full - correction
    chosen = torch.cat([logits.gather(1, label[:, None]), logits[:, drawn]], dim=1)
    chosen[:, 1:] = chosen[:, 1:].masked_fill(drawn[None] == label[:, None], -1e9)  # a hit is no negative
    loss = F.cross_entropy(chosen, torch.zeros_like(label)).item()
    print(f"{name:19} loss {loss:.3f} over 51 classes; full softmax {exact:.3f} over {len(items)}")

# %% [markdown]
# The losses are not comparable (fewer rivals), only what they teach is. Below, eight shops, next_item alone, same
# model and epochs for all three. Compare them with each other, not with section 1, which trains otherwise.

# %%
table, seconds = over_shops("tasks", "recall"), over_shops("tasks", "seconds_per_epoch")
names = ["full softmax", "sampled softmax", "sampled, corrected softmax"]
display(
    pd.DataFrame(
        {"recall@10": table[names].mean().round(4), "seconds an epoch": seconds[names].mean().round(3)}
    )
)
verdict("corrected − uncorrected", table[names[2]], table[names[1]])
verdict("corrected − full", table[names[2]], table[names[0]])
ratio = seconds[names[2]].mean() / seconds[names[0]].mean()
print(f"Sampled takes {ratio:.2f} of the time of full, at the 800 items of those shops.")

# %% [markdown]
# **What surprised you?** With a small catalogue sampling saves little time; it is for catalogues that do not fit.
# At serving, the list is the largest dot products: retrieval.

# %%
with torch.no_grad():
    u = model.user_vectors(data.test.numeric[:1], data.test.categorical[:1])
    found = (u @ model.item_vectors().T + model.bias).topk(5)
items.loc[found.indices[0].cpu().numpy(), ["item_id", "category", "brand", "price", "clicks"]]

# %% [markdown]
# ## 3 · How good is a list?
#
# Two kinds of metric. Some look at *rows*: is a yes scored above a no, does ten per cent mean ten per cent?

# %%
p, y = predict(model, data.test)["purchase"].numpy(), frames["test"]["purchase"].to_numpy()
row_metrics = {
    "accuracy": ((p >= 0.5) == y).mean(),
    "always no": 1 - y.mean(),
    "AUC": metrics.auc(y, p),
    "AUC within a user": metrics.grouped_auc(y, p, frames["test"]["user_id"]),
    "log-loss (nats)": metrics.log_loss(y, p),
    "calibration error": metrics.calibration_error(y, p),
}
print({name: round(float(value), 4) for name, value in row_metrics.items()})

# %% tags=["plumbing"]
# @title Figure: calibration and ranking
curve = metrics.reliability_curve(y, p, bins=6)
said, seen, low, high = (curve[name] for name in ("predicted", "observed", "low", "high"))
inside = ((low <= said) & (said <= high)).sum()
fig = plots.figure(3.1)
ax = fig.subplots()
ax.plot([0, high.max()], [0, high.max()], color="#999999", lw=1, label="says what happens")
ax.errorbar(said, seen, [seen - low, high - seen], fmt="s", color="#D55E00", capsize=3, label="purchase")
ax.set(xlabel="predicted probability", ylabel="observed share (test rows)")
ax.set_title(f"{inside} of {len(curve)} bins agree with the diagonal")
ax.legend()
display(fig)
print(f"In the top bin the model says {said.iloc[-1]:.3f}, and {seen.iloc[-1]:.3f} bought.")
print("Bars are 95 % intervals.")

# %% [markdown]
# The others look at *lists*. Score every product for a few hundred users. A log only knows what was shown; the
# simulator knows the true probability of everything, so relevance and revenue need no guess.

# %%
people = frames["test"].drop_duplicates("user_id").head(40 if FAST else 200)
served_evening = ecommerce.candidates(shop, people["user_id"])
scores = ecommerce.score_candidates(model, data, served_evening, items)
world = make_world(shop.config)
truth = ecommerce.true_values(world, served_evening)
price, category = items["price"].to_numpy(), items["category"].to_numpy()
factors = np.arange(1, 11) ** -0.45  # fewer look at later places
liked = truth["purchase"] >= np.sort(truth["purchase"], axis=1)[:, [-20]]  # a user's twenty best
print({name: value.shape for name, value in scores.items()}, "liked:", int(liked.sum(1).mean()), "a user")


# %%
def worth_of(lists, prices):
    """True expected worth per 1,000 impressions, mean over users."""
    return ranking.expected_revenue(lists, truth["purchase"], prices, factors).mean()


def measure(lists):
    """What a shop reads of lists (users, 10)."""
    near = {"NDCG": ranking.ndcg_at_k, "precision": ranking.precision_at_k}
    near |= {"recall": ranking.recall_at_k, "MAP": ranking.average_precision_at_k}
    found = {name: ranking.user_mean(of(liked, lists)) for name, of in near.items()}
    found["catalogue"] = ranking.catalogue_coverage(lists, len(items))
    found["categories"] = ranking.category_coverage(lists, category).mean()
    found["novelty (bits)"] = ranking.novelty(lists, items["clicks"].to_numpy()).mean()
    found["gini"] = ranking.gini(ranking.exposure(lists, len(items), factors))
    return found | {"EUR": worth_of(lists, price), "purchases": worth_of(lists, np.ones(len(items)))}


# %%
contestants = {
    "chance": np.random.default_rng(0).random(truth["click"].shape),
    "popularity": np.tile(items["clicks"].to_numpy(float), (len(people), 1)),
    "favourite category": scores["category"] + 1e-6 * scores["next"],
    "next items": scores["next"],
    "p(purchase)": scores["purchase"],
    "truth": truth["purchase"],
}
board = pd.DataFrame({name: measure(ranking.top_k(s, 10)) for name, s in contestants.items()}).T
board.round(3)

# %% [markdown]
# The first four are against each user's twenty truly best products; EUR and purchases are true expectations per
# thousand impressions. Gini is inequality of exposure: one means that a single product gets all of it.
#
# **What surprised you?** Compare the model with popularity. It learned from what the old ranker chose to show, and
# here it must rank everything: that need not go well (section 9 lets it rank what was offered). Look at coverage,
# too. The next section spends some accuracy on variety and price.

# %% [markdown]
# ## 4 · Fusion: many predictions, one list
#
# The article promises a *fusion layer* whose code never came. Three kinds:
#
# | kind | score |
# |---|---|
# | sum | $\sum_i a_i p_i$ |
# | power | $p_{click}^a \, p_{buy}^b \, price^c$ |
# | learned | $\sigma(b_0+\sum_i w_i \varphi(p_i))$, all $w_i>0$ |
#
# **Predict.** Which exponents sell most? Which earn most? Is it the same list?

# %%
toy = {
    "click": torch.tensor([0.20, 0.05]),
    "purchase": torch.tensor([0.01, 0.02]),
    "price": torch.tensor([10.0, 30.0]),
}
exponents = {"click": 0.5, "purchase": 1.0, "price": 0.5}
print("by hand:", (toy["click"] ** 0.5 * toy["purchase"] * toy["price"] ** 0.5).tolist())
print("Fusion :", Fusion(exponents)(toy).tolist())
bump = Fusion(exponents)({**toy, "click": toy["click"] + 0.01})
print("monotone: a higher p(click) never lowers the score:", bool((bump >= Fusion(exponents)(toy)).all()))


# %%
inputs = {name: torch.tensor(scores[name]) for name in ("click", "purchase")}
inputs["price"] = torch.tensor(price, dtype=torch.float32).expand(len(people), -1)


def fused(click=0.0, purchase=0.0, cost=0.0):
    return Fusion({"click": click, "purchase": purchase, "price": cost})(inputs).numpy()


options = {
    "click": fused(click=1),
    "purchase": fused(purchase=1),
    "purchase · √price": fused(purchase=1, cost=0.5),
    "purchase · price": fused(purchase=1, cost=1),
    "click · purchase · price": fused(1, 1, 1),
}
board = pd.DataFrame({name: measure(ranking.top_k(s, 10)) for name, s in options.items()}).T
board[["EUR", "purchases", "NDCG", "catalogue", "categories"]].round(3)

# %% [markdown]
# Expected revenue is *p × price*, so that exponent should be the best. It need not be: a product whose
# probability is overrated rises to the top exactly because it is overrated, and a high price magnifies it.
#
# A small fusion can also *learn* its exponents, on validation rows:

# %%
from mtl_helpers.models.fusion import LearnedFusion

valid = predict(model, data.valid)
columns = {name: valid[name] for name in ("click", "purchase")}
bought = data.valid.labels["purchase"].cpu()
learned = LearnedFusion(["click", "purchase"]).fit(columns, bought)
print(
    "learned exponents:",
    {name: round(w, 3) for name, w in learned.weights.items()},
    "from",
    int(bought.sum()),
    "purchases",
)
with torch.no_grad():
    lists = ranking.top_k(learned({name: inputs[name] for name in columns}).numpy(), 10)
print({name: round(float(measure(lists)[name]), 1) for name in ("EUR", "purchases")}, "per 1,000 impressions")

# %%
money, sold = over_shops("business", "revenue"), over_shops("business", "purchases")
names = [
    "click",
    "buy",
    "buy · √price",
    "buy · price",
    "click · buy · price",
    "sum",
    "learned",
    "learned, by price",
]
display(pd.DataFrame({"EUR": money[names].mean().round(0), "purchases": sold[names].mean().round(1)}))
one, other = "buy · price", "buy"
verdict("EUR: buy · price − buy alone", money[one], money[other], 0)
verdict("purchases: buy · price − buy alone", sold[one], sold[other], 1)
verdict("EUR: buy · price − buy · √price", money[one], money["buy · √price"], 0)
verdict("EUR: click · buy · price − buy · price", money["click · buy · price"], money[one], 0)
verdict("purchases: learned − buy alone", sold["learned"], sold[other], 1)

# %% [markdown]
# The intervals are over eight new shops. Note what the rows trade: more euros, fewer buyers.
#
# ### What has calibration to do with it?
#
# A sum and a product with price use the *size* of a probability, not only its order. Take p(purchase) as a model
# trained on a tenth of the no's would say it (section 6), and fuse again.

# %%
odds = scores["purchase"] / (1 - scores["purchase"])
inflated = 10 * odds / (1 + 10 * odds)
for name, fuse in {
    "p alone": lambda p: p,
    "p · price": lambda p: p * price,
    "p + p(click)": lambda p: p + scores["click"],
}.items():
    before, after = ranking.top_k(fuse(scores["purchase"]), 10), ranking.top_k(fuse(inflated), 10)
    same = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(before, after, strict=True)])
    print(f"{name:13} {same:.0%} of each list stays when p is inflated")

# %% [markdown]
# The order of p alone never changes. So AUC cannot see the fault, and fusion suffers from it.
#
# ### Diversity
#
# MMR (maximal marginal relevance) takes items one by one and charges for a category that the list has already.

# %%
best = options["purchase · √price"]
rows = {d: measure(ranking.mmr(best, category, 10, d)) for d in (0.0, 0.2, 0.5, 1.0)}
board = pd.DataFrame(rows).T.rename_axis("diversity")
display(board[["EUR", "NDCG", "categories", "catalogue"]].round(3))
change = board["EUR"].iloc[-1] / board["EUR"].iloc[0] - 1
shown = board["categories"]
print(f"From no to full diversity: categories {shown.iloc[0]:.0%} → {shown.iloc[-1]:.0%},")
print(f"revenue {change:+.0%}.")

# %% [markdown]
# ## 5 · The funnel: impression, click, purchase
#
# Conversion is p(purchase | click). The obvious model learns it from clicked rows, for there it has labels. At
# serving it scores *all* products.
#
# **Predict.** Averaged over all test impressions: will its conversion be too high, too low, right?

# %%
rows = data.train.take(data.train.labels["click"].nonzero().squeeze(-1))
seen = data.valid.take(data.valid.labels["click"].nonzero().squeeze(-1))
torch.manual_seed(0)
clicks_only = ecommerce.case_model(data, items, [Task("purchase")])
fit(clicks_only, rows, seen, batch_size=128, **settings)
test = frames["test"]
columns = [test[name].to_numpy() for name in ("user_id", "item_id", "timestamp", "position", "surface")]
true_click, true_conversion = world.probabilities(*columns)
said = predict(clicks_only, data.test)["purchase"].numpy()
clicked = test["click"].to_numpy() == 1
for name, where in {"clicked impressions": clicked, "all impressions": np.ones(len(test), bool)}.items():
    print(f"{name:20} said {said[where].mean():.3f}, true {true_conversion[where].mean():.3f}")

# %% [markdown]
# Whoever clicks likes the product more than the features show, and so buys more. Clicked rows are a selected
# sample.
#
# ESMM (Ma et al., SIGIR 2018) never trains on clicked rows alone. It learns two products that exist for *every*
# impression: p(click), and p(click) · p(conversion) = p(purchase).


# %%
class EntireSpace(nn.Module):
    """Two towers, a and b; the losses are those of click = σ(a) and purchase = σ(a)·σ(b), on all rows."""

    def __init__(self):
        super().__init__()
        self.tasks = (Task("click"), Task("purchase"))
        self.inner = ecommerce.case_model(data, items, [Task("click"), Task("conversion")])

    def forward(self, numeric, categorical):
        z = self.inner(numeric, categorical)
        log_p = F.logsigmoid(z["click"]) + F.logsigmoid(z["conversion"])  # a product of probabilities
        logit = log_p - torch.log1p(-log_p.exp().clamp(max=1 - 1e-6))  # its log-odds, what a loss expects
        return {"click": z["click"], "purchase": logit}


# %%
torch.manual_seed(0)
whole_space = EntireSpace()
fit(whole_space, data.train, data.valid, **settings)
with torch.no_grad():
    inner = whole_space.eval().inner(data.test.numeric, data.test.categorical)
p = {name: logits.sigmoid().cpu().numpy() for name, logits in inner.items()}
product = p["click"] * p["conversion"]
same = np.allclose(product, predict(whole_space, data.test)["purchase"], atol=1e-5)
print("p(purchase) is p(click) · p(conversion):", same)
said, true = p["conversion"].mean(), true_conversion.mean()
print(f"conversion over all impressions: ESMM says {said:.3f}, true {true:.3f}")

# %%
off = (over_shops("funnel", "ratio") - 1).abs()
said = {name: mean_interval(over_shops("funnel", "ratio")[name]) for name in ("clicks only", "ESMM")}
for name, ratio in said.items():
    low, high = f"{ratio.low:.2f}", f"{ratio.high:.2f}"
    print(f"conversion said / true, all impressions, {name:11}: {ratio.mean:.2f} [{low}, {high}]")
verdict("distance of that ratio from 1, ESMM − clicks only", off["ESMM"], off["clicks only"], 3, sign=-1)
rmse, product = over_shops("funnel", "rmse"), over_shops("funnel", "purchase_auc")
verdict("error against the true conversion, ESMM − clicks only", rmse["ESMM"], rmse["clicks only"], sign=-1)
verdict("AUC of p(click) · conversion, ESMM − clicks only", product["ESMM"], product["clicks only"])
off = (over_shops("funnel", "purchase_ratio") - 1).abs()
print("p(purchase) said / true:", over_shops("funnel", "purchase_ratio").mean().round(3).to_dict())
verdict("distance of that ratio from 1, ESMM − clicks only", off["ESMM"], off["clicks only"], 3, sign=-1)

# %% [markdown]
# **What it mends, and what not.** ESMM trains where it serves, on labels that exist for every impression, and one
# model replaces two. The lines above say whether that shows in the numbers here. But p(purchase) / p(click) is
# still the conversion *of those who click*.
#
# What drives both and is hidden from the features stays in it. No model of this log can see that; an experiment
# can.

# %% [markdown]
# ## 6 · Rare purchases
#
# About one in two hundred impressions is bought. Five popular treatments, same model, same number of steps:
#
# **Predict.** Which improve the AUC? Which ruin the probabilities?

# %% tags=["plumbing"]
# @title Figure: treatments of rare purchases
names = ["plain", "class weight", "focal", "down-sampled", "down-sampled, corrected", "over-sampled"]
rare = {what: over_shops("rare", what)[names] for what in ("auc", "calibration_error", "ratio")}
fig = plots.figure(2.8)
titles = {"auc": "test AUC", "ratio": "mean said / observed rate (1 is right)"}
for ax, (what, title) in zip(fig.subplots(1, 2, sharey=True), titles.items(), strict=True):
    plots.interval_rows(ax, {name: rare[what][name] for name in names}, zero=False)
    ax.set(xlabel=title, xscale="log" if what == "ratio" else "linear")
fig.axes[1].axvline(1, color="#999999", lw=1)
others = ["class weight", "focal", "down-sampled", "over-sampled"]  # correcting changes no order, so no AUC
changed = [n for n in others if paired_difference(rare["auc"][n], rare["auc"]["plain"]).excludes_zero]
worst, times = rare["ratio"].mean().idxmax(), rare["ratio"].mean().max()
head = f"AUC differs from plain for {len(changed)} of {len(others)}; {worst} says {times:.0f} times too many"
fig.suptitle(head, x=0.01, ha="left")
display(fig)
for name in others:
    verdict(f"AUC, {name} − plain", rare["auc"][name], rare["auc"]["plain"])

# %% [markdown]
# Down-sampling keeps all purchases and a share *s* of the rest. That multiplies the odds by 1/s, so it can be
# undone: $p = q / (q + (1-q)/s)$ (He et al., 2014).

# %%
y, generator = data.train.labels["purchase"].cpu(), torch.Generator().manual_seed(0)
kept = (y == 1) | (torch.rand(len(y), generator=generator) < 0.1)
few = data.train.take(kept.nonzero().squeeze(-1))
torch.manual_seed(0)
sampled = ecommerce.case_model(data, items, [Task("purchase")])
fit(sampled, few, data.valid, batch_size=128, monitor="purchase.auc", **settings)
print(f"{len(few) / len(y):.0%} of the rows kept, {few.labels['purchase'].mean():.1%} of them purchases")

# %%
q = predict(sampled, data.test)["purchase"].numpy().astype(float)
by_hand, helper = q / (q + (1 - q) / 0.1), metrics.correct_downsampling(q, 0.1)
labels = test["purchase"].to_numpy()
print(f"observed {labels.mean():.4f}; said {q.mean():.4f}; corrected {by_hand.mean():.4f}")
print("helper agrees:", np.allclose(by_hand, helper))
print("AUC unchanged:", np.isclose(metrics.auc(labels, q), metrics.auc(labels, helper)))

# %% [markdown]
# The article also names GANs and attention; neither is tried here. The lesson holds for any treatment: what changes
# the base rate must be undone before fusion.
#
# ## 7 · Position bias
#
# The first place is clicked most. Because it is first, or because the old ranker put the best product there?
#
# **Predict.** Counting clicks by place: too strong an effect, or too weak?

# %%
place = list(data.schema.categorical).index("position")
code = {int(p): c for c, p in enumerate(data.encoder.categories_["position"], start=1)}


def at_place(part, p):
    """The same rows, all at one place of the page."""
    codes = part.categorical.clone()
    codes[:, place] = code[p]
    return MultiTaskDataset(part.numeric, codes, part.labels, part.masks, part.tasks)


def mean_log_odds(p):
    return np.log(p / (1 - p)).mean()


# %%
places = np.arange(1, 9)
said = [predict(model, at_place(data.test, p))["click"].numpy().astype(float) for p in places]
rate = train.groupby("position")["click"].mean().to_numpy()
user, item, moment, _, surface = columns
true = [world.probabilities(user, item, moment, p, surface)[0] for p in places]
curves = {
    "counted": np.log(rate / (1 - rate)),
    "model": np.array([mean_log_odds(p) for p in said]),
    "truth": np.array([mean_log_odds(p) for p in true]),
}
curves = {name: values - values[0] for name, values in curves.items()}
print({name: round(float(values[-1]), 2) for name, values in curves.items()}, "at position 8")

# %% tags=["plumbing"]
# @title Figure: the effect of position
fig = plots.figure(2.9)
ax = fig.subplots()
looks = {"counted": ("o:", "#E69F00"), "model": ("s--", "#0072B2"), "truth": ("-", "#222222")}
for name, (style, color) in looks.items():
    ax.plot(places, curves[name], style, label=name, color=color)
names = {"counted": "the plain count", "model": "the model"}
error = {label: abs(curves[name] - curves["truth"]).sum() for name, label in names.items()}
ax.set(xlabel="position", ylabel="log-odds of a click\nagainst position 1", xticks=places)
ax.set_title(f"In this shop, {min(error, key=error.get)} is nearer to the truth")
ax.legend()
display(fig)
print(
    "Every curve starts at 0, position 1; distance from the truth:",
    {k: round(float(v), 2) for k, v in error.items()},
)

# %%
effect = over_shops("position", "effect")
for name in ("counted", "learned"):
    gap = paired_difference(effect[name], effect["truth"])
    word = "differs from the truth" if gap.excludes_zero else "agrees with the truth"
    print(f"effect at position 5, {name} − true: {gap.mean:+.3f} [{gap.low:+.3f}, {gap.high:+.3f}]: {word}")
excess, ratio = over_shops("position", "excess_loss"), over_shops("position", "ratio")
print("p(click) said / true at position 1:", ratio.mean().round(3).to_dict())
known, ignored = "position known", "position ignored"
verdict(
    "distance of that ratio from 1, known − ignored",
    (ratio[known] - 1).abs(),
    (ratio[ignored] - 1).abs(),
    3,
    sign=-1,
)
verdict("excess loss at position 1, known − ignored", excess[known], excess[ignored], sign=-1)

# %% [markdown]
# The remedy is one line: position is a feature *while training*, and is set to one *when serving*
# (`candidates` does it). Left out, its effect leaks into whatever was correlated with it.
#
# The model can separate both only because the old ranker is noisy. A log in which good products are always first
# cannot tell them apart.

# %% [markdown]
# ## 8 · The owner's dashboard
#
# Task weights act *while training*: each setting of the first sliders is a trained model. Fusion exponents and
# diversity act *after* it. We train the whole grid at once; click goes with purchase, as its helper.

# %%
from mtl_helpers.sweep import simplex_grid, sweep

THREE = ["purchase", "next_category", "next_item"]
grid = [{"click": w["purchase"], **w} for w in simplex_grid(THREE, 3 if FAST else 5, lowest=0.02)]
start = time.perf_counter()
family = sweep(
    lambda: ecommerce.case_model(data, items), data.train, data.valid, weightings=grid,
    epochs=1 if FAST else 4, lr=5e-3, weight_decay=0.1, keep="best", progress=False,
)  # fmt: skip
print(family, f"{time.perf_counter() - start:.0f} s")

# %%
from mtl_helpers.widgets import Shopfront, shop_dashboard

every = [
    ecommerce.score_candidates(family.model(k).to(device), data, served_evening, items)
    for k in family.weightings.index
]
signals = {"buy": "purchase", "category": "category", "next": "next"}
front = Shopfront(
    items=items,
    users=[f"user {user}" for user in people["user_id"]],
    weightings=family.weightings[THREE],
    predictions={name: np.stack([s[key] for s in every]).astype(np.float32) for name, key in signals.items()},
    true_purchase=truth["purchase"],
    relevance=liked,
    counts=items["clicks"],
    position_factors=factors,
)
print({name: values.shape for name, values in front.predictions.items()}, "→ (weightings, users, products)")

# %% [markdown]
# **Predict.** Start from “purchase counts most”, as the article suggests, ranked by p(purchase). Which slider
# moves revenue most: a task weight, an exponent, diversity? Guess, then drag.

# %%
today = {"buy": 1.0, "category": 0.0, "next": 0.0, "price": 0.0}
shop_dashboard(front, exponents=today, weights={"purchase": 0.6, "next_category": 0.2, "next_item": 0.2})

# %% [markdown]
# Three score bars on each card, and the change against today below. Try price at 0.5, then at 2. Then move the
# weight of purchase.
#
# ### Is the purchase weight to be the highest?


# %%
names = [f"weighting {k}" for k in range(15)]
weights = pd.DataFrame(simplex_grid(THREE, 5, lowest=0.02))
sold, money = over_shops("business", "purchases"), over_shops("business", "revenue")
aims = ("purchase_auc", "click_auc", "category_accuracy", "recall")
chosen = {
    aim: over_shops("business", aim)[names].idxmax(axis=1) for aim in aims
}  # on validation rows, by shop


def worth(table, aim):
    """What the chosen weighting is worth in each shop, on test users, under the truth."""
    return pd.Series({shop: table.loc[shop, name] for shop, name in chosen[aim].items()})


for aim in aims:
    mean = weights["purchase"].loc[[int(name.split()[-1]) for name in chosen[aim]]].mean()
    bought, euros = worth(sold, aim).mean(), worth(money, aim).mean()
    print(f"best {aim:18} purchase weight {mean:.2f}; {bought:.1f} purchases, {euros:,.0f} EUR")

# %%
for aim in aims[1:]:
    verdict(f"purchases per 1,000: best {aim} − best purchase_auc", worth(sold, aim), worth(sold, aims[0]), 1)
verdict(
    "EUR per 1,000: best category_accuracy − best purchase_auc",
    worth(money, aims[2]),
    worth(money, aims[0]),
    0,
)
spread = over_shops("business", "purchase_accuracy")[names].agg(lambda row: row.max() - row.min(), axis=1)
print(f"Purchase accuracy cannot choose at all: within a shop the fifteen differ by {spread.mean():.4f}.")

# %% [markdown]
# Purchases are those of lists by p alone, EUR those of lists by p · price. “Choose by accuracy” sounds harmless. It
# costs what the intervals say: the accuracy of one task is not the owner's aim.

# %%
tried = front.settings([{"buy": 1.0, "price": c} for c in (0.0, 0.5, 1.0)], (0.0, 0.2))
best = {aim: tried.loc[tried[aim].idxmax()] for aim in ("ndcg", "revenue", "coverage")}
for aim, row in best.items():
    w = front.weightings.loc[row["weighting"]].round(2).to_dict()
    print(f"best {aim:8} price^{row['exponents']['price']}, diversity {row['diversity']}, weights {w}:")
    print(f"    NDCG {row['ndcg']:.3f}, {row['revenue']:,.0f} EUR, {row['coverage']:.1%} of the catalogue")
loss = best["ndcg"]["revenue"] / best["revenue"]["revenue"] - 1
print(f"In this shop the setting with the best list accuracy earns {loss:+.0%} against the best-earning one.")

# %% [markdown]
# ## 9 · Does it earn more? Segments, then an A/B test
#
# First, for whom? *New* users have no click yet. *Price-sensitive* users are the third that the simulator knows
# to mind prices most.

# %%
for segment in ("new", "known", "price-sensitive", "other"):
    table = over_shops("business", f"revenue, {segment}")
    gap = paired_difference(table["buy · price"], table["popularity"])
    base, low, high = table["popularity"].mean(), f"{gap.low:+.0f}", f"{gap.high:+.0f}"
    print(
        f"{segment:16} popularity {base:6.0f}, ours {gap.mean:+6.0f} [{low}, {high}] ({gap.mean / base:+.0%})"
    )
print("EUR per 1,000 impressions, lists by p · price.")

# %%
gap = {s: over_shops("business", f"revenue, {s}") for s in ("price-sensitive", "other")}
lift = {s: t["buy · price"] / t["popularity"] for s, t in gap.items()}
verdict("lift over popularity, price-sensitive − other", lift["price-sensitive"], lift["other"], 2)
lists = {"p · price": fused(purchase=1, cost=1), "p alone": fused(purchase=1)}
median = {name: float(np.median(price[ranking.top_k(x, 10)])) for name, x in lists.items()}
print("median price, EUR:", median | {"catalogue": float(np.median(price))})

# %% [markdown]
# ### The A/B test
#
# Half of the sessions see the old first page of eight, as logged. Half see ours: the best eight of all products that
# the old ranker brought up in the session, on whichever page. The simulator draws clicks and purchases, with the
# effect of each place.
#
# **Predict.** How many sessions until the difference in *purchases* is sure? And in *revenue*?

# %%
long = frames["test"].groupby("session_id").filter(lambda rows: len(rows) >= 16)  # two pages or more
sessions = long.drop_duplicates("session_id").head(60 if FAST else 400)
pages = [long.loc[long["session_id"] == one, "item_id"].to_numpy() for one in sessions["session_id"]]
asked = ecommerce.candidates(shop, sessions["user_id"])
own = ecommerce.score_candidates(model, data, asked, items)


# %%


def best_eight(score):
    """The best eight of what each session was offered, (sessions, 8)."""
    offered = np.stack([np.isin(items["item_id"], page) for page in pages])
    return ranking.top_k(np.where(offered, score, -1.0), 8)


arms = {"old": np.stack([page[:8] for page in pages]), "new": best_eight(own["purchase"] * own["click"])}
user, moment, surface = (sessions[name].to_numpy()[:, None] for name in ("user_id", "timestamp", "surface"))


def chances(lists):
    """True chance that a session buys at each place of its list, (sessions, 8)."""
    return np.prod(world.probabilities(user, lists, moment, places, surface), axis=0)


chance = {arm: chances(lists) for arm, lists in arms.items()}
expected = {arm: (chance[arm] * price[lists]).sum(1).mean() for arm, lists in arms.items()}
print("true EUR per session:", {arm: round(float(value), 3) for arm, value in expected.items()})


# %%
def run_test(n, seed, arms=arms, chance=chance):
    """Simulate n sessions, half each; return purchases and revenue per session, {arm: (n / 2, 2)}."""
    rng = np.random.default_rng(seed)
    outcome = {}
    for arm, lists in arms.items():
        at = rng.integers(0, len(lists), n // 2)
        bought = rng.random((n // 2, 8)) < chance[arm][at]
        outcome[arm] = np.stack([bought.sum(1), (bought * price[lists[at]]).sum(1)], axis=1)
    return outcome


# %%
def interval(outcome):
    """Difference new − old with its 95 % interval (Welch), for both outcomes: (2,), (2,)."""
    gap = outcome["new"].mean(0) - outcome["old"].mean(0)
    error = np.sqrt(sum(x.var(0, ddof=1) / len(x) for x in outcome.values()))
    return gap, 1.96 * error


n = 2_000
gap, half = interval(run_test(n, seed=0))
for what, g, h in zip(("purchases", "EUR"), gap, half, strict=True):
    word = "excludes zero" if abs(g) > h else "does not exclude zero"
    print(f"{what:9} per session: {g:+.4f} [{g - h:+.4f}, {g + h:+.4f}] from {n:,} sessions: {word}")

# %% [markdown]
# How many sessions are *enough*? For a chance of 80 % to see a true difference δ with spread σ an arm needs
# about $n = (1.96+0.84)^2 \cdot (\sigma_{old}^2+\sigma_{new}^2)/\delta^2$.

# %%
big = run_test(200_000 if not FAST else 20_000, seed=1)
true = {a: np.array([p.sum(1).mean(), (p * price[arms[a]]).sum(1).mean()]) for a, p in chance.items()}
delta = true["new"] - true["old"]
needed = (1.96 + 0.84) ** 2 * sum(x.var(0) for x in big.values()) / delta**2
for k, what in enumerate(("purchases", "EUR")):
    size = 2 * int(np.ceil(needed[k]))
    seen = [interval(run_test(size, seed)) for seed in range(10, 40 if FAST else 210)]
    power = np.mean([g[k] - h[k] > 0 for g, h in seen])
    print(f"{what:9} needs {size:,} sessions; of {len(seen)} simulated tests {power:.0%} saw the gain")

# %% [markdown]
# Revenue is noisier than purchases, since one dear product weighs as much as many cheap ones. Which of the two is
# easier to show depends on its δ too: read both lines. A difference as small as that between two good settings
# needs far more:

# %%
blend = own["purchase"] * own["click"] ** 0.25
odds = {"old": chances(best_eight(own["purchase"])), "new": chances(best_eight(blend))}
true_gap = odds["new"].sum(1).mean() - odds["old"].sum(1).mean()
variance = sum((p * (1 - p)).sum(1).mean() + p.sum(1).var() for p in odds.values())
size = 2 * (1.96 + 0.84) ** 2 * variance / true_gap**2
print("p(purchase) against p(purchase) · p(click)^0.25:")
print(f"true difference {true_gap:+.5f} purchases per session; needs about {size:,.0f} sessions")

# %% [markdown]
# ## 10 · Why this product?
#
# Take the first product of one list. The power fusion splits exactly: the log of the score is a sum, so each
# signal's part is $a_i\,(\log p_i - \text{mean over all products})$.

# %%
row, powers = 0, {"click": 0.5, "purchase": 1.0, "price": 0.5}
logs = {name: np.log(values[row].numpy().astype(float)) for name, values in inputs.items()}
total = sum(a * logs[name] for name, a in powers.items())
top = int(total.argmax())
by_signal = {name: float(a * (logs[name][top] - logs[name].mean())) for name, a in powers.items()}
print(
    items.loc[top, ["item_id", "sub_category", "brand", "price"]].to_dict(),
    "for user",
    int(people.iloc[row]["user_id"]),
)
print(
    {name: round(value, 2) for name, value in by_signal.items()},
    "sum",
    round(sum(by_signal.values()), 3),
    "=",
    round(total[top] - total.mean(), 3),
)

# %% [markdown]
# And inside p(purchase)? Walk from the *average product* to this one, and add up gradient × step along the way
# (integrated gradients, Sundararajan et al., ICML 2017). The parts must sum to the change of the logit.

# %%
mine = [t.to(device) for t in data.encoder.transform(served_evening.iloc[: len(items)])]
with torch.no_grad():
    u = model.user_vectors(*(t[:1] for t in mine))
    x = torch.cat([model.feature_vectors(part, *mine) for part in ("item", "pair")], dim=1)
n_item = model.features["item"].n_out
target, base = x[top], x.mean(0)


def purchase_logit(x):
    """x (n, item and pair features) → logit (n,), for this user."""
    v, users = model.item(x[:, :n_item]), u.expand(len(x), -1)
    return model.towers["purchase"](torch.cat([users, v, users * v, x[:, n_item:]], dim=-1)).squeeze(-1)


path = (base + torch.linspace(0, 1, 201, device=device)[:, None] * (target - base)).requires_grad_()
(slope,) = torch.autograd.grad(purchase_logit(path).sum(), path)
part = ((slope[1:] + slope[:-1]) / 2).mean(0) * (target - base)
with torch.no_grad():
    change = (purchase_logit(target[None]) - purchase_logit(base[None])).item()
print(f"parts sum to {part.sum().item():.4f}; the logit changes by {change:.4f}")

# %% tags=["plumbing"]
# @title Figure: why this product
labels = []
for numeric, categorical in (ecommerce.ITEM_COLUMNS, ecommerce.PAIR_COLUMNS):
    labels += [name for name in categorical for _ in range(4)] + list(numeric)  # an embedding is four numbers
by_feature = pd.Series(part.cpu().numpy(), index=labels).groupby(level=0).sum().sort_values()
fig = plots.figure(2.9)
ax = fig.subplots()
ax.barh(by_feature.index, by_feature, color=np.where(by_feature > 0, "#0072B2", "#D55E00"))
ax.set(
    xlabel="part of the purchase log-odds, against the average product",
    title=f"Mostly {by_feature.index[-1]}, then {by_feature.index[-2]}",
)
display(fig)
for side, at in (("for", -1), ("against", 0)):
    print(f"most {side} it: {by_feature.index[at]} {by_feature.iloc[at]:+.2f}")

# %% [markdown]
# This is what *interpretability* can mean here: each part has a name and they add up. It explains the *model*,
# not the world: a correlated feature may carry another one's part.

# %% [markdown]
# ## 11 · Serve it
#
# A trained model is a folder: weights as safetensors, everything else as JSON. Neither can run code. Saved and
# loaded, it must give the same scores.

# %%
import tempfile

from mtl_helpers.models import load_model, save_model, score_rows

shelf = Path(tempfile.mkdtemp()) / "shop_model"
save_model(shelf, model, data.encoder)
loaded, encoder = load_model(shelf)
before, after = predict(model, data.test), score_rows(loaded, encoder, frames["test"])
print({path.name.split(".")[-1]: f"{path.stat().st_size / 1e3:.0f} kB" for path in sorted(shelf.iterdir())})
print("same scores:", {name: bool(np.allclose(before[name], after[name], atol=1e-6)) for name in before})

# %% [markdown]
# `score_candidates` asks the loaded model about every product; the user-side answers are computed once a user.

# %%
served = replace(data, encoder=encoder)


def serve(person, k):
    """One user's list: the k best by click and purchase, price as a power."""
    one = ecommerce.score_candidates(loaded, served, person, items)
    signals = {name: torch.from_numpy(one[name][0]) for name in ("click", "purchase")}
    score = Fusion({"click": 0.5, "purchase": 1.0, "price": 0.5})(signals | {"price": torch.tensor(price)})
    best = ranking.top_k(score[None].numpy(), k)[0]
    return items.iloc[best].assign(**{name: values.numpy()[best] for name, values in signals.items()})


serve(served_evening.iloc[: len(items)], 5)[
    ["item_id", "category", "brand", "price", "click", "purchase"]
].round(4)

# %%
took = []
for request in range(30 if FAST else 300):
    start = time.perf_counter()
    at = request % len(people) * len(items)
    serve(served_evening.iloc[at : at + len(items)], 10)
    took.append(1000 * (time.perf_counter() - start))
middle, slow = np.median(took), np.quantile(took, 0.99)
print(f"{len(items)} products for one user: median {middle:.1f} ms, p99 {slow:.1f} ms, CPU, this run")

# %% [markdown]
# ## 12 · Where else?
#
# The article names six scenarios. Only tasks, labels and fusion change:
#
# | scenario | tasks | labels | rare? | fusion |
# |---|---|---|---|---|
# | personalisation | click, stay, topic | every visit | no | sum, tuned |
# | e-commerce | click, buy, next item | log, orders | buy | power with price |
# | news | click, read to the end, next topic | log, reading time | little | click · read, freshness |
# | social | like, comment, hide | actions | comment, hide | sum, hide negative: use 1 − p |
# | education | solve, finish, next topic | answers | drop-out | just below ability |
# | health | visit, adhere, adverse event | records, late | event | constraint, never a trade |

# %% [markdown]
# Take news. A click opens an article, the seconds on its page are reading time, and the next category is the next
# topic: the same log, read differently. Only the task list changes.

# %%
READ = 30  # seconds
news = (Task("click"), Task("read_long"), Task("next_category", kind="multiclass", n_classes=8))


def as_news(frame):
    """Reading is known for opened articles only; else it is missing, and masked."""
    long = (frame["dwell_seconds"] >= READ).astype(float)
    return frame.assign(read_long=long.where(frame["click"] == 1))


parts = {name: as_news(frame) for name, frame in frames.items()}
paper = prepare(parts, news, ecommerce.CASE_NUMERIC, ecommerce.CASE_CATEGORICAL, device=device)
known = paper.train.masks["read_long"]
print(f"{int(known.sum()):,} of {len(known):,} rows know whether the article was read")

# %%
torch.manual_seed(0)
newsroom = ecommerce.case_model(paper, items)
weights = {"click": 1.0, "read_long": 0.2, "next_category": 0.1}
fit(newsroom, paper.train, paper.valid, weights=weights, **settings)
pd.DataFrame(evaluate(newsroom, paper.test)).T.round(3)

# %%
signals = ecommerce.score_candidates(newsroom, paper, served_evening, items)
print({name: value.shape for name, value in signals.items()})
lists = ranking.top_k(signals["click"] * signals["read_long"], 10)
alone = ranking.top_k(signals["click"], 10)
overlap = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(lists, alone, strict=True)])
print(f"p(click) · p(read | click): {overlap:.0%} of a list is that of p(click) alone.")

# %% [markdown]
# `read_long` is trained on clicked rows only: section 5 says what that means.
#
# ## 13 · Bad input, answered clearly
#
# Every line below is a mistake somebody will make. Each must be refused in words.

# %%
from mtl_helpers.losses import check_weights

small = scores["purchase"][:, :5]
attempts = {
    "negative price": lambda: ranking.expected_revenue(lists, truth["purchase"], -price),
    "5 products, k = 10": lambda: ranking.top_k(small, 10),
    "a weight below 0": lambda: check_weights({"buy": -1.0, "next": 1.0}, ["buy", "next"]),
    "a weight of NaN": lambda: check_weights({"buy": float("nan"), "next": 1.0}, ["buy", "next"]),
    "all weights 0": lambda: check_weights({"buy": 0.0, "next": 0.0}, ["buy", "next"]),
    "fusion exponent below 0": lambda: Fusion({"purchase": -1.0}),
    "a fusion target without a yes": lambda: LearnedFusion(["click"]).fit(
        valid, torch.zeros(len(valid["click"]))
    ),
}

# %%
for what, attempt in attempts.items():
    try:
        attempt()
        print(f"{what}: ACCEPTED")
    except (ValueError, KeyError) as error:
        print(f"{what}: {error.args[0]}")
silent = data.train.select(["purchase"]).take(
    (data.train.labels["purchase"] == 0).nonzero().squeeze(-1)[:500]
)
found = evaluate(ecommerce.case_model(data, items, [Task("purchase")]).to(device), silent)["purchase"]
print("a task without a positive label: AUC is", found["auc"], "(undefined, not a guess)")

# %% [markdown]
# ## 14 · Exercises
#
# Replace the dots, run the cell, then the check below it.

# %% [markdown]
# ### Exercise one: recall and coverage


# %%
def recall_and_coverage(lists, bought, n_items):
    """lists (U, k): each user's items, an array. bought: one set of items for each of the U users.

    Returns mean recall over the users who bought something, and the share of the n_items that stands in any list.
    Example: lists [[0, 1], [0, 2]], bought [{0, 5}, {2}], 10 items give (0.75, 0.3).
    """
    return ...


# %%
from mtl_helpers.check import check, hint

check("05.recall_and_coverage", recall_and_coverage)

# %% [markdown]
# Stuck? Hints come in three levels. The commented answer is at `mtl_helpers.check.solution("05.recall_and_coverage")`.
# Both work for the exercises below too.

# %%
hint("05.recall_and_coverage", 1)

# %% [markdown]
# ### Exercise two: fusion by powers


# %%
def power_fusion(probabilities, exponents):
    """probabilities {task: (n,) tensor}, exponents {task: number}. Returns the fused score (n,): a product of powers.

    A task without an exponent does not count. Example: click 0.5 with exponent 2 and purchase 0.1 with exponent 1
    give 0.025.
    """
    return ...


# %%
check("05.power_fusion", power_fusion)

# %% [markdown]
# ### Exercise three: undo the down-sampling


# %%
def undo_downsampling(p, keep):
    """p (n,): probabilities below 1 of a model that was trained on a share `keep` of the negatives, an array.

    Returns the probabilities for the whole log (n,). Example: p = 0.5 and keep = 0.1 give 1 / 11.
    """
    return ...


# %%
check("05.undo_downsampling", undo_downsampling)

# %% [markdown]
# ## Self-check
#
# **1.** A list by p(purchase) · price is by definition the list of highest expected revenue. Why may another
# exponent earn more?
#
# <details><summary>Answer</summary>Only the *true* probability makes it the best. With an estimate, products whose
# probability is overrated and whose price is high gather at the top. Section four compares the exponents.</details>
#
# **2.** Your colleague reports a better AUC after down-sampling, and the revenue of the fused list falls. A
# contradiction?
#
# <details><summary>Answer</summary>No. AUC reads the order; a sum or a product with price reads the size. Undo the
# down-sampling first: section six prints what that mends.</details>
#
# **3.** ESMM trains on all impressions, so its conversion is unbiased. True?
#
# <details><summary>Answer</summary>No. It trains where it serves, but p(purchase) / p(click) is the conversion of
# those who click. What the features do not show and what drives both stays in it. Section five measures it.</details>
#
# ## Three findings

# %%
one = gaps["purchases: buy · price − buy alone"], gaps["EUR: buy · price − buy alone"]
two = gaps["purchases per 1,000: best category_accuracy − best purchase_auc"]
three = mean_interval(over_shops("funnel", "ratio")["clicks only"] - 1)
findings = [
    ("1. rank by p · price instead of p, purchases per 1,000 impressions", one[0], 1),
    ("   the same, EUR per 1,000 impressions", one[1], 0),
    ("2. choose task weights by category accuracy, purchases per 1,000", two, 1),
    ("3. conversion learned on clicks, relative error over all impressions", three, 2),
]
for what, gap, digits in findings:
    low, mean, high = (f"{x:+.{digits}f}" for x in (gap.low, gap.mean, gap.high))
    print(f"{what:69} {mean} [{low}, {high}], {gap.n} shops")
if FAST:
    print("FAST=1: the live cells were short runs. Their conclusions need the full run.")

# %% [markdown]
# ## Summary
#
# - Ask of each task what it may know. A favourite category has no candidate, and a next item is a dot product.
# - Fusion is where price, calibration and variety meet. In the stored shops it decided more than the task weights.
# - Between the log and the truth stand the funnel, rarity and position. Each needs its own correction, and some
#   bias no log can show.
#
# **What the toy hides.** Stock never ends, and our lists were judged one session at a time. *In production* what a
# list shows changes what users want, and today's list is tomorrow's training data: keep some exploration, and keep
# the A/B test.

# %% [markdown]
# ## References
#
# - X. Ma et al., *Entire Space Multi-Task Model*, SIGIR 2018: section 2, the two losses.
# - X. Yi et al., *Sampling-Bias-Corrected Neural Modeling for Large Corpus Item Recommendations*, RecSys 2019.
# - X. He et al., *Practical Lessons from Predicting Clicks on Ads at Facebook*, ADKDD 2014: section 6, re-calibration.
# - T.-Y. Lin et al., *Focal Loss for Dense Object Detection*, ICCV 2017, eq. 4.
# - J. Carbonell, J. Goldstein, *The Use of MMR*, SIGIR 1998. H. Guo et al., *PAL: a Position-bias Aware Learning
#   Framework*, RecSys 2019.
# - M. Sundararajan, A. Taly, Q. Yan, *Axiomatic Attribution for Deep Networks*, ICML 2017, section 3.
#
# **Next:** [06_sharing_architectures](06_sharing_architectures.ipynb): who shares what, and gates you can read.
