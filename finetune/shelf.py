"""A folder of pictures that were made before: what is used longest ago goes when it is full.

    shelf = Shelf(folder, max_bytes=10 * 2**30)
    shelf.put(key, {"width": 640}, jpegs)
    shelf.get(key)                              ({"width": 640}, jpegs), or None

Each key is one file, put under its name when it is whole, so any number of processes may read and
write at once and be killed at any time. It is a cache: a damaged file counts as none, and a disk
that is full or may not be written to costs time only. Knows nothing of videos.
"""

from __future__ import annotations

import json
import os
import secrets
import struct
import time
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

DEFAULT_FOLDER = Path("~/.cache/vidqa/frames")
DEFAULT_GIB = 20.0
DEFAULT_MAX_BYTES = int(DEFAULT_GIB * 2**30)

_SUFFIX = ".pictures"
_UNDER_WAY = ".tmp"
_MAGIC = b"vidqa pictures 1"
_HEAD = struct.Struct("<II")  # length of the JSON, checksum of all that follows it
# A file under way for longer than this was left by a process that was killed.
_STALE_SECONDS = 3600.0
# The folder is looked through once this part of the limit has been written, and then made smaller
# than the limit by five times that.
_SLACK = 0.02


class Shelf:
    """Pictures by key in `folder`, of at most about `max_bytes`; made when first written to."""

    def __init__(self, folder: Path, max_bytes: int = DEFAULT_MAX_BYTES) -> None:
        self.folder = folder
        self.max_bytes = max_bytes
        self._written: int | None = None  # since the folder was last looked through

    def get(self, key: str) -> tuple[dict[str, Any], list[bytes]] | None:
        """The facts and pictures of a key, which is thereby the latest used; None without any."""
        path = self._path(key)
        try:
            data = path.read_bytes()
            os.utime(path)
        except OSError:
            return None
        try:
            return _unpacked(data)
        except (ValueError, KeyError, struct.error):
            return None

    def put(self, key: str, facts: Mapping[str, Any], pictures: Sequence[bytes] = ()) -> None:
        """Keeps pictures, in place of those that the key had."""
        data = _packed(facts, pictures)
        path = self._path(key)
        under_way = path.with_name(f"{secrets.token_hex(8)}{_UNDER_WAY}")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            under_way.write_bytes(data)
            under_way.replace(path)
        except OSError:
            with suppress(OSError):
                under_way.unlink(missing_ok=True)
            return
        self._note(len(data))

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}{_SUFFIX}"

    def _note(self, size: int) -> None:
        if self._written is not None:
            self._written += size
        if self._written is None or self._written > _SLACK * self.max_bytes:
            with suppress(OSError):
                self._trim()
            self._written = 0

    def _trim(self) -> None:
        """Deletes the longest unused where there is too much.

        Each writer makes room for what it wrote itself: a lock would let the others write on while
        its holder is held up. Those that do so at once delete the same files, but for one that was
        put anew meanwhile, and no more than `_SLACK` and a file of each are ever there too many.
        """
        total, files = self._files()
        if total <= self.max_bytes:
            return
        for _, size, path in sorted(files):
            path.unlink(missing_ok=True)
            total -= size
            if total <= (1 - 5 * _SLACK) * self.max_bytes:
                return

    def _files(self) -> tuple[int, list[tuple[int, int, Path]]]:
        """Bytes in all, and of each whole file the time of its last use, size and path."""
        total, files = 0, []
        with os.scandir(self.folder) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):
                    status = entry.stat()
                    if entry.name.endswith(_SUFFIX):
                        files.append((status.st_mtime_ns, status.st_size, Path(entry.path)))
                    elif entry.name.endswith(_UNDER_WAY) and _is_stale(status):
                        os.unlink(entry.path)
                        continue
                    total += status.st_size
        return total, files


def shelf_of(folder: Path, gib: float) -> Shelf | None:
    """The shelf in a folder, as users give its size in GiB; none for 0."""
    return Shelf(folder.expanduser(), int(gib * 2**30)) if gib else None


def _is_stale(status: os.stat_result) -> bool:
    return time.time() - status.st_mtime > _STALE_SECONDS


def _packed(facts: Mapping[str, Any], pictures: Sequence[bytes]) -> bytes:
    head = json.dumps({"facts": dict(facts), "sizes": [len(one) for one in pictures]}).encode()
    body = head + b"".join(pictures)
    return _MAGIC + _HEAD.pack(len(head), zlib.crc32(body)) + body


def _unpacked(data: bytes) -> tuple[dict[str, Any], list[bytes]]:
    start = len(_MAGIC) + _HEAD.size
    length, checksum = _HEAD.unpack(data[len(_MAGIC) : start])
    body = data[start:]
    if not data.startswith(_MAGIC) or zlib.crc32(body) != checksum:
        raise ValueError("the file is damaged, or not one of ours")
    head = json.loads(body[:length])
    pictures, at = [], length
    for size in head["sizes"]:
        pictures.append(body[at : at + size])
        at += size
    return head["facts"], pictures
