"""So many at once, so many waiting, the rest is told to come again.

async with queue.turn() as waited_seconds: ...
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from vidqa.server.errors import ApiError

RETRY_SECONDS = 5.0


class Queue:
    """`what` are those in it, for the error. `on_count` hears how many wait and are at work."""

    def __init__(
        self,
        what: str,
        at_once: int,
        waiting: int,
        on_count: Callable[[int, int], None] = lambda waiting, working: None,
    ) -> None:
        self._what = what
        self._places = asyncio.Semaphore(at_once)
        self._limit = at_once + waiting
        self._on_count = on_count
        self.waiting = self.working = 0

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[float]:
        """A place among those at work; gives the seconds it was waited for. Raises ApiError 429."""
        if self.waiting + self.working >= self._limit:
            raise ApiError(
                429,
                f"{self.working} {self._what} are at work and {self.waiting} wait; "
                "try again in a moment",
                code="queue_full",
                retry_after_seconds=RETRY_SECONDS,
            )
        started = time.perf_counter()
        self._count(waiting=1)
        try:
            await self._places.acquire()
        finally:
            self._count(waiting=-1)
        self._count(working=1)
        try:
            yield time.perf_counter() - started
        finally:
            self._places.release()
            self._count(working=-1)

    def _count(self, waiting: int = 0, working: int = 0) -> None:
        self.waiting += waiting
        self.working += working
        self._on_count(self.waiting, self.working)
