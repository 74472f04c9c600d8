"""An agent's side of the tools: the SDK's client, over either transport, for tests that do not
await.

    with agent(server.url + "mcp", key=KEY) as mine:            over HTTP
        mine.call("search_moments", query="red")
    with agent(command(folder, endpoint.base_url)) as mine:     `vidqa mcp` as a process
        ...
"""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Future
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
from anyio.from_thread import BlockingPortal, start_blocking_portal
from conftest import REPOSITORY
from mcp import Client
from mcp.client.stdio import StdioServerParameters
from mcp.client.streamable_http import streamable_http_client
from mcp_types import CallToolResult, ListToolsResult


@dataclass(frozen=True)
class Agent:
    """A client that is connected; `told` is what its calls reported on their way."""

    client: Client
    portal: BlockingPortal
    told: list[str] = field(default_factory=list)

    def call(self, tool: str, **arguments: Any) -> CallToolResult:
        return self.portal.call(self._call, tool, arguments)

    def start(self, tool: str, **arguments: Any) -> Future[CallToolResult]:
        """A call that can be cancelled."""
        return self.portal.start_task_soon(self._call, tool, arguments)

    def error(self, tool: str, **arguments: Any) -> str:
        """The text of a call that fails: a tool's error, in one line."""
        result = self.call(tool, **arguments)
        assert result.is_error
        (content,) = result.content
        assert content.type == "text"
        assert "\n" not in content.text
        return content.text

    def tools(self) -> ListToolsResult:
        return self.portal.call(self.client.list_tools)

    async def _call(self, tool: str, arguments: dict[str, Any]) -> CallToolResult:
        return await self.client.call_tool(tool, arguments, progress_callback=self._hear)

    async def _hear(self, progress: float, total: float | None, message: str | None) -> None:
        self.told.append(message or "")


@contextmanager
def agent(
    server: str | StdioServerParameters, key: str | None = None, mode: str = "auto"
) -> Iterator[Agent]:
    """An agent; `mode` is the client's: "auto" for the protocol of today, "legacy" for 2025's."""
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(_connected(server, key, mode)) as client,
    ):
        yield Agent(client, portal)


@asynccontextmanager
async def _connected(
    server: str | StdioServerParameters, key: str | None, mode: str
) -> AsyncIterator[Client]:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    async with httpx2.AsyncClient(headers=headers, timeout=30) as http:
        transport = (
            streamable_http_client(server, http_client=http) if isinstance(server, str) else server
        )
        async with Client(transport, mode=mode) as client:
            yield client


def command(index: Path, *more: str, **environ: str) -> StdioServerParameters:
    """`vidqa mcp` on a library of the playground."""
    return StdioServerParameters(
        command=sys.executable,
        args=arguments_of(index, *more),
        env=os.environ | environ,
        cwd=REPOSITORY,
    )


def arguments_of(index: Path, *more: str) -> list[str]:
    return ["-m", "vidqa.cli", "mcp", "--index", str(index), "--config", "demo", *more]


def text_of(result: CallToolResult) -> str:
    """The first content of a result, which is text."""
    assert result.content[0].type == "text"
    return result.content[0].text


def data_of(result: CallToolResult) -> dict[str, Any]:
    assert not result.is_error, text_of(result)
    assert isinstance(result.structured_content, dict)
    return result.structured_content
