"""The size of a picture in pixels, as it is displayed: of an image file, or a video's frames."""

from __future__ import annotations

import functools
import os

from finetune.rows import Media
from vidqa.containers import shown
from vidqa.errors import VideoError
from vidqa.types import Video

# EXIF orientations that turn a picture on its side.
_ON_ITS_SIDE = (5, 6, 7, 8)
_ORIENTATION = 0x0112
_KEPT = 100_000


def size_of(medium: Media) -> tuple[int, int] | None:
    """(width, height); None when the file cannot tell. `check` says why."""
    try:
        if medium.kind == "image" and medium.at_seconds is None:
            return image_size(medium.paths[0])
        video = probed(medium.paths[0])
    except (VideoError, OSError):
        return None
    return video.width, video.height


def image_size(path: str) -> tuple[int, int]:
    """(width, height) in pixels. Raises VideoError, one line, for what is no picture."""
    return _image_size(path, _state(path))


def probed(path: str) -> Video:
    """`probe`, done once for a file that many rows are about. Raises VideoError, one line."""
    return _probed(path, _state(path))


def _state(path: str) -> int:
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return 0


@functools.lru_cache(_KEPT)
def _image_size(path: str, state: int) -> tuple[int, int]:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            width, height = image.size
            turned = image.getexif().get(_ORIENTATION) in _ON_ITS_SIDE
    except FileNotFoundError as error:
        raise VideoError(f"{shown(path)}: there is no such file") from error
    except (UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError) as error:
        raise VideoError(f"{shown(path)}: is not a picture, or is damaged") from error
    return (height, width) if turned else (width, height)


@functools.lru_cache(_KEPT)
def _probed(path: str, state: int) -> Video:
    from vidqa.probe import probe

    return probe(path)
