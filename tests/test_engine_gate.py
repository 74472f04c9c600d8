"""What stands before vLLM: the key, the routes, and the note of when it was last asked."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from vidqa.engine_gate import (
    ADAPTER_ROUTES,
    HUNG_SECONDS,
    IDLE_SECONDS,
    LOAD_BYTES,
    ROUTES,
    Activity,
    Gate,
)
from vidqa.vlm import READ_SECONDS

KEY = {"authorization": "Bearer right"}


async def everything(scope: Any, receive: Any, send: Any) -> None:
    """An application that answers every route with 200."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


@pytest.fixture
def activity() -> Activity:
    return Activity()


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch, activity: Activity) -> Gate:
    monkeypatch.setenv("VLLM_API_KEY", "right")
    return Gate(everything, activity)


def asked(
    gate: Gate,
    method: str,
    path: str,
    headers: dict[str, str],
    kind: str = "http",
    body: bytes = b"",
) -> Any:
    """The first message that the gate sends back."""
    sent: list[Any] = []
    pieces = [body[:5], body[5:]]

    async def receive() -> Any:
        if not pieces:
            return {"type": "http.disconnect"}
        piece = pieces.pop(0)
        return {"type": "http.request", "body": piece, "more_body": bool(pieces)}

    async def send(message: Any) -> None:
        sent.append(message)

    pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": kind, "method": method, "path": path, "headers": pairs}
    asyncio.run(gate(scope, receive, send))
    return sent[0]


@pytest.mark.parametrize(("method", "path"), sorted(ROUTES))
def test_the_routes_that_vidqa_uses_are_open_with_the_key(
    gate: Gate, method: str, path: str
) -> None:
    assert asked(gate, method, path, KEY)["status"] == 200


@pytest.mark.parametrize(("method", "path"), sorted(ROUTES))
@pytest.mark.parametrize("headers", [{}, {"authorization": "Bearer wrong"}, {"authorization": ""}])
def test_no_route_is_open_without_it(
    gate: Gate, method: str, path: str, headers: dict[str, str]
) -> None:
    assert asked(gate, method, path, headers)["status"] == 401


@pytest.mark.parametrize(
    ("method", "path"),
    [
        *sorted(ADAPTER_ROUTES),
        ("GET", "/metrics"),
        ("POST", "/tokenize"),
        ("POST", "/v1/completions"),
        ("POST", "/invocations"),
        ("GET", "/v1/chat/completions"),
        ("POST", "/v1/chat/completions/"),
        ("POST", "/V1/chat/completions"),
        ("OPTIONS", "/v1/chat/completions"),
        ("GET", "/docs"),
    ],
)
def test_every_other_route_is_shut_even_with_the_key(gate: Gate, method: str, path: str) -> None:
    assert asked(gate, method, path, KEY)["status"] == 404


# ---------------------------------------------------------------- adapters


@pytest.fixture
def loading(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, activity: Activity) -> Gate:
    """The gate of an engine that may load what lies in `adapters`."""
    monkeypatch.setenv("VLLM_API_KEY", "right")
    monkeypatch.setenv("ENGINE_ADAPTERS", str(tmp_path / "adapters"))
    (tmp_path / "adapters" / "birds").mkdir(parents=True)
    return Gate(everything, activity)


def load(gate: Gate, path: object, key: dict[str, str] = KEY) -> int:
    body = json.dumps({"lora_name": "birds", "lora_path": path}).encode()
    return int(asked(gate, "POST", "/v1/load_lora_adapter", key, body=body)["status"])


def test_an_adapter_is_loaded_from_the_engines_own_folder(loading: Gate, tmp_path: Path) -> None:
    assert load(loading, str(tmp_path / "adapters" / "birds")) == 200
    assert asked(loading, "POST", "/v1/unload_lora_adapter", KEY)["status"] == 200


@pytest.mark.parametrize("method_path", sorted(ADAPTER_ROUTES))
def test_adapters_want_the_key_as_well(loading: Gate, method_path: tuple[str, str]) -> None:
    assert asked(loading, *method_path, {})["status"] == 401


@pytest.mark.parametrize(
    "path",
    ["/etc", "adapters/birds", "owner/name", "~/birds", "", None, 5, ["x"],
     "{folder}", "{folder}/birds/../../other", "{folder}/birds/deeper", "{folder}/link"],
)  # fmt: skip
def test_an_adapter_from_elsewhere_is_not_loaded(
    loading: Gate, tmp_path: Path, path: object
) -> None:
    folder = tmp_path / "adapters"
    (tmp_path / "other").mkdir()
    (folder / "link").symlink_to(tmp_path / "other")
    if isinstance(path, str):
        path = path.format(folder=folder)
    assert load(loading, path) == 403


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b'{"lora_name": "x"}', b" " * 2 * LOAD_BYTES, b"[" * (LOAD_BYTES - 1)],
)
def test_a_body_that_names_no_path_loads_nothing(loading: Gate, body: bytes) -> None:
    status = asked(loading, "POST", "/v1/load_lora_adapter", KEY, body=body)["status"]
    assert status == 403


def test_the_body_that_was_looked_at_reaches_vllm_whole(
    monkeypatch: pytest.MonkeyPatch, loading: Gate, tmp_path: Path
) -> None:
    heard: list[Any] = []

    async def hears(scope: Any, receive: Any, send: Any) -> None:
        heard.append(await receive())
        await everything(scope, receive, send)

    loading._app = hears
    place = str(tmp_path / "adapters" / "birds")
    load(loading, place)
    assert json.loads(heard[0]["body"])["lora_path"] == place
    assert not heard[0]["more_body"]


def test_a_websocket_is_closed(gate: Gate) -> None:
    assert asked(gate, "GET", "/v1/realtime", KEY, "websocket")["type"] == "websocket.close"


def test_the_start_is_no_idle_time(activity: Activity) -> None:
    assert activity.idle_seconds() == 0


def test_idle_time_runs_once_the_engine_serves(gate: Gate, activity: Activity) -> None:
    assert activity.idle_seconds() > 0


def test_a_request_in_flight_is_no_idle_time(gate: Gate, activity: Activity) -> None:
    activity.begin()
    assert activity.idle_seconds() == 0


@pytest.mark.parametrize(("path", "counts"), [("/v1/models", True), ("/ping", False)])
def test_using_the_engine_starts_its_idle_time_anew_and_looking_at_it_does_not(
    gate: Gate, activity: Activity, path: str, counts: bool
) -> None:
    activity._changed -= 100
    asked(gate, "GET", path, KEY)
    assert (activity.idle_seconds() < 100) == counts


def test_a_refused_request_does_not_keep_the_engine_alive(gate: Gate, activity: Activity) -> None:
    activity._changed -= 100
    asked(gate, "GET", "/v1/models", {})
    assert activity.idle_seconds() >= 100


def test_a_request_that_fails_is_over(monkeypatch: pytest.MonkeyPatch, activity: Activity) -> None:
    async def broken(scope: Any, receive: Any, send: Any) -> None:
        raise ValueError("broken")

    monkeypatch.setenv("VLLM_API_KEY", "right")
    with pytest.raises(ValueError, match="broken"):
        asked(Gate(broken, activity), "GET", "/v1/models", KEY)
    assert activity.idle_seconds() > 0


# ---------------------------------------------------------------- what it says to who looks


@pytest.mark.parametrize(("in_flight", "least"), [(0, 100.0), (1, 0.0)])
def test_who_looks_at_it_is_told_for_how_long_nobody_asked(
    gate: Gate, activity: Activity, in_flight: int, least: float
) -> None:
    for _ in range(in_flight):
        activity.begin()
    activity._asked -= 100
    asked(gate, "GET", "/v1/models", KEY)  # as servers do every few seconds
    told = float(dict(asked(gate, "GET", "/ping", KEY)["headers"])[IDLE_SECONDS])
    assert least <= told < least + 50


def chat(gate: Gate) -> None:
    asked(gate, "POST", "/v1/chat/completions", KEY)


def silent_chat(monkeypatch: pytest.MonkeyPatch, activity: Activity, seconds: float) -> Gate:
    """A gate whose model has answered nothing for so long, when the one who asked gives up."""

    async def silent(scope: Any, receive: Any, send: Any) -> None:
        activity._heard -= seconds

    monkeypatch.setenv("VLLM_API_KEY", "right")
    gate = Gate(silent, activity)
    with pytest.raises(IndexError):
        chat(gate)
    gate._app = everything
    return gate


@pytest.mark.parametrize("path", ["/health", "/ping"])
def test_a_model_that_falls_silent_is_ill_after_the_one_who_asked_gave_up(
    monkeypatch: pytest.MonkeyPatch, activity: Activity, path: str
) -> None:
    gate = silent_chat(monkeypatch, activity, HUNG_SECONDS + 1)
    assert asked(gate, "GET", path, KEY)["status"] == 503


def test_it_is_ill_while_somebody_still_waits(gate: Gate, activity: Activity) -> None:
    with activity.chat():
        assert asked(gate, "GET", "/health", KEY)["status"] == 200
        activity._heard -= HUNG_SECONDS + 1
        assert asked(gate, "GET", "/health", KEY)["status"] == 503


def test_one_who_loses_patience_early_does_not_make_it_ill(
    monkeypatch: pytest.MonkeyPatch, activity: Activity
) -> None:
    gate = silent_chat(monkeypatch, activity, HUNG_SECONDS / 2)
    assert asked(gate, "GET", "/health", KEY)["status"] == 200


def test_an_answer_makes_it_well_again(monkeypatch: pytest.MonkeyPatch, activity: Activity) -> None:
    gate = silent_chat(monkeypatch, activity, HUNG_SECONDS + 1)
    chat(gate)
    assert asked(gate, "GET", "/health", KEY)["status"] == 200


def test_a_long_rest_does_not_make_it_ill(gate: Gate, activity: Activity) -> None:
    chat(gate)
    activity._heard -= HUNG_SECONDS + 1
    assert asked(gate, "GET", "/health", KEY)["status"] == 200
    with activity.chat():
        assert asked(gate, "GET", "/health", KEY)["status"] == 200


def test_it_is_called_hung_before_the_client_gives_up() -> None:
    assert HUNG_SECONDS < READ_SECONDS
