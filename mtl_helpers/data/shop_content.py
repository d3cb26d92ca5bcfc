"""What the shop's products look like and how they are described: titles, descriptions and small pictures.

Words and pictures each show a noisy copy of what the simulator hides (quality, appeal and three axes of style), so that
together they explain about half of its variance.
"""

from __future__ import annotations

import colorsys
import re
import struct
import zlib
from collections.abc import Sequence

import numpy as np

__all__ = ["describe", "draw_sheet", "encode_rgb"]

SIZE, COLUMNS = 32, 40  # pixels along a side of a picture, and pictures in a row of the sheet
NOISE = 1.25  # standard deviation of what words, and pictures, add to what they show

# Five levels of each hidden quantity, from low to high; of each level, wordings of the shop, then one that it never
# uses (for testing whether an encoder knows what words mean).
WORDS = {
    "quality": (
        ("budget", "entry-level", "no-frills", "cheaply made"),
        ("simple", "basic", "everyday", "ordinary"),
        ("solid", "dependable", "well-made", "sturdy"),
        ("premium", "carefully finished", "high-grade", "first-rate"),
        ("handcrafted", "master-made", "superb", "exquisitely built"),
    ),
    "appeal": (
        ("plain-looking", "easily overlooked", "unassuming", "nondescript"),
        ("quiet", "discreet", "low-key", "muted"),
        ("likeable", "pleasant", "friendly", "agreeable"),
        ("attractive", "charming", "good-looking", "handsome"),
        ("eye-catching", "striking", "stunning", "gorgeous"),
    ),
    "era": (
        ("vintage", "old-world", "heritage", "antique-inspired"),
        ("classic", "traditional", "timeless", "conventional"),
        ("", "", "", ""),
        ("modern", "contemporary", "up-to-date", "present-day"),
        ("futuristic", "avant-garde", "space-age", "cutting-edge"),
    ),
    "ornament": (
        ("minimalist", "pared-back", "unadorned", "stripped-down"),
        ("clean-lined", "uncluttered", "neat", "streamlined"),
        ("", "", "", ""),
        ("patterned", "decorated", "detailed", "embellished"),
        ("lavish", "richly ornamented", "opulent", "sumptuous"),
    ),
    "mood": (
        ("sober", "formal", "serious", "solemn"),
        ("calm", "restrained", "composed", "reserved"),
        ("", "", "", ""),
        ("cheerful", "lively", "bright", "merry"),
        ("playful", "whimsical", "fun-loving", "mischievous"),
    ),
}
_TITLES = (
    "{a} {thing} by {brand}",
    "{brand} {thing}, {a}",
    "{a} and {b} {thing}",
    "{brand}: {b} {thing}",
    "{thing} – {a}, {b}",
)
_OPENINGS = (
    "A {quality} choice for anyone who likes {things}.",
    "{quality} {things}, {appeal} at first sight.",
    "Our {quality} {thing} has a {appeal} side.",
    "Looking for {things}? This one is {quality} and {appeal}.",
    "{appeal}, {quality}: {things} as they should be.",
)
_MIDDLES = (
    "The look is {styles}.",
    "Think {styles}.",
    "Designed to feel {styles}.",
    "Customers call it {styles}.",
    "In a {styles} key.",
)
_RETURNS = "Returns within 30 days.", "Comes in a recycled box.", "Care card enclosed."
_CLOSINGS = ("Ships in two days.", "Gift wrap on request.", *_RETURNS, "")


def describe(
    things: Sequence[str], brands: Sequence[str], hidden: np.ndarray, rng: np.random.Generator, unseen: bool = False
) -> dict[str, list[str]]:  # fmt: skip
    """Titles and descriptions of n products: sub-categories in the plural (n,), brands (n,), ``hidden`` (n, 5) quality,
    appeal, era, ornament, mood, standard deviation 1; ``unseen`` uses wordings that the shop's own texts never use."""
    shown = (hidden + NOISE * rng.standard_normal(hidden.shape)) / np.hypot(1, NOISE)
    level = np.searchsorted((-1.0, -0.3, 0.3, 1.0), shown)
    pick = np.full(level.shape, 3) if unseen else rng.integers(0, 3, level.shape)
    choice = rng.integers(0, 1 << 30, (len(level), 5))
    typo = rng.random(len(level)) < 0.04
    parts, titles, texts = (_OPENINGS, _MIDDLES, _CLOSINGS), [], []
    for row in range(len(level)):
        words = [WORDS[name][level[row, i]][pick[row, i]] for i, name in enumerate(WORDS)]
        quality, appeal, *styles = words
        styles = [word for word in styles if word] or ["neutral"]
        thing = things[row].removesuffix("es" if things[row].endswith("shes") else "s")
        a, b = (quality, styles[0]) if choice[row, 0] % 2 else (styles[-1], appeal)
        joined = " and ".join([", ".join(styles[:-1])] * (len(styles) > 1) + styles[-1:])
        fill = {"a": a, "b": b, "thing": thing, "things": things[row], "brand": brands[row]}
        fill |= {"quality": quality, "appeal": appeal, "styles": joined}
        said = [part[c % len(part)].format(**fill) for part, c in zip(parts, choice[row, 2:], strict=True)]
        text = " ".join(_capital(sentence) for sentence in said if sentence)
        titles.append(_capital(_TITLES[choice[row, 1] % len(_TITLES)].format(**fill)))
        texts.append(_mistype(text, choice[row, 0]) if typo[row] else text)
    return {"title": titles, "description": texts}


def _capital(text: str) -> str:
    text = re.sub(r"\b([Aa])n? (?=[aeiou])", r"\1n ", text)
    text = re.sub(r"\b([Aa])n (?=[^aeiou])", r"\1 ", text)
    return text[:1].upper() + text[1:]


def _mistype(text: str, draw: int) -> str:
    """Swap two letters of a word."""
    at = 1 + draw % (len(text) - 3)
    return text[:at] + text[at + 1] + text[at] + text[at + 2 :]


def draw_sheet(sub: np.ndarray, hidden: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Pictures of products, side by side: uint8 (rows·32, 40·32, 3).

    Shape follows the sub-category; hue the era, ornament the number of stripes, mood the saturation; appeal lights
    the background, quality polishes the surface.
    """
    shown = (hidden + NOISE * rng.standard_normal(hidden.shape)) / np.hypot(1, NOISE)
    unit = 1 / (1 + np.exp(-1.7 * shown))  # about uniform in [0, 1]
    drawn = [_picture(s, *u, rng) for s, u in zip(sub, unit, strict=True)]
    blank = np.full((-len(sub) % COLUMNS, SIZE, SIZE, 3), 255, np.uint8)
    rows = np.concatenate([drawn, blank]).reshape(-1, COLUMNS, SIZE, SIZE, 3)
    return rows.swapaxes(1, 2).reshape(-1, COLUMNS * SIZE, 3)


# outline of a category: exponent of the superellipse, number and depth of its lobes; of its four sub-categories:
# width, height and turn
_OUTLINES = (
    (8, 0, 0.0), (5, 4, 0.07), (2, 3, 0.22), (3, 2, 0.2), (2.5, 6, 0.1), (2, 0, 0.0), (2, 5, 0.26), (2, 7, 0.17),
)  # fmt: skip
_VARIANTS = ((1.0, 0.72, 0.0), (0.68, 1.0, 0.0), (0.9, 0.9, 0.4), (1.0, 0.52, -0.6))


def _picture(sub: int, quality, appeal, era, ornament, mood, rng: np.random.Generator) -> np.ndarray:
    axis = (np.arange(SIZE) + 0.5) / SIZE * 2.3 - 1.15
    x, y = np.meshgrid(axis, axis)
    (power, lobes, depth), (width, height, turn) = _OUTLINES[sub // 4], _VARIANTS[sub % 4]
    u, v = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
    edge = 0.86 * (1 + depth * np.cos(lobes * np.arctan2(v, u) + np.pi / 2))
    reach = (np.abs(u / width) ** power + np.abs(v / height) ** power) ** (1 / power)
    body = np.clip((edge - reach) * 9 + 0.5, 0, 1)
    colour = np.array(colorsys.hsv_to_rgb(0.02 + 0.72 * era, 0.2 + 0.7 * mood, 0.88))
    stripes = np.sin((1 + 6 * ornament) * np.pi * (u + 0.4 * v)) > 0
    shade = 1 - (0.08 + 0.4 * ornament) * stripes * (ornament > 0.3)
    shade = shade * (0.92 - 0.2 * reach) + 0.05 * (1 - quality) * rng.standard_normal((SIZE, SIZE))
    if sub % 2:  # a dial, a seam
        shade = shade * (1 - 0.35 * np.clip((0.22 - np.abs(np.hypot(u, v) - 0.1)) * 9 - 1, 0, 1))
    gloss = quality**2 * np.exp(-((x + 0.3) ** 2 + (y + 0.35) ** 2) / 0.06)
    surface = colour * shade[..., None] + 0.75 * gloss[..., None]
    glow = np.exp(-(x**2 + y**2))[..., None] * np.array([1.0, 0.95, 0.75])
    tint = np.array(colorsys.hsv_to_rgb(sub // 4 / 8, 0.1, 1.0))
    ground = tint * (0.78 + 0.16 * appeal) + (0.03 + 0.26 * appeal) * (glow - 0.75)
    picture = np.clip(ground * (1 - body[..., None]) + surface * body[..., None], 0, 1)
    return (np.round(picture * 31) * 8.226).astype(np.uint8)


def encode_rgb(pixels: np.ndarray) -> bytes:
    """A PNG of uint8 pixels (height, width, 3)."""
    height, width, _ = pixels.shape
    # each pixel less its left neighbour
    step = np.diff(pixels.astype(np.int16), axis=1, prepend=0).astype(np.uint8)
    lines = np.concatenate([np.ones((height, 1), np.uint8), step.reshape(height, -1)], 1)
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    found = b"\x89PNG\r\n\x1a\n"
    for kind, data in ((b"IHDR", head), (b"IDAT", zlib.compress(lines.tobytes(), 9)), (b"IEND", b"")):
        found += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return found
