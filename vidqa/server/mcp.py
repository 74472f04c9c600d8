"""The Model Context Protocol: the tools for agents, over HTTP at /mcp and over stdio.

    endpoint = Endpoint(Tools(gateway), max_bytes)          an ASGI application
    async with endpoint.running(): ...
    await speak(Tools(gateway))                             this process's stdin and stdout

Over HTTP a request stands for itself: there are no sessions, so any of several workers may answer
any request, and there is nothing to fetch by GET or to end by DELETE. Who may ask is decided by
`gate`, as for every route; the SDK's own check of hosts is therefore off.

A call's work ends when its client cancels it or leaves. One case is left out: over HTTP a client of
the protocol's versions of 2025 cancels by a request of its own, which without sessions belongs to
no call; there only leaving ends it.
"""

from __future__ import annotations

import base64
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import anyio
from mcp.server import Server
from mcp.server.context import ServerRequestContext
from mcp.server.stdio import stdio_server
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp.shared.exceptions import MCPError
from mcp_types import (
    INVALID_PARAMS,
    CallToolRequestParams,
    CallToolResult,
    ContentBlock,
    ImageContent,
    ListToolsResult,
    PaginatedRequestParams,
    TextContent,
    ToolAnnotations,
)
from mcp_types import Tool as Described
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from vidqa import __version__
from vidqa.server.tools import BY_NAME, INSTRUCTIONS, TOOLS, Reply, ToolFailed, Tools

# So that a client which counts silence as death hears of a long answer in between.
PROGRESS_SECONDS = 5.0


def server_of(tools: Tools) -> Server[Any]:
    """The protocol's server for one set of tools."""

    async def list_tools(
        context: ServerRequestContext[Any], params: PaginatedRequestParams | None
    ) -> ListToolsResult:
        return ListToolsResult(tools=DESCRIBED)

    async def call_tool(
        context: ServerRequestContext[Any], params: CallToolRequestParams
    ) -> CallToolResult:
        if params.name not in BY_NAME:
            there = ", ".join(BY_NAME)
            raise MCPError(INVALID_PARAMS, f"no tool {params.name[:80]!r}; there are {there}")
        return await _called(tools, context, params)

    return Server(
        "vidqa",
        version=__version__,
        title="vidqa",
        instructions=INSTRUCTIONS,
        on_list_tools=list_tools,
        on_call_tool=call_tool,
        get_tool_input_schema=lambda name: _SCHEMAS.get(name),
    )


DESCRIBED = [
    Described(
        name=one.name,
        title=one.title,
        description=one.description,
        input_schema=one.takes.model_json_schema(),
        output_schema=one.gives.model_json_schema(),
        annotations=ToolAnnotations(
            read_only_hint=True,
            destructive_hint=False,
            idempotent_hint=one.name != "ask_library",
            open_world_hint=False,
        ),
    )
    for one in TOOLS
]
_SCHEMAS = {one.name: one.input_schema for one in DESCRIBED}


async def _called(
    tools: Tools, context: ServerRequestContext[Any], params: CallToolRequestParams
) -> CallToolResult:
    request = context.request
    root = str(request.base_url) if isinstance(request, Request) else ""
    progress = Progress(context)
    async with anyio.create_task_group() as beside:
        beside.start_soon(progress.keep_on)
        try:
            reply = await tools.call(params.name, params.arguments or {}, progress.tell, root)
            result = _result(reply)
        except ToolFailed as error:
            text = TextContent(type="text", text=str(error))
            result = CallToolResult(content=[text], is_error=True)
        beside.cancel_scope.cancel()
    return result


def _result(reply: Reply) -> CallToolResult:
    content: list[ContentBlock] = [TextContent(type="text", text=reply.text)]
    for one in reply.pictures:
        encoded = base64.b64encode(one.jpeg).decode()
        content.append(ImageContent(type="image", data=encoded, mime_type="image/jpeg"))
    data = reply.data.model_dump(mode="json", exclude_none=True)
    return CallToolResult(content=content, structured_content=data)


class Progress:
    """What a call is doing, told as it changes and every few seconds; nothing to who did not ask.

    The number only rises, as the protocol wants it: it is the seconds that the call has taken.
    """

    def __init__(self, context: ServerRequestContext[Any]) -> None:
        self._context = context
        self._started = time.monotonic()
        self._last = 0.0
        self._text = "working"

    async def tell(self, text: str) -> None:
        self._text = text
        seconds = time.monotonic() - self._started
        self._last = max(seconds, self._last + 0.001)
        await self._context.session.report_progress(round(self._last, 3), None, text)

    async def keep_on(self) -> None:
        while True:
            await anyio.sleep(PROGRESS_SECONDS)
            await self.tell(self._text)


class Endpoint:
    """The tools over streamable HTTP; only POST is for it, see the module's docstring."""

    def __init__(self, tools: Tools, max_bytes: int) -> None:
        self._server = server_of(tools)
        self._max_bytes = max_bytes
        self._manager: StreamableHTTPSessionManager | None = None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        manager = StreamableHTTPSessionManager(
            self._server, stateless=True, max_request_body_size=self._max_bytes
        )
        async with manager.run():
            self._manager = manager
            yield

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert self._manager is not None, "it is not running"
        await self._manager.handle_request(scope, receive, send)


async def speak(tools: Tools) -> None:
    """Serves this process's stdin and stdout until stdin ends or nobody reads stdout any more.

    Whatever else writes to stdout meanwhile writes to stderr.
    """
    server = server_of(tools)
    with _reader_may_leave():
        async with stdio_server() as (incoming, outgoing):
            await server.run(incoming, outgoing, server.create_initialization_options())


@contextmanager
def _reader_may_leave() -> Iterator[None]:
    try:
        yield
    except* (BrokenPipeError, anyio.BrokenResourceError):
        pass
