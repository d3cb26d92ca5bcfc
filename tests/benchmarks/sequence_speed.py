"""Training a transformer over histories: ours against a plain loop, and against torch's own encoder in a plain loop.

    OMP_NUM_THREADS=1 python tests/benchmarks/sequence_speed.py [--rounds 9]

One epoch over half of the shop's log, click and purchase, the last 20 clicks, two widths. All three start from the same
weights, read the same batches and end with the same ones to within rounding, which is asserted. Rows a second of
processor time; contestants take turns, ratios are taken within a round.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from functools import partial

import torch
import torch.nn.functional as F
from timing import command_line, machine, ratios, show, spread, take_turns
from torch import Tensor, nn

from mtl_helpers import data
from mtl_helpers.models import CausalTransformer, SequenceBottom
from mtl_helpers.training import training_steps

TASKS, BATCH = ("click", "purchase"), 1024


class TorchReader(nn.Module):
    """The causal transformer with torch's own layers, from the weights of ours."""

    def __init__(self, ours: CausalTransformer) -> None:
        super().__init__()
        width = len(ours.start)
        layer = nn.TransformerEncoderLayer(
            width, ours.blocks[0].heads, 4 * width, dropout=0, activation="gelu", batch_first=True, norm_first=True
        )  # fmt: skip
        self.encoder = nn.TransformerEncoder(
            layer, len(ours.blocks), nn.LayerNorm(width), enable_nested_tensor=False
        )
        self.start, self.position = nn.Parameter(ours.start.clone()), nn.Parameter(ours.position.clone())
        self.encoder.norm.load_state_dict(ours.norm.state_dict())
        for mine, block in zip(self.encoder.layers, ours.blocks, strict=True):
            mine.self_attn.in_proj_weight.data.copy_(block.query_key_value.weight)
            mine.self_attn.in_proj_bias.data.copy_(block.query_key_value.bias)
            pairs = {"out": mine.self_attn.out_proj, "norm": mine.norm1, "inner_norm": mine.norm2}
            for part, theirs in pairs.items():
                theirs.load_state_dict(getattr(block, part).state_dict())
            mine.linear1.load_state_dict(block.inner[0].state_dict())
            mine.linear2.load_state_dict(block.inner[2].state_dict())

    def forward(self, events: Tensor, there: Tensor) -> Tensor:
        n, length, width = events.shape
        x = torch.cat([self.start.expand(n, 1, width), (events + self.position) * there[..., None]], 1)
        mask = torch.ones(length + 1, length + 1, dtype=torch.bool).triu(1)
        return self.encoder(x, mask=mask, src_key_padding_mask=F.pad(~there, (1, 0), value=False))[:, 1:]


def training_part(rows: int) -> tuple:
    """Schema, tasks, events and products of a model, and the rows that it learns from."""
    shop = data.load_shop()
    frame = data.shop_frame(shop).tail(rows)
    frames = data.shop_splits(frame)
    splits = data.prepare(frames, data.SHOP_TASKS[:2], data.SHOP_NUMERIC, data.SHOP_CATEGORICAL)
    events, session = data.session_events(frame, 20)
    own, train = session[frame.index.get_indexer(frames["train"].index)], splits.train
    train = data.attach(train, own, frames["train"]["item_id"].to_numpy() + 1)
    products = data.product_codes(data.clean_items(shop.items), ("sub_category", "brand"))
    return (splits.schema, splits.tasks, events, products), data.SessionDataset(**vars(train))


def made(known: tuple, width: int, torchs: bool) -> SequenceBottom:
    torch.manual_seed(0)
    model = SequenceBottom(*known, width=width, heads=4)
    if torchs:
        model.reader = TorchReader(model.reader)
    return model


def ours(known: tuple, train: data.SessionDataset, width: int) -> Tensor:
    model = made(known, width, False)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0)
    order = torch.Generator().manual_seed(0)
    steps = training_steps(model, train, optimizer, batch_size=BATCH, generator=order)
    losses = [step.losses for step in steps]
    return torch.stack(list(losses[-1].values()))


def plain(known: tuple, train: data.SessionDataset, width: int, torchs: bool) -> Tensor:
    model = made(known, width, torchs)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0)
    session, order = train.categorical[:, -2], torch.Generator().manual_seed(0)
    place = torch.randperm(int(session.max()) + 1, generator=order)
    for rows in place[session].argsort(stable=True).split(BATCH):
        logits = model(train.numeric[rows], train.categorical[rows])
        each = [F.binary_cross_entropy_with_logits(logits[task], train.labels[task][rows]) for task in TASKS]
        optimizer.zero_grad()
        sum(each).backward()
        optimizer.step()
    return torch.stack(each).detach()


def compared(known: tuple, train: data.SessionDataset, rounds: int) -> Iterator[dict]:
    for width in (32, 128):
        work = {
            "ours": partial(ours, known, train, width),
            "plain torch loop, our layers": partial(plain, known, train, width, False),
            "plain torch loop, `nn.TransformerEncoder`": partial(plain, known, train, width, True),
        }
        runs = take_turns(work, rounds)
        for name, run in runs.items():
            torch.testing.assert_close(run.returned[-1], runs["ours"].returned[-1], rtol=1e-3, atol=1e-4)
            speed = f"{len(train) / statistics.median(run.cpu):,.0f}"
            faster = spread(ratios(run.cpu, runs["ours"].cpu))
            yield {"width": width, "": name, "rows a second": speed, "our speed as a multiple": faster}


if __name__ == "__main__":
    chosen = command_line(__doc__, rounds=9, rows=100_000)
    torch.set_num_threads(1)
    print(machine(), flush=True)
    show(compared(*training_part(chosen.rows), chosen.rounds))
