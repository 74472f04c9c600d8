"""The pictures of a row for a person to look at: kept ones of the library, else decoded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from finetune.formats.pictures import frames_of
from finetune.layout import Look
from finetune.media import show
from finetune.rows import Media, Row
from vidqa.frames import pictures_at
from vidqa.probe import probe
from vidqa.types import Picture

if TYPE_CHECKING:
    from vidqa.library import Library

PICTURES = 8


def row_pictures(row: Row, library: Library | None) -> list[Picture]:
    """At most `PICTURES` of each of its media, in order.

    Raises VidqaError where a file is gone, or is none that is ever decoded here.
    """
    return [picture for media in row.media for picture in _pictures(media, row, library)]


def _pictures(media: Media, row: Row, library: Library | None) -> list[Picture]:
    path = media.paths[0]
    is_still = media.kind == "image" and media.at_seconds is None
    if is_still or frames_of(media):
        return list(show(media, Look(), PICTURES).pictures)
    video = library.find_path(path) if library is not None else None
    if video is not None and library is not None:
        return library.pictures(video.video_id, _times(media, row, video.duration_seconds))
    return pictures_at(path, _times(media, row, probe(path).duration_seconds))


def _times(media: Media, row: Row, duration_seconds: float) -> list[float]:
    """Those that the teacher was shown; else the middles of equal parts."""
    if media.at_seconds is not None:
        return [media.at_seconds]
    seen = row.extra.get("frame_seconds")
    if isinstance(seen, list) and len(row.media) == 1:
        # Whoever wrote the file may have written anything.
        times = [one for one in seen if isinstance(one, float | int)]
        if within := [float(one) for one in times if 0 <= one <= duration_seconds]:
            return within[:64]
    start = media.start_seconds or 0.0
    known = [one for one in (media.end_seconds, duration_seconds or None) if one is not None]
    end = min(known, default=start)
    return [start + (n + 0.5) * (end - start) / PICTURES for n in range(PICTURES)]
