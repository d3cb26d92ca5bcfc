"""Run the fast tests on the oldest and the newest admitted versions, under every Python that can be had.

    python tests/version_matrix.py [3.11 3.12 3.13] [oldest newest]

Makes an environment for each pair in ``.venv-matrix/`` (several GB where pip takes a CUDA build of torch; kept for the
next time), runs ``pytest -m "not slow and not browser"`` in it and prints a table. Interpreters are looked for on PATH,
as ``python3.12``, and among those of pyenv; one that is not there is listed as missing.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# The oracle asks for a newer torch than the oldest one here; its tests are skipped there.
OLDEST = "-r tests/constraints-oldest.txt safetensors pytest hypothesis nbclient nbformat jupytext packaging pillow"
WANTED = {"oldest": f"{OLDEST} ipykernel", "newest": "-r requirements.txt -r tests/requirements.txt"}
SHOWN = ("torch", "numpy", "pandas", "matplotlib", "scikit-learn", "ipywidgets")
LIST = f"import importlib.metadata as m, json; print(json.dumps([m.version(name) for name in {SHOWN}]))"


def environment(version: str, versions: str) -> Path | None:
    """The Python of an environment that holds what is wanted; None when that cannot be had."""
    pyenv = sorted((Path.home() / ".pyenv" / "versions").glob(f"{version}.*/bin/python"))
    base = next(filter(None, (shutil.which(f"python{version}"), *pyenv)), None)
    if base is None:
        return None
    python = ROOT / ".venv-matrix" / f"{version}-{versions}" / "bin" / "python"
    if not python.exists():
        subprocess.run([base, "-m", "venv", str(python.parents[1])], check=True)
    install = [str(python), "-m", "pip", "install", "-q", *WANTED[versions].split()]
    return python if subprocess.run(install, cwd=ROOT, check=False).returncode == 0 else None


def run(python: Path, versions: str) -> tuple[list[str], str]:
    """What is installed, and pytest's closing line."""
    listed = subprocess.run([str(python), "-c", LIST], capture_output=True, text=True, check=True)
    tests = [str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow and not browser"]
    tests.append("--ignore=tests/browser")
    if versions == "oldest":  # the build is an author's tool that wants the newest
        tests.append("--ignore=tests/test_notebooks.py")
    env = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}
    done = subprocess.run(tests, cwd=ROOT, capture_output=True, text=True, env=env, check=False)
    if done.returncode:
        print(done.stdout[-6000:], done.stderr[-2000:], file=sys.stderr)
    return json.loads(listed.stdout), (done.stdout.strip() or "no output").splitlines()[-1].strip("= ")


def main() -> int:
    asked, failed = sys.argv[1:], False
    print(f"| Python | versions | {' | '.join(SHOWN)} | tests |")
    print("|---" * (len(SHOWN) + 3) + "|")
    for version in [word for word in asked if word not in WANTED] or ("3.11", "3.12", "3.13"):
        for versions in [word for word in asked if word in WANTED] or WANTED:
            if (version, versions) == ("3.13", "oldest"):
                continue  # several of the oldest versions have no build for 3.13
            python = environment(version, versions)
            installed, closing = (
                run(python, versions) if python else ([""] * len(SHOWN), "could not be set up")
            )
            failed |= "failed" in closing or "error" in closing
            print(f"| {version} | {versions} | {' | '.join(installed)} | {closing} |", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
