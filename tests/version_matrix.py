"""Run the fast tests on the oldest and the newest admitted versions, under every Python that can be had.

    python tests/version_matrix.py [--python 3.11 3.12 3.13] [--versions oldest newest]

Makes an environment for each pair in ``.venv-matrix/`` (several GB where pip takes a CUDA build of torch; kept for the
next time), runs ``pytest -m "not slow and not browser"`` in it and prints a table. Interpreters are looked for on PATH,
as ``python3.12``, and among those of pyenv; one that is not there is listed as missing.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / ".venv-matrix"
NEWEST = ["-r", "requirements.txt", "-r", "tests/requirements.txt"]
# The oracle asks for a newer torch than the oldest one here; its tests are skipped there.
OLDEST = ["-r", "tests/constraints-oldest.txt"]
OLDEST += "safetensors pytest hypothesis nbclient nbformat jupytext packaging pillow ipykernel".split()
SHOWN = ("torch", "numpy", "pandas", "matplotlib", "scikit-learn", "ipywidgets")


def interpreter(version: str) -> str | None:
    """Path of a Python of that minor version, or None."""
    pyenv = sorted((Path.home() / ".pyenv" / "versions").glob(f"{version}.*/bin/python"))
    for found in [shutil.which(f"python{version}"), *map(str, pyenv)]:
        works = found and subprocess.run([found, "-c", "import venv"], capture_output=True, check=False)
        if works and works.returncode == 0:
            return found
    return None


def environment(version: str, versions: str) -> Path | None:
    """The Python of an environment that holds what is wanted; None when that cannot be had."""
    base = interpreter(version)
    if base is None:
        return None
    python = FOLDER / f"{version}-{versions}" / "bin" / "python"
    if not python.exists():
        subprocess.run([base, "-m", "venv", str(python.parents[1])], check=True)
    wanted = OLDEST if versions == "oldest" else NEWEST
    print(f"{version}, {versions}: installing", file=sys.stderr, flush=True)
    done = subprocess.run([str(python), "-m", "pip", "install", "-q", *wanted], cwd=ROOT, check=False)
    return python if done.returncode == 0 else None


def run(python: Path, versions: str) -> tuple[dict[str, str], str]:
    """What is installed, and pytest's closing line."""
    script = f"import importlib.metadata as m, json; print(json.dumps({{n: m.version(n) for n in {SHOWN}}}))"
    listed = subprocess.run([str(python), "-c", script], capture_output=True, text=True, check=True)
    tests = [str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow and not browser"]
    tests += ["--ignore=tests/browser", "tests"]
    if versions == "oldest":  # the build is an author's tool that wants the newest
        tests.append("--ignore=tests/test_notebooks.py")
    env = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}
    done = subprocess.run(tests, cwd=ROOT, capture_output=True, text=True, env=env, check=False)
    if done.returncode:
        print(done.stdout[-6000:], done.stderr[-2000:], file=sys.stderr)
    closing = done.stdout.strip().splitlines()[-1].strip("= ") if done.stdout.strip() else "no output"
    return json.loads(listed.stdout), re.sub(r" in [\d.]+s.*", "", closing)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", nargs="+", default=["3.11", "3.12", "3.13"])
    parser.add_argument("--versions", nargs="+", default=["oldest", "newest"], choices=("oldest", "newest"))
    options = parser.parse_args()
    print(f"| Python | versions | {' | '.join(SHOWN)} | tests |")
    print("|---" * (len(SHOWN) + 3) + "|")
    failed = False
    for version in options.python:
        for versions in options.versions:
            if versions == "oldest" and version == "3.13":
                continue  # several of the oldest versions have no build for 3.13
            python = environment(version, versions)
            if python is None:
                print(f"| {version} | {versions} |{' |' * len(SHOWN)} could not be set up |", flush=True)
                continue
            installed, closing = run(python, versions)
            failed |= "failed" in closing or "error" in closing
            cells = " | ".join(installed[name] for name in SHOWN)
            print(f"| {version} | {versions} | {cells} | {closing} |", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
