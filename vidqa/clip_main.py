"""The process that cuts a clip: `python -m vidqa.clip_main VIDEO START END TARGET PARENT_PID`

    write_clip(Source(path, start_seconds, end_seconds), target)

It is started, and its failures are told, by `clips`.
"""

from __future__ import annotations

import heapq
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vidqa.children import die_with_parent
from vidqa.clip_pictures import Source, copied_pictures, encoded_pictures
from vidqa.clip_sound import sound
from vidqa.clips import unfinished
from vidqa.containers import check_file, shown
from vidqa.errors import VideoError

if TYPE_CHECKING:
    from av.packet import Packet

# Times below zero stay, and become an edit list: players start at 0, decoders before it.
_MP4_OPTIONS = {
    "movflags": "+faststart",
    "use_editlist": "1",
    "avoid_negative_ts": "disabled",
    # Edits are told in this unit, by default a thousandth: rounding would cost the last frame.
    "movie_timescale": "90000",
}


def write_clip(source: Source, target: Path) -> None:
    """Writes the MP4; VideoError when the source cannot be read or the target not be written."""
    import av

    check_file(source.path)
    with _writing(target), ExitStack() as stack:
        clip = stack.enter_context(av.open(str(target), "w", "mp4", options=_MP4_OPTIONS))
        pictures = copied_pictures(source, clip, stack)
        if pictures is None:
            pictures = encoded_pictures(source, clip, stack)
        for packet in heapq.merge(pictures, sound(source, clip, stack), key=_decoding_seconds):
            clip.mux(packet)


@contextmanager
def _writing(target: Path) -> Iterator[None]:
    """What is left of FFmpeg's errors once those of reading are VideoErrors."""
    import av

    try:
        yield
    except (av.FFmpegError, OSError) as error:
        text = error.strerror or str(error)
        raise VideoError(f"{shown(target.parent)}: the clip cannot be written: {text}") from error


def _decoding_seconds(packet: Packet[Any]) -> float:
    return float((packet.dts or 0) * packet.time_base)


def main(path: str, start: str, end: str, target: str, parent: str) -> int:
    """The exit code; the reason of a failure is all that is written to the output."""
    part = unfinished(Path(target), os.getpid())
    _end_with(int(parent), part)
    try:
        write_clip(Source(path, float(start), float(end)), part)
        with _writing(part):
            part.replace(target)
    except VideoError as error:
        sys.stdout.buffer.write(str(error).encode("utf-8", "backslashreplace"))
        return 1
    finally:
        part.unlink(missing_ok=True)
    return 0


def _end_with(parent: int, part: Path) -> None:
    """SIGTERM, which the parent's death sends too, leaves nothing, even while FFmpeg hangs."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_await_end, args=(part,), daemon=True).start()
    die_with_parent(signal.SIGTERM)
    if os.getppid() != parent:
        os._exit(1)


def _await_end(part: Path) -> None:
    signal.sigwait({signal.SIGTERM})
    part.unlink(missing_ok=True)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
