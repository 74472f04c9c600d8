"""`vidqa ground`, and what `vidqa ask --ground` shares with it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vidqa.cli.adapters import Adapter
from vidqa.command import Run
from vidqa.errors import LibraryError, UsageError

if TYPE_CHECKING:
    from vidqa.ground import Grounded
    from vidqa.library import Library
    from vidqa.types import Video

GROUND_SETTINGS = (
    "max_pixels",
    "model",
    "base_url",
    "api_key",
    "max_tokens",
    "engine_idle_minutes",
    "hub",
)

BoxFormat = Annotated[
    str | None,
    typer.Option(
        "--box-format",
        metavar="FAMILY",
        help="How the model writes boxes: qwen2-vl, qwen2.5-vl or qwen3-vl "
        "(default: by its configuration; with --base-url by its name).",
    ),
]


def ground(
    run: Run,
    video: Annotated[
        str, typer.Argument(metavar="VIDEO", help="A file; or a video of the library.")
    ],
    phrases: Annotated[
        list[str], typer.Argument(metavar="PHRASE...", help="What to look for, in your own words.")
    ],
    at: Annotated[
        float, typer.Option("--at", metavar="SECONDS", help="The time of the frame in the video.")
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="Picture to write, .png or .jpg (default: VIDEO-SECONDSs.png, here).",
        ),
    ] = None,
    adapter: Adapter = None,
    box_format: BoxFormat = None,
) -> None:
    """Say where things are in one frame of VIDEO, and draw boxes around them.

    \b
    vidqa ground holiday.mp4 --at 12.5 "the red car"
    vidqa ground holiday.mp4 --at 12.5 "the red car" "a dog" --output found.png
    vidqa ground holiday.mp4 --at 12.5 "the red car" --json
    vidqa ground holiday.mp4 --at 12.5 "a wren" --adapter birds

    VIDEO may also be the name, path or id of a video of the library. The model must have learned
    to write boxes, as Qwen2-VL, Qwen2.5-VL and Qwen3-VL have. Exit code 3 when it gives none.
    """
    from dataclasses import replace

    from vidqa.ground import GroundOptions, still_at
    from vidqa.ground import ground as locate
    from vidqa.output import check_picture, grounded_json, grounded_lines, missing_line
    from vidqa.vlm import Sampling
    from vidqa.wiring import as_trained, choose_adapter, connect_when_asked, sight

    if output is not None:
        check_picture(output)
    found_video, library = _video(run, video)
    still = still_at(found_video, at, library)
    chosen = None if adapter is None else choose_adapter(run.settings, adapter)
    settings = as_trained(run.settings, chosen)
    seen_by = sight(settings, box_format)
    sampling = Sampling(max_tokens=settings.max_tokens, skip_special_tokens=False)
    options = GroundOptions(max_pixels=settings.max_pixels, sampling=sampling)
    with connect_when_asked(settings, run.note, chosen) as client:
        grounded = locate(phrases, still, client, seen_by, options)
    if chosen:
        grounded = replace(grounded, model=chosen.name)
    file = save(run, grounded, output)
    if run.json:
        run.emit(grounded_json(grounded, file))
    elif grounded.found:
        run.say("\n".join(grounded_lines(grounded)))
    if file is None:
        run.found_nothing("; ".join(missing_line(grounded, one) for one in grounded.missing))


def save(run: Run, grounded: Grounded, output: Path | None = None) -> Path | None:
    """Writes the picture with its boxes and says where; nothing when nothing was found."""
    from vidqa.output import missing_line, picture_name, write_picture

    if not grounded.still.full:
        run.note(f"{grounded.still.video.path}: cannot be read; this is the picture that was kept")
    if not grounded.found:
        return None
    file = output or Path(picture_name(grounded))
    write_picture(file, grounded.picture())
    run.note(f"picture: {file}")
    for one in grounded.missing:
        run.note(missing_line(grounded, one))
    return file


def save_all(run: Run, found: Sequence[Grounded]) -> list[dict[str, object]]:
    """Writes the pictures of an answer and says what is on them; as JSON objects."""
    from vidqa.output import grounded_json, grounded_lines, missing_line

    objects = []
    for one in found:
        file = save(run, one)
        objects.append(grounded_json(one, file))
        if run.json:
            continue
        if one.found:
            run.say("\n" + "\n".join(grounded_lines(one)))
        else:
            run.say("\n" + "\n".join(missing_line(one, missing) for missing in one.missing))
    return objects


def _video(run: Run, name: str) -> tuple[Video, Library | None]:
    """A video that is a file, or one of the library, with the library."""
    from vidqa.ask import find_video
    from vidqa.frames import pictures_at
    from vidqa.library import Library
    from vidqa.probe import probe

    if Path(name).expanduser().is_file():
        return probe(Path(name).expanduser()), None
    try:
        library = Library.open(run.settings.index, pictures_at=pictures_at)
    except LibraryError as error:
        raise UsageError(f"{name}: there is no such file, and {error}") from error
    return find_video(library, name), library
