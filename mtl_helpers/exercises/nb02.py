"""Exercises of notebook 02: a third task, how much is shared, a loss that skips gaps."""

import torch
import torch.nn.functional as F

from mtl_helpers.data.tables import Schema, Task
from mtl_helpers.exercises import Case, exercise
from mtl_helpers.models.layers import Tower, count_parameters
from mtl_helpers.models.sharing import SharedBottom

CLICK, PURCHASE, DWELL = Task("click"), Task("purchase"), Task("dwell", "regression")


def add_task(model, task):
    from mtl_helpers.models import Tower

    # The tower reads the shared representation: as wide as the last layer of the bottom.
    width = model.settings["hidden"][-1]
    # It must lie where the model lies.
    device = next(model.parameters()).device
    # A ModuleDict registers what it is given, so that optimisers and checkpoints find it.
    model.towers[task.name] = Tower(width, task).to(device)
    model.tasks = (*model.tasks, task)
    return model


def grown_models(rng):
    for width, n_classes, second in ((32, 8, PURCHASE), (12, 5, PURCHASE), (7, 3, DWELL)):
        yield _model(rng, (CLICK, second), width), Task("next_category", "multiclass", n_classes)
    yield Case((_model(rng, (CLICK,), 9), PURCHASE), "one task is there, and the new one is binary")


def _model(rng, tasks, width):
    schema = Schema(("age", "price"), {"user": int(rng.integers(5, 30)), "item": int(rng.integers(5, 30))})
    return SharedBottom(schema, tasks, int(rng.integers(2, 6)), (16, width), (int(rng.integers(3, 9)),))


def grown_facts(result, model, task):
    """What a model answers to five rows, and what it says of its tasks."""
    device = next(result.parameters()).device
    numeric = torch.linspace(-1, 1, 10, device=device).reshape(5, 2)
    answers = result(numeric, torch.tensor([[0, 1], [2, 3], [4, 0], [1, 1], [3, 2]], device=device))
    new = answers.get(task.name)
    old = {f"logits of {name}": tensor for name, tensor in answers.items() if name != task.name}
    return {
        "tasks that are answered": " ".join(answers),
        f"shape of the logits of {task.name}": str(tuple(new.shape)) if new is not None else "",
        **old,
        "model.tasks": f"a {type(result.tasks).__name__} of " + " ".join(one.name for one in result.tasks),
    }


def _tower_of(width, outputs=None, listed=True, kind=tuple, squeezed=True):
    def answer(model, task):
        n_in = width or model.settings["hidden"][-1]
        made = Task(task.name, "multiclass", outputs) if outputs else task
        plain = torch.nn.Sequential(torch.nn.Linear(n_in, 16), torch.nn.Linear(16, task.n_outputs))
        tower, device = Tower(n_in, made) if squeezed else plain, next(model.parameters()).device
        model.towers[task.name] = tower.to(device)
        if listed:
            model.tasks = kind([*model.tasks, task])
        return model

    return answer


def shared_share(model):
    # numel() counts the numbers in a tensor. All tasks use the embeddings and the bottom.
    shared = sum(p.numel() for p in model.shared_parameters())
    return shared / sum(p.numel() for p in model.parameters())


def models_to_count(rng):
    category = Task("next_category", "multiclass", 8)
    for tasks, width in (((CLICK, PURCHASE), 32), ((CLICK, PURCHASE, category), 8), ((CLICK,), 20)):
        yield (_model(rng, tasks, width),)


def masked_loss(logits, labels, mask):
    rows = F.binary_cross_entropy_with_logits(logits, labels, reduction="none")
    mask = mask.to(rows.dtype)
    # Multiply instead of selecting: the shape stays. At least 1 below the line, so that an
    # empty batch gives 0/1 and no NaN.
    return (rows * mask).sum() / mask.sum().clamp(min=1)


def gappy_labels(rng):
    for n, known in ((4, 0.5), (30, 0.3), (200, 0.8)):
        mask = torch.tensor(rng.random(n) < known)
        mask[:2] = torch.tensor([True, False])
        yield torch.tensor(rng.normal(0, 2, n)).float(), torch.tensor(rng.integers(0, 2, n)).float(), mask
    z, y = torch.tensor(rng.normal(size=3)).float(), torch.tensor([1.0, 0.0, 0.0])
    yield Case((z, y, torch.tensor([False, False, False])), "no label is known")
    yield Case((z.double(), y.double(), torch.tensor([True, True, True])), "all are known, in float64")


def _rows(logits, labels):
    return F.binary_cross_entropy_with_logits(logits, labels, reduction="none")


EXERCISES = (
    exercise(
        add_task,
        grown_models,
        lambda model, task: SharedBottom(model.schema, (*model.tasks, task), **model.settings),
        "You build a new model, and what the old one had learned is gone. Add to the one you were given.",
        _tower_of(None, listed=False),
        "The tower is there, but `model.tasks` does not list its task, so no loss would be computed for it.",
        _tower_of(None, kind=list),
        "`model.tasks` has become a list. It is a tuple: `(*model.tasks, task)`.",
        _tower_of(None, squeezed=False),
        "Your tower gives (n, 1) for a yes/no task. The package's own give (n,): squeeze, or take `Tower`.",
        _tower_of(32),
        "Your tower expects 32 inputs whatever the bottom gives. Ask the model how wide its last shared layer "
        "is: `model.settings['hidden'][-1]`.",
        _tower_of(None, outputs=2),
        "The tower has a fixed number of outputs. `Tower(width, task)` takes it from the task.",
        hints=(
            "`model.towers` is a ModuleDict, which takes new entries as a dict does.",
            "`mtl_helpers.models.Tower(width, task)` makes a tower; the width is `model.settings['hidden'][-1]`. "
            "`model.tasks` is a tuple.",
            "`model.towers[task.name] = Tower(width, task)`, `model.tasks = (*model.tasks, task)`, `return model`.",
        ),
        observe=grown_facts,
        changes=("model",),
        draws=True,
    ),
    exercise(
        shared_share,
        models_to_count,
        lambda model: len(list(model.shared_parameters())) / len(list(model.parameters())),
        "You count tensors, large and small alike. `.numel()` counts the numbers in one.",
        lambda model: 1 - shared_share(model),
        "That is the share of the towers, which are not shared.",
        lambda model: count_parameters(model.bottom) / count_parameters(model),
        "The embeddings are shared, too: all tasks read the same vectors.",
        lambda model: shared_share(model) / (1 - shared_share(model)),
        "You divide by the towers' parameters. A share divides by all of them.",
        hints=(
            "Two counts of numbers: the shared ones, and all of them.",
            "`model.shared_parameters()` yields tensors; `.numel()` counts the numbers in one.",
            "`sum(p.numel() for p in model.shared_parameters())`, divided by the same sum over `model.parameters()`.",
        ),
        rtol=1e-6,
    ),
    exercise(
        masked_loss,
        gappy_labels,
        lambda z, y, m: _rows(z, y).mean(),
        "Rows without a label count as if theirs were known. Use the mask.",
        lambda z, y, m: (_rows(z, y) * m).mean(),
        "You divide by all rows, so a task with few labels gets a small loss: a weight nobody chose. Divide "
        "by the number of known labels.",
        lambda z, y, m: (_rows(z, y) * m).sum() / m.sum(),
        "Without a known label you divide 0 by 0. Divide by the number of known labels or by 1, whichever "
        "is larger.",
        lambda z, y, m: (_rows(z, y) * m).sum(),
        "You sum over the known rows. Asked for is their mean.",
        lambda z, y, m: (_rows(z, y) * ~m).sum() / (~m).sum().clamp(min=1),
        "The mask is True where the label is known; you keep the others.",
        lambda z, y, m: masked_loss(z, y, m) if m.any() else torch.tensor(0.0, dtype=z.dtype),
        "Without a known label you return a new tensor, and `backward()` would fail on it. The zero must come "
        "from the logits: multiply by the mask.",
        hints=(
            "Ask the loss function for one value per row, then decide which rows count.",
            '`reduction="none"`, multiply by the mask, divide by the number of known labels or by 1, whichever is '
            "larger.",
            "`(rows * mask).sum() / mask.sum().clamp(min=1)`, with the mask as a float.",
        ),
        gradients=("logits",),
    ),
)
