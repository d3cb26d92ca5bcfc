"""One training in several processes, on one machine or many: torchrun starts them. Taught in notebook 10."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mtl_helpers.data.tables import Batch
from mtl_helpers.losses import label_counts
from mtl_helpers.training import TrainingDiverged
from mtl_helpers.weighting import Fixed, Weighting

__all__ = ["across", "global_means", "processes"]


def global_means(means: Tensor, counts: Tensor) -> Tensor:
    """Each task's mean loss over the labelled rows of *all* processes, from this one's means and label counts, (T,).

    The values are the same everywhere. The gradient is this process's part times their number, because
    DistributedDataParallel averages gradients.
    """
    sums = means * counts
    total = torch.stack([sums.detach(), counts])
    dist.all_reduce(total)
    everywhere = total[1].clamp(min=1e-12)
    own = sums * dist.get_world_size() / everywhere
    return own + (total[0] / everywhere - own).detach()


def across(strategy: Weighting) -> Weighting:
    """Let a strategy (changed in place) train in all processes: ``fit(…, weights=across(Fixed(tasks, weights)))``.

    Every process holds the data and draws the same batches; each computes its share of the rows. All start from process
    0's parameters; it alone validates and writes checkpoints. Raises TypeError for a strategy that takes gradients
    apart: a process has only its own.
    """
    if type(strategy).backward not in (Weighting.backward, Fixed.backward):
        raise TypeError(f"{type(strategy).__name__} takes gradients apart, and a process has only its own.")
    begin, losses, wrapped = strategy.begin, strategy.losses, []

    def begin_everywhere(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        begin(model, optimizer)
        wrapped[:] = [nn.parallel.DistributedDataParallel(model)]

    def losses_everywhere(model: nn.Module, batch: Batch) -> Tensor:
        own = _share(batch, slice(dist.get_rank(), None, dist.get_world_size()))
        return global_means(losses(wrapped[0], own), label_counts(strategy.tasks, own))

    def once(work: Callable[[], Any]) -> Any:
        found = [None if dist.get_rank() else work()]
        dist.broadcast_object_list(found)
        return found[0]

    strategy.begin, strategy.losses, strategy.once = begin_everywhere, losses_everywhere, once
    return strategy


def _share(batch: Batch, rows: slice) -> Batch:
    """Some rows of a batch; with weights, so that the mean over no row is 0 and not NaN."""
    weights = torch.ones_like(batch.numeric[:, 0]) if batch.weights is None else batch.weights
    return replace(batch, weights=weights).take(rows)


@contextmanager
def processes(seconds: int = 60) -> Iterator[torch.device]:
    """Join the processes that torchrun started, by nccl on GPUs, else gloo; gives this one's device. One that loses
    another, or waits for it longer than ``seconds``, raises RuntimeError that says what to do."""
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    # a restart must not find the addresses of those that died
    store, rank, world = next(dist.rendezvous("env://"))
    store = dist.PrefixStore(f"start {os.environ['TORCHELASTIC_RESTART_COUNT']}", store)
    backend, how = "gloo" if device.type == "cpu" else "nccl", {"rank": rank, "world_size": world}
    dist.init_process_group(backend, store=store, timeout=timedelta(seconds=seconds), **how)
    try:
        yield device
        dist.barrier()  # who left first would take the connection from those who still write
    except TrainingDiverged:
        raise
    except RuntimeError as error:
        cure = (
            "another one died or is stuck. Start the same command again: it goes on from the last checkpoint"
        )
        raise RuntimeError(f"Process {rank} stops: {cure}. ({error})") from error
    finally:
        dist.destroy_process_group()
