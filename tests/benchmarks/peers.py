"""Training speed beside two other libraries and a plain PyTorch loop: same model size, data, batch, optimiser, threads.

    python tests/benchmarks/peers.py [--rounds 7] [--rows 50000] [--threads 1] [--figure FILE.png]

Installs torch-rechub and deepctr-torch (peers-requirements.txt) into a folder of their own at first, beside the torch
that is here. Each round trains every contestant for one epoch, in an order that turns; a ratio is taken within a round,
and its median and range over the rounds are printed. CPU seconds of the process are the yardstick on a machine that
does other work too; wall seconds stand beside them. On a quiet machine the two agree.

What is equal: embeddings of 8, experts (or bottom) 64-32, towers 16, Adam at 1e-3, batches of 1024, two binary tasks,
the sum of their mean losses; the weights that ours, the plain loop and deepctr-torch start from, and the batches they
are fed. What is not: torch-rechub has BatchNorm in every layer, gates and towers included, and cannot be told
otherwise; both have one table for each column; deepctr-torch sums losses over rows (Adam hardly cares) and has gates
without bias. "as shipped" is a library's own loader and loop; "fed" is its model and loss with ready tensors: the rows
of a batch are gathered and passed in the form it wants.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

HERE = Path(__file__).resolve()
sys.path.insert(0, str(HERE.parents[2]))
from mtl_helpers.data import MultiTaskDataset, Schema, Task  # noqa: E402
from mtl_helpers.models import PLE, MMoE, SharedBottom, count_parameters  # noqa: E402
from mtl_helpers.training import training_steps  # noqa: E402

TASKS = (Task("click"), Task("purchase"))
COLUMNS, CARDINALITY, NUMBERS = 16, 1000, 8
BATCH, RATE, WIDTHS, TOWER, EMBEDDING = 1024, 1e-3, (64, 32), (16,), 8
KINDS = ("shared bottom", "MMoE", "PLE")
OURS = {
    "shared bottom": lambda schema: SharedBottom(schema, TASKS, EMBEDDING, WIDTHS, TOWER),
    "MMoE": lambda schema: MMoE(schema, TASKS, EMBEDDING, 4, WIDTHS, TOWER),
    "PLE": lambda schema: PLE(schema, TASKS, EMBEDDING, 1, 1, WIDTHS, 1, TOWER),
}
Epoch = Callable[[], float]


def make_data(rows: int) -> tuple[MultiTaskDataset, Schema]:
    """Random columns, and two labels that can be learned from them."""
    generator = torch.Generator().manual_seed(0)
    numeric = torch.randn(rows, NUMBERS, generator=generator)
    codes = torch.randint(0, CARDINALITY, (rows, COLUMNS), generator=generator)
    effect = torch.randn(CARDINALITY, COLUMNS, 2, generator=generator)
    score = effect[codes, torch.arange(COLUMNS)].sum(1) / 3 + numeric[:, :2]
    labels = (torch.rand(rows, 2, generator=generator) < score.sigmoid()).float()
    labels = {task.name: labels[:, i].contiguous() for i, task in enumerate(TASKS)}
    schema = Schema(tuple(f"d{i}" for i in range(NUMBERS)), {f"c{i}": CARDINALITY for i in range(COLUMNS)})
    return MultiTaskDataset(numeric, codes, labels, {}, TASKS), schema


def batches(data: MultiTaskDataset, generator: torch.Generator) -> Iterator[Tensor]:
    order = torch.randperm(len(data), generator=generator)
    yield from order.split(BATCH)


# ------------------------------------------------------------------------------------------------- ours, plain


def ours(kind: str, data: MultiTaskDataset, schema: Schema) -> Epoch:
    """The loop that ``fit`` runs."""
    torch.manual_seed(0)
    model, generator = OURS[kind](schema), torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)

    def epoch() -> float:
        steps = training_steps(model, data, optimizer, batch_size=BATCH, generator=generator)
        return sum(float(sum(step.losses.values())) * len(step.batch) for step in steps) / len(data)

    epoch.model = model
    return epoch


class Plain(nn.Module):
    """What one writes by hand: one table with offsets, a list of experts, a loop over them."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, n_in = kind, COLUMNS * EMBEDDING + NUMBERS
        self.table = nn.Embedding(COLUMNS * CARDINALITY, EMBEDDING)
        self.offset = torch.arange(COLUMNS) * CARDINALITY
        self.experts = nn.ModuleList(
            self.layers(n_in, WIDTHS) for _ in range({"MMoE": 4, "PLE": 3}.get(kind, 1))
        )
        self.gates = nn.ModuleList(
            nn.Linear(n_in, {"MMoE": 4, "PLE": 2}[kind]) for _ in TASKS if kind != "shared bottom"
        )
        self.towers = nn.ModuleList(
            self.layers(WIDTHS[-1], TOWER).append(nn.Linear(TOWER[-1], 1)) for _ in TASKS
        )

    @staticmethod
    def layers(n_in: int, widths: tuple[int, ...]) -> nn.Sequential:
        parts = []
        for width in widths:
            parts += [nn.Linear(n_in, width), nn.ReLU()]
            n_in = width
        return nn.Sequential(*parts)

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

    def start_as(self, other: nn.Module) -> None:
        """Copy the weights of our model, so that both must see the same losses."""
        groups = {"MMoE": ["experts"], "PLE": [f"levels.0.own.{t.name}" for t in TASKS] + ["levels.0.shared"]}
        with torch.no_grad():
            self.table.weight.copy_(other.features.embedding.weight)
            for i, task in enumerate(TASKS):
                copy(self.towers[i], other.towers[task.name])
                if self.kind != "shared bottom":
                    gates = other.gates if self.kind == "MMoE" else other.levels[0].gates
                    copy(self.gates[i], gates[task.name])
            if self.kind == "shared bottom":
                copy(self.experts[0], other.bottom)
                return
            theirs = [expert for name in groups[self.kind] for expert in other.get_submodule(name)]
            for mine, its in zip(self.experts, theirs, strict=True):
                copy(mine, its)


def started(kind: str, schema: Schema) -> Plain:
    """The plain model with the weights that ours starts from."""
    torch.manual_seed(0)
    model = Plain(kind)
    torch.manual_seed(0)
    model.start_as(OURS[kind](schema))
    return model


def copy(to: nn.Module, source: nn.Module) -> None:
    for ours, theirs in zip(to.parameters(), source.parameters(), strict=True):
        ours.copy_(theirs)


def plain(kind: str, data: MultiTaskDataset, schema: Schema, loader: bool = False) -> Epoch:
    model, generator = started(kind, schema), torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    tensors = (data.numeric, data.categorical, *data.labels.values())

    def feed() -> Iterator[tuple[Tensor, ...]]:
        if loader:
            dataset = torch.utils.data.TensorDataset(*tensors)
            yield from torch.utils.data.DataLoader(dataset, BATCH, shuffle=True, generator=generator)
        else:
            for rows in batches(data, generator):
                yield tuple(tensor[rows] for tensor in tensors)

    def epoch() -> float:
        total = 0.0
        for numeric, codes, *labels in feed():
            logits = model(numeric, codes)
            losses = [F.binary_cross_entropy_with_logits(a, b) for a, b in zip(logits, labels, strict=True)]
            loss = sum(losses)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(numeric)
        return total / len(data)

    epoch.model = model
    return epoch


# ------------------------------------------------------------------------------------------------- the peers


def rechub(kind: str, data: MultiTaskDataset, schema: Schema, fed: bool = False) -> Epoch:
    from torch_rechub.basic.features import DenseFeature, SparseFeature
    from torch_rechub.basic.initializers import RandomNormal
    from torch_rechub.models import multi_task
    from torch_rechub.trainers import MTLTrainer
    from torch_rechub.utils.data import DataGenerator

    torch.manual_seed(0)
    features = [
        *(
            SparseFeature(name, CARDINALITY, EMBEDDING, initializer=RandomNormal(0, 0.1))
            for name in schema.categorical
        ),
        *(DenseFeature(name) for name in schema.numeric),
    ]
    types, towers = ["classification"] * 2, [{"dims": list(TOWER)}] * 2
    expert = {"dims": list(WIDTHS)}
    if kind == "shared bottom":
        model = multi_task.SharedBottom(features, types, expert, towers)
    elif kind == "MMoE":
        model = multi_task.MMOE(features, types, 4, expert, towers)
    else:
        model = multi_task.PLE(features, types, 1, 1, 1, expert, towers)
    trainer = MTLTrainer(model, types, optimizer_params={"lr": RATE}, device="cpu")
    columns = {name: data.categorical[:, i].contiguous() for i, name in enumerate(schema.categorical)}
    columns |= {name: data.numeric[:, i].contiguous() for i, name in enumerate(schema.numeric)}
    labels = torch.stack(list(data.labels.values()), dim=1)
    generator = torch.Generator().manual_seed(0)
    if fed:
        source = Fed(
            lambda: (
                ({name: column[rows] for name, column in columns.items()}, labels[rows])
                for rows in batches(data, generator)
            )
        )
    else:
        arrays = {name: column.numpy() for name, column in columns.items()}
        source, *_ = DataGenerator(arrays, labels.numpy()).generate_dataloader(
            x_val=arrays, y_val=labels.numpy(), x_test=arrays, y_test=labels.numpy(), batch_size=BATCH
        )

    def epoch() -> float:
        return float(sum(trainer.train_one_epoch(source)))  # its mean over batches, task by task

    epoch.model = model
    return epoch


class Fed:
    """Something that a loop can go through again and again."""

    def __init__(self, start: Callable[[], Iterator]) -> None:
        self.start = start

    def __iter__(self) -> Iterator:
        return self.start()


def start_deepctr_as(model: nn.Module, other: Plain, schema: Schema) -> None:
    """Copy the weights of the plain model; only its gates' biases have no place to go."""
    theirs = dict(model.named_parameters())
    layers = ("bottom_dnn", "expert_dnn", "specific_experts", "shared_experts")
    experts = [value for name, value in theirs.items() if name.startswith(layers)]
    gates = [theirs[name] for name in theirs if name.startswith(("gate_dnn", "specific_gate_dnn"))]
    with torch.no_grad():
        for i, name in enumerate(schema.categorical):
            theirs[f"embedding_dict.{name}.weight"].copy_(other.table.weight[i * CARDINALITY :][:CARDINALITY])
        for mine, value in zip(experts, other.experts.parameters(), strict=True):
            mine.copy_(value)
        for mine, gate in zip(gates, other.gates, strict=True):
            mine.copy_(gate.weight)
        for i, tower in enumerate(other.towers):
            names = ("tower_dnn.{}.linears.0.weight", "tower_dnn.{}.linears.0.bias")
            names += ("tower_dnn_final_layer.{}.weight", "out.{}.bias")
            for name, value in zip(names, tower.parameters(), strict=True):
                theirs[name.format(i)].copy_(value)


def deepctr(kind: str, data: MultiTaskDataset, schema: Schema, fed: bool = False) -> Epoch:
    from deepctr_torch.inputs import DenseFeat, SparseFeat
    from deepctr_torch.models import multitask

    columns = [SparseFeat(name, CARDINALITY, embedding_dim=EMBEDDING) for name in schema.categorical]
    columns += [DenseFeat(name, 1) for name in schema.numeric]
    common = {
        "tower_dnn_hidden_units": TOWER,
        "l2_reg_embedding": 0.0,
        "l2_reg_linear": 0.0,
        "seed": 0,
        "task_names": [task.name for task in TASKS],
    }
    if kind == "shared bottom":
        model = multitask.SharedBottom(columns, bottom_dnn_hidden_units=WIDTHS, **common)
    elif kind == "MMoE":
        model = multitask.MMOE(
            columns, num_experts=4, expert_dnn_hidden_units=WIDTHS, gate_dnn_hidden_units=(), **common
        )
    else:
        model = multitask.PLE(
            columns, num_levels=1, expert_dnn_hidden_units=WIDTHS, gate_dnn_hidden_units=(), **common
        )
    start_deepctr_as(model, started(kind, schema), schema)
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    model.compile(optimizer, loss=["binary_crossentropy"] * 2)
    labels = torch.stack(list(data.labels.values()), dim=1)
    if not fed:
        arrays = {name: data.categorical[:, i].numpy() for i, name in enumerate(schema.categorical)}
        arrays |= {name: data.numeric[:, i].numpy() for i, name in enumerate(schema.numeric)}

        def epoch() -> float:
            history = model.fit(dict(arrays), labels.numpy(), batch_size=BATCH, epochs=1, verbose=0)
            return float(history.history["loss"][-1])

    else:
        inputs = torch.cat([data.categorical.float(), data.numeric], dim=1)
        generator = torch.Generator().manual_seed(0)

        def epoch() -> float:
            total = 0.0
            model.train()
            for rows in batches(data, generator):
                predicted, truth = model(inputs[rows]), labels[rows]
                optimizer.zero_grad()
                loss = sum(F.binary_cross_entropy(predicted[:, i], truth[:, i]) for i in range(2))
                loss.backward()
                optimizer.step()
                total += loss.item() * len(rows)
            return total / len(data)

    epoch.model = model
    return epoch


CONTESTANTS: dict[str, Callable[[str, MultiTaskDataset, Schema], Epoch]] = {
    "ours": ours,
    "plain torch loop": plain,
    "plain torch, DataLoader": lambda *a: plain(*a, loader=True),
    "torch-rechub, as shipped": rechub,
    "torch-rechub, fed": lambda *a: rechub(*a, fed=True),
    "deepctr-torch, as shipped": deepctr,
    "deepctr-torch, fed": lambda *a: deepctr(*a, fed=True),
}


def quiet(work: Callable[[], object]) -> object:
    """Run without the libraries' own progress bars and prints."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        return work()


# ------------------------------------------------------------------------------------------------- measuring


Race = tuple[dict[str, list[float]], dict[str, list[float]]]


def race(kind: str, data: MultiTaskDataset, schema: Schema, rounds: int) -> Race:
    """Train all contestants epoch by epoch, in turn; print and return ratios of processor time and loss curves."""
    epochs = {name: quiet(lambda make=make: make(kind, data, schema)) for name, make in CONTESTANTS.items()}
    cpu: dict[str, list[float]] = {name: [] for name in epochs}
    wall: dict[str, list[float]] = {name: [] for name in epochs}
    curves: dict[str, list[float]] = {name: [] for name in epochs}
    for number in range(rounds + 1):  # the first round warms up
        names = list(epochs)
        for name in names[number % len(names) :] + names[: number % len(names)]:
            clocks = time.perf_counter(), time.process_time()
            curves[name].append(quiet(epochs[name]))
            wall[name].append(time.perf_counter() - clocks[0])
            cpu[name].append(time.process_time() - clocks[1])
    print(f"\n### {kind}\n")
    print("| contestant | parameters | rows per CPU s | range | rows per wall s | CPU time ÷ ours | range |")
    print("|---|---|---|---|---|---|---|")
    ratios = {
        name: [s / mine for s, mine in zip(seconds[1:], cpu["ours"][1:], strict=True)]
        for name, seconds in cpu.items()
    }
    for name, epoch in epochs.items():
        speed, ratio = [len(data) / s for s in cpu[name][1:]], ratios[name]
        real = statistics.median(len(data) / s for s in wall[name][1:])
        print(
            f"| {name} | {count_parameters(epoch.model):,} | {statistics.median(speed):,.0f} | "
            f"{min(speed):,.0f}–{max(speed):,.0f} | {real:,.0f} | {statistics.median(ratio):.2f} | "
            f"{min(ratio):.2f}–{max(ratio):.2f} |"
        )
    print(f"\nLoss by epoch (sum of both tasks, while training), {kind}\n")
    print("| contestant | " + " | ".join(f"{i + 1}" for i in range(rounds + 1)) + " | largest gap to ours |")
    print("|---" * (rounds + 3) + "|")
    for name, curve in curves.items():
        gap = max(abs(a - b) for a, b in zip(curve, curves["ours"], strict=True))
        print(f"| {name} | " + " | ".join(f"{value:.4f}" for value in curve) + f" | {gap:.1e} |")
    return ratios, curves


def draw(races: dict[str, Race], path: str) -> None:
    """Above, processor time as a multiple of ours (median and range); below, the losses epoch by epoch."""
    import matplotlib.pyplot as plt
    import seaborn as sns

    sns.set_theme(style="whitegrid")
    colours = dict(zip(CONTESTANTS, sns.color_palette("colorblind"), strict=False))
    figure, axes = plt.subplots(2, len(races), figsize=(11, 6.2), layout="constrained", squeeze=False)
    for (above, below), (kind, (ratios, curves)) in zip(axes.T, races.items(), strict=True):
        for place, (name, ratio) in enumerate(ratios.items()):
            middle = statistics.median(ratio)
            above.barh(place, middle, color=colours[name])
            above.plot([min(ratio), max(ratio)], [place, place], color="0.25", lw=1.5)
            above.annotate(
                f"{middle:.2f}",
                (max(ratio), place),
                (4, 0),
                textcoords="offset points",
                va="center",
                fontsize=9,
            )
            below.plot(
                range(1, len(curves[name]) + 1),
                curves[name],
                color=colours[name],
                lw=3 if name == "ours" else 1.5,
                ls="-" if name in ("ours", "torch-rechub, fed", "deepctr-torch, fed") else "--",
            )
        above.set(title=kind, xlabel="processor time ÷ ours", xlim=(0, None), yticks=range(len(ratios)))
        above.set_yticklabels(ratios if above is axes[0, 0] else [])
        above.invert_yaxis()
        above.margins(x=0.15)
        below.set(xlabel="epoch", ylabel="training loss, sum of both tasks" if above is axes[0, 0] else "")
    sns.despine(figure)
    figure.savefig(path, dpi=110)


def import_all() -> None:
    import deepctr_torch.models.multitask  # noqa: F401
    import torch_rechub.models.multi_task
    import torch_rechub.trainers  # noqa: F401


def install() -> Path:
    """Put the peers into a folder of their own, unless they are there; return it."""
    folder = Path(tempfile.gettempdir()) / "mtl-peers-rechub-0.9.0-deepctr-0.3.0"
    if not (folder / "deepctr_torch").is_dir():
        requirements = HERE.with_name("peers-requirements.txt")
        subprocess.run(
            [
                sys.executable,
                "-m",
                "pip",
                "install",
                "-q",
                "--no-deps",
                "--target",
                folder,
                "-r",
                requirements,
            ],
            check=True,
        )
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--figure", help="a picture of ratios and loss curves")
    options = parser.parse_args()
    sys.path.insert(0, str(install()))
    torch.set_num_threads(options.threads)
    quiet(import_all)
    data, schema = make_data(options.rows)
    print(
        f"{options.rows:,} rows, {COLUMNS} categorical columns of {CARDINALITY} values and {NUMBERS} numeric ones, "
        f"batches of {BATCH}, {options.threads} thread(s), {options.rounds} rounds, torch {torch.__version__}, "
        f"numpy {np.__version__}, Python {platform.python_version()}, load {os.getloadavg()[0]:.1f} at the start."
    )
    races = {kind: race(kind, data, schema, options.rounds) for kind in options.kinds}
    if options.figure:
        draw(races, options.figure)
    print(f"\nload {os.getloadavg()[0]:.1f} at the end.")


if __name__ == "__main__":
    main()
