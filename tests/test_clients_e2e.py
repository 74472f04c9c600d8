"""Clients that people have, against the real server with the real vLLM and the bundled models.

What they say is compared with the films' truth, so that no right shape hides a wrong answer.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from serve_fixture import Asked, Films, Served, environment, serving
from waiting import LIMIT_SECONDS, until

from vidqa.config import Settings
from vidqa.engine import EngineHandle, ensure_engine
from vidqa.engine_gate import IDLE_SECONDS
from vidqa.weights import find_weights
from vidqa.wiring import engine_options

pytestmark = pytest.mark.e2e

PLACE = {"type": "string", "enum": ["city", "room", "forest", "desert", "bay", "snow"]}


@pytest.fixture(scope="module")
def client(served: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{served.url}v1", api_key=served.key, max_retries=0) as made:
        yield made


def ask(client: openai.OpenAI, question: str, **more: Any) -> Any:
    messages = more.pop("messages", [{"role": "user", "content": question}])
    return client.chat.completions.create(model="vidqa", messages=messages, **more)


def text_of(completion: Any) -> str:
    return str(completion.choices[0].message.content)


# ---------------------------------------------------------------- openai-python: answers


@pytest.mark.parametrize("kind", ["colour", "kind", "motion", "count", "background", "word"])
def test_an_answer_is_right_and_cites_the_moment_that_shows_it(
    client: openai.OpenAI, films: Films, kind: str
) -> None:
    asked = films.of_type(kind)
    assert_right(asked, ask(client, asked.text))


def assert_right(asked: Asked, completion: Any) -> None:
    assert asked.answer
    assert asked.answer in text_of(completion)
    (cited,) = completion.model_extra["citations"]
    assert cited["video"] == asked.film
    shared = min(cited["end_seconds"], asked.end_seconds) - max(
        cited["start_seconds"], asked.start_seconds
    )
    assert shared > (asked.end_seconds - asked.start_seconds) / 2


def test_what_the_films_do_not_show_is_not_answered(client: openai.OpenAI, films: Films) -> None:
    completion = ask(client, films.of_type("unanswerable").text)
    assert text_of(completion) == "Not in the moments shown."
    assert completion.model_extra["citations"] == []


def test_annotations_are_read_as_the_client_knows_them(
    client: openai.OpenAI, films: Films, served: Served
) -> None:
    completion = ask(client, films.of_type("colour").text)
    (annotation,) = completion.choices[0].message.annotations
    cited = annotation.url_citation
    assert text_of(completion)[cited.start_index : cited.end_index] == "[1]"
    assert cited.url.startswith(f"{served.url}?video=")
    assert cited.title.startswith(films.of_type("colour").film)


def test_the_found_moments_and_the_times_taken_are_extra_fields(
    client: openai.OpenAI, films: Films
) -> None:
    completion = ask(client, films.of_type("colour").text)
    extra = completion.model_extra["vidqa"]
    assert extra["query"] == films.of_type("colour").text
    assert extra["moments"][0]["video"] == films.of_type("colour").film
    assert {"queue", "embed", "search", "frames", "model"} <= set(extra["timings_ms"])
    assert completion.usage.model_extra["frames"] == 4
    assert completion.usage.prompt_tokens > 48


def test_the_asynchronous_client_answers_several_at_once(served: Served, films: Films) -> None:
    kinds = ["colour", "kind", "motion", "background"]

    async def all_at_once() -> list[Any]:
        async with openai.AsyncOpenAI(base_url=f"{served.url}v1", api_key=served.key) as client:
            return await asyncio.gather(*(ask(client, films.of_type(kind).text) for kind in kinds))

    for kind, completion in zip(kinds, asyncio.run(all_at_once()), strict=True):
        assert_right(films.of_type(kind), completion)


def test_what_only_vidqa_understands_goes_into_extra_body(
    client: openai.OpenAI, films: Films
) -> None:
    asked = films.of_type("colour")
    other = next(name for name in films.names if name != asked.film)
    fields = {"filters": {"video": other}, "k": 2, "frames": 4, "sources": False}
    completion = ask(client, asked.text, extra_body={"vidqa": fields})
    assert {one["video"] for one in completion.model_extra["vidqa"]["moments"]} == {other}
    assert completion.usage.model_extra["frames"] <= 4
    assert "Sources:" not in text_of(completion)


def test_a_clip_is_asked_about_by_its_times(client: openai.OpenAI, films: Films) -> None:
    asked = films.of_type("background")
    (citation,) = ask(client, asked.text).model_extra["citations"]
    clip = {
        "video_id": citation["video_id"],
        "start_seconds": asked.start_seconds,
        "end_seconds": asked.end_seconds,
    }
    completion = ask(client, asked.text, extra_body={"vidqa": {"clip": clip}})
    assert_right(asked, completion)
    assert completion.model_extra["vidqa"]["timings_ms"]["search"] == 0


def test_a_follow_up_is_understood_from_the_question_before(
    client: openai.OpenAI, films: Films
) -> None:
    asked = films.of_type("colour")
    messages = [
        {"role": "user", "content": asked.text},
        {"role": "assistant", "content": text_of(ask(client, asked.text))},
        {"role": "user", "content": "And where?"},
    ]
    completion = ask(client, "", messages=messages)
    assert completion.model_extra["vidqa"]["query"] == f"{asked.text} And where?"
    assert completion.model_extra["vidqa"]["moments"][0]["video"] == asked.film


def test_a_picture_finds_its_moment(client: openai.OpenAI, films: Films) -> None:
    asked = films.of_type("background")
    (citation,) = ask(client, asked.text).model_extra["citations"]
    content = [
        {"type": "text", "text": "What is there?"},
        {
            "type": "image_url",
            "image_url": {"url": data_url(picture_of(client, citation)), "detail": "low"},
        },
    ]
    completion = ask(client, "", messages=[{"role": "user", "content": content}])
    assert completion.model_extra["vidqa"]["moments"][0]["video"] == asked.film
    assert completion.usage.prompt_tokens > 48 + 12


def picture_of(client: openai.OpenAI, citation: dict[str, Any]) -> bytes:
    headers = {"Authorization": f"Bearer {client.api_key}"}
    return httpx.get(citation["thumbnail_url"], headers=headers).content


def data_url(jpeg: bytes) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"


# ---------------------------------------------------------------- openai-python: streams


def test_a_stream_comes_in_the_order_that_is_promised(client: openai.OpenAI, films: Films) -> None:
    asked = films.of_type("colour")
    chunks = list(ask(client, asked.text, stream=True, stream_options={"include_usage": True}))
    assert [*dict.fromkeys(map(kind_of, chunks))] == [
        "role", "content", "annotations", "finish", "usage",
    ]  # fmt: skip
    first, *contents, annotations, finish, usage = chunks
    assert first.model_extra["vidqa"]["moments"][0]["video"] == asked.film
    text = "".join(one.choices[0].delta.content for one in contents)
    assert len(contents) > 3
    assert text == text_of(ask(client, asked.text))
    (annotation,) = annotations.choices[0].delta.model_extra["annotations"]
    place = slice(*(annotation["url_citation"][f"{end}_index"] for end in ("start", "end")))
    assert text[place] == "[1]"
    assert annotations.model_extra["citations"][0]["video"] == asked.film
    assert finish.choices[0].finish_reason == "stop"
    assert usage.usage.completion_tokens > 4


def kind_of(chunk: Any) -> str:
    if not chunk.choices:
        return "usage"
    (choice,) = chunk.choices
    said = choice.delta.model_dump(exclude_unset=True)
    if choice.finish_reason:
        return "finish"
    return "role" if "role" in said else next(iter(said))


def test_an_asynchronous_stream_gives_the_same_text(served: Served, films: Films) -> None:
    question = films.of_type("kind").text

    async def streamed() -> str:
        async with openai.AsyncOpenAI(base_url=f"{served.url}v1", api_key=served.key) as client:
            stream = await ask(client, question, stream=True)  # type: ignore[arg-type]
            pieces = [one.choices[0].delta.content or "" async for one in stream]
        return "".join(pieces)

    assert films.of_type("kind").answer in asyncio.run(streamed())  # type: ignore[operator]


def test_the_helper_that_collects_a_stream_understands_it(
    client: openai.OpenAI, films: Films
) -> None:
    asked = films.of_type("colour")
    messages: Any = [{"role": "user", "content": asked.text}]
    with client.chat.completions.stream(model="vidqa", messages=messages) as stream:
        for _ in stream:
            pass
        completion = stream.get_final_completion()
    assert asked.answer in text_of(completion)
    (annotation,) = completion.choices[0].message.annotations
    assert annotation.url_citation.title.startswith(asked.film)


def test_a_stream_that_is_left_ends_the_work_of_vllm(
    client: openai.OpenAI, films: Films, served: Served, serve_runtime: Path
) -> None:
    engine = engine_of(serve_runtime)
    endless = schema_of({"type": "string", "minLength": 1500})
    with ask(
        client, films.of_type("colour").text, stream=True, response_format=endless, max_tokens=1500
    ) as stream:
        for _, _ in zip(range(5), stream, strict=False):
            pass
        assert idle_seconds(engine) == 0
        assert figure(served, 'vidqa_queue{place="answering"}') == 1
    until(lambda: idle_seconds(engine) > 0)
    until(lambda: figure(served, 'vidqa_queue{place="answering"}') == 0)


def engine_of(runtime: Path) -> EngineHandle:
    """The engine that the server has started."""
    settings = Settings.load("demo", {})
    options = engine_options(settings, find_weights(settings.model, settings.hub))
    return ensure_engine(options, runtime / "vidqa")


def idle_seconds(engine: EngineHandle) -> float:
    root = engine.base_url.removesuffix("/v1")
    answer = httpx.get(f"{root}/ping", headers={"Authorization": f"Bearer {engine.api_key}"})
    return float(answer.headers[IDLE_SECONDS.decode()])


def figure(served: Served, name: str) -> float:
    line = next(one for one in served.http.get("metrics").text.splitlines() if name in one)
    return float(line.rpartition(" ")[2])


# ---------------------------------------------------------------- openai-python: sampling


def schema_of(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}


def test_a_schema_for_the_answer_is_kept_to(client: openai.OpenAI, films: Films) -> None:
    asked = films.of_type("background")
    schema = {"type": "object", "properties": {"place": PLACE}, "required": ["place"]}
    completion = ask(client, asked.text, response_format=schema_of(schema))
    assert json.loads(text_of(completion))["place"] in PLACE["enum"]


def test_a_schema_that_is_none_is_refused_with_the_reason(
    client: openai.OpenAI, films: Films
) -> None:
    with pytest.raises(openai.BadRequestError, match="Invalid type: nonsense"):
        ask(client, films.of_type("colour").text, response_format=schema_of({"type": "nonsense"}))


def test_an_answer_that_is_cut_off_says_so(client: openai.OpenAI, films: Films) -> None:
    for field in ("max_tokens", "max_completion_tokens"):
        completion = ask(client, films.of_type("colour").text, **{field: 2})
        assert completion.choices[0].finish_reason == "length"
        assert completion.usage.completion_tokens == 2


def test_an_answer_ends_at_a_stop(client: openai.OpenAI, films: Films) -> None:
    asked = films.of_type("background")
    completion = ask(client, asked.text, stop=[asked.answer])
    assert completion.choices[0].finish_reason == "stop"
    assert asked.answer not in text_of(completion)
    assert text_of(completion).startswith("The ")


def test_a_seed_makes_a_random_answer_reproducible(client: openai.OpenAI, films: Films) -> None:
    question = films.of_type("colour").text
    answers = [text_of(ask(client, question, temperature=2.0, seed=s)) for s in (1, 2, 3, 1, 2, 3)]
    assert answers[:3] == answers[3:]
    assert len(set(answers)) > 1


# ---------------------------------------------------------------- openai-python: the others


def test_embeddings_are_the_same_as_base64_and_as_numbers(client: openai.OpenAI) -> None:
    texts = ["a green star", "a red house"]
    packed = client.embeddings.create(model="vidqa", input=texts)
    plain = client.embeddings.create(model="vidqa", input=texts, encoding_format="float")
    vectors = [np.array([one.embedding for one in answer.data]) for answer in (packed, plain)]
    assert vectors[0].shape[0] == 2
    np.testing.assert_array_equal(*vectors)
    np.testing.assert_allclose(np.linalg.norm(vectors[0], axis=1), 1, rtol=1e-5)


def test_a_text_lies_closest_to_the_picture_of_it(client: openai.OpenAI, films: Films) -> None:
    texts = [films.of_type(kind).text for kind in ("background", "motion", "word")]
    cited = [ask(client, text).model_extra["citations"][0] for text in texts]
    inputs: Any = [{"image": data_url(picture_of(client, one))} for one in cited]
    answers = [client.embeddings.create(model="vidqa", input=one) for one in (texts, inputs)]
    text_vectors, image_vectors = (
        np.array([one.embedding for one in answer.data]) for answer in answers
    )
    assert (text_vectors @ image_vectors.T).argmax(axis=1).tolist() == [0, 1, 2]


def test_models_are_listed_and_retrieved(client: openai.OpenAI) -> None:
    (listed,) = client.models.list().data
    assert listed.id == "vidqa"
    assert client.models.retrieve("vidqa") == listed
    assert client.models.retrieve("vidqa:default").id == "vidqa"


@pytest.mark.parametrize(
    ("kind", "match", "fields"),
    [
        (openai.NotFoundError, "gpt-5. does not exist", {"model": "gpt-5"}),
        (openai.BadRequestError, "n is not supported", {"n": 2}),
        (openai.BadRequestError, "calls no tools", {"tools": [{"type": "function"}]}),
        (openai.BadRequestError, "more than the model takes", {"max_tokens": 900_000}),
        (openai.UnprocessableEntityError, "temperature", {"temperature": 3}),
        (
            openai.UnprocessableEntityError,
            "last message must be the user's",
            {"messages": [{"role": "assistant", "content": "Hello."}]},
        ),
        (openai.NotFoundError, "no library", {"extra_body": {"vidqa": {"index": "x"}}}),
    ],
)
def test_an_error_is_the_class_that_the_client_has_for_it(
    client: openai.OpenAI, kind: type[openai.APIStatusError], match: str, fields: dict[str, Any]
) -> None:
    asked: Any = {"model": "vidqa", "messages": [{"role": "user", "content": "red"}]}
    with pytest.raises(kind, match=match) as raised:
        client.chat.completions.create(**(asked | fields))
    assert raised.value.type


def test_a_wrong_key_is_an_error_of_authentication(served: Served) -> None:
    client = openai.OpenAI(base_url=f"{served.url}v1", api_key="wrong" * 5, max_retries=0)
    with client, pytest.raises(openai.AuthenticationError, match="a key is needed"):
        client.models.list()


def test_who_asks_too_often_is_told_when_to_come_again_and_comes(
    films: Films, serve_runtime: Path, tmp_path: Path
) -> None:
    flags = ("--rate-limit", "30")
    sent: list[float] = []
    waits: list[int] = []  # what each answer said, 0 where it was none of coming too often

    def note(response: httpx.Response) -> None:
        waits.append(int(response.headers.get("retry-after", 0)))

    hooks = {"request": [lambda _: sent.append(time.monotonic())], "response": [note]}
    with (
        serving(films.index, serve_runtime, tmp_path / "serve.log", *flags, wait=False) as server,
        httpx.Client(event_hooks=hooks, timeout=LIMIT_SECONDS) as http,
        openai.OpenAI(
            base_url=f"{server.url}v1", api_key="-", max_retries=0, http_client=http
        ) as client,
    ):
        with pytest.raises(openai.RateLimitError):
            [client.embeddings.create(model="vidqa", input="red") for _ in range(200)]
        refused = len(sent)
        assert 1 <= waits[-1] <= 3
        client.with_options(max_retries=3).embeddings.create(model="vidqa", input="red")
    assert waits[-1] == 0
    times = itertools.pairwise(sent[refused:])
    for said, (before, after) in zip(waits[refused:-1], times, strict=True):
        assert after - before >= 0.9 * said


# ---------------------------------------------------------------- LangChain


@pytest.fixture(scope="module")
def chat_openai(served: Served) -> Any:
    langchain = pytest.importorskip("langchain_openai")
    return langchain.ChatOpenAI(model="vidqa", base_url=f"{served.url}v1", api_key=served.key)


def test_langchain_asks_streams_and_asks_several(chat_openai: Any, films: Films) -> None:
    asked, other = films.of_type("colour"), films.of_type("background")
    assert asked.answer in chat_openai.invoke(asked.text).text
    pieces = [one.text for one in chat_openai.stream(asked.text)]
    assert len(pieces) > 3
    assert asked.answer in "".join(pieces)
    answers = chat_openai.batch([asked.text, other.text])
    assert [one.answer in answer.text for one, answer in zip((asked, other), answers, strict=True)]


def test_langchain_counts_tokens_and_hears_the_end(chat_openai: Any, films: Films) -> None:
    answer = chat_openai.invoke(films.of_type("colour").text)
    assert answer.usage_metadata["input_tokens"] > 48
    assert answer.response_metadata["finish_reason"] == "stop"


def test_langchain_asks_asynchronously(chat_openai: Any, films: Films) -> None:
    asked = films.of_type("kind")
    assert asked.answer in asyncio.run(chat_openai.ainvoke(asked.text)).text


def test_langchain_passes_the_filters_on(chat_openai: Any, films: Films) -> None:
    fields = {"vidqa": {"filters": {"video": films.names[0]}, "sources": True}}
    answer = chat_openai.invoke("Where is the star?", extra_body=fields)
    assert set(re.findall(r"film-\d+\.mp4", answer.text)) <= {films.names[0]}


def test_langchain_embeds(served: Served, client: openai.OpenAI) -> None:
    langchain = pytest.importorskip("langchain_openai")
    embeddings = langchain.OpenAIEmbeddings(
        model="vidqa",
        base_url=f"{served.url}v1",
        api_key=served.key,
        check_embedding_ctx_length=False,
    )
    (same,) = client.embeddings.create(model="vidqa", input="a green star").data
    np.testing.assert_allclose(embeddings.embed_query("a green star"), same.embedding, rtol=1e-6)
    assert len(embeddings.embed_documents(["a red ball", "a green star"])) == 2


def test_langchain_is_told_what_to_change_when_it_sends_tokens(served: Served) -> None:
    # What OpenAIEmbeddings sends without check_embedding_ctx_length=False.
    body = {"model": "vidqa", "input": [[1, 2, 3]]}
    response = served.http.post("v1/embeddings", json=body)
    assert response.status_code == 400
    assert "check_embedding_ctx_length=False" in response.json()["error"]["message"]


# ---------------------------------------------------------------- llm, the command


@pytest.fixture(scope="module")
def llm(served: Served, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """Runs the command with a configuration of its own, and gives what it printed."""
    pytest.importorskip("llm")
    folder = tmp_path_factory.mktemp("llm")
    model = {
        "model_id": "films",
        "model_name": "vidqa",
        "api_base": f"{served.url}v1",
        "api_key_name": "films",  # without it llm sends no key at all
    }
    (folder / "extra-openai-models.yaml").write_text(json.dumps([model]), "utf-8")
    environ = environment(served) | {"LLM_USER_PATH": str(folder)}

    def run(*arguments: str) -> str:
        command = [str(Path(sys.executable).with_name("llm")), *arguments, "--key", served.key]
        return output_of(command, env=environ)

    return run


def output_of(command: list[str], **options: Any) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, **options)
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.mark.parametrize("how", [(), ("--no-stream",)])
def test_llm_prints_the_answer_and_its_sources(
    llm: Callable[..., str], films: Films, how: tuple[str, ...]
) -> None:
    asked = films.of_type("colour")
    said = llm("-m", "films", *how, asked.text)
    assert asked.answer in said
    assert f"- 1: [{asked.film} " in said


def test_llm_goes_on_with_a_conversation(llm: Callable[..., str], films: Films) -> None:
    llm("-m", "films", films.of_type("colour").text)
    assert "Sources:" in llm("-c", "And where?")


# ---------------------------------------------------------------- curl


@pytest.fixture(scope="module")
def curl(served: Served) -> Callable[..., str]:
    """Runs curl on a path of the server, and gives what it printed."""
    if not shutil.which("curl"):
        pytest.skip("curl is not installed")

    def run(path: str, *arguments: str) -> str:
        command = ["curl", "-sS", "--oauth2-bearer", served.key, *arguments, f"{served.url}{path}"]
        return output_of(command)

    return run


def test_curl_asks_and_streams(curl: Callable[..., str], films: Films) -> None:
    asked = films.of_type("colour")
    body = {"messages": [{"role": "user", "content": asked.text}]}
    whole = json.loads(curl("v1/chat/completions", "--json", json.dumps(body)))
    assert asked.answer in whole["choices"][0]["message"]["content"]
    lines = curl("v1/chat/completions", "-N", "--json", json.dumps(body | {"stream": True}))
    *events, done = [line.removeprefix("data: ") for line in lines.split("\n\n") if line]
    assert done == "[DONE]"
    assert json.loads(events[0])["choices"][0]["delta"]["role"] == "assistant"


def test_curl_searches_and_fetches_a_part_of_the_film(
    curl: Callable[..., str], films: Films, tmp_path: Path
) -> None:
    asked = films.of_type("background")
    found = json.loads(curl("v1/search", "--json", json.dumps({"query": asked.text, "k": 3})))
    moment = found["moments"][0]
    assert moment["video"] == asked.film
    part = tmp_path / "part"
    curl(f"v1/videos/{moment['video_id']}/stream", "-r", "100-199", "-o", str(part))
    film = next(path for path in films.paths if path.name == asked.film)
    assert part.read_bytes() == film.read_bytes()[100:200]


def test_curl_uploads_a_film_asks_about_it_and_deletes_it(
    curl: Callable[..., str], films: Films
) -> None:
    job = json.loads(curl("v1/videos?name=new%20film.mp4", "-X", "POST", "-T", str(films.upload)))
    assert job["status"] == "queued"

    def state() -> dict[str, Any]:
        return dict(json.loads(curl(f"v1/jobs/{job['id']}")))

    until(lambda: state()["status"] not in ("queued", "running"))
    video_id = state()["video_id"]
    assert state() == state() | {"status": "done", "error": None, "progress": 1.0}
    query = {"query": "a purple house in the room", "filters": {"video": "new film.mp4"}}
    found = json.loads(curl("v1/search", "--json", json.dumps(query)))
    assert {one["video_id"] for one in found["moments"]} == {video_id}
    gone = json.loads(curl(f"v1/videos/{video_id}", "-X", "DELETE"))
    assert gone == {
        "id": video_id,
        "object": "video.deleted",
        "deleted": True,
        "file_deleted": True,
    }
    assert json.loads(curl(f"v1/videos/{video_id}"))["error"]["code"] == "video_not_found"
    assert films.upload.exists()
