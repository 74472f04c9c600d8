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
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.dataset import Encoder, load_processor
from finetune.finish import commands, finish, keep_validation, notes, save
from finetune.identity import file_digest
from finetune.order import Order, Outcome, Prepared, look_of
from finetune.plan import Budget, Dropped, Plan, estimate, make_plan, shape_of
from finetune.processes import is_first_process, process_count
from finetune.recipe import Recipe, rows_per_step
from finetune.rows import Problem, Row
from finetune.run_folder import (
    Run,
    check_output,
    check_same,
    locked,
    read_log,
    read_run,
    told_when_full,
    write_run,
)
from finetune.shelf import shelf_of
from vidqa import adapters
from vidqa.boxes import family_of
from vidqa.children import usable_cpus
from vidqa.errors import MissingExtra, NothingFound, UsageError
from vidqa.weights import find_weights

if TYPE_CHECKING:
    from finetune.fit import Fitted

_PROBLEMS_NAMED = 5

Tell = Callable[[dict[str, Any]], None]
# A stage, what of it is done, and of how much.
Progress = Callable[[str, int, int], None]


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

    return Run(
        recipe=recipe.public(),
        model=order.model,
        data=digests(order.data),
        eval_data=digests(order.eval_data),
        batch=rows_per_step(recipe),
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
    return max(1, (usable_cpus() - 1) // process_count())


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
            prepared.plan.lengths,
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
        save(order, prepared, fitted)
        if first:
            keep_validation(order, prepared)
        outcome = replace(outcome, commands=commands(order), notes=notes(order))
        if first:
            finish(order, prepared, outcome)
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
