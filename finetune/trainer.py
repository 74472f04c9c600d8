"""transformers' Trainer, with this project's loss, rates and checkpoints, and what watches it.

What differs from the Trainer as it is: the loss is summed over the answers' tokens of all batches
and processes of a step; each component of the model has its rate; an evaluation weighs tokens,
not batches; a checkpoint counts when a mark says that it is whole; a signal ends the training with
a checkpoint.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vidqa.compat import declare_torchvision_operators

declare_torchvision_operators()

from transformers import (  # noqa: E402
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from finetune.dataset import IGNORE  # noqa: E402
from finetune.features import with_features  # noqa: E402
from finetune.loss import answer_loss, answer_scores  # noqa: E402
from finetune.model import checkpoints_activations, parameter_groups, precision_of  # noqa: E402
from finetune.processes import process_count  # noqa: E402
from finetune.recipe import Recipe, rows_per_step  # noqa: E402
from finetune.run_folder import CHECKPOINTS, mark_whole  # noqa: E402
from finetune.sampler import StepsByLength  # noqa: E402

# Evaluations in a run, and lines in its log, where the recipe leaves it open.
EVALUATIONS = 10
LOG_LINES = 200
# The last ones, and the best beside them if it is older.
KEPT_CHECKPOINTS = 3


@dataclass(frozen=True, slots=True)
class Schedule:
    """Steps of a run: all, those of warm-up, and from one log line or evaluation to the next."""

    steps: int
    warmup: int
    log_every: int
    eval_every: int


def schedule_of(recipe: Recipe, rows: int, processes: int = 1) -> Schedule:
    """How many steps a recipe makes of so many rows."""
    batches = math.ceil(rows / (recipe.batch * processes))
    per_epoch = math.ceil(batches / recipe.accumulation)
    steps = recipe.max_steps or math.ceil(per_epoch * recipe.epochs)
    return Schedule(
        steps=steps,
        warmup=math.ceil(steps * recipe.warmup),
        log_every=max(1, steps // LOG_LINES),
        eval_every=recipe.eval_steps or max(1, math.ceil(steps / EVALUATIONS)),
    )


def arguments(
    recipe: Recipe, output: Path, schedule: Schedule, *, evaluates: bool, resumes: bool
) -> TrainingArguments:
    """The recipe in the Trainer's words."""
    on_card = torch.cuda.is_available()
    several_cpus = process_count() > 1 and not on_card
    checkpointing = checkpoints_activations(recipe)
    made = TrainingArguments(
        output_dir=str(output / CHECKPOINTS),
        per_device_train_batch_size=recipe.batch,
        per_device_eval_batch_size=recipe.batch,
        gradient_accumulation_steps=recipe.accumulation,
        max_steps=schedule.steps,
        learning_rate=recipe.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=schedule.warmup,
        weight_decay=recipe.weight_decay,
        max_grad_norm=recipe.max_grad_norm,
        bf16=precision_of(recipe) == "bf16",
        gradient_checkpointing=checkpointing,
        # The other way needs inputs with gradients, which frozen embeddings do not give.
        gradient_checkpointing_kwargs={"use_reentrant": False} if checkpointing else None,
        logging_steps=schedule.log_every,
        logging_first_step=True,
        # A loss that is not a number shall be seen, not replaced by the mean of those before it.
        logging_nan_inf_filter=False,
        eval_strategy="steps" if evaluates else "no",
        eval_steps=schedule.eval_every if evaluates else None,
        eval_on_start=evaluates and not resumes,
        save_strategy="steps",
        save_steps=schedule.eval_every,
        save_total_limit=KEPT_CHECKPOINTS,
        load_best_model_at_end=evaluates,
        metric_for_best_model="eval_loss" if evaluates else None,
        greater_is_better=False if evaluates else None,
        seed=recipe.seed,
        data_seed=recipe.seed,
        dataloader_num_workers=recipe.loader_workers,
        dataloader_persistent_workers=recipe.loader_workers > 0,
        dataloader_pin_memory=on_card,
        remove_unused_columns=False,
        label_names=["labels"],
        report_to="none",
        disable_tqdm=True,
        log_level="error",
        log_level_replica="error",
        # A batch without videos leaves a trained tower without gradients.
        ddp_find_unused_parameters=recipe.train_vision,
        # Several processes without cards: unless told so, accelerate takes them for strangers.
        use_cpu=several_cpus,
        ddp_backend="gloo" if several_cpus else None,
    )
    # Several cards in one process would be DataParallel, which cuts batches along the wrong axis;
    # `accelerate launch` uses them all.
    made._n_gpu = min(made.n_gpu, 1)
    return made


class VlmTrainer(Trainer):
    """See the module's docstring. `tokens` counts those of this process that were trained on.

    `lengths` are the tokens of each row that is trained on.
    """

    def __init__(self, *, recipe: Recipe, lengths: Sequence[int], **given: Any) -> None:
        super().__init__(**given)
        self.recipe = recipe
        self._lengths = lengths
        self.model_accepts_loss_kwargs = True  # so that labels are counted over a whole step
        self.loss_is_scaled_for_ga = True
        self.tokens = torch.zeros((), dtype=torch.long, device=self.args.device)
        self.remove_callback(PrinterCallback)

    def _get_train_sampler(self, train_dataset: Any = None) -> StepsByLength:
        self._order = StepsByLength(self._lengths, rows_per_step(self.recipe), self.recipe.seed)
        return self._order

    def create_optimizer(self, model: Any = None) -> Any:
        if self.optimizer is None:
            target: Any = self.model if model is None else model
            kind, options = self.get_optimizer_cls_and_kwargs(self.args, target)
            self.optimizer = kind(parameter_groups(target, self.recipe), **options)
        return self.optimizer

    def compute_loss(
        self,
        model: Any,
        inputs: Mapping[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        if num_items_in_batch is None:
            num_items_in_batch = (inputs["labels"][:, 1:] != IGNORE).sum()
        self.tokens += inputs["attention_mask"].sum()
        loss = answer_loss(model, with_features(inputs), num_items_in_batch)
        # Gradients of several processes are averaged; the loss is theirs together.
        return loss * self.accelerator.num_processes

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: Any = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Loss and right tokens of the held-out answers, each token counting the same."""
        began = time.monotonic()
        model: Any = self.model_wrapped if self.is_deepspeed_enabled else self.model
        model.eval()
        sums = torch.zeros(3, dtype=torch.float64)
        with torch.no_grad(), self.compute_loss_context_manager():
            for batch in self.get_eval_dataloader(eval_dataset):
                scores = answer_scores(model, with_features(self._prepare_inputs(batch)))
                # Rows that were repeated to give every process a batch count once.
                sums += self.accelerator.gather_for_metrics(scores).sum(0).double().cpu()
        loss, tokens, right = sums.tolist()
        metrics = {
            f"{metric_key_prefix}_loss": loss / max(tokens, 1),
            f"{metric_key_prefix}_token_accuracy": right / max(tokens, 1),
            f"{metric_key_prefix}_seconds": time.monotonic() - began,
        }
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics

    def floating_point_ops(self, inputs: Any) -> int:
        """Nobody asks for them, and counting walks through the whole model at each step."""
        return 0

    def _run_epoch(self, **given: Any) -> None:  # type: ignore[override]
        """A run that had come to its end when it was killed takes no further step."""
        if not self.control.should_training_stop:
            # accelerate does not reach it where several processes go on within an epoch.
            self._order.set_epoch(given["epoch"])
            super()._run_epoch(**given)  # type: ignore[no-untyped-call]

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            mark_whole(Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}")


# ---------------------------------------------------------------- what watches the training


class GoingOn(TrainerCallback):
    """Puts right what a checkpoint tells of a run, where that ended or its folder has moved.

    The Trainer would take a step more, and forget a best checkpoint that is not where it was.
    """

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step >= state.max_steps:
            control.should_training_stop = True
        if state.best_global_step:
            best = Path(str(args.output_dir)) / f"checkpoint-{state.best_global_step}"
            if best.is_dir():
                state.best_model_checkpoint = str(best)
            else:
                state.best_model_checkpoint = state.best_metric = state.best_global_step = None


class Patience(TrainerCallback):
    """Ends a training whose held-out loss has not fallen for so many evaluations.

    It counts in the history that checkpoints carry, so a run that goes on counts on.
    """

    def __init__(self, evaluations: int) -> None:
        self.evaluations = evaluations
        self.ended = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.on_evaluate(args, state, control)

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        losses = [one["eval_loss"] for one in state.log_history if "eval_loss" in one]
        if not losses or not self.evaluations:
            return
        if len(losses) - 1 - losses.index(min(losses)) >= self.evaluations:
            control.should_training_stop = self.ended = True


class StopOnSignal(TrainerCallback):
    """Ctrl-C and SIGTERM end the training after the step in hand, with a checkpoint.

    A second Ctrl-C ends it at once. All processes of a training stop at the same step.
    """

    def __init__(self, on_stop: Callable[[], None]) -> None:
        self._wanted = False
        self._on_stop = on_stop
        self.stopped = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        former = {one: signal.signal(one, self._note) for one in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for one, handler in former.items():
                signal.signal(one, handler)

    def _note(self, number: int, frame: Any) -> None:
        if self._wanted and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._wanted = True
        self._on_stop()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._anyone(args) and state.global_step < state.max_steps:
            control.should_save = control.should_training_stop = self.stopped = True

    def _anyone(self, args: Any) -> bool:
        if args.world_size == 1:
            return self._wanted
        wanted = torch.tensor(float(self._wanted), device=args.device)
        torch.distributed.all_reduce(wanted)
        return bool(wanted)


class Journal(TrainerCallback):
    """Tells `tell` of each line of the log, of the first process alone.

    A line has `step`, `epoch`, and either `loss`, `learning_rate`, `grad_norm` and
    `tokens_per_second`, or `eval_loss` and `eval_token_accuracy`; `seconds` are since the start,
    or since `first_step` where the run went on from there. Time of evaluations and of checkpoints
    is in `seconds`, and not in `tokens_per_second`.
    """

    def __init__(self, tell: Callable[[dict[str, Any]], None]) -> None:
        self._tell = tell
        self.trainer: VlmTrainer | None = None
        self._began = self._asked = time.monotonic()
        self._trained_seconds = 0.0
        self._tokens = self._first = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._began = self._asked = time.monotonic()
        self._first = state.global_step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._trained_seconds += self._passed()

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._passed()

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._passed()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        tokens = self._tokens_since() if "loss" in (logs or {}) else 0  # of all processes
        if not state.is_world_process_zero or "train_runtime" in (logs or {}):
            return
        line = {"step": state.global_step, "epoch": round(state.epoch or 0.0, 4)}
        line |= {name: value for name, value in (logs or {}).items() if name != "epoch"}
        if "loss" in line:
            line["first_step"] = self._first
            line["tokens_per_second"] = round(tokens / self._seconds_since(), 1)
        line["seconds"] = round(time.monotonic() - self._began, 2)
        self._tell(line)

    def _passed(self) -> float:
        """Seconds since this was last asked."""
        now = time.monotonic()
        passed, self._asked = now - self._asked, now
        return passed

    def _seconds_since(self) -> float:
        """Seconds of training since the last log. A card has only now done what it was given."""
        since = self._trained_seconds + self._passed()
        self._trained_seconds = 0.0
        return max(since, 1e-6)

    def _tokens_since(self) -> int:
        """Tokens of all processes since the last log."""
        assert self.trainer is not None
        every = int(self.trainer.accelerator.reduce(self.trainer.tokens, "sum"))
        since, self._tokens = every - self._tokens, every
        return since
