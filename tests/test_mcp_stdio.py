"""`vidqa mcp` as an agent starts it: a process of its own, spoken to over stdin and stdout."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pytest
from conftest import REPOSITORY
from fakes import FakeEndpoint
from mcp_parts import Agent, agent, arguments_of, command, data_of, text_of
from test_server_chat import Endless
from waiting import LIMIT_SECONDS

from vidqa.config import Settings
from vidqa.demo import films, world
from vidqa.ingest import ingest
from vidqa.wiring import ingest_options, open_library

HELLO = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {
        "protocolVersion": "2025-06-18",
        "capabilities": {},
        "clientInfo": {"name": "test", "version": "1"},
    },
}
READY = {"jsonrpc": "2.0", "method": "notifications/initialized"}


def call(number: int, name: str, **arguments: Any) -> dict[str, Any]:
    params = {"name": name, "arguments": arguments}
    return {"jsonrpc": "2.0", "id": number, "method": "tools/call", "params": params}


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library of one film of the playground, made by the real embedder."""
    folder = tmp_path_factory.mktemp("agent")
    settings = Settings.load("demo", {"index": folder / "library"})
    films.write_library(folder / "films", [world.FIRST_HELD_OUT_SEED], scene_count=3, per_type=1)
    library, embedder = open_library(settings, create=True)
    report = ingest([folder / "films"], library, embedder, ingest_options(settings))
    assert not report.failures
    return settings.index


@pytest.fixture(scope="module")
def endpoint() -> Iterator[FakeEndpoint]:
    with FakeEndpoint() as running:
        yield running


@pytest.fixture(scope="module")
def mine(index: Path, endpoint: FakeEndpoint) -> Iterator[Agent]:
    with agent(command(index, "--base-url", endpoint.base_url)) as connected:
        yield connected


def started(index: Path, *more: str) -> subprocess.Popen[str]:
    """The command, to be spoken to by hand."""
    return subprocess.Popen(
        [sys.executable, *arguments_of(index, *more)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
    )


def say(stdin: IO[str] | None, *messages: dict[str, Any]) -> None:
    assert stdin is not None
    for one in messages:
        stdin.write(json.dumps(one) + "\n")
    stdin.flush()


def test_the_same_tools_are_offered(mine: Agent) -> None:
    assert len(mine.tools().tools) == 5


def test_a_search_finds(mine: Agent) -> None:
    (moment,) = data_of(mine.call("search_moments", query="a yellow house", k=1))["moments"]
    assert moment["video"].endswith(".mp4")
    assert "/" not in moment["video"]


def test_there_is_no_page_to_lead_to(mine: Agent) -> None:
    (moment,) = data_of(mine.call("search_moments", query="a yellow house", k=1))["moments"]
    assert "url" not in moment


def test_a_question_is_answered_with_citations(mine: Agent, endpoint: FakeEndpoint) -> None:
    result = mine.call("ask_library", question="Where is the yellow house?")
    data = data_of(result)
    assert data["answer"] == "It is red [1]."
    assert [one["n"] for one in data["citations"]] == [1]
    assert "Sources:" in text_of(result)


def test_frames_are_images(mine: Agent) -> None:
    (video,) = data_of(mine.call("list_videos"))["videos"]
    result = mine.call("get_frames", video_id=video["id"], count=2)
    assert [one.type for one in result.content] == ["text", "image", "image"]


def test_a_bad_call_is_told_in_one_line(mine: Agent) -> None:
    assert "list_videos lists them" in mine.error("video_outline", video_id="0" * 16)


def test_other_libraries_can_be_named(index: Path, endpoint: FakeEndpoint) -> None:
    more = ("--library", f"again={index}", "--base-url", endpoint.base_url)
    with agent(command(index, *more)) as mine:
        data = data_of(mine.call("list_videos", library="again"))
    assert (data["library"], data["libraries"]) == ("again", ["default", "again"])


def test_a_call_that_is_cancelled_ends_the_work_of_the_model(index: Path) -> None:
    pieces = Endless()
    with (
        FakeEndpoint(pieces=pieces) as endpoint,
        agent(command(index, "--base-url", endpoint.base_url)) as mine,
    ):
        asked = mine.start("ask_library", question="Where is the yellow house?")
        assert pieces.begun.wait(LIMIT_SECONDS)
        asked.cancel()
        assert pieces.gone.wait(LIMIT_SECONDS), "the endpoint went on writing"
        assert data_of(mine.call("list_videos"))["total"] == 1


def test_only_a_question_needs_the_model(index: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        nowhere = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
    with agent(command(index, "--base-url", nowhere)) as mine:
        assert data_of(mine.call("search_moments", query="a yellow house"))["moments"]
        assert "the model does not answer yet" in mine.error(
            "ask_library", question="Where is the yellow house?"
        )


def test_stdout_carries_the_protocol_and_nothing_else(index: Path, endpoint: FakeEndpoint) -> None:
    with started(index, "--base-url", endpoint.base_url, "-v") as process:
        say(process.stdin, HELLO, READY, call(2, "search_moments", query="a yellow house"))
        say(
            process.stdin,
            call(3, "ask_library", question="Where is the yellow house?"),
            {"nonsense": True},
        )
        assert process.stdout is not None
        said = []
        while not {2, 3} <= {one.get("id") for one in said}:
            said.append(json.loads(process.stdout.readline()))
        assert process.stdin is not None
        process.stdin.close()
        said += [json.loads(line) for line in process.stdout]
    assert {one["jsonrpc"] for one in said} == {"2.0"}


def test_it_ends_when_stdin_does(index: Path) -> None:
    with started(index) as process:
        say(process.stdin, HELLO, READY)
        assert process.stdout is not None
        process.stdout.readline()
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (0, "", "")


def test_it_ends_in_the_middle_of_an_answer(index: Path) -> None:
    pieces = Endless()
    with (
        FakeEndpoint(pieces=pieces) as endpoint,
        started(index, "--base-url", endpoint.base_url) as process,
    ):
        say(
            process.stdin,
            HELLO,
            READY,
            call(2, "ask_library", question="Where is the yellow house?"),
        )
        assert pieces.begun.wait(LIMIT_SECONDS)
        process.communicate(timeout=60)
        assert process.returncode == 0
        assert pieces.gone.wait(LIMIT_SECONDS), "the endpoint went on writing"


def test_it_ends_quietly_when_nobody_reads(index: Path) -> None:
    with started(index) as process:
        assert process.stdout is not None
        process.stdout.close()
        say(process.stdin, HELLO)
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(LIMIT_SECONDS) == 0
        assert process.stderr is not None
        assert process.stderr.read() == ""


def test_a_library_that_is_not_there_is_told_on_stderr(tmp_path: Path) -> None:
    with started(tmp_path / "none") as process:
        out, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert out == ""
    assert "vidqa ingest" in err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "none").exists()


@pytest.mark.e2e
def test_the_real_engine_is_started_by_the_first_question(index: Path, engine_folder: Path) -> None:
    """Ended with the tests' other engines; it is theirs, in their runtime folder."""
    where = {"VIDQA_RUNTIME_DIR": str(engine_folder.parent)}
    with agent(command(index, **where)) as mine:
        assert data_of(mine.call("search_moments", query="a yellow house"))["moments"]
        answer: dict[str, Any] = {}
        for _ in range(10):  # a start may take longer than a call waits
            result = mine.call("ask_library", question="Where is the yellow house?")
            if not result.is_error:
                answer = data_of(result)
                break
            assert "call ask_library again" in text_of(result)
    assert "night" in answer["answer"]
    (citation,) = answer["citations"]
    assert citation["video"] == "film-0000.mp4"
    assert any(one.startswith("the model is not ready yet: ") for one in mine.told)
