"""Files that are whole or not there."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch

__all__ = ["Checkpoint", "write_atomically"]


@contextmanager
def write_atomically(path: str | Path) -> Iterator[IO[bytes]]:
    """Open a file beside ``path`` for bytes; it takes that name when the block ends without an error.

    >>> with write_atomically("notes.txt") as file:                                          # doctest: +SKIP
    ...     file.write(b"whole or not there")
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.urandom(4).hex()}")
    try:
        with partial.open("wb") as file:
            yield file
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


class Checkpoint:
    """A training run's state in one file: of modules, optimisers, generators, dictionaries."""

    def __init__(self, path: str | Path, **parts: Any) -> None:
        self.path, self.parts = Path(path), parts

    def save(self, epoch: int) -> None:
        found = {
            name: _method(part, "state_dict", "get_state", "copy")() for name, part in self.parts.items()
        }
        with write_atomically(self.path) as file:
            torch.save(found | {"epoch": epoch}, file)

    def load(self) -> int:
        """Bring all parts back to the saved state; its epoch, 0 when there is no file."""
        if not self.path.exists():
            return 0
        found = torch.load(self.path, map_location="cpu", weights_only=True)
        for name, part in self.parts.items():
            _method(part, "load_state_dict", "set_state", "update")(found[name])
        return found["epoch"]


def _method(part: Any, *names: str) -> Callable:
    return next(getattr(part, name) for name in names if hasattr(part, name))
