"""Build the notebooks: py:percent text in this folder becomes an executed ``.ipynb`` one folder up.

    python notebooks/source/build.py                 build all
    python notebooks/source/build.py 01 02           build some
    python notebooks/source/build.py --site OUT      execute all and write them as pages that need no kernel (web.py)
    python notebooks/source/build.py --check         say whether texts and notebooks agree, executing nothing

Markers in a text are replaced. A code cell that holds only ``# {{setup}}`` becomes the setup cell, ``# {{find}}`` its
first half, which imports no torch (notebook 00 shows a slider before it does); in markdown,
``{{colab_badge}}`` becomes the badge, ``{{repository}}`` the repository's address, which pyproject.toml holds, and
a task's name, such as ``{{next_category}}``, the words in the task's colour.
A code cell tagged ``plumbing``, whose first line must be ``# @title What it does``, is folded: JupyterLab hides it
behind that line, Colab behind a form.
A notebook is written only after all its cells have run, so a cell that fails leaves the old notebook as it was.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import io
import os
import re
import sys
import time
import tomllib
from pathlib import Path

import jupytext
import nbformat
from nbformat import NotebookNode
from PIL import Image

sys.path.insert(
    0, str(Path(__file__).resolve().parents[2])
)  # this copy's package, wherever another is installed

from execute import CellFailed, execute
from pages import color_tasks, describe, shares, too_much

SOURCES = Path(__file__).resolve().parent
NOTEBOOKS = SOURCES.parent
ROOT = NOTEBOOKS.parent
COMMAND = "python notebooks/source/build.py"
MAX_SITE = 15_000_000
MAX_BYTES = 1_000_000  # pictures have two pixels to one of the page
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"

SETUP = """\
# @title Setup: find the course's helpers, then start
# The same in every notebook. On Colab it fetches the helper package first.
import os, subprocess, sys
from importlib.util import find_spec
from pathlib import Path
import torch
repo = os.environ.get("MTL_REPO_URL") or "{{repository}}"
here, clone = Path(os.environ.get("JPY_SESSION_NAME", "x")).resolve(), Path("mtl-for-recommenders").resolve()
places = (Path.cwd(), *Path.cwd().parents, *here.parents, clone)
found = [place for place in places if (place / "mtl_helpers" / "__init__.py").is_file()]
if not found and find_spec("google") and find_spec("google.colab"):
    git = "YOUR-ACCOUNT" not in repo and subprocess.run(["git", "clone", "--depth", "1", repo, str(clone)])
    assert git and git.returncode == 0, f"Could not fetch {repo}. Set MTL_REPO_URL to your copy's address."
sys.path[:0] = [str(found[0] if found else clone)]
from mtl_helpers.notebook import start
device, FAST = start()"""
FIND = SETUP.partition("from mtl_helpers")[0].replace("import torch\n", "")
FIND = FIND.replace("Setup: find the course's helpers, then start", "Find the course's helpers")
FIND += "from mtl_helpers.widgets import number_folded_cells\nnumber_folded_cells()"
STAMPS = {"# {{setup}}": SETUP, "# {{find}}": FIND}

METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {
        "codemirror_mode": {"name": "ipython", "version": 3},
        "file_extension": ".py",
        "mimetype": "text/x-python",
        "name": "python",
        "nbconvert_exporter": "python",
        "pygments_lexer": "ipython3",
    },
    # Colab reads these two and offers a GPU runtime at once.
    "accelerator": "GPU",
    "colab": {"gpuType": "T4", "provenance": []},
}

CELL_START = re.compile(r"^# %%", re.MULTILINE)
PROGRESS = re.compile(r"\d+%\||\d+it \[|TqdmWarning|from \.autonotebook import tqdm")
WIDGET_REPR = re.compile(r"\s*[A-Za-z_][\w.]*\(.*\)\s*", re.DOTALL)
PNG_URI = re.compile(r"(data:image/png;base64,)([A-Za-z0-9+/=\s]+)")


class BuildError(Exception):
    """What is wrong with a source or a notebook, in words for its author."""


# --- from text to a notebook without outputs ---------------------------------------------------------------


def repository() -> str:
    """The repository's address, which stands in pyproject.toml alone."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        return tomllib.load(file)["project"]["urls"]["Repository"].rstrip("/").removesuffix(".git")


def colab_badge(name: str, address: str) -> str:
    """The badge that opens notebook `name` on Colab, which reads repositories on GitHub only."""
    _, github, path = address.partition("https://github.com/")
    if not github:
        return "On Colab: *File → Upload notebook*."
    link = f"https://colab.research.google.com/github/{path}/blob/main/notebooks/{name}.ipynb"
    return f"[▶ Open in Colab]({link})"  # a text: a picture would be fetched from elsewhere at every opening


def find_sources() -> dict[str, Path]:
    """All texts by name, such as ``00_start_here``."""
    return {path.stem: path for path in sorted(SOURCES.glob("[0-9][0-9]_*.py"))}


def fold(cell: NotebookNode, where: str) -> None:
    """Hide the code of a cell tagged ``plumbing`` behind its title."""
    plumbing = "plumbing" in cell.metadata.get("tags", [])
    titled = re.match(r"# @title \S", cell.source) is not None
    if plumbing and not titled:
        raise BuildError(f"{where}: a cell tagged plumbing must begin with `# @title What it does`.")
    if titled and not plumbing:
        raise BuildError(f'{where}: it has a title, so head it `# %% tags=["plumbing"]`, or drop the title.')
    if plumbing:
        cell.metadata.update(cellView="form", jupyter={"source_hidden": True})


def parse(name: str, text: str, address: str) -> NotebookNode:
    """Turn a text into a notebook: markers replaced, ids derived from name and content, no outputs."""
    notebook = jupytext.reads(text, fmt="py:percent")
    seen: dict[tuple[str, str], int] = {}
    markers = {"setup": 0, "colab_badge": 0}
    for number, cell in enumerate(notebook.cells, start=1):
        # The id comes from the text before stamping: another address leaves all ids as they are.
        key = (cell.cell_type, cell.source)
        seen[key] = seen.get(key, 0) + 1
        for layout in ("lines_to_next_cell", "lines_to_end_of_cell_marker"):  # blank lines in the text
            cell.metadata.pop(layout, None)
        cell.id = hashlib.sha256("\0".join([name, *key, str(seen[key])]).encode()).hexdigest()[:12]
        if cell.cell_type == "code":
            if stamp := STAMPS.get(cell.source.strip()):
                markers["setup"] += 1
                cell.source = stamp.replace("{{repository}}", address)
                cell.metadata["tags"] = ["plumbing"]
            elif "{{setup}}" in cell.source:
                raise BuildError(f"{name}, cell {number}: `# {{{{setup}}}}` must stand alone in its cell.")
            fold(cell, f"{name}, cell {number}")
        else:
            markers["colab_badge"] += cell.source.count("{{colab_badge}}")
            cell.source = cell.source.replace("{{colab_badge}}", colab_badge(name, address))
            cell.source = cell.source.replace("{{repository}}", address)
            cell.source = color_tasks(cell.source)
    titles = [cell.source.splitlines()[0] for cell in notebook.cells if "cellView" in cell.metadata]
    if twice := {title for title in titles if titles.count(title) > 1}:
        raise BuildError(
            f"{name}: two folded cells are called `{min(twice)}`; each needs a title of its own."
        )
    for marker, count in markers.items():
        if count != 1:
            where = "a code cell of its own" if marker == "setup" else "the first markdown cell"
            raise BuildError(
                f"{name}: {{{{{marker}}}}} must stand once, in {where}; it stands {count} times."
            )
    fresh = nbformat.v4.new_notebook(cells=notebook.cells, metadata=METADATA)
    fresh.nbformat_minor = 5
    return fresh


def load(name: str) -> NotebookNode:
    return parse(name, find_sources()[name].read_text(encoding="utf-8"), repository())


def line_of_cell(text: str, index: int) -> int:
    """The line of the source on which cell `index` (from 0) starts."""
    starts = [match.start() for match in CELL_START.finditer(text)]
    return text.count("\n", 0, starts[index]) + 1 if index < len(starts) else 1


# --- outputs: small, the same on every build, readable without a kernel -------------------------------------


def shrink_png(encoded: str) -> str:
    """Base64 PNG → the smaller of itself and a 128-colour version."""
    raw = base64.b64decode(encoded)
    with Image.open(io.BytesIO(raw)) as image:
        opaque = image.mode == "RGB" or image.convert("RGBA").getextrema()[3][0] == 255
        method = Image.Quantize.MEDIANCUT if opaque else Image.Quantize.FASTOCTREE
        reduced = image.convert("RGB" if opaque else "RGBA").quantize(
            128, method=method, dither=Image.Dither.NONE
        )
        buffer = io.BytesIO()
        reduced.save(buffer, "PNG", optimize=True)
    best = min(raw, buffer.getvalue(), key=len)
    return base64.b64encode(best).decode()


def tidy_text(text: str) -> str:
    """Take out what differs between machines and runs: folders, process numbers, addresses in memory."""
    for folder, name in ((ROOT, "mtl-for-recommenders"), (Path(sys.prefix), "…"), (Path.home(), "~")):
        if folder != Path(folder.anchor):
            text = re.sub(re.escape(str(folder)) + r"(?![\w-])", lambda _, name=name: name, text)
    if "ipykernel_" in text:
        text = re.sub(r"[^\s\"']{0,200}[/\\]ipykernel_\d+[/\\]\d+\.py", "<cell>", text)
    return re.sub(r"\b0x[0-9a-fA-F]{8,16}\b", "0x…", text)


def tidy_stream(output: NotebookNode) -> NotebookNode | None:
    """A printed text without progress bars; None if nothing is left."""
    lines = [line.rsplit("\r", 1)[-1] for line in output.text.replace("\r\n", "\n").split("\n")]
    if output.name == "stderr":
        lines = [line for line in lines if not PROGRESS.search(line)]
    output.text = tidy_text("\n".join(lines))
    return output if output.text.strip() else None


def tidy_bundle(output: NotebookNode) -> NotebookNode | None:
    """A shown object without its live widget view; None if only a bar or a constructor's text is left."""
    data = output.data
    if data.pop(WIDGET_VIEW, None) is not None and set(data) <= {"text/plain"}:
        plain = data.get("text/plain", "")
        if not plain.strip() or PROGRESS.search(plain) or WIDGET_REPR.fullmatch(plain):
            return None
    for mime, value in data.items():
        if mime == "image/png":
            data[mime] = shrink_png(value)
        elif mime.startswith("text/"):
            shrunk = PNG_URI.sub(lambda match: match[1] + shrink_png(match[2]), value)
            data[mime] = tidy_text(shrunk)
    return output


def clean(notebook: NotebookNode) -> list[str]:
    """Clean an executed notebook in place; returns notes for its author."""
    notes = []
    notebook.metadata = nbformat.from_dict(METADATA)
    for number, cell in enumerate(notebook.cells, start=1):
        cell.metadata.pop("execution", None)
        if cell.cell_type != "code":
            continue
        kept: list[NotebookNode] = []
        for output in cell.outputs:
            is_widget = WIDGET_VIEW in output.get("data", {})
            if output.output_type == "stream":
                if kept and kept[-1].output_type == "stream" and kept[-1].name == output.name:
                    kept[-1].text += output.text
                    continue
                kept.append(output)
            elif output.output_type == "error":
                output.traceback = [tidy_text(line) for line in output.traceback]
                output.evalue = tidy_text(output.evalue)
                kept.append(output)
            elif (tidied := tidy_bundle(output)) is not None:
                kept.append(tidied)
            plain = output.get("data", {}).get("text/plain", "")
            if (
                is_widget
                and not PROGRESS.search(plain)
                and not (kept and kept[-1].get("data", {}).keys() & {"image/png", "text/markdown"})
            ):
                notes.append(f"cell {number}: a widget without a static picture shows nothing on GitHub")
        streams = (tidy_stream(output) if output.output_type == "stream" else output for output in kept)
        cell.outputs = [output for output in streams if output is not None]
        for output in cell.outputs:
            if output.output_type == "stream" and output.name == "stderr":
                notes.append(f"cell {number}: stderr is kept: {output.text.strip().splitlines()[0][:100]}")
    return notes


def to_bytes(notebook: NotebookNode) -> bytes:
    return (nbformat.writes(notebook).rstrip("\n") + "\n").encode()


def size_complaint(notebook: NotebookNode, size: int) -> str:
    """Say which cells make the notebook too large."""
    weights = [
        (len(str(cell.get("outputs", ""))), number) for number, cell in enumerate(notebook.cells, start=1)
    ]
    heaviest = ", ".join(f"cell {number} {weight // 1000} kB" for weight, number in sorted(weights)[:-4:-1])
    return f"{size // 1000} kB, more than {MAX_BYTES // 1000} kB ({heaviest}); draw fewer or smaller figures"


# --- the two commands ---------------------------------------------------------------------------------------


def run(name: str, first: str = "") -> NotebookNode:
    """A notebook executed from its text; BuildError tells the line of a failing cell.

    first : a cell that runs before the others and is left out again; for pages, which heed ``FAST``.
    """
    source, notebook = find_sources()[name], load(name)
    before = [nbformat.v4.new_code_cell(first)] if first else []
    notebook.cells[:0] = before
    # Threads that wait busily slow each other on a machine that has other work.
    env = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0", **os.environ, "MTL_BUILD": "1"}
    if not first:
        env.pop("FAST", None)
    try:
        execute(notebook, NOTEBOOKS, env)
    except CellFailed as failure:
        line = line_of_cell(source.read_text(encoding="utf-8"), failure.index - len(before))
        raise BuildError(
            f"{source.relative_to(ROOT)}:{line}: {failure}\n\n{name}.ipynb is left as it was."
        ) from None
    del notebook.cells[: len(before)]
    return notebook


def site(names: list[str], out: Path) -> None:
    """Execute notebooks, each demo drawing all its states, and write them as pages. ``FAST=1`` makes short runs."""
    from states import FIRST_CELL
    from web import write_site

    books = {}
    for name in names:
        books[name] = run(name, FIRST_CELL)
        clean(books[name])
        print(f"{name}: executed", flush=True)
    write_site(books, (NOTEBOOKS / "glossary.md").read_text(encoding="utf-8"), out)
    size = sum(path.stat().st_size for path in out.glob("*.html"))
    print(f"{len(books)} notebooks in {out}: {size / 1e6:.1f} MB")
    if size > MAX_SITE:
        raise BuildError(f"The site is larger than {MAX_SITE / 1e6:.0f} MB.")


def build(name: str) -> None:
    """Execute one notebook in full and write it; raises BuildError and leaves the old one if that fails."""
    started = time.perf_counter()
    notebook = run(name)
    seconds = time.perf_counter() - started
    notes = clean(notebook)
    content = to_bytes(notebook)
    if len(content) > MAX_BYTES:
        raise BuildError(f"{name}: {size_complaint(notebook, len(content))}. {name}.ipynb is left as it was.")
    target = NOTEBOOKS / f"{name}.ipynb"
    partial = target.with_suffix(".ipynb.tmp")
    partial.write_bytes(content)
    os.replace(partial, target)
    print(f"{name}: {len(notebook.cells)} cells, {seconds:.0f} s, {len(content) / 1000:.0f} kB", flush=True)
    for note in notes:
        print(f"  note: {note}", flush=True)


def complaints(name: str) -> list[str]:
    """All that is wrong with a built notebook, each in one line."""
    try:
        expected = load(name)
    except BuildError as error:
        return [str(error)]
    path = NOTEBOOKS / f"{name}.ipynb"
    if not path.exists():
        return ["it has not been built yet"]
    try:
        notebook = nbformat.read(path, as_version=nbformat.NO_CONVERT)
        nbformat.validate(notebook)
    except Exception as error:
        return [f"it is no valid notebook: {str(error).splitlines()[0]}"]
    found = differences(expected, notebook)
    if "widgets" in notebook.metadata:
        found.append("it keeps widget state (metadata.widgets)")
    if notebook.metadata.get("kernelspec") != METADATA["kernelspec"]:
        found.append("its kernelspec is not python3")
    if path.stat().st_size > MAX_BYTES:
        found.append(size_complaint(notebook, path.stat().st_size))
    code = [(number, cell) for number, cell in enumerate(notebook.cells, start=1) if cell.cell_type == "code"]
    if [cell.execution_count for _, cell in code] != list(range(1, len(code) + 1)):
        found.append("its code cells were not all executed once, from top to bottom")
    if not any(cell.outputs for _, cell in code):
        found.append("it has no outputs")
    for number, cell in code:
        for output in cell.outputs:
            if output.output_type == "error" and "raises-exception" not in cell.metadata.get("tags", []):
                found.append(f"cell {number} ended in an error: {output.ename}: {output.evalue[:80]}")
            if WIDGET_VIEW in output.get("data", {}):
                found.append(f"cell {number} keeps a widget view")
    return found


def differences(expected: NotebookNode, notebook: NotebookNode) -> list[str]:
    """Where the cells of a notebook differ from what its text says."""
    if (notebook.nbformat, notebook.nbformat_minor) != (expected.nbformat, expected.nbformat_minor):
        return ["its format is not nbformat 4.5"]
    if len(notebook.cells) != len(expected.cells):
        return [f"it has {len(notebook.cells)} cells, the text has {len(expected.cells)}"]
    found = []
    for number, (want, have) in enumerate(zip(expected.cells, notebook.cells, strict=True), start=1):
        what = [key for key in ("cell_type", "source", "id", "metadata") if want[key] != have[key]]
        if what:
            first = (want.source.strip() or "(empty)").splitlines()[0][:60]
            found.append(f"cell {number} differs from the text in {' and '.join(what)}: {first}")
    return found


def check(names: list[str], everything: bool) -> int:
    """Print what is wrong with the built notebooks; the number of those with faults."""
    faulty = 0
    for name in names:
        found = complaints(name)
        path = NOTEBOOKS / f"{name}.ipynb"
        page = shares(nbformat.read(path, as_version=4)) if path.exists() and not found else {}
        print(f"{name}: {'agrees with its text; ' if not found else ''}{describe(page)}")
        found += too_much(page)
        faulty += bool(found)
        for complaint in found:
            print(f"  {complaint}")
        if found:
            print(f"  → mend notebooks/source/{name}.py if it is at fault, then run: {COMMAND} {name}")
    if everything:
        strays = sorted({path.stem for path in NOTEBOOKS.glob("*.ipynb")} - set(find_sources()))
        for stray in strays:
            print(
                f"{stray}: has no text; write notebooks/source/{stray}.py or delete notebooks/{stray}.ipynb"
            )
        faulty += len(strays)
    return faulty


def select(wanted: list[str]) -> list[str]:
    """Names from what was typed: ``01``, a whole name, or a path to a text or a notebook."""
    known = find_sources()
    chosen = []
    for word in wanted:
        stem = Path(word).stem
        hits = [name for name in known if name == stem or name.startswith(f"{stem}_")]
        if not hits:
            raise BuildError(f"No notebook is called {word!r}. There are: {', '.join(known) or 'none'}.")
        chosen += [hit for hit in hits if hit not in chosen]
    return chosen or list(known)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog=COMMAND, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help="such as 01 or 01_single_task_baseline; by default all")
    parser.add_argument("--check", action="store_true", help="compare texts and notebooks, executing nothing")
    parser.add_argument(
        "--site", metavar="OUT", type=Path, help="write pages that need no kernel to a folder"
    )
    options = parser.parse_args(arguments)
    try:
        names = select(options.names)
        if options.site:
            return site(names, options.site) or 0
        if options.check:
            return 1 if check(names, everything=not options.names) else 0
    except BuildError as error:
        print(error, file=sys.stderr)
        return 1
    failed = 0
    for name in names:
        try:
            build(name)
        except BuildError as error:
            failed += 1
            print(error, file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
