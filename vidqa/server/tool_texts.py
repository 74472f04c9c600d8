"""How tools' replies look: lines for whoever reads only text, and names without folders.

Names and subtitles are quoted strings on one line, so that nothing in a video can pass for a part
of a reply.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from vidqa.prompt import clock, time_range
from vidqa.server.tool_schemas import Moment, Outline, Span, Text, Videos

# A subtitle is a line; what is longer is no subtitle, and an agent's context is not free.
TEXT_CHARACTERS = 300
MOMENT_TEXTS = 10


def quoted(text: str) -> str:
    """A string on one line in quotes: names and subtitles cannot leave it."""
    return json.dumps(
        "".join(one if one.isprintable() else " " for one in text), ensure_ascii=False
    )


def count(things: Sequence[object], noun: str) -> str:
    return f"{len(things)} {noun}{'' if len(things) == 1 else 's'}"


def one_line(text: str) -> str:
    return " ".join(text.split())


def text_of(shape: dict[str, Any]) -> Text:
    text = one_line(shape["text"])
    short = text if len(text) <= TEXT_CHARACTERS else f"{text[:TEXT_CHARACTERS]}..."
    return Text.model_validate(shape | {"text": short})


def with_link(shape: dict[str, Any], root: str) -> dict[str, Any]:
    """A shape whose address leads somewhere: there is a page only where there is a server."""
    return shape | {"url": shape["url"] if root else None}


def moment_of(shape: dict[str, Any], root: str) -> Moment:
    texts = [text_of(one) for one in shape["texts"][:MOMENT_TEXTS]]
    return Moment.model_validate(with_link(shape, root) | {"texts": texts})


def place(span: Span) -> str:
    times = f"[{span.start_seconds:g}, {span.end_seconds:g}) s"
    readable = time_range(span.start_seconds, span.end_seconds)
    return f"{quoted(span.video)} (id {span.video_id}) {times} = {readable}"


def moment_lines(moment: Moment) -> list[str]:
    lines = [f"{moment.n}. {place(moment)}, score {moment.score:.3f}"]
    if moment.texts:
        lines.append(f"   subtitles: {quoted(' / '.join(one.text for one in moment.texts))}")
    return lines


def list_lines(data: Videos) -> list[str]:
    lines = [f"library {data.library}: {len(data.videos)} of {data.total} videos"]
    lines += [
        f"- {one.id} {quoted(one.video)} {one.duration_seconds:g} s, {one.scenes} scenes, "
        f"{one.width}x{one.height}" + ("" if one.state == "ready" else f", {one.state}")
        for one in data.videos
    ]
    if data.next_after:
        lines.append(f"more: after={data.next_after}")
    lines += [f"failed: {quoted(one.video)}: {quoted(one.error)}" for one in data.failures]
    if len(data.libraries) > 1:
        lines.append(f"libraries: {', '.join(data.libraries)}")
    return lines


def outline_lines(data: Outline) -> list[str]:
    lines = [
        f"{quoted(data.video)} (id {data.video_id}): {data.duration_seconds:g} s, "
        f"{data.scene_count} scenes"
    ]
    lines += [
        f"scene {one.index}: [{one.start_seconds:g}, {one.end_seconds:g}) s = "
        f"{time_range(one.start_seconds, one.end_seconds)}"
        for one in data.scenes
    ]
    lines += [
        f"subtitle {clock(one.start_seconds)} [{one.start_seconds:g}, {one.end_seconds:g}) s: "
        f"{quoted(one.text)}"
        for one in data.texts
    ]
    if data.next_start_seconds is not None:
        lines.append(f"more: start_seconds={data.next_start_seconds}")
    return lines
