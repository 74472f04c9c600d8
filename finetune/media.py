"""Media of rows -> the pictures that the model is shown of them.

    shelf = Shelf(folder)
    show_row(row, look, shelf)          a Shown for each of row.media

A video, a part of one, a list or folder of single frames, a picture, a single frame of a video. The
pictures are what `vidqa ask` would show: sampled as an ingest samples, chosen evenly, scaled by the
same functions. What was made once lies on the shelf, where it is found by the content of the file,
also when that is gone. What the pictures mean to a model is `layout`'s and `dataset`'s.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from finetune.formats.pictures import MAX_IMAGE_PIXELS, check_frame, frames_of
from finetune.layout import Look, Shown
from finetune.rows import Media, Row
from finetune.shelf import Shelf
from vidqa.containers import reading, shown
from vidqa.errors import UsageError, VideoError
from vidqa.frames import pictures_at, read_stretch
from vidqa.probe import fingerprint, probe
from vidqa.select import deal, fit, spread
from vidqa.stills import for_model, read_image
from vidqa.types import Picture

__all__ = ["Shown", "frame_counts", "show", "show_row"]

# Part of every key: raise it when the same file would give other pictures.
_VERSION = 1

# Times of frames in a list that tells no rate: what Qwen's own tools take frame lists to have.
LIST_FPS = 2.0

# How far behind the declared end of a video a frame may be asked for.
_END_SECONDS = 1.0


def show_row(row: Row, look: Look, shelf: Shelf | None = None) -> tuple[Shown, ...]:
    """What is shown of all media of a row. Raises VideoError or UsageError, each one line."""
    counts = frame_counts(row.media, look)
    return tuple(
        show(media, look, frames, shelf) for media, frames in zip(row.media, counts, strict=True)
    )


def frame_counts(media: Sequence[Media], look: Look) -> list[int]:
    """How many frames each may show: pairs dealt out in turn among videos, one for a picture."""
    videos = [one for one in media if one.kind == "video"]
    if 2 * len(videos) > look.max_frames:
        raise UsageError(
            f"{len(videos)} videos in one row need {2 * len(videos)} frames; "
            f"max_frames is {look.max_frames}"
        )
    frames = [look.max_frames] * len(videos)
    dealt = iter(deal(frames, look.max_frames, look.frames_per_moment))
    return [next(dealt) if one.kind == "video" else 1 for one in media]


def show(media: Media, look: Look, frames: int, shelf: Shelf | None = None) -> Shown:
    """What is shown of a medium: up to `frames` pictures. Decodes nothing that is on the shelf."""
    recipe, make = _plan(media, look, frames)
    if shelf is None:
        return make()
    key = _key(_contents(recipe.pop("paths"), shelf), recipe)
    found = shelf.get(key)
    if found is not None:
        return _unpacked(*found)
    made = make()
    shelf.put(key, _facts(made), [one.jpeg for one in made.pictures])
    return made


def _plan(media: Media, look: Look, frames: int) -> tuple[dict[str, Any], Callable[[], Shown]]:
    """What decides the pictures of a medium, the files among it; and how they are made."""
    path, start = media.paths[0], media.start_seconds or 0.0
    recipe: dict[str, Any] = {"version": _VERSION, "paths": [path], "pixels": look.max_pixels}
    if media.kind == "image" and media.at_seconds is None:
        return recipe | {"of": "image"}, lambda: _still(path, look)
    if media.kind == "image":
        at = media.at_seconds or 0.0
        return recipe | {"of": "frame", "at": at}, lambda: _frame(path, at, look)
    if files := frames_of(media):
        chosen, end = _listed(media, files, frames)
        recipe["paths"] = [file for _, file in chosen]
        span = {"seconds": [at for at, _ in chosen], "start": start, "end": end}
        return recipe | {"of": "list"} | span, lambda: _list(chosen, start, end, look)
    end_or_none = media.end_seconds
    span = {"of": "video", "start": start, "end": end_or_none, "fps": look.sample_fps}
    return (
        recipe | span | {"frames": frames},
        lambda: _video(path, start, end_or_none, frames, look),
    )


# ---------------------------------------------------------------- making pictures


def _video(path: str, start: float, end: float | None, frames: int, look: Look) -> Shown:
    if not 0 <= start < (math.inf if end is None else end):
        raise UsageError(f"{shown(path)}: [{start:g}, {end:g}) s is no part of a video")
    stretch = read_stretch(path, start, end, 1 / look.sample_fps)
    pictures = {one.seconds: one for one in stretch.pictures}
    chosen = [pictures[at] for at in spread(sorted(pictures), frames)]
    return Shown(_fitted(chosen, look), stretch.width, stretch.height, start, stretch.end_seconds)


def _frame(path: str, at: float, look: Look) -> Shown:
    video = probe(path)
    if not 0 <= at <= (video.duration_seconds or at) + _END_SECONDS:
        raise VideoError(f"{shown(path)}: has no frame at {at:g} s; it lasts "
                         f"{video.duration_seconds:g} s")  # fmt: skip
    return Shown(_fitted(pictures_at(path, [at]), look), video.width, video.height, at, at)


def _still(path: str, look: Look) -> Shown:
    jpeg, width, height = _read_image(path)
    return Shown(_fitted([Picture(0.0, jpeg)], look), width, height, 0.0, 0.0)


def _list(chosen: Sequence[tuple[float, str]], start: float, end: float, look: Look) -> Shown:
    pictures, sizes = [], []
    for at, path in chosen:
        jpeg, width, height = _read_image(path)
        pictures.append(Picture(at, jpeg))
        sizes.append((width, height))
        check_frame(path, sizes[-1], sizes[0])
    width, height = sizes[0]
    return Shown(_fitted(pictures, look), width, height, start, end)


def _listed(
    media: Media, files: Sequence[str], frames: int
) -> tuple[list[tuple[float, str]], float]:
    """The chosen frames of a list with their times, and where the part that is meant ends."""
    fps = media.fps or LIST_FPS
    start = media.start_seconds or 0.0
    end = min(len(files) / fps, float("inf") if media.end_seconds is None else media.end_seconds)
    # A hair, as 3 / 0.1 is no multiple of anything.
    inside = {n / fps: file for n, file in enumerate(files) if start <= n / fps + 1e-6 < end}
    if not inside:
        raise VideoError(
            f"{shown(media.paths[0])}: none of its {len(files)} frames, at {fps:g} a second, "
            f"is in [{start:g}, {end:g}) s"
        )
    return [(at, inside[at]) for at in spread(sorted(inside), frames)], end


def _read_image(path: str) -> tuple[bytes, int, int]:
    """A JPEG as the model is shown it, and the size of the picture, upright, in pixels."""
    with reading(path):
        regular = stat.S_ISREG(os.stat(path).st_mode)
    if not regular:  # a device or a pipe may never end
        raise VideoError(f"{shown(path)}: is not a regular file; copy the picture to a file first")
    with reading(path):
        data = Path(path).read_bytes()
    try:
        image = read_image(data, max_pixels=MAX_IMAGE_PIXELS)
    except UsageError as error:
        raise VideoError(f"{shown(path)}: {error}") from error
    return for_model(image), image.width, image.height


def _fitted(pictures: Sequence[Picture], look: Look) -> tuple[Picture, ...]:
    return tuple(fit(one, look.max_pixels) for one in pictures)


# ---------------------------------------------------------------- finding them again


def _facts(made: Shown) -> dict[str, Any]:
    return {
        "seconds": [one.seconds for one in made.pictures],
        "size": [made.width, made.height],
        "span": [made.start_seconds, made.end_seconds],
    }


def _unpacked(facts: dict[str, Any], jpegs: Sequence[bytes]) -> Shown:
    pictures = tuple(map(Picture, facts["seconds"], jpegs))
    return Shown(pictures, *facts["size"], *facts["span"])


def _key(contents: Sequence[str], recipe: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps([contents, recipe], sort_keys=True).encode()).hexdigest()


def _contents(paths: Sequence[str], shelf: Shelf) -> list[str]:
    """What each file holds. A file that did not change is not read; one that is gone counts as
    what it was when it was last met."""
    absolute = [os.path.abspath(path) for path in paths]
    key = _key(absolute, {"of": "files"})
    found = shelf.get(key)
    known = found[0]["files"] if found else [None] * len(paths)
    now = [_content(path, before) for path, before in zip(absolute, known, strict=True)]
    if now != known:
        shelf.put(key, {"files": now})
    return [content for *_, content in now]


def _content(path: str, known: list[Any] | None) -> list[Any]:
    """[size in bytes, time of change, fingerprint] of a file."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        if known is not None:
            return known
        with reading(path):
            raise
    stamp = [status.st_size, status.st_mtime_ns]
    if known is not None and known[:2] == stamp:
        return known
    return [*stamp, fingerprint(path)]
