# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # 05 · The e-commerce case: three tasks, one page, and what it earns
#
# **Promise.** When you leave this page you can take a shop's raw log to a ranked page of products, steer it like the
# owner, and say in euros and with an interval what each decision did.
#
# {{colab_badge}} · [glossary](glossary.md) · about 90 minutes to read, 1½ minutes to run on two CPU cores (no GPU needed) · builds on
# notebook 04

# %%
# {{setup}}

# %% tags=["plumbing"]
# @title Imports, and where you are in the course
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from IPython.display import HTML, Markdown, display
from torch import nn

import mtl_helpers
from mtl_helpers import metrics, ranking
from mtl_helpers.data import MultiTaskDataset, Task, load_shop, make_world, shop_frame
from mtl_helpers.data.shop import pictures
from mtl_helpers.metrics import holm, mean_interval
from mtl_helpers.models import Fusion, SharedBottom, load_model, mlp, save_model, score_rows
from mtl_helpers.models import case as ecommerce
from mtl_helpers.models.fusion import LearnedFusion
from mtl_helpers.sweep import simplex_grid, sweep
from mtl_helpers.training import evaluate, fit, predict
from mtl_helpers.weighting import constant_losses
from mtl_helpers.widgets import Shopfront, course_map, draw, guess, shop_dashboard
from mtl_helpers.widgets import figures as plots

torch.set_num_threads(1)  # models this small need no more, and more threads stumble on a busy machine
COLORS = {n: plots.task_style(n)["color"] for n in ("click", "purchase", "next_category", "next_item")}
INK, GREY = plots.INK, plots.GREY


def number(value, digits=1):
    return f"{value:+.{digits}f}".replace("-", "−")


def says(interval, up="better", down="worse"):
    """What an interval of differences allows us to say."""
    return (up if interval.mean > 0 else down) if interval.excludes_zero else "a tie"


def percent(i):
    """An interval of log-ratios in per cent."""
    low, mean, high = (100 * np.expm1(x) for x in (i.low, i.mean, i.high))
    return f"{number(mean)} % [{number(low)}, {number(high)}]"


def span(i, digits=3):
    return f"{number(i.mean, digits)} [{number(i.low, digits)}, {number(i.high, digits)}]"


course_map("05")

# %% tags=["plumbing"]
# @title Stored runs: eight whole new shops, each contestant at the setting that two others chose
folder = Path(mtl_helpers.__file__).parents[1] / "notebooks" / "results"
table_ = pd.read_csv(folder / "05_case.csv", comment="#")
tuning, study = table_[table_["shop"] < 100], table_[table_["shop"] >= 100]


def of(part, name, measure, rows=study):
    """One value a shop."""
    found = rows[(rows["part"] == part) & (rows["name"] == name) & (rows["measure"] == measure)]
    return found.set_index("shop")["value"].sort_index()


def tuned(name):
    """Learning rate and decay."""
    mean = tuning[tuning["part"] == f"tune {name}"].groupby("name")["value"].mean()
    return tuple(map(float, mean.idxmax().split()))


def page(name, measure="revenue"):
    """What the pages of a fusion are worth, one value a shop: those of the model with equal task weights."""
    return of("weights", name if name in FLOORS else f"weights 0, {name}", measure)


def log_gap(a, b, measure="revenue"):
    return np.log(page(a, measure)) - np.log(page(b, measure))


FLOORS = ("chance", "popularity", "last week", "truth: buy", "truth: buy · price")
N_SHOPS = study["shop"].nunique()

# %% [markdown]
# ## The question of this page
#
# A shop's page has eight places. A model says how likely each of a thousand products is to end in a {{click}} and in a
# {{purchase}}. The owner wants money. So she ranks by **p({{purchase}}) · price** instead of p({{purchase}}): by
# definition the expected revenue. What does it bring?

# %%
g_price = guess("EUR, by p(purchase) · price against p(purchase)?", -50, 150, 1, "%")
g_price

# %% tags=["plumbing"]
# @title The answer: what pages sell and earn
shown = {
    "chance": ("X", GREY),
    "popularity": ("P", GREY),
    "click": ("o", COLORS["click"]),
    "buy": ("s", COLORS["purchase"]),
    "click · buy": ("D", INK),
    "buy · √price": ("^", "#8C510A"),
    "buy · price": ("v", "#8C510A"),
    "click · buy · √price": ("^", "#332288"),
    "click · buy · price": ("v", "#332288"),
    "truth: buy": ("*", "#117733"),
    "truth: buy · price": ("p", "#117733"),
}
fig = plots.figure(3.6)
ax = fig.subplots()
for name, (marker, color) in shown.items():
    x, y = (np.exp(mean_interval(np.log(page(name, what))).mean) for what in ("purchases", "revenue"))
    low_high = mean_interval(np.log(page(name)))
    ax.plot([x, x], np.exp([low_high.low, low_high.high]), color=color, lw=1.2, alpha=0.6)
    ax.plot(x, y, marker, color=color, ms=9, mec="white", lw=0, label=name)
ax.set(xscale="log", yscale="log", ylabel="EUR per 1,000 shown")
ax.set_xlabel("purchases per 1,000 shown (true expectation, mean over shops)")
ax.minorticks_off()
for put, ticks in ((ax.set_xticks, (2, 5, 10, 20, 50)), (ax.set_yticks, (100, 200, 500, 1000, 2000))):
    put(ticks, [f"{tick:,}" for tick in ticks])
best = {
    what: max(list(shown)[:-2], key=lambda n: np.log(page(n, what)).mean())
    for what in ("purchases", "revenue")
}
ax.set_title(
    f"Highest means: {best['purchases']} sells, {best['revenue']} earns; nobody comes near the truth"
)
fig.legend(loc="outside right center", fontsize=8)
main, sold = (mean_interval(log_gap("buy · price", "buy", what)) for what in ("revenue", "purchases"))
display(fig, g_price.answer(100 * np.expm1(main.mean), digits=0))
Markdown(
    f"**The primary contrast**, written down before the study ran: EUR of p(purchase) · price against p(purchase), "
    f"**{percent(main)}** over {main.n} shops: {says(main)}. The same pages sell {percent(sold)} purchases. "
    + (
        "The owner gets her money from fewer buyers of dearer things."
        if main.low > 0 > sold.high
        else "Price moves what is shown, and one of the two figures pays for the other."
    )
)

# %% [markdown]
# *How it was run.* `notebooks/studies/nb05_tables.py`: eight shops, all new in each (users, tastes, products, log), and
# two more that chose every contestant's learning rate and decay (a few at the edge of their grid). Pages for 300 users drawn from all of them, out of the
# whole catalogue, on the evening after the log. What a page is worth is exact: the simulator knows the probability of
# each user, product, moment **and place**. Dots and bars are means and 95 % intervals over shops. The rest of this
# notebook builds the model, step by step, and takes such questions apart. All other contrasts are exploratory; a filled
# star means that one survives Holm's correction within its figure.

# %% [markdown]
# ## 1 · From the log to tasks
#
# The owner asks the article's three questions: will this user **buy** this product? Which **category** does the user
# favour? Which **other products** may the user like? Which of them is about a product, and which about the user alone?

# %%
shop = load_shop()
frames = ecommerce.case_frames(shop)
items = ecommerce.item_table(shop, frames["train"])
data = ecommerce.case_data(frames, len(items), device)
constants = constant_losses(data.train)  # the loss of always saying the same

# %% tags=["plumbing"]
# @title What there is to learn from
TASKS = list(constants)
train, test = frames["train"], frames["test"]
rows = {
    "click": int(train["click"].sum()),
    "purchase": int(train["purchase"].sum()),
    "next_category": int(train["next_category"].notna().sum()),
    "next_item": int(train["next_item"].notna().sum()),
}
fig = plots.figure(2.1)
ax, right = fig.subplots(1, 2, sharey=True)
ax.barh(TASKS, [rows[name] for name in TASKS], color=[COLORS[name] for name in TASKS], height=0.6)
ax.set(
    xlabel="yes labels, or rows with a known class",
    title=f"{rows['purchase']} purchases in {len(train):,} rows",
)
right.barh(TASKS, [constants[name] for name in TASKS], color=[COLORS[name] for name in TASKS], height=0.6)
plots.value_labels(ax, ",.0f")
plots.value_labels(right, ".2f")
loud, quiet = max(constants, key=constants.get), min(constants, key=constants.get)
right.set(xlabel="loss of the best constant (nats)", ylim=(3.5, -0.5))
right.set_title(f"{loud} is {constants[loud] / constants[quiet]:.0f} times as loud as {quiet}")
fig

# %% [markdown]
# The case takes the latest 80,000 rows of the log; what its features count goes back to the first day. {{next_category}}
# and `next_item` are those of the user's *next click*, asked once a session: a handful of {{purchase}}s cannot teach
# hundreds of classes. {{click}} is a helper nobody asked for: every purchase starts with one.
#
# A wrong join breaks a recommender silently, and a label that looks ahead must stop at the end of its part.

# %% tags=["plumbing"]
# @title The first check is on the joins
whole = pd.concat(frames.values())
checks = {
    "one row an impression": whole["impression_id"].is_unique,
    "users and items known": bool(whole[["age_group", "price"]].notna().all(axis=None)),
}
for part, later in (("train", "valid"), ("valid", "test")):
    inside = frames[part]["next_click_time"].max() < frames[later]["timestamp"].min()
    checks[f"no label of {part} is decided after its end"] = bool(inside)
once = shop.impressions.drop_duplicates()
broken = {
    "a user that no table knows": replace(shop, impressions=once.assign(user_id=once["user_id"] + 90_000)),
    "a price below 0": replace(shop, items=shop.items.assign(price=-5.0)),
}
for what, log in broken.items():
    try:
        shop_frame(log)
        checks[f"{what} is refused"] = False
    except ValueError as error:
        checks[f'{what} is refused: "{str(error)[:60]}…"'] = True
plots.table(pd.DataFrame(checks.items(), columns=["check", "holds"]))

# %% [markdown]
# ### A wrong turn: everything goes into one bottom
#
# The shared bottom of notebook 02 reads user, item and position, then answers all questions. Ask it for one user's
# favourite category, once for each product of the shop. How many different answers do you get?

# %%
g_answers = guess("Answers about one user's favourite, out of 1,000?", 1, 1000, 1)
g_answers

# %%
torch.manual_seed(0)
naive = SharedBottom(data.schema, data.tasks[:3], embedding_dim=4)
fit(naive, data.train, data.valid, epochs=2, lr=3e-3, weight_decay=0.1, progress=False)
people = np.sort(test["user_id"].unique())
people = np.random.default_rng(0).choice(people, 40 if FAST else 200, replace=False)
evening = ecommerce.candidates(shop, people)  # each of them with every product
rows = data.encoder.transform(evening.head(len(items)))
one = MultiTaskDataset(*rows, {}, {}, data.tasks[:3])
answers = predict(naive, one.to(device))["next_category"]

# %% tags=["plumbing"]
# @title How many answers
best_of = int(answers.mean(0).argmax())
different = len(answers.round(decimals=4).unique(dim=0))
display(g_answers.answer(different, digits=0))
low, high = answers[:, best_of].min(), answers[:, best_of].max()
Markdown(
    f"The chance that this user's next click is in one category runs from {low:.2f} to {high:.2f}, depending on a product that "
    "is no part of the question."
)

# %% [markdown]
# A user's favourite cannot depend on the candidate; while serving there is no candidate yet. So the user and the moment
# get a bottom of their own, *u*, and an item gets one, *v*:

# %%
draw("two_towers")

# %% [markdown]
# | task | reads |
# |---|---|
# | {{click}}, {{purchase}} | u, v, u·v, and what belongs to the pair (position, past rates, what the user saw and clicked) |
# | {{next_category}} | u |
# | next item | u · v for every v of the catalogue |


# %%
class TinyCase(nn.Module):
    """User, item and pair features in, logits of four tasks out."""

    def __init__(self, n_user, n_item, n_pair, width=32):
        super().__init__()
        self.user = mlp(n_user, (2 * width, width))
        self.item = mlp(n_item, (width,)).append(nn.Linear(width, width))

        def tower():
            first = mlp(3 * width + n_pair, (width // 2,))
            return first.append(nn.Linear(width // 2, 1))

        self.click, self.purchase = tower(), tower()
        self.category = nn.Linear(width, 8)

    def forward(self, user, item, pair, catalogue, bias):
        u, v, all_v = self.user(user), self.item(item), self.item(catalogue)
        both = torch.cat([u, v, u * v, pair], dim=-1)
        found = {"click": self.click(both), "purchase": self.purchase(both)}
        found = {name: logits.squeeze(-1) for name, logits in found.items()}
        found["next_category"] = self.category(u)
        found["next_item"] = u @ all_v.T + bias
        return found


# %% tags=["plumbing"]
# @title `CaseModel` is the same with embeddings in front: with the same weights both agree
torch.manual_seed(0)
model = ecommerce.case_model(data, items).to(device)
five = (data.train.numeric[:5], data.train.categorical[:5])
parts = [model.feature_vectors(part, *five) for part in ("user", "item", "pair")]
tiny = TinyCase(*(part.shape[-1] for part in parts)).to(device)
tiny.user, tiny.item, tiny.category = model.user, model.item, model.towers["next_category"]
tiny.click, tiny.purchase = model.towers["click"], model.towers["purchase"]
ours = tiny(*parts, model.features["item"](model.item_numeric, model.item_codes), model.bias)
told = [
    (name, str(tuple(z.shape)), bool((z - ours[name]).abs().max() < 1e-5)) for name, z in model(*five).items()
]
plots.table(pd.DataFrame(told, columns=["task", "logits of five rows", "by hand = CaseModel"]))

# %% [markdown]
# ### Train it
#
# Each loss is divided by that of its best constant, so that a share of the weights means the same for all. Learning rate,
# decay and shares were chosen on two other shops, by validation alone. With AdamW only the proportions of the weights
# count, no common factor.

# %%
THREE = ("purchase", "next_category", "next_item")
GRID = [dict.fromkeys(THREE, 1 / 3), *simplex_grid(THREE, 3, lowest=0.02)]
named = [f"weights {row}" for row in range(len(GRID))]
asked = [of("weights", name, "valid purchase_auc", tuning).mean() for name in named]
SHARES = {"click": 1.0} | GRID[int(np.argmax(asked))]
WEIGHTS = {name: share / constants[name] for name, share in SHARES.items()}
MONITOR = {name: 1 / loss for name, loss in constants.items()}
lr, decay = tuned("case")
EPOCHS = 2 if FAST else 12
SETTINGS = {"lr": lr, "weight_decay": decay, "epochs": EPOCHS, "progress": False}

# %%
torch.manual_seed(0)
model = ecommerce.case_model(data, items)
how = {"weights": WEIGHTS, "monitor": MONITOR, **SETTINGS}
history = fit(model, data.train, data.valid, **how)

# %% tags=["plumbing"]
# @title Learning curves
kept = {name: history.curve(name).idxmin() for name in TASKS}
plots.learning_curves(
    history,
    title=f"One epoch has to suit all: the best ones run from {min(kept.values())} to {max(kept.values())}",
)

# %% [markdown]
# ### What did the tasks learn?
#
# One shop and a few hundred rows prove little. The eight shops of the study, with floors that know nothing of the user,
# and a second wrong turn: a contestant that reads the `user_id` as well.

# %% tags=["plumbing"]
# @title Floors, with ids, without, and the truth
CASE = "weights 0"
measures = {
    "click_auc": ("AUC of click", "popularity", COLORS["click"]),
    "purchase_auc": ("AUC of purchase", "popularity", COLORS["purchase"]),
    "category_accuracy": ("accuracy of next category", "most frequent", COLORS["next_category"]),
    "recall": ("recall@10 of next item", "popularity", COLORS["next_item"]),
}
fig, ids, floors = plots.figure(3.4), {}, {}
for ax, (measure, (title, floor, color)) in zip(fig.subplots(2, 2).flat, measures.items(), strict=True):
    values = {floor: of("tasks", floor, measure), "with user ids": of("tasks", "user ids", measure)}
    values["without ids"] = of("weights", CASE, f"test {measure}")
    if measure.endswith("auc"):
        values["truth"] = of("tasks", "truth", measure)
    styles = {"without ids": {"color": color, "marker": "o"}}
    plots.interval_rows(
        ax, {n: mean_interval(v) for n, v in values.items()}, styles=styles, zero=False, digits=3
    )
    ax.set_title(title)
    ids[title] = values["with user ids"] - values["without ids"]
    floors[title] = values["without ids"] - values[floor]
p_ids, p_floor = holm(ids), holm(floors)
fig.suptitle(
    f"{sum(p < 0.05 for p in p_floor.values())} of 4 tasks stand above their floor", x=0.01, ha="left"
)
display(fig)
hurt = [t for t, p in p_ids.items() if p < 0.05 and ids[t].mean() < 0]
helped = [t for t, p in p_ids.items() if p < 0.05 and ids[t].mean() > 0]
per_user = train.groupby("user_id")["click"].sum()
Markdown(
    f"User ids {'hurt ' + ', '.join(hurt) if hurt else 'hurt nothing that stands'}"
    f"{' and help ' + ', '.join(helped) if helped else ' and help nothing that stands'} (Holm over four). The median user of "
    f"the training log has {per_user.median():.0f} clicks: a vector for each is soon learned by heart. Where ids do not help, "
    "leave them out: the model is smaller, and a new user is no special case."
)

# %% [markdown]
# ## 2 · Next items: full or sampled softmax?
#
# A softmax over the catalogue needs a logit for every item. With millions of items nobody computes that: one *samples*
# some negatives. Items drawn by popularity *q* are pushed down as often as they are drawn, unless each logit is corrected
# by $-\log q$ (Yi et al., RecSys 2019). By hand, on 256 sessions:

# %%
rows = data.train.take(data.train.masks["next_item"].nonzero().squeeze(-1)[:256])
clicks = torch.tensor(items["clicks"].to_numpy(), dtype=torch.float32) + 0.5
q = (clicks / clicks.sum()).to(device)
drawn = torch.multinomial(q, 50, replacement=True)
wanted = rows.labels["next_item"]
with torch.no_grad():
    u, v = model.user_vectors(rows.numeric, rows.categorical), model.item_vectors()
full = u @ v.T + model.bias  # (256, items)
corrected = full - q.log()
sampled = torch.cat([corrected.gather(1, wanted[:, None]), corrected[:, drawn]], dim=1)
hit = drawn[None] == wanted[:, None]  # what was wanted is no negative
sampled[:, 1:] = sampled[:, 1:].masked_fill(hit, -1e9)
loss = F.cross_entropy(sampled, torch.zeros_like(wanted))  # the true item is class 0

# %% [markdown]
# That loss cannot be compared with the full one (fewer rivals), only what each teaches. Next items alone, same model, each
# at its own settings:

# %% tags=["plumbing"]
# @title Three softmaxes
kinds = {"full": "full softmax", "sampled": "sampled", "sampled, corrected": "sampled, corrected"}
gaps = {}
recalls = {label: of("tasks", name, "recall") for name, label in kinds.items()}
recalls = {"popularity": of("tasks", "popularity", "recall")} | recalls
seconds = {label: of("tasks", name, "seconds_per_epoch").mean() for name, label in kinds.items()}
fig = plots.figure(2.3)
ax, right = fig.subplots(1, 2, width_ratios=(2, 1))
plots.interval_rows(ax, recalls, zero=False, digits=3)
ax.set(xlabel="recall@10 on test rows (each dot a shop)")
pairs = {
    "corrected − plain sampling": recalls["sampled, corrected"] - recalls["sampled"],
    "corrected − full": recalls["sampled, corrected"] - recalls["full softmax"],
    "plain sampling − full": recalls["sampled"] - recalls["full softmax"],
}
p, gap = holm(pairs), {name: mean_interval(values) for name, values in pairs.items()}
top = max(kinds.values(), key=lambda label: recalls[label].mean())
ax.set_title(f"Highest mean: {top}")
right.barh(list(seconds), list(seconds.values()), color=GREY, height=0.55)
right.set(xlabel="seconds an epoch, one core", ylim=(2.5, -1.5), yticks=[])
plots.value_labels(right, ".2f")
display(fig)
Markdown(
    "\n".join(f"- {name}: {span(gap[name])}, {says(gap[name])}, Holm p = {p[name]:.2g};" for name in pairs)
    + f"\n\nSampling takes {seconds['sampled'] / seconds['full softmax']:.2f} of the time of the full softmax. With 1,000 "
    "items it saves little; it is for catalogues that do not fit. Judge the correction by what came out here, not by its name."
)

# %% [markdown]
# At serving, the list is the largest dot products: *retrieval*. For one user:


# %%
def retrieve(part, k):
    """The k items with the largest u · v + b of each row, (n, k)."""
    with torch.no_grad():
        u = model.user_vectors(part.numeric, part.categorical)
        return (u @ model.item_vectors().T + model.bias).topk(k).indices.cpu().numpy()


found = retrieve(data.test.take(slice(0, 1)), 8)[0]

# %% tags=["plumbing"]
# @title The page
plots.table(items.loc[found, ["title", "sub_category", "price"]].reset_index(drop=True), digits=2)

# %% [markdown]
# ## 3 · How good is a page?
#
# Two kinds of metric. Some look at *rows*: is a yes scored above a no, does ten per cent mean ten per cent? Others look
# at *lists*. Each of the latter gets a cell; beside it stands the check against `mtl_helpers.ranking` (and scikit-learn,
# where it has one). We score every product for the evening after the log. The simulator knows the true chances: *relevant*
# are a user's twenty best.

# %%
K = 8
world = make_world(shop.config)
truth = ecommerce.true_values(world, evening)
moment = [evening[name].iloc[0] for name in ("user_id", "item_id", "timestamp")]
at_place = world.probabilities(*moment, np.arange(1, K + 1))[0]
factors = at_place / at_place[0]  # what each place leaves of the probability
scores = ecommerce.score_candidates(model, data, evening, items)
price, category = items["price"].to_numpy(), items["category"].to_numpy()
liked = truth["purchase"] >= np.sort(truth["purchase"], axis=1)[:, [-20]]
lists = ranking.top_k(scores["purchase"], K)
hits = np.take_along_axis(liked, lists, axis=1) * 1.0  # (users, 8): 1 where relevant

# %% [markdown]
# **NDCG**: what stands low counts less, by $1/\log_2(\text{place}+1)$; divided by the best that any list could reach.

# %%
discount = 1 / np.log2(np.arange(2, K + 2))
ndcg = hits @ discount / discount.sum()  # twenty are relevant: the best is all ones
assert np.allclose(ndcg, ranking.ndcg_at_k(liked, lists))

# %% [markdown]
# **MAP**: at each hit, what share of the list so far was right? The mean of these, divided by the hits there could be.

# %%
precision_so_far = hits.cumsum(1) / np.arange(1, K + 1)
average_precision = (precision_so_far * hits).sum(1) / K
assert np.allclose(average_precision, ranking.average_precision_at_k(liked, lists))

# %% [markdown]
# **Gini** of exposure: sort the products by how often they are shown; 0 when all are shown alike, near 1 when one gets
# everything. **Novelty**: how many bits of surprise a product is, if it is drawn by popularity.

# %%
exposure = np.sort(ranking.exposure(lists, len(items), factors))
place = np.arange(1, len(items) + 1)
gini = ((2 * place - len(items) - 1) * exposure).sum() / (len(items) * exposure.sum())
assert np.isclose(gini, ranking.gini(exposure))

counts = items["clicks"].to_numpy()
bits = -np.log2((counts + 1) / (counts.sum() + len(items)))
assert np.allclose(bits[lists].mean(1), ranking.novelty(lists, counts))

# %% [markdown]
# **ECE**, the expected calibration error, is about rows: sort by what is said, cut into ten bins of equal count, compare
# the mean that is said with the share that happened.

# %%
said = predict(model, data.test)["purchase"].numpy()
bought = test["purchase"].to_numpy()
bins = np.array_split(np.argsort(said, kind="stable"), 10)
gaps_ = [len(rows) * abs(said[rows].mean() - bought[rows].mean()) for rows in bins]
ece = sum(gaps_) / len(said)
assert np.isclose(ece, metrics.calibration_error(bought, said))

# %% [markdown]
# An ECE above 0 proves nothing: even the *true* probabilities have one, since {{purchase}}s are drawn. So every ECE needs
# its **noise floor**: draw labels from what is said, a few hundred times, and see how far off a perfect model would be.

# %%
rng = np.random.default_rng(0)
floor = [
    metrics.calibration_error((rng.random(len(said)) < said).astype(float), said)
    for _ in range(30 if FAST else 200)
]

# %% tags=["plumbing"]
# @title Calibration, with its noise floor; and scikit-learn's word on three metrics
from sklearn.metrics import average_precision_score, ndcg_score, roc_auc_score

curve = metrics.reliability_curve(bought, said, bins=8)
fig = plots.figure(3.0)
ax, right = fig.subplots(1, 2)
high = 1.1 * max(curve["high"].max(), curve["predicted"].max())
ax.plot([0, high], [0, high], color=GREY, lw=1)
error = [curve["observed"] - curve["low"], curve["high"] - curve["observed"]]
ax.errorbar(curve["predicted"], curve["observed"], error, fmt="s", color=COLORS["purchase"], capsize=3)
inside = ((curve["low"] <= curve["predicted"]) & (curve["predicted"] <= curve["high"])).sum()
ax.set(xlabel="predicted p(purchase)", ylabel="observed share", xlim=(0, high), ylim=(0, high))
ax.set_title(f"{inside} of {len(curve)} bins agree with the diagonal")
right.hist(1e4 * np.array(floor), bins=25, color="#BBBBBB")
right.axvline(1e4 * ece, color=COLORS["purchase"], lw=2.5)
above = float(np.mean(np.array(floor) >= ece))
right.set(xlabel="ECE × 10,000: grey, of a perfect model; line, ours", yticks=[])
right.set_title("Above the floor: badly calibrated" if above < 0.05 else "Within the floor: no fault to see")
display(fig)
page_scores = np.take_along_axis(scores["purchase"], lists, axis=1)
ours = ranking.ndcg_at_k(truth["purchase"], ranking.top_k(scores["purchase"], len(items)))
theirs = ndcg_score(truth["purchase"], scores["purchase"], ignore_ties=True)
full_map = ranking.average_precision_at_k(liked[:9], ranking.top_k(scores["purchase"][:9], len(items)))
their_map = [average_precision_score(liked[n], scores["purchase"][n]) for n in range(9)]
agree = [
    ("AUC", metrics.auc(bought, said), roc_auc_score(bought, said)),
    ("NDCG, whole catalogue", ours.mean(), theirs),
    ("average precision, whole catalogue", full_map.mean(), np.mean(their_map)),
]
plots.table(pd.DataFrame(agree, columns=["metric", "mtl_helpers", "scikit-learn"]), digits=4)

# %% [markdown]
# Now the board. EUR and {{purchase}}s are true expectations per thousand impressions; the bars are a bootstrap over users,
# for a few who want dear things make a mean of revenue skewed.


# %%
def worth(lists, prices, chance="purchase"):
    """True expected worth of each user's page, per 1,000 impressions."""
    return ranking.expected_revenue(lists, truth[chance], prices, factors)


def bootstrap(values, draws=500):
    """95 % interval of a mean, users drawn with replacement."""
    rng = np.random.default_rng(0)
    means = [rng.choice(values, len(values)).mean() for _ in range(draws)]
    return np.quantile(means, [0.025, 0.975])


# %% tags=["plumbing"]
# @title The board
U = len(people)
boards = {
    "chance": np.random.default_rng(0).random((U, len(items))),
    "popularity": evening["item_past_ctr"].to_numpy().reshape(U, -1),
    "favourite category": scores["category"] + 1e-6 * scores["next"],
    "next items": scores["next"],
    "p(click)": scores["click"],
    "p(purchase)": scores["purchase"],
    "truth": truth["purchase"],
}
ones, told, spread = np.ones(len(items)), {}, {}
for name, s in boards.items():
    of_users = ranking.top_k(s, K)
    euros = worth(of_users, price)
    spread[name] = euros.mean(), *bootstrap(euros)
    told[name] = {
        "NDCG": ranking.user_mean(ranking.ndcg_at_k(liked, of_users)),
        "MAP": ranking.user_mean(ranking.average_precision_at_k(liked, of_users)),
        "catalogue": ranking.catalogue_coverage(of_users, len(items)),
        "categories": ranking.category_coverage(of_users, category).mean(),
        "novelty, bits": ranking.novelty(of_users, counts).mean(),
        "Gini": ranking.gini(ranking.exposure(of_users, len(items), factors)),
        "purchases": worth(of_users, ones).mean(),
    }
fig = plots.figure(2.4)
ax = fig.subplots()
for row, (mean, low, high) in enumerate(spread.values()):
    ax.plot([low, high], [row, row], color=INK, lw=2.4)
    ax.plot(mean, row, "o", color=INK, ms=8, mec="white")
ax.set_yticks(range(len(spread)), list(spread))
ax.set(xscale="log", xlabel="EUR per 1,000 shown", ylim=(len(spread) - 0.5, -0.5))
ax.set_xticks([50, 100, 200, 500, 1000, 2000], ["50", "100", "200", "500", "1,000", "2,000"])
ax.minorticks_off()
first = max(list(spread)[:-1], key=lambda name: spread[name][0])
ax.set_title(
    f"{first} earns most here; the truth would bring {spread['truth'][0] / spread[first][0]:.0f} times as much"
)
display(fig)
plots.table(
    pd.DataFrame(told).T.rename_axis("ranked by"), best={"NDCG": "max", "MAP": "max", "purchases": "max"}
)

# %% tags=["plumbing"]
# @title One user's page, by three of them
sheet = pictures(shop)
PICTURES = sheet.reshape(-1, 32, 40, 32, 3).swapaxes(1, 2).reshape(-1, 32, 32, 3)[: len(items)]


def draw_page(lists, title):
    """Pages of products: a row of pictures for each name."""
    fig = plots.figure(0.35 + 1.02 * len(lists))
    axes = fig.subplots(len(lists), 8, squeeze=False)
    for (name, page_), row in zip(lists.items(), axes, strict=True):
        for place, (item, ax) in enumerate(zip(page_, row, strict=True)):
            ax.imshow(PICTURES[item], interpolation="nearest")
            ax.set(xticks=[], yticks=[])
            ax.set_xlabel(f"{items['sub_category'][item]}\n{items['price'][item]:.0f} EUR", fontsize=8)
            if not place:
                ax.set_ylabel(name, fontsize=9, rotation=0, ha="right", va="center")
    fig.suptitle(title, x=0.01, ha="left", fontsize=11)
    return fig


three = {name: ranking.top_k(boards[name][:1], K)[0] for name in ("popularity", "p(purchase)", "truth")}
draw_page(three, f"User {people[0]}, that evening")

# %% tags=["plumbing"]
# @title Does the model beat popularity for sure?
ahead = {what: mean_interval(log_gap("buy", "popularity", what)) for what in ("revenue", "purchases")}
settings_ = tuning[tuning["part"] == "tune case"].groupby("name")["value"].mean()
Markdown(
    f"**What surprised you?** Popularity shows nearly everybody the same eight. Over the {N_SHOPS} shops, ranking the whole "
    f"catalogue by p(purchase) brings {percent(ahead['revenue'])} EUR and {percent(ahead['purchases'])} purchases against "
    f"popularity: {says(ahead['purchases'])}. That is no matter of course: the model learned from what an old ranker chose to "
    f"show, and must rank *everything* here. Settings matter: on the tuning shops the worst of seven learning rates and decays "
    f"has {settings_.max() - settings_.min():.2f} less in the sum of both AUCs than the best."
)

# %% [markdown]
# ## 4 · Fusion: many predictions, one page
#
# The article promises a *fusion layer* whose code never came. Three kinds:
#
# | kind | score |
# |---|---|
# | sum | $\sum_i a_i p_i$ |
# | power | $p_{click}^a \, p_{buy}^b \, price^c$ |
# | learned | $\sigma(b_0+\sum_i w_i \varphi(p_i))$, $\varphi$ = log-odds, all $w_i>0$ |

# %%
toy = {
    "click": torch.tensor([0.20, 0.05]),
    "purchase": torch.tensor([0.01, 0.02]),
    "price": torch.tensor([10.0, 30.0]),
}
by_hand = toy["click"] ** 0.5 * toy["purchase"] * toy["price"] ** 0.5
powers = {"click": 0.5, "purchase": 1.0, "price": 0.5}
assert torch.allclose(Fusion(powers)(toy), by_hand)

# a small fusion can also learn its exponents, on validation rows
valid = predict(model, data.valid)
known_ = data.valid.labels["purchase"].cpu()
learned = LearnedFusion(["click", "purchase"]).fit(valid, known_)

# %% tags=["plumbing"]
# @title Every fusion against p(purchase), over eight shops
names = ["click", "click · buy", "learned", "sum", "category · click", "next items"]
names += ["buy · √price", "click · buy · √price", "click · buy · price", "buy · price", "learned · price"]
fig = plots.figure(3.6)
axes, stands = fig.subplots(1, 2, sharey=True), {}
for ax, (what, label) in zip(axes, {"revenue": "EUR", "purchases": "purchases"}.items(), strict=True):
    gaps = {name: log_gap(name, "buy", what) for name in names}
    p = holm(gaps)
    stands[what] = [name for name in names if p[name] < 0.05]
    plots.interval_rows(ax, {n: mean_interval(gaps[n]) for n in names}, holm=stands[what], digits=2)
    ax.set_xlabel(f"{label}: logarithm of the ratio to p(purchase)")
up = {what: [n for n in stands[what] if log_gap(n, "buy", what).mean() > 0] for what in stands}
axes[0].set_title(f"{len(up['revenue'])} of {len(names)} earn more")
axes[1].set_title(f"{len(up['purchases'])} of {len(names)} sell more")
fig

# %% tags=["plumbing"]
# @title In words
half = mean_interval(log_gap("buy · price", "buy · √price"))
fit_ = mean_interval(log_gap("learned", "buy", "purchases"))
exponents = " · ".join(f"odds({name})^{w:.2f}" for name, w in learned.weights.items())
least = 2.8 * log_gap("learned", "buy", "purchases").std() / np.sqrt(N_SHOPS)
Markdown(
    f"By definition p · price is the expected revenue, so its exponent of 1 should be the best. Against √price it is "
    f"{percent(half)}: {says(half)}. It need not win: a product whose probability is *over*rated rises to the top exactly "
    f"because it is overrated, and a high price magnifies the fault. The learned fusion, here {exponents} from "
    f"{int(data.valid.labels['purchase'].sum())} purchases, sells {percent(fit_)} against p(purchase): {says(fit_)}"
    + (f" (differences below {100 * least:.0f} % would have been missed)." if not fit_.excludes_zero else ".")
)

# %% [markdown]
# ### What has calibration to do with it? And variety?
#
# A sum and a product with price use the *size* of a probability, not only its order. Take p({{purchase}}) as a model
# trained on a tenth of the no's would say it (section 6), and fuse again. And MMR (maximal marginal relevance) takes items
# one by one and charges for a category that the list has already: what does that cost?

# %%
odds = scores["purchase"] / (1 - scores["purchase"])
inflated = 10 * odds / (1 + 10 * odds)
fusions = {
    "p": lambda p: p,
    "p · price": lambda p: p * price,
    "p + p(click)": lambda p: p + scores["click"],
}
stays = {}
for name, fuse in fusions.items():
    before, after = (ranking.top_k(fuse(p), K) for p in (scores["purchase"], inflated))
    same = [len(set(a) & set(b)) / K for a, b in zip(before, after, strict=True)]
    stays[name] = np.mean(same)
levels = (0.0, 0.05, 0.1, 0.2, 1.0)
diverse = {d: ranking.mmr(scores["purchase"], category, K, d) for d in levels}

# %% tags=["plumbing"]
# @title Inflated probabilities, and the price of variety
fig = plots.figure(2.6)
ax, right = fig.subplots(1, 2)
ax.barh(list(stays), [100 * x for x in stays.values()], color=GREY, height=0.55)
plots.value_labels(ax, ".0f")
ax.set(xlabel="% of a page that stays when p is inflated", ylim=(2.5, -0.5))
worst = min(stays, key=stays.get)
ax.set_title(f"AUC sees nothing; {worst} keeps {stays[worst]:.0%}")
seen = [100 * ranking.category_coverage(each, category).mean() for each in diverse.values()]
euros = [worth(each, price).mean() for each in diverse.values()]
right.plot(seen, euros, "o-", color=INK)
for d, x, y in zip(diverse, seen, euros, strict=True):
    right.annotate(f"{d:g}", (x, y), xytext=(4, 5), textcoords="offset points", fontsize=8)
right.set(xlabel="categories on a page, % (numbers: diversity)", ylabel="EUR per 1,000 shown")
plots.within(right, 0)
right.set_title(
    f"{seen[0]:.0f} → {seen[-1]:.0f} % of the categories: {number(100 * (euros[-1] / euros[0] - 1), 0)} % EUR"
)
fig

# %% [markdown]
# ## 5 · The funnel: impression, click, purchase
#
# Conversion is p({{purchase}} | {{click}}). The obvious model learns it from clicked rows, for there it has labels. While
# serving, it scores *all* products. Averaged over all test impressions: what does it say, as a multiple of the truth?

# %%
g_ratio = guess("Conversion learned on clicks: said / true?", 0.3, 3, 0.05)
g_ratio

# %% [markdown]
# ESMM (Ma et al., SIGIR 2018) never trains on clicked rows alone. It learns two products that exist for *every*
# impression: p({{click}}), and p({{click}}) · p(conversion) = p({{purchase}}).

# %%
draw("esmm", tasks=("click", "purchase"))


# %%
class EntireSpace(nn.Module):
    """Losses are those of click = σ(a) and purchase = σ(a)·σ(b), on all rows."""

    def __init__(self):
        super().__init__()
        self.tasks = (Task("click"), Task("purchase"))
        both = [Task("click"), Task("conversion")]
        self.inner = ecommerce.case_model(data, items, both)

    def forward(self, numeric, categorical):
        z = self.inner(numeric, categorical)
        log_p = F.logsigmoid(z["click"]) + F.logsigmoid(z["conversion"])  # a product
        logit = log_p - torch.log1p(-log_p.exp().clamp(max=1 - 1e-6))  # its log-odds
        return {"click": z["click"], "purchase": logit}


torch.manual_seed(0)
both = EntireSpace().to(device)
with torch.no_grad():
    inner = {name: z.sigmoid() for name, z in both.inner(*five).items()}
    product = both(*five)["purchase"].sigmoid()
assert torch.allclose(product, inner["click"] * inner["conversion"], atol=1e-6)

# %% tags=["plumbing"]
# @title Conversion, said against true
ratios = {
    f"{name}: {label}": np.log(of("funnel", name, measure))
    for name in ("clicks only", "ESMM")
    for label, measure in (("clicked rows", "ratio_clicked"), ("all impressions", "ratio"))
}
fig = plots.figure(2.5)
ax, right = fig.subplots(1, 2, width_ratios=(1.35, 1))
marks = {name: plots.model_style("esmm" if name.startswith("ESMM") else "single task") for name in ratios}
plots.interval_rows(ax, ratios, digits=2, styles=marks)
ax.set_xlabel("log of said / true conversion (0 is right)")
more = of("funnel", "truth", "clicked_against_all").mean()
ax.set_title(f"Clicked rows convert {more:.1f} times as well as all")
ranks = {name: of("funnel", name, "purchase_auc") for name in ("clicks only", "ESMM")}
plots.interval_rows(
    right, {"p(click) · conversion: ESMM − clicks only": ranks["ESMM"] - ranks["clicks only"]}, digits=3
)
right.set(xlabel="AUC of p(click) · conversion", yticks=[])
right.set_title("ESMM − clicks only")
g = g_ratio.value
if g is not None:
    ax.axvline(np.log(g), color="#8B5A00", ls="--")
off = {name: np.log(of("funnel", name, "ratio")).abs() for name in ("clicks only", "ESMM")}
nearer = mean_interval(off["ESMM"] - off["clicks only"])
auc_gap = mean_interval(ranks["ESMM"] - ranks["clicks only"])
alone = np.exp(mean_interval(ratios["clicks only: all impressions"]).mean)
display(fig, g_ratio.answer(alone, digits=2))
Markdown(
    f"Whoever clicks likes the product more than the features show, and so buys more: clicked rows are a selected sample. "
    f"Learned on them alone, conversion over all impressions comes out {alone:.2f} times the truth. ESMM's distance from the "
    f"truth, minus that, is {span(nearer, 2)} (logarithms): {says(nearer, 'worse', 'better')}. Its product ranks purchases {span(auc_gap)} AUC: {says(auc_gap)}."
)

# %% [markdown]
# **What it mends, and what not.** ESMM trains where it serves, on labels that exist for every impression, and one model
# replaces two. But p({{purchase}}) / p({{click}}) is still the conversion *of those who click*. What drives both and is
# hidden from the features stays in it. No model of this log can see that; an experiment can.
#
# ## 6 · Rare purchases
#
# About one in two hundred impressions is bought. Popular treatments, same model, same number of steps, each at its own
# settings:
#
# | treatment | loss of a row |
# |---|---|
# | plain | $-\log p_y$, where $p_y$ is the probability of what happened |
# | class weight | plain, a yes counts ten times |
# | focal (Lin et al., 2017, γ = 2) | $-(1-p_y)^2 \log p_y$: what is known well counts less |
# | down-sampled | plain, on all yes and a tenth of the no |
# | over-sampled | plain, with every yes ten times |

# %%
TREATMENTS = ["class weight", "focal", "down-sampled", "over-sampled"]
g_rare = guess("Which one's probabilities are farthest off?", choices=TREATMENTS)
g_rare

# %% [markdown]
# Down-sampling multiplies the odds by 1/s, where s is the share kept, so it can be undone (He et al., 2014). Of two
# probabilities that a model on a tenth of the no's said:

# %%
said_, s = np.array([0.05, 0.4]), 0.1
undone = said_ / (said_ + (1 - said_) / s)
assert np.allclose(undone, metrics.correct_downsampling(said_, s))

# %% tags=["plumbing"]
# @title Five treatments: order and size
gaps = {name: of("rare", name, "auc") - of("rare", "plain", "auc") for name in TREATMENTS}
p = holm(gaps)
fig = plots.figure(3.2)
ax, right = fig.subplots(1, 2)
plots.interval_rows(ax, gaps, holm=[name for name in TREATMENTS if p[name] < 0.05], digits=3)
ax.set_xlabel("AUC of purchase against plain")
better = [n for n in TREATMENTS if p[n] < 0.05]
ax.set_title(f"{len(better)} of 4 change the order for sure")
looks = {
    "": ("o", INK, -0.2),
    ", corrected": ("D", "#332288", 0),
    ", recalibrated": ("s", "#117733", 0.2),
}
middle = {}
for row, name in enumerate(["plain", *TREATMENTS]):
    for ending, (marker, color, shift) in looks.items():
        found = of("rare", name + ending, "ratio")
        if len(found):
            i = mean_interval(np.log(found))
            middle[name + ending] = np.exp(i.mean)
            right.plot(np.exp([i.low, i.high]), [row + shift] * 2, color=color, lw=1.6)
            label = (ending.strip(", ") or "as it says") if row == 1 else None
            right.plot(np.exp(i.mean), row + shift, marker, color=color, ms=7, mec="white", lw=0, label=label)
right.axvline(1, color=GREY, lw=1)
right.set(xscale="log", ylim=(4.5, -0.5), xlabel="mean said / true rate")
right.set_xticks([0.5, 1, 2, 5, 10, 20], ["½", "1", "2", "5", "10", "20"])
right.minorticks_off()
right.set_yticks(range(5), ["plain", *TREATMENTS])
far = max(TREATMENTS, key=lambda name: abs(np.log(middle[name])))
right.set_title(f"{far} says {middle[far]:.0f} times the true rate")
g_rare.mark(right)
plots.legend_outside(fig, right)
display(fig, g_rare.answer(far))

# %% tags=["plumbing"]
# @title Does the correction fall short?
losses = {
    ending: of("rare", f"down-sampled{ending}", "log_loss") - of("rare", "truth", "log_loss")
    for ending in (", corrected", ", recalibrated")
}
against = mean_interval(losses[", corrected"] - losses[", recalibrated"])
ratio, again = (mean_interval(np.log(of("rare", f"down-sampled{ending}", "ratio"))) for ending in losses)
slope = mean_interval(of("rare", "down-sampled", "slope"))
bent = not slope.low <= 1 <= slope.high


def times(i):
    """How often the true rate is said, and whether that is off."""
    off = "off by more than chance" if i.excludes_zero else "no sure fault"
    return f"{np.exp(i.mean):.2f} times the true rate [{np.exp(i.low):.2f}, {np.exp(i.high):.2f}], {off}"


Markdown(
    (
        "**Where the correction falls short.**"
        if ratio.excludes_zero or bent
        else "**Does the correction fall short? Not for sure.**"
    )
    + f" The formula is exact for a model that is right about its *sample*. Corrected, down-sampling says {times(ratio)}. "
    "It could not mend a model that is too sure, or not sure enough: a slope fitted on validation log-odds is "
    f"{slope.mean:.2f} [{slope.low:.2f}, {slope.high:.2f}] where a calibrated model has 1, "
    f"{'too sure' if slope.high < 1 else 'not sure enough' if slope.low > 1 else 'no sure fault'}. Fitting slope and level "
    f"(*recalibrated*) instead says {times(again)}, and changes the log-loss by {number(-1e3 * against.mean, 2)} · 10⁻³ "
    f"[{number(-1e3 * against.high, 2)}, {number(-1e3 * against.low, 2)}]: "
    f"{says(against, 'better', 'worse')}. It needs labels, and an offset of time: validation rows are older than what is "
    "served. Whatever changes the base rate must be undone before fusion."
)

# %% [markdown]
# ## 7 · Position bias
#
# The first place is {{click}}ed most. Because it is first, or because the old ranker put the best product there? The
# simulator knows: a place multiplies the probability by $\text{place}^{-0.45}$. A model that reads the position can be
# asked the same rows at any place:

# %%
column = list(data.schema.categorical).index("position")
known = [int(p) for p in data.encoder.categories_["position"]]


def at(part, place):
    """The same rows, all at one place of the page."""
    codes = part.categorical.clone()
    codes[:, column] = 1 + known.index(place)
    return replace(part, categorical=codes)


places = np.arange(1, K + 1)
asked = [predict(model, at(data.test, p))["click"].double().mean() for p in places]

# %% tags=["plumbing"]
# @title The effect of the place: counted, learned, true
rate = train.groupby("position")["click"].mean().to_numpy()
curves = {"plain count": rate, "the model": np.array([float(p) for p in asked]), "truth": factors}
curves = {name: values / values[0] for name, values in curves.items()}
fig = plots.figure(2.8)
ax, right = fig.subplots(1, 2, width_ratios=(1.3, 1))
looks = {"plain count": ("o:", "#8C510A"), "the model": ("s--", COLORS["click"]), "truth": ("-", INK)}
for name, (style, color) in looks.items():
    ax.plot(places, curves[name], style, label=name, color=color)
ax.set(xlabel="place", ylabel="clicks against place 1", xticks=places)
plots.within(ax, 0)
off = {name: np.abs(np.log(curves[name] / curves["truth"])).sum() for name in ("plain count", "the model")}
ax.set_title(f"In this shop, {min(off, key=off.get)} is nearer to the truth")
true_effect = of("position", "truth", "effect")
effects = {
    "plain count": of("position", "counted", "effect") - true_effect,
    "the model": of("position", "position known", "effect") - true_effect,
}
p = holm(effects)
plots.interval_rows(right, effects, holm=[name for name in effects if p[name] < 0.05], digits=2)
right.set_xlabel("log effect of place 5, minus the true one")
right.set_title("Eight shops")
plots.legend_outside(fig, ax)
display(fig)
ratio = {name: np.log(of("position", name, "ratio")).abs() for name in ("position known", "position ignored")}
gap = mean_interval(ratio["position known"] - ratio["position ignored"])
rank_ = mean_interval(of("position", "position known", "auc") - of("position", "position ignored", "auc"))
Markdown(
    f"Serving at place 1, how far is the mean from the true click rate (logarithm)? A model that knew the place, minus one that "
    f"never saw it: {span(gap, 2)}, {says(gap, 'worse', 'better')}. Ranking products for "
    f"one place, it is {span(rank_)} AUC: {says(rank_)}."
)

# %% [markdown]
# The remedy is one line: position is a feature *while training*, and is set to one *when serving* (`candidates` does it).
# The model can separate both only because the old ranker is noisy. A log in which good products are always first cannot
# tell them apart.
#
# ## 8 · The owner's dashboard
#
# Task weights act *while training*: each stop of the first sliders is a trained model. Fusion exponents and diversity act
# *after* it. Which moves the money more: seven task weights, or seven fusions?

# %%
g_knob = guess("What moves EUR more, beyond chance?", choices=["task weights", "fusion", "neither"])
g_knob

# %%
grid = [{"click": 1.0, **w} for w in simplex_grid(THREE, 3 if FAST else 4, lowest=0.02)]
family = sweep(
    lambda: ecommerce.case_model(data, items),
    data.train.take(slice(None, None, 8 if FAST else 2)),
    data.valid,
    weightings=[{n: s / constants[n] for n, s in shares.items()} for shares in grid],
    **SETTINGS | {"epochs": 1 if FAST else 4},
    keep="best",
)

# %% tags=["plumbing"]
# @title The dashboard
every = [
    ecommerce.score_candidates(family.model(k).to(device), data, evening, items)
    for k in family.weightings.index
]
signals = {"buy": "purchase", "category": "category", "next": "next"}
front = Shopfront(
    items=items,
    users=[f"user {user}" for user in people],
    weightings=pd.DataFrame(grid)[list(THREE)],
    predictions={n: np.stack([s[key] for s in every]).astype(np.float32) for n, key in signals.items()},
    true_purchase=truth["purchase"],
    relevance=liked,
    counts=items["clicks"],
    pictures=PICTURES,
    position_factors=factors,
    k=K,
)
today = {"buy": 1.0, "category": 0.0, "next": 0.0, "price": 0.0}
shop_dashboard(front, exponents=today, weights={"purchase": 0.98, "next_category": 0.01, "next_item": 0.01})

# %% [markdown]
# It opens on the ready-made setting that earns most; **Today** leads back to p(buy) alone. Try price at 2, then the weight
# of purchase, then *Surprise me*.

# %% tags=["plumbing"]
# @title Weights against fusion, over eight shops: seven of each, and four starts of one model
ranges, redrawn = {}, {}
again_ = np.random.default_rng(0).integers(0, N_SHOPS, (4000, N_SHOPS))  # shops, drawn with replacement
families = {
    "fusion": ["buy", "click", "click · buy", "buy · √price", "buy · price", "click · buy · √price", "sum"],
    "task weights": [f"weights {row}, buy" for row in range(len(GRID))],
    "starts": ["weights 0, buy", *(f"start {k}, buy" for k in (1, 2, 3))],
}
fig = plots.figure(2.6)
for ax, (what, label) in zip(
    fig.subplots(1, 2), {"revenue": "EUR", "purchases": "purchases"}.items(), strict=True
):
    for row, (family_, settings) in enumerate(families.items()):
        names = [n if n.startswith(("weights", "start")) else f"weights 0, {n}" for n in settings]
        logs = pd.DataFrame({n: np.log(of("weights", n, what)) for n in names})
        means = logs.mean() - np.log(of("weights", "weights 0, buy", what)).mean()
        ranges[family_, what] = means.max() - means.min()
        redrawn[family_, what] = np.ptp(logs.to_numpy()[again_].mean(axis=1), axis=1)
        ax.plot([means.min(), means.max()], [row, row], color=GREY, lw=2)
        ax.plot(means, [row] * len(means), "o", color=INK, ms=6, mec="white")
        ax.text(means.max(), row - 0.22, f"range {ranges[family_, what]:.2f}", fontsize=8, ha="right")
    ax.axvline(0, color=INK, lw=1)
    ax.set_yticks(range(3), list(families))
    ax.set(ylim=(2.5, -0.6), xlabel=f"log of {label} against p(buy)")
times_ = {}
for name, ax in zip(("revenue", "purchases"), fig.axes, strict=True):
    low_, high_ = np.quantile(redrawn["fusion", name] / redrawn["task weights", name], [0.025, 0.975])
    times_[name] = f"{ranges['fusion', name] / ranges['task weights', name]:.1f} [{low_:.1f}, {high_:.1f}]"
    ax.set_title(f"Range, fusion / weights: {times_[name]}")
    if name == "revenue":
        said_ = "fusion" if low_ > 1 else "task weights" if high_ < 1 else "neither"
display(fig, g_knob.answer(said_))
Markdown(
    f"Ranges of means over {N_SHOPS} shops, so that luck within a shop counts little; the ratio's interval is a bootstrap over shops"
    f"{' and holds 1 for EUR: not decided' * (said_ == 'neither')}. What is left of luck: the same model from four starts "
    f"spans {ranges['starts', 'revenue']:.2f} (EUR) and {ranges['starts', 'purchases']:.2f} (purchases)."
)

# %% tags=["plumbing"]
# @title Choose the weights by whose score? By tuning shops, judged in the eight
aims = {
    "AUC of purchase": "purchase_auc",
    "AUC of click": "click_auc",
    "accuracy of category": "category_accuracy",
    "recall of next item": "recall",
}
rows = range(len(GRID))
chosen = {
    aim: int(np.argmax([of("weights", f"weights {k}", f"valid {m}", tuning).mean() for k in rows]))
    for aim, m in aims.items()
}
fig = plots.figure(2.0)
first = chosen["AUC of purchase"]
told = {}
others = {}  # aims that choose the same weights are one row
for k in dict.fromkeys(chosen.values()):
    others |= {} if k == first else {" and ".join(aim for aim in aims if chosen[aim] == k): k}
for ax, what in zip(fig.subplots(1, 2, sharey=True), ("purchases", "revenue"), strict=True):
    base = of("weights", f"weights {first}, buy", what)
    pages_ = {aim: of("weights", f"weights {k}, buy", what) for aim, k in others.items()}
    gaps = {f"by {aim}": np.log(values / base) for aim, values in pages_.items()}
    p = holm(gaps) if gaps else {}
    plots.interval_rows(ax, gaps, holm=[name for name in gaps if p[name] < 0.05], digits=2)
    unit = "EUR" if what == "revenue" else what
    ax.set_xlabel(f"log of {unit} against that choice")
    ax.locator_params(axis="x", nbins=4)
    for name, values in gaps.items():
        word = f"a tie in {unit}" if p[name] >= 0.05 else f"{'more' if values.mean() > 0 else 'fewer'} {unit}"
        told[name] = [*told.get(name, []), word]
same = ", ".join(aim for aim in aims if chosen[aim] == first)
fig.suptitle(f"Chosen by {same}: purchase has a share of {GRID[first]['purchase']:.2f}", x=0.01, ha="left")
display(fig)
Markdown(
    "Judged in other shops, against that choice: "
    + "; ".join(
        f"by {aim}, purchase gets {GRID[k]['purchase']:.2f}: {', '.join(told[f'by {aim}'])}"
        for aim, k in others.items()
    )
    + ". The score of one task is not the owner's aim: look at what the pages sell and earn."
)

# %% [markdown]
# ## 9 · Does it earn more? An A/B test
#
# Everything so far was known to us alone. A shop must *test*. Users are split in two halves, by **user**: whoever comes
# back must see the same ranker, and a user's sessions are alike. Both rankers order what the old one brought up in
# sessions of two pages or more. Today's goes by $p_{click}\, p_{buy}^{1/4}$; the new one doubles the exponent.
#
# The analyst looks at the test every evening for two weeks and stops when p < .05. If both rankers are the **same**, how
# often does she announce a difference?

# %%
g_peek = guess("False alarms with a look on each of 14 evenings?", 0, 60, 1, "%")
g_peek

# %%
more = (test.groupby("session_id")["item_id"].transform("size") > K).to_numpy()
offered = test[more].merge(shop.truth, on="impression_id")
for name in ("click", "purchase"):  # chances at place 1
    offered[name] = offered[f"p_{name}"] * offered["position"] ** 0.45
p = {name: values.numpy()[more] for name, values in predict(model, data.test).items()}


def page_of(score):
    """Each session's best eight, with the chances that they have at their places."""
    ranked = offered.assign(score=-score).sort_values("score", kind="stable")
    ranked["place"] = 1 + ranked.groupby("session_id").cumcount()
    ranked = ranked[ranked["place"] <= K].copy()
    for name in ("click", "purchase"):
        ranked[name] = ranked[name] * factors[ranked["place"] - 1]
    return ranked.sort_values(["user_id", "session_id", "place"])


ARMS = {
    name: page_of(p["click"] * p["purchase"] ** power) for name, power in {"today": 0.25, "new": 0.5}.items()
}

# %% [markdown]
# Outcomes are sums over a user's sessions; the rate is their sum over the number of sessions. Its error must be that of
# *users* (the delta method for a ratio):


# %%
def z_value(total, sessions):
    """z of rate two minus rate one; total and sessions: per user, one array an arm."""
    rate = [x.sum() / n.sum() for x, n in zip(total, sessions, strict=True)]
    arms = zip(total, sessions, rate, strict=True)
    variance = sum(((x - r * n) ** 2).sum() / n.sum() ** 2 for x, n, r in arms)
    return (rate[1] - rate[0]) / np.sqrt(variance)


# %% tags=["plumbing"]
# @title What users do, drawn many times
DRAWS, OUTCOMES = (20, 60)[not FAST], ("click", "purchase", "EUR")


def lived(page, seed):
    """(DRAWS, users, 3) outcomes a user, and the sums of their squares by session."""
    rng, found = np.random.default_rng(seed), ([], [])
    starts = [np.flatnonzero(~page.duplicated(key).to_numpy()) for key in ("session_id", "user_id")]
    to_user = np.searchsorted(starts[0], starts[1])
    for _ in range(DRAWS):
        clicked = rng.random(len(page)) < page["click"].to_numpy()
        bought = clicked & (rng.random(len(page)) < (page["purchase"] / page["click"]).to_numpy())
        drawn = np.stack([clicked, bought, bought * page["price"].to_numpy()], 1).astype(float)
        by_session = np.add.reduceat(drawn, starts[0])
        for power, kept_ in zip((1, 2), found, strict=True):
            kept_.append(np.add.reduceat(by_session**power, to_user))
    return np.array(found[0]), np.array(found[1])


life = {name: lived(page_, seed) for seed, (name, page_) in enumerate(ARMS.items())}
visits = ARMS["today"].groupby("user_id")["session_id"].nunique().to_numpy()
expected = {
    name: np.array(
        [page_["click"].sum(), page_["purchase"].sum(), (page_["purchase"] * page_["price"]).sum()]
    )
    for name, page_ in ARMS.items()
}
lift = expected["new"] / expected["today"] - 1
rng = np.random.default_rng(5)


def some(arm, n):
    """n users: outcomes (n, 3), their squares by session, sessions (n,)."""
    who, when = rng.integers(0, len(visits), n), rng.integers(0, DRAWS, n)
    return life[arm][0][when, who], life[arm][1][when, who], visits[who]


# %% tags=["plumbing"]
# @title Clusters, power, peeking
TRIALS, LOOKS = (60, 500)[not FAST], 14
false = np.zeros((2, 3))
for _ in range(TRIALS):
    (a, qa, na), (b, qb, nb) = some("today", 1500), some("today", 1500)
    for k in range(3):
        naive = sum(
            (q[:, k].sum() / n.sum() - (x[:, k].sum() / n.sum()) ** 2) / n.sum()
            for x, q, n in ((a, qa, na), (b, qb, nb))
        )
        gap_ = b[:, k].sum() / nb.sum() - a[:, k].sum() / na.sum()
        z = z_value((a[:, k], b[:, k]), (na, nb)), gap_ / np.sqrt(naive)
        false[:, k] += np.abs(z) > 1.96
false = 100 * false / TRIALS
needed = {}
for k, name in enumerate(OUTCOMES):
    rate_ = {arm: x[..., k].sum() / (DRAWS * visits.sum()) for arm, (x, _) in life.items()}
    spread_ = sum(
        ((x[..., k] - rate_[arm] * visits) ** 2).mean() / visits.mean() ** 2 for arm, (x, _) in life.items()
    )
    delta = (expected["new"][k] - expected["today"][k]) / visits.sum()
    needed[name] = int(np.ceil(2 * (1.96 + 0.84) ** 2 * spread_ / delta**2))
n = min(needed["purchase"] // 2, 200_000)
seen_ = []
own = {arm: page_.groupby("user_id")["purchase"].sum().to_numpy() for arm, page_ in ARMS.items()}
for _ in range(20 if FAST else 150):  # a user's purchases are many small chances: nearly Poisson
    who = rng.integers(0, len(visits), (2, n))
    bought_ = [rng.poisson(own[arm][w]) for arm, w in zip(ARMS, who, strict=True)]
    seen_.append(z_value(bought_, [visits[w] for w in who]))
power = np.mean(np.sign(lift[1]) * np.array(seen_) > 1.96)
alarms = np.zeros((TRIALS, LOOKS))
for trial in range(TRIALS):
    (a, _, na), (b, _, nb) = some("today", LOOKS * 150), some("today", LOOKS * 150)
    for look in range(LOOKS):
        m = 150 * (look + 1)
        alarms[trial, look] = abs(z_value((a[:m, 0], b[:m, 0]), (na[:m], nb[:m])))
peeked = 100 * (np.maximum.accumulate(alarms, 1) > 1.96).mean(0)
walks = np.abs(rng.standard_normal((20_000, LOOKS)).cumsum(1) / np.sqrt(np.arange(1, LOOKS + 1)))
bound = np.quantile(walks.max(1), 0.95)
fig = plots.figure(2.9)
ax, middle_, right = fig.subplots(1, 3)
at_ = np.arange(3)
ax.barh(at_ - 0.2, false[0], 0.36, color=INK, label="users as clusters")
ax.barh(at_ + 0.2, false[1], 0.36, color="#BBBBBB", label="each session on its own")
ax.axvline(5, color=COLORS["purchase"], lw=1)
ax.set_yticks(at_, OUTCOMES)
ax.set(xlabel="false alarms, % (5 is right)", title="Who is a cluster?")
middle_.barh(list(needed), [max(x, 1) for x in needed.values()], color=GREY, height=0.55)
middle_.set(
    xscale="log", xlabel="users for a power of 80 %", title=f"Lift: {number(100 * lift[1])} % purchases"
)
for row, x in enumerate(needed.values()):
    middle_.text(x, row, f" {x:,.0f}", va="center", fontsize=8, path_effects=plots.HALO)
middle_.margins(x=0.35)
right.plot(range(1, LOOKS + 1), peeked, "o-", color=INK)
right.axhline(5, color=COLORS["purchase"], lw=1)
right.set(xlabel="looks so far", ylabel="false alarms, %", title=f"Peeking: {peeked[-1]:.0f} %")
plots.within(right, 0)
g_peek.mark(right, axis="y")
plots.legend_outside(fig, ax)
display(fig, g_peek.answer(peeked[-1], digits=0))
Markdown(
    f"True lifts, by the simulator: {', '.join(f'{name} {number(100 * x)} %' for name, x in zip(OUTCOMES, lift, strict=True))}. "
    f"Lifts of that size are what good rankers still gain over each other, and they need many users: with the number for "
    f"purchases, {power:.0%} of {len(seen_)} simulated tests saw it (planned: 80 %). Here a user has {visits.mean():.1f} such "
    f"sessions, so that counting each on its own changes little ({false[1, 0]:.0f} against {false[0, 0]:.0f} % false alarms on "
    f"clicks); with ten a user it would. Peeking costs more: who looks {LOOKS} times must ask for |z| > {bound:.2f} instead of "
    f"1.96, or fix the number of users first."
)

# %% [markdown]
# ## 10 · Why this product?
#
# Take the first product of one page. A power fusion splits exactly: the log of the score is a sum, so each signal's part is
# $a_i\,(\log p_i - \text{mean over all products})$. And inside p({{purchase}})? Walk from the *average product* to this one,
# and add up gradient × step along the way (integrated gradients, Sundararajan et al., ICML 2017).

# %%
powers = {"click": 0.5, "purchase": 1.0, "price": 0.5}
logs = {name: np.log(scores[name][0].astype(float)) for name in ("click", "purchase")}
logs["price"] = np.log(price)
total = sum(a * logs[name] for name, a in powers.items())
top = int(total.argmax())
by_signal = {n: a * (logs[n][top] - logs[n].mean()) for n, a in powers.items()}
assert np.isclose(sum(by_signal.values()), total[top] - total.mean())

# %%
mine = [t.to(device) for t in data.encoder.transform(evening.head(len(items)))]
with torch.no_grad():
    u = model.user_vectors(*(t[:1] for t in mine))
    x = torch.cat([model.feature_vectors(of_, *mine) for of_ in ("item", "pair")], 1)
n_item, target, base = model.features["item"].n_out, x[top], x.mean(0)


def purchase_logit(x):
    """x (n, item and pair features) → logit (n,), for this user."""
    v, users = model.item(x[:, :n_item]), u.expand(len(x), -1)
    both = torch.cat([users, v, users * v, x[:, n_item:]], -1)
    return model.towers["purchase"](both).squeeze(-1)


steps = torch.linspace(0, 1, 201, device=device)[:, None]
path = (base + steps * (target - base)).requires_grad_()
(slope_,) = torch.autograd.grad(purchase_logit(path).sum(), path)
part = ((slope_[1:] + slope_[:-1]) / 2).mean(0) * (target - base)

# %% tags=["plumbing"]
# @title Figure: why this product
labels = []
for numeric, categorical in (ecommerce.ITEM_COLUMNS, ecommerce.PAIR_COLUMNS):
    labels += [name for name in categorical for _ in range(4)] + list(numeric)  # an embedding is four numbers
by_feature = pd.Series(part.cpu().numpy(), index=labels).groupby(level=0).sum()
shown = by_feature[by_feature.abs().sort_values().index[-9:]].sort_values()
with torch.no_grad():
    change = (purchase_logit(target[None]) - purchase_logit(base[None])).item()
fig = plots.figure(3.0)
axes = fig.subplots(1, 2, width_ratios=(1, 1.2))
for ax, values in ((axes[0], pd.Series(by_signal).sort_values()), (axes[1], shown)):
    ax.barh(values.index, values, color=np.where(values > 0, "#117733", "#882255"), height=0.6)
    ax.axvline(0, color=INK, lw=1)
axes[0].set(xlabel="part of the log score", title=f"{items['title'][top]}, {price[top]:.0f} EUR")
axes[1].set(xlabel="part of the purchase log-odds", title=f"Mostly {shown.index[-1].replace('_', ' ')}")
display(fig)
Markdown(
    f"Parts of p(purchase) sum to {part.sum().item():.3f}; the logit changes by {change:.3f}, against the average product. This is what "
    "*interpretability* can mean here: each part has a name, and they add up. It explains the *model*, not the world: a "
    "correlated feature may carry another one's part."
)

# %% [markdown]
# ## 11 · Serve it
#
# A trained model is a folder: weights as safetensors, everything else as JSON. Neither can run code. Saved and loaded, it
# must give the same scores.

# %%
shelf = Path(tempfile.mkdtemp()) / "shop_model"
save_model(shelf, model, data.encoder)
loaded, encoder = load_model(shelf)
before, after = predict(model, data.test), score_rows(loaded, encoder, frames["test"])
assert all(np.allclose(before[name], after[name], atol=1e-6) for name in before)


def serve(rows, k):
    """One user's page: the k best products of that user's rows."""
    p = ecommerce.score_candidates(loaded, replace(data, encoder=encoder), rows, items)
    score = p["click"] ** 0.5 * p["purchase"] * price**0.5
    return ranking.top_k(score, k)[0]


took = []
for request in range(10 if FAST else 100):
    rows = evening.iloc[request % len(people) * len(items) :].head(len(items))
    start = time.perf_counter()
    served = serve(rows, K)
    took.append(1000 * (time.perf_counter() - start))

# %% tags=["plumbing"]
# @title How long that takes
kilobytes = sum(file.stat().st_size for file in shelf.iterdir()) / 1e3
Markdown(
    f"{len(items):,} products ranked for one user, their features at hand: median **{np.median(took):.0f} ms**, p99 "
    f"{np.quantile(took, 0.99):.0f} ms, one core, this run. The folder has {kilobytes:.0f} kB. First on the page: "
    f"*{items['title'][served[0]]}*."
)

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
#
# In news, reading time is known for opened articles only: a label with a mask, and section 5 says what training on it
# alone does.
#
# ## Exercises
#
# Each has a stub that returns `...` and a check that tells you where you are. Stuck? Type
# `hint("05.recall_and_coverage", 1)` into a cell; levels go up to 3. `solution("05.recall_and_coverage")` shows commented
# source.
#
# **Exercise 1. Recall and coverage.**


# %%
from mtl_helpers.check import check, hint, solution, use


def recall_and_coverage(lists, bought, n_items):
    """Mean recall over the users who bought something; share of the catalogue shown.

    lists (U, k): each user's items, an array. bought: one set of items for each of
    the U users. The second number is the share of the n_items that stands in any
    list. Example: lists [[0, 1], [0, 2]], bought [{0, 5}, {2}], 10 items give
    (0.75, 0.3).
    """
    return ...


# %%
check("05.recall_and_coverage", recall_and_coverage)

# %% [markdown]
# **Exercise 2. Fusion by powers.**


# %%
def power_fusion(probabilities, exponents):
    """The fused score (n,): a product of powers.

    probabilities {task: (n,) tensor}, exponents {task: number}. A task without an
    exponent does not count. Example: click 0.5 with exponent 2 and purchase 0.1 with
    exponent 1 give 0.025.
    """
    return ...


# %%
check("05.power_fusion", power_fusion)

# %% [markdown]
# **Exercise 3. Undo the down-sampling.**


# %%
def undo_downsampling(p, keep):
    """Probabilities for the whole log, (n,).

    p (n,), an array: what a model says that was trained on a share `keep` of the
    negatives, below 1. Example: p = 0.5 and keep = 0.1 give 1 / 11.
    """
    return ...


# %%
check("05.undo_downsampling", undo_downsampling)

# %% tags=["plumbing"]
# @title Your functions at work
undo = use("05.undo_downsampling", undo_downsampling)
mix = use("05.power_fusion", power_fusion)
thin = undo(inflated, 0.1)
mine_ = ranking.top_k(mix({"purchase": torch.tensor(thin)}, {"purchase": 1.0}).numpy(), K)
Markdown(
    f"Undone, the inflated probabilities of section 4 are off by {np.abs(thin - scores['purchase']).max():.0e} at most, and "
    f"{np.mean([len(set(a) & set(b)) / K for a, b in zip(mine_, lists, strict=True)]):.0%} of each page is as it was."
)

# %% [markdown]
# ## Self-check
#
# **1.** A page by p({{purchase}}) · price is by definition the one of highest expected revenue. Why may another exponent
# earn more?
#
# <details><summary>Answer</summary>
#
# Only the *true* probability makes it the best. With an estimate, products whose probability is overrated and whose price
# is high gather at the top. Section 4 compares the exponents.
# </details>
#
# **2.** Your colleague reports a better AUC after down-sampling, and the revenue of the fused page falls. A contradiction?
#
# <details><summary>Answer</summary>
#
# No. AUC reads the order; a sum or a product with price reads the size. Undo the down-sampling first: section 6 shows how
# far that goes.
# </details>
#
# **3.** ESMM trains on all impressions, so its conversion is unbiased. True?
#
# <details><summary>Answer</summary>
#
# No. It trains where it serves, but p({{purchase}}) / p({{click}}) is the conversion of those who click. What the features do
# not show and what drives both stays in it. Section 5 measures it.
# </details>

# %% tags=["plumbing"]
# @title Three findings
alone_ = mean_interval(np.log(of("funnel", "clicks only", "ratio")))
Markdown(
    "## Three findings\n\n"
    f"1. Ranked by p · price instead of p: EUR {percent(main)}, purchases {percent(sold)}.\n"
    f"2. Seven fusions move EUR over a range of {ranges['fusion', 'revenue']:.2f} (logarithm), seven task weights over "
    f"{ranges['task weights', 'revenue']:.2f} (ratio {times_['revenue']}), four starts over {ranges['starts', 'revenue']:.2f}.\n"
    f"3. Conversion learned on clicks is {percent(alone_)} off over all impressions.\n\n"
    f"Means and 95 % intervals over {N_SHOPS} shops."
    + " FAST=1: the live cells were short runs; their figures need the full run."
    * FAST
)

# %% [markdown]
# ## Summary
#
# - Ask of each task what it may know. A favourite category has no candidate, and a next item is a dot product.
# - Fusion is where price, calibration and variety meet, after training; task weights act before. Both have a range and a
#   noise floor: section 8 shows them side by side.
# - Between the log and the truth stand the funnel, rarity and position. Each needs its own correction, and some bias no log
#   can show.
# - Test by user, plan the number of users, and do not peek.
#
# **What the toy hides.** Stock never ends, and our pages were judged one evening at a time. *In production* what a page
# shows changes what users want, and today's page is tomorrow's training data: keep some exploration, and keep the A/B
# test.

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
# - S. Pocock, *Group Sequential Methods in the Design and Analysis of Clinical Trials*, Biometrika 64, 1977: looking
#   early, and what it costs.
#
# **Next:** [06_sharing_architectures](06_sharing_architectures.ipynb): who shares what, and gates you can read.
