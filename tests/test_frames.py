"""The decoder's times, the sampler's choice, and the pictures of one moment."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.media import Format, make_film, number_of, numbered, shot, three_shots, truncate
from vidqa import frames as frames_module
from vidqa.containers import open_video, video_stream
from vidqa.errors import VideoError
from vidqa.frames import (
    SCENE_FRAMES,
    Clock,
    Decoder,
    Frame,
    Sampler,
    pictures_at,
    read_stretch,
    sampled_pictures,
)
from vidqa.types import Picture


def decoded_seconds(path: Path) -> tuple[list[float], Decoder]:
    with open_video(str(path)) as container:
        decoder = Decoder(container, video_stream(container))
        return [frame.seconds for frame in decoder], decoder


def frames(seconds: list[float]) -> list[Frame]:
    nothing: Any = None
    return [Frame(one, nothing) for one in seconds]


def sampled(seconds: list[float], step_seconds: float, starts: tuple[int, ...] = ()) -> list[float]:
    sampler = Sampler(step_seconds)
    kept = [
        one.seconds
        for n, frame in enumerate(frames(seconds))
        for one in sampler.add(frame, n in starts)
    ]
    return sorted(kept + [one.seconds for one in sampler.finish()])


# Times


@pytest.mark.parametrize(
    ("suffix", "codec"),
    [
        ("mp4", "libx264"),
        ("mp4", "libx265"),
        ("webm", "libvpx-vp9"),
        ("avi", "mpeg4"),
        ("ts", "libx264"),
    ],
)
def test_every_frame_comes_once_with_its_time(tmp_path: Path, suffix: str, codec: str) -> None:
    film = three_shots(tmp_path / f"a.{suffix}", Format(codec=codec))
    seconds, decoder = decoded_seconds(film.path)
    assert seconds == pytest.approx(film.frame_seconds, abs=0.001)
    assert decoder.end_seconds == pytest.approx(6.0, abs=0.002)


def test_every_packet_is_decoded_once(tmp_path: Path) -> None:
    _, decoder = decoded_seconds(three_shots(tmp_path / "a.mp4", Format(audio=True)).path)
    assert decoder.packets_read == decoder.packets_decoded == 144


def test_times_of_a_variable_frame_rate_are_the_files_own(tmp_path: Path) -> None:
    times = [0.0, 0.04, 0.5, 0.55, 2.0, 2.1, 2.11, 3.9]
    film = make_film(tmp_path / "a.mp4", [shot(4)], frame_seconds=times)
    seconds, _ = decoded_seconds(film.path)
    assert seconds == pytest.approx(times, abs=1e-4)


@pytest.mark.parametrize("suffix", ["mkv", "ts"])
def test_times_count_from_the_start_of_the_stream(tmp_path: Path, suffix: str) -> None:
    film = three_shots(tmp_path / f"a.{suffix}", Format(start_seconds=100))
    seconds, _ = decoded_seconds(film.path)
    assert (seconds[0], seconds[-1]) == pytest.approx((0.0, 143 / 24), abs=0.001)


def test_a_missing_timestamp_is_one_frame_after_the_last() -> None:
    clock = Clock(0, 0.001, fps=10)
    assert [clock.seconds(pts) for pts in (0, None, None, 300)] == pytest.approx([0, 0.1, 0.2, 0.3])


def test_a_doubled_timestamp_shifts_no_later_one() -> None:
    clock = Clock(0, 0.001, fps=10)
    times = [clock.seconds(pts) for pts in (0, 100, 100, 200)]
    assert times == pytest.approx([0, 0.1, 0.1001, 0.2])


def test_a_restarted_clock_goes_on_where_it_stopped() -> None:
    clock = Clock(0, 0.001, fps=10)
    times = [clock.seconds(pts) for pts in (0, 60_000, 0, 100)]
    assert times == pytest.approx([0, 60, 60.1, 60.2])


@given(
    st.lists(st.none() | st.integers(-(2**40), 2**40), min_size=1, max_size=50),
    st.none() | st.integers(-(2**33), 2**33),
    st.floats(0.5, 240),
)
def test_times_rise_from_zero_whatever_the_timestamps(
    stamps: list[int | None], start: int | None, fps: float
) -> None:
    clock = Clock(start, 1 / 90_000, fps)
    times = [clock.seconds(pts) for pts in stamps]
    assert times[0] >= 0
    assert all(a < b for a, b in pairwise(times))


# Damage


@pytest.mark.parametrize(
    "form", [Format(container_options={"movflags": "faststart"}), Format(codec="mpeg4")]
)
def test_a_file_cut_off_in_its_frames_is_one_line(tmp_path: Path, form: Format) -> None:
    suffix = "mp4" if form.container_options else "mkv"
    path = truncate(three_shots(tmp_path / f"a.{suffix}", form).path, 0.5)
    with pytest.raises(VideoError, match=r"is truncated: \d of 6 seconds can be read; copy it"):
        decoded_seconds(path)


def test_damaged_packets_are_passed_over(tmp_path: Path) -> None:
    path = three_shots(tmp_path / "a.mkv").path
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 500] = bytes(500)
    path.write_bytes(content)
    seconds, decoder = decoded_seconds(path)
    assert len(seconds) > 100
    assert decoder.end_seconds == pytest.approx(6.0, abs=0.1)


# Sampling


def test_the_grid_takes_the_first_frame_of_each_step() -> None:
    assert sampled([n / 10 for n in range(50)], 1.0) == [0, 1, 2, 3, 4]


def test_the_grid_of_a_variable_frame_rate_takes_what_there_is() -> None:
    assert sampled([0, 0.9, 1.3, 5.2, 5.9, 6.0], 1.0) == [0, 1.3, 5.2, 6.0]


def test_a_short_scene_gets_three_frames() -> None:
    times = [n / 10 for n in range(60)]
    kept = sampled(times, 1.0, starts=(21, 29))
    assert [one for one in kept if 2.1 <= one < 2.9] == [2.1, 2.3, 2.5]


def test_a_video_shorter_than_a_step_gets_three_frames_that_are_spread() -> None:
    kept = sampled([n / 30 for n in range(20)], 1.0)
    assert kept == pytest.approx([0, 8 / 30, 16 / 30])


@given(
    st.lists(st.floats(0.001, 2), min_size=1, max_size=80),
    st.floats(0.05, 10),
    st.sets(st.integers(1, 79), max_size=10),
)
def test_every_scene_gets_three_frames_or_all_it_has(
    gaps: list[float], step_seconds: float, starts: set[int]
) -> None:
    times = np.cumsum([0.0, *gaps]).tolist()
    cuts = sorted(n for n in starts if n < len(times))
    kept = sampled(times, step_seconds, tuple(cuts))
    assert len(set(kept)) == len(kept)
    for first, last in zip([0, *cuts], [*cuts, len(times)], strict=True):
        scene = times[first:last]
        inside = [one for one in kept if scene[0] <= one <= scene[-1]]
        assert len(inside) >= min(SCENE_FRAMES, len(scene))


@given(st.lists(st.floats(0.001, 0.2), min_size=1, max_size=400), st.floats(0.3, 5))
def test_no_more_than_three_frames_wait(gaps: list[float], step_seconds: float) -> None:
    sampler = Sampler(step_seconds)
    for frame in frames(np.cumsum(gaps).tolist()):
        sampler.add(frame)
        assert len(sampler._spares) <= SCENE_FRAMES


# The pictures of one moment


def test_pictures_are_those_shown_at_the_times(tmp_path: Path) -> None:
    film = three_shots(tmp_path / "a.mp4")
    pictures = pictures_at(str(film.path), [5.0, 1.0, 3.0])
    assert [picture.seconds for picture in pictures] == [5.0, 1.0, 3.0]
    reader = cv2.VideoCapture(str(film.path))
    shown = {n: reader.read()[1] for n in range(144)}
    for picture in pictures:
        image = cv2.imdecode(np.frombuffer(picture.jpeg, np.uint8), cv2.IMREAD_COLOR)
        errors = {n: np.abs(image.astype(int) - other).mean() for n, other in shown.items()}
        nearest = min(errors, key=lambda n: errors[n])
        assert abs(nearest / 24 - picture.seconds) < 2.1 / 24


def test_a_time_between_two_frames_shows_the_earlier(tmp_path: Path) -> None:
    film = make_film(tmp_path / "a.mp4", [shot(2, 1), shot(2, 2)], frame_seconds=[0, 0.5, 2.0, 3.0])
    between, at = pictures_at(str(film.path), [1.9, 0.5])
    assert between.jpeg == at.jpeg


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "flv", "ts"])
def test_every_time_shows_its_own_frame_wherever_a_seek_lands(tmp_path: Path, suffix: str) -> None:
    form = Format(start_seconds=100, options={"preset": "medium", "bf": "3", "g": "48"})
    film = make_film(tmp_path / f"a.{suffix}", [numbered(6)], form)
    for number in range(0, 144, 5):
        (picture,) = pictures_at(str(film.path), [number / 24])
        assert shown_number(picture) == number


def test_a_time_in_joined_recordings_shows_its_own_frame(tmp_path: Path) -> None:
    parts = [make_film(tmp_path / f"{n}.ts", [numbered(4)]).path for n in range(2)]
    joined = tmp_path / "joined.ts"
    joined.write_bytes(b"".join(part.read_bytes() for part in parts))
    seconds, _ = decoded_seconds(joined)
    assert len(seconds) == 192
    for place in (30, 95, 96, 97, 180):
        (picture,) = pictures_at(str(joined), [seconds[place]])
        assert shown_number(picture) == place % 96


def shown_number(picture: Picture) -> int:
    return number_of(cv2.imdecode(np.frombuffer(picture.jpeg, np.uint8), cv2.IMREAD_COLOR))


def test_a_file_that_is_gone_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match="there is no such file"):
        pictures_at(str(tmp_path / "gone.mp4"), [1.0])


# The pictures of a stretch


def kept_by_ingest(path: Path, step_seconds: float, start: float, end: float) -> list[float]:
    """What the sampler keeps of a whole pass in which `[start, end)` is a scene."""
    sampler = Sampler(step_seconds)
    kept, inside = [], False
    with open_video(str(path)) as container:
        for frame in Decoder(container, video_stream(container)):
            if frame.seconds >= end - 1e-3:
                break
            starts = not inside and frame.seconds >= start - 1e-3
            inside = inside or starts
            kept += sampler.add(frame, starts)
        kept += sampler.finish()
        return sorted(one.seconds for one in kept if one.seconds >= start - 1e-3)


@pytest.mark.parametrize("step_seconds", [0.3, 1.0, 5.0])
@pytest.mark.parametrize(("start", "end"), [(0, 6), (0, 2.5), (2, 4), (3.7, 5.2), (4.1, 4.2)])
@pytest.mark.parametrize("gop", [12, 250])
def test_a_stretch_shows_what_an_ingest_keeps_of_it(
    tmp_path: Path, step_seconds: float, start: float, end: float, gop: int
) -> None:
    film = make_film(tmp_path / "a.mp4", [numbered(6)], Format(options={"g": str(gop)}))
    pictures = sampled_pictures(str(film.path), start, end, step_seconds)
    expected = kept_by_ingest(film.path, step_seconds, start, end)
    assert [one.seconds for one in pictures] == pytest.approx(expected, abs=1e-6)
    assert pictures == pictures_at(str(film.path), [one.seconds for one in pictures])


def test_a_stretch_without_an_end_goes_to_the_videos_own(tmp_path: Path) -> None:
    stretch = read_stretch(str(three_shots(tmp_path / "a.mp4").path), 3.5, None, 1.0)
    assert [one.seconds for one in stretch.pictures] == pytest.approx([3.5, 4.0, 5.0])
    assert (stretch.width, stretch.height) == (160, 120)
    assert stretch.end_seconds == pytest.approx(6.0)


def test_a_stretch_between_two_frames_shows_the_one_on_the_screen(tmp_path: Path) -> None:
    film = make_film(tmp_path / "a.mp4", [numbered(4)], frame_seconds=[0.0, 0.5, 3.0, 3.5])
    (only,) = sampled_pictures(str(film.path), 1.0, 2.0, 1.0)
    assert only == pictures_at(str(film.path), [only.seconds])[0]
    assert only.seconds == pytest.approx(0.5, abs=1e-4)


def test_a_stretch_after_the_end_is_an_error_that_tells_the_end(tmp_path: Path) -> None:
    film = three_shots(tmp_path / "a.mp4")
    with pytest.raises(VideoError, match=r"a\.mp4: is over after 6\.0 s; nothing is shown at 9 s"):
        sampled_pictures(str(film.path), 9, 12, 1.0)


def test_a_single_picture_is_that_of_its_time(tmp_path: Path) -> None:
    film = make_film(tmp_path / "a.mp4", [numbered(6)])
    jpeg = frames_module.picture(str(film.path), 2.0).jpeg
    assert number_of(cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)) == 48
