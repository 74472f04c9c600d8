"""Models and embeddings over HTTP: names, shapes, limits, and that both encodings agree."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import FakeEmbedder, FakeEndpoint
from openai import OpenAI
from serve_parts import Served, served
from test_ask import add_film
from test_server_chat import picture
from test_server_gate import error_of

from vidqa.library import Library
from vidqa.server import schemas
from vidqa.wiring import Endpoint


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Two libraries and an adapter."""
    libraries = {}
    for name, colour in (("default", "red"), ("cats", "blue")):
        folder: Path = tmp_path_factory.mktemp(name) / "library"
        made = Library.open(folder, FakeEmbedder.spec, create=True)
        add_film(made, f"{colour}.mp4", [colour])
        libraries[name] = Library.open(folder, follow=True)
    with (
        FakeEndpoint(models=["fake-vl", "tuned@1a2b"]) as endpoint,
        served(
            libraries,
            endpoint.base_url,
            adapters={"tuned": {"max_frames": 2}},
            connect=lambda tell: Endpoint(
                endpoint.base_url, None, "fake-vl", {"tuned": "tuned@1a2b"}
            ),
        ) as running,
    ):
        yield running


def embed(server: Served, content: Any, **more: Any) -> Any:
    return server.http.post("v1/embeddings", json={"model": "vidqa", "input": content} | more)


def vectors(server: Served, content: Any, **more: Any) -> Any:
    return [one["embedding"] for one in embed(server, content, **more).json()["data"]]


# ---------------------------------------------------------------- models


def test_every_library_and_adapter_has_a_name(server: Served) -> None:
    listed = server.http.get("v1/models").json()
    assert listed["object"] == "list"
    assert [one["id"] for one in listed["data"]] == ["vidqa", "vidqa:cats", "tuned", "tuned:cats"]
    assert {(one["object"], one["owned_by"]) for one in listed["data"]} == {("model", "vidqa")}


def test_a_name_stands_for_a_library_and_an_adapter(server: Served) -> None:
    found = server.http.get("v1/models/tuned:cats").json()
    assert (found["id"], found["library"], found["adapter"]) == ("tuned:cats", "cats", "tuned")


@pytest.mark.parametrize("spelling", ["vidqa:cats", "vidqa%3Acats"])
def test_a_colon_may_be_written_as_it_is_or_encoded(server: Served, spelling: str) -> None:
    assert server.http.get(f"v1/models/{spelling}").json()["library"] == "cats"


def test_the_first_library_may_be_named_as_well(server: Served) -> None:
    assert server.http.get("v1/models/vidqa:default").json()["id"] == "vidqa"


@pytest.mark.parametrize(
    "name",
    ["gpt-5", "vidqa:dogs", "cats", "vidqa:cats:x", ":cats", "a/b", "VIDQA", ""],
)
def test_a_name_that_stands_for_nothing_is_told_as_openai_does(server: Served, name: str) -> None:
    response = embed(server, "red", model=name)
    assert response.status_code == 404
    error = error_of(response)
    assert error["message"].startswith(f"The model `{name}` does not exist; there are vidqa, ")
    assert (error["code"], error["param"]) == ("model_not_found", "model")


def test_the_name_decides_which_library_is_asked(server: Served) -> None:
    found = server.ask("blue", model="vidqa:cats").json()
    assert found["vidqa"]["moments"][0]["video"] == "blue.mp4"
    assert found["model"] == "vidqa:cats"


def frames_of(server: Served, **more: Any) -> tuple[str, int]:
    """The model that an answer names, and how many frames it was shown."""
    answer = server.ask("red", **more).json()
    return answer["model"], answer["usage"]["frames"]


def test_an_adapter_is_shown_the_frames_that_it_wants(server: Served) -> None:
    assert frames_of(server) == ("vidqa", 4)
    assert frames_of(server, model="tuned") == ("tuned", 2)
    assert frames_of(server, vidqa={"adapter": "tuned"}) == ("vidqa", 2)


def test_a_request_that_says_how_many_frames_gets_them(server: Served) -> None:
    assert frames_of(server, model="tuned", vidqa={"frames": 4}) == ("tuned", 4)


# ---------------------------------------------------------------- embeddings


def test_an_embedding_has_the_shape_that_clients_expect(server: Served) -> None:
    body = embed(server, "red").json()
    assert body == {
        "object": "list",
        "data": [{"object": "embedding", "index": 0, "embedding": [1.0, 0.0, 0.0, 0.0]}],
        "model": "vidqa",
        "usage": {"prompt_tokens": 0, "total_tokens": 0},
    }


def test_openais_client_gets_numbers(server: Served) -> None:
    """It asks for base64 and decodes it itself."""
    client = OpenAI(base_url=f"{server.url}v1", api_key="none")
    found = client.embeddings.create(model="vidqa", input=["red and blue", "green"])
    assert found.data[0].embedding == pytest.approx([0.5**0.5, 0, 0.5**0.5, 0])
    assert found.data[1].embedding == [0, 1, 0, 0]


def test_numbers_and_base64_are_the_same(server: Served) -> None:
    words = ["red", "red and blue"]
    numbers = vectors(server, words)
    encoded = vectors(server, words, encoding_format="base64")
    decoded = [np.frombuffer(base64.b64decode(one), "<f4") for one in encoded]
    assert np.array_equal(np.array(numbers, np.float32), decoded)


def test_texts_and_pictures_come_back_in_the_order_in_which_they_went(server: Served) -> None:
    content = [
        {"image": picture((0, 0, 255))},
        "red",
        {"image": picture((0, 255, 0))},
        {"text": "blue"},
    ]
    assert np.array(vectors(server, content)).argmax(axis=1).tolist() == [2, 0, 1, 2]


def test_the_dimension_may_be_said_where_it_is_the_embedders(server: Served) -> None:
    assert embed(server, "red", dimensions=4).status_code == 200
    response = embed(server, "red", dimensions=3)
    assert response.status_code == 400
    assert error_of(response)["message"] == "dimensions is 3; default's embedder has 4"


@pytest.mark.parametrize("content", [[1, 2, 3], [[1, 2], [3]], ["red", 5]])
def test_numbers_of_tokens_are_refused_with_what_to_do(server: Served, content: Any) -> None:
    response = embed(server, content)
    assert response.status_code == 400
    assert "check_embedding_ctx_length=False" in error_of(response)["message"]


@pytest.mark.parametrize(
    ("content", "status"),
    [
        ("", 422),
        ([], 422),
        (["red", ""], 422),
        (None, 422),
        ({"text": "red"}, 422),
        ([{}], 422),
        ([{"text": "red", "image": "data:image/png;base64,AAAA"}], 422),
        ([{"image": "https://example.com/a.png"}], 422),
        ([{"image": "data:image/png;base64,AAAA"}], 422),
        ([{"text": "red", "colour": "red"}], 400),
        (["x" * (schemas.MAX_TEXT_CHARACTERS + 1)], 422),
        (["x"] * (schemas.MAX_INPUTS + 1), 422),
    ],
)
def test_what_cannot_be_embedded_is_refused(server: Served, content: Any, status: int) -> None:
    response = embed(server, content)
    assert response.status_code == status, response.text
    assert error_of(response)["type"] == "invalid_request_error"


def test_as_many_texts_as_openai_takes_are_taken(server: Served) -> None:
    assert len(vectors(server, ["red"] * 2048)) == 2048


def test_more_pictures_than_are_allowed_are_refused(server: Served) -> None:
    response = embed(server, [{"image": picture((0, 0, 0))}] * 5)
    assert response.status_code == 422
    assert error_of(response)["message"] == "5 pictures; 4 are allowed"


def test_a_field_that_nobody_knows_is_refused(server: Served) -> None:
    assert embed(server, "red", colour="red").status_code == 400
    assert embed(server, "red", user="me").status_code == 200
