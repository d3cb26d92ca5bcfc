"""Drawings: who shares what in each architecture of the course, and where in the course a notebook stands.

A drawing is columns of boxes and a list of arrows between them. Its SVG has attributes alone, no style sheet and no
ids, so that it looks the same in JupyterLab, on Colab and on GitHub, which strips those.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import pairwise, product

from matplotlib.colors import to_hex, to_rgb
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path

from mtl_helpers.widgets.figures import INK, task_style

__all__ = ["course_map", "draw"]

WIDTH, PAD, HEADER, FOOTER = 860, 20, 26, 20
WIDEST_GAP, ROW_GAP, HEAD = 76, 14, 7
TEXT, SYMBOL = 12.5, 12.5  # font sizes
SANS, SERIF = "Helvetica, Arial, 'DejaVu Sans', sans-serif", "Georgia, 'DejaVu Serif', serif"
KINDS = {"input": ("#F4F4F4", "#9A9A9A"), "shared": ("#E6EBF1", "#7C8DA1"), "gate": ("#F6F0E2", "#A8905C")}


@dataclass(eq=False)
class Box:
    """A box with a word and a symbol; ``kind`` is a task or one of KINDS; a tall one spans all rows."""

    text: str
    symbol: str = ""
    kind: str = "shared"
    tall: bool = False
    x: float = field(default=0, init=False)
    y: float = field(default=0, init=False)
    width: float = field(default=0, init=False)
    height: float = field(default=0, init=False)

    @property
    def colors(self) -> tuple[str, str]:
        """Fill and border."""
        if self.kind in KINDS:
            return KINDS[self.kind]
        color = task_style(self.kind)["color"]
        return to_hex([1 - 0.16 * (1 - c) for c in to_rgb(color)]), color

    def lines(self) -> list[tuple[str, str, float]]:
        """Text, font and size of each line."""
        lines = (self.text, SANS, TEXT), (self.symbol, SERIF, SYMBOL)
        return [line for line in lines if line[0]]

    def svg(self) -> str:
        fill, border = self.colors
        round_, n = (self.height / 2 if self.kind == "gate" and not self.tall else 7), len(self.lines())
        parts = [
            f'<rect x="{self.x:.1f}" y="{self.y:.1f}" width="{self.width:.1f}" height="{self.height:.1f}" '
            f'rx="{round_:.1f}" fill="{fill}" stroke="{border}" stroke-width="1.4"/>'
        ]
        for i, (line, font, size) in enumerate(self.lines()):
            y = self.y + self.height / 2 + 17 * (i - (n - 1) / 2) + 4.4
            parts.append(write(self.x + self.width / 2, y, line, size, font=font))
        return "".join(parts)


@dataclass(frozen=True)
class Arrow:
    """From the edge of one box to that of another."""

    source: Box
    target: Box
    start: tuple[float, float]
    end: tuple[float, float]
    bend: float  # a line is level until here

    def svg(self) -> str:
        task = self.target if self.source.kind in KINDS else self.source
        color = (task if task.kind not in KINDS else self.source).colors[1]
        (x1, y1), (x2, y2) = self.start, self.end
        if x1 == x2:
            path, head = f"V{y2 - HEAD:.1f}", f"{x2 - 4:.1f},{y2 - HEAD} {x2 + 4:.1f},{y2 - HEAD}"
        else:
            middle = (self.bend + x2 - HEAD) / 2
            path = f"H{self.bend:.1f}C{middle:.1f} {y1:.1f} {middle:.1f} {y2:.1f} {x2 - HEAD:.1f} {y2:.1f}"
            head = f"{x2 - HEAD:.1f},{y2 - 4:.1f} {x2 - HEAD:.1f},{y2 + 4:.1f}"
        dash = ' stroke-dasharray="5 3"' if self.source.kind == "gate" and not self.source.tall else ""
        return (
            f'<path d="M{x1:.1f} {y1:.1f}{path}" fill="none" stroke="{color}" stroke-width="1.5"{dash}/>'
            f'<polygon points="{x2:.1f},{y2:.1f} {head}" fill="{color}"/>'
        )


@dataclass(frozen=True)
class Drawing:
    """What IPython shows as an SVG, or as a sentence where there are no pictures."""

    svg: str
    alt: str
    boxes: Sequence[Box] = ()
    arrows: Sequence[Arrow] = ()

    def _repr_svg_(self) -> str:
        return self.svg

    def __repr__(self) -> str:
        return self.alt


def text_width(text: str, size: float, font: str = SANS) -> float:
    """In the widest font that a reader may have, so that the text fits in any other."""
    family = "DejaVu Serif" if font == SERIF else "DejaVu Sans"
    return text_to_path.get_text_width_height_descent(text, FontProperties(family, size=size), False)[0]


def write(
    x: float, y: float, text: str, size: float, color: str = INK, font: str = SANS, more: str = ""
) -> str:
    slant = ' font-style="italic"' if font == SERIF else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" font-family="{font}" fill="{color}" '
        f'text-anchor="middle"{slant}{more}>{escape(text)}</text>'
    )


def page(title: str, alt: str, height: float, content: str) -> str:
    alt = escape(alt, quote=True)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height:.0f}" viewBox="0 0 {WIDTH} '
        f'{height:.0f}" role="img" aria-label="{alt}"><title>{escape(title)}</title>'
        f'<rect width="{WIDTH}" height="{height:.0f}" rx="10" fill="white"/>{content}</svg>'
    )


Columns = list[tuple[str, list[Box | None]]]
Plan = tuple[str, Columns, list[tuple[Box, Box]]]


def place(columns: Columns) -> tuple[float, float]:
    """Give every box its place; the gap between columns and the height of the rows."""
    widths, height = [], 0.0
    for header, boxes in columns:
        real = [box for box in boxes if box]
        texts = [text_width(line, size, font) for box in real for line, font, size in box.lines()]
        widths.append(max(max(texts) + 24, text_width(header, 11)))
        for box in real:
            box.width, box.height = widths[-1], 30 if len(box.lines()) == 1 else 46
        height = max(height, len(boxes) * (max(box.height for box in real) + ROW_GAP))
    gap = min(WIDEST_GAP, (WIDTH - 2 * PAD - sum(widths)) / (len(columns) - 1))
    left = (WIDTH - sum(widths) - gap * (len(columns) - 1)) / 2
    for (_, boxes), width in zip(columns, widths, strict=True):
        for i, box in enumerate(boxes):
            if box:
                box.height = height - ROW_GAP if box.tall else box.height
                box.x, box.y = left, PAD + HEADER + height * (i + 0.5) / len(boxes) - box.height / 2
        left += width + gap
    return gap, height


def connect(edges: list[tuple[Box, Box]], gap: float) -> list[Arrow]:
    """Arrows that leave and reach each side of a box at places of their own, in the order of their other ends."""

    def port(box: Box, other: Box, outward: bool) -> float:
        others = [e[outward] for e in edges if e[not outward] is box and e[0].x != e[1].x]
        centre = other.y + other.height / 2
        if box.tall and not other.tall:
            return centre
        step = min(11, (box.height - 12) / max(len(others) - 1, 1))
        rank = sorted(others, key=lambda b: b.y).index(other)
        return box.y + box.height / 2 + step * (rank - (len(others) - 1) / 2)

    arrows = []
    for a, b in edges:
        if a.x == b.x:
            middle = a.x + a.width / 2
            start, end = (middle, a.y + a.height), (middle, b.y)
        else:
            start, end = (a.x + a.width, port(a, b, True)), (b.x, port(b, a, False))
        arrows.append(Arrow(a, b, start, end, b.x - gap))
    return arrows


def draw(name: str, tasks: Sequence[str] = ("click", "purchase", "next_category")) -> Drawing:
    """The architecture as a picture with a sentence that says the same; ``name`` is one of ARCHITECTURES."""
    if name not in ARCHITECTURES:
        raise ValueError(f"There is no drawing {name!r}: the drawings are {', '.join(ARCHITECTURES)}.")
    alt, columns, edges = ARCHITECTURES[name](list(tasks))
    gap, height = place(columns)
    arrows, boxes = connect(edges, gap), [box for _, column in columns for box in column if box]
    parts = [item.svg() for item in (*arrows, *boxes)]
    for header, column in columns:
        box = next(box for box in column if box)
        parts.append(write(box.x + box.width / 2, PAD + 12, header, 11, "#666666"))
    title = name.replace("_", " ")
    alt = f"{alt} Tasks: {', '.join(tasks)}."
    return Drawing(
        page(title, alt, height + 2 * PAD + HEADER - ROW_GAP / 2, "".join(parts)), alt, boxes, arrows
    )


def per_task(tasks: Sequence[str], text: str, symbol: str = "") -> list[Box]:
    """A box a task; {i} is the task's number, {task} its name."""
    numbers = "₁₂₃₄₅₆₇₈₉"
    return [Box(text.format(task=t), symbol.format(i=numbers[i], task=t), t) for i, t in enumerate(tasks)]


def heads(tasks: Sequence[str], reads: str = "Z") -> tuple[list[Box], list[Box]]:
    """Towers and outputs."""
    return per_task(tasks, "tower", f"g{{i}}({reads})"), per_task(tasks, "{task}", "Y{i}")


def single_task(tasks: Sequence[str]) -> Plan:
    x, layers = Box("features", "X", "input", tall=True), per_task(tasks, "layers", "Z{i} = f{i}(X)")
    towers, outputs = heads(tasks, "Z{i}")
    columns = [("input", [x]), ("own layers", layers), ("towers", towers), ("outputs", outputs)]
    edges = [*product([x], layers), *zip(layers, towers, strict=True), *zip(towers, outputs, strict=True)]
    return (
        "Single-task models: each task has layers and a tower of its own, nothing is shared.",
        columns,
        edges,
    )


def shared_bottom(tasks: Sequence[str]) -> Plan:
    x, z = Box("features", "X", "input", tall=True), Box("layers", "Z = f(X)", tall=True)
    towers, outputs = heads(tasks)
    columns = [("input", [x]), ("shared bottom", [z]), ("towers", towers), ("outputs", outputs)]
    edges = [(x, z), *product([z], towers), *zip(towers, outputs, strict=True)]
    return "Shared bottom: all tasks read one representation Z, each through its own tower.", columns, edges


def framework(tasks: Sequence[str]) -> Plan:
    inputs = [Box(text, "", "input") for text in ("behaviour", "content", "prior knowledge")]
    z, fusion = Box("shared layers", "Z = f(X)", tall=True), Box("one score", "s = Π Yᵢ^aᵢ", tall=True)
    layers, output = per_task(tasks, "{task}", "Y{i} = g{i}(Z)"), Box("ranked list", "", "input")
    columns = [
        ("input X", inputs),
        ("feature extraction", [z]),
        ("task layers", layers),
        ("fusion", [fusion]),
    ]
    edges = [*product(inputs, [z]), *product([z], layers), *product(layers, [fusion]), (fusion, output)]
    alt = "The framework: inputs, feature extraction, task layers side by side, fusion of their outputs, a list."
    return alt, [*columns, ("output", [output])], edges


def mixture(
    tasks: Sequence[str], experts: list[Box], reads: Callable[[Box, str], bool]
) -> tuple[Columns, list]:
    """Experts with the gates among them; the gate of a task mixes the experts that it reads."""
    x, (towers, outputs) = Box("features", "X", "input", tall=True), heads(tasks)
    gates = [Box(box.text, box.symbol, "gate") for box in per_task(tasks, "", "w{i} = softmax(A{i}X)")]
    mixes = per_task(tasks, "", "Z{i} = Σ w{i}e")
    middle, n = list(experts), len(tasks) - 1
    for i, gate in reversed(list(enumerate(gates))):
        middle.insert(round(i * len(experts) / n), gate)
    columns = [("input", [x]), ("experts and gates", middle), ("mixtures", mixes)]
    edges = [*product([x], middle), *zip(gates, mixes, strict=True), *zip(mixes, towers, strict=True)]
    edges += [(e, mix) for e, mix in product(experts, mixes) if reads(e, mix.kind)]
    return [*columns, ("towers", towers), ("outputs", outputs)], edges + list(
        zip(towers, outputs, strict=True)
    )


def mmoe(tasks: Sequence[str]) -> Plan:
    experts = [Box("", f"e{n} = f{n}(X)") for n in "₁₂₃₄"[: 4 if len(tasks) < 4 else 3]]
    alt = "MMoE: experts are shared, and each task has a gate that weighs all of them for each row."
    return alt, *mixture(tasks, experts, lambda expert, task: True)


def ple(tasks: Sequence[str]) -> Plan:
    own = per_task(tasks, "", "e{i} = f{i}(X)")
    own.insert((len(tasks) + 1) // 2, Box("", "eₛ = fₛ(X)"))
    alt = "PLE, one level (CGC): a task's gate weighs its own expert and the shared one, never those of other tasks."
    return alt, *mixture(tasks, own, lambda expert, task: expert.kind in ("shared", task))


def cross_stitch(tasks: Sequence[str]) -> Plan:
    x, columns, before = Box("features", "X", "input", tall=True), [], None
    edges = []
    columns.append(("input", [x]))
    for n in "₁₂":
        layers = per_task(tasks, "", f"layer {n}")
        stitch = Box("", f"α{n}·h", "gate", tall=True)
        columns += [(f"layer {n}", layers), ("stitch", [stitch])]
        edges += [*product([before or x], layers), *product(layers, [stitch])]
        before = stitch
    towers, outputs = heads(tasks)
    edges += [*product([before], towers), *zip(towers, outputs, strict=True)]
    alt = "Cross-stitch: a network a task; after each layer a learned matrix α mixes the tasks' values h."
    return alt, [*columns, ("towers", towers), ("outputs", outputs)], edges


def esmm(tasks: Sequence[str]) -> Plan:
    x, z, chain = Box("features", "X", "input", tall=True), Box("layers", "Z = f(X)", tall=True), tasks[:2]
    towers, first, then = per_task(tasks, "tower", "g{i}(Z)"), chain[0], chain[1]
    chances = [Box("", f"p({first})", first), Box("", f"p({then} | {first})", then)]
    outputs = [Box(first, f"p({first})", first), Box(then, f"p({first}) · p({then} | {first})", then)]
    rest = per_task(tasks, "{task}", "Y{i}")[2:]
    columns = [("input", [x]), ("shared bottom", [z]), ("towers", towers)]
    columns += [("conditional", chances + [None] * len(rest)), ("outputs", outputs + rest)]
    edges = [(x, z), *product([z], towers), *zip(towers, chances + rest, strict=True)]
    edges += [*zip(chances, outputs, strict=True), (chances[0], outputs[1])]
    return (
        f"ESMM: the chance of {then} is that of {first} times that of {then} given {first}.",
        columns,
        edges,
    )


def aitm(tasks: Sequence[str]) -> Plan:
    x, (towers, outputs) = Box("features", "X", "input", tall=True), heads(tasks)
    layers = per_task(tasks, "layers", "q{i} = f{i}(X)")
    passed = per_task(tasks, "", "Z{i} = attention(Z, q{i})")
    passed[0].symbol = "Z₁ = q₁"
    columns = [("input", [x]), ("a column per task", layers), ("transfer", passed), ("towers", towers)]
    edges = [*product([x], layers), *zip(layers, passed, strict=True), *pairwise(passed)]
    edges += [*zip(passed, towers, strict=True), *zip(towers, outputs, strict=True)]
    alt = "AITM: each task passes what it knows to the next, which weighs it against its own by attention."
    return alt, [*columns, ("outputs", outputs)], edges


def two_towers(tasks: Sequence[str]) -> Plan:
    tasks = sorted(tasks, key=lambda task: task.startswith("next"))
    item, user = Box("item", "", "input"), Box("user, moment", "", "input")
    v, u = Box("item tower", "v = g(item)"), Box("user tower", "u = f(user)")
    match, (towers, outputs) = Box("match", "u, v, u·v"), heads(tasks, "·")
    columns = [("inputs", [item, user]), ("two towers", [v, u]), ("pair", [match, None])]
    edges = [(item, v), (user, u), (v, match), (u, match), *zip(towers, outputs, strict=True)]
    edges += [(u if task.startswith("next") else match, t) for task, t in zip(tasks, towers, strict=True)]
    alt = "Two towers: user and item meet in a match; tasks about what comes next read the user alone."
    return alt, [*columns, ("task towers", towers), ("outputs", outputs)], edges


def transformer(tasks: Sequence[str]) -> Plan:
    events = [Box("", text, "input") for text in ("event 1", "event 2", "… event t")]
    names = ("embedding", "+ position"), ("self-attention", "all events"), ("feed-forward", "each event")
    embed, attend, feed = (Box(*name, tall=True) for name in names)
    z, (towers, outputs) = Box("last event", "Z", tall=True), heads(tasks)
    columns = [
        ("history", events),
        ("", [embed]),
        ("block", [attend]),
        ("repeated", [feed]),
        ("summary", [z]),
    ]
    edges = [*product(events, [embed]), *pairwise([embed, attend, feed, z])]
    edges += [*product([z], towers), *zip(towers, outputs, strict=True)]
    alt = "A transformer reads the history of events; its summary Z feeds one head a task."
    return alt, [*columns, ("heads", towers), ("outputs", outputs)], edges


STATIONS = {
    "00": ("Start here", "a slider moves", "trained models"),
    "01": ("Single task", "one model a task,", "measured well"),
    "02": ("Shared bottom", "when sharing", "helps or hurts"),
    "03": ("Loss math", "every formula", "by hand"),
    "04": ("Weighting", "who chooses", "the weights?"),
    "05": ("E-commerce", "one ranked list,", "what it earns"),
    "06": ("Architectures", "who shares", "what?"),
    "07": ("Real data", "what holds outside", "the shop"),
}


def course_map(here: str) -> Drawing:
    """The notebooks as stations on a line; those before ``here`` are ticked."""
    if here not in STATIONS:
        raise ValueError(f"There is no notebook {here!r}: they are {', '.join(STATIONS)}.")
    step, y, parts = WIDTH / len(STATIONS), 34, []
    done = step * (list(STATIONS).index(here) + 0.5)
    for x1, x2, color in ((step / 2, done, "#4A5A6B"), (done, WIDTH - step / 2, "#C9D0D8")):
        parts.append(f'<path d="M{x1:.1f} {y}H{x2:.1f}" stroke="{color}" stroke-width="3"/>')
    for i, (number, (name, *idea)) in enumerate(STATIONS.items()):
        x, now = step * (i + 0.5), number == here
        color, fill = ("#4A5A6B", "#4A5A6B") if number <= here else ("#B4BDC7", "white")
        parts.append(
            f'<circle cx="{x:.1f}" cy="{y}" r="{14 if now else 11}" fill="{fill}" stroke="{color}" stroke-width="2"/>'
        )
        if number < here:
            parts.append(
                f'<path d="M{x - 5:.1f} {y}l3.6 4 6.4-7.6" fill="none" stroke="white" stroke-width="2"/>'
            )
        else:
            parts.append(write(x, y + 4, number, 11, "white" if now else "#666666"))
        weight = ' font-weight="bold"' if now else ""
        parts.append(write(x, y + 32, name, 11.5, INK if number <= here else "#666666", more=weight))
        parts += [write(x, y + 46 + 12 * j, line, 9.5, "#666666") for j, line in enumerate(idea)]
        if now:
            parts.append(write(x, y - 20, "you are here", 9.5, "#4A5A6B"))
    name, *idea = STATIONS[here]
    alt = (
        f"Course map: you are at notebook {here}, {name}: {' '.join(idea)}; {len(STATIONS)} notebooks in all."
    )
    return Drawing(page("Course map", alt, 100, "".join(parts)), alt)


ARCHITECTURES: dict[str, Callable[[Sequence[str]], Plan]] = {
    kind.__name__: kind
    for kind in (
        single_task,
        shared_bottom,
        framework,
        mmoe,
        ple,
        cross_stitch,
        esmm,
        aitm,
        two_towers,
        transformer,
    )
}
