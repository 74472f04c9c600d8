"""Frames within a budget: who gets how many, which, and at what size."""

from __future__ import annotations

import io
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vidqa.errors import UsageError
from vidqa.select import (
    TOKEN_SIDE,
    fit,
    fitted_size,
    neighbours,
    select,
    spread,
    wants_neighbours,
    whole,
)
from vidqa.types import Moment, Picture, Scene


def moment(start: float, frames: int = 10, video: str = "a", score: float = 0.5) -> Moment:
    """A moment of `frames` seconds with one frame a second, at the half seconds."""
    times = tuple(start + at + 0.5 for at in range(frames))
    return Moment(f"/{video}.mp4", video, start, start + max(frames, 1), score, times)


def counts(chosen: list[tuple[Moment, tuple[float, ...]]]) -> list[int]:
    return [len(times) for _, times in chosen]


moments = st.lists(
    st.builds(
        moment,
        start=st.integers(0, 1000).map(float),
        frames=st.integers(0, 12),
        video=st.sampled_from("abc"),
    ),
    max_size=12,
)
budgets = st.tuples(st.integers(2, 40), st.integers(2, 12))


@given(moments, budgets)
def test_the_budget_is_never_exceeded(found: list[Moment], budget: tuple[int, int]) -> None:
    assert sum(counts(select(found, *budget))) <= budget[0]


@given(moments, budgets)
def test_no_moment_shows_more_than_its_share(found: list[Moment], budget: tuple[int, int]) -> None:
    assert all(count <= budget[1] for count in counts(select(found, *budget)))


@given(moments, budgets)
def test_every_moment_shown_has_two_frames_or_all_it_has(
    found: list[Moment], budget: tuple[int, int]
) -> None:
    for one, times in select(found, *budget):
        assert len(times) >= min(2, len(one.frame_seconds))


@given(moments, budgets)
def test_frames_are_sampled_ones_in_rising_order(
    found: list[Moment], budget: tuple[int, int]
) -> None:
    for one, times in select(found, *budget):
        assert list(times) == sorted(set(times) & set(one.frame_seconds))


@given(moments, budgets)
def test_what_is_left_of_the_budget_is_less_than_a_pair_or_nobody_needs_it(
    found: list[Moment], budget: tuple[int, int]
) -> None:
    max_frames, share = budget
    chosen = select(found, max_frames, share)
    tokens_left = max_frames - sum(count + count % 2 for count in counts(chosen))
    full = all(len(times) == min(share, len(one.frame_seconds)) for one, times in chosen)
    assert tokens_left < 2 or full


def test_better_moments_get_more_when_the_budget_is_short() -> None:
    best, second, third = moment(50), moment(0), moment(100)
    chosen = dict(select([best, second, third], 8, 4))
    assert [len(chosen[one]) for one in (best, second, third)] == [4, 2, 2]


def test_the_worst_moments_are_left_out_when_not_all_get_a_pair() -> None:
    best, second, third = moment(50), moment(0), moment(100)
    assert [one for one, _ in select([best, second, third], 5, 4)] == [second, best]


def test_moments_are_shown_by_video_of_the_best_then_by_time() -> None:
    found = [moment(9, video="b"), moment(5, video="a"), moment(2, video="b"), moment(1, video="a")]
    order = [(one.video_id, one.start_seconds) for one, _ in select(found, 20, 4)]
    assert order == [("b", 2), ("b", 9), ("a", 1), ("a", 5)]


def test_a_moment_without_frames_is_not_shown() -> None:
    assert select([moment(0, frames=0)], 8, 4) == []


@pytest.mark.parametrize("budget", [(1, 4), (8, 1)])
def test_a_budget_below_a_pair_is_an_error_that_says_why(budget: tuple[int, int]) -> None:
    with pytest.raises(UsageError, match="must be at least 2, as the model reads frames in pairs"):
        select([moment(0)], *budget)


def test_two_of_ten_are_the_middles_of_the_halves() -> None:
    assert spread([0, 1, 2, 3, 4, 5, 6, 7, 8, 9], 2) == (2, 7)


@given(st.integers(1, 60), st.integers(1, 60))
def test_a_spread_is_even(available: int, count: int) -> None:
    chosen = spread([float(at) for at in range(available)], count)
    gaps = [b - a for a, b in itertools.pairwise(chosen)]
    assert len(chosen) == min(count, available)
    assert not gaps or max(gaps) - min(gaps) <= 1


@pytest.mark.parametrize(
    "question",
    ["What comes after the red car?", "Who spoke before that?", "And THEN?", "why does it fall?"],
)
def test_questions_about_order_want_the_scenes_beside(question: str) -> None:
    assert wants_neighbours(question)


@pytest.mark.parametrize(
    "question", ["What colour is the star?", "Who is the author?", "Is the lighthouse on?"]
)
def test_questions_about_a_picture_do_not(question: str) -> None:
    assert not wants_neighbours(question)


SCENES = [Scene(n, 10.0 * n, 10.0 * n + 10) for n in range(5)]


def test_neighbours_are_the_scene_before_and_the_one_after() -> None:
    assert neighbours(moment(20), SCENES) == [SCENES[1], SCENES[3]]


def test_the_first_scene_has_one_neighbour() -> None:
    assert neighbours(moment(0), SCENES) == [SCENES[1]]


def test_a_whole_video_is_sampled_evenly_over_its_frames() -> None:
    every = [at + 0.5 for at in range(50)]
    stretches = whole(SCENES, every, 10)
    assert [at for *_, times in stretches for at in times] == [2.5 + 5 * n for n in range(10)]


scene_lengths = st.lists(st.integers(1, 20), min_size=1, max_size=12)


@given(scene_lengths, st.integers(2, 30))
def test_the_stretches_of_a_whole_video_cover_it_without_gaps(
    lengths: list[int], max_frames: int
) -> None:
    ends = [float(sum(lengths[: n + 1])) for n in range(len(lengths))]
    scenes = [Scene(n, end - lengths[n], end) for n, end in enumerate(ends)]
    every = [at + 0.5 for at in range(sum(lengths))]
    stretches = whole(scenes, every, max_frames)
    assert [start for start, _, _ in stretches] == [0.0, *(end for _, end, _ in stretches[:-1])]
    assert stretches[-1][1] == ends[-1]
    assert {end for _, end, _ in stretches} <= set(ends)
    assert sum(len(times) for *_, times in stretches) == min(max_frames, len(every))
    assert all(len(times) >= 2 for *_, times in stretches) or len(stretches) == 1
    assert all(start <= at < end for start, end, times in stretches for at in times)


def picture(width: int, height: int) -> Picture:
    encoded = io.BytesIO()
    Image.new("RGB", (width, height), (200, 30, 30)).save(encoded, "JPEG")
    return Picture(1.5, encoded.getvalue())


def test_a_picture_within_the_budget_is_passed_on_untouched() -> None:
    small = picture(112, 84)
    assert fit(small, 112 * 84) is small


def test_a_picture_beyond_the_budget_becomes_smaller_in_its_proportions() -> None:
    with Image.open(io.BytesIO(fit(picture(420, 315), 112 * 84).jpeg)) as image:
        assert image.size == (112, 84)


def test_a_smaller_picture_keeps_its_time() -> None:
    assert fit(picture(420, 315), 112 * 84).seconds == 1.5


@given(st.integers(28, 4000), st.integers(28, 4000), st.integers(56 * 56, 10**6))
def test_a_fitted_size_is_within_the_budget(width: int, height: int, max_pixels: int) -> None:
    fitted = fitted_size(width, height, max_pixels)
    thin = TOKEN_SIDE in fitted  # a side is never less than one visual token
    assert thin or fitted[0] * fitted[1] <= max_pixels


@given(st.sampled_from([(640, 480), (420, 315), (1280, 960), (224, 168)]))
def test_four_by_three_fits_the_tiny_model_exactly(size: tuple[int, int]) -> None:
    assert fitted_size(*size, 112 * 84) == (112, 84)
