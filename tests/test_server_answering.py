"""One answer on its way: who leaves it leaves nothing running behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

from fakes import FakeEmbedder
from test_ask import add_film

from vidqa.config import Settings
from vidqa.conversation import Turn
from vidqa.library import Library
from vidqa.server.answering import Answering, Question
from vidqa.server.engine import Answerer
from vidqa.server.gateway import Gateway, Shelf
from vidqa.server.metrics import Metrics
from vidqa.vlm import AsyncVlmClient
from vidqa.wiring import Endpoint, ask_options


class Writer:
    """A model that writes without end, until it is told to stop."""

    stopped = False

    async def model(self) -> str:
        return "fake-vl"

    def reply(self, *asked: Any, **more: Any) -> Writer:
        return self

    async def __aiter__(self) -> AsyncIterator[str]:
        try:
            while True:
                yield "word "
        finally:
            self.stopped = True


def test_an_answer_that_is_left_has_ended_the_models_work_when_its_place_is_free(
    tmp_path: Path,
) -> None:
    made = Library.open(tmp_path / "library", FakeEmbedder.spec, create=True)
    add_film(made, "a.mp4", ["red"])
    shelf = Shelf("default", made, FakeEmbedder())
    writer = Writer()

    async def left() -> bool:
        metrics = Metrics()
        answerer = Answerer(lambda tell: Endpoint("", None, None), metrics)
        gateway = Gateway(Settings(), [shelf], answerer, metrics)
        question = Question([Turn("user", "red")], shelf, ask_options(Settings()))
        answer = Answering(gateway, question, cast(AsyncVlmClient, writer), [])
        await answer.find()
        pieces = answer.pieces()
        await anext(pieces)
        await pieces.aclose()
        return writer.stopped

    assert asyncio.run(left())
