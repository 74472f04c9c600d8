"""Uploads become searchable in the background, one after the other, and are not forgotten.

    jobs = Jobs(shelves, options); jobs.start(); jobs.stop()
    job = jobs.add(shelf, path); jobs.get(job.id)

A job is a small file in the library's folder, so its state outlives the server and any of several
workers can tell it. Whoever works on a library holds a lock that goes with the process: what a
killed server left undone is taken up by the next one.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import queue
import re
import secrets
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO

from vidqa.containers import shown
from vidqa.errors import LibraryBusy, VidqaError
from vidqa.ingest import IngestOptions, IngestProgress, ingest
from vidqa.server.gateway import Shelf
from vidqa.server.shapes import UPLOADS, name_of
from vidqa.types import FileReport, IngestReport

log = logging.getLogger(__name__)

FOLDER = "jobs"
JOB_ID = r"^job_[0-9a-f]{16}$"
KEPT_JOBS = 200
PROGRESS_SECONDS = 0.5
# How often it is looked whether another process is done with a library.
TURN_SECONDS = 0.2
STOP_SECONDS = 20.0
OPEN = ("queued", "running")
# Of an upload that still comes in, and how old one is that does not any more.
UNFINISHED = ".part"
STALE_SECONDS = 24 * 3600
# A file that ends the server each time must not end it for ever.
MAX_ATTEMPTS = 3
AGAIN_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Job:
    """One upload; `progress` is a share of 1, `created_at` seconds since the epoch."""

    id: str
    library: str
    path: str
    created_at: float
    status: str = "queued"
    progress: float = 0.0
    video_id: str | None = None
    error: str | None = None
    attempts: int = 0

    def shape(self) -> dict[str, object]:
        return {
            "id": self.id,
            "object": "job",
            "status": self.status,
            "library": self.library,
            "video": name_of(self.path),
            "video_id": self.video_id,
            "progress": round(self.progress, 3),
            "error": self.error,
            "created_at": int(self.created_at),
        }


class Jobs:
    """The jobs of all libraries of one server process."""

    def __init__(self, shelves: Mapping[str, Shelf], options: IngestOptions) -> None:
        self._shelves = shelves
        self._options = options
        self._waiting: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Takes up what was left undone, and then whatever comes."""
        for shelf in self._shelves.values():
            _sweep(shelf)
        for job in reversed(self.all()):
            if job.status in OPEN:
                self._waiting.put(job)
        self._thread = threading.Thread(target=self._work, name="jobs", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Lets go of a job in hand, which the next server takes up.

        A process must not end under a thread that is inside DuckDB or torch: that aborts it.
        """
        self._ended.set()
        self._waiting.put(None)
        if self._thread is not None:
            self._thread.join(STOP_SECONDS)

    def add(self, shelf: Shelf, path: Path) -> Job:
        job = Job(f"job_{secrets.token_hex(8)}", shelf.name, str(path), time.time())
        self._write(job)
        self._prune(shelf)
        self._waiting.put(job)
        return job

    def get(self, job_id: str) -> Job | None:
        if not re.fullmatch(JOB_ID, job_id):
            return None
        return next((job for name in self._shelves if (job := self._read(name, job_id))), None)

    def all(self) -> list[Job]:
        """The latest first."""
        found = [
            job
            for name in self._shelves
            for file in self._folder(name).glob("job_*.json")
            if (job := self._read(name, file.stem))
        ]
        return sorted(found, key=lambda job: job.created_at, reverse=True)

    # ------------------------------------------------------------ the work

    def _work(self) -> None:
        while (job := self._waiting.get()) is not None and not self._ended.is_set():
            try:
                with self._turn(job.library):
                    # Another worker, or this one earlier, may have done it meanwhile.
                    current = self._read(job.library, job.id)
                    if current is not None and current.status in OPEN:
                        self._do(current)
            except _Ended:
                return
            except LibraryBusy as error:
                log.warning("%s waits: %s", job.id, error)
                self._ended.wait(AGAIN_SECONDS)
                self._waiting.put(job)
            except Exception as error:
                log.exception("job %s broke off", job.id)
                with contextlib.suppress(OSError):  # a disk that is full takes no note either
                    current = self._read(job.library, job.id) or job
                    self._try_again(current, _internal(error))

    def _do(self, job: Job) -> None:
        shelf = self._shelves[job.library]
        if job.attempts >= MAX_ATTEMPTS:
            self._give_up(job, job.error or f"the server ended {job.attempts} times in the middle")
            return
        job = replace(job, status="running", error=None, attempts=job.attempts + 1)
        self._write(job)
        told = time.monotonic()

        def tell(event: IngestProgress | FileReport) -> None:
            nonlocal job, told
            if self._ended.is_set():
                raise _Ended
            if isinstance(event, IngestProgress) and time.monotonic() - told > PROGRESS_SECONDS:
                told = time.monotonic()
                share = event.seconds_done / event.seconds_total if event.seconds_total else 0.0
                job = replace(job, progress=min(share, 0.99))
                self._write(job)

        try:
            report = ingest([job.path], shelf.library, shelf.embedder, self._options, tell)
        except _Ended:
            # To be told to end is no failure of the job's.
            self._write(replace(job, status="queued", attempts=job.attempts - 1))
            raise
        except VidqaError as failure:
            self._try_again(job, str(failure))
        except Exception as failure:
            log.exception("job %s failed", job.id)
            self._try_again(job, _internal(failure))
        else:
            self._finish(job, shelf, report)

    def _finish(self, job: Job, shelf: Shelf, report: IngestReport) -> None:
        failure = next(iter(report.failures), None)
        if failure is None and report.files:
            video = shelf.library.find_path(job.path)
            video_id = video.video_id if video else None
            self._write(replace(job, status="done", progress=1.0, video_id=video_id))
            return
        error = (failure and failure.error) or "it is gone"
        if failure is not None and failure.again:
            self._try_again(job, error)
            return
        # What cannot be read is of no use here; whoever sent it has it still.
        Path(job.path).unlink(missing_ok=True)
        with contextlib.suppress(VidqaError):  # the job tells it; the library lists what is there
            shelf.library.forget_failure(job.path)
        self._write(replace(job, status="failed", error=_said(job, error)))

    def _try_again(self, job: Job, error: str) -> None:
        """The file is not at fault: it waits for its turn again, and is kept in any case."""
        log.warning("job %s: %s", job.id, error)
        job = replace(job, status="queued", progress=0.0, error=_said(job, error))
        self._write(job)
        if not self._ended.wait(AGAIN_SECONDS):
            self._waiting.put(job)

    def _give_up(self, job: Job, error: str) -> None:
        said = f"{error}; given up after {job.attempts} tries, the upload is kept: ingest it there"
        self._write(replace(job, status="failed", error=said))

    @contextlib.contextmanager
    def _turn(self, library: str) -> Iterator[None]:
        """One job of a library at a time, over all processes."""
        folder = self._folder(library)
        folder.mkdir(exist_ok=True)
        with (folder / "turn.lock").open("w") as lock:
            while not _locked(lock):
                if self._ended.wait(TURN_SECONDS):
                    raise _Ended
            yield

    # ------------------------------------------------------------ the files

    def _folder(self, library: str) -> Path:
        return self._shelves[library].library.folder / FOLDER

    def _read(self, library: str, job_id: str) -> Job | None:
        try:
            text = (self._folder(library) / f"{job_id}.json").read_text("utf-8")
            return replace(Job(**json.loads(text)), library=library)
        except (OSError, ValueError, TypeError):
            return None

    def _write(self, job: Job) -> None:
        folder = self._folder(job.library)
        folder.mkdir(exist_ok=True)
        draft = folder / f".{job.id}.{secrets.token_hex(4)}"
        draft.write_text(json.dumps(asdict(job)), "utf-8")
        draft.replace(folder / f"{job.id}.json")

    def _prune(self, shelf: Shelf) -> None:
        mine = [job for job in self.all() if job.library == shelf.name]
        for job in mine[KEPT_JOBS:]:
            if job.status not in OPEN:
                (self._folder(shelf.name) / f"{job.id}.json").unlink(missing_ok=True)


def _internal(error: Exception) -> str:
    return f"an internal error ({type(error).__name__}); the server's log has it"


def _said(job: Job, error: str) -> str:
    """An error without the folder that it may name."""
    return error.replace(shown(job.path), name_of(job.path))


class _Ended(Exception):
    """The server ends; what is in hand is left."""


def _locked(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def uploads_of(shelf: Shelf) -> Path:
    """Where a library's uploads lie, as a whole path; made if need be."""
    folder = shelf.library.folder.absolute() / UPLOADS
    folder.mkdir(exist_ok=True)
    return folder


def _sweep(shelf: Shelf) -> None:
    """Removes what a killed server had received of uploads; what comes in now is younger."""
    for draft in (shelf.library.folder / UPLOADS).glob(f".*{UNFINISHED}"):
        with contextlib.suppress(OSError):
            if time.time() - draft.stat().st_mtime > STALE_SECONDS:
                draft.unlink()
