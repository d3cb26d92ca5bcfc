"""Run a notebook from top to bottom: for the build, and for tests under any interpreter.

    python notebooks/source/execute.py NOTEBOOK [--cwd FOLDER]

It needs nbclient and ipykernel alone, so that an environment with Colab's versions can run it too. The kernel is always
the interpreter that runs this file.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
from pathlib import Path
from queue import Empty
from time import monotonic
from typing import Any

import nbformat
import zmq
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbclient.util import ensure_async

__all__ = ["CellFailed", "execute"]

TIMEOUT = 600  # seconds for one cell
ANSI = re.compile(r"\x1b\[[0-9;]*m")


class CellFailed(Exception):
    """A cell raised. ``index`` is its place in the notebook, from 0, ``error`` what the kernel said."""

    def __init__(self, index: int, source: str, error: str):
        super().__init__(f"cell {index + 1} failed:\n{source}\n\n{error}")
        self.index, self.source, self.error = index, source, error


def look_again(channel: Any, seconds: float = 5.0) -> None:
    """Make a channel's ``get_msg`` look anew every few seconds.

    nbclient sends on the channel on which it waits when a cell shows an Output widget, and a reply that comes in that
    moment does not wake it (its issue 312): without this the cell would seem to run until its time is up.
    """
    ask = channel.get_msg

    async def get_msg(timeout: float | None = None) -> Any:
        end = None if timeout is None else monotonic() + timeout
        while True:
            left = seconds if end is None else max(0.0, min(seconds, end - monotonic()))
            try:
                return await ensure_async(ask(timeout=left))
            except Empty:
                if end is not None and monotonic() >= end:
                    raise

    channel.get_msg = get_msg


def execute(
    notebook: nbformat.NotebookNode, cwd: Path, env: dict[str, str] | None = None, timeout: int = TIMEOUT
) -> nbformat.NotebookNode:
    """Execute `notebook` in place and return it.

    Parameters
    ----------
    notebook : nbformat.NotebookNode
        Cells tagged ``raises-exception`` may raise; any other that does ends the run.
    cwd : Path
        The folder in which the kernel starts.
    env : dict, optional
        The kernel's environment; by default that of this process. ``MPLBACKEND`` is left out of it, since it would keep
        figures from being shown.
    timeout : int
        Seconds that one cell may take.

    Raises
    ------
    CellFailed
        With the cell's place, its source and the traceback.
    """
    if env is None:
        env = dict(os.environ)
    env = {name: value for name, value in env.items() if name != "MPLBACKEND"}
    # Nobody's passed exercises show in a built notebook, and no run changes them.
    nowhere = tempfile.TemporaryDirectory()
    env["MTL_PROGRESS"] = str(Path(nowhere.name) / "progress.json")
    # With no kernel folders, "python3" can only be this interpreter's own ipykernel.
    manager = AsyncKernelManager(kernel_name="python3", kernel_spec_manager=KernelSpecManager(kernel_dirs=[]))
    if manager.has_trait("transport_encryption") and zmq.has("curve"):
        manager.transport_encryption = "auto"  # else newer kernels warn on every start
    running = {"index": -1}
    client = NotebookClient(
        notebook,
        km=manager,
        timeout=timeout,
        record_timing=False,
        resources={"metadata": {"path": str(cwd)}},
        on_notebook_start=lambda notebook: look_again(client.kc.shell_channel),
        on_cell_start=lambda cell, cell_index: running.update(index=cell_index),
    )
    try:
        client.execute(env=env, cleanup_kc=True)
    except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
        cell = notebook.cells[running["index"]]
        shown = [output for output in cell.get("outputs", []) if output.output_type == "error"]
        reason = "\n".join(shown[-1].traceback) if shown else f"{type(error).__name__}: {error}"
        raise CellFailed(running["index"], cell.source, ANSI.sub("", reason)) from None
    finally:
        nowhere.cleanup()
    return notebook


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("notebook", type=Path)
    parser.add_argument("--cwd", type=Path, help="where the kernel starts; by default the notebook's folder")
    options = parser.parse_args(arguments)
    # Older kernels' debugger warns on start, here and in the kernel, unless told not to.
    os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")
    notebook = nbformat.read(options.notebook, as_version=4)
    try:
        execute(notebook, options.cwd or options.notebook.resolve().parent)
    except CellFailed as failure:
        print(f"{options.notebook}: {failure}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
