"""The managed engine with the real vLLM inside, and asking through it."""

from __future__ import annotations

import base64
import io
import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from conftest import REPOSITORY
from engine_fixture import small_engine
from PIL import Image
from tiny_models import ANSWERERS, make_answerer
from waiting import until

from vidqa import engine as managed
from vidqa.engine import EngineHandle, EngineOptions, ensure_engine
from vidqa.prompt import build_messages
from vidqa.types import Moment, Picture, ShownMoment
from vidqa.vlm import Sampling, VlmClient

pytestmark = pytest.mark.e2e


def picture(seconds: float, seed: int) -> Picture:
    """112 x 84 pixels: 12 visual tokens for two of them."""
    pixels = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), np.uint8)
    encoded = io.BytesIO()
    Image.fromarray(pixels).resize((112, 84)).save(encoded, "JPEG", quality=92)
    return Picture(seconds, encoded.getvalue())


def shown(frames: int, moments: int = 2, seed: int = 0) -> list[ShownMoment]:
    return [
        ShownMoment(
            n,
            Moment(f"/film{n}.mp4", "ab", 5.0 * n, 5.0 * n + 4, 0.5, ()),
            tuple(picture(5.0 * n + at, seed + 100 * n + at) for at in range(frames)),
        )
        for n in range(1, moments + 1)
    ]


def asked(handle: EngineHandle, messages: Sequence[Any], tokens: int = 12) -> tuple[str, int]:
    """The answer, and the tokens of the prompt."""
    with VlmClient(handle.base_url, handle.api_key, handle.model) as client:
        text = "".join(client.stream(messages, Sampling(max_tokens=tokens)))
        return whole_characters(text), client.usage.prompt


def whole_characters(text: str) -> str:
    """Random weights may end within a character, whose bytes a stream holds back."""
    return text.rstrip("\N{REPLACEMENT CHARACTER}")


def processes_of(group: int) -> list[int]:
    """The processes of a group that have not ended."""
    listed = subprocess.run(
        ["ps", "-A", "-o", "pid=,pgid=,stat="], capture_output=True, text=True, check=True
    )
    rows = [line.split() for line in listed.stdout.splitlines()]
    return [int(pid) for pid, pgid, state in rows if int(pgid) == group and state[0] != "Z"]


# ---------------------------------------------------------------- the model is shown what we send


def transformers_answer(folder: Path, messages: Sequence[Any], tokens: int) -> tuple[str, int]:
    """What transformers makes of the same messages, greedily, and the tokens of its prompt."""
    import torch
    from transformers import AutoProcessor, Qwen2VLForConditionalGeneration

    processor = AutoProcessor.from_pretrained(folder)
    model = Qwen2VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    videos, chat = [], []
    for message in messages:
        parts = message["content"]
        if not isinstance(parts, str):
            urls = [part["video_url"]["url"] for part in parts if part["type"] == "video_url"]
            videos += [np.stack([decoded(jpeg) for jpeg in url.split(",")[1:]]) for url in urls]
            parts = [{"type": "video"} if part["type"] == "video_url" else part for part in parts]
        chat.append({"role": message["role"], "content": parts})
    text = processor.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    batch = processor(text=[text], videos=videos, return_tensors="pt", do_sample_frames=False)
    with torch.no_grad():
        out = model.generate(**batch, max_new_tokens=tokens, do_sample=False)
    prompt_tokens = batch["input_ids"].shape[1]
    answer = processor.batch_decode(out[:, prompt_tokens:], skip_special_tokens=True)[0]
    return whole_characters(answer), prompt_tokens


def decoded(jpeg: str) -> Any:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(jpeg))).convert("RGB"))


@pytest.mark.parametrize("frames", [4, 3])
def test_the_engine_answers_as_transformers_does(
    engine: EngineHandle, tiny_answerer: Path, frames: int
) -> None:
    messages = build_messages("What colour is the star?", shown(frames))
    assert asked(engine, messages) == transformers_answer(tiny_answerer, messages, 12)


def test_two_frames_cost_twelve_tokens_so_nothing_was_resized(engine: EngineHandle) -> None:
    costs = [asked(engine, build_messages("What?", shown(frames)), 1)[1] for frames in (2, 4, 6)]
    assert [more - less for less, more in itertools.pairwise(costs)] == [24, 24]


def test_no_frame_of_a_long_moment_is_dropped(engine: EngineHandle) -> None:
    costs = [asked(engine, build_messages("What?", shown(n, 1)), 1)[1] for n in (32, 64)]
    assert costs[1] - costs[0] == 16 * 12


def test_the_answer_depends_on_the_frames(engine: EngineHandle) -> None:
    answers = {asked(engine, build_messages("What?", shown(4, seed=seed)))[0] for seed in range(3)}
    assert len(answers) > 1


# ---------------------------------------------------------------- rights


def chat(engine: EngineHandle, part: dict[str, Any]) -> httpx.Response:
    body = {
        "model": engine.model,
        "messages": [{"role": "user", "content": [part, {"type": "text", "text": "What?"}]}],
        "max_tokens": 1,
    }
    headers = {"Authorization": f"Bearer {engine.api_key}"}
    return httpx.post(f"{engine.base_url}/chat/completions", json=body, headers=headers, timeout=60)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://127.0.0.1:9/film.mp4", "must be from one of the allowed domains"),
        ("http://169.254.169.254/latest/meta-data", "must be from one of the allowed domains"),
        ("file:///etc/passwd", "Cannot load local files"),
        (f"file://{REPOSITORY}/README.md", "Cannot load local files"),
    ],
)
def test_the_engine_fetches_no_address_and_reads_no_file(
    engine: EngineHandle, url: str, reason: str
) -> None:
    answer = chat(engine, {"type": "video_url", "video_url": {"url": url}})
    assert answer.status_code >= 400
    assert reason in answer.text


def test_the_engine_takes_no_images(engine: EngineHandle) -> None:
    jpeg = base64.b64encode(picture(0, 0).jpeg).decode()
    url = {"url": f"data:image/jpeg;base64,{jpeg}"}
    assert chat(engine, {"type": "image_url", "image_url": url}).status_code == 400


@pytest.mark.parametrize("path", ["/metrics", "/docs", "/v1/load_lora_adapter", "/tokenize"])
def test_vllms_other_routes_are_shut(engine: EngineHandle, path: str) -> None:
    root = engine.base_url.removesuffix("/v1")
    headers = {"Authorization": f"Bearer {engine.api_key}"}
    # 403 where another test has left an engine that serves adapters: it loads none of elsewhere.
    assert httpx.post(root + path, headers=headers).status_code in (403, 404)
    assert httpx.get(root + path).status_code == 401


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_every_process_of_the_engine_listens_on_loopback_alone(engine: EngineHandle) -> None:
    inodes = {
        os.readlink(link)
        for pid in processes_of(engine.pid)
        for link in Path(f"/proc/{pid}/fd").iterdir()
    }
    listening = [
        fields[1].partition(":")[0]
        for table in ("tcp", "tcp6")
        for fields in (line.split() for line in Path(f"/proc/net/{table}").read_text().splitlines())
        if fields[3] == "0A" and f"socket:[{fields[9]}]" in inodes
    ]
    assert set(listening) == {"0100007F"}


# ---------------------------------------------------------------- life and death


def test_the_engine_is_shared(
    engine: EngineHandle, tiny_answerer: Path, engine_folder: Path
) -> None:
    assert ensure_engine(small_engine(tiny_answerer), engine_folder).pid == engine.pid


def test_an_engine_that_is_killed_leaves_no_process_behind(
    engine: EngineHandle, engine_folder: Path
) -> None:
    assert len(processes_of(engine.pid)) > 1
    os.kill(engine.pid, signal.SIGKILL)
    until(lambda: not processes_of(engine.pid))
    assert managed.status(engine_folder) is None


def test_an_engine_that_cannot_start_tells_vllms_reason(
    tiny_answerer: Path, engine_folder: Path
) -> None:
    options = EngineOptions(model=str(tiny_answerer), dtype="float32", max_model_len=100_000)
    with pytest.raises(managed.EngineError, match=r"did not start: .*max_model_len"):
        ensure_engine(options, engine_folder)


# ---------------------------------------------------------------- the models behind the defaults


@pytest.mark.parametrize("name", sorted(set(ANSWERERS) - {"qwen2-vl-tiny"}))
def test_an_architecture_of_the_real_models_is_served_and_ends_when_told(
    name: str, engine_folder: Path, tmp_path: Path
) -> None:
    folder = make_answerer(tmp_path / name, name)
    handle = ensure_engine(small_engine(folder), engine_folder)
    text, prompt_tokens = asked(handle, build_messages("What colour is the star?", shown(4)))
    assert text
    assert prompt_tokens > 48
    assert managed.stop(engine_folder)
    until(lambda: not processes_of(handle.pid))
