"""Adapters in a running engine: loaded, shown to be applied, listed, unloaded.

    found = load(handle, servable(Path("adapters/birds")), "birds")
    found.model                                     what to ask the engine for: birds@1a2b...

In the engine an adapter is called by its name and a digest of its files. So one that was trained
again is another model there, whose prompts were not read before, and what was loaded already is
neither loaded nor proved twice, however many commands want it at once.

vLLM answers in an adapter's name without an error where it has applied nothing of it. So after
loading both are asked to go on with one prompt, with frames in it, and how likely they find the
next tokens must differ by more than the base differs from itself.
"""

from __future__ import annotations

import fcntl
import io
import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from vidqa.adapter_fit import Servable, stage
from vidqa.adapters import check_name
from vidqa.engine import EngineHandle
from vidqa.errors import EngineError, ModelError
from vidqa.prompt import frames_part, text_part

LOAD_SECONDS = 300.0
# A busy engine answers the probe in its turn.
PROBE_SECONDS = 600.0
# The tokens whose likelihood is compared; vLLM tells of 20 at most.
PROBE_TOKENS = 20
# A GPU may answer one prompt in two ways that differ in the last digits.
NOISE_FACTOR = 2.0
PROOF = "proof.json"


@dataclass(frozen=True)
class Loaded:
    """An adapter in an engine; `model` is its name there.

    `difference` is how much the logarithm of a next token's likelihood differs from the base's at
    most, on one prompt; None where that was not measured.
    """

    name: str
    digest: str
    model: str
    difference: float | None = None


class EngineGone(EngineError):
    """Nobody answers at the engine's address any more."""


def load(
    handle: EngineHandle,
    adapter: Servable,
    name: str,
    on_stage: Callable[[str], None] = lambda stage: None,
) -> Loaded:
    """Has the engine serve an adapter by `name`, and proves that it does.

    Raises ModelError when vLLM does not take it or does not apply it, EngineGone when the engine
    has ended, EngineError when it serves no adapters.
    """
    model = f"{check_name(name)}@{adapter.digest}"
    folder = _folder(handle)
    with _turn(folder), _client(handle) as client:
        proof = folder / adapter.digest / PROOF
        if model in _names(client) and proof.exists():
            return _loaded(model, proof)
        on_stage(f"loading adapter {name}")
        place = stage(adapter, folder)
        _load(client, model, place, adapter.folder)
        if not proof.exists():  # it may have been loaded by another name
            try:
                proof.write_text(json.dumps(_prove(client, handle.model, model, adapter.folder)))
            except BaseException:
                _unload(client, model)
                shutil.rmtree(place)
                raise
        return _loaded(model, proof)


def loaded(handle: EngineHandle) -> list[Loaded]:
    """The adapters that the engine serves."""
    if handle.adapters is None:
        return []
    with _client(handle) as client:
        return [
            _loaded(model, handle.adapters / model.rpartition("@")[2] / PROOF)
            for model in _names(client)
            if model != handle.model
        ]


def unload(handle: EngineHandle, name: str) -> list[Loaded]:
    """Has the engine forget what it serves by `name`; returns what that was."""
    known = [one for one in loaded(handle) if one.name == name]
    if not known:
        return []
    folder = _folder(handle)
    with _turn(folder), _client(handle) as client:
        for one in known:
            _unload(client, one.model)
        left = {model.rpartition("@")[2] for model in _names(client)}
        for one in known:
            if one.digest not in left:
                shutil.rmtree(folder / one.digest, ignore_errors=True)
    return known


def _folder(handle: EngineHandle) -> Path:
    if handle.adapters is None:
        raise EngineError("the engine was started without adapters; end it: vidqa engine stop")
    return handle.adapters


@contextmanager
def _turn(folder: Path) -> Iterator[None]:
    """One command at a time; the lock goes with the process, however it ends."""
    with folder.with_name(f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def _client(handle: EngineHandle) -> Iterator[httpx.Client]:
    headers = {"Authorization": f"Bearer {handle.api_key}"}
    try:
        with httpx.Client(
            base_url=handle.base_url, headers=headers, trust_env=False, timeout=LOAD_SECONDS
        ) as client:
            yield client
    except httpx.TimeoutException as error:
        raise EngineError(
            "the engine does not answer; see what it is doing: vidqa engine logs"
        ) from error
    except httpx.TransportError as error:
        raise EngineGone(f"the engine has ended meanwhile ({error}); ask again") from error


def _names(client: httpx.Client) -> list[str]:
    return [str(one["id"]) for one in _answer(client.get("models"))["data"]]


def _answer(response: httpx.Response) -> Any:
    if response.status_code != 200:
        raise EngineError(
            f"the engine answered {response.status_code} ({_reason(response)}); see vidqa engine "
            "logs, or start it anew: vidqa engine stop"
        )
    return response.json()


def _reason(response: httpx.Response) -> str:
    try:
        text = str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        text = response.text
    return " ".join(text.split())[:300]


def _load(client: httpx.Client, model: str, place: Path, original: Path) -> None:
    body = {"lora_name": model, "lora_path": str(place), "load_inplace": True}
    response = client.post("load_lora_adapter", json=body)
    if response.status_code != 200:
        if not (place / PROOF).exists():  # else it is loaded by another name, and may be read again
            shutil.rmtree(place, ignore_errors=True)
        raise ModelError(f"{original}: vLLM does not load it: {_reason(response)}")


def _unload(client: httpx.Client, model: str) -> None:
    client.post("unload_lora_adapter", json={"lora_name": model})


def _loaded(model: str, proof: Path) -> Loaded:
    name, _, digest = model.rpartition("@")
    try:
        difference = float(json.loads(proof.read_text())["difference"])
    except (OSError, ValueError, KeyError):
        difference = None
    return Loaded(name, digest, model, difference)


# ---------------------------------------------------------------- the proof


def _prove(client: httpx.Client, base: str, model: str, original: Path) -> dict[str, float]:
    """How much the two answers differ, and the base's own from each other. Raises ModelError."""
    first, second, own = (_likelihoods(client, one) for one in (base, base, model))
    noise, difference = difference_of(first, second), difference_of(first, own)
    if not difference > noise * NOISE_FACTOR:  # what is no number proves nothing
        raise ModelError(
            f"{original}: vLLM has loaded it and answers as without it (the probe's likelihoods "
            f"differ by {difference:.2g}, the base's own by {noise:.2g}): it was hardly trained, "
            "or this vLLM does not apply it; compare with vidqa doctor's versions"
        )
    return {"difference": difference, "noise": noise}


def _likelihoods(client: httpx.Client, model: str) -> dict[str, float]:
    """The logarithm of the likelihood of the next token, for those that are most likely."""
    body = {
        "model": model,
        "messages": [{"role": "user", "content": _probe()}],
        "max_tokens": 1,
        "temperature": 0,
        "logprobs": True,
        "top_logprobs": PROBE_TOKENS,
    }
    answer = _answer(client.post("chat/completions", json=body, timeout=PROBE_SECONDS))
    tokens = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    return {str(one.get("bytes") or one["token"]): float(one["logprob"]) for one in tokens}


def _probe() -> list[dict[str, Any]]:
    """A picture and a question: an adapter may change only how the model sees."""
    from PIL import Image

    encoded = io.BytesIO()
    Image.radial_gradient("L").resize((112, 112)).convert("RGB").save(encoded, "JPEG")
    jpeg = encoded.getvalue()
    return [frames_part([jpeg, jpeg]), text_part("\nQuestion: What is shown, and where?")]


def difference_of(one: Mapping[str, float], other: Mapping[str, float]) -> float:
    """The largest difference; a token that only one side names is the other's least at most."""
    least = [min(side.values(), default=0.0) for side in (one, other)]
    differences = [abs(one.get(key, least[0]) - other.get(key, least[1])) for key in {*one, *other}]
    if any(map(math.isnan, differences)):
        return math.nan
    return max(differences, default=0.0)
