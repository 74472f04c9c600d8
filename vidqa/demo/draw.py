"""A scene at a moment in time -> a picture, with Pillow.

Knows shapes and colours; knows nothing of films, files or questions. A picture's look at any
size is the same, so training draws small and films are drawn large.
"""

from __future__ import annotations

import math
import random
from functools import lru_cache

from PIL import Image, ImageDraw, ImageFont

from vidqa.demo.world import ASPECT, MARGIN, WORD_STRIP, Pose, Thing, WorldScene

Point = tuple[float, float]
Rgb = tuple[int, int, int]

COLOUR_RGB: dict[str, Rgb] = {
    "red": (222, 32, 38),
    "orange": (250, 130, 20),
    "yellow": (255, 228, 40),
    "green": (30, 165, 60),
    "blue": (40, 85, 230),
    "purple": (130, 50, 180),
    "pink": (255, 130, 200),
    "white": (250, 250, 250),
}
OUTLINE_RGB: Rgb = (20, 20, 24)


def _circle(radius: float = 1.0, steps: int = 28) -> list[Point]:
    turns = (2 * math.pi * step / steps for step in range(steps))
    return [(radius * math.cos(turn), radius * math.sin(turn)) for turn in turns]


def _star() -> list[Point]:
    turns = [math.pi * step / 5 - math.pi / 2 for step in range(10)]
    return [
        ((1.0, 0.42)[step % 2] * math.cos(turn), (1.0, 0.42)[step % 2] * math.sin(turn))
        for step, turn in enumerate(turns)
    ]


def _heart() -> list[Point]:
    """The usual sine curve, scaled into the unit circle."""
    points = []
    for step in range(30):
        turn = 2 * math.pi * step / 30
        x = 16 * math.sin(turn) ** 3
        y = 13 * math.cos(turn) - 5 * math.cos(2 * turn) - 2 * math.cos(3 * turn)
        points.append((x / 18, -(y - math.cos(4 * turn) + 2) / 18))
    return points


def _moon() -> list[Point]:
    outer = [
        (math.cos(turn), math.sin(turn))
        for turn in (math.radians(45 + 270 * step / 20) for step in range(21))
    ]
    inner = [
        (0.42 + 0.76 * math.cos(turn), 0.76 * math.sin(turn))
        for turn in (math.radians(291 - 222 * step / 16) for step in range(17))
    ]
    return outer + inner


def _fish() -> list[Point]:
    body = [
        (0.3 + 0.68 * math.cos(turn), 0.5 * math.sin(turn))
        for turn in (math.radians(-160 + 320 * step / 22) for step in range(23))
    ]
    return [*body, (-0.84, 0.54), (-0.68, 0.0), (-0.84, -0.54)]


# Outlines inside the unit circle, y downwards. A second contour is a hole.
SHAPES: dict[str, tuple[list[Point], ...]] = {
    "arrow": (
        [(1, 0), (0.15, -0.85), (0.15, -0.33), (-0.95, -0.33),
         (-0.95, 0.33), (0.15, 0.33), (0.15, 0.85)],
    ),
    "ball": (_circle(),),
    "box": ([(-0.72, -0.72), (0.72, -0.72), (0.72, 0.72), (-0.72, 0.72)],),
    "cross": (
        [(-0.3, -0.95), (0.3, -0.95), (0.3, -0.3), (0.95, -0.3), (0.95, 0.3), (0.3, 0.3),
         (0.3, 0.95), (-0.3, 0.95), (-0.3, 0.3), (-0.95, 0.3), (-0.95, -0.3), (-0.3, -0.3)],
    ),
    "fish": (_fish(),),
    "heart": (_heart(),),
    "house": ([(0, -1), (0.85, -0.2), (0.62, -0.2), (0.62, 0.78),
               (-0.62, 0.78), (-0.62, -0.2), (-0.85, -0.2)],),
    "moon": (_moon(),),
    "ring": (_circle(), _circle(0.52)),
    "star": (_star(),),
    "tree": ([(0, -1), (0.42, -0.4), (0.25, -0.4), (0.7, 0.25), (0.16, 0.25), (0.16, 0.95),
              (-0.16, 0.95), (-0.16, 0.25), (-0.7, 0.25), (-0.25, -0.4), (-0.42, -0.4)],),
    "triangle": ([(0, -1), (0.87, 0.5), (-0.87, 0.5)],),
}  # fmt: skip


def draw_backdrop(scene: WorldScene, width: int, height: int) -> Image.Image:
    """The scene without its things: background and written word; drawn once per scene."""
    image = Image.new("RGB", (width, height))
    _BACKDROPS[scene.background](ImageDraw.Draw(image), width, height, scene.backdrop_seed)
    if scene.word:
        _draw_word(image, scene.word)
    return image


def draw_things(backdrop: Image.Image, things: tuple[Thing, ...], progress: float) -> Image.Image:
    """A copy of the backdrop with every thing where it is at `progress` (0 to 1)."""
    image = backdrop.copy()
    draw = ImageDraw.Draw(image)
    for thing in things:
        _draw_thing(draw, image, thing, thing.at(progress))
    return image


def outline_of(thing: Thing, progress: float) -> list[Point]:
    """The thing's outline, as fractions of the frame's width and height."""
    points = _placed(SHAPES[thing.kind][0], thing.at(progress), 1.0)
    return [(x / ASPECT, y) for x, y in points]


def box_of(thing: Thing, progress: float) -> tuple[float, float, float, float]:
    """The thing's bounding box (left, top, right, bottom), as fractions of the frame."""
    xs, ys = zip(*outline_of(thing, progress), strict=True)
    return (min(xs), min(ys), max(xs), max(ys))


def _placed(contour: list[Point], pose: Pose, scale: float) -> list[Point]:
    cos, sin = math.cos(math.radians(pose.degrees)), math.sin(math.radians(pose.degrees))
    return [
        (
            scale * (pose.x + pose.radius * (x * cos - y * sin)),
            scale * (pose.y + pose.radius * (x * sin + y * cos)),
        )
        for x, y in contour
    ]


def _draw_thing(draw: ImageDraw.ImageDraw, image: Image.Image, thing: Thing, pose: Pose) -> None:
    scale = float(image.height)
    line_width = max(1, round(0.014 * scale))
    contours = [_placed(contour, pose, scale) for contour in SHAPES[thing.kind]]
    if len(contours) == 1:
        draw.polygon(contours[0], fill=COLOUR_RGB[thing.colour])
    else:
        mask = Image.new("1", image.size)
        mask_draw = ImageDraw.Draw(mask)
        for contour, ink in zip(contours, (1, 0), strict=True):
            mask_draw.polygon(contour, fill=ink)
        image.paste(COLOUR_RGB[thing.colour], mask=mask)
    for contour in contours:
        draw.line([*contour, contour[0], contour[1]], fill=OUTLINE_RGB, width=line_width)


@lru_cache(maxsize=64)
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _draw_word(image: Image.Image, word: str) -> None:
    """Black letters on a white plate in the middle of the bottom strip."""
    width, height = image.size
    draw = ImageDraw.Draw(image)
    plate_height, plate_width = (WORD_STRIP - MARGIN) * height, 0.72 * height
    top, left = (1 - WORD_STRIP) * height, (width - plate_width) / 2
    draw.rectangle((left, top, left + plate_width, top + plate_height), fill=(255, 255, 255))
    draw.text(
        (width / 2, top + plate_height / 2), word,
        fill=(0, 0, 0), font=_font(round(1.05 * plate_height)), anchor="mm",
    )  # fmt: skip


def _bay(draw: ImageDraw.ImageDraw, width: int, height: int, seed: int) -> None:
    line = height * random.Random(seed).uniform(0.5, 0.65)
    draw.rectangle((0, 0, width, height), fill=(120, 200, 225))
    draw.rectangle((0, line, width, height), fill=(235, 215, 165))
    draw.rectangle((0, line - height * 0.12, width, line), fill=(60, 150, 190))


def _city(draw: ImageDraw.ImageDraw, width: int, height: int, seed: int) -> None:
    rng = random.Random(seed)
    draw.rectangle((0, 0, width, height), fill=(175, 180, 190))
    step = width / 7
    for tower in range(7):
        top = height * rng.uniform(0.2, 0.6)
        shade = rng.randrange(95, 130)
        draw.rectangle(
            (tower * step, top, (tower + 0.85) * step, height), fill=(shade, shade, shade + 6)
        )


def _desert(draw: ImageDraw.ImageDraw, width: int, height: int, seed: int) -> None:
    rng = random.Random(seed)
    draw.rectangle((0, 0, width, height), fill=(245, 205, 140))
    for hill in range(3):
        top = height * (0.45 + 0.18 * hill + rng.uniform(-0.04, 0.04))
        x = width * rng.uniform(-0.3, 0.6)
        shade = (215 - 22 * hill, 160 - 20 * hill, 90 - 14 * hill)
        draw.ellipse((x - width * 0.4, top, x + width * 1.1, top + height * 1.2), fill=shade)


def _forest(draw: ImageDraw.ImageDraw, width: int, height: int, seed: int) -> None:
    rng = random.Random(seed)
    draw.rectangle((0, 0, width, height), fill=(38, 70, 44))
    step = width / 9
    for trunk in range(9):
        x = (trunk + rng.uniform(0.2, 0.6)) * step
        draw.rectangle((x, 0, x + step * 0.3, height), fill=(74, 54, 38))


def _meadow(draw: ImageDraw.ImageDraw, width: int, height: int, seed: int) -> None:
    rng = random.Random(seed)
    line = height * rng.uniform(0.25, 0.4)
    draw.rectangle((0, 0, width, height), fill=(185, 225, 250))
    draw.rectangle((0, line, width, height), fill=(150, 205, 105))
    for _ in range(26):
        x, y = width * rng.random(), line + (height - line) * rng.random()
        dot = height * 0.012
        draw.ellipse((x - dot, y - dot, x + dot, y + dot), fill=(235, 240, 215))


def _night(draw: ImageDraw.ImageDraw, width: int, height: int, seed: int) -> None:
    rng = random.Random(seed)
    draw.rectangle((0, 0, width, height), fill=(16, 18, 48))
    for _ in range(30):
        x, y, dot = width * rng.random(), height * rng.random(), height * 0.009
        draw.ellipse((x - dot, y - dot, x + dot, y + dot), fill=(200, 205, 225))


def _room(draw: ImageDraw.ImageDraw, width: int, height: int, seed: int) -> None:
    rng = random.Random(seed)
    line = height * rng.uniform(0.7, 0.8)
    draw.rectangle((0, 0, width, height), fill=(205, 180, 190))
    for stripe in range(10):
        x = width * (stripe + rng.uniform(0.2, 0.3)) / 10
        draw.rectangle((x, 0, x + width * 0.035, line), fill=(185, 150, 165))
    draw.rectangle((0, line, width, height), fill=(110, 75, 60))


def _snow(draw: ImageDraw.ImageDraw, width: int, height: int, seed: int) -> None:
    rng = random.Random(seed)
    draw.rectangle((0, 0, width, height), fill=(205, 215, 228))
    peak = width * rng.uniform(0.3, 0.7)
    draw.polygon(
        [(peak - width * 0.5, height), (peak, height * 0.2), (peak + width * 0.5, height)],
        fill=(150, 165, 190),
    )
    draw.rectangle((0, height * 0.72, width, height), fill=(232, 238, 244))


_BACKDROPS = {
    "bay": _bay,
    "city": _city,
    "desert": _desert,
    "forest": _forest,
    "meadow": _meadow,
    "night": _night,
    "room": _room,
    "snow": _snow,
}
