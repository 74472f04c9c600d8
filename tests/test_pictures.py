"""Small pictures: sizes, uprightness, colours, and likeness to what others make of a frame."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from scenedetect.scene_manager import compute_downscale_factor

from tests.media import Format, three_shots
from vidqa.containers import displayed_size, open_video, video_stream
from vidqa.frames import Decoder
from vidqa.pictures import (
    PICTURE_LONG_SIDE,
    PICTURE_SHORT_SIDE,
    Views,
    detector_size,
    encode_jpeg,
    jpeg_size,
    picture_size,
)
from vidqa.types import ResizeMode


def first_views(
    path: Path, size: tuple[int, int] = (64, 64), mode: ResizeMode = "squash"
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8]]:
    """(detector's BGR, embedder's RGB, kept JPEG decoded to BGR) of the first frame."""
    with open_video(str(path)) as container:
        stream = video_stream(container)
        picture = next(iter(Decoder(container, stream))).picture
        views = Views(*displayed_size(picture, stream.sample_aspect_ratio), *size, mode)
        jpeg = np.frombuffer(views.jpeg(picture), np.uint8)
        kept = cv2.imdecode(jpeg, cv2.IMREAD_COLOR)
        return views.detector(picture), views.embedder(picture), np.asarray(kept, np.uint8)


def opencv_frame(path: Path) -> NDArray[np.uint8]:
    read, frame = cv2.VideoCapture(str(path)).read()
    assert read
    return np.asarray(frame, np.uint8)


def psnr(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    error = np.mean((one.astype(float) - other) ** 2)
    return float(10 * np.log10(255**2 / error))


@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
def test_pictures_are_upright_like_opencvs(tmp_path: Path, rotation: int) -> None:
    form = Format(width=320, height=180, rotation=rotation)
    path = three_shots(tmp_path / "a.mp4", form).path
    _, _, kept = first_views(path)
    assert psnr(kept, opencv_frame(path)) > 30


def test_every_frame_is_turned_like_the_first(tmp_path: Path) -> None:
    path = three_shots(tmp_path / "a.mp4", Format(rotation=90)).path
    with open_video(str(path)) as container:
        frames = Decoder(container, video_stream(container))
        assert {frame.picture.rotation for frame in frames} == {90}


def test_wide_pixels_are_shown_wide(tmp_path: Path) -> None:
    path = three_shots(tmp_path / "a.mp4", Format(sample_aspect=Fraction(2))).path
    _, _, kept = first_views(path)
    assert kept.shape == (120, 320, 3)


@pytest.mark.parametrize("size", [(64, 64), (48, 32)])
def test_squash_shows_the_embedder_the_whole_frame(tmp_path: Path, size: tuple[int, int]) -> None:
    path = three_shots(tmp_path / "a.mp4", Format(width=320, height=180)).path
    _, image, _ = first_views(path, size)
    rgb = Image.fromarray(opencv_frame(path)[..., ::-1])
    expected = np.asarray(rgb.resize(size, Image.Resampling.BICUBIC))
    assert image.shape == (size[1], size[0], 3)
    assert psnr(image, expected) > 32


def test_shortest_crops_the_centre(tmp_path: Path) -> None:
    path = three_shots(tmp_path / "a.mp4", Format(width=320, height=160)).path
    _, image, _ = first_views(path, (64, 64), "shortest")
    rgb = Image.fromarray(opencv_frame(path)[:, 80:240, ::-1])
    expected = np.asarray(rgb.resize((64, 64), Image.Resampling.BICUBIC))
    assert psnr(image, expected) > 32


def test_a_frame_smaller_than_the_embedder_is_enlarged(tmp_path: Path) -> None:
    path = three_shots(tmp_path / "a.mp4", Format(width=64, height=48)).path
    for mode in ("squash", "shortest"):
        _, image, kept = first_views(path, (224, 224), mode)  # type: ignore[arg-type]
        assert image.shape == (224, 224, 3)
        assert kept.shape == (48, 64, 3)


@given(st.integers(1, 8000), st.integers(1, 8000))
def test_kept_pictures_fit_their_box_and_keep_their_shape(width: int, height: int) -> None:
    kept = picture_size(width, height)
    assert max(kept) <= PICTURE_LONG_SIDE
    assert min(kept) <= PICTURE_SHORT_SIDE
    assert kept[0] <= width
    assert kept[1] <= height
    if min(kept) > 20:
        assert kept[0] / kept[1] == pytest.approx(width / height, rel=0.05)


def test_the_size_of_a_jpeg_is_its_width_and_height() -> None:
    assert jpeg_size(encode_jpeg(np.zeros((48, 64, 3), np.uint8))) == (64, 48)


@given(st.integers(1, 8000), st.integers(1, 8000))
def test_the_detectors_size_is_pyscenedetects(width: int, height: int) -> None:
    factor = compute_downscale_factor(max(width, height))
    expected = max(1, round(width / factor)), max(1, round(height / factor))
    assert detector_size(width, height) == expected


def test_the_detectors_picture_is_like_pyscenedetects(tmp_path: Path) -> None:
    path = three_shots(tmp_path / "a.mp4", Format(width=640, height=360)).path
    frame, _, _ = first_views(path)
    expected = cv2.resize(opencv_frame(path), (256, 144))
    assert psnr(frame, np.asarray(expected, np.uint8)) > 25
