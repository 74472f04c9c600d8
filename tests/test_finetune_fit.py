"""Training on encoded rows: the loss, the curve, what is kept and how a run goes on."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import training_parts
from conftest import REPOSITORY
from torch.nn import functional
from torch.optim.optimizer import register_optimizer_step_pre_hook
from training_parts import PAD, StandIn, free_port, losses, new_model, run

from finetune.dataset import IGNORE, collate
from finetune.features import Room, Seen, with_features
from finetune.loss import answer_loss, answer_scores, label_places
from finetune.model import (
    WHOLE_BESIDE_4_BITS,
    component,
    load_base,
    parameter_groups,
    prepare,
    sketch,
    trainable,
)
from finetune.recipe import Recipe
from finetune.run_folder import last_checkpoint, step_of


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def child(*arguments: str, **environ: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [
            sys.executable,
            "-W",
            "ignore",
            str(REPOSITORY / "tests" / "training_parts.py"),
            *arguments,
        ],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", **environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def gradients(model: Any) -> dict[str, torch.Tensor]:
    found = {
        name: weight.grad.clone()
        for name, weight in model.named_parameters()
        if weight.grad is not None
    }
    model.zero_grad()
    return found


# ---------------------------------------------------------------- the loss


@pytest.mark.parametrize("rows", [1, 3], ids=["one row", "a padded batch"])
def test_logits_at_the_answers_alone_give_the_loss_and_gradients_of_all_logits(rows: int) -> None:
    model = new_model(Recipe(dropout=0.0))
    # A fresh adapter adds nothing, and half of its gradients are zero.
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(0, 0.05)
    batch = collate([StandIn(rows)[at] for at in range(rows)], PAD)

    loss = answer_loss(model, batch, tokens=(batch["labels"] != IGNORE).sum())
    loss.backward()
    ours = gradients(model)
    full = model(**{name: one for name, one in batch.items() if name != "labels"}).logits
    whole = functional.cross_entropy(
        full[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten(), ignore_index=IGNORE
    )
    whole.backward()
    theirs = gradients(model)

    assert loss.item() == pytest.approx(whole.item(), rel=1e-5)
    assert ours.keys() == theirs.keys()
    assert len(ours) > 0
    for name, gradient in ours.items():
        torch.testing.assert_close(gradient, theirs[name], rtol=1e-3, atol=1e-6)


def test_logits_are_made_where_a_label_follows_and_nowhere_else() -> None:
    labels = torch.full((2, 9), IGNORE)
    labels[0, 4:6] = 7
    labels[1, 8] = 7
    assert label_places(labels).tolist() == [3, 4, 7]


def test_two_half_batches_add_up_to_the_gradients_of_one() -> None:
    model = new_model(Recipe(dropout=0.0))
    items = [StandIn(4)[at] for at in range(4)]
    answer_loss(model, collate(items, PAD), tokens=16.0).backward()
    whole = gradients(model)
    for half in (items[:2], items[2:]):
        answer_loss(model, collate(half, PAD), tokens=16.0).backward()
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, whole[name], rtol=1e-3, atol=1e-6)


def test_a_row_without_an_answer_costs_nothing() -> None:
    item = StandIn(1)[0]
    item["labels"] = torch.full_like(item["labels"], IGNORE)
    model = new_model(Recipe(dropout=0.0))
    loss = answer_loss(model, collate([item], PAD), tokens=1.0)
    loss.backward()
    assert loss.item() == 0.0


def test_an_evaluation_counts_tokens_row_by_row() -> None:
    model = new_model(Recipe(dropout=0.0)).eval()
    rows = StandIn(3)
    together = answer_scores(model, collate([rows[0], rows[1], rows[2]], PAD))
    alone = torch.cat([answer_scores(model, collate([rows[at]], PAD)) for at in range(3)])
    assert together[:, 1].tolist() == [5, 2, 3]
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


# ---------------------------------------------------------------- the model


def test_weights_stored_in_float16_are_trained_in_float32() -> None:
    stored = json.loads((training_parts.TINY / "config.json").read_text())["dtype"]
    model = load_base(training_parts.TINY, Recipe())
    assert stored == "float16"
    assert {one.dtype for one in model.parameters()} == {torch.float32}


def test_an_adapter_is_trained_in_the_language_layers_alone() -> None:
    counts = trainable(new_model(Recipe()))
    assert counts["language"][0] > 0
    assert (counts["vision"][0], counts["merger"][0]) == (0, 0)


def test_what_qlora_leaves_out_of_4_bits_stays_in_bf16() -> None:
    model = prepare(load_base(training_parts.TINY, Recipe(precision="bf16")), Recipe(qlora=True))
    kept, trained = (
        {one.dtype for one in model.parameters() if one.requires_grad == trains}
        for trains in (False, True)
    )
    assert (kept, trained) == ({torch.bfloat16}, {torch.float32})


def test_over_weights_in_bf16_an_adapter_learns_with_activations_computed_twice() -> None:
    model = load_base(training_parts.TINY, Recipe(precision="bf16"))
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model = prepare(model, Recipe(qlora=True)).train()
    with torch.autocast("cpu", torch.bfloat16):
        answer_loss(model, collate([StandIn(1)[0]], PAD), tokens=4.0).backward()
    found = gradients(model)
    assert len(found) == len([one for one in model.parameters() if one.requires_grad])
    assert all(one.any() for name, one in found.items() if "lora_B" in name)


def test_weights_in_4_bits_are_those_of_the_language_layers_alone() -> None:
    from torch import nn
    from transformers.quantizers.quantizers_utils import should_convert_module

    model = load_base(training_parts.TINY, Recipe())
    converted = {
        name: one.weight.numel()
        for name, one in model.named_modules()
        if type(one) is nn.Linear and should_convert_module(name, WHOLE_BESIDE_4_BITS)
    }
    assert {name.split(".layers.")[0] for name in converted} == {"model.language_model"}
    assert sketch(training_parts.TINY, Recipe(qlora=True)).in_4_bits == sum(converted.values())
    assert sketch(training_parts.TINY, Recipe()).in_4_bits == 0


def test_components_have_their_own_rates_and_only_matrices_decay() -> None:
    recipe = Recipe(
        train_vision=True,
        full=True,
        learning_rate=1e-3,
        vision_learning_rate=2e-4,
        merger_learning_rate=3e-5,
        weight_decay=0.1,
    )
    groups = parameter_groups(new_model(recipe), recipe)
    rates = {group["component"]: group["lr"] for group in groups}
    assert rates == {"language": 1e-3, "vision": 2e-4, "merger": 3e-5}
    for group in groups:
        decays = {one.ndim > 1 for one in group["params"]}
        assert decays == {group["weight_decay"] > 0}


def test_training_vision_puts_adapters_on_tower_and_merger() -> None:
    model = new_model(Recipe(train_vision=True))
    named = [name for name, one in model.named_parameters() if one.requires_grad]
    assert {component(name) for name in named} == {"language", "merger", "vision"}
    assert not any("patch_embed" in name for name in named)


# ---------------------------------------------------------------- runs


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run from its start to its end."""
    output = tmp_path_factory.mktemp("plain")
    run(output)
    return output


def test_what_is_trained_on_is_learned(plain: Path) -> None:
    curve = [loss for _, loss in losses(plain)]
    assert curve[-1] < 0.7 * curve[0]


def test_two_runs_with_one_seed_have_one_curve(plain: Path, tmp_path: Path) -> None:
    run(tmp_path)
    steps, values = zip(*losses(plain), strict=True)
    again_steps, again = zip(*losses(tmp_path), strict=True)
    assert again_steps == steps
    # MKL's sums depend on where in memory a matrix lies, in the last bits of a float32.
    assert again == pytest.approx(values, rel=1e-6)


def test_another_seed_has_another_curve(plain: Path, tmp_path: Path) -> None:
    run(tmp_path, seed=1)
    assert losses(tmp_path) != losses(plain)


def test_keeping_what_the_tower_saw_changes_nothing(plain: Path, tmp_path: Path) -> None:
    run(tmp_path, feature_gib=0.0)
    for (_, kept), (_, anew) in zip(losses(plain), losses(tmp_path), strict=True):
        assert kept == pytest.approx(anew, rel=1e-4)


def test_computing_activations_twice_changes_nothing(plain: Path, tmp_path: Path) -> None:
    run(tmp_path, gradient_checkpointing="always", max_steps=2, warmup=0.0)
    run(tmp_path / "kept", gradient_checkpointing="never", max_steps=2, warmup=0.0)
    for (_, twice), (_, kept) in zip(losses(tmp_path), losses(tmp_path / "kept"), strict=True):
        assert twice == pytest.approx(kept, rel=1e-4)


def test_a_run_that_was_killed_goes_on_from_its_last_whole_checkpoint(
    plain: Path, tmp_path: Path
) -> None:
    killed = child(str(tmp_path), "{}", "--kill-at", "5")
    killed.communicate(timeout=240)
    assert killed.returncode == -9
    checkpoint = last_checkpoint(tmp_path)
    assert checkpoint is not None
    assert step_of(checkpoint) == 4
    broken = checkpoint.with_name("checkpoint-5")  # as a kill while it is written leaves one
    broken.mkdir()
    (broken / "optimizer.pt").write_bytes(b"half")

    fitted = run(tmp_path)

    assert fitted.step == 6
    assert not broken.exists()
    assert [step for step, _ in losses(tmp_path)] == [1, 2, 3, 4, 5, 6]
    for (_, gone_on), (_, unbroken) in zip(losses(tmp_path), losses(plain), strict=True):
        assert gone_on == pytest.approx(unbroken, rel=0.01)


def test_tensorboard_shows_each_step_of_a_run_that_went_on_once(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def crash(line: dict[str, Any]) -> None:
        if "loss" in line and line["step"] == 3:
            raise RuntimeError

    with pytest.raises(RuntimeError):
        run(tmp_path, crash, max_steps=4)
    run(tmp_path, max_steps=4)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [one.step for one in events.Scalars("train/loss")] == [1, 2, 3, 4]
    assert [one.step for one in events.Scalars("eval/loss")] == [0, 2, 4]


def test_an_interrupt_leaves_a_checkpoint_of_the_step_in_hand(tmp_path: Path) -> None:
    process = child(str(tmp_path), "{}", "--interrupt-at", "3")
    output, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    told = json.loads(output.splitlines()[-1])
    checkpoint = last_checkpoint(tmp_path)
    assert told["stopped"]
    assert checkpoint is not None
    assert step_of(checkpoint) == told["step"] in (3, 4)


def test_the_rate_rises_in_a_line_and_falls_as_a_cosine_to_zero(tmp_path: Path) -> None:
    """A step has the rate of the steps taken before it; with 3 of 9 steps to warm up."""
    told: list[dict[str, Any]] = []
    run(tmp_path, told.append, max_steps=9, warmup=0.33, learning_rate=2e-3)
    rates = [one["learning_rate"] for one in told if "loss" in one]
    rising = [2e-3 * taken / 3 for taken in range(3)]
    falling = [1e-3 * (1 + math.cos(math.pi * taken / 6)) for taken in range(6)]
    assert rates == pytest.approx([*rising, *falling])


@pytest.mark.parametrize(("longest", "cuts"), [(0.01, True), (0.0, False)])
def test_longer_gradients_are_cut_to_the_recipe_s_length_and_with_0_never(
    longest: float, cuts: bool, tmp_path: Path
) -> None:
    """Measured where the optimizer takes them; the log tells their lengths before that."""
    lengths: list[float] = []

    def measure(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        weights = [one for group in optimizer.param_groups for one in group["params"]]
        lengths.append(float(torch.nn.utils.get_total_norm([one.grad for one in weights])))

    hook = register_optimizer_step_pre_hook(measure)
    told: list[dict[str, Any]] = []
    try:
        run(tmp_path, told.append, max_steps=3, max_grad_norm=longest)
    finally:
        hook.remove()
    uncut = [one["grad_norm"] for one in told if "loss" in one]
    assert min(uncut) > 0.02
    assert lengths == pytest.approx([longest] * 3 if cuts else uncut, rel=1e-3)


def test_the_best_weights_are_kept(tmp_path: Path) -> None:
    """Rates far too high: the loss falls, then rises."""
    fitted = run(tmp_path, learning_rate=0.5, eval_steps=1, max_steps=5, warmup=0.0)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    judged = {line["step"]: line["eval_loss"] for line in lines if "eval_loss" in line}
    best = min((step for step in judged if step), key=judged.__getitem__)
    assert fitted.best_step == best
    assert fitted.trainer.evaluate()["eval_loss"] == pytest.approx(judged[best], rel=1e-4)


def test_it_stops_early_when_the_held_out_loss_does_not_fall(tmp_path: Path) -> None:
    fitted = run(tmp_path, learning_rate=1e-8, eval_steps=1, max_steps=40, patience=2, warmup=0.4)
    assert fitted.ended_early
    assert fitted.step < 40


def judged(output: Path) -> dict[int, float]:
    lines = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    return {line["step"]: line["eval_loss"] for line in lines if "eval_loss" in line}


def test_a_run_that_was_killed_after_its_last_step_takes_no_further_one(tmp_path: Path) -> None:
    """Seven steps are two epochs and a part of the third, where the Trainer would go on."""
    first = run(tmp_path, max_steps=7)
    curve = losses(tmp_path)
    again = run(tmp_path, max_steps=7)
    assert (again.step, again.best_step) == (7, first.best_step)
    assert losses(tmp_path) == curve


def test_a_run_that_was_killed_when_it_had_stopped_early_takes_no_further_step(
    tmp_path: Path,
) -> None:
    changes = {"learning_rate": 1e-8, "eval_steps": 1, "max_steps": 40, "patience": 2}
    first = run(tmp_path, **changes, warmup=0.4)
    again = run(tmp_path, **changes, warmup=0.4)
    assert again.ended_early
    assert (again.step, again.best_step) == (first.step, first.best_step)


def test_the_best_weights_are_kept_where_the_folder_has_moved(tmp_path: Path) -> None:
    changes = {"eval_steps": 1, "warmup": 0.0, "max_steps": 3, "dropout": 0.0}
    run(tmp_path / "here", **changes)
    folder = tmp_path / "here" / "checkpoints"
    # The last weights become worthless, and the state tells that an earlier step was the best.
    path = folder / "checkpoint-3" / "trainer_state.json"
    state = json.loads(path.read_text())
    state |= {"best_global_step": 2, "best_model_checkpoint": str(folder / "checkpoint-2")}
    path.write_text(json.dumps(state))
    (tmp_path / "here").rename(tmp_path / "there")
    fitted = run(tmp_path / "there", **changes)
    assert (fitted.step, fitted.best_step) == (3, 2)
    now = fitted.trainer.evaluate()["eval_loss"]
    assert now == pytest.approx(judged(tmp_path / "there")[2], rel=1e-4)


def test_batches_that_are_added_up_have_the_losses_of_one_batch(tmp_path: Path) -> None:
    """Answers differ in length, and the third step of the epoch has fewer rows."""
    changes = {"max_steps": 4, "eval_steps": 4, "dropout": 0.0, "rows": 10}
    run(tmp_path / "one", batch=4, accumulation=1, **changes)
    run(tmp_path / "added", batch=1, accumulation=4, **changes)
    for (_, one), (_, added) in zip(
        losses(tmp_path / "one"), losses(tmp_path / "added"), strict=True
    ):
        assert added == pytest.approx(one, rel=1e-3)


def test_two_processes_have_the_losses_of_one_with_their_rows_together(tmp_path: Path) -> None:
    """Without dropout, which each process draws for itself. Answers differ in length."""
    single, together = tmp_path / "single", tmp_path / "together"
    run(single, dropout=0.0)
    port = free_port()
    children = [
        child(
            str(together),
            json.dumps({"batch": 1, "dropout": 0.0}),
            RANK=str(rank),
            LOCAL_RANK=str(rank),
            WORLD_SIZE="2",
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=port,
        )
        for rank in range(2)
    ]
    for one in children:  # both end when one fails: the other waits for it in vain
        _, errors = one.communicate(timeout=240)
        assert one.returncode == 0, errors
    assert [step for step, _ in losses(together)] == [1, 2, 3, 4, 5, 6]
    for (_, two), (_, one_process) in zip(losses(together), losses(single), strict=True):
        assert two == pytest.approx(one_process, rel=1e-3)
    assert judged(together).keys() == judged(single).keys()
    for step, loss in judged(together).items():
        assert loss == pytest.approx(judged(single)[step], rel=1e-3)


def test_tokens_a_second_are_those_of_training_whenever_it_evaluates_and_saves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a clock by which training has 100 tokens a second. It logs steps 1, 2, 4 and 6."""
    clock = Clock()
    monkeypatch.setattr("finetune.trainer.time", clock)
    monkeypatch.setattr("finetune.trainer.LOG_LINES", 3)
    monkeypatch.setattr("finetune.trainer.answer_loss", clock.taking(answer_loss, 0.01))
    monkeypatch.setattr("finetune.trainer.answer_scores", clock.taking(answer_scores, 1.0))
    monkeypatch.setattr("finetune.trainer.mark_whole", lambda folder: clock.pass_by(500.0))
    told: list[dict[str, Any]] = []
    run(tmp_path, told.append, eval_steps=3)
    assert [one["step"] for one in told if "eval_loss" in one] == [0, 3, 6]
    speeds = {one["step"]: one["tokens_per_second"] for one in told if "loss" in one}
    assert speeds == {1: 100.0, 2: 100.0, 4: 100.0, 6: 100.0}


class Clock:
    """Stands in for the module `time`: time passes when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def pass_by(self, seconds: float) -> None:
        self.now += seconds

    def taking(self, work: Callable[..., Any], seconds_per_token: float) -> Callable[..., Any]:
        """What computes with a batch, and takes so long for it."""

        def timed(model: Any, inputs: dict[str, Any], *rest: Any) -> Any:
            self.pass_by(seconds_per_token * float(inputs["attention_mask"].sum()))
            return work(model, inputs, *rest)

        return timed


# ---------------------------------------------------------------- kept features


def test_a_row_is_encoded_and_looked_at_once() -> None:
    model = new_model(Recipe())
    rows = StandIn(2)
    seen = Seen(rows, model, Room(1e9))
    first = seen[0]
    again = seen[0]
    assert rows.asked == [0]
    assert "pixel_values_videos" not in first
    torch.testing.assert_close(first["video_features"], again["video_features"])


def test_rows_whose_features_are_not_kept_are_not_kept_either() -> None:
    """A row's tokens are small, and would fit where its features do not."""
    rows = StandIn(2)
    model = new_model(Recipe())
    features = Seen(rows, model, Room(1e9))[0]["video_features"]
    seen = Seen(rows, model, Room(features.numel() * features.element_size() - 1))
    rows.asked.clear()
    for at in (0, 1, 0, 1):
        seen[at]
    assert rows.asked == [0, 1, 0, 1]


def test_rows_beyond_the_memory_allowed_are_made_each_time() -> None:
    rows = StandIn(2)
    seen = Seen(rows, new_model(Recipe()), Room(10))
    assert seen[0].keys() == seen[0].keys()
    assert rows.asked == [0, 0]


def test_rows_and_held_out_rows_share_the_memory_allowed() -> None:
    rows, held_out = StandIn(1), StandIn(1, first=1000)
    model = new_model(Recipe())
    item = Seen(rows, model, Room(1e9))[0]
    room = Room(1.5 * sum(one.numel() * one.element_size() for one in item.values()))
    for seen in (Seen(rows, model, room), Seen(held_out, model, room)):
        assert seen[0].keys() == seen[0].keys()
    assert (rows.asked, held_out.asked) == ([0, 0], [0, 0])


def test_features_stand_in_for_pixels() -> None:
    model = new_model(Recipe()).eval()
    rows = StandIn(2)
    seen = Seen(rows, model, Room(1e9))
    pixels = answer_scores(model, collate([rows[0], rows[1]], PAD))
    features = answer_scores(model, with_features(collate([seen[0], seen[1]], PAD)))
    torch.testing.assert_close(features, pixels, rtol=1e-4, atol=1e-4)
