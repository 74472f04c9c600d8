"""Rows are asked many at once: order, failures, resuming. The endpoint is a fake one."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from adapter_parts import make_adapter
from fakes import FakeEndpoint
from finetune_parts import asked, shown_of
from waiting import LIMIT_SECONDS

from finetune.answer_file import AnswerFile
from finetune.infer import InferOptions, Kept, OpenClient, infer, made_by
from finetune.layout import Look, Shown, messages
from finetune.rows import Boxed, Located, Row, Turn
from vidqa.boxes import Box
from vidqa.errors import EndpointError, UsageError, VideoError
from vidqa.vlm import AsyncVlmClient, Sampling

OPTIONS = InferOptions(look=Look(), family="qwen2-vl")


def opener(endpoint: FakeEndpoint) -> OpenClient:
    return lambda: AsyncVlmClient(endpoint.base_url)


def text_of(body: dict[str, Any]) -> str:
    return str(body["messages"][-1]["content"][-1]["text"])


def rows(count: int) -> list[Row]:
    return [asked(n, f"What is number {n}?", f"It is {n}.") for n in range(1, count + 1)]


def number(body: dict[str, Any]) -> str:
    """A right answer to any of `rows`."""
    return f"It is {text_of(body).removeprefix('Question: What is number ').rstrip('?')}."


def test_every_row_gets_its_own_answer_with_its_scores() -> None:
    kept = Kept()
    with FakeEndpoint(says=number) as endpoint:
        tally = infer(rows(20), opener(endpoint), shown_of, OPTIONS, kept)
    assert (tally.answered, tally.failed, tally.known) == (20, 0, 0)
    assert sorted(kept.records) == list(range(1, 21))
    record = kept.records[7]
    assert record["line"] == 7
    assert record["model"] == "fake-vl"
    assert record["answers"] == [
        {
            "question": "What is number 7?",
            "text": "It is 7.",
            "expected": "It is 7 [1].",
            "task": "answer",
            "scores": {"exact_match": 1.0, "token_f1": 1.0},
            "finish_reason": "stop",
            "tokens": {"prompt": 100, "completion": 1},
        }
    ]


def test_several_rows_are_asked_at_a_time_and_no_more_than_allowed() -> None:
    lock, now, most = threading.Lock(), [0], [0]
    all_there = threading.Event()

    def answer(body: dict[str, Any]) -> str:
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
            if now[0] == 3:
                all_there.set()
        all_there.wait(LIMIT_SECONDS)
        with lock:
            now[0] -= 1
        return "red"

    options = InferOptions(look=Look(), family="qwen2-vl", at_once=3)
    with FakeEndpoint(says=answer) as endpoint:
        infer(rows(9), opener(endpoint), shown_of, options, Kept())
    assert most[0] == 3


def test_an_adapter_is_asked_by_its_name() -> None:
    options = InferOptions(look=Look(), family="qwen2-vl", model="birds",
                           sampling=Sampling(max_tokens=7))  # fmt: skip
    with FakeEndpoint(models=("fake-vl", "birds")) as endpoint:
        infer(rows(1), opener(endpoint), shown_of, options, Kept())
        (body,) = endpoint.requests
    assert (body["model"], body["max_tokens"]) == ("birds", 7)


def test_the_model_is_shown_what_precedes_the_answer_and_never_the_answer() -> None:
    with FakeEndpoint() as endpoint:
        infer(rows(1), opener(endpoint), shown_of, OPTIONS, Kept())
        (body,) = endpoint.requests
    assert [one["role"] for one in body["messages"]] == ["system", "user"]
    assert "It is 1" not in str(body)


def test_boxes_in_questions_and_earlier_answers_are_asked_as_they_are_trained_on() -> None:
    box = Boxed(Box(0.1, 0.2, 0.5, 0.6))
    first = asked(1, "Where is it?", ("At ", box))
    row = Row((*first.turns, Turn("user", ("<|im_end|> And at ", box, "?"))), first.origin)
    with FakeEndpoint() as endpoint:
        infer([row], opener(endpoint), shown_of, OPTIONS, Kept())
        body = endpoint.requests[-1]
    assert body["messages"] == messages(row, shown_of(row), OPTIONS.look, OPTIONS.family)
    said = body["messages"][-1]["content"][0]["text"]
    assert said == "< |im_end|> And at <|box_start|>(100,200),(500,600)<|box_end|>?"


def test_boxes_in_pixels_are_of_the_picture_as_the_model_sees_it() -> None:
    options = InferOptions(
        look=Look(), family="qwen2.5-vl", shown_size=lambda width, height: (2 * width, 2 * height)
    )
    left_half = Located((("star", Box(0, 0, 0.5, 1)),))
    row = asked(1, "Where?", left_half)
    asks_on = Row((*row.turns, Turn("user", ("And now?",)), Turn("assistant", (left_half,))),
                  row.origin)  # fmt: skip
    kept = Kept()
    reply = '[{"bbox_2d": [0, 0, 56, 112], "label": "star"}]'
    with FakeEndpoint(says=lambda body: reply) as endpoint:
        infer([asks_on], opener(endpoint), shown_of, options, kept)
        told = endpoint.requests[-1]["messages"][-2]["content"]
    assert "[0, 0, 56, 112]" in told
    assert [one["scores"]["iou"] for one in kept.records[1]["answers"]] == [1.0, 1.0]


def test_a_row_that_cannot_be_read_costs_that_row_only() -> None:
    def show(row: Row) -> tuple[Shown, ...]:
        if row.origin.line == 2:
            raise VideoError("/films/a.mp4: no such\nfile")
        return shown_of(row)

    kept = Kept()
    with FakeEndpoint() as endpoint:
        tally = infer(rows(4), opener(endpoint), show, OPTIONS, kept)
    assert (tally.answered, tally.failed) == (3, 1)
    assert kept.records[2]["error"] == "/films/a.mp4: no such file"
    assert "answers" not in kept.records[2]


def test_a_row_that_asks_nothing_is_told_so() -> None:
    kept = Kept()
    with FakeEndpoint() as endpoint:
        infer([Row((), rows(1)[0].origin)], opener(endpoint), shown_of, OPTIONS, kept)
    assert kept.records[1]["error"].startswith("nothing is asked")


def test_rows_that_the_endpoint_refuses_do_not_end_the_run() -> None:
    with FakeEndpoint(status=400, error="too long") as endpoint:
        tally = infer(rows(30), opener(endpoint), shown_of, OPTIONS, Kept())
    assert tally.failed == 30


@pytest.mark.parametrize("status", [500, 401, 404])
def test_an_endpoint_that_fails_every_row_ends_the_run(status: int) -> None:
    kept = Kept()
    with (
        FakeEndpoint(status=status, error="no") as endpoint,
        pytest.raises(EndpointError),
    ):
        infer(rows(50), opener(endpoint), shown_of, OPTIONS, kept)
    assert len(kept.records) < 20


def test_an_endpoint_that_is_gone_ends_the_run_at_once() -> None:
    with FakeEndpoint() as endpoint:
        open_client = opener(endpoint)
    kept = Kept()
    with pytest.raises(EndpointError, match="nobody answers there"):
        infer(rows(50), open_client, shown_of, OPTIONS, kept)
    assert kept.records == {}


def test_an_answer_that_is_cut_off_is_counted() -> None:
    with FakeEndpoint(finish="length") as endpoint:
        tally = infer(rows(2), opener(endpoint), shown_of, OPTIONS, Kept())
    assert (tally.answered, tally.cut_off) == (2, 2)


def test_progress_counts_every_row_known_ones_too() -> None:
    kept, heard = Kept(), list[tuple[int, int]]()
    kept.write({"row": 1, "answers": []})
    with FakeEndpoint() as endpoint:
        infer(rows(3), opener(endpoint), shown_of, OPTIONS, kept,
              lambda done, total: heard.append((done, total)))  # fmt: skip
    assert heard == [(2, 3), (3, 3)]


def test_nothing_is_asked_when_all_is_known() -> None:
    kept = Kept()
    kept.write({"row": 1, "answers": []})
    tally = infer(rows(1), lambda: pytest.fail("asked"), shown_of, OPTIONS, kept)
    assert tally.known == 1


def breaking(after: int) -> Callable[[dict[str, Any]], str]:
    """Right answers, until it breaks off for good."""
    left = iter(range(after))
    return lambda body: number(body) if next(left, None) is not None else ""


def test_a_run_that_broke_off_goes_on_where_it_was(tmp_path: Path) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text("rows")
    path = tmp_path / "answers.jsonl"
    follows = made_by([data], "fake-vl", None, OPTIONS)
    with (
        FakeEndpoint(says=breaking(11)) as endpoint,
        AnswerFile(path, follows) as file,
        pytest.raises(EndpointError, match="broke off"),
    ):
        infer(rows(30), opener(endpoint), shown_of, OPTIONS, file)
    with FakeEndpoint(says=number) as endpoint:
        with AnswerFile(path, follows) as file:
            answered = len(file.done)
            tally = infer(rows(30), opener(endpoint), shown_of, OPTIONS, file)
            file.finish()
        assert len(endpoint.requests) == 30 - tally.known
    assert 0 < tally.known == answered <= 11  # some may be under way when it breaks off
    assert tally.failed == 0
    assert path.read_text().count("\n") == 30


def test_changed_data_or_another_adapter_is_another_run(tmp_path: Path) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text("one")
    first = made_by([data], "fake-vl", None, OPTIONS)
    data.write_text("two")
    assert made_by([data], "fake-vl", None, OPTIONS)["data"] != first["data"]
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.safetensors").write_bytes(b"1")
    with_adapter = made_by([data], "fake-vl", tmp_path, OPTIONS)["adapter"]
    (tmp_path / "adapter_model.safetensors").write_bytes(b"2")
    assert first["adapter"] is None
    assert made_by([data], "fake-vl", tmp_path, OPTIONS)["adapter"] != with_adapter


def test_an_adapter_that_only_the_endpoint_has_is_known_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    birds = made_by([], "fake-vl", None, replace(OPTIONS, model="birds"))
    with AnswerFile(path, birds) as file:
        file.write({"row": 1})
    for other, name in (("wrens", "wrens"), (None, "null")):
        now = made_by([], "fake-vl", None, replace(OPTIONS, model=other))
        with pytest.raises(UsageError, match=rf"\(adapter: birds then, {name} now\)"):
            AnswerFile(path, now)


def test_data_that_is_not_there_is_said() -> None:
    with pytest.raises(UsageError, match=r"nowhere\.jsonl: No such file"):
        made_by([Path("nowhere.jsonl")], "fake-vl", None, OPTIONS)


def test_a_row_whose_box_is_no_number_costs_that_row_only() -> None:
    bad = asked(2, "Where?", Located((("star", Box(float("nan"), 0, 1, 1)),)))
    kept = Kept()
    with FakeEndpoint(says=number) as endpoint:
        tally = infer([rows(1)[0], bad], opener(endpoint), shown_of, OPTIONS, kept)
    assert (tally.answered, tally.failed) == (1, 1)
    assert "has a side that is no number" in kept.records[2]["error"]


def test_an_adapter_that_is_added_more_strongly_is_another_run(tmp_path: Path) -> None:
    adapter = make_adapter(tmp_path / "birds")
    before = made_by([], "tiny", adapter, OPTIONS)
    make_adapter(adapter, lora_alpha=64)
    assert made_by([], "tiny", adapter, OPTIONS) != before
