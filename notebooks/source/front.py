"""The pictures of README.md, in notebooks/pictures: the weight slider at work, and a thumbnail of each notebook.

    python notebooks/source/front.py

The slider's frames are those of notebook 00's first demo, drawn by the explorer itself, one for each trained weight. A
thumbnail is a part of a picture that its notebook stores. Run it after a build that changed one of them.
"""

from __future__ import annotations

import base64
import io
import sys
from pathlib import Path

import nbformat
import numpy as np
from matplotlib.figure import Figure
from PIL import Image, ImageOps

sys.path.insert(
    0, str(Path(__file__).resolve().parents[2])
)  # this copy's package, wherever another is installed

from mtl_helpers.widgets import Explorer, StoredSweep, use_course_style, weight_explorer
from mtl_helpers.widgets.explorer import Stage
from mtl_helpers.widgets.figures import minus

NOTEBOOKS = Path(__file__).resolve().parents[1]
PICTURES = NOTEBOOKS / "pictures"
SIZE = 400, 240  # pixels of a thumbnail, two to one of the page
DPI, STEP, REST = 200, 700, 1800  # pixels to an inch; milliseconds of a frame, and of the two ends
# Words that stand in the one cell that stores the picture; left, top, right and bottom of the part, in percent.
THUMBNAILS = {
    "00_start_here": ("# @title Draw the page", 0, 0, 100, 100),
    "01_single_task_baseline": ("threshold_explorer(y", 36, 0, 68, 82),
    "02_shared_bottom": ("scarcity_explorer(slider", 0, 0, 67, 84),
    "03_loss_math": ("loss_demos.two_losses_explorer(", 0, 0, 52, 84),
    "04_weighting_strategies": ("# @title Widget: the landscape, moved", 0, 0, 50, 77),
    "05_ecommerce_case": ("# @title One user's page", 0, 0, 56, 100),
    "06_sharing_architectures": ("# @title Gates, as maps: move p", 0, 0, 74, 80),
    "07_real_data": ("# @title Figure: eight days of labels", 31, 9, 100, 88),
    "08_rare_missing_unlabelled": ("and their maps", 0, 0, 43, 92),
    "09_large_model_features": ("nearest products by five", 0, 0, 50, 66),
    "10_to_production": ("# @title Slider: the refresh interval", 0, 0, 50, 70),
}


def thumbnail(name: str) -> Image.Image:
    """The chosen part of a picture that a notebook stores, on white."""
    words, *part = THUMBNAILS[name]
    cells = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4).cells
    (cell,) = [cell for cell in cells if cell.cell_type == "code" and words in cell.source]
    (png,) = [output.data["image/png"] for output in cell.outputs if "image/png" in output.get("data", {})]
    picture = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
    picture = picture.crop([side * share // 100 for side, share in zip(picture.size * 2, part, strict=True)])
    return ImageOps.pad(picture, SIZE, Image.Resampling.LANCZOS, color="white")


def strip(height: float, dpi: float) -> tuple[Figure, Stage]:
    fig = Figure(figsize=(8.6, height), dpi=dpi, facecolor="white")
    return fig, Stage(fig)


def frame(explorer: Explorer) -> np.ndarray:
    """An explorer of one slider as it stands: the slider, the picture, the line that reads it."""
    (control,) = explorer.controls.values()
    above, stage = strip(0.42, DPI)
    at, last = control.index, len(control.options) - 1
    track = above.add_axes((0.42, 0, 0.47, 1))
    track.axis("off")
    track.plot([0, last], [0, 0], color="#9e9e9e", lw=3, solid_capstyle="round")
    track.plot(at, 0, "o", ms=13, mfc="white", mec="#1976d2", mew=2)
    track.set_xlim(-0.2, last + 0.2)
    look = {"va": "center", "fontsize": 10, "parse_math": False}
    above.text(0.405, 0.5, control.description, ha="right", **look)
    above.text(0.91, 0.5, control.said(control.value), **look)
    parts = [stage.draw()[..., :3].copy()]
    explorer.figure.set_dpi(DPI)
    parts.append(Stage(explorer.figure).draw()[..., :3].copy())
    below, stage = strip(0.42, DPI)
    reading = minus(explorer.reading).replace(". Against", ".\nAgainst")  # too long for one line
    below.text(0.01, 0.55, reading, fontsize=7.6, va="center", parse_math=False)
    parts.append(stage.draw()[..., :3].copy())
    return np.concatenate(parts)


def slider() -> list[Image.Image]:
    """Frames from one end of notebook 00's slider to the other and back."""
    use_course_style()
    explorer = weight_explorer(StoredSweep("00_family"), start={"click": 0.98, "purchase": 0.02})
    (control,) = explorer.controls.values()
    there = [value for _, value in control.options]
    drawn = []
    for value in there:
        explorer.set(**{control.name: value})
        drawn.append(Image.fromarray(frame(explorer)))
    return drawn + drawn[-2:0:-1]


def few_colours(picture: Image.Image, palette: Image.Image | None = None) -> Image.Image:
    few = picture.quantize(256, kmeans=1, palette=palette, dither=Image.Dither.NONE)
    few.putpalette([255 if level > 248 else level for level in few.getpalette()])  # white stays white
    return few


def main() -> None:
    PICTURES.mkdir(exist_ok=True)
    for name in THUMBNAILS:
        few_colours(thumbnail(name)).save(PICTURES / f"{name[:2]}.png", optimize=True)
    frames = slider()
    palette = few_colours(frames[0])
    first, *others = (few_colours(each, palette) for each in frames)
    times = [REST if at in (0, len(frames) // 2) else STEP for at in range(len(frames))]
    first.save(PICTURES / "slider.gif", save_all=True, append_images=others, duration=times, loop=0)


if __name__ == "__main__":
    main()
