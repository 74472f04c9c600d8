"""`vidqa finetune build` and `review`: rows from the library by a teacher, and a look at them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vidqa.cli.finetune import finetune_app
from vidqa.command import FAILED, Run, verb

if TYPE_CHECKING:
    from finetune.build import BuildOptions, Listener, Outcome, Report
    from vidqa.library import Library
    from vidqa.wiring import Endpoint

TEACHER_SETTINGS = (
    "frames_per_moment",
    "max_pixels",
    "model",
    "base_url",
    "api_key",
    "temperature",
    "max_tokens",
    "engine_idle_minutes",
    "hub",
)


@verb(*TEACHER_SETTINGS, group=finetune_app)
def build(
    run: Run,
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="FILE", help="JSONL that rows are added to.")
    ] = Path("library-rows.jsonl"),
    from_library: Annotated[
        bool, typer.Option("--from-library", help="Of the library's scenes: the only source yet.")
    ] = True,
    scenes: Annotated[
        int, typer.Option("--scenes", min=1, help="Scenes, spread over videos.")
    ] = 100,
    per_scene: Annotated[
        int, typer.Option("--per-scene", min=1, max=32, help="Questions written about each.")
    ] = 4,
    questions: Annotated[
        Path | None,
        typer.Option(
            "--questions", metavar="FILE", help="Ask these of every scene, one a line, instead."
        ),
    ] = None,
    video: Annotated[
        str | None,
        typer.Option(
            "--video", metavar="GLOB", help="Only videos whose path fits, like '*/2024/*'."
        ),
    ] = None,
    where: Annotated[
        str | None,
        typer.Option("--where", metavar="SQL", help="Only scenes that fit (docs/schema.md)."),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Other scenes with another number.")] = 0,
    unanswerable: Annotated[
        float,
        typer.Option(
            "--unanswerable", min=0.0, max=1.0, help="Share of rows that the scene cannot answer."
        ),
    ] = 0.2,
    agreement: Annotated[
        float,
        typer.Option(
            "--agreement", min=0.0, max=1.0, help="How far an answer asked again must agree."
        ),
    ] = 0.6,
    repeats: Annotated[
        int, typer.Option("--repeats", min=0, max=16, help="How often it is asked again.")
    ] = 1,
    again_temperature: Annotated[
        float, typer.Option("--again-temperature", min=0.0, max=2.0, help="Randomness of that.")
    ] = 0.7,
    max_rows: Annotated[
        int | None, typer.Option("--max-rows", min=1, help="Rows in the file, at most.")
    ] = None,
    max_tokens_total: Annotated[
        int | None, typer.Option("--max-tokens-total", min=1, help="Tokens of this run, at most.")
    ] = None,
    max_cost: Annotated[
        float | None, typer.Option("--max-cost", min=0.0, help="Cost of this run, at most.")
    ] = None,
    price_prompt: Annotated[
        float | None,
        typer.Option("--price-prompt", min=0.0, help="Of a million tokens that are read."),
    ] = None,
    price_completion: Annotated[
        float | None,
        typer.Option("--price-completion", min=0.0, help="Of a million that are written."),
    ] = None,
    concurrency: Annotated[
        int, typer.Option("--concurrency", min=1, max=256, help="Requests at once.")
    ] = 4,
) -> None:
    """Make training rows: a teacher writes questions with answers about scenes of the library.

    \b
    vidqa finetune build --from-library --model Qwen/Qwen2-VL-7B-Instruct -o rows.jsonl
    vidqa finetune build --from-library --base-url https://api.example.com/v1 --model big-vl \\
        --max-cost 5 --price-prompt 0.4 --price-completion 1.6
    vidqa finetune build --from-library --questions mine.txt

    Each answer is asked again, the question alone; rows that the teacher does not repeat are
    dropped. Frames and subtitles go to the endpoint that you name. Interrupt it at any time: the
    next run goes on from there. Look through the rows with vidqa finetune review FILE.
    """
    import asyncio

    from finetune.build import BuildOptions, choose, read_questions
    from vidqa.types import Filters
    from vidqa.wiring import endpoint, open_library

    options = BuildOptions(
        scenes=scenes,
        questions_per_scene=per_scene,
        questions=read_questions(questions) if questions else (),
        unanswerable=unanswerable,
        filters=Filters(video=video),
        where=where,
        seed=seed,
        frames=run.settings.frames_per_moment,
        max_pixels=run.settings.max_pixels,
        agreement=agreement,
        repeats=repeats,
        again_temperature=again_temperature,
        max_rows=max_rows,
        max_tokens_total=max_tokens_total,
        max_cost=max_cost,
        price_prompt=price_prompt,
        price_completion=price_completion,
        concurrency=concurrency,
    )
    library, _ = open_library(run.settings, on_demand=True)
    choose(library, options)  # before an engine is started for nothing
    found = endpoint(run.settings, run.note)
    if run.settings.base_url:
        run.note(f"frames and subtitles of up to {scenes} scenes go to {found.base_url}")
    with _listener(run, options) as (listener, reports):
        try:
            report = asyncio.run(_build(run, library, found, options, output, listener))
        except KeyboardInterrupt:
            for unfinished in reports[-1:]:
                _tell(run, unfinished, options, output)
            raise
    _tell(run, report, options, output)
    if report.failed:
        raise typer.Exit(FAILED)
    if not report.rows and not report.rows_before:
        run.found_nothing(f"no row was kept; {output}.progress says why, question by question")


async def _build(
    run: Run,
    library: Library,
    found: Endpoint,
    options: BuildOptions,
    output: Path,
    listener: Listener,
) -> Report:
    from finetune.build import build as build_rows
    from finetune.teacher import Teacher
    from vidqa.vlm import AsyncVlmClient

    async with AsyncVlmClient(found.base_url, found.api_key, found.model) as client:
        teacher = Teacher(
            client,
            concurrency=options.concurrency,
            max_tokens=run.settings.max_tokens,
            temperature=run.settings.temperature,
        )
        return await build_rows(library, teacher, options, output, listener)


@contextmanager
def _listener(run: Run, options: BuildOptions) -> Iterator[tuple[Listener, list[Report]]]:
    """What to tell while it goes on: JSON, a bar, or plain lines; and what was heard last."""
    heard: list[Report] = []
    if run.json or run.quiet or not sys.stderr.isatty():

        def plain(report: Report, outcome: Outcome | None) -> None:
            heard[:] = [report]
            if outcome is not None:
                _tell_scene(run, outcome)

        yield plain, heard
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn("scenes"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    facts = TextColumn("{task.fields[facts]}", markup=False)
    with Progress(*columns, facts, console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("", total=None, facts="")

        def bars(report: Report, outcome: Outcome | None) -> None:
            heard[:] = [report]
            shown = report.scenes - report.left
            progress.update(
                bar, total=report.scenes, completed=shown, facts=_facts(report, options)
            )
            if outcome is not None and outcome.error is not None:
                _tell_scene(run, outcome)

        yield bars, heard


def _tell_scene(run: Run, outcome: Outcome) -> None:
    from vidqa.output import counted, name_of, seconds
    from vidqa.prompt import time_range

    moment = outcome.moment
    if run.json:
        run.emit(
            {
                "event": "scene",
                "video": moment.video,
                "start_seconds": seconds(moment.start_seconds),
                "end_seconds": seconds(moment.end_seconds),
                "rows": len(outcome.rows),
                "dropped": [one.reason for one in outcome.dropped],
                "error": outcome.error,
            }
        )
        return
    where = f"{name_of(moment.video)} {time_range(moment.start_seconds, moment.end_seconds)}"
    if outcome.error is not None:
        run.fail(f"failed    {where}: {outcome.error}")
    else:
        run.note(f"{counted(len(outcome.rows), 'row')}, {len(outcome.dropped)} dropped  {where}")


def _facts(report: Report, options: BuildOptions) -> str:
    from vidqa.output import counted

    facts = [counted(report.rows_before + report.rows, "row"), f"{report.dropped.total()} dropped"]
    if report.failed:
        facts.append(f"{report.failed.total()} failed")
    facts.append(f"{report.spent.tokens:,} tokens")
    cost = options.cost(report.spent)
    if cost is not None:
        facts.append(f"cost {cost:.4g}")
    return ", ".join(facts)


def _tell(run: Run, report: Report, options: BuildOptions, output: Path) -> None:
    """The sum of a run: an object, or lines."""
    from vidqa.output import counted

    cost = options.cost(report.spent)
    if run.json:
        run.emit(
            {
                "event": "summary",
                "output": str(output),
                "rows": report.rows_before + report.rows,
                "rows_new": report.rows,
                "scenes": report.scenes,
                "scenes_finished": report.finished,
                "scenes_finished_before": report.finished_before,
                "scenes_left": report.left,
                "failed": dict(report.failed),
                "dropped": dict(report.dropped),
                "requests": report.spent.requests,
                "prompt_tokens": report.spent.prompt_tokens,
                "completion_tokens": report.spent.completion_tokens,
                "cost": cost,
                "stopped": report.stopped or None,
            }
        )
        return
    rows = counted(report.rows_before + report.rows, "row")
    before = f" ({report.finished_before} were done before)" if report.finished_before else ""
    lines = [
        f"{output}: {rows}, {report.rows:,} of them new, "
        f"from {report.finished:,} of {counted(report.scenes, 'scene')}{before}",
        f"asked {counted(report.spent.requests, 'time')}: {report.spent.prompt_tokens:,} tokens "
        f"read, {report.spent.completion_tokens:,} written"
        + ("" if cost is None else f", {cost:.4g}"),
    ]
    lines += [f"dropped {count}: {reason}" for reason, count in report.dropped.most_common()]
    lines += [f"failed {count}: {reason}" for reason, count in report.failed.most_common()]
    if report.stopped:
        lines.append(f"stopped with {counted(report.left, 'scene')} left: {report.stopped}")
    run.say("\n".join(lines))


@verb(group=finetune_app)
def review(
    run: Run,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Rows of vidqa's own JSONL.")],
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="Port on this machine; 0: any.")
    ] = 0,
    browser: Annotated[
        bool, typer.Option("--browser/--no-browser", help="Open the page in a browser.")
    ] = True,
) -> None:
    """Look through rows in a browser: keep, edit or drop each; Ctrl-C ends it.

    \b
    vidqa finetune review rows.jsonl          rows.reviewed.jsonl holds what was kept

    Keys: j and k go on and back, y keeps, e edits, d drops, u takes back. Each decision is saved
    at once; FILE itself is only read. The page is for this machine alone.
    """
    import signal
    import webbrowser

    from finetune.review import Review
    from finetune.review_server import ReviewServer
    from vidqa.output import counted

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with (
        Review.open(file) as rows,
        ReviewServer(rows, _library(run), port) as server,
    ):
        if run.json:
            run.emit({"event": "listening", "url": server.url, "output": str(rows.output)})
        else:
            run.say(f"review {counted(len(rows.rows), 'row')} at {server.url} (Ctrl-C ends it)")
        if browser and not run.json:
            webbrowser.open(server.url)
        before = signal.signal(signal.SIGTERM, interrupted)
        try:
            server.serve()
        except KeyboardInterrupt:
            pass  # the one way to end it
        finally:
            signal.signal(signal.SIGTERM, before)
        counts = rows.counts()
        if run.json:
            run.emit({"event": "summary", "output": str(rows.output), **counts})
        else:
            told = ", ".join(f"{counts[one]} {one}" for one in ("kept", "edited", "dropped"))
            run.say(f"{told}, {counts['open']} left; to train on: {rows.output}")


def _library(run: Run) -> Library | None:
    """Where kept pictures are; without one the files of the rows are decoded."""
    from vidqa.errors import LibraryError
    from vidqa.frames import pictures_at
    from vidqa.library import Library

    try:
        return Library.open(run.settings.index, pictures_at=pictures_at)
    except LibraryError:
        return None
