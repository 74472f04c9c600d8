"""The file that answers are written into: one JSON object a line, which survives a kill.

    with AnswerFile(path, made_by) as file:
        for n in the rows that are not in file.done: file.write({"row": n, ...})
        file.finish()                       one line a row, in the order of the rows

Lines are appended as rows are finished, so each carries its row's number, from 1. Beside the file
lies `NAME.run.json`, which says what the answers were made from: going on with other data, another
model or other options would mix two things in one file, and is refused. Rows that failed are tried
again. Knows nothing of models or rows.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from vidqa.errors import UsageError
from vidqa.whole_files import take_lock, write_whole

Record = dict[str, Any]


class AnswerFile:
    """`made_by` is what the answers follow from, by name, as JSON.

    `done` holds the records of rows that need not be asked again, by number. Raises UsageError for
    a file that was made from something else, is being written, or cannot be.
    """

    def __init__(self, path: Path, made_by: Mapping[str, Any]) -> None:
        self.path = path
        self.made_by_path = path.with_name(f"{path.name}.run.json")
        made_by = json.loads(json.dumps(made_by))  # as it will be read: tuples are lists
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a+b")
        except OSError as error:
            raise UsageError(f"--output {path}: {error.strerror}; name a file to write") from error
        try:
            self._lock()
            self._records = self._known(made_by)
            self._say_made_by(made_by)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()

    @property
    def done(self) -> dict[int, Record]:
        return {n: one for n, one in self._records.items() if "error" not in one}

    @property
    def records(self) -> dict[int, Record]:
        """All of them, those of rows that failed too."""
        return dict(self._records)

    def write(self, record: Record) -> None:
        """One more row; it is in the file when this returns."""
        self._file.write(line_of(record))
        self._file.flush()
        self._records[record["row"]] = record

    def finish(self) -> None:
        """Brings the lines into the order of the rows, each row once."""
        lines = (line_of(self._records[n]) for n in sorted(self._records))
        write_whole(self.path, b"".join(lines), on_disk=True)

    def _say_made_by(self, made_by: Mapping[str, Any]) -> None:
        """Whole or as it was: a run that was killed here goes on like any other."""
        write_whole(self.made_by_path, f"{json.dumps(made_by, indent=1)}\n".encode())

    def _lock(self) -> None:
        if not take_lock(self._file, self.path):
            raise UsageError(
                f"--output {self.path}: another command is writing it; wait for it, or name "
                "another file"
            )

    def _known(self, made_by: Mapping[str, Any]) -> dict[int, Record]:
        """What is there of this very run. What is behind the last whole line is cut off."""
        if self._file.seek(0, os.SEEK_END) == 0:
            return {}
        self._check(made_by)
        self._file.seek(0)
        records, end = {}, 0
        for record, size in _whole_lines(self._file.read()):
            records[record["row"]] = record
            end += size
        self._file.truncate(end)
        return records

    def _check(self, made_by: Mapping[str, Any]) -> None:
        try:
            before = json.loads(self.made_by_path.read_text(encoding="utf-8"))
            different = [name for name in made_by if before.get(name) != made_by[name]]
        except (OSError, ValueError, AttributeError) as error:
            raise UsageError(
                f"--output {self.path}: there is such a file, and no {self.made_by_path.name} "
                "beside it says that its answers are of this run; name another file, or remove it"
            ) from error
        if different:
            changes = "; ".join(f"{one}: {_change(before.get(one), made_by[one])}"
                                for one in different)  # fmt: skip
            raise UsageError(
                f"--output {self.path}: its answers are of another run ({changes}); "
                "name another file, or remove it"
            )


def _change(before: Any, now: Any) -> str:
    """What is different, in as few words as say it."""
    if isinstance(before, dict) and isinstance(now, dict):
        return ", ".join(
            f"{name} {_change(before.get(name), now.get(name))}"
            for name in sorted(before.keys() | now.keys())
            if before.get(name) != now.get(name)
        )
    return f"{_short(before)} then, {_short(now)} now"


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else f"{text[:59]}…"


def line_of(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record, ensure_ascii=False).encode("utf-8", "replace") + b"\n"


def _whole_lines(data: bytes) -> Iterator[tuple[Record, int]]:
    """Records and their lengths in bytes, up to the first line that is none."""
    for line in data.splitlines(keepends=True):
        try:
            record = json.loads(line)
            whole = line.endswith(b"\n") and isinstance(record["row"], int)
        except (ValueError, TypeError, KeyError):
            return
        if not whole:
            return
        yield record, len(line)
