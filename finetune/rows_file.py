"""A file of rows that grows scene by scene, and a journal beside it of the scenes that are done.

    with RowsFile.open(path) as file:
        if job not in file.done: ...
        file.add(job, rows, note)

A row is one line, in vidqa's own JSONL. What was added is on the disk when `add` returns, so a
process may be killed at any time: a line that it did not finish is cut off when the file is opened
again, and a scene whose rows were written is done, whether or not the journal came to say so. One
process at a time writes to a file.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from finetune.formats import FORMATS, read
from finetune.formats.containers import to_json
from finetune.formats.writing import Target
from finetune.rows import Row
from vidqa.errors import UsageError

JOURNAL = ".progress"


def row_line(row: Row, path: Path) -> str:
    """One row as a line, with its end, of the file `path`: videos below its folder are relative."""
    (value,) = FORMATS["vidqa"].write([row], Target(path))
    return f"{to_json(value)}\n"


def said_by(row: Row, role: str) -> str:
    """What the turns of a role say in plain text, one a line."""
    turns = (turn for turn in row.turns if turn.role == role)
    return "\n".join(" ".join(one for one in turn.parts if isinstance(one, str)) for turn in turns)


class RowsFile:
    """The file, open for adding. `done` are the jobs that need no asking again.

    `held` are the rows that were there when it was opened.
    """

    def __init__(self, path: Path, rows: IO[bytes], journal: IO[bytes]) -> None:
        self.path = path
        self.done: set[str] = set()
        self.held: list[Row] = []
        self._rows, self._journal = rows, journal

    @classmethod
    def open(cls, path: Path) -> RowsFile:
        """Opens or makes both files. Raises UsageError where that cannot be, or another writes."""
        journal_path = path.with_name(path.name + JOURNAL)
        if not journal_path.exists() and path.exists() and path.stat().st_size:
            raise UsageError(
                f"{path} is there, and vidqa finetune build has not begun it; name a new file"
            )
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # First the journal: a file of rows beside it is ours.
            journal = journal_path.open("a+b")
            rows = path.open("a+b")
        except OSError as error:
            raise UsageError(f"{path}: {error.strerror}; name a file to write") from error
        file = cls(path, rows, journal)
        try:
            fcntl.flock(journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
            file._read()
        except BlockingIOError as error:
            file.close()
            raise UsageError(
                f"{path}: another process adds to it; wait for it, or name another file"
            ) from error
        except BaseException:
            file.close()
            raise
        return file

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        self._rows.close()
        self._journal.close()

    def add(self, job: str, rows: Sequence[Row], note: Mapping[str, Any]) -> None:
        """The rows of a finished job, perhaps none, and what is to be known of it later."""
        if rows:
            _append(self._rows, "".join(row_line(row, self.path) for row in rows))
        _append(self._journal, json.dumps({"job": job, "rows": len(rows), **note}) + "\n")
        self.done.add(job)

    def _read(self) -> None:
        """Raises UsageError for what is no row."""
        for file in (self._rows, self._journal):
            _end_last_line(file)
        if self._rows.seek(0, os.SEEK_END):
            self.held = read(self.path, "vidqa")
        for row in self.held:
            if row.faults:
                raise UsageError(f"{row.origin}: {row.faults[0]}; mend the line or take it out")
        notes = [_json(line) for line in _lines(self._journal)]
        if not self.held:  # somebody took the rows away, to begin anew
            notes = [one for one in notes if not one.get("rows")]
        self.done = {
            str(one["job"]) for one in (*notes, *(row.extra for row in self.held)) if "job" in one
        }


def _json(line: bytes) -> dict[str, Any]:
    with suppress(ValueError):
        value = json.loads(line)
        return value if isinstance(value, dict) else {}
    return {}


def _append(file: IO[bytes], text: str) -> None:
    """In one write, so that no other fate than the whole text or a torn end is likely."""
    file.write(text.encode("utf-8", "surrogateescape"))
    file.flush()
    os.fsync(file.fileno())


def _lines(file: IO[bytes]) -> list[bytes]:
    file.seek(0)
    return file.readlines()


def _end_last_line(file: IO[bytes]) -> None:
    """Cuts off a torn last line; one that lacks only its end, as editors leave it, gets that."""
    last = next(iter(_lines(file)[-1:]), b"\n")
    if last.endswith(b"\n"):
        return
    try:
        json.loads(last)
    except (ValueError, RecursionError):
        file.truncate(file.seek(0, os.SEEK_END) - len(last))
    else:
        _append(file, "\n")
