"""A copy in memory that follows a file, whoever writes it, and is never in a writer's way."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from library_parts import SPEC, add, start_writer, video

from vidqa import database
from vidqa.errors import LibraryBusy
from vidqa.library import Library
from vidqa.store import Store
from vidqa.types import Filters, TextSpan

HOLDER = """
import sys, duckdb
connection = duckdb.connect(sys.argv[1])
connection.execute("UPDATE library SET generation = generation + 1")
print("held", flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def library(tmp_path: Path) -> Library:
    """Two videos, one with words."""
    library = Library.open(tmp_path / "index", SPEC, create=True)
    add(library, "a", texts=(TextSpan(1, 3, "hello"),))
    add(library, "b")
    return library


@pytest.fixture
def path(library: Library) -> Path:
    return library.folder / "store.duckdb"


@pytest.fixture
def store(path: Path) -> Store:
    return Store(path, follow=True)


@contextmanager
def held_by_another_process(path: Path) -> Iterator[None]:
    """Somebody has committed something, and keeps the file open."""
    command = [sys.executable, "-c", HOLDER, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        yield
        holder.communicate(b"\n")


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "FOLLOW_SECONDS", 0.1)
    monkeypatch.setattr(database, "LOOK_SECONDS", 0.0)


READS: list[Callable[[Store], Any]] = [
    lambda store: store.videos(),
    lambda store: store.failures(),
    lambda store: store.scenes(video("a").video_id),
    lambda store: store.texts(video("a").video_id, 0, 9),
    lambda store: store.frame_seconds(video("a").video_id, 1, 3),
    lambda store: store.moments({(video("a").video_id, 1): 0.5}),
    lambda store: store.picture_rows(video("a").video_id),
    lambda store: store.pictures_files(),
    lambda store: store.frames([1, 2, 99]),
    lambda store: store.frames_that_fit(Filters(text="Hello", video="a.mp4")).tolist(),
    lambda store: store.frames_of_videos([video("b").video_id]).frame_id.tolist(),
    lambda store: store.frames_where("text = 'hello'").tolist(),
    lambda store: store.find(video("b").fingerprint),
    lambda store: store.find_path("/videos/b.mp4"),
    lambda store: store.recipe(video("b").video_id),
    lambda store: store.paths(video("b").video_id),
    lambda store: store.extent(),
    lambda store: store.open(),
]


@pytest.mark.parametrize("read", READS)
def test_the_copy_answers_as_the_file_does(
    store: Store, path: Path, read: Callable[[Store], Any]
) -> None:
    assert read(store) == read(Store(path))


def test_a_commit_of_another_process_is_seen_by_the_next_read(
    library: Library, store: Store
) -> None:
    assert len(store.videos()) == 2
    writer = start_writer(library.folder, "c", 1)
    writer.communicate()
    assert len(store.videos()) == 3


def test_a_commit_of_the_same_process_is_seen_by_the_next_read(store: Store) -> None:
    store.record_failure("/videos/c.mp4", "truncated")
    assert [failure.path for failure in store.failures()] == ["/videos/c.mp4"]
    store.remove(video("a").video_id)
    assert [row.video.path for row in store.videos()] == ["/videos/b.mp4"]


def test_an_unchanged_file_is_not_opened_again(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = store.videos()
    monkeypatch.setattr(database, "_copied", None)
    assert store.videos() == before


def test_a_query_that_runs_keeps_the_copy_it_began_on(store: Store) -> None:
    with store._connected() as running:
        store.remove(video("a").video_id)
        assert len(store.videos()) == 1
        assert running.execute("SELECT count(*) FROM videos").fetchall() == [(2,)]


def test_writers_are_not_kept_out_by_threads_that_read(library: Library, store: Store) -> None:
    """And what the threads see only grows, by whole videos."""
    writers = [start_writer(library.folder, prefix, 4) for prefix in "cd"]
    wrong: list[object] = []

    def read() -> None:
        seen = 0
        while any(writer.poll() is None for writer in writers):
            rows = store.videos()
            if len(rows) < seen or any(row.frames != 2 * row.scenes for row in rows[2:]):
                wrong.append(rows)
            seen = len(rows)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    printed = [writer.communicate()[0].split() for writer in writers]
    for thread in threads:
        thread.join()
    assert printed == [[f"{prefix}{n}" for n in range(4)] for prefix in "cd"]
    assert wrong == []
    assert len(store.videos()) == 10


@pytest.mark.usefixtures("impatient")
def test_the_last_copy_is_served_while_another_process_holds_the_file(
    store: Store, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = store.extent()
    with held_by_another_process(path):
        assert [store.extent(), store.extent()] == [before, before]
    assert caplog.text.count("answering from before the last change") == 1
    assert store.extent().generation == before.generation + 1


@pytest.mark.usefixtures("impatient")
def test_the_signature_is_that_of_the_copy_that_is_served(store: Store, path: Path) -> None:
    """So an index that follows the store does not run ahead of it, or wait for the file."""
    before = store.signature()
    with held_by_another_process(path):
        assert store.signature() == before
    assert store.signature() != before


def test_a_file_that_stays_held_is_busy_when_there_is_no_copy_yet(
    store: Store, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.1)
    with held_by_another_process(path), pytest.raises(LibraryBusy, match="has held the library"):
        store.videos()


@pytest.mark.usefixtures("impatient")
def test_pictures_are_never_swept_by_what_a_last_copy_says(
    store: Store, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.1)
    assert len(store.videos()) == 2
    with held_by_another_process(path), pytest.raises(LibraryBusy):
        store.pictures_files()


def test_a_library_made_anew_under_a_follower_is_followed(store: Store, path: Path) -> None:
    assert len(store.videos()) == 2
    path.unlink()
    Store(path).create(SPEC)
    assert store.videos() == []


def test_a_path_with_a_quote_is_followed(tmp_path: Path) -> None:
    path = tmp_path / "Ann's store.duckdb"
    Store(path).create(SPEC)
    assert Store(path, follow=True).open() == SPEC
