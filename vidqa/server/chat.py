"""Chat completions: OpenAI's body in, OpenAI's shapes out, streamed or whole.

An answer carries its citations three ways: as a list of sources in Markdown at the end of the text,
as `annotations` of type `url_citation` on its `[n]`, and as `citations` with videos and times. A
stream comes in the order role, text, annotations, finish_reason, usage if it was asked for,
`[DONE]`; what goes wrong in its middle is an `error` event, and then there is no `[DONE]`.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from vidqa import __version__
from vidqa.ask import AskOptions
from vidqa.server.answering import Answering, Question, answering
from vidqa.server.errors import ApiError
from vidqa.server.gateway import Gateway
from vidqa.server.leaving import unless_gone
from vidqa.server.pictures import Pictures
from vidqa.server.schemas import ChatRequest
from vidqa.server.shapes import Shapes, title_of
from vidqa.server.state import errors, gateway_of, pictures_of, root_of
from vidqa.server.streams import PING_SECONDS, Event, EventStream, ahead, end_all
from vidqa.types import Answer, Citation
from vidqa.vlm import Sampling
from vidqa.wiring import ask_options

# What the model refuses, it refuses within this: then the status says so. A long prompt takes
# longer to read, and its reader should see the moments meanwhile.
REFUSAL_SECONDS = 1.0

_MARKER = re.compile(r"\[(\d+)\]")
_JSON_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
_MARKDOWN = re.compile(r"([\\`*_\[\]<>&|#~])")

router = APIRouter(tags=["chat"])


@router.post(
    "/v1/chat/completions",
    summary="Ask the library",
    responses=errors(400, 404, 413, 422, 429, 502, 503),
)
async def chat_completions(body: ChatRequest, request: Request) -> Response:
    """The last message is the question. The answer cites the moments that show it."""
    exchange = Exchange(gateway_of(request), pictures_of(request), body, root_of(request))
    if not body.stream:
        return JSONResponse(await unless_gone(request, exchange.whole()))
    events = exchange.events()
    first = asyncio.ensure_future(anext(events))
    try:
        await unless_gone(request, asyncio.wait({first}, timeout=PING_SECONDS))
        if first.done():
            first.result()  # what fails by now is told by its status
    except BaseException:
        await end_all(first, events)
        raise
    return EventStream(first, events, PING_SECONDS)


class Exchange:
    """One request: its question, and its answer in OpenAI's shapes."""

    def __init__(self, gateway: Gateway, pictures: Pictures, body: ChatRequest, root: str) -> None:
        model = gateway.model(body.model)
        shelf = gateway.shelf(body.vidqa.index or model.library)
        adapter = body.vidqa.adapter or model.adapter
        if adapter is not None and adapter not in gateway.adapters:
            there = ", ".join(gateway.adapters) or "none"
            raise ApiError(404, f"no adapter {adapter!r}; there are: {there}", param="adapter")
        # Those of earlier questions were shown with these.
        images = body.messages[-1].images()
        gateway.check_images(images)
        self._gateway = gateway
        self._pictures = pictures
        self._body = body
        self._shapes = Shapes(gateway, shelf, root)
        self._question = Question(
            body.turns(),
            shelf,
            options_of(gateway, body, adapter),
            images,
            adapter,
        )
        self._head = {
            "id": f"chatcmpl-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": body.model,
            "system_fingerprint": f"vidqa-{__version__}",
        }

    async def whole(self) -> dict[str, Any]:
        async with answering(self._gateway, self._pictures, self._question) as answer:
            pieces = [piece async for piece in answer.pieces()]
            result = answer.result()
            text = "".join(pieces)
            message = {
                "role": "assistant",
                "content": text + self._sources(result),
                "refusal": None,
                "annotations": self._annotations(text, result.citations),
            }
            choice = {
                "index": 0,
                "message": message,
                "finish_reason": answer.finish_reason,
                "logprobs": None,
            }
            return {
                **self._head,
                "object": "chat.completion",
                "choices": [choice],
                "usage": usage_of(result),
                "citations": self._citations(result),
                "vidqa": self._found(answer) | {"timings_ms": rounded(answer.milliseconds)},
            }

    async def events(self) -> AsyncGenerator[Event, None]:
        """Every event of a stream but the last mark."""
        async with (
            answering(self._gateway, self._pictures, self._question) as answer,
            aclosing(ahead(answer.pieces(), REFUSAL_SECONDS)) as pieces,
        ):
            async for event in self._written(answer, pieces):
                yield event

    async def _written(
        self, answer: Answering, pieces: AsyncGenerator[str | None, None]
    ) -> AsyncGenerator[Event, None]:
        parts: list[str] = []
        role = self._chunk({"role": "assistant", "content": ""}, vidqa=self._found(answer))
        async for piece in pieces:
            if role:
                yield role
                role = {}
            if piece:
                parts.append(piece)
                yield self._chunk({"content": piece})
        result = answer.result()
        if sources := self._sources(result):
            yield self._chunk({"content": sources})
        annotations = self._annotations("".join(parts), result.citations)
        yield self._chunk({"annotations": annotations}, citations=self._citations(result))
        timings = {"timings_ms": rounded(answer.milliseconds)}
        yield self._chunk({}, finish_reason=answer.finish_reason, vidqa=timings)
        if self._wants_usage:
            yield {
                **self._head,
                "object": "chat.completion.chunk",
                "choices": [],
                "usage": usage_of(result),
            }

    @property
    def _wants_usage(self) -> bool:
        options = self._body.stream_options
        return options is not None and options.include_usage

    def _chunk(
        self, delta: dict[str, Any], finish_reason: str | None = None, **more: object
    ) -> Event:
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason, "logprobs": None}
        usage = {"usage": None} if self._wants_usage else {}
        return {
            **self._head,
            "object": "chat.completion.chunk",
            "choices": [choice],
            **usage,
            **more,
        }

    def _found(self, answer: Answering) -> dict[str, Any]:
        return {
            "query": answer.query,
            "library": self._question.shelf.name,
            "moments": self._shapes.moments(answer.moments),
        }

    def _citations(self, result: Answer) -> list[dict[str, Any]]:
        return [self._shapes.citation(one) for one in result.citations]

    def _sources(self, result: Answer) -> str:
        """The citations as a Markdown list; nothing where the text is JSON."""
        is_json = self._question.options.sampling.response_format is not None
        if is_json or not self._body.vidqa.sources or not result.citations:
            return ""
        # Not `[1]`: a line `[1]: https://...` of the model's would make a link of it.
        lines = [
            f"- {one.n}: [{markdown(title_of(one))}]"
            f"({self._shapes.player_url(one.video_id, one.start_seconds)})"
            for one in result.citations
        ]
        return "\n\nSources:\n\n" + "\n".join(lines)

    def _annotations(self, text: str, citations: Sequence[Citation]) -> list[dict[str, Any]]:
        """One for each `[n]` of the answer, with its place there; its sources come after it.

        Where the answer is JSON, `[1]` may be a list as well: only its strings cite.
        """
        parts = [(0, len(text))]
        if self._question.options.sampling.response_format is not None:
            parts = [match.span() for match in _JSON_STRING.finditer(text)]
        by_number = {one.n: one for one in citations}
        return [
            {
                "type": "url_citation",
                "url_citation": {
                    "start_index": match.start(),
                    "end_index": match.end(),
                    "title": title_of(one),
                    "url": self._shapes.player_url(one.video_id, one.start_seconds),
                },
            }
            for part in parts
            for match in _MARKER.finditer(text, *part)
            if (one := by_number.get(int(match.group(1)) if len(match.group(1)) < 9 else -1))
        ]


def options_of(gateway: Gateway, body: ChatRequest, adapter: str | None) -> AskOptions:
    """What a request chooses, over the settings with which an adapter answers."""
    fields = body.vidqa
    clip = fields.clip
    options = ask_options(
        gateway.settings_of(adapter),
        filters=fields.filters.record(),
        whole=fields.whole,
        clip=(clip.video_id, clip.start_seconds, clip.end_seconds) if clip else None,
        instructions=body.instructions(),
    )
    form = body.response_format
    sampling = Sampling(
        max_tokens=body.max_completion_tokens or body.max_tokens or options.sampling.max_tokens,
        temperature=(
            options.sampling.temperature if body.temperature is None else body.temperature
        ),
        top_p=body.top_p,
        seed=body.seed,
        stop=body.stops(),
        user=body.user,
        response_format=(
            form.model_dump(exclude_none=True) if form and form.type != "text" else None
        ),
    )
    return replace(
        options,
        k=fields.k or options.k,
        max_frames=fields.frames or options.max_frames,
        sampling=sampling,
    )


def usage_of(result: Answer) -> dict[str, Any]:
    usage = result.usage
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "frames": usage.frames,
    }


def rounded(milliseconds: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 1) for name, value in milliseconds.items()}


def markdown(text: str) -> str:
    """A name as Markdown shows it: no name of a file becomes a link or a picture."""
    return _MARKDOWN.sub(r"\\\1", text)
