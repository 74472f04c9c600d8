"""Data files, a model and an adapter, as the commands that ask rows need them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vidqa.command import Run
from vidqa.errors import UsageError

if TYPE_CHECKING:
    from finetune.infer import InferOptions, OpenClient, Show
    from finetune.layout import Look
    from finetune.rows import Row
    from finetune.shelf import Shelf
    from vidqa.adapters import AdapterCard
    from vidqa.boxes import Sight
    from vidqa.wiring import ChosenAdapter

# What of the settings decides how rows are asked.
ROW_SETTINGS = (
    "model",
    "base_url",
    "api_key",
    "max_frames",
    "max_pixels",
    "sample_fps",
    "temperature",
    "max_tokens",
    "engine_idle_minutes",
    "adapters",
    "hub",
)

Data = Annotated[
    list[Path],
    typer.Option(
        "--data", metavar="FILE", help="Rows to ask; several files are one after another."
    ),
]
Format = Annotated[
    str | None,
    typer.Option(
        "--format",
        metavar="NAME",
        help="What the files are, if it is not seen from them: vidqa, llama-factory, alpaca, "
        "ms-swift, ms-swift-2, llava, trl, trl-prompt, coco.",
    ),
]
MediaDir = Annotated[
    Path | None,
    typer.Option(
        "--media-dir",
        metavar="DIR",
        exists=True,
        file_okay=False,
        help="Where relative paths of media begin (default: the data file's folder).",
    ),
]
AtOnce = Annotated[int, typer.Option("--at-once", min=1, max=512, help="Rows asked at a time.")]
Cache = Annotated[
    Path, typer.Option("--cache", metavar="DIR", help="Folder of the frames decoded.")
]
CacheGib = Annotated[
    float,
    typer.Option(
        "--cache-gib", min=0.0, max=100_000.0, help="Size of that folder, at most; 0: none."
    ),
]


def read_rows(files: Sequence[Path], format: str | None, media_dir: Path | None) -> list[Row]:
    """All rows of the files, in order.

    Raises MissingExtra where their answers cannot be scored here: before a model is started.
    """
    from finetune.formats import read
    from finetune.scoring import check_packages

    rows = [row for file in files for row in read(file, format, media_dir)]
    check_packages(rows)
    return rows


def not_the_data(name: str, path: Path, data: Iterable[Path]) -> None:
    """Raises UsageError for a file to write that is one of those to read; `name` is its option."""
    if path.resolve() in {one.resolve() for one in data}:
        raise UsageError(f"{name} {path}: that is the data; name another file")


@dataclass(frozen=True)
class Asked:
    """Who is asked and how. `identity` tells the model from another of its name."""

    open_client: OpenClient
    model: str
    identity: str
    adapter: ChosenAdapter | None
    options: InferOptions
    show: Show

    @property
    def adapter_folder(self) -> Path | None:
        return self.adapter.folder if self.adapter else None


def choose(run: Run, adapter: str | None, at_once: int, shelf: Shelf | None) -> Asked:
    """Starts the engine if need be, with the adapter where one is named.

    What is shown of videos is as the adapter was trained, but for what the user asks otherwise.
    """
    from finetune.infer import InferOptions
    from finetune.media import show_row
    from vidqa.vlm import AsyncVlmClient, Sampling
    from vidqa.wiring import choose_adapter, endpoint

    settings = run.settings
    chosen = None if adapter is None else choose_adapter(settings, adapter)
    card = _card(chosen)
    found = endpoint(settings, run.note, [chosen] if chosen else [])

    def open_client() -> AsyncVlmClient:
        return AsyncVlmClient(found.base_url, found.api_key, found.model)

    model = found.model or _only_model(open_client)
    look, sight = _look(run, card), _sight(run, card, model)
    options = InferOptions(
        look=look,
        family=sight.family,
        shown_size=sight.shown_size,
        model=found.adapters[chosen.name] if chosen else None,
        sampling=Sampling(max_tokens=settings.max_tokens, temperature=settings.temperature),
        at_once=at_once,
    )
    show = functools.partial(show_row, look=look, shelf=shelf)
    return Asked(open_client, model, _identity(run, model), chosen, options, show)


def _card(chosen: ChosenAdapter | None) -> AdapterCard | None:
    from vidqa.adapters import read

    return read(chosen.folder) if chosen and chosen.folder else None


def _only_model(open_client: OpenClient) -> str:
    import asyncio

    async def ask() -> str:
        async with open_client() as client:
            return await client.model()

    return asyncio.run(ask())


def _look(run: Run, card: AdapterCard | None) -> Look:
    """The look of the adapter, or of a model that was tuned here, else that of the settings.

    What the user chose beats all of them.
    """
    from dataclasses import fields, replace

    from finetune.layout import Look
    from vidqa.model_card import look_of

    names: tuple[str, ...] = ("max_frames", "max_pixels", "sample_fps")
    if "frames_per_moment" in run.settings.given:  # else a row may show all of its frames
        names += ("frames_per_moment",)
    own = {name: getattr(run.settings, name) for name in names}
    wanted = look_of(run.settings.model) if card is None else card.look
    if not wanted:
        return Look(**own)
    known = {one.name for one in fields(Look)}
    look = Look(**{name: value for name, value in wanted.items() if name in known})
    return replace(look, **{name: own[name] for name in names if name in run.settings.given})


def _sight(run: Run, card: AdapterCard | None, model: str) -> Sight:
    """How the model sees pictures and writes boxes; Qwen2-VL's way where nothing says."""
    from vidqa.boxes import FAMILIES, Sight, family_in_name
    from vidqa.weights import find_weights, sight

    told = next((one for one in FAMILIES if card is not None and card.box_family == one), None)
    if not run.settings.base_url:
        return sight(find_weights(run.settings.model, run.settings.hub), told)
    return Sight(told or family_in_name(model) or "qwen2-vl")


def _identity(run: Run, model: str) -> str:
    from vidqa.adapter_weights import base_digest
    from vidqa.weights import find_weights

    if run.settings.base_url:
        return model
    weights = find_weights(run.settings.model, run.settings.hub)
    return f"{model} {base_digest(weights)[:16]}"


@contextmanager
def progress(run: Run) -> Iterator[Callable[[str, int, int], None]]:
    """What to call with a stage, what is done and of how much: a bar, or a line every tenth."""
    import sys

    if run.quiet or run.json or not sys.stderr.isatty():
        yield functools.partial(tell_tenths, run)
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        tasks = {}

        def advance(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage)
            bars.update(tasks[stage], completed=done, total=total)

        yield advance


def tell_tenths(run: Run, stage: str, done: int, total: int) -> None:
    """A line whenever another tenth of a stage is done."""
    if done * 10 // total != (done - 1) * 10 // total:
        run.note(f"{stage}: {done} of {total}")
