"""Adapters with the real vLLM: PEFT makes them, the engine applies them, the server names them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from engine_fixture import small_engine
from serve_fixture import Films, Served, serving
from test_engine_e2e import asked, shown, transformers_answer
from tiny_models import make_lora

from finetune.recipe import VISION_TARGETS
from vidqa import adapters
from vidqa.adapter_fit import check_base, servable
from vidqa.adapter_weights import base_digest
from vidqa.adapters import AdapterCard
from vidqa.config import resolve_bundled
from vidqa.engine import EngineHandle, ensure_engine
from vidqa.engine_adapters import _client, _likelihoods, load, loaded, unload
from vidqa.errors import ModelError
from vidqa.prompt import build_messages
from vidqa.vlm import Sampling, VlmClient

pytestmark = pytest.mark.e2e

QUESTION = build_messages("What colour is the star?", shown(4))
Rename = Callable[[str], str]


@pytest.fixture(scope="module")
def made(tiny_answerer: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Adapters of the tiny model by name, each made once."""
    folder = tmp_path_factory.mktemp("adapters")

    def make(name: str, **config: Any) -> Path:
        place = folder / name
        return place if place.exists() else make_lora(tiny_answerer, place, **config)

    return make


@pytest.fixture
def engine(tiny_answerer: Path, engine_folder: Path) -> EngineHandle:
    """An engine that may load adapters."""
    return ensure_engine(small_engine(tiny_answerer).allowing(16), engine_folder)


def answer_of(handle: EngineHandle, model: str, tokens: int = 12) -> str:
    with VlmClient(handle.base_url, handle.api_key, model) as client:
        text = "".join(client.stream(QUESTION, Sampling(max_tokens=tokens)))
    return text.rstrip("\N{REPLACEMENT CHARACTER}")


def test_an_adapter_answers_as_peft_does_and_the_base_goes_on_as_it_did(
    engine: EngineHandle, tiny_answerer: Path, made: Callable[..., Path], tmp_path: Path
) -> None:
    import peft
    import torch
    from transformers import Qwen2VLForConditionalGeneration

    base = asked(engine, QUESTION)[0]
    birds, cats = made("birds"), made("cats", seed=1)
    names = [load(engine, servable(one), one.name).model for one in (birds, cats)]
    answers = [answer_of(engine, one) for one in names]
    assert len({base, *answers}) == 3
    assert [answer_of(engine, one) for one in names] == answers  # also from the cache
    assert asked(engine, QUESTION)[0] == base
    # What PEFT makes of the adapter and its base together, as one model.
    whole = Qwen2VLForConditionalGeneration.from_pretrained(tiny_answerer, dtype=torch.float32)
    merged = peft.PeftModel.from_pretrained(whole, str(birds)).merge_and_unload()
    for file in tiny_answerer.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    merged.save_pretrained(tmp_path)
    assert answers[0] == transformers_answer(tmp_path, QUESTION, 12)[0]


NAMES: dict[str, tuple[Rename, bool]] = {
    "since transformers 4.52": (lambda name: name, True),
    "before it": (lambda name: name.replace(".model.language_model.", ".model."), True),
    "vLLM's own": (
        lambda name: name.replace("model.model.language_model.", "model.language_model.model."),
        True,
    ),
    "cut short": (lambda name: name.replace(".model.language_model.", ".language_model."), False),
}  # fmt: skip


@pytest.mark.parametrize("which", NAMES)
def test_names_that_vllm_passes_over_in_silence_are_served_as_well(
    engine: EngineHandle, made: Callable[..., Path], which: str
) -> None:
    """When vLLM takes another kind of names or passes over one, this test says so."""
    rename, taken = NAMES[which]
    adapter = servable(made(f"names-{which.replace(' ', '-')}", rename=rename))
    with _client(engine) as client:
        base = _likelihoods(client, engine.model)
        assert engine.adapters is not None
        raw = engine.adapters / "raw"
        raw.mkdir(parents=True, exist_ok=True)
        for file in (adapters.CONFIG, adapters.WEIGHTS):
            (raw / file).write_bytes((adapter.folder / file).read_bytes())
        body = {"lora_name": f"raw-{adapter.digest}", "lora_path": str(raw)}
        assert client.post("load_lora_adapter", json=body).status_code == 200
        assert (_likelihoods(client, body["lora_name"]) != base) == taken
        ours = load(engine, adapter, "renamed")
        assert _likelihoods(client, ours.model) != base


def test_zeros_are_loaded_by_vllm_and_found_out(
    engine: EngineHandle, made: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    zeros = made("zeros", spread=0.0)
    with pytest.raises(ModelError, match="every B matrix is zero"):
        servable(zeros)
    monkeypatch.setattr("vidqa.adapter_fit.check_numbers", lambda path, tensors: None)
    with pytest.raises(ModelError, match="vLLM has loaded it and answers as without it"):
        load(engine, servable(zeros), "zeros")
    assert "zeros" not in {one.name for one in loaded(engine)}


def test_it_is_unloaded_and_loaded_while_the_engine_runs(
    engine: EngineHandle, made: Callable[..., Path]
) -> None:
    adapter = servable(made("birds"))
    model = load(engine, adapter, "hot").model
    answer = answer_of(engine, model)
    assert unload(engine, "hot")
    with pytest.raises(Exception, match="does not exist"):
        answer_of(engine, model)
    assert answer_of(engine, load(engine, adapter, "hot").model) == answer


def test_the_vision_tower_is_changed_by_an_engine_that_allows_it(
    tiny_answerer: Path, engine_folder: Path, made: Callable[..., Path]
) -> None:
    adapter = servable(made("vision", targets=VISION_TARGETS))
    check_base(adapter, tiny_answerer, "tiny")
    assert adapter.vision
    plain = ensure_engine(small_engine(tiny_answerer).allowing(16), engine_folder)
    with pytest.raises(ModelError, match="answers as without it"):
        load(plain, adapter, "vision")
    options = small_engine(tiny_answerer).allowing(adapter.rank, tower_lora=adapter.vision)
    opened = ensure_engine(options, engine_folder)
    assert (load(opened, adapter, "vision").difference or 0) > 0


def test_what_peft_saves_of_dora_is_refused(made: Callable[..., Path]) -> None:
    with pytest.raises(ModelError, match="cannot serve DoRA"):
        servable(made("dora", use_dora=True))


# ---------------------------------------------------------------- over HTTP


@pytest.fixture(scope="module")
def tuned(
    films: Films, serve_runtime: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    """The server of the playground with two adapters, one of which wants to see few frames."""
    base = Path(resolve_bundled("bundled:tiny-qwen2-vl"))
    folder = tmp_path_factory.mktemp("tuned")
    for seed, name in enumerate(("birds", "cats")):
        make_lora(base, folder / name, seed=seed, spread=0.5)
    card = AdapterCard(
        name="birds",
        base_model="bundled:tiny-qwen2-vl",
        base_digest=base_digest(base),
        base_model_type="qwen2_vl",
        rank=8,
        alpha=16,
        targets="",
        look={"max_frames": 2},
    )
    adapters.write(folder / "birds", card)
    flags = [f"--adapter=birds={folder / 'birds'}", f"--adapter=cats={folder / 'cats'}"]
    with serving(films.index, serve_runtime, folder / "serve.log", *flags) as running:
        yield running


def test_each_adapter_answers_by_its_name_with_the_frames_that_it_wants(
    tuned: Served, films: Films
) -> None:
    listed = [one["id"] for one in tuned.http.get("v1/models").json()["data"]]
    assert listed == ["vidqa", "birds", "cats"]
    messages = [{"role": "user", "content": films.questions[0].text}]
    found = {}
    for model in listed * 2:
        body = {"model": model, "messages": messages, "max_tokens": 12}
        answer = tuned.http.post("v1/chat/completions", json=body).raise_for_status().json()
        text = answer["choices"][0]["message"]["content"]
        assert found.setdefault(model, (text, answer["usage"]["frames"])) == (
            text,
            answer["usage"]["frames"],
        )
    texts, frames = zip(*found.values(), strict=True)
    assert len(set(texts)) == 3
    assert frames[1] == 2 < frames[0] == frames[2]


def test_a_request_may_ask_for_more_frames_than_the_adapter(tuned: Served, films: Films) -> None:
    body = {
        "model": "birds",
        "messages": [{"role": "user", "content": films.questions[0].text}],
        "max_tokens": 4,
        "vidqa": {"frames": 6},
    }
    answer: httpx.Response = tuned.http.post("v1/chat/completions", json=body)
    assert answer.json()["usage"]["frames"] > 2  # as many as the moments have
