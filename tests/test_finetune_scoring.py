"""What rows ask, what is right, and what replies to them score."""

from __future__ import annotations

from dataclasses import replace

import pytest
from finetune_parts import asked, hide_scorers, shown_of

from finetune import scoring
from finetune.infer import sizes_of
from finetune.layout import Look, messages
from finetune.rows import Boxed, Located, Origin, Part, Ref, Row, Task, Turn
from finetune.scoring import (
    asked_turns,
    check_packages,
    cut,
    question_text,
    scores,
    truth_of,
)
from vidqa.boxes import Box, Family
from vidqa.errors import MissingExtra
from vidqa.prompt import NOT_SHOWN


def truth(row: Row, family: Family = "qwen2-vl") -> scoring.Truth:
    (turn,) = asked_turns(row)
    shown = shown_of(row)
    _, expected = cut(row, messages(row, shown, Look(), family), turn)
    assert expected is not None
    return truth_of(row, turn, expected, family, sizes_of(shown))


SENTENCE = "A man in a red coat walks slowly past the old door and then he opens it."


@pytest.mark.parametrize(
    ("question", "answer", "choices", "task"),
    [
        ("Which colour?", "The star is red.", (), "answer"),
        ("Which colour?", "B", ("red", "blue"), "choice"),
        ("Which?\nA. red\nB. blue", "B", (), "choice"),
        ("Which?\nA. red\nB. blue", "neither", (), "answer"),
        ("When?", "from 12.5 to 15", (), "span"),
        ("When?", "00:00:01-00:00:03", (), "span"),
        ("How many?", "2-3", (), "answer"),
        ("What happens?", SENTENCE, (), "caption"),
        ("Where?", Located((("star", Box(0, 0, 0.5, 0.5)),)), (), "box"),
        ("Where?", ("At ", Boxed(Box(0, 0, 0.5, 0.5))), (), "box"),
    ],
)
def test_the_form_of_an_answer_says_how_it_is_scored(
    question: str, answer: str | Part | tuple[Part, ...], choices: tuple[str, ...], task: Task
) -> None:
    assert truth(asked(1, question, answer, choices=choices)).task == task


def test_a_rows_own_task_counts_more_than_its_form() -> None:
    assert truth(asked(1, "What?", "A dog.", task="caption")).task == "caption"
    assert truth(asked(1, "What?", SENTENCE, task="answer")).task == "answer"


@pytest.mark.parametrize("task", ["choice", "span", "box"])
def test_a_task_that_its_answer_does_not_fit_becomes_an_answer(task: Task) -> None:
    assert truth(asked(1, "What?", "A dog.", task=task)).task == "answer"


@pytest.mark.parametrize(
    ("row", "reply", "expected"),
    [
        (asked(1, "?", "The star is red."), "star is red [1]", {"exact_match": 1, "token_f1": 1}),
        (asked(1, "?", "red star"), "red ball", {"exact_match": 0, "token_f1": 0.5}),
        (asked(1, "?", NOT_SHOWN), NOT_SHOWN, {"exact_match": 1, "token_f1": 1}),
        (asked(1, "?", "B", choices=("red", "blue")), "It is blue [1].", {"accuracy": 1}),
        (asked(1, "?", "B", choices=("red", "blue")), "A", {"accuracy": 0}),
        (asked(1, "?", "a dog runs", task="caption"), "a dog runs [1]", {"rouge_l": 1}),
        (asked(1, "?", "from 0 to 4", task="span"), "0:01 - 0:04 [1]",
         {"temporal_iou": 0.75, "accuracy_at_0.5": 1}),
        (asked(1, "?", "[1, 3]", task="span"), "[1, 3] [1]", {"temporal_iou": 1}),
        (asked(1, "?", "from 1 to 3", task="span"), "[1-3]", {"temporal_iou": 1}),
        (asked(1, "?", "a dog runs home", task="caption"), "a dog runs home [1, 2]",
         {"rouge_l": 1, "bleu": 1}),
    ],
)  # fmt: skip
def test_replies_are_scored_by_task(row: Row, reply: str, expected: dict[str, float]) -> None:
    found = scores(truth(row), reply)
    assert {name: found[name] for name in expected} == pytest.approx(expected)


@pytest.mark.parametrize(
    "row", [asked(1, "What?", SENTENCE), asked(1, "What?", "A dog.", task="caption")]
)
def test_captions_that_cannot_be_scored_are_an_error_before_they_are_asked(
    monkeypatch: pytest.MonkeyPatch, row: Row
) -> None:
    hide_scorers(monkeypatch)
    match = r"rouge_score and sacrebleu not installed; uv pip install 'vidqa\[train\]'"
    with pytest.raises(MissingExtra, match=match):
        check_packages([asked(1, "What?", "A dog."), row])


def test_rows_without_captions_need_no_packages_to_be_scored(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hide_scorers(monkeypatch)
    broken = replace(asked(4, "What?", SENTENCE), faults=("its video is missing",))
    check_packages([asked(1, "What?", "A dog."), asked(2, "What?", SENTENCE, task="answer"),
                    asked(3, SENTENCE, None), broken])  # fmt: skip


# 140 of 560 pixels are a quarter; the picture that the model sees is 56 x 56.
QUARTER = Box(0, 0, 140, 140, "pixel")


@pytest.mark.parametrize(
    ("family", "reply"),
    [
        ("qwen2-vl", "<|object_ref_start|>star<|object_ref_end|>"
                     "<|box_start|>(0,0),(250,250)<|box_end|>"),
        ("qwen2-vl", "star(0,0),(250,250)"),
        ("qwen2.5-vl", '[{"bbox_2d": [0, 0, 14, 14], "label": "star"}]'),
        ("qwen3-vl", '[{"bbox_2d": [0, 0, 250, 250], "label": "star"}]'),
    ],
)  # fmt: skip
def test_boxes_in_pixels_are_compared_to_what_each_family_writes(
    family: Family, reply: str
) -> None:
    row = asked(1, "Where?", Located((("star", QUARTER),)))
    found = scores(truth(row, family), reply)
    assert found == {"iou": pytest.approx(1.0, abs=0.02), "accuracy_at_0.5": 1.0}


def test_boxes_within_a_sentence_have_the_name_before_them() -> None:
    row = asked(1, "Where?", [Ref("star"), " is at ", Boxed(QUARTER)])
    assert [name for name, _ in truth(row).things] == ["star"]
    assert scores(truth(row), "star(0,0),(250,250)")["iou"] == pytest.approx(1.0)
    assert scores(truth(row), "I see none.")["iou"] == 0.0


def test_boxes_that_the_data_has_in_the_models_own_words_are_known() -> None:
    row = asked(1, "Where?", "<|box_start|>(0,0),(250,250)<|box_end|>", task="box")
    assert scores(truth(row), "(0,0),(250,250)") == {"iou": 1.0, "accuracy_at_0.5": 1.0}


# Turns


def conversation(*turns: tuple[str, str]) -> Row:
    return Row(
        tuple(Turn(role, (text,)) for role, text in turns),  # type: ignore[arg-type]
        Origin("rows.jsonl", 1),
    )


TALK = conversation(
    ("system", "Be brief."), ("user", "What?"), ("assistant", "A star."), ("user", "Red?"),
    ("assistant", "Yes."),
)  # fmt: skip


def test_each_turn_that_trains_is_asked_with_what_was_said_before() -> None:
    whole = messages(TALK, (), Look(cite=False), "qwen2-vl")
    assert asked_turns(TALK) == [2, 4]
    first, expected = cut(TALK, whole, 2)
    assert ([one["role"] for one in first], expected) == (["system", "user"], "A star.")
    second, expected = cut(TALK, whole, 4)
    assert ([one["role"] for one in second], expected) == (
        ["system", "user", "assistant", "user"],
        "Yes.",
    )
    assert question_text(TALK, 4) == "Red?"


def test_a_question_at_the_end_is_asked_and_has_no_right_answer() -> None:
    row = asked(1, "What is it?", None)
    assert asked_turns(row) == [1]
    prompt, expected = cut(row, messages(row, shown_of(row), Look(), "qwen2-vl"), 1)
    assert [one["role"] for one in prompt] == ["system", "user"]
    assert expected is None


def test_a_turn_that_does_not_train_is_not_asked() -> None:
    row = Row(
        (Turn("user", ("What?",)), Turn("assistant", ("A star.",), trains=False)),
        Origin("rows.jsonl", 1),
    )
    assert asked_turns(row) == []
