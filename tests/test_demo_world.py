"""The playground's world: what a seed decides, what can be asked of it, and that it is fair."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vidqa.demo import films, questions, world
from vidqa.demo.draw import SHAPES, box_of, draw_backdrop, draw_things

SEEDS = st.integers(min_value=0, max_value=2 * world.FIRST_HELD_OUT_SEED)


@given(SEEDS)
def test_a_seed_always_gives_the_same_film(seed: int) -> None:
    assert world.sample_film(seed) == world.sample_film(seed)


@given(SEEDS)
def test_neighbouring_scenes_never_share_a_background(seed: int) -> None:
    scenes = world.sample_film(seed).scenes
    assert all(a.background != b.background for a, b in itertools.pairwise(scenes))


@given(SEEDS, st.floats(0, 1))
def test_things_never_leave_the_frame_and_never_overlap(seed: int, progress: float) -> None:
    for scene in world.sample_film(seed, 2).scenes:
        boxes = sorted(box_of(thing, progress) for thing in scene.things)
        assert all(left >= 0 and right <= 1 for left, _, right, _ in boxes)
        assert all(top >= 0 and bottom <= 1 for _, top, _, bottom in boxes)
        assert all(a[2] <= b[0] + 1e-9 for a, b in itertools.pairwise(boxes))


@pytest.mark.parametrize("kind", world.KINDS)
def test_every_kind_has_an_outline_inside_the_unit_circle(kind: str) -> None:
    assert all(x * x + y * y <= 1.1 for contour in SHAPES[kind] for x, y in contour)


def test_a_thing_is_drawn_inside_its_box() -> None:
    scene = next(
        one for seed in range(50) for one in world.sample_film(seed).scenes if len(one.things) == 1
    )
    backdrop = draw_backdrop(scene, 400, 300)
    with_thing = draw_things(backdrop, scene.things, 0.5)
    from PIL import ImageChops

    changed = ImageChops.difference(backdrop, with_thing).getbbox()
    assert changed is not None
    left, top, right, bottom = box_of(scene.things[0], 0.5)
    assert changed == pytest.approx((left * 400, top * 300, right * 400, bottom * 300), abs=5)


def test_training_and_held_out_seeds_are_apart() -> None:
    assert world.split_of(world.FIRST_HELD_OUT_SEED - 1) == "training"
    assert world.split_of(world.FIRST_HELD_OUT_SEED) == "held-out"


def library_of(seed: int, film_count: int = 3) -> list[world.WorldScene | None]:
    scenes: list[world.WorldScene | None] = []
    for number in range(film_count):
        scenes += [*world.sample_film(seed + number, 4).scenes, None]
    return scenes


@given(st.integers(0, 10_000), st.sampled_from(questions.QUESTION_TYPES))
@settings(max_examples=200)
def test_the_answer_is_never_given_away_by_the_question(seed: int, question_type: str) -> None:
    rng, scenes = random.Random(seed), library_of(seed)
    at = rng.choice([at for at, scene in enumerate(scenes) if scene is not None])
    question = questions.ask_about(rng, scenes, question_type, at)
    if question is not None and question_type not in ("after", "before"):
        assert question.answer is not None
        subject = question.text if question_type != "colour" else question.text.split(" with ")[0]
        if question_type not in ("kind",):
            assert question.answer not in subject.split()


@given(st.integers(0, 10_000), st.sampled_from(questions.QUESTION_TYPES))
@settings(max_examples=200)
def test_a_reference_fits_the_scene_it_names_and_no_other(seed: int, question_type: str) -> None:
    rng, scenes = random.Random(seed), library_of(seed)
    at = rng.choice([at for at, scene in enumerate(scenes) if scene is not None])
    scene = scenes[at]
    assert scene is not None
    chosen: list[questions.Reference] = []

    def remember(fitting: list[questions.Reference]) -> questions.Reference:
        chosen.extend(fitting)
        return fitting[0]

    if questions.ask_about(rng, scenes, question_type, at, remember):
        for reference in chosen:
            fitting = [place for place, one in enumerate(scenes) if one and reference.fits(one)]
            assert fitting == [at]


@given(st.integers(0, 10_000))
def test_before_and_after_stay_within_a_film(seed: int) -> None:
    rng, scenes = random.Random(seed), library_of(seed)
    last = scenes.index(None) - 1
    assert questions.ask_about(rng, scenes, "after", last) is None
    assert questions.ask_about(rng, scenes, "before", 0) is None


@given(st.integers(0, 10_000))
def test_an_unanswerable_question_has_no_answer_and_fits_nothing(seed: int) -> None:
    question = questions.ask_in_vain(random.Random(seed), library_of(seed))
    assert question.answer is None
    assert question.scene is None


def test_a_library_asks_every_type_and_names_the_span_that_answers() -> None:
    library = [world.sample_film(seed, 6) for seed in range(6)]
    asked = films.library_questions(library, per_type=3)
    assert {one.type for one in asked} == {*questions.QUESTION_TYPES, "unanswerable"}
    spans = {span for film in library for span in films.spans(film)}
    assert all(set(one.spans) <= spans for one in asked)
    assert all(bool(one.spans) == (one.answer is not None) for one in asked)


def test_a_query_fits_its_scene() -> None:
    library = [world.sample_film(seed, 6) for seed in range(3)]
    by_span = {
        span: scene
        for film in library
        for span, scene in zip(films.spans(film), film.scenes, strict=True)
    }
    for query in films.library_queries(library):
        assert (
            by_span[query.span].things[0].kind in query.text or len(by_span[query.span].things) > 1
        )
