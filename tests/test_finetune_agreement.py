"""When two answers say the same."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.agreement import agreement, is_not_shown, same_question, uncited
from vidqa.prompt import NOT_SHOWN

COLOUR = "What colour is the car?"


@pytest.mark.parametrize(
    ("question", "one", "other"),
    [
        (COLOUR, "The car is red.", "Red"),
        (COLOUR, "Red [1].", "red"),
        (COLOUR, "It is red.", "The car is red [1]."),
        ("How many people are there?", "Two people.", "There are 2 people"),
        ("Is it raining?", "No.", "No, it is not raining."),
        ("What is it?", "一辆红色的车", "一辆 红色的车。"),
        ("Who is there?", NOT_SHOWN, f"{NOT_SHOWN} [1]"),
    ],
)
def test_answers_that_say_the_same_agree(question: str, one: str, other: str) -> None:
    assert agreement(question, one, other) >= 0.6


@pytest.mark.parametrize(
    ("question", "one", "other"),
    [
        (COLOUR, "The car is red.", "The car is blue."),
        ("Is the car red or blue?", "It is red.", "It is blue."),
        ("Is the red car left or right?", "The red car is left.", "The red car is right."),
        ("How many people are there?", "There are 2 people in the room.", "There are 3 people."),
        ("Is it raining?", "Yes, it is raining.", "No, it is not raining."),
        ("Is the door open?", "The door is open.", "The door isn't open."),
        (COLOUR, "Red.", NOT_SHOWN),
        ("What is it?", "一辆红色的车", "蓝天"),
    ],
)
def test_answers_that_contradict_each_other_do_not_agree(
    question: str, one: str, other: str
) -> None:
    assert agreement(question, one, other) < 0.6


@given(st.text(), st.text(), st.text())
def test_agreement_is_a_share_and_the_same_from_both_sides(q: str, one: str, other: str) -> None:
    found = agreement(q, one, other)
    assert 0 <= found <= 1
    assert found == agreement(q, other, one)


@given(st.text(), st.text())
def test_an_answer_agrees_with_itself(question: str, answer: str) -> None:
    assert agreement(question, answer, answer) == 1


def test_markers_are_taken_out_with_the_space_before_them() -> None:
    assert uncited("The star [1] is\n red [1, 2].") == "The star is red."


def test_only_the_agreed_words_say_that_nothing_shows_it() -> None:
    assert is_not_shown(f" {NOT_SHOWN.lower()} [1]")
    assert not is_not_shown("Not in the moments shown, but probably red.")


def test_questions_that_differ_in_filling_words_alone_are_the_same() -> None:
    assert same_question("What colour is the car?") == same_question(
        "what is the colour of the car"
    )
    assert same_question("What colour is the car?") != same_question("What colour is the bus?")
    assert same_question("What is it?") != same_question("Who is it?")
