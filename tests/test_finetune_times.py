"""Spans of time in texts."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from waiting import times_dearer

from finetune.times import Span, iou, is_span, merged, parse
from vidqa.prompt import time_range


@pytest.mark.parametrize(
    ("text", "spans"),
    [
        ("from 12.5 to 15", [(12.5, 15)]),
        ("From 12.5s to 15 seconds.", [(12.5, 15)]),
        ("12.5-15", [(12.5, 15)]),
        ("12.5 – 15 s", [(12.5, 15)]),  # noqa: RUF001
        ("between 3 and 4 s", [(3, 4)]),
        ("00:01:05-00:01:20", [(65, 80)]),
        ("01:05 to 01:20.5", [(65, 80.5)]),
        ("00:00:12,500 --> 00:00:15,000", [(12.5, 15)]),
        ("[12.5, 15]", [(12.5, 15)]),
        ("[[1, 2], [5.5, 8]]", [(1, 2), (5.5, 8)]),
        ("<3.0, 4.0>", [(3, 4)]),
        ('{"start": 3, "end": 4.5}', [(3, 4.5)]),
        ('{"start_time": "00:00:03", "label": "a dog", "end_time": "00:01:00"}', [(3, 60)]),
        ('```json\n[{"start_seconds": 1.5, "end_seconds": 2}]\n```', [(1.5, 2)]),
        ("从12.5秒到15秒", [(12.5, 15)]),
        ("3秒から5秒", [(3, 5)]),
        ("It runs from 3 to 4 and again from 8 to 9.5 seconds.", [(3, 4), (8, 9.5)]),
        ("from 15 to 12", []),
        ("The star is red.", []),
        ("", []),
        ("at 5 seconds", []),
    ],
)
def test_spans_are_read_in_the_ways_in_which_they_are_written(text: str, spans: list[Span]) -> None:
    assert parse(text) == spans


SPANS = st.tuples(st.integers(0, 50_000), st.integers(1, 9000)).map(
    lambda one: (one[0] / 10, (one[0] + one[1]) / 10)
)
WRITERS = (
    lambda start, end: f"from {start:.1f} to {end:.1f}",
    lambda start, end: f"[{start:.1f}, {end:.1f}]",
    lambda start, end: f'{{"start": {start:.1f}, "end": {end:.1f}}}',
    lambda start, end: f"{start:.1f}s - {end:.1f}s",
)


@given(SPANS, st.sampled_from(WRITERS))
def test_a_span_survives_being_written(span: Span, write: object) -> None:
    assert callable(write)
    assert parse(write(*span)) == [span]


@given(SPANS)
def test_our_own_form_of_a_span_is_read_to_the_second(span: Span) -> None:
    ((start, end),) = parse(time_range(*span))
    assert start == int(span[0])
    assert end - 1 < max(span[1], start + 1) <= end


@given(st.text(alphabet="0123456789:.,-[]{}\"' startendofm秒", max_size=200))
def test_whatever_a_model_writes_gives_spans_that_end_after_they_start(text: str) -> None:
    assert all(0 <= start < end for start, end in parse(text))


@pytest.mark.parametrize("piece", ["9", "1:", "1 - ", "[1, ", '"start": 1 ', "from ", "between 1 "])
def test_nonsense_of_eight_times_the_length_takes_no_more_than_that_to_read(piece: str) -> None:
    # In proportion it would be 8, and 64 if each piece were looked at again for every other.
    assert times_dearer(lambda: parse(piece * 16_000), lambda: parse(piece * 2_000)) < 24


@pytest.mark.parametrize(
    "text", ["from 12.5 to 15 seconds.", "00:01:05-00:01:20", "[3, 4]", '{"start": 3, "end": 4.5}']
)
def test_an_answer_that_is_a_span_is_known_as_one(text: str) -> None:
    assert is_span(text)


@pytest.mark.parametrize("text", ["2-3", "3 to 4", "red", "A man runs from 3 to 4 s.", ""])
def test_other_answers_are_no_spans(text: str) -> None:
    assert not is_span(text)


@pytest.mark.parametrize(
    ("true", "found", "value"),
    [
        ([(0, 10)], [(0, 10)], 1.0),
        ([(0, 10)], [(5, 15)], 5 / 15),
        ([(0, 10)], [(10, 20)], 0.0),
        ([(0, 10)], [], 0.0),
        ([], [], 0.0),
        ([(0, 2), (4, 6)], [(0, 6)], 4 / 6),
        ([(0, 10)], [(0, 5), (3, 10)], 1.0),
    ],
)
def test_temporal_iou_is_shared_seconds_over_all(
    true: list[Span], found: list[Span], value: float
) -> None:
    assert iou(true, found) == pytest.approx(value)


@given(st.lists(SPANS, max_size=6))
def test_merged_spans_are_in_order_and_apart(spans: list[Span]) -> None:
    joined = merged(spans)
    assert all(one[1] < other[0] for one, other in itertools.pairwise(joined))
    assert merged(joined) == joined
