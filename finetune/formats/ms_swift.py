"""ms-swift: messages with media and `objects`, and the query and response of its 2.x versions.

    {"messages": [{"role": "user", "content": "<image>Find the <ref-object>"},
                  {"role": "assistant", "content": "<ref-object><bbox>"}], "images": ["a.jpg"],
     "objects": {"ref": ["dog", "dog"], "bbox": [[90, 160, 135, 212]], "bbox_type": "real"}}

    {"query": "<image>Find <ref-object>", "response": "<bbox>", "images": ["a.jpg"],
     "history": [], "objects": "[{\\"caption\\": \\"dog\\", \\"bbox\\": [90, 160, 135, 212],
                                \\"bbox_type\\": \\"real\\", \\"image\\": 0}]"}

Either form of `objects` may be an object or JSON in a string, in either kind of row. `bbox_type` is
real (pixels, also when it is absent), norm1 or norm_1 (fractions), or norm_1000; `image_id` counts
the row's images, from 0. A message with `"loss": false` is not learned. Sources: the project's
docs/source_en/Customization/Custom-dataset.md, and its AutoPreprocessor for other names of fields.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from finetune.formats.alpaca import history
from finetune.formats.base import Format, by_record, by_row, messages_of
from finetune.formats.containers import to_json
from finetune.formats.reading import Objects, Reading, as_value, is_number, named
from finetune.formats.writing import CannotHold, Writing, joined
from finetune.rows import Boxed, Located, Ref, Row
from vidqa.boxes import Box, Unit

_UNITS: Final[dict[str, Unit]] = {
    "real": "pixel",
    "norm1": "fraction",
    "norm_1": "fraction",
    "norm1000": "thousandth",
    "norm_1000": "thousandth",
}
# What ms-swift's own preprocessors take for a question, an answer, the system's words.
_MESSAGES: Final = ("messages", "conversation", "conversations")
_QUERY: Final = ("query", "question", "problem", "prompt", "input", "instruction")
_RESPONSE: Final = ("response", "answer", "output", "target", "completion")
_SYSTEM: Final = ("system", "system_prompt")
_MEDIA: Final = ("videos", "video", "images", "image")


def _fits(value: Mapping[str, Any]) -> bool:
    return bool(messages_of(value, *_MESSAGES))


def _fits_2(value: Mapping[str, Any]) -> bool:
    return any(isinstance(value.get(name), str) for name in _QUERY) and any(
        isinstance(value.get(name), str) for name in _RESPONSE
    )


def _read(reading: Reading) -> Row:
    messages = as_value(reading.take(*_MESSAGES))
    return _finish(reading, _flat(messages))


def _flat(messages: Any) -> Any:
    """ms-swift's ShareGPT has both sides in one object: `{"human": ..., "assistant": ...}`."""
    if not isinstance(messages, list) or not messages or not isinstance(messages[0], dict):
        return messages
    names = [
        (asked, answer)
        for asked in ("human", "user")
        for answer in ("assistant", "gpt", "bot")
        if asked in messages[0] and answer in messages[0]
    ]
    if not names:
        return messages
    roles = zip(names[0], ("user", "assistant"), strict=True)
    sides = list(roles)
    return [
        {"role": role, "content": one.get(name)}
        for one in messages
        if isinstance(one, dict)
        for name, role in sides
    ]


def _read_2(reading: Reading) -> Row:
    messages = [
        *history(reading),
        {"role": "user", "content": reading.text(*_QUERY)},
        {"role": "assistant", "content": reading.text(*_RESPONSE)},
    ]
    return _finish(reading, messages)


def _finish(reading: Reading, messages: Any) -> Row:
    videos = reading.media("video", "videos", "video")
    images = reading.media("image", "images", "image")
    objects = _objects(reading, as_value(reading.take("objects")))
    turns = reading.conversation(messages, videos, images, objects=objects)
    return reading.row(reading.with_system(turns, *_SYSTEM))


def _objects(reading: Reading, value: Any) -> Objects | None:
    if value is None or value == "" or value == {} or value == []:
        return None
    if isinstance(value, list):
        return _objects_2(reading, value)
    if not isinstance(value, dict):
        reading.fault(f"objects is {named(value)}, not an object with ref and bbox")
        return None
    refs, boxes, numbers = (_list(reading, value, name) for name in ("ref", "bbox", "image_id"))
    found = Objects(refs=[str(one) for one in refs])
    for n, sides in enumerate(boxes):
        number = numbers[n] if n < len(numbers) else 0
        found.boxes.append(_boxes(reading, sides, value.get("bbox_type"), number))
    return found


def _list(reading: Reading, value: Mapping[str, Any], name: str) -> list[Any]:
    found = value.get(name) or []
    if isinstance(found, list):
        return found
    reading.fault(f"{name} of objects is {named(found)}, not a list")
    return []


def _objects_2(reading: Reading, value: Sequence[Any]) -> Objects:
    found = Objects()
    for one in value:
        if not isinstance(one, dict):
            reading.fault(f"objects has {named(one)}, not an object with caption and bbox")
            continue
        if (caption := one.get("caption")) is not None:
            found.refs.append(str(caption))
        if (sides := one.get("bbox")) is not None:
            found.boxes.append(_boxes(reading, sides, one.get("bbox_type"), one.get("image") or 0))
    return found


def _boxes(reading: Reading, sides: Any, kind: Any, number: Any) -> list[Boxed]:
    """One box, or in 2.x a list of them."""
    unit = _UNITS.get(kind or "real") if isinstance(kind, str | None) else None
    if unit is None:
        reading.fault(f"bbox_type is {named(kind)}; {', '.join(_UNITS)} are known")
        return []
    if isinstance(sides, list) and sides and all(isinstance(one, list) for one in sides):
        return [found for one in sides for found in _boxes(reading, one, kind, number)]
    whole = isinstance(sides, list) and all(map(is_number, sides))
    if not whole or len(sides) != 4 or not isinstance(number, int):
        what = "a point" if whole and len(sides) == 2 else named(sides)
        reading.fault(f"bbox has {what}; a box is 4 numbers in a list")
        return []
    left, top, right, bottom = map(float, sides)
    return [Boxed(Box(left, top, right, bottom, unit), number)]


# Writing


def _write(writing: Writing) -> dict[str, Any]:
    found: dict[str, Any] = {"messages": writing.messages(objects=True), **writing.lists()}
    refs, boxes = _named_and_boxed(writing)
    if refs or boxes:
        sides, kind = _in_one_unit(writing, boxes)
        objects: dict[str, Any] = {"ref": refs, "bbox": sides, "bbox_type": kind}
        if numbers := _images(writing, boxes):
            objects["image_id"] = numbers
        found["objects"] = objects
    return found | writing.fields(*_MESSAGES, *_MEDIA, *_SYSTEM, "objects")


def _write_2(writing: Writing) -> dict[str, Any]:
    system, pairs = writing.pairs(objects=True)
    *before, (question, answer) = pairs
    found: dict[str, Any] = {"query": question, "response": answer}
    if system:
        found["system"] = system
    if before:
        found["history"] = [list(pair) for pair in before]
    refs, boxes = _named_and_boxed(writing)
    if refs or boxes:
        sides, kind = _in_one_unit(writing, boxes)
        numbers = _images(writing, boxes) or [0] * len(boxes)
        objects: list[dict[str, Any]] = [{} for _ in range(max(len(refs), len(boxes)))]
        for one, name in zip(objects, refs, strict=False):
            one["caption"] = name
        kind = {"norm1": "norm_1"}.get(kind, kind)
        for one, side, number in zip(objects, sides, numbers, strict=False):
            one |= {"bbox": side, "bbox_type": kind, "image": number}
        found["objects"] = to_json(objects)
    known = (*_QUERY, *_RESPONSE, *_SYSTEM, *_MEDIA, "history", "objects")
    return found | writing.lists() | writing.fields(*known)


def _named_and_boxed(writing: Writing) -> tuple[list[str], list[tuple[Box, int]]]:
    refs: list[str] = []
    boxes: list[tuple[Box, int]] = []
    for turn in writing.row.turns:
        for part in joined(turn.parts):
            if isinstance(part, Ref):
                refs.append(part.text)
            elif isinstance(part, Boxed):
                boxes.append((part.box, part.media))
            elif isinstance(part, Located):
                refs += [name for name, _ in part.things]
                boxes += [(box, part.media) for _, box in part.things]
    return refs, boxes


def _in_one_unit(
    writing: Writing, boxes: Sequence[tuple[Box, int]]
) -> tuple[list[list[float]], str]:
    if {box.unit for box, _ in boxes} <= {"pixel"}:
        return [[box.left, box.top, box.right, box.bottom] for box, _ in boxes], "real"
    return [list(writing.fractions(box, number)) for box, number in boxes], "norm1"


def _images(writing: Writing, boxes: Sequence[tuple[Box, int]]) -> list[int]:
    """Which of the row's images each box is in; nothing when all are in the first."""
    images = [n for n, medium in enumerate(writing.media) if medium.kind == "image"]
    found = []
    for _, number in boxes:
        if number not in images:
            raise CannotHold(f"a box is in medium {number}, which is no image")
        found.append(images.index(number))
    return found if any(found) else []


MS_SWIFT = Format(
    "ms-swift",
    "ms-swift: messages with <video>, <image>, <ref-object>, <bbox>",
    _fits,
    by_record(_read),
    by_row(_write),
)
MS_SWIFT_2 = Format(
    "ms-swift-2",
    "ms-swift 2.x: query, response, history; also tables of question and answer",
    _fits_2,
    by_record(_read_2),
    by_row(_write_2),
)
