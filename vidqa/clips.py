"""A clip of a video as an MP4 that browsers play: what the screen shows from start to end.

    cut(path, 12.0, 17.5, target)                    waits for the file
    await cut_async(path, 12.0, 17.5, target)        a server's way; cancelling it ends the work
    command(path, 12.0, 17.5, target)                the process alone

A child process does the work (`clip_main`), so a file that crashes or hangs FFmpeg costs its clip
only. The target appears whole or not at all. What is kept of clips is decided elsewhere.
"""

from __future__ import annotations

import asyncio
import math
import os
import sys
from pathlib import Path

from vidqa.children import environment, signal_name
from vidqa.containers import shown
from vidqa.errors import VideoError

# Ten times what encoding a minute of 1080p takes on one core.
TIMEOUT_SECONDS = 300.0


def cut(
    path: str,
    start_seconds: float,
    end_seconds: float,
    target: Path,
    *,
    timeout_seconds: float = TIMEOUT_SECONDS,
) -> None:
    """Writes `[start_seconds, end_seconds)` of a video to `target`, an MP4; replaces what is there.

    Times are those of `frames.Clock`: seconds from the start of the video stream. Time 0 of the
    clip is `start_seconds` exactly; a frame shown then that began earlier is shown from 0. A range
    that ends after the video ends with it. Raises VideoError, one line with the reason, for a
    range outside the video, a file that cannot be read, a target that cannot be written, a crash
    and a timeout.
    """
    asyncio.run(
        cut_async(path, start_seconds, end_seconds, target, timeout_seconds=timeout_seconds)
    )


async def cut_async(
    path: str,
    start_seconds: float,
    end_seconds: float,
    target: Path,
    *,
    timeout_seconds: float = TIMEOUT_SECONDS,
) -> None:
    """As `cut`; when it is cancelled the process is ended and nothing is left behind."""
    arguments = command(path, start_seconds, end_seconds, target)
    process = await asyncio.create_subprocess_exec(
        *arguments,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=environment(),
        # Ctrl-C is the parent's to handle.
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(timeout_seconds):
            reason, errors = await process.communicate()
    except TimeoutError:
        raise VideoError(
            f"{shown(path)}: cutting the clip took longer than {timeout_seconds:g} seconds; "
            "ask for a shorter one"
        ) from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        unfinished(target, process.pid).unlink(missing_ok=True)
    if process.returncode:
        raise VideoError(_failure(path, process.returncode, reason.decode(), errors))


def command(path: str, start_seconds: float, end_seconds: float, target: Path) -> list[str]:
    """The process that cuts a clip, to be run as a child of this process in `environment()`.

    It exits with 0 once `target` is there; else its output is the reason. SIGTERM ends it and
    removes what it wrote; so does the end of its parent. Raises VideoError for what is no range.
    """
    if not 0 <= start_seconds < end_seconds < math.inf:
        raise VideoError(
            f"{shown(path)}: {start_seconds:g} to {end_seconds:g} seconds is no clip; "
            "it starts at 0 or later and ends after its start"
        )
    # -P: a file of the user's folder must not pass for a module.
    program = [sys.executable, "-P", "-m", "vidqa.clip_main"]
    span = [os.path.abspath(path), repr(float(start_seconds)), repr(float(end_seconds))]
    return [*program, *span, os.path.abspath(target), str(os.getpid())]


def unfinished(target: Path, pid: int) -> Path:
    """Where the process of that id writes before the clip is whole."""
    return target.with_name(f".{target.name[:100]}.{pid}.part")


def _failure(path: str, code: int, reason: str, errors: bytes) -> str:
    if code < 0:
        killer = signal_name(-code)
        return f"{shown(path)}: cutting the clip crashed ({killer}); the file may be damaged"
    lines = errors.decode("utf-8", "replace").strip().splitlines()
    last = lines[-1] if lines else f"exit code {code}"
    return reason or f"{shown(path)}: cutting the clip failed: {last}"
