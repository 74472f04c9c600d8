"""vidqa's own rows: every part of a row by its name, so that nothing is lost.

    {"vidqa": 1, "id": "7", "task": "answer", "messages": [
        {"role": "user", "content": [
            {"type": "video", "video": "a.mp4", "start": 3, "end": 5.5},
            {"type": "text", "text": "Who opens the door?"}]},
        {"role": "assistant", "content": "The red star does."}]}

A part is a text; a video (one path, or those of its frames, with `fps`) or a picture (`at` makes it
a frame of a video) with `texts` that belong to it; a `ref`, the name of a thing; a `box`; or
`boxes`, a whole answer of names and boxes. `box` is left, top, right, bottom in the `unit`
fraction, pixel or thousandth, in the row's medium number `media`. A text alone needs no list. An
answer with `"loss": false` is given, not learned. The format's number comes first.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Final, get_args

from finetune.formats.base import Format, by_record, by_row, messages_of
from finetune.formats.reading import ROLES, Reading, as_value, named
from finetune.formats.writing import Writing
from finetune.rows import Boxed, Located, Media, Part, Ref, Row, Turn
from vidqa.boxes import Box, Unit
from vidqa.types import TextSpan

VERSION: Final = 1
_OWN_PARTS: Final = {"ref", "box", "boxes"}
_OWN_KEYS: Final = {"start", "end", "texts"}


def _fits(value: Mapping[str, Any]) -> bool:
    if "vidqa" in value:
        return True
    contents = [message.get("content") for message in messages_of(value, "messages")]
    parts = [part for content in contents if isinstance(content, list) for part in content]
    return any(
        isinstance(part, dict) and (part.get("type") in _OWN_PARTS or _OWN_KEYS & part.keys())
        for part in parts
    )


def _read(reading: Reading) -> Row:
    version = reading.take("vidqa")
    if version not in (None, VERSION, str(VERSION)):
        reading.fault(f"is of version {version!r} of this format; {VERSION} can be read")
    nested = as_value(reading.take("extra"))
    row = reading.row(_turns(reading))
    return dataclasses.replace(row, extra={**row.extra, **_fields(nested)})


def _fields(nested: Any) -> Mapping[str, Any]:
    return nested if isinstance(nested, dict) else {} if nested is None else {"extra": nested}


def _turns(reading: Reading) -> list[Turn]:
    messages = as_value(reading.take("messages"))
    videos = reading.media("video", "videos", "video")
    images = reading.media("image", "images", "image")
    if videos or images:
        # A conversation with its media beside it, as the other formats have.
        return reading.conversation(messages, videos, images)
    if not isinstance(messages, list) or not messages:
        reading.fault("has no list of messages")
        return []
    return [turn for one in messages if (turn := _turn(reading, one)) is not None]


def _turn(reading: Reading, message: Any) -> Turn | None:
    if not isinstance(message, dict):
        reading.fault(f"a message is {message!r}, not an object")
        return None
    name = message.get("role")
    role = ROLES.get(name) if isinstance(name, str) else None
    if role is None:
        reading.fault(f"role {name!r} is unknown; system, user, assistant are known")
        return None
    content = message.get("content")
    if isinstance(content, str):
        parts: tuple[Part, ...] = (content,) if content else ()
    elif isinstance(content, list):
        found = [_part(reading, one) for one in content]
        parts = tuple(one for one in found if one is not None)
    else:
        reading.fault(f"a message's content is {content!r}, not a text or a list of parts")
        parts = ()
    return Turn(role, parts, reading.trains(message.get("loss")))


def _part(reading: Reading, part: Any) -> Part | None:
    if isinstance(part, str):
        return part
    try:
        kind = part["type"]
        if kind == "text":
            return str(part["text"])
        if kind == "ref":
            return Ref(str(part["ref"]))
        if kind == "box":
            return Boxed(_box(part), int(part.get("media", 0)))
        if kind == "boxes":
            things = tuple((str(one["label"]), _box(one)) for one in part["boxes"])
            return Located(things, int(part.get("media", 0)))
        if kind in ("video", "image"):
            return _medium(reading, part)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        reading.fault(f"a part of a message, {named(part)}, is not whole: {_reason(error)}")
        return None
    reading.fault(f"a part is of type {kind!r}; text, video, image, ref, box, boxes are known")
    return None


def _reason(error: Exception) -> str:
    return f"{error} is missing" if isinstance(error, KeyError) else str(error)


def _box(part: Mapping[str, Any]) -> Box:
    sides = part["box"]
    unit: Unit = part.get("unit", "fraction")
    if unit not in get_args(Unit):
        raise ValueError(f"unit {unit!r}, which is none of {', '.join(get_args(Unit))}")
    if not isinstance(sides, list) or len(sides) != 4:
        raise ValueError("a box has 4 numbers")
    left, top, right, bottom = map(float, sides)
    return Box(left, top, right, bottom, unit)


def _medium(reading: Reading, part: Mapping[str, Any]) -> Media | None:
    medium = reading.medium(part["type"], part[part["type"]])
    if medium is None:
        return None
    times = {
        name: None if part.get(key) is None else float(part[key])
        for name, key in (
            ("start_seconds", "start"),
            ("end_seconds", "end"),
            ("at_seconds", "at"),
            ("fps", "fps"),
        )
    }
    texts = tuple(
        TextSpan(float(one["start"]), float(one["end"]), one["text"], one.get("source", "subtitle"))
        for one in part.get("texts") or ()
    )
    return Media(medium.kind, medium.paths, **times, texts=texts)


def _write(writing: Writing) -> dict[str, Any]:
    row = writing.row
    found: dict[str, Any] = {"vidqa": VERSION}
    if row.id is not None:
        found["id"] = row.id
    if row.task is not None:
        found["task"] = row.task
    if row.choices:
        found["choices"] = list(row.choices)
    found["messages"] = [
        {"role": turn.role, "content": _content(writing, turn), **writing.loss(turn)}
        for turn in row.turns
    ]
    if row.extra:
        found["extra"] = dict(row.extra)
    return found


def _content(writing: Writing, turn: Turn) -> str | list[dict[str, Any]]:
    if not turn.parts:
        return ""
    if len(turn.parts) == 1 and isinstance(turn.parts[0], str) and turn.parts[0]:
        return turn.parts[0]
    return [_as_part(writing, part) for part in turn.parts]


def _as_part(writing: Writing, part: Part) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    if isinstance(part, Ref):
        return {"type": "ref", "ref": part.text}
    if isinstance(part, Boxed):
        return {"type": "box", **_as_box(part.box), "media": part.media}
    if isinstance(part, Located):
        things = [{"label": name, **_as_box(box)} for name, box in part.things]
        return {"type": "boxes", "boxes": things, "media": part.media}
    return _as_medium(writing, part)


def _as_box(box: Box) -> dict[str, Any]:
    return {"box": [box.left, box.top, box.right, box.bottom], "unit": box.unit}


def _as_medium(writing: Writing, medium: Media) -> dict[str, Any]:
    found: dict[str, Any] = {"type": medium.kind, medium.kind: writing.paths(medium)}
    times = {
        "start": medium.start_seconds,
        "end": medium.end_seconds,
        "at": medium.at_seconds,
        "fps": medium.fps,
    }
    found |= {key: value for key, value in times.items() if value is not None}
    if medium.texts:
        found["texts"] = [
            {"start": one.start_seconds, "end": one.end_seconds, "text": one.text,
             "source": one.source}
            for one in medium.texts
        ]  # fmt: skip
    return found


OWN = Format(
    "vidqa",
    "vidqa's own: messages of parts, nothing is lost",
    _fits,
    by_record(_read),
    by_row(_write),
)
