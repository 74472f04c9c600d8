"""The files of kept pictures: the JPEGs of one video end to end, offsets kept elsewhere.

    with PictureWriter(folder) as writer:
        offsets, sizes = writer.append(jpegs)
        writer.keep(name)                       # on disk under its name, not to be lost any more
    read(folder / name, spans)                  # the JPEGs again, or None when they are not there

A file under way is locked by its writer until the writer is done with it, also after its rename;
so `sweep` can tell what a killed process left behind from what another one is just committing.
Nothing here decodes a picture or knows which video it belongs to.
"""

from __future__ import annotations

import fcntl
import os
import secrets
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO

_UNDER_WAY = ".tmp"
_JPEG_START = b"\xff\xd8"


class PictureWriter:
    """Writes one file of pictures; gone without a trace unless `keep` was called.

    Once it is kept only `sweep` deletes it: whoever is interrupted here cannot know whether the
    store names it by now.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file: IO[bytes] | None = None
        self._path = folder  # until it is opened
        self._end = 0
        self._kept = False

    def __enter__(self) -> PictureWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def append(self, jpegs: Sequence[bytes]) -> tuple[list[int], list[int]]:
        """Writes pictures; returns where each begins and how long it is, in bytes."""
        offsets, sizes = [], [len(jpeg) for jpeg in jpegs]
        for jpeg in jpegs:
            self._opened().write(jpeg)
            offsets.append(self._end)
            self._end += len(jpeg)
        return offsets, sizes

    def _opened(self) -> IO[bytes]:
        while self._file is None:
            self._folder.mkdir(exist_ok=True)
            # A new name each time: whoever sweeps may be about to delete the one before.
            self._path = self._folder / f"{secrets.token_hex(8)}{_UNDER_WAY}"
            self._file = self._path.open("xb")
            fcntl.flock(self._file, fcntl.LOCK_EX)
            if not os.fstat(self._file.fileno()).st_nlink:  # swept between the two
                self._file.close()
                self._file = None
        return self._file

    def keep(self, name: str) -> None:
        """Puts the file under its name, safe from a power cut."""
        file = self._opened()
        file.flush()
        os.fsync(file.fileno())
        self._path = self._path.replace(self._folder / name)
        self._kept = True
        _sync_folder(self._folder)

    def close(self) -> None:
        if self._file is None:
            return
        if not self._kept:
            self._path.unlink(missing_ok=True)
        self._file.close()
        self._file = None


def read(path: Path, spans: Sequence[tuple[int, int]]) -> list[bytes] | None:
    """The JPEGs at (offset, size) in bytes; None when they are not all there."""
    try:
        with path.open("rb") as file:
            jpegs = [_read_span(file, offset, size) for offset, size in spans]
    except OSError:
        return None
    whole = all(
        len(jpeg) == size and jpeg.startswith(_JPEG_START)
        for jpeg, (_, size) in zip(jpegs, spans, strict=True)
    )
    return jpegs if whole else None


def _read_span(file: IO[bytes], offset: int, size: int) -> bytes:
    file.seek(offset)
    return file.read(size)


def sweep(folder: Path, kept_names: Callable[[], Collection[str]]) -> int:
    """Deletes what no row names and no process is writing; returns how many files that were.

    `kept_names` is asked after the locks are held: who let go of a lock has committed by then.
    """
    kept = kept_names()
    orphans = [path for path in _files(folder) if path.name not in kept]
    if not orphans:
        return 0
    with ExitStack() as locks:
        free = [path for path in orphans if _lock(path, locks)]
        kept = kept_names()
        unnamed = [path for path in free if path.name not in kept]
        for path in unnamed:
            path.unlink(missing_ok=True)
    return len(unnamed)


def _lock(path: Path, locks: ExitStack) -> bool:
    """Locks a file for as long as `locks` lives; False when another holds it, or it is gone."""
    try:
        file = locks.enter_context(path.open("rb"))
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def beyond_limit(folder: Path, names: Mapping[str, str], limit_bytes: int) -> list[str]:
    """The keys of `names` whose files are to go, from the first on, until the rest fits."""
    sizes = {path.name: path.stat().st_size for path in _files(folder)}
    excess = sum(sizes.get(name, 0) for name in names.values()) - limit_bytes
    gone: list[str] = []
    for key, name in names.items():
        if excess <= 0:
            break
        excess -= sizes.get(name, 0)
        gone.append(key)
    return gone


def _files(folder: Path) -> list[Path]:
    try:
        return [path for path in folder.iterdir() if path.suffix in (".jpegs", _UNDER_WAY)]
    except FileNotFoundError:
        return []


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
