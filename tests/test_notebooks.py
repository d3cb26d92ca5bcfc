"""Built notebooks agree with their texts and run; the build refuses what it must not publish."""

from __future__ import annotations

import asyncio
import base64
import io
import os
import shutil
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from copy import deepcopy
from pathlib import Path
from queue import Empty
from unittest import mock

import nbformat
import pytest
from lab import missing
from PIL import Image
from solved import NOTEBOOKS, ROOT, run, solved

import build
from execute import look_again

SAMPLE = '''\
# %% [markdown]
# # A sample
# {{colab_badge}}

# %%
# {{setup}}

# %%
import os
import warnings
print(os.getcwd(), os.environ.get("MTL_BUILD"), os.environ.get("FAST"), object())
warnings.warn("worth keeping")

# %%
import matplotlib.pyplot as plt
figure, axes = plt.subplots(figsize=(6, 9))
axes.plot([1, 3, 2]);

# %%
import ipywidgets
from tqdm import tqdm as plain_bar
from tqdm.auto import tqdm
for step in tqdm(range(2)):
    pass
for step in plain_bar(range(2)):
    pass
ipywidgets.VBox([ipywidgets.IntSlider()])

# %% tags=["plumbing"]
# @title Show a slider
import base64, io
class Slider:
    """Shows a live widget, and a picture where there is none."""

    def _repr_mimebundle_(self, **kwargs):
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
        picture = base64.b64encode(buffer.getvalue()).decode()
        view = {"model_id": ipywidgets.IntSlider().model_id, "version_major": 2, "version_minor": 0}
        return {
            "application/vnd.jupyter.widget-view+json": view,
            "image/png": picture,
            "text/plain": "the slider at 0",
        }
Slider()

# %%
output = ipywidgets.Output()
with output:
    print("inside")
output

# %% tags=["raises-exception"]
1 / 0

# %%
print("same")

# %%
print("same")
'''


def run_build(tree: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess:
    """The command as an author types it."""
    command = [sys.executable, str(tree / "notebooks" / "source" / "build.py"), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8", **env}
    return subprocess.run(
        command, capture_output=True, encoding="utf-8", env=environment, cwd=tree, check=False
    )


def quick(tree: Path, *arguments: str) -> tuple[int, str]:
    """The same within this process, for what executes no cell: exit status and all that is printed."""
    printed = io.StringIO()
    places = {"ROOT": tree, "NOTEBOOKS": tree / "notebooks", "SOURCES": tree / "notebooks" / "source"}
    with (
        mock.patch.multiple(build, **places),
        redirect_stdout(printed),
        redirect_stderr(printed),
    ):
        return build.main(list(arguments)), printed.getvalue()


def make_tree(folder: Path, **texts: str) -> Path:
    """A copy of the project with other texts: ``make_tree(folder, a_name="text")``."""
    sources = folder / "notebooks" / "source"
    sources.mkdir(parents=True)
    shutil.copy(ROOT / "pyproject.toml", folder)
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "mtl_helpers", folder / "mtl_helpers", ignore=ignored)
    for script in (ROOT / "notebooks" / "source").glob("[a-z]*.py"):
        shutil.copy(script, sources)
    for name, text in texts.items():
        (sources / f"{name.lstrip('_')}.py").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    tree = make_tree(tmp_path_factory.mktemp("project"), _00_sample=SAMPLE)
    done = run_build(tree, FAST="1", MPLBACKEND="agg")
    assert done.returncode == 0, done.stdout + done.stderr
    return tree


@pytest.fixture
def tree(built, tmp_path) -> Path:
    """A built tree that a test may spoil."""
    return Path(shutil.copytree(built, tmp_path / "project"))


def read(tree: Path) -> nbformat.NotebookNode:
    return nbformat.read(tree / "notebooks" / "00_sample.ipynb", as_version=4)


def outputs_of(notebook: nbformat.NotebookNode, text: str) -> list[nbformat.NotebookNode]:
    return next(cell for cell in notebook.cells if text in cell.source).outputs


# --- the notebooks of the course ----------------------------------------------------------------------------


def test_built_notebooks_agree_with_their_texts(capsys):
    status = build.main(["--check"])
    assert status == 0, capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_where_its_exercises_are_solved(path):
    """03 with every cell run twice, 05 and 06 on a pretended GPU, by default Apple's, the stricter one; the others in a
    browser, if there is one (tests/browser)."""
    notebook, number = solved(path), path.stem[:2]
    if "MTL_PRETEND" in os.environ or number in ("05", "06"):
        kind = os.environ.get("MTL_PRETEND", "mps")
        begin = f"import sys; sys.path.insert(0, {str(ROOT / 'tests')!r}); import fake_device"
        notebook.cells.insert(0, nbformat.v4.new_code_cell(f"{begin}; fake_device.become({kind!r})"))
        run(notebook)
        said = [out.text for cell in notebook.cells[:6] for out in cell.get("outputs", []) if "text" in out]
        assert any(f"· {kind} (" in text for text in said), said
        return
    if number == "03":
        twins = [deepcopy(cell) for cell in notebook.cells]
        for twin in twins:
            twin.id = f"{twin.id[:8]}-too"
        notebook.cells = [cell for both in zip(notebook.cells, twins, strict=True) for cell in both]
    elif not missing():
        pytest.skip("tests/browser runs it")
    run(notebook)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_after_a_restart_a_cell_of_the_middle_names_what_is_missing(path):
    cells = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    with pytest.raises(NameError, match="name '.+' is not defined"):
        exec(cells[len(cells) // 2], {})


# --- what the build makes -----------------------------------------------------------------------------------


def test_a_fresh_build_passes_the_check(built):
    done = run_build(built, "--check")
    assert (done.returncode, done.stderr) == (0, "")
    assert quick(built, "--check")[0] == 0, "its page lies within the limits"
    assert "00_sample: agrees with its text" in done.stdout


def test_the_build_runs_in_full_in_the_notebooks_folder(built):
    printed, warned = outputs_of(read(built), "os.getcwd()")
    folder, building, fast, thing = printed.text.split(maxsplit=3)
    assert Path(folder).as_posix() == "mtl-for-recommenders/notebooks"
    assert (building, fast) == ("1", "None")
    assert thing.strip() == "<object object at 0x…>"
    assert warned.text.startswith("<cell>:4: UserWarning: worth keeping")
    assert str(built) not in (built / "notebooks" / "00_sample.ipynb").read_text(encoding="utf-8")


def test_ids_depend_on_name_and_content_alone(built):
    def ids(name: str, text: str, address: str = build.repository()) -> list[str]:
        return [cell.id for cell in build.parse(name, text, address).cells]

    first = ids("00_sample", SAMPLE)
    assert [cell.id for cell in read(built).cells] == first
    assert len(set(first)) == len(first), "two cells with the same text need two ids"
    assert ids("00_sample", "# %%\n1\n\n" + SAMPLE)[1:] == first
    assert not set(first) & {*ids("01_other", SAMPLE)}
    assert ids("00_sample", SAMPLE, "https://example.org/elsewhere") == first


def test_markers_are_stamped_with_the_address(built):
    title, setup = read(built).cells[:2]
    address = build.repository()
    assert address.removeprefix("https://github.com/") in title.source
    assert f'or "{address}"' in setup.source
    assert "{{" not in title.source + setup.source
    assert "Upload notebook" in build.colab_badge("00_sample", "https://example.org/course")


def test_widgets_leave_their_static_picture_only(built):
    notebook = read(built)
    assert "widgets" not in notebook.metadata
    assert outputs_of(notebook, "plain_bar") == []
    assert outputs_of(notebook, "output = ipywidgets.Output()") == []
    (shown,) = outputs_of(notebook, "class Slider")
    assert set(shown.data) == {"image/png", "text/plain"}
    assert shown.data["text/plain"] == "the slider at 0"
    text = (built / "notebooks" / "00_sample.ipynb").read_text(encoding="utf-8")
    assert build.WIDGET_VIEW not in text.replace('\\"application/vnd', '"')


def test_no_timestamps_and_few_colours(built):
    notebook = read(built)
    assert all(set(cell.metadata) <= {"tags", "cellView", "jupyter"} for cell in notebook.cells)
    (figure,) = outputs_of(notebook, "axes.plot")
    with Image.open(io.BytesIO(base64.b64decode(figure.data["image/png"]))) as image:
        assert image.mode == "P"


def test_building_again_changes_nothing(tree):
    path = tree / "notebooks" / "00_sample.ipynb"
    before = path.read_bytes()
    assert run_build(tree, "00").returncode == 0
    assert path.read_bytes() == before


def test_shrinking_keeps_transparency_and_never_grows():
    buffer = io.BytesIO()
    Image.new("RGBA", (40, 30), (200, 10, 10, 90)).save(buffer, "PNG")
    encoded = base64.b64encode(buffer.getvalue()).decode()
    shrunk = build.shrink_png(encoded)
    assert len(shrunk) <= len(encoded)
    with Image.open(io.BytesIO(base64.b64decode(shrunk))) as image:
        assert image.convert("RGBA").getpixel((3, 3)) == (200, 10, 10, 90)


# --- what the build refuses ---------------------------------------------------------------------------------


def test_a_failing_cell_leaves_the_old_notebook(tree):
    path = tree / "notebooks" / "00_sample.ipynb"
    before = path.read_bytes()
    source = tree / "notebooks" / "source" / "00_sample.py"
    text = source.read_text(encoding="utf-8") + "\n# %%\nprint('so far')\nundefined_name + 1\n"
    source.write_text(text, encoding="utf-8")
    done = run_build(tree)
    assert done.returncode == 1
    assert path.read_bytes() == before
    line = text.splitlines().index("print('so far')")
    error = "NameError: name 'undefined_name' is not defined"
    assert all(said in done.stderr for said in (f"00_sample.py:{line}:", "undefined_name + 1", error))
    assert not list((tree / "notebooks").glob("*.tmp"))


def test_too_large_a_notebook_is_not_written(tmp_path):
    text = SAMPLE + "\n# %%\nprint('0123456789' * 110_000)\n"
    tree = make_tree(tmp_path / "project", _00_sample=text)
    done = run_build(tree)
    assert done.returncode == 1
    assert "more than 1000 kB" in done.stderr
    assert f"cell {text.count('# %%')} 11" in done.stderr
    assert not list((tree / "notebooks").glob("*.ipynb*"))


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("# {{setup}}", "device = 'cpu'", "{{setup}} must stand once"),
        ("# {{setup}}", "# {{setup}}\nimport torch", "must stand alone"),
        ("{{colab_badge}}", "", "{{colab_badge}} must stand once"),
        ("{{colab_badge}}", "{{colab_badge}} {{colab_badge}}", "stands 2 times"),
    ],
)
def test_a_text_without_its_markers_is_refused(tree, old, new, reason):
    source = tree / "notebooks" / "source" / "00_sample.py"
    source.write_text(SAMPLE.replace(old, new), encoding="utf-8")
    for arguments in ([], ["--check"]):
        status, printed = quick(tree, *arguments)
        assert status == 1
        assert reason in printed


def test_names_can_be_short_whole_or_paths():
    known = {"00_start": Path(), "01_next": Path()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "find_sources", lambda: known)
        assert build.select([]) == ["00_start", "01_next"]
        assert build.select(["01"]) == ["01_next"]
        assert build.select(["notebooks/source/01_next.py", "00_start"]) == ["01_next", "00_start"]
        with pytest.raises(build.BuildError, match="'02'.*00_start, 01_next"):
            build.select(["02"])


# --- what the check finds -----------------------------------------------------------------------------------


def plant(kind: str, **content):
    return lambda nb: nb.cells[2].outputs.append(nbformat.v4.new_output(kind, **content))


FAULTS = {
    "cell 1 differs from the text in source": lambda nb: nb.cells[0].update(source="# Another title"),
    "cell 2 differs from the text in source": lambda nb: nb.cells[1].update(source=nb.cells[1].source + " "),
    "cell 3 differs from the text in source": lambda nb: nb.cells[2].update(source="print('edited')"),
    "cell 4 differs from the text in id": lambda nb: nb.cells[3].update(id="another-id"),
    "cell 4 differs from the text in metadata": lambda nb: nb.cells[3].metadata.update(tags=["odd"]),
    "print takes": plant("stream", name="stdout", text="a line\n" * 20),
    "pictures takes": lambda nb: [cell.outputs.clear() for cell in nb.cells[3:6]],
    "it has 9 cells, the text has 10": lambda nb: nb.cells.pop(),
    "keeps widget state": lambda nb: nb.metadata.update(widgets={"state": {}}),
    "kernelspec": lambda nb: nb.metadata.kernelspec.update(name="my-venv"),
    "not all executed": lambda nb: nb.cells[2].update(execution_count=None),
    "has no outputs": lambda nb: [cell.update(outputs=[]) for cell in nb.cells if cell.cell_type == "code"],
    "in an error: ValueError: planted": plant("error", ename="ValueError", evalue="planted", traceback=[]),
    "keeps a widget view": plant(
        "display_data", data={build.WIDGET_VIEW: {"model_id": "x"}, "text/plain": "x"}
    ),
    "more than 1000 kB": plant("stream", name="stdout", text="x" * 1_100_000),
}


@pytest.mark.parametrize("reason", FAULTS)
def test_the_check_finds_a_planted_fault(tree, reason):
    notebook = read(tree)
    FAULTS[reason](notebook)
    nbformat.write(notebook, tree / "notebooks" / "00_sample.ipynb")
    status, printed = quick(tree, "--check")
    assert status == 1 and reason in printed
    assert "build.py 00_sample" in printed, "it must say what to do"


EDITS = {
    "notebooks/source/00_sample.py": (
        "# # A sample",
        "# # A better sample",
        [" 1 differs from the text in source and id"],
    ),
    "pyproject.toml": (
        build.repository(),
        "https://github.com/somebody/course",
        [f" {i} differs from the text in source: " for i in (1, 2)],
    ),
}


@pytest.mark.parametrize("file", EDITS)
def test_the_check_finds_an_edited_text_and_a_new_address(tree, file):
    old, new, reasons = EDITS[file]
    (tree / file).write_text((tree / file).read_text(encoding="utf-8").replace(old, new), encoding="utf-8")
    status, printed = quick(tree, "--check")
    assert status == 1 and all(reason in printed for reason in reasons)


def test_the_check_finds_missing_stray_and_broken_notebooks(tree):
    path = tree / "notebooks" / "00_sample.ipynb"
    (tree / "notebooks" / "07_stray.ipynb").write_bytes(path.read_bytes())
    status, printed = quick(tree, "--check")
    assert status == 1
    assert "07_stray: has no text" in printed
    assert quick(tree, "--check", "00")[0] == 0
    path.write_text("{not json", encoding="utf-8")
    assert "no valid notebook" in quick(tree, "--check")[1]
    path.unlink()
    assert "has not been built yet" in quick(tree, "--check")[1]


class DeafChannel:
    """Has a message, but wakes nobody: whoever waits hears of it when asking again."""

    def __init__(self) -> None:
        self.asked: list[float] = []

    async def get_msg(self, timeout: float) -> str:
        self.asked.append(timeout)
        if len(self.asked) == 1:
            raise Empty
        return "reply"


def test_a_reply_that_woke_nobody_is_found_when_looking_again():
    channel = DeafChannel()
    look_again(channel)
    assert asyncio.run(channel.get_msg(timeout=600)) == "reply"
    assert channel.asked[0] == 5.0  # not the whole ten minutes
    deaf = DeafChannel()
    look_again(deaf)
    with pytest.raises(Empty):
        asyncio.run(deaf.get_msg(timeout=0))
