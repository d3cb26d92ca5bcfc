"""The notebooks run with the versions that Colab preinstalls, where an interpreter with them is at hand.

``MTL_COLAB_PYTHON`` names that interpreter. .ci/run makes one from tests/constraints-colab.txt.
"""

from __future__ import annotations

import json
import os
import subprocess

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from solved import NOTEBOOKS, ROOT

COLAB_PYTHON = os.environ.get("MTL_COLAB_PYTHON", "")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not COLAB_PYTHON,
        reason="MTL_COLAB_PYTHON is not set to an interpreter with Colab's versions (see .ci/run)",
    ),
]


def run(*arguments: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "FAST": "1", "PYTHONIOENCODING": "utf-8"}
    return subprocess.run(
        [COLAB_PYTHON, *arguments],
        capture_output=True,
        text=True,
        encoding="utf-8",
        env=environment,
        check=False,
    )


def test_the_interpreter_has_colabs_versions():
    script = "import importlib.metadata as m, json; print(json.dumps({d.name: d.version for d in m.distributions()}))"
    listed = run("-c", script)
    assert listed.returncode == 0, listed.stderr
    installed = {canonicalize_name(name): version for name, version in json.loads(listed.stdout).items()}
    lines = (ROOT / "tests" / "constraints-colab.txt").read_text(encoding="utf-8").splitlines()
    for wanted in (Requirement(line) for line in lines if line and not line.startswith("#")):
        assert installed.get(canonicalize_name(wanted.name)) in wanted.specifier, (
            f"{COLAB_PYTHON}: expected {wanted}"
        )
    assert "jupyterlab" not in installed


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs_with_colabs_versions(path):
    done = run(str(ROOT / "notebooks" / "source" / "execute.py"), str(path))
    assert done.returncode == 0, done.stderr[-6000:]
