"""The drawings that notebooks show: who shares what in each architecture, and where in the course a notebook stands.

    python notebooks/source/drawings.py

writes all of them into ``mtl_helpers/widgets/pictures``, from which ``mtl_helpers.widgets`` reads them. Run it after a
change here.

A drawing is columns of boxes; whose they are says which are joined by arrows. Its SVG has attributes alone, no style
sheet and no ids: GitHub strips those, so the drawing looks the same there, in JupyterLab and on Colab.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise, product
from math import ceil
from pathlib import Path

from matplotlib.colors import to_hex, to_rgb
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path

sys.path.insert(
    0, str(Path(__file__).resolve().parents[2])
)  # this copy's package, wherever another is installed

from mtl_helpers.widgets.drawings import PICTURES
from mtl_helpers.widgets.figures import INK, task_style

# A name, what the drawing says, its columns: "header [cell ; cell]". A cell is "whose: text / symbol": whose is one of
# LOOKS, tasks as in WHOSE (a box each), or both. ↓ and ↘ after a header link its boxes to neighbours as well, ↕ to all.
ARCHITECTURES = """
single_task: Single-task models: every task has layers and a tower of its own, and nothing is shared.
input → own layers [*: layers / Z{i} = f{i}(X)] → own towers → outputs

shared_bottom: Shared bottom: all tasks read one representation Z, each through a tower of its own.
input → shared bottom → towers → outputs

framework: Framework: inputs, feature extraction, task layers side by side, then a fusion layer and the output.
input X [input: behaviour / ; input: content / ; input: prior knowledge / ]
→ feature extraction [shared: shared layers / Z = f(X)] → task layers [*: {task} / Y{i} = g{i}(Z)]
→ fusion [shared: one score / s = F(Y)] → output [input: ranked list / ]

mmoe: MMoE: all experts are shared, and each task has a gate that weighs them anew for every row.
input → experts and gates [gate *: / w{i} = softmax(A{i}X) ; shared: / e₁ = f₁(X) ; shared: / e₂ = f₂(X) ;
shared: / e₃ = f₃(X) ; shared: / e₄ = f₄(X)] → mixtures → own towers → outputs

ple: PLE: a task's gate weighs its own expert and the shared one, never those of other tasks; one level is drawn.
input → experts and gates [gate *: / w{i} = softmax(A{i}X) ; 1: / e{i} = f{i}(X) ; shared: / eₛ = fₛ(X) ;
2+: / e{i} = f{i}(X)] → mixtures → own towers → outputs

cross_stitch: Cross-stitch: every task has a network; after each layer a learned matrix α mixes the tasks' values h.
input → layer 1 [*: / h{i}] → stitch [gate: / α h] → layer 2 [*: / h{i}] → stitch [gate: / α h]
→ towers [*: tower / g{i}(h{i})] → outputs

esmm: ESMM: the second task's probability is the first's times its own given the first.
input → shared bottom → towers
→ each tower says ↘ [1: / p({task}) ; 2: / p({task} | {first}) ; 3+: / p({task})]
→ outputs [1: {task} / p({task}) ; 2: {task} / p({first}) · p({task} | {first}) ; 3+: {task} / p({task})]

aitm: AITM: each task passes what it knows to the next, which weighs it against its own by attention.
input → own layers [*: layers / q{i} = f{i}(X)]
→ transfer ↓ [1: / Z{i} = q{i} ; 2+: / Z{i} = attention(Z{before}, q{i})] → own towers → outputs

stem: STEM: each task has embeddings and an expert of its own; its gate mixes all, yet trains its own and the shared.
input → embeddings [*: table / x{i} ; shared common: table / x₀] → experts and gates ↕ [gate *: / w{i}(x{i} + x₀) ;
*: / e{i} = f{i}(x{i}) ; shared common: / e₀ = f₀(x₀)] → mixtures → own towers → outputs

pepnet: PEPNet: gates that know the scene scale what the shared layers read, and what each tower reads of them.
inputs [input: scene / s ; input: features / X] → EPNet [gate: gate / X ⊙ δ(s, X)] → shared bottom
→ PPNet [*: gate / Z ⊙ δ{i}(s, X)] → towers [*: tower / g{i}(Z ⊙ δ{i})] → outputs

two_towers: Two towers: a user's and an item's vector meet; tasks about what comes next read the user's alone.
inputs [input item: item / ; input user: user, moment / ]
→ two towers [shared item: item tower / v = f(item) ; shared user: user tower / u = f(user)]
→ vectors [shared: match / u, v, u·v] → task towers [*: tower / g{i}({reads})] → outputs

transformer: Transformer: it reads the history of events, and its summary Z feeds one head a task.
history [input: / event 1 ; input: / event 2 ; input: / … event t] → tokens [shared: embedding / + position]
→ in each of L blocks: [shared: self-attention / across events] → then [shared: feed-forward / event by event]
→ summary [shared: last event / Z] → heads [*: head / g{i}(Z)] → outputs
"""
PLANS = dict(block.split(": ", 1) for block in ARCHITECTURES.strip().split("\n\n"))
THREE = "click", "purchase", "next_category"
# The tasks for which an architecture is drawn, where they are others than THREE.
TASKS = {"single_task": [("purchase",)], "shared_bottom": [THREE, THREE[:2]], "esmm": [THREE, THREE[:2]]}
COLUMNS = {
    "input": "input: features / X",
    "shared bottom": "shared: layers / Z = f(X)",
    "towers": "*: tower / g{i}(Z)",
    "own towers": "*: tower / g{i}(Z{i})",
    "mixtures": "*: mixture / Z{i} = Σ w{i}e",
    "outputs": "*: {task} / Y{i}",
}
STATIONS = {
    "00": ("Start here", "a slider moves", "trained models"),
    "01": ("Single task", "one model,", "well measured"),
    "02": ("Shared bottom", "when sharing", "helps or hurts"),
    "03": ("Loss math", "every formula", "by hand"),
    "04": ("Weighting", "who chooses", "the weights?"),
    "05": ("E-commerce", "one ranked list,", "what it earns"),
    "06": ("Architectures", "who shares", "what?"),
    "07": ("Real data", "what holds", "outside the shop"),
    "08": ("Rare labels", "rare, missing,", "unlabelled"),
    "09": ("Content", "words, pictures,", "sequences"),
    "10": ("Production", "export, serve,", "renew, watch"),
}
WHOSE = {"*": slice(None), "1": slice(1), "2": slice(1, 2), "2+": slice(1, None), "3+": slice(2, None)}
LOOKS = {"input": ("#F4F4F4", "#9A9A9A"), "shared": ("#E6EBF1", "#7C8DA1"), "gate": ("#F6F0E2", "#A8905C")}
WIDTH, PAD, HEADER, ROW_GAP, WIDEST_GAP, HEAD = 860, 20, 26, 14, 76, 7
SANS, SERIF = "Helvetica, Arial, 'DejaVu Sans', sans-serif", "Georgia, 'DejaVu Serif', serif"
DARK, SOFT, PALE = "#4A5A6B", "#666666", "#B4BDC7"


@dataclass(eq=False)
class Box:
    """Its lines and their fonts, whose it is, and its place; a tall one spans all rows."""

    lines: list[tuple[str, str]]
    task: str
    look: str
    x: int = 0
    y: int = 0
    width: int = 0
    height: int = 0
    tall: bool = False

    @property
    def color(self) -> str:
        return LOOKS[self.look][1] if self.look else task_style(self.task)["color"]

    @property
    def middle(self) -> tuple[float, float]:
        return self.x + self.width / 2, self.y + self.height / 2

    def svg(self) -> str:
        fill = LOOKS[self.look][0] if self.look else to_hex([0.84 + 0.16 * c for c in to_rgb(self.color)])
        corner = self.height / 2 if self.look == "gate" and self.task else 7
        place = f'x="{self.x}" y="{self.y}" width="{self.width}" height="{self.height}" rx="{corner}"'
        x, top = self.middle[0], self.middle[1] + 13 - 8.5 * len(self.lines)
        words = [write(x, top + 17 * i, *line) for i, line in enumerate(self.lines)]
        return f'<rect {place} fill="{fill}" stroke="{self.color}" stroke-width="1.4"/>{"".join(words)}'


@dataclass(frozen=True)
class Sketch:
    """A drawing, and what stands in it."""

    svg: str
    boxes: Sequence[Box] = ()
    arrows: Sequence[tuple] = ()


def write(x: float, y: float, text: str, font: str = SANS, size: float = 12.5, color: str = INK) -> str:
    own = f' font-family="{font}" font-style="italic"' if font == SERIF else ""
    look = f'font-size="{size}"{own} fill="{color}"'
    return f'<text x="{x}" y="{y}" {look}>{escape(text)}</text>'


def text_width(text: str, font: str = SANS, size: float = 12.5) -> int:
    """In the widest font that a reader may have."""
    wide = FontProperties(family="DejaVu Serif" if font == SERIF else "DejaVu Sans", size=size)
    return ceil(text_to_path.get_text_width_height_descent(text, wide, False)[0])


def page(alt: str, height: int, content: str, *parts: Sequence) -> Sketch:
    size = f'width="{WIDTH}" height="{height}"'
    view = f'{size} viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(alt)}"'
    paper = f'<title>{escape(alt.partition(":")[0])}</title><rect {size} rx="10" fill="white"/>'
    look = f'font-family="{SANS}" text-anchor="middle"'
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" {view} {look}>{paper}{content}</svg>'
    return Sketch(svg, *parts)


def make_boxes(cells: str, tasks: Sequence[str]) -> list[Box]:
    """The boxes of a column; gates stand among what they weigh."""
    boxes, gates = [], []
    for cell in cells.split(" ; "):
        whose, _, words = cell.partition(": ")
        look = next((look for look in LOOKS if look in whose), "")
        whose = whose.removeprefix(look).strip()
        for task in tasks[WHOSE[whose]] if whose in WHOSE else [whose]:
            i = tasks.index(task) if task in tasks else 0
            words_of = {"task": task, "first": tasks[0], "i": "₁₂₃₄₅₆₇₈₉"[i], "before": "₀₁₂₃₄₅₆₇₈"[i]}
            words_of["reads"] = "u" if task.startswith("next") else "u, v, u·v"
            parts = zip(f" {words.format(**words_of)} ".split(" / "), (SANS, SERIF), strict=True)
            box = Box([(part.strip(), font) for part, font in parts if part.strip()], task, look)
            (gates if look == "gate" and task else boxes).append(box)
    places = [round(i * len(boxes) / max(len(gates) - 1, 1)) for i in range(len(gates))]
    for place, gate in reversed(list(zip(places, gates, strict=True))):
        boxes.insert(place, gate)
    boxes[0].tall = len(boxes) == 1 and not boxes[0].task
    return boxes


def lay_out(columns: list[tuple[str, list[Box]]]) -> int:
    """Give every box its place; the height of the rows."""
    widths, height = [], 0
    for header, boxes in columns:
        inside = max(text_width(*line) for box in boxes for line in box.lines)
        widths.append(max(inside + 24, text_width(header, size=11)))
        height = max(height, len(boxes) * (30 + 16 * (len(boxes[0].lines) > 1) + ROW_GAP))
    gap = min(WIDEST_GAP, (WIDTH - 2 * PAD - sum(widths)) // (len(columns) - 1))
    x = (WIDTH - sum(widths) - gap * (len(columns) - 1)) // 2
    for (_, boxes), width in zip(columns, widths, strict=True):
        for i, box in enumerate(boxes):
            box.x, box.width = x, width
            box.height = height - ROW_GAP if box.tall else 30 + 16 * (len(box.lines) > 1)
            box.y = PAD + HEADER + (height * (2 * i + 1) // len(boxes) - box.height) // 2
        x += width + gap
    return height


def connect(columns: list[tuple[str, list[Box]]]) -> list[tuple]:
    """Between neighbouring columns: from and to what is nobody's, else from a task's box to its next.

    Arrows leave and reach a side of a box at places of their own, in the order of their other ends.
    """
    edges, down = [], []
    for (header, boxes), (_, after) in pairwise(columns):
        edges += [(a, b) for a, b in product(boxes, after) if not a.task or not b.task or a.task == b.task]
        edges += [(boxes[0], second) for second in after[1:2] if "↘" in header]
        down += pairwise(boxes) if "↓" in header else []
        own = [box for box in boxes if box.look != "gate"] if "↕" in header else []
        edges += [(a, b) for a, b in product(own, after) if a.task != b.task]

    def port(box: Box, other: Box, end: int) -> float:
        if box.tall and not other.tall:
            return other.middle[1]
        others = sorted((edge[end] for edge in edges if edge[1 - end] is box), key=lambda b: b.y)
        step = min(11, (box.height - 12) / max(len(others) - 1, 1))
        return box.middle[1] + step * (others.index(other) - (len(others) - 1) / 2)

    level = [(a, b, (a.x + a.width, port(a, b, 1)), (b.x, port(b, a, 0))) for a, b in edges]
    return level + [(a, b, (a.middle[0], a.y + a.height), (b.middle[0], b.y)) for a, b in down]


def draw_arrow(source: Box, target: Box, start: tuple[float, float], end: tuple[float, float]) -> str:
    color = (source if not source.look or target.look else target).color
    (x1, y1), (x2, y2) = start, end
    stop, middle = x2 - HEAD, (x1 + x2 - HEAD) / 2
    path = f"C{middle:.1f} {y1:.1f} {middle:.1f} {y2:.1f} {stop:.1f} {y2:.1f}"
    head = f"{stop:.1f},{y2 - 4:.1f} {stop:.1f},{y2 + 4:.1f}"
    if x1 == x2:
        path, head = f"V{y2 - HEAD:.1f}", f"{x2 - 4:.1f},{y2 - HEAD:.1f} {x2 + 4:.1f},{y2 - HEAD:.1f}"
    dash = ' stroke-dasharray="5 3"' if source.look == "gate" and source.task else ""
    line = f'<path d="M{x1:.1f} {y1:.1f}{path}" fill="none" stroke="{color}" stroke-width="1.5"{dash}/>'
    return line + f'<polygon points="{x2:.1f},{y2:.1f} {head}" fill="{color}"/>'


def draw(name: str, tasks: Sequence[str]) -> Sketch:
    """Who shares what; ``name`` is one of ARCHITECTURES."""
    alt, _, plan = PLANS[name].partition("\n")
    columns = []
    for column in plan.replace("\n", " ").split(" → "):
        header, _, cells = column.rstrip("]").partition(" [")
        columns.append((header.removeprefix("own "), make_boxes(cells or COLUMNS[header], list(tasks))))
    height = lay_out(columns)
    arrows, boxes = connect(columns), [box for _, column in columns for box in column]
    parts = [*(draw_arrow(*arrow) for arrow in arrows), *(box.svg() for box in boxes)]
    for header, column in columns:
        parts.append(write(column[0].middle[0], PAD + 12, header.rstrip(" ↓↘↕"), size=11, color=SOFT))
    alt = f"{alt} Tasks: {', '.join(tasks)}."
    return page(alt, height + 2 * PAD + HEADER - 7, "".join(parts), boxes, arrows)


def course_map(here: str) -> Sketch:
    """The notebooks as stations on a line; those before ``here`` are ticked."""
    step, y = WIDTH / len(STATIONS), 36
    places = [round(step * (i + 0.5)) for i in range(len(STATIONS))]
    first, done, end = places[0], places[list(STATIONS).index(here)], places[-1]
    parts = [f'<path d="M{first} {y}H{end}" stroke="{PALE}" stroke-width="3"/>']
    parts += [f'<path d="M{first} {y}H{done}" stroke="{DARK}" stroke-width="3"/>']
    for x, (number, (name, *idea)) in zip(places, STATIONS.items(), strict=True):
        now = number == here
        border, inside, ink = (DARK, DARK, INK) if number <= here else (PALE, "white", SOFT)
        disc = f'cx="{x}" cy="{y}" r="{14 if now else 11}" stroke-width="2"'
        parts.append(f'<circle {disc} fill="{inside}" stroke="{border}"/>')
        if number < here:
            parts.append(f'<path d="M{x - 5} {y}l4 4 6-8" fill="none" stroke="white" stroke-width="2"/>')
        else:
            parts.append(write(x, y + 4, number, size=11, color="white" if now else SOFT))
        parts.append(write(x, y + 31, name, size=10.5 if now else 10, color=ink))
        parts += [write(x, y + 46 + 13 * j, line, size=9, color=SOFT) for j, line in enumerate(idea)]
    parts.append(write(done, y - 20, "you are here", size=10, color=DARK))
    name, *idea = STATIONS[here]
    alt = f"Course map: you are at notebook {here} of {len(STATIONS)}, {name}, {' '.join(idea)}."
    return page(alt, 106, "".join(parts))


def every() -> dict[str, str]:
    """All drawings as SVG, by the name of their file."""
    found = {f"course-{here}": course_map(here).svg for here in STATIONS}
    for name in PLANS:
        for tasks in TASKS.get(name, [THREE]):
            found["-".join([name, *tasks])] = draw(name, tasks).svg
    return found


def main() -> None:
    PICTURES.mkdir(exist_ok=True)
    for name, svg in every().items():
        (PICTURES / f"{name}.svg").write_text(svg + "\n", encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
