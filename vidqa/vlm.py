"""The client of the model that answers: any endpoint that speaks OpenAI's chat completions.

    async with AsyncVlmClient("http://127.0.0.1:8000/v1", api_key, model) as client:
        reply = client.reply(messages, Sampling(max_tokens=64))
        async for piece in reply: ...
        reply.usage, reply.finish_reason

    with VlmClient("http://127.0.0.1:8000/v1", api_key, model) as client:  # waited for
        for piece in client.stream(messages): ...
        client.usage

Text arrives piece by piece as the model writes it; who stops reading stops the model. Every way in
which an endpoint can refuse, break off or talk nonsense becomes an `EndpointError` with the next
step. Nothing is repaired or retried, but for two things: an endpoint that takes no frame lists is
asked once more with single images, and one that does not know vLLM's `skip_special_tokens` once
more without it. What is asked is built in `prompt`; our own server is run by
`engine`.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager, suppress
from dataclasses import dataclass
from queue import SimpleQueue
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx

from vidqa.errors import EndpointError

T = TypeVar("T")

CONNECT_SECONDS = 10.0
# Between two pieces of an answer. The first one comes when the model has read the prompt: a 2 B
# model on two cores reads some 20 tokens a second.
READ_SECONDS = 600.0

_DRAIN_SECONDS = 1.0
_SKIP = "skip_special_tokens"
_MAX_REASON_CHARACTERS = 300
# vLLM ends a stream like any other when its engine is told to end, or fails, in the middle of it.
_UNFINISHED = (None, "abort", "error")
_TOO_LONG = ("context length", "maximum context", "too long", "max_model_len", "context_length")


@dataclass(frozen=True, slots=True)
class TokenCount:
    """Tokens of one exchange, as the endpoint counted them; 0 where it does not count.

    `cached` are those of the prompt that it had read before and did not read again.
    """

    prompt: int = 0
    completion: int = 0
    cached: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How the answer is drawn, in OpenAI's terms; None and () leave it to the endpoint.

    `response_format` is OpenAI's object of that name, `user` is for the endpoint's own records.
    `skip_special_tokens` is vLLM's and others': False keeps control tokens in the text, which is
    where some models write boxes.
    """

    max_tokens: int = 512
    temperature: float = 0.0
    top_p: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    response_format: Mapping[str, Any] | None = None
    user: str | None = None
    skip_special_tokens: bool | None = None

    def fields(self) -> dict[str, Any]:
        """What a request says of it."""
        fields: dict[str, Any] = {"max_tokens": self.max_tokens, "temperature": self.temperature}
        optional = {
            "top_p": self.top_p,
            "seed": self.seed,
            "stop": list(self.stop) or None,
            "response_format": self.response_format,
            "user": self.user,
            _SKIP: self.skip_special_tokens,
        }
        return fields | {name: value for name, value in optional.items() if value is not None}


DEFAULT_SAMPLING = Sampling()


class AsyncVlmClient:
    """A chat endpoint at `base_url`, which ends in `/v1`, and one model there.

    Without `model` the endpoint's only one is used. Close it, or use it as a context manager.
    """

    def __init__(
        self,
        base_url: str,
        api_key: str | None = None,
        model: str | None = None,
        *,
        read_seconds: float = READ_SECONDS,
    ) -> None:
        self._model = model
        self._takes_video = self._takes_skip = True
        try:
            # The address is in error texts and in httpx's log: without the password it may hold.
            self.base_url, password = _without_password(base_url.rstrip("/"))
            self._http = httpx.AsyncClient(
                headers=_key_header(api_key),
                auth=password,
                timeout=httpx.Timeout(read_seconds, connect=CONNECT_SECONDS),
                # The caller bounds how much is asked at once; a wait for a connection is no error.
                limits=httpx.Limits(max_connections=None, max_keepalive_connections=64),
                trust_env=not _is_loopback(self.base_url),  # a proxy must not see our own engine
            )
        except (ValueError, httpx.InvalidURL) as error:
            raise EndpointError(f"{base_url.rpartition('@')[2]}: {error}") from error

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        await self._http.aclose()

    async def model(self) -> str:
        """The model's name, asked of the endpoint when nobody gave one."""
        if self._model is None:
            names = await self.models()
            if len(names) != 1:
                raise EndpointError(
                    f"{self.base_url} serves {', '.join(names) or 'no models'}; "
                    "choose one with --model"
                )
            self._model = names[0]
        return self._model

    async def models(self) -> list[str]:
        """The names that the endpoint serves."""
        with _translated(self.base_url):
            response = await self._http.get(f"{self.base_url}/models")
            await self._check(response, {})
            try:
                return [str(one["id"]) for one in response.json()["data"]]
            except (ValueError, KeyError, TypeError) as error:
                raise self._nonsense("a list of models", response.text) from error

    def reply(
        self,
        messages: Sequence[Mapping[str, Any]],
        sampling: Sampling = DEFAULT_SAMPLING,
        *,
        model: str | None = None,
        is_plain: bool = False,
    ) -> Reply:
        """What the model answers, to be read piece by piece; nothing is asked before that.

        `model` names another one that the endpoint serves, such as an adapter. `is_plain`: whoever
        made the messages has put them in plain words, and what marks boxes in them is meant.
        """
        return Reply(self, messages if is_plain else in_plain_words(messages), sampling, model)

    async def _reply_events(
        self, messages: Sequence[Mapping[str, Any]], sampling: Sampling, model: str | None
    ) -> AsyncGenerator[_Event, None]:
        body = {
            "model": model or await self.model(),
            "messages": list(messages),
            **sampling.fields(),
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        while True:  # once, and once more for each thing that it turns out not to take
            try:
                async with aclosing(self._posted(self._as_taken(body))) as events:
                    async for event in events:
                        yield event
                return
            except _NoVideo:
                self._takes_video = False
            except _NoSkip:
                self._takes_skip = False

    def _as_taken(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """A request without what this endpoint is known not to take."""
        taken = {name: value for name, value in body.items() if name != _SKIP or self._takes_skip}
        if not self._takes_video:
            taken["messages"] = as_images(body["messages"])
        return taken

    async def _posted(self, body: Mapping[str, Any]) -> AsyncGenerator[_Event, None]:
        begun = finished = False
        address = f"{self.base_url}/chat/completions"
        with _translated(self.base_url):
            async with self._http.stream("POST", address, json=body) as response:
                await self._check(response, body)
                async with aclosing(self._events(response)) as events:
                    async for event in events:
                        begun = True
                        finished = finished or event.finish_reason not in _UNFINISHED
                        yield event
        if not begun:
            raise self._nonsense("an answer", response.headers.get("content-type", "nothing"))
        if not finished:
            raise EndpointError(f"{self.base_url} broke off in the middle of the answer; ask again")

    async def _events(self, response: httpx.Response) -> AsyncGenerator[_Event, None]:
        """What a stream of server-sent events says, up to its end mark."""
        # A real generator, whatever httpx's type says, and one that is left before its end.
        lines: Any = response.aiter_lines()
        async with aclosing(lines):
            async for line in lines:
                if not line.startswith("data:"):
                    continue  # blank lines, comments and fields that no chat endpoint uses
                data = line.removeprefix("data:").strip()
                if data == "[DONE]":
                    await _drain(lines)
                    return
                yield self._parsed(data)

    def _parsed(self, data: str) -> _Event:
        try:
            event = json.loads(data)
            error = event.get("error")
            if not error:
                return _event(event)
        except (ValueError, TypeError, AttributeError) as problem:
            raise self._nonsense("an event of an answer", data) from problem
        code = error.get("code") if isinstance(error, dict) else None
        raise EndpointError(f"{self.base_url}: {_reason_in(event)}", refused=code in (400, 422))

    async def _check(self, response: httpx.Response, body: Mapping[str, Any]) -> None:
        status = response.status_code
        if status == 200:
            return
        await response.aread()
        reason = _reason(response)
        if status in (401, 403):
            raise EndpointError(
                f"{self.base_url} refuses the key ({status}: {reason}); "
                "give the right one with VIDQA_API_KEY",
                denied=True,
            )
        if status == 404 and body:
            raise EndpointError(f"{self.base_url}: {reason}; {await self._what_there_is()}")
        if status in (400, 422) and any(sign in reason.lower() for sign in _TOO_LONG):
            raise EndpointError(
                f"the question and its frames are more than the model takes ({reason}); ask more "
                "briefly, for a shorter answer (max_tokens), show fewer frames (--frames) or "
                "smaller ones (--max-pixels), or let the model take more (max_model_len)",
                refused=True,
            )
        if status in (400, 422) and _SKIP in reason and _SKIP in body:
            raise _NoSkip
        if status in (400, 415, 422) and "video" in reason.lower() and _holds_video(body):
            raise _NoVideo
        refused = status in (400, 422)
        raise EndpointError(f"{self.base_url} answered {status}: {reason}", refused=refused)

    async def _what_there_is(self) -> str:
        try:
            names = ", ".join(await self.models())
        except EndpointError:
            return (
                "it names no models either: is this the address of an OpenAI-compatible endpoint?"
            )
        return f"it serves {names or 'no models'}; choose one with --model"

    def _nonsense(self, wanted: str, got: str) -> EndpointError:
        return EndpointError(
            f"{self.base_url} sent {_short(got)!r} where {wanted} was due; is this the address of "
            "an OpenAI-compatible endpoint?"
        )


async def _drain(lines: AsyncIterator[str]) -> None:
    """Reads what follows the end mark, which is nothing, so that the connection is used again."""
    with suppress(TimeoutError):
        async with asyncio.timeout(_DRAIN_SECONDS):
            async for _ in lines:
                pass


class Reply:
    """One answer as it is written: iterate over its pieces of text, once.

    Afterwards `usage` holds its tokens and `finish_reason` why it ended, as OpenAI names it. To
    leave the iteration early, by an error or by cancellation, ends the connection and with it the
    model's work. Raises EndpointError, also in the middle.
    """

    def __init__(
        self,
        client: AsyncVlmClient,
        messages: Sequence[Mapping[str, Any]],
        sampling: Sampling,
        model: str | None,
    ) -> None:
        self.usage = TokenCount()
        self.finish_reason: str | None = None
        self._events = client._reply_events(messages, sampling, model)

    async def __aiter__(self) -> AsyncGenerator[str, None]:
        async with aclosing(self._events) as events:
            async for event in events:
                self.usage = event.usage or self.usage
                self.finish_reason = event.finish_reason or self.finish_reason
                if event.text:
                    yield event.text


class VlmClient:
    """An `AsyncVlmClient` for those who wait for what they ask: commands, threads, notebooks.

    Its event loop runs in a thread of its own, so it may be used where another loop runs already.
    """

    def __init__(
        self,
        base_url: str,
        api_key: str | None = None,
        model: str | None = None,
        *,
        read_seconds: float = READ_SECONDS,
    ) -> None:
        self.usage = TokenCount()
        self._client = AsyncVlmClient(base_url, api_key, model, read_seconds=read_seconds)
        self.base_url = self._client.base_url
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="vlm", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        if self._loop.is_closed():
            return
        self._wait(_end_tasks())
        self._wait(self._client.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @property
    def model(self) -> str:
        """The model's name, asked of the endpoint when nobody gave one."""
        return self._wait(self._client.model())

    def models(self) -> list[str]:
        """The names that the endpoint serves."""
        return self._wait(self._client.models())

    def stream(
        self, messages: Sequence[Mapping[str, Any]], sampling: Sampling = DEFAULT_SAMPLING
    ) -> Iterator[str]:
        """The answer, piece by piece; afterwards `usage` holds its tokens. As `Reply` otherwise."""
        self.usage = TokenCount()
        reply = self._client.reply(messages, sampling)
        pieces: SimpleQueue[str | None] = SimpleQueue()

        async def read() -> None:
            async for piece in reply:
                pieces.put(piece)

        reading = asyncio.run_coroutine_threadsafe(read(), self._loop)
        reading.add_done_callback(lambda _: pieces.put(None))
        try:
            while (piece := pieces.get()) is not None:
                yield piece
            reading.result()
        finally:
            reading.cancel()
        self.usage = reply.usage

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:  # Ctrl-C in the first place: the work ends as well
            future.cancel()
            raise


async def _end_tasks() -> None:
    """Ends what still runs in this loop, such as an answer that nobody reads to its end."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    await asyncio.get_running_loop().shutdown_asyncgens()


class _NoVideo(Exception):
    """The endpoint takes no `video_url`."""


class _NoSkip(Exception):
    """The endpoint takes no `skip_special_tokens`; OpenAI's refuses what it does not know."""


@dataclass(frozen=True, slots=True)
class _Event:
    text: str
    finish_reason: str | None
    usage: TokenCount | None


def _event(event: Mapping[str, Any]) -> _Event:
    """One event of a chat stream. Raises what a wrong shape raises."""
    choices = event.get("choices") or ()
    usage = event.get("usage")
    reasons = [choice.get("finish_reason") for choice in choices]
    return _Event(
        text="".join((choice.get("delta") or {}).get("content") or "" for choice in choices),
        finish_reason=next((str(one) for one in reasons if one), None),
        usage=_count(usage) if usage else None,
    )


def _count(usage: Mapping[str, Any]) -> TokenCount:
    details = usage.get("prompt_tokens_details") or {}
    return TokenCount(
        prompt=int(usage.get("prompt_tokens") or 0),
        completion=int(usage.get("completion_tokens") or 0),
        cached=int(details.get("cached_tokens") or 0),
    )


@contextmanager
def _translated(where: str) -> Iterator[None]:
    """httpx's errors become ours."""
    try:
        yield
    except (httpx.ConnectError, httpx.ConnectTimeout) as error:
        raise EndpointError(
            f"{where}: nobody answers there ({error}); is it running, and --base-url right?",
            unreachable=True,
        ) from error
    except httpx.TimeoutException as error:
        raise EndpointError(
            f"{where} fell silent for longer than is allowed; show fewer frames (--frames), or "
            "see what it is doing: vidqa engine logs"
        ) from error
    except (httpx.UnsupportedProtocol, httpx.InvalidURL) as error:
        reason = str(error).rstrip(".")
        raise EndpointError(f"{where}: {reason}; like http://127.0.0.1:8000/v1") from error
    except (httpx.TransportError, httpx.DecodingError) as error:
        raise EndpointError(
            f"{where} broke off in the middle of the answer ({error}); ask again"
        ) from error


def in_plain_words(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The same messages, in whose text nothing is a control token.

    A server fills texts into its chat template and only then looks for tokens: a subtitle that
    says `<|im_end|>` would end the turn that it is quoted in, and the next one could be anybody's.
    """
    return [
        dict(message) | {"content": _content_in_plain_words(message["content"])}
        for message in messages
    ]


def _content_in_plain_words(content: Any) -> Any:
    if isinstance(content, str):
        return content.replace("<|", "< |")
    return [
        part | {"text": part["text"].replace("<|", "< |")} if part["type"] == "text" else part
        for part in content
    ]


def as_images(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The same messages with each frame list as single images.

    For endpoints without video. Two frames then cost the tokens of four, and the model is not told
    which of them belong together but by the label before them.
    """
    return [
        dict(message) | {"content": _parts_as_images(message["content"])} for message in messages
    ]


def _parts_as_images(content: Any) -> Any:
    if isinstance(content, str):
        return content
    return [
        image
        for part in content
        for image in (_images(part) if part["type"] == "video_url" else [part])
    ]


def _images(part: Mapping[str, Any]) -> list[dict[str, Any]]:
    frames = part["video_url"]["url"].partition("base64,")[2].split(",")
    return [
        {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{frame}"}}
        for frame in frames
    ]


def _holds_video(body: Mapping[str, Any]) -> bool:
    return any(
        part["type"] == "video_url"
        for message in body.get("messages", ())
        if not isinstance(message["content"], str)
        for part in message["content"]
    )


def _reason(response: httpx.Response) -> str:
    try:
        return _reason_in(response.json())
    except ValueError:
        return _short(response.text) or "no reason given"


def _reason_in(answer: Any) -> str:
    """The sentence in an error, in the forms that vLLM, OpenAI and FastAPI have for it."""
    error = answer.get("error", answer) if isinstance(answer, dict) else answer
    if isinstance(error, dict):
        error = error.get("message") or error.get("detail") or error
    return _short(str(error))


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _MAX_REASON_CHARACTERS else line[:_MAX_REASON_CHARACTERS] + "…"


def _without_password(base_url: str) -> tuple[str, tuple[str, str] | None]:
    """An address without `user:password@`, and those two, which are sent in a header instead."""
    url = httpx.URL(base_url)
    if not url.userinfo:
        return base_url, None
    return str(url.copy_with(userinfo=b"")), (url.username, url.password)


def _key_header(api_key: str | None) -> dict[str, str]:
    """A key that was read from a file ends in a line break, which is no part of it."""
    key = (api_key or "").strip()
    if not (key.isascii() and key.isprintable()):
        # httpx would say so as well, and show the key.
        raise EndpointError(
            "the key holds characters that no request can carry; printable ASCII is allowed: "
            "give it with VIDQA_API_KEY"
        )
    return {"Authorization": f"Bearer {key}"} if key else {}


def _is_loopback(base_url: str) -> bool:
    host = httpx.URL(base_url).host
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
