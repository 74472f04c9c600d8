"""Which files are meant: folders are searched, named files are taken as they are.

Looks at names, and at the first bytes of `.ts` files, which may be source code. Opens nothing else.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from vidqa.containers import shown
from vidqa.types import FileReport

# What counts as a video in a folder.
# fmt: off
VIDEO_SUFFIXES = frozenset({
    ".3g2", ".3gp", ".asf", ".avi", ".divx", ".dv", ".f4v", ".flv", ".m2ts", ".m2v", ".m4v",
    ".mkv", ".mov", ".mp4", ".mpe", ".mpeg", ".mpg", ".mts", ".mxf", ".ogm", ".ogv", ".qt", ".rm",
    ".rmvb", ".ts", ".vob", ".webm", ".wmv", ".y4m",
})
# fmt: on
_TRANSPORT_SUFFIXES = (".ts", ".mts", ".m2ts")
_TRANSPORT_SYNC = 0x47


def find_videos(paths: Sequence[str | Path]) -> tuple[list[str], list[FileReport]]:
    """The video files meant by `paths`, absolute, each once; and what cannot be looked into.

    Folders are searched with all below them, links followed once; hidden files and what has no
    video's suffix are passed over. A named file is taken as it is.
    """
    found: dict[str, str] = {}
    failures: list[FileReport] = []
    for path in map(os.path.abspath, paths):
        if not os.path.isdir(path):
            found.setdefault(os.path.realpath(path), path)
            continue
        for name in _walk(path, failures):
            found.setdefault(os.path.realpath(name), name)
    return list(found.values()), failures


def _walk(folder: str, failures: list[FileReport]) -> Iterator[str]:
    def unreadable(error: OSError) -> None:
        reason = f"{shown(error.filename)}: cannot look into the folder: {error.strerror}"
        failures.append(FileReport(error.filename, "failed", error=reason))

    seen: set[str] = set()
    for parent, folders, files in os.walk(folder, onerror=unreadable, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            path = os.path.join(parent, name)
            if not name.startswith(".") and _is_video_name(path):
                yield path


def _is_video_name(path: str) -> bool:
    suffix = os.path.splitext(path)[1].lower()
    return suffix in VIDEO_SUFFIXES and not (
        suffix in _TRANSPORT_SUFFIXES and _is_source_code(path)
    )


def _is_source_code(path: str) -> bool:
    """A transport stream begins with a sync byte, before or after a 4-byte time; TypeScript not."""
    try:
        with open(path, "rb") as file:
            head = file.read(5)
    except OSError:
        return False
    return len(head) == 5 and _TRANSPORT_SYNC not in (head[0], head[4])
