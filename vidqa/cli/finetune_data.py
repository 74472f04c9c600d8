"""`vidqa finetune check` and `vidqa finetune convert`: training data, looked at and rewritten."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vidqa.cli.finetune import finetune_app
from vidqa.cli.rows import Format, MediaDir, not_the_data
from vidqa.command import FAILED, Run, verb

if TYPE_CHECKING:
    from finetune.rows import Origin, Problem


@verb(group=finetune_app)
def check(
    run: Run,
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Training data.")],
    held_out: Annotated[
        list[Path],
        typer.Option("--held-out", metavar="FILE", help="Data to measure on; may be repeated."),
    ] = [],  # noqa: B006  typer reads it, nobody changes it
    format: Format = None,
    media_dir: MediaDir = None,
) -> None:
    """Say what is wrong with training data, with file and line; exit code 1 when anything is.

    \b
    vidqa finetune check train.jsonl
    vidqa finetune check train.json --held-out test.json    also: do they share videos?
    vidqa finetune check data.csv --json                    one object a problem, then a summary

    Looked for are malformed lines, roles, placeholders, empty answers, missing or damaged files,
    times outside the video, boxes outside the picture, rows that stand there twice, and videos of
    the held-out rows that are trained on too, also as a copy.
    """
    from finetune.check import check as look
    from finetune.formats import read
    from vidqa.output import counted

    rows = [row for file in files for row in read(file, format, media_dir)]
    others = [row for file in held_out for row in read(file, format, media_dir)]
    problems = look(rows, others)
    count = len(rows) + len(others)
    if run.json:
        for one in problems:
            run.emit({"file": one.origin.file, "line": one.origin.line, "problem": one.message})
        run.emit({"event": "summary", "rows": count, "problems": len(problems)})
    else:
        for one in problems:
            run.say(str(one))
        if not run.quiet:
            run.note(f"{counted(count, 'row')}, {counted(len(problems), 'problem')}")
    if problems:
        raise typer.Exit(FAILED)


@verb(group=finetune_app)
def convert(
    run: Run,
    source: Annotated[Path, typer.Argument(metavar="SRC", help="Data in any format.")],
    target: Annotated[
        Path, typer.Argument(metavar="DST", help="File to write: .jsonl, .json, .csv, .parquet.")
    ],
    to: Annotated[
        str,
        typer.Option("--to", metavar="NAME", help="Format to write; the names are --format's."),
    ] = "vidqa",
    format: Format = None,
    media_dir: MediaDir = None,
) -> None:
    """Write training data in another format, and say what that one cannot hold.

    \b
    vidqa finetune convert train.jsonl data/train.json --to llama-factory
    vidqa finetune convert annotations/instances_val2017.json boxes.jsonl

    Rows that cannot be held, or cannot be read, are left out and named; the exit code is then 1.
    """
    from finetune.formats import read, write
    from vidqa.output import counted

    rows = read(source, format, media_dir)
    # A dataset_info.json was read from the files that it names.
    not_the_data("DST", target, {source, *(Path(row.origin.file) for row in rows)})
    problems = write(rows, target, to)
    left_out = sum(one.message.startswith("left out") for one in problems)
    written = len(rows) - left_out
    if run.json:
        for one in problems:
            run.emit({"file": one.origin.file, "line": one.origin.line, "note": one.message})
        run.emit({"event": "summary", "rows": len(rows), "written": written, "file": str(target)})
    else:
        for message, count, first in _counted(problems):
            more = f" (and {count - 1} more)" if count > 1 else ""
            run.note(f"{first}{more}: {message}")
        run.say(f"{written:,} of {counted(len(rows), 'row')} written to {target}")
    if left_out:
        raise typer.Exit(FAILED)


def _counted(problems: Sequence[Problem]) -> Iterator[tuple[str, int, Origin]]:
    """What is said of many rows once: the words, of how many, and the first of them."""
    found: dict[str, list[Origin]] = {}
    for one in problems:
        found.setdefault(one.message, []).append(one.origin)
    for message, origins in found.items():
        yield message, len(origins), origins[0]
