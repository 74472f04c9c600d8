"""`vidqa serve` as people run it, in a process of its own, with films whose content is known.

`serve_runtime`  the runtime folder of the engine with the bundled models, ended with the session
`films`          the demo's films with their truth, ingested; and one film that is not in it yet
`served`         the server of those films, with a key, ready to answer

    films = make_films(folder)
    with serving(films.index, runtime, log) as server: ...      another one, of the same engine

The engine takes a minute to start and is one for all of them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from vidqa import engine
from vidqa.config import Settings
from vidqa.demo import films as playground
from vidqa.demo import show, world
from vidqa.ingest import ingest
from vidqa.server.jobs import OPEN
from vidqa.wiring import ingest_options, open_library

KEY = "a-key-of-more-than-sixteen-signs"
# A name that is markup, and nobody's idea of a path.
HOSTILE = "<img src=x onerror=alert(1)>.mp4"
UPLOAD = "holiday.mp4"
PER_TYPE = 2
LISTENS_SECONDS, READY_SECONDS, ENDS_SECONDS = 60, 300, 30


@dataclass(frozen=True)
class Asked:
    """A question about the films; `answer` is None where they do not tell.

    The answer is seen in `film`, `[start_seconds, end_seconds)`.
    """

    type: str
    text: str
    answer: str | None
    film: str
    start_seconds: float
    end_seconds: float


@dataclass(frozen=True)
class Films:
    """A library in `index`, the files in it, what can be asked of them, and a film to upload."""

    index: Path
    paths: tuple[Path, ...]
    questions: tuple[Asked, ...]
    upload: Path

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(path.name for path in self.paths)

    def of_type(self, kind: str) -> Asked:
        """The first question of a type, as vidqa/demo/questions.py names it."""
        return next(one for one in self.questions if one.type == kind)


@dataclass(frozen=True)
class Served:
    """A running server; `http` carries the key, and its addresses are relative to the root."""

    url: str
    key: str
    process: subprocess.Popen[bytes]
    http: httpx.Client


def make_films(folder: Path) -> Films:
    """The demo's films, the last of them under a name that is markup. Two have subtitles."""
    seeds = [show.FIRST_SEED + number for number in range(show.FILMS)]
    playground.write_library(folder / "films", seeds, show.SCENES_PER_FILM, PER_TYPE)
    *paths, last = sorted((folder / "films").glob("*.mp4"))
    paths.append(last.rename(last.with_name(HOSTILE)))
    new = world.sample_film(show.FIRST_SEED + show.FILMS, scene_count=3)
    upload = playground.write_film(new, folder).rename(folder / UPLOAD)
    settings = replace(Settings.load("demo", {}), index=folder / "index")
    library, embedder = open_library(settings, create=True)
    ingest(paths, library, embedder, ingest_options(settings))
    rows = json.loads((folder / "films" / "questions.json").read_text("utf-8"))["questions"]
    questions = tuple(_asked(row, {last.name: HOSTILE}) for row in rows)
    return Films(settings.index, tuple(paths), questions, upload)


def _asked(row: dict[str, Any], renamed: dict[str, str]) -> Asked:
    # The last span is the scene that answers; without an answer any will do.
    span = [row["shown"], *row["spans"]][-1]
    film = renamed.get(span["film"], span["film"])
    times = span["start_seconds"], span["end_seconds"]
    return Asked(row["type"], row["text"], row["answer"], film, *times)


@contextmanager
def serving(
    index: Path,
    runtime: Path,
    log: Path,
    *flags: str,
    key: str = "",
    wait: bool = True,
) -> Iterator[Served]:
    """The server on a port of its own; with `key`, nobody gets in without it.

    With `wait` it is ready to answer, else it only listens. It is ended by its own id; the engine
    goes on, and belongs to who made `runtime`.
    """
    command = [sys.executable, "-m", "vidqa.cli", "serve", "--config", "demo", "--json"]
    command += ["--index", str(index), "--port", "0", *flags]
    told = {"VIDQA_RUNTIME_DIR": str(runtime)} | ({"VIDQA_SERVE_KEYS": f"ci:{key}"} if key else {})
    with (
        open(log, "wb") as said,
        open(log.with_suffix(".err"), "wb") as warned,
        subprocess.Popen(
            command, stdout=said, stderr=warned, stdin=subprocess.DEVNULL, env=os.environ | told
        ) as process,
    ):
        try:
            url = _address(process, log)
            headers = {"Authorization": f"Bearer {key}"} if key else {}
            with httpx.Client(base_url=url, headers=headers, timeout=60) as http:
                if wait:
                    _until_ready(http, process, log)
                yield Served(url, key, process, http)
        finally:
            _end(process)


def _address(process: subprocess.Popen[bytes], log: Path) -> str:
    deadline = time.monotonic() + LISTENS_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        line, end, _ = log.read_text("utf-8").partition("\n")
        if end:
            return str(json.loads(line)["url"])
        time.sleep(0.05)
    raise AssertionError(f"the server does not listen; it said: {_said(log)}")


def _until_ready(http: httpx.Client, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        if http.get("readyz").status_code == 200:
            return
        time.sleep(0.2)
    raise AssertionError(f"the server does not get ready; it said: {_said(log)}")


def _said(log: Path) -> str:
    return log.read_text("utf-8") + log.with_suffix(".err").read_text("utf-8")


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(ENDS_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        raise AssertionError("the server did not end when it was told to") from None


def environment(served: Served) -> dict[str, str]:
    """What a program needs to find the server, by the names that OpenAI's clients read."""
    return os.environ | {"OPENAI_BASE_URL": f"{served.url}v1", "OPENAI_API_KEY": served.key}


def take_out_uploads(served: Served) -> None:
    """Leaves the library as it was, once nothing is taken in any more."""
    deadline = time.monotonic() + ENDS_SECONDS
    while {job["status"] for job in served.http.get("v1/jobs").json()["data"]} & {*OPEN}:
        assert time.monotonic() < deadline, "an upload is not taken in"
        time.sleep(0.1)
    for video in served.http.get("v1/videos").json()["data"]:
        if video["uploaded"]:
            served.http.delete(f"v1/videos/{video['id']}")


# ---------------------------------------------------------------- shared by all files of tests


@pytest.fixture(scope="session")
def serve_runtime(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Not `engine_folder`: there tests replace the engine and kill it."""
    runtime = tmp_path_factory.mktemp("serve-runtime")
    yield runtime
    engine.stop(runtime / "vidqa")


@pytest.fixture(scope="session")
def films(tmp_path_factory: pytest.TempPathFactory) -> Films:
    return make_films(tmp_path_factory.mktemp("films"))


@pytest.fixture(scope="session")
def served(films: Films, serve_runtime: Path) -> Iterator[Served]:
    with serving(films.index, serve_runtime, films.index.parent / "serve.log", key=KEY) as running:
        yield running
