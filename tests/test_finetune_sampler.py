"""The order of rows: shuffled by the seed, sorted by length within a step."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from accelerate.data_loader import DataLoaderShard
from hypothesis import given
from hypothesis import strategies as st
from training_parts import losses, run

from finetune.sampler import StepsByLength

LENGTHS = st.lists(st.integers(1, 300), min_size=1, max_size=50)
STEPS = st.integers(1, 20)


def steps(order: list[int], rows_per_step: int) -> list[list[int]]:
    return [order[start : start + rows_per_step] for start in range(0, len(order), rows_per_step)]


@given(LENGTHS, STEPS, st.integers(0, 5))
def test_each_step_has_the_rows_that_the_shuffled_order_gives_it(
    lengths: list[int], rows_per_step: int, epoch: int
) -> None:
    unsorted = StepsByLength([0] * len(lengths), rows_per_step, seed=3)
    by_length = StepsByLength(lengths, rows_per_step, seed=3)
    for one in (unsorted, by_length):
        one.set_epoch(epoch)
    pairs = zip(steps(list(unsorted), rows_per_step), steps(list(by_length), rows_per_step),
                strict=True)  # fmt: skip
    for rows, of_like_length in pairs:
        assert sorted(rows) == sorted(of_like_length)


@given(LENGTHS, STEPS)
def test_the_longest_row_of_a_step_comes_first(lengths: list[int], rows_per_step: int) -> None:
    for step in steps(list(StepsByLength(lengths, rows_per_step, seed=0)), rows_per_step):
        there = [lengths[at] for at in step]
        assert there == sorted(there, reverse=True)


def test_another_epoch_and_another_seed_have_another_order() -> None:
    lengths = list(range(30))
    first, other = (StepsByLength(lengths, 4, seed=seed) for seed in (0, 7))
    orders = [list(first), list(first), list(other)]
    assert all(sorted(one) == lengths for one in orders)
    assert len({tuple(one) for one in orders}) == 3


def test_an_epoch_has_its_order_also_where_a_run_goes_on_with_it() -> None:
    lengths = list(range(30))
    through, resumed = (StepsByLength(lengths, 4, seed=0) for _ in range(2))
    orders = [list(through) for _ in range(3)]
    resumed.set_epoch(2)
    assert list(resumed) == orders[2]


def test_the_training_pads_to_rows_of_like_length(tmp_path: Path) -> None:
    """Each step of QUICK is two batches of two rows."""
    trainer = run(tmp_path / "out").trainer
    wide = [batch["input_ids"].shape[1] for batch in trainer.get_train_dataloader()]
    assert all(first >= second for first, second in zip(wide[::2], wide[1::2], strict=True))
    assert len(set(wide)) > 1


def test_a_run_goes_on_in_the_order_of_its_epoch_where_accelerate_does_not_tell_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in several processes. Steps are of four rows among twelve: the fourth is of epoch 1."""
    run(tmp_path / "out")
    through = losses(tmp_path / "out")
    (newest,) = (tmp_path / "out" / "checkpoints").glob("checkpoint-6")
    shutil.rmtree(newest)
    monkeypatch.setattr(DataLoaderShard, "set_epoch", lambda self, epoch: None)
    run(tmp_path / "out")
    assert [step for step, _ in losses(tmp_path / "out")] == [step for step, _ in through]
    again = [loss for _, loss in losses(tmp_path / "out")]
    assert again == pytest.approx([loss for _, loss in through], rel=1e-4)
