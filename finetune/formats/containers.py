"""JSON, JSONL, CSV and Parquet: files as records with their lines, and back.

    for record in records(path): record.line, record.value, record.fault
    save(path, values)

What a record means is the formats' business. A record that cannot be read costs itself only, and
says why: in JSONL and CSV that is a line, in a JSON list everything from there on, as nobody can
say where the next element begins. JSONL and CSV are read line by line, Parquet by DuckDB, which
keeps within its memory; a JSON list is held as one text while its elements are read.
"""

from __future__ import annotations

import csv
import json
import os
import re
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from vidqa.errors import UsageError

SUFFIXES: Final = (".jsonl", ".json", ".csv", ".parquet")

# Half of a character: legal in JSON, but no text that could be written or tokenized.
_SURROGATE = re.compile("[\ud800-\udfff]")
_NOT_SPACE = re.compile(r"[^ \t\r\n]")
_DELIMITERS = (",", ";", "\t", "|")
_BATCH = 1000
# Conversations of many turns are long; DuckDB's own limit is 2 MB.
_MAX_LINE_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Record:
    """What stands at a line, counted from 1; of Parquet, which has no lines, the record's number.

    With `fault` there is no `value`.
    """

    line: int
    value: Any
    fault: str | None = None


def records(path: Path) -> Iterator[Record]:
    """The records of a file, in order. A JSON file that holds one object is one record.

    Raises UsageError for a file that cannot be opened or is none of the four kinds.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise UsageError(f"{path}: {_kinds(suffix)}; {', '.join(SUFFIXES)} can be read")
    try:
        with path.open("rb") as file:
            head = file.read(4096)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}; name a data file") from error
    if suffix == ".csv":
        return _csv(path)
    if suffix == ".parquet":
        return _parquet(path)
    first = head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
    if first == b"[":
        return _list(path)
    return _document(path) if suffix == ".json" else _lines(path)


def _kinds(suffix: str) -> str:
    return f"{suffix!r} is no kind of data file" if suffix else "the name has no suffix"


def _parsed(line: int, text: str) -> Record:
    try:
        value = json.loads(text)
    except RecursionError:
        return Record(line, None, "is nested too deep to be read")
    except ValueError as error:
        return Record(line, None, f"is not JSON: {error}")
    return _checked(line, value, text)


def _checked(line: int, value: Any, text: str) -> Record:
    # Only an escape can bring half a character into a text that was decoded.
    if "\\ud" in text.lower() and _SURROGATE.search(json.dumps(value, ensure_ascii=False)):
        return Record(line, None, "holds half of a character (a lone surrogate); write it in UTF-8")
    return Record(line, value)


def _lines(path: Path) -> Iterator[Record]:
    with path.open("rb") as file:
        for line, data in enumerate(file, 1):
            try:
                text = data.decode("utf-8-sig" if line == 1 else "utf-8")
            except UnicodeDecodeError as error:
                yield Record(line, None, f"is not UTF-8: {error.reason}")
                continue
            if text.strip():
                yield _parsed(line, text)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: is not UTF-8: {error.reason}; save it as UTF-8") from error


def _document(path: Path) -> Iterator[Record]:
    """One object; or lines that somebody called .json, as ms-swift allows."""
    text = _text(path)
    try:
        value = json.loads(text)
    except RecursionError:
        yield Record(1, None, "is nested too deep to be read")
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and "\n" in text[: error.pos].rstrip("\n") + "\n":
            yield from _lines(path)
        else:
            yield Record(error.lineno, None, f"is not JSON: {error.msg} (column {error.colno})")
    except ValueError as error:
        yield Record(1, None, f"is not JSON: {error}")
    else:
        yield _checked(1, value, text)


def _list(path: Path) -> Iterator[Record]:
    """The elements of a JSON list, each with the line on which it begins."""
    text = _text(path)
    decoder = json.JSONDecoder()
    at, seen, line = text.index("[") + 1, 0, 1
    wants_comma = False
    while True:
        at = _skip_space(text, at)
        line += text.count("\n", seen, at)
        seen = at
        if at == len(text):
            yield Record(line, None, "the list does not end; the file was cut off")
            return
        if text[at] == "]":
            return
        if wants_comma:
            if text[at] != ",":
                yield Record(line, None, f"is not JSON: a comma was expected{_REST}")
                return
            at, wants_comma = at + 1, False
            continue
        try:
            value, end = decoder.raw_decode(text, at)
        except RecursionError:
            yield Record(line, None, f"is nested too deep to be read{_REST}")
            return
        except ValueError as error:
            where = line + text.count("\n", at, getattr(error, "pos", at))
            yield Record(where, None, f"is not JSON: {getattr(error, 'msg', error)}{_REST}")
            return
        yield _checked(line, value, text[at:end])
        at, wants_comma = end, True


_REST = "; what follows in this file was not read"


def _skip_space(text: str, at: int) -> int:
    found = _NOT_SPACE.search(text, at)
    return found.start() if found else len(text)


def _csv(path: Path) -> Iterator[Record]:
    """Rows by the header's names, as text; cells without anything in them are left out.

    By Python's own reader: DuckDB does not tell on which line a row stands.
    """
    csv.field_size_limit(_MAX_LINE_BYTES)
    delimiter = _delimiter(path)
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        names: list[str] | None = None
        while True:
            line = reader.line_num + 1
            try:
                cells = next(reader, None)
            except csv.Error as error:
                yield Record(line, None, f"is not CSV: {error}")
                continue
            if cells is None:
                return
            if names is None:
                names = cells
            elif cells:
                yield _csv_row(line, names, cells)


def _csv_row(line: int, names: Sequence[str], cells: Sequence[str]) -> Record:
    if len(cells) != len(names):
        return Record(line, None, f"has {len(cells)} cells, and the header {len(names)}")
    if any(_SURROGATE.search(cell) for cell in cells):
        return Record(line, None, "is not UTF-8")
    return Record(line, {name: cell for name, cell in zip(names, cells, strict=True) if cell})


def _delimiter(path: Path) -> str:
    """What parts the names in the header: there it is plain, while texts may hold anything."""
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        header = re.sub(r'"[^"]*"', "", file.readline())
    return max(_DELIMITERS, key=header.count)


def _parquet(path: Path) -> Iterator[Record]:
    import duckdb

    with duckdb.connect() as database:
        try:
            found = database.execute(f"SELECT * FROM read_parquet({_quoted(os.fspath(path))})")
            for number, row in enumerate(_dicts(found), 1):
                yield Record(number, row)
        except duckdb.Error as error:
            raise UsageError(f"{path}: is not Parquet: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__


def _dicts(found: Any) -> Iterator[dict[str, Any]]:
    names = [column[0] for column in found.description]
    while batch := found.fetchmany(_BATCH):
        for values in batch:
            yield _without_nulls(dict(zip(names, values, strict=True)))


def _without_nulls(value: Any) -> Any:
    """Columns have a value in every row: what is null there was absent in the record."""
    if isinstance(value, dict):
        return {key: _without_nulls(one) for key, one in value.items() if one is not None}
    if isinstance(value, list):
        return [_without_nulls(one) for one in value]
    return value


def _quoted(text: str, mark: str = "'") -> str:
    return mark + text.replace(mark, mark * 2) + mark


def save(path: Path, values: Sequence[Mapping[str, Any]]) -> None:
    """Writes records; the file appears when it is whole. Raises UsageError where it cannot be."""
    writers: dict[str, Callable[[Path, Sequence[Mapping[str, Any]]], None]] = {
        ".jsonl": _save_lines,
        ".json": _save_list,
        ".csv": _save_csv,
        ".parquet": _save_parquet,
    }
    suffix = path.suffix.lower()
    if suffix not in writers:
        raise UsageError(f"{path}: {_kinds(suffix)}; end it in {', '.join(SUFFIXES)}")
    with whole(path) as temporary:
        writers[suffix](temporary, values)


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A name to write to, which takes the place of `path` when all went well."""
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        temporary.replace(path)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}; name a file to write") from error
    finally:
        temporary.unlink(missing_ok=True)


def to_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _save_lines(path: Path, values: Iterable[Mapping[str, Any]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(f"{to_json(value)}\n" for value in values)


def _save_list(path: Path, values: Iterable[Mapping[str, Any]]) -> None:
    """One element a line, so that lines can be named."""
    with path.open("w", encoding="utf-8") as file:
        file.write("[\n")
        file.write(",\n".join(map(to_json, values)))
        file.write("\n]\n")


def _save_csv(path: Path, values: Sequence[Mapping[str, Any]]) -> None:
    flat = [{key: _as_cell(one) for key, one in value.items()} for value in values]
    columns = dict.fromkeys((key for value in flat for key in value), "VARCHAR")
    _copy(path, flat, columns, "FORMAT csv, HEADER, FORCE_QUOTE *")


def _as_cell(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else to_json(value)


def _save_parquet(path: Path, values: Sequence[Mapping[str, Any]]) -> None:
    """Columns have types where all rows agree on one; one that has none is as in CSV."""
    names = dict.fromkeys(key for value in values for key in value)
    columns = {name: _type_of([value[name] for value in values if name in value]) for name in names}
    mixed = {name for name, kind in columns.items() if kind is None}
    typed = [
        {key: _as_cell(one) if key in mixed else one for key, one in value.items()}
        for value in values
    ]
    known = {name: kind or "VARCHAR" for name, kind in columns.items()}
    _copy(path, typed, known, "FORMAT parquet")


def _type_of(values: Sequence[Any]) -> str | None:
    """DuckDB's type of all of the values; None when there is none that would keep them."""
    values = [value for value in values if value is not None]
    kinds = {type(value) for value in values}
    if not kinds:
        return "VARCHAR"
    if kinds == {str}:
        return "VARCHAR"
    if kinds == {bool}:
        return "BOOLEAN"
    if kinds == {int}:
        return "BIGINT" if all(abs(value) < 1 << 63 for value in values) else None
    if kinds <= {int, float}:
        return "DOUBLE"
    if kinds == {list}:
        inner = [one for value in values for one in value]
        # A null in a list has its place, which a missing field has not.
        kind = None if inner and None in inner else _type_of(inner)
        return kind and f"{kind}[]"
    if kinds == {dict}:
        return _struct_of(values)
    return None


def _struct_of(values: Sequence[Mapping[str, Any]]) -> str | None:
    names = list(dict.fromkeys(key for value in values for key in value))
    if not names or not all(names) or len({name.lower() for name in names}) < len(names):
        return None
    kinds = [_type_of([value[name] for value in values if name in value]) for name in names]
    if not all(kinds):
        return None
    fields = ", ".join(f"{_quoted(n, chr(34))} {k}" for n, k in zip(names, kinds, strict=True))
    return f"STRUCT({fields})"


def _copy(
    path: Path, values: Sequence[Mapping[str, Any]], columns: Mapping[str, str], how: str
) -> None:
    import duckdb

    if not columns:
        raise UsageError(f"{path}: there is no row to write")
    rows = path.with_suffix(".rows")
    shape = ", ".join(f"{_quoted(name)}: {_quoted(kind)}" for name, kind in columns.items())
    try:
        _save_lines(rows, values)
        with duckdb.connect() as database:
            source = (
                f"read_json({_quoted(os.fspath(rows))}, columns={{{shape}}}, "
                f"format='newline_delimited', maximum_object_size={_MAX_LINE_BYTES})"
            )
            database.execute(f"COPY (SELECT * FROM {source}) TO {_quoted(os.fspath(path))} ({how})")
    except duckdb.Error as error:
        raise UsageError(f"{path}: cannot be written: {_first_line(error)}") from error
    finally:
        rows.unlink(missing_ok=True)
