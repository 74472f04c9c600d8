"""The one decoder: frames with their times in a forward pass, and which of them are kept.

    for frame in Decoder(container, stream): ...      frame.seconds, frame.picture (YUV)
    Sampler(step_seconds).add(frame, starts_scene)    the frames to keep
    pictures_at(path, seconds)                        the pictures of one moment
    frame_at(path, seconds)                           one frame at full size
    sampled_pictures(path, start, end, step)          those that an ingest would keep of a stretch

No more than a few decoded frames are alive at once, and one codec thread does the work: a
process for each video uses the cores better. What a scene is, is decided elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from vidqa.containers import (
    average_fps,
    declared_seconds,
    displayed_size,
    open_video,
    reading,
    shown,
    video_stream,
)
from vidqa.errors import VideoError
from vidqa.pictures import Scaler, encode_jpeg, fine, picture_size
from vidqa.types import Picture

if TYPE_CHECKING:
    import numpy as np
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream
    from numpy.typing import NDArray

# Frames of one timestamp are put this far apart; real ones, even of bursts, are farther.
LEAST_STEP_SECONDS = 1e-4

# A timestamp this far behind its neighbour is a new clock (joined recordings), not disorder.
CLOCK_RESTART_SECONDS = 1.0

# A file whose packets end this far before its declared end is an interrupted copy.
TRUNCATED_SECONDS = 2.0
TRUNCATED_PART = 0.1
# Containers that declare their duration in a header, where others estimate it.
_DECLARING_FORMATS = ("mov", "matroska", "avi", "asf")

# Formats whose files can be joined end to end, each with a clock of its own.
_JOINABLE_FORMATS = frozenset({"mpegts", "mpeg"})
# Steps back when a seek lands behind the keyframe; farther than the last is the file's start.
_SEEK_BACK_SECONDS = (0.0, 2.0, 12.0, 60.0)
_LANDING_PACKETS = 1000
_LAST_TIMESTAMP = 2**62

# The least number of frames that a scene is searched and shown by.
SCENE_FRAMES = 3


@dataclass(frozen=True, slots=True)
class Frame:
    """One decoded frame; `seconds` from the start of its stream, rising from frame to frame."""

    seconds: float
    picture: VideoFrame


class Clock:
    """Presentation timestamps become seconds that start at 0 and rise, whatever the file says.

    A missing timestamp counts as one average frame after the last. One that does not rise is put
    shortly after the last. A jump back by more than a second starts a new clock where the last
    one stopped.
    """

    def __init__(self, start_pts: int | None, time_base: float, fps: float) -> None:
        self._start_pts = start_pts
        self._time_base = time_base
        self.frame_seconds = 1.0 / fps
        self._shift_seconds = 0.0
        self._last: float | None = None

    def seconds(self, pts: int | None) -> float:
        """The time of the next frame; call once for each frame, in order of presentation."""
        self._last = self._rising(self._raw(pts))
        return self._last

    def _raw(self, pts: int | None) -> float | None:
        if pts is None:
            return None
        if self._start_pts is None:
            self._start_pts = pts
        return (pts - self._start_pts) * self._time_base + self._shift_seconds

    def _rising(self, seconds: float | None) -> float:
        if self._last is None:
            return max(0.0, seconds or 0.0)
        if seconds is None:
            return self._last + self.frame_seconds
        if seconds < self._last - CLOCK_RESTART_SECONDS:
            self._shift_seconds += self._last + self.frame_seconds - seconds
            return self._last + self.frame_seconds
        return max(seconds, self._last + LEAST_STEP_SECONDS)


class Decoder:
    """One forward pass: every packet of the file is read once, every video packet decoded once.

    A packet that cannot be decoded is passed over. `on_subtitle` gets the packets of text streams
    on the way. After the pass, `end_seconds` is the end of the last frame. Raises VideoError when
    reading breaks off, no frame decodes, or the file is truncated.
    """

    def __init__(
        self,
        container: InputContainer,
        stream: VideoStream,
        on_subtitle: Callable[[Packet[Any]], None] | None = None,
    ) -> None:
        self._container = container
        self._stream = stream
        self._on_subtitle = on_subtitle
        self._name = shown(container.name)
        self.clock = Clock(stream.start_time, float(stream.time_base or 0), average_fps(stream))
        self.end_seconds = 0.0
        self.packets_read = 0
        self.packets_decoded = 0
        self.packets_damaged = 0
        self._read_seconds = 0.0

    def __iter__(self) -> Iterator[Frame]:
        with reading(self._container.name):
            for packet in self._container.demux():
                if packet.stream_index == self._stream.index:
                    yield from self._decode(packet)
                elif self._on_subtitle and packet.stream.type == "subtitle" and packet.size:
                    self._on_subtitle(packet)
                self._note_progress(packet)
        self._check_whole()

    def _decode(self, packet: Packet[Any]) -> Iterator[Frame]:
        import av

        # An empty packet ends the stream and makes the decoder hand out what it held back.
        self.packets_read += bool(packet.size)
        try:
            pictures = packet.decode()
        except av.InvalidDataError:
            self.packets_damaged += 1
            return
        self.packets_decoded += bool(packet.size)
        for picture in pictures:
            yield self._frame(picture)

    def _frame(self, picture: VideoFrame) -> Frame:
        seconds = self.clock.seconds(picture.pts)
        length = float((picture.duration or 0) * (picture.time_base or 0))
        self.end_seconds = seconds + (length or self.clock.frame_seconds)
        return Frame(seconds, picture)

    def _note_progress(self, packet: Packet[Any]) -> None:
        if packet.pts is not None and packet.time_base:
            end = float((packet.pts + (packet.duration or 0)) * packet.time_base)
            self._read_seconds = max(self._read_seconds, end)

    def _check_whole(self) -> None:
        if not self.end_seconds:
            codec = self._stream.codec_context.name
            raise VideoError(f"{self._name}: no frame of its {codec} stream can be decoded")
        if not self._container.format.name.startswith(_DECLARING_FORMATS):
            return
        declared = declared_seconds(self._container, self._stream) or 0.0
        missing = declared - max(self.end_seconds, self._read_seconds)
        if missing > max(TRUNCATED_SECONDS, TRUNCATED_PART * declared):
            raise VideoError(
                f"{self._name}: is truncated: {self.end_seconds:.0f} of {declared:.0f} seconds "
                "can be read; copy it again"
            )


class Sampler:
    """Which frames of a video are kept: one each `step_seconds`, and at least three per scene.

    The frames on the grid are the first at or after each multiple of the step. Until a scene has
    three of them, three further frames wait, spread over what has been seen of it: its first and
    those at one and two times the greatest power of two (0, 8, 16 after 30 frames). When the
    scene ends too early, as many of them as are missing are kept. So a scene of n frames has at
    least min(3, n), frames that are not kept cost no conversion, and at most three are held.
    """

    def __init__(self, step_seconds: float) -> None:
        self._step_seconds = step_seconds
        self._next_seconds = 0.0
        self._spares: list[Frame] = []
        self._kept_seconds: list[float] = []
        self._length = 0

    def add(self, frame: Frame, starts_scene: bool = False) -> list[Frame]:
        """Takes the next frame; returns those to keep, which may be earlier ones."""
        kept = self.finish() if starts_scene else []
        if frame.seconds >= self._next_seconds:
            steps = int(frame.seconds / self._step_seconds + 1e-9) + 1
            self._next_seconds = steps * self._step_seconds
            kept.append(frame)
            if len(self._kept_seconds) < SCENE_FRAMES:
                self._kept_seconds.append(frame.seconds)
        self._offer(frame)
        return kept

    def finish(self) -> list[Frame]:
        """Ends the scene; returns what it needs to have three frames."""
        missing = SCENE_FRAMES - len(self._kept_seconds)
        spares = [one for one in self._spares if one.seconds not in self._kept_seconds]
        kept = spread(spares, self._kept_seconds, missing)
        self._spares, self._kept_seconds, self._length = [], [], 0
        return kept

    def _offer(self, frame: Frame) -> None:
        position, self._length = self._length, self._length + 1
        if len(self._kept_seconds) == SCENE_FRAMES:
            self._spares = []
        elif position < SCENE_FRAMES:
            self._spares.append(frame)
        elif position & (position - 1) == 0:
            self._spares = [self._spares[0], self._spares[-1], frame]


def spread(spares: Sequence[Frame], kept_seconds: Sequence[float], count: int) -> list[Frame]:
    """Up to `count` of the spares, each the farthest in time from all that are kept so far."""
    left, taken = list(spares), list(kept_seconds)
    chosen: list[Frame] = []
    while left and len(chosen) < count:
        best = max(left, key=lambda one: min((abs(one.seconds - t) for t in taken), default=0.0))
        left.remove(best)
        taken.append(best.seconds)
        chosen.append(best)
    return chosen


def pictures_at(path: str, seconds: Sequence[float]) -> list[Picture]:
    """The pictures shown at some times of one moment, in the order of `seconds`.

    One forward decode from the keyframe before the earliest time to the latest: the way when the
    kept pictures are gone. Raises VideoError when the file is gone or ends before a time.
    """
    wanted = sorted(set(seconds))
    found: dict[float, bytes] = {}
    with open_before(path, wanted[0]) as (container, stream):
        scaler: Scaler | None = None
        for at, picture in _shown_at(container, stream, wanted):
            if scaler is None:
                size = picture_size(*displayed_size(picture, stream.sample_aspect_ratio))
                scaler = Scaler(*size, "bgr24", fine())
            found[at] = encode_jpeg(scaler(picture))
    return [Picture(at, found[at]) for at in seconds]


@dataclass(frozen=True, slots=True)
class FullFrame:
    """One frame as it is displayed: uint8 (H, W, 3), RGB, upright; and as `pictures_at` has it."""

    image: NDArray[np.uint8]
    kept: Picture


def frame_at(path: str, seconds: float) -> FullFrame:
    """The frame on the screen at a time. Raises VideoError as `pictures_at` does."""
    with open_before(path, seconds) as (container, stream):
        for at, picture in _shown_at(container, stream, [seconds]):
            size = displayed_size(picture, stream.sample_aspect_ratio)
            image = Scaler(*size, "rgb24", fine())(picture)
            small = Scaler(*picture_size(*size), "bgr24", fine())(picture)
            return FullFrame(image, Picture(at, encode_jpeg(small)))
    raise VideoError(f"{shown(path)}: has no frame at {seconds:g} s")


def picture(path: str, seconds: float) -> Picture:
    """The picture on the screen at a time. Raises VideoError as `pictures_at` does."""
    return pictures_at(path, [seconds])[0]


@dataclass(frozen=True, slots=True)
class Stretch:
    """The pictures kept of `[start, end)` of a video, in order of time, at least one.

    `width` and `height` are the video's, in pixels as displayed. `end_seconds` is where the stretch
    ends, at the latest where the video does.
    """

    pictures: tuple[Picture, ...]
    width: int
    height: int
    end_seconds: float


def sampled_pictures(
    path: str, start_seconds: float, end_seconds: float | None, step_seconds: float
) -> list[Picture]:
    """The pictures that an ingest would keep of a stretch of a video; see `read_stretch`."""
    return list(read_stretch(path, start_seconds, end_seconds, step_seconds).pictures)


def read_stretch(
    path: str, start_seconds: float, end_seconds: float | None, step_seconds: float
) -> Stretch:
    """The pictures that an ingest would keep if `[start, end)` were a scene; None: to the end.

    They are those on the grid of the whole video, and others where there are fewer than three: see
    `Sampler`. One forward pass from a keyframe at least one step before the start, as what is kept
    from then on does not depend on what came before. A stretch so short that no frame begins in it
    shows the one that is on the screen. Raises VideoError when the file cannot be read or ends
    before the stretch begins.
    """
    end = math.inf if end_seconds is None else end_seconds
    sampler = Sampler(step_seconds)
    kept: list[Picture] = []
    with open_before(path, max(0.0, start_seconds - step_seconds)) as (container, stream):
        hair = hair_seconds(stream)
        decoder = Decoder(container, stream)
        camera = _Camera(stream)
        inside, before = False, None
        for frame in decoder:
            if frame.seconds >= end - hair:
                break
            starts = not inside and frame.seconds >= start_seconds - hair
            inside = inside or starts
            chosen = sampler.add(frame, starts_scene=starts)
            kept += [camera.picture(one) for one in chosen if one.seconds >= start_seconds - hair]
            before = frame
        else:
            end = min(end, decoder.end_seconds)
        if start_seconds >= end or before is None:
            raise VideoError(
                f"{shown(path)}: is over after {decoder.end_seconds:.1f} s; "
                f"nothing is shown at {start_seconds:g} s"
            )
        kept += [camera.picture(one) for one in sampler.finish() if inside]
        kept = kept or [camera.picture(before)]
        width, height = camera.size
    kept.sort(key=lambda one: one.seconds)
    return Stretch(tuple(kept), width, height, end)


class _Camera:
    """Makes pictures of a stream's frames; the first one decides their size."""

    def __init__(self, stream: VideoStream) -> None:
        self._stream = stream
        self._scaler: Scaler | None = None
        self.size = (0, 0)

    def picture(self, frame: Frame) -> Picture:
        if self._scaler is None:
            self.size = displayed_size(frame.picture, self._stream.sample_aspect_ratio)
            self._scaler = Scaler(*picture_size(*self.size), "bgr24", fine())
        return Picture(frame.seconds, encode_jpeg(self._scaler(frame.picture)))


def _shown_at(
    container: InputContainer, stream: VideoStream, wanted: Sequence[float]
) -> Iterator[tuple[float, VideoFrame]]:
    """For each time, rising, the frame on the screen then: the last that starts by then."""
    waiting = list(wanted)
    before: Frame | None = None
    hair = hair_seconds(stream)
    for frame in Decoder(container, stream):
        while waiting and before is not None and frame.seconds > waiting[0] + hair:
            yield waiting.pop(0), before.picture
        if not waiting:
            return
        before = frame
    for at in waiting:
        if before is not None:
            yield at, before.picture


def hair_seconds(stream: VideoStream) -> float:
    """How far a stored time may be off the timestamp that it comes from: rounding, no more."""
    return 0.1 / average_fps(stream)


@contextmanager
def open_before(path: str, seconds: float) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Opens a video at a keyframe from which all that is shown from `seconds` on decodes.

    That is its start where a file cannot seek, tells no times, or has a clock that starts again
    (then no timestamp names one place).
    """
    goal = _seek_goal(path, seconds)
    seeks = goal is not None and not _clock_restarts(path)
    with open_video(path) as container:
        stream = video_stream(container)
        if goal is not None and seeks:
            with reading(path):
                container.seek(goal, stream=stream, backward=True)
        yield container, stream


def _seek_goal(path: str, seconds: float) -> int | None:
    """The timestamp to seek to, tried out: MPEG-TS lands at a time, not at a keyframe before it."""
    for back in _SEEK_BACK_SECONDS:
        with open_video(path) as container:
            stream = video_stream(container)
            if seconds <= back or not stream.time_base or stream.start_time is None:
                return None
            goal, wanted = (
                min(round(at / stream.time_base) + stream.start_time, _LAST_TIMESTAMP)
                for at in (seconds - back, seconds)
            )
            if _lands_before(container, stream, goal, wanted):
                return goal
    return None


def _lands_before(container: InputContainer, stream: VideoStream, goal: int, wanted: int) -> bool:
    """Whether the first keyframe after a seek to `goal` is shown by `wanted`."""
    import av

    try:
        container.seek(goal, stream=stream, backward=True)
        for packet in islice(container.demux(stream), _LANDING_PACKETS):
            if packet.is_keyframe and packet.size:
                at = packet.dts if packet.pts is None else packet.pts
                return at is not None and at <= wanted
    except av.FFmpegError:
        return False
    return False


def _clock_restarts(path: str) -> bool:
    """Whether a file is joined recordings; where its format can be joined, it is read whole."""
    latest = -math.inf
    with open_video(path) as container, reading(path):
        if container.format.name not in _JOINABLE_FORMATS:
            return False
        stream = video_stream(container)
        for packet in container.demux(stream):
            if packet.pts is not None and packet.time_base:
                at = float(packet.pts * packet.time_base)
                if at < latest - CLOCK_RESTART_SECONDS:
                    return True
                latest = max(latest, at)
    return False
