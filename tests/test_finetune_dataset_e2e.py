"""What is trained is what is served: vLLM reads the same tokens and sees the same pixels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from test_finetune_dataset import KINDS, LOOK, rows

from finetune.dataset import IGNORE, Encoder, load_processor
from finetune.layout import messages
from finetune.media import show_row
from tests.media import Format, three_shots
from vidqa.engine import EngineHandle
from vidqa.vlm import Sampling, VlmClient

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("films")
    return three_shots(folder / "film.mp4", Format(width=320, height=240)).path


@pytest.fixture(scope="module")
def encoder(tiny_answerer: Path) -> Encoder:
    return Encoder(load_processor(str(tiny_answerer)), LOOK, "qwen2-vl")


@pytest.fixture(scope="module")
def model(tiny_answerer: Path) -> Any:
    from transformers import AutoModelForImageTextToText

    return AutoModelForImageTextToText.from_pretrained(tiny_answerer, dtype=torch.float32).eval()


def served(engine: EngineHandle, chat: list[dict[str, Any]]) -> dict[str, Any]:
    """vLLM's whole reply to a conversation that ends in a question."""
    answered = httpx.post(
        f"{engine.base_url}/chat/completions",
        headers={"Authorization": f"Bearer {engine.api_key}"},
        json={
            "model": engine.model,
            "messages": chat,
            "max_tokens": 1,
            "temperature": 0,
            "logprobs": True,
            "top_logprobs": 5,
            "return_token_ids": True,
        },
        timeout=120,
    )
    answered.raise_for_status()
    return dict(answered.json())


@pytest.mark.parametrize("kind", KINDS)
def test_vllm_reads_the_tokens_and_pixels_that_are_trained_on(
    engine: EngineHandle, encoder: Encoder, model: Any, film: Path, kind: str
) -> None:
    row = rows(film)[kind]
    item = encoder(row)
    chat = messages(row, show_row(row, LOOK), LOOK, encoder.family)
    last = max(n for n, one in enumerate(chat) if one["role"] == "assistant")
    reply = served(engine, chat[:last])
    # Where the last run of labels begins, the prompt ends.
    start = int((item["labels"] == IGNORE).nonzero().max()) + 1
    assert reply["usage"]["prompt_tokens"] == start
    assert reply["prompt_token_ids"] == item["input_ids"][:start].tolist()
    with torch.no_grad():
        inputs = {name: value[None] for name, value in item.items() if value.dim() == 1}
        inputs |= {name: value for name, value in item.items() if value.dim() > 1}
        inputs.pop("labels")
        logits = model(**inputs).logits[0, start - 1]
    ours = torch.log_softmax(logits, -1).topk(5).values
    (said,) = reply["choices"][0]["logprobs"]["content"]
    theirs = torch.tensor([one["logprob"] for one in said["top_logprobs"]])
    assert torch.allclose(ours, theirs, atol=5e-3), (ours, theirs)


def test_our_client_asks_in_the_same_tokens(
    engine: EngineHandle, encoder: Encoder, film: Path
) -> None:
    row = rows(film)["video"]
    chat = messages(row, show_row(row, LOOK), LOOK, encoder.family)
    with VlmClient(engine.base_url, engine.api_key, engine.model) as client:
        list(client.stream(chat[:-1], Sampling(max_tokens=1)))
        counted = client.usage.prompt
    assert counted == int((encoder(row)["labels"] == IGNORE).sum())


def test_other_frames_are_seen_as_others(
    engine: EngineHandle, encoder: Encoder, film: Path
) -> None:
    """Or the comparison above would prove nothing of pixels."""
    row = rows(film)["video"]
    (shown,) = show_row(row, LOOK)
    turned = replace(shown, pictures=shown.pictures[::-1])
    first, second = (
        served(engine, messages(row, [one], LOOK, encoder.family)[:-1])["choices"][0]["logprobs"]
        for one in (shown, turned)
    )
    # The likeliest token is all but certain to random weights, the next ones are not.
    a, b = (one["content"][0]["top_logprobs"][1]["logprob"] for one in (first, second))
    assert abs(a - b) > 0.1
