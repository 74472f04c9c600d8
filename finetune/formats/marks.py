"""Boxes in texts, as Qwen2-VL writes them: how they are found there, and put there.

    parts("a <|object_ref_start|>dog<|object_ref_end|> barks")      ("a ", Ref("dog"), " barks")

Formats that know no boxes have them like this, in thousandths of the picture's sides, whatever
model is trained: so they are read as boxes, to be written as each base model wants them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Final

from finetune.rows import Boxed, Located, Part, Ref
from vidqa.boxes import Box

REF_START: Final = "<|object_ref_start|>"
REF_END: Final = "<|object_ref_end|>"

_NUMBER = r"\s*(\d+(?:\.\d+)?)\s*"
_POINT = rf"\({_NUMBER},{_NUMBER}\)"
_MARK = re.compile(
    rf"{re.escape(REF_START)}(?P<ref>.*?){re.escape(REF_END)}"
    rf"|<\|box_start\|>{_POINT}\s*,\s*{_POINT}<\|box_end\|>",
    re.DOTALL,
)


def parts(text: str, picture: int = 0) -> Iterator[Part]:
    """A text in parts; its boxes are in the row's medium number `picture`."""
    at = 0
    for found in _MARK.finditer(text):
        if found.start() > at:
            yield text[at : found.start()]
        at = found.end()
        if (name := found["ref"]) is not None:
            yield Ref(name)
        else:
            left, top, right, bottom = map(float, found.groups()[1:])
            yield Boxed(Box(left, top, right, bottom, "thousandth"), picture)
    if at < len(text):
        yield text[at:]


def ref(name: str) -> str:
    return f"{REF_START}{name}{REF_END}"


def box(left: float, top: float, right: float, bottom: float) -> str:
    """A box given in thousandths, which are written as whole numbers."""
    x1, y1, x2, y2 = (round(one) for one in (left, top, right, bottom))
    return f"<|box_start|>({x1},{y1}),({x2},{y2})<|box_end|>"


def as_answer(given: Sequence[Part]) -> tuple[Part, ...]:
    """An answer that is nothing but names, each with its boxes, is one `Located`."""
    things: list[tuple[str, Box]] = []
    pictures: set[int] = set()
    name: str | None = None
    for part in given:
        if isinstance(part, Ref) and (name is None or (things and things[-1][0] == name)):
            name = part.text
        elif isinstance(part, Boxed) and name is not None:
            things.append((name, part.box))
            pictures.add(part.media)
        elif not isinstance(part, str) or part.strip():
            return tuple(given)
    if len(pictures) != 1 or things[-1][0] != name:
        return tuple(given)
    return (Located(tuple(things), pictures.pop()),)
