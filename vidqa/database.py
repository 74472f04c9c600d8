"""How the DuckDB file of a library is opened, and a copy of it in memory that follows it.

    with opened(path, read_only=True) as connection: ...       one commit or one query
    follower = Follower(path, without=("frames", "vector"))
    with follower.cursor() as connection: ...                  any number at once

DuckDB lets one process write or many read, so whoever finds the file locked tries again with
growing pauses, and gives up with `LibraryBusy`. Opening it takes 35 ms of a core, which a command
does not notice and a server does: a `Follower` opens it only after somebody's commit.

This module knows no table; the schema and the queries are `vidqa.store`'s.
"""

from __future__ import annotations

import logging
import random
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vidqa.errors import LibraryBusy, LibraryError

if TYPE_CHECKING:
    import duckdb

log = logging.getLogger(__name__)

# How long a command waits for another process to let go of the file. A commit takes well under a
# second; rebuilding the index of a million frames reads for about ten.
BUSY_SECONDS = 30.0
# How long a follower waits that has a copy to go on with; after that it only looks, so often.
FOLLOW_SECONDS, LOOK_SECONDS = 1.0, 0.25

Signature = tuple[int, ...]

# Locks are per process in DuckDB, and two connections of one process must agree on how the file
# is opened; so threads of one process take turns here.
_turns: dict[Path, threading.Lock] = {}
_turns_guard = threading.Lock()

_Config = dict[str, str | int | float | list[str]]
_WRITER: _Config = {"autoinstall_known_extensions": False, "autoload_known_extensions": False}
_COPY: _Config = {**_WRITER, "temp_directory": ""}
# A reader may run SQL of the user's: it reaches no other file and cannot unlock that again.
_READER: _Config = {
    **_WRITER,
    "enable_external_access": False,
    "temp_directory": "",
    "lock_configuration": True,
}


def signature(path: Path) -> Signature:
    """Changes with every commit, by whichever process, and costs no connection."""
    parts: Signature = ()
    for file in (path, path.with_name(path.name + ".wal")):
        with suppress(OSError):
            status = file.stat()
            parts += (status.st_ino, status.st_size, status.st_mtime_ns)
    return parts


def first_line(error: BaseException) -> str:
    """The reason in an error of DuckDB's, without the excerpt of the query that follows it."""
    return str(error).strip().split("\n", 1)[0].strip()


@contextmanager
def opened(
    path: Path, *, read_only: bool, wait_seconds: float | None = None
) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection to the file, closed at the end; waits for others for `BUSY_SECONDS` or less."""
    import duckdb

    config = _READER if read_only else _WRITER
    with _turn(path, wait_seconds) as patiently:
        connection = patiently(
            lambda: duckdb.connect(str(path), read_only=read_only, config=config)
        )
        try:
            yield connection
        finally:
            connection.close()


class Follower:
    """A copy in memory of one file, except one column (`without`: its table and its name).

    It is made anew when the file has changed, and swapped: a query that runs keeps the copy it
    began on, which is gone with its last query. Nobody can change a copy, and the file is held
    only while one is made. Methods may be called from many threads.
    """

    def __init__(self, path: Path, *, without: tuple[str, str]) -> None:
        self._path = path
        self._without = without
        self._turn = threading.Lock()
        self._copy: _Copy | None = None
        self._wrote = False
        # Set while somebody holds the file for longer than was waited.
        self._look_again_at = 0.0

    def signature(self) -> Signature:
        """The signature of the file that the queries of now are answered from."""
        return self._current().signature

    def wrote(self) -> None:
        """This process has committed something, which its next query has to see."""
        self._wrote = True

    @contextmanager
    def cursor(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """A connection of its own to the newest copy, inside a transaction that cannot write."""
        connection = self._current().root.cursor()
        try:
            connection.execute("BEGIN TRANSACTION READ ONLY")
            yield connection
        finally:
            connection.close()

    def _current(self) -> _Copy:
        copy = self._copy
        if copy is not None and copy.signature == signature(self._path):
            return copy
        with self._turn:
            if self._copy is None:
                self._copy = self._made(None)
            elif self._copy.signature != signature(self._path):
                self._follow()
            return self._copy

    def _follow(self) -> None:
        late = self._look_again_at > 0
        if late and not self._wrote and time.monotonic() < self._look_again_at:
            return
        # A commit while the copy is made raises the flag again.
        wrote, self._wrote = self._wrote, False
        try:
            self._copy = self._made(BUSY_SECONDS if wrote else 0.0 if late else FOLLOW_SECONDS)
            self._look_again_at = 0.0
        except LibraryBusy as error:
            self._look_again_at = time.monotonic() + LOOK_SECONDS
            if not late:
                log.warning("answering from before the last change: %s", error)

    def _made(self, wait_seconds: float | None) -> _Copy:
        # Taken before the file is read: what is committed meanwhile is seen next time.
        before = signature(self._path)
        return _Copy(before, _copied(self._path, self._without, wait_seconds))


@dataclass(frozen=True, slots=True)
class _Copy:
    """A database in memory, which lives as long as `root` or any of its cursors."""

    signature: Signature
    root: duckdb.DuckDBPyConnection


def _copied(
    path: Path, without: tuple[str, str], wait_seconds: float | None
) -> duckdb.DuckDBPyConnection:
    """All tables and views of the file in memory, but for one column."""
    import duckdb

    # A database of its own for each copy: one that could still attach files could be made to.
    copy = duckdb.connect(":memory:", config=_COPY)
    quoted = str(path.resolve()).replace("'", "''")
    try:
        with _turn(path, wait_seconds) as patiently:
            patiently(lambda: copy.execute(f"ATTACH '{quoted}' AS file (READ_ONLY)"))
            _fill(copy, *without)
            copy.execute("DETACH file")
        # From here on it is as closed as a reader of the file.
        copy.execute("SET enable_external_access = false; SET lock_configuration = true")
    except duckdb.Error as error:
        copy.close()
        raise LibraryError(_damaged(path, error)) from error
    except BaseException:
        copy.close()
        raise
    return copy


def _fill(copy: duckdb.DuckDBPyConnection, table: str, column: str) -> None:
    copy.execute("COPY FROM DATABASE file TO memory (SCHEMA)")
    copy.execute(f"ALTER TABLE {table} DROP COLUMN {column}")
    names = copy.execute("SELECT table_name FROM duckdb_tables() WHERE database_name = 'file'")
    for (name,) in names.fetchall():
        columns = f"* EXCLUDE ({column})" if name == table else "*"
        copy.execute(f"INSERT INTO memory.{name} BY NAME SELECT {columns} FROM file.{name}")


# ---------------------------------------------------------------- taking turns, and waiting


_Patiently = Callable[[Callable[[], "duckdb.DuckDBPyConnection"]], "duckdb.DuckDBPyConnection"]


@contextmanager
def _turn(path: Path, wait_seconds: float | None) -> Iterator[_Patiently]:
    """This process's turn at the file, with a way to open it that waits for other processes."""
    seconds = BUSY_SECONDS if wait_seconds is None else wait_seconds
    deadline = time.monotonic() + seconds
    with _turns_guard:
        turn = _turns.setdefault(path.resolve(), threading.Lock())
    if not turn.acquire(timeout=seconds):
        raise _busy(path, None, seconds)
    try:
        yield lambda open_file: _patiently(path, open_file, deadline, seconds)
    finally:
        turn.release()


def _patiently(
    path: Path,
    open_file: Callable[[], duckdb.DuckDBPyConnection],
    deadline: float,
    seconds: float,
) -> duckdb.DuckDBPyConnection:
    """Opens the file, trying again while another process holds it."""
    import duckdb

    pause_seconds = 0.005
    while True:
        try:
            return open_file()
        except (duckdb.IOException, duckdb.ConnectionException) as error:
            if not _is_locked(error) and not isinstance(error, duckdb.ConnectionException):
                raise LibraryError(_unopened(path, error)) from error
            if time.monotonic() + pause_seconds > deadline:
                raise _busy(path, error, seconds) from error
        except duckdb.Error as error:
            raise LibraryError(_damaged(path, error)) from error
        # Jitter, so that many waiting readers do not keep a writer out in step.
        time.sleep(pause_seconds * random.uniform(0.5, 1.5))
        pause_seconds = min(pause_seconds * 1.6, 0.25)


def _is_locked(error: Exception) -> bool:
    return "lock" in str(error).lower()


def _busy(path: Path, error: Exception | None, seconds: float) -> LibraryBusy:
    holder = re.search(r"PID (\d+)", str(error or ""))
    who = f"process {holder.group(1)}" if holder else "another command"
    return LibraryBusy(
        f"{path.parent}: {who} has held the library for more than {seconds:.0f} seconds; "
        "wait for it to finish, or stop it"
    )


def _unopened(path: Path, error: Exception) -> str:
    """DuckDB says so of files that it may not open, and of those that are no database."""
    if "Cannot open file" not in str(error):
        return _damaged(path, error)
    return (
        f"{path}: cannot be opened: {first_line(error)}; it must be readable and, to ingest, "
        "writable with its folder"
    )


def _damaged(path: Path, error: Exception) -> str:
    return (
        f"{path}: is damaged: {first_line(error)}; restore a backup, or delete {path.parent} and "
        "ingest again"
    )
