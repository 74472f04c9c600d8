"""`vidqa serve`: a socket, one process or several, and an end that lets answers finish.

    serve(settings, ServeOptions(), on_listening=print)

The socket is opened here, before anything is loaded, so a port that is taken is said at once. With
several workers each is a process of its own that inherits it; what they serve travels in a variable
of their environment, as their keys do, which only this user can read.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import socket
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.config import STARTUP_FAILURE

from vidqa.adapter_fit import servable
from vidqa.adapters import is_adapter, stamp
from vidqa.config import SETTINGS, Settings
from vidqa.errors import UsageError, VidqaError
from vidqa.server.app import create_app, is_loopback
from vidqa.server.engine import Answerer
from vidqa.server.gateway import BASE_MODEL, Gateway, open_shelf
from vidqa.server.keys import VARIABLE, Keys
from vidqa.server.metrics import MULTIPROCESS_VARIABLE, Metrics
from vidqa.wiring import ChosenAdapter, choose_adapter, endpoint

TOLD = "VIDQA_SERVE"
# What a running answer gets to finish once the server is told to end.
GRACE_SECONDS = 120
DEFAULT_LIBRARY = "default"
# The parser that bounds what a head may weigh; httptools, taken where it is installed, holds any.
PROTOCOL: dict[str, Any] = {"http": "h11", "h11_max_incomplete_event_size": 64 * 1024}


def _silent(state: str, detail: str) -> None:
    """Who does not care what the engine does."""


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """What is served besides the settings: more libraries and adapters, by name, and the keys."""

    libraries: tuple[tuple[str, Path], ...] = ()
    adapters: tuple[tuple[str, Path], ...] = ()
    keys: Keys = field(default_factory=Keys)
    workers: int = 1
    verbose: bool = False

    def __post_init__(self) -> None:
        names = [name for name, _ in self.libraries]
        answerers = [BASE_MODEL, *(name for name, _ in self.adapters)]
        for kind, given in (("--library", [DEFAULT_LIBRARY, *names]), ("--adapter", answerers)):
            for name in given:
                if not name or ":" in name or "/" in name or given.count(name) > 1:
                    raise UsageError(
                        f"{kind} {name!r}: a name is given once, and has no colon and no slash"
                    )


def build(
    settings: Settings, options: ServeOptions, on_engine: Callable[[str, str], None] = _silent
) -> FastAPI:
    """The application of one process. Raises LibraryError, ModelError.

    `on_engine` hears the engine's state and what it is doing, as often as that changes.
    """
    metrics = Metrics()
    folders = [(DEFAULT_LIBRARY, settings.index), *options.libraries]
    shelves = [open_shelf(settings, name, folder, metrics) for name, folder in folders]
    chosen = _adapters(settings, options)
    answerer = Answerer(
        lambda tell: endpoint(settings, tell, chosen),
        metrics,
        on_change=on_engine,
        has_changed=_Watched([one.folder for one in chosen if one.folder]),
    )
    looks = {one.name: one.look for one in chosen}
    return create_app(Gateway(settings, shelves, answerer, metrics, looks), options.keys)


class _Watched:
    """Whether an adapter has changed since this was last called."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self._folders = folders
        self._seen = [stamp(one) for one in folders]

    def __call__(self) -> bool:
        seen, self._seen = self._seen, [stamp(one) for one in self._folders]
        return seen != self._seen


def _adapters(settings: Settings, options: ServeOptions) -> list[ChosenAdapter]:
    """What is served besides the base model. Raises UsageError, ModelError.

    A user's endpoint has its adapters already; what is here only says how they want to see.
    """
    chosen = []
    for name, folder in options.adapters:
        if settings.base_url and not is_adapter(folder):
            chosen.append(ChosenAdapter(name, None))
        else:
            chosen.append(choose_adapter(settings, f"{name}={folder}"))
    return chosen


def serve(
    settings: Settings,
    options: ServeOptions,
    on_listening: Callable[[str], None] = lambda url: None,
    on_engine: Callable[[str, str], None] = _silent,
) -> None:
    """Serves until it is told to end. `on_listening` is given the address of the page.

    `on_engine` is as in `build`; of several workers nothing is heard.
    """
    _check(settings, options)
    listening = listen(settings.host, settings.port)
    with listening:
        # Of several workers each builds its own; what is wrong with it is said here, in one line.
        app = build(settings, options, on_engine)
        on_listening(address(settings, listening.getsockname()[1]))
        if options.workers == 1:
            _Server(_configuration(app, settings, options)).run(sockets=[listening])
        else:
            del app
            _with_workers(settings, options, listening)


def _check(settings: Settings, options: ServeOptions) -> None:
    """Raises UsageError for what a server could only find out later, when it runs."""
    if not is_loopback(settings.host) and not options.keys:
        raise UsageError(
            f"--host {settings.host} lets other machines in, which needs a key: name a file with "
            f"lines NAME:KEY by --api-key-file, or set {VARIABLE}"
        )
    if "/" in (settings.server_names or ""):
        raise UsageError(
            f"--server-names {settings.server_names!r}: names alone, without http:// and paths, "
            "like films.example"
        )
    if settings.base_url:
        if not settings.base_url.lower().startswith(("http://", "https://")):
            shown = settings.base_url.rpartition("@")[2]  # what may be before it is a password
            raise UsageError(f"--base-url {shown!r}: it is like http://127.0.0.1:8000/v1")
        return
    # Asked for these, the engine of other commands would be ended first.
    for one in _adapters(settings, options):
        if one.folder:
            servable(one.folder)


class _Server(uvicorn.Server):
    """Ends when it is told to, which is no failure: the signal is not passed on afterwards."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        super().handle_exit(sig, frame)
        self._captured_signals.clear()


def _configuration(app: FastAPI | str, settings: Settings, options: ServeOptions) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        factory=isinstance(app, str),
        workers=options.workers,
        root_path=f"/{path}" if (path := (settings.root_path or "").strip("/")) else "",
        log_level="info" if options.verbose else "warning",
        access_log=options.verbose,
        server_header=False,
        timeout_graceful_shutdown=GRACE_SECONDS,
        # Slow readers of a long video are no reason to keep a request line open for ever.
        timeout_keep_alive=15,
        # Loading an embedder holds a worker up; one that only loads is not to be killed for it.
        timeout_worker_healthcheck=60,
        **PROTOCOL,
    )


def _with_workers(settings: Settings, options: ServeOptions, listening: socket.socket) -> None:
    from uvicorn.supervisors import Multiprocess

    config = _configuration("vidqa.server.run:from_environment", settings, options)
    with tempfile.TemporaryDirectory(prefix="vidqa-metrics-") as folder:
        os.environ[TOLD] = told(settings, options)
        os.environ[MULTIPROCESS_VARIABLE] = folder
        try:
            supervisor = Multiprocess(config, sockets=[listening])
            supervisor.run()
        finally:
            del os.environ[TOLD], os.environ[MULTIPROCESS_VARIABLE]
    if any(one.exitcode == STARTUP_FAILURE for one in supervisor.processes):
        raise VidqaError("a worker could not start; see above")


def told(settings: Settings, options: ServeOptions) -> str:
    """Everything that a worker needs, as text."""
    values = {name: getattr(settings, name) for name in SETTINGS}
    named = asdict(options) | {"keys": dict(options.keys.by_name)}
    return json.dumps({"settings": values, "given": sorted(settings.given), **named}, default=str)


def from_environment() -> FastAPI:
    """The application of a worker, from what `told` said."""
    # Taken out: what this process starts, such as the engine, need not know the keys.
    said: dict[str, Any] = json.loads(os.environ.pop(TOLD))
    values: dict[str, Any] = {
        name: SETTINGS[name].metadata["kind"](value) if value is not None else None
        for name, value in said["settings"].items()
    }
    logging.basicConfig(level=logging.INFO if said["verbose"] else logging.ERROR)
    options = ServeOptions(
        libraries=tuple((name, Path(folder)) for name, folder in said["libraries"]),
        adapters=tuple((name, Path(folder)) for name, folder in said["adapters"]),
        keys=Keys(said["keys"]),
        workers=said["workers"],
        verbose=said["verbose"],
    )
    return build(Settings(**values, given=frozenset(said["given"])), options)


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises VidqaError when the port is taken, UsageError for a host."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except PermissionError as error:
        raise UsageError(f"--port {port}: this user may not listen there; try 8080") from error
    except OSError as error:
        # What `create_server` adds to the reason says the address again.
        reason = str(error.strerror).partition(" (while")[0]
        # A name that is not found has a number below zero, of the resolver's.
        if (error.errno or 0) < 0 or error.errno == errno.EADDRNOTAVAIL:
            raise UsageError(
                f"--host {host}: no such address on this machine ({reason}); 0.0.0.0 stands for "
                "all that it has"
            ) from error
        raise VidqaError(
            f"{host}:{port} cannot be listened on ({reason}); choose another with --port, or "
            "--port 0 for any"
        ) from error


def address(settings: Settings, port: int) -> str:
    """The address of the page, as a browser on this machine takes it."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{port}/"
