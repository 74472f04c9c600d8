"""Search over HTTP: by text, by picture, by both; filters; the relevance over time."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import FakeEmbedder, FakeEndpoint
from numpy.typing import NDArray
from serve_parts import Served, served
from test_ask import add_film
from test_server_chat import picture
from test_server_gate import error_of
from waiting import LIMIT_SECONDS, until

from vidqa.library import Library
from vidqa.server.gateway import THREADS
from vidqa.types import TextSpan


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("search") / "library"
    made = Library.open(folder, FakeEmbedder.spec, create=True)
    add_film(made, "a.mp4", ["red", "green", "black"])
    add_film(made, "b.mp4", ["blue", "green"], [TextSpan(1, 2, "the sea")])
    with (
        FakeEndpoint() as endpoint,
        served(Library.open(folder, follow=True), endpoint.base_url) as running,
    ):
        yield running


def search(server: Served, **body: Any) -> Any:
    response = server.http.post("v1/search", json=body)
    assert response.status_code == 200, response.text
    return response.json()


def test_a_moment_is_told_with_all_that_a_page_shows(server: Served) -> None:
    found = search(server, query="blue", k=1)
    assert (found["object"], found["query"], found["library"]) == ("search", "blue", "default")
    (moment,) = found["moments"]
    assert (moment["n"], moment["video"], moment["score"]) == (1, "b.mp4", 1.0)
    assert (moment["start_seconds"], moment["end_seconds"]) == (0.0, 4.0)
    assert moment["frame_seconds"] == [0.5, 1.5, 2.5, 3.5]
    assert moment["texts"] == [{"start_seconds": 1.0, "end_seconds": 2.0, "text": "the sea"}]
    assert moment["url"] == f"{server.url}?video={moment['video_id']}&t=0.0"
    assert server.http.get(moment["thumbnail_urls"][0]).content.startswith(b"\xff\xd8")
    assert set(found["timings_ms"]) == {"embed", "search"}


def test_no_path_of_this_machine_is_told(server: Served) -> None:
    assert "/films/" not in server.http.post("v1/search", json={"query": "blue"}).text


def test_a_picture_finds_what_looks_like_it(server: Served) -> None:
    assert search(server, image=picture((255, 0, 0)), k=1)["moments"][0]["video"] == "a.mp4"


def test_a_text_and_a_picture_are_looked_for_together(server: Served) -> None:
    found = search(server, query="blue", image=picture((0, 255, 0)), k=3)
    assert [one["score"] for one in found["moments"]] == pytest.approx([0.5**0.5] * 3, abs=0.01)


def test_a_blank_text_beside_a_picture_says_nothing(server: Served) -> None:
    found = search(server, query="  ", image=picture((255, 0, 0)), k=1)
    assert found["moments"][0]["score"] == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize(
    ("filters", "videos"),
    [
        ({"video": "b*"}, {"b.mp4"}),
        ({"video": "*"}, {"a.mp4", "b.mp4"}),
        # Or who asks again and again would learn in which folders the files are.
        ({"video": "*films*"}, set()),
        ({"video": "/films/a.mp4"}, set()),
        ({"video_ids": []}, set()),
        ({"text": "SEA"}, {"b.mp4"}),
        ({"text": "%"}, set()),
        ({"text": "'; DROP TABLE videos; --"}, set()),
        ({"video": "'); DELETE FROM videos; --"}, set()),
        ({"min_seconds": 10}, {"a.mp4"}),
        ({"max_seconds": 10}, {"b.mp4"}),
        ({"after": "2000-01-01"}, {"a.mp4", "b.mp4"}),
        ({"before": "2000-01-01"}, set()),
    ],
)
def test_a_filter_restricts_what_is_found(
    server: Served, filters: dict[str, Any], videos: set[str]
) -> None:
    found = search(server, query="green", filters=filters)["moments"]
    assert {one["video"] for one in found} == videos


def test_the_relevance_over_time_is_told_where_it_is_wanted(server: Served) -> None:
    assert search(server, query="red")["heat"] == []
    heat = {one["video"]: one for one in search(server, query="red", heat=True)["heat"]}
    assert heat["a.mp4"]["seconds"] == [n + 0.5 for n in range(12)]
    assert heat["a.mp4"]["scores"][:5] == [1.0, 1.0, 1.0, 1.0, 0.0]
    assert heat["a.mp4"]["duration_seconds"] == 12.0


@pytest.mark.parametrize(
    ("body", "status", "match"),
    [
        ({}, 422, "a query, an image or both are needed"),
        ({"query": " "}, 422, "a query, an image or both are needed"),
        ({"query": "red", "k": 0}, 422, "k"),
        ({"query": "red", "k": 101}, 422, "k"),
        ({"query": "red", "k": "many"}, 422, "k"),
        ({"query": 5}, 422, "query"),
        ({"query": "x" * 20_001}, 422, "query"),
        ({"query": "red", "image": "https://example.com/a.png"}, 422, "not fetched"),
        ({"query": "red", "image": "data:image/png;base64,AAAA"}, 422, "no JPEG"),
        ({"query": "red", "library": "cats"}, 404, "no library 'cats'"),
        ({"query": "red", "where": "1=1"}, 400, "where"),
        ({"query": "red", "filters": {"where": "1=1"}}, 400, "where"),
        ({"query": "red", "filters": {"video_ids": ["../x"]}}, 422, "video_ids"),
        ({"query": "red", "filters": {"min_seconds": 5, "max_seconds": 1}}, 422, ""),
        ({"query": "red", "filters": {"after": "yesterday"}}, 422, "after"),
        ({"query": "red", "filters": {"min_seconds": -1}}, 422, "min_seconds"),
    ],
)
def test_what_cannot_be_searched_for_is_refused_with_the_reason(
    server: Served, body: dict[str, Any], status: int, match: str
) -> None:
    response = server.http.post("v1/search", json=body)
    assert response.status_code == status, response.text
    assert match in error_of(response)["message"]


def test_a_library_without_a_video_finds_nothing(tmp_path: Any) -> None:
    made = Library.open(tmp_path / "library", FakeEmbedder.spec, create=True)
    with FakeEndpoint() as endpoint, served(made, endpoint.base_url) as server:
        found = search(server, query="red", heat=True)
    assert (found["moments"], found["heat"]) == ([], [])


def test_a_query_typed_again_is_not_embedded_again(server: Served) -> None:
    def hits() -> float:
        figures = server.http.get("metrics").text
        line = next(one for one in figures.splitlines() if 'cache_total{outcome="hit"' in one)
        return float(line.split()[-1])

    search(server, query="red as before")
    before = hits()
    search(server, query="red as before")
    assert hits() == before + 1


def test_more_searches_than_may_wait_are_told_to_come_again(tmp_path: Path) -> None:
    go = threading.Event()

    class Slow(FakeEmbedder):
        def embed_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
            go.wait(LIMIT_SECONDS)
            return super().embed_texts(texts)

    library = Library.open(tmp_path / "library", FakeEmbedder.spec, create=True)
    add_film(library, "a.mp4", ["red"])
    with (
        FakeEndpoint() as endpoint,
        served(library, endpoint.base_url, max_queue=1) as server,
        ThreadPoolExecutor(THREADS + 1) as pool,
    ):
        shelf = server.gateway.shelf(None)
        server.gateway.shelves = {"default": replace(shelf, embedder=Slow())}
        asked = [
            pool.submit(server.http.post, "v1/search", json={"query": f"red {n}"})
            for n in range(THREADS + 1)
        ]
        searches = server.gateway.searches
        until(lambda: searches.working + searches.waiting == THREADS + 1)
        refused = server.http.post("v1/search", json={"query": "red"})
        go.set()
        assert {one.result().status_code for one in asked} == {200}
    assert (refused.status_code, error_of(refused)["code"]) == (429, "queue_full")
    assert int(refused.headers["retry-after"]) >= 1
