"""What all routes share: the libraries, the model that answers, the queue, the figures.

    gateway.shelf("holidays")            a library with its embedder
    await gateway.run(work, ...)         blocking work in one of a few threads
    async with gateway.answers.turn(): ...    a place among those who are answered
    gateway.models()                     "vidqa", "vidqa:holidays", adapters

Routes and agents' tools hold one of these; none of them knows how the others are reached.
"""

from __future__ import annotations

import asyncio
import functools
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from vidqa.config import Settings
from vidqa.server.engine import Answerer
from vidqa.server.errors import ApiError
from vidqa.server.metrics import Metrics
from vidqa.server.queues import Queue
from vidqa.wiring import as_trained, with_look

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from vidqa.embed import Embedder
    from vidqa.library import Library
    from vidqa.types import EmbedderSpec

P = ParamSpec("P")
T = TypeVar("T")

BASE_MODEL = "vidqa"
# Searching is numpy, FAISS and DuckDB, which let go of the interpreter; more threads gain nothing.
THREADS = 8
# Each is a process that decodes and encodes on one core, and leaves up to minutes of video on disk.
CLIPS_AT_ONCE, CLIPS_WAITING = 2, 32
# Dozens of questions that come at once must not keep a search waiting that somebody types.
PREPARING = 2
# Queries as one types: each is a vector of some kilobytes.
CACHED_QUERIES = 2048
CACHED_CHARACTERS = 500


@dataclass(frozen=True)
class Shelf:
    """One library under the name that clients call it by."""

    name: str
    library: Library
    embedder: Embedder


@dataclass(frozen=True)
class Model:
    """What a model's name stands for: a library, and who answers (None: the base model)."""

    name: str
    library: str
    adapter: str | None


class Gateway:
    """`shelves` in the order in which they were given; the first is meant when none is named.

    `adapters` are names of adapters, each with how it wants to be shown videos.
    """

    def __init__(
        self,
        settings: Settings,
        shelves: Sequence[Shelf],
        answerer: Answerer,
        metrics: Metrics,
        adapters: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        self.settings = as_trained(settings)
        self._settings = {
            name: with_look(self.settings, look) for name, look in (adapters or {}).items()
        }
        self.answerer = answerer
        self.metrics = metrics
        self.started = int(time.time())
        self.shelves: Mapping[str, Shelf] = {one.name: one for one in shelves}
        self.adapters = tuple(self._settings)
        # A thread whose work nobody waits for any more is still one of these: clients that come
        # and go in a hurry start no more than so many.
        self._threads = ThreadPoolExecutor(THREADS, "work")
        self._preparing = ThreadPoolExecutor(PREPARING, "prepare")
        self.answers = Queue("questions", settings.max_answers, settings.max_queue, metrics.queue)
        self.searches = Queue("searches", THREADS, settings.max_queue)
        self.clips = Queue("clips", CLIPS_AT_ONCE, CLIPS_WAITING)

    @property
    def first(self) -> str:
        return next(iter(self.shelves))

    def shelf(self, name: str | None) -> Shelf:
        """The library of that name, or the first. Raises ApiError 404."""
        if name is None:
            return self.shelves[self.first]
        if name not in self.shelves:
            raise ApiError(
                404,
                f"no library {name!r} here; there are {', '.join(self.shelves)}",
                code="library_not_found",
            )
        return self.shelves[name]

    def settings_of(self, adapter: str | None) -> Settings:
        """The settings with which an adapter answers; None is the base model."""
        return self.settings if adapter is None else self._settings[adapter]

    def models(self) -> list[Model]:
        """Every name that may be asked: each library with the base model and with each adapter."""
        return [
            Model(answerer if library == self.first else f"{answerer}:{library}", library, adapter)
            for answerer, adapter in ((BASE_MODEL, None), *((one, one) for one in self.adapters))
            for library in self.shelves
        ]

    def model(self, name: str) -> Model:
        """What a name stands for; the first library may be named as well. Raises ApiError 404."""
        answerer, _, library = name.partition(":")
        for one in self.models():
            is_answerer = answerer == (one.adapter or BASE_MODEL)
            if is_answerer and one.library == (library or self.first):
                return one
        raise ApiError(
            404,
            f"The model `{name}` does not exist; there are "
            f"{', '.join(one.name for one in self.models())}",
            code="model_not_found",
            param="model",
        )

    def check_images(self, addresses: Sequence[str]) -> None:
        """Raises ApiError 422 for more pictures in one request than are allowed."""
        allowed = self.settings.max_images
        if len(addresses) > allowed:
            raise ApiError(422, f"{len(addresses)} pictures; {allowed} are allowed")

    async def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Blocking work in a thread; it goes on when nobody waits any more, but not for long."""
        call = functools.partial(work, *args, **kwargs)
        return await asyncio.get_running_loop().run_in_executor(self._threads, call)

    async def prepare(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """As `run`, for what comes before an answer: it waits for the model anyway."""
        call = functools.partial(work, *args, **kwargs)
        return await asyncio.get_running_loop().run_in_executor(self._preparing, call)


class CachingEmbedder:
    """An embedder that remembers the vectors of the last queries: a page searches as one types."""

    def __init__(self, embedder: Embedder, metrics: Metrics) -> None:
        self.spec: EmbedderSpec = embedder.spec
        self._embedder = embedder
        self._metrics = metrics
        self._turn = threading.Lock()
        self._vectors: OrderedDict[str, NDArray[np.float32]] = OrderedDict()

    def embed_images(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        return self._embedder.embed_images(images)

    def embed_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """As the embedder does; single texts, which is what searches ask for, are remembered.

        Long ones are not: nobody types them, and they are the larger part of what is kept.
        """
        if len(texts) != 1 or len(texts[0]) > CACHED_CHARACTERS:
            return self._embedder.embed_texts(texts)
        with self._turn:
            vector = self._vectors.get(texts[0])
            if vector is not None:
                self._vectors.move_to_end(texts[0])
        self._metrics.cache(hit=vector is not None)
        if vector is None:
            vector = self._embedder.embed_texts(texts)
            with self._turn:
                self._vectors[texts[0]] = vector
                if len(self._vectors) > CACHED_QUERIES:
                    self._vectors.popitem(last=False)
        return vector


def open_shelf(
    settings: Settings, name: str, folder: Path, metrics: Metrics, *, create: bool = True
) -> Shelf:
    """A library to serve; an empty one is made where there is none, to be filled by uploads.

    Without `create` that is a LibraryError.
    """
    from dataclasses import replace

    from vidqa.wiring import open_library

    library, embedder = open_library(
        replace(settings, index=folder), create=create, on_demand=True, follow=True
    )
    return Shelf(name, library, CachingEmbedder(embedder, metrics))
