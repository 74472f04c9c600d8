"""`vidqa adapters`: the fine-tuned models of this machine, looked after by hand."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from vidqa.cli.engine import ENGINE_SETTINGS
from vidqa.command import FAILED, Run, command_group, verb
from vidqa.errors import UsageError

adapters_app = command_group(help="Look after fine-tuned adapters of the answering model.")

Adapter = Annotated[
    str | None,
    typer.Option(
        "--adapter", metavar="NAME|DIR", help="A fine-tuned adapter answers (vidqa adapters ls)."
    ),
]
Which = Annotated[str, typer.Argument(metavar="NAME|DIR", help="A name, or an adapter's folder.")]
Name = Annotated[str, typer.Argument(metavar="NAME", help="As vidqa adapters ls shows it.")]


@verb("adapters", group=adapters_app, name="ls")
def list_adapters(run: Run) -> None:
    """List the adapters: rank, size, base model, and whether the engine has them loaded.

    \b
    vidqa adapters ls
    """
    from vidqa.adapter_fit import describe, files_digest
    from vidqa.adapters import names_in
    from vidqa.engine import running
    from vidqa.engine_adapters import loaded
    from vidqa.output import adapter_json, adapter_lines

    folder = run.settings.adapters
    found = [describe(folder / name, whole=False) for name in names_in(folder)]
    handle = running()
    held = {(one.name, one.digest) for one in loaded(handle)} if handle else set[tuple[str, str]]()
    names = {name for name, _ in held}
    # One that was trained again is loaded when it is asked next; until then it is not what lies
    # here that answers.
    there = {
        one.name: (one.name, files_digest(one.folder)) in held
        for one in found
        if one.name in names and not one.problem
    }
    if run.json:
        rows = [adapter_json(one) | {"loaded": there.get(one.name, False)} for one in found]
        run.emit({"adapters": rows})
    elif found:
        run.say("\n".join(adapter_lines(found, there)))
    if not found:
        run.found_nothing(f"no adapter in {folder}; train one: vidqa finetune --data FILE")


@verb("adapters", group=adapters_app)
def show(run: Run, adapter: Which) -> None:
    """Show what an adapter is: its base, data and metrics, and whether vLLM can serve it.

    \b
    vidqa adapters show birds
    vidqa adapters show birds --json

    The exit code is 1 when it cannot be served.
    """
    from vidqa.adapter_fit import describe
    from vidqa.adapters import find
    from vidqa.output import adapter_json, card_lines

    found = describe(find(adapter, run.settings.adapters))
    if run.json:
        run.emit(adapter_json(found))
    else:
        run.say("\n".join(card_lines(found)))
    if found.problem:
        raise typer.Exit(FAILED)


@verb("adapters", group=adapters_app)
def rm(
    run: Run,
    name: Name,
    yes: Annotated[bool, typer.Option("-y", "--yes", help="Do not ask.")] = False,
) -> None:
    """Delete an adapter of the adapters' folder, with its checkpoints and reports.

    \b
    vidqa adapters rm birds
    """
    from vidqa.adapters import remove

    if not yes:
        if run.json or not sys.stdin.isatty():
            raise UsageError(f"rm {name}: nobody here to ask; say --yes to delete it")
        typer.confirm(f"Delete {run.settings.adapters / name} and all that is in it?", abort=True)
    remove(name, run.settings.adapters)
    if run.json:
        run.emit({"removed": name})
    elif not run.quiet:
        run.say(f"removed {name}")


@verb("adapters", *ENGINE_SETTINGS, group=adapters_app)
def load(run: Run, adapter: Which) -> None:
    """Load an adapter into the engine now, and prove that it is applied.

    \b
    vidqa adapters load birds        what vidqa ask --adapter birds does by itself

    The engine is started for it, or started anew when it was started without adapters.
    """
    from vidqa.engine import running
    from vidqa.engine_adapters import loaded
    from vidqa.wiring import choose_adapter, endpoint

    chosen = choose_adapter(run.settings, adapter)
    model = endpoint(run.settings, run.note, [chosen]).adapters[chosen.name]
    handle = running()
    proved = [one for one in loaded(handle) if one.model == model] if handle else []
    difference = proved[0].difference if proved else None
    if run.json:
        run.emit({"name": chosen.name, "model": model, "difference": difference})
    else:
        applied = f"; answers differ from the base's by {difference:.3g}" if difference else ""
        run.say(f"loaded: {chosen.name}{applied}")


@verb(group=adapters_app)
def unload(run: Run, name: Name) -> None:
    """Have the engine forget an adapter and free its memory; exit code 3 when it has none.

    \b
    vidqa adapters unload birds
    """
    from vidqa import engine_adapters
    from vidqa.engine import running

    handle = running()
    gone = engine_adapters.unload(handle, name) if handle else []
    if run.json:
        run.emit({"unloaded": [one.model for one in gone]})
    elif gone and not run.quiet:
        run.say(f"unloaded: {name}")
    if not gone:
        run.found_nothing(f"{name} is not loaded; vidqa adapters ls says what is")
