"""The verb: data files and a base model in, an adapter (or a whole model) with its report out.

    order = Order(data=(Path("train.jsonl"),), model="Qwen/Qwen2-VL-2B-Instruct",
                  output=Path("adapters/birds"), recipe=Recipe())
    prepared = prepare_rows(order)
    outcome = train(order, prepared)

In several processes (`accelerate launch`, torchrun) each calls this, and the first one writes.
Printing is the command's.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import shlex
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.dataset import Encoder, RowDataset, load_processor
from finetune.identity import file_digest
from finetune.layout import Look
from finetune.plan import (
    Budget,
    Dropped,
    Memory,
    Plan,
    as_dict,
    as_text,
    dropped_lines,
    estimate,
    make_plan,
    shape_of,
)
from finetune.recipe import Recipe
from finetune.rows import Problem, Row
from finetune.run_folder import (
    CHECKPOINTS,
    VALIDATION,
    Run,
    check_output,
    check_same,
    locked,
    read_log,
    read_run,
    told_when_full,
    write_json,
    write_run,
)
from finetune.shelf import shelf_of
from vidqa import adapters, model_card
from vidqa.boxes import family_of
from vidqa.children import usable_cpus
from vidqa.errors import MissingExtra, NothingFound, UsageError
from vidqa.model_card import ModelCard
from vidqa.weights import copy_companions, find_weights, hub_name, revision_of

if TYPE_CHECKING:
    from finetune.fit import Fitted

_VERSIONS = ("vidqa", "torch", "transformers", "peft", "accelerate")
_PROBLEMS_NAMED = 5
_SAVING = "saving"

Tell = Callable[[dict[str, Any]], None]
# A stage, what of it is done, and of how much.
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class Order:
    """What is to be trained on what, and where it goes."""

    data: tuple[Path, ...]
    model: str
    output: Path
    recipe: Recipe
    eval_data: tuple[Path, ...] = ()
    format: str | None = None
    media_dir: Path | None = None
    hub: str = "huggingface"


@dataclass(frozen=True, slots=True)
class Prepared:
    """Rows as they will be seen, and what training on them will take.

    `parameters` are (trained, all) weights of each component, `seconds` a guess.
    """

    folder: Path
    encoder: Encoder
    plan: Plan
    held_out_plan: Plan
    files: tuple[adapters.DataFile, ...]
    parameters: dict[str, tuple[int, int]]
    memory: Memory
    seconds: float

    @property
    def rows(self) -> RowDataset:
        return _rows(self.plan, self.encoder)

    @property
    def held_out(self) -> RowDataset:
        return _rows(self.held_out_plan, self.encoder)

    @property
    def lines(self) -> list[str]:
        """The plan for people."""
        lines = as_text(self.plan, self.parameters, self.memory, self.seconds)
        held = self.held_out_plan
        lines.insert(1, f"held out  {len(held.used):,} rows, {len(held.dropped):,} dropped")
        return lines + dropped_lines(held)

    @property
    def figures(self) -> dict[str, Any]:
        """The plan for programs."""
        told = as_dict(self.plan, self.parameters, self.memory, self.seconds)
        return told | {"held_out": as_dict(self.held_out_plan)}


def _rows(plan: Plan, encoder: Encoder) -> RowDataset:
    return RowDataset([one.row for one in plan.used], encoder, [one.look for one in plan.used])


@dataclass(frozen=True, slots=True)
class Outcome:
    """How it went. `stopped`: it goes on with --resume; `commands` use what was made."""

    step: int
    steps: int
    stopped: bool
    ended_early: bool
    before: dict[str, float]
    after: dict[str, float]
    commands: tuple[str, ...] = ()
    seconds: float = 0.0
    notes: tuple[str, ...] = field(default=())


def is_first_process() -> bool:
    return int(os.environ.get("RANK", "0")) == 0


def check_adapter_name(output: Path) -> None:
    """Raises UsageError when the folder's name cannot be an adapter's."""
    adapters.check_name(output.absolute().name)


def check_machine(recipe: Recipe) -> None:
    """Raises ModelError or MissingExtra when this machine cannot train so: before any waiting."""
    if importlib.util.find_spec("peft") is None or importlib.util.find_spec("accelerate") is None:
        raise MissingExtra("peft and accelerate are not installed; uv pip install 'vidqa[train]'")
    from finetune.model import attention_of, check_qlora

    if recipe.qlora:
        check_qlora()
    attention_of(recipe)


def look_of(recipe: Recipe) -> Look:
    """What of a recipe decides pixels and prompt; it goes with the adapter."""
    return Look(
        layout=recipe.layout,  # type: ignore[arg-type]
        cite=recipe.cite,
        max_frames=recipe.max_frames,
        frames_per_moment=recipe.frames_per_moment,
        max_pixels=recipe.max_pixels,
        sample_fps=recipe.sample_fps,
    )


def resumed(
    output: Path, config: str | None, flags: dict[str, object], given: dict[str, Any]
) -> Order:
    """The order of the run in `output`; `given` (data, eval_data, model ...) is what was repeated.

    Raises UsageError where the folder holds no run, or another one than is asked for.
    """
    begun = check_output(output, resume=True)
    assert begun is not None
    recipe = Recipe.load(config, flags, begun.recipe)
    order = Order(
        data=tuple(given.get("data") or map(Path, begun.data)),
        eval_data=tuple(given.get("eval_data") or map(Path, begun.eval_data)),
        model=given.get("model") or begun.model,
        output=output,
        recipe=recipe,
        format=given.get("format") or begun.format,
        media_dir=given.get("media_dir") or (Path(begun.media_dir) if begun.media_dir else None),
        hub=given.get("hub", "huggingface"),
    )
    check_same(output, begun, run_of(order))
    return order


def run_of(order: Order, prepared: Prepared | None = None) -> Run:
    """What run.json tells of an order; files that were read for it may have changed since."""
    from vidqa.adapter_weights import base_digest

    read = prepared.files if prepared else ()
    recipe = order.recipe
    known = {one.file: one.sha256 for one in read}

    def digests(paths: Sequence[Path]) -> dict[str, str]:
        return {str(one): known.get(str(one)) or file_digest(one) for one in paths}

    processes = int(os.environ.get("WORLD_SIZE", "1"))
    return Run(
        recipe=recipe.public(),
        model=order.model,
        data=digests(order.data),
        eval_data=digests(order.eval_data),
        batch=recipe.batch * recipe.accumulation * processes,
        format=order.format,
        media_dir=str(order.media_dir) if order.media_dir else None,
        base_digest=base_digest(prepared.folder) if prepared else "",
    )


# ---------------------------------------------------------------- before


def prepare_rows(
    order: Order,
    on_stage: Callable[[str], None] = lambda stage: None,
    on_progress: Progress = lambda stage, done, total: None,
) -> Prepared:
    """Reads, checks, splits and plans the rows; those that are not fit are dropped with a reason.

    `on_progress` hears of the media that are decoded, which may take hours, and of the rows.
    Raises UsageError with file and line of media that cannot be read and of held-out videos that
    are trained on, NothingFound when no row is left.
    """
    from finetune.check import sift
    from finetune.cost import guess_seconds, training_of
    from finetune.model import sketch
    from finetune.split import split

    rows, files = _read(order, order.data)
    held_out, held_files = _read(order, order.eval_data)
    sifted = sift(rows, held_out)
    if sifted.errors:
        raise UsageError(_problems(sifted.errors))
    rows, held_out = list(sifted.rows), list(sifted.held_out)
    if not order.eval_data and order.recipe.eval_fraction:
        rows, held_out = split(rows, order.recipe.eval_fraction, order.recipe.seed)
    folder = find_weights(order.model, order.hub)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    family = family_of(str(config.get("model_type")))
    recipe = order.recipe
    counted = sketch(folder, recipe)
    shelf = shelf_of(recipe.cache, recipe.cache_gib)
    encoder = Encoder(load_processor(str(folder)), look_of(recipe), family, shelf)
    budget = Budget(max_tokens=recipe.max_row_tokens)
    on_stage(f"looking at {len(rows) + len(held_out):,} rows")
    plan, held_out_plan = (
        _with(
            dropped,
            make_plan(
                group,
                encoder,
                budget,
                functools.partial(on_progress, f"{which} rows"),
                workers=_readers() if shelf else 0,
                on_media=functools.partial(on_progress, f"media of {which} rows"),
            ),
        )
        for which, group, dropped in (
            ("training", rows, sifted.dropped),
            ("held-out", held_out, sifted.held_out_dropped),
        )
    )
    _check_used(plan, "no row can be trained on")
    if order.eval_data:
        _check_used(held_out_plan, "no row of --eval-data can be measured on")
    return Prepared(
        folder=folder,
        encoder=encoder,
        plan=plan,
        held_out_plan=held_out_plan,
        files=tuple(files + held_files),
        parameters=counted.parameters,
        memory=estimate(
            shape_of(counted.config), counted.parameters, plan, training_of(recipe, counted)
        ),
        seconds=guess_seconds(plan, held_out_plan, counted, recipe),
    )


def _with(dropped: Sequence[Problem], plan: Plan) -> Plan:
    """A plan that tells of the rows that were left out before it was made as well."""
    before = (Dropped(one.origin, one.message) for one in dropped)
    return replace(plan, dropped=(*before, *plan.dropped))


def _check_used(plan: Plan, nothing: str) -> None:
    if not plan.used:
        first = plan.dropped[0]
        raise NothingFound(f"{nothing}; the first, {first.origin}: {first.reason}")


def _readers() -> int:
    """Processes that read videos beside a training process; several of those share the cores."""
    return max(1, (usable_cpus() - 1) // int(os.environ.get("WORLD_SIZE", "1")))


def _read(order: Order, paths: Sequence[Path]) -> tuple[list[Row], list[adapters.DataFile]]:
    from finetune.formats import read

    rows: list[Row] = []
    files = []
    for path in paths:
        found = read(path, order.format, order.media_dir)
        rows += found
        files.append(adapters.DataFile(str(path), file_digest(path), len(found)))
    return rows, files


def _problems(problems: Sequence[Problem]) -> str:
    some = "; ".join(f"{one.origin}: {one.message}" for one in problems[:_PROBLEMS_NAMED])
    more = f" and {len(problems) - _PROBLEMS_NAMED} more" if len(problems) > _PROBLEMS_NAMED else ""
    return f"{some}{more}; `vidqa finetune check FILE` lists all that is wrong with the data"


# ---------------------------------------------------------------- the training


def train(
    order: Order,
    prepared: Prepared,
    tell: Tell = lambda line: None,
    on_stage: Callable[[str], None] = lambda stage: None,
    on_stop: Callable[[], None] = lambda: None,
) -> Outcome:
    """Trains and saves; goes on from the last whole checkpoint where the folder has one.

    `tell` is given each line of the log, `on_stop` is called when a signal was heard.
    """
    from finetune.fit import fit
    from finetune.model import load_base, prepare

    first = is_first_process()
    with locked(order.output) if first else nullcontext(), told_when_full(order.output):
        if first:
            _enter(order, prepared)
        began = time.monotonic()
        on_stage(f"loading {order.model}")
        _seed(order.recipe.seed)
        model = prepare(load_base(prepared.folder, order.recipe), order.recipe)
        fitted = fit(
            model,
            prepared.rows,
            [one.measure.tokens for one in prepared.plan.used],
            prepared.held_out if prepared.held_out_plan.used else None,
            prepared.encoder.pad_id,
            order.recipe,
            order.output,
            tell,
            on_stop,
        )
        before, after = _held_out_figures(read_log(order.output), fitted) if first else ({}, {})
        outcome = Outcome(
            step=fitted.step,
            steps=fitted.steps,
            stopped=fitted.stopped,
            ended_early=fitted.ended_early,
            before=before,
            after=after,
            seconds=time.monotonic() - began,
        )
        if fitted.stopped:
            return outcome
        on_stage(f"saving to {order.output}")
        _save(order, prepared, fitted)
        if first:
            _keep_validation(order, prepared)
        outcome = replace(outcome, commands=commands(order), notes=notes(order))
        if first:
            _finish(order, prepared, outcome)
        return outcome


def _enter(order: Order, prepared: Prepared) -> None:
    """Makes the folder this run's, or sees that it is: rows were prepared while it was open to
    others. Raises UsageError where another run has come between.
    """
    run = run_of(order, prepared)
    begun = read_run(order.output)
    if begun is None:
        write_run(order.output, run)
    elif begun.finished is not None:
        raise UsageError(f"{order.output}: another run has finished in it; name another --output")
    else:
        check_same(order.output, begun, run)


def _seed(seed: int) -> None:
    from vidqa.compat import declare_torchvision_operators

    declare_torchvision_operators()
    from transformers import set_seed

    set_seed(seed)


def _held_out_figures(
    lines: Sequence[dict[str, Any]], fitted: Fitted
) -> tuple[dict[str, float], dict[str, float]]:
    judged = {line["step"]: line for line in lines if "eval_loss" in line}
    kept = fitted.best_step or max(judged, default=0)
    names = {"eval_loss": "loss", "eval_token_accuracy": "token_accuracy"}
    before, after = (
        {name: judged[step][key] for key, name in names.items()} if is_told else {}
        for step, is_told in ((0, 0 in judged), (kept, kept > 0))
    )
    return before, after


# ---------------------------------------------------------------- after


def _save(order: Order, prepared: Prepared, fitted: Fitted) -> None:
    """The weights, in a folder of their own first: an adapter is there whole or not at all."""
    import torch

    draft = order.output / _SAVING
    trainer = fitted.trainer
    sharded = trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled
    if order.recipe.full and not sharded:
        stored = json.loads((prepared.folder / "config.json").read_text(encoding="utf-8"))
        name = stored.get("dtype") or stored.get("torch_dtype") or "bfloat16"
        trainer.model.to(getattr(torch, str(name)))  # type: ignore[union-attr]
        trainer.model.config.dtype = getattr(torch, str(name))  # type: ignore[union-attr]
    trainer.save_model(str(draft))
    trainer.accelerator.wait_for_everyone()
    if not is_first_process():
        return
    for unwanted in ("training_args.bin", "README.md"):
        (draft / unwanted).unlink(missing_ok=True)
    if order.recipe.full:
        config = (draft / "config.json").read_bytes()
        copy_companions(prepared.folder, draft)
        (draft / "config.json").write_bytes(config)  # of the type that was saved
    else:
        path = draft / adapters.CONFIG
        saved = json.loads(path.read_text(encoding="utf-8"))
        name, revision = hub_name(order.model)
        write_json(path, saved | {"base_model_name_or_path": name, "revision": revision})
    for one in draft.iterdir():
        # safetensors leaves its files to their owner alone; an engine may be somebody else's.
        one.chmod(0o644)
        one.replace(order.output / one.name)
    draft.rmdir()


def _keep_validation(order: Order, prepared: Prepared) -> None:
    """The rows that were split off the data: nobody else knows which these are."""
    from finetune.formats import write

    rows = [one.row for one in prepared.held_out_plan.used]
    if rows and not order.eval_data:
        write(rows, order.output / VALIDATION, "vidqa")


def _finish(order: Order, prepared: Prepared, outcome: Outcome) -> None:
    """Card, curves and report; then the checkpoints are no longer needed."""
    from finetune.training_report import TrainingReport, draw_curves, page

    output = order.output
    if order.recipe.full:
        model_card.write(output, ModelCard(**_made_of(order, prepared, outcome)))
    else:
        adapters.write(output, card(order, prepared, outcome))
    lines = read_log(output)
    picture = output / "loss.png"
    drawn = draw_curves(lines, picture)
    told = {
        "name": output.absolute().name,
        "model": order.model,
        "kind": order.recipe.kind,
        "steps": outcome.step,
        "ended_early": outcome.ended_early,
        "seconds": round(outcome.seconds, 1),
        "rows": len(prepared.plan.used),
        "held_out": len(prepared.held_out_plan.used),
        "plan": prepared.figures,
        "before": outcome.before,
        "after": outcome.after,
    }
    write_json(output / "training.json", told)
    facts = {name: told[name] for name in ("model", "kind", "steps", "seconds", "rows", "held_out")}
    report = TrainingReport(
        title=f"{output.absolute().name}: {order.recipe.kind} on {order.model}",
        summary=summary_lines(outcome),
        before=outcome.before,
        after=outcome.after,
        tables={
            "Run": facts
            | {one.file: f"{one.rows} rows, {one.sha256[:12]}" for one in prepared.files},
            "Recipe": order.recipe.public(),
            "Versions": versions(),
        },
        commands=[*outcome.commands, *outcome.notes],
        plan=prepared.lines,
        curves=picture.read_bytes() if drawn else b"",
    )
    (output / "report.html").write_text(page(report), encoding="utf-8")
    begun = read_run(output)
    assert begun is not None
    write_run(output, replace(begun, finished=outcome.step))
    shutil.rmtree(output / CHECKPOINTS, ignore_errors=True)


def card(order: Order, prepared: Prepared, outcome: Outcome) -> adapters.AdapterCard:
    """What `adapter.json` tells of the adapter."""
    recipe = order.recipe
    config = adapters.read_config(order.output)
    base = json.loads((prepared.folder / "config.json").read_text(encoding="utf-8"))
    targets = config["target_modules"]
    return adapters.AdapterCard(
        name=order.output.absolute().name,
        base_model_type=str(base.get("model_type", "")),
        rank=recipe.rank,
        alpha=recipe.alpha,
        targets=targets if isinstance(targets, str) else tuple(sorted(targets)),
        trains_vision=recipe.train_vision,
        **_made_of(order, prepared, outcome),
    )


def _made_of(order: Order, prepared: Prepared, outcome: Outcome) -> dict[str, Any]:
    """What an adapter and a whole model both tell of themselves."""
    from vidqa.adapter_weights import base_digest

    return {
        "base_model": order.model,
        "base_digest": base_digest(prepared.folder),
        "base_revision": revision_of(prepared.folder),
        "look": asdict(look_of(order.recipe)),
        "box_family": prepared.encoder.family,
        "data": prepared.files,
        "versions": versions(),
        "metrics": {"before": outcome.before, "after": outcome.after},
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def versions() -> dict[str, str]:
    found = {}
    for name in _VERSIONS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def commands(order: Order) -> tuple[str, ...]:
    """The exact commands that use what was made."""
    output, recipe = order.output, order.recipe
    where = shlex.quote(str(output))
    kept = output / VALIDATION
    files = order.eval_data or ([kept] if kept.exists() else [])
    measured_on = "".join(f" --data {shlex.quote(str(one))}" for one in files)
    if order.eval_data:  # what was kept by us is named as it is read
        measured_on += f" --format {order.format}" if order.format else ""
        folder = order.media_dir
        measured_on += f" --media-dir {shlex.quote(str(folder))}" if folder else ""
    if recipe.full:
        results = shlex.quote(str(output / "evaluation"))
        measure = f"vidqa finetune eval --model {where}{measured_on} --output {results}"
        return (
            *([measure] if files else []),
            f"vidqa ask --model {where} 'your question'",
            f"vidqa serve --model {where}",
            f"vllm serve {where}",
        )
    model, name = shlex.quote(order.model), output.absolute().name
    measure = f"vidqa finetune eval --model {model} --adapter {where}{measured_on}"
    base, revision = hub_name(order.model)
    served = shlex.quote(base) + (f" --revision {shlex.quote(revision)}" if revision else "")
    vision = " --enable-tower-connector-lora" if recipe.train_vision else ""
    return (
        *([measure] if files else []),
        f"vidqa ask --model {model} --adapter {where} 'your question'",
        f"vidqa serve --model {model} --adapter {name}={where}",
        f"vidqa infer --model {model} --adapter {where} --data FILE",
        f"vllm serve {served} --enable-lora --max-lora-rank {recipe.rank}{vision} "
        f"--lora-modules {name}={where}",
    )


def notes(order: Order) -> tuple[str, ...]:
    """What one must know to serve it."""
    if order.recipe.train_vision and not order.recipe.full:
        return (
            "The vision tower has an adapter too: vLLM serves it only with "
            "--enable-tower-connector-lora, and without it answers as if that part were untrained.",
        )
    return ()


def summary_lines(outcome: Outcome) -> list[str]:
    """How it went, for people."""
    why = ", stopped early as the held-out loss no longer fell" if outcome.ended_early else ""
    lines = [f"{outcome.step} of {outcome.steps} steps{why}"]
    if outcome.before and outcome.after:
        (loss, right), (new_loss, new_right) = (
            (one["loss"], one["token_accuracy"]) for one in (outcome.before, outcome.after)
        )
        lines.append(
            f"held-out loss {loss:.4f} -> {new_loss:.4f}, "
            f"right tokens {right:.3f} -> {new_right:.3f}"
        )
    return lines
