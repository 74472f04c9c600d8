"""LLaVA style, as Qwen's own fine-tuning code and 2U1/Qwen2-VL-Finetune read it.

    {"id": "7", "video": "a.mp4", "conversations": [
        {"from": "human", "value": "<video>\\nWho opens the door?"},
        {"from": "gpt", "value": "The red star does."}]}

`video` and `image` are a path or a list of paths; what is a list in a list, or a list of pictures
given as `video`, is one video's frames. The line's end that follows a placeholder belongs to it:
both projects drop it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from finetune.formats.base import Format, by_record, by_row, messages_of
from finetune.formats.reading import Reading
from finetune.formats.writing import Writing
from finetune.rows import Row

_FIELDS = ("conversations", "video", "image", "videos", "images")


def _fits(value: Mapping[str, Any]) -> bool:
    return (
        any("from" in message for message in messages_of(value, "conversations"))
        and "videos" not in value
        and "images" not in value
    )


def _read(reading: Reading) -> Row:
    turns = reading.conversation(
        reading.take("conversations"),
        reading.media("video", "video", "videos"),
        reading.media("image", "image", "images"),
        newlines=True,
    )
    return reading.row(reading.with_system(turns, "system"))


def _write(writing: Writing) -> dict[str, Any]:
    found = writing.fields(*_FIELDS, "system")
    for medium in writing.media:
        paths = writing.paths(medium)
        found.setdefault(medium.kind, []).append(paths)
    for kind in ("video", "image"):
        if kind in found and len(found[kind]) == 1 and isinstance(found[kind][0], str):
            found[kind] = found[kind][0]
    found["conversations"] = [
        {**message, "from": _NAMES[message["from"]]}
        for message in writing.messages("from", "value", newlines=True)
    ]
    return found


_NAMES = {"system": "system", "user": "human", "assistant": "gpt"}

LLAVA = Format(
    "llava",
    "Qwen and 2U1: conversations of from and value, with video or image",
    _fits,
    by_record(_read),
    by_row(_write),
)
