"""The training recipe of tiny-qwen2-vl: what it trains on is what serving will show the model."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from vidqa.compat import declare_torchvision_operators
from vidqa.demo import world
from vidqa.prompt import SYSTEM, subtitle_line
from vidqa.types import TextSpan

declare_torchvision_operators()

import torch  # noqa: E402

from vidqa.demo import lessons, sight, tiny_vlm, train_clip, train_vlm  # noqa: E402


@pytest.fixture(scope="module")
def made() -> tuple[Any, Any, Any]:
    """An untrained model, its tokenizer and its processor."""
    torch.set_num_threads(1)
    model, tokenizer = train_vlm.new_model()
    return model.eval(), tokenizer, tiny_vlm.build_processor(tokenizer)


def context_of(seed: int, questions: int = 3) -> lessons.Context:
    return lessons.sample_context(random.Random(seed), 3, questions)


def frames_of(context: lessons.Context) -> np.ndarray:
    return sight.sample_sight(random.Random(0), context.shown).frames.numpy()


def served(context: lessons.Context, processor: Any) -> Any:
    """The model's inputs for the first question, by the chat template and the processor."""
    content: list[dict[str, str]] = []
    for label, scene in zip(context.labels, context.shown, strict=True):
        texts = [TextSpan(0, 1, scene.subtitle)] if scene.subtitle else []
        content += [
            {"type": "text", "text": label},
            {"type": "video"},
            {"type": "text", "text": f"\n{subtitle_line(texts)}"},
        ]
    content.append({"type": "text", "text": f"Question: {context.questions[0].text}"})
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": content}]
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    return processor(text=[text], videos=list(frames_of(context)), return_tensors="pt")


@pytest.mark.parametrize("seed", range(4))
def test_training_tokens_are_those_of_the_chat_template(
    made: tuple[Any, Any, Any], seed: int
) -> None:
    _, tokenizer, processor = made
    context, encoder = context_of(seed), lessons.Encoder(tokenizer)
    ids, _ = encoder.prefix(context)
    branch, answer = encoder.branch(context, context.questions[0])
    asked = branch[: len(branch) - len(answer)]
    assert served(context, processor)["input_ids"][0].tolist() == ids + asked


@pytest.mark.parametrize("seed", range(4))
def test_training_positions_are_those_of_the_model(made: tuple[Any, Any, Any], seed: int) -> None:
    model, tokenizer, processor = made
    context = context_of(seed)
    inputs = served(context, processor)
    _, places = lessons.Encoder(tokenizer).prefix(context)
    expected, _ = model.model.get_rope_index(
        inputs["input_ids"],
        mm_token_type_ids=inputs["mm_token_type_ids"],
        video_grid_thw=inputs["video_grid_thw"],
    )
    assert expected[:, 0, : len(places)].T.tolist() == [list(place) for place in places]


def test_training_pixels_are_those_of_the_processor(made: tuple[Any, Any, Any]) -> None:
    _, _, processor = made
    context = context_of(1)
    mine = sight.to_patches(torch.from_numpy(frames_of(context)))
    theirs = served(context, processor)["pixel_values_videos"]
    torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)


def test_the_batched_tower_is_the_model_s_own(made: tuple[Any, Any, Any]) -> None:
    model, _, processor = made
    inputs = served(context_of(1), processor)
    with torch.no_grad():
        mine, _ = sight.encode(model.model.visual, inputs["pixel_values_videos"])
        theirs = model.model.visual(inputs["pixel_values_videos"], inputs["video_grid_thw"])
    torch.testing.assert_close(mine.flatten(0, 1), theirs.pooler_output, atol=1e-4, rtol=1e-4)


def test_questions_side_by_side_are_answered_as_if_asked_alone(
    made: tuple[Any, Any, Any],
) -> None:
    model, tokenizer, processor = made
    context = context_of(2)
    encoder = lessons.Encoder(tokenizer)
    patches = sight.to_patches(torch.from_numpy(frames_of(context)))
    with torch.no_grad():
        visual = sight.encode(model.model.visual, patches)[0].flatten(0, 1)
        for at, question in enumerate(context.questions):
            alone = replace(context, questions=[question])
            one, *_ = train_vlm.answer_logits(model, encoder.batch([alone]), visual)
            batch = encoder.batch([context])
            every, *_ = train_vlm.answer_logits(model, batch, visual)
            mine = batch.question_of[batch.labels != lessons.IGNORE] == at
            torch.testing.assert_close(every[mine], one, atol=1e-4, rtol=1e-4)
        first = model(**served(context, processor)).logits[0, -1]
    torch.testing.assert_close(every[0], first, atol=1e-4, rtol=1e-4)


def pointed(
    tokenizer: Any, kind: str
) -> tuple[lessons.Context, lessons.Batch, sight.Cells, lessons.Pointers]:
    """Pointers of a context with one question, of the kind asked for."""
    context = next(
        replace(context, questions=[asked])
        for context in map(context_of, range(100))
        for asked in context.questions
        if asked.type == kind
    )
    batch = lessons.Encoder(tokenizer).batch([context])
    cells = lessons.sample_cells(random.Random(0), [context])
    return context, batch, cells, lessons.point(batch, [context], cells)


def test_pointers_mark_the_visual_tokens_of_the_thing_asked_about(
    made: tuple[Any, Any, Any],
) -> None:
    context, batch, cells, pointers = pointed(made[1], "motion")
    asked = context.questions[0]
    assert asked.thing is not None
    assert asked.scene is not None
    kinds = cells["kind"].clone().view(len(context.shown), -1)
    others = torch.arange(len(context.shown)) != context.number(asked.scene) - 1
    kinds[others] = -1
    shown = (kinds == world.KINDS.index(asked.thing.kind)).flatten()
    assert torch.equal(pointers.anchor[0][batch.visual[0]], shown)
    assert torch.equal(pointers.answer[0], pointers.anchor[0])
    assert not pointers.anchor[0][~batch.visual[0]].any()


def test_what_comes_after_is_pointed_at_in_the_next_moment(made: tuple[Any, Any, Any]) -> None:
    context, batch, cells, pointers = pointed(made[1], "after")
    asked = context.questions[0]
    assert asked.scene is not None
    moments = torch.arange(len(context.shown)).repeat_interleave(cells["kind"][:2].numel())
    next_one = moments == context.number(asked.scene) - 1
    assert torch.equal(pointers.answer[-1][batch.visual[0]], next_one)
    assert not (pointers.answer[-1] & pointers.anchor[-1]).any()


def test_the_last_pointer_of_an_answer_stands_before_the_moment_s_number(
    made: tuple[Any, Any, Any],
) -> None:
    context, batch, _, pointers = pointed(made[1], "colour")
    asked = context.questions[0]
    assert asked.scene is not None
    target = batch.labels[0, pointers.places[-1]]
    assert made[1].decode([int(target)]) == str(context.number(asked.scene))


def test_a_question_without_an_answer_points_at_the_first_token(
    made: tuple[Any, Any, Any],
) -> None:
    _, batch, _, pointers = pointed(made[1], "unanswerable")
    assert pointers.anchor.nonzero().tolist() == [[0, 0]]
    assert torch.equal(pointers.anchor, pointers.answer)
    assert made[1].decode([int(batch.labels[0, pointers.places[0]])]) == "Not"


def test_a_thing_that_no_cell_shows_is_not_pointed_at(made: tuple[Any, Any, Any]) -> None:
    context = next(one for one in map(context_of, range(100)) if len(one.questions) > 1)
    answerable = [one for one in context.questions if one.thing is not None]
    vain = lessons.sample_context(random.Random(0), 1, 40).questions
    none = next(one for one in vain if one.thing is None)
    context = replace(context, questions=[*answerable, none])
    batch = lessons.Encoder(made[1]).batch([context])
    cells = lessons.sample_cells(random.Random(0), [context])
    cells["kind"][:] = -1
    pointers = lessons.point(batch, [context], cells)
    assert pointers.anchor.nonzero().tolist() == [[0, 0]]


def test_looking_where_told_costs_nothing_and_looking_away_costs_much() -> None:
    told = torch.tensor([[True, True, False]])
    pointers = lessons.Pointers(torch.tensor([0]), torch.tensor([0]), told, told)
    layers = (train_vlm.ANCHOR_LAYER, train_vlm.ANSWER_LAYER)
    there, away = torch.tensor([[[9.0, 9.0, -9.0]]]), torch.tensor([[[-9.0, -9.0, 9.0]]])
    assert train_vlm.pointing_loss(pointers, dict.fromkeys(layers, there)) < 1e-3
    assert train_vlm.pointing_loss(pointers, dict.fromkeys(layers, away)) > 9


def test_films_for_training_never_have_a_held_out_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []
    sample_film = world.sample_film

    def remember(seed: int, scene_count: int = 8) -> world.Film:
        seeds.append(seed)
        return sample_film(seed, scene_count)

    monkeypatch.setattr(world, "sample_film", remember)
    for seed in range(200):
        context_of(seed)
    assert len(seeds) >= 200
    assert {world.split_of(seed) for seed in seeds} == {"training"}


def test_labels_name_what_stands_in_each_cell() -> None:
    scene = next(
        one for seed in range(50) for one in world.sample_film(seed).scenes if len(one.things) == 2
    )
    labels = sight.cell_labels(scene, 0.5)
    grid = labels["kind"].reshape(tiny_vlm.CELL_ROWS, tiny_vlm.CELL_COLUMNS)
    left, right = (world.KINDS.index(thing.kind) for thing in scene.things)
    assert left in grid[:, :2]
    assert right in grid[:, 2:]
    assert set(grid.ravel()) == {-1, left, right}


def test_a_text_is_contrasted_with_every_picture_that_it_fits() -> None:
    scores = torch.tensor([[5.0, 5.0, -5.0]])
    both = train_clip.contrast(scores, torch.tensor([[True, True, False]]))
    one = train_clip.contrast(scores, torch.tensor([[True, False, False]]))
    assert both < 0.01
    assert one == pytest.approx(np.log(2), abs=0.01)
