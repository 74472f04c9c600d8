"""What stands before vLLM: the key, the routes, and the note of when it was last asked."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from vidqa.engine_gate import HUNG_SECONDS, IN_FLIGHT, ROUTES, Activity, Gate
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


def asked(gate: Gate, method: str, path: str, headers: dict[str, str], kind: str = "http") -> Any:
    """The first message that the gate sends back."""
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": kind, "method": method, "path": path, "headers": pairs}
    asyncio.run(gate(scope, None, send))
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
        ("POST", "/v1/load_lora_adapter"),
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


@pytest.mark.parametrize("count", [0, 2])
def test_who_looks_at_it_is_told_how_many_requests_are_in_flight(
    gate: Gate, activity: Activity, count: int
) -> None:
    for _ in range(count):
        activity.begin()
    assert (IN_FLIGHT, str(count).encode()) in asked(gate, "GET", "/ping", KEY)["headers"]


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
