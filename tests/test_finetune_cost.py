"""What a training is said to take: more for more to do, and the recipe in the memory's terms."""

from __future__ import annotations

from typing import Any

import pytest
from training_parts import TINY

from finetune.cost import guess_seconds, training_of
from finetune.dataset import Measure
from finetune.layout import Look
from finetune.model import sketch
from finetune.plan import Budget, Plan, Planned
from finetune.recipe import Recipe
from finetune.rows import Origin, Row

LOOK = Look()


@pytest.fixture(autouse=True)
def _same_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten million operations a second, and one process."""
    monkeypatch.setattr("finetune.cost._rate", lambda device, recipe: 1e7)
    monkeypatch.delenv("WORLD_SIZE", raising=False)


def plan_of(*lengths: int) -> Plan:
    """Rows of so many tokens; they all show as much."""
    used = [
        Planned(Row((), Origin("rows.jsonl", n)), LOOK, Measure(length, 10, 24, 384), 4, 9408)
        for n, length in enumerate(lengths, start=1)
    ]
    return Plan(LOOK, Budget(4096), tuple(used), ())


NONE = plan_of()
ROWS = plan_of(*[100] * 32)
SHORT_AND_LONG = plan_of(*[100, 300] * 16)
LONG = plan_of(*[300] * 32)


def seconds(plan: Plan = ROWS, held_out: Plan = NONE, **changes: Any) -> float:
    recipe = Recipe(**{"batch": 4, "accumulation": 1, "epochs": 2.0} | changes)
    return guess_seconds(plan, held_out, sketch(TINY, recipe), recipe)


# ---------------------------------------------------------------- time


def test_twice_the_epochs_take_twice_as_long() -> None:
    twice = seconds(epochs=4.0, feature_gib=0.0)
    assert twice == pytest.approx(2 * seconds(epochs=2.0, feature_gib=0.0))


def test_what_a_frozen_tower_saw_is_paid_for_in_the_first_epoch_alone() -> None:
    first, later = (
        seconds(epochs=epochs, feature_gib=0.0) - seconds(epochs=epochs) for epochs in (1.0, 4.0)
    )
    assert first == pytest.approx(0.0)
    assert later > 0.1 * seconds(epochs=4.0)


def test_a_tower_in_training_looks_in_every_epoch() -> None:
    kept, none = (seconds(train_vision=True, feature_gib=gib) for gib in (2.0, 0.0))
    assert kept == none > seconds()


def test_longer_rows_take_longer() -> None:
    short, both, long = (seconds(plan, batch=1) for plan in (ROWS, SHORT_AND_LONG, LONG))
    assert short < both < long


def test_a_batch_takes_as_long_as_if_all_its_rows_were_its_longest() -> None:
    """Of 16 rows of which each second is long, one is; of one row, half the time."""
    assert seconds(SHORT_AND_LONG, batch=16) == pytest.approx(seconds(LONG, batch=16), rel=1e-3)
    mean = (seconds(ROWS, batch=1) + seconds(LONG, batch=1)) / 2
    assert seconds(SHORT_AND_LONG, batch=1) == pytest.approx(mean)


def test_rows_of_like_length_share_the_batches_of_a_step() -> None:
    together = seconds(SHORT_AND_LONG, batch=2, accumulation=16)
    mean = (seconds(ROWS, batch=2, accumulation=16) + seconds(LONG, batch=2, accumulation=16)) / 2
    assert together == pytest.approx(mean)


def test_evaluations_take_time_and_more_of_them_more() -> None:
    seldom, often = (seconds(held_out=ROWS, eval_steps=steps) for steps in (8, 2))
    assert seconds() < seldom < often


def test_held_out_rows_that_are_longer_take_longer() -> None:
    assert seconds(held_out=ROWS) < seconds(held_out=LONG)


@pytest.mark.parametrize("more", [{"full": True}, {"gradient_checkpointing": "always"}])
def test_another_pass_over_the_weights_takes_longer(more: dict[str, Any]) -> None:
    assert seconds(gradient_checkpointing="never") < seconds(
        **{"gradient_checkpointing": "never"} | more
    )


def test_two_processes_take_half_as_long(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = seconds(held_out=ROWS, feature_gib=0.0, eval_steps=4, max_steps=16)
    monkeypatch.setenv("WORLD_SIZE", "2")
    together = seconds(held_out=ROWS, feature_gib=0.0, eval_steps=2, max_steps=8)
    assert together == pytest.approx(alone / 2)


# ---------------------------------------------------------------- memory


@pytest.mark.parametrize(
    ("changes", "weight", "compute", "rank"),
    [
        ({"precision": "fp32"}, 4.0, 4.0, 8),
        ({"precision": "bf16"}, 2.0, 2.0, 8),
        ({"precision": "bf16", "full": True}, 4.0, 2.0, 0),
    ],
    ids=["float32", "an adapter in bf16", "a whole model in bf16 over float32"],
)
def test_weights_are_as_wide_as_the_recipe_holds_and_computes_them(
    changes: dict[str, Any], weight: float, compute: float, rank: int
) -> None:
    recipe = Recipe(rank=8, **changes)
    found = training_of(recipe, sketch(TINY, recipe))
    assert (found.weight_bytes, found.compute_bytes, found.rank) == (weight, compute, rank)
    assert found.trained_bytes == 4.0


def test_weights_in_4_bits_are_those_of_the_model() -> None:
    recipe = Recipe(qlora=True)
    counted = sketch(TINY, recipe)
    assert training_of(recipe, counted).in_4_bits == counted.in_4_bits > 0


def test_what_else_decides_the_memory_is_the_recipe_s() -> None:
    recipe = Recipe(batch=3, dropout=0.0, train_vision=True, gradient_checkpointing="always")
    found = training_of(recipe, sketch(TINY, recipe))
    assert (found.batch, found.dropout) == (3, False)
    assert found.trains_vision
    assert found.checkpointing
