"""Pictures and frames on the disk: which files they are, and their sizes as they are displayed."""

from __future__ import annotations

import functools
import os
import re
from typing import Final

from finetune.rows import Media
from vidqa.containers import reading, shown
from vidqa.errors import UsageError, VideoError
from vidqa.stills import IMAGE_FORMATS, check_size
from vidqa.types import Video

# What `vidqa.stills` reads, the one decoder of pictures that are trained on.
PICTURE_SUFFIXES: Final = (".jpg", ".jpeg", ".png", ".webp", ".gif")
# One's own pictures: more than a server takes of strangers, still a bound for a bomb.
MAX_IMAGE_PIXELS: Final = 200_000_000

# EXIF orientations that turn a picture on its side.
_ON_ITS_SIDE = (5, 6, 7, 8)
_ORIENTATION = 0x0112
_KEPT = 100_000


def is_picture(path: str) -> bool:
    return path.lower().endswith(PICTURE_SUFFIXES)


def is_frames(medium: Media) -> bool:
    """Whether it is a video given as single frames, one perhaps. A GIF by itself may move."""
    if medium.kind != "video":
        return False
    path = medium.paths[0]
    return len(medium.paths) > 1 or (is_picture(path) and not path.lower().endswith(".gif"))


def frames_of(medium: Media) -> tuple[str, ...]:
    """The files of a video given as single frames or their folder, in order; none of another.

    Raises VideoError for a folder without pictures.
    """
    if medium.kind == "video" and len(medium.paths) == 1 and os.path.isdir(medium.paths[0]):
        return frame_files(medium.paths[0])
    return medium.paths if is_frames(medium) else ()


def frame_files(folder: str) -> tuple[str, ...]:
    """The pictures in a folder, by number where their names have one: frame_2 before frame_10.

    Raises VideoError when there are none.
    """
    with reading(folder):
        names = [name for name in os.listdir(folder) if is_picture(name)]
    visible = [name for name in names if not name.startswith(".")]
    if not visible:
        raise VideoError(f"{shown(folder)}: the folder holds no picture; frames are "
                         f"{', '.join(PICTURE_SUFFIXES)}")  # fmt: skip
    return tuple(os.path.join(folder, name) for name in sorted(visible, key=_by_number))


def _by_number(name: str) -> list[tuple[int, str]]:
    return [(int(piece), "") if piece.isdecimal() else (0, piece) for piece in _pieces(name)]


def _pieces(name: str) -> list[str]:
    return [piece for piece in re.split(r"([0-9]+)", name) if piece]


def check_frame(path: str, size: tuple[int, int], first: tuple[int, int]) -> None:
    """Raises VideoError for a frame of another size than the first of its video."""
    if size != first:
        raise VideoError(
            f"{shown(path)}: is {size[0]} x {size[1]} pixels, the first frame of its video "
            f"{first[0]} x {first[1]}; frames of one video must be of one size"
        )


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
    """(width, height) in pixels. Raises VideoError, one line, for what is no picture.

    Of any kind of picture: data about one that is not trained on here may be converted.
    """
    return _image_size(path, _state(path), None)


def check_image(path: str) -> tuple[int, int]:
    """(width, height) in pixels. Raises VideoError, one line, for what is not trained on."""
    width, height = _image_size(path, _state(path), IMAGE_FORMATS)
    try:
        check_size(width, height, MAX_IMAGE_PIXELS)
    except UsageError as error:
        raise VideoError(f"{shown(path)}: {error}") from error
    return width, height


def probed(path: str) -> Video:
    """`probe`, done once for a file that many rows are about. Raises VideoError, one line."""
    return _probed(path, _state(path))


def _state(path: str) -> int:
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return 0


@functools.lru_cache(_KEPT)
def _image_size(path: str, state: int, formats: tuple[str, ...] | None) -> tuple[int, int]:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path, formats=formats) as image:
            width, height = image.size
            turned = image.getexif().get(_ORIENTATION) in _ON_ITS_SIDE
    except FileNotFoundError as error:
        raise VideoError(f"{shown(path)}: there is no such file") from error
    except (UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError) as error:
        no_picture = "is no JPEG, PNG, WebP or GIF" if formats else "is not a picture"
        raise VideoError(f"{shown(path)}: {no_picture}, or is damaged") from error
    return (height, width) if turned else (width, height)


@functools.lru_cache(_KEPT)
def _probed(path: str, state: int) -> Video:
    from vidqa.probe import probe

    return probe(path)
