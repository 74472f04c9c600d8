"""Pictures that clients send: data URLs, and addresses on hosts that were allowed by name.

    await Pictures(...).of("data:image/jpeg;base64,...", spec)      -> QuestionImage

A picture is decoded by us, within bounds that are read from its header first. An address is never
fetched unless its host is on the list, with its port where that is not the scheme's own; then it is
resolved once, every address found must be public, and the connection goes to the address that was
looked at, under the name that was asked for. There are no redirects. So no request of a client
reaches this machine or its network.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import functools
import ipaddress
import socket
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

import anyio
import httpx

from vidqa.errors import UsageError
from vidqa.stills import question_image
from vidqa.types import EmbedderSpec, QuestionImage

T = TypeVar("T")

FETCH_SECONDS = 10.0
# A picture of the largest size allowed takes some 500 MB while it is read.
READ_AT_ONCE = 2

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolve = Callable[[str, int], Awaitable[list[Address]]]


async def resolve(host: str, port: int) -> list[Address]:
    """Every address of a host. Raises UsageError when it has none."""
    try:
        found = await anyio.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise UsageError(f"{host}: cannot be resolved ({error.strerror or error})") from error
    return [ipaddress.ip_address(one[4][0]) for one in found]


def is_public(address: Address) -> bool:
    """Whether it is somebody else's: no loopback, link-local, private, multicast or mapped one.

    Of IPv6 only what is handed out to hosts, and nothing that carries an IPv4 address to a gateway.
    """
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped:
            return is_public(address.ipv4_mapped)
        if address not in _HANDED_OUT or address.sixtofour or address.teredo:
            return False
    return address.is_global and not (address.is_multicast or address.is_reserved)


_HANDED_OUT = ipaddress.IPv6Network("2000::/3")


@dataclass(frozen=True)
class Pictures:
    """Reads the pictures of requests. `hosts` are those that may be fetched from."""

    max_pixels: int
    max_bytes: int
    hosts: frozenset[str] = frozenset()
    resolve: Resolve = resolve
    admits: Callable[[Address], bool] = is_public
    fetch_seconds: float = FETCH_SECONDS
    # A picture whose client has left is read to its end, and counts until then.
    _readers: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(READ_AT_ONCE, "picture"),
        repr=False,
        compare=False,
    )

    async def of(self, url: str, spec: EmbedderSpec) -> QuestionImage:
        """The picture at a data URL or an allowed address. Raises UsageError, in one line."""
        data = await self.data(url)
        read = functools.partial(question_image, data, spec, max_pixels=self.max_pixels)
        return await self._in_thread(read)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._readers, work)

    async def data(self, url: str) -> bytes:
        """The bytes of a picture; not looked into."""
        if url.startswith("data:"):
            return await self._in_thread(functools.partial(_decoded, url))
        return await self._fetched(url)

    async def _fetched(self, url: str) -> bytes:
        try:
            parsed = httpx.URL(url)
        except httpx.InvalidURL as error:
            raise UsageError(f"{url[:80]!r} is no address: {error}") from error
        authority = parsed.netloc.decode("ascii")
        listed = authority in self.hosts or (parsed.port is None and parsed.host in self.hosts)
        if parsed.scheme not in ("http", "https") or not listed:
            shown = f"{parsed.scheme[:20]}://{authority[:80]}" if authority else repr(url[:80])
            raise UsageError(
                f"{shown} is not fetched: send the picture itself "
                "as data:image/jpeg;base64,..., or start the server with --allow-media-host HOST"
            )
        try:
            with anyio.fail_after(self.fetch_seconds):
                return await self._get(parsed, authority, await self._address(parsed))
        except TimeoutError as error:
            raise UsageError(
                f"{authority} gave no picture within {self.fetch_seconds:g} s"
            ) from error

    async def _address(self, url: httpx.URL) -> Address:
        """The one that is asked; all that the name leads to must be public."""
        host = url.raw_host.decode("ascii")
        addresses = await self.resolve(host, url.port or (443 if url.scheme == "https" else 80))
        refused = [one for one in addresses if not self.admits(one)]
        if refused or not addresses:
            where = ", ".join(map(str, refused)) or "nowhere"
            raise UsageError(f"{host} leads to {where}, which is not public: not fetched")
        return addresses[0]

    async def _get(self, url: httpx.URL, authority: str, address: Address) -> bytes:
        """Asks the address itself, so that a second look-up cannot lead elsewhere."""
        target = url.copy_with(host=str(address), fragment=None, userinfo=b"")
        # What is compressed could unfold to any size before it is counted.
        headers = {"Host": authority, "Accept-Encoding": "identity"}
        name = {"sni_hostname": url.raw_host.decode("ascii")}
        try:
            async with (
                httpx.AsyncClient(timeout=self.fetch_seconds, trust_env=False) as client,
                client.stream("GET", target, headers=headers, extensions=name) as response,
            ):
                if response.status_code != 200:
                    raise UsageError(f"{authority} answered {response.status_code}: no picture")
                held = bytearray()
                async for piece in response.aiter_raw():
                    held += piece
                    if len(held) > self.max_bytes:
                        raise UsageError(
                            f"{authority} sent more than the {self.max_bytes / 2**20:g} MiB allowed"
                        )
                return bytes(held)
        except httpx.HTTPError as error:
            raise UsageError(f"{authority} gave no picture ({type(error).__name__})") from error


def _decoded(url: str) -> bytes:
    head, comma, body = url.partition(",")
    if not comma or not head.endswith(";base64"):
        raise UsageError(f"{url[:40]!r}... is no data:image/...;base64, address")
    try:
        return base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError) as error:
        raise UsageError(f"the base64 of a picture is damaged: {error}") from error
