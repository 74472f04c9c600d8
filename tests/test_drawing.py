"""Boxes on pictures, checked by their pixels."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageColor

from vidqa.boxes import Box
from vidqa.drawing import COLOURS, draw, line_width, pixels_of

GREY = (100, 100, 100)


def grey(width: int = 400, height: int = 300) -> np.ndarray:
    return np.full((height, width, 3), GREY, np.uint8)


def rgb(name: str) -> tuple[int, ...]:
    return ImageColor.getrgb(name)


def at(image: Image.Image, x: int, y: int) -> object:
    return image.getpixel((x, y))


def test_the_frame_lies_on_the_box_s_sides_and_nothing_within_changes() -> None:
    image = draw(grey(), [("dog", Box(0.25, 0.5, 0.75, 0.9))])
    assert image.size == (400, 300)
    for x, y in [(100, 200), (299, 200), (200, 150), (200, 269)]:
        assert at(image, x, y) == rgb(COLOURS[0])
    for x, y in [(99, 200), (300, 200), (200, 270), (103, 200), (200, 210), (50, 50)]:
        assert at(image, x, y) == GREY


def test_the_name_stands_above_the_box_on_its_colour() -> None:
    pixels = np.asarray(draw(grey(), [("dog", Box(0.25, 0.5, 0.75, 0.9))]))
    above = pixels[:150, 100:300].reshape(-1, 3)
    assert (above == rgb(COLOURS[0])).all(axis=1).any()
    assert (above == (0, 0, 0)).all(axis=1).any()
    assert (pixels[:150, :100] == GREY).all()


@pytest.mark.parametrize("box", [Box(0, 0, 1, 1), Box(0.9, 0, 1, 0.02), Box(0, 0.99, 0.01, 1)])
def test_a_box_at_the_edge_keeps_frame_and_name_in_the_picture(box: Box) -> None:
    pixels = np.asarray(draw(grey(), [("a very long name of a very small dog", box)]))
    assert pixels.shape == (300, 400, 3)
    assert (pixels == (0, 0, 0)).all(axis=2).any()


def test_one_name_has_one_colour() -> None:
    here, there = Box(0.1, 0.3, 0.3, 0.5), Box(0.6, 0.3, 0.8, 0.5)
    image = draw(grey(), [("dog", here), ("cat", Box(0.1, 0.7, 0.3, 0.9)), ("dog", there)])
    assert at(image, 40, 120) == at(image, 240, 120) == rgb(COLOURS[0])
    assert at(image, 40, 240) == rgb(COLOURS[1])


def test_no_boxes_leave_the_picture_as_it_is() -> None:
    assert (np.asarray(draw(grey(), [])) == GREY).all()


def test_the_picture_that_was_given_is_not_drawn_on() -> None:
    given = grey()
    draw(given, [("dog", Box(0, 0, 1, 1))])
    assert (given == GREY).all()


def test_lines_grow_with_the_picture() -> None:
    assert (line_width(100, 80), line_width(3840, 2160)) == (2, 11)


def test_a_speck_has_a_pixel() -> None:
    assert pixels_of(Box(0.999, 0.999, 1.0, 1.0), 100, 100) == (99, 99, 100, 100)
    assert pixels_of(Box(0.25, 0.5, 0.75, 1.0), 640, 480) == (160, 240, 480, 480)
