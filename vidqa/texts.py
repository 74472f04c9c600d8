"""Words that belong to a video: subtitle files beside it, else a text stream inside it.

    sidecar_texts(path)          name.srt, name.vtt, name.en.srt ... beside name.mp4
    EmbeddedTexts(container, stream).add(packet); .spans()

One track is taken, as several languages of the same words would crowd each other out. Subtitles
are data: tags and styles are removed, cues that make no sense are passed over, and nothing in
them is an error. Bitmap subtitles are not read.
"""

from __future__ import annotations

import hashlib
import html
import os
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from vidqa.types import TextSpan

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.subtitles.stream import SubtitleStream
    from av.video.stream import VideoStream

SIDECAR_SUFFIXES = (".srt", ".vtt")
# The subtitles of a long film are 200 kB; what is larger than this is something else.
MAX_SIDECAR_BYTES = 16 * 1024 * 1024

_TEXT_CODECS = frozenset({"subrip", "srt", "ass", "ssa", "mov_text", "webvtt", "text"})

_CLOCK = r"(?:(\d{1,4}):)?(\d{1,2}):(\d{1,2})[.,](\d{1,3})"
_TIMING = re.compile(rf"^\s*{_CLOCK}\s*-->\s*{_CLOCK}")
# <i>, </font>, <v Name>, WebVTT's <00:00:01.000>, and {\an8} of Advanced SubStation.
_TAG = re.compile(r"</?[A-Za-z][^<>]*>|<\d[\d:.]*>|</?>|\{\\[^{}]*\}")
_CUE_NUMBER = re.compile(r"\d+")


def sidecar(path: str) -> str | None:
    """The subtitle file of a video: without a language before with one, then by name."""
    folder, name = os.path.split(os.path.abspath(path))
    stem = os.path.splitext(name)[0]
    try:
        names = os.listdir(folder)
    except OSError:
        return None
    ranked = sorted(
        (len(middle), other)
        for other in names
        if (middle := _language_part(other, stem)) is not None
    )
    return os.path.join(folder, ranked[0][1]) if ranked else None


def _language_part(name: str, stem: str) -> str | None:
    """`""` for name.srt, `".en"` for name.en.srt, None for what is no sidecar of the stem."""
    base, suffix = os.path.splitext(name)
    if suffix.lower() not in SIDECAR_SUFFIXES or not base.startswith(stem):
        return None
    middle = base[len(stem) :]
    return middle if re.fullmatch(r"(\.[A-Za-z]{2,8}(-[A-Za-z0-9]{1,8})*){0,2}", middle) else None


def sidecar_digest(path: str) -> str:
    """Eight hex digits of the subtitle file's content, or "" when there is none."""
    content = _read_sidecar(path)
    return hashlib.sha256(content).hexdigest()[:8] if content else ""


def sidecar_texts(path: str) -> list[TextSpan]:
    """The words of the subtitle file beside a video, in order of time; [] when there is none."""
    return parse_cues(decode_text(_read_sidecar(path)))


def _read_sidecar(path: str) -> bytes:
    found = sidecar(path)
    if found is None:
        return b""
    try:
        with open(found, "rb") as file:
            content = file.read(MAX_SIDECAR_BYTES + 1)
    except OSError:
        return b""
    return content if len(content) <= MAX_SIDECAR_BYTES else b""


def decode_text(content: bytes) -> str:
    """Bytes of a subtitle file as text: by byte-order mark, UTF-16 by its zeros, UTF-8, Latin."""
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return content.decode("utf-16", "replace")
    zeros = content[:400:2].count(0), content[1:400:2].count(0)
    if max(zeros) > min(len(content), 400) // 8:
        return content.decode("utf-16-be" if zeros[0] > zeros[1] else "utf-16-le", "replace")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        # Windows-1252 is Latin-1 with quotation marks in place of control characters.
        return content.decode("cp1252", "replace")


def parse_cues(text: str) -> list[TextSpan]:
    """Cues of a SubRip or WebVTT text, in order of time, without tags and without empty ones."""
    spans = [span for span in _cues(text.splitlines()) if span]
    return sorted(spans, key=lambda span: (span.start_seconds, span.end_seconds))


def _cues(lines: list[str]) -> Iterator[TextSpan | None]:
    for n, line in enumerate(lines):
        timing = _TIMING.match(line)
        if timing:
            start, end = _seconds(*timing.groups()[:4]), _seconds(*timing.groups()[4:])
            yield _span(start, end, "\n".join(_cue_lines(lines, n + 1)))


def _cue_lines(lines: list[str], first: int) -> list[str]:
    taken: list[str] = []
    for line in lines[first:]:
        if _TIMING.match(line):
            # The empty line before the next cue is missing: its number is not this one's text.
            return taken[:-1] if taken and _CUE_NUMBER.fullmatch(taken[-1].strip()) else taken
        if not line.strip():
            return taken
        taken.append(line)
    return taken


def _seconds(hours: str | None, minutes: str, seconds: str, fraction: str) -> float:
    whole = int(hours or 0) * 3600 + int(minutes) * 60 + int(seconds)
    return whole + int(fraction.ljust(3, "0")) / 1000


def _span(start_seconds: float, end_seconds: float, text: str) -> TextSpan | None:
    words = " ".join(html.unescape(_TAG.sub("", text)).split())
    words = "".join(c for c in words if c.isprintable() or c > "\x9f")
    if not words or not 0 <= start_seconds < end_seconds:
        return None
    return TextSpan(start_seconds, end_seconds, words)


class EmbeddedTexts:
    """Collects the words of one text stream of a container while it is read.

    The stream marked as default is taken, else the first; streams of forced subtitles hold only
    what is foreign to the rest and are left.
    """

    def __init__(self, container: InputContainer, video: VideoStream) -> None:
        self._stream = _text_stream(container)
        self._origin_seconds = float((video.start_time or 0) * (video.time_base or 0))
        self._spans: list[TextSpan] = []

    def add(self, packet: Packet[Any]) -> None:
        """Takes a subtitle packet of any stream of the container."""
        import av

        if self._stream is None or packet.stream_index != self._stream.index:
            return
        if packet.pts is None or not packet.duration:
            return
        try:
            lines = [_dialogue(one) for one in packet.decode()]
        except av.FFmpegError:
            return
        start = float(packet.pts * packet.time_base) - self._origin_seconds
        end = start + float(packet.duration * packet.time_base)
        span = _span(max(0.0, start), end, "\n".join(lines))
        if span:
            self._spans.append(span)

    def spans(self) -> list[TextSpan]:
        """What was collected, in order of time."""
        return sorted(self._spans, key=lambda span: (span.start_seconds, span.end_seconds))


def _text_stream(container: InputContainer) -> SubtitleStream | None:
    from av.stream import Disposition

    streams = [
        stream
        for stream in container.streams.subtitles
        if stream.codec_context is not None
        and stream.codec_context.name in _TEXT_CODECS
        and not stream.disposition & Disposition.forced
    ]
    streams.sort(key=lambda stream: not stream.disposition & Disposition.default)
    return streams[0] if streams else None


def _dialogue(one: Any) -> str:
    text = getattr(one, "dialogue", b"")
    return text.decode("utf-8", "replace").replace("\\N", "\n").replace("\\h", " ")
