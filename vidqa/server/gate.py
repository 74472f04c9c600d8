"""Who may ask: host, origin, key, rate and size, before any route is reached.

ASGI middleware around the whole application, so no route can be forgotten: what is open is a short
list here, everything else wants the key. A browser is the one program that carries other people's
requests: a page elsewhere may neither post to this server nor embed its videos (Origin and
Sec-Fetch-Site), and a name that was pointed at this address is not answered (Host).
"""

from __future__ import annotations

import logging
import math
import re
import time
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vidqa.server.errors import ApiError, translated
from vidqa.server.keys import COOKIE, Keys, Rates
from vidqa.server.metrics import Metrics

log = logging.getLogger(__name__)

# Who runs the server looks at these without a key; they tell nothing of the library.
_OPEN = re.compile(r"/|/healthz|/readyz|/docs|/openapi\.json|/favicon\.ico|/(web|swagger)/.*")
# What `<video>` and `<img>` fetch.
_MEDIA = re.compile(r"/v1/(videos/[^/]+/(stream|subtitles\.vtt)|frames/.*|clips/.*)")
_UPLOAD = ("POST", "/v1/videos")

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "media-src 'self' blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
# Swagger's page holds a script and styles of its own, and nothing that a client said.
_DOCS_POLICY = _POLICY.replace("script-src 'self'", "script-src 'self' 'unsafe-inline'").replace(
    "style-src 'self'", "style-src 'self' 'unsafe-inline'"
)
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one request may weigh, in bytes; an upload has a limit of its own."""

    body_bytes: int
    upload_bytes: int


class Gate:
    """The middleware. `hosts` are names that the Host header may carry; none: any."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        keys: Keys,
        rates: Rates,
        hosts: frozenset[str],
        limits: Limits,
        metrics: Metrics,
    ) -> None:
        self._app = app
        self._keys = keys
        self._rates = rates
        self._hosts = hosts
        self._limits = limits
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        started = time.perf_counter()
        status = 0
        policy = _DOCS_POLICY if route_path(scope) == "/docs" else _POLICY

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers.setdefault("Content-Security-Policy", policy)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            refusal = self._refusal(scope)
            if refusal:
                await refusal.response()(scope, receive, answer)
            else:
                await self._app(scope, self._counted(scope, receive), answer)
        except Exception as error:
            if status:  # too late for an answer; the connection is cut
                raise
            # Quoted: a line break in a path must not begin a line of the log.
            log.exception("%s %r", scope["method"], scope["path"])
            await translated(error).response()(scope, receive, answer)
        finally:
            route = getattr(scope.get("route"), "path", "unmatched")
            self._metrics.request(route, status or 500, time.perf_counter() - started)

    def _refusal(self, scope: Scope) -> ApiError | None:
        headers = Headers(scope=scope)
        method, path = scope["method"], route_path(scope)
        refusal = self._stranger(headers) or _ambiguous(headers)
        if refusal or _OPEN.fullmatch(path):
            return refusal
        who = self._keys.name_of(headers.get("authorization", "").encode("latin-1"))
        if who is None and method in ("GET", "HEAD") and _MEDIA.fullmatch(path):
            who = next(filter(None, map(self._keys.name_of_cookie, _cookies(headers))), None)
        if who is None:
            return ApiError(
                401,
                "a key is needed: send `Authorization: Bearer KEY` with one of this server's keys",
                code="invalid_api_key",
            )
        scope["vidqa.who"] = who
        wait_seconds = self._rates.admit(who) if method not in ("GET", "HEAD", "OPTIONS") else 0.0
        if wait_seconds:
            return ApiError(
                429,
                f"asked too often (key {who}); try again in {math.ceil(wait_seconds)} s",
                code="rate_limit_exceeded",
                retry_after_seconds=wait_seconds,
            )
        return self._too_large(headers, method, path)

    def _stranger(self, headers: Headers) -> ApiError | None:
        host = headers.get("host", "")
        if self._hosts and _hostname(host) not in self._hosts:
            return ApiError(
                403,
                f"{host!r} is no name of this server; allowed are "
                f"{', '.join(sorted(self._hosts))} (--server-names)",
                code="wrong_host",
            )
        origin = headers.get("origin")
        foreign = origin is not None and _place(origin) != host.lower()
        # A link to here may be followed; frames, objects, pictures and scripts are not for others.
        embedded = (
            headers.get("sec-fetch-site") in ("cross-site", "same-site")
            and headers.get("sec-fetch-dest") != "document"
        )
        if foreign or embedded:
            return ApiError(
                403,
                f"a page of {origin or 'another site'} may not use this server from a browser",
                code="wrong_origin",
            )
        return None

    def _too_large(self, headers: Headers, method: str, path: str) -> ApiError | None:
        length = headers.get("content-length", "0")
        limit = self._limit(method, path)
        if length.isascii() and length.isdigit() and int(length) > limit:
            return ApiError(413, _too_large(limit), code="too_large")
        return None

    def _limit(self, method: str, path: str) -> int:
        is_upload = (method, path) == _UPLOAD
        return self._limits.upload_bytes if is_upload else self._limits.body_bytes

    def _counted(self, scope: Scope, receive: Receive) -> Receive:
        """`receive`, up to the limit: a body in chunks does not say how long it is."""
        limit = self._limit(scope["method"], route_path(scope))
        taken = 0

        async def counted() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > limit:
                raise HTTPException(413, _too_large(limit))
            return message

        return counted


def route_path(scope: Scope) -> str:
    """The path of a request below the root path that a proxy shows the server under."""
    path: str = scope["path"]
    root: str = scope.get("root_path", "").rstrip("/")
    return path[len(root) :] or "/" if root and path.startswith(f"{root}/") else path


def _ambiguous(headers: Headers) -> ApiError | None:
    """Of two lengths a proxy may believe the other, and take a body for a second request."""
    if "content-length" in headers and "transfer-encoding" in headers:
        return ApiError(400, "a body has either a Content-Length or a Transfer-Encoding")
    return None


def _too_large(limit: int) -> str:
    return f"the body is larger than the {limit / 2**20:g} MiB that are allowed"


def _hostname(host: str) -> str:
    """A Host header without its port; of `[::1]:80` what is in the brackets."""
    try:
        return (urlsplit(f"//{host}").hostname or "").rstrip(".")
    except ValueError:
        return ""


def _place(origin: str) -> str:
    """An Origin without its scheme; nothing for `null` and for what is none."""
    try:
        return urlsplit(origin).netloc.lower() or "null"
    except ValueError:
        return "null"


def _cookies(headers: Headers) -> list[str]:
    """Every cookie of that name: other servers of this machine may have set theirs as well.

    Read as browsers write them; one that is odd hides none of the others.
    """
    pairs = [part.partition("=") for line in headers.getlist("cookie") for part in line.split(";")]
    return [value.strip() for name, _, value in pairs if name.strip() == COOKIE]
