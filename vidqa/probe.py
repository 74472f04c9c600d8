"""A file becomes a `Video`: streams, duration, frame rate, displayed size, fingerprint.

Reads the container's description and decodes one frame, because only a frame tells its rotation.
It does not measure the true end of the stream, which takes a full decode, and knows no library.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from vidqa.containers import (
    average_fps,
    check_file,
    declared_seconds,
    displayed_size,
    open_video,
    reading,
    shown,
    video_stream,
)
from vidqa.errors import VideoError
from vidqa.types import Video

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

FINGERPRINT_BLOCK_BYTES = 64 * 1024
FINGERPRINT_BLOCKS = 16

# How far to look for the first frame that decodes: ten seconds of most videos.
_PROBE_PACKETS = 250


def fingerprint(path: str | Path) -> str:
    """What identifies a file's content: 64 hex digits from its size and 16 blocks of 64 KiB.

    Files up to 1 MiB are read whole. Of larger ones the first block, the last one and evenly
    spaced ones between are read: containers keep there what tells two files apart. An edit that
    keeps the size and misses every block is not seen.
    """
    with reading(path), open(path, "rb") as file:
        size_bytes = os.fstat(file.fileno()).st_size
        digest = hashlib.sha256(b"vidqa fingerprint 1, %d bytes\n" % size_bytes)
        for offset in _block_offsets(size_bytes):
            file.seek(offset)
            digest.update(file.read(FINGERPRINT_BLOCK_BYTES))
        return digest.hexdigest()


def _block_offsets(size_bytes: int) -> list[int]:
    if size_bytes <= FINGERPRINT_BLOCKS * FINGERPRINT_BLOCK_BYTES:
        return list(range(0, size_bytes, FINGERPRINT_BLOCK_BYTES))
    last = size_bytes - FINGERPRINT_BLOCK_BYTES
    return [last * k // (FINGERPRINT_BLOCKS - 1) for k in range(FINGERPRINT_BLOCKS)]


def probe(path: str | Path) -> Video:
    """Describes a video file; its path is made absolute.

    Raises VideoError, one line with the reason, for a file that is missing, empty, unreadable, a
    folder, not a video, without a video stream, truncated or without one good frame.
    """
    path = os.path.abspath(path)
    status = check_file(path)
    content = fingerprint(path)
    with open_video(path) as container:
        stream = video_stream(container)
        frame = _first_frame(container, stream)
        width, height = displayed_size(frame, stream.sample_aspect_ratio)
        return Video(
            path=path,
            fingerprint=content,
            size_bytes=status.st_size,
            mtime_ns=status.st_mtime_ns,
            duration_seconds=declared_seconds(container, stream) or 0.0,
            fps=average_fps(stream),
            width=width,
            height=height,
            rotation_degrees=frame.rotation % 360,
            codec=stream.codec_context.name,
            container=container.format.name,
        )


def _first_frame(container: InputContainer, stream: VideoStream) -> VideoFrame:
    import av

    with reading(container.name):
        for n, packet in enumerate(container.demux(stream)):
            try:
                frames = packet.decode()
            except av.InvalidDataError:
                frames = []
            if frames:
                return frames[0]
            if n > _PROBE_PACKETS:
                break
    codec = stream.codec_context.name
    raise VideoError(f"{shown(container.name)}: no frame of its {codec} stream can be decoded")
