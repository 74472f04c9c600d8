"""Boxes around things: the record, and how each family of models writes and is read.

    Box(0.1, 0.2, 0.5, 0.6).as_pixels(640, 480)                 (64.0, 96.0, 320.0, 288.0)
    family_of("qwen2_vl")                                       "qwen2-vl"
    write_located("qwen2-vl", [("the dog", box)], (640, 480), (644, 476))
    parse("qwen2-vl", reply, (644, 476))                        [("the dog", Box(0.1, ...))]

    qwen2-vl    <|object_ref_start|>the dog<|object_ref_end|>
                <|box_start|>(100,200),(500,600)<|box_end|>, on one line; in thousandths of the
                sides, [0, 1000), so 999 is the most (arXiv 2409.12191, section 2.2)
    qwen2.5-vl  JSON, [{"bbox_2d": [64, 95, 322, 286], "label": "the dog"}], in pixels of the
                picture as the model sees it after its own resizing (arXiv 2502.13923, section 2.2)
    qwen3-vl    the same JSON in thousandths of the sides, 0 to 1000, both included

Sizes are (width, height) in pixels. `original_size` is that of the picture in which boxes given in
pixels were measured, `shown_size` that of the picture after the model's own resizing: `resized`.
Only qwen2.5-vl depends on the latter. Nothing here reads a file or talks to a model.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

from vidqa.errors import UsageError

Unit = Literal["fraction", "pixel", "thousandth"]
Family = Literal["qwen2-vl", "qwen2.5-vl", "qwen3-vl"]
Size = tuple[int, int]
ShownSize = Callable[[int, int], Size]

FAMILIES: Final[tuple[Family, ...]] = get_args(Family)

_FAMILY_OF_TYPE: Final[dict[str, Family]] = {
    "qwen2_vl": "qwen2-vl",
    "qwen2_5_vl": "qwen2.5-vl",
    "qwen3_vl": "qwen3-vl",
    "qwen3_vl_moe": "qwen3-vl",
    # Qwen3.5 sees by itself, and kept Qwen3-VL's boxes.
    "qwen3_5": "qwen3-vl",
    "qwen3_5_moe": "qwen3-vl",
}
_FAMILY_IN_NAME: Final[tuple[tuple[re.Pattern[str], Family], ...]] = (
    (re.compile(r"qwen[-_ ]?2[-._]5[-_ ]?vl", re.IGNORECASE), "qwen2.5-vl"),
    (re.compile(r"qwen[-_ ]?2[-_ ]?vl", re.IGNORECASE), "qwen2-vl"),
    (re.compile(r"qwen[-_ ]?3[-_ ]?vl|qwen[-_ ]?3[-._]5", re.IGNORECASE), "qwen3-vl"),
)

_THOUSAND = 1000.0
_LAST_OF_QWEN2 = 999  # the paper's range is half-open

# Published limits of Qwen2-VL's and Qwen2.5-VL's processors: 4 and 16,384 tokens.
MIN_PIXELS = 56 * 56
MAX_PIXELS = 28 * 28 * 16384


@dataclass(frozen=True, slots=True)
class Box:
    """A box in a picture, from its left top corner: fractions of its sides, pixels or 0 to 1000."""

    left: float
    top: float
    right: float
    bottom: float
    unit: Unit = "fraction"

    @property
    def sides(self) -> tuple[float, float, float, float]:
        """(left, top, right, bottom) in its own unit."""
        return self.left, self.top, self.right, self.bottom

    def as_fractions(self, width: float, height: float) -> Box:
        """The same box in fractions of the sides of a picture of that size, in pixels."""
        if self.unit == "fraction":
            return self
        x, y = (width, height) if self.unit == "pixel" else (_THOUSAND, _THOUSAND)
        return Box(self.left / x, self.top / y, self.right / x, self.bottom / y)

    def as_pixels(self, width: float, height: float) -> tuple[float, float, float, float]:
        """(left, top, right, bottom) in a picture of that size, in pixels that are not rounded."""
        if self.unit == "pixel":
            return self.sides
        one = self.as_fractions(width, height)
        return one.left * width, one.top * height, one.right * width, one.bottom * height


Thing = tuple[str, Box]
"""What something is called, and where it is."""


def family_of(model_type: str) -> Family:
    """The family of a model by `model_type` of its config.json. Raises UsageError for another."""
    if model_type not in _FAMILY_OF_TYPE:
        raise UsageError(
            f"how a model of type {model_type!r} writes boxes is not known; "
            f"known are {', '.join(_FAMILY_OF_TYPE)}"
        )
    return _FAMILY_OF_TYPE[model_type]


def family_in_name(name: str) -> Family | None:
    """The family that a model's name speaks of, such as `Qwen/Qwen2.5-VL-7B-Instruct`."""
    return next((family for form, family in _FAMILY_IN_NAME if form.search(name)), None)


def question(phrase: str) -> str:
    """How a model is asked where something is: in asking, and in training data made of boxes."""
    words = " ".join(phrase.split()).rstrip(".?!")
    return f"Locate {words} in this picture and output the bounding box coordinates."


def resized(
    width: int,
    height: int,
    *,
    factor: int = 28,
    min_pixels: int = MIN_PIXELS,
    max_pixels: int = MAX_PIXELS,
) -> Size:
    """The size to which the Qwen processors bring a picture: `smart_resize` of transformers.

    Sides are multiples of `factor` (patch times merge: 28 for Qwen2-VL and Qwen2.5-VL), the area
    lies between the limits, the sides keep their ratio as nearly as that allows.
    """
    new_width, new_height = (round(side / factor) * factor for side in (width, height))
    if new_width * new_height > max_pixels:
        shrink = math.sqrt(width * height / max_pixels)
        new_width, new_height = (
            max(factor, math.floor(side / shrink / factor) * factor) for side in (width, height)
        )
    elif new_width * new_height < min_pixels:
        grow = math.sqrt(min_pixels / (width * height))
        new_width, new_height = (
            math.ceil(side * grow / factor) * factor for side in (width, height)
        )
    return new_width, new_height


@dataclass(frozen=True, slots=True)
class Sight:
    """How a model sees pictures and writes boxes: its family, and the limits of its processor.

    `factor` is the side of its visual token in pixels. Sizes count for qwen2.5-vl alone.
    """

    family: Family
    factor: int = 28
    min_pixels: int = MIN_PIXELS
    max_pixels: int = MAX_PIXELS

    def shown_size(self, width: int, height: int) -> Size:
        """The size in which the model sees a picture that is sent in this size."""
        limits = {"min_pixels": self.min_pixels, "max_pixels": self.max_pixels}
        return resized(width, height, factor=self.factor, **limits)


# ---------------------------------------------------------------- writing


def write_box(family: Family, box: Box, original_size: Size, shown_size: Size) -> str:
    """One box within a text, as the family writes it."""
    left, top, right, bottom = _on_grid(family, box, original_size, shown_size)
    if family == "qwen2-vl":
        return f"<|box_start|>({left},{top}),({right},{bottom})<|box_end|>"
    return f"[{left}, {top}, {right}, {bottom}]"


def write_located(
    family: Family, things: Sequence[Thing], original_size: Size, shown_size: Size
) -> str:
    """A whole answer to `question`: each thing by its name and box."""
    written = [
        (" ".join(label.split()), write_box(family, box, original_size, shown_size))
        for label, box in things
    ]
    if family == "qwen2-vl":
        return "".join(f"{write_ref(family, label)}{box}" for label, box in written)
    lines = [
        f'\t{{"bbox_2d": {box}, "label": {json.dumps(label, ensure_ascii=False)}}}'
        for label, box in written
    ]
    return "```json\n[\n" + ",\n".join(lines) + "\n]\n```"


def write_ref(family: Family, label: str) -> str:
    """The name of a thing within an answer, marked as such where the family marks it."""
    if family != "qwen2-vl":
        return label
    plain = label.replace("<|", "< |")  # a name must not end itself
    return f"<|object_ref_start|>{plain}<|object_ref_end|>"


def _on_grid(family: Family, box: Box, original_size: Size, shown_size: Size) -> list[int]:
    """A box in whole units of the family, within the picture and at least one unit wide."""
    one = box.as_fractions(*original_size)
    if not all(map(math.isfinite, one.sides)):
        raise UsageError(f"box {box.sides}: has a side that is no number")
    sides = _scale(family, shown_size)
    placed = []
    for start, end, scale in ((one.left, one.right, sides[0]), (one.top, one.bottom, sides[1])):
        last = _LAST_OF_QWEN2 if family == "qwen2-vl" else int(scale)
        low, high = (
            min(max(round(side * scale), 0), last) for side in (min(start, end), max(start, end))
        )
        if low == high:
            low = min(math.floor(max(start, 0.0) * scale), last - 1)
            high = low + 1
        placed.append((low, high))
    (left, right), (top, bottom) = placed
    return [left, top, right, bottom]


def _scale(family: Family, shown_size: Size) -> tuple[float, float]:
    return shown_size if family == "qwen2.5-vl" else (_THOUSAND, _THOUSAND)


# ---------------------------------------------------------------- reading

_NUMBER = r"\s*(-?\d+(?:\.\d*)?)\s*"
_CORNERS = re.compile(
    r"(?:<\|box_start\|>\s*)?"
    rf"\({_NUMBER},{_NUMBER}\)\s*(?:,\s*)?\({_NUMBER},{_NUMBER}\)"
    r"(?:\s*<\|box_end\|>)?"
)
_REF = re.compile(r"<\|object_ref_start\|>(.*?)(?:<\|object_ref_end\|>|$)", re.DOTALL)
_TOKEN = re.compile(r"<\|[a-z_]*\|>")
# A flat JSON object, whole or broken off; a brace within a string is no end of it.
_OBJECT = re.compile(r'\{(?:[^{}"]|"(?:[^"\\]|\\.)*"?)*\}?', re.DOTALL)
_FOUR = re.compile(rf"\[{_NUMBER},{_NUMBER},{_NUMBER},{_NUMBER}\]")
_BOX_KEYS = ("bbox_2d", "bbox")
_LABEL_KEYS = ("label", "name", "text_content", "ref")
_BROKEN_BOX = re.compile(r"""["']bbox(?:_2d)?["']\s*:\s*\[?""" + _FOUR.pattern)
_BROKEN_LABEL = re.compile(r"""["']label["']\s*:\s*(["'])((?:(?!\1)[^\\]|\\.)*)""", re.DOTALL)


def parse(family: Family, text: str, shown_size: Size) -> list[Thing]:
    """The boxes in a reply, as fractions of the picture's sides, with what each is called.

    Takes what models make of their form: control tokens kept or stripped, Markdown fences, JSON
    that is broken off or within prose, corners in the wrong order, the form of another family (its
    numbers are then taken in this family's unit). What lies outside the picture is cut off. A box
    without an area, or with something that is no number, is none. No label is an empty string.
    """
    readers = [_cornered, _in_objects, _bare]
    if family != "qwen2-vl":
        readers = [_in_objects, _cornered, _bare]
    for read in readers:
        # What it found but does not lie in the picture is no reason to read it in another way.
        if found := list(read(text)):
            placed = ((label, _placed(numbers, family, shown_size)) for label, numbers in found)
            return [(label, box) for label, box in placed if box is not None]
    return []


_Found = Iterator[tuple[str, list[float]]]


def _cornered(text: str) -> _Found:
    """`(x1,y1),(x2,y2)`, each named by the marked name before it, or by the words before it."""
    label, position = "", 0
    for match in _CORNERS.finditer(text):
        before, position = text[position : match.start()], match.end()
        words = _label(_TOKEN.sub(" ", before)).strip(" ,;:.[]")
        if refs := _REF.findall(before):
            label = _label(refs[-1])
        elif words not in ("", "and"):  # else one of several boxes of one thing
            label = words
        yield label, [float(one) for one in match.groups()]


def _in_objects(text: str) -> _Found:
    """JSON objects, wherever they stand."""
    for match in _OBJECT.finditer(text):
        try:
            value = json.loads(match.group())
        except (ValueError, RecursionError):
            yield from _in_broken_object(match.group())
            continue
        boxes = next((value[key] for key in _BOX_KEYS if key in value), None)
        label = next((value[key] for key in _LABEL_KEYS if isinstance(value.get(key), str)), "")
        for box in _several(boxes):
            if (numbers := _numbers(box)) is not None:
                yield _label(label), numbers


def _in_broken_object(text: str) -> _Found:
    """An object that is no JSON, such as a last one that is broken off behind its box."""
    if (box := _BROKEN_BOX.search(text)) is None:
        return
    label = _BROKEN_LABEL.search(text)
    yield _label(label.group(2) if label else ""), [float(one) for one in box.groups()]


def _bare(text: str) -> _Found:
    """Lists of four numbers that nothing names."""
    for match in _FOUR.finditer(text):
        yield "", [float(one) for one in match.groups()]


def _several(boxes: Any) -> list[Any]:
    """The boxes of an object: most often one, which is a list of numbers itself."""
    if isinstance(boxes, list) and boxes and isinstance(boxes[0], list):
        return boxes
    return [boxes]


def _label(words: str) -> str:
    return " ".join(words.split())


def _numbers(value: Any) -> list[float] | None:
    """Four numbers, or None. JSON may hold strings, and integers that are too long for a float."""
    if not isinstance(value, list) or len(value) != 4:
        return None
    try:
        return [float(one) for one in value]
    except (ValueError, TypeError, OverflowError):
        return None


def _placed(numbers: Sequence[float], family: Family, shown_size: Size) -> Box | None:
    """Numbers of the family's unit as a box within the picture, or None where that is none."""
    if not all(math.isfinite(one) for one in numbers):
        return None
    width, height = _scale(family, shown_size)
    x = sorted(min(max(one / width, 0.0), 1.0) for one in (numbers[0], numbers[2]))
    y = sorted(min(max(one / height, 0.0), 1.0) for one in (numbers[1], numbers[3]))
    if x[0] == x[1] or y[0] == y[1]:
        return None
    return Box(x[0], y[0], x[1], y[1])
