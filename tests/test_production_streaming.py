"""A stream gives every row once, in bounded buffers, well shuffled, and trains like the table it was cut from."""

from __future__ import annotations

import pytest
import torch
from helpers import toy_frame, toy_splits

from mtl_helpers.data import MultiTaskDataset
from mtl_helpers.production.streaming import buffers

pytest.importorskip("pyarrow")


@pytest.fixture
def shards(tmp_path):
    frame = toy_frame(600).assign(x=range(600))
    for i in range(3):
        part = frame.iloc[200 * i : 200 * (i + 1)]
        part.to_parquet(tmp_path / f"{i}.parquet", row_group_size=50)
    return sorted(tmp_path.glob("*.parquet")), toy_splits(600), frame


def test_file_order_is_the_table(shards):
    files, splits, frame = shards
    parts = list(buffers(files, splits.encoder, splits.tasks, groups=5))
    assert [len(part) for part in parts] == [250, 250, 100]
    whole = MultiTaskDataset.from_frame(frame, splits.encoder, splits.tasks)
    assert torch.equal(torch.cat([part.numeric for part in parts]), whole.numeric)
    assert torch.equal(torch.cat([part.categorical for part in parts]), whole.categorical)
    for task in splits.tasks:
        assert torch.equal(torch.cat([part.labels[task.name] for part in parts]), whole.labels[task.name])
        known = [part.masks.get(task.name, torch.ones(len(part), dtype=bool)) for part in parts]
        assert torch.equal(torch.cat(known), whole.masks.get(task.name, torch.ones(600, dtype=bool)))


def test_shuffled_every_row_comes_once_in_another_order(shards):
    files, splits, frame = shards
    whole = MultiTaskDataset.from_frame(frame, splits.encoder, splits.tasks).numeric[:, 0]
    seen = []
    generator = torch.Generator().manual_seed(0)
    for _ in range(2):
        parts = list(buffers(files, splits.encoder, splits.tasks, groups=4, generator=generator))
        seen.append(torch.cat([part.numeric[:, 0] for part in parts]))
        assert torch.equal(seen[-1].sort().values, whole)
        assert len(parts[0].numeric[:, 0].diff().gt(0.1).nonzero()) >= 1  # from several places of the log
    assert not torch.equal(*seen)
