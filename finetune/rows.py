"""The records of training data: what every format is read into, and written from.

    Row(turns=(Turn("user", (Media("video", ("a.mp4",)), "Who opens the door?")),
               Turn("assistant", ("The red star does.",))),
        origin=Origin("train.jsonl", 3))

A row is a conversation. What it says is a sequence of parts: plain text, media where they stand,
names and boxes of things. Boxes keep the unit that the file gave them in: how a box is written
depends on the base model and on the picture's size, which are known only when a row is encoded.
Nothing here reads a file, and nothing is checked: `check` reports what is wrong with a row, with
its file and line, and a record that refused to be made could not be reported.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from vidqa.boxes import Box
from vidqa.types import TextSpan

Role = Literal["system", "user", "assistant"]
Task = Literal["answer", "choice", "caption", "box", "span"]


@dataclass(frozen=True, slots=True)
class Media:
    """A video, a part of one, or a picture.

    `paths` is one file, or for a video given as single frames all their files in order, which were
    taken at `fps` frames a second. `start_seconds` and `end_seconds` bound the part of a video that
    is meant; None leaves that side open. `at_seconds` makes a picture (kind "image") of the frame
    of a video that is on the screen then. `texts` are words that belong to the part, such as
    subtitles, with times of the whole video.
    """

    kind: Literal["video", "image"]
    paths: tuple[str, ...]
    start_seconds: float | None = None
    end_seconds: float | None = None
    at_seconds: float | None = None
    fps: float | None = None
    texts: tuple[TextSpan, ...] = ()


@dataclass(frozen=True, slots=True)
class Ref:
    """The name of a thing, marked as such: `<ref-object>` of ms-swift."""

    text: str


@dataclass(frozen=True, slots=True)
class Boxed:
    """One box where it stands in a text; `media` counts the row's media from 0."""

    box: Box
    media: int = 0


@dataclass(frozen=True, slots=True)
class Located:
    """A whole answer to "where is ...": things with their boxes, as the base model writes them."""

    things: tuple[tuple[str, Box], ...]
    media: int = 0


Part = str | Media | Ref | Boxed | Located


@dataclass(frozen=True, slots=True)
class Turn:
    """One message. `trains` is False for an assistant's turn that is given, not to be learned."""

    role: Role
    parts: tuple[Part, ...]
    trains: bool = True


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a row was read: the file as the user named it, and its line (or record) from 1."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True, slots=True)
class Row:
    """One conversation about media.

    `task` says how answers are scored, None leaves it to their form. `choices` are what a question
    of several offers. `extra` are fields of the file that mean nothing here, kept for whoever
    converts it. `faults` are what could not be read: a row that has any may be incomplete, or have
    no turns at all, and is there to be reported, not to be trained on.
    """

    turns: tuple[Turn, ...]
    origin: Origin
    id: str | None = None
    task: Task | None = None
    choices: tuple[str, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)
    faults: tuple[str, ...] = ()

    @property
    def media(self) -> tuple[Media, ...]:
        """All media, in the order in which they stand."""
        return tuple(part for part in self.parts if isinstance(part, Media))

    @property
    def parts(self) -> Iterator[Part]:
        return (part for turn in self.turns for part in turn.parts)


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with a row, or what became of it, in one line for a person."""

    origin: Origin
    message: str

    def __str__(self) -> str:
        return f"{self.origin}: {self.message}"
