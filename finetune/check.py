"""Is data fit to be trained on? Every row is looked at, and each fault told with its line.

    for problem in check(read("train.jsonl"), read("held-out.jsonl")): print(problem)
    sifted = sift(rows, held_out)       the rows that are fit, and the others with their reasons

Looked for are: what could not be read, roles out of order, answers that are empty, files that are
missing or damaged, times outside the video, boxes that are inverted or outside the picture, rows
that stand there twice, and videos of the held-out rows that are trained on too. Files are compared
by content, so that a renamed copy is found. Of each file the container is read and one frame; what
lies behind a damaged place in its middle shows only when it is trained on.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from finetune.formats.pictures import check_frame, check_image, frames_of, is_frames, probed
from finetune.formats.reading import is_address
from finetune.identity import Identities
from finetune.rows import Boxed, Located, Media, Problem, Row
from vidqa.boxes import Box
from vidqa.errors import VideoError

__all__ = ["Problem", "Sifted", "check", "sift"]

# Containers round their durations, and boxes are measured by hand.
_LATE_SECONDS: Final = 0.5
_OUTSIDE_PIXELS: Final = 1.0
_SHOWN_LENGTH: Final = 60


def check(rows: Sequence[Row], held_out: Sequence[Row] = ()) -> list[Problem]:
    """What is wrong, in the order of the rows, those held out last; nothing when all is well."""
    identities = Identities()
    found: list[Problem] = []
    for group in (rows, held_out):
        known: dict[object, Row] = {}
        for row in group:
            faults = [*_faults(row), *_twice(row, known, identities)]
            faults += [*_missing(row), *_damaged(row)]
            found += (Problem(row.origin, text) for text in faults)
    return found + list(_leaks(rows, held_out, identities))


@dataclass(frozen=True, slots=True)
class Sifted:
    """Rows in order: those that are fit, and those that are not, each with all its reasons.

    `errors` are what leaving out rows does not mend: files that are not there, which more often
    is a wrong path than a bad row, and held-out videos that are trained on.
    """

    rows: tuple[Row, ...]
    dropped: tuple[Problem, ...]
    held_out: tuple[Row, ...]
    held_out_dropped: tuple[Problem, ...]
    errors: tuple[Problem, ...]


def sift(rows: Sequence[Row], held_out: Sequence[Row] = ()) -> Sifted:
    """Leaves out the rows that `check` finds fault with; tells what is no row's own fault."""
    identities = Identities()
    errors = [Problem(row.origin, text) for row in (*rows, *held_out) for text in _missing(row)]
    fit, dropped = _sifted(rows, identities)
    held_out_fit, held_out_dropped = _sifted(held_out, identities)
    errors += _leaks(fit, held_out_fit, identities)
    return Sifted(fit, dropped, held_out_fit, held_out_dropped, tuple(errors))


def _sifted(
    rows: Sequence[Row], identities: Identities
) -> tuple[tuple[Row, ...], tuple[Problem, ...]]:
    known: dict[object, Row] = {}
    fit, dropped = [], []
    for row in rows:
        faults = [*_faults(row), *_damaged(row)] or list(_twice(row, known, identities))
        if faults:
            dropped.append(Problem(row.origin, "; ".join(faults)))
        else:
            fit.append(row)
    return tuple(fit), tuple(dropped)


def _faults(row: Row) -> Iterator[str]:
    """What is wrong with a row by itself, as far as its files can be read."""
    yield from row.faults
    if not row.turns:
        if not row.faults:
            yield "has no turns"
        return
    yield from _roles(row)
    yield from _texts(row)
    for medium in row.media:
        yield from _medium(medium)
    yield from _boxes(row)


def _missing(row: Row) -> Iterator[str]:
    yield from filter(None, map(_why_missing, row.media))


def _damaged(row: Row) -> Iterator[str]:
    yield from filter(None, map(_why_damaged, row.media))


def _roles(row: Row) -> Iterator[str]:
    roles = [turn.role for turn in row.turns]
    said = roles[1:] if roles[0] == "system" else roles
    if "system" in said:
        yield "the system speaks after the beginning; its turn comes first"
    said = [role for role in said if role != "system"]
    if said and said[0] != "user":
        yield f"the {said[0]} speaks first; a user's question does"
    for before, role in itertools.pairwise(said):
        if role == before:
            yield f"the {role} speaks twice in a row; questions and answers take turns"
            break
    if not said or said[-1] != "assistant":
        yield "has no answer at its end, from which to learn"
    elif not any(turn.trains for turn in row.turns if turn.role == "assistant"):
        yield "none of its answers is to be learned (loss is false)"


def _texts(row: Row) -> Iterator[str]:
    for turn in row.turns:
        if any(not isinstance(part, str) or part.strip() for part in turn.parts):
            continue
        if turn.role == "assistant":
            yield "an answer is empty"
        elif turn.role == "user":
            yield "a question is empty"
    for turn in row.turns:
        if turn.role != "user" and any(isinstance(part, Media) for part in turn.parts):
            yield f"a video or image stands in a turn of the {turn.role}; only users show them"


# Media


def _medium(medium: Media) -> Iterator[str]:
    if _why_missing(medium):
        return
    try:
        seconds = _seconds(medium)
    except VideoError:
        return
    yield from _times(medium, seconds)


def _why_missing(medium: Media) -> str | None:
    far = next((path for path in medium.paths if is_address(path)), None)
    if far is not None:
        return f"{_short(far)} is an address; nothing is fetched, download it and name the file"
    missing = [path for path in medium.paths if not os.path.exists(path)]
    if missing:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        return f"{missing[0]}: there is no such file{more}"
    return None


def _why_damaged(medium: Media) -> str | None:
    """Why files that are there cannot be read."""
    if _why_missing(medium):
        return None
    try:
        _seconds(medium)
    except VideoError as error:
        return str(error)
    return None


def _seconds(medium: Media) -> float | None:
    """How long a video is; None when nobody knows. Raises VideoError for what is neither a video
    nor a picture."""
    if medium.kind == "image" and medium.at_seconds is None:
        check_image(medium.paths[0])
        return None
    frames = frames_of(medium)
    if not frames:
        return probed(medium.paths[0]).duration_seconds or None
    sizes = [check_image(path) for path in frames]
    for path, size in zip(frames, sizes, strict=True):
        check_frame(path, size, sizes[0])
    return len(frames) / medium.fps if medium.fps else None


def _times(medium: Media, seconds: float | None) -> Iterator[str]:
    start, end, at = medium.start_seconds, medium.end_seconds, medium.at_seconds
    given = {"start": start, "end": end, "at": at, "fps": medium.fps}
    for name, value in given.items():
        if value is not None and (not math.isfinite(value) or value < 0):
            yield f"{name} is {value:g}; it is a number from 0 on"
            return
    if medium.fps == 0:
        yield "fps is 0; frames follow each other at more"
    if start is not None and end is not None and start >= end:
        yield f"start {start:g} is not before end {end:g}"
    if seconds is None:
        if medium.fps is None and is_frames(medium) and (start is not None or end is not None):
            yield "start and end of single frames need their fps"
        return
    for name, value, last in (
        ("start", start, seconds),
        ("at", at, seconds),
        ("end", end, seconds + _LATE_SECONDS),
    ):
        if value is not None and (value > last or (value == last and name != "end")):
            yield f"{name} {value:g} is beyond the video's end at {seconds:.2f} seconds"


# Boxes


def _boxes(row: Row) -> Iterator[str]:
    media = row.media
    for part in row.parts:
        if isinstance(part, Located) and not part.things:
            yield "an answer names no thing and no box"
            continue
        boxes = [part.box] if isinstance(part, Boxed) else []
        if isinstance(part, Located):
            boxes = [box for _, box in part.things]
        if not isinstance(part, Boxed | Located):
            continue
        if not 0 <= part.media < len(media):
            yield f"a box is in medium {part.media}, counted from 0, and the row has {len(media)}"
            continue
        if media[part.media].kind != "image":
            yield "a box is in a video; give the time of one frame (an image with `at`)"
            continue
        for box in boxes:
            yield from _box(box, media[part.media])


def _box(box: Box, medium: Media) -> Iterator[str]:
    sides = (box.left, box.top, box.right, box.bottom)
    shown = f"box ({', '.join(f'{side:g}' for side in sides)})"
    if not all(map(math.isfinite, sides)):
        yield f"{shown} has a side that is no number"
        return
    if box.left >= box.right or box.top >= box.bottom:
        yield f"{shown} is inverted or empty; it is left, top, right, bottom"
        return
    width, height, unit = 1.0, 1.0, "fractions of the picture"
    if box.unit == "thousandth":
        width, height, unit = 1000.0, 1000.0, "thousandths of the picture"
    if box.unit == "pixel":
        size = _size(medium)
        if size is None:
            return  # what is wrong with the file was told
        (width, height), unit = size, "pixels"
    spare = _OUTSIDE_PIXELS if box.unit == "pixel" else 1e-6
    if min(box.left, box.top) < -spare or box.right > width + spare or box.bottom > height + spare:
        yield f"{shown} in {unit} is outside the picture, which is {width:g} x {height:g}"
    elif box.unit == "pixel" and max(sides) <= 1:
        yield f"{shown} is in pixels, and looks like fractions (bbox_type norm1)"


def _size(medium: Media) -> tuple[int, int] | None:
    from finetune.formats.pictures import size_of

    return size_of(medium)


# Between rows


def _twice(row: Row, known: dict[object, Row], identities: Identities) -> Iterator[str]:
    """The same conversation about the same files, whatever they are called."""
    if not row.turns or row.faults:
        return
    key = tuple(
        (turn.role, tuple(
            (part.kind, identities.of(part), part.start_seconds, part.end_seconds, part.at_seconds)
            if isinstance(part, Media) else part
            for part in turn.parts
        ))
        for turn in row.turns
    )  # fmt: skip
    first = known.setdefault(key, row)
    if first is not row:
        yield f"is the same row as {first.origin}"


def _leaks(
    rows: Sequence[Row], held_out: Sequence[Row], identities: Identities
) -> Iterator[Problem]:
    """Held-out media that are trained on, each told once with the number of its rows."""
    trained: dict[str, tuple[Row, str]] = {}
    for row in rows if held_out else ():
        for medium in row.media:
            for key, path in identities.files(medium):
                trained.setdefault(key, (row, path))
    told: dict[str, list[Row]] = {}
    for row in held_out:
        for medium in row.media:
            shared = [pair for pair in identities.files(medium) if pair[0] in trained]
            # Black frames are alike in any two videos; half of the frames are not.
            if shared and 2 * len(shared) >= len(medium.paths):
                told.setdefault(shared[0][0], []).append(row)
    for key, leaked in told.items():
        row, path = trained[key]
        own = next(p for m in leaked[0].media for k, p in identities.files(m) if k == key)
        copy = "" if os.path.abspath(own) == os.path.abspath(path) else f" as {path}"
        more = f"; {len(leaked)} held-out rows are about it" if len(leaked) > 1 else ""
        yield Problem(leaked[0].origin, f"{own} is trained on too, at {row.origin}{copy}{more}")


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN_LENGTH else f"{text[: _SHOWN_LENGTH - 3]}..."
