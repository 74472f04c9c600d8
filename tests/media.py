"""Small videos with known truth, made in-process by PyAV when a test asks for them.

    film = make_film(tmp_path / "a.mp4", [shot(2), fade_out(1), fade_in(1, 5), shot(2, 5)])
    film.cuts          seconds of each hard cut
    film.fades         (start, end) of each fade-out with the fade-in that follows it

A shot is a coarse random texture that slides slowly, so that neighbouring frames are alike and
frames of two shots are not. Nothing here is a test, and nothing imports vidqa.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.subtitles.subtitle import SubtitleSet
from numpy.typing import NDArray

REPOSITORY = Path(__file__).resolve().parent.parent
REAL_VIDEOS = REPOSITORY.parent / "shared" / "videos"


@dataclass(frozen=True)
class Shot:
    """`seconds` of the texture `seed`, mixed with `toward` from `mix_start` to `mix_end` (0 to 1).

    `toward` is a grey level from 0 to 255, or the seed of another texture as `("seed", n)`.
    """

    seconds: float
    seed: int
    dark: float = 1.0
    mix_start: float = 0.0
    mix_end: float = 0.0
    toward: int | tuple[str, int] = 0

    @property
    def is_fade_out(self) -> bool:
        return self.mix_end > self.mix_start


@dataclass(frozen=True)
class Film:
    path: Path
    seconds: float
    frame_seconds: tuple[float, ...]
    cuts: tuple[float, ...] = ()
    fades: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True)
class Format:
    """How a film is written; the defaults are what most files are: H.264 in mp4."""

    codec: str = "libx264"
    width: int = 160
    height: int = 120
    fps: int | Fraction = 24
    rotation: int = 0
    sample_aspect: Fraction = Fraction(1)
    options: dict[str, str] = field(default_factory=dict)
    container_options: dict[str, str] = field(default_factory=dict)
    audio: bool = False
    start_seconds: float = 0.0


def shot(seconds: float, seed: int = 0, dark: float = 1.0) -> Shot:
    return Shot(seconds, seed, dark)


def fade_out(seconds: float, seed: int = 0, toward: int = 0) -> Shot:
    return Shot(seconds, seed, mix_end=1.0, toward=toward)


def fade_in(seconds: float, seed: int = 0, toward: int = 0) -> Shot:
    return Shot(seconds, seed, mix_start=1.0, toward=toward)


def hold(seconds: float, level: int = 0) -> Shot:
    """A plain grey level."""
    return Shot(seconds, 0, mix_start=1.0, mix_end=1.0, toward=level)


def dissolve(seconds: float, seed: int, into: int) -> Shot:
    return Shot(seconds, seed, mix_end=1.0, toward=("seed", into))


# The seed of pictures that show their own number, in eight bars for its bits, lowest first.
NUMBERS = -1


def numbered(seconds: float) -> Shot:
    """Frames that `number_of` tells apart, the first 256 of a film."""
    return Shot(seconds, NUMBERS)


def number_of(picture: NDArray[np.uint8]) -> int:
    """The number that a frame of `numbered` shows, whatever its size."""
    height, width, _ = picture.shape
    bars = [picture[height // 2, int((bit + 0.5) * width / 8)].mean() for bit in range(8)]
    return sum(1 << bit for bit in range(8) if bars[bit] > 128)


def texture(seed: int, width: int, height: int, step: int) -> NDArray[np.float32]:
    """A colourful coarse pattern that slides by a pixel every other frame; or bars, see NUMBERS."""
    if seed == NUMBERS:
        bits = step >> (np.arange(width) * 8 // width) & 1
        return np.broadcast_to(bits[None, :, None] * 255.0, (height, width, 3)).astype(np.float32)
    rng = np.random.default_rng(seed)
    base = rng.uniform(40, 216, 3)
    cells = np.clip(base + rng.normal(0, 40, (8, 12, 3)), 16, 240)
    rows = (np.arange(height) * 8 // height) % 8
    columns = ((np.arange(width) + step // 2) * 12 // width) % 12
    return cells[rows][:, columns].astype(np.float32)


def render(one: Shot, at: float, step: int, width: int, height: int) -> NDArray[np.uint8]:
    """The picture of a shot, `at` seconds after its start."""
    picture = texture(one.seed, width, height, step) * one.dark
    part = one.mix_start + (one.mix_end - one.mix_start) * at / one.seconds
    if part:
        other: Any = one.toward
        if isinstance(other, tuple):
            other = texture(other[1], width, height, step)
        picture = picture * (1 - part) + other * part
    return np.clip(picture, 0, 255).astype(np.uint8)


def make_film(
    path: Path,
    shots: Sequence[Shot],
    form: Format | None = None,
    frame_seconds: Sequence[float] | None = None,
) -> Film:
    """Writes a film; `frame_seconds` gives a variable frame rate, by default it is constant."""
    form = form or Format()
    total = sum(one.seconds for one in shots)
    if frame_seconds is None:
        frame_seconds = [float(i / form.fps) for i in range(round(total * form.fps))]
    with av.open(str(path), "w", options=form.container_options) as container:
        stream = _video_stream(container, form)
        sound = container.add_stream("aac", rate=8000) if form.audio else None
        for step, (seconds, picture) in enumerate(_pictures(shots, frame_seconds, form)):
            frame = av.VideoFrame.from_ndarray(picture, "rgb24")
            frame.pts = round((seconds + form.start_seconds) * 90_000)
            frame.time_base = Fraction(1, 90_000)
            container.mux(stream.encode(frame))
            if sound is not None and step == 0:
                _silence(container, sound, total, form.start_seconds)
        container.mux(stream.encode(None))
    return _truth(path, shots, tuple(frame_seconds), total)


def _video_stream(container: Any, form: Format) -> Any:
    stream = container.add_stream(form.codec, rate=form.fps)
    stream.width, stream.height = form.width, form.height
    stream.pix_fmt = "yuv420p"
    stream.codec_context.time_base = Fraction(1, 90_000)
    stream.codec_context.thread_count = 1
    fast = {"preset": "ultrafast"} if form.codec in ("libx264", "libx265") else {}
    if form.codec == "libx265":
        fast["x265-params"] = "log-level=none:pools=1"
    if form.codec == "libvpx-vp9":
        fast = {"deadline": "realtime", "cpu-used": "8"}
    stream.options = {**fast, **form.options}
    stream.codec_context.sample_aspect_ratio = form.sample_aspect
    if form.codec == "mpeg4":
        stream.codec_context.time_base = 1 / Fraction(form.fps)
    if form.rotation:
        stream.set_display_rotation(form.rotation)
    return stream


def _pictures(
    shots: Sequence[Shot], frame_seconds: Sequence[float], form: Format
) -> Iterator[tuple[float, NDArray[np.uint8]]]:
    starts = np.cumsum([0.0] + [one.seconds for one in shots])
    for step, seconds in enumerate(frame_seconds):
        k = int(np.searchsorted(starts, seconds + 1e-9, side="right")) - 1
        k = min(k, len(shots) - 1)
        yield seconds, render(shots[k], seconds - starts[k], step, form.width, form.height)


def _silence(container: Any, stream: Any, seconds: float, start_seconds: float = 0.0) -> None:
    for start in range(0, int(seconds * 8000), 1024):
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate, frame.pts = 8000, start + round(start_seconds * 8000)
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


def _truth(
    path: Path, shots: Sequence[Shot], frame_seconds: tuple[float, ...], total: float
) -> Film:
    cuts, fades, at, fade_start = [], [], 0.0, None
    for before, one in zip((None, *shots), shots, strict=False):
        if one.is_fade_out:
            fade_start = at
        elif one.mix_start and not one.mix_end and fade_start is not None:
            fades.append((fade_start, at + one.seconds))
            fade_start = None
        elif before is not None and _is_hard_cut(before, one):
            cuts.append(at)
        at += one.seconds
    return Film(path, total, frame_seconds, tuple(cuts), tuple(fades))


def _is_hard_cut(before: Shot, one: Shot) -> bool:
    return (
        one.seed != before.seed
        and not before.is_fade_out
        and not one.mix_start
        and not before.mix_start
    )


def three_shots(path: Path, form: Format | None = None) -> Film:
    """Six seconds with hard cuts at 2 and 4: the film for tests that need just any film."""
    return make_film(path, [shot(2, 1), shot(2, 2), shot(2, 3)], form)


def make_audio_only(path: Path, seconds: float = 1.0) -> Path:
    with av.open(str(path), "w") as container:
        _silence(container, container.add_stream("aac", rate=8000), seconds)
    return path


def truncate(path: Path, fraction: float) -> Path:
    """Cuts a file off after `fraction` of its bytes, as an interrupted copy does."""
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * fraction)])
    return path


def add_subtitles(
    source: Path, target: Path, codec: str, cues: Sequence[tuple[float, float, str]]
) -> Path:
    """Copies the video of `source` to `target` and adds a text stream to it."""
    with av.open(str(source)) as taken, av.open(str(target), "w") as container:
        video = taken.streams.video[0]
        copied = container.add_stream_from_template(video)
        text = container.add_stream(codec)
        header = "[Script Info]\nScriptType: v4.00+\n\n[Events]\nFormat: Layer, Text\n"
        text.codec_context.subtitle_header = header.encode()
        text.time_base = text.codec_context.time_base = Fraction(1, 1000)
        packets = [_cue_packet(text, n, *cue) for n, cue in enumerate(cues)]
        for packet in taken.demux(video):
            if packet.dts is None:
                continue
            packet.stream = copied
            container.mux(packet)
        for packet in packets:
            container.mux(packet)
    return target


def _cue_packet(stream: Any, n: int, start: float, end: float, text: str) -> av.Packet:
    dialogue = f"{n},0,Default,,0,0,0,,{text}"
    cue = SubtitleSet.create(dialogue.encode(), 0, round((end - start) * 1000), round(start * 1e6))
    packet = stream.codec_context.encode_subtitle(cue)
    packet.stream = stream
    packet.time_base = Fraction(1, 1000)
    packet.pts = packet.dts = round(start * 1000)
    packet.duration = round((end - start) * 1000)
    return packet
