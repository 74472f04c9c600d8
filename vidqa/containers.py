"""Opening a file with FFmpeg: what is allowed, which stream is meant, what an error says.

The base of `probe` and `frames`, below both. Files are data: a file may make FFmpeg open no other
file and no address, and pictures, text and playlists do not pass for videos. Nothing is decoded.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from vidqa.errors import VideoError

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

# Demuxers that turn pictures, text and lists of other files into "video".
_NOT_VIDEO_FORMATS = frozenset({"tty", "image2", "concat", "hls", "dash", "ico", "txd"})
# A rate is needed even where a container tells none; times never depend on it.
_FALLBACK_FPS = 25.0


def shown(path: str | Path) -> str:
    """A path for one line of text: undecodable bytes and control characters are escaped."""
    text = os.fspath(path).encode("utf-8", "backslashreplace").decode()
    return "".join(c if c.isprintable() or c > "\x9f" else repr(c)[1:-1] for c in text)


def check_file(path: str | Path) -> os.stat_result:
    """The file's status; VideoError unless it is a regular file with something in it."""
    with reading(path):
        status = os.stat(path)
    name = shown(path)
    if os.path.isdir(path):
        raise VideoError(f"{name}: is a folder, not a video file")
    if not os.path.isfile(path):
        raise VideoError(f"{name}: is not a regular file; copy the video to a file first")
    if status.st_size == 0:
        raise VideoError(f"{name}: is empty; copy the video again")
    if not _is_unicode(os.fspath(path)):
        raise VideoError(f"{name}: the file's name is not valid UTF-8; rename it")
    return status


def _is_unicode(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


@contextmanager
def reading(path: str | Path) -> Iterator[None]:
    """Turns the errors of the operating system and of FFmpeg into one-line VideoErrors."""
    import av

    try:
        yield
    except av.InvalidDataError as error:
        raise VideoError(
            f"{shown(path)}: is not a video, or is truncated or damaged; copy it again"
        ) from error
    except (av.FFmpegError, OSError) as error:
        raise VideoError(f"{shown(path)}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    code = getattr(error, "errno", None)
    if code == errno.ENOENT:
        return "there is no such file"
    if code == errno.EACCES:
        return "permission denied; make the file readable for this user"
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return f"cannot be read: {' '.join(str(text).split())}"


@contextmanager
def open_video(path: str) -> Iterator[InputContainer]:
    """Opens a container for reading; VideoError when it is none, or none of a video."""
    import av

    with reading(path):
        # An absolute path is never taken for a protocol, whatever its name contains.
        container = av.open(
            os.path.abspath(path),
            options={"protocol_whitelist": "file"},
            metadata_errors="replace",
        )
    with container:
        if container.format.name in _NOT_VIDEO_FORMATS or container.format.name.endswith("_pipe"):
            raise VideoError(f"{shown(path)}: is a picture, text or playlist, not a video")
        yield container


def video_stream(container: InputContainer) -> VideoStream:
    """The first video stream that is no cover picture, set to one codec thread."""
    import av.stream

    cover = av.stream.Disposition.attached_pic
    for stream in container.streams.video:
        if not stream.disposition & cover and stream.codec_context is not None:
            stream.thread_count = 1
            return stream
    raise VideoError(f"{shown(container.name)}: has no video stream that can be decoded")


def displayed_size(frame: VideoFrame, sample_aspect: Fraction | None) -> tuple[int, int]:
    """(width, height) as shown on a screen: square pixels, upright."""
    width, height = frame.width, frame.height
    if sample_aspect:
        width = max(1, round(width * sample_aspect))
    return (height, width) if frame.rotation % 180 else (width, height)


def average_fps(stream: VideoStream) -> float:
    """Frames a second on average; a guess where the container tells nothing."""
    for rate in (stream.average_rate, stream.guessed_rate):
        if rate:
            return float(rate)
    return _FALLBACK_FPS


def declared_seconds(container: InputContainer, stream: VideoStream) -> float | None:
    """The duration that the file claims, or None; the decoder finds out the true one."""
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    if container.duration:
        return float(container.duration) / 1_000_000
    return None
