"""One answer on its way, for routes and agents' tools alike: a question in, text and citations out.

    async with answering(gateway, pictures, question) as answer:
        answer.query, answer.moments          what is searched for, and what was found
        async for text in answer.pieces(): ...
        answer.result()                       the `Answer`, with its checked citations

Whoever leaves early, by an error or because the client has gone, ends the model's work and gives
the place in the queue back.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass

from vidqa.ask import AskOptions, Prepared, prepare
from vidqa.conversation import Turn, is_follow_up, joined, rewrite_messages, stand_alone
from vidqa.errors import EndpointError, NothingFound
from vidqa.server.errors import ApiError
from vidqa.server.gateway import Gateway, Shelf
from vidqa.server.pictures import Pictures
from vidqa.server.shapes import name_of
from vidqa.types import Answer, Moment, QuestionImage, Usage
from vidqa.vlm import AsyncVlmClient, Sampling, TokenCount

REWRITE = Sampling(max_tokens=96)
MILLISECONDS = 1000


@dataclass(frozen=True)
class Question:
    """What is asked: a conversation whose last turn is the question, of one library.

    `images` are addresses of pictures that belong to it. `adapter` names who answers.
    """

    turns: Sequence[Turn]
    shelf: Shelf
    options: AskOptions
    images: Sequence[str] = ()
    adapter: str | None = None


@asynccontextmanager
async def answering(
    gateway: Gateway, pictures: Pictures, question: Question
) -> AsyncIterator[Answering]:
    """Waits for a turn, finds the moments, and is then ready to write.

    Raises ApiError: 503 while the model is not ready, 429 when the queue is full, 404 for a video
    that is not there.
    """
    client = gateway.answerer.client()
    await _check_video(gateway, question)
    async with gateway.answers.turn() as waited_seconds:
        # Who is told to come again has cost nothing yet.
        images = [await pictures.of(url, question.shelf.embedder.spec) for url in question.images]
        answer = Answering(gateway, question, client, images)
        answer.milliseconds["queue"] = waited_seconds * MILLISECONDS
        await answer.find()
        yield answer


async def _check_video(gateway: Gateway, question: Question) -> None:
    options = question.options
    video_id = options.whole or (options.clip[0] if options.clip else None)
    if video_id and not await gateway.run(question.shelf.library.scenes, video_id):
        raise ApiError(404, f"no video {video_id} in {question.shelf.name}", code="video_not_found")


class Answering:
    """See the module's docstring; made by `answering`."""

    def __init__(
        self,
        gateway: Gateway,
        question: Question,
        client: AsyncVlmClient,
        images: Sequence[QuestionImage],
    ) -> None:
        self.query = " ".join(question.turns[-1].text.split())
        self.milliseconds: dict[str, float] = {}
        self.finish_reason = "stop"
        self._gateway = gateway
        self._question = question
        self._client = client
        self._images = images
        self._prepared: Prepared | None = None
        self._nothing = ""
        self._answer: Answer | None = None

    @property
    def moments(self) -> tuple[Moment, ...]:
        """The moments shown, in the order of their numbers."""
        shown = self._prepared.shown if self._prepared else ()
        return tuple(one.moment for one in shown)

    async def find(self) -> None:
        """The stand-alone question, its moments and their frames."""
        if is_follow_up(self._question.turns):
            self.query = await self._stand_alone()
        shelf = self._question.shelf
        try:
            self._prepared = await self._gateway.prepare(
                prepare,
                self.query,
                shelf.library,
                shelf.embedder,
                self._question.options,
                images=self._images,
            )
        except NothingFound as error:
            # That nothing fits is an answer, and an honest one.
            self._nothing = await self._gateway.run(self._told, str(error))

    async def _stand_alone(self) -> str:
        turns = self._question.turns
        if self._gateway.settings.follow_ups == "join":
            return joined(turns)
        started = time.perf_counter()
        reply = self._client.reply(rewrite_messages(turns), REWRITE)
        try:
            text = "".join([piece async for piece in reply])
        except EndpointError as error:
            raise self._gateway.answerer.lost(error) from error
        self.milliseconds["rewrite"] = (time.perf_counter() - started) * MILLISECONDS
        return stand_alone(text, turns)

    def _told(self, reason: str) -> str:
        """A sentence for who has no command line, without this machine's folders in it."""
        library = self._question.shelf.library
        reason = reason.replace("no moment fits name ", "no moment fits video ")
        reason = reason.replace(
            f"library at {library.folder} is empty; fill it: ",
            f"library {self._question.shelf.name} is empty; add videos to it on the page, or by ",
        )
        for row in library.videos() if "/" in reason else ():
            reason = reason.replace(row.video.path, name_of(row.video.path))
        reason = reason.replace(str(library.folder), self._question.shelf.name)
        first = reason.split(" ", 1)[0]  # the name of a file stays as it is
        return f"{reason[:1].upper() if first.isalpha() else reason[:1]}{reason[1:]}."

    async def pieces(self) -> AsyncGenerator[str, None]:
        """The text as it is written; ends when the answer does. Raises EndpointError."""
        if self._prepared is None:
            yield self._nothing
            self._answer = Answer(
                self.query, self._nothing, (), (), await self._client.model(), Usage(0, 0, 0)
            )
            return
        prepared = self._prepared
        writing = prepared.writing()
        adapter = self._question.adapter
        model = adapter or await self._client.model()
        there = self._gateway.answerer.adapter(adapter) if adapter else model
        reply = self._client.reply(prepared.messages(), prepared.options.sampling, model=there)
        started = time.perf_counter()
        try:
            # Closed here and now, not when somebody sweeps up: with the answer its place is free.
            async with aclosing(aiter(reply)) as written:
                async for piece in written:
                    self.milliseconds.setdefault(
                        "first_token", (time.perf_counter() - started) * MILLISECONDS
                    )
                    if text := writing.add(piece):
                        yield text
        except EndpointError as error:
            raise self._gateway.answerer.lost(error) from error
        if text := writing.end():
            yield text
        prepared.watch.milliseconds["model"] = (time.perf_counter() - started) * MILLISECONDS
        self.finish_reason = reply.finish_reason or "stop"
        self._finish(writing.answer(model, reply.usage), reply.usage)

    def _finish(self, answer: Answer, tokens: TokenCount) -> None:
        self._answer = answer
        self.milliseconds = answer.timings_ms | self.milliseconds
        self.milliseconds.pop("engine", None)  # the server's never waits for it
        self._gateway.metrics.stages(self.milliseconds)
        self._gateway.metrics.answered(
            prompt=tokens.prompt,
            completion=tokens.completion,
            cached=tokens.cached,
            frames=answer.usage.frames,
        )

    def result(self) -> Answer:
        """The whole answer, once `pieces` has ended."""
        assert self._answer is not None, "the answer is not written to its end"
        return self._answer
