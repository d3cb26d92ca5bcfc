"""Requirements get along with Colab, the address stands in one place, and README's commands are the real ones."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

import mtl_helpers

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
# What Colab's published package list says beside the packages of tests/constraints-colab.txt.
COLAB_PYTHON, COLAB_TORCH = "3.13", "torch==2.11.0"


def requirements(path: str) -> dict[str, SpecifierSet]:
    lines = [
        line.partition("#")[0].strip() for line in (ROOT / path).read_text(encoding="utf-8").splitlines()
    ]
    parsed = [Requirement(line) for line in lines if line]
    assert all(requirement.url is None for requirement in parsed)
    return {canonicalize_name(requirement.name): requirement.specifier for requirement in parsed}


def project_requirements() -> dict[str, SpecifierSet]:
    parsed = [Requirement(line) for line in PROJECT["dependencies"]]
    return {canonicalize_name(requirement.name): requirement.specifier for requirement in parsed}


def colab_versions() -> dict[str, str]:
    pins = requirements("tests/constraints-colab.txt")
    torch = Requirement(COLAB_TORCH)
    return {name: str(pin).removeprefix("==") for name, pin in {**pins, torch.name: torch.specifier}.items()}


def project_files() -> list[Path]:
    """Every file that git tracks or would track; all files where there is no git."""
    listing = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        capture_output=True,
        check=False,
    )
    if listing.returncode:
        paths = [path for path in ROOT.rglob("*") if not any(part.startswith(".venv") for part in path.parts)]
    else:
        paths = [ROOT / name for name in listing.stdout.decode().split("\0") if name]
    return [path for path in paths if path.is_file()]


def test_the_oldest_constraints_are_the_lower_bounds():
    oldest = requirements("tests/constraints-oldest.txt")
    ranges = project_requirements()
    assert set(oldest) == set(ranges)
    for name, pin in oldest.items():
        version = str(pin).removeprefix("==")
        lower = next(str(part.version) for part in ranges[name] if part.operator == ">=")
        assert version in ranges[name] and version.startswith(lower), (name, version, lower)


def test_the_ranges_admit_what_colab_preinstalls():
    colab = colab_versions()
    for source in (
        requirements("requirements.txt"),
        project_requirements(),
        requirements("tests/requirements.txt"),
    ):
        for name in set(source) & set(colab):
            assert colab[name] in source[name], f"{name} {colab[name]} would be reinstalled on Colab"
    assert COLAB_PYTHON in SpecifierSet(PROJECT["requires-python"])


def test_readers_and_the_package_get_the_same_ranges():
    for_readers = requirements("requirements.txt")
    jupyterlab = for_readers.pop("jupyterlab")
    assert "3.6" not in jupyterlab
    assert for_readers == project_requirements()


@pytest.mark.parametrize("name", ["ipython", "ipykernel", "notebook"])
def test_the_kernel_is_never_pinned(name):
    for source in (
        requirements("requirements.txt"),
        project_requirements(),
        requirements("tests/requirements.txt"),
    ):
        assert str(source.get(name, "")) == ""


def test_test_needs_stand_apart():
    assert not {"pytest", "ruff", "playwright", "nbclient"} & set(requirements("requirements.txt"))


def test_the_address_stands_in_exactly_one_place():
    address = PROJECT["urls"]["Repository"].encode()
    holders = [path for path in project_files() if path.suffix != ".ipynb" and address in path.read_bytes()]
    assert holders == [ROOT / "pyproject.toml"]
    assert (ROOT / "pyproject.toml").read_bytes().count(address) == 1


def test_the_version_is_said_once_more_only_in_the_package():
    assert PROJECT["version"] == mtl_helpers.__version__


def test_what_is_installed_holds_every_file_of_the_package(tmp_path):
    pytest.importorskip("setuptools", minversion="77")
    steps = ["egg_info", "--egg-base", str(tmp_path), "build_py", "--build-lib", str(tmp_path / "lib")]
    make = [sys.executable, "-c", "import setuptools; setuptools.setup()", *steps]
    subprocess.run(make, cwd=ROOT, capture_output=True, check=True)
    built = {path.relative_to(tmp_path / "lib") for path in (tmp_path / "lib").rglob("*") if path.is_file()}
    files = {path.relative_to(ROOT) for path in project_files() if "mtl_helpers" in path.parent.parts}
    assert built == {path for path in files if path.suffix != ".pyc"}
    assert any(path.suffix == ".svg" for path in built)


def test_importing_the_package_brings_nothing_heavy():
    code = "import sys, mtl_helpers; print(sorted({'torch', 'numpy', 'pandas', 'matplotlib'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_modules_without_figures_import_only_torch_and_pandas():
    names = "data, gradients, losses, metrics, models, ranking, sweep, training"
    heavy = {"matplotlib", "seaborn", "sklearn", "scipy", "IPython", "ipywidgets", "safetensors"}
    code = f"import torch, pandas, sys; before = set(sys.modules); from mtl_helpers import {names}; "
    code += f"print(sorted({heavy} & (set(sys.modules) - before)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "command",
    [
        "python -m pip install -r requirements.txt && jupyter lab notebooks/00_start_here.ipynb",
        "python -m pip install -r requirements.txt -r tests/requirements.txt && python -m pytest -n 2",
    ],
)
def test_the_readme_says_both_commands(command):
    assert command in (ROOT / "README.md").read_text(encoding="utf-8")


def test_every_variable_that_the_code_reads_is_in_the_readme():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    read = set()
    for path in [*(ROOT / "mtl_helpers").rglob("*.py"), *(ROOT / "notebooks" / "source").glob("*.py")]:
        text = path.read_text(encoding="utf-8")
        read |= set(re.findall(r"""environ(?:\.get\(|\[)["']((?:MTL_\w+|FAST))""", text))
    assert {"FAST", "MTL_DEVICE", "MTL_REPO_URL"} <= read
    assert [name for name in sorted(read) if f"`{name}`" not in readme] == []
