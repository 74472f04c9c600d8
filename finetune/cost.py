"""What a training will take, told before it: the plan's numbers in the recipe's terms.

A guess of the time: operations by the rule of two for each weight and token, what fills up the
rows of a batch included, at the rate at which this machine multiplies matrices; and what each layer
costs however little there is to do.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch

from finetune.features import takes_features
from finetune.model import Sketch, checkpoints_activations, precision_of
from finetune.plan import Plan, Training, shape_of
from finetune.processes import process_count
from finetune.recipe import Recipe, rows_per_step
from finetune.sampler import StepsByLength
from finetune.trainer import schedule_of

# Of the rate of large matrix products, what training reaches; and seconds of a layer's kernels
# and Python, forward and backward.
_EFFICIENCY = 0.4
_LAYER_SECONDS = {"cpu": 1.5e-3, "cuda": 0.6e-3}
_SIDE = {"cpu": 512, "cuda": 4096}
_RATE_SECONDS = 0.3


def training_of(recipe: Recipe, counted: Sketch) -> Training:
    """What of a recipe and its model decides the memory, on this machine."""
    bf16 = precision_of(recipe) == "bf16"
    return Training(
        batch=recipe.batch,
        weight_bytes=2.0 if bf16 and not recipe.full else 4.0,
        in_4_bits=counted.in_4_bits,
        trained_bytes=4.0,
        compute_bytes=2.0 if bf16 else 4.0,
        rank=0 if recipe.full else recipe.rank,
        dropout=recipe.dropout > 0,
        trains_vision=recipe.train_vision,
        checkpointing=checkpoints_activations(recipe),
    )


def guess_seconds(plan: Plan, held_out: Plan, counted: Sketch, recipe: Recipe) -> float:
    """How long the steps and evaluations take on this machine, as busy as it is now: a guess.

    Of the playground on two cores it says 25 minutes with batches of 16 and 23 with batches of 4,
    at the rates measured before runs of 29 (by the pace of 1,271 of its 2,172 steps) and of 22
    minutes. It was held against no run on a card.
    """
    processes = process_count()
    schedule = schedule_of(recipe, len(plan.used), processes)
    rows = schedule.steps * recipe.batch * recipe.accumulation
    evaluations = 1 + schedule.steps // schedule.eval_every if held_out.used else 0
    seen_once = not recipe.train_vision and recipe.feature_gib > 0 and takes_features(counted)
    language = counted.parameters["language"][1]
    # Forward, and backward through frozen weights as well; their own gradients where all are
    # trained, and forward again where activations are computed twice.
    passes = (3 if recipe.full else 2) + checkpoints_activations(recipe)
    trained_rows = min(rows, len(plan.used)) if seen_once else rows
    judged_rows = len(held_out.used) * (1 if seen_once else evaluations) / processes
    work = 2.0 * language * passes * _trained_tokens(plan, recipe) * rows
    judged_tokens = _filled(held_out.lengths, recipe.batch) * len(held_out.used)
    work += 2.0 * language * judged_tokens * evaluations / processes
    work += _seeing(plan, counted) * trained_rows + _seeing(held_out, counted) * judged_rows
    device = "cuda" if torch.cuda.is_available() else "cpu"
    layers = shape_of(counted.config).layers
    batches = schedule.steps * recipe.accumulation * passes / 2
    batches += evaluations * len(held_out.used) / recipe.batch / processes / 2
    return work / _rate(device, recipe) + batches * layers * 2 * _LAYER_SECONDS[device]


def _trained_tokens(plan: Plan, recipe: Recipe) -> float:
    """Tokens computed for a row that is trained on, in the order of the first epoch."""
    lengths = plan.lengths
    order = StepsByLength(lengths, rows_per_step(recipe), recipe.seed)
    return _filled([lengths[at] for at in order], recipe.batch)


def _filled(lengths: Sequence[int], batch: int) -> float:
    """Tokens computed for a row: all of a batch are as long as its longest."""
    batches = [lengths[start : start + batch] for start in range(0, len(lengths), batch)]
    return sum(max(one) * len(one) for one in batches) / max(len(lengths), 1)


def _seeing(plan: Plan, counted: Sketch) -> float:
    """Operations of tower and merger for a row."""
    patches = _mean([one.measure.patches for one in plan.used])
    tokens = _mean([one.measure.media_tokens for one in plan.used])
    tower, merger = (counted.parameters[part][1] for part in ("vision", "merger"))
    return 2.0 * (tower * patches + merger * tokens)


def _mean(values: list[int]) -> float:
    return sum(values) / max(len(values), 1)


def _rate(device: str, recipe: Recipe) -> float:
    """Operations a second: products of large matrices, the fastest of those within a moment."""
    dtype = torch.bfloat16 if precision_of(recipe) == "bf16" else torch.float32
    one: Any = torch.randn(_SIDE[device], _SIDE[device], device=device, dtype=dtype)
    best = float("inf")
    end = time.perf_counter() + _RATE_SECONDS
    while (began := time.perf_counter()) < end:
        one @ one
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - began)
    return _EFFICIENCY * 2.0 * _SIDE[device] ** 3 / best
