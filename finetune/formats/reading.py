"""What all formats share when they are read: fields, media, conversations.

A format takes the fields it knows out of a record and says what the turns are; whatever is wrong
is noted in the row and never raised, so that `check` can name all of it with its line. Fields that
no format has, and every one may carry:

    id, task, choices                as in `Row`
    start, end                       the part of a video that is meant, in seconds or as 1:02:03.5
    at                               the time of the frame that is meant, of a video given as image
    fps                              of a video given as single frames
                                     one number for all, or one for each of the row's media
"""

from __future__ import annotations

import ast
import dataclasses
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, get_args

from finetune.formats import marks
from finetune.formats.containers import Record
from finetune.formats.pictures import frame_files, is_frames, is_picture
from finetune.rows import Boxed, Media, Origin, Part, Ref, Role, Row, Task, Turn
from vidqa.errors import VideoError

Kind = Literal["video", "image"]

PLACEHOLDERS: Final[dict[str, Kind]] = {"<video>": "video", "<image>": "image"}

# The names that each tool gives to the same thing; the first is ours.
TIMES: Final = {
    "start_seconds": ("start", "start_seconds", "video_start", "start_time"),
    "end_seconds": ("end", "end_seconds", "video_end", "end_time"),
    "at_seconds": ("at", "at_seconds"),
    "fps": ("fps", "sample_fps"),
}
ROLES: Final[dict[str, Role]] = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
}
ROLE_KEYS: Final = ("role", "from")
CONTENT_KEYS: Final = ("content", "value")

# No video is so long, and whole numbers from here on may be too long for a float.
_ENDLESS_SECONDS: Final = 1e12
_CLOCK = re.compile(r"(?:(?:(\d+):)?(\d{1,2}):)?(\d+(?:\.\d+)?)")
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*://|data:", re.IGNORECASE)


@dataclass(frozen=True)
class Source:
    """A data file, as the user named it, and where the media that it names are looked for."""

    file: str
    media_dir: Path | None = None
    elsewhere: tuple[Path, ...] = ()

    def resolve(self, path: str) -> str:
        """Absolute; relative paths are the data file's folder's, or where else there is a file.

        That is where the tools look: LLaMA-Factory in `--media_dir`, by default the folder of the
        data, then the working directory; ms-swift in $ROOT_IMAGE_DIR and the working directory.
        """
        path = path.removeprefix("file://")
        if _ADDRESS.match(path):
            return path
        beside = Path(self.file).parent
        root = os.environ.get("ROOT_IMAGE_DIR")
        given = [self.media_dir] if self.media_dir else []
        folders = [*given, beside, *self.elsewhere, *([Path(root)] if root else []), Path()]
        for folder in folders:
            found = os.path.abspath(folder / path)
            if os.path.exists(found):
                return found
        return os.path.abspath((given or [beside])[0] / path)


def is_address(path: str) -> bool:
    return bool(_ADDRESS.match(path))


def as_value(text: Any) -> Any:
    """What a cell of CSV or Parquet means that holds JSON, or a list as Python prints it."""
    if not isinstance(text, str) or not text.lstrip().startswith(("[", "{")):
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text


def is_number(value: Any) -> bool:
    """Whether it is a number that a float holds: JSON's are of any length."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return isinstance(value, float) or value.bit_length() < 1024


def seconds(value: Any) -> float | None:
    """A time as a number, or written as 3.5, 1:03.5 or 1:02:03.5; None for what is none."""
    if is_number(value):
        return float(value) if abs(value) < _ENDLESS_SECONDS else None  # nor is NaN a time
    found = _CLOCK.fullmatch(value.strip()) if isinstance(value, str) else None
    if found is None:
        return None
    hours, minutes, rest = found.groups(default="0")
    return int(hours) * 3600 + int(minutes) * 60 + float(rest)


@dataclass
class Tags:
    """What a file calls its roles, and where in a message they stand."""

    roles: Mapping[str, Role] = field(default_factory=lambda: ROLES)
    role_keys: Sequence[str] = ROLE_KEYS
    content_keys: Sequence[str] = CONTENT_KEYS


@dataclass
class Objects:
    """ms-swift's `objects`: what `<ref-object>` and `<bbox>` stand for, each list in its order.

    `media` of the boxes counts the row's images, not all of its media.
    """

    refs: list[str] = field(default_factory=list)
    boxes: list[list[Boxed]] = field(default_factory=list)


class Reading:
    """One record on its way to be a row."""

    def __init__(self, record: Record, source: Source) -> None:
        self.source = source
        self.origin = Origin(source.file, record.line)
        self.faults: list[str] = []
        self.fields: dict[str, Any] = {}
        if record.fault is not None:
            self.faults.append(record.fault)
        elif isinstance(record.value, dict):
            self.fields = dict(record.value)
        else:
            self.faults.append(f"is {named(record.value)}, not an object with fields")

    def fault(self, text: str) -> None:
        self.faults.append(text)

    def take(self, *names: str) -> Any:
        """The first of these fields that is there and not null, taken out of the record."""
        found = None
        for name in names:
            if (value := self.fields.pop(name, None)) is not None and found is None:
                found = value
        return found

    def text(self, *names: str) -> str:
        value = self.take(*names)
        if value is None:
            return ""
        if not isinstance(value, str):
            self.fault(f"{names[0]} is {named(value)}, not a text")
            return ""
        return value

    def media(self, kind: Kind, *names: str) -> list[Media]:
        """The media that a field lists: paths, folders of frames, lists of frames, or objects."""
        value = as_value(self.take(*names))
        if value is None or value == "":
            return []
        entries = value if isinstance(value, list) else [value]
        if kind == "video" and _are_frames(entries):
            entries = [entries]
        found = [self.medium(kind, entry) for entry in entries]
        return [one for one in found if one is not None]

    def medium(self, kind: Kind, entry: Any) -> Media | None:
        if isinstance(entry, str) and entry:
            return Media(kind, self._files(kind, entry))
        if isinstance(entry, dict):
            return self.described(kind, entry)
        if isinstance(entry, list) and entry and all(isinstance(one, str) for one in entry):
            if kind == "video":
                return Media(kind, tuple(self.source.resolve(one) for one in entry))
            self.fault(f"an image is a list of {len(entry)} files; frames are a video")
            return None
        self.fault(f"{_article(kind)} is {named(entry)}, not a path")
        return None

    def _files(self, kind: Kind, entry: str) -> tuple[str, ...]:
        path = self.source.resolve(entry)
        if kind == "video" and os.path.isdir(path):
            with suppress(VideoError):  # `check` tells of it
                return frame_files(path)
        return (path,)

    def described(self, kind: Kind, entry: Mapping[str, Any]) -> Media | None:
        """A medium as an object: `{"video": path, "start": 3}`, or `{"url": path}`."""
        path = next((entry[key] for key in (kind, "path", "url") if entry.get(key)), None)
        if path is None:
            self.fault(
                f"{_article(kind)} is inside the data file; write it to a file of its own"
                if entry.get("bytes")
                else f"{_article(kind)} has no path"
            )
            return None
        medium = self.medium(kind, path)
        return medium and self._timed(medium, entry)

    def _timed(self, medium: Media, entry: Mapping[str, Any]) -> Media:
        given: dict[str, float] = {}
        for name, keys in TIMES.items():
            value = next((entry[key] for key in keys if entry.get(key) is not None), None)
            if value is None or (name == "fps" and not is_frames(medium)):
                continue  # of a file, it is a wish how many frames to take, as qwen-vl-utils has it
            if (number := seconds(value)) is None:
                self.fault(f"{keys[0]} is {named(value)}, not a time")
            else:
                given[name] = number
        return dataclasses.replace(medium, **given)  # type: ignore[arg-type]

    # Conversations

    def conversation(
        self,
        messages: Any,
        videos: Sequence[Media] = (),
        images: Sequence[Media] = (),
        *,
        tags: Tags | None = None,
        newlines: bool = False,
        objects: Objects | None = None,
    ) -> list[Turn]:
        """The turns of a list of messages.

        `videos` and `images` are put where the texts have placeholders, or before the first
        question when there are none; with `newlines` one line's end on each side belongs to the
        placeholder. `objects` fill `<ref-object>` and `<bbox>`.
        """
        messages = as_value(messages)
        if not isinstance(messages, list) or not messages:
            self.fault("has no list of messages")
            return []
        tags = tags or Tags()
        pool: dict[Kind, list[Media]] = {"video": list(videos), "image": list(images)}
        placing = _Placing(self, pool, newlines, objects)
        placing.prepare([_content(one, tags) for one in messages if isinstance(one, dict)])
        turns = [turn for one in messages if (turn := self._turn(one, tags, placing)) is not None]
        placing.finish()
        return turns

    def _turn(self, message: Any, tags: Tags, placing: _Placing) -> Turn | None:
        if not isinstance(message, dict):
            self.fault(f"a message is {named(message)}, not an object")
            return None
        name = next((message[key] for key in tags.role_keys if key in message), None)
        role = tags.roles.get(name) if isinstance(name, str) else None
        if role is None:
            self.fault(f"role {name!r} is unknown; {', '.join(sorted(set(tags.roles)))} are known")
            return None
        parts = placing.parts(role, _content(message, tags))
        return Turn(role, parts, self.trains(message.get("loss")))

    def trains(self, loss: Any) -> bool:
        if loss is None or loss in (0, 1):
            return loss is None or bool(loss)
        self.fault(f"a loss of {loss!r}; a message is learned (true) or not (false)")
        return True

    def with_system(self, turns: list[Turn], *names: str) -> list[Turn]:
        """The turns after the text of a field that holds the system's words, if it has any."""
        text = self.text(*names)
        return [Turn("system", (text,)), *turns] if text else turns

    # Rows

    def row(self, turns: Sequence[Turn]) -> Row:
        timed = self._row_times(list(turns))
        number = self.take("id")
        return Row(
            turns=tuple(timed),
            origin=self.origin,
            id=None if number is None else str(number),
            task=self._task(),
            choices=self._choices(),
            extra=self.fields,
            faults=tuple(self.faults),
        )

    def _task(self) -> Task | None:
        task = self.fields.get("task")
        if task not in get_args(Task):
            return None
        del self.fields["task"]
        return task

    def _choices(self) -> tuple[str, ...]:
        choices = as_value(self.fields.get("choices"))
        if not isinstance(choices, list) or not all(isinstance(one, str) for one in choices):
            return ()
        del self.fields["choices"]
        return tuple(choices)

    def _row_times(self, turns: list[Turn]) -> list[Turn]:
        media = [part for turn in turns for part in turn.parts if isinstance(part, Media)]
        if not media:
            return turns
        changes: list[dict[str, float]] = [{} for _ in media]
        for name, keys in TIMES.items():
            wanted = [_takes(name, medium) for medium in media]
            key = next((key for key in keys if self.fields.get(key) is not None), None)
            if key is None or not any(wanted):
                continue
            value = as_value(self.fields.pop(key))
            values = value if isinstance(value, list) else [value if w else None for w in wanted]
            if len(values) != len(media):
                self.fault(f"{key} has {len(values)} times, and the row {len(media)} media")
                continue
            for change, one in zip(changes, values, strict=True):
                if one is None:
                    continue
                if (number := seconds(one)) is None:
                    self.fault(f"{key} is {named(one)}, not a time")
                else:
                    change[name] = number
        found = iter(changes)
        return [
            dataclasses.replace(
                turn,
                parts=tuple(
                    dataclasses.replace(part, **next(found))  # type: ignore[arg-type]
                    if isinstance(part, Media)
                    else part
                    for part in turn.parts
                ),
            )
            for turn in turns
        ]


def _takes(name: str, medium: Media) -> bool:
    """Whether a field of the row can mean this medium; a rate means frames alone."""
    if name == "fps":
        return is_frames(medium)
    return (medium.kind == "image") == (name == "at_seconds")


def _content(message: Mapping[str, Any], tags: Tags) -> Any:
    return next((message[key] for key in tags.content_keys if message.get(key) is not None), "")


def _are_frames(entries: Sequence[Any]) -> bool:
    return len(entries) > 1 and all(isinstance(one, str) and is_picture(one) for one in entries)


def _article(kind: str) -> str:
    return f"an {kind}" if kind == "image" else f"a {kind}"


def named(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."


class _Placing:
    """Puts media and objects where a row's texts have their placeholders."""

    def __init__(
        self,
        reading: Reading,
        pool: dict[Kind, list[Media]],
        newlines: bool,
        objects: Objects | None,
    ) -> None:
        self._reading = reading
        self._pool = pool
        self._objects = objects
        names = "|".join(PLACEHOLDERS)
        self._split = re.compile(rf"\n?({names})\n?" if newlines else f"({names})")
        self._given = {kind: len(media) for kind, media in pool.items()}
        self._wanted = dict.fromkeys(pool, 0)
        self._first: list[Media] = []
        self._refs = iter(objects.refs if objects else ())
        self._boxes = iter(objects.boxes if objects else ())
        self._counts = {"<ref-object>": 0, "<bbox>": 0}
        self._images: list[int] = []
        self._media = 0

    def prepare(self, contents: Sequence[Any]) -> None:
        """Looks at all texts: media without any placeholder go before the first question."""
        for content in contents:
            for kind in self._kinds(content):
                self._wanted[kind] += 1
        for kind, media in self._pool.items():
            if not self._wanted[kind]:
                self._first += media
                media.clear()
        inline = [kind for content in contents for kind in self._inline(content)]
        order = [one.kind for one in self._first] + inline
        self._images = [n for n, kind in enumerate(order) if kind == "image"]
        self._media = len(order)

    def _image(self, number: int) -> int:
        """Which of all media the image of this number is; one that is not there, if there is none.

        A text's boxes are in the first image; without any, in the medium that there is.
        """
        if 0 <= number < len(self._images):
            return self._images[number]
        return number if not self._images else self._media + number

    def _kinds(self, content: Any) -> Iterator[Kind]:
        if isinstance(content, str):
            yield from (PLACEHOLDERS[one] for one in re.findall("|".join(PLACEHOLDERS), content))
        elif isinstance(content, list):
            for part in content:
                kind = _kind_of(part)
                if kind is not None and _path_of(part, kind) is None:
                    yield kind

    def _inline(self, content: Any) -> Iterator[Kind]:
        if isinstance(content, str):
            yield from self._kinds(content)
        elif isinstance(content, list):
            yield from (kind for part in content if (kind := _kind_of(part)) is not None)

    def finish(self) -> None:
        for kind, wanted in self._wanted.items():
            given = self._given[kind]
            if wanted and wanted != given:
                self._reading.fault(f"{wanted} <{kind}> in the texts, and {given} {kind}s")
        for mark, wanted in self._counts.items():
            if self._objects is None:
                continue
            given = len(self._objects.refs if mark == "<ref-object>" else self._objects.boxes)
            # A name that no text asks for is common: ms-swift's own examples have them.
            if wanted > given or (wanted < given and mark == "<bbox>"):
                self._reading.fault(f"{wanted} {mark} in the texts, and {given} in objects")
        if self._first:
            self._reading.fault("has media, and no question that they could stand before")

    def parts(self, role: Role, content: Any) -> tuple[Part, ...]:
        found: list[Part] = []
        if role == "user" and self._first:
            found += self._first
            self._first = []
        if isinstance(content, str):
            found += self._from_text(content)
        elif isinstance(content, list):
            for part in content:
                found += self._from_part(part)
        else:
            self._reading.fault(f"a message's content is {named(content)}, not a text")
        return marks.as_answer(found) if role == "assistant" else tuple(found)

    def _from_text(self, text: str) -> list[Part]:
        found: list[Part] = []
        for piece in self._split.split(text):
            if piece in PLACEHOLDERS:
                media = self._pool[PLACEHOLDERS[piece]]
                if media:
                    found.append(media.pop(0))
            elif piece:
                found += self._with_objects(piece)
        return found

    def _with_objects(self, text: str) -> Iterator[Part]:
        if self._objects is None:
            yield from marks.parts(text, self._image(0))
            return
        for piece in re.split("(<ref-object>|<bbox>)", text):
            if piece == "<ref-object>":
                self._counts[piece] += 1
                yield from (Ref(name) for name in [next(self._refs, None)] if name is not None)
            elif piece == "<bbox>":
                self._counts[piece] += 1
                for one in next(self._boxes, ()):
                    yield Boxed(one.box, self._image(one.media))
            else:
                yield from marks.parts(piece, self._image(0))

    def _from_part(self, part: Any) -> list[Part]:
        kind = _kind_of(part)
        if kind is not None:
            return self._medium(kind, part)
        if isinstance(part, str):
            return list(marks.parts(part, self._image(0)))
        if isinstance(part, dict) and isinstance(part.get("text"), str):
            return list(marks.parts(part["text"], self._image(0)))
        self._reading.fault(f"a part of a message is {named(part)}; text, video, image are known")
        return []

    def _medium(self, kind: Kind, part: Mapping[str, Any]) -> list[Part]:
        path = _path_of(part, kind)
        if path is None:
            media = self._pool[kind]
            return [media.pop(0)] if media else []
        found = self._reading.described(kind, {**part, "path": path, kind: None})
        return [] if found is None else [found]


def _kind_of(part: Any) -> Kind | None:
    """`{"type": "video"}`, `{"type": "image_url"}`, or a part that only has the key."""
    if not isinstance(part, dict):
        return None
    name = part.get("type") or next((key for key in ("video", "image") if part.get(key)), None)
    return {"video": "video", "image": "image", "video_url": "video", "image_url": "image"}.get(
        name if isinstance(name, str) else ""
    )  # type: ignore[return-value]


def _path_of(part: Mapping[str, Any], kind: Kind) -> Any:
    value = next((part[key] for key in (kind, f"{kind}_url", "path", "url") if part.get(key)), None)
    return value.get("url") or value.get("path") if isinstance(value, dict) else value
