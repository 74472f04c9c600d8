"""The figures of the playground's suite, on cases that can be worked out in the head."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vidqa.demo import metrics
from vidqa.demo.films import Asked, Span
from vidqa.prompt import NOT_SHOWN

HERE = Span("a.mp4", 10.0, 20.0)


def asked(kind: str, text: str, answer: str | None) -> Asked:
    return Asked(kind, text, answer, (HERE,) if answer else (), HERE)


COLOUR = asked("colour", "What colour is the star with the blue ball?", "red")


@pytest.mark.parametrize(
    "reply", ["In [1] the star is red.", "Red [2]", "red", "The star with the blue ball is red."]
)
def test_an_answer_is_right_however_it_is_worded(reply: str) -> None:
    assert metrics.is_right(reply, COLOUR)


@pytest.mark.parametrize("reply", ["green", "red or green", "", NOT_SHOWN, "the star is blue"])
def test_an_answer_with_another_claim_or_none_is_wrong(reply: str) -> None:
    assert not metrics.is_right(reply, COLOUR)


def test_only_saying_so_answers_what_cannot_be_answered() -> None:
    vain = asked("unanswerable", "Where is the red star?", None)
    assert metrics.is_right(NOT_SHOWN, vain)
    assert not metrics.is_right("In [1] the red star is in the snow.", vain)


def test_a_motion_of_two_words_needs_both() -> None:
    motion = asked("motion", "What is the star doing?", "sliding left")
    assert metrics.is_right("In [1] the star is sliding left.", motion)
    assert not metrics.is_right("In [1] the star is sliding right.", motion)


def test_a_hard_cut_counts_within_one_frame_only() -> None:
    truth = [{"transition": "cut", "start_seconds": 2.0, "end_seconds": 2.0}]
    assert metrics.cut_scores(truth, [2.0 + 1 / 24], 24) == (1, 0, 0)
    assert metrics.cut_scores(truth, [2.0 + 2 / 24], 24) == (0, 1, 1)


def test_a_fade_counts_anywhere_in_its_span_once() -> None:
    truth = [{"transition": "fade", "start_seconds": 2.0, "end_seconds": 3.0}]
    assert metrics.cut_scores(truth, [2.1, 2.9], 24) == (1, 0, 1)


def test_f1_of_nothing_to_find_is_zero() -> None:
    assert metrics.f1(0, 0, 0) == 0
    assert metrics.f1(3, 1, 1) == pytest.approx(0.75)


def test_wilson_s_interval_of_a_known_case() -> None:
    figure = metrics.share([True] * 8 + [False] * 2)
    assert (figure.value, figure.n) == (0.8, 10)
    assert figure.low == pytest.approx(0.490, abs=1e-3)
    assert figure.high == pytest.approx(0.943, abs=1e-3)


@given(st.lists(st.booleans(), min_size=1))
def test_a_share_lies_inside_its_interval(outcomes: list[bool]) -> None:
    figure = metrics.share(outcomes)
    assert 0 <= figure.low <= figure.value + 1e-9
    assert figure.value - 1e-9 <= figure.high <= 1


def test_a_share_of_nothing_is_no_number() -> None:
    assert math.isnan(metrics.share([]).value)


TIMES = st.floats(0, 100)


@given(TIMES, TIMES, TIMES, TIMES)
def test_iou_is_symmetric_and_between_zero_and_one(a: float, b: float, c: float, d: float) -> None:
    first, second = Span("a", min(a, b), max(a, b) + 1), Span("a", min(c, d), max(c, d) + 1)
    assert metrics.iou(first, second) == pytest.approx(metrics.iou(second, first))
    assert 0 <= metrics.iou(first, second) <= 1 + 1e-9


def test_spans_of_two_films_never_overlap() -> None:
    assert metrics.iou(HERE, Span("b.mp4", 10.0, 20.0)) == 0
