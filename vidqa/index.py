"""The vector index: a FAISS cache of the store's vectors that can be lost at any time.

    FrameIndex.build(...)  .search(vector, k, allowed)  .extend(...)  .save(path)  load(path)

Up to `EXACT_LIMIT` frames every vector is compared (float16, which moves a cosine by about 1e-5).
Beyond, an inverted file of RaBitQ codes (Gao and Long 2024, arXiv 2405.12497; one bit a dimension)
proposes candidates, and the float16 vectors rank them. Frame ids of the store rise and are never
used twice, so the index keeps them as one rising array beside FAISS's own positions.

The file holds a header, then FAISS's bytes. A damaged file is a risk to memory safety in
`faiss.read_index` (faiss #5400, #5485), so the checksum in the header is compared first, and
whoever loads gets None for anything but a whole file. This module knows nothing of DuckDB.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

log = logging.getLogger(__name__)

# Comparing 500,000 vectors of 512 dimensions takes 35 ms on one AVX2 core (docs/benchmarks.md):
# not felt, and exact. That is 139 hours of video at one frame a second.
EXACT_LIMIT = 500_000
# Frames per cell of the inverted file, of which a query visits the nearest 1 in 16.
CELL_FRAMES = 1_000
PROBED_PART = 1 / 16
# Candidates that the one-bit codes propose for each result wanted, and at least. With 1,000, the
# ten best were found for every query near the data; with 200, for 0.88 of those that lie as far
# from it as text does. Visiting more cells gained nothing (docs/benchmarks.md).
CANDIDATES_PER_RESULT = 20
CANDIDATES_MIN = 1_000
# Bits to which a query is rounded; 0 would mean none, and forty times the time.
QUERY_BITS = 8
# Under this many allowed frames, comparing them all is cheaper than visiting cells in vain.
ALLOWED_EXACT_LIMIT = 50_000
# New frames join the cells that exist until the index has doubled since the cells were made.
GROWTH_LIMIT = 2.0


def _faiss() -> Any:
    """FAISS, loaded when it is first used; its type stubs lack half of what it has."""
    import faiss

    return faiss


_MAGIC = b"vidqa frame index 1\n"
_HEADER_BYTES = 512
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class IndexHeader:
    """What an index was built from: a store, and the generation that the store had reached."""

    library_id: str
    generation: int
    next_frame_id: int


class FrameIndex:
    """Vectors of frames, searchable; `frame_ids` is int64 (N,), rising."""

    def __init__(
        self,
        header: IndexHeader,
        frame_ids: NDArray[np.int64],
        exact: Any,
        cells: Any | None,
        trained_frames: int,
    ) -> None:
        self.header = header
        self.frame_ids = frame_ids
        self._exact = exact
        self._cells = cells
        self._trained_frames = trained_frames

    def __len__(self) -> int:
        return len(self.frame_ids)

    @classmethod
    def build(
        cls,
        header: IndexHeader,
        frame_ids: NDArray[np.int64],
        vectors: NDArray[np.float32],
    ) -> FrameIndex:
        """Builds from ids (N,), rising, and L2-normalised vectors (N, D)."""
        count, dimension = vectors.shape
        exact = _new_exact(dimension)
        exact.add(vectors)
        cells = _new_cells(vectors) if count > EXACT_LIMIT else None
        return cls(header, frame_ids, exact, cells, count)

    def extend(
        self,
        header: IndexHeader,
        frame_ids: NDArray[np.int64],
        vectors: NDArray[np.float32],
    ) -> bool:
        """Takes in later frames; False, and nothing done, when it should be built anew instead."""
        limit = EXACT_LIMIT if self._cells is None else GROWTH_LIMIT * self._trained_frames
        if len(self) + len(frame_ids) > limit:
            return False
        self._exact.add(vectors)
        if self._cells is not None:
            self._cells.add(vectors)
        self.frame_ids = np.concatenate([self.frame_ids, frame_ids])
        self.header = header
        return True

    # ------------------------------------------------------------ searching

    def search(
        self,
        vector: NDArray[np.float32],
        k: int,
        allowed: NDArray[np.int64] | None = None,
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The ids and cosines of the k nearest frames, best first; ties by id.

        With `allowed` (rising frame ids), of those frames only. Fewer than k come back only when
        there are fewer. `vector` is float32 (D,), L2-normalised.
        """
        positions = None if allowed is None else self._positions(allowed)
        available = len(self) if positions is None else len(positions)
        k = min(k, available)
        if k == 0:
            return np.empty(0, np.int64), np.empty(0, np.float32)
        query = np.ascontiguousarray(vector, np.float32)[None]
        if self._cells is None or (positions is not None and available <= ALLOWED_EXACT_LIMIT):
            return self._ranked(*self._compare_all(query, k, positions))
        found, scores = self._compare_cells(query, k, positions)
        if len(found) < k:
            found, scores = self._compare_all(query, k, positions)
        return self._ranked(found, scores)

    def cosines(
        self, vector: NDArray[np.float32], frame_ids: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """The cosine of each of these frames, in their order; NaN where the index holds none.

        All of them are compared, however large the index is: a search for as many of them would
        visit cells first, and candidates of one-bit codes.
        """
        cosines = np.full(len(self) + 1, np.nan, np.float32)
        places = np.searchsorted(self.frame_ids, frame_ids)
        held = np.append(self.frame_ids, -1)[places] == frame_ids
        if held.any():
            query = np.ascontiguousarray(vector, np.float32)[None]
            found, scores = self._compare_all(query, len(np.unique(places[held])), places[held])
            cosines[found] = scores
        return np.asarray(cosines[np.where(held, places, -1)], np.float32)

    def _positions(self, allowed: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where the allowed frames lie; ids that this index does not hold are passed over."""
        if not len(self):
            return np.empty(0, np.int64)
        places = np.searchsorted(self.frame_ids, allowed)
        places = np.minimum(places, len(self) - 1)
        return np.asarray(places[self.frame_ids[places] == allowed], np.int64)

    def _compare_all(
        self, query: NDArray[np.float32], k: int, positions: NDArray[np.int64] | None
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        faiss = _faiss()
        options = faiss.SearchParameters(sel=_selector(positions, len(self)))
        scores, found = self._exact.search(query, k, params=options)
        return found[0], scores[0]

    def _compare_cells(
        self, query: NDArray[np.float32], k: int, positions: NDArray[np.int64] | None
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        faiss = _faiss()
        assert self._cells is not None
        options = faiss.IVFRaBitQSearchParameters(
            sel=_selector(positions, len(self)),
            nprobe=max(8, round(self._cells.nlist * PROBED_PART)),
            qb=QUERY_BITS,
        )
        wanted = min(len(self), max(CANDIDATES_MIN, k * CANDIDATES_PER_RESULT))
        _, found = self._cells.search(query, wanted, params=options)
        found = found[0][found[0] >= 0]
        scores = self._exact.reconstruct_batch(found) @ query[0]
        best = np.argsort(-scores, kind="stable")[:k]
        return found[best], scores[best]

    def _ranked(
        self, positions: NDArray[np.int64], scores: NDArray[np.float32]
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        ids = self.frame_ids[positions]
        order = np.lexsort((ids, -scores))
        return ids[order], scores[order]

    # ------------------------------------------------------------ on disk

    def save(self, path: Path) -> None:
        """Replaces the file at once: readers see the old one or the new one, both whole."""
        temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        try:
            with temporary.open("wb") as file:
                file.write(b"\0" * _HEADER_BYTES)
                digest = hashlib.sha256()
                self._write_body(file, digest)
                facts = self._facts(size_bytes=file.tell())
                digest.update(_canonical(facts))
                file.seek(0)
                file.write(_header_bytes({**facts, "sha256": digest.hexdigest()}))
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)

    def _write_body(self, file: IO[bytes], digest: hashlib._Hash) -> None:
        faiss = _faiss()

        def write(data: bytes) -> int:
            digest.update(data)
            return file.write(data)

        write(self.frame_ids.astype("<i8").tobytes())
        for part in (self._exact, self._cells):
            if part is not None:
                faiss.write_index(part, faiss.PyCallbackIOWriter(write, _CHUNK_BYTES))

    def _facts(self, size_bytes: int) -> dict[str, Any]:
        return {
            "library_id": self.header.library_id,
            "generation": self.header.generation,
            "next_frame_id": self.header.next_frame_id,
            "frames": len(self),
            "has_cells": self._cells is not None,
            "trained_frames": self._trained_frames,
            "size_bytes": size_bytes,
        }


def _canonical(facts: dict[str, Any]) -> bytes:
    return json.dumps(facts, sort_keys=True).encode()


def _header_bytes(header: dict[str, Any]) -> bytes:
    data = _MAGIC + json.dumps(header).encode()
    assert len(data) < _HEADER_BYTES
    return data.ljust(_HEADER_BYTES, b"\n")


def read_header(path: Path) -> IndexHeader | None:
    """What the file was built from, without a look at the rest; None when there is no such file."""
    with suppress(OSError, ValueError, KeyError), path.open("rb") as file:
        header = _parse_header(file)
        return IndexHeader(header["library_id"], header["generation"], header["next_frame_id"])
    return None


def load(path: Path) -> FrameIndex | None:
    """The index in a file, or None (and a line in the log) when it is missing or not whole."""
    try:
        with path.open("rb") as file:
            header = _parse_header(file)
            _check_body(file, header)
            return _read_body(file, header)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        log.warning("%s is not usable and will be built again: %s", path, error)
        return None


def _parse_header(file: IO[bytes]) -> dict[str, Any]:
    data = file.read(_HEADER_BYTES)
    if not data.startswith(_MAGIC):
        raise ValueError("it is not a frame index")
    header = json.loads(data[len(_MAGIC) :])
    if not isinstance(header, dict):
        raise ValueError("it has no header")
    return header


def _check_body(file: IO[bytes], header: dict[str, Any]) -> None:
    """Compares body and header with their SHA-256: over 1 GB/s on today's processors."""
    if os.fstat(file.fileno()).st_size != header["size_bytes"]:
        raise ValueError("its size is not the size it was written with")
    digest = hashlib.sha256()
    while chunk := file.read(_CHUNK_BYTES):
        digest.update(chunk)
    digest.update(_canonical({key: header[key] for key in header if key != "sha256"}))
    if digest.hexdigest() != header["sha256"]:
        raise ValueError("its checksum does not fit")


def _read_body(file: IO[bytes], header: dict[str, Any]) -> FrameIndex:
    faiss = _faiss()
    file.seek(_HEADER_BYTES)
    frame_ids = np.frombuffer(file.read(8 * header["frames"]), "<i8").astype(np.int64)
    reader = faiss.PyCallbackIOReader(file.read, _CHUNK_BYTES)
    exact = faiss.read_index(reader)
    cells = faiss.read_index(reader) if header["has_cells"] else None
    what = IndexHeader(header["library_id"], header["generation"], header["next_frame_id"])
    return FrameIndex(what, frame_ids, exact, cells, header["trained_frames"])


def _new_exact(dimension: int) -> Any:
    faiss = _faiss()
    return faiss.IndexScalarQuantizer(
        dimension, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT
    )


def _new_cells(vectors: NDArray[np.float32]) -> Any:
    """An inverted file of RaBitQ codes; the cells are made from a sample that fits its number."""
    faiss = _faiss()
    count, dimension = vectors.shape
    cell_count = 2 ** round(math.log2(count / CELL_FRAMES))
    cells = faiss.index_factory(dimension, f"IVF{cell_count},RaBitQ", faiss.METRIC_INNER_PRODUCT)
    cells.cp.niter = 8
    sample = min(count, 64 * cell_count)
    chosen = np.random.default_rng(0).choice(count, sample, replace=False)
    cells.train(vectors[np.sort(chosen)])
    cells.add(vectors)
    return cells


def _selector(positions: NDArray[np.int64] | None, count: int) -> Any:
    """FAISS's filter that lets these positions through; one bit for each vector of the index."""
    faiss = _faiss()
    if positions is None:
        return None
    bits = np.zeros(count, bool)
    bits[positions] = True
    return faiss.IDSelectorBitmap(np.packbits(bits, bitorder="little"))
