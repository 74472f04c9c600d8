"""`vidqa infer`: a data file through the model, row by row; and an adapter merged into its base."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from finetune.shelf import DEFAULT_FOLDER, DEFAULT_GIB, Shelf, shelf_of
from vidqa.cli.rows import (
    ROW_SETTINGS,
    AtOnce,
    Cache,
    CacheGib,
    Data,
    Format,
    MediaDir,
    not_the_data,
    read_rows,
)
from vidqa.command import FAILED, Run
from vidqa.errors import UsageError

if TYPE_CHECKING:
    from finetune.answer_file import Record
    from finetune.infer import Tally
    from finetune.rows import Row

INFER_SETTINGS = ROW_SETTINGS


def infer(
    run: Run,
    data: Data = [],  # noqa: B006  typer reads it, nobody changes it
    adapter: Annotated[
        str | None,
        typer.Option("--adapter", metavar="NAME|DIR", help="Answer with this LoRA adapter."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", metavar="FILE.jsonl", help="Write the answers here; resumable."),
    ] = None,
    merge: Annotated[
        Path | None,
        typer.Option("--merge", metavar="DIR", help="Write base and adapter as one model here."),
    ] = None,
    format: Format = None,
    media_dir: MediaDir = None,
    at_once: AtOnce = 8,
    cache: Cache = DEFAULT_FOLDER,
    cache_gib: CacheGib = DEFAULT_GIB,
) -> None:
    """Ask every row of a data file, many at once; or merge an adapter into a model of its own.

    \b
    vidqa infer --data questions.jsonl --adapter birds --output answers.jsonl
    vidqa infer --data questions.jsonl > answers.jsonl     not resumable
    vidqa infer --adapter birds --merge models/birds       no LoRA is needed to serve it
    vidqa ask "Which bird is it?" --model models/birds

    Each row becomes one JSON object on a line, in the order of the rows once all are answered.
    Rows that know their answer are scored. Run it again after an interruption: what is answered is
    not asked again. A row that cannot be read or asked costs that row only; the exit code is then
    1, and the next run tries it again. With --merge and --data the merged model answers; where DIR
    holds that merge already, it is used as it is.
    """
    if not data and merge is None:
        raise UsageError("Missing option '--data': name a file with rows, or --merge DIR")
    if output is not None:
        not_the_data("--output", output, data)
    rows = read_rows(data, format, media_dir)
    if data and not rows:
        run.found_nothing(f"no row in {', '.join(map(str, data))}")
    if merge is not None:
        run, adapter = _merged(run, adapter, merge), None
    if data:
        _ask(run, rows, data, adapter, output, at_once, shelf_of(cache, cache_gib))


def _merged(run: Run, adapter: str | None, merge: Path) -> Run:
    """Merges, unless that was done before, and returns a run whose model is the result."""
    from dataclasses import replace

    from finetune.merge import is_merge
    from finetune.merge import merge as merge_into
    from vidqa.adapters import find, read
    from vidqa.weights import find_weights

    if adapter is None:
        raise UsageError("--merge: name the adapter as well, --adapter NAME")
    if run.settings.base_url:
        raise UsageError("--merge: an endpoint's weights are not here; leave out --base-url")
    folder = find(adapter, run.settings.adapters)
    settings = run.settings
    base = read(folder).base_model
    if "model" not in settings.given and base:
        settings = replace(settings, model=base)
    weights = find_weights(settings.model, settings.hub, run.note)
    if is_merge(merge, weights, folder):
        run.note(f"{merge}: holds this merge already and is used as it is")
    else:
        merge_into(
            weights, folder, merge, lambda done, total: run.note(f"merging: {done} of {total}")
        )
    if run.json:
        run.emit({"event": "merged", "model": str(merge), "adapter": str(folder),
                  "base": str(weights)})  # fmt: skip
    else:
        run.say(f"merged: {merge}; ask it with --model {merge}")
    return replace(run, settings=replace(settings, model=str(merge)))


def _ask(
    run: Run,
    rows: list[Row],
    data: list[Path],
    adapter: str | None,
    output: Path | None,
    at_once: int,
    shelf: Shelf | None,
) -> None:
    from finetune.answer_file import AnswerFile
    from finetune.infer import infer as ask_rows
    from finetune.infer import made_by
    from vidqa.cli.rows import choose, progress

    asked = choose(run, adapter, at_once, shelf)
    with progress(run) as advance:

        def on_progress(done: int, total: int) -> None:
            advance("rows", done, total)

        if output is None:
            tally = ask_rows(
                rows, asked.open_client, asked.show, asked.options, _Printed(run), on_progress
            )
        else:
            follows = made_by(data, asked.identity, asked.adapter_folder, asked.options)
            with AnswerFile(output, follows) as file:
                tally = ask_rows(
                    rows, asked.open_client, asked.show, asked.options, file, on_progress
                )
                file.finish()
                failures = [one for one in file.records.values() if "error" in one]
            for one in failures:
                run.fail(f"{one['file']}:{one['line']}: {one['error']}")
    _tell(run, tally, output)
    if tally.failed:
        raise typer.Exit(FAILED)


class _Printed:
    """Records go to stdout as they come."""

    def __init__(self, run: Run) -> None:
        self.done: dict[int, Record] = {}
        self._run = run

    def write(self, record: Record) -> None:
        self._run.emit(record)


def _tell(run: Run, tally: Tally, output: Path | None) -> None:
    """How it went: an object where the answers are not on stdout themselves."""
    from dataclasses import asdict

    if output is None:
        run.note(_summary(tally))
    elif run.json:
        run.emit({"event": "summary", **asdict(tally), "output": str(output)})
    elif not run.quiet:
        run.say(f"{_summary(tally)}: {output}")


def _summary(tally: Tally) -> str:
    from vidqa.output import counted

    parts = [f"{counted(tally.answered, 'row')} answered"]
    parts += [f"{tally.known} known already"] if tally.known else []
    parts += [f"{tally.failed} failed; the next run tries them again"] if tally.failed else []
    if tally.cut_off:
        parts.append(f"{counted(tally.cut_off, 'answer')} cut off (--max-tokens)")
    return ", ".join(parts)
