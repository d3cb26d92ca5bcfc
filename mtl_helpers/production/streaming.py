"""Train on more rows than memory holds: parquet files read a few row groups at a time. Taught in notebook 10."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from mtl_helpers.data.features import FeatureEncoder
from mtl_helpers.data.tables import MultiTaskDataset, Task

__all__ = ["buffers"]


def buffers(
    files: Sequence[Path],
    encoder: FeatureEncoder,
    tasks: Sequence[Task],
    groups: int = 16,
    generator: torch.Generator | None = None,
) -> Iterator[MultiTaskDataset]:
    """Yield all rows of parquet files once, as datasets of ``groups`` row groups.

    With a ``generator`` row groups come in random order, and a buffer holds rows from anywhere in the files; shuffle
    its rows (``training_steps`` does) and the order is nearly that of a full shuffle.
    """
    from pyarrow import Table
    from pyarrow.parquet import ParquetFile

    columns = [*encoder.numeric, *encoder.categorical, *(task.name for task in tasks)]
    places = [(path, k) for path in files for k in range(ParquetFile(path).num_row_groups)]
    order = torch.arange(len(places))
    if generator is not None:
        order = torch.randperm(len(places), generator=generator)
    for some in order.split(groups):
        parts = (
            ParquetFile(path).iter_batches(row_groups=[k], columns=columns)
            for path, k in map(places.__getitem__, some)
        )
        frame = Table.from_batches([batch for part in parts for batch in part]).to_pandas()
        yield MultiTaskDataset.from_frame(frame, encoder, tasks)
