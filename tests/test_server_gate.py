"""Who may ask the server: keys, hosts, origins, sizes and rates, on every route that it has."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fakes import FakeEmbedder, FakeEndpoint
from fastapi import FastAPI
from fastapi.routing import APIRoute
from serve_parts import KEY, Served, served
from starlette.routing import Mount, Route
from test_ask import add_film
from waiting import LIMIT_SECONDS

from vidqa.errors import LibraryBusy, LibraryError, VidqaError
from vidqa.library import Library
from vidqa.server.app import is_loopback, names_of
from vidqa.server.keys import COOKIE, Keys, Rates

KEYS = Keys({"alice": KEY})
BEARER = {"Authorization": f"Bearer {KEY}"}
OPEN = {
    "/", "/healthz", "/readyz", "/docs", "/openapi.json", "/web",
    "/swagger/swagger-ui-bundle.js", "/swagger/swagger-ui.css", "/swagger/favicon-32x32.png",
}  # fmt: skip
MEDIA = {
    "/v1/videos/{video_id}/stream", "/v1/videos/{video_id}/subtitles.vtt",
    "/v1/frames/{video_id}/{seconds}.jpg", "/v1/clips/{video_id}",
}  # fmt: skip


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Library:
    folder = tmp_path_factory.mktemp("gate") / "library"
    made = Library.open(folder, FakeEmbedder.spec, create=True)
    add_film(made, "a.mp4", ["red", "green"])
    return Library.open(folder, follow=True)


@pytest.fixture(scope="module")
def endpoint() -> Iterator[FakeEndpoint]:
    with FakeEndpoint() as running:
        yield running


@pytest.fixture(scope="module")
def server(library: Library, endpoint: FakeEndpoint) -> Iterator[Served]:
    """Without keys, as on one's own machine."""
    with served(library, endpoint.base_url) as running:
        yield running


@pytest.fixture(scope="module")
def locked(library: Library, endpoint: FakeEndpoint) -> Iterator[Served]:
    """With a key."""
    with served(library, endpoint.base_url, keys=KEYS) as running:
        yield running


def error_of(response: httpx.Response) -> dict[str, Any]:
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


def places(app: FastAPI) -> list[tuple[str, str]]:
    """Every method and path template that the application answers, from its own list."""
    found = []
    for route in flat(app.routes):
        if isinstance(route, Mount):
            found.append(("GET", route.path))
        else:
            found += [(method, route.path) for method in route.methods or ()]
    return sorted(set(found))


def flat(routes: Any) -> Iterator[Any]:
    """Routes below included routers as well."""
    for route in routes:
        if isinstance(route, Mount | Route | APIRoute):
            yield route
        else:
            yield from flat(route.original_router.routes)


def filled(template: str) -> str:
    values = {"video_id": "0" * 16, "seconds": "1.0", "job_id": "job_" + "0" * 16, "name": "vidqa"}
    path = re.sub(r"\{(\w+)(:\w+)?\}", lambda found: values[found[1]], template)
    return "/web/index.html" if path == "/web" else path


# ---------------------------------------------------------------- keys


def test_the_list_of_routes_is_whole(locked: Served) -> None:
    listed = {path for _, path in places(locked.app)}
    documented = set(locked.http.get("openapi.json").json()["paths"])
    assert {re.sub(r":\w+}", "}", path) for path in listed} >= documented
    assert listed >= OPEN | MEDIA | {"/metrics", "/v1/chat/completions", "/v1/videos", "/v1/info"}


def test_without_a_key_only_what_is_open_is_answered(locked: Served) -> None:
    answered = set()
    for method, template in places(locked.app):
        response = locked.http.request(method, filled(template))
        if response.status_code != 401:
            answered.add(template)
        elif method != "HEAD":
            assert error_of(response)["code"] == "invalid_api_key"
    assert answered == OPEN


def test_a_wrong_key_opens_nothing(locked: Served) -> None:
    headers = {"Authorization": "Bearer " + "x" * 20}
    assert locked.http.get("v1/models", headers=headers).status_code == 401


def test_a_key_opens_everything(locked: Served) -> None:
    for method, template in places(locked.app):
        response = locked.http.request(method, filled(template), headers=BEARER)
        assert response.status_code not in (401, 403, 500), (method, template)


@pytest.mark.parametrize(
    "path",
    [
        "/v1/models/../../docs", "/web/../v1/models", "/web/%2e%2e/v1/models", "/web//../v1/models",
        "//v1/models", "/v1//models", "/V1/models", "/docs/../v1/models", "/v1/models%00",
        "/web/..%2fv1/models", "/v1/models;/web/x", "/web/%0a/../../v1/models",
        "/swagger/../metrics",
        "/docs/v1/models", "/v1%2fmodels", "/healthz/../metrics", "/v1/frames/../models",
    ],
)  # fmt: skip
def test_no_spelling_of_a_path_gets_around_the_key(locked: Served, path: str) -> None:
    status, body = raw(
        locked, f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    )
    assert status in (400, 401, 404), body
    assert b"owned_by" not in body
    assert b"vidqa_requests" not in body


def raw(server: Served, request: str | bytes) -> tuple[int, bytes]:
    """Status and everything that is answered to these very bytes."""
    port = httpx.URL(server.url).port
    assert port
    with socket.create_connection(("127.0.0.1", port), timeout=LIMIT_SECONDS) as connection:
        connection.sendall(request.encode() if isinstance(request, str) else request)
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
    return int(answer.split(b" ", 2)[1]), answer


def test_a_websocket_is_not_accepted(locked: Served) -> None:
    head = "GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    more = "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n"
    port = httpx.URL(locked.url).port
    with socket.create_connection(("127.0.0.1", port or 0), timeout=LIMIT_SECONDS) as connection:
        connection.sendall(f"{head}{more}\r\n".encode())
        assert b" 101 " not in connection.recv(65536).split(b"\r\n")[0]


# ---------------------------------------------------------------- the cookie


@pytest.fixture(scope="module")
def cookie(locked: Served) -> dict[str, str]:
    response = httpx.post(f"{locked.url}v1/session", headers=BEARER, timeout=LIMIT_SECONDS)
    return {"Cookie": f"{COOKIE}={response.cookies[COOKIE]}"}


def test_a_key_is_traded_for_a_cookie_that_scripts_and_other_sites_do_not_get(
    locked: Served,
) -> None:
    response = httpx.post(f"{locked.url}v1/session", headers=BEARER, timeout=LIMIT_SECONDS)
    made = response.headers["set-cookie"]
    assert {"HttpOnly", "SameSite=strict", "Path=/"} <= set(made.split("; "))
    assert KEY not in made
    assert "no-store" in response.headers["cache-control"]


def test_without_keys_the_session_is_answered_without_a_cookie(server: Served) -> None:
    response = httpx.post(f"{server.url}v1/session", timeout=LIMIT_SECONDS)
    assert response.status_code == 200
    assert "set-cookie" not in response.headers


def test_the_cookie_opens_media_alone(locked: Served, cookie: dict[str, str]) -> None:
    opened = set()
    for method, template in places(locked.app):
        if template not in OPEN:
            response = httpx.request(method, locked.url + filled(template)[1:], headers=cookie)
            if response.status_code != 401:
                opened.add((method, template))
    assert {template for _, template in opened} == MEDIA
    assert {method for method, _ in opened} <= {"GET", "HEAD"}


def test_a_cookie_is_found_among_those_of_other_servers(
    locked: Served, cookie: dict[str, str]
) -> None:
    path = f"{locked.url}v1/frames/{'0' * 16}/1.jpg"
    odd = f'a b=c; state={{"x": [1]}}; {COOKIE}=forged.1.x; {cookie["Cookie"]}; ;=;z'
    assert httpx.get(path, headers={"Cookie": odd}, timeout=LIMIT_SECONDS).status_code == 404


@pytest.mark.parametrize("value", ["", "alice", "alice.1.x", "alice." + "9" * 5000 + ".x", "\xff"])
def test_a_forged_cookie_opens_nothing(locked: Served, value: str) -> None:
    path = f"{locked.url}v1/frames/{'0' * 16}/1.jpg"
    headers = {"Cookie": f"{COOKIE}={value}".encode("latin-1")}
    assert httpx.get(path, headers=headers, timeout=LIMIT_SECONDS).status_code == 401


# ---------------------------------------------------------------- browsers


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8080", "127.0.0.1.nip.io", "", "[", "localhost@evil"]
)
def test_a_name_that_leads_here_is_not_answered(server: Served, host: str) -> None:
    for path in ("", "healthz", "v1/models", "web/index.html"):
        response = server.http.get(path, headers={"Host": host})
        assert response.status_code == 403, path
        assert error_of(response)["code"] == "wrong_host"


@pytest.mark.parametrize("host", ["localhost:1234", "LOCALHOST", "127.0.0.1", "[::1]:80"])
def test_the_names_of_this_machine_are_answered(server: Served, host: str) -> None:
    assert server.http.get("v1/models", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.example", "null", "http://localhost:1", "http://127.0.0.1", "http://[", "",
        "file://", "chrome-extension://abc",
    ],
)  # fmt: skip
def test_a_page_of_elsewhere_may_not_ask(server: Served, origin: str) -> None:
    headers = {"Origin": origin}
    for method, path in [("POST", "v1/search"), ("GET", "v1/models"), ("POST", "v1/session")]:
        response = server.http.request(method, path, headers=headers, json={"query": "red"})
        assert response.status_code == 403
        assert error_of(response)["code"] == "wrong_origin"
        assert "access-control-allow-origin" not in response.headers


def test_our_own_page_may_ask(server: Served) -> None:
    headers = {"Origin": server.url.rstrip("/"), "Sec-Fetch-Site": "same-origin"}
    response = server.http.post("v1/search", headers=headers, json={"query": "red"})
    assert response.status_code == 200


def test_who_is_no_browser_may_ask(server: Served) -> None:
    assert server.http.post("v1/search", json={"query": "red"}).status_code == 200


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
@pytest.mark.parametrize(
    ("mode", "dest"),
    [("no-cors", "image"), ("no-cors", "video"), ("navigate", "iframe"), ("navigate", "embed"),
     ("no-cors", "script"), ("cors", "empty")],
)  # fmt: skip
def test_nothing_is_embedded_by_pages_of_elsewhere(
    server: Served, site: str, mode: str, dest: str
) -> None:
    headers = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": mode, "Sec-Fetch-Dest": dest}
    response = server.http.get("v1/models", headers=headers)
    assert (response.status_code, error_of(response)["code"]) == (403, "wrong_origin")


def test_a_link_of_elsewhere_may_lead_here(server: Served) -> None:
    headers = {
        "Sec-Fetch-Site": "cross-site",
        "Sec-Fetch-Mode": "navigate",
        "Sec-Fetch-Dest": "document",
    }
    assert server.http.get("?video=x&t=1", headers=headers).status_code == 200


def test_a_request_before_a_browsers_own_is_refused(server: Served) -> None:
    headers = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    response = server.http.options("v1/search", headers=headers)
    assert response.status_code == 403
    assert "access-control-allow-origin" not in response.headers


@pytest.mark.parametrize(
    ("host", "names", "expected"),
    [
        ("127.0.0.1", None, {"localhost", "127.0.0.1", "::1"}),
        ("127.0.0.7", None, {"localhost", "127.0.0.1", "::1", "127.0.0.7"}),
        ("0.0.0.0", None, set()),
        ("0.0.0.0", "A.x, b.x", {"localhost", "127.0.0.1", "::1", "a.x", "b.x"}),
    ],
)  # fmt: skip
def test_the_names_that_are_answered_follow_from_the_address(
    host: str, names: str | None, expected: set[str]
) -> None:
    assert names_of(host, names) == expected


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True), ("127.1.2.3", True), ("::1", True), ("localhost", True),
        ("0.0.0.0", False), ("::", False), ("127.0.0.1.nip.io", False), ("127.example", False),
        ("192.168.1.1", False),
    ],
)  # fmt: skip
def test_only_an_address_of_this_machine_needs_no_key(host: str, expected: bool) -> None:
    assert is_loopback(host) == expected


# ---------------------------------------------------------------- sizes and rates


@pytest.fixture(scope="module")
def small(library: Library, endpoint: FakeEndpoint) -> Iterator[Served]:
    """Bodies of a MiB, uploads of two."""
    limits = {"max_body_mib": 1, "max_upload_gib": 2 / 1024, "rate_limit": 0}
    with served(library, endpoint.base_url, **limits) as running:
        yield running


TOO_LARGE = b'{"query": "' + b"x" * 2**20 + b'"}'


def test_a_body_that_says_it_is_too_large_is_refused_before_it_is_sent(small: Served) -> None:
    head = "POST /v1/search HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9999999999\r\n"
    status, answer = raw(small, f"{head}Connection: close\r\n\r\n")
    assert status == 413
    assert b"larger than the 1 MiB" in answer


@pytest.mark.parametrize("path", ["v1/search", "v1/chat/completions", "v1/embeddings"])
def test_a_body_that_does_not_say_its_size_is_cut_off(small: Served, path: str) -> None:
    pieces = (TOO_LARGE[at : at + 65536] for at in range(0, len(TOO_LARGE), 65536))
    response = small.http.post(path, content=pieces)
    assert response.status_code == 413
    assert "1 MiB" in error_of(response)["message"]


def test_an_upload_has_a_limit_of_its_own(small: Served, library: Library) -> None:
    said = small.http.post("v1/videos?name=a.mp4", content=bytes(2 * 2**20 + 1))
    pieces = (bytes(65536) for _ in range(33))
    unsaid = small.http.post("v1/videos?name=a.mp4", content=pieces)
    assert (said.status_code, unsaid.status_code) == (413, 413)
    assert "2 MiB" in error_of(unsaid)["message"]
    assert list((library.folder / "uploads").glob("*")) == []


@pytest.mark.parametrize(
    "header",
    ["Content-Length: -1", "Content-Length: 1e3", "Content-Length: " + "9" * 5000,
     "Content-Length: 5\r\nTransfer-Encoding: chunked", "Content-Length: 5\r\nContent-Length: 6"],
)  # fmt: skip
def test_a_length_that_is_none_is_refused(small: Served, header: str) -> None:
    head = f"POST /v1/search HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{header}\r\n"
    status, _ = raw(small, f"{head}\r\n0\r\n\r\n")
    assert status == 400


def test_a_head_without_end_is_cut_off(small: Served) -> None:
    port = httpx.URL(small.url).port or 0
    with socket.create_connection(("127.0.0.1", port), timeout=LIMIT_SECONDS) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n")
        lines = b"X: " + b"a" * 8000 + b"\r\n"
        with pytest.raises(ConnectionError):
            connection.sendall(lines * 5000)  # 40 MB


def test_who_asks_too_often_is_told_when_to_come_again(
    library: Library, endpoint: FakeEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    admit = Rates.admit
    monkeypatch.setattr(Rates, "admit", lambda self, name: admit(self, name, now=0.0))
    with served(library, endpoint.base_url, keys=KEYS, rate_limit=2) as server:
        search = {"url": "v1/search", "json": {"query": "red"}, "headers": BEARER}
        statuses = [server.http.post(**search).status_code for _ in range(2)]  # type: ignore[arg-type]
        refused = server.http.post(**search)  # type: ignore[arg-type]
        looked = server.http.get("v1/videos", headers=BEARER)
    assert statuses == [200, 200]
    assert refused.status_code == 429
    assert error_of(refused)["code"] == "rate_limit_exceeded"
    assert refused.headers["retry-after"] == "30"
    assert looked.status_code == 200


def test_guessing_keys_uses_up_nobodys_share(library: Library, endpoint: FakeEndpoint) -> None:
    with served(library, endpoint.base_url, keys=KEYS, rate_limit=1) as server:
        for _ in range(5):
            server.http.post("v1/search", json={"query": "red"})
        response = server.http.post("v1/search", json={"query": "red"}, headers=BEARER)
    assert response.status_code == 200


# ---------------------------------------------------------------- headers


def protected(response: httpx.Response) -> bool:
    headers = response.headers
    return (
        "default-src 'none'" in headers["content-security-policy"]
        and "frame-ancestors 'none'" in headers["content-security-policy"]
        and headers["x-content-type-options"] == "nosniff"
        and headers["referrer-policy"] == "same-origin"
        and headers["cross-origin-resource-policy"] == "same-origin"
        and headers["cross-origin-opener-policy"] == "same-origin"
    )


def test_every_answer_tells_browsers_what_it_must_not_be_used_for(server: Served) -> None:
    for method, template in places(server.app):
        assert protected(server.http.request(method, filled(template))), template


@pytest.mark.parametrize(
    "response",
    [("GET", "nothing", {}), ("PUT", "healthz", {}), ("GET", "", {"Host": "evil.example"}),
     ("POST", "v1/search", {"Origin": "null"})],
)  # fmt: skip
def test_every_error_does_as_well(
    server: Served, response: tuple[str, str, dict[str, str]]
) -> None:
    method, path, headers = response
    assert protected(server.http.request(method, path, headers=headers))


def test_no_page_but_the_docs_runs_scripts_of_its_own(server: Served) -> None:
    policies = {
        path: server.http.get(path).headers["content-security-policy"]
        for path in ("", "docs", "docs/", "v1/models", "web/index.html")
    }
    assert [path for path, one in policies.items() if "unsafe-inline" in one] == ["docs"]


def test_nothing_says_what_program_serves(server: Served) -> None:
    assert "server" not in server.http.get("healthz").headers or not re.search(
        r"\d", server.http.get("healthz").headers["server"]
    )


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
def test_a_route_that_is_not_there_is_told_in_openais_shape(server: Served, method: str) -> None:
    response = server.http.request(method, "v1/assistants")
    assert response.status_code == 404
    assert error_of(response)["message"] == "/v1/assistants: no such route; /docs lists them"


def test_a_method_that_is_not_answered_is_told_with_those_that_are(server: Served) -> None:
    response = server.http.put("v1/models")
    assert response.status_code == 405
    assert "PUT is not answered at /v1/models" in error_of(response)["message"]
    assert response.headers["allow"] == "GET"


def test_options_are_told_to_who_may_ask(server: Served) -> None:
    response = server.http.options("v1/search")
    assert response.status_code == 405
    assert response.headers["allow"] == "POST"


@pytest.mark.parametrize("path", ["", "healthz", "readyz", "web/index.html"])
def test_a_head_is_answered_as_a_get_without_its_body(server: Served, path: str) -> None:
    head, whole = server.http.head(path), server.http.get(path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == str(len(whole.content))


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"query": "\\ud800"}'])
def test_a_body_that_is_no_request_is_told_in_openais_shape(server: Served, body: bytes) -> None:
    response = server.http.post(
        "v1/search", content=body, headers={"Content-Type": "application/json"}
    )
    assert response.status_code in (400, 422), response.text
    assert error_of(response)["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ('{"query": "red"}', "application/x-www-form-urlencoded"),  # as curl -d sends it
        ('{"query": "red"}', "text/plain"),
        ("[]", "application/json"),
        ("", "application/json"),
    ],
)
def test_a_body_that_is_not_sent_as_json_is_told_how(server: Served, body: str, kind: str) -> None:
    response = server.http.post("v1/search", content=body, headers={"Content-Type": kind})
    assert response.status_code == 422
    message = "the body is to be a JSON object, sent as Content-Type: application/json"
    assert error_of(response)["message"] == message


def test_a_long_address_is_not_repeated_whole(server: Served) -> None:
    response = server.http.get("v1/" + "a" * 5000)
    assert response.status_code == 404
    assert len(response.text) < 500


def test_a_library_that_is_gone_is_told_without_its_folder(
    library: Library,
    endpoint: FakeEndpoint,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def gone(*arguments: object) -> None:
        raise LibraryError("/home/me/secret/store.duckdb: is damaged")

    with served(library, endpoint.base_url) as server:
        monkeypatch.setattr("vidqa.server.videos.listing", gone)
        response = server.http.get("v1/videos")
    assert response.status_code == 500
    assert error_of(response)["code"] == "library_failed"
    assert "secret" not in response.text
    assert "/home/me/secret/store.duckdb" in caplog.text
    caplog.clear()


def test_an_error_of_ours_is_told_without_its_text(
    library: Library,
    endpoint: FakeEndpoint,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def broken(*arguments: object) -> None:
        raise RuntimeError("the password is xyzzy")

    monkeypatch.setattr("vidqa.server.openai.model_shape", broken)
    monkeypatch.setattr("vidqa.server.videos._job", broken)
    with served(library, endpoint.base_url) as server:
        server.http.get("v1/jobs/1%0AERROR%20made%20up")
        response = server.http.get("v1/models")
        figures = server.http.get("metrics").text
    assert response.status_code == 500
    assert error_of(response)["code"] == "internal_error"
    assert "xyzzy" not in response.text
    assert protected(response)
    assert "xyzzy" in caplog.text
    assert "1\nERROR made up" not in caplog.text
    assert 'vidqa_requests_total{route="/v1/models",status="500"} 1.0' in figures
    caplog.clear()


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        (LibraryBusy, "library: process 7 has held the library"),
        (LibraryError, "the library cannot be used; the server's log says why"),
    ],
)
def test_an_error_tells_no_path_of_this_machine(
    library: Library,
    endpoint: FakeEndpoint,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    kind: type[VidqaError],
    told: str,
) -> None:
    def broken(*arguments: object) -> None:
        raise kind("/home/alice/my films/library: process 7 has held the library")

    monkeypatch.setattr("vidqa.server.videos.listing", broken)
    with served(library, endpoint.base_url) as server:
        response = server.http.get("v1/videos")
    assert error_of(response)["message"] == told
    assert "/home/alice/my films/library: process 7" in caplog.text
    caplog.clear()


def test_who_may_not_ask_learns_of_the_engine_only_whether_it_is_ready(locked: Served) -> None:
    assert httpx.get(f"{locked.url}readyz", timeout=LIMIT_SECONDS).json() == {"status": "ready"}


def test_no_path_of_a_client_becomes_a_label_of_the_figures(server: Served) -> None:
    for n in range(5):
        server.http.get(f"v1/made-up-{n}")
        server.http.get(f"v1/videos/{n:016x}")
    figures = server.http.get("metrics").text
    assert "made-up" not in figures
    assert 'route="/v1/videos/{video_id}",status="404"' in figures


# ---------------------------------------------------------------- behind a proxy


@pytest.fixture(scope="module")
def below(library: Library, endpoint: FakeEndpoint) -> Iterator[Served]:
    """As behind a proxy that shows it under /vidqa and takes that off."""
    with served(library, endpoint.base_url, keys=KEYS, root_path="/vidqa") as running:
        yield running


AS_SEEN = {**BEARER, "Host": "films.localhost"}


def test_links_lead_to_where_the_proxy_shows_it(library: Library, endpoint: FakeEndpoint) -> None:
    with served(library, endpoint.base_url, root_path="/vidqa", server_names="a.example") as server:
        headers = {"Host": "a.example", "X-Forwarded-Proto": "https"}
        found = server.http.post("v1/search", json={"query": "red"}, headers=headers).json()
    moment = found["moments"][0]
    assert moment["url"].startswith("https://a.example/vidqa/?video=")
    assert moment["thumbnail_urls"][0].startswith("v1/frames/")


def test_the_key_is_wanted_below_a_root_path_as_well(below: Served) -> None:
    for method, template in places(below.app):
        refused = below.http.request(method, filled(template)).status_code == 401
        assert refused == (template not in OPEN), template


def test_the_cookie_is_for_the_root_path_alone_and_opens_media_there(below: Served) -> None:
    response = httpx.post(f"{below.url}v1/session", headers=BEARER, timeout=LIMIT_SECONDS)
    assert "Path=/vidqa" in response.headers["set-cookie"]
    headers = {"Cookie": f"{COOKIE}={response.cookies[COOKIE]}"}
    address = f"{below.url}v1/frames/{'0' * 16}/1.jpg"
    frame = httpx.get(address, headers=headers, timeout=LIMIT_SECONDS)
    assert frame.status_code == 404


def test_over_tls_the_cookie_is_for_tls_alone(locked: Served) -> None:
    headers = {**BEARER, "X-Forwarded-Proto": "https"}
    response = httpx.post(f"{locked.url}v1/session", headers=headers, timeout=LIMIT_SECONDS)
    assert "Secure" in response.headers["set-cookie"]


def test_the_description_says_where_the_routes_are(below: Served) -> None:
    assert below.http.get("openapi.json").json()["servers"] == [{"url": "/vidqa"}]
    assert "'/vidqa/openapi.json'" in below.http.get("docs").text


# ---------------------------------------------------------------- the docs, in a browser


@pytest.mark.skipif(not Path("/usr/bin/chromium").exists(), reason="no Chromium here")
def test_a_browser_shows_the_docs_and_loads_nothing_from_elsewhere(locked: Served) -> None:
    playwright = pytest.importorskip("playwright.sync_api")
    asked: list[str] = []
    complaints: list[str] = []
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        page = browser.new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda one: complaints.append(one.text) if one.type == "error" else None)
        page.goto(f"{locked.url}docs")
        page.get_by_text("/v1/chat/completions").first.wait_for(timeout=60_000)
        browser.close()
    elsewhere = [url for url in asked if not url.startswith((locked.url, "data:"))]
    assert elsewhere == []
    assert complaints == []


def test_the_description_is_whole_json(server: Served) -> None:
    described = server.http.get("openapi.json").json()
    assert json.dumps(described)
    assert described["info"]["title"] == "vidqa"


def test_the_description_of_the_routes_says_that_they_take_a_key(server: Served) -> None:
    described = server.http.get("openapi.json").json()
    (scheme,) = described["components"]["securitySchemes"].values()
    assert (scheme["type"], scheme["scheme"]) == ("http", "bearer")
    assert "401" in described["paths"]["/v1/chat/completions"]["post"]["responses"]
