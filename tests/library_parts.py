"""Made-up videos for a library, small enough to check by eye; and a writer to be killed.

video("a")                     a Video whose content is the letter a
add(library, "a", frames=6)    2 frames a scene, vectors that differ by scene, JPEG stand-ins
python library_parts.py FOLDER PREFIX COUNT     adds videos and prints the name of each
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vidqa.library import Library
from vidqa.types import EmbedderSpec, FrameBatch, Scene, TextSpan, Video

DIMENSION = 8
SPEC = EmbedderSpec(
    model="made-up",
    weights="0" * 32,
    dimension=DIMENSION,
    image_height=4,
    image_width=4,
    resize_mode="squash",
)
RECIPE = "one frame a second"


def video(name: str, path: str | None = None) -> Video:
    return Video(
        path=path or f"/videos/{name}.mp4",
        fingerprint=hashlib.sha256(name.encode()).hexdigest(),
        size_bytes=1000,
        mtime_ns=1,
        duration_seconds=60.0,
        fps=25.0,
        width=64,
        height=48,
        rotation_degrees=0,
        codec="h264",
        container="mp4",
    )


def vectors(name: str, frames: int) -> NDArray[np.float32]:
    """Unit vectors; those of one video are reproducible, those of two videos differ."""
    seed = int(hashlib.sha256(name.encode()).hexdigest()[:8], 16)
    made = np.random.default_rng(seed).standard_normal((frames, DIMENSION)).astype(np.float32)
    return np.asarray(made / np.linalg.norm(made, axis=1, keepdims=True), np.float32)


def jpeg(name: str, number: int) -> bytes:
    """Not a picture, but begins like one; the length differs from frame to frame."""
    return b"\xff\xd8" + f"{name}-{number}".encode() * (number + 1)


def batch(name: str, frames: int, *, pictures: bool = True) -> FrameBatch:
    return FrameBatch(
        seconds=np.arange(frames, dtype=np.float64),
        scene_index=(np.arange(frames) // 2).astype(np.int32),
        images=np.zeros((frames, 4, 4, 3), np.uint8),
        jpegs=tuple(jpeg(name, number) for number in range(frames)) if pictures else (),
    )


def scenes(frames: int) -> list[Scene]:
    return [Scene(n, 2.0 * n, 2.0 * n + 2) for n in range((frames + 1) // 2)]


def add(
    library: Library,
    name: str,
    frames: int = 4,
    *,
    path: str | None = None,
    texts: tuple[TextSpan, ...] = (),
    recipe: str = RECIPE,
    pictures: bool = True,
) -> Video:
    made = video(name, path)
    library.add(
        made,
        scenes(frames),
        batch(name, frames, pictures=pictures),
        vectors(name, frames),
        texts,
        recipe,
    )
    return made


def start_writer(folder: Path, prefix: str, count: int) -> subprocess.Popen[str]:
    """Another process that adds videos of 6 frames: `prefix` and a number from 0."""
    return subprocess.Popen(
        [sys.executable, __file__, str(folder), prefix, str(count)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )


def main() -> None:
    folder, prefix, count = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    library = Library.open(folder, SPEC, create=True)
    for number in range(count):
        add(library, f"{prefix}{number}", frames=6, texts=(TextSpan(0, 5, prefix),))
        print(f"{prefix}{number}", flush=True)  # noqa: T201  the parent reads it


if __name__ == "__main__":
    main()
