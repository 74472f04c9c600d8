"""The child process of an ingest: reads one video after the other and hands over what it finds.

    for message in read_video(job): ...        in this process
    with Worker() as worker: worker.submit(job); worker.receive()      in a process of its own

A file that crashes or hangs the decoder takes this process with it and nothing else. Messages go
through a socket, and sending waits until the other side reads, so little is ever in flight. The
child ends when its parent does. It never imports torch; it embeds nothing and stores nothing.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import TYPE_CHECKING

from vidqa import texts
from vidqa.children import signal_name, start
from vidqa.containers import open_video, shown, video_stream
from vidqa.errors import VideoError
from vidqa.frames import SCENE_FRAMES, Decoder, Frame, Sampler
from vidqa.pictures import Views
from vidqa.probe import probe
from vidqa.scenes import SceneFinder, SceneOptions
from vidqa.types import ResizeMode, Scene, TextSpan, Video

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_PROGRESS_INTERVAL_SECONDS = 0.25


@dataclass(frozen=True, slots=True)
class Job:
    """One video to read; sizes in pixels, as the embedder takes them."""

    path: str
    image_width: int
    image_height: int
    resize_mode: ResizeMode
    sample_fps: float = 1.0
    scenes: SceneOptions = field(default_factory=SceneOptions)
    keep_frames: bool = True
    batch_frames: int = 32

    @property
    def sample_step_seconds(self) -> float:
        """Time between samples; each half of a split scene needs its three frames as well."""
        return min(1 / self.sample_fps, self.scenes.max_scene_seconds / (2 * SCENE_FRAMES))


@dataclass(frozen=True, slots=True)
class Progress:
    seconds_done: float
    seconds_total: float


@dataclass(frozen=True, slots=True)
class Samples:
    """Kept frames: `seconds` float64 (N,), `images` uint8 (N, H, W, 3) RGB, N JPEGs or none.

    Batches cover the video in order, but a frame may come after later ones.
    """

    seconds: NDArray[np.float64]
    images: NDArray[np.uint8]
    jpegs: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Done:
    """The video is read; its duration is now what was decoded."""

    video: Video
    scenes: tuple[Scene, ...]
    cuts: tuple[float, ...]
    texts: tuple[TextSpan, ...]
    packets_read: int
    packets_decoded: int


@dataclass(frozen=True, slots=True)
class Failed:
    error: str


Message = Progress | Samples | Done | Failed


def read_video(job: Job) -> Iterator[Message]:
    """Everything that is known of a video, by one forward decode; ends with Done or Failed."""
    try:
        video = probe(job.path)
        yield Progress(0.0, video.duration_seconds)
        yield from _Reading(job, video).run()
    except VideoError as error:
        yield Failed(str(error))


class _Reading:
    """One pass over one file: the detectors see every frame, the sampler picks some."""

    def __init__(self, job: Job, video: Video) -> None:
        self._job = job
        self._video = video
        self._finder = SceneFinder(video.fps, job.scenes)
        self._sampler = Sampler(job.sample_step_seconds)
        self._views = Views(
            video.width, video.height, job.image_width, job.image_height, job.resize_mode
        )
        # Frames wait here until no cut can fall before them any more.
        self._line: deque[Frame] = deque()
        self._sampled: list[float] = []
        self._batch: list[tuple[float, NDArray[np.uint8], bytes]] = []
        self._told = time.monotonic()

    def run(self) -> Iterator[Message]:
        with open_video(self._video.path) as container:
            stream = video_stream(container)
            embedded = texts.EmbeddedTexts(container, stream)
            decoder = Decoder(container, stream, embedded.add)
            for frame in decoder:
                self._finder.add(frame.seconds, self._views.detector(frame.picture))
                self._line.append(frame)
                yield from self._advance(SceneFinder.LAG)
                yield from self._progress(frame.seconds)
            yield from self._advance(0)
            self._keep(self._sampler.finish())
            yield from self._hand_over(1)
        self._check_unchanged()
        yield self._done(decoder, embedded)

    def _advance(self, waiting: int) -> Iterator[Message]:
        """Lets frames leave the line until only `waiting` are left."""
        while len(self._line) > waiting:
            frame = self._line.popleft()
            self._keep(self._sampler.add(frame, frame.seconds in self._finder.cuts[-8:]))
            yield from self._hand_over(self._job.batch_frames)

    def _keep(self, frames: list[Frame]) -> None:
        for frame in frames:
            jpeg = self._views.jpeg(frame.picture) if self._job.keep_frames else b""
            self._batch.append((frame.seconds, self._views.embedder(frame.picture), jpeg))
            self._sampled.append(frame.seconds)

    def _hand_over(self, least: int) -> Iterator[Message]:
        import numpy as np

        if len(self._batch) < least:
            return
        seconds, images, jpegs = zip(*self._batch, strict=True)
        self._batch = []
        kept = jpegs if self._job.keep_frames else ()
        yield Samples(np.array(seconds, np.float64), np.stack(images), kept)

    def _progress(self, seconds: float) -> Iterator[Message]:
        now = time.monotonic()
        if now - self._told >= _PROGRESS_INTERVAL_SECONDS:
            self._told = now
            yield Progress(seconds, max(seconds, self._video.duration_seconds))

    def _check_unchanged(self) -> None:
        path, video = self._video.path, self._video
        try:
            now = os.stat(path)
        except OSError as error:
            raise VideoError(f"{shown(path)}: went away while it was being read") from error
        if (now.st_size, now.st_mtime_ns) != (video.size_bytes, video.mtime_ns):
            raise VideoError(
                f"{shown(path)}: changed while it was being read; ingest it again once it is whole"
            )

    def _done(self, decoder: Decoder, embedded: texts.EmbeddedTexts) -> Done:
        end = decoder.end_seconds
        words = texts.sidecar_texts(self._video.path) or embedded.spans()
        return Done(
            video=replace(self._video, duration_seconds=end),
            scenes=tuple(self._finder.scenes(end, sorted(self._sampled))),
            cuts=tuple(sorted(self._finder.cuts)),
            texts=tuple(span for span in words if span.start_seconds < end),
            packets_read=decoder.packets_read,
            packets_decoded=decoder.packets_decoded,
        )


class Worker:
    """A child process as its parent sees it: one job at a time, messages back, or its death."""

    def __init__(self) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  closed with the worker
        self._process, self.connection = start(_CHILD, self._errors)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def submit(self, job: Job) -> None:
        """Hands over the next video; a child that is already dead shows in `receive`."""
        try:
            self.connection.send(job)
        except OSError:
            return

    def receive(self) -> Message:
        """The next message, waited for; Failed when the child died of its video."""
        try:
            message: Message = self.connection.recv()
        except (EOFError, OSError):
            return Failed(self._cause_of_death())
        return message

    def _cause_of_death(self) -> str:
        try:
            code = self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            return "the decoder process closed its connection"
        if code < 0:
            return f"the decoder crashed ({signal_name(-code)}); the file is damaged or unusual"
        self._errors.seek(0)
        lines = self._errors.read().decode("utf-8", "replace").strip().splitlines()
        return f"the decoder process failed: {lines[-1] if lines else f'exit code {code}'}"

    def close(self) -> None:
        """Ends the child at once, whatever it does."""
        self._process.kill()
        self._process.wait()
        self.connection.close()
        self._errors.close()


_CHILD = "import sys; from vidqa.worker import child; child(int(sys.argv[1]))"


def child(descriptor: int) -> None:
    """The child's whole life: a job in, its messages out, until the parent is gone."""
    import cv2

    cv2.setNumThreads(1)
    connection: Connection[Message, Job] = Connection(descriptor)
    jobs: SimpleQueue[Job] = SimpleQueue()
    threading.Thread(target=_receive_jobs, args=(connection, jobs), daemon=True).start()
    while True:
        for message in read_video(jobs.get()):
            try:
                connection.send(message)
            except OSError:
                os._exit(1)


def _receive_jobs(connection: Connection[Message, Job], jobs: SimpleQueue[Job]) -> None:
    """Also the watch over the parent: its death closes the connection, whatever we are doing."""
    while True:
        try:
            jobs.put(connection.recv())
        except (EOFError, OSError):
            os._exit(1)
