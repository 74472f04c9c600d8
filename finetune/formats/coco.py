"""COCO: pictures with boxes of things (instances), with captions, or with both.

    {"images": [{"id": 1, "file_name": "a.jpg", "width": 640, "height": 480}],
     "categories": [{"id": 3, "name": "red car"}],
     "annotations": [{"id": 1, "image_id": 1, "category_id": 3, "bbox": [10, 20, 30, 40]},
                     {"id": 2, "image_id": 1, "caption": "A red car stands in the rain."}]}

Each picture and category becomes one question, where its things are, and each caption another.
A box is left, top, width and height in pixels. Boxes of crowds are left out, as in COCO's own
measure. Pictures are looked for beside the file and where COCO keeps them: `annotations/
instances_val2017.json` names those in `val2017/`. A row's number is the picture's, from 1. An image
with `at` seconds is a frame of the video that it names; other tools do not read that.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from finetune.formats.base import Format
from finetune.formats.containers import Record
from finetune.formats.reading import Reading, Source, is_number, named
from finetune.formats.writing import CannotHold, Target, Writing
from finetune.rows import Located, Media, Row, Turn
from vidqa.boxes import Box, question
from vidqa.errors import UsageError

# What a caption is asked for with.
DESCRIBE: Final = "Describe this picture."


def _fits(value: Mapping[str, Any]) -> bool:
    return isinstance(value.get("images"), list) and isinstance(value.get("annotations"), list)


def _read(found: Iterable[Record], source: Source) -> Iterator[Row]:
    document, *more = [*found] or [Record(1, None)]
    if document.fault is not None:
        raise UsageError(f"{source.file}:{document.line}: {document.fault}")
    if more or not isinstance(document.value, dict) or not _fits(document.value):
        raise UsageError(f"{source.file}: is not COCO: it has no lists of images and annotations")
    value = document.value
    source = dataclasses.replace(source, elsewhere=_folders(Path(source.file)))
    names = {_key(one.get("id")): one.get("name") for one in _objects(value.get("categories"))}
    by_image: dict[Any, list[Mapping[str, Any]]] = {}
    for one in _objects(value["annotations"]):
        by_image.setdefault(_key(one.get("image_id")), []).append(one)
    for number, image in enumerate(_objects(value["images"]), 1):
        yield from _rows(number, image, by_image.pop(_key(image.get("id")), []), names, source)
    for unknown, ones in by_image.items():
        reading = _reading(0, source)
        reading.fault(f"{len(ones)} annotations are of image {unknown!r}, which is not listed")
        yield reading.row(())


def _objects(value: Any) -> list[Mapping[str, Any]]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def _key(value: Any) -> Any:
    """An id as it is, if it can be one."""
    return value if isinstance(value, str | int | float | None) else named(value)


def _folders(path: Path) -> tuple[Path, ...]:
    """Where COCO's own archives put the pictures that this file is about."""
    split = re.sub(r"^(?:instances|captions|person_keypoints)_", "", path.stem)
    return tuple(
        parent / name for parent in (path.parent, path.parent.parent) for name in (split, "images")
    )


def _reading(number: int, source: Source) -> Reading:
    return Reading(Record(number, {}), source)


def _rows(
    number: int,
    image: Mapping[str, Any],
    annotations: Sequence[Mapping[str, Any]],
    names: Mapping[Any, Any],
    source: Source,
) -> Iterator[Row]:
    groups: dict[Any, list[Mapping[str, Any]]] = {}
    for one in annotations:
        if isinstance(one.get("caption"), str):
            yield _caption(_reading(number, source), image, one["caption"])
        elif "bbox" in one and not one.get("iscrowd"):
            groups.setdefault(_key(one.get("category_id")), []).append(one)
    for category, ones in groups.items():
        yield _boxes(_reading(number, source), image, names.get(category, category), ones)


def _medium(reading: Reading, image: Mapping[str, Any]) -> tuple[Media, ...]:
    found = reading.medium("image", {"path": image.get("file_name"), "at": image.get("at")})
    return () if found is None else (found,)


def _caption(reading: Reading, image: Mapping[str, Any], caption: str) -> Row:
    turns = (
        Turn("user", (*_medium(reading, image), DESCRIBE)),
        Turn("assistant", (caption.strip(),) if caption.strip() else ()),
    )
    return dataclasses.replace(reading.row(turns), task="caption")


def _boxes(
    reading: Reading, image: Mapping[str, Any], name: Any, ones: Sequence[Mapping[str, Any]]
) -> Row:
    things = []
    for one in ones:
        sides = one["bbox"]
        if not (isinstance(sides, list) and len(sides) == 4 and all(map(is_number, sides))):
            reading.fault(f"bbox is {named(sides)}, not left, top, width and height")
            continue
        left, top, width, height = sides
        things.append((str(name), Box(left, top, left + width, top + height, "pixel")))
    if not isinstance(name, str):
        reading.fault(f"category {name!r} is not listed")
    turns = (
        Turn("user", (*_medium(reading, image), question(str(name)))),
        Turn("assistant", (Located(tuple(things)),)),
    )
    return dataclasses.replace(reading.row(turns), task="box")


# Writing


def _write(rows: Sequence[Row], target: Target) -> Sequence[Mapping[str, Any]]:
    if target.path.suffix.lower() != ".json":
        raise UsageError(f"{target.path}: COCO is one JSON object; end the name in .json")
    made = _Document()
    for row in rows:
        try:
            made.add(Writing(row, target))
        except CannotHold as reason:
            target.note(row.origin, f"left out: {reason}")
    return [
        {
            "images": list(made.images.values()),
            "categories": [{"id": n, "name": name} for name, n in made.categories.items()],
            "annotations": made.annotations,
        }
    ]


class _Document:
    def __init__(self) -> None:
        self.images: dict[Media, dict[str, Any]] = {}
        self.categories: dict[str, int] = {}
        self.annotations: list[dict[str, Any]] = []

    def add(self, writing: Writing) -> None:
        medium, asked, answer = _one_question(writing)
        if isinstance(answer, Located):
            self._add_boxes(writing, medium, asked, answer)
        else:
            if asked != DESCRIBE:
                writing.note(f"the question is not written; it is read as {DESCRIBE!r}")
            self._annotate(writing, medium, {"caption": answer})
        if writing.row.id is not None or writing.row.extra or writing.row.choices:
            writing.note("not written: id, choices and fields of the row")

    def _add_boxes(self, writing: Writing, medium: Media, asked: str, answer: Located) -> None:
        names = {name for name, _ in answer.things}
        if len(names) != 1:
            raise CannotHold("it names several things; a question of COCO's is of one category")
        (name,) = names
        if asked != question(name):
            writing.note(f"the question is not written; it is read as {question(name)!r}")
        width, height = writing.size(0)
        category = self.categories.setdefault(name, len(self.categories) + 1)
        for _, box in answer.things:
            left, top, right, bottom = writing.fractions(box, 0)
            if box.unit == "pixel":
                sides = [box.left, box.top, box.right - box.left, box.bottom - box.top]
            else:
                sides = [
                    left * width, top * height, (right - left) * width, (bottom - top) * height
                ]  # fmt: skip
            self._annotate(
                writing,
                medium,
                {"category_id": category, "bbox": sides, "area": sides[2] * sides[3], "iscrowd": 0},
            )

    def _annotate(self, writing: Writing, medium: Media, what: Mapping[str, Any]) -> None:
        image = self.images.get(medium)
        if image is None:
            width, height = writing.size(0)
            image = {
                "id": len(self.images) + 1,
                "file_name": writing.target.name(medium.paths[0]),
                "width": width,
                "height": height,
            }
            if medium.at_seconds is not None:
                image["at"] = medium.at_seconds
                writing.note("a frame of a video as a picture has `at`, which only vidqa reads")
            self.images[medium] = image
        number = len(self.annotations) + 1
        self.annotations.append({"id": number, "image_id": image["id"], **what})


def _one_question(writing: Writing) -> tuple[Media, str, str | Located]:
    """A row's picture, what is asked, and the answer."""
    system, turns = writing.system()
    if system or [turn.role for turn in turns] != ["user", "assistant"]:
        raise CannotHold("it is not one question with its answer")
    asked, answer = turns
    match asked.parts, answer.parts:
        case (Media() as medium, str(text)), (str() | Located() as said,):
            if medium.kind == "image":
                return medium, text, said
    raise CannotHold("it is not a picture, a question, and a caption or boxes")


COCO = Format("coco", "COCO: instances and captions", _fits, _read, _write)
