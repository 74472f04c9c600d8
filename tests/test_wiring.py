"""What stands between the settings and the verbs."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

from fakes import FakeEmbedder

from vidqa.wiring import OnDemand


def test_an_embedder_that_many_threads_use_first_is_loaded_once() -> None:
    loaded: list[FakeEmbedder] = []

    def load() -> FakeEmbedder:
        loaded.append(FakeEmbedder())
        time.sleep(0.05)
        return loaded[-1]

    embedder = OnDemand(FakeEmbedder.spec, load)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: embedder.embed_texts(["red"]).argmax(), range(8)))
    assert found == [0] * 8
    assert len(loaded) == 1
