"""Task weights that a slider changes while the model trains.

Taught in notebook 02. The loop is :func:`mtl_helpers.training.training_steps`, which reads the weights at every step;
here it runs as an asyncio task on the kernel's own loop and hands control back every few milliseconds, so that the
sliders stay alive without threads.
"""

from __future__ import annotations

import asyncio
import copy
import math
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from mtl_helpers.data.tables import MultiTaskDataset
from mtl_helpers.losses import task_losses
from mtl_helpers.training import MAIN_METRIC, evaluate, training_steps
from mtl_helpers.widgets.explorer import Explorer, slider, undefined
from mtl_helpers.widgets.figures import GREY, HEIGHT, figure, legend_outside, metric_name, task_style

__all__ = ["gradient_shares", "live_training"]

SLICE_S = 0.008  # work between two looks at the sliders
PREVIEW_STEPS = 40  # before the first picture
SHARES_EVERY, METRICS_EVERY = 5, 20  # steps
TURNS = 20  # of the event loop at each look: a message passes many callbacks on its way to a slider
FRAME_S = 0.125  # between two pictures
SMOOTH = 0.9  # of the loss curves: exponential moving average


class live_training:
    """A model with Start, Pause, Stop and Reset, and a weight slider for each of its tasks (notebook 02).

    model : of :mod:`mtl_helpers.models`; trained in place by AdamW, and moved to the data's device.
    train, valid : data whose labels cover the model's tasks; metrics are computed on up to 4096 rows of ``valid``.
    lr, batch_size : as for :func:`mtl_helpers.training.fit`.

    Weights of L = Σ wᵢ Lᵢ start at 0.5 each. Some steps are made before the first picture, so that it shows something;
    Start goes on from there. Making one, or starting one, pauses any other of this kernel, so running a cell again
    leaves no loop behind. In code: ``run_steps(n)``, ``explorer.set(click=.9)``, the lists ``used`` and ``losses`` (of
    each step, by task), ``shares`` and ``metrics`` (step, by task), and ``status``: "running", "paused", "stopped",
    "finished" or "failed".
    """

    pace, epochs = 60.0, 50  # at most so many steps a second, so that one sees what a slider does
    _latest: live_training | None = None  # of those that were started

    def __init__(
        self, model: nn.Module, train: MultiTaskDataset, valid: MultiTaskDataset,
        *, lr: float = 1e-3, batch_size: int = 1024
    ) -> None:  # fmt: skip
        self._pause_other()
        self.names = [task.name for task in model.tasks]
        self.weights = dict.fromkeys(self.names, 0.5)
        self.model, self.train = model.to(train.device), train
        self.valid = valid.take(slice(0, 4096))
        self.probe = next(iter(train.take(slice(0, min(batch_size, 1024))).batches(1024, shuffle=False)))
        self.lr, self.batch_size = lr, batch_size
        self._untrained = copy.deepcopy(model.state_dict())
        self._loop_task: asyncio.Task | None = None
        self._preview()
        self._figure = _Curves(self)
        title = f"Training {', '.join(self.names)} while their weights change"
        buttons = [("Start", self.start), ("Pause", self.pause), ("Stop", self.stop), ("Reset", self.reset)]
        knobs = [slider(name, f"weight of {name}", 0.0, 1.0, 0.5, step=0.05) for name in self.names]
        self.explorer = Explorer(self._figure.figure, knobs, self._update, title=title, buttons=buttons)

    def start(self) -> None:
        """Trains on, or anew after Stop or the last epoch. Outside a notebook's event loop call :meth:`run_steps`."""
        if self.running:
            return
        loop = asyncio.get_running_loop()
        self._pause_other()
        if self.status in ("stopped", "finished", "failed"):
            self._begin()
        self.status, live_training._latest = "running", self
        self._loop_task = loop.create_task(self._train_on())

    def pause(self) -> None:
        """Halts; Start goes on from here."""
        self._halt("paused")

    def stop(self) -> None:
        """Ends this run and keeps its curves; the next Start begins with the untrained model."""
        self._halt("stopped")

    def reset(self) -> None:
        """Ends this run; the model, the curves and the weights are as they were at first."""
        self.stop()
        self.weights |= dict.fromkeys(self.names, 0.5)
        self._preview()
        self._figure.fit(self, anew=True)
        self.explorer.reset()

    def run_steps(self, steps: int) -> live_training:
        """Trains that many steps here and now, without an event loop, and draws the picture."""
        if self.status in ("stopped", "finished", "failed"):
            self._begin()
        for _ in range(steps):
            if self.status != "finished":
                self._advance()
        self._draw()
        return self

    @property
    def running(self) -> bool:
        return self._loop_task is not None and not self._loop_task.done()

    @property
    def step(self) -> int:
        """Optimiser steps made so far."""
        return len(self.losses)

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> tuple[dict, dict]:
        return self.explorer._repr_mimebundle_(include, exclude)

    def _preview(self) -> None:
        """The first state: some steps of a new run."""
        self._begin()
        for _ in range(PREVIEW_STEPS):
            self._advance()

    def _begin(self) -> None:
        """A run from the untrained model, with nothing recorded yet."""
        self.model.load_state_dict(self._untrained)
        self.used, self.losses, self.shares, self.metrics, self.status = [], [], [], [], "paused"
        optimizer = torch.optim.AdamW(self.model.parameters(), lr=self.lr)
        how = {"weights": self.weights, "batch_size": self.batch_size, "epochs": self.epochs}
        how["generator"] = torch.Generator().manual_seed(0)
        self._loop = training_steps(self.model, self.train, optimizer, **how)

    def _advance(self) -> None:
        """One optimiser step and its records, or the end."""
        used = dict(self.weights)
        step = next(self._loop, None)
        if step is None:
            self.status = "finished"
            return
        self.used.append(used)
        self.losses.append({name: float(step.losses[name]) for name in self.names})
        if self.step % SHARES_EVERY == 1:
            self.shares.append((self.step, gradient_shares(self.model, self.probe, used)))
        if self.step % METRICS_EVERY == 0 or self.step == 1:
            found = evaluate(self.model, self.valid)
            main = {task.name: found[task.name][MAIN_METRIC[task.kind]] for task in self.model.tasks}
            self.metrics.append((self.step, main))

    async def _train_on(self) -> None:
        """Slices of training, each followed by a look at the sliders, and now and then a picture."""
        due = draw_at = time.perf_counter()
        try:
            while self.status == "running":
                until = time.perf_counter() + SLICE_S
                while self.status == "running" and (now := time.perf_counter()) < until:
                    if now < due:
                        await asyncio.sleep(due - now)
                        break
                    due = max(due + 1 / self.pace, now - FRAME_S)  # a blocked kernel is not made up for
                    self._advance()
                if time.perf_counter() > draw_at:
                    began = time.perf_counter()
                    self._draw()
                    now = time.perf_counter()
                    draw_at = now + max(FRAME_S, 4 * (now - began))  # a slow one trains more than it draws
                for _ in range(TURNS):
                    await asyncio.sleep(0)
            self._draw()
        except (KeyboardInterrupt, Exception) as exception:  # none must escape into the kernel's event loop
            self.status = "paused" if isinstance(exception, KeyboardInterrupt) else "failed"
            self.explorer.refresh()
            if self.status == "failed":
                self.explorer.show_error(exception)

    def _pause_other(self) -> None:
        if live_training._latest:
            live_training._latest.pause()

    def _halt(self, status: str) -> None:
        if self.running:
            self._loop_task.cancel()
        self._loop_task = None
        if self.status in ("running", "paused"):
            self.status = status
            self._draw()

    def _draw(self) -> None:
        """The picture after training went on; a moved slider alone leaves the limits where they are."""
        self._figure.fit(self)
        self.explorer.refresh()

    def _update(self, state: Mapping[str, float]) -> str:
        self.weights.update(state)
        self._figure.show(self)
        steps = self.epochs * -(-len(self.train) // self.batch_size)
        text = f"Step {self.step} of {steps:,}, {self.status}. Weights: {_listed(self.weights)}."
        if not any(self.weights.values()):
            text += " All weights are 0: nothing is learned."
        if self.metrics:
            text += f" Share of the gradient in the shared layers: {_listed(self.shares[-1][1])}."
            last = self.metrics[-1][1]
            text += f" Validation: {_listed(last, '.4f')}. {undefined(last)}"
        return text.strip()


def gradient_shares(model: nn.Module, batch: Any, weights: Mapping[str, float]) -> dict[str, float]:
    """‖wᵢ ∇Lᵢ‖ of each task over their sum, on a batch, at the shared parameters; NaN when all of them vanish."""
    shared, was_training = list(model.shared_parameters()), model.training
    model.eval()  # dropout would draw random numbers that the training should not miss
    try:
        losses = task_losses(model.tasks, model(batch.numeric, batch.categorical), batch)
        norms = {}
        for name, loss in losses.items():
            grads = torch.autograd.grad(loss, shared, retain_graph=True, materialize_grads=True)
            norms[name] = weights[name] * float(torch.stack([grad.norm() for grad in grads]).norm())
    finally:
        model.train(was_training)
    total = sum(norms.values())
    return {name: norm / total if total > 0 else math.nan for name, norm in norms.items()}


def _listed(values: Mapping[str, float], fmt: str = ".2f") -> str:
    return ", ".join(f"{name} {value:{fmt}}" for name, value in values.items())


class _Curves:
    """Losses, shares, and a panel for each metric. ``show`` moves lines, which is quick; ``fit`` moves limits, which
    redraws the axes."""

    def __init__(self, live: live_training) -> None:
        self.figure = figure(HEIGHT)
        metrics = {task.name: metric_name(MAIN_METRIC[task.kind]) for task in live.model.tasks}
        kinds = sorted(set(metrics.values()))
        self.axes = self.figure.subplot_mosaic([["losses", "shares", kind] for kind in kinds])
        losses, shares, first, *_ = self.axes.values()
        for name, ax in self.axes.items():
            ax.set(xlim=(0, 200), xlabel="step", ylabel=name)
            ax.locator_params(nbins=5)
        losses.set(title="Losses (smoothed)", ylabel="loss (nats)")
        shares.set(title="Pull on the shared layers", ylabel="share of the gradient", ylim=(0, 1))
        first.set_title("Validation")
        for kind in kinds[:-1]:
            self.axes[kind].set(xlabel="", xticklabels=[])
        self.lines = {}  # of each task: its loss, its share, its metric, its share of the weights, its slider
        for i, name in enumerate(live.names):
            look = {**task_style(name), "marker": "", "lw": 1.6}
            panels = losses, shares, self.axes[metrics[name]]
            curves = [ax.plot([], [], animated=True, **look)[0] for ax in panels]
            losses.plot([], [], label=name, **look)
            look = {"color": look["color"], "animated": True}
            wide = {"lw": 9 - 8 * i / len(live.names), "alpha": 0.3}  # equal weights lie on one another
            curves += shares.plot([], [], **wide, **look)
            curves += shares.plot([], [], "<", ms=8, clip_on=False, zorder=2.1, **look)
            self.lines[name] = curves
        shares.plot([], [], "<-", color=GREY, lw=3, alpha=0.5, label="share of the weights")
        legend_outside(self.figure)
        self.fit(live)

    def show(self, live: live_training) -> None:
        losses, used = (
            pd.DataFrame(each, columns=live.names, dtype=float) for each in (live.losses, live.used)
        )
        smooth, asked = losses.ewm(alpha=1 - SMOOTH).mean(), used.div(used.sum(axis=1), axis=0)
        steps, wide = np.arange(1, live.step + 1), self.axes["losses"].get_xlim()[1]
        total = sum(live.weights.values()) or math.nan
        for i, (name, (loss, *measured, wanted, mark)) in enumerate(self.lines.items()):
            loss.set_data(steps, smooth[name])
            wanted.set_data(steps, asked[name])
            for line, found in zip(measured, (live.shares, live.metrics), strict=True):
                line.set_data([at for at, _ in found], [values[name] for _, values in found])
            beside = live.step + (0.02 + 0.045 * i) * wide
            mark.set_data([beside], [live.weights[name] / total])

    def fit(self, live: live_training, anew: bool = False) -> None:
        """Limits that hold the curves and that their quantities allow; ``anew`` for those of a new run."""
        self.show(live)
        wanted = 200 * 2 ** max(0, math.ceil(math.log2(max(live.step, 1) / 180)))
        if wanted != self.axes["losses"].get_xlim()[1]:
            for ax in self.axes.values():
                ax.set_xlim(0, wanted)
        for name, ax in self.axes.items():
            values = np.concatenate([line.get_ydata() for line in ax.lines])
            if name == "shares" or not np.isfinite(values).any():
                continue
            low, high, (bottom, top) = np.nanmin(values), np.nanmax(values), ax.get_ylim()
            span = max(high - low, 2e-3)
            if anew or low < bottom or high > top or span < 0.3 * (top - bottom):
                most = 1.0 if name in ("AUC", "accuracy") else math.inf
                ax.set_ylim(max(0.0, low - 0.15 * span), min(most, high + 0.3 * span))
