"""`vidqa finetune [train]`: the plan, the training, and how to use what it made."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from finetune.recipe import RECIPE, Recipe
from vidqa.cli.finetune import finetune_app
from vidqa.cli.rows import Format, MediaDir
from vidqa.command import INTERRUPTED, Run, verb
from vidqa.errors import UsageError, VidqaError

if TYPE_CHECKING:
    from finetune.order import Order, Outcome, Prepared


@verb("model", "hub", group=finetune_app, name="train", fields=RECIPE)
def train_command(
    run: Run,
    data: Annotated[
        list[Path],
        typer.Option("--data", metavar="FILE", help="Rows to train on; may be repeated."),
    ] = [],  # noqa: B006  typer reads it, nobody changes it
    eval_data: Annotated[
        list[Path],
        typer.Option(
            "--eval-data", metavar="FILE", help="Rows held out (default: some of the videos)."
        ),
    ] = [],  # noqa: B006
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            metavar="DIR",
            show_default=False,
            help="Folder to make (default: adapters/ and the first data file's name).",
        ),
    ] = None,
    format: Format = None,
    media_dir: MediaDir = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan and stop there.")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last checkpoint in the output folder.")
    ] = False,
) -> None:
    """Train the answering model on your own videos; the result is a LoRA adapter.

    \b
    vidqa finetune --data train.jsonl --dry-run            what would be trained, and how long
    vidqa finetune --data train.jsonl --output adapters/birds
    vidqa finetune --data train.jsonl --config configs/finetune-qlora.yaml
    vidqa finetune --output adapters/birds --resume        after Ctrl-C or a crash
    accelerate launch --config_file configs/accelerate-ddp.yaml -m vidqa.cli finetune --data ...

    The file of --config may hold a recipe (configs/finetune-*.yaml), settings such as model, or
    both. Ctrl-C leaves a checkpoint to go on from. While it runs: tensorboard --logdir DIR.
    """
    from finetune.processes import is_first_process

    if is_first_process():
        _train(run, data, eval_data, output, format, media_dir, dry_run, resume)
        return
    try:  # the first process says what there is to say
        silent = dataclasses.replace(run, quiet=True, json=False)
        _train(silent, data, eval_data, output, format, media_dir, dry_run, resume)
    except VidqaError as error:
        raise typer.Exit(error.exit_code) from None


def _train(
    run: Run,
    data: list[Path],
    eval_data: list[Path],
    output: Path | None,
    format: str | None,
    media_dir: Path | None,
    dry_run: bool,
    resume: bool,
) -> None:
    from finetune import train
    from finetune.finish import commands
    from finetune.processes import is_first_process, process_count
    from finetune.progress import watching
    from finetune.run_folder import check_output, read_run
    from finetune.trainer import schedule_of
    from vidqa.adapters import as_name
    from vidqa.cli.rows import progress

    if not data and not (resume and output):
        raise UsageError("--data is missing; name a file with rows (docs/finetune.md has examples)")
    where = output or run.settings.adapters / as_name(data[0].stem)
    given = {"data": data, "eval_data": eval_data, "format": format, "media_dir": media_dir}
    order = _order(run, where, resume, given)
    if not order.recipe.full:
        train.check_adapter_name(where)
    if resume and (begun := read_run(where)) and begun.finished is not None:
        _say(run, f"{where}: finished at step {begun.finished}; nothing is left to do")
        for line in commands(order):
            _say(run, line)
        return
    if is_first_process() and not resume and not dry_run:
        check_output(where, resume=False)
    train.check_machine(order.recipe)
    with progress(run) as advance:
        prepared = train.prepare_rows(order, run.note, advance)
    _show_plan(run, prepared)
    if dry_run:
        return
    steps = schedule_of(order.recipe, len(prepared.plan.used), process_count()).steps
    run.note("Ctrl-C stops after the step in hand, with a checkpoint to go on from")
    with watching(run, steps) as tell:
        outcome = train.train(
            order,
            prepared,
            tell,
            on_stage=run.note,
            on_stop=lambda: run.note("stopping after this step; Ctrl-C again stops at once"),
        )
    _show_end(run, order, outcome)


def _order(run: Run, where: Path, resume: bool, given: dict[str, Any]) -> Order:
    from finetune.order import Order
    from finetune.train import resumed

    model = run.settings.model
    if resume:
        named = model if "model" in run.settings.given else None
        more = given | {"model": named, "hub": run.settings.hub}
        return resumed(where, run.config, dict(run.flags), more)
    return Order(
        data=tuple(given["data"]),
        eval_data=tuple(given["eval_data"]),
        model=model,
        output=where,
        recipe=Recipe.load(run.config, run.flags),
        format=given["format"],
        media_dir=given["media_dir"],
        hub=run.settings.hub,
    )


def _show_plan(run: Run, prepared: Prepared) -> None:
    if run.json:
        run.emit({"event": "plan", **prepared.figures})
        return
    for line in prepared.lines:
        _say(run, line)


def _show_end(run: Run, order: Order, outcome: Outcome) -> None:
    from finetune.finish import summary_lines

    if run.json:
        run.emit({"event": "summary", "output": str(order.output), **dataclasses.asdict(outcome)})
    else:
        for line in summary_lines(outcome):
            _say(run, line)
    if outcome.stopped:
        go_on = f"vidqa finetune --output {shlex.quote(str(order.output))} --resume"
        run.note(f"stopped after step {outcome.step} of {outcome.steps}; go on with: {go_on}")
        raise typer.Exit(INTERRUPTED)
    if run.json:
        return
    _say(run, f"saved to {order.output} (report.html tells more); use it with:")
    for line in (*outcome.commands, *outcome.notes):
        _say(run, f"  {line}")


def _say(run: Run, text: str) -> None:
    if not run.quiet and not run.json:
        run.say(text)
