"""Images of clients: what is taken, what is refused, and that a frame finds itself."""

from __future__ import annotations

import io
import struct
import zlib
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.media import REAL_VIDEOS, REPOSITORY, Format, make_film, shot
from vidqa.containers import open_video, video_stream
from vidqa.embed import load_embedder
from vidqa.errors import UsageError
from vidqa.frames import Decoder
from vidqa.pictures import Views, picture_size
from vidqa.stills import IMAGE_FORMATS, for_embedder, for_model, read_image
from vidqa.types import EmbedderSpec, ResizeMode

LIMIT = 1_000_000

# Pillow warns of what is refused here.
pytestmark = [
    pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning"),
    pytest.mark.filterwarnings("ignore:Corrupt EXIF data:UserWarning"),
]


def encoded(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def halves(width: int = 40, height: int = 30) -> Image.Image:
    """Red on the left, blue on the right."""
    image = Image.new("RGB", (width, height), (200, 0, 0))
    image.paste((0, 0, 200), (width // 2, 0, width, height))
    return image


def spec(mode: ResizeMode = "squash", width: int = 32, height: int = 24) -> EmbedderSpec:
    return EmbedderSpec("any", "0" * 16, 4, height, width, mode)


# What is taken


@pytest.mark.parametrize("form", IMAGE_FORMATS)
def test_an_image_of_each_format_is_read(form: str) -> None:
    image = read_image(encoded(halves(), form), max_pixels=LIMIT)
    assert (image.mode, image.size) == ("RGB", (40, 30))
    assert np.abs(np.asarray(image)[15, 5].astype(int) - (200, 0, 0)).max() < 12


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16"])
def test_an_image_of_any_mode_becomes_rgb(mode: str) -> None:
    form = "JPEG" if mode == "CMYK" else "PNG"
    image = read_image(encoded(halves().convert("L").convert(mode), form), max_pixels=LIMIT)
    assert (image.mode, image.size) == ("RGB", (40, 30))


def test_sixteen_bits_a_pixel_keep_their_brightness() -> None:
    grey = Image.fromarray(np.full((8, 8), 0x8000, np.uint16))
    image = read_image(encoded(grey), max_pixels=LIMIT)
    assert image.getpixel((3, 3)) == (128, 128, 128)


def test_what_is_transparent_is_white() -> None:
    image = read_image(encoded(Image.new("RGBA", (8, 8), (0, 0, 0, 0))), max_pixels=LIMIT)
    assert image.getpixel((3, 3)) == (255, 255, 255)


def test_a_photo_that_was_held_on_its_side_is_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image = read_image(encoded(halves(), "JPEG", exif=exif), max_pixels=LIMIT)
    assert image.size == (30, 40)
    top, bottom = image.getpixel((15, 5)), image.getpixel((15, 35))
    assert isinstance(top, tuple)
    assert isinstance(bottom, tuple)
    assert top[0] > 150 > bottom[0]


def test_a_senseless_orientation_is_passed_over() -> None:
    data = encoded(halves(), "JPEG", exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff garbage")
    assert read_image(data, max_pixels=LIMIT).size == (40, 30)


def test_the_first_picture_of_an_animation_is_meant() -> None:
    others = [Image.new("RGB", (40, 30), "green")] * 3
    data = encoded(halves(), "GIF", save_all=True, append_images=others)
    pixel = read_image(data, max_pixels=LIMIT).getpixel((5, 15))
    assert isinstance(pixel, tuple)
    assert pixel[0] > 150


# What is refused


@pytest.mark.parametrize("form", ["BMP", "TIFF", "PPM", "ICO"])
def test_another_format_is_refused(form: str) -> None:
    with pytest.raises(UsageError, match=r"bytes are no JPEG, PNG, WebP or GIF image; send one"):
        read_image(encoded(halves(), form), max_pixels=LIMIT)


def test_nothing_is_no_image() -> None:
    with pytest.raises(UsageError, match=r"^these 0 bytes are no JPEG"):
        read_image(b"", max_pixels=LIMIT)


@pytest.mark.parametrize("form", IMAGE_FORMATS)
def test_an_image_over_the_limit_is_refused(form: str) -> None:
    with pytest.raises(UsageError, match=r"is 40 x 30 pixels; at most 1,199 pixels are allowed"):
        read_image(encoded(halves(), form), max_pixels=1199)
    assert read_image(encoded(halves(), form), max_pixels=1200)


def png_that_claims(width: int, height: int) -> bytes:
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return encoded(halves())[:8] + chunk + encoded(halves())[33:]


@pytest.mark.parametrize("side", [1_001, 10_000, 60_000, 2**31 - 1])
def test_a_header_that_claims_too_much_is_refused_before_decoding(side: int) -> None:
    with pytest.raises(UsageError, match=r"pixels"):
        read_image(png_that_claims(side, side), max_pixels=LIMIT)


@pytest.mark.parametrize("size", [(1, 51), (51, 1), (5000, 3)])
def test_a_strip_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(UsageError, match="its longer side may be 50 times the shorter"):
        read_image(encoded(Image.new("RGB", size)), max_pixels=LIMIT)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF"])
def test_a_truncated_image_is_one_line(form: str) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (90, 120, 3), np.uint8)
    data = encoded(Image.fromarray(noise), form)
    with pytest.raises(UsageError, match=r"^(the|these) .*bytes (is truncated or|are no)"):
        read_image(data[: len(data) // 2], max_pixels=LIMIT)


@given(
    st.binary(max_size=200),
    st.sampled_from(
        [b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF89a", b"RIFF\x64\0\0\0WEBPVP8 "]
    ),
)
def test_garbage_is_refused_in_one_line(garbage: bytes, magic: bytes) -> None:
    assert_image_or_one_line(magic + garbage)


@given(
    st.sampled_from(IMAGE_FORMATS),
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=8),
)
def test_a_damaged_image_is_an_image_or_one_line(form: str, hits: list[tuple[float, int]]) -> None:
    data = bytearray(encoded(halves(), form))
    for place, value in hits:
        data[int(place * (len(data) - 1))] = value
    assert_image_or_one_line(bytes(data))


def assert_image_or_one_line(data: bytes) -> None:
    try:
        image = read_image(data, max_pixels=LIMIT)
    except UsageError as error:
        assert "\n" not in str(error)  # noqa: PT017  an image is as good
    else:
        assert image.mode == "RGB"
        assert image.width * image.height <= LIMIT


# What is made of it


@pytest.mark.parametrize("mode", ["squash", "shortest"])
@pytest.mark.parametrize("size", [(1, 1), (1, 50), (50, 1), (1919, 1079), (31, 700)])
def test_any_shape_becomes_the_embedders(size: tuple[int, int], mode: ResizeMode) -> None:
    image = Image.new("RGB", size, (10, 120, 230))
    seen = for_embedder(image, spec(mode))
    assert seen.shape == (24, 32, 3)
    assert np.abs(seen.astype(int) - (10, 120, 230)).max() <= 2


@pytest.mark.parametrize("size", [(1, 1), (50, 1), (1920, 1080), (300, 200)])
def test_the_model_gets_a_jpeg_of_the_kept_size(size: tuple[int, int]) -> None:
    shown = Image.open(io.BytesIO(for_model(Image.new("RGB", size, (10, 120, 230)))))
    assert (shown.format, shown.size) == ("JPEG", picture_size(*size))
    assert np.abs(np.asarray(shown).astype(int) - (10, 120, 230)).max() <= 4


def frame_and_image(path: Path, place: int = 0) -> tuple[Any, Image.Image]:
    with open_video(str(path)) as container:
        decoder = Decoder(container, video_stream(container))
        frame = next(islice(decoder, place, None)).picture
        return frame, frame.to_image()


@pytest.mark.parametrize("mode", ["squash", "shortest"])
def test_a_frame_given_as_an_image_looks_as_it_did(tmp_path: Path, mode: ResizeMode) -> None:
    film = make_film(tmp_path / "a.mp4", [shot(0.2, 3)], Format(width=320, height=180))
    frame, image = frame_and_image(film.path)
    seen = Views(320, 180, 32, 24, mode).embedder(frame).astype(int)
    given = for_embedder(read_image(encoded(image), max_pixels=LIMIT), spec(mode)).astype(int)
    assert np.abs(seen - given).mean() < 2


def test_a_frame_given_as_a_jpeg_finds_itself(tmp_path: Path) -> None:
    embedder = load_embedder(str(REPOSITORY / "vidqa" / "demo" / "models" / "tiny-clip"), "cpu")
    path = REAL_VIDEOS / "bigbuckbunny.mp4"
    if not path.is_file():
        path = make_film(tmp_path / "a.mp4", [shot(2, 3)], Format(width=640, height=360)).path
    frame, image = frame_and_image(path, place=40)
    one = embedder.spec
    views = Views(image.width, image.height, one.image_width, one.image_height, one.resize_mode)
    given = for_embedder(read_image(encoded(image, "JPEG"), max_pixels=LIMIT), one)
    vectors = embedder.embed_images(np.stack([views.embedder(frame), given]))
    assert vectors[0] @ vectors[1] > 0.995
