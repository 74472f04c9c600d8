"""Boxes drawn on a picture, each with its name, in a colour that its name shares with its others.

    image = draw(pixels, [("the dog", Box(0.1, 0.2, 0.5, 0.6))])
    image.save("dog.png")

The frame is drawn within the box's sides, so that what surrounds the thing stays as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from vidqa.boxes import Box

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont
    from PIL.ImageFont import ImageFont as BitmapFont

# Light enough for black letters, and apart from each other for most eyes (Okabe and Ito, 2008).
COLOURS = ("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#d55e00", "#cc79a7")
# Named fonts reach further than Pillow's own, which has Latin letters alone.
_FONTS = ("NotoSansCJK-Regular.ttc", "DejaVuSans.ttf", "Arial Unicode.ttf", "arial.ttf")
_LONGEST_NAME = 60


def draw(pixels: NDArray[np.uint8], things: Sequence[tuple[str, Box]]) -> Image:
    """The picture uint8 (H, W, 3), RGB, with the boxes and names drawn on it."""
    from PIL import Image, ImageDraw

    image = Image.fromarray(pixels)
    pen = ImageDraw.Draw(image)
    names = list(dict.fromkeys(name for name, _ in things))
    for name, box in things:
        _draw_one(pen, image.size, name, box, COLOURS[names.index(name) % len(COLOURS)])
    return image


def line_width(width: int, height: int) -> int:
    """Pixels of the frame around a thing in a picture of that size."""
    return max(2, round(min(width, height) / 200))


def pixels_of(box: Box, width: int, height: int) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) in whole pixels within the picture, at least one pixel large."""
    left, top, right, bottom = (round(side) for side in box.as_pixels(width, height))
    left, top = min(max(left, 0), width - 1), min(max(top, 0), height - 1)
    return left, top, max(min(right, width), left + 1), max(min(bottom, height), top + 1)


def _draw_one(pen: ImageDraw, size: tuple[int, int], name: str, box: Box, colour: str) -> None:
    left, top, right, bottom = pixels_of(box, *size)
    pen.rectangle((left, top, right - 1, bottom - 1), outline=colour, width=line_width(*size))
    name = name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 1] + "…"
    font = _font(max(11, round(min(size) / 30)))
    _, _, wide, high = pen.textbbox((0, 0), name, font=font)
    wide, high = int(wide) + 4, int(high) + 4
    # Above the box; where there is no room, inside it.
    x = max(0, min(left, size[0] - wide))
    y = top - high if top >= high else top
    pen.rectangle((x, y, x + wide - 1, y + high - 1), fill=colour)
    pen.text((x + 2, y + 1), name, fill="black", font=font)


def _font(size: int) -> FreeTypeFont | BitmapFont:
    from PIL import ImageFont

    for name in _FONTS:
        try:
            return ImageFont.truetype(name, size)
        except OSError:
            continue
    return ImageFont.load_default(size)
