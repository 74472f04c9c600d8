"""TRL: messages of content parts, and its prompt and completion.

    {"messages": [{"role": "user", "content": [{"type": "video", "video": "a.mp4"},
                                               {"type": "text", "text": "Who opens the door?"}]},
                  {"role": "assistant", "content": [{"type": "text", "text": "The red star."}]}]}

    {"prompt": [...], "completion": [{"role": "assistant", "content": [...]}]}

Media are in their parts, or beside the messages in `images` and `videos` with bare parts in their
places, or none: then they come before the first question. A part of a video has `video_start` and
`video_end`, frames a `sample_fps`, as qwen-vl-utils names them. Of prompt and completion, only the
completion is learned. Source: the project's docs/source/dataset_formats.md.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Final

from finetune.formats.base import Format, by_record, by_row, messages_of
from finetune.formats.reading import Reading, as_value
from finetune.formats.writing import Writing, joined
from finetune.rows import Media, Row, Turn

_MEDIA: Final = ("images", "videos", "image", "video")


def _fits(value: Mapping[str, Any]) -> bool:
    return any(isinstance(one.get("content"), list) for one in messages_of(value, "messages"))


def _fits_prompt(value: Mapping[str, Any]) -> bool:
    return "prompt" in value and "completion" in value


def _read(reading: Reading) -> Row:
    return reading.row(_turns(reading, reading.take("messages")))


def _turns(reading: Reading, messages: Any) -> list[Turn]:
    return reading.conversation(
        messages,
        reading.media("video", "videos", "video"),
        reading.media("image", "images", "image"),
    )


def _read_prompt(reading: Reading) -> Row:
    prompt = _messages(reading.take("prompt"), "user")
    completion = _messages(reading.take("completion"), "assistant")
    turns = _turns(reading, prompt + completion)
    given = len(turns) - len(completion)
    return reading.row(
        [
            dataclasses.replace(turn, trains=False)
            if turn.role == "assistant" and n < given
            else turn
            for n, turn in enumerate(turns)
        ]
    )


def _messages(value: Any, role: str) -> list[Any]:
    """A text alone is what TRL calls the standard form."""
    value = as_value(value)
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    return value if isinstance(value, list) else []


def _write(writing: Writing) -> dict[str, Any]:
    messages = [{**_message(writing, turn), **writing.loss(turn)} for turn in writing.row.turns]
    if any("loss" in message for message in messages):
        writing.note("answers that are only given are marked by `loss`, which TRL does not read")
    return {"messages": messages, **writing.fields("messages", *_MEDIA, times=False)}


def _write_prompt(writing: Writing) -> dict[str, Any]:
    *before, last = writing.row.turns or (Turn("assistant", ()),)
    if any(turn.role == "assistant" and turn.trains for turn in before):
        writing.note("only the last answer is learned")
    return {
        "prompt": [_message(writing, turn) for turn in before],
        "completion": [_message(writing, last)],
        **writing.fields("prompt", "completion", "messages", *_MEDIA, times=False),
    }


def _message(writing: Writing, turn: Turn) -> dict[str, Any]:
    parts = []
    for part in joined(_in_text(writing, turn)):
        if isinstance(part, str):
            parts.append({"type": "text", "text": part})
        elif isinstance(part, Media):
            parts.append(_medium(writing, part))
    return {"role": turn.role, "content": parts}


def _in_text(writing: Writing, turn: Turn) -> list[str | Media]:
    return [part if isinstance(part, str | Media) else writing.marked(part) for part in turn.parts]


def _medium(writing: Writing, medium: Media) -> dict[str, Any]:
    found: dict[str, Any] = {"type": medium.kind, medium.kind: writing.paths(medium)}
    times = {
        "video_start": medium.start_seconds,
        "video_end": medium.end_seconds,
        "sample_fps": medium.fps,
        "at": medium.at_seconds,
    }
    found |= {key: value for key, value in times.items() if value is not None}
    if medium.at_seconds is not None:
        writing.note("a frame of a video as a picture has `at`, which only vidqa reads")
    return found


TRL = Format(
    "trl",
    "TRL: messages of text, video and image parts",
    _fits,
    by_record(_read),
    by_row(_write),
)
TRL_PROMPT = Format(
    "trl-prompt",
    "TRL: prompt and completion",
    _fits_prompt,
    by_record(_read_prompt),
    by_row(_write_prompt),
)
