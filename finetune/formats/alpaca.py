"""Alpaca: one question and its answer, with what was said before in `history`.

    {"instruction": "<video>Who opens the door?", "input": "", "output": "The red star does.",
     "system": "...", "history": [["Hello", "Hello."]], "videos": ["a.mp4"]}

`input` follows the instruction on a new line. LLaMA-Factory and ms-swift read it like this, and
learn the answers of the history too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from finetune.formats.base import Format, by_record, by_row
from finetune.formats.reading import Reading, as_value, named
from finetune.formats.writing import Writing
from finetune.rows import Row

Columns = Mapping[str, str]


def _fits(value: Mapping[str, Any]) -> bool:
    return "instruction" in value and ("output" in value or "input" in value)


def read_row(reading: Reading, columns: Columns | None = None) -> Row:
    """`columns` are LLaMA-Factory's: its names of the fields, to the file's."""
    columns = columns or {}

    def name(ours: str, usual: str) -> str:
        return columns.get(ours) or usual

    asked = [
        text
        for text in (
            reading.text(name("prompt", "instruction")),
            reading.text(name("query", "input")),
        )
        if text
    ]
    messages = history(reading, name("history", "history"))
    messages += [
        {"role": "user", "content": "\n".join(asked)},
        {"role": "assistant", "content": reading.text(name("response", "output"))},
    ]
    turns = reading.conversation(
        messages,
        reading.media("video", name("videos", "videos"), "video"),
        reading.media("image", name("images", "images"), "image"),
    )
    return reading.row(reading.with_system(turns, name("system", "system")))


def history(reading: Reading, name: str = "history") -> list[dict[str, Any]]:
    """Earlier questions and answers, as messages."""
    pairs = as_value(reading.take(name))
    found: list[dict[str, Any]] = []
    if pairs is None or pairs == "":
        return found
    for pair in pairs if isinstance(pairs, list) else [pairs]:
        if not (isinstance(pair, list | tuple) and len(pair) == 2):
            reading.fault(f"history has {named(pair)}, not a question with its answer")
            continue
        found += [
            {"role": role, "content": text}
            for role, text in zip(("user", "assistant"), pair, strict=True)
        ]
    return found


def _write(writing: Writing) -> dict[str, Any]:
    known = ("instruction", "input", "output", "system", "history", "videos", "images", "video")
    system, pairs = writing.pairs()
    *before, (question, answer) = pairs
    found: dict[str, Any] = {
        **writing.fields(*known, "image"),
        "instruction": question,
        "input": "",
        "output": answer,
    }
    if system:
        found["system"] = system
    if before:
        found["history"] = [list(pair) for pair in before]
    return found | writing.lists()


ALPACA = Format(
    "alpaca",
    "instruction, input, output, with videos or images",
    _fits,
    by_record(read_row),
    by_row(_write),
)
