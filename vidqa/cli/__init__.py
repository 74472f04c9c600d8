"""The command line: each verb parses its arguments, calls its function and prints what comes back.

The bodies import what they need, so that `--help` loads no model library. Nothing is computed
here: whatever a verb does can be done from Python without it. What all verbs share (options made
from the settings, exit codes) is in `command`, how results look is in `output`.
"""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import Annotated

import typer

from vidqa import __version__
from vidqa.cli import (  # noqa: F401  they register their commands
    finetune_build,
    finetune_data,
    finetune_eval,
    finetune_train,
)
from vidqa.cli.adapters import Adapter, adapters_app
from vidqa.cli.engine import engine_app
from vidqa.cli.finetune import finetune_app
from vidqa.cli.ground import GROUND_SETTINGS, BoxFormat, ground, save_all
from vidqa.cli.infer import INFER_SETTINGS, infer
from vidqa.cli.rows import tell_tenths
from vidqa.command import FAILED, Run, command_group, tell, verb
from vidqa.errors import UsageError

app = command_group(add_completion=False)
app.add_typer(adapters_app, name="adapters")
app.add_typer(engine_app, name="engine")
app.add_typer(finetune_app, name="finetune")

Html = Annotated[
    Path | None,
    typer.Option("--html", metavar="FILE", help="Also write a page with the pictures."),
]
VideoGlob = Annotated[
    str | None,
    typer.Option("--video", metavar="GLOB", help="Only videos whose path fits, like '*/2024/*'."),
]
Images = Annotated[
    list[Path],
    typer.Option("--image", metavar="FILE", help="A picture of what is meant; several are mixed."),
]
Where = Annotated[
    str | None,
    typer.Option(
        "--where",
        metavar="SQL",
        help="Only what fits this condition (docs/schema.md names the columns).",
    ),
]


def _version(wanted: bool) -> None:
    if wanted:
        print(f"vidqa {__version__}")
        raise typer.Exit


@app.callback(epilog="Exit codes: 0 done, 1 something failed, 2 wrong usage, 3 nothing found.")
def _vidqa(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Ask questions about your own videos, on your own hardware.

    \b
    vidqa ingest ~/Videos            once, and again whenever files were added
    vidqa search "a red car at night"
    vidqa ask "Who opens the door, and when?"
    vidqa doctor                     when something does not work

    Each command explains itself with --help.
    """


@verb(
    "sample_fps",
    "min_scene_seconds",
    "max_scene_seconds",
    "adaptive_threshold",
    "keep_frames",
    "workers",
    "embedder",
    "device",
    "hub",
    group=app,
)
def ingest(
    run: Run,
    paths: Annotated[
        list[Path], typer.Argument(metavar="PATH...", help="Videos, and folders with videos below.")
    ],
) -> None:
    """Take videos into the library: find scenes, keep frames, make them searchable.

    \b
    vidqa ingest ~/Videos clip.mkv   what is unchanged since last time is skipped
    vidqa ingest ~/Videos --fps 2    twice as many frames: finds shorter events
    vidqa --json ingest ~/Videos     one object a file, then one with "event": "summary"

    A file that cannot be read is reported and costs that file only; the exit code is then 1.
    Interrupt it at any time: finished videos stay, the next run goes on from there.
    """
    from vidqa.ingest import ingest as take_in
    from vidqa.output import ingest_listener, summary_json, summary_line
    from vidqa.wiring import ingest_options, open_library

    options = ingest_options(run.settings)
    library, embedder = open_library(run.settings, create=True, on_demand=True)
    with ingest_listener(run) as listener:
        report = take_in(paths, library, embedder, options, listener)
    if run.json:
        run.emit(summary_json(report))
    elif report.files and not run.quiet:
        run.say(summary_line(report))
    if not report.files:
        run.found_nothing(f"no video in {', '.join(map(str, paths))}; name files or other folders")
    if report.failures:
        raise typer.Exit(FAILED)


@verb("k", "embedder", "device", "hub", group=app)
def search(
    run: Run,
    query: Annotated[
        str, typer.Argument(metavar="[QUERY]", help="What is to be seen.", show_default=False)
    ] = "",
    images: Images = [],  # noqa: B006  typer reads it, nobody changes it
    video: VideoGlob = None,
    where: Where = None,
    html: Html = None,
) -> None:
    """Find the moments that look like QUERY, like a picture, or like both, best first.

    \b
    vidqa search "a red car at night"
    vidqa search --image car.jpg                      the same car; add words to turn it
    vidqa search "goal" -k 20 --html goals.html       look through them in a browser
    vidqa search "snow" --where "duration_seconds > 600"
    """
    from vidqa.output import moment_json, moment_lines, write_page
    from vidqa.report import of_search, page
    from vidqa.search import search as find
    from vidqa.types import Filters
    from vidqa.wiring import open_library, question_images, with_pictures

    if not query.strip() and not images:
        raise UsageError("Missing argument 'QUERY': say what is to be seen, or show it by --image")
    library, embedder = open_library(run.settings)
    moments = find(
        query,
        library,
        embedder,
        images=[one.pixels for one in question_images(images, run.settings, embedder.spec)],
        k=run.settings.k,
        filters=Filters(video=video),
        where=where,
    )
    if run.json:
        run.emit({"query": query, "moments": [moment_json(one) for one in moments]})
    elif moments:
        run.say("\n".join(moment_lines(moments)))
    if html is not None and moments:
        shown = with_pictures(moments, library, run.settings.frames_per_moment)
        title = query or ", ".join(file.name for file in images)
        write_page(html, page(title, [of_search(title, shown)]))
        run.note(f"pictures: {html}")
    if not moments:
        run.found_nothing("nothing in the library fits; loosen --video or --where, or see vidqa ls")


# What `ask` and `mcp` answer with; `serve` has a key of its own, and more to bound.
ANSWER_SETTINGS = (
    "k",
    "max_frames",
    "frames_per_moment",
    "max_pixels",
    "model",
    "base_url",
    "api_key",
    "temperature",
    "max_tokens",
    "engine_idle_minutes",
    "embedder",
    "device",
    "hub",
)


@verb(*ANSWER_SETTINGS, group=app)
def ask(
    run: Run,
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="In your own words.")],
    images: Images = [],  # noqa: B006
    video: VideoGlob = None,
    where: Where = None,
    whole: Annotated[
        str | None,
        typer.Option(
            "--whole", metavar="VIDEO", help="Show this whole video, evenly sampled; no search."
        ),
    ] = None,
    adapter: Adapter = None,
    ground: Annotated[
        bool,
        typer.Option("--ground", help="Draw boxes around what is asked about in cited frames."),
    ] = False,
    phrases: Annotated[
        list[str],
        typer.Option("--phrase", metavar="PHRASE", help="Draw boxes around this instead."),
    ] = [],  # noqa: B006
    box_format: BoxFormat = None,
    html: Html = None,
    stream: Annotated[
        bool,
        typer.Option("--stream/--no-stream", help="Print the answer as it comes (on a terminal)."),
    ] = True,
) -> None:
    """Answer QUESTION from the library, and cite the moments that show it.

    \b
    vidqa ask "Who opens the door, and when?"
    vidqa ask "What is on the table?" --video '*kitchen*' --html answer.html
    vidqa ask "Sum up this lecture." --whole lecture.mp4 --frames 32
    vidqa ask "Is it raining?" --base-url http://127.0.0.1:8000/v1
    vidqa ask "Who opens the door?" --ground           and show the door; or: --phrase "the man"
    vidqa ask "Which bird is it?" --adapter birds      shown what it was trained to see

    The first question starts vLLM, which takes a minute or more; it is then kept warm.
    """
    from dataclasses import replace

    from vidqa import wiring
    from vidqa.ask import ask as answer_question
    from vidqa.ground import GroundOptions, ground_answer, phrase_of, with_boxes
    from vidqa.output import answer_json, citation_lines, write_page
    from vidqa.report import of_answer, page
    from vidqa.types import Filters
    from vidqa.wiring import (
        ask_options,
        connect_when_asked,
        open_library,
        question_images,
        with_pictures,
    )
    from vidqa.wiring import sight as sight_of

    chosen = None if adapter is None else wiring.choose_adapter(run.settings, adapter)
    settings = wiring.as_trained(run.settings, chosen)
    options = ask_options(settings, filters=Filters(video=video), where=where, whole=whole)
    sight = sight_of(settings, box_format) if ground or phrases else None
    library, embedder = open_library(run.settings, on_demand=whole is not None)
    streams = stream and not run.json and sys.stdout.isatty()
    with connect_when_asked(settings, run.note, chosen) as client:
        answer = answer_question(
            question,
            library,
            embedder,
            client,
            options,
            images=question_images(images, settings, embedder.spec),
            on_text=run.write if streams else None,
        )
        if chosen:
            answer = replace(answer, model=chosen.name)
        if not run.json:
            run.say("" if streams else answer.answer)
            if answer.citations:
                run.say("\n" + "\n".join(citation_lines(answer.citations)))
        grounded, boxes = [], {}
        if sight is not None:
            about = phrases or [phrase_of(question, answer.answer)]
            how = GroundOptions(max_pixels=settings.max_pixels)
            found = ground_answer(answer, about, library, client, sight, how)
            grounded = [replace(one, model=answer.model) for one in found]
            boxes = {"ground": save_all(run, grounded)}
            if not grounded:
                run.note("no boxes: the answer cites no moment, or names nothing to look for")
    if run.json:
        run.emit(answer_json(answer) | boxes)
    if html is not None:
        seen = with_pictures(answer.moments, library, settings.max_frames)
        seen = with_boxes(seen, grounded)
        write_page(html, page(question, [of_answer(answer, seen)]))
        run.note(f"pictures: {html}")


verb(*INFER_SETTINGS, group=app)(infer)
verb(*GROUND_SETTINGS, group=app)(ground)


@verb(group=app, name="ls")
def list_videos(run: Run) -> None:
    """List the videos of the library: duration, scenes, frames, state.

    \b
    vidqa ls
    vidqa ls --json | head -1
    """
    from vidqa.library import Library
    from vidqa.output import failure_json, video_json, video_lines

    library = Library.open(run.settings.index)
    rows, failures = library.videos(), library.failures()
    if run.json:
        run.emit(
            {
                "videos": [video_json(row) for row in rows],
                "failures": [failure_json(one) for one in failures],
            }
        )
    elif rows or failures:
        run.say("\n".join(video_lines(rows, failures)))
    if not rows:
        run.found_nothing(f"the library at {run.settings.index} holds no video; vidqa ingest PATH")


@verb(
    "host",
    "port",
    "root_path",
    "server_names",
    "k",
    "max_frames",
    "frames_per_moment",
    "max_pixels",
    "model",
    "base_url",
    "follow_ups",
    "temperature",
    "max_tokens",
    "max_answers",
    "max_queue",
    "rate_limit",
    "max_body_mib",
    "max_upload_gib",
    "max_images",
    "max_image_megapixels",
    "media_hosts",
    "engine_idle_minutes",
    "embedder",
    "device",
    "hub",
    group=app,
)
def serve(
    run: Run,
    libraries: Annotated[
        list[str],
        typer.Option("--library", metavar="NAME=DIR", help="Serve this library as well."),
    ] = [],  # noqa: B006  typer reads it, nobody changes it
    adapters: Annotated[
        list[str],
        typer.Option(
            "--adapter", metavar="NAME[=DIR]", help="Serve this LoRA adapter by NAME as well."
        ),
    ] = [],  # noqa: B006
    api_keys: Annotated[
        list[str],
        typer.Option(
            "--api-key",
            metavar="[NAME:]KEY",
            help="Who may ask. Everybody here sees a flag: VIDQA_SERVE_KEYS or a file is better.",
        ),
    ] = [],  # noqa: B006
    api_key_file: Annotated[
        Path | None,
        typer.Option("--api-key-file", metavar="FILE", help="Keys, one [NAME:]KEY a line."),
    ] = None,
    workers: Annotated[int, typer.Option("--workers", min=1, max=64, help="Server processes.")] = 1,
) -> None:
    """Serve the library: a page for browsers, an OpenAI-compatible API, tools for agents.

    \b
    vidqa serve                                    http://127.0.0.1:8080/, for this machine
    vidqa serve --library cats=~/cats --port 9000  two libraries: vidqa and vidqa:cats
    vidqa serve --adapter birds                    a fine-tuned model as well, by its name
    vidqa serve --host 0.0.0.0 --api-key-file keys for others too; put a proxy with TLS in front

    The endpoint is http://127.0.0.1:8080/v1, the model is vidqa; /docs lists everything. Agents
    find their tools at http://127.0.0.1:8080/mcp. vLLM is started with it and kept warm. What is
    ingested meanwhile is found without a restart. Ctrl-C lets answers finish.
    """
    import os

    from vidqa.server import check_extra

    check_extra()
    from vidqa.server.keys import read_keys
    from vidqa.server.run import ServeOptions
    from vidqa.server.run import serve as serve_library

    options = ServeOptions(
        libraries=_named_folders("--library", libraries),
        adapters=_adapter_folders(run, adapters),
        keys=read_keys(api_keys, os.environ, api_key_file),
        workers=workers,
        verbose=run.verbose,
    )

    def listening(url: str) -> None:
        if run.json:
            run.emit({"event": "listening", "url": url})
        else:
            run.say(f"vidqa serves {run.settings.index} at {url}")

    serve_library(run.settings, options, listening, functools.partial(_note_engine, run))


def _note_engine(run: Run, state: str, detail: str) -> None:
    run.note(f"{'' if state == 'starting' else f'{state}: '}{detail}")


@verb(*ANSWER_SETTINGS, group=app)
def mcp(
    run: Run,
    libraries: Annotated[
        list[str],
        typer.Option("--library", metavar="NAME=DIR", help="Offer this library as well."),
    ] = [],  # noqa: B006  typer reads it, nobody changes it
) -> None:
    """Offer the library to an agent: an MCP server on stdin and stdout.

    \b
    Register it where your agent keeps its MCP servers:
    {
      "mcpServers": {
        "vidqa": {"command": "vidqa", "args": ["mcp", "--index", "/home/me/videos-index"]}
      }
    }

    Its tools are search_moments, ask_library, get_frames, list_videos and video_outline. The first
    ask_library starts vLLM; the others need none. It ends when stdin does. A running vidqa serve
    offers the same tools at http://127.0.0.1:8080/mcp, with the same keys.
    """
    from vidqa.server import check_extra

    check_extra()
    from vidqa.server.stdio import serve_stdio

    named = _named_folders("--library", libraries)
    serve_stdio(run.settings, named, functools.partial(_note_engine, run))


def _adapter_folders(run: Run, given: list[str]) -> tuple[tuple[str, Path], ...]:
    """`NAME=DIR`, or `NAME` in the folder of adapters, as names and folders."""
    full = [one if "=" in one else f"{one}={run.settings.adapters / one}" for one in given]
    return _named_folders("--adapter", full)


def _named_folders(flag: str, given: list[str]) -> tuple[tuple[str, Path], ...]:
    """`NAME=DIR` as names and folders."""
    found = []
    for one in given:
        name, equals, folder = one.partition("=")
        if not equals or not folder:
            raise UsageError(f"{flag} {one!r}: it takes NAME=DIR")
        found.append((name, Path(folder).expanduser()))
    return tuple(found)


@verb("embedder", "device", "model", "base_url", "hub", group=app)
def doctor(run: Run) -> None:
    """Check what vidqa needs on this machine, and how to mend what is missing.

    \b
    vidqa doctor
    vidqa doctor --json              to go with a report of a fault
    """
    from dataclasses import asdict

    from vidqa.doctor import examine
    from vidqa.output import finding_lines

    findings = list(examine(run.settings))
    if run.json:
        settings = run.settings.public()
        run.emit({"findings": [asdict(one) for one in findings], "settings": settings})
    else:
        run.say("\n".join(finding_lines(findings)))
    if any(one.state == "problem" for one in findings):
        raise typer.Exit(FAILED)


PLAYGROUND_SETTINGS = (
    "max_frames",
    "frames_per_moment",
    "model",
    "base_url",
    "engine_idle_minutes",
    "adapters",
)


@verb(*PLAYGROUND_SETTINGS, group=app, profile="demo")
def demo(
    run: Run,
    html: Annotated[
        Path, typer.Option("--html", metavar="FILE", help="Where the report is written.")
    ] = Path("demo-report/index.html"),
) -> None:
    """Run the playground from end to end: films, questions, answers, a report.

    \b
    vidqa demo

    Needs no model hub and no graphics card. Exit code 1 when fewer than 6 of 8 answers are right.
    """
    from vidqa.demo import show

    score = show.run(run.settings, html, say=run.note if run.json else run.say, note=run.note)
    if run.json:
        run.emit({"asked": score.asked, "right": score.right, "report": str(html)})
    if not score.passed:
        raise typer.Exit(FAILED)


@verb("k", *PLAYGROUND_SETTINGS, group=app, profile="demo", name="eval")
def evaluate(
    run: Run,
    suite: Annotated[
        str, typer.Option("--suite", help="What to measure: playground.")
    ] = "playground",
    films: Annotated[int, typer.Option("--films", min=1, help="How many held-out films.")] = 28,
    adapter: Adapter = None,
) -> None:
    """Measure cuts, search and answers where the truth is known; with 95 % intervals.

    \b
    vidqa eval --suite playground
    vidqa eval --suite playground --films 4      a first impression, in minutes
    vidqa eval --adapter shapes                  what an adapter of the tiny model has forgotten
    """
    from dataclasses import replace

    from vidqa.demo.evaluate import run as measure
    from vidqa.output import suite_json, suite_lines
    from vidqa.wiring import (
        as_trained,
        ask_options,
        choose_adapter,
        connect,
        ingest_options,
        open_library,
    )

    if suite != "playground":
        raise UsageError(f"--suite {suite}: no such suite; there is playground")
    chosen = None if adapter is None else choose_adapter(run.settings, adapter)
    settings = as_trained(run.settings, chosen)
    # Nothing else may be in the library that is searched.
    settings = replace(settings, index=settings.index / "eval")
    library, embedder = open_library(settings, create=True)
    with connect(settings, run.note, chosen) as client:
        found = measure(
            settings.index / "films",
            library,
            embedder,
            client,
            ingest_options(settings),
            ask_options(settings),
            film_count=films,
            on_progress=functools.partial(tell_tenths, run),
        )
    if run.json:
        run.emit(suite_json(suite, found.figures))
    else:
        run.say("\n".join(suite_lines(found.figures)))


def main() -> None:
    """The entry point of the `vidqa` script; with --json, wrong usage is told as an object too."""
    if "--json" not in sys.argv[1:]:
        app()
    try:
        code = app(standalone_mode=False)
    except typer.TyperException as error:
        code = UsageError.exit_code
        tell("UsageError", " ".join(error.format_message().split()), code, json=True)
    sys.exit(code)
