"""Answers that come bit by bit: server-sent events over asynchronous generators.

    first = asyncio.ensure_future(anext(events))
    await unless_gone(request, asyncio.wait({first}, timeout=PING_SECONDS))
    EventStream(first, events, PING_SECONDS)      takes both over, however it ends

What an event says is `chat`'s; nothing here knows of questions.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator
from typing import Any

import anyio
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from vidqa.errors import VidqaError
from vidqa.server.errors import ApiError, translated
from vidqa.server.leaving import end

log = logging.getLogger(__name__)
Event = dict[str, Any]

# A proxy gives up on a connection that is silent for a minute.
PING_SECONDS = 15.0

DONE = "data: [DONE]\n\n"
_PING = ": waiting\n\n"
# nginx would hold a stream back until it has a few kilobytes.
_UNBUFFERED = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


class EventStream(StreamingResponse):
    """Server-sent events, with a comment whenever there is none for a while.

    `first` is the first event of `events`, which may still be on its way. What fails from now on is
    an `error` event, and then no `[DONE]` comes. Both end with the response, also when the client
    leaves before it began.
    """

    def __init__(
        self,
        first: asyncio.Future[Event],
        events: AsyncGenerator[Event, None],
        ping_seconds: float,
    ) -> None:
        super().__init__((), media_type="text/event-stream", headers=_UNBUFFERED)
        self._first = first
        self._events = events
        self._ping_seconds = ping_seconds
        self._said = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await end_all(self._first, self._events)

    async def stream_response(self, send: Send) -> None:
        await send(
            {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
        )
        async with anyio.create_task_group() as beside:
            beside.start_soon(self._ping, send)
            async for line in self._lines():
                await self._say(send, line)
            beside.cancel_scope.cancel()
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _say(self, send: Send, line: str) -> None:
        self._said = asyncio.get_running_loop().time()
        await send({"type": "http.response.body", "body": line.encode(), "more_body": True})

    async def _ping(self, send: Send) -> None:
        clock = asyncio.get_running_loop().time
        while True:
            await anyio.sleep(max(0.01, self._said + self._ping_seconds - clock()))
            if clock() - self._said >= self._ping_seconds:
                await self._say(send, _PING)

    async def _lines(self) -> AsyncGenerator[str, None]:
        try:
            event = await self._first
            while True:
                yield f"data: {json.dumps(event)}\n\n"
                event = await anext(self._events)
        except StopAsyncIteration:
            yield DONE
        except Exception as error:
            if not isinstance(error, VidqaError | ApiError):
                log.exception("an answer failed")
            yield f"data: {json.dumps(translated(error).body())}\n\n"


async def ahead(
    source: AsyncGenerator[str, None], seconds: float
) -> AsyncGenerator[str | None, None]:
    """What the source gives; before that None, once, when its first piece takes longer than this.

    What fails before then is raised before anything was given.
    """
    first = asyncio.ensure_future(anext(source, None))
    try:
        if not (await asyncio.wait({first}, timeout=seconds))[0]:
            yield None
        piece = await first
        yield piece
        if piece is not None:
            async for piece in source:
                yield piece
    finally:
        await end_all(first, source)


async def end_all(first: asyncio.Future[Any], source: AsyncGenerator[Any, None]) -> None:
    """Ends a generator, and before it the step that may be under way.

    Starlette cancels again and again until its task ends: not in the middle of this.
    """
    with anyio.CancelScope(shield=True):
        await end(first)
        await source.aclose()
