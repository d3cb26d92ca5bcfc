"""Training speed beside two other libraries and a plain PyTorch loop: same model size, data, batch, optimiser, threads.

    python tests/benchmarks/peers.py [--rounds 7] [--rows 50000] [--threads 1] [--figure FILE.png]

Installs torch-rechub and deepctr-torch (peers-requirements.txt) into a folder of their own at first, beside the torch
that is here. Each round trains every contestant for one epoch, in an order that turns; a ratio of processor seconds is
taken within a round, and its median and range over the rounds are printed.

What is equal: embeddings of 8, experts (or bottom) 64-32, towers 16, Adam at 1e-3, batches of 1024, two binary tasks,
the sum of their mean losses; the weights that ours, the plain loop and deepctr-torch start from, and the batches they
are fed. What is not: torch-rechub has BatchNorm in every layer, gates and towers included, and cannot be told
otherwise; both have one table for each column; deepctr-torch sums losses over rows (Adam hardly cares) and has gates
without bias. "as shipped" is a library's own loader and loop; "fed" is its model and loss with ready tensors.
"""

from __future__ import annotations

import contextlib
import io
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from timing import command_line, load, machine, ratios, show, spread, take_turns
from torch import Tensor, nn

from mtl_helpers.data import MultiTaskDataset, Schema, Task
from mtl_helpers.models import PLE, MMoE, SharedBottom, count_parameters
from mtl_helpers.training import training_steps

TASKS = (Task("click"), Task("purchase"))
COLUMNS, CARDINALITY, NUMBERS = 16, 1000, 8
BATCH, RATE, WIDTHS, TOWER, EMBEDDING = 1024, 1e-3, (64, 32), (16,), 8
SCHEMA = Schema(tuple(f"d{i}" for i in range(NUMBERS)), {f"c{i}": CARDINALITY for i in range(COLUMNS)})
OURS = {
    "shared bottom": lambda: SharedBottom(SCHEMA, TASKS, EMBEDDING, WIDTHS, TOWER),
    "MMoE": lambda: MMoE(SCHEMA, TASKS, EMBEDDING, WIDTHS, TOWER, n_experts=4),
    "PLE": lambda: PLE(SCHEMA, TASKS, EMBEDDING, WIDTHS, TOWER),
}
THEIRS = {"shared bottom": "SharedBottom", "MMoE": "MMOE", "PLE": "PLE"}  # classes of both libraries
Trainer = tuple[nn.Module, Callable[[], float]]  # a call trains for an epoch and gives its mean loss
Feed = Callable[[], Iterator[tuple[Tensor, ...]]]


def make_data(rows: int) -> MultiTaskDataset:
    """Random columns, and two labels that can be learned from them."""
    generator = torch.Generator().manual_seed(0)
    numeric = torch.randn(rows, NUMBERS, generator=generator)
    codes = torch.randint(0, CARDINALITY, (rows, COLUMNS), generator=generator)
    effect = torch.randn(CARDINALITY, COLUMNS, 2, generator=generator)
    score = effect[codes, torch.arange(COLUMNS)].sum(1) / 3 + numeric[:, :2]
    labels = (torch.rand(rows, 2, generator=generator) < score.sigmoid()).float()
    labels = {task.name: labels[:, i].contiguous() for i, task in enumerate(TASKS)}
    return MultiTaskDataset(numeric, codes, labels, {}, TASKS)


def in_memory(*tensors: Tensor) -> Feed:
    """Batches whose rows are gathered from tensors; each epoch in a new order."""
    generator = torch.Generator().manual_seed(0)

    def feed() -> Iterator[tuple[Tensor, ...]]:
        for rows in torch.randperm(len(tensors[0]), generator=generator).split(BATCH):
            yield tuple(tensor[rows] for tensor in tensors)

    return feed


def usual_loop(model: nn.Module, feed: Feed, loss_of: Callable[..., Tensor]) -> Trainer:
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)

    def epoch() -> float:
        total = rows = 0
        model.train()
        for batch in feed():
            loss = loss_of(*batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(batch[0])
            rows += len(batch[0])
        return total / rows

    return model, epoch


def ours(kind: str, data: MultiTaskDataset) -> Trainer:
    """The loop that ``fit`` runs."""
    torch.manual_seed(0)
    model, generator = OURS[kind](), torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)

    def epoch() -> float:
        steps = training_steps(model, data, optimizer, batch_size=BATCH, generator=generator)
        return sum(float(sum(step.losses.values())) * len(step.batch) for step in steps) / len(data)

    return model, epoch


def layers(*widths: int) -> nn.Sequential:
    return nn.Sequential(*(part for a, b in pairwise(widths) for part in (nn.Linear(a, b), nn.ReLU())))


class Plain(nn.Module):
    """What one writes by hand: one table with offsets, a list of experts, a loop over them. It starts as ours does."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        n_in = COLUMNS * EMBEDDING + NUMBERS
        experts, seen = {"shared bottom": (1, 0), "MMoE": (4, 4), "PLE": (3, 2)}[kind]
        self.kind, self.offset = kind, torch.arange(COLUMNS) * CARDINALITY
        self.table = nn.Embedding(COLUMNS * CARDINALITY, EMBEDDING)
        self.experts = nn.ModuleList(layers(n_in, *WIDTHS) for _ in range(experts))
        self.gates = nn.ModuleList(nn.Linear(n_in, seen) for _ in TASKS if seen)
        towers = (layers(WIDTHS[-1], *TOWER).append(nn.Linear(TOWER[-1], 1)) for _ in TASKS)
        self.towers = nn.ModuleList(towers)
        torch.manual_seed(0)
        copy(self.parameters(), OURS[kind]().parameters())

    def forward(self, numeric: Tensor, codes: Tensor) -> list[Tensor]:
        x = torch.cat([self.table(codes + self.offset).flatten(1), numeric], dim=1)
        outputs = [expert(x) for expert in self.experts]
        found = []
        for i, tower in enumerate(self.towers):
            if self.kind == "shared bottom":
                mixed = outputs[0]
            else:
                seen = torch.stack(outputs if self.kind == "MMoE" else [outputs[i], outputs[2]], dim=1)
                mixed = (self.gates[i](x).softmax(1).unsqueeze(-1) * seen).sum(1)
            found.append(tower(mixed).squeeze(1))
        return found


@torch.no_grad()
def copy(to: Iterable[Tensor], source: Iterable[Tensor]) -> None:
    for mine, theirs in zip(to, source, strict=True):
        assert mine.shape == theirs.shape
        mine.copy_(theirs)


def plain(kind: str, data: MultiTaskDataset) -> Trainer:
    model, feed = Plain(kind), in_memory(data.numeric, data.categorical, *data.labels.values())

    def loss_of(numeric: Tensor, codes: Tensor, *labels: Tensor) -> Tensor:
        logits = model(numeric, codes)
        return sum(map(F.binary_cross_entropy_with_logits, logits, labels))

    return usual_loop(model, feed, loss_of)


def by_column(data: MultiTaskDataset) -> tuple[dict[str, Tensor], Tensor]:
    columns = {name: data.categorical[:, i].contiguous() for i, name in enumerate(SCHEMA.categorical)}
    columns |= {name: data.numeric[:, i].contiguous() for i, name in enumerate(SCHEMA.numeric)}
    return columns, torch.stack(list(data.labels.values()), dim=1)


def rechub(kind: str, data: MultiTaskDataset, fed: bool = False) -> Trainer:
    from torch_rechub.basic.features import DenseFeature, SparseFeature
    from torch_rechub.basic.initializers import RandomNormal
    from torch_rechub.models import multi_task
    from torch_rechub.trainers import MTLTrainer
    from torch_rechub.utils.data import DataGenerator

    torch.manual_seed(0)
    normal = RandomNormal(0, 0.1)
    features = [SparseFeature(c, CARDINALITY, EMBEDDING, initializer=normal) for c in SCHEMA.categorical]
    features += [DenseFeature(name) for name in SCHEMA.numeric]
    types, expert, towers = ["classification"] * 2, {"dims": list(WIDTHS)}, [{"dims": list(TOWER)}] * 2
    own = {"shared bottom": (), "MMoE": (4,), "PLE": (1, 1, 1)}[kind]
    model = getattr(multi_task, THEIRS[kind])(features, types, *own, expert, towers)
    trainer = MTLTrainer(model, types, optimizer_params={"lr": RATE}, device="cpu")
    columns, labels = by_column(data)
    feed = in_memory(*columns.values(), labels)
    arrays, y = {name: column.numpy() for name, column in columns.items()}, labels.numpy()
    parts = {"x_val": arrays, "y_val": y, "x_test": arrays, "y_test": y}
    shipped, *_ = DataGenerator(arrays, y).generate_dataloader(**parts, batch_size=BATCH)

    def epoch() -> float:  # theirs returns a mean over batches, task by task
        ready = ((dict(zip(columns, parts, strict=True)), truth) for *parts, truth in feed())
        return float(sum(trainer.train_one_epoch(ready if fed else shipped)))

    return model, epoch


def start_deepctr_as(model: nn.Module, other: Plain) -> None:
    """Copy the weights of the plain model; only its gates' biases have no place to go."""
    found = dict(model.named_parameters())

    def named(*starts: str) -> list[Tensor]:
        return [value for name, value in found.items() if name.startswith(starts)]

    copy(named("embedding_dict"), other.table.weight.split(CARDINALITY))
    copy(named("bottom_dnn", "expert_dnn", "specific_exp", "shared_exp"), other.experts.parameters())
    copy(named("gate_dnn", "specific_gate_dnn"), (gate.weight for gate in other.gates))
    for i, tower in enumerate(other.towers):
        starts = f"tower_dnn.{i}", f"tower_dnn_final_layer.{i}", f"out.{i}"
        copy([value for start in starts for value in named(start)], tower.parameters())


def deepctr(kind: str, data: MultiTaskDataset, fed: bool = False) -> Trainer:
    from deepctr_torch.inputs import DenseFeat, SparseFeat
    from deepctr_torch.models import multitask

    features = [SparseFeat(name, CARDINALITY, embedding_dim=EMBEDDING) for name in SCHEMA.categorical]
    features += [DenseFeat(name, 1) for name in SCHEMA.numeric]
    own = {"expert_dnn_hidden_units": WIDTHS, "gate_dnn_hidden_units": ()}
    own |= {"num_experts": 4} if kind == "MMoE" else {"num_levels": 1}
    own = {"bottom_dnn_hidden_units": WIDTHS} if kind == "shared bottom" else own
    own |= {"l2_reg_embedding": 0.0, "l2_reg_linear": 0.0, "task_names": [task.name for task in TASKS]}
    model = getattr(multitask, THEIRS[kind])(features, tower_dnn_hidden_units=TOWER, seed=0, **own)
    start_deepctr_as(model, Plain(kind))
    columns, labels = by_column(data)
    if fed:

        def loss_of(inputs: Tensor, truth: Tensor) -> Tensor:
            return sum(map(F.binary_cross_entropy, model(inputs).T, truth.T))

        return usual_loop(model, in_memory(torch.stack(list(columns.values()), dim=1), labels), loss_of)
    model.compile(torch.optim.Adam(model.parameters(), lr=RATE), loss=["binary_crossentropy"] * 2)
    arrays = {name: column.numpy() for name, column in columns.items()}

    def epoch() -> float:
        history = model.fit(dict(arrays), labels.numpy(), batch_size=BATCH, epochs=1, verbose=0)
        return float(history.history["loss"][-1])

    return model, epoch


CONTESTANTS: dict[str, Callable[[str, MultiTaskDataset], Trainer]] = {
    "ours": ours,
    "plain torch loop": plain,
    "torch-rechub, as shipped": rechub,
    "torch-rechub, fed": partial(rechub, fed=True),
    "deepctr-torch, as shipped": deepctr,
    "deepctr-torch, fed": partial(deepctr, fed=True),
}


def quiet(work: Callable, *args: object) -> object:
    """Run without the libraries' own progress bars and prints."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        return work(*args)


Race = tuple[dict[str, list[float]], dict[str, list[float]]]


def race(kind: str, data: MultiTaskDataset, rounds: int) -> Race:
    """Train all contestants epoch by epoch, in turn; print and return ratios of processor time and loss curves."""
    made = {name: quiet(make, kind, data) for name, make in CONTESTANTS.items()}
    runs = take_turns({name: partial(quiet, epoch) for name, (_, epoch) in made.items()}, rounds)
    relative = {name: ratios(run.cpu, runs["ours"].cpu) for name, run in runs.items()}
    curves = {name: run.returned for name, run in runs.items()}
    print(f"\n### {kind}\n")
    show(
        {
            "contestant": name,
            "parameters": f"{count_parameters(made[name][0]):,}",
            "rows per CPU s": spread([len(data) / s for s in run.cpu], ",.0f"),
            "CPU time ÷ ours": spread(relative[name]),
            "last loss": f"{curves[name][-1]:.4f}",
            "gap to ours": f"{max(abs(a - b) for a, b in zip(curves[name], curves['ours'], strict=True)):.1e}",
        }
        for name, run in runs.items()
    )
    return relative, curves


def draw(races: dict[str, Race], path: str) -> None:
    """Above, processor time as a multiple of ours (median and range); below, the losses epoch by epoch."""
    import matplotlib.pyplot as plt
    import seaborn as sns

    sns.set_theme(style="whitegrid")
    colours = dict(zip(CONTESTANTS, sns.color_palette("colorblind"), strict=False))
    figure, axes = plt.subplots(2, len(races), figsize=(11, 6.2), layout="constrained", squeeze=False)
    for (above, below), (kind, (relative, curves)) in zip(axes.T, races.items(), strict=True):
        for place, (name, ratio) in enumerate(relative.items()):
            middle, colour, mine = statistics.median(ratio), colours[name], name == "ours"
            above.barh(place, middle, color=colour)
            above.plot([min(ratio), max(ratio)], [place, place], color="0.25", lw=1.5)
            where = {"xytext": (4, 0), "textcoords": "offset points", "va": "center"}
            above.annotate(f"{middle:.2f}", (max(ratio), place), **where, fontsize=9)
            line = "-" if mine or name.endswith("fed") else "--"
            below.plot(
                range(1, len(curves[name]) + 1), curves[name], line, color=colour, lw=3 if mine else 1.5
            )
        above.set(title=kind, xlabel="processor time ÷ ours", xlim=(0, None), yticks=range(len(relative)))
        above.set_yticklabels(relative if above is axes[0, 0] else [])
        above.invert_yaxis()
        above.margins(x=0.15)
        below.set(xlabel="epoch", ylabel="training loss, sum of both tasks" if above is axes[0, 0] else "")
    sns.despine(figure)
    figure.savefig(path, dpi=110)


def install() -> str:
    """Put the peers into a folder of their own, unless they are there; return it."""
    folder = Path(tempfile.gettempdir()) / "mtl-peers-rechub-0.9.0-deepctr-0.3.0"
    if not (folder / "deepctr_torch").is_dir():
        command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", folder, "-r"]
        subprocess.run([*command, Path(__file__).with_name("peers-requirements.txt")], check=True)
    return str(folder)


def main() -> None:
    options = command_line(__doc__, rounds=7, rows=50_000, threads=1, kinds=list(OURS), figure="")
    sys.path.insert(0, install())
    torch.set_num_threads(options.threads)
    data = make_data(options.rows)
    print(
        f"{options.rows:,} rows, {COLUMNS} categorical columns of {CARDINALITY} values and {NUMBERS} numeric ones, "
        f"batches of {BATCH}, {options.threads} thread(s), {options.rounds} rounds; {machine()} at the start."
    )
    races = {kind: race(kind, data, options.rounds) for kind in options.kinds}
    if options.figure:
        draw(races, options.figure)
    print(f"\n{load()} at the end.")


if __name__ == "__main__":
    main()
