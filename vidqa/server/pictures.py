"""Pictures that clients send: data URLs, and addresses on hosts that were allowed by name.

    await Pictures(...).of("data:image/jpeg;base64,...", spec)      -> QuestionImage

A picture is decoded by us, within bounds that are read from its header first. An address is never
fetched unless its host is on the list; then it is resolved once, every address found must be
public, and the connection goes to the address that was looked at, under the name that was asked
for. There are no redirects. So no request of a client reaches this machine or its network.
"""

from __future__ import annotations

import base64
import binascii
import functools
import ipaddress
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import anyio
import httpx

from vidqa.errors import UsageError
from vidqa.stills import question_image
from vidqa.types import EmbedderSpec, QuestionImage

FETCH_SECONDS = 10.0

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
    """Whether it is somebody else's: no loopback, link-local, private, multicast or mapped one."""
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_global and not address.is_multicast


@dataclass(frozen=True)
class Pictures:
    """Reads the pictures of requests. `hosts` are those that may be fetched from."""

    max_pixels: int
    max_bytes: int
    hosts: frozenset[str] = frozenset()
    resolve: Resolve = resolve
    admits: Callable[[Address], bool] = is_public

    async def of(self, url: str, spec: EmbedderSpec) -> QuestionImage:
        """The picture at a data URL or an allowed address. Raises UsageError, in one line."""
        data = await self.data(url)
        read = functools.partial(question_image, data, spec, max_pixels=self.max_pixels)
        return await anyio.to_thread.run_sync(read)

    async def data(self, url: str) -> bytes:
        """The bytes of a picture; not looked into."""
        if url.startswith("data:"):
            return _decoded(url)
        return await self._fetched(url)

    async def _fetched(self, url: str) -> bytes:
        try:
            parsed = httpx.URL(url)
        except httpx.InvalidURL as error:
            raise UsageError(f"{url[:80]!r} is no address: {error}") from error
        if parsed.scheme not in ("http", "https") or parsed.host not in self.hosts:
            raise UsageError(
                f"{parsed.scheme}://{parsed.host} is not fetched: send the picture itself as "
                "data:image/jpeg;base64,..., or start the server with --allow-media-host HOST"
            )
        port = parsed.port or (443 if parsed.scheme == "https" else 80)
        addresses = await self.resolve(parsed.host, port)
        refused = [one for one in addresses if not self.admits(one)]
        if refused or not addresses:
            where = ", ".join(map(str, refused)) or "nowhere"
            raise UsageError(f"{parsed.host} leads to {where}, which is not public: not fetched")
        return await self._get(parsed, addresses[0])

    async def _get(self, url: httpx.URL, address: Address) -> bytes:
        """Asks the address itself, so that a second look-up cannot lead elsewhere."""
        target = url.copy_with(host=str(address), fragment=None, userinfo=b"")
        headers = {"Host": url.netloc.decode("ascii").rpartition("@")[2]}
        try:
            async with (
                httpx.AsyncClient(timeout=FETCH_SECONDS, trust_env=False) as client,
                client.stream(
                    "GET", target, headers=headers, extensions={"sni_hostname": url.host}
                ) as response,
            ):
                if response.status_code != 200:
                    raise UsageError(f"{url.host} answered {response.status_code}: no picture")
                held = b""
                async for piece in response.aiter_bytes():
                    held += piece
                    if len(held) > self.max_bytes:
                        raise UsageError(
                            f"{url.host} sent more than the {self.max_bytes / 2**20:g} MiB allowed"
                        )
                return held
        except httpx.HTTPError as error:
            raise UsageError(f"{url.host} gave no picture ({type(error).__name__})") from error


def _decoded(url: str) -> bytes:
    head, comma, body = url.partition(",")
    if not comma or not head.endswith(";base64"):
        raise UsageError(f"{url[:40]!r}... is no data:image/...;base64, address")
    try:
        return base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError) as error:
        raise UsageError(f"the base64 of a picture is damaged: {error}") from error
