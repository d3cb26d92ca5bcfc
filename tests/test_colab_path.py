"""The setup cell on a Colab that is faked as little as possible, and in JupyterLab wherever the kernel starts.

The helper package comes from a real ``git clone`` of this repository's last commit.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

import build
from execute import CellFailed, execute

ROOT = Path(__file__).resolve().parents[1]
PLACEHOLDER = "https://github.com/YOUR-ACCOUNT/course"

BEFORE = """
import importlib.metadata, os
from importlib.util import find_spec
def state():
    return os.getpid(), sorted(f"{d.name} {d.version}" for d in importlib.metadata.distributions())
before = state()
print("importable before setup:", find_spec("mtl_helpers") is not None)
"""
AFTER = """
import json, mtl_helpers
found = {"package": mtl_helpers.__file__, "device": str(device), "fast": FAST}
print(json.dumps(found | {"untouched": state() == before}))
"""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def repository_url() -> str:
    """This repository by file URL, provided that it is one with a commit."""
    head = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, check=False)
    if head.returncode:
        pytest.skip("this copy of the project is no git repository, so there is nothing to clone")
    return ROOT.as_uri()


@pytest.fixture
def content(tmp_path) -> Path:
    """An empty folder, the place of Colab's /content, beside a stand-in for Colab's own package."""
    package = tmp_path / "colab-packages" / "google" / "colab"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    folder = tmp_path / "content"
    folder.mkdir()
    return folder


def run_setup(folder: Path, *, colab: bool, address: str = PLACEHOLDER, **env: str) -> dict:
    """Run a notebook that holds the setup cell in `folder`; returns what its last cell found out.

    Nothing but the stand-in for Colab is on PYTHONPATH, so only the setup cell can make the package importable.
    """
    text = "# %% [markdown]\n# {{colab_badge}}\n\n# %%\n# {{setup}}\n"
    notebook = build.parse("00_probe", text, address)
    first, last = map(nbformat.v4.new_code_cell, (BEFORE, AFTER))
    notebook.cells = [first, notebook.cells[1], last]
    own = ("PYTHONPATH", "MTL_REPO_URL", "JPY_SESSION_NAME", "FAST")
    environment = {name: value for name, value in os.environ.items() if name not in own}
    environment |= {"OMP_NUM_THREADS": "1", "MTL_DEVICE": "cpu"}
    # The clone may belong to another user, for instance in a container.
    git = {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "safe.directory", "GIT_CONFIG_VALUE_0": "*"}
    path = {"PYTHONPATH": str(folder.parent / "colab-packages")} if colab else {}
    execute(notebook, folder, environment | git | path | env)
    printed = "".join(o.text for cell in notebook.cells for o in cell.outputs if o.output_type == "stream")
    if "importable before setup: True" in printed and not folder.is_relative_to(ROOT):
        pytest.skip("mtl_helpers is installed in this environment: uninstall it to test the setup cell")
    return json.loads(notebook.cells[-1].outputs[-1].text.strip().splitlines()[-1])


def test_the_setup_cell_is_short_and_installs_nothing():
    lines = build.SETUP.splitlines()
    assert len(lines) <= 16
    assert max(map(len, lines)) <= 120
    assert not [word for word in ("pip", "install", "kill", "restart", "exit") if word in build.SETUP]


def test_on_colab_the_package_is_fetched_and_nothing_installed(content, repository_url):
    found = run_setup(content, colab=True, MTL_REPO_URL=repository_url, FAST="1")
    clone = content / "mtl-for-recommenders"
    assert Path(found["package"]).resolve() == (clone / "mtl_helpers" / "__init__.py").resolve()
    assert found["untouched"], "nothing was installed or restarted"
    assert (found["device"], found["fast"]) == ("cpu", True)
    count = ["git", "-C", str(clone), "rev-list", "--count", "HEAD"]
    history = subprocess.run(count, capture_output=True, text=True, check=True).stdout
    assert history.strip() == "1", "one commit is enough"

    # A second notebook in the same runtime takes what is there: this address would lead nowhere.
    again = run_setup(content, colab=True, MTL_REPO_URL="file:///nowhere/to/be/found")
    assert again["package"] == found["package"]
    assert again["fast"] is False


def test_on_colab_the_stamped_address_is_used(content, repository_url):
    found = run_setup(content, colab=True, address=repository_url, MTL_REPO_URL="")
    assert "mtl-for-recommenders" in found["package"]


@pytest.mark.parametrize("address", ["placeholder", "unreachable"])
def test_on_colab_a_clone_that_fails_says_what_to_do(content, address):
    """Somebody may register the placeholder's account, so git must not be run on it at all."""
    url = PLACEHOLDER if address == "placeholder" else (content / "no-such-repository").as_uri()
    git, real = content.parent / "tools" / "git", shutil.which("git")
    git.parent.mkdir()
    git.write_text(f"#!/bin/sh\ntouch '{content}/git-was-run'\nexec {real} \"$@\"\n", encoding="utf-8")
    git.chmod(0o755)
    path = f"{git.parent}{os.pathsep}{os.environ['PATH']}"
    with pytest.raises(CellFailed) as caught:
        run_setup(content, colab=True, MTL_REPO_URL=url, PATH=path)
    assert caught.value.index == 1
    assert f"Could not fetch {url}. Set MTL_REPO_URL to your copy's address." in caught.value.error
    assert not (content / "mtl-for-recommenders").exists()
    assert (content / "git-was-run").exists() == (address == "unreachable")


def test_in_jupyterlab_the_checkout_is_found_from_the_folders_inside():
    found = run_setup(ROOT / "notebooks" / "source", colab=False)
    assert Path(found["package"]) == ROOT / "mtl_helpers" / "__init__.py"


def test_in_jupyterlab_the_checkout_is_found_by_the_notebooks_own_place(content):
    session = str(ROOT / "notebooks" / "00_start_here.ipynb")
    found = run_setup(content, colab=False, JPY_SESSION_NAME=session)
    assert Path(found["package"]) == ROOT / "mtl_helpers" / "__init__.py"


def test_away_from_colab_nothing_is_fetched(content, repository_url):
    with pytest.raises(CellFailed, match="No module named 'mtl_helpers'"):
        run_setup(content, colab=False, MTL_REPO_URL=repository_url)
    assert list(content.iterdir()) == []


def test_an_installed_package_is_used_where_there_is_no_checkout(content):
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import mtl_helpers.notebook as n; print(n.start()[1])"
    env = {**os.environ, "MTL_DEVICE": "cpu", "FAST": "1", "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, cwd=content, env=env, check=True)
    first, *_, last = done.stdout.decode().splitlines()
    assert first.startswith("Python 3.") and "FAST=1" in first and last == "True"
