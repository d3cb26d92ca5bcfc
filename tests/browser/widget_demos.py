"""One small instance of every demo, on made-up numbers: for browser tests, unit tests and the benchmark."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch

from mtl_helpers.data import MultiTaskDataset, Schema, Task
from mtl_helpers.models import SharedBottom
from mtl_helpers.widgets import (
    Shopfront,
    front_explorer,
    guess,  # noqa: F401  (for the notebook of the browser tests)
    live_training,
    logit_explorer,
    scarcity_explorer,
    shop_dashboard,
    threshold_explorer,
    two_gradients_explorer,
    two_losses_explorer,
    weight_explorer,
)


class MadeUpSweep:
    """Looks like a sweep: the attributes that ``weight_explorer`` reads."""

    def __init__(
        self, names: tuple[str, ...] = ("click", "purchase"), seeds: int = 3, epochs: int = 6
    ) -> None:
        rng = np.random.default_rng(0)
        if len(names) == 2:
            grid = np.linspace(0.02, 0.98, 17)
            weights = np.stack([1 - grid, grid], axis=1)
        else:
            weights = np.array([(i, j, 5 - i - j) for i in range(6) for j in range(6 - i)], float) / 5
        self.weightings = pd.DataFrame(weights, columns=list(names))
        rows = []
        for index, weight in enumerate(weights):
            for seed in range(seeds):
                luck = 0.002 * rng.normal(size=len(names))
                for epoch in range(1, epochs + 1):
                    for i, name in enumerate(names):
                        auc = 0.65 + 0.02 * i + 0.06 * np.sqrt(weight[i]) - 0.05 * np.exp(-epoch) + luck[i]
                        loss = (0.2 - 0.05 * i) * (1 + 0.8 * np.exp(-epoch * (0.2 + weight[i])))
                        for split, gap in (("train", 0.0), ("valid", 0.004)):
                            here = (index, seed, epoch, split, name)
                            rows += [(*here, "loss", loss + gap * epoch * weight[i]), (*here, "auc", auc)]
        columns = ["weighting", "seed", "epoch", "split", "task", "metric", "value"]
        self.records = pd.DataFrame(rows, columns=columns)

    def final(self) -> pd.DataFrame:
        return self.records[self.records["epoch"] == self.records["epoch"].max()]


def clicks_and_purchases(rows: int = 8000, seed: int = 0) -> tuple[MultiTaskDataset, Schema]:
    """Two related binary tasks over six numbers and three categories."""
    draw, law = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(7)
    numeric = torch.randn(rows, 6, generator=draw)
    categorical = torch.randint(0, 20, (rows, 3), generator=draw)
    taste = torch.randn(2, 6, generator=law)
    odds = torch.sigmoid(numeric @ taste.T - 1)
    click, bought = (torch.rand(rows, 2, generator=draw) < odds).float().T
    labels = {"click": click, "purchase": click * bought}
    schema = Schema(tuple(f"x{i}" for i in range(6)), {f"c{i}": 20 for i in range(3)})
    return MultiTaskDataset(numeric, categorical, labels, {}, (Task("click"), Task("purchase"))), schema


def scores(rows: int = 20_000) -> tuple[np.ndarray, np.ndarray]:
    """Labels of a rare event and calibrated probabilities."""
    rng = np.random.default_rng(0)
    probabilities = rng.beta(0.4, 20, rows)
    return (rng.random(rows) < probabilities).astype(int), probabilities


def runs(budgets: tuple[int, ...] = (250, 500, 1000, 4000, 16_000), seeds: int = 5) -> pd.DataFrame:
    """Single-task and shared-bottom runs over label budgets: sharing helps where labels are few."""
    rng = np.random.default_rng(1)
    rows = [
        (
            budget,
            model,
            seed,
            0.6 + 0.05 * np.log10(budget / 100) + bonus / np.log10(budget / 10) + 0.003 * rng.normal(),
        )
        for budget in budgets
        for model, bonus in (("single-task", 0.0), ("shared-bottom", 0.02))
        for seed in range(seeds)
    ]
    return pd.DataFrame(rows, columns=["label_budget", "model", "seed", "auc"])


def threshold():
    return threshold_explorer(*scores())


def scarcity():
    return scarcity_explorer(runs())


def weights_of_two():
    return weight_explorer(MadeUpSweep(), baselines={"click": (0.70,) * 3, "purchase": (0.71, 0.712, 0.708)})


def weights_of_three():
    return weight_explorer(MadeUpSweep(("click", "cart", "purchase")))


def shopfront(users: int = 200, items: int = 800, points: int = 6, seed: int = 0, **options) -> Shopfront:
    """A shop of three trained tasks: the larger a task's weight, the better its prediction."""
    rng = np.random.default_rng(seed)
    names = np.array(["books", "electronics", "fashion", "home", "sports", "toys", "beauty", "garden"])
    category, quality = rng.integers(0, len(names), items), rng.normal(size=items)
    price = np.exp(rng.normal(3, 0.8, items)).round(2)
    taste = rng.normal(size=(users, len(names)))
    wish = (
        taste[:, category] + 0.7 * quality - 0.4 * (np.log(price) - 3) + 0.5 * rng.normal(size=(users, items))
    )
    grid = np.array([(i, j, points - 1 - i - j) for i in range(points) for j in range(points - i)]) / (
        points - 1
    )
    weightings = pd.DataFrame(grid, columns=["purchase", "next_category", "next_item"])

    def guessed(truth: np.ndarray, task: int) -> np.ndarray:
        noise = rng.normal(size=(len(grid), *truth.shape)).astype(np.float32)
        return truth + noise * (1.2 - 0.8 * grid[:, task, None, None])

    def softmax(z: np.ndarray) -> np.ndarray:
        odds = np.exp(z - z.max(-1, keepdims=True))
        return (odds / odds.sum(-1, keepdims=True)).astype(np.float32)

    signals = {
        "purchase": (1 / (1 + np.exp(4.5 - guessed(wish, 0)))).astype(np.float32),
        "favourite": softmax(guessed(taste, 1))[:, :, category],
        "next item": softmax(guessed(wish + quality, 2)),
    }
    brands = [f"brand {number}" for number in rng.integers(1, 40, items)]
    titles = [f"Thing {number}" for number in range(items)]
    table = pd.DataFrame({"title": titles, "category": names[category], "brand": brands, "price": price})
    truth = 1 / (1 + np.exp(4.5 - wish))
    parts = {
        "items": table,
        "users": [f"user {number}" for number in range(users)],
        "weightings": weightings,
        "predictions": signals,
        "true_purchase": truth,
        "relevance": truth,
        "counts": rng.poisson(np.exp(1 + quality)),
        "pictures": rng.integers(0, 256, (items, 16, 16, 3), dtype=np.uint8),
        "position_factors": np.ones(10),
        "k": 10,
    }
    return Shopfront(**parts | options)


TODAY = {"purchase": 1.0, "favourite": 0.5, "next item": 0.0, "price": 0.0}


def dashboard(**options):
    equal = {"purchase": 1.0, "next_category": 1.0, "next_item": 1.0}
    return shop_dashboard(shopfront(**options), exponents=TODAY, weights=equal)


def live() -> live_training:
    train, schema = clicks_and_purchases()
    torch.manual_seed(0)
    model = SharedBottom(schema, train.tasks, hidden=(32, 16), tower=(8,))
    return live_training(model, train, clicks_and_purchases(3000, seed=1)[0], batch_size=256)


def logits():
    return logit_explorer()


def gradients():
    return two_gradients_explorer()


def bowls():
    tilted = np.array([[[1.0, 0.0], [0.0, 4.0]], [[3.0, 1.5], [1.5, 1.5]]])
    return two_losses_explorer(tilted, np.array([[-1.5, -0.5], [1.5, 1.0]]))


def front():
    return front_explorer(0.9)


ALL = {
    "threshold_explorer": threshold,
    "scarcity_explorer": scarcity,
    "weight_explorer, 2 tasks": weights_of_two,
    "weight_explorer, 3 tasks": weights_of_three,
    "shop_dashboard": dashboard,
    "logit_explorer": logits,
    "two_gradients_explorer": gradients,
    "two_losses_explorer": bowls,
    "front_explorer": front,
    "live_training": live,
}
