"""Pictures from clients: what is read, what is refused, and that nothing inside is ever reached."""

from __future__ import annotations

import asyncio
import base64
import io
import ipaddress
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from fakes import FakeEmbedder
from PIL import Image
from waiting import LIMIT_SECONDS, times_dearer

from vidqa.errors import UsageError
from vidqa.server import pictures as module
from vidqa.server.pictures import Address, Pictures, is_public, resolve
from vidqa.types import EmbedderSpec, QuestionImage

PUBLIC, LOOPBACK = ipaddress.ip_address("93.184.215.14"), ipaddress.ip_address("127.0.0.1")


def encoded(form: str = "PNG", size: tuple[int, int] = (64, 48)) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, (0, 0, 255)).save(out, form)
    return out.getvalue()


def data_url(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64," + base64.b64encode(data).decode()


def read(url: str, pictures: Pictures | None = None) -> QuestionImage:
    made = pictures or Pictures(max_pixels=1_000_000, max_bytes=100_000)
    return asyncio.run(made.of(url, FakeEmbedder.spec))


def leading_to(*addresses: Address, hosts: tuple[str, ...] = ("films.example",)) -> Pictures:
    """Reads from one host, whose name leads to these addresses."""

    async def found(host: str, port: int) -> list[Address]:
        return list(addresses)

    return Pictures(max_pixels=10**6, max_bytes=10**5, hosts=frozenset(hosts), resolve=found)


# ---------------------------------------------------------------- data URLs


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "GIF"])
def test_a_picture_is_read_from_a_data_url(form: str) -> None:
    found = read(data_url(encoded(form)))
    assert found.pixels.shape == (8, 8, 3)
    assert found.pixels[4, 4, 2] > 240
    assert found.jpeg.startswith(b"\xff\xd8")


def test_what_a_data_url_calls_itself_does_not_count() -> None:
    assert read(data_url(encoded("PNG"), "text/html")).pixels.shape == (8, 8, 3)


def bomb() -> bytes:
    """A PNG whose header says 60,000 x 60,000."""
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99))


SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'


@pytest.mark.parametrize(
    ("url", "match"),
    [
        (data_url(bomb()), "pixels"),
        (data_url(encoded(size=(1001, 1000))), "at most 1,000,000 pixels"),
        (data_url(encoded(size=(2, 200))), "longer side"),
        (data_url(encoded("JPEG", (400, 400))[:700]), "truncated or damaged"),
        (data_url(SVG, "image/svg+xml"), "no JPEG, PNG, WebP or GIF"),
        (data_url(encoded("TIFF"), "image/tiff"), "no JPEG, PNG, WebP or GIF"),
        (data_url(encoded("BMP"), "image/bmp"), "no JPEG, PNG, WebP or GIF"),
        (data_url(b""), "no JPEG, PNG, WebP or GIF"),
        ("data:image/png;base64,%%%", "base64"),
        ("data:image/png;base64,äöü", "base64"),
        ("data:image/png;base64,AAA", "base64"),
        ("data:image/png," + "A" * 100, "is no data:image"),
        ("data:", "is no data:image"),
    ],
)
def test_what_is_no_picture_is_refused_with_the_reason(url: str, match: str) -> None:
    with pytest.raises(UsageError, match=match) as error:
        read(url)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400
    assert not str(error.value).startswith("://")


def test_megabytes_of_base64_that_are_no_picture_are_refused_for_less_than_decoding_them() -> None:
    url = data_url(b"\x89PNG\r\n\x1a\n" + bytes(30 * 2**20))

    def refuse() -> None:
        with pytest.raises(UsageError):
            read(url)

    assert times_dearer(refuse, lambda: base64.b64decode(url.partition(",")[2])) < 2


@pytest.mark.parametrize("leaves", [False, True], ids=["waits", "leaves"])
def test_no_more_pictures_are_read_at_once_than_memory_allows(
    monkeypatch: pytest.MonkeyPatch, leaves: bool
) -> None:
    now, most, turn = 0, 0, threading.Lock()
    original = module.question_image

    def watched(data: bytes, spec: EmbedderSpec, *, max_pixels: int) -> QuestionImage:
        nonlocal now, most
        with turn:
            now += 1
            most = max(most, now)
        time.sleep(0.02)
        with turn:
            now -= 1
        return original(data, spec, max_pixels=max_pixels)

    monkeypatch.setattr(module, "question_image", watched)
    pictures = Pictures(max_pixels=10**6, max_bytes=10**5)

    async def many() -> None:
        url = data_url(encoded())
        for _ in range(4):
            reading = [asyncio.create_task(pictures.of(url, FakeEmbedder.spec)) for _ in range(4)]
            _, waiting = await asyncio.wait(reading, timeout=0.005 if leaves else None)
            for one in waiting:
                one.cancel()

    asyncio.run(many())
    assert most == module.READ_AT_ONCE


# ---------------------------------------------------------------- addresses


@pytest.mark.parametrize(
    "url",
    [
        "https://example.com/a.png",
        "https://films.example.evil.example/a.png",
        "https://films.example@evil.example/a.png",
        "https://films.example:8443/a.png",
        "http://films.example:22/",
        "https://films.example./a.png",
        "http://127.0.0.1/a.png",
        "http://[::1]/a.png",
        "http://2130706433/a.png",
        "http://0x7f.1/a.png",
        "http://localhost/a.png",
        "http://169.254.169.254/latest/meta-data/",
        "file:///etc/passwd",
        "file://films.example/etc/passwd",
        "ftp://films.example/a.png",
        "gopher://films.example/",
        "//films.example/a.png",
        "films.example/a.png",
        "https://",
        "http://[::1",
        "https://films.example:99999/",
        "",
        "\0",
        "DATA:image/png;base64,AAAA",
        "https://" + "a" * 50_000 + ".example/",
    ],
)
def test_an_address_that_is_not_on_the_list_is_not_fetched(url: str) -> None:
    with pytest.raises(UsageError) as error:
        read(url, leading_to(PUBLIC))
    assert len(str(error.value)) < 400


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.8.8.8", "0.0.0.0", "10.1.2.3", "172.16.0.1", "192.168.1.1", "100.64.0.1",
        "169.254.169.254", "192.0.2.1", "198.18.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255",
        "::", "::1", "fe80::1", "fec0::1", "fc00::1", "fd12::1", "ff02::1", "2001:db8::1",
        "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "::127.0.0.1",
        "64:ff9b::7f00:1", "64:ff9b::a00:1", "2002:7f00:1::", "2002:a00:1::", "2001:0:53aa:64c::",
    ],
)  # fmt: skip
def test_a_name_that_leads_inside_is_not_fetched(address: str) -> None:
    inside = ipaddress.ip_address(address)
    assert not is_public(inside)
    for addresses in ([inside], [PUBLIC, inside], [inside, PUBLIC]):
        with pytest.raises(UsageError, match="which is not public: not fetched"):
            read("https://films.example/a.png", leading_to(*addresses))


@pytest.mark.parametrize("address", ["93.184.215.14", "2606:2800:21f:cb07::1", "::ffff:8.8.8.8"])
def test_what_is_somebody_elses_is_public(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


def test_a_name_that_leads_nowhere_is_not_fetched() -> None:
    with pytest.raises(UsageError, match="nowhere"):
        read("https://films.example/a.png", leading_to())


def test_the_systems_answer_is_looked_at() -> None:
    found = asyncio.run(resolve("localhost", 80))
    assert found
    assert all(one.is_loopback for one in found)


# ---------------------------------------------------------------- fetching


class Films(BaseHTTPRequestHandler):
    """Says a picture, a redirect, too much, too slowly or an error."""

    seen: list[dict[str, str]]

    def do_GET(self) -> None:
        self.seen.append({"path": self.path, **{k.lower(): v for k, v in self.headers.items()}})
        if self.path.startswith("/moved"):
            self.send_response(302)
            self.send_header("Location", "/a.png")
            self.end_headers()
        elif self.path == "/large":
            self.send_response(200)
            self.end_headers()
            self._drip(bytes(50_000), 0.0)
        elif self.path == "/slow":
            self.send_response(200)
            self.end_headers()
            self._drip(b"x", 0.05)
        else:
            body = encoded()
            self.send_response(200 if self.path.startswith("/a.png") else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    def _drip(self, piece: bytes, pause_seconds: float) -> None:
        """Without end."""
        try:
            while True:
                self.wfile.write(piece)
                self.wfile.flush()
                self.sent = True
                time.sleep(pause_seconds)
        except OSError:
            return

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


@pytest.fixture
def films() -> Iterator[tuple[int, list[dict[str, str]]]]:
    seen: list[dict[str, str]] = []
    handler = type("Told", (Films,), {"seen": seen})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield server.server_address[1], seen
    server.shutdown()
    thread.join()
    server.server_close()


def allowed(
    port: int, asked: list[str] | None = None, fetch_seconds: float = LIMIT_SECONDS
) -> Pictures:
    """Admits loopback, under a name that no resolver knows."""

    async def found(host: str, at: int) -> list[Address]:
        if asked is not None:
            asked.append(host)
        return [LOOPBACK]

    return Pictures(
        max_pixels=10**6,
        max_bytes=10**5,
        hosts=frozenset({f"films.example:{port}"}),
        resolve=found,
        admits=lambda address: True,
        fetch_seconds=fetch_seconds,
    )


Running = tuple[int, list[dict[str, str]]]


def test_a_picture_is_fetched_from_the_address_that_was_looked_at(films: Running) -> None:
    port, seen = films
    asked: list[str] = []
    found = read(f"http://films.example:{port}/a.png?x=1#y", allowed(port, asked))
    assert found.pixels.shape == (8, 8, 3)
    assert asked == ["films.example"]  # once: a second look-up could lead elsewhere
    assert seen[0]["path"] == "/a.png?x=1"


def test_the_server_is_asked_by_its_name(films: Running) -> None:
    port, seen = films
    read(f"http://films.example:{port}/a.png", allowed(port))
    assert seen[0]["host"] == f"films.example:{port}"


def test_a_password_in_an_address_is_sent_to_nobody(films: Running) -> None:
    port, seen = films
    read(f"http://me:secret@films.example:{port}/a.png", allowed(port))
    assert "authorization" not in seen[0]
    assert "cookie" not in seen[0]


def test_a_proxy_of_the_environment_is_not_used(
    films: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    port, _ = films
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert read(f"http://films.example:{port}/a.png", allowed(port)).jpeg


@pytest.mark.parametrize(
    ("path", "match"),
    [
        ("moved", "answered 302: no picture"),
        ("missing", "answered 404: no picture"),
        ("large", "more than the 0.09"),
        ("slow", "no picture within 1 s"),
    ],
)
def test_what_gives_no_picture_is_refused(films: Running, path: str, match: str) -> None:
    port, seen = films
    pictures = allowed(port, fetch_seconds=1.0 if path == "slow" else LIMIT_SECONDS)
    with pytest.raises(UsageError, match=match):
        read(f"http://films.example:{port}/{path}", pictures)
    assert len(seen) == 1


def test_an_answer_is_not_unpacked(films: Running) -> None:
    port, seen = films
    read(f"http://films.example:{port}/a.png", allowed(port))
    assert seen[0]["accept-encoding"] == "identity"


def test_a_host_that_nobody_listens_at_is_one_line() -> None:
    with pytest.raises(UsageError, match=r"gave no picture \(ConnectError\)"):
        read("http://films.example:9/a.png", allowed(9))


def test_tls_is_spoken_with_the_name_and_not_with_the_address(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    heard: list[bytes] = []
    import socket

    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]

        def listen() -> None:
            connection, _ = listening.accept()
            with connection:
                heard.append(connection.recv(4096))

        thread = threading.Thread(target=listen)
        thread.start()
        with pytest.raises(UsageError, match="gave no picture"):
            read(f"https://films.example:{port}/a.png", allowed(port))
        thread.join()
    assert b"films.example" in heard[0]  # the ClientHello's server name
