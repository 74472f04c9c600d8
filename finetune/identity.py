"""Which files are the same: by content, so that a copy under another name is no other video.

    identities = Identities()
    identities.of(medium)         equal for equal media
    identities.files(medium)      a key and the path for each of its files
    file_digest(path)             of a file with rows

A medium that cannot be read is known by its path. Content is what `probe.fingerprint` takes for it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from finetune.rows import Media
from vidqa.errors import UsageError, VideoError


class Identities:
    """Reads each file once, 1 MiB at most."""

    def __init__(self) -> None:
        self._keys: dict[str, str] = {}

    def key(self, path: str) -> str:
        found = self._keys.get(path)
        if found is None:
            found = self._keys[path] = self._read(path)
        return found

    @staticmethod
    def _read(path: str) -> str:
        from vidqa.probe import fingerprint

        if os.path.isfile(path):
            try:
                return fingerprint(path)
            except VideoError:
                pass
        return f"path:{os.path.abspath(path)}"

    def of(self, medium: Media) -> str:
        return ",".join(self.key(path) for path in medium.paths)

    def files(self, medium: Media) -> Sequence[tuple[str, str]]:
        return [(self.key(path), path) for path in medium.paths]


def file_digest(path: Path) -> str:
    """SHA-256 of a file, in hex. Raises UsageError when it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}; a file with rows is wanted") from error
