"""Boxes around things: the record, and how each family of models writes it.

Box(0.1, 0.2, 0.5, 0.6).as_pixels(640, 480)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Unit = Literal["fraction", "pixel", "thousandth"]


@dataclass(frozen=True, slots=True)
class Box:
    """A box in a picture, from its left top corner: fractions of its sides, pixels or 0 to 1000."""

    left: float
    top: float
    right: float
    bottom: float
    unit: Unit = "fraction"


def question(phrase: str) -> str:
    """How a model is asked where something is: in asking, and in training data made of boxes."""
    words = " ".join(phrase.split()).rstrip(".?!")
    return f"Locate {words} in this picture and output the bounding box coordinates."
