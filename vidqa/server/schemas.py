"""What requests may say, checked before anything is done; and what becomes of OpenAI's fields.

Every field of OpenAI's chat completions is in one of three tables, which docs/api.md repeats:
honoured (a field of `ChatRequest`), ignored (`IGNORED`: it would change nothing of the answer),
refused (`REFUSED`: passing it over would change what the client gets). Any other field is an error,
as OpenAI has it, so nothing a client sends reaches vLLM by accident: no `mm_processor_kwargs`, no
`chat_template`, no path.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from vidqa.conversation import Turn
from vidqa.server.errors import UnsupportedParameter
from vidqa.types import Filters

MAX_K = 100
MAX_FRAMES = 256
MAX_TEXT_CHARACTERS = 20_000
MAX_MESSAGES = 200
MAX_INPUTS = 2048  # as OpenAI
# Of one message; and of the fields of one object, however many are none of ours.
MAX_PARTS = 100
MAX_FIELDS = 100

VIDEO_ID = r"^[0-9a-f]{16}$"
VideoId = Annotated[str, StringConstraints(pattern=VIDEO_ID)]
Text = Annotated[str, StringConstraints(max_length=MAX_TEXT_CHARACTERS)]
# A century of video; more is a mistake, and infinity is no time.
Seconds = Annotated[float, Field(ge=0, le=3.2e9, allow_inf_nan=False)]

IGNORED = frozenset(
    {
        "metadata", "parallel_tool_calls", "prediction", "prompt_cache_key",
        "prompt_cache_options", "prompt_cache_retention", "safety_identifier", "service_tier",
        "store", "verbosity", "reasoning_effort",
    }
)  # fmt: skip
"""Fields that are accepted and change nothing here."""

REFUSED: Mapping[str, tuple[tuple[Any, ...], str]] = {
    "n": ((1,), "one answer a request"),
    "tools": (([],), "it calls no tools; an agent may use vidqa itself: vidqa mcp"),
    "tool_choice": (("none", "auto"), "it calls no tools"),
    "functions": (([],), "it calls no functions"),
    "function_call": (("none", "auto"), "it calls no functions"),
    "modalities": ((["text"],), "it answers in text"),
    "audio": ((), "it answers in text"),
    "logprobs": ((False,), "it gives no probabilities"),
    "top_logprobs": ((0,), "it gives no probabilities"),
    "logit_bias": (({},), "it biases no tokens"),
    "frequency_penalty": ((0,), "it has no such penalty"),
    "presence_penalty": ((0,), "it has no such penalty"),
    "web_search_options": ((), "it searches the library alone"),
    "moderation": ((), "it does not moderate"),
}
"""Fields that are refused unless they say what is the case anyway: the values allowed, and why."""


def _few_fields(value: Any) -> Any:
    """Refuses what would cost an error object for each of a million unknown fields."""
    if isinstance(value, dict) and len(value) > MAX_FIELDS:
        raise ValueError(f"an object of {len(value)} fields; at most {MAX_FIELDS} are taken")
    return value


class Strict(BaseModel):
    """Unknown fields are errors: a typing mistake must not pass for a wish that was heard."""

    model_config = ConfigDict(extra="forbid")

    _few = model_validator(mode="before")(_few_fields)


class FilterFields(Strict):
    """Which part of a library is meant. Durations are of the video, dates those of its ingest."""

    video: Annotated[str, StringConstraints(max_length=1000)] | None = Field(
        None, description="A file name, or a pattern like `*2024*`."
    )
    video_ids: list[VideoId] | None = Field(
        None, max_length=1000, description="One of these videos, by id."
    )
    text: Annotated[str, StringConstraints(max_length=200)] | None = Field(
        None, description="Words that the subtitles hold, upper or lower case."
    )
    min_seconds: Seconds | None = Field(None, description="The video lasts so long at least.")
    max_seconds: Seconds | None = Field(None, description="The video lasts so long at most.")
    after: date | None = Field(None, description="Ingested on that day (UTC) or later.")
    before: date | None = Field(None, description="Ingested before that day (UTC).")

    @model_validator(mode="after")
    def _possible(self) -> FilterFields:
        self.record()
        return self

    def record(self) -> Filters:
        return Filters(
            name=self.video,
            video_ids=tuple(self.video_ids) if self.video_ids is not None else None,
            text=self.text,
            min_seconds=self.min_seconds,
            max_seconds=self.max_seconds,
            after=self.after,
            before=self.before,
        )


# ---------------------------------------------------------------- chat


class ImageAddress(BaseModel):
    model_config = ConfigDict(extra="ignore")  # `detail` means nothing here

    url: str


class Part(BaseModel):
    """A part of a message: `text`, or `image_url` in the user's last message."""

    model_config = ConfigDict(extra="ignore")

    type: str
    text: Text | None = None
    image_url: ImageAddress | str | None = None

    @model_validator(mode="after")
    def _known(self) -> Part:
        if self.type == "text" and self.text is not None:
            return self
        if self.type == "image_url" and self.image_url is not None:
            return self
        if self.type in ("video_url", "file", "input_audio"):
            raise UnsupportedParameter(
                f"{self.type} is not taken: put the video into the library (POST /v1/videos) and "
                "ask about it with vidqa.clip or vidqa.whole"
            )
        raise ValueError(f"a part of type {self.type!r} needs a field of that name")

    @property
    def url(self) -> str:
        assert self.image_url is not None
        return self.image_url if isinstance(self.image_url, str) else self.image_url.url


class ChatMessage(BaseModel):
    model_config = ConfigDict(extra="ignore")  # `name`, and what a former answer carried

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Annotated[list[Part], Field(max_length=MAX_PARTS)] | None = None

    @model_validator(mode="after")
    def _short(self) -> ChatMessage:
        if len(self.text()) > MAX_TEXT_CHARACTERS:
            raise ValueError(f"a message has at most {MAX_TEXT_CHARACTERS:,} characters")
        return self

    def text(self) -> str:
        if isinstance(self.content, list):
            return "\n".join(part.text for part in self.content if part.text is not None)
        return self.content or ""

    def images(self) -> list[str]:
        """Addresses of its pictures."""
        parts = self.content if isinstance(self.content, list) else []
        return [part.url for part in parts if part.type == "image_url"]


class StreamOptions(BaseModel):
    model_config = ConfigDict(extra="ignore")

    include_usage: bool = False


class Clip(Strict):
    """A stretch of one video that is asked about, `[start_seconds, end_seconds)`."""

    video_id: VideoId
    start_seconds: Seconds
    end_seconds: Seconds

    @model_validator(mode="after")
    def _a_range(self) -> Clip:
        if not self.start_seconds < self.end_seconds:
            raise ValueError("a clip ends after its start")
        return self


class VidqaFields(Strict):
    """What only this server understands; in OpenAI's clients it goes into `extra_body`."""

    index: str | None = Field(None, description="Name of a library, in place of the model's.")
    adapter: str | None = Field(None, description="Name of an adapter, in place of the model's.")
    filters: FilterFields = Field(default_factory=FilterFields)
    k: int | None = Field(None, ge=1, le=MAX_K, description="Moments to find.")
    frames: int | None = Field(None, ge=2, le=MAX_FRAMES, description="Frames to show, in all.")
    sources: bool = Field(True, description="End the text with a list of its sources.")
    clip: Clip | None = Field(None, description="Ask about this; no search.")
    whole: VideoId | None = Field(None, description="Ask about this whole video; no search.")

    @model_validator(mode="after")
    def _one_way(self) -> VidqaFields:
        ways = [self.clip, self.whole, self.filters if self.filters != FilterFields() else None]
        if sum(way is not None for way in ways) > 1:
            raise ValueError("clip, whole and filters exclude each other")
        return self


class ResponseFormat(BaseModel):
    model_config = ConfigDict(extra="ignore")

    type: Literal["text", "json_object", "json_schema"]
    json_schema: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _complete(self) -> ResponseFormat:
        given = self.json_schema or {}
        if self.type == "json_schema" and not isinstance(given.get("schema"), dict):
            raise ValueError("json_schema needs an object json_schema.schema")
        self.json_schema = {name: given[name] for name in _SCHEMA_FIELDS if name in given} or None
        return self


_SCHEMA_FIELDS = ("name", "description", "schema", "strict")


class ChatRequest(BaseModel):
    """OpenAI's body of a chat completion. The last message is the user's question."""

    model_config = ConfigDict(extra="allow")

    model: Annotated[str, StringConstraints(max_length=200)] = "vidqa"
    messages: list[ChatMessage] = Field(min_length=1, max_length=MAX_MESSAGES)
    stream: bool = False
    stream_options: StreamOptions | None = None
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    max_tokens: int | None = Field(None, ge=1, le=1_000_000)
    max_completion_tokens: int | None = Field(None, ge=1, le=1_000_000)
    stop: str | Annotated[list[str], Field(max_length=4)] | None = None
    seed: int | None = Field(None, ge=-(2**63), le=2**63 - 1)
    response_format: ResponseFormat | None = None
    user: Annotated[str, StringConstraints(max_length=200)] | None = None
    vidqa: VidqaFields = Field(default_factory=VidqaFields)

    @model_validator(mode="after")
    def _nothing_else(self) -> ChatRequest:
        for name, value in (self.model_extra or {}).items():
            if name in IGNORED or value is None:
                continue
            if name not in REFUSED:
                raise UnsupportedParameter(
                    f"Unrecognized request argument supplied: {name}; what vidqa adds goes into "
                    'the object "vidqa", and docs/api.md lists the rest'
                )
            allowed, reason = REFUSED[name]
            if value not in allowed:
                raise UnsupportedParameter(f"{name} is not supported: {reason}")
        stops = self.stops()
        if not all(stops) or any(len(one) > 200 for one in stops):
            raise ValueError("stop takes one to four texts of 1 to 200 characters")
        if self.messages[-1].role != "user":
            raise ValueError("the last message must be the user's: it is the question")
        if any(message.images() for message in self.messages if message.role != "user"):
            raise ValueError("only the user's messages may carry pictures")
        return self

    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    def turns(self) -> list[Turn]:
        """The conversation, its last question included."""
        return [
            Turn("user" if one.role == "user" else "assistant", one.text())
            for one in self.messages
            if one.role in ("user", "assistant")
        ]

    def instructions(self) -> str:
        """What the client says to the model about every answer."""
        said = [one.text() for one in self.messages if one.role in ("system", "developer")]
        return "\n".join(text for text in said if text.strip())


# ---------------------------------------------------------------- the others


class SearchRequest(Strict):
    """Moments that look like a text, a picture, or both."""

    query: Text = ""
    image: str | None = Field(None, description="A data URL of a JPEG, PNG, WebP or GIF.")
    k: int = Field(12, ge=1, le=MAX_K)
    filters: FilterFields = Field(default_factory=FilterFields)
    library: str | None = None
    heat: bool = Field(False, description="Add the relevance over time of each video found.")

    @model_validator(mode="after")
    def _something(self) -> SearchRequest:
        if not self.query.strip() and self.image is None:
            raise ValueError("a query, an image or both are needed")
        return self


class EmbeddingInput(Strict):
    """One thing to embed: a text, or a picture as a data URL."""

    text: Text | None = None
    image: str | None = None

    @model_validator(mode="after")
    def _one(self) -> EmbeddingInput:
        if (self.text is None) == (self.image is None):
            raise ValueError('an input has either "text" or "image"')
        return self


class EmbeddingRequest(Strict):
    """OpenAI's body of an embedding; an input may also be `{"image": "data:..."}`."""

    model: Annotated[str, StringConstraints(max_length=200)] = "vidqa"
    input: (
        Text
        | Annotated[list[Text | EmbeddingInput | int | list[Any]], Field(max_length=MAX_INPUTS)]
    )
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(None, ge=1)
    user: str | None = None

    @model_validator(mode="after")
    def _texts(self) -> EmbeddingRequest:
        given = self.input if isinstance(self.input, list) else [self.input]
        if any(isinstance(one, int | list) for one in given):
            raise UnsupportedParameter(
                "token numbers are another model's: send texts "
                "(LangChain: OpenAIEmbeddings(check_embedding_ctx_length=False))"
            )
        if not 1 <= len(given) <= MAX_INPUTS or not all(given):
            raise ValueError(f"input takes 1 to {MAX_INPUTS} texts that are not empty")
        return self

    def inputs(self) -> list[EmbeddingInput]:
        given = self.input if isinstance(self.input, list) else [self.input]
        return [
            one if isinstance(one, EmbeddingInput) else EmbeddingInput(text=str(one))
            for one in given
        ]
