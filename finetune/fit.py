"""The training itself: encoded rows and a model in, trained weights and their history out.

    fitted = fit(model, rows, lengths, held_out, pad_id, recipe, output, tell=print)

Checkpoints, the log and TensorBoard's files go to `output`. Where the rows come from and what
becomes of the weights is `train`'s.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from finetune.dataset import collate
from finetune.features import Room, Rows, Seen, takes_features
from finetune.processes import process_count
from finetune.recipe import Recipe
from finetune.run_folder import LOG, cut_log, drop_broken, last_checkpoint, step_of
from finetune.trainer import (
    GoingOn,
    Journal,
    Patience,
    StopOnSignal,
    VlmTrainer,
    arguments,
    schedule_of,
)
from vidqa.errors import ModelError

TENSORBOARD = "tensorboard"
Tell = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, slots=True)
class Fitted:
    """How a training went. `best_step` is that of the weights kept; None: those of the last step.

    `stopped` tells of a signal: the weights are not final, a checkpoint of `step` is there.
    `trainer` still holds the weights.
    """

    trainer: VlmTrainer
    step: int
    steps: int
    best_step: int | None
    stopped: bool
    ended_early: bool


def fit(
    model: Any,
    rows: Rows,
    lengths: Sequence[int],
    held_out: Rows | None,
    pad_id: int,
    recipe: Recipe,
    output: Path,
    tell: Tell = lambda line: None,
    on_stop: Callable[[], None] = lambda: None,
) -> Fitted:
    """Trains what of `model` is marked as trainable; goes on from a checkpoint where there is one.

    `lengths` are the tokens of each of `rows`. `tell` is given every new line of the log (see
    `Journal`), in the first process. Raises ModelError when the loss is no number.
    """
    schedule = schedule_of(recipe, len(rows), process_count())
    begun = last_checkpoint(output)
    settings = arguments(
        recipe, output, schedule, evaluates=bool(held_out), resumes=begun is not None
    )
    last = step_of(begun) if begun else -1
    if settings.process_index == 0:
        drop_broken(output)
        cut_log(output, last)
    patience, stop = Patience(recipe.patience), StopOnSignal(on_stop)
    with closing(_Log(output, last + 1, settings.process_index == 0, tell)) as log:
        journal = Journal(log)
        trainer = VlmTrainer(
            model=model,
            recipe=recipe,
            lengths=lengths,
            args=settings,
            train_dataset=rows,
            eval_dataset=held_out or None,
            data_collator=functools.partial(collate, pad_id=pad_id),
            callbacks=[GoingOn(), patience, stop, journal],
        )
        journal.trainer = trainer
        if _may_keep_features(trainer, recipe):
            room = Room(recipe.feature_gib * 2**30)
            trainer.train_dataset = Seen(rows, model, room)
            trainer.eval_dataset = Seen(held_out, model, room) if held_out else None
        with stop.listening():
            trainer.train(resume_from_checkpoint=str(begun) if begun else None)
    return Fitted(
        trainer=trainer,
        step=trainer.state.global_step,
        steps=schedule.steps,
        best_step=trainer.state.best_global_step or None,
        stopped=stop.stopped,
        ended_early=patience.ended,
    )


def _may_keep_features(trainer: VlmTrainer, recipe: Recipe) -> bool:
    spread = trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled
    frozen = not recipe.train_vision and recipe.loader_workers == 0
    return frozen and not spread and recipe.feature_gib > 0 and takes_features(trainer.model)


class _Log:
    """Lines of the log: to the file, to TensorBoard, and to whoever listens."""

    def __init__(self, output: Path, first_step: int, writes: bool, tell: Tell) -> None:
        self._tell = tell
        self._board: Any = None
        self._file = None
        if writes:
            self._file = (output / LOG).open("a", encoding="utf-8")
            with suppress(ImportError):  # it is an option of the extra, not a condition
                from torch.utils.tensorboard import SummaryWriter

                # What a run that was killed had written after its checkpoint is written again.
                folder = str(output / TENSORBOARD)
                self._board = SummaryWriter(folder, purge_step=first_step)

    def __call__(self, line: dict[str, Any]) -> None:
        if self._file is not None:
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()
        if self._board is not None:
            for name, value in line.items():
                if name not in ("step", "seconds", "first_step"):
                    self._board.add_scalar(_board_name(name), value, line["step"])
        self._tell(line)
        if not torch.isfinite(torch.tensor(line.get("loss", 0.0))):
            raise ModelError(
                f"step {line['step']}: the loss is {line['loss']}; lower --lr, or train in fp32 "
                "with --precision fp32"
            )

    def close(self) -> None:
        """What is told later, such as of an evaluation of the final weights, is not written."""
        if self._file is not None:
            self._file.close()
        if self._board is not None:
            self._board.close()
        self._file = self._board = None


def _board_name(name: str) -> str:
    return f"eval/{name.removeprefix('eval_')}" if name.startswith("eval_") else f"train/{name}"
