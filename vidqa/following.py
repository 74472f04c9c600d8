"""The index of one library as this process holds it: it follows the store by its generation.

What came since is added, what went is filtered out, and when either is much the index is built
anew. A file that cannot be written (a read-only disk) only costs the next process time. Several
threads search at once; they wait only while new frames are taken in.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial, reduce
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vidqa import index as vector_index
from vidqa.errors import LibraryBusy
from vidqa.index import FrameIndex, IndexHeader
from vidqa.store import Changes, Extent, Store

if TYPE_CHECKING:
    from numpy.typing import NDArray

log = logging.getLogger(__name__)

# An index with more dead frames than this part of it is built anew.
DEAD_LIMIT = 0.2
# New frames that a search finds beyond the saved index, before it saves what it has.
UNSAVED_FRAMES, UNSAVED_PART = 5_000, 0.05


class FollowingIndex:
    """An index file and a store; whoever searches sees what the store's next read would see."""

    def __init__(self, path: Path, store: Store) -> None:
        self._path = path
        self._store = store
        # Held by the one thread that follows the store, and by every search before it begins; so
        # that searches cannot keep a thread out that waits for the gate.
        self._turn = threading.Lock()
        self._gate = _Gate()
        self._index: FrameIndex | None = None
        self._seen: tuple[int, ...] = ()
        # The ids that are still in the store, or None when all of the index are.
        self._alive: NDArray[np.int64] | None = None
        self._saved_frames = 0

    def search(
        self, vector: NDArray[np.float32], k: int, filters: Sequence[NDArray[np.int64]]
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The ids and cosines of the k nearest frames that every filter holds."""
        with self._followed() as index:
            alive = [] if self._alive is None else [self._alive]
            return index.search(vector, k, _intersection([*filters, *alive]))

    def cosines(
        self, vector: NDArray[np.float32], frame_ids: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """The cosine of each of these frames; NaN for one that has just come or gone."""
        with self._followed() as index:
            return index.cosines(vector, frame_ids)

    def save(self) -> None:
        """Writes the index, in line with the store, unless the file is that already."""
        with self._turn:
            index = self._follow()
            if vector_index.read_header(self._path) != index.header:
                self._write(index)

    @contextmanager
    def _followed(self) -> Iterator[FrameIndex]:
        """The index in line with the store; it does not change before the end of the `with`."""
        with self._turn:
            self._follow()
            self._gate.enter()
        try:
            assert self._index is not None
            yield self._index
        finally:
            self._gate.leave()

    def _follow(self) -> FrameIndex:
        signature = self._store.signature()
        if self._index is None:
            self._index = self._load(self._store.extent())
        if self._index is None:
            self._build()
        elif signature != self._seen:
            try:
                if not self._catch_up(self._index):
                    self._build()
            except LibraryBusy as error:
                log.warning("searching without the last changes: %s", error)
                return self._index
        # Taken before the store was read: what is committed meanwhile is seen next time.
        self._seen = signature
        assert self._index is not None
        return self._index

    def _load(self, extent: Extent) -> FrameIndex | None:
        header = vector_index.read_header(self._path)
        if header is None or not _continues(header, extent):
            return None
        index = vector_index.load(self._path)
        self._saved_frames = len(index) if index is not None else 0
        return index

    def _catch_up(self, index: FrameIndex) -> bool:
        """Adds what is new and notes what is gone; False when building anew is the better way."""
        changes = self._store.changes(index.header.next_frame_id)
        if not _continues(index.header, changes.extent):
            return False
        with self._gate.alone():
            if not self._take_in(index, changes):
                return False
        if len(index) - self._saved_frames > max(UNSAVED_FRAMES, UNSAVED_PART * len(index)):
            self._write(index)
        return True

    def _take_in(self, index: FrameIndex, changes: Changes) -> bool:
        if not index.extend(_header(changes.extent), changes.new_ids, changes.new_vectors):
            return False
        dead = len(index) - len(changes.alive_ids)
        if not 0 <= dead <= DEAD_LIMIT * len(index):
            return False
        self._alive = changes.alive_ids if dead else None
        return True

    def _build(self) -> None:
        changes = self._store.changes(0)
        index = FrameIndex.build(_header(changes.extent), changes.new_ids, changes.new_vectors)
        with self._gate.alone():
            self._index, self._alive = index, None
        self._write(index)

    def _write(self, index: FrameIndex) -> None:
        try:
            index.save(self._path)
            self._saved_frames = len(index)
        except OSError as error:
            log.warning("%s could not be written and is kept in memory: %s", self._path, error)


class _Gate:
    """Many are inside, or one is there alone; FAISS may be read by many, but not while it grows."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside = 0

    def enter(self) -> None:
        with self._changed:
            self._inside += 1

    def leave(self) -> None:
        with self._changed:
            self._inside -= 1
            self._changed.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: self._inside == 0)
            yield


def _header(extent: Extent) -> IndexHeader:
    return IndexHeader(extent.library_id, extent.generation, extent.next_frame_id)


def _continues(header: IndexHeader, extent: Extent) -> bool:
    """Whether a store is the one that an index was built from, then or later."""
    return header.library_id == extent.library_id and header.generation <= extent.generation


def _intersection(filters: Sequence[NDArray[np.int64]]) -> NDArray[np.int64] | None:
    if not filters:
        return None
    return reduce(partial(np.intersect1d, assume_unique=True), filters)
