"""Clips: which frames and which sound they hold and when, and what a failure leaves behind."""

from __future__ import annotations

import asyncio
import math
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from tests.media import (
    REAL_VIDEOS,
    Film,
    Format,
    make_film,
    number_of,
    numbered,
    shot,
    truncate,
)
from tests.waiting import runs, until
from vidqa import clips
from vidqa.clip_main import write_clip
from vidqa.clip_pictures import Source, _plan_copy, clip_size
from vidqa.clips import cut, cut_async
from vidqa.containers import open_video, video_stream
from vidqa.errors import VideoError
from vidqa.frames import Decoder
from vidqa.probe import probe

# As cameras and editors write it: long groups of pictures, with pictures out of order.
REORDERED = {"preset": "medium", "bf": "3", "g": "60"}


@dataclass(frozen=True)
class Shown:
    """(seconds, number) of each frame, and how long pictures and sound last."""

    frames: list[tuple[float, int]]
    seconds: float
    sound_seconds: float | None


def played(path: Path) -> Shown:
    with av.open(str(path)) as container:
        pictures, sounds = container.streams.video[0], container.streams.audio
        frames = [
            (one.time, number_of(one.to_ndarray(format="rgb24")))
            for one in container.decode(pictures)
        ]
        lengths = [float(one.duration * one.time_base) for one in (pictures, *sounds)]
    return Shown(frames, lengths[0], lengths[1] if sounds else None)


def on_screen(path: Path, start: float, end: float) -> list[tuple[float, int]]:
    """The truth: one whole decode, with the times that everything else here goes by."""
    with open_video(str(path)) as container:
        frames = [
            (one.seconds, number_of(one.picture.to_ndarray(format="rgb24")))
            for one in Decoder(container, video_stream(container))
        ]
    first = max(n for n, (seconds, _) in enumerate(frames) if seconds <= start + 0.004)
    return [
        (max(0.0, seconds - start), number)
        for n, (seconds, number) in enumerate(frames)
        if n >= first and seconds < end - 0.004
    ]


def clip_of(film: Film, start: float, end: float) -> Path:
    target = film.path.with_name("clip.mp4")
    write_clip(Source(str(film.path), start, end), target)
    return target


def is_copied(film: Film, start: float, end: float) -> bool:
    return _plan_copy(Source(str(film.path), start, end)) is not None


def assert_exact(film: Film, start: float, end: float) -> Shown:
    shown, truth = played(clip_of(film, start, end)), on_screen(film.path, start, end)
    assert [number for _, number in shown.frames] == [number for _, number in truth]
    assert [at for at, _ in shown.frames] == pytest.approx([at for at, _ in truth], abs=0.0045)
    assert shown.seconds == pytest.approx(end - start, abs=0.0045)
    return shown


# Pictures


@pytest.mark.parametrize("start_seconds", [0.0, 100.0])
@pytest.mark.parametrize(
    ("suffix", "form"),
    [
        ("mp4", Format(options=REORDERED)),
        ("mp4", Format(options={"bf": "0", "g": "60"})),
        ("mkv", Format(options=REORDERED)),
        ("ts", Format(options=REORDERED)),
        ("flv", Format(options={**REORDERED, "x264-params": "open-gop=1"})),
        ("webm", Format(codec="libvpx-vp9")),
        ("mp4", Format(codec="libx265")),
        ("avi", Format(codec="mpeg4")),
    ],
)
def test_a_clip_shows_what_is_on_the_screen_from_start_to_end(
    tmp_path: Path, suffix: str, form: Format, start_seconds: float
) -> None:
    if suffix == "avi" and start_seconds:
        pytest.skip("AVI has no time to start at")
    form = Format(form.codec, options=form.options, start_seconds=start_seconds)
    film = make_film(tmp_path / f"a.{suffix}", [numbered(6)], form)
    spans = [(0, 20), (1, 2), (30.5, 33.2), (47, 100), (59, 61), (60, 120), (61.3, 143.6)]
    for first, last in spans:
        assert_exact(film, first / 24, last / 24)


def test_what_browsers_play_is_copied_and_not_encoded_again(tmp_path: Path) -> None:
    film = make_film(tmp_path / "a.mp4", [numbered(6)], Format(options={"bf": "0", "g": "60"}))
    assert is_copied(film, 30.5 / 24, 77 / 24)
    with av.open(str(film.path)) as whole, av.open(str(clip_of(film, 3.0, 4.0))) as clip:
        sizes = [packet.size for packet in whole.demux(video=0)]
        assert [packet.size for packet in clip.demux(video=0)][:-1] == sizes[60:96]


def test_an_end_among_pictures_out_of_order_is_encoded_for_it_would_show_more(
    tmp_path: Path,
) -> None:
    film = make_film(tmp_path / "a.mp4", [numbered(6)], Format(options=REORDERED))
    copied = {last: is_copied(film, 1.0, last / 24) for last in range(100, 120)}
    assert set(copied.values()) == {True, False}
    for last in (next(n for n, way in copied.items() if way is wanted) for wanted in (True, False)):
        assert_exact(film, 1.0, last / 24)


def test_a_picture_that_stays_for_long_is_shown_though_it_began_before(tmp_path: Path) -> None:
    for suffix, codec in (("mp4", "libx264"), ("webm", "libvpx-vp9")):
        times = [0.0, 0.5, 0.6, 5.0, 9.0]
        form = Format(codec)
        film = make_film(tmp_path / f"a.{suffix}", [numbered(10)], form, frame_seconds=times)
        shown = played(clip_of(film, 2.0, 4.0))
        assert shown.frames == [(0.0, 2)]
        assert shown.seconds == pytest.approx(2.0, abs=0.01)


@pytest.mark.parametrize("codec", ["libx264", "libvpx-vp9"])
def test_a_variable_frame_rate_keeps_its_times(tmp_path: Path, codec: str) -> None:
    times = [0.0, 0.04, 0.5, 0.55, 2.0, 2.1, 2.11, 3.9]
    film = make_film(tmp_path / "a.mkv", [numbered(4)], Format(codec), frame_seconds=times)
    shown = played(clip_of(film, 0.5, 3.0))
    assert [number for _, number in shown.frames] == [2, 3, 4, 5, 6]
    assert [at for at, _ in shown.frames] == pytest.approx([0, 0.05, 1.5, 1.6, 1.61], abs=0.002)
    assert shown.seconds == pytest.approx(2.5, abs=0.002)


def test_joined_recordings_are_counted_through(tmp_path: Path) -> None:
    parts = [make_film(tmp_path / f"{n}.ts", [numbered(4)]).path for n in range(2)]
    joined = Film(tmp_path / "joined.ts", 8.0, ())
    joined.path.write_bytes(b"".join(part.read_bytes() for part in parts))
    assert [number for _, number in played(clip_of(joined, 3.5, 4.5)).frames][::6] == [84, 90, 0, 6]
    assert played(clip_of(joined, 5.0, 5.5)).frames[0] == (0.0, 24)


@pytest.mark.parametrize("codec", ["libx264", "libx265"])
@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_a_rotated_video_stays_as_it_is_shown(tmp_path: Path, codec: str, rotation: int) -> None:
    film = make_film(tmp_path / "a.mp4", [shot(2)], Format(codec, rotation=rotation))
    before, after = probe(film.path), probe(clip_of(film, 0.5, 1.5))
    assert after.rotation_degrees == before.rotation_degrees != 0
    assert (after.width, after.height) == (before.width, before.height)


@pytest.mark.parametrize("codec", ["libx264", "libvpx-vp9"])
def test_pixels_that_are_not_square_are_shown_as_wide(tmp_path: Path, codec: str) -> None:
    form = Format(codec, sample_aspect=Fraction(4, 3))
    film = make_film(tmp_path / "a.mkv", [shot(1)], form)
    before, after = probe(film.path), probe(clip_of(film, 0.0, 0.5))
    assert after.width == pytest.approx(before.width, abs=1)


@pytest.mark.parametrize(
    ("size", "clip"),
    [
        ((1280, 720), (1280, 720)),
        ((3840, 2160), (1920, 1080)),
        ((2160, 3840), (1080, 1920)),
        ((101, 77), (100, 76)),
        ((5000, 1), (1920, 2)),
    ],
)
def test_an_encoded_clip_is_even_and_within_1080p(
    size: tuple[int, int], clip: tuple[int, int]
) -> None:
    assert clip_size(*size, None) == clip


def test_colours_of_ten_bits_of_rgb_and_of_full_range_stay(tmp_path: Path) -> None:
    ways = [("libx264", "yuv420p10le"), ("libx264rgb", "rgb24"), ("mjpeg", "yuvj420p")]
    for codec, pixels in ways:
        path = tmp_path / f"{codec}.mkv"
        with av.open(str(path), "w") as container:
            stream: Any = container.add_stream(codec, rate=10)
            stream.width, stream.height, stream.pix_fmt = 64, 48, pixels
            for _ in range(10):
                colour = np.full((48, 64, 3), (200, 60, 30), np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(colour, "rgb24")))
            container.mux(stream.encode(None))
        target = clip_of(Film(path, 1.0, ()), 0.2, 0.8)
        with av.open(str(target)) as container:
            assert container.streams.video[0].codec_context.pix_fmt == "yuv420p"
            shown = next(container.decode(video=0)).to_ndarray(format="rgb24")
        assert np.abs(shown.mean((0, 1)) - (200, 60, 30)).max() < 6


def test_a_player_can_start_before_it_has_the_whole_file(tmp_path: Path) -> None:
    film = make_film(tmp_path / "a.mp4", [numbered(3)])
    content = clip_of(film, 1.0, 2.0).read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")


# Sound


def make_beeping(path: Path, codec: str, picture_start: float = 0.0, rate: int = 48_000) -> Film:
    """Six seconds whose sound is a tone from 2.0 to 2.5 seconds after the first picture."""
    with av.open(str(path), "w") as container:
        pictures: Any = container.add_stream("libx264", rate=24, options={"bf": "0", "g": "240"})
        pictures.width, pictures.height, pictures.pix_fmt = 64, 48, "yuv420p"
        sounds: Any = container.add_stream(codec, rate=rate, layout="mono")
        for n in range(60):
            for k in range(n * 24 // 10, (n + 1) * 24 // 10):
                frame = av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), "rgb24")
                frame.pts, frame.time_base = k + round(picture_start * 24), Fraction(1, 24)
                container.mux(pictures.encode(frame))
            at = (np.arange(rate // 10) + n * rate // 10) / rate
            tone = np.sin(at * 2 * np.pi * 440) * ((at >= 2.0) & (at < 2.5)) * 20_000
            samples = av.AudioFrame.from_ndarray(tone.astype(np.int16)[None], "s16", "mono")
            samples.sample_rate, samples.time_base = rate, Fraction(1, rate)
            samples.pts = n * rate // 10 + round(picture_start * rate)
            container.mux(sounds.encode(samples))
        container.mux(pictures.encode(None))
        container.mux(sounds.encode(None))
    return Film(path, 6.0, ())


def loud_seconds(path: Path) -> tuple[float, float]:
    """From when to when there is a tone; decoders hide what the edit list cuts off."""
    loud: list[float] = []
    with av.open(str(path)) as container:
        for frame in container.decode(audio=0):
            samples = np.abs(frame.to_ndarray().astype(np.float64))
            scale = 32768 if "s16" in frame.format.name else 1
            channel = samples.reshape(-1)[:: 1 if frame.format.is_planar else 2]
            places = np.flatnonzero(channel[: frame.samples] > 0.2 * scale)
            loud += [frame.time + place / frame.sample_rate for place in places]
    return min(loud), max(loud)


@pytest.mark.parametrize("picture_start", [0.0, 50.0])
@pytest.mark.parametrize(
    ("suffix", "codec", "kept"),
    [
        ("mp4", "aac", "aac"),
        ("ts", "aac", "aac"),
        ("mkv", "libmp3lame", "mp3float"),
        ("mkv", "libopus", "aac"),
        ("mkv", "pcm_s16le", "aac"),
    ],
)
def test_sound_stays_with_its_pictures(
    tmp_path: Path, suffix: str, codec: str, kept: str, picture_start: float
) -> None:
    film = make_beeping(tmp_path / f"a.{suffix}", codec, picture_start)
    target = clip_of(film, 1.3, 3.7)
    with av.open(str(target)) as container:
        assert container.streams.audio[0].codec_context.name == kept
    first, last = loud_seconds(target)
    # Encoders of the source smear a tone over a packet and delay it by as much.
    assert (first, last) == pytest.approx((0.7, 1.2), abs=0.06)
    assert played(target).sound_seconds == pytest.approx(2.4, abs=0.01)


def test_sound_that_is_encoded_keeps_its_moment_to_a_hundredth(tmp_path: Path) -> None:
    film = make_beeping(tmp_path / "a.mkv", "pcm_s16le")
    assert loud_seconds(clip_of(film, 1.3, 3.7)) == pytest.approx((0.7, 1.2), abs=0.01)


def test_a_clip_where_the_sound_has_ended_has_pictures_alone(tmp_path: Path) -> None:
    film = make_film(tmp_path / "a.mkv", [numbered(8)], Format(audio=True))
    shorter = tmp_path / "b.mkv"
    with av.open(str(film.path)) as taken, av.open(str(shorter), "w") as container:
        copies = {n: container.add_stream_from_template(one) for n, one in enumerate(taken.streams)}
        for packet in taken.demux():
            sounds_late = packet.stream.type == "audio" and (packet.pts or 0) > 2000
            if packet.size and not sounds_late:
                packet.stream = copies[packet.stream_index]
                container.mux(packet)
    assert played(clip_of(Film(shorter, 8.0, ()), 1.0, 2.0)).sound_seconds == pytest.approx(1.0)
    assert played(clip_of(Film(shorter, 8.0, ()), 5.0, 6.0)).sound_seconds is None


# What is no clip


@pytest.mark.parametrize(
    ("start", "end"), [(-1.0, 2.0), (2.0, 2.0), (3.0, 2.0), (0.0, math.inf), (math.nan, 1.0)]
)
def test_what_is_no_range_is_one_line(tmp_path: Path, start: float, end: float) -> None:
    with pytest.raises(VideoError, match=r"seconds is no clip; it starts at 0 or later and ends"):
        cut("a.mp4", start, end, tmp_path / "clip.mp4")


@pytest.mark.parametrize("start", [6.1, 60.0, 1e15])
@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
def test_a_range_after_the_end_is_outside_the_video(
    tmp_path: Path, suffix: str, start: float
) -> None:
    film = make_film(tmp_path / f"a.{suffix}", [numbered(6)], Format(audio=True))
    with pytest.raises(VideoError, match=r"is outside the video, which lasts 6\.0 seconds"):
        clip_of(film, start, start + 5)


def test_a_range_that_ends_after_the_video_ends_with_it(tmp_path: Path) -> None:
    film = make_film(tmp_path / "a.mp4", [numbered(6)], Format(audio=True))
    shown = played(clip_of(film, 5.0, 9.0))
    assert [number for _, number in shown.frames] == list(range(120, 144))
    assert shown.seconds == pytest.approx(1.0, abs=0.001)


def test_a_file_that_is_gone_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match=r"^/.*gone\.mp4: there is no such file$"):
        cut(str(tmp_path / "gone.mp4"), 0, 1, tmp_path / "clip.mp4")


def test_a_file_that_is_no_video_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"nothing of a video" * 100)
    with pytest.raises(VideoError, match="is not a video"):
        cut(str(tmp_path / "a.mp4"), 0, 1, tmp_path / "clip.mp4")
    assert os.listdir(tmp_path) == ["a.mp4"]


def test_a_truncated_file_gives_what_it_has_and_else_says_so(tmp_path: Path) -> None:
    form = Format(container_options={"movflags": "faststart"}, options={"g": "24"})
    film = make_film(tmp_path / "a.mp4", [shot(12)], form)
    truncate(film.path, 0.5)
    clip_of(film, 1.0, 3.0)
    with pytest.raises(VideoError, match="is truncated: "):
        clip_of(film, 4.0, 10.0)


def test_a_folder_that_is_not_there_cannot_be_written_to(tmp_path: Path) -> None:
    film = make_film(tmp_path / "a.mp4", [numbered(1)])
    with pytest.raises(VideoError, match=r"no/folder: the clip cannot be written: No such file"):
        cut(str(film.path), 0, 1, tmp_path / "no" / "folder" / "clip.mp4")


# The process


def test_the_clip_is_there_whole_and_alone(tmp_path: Path, target: Path) -> None:
    film = make_film(tmp_path / "a.mp4", [numbered(3)])
    target.write_text("an earlier clip")
    cut(str(film.path), 1.0, 2.0, target)
    assert len(played(target).frames) == 24
    assert os.listdir(target.parent) == ["clip.mp4"]


@pytest.fixture(scope="module")
def slow_film(tmp_path_factory: pytest.TempPathFactory) -> Film:
    """A film that takes seconds to encode."""
    path = tmp_path_factory.mktemp("slow") / "slow.avi"
    return make_film(path, [shot(8)], Format("mpeg4", 1280, 720))


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """A clip to be, in a folder of its own."""
    (tmp_path / "out").mkdir()
    return tmp_path / "out" / "clip.mp4"


def working(target: Path) -> int:
    """Waits for a process to write; its id."""
    until(lambda: bool(parts(target)))
    return int(parts(target)[0].split(".")[-2])


def parts(target: Path) -> list[str]:
    return [name for name in os.listdir(target.parent) if name.endswith(".part")]


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (signal.SIGSEGV, r"cutting the clip crashed \(SIGSEGV\); the file may be damaged"),
        (signal.SIGKILL, "SIGKILL, perhaps for lack of memory"),
    ],
)
def test_a_crash_costs_the_clip_alone(
    slow_film: Film, target: Path, number: int, reason: str
) -> None:

    async def kill_it() -> None:
        task = asyncio.create_task(cut_async(str(slow_film.path), 0, 8, target))
        os.kill(await asyncio.to_thread(working, target), number)
        await task

    with pytest.raises(VideoError, match=reason):
        asyncio.run(kill_it())
    assert os.listdir(target.parent) == []


def test_cancelling_ends_the_process_and_leaves_nothing(slow_film: Film, target: Path) -> None:

    async def cancel_it() -> int:
        task = asyncio.create_task(cut_async(str(slow_film.path), 0, 8, target))
        pid = await asyncio.to_thread(working, target)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return pid

    assert not runs(asyncio.run(cancel_it()))
    assert os.listdir(target.parent) == []


def test_what_takes_too_long_is_ended(slow_film: Film, target: Path) -> None:
    with pytest.raises(VideoError, match=r"took longer than 0\.5 seconds; ask for a shorter one"):
        cut(str(slow_film.path), 0, 8, target, timeout_seconds=0.5)
    assert os.listdir(target.parent) == []


PARENT = """
import sys
from pathlib import Path
from vidqa.clips import cut
cut(sys.argv[1], 0, 8, Path(sys.argv[2]))
"""


def test_no_process_and_no_file_outlive_a_killed_parent(slow_film: Film, target: Path) -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(slow_film.path), str(target)])
    pid = working(target)
    parent.kill()
    parent.wait()
    until(lambda: not runs(pid))
    assert os.listdir(target.parent) == []


def test_a_module_in_the_users_folder_does_not_shadow_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "av.py").write_text("raise SystemExit('shadowed')")
    film = make_film(tmp_path / "a.mp4", [numbered(2)])
    monkeypatch.chdir(tmp_path)
    cut("a.mp4", 0.5, 1.0, Path("clip.mp4"))
    assert len(played(film.path.with_name("clip.mp4")).frames) == 12


def test_the_servers_side_loads_no_slow_package() -> None:
    slow = "{'av', 'numpy', 'torch', 'cv2'}"
    code = f"import sys, vidqa.clips; sys.exit(bool({slow} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert clips.command("a.mp4", 0, 1, Path("b.mp4"))[0] == sys.executable


# Real videos


@pytest.mark.skipif(not REAL_VIDEOS.is_dir(), reason="the real videos are not here")
@pytest.mark.parametrize("name", ["bigbuckbunny.mp4", "bikes.mp4", "carphone_pristine.mp4"])
def test_a_clip_of_a_real_video_shows_its_frames(tmp_path: Path, name: str) -> None:
    path = REAL_VIDEOS / name
    whole = pictures_of(path)
    start, end = whole[40][0], whole[75][0]
    cut(str(path), start, end, tmp_path / "clip.mp4")
    clip = pictures_of(tmp_path / "clip.mp4")
    assert [at for at, _ in clip] == pytest.approx(
        [at - start for at, _ in whole[40:75]], abs=0.002
    )
    for (_, shown), (_, truth) in zip(clip, whole[40:75], strict=True):
        assert np.abs(shown - truth).mean() < 3
    assert all(a < b for (a, _), (b, _) in pairwise(clip))


def pictures_of(path: Path) -> list[tuple[float, Any]]:
    with open_video(str(path)) as container:
        return [
            (one.seconds, one.picture.to_ndarray(width=64, height=48, format="gray") * 1.0)
            for one in Decoder(container, video_stream(container))
        ]
