"""Files that are whole or not there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

__all__ = ["write_atomically"]


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
