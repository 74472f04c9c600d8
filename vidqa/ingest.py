"""`ingest`: files and folders become searchable: found, read, embedded, committed.

A file that the library knows is not decoded: unchanged ones are skipped, moved ones get their new
path, copies are linked. The others are each read by a worker process and embedded here while the
reading goes on, and are committed whole or not at all. A file that cannot be read costs that file.
Reading is `worker`'s job, keeping is `library`'s; nothing here prints.
"""

from __future__ import annotations

import math
import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from multiprocessing.connection import wait
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from vidqa.children import usable_cpus
from vidqa.containers import check_file, shown
from vidqa.discover import find_videos
from vidqa.errors import LibraryBusy, UsageError, VideoError
from vidqa.pictures import JPEG_QUALITY, PICTURE_LONG_SIDE, PICTURE_SHORT_SIDE
from vidqa.probe import fingerprint
from vidqa.scenes import SceneOptions
from vidqa.texts import sidecar_digest
from vidqa.types import FileReport, FileState, IngestReport, Video
from vidqa.worker import Done, Failed, Job, Progress, Samples, Worker

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from vidqa.library import Draft, Library
    from vidqa.types import EmbedderSpec

# More readers than this wait for the embedder, on any machine we know of.
MAX_DEFAULT_WORKERS = 8
# A new process imports its packages before it speaks: a second, or many on a machine in use.
_STARTING_SECONDS = 30.0


class ImageEmbedder(Protocol):
    """The half of an embedder that an ingest needs."""

    spec: EmbedderSpec

    def embed_images(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """uint8 (N, H, W, 3) RGB -> float32 (N, D), L2-normalised."""
        ...


@dataclass(frozen=True, slots=True)
class IngestOptions:
    """How files are read.

    sample_fps       kept frames a second; more where a scene would have under three
    keep_frames      keep JPEGs of the sampled frames, so that asking decodes nothing
    workers          videos read at the same time, one process each; 0: one less than cores
    stall_seconds    a worker that is silent for longer is ended, and its file has failed
    batch_frames     frames embedded at once
    """

    sample_fps: float = 1.0
    scenes: SceneOptions = field(default_factory=SceneOptions)
    keep_frames: bool = True
    workers: int = 0
    stall_seconds: float = 60.0
    batch_frames: int = 32

    def __post_init__(self) -> None:
        if not 0 < self.sample_fps <= 120:
            raise UsageError(f"sample_fps is {self.sample_fps}; it must be above 0, at most 120")
        if self.workers < 0:
            raise UsageError(f"workers is {self.workers}; it must be 0 (automatic) or more")
        if not 0 < self.stall_seconds < math.inf:
            raise UsageError(f"stall_seconds is {self.stall_seconds}; it must be above 0")
        if self.batch_frames < 1:
            raise UsageError(f"batch_frames is {self.batch_frames}; it must be 1 or more")

    @property
    def recipe(self) -> str:
        """What decides scenes, frames and pictures: a video ingested by another one is redone."""
        scenes = self.scenes
        picture = f"{PICTURE_LONG_SIDE}x{PICTURE_SHORT_SIDE}q{JPEG_QUALITY}"
        return (
            f"v1 fps={self.sample_fps:g} scene={scenes.min_scene_seconds:g}"
            f"-{scenes.max_scene_seconds:g} adaptive={scenes.adaptive_threshold:g} "
            f"picture={picture if self.keep_frames else 'none'}"
        )

    def worker_count(self) -> int:
        """The number of worker processes, at least one."""
        return self.workers or max(1, min(MAX_DEFAULT_WORKERS, usable_cpus() - 1))


@dataclass(frozen=True, slots=True)
class IngestProgress:
    """Where one video of an ingest stands; `speed` is a multiple of real time."""

    path: str
    seconds_done: float
    seconds_total: float
    speed: float
    files_done: int
    files_total: int


Listener = Callable[[IngestProgress | FileReport], None]


def ingest(
    paths: Sequence[str | Path],
    library: Library,
    embedder: ImageEmbedder,
    options: IngestOptions | None = None,
    on_progress: Listener | None = None,
) -> IngestReport:
    """Takes files and folders (recursively, in order of path) into the library.

    Bad files end up in the report as `failed`; the rest is not held up. What is committed stays
    when this is interrupted. Raises LibraryError and ModelError, which concern every file.
    """
    run = _Run(library, embedder, options or IngestOptions(), on_progress or (lambda _: None))
    return run.all(paths)


class _Take:
    """One video in hand: the worker that reads it, and the draft of what the library will hold."""

    def __init__(self, path: str, content: str, recipe: str, worker: Worker, draft: Draft) -> None:
        self.path = path
        self.content = content
        self.recipe = recipe
        self.worker = worker
        self.started = time.monotonic()
        self.heard = self.started + _STARTING_SECONDS
        self.frames = 0
        self._ends = ExitStack()
        self.draft = self._ends.enter_context(draft)

    def add(self, samples: Samples, vectors: NDArray[np.float32]) -> None:
        self.draft.append(samples.seconds, vectors, samples.jpegs)
        self.frames += len(samples.seconds)

    def close(self) -> None:
        """Lets go of the draft: what is not committed is gone."""
        self._ends.close()


class _Run:
    """One call of `ingest`."""

    def __init__(
        self, library: Library, embedder: ImageEmbedder, options: IngestOptions, tell: Listener
    ) -> None:
        self._library = library
        self._embedder = embedder
        self._options = options
        self._tell = tell
        self._waiting: deque[str] = deque()
        self._idle: list[Worker] = []
        self._takes: dict[int, _Take] = {}
        # Copies of videos in hand, by content: to be looked at again when those are done.
        self._copies: dict[str, list[str]] = {}
        self._reports: list[FileReport] = []
        self._files_total = 0

    def all(self, paths: Sequence[str | Path]) -> IngestReport:
        started = time.monotonic()
        found, failures = find_videos(paths)
        self._waiting.extend(found)
        self._files_total = len(found)
        for failure in failures:
            self._report(failure)
        try:
            while self._waiting or self._takes:
                self._start_readers()
                if self._takes:
                    self._listen()
        finally:
            self._end_all()
        self._library.tidy()
        return IngestReport(tuple(self._reports), time.monotonic() - started)

    def _start_readers(self) -> None:
        """Goes through the waiting files until every worker has one to read."""
        for _ in range(len(self._waiting)):
            if len(self._takes) >= self._options.worker_count():
                return
            path = self._waiting.popleft()
            try:
                self._consider(path)
            except (VideoError, LibraryBusy) as error:
                self._fail(path, _with_path(path, str(error)), again=isinstance(error, LibraryBusy))

    def _consider(self, path: str) -> None:
        """Finds out what a file is to the library: known, or to be read."""
        status = check_file(path)
        known = self._library.find_path(path)
        unchanged = known and (known.size_bytes, known.mtime_ns) == (
            status.st_size,
            status.st_mtime_ns,
        )
        if known and unchanged and self._is_current(known, path):
            self._report(self._known(path, "skipped", known))
            return
        content = fingerprint(path)
        if any(take.content == content for take in self._takes.values()):
            self._copies.setdefault(content, []).append(path)
            return
        known = self._library.find(content)
        if known and self._is_current(known, path):
            self._report(self._known(path, self._place(path, status, known), known))
            return
        self._read(path, content, self._recipe(path))

    def _is_current(self, known: Video, path: str) -> bool:
        """Whether reading the file again would add nothing to what is stored of its content.

        A copy with no subtitles beside it takes none away that lie beside another copy.
        """
        recipe = self._recipe(path)
        if self._library.is_current(known, recipe):
            return True
        return recipe == self._options.recipe and any(
            other != path
            and _still_there(replace(known, path=other))
            and self._library.is_current(known, self._recipe(other))
            for other in self._library.paths(known.video_id)
        )

    def _recipe(self, path: str) -> str:
        digest = sidecar_digest(path)
        return f"{self._options.recipe} subtitles={digest}" if digest else self._options.recipe

    def _place(self, path: str, status: os.stat_result, known: Video) -> FileState:
        """Tells the library where a content is that it has: touched, moved or copied."""
        here = replace(known, path=path, size_bytes=status.st_size, mtime_ns=status.st_mtime_ns)
        if known.path != path and not _still_there(known):
            self._library.move(here, known.path)
            return "moved"
        self._library.link(here)
        return "skipped" if known.path == path else "linked"

    def _known(self, path: str, state: FileState, video: Video) -> FileReport:
        return FileReport(path, state, seconds_video=video.duration_seconds)

    def _read(self, path: str, content: str, recipe: str) -> None:
        worker = self._worker()
        take = _Take(path, content, recipe, worker, self._library.draft())
        self._takes[id(worker.connection)] = take
        spec = self._embedder.spec
        worker.submit(
            Job(
                path=path,
                image_width=spec.image_width,
                image_height=spec.image_height,
                resize_mode=spec.resize_mode,
                sample_fps=self._options.sample_fps,
                scenes=self._options.scenes,
                keep_frames=self._options.keep_frames,
                batch_frames=self._options.batch_frames,
            )
        )

    def _worker(self) -> Worker:
        """One that waits for work; those that died while they waited died of no video."""
        while self._idle:
            worker = self._idle.pop()
            if worker.is_alive:
                return worker
            worker.close()
        return Worker()

    def _listen(self) -> None:
        """Waits for the workers, takes one message from each that has one, ends the silent."""
        takes = {take.worker.connection: take for take in self._takes.values()}
        for ready in wait(list(takes), timeout=min(1.0, self._options.stall_seconds / 4)):
            take = takes.pop(ready)  # type: ignore[call-overload]
            self._take_message(take)
            # From here on: embedding takes its time, in which the worker may only wait.
            take.heard = time.monotonic()
        for take in takes.values():
            silent = time.monotonic() - take.heard
            if silent > self._options.stall_seconds and not take.worker.connection.poll():
                reason = f"no progress for {self._options.stall_seconds:g} s; reading was given up"
                self._drop(take, f"{shown(take.path)}: {reason}")

    def _take_message(self, take: _Take) -> None:
        message = take.worker.receive()
        match message:
            case Progress():
                self._tell_progress(take, message)
            case Samples():
                take.add(message, self._embedder.embed_images(message.images))
            case Done():
                self._commit(take, message)
            case Failed():
                self._drop(take, _with_path(take.path, message.error))

    def _tell_progress(self, take: _Take, progress: Progress) -> None:
        elapsed = time.monotonic() - take.started
        self._tell(
            IngestProgress(
                path=take.path,
                seconds_done=progress.seconds_done,
                seconds_total=progress.seconds_total,
                speed=progress.seconds_done / elapsed if elapsed > 0 else 0.0,
                files_done=len(self._reports),
                files_total=self._files_total,
            )
        )

    def _commit(self, take: _Take, done: Done) -> None:
        try:
            take.draft.commit(done.video, done.scenes, done.texts, take.recipe)
        except LibraryBusy as error:
            self._drop(take, _with_path(take.path, str(error)), again=True)
            return
        self._release(take)
        self._idle.append(take.worker)
        self._report(
            FileReport(
                path=take.path,
                state="ingested",
                scenes=len(done.scenes),
                frames=take.frames,
                seconds_video=done.video.duration_seconds,
                seconds_wall=time.monotonic() - take.started,
            )
        )

    def _drop(self, take: _Take, error: str, *, again: bool = False) -> None:
        """Gives a video up, and its worker, which may be dead, hung or in an odd state."""
        self._release(take)
        take.worker.close()
        self._fail(take.path, error, time.monotonic() - take.started, again=again)

    def _release(self, take: _Take) -> None:
        del self._takes[id(take.worker.connection)]
        self._waiting.extend(self._copies.pop(take.content, ()))
        take.close()

    def _fail(
        self, path: str, error: str, seconds_wall: float = 0.0, *, again: bool = False
    ) -> None:
        # A name that is not valid UTF-8 cannot be stored.
        if path.encode("utf-8", "ignore").decode() == path:
            with suppress(LibraryBusy):
                self._library.record_failure(path, error)
        self._report(
            FileReport(path, "failed", seconds_wall=seconds_wall, error=error, again=again)
        )

    def _report(self, report: FileReport) -> None:
        self._reports.append(report)
        self._tell(report)

    def _end_all(self) -> None:
        for take in list(self._takes.values()):
            self._release(take)
            take.worker.close()
        for worker in self._idle:
            worker.close()


def _still_there(video: Video) -> bool:
    try:
        return os.stat(video.path).st_size == video.size_bytes
    except OSError:
        return False


def _with_path(path: str, error: str) -> str:
    name = shown(path)
    return error if error.startswith(name) else f"{name}: {error}"
