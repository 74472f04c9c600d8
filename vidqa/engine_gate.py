"""What stands before vLLM inside the managed engine: who may ask, and what; and when it ends.

vLLM serves some fifty routes and checks its key on a part of them. `Gate` is ASGI middleware that
asks for the key on every one and lets four through; two more where adapters may be loaded, and of
these only copies in the engine's own folder. It also notes when the engine was last asked
something, so that `stop_when_idle` can end an engine that nobody uses, and when it last answered,
since vLLM calls itself healthy while its core hangs. It holds no model and knows nothing of vLLM.
"""

from __future__ import annotations

import hmac
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any

KEY_VARIABLE = "VLLM_API_KEY"  # vLLM's own name for it, as vLLM checks the key as well
ADAPTERS_VARIABLE = "ENGINE_ADAPTERS"  # the folder of the adapters that may be loaded, or nothing
STATUS_ROUTE = ("GET", "/ping")
HEALTH_ROUTES = frozenset({STATUS_ROUTE, ("GET", "/health")})
CHAT_ROUTE = ("POST", "/v1/chat/completions")
MODELS_ROUTE = ("GET", "/v1/models")
ROUTES = HEALTH_ROUTES | {MODELS_ROUTE, CHAT_ROUTE}
LOAD_ROUTE = ("POST", "/v1/load_lora_adapter")
UNLOAD_ROUTE = ("POST", "/v1/unload_lora_adapter")
ADAPTER_ROUTES = frozenset({LOAD_ROUTE, UNLOAD_ROUTE})
IDLE_SECONDS = b"x-vidqa-idle-seconds"  # a header of every answer to STATUS_ROUTE

# Loading a large model from a slow disk takes minutes; nothing takes an hour.
START_SECONDS = 3600.0
# A model that has said nothing for so long while somebody waited hangs. It is a little less than
# `vlm` waits, so that it is known when the client gives up.
HUNG_SECONDS = 590.0
# A name and a path.
LOAD_BYTES = 16 * 1024
# What requests in flight get to finish once the engine was told to end.
GRACE_SECONDS = 15.0

Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]
Receive = Callable[[], Awaitable[Message]]
App = Callable[[Message, Receive, Send], Awaitable[None]]


class Activity:
    """When the engine was last asked something. Starting counts as one request in flight."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._in_flight = self._asking = 1
        self._changed = self._asked = time.monotonic()
        self._chats = 0
        self._heard = 0.0  # when a chat began, while none was open, or was last answered a piece
        self._fell_silent = False
        self.serving = False

    def begin(self, *, asks: bool = True) -> None:
        """A request has come; one that `asks` is for the model, and no list of what is there."""
        with self._lock:
            self._in_flight += 1
            self._asking += asks
            self._changed = time.monotonic()

    def end(self, *, asks: bool = True) -> None:
        with self._lock:
            self._in_flight -= 1
            self._asking -= asks
            self._changed = time.monotonic()
            if asks:
                self._asked = self._changed

    @contextmanager
    def chat(self) -> Iterator[None]:
        """A request that the model itself has to answer."""
        with self._lock:
            if not self._chats:
                self._heard = time.monotonic()
            self._chats += 1
        try:
            yield
        finally:
            with self._lock:
                self._fell_silent = self._fell_silent or self._is_silent()
                self._chats -= 1

    def hear(self) -> None:
        """The model has answered a piece."""
        with self._lock:
            self._heard = time.monotonic()
            self._fell_silent = False

    def hangs(self) -> bool:
        """Whether the model kept somebody waiting beyond all patience, and was silent since."""
        with self._lock:
            return self._fell_silent or self._is_silent()

    def _is_silent(self) -> bool:
        return self._chats > 0 and time.monotonic() - self._heard > HUNG_SECONDS

    def serve(self) -> None:
        """The start is over."""
        if not self.serving:
            self.serving = True
            self.end()

    def idle_seconds(self) -> float:
        """Seconds since the last request ended; 0 while one is in flight."""
        with self._lock:
            return 0.0 if self._in_flight else time.monotonic() - self._changed

    def unasked_seconds(self) -> float:
        """The same of requests that ask: servers list the models every few seconds."""
        with self._lock:
            return 0.0 if self._asking else time.monotonic() - self._asked


ACTIVITY = Activity()


class Gate:
    """ASGI middleware: the key on every route, a short list of routes, and a note of each request.

    `/ping` is for those who look at the engine without using it: it does not keep it from stopping.
    """

    def __init__(self, app: App, activity: Activity = ACTIVITY) -> None:
        self._app = app
        self._activity = activity
        self._secret = f"Bearer {os.environ[KEY_VARIABLE]}".encode()
        self._adapters = os.environ.get(ADAPTERS_VARIABLE, "")
        self._routes = ROUTES | ADAPTER_ROUTES if self._adapters else ROUTES
        activity.serve()

    async def __call__(self, scope: Message, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        status = self._refusal(scope)
        if status:
            await _refuse(scope, send, status)
            return
        route = (scope["method"], scope["path"])
        if route in HEALTH_ROUTES and self._activity.hangs():
            await _refuse(scope, send, 503)
        elif route == STATUS_ROUTE:
            await self._app(scope, receive, self._telling(send))
        elif route == CHAT_ROUTE:
            with self._activity.chat():
                await self._counted(scope, receive, self._hearing(send))
        elif route == LOAD_ROUTE:
            body = await _body(receive)
            if not self._may_load(body):
                await _refuse(scope, send, 403)
                return
            await self._counted(scope, _replayed(body, receive), send)
        else:
            await self._counted(scope, receive, send, asks=route != MODELS_ROUTE)

    def _may_load(self, body: bytes) -> bool:
        """Whether what is asked for lies right in the engine's own folder of adapters."""
        try:
            path = json.loads(body)["lora_path"]
            folder = os.path.realpath(self._adapters)
            return os.path.isabs(path) and os.path.dirname(os.path.realpath(path)) == folder
        except (ValueError, KeyError, TypeError, RecursionError):
            return False

    def _telling(self, send: Send) -> Send:
        """Adds to an answer for how many seconds nobody asked."""

        async def telling(message: Message) -> None:
            if message["type"] == "http.response.start":
                told = (IDLE_SECONDS, f"{self._activity.unasked_seconds():.3f}".encode())
                message = {**message, "headers": [*message.get("headers", ()), told]}
            await send(message)

        return telling

    def _hearing(self, send: Send) -> Send:
        """Notes that an answer goes on."""

        async def hearing(message: Message) -> None:
            self._activity.hear()
            await send(message)

        return hearing

    def _refusal(self, scope: Message) -> int:
        given = dict(scope.get("headers", ())).get(b"authorization", b"")
        if not hmac.compare_digest(given, self._secret):
            return 401
        if scope["type"] != "http" or (scope["method"], scope["path"]) not in self._routes:
            return 404
        return 0

    async def _counted(self, scope: Message, receive: Any, send: Any, *, asks: bool = True) -> None:
        self._activity.begin(asks=asks)
        try:
            await self._app(scope, receive, send)
        finally:
            self._activity.end(asks=asks)


async def _body(receive: Receive) -> bytes:
    """A short request's body; nothing where it is long or broken off."""
    body = b""
    while len(body) <= LOAD_BYTES:
        message = await receive()
        if message["type"] != "http.request":
            return b""
        body += bytes(message.get("body", b""))
        if not message.get("more_body"):
            return body
    return b""


def _replayed(body: bytes, receive: Receive) -> Receive:
    """A body that was read already, to be read again."""
    left: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return left.pop() if left else await receive()

    return replayed


async def _refuse(scope: Message, send: Any, status: int) -> None:
    if scope["type"] != "http":
        await send({"type": "websocket.close", "code": 1008})
        return
    body = b'{"error": {"message": "refused by the engine\'s gate"}}'
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def stop_when_idle(idle_seconds: float, activity: Activity = ACTIVITY) -> None:
    """Ends this process, the leader of its group, once nobody has asked for `idle_seconds`.

    A thread does it, so that it also ends an engine whose event loop hangs or whose start does.
    """

    def watch() -> None:
        born = time.monotonic()
        while activity.idle_seconds() < idle_seconds:
            if not activity.serving and time.monotonic() - born > START_SECONDS:
                break
            time.sleep(min(1.0, idle_seconds / 4))
        sys.stderr.write(f"vidqa: nobody asked for {idle_seconds:.0f} s, so the engine stops\n")
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GRACE_SECONDS)
        os.killpg(os.getpgid(0), signal.SIGKILL)

    threading.Thread(target=watch, name="idle", daemon=True).start()
