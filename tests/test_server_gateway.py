"""What all routes share: threads that are bounded, whoever comes and goes."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest
from fakes import FakeEmbedder

from vidqa.config import Settings
from vidqa.server import gateway as module
from vidqa.server.engine import Answerer
from vidqa.server.gateway import CachingEmbedder, Gateway
from vidqa.server.metrics import Metrics
from vidqa.wiring import Endpoint


@pytest.mark.parametrize(("way", "bound"), [("run", module.THREADS), ("prepare", module.PREPARING)])
def test_clients_that_come_and_leave_start_no_more_work_than_is_done_at_once(
    way: str, bound: int
) -> None:
    now, most, turn = 0, 0, threading.Lock()

    def work() -> None:
        nonlocal now, most
        with turn:
            now += 1
            most = max(most, now)
        time.sleep(0.05)
        with turn:
            now -= 1

    async def hurried() -> None:
        metrics = Metrics()
        answerer = Answerer(lambda tell: Endpoint("", None, None), metrics)
        gateway = Gateway(Settings(), [], answerer, metrics)
        for _ in range(4):
            asked = [asyncio.create_task(getattr(gateway, way)(work)) for _ in range(bound)]
            await asyncio.sleep(0.01)
            for one in asked:
                one.cancel()
        await getattr(gateway, way)(work)

    asyncio.run(hurried())
    assert most == bound


def test_queries_as_one_types_are_remembered_and_long_texts_are_not() -> None:
    metrics = Metrics()
    embedder = CachingEmbedder(FakeEmbedder(), metrics)
    for text in ("red", "red", "red " * 1000, "red " * 1000):
        assert embedder.embed_texts([text]).argmax() == 0
    figures = metrics.text().decode()
    assert 'vidqa_query_cache_total{outcome="hit"} 1.0' in figures
    assert 'vidqa_query_cache_total{outcome="miss"} 1.0' in figures
