"""Requests that are large and wrong cost no more than small ones: each error is an object."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError
from waiting import times_dearer

from vidqa.server.schemas import (
    MAX_TEXT_CHARACTERS,
    ChatRequest,
    EmbeddingRequest,
    SearchRequest,
)

MANY = 200_000


def asked(content: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content}]}


@pytest.mark.parametrize(
    ("model", "body"),
    [
        (ChatRequest, {"messages": [{}] * MANY}),
        (ChatRequest, asked([{}] * MANY)),
        (ChatRequest, asked("red") | {"stop": [1] * MANY}),
        (ChatRequest, asked("red") | {"vidqa": {str(n): 1 for n in range(MANY)}}),
        (ChatRequest, asked("red") | {"vidqa": {"filters": {"video_ids": [1] * MANY}}}),
        (EmbeddingRequest, {"input": [{}] * MANY}),
        (EmbeddingRequest, {"input": [["a"] * MANY]}),
        (EmbeddingRequest, {"input": "red"} | {str(n): 1 for n in range(MANY)}),
        (SearchRequest, {"query": "red"} | {str(n): 1 for n in range(MANY)}),
    ],
)
def test_many_faults_are_told_as_few(model: type[BaseModel], body: dict[str, Any]) -> None:
    def refuse() -> None:
        with pytest.raises(ValidationError) as error:
            model.model_validate(body)
        assert error.value.error_count() < 1000

    text = json.dumps(body)
    assert times_dearer(refuse, lambda: json.loads(text)) < 2


def test_a_message_in_parts_may_be_no_longer_than_one_in_a_piece() -> None:
    half = {"type": "text", "text": "x" * (MAX_TEXT_CHARACTERS // 2 + 1)}
    ChatRequest.model_validate(asked([half]))
    with pytest.raises(ValidationError, match="at most 20,000 characters"):
        ChatRequest.model_validate(asked([half, half]))
