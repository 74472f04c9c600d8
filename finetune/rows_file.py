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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from finetune.rows import Media, Origin, Row, Turn
from vidqa.errors import UsageError
from vidqa.types import TextSpan

JOURNAL = ".progress"


def row_line(row: Row) -> str:
    """One row as a line of vidqa's own JSONL, without its end."""
    fields: dict[str, Any] = {"vidqa": 1, "id": row.id, "task": row.task}
    fields["messages"] = [
        {"role": turn.role, "content": [_part(part) for part in turn.parts]} for turn in row.turns
    ]
    fields["extra"] = dict(row.extra)
    return json.dumps({name: value for name, value in fields.items() if value is not None})


def _part(part: Any) -> dict[str, Any]:
    if isinstance(part, Media):
        return {
            "type": part.kind,
            part.kind: part.paths[0],
            "start": part.start_seconds,
            "end": part.end_seconds,
            "texts": [
                {"start": one.start_seconds, "end": one.end_seconds, "text": one.text}
                for one in part.texts
            ],
        }
    return {"type": "text", "text": part}


def read_rows(path: Path) -> list[Row]:
    """The rows of a file as `row_line` writes them. Raises UsageError, with the line."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}; name a file of rows") from error
    rows = []
    for n, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            rows.append(_row(json.loads(line), Origin(str(path), n)))
        except (ValueError, TypeError, AttributeError, LookupError) as error:
            raise UsageError(f"{path}:{n}: no row of vidqa's own JSONL") from error
    return rows


def _row(fields: dict[str, Any], origin: Origin) -> Row:
    turns = []
    for message in fields["messages"]:
        content = message["content"]
        parts = [content] if isinstance(content, str) else [_read_part(one) for one in content]
        turns.append(Turn(message["role"], tuple(parts)))
    extra = fields.get("extra") or {}
    return Row(tuple(turns), origin, id=fields.get("id"), task=fields.get("task"), extra=extra)


def _read_part(part: dict[str, Any]) -> str | Media:
    if part["type"] == "text":
        return str(part["text"])
    return Media(
        part["type"],
        (part[part["type"]],),
        start_seconds=part.get("start"),
        end_seconds=part.get("end"),
        texts=tuple(
            TextSpan(one["start"], one["end"], one["text"]) for one in part.get("texts", ())
        ),
    )


class RowsFile:
    """The file, open for adding. `done` are the jobs that need no asking again.

    `held` are the rows that were there when it was opened, as JSON objects: what is in `extra`,
    and in place of their messages `question` and `answer`.
    """

    def __init__(self, path: Path, rows: IO[bytes], journal: IO[bytes]) -> None:
        self.path = path
        self.done: set[str] = set()
        self.held: list[Mapping[str, Any]] = []
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
            _append(self._rows, "".join(f"{row_line(row)}\n" for row in rows))
        _append(self._journal, json.dumps({"job": job, "rows": len(rows), **note}) + "\n")
        self.done.add(job)

    def _read(self) -> None:
        """Raises UsageError for what is no row of ours, before anything is changed."""
        notes = [note for _, line in _lines(self._journal) if (note := _json(line)) is not None]
        for n, line in _lines(self._rows):
            row = _json(line) or {}
            try:
                self.held.append({**row.get("extra", {}), **_said(row)})
            except (ValueError, TypeError, AttributeError, LookupError) as error:
                raise UsageError(
                    f"{self.path}:{n}: no row of vidqa's own JSONL; take the line out, or name a "
                    "new file"
                ) from error
        _cut(self._journal)
        _cut(self._rows)
        self.done |= {str(one["job"]) for one in [*notes, *self.held] if "job" in one}


def _said(row: Mapping[str, Any]) -> dict[str, str]:
    """What the user and the assistant say in a row."""
    said = {turn["role"]: turn["content"] for turn in row["messages"]}
    return {"question": _text(said["user"]), "answer": _text(said["assistant"])}


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    return " ".join(part["text"] for part in content if part["type"] == "text")


def _json(line: bytes) -> dict[str, Any] | None:
    with suppress(ValueError):
        value = json.loads(line)
        return value if isinstance(value, dict) else None
    return None


def _append(file: IO[bytes], text: str) -> None:
    """In one write, so that no other fate than the whole text or a torn end is likely."""
    file.write(text.encode())
    file.flush()
    os.fsync(file.fileno())


def _lines(file: IO[bytes]) -> Iterator[tuple[int, bytes]]:
    """The whole lines that are not empty, with their numbers from 1."""
    file.seek(0)
    for n, line in enumerate(file, start=1):
        if line.endswith(b"\n") and line.strip():
            yield n, line


def _cut(file: IO[bytes]) -> None:
    """Takes away what follows the last line's end."""
    file.seek(0)
    file.truncate(sum(len(line) for line in file if line.endswith(b"\n")))
