"""What the studies share: the package on the path, the command line, tables that resume, the setting that tuning draws
chose, a small shop, training that keeps a best epoch for each score, networks side by side."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from copy import deepcopy
from pathlib import Path

import pandas as pd
import torch
from torch import nn

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from mtl_helpers import data  # noqa: E402  (the path comes first)
from mtl_helpers.losses import label_counts  # noqa: E402
from mtl_helpers.metrics import auc  # noqa: E402
from mtl_helpers.training import predict, training_steps  # noqa: E402
from mtl_helpers.weighting import Fixed, Weighting, constant_losses  # noqa: E402


def command_line(text: str, **defaults: int | float | tuple) -> argparse.ArgumentParser:
    """An option for each keyword: a number, several numbers, or several of these names; all when left out. And
    ``--out``, the folder of the tables."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in defaults.items():
        kind, how = type(default), {}
        if kind is tuple:
            kind, how = type(default[0]), {"nargs": "+", "choices": default if kind is str else None}
        parser.add_argument(f"--{name}", type=kind, default=default, **how)
    parser.add_argument("--out", type=Path, default=ROOT / "notebooks" / "results")
    return parser


def store(path: Path, command: str, table: pd.DataFrame, **form: object) -> None:
    """Write a table; its first line is the command that makes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = table.to_csv(index=False, lineterminator="\n", **form)
    path.write_text(f"# python notebooks/studies/{command}\n{text}", encoding="utf-8")


class Table:
    """A stored table that grows by rows, in one write each; several processes may write to it. It is made if it is not
    there.

    key, setting : columns that name what is run, and what is tuned. kinds : types of columns of digits that are text.
    """

    def __init__(
        self, path: Path, command: str, columns: Iterable[str], key: Iterable[str] = (), setting: Iterable[str] = (),
        digits: int = 6, **kinds: type,
    ) -> None:  # fmt: skip
        self.path, self.columns, self.digits, self.kinds = path, list(columns), digits, kinds
        self.key, self.setting, self.size = list(key), list(setting), 0
        own = path.with_suffix(f".{os.getpid()}")
        store(own, command, pd.DataFrame(columns=self.columns))
        with contextlib.suppress(FileExistsError):  # of several processes that begin at once, one makes it
            os.link(own, path)
        own.unlink()

    def rows(self, **values: object) -> pd.DataFrame:
        """The rows that have these values; a tuple stands for any of its own."""
        if self.size != (size := self.path.stat().st_size):  # it may have grown
            table = pd.read_csv(self.path, comment="#", dtype=self.kinds)
            self.size, self.read = size, table.fillna(dict.fromkeys(self.kinds, ""))
        table = self.read
        for name, value in values.items():
            table = table[table[name].isin(value if isinstance(value, tuple) else (value,))]
        return table

    def has(self, **values: object) -> bool:
        return len(self.rows(**values)) > 0

    def done(self, **values: object) -> set[tuple]:
        """Keys with settings of the rows that have these values."""
        return set(self.rows(**values)[self.key + self.setting].itertuples(index=False, name=None))

    def best(self, by: str = "valid", lowest: bool = False, **values: object) -> tuple:
        """The setting with the best mean of a column, over the rows that have these values."""
        means = self.rows(**values).groupby(self.setting)[by].mean()
        found = means.idxmin() if lowest else means.idxmax()
        return found if isinstance(found, tuple) else (found,)

    def chosen(self, keys: Iterable[tuple], by: str = "valid", **draws: tuple) -> dict[tuple, tuple]:
        """The best setting of each key on the draws that tune."""
        means = self.rows(**draws).groupby(self.key + self.setting)[by].mean()
        return {key: means.loc[key].idxmax() for key in keys}

    def todo(
        self, keys: Iterable[tuple], grid: Iterable[tuple], chosen: dict[tuple, tuple], **here: object
    ) -> dict[tuple, list[tuple]]:
        """Each setting with the keys for which a draw has yet to run it: the chosen ones, or all of the grid."""
        done, found = self.done(**here), {}
        for setting in sorted({*chosen.values()}) if chosen else grid:
            asked = [key for key in keys if chosen.get(key, setting) == setting]
            found[setting] = [key for key in asked if (*key, *setting) not in done]
        return {setting: own for setting, own in found.items() if own}

    def add(self, rows: Iterable[dict], /, **same: object) -> None:
        """``same`` is what all of the rows share."""
        table = pd.DataFrame(rows).assign(**same).reindex(columns=self.columns).round(self.digits)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(table.to_csv(index=False, header=False, lineterminator="\n"))


def small_shop(seed: int, **config: float) -> tuple[data.Shop, dict[str, pd.DataFrame]]:
    """A shop in which all is new, and its 48,000 rows with their truth, 50/20/30 by time; purchases that are pending
    when the training part ends are unknown in it."""
    shop = data.simulate(data.ShopConfig(432, n_impressions=48_000, seed=seed, **config))
    frame = data.shop_frame(shop).merge(shop.truth, on="impression_id")
    parts = data.split_by_time(frame, fractions=(0.5, 0.2, 0.3))
    known = data.mask_future_labels(parts["train"], parts["valid"]["timestamp"].min(), pending="unknown")
    return shop, parts | {"train": known}


def prepared(frames: dict[str, pd.DataFrame]) -> data.Splits:
    """The shop's tasks and features, without ids."""
    return data.prepare(frames, data.SHOP_TASKS, data.SHOP_NUMERIC, data.SHOP_CATEGORICAL)


def score(task: data.Task, said: torch.Tensor, labels: torch.Tensor, known: torch.Tensor | None) -> float:
    """By labels: AUC, or the share of right classes, or of items among the ten likeliest."""
    if task.kind == "binary":
        return auc(labels.cpu(), said)
    known = slice(None) if known is None else known
    likeliest = said.to(labels.device)[known].topk(10 if task.name == "next_item" else 1).indices
    return float((likeliest == labels[known][:, None]).any(1).float().mean())


Best = dict[str, tuple[float, int, dict]]  # of each score: its value, the epoch, the parameters


def best_epochs(
    model: nn.Module, train: data.MultiTaskDataset, optimizer: torch.optim.Optimizer, scores: Callable[[], dict], *,
    weights: dict[str, float] | Weighting, seed: int, patience: int, batch_size: int = 1024, epochs: int,
) -> Best:  # fmt: skip
    """Train until none of the ``scores`` of an epoch has risen for ``patience`` of them; of each its best value, the
    epoch, and the parameters of then."""
    strategy = weights if isinstance(weights, Weighting) else Fixed(model.tasks, weights)
    how = {"weights": strategy, "batch_size": batch_size, "epochs": epochs}
    how["generator"] = torch.Generator().manual_seed(seed)
    best, sums, counts = {}, 0, 0
    for step in training_steps(model, train, optimizer, **how):
        count = label_counts(model.tasks, step.batch)
        sums, counts = sums + torch.stack([*step.losses.values()]) * count, counts + count
        if step.number < -(-len(train) // batch_size):
            continue
        strategy.after_epoch(sums / counts, None)
        sums, counts = 0, 0
        for what, value in scores().items():
            if what not in best or value > best[what][0]:
                best[what] = value, step.epoch, deepcopy(model.state_dict())
        if step.epoch >= max(epoch for _, epoch, _ in best.values()) + patience:
            break
    return best


def trained(
    model: nn.Module, parts: Iterable, seed: int, lr: float, weight_decay: float, **how: int | dict
) -> Iterator[tuple[data.Task, int, torch.Tensor]]:
    """Fit a model; yields a task, its best epoch, and what the model of that epoch says of the test part."""
    train, valid, test = parts
    model.to(train.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=weight_decay)
    weights = {task: 1 / loss for task, loss in constant_losses(train).items()}

    def scores() -> dict[str, float]:
        said, known = predict(model, valid), valid.masks
        return {t.name: score(t, said[t.name], valid.labels[t.name], known.get(t.name)) for t in model.tasks}

    how = {"epochs": 8, "weights": weights, "seed": seed, "patience": 2} | how
    best = best_epochs(model, train, optimizer, scores, **how)
    said = predict(model, test, {name: state for name, (_, _, state) in best.items()})
    for task in model.tasks:
        yield task, best[task.name][1], said[task.name]
