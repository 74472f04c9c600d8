"""The sound of a clip as packets of an MP4: copied where browsers play it, else encoded as AAC.

    sound(source, clip, stack)

Sound has no keyframes to wait for, so both are exact: to a packet's samples at the start, by the
MP4's edit list, and at the end.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from fractions import Fraction
from itertools import chain
from typing import TYPE_CHECKING, Any

from vidqa.clip_pictures import Source
from vidqa.containers import reading
from vidqa.frames import CLOCK_RESTART_SECONDS, open_before

if TYPE_CHECKING:
    from av.audio.frame import AudioFrame
    from av.audio.stream import AudioStream
    from av.container import InputContainer, OutputContainer
    from av.packet import Packet
    from av.video.stream import VideoStream

_PLAYED_SOUND = ("aac", "mp3", "mp3float")
_SOUND_RATE = 48_000
_AAC_SAMPLES = 1024
# Sound may lie this far from its picture in the file.
_SKEW_SECONDS = 2.0
# A decoder of sound needs packets before the first that is heard.
_PREROLL_SECONDS = 0.1

# A packet with its time in the clip, in seconds; Any, for its timestamps are known to be there.
_Heard = tuple[float, Any]


def sound(source: Source, clip: OutputContainer, stack: ExitStack) -> Iterator[Packet[Any]]:
    """The first sound stream that can be read, cut to the clip; nothing where there is none."""
    before = max(0.0, source.start_seconds - _SKEW_SECONDS)
    container, pictures = stack.enter_context(open_before(source.path, before))
    stream = next((one for one in container.streams.audio if one.codec_context), None)
    if stream is None:
        return iter(())
    heard = _heard(container, stream, source, _start_of(pictures))
    if stream.codec_context.name in _PLAYED_SOUND:
        packets = _copied_sound(clip, stream, heard)
    else:
        packets = _encoded_sound(clip, stream, heard)
    return _ending(packets, source.seconds)


def _start_of(stream: VideoStream) -> float:
    return float((stream.start_time or 0) * (stream.time_base or 0))


def _heard(
    container: InputContainer, stream: AudioStream, source: Source, origin_seconds: float
) -> Iterator[_Heard]:
    """Packets of the clip with their time in it, which is below 0 for those that lead in.

    A clock that starts again goes on where it was, as that of the pictures does.
    """
    shift, last = -origin_seconds - source.start_seconds, None
    with reading(container.name):
        for packet in container.demux(stream):
            if not packet.size or packet.pts is None:
                continue
            at = float(packet.pts * packet.time_base) + shift
            if last is not None and at < last - CLOCK_RESTART_SECONDS:
                shift, at = shift + last - at, last
            last = at + float((packet.duration or 0) * packet.time_base)
            if at >= source.seconds:
                return
            if last > -_PREROLL_SECONDS:
                yield at, packet


def _copied_sound(
    clip: OutputContainer, stream: AudioStream, heard: Iterator[_Heard]
) -> Iterator[Packet[Any]]:
    first = next(heard, None)
    if first is None:
        return iter(())
    copied = clip.add_stream_from_template(stream)
    rate = stream.codec_context.sample_rate

    def packets() -> Iterator[Packet[Any]]:
        for at, packet in chain([first], heard):
            # Counted in samples: AVI counts in packets, which is too coarse to cut.
            packet.duration = round((packet.duration or 0) * packet.time_base * rate)
            packet.pts = packet.dts = round(at * rate)
            packet.time_base = Fraction(1, rate)
            packet.stream = copied
            yield packet

    return packets()


def _encoded_sound(
    clip: OutputContainer, stream: AudioStream, heard: Iterator[_Heard]
) -> Iterator[Packet[Any]]:
    frames = _sound_frames(heard)
    first = next(frames, None)
    if first is None:
        return iter(())
    encoded = clip.add_stream("aac", rate=_SOUND_RATE, layout="stereo")
    encoded.bit_rate = 128_000

    def packets() -> Iterator[Packet[Any]]:
        for frame in _as_stereo(first, frames):
            yield from encoded.encode(frame)
        yield from encoded.encode(None)

    return packets()


def _sound_frames(heard: Iterator[_Heard]) -> Iterator[AudioFrame]:
    """Decoded sound whose timestamps count samples from the clip's start."""
    import av

    for at, packet in heard:
        packet_seconds = float(packet.pts * packet.time_base)
        try:
            frames: list[Any] = packet.decode()
        except av.InvalidDataError:
            continue
        for frame in frames:
            # A decoder may hand out what an earlier packet began.
            later = packet_seconds if frame.time is None else frame.time
            frame.pts = round((at + later - packet_seconds) * frame.sample_rate)
            frame.time_base = Fraction(1, frame.sample_rate)
            yield frame


def _as_stereo(first: AudioFrame, frames: Iterator[AudioFrame]) -> Iterator[AudioFrame]:
    """What the encoder takes, from 0 on: gaps become silence, what lies before 0 is cut off."""
    import av

    graph = av.filter.Graph()
    source = graph.add_abuffer(
        sample_rate=first.sample_rate,
        format=first.format,
        layout=first.layout,
        time_base=first.time_base,
    )
    graph.link_nodes(
        source,
        graph.add("aresample", f"{_SOUND_RATE}:async=1:first_pts=0"),
        graph.add("aformat", "sample_fmts=fltp:channel_layouts=stereo"),
        graph.add("asetnsamples", f"n={_AAC_SAMPLES}:p=0"),
        graph.add("abuffersink"),
    ).configure()
    kind = (first.sample_rate, first.format.name, first.layout.name)
    for frame in chain([first], frames):
        # A stream that changes its kind on the way is heard up to there.
        if (frame.sample_rate, frame.format.name, frame.layout.name) != kind:
            break
        graph.push(frame)
        yield from _pulled(graph)
    graph.push(None)
    yield from _pulled(graph)


def _pulled(graph: Any) -> Iterator[AudioFrame]:
    import av

    while True:
        try:
            yield graph.pull()
        except (av.BlockingIOError, av.EOFError):
            return


def _ending(packets: Iterator[Any], seconds: float) -> Iterator[Packet[Any]]:
    """Cuts the last packet to the clip's end; leaves out what does not follow the one before."""
    last: int | None = None
    for packet in packets:
        left = round(seconds / packet.time_base) - packet.pts
        if left <= 0:
            return
        if last is None or packet.pts > last:
            last = packet.pts
            packet.duration = min(packet.duration or left, left)
            yield packet
