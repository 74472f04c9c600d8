"""The client of the model that answers: any endpoint that speaks OpenAI's chat completions.

    with VlmClient("http://127.0.0.1:8000/v1", api_key, model) as client:
        for piece in client.stream(messages): ...
        client.usage

Text arrives piece by piece as the model writes it. Every way in which an endpoint can refuse, break
off or talk nonsense becomes an `EndpointError` with the next step. Nothing is repaired or retried,
but for one thing: an endpoint that takes no frame lists is asked once more with single images.
What is asked is built in `prompt`; our own server is run by `engine`.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import httpx

from vidqa.errors import EndpointError

CONNECT_SECONDS = 10.0
# Between two pieces of an answer. The first one comes when the model has read the prompt: a 2 B
# model on two cores reads some 20 tokens a second.
READ_SECONDS = 600.0

_MAX_REASON_CHARACTERS = 300
_TOO_LONG = ("context length", "maximum context", "too long", "max_model_len", "context_length")


@dataclass(frozen=True, slots=True)
class TokenCount:
    """Tokens of one exchange, as the endpoint counted them; 0 where it does not count."""

    prompt: int = 0
    completion: int = 0


class VlmClient:
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
        self.usage = TokenCount()
        self._model = model
        self._takes_video = True
        try:
            # The address is in error texts and in httpx's log: without the password it may hold.
            self.base_url, password = _without_password(base_url.rstrip("/"))
            self._http = httpx.Client(
                headers=_key_header(api_key),
                auth=password,
                timeout=httpx.Timeout(read_seconds, connect=CONNECT_SECONDS),
                trust_env=not _is_loopback(self.base_url),  # a proxy must not see our own engine
            )
        except (ValueError, httpx.InvalidURL) as error:
            raise EndpointError(f"{base_url.rpartition('@')[2]}: {error}") from error

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
        self._http.close()

    @property
    def model(self) -> str:
        """The model's name, asked of the endpoint when nobody gave one."""
        if self._model is None:
            names = self.models()
            if len(names) != 1:
                raise EndpointError(
                    f"{self.base_url} serves {', '.join(names) or 'no models'}; "
                    "choose one with --model"
                )
            self._model = names[0]
        return self._model

    def models(self) -> list[str]:
        """The names that the endpoint serves."""
        with _translated(self.base_url):
            response = self._http.get(f"{self.base_url}/models")
            self._check(response, {})
            try:
                return [str(one["id"]) for one in response.json()["data"]]
            except (ValueError, KeyError, TypeError) as error:
                raise self._nonsense("a list of models", response.text) from error

    def stream(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        max_tokens: int = 512,
        temperature: float = 0.0,
    ) -> Iterator[str]:
        """The answer, piece by piece; afterwards `usage` holds its tokens.

        Raises EndpointError, also in the middle of an answer.
        """
        self.usage = TokenCount()
        body = {
            "model": self.model,
            "messages": messages,
            "max_tokens": max_tokens,
            "temperature": temperature,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if self._takes_video:
            try:
                yield from self._pieces(body)
                return
            except _NoVideo:
                self._takes_video = False
        yield from self._pieces(body | {"messages": as_images(messages)})

    def _pieces(self, body: Mapping[str, Any]) -> Iterator[str]:
        begun = finished = False
        with (
            _translated(self.base_url),
            self._http.stream("POST", f"{self.base_url}/chat/completions", json=body) as response,
        ):
            self._check(response, body)
            for event in self._events(response):
                begun = True
                finished = finished or event.finished
                self.usage = event.usage or self.usage
                if event.text:
                    yield event.text
        if not begun:
            raise self._nonsense("an answer", response.headers.get("content-type", "nothing"))
        if not finished:
            raise EndpointError(f"{self.base_url} broke off in the middle of the answer; ask again")

    def _events(self, response: httpx.Response) -> Iterator[_Event]:
        """What a stream of server-sent events says, up to its end mark."""
        for line in response.iter_lines():
            if not line.startswith("data:"):
                continue  # blank lines, comments and fields that no chat endpoint uses
            data = line.removeprefix("data:").strip()
            if data == "[DONE]":
                return
            try:
                event = json.loads(data)
                error = event.get("error")
                if not error:
                    yield _event(event)
            except (ValueError, TypeError, AttributeError) as problem:
                raise self._nonsense("an event of an answer", data) from problem
            if error:
                raise EndpointError(f"{self.base_url}: {_reason_in(event)}")

    def _check(self, response: httpx.Response, body: Mapping[str, Any]) -> None:
        status = response.status_code
        if status == 200:
            return
        response.read()
        reason = _reason(response)
        if status in (401, 403):
            raise EndpointError(
                f"{self.base_url} refuses the key ({status}: {reason}); "
                "give the right one with VIDQA_API_KEY"
            )
        if status == 404 and body:
            raise EndpointError(f"{self.base_url}: {reason}; {self._what_there_is()}")
        if status in (400, 422) and any(sign in reason.lower() for sign in _TOO_LONG):
            raise EndpointError(
                f"the question and its frames are more than the model takes ({reason}); show fewer "
                "frames (--frames), smaller ones (--max-pixels), or serve with a larger "
                "--max-model-len"
            )
        if status in (400, 415, 422) and "video" in reason.lower() and _holds_video(body):
            raise _NoVideo
        raise EndpointError(f"{self.base_url} answered {status}: {reason}")

    def _what_there_is(self) -> str:
        try:
            return f"it serves {', '.join(self.models()) or 'no models'}; choose one with --model"
        except EndpointError:
            return (
                "it names no models either: is this the address of an OpenAI-compatible endpoint?"
            )

    def _nonsense(self, wanted: str, got: str) -> EndpointError:
        return EndpointError(
            f"{self.base_url} sent {_short(got)!r} where {wanted} was due; is this the address of "
            "an OpenAI-compatible endpoint?"
        )


class _NoVideo(Exception):
    """The endpoint takes no `video_url`."""


@dataclass(frozen=True, slots=True)
class _Event:
    text: str
    finished: bool
    usage: TokenCount | None


def _event(event: Mapping[str, Any]) -> _Event:
    """One event of a chat stream. Raises what a wrong shape raises."""
    choices = event.get("choices") or ()
    usage = event.get("usage")
    return _Event(
        text="".join((choice.get("delta") or {}).get("content") or "" for choice in choices),
        finished=any(choice.get("finish_reason") for choice in choices),
        usage=TokenCount(
            int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0)
        )
        if usage
        else None,
    )


@contextmanager
def _translated(where: str) -> Iterator[None]:
    """httpx's errors become ours."""
    try:
        yield
    except (httpx.ConnectError, httpx.ConnectTimeout) as error:
        raise EndpointError(
            f"{where}: nobody answers there ({error}); is it running, and --base-url right?"
        ) from error
    except httpx.TimeoutException as error:
        raise EndpointError(
            f"{where} fell silent for longer than is allowed; show fewer frames (--frames), or "
            "see what it is doing: vidqa engine logs"
        ) from error
    except (httpx.UnsupportedProtocol, httpx.InvalidURL) as error:
        raise EndpointError(f"{where}: {error}; like http://127.0.0.1:8000/v1") from error
    except (httpx.TransportError, httpx.DecodingError) as error:
        raise EndpointError(
            f"{where} broke off in the middle of the answer ({error}); ask again"
        ) from error


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
