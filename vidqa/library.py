"""One folder that holds a library: the store, the index, the pictures, and their agreement.

    manifest.json      says that the folder is a library, and in which layout
    store.duckdb       the truth (vidqa.store, docs/schema.md)
    index.faiss        a cache of its vectors (vidqa.index); built again when missing or damaged
    frames/*.jpegs     the kept pictures of each video, end to end; a cache as well

    library = Library.open(folder, embedder.spec, create=True)
    with library.draft() as draft:
        draft.append(seconds, vectors, jpegs)          # as often as needed, in any order of time
        draft.commit(video, scenes, texts, recipe)     # the video is there, or nothing of it is
    library.tidy()                                     # after the last one

Pictures are written and renamed before their rows are committed, so a row never names pictures
that are not there; what a killed process left behind is swept away later. The index follows the
store by its generation. This module decodes, embeds and prints nothing.
"""

from __future__ import annotations

import functools
import json
import os
import secrets
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vidqa import picture_files
from vidqa.errors import LibraryError, UsageError
from vidqa.following import FollowingIndex
from vidqa.picture_files import PictureWriter
from vidqa.store import Failure, FrameRows, SceneKey, Store, VideoRow, check_embedder
from vidqa.types import (
    EmbedderSpec,
    Filters,
    FrameBatch,
    FrameHit,
    Moment,
    Picture,
    Scene,
    TextSpan,
    Video,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

MANIFEST, STORE, INDEX, PICTURES = "manifest.json", "store.duckdb", "index.faiss", "frames"
LAYOUT = 1

# About 700 hours of video at one 25 KB picture a second is 60 GB; beyond, the videos ingested
# first lose their pictures, which one decode of the file can make again.
PICTURES_LIMIT_BYTES = 60 * 10**9

PicturesAt = Callable[[str, Sequence[float]], list[Picture]]
"""Decodes the pictures at some times of a file: `vidqa.frames.pictures_at`."""

Relevance = tuple["NDArray[np.float64]", "NDArray[np.float32]"]
"""Times in a video in seconds, rising, and the cosine of the frame at each to a query."""


class Library:
    """A library that is open; it holds no connection, so it never needs closing.

    Methods may be called from several threads, and several processes may use one folder.
    """

    def __init__(
        self,
        folder: Path,
        spec: EmbedderSpec,
        pictures_at: PicturesAt | None,
        *,
        follow: bool = False,
    ) -> None:
        self.folder = folder
        self.spec = spec
        self._pictures_at = pictures_at
        self._store = Store(folder / STORE, follow=follow)
        self._index = FollowingIndex(folder / INDEX, self._store)

    @classmethod
    def open(
        cls,
        folder: Path,
        spec: EmbedderSpec | None = None,
        *,
        create: bool = False,
        pictures_at: PicturesAt | None = None,
        follow: bool = False,
    ) -> Library:
        """Opens the library in `folder`, or makes one there with `create`.

        With `spec`, raises EmbedderMismatch unless the library was made with that embedder.
        `pictures_at` makes pictures that are no longer kept. `follow` is for a process that lives
        long: it reads from a copy in memory that follows every commit (vidqa.store). Raises
        LibraryError when there is no library, when the folder belongs to something else, or when
        it is damaged.
        """
        store = Store(folder / STORE)
        if create and spec is not None:
            _make_folder(folder)
            store.create(spec)
        elif not _is_library(folder) or not store.path.exists():
            raise LibraryError(f"no library at {folder}; make one: vidqa ingest PATH --index DIR")
        stored = store.open()
        if spec is not None:
            check_embedder(stored, spec, folder)
        return cls(folder, stored, pictures_at, follow=follow)

    @property
    def generation(self) -> int:
        """Rises with every change of the store, by whichever process."""
        return self._store.extent().generation

    # ------------------------------------------------------------ writing

    def draft(self) -> Draft:
        """A video on its way in; nothing of it is in the library before its `commit`."""
        return Draft(self.folder / PICTURES, self._store)

    def add(
        self,
        video: Video,
        scenes: Sequence[Scene],
        frames: FrameBatch,
        vectors: NDArray[np.float32],
        texts: Sequence[TextSpan],
        recipe: str,
    ) -> None:
        """Commits one video at once, in place of what its path or its content stood for.

        `vectors` is float32 (N, D), L2-normalised, one for each frame. `recipe` names the way of
        sampling; `is_current` compares it.
        """
        with self.draft() as draft:
            draft.append(frames.seconds, vectors, frames.jpegs)
            draft.commit(video, scenes, texts, recipe)

    def link(self, video: Video) -> None:
        """The file `video.path` has content that is stored: a copy, or the same file touched."""
        self._store.link(video)

    def move(self, video: Video, old_path: str) -> None:
        """The file that was `old_path` is now `video.path`."""
        self._store.move(video, old_path)

    def remove(self, video_id: str) -> None:
        """Takes a video out, with all its paths; its files are not touched."""
        self._store.remove(video_id)
        self._sweep()

    def record_failure(self, path: str, error: str) -> None:
        """Notes why a file could not be ingested; forgotten once it is."""
        self._store.record_failure(path, error)

    def forget_failure(self, path: str) -> None:
        """The file is of no interest any more."""
        self._store.forget_failure(path)

    def tidy(self) -> None:
        """After a run of changes: saves the index, and sweeps pictures that nobody names."""
        files = self._store.pictures_files()
        gone = picture_files.beyond_limit(self.folder / PICTURES, files, PICTURES_LIMIT_BYTES)
        if gone:
            self._store.forget_pictures(gone)
        self._sweep()
        self._index.save()

    def _sweep(self) -> None:
        kept = self._store.pictures_files
        picture_files.sweep(self.folder / PICTURES, lambda: set(kept().values()))

    # ------------------------------------------------------------ reading

    def find(self, fingerprint: str) -> Video | None:
        """The stored video with this content, under the first of its paths."""
        return self._store.find(fingerprint)

    def find_path(self, path: str) -> Video | None:
        """The stored video that this path named when it was last seen."""
        return self._store.find_path(path)

    def is_current(self, video: Video, recipe: str) -> bool:
        """Whether this content is stored, sampled by this recipe. What is stored is whole."""
        return self._store.recipe(video.video_id) == recipe

    def paths(self, video_id: str) -> list[str]:
        """The paths of a video, the first one first; none when it is not in the library."""
        return self._store.paths(video_id)

    def videos(self) -> list[VideoRow]:
        return self._store.videos()

    def failures(self) -> list[Failure]:
        return self._store.failures()

    def scenes(self, video_id: str) -> list[Scene]:
        return self._store.scenes(video_id)

    def texts(self, video_id: str, start_seconds: float, end_seconds: float) -> list[TextSpan]:
        """The words that overlap `[start_seconds, end_seconds)`, in order of time."""
        return self._store.texts(video_id, start_seconds, end_seconds)

    def frame_seconds(self, video_id: str, start_seconds: float, end_seconds: float) -> list[float]:
        """The times of the sampled frames in `[start_seconds, end_seconds)`, rising."""
        return self._store.frame_seconds(video_id, start_seconds, end_seconds)

    def pictures(self, video_id: str, seconds: Sequence[float]) -> list[Picture]:
        """The sampled frame nearest to each time, as it was kept, with its own time.

        Where the kept pictures are gone, the file is decoded once. Raises LibraryError when the
        file is gone too.
        """
        name, rows = self._store.picture_rows(video_id)
        if name is not None and rows:
            times = [row.seconds for row in rows]
            chosen = [rows[_nearest(times, at)] for at in seconds]
            spans = [(row.offset, row.size_bytes) for row in chosen]
            jpegs = picture_files.read(self.folder / PICTURES / name, spans)
            if jpegs is not None:
                return [Picture(row.seconds, jpeg) for row, jpeg in zip(chosen, jpegs, strict=True)]
        return self._decoded(video_id, seconds)

    def _decoded(self, video_id: str, seconds: Sequence[float]) -> list[Picture]:
        paths = self._store.paths(video_id)
        if not paths:
            raise LibraryError(f"{self.folder} holds no video {video_id}; list them: vidqa ls")
        for path in paths:
            if self._pictures_at is not None and os.path.exists(path):
                return self._pictures_at(path, seconds)
        raise LibraryError(
            f"{paths[0]}: its kept pictures are gone and the file is not there; bring the file "
            "back, or ingest it from where it is now"
        )

    # ------------------------------------------------------------ searching

    def scene_keys(
        self, filters: Filters | None = None, where: str | None = None
    ) -> list[SceneKey]:
        """The scenes that have frames and fit, by video id and number; as in `search`."""
        allowed = self._allowed(filters, where)
        if not allowed:
            return self._store.scene_keys()
        return self._store.scene_keys(functools.reduce(np.intersect1d, allowed))

    def moments(self, scores: Mapping[SceneKey, float]) -> list[Moment]:
        """Scenes, by video id and number, as moments with their scores, frames and texts.

        Best first; equal scores by path, then by time.
        """
        return self._store.moments(scores)

    def search(
        self,
        vector: NDArray[np.float32],
        k: int,
        *,
        filters: Filters | None = None,
        where: str | None = None,
    ) -> list[FrameHit]:
        """The k frames nearest to a query, best first: fewer only when no more fit.

        `vector` is float32 (D,), L2-normalised. `where` is an SQL expression over the view
        `moments` (docs/schema.md); a frame is found when its scene fits both it and `filters`.
        """
        self._check(vector)
        if k < 1:
            raise UsageError(f"k is {k}; at least 1 is needed")
        ids, scores = self._index.search(vector, k, self._allowed(filters, where))
        by_id = {row.frame_id: row for row in self._store.frames(ids.tolist())}
        return [
            FrameHit(row.video_id, row.scene_index, row.seconds, float(score))
            for frame_id, score in zip(ids.tolist(), scores, strict=True)
            # A frame may have gone since the index was brought in line.
            if (row := by_id.get(frame_id)) is not None
        ]

    def _allowed(self, filters: Filters | None, where: str | None) -> list[NDArray[np.int64]]:
        """Ids of the frames that fit each of what is given, rising."""
        allowed = []
        if filters is not None and filters != Filters():
            allowed.append(self._store.frames_that_fit(filters))
        if where is not None:
            allowed.append(self._store.frames_where(where))
        return allowed

    def relevance(
        self, vector: NDArray[np.float32], video_ids: Sequence[str], *, max_points: int = 200
    ) -> dict[str, Relevance]:
        """How well every sampled frame of these videos fits a query, in order of time.

        Exact cosines, whatever the size of the library. Of a video with more than `max_points`
        frames, the best frame of each of that many stretches with equally many frames is kept.
        Videos that are not in the library are left out. `vector` is float32 (D,), L2-normalised.
        """
        self._check(vector)
        if max_points < 1:
            raise UsageError(f"max_points is {max_points}; at least 1 is needed")
        wanted = list(dict.fromkeys(video_ids))
        frames = self._store.frames_of_videos(wanted)
        scores = self._index.cosines(vector, frames.frame_id)
        curves = {}
        for place, video_id in enumerate(wanted):
            start, end = np.searchsorted(frames.video, [place, place + 1])
            held = start + np.flatnonzero(~np.isnan(scores[start:end]))
            kept = held[_peaks(scores[held], max_points)]
            if len(kept):
                curves[video_id] = frames.seconds[kept], scores[kept]
        return curves

    def _check(self, vector: NDArray[np.float32]) -> None:
        if vector.shape != (self.spec.dimension,):
            raise ValueError(f"a query of shape {vector.shape}; ({self.spec.dimension},) is needed")


class Draft:
    """One video on its way into a library: pictures go to a file at once, the rest is held.

    A context manager; leaving it without `commit` leaves nothing behind.
    """

    def __init__(self, folder: Path, store: Store) -> None:
        self._writer = PictureWriter(folder)
        self._store = store
        self._seconds: list[NDArray[np.float64]] = []
        self._vectors: list[NDArray[np.float32]] = []
        self._offsets: list[int] = []
        self._sizes: list[int] = []

    def __enter__(self) -> Draft:
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.close()

    def append(
        self,
        seconds: NDArray[np.float64],
        vectors: NDArray[np.float32],
        jpegs: Sequence[bytes] = (),
    ) -> None:
        """Takes N frames: times (N,), vectors (N, D), and N JPEGs or none; in any order of time."""
        if len(vectors) != len(seconds) or len(jpegs) not in (0, len(seconds)):
            raise ValueError(
                f"{len(seconds)} times, {len(vectors)} vectors and {len(jpegs)} pictures"
            )
        offsets, sizes = self._writer.append(jpegs)
        self._offsets += offsets
        self._sizes += sizes
        self._seconds.append(np.asarray(seconds, np.float64))
        self._vectors.append(np.asarray(vectors, np.float32))

    def commit(
        self, video: Video, scenes: Sequence[Scene], texts: Sequence[TextSpan], recipe: str
    ) -> None:
        """Makes the video part of the library, in place of what its path or content stood for.

        A frame belongs to the scene that holds its time.
        """
        if not self._seconds or not scenes:
            raise ValueError(f"{video.path}: a video without frames or scenes cannot be stored")
        name = f"{video.video_id}-{secrets.token_hex(4)}.jpegs" if self._sizes else None
        if name is not None:
            self._writer.keep(name)
        self._store.add(video, scenes, self._rows(scenes), texts, recipe=recipe, pictures_file=name)

    def _rows(self, scenes: Sequence[Scene]) -> FrameRows:
        seconds = np.concatenate(self._seconds)
        order = np.argsort(seconds, kind="stable")
        starts = [scene.start_seconds for scene in scenes[1:]]
        places = np.searchsorted(starts, seconds[order], side="right")
        indexes = np.array([scene.index for scene in scenes], np.int32)
        kept = len(self._sizes) > 0
        return FrameRows(
            seconds=seconds[order],
            scene_index=indexes[places],
            vectors=np.concatenate(self._vectors)[order],
            picture_offset=np.array(self._offsets, np.int64)[order] if kept else None,
            picture_bytes=np.array(self._sizes, np.int64)[order] if kept else None,
        )


def _peaks(scores: NDArray[np.float32], max_points: int) -> NDArray[np.int64]:
    """Where the best score of each of `max_points` equal stretches lies; everywhere, if few."""
    edges = np.linspace(0, len(scores), min(max_points, len(scores)) + 1).astype(np.int64)
    peaks = [start + np.argmax(scores[start:end]) for start, end in pairwise(edges)]
    return np.array(peaks, np.int64)


def _nearest(times: Sequence[float], at: float) -> int:
    """The place of the time nearest to `at`, in rising times."""
    right = min(bisect_left(times, at), len(times) - 1)
    left = max(right - 1, 0)
    return left if at - times[left] <= times[right] - at else right


def _is_library(folder: Path) -> bool:
    """Whether the manifest says so. Raises LibraryError for a layout of a later vidqa."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text("utf-8"))
        layout = manifest["vidqa_library"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    if layout != LAYOUT:
        raise LibraryError(
            f"{folder} has layout {layout}, this vidqa knows layout {LAYOUT}; update vidqa"
        )
    return True


def _make_folder(folder: Path) -> None:
    """Makes the folder and its manifest; refuses a folder that holds other things."""
    if _is_library(folder):
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        strangers = [path.name for path in folder.iterdir() if not path.name.startswith(MANIFEST)]
        if strangers:
            raise LibraryError(
                f"{folder} is not a library and holds other files ({min(strangers)}, ...); "
                "name a new or empty folder with --index"
            )
        temporary = folder / f"{MANIFEST}.{os.getpid()}"
        temporary.write_text(json.dumps({"vidqa_library": LAYOUT}) + "\n", "utf-8")
        temporary.replace(folder / MANIFEST)
    except OSError as error:
        raise LibraryError(f"{folder} cannot be made a library: {error.strerror}") from error
