"""Fetch a public data set once, check it, and keep it in a cache folder outside the checkout.

Used by ``kuairand`` and ``census``, which notebook 07 teaches. A download goes to a ``.part`` file, continues where an
earlier one stopped if the server allows it, and gets its final name only once it is complete and its checksum is right.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import sys
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Source", "cache_folder", "is_url", "md5_of"]


def is_url(text: str | os.PathLike) -> bool:
    """True for an http or https address."""
    return bool(re.match(r"https?://", str(text), re.IGNORECASE))


def cache_folder(cache: str | os.PathLike | None = None) -> Path:
    """``cache`` if given, else ``MTL_CACHE``, else ``mtl_helpers`` in the platform's cache folder."""
    if cache or os.environ.get("MTL_CACHE"):
        return Path(cache or os.environ["MTL_CACHE"]).expanduser()
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "mtl_helpers"


def md5_of(path: Path) -> str:
    """The file's md5 as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


@dataclass(frozen=True)
class Source:
    """One file of a data set: where it is published, what it is called here, how to complain when it is not there.

    Attributes
    ----------
    title : what a reader calls it. url : the publisher's address. file : its name in the cache folder.
    md5 : checksum as hex, or None where none is known. variable : environment variable with a path or an address.
    call : how the reader loads it, e.g. ``load_kuairand``.
    missing, damaged : exceptions for "not here and not to be had" and for "not what it should be".
    """

    title: str
    url: str
    file: str
    md5: str | None
    variable: str
    call: str
    missing: type[FileNotFoundError]
    damaged: type[ValueError]

    def cached(self, url: str | None = None, cache: str | os.PathLike | None = None) -> Path:
        """Where a download from ``url`` is kept."""
        # a mirror gets a name of its own, so that what came from one address is never taken for the other's
        mark = (
            ""
            if url in (None, self.url)
            else "-" + hashlib.sha256(url.encode(), usedforsecurity=False).hexdigest()[:8]
        )
        stem, dot, ending = self.file.partition(".")
        return cache_folder(cache) / f"{stem}{mark}{dot}{ending}"

    def available(self, cache: str | os.PathLike | None = None) -> Path | None:
        """The file that would be read without touching the network, or None."""
        given = os.environ.get(self.variable)
        path = Path(given).expanduser() if given and not is_url(given) else self.cached(given or None, cache)
        return path if path.is_file() else None

    def locate(
        self,
        path_or_url: str | os.PathLike | None,
        cache: str | os.PathLike | None,
        progress: bool,
        checksum: str | None,
    ) -> tuple[Path, bool]:
        """Return the file's path, downloaded if need be, and whether its checksum has been dealt with."""
        source = path_or_url or os.environ.get(self.variable) or self.url
        if not is_url(source):
            path = Path(source).expanduser()
            if not path.is_file():
                said = "" if path_or_url else f" (from the environment variable {self.variable})"
                what = "is a folder, expected the file" if path.is_dir() else "does not exist"
                raise self.missing(f"{path}{said} {what}.\n{self.ways(cache)}")
            return path, False
        url, target = str(source), self.cached(str(source), cache)
        expected = self.md5 if checksum == "auto" else checksum
        if not target.is_file():
            self._download_alone(url, target, expected, progress)
        elif expected:
            self.verify(target, expected)
        return target, True

    def ways(self, cache: str | os.PathLike | None = None) -> str:
        """How to get the file, in words."""
        return (
            f"Three ways to get {self.title}:\n"
            f"  1. run {self.call}() again with a network connection;\n"
            f"  2. download {self.url} elsewhere and save it as {self.cached(None, cache)};\n"
            f"  3. name a copy you have: {self.call}('path/to/{self.file}'), or set {self.variable} to its path.\n"
            "Without it, everything that uses the shop works as before."
        )

    def verify(self, path: Path, expected: str) -> None:
        """Raise ``damaged`` unless the file has this checksum."""
        found = md5_of(path)
        if found != expected.lower():
            raise self.damaged(
                f"{path} has the md5 checksum {found}, expected {expected}: it is damaged or another file. Delete it "
                "and download it again, or pass checksum=None to read it as it is."
            )

    def _download_alone(self, url: str, target: Path, expected: str | None, progress: bool) -> None:
        """Download while no other process does; two notebooks that share a cache fetch a file once."""
        from filelock import FileLock

        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(target.with_name(target.name + ".lock"))
            lock.acquire()
        except OSError as error:
            raise self._unwritable(target.parent, error) from error
        try:
            if not target.is_file():
                self._download(url, target, expected, progress)
        finally:
            lock.release()

    def _unwritable(self, folder: Path, error: OSError) -> FileNotFoundError:
        return self.missing(
            f"Could not write the download to {folder}: {error}. Free some space, or choose another folder with "
            f"cache=… or MTL_CACHE.\n{self.ways(folder)}"
        )

    def _download(self, url: str, target: Path, expected: str | None, progress: bool) -> None:
        """Fetch ``url`` to ``target`` by way of a ``.part`` file, which alone survives an interruption."""
        part = target.with_name(target.name + ".part")
        folder = target.parent
        try:
            ignore = folder / ".gitignore"
            if not ignore.exists():
                ignore.write_text("*\n")
            resumed = _transfer_all(url, part, self.title, progress)
            if expected and (found := md5_of(part)) != expected.lower() and resumed:
                # the first half may be of another version of the file: take it once more from the start
                part.unlink()
                _transfer_all(url, part, self.title, progress)
            if expected and (found := md5_of(part)) != expected.lower():
                part.unlink()
                raise self.damaged(
                    f"What {url} sent has the md5 checksum {found}, expected {expected}; it was thrown away. Run "
                    "again; if it happens twice, the address serves another file: download it by hand and pass its "
                    "path."
                )
            os.replace(part, target)
        except (_Broken, urllib.error.URLError) as error:
            reason = getattr(error, "reason", None) or error
            kept = (
                f" {part.stat().st_size:,} bytes are kept, and the next try goes on from there."
                if part.exists()
                else ""
            )
            raise self.missing(
                f"Could not download {url}: {reason}.{kept}\n{self.ways(target.parent)}"
            ) from error
        except OSError as error:
            if isinstance(error, self.missing):
                raise
            raise self._unwritable(folder, error) from error


class _Broken(Exception):
    """A transfer that stopped early; the bytes so far are kept."""


def _transfer_all(url: str, part: Path, title: str, progress: bool, tries: int = 4) -> bool:
    """Transfer until complete, going on after a dropped connection. Returns whether old bytes were built upon."""
    resumed = False
    while True:
        before = part.stat().st_size if part.exists() else 0
        resumed = resumed or before > 0
        try:
            _transfer(url, part, title, progress)
            return resumed
        except _Broken:
            tries -= 1
            gained = (part.stat().st_size if part.exists() else 0) > before
            if not tries or not gained:
                raise


def _transfer(url: str, part: Path, title: str, progress: bool) -> None:
    """One request: continue the part if the server can, else start over."""
    from tqdm.auto import tqdm

    have = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": "mtl_helpers", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    try:
        reply = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=30)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and have:
            # nothing lies beyond what we have: complete, or longer than the file
            size = re.fullmatch(r"bytes \*/(\d+)", error.headers.get("Content-Range", ""))
            if size and int(size[1]) == have:
                return
            part.unlink()
            return _transfer(url, part, title, progress)
        raise
    except (OSError, http.client.HTTPException) as error:
        if isinstance(error, urllib.error.URLError):
            raise
        raise _Broken(f"the connection failed ({error})") from error
    with reply:
        if have:
            span = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", reply.headers.get("Content-Range", ""))
            if reply.status != 206 or not span or int(span[1]) != have:
                have = 0
                if reply.status == 206:  # a range, but not the one asked for
                    part.unlink()
                    return _transfer(url, part, title, progress)
        length = reply.headers.get("Content-Length")
        total = have + int(length) if length and length.isdigit() else None
        bar = tqdm(
            total=total,
            initial=have,
            unit="B",
            unit_scale=True,
            desc=title,
            disable=not progress,
            leave=False,
        )
        with bar, part.open("ab" if have else "wb") as file:
            while True:
                try:
                    block = reply.read(1 << 16)
                except (OSError, http.client.HTTPException) as error:
                    raise _Broken(f"the connection broke off ({error})") from error
                if not block:
                    break
                file.write(block)
                have += len(block)
                bar.update(len(block))
    if total is not None and have < total:
        raise _Broken(f"the connection broke off after {have:,} of {total:,} bytes")
