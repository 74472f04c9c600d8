"""The output folder of a training: what is in it, whose it is, and where a run goes on.

    run.json        the recipe, the model and the data of the run: what `--resume` compares with
    checkpoints/    checkpoint-STEP folders; one counts once `whole` is in it
    log.jsonl       a line of the log each
    loss.png  report.html  training.json  tensorboard/
    validation.jsonl  the rows that were split off
    and at the end  the adapter, or the whole model

Knows nothing of models.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vidqa.errors import ModelError, UsageError, VidqaError
from vidqa.whole_files import take_lock, write_whole

RUN, LOG, CHECKPOINTS = "run.json", "log.jsonl", "checkpoints"
VALIDATION = "validation.jsonl"  # the rows, held out of the data, that chose the checkpoint
_WHOLE, _LOCK = "whole", ".lock"
# What may differ between the start of a run and its going on: none of it changes what is learned.
OF_THE_MACHINE = frozenset(
    {"cache", "cache_gib", "feature_gib", "loader_workers", "attention", "gradient_checkpointing"}
)
_NAMED_FILES = 3
_FULL_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class Run:
    """A run as run.json tells of it.

    `data` and `eval_data` are files with their SHA-256; `batch` are the rows of one step, of all
    processes; `base_digest` tells the base's weights, empty before they were looked for;
    `finished` is the last step of a run that has come to its end, else None.
    """

    recipe: Mapping[str, Any]
    model: str
    data: Mapping[str, str]
    eval_data: Mapping[str, str]
    batch: int
    format: str | None = None
    media_dir: str | None = None
    base_digest: str = ""
    finished: int | None = None


def read_run(output: Path) -> Run | None:
    """The run in a folder, or None where there is none. Raises UsageError: a damaged run.json."""
    try:
        return Run(**json.loads((output / RUN).read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        raise UsageError(
            f"{output / RUN}: cannot be read ({error}); name another folder with --output"
        ) from error


def write_json(path: Path, content: object) -> None:
    """Writes a file whole or not at all."""
    write_whole(path, f"{json.dumps(content, indent=2)}\n".encode())


def _is_draft(name: str) -> bool:
    """What a process that was killed while it began a run may leave."""
    return re.fullmatch(rf"{re.escape(RUN)}\.\d+", name) is not None


def write_run(output: Path, run: Run) -> None:
    write_json(output / RUN, {name: getattr(run, name) for name in Run.__slots__})


def check_output(output: Path, *, resume: bool) -> Run | None:
    """The run that goes on in `output`, or None for a new one.

    Raises UsageError when the folder holds something else, or a run and `resume` was not asked.
    """
    _check_place(output)
    run = read_run(output)
    if run is None:
        others = sorted(one.name for one in output.iterdir()) if output.is_dir() else []
        others = [name for name in others if name != _LOCK and not _is_draft(name)]
        if others:
            some = ", ".join(others[:_NAMED_FILES]) + (" ..." if len(others) > _NAMED_FILES else "")
            raise UsageError(f"{output}: holds {some}; name a new folder with --output")
        if resume:
            raise UsageError(f"{output}: holds no run to resume; leave --resume out to begin one")
        return None
    if resume:
        return run
    if run.finished is not None:
        raise UsageError(f"{output}: holds a finished run; name another folder with --output")
    last = last_checkpoint(output)
    where = f"stopped at step {step_of(last)}" if last else "stopped before its first checkpoint"
    raise UsageError(
        f"{output}: holds a run that {where}; add --resume to go on, or name another --output"
    )


def _check_place(output: Path) -> None:
    """Raises UsageError where no folder can be written: hours of media are decoded before it is."""
    there = next(one for one in (output, *output.absolute().parents) if one.exists())
    if not there.is_dir():
        raise UsageError(f"{there}: is a file; name a new folder with --output")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UsageError(
            f"{there}: nothing may be written there; name another folder with --output"
        )


def check_same(output: Path, begun: Run, now: Run) -> None:
    """Raises UsageError when what a run began with differs from what it is to go on with."""
    for name, value in now.recipe.items():
        first = begun.recipe.get(name, value)
        if first != value and name not in OF_THE_MACHINE:
            raise UsageError(f"{name} {value}: the run in {output} began with {first}; {_leave()}")
    if begun.model != now.model:
        raise UsageError(
            f"--model {now.model}: the run in {output} began with {begun.model}; {_leave()}"
        )
    if begun.base_digest and now.base_digest and begun.base_digest != now.base_digest:
        raise UsageError(
            f"--model {now.model}: holds other weights than when the run in {output} began "
            f"({begun.base_digest[:12]}, {now.base_digest[:12]}); {_leave()}"
        )
    for flag, first_files, files in (
        ("--data", begun.data, now.data),
        ("--eval-data", begun.eval_data, now.eval_data),
    ):
        if list(first_files.values()) != list(files.values()):
            raise UsageError(
                f"{flag} {' '.join(files) or '(none)'}: not the rows that the run in {output} "
                f"began with ({' '.join(first_files) or 'none'}); {_leave()}"
            )
    if begun.batch != now.batch:
        raise UsageError(
            f"{now.batch} rows a step: the run in {output} began with {begun.batch} (batch x "
            "accumulation x processes); take as many processes, or change accumulation with them"
        )


def _leave() -> str:
    return "take that again, or begin anew with another --output"


def mark_whole(checkpoint: Path) -> None:
    (checkpoint / _WHOLE).touch()


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def last_checkpoint(output: Path) -> Path | None:
    """The latest checkpoint that is whole, and whose files can be read."""
    whole = [one for one in _checkpoints(output) if (one / _WHOLE).exists() and _is_read(one)]
    return max(whole, key=step_of, default=None)


def _is_read(checkpoint: Path) -> bool:
    """Whether its files are of the length that they themselves tell."""
    from vidqa.adapter_weights import tensors_in

    try:
        for weights in checkpoint.glob("*.safetensors"):
            tensors_in(weights)
    except ModelError:
        return False
    return all(zipfile.is_zipfile(state) for state in checkpoint.glob("*.pt"))


def drop_broken(output: Path) -> None:
    """Removes checkpoints that were being written when their process was killed."""
    for one in _checkpoints(output):
        if not (one / _WHOLE).exists():
            shutil.rmtree(one, ignore_errors=True)


def _checkpoints(output: Path) -> list[Path]:
    folder = output / CHECKPOINTS
    found = folder.iterdir() if folder.is_dir() else ()
    return [one for one in found if re.fullmatch(r"checkpoint-\d+", one.name)]


def read_log(output: Path) -> list[dict[str, Any]]:
    """The lines of the log, in order; one that was cut short by a kill is left out."""
    try:
        lines = (output / LOG).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    rows = []
    for line in lines:
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


def cut_log(output: Path, step: int) -> None:
    """Drops what a run that goes on from `step` will write again."""
    kept = [json.dumps(row) for row in read_log(output) if row.get("step", 0) <= step]
    output.mkdir(parents=True, exist_ok=True)
    draft = output / f"{LOG}.{os.getpid()}"
    draft.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
    draft.replace(output / LOG)


@contextmanager
def locked(output: Path) -> Iterator[None]:
    """Keeps a second training out of the folder. Raises VidqaError when one is at work there."""
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = (error.strerror or type(error).__name__).lower()
        raise UsageError(f"{output}: {reason}; name another folder with --output") from error
    with (output / _LOCK).open("w") as file:
        if not take_lock(file, output / _LOCK):
            raise VidqaError(
                f"{output}: another training is at work in it; wait, or name another --output"
            )
        try:
            yield
        finally:
            (output / _LOCK).unlink(missing_ok=True)


@contextmanager
def told_when_full(output: Path) -> Iterator[None]:
    """Makes one VidqaError of what torch, safetensors and Python each raise on a full disk."""
    try:
        yield
    except VidqaError:
        raise
    except Exception as error:
        # torch tells no reason; half a file stays, so the disk still is as full as it was.
        full = shutil.disk_usage(output).free < _FULL_BYTES
        if full or "No space left" in str(error) or "quota exceeded" in str(error):
            raise VidqaError(
                f"{output}: the disk is full; make room, then go on with --resume"
            ) from error
        raise
