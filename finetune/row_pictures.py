"""The pictures of a row for a person to look at: kept ones of the library, else decoded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from finetune.rows import Media, Row
from vidqa.errors import VideoError, VidqaError
from vidqa.types import Picture

if TYPE_CHECKING:
    from vidqa.library import Library

PICTURES = 8
MAX_IMAGE_PIXELS = 64_000_000


def row_pictures(row: Row, library: Library | None) -> list[Picture]:
    """At most `PICTURES` of each of its media, in order.

    Raises VidqaError where a file is gone, or is none that is ever decoded here.
    """
    return [picture for media in row.media for picture in _pictures(media, row, library)]


def _pictures(media: Media, row: Row, library: Library | None) -> list[Picture]:
    if media.kind == "image" and media.at_seconds is None:
        return [Picture(0.0, _image(media.paths[0]))]
    if len(media.paths) > 1:
        step = max(1, len(media.paths) // PICTURES)
        fps = media.fps or 1.0
        return [
            Picture(n / fps, _image(media.paths[n]))
            for n in range(0, len(media.paths), step)[:PICTURES]
        ]
    video = library.find_path(media.paths[0]) if library is not None else None
    if video is not None and library is not None:
        return library.pictures(video.video_id, _times(media, row, video.duration_seconds))
    from vidqa.frames import pictures_at

    path = media.paths[0]
    return pictures_at(path, _times(media, row, _duration(path, media)))


def _times(media: Media, row: Row, duration_seconds: float) -> list[float]:
    """Those that the teacher was shown; else the middles of equal parts."""
    if media.at_seconds is not None:
        return [media.at_seconds]
    seen = row.extra.get("frame_seconds")
    if isinstance(seen, list) and seen and len(row.media) == 1:
        return [float(one) for one in seen[:64]]
    start = media.start_seconds or 0.0
    end = duration_seconds if media.end_seconds is None else media.end_seconds
    return [start + (n + 0.5) * (end - start) / PICTURES for n in range(PICTURES)]


def _duration(path: str, media: Media) -> float:
    if media.end_seconds is not None or media.at_seconds is not None:
        return 0.0
    from vidqa.probe import probe

    return probe(path).duration_seconds


def _image(path: str) -> bytes:
    """Decoded and encoded again: a file that is no picture is not handed out."""
    from vidqa.stills import for_model, read_image

    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise VideoError(f"{path}: {error.strerror}") from error
    try:
        return for_model(read_image(data, max_pixels=MAX_IMAGE_PIXELS))
    except VidqaError as error:
        raise VideoError(f"{path}: {error}") from error
