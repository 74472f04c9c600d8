"""Figures of replies, against values worked out by hand and the packages that papers use."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune import metrics
from vidqa.boxes import Box


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("A red star.", "red star"),
        ("The star is red [1].", "The star is red."),
        ("The star is red [1] [12]", "the star is RED"),
        ("The star is red [1, 2].", "The star is red."),
        ("The star is red [1; 2]", "The star is red."),
        ("The star is red [1-3].", "The star [2] is red."),
        ("The star is red [ 1\N{EN DASH}3 ].", "The star is red."),
        ("１２ 個", "12個"),  # noqa: RUF001
        ("红色。", "红 色"),
        ("星は 赤い", "星は赤い"),
        ("1,000", "1000"),
        ("A", "a"),
    ],
)
def test_what_differs_in_form_alone_matches(reply: str, expected: str) -> None:
    assert metrics.exact_match(reply, expected) == 1.0


@pytest.mark.parametrize(
    ("reply", "expected"), [("12.5", "125"), ("red", "blue"), ("", "red"), ("红", "绿")]
)
def test_what_differs_otherwise_does_not(reply: str, expected: str) -> None:
    assert metrics.exact_match(reply, expected) == 0.0


@pytest.mark.parametrize(
    ("reply", "expected", "value"),
    [
        ("a red ball", "a red star", 0.5),
        ("red red red", "red", 0.5),
        ("", "red", 0.0),
        ("", "", 1.0),
        ("红色的星", "红色的球", 0.75),
    ],
)
def test_token_f1_is_that_of_the_words(reply: str, expected: str, value: float) -> None:
    assert metrics.token_f1(reply, expected) == pytest.approx(value)


@given(st.text(max_size=40), st.text(max_size=40))
def test_f1_is_symmetric_within_0_and_1_and_1_for_a_match(one: str, other: str) -> None:
    value = metrics.token_f1(one, other)
    assert 0 <= value <= 1
    assert value == pytest.approx(metrics.token_f1(other, one))
    assert metrics.token_f1(one, one) == 1.0
    if metrics.exact_match(one, other):
        assert value == 1.0


CHOICES = ("a star", "the ball", "a red ball")


@pytest.mark.parametrize(
    ("reply", "place"),
    [
        ("B", 1),
        ("b.", 1),
        ("(C)", 2),
        ("**B**", 1),
        ("B) the ball", 1),
        ("B. It bounces.", 1),
        ("The answer is (A).", 0),
        ("Answer: C", 2),
        ("答案是B", 1),
        ("Ball [1].", 1),
        ("It is a red ball.", 2),  # the longer name of the two that it holds
        ("A star and a ball", None),
        ("The answer is the ball.", 1),
        ("The answer is a red ball", 2),
        ("Answer: A red ball.", 2),
        ("The answer is a dog", None),
        ("The answer is A because it shines.", 0),
        ("A dog", None),
        ("D", None),
        ("", None),
    ],
)
def test_a_choice_is_known_by_its_letter_or_its_text(reply: str, place: int | None) -> None:
    assert metrics.chosen(reply, CHOICES) == place


def test_choices_may_carry_their_letters() -> None:
    assert metrics.chosen("B", ("A. red", "B. blue")) == 1
    assert metrics.chosen("blue", ("A. red", "B. blue")) == 1


def test_choices_that_are_letters_are_taken_by_their_text() -> None:
    assert metrics.chosen("B", ("B", "A")) == 0


def test_choices_are_found_in_a_question() -> None:
    question = "Which is it?\nA. a star\nB) the ball\n(C) nothing\nAnswer with the letter."
    assert metrics.offered(question) == ("a star", "the ball", "nothing")
    assert metrics.offered("Is it A. Smith?\nB. careful") == ()
    assert metrics.offered("What is it?") == ()


@settings(max_examples=50)
@given(st.text(max_size=60), st.lists(st.text(max_size=10), max_size=5))
def test_any_reply_takes_one_of_the_choices_or_none(reply: str, choices: list[str]) -> None:
    assert metrics.chosen(reply, choices) in (None, *range(len(choices)))


def test_rouge_is_what_rouge_score_says_of_english() -> None:
    from rouge_score.rouge_scorer import RougeScorer

    pair = "The cat's sat on a mat, twice", "A cat sat on the mat 2 times"
    theirs = RougeScorer(["rougeL"]).score(pair[1], pair[0])["rougeL"].fmeasure
    assert metrics.rouge_l(*pair) == pytest.approx(theirs)


def test_rouge_knows_characters_where_no_spaces_are() -> None:
    assert metrics.rouge_l("红色的星", "红色的球") == pytest.approx(0.75)


def test_bleu_of_summed_counts_is_sacrebleus_of_the_corpus() -> None:
    import sacrebleu

    replies = ["the cat sat on the mat today", "there is a dog"]
    wanted = ["the cat sat on a mat today", "there is a big dog here"]
    sums = np.sum([metrics.bleu_counts(*one) for one in zip(replies, wanted, strict=True)], axis=0)
    theirs = sacrebleu.corpus_bleu(replies, [wanted]).score / 100
    assert metrics.bleu(sums) == pytest.approx(theirs)


@pytest.mark.parametrize("text", ["一只猫坐在垫子上面", "猫がマットの上に座っている"])
def test_bleu_of_an_equal_caption_is_1_in_any_script(text: str) -> None:
    assert metrics.bleu(np.array(metrics.bleu_counts(text, text))) == pytest.approx(1.0)


LEFT, RIGHT = Box(0, 0, 0.5, 1), Box(0.5, 0, 1, 1)


@pytest.mark.parametrize(
    ("one", "other", "value"),
    [
        (LEFT, LEFT, 1.0),
        (LEFT, RIGHT, 0.0),
        (Box(0, 0, 1, 1), LEFT, 0.5),
        (Box(0, 0, 0.2, 0.2), Box(0.1, 0, 0.3, 0.2), 1 / 3),
        (Box(0, 0, 0, 0), Box(0, 0, 0, 0), 0.0),
    ],
)
def test_iou_of_boxes(one: Box, other: Box, value: float) -> None:
    assert metrics.box_iou(one, other) == pytest.approx(value)


@pytest.mark.parametrize(
    ("true", "found", "value"),
    [
        ([("", LEFT)], [("", LEFT)], (1.0, 1.0)),
        ([("", LEFT)], [], (0.0, 0.0)),
        ([], [("", LEFT)], (0.0, 0.0)),
        ([], [], (1.0, 1.0)),
        ([("", LEFT), ("", RIGHT)], [("", RIGHT), ("", LEFT)], (1.0, 1.0)),
        ([("", LEFT)], [("", LEFT), ("", RIGHT)], (0.5, 0.5)),
        ([("a dog", LEFT)], [("the dog", LEFT)], (1.0, 1.0)),
        ([("dog", LEFT)], [("cat", LEFT)], (0.0, 0.0)),
        ([("dog", LEFT)], [("", LEFT)], (1.0, 1.0)),
        ([("", Box(0, 0, 1, 1))], [("", Box(0, 0, 0.6, 0.5))], (0.3, 0.0)),
    ],
)
def test_boxes_are_scored_in_the_pairs_that_fit_best(
    true: list[metrics.Thing], found: list[metrics.Thing], value: tuple[float, float]
) -> None:
    assert metrics.box_scores(true, found) == pytest.approx(value)


@given(
    st.integers(1, 4).flatmap(
        lambda rows: st.integers(rows, 5).flatmap(
            lambda columns: st.lists(
                st.lists(st.integers(0, 10), min_size=columns, max_size=columns),
                min_size=rows,
                max_size=rows,
            )
        )
    )
)
def test_no_other_assignment_gains_more(gains: list[list[int]]) -> None:
    chosen = metrics.assign(gains)
    assert len(set(chosen)) == len(gains)
    best = max(
        sum(gains[row][column] for row, column in enumerate(columns))
        for columns in itertools.permutations(range(len(gains[0])), len(gains))
    )
    assert sum(gains[row][column] for row, column in enumerate(chosen)) == best


def ones(values: list[float]) -> np.ndarray:
    return np.array([(value, 1.0) for value in values])


def test_a_difference_has_the_interval_of_its_resamples() -> None:
    rng = np.random.default_rng(1)
    base = ones(rng.integers(0, 2, 200).astype(float).tolist())
    adapter = ones(np.maximum(base[:, 0], rng.integers(0, 2, 200)).tolist())
    found = metrics.compare(base, adapter, range(200)).difference
    assert found is not None
    assert found.value == pytest.approx(adapter[:, 0].mean() - base[:, 0].mean())
    gains = adapter[:, 0] - base[:, 0]
    half = 1.96 * gains.std(ddof=1) / math.sqrt(200)  # what theory says of so many
    assert found.low == pytest.approx(found.value - half, abs=0.01)
    assert found.high == pytest.approx(found.value + half, abs=0.01)


def test_the_same_seed_gives_the_same_interval() -> None:
    scores = ones([0, 1, 1, 0, 1]), ones([1, 1, 1, 0, 0])
    first, again, other = (metrics.compare(*scores, range(5), seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert first.base.value == other.base.value


def test_the_same_replies_differ_by_nothing() -> None:
    scores = ones([0, 1, 1, 0, 1])
    found = metrics.compare(scores, scores, range(5)).difference
    assert found is not None
    assert (found.value, found.low, found.high) == (0, 0, 0)


def test_questions_of_one_video_are_drawn_together() -> None:
    rng = np.random.default_rng(2)
    of_video = np.repeat(rng.integers(0, 2, 20), 10).astype(float)  # all right or all wrong
    scores = ones(of_video.tolist())
    alone = metrics.figure(scores, range(200))
    together = metrics.figure(scores, np.repeat(range(20), 10).tolist())
    assert (alone.groups, together.groups) == (200, 20)
    assert together.high - together.low > 2 * (alone.high - alone.low)


def test_one_video_gives_no_interval() -> None:
    found = metrics.figure(ones([0, 1]), ["a", "a"])
    assert found.value == 0.5
    assert math.isnan(found.low)
    assert math.isnan(found.high)


def test_an_interval_holds_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(3)
    held = 0
    for seed in range(200):
        found = metrics.figure(ones((rng.random(80) < 0.6).astype(float).tolist()), range(80),
                               resamples=400, seed=seed)  # fmt: skip
        held += found.low <= 0.6 <= found.high
    assert held >= 180  # 95 % of 200, less what chance takes
