"""`vidqa serve` as people run it, in a process of its own, with films whose content is known.

    films = make_films(folder)
    with serving(films, runtime_folder) as served:
        httpx.get(served.url + "v1/info")

The engine is one for all of them, and belongs to the runtime folder.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from vidqa.config import Settings
from vidqa.demo import films, show, world
from vidqa.ingest import ingest
from vidqa.wiring import ingest_options, open_library

HOSTILE = "<img src=x onerror=alert(1)>.mp4"
UPLOAD = "holiday.mp4"
# Of the demo's films, as it cuts them: the house is in the third.
QUESTION, ASKED_FILM = "What colour is the house in the forest?", "film-1002.mp4"

_SERVES = re.compile(r"vidqa serves .* at (http://\S+/)")


@dataclass(frozen=True)
class Films:
    """A library in `index`, the names in it, and a film that is not in it yet."""

    index: Path
    names: tuple[str, ...]
    upload: Path


@dataclass(frozen=True)
class Served:
    url: str
    films: Films
    key: str


def make_films(folder: Path) -> Films:
    """The demo's films, one of them under a name that is markup, ingested; and one to upload."""
    made = []
    for number in range(show.FILMS):
        film = world.sample_film(show.FIRST_SEED + number, show.SCENES_PER_FILM)
        made.append(films.write_film(film, folder / "films"))
    made[-1] = made[-1].rename(made[-1].with_name(HOSTILE))
    new = films.write_film(world.sample_film(show.FIRST_SEED + show.FILMS, 3), folder)
    settings = replace(Settings.load("demo", {}), index=folder / "index")
    library, embedder = open_library(settings, create=True)
    ingest(made, library, embedder, ingest_options(settings))
    names = tuple(path.name for path in made)
    return Films(settings.index, names, new.rename(folder / UPLOAD))


@contextmanager
def serving(made: Films, runtime: Path, key: str = "") -> Iterator[Served]:
    """The server on a port of its own; with `key`, nobody gets in without it."""
    log = made.index.parent / f"serve{'-locked' if key else ''}.log"
    command = [sys.executable, "-m", "vidqa.cli", "serve", "--config", "demo"]
    command += ["--index", str(made.index), "--port", "0"]
    variables = {"VIDQA_RUNTIME_DIR": str(runtime), "VIDQA_SERVE_KEYS": key}
    with (
        open(log, "wb") as said,
        subprocess.Popen(
            command,
            stdout=said,
            stderr=subprocess.STDOUT,
            env=os.environ | {name: value for name, value in variables.items() if value},
        ) as process,
    ):
        try:
            yield Served(_address(process, log), made, key)
        finally:
            process.terminate()


def _address(process: subprocess.Popen[bytes], log: Path) -> str:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        if found := _SERVES.search(log.read_text("utf-8")):
            return found[1]
        time.sleep(0.1)
    raise AssertionError(f"the server does not listen; it said: {log.read_text('utf-8')}")
