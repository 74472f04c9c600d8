"""The end of a training: its weights, its card, the commands that use it, and its report."""

from __future__ import annotations

import json
import shlex
import shutil
from dataclasses import asdict, replace
from datetime import UTC, datetime
from importlib import metadata
from typing import TYPE_CHECKING, Any

from finetune.order import Order, Outcome, Prepared, look_of
from finetune.processes import is_first_process
from finetune.run_folder import CHECKPOINTS, VALIDATION, read_log, read_run, write_json, write_run
from vidqa import adapters, model_card
from vidqa.model_card import ModelCard
from vidqa.weights import copy_companions, hub_name, revision_of

if TYPE_CHECKING:
    from finetune.fit import Fitted

_VERSIONS = ("vidqa", "torch", "transformers", "peft", "accelerate")
_SAVING = "saving"


def save(order: Order, prepared: Prepared, fitted: Fitted) -> None:
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


def keep_validation(order: Order, prepared: Prepared) -> None:
    """The rows that were split off the data: nobody else knows which these are."""
    from finetune.formats import write

    rows = [one.row for one in prepared.held_out_plan.used]
    if rows and not order.eval_data:
        write(rows, order.output / VALIDATION, "vidqa")


def finish(order: Order, prepared: Prepared, outcome: Outcome) -> None:
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
    """What one must know to use it."""
    recipe = order.recipe
    said = []
    if recipe.train_vision and not recipe.full:
        said.append(
            "The vision tower has an adapter too: vLLM serves it only with "
            "--enable-tower-connector-lora, and without it answers as if that part were untrained."
        )
    if recipe.layout == "plain":
        said.append(
            "It has learned plain questions (layout: plain): vidqa infer asks such, ask and serve "
            "do not."
        )
    return tuple(said)


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
