"""Follow-ups become questions that a search can use."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vidqa.conversation import (
    MAX_QUESTION_CHARACTERS,
    MAX_TURNS,
    Turn,
    is_follow_up,
    joined,
    rewrite_messages,
    stand_alone,
)

TURNS = [
    Turn("user", "Where is the dog?"),
    Turn("assistant", "In the city [1]."),
    Turn("user", "And after\nthat?"),
]

words = st.text(st.characters(codec="utf-8"), max_size=40)
conversations = st.lists(st.builds(Turn, st.sampled_from(["user", "assistant"]), words), min_size=1)


def test_a_first_question_is_no_follow_up() -> None:
    assert not is_follow_up([Turn("assistant", "Hello."), Turn("user", "Where is the dog?")])
    assert is_follow_up(TURNS)


def test_without_a_model_the_question_before_comes_along() -> None:
    assert joined(TURNS) == "Where is the dog? And after that?"


def test_questions_further_back_do_not() -> None:
    assert joined([Turn("user", "Who sings?"), *TURNS]) == "Where is the dog? And after that?"


def test_a_model_is_shown_the_conversation_with_the_last_question_last() -> None:
    system, user = rewrite_messages(TURNS)
    assert system["role"] == "system"
    assert user["content"].splitlines() == [
        "User: Where is the dog?",
        "Assistant: In the city [1].",
        "User: And after that?",
    ]


def test_a_long_conversation_is_cut_to_its_end() -> None:
    lines = rewrite_messages([Turn("user", str(n)) for n in range(20)])[1]["content"].splitlines()
    assert lines == [f"User: {n}" for n in range(20 - MAX_TURNS, 20)]


def test_the_question_of_the_model_is_taken() -> None:
    assert stand_alone(' "What comes after the dog?" ', TURNS) == "What comes after the dog?"


@pytest.mark.parametrize("reply", ["", "  ", "One.\nTwo.", "x" * (MAX_QUESTION_CHARACTERS + 1)])
def test_a_reply_that_is_no_question_is_not(reply: str) -> None:
    assert stand_alone(reply, TURNS) == joined(TURNS)


@given(conversations)
def test_a_line_of_the_conversation_cannot_pass_for_another_turn(turns: list[Turn]) -> None:
    assert len(rewrite_messages(turns)[1]["content"].split("\n")) == min(len(turns), MAX_TURNS)
