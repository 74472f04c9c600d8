"""Media are read before a training, by processes of their own: several at once, crashes contained.

    reasons = fetch(rows, look, shelf, workers=2)      {Media: why it cannot be read}

A damaged file has crashed FFmpeg before, and would take a training with it. Here it takes a child,
and the next file gets another. What was read lies on the shelf afterwards. Errors that a reader
reports are left to whoever reads the media again: only crashes and hangs are told. Several
processes of a training begin at different places, and find on the shelf what another has read.
"""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from queue import Empty, SimpleQueue

from finetune.layout import Look
from finetune.media import frame_counts, show
from finetune.processes import process_count, process_number
from finetune.rows import Media, Row
from finetune.shelf import Shelf
from vidqa.children import die_with_parent, signal_name, start
from vidqa.containers import shown
from vidqa.errors import UsageError, VidqaError

# An hour of video takes minutes.
HANGS_SECONDS = 1800.0

Job = tuple[Media, Look, int, Shelf]

_CHILD = "import sys; from finetune.fetch import child; child(int(sys.argv[1]))"


def fetch(
    rows: Sequence[Row],
    look: Look,
    shelf: Shelf,
    workers: int,
    on_media: Callable[[int, int], None] | None = None,
) -> dict[Media, str]:
    """Puts the media of all rows on the shelf; returns those that crash or hang their reader.

    `on_media` is told (media done, media in all), by any thread, one at a time.
    """
    wanted = _from_own_place(_wanted(rows, look))
    waiting: SimpleQueue[tuple[Media, int]] = SimpleQueue()
    for one in wanted:
        waiting.put(one)
    reasons: dict[Media, str] = {}
    done = 0
    lock = threading.Lock()

    def work() -> None:
        nonlocal done
        with _Reader() as reader:
            while True:
                try:
                    media, frames = waiting.get_nowait()
                except Empty:
                    return
                reason = reader.read((media, look, frames, shelf))
                with lock:
                    done += 1
                    if reason:
                        reasons[media] = reason
                    if on_media is not None:
                        on_media(done, len(wanted))

    threads = [threading.Thread(target=work) for _ in range(min(workers, len(wanted)))]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            thread.join()
    except BaseException:
        while not waiting.empty():
            waiting.get()
        raise
    return reasons


def _wanted(rows: Sequence[Row], look: Look) -> list[tuple[Media, int]]:
    """Each medium once with the number of its frames; rows that ask for too many are left out."""
    wanted: dict[tuple[Media, int], None] = {}
    for row in rows:
        try:
            counts = frame_counts(row.media, look)
        except UsageError:
            continue
        wanted |= dict.fromkeys(zip(row.media, counts, strict=True))
    return list(wanted)


def _from_own_place(wanted: list[tuple[Media, int]]) -> list[tuple[Media, int]]:
    """The same media in turn, from where this process's share of them begins."""
    place = len(wanted) * process_number() // process_count()
    return wanted[place:] + wanted[:place]


class _Reader:
    """A child that reads one medium after the other; a new one when it has died of one."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection[Job, bool] | None = None

    def __enter__(self) -> _Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def read(self, job: Job) -> str | None:
        """None when it was read or an error reported, else why the child did not survive it."""
        connection, process = self._started()
        name = shown(job[0].paths[0])
        try:
            connection.send(job)
            if not connection.poll(HANGS_SECONDS):
                self._end()
                return f"{name}: reading it hangs; the file is damaged or unusual"
            connection.recv()
        except (EOFError, OSError):
            code = process.wait()
            self._end()
            cause = signal_name(-code) if code < 0 else f"exit code {code}"
            return f"{name}: the decoder crashed ({cause}); the file is damaged or unusual"
        return None

    def _started(self) -> tuple[Connection[Job, bool], subprocess.Popen[bytes]]:
        if self._process is None or self._connection is None or self._process.poll() is not None:
            self._end()  # if it died between two media, then of neither
            self._process, self._connection = start(_CHILD)
        return self._connection, self._process

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        if self._connection is not None:
            self._connection.close()
        self._process = self._connection = None


def child(descriptor: int) -> None:
    """The child's whole life: a medium in, a word when it is done, until the parent is gone."""
    import cv2

    die_with_parent()
    cv2.setNumThreads(1)
    connection: Connection[bool, Job] = Connection(descriptor)
    shelf: Shelf | None = None
    while True:
        try:
            media, look, frames, given = connection.recv()
        except (EOFError, OSError):
            os._exit(0)
        shelf = shelf or given  # one for all, which knows when it last looked through its folder
        with suppress(VidqaError):  # whoever plans meets it again, and says it with the row
            show(media, look, frames, shelf)
        connection.send(True)
