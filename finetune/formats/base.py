"""What a format is: how its records look, how they are read and written."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from finetune.formats.containers import Record
from finetune.formats.reading import Reading, Source
from finetune.formats.writing import Target, Writing, each
from finetune.rows import Row


@dataclass(frozen=True)
class Format:
    """`about` is one line for a person; `fits` says whether a record looks like this format."""

    name: str
    about: str
    fits: Callable[[Mapping[str, Any]], bool]
    read: Callable[[Iterable[Record], Source], Iterator[Row]]
    write: Callable[[Sequence[Row], Target], Sequence[Mapping[str, Any]]]


def by_record(
    read: Callable[[Reading], Row],
) -> Callable[[Iterable[Record], Source], Iterator[Row]]:
    """For formats in which each record is one row."""

    def rows(records: Iterable[Record], source: Source) -> Iterator[Row]:
        for record in records:
            reading = Reading(record, source)
            yield read(reading) if reading.fields or not reading.faults else reading.row(())

    return rows


def by_row(
    write: Callable[[Writing], dict[str, Any]],
) -> Callable[[Sequence[Row], Target], Sequence[Mapping[str, Any]]]:
    return lambda rows, target: each(rows, target, write)


def messages_of(value: Mapping[str, Any], *names: str) -> list[Mapping[str, Any]]:
    """The messages of a record, for a look at them; none when it has no such list."""
    from finetune.formats.reading import as_value

    found = next((as_value(value[name]) for name in names if value.get(name)), None)
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []
