"""docs/security.md: each promise names a test that exists; its proxies let everything through."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from conftest import REPOSITORY
from fakes import FakeEmbedder, FakeEndpoint
from serve_parts import KEY, Served, served
from test_ask import add_film
from waiting import LIMIT_SECONDS, until

from vidqa.children import environment
from vidqa.library import Library
from vidqa.server.keys import COOKIE, Keys

DOCUMENT = (REPOSITORY / "docs" / "security.md").read_text(encoding="utf-8")
PROMISES = DOCUMENT.partition("## What is promised")[2].partition("\n## ")[0]
BULLETS = re.findall(r"^- .*$", PROMISES, re.MULTILINE)
BEARER = {"Authorization": f"Bearer {KEY}"}


def known_tests() -> set[str]:
    text = "\n".join(one.read_text("utf-8") for one in (REPOSITORY / "tests").glob("test_*.py"))
    return set(re.findall(r"^def (test_\w+)", text, re.MULTILINE))


@pytest.mark.parametrize("promise", BULLETS, ids=lambda one: one[2:40])
def test_a_promise_names_the_test_that_shows_it(promise: str) -> None:
    named = re.findall(r"`(test_\w+)`$", promise)
    assert len(named) == 1
    assert named[0] in known_tests()


def test_there_are_promises() -> None:
    assert len(BULLETS) > 25


def test_a_child_is_not_told_the_keys_of_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("VIDQA_SERVE_KEYS", "VIDQA_SERVE", "VIDQA_API_KEY"):
        monkeypatch.setenv(name, KEY)
    assert KEY not in environment().values()
    assert environment()["PATH"] == os.environ["PATH"]


# ---------------------------------------------------------------- the proxies of the document


def example(language: str) -> str:
    found = re.search(rf"^```{language}\n(.*?)^```", DOCUMENT, re.MULTILINE | re.DOTALL)
    assert found
    return found[1]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port: int = listening.getsockname()[1]
    return port


def nginx(folder: Path, port: int, server: Served) -> list[str]:
    """Its command: the document's example with other ports and a certificate of its own."""
    key, certificate = folder / "films.example.key", folder / "films.example.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
         "-nodes", "-keyout", key, "-out", certificate, "-days", "2", "-subj", "/CN=films.example"],
        check=True, capture_output=True,
    )  # fmt: skip
    text = example("nginx").replace("listen 443", f"listen 127.0.0.1:{port}")
    text = text.replace("/etc/ssl", str(folder))
    text = text.replace("http://127.0.0.1:8080/", server.url)
    paths = "".join(
        f"{name}_temp_path {folder}/{name};\n"
        for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (folder / "nginx.conf").write_text(
        f"daemon off; pid {folder}/pid; error_log {folder}/log;\nevents {{}}\n"
        f"http {{ access_log off;\n{paths}{text}}}\n"
    )
    return ["nginx", "-c", str(folder / "nginx.conf"), "-e", str(folder / "log")]


def caddy(folder: Path, port: int, server: Served) -> list[str]:
    """As above, with a certificate of Caddy's own authority."""
    text = example("caddyfile").replace(
        "films.example {", f"https://films.example:{port} {{\ntls internal", 1
    )
    text = text.replace("127.0.0.1:8080", server.url.split("/")[2])
    # No port beside: neither for its administration nor for the way from HTTP to HTTPS.
    head = "admin off\nauto_https disable_redirects\nskip_install_trust\n"
    head += f"storage file_system {folder}/store\n"
    (folder / "Caddyfile").write_text(f"{{\n{head}}}\n{text}")
    return ["caddy", "run", "--config", str(folder / "Caddyfile"), "--adapter", "caddyfile"]


@pytest.fixture(scope="module", params=[nginx, caddy], ids=["nginx", "caddy"])
def proxied(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[httpx.Client, str]]:
    """A client of the proxy, and the address as a browser knows it."""
    program = request.param.__name__
    if shutil.which(program) is None or shutil.which("openssl") is None:
        pytest.skip(f"no {program} here")
    folder = tmp_path_factory.mktemp(program)
    made = Library.open(folder / "library", FakeEmbedder.spec, create=True)
    add_film(made, "a.mp4", ["red", "green"])
    port = free_port()
    with (
        FakeEndpoint(pieces=["It ", "is ", "red [1]."]) as endpoint,
        served(
            Library.open(made.folder, follow=True),
            endpoint.base_url,
            keys=Keys({"alice": KEY}),
            root_path="/vidqa",
            server_names="films.example",
            max_upload_gib=1.0,
        ) as server,
        running(request.param(folder, port, server), folder, port),
    ):
        root = f"https://films.example:{port}/vidqa/"
        with httpx.Client(
            base_url=f"https://127.0.0.1:{port}/vidqa/",
            verify=False,
            headers={"Host": f"films.example:{port}"},
            transport=Named(verify=False),
            timeout=LIMIT_SECONDS,
        ) as client:
            until(lambda: answers(client))  # a certificate has to be made first
            yield client, root


def answers(client: httpx.Client) -> bool:
    try:
        return client.get("healthz").status_code == 200
    except httpx.ConnectError:
        return False


class Named(httpx.HTTPTransport):
    """Speaks TLS with the name, though it connects to the address."""

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        request.extensions["sni_hostname"] = "films.example"
        return super().handle_request(request)


@contextmanager
def running(command: list[str], folder: Path, port: int) -> Iterator[None]:
    def listens() -> bool:
        assert process.poll() is None, process.communicate()
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    environment = {**os.environ, "HOME": str(folder)}
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment
    )
    try:
        until(listens)
        yield
    finally:
        process.terminate()
        process.wait(LIMIT_SECONDS)


Proxied = tuple[httpx.Client, str]


def test_a_proxy_shows_the_page_below_its_path(proxied: Proxied) -> None:
    client, _ = proxied
    assert "<!doctype html>" in client.get("").text.lower()
    assert client.get("web/app.js").status_code == 200
    assert client.get("../vidqa").headers["location"].endswith("/vidqa/")


def test_through_a_proxy_links_lead_back_to_it(proxied: Proxied) -> None:
    client, root = proxied
    found = client.post("v1/search", json={"query": "red"}, headers=BEARER).json()
    assert found["moments"][0]["url"].startswith(f"{root}?video=")


def test_through_a_proxy_our_page_may_ask_and_others_may_not(proxied: Proxied) -> None:
    client, root = proxied
    ours = root.removesuffix("/vidqa/")
    for origin, status in ((ours, 200), ("https://evil.example", 403)):
        headers = BEARER | {"Origin": origin}
        response = client.post("v1/search", json={"query": "red"}, headers=headers)
        assert response.status_code == status


def test_through_a_proxy_the_cookie_is_for_tls_and_opens_media(proxied: Proxied) -> None:
    client, _ = proxied
    response = client.post("v1/session", headers=BEARER)
    cookie = response.headers["set-cookie"]
    assert {"Path=/vidqa", "Secure"} <= set(cookie.split("; "))
    moment = client.post("v1/search", json={"query": "red"}, headers=BEARER).json()["moments"][0]
    headers = {"Cookie": f"{COOKIE}={response.cookies[COOKIE]}"}
    client.cookies.clear()
    picture = client.get(moment["thumbnail_urls"][0], headers=headers)
    assert picture.headers["content-type"] == "image/jpeg"


def test_through_a_proxy_an_upload_of_any_size_comes_in(proxied: Proxied) -> None:
    client, _ = proxied
    pieces = (bytes(2**18) for _ in range(64))
    response = client.post("v1/videos?name=a.mp4", content=pieces, headers=BEARER)
    assert response.status_code == 202, response.text


def test_through_a_proxy_an_answer_is_streamed(proxied: Proxied) -> None:
    client, _ = proxied
    body = {"messages": [{"role": "user", "content": "red"}], "stream": True}
    response = client.post("v1/chat/completions", json=body, headers=BEARER)
    assert response.text.rstrip().endswith("[DONE]")


def test_a_proxys_docs_find_their_description(proxied: Proxied) -> None:
    client, root = proxied
    page = client.get("docs").text
    assert f'src="{root}swagger/swagger-ui-bundle.js"' in page
    assert client.get("swagger/swagger-ui-bundle.js").status_code == 200
    assert client.get("openapi.json").status_code == 200
