"""Rows of training data, and what is shown of them, made in a line; no file is read."""

from __future__ import annotations

import functools
import io
import sys
from collections.abc import Sequence

import pytest
from PIL import Image

from finetune.layout import Shown
from finetune.rows import Media, Origin, Part, Row, Task, Turn
from vidqa.types import Picture


def asked(
    number: int,
    question: str,
    answer: str | Part | Sequence[Part] | None,
    *,
    task: Task | None = None,
    choices: tuple[str, ...] = (),
    video: str = "/films/a.mp4",
) -> Row:
    """A row of one question about one video, from line `number` of rows.jsonl."""
    turns = [Turn("user", (Media("video", (video,)), question))]
    if answer is not None:
        parts = tuple(answer) if isinstance(answer, list | tuple) else (answer,)
        turns.append(Turn("assistant", parts))
    return Row(tuple(turns), Origin("rows.jsonl", number), task=task, choices=choices)


def hide_scorers(monkeypatch: pytest.MonkeyPatch) -> None:
    """As it is without the extra `train`; None is Python's own mark for what cannot be imported."""
    for name in ("rouge_score", "sacrebleu"):
        monkeypatch.setitem(sys.modules, name, None)


@functools.cache
def jpeg(width: int = 56, height: int = 56) -> bytes:
    encoded = io.BytesIO()
    Image.new("RGB", (width, height), (200, 30, 30)).save(encoded, "JPEG")
    return encoded.getvalue()


def shown_of(row: Row) -> tuple[Shown, ...]:
    """Two red pictures of every medium, which was ten times as large and lasts four seconds."""
    pictures = (Picture(1.0, jpeg()), Picture(3.0, jpeg()))
    return tuple(Shown(pictures, 560, 560, 0.0, 4.0) for _ in row.media)
