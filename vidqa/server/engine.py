"""The model that answers, as the server sees it: starting, ready or failed, and started again.

    answerer = Answerer(lambda tell: endpoint(settings, tell))
    await answerer.start(); answerer.client(); await answerer.stop()

`client()` never waits: who asks too early is told to come again. In the background the endpoint is
looked at every few seconds, which also keeps our own engine from stopping for want of questions;
one that has died is started again. Ours is left running when the server ends, for the next command.

Without `watch` nothing happens until `wake()` is called, before a question: an agent's session may
be open for days, and our engine shall stop meanwhile and give its memory back.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import threading
from collections.abc import Callable, Mapping
from typing import TypeVar

from vidqa.errors import EndpointError, ModelError, VidqaError
from vidqa.server.errors import ApiError, without_folders
from vidqa.server.metrics import Metrics
from vidqa.vlm import AsyncVlmClient
from vidqa.wiring import Endpoint, OnStage

log = logging.getLogger(__name__)
T = TypeVar("T")

_ADDRESS = re.compile(r"https?://[^\s,;()'\"]*[^\s,;()'\".:]")

LOOK_SECONDS = 15.0
# After a failed start; a missing file may be put in place meanwhile.
RETRY_SECONDS = 30.0
STARTING_RETRY_SECONDS = 5.0


class Answerer:
    """Keeps an endpoint at hand. `connect` returns one that answers, however long that takes.

    It is looked at every `look_seconds`, and tried again `retry_seconds` after it failed; without
    `watch` it sleeps until it is woken. `on_change` hears state and detail. `has_changed` says
    whether an adapter was trained again since it last did: then `connect` is called once more.
    """

    def __init__(
        self,
        connect: Callable[[OnStage], Endpoint],
        metrics: Metrics,
        *,
        watch: bool = True,
        on_change: Callable[[str, str], None] = lambda state, detail: None,
        has_changed: Callable[[], bool] = lambda: False,
        look_seconds: float = LOOK_SECONDS,
        retry_seconds: float = RETRY_SECONDS,
    ) -> None:
        self._look_seconds = look_seconds
        self._retry_seconds = retry_seconds
        self.state = "starting"
        self.detail = "starting"  # as clients are told it
        self._said = (self.state, self.detail)
        self._on_change = on_change
        self._has_changed = has_changed
        self._connect = connect
        self._metrics = metrics
        self._watch = watch
        self._client: AsyncVlmClient | None = None
        self._where: Endpoint | None = None
        self._adapters: Mapping[str, str] = {}
        self._is_behind = False  # an adapter that it serves is another one, or not there
        self._task: asyncio.Task[None] | None = None
        self._look = asyncio.Event()

    async def start(self) -> None:
        self._task = asyncio.create_task(self._keep(), name="answerer")

    async def wake(self) -> None:
        """Has the endpoint made ready where nobody watches it; `state` tells when it is."""
        if self._watch:
            return
        if self._task is None:
            await self.start()
        elif self.state == "failed" or (self.state == "ready" and not await self._answers()):
            self._become("starting", "starting")
            self._look.set()

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        if self._client is not None:
            await self._client.close()

    def client(self) -> AsyncVlmClient:
        """The client of the endpoint. Raises ApiError 503 while there is none."""
        if self._client is None or self.state != "ready":
            raise self._not_ready()
        return self._client

    def adapter(self, name: str) -> str:
        """What an adapter is called at the endpoint."""
        return self._adapters.get(name, name)

    def lost(self, error: EndpointError) -> Exception:
        """An answer failed: the endpoint is looked at now. Returns what its client is told."""
        self._look.set()
        if not error.unreachable:
            assert self._client is not None, "an answer had a client"
            # Where the engine listens is nobody's business.
            text = str(error).replace(self._client.base_url, "the model")
            return EndpointError(text, refused=error.refused)
        self._become("starting", "it is gone, and reached for again")
        return self._not_ready()

    def _not_ready(self) -> ApiError:
        failed = self.state == "failed"
        return ApiError(
            503,
            f"the model does not answer yet: {self.detail}",
            code="engine_failed" if failed else "engine_starting",
            retry_after_seconds=self._retry_seconds if failed else STARTING_RETRY_SECONDS,
        )

    async def _keep(self) -> None:
        while True:
            try:
                await self._reach()
                await self._stay()
            except VidqaError as error:
                self._become("failed", str(error).split("\n", 1)[0])
                log.warning("%s", error)
                await self._pause(self._retry_seconds)
            except Exception as error:  # whatever it is, it must not end the watch
                self._become("failed", f"{type(error).__name__}: {error}")
                log.exception("the engine could not be started")
                await self._pause(self._retry_seconds)

    async def _reach(self) -> None:
        self._become("starting", "starting")
        loop = asyncio.get_running_loop()

        def tell(stage: str) -> None:
            loop.call_soon_threadsafe(self._become, "starting", stage)

        where = await in_daemon(lambda: self._connect(tell))
        client = AsyncVlmClient(where.base_url, where.api_key, where.model)
        try:
            await client.models()
            name = await client.model()
        except BaseException:
            await client.close()
            raise
        self._client, old = client, self._client
        self._where, self._adapters = where, where.adapters
        if old is not None:
            await old.close()
        self._become("ready", f"{name} at {client.base_url}")

    async def _stay(self) -> None:
        """Returns when the endpoint no longer answers."""
        _, ready = self._said
        while True:
            await self._pause(self._look_seconds)
            if not await self._answers():
                return
            changed = self._has_changed()
            if (changed or self._is_behind) and not await self._renewed():
                return
            self._become("ready", ready)

    async def _renewed(self) -> bool:
        """Has adapters that were trained again loaded beside those before, which answer meanwhile.

        False when they are elsewhere now: an engine took the place of the one there was.
        """
        try:
            where = await in_daemon(lambda: self._connect(lambda stage: None))
        except VidqaError as error:
            # Half written, maybe: what is loaded goes on, and the next change is looked at again.
            # What does not lie with the adapter passes: the engine was busy, or is being replaced.
            self._is_behind = not isinstance(error, ModelError)
            log.warning("the adapters stay as they were: %s", error)
            return True
        self._is_behind = False
        assert self._where is not None
        if (where.base_url, where.api_key) != (self._where.base_url, self._where.api_key):
            return False
        self._adapters = where.adapters
        return True

    async def _answers(self) -> bool:
        assert self._client is not None
        try:
            there = await self._client.models()
        except EndpointError as error:
            log.warning("the engine is gone: %s", error)
            return False
        # Somebody may have unloaded an adapter that is served here.
        self._is_behind = self._is_behind or not {*self._adapters.values()} <= {*there}
        return True

    async def _pause(self, seconds: float) -> None:
        """So long, or until it is lost or woken."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._look.wait(), seconds if self._watch else None)
        self._look.clear()

    def _become(self, state: str, detail: str) -> None:
        if (state, detail) != self._said:
            self._on_change(state, detail)
        self._said = state, detail
        # Where the engine listens, and where its files are, is nobody's business.
        self.state = state
        self.detail = without_folders(_ADDRESS.sub("the endpoint", detail))
        self._metrics.engine(state)


async def in_daemon(work: Callable[[], T]) -> T:
    """Blocking work that may take minutes, in a thread that does not hold up the process's end."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if done.done():  # cancelled meanwhile
            return
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(result)  # type: ignore[arg-type]

    def run() -> None:
        result, problem = None, None
        try:
            result = work()
        except BaseException as error:
            problem = error
        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(settle, result, problem)

    threading.Thread(target=run, name="connect", daemon=True).start()
    return await done
