"""The page on which a person looks through rows: a small server for one browser on this machine.

    with ReviewServer(review, library) as server:
        print(server.url)
        server.serve()          until it is interrupted

It listens on loopback alone, on addresses that begin with a random token. Python's own HTTP server
is enough for one reader, and needs no extra beside those that training needs. As in
`vidqa.server.gate`, a name that was pointed at this address is not answered (Host), and a page
elsewhere may not use it (Origin, Sec-Fetch-Site). Nothing of a row is put into HTML here: rows go
out as JSON, and the page's script sets them as text.
"""

from __future__ import annotations

import base64
import hmac
import json
import secrets
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from pathlib import PurePath
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlsplit

from finetune.review import Review, is_editable
from finetune.row_pictures import row_pictures
from finetune.rows import Row
from finetune.rows_file import said_by
from vidqa.errors import UsageError, VidqaError
from vidqa.prompt import clock, time_range

if TYPE_CHECKING:
    from vidqa.library import Library

MAX_BODY_BYTES = 256 * 1024
IDLE_SECONDS = 60.0  # of a connection that a browser keeps open

_PAGES = {
    "": ("review.html", "text/html; charset=utf-8"),
    "review.js": ("review.js", "text/javascript; charset=utf-8"),
    "review.css": ("review.css", "text/css; charset=utf-8"),
}
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class ReviewServer:
    """Listens from when it is made; `port` 0 is any free one. Raises UsageError for one in use."""

    def __init__(self, review: Review, library: Library | None = None, port: int = 0) -> None:
        self.review = review
        self.library = library
        self.token = secrets.token_urlsafe(24)

        class Handler(_Handler):
            told = self

        try:
            self._http = _Server(("127.0.0.1", port), Handler)
        except OSError as error:
            raise UsageError(f"--port {port}: {error.strerror}; 0 takes any free one") from error
        self.port = self._http.server_address[1]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/{self.token}/"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._http.server_close()

    def serve(self) -> None:
        """Answers until `stop`, or until it is interrupted."""
        self._http.serve_forever(poll_interval=0.1)

    def stop(self) -> None:
        """From another thread."""
        self._http.shutdown()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that leaves in the middle is no news."""


class _Refused(Exception):
    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(message)
        self.status = status


class _Handler(BaseHTTPRequestHandler):
    told: ReviewServer
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "vidqa", ""
    timeout = IDLE_SECONDS

    def do_GET(self) -> None:
        self._answer(self._got)

    def do_POST(self) -> None:
        self._answer(self._posted)

    def _answer(self, work: Callable[[str], tuple[str, bytes]]) -> None:
        status = HTTPStatus.OK
        try:
            self._check_stranger()
            kind, body = work(self._place())
        except _Refused as error:
            status = error.status
            kind, body = _json({"error": str(error)})
        except UsageError as error:
            status = HTTPStatus.BAD_REQUEST
            kind, body = _json({"error": str(error)})
        self.send_response(status)
        if status != HTTPStatus.OK:
            self.close_connection = True  # a body that was not read must not be the next request
            self.send_header("Connection", "close")
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def _check_stranger(self) -> None:
        hosts = {f"{name}:{self.told.port}" for name in ("127.0.0.1", "localhost")}
        host = self.headers.get("Host", "").lower()
        if host not in hosts:
            raise _Refused(HTTPStatus.FORBIDDEN, "this server has no such name")
        origin = self.headers.get("Origin")
        elsewhere = self.headers.get("Sec-Fetch-Site") in ("cross-site", "same-site")
        if (origin is not None and origin.lower() != f"http://{host}") or elsewhere:
            raise _Refused(HTTPStatus.FORBIDDEN, "a page elsewhere may not use this server")

    def _place(self) -> str:
        """The path below the token."""
        token, slash, place = urlsplit(self.path).path.removeprefix("/").partition("/")
        known = hmac.compare_digest(token.encode("utf-8", "replace"), self.told.token.encode())
        if not known or not slash:
            raise _Refused(HTTPStatus.NOT_FOUND, "open the address that vidqa printed")
        return place

    def _got(self, place: str) -> tuple[str, bytes]:
        if place in _PAGES:
            name, kind = _PAGES[place]
            return kind, files("finetune").joinpath("pages", name).read_bytes()
        if place == "rows":
            review = self.told.review
            return _json({"rows": [_summary(review, n) for n in range(len(review.rows))]})
        return _json(self._pictures(self._number(place)))

    def _posted(self, place: str) -> tuple[str, bytes]:
        review = self.told.review
        body = self._body()
        if place == "rest":
            review.keep_the_rest()
            return self._got("rows")
        n = self._number(place)
        review.decide(n, body.get("state"), body.get("question"), body.get("answer"))
        return _json(_summary(review, n))

    def _number(self, place: str) -> int:
        kind, _, digits = place.partition("/")
        if kind != "rows" or not (digits.isascii() and digits.isdigit() and len(digits) < 10):
            raise _Refused(HTTPStatus.NOT_FOUND, "there is no such page")
        n = int(digits)
        if n >= len(self.told.review.rows):
            raise _Refused(HTTPStatus.NOT_FOUND, f"there is no row {n}")
        return n

    def _body(self) -> dict[str, Any]:
        """A browser asks before it sends JSON elsewhere, so no form of another page comes here."""
        kind = self.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        length = self.headers.get("Content-Length", "")
        chunked = "Transfer-Encoding" in self.headers
        if kind != "application/json" or chunked or not (length.isascii() and length.isdigit()):
            raise _Refused(HTTPStatus.BAD_REQUEST, "send application/json with its length")
        if len(length) > 9 or int(length) > MAX_BODY_BYTES:
            raise _Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "the body is too large")
        try:
            body = json.loads(self.rfile.read(int(length)))
        except (ValueError, RecursionError):
            body = None
        if not isinstance(body, dict):
            raise _Refused(HTTPStatus.BAD_REQUEST, "the body is no JSON object")
        return body

    def _pictures(self, n: int) -> dict[str, Any]:
        try:
            found = row_pictures(self.told.review.rows[n], self.told.library)
        except VidqaError as error:
            return {"pictures": [], "error": str(error)}
        encoded = [
            {
                "at": f"{clock(one.seconds)}.{int(one.seconds * 10) % 10}",
                "source": "data:image/jpeg;base64," + base64.b64encode(one.jpeg).decode("ascii"),
            }
            for one in found
        ]
        return {"pictures": encoded, "error": None}

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing: the address holds the token."""


def _json(value: object) -> tuple[str, bytes]:
    return "application/json", json.dumps(value).encode()


def _summary(review: Review, n: int) -> dict[str, Any]:
    row = review.row(n)
    decision = review.decision(n)
    return {
        "n": n,
        "state": None if decision is None else decision.state,
        "question": said_by(row, "user"),
        "answer": said_by(row, "assistant"),
        "editable": is_editable(row),
        "where": _where(row),
        "facts": _facts(row),
        "texts": [span.text for media in row.media for span in media.texts],
    }


def _where(row: Row) -> str:
    places = []
    for media in row.media:
        name = PurePath(media.paths[0]).name if media.paths else ""
        start, end = media.start_seconds, media.end_seconds
        if start is not None and end is not None:
            name += f" {time_range(start, end)}"
        places.append(name)
    return ", ".join(places)


def _facts(row: Row) -> list[str]:
    facts = [str(row.extra[name]) for name in ("kind", "teacher") if row.extra.get(name)]
    if "agreement" in row.extra:
        facts.append(f"agreement {row.extra['agreement']}")
    return [*facts, str(row.origin)]
