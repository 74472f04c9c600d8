"""What all formats share when they are written: texts with placeholders, media, fields.

A format says what it cannot hold: a row that would come out as another one is left out
(`CannotHold`), and where only vidqa would understand what is written, that is noted.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from finetune.formats import marks
from finetune.formats.pictures import size_of
from finetune.formats.reading import PLACEHOLDERS, TIMES, is_address
from finetune.rows import Boxed, Located, Media, Origin, Part, Problem, Ref, Row, Turn
from vidqa.boxes import Box

# ms-swift's, and only there.
OBJECT_MARKS: Final = ("<ref-object>", "<bbox>")

_ONLY_VIDQA: Final = {
    "start_seconds": "the start of a part of a video is written as `start`",
    "end_seconds": "the end of a part of a video is written as `end`",
    "at_seconds": "a frame of a video as a picture is written as `at`",
    "fps": "the rate of single frames is written as `fps`",
}


class CannotHold(Exception):
    """Why a format has no place for a row, in words that follow `left out: `."""


@dataclass
class Target:
    """The file that is written, and what its reader will not find in it.

    `beside` are texts by file name, which tell of the file and are written to its folder after it.
    """

    path: Path
    problems: list[Problem] = field(default_factory=list)
    beside: dict[str, str] = field(default_factory=dict)

    def name(self, path: str) -> str:
        """A path for the file: relative to its folder where it lies below it."""
        folder = os.path.abspath(self.path.parent)
        if is_address(path) or not os.path.isabs(path):
            return path
        relative = os.path.relpath(path, folder)
        return path if relative.startswith(os.pardir) else relative

    def note(self, origin: Origin, text: str) -> None:
        self.problems.append(Problem(origin, text))


def each(
    rows: Sequence[Row], target: Target, write: Callable[[Writing], dict[str, Any]]
) -> list[dict[str, Any]]:
    """The records of the rows that can be held; the others are noted."""
    found = []
    for row in rows:
        try:
            found.append(write(Writing(row, target)))
        except CannotHold as reason:
            target.note(row.origin, f"left out: {reason}")
    return found


class Writing:
    """One row on its way to be a record."""

    def __init__(self, row: Row, target: Target) -> None:
        if row.faults:
            raise CannotHold(row.faults[0])
        self.row = row
        self.target = target
        self.media = row.media

    def note(self, text: str) -> None:
        self.target.note(self.row.origin, text)

    def paths(self, medium: Media) -> str | list[str]:
        """As every tool has it: a path, or the list of a video's frames."""
        names = [self.target.name(path) for path in medium.paths]
        return names[0] if len(names) == 1 else names

    def lists(self) -> dict[str, Any]:
        """`videos` and `images`, those that the row has."""
        found: dict[str, Any] = {}
        for medium in self.media:
            found.setdefault(f"{medium.kind}s", []).append(self.paths(medium))
        return found

    def fields(self, *known: str, times: bool = True) -> dict[str, Any]:
        """What stands beside the conversation; `known` are the names that the format gives.

        With `times` the row has those of its media: only vidqa reads them there.
        """
        found: dict[str, Any] = {}
        if self.row.id is not None:
            found["id"] = self.row.id
        if self.row.task is not None:
            found["task"] = self.row.task
        if self.row.choices:
            found["choices"] = list(self.row.choices)
        if times:
            found |= self._times()
        if any(medium.texts for medium in self.media):
            self.note("not written: the words that belong to a video (subtitles)")
        for key, value in self.row.extra.items():
            if key in known or key in found:
                self.note(f"not written: the field {key}, whose name means something else here")
            else:
                found[key] = value
        return found

    def _times(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, keys in TIMES.items():
            values = [getattr(medium, name) for medium in self.media]
            if any(value is not None for value in values):
                found[keys[0]] = values[0] if len(values) == 1 else values
                self.note(f"{_ONLY_VIDQA[name]}, which only vidqa reads")
        return found

    # Texts

    def text(self, turn: Turn, *, newlines: bool = False, objects: bool = False) -> str:
        """A turn as one text, with placeholders where its media are.

        `newlines` puts them on lines of their own; with `objects` names and boxes get ms-swift's
        placeholders too, else Qwen2-VL's tokens.
        """
        found = ""
        before: Part | None = None
        for part in turn.parts:
            if newlines and before is not None and Media in (type(before), type(part)):
                found += "\n"
            before = part
            found += f"<{part.kind}>" if isinstance(part, Media) else self._said(part, objects)
        return found

    def _said(self, part: Part, objects: bool) -> str:
        if isinstance(part, str):
            return self._plain(part, objects)
        if objects:
            if isinstance(part, Located):
                return "<ref-object><bbox>" * len(part.things)
            return "<ref-object>" if isinstance(part, Ref) else "<bbox>"
        return self.marked(part)

    def _plain(self, text: str, objects: bool) -> str:
        for mark in (*PLACEHOLDERS, *(OBJECT_MARKS if objects else ())):
            if mark in text:
                raise CannotHold(f"{mark} stands in a text, where it would be taken for a place")
        return text

    def marked(self, part: Part) -> str:
        """Names and boxes as Qwen2-VL's tokens, for formats that know none."""
        if isinstance(part, Ref):
            return marks.ref(part.text)
        if isinstance(part, Boxed):
            return self._box(part.box, part.media)
        assert isinstance(part, Located)
        return "".join(marks.ref(name) + self._box(box, part.media) for name, box in part.things)

    def _box(self, box: Box, number: int) -> str:
        if number != self._picture():
            raise CannotHold("its boxes are in several pictures")
        sides = [1000 * one for one in self.fractions(box, number)]
        if box.unit == "thousandth":
            sides = [box.left, box.top, box.right, box.bottom]
        if any(side != round(side) for side in sides):
            self.note("boxes are rounded to thousandths of the picture's sides")
        return marks.box(*sides)

    def _picture(self) -> int:
        kinds = [medium.kind for medium in self.media]
        return kinds.index("image") if "image" in kinds else 0

    def fractions(self, box: Box, number: int) -> tuple[float, float, float, float]:
        width, height = (1000.0, 1000.0) if box.unit == "thousandth" else (1.0, 1.0)
        if box.unit == "pixel":
            width, height = self.size(number)
        return box.left / width, box.top / height, box.right / width, box.bottom / height

    def size(self, number: int) -> tuple[int, int]:
        """Of the row's medium `number`, in pixels."""
        if not 0 <= number < len(self.media):
            raise CannotHold(f"a box is in medium {number}, and the row has {len(self.media)}")
        size = size_of(self.media[number])
        if size is None:
            raise CannotHold(f"the size of {self.media[number].paths[0]} cannot be told")
        return size

    # Turns

    def system(self) -> tuple[str, tuple[Turn, ...]]:
        """The words of a system turn that comes first, and the other turns."""
        turns = self.row.turns
        if not turns or turns[0].role != "system":
            return "", turns
        return self.text(turns[0]), turns[1:]

    def pairs(self, *, objects: bool = False) -> tuple[str, list[tuple[str, str]]]:
        """The system's words, and questions with their answers."""
        system, turns = self.system()
        asked, answers = turns[::2], turns[1::2]
        roles = {turn.role for turn in asked} | {turn.role for turn in answers}
        if (
            not turns
            or len(asked) != len(answers)
            or roles != {"user", "assistant"}
            or any(turn.role != "user" for turn in asked)
        ):
            raise CannotHold("its turns are not questions, each with its answer")
        if not all(turn.trains for turn in answers):
            self.note("all answers are learned, also those that are only given")
        return system, [
            (self.text(question, objects=objects), self.text(answer, objects=objects))
            for question, answer in zip(asked, answers, strict=True)
        ]

    def messages(
        self, role: str = "role", content: str = "content", **how: bool
    ) -> list[dict[str, Any]]:
        return [
            {role: turn.role, content: self.text(turn, **how), **self.loss(turn)}
            for turn in self.row.turns
        ]

    def loss(self, turn: Turn) -> dict[str, bool]:
        """`loss`, where an answer is not learned: ms-swift and vidqa read it."""
        return {} if turn.trains else {"loss": False}


def joined(parts: Sequence[Part]) -> Iterator[Part]:
    """The same parts, texts that follow each other being one, as texts with placeholders are."""
    text = ""
    for part in parts:
        if isinstance(part, str):
            text += part
            continue
        if text:
            yield text
        text = ""
        yield part
    if text:
        yield text
