"""The plan: what fits, what is reduced and what is dropped; and what a training will take."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune.dataset import IGNORE, Encoder, Measure, load_processor
from finetune.layout import Look
from finetune.plan import (
    Budget,
    Dropped,
    Memory,
    Plan,
    Planned,
    Training,
    as_dict,
    as_text,
    estimate,
    layer_bytes,
    make_plan,
    plan_row,
    shape_of,
    spread_of,
    vision_bytes,
)
from finetune.rows import Media, Origin, Row, Turn
from finetune.shelf import Shelf
from tests.media import REPOSITORY, Format, three_shots
from vidqa.compat import declare_torchvision_operators
from vidqa.errors import UsageError

LOOK = Look(max_frames=6, max_pixels=112 * 84)
MODEL = REPOSITORY / "vidqa" / "demo" / "models" / "tiny-qwen2-vl"


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("films")
    return three_shots(folder / "film.mp4", Format(width=320, height=240)).path


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    shelf = Shelf(tmp_path_factory.mktemp("shelf"))
    return Encoder(load_processor(str(MODEL)), LOOK, "qwen2-vl", shelf)


def row(line: int, *media: Media, question: str = "What?", answer: str = "Red.") -> Row:
    turns = (Turn("user", (*media, question)), Turn("assistant", (answer,)))
    return Row(turns, Origin("rows.jsonl", line))


def video(path: Path) -> Media:
    return Media("video", (str(path),))


# Rows


def test_a_row_within_the_budget_is_used_as_it_is(encoder: Encoder, film: Path) -> None:
    planned = plan_row(row(1, video(film)), encoder, Budget(4096))
    assert isinstance(planned, Planned)
    assert (planned.look, planned.frames, planned.pixels) == (LOOK, 6, 112 * 84)
    item = encoder(planned.row, planned.look)
    # 112 x 84 pixels are 4 x 3 tokens for each of 3 pairs.
    answer = int((item["labels"] != IGNORE).sum())
    assert planned.measure == Measure(len(item["input_ids"]), answer, 36, 3 * 12 * 16)


def words(encoder: Encoder, made: Row) -> int:
    planned = plan_row(made, encoder, Budget(4096))
    assert isinstance(planned, Planned)
    return planned.measure.tokens - planned.measure.media_tokens


@pytest.mark.parametrize(
    ("room", "frames", "pixels"),
    [
        (36, 6, 112 * 84),
        (35, 4, 112 * 84),
        (24, 4, 112 * 84),
        # Two pairs of less than 3 x 4 tokens each.
        (23, 4, 84 * 56),
        (12, 4, 84 * 56),
    ],
)
def test_frames_go_in_pairs_before_pixels_go(
    encoder: Encoder, film: Path, room: int, frames: int, pixels: int
) -> None:
    made = row(1, video(film))
    budget = Budget(words(encoder, made) + room, min_frames=4)
    planned = plan_row(made, encoder, budget)
    assert isinstance(planned, Planned)
    assert planned.measure.tokens <= budget.max_tokens
    assert planned.measure.tokens == len(encoder(made, planned.look)["input_ids"])
    assert (planned.frames, planned.pixels) == (frames, pixels)


def test_a_row_that_does_not_fit_is_dropped_with_its_reason(encoder: Encoder, film: Path) -> None:
    made = row(3, video(film))
    budget = Budget(words(encoder, made) + 3, min_frames=4)
    dropped = plan_row(made, encoder, budget)
    assert isinstance(dropped, Dropped)
    assert str(dropped.origin) == "rows.jsonl:3"
    assert f"is {words(encoder, made) + 36:,} tokens with 6 frames, and still" in dropped.reason
    assert "with 4 frames of at most 2,352 pixels" in dropped.reason


def test_a_text_that_does_not_fit_is_never_cut(encoder: Encoder, film: Path) -> None:
    for media in ((), (video(film),)):
        made = row(1, *media, answer="word " * 300)
        dropped = plan_row(made, encoder, Budget(200))
        assert isinstance(dropped, Dropped)
        assert "its text alone is" in dropped.reason


def test_each_video_of_a_row_keeps_a_pair(encoder: Encoder, film: Path) -> None:
    made = row(1, video(film), video(film))
    budget = Budget(words(encoder, made) + 24, min_frames=2)
    planned = plan_row(made, encoder, budget)
    assert isinstance(planned, Planned)
    assert planned.frames == 4


def test_what_cannot_be_read_costs_its_rows_only(
    encoder: Encoder, film: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(film.read_bytes()[:2000])
    given = [
        row(1, video(film)),
        row(2, video(tmp_path / "gone.mp4")),
        row(3, video(broken)),
        row(4, *[video(film)] * 4),
        row(5, answer=" "),
        row(6, video(film)),
    ]
    told: list[tuple[int, int]] = []
    plan = make_plan(given, encoder, Budget(4096), lambda *done: told.append(done))
    assert [one.row.origin.line for one in plan.used] == [1, 6]
    reasons = {one.origin.line: one.reason for one in plan.dropped}
    assert reasons[2].endswith("gone.mp4: there is no such file")
    assert "broken.mp4: is not a video, or is truncated" in reasons[3]
    assert reasons[4] == "4 videos in one row need 8 frames; max_frames is 6"
    assert reasons[5] == "no answer of an assistant is to be learned"
    assert told[-1] == (6, 6)


def test_a_planned_training_decodes_nothing(
    encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = three_shots(tmp_path / "a.mp4").path
    made = row(1, video(path))
    budget = Budget(words(encoder, made) + 20)
    planned = plan_row(made, encoder, budget)
    assert isinstance(planned, Planned)
    path.unlink()
    monkeypatch.delattr("finetune.media.read_stretch")
    assert len(encoder(planned.row, planned.look)["input_ids"]) == planned.measure.tokens


def test_a_budget_of_nothing_is_refused() -> None:
    with pytest.raises(UsageError, match="max_tokens 0: at least 1"):
        Budget(0)


# Memory


def kept_bytes(model: Any, run: Any) -> int:
    """What autograd holds for the way back, weights aside."""
    weights = {one.untyped_storage().data_ptr() for one in model.parameters()}
    held: dict[int, tuple[int, Any]] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            held[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda one: one):
        run(model)
    return sum(size for size, _ in held.values())


def model_of(layers: int, depth: int) -> Any:
    """A Qwen2-VL with the proportions of the real ones, of half a million weights a layer."""
    declare_torchvision_operators()
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    config = Qwen2VLConfig(
        text_config={
            "vocab_size": 512, "hidden_size": 192, "intermediate_size": 1120,
            "num_hidden_layers": layers, "num_attention_heads": 6, "num_key_value_heads": 1,
            "rope_parameters": {
                "rope_type": "default", "rope_theta": 1e6, "mrope_section": [4, 6, 6]
            },
            "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 1,
        },
        vision_config={
            "depth": depth, "embed_dim": 160, "num_heads": 4, "hidden_size": 192, "mlp_ratio": 4,
            "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2,
        },
    )  # fmt: skip
    return Qwen2VLForConditionalGeneration(config).to(torch.bfloat16).train()


def adapted(model: Any, targets: str, dropout: float) -> Any:
    from peft import LoraConfig, get_peft_model

    return get_peft_model(model, LoraConfig(r=8, lora_dropout=dropout, target_modules=targets))


@pytest.mark.parametrize(
    ("rank", "dropout"), [(0, 0.0), (8, 0.0), (8, 0.05)], ids=["full", "lora", "lora with dropout"]
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
def test_a_language_layer_keeps_what_the_formula_says(
    rank: int, dropout: float, dtype: torch.dtype
) -> None:
    ids = torch.randint(5, 500, (1, 256))
    counted = []
    for layers in (1, 2):
        model = model_of(layers, 1).to(dtype)
        if rank:
            model = adapted(model, r".*language_model.*_proj", dropout)
        counted.append(kept_bytes(model, lambda one: one(input_ids=ids, logits_to_keep=4)))
    training = Training(rank=rank, dropout=bool(dropout), compute_bytes=dtype.itemsize)
    expected = layer_bytes(shape_of(model_of(1, 1).config), training)
    assert (counted[1] - counted[0]) / 256 == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize(("rank", "dropout"), [(0, 0.0), (8, 0.0), (8, 0.05)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
def test_a_vision_layer_keeps_what_the_formula_says(
    rank: int, dropout: float, dtype: torch.dtype
) -> None:
    grid = torch.tensor([[2, 8, 12]])
    pixels = torch.randn(192, 1176, dtype=dtype)
    counted = []
    for depth in (1, 2):
        model = model_of(1, depth).to(dtype)
        visual = model.model.visual
        if rank:
            model = adapted(model, r".*visual.*\.(qkv|proj|fc1|fc2)", dropout)
        counted.append(kept_bytes(model, lambda _, see=visual: see(pixels, grid_thw=grid)))
    expected = [
        vision_bytes(
            shape_of(model_of(1, depth).config),
            Training(
                rank=rank,
                dropout=bool(dropout),
                trains_vision=True,
                checkpointing=False,
                compute_bytes=dtype.itemsize,
            ),
        )
        for depth in (1, 2)
    ]
    assert (counted[1] - counted[0]) / 192 == pytest.approx(expected[1] - expected[0], rel=0.15)


def planned(tokens: int, answers: int = 10, patches: int = 64) -> Plan:
    one = Planned(row(1), LOOK, Measure(tokens, answers, 16, patches), 2, 112 * 84)
    return Plan(LOOK, Budget(4096), (one,), ())


def memory(plan: Plan, **named: Any) -> Memory:
    shape = shape_of(model_of(4, 2).config)
    parameters = {"language": (1_000, 1_000_000), "vision": (0, 500_000)}
    return estimate(shape, parameters, plan, Training(**named))


def test_weights_gradients_and_optimizer_are_counted_as_they_are_kept() -> None:
    found = memory(planned(100), weight_bytes=2.0, trained_bytes=4.0)
    assert found.weights == 2 * 1_499_000 + 4 * 1_000
    assert (found.gradients, found.optimizer) == (4_000, 8_000)
    assert found.total == sum(asdict(found).values())


def test_weights_in_4_bits_are_counted_apart_from_those_that_stay_whole() -> None:
    found = memory(planned(100), weight_bytes=2.0, trained_bytes=4.0, in_4_bits=640_000)
    # 4 bits each, a byte for 64 and 4 bytes for 16,384 of them.
    in_4_bits = 320_000 + 10_000 + 640_000 / 4096
    assert found.weights == round(in_4_bits + 2 * (1_499_000 - 640_000) + 4 * 1_000)


def test_logits_take_memory_at_the_answers_alone() -> None:
    assert memory(planned(100)).logits == memory(planned(200)).logits == 14 * 10 * 512


def test_checkpointing_takes_less_and_longer_rows_take_more() -> None:
    short, long = memory(planned(100)), memory(planned(200))
    assert short.activations < long.activations
    assert short.activations < memory(planned(100), checkpointing=False).activations / 2
    assert memory(planned(100), batch=2).activations == pytest.approx(2 * short.activations, abs=2)
    assert short.activations < memory(planned(100), trains_vision=True).activations


def test_all_weights_in_training_are_kept_in_bf16_too_unless_checkpointed() -> None:
    """Autocast's copies: what it keeps of a layer grows by its weights."""
    ids = torch.randint(5, 500, (1, 8))
    counted, weights = [], []
    for layers in (1, 2):
        model = model_of(layers, 1).to(torch.float32)
        weights.append(sum(one.numel() for one in model.parameters() if one.ndim == 2))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            counted.append(kept_bytes(model, lambda one: one(input_ids=ids, logits_to_keep=4)))
    grown = counted[1] - counted[0]
    assert grown > 2 * (weights[1] - weights[0])
    bare, half = (
        memory(planned(0, patches=0), rank=0, checkpointing=False, compute_bytes=one).activations
        for one in (4.0, 2.0)
    )
    assert (bare, half) == (0, 2 * 1_000)
    assert memory(planned(0, patches=0), rank=0).activations == 0


# Telling


def test_percentiles_are_values_that_occur() -> None:
    assert spread_of(list(range(1, 101))) == {"p50": 51, "p95": 95, "max": 100}
    assert spread_of([7]) == {"p50": 7, "p95": 7, "max": 7}
    assert spread_of([]) == {"p50": 0, "p95": 0, "max": 0}


def whole_plan() -> Plan:
    small = Planned(row(2), Look(max_frames=2), Measure(900, 9, 500, 2000), 2, 9408)
    dropped = tuple(Dropped(Origin("rows.jsonl", n), "it is too long") for n in range(3, 30))
    return Plan(LOOK, Budget(1000), (*planned(1000).used, small), dropped)


def test_a_plan_is_told_to_people() -> None:
    parameters = {"language": (10_000, 1_000_000), "vision": (0, 500_000)}
    lines = as_text(whole_plan(), parameters, Memory(2**30, 0, 0, 2**31, 2**20), 4000)
    assert lines[0] == "rows      2 used, 1 of them with less to see, 27 dropped"
    assert "tokens    p50 900   p95 1,000   max 1,000   of a row; 1,000 are allowed" in lines
    assert "language  10,000 of 1,000,000 parameters are trained (1.00%)" in lines
    assert (
        "memory    about 3.0 GiB: weights 1.0 GiB, gradients 0 MiB, optimizer 0 MiB, "
        "activations 2.0 GiB, logits 1 MiB"
    ) in lines
    assert "time      about 1 h 07 min" in lines
    assert lines.count("dropped   rows.jsonl:3: it is too long") == 1
    assert "dropped   and 7 more; see --json" in lines
    assert lines[-1] == "reduced   rows.jsonl:2: 2 frames of at most 9,408 pixels"


def test_what_is_not_known_is_said_to_be_unknown() -> None:
    assert "time      not known before steps were taken" in as_text(planned(10))
    told = as_dict(planned(10))
    assert (told["seconds"], told["memory_bytes"], told["parameters"]) == (None, None, None)


def test_a_plan_is_told_to_programs() -> None:
    told = json.loads(json.dumps(as_dict(whole_plan(), {"vision": (0, 5)}, Memory(1, 2, 3, 4, 5))))
    assert (told["rows_used"], len(told["rows_dropped"]), told["tokens_total"]) == (2, 27, 1900)
    assert told["rows_dropped"][0] == {"origin": "rows.jsonl:3", "reason": "it is too long"}
    assert told["rows_reduced"] == [
        {"origin": "rows.jsonl:2", "max_frames": 2, "max_pixels": 420 * 364}
    ]
    assert told["memory_bytes"]["total"] == 15
    assert told["look"]["max_frames"] == 6


def test_a_plan_without_rows_is_told_too() -> None:
    empty = Plan(LOOK, Budget(10), (), ())
    assert as_text(empty)[0] == "rows      0 used, 0 of them with less to see, 0 dropped"
    assert memory(empty).activations == 0


def test_a_file_that_crashes_the_decoder_costs_its_rows_only(
    encoder: Encoder, film: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = video(Path("bad.mp4"))

    def crash(rows: list[Row], look: Look, shelf: Shelf, workers: int, tell: Any) -> Any:
        return {bad: "bad.mp4: the decoder crashed"}

    monkeypatch.setattr("finetune.plan.fetch", crash)
    plan = make_plan([row(1, bad), row(2, video(film))], encoder, Budget(4096), workers=2)
    assert [one.row.origin.line for one in plan.used] == [2]
    assert plan.dropped[0].reason == "bad.mp4: the decoder crashed"
