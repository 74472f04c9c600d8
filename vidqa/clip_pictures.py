"""The pictures of a clip as packets of an MP4: copied where browsers play them, else encoded.

    source = Source(path, start_seconds, end_seconds)
    copied_pictures(source, clip, stack) or encoded_pictures(source, clip, stack)

Copied is what is exact to a frame: from the keyframe before the start, with times below zero that
the MP4 hides by an edit list, to a frame that no frame after it is needed for. Memory does not
grow with the clip's length.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from typing import TYPE_CHECKING, Any

from vidqa.containers import average_fps, reading, shown
from vidqa.errors import VideoError
from vidqa.frames import Decoder, Frame, hair_seconds, open_before
from vidqa.pictures import fine

if TYPE_CHECKING:
    from av.container import InputContainer, OutputContainer
    from av.packet import Packet
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

_PLAYED_PIXELS = ("yuv420p", "yuvj420p")
# H.264 puts a frame at most this many after those that are shown before it.
_REORDERED_PACKETS = 16

_CLIP_LONG_SIDE, _CLIP_SHORT_SIDE = 1920, 1080
# Without B-frames, times of decoding are those of showing: no player has to know of edit lists.
_X264_OPTIONS = {"preset": "veryfast", "crf": "20", "bf": "0"}
_X264_THREADS = 2
_TICKS = 90_000

_HD_LINES = 720
_AV_COLORSPACE_RGB = 0


@dataclass(frozen=True, slots=True)
class Source:
    """`[start_seconds, end_seconds)` of a video, in the seconds of `frames.Clock`."""

    path: str
    start_seconds: float
    end_seconds: float

    @property
    def seconds(self) -> float:
        return self.end_seconds - self.start_seconds


# Copied


@dataclass(frozen=True, slots=True)
class _Copy:
    """Which packets of a stream make the clip; timestamps in its own time base.

    `key_dts` is where decoding starts, `first_pts` the picture shown at `start_pts`, `last_pts`
    the last before `end_pts`.
    """

    key_dts: int
    first_pts: int
    last_pts: int
    start_pts: int
    end_pts: int


def copied_pictures(
    source: Source, clip: OutputContainer, stack: ExitStack
) -> Iterator[Packet[Any]] | None:
    """The video stream as it is, or None where that would not play or not be exact to a frame."""
    copy = _plan_copy(source)
    if copy is None:
        return None
    container, stream = stack.enter_context(open_before(source.path, source.start_seconds))
    copied = clip.add_stream_from_template(stream)
    copied.set_display_rotation(_rotation(source))
    return _copied(container, stream, copied, copy)


def _rotation(source: Source) -> int:
    """Counter-clockwise degrees of the first picture; only decoders tell them."""
    with open_before(source.path, source.start_seconds) as (container, stream):
        return next(iter(Decoder(container, stream))).picture.rotation


def _plan_copy(source: Source) -> _Copy | None:
    with open_before(source.path, source.start_seconds) as (container, stream):
        if not _plays(stream) or not stream.time_base or stream.start_time is None:
            return None
        start, end = (
            round(at / stream.time_base) + stream.start_time
            for at in (source.start_seconds, source.end_seconds)
        )
        hair = int(hair_seconds(stream) / stream.time_base)
        with reading(source.path):
            return _Planner(start, end, hair).plan(_demuxed(container, stream))


def _demuxed(container: InputContainer, stream: VideoStream) -> Iterator[Packet[Any]]:
    """Packets with times of decoding: Matroska has none, and FFmpeg cannot tell the first few."""
    waiting: list[Packet[Any]] = []
    step = max(1, int(1 / (average_fps(stream) * (stream.time_base or 1))))
    for packet in container.demux(stream):
        if not packet.size:
            continue
        if packet.dts is None and len(waiting) < _REORDERED_PACKETS:
            waiting.append(packet)
            continue
        later = packet.dts
        for one in reversed(waiting):
            if later is not None and one.pts is not None:
                one.dts = later = min(later - step, one.pts)
        yield from waiting
        yield packet
        waiting = []
    yield from waiting


def _plays(stream: VideoStream) -> bool:
    context = stream.codec_context
    return context.name == "h264" and context.pix_fmt in _PLAYED_PIXELS and bool(context.extradata)


class _Planner:
    """Looks through the packets of a clip once, decoding none."""

    def __init__(self, start: int, end: int, hair: int) -> None:
        self._start, self._end, self._hair = start, end, hair
        self._dts: int | None = None
        self._key: int | None = None
        self._first: int | None = None
        self._last: int | None = None
        self._read_end = start
        self._past_end = False

    def plan(self, packets: Iterator[Packet[Any]]) -> _Copy | None:
        for packet in packets:
            pts, dts = packet.pts, packet.dts
            if pts is None or dts is None or not self._fits(packet, pts, dts):
                return None
            if dts >= self._end:
                return self._copy()
            self._note(packet, pts)
        # A file that ends before the clip does may be truncated, which the decoder finds out.
        return self._copy() if self._read_end >= self._end - self._hair else None

    def _fits(self, packet: Packet[Any], pts: int, dts: int) -> bool:
        """False for new settings or a new clock on the way, damage, and an end within a group.

        A picture before the end that follows one after it needs that one, which is not shown.
        """
        rising = self._dts is None or dts > self._dts
        self._dts = dts
        changed = packet.is_corrupt or packet.has_sidedata("new_extradata")
        needs_more = self._past_end and pts < self._end - self._hair
        self._past_end |= pts >= self._end - self._hair
        hidden = packet.is_discard and pts >= self._start
        return rising and not (changed or needs_more or hidden)

    def _note(self, packet: Packet[Any], pts: int) -> None:
        self._read_end = max(self._read_end, pts + (packet.duration or 0))
        if pts <= self._start + self._hair:
            if packet.is_keyframe:
                self._key = packet.dts
            if not packet.is_discard and self._key is not None:
                self._first = pts if self._first is None else max(self._first, pts)
        if pts < self._end - self._hair:
            self._last = pts if self._last is None else max(self._last, pts)

    def _copy(self) -> _Copy | None:
        if self._key is None or self._first is None or self._last is None:
            return None
        return _Copy(self._key, self._first, self._last, max(self._start, self._first), self._end)


def _copied(
    container: InputContainer, stream: VideoStream, copied: VideoStream, copy: _Copy
) -> Iterator[Packet[Any]]:
    with reading(container.name):
        for packet in _demuxed(container, stream):
            pts, dts = packet.pts, packet.dts
            if pts is None or dts is None or dts < copy.key_dts:
                continue
            if pts > copy.last_pts:
                return
            if pts == copy.last_pts:
                packet.duration = copy.end_pts - max(pts, copy.start_pts)
            # The picture on the screen at the start is shown from 0, even if it began before.
            packet.pts = 0 if pts == copy.first_pts else pts - copy.start_pts
            packet.dts = dts - copy.start_pts
            packet.stream = copied
            yield packet


# Encoded


def encoded_pictures(
    source: Source, clip: OutputContainer, stack: ExitStack
) -> Iterator[Packet[Any]]:
    """The pictures as H.264, at most 1080p, square pixels, at the times that they have."""
    container, stream = stack.enter_context(open_before(source.path, source.start_seconds))
    shown_ones = _shown_between(container, stream, source)
    first = next(shown_ones)
    encoder = _Encoder(clip, stream, first[2])
    return encoder.packets(chain([first], shown_ones))


def _shown_between(
    container: InputContainer, stream: VideoStream, source: Source
) -> Iterator[tuple[float, float, VideoFrame]]:
    """What is on the screen from start to end: (start, end, picture) in seconds of the clip."""
    start, end, hair = source.start_seconds, source.end_seconds, hair_seconds(stream)
    decoder = Decoder(container, stream)
    before: Frame | None = None
    at = 0.0
    for frame in decoder:
        if before is not None and frame.seconds > start + hair:
            until = (end if frame.seconds >= end - hair else frame.seconds) - start
            yield at, until, before.picture
            at = until
        if frame.seconds >= end - hair:
            break
        before = frame
    else:
        if before is not None and decoder.end_seconds > start + hair:
            yield at, min(decoder.end_seconds, end) - start, before.picture
            at = end
    if not at:
        raise VideoError(
            f"{shown(source.path)}: {start:g} to {end:g} seconds is outside the video, "
            f"which lasts {decoder.end_seconds:.1f} seconds"
        )


class _Encoder:
    """One H.264 stream of a clip; its size, colours and rotation are those of the first picture."""

    def __init__(self, clip: OutputContainer, source: VideoStream, picture: VideoFrame) -> None:
        from av.video.reformatter import VideoReformatter

        self._reformatter = VideoReformatter()
        # Of the pictures inside the encoder, by timestamp.
        self._lengths: dict[int, int] = {}
        self._size = clip_size(picture.width, picture.height, source.sample_aspect_ratio)
        self._stream = clip.add_stream("libx264", rate=round(average_fps(source)) or 1)
        self._stream.options = dict(_X264_OPTIONS)
        self._stream.thread_count = _X264_THREADS
        self._stream.width, self._stream.height = self._size
        self._stream.pix_fmt = "yuv420p"
        self._stream.set_display_rotation(picture.rotation)
        context, small = self._stream.codec_context, self._scaled(picture)
        context.time_base = Fraction(1, _TICKS)
        for tag in ("color_range", "colorspace", "color_primaries", "color_trc"):
            setattr(context, tag, getattr(small, tag))

    def packets(self, pieces: Iterator[tuple[float, float, VideoFrame]]) -> Iterator[Packet[Any]]:
        from av.video.frame import PictureType

        for start, end, picture in pieces:
            small = self._scaled(picture)
            small.pts, small.time_base = round(start * _TICKS), Fraction(1, _TICKS)
            self._lengths[small.pts] = max(1, round(end * _TICKS) - small.pts)
            # Which pictures are keyframes is this encoder's choice, not that of the source.
            small.pict_type = PictureType.NONE
            yield from self._timed(self._stream.encode(small))
        yield from self._timed(self._stream.encode(None))

    def _timed(self, packets: list[Packet[Any]]) -> Iterator[Packet[Any]]:
        """The encoder forgets how long pictures are shown; it matters for the last."""
        for packet in packets:
            packet.duration = self._lengths.pop(packet.pts or 0)
            yield packet

    def _scaled(self, picture: VideoFrame) -> VideoFrame:
        from av.video.reformatter import ColorRange

        return self._reformatter.reformat(
            picture,
            *self._size,
            "yuv420p",
            dst_colorspace=_matrix_of_rgb(picture),
            dst_color_range=ColorRange.MPEG,
            interpolation=fine(),
            threads=1,
        )


def _matrix_of_rgb(picture: VideoFrame) -> int | None:
    """RGB becomes what players expect of its size; YUV stays as it is."""
    from av.video.reformatter import Colorspace

    if picture.colorspace != _AV_COLORSPACE_RGB:
        return None
    return Colorspace.ITU709 if picture.height >= _HD_LINES else Colorspace.ITU601


def clip_size(width: int, height: int, sample_aspect: Fraction | None) -> tuple[int, int]:
    """(width, height) of a clip before it is rotated: square pixels, even sides, within 1080p."""
    shown_width = float(width * (sample_aspect or 1))
    scale = min(
        1.0,
        _CLIP_LONG_SIDE / max(shown_width, height),
        _CLIP_SHORT_SIDE / min(shown_width, height),
    )
    return _even(shown_width * scale), _even(height * scale)


def _even(side: float) -> int:
    return max(2, 2 * round(side / 2))
