"""The truth of a library: one DuckDB file, its schema, its migrations and all SQL of vidqa.

A connection lives for one commit or one query (vidqa.database). A process that lives long reads
from a copy in memory instead, with the same SQL: `Store(path, follow=True)`.
The schema is documented in docs/schema.md and stable; it is plain (no indexes, keys or upserts),
because DuckDB's replay of a write-ahead log has had faults with those. What a key would promise is
kept here: rows of a video are deleted before they are written, in the same transaction.

This module knows nothing of FAISS, of pictures on disk or of embedders.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vidqa.database import Follower, first_line, opened, signature
from vidqa.errors import EmbedderMismatch, LibraryError, UsageError
from vidqa.types import EmbedderSpec, Filters, Moment, Scene, TextSpan, Video

if TYPE_CHECKING:
    import duckdb
    from numpy.typing import NDArray

# `--where` is somebody's SQL: it may cross-join by mistake.
WHERE_SECONDS = 20.0


# ---------------------------------------------------------------- schema


def _migration_1(connection: duckdb.DuckDBPyConnection, spec: EmbedderSpec) -> None:
    """The first schema; vectors are fixed-length arrays of the embedder's dimension."""
    connection.execute(
        f"""
        CREATE TABLE library (
            library_id VARCHAR, schema_version INTEGER, generation BIGINT,
            next_frame_id BIGINT, created_at TIMESTAMPTZ,
            model VARCHAR, weights VARCHAR, dimension INTEGER,
            image_height INTEGER, image_width INTEGER, resize_mode VARCHAR);
        CREATE TABLE videos (
            video_id VARCHAR, fingerprint VARCHAR, size_bytes BIGINT, duration_seconds DOUBLE,
            fps DOUBLE, width INTEGER, height INTEGER, rotation_degrees INTEGER,
            codec VARCHAR, container VARCHAR, recipe VARCHAR, ingested_at TIMESTAMPTZ,
            pictures_file VARCHAR);
        CREATE TABLE files (path VARCHAR, video_id VARCHAR, mtime_ns BIGINT, added_at TIMESTAMPTZ);
        CREATE TABLE scenes (
            video_id VARCHAR, scene_index INTEGER, start_seconds DOUBLE, end_seconds DOUBLE);
        CREATE TABLE frames (
            frame_id BIGINT, video_id VARCHAR, scene_index INTEGER, seconds DOUBLE,
            picture_offset BIGINT, picture_bytes INTEGER, vector FLOAT[{int(spec.dimension)}]);
        CREATE TABLE texts (
            video_id VARCHAR, start_seconds DOUBLE, end_seconds DOUBLE,
            text VARCHAR, source VARCHAR);
        CREATE TABLE failures (path VARCHAR, error VARCHAR, failed_at TIMESTAMPTZ);
        CREATE VIEW paths AS
            SELECT video_id, arg_min(path, added_at) AS path FROM files GROUP BY video_id;
        CREATE VIEW moments AS
            SELECT s.video_id, p.path, parse_filename(p.path) AS name,
                   s.scene_index, s.start_seconds, s.end_seconds,
                   s.end_seconds - s.start_seconds AS scene_seconds, t.text,
                   v.duration_seconds, v.fps, v.width, v.height, v.codec, v.container,
                   v.size_bytes, v.ingested_at
            FROM scenes s
            JOIN videos v ON v.video_id = s.video_id
            JOIN paths p ON p.video_id = s.video_id
            LEFT JOIN (
                SELECT c.video_id, c.scene_index,
                       string_agg(x.text, ' ' ORDER BY x.start_seconds) AS text
                FROM scenes c JOIN texts x ON x.video_id = c.video_id
                    AND x.start_seconds < c.end_seconds AND x.end_seconds > c.start_seconds
                GROUP BY c.video_id, c.scene_index
            ) t ON t.video_id = s.video_id AND t.scene_index = s.scene_index;
        """
    )
    connection.execute(
        "INSERT INTO library VALUES (uuid(), 0, 0, 0, now(), ?, ?, ?, ?, ?, ?)",
        [
            spec.model,
            spec.weights,
            spec.dimension,
            spec.image_height,
            spec.image_width,
            spec.resize_mode,
        ],
    )


# A scene: its video's id, and its number in the video.
SceneKey = tuple[str, int]

# Step n brings a store from schema version n - 1 to n. Steps are added, never edited.
MIGRATIONS: tuple[Callable[[duckdb.DuckDBPyConnection, EmbedderSpec], None], ...] = (_migration_1,)

MOMENT_COLUMNS = (
    "video_id, path, name, scene_index, start_seconds, end_seconds, scene_seconds, text, "
    "duration_seconds, fps, width, height, codec, container, size_bytes, ingested_at"
)

_VIDEO_COLUMNS = (
    "f.path, v.fingerprint, v.size_bytes, f.mtime_ns, v.duration_seconds, v.fps, "
    "v.width, v.height, v.rotation_degrees, v.codec, v.container"
)


# ---------------------------------------------------------------- records


@dataclass(frozen=True, slots=True)
class VideoRow:
    """A video as the store knows it: `video.path` is the first of its `paths`.

    `poster_seconds` is the middle of its middle scene, where no cut and no fade is.
    """

    video: Video
    paths: tuple[str, ...]
    scenes: int
    frames: int
    recipe: str
    ingested_at: datetime
    pictures_file: str | None
    poster_seconds: float


@dataclass(frozen=True, slots=True)
class Failure:
    """A file that could not be ingested, and why, in one line."""

    path: str
    error: str
    failed_at: datetime


@dataclass(frozen=True, slots=True)
class FrameRows:
    """Frames of one video as they are stored; all arrays have the same length N.

    seconds         float64 (N,)
    scene_index     int32 (N,)
    vectors         float32 (N, D)
    picture_offset, picture_bytes   int64 (N,): where each frame's JPEG lies in the pictures file;
                    or None when no pictures are kept
    """

    seconds: NDArray[np.float64]
    scene_index: NDArray[np.int32]
    vectors: NDArray[np.float32]
    picture_offset: NDArray[np.int64] | None = None
    picture_bytes: NDArray[np.int64] | None = None


@dataclass(frozen=True, slots=True)
class FrameRow:
    """Where one frame belongs, as a search result needs it."""

    frame_id: int
    video_id: str
    scene_index: int
    seconds: float


@dataclass(frozen=True, slots=True)
class FrameTimes:
    """Frames of several videos, each (N,); rising by video, then by time.

    video        int64: the place of the frame's video in the list that was asked for, from 0
    frame_id     int64
    seconds      float64
    """

    video: NDArray[np.int64]
    frame_id: NDArray[np.int64]
    seconds: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class PictureRow:
    """Where the JPEG of one frame lies: `size_bytes` from `offset` in the video's pictures file."""

    seconds: float
    offset: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Extent:
    """Which store it is and how far it has come; frame ids rise and are never used twice."""

    library_id: str
    generation: int
    next_frame_id: int


@dataclass(frozen=True, slots=True)
class Changes:
    """The ids of all frames, int64, rising; and ids (N,) and vectors (N, D) of the later ones."""

    extent: Extent
    alive_ids: NDArray[np.int64]
    new_ids: NDArray[np.int64]
    new_vectors: NDArray[np.float32]


def _one(
    connection: duckdb.DuckDBPyConnection, query: str, values: Sequence[object] = ()
) -> tuple[Any, ...] | None:
    """The only row of a result; read to its end, since DuckDB wants nothing left over."""
    rows = connection.execute(query, list(values)).fetchall()
    return rows[0] if rows else None


class Store:
    """One DuckDB file. Every method does one thing, on a connection of its own.

    With `follow`, methods that read see a copy in memory that holds all but the vectors and
    follows the commits of every process, its own at once; while another process holds the file
    for long, they see the last copy. Reads of several threads then run side by side.
    """

    def __init__(self, path: Path, *, follow: bool = False) -> None:
        self.path = path
        self._follower = Follower(path, without=("frames", "vector")) if follow else None

    @contextmanager
    def _connected(self, *, from_file: bool = False) -> Iterator[duckdb.DuckDBPyConnection]:
        """A connection that cannot write: to the copy if there is one and it will do.

        It will not where vectors are needed, or where a last copy would do harm.
        """
        if self._follower is not None and not from_file:
            with self._follower.cursor() as connection:
                yield connection
        else:
            with opened(self.path, read_only=True) as connection:
                yield connection

    @contextmanager
    def _reading(self, *, from_file: bool = False) -> Iterator[duckdb.DuckDBPyConnection]:
        import duckdb

        with self._connected(from_file=from_file) as connection:
            try:
                yield connection
            except duckdb.Error as error:
                raise LibraryError(f"{self.path}: {first_line(error)}") from error

    @contextmanager
    def _committing(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """One transaction that raises the generation; nothing of it stays if anything fails."""
        import duckdb

        with opened(self.path, read_only=False) as connection:
            try:
                connection.begin()
                yield connection
                connection.execute("UPDATE library SET generation = generation + 1")
                connection.commit()
            except duckdb.Error as error:
                raise LibraryError(f"{self.path}: {first_line(error)}") from error
        if self._follower is not None:
            self._follower.wrote()

    # ------------------------------------------------------------ the library's own row

    def create(self, spec: EmbedderSpec) -> None:
        """Makes the store, or brings an older one to the newest schema; safe to repeat."""
        with opened(self.path, read_only=False) as connection:
            self._migrate(connection, spec)

    def open(self) -> EmbedderSpec:
        """Brings an older store to the newest schema and returns the embedder it was made with."""
        with self._reading() as connection:
            version, spec = _version(connection), _spec(connection)
        if spec is None:
            raise LibraryError(f"{self.path}: holds no library; delete the folder and ingest again")
        self._check_known(version)
        if version < len(MIGRATIONS):
            self.create(spec)
        return spec

    def _check_known(self, version: int) -> None:
        if version > len(MIGRATIONS):
            raise LibraryError(
                f"{self.path}: schema version {version} is newer than {len(MIGRATIONS)}, the "
                "newest this vidqa knows; update vidqa"
            )

    def _migrate(self, connection: duckdb.DuckDBPyConnection, spec: EmbedderSpec) -> None:
        self._check_known(version := _version(connection))
        for number, step in enumerate(MIGRATIONS[version:], start=version + 1):
            connection.begin()
            step(connection, spec)
            connection.execute("UPDATE library SET schema_version = ?", [number])
            connection.commit()
            # Replaying schema changes from a log is what DuckDB has had most trouble with.
            connection.execute("CHECKPOINT")

    def signature(self) -> tuple[int, ...]:
        """Changes with every commit that the next read will see; costs no connection."""
        return signature(self.path) if self._follower is None else self._follower.signature()

    def extent(self) -> Extent:
        with self._reading() as connection:
            return _extent(connection)

    # ------------------------------------------------------------ writing

    def add(
        self,
        video: Video,
        scenes: Sequence[Scene],
        frames: FrameRows,
        texts: Sequence[TextSpan],
        *,
        recipe: str,
        pictures_file: str | None,
    ) -> None:
        """Commits one video, in place of what its id or its path stood for.

        Other paths of the same content stay. All or nothing, also when the process is killed.
        """
        with self._committing() as connection:
            _unlink(connection, video.path, keep=None)
            _delete_content(connection, video.video_id)
            connection.execute(
                "INSERT INTO videos VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, now(), ?)",
                [
                    video.video_id,
                    video.fingerprint,
                    video.size_bytes,
                    video.duration_seconds,
                    video.fps,
                    video.width,
                    video.height,
                    video.rotation_degrees,
                    video.codec,
                    video.container,
                    recipe,
                    pictures_file,
                ],
            )
            _link(connection, video)
            _insert_scenes(connection, video.video_id, scenes)
            _insert_texts(connection, video.video_id, texts)
            _insert_frames(connection, video.video_id, frames)

    def link(self, video: Video) -> None:
        """Makes `video.path` a name of content that is already stored, beside its other names."""
        with self._committing() as connection:
            _unlink(connection, video.path, keep=video.video_id)
            _link(connection, video)

    def move(self, video: Video, old_path: str) -> None:
        """Makes `video.path` the name of stored content, in place of `old_path`."""
        with self._committing() as connection:
            _unlink(connection, video.path, keep=video.video_id)
            _unlink(connection, old_path, keep=video.video_id)
            _link(connection, video)

    def remove(self, video_id: str) -> None:
        with self._committing() as connection:
            _delete_content(connection, video_id)
            connection.execute("DELETE FROM files WHERE video_id = ?", [video_id])

    def forget_pictures(self, video_ids: Sequence[str]) -> None:
        """The kept pictures of these videos are gone; their frames stay."""
        with self._committing() as connection:
            for video_id in video_ids:
                connection.execute(
                    "UPDATE videos SET pictures_file = NULL WHERE video_id = ?", [video_id]
                )

    def record_failure(self, path: str, error: str) -> None:
        with self._committing() as connection:
            connection.execute("DELETE FROM failures WHERE path = ?", [path])
            connection.execute("INSERT INTO failures VALUES (?, ?, now())", [path, error])

    def forget_failure(self, path: str) -> None:
        with self._committing() as connection:
            connection.execute("DELETE FROM failures WHERE path = ?", [path])

    # ------------------------------------------------------------ reading

    def find(self, fingerprint: str) -> Video | None:
        return self._find("v.fingerprint = ?", fingerprint)

    def find_path(self, path: str) -> Video | None:
        return self._find("f.path = ?", path)

    def _find(self, condition: str, value: str) -> Video | None:
        with self._reading() as connection:
            row = _one(
                connection,
                f"SELECT {_VIDEO_COLUMNS} FROM videos v JOIN files f USING (video_id) "
                f"WHERE {condition} ORDER BY f.added_at, f.path LIMIT 1",
                [value],
            )
        return Video(*row) if row else None

    def recipe(self, video_id: str) -> str | None:
        """The sampling that a video was ingested with, or None when it is not in the store."""
        with self._reading() as connection:
            row = _one(connection, "SELECT recipe FROM videos WHERE video_id = ?", [video_id])
        return str(row[0]) if row else None

    def videos(self) -> list[VideoRow]:
        with self._reading() as connection:
            rows = connection.execute(
                f"""
                SELECT {_VIDEO_COLUMNS}, a.paths, coalesce(s.n, 0), coalesce(n.n, 0),
                       v.recipe, v.ingested_at AT TIME ZONE 'UTC', v.pictures_file,
                       coalesce(s.middle, v.duration_seconds / 2)
                FROM videos v
                JOIN (SELECT video_id, list(path ORDER BY added_at, path) AS paths
                      FROM files GROUP BY video_id) a USING (video_id)
                JOIN files f ON f.video_id = v.video_id AND f.path = a.paths[1]
                LEFT JOIN (SELECT video_id, count(*) AS n,
                                  quantile_disc((start_seconds + end_seconds) / 2, 0.5) AS middle
                           FROM scenes GROUP BY video_id) s
                    ON s.video_id = v.video_id
                LEFT JOIN (SELECT video_id, count(*) AS n FROM frames GROUP BY video_id) n
                    ON n.video_id = v.video_id
                ORDER BY f.path
                """
            ).fetchall()
        return [
            VideoRow(
                video=Video(*row[:11]),
                paths=tuple(row[11]),
                scenes=row[12],
                frames=row[13],
                recipe=row[14],
                ingested_at=row[15].replace(tzinfo=UTC),
                pictures_file=row[16],
                poster_seconds=row[17],
            )
            for row in rows
        ]

    def failures(self) -> list[Failure]:
        with self._reading() as connection:
            rows = connection.execute(
                "SELECT path, error, failed_at AT TIME ZONE 'UTC' FROM failures ORDER BY path"
            ).fetchall()
        return [Failure(path, error, at.replace(tzinfo=UTC)) for path, error, at in rows]

    def paths(self, video_id: str) -> list[str]:
        """The paths of a video, the first one first; none when it is not in the store."""
        with self._reading() as connection:
            rows = connection.execute(
                "SELECT path FROM files WHERE video_id = ? ORDER BY added_at, path", [video_id]
            ).fetchall()
        return [row[0] for row in rows]

    def scenes(self, video_id: str) -> list[Scene]:
        with self._reading() as connection:
            rows = connection.execute(
                "SELECT scene_index, start_seconds, end_seconds FROM scenes "
                "WHERE video_id = ? ORDER BY scene_index",
                [video_id],
            ).fetchall()
        return [Scene(*row) for row in rows]

    def texts(self, video_id: str, start_seconds: float, end_seconds: float) -> list[TextSpan]:
        """The words that overlap `[start_seconds, end_seconds)`, in order of time."""
        with self._reading() as connection:
            rows = connection.execute(
                "SELECT start_seconds, end_seconds, text, source FROM texts WHERE video_id = ? "
                "AND start_seconds < ? AND end_seconds > ? ORDER BY ALL",
                [video_id, end_seconds, start_seconds],
            ).fetchall()
        return [TextSpan(*row) for row in rows]

    def frame_seconds(self, video_id: str, start_seconds: float, end_seconds: float) -> list[float]:
        """The times of the sampled frames in `[start_seconds, end_seconds)`, rising."""
        with self._reading() as connection:
            rows = connection.execute(
                "SELECT seconds FROM frames WHERE video_id = ? AND seconds >= ? AND seconds < ? "
                "ORDER BY seconds",
                [video_id, start_seconds, end_seconds],
            ).fetchall()
        return [row[0] for row in rows]

    def moments(self, scores: Mapping[SceneKey, float]) -> list[Moment]:
        """The scenes with these scores as moments, best first; equal ones by path, then time."""
        video_ids, indexes = [key[0] for key in scores], [key[1] for key in scores]
        wanted = (
            "(SELECT unnest($1::VARCHAR[]) AS video_id, unnest($2::INTEGER[]) AS scene_index) w"
        )
        with self._reading() as connection:
            rows = connection.execute(
                f"""
                SELECT s.video_id, s.scene_index, p.path, s.start_seconds, s.end_seconds,
                       f.seconds, t.texts
                FROM scenes s JOIN {wanted} USING (video_id, scene_index)
                JOIN paths p USING (video_id)
                LEFT JOIN (
                    SELECT video_id, scene_index, list(seconds ORDER BY seconds) AS seconds
                    FROM frames JOIN {wanted} USING (video_id, scene_index) GROUP BY ALL
                ) f USING (video_id, scene_index)
                LEFT JOIN (
                    SELECT c.video_id, c.scene_index, list(
                        [x.start_seconds::VARCHAR, x.end_seconds::VARCHAR, x.text, x.source]
                        ORDER BY x.start_seconds, x.end_seconds, x.text) AS texts
                    FROM scenes c JOIN {wanted} USING (video_id, scene_index)
                    JOIN texts x ON x.video_id = c.video_id
                        AND x.start_seconds < c.end_seconds AND x.end_seconds > c.start_seconds
                    GROUP BY ALL
                ) t USING (video_id, scene_index)
                """,
                [video_ids, indexes],
            ).fetchall()
        moments = [
            Moment(
                video=path,
                video_id=video_id,
                start_seconds=start_seconds,
                end_seconds=end_seconds,
                score=scores[video_id, scene_index],
                frame_seconds=tuple(seconds or ()),
                texts=tuple(
                    TextSpan(float(start), float(end), text, source)
                    for start, end, text, source in texts or ()
                ),
            )
            for video_id, scene_index, path, start_seconds, end_seconds, seconds, texts in rows
        ]
        return sorted(moments, key=lambda one: (-one.score, one.video, one.start_seconds))

    def picture_rows(self, video_id: str) -> tuple[str | None, list[PictureRow]]:
        """The name of a video's pictures file, and where each frame's JPEG lies in it."""
        with self._reading() as connection:
            video = _one(
                connection, "SELECT pictures_file FROM videos WHERE video_id = ?", [video_id]
            )
            rows = connection.execute(
                "SELECT seconds, picture_offset, picture_bytes FROM frames "
                "WHERE video_id = ? AND picture_offset IS NOT NULL ORDER BY seconds",
                [video_id],
            ).fetchall()
        return (video[0] if video else None), [PictureRow(*row) for row in rows]

    def pictures_files(self) -> dict[str, str]:
        """The pictures file of every video that has one, oldest ingest first, by video id."""
        # Files that it does not name are swept away.
        with self._reading(from_file=True) as connection:
            rows = connection.execute(
                "SELECT video_id, pictures_file FROM videos WHERE pictures_file IS NOT NULL "
                "ORDER BY ingested_at, video_id"
            ).fetchall()
        return dict(rows)

    # ------------------------------------------------------------ what the index is built from

    def changes(self, from_frame_id: int) -> Changes:
        """What an index that holds the frames below `from_frame_id` has missed."""
        with self._reading(from_file=True) as connection:
            extent, spec = _extent(connection), _spec(connection)
            alive = connection.execute("SELECT frame_id FROM frames").fetchnumpy()["frame_id"]
            rows = connection.execute(
                "SELECT frame_id, vector FROM frames WHERE frame_id >= ? ORDER BY frame_id",
                [from_frame_id],
            ).fetchnumpy()
        assert spec is not None
        vectors = np.empty((len(rows["vector"]), spec.dimension), np.float32)
        for position, vector in enumerate(rows["vector"]):
            vectors[position] = vector
        alive_ids = np.sort(np.asarray(alive, np.int64))
        return Changes(extent, alive_ids, np.asarray(rows["frame_id"], np.int64), vectors)

    def frames(self, frame_ids: Sequence[int]) -> list[FrameRow]:
        """The frames with these ids, in no special order; ids that are gone are left out."""
        with self._reading() as connection:
            rows = connection.execute(
                "SELECT frame_id, video_id, scene_index, seconds FROM frames "
                "WHERE frame_id IN (SELECT unnest(?::BIGINT[]))",
                [list(frame_ids)],
            ).fetchall()
        return [FrameRow(*row) for row in rows]

    def frames_of_videos(self, video_ids: Sequence[str]) -> FrameTimes:
        """Where in time the frames of these videos lie, video by video."""
        with self._reading() as connection:
            rows = connection.execute(
                "SELECT w.place, f.frame_id, f.seconds FROM frames f JOIN (SELECT "
                "unnest($1::VARCHAR[]) AS video_id, generate_subscripts($1::VARCHAR[], 1) AS place"
                ") w USING (video_id) ORDER BY w.place, f.seconds",
                [list(video_ids)],
            ).fetchnumpy()
        return FrameTimes(
            np.asarray(rows["place"], np.int64) - 1,
            np.asarray(rows["frame_id"], np.int64),
            np.asarray(rows["seconds"], np.float64),
        )

    def frames_that_fit(self, filters: Filters) -> NDArray[np.int64]:
        """Ids of the frames of scenes that fit, rising."""
        values = _given(filters)
        conditions = " AND ".join(_FITS[name] for name in values) or "true"
        with self._reading() as connection:
            ids = connection.execute(
                "SELECT frame_id FROM frames SEMI JOIN (SELECT s.video_id, s.scene_index "
                f"FROM scenes s JOIN videos v USING (video_id) WHERE {conditions}) "
                "USING (video_id, scene_index) ORDER BY frame_id",
                values,
            ).fetchnumpy()
        return np.asarray(ids["frame_id"], np.int64)

    def frames_where(self, where: str) -> NDArray[np.int64]:
        """Ids of the frames of scenes for which the SQL expression `where` holds, rising.

        The expression is over the view `moments`. It runs on a connection that cannot write,
        reach another file, load an extension or change a setting, for at most `WHERE_SECONDS`.
        """
        import duckdb

        _check_expression(where)
        # A subquery may speak of vectors, which a copy does not hold.
        with self._connected(from_file="vector" in where.lower()) as connection:
            stop = threading.Timer(WHERE_SECONDS, connection.interrupt)
            stop.start()
            try:
                # The line break ends a comment in the expression.
                ids = connection.execute(
                    "SELECT frame_id FROM frames SEMI JOIN (SELECT video_id, scene_index "
                    f"FROM moments WHERE (\n{where}\n)) USING (video_id, scene_index) "
                    "ORDER BY frame_id"
                ).fetchnumpy()
            except duckdb.InterruptException as error:
                raise UsageError(
                    f"--where {where!r} took more than {WHERE_SECONDS:g} seconds; make it simpler"
                ) from error
            except duckdb.Error as error:
                raise _bad_where(where, error) from error
            finally:
                stop.cancel()
        return np.asarray(ids["frame_id"], np.int64)

    def scene_keys(self, frame_ids: NDArray[np.int64] | None = None) -> list[SceneKey]:
        """The scenes that hold frames, or one of these frames, by video id and number."""
        with self._reading() as connection:
            rows = connection.execute(
                "SELECT DISTINCT video_id, scene_index FROM frames "
                "WHERE $1 IS NULL OR frame_id IN (SELECT unnest($1::BIGINT[])) ORDER BY ALL",
                [None if frame_ids is None else frame_ids.tolist()],
            ).fetchall()
        return [(str(video_id), int(index)) for video_id, index in rows]


# ---------------------------------------------------------------- statements


def _version(connection: duckdb.DuckDBPyConnection) -> int:
    tables = _one(connection, "SELECT count(*) FROM duckdb_tables() WHERE table_name = 'library'")
    if not tables or not tables[0]:
        return 0
    row = _one(connection, "SELECT schema_version FROM library")
    return int(row[0]) if row else 0


def _spec(connection: duckdb.DuckDBPyConnection) -> EmbedderSpec | None:
    if _version(connection) == 0:
        return None
    row = _one(
        connection,
        "SELECT model, weights, dimension, image_height, image_width, resize_mode FROM library",
    )
    return EmbedderSpec(*row) if row else None


def _extent(connection: duckdb.DuckDBPyConnection) -> Extent:
    row = _one(connection, "SELECT library_id, generation, next_frame_id FROM library")
    assert row is not None
    return Extent(*row)


def _unlink(connection: duckdb.DuckDBPyConnection, path: str, *, keep: str | None) -> None:
    """Takes a path from what it names; content left without a path is deleted, except `keep`."""
    connection.execute("DELETE FROM failures WHERE path = ?", [path])
    row = _one(
        connection,
        "SELECT video_id FROM files f WHERE path = ? AND NOT EXISTS "
        "(SELECT 1 FROM files o WHERE o.video_id = f.video_id AND o.path <> f.path)",
        [path],
    )
    connection.execute("DELETE FROM files WHERE path = ?", [path])
    if row and row[0] != keep:
        _delete_content(connection, row[0])


def _link(connection: duckdb.DuckDBPyConnection, video: Video) -> None:
    connection.execute(
        "INSERT INTO files VALUES (?, ?, ?, now())", [video.path, video.video_id, video.mtime_ns]
    )


def _delete_content(connection: duckdb.DuckDBPyConnection, video_id: str) -> None:
    for table in ("frames", "texts", "scenes", "videos"):
        connection.execute(f"DELETE FROM {table} WHERE video_id = ?", [video_id])


def _insert_scenes(
    connection: duckdb.DuckDBPyConnection, video_id: str, scenes: Sequence[Scene]
) -> None:
    connection.execute(
        "INSERT INTO scenes SELECT ?, unnest(?::INTEGER[]), unnest(?::DOUBLE[]), "
        "unnest(?::DOUBLE[])",
        [
            video_id,
            [scene.index for scene in scenes],
            [scene.start_seconds for scene in scenes],
            [scene.end_seconds for scene in scenes],
        ],
    )


def _insert_texts(
    connection: duckdb.DuckDBPyConnection, video_id: str, texts: Sequence[TextSpan]
) -> None:
    connection.execute(
        "INSERT INTO texts SELECT ?, unnest(?::DOUBLE[]), unnest(?::DOUBLE[]), "
        "unnest(?::VARCHAR[]), unnest(?::VARCHAR[])",
        [
            video_id,
            [text.start_seconds for text in texts],
            [text.end_seconds for text in texts],
            [text.text for text in texts],
            [text.source for text in texts],
        ],
    )


def _insert_frames(connection: duckdb.DuckDBPyConnection, video_id: str, frames: FrameRows) -> None:
    """Writes the frames with new ids.

    DuckDB takes one-dimensional arrays from NumPy without making Python objects of the numbers,
    so the vectors go in as D columns: 12,000 frames a second, four times as many as lists.
    """
    count, dimension = frames.vectors.shape
    first = _extent(connection).next_frame_id
    columns = {
        "frame_id": np.arange(first, first + count, dtype=np.int64),
        "scene_index": np.asarray(frames.scene_index, np.int32),
        "seconds": np.asarray(frames.seconds, np.float64),
    }
    picture = "NULL, NULL"
    if frames.picture_offset is not None and frames.picture_bytes is not None:
        columns["picture_offset"] = np.asarray(frames.picture_offset, np.int64)
        columns["picture_bytes"] = np.asarray(frames.picture_bytes, np.int64)
        picture = "picture_offset, picture_bytes"
    names = [f"v{i}" for i in range(dimension)]
    columns |= dict(zip(names, np.ascontiguousarray(frames.vectors.T, np.float32), strict=True))
    connection.register("new_frames", columns)
    connection.execute(
        f"INSERT INTO frames SELECT frame_id, ?, scene_index, seconds, {picture}, "
        f"array_value({', '.join(names)}) FROM new_frames ORDER BY frame_id",
        [video_id],
    )
    connection.unregister("new_frames")
    connection.execute("UPDATE library SET next_frame_id = ?", [first + count])


# ---------------------------------------------------------------- filters, and --where

# What each field of `Filters` asks of a scene `s` of a video `v`.
_FITS = {
    "video": """s.video_id IN (
        SELECT video_id FROM (SELECT *, parse_filename(path) AS name FROM files)
        WHERE path = $video OR name = $video OR path GLOB $video OR name GLOB $video)""",
    "name": """s.video_id IN (
        SELECT video_id FROM (SELECT *, parse_filename(path) AS name FROM files)
        WHERE name = $name OR name GLOB $name)""",
    "video_ids": "s.video_id IN (SELECT unnest($video_ids::VARCHAR[]))",
    # A word has no spaces, so it lies in one row of texts.
    "text": """(s.video_id, s.scene_index) IN (
        SELECT c.video_id, c.scene_index
        FROM (SELECT DISTINCT unnest($text::VARCHAR[]) AS word) w
        JOIN texts x ON contains(lower(x.text), lower(w.word))
        JOIN scenes c ON c.video_id = x.video_id
            AND x.start_seconds < c.end_seconds AND x.end_seconds > c.start_seconds
        GROUP BY ALL HAVING count(DISTINCT w.word) = len(list_distinct($text::VARCHAR[])))""",
    "min_seconds": "v.duration_seconds >= $min_seconds",
    "max_seconds": "v.duration_seconds <= $max_seconds",
    "after": "(v.ingested_at AT TIME ZONE 'UTC')::DATE >= $after",
    "before": "(v.ingested_at AT TIME ZONE 'UTC')::DATE < $before",
}


def _given(filters: Filters) -> dict[str, Any]:
    """The fields that restrict something, as values of the query."""
    given = {name: getattr(filters, name) for name in _FITS}
    if filters.text is not None:
        given["text"] = filters.text.split()
    if filters.video_ids is not None:
        given["video_ids"] = list(filters.video_ids)
    return {name: value for name, value in given.items() if value is not None}


def _check_expression(where: str) -> None:
    """Refuses what is not one SQL expression, such as a second statement or a UNION."""
    import duckdb

    try:
        duckdb.SQLExpression(where)
    except duckdb.Error as error:
        raise _bad_where(where, error) from error


def _bad_where(where: str, error: Exception) -> UsageError:
    return UsageError(
        f"--where {where!r}: {first_line(error)}; it is one SQL expression over the columns "
        f"{MOMENT_COLUMNS}"
    )


def check_embedder(stored: EmbedderSpec, wanted: EmbedderSpec, folder: Path) -> None:
    """Raises EmbedderMismatch unless vectors of both embedders can be compared.

    The name does not count: the same weights may lie in another folder.
    """

    def meaning(spec: EmbedderSpec) -> tuple[object, ...]:
        return (
            spec.weights,
            spec.dimension,
            spec.image_height,
            spec.image_width,
            spec.resize_mode,
        )

    if meaning(stored) != meaning(wanted):
        raise EmbedderMismatch(
            f"{folder} was made with {_describe(stored)}, not with {_describe(wanted)}; use "
            f"--embedder {stored.model}, or another --index"
        )


def _describe(spec: EmbedderSpec) -> str:
    return (
        f"{spec.model} (weights {spec.weights[:12]}, {spec.dimension} dimensions, "
        f"{spec.image_width}x{spec.image_height} {spec.resize_mode})"
    )
