"""`vidqa serve` as a process: how it starts, what it refuses, and how it ends."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from fakes import FakeEmbedder, FakeEndpoint
from fastapi import FastAPI
from media import make_film, shot
from serve_parts import KEY
from waiting import LIMIT_SECONDS, until

from vidqa.config import SETTINGS, Settings
from vidqa.errors import EmbedderMismatch, UsageError, VidqaError
from vidqa.library import Library
from vidqa.server import run
from vidqa.server.keys import Keys
from vidqa.server.run import (
    ServeOptions,
    _configuration,
    address,
    from_environment,
    listen,
    serve,
    told,
)

CODE = "from vidqa.cli import main; main()"


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-c", CODE, *map(str, arguments)]


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **more}


@contextmanager
def serving(*arguments: object, **more: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The process, once it listens, and its address."""
    process = subprocess.Popen(
        command("serve", "--config", "demo", "--port", 0, "--json", *arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(**more),
        start_new_session=True,
    )
    assert process.stdout
    try:
        line = process.stdout.readline()
        assert line, process.stderr.read() if process.stderr else ""
        event = json.loads(line)
        assert event["event"] == "listening"
        yield process, event["url"]
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


class Slow(list[str]):
    """Pieces of an answer that takes a second."""

    def __iter__(self) -> Iterator[str]:
        for n in range(10):
            time.sleep(0.1)
            yield f"word{n} "


@pytest.fixture(scope="module")
def endpoint() -> Iterator[FakeEndpoint]:
    with FakeEndpoint(pieces=Slow()) as running:
        yield running


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory, endpoint: FakeEndpoint) -> Path:
    """Made by a server where there was nothing, and filled by another process meanwhile."""
    folder = tmp_path_factory.mktemp("run")
    film = make_film(folder / "a.mp4", [shot(1)]).path
    with serving("--index", folder / "library", "--base-url", endpoint.base_url) as (_, url):
        until(lambda: httpx.get(f"{url}v1/videos", timeout=LIMIT_SECONDS).json()["data"] == [])
        arguments = ("ingest", "--config", "demo", "--index", folder / "library", film)
        done = subprocess.run(
            command(*arguments), env=environment(), capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        # No restart, no wait: it is there with the next request.
        assert len(httpx.get(f"{url}v1/videos", timeout=LIMIT_SECONDS).json()["data"]) == 1
    return folder / "library"


def test_a_library_is_made_where_there_is_none_and_follows_other_processes(library: Path) -> None:
    assert len(Library.open(library).videos()) == 1


# ---------------------------------------------------------------- several workers


def test_two_workers_answer_and_share_their_figures(library: Path, endpoint: FakeEndpoint) -> None:
    arguments = ("--index", library, "--base-url", endpoint.base_url, "--workers", 2)
    options: dict[str, Any] = {
        "headers": {"Authorization": f"Bearer {KEY}"},
        "limits": httpx.Limits(max_keepalive_connections=0),  # whichever worker takes the next
        "timeout": LIMIT_SECONDS,
    }
    with (
        serving(*arguments, VIDQA_SERVE_KEYS=f"alice:{KEY}") as (process, url),
        httpx.Client(base_url=url, **options) as http,
    ):
        assert http.get("v1/models", headers={"Authorization": "Bearer x"}).status_code == 401
        until(lambda: len(children(process.pid)) >= 2)
        for _ in range(20):
            assert http.get("v1/models").status_code == 200
        for _ in range(4):
            figures = http.get("metrics").text
            assert 'vidqa_requests_total{route="/v1/models",status="200"} 20.0' in figures
        job = http.post("v1/videos?name=x.mp4", content=b"x").json()
        for _ in range(4):
            assert http.get(f"v1/jobs/{job['id']}").status_code == 200


def children(pid: int) -> list[int]:
    listed = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(one) for one in listed]


def test_what_workers_are_told_is_kept_from_what_they_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(run, "build", lambda settings, options: (settings, options))
    monkeypatch.setenv(run.TOLD, told(Settings(), ServeOptions(keys=Keys({"alice": KEY}))))
    from_environment()
    assert run.TOLD not in os.environ


def unusual(name: str) -> Any:
    """A value that is not the default's, of its type and within its bounds."""
    one = SETTINGS[name]
    bounds, kind = one.metadata["bounds"], one.metadata["kind"]
    if kind is bool:
        return not one.default
    if bounds.choices:
        return bounds.choices[-1]
    if kind in (int, float):
        return kind(bounds.minimum) + (kind(bounds.minimum) == one.default)
    return kind("odd: 'ü\"\\")


@pytest.mark.parametrize("unusually", [False, True])
def test_a_worker_is_built_from_what_the_server_was(
    monkeypatch: pytest.MonkeyPatch, unusually: bool
) -> None:
    settings = Settings()
    if unusually:
        given = frozenset({"model", "k"})
        settings = Settings(**{name: unusual(name) for name in SETTINGS}, given=given)
    options = ServeOptions(
        libraries=(("cats", Path("/a b/ü")),),
        adapters=(("tuned", Path("x")),),
        keys=Keys({"alice": KEY}),
        workers=2,
        verbose=unusually,
    )
    monkeypatch.setattr(run, "build", lambda settings, options: (settings, options))
    monkeypatch.setenv(run.TOLD, told(settings, options))
    again, same = from_environment()  # type: ignore[misc]
    assert (again, again.given) == (settings, settings.given)
    for one in fields(Settings):
        assert type(getattr(again, one.name)) is type(getattr(settings, one.name)), one.name
    assert same == options


# ---------------------------------------------------------------- the end


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_running_answer_may_finish_and_then_it_ends(
    library: Path, endpoint: FakeEndpoint, number: signal.Signals, workers: int
) -> None:
    arguments = ("--index", library, "--base-url", endpoint.base_url, "--workers", workers)
    with serving(*arguments) as (process, url), httpx.Client(timeout=LIMIT_SECONDS) as http:
        video_id = http.get(f"{url}v1/videos").json()["data"][0]["id"]
        body = {
            "messages": [{"role": "user", "content": "What is it?"}],
            "stream": True,
            "vidqa": {"whole": video_id},
        }
        until(lambda: http.get(f"{url}readyz").status_code == 200)  # of the worker that is asked
        with http.stream("POST", f"{url}v1/chat/completions", json=body) as response:
            assert response.status_code == 200, response.read()
            lines = response.iter_lines()
            until(lambda: "word0" in next(lines))
            if number == signal.SIGINT:  # a terminal sends it to all
                os.killpg(process.pid, number)
            else:
                process.send_signal(number)
            rest = "\n".join(lines)
        assert "word9" in rest
        assert "[DONE]" in rest
        assert process.wait(LIMIT_SECONDS) == 0
        assert process.stderr
        assert process.stderr.read() == ""
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{url}healthz", timeout=LIMIT_SECONDS)


# ---------------------------------------------------------------- what is refused


def test_a_port_that_is_taken_is_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(VidqaError, match=rf"127\.0\.0\.1:{port} cannot be .*; choose another"):
            serve(Settings(port=port, index=tmp_path), ServeOptions())
        arguments = ("serve", "--config", "demo", "--port", port, "--index", tmp_path / "x")
        done = subprocess.run(
            command(*arguments), capture_output=True, text=True, env=environment(), check=False
        )
    assert done.returncode == 1
    assert done.stdout == ""
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "films.example", "127.0.0.1.x"])
def test_other_machines_are_let_in_with_a_key_alone(host: str) -> None:
    with pytest.raises(UsageError, match=r"needs a key: name a file .* or set VIDQA_SERVE_KEYS"):
        serve(Settings(host=host), ServeOptions())


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        (Settings(server_names="http://a.example"), "--server-names 'http://a.example': names al"),
        (Settings(base_url="127.0.0.1:8000/v1"), "--base-url '127.0.0.1:8000/v1': it is like http"),
    ],
)
def test_what_could_never_work_is_told_before_it_listens(settings: Settings, match: str) -> None:
    with pytest.raises(UsageError, match=match):
        serve(settings, ServeOptions())


def test_a_base_url_that_is_none_is_told_without_its_password() -> None:
    with pytest.raises(UsageError) as told:
        serve(Settings(base_url="user:secret@films.example/v1"), ServeOptions())
    assert "secret" not in str(told.value)


def test_a_folder_without_an_adapter_ends_no_engine_of_others(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--adapter mine=.* holds no adapter_config\.json"):
        serve(Settings(), ServeOptions(adapters=(("mine", tmp_path),)))


@pytest.mark.parametrize(
    ("host", "reason"),
    [("no such host", "Name or service not known"), ("203.0.113.7", "Cannot assign requested a")],
)
def test_an_address_that_is_not_here_is_one_line(
    host: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if host.startswith("no"):
        monkeypatch.setattr(socket, "create_server", _fails)
    with pytest.raises(UsageError, match=rf"--host {host}: no such address .* \({reason}[a-z]*\);"):
        listen(host, 0)


def _fails(*arguments: object, **more: object) -> None:
    """As `create_server` tells of a name that is not found."""
    raise OSError(-2, "Name or service not known (while attempting to bind on address ('', 0))")


@pytest.mark.parametrize("workers", [1, 2])
def test_another_embedder_is_told_before_anybody_is_told_where_to_ask(
    tmp_path: Path, workers: int
) -> None:
    Library.open(tmp_path / "library", FakeEmbedder.spec, create=True)
    settings = Settings.load("demo", {"embedder": "bundled:tiny-clip", "port": 0})
    told_to: list[str] = []
    with pytest.raises(EmbedderMismatch, match="fake-colours"):
        serve(
            replace(settings, index=tmp_path / "library"),
            ServeOptions(workers=workers),
            told_to.append,
        )
    assert told_to == []


@pytest.mark.parametrize(
    ("libraries", "adapters", "match"),
    [
        ([("", "x")], [], "--library ''"),
        ([("a:b", "x")], [], "no colon and no slash"),
        ([("a/b", "x")], [], "no colon and no slash"),
        ([("default", "x")], [], "--library 'default'"),
        ([("a", "x"), ("a", "y")], [], "a name is given once"),
        ([], [("vidqa", "x")], "--adapter 'vidqa'"),
        ([], [("a", "x"), ("a", "y")], "a name is given once"),
    ],
)
def test_a_name_that_would_be_another_models_is_refused(
    libraries: list[tuple[str, str]], adapters: list[tuple[str, str]], match: str
) -> None:
    with pytest.raises(UsageError, match=match):
        ServeOptions(
            libraries=tuple((name, Path(one)) for name, one in libraries),
            adapters=tuple((name, Path(one)) for name, one in adapters),
        )


def test_the_keys_are_not_in_what_is_shown_of_the_options() -> None:
    assert KEY not in repr(ServeOptions(keys=Keys({"alice": KEY})))


# ---------------------------------------------------------------- addresses


@pytest.mark.parametrize(
    ("host", "shown"),
    [("127.0.0.1", "http://127.0.0.1:8/"), ("0.0.0.0", "http://127.0.0.1:8/"),
     ("::1", "http://[::1]:8/"), ("::", "http://[::1]:8/"), ("localhost", "http://localhost:8/")],
)  # fmt: skip
def test_the_address_of_the_page_is_one_that_a_browser_takes(host: str, shown: str) -> None:
    assert address(Settings(host=host), 8) == shown


@pytest.mark.parametrize(
    ("given", "path"), [("/vidqa", "/vidqa"), ("vidqa/", "/vidqa"), ("/", ""), (None, "")]
)
def test_a_root_path_may_be_written_with_and_without_slashes(given: str | None, path: str) -> None:
    configuration = _configuration(FastAPI(), Settings(root_path=given), ServeOptions())
    assert configuration.root_path == path


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
def test_it_listens_where_it_was_told_to(host: str) -> None:
    with listen(host, 0) as listening:
        accepted: list[Any] = []
        thread = threading.Thread(target=lambda: accepted.append(listening.accept()))
        thread.start()
        socket.create_connection((host, listening.getsockname()[1])).close()
        thread.join()
        accepted[0][0].close()
