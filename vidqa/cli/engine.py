"""`vidqa engine`: the vLLM server that answers, looked after by hand."""

from __future__ import annotations

from typing import Annotated

import typer

from vidqa.command import Run, command_group, verb

engine_app = command_group(help="Look after the vLLM server that answers questions.")

ENGINE_SETTINGS = (
    "model",
    "dtype",
    "max_model_len",
    "kvcache_gib",
    "gpu_memory_utilization",
    "engine_idle_minutes",
    "hub",
)


@verb(group=engine_app)
def status(run: Run) -> None:
    """Say whether the engine runs, what it serves and what it is doing; exit code 3 if it does not.

    \b
    vidqa engine status
    """
    from dataclasses import asdict

    from vidqa import engine

    found = engine.status()
    if run.json:
        shown = {} if found is None else asdict(found) | {"log": str(found.log)}
        run.emit({"running": found is not None, **shown})
    elif found is not None:
        adapters = f"adapters of rank {found.lora_rank} at most; " if found.lora_rank else ""
        run.say(
            f"{found.stage}: {found.model} at {found.base_url}, process {found.pid}, "
            f"up {found.age_seconds / 60:.0f} min; {adapters}stops after "
            f"{found.idle_minutes:g} min without a question; log {found.log}"
        )
    if found is None:
        run.found_nothing("no engine is running; the next question starts one")


@verb(*ENGINE_SETTINGS, group=engine_app)
def start(run: Run) -> None:
    """Start the engine now, so that the first question need not wait for it.

    \b
    vidqa engine start
    vidqa engine start --model Qwen/Qwen2-VL-7B-Instruct-AWQ --engine-idle 120
    """
    from vidqa.wiring import connect

    with connect(run.settings, run.note) as client:
        model = client.model
    if run.json:
        run.emit({"running": True, "model": model, "base_url": client.base_url})
    else:
        run.say(f"ready: {model} at {client.base_url}")


@verb(group=engine_app)
def stop(run: Run) -> None:
    """End the engine and free its memory.

    \b
    vidqa engine stop
    """
    from vidqa import engine

    stopped = engine.stop(on_stage=run.note)
    if run.json:
        run.emit({"stopped": stopped})
    elif not run.quiet:
        run.say("stopped" if stopped else "no engine was running")


@verb(group=engine_app)
def logs(
    run: Run,
    lines: Annotated[int, typer.Option("-n", "--lines", min=1, help="How many lines.")] = 50,
) -> None:
    """Show the end of the engine's log.

    \b
    vidqa engine logs -n 200
    """
    from vidqa import engine

    text = engine.logs(lines=lines)
    if run.json:
        run.emit({"lines": text.splitlines()})
    elif text:
        run.say(text)
    if not text:
        run.found_nothing("the engine has no log yet; it is written once vidqa engine start ran")
