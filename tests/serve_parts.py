"""A server as people run it, on a real socket in a thread: around a library of plain colours and an
endpoint that says what it is told.

    with served(library, endpoint.base_url) as server:
        server.http.post("v1/search", json={"query": "red"})
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from fakes import FakeEmbedder
from fastapi import FastAPI
from waiting import LIMIT_SECONDS, until

from vidqa.config import Settings
from vidqa.library import Library
from vidqa.server.app import create_app
from vidqa.server.engine import Answerer
from vidqa.server.gateway import CachingEmbedder, Gateway, Shelf
from vidqa.server.keys import Keys
from vidqa.server.metrics import Metrics
from vidqa.server.pictures import Pictures
from vidqa.server.run import PROTOCOL
from vidqa.wiring import Endpoint

KEY = "a-key-of-twenty-char"


@dataclass(frozen=True)
class Served:
    """A running server; `http` is a client whose addresses are relative to its root."""

    url: str
    gateway: Gateway
    http: httpx.Client
    app: FastAPI

    def ready(self, state: str = "ready") -> None:
        """Waits until the engine is in that state."""
        until(lambda: self.gateway.answerer.state == state)

    def ask(self, question: str, **more: object) -> httpx.Response:
        body = {"model": "vidqa", "messages": [{"role": "user", "content": question}]}
        return self.http.post("v1/chat/completions", json=body | more)


@contextmanager
def served(
    library: Library | dict[str, Library],
    base_url: str,
    *,
    keys: Keys | None = None,
    connect: Callable[..., Endpoint] | None = None,
    pictures: Pictures | None = None,
    adapters: Mapping[str, Mapping[str, Any]] | None = None,
    wait: bool = True,
    **settings: object,
) -> Iterator[Served]:
    """Serves one library or several by name. `connect` stands for starting the engine."""
    libraries = library if isinstance(library, dict) else {"default": library}
    metrics = Metrics()
    shelves = [
        Shelf(name, one, CachingEmbedder(FakeEmbedder(), metrics))
        for name, one in libraries.items()
    ]
    answerer = Answerer(connect or (lambda tell: Endpoint(base_url, None, None)), metrics)
    chosen = Settings(**{"follow_ups": "join", **settings})  # type: ignore[arg-type]
    gateway = Gateway(chosen, shelves, answerer, metrics, adapters)
    app = create_app(gateway, keys or Keys(), pictures=pictures)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        config = uvicorn.Config(
            app,
            log_level="error",
            timeout_graceful_shutdown=5,
            timeout_keep_alive=600,  # a client may be about to use its connection again
            root_path=chosen.root_path or "",
            **PROTOCOL,
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/"
        try:
            with httpx.Client(base_url=url, timeout=LIMIT_SECONDS) as http:
                until(lambda: server.started)
                running = Served(url, gateway, http, app)
                if wait:
                    running.ready()
                yield running
        finally:
            server.should_exit = True
            thread.join()


def described() -> dict[str, Any]:
    """The description as the application gives it; no library and no model are needed for that."""
    metrics = Metrics()
    answerer = Answerer(lambda tell: Endpoint("", None, None), metrics)
    return create_app(Gateway(Settings(), [], answerer, metrics), Keys()).openapi()


def follow(folder: Path) -> Library:
    """A library as the server opens it."""
    return Library.open(folder, follow=True)
