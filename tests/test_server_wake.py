"""An endpoint that nobody watches: it is looked for when a question comes, and only then."""

from __future__ import annotations

from collections.abc import Callable

import anyio
import pytest
from fakes import FakeEndpoint
from waiting import LIMIT_SECONDS

from vidqa.errors import EngineError
from vidqa.server.engine import Answerer
from vidqa.server.errors import ApiError
from vidqa.server.metrics import Metrics
from vidqa.wiring import Endpoint


async def until(holds: Callable[[], bool]) -> None:
    with anyio.fail_after(LIMIT_SECONDS):
        while not holds():
            await anyio.sleep(0.01)


class Starts(list[str]):
    """Connects to each of some addresses in turn; an empty one is a start that fails."""

    def __call__(self, tell: object) -> Endpoint:
        where = self.pop(0)
        if not where:
            raise EngineError("no room")
        return Endpoint(where, None, None)


def asleep(starts: Starts) -> Answerer:
    return Answerer(starts, Metrics(), watch=False)


def test_nothing_is_started_before_a_question_comes() -> None:
    async def main() -> None:
        answerer = asleep(Starts())
        with pytest.raises(ApiError, match="does not answer yet"):
            answerer.client()
        await answerer.stop()

    anyio.run(main)


def test_a_question_starts_it_once() -> None:
    async def main() -> None:
        with FakeEndpoint() as endpoint:
            starts = Starts([endpoint.base_url])
            answerer = asleep(starts)
            for _ in range(3):
                await answerer.wake()
                await until(lambda: answerer.state == "ready")
            assert answerer.client().base_url == endpoint.base_url
            await answerer.stop()

    anyio.run(main)


def test_what_has_stopped_between_questions_is_started_again() -> None:
    async def main() -> None:
        with FakeEndpoint() as second:
            with FakeEndpoint() as first:
                answerer = asleep(Starts([first.base_url, second.base_url]))
                await answerer.wake()
                await until(lambda: answerer.state == "ready")
            await answerer.wake()
            assert answerer.state == "starting"
            await until(lambda: answerer.state == "ready")
            assert answerer.client().base_url == second.base_url
            await answerer.stop()

    anyio.run(main)


def test_what_could_not_start_is_tried_again_with_the_next_question() -> None:
    async def main() -> None:
        with FakeEndpoint() as endpoint:
            answerer = asleep(Starts(["", endpoint.base_url]))
            await answerer.wake()
            await until(lambda: answerer.state == "failed")
            await answerer.wake()
            await until(lambda: answerer.state == "ready")
            await answerer.stop()

    anyio.run(main)
