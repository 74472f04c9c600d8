"""The formats of training data: read into rows, and written from rows.

    rows = read("train.jsonl")                    of whichever format it is
    problems = write(rows, "data/train.json", "llama-factory")
    detect("train.jsonl")                         "ms-swift"

One module below holds one format; `FORMATS` names them. Each may come as JSON, JSONL, CSV or
Parquet, by the file's suffix; COCO only as JSON. What is wrong inside a file becomes `faults` of a
row and costs that row only, what is wrong with the file as a whole is raised. What media look like
is not looked at: that is `check`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

from finetune.formats.alpaca import ALPACA
from finetune.formats.base import Format
from finetune.formats.coco import COCO
from finetune.formats.containers import SUFFIXES, Record, records, save, to_json, whole
from finetune.formats.llama_factory import INFO, LLAMA_FACTORY, description_of
from finetune.formats.llava import LLAVA
from finetune.formats.ms_swift import MS_SWIFT, MS_SWIFT_2
from finetune.formats.own import OWN
from finetune.formats.reading import Source
from finetune.formats.trl import TRL, TRL_PROMPT
from finetune.formats.writing import Target
from finetune.rows import Problem, Row
from vidqa.errors import UsageError

__all__ = ["FORMATS", "SUFFIXES", "Format", "detect", "read", "write"]

# The first that fits a record is taken: what says more about itself comes first.
FORMATS: Final[dict[str, Format]] = {
    one.name: one
    for one in (
        OWN,
        TRL,
        LLAVA,
        LLAMA_FACTORY,
        TRL_PROMPT,
        ALPACA,
        MS_SWIFT,
        MS_SWIFT_2,
        COCO,
    )
}

# Rows at a file's beginning that are looked at: some may be malformed.
_LOOKED_AT = 100


def read(
    path: str | Path, format: str | None = None, media_dir: str | Path | None = None
) -> list[Row]:
    """The rows of a data file, in order; a row with `faults` is not to be trained on.

    Paths of media become absolute: relative ones are looked for in `media_dir`, the data file's
    folder, then where the format's own tool looks. Raises UsageError for a file that cannot be
    read, that is of no known format, or that has no row.
    """
    given = Path(path)
    found = _opened(given)
    chosen = _format(format) if format is not None else None
    if chosen is None:
        found, chosen = _recognised(given, found)
    source = Source(str(path), Path(media_dir) if media_dir is not None else None)
    rows = list(chosen.read(found, source))
    if not rows:
        raise UsageError(f"{path}: holds no row of training data")
    return rows


def _opened(path: Path) -> Iterator[Record]:
    if path.is_dir():
        inside = path / INFO
        named = f"name {inside}" if inside.exists() else "name its files"
        raise UsageError(f"{path}: is a folder; {named}")
    return iter(()) if path.name == INFO else records(path)


def detect(path: str | Path) -> str:
    """The name of the format that a file has, by what is in it; UsageError when none fits."""
    return _recognised(Path(path), _opened(Path(path)))[1].name


def _recognised(path: Path, found: Iterator[Record]) -> tuple[Iterator[Record], Format]:
    """The format of a file, and its records, of which some were looked at."""
    if path.name == INFO or _is_described(path):
        return found, LLAMA_FACTORY
    head: list[Record] = []
    for record in itertools.islice(found, _LOOKED_AT):
        head.append(record)
        if isinstance(record.value, dict):
            for one in FORMATS.values():
                if one.fits(record.value):
                    return itertools.chain(head, found), one
    raise UsageError(_unknown(path, head))


def _is_described(path: Path) -> bool:
    try:
        return description_of(path) is not None
    except UsageError:
        return False  # it may be about other files; whoever gives --format is told


def _unknown(path: Path, head: Sequence[Record]) -> str:
    if not head:
        return f"{path}: holds no row of training data"
    first = head[0]
    if all(record.fault for record in head):
        return f"{path}:{first.line}: {first.fault}"
    example = next((one.value for one in head if isinstance(one.value, dict)), {})
    fields = ", ".join(map(repr, list(example)[:8])) or "no fields"
    return (
        f"{path}: is of no known format (its rows have {fields}); name one by --format: "
        f"{', '.join(FORMATS)}"
    )


def _format(name: str) -> Format:
    if name not in FORMATS:
        raise UsageError(f"format {name!r} is unknown; {', '.join(FORMATS)} are known")
    return FORMATS[name]


def write(rows: Iterable[Row], path: str | Path, format: str) -> list[Problem]:
    """Writes rows; returns what the format cannot hold, row by row.

    A row that would come out as a different one, or has faults, is left out. Media below the file's
    folder are named relative to it, others by their absolute path. LLaMA-Factory's
    `dataset_info.json` beside the file is made or added to. Raises UsageError where nothing can be
    written, or where the file's name in there is another one's.
    """
    chosen = _format(format)
    target = Target(Path(path))
    given = list(rows)
    if target.path.suffix.lower() not in SUFFIXES:
        raise UsageError(f"{path}: end the name in {', '.join(SUFFIXES)}")
    values = chosen.write(given, target)
    if chosen is COCO:
        with whole(target.path) as temporary:
            temporary.write_text(to_json(values[0]) + "\n", encoding="utf-8")
    else:
        save(target.path, values)
    for name, text in target.beside.items():
        with whole(target.path.with_name(name)) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return target.problems
