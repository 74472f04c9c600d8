"""The model that answers, as the server sees it: reached, lost, reached again."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from fakes import FakeEndpoint
from waiting import LIMIT_SECONDS

from vidqa.errors import EndpointError, EngineError, ModelError
from vidqa.server.engine import Answerer
from vidqa.server.errors import ApiError
from vidqa.server.metrics import Metrics
from vidqa.wiring import Endpoint, OnStage

Connect = Callable[[OnStage], Endpoint]


def at(endpoint: FakeEndpoint) -> Connect:
    address = endpoint.base_url
    return lambda tell: Endpoint(address, None, None)


def watched(
    connect: Connect, body: Callable[[Answerer], Coroutine[Any, Any, None]], **times: float
) -> Answerer:
    """Runs `body` while an answerer keeps its endpoint at hand."""

    async def run() -> Answerer:
        chosen = {"look_seconds": 0.02, "retry_seconds": 0.02} | times
        answerer = Answerer(connect, Metrics(), **chosen)
        await answerer.start()
        try:
            await body(answerer)
        finally:
            await asyncio.wait_for(answerer.stop(), LIMIT_SECONDS)
        return answerer

    return asyncio.run(run())


async def becomes(answerer: Answerer, state: str) -> None:
    async with asyncio.timeout(LIMIT_SECONDS):
        while answerer.state != state:
            await asyncio.sleep(0.005)


def giving(answers: list[Endpoint | Exception]) -> Callable[[OnStage], Endpoint]:
    """Connects to one after the other, and takes it out of the list."""

    def connect(tell: OnStage) -> Endpoint:
        found = answers.pop(0)
        if isinstance(found, Exception):
            raise found
        return found

    return connect


def test_an_endpoint_is_reached_and_named() -> None:
    async def body(answerer: Answerer) -> None:
        await becomes(answerer, "ready")
        assert await answerer.client().model() == "fake-vl"

    with FakeEndpoint() as endpoint:
        answerer = watched(at(endpoint), body)
        # Whoever asks need not know where.
        assert answerer.detail == "fake-vl at the endpoint"


def test_what_is_waited_for_is_told() -> None:
    go = threading.Event()

    async def body(answerer: Answerer) -> None:
        async with asyncio.timeout(LIMIT_SECONDS):
            while answerer.detail != "loading weights":
                await asyncio.sleep(0.005)
        with pytest.raises(ApiError, match="does not answer yet: loading weights") as error:
            answerer.client()
        assert (error.value.status, error.value.code) == (503, "engine_starting")
        go.set()
        await becomes(answerer, "ready")

    with FakeEndpoint() as endpoint:

        def connect(tell: OnStage) -> Endpoint:
            tell("loading weights")
            go.wait(LIMIT_SECONDS)
            return Endpoint(endpoint.base_url, None, None)

        watched(connect, body)


def test_one_that_is_lost_is_reached_again() -> None:
    endpoints = [FakeEndpoint().__enter__(), FakeEndpoint(models=["another"]).__enter__()]
    used: list[FakeEndpoint] = []

    def connect(tell: OnStage) -> Endpoint:
        used.append(endpoints[len(used)])
        return Endpoint(used[-1].base_url, None, None)

    async def body(answerer: Answerer) -> None:
        await becomes(answerer, "ready")
        await asyncio.to_thread(endpoints[0].__exit__, None, None, None)
        async with asyncio.timeout(LIMIT_SECONDS):
            while len(used) < 2 or answerer.state != "ready":
                await asyncio.sleep(0.005)
        assert await answerer.client().model() == "another"

    watched(connect, body)
    endpoints[1].__exit__(None, None, None)


def test_an_adapter_that_was_trained_again_is_loaded_without_a_pause() -> None:
    changes = [False, True, True, False]
    answers: list[Endpoint | Exception] = []
    said: list[str] = []

    async def run() -> None:
        answerer = Answerer(
            giving(answers),
            Metrics(),
            on_change=lambda state, detail: said.append(state),
            has_changed=lambda: changes.pop(0) if changes else False,
            look_seconds=0.02,
        )
        await answerer.start()
        async with asyncio.timeout(LIMIT_SECONDS):
            while changes:
                await asyncio.sleep(0.005)
        assert answerer.adapter("birds") == "birds@2"
        await answerer.stop()

    with FakeEndpoint(models=("tiny", "birds@1", "birds@2")) as endpoint:
        first, second = (
            Endpoint(endpoint.base_url, None, "tiny", {"birds": f"birds@{n}"}) for n in (1, 2)
        )
        # The first time it is looked at, its file is half written.
        answers += [first, ModelError("half written"), second]
        asyncio.run(run())
    assert answers == []
    assert said == ["ready"]


@pytest.mark.parametrize("is_unloaded", [True, False])
def test_an_adapter_that_is_not_there_is_asked_for_until_it_is(is_unloaded: bool) -> None:
    """It was unloaded by hand; or it was trained again, while the engine was busy."""
    changes = [not is_unloaded]
    answers: list[Endpoint | Exception] = []

    async def run() -> None:
        answerer = Answerer(
            giving(answers),
            Metrics(),
            has_changed=lambda: changes.pop(0) if changes else False,
            look_seconds=0.02,
        )
        await answerer.start()
        async with asyncio.timeout(LIMIT_SECONDS):
            while answerer.adapter("birds") != "birds@2":
                await asyncio.sleep(0.005)
        await answerer.stop()

    names = ("birds@2",) if is_unloaded else ("birds@1", "birds@2")
    with FakeEndpoint(models=("tiny", *names)) as endpoint:
        first, second = (
            Endpoint(endpoint.base_url, None, "tiny", {"birds": f"birds@{n}"}) for n in (1, 2)
        )
        answers += [first, EngineError("it does not answer"), second]
        asyncio.run(run())
    assert answers == []


def test_after_an_answer_that_failed_it_is_looked_at_at_once() -> None:
    async def body(answerer: Answerer) -> None:
        await becomes(answerer, "ready")
        await asyncio.to_thread(endpoint.__exit__, None, None, None)
        answerer.lost(EndpointError("it broke off"))
        await becomes(answerer, "failed")

    endpoint = FakeEndpoint().__enter__()
    watched(at(endpoint), body, look_seconds=10 * LIMIT_SECONDS)


def test_one_that_does_not_start_is_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    tries: list[float] = []

    async def body(answerer: Answerer) -> None:
        await becomes(answerer, "failed")
        assert answerer.detail == "no memory"
        with pytest.raises(ApiError) as error:
            answerer.client()
        assert (error.value.code, error.value.retry_after_seconds) == ("engine_failed", 0.2)
        await becomes(answerer, "ready")

    with FakeEndpoint() as endpoint:

        def connect(tell: OnStage) -> Endpoint:
            tries.append(time.monotonic())
            if len(tries) < 3:
                raise EngineError("no memory\nand more for the log")
            return Endpoint(endpoint.base_url, None, None)

        watched(connect, body, retry_seconds=0.2)
    assert tries[2] - tries[0] > 0.35


def test_an_error_that_nobody_thought_of_does_not_end_the_watch(
    caplog: pytest.LogCaptureFixture,
) -> None:
    tries: list[int] = []

    async def body(answerer: Answerer) -> None:
        await becomes(answerer, "failed")
        assert answerer.detail == "ZeroDivisionError: oops"
        await becomes(answerer, "ready")

    with FakeEndpoint() as endpoint:

        def connect(tell: OnStage) -> Endpoint:
            tries.append(1)
            if len(tries) == 1:
                raise ZeroDivisionError("oops")
            return Endpoint(endpoint.base_url, None, None)

        watched(connect, body, retry_seconds=0.2)
    assert [one.levelno for one in caplog.records].count(logging.ERROR) == 1
    caplog.clear()


def test_a_reason_is_told_in_full_here_and_without_places_to_clients() -> None:
    reason = "/home/me/my models/qwen: holds no config.json; asked http://10.0.0.7:8000/v1."
    heard: list[str] = []

    async def body() -> None:
        answerer = Answerer(
            connect, Metrics(), on_change=lambda state, detail: heard.append(detail)
        )
        await answerer.start()
        try:
            await becomes(answerer, "failed")
            assert answerer.detail == "qwen: holds no config.json; asked the endpoint."
        finally:
            await answerer.stop()

    def connect(tell: OnStage) -> Endpoint:
        raise EngineError(reason)

    asyncio.run(body())
    assert heard[-1] == reason


def test_one_that_serves_several_models_says_which_to_choose() -> None:
    async def body(answerer: Answerer) -> None:
        await becomes(answerer, "failed")
        assert "serves a, b; choose one with --model" in answerer.detail

    with FakeEndpoint(models=["a", "b"]) as endpoint:
        watched(at(endpoint), body)


@pytest.mark.parametrize("while_it", ["starts", "waits", "is ready"])
def test_the_end_does_not_wait_for_it(while_it: str) -> None:
    go, far = threading.Event(), 10 * LIMIT_SECONDS

    async def body(answerer: Answerer) -> None:
        await becomes(answerer, {"starts": "starting", "waits": "failed"}.get(while_it, "ready"))
        await asyncio.wait_for(answerer.stop(), LIMIT_SECONDS)

    with FakeEndpoint() as endpoint:

        def connect(tell: OnStage) -> Endpoint:
            if while_it == "starts":
                go.wait(far)
            if while_it == "waits":
                raise EngineError("no memory")
            return Endpoint(endpoint.base_url, None, None)

        watched(connect, body, retry_seconds=far, look_seconds=far)
        go.set()


def test_one_that_was_never_started_ends_as_well() -> None:
    asyncio.run(Answerer(lambda tell: Endpoint("", None, None), Metrics()).stop())


def test_the_figures_show_its_state() -> None:
    metrics = Metrics()

    async def run(endpoint: FakeEndpoint) -> None:
        answerer = Answerer(at(endpoint), metrics)
        await answerer.start()
        await becomes(answerer, "ready")
        await answerer.stop()

    with FakeEndpoint() as endpoint:
        asyncio.run(run(endpoint))
    text = metrics.text().decode()
    assert 'vidqa_engine{state="ready"} 1.0' in text
    assert 'vidqa_engine{state="starting"} 0.0' in text
