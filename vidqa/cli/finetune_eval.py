"""`vidqa finetune eval`: base and adapter answer the same held-out questions."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from finetune.shelf import DEFAULT_FOLDER, DEFAULT_GIB, shelf_of
from vidqa.cli.finetune import finetune_app
from vidqa.cli.rows import ROW_SETTINGS, AtOnce, Cache, CacheGib, Data, Format, MediaDir
from vidqa.command import FAILED, Run, verb
from vidqa.errors import UsageError

if TYPE_CHECKING:
    from finetune.rows import Row

PLAYGROUND = "playground"


@verb(*ROW_SETTINGS, group=finetune_app, name="eval")
def evaluate(
    run: Run,
    data: Data,
    adapter: Annotated[
        str | None,
        typer.Option(
            "--adapter", metavar="NAME|DIR", help="Compare this LoRA adapter to its base."
        ),
    ] = None,
    probe: Annotated[
        str | None,
        typer.Option(
            "--probe",
            metavar="FILE|playground",
            help="Questions outside the training, to see what was forgotten.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            metavar="DIR",
            help="Folder of the results (default: evaluation/DATA in the adapter's).",
        ),
    ] = None,
    format: Format = None,
    media_dir: MediaDir = None,
    at_once: AtOnce = 8,
    cache: Cache = DEFAULT_FOLDER,
    cache_gib: CacheGib = DEFAULT_GIB,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the intervals.")] = 0,
) -> None:
    """Let base and adapter answer held-out questions, and compare them with 95 % intervals.

    \b
    vidqa finetune eval --data held-out.jsonl --adapter birds
    vidqa finetune eval --data held-out.jsonl --adapter birds --probe other-questions.jsonl
    vidqa finetune eval --data held-out.jsonl                    the base alone, before a training

    DIR gets metrics.json, report.html with the questions that the two answer differently, and the
    answers themselves; run it again after an interruption and it goes on. The figures are also put
    on the adapter's card, which vidqa adapters show prints. Hold out whole videos: an adapter that
    has seen a video answers about it from memory. --probe playground asks about
    drawn films, as the bundled tiny model is asked without it.
    """
    from dataclasses import replace

    from finetune.evaluate import as_json, page, remarks, table, write_figures, write_metrics
    from finetune.evaluate import evaluate as compare
    from finetune.infer import made_by
    from vidqa.cli.rows import choose, progress, read_rows
    from vidqa.output import columns, write_page

    if adapter is None and output is None:
        raise UsageError("--output: name a folder for the results; there is no adapter's to use")
    rows = read_rows(data, format, media_dir)
    if not rows:
        run.found_nothing(f"no row in {', '.join(map(str, data))}")
    probe_rows, probe_file = _probe(run, probe, format, media_dir)
    asked = choose(run, adapter, at_once, shelf_of(cache, cache_gib))
    own = asked.adapter_folder
    folder = output or _results(own or _nowhere(asked.model), data)
    follows, probe_follows = (
        made_by(files, asked.identity, own, asked.options) for files in (data, probe_file)
    )
    with progress(run) as advance:
        results = compare(
            rows,
            asked.open_client,
            asked.options.model,
            options=asked.options,
            show=asked.show,
            probe=probe_rows,
            folder=folder,
            made_by=follows,
            probe_made_by=probe_follows,
            base=asked.model,
            name=asked.adapter.name if asked.adapter else None,
            seed=seed,
            on_progress=advance,
        )
    facts = {name: follows[name] for name in ("data", "look", "sampling")}
    if probe_file:
        facts["probe_data"] = probe_follows["data"]
    results = replace(results, facts=facts)
    write_metrics(folder / "metrics.json", results)
    write_page(folder / "report.html", page(results, asked.show))
    on_card = own is not None and write_figures(own, results)
    if run.json:
        run.emit(as_json(results))
    else:
        run.say("\n".join(columns(table(results))))
        for one in remarks(results):
            run.note(one)
        if _chose(own or Path(run.settings.model), data):
            run.note(
                "these rows chose the checkpoint that was kept, so it does better on them than on "
                "others; rows that training has not seen tell more"
            )
        run.note(f"examples: {folder / 'report.html'}")
        if on_card:
            run.note(f"the figures are on its card too: vidqa adapters show {adapter}")
    if any(count for _, measured in results.sets for count in measured.failed.values()):
        raise typer.Exit(FAILED)


def _results(adapter: Path, data: Sequence[Path]) -> Path:
    """A folder for the data of each name: what one has measured is no obstacle to the next."""
    return adapter / "evaluation" / "+".join(file.stem for file in data)


def _chose(trained: Path, data: Sequence[Path]) -> bool:
    """Whether rows by which a training has chosen its checkpoint are among the questions."""
    from finetune.identity import file_digest
    from finetune.run_folder import VALIDATION, read_run

    chose: set[str] = set()
    with suppress(UsageError):  # of a damaged run nothing is known
        begun = read_run(trained)
        chose = set(begun.eval_data.values()) if begun else chose
    kept = (trained / VALIDATION).resolve()
    return any(file.resolve() == kept or file_digest(file) in chose for file in data)


def _nowhere(model: str) -> NoReturn:
    raise UsageError(f"--output: name a folder for the results; {model} has its adapter elsewhere")


def _probe(
    run: Run, probe: str | None, format: str | None, media_dir: Path | None
) -> tuple[list[Row], list[Path]]:
    """The probe's rows and the file they are from, where there is one.

    Nobody but the bundled model has learned the playground, so it is asked by itself of no other.
    """
    from vidqa.cli.rows import read_rows
    from vidqa.demo.probe import knows_playground, probe_rows

    if probe is None and not (
        run.settings.base_url is None and knows_playground(run.settings.model)
    ):
        return [], []
    if probe is None or probe == PLAYGROUND:
        return probe_rows(run.settings.index / "probe", run.note), []
    file = Path(probe)
    return read_rows([file], format, media_dir), [file]
