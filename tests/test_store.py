"""The DuckDB file: its schema, its commits, and what somebody's `--where` can and cannot do."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import date
from pathlib import Path

import duckdb
import numpy as np
import pytest
from library_parts import DIMENSION, RECIPE, SPEC, scenes, vectors, video

from vidqa import database
from vidqa import store as store_module
from vidqa.errors import LibraryBusy, LibraryError, UsageError
from vidqa.store import MIGRATIONS, MOMENT_COLUMNS, FrameRows, Store
from vidqa.types import EmbedderSpec, Filters, TextSpan

SCHEMA_PAGE = Path(__file__).resolve().parent.parent / "docs" / "schema.md"


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made once and copied, as each migration ends in a checkpoint to the disk."""
    made = Store(tmp_path_factory.mktemp("empty") / "store.duckdb")
    made.create(SPEC)
    return made.path


@pytest.fixture
def store(empty: Path, tmp_path: Path) -> Store:
    return Store(Path(shutil.copy(empty, tmp_path)))


@pytest.fixture(scope="module")
def filled(empty: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Two videos of four frames in two scenes; only for reading."""
    store = Store(Path(shutil.copy(empty, tmp_path_factory.mktemp("filled"))))
    add(store, "a", texts=(TextSpan(2.5, 3, "hello there"),))
    add(store, "b")
    return store


@pytest.fixture(scope="module", params=[False, True], ids=["file", "copy"])
def read(request: pytest.FixtureRequest, filled: Store) -> Store:
    """The same, read from the file and from a copy in memory."""
    return Store(filled.path, follow=request.param)


def add(
    store: Store,
    name: str,
    frames: int = 4,
    texts: tuple[TextSpan, ...] = (),
    seconds: float = 60.0,
) -> None:
    rows = FrameRows(
        seconds=np.arange(frames, dtype=np.float64),
        scene_index=(np.arange(frames) // 2).astype(np.int32),
        vectors=vectors(name, frames),
    )
    made = replace(video(name), duration_seconds=seconds)
    store.add(made, scenes(frames), rows, texts, recipe=RECIPE, pictures_file=None)


@pytest.fixture
def elsewhere() -> Iterator[list[duckdb.DuckDBPyConnection]]:
    """Connections that a test opens by hand, closed at its end."""
    opened: list[duckdb.DuckDBPyConnection] = []
    yield opened
    for connection in opened:
        connection.close()


def test_a_store_remembers_its_embedder(store: Store) -> None:
    assert store.open() == SPEC


def test_vectors_come_back_bit_for_bit(store: Store) -> None:
    add(store, "a", frames=7)
    changes = store.changes(0)
    np.testing.assert_array_equal(changes.new_vectors, vectors("a", 7))
    assert changes.new_ids.tolist() == changes.alive_ids.tolist() == list(range(7))


def test_every_commit_raises_the_generation_by_one(store: Store) -> None:
    before = store.extent().generation
    add(store, "a")
    store.link(video("a", path="/videos/copy.mp4"))
    store.record_failure("/videos/b.mp4", "truncated")
    assert store.extent().generation == before + 3


def test_a_frame_id_is_never_used_twice(store: Store) -> None:
    add(store, "a", frames=4)
    add(store, "a", frames=4)
    assert store.changes(0).alive_ids.tolist() == [4, 5, 6, 7]


def test_a_commit_that_fails_leaves_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    add(store, "a")

    def fail(*_: object) -> None:
        raise duckdb.Error("no space left on device\nLINE 1: ...")

    monkeypatch.setattr(store_module, "_insert_frames", fail)
    before = store.extent()
    with pytest.raises(LibraryError, match=r"store.duckdb: no space left on device$"):
        add(store, "b")
    assert store.extent() == before
    assert [row.video.path for row in store.videos()] == ["/videos/a.mp4"]


def test_a_newer_schema_is_refused_by_name(
    store: Store, elsewhere: list[duckdb.DuckDBPyConnection]
) -> None:
    with duckdb.connect(str(store.path)) as connection:
        connection.execute("UPDATE library SET schema_version = 99")
    with pytest.raises(LibraryError, match=r"schema version 99 is newer than 1.*update vidqa"):
        store.open()


def test_an_older_schema_is_migrated_when_it_is_opened(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(store, "a")

    def add_a_column(connection: duckdb.DuckDBPyConnection, spec: EmbedderSpec) -> None:
        connection.execute("ALTER TABLE texts ADD COLUMN language VARCHAR")

    monkeypatch.setattr(store_module, "MIGRATIONS", (*MIGRATIONS, add_a_column))
    assert store.open() == SPEC
    with duckdb.connect(str(store.path), read_only=True) as connection:
        connection.execute("SELECT language FROM texts").fetchall()
        [[version]] = connection.execute("SELECT schema_version FROM library").fetchall()
    assert version == 2
    assert len(store.videos()) == 1


def test_a_file_that_is_no_database_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "store.duckdb"
    path.write_bytes(b"not a database" * 1000)
    with pytest.raises(LibraryError, match=r"store\.duckdb: "):
        Store(path).open()


def test_a_locked_store_is_waited_for(
    store: Store, elsewhere: list[duckdb.DuckDBPyConnection]
) -> None:
    elsewhere.append(duckdb.connect(str(store.path)))
    release = threading.Timer(0.3, elsewhere[0].close)
    release.start()
    add(store, "a")
    release.join()
    assert len(store.videos()) == 1


def test_a_store_that_stays_locked_is_busy(
    store: Store,
    elsewhere: list[duckdb.DuckDBPyConnection],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    elsewhere.append(duckdb.connect(str(store.path)))
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.1)
    with pytest.raises(LibraryBusy, match="has held the library for more than"):
        add(store, "a")


def test_a_video_is_pictured_by_the_middle_of_its_middle_scene(store: Store) -> None:
    add(store, "a", frames=6)  # scenes of two seconds: 0 to 2, 2 to 4, 4 to 6
    assert [row.poster_seconds for row in store.videos()] == [3.0]


# ---------------------------------------------------------------- --where


@pytest.mark.parametrize(
    ("where", "count"),
    [
        ("start_seconds >= 2", 4),
        ("name = 'a.mp4'", 4),
        ("path LIKE '/videos/%' AND width = 64", 8),
        ("text ILIKE '%HELLO%'", 2),
        ("scene_index IN (SELECT max(scene_index) FROM scenes)", 4),
        ("start_seconds = 0 -- a remark", 4),
        ("false", 0),
        ("EXISTS (SELECT * FROM frames WHERE frames.vector[1] > 9)", 0),
    ],
)
def test_where_chooses_frames_by_their_scene(read: Store, where: str, count: int) -> None:
    assert len(read.frames_where(where)) == count


@pytest.mark.parametrize(
    "where",
    [
        "true; DROP TABLE frames",
        "true) UNION SELECT (1",
        "true /*",
        "",
        "1, 2",
        "true ORDER BY 1",
        "x = 1",
        "start_seconds = ?",
        "start_seconds = $1",
        "EXISTS (SELECT * FROM read_text('{file}'))",
        "EXISTS (SELECT * FROM read_csv('{file}'))",
        "EXISTS (SELECT * FROM '{file}')",
        "EXISTS (SELECT * FROM glob('/*'))",
        "EXISTS (SELECT * FROM read_blob('{file}'))",
        "EXISTS (SELECT * FROM query('ATTACH ''{file}'''))",
        "EXISTS (DELETE FROM frames RETURNING 1)",
        "EXISTS (COPY frames TO '{file}')",
        "EXISTS (SELECT * FROM parquet_scan('{file}'))",
        "EXISTS (SELECT * FROM read_json('{file}'))",
        "EXISTS (SELECT * FROM duckdb_secrets())",
    ],
)
def test_where_that_is_no_plain_expression_is_refused(
    read: Store, tmp_path: Path, where: str
) -> None:
    secret = tmp_path / "secret.csv"
    secret.write_text("a,b\n1,2\n")
    before = read.path.read_bytes()
    with pytest.raises(UsageError, match=r"--where .* columns video_id, path, name"):
        read.frames_where(where.replace("{file}", str(secret)))
    assert read.path.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["secret.csv"]
    assert [path.name for path in read.path.parent.iterdir()] == ["store.duckdb"]


@pytest.mark.parametrize(
    "statement",
    [
        "SET enable_external_access = true",
        "SET lock_configuration = false",
        "RESET ALL",
        "INSTALL httpfs",
        "LOAD httpfs",
        "ATTACH '{folder}/other.duckdb'",
        "COPY frames TO '{folder}/copy.csv'",
        "EXPORT DATABASE '{folder}/export'",
        "UPDATE library SET generation = 0",
        "CREATE TABLE t (a INTEGER)",
        "PRAGMA enable_profiling = 'json'",
    ],
)
def test_even_a_statement_could_do_no_harm_on_the_connection(
    read: Store, tmp_path: Path, statement: str
) -> None:
    """The parser is the first wall; this is the second."""
    with read._connected() as connection, pytest.raises(duckdb.Error):
        connection.execute(statement.replace("{folder}", str(tmp_path)))
    assert list(tmp_path.iterdir()) == []


def test_where_that_takes_too_long_is_stopped(read: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "WHERE_SECONDS", 0.3)
    endless = "(SELECT sum(a.range * b.range) FROM range(10000000) a, range(10000000) b) > 0"
    with pytest.raises(UsageError, match=r"took more than 0.3 seconds; make it simpler"):
        read.frames_where(endless)


# ---------------------------------------------------------------- filters


@pytest.fixture(scope="module")
def assorted(empty: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Three videos of two scenes, [0, 2) and [2, 4); frame ids are 0-3, 4-7 and 8-11."""
    store = Store(Path(shutil.copy(empty, tmp_path_factory.mktemp("assorted"))))
    words = (TextSpan(0, 1, "Good Morning"), TextSpan(1, 3, "100% École"), TextSpan(3, 4, "bye"))
    add(store, "short", seconds=4, texts=words)
    add(store, "long", seconds=7200)
    add(store, "longer", seconds=7200.5)
    days = {"short": "2026-01-01 23:59:59", "long": "2026-01-02 00:00:00", "longer": "2026-02-01"}
    with duckdb.connect(str(store.path)) as connection:
        for name, day in days.items():
            connection.execute(
                "UPDATE videos SET ingested_at = (?::TIMESTAMP AT TIME ZONE 'UTC') "
                "WHERE video_id = ?",
                [day, video(name).video_id],
            )
    return store


SHORT, LONG, LONGER = [0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]


@pytest.mark.parametrize(
    ("filters", "ids"),
    [
        (Filters(), SHORT + LONG + LONGER),
        (Filters(video="*/long*.mp4"), LONG + LONGER),
        (Filters(name="long*.mp4"), LONG + LONGER),
        (Filters(name="longer.mp4"), LONGER),
        (Filters(name="*/long*.mp4"), []),
        (Filters(video_ids=(video("longer").video_id, video("short").video_id)), SHORT + LONGER),
        (Filters(video_ids=()), []),
        (Filters(min_seconds=7200), LONG + LONGER),
        (Filters(max_seconds=7200), SHORT + LONG),
        (Filters(min_seconds=7200, max_seconds=7200), LONG),
        (Filters(after=date(2026, 1, 2)), LONG + LONGER),
        (Filters(before=date(2026, 1, 2)), SHORT),
        (Filters(after=date(2026, 1, 2), before=date(2026, 2, 1)), LONG),
        (Filters(video="longer.mp4", max_seconds=100), []),
    ],
)
def test_a_filter_lets_through_the_scenes_of_the_videos_that_fit(
    assorted: Store, filters: Filters, ids: list[int]
) -> None:
    assert assorted.frames_that_fit(filters).tolist() == ids


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("good", [0, 1]),
        ("MORN", [0, 1]),
        ("bye", [2, 3]),
        ("éCOLE", [0, 1, 2, 3]),
        ("100%", [0, 1, 2, 3]),
        ("1%0", []),
        ("morning  école", [0, 1]),
        ("good bye", []),
        ("école École", [0, 1, 2, 3]),
        ("' OR true --", []),
    ],
)
def test_a_scene_fits_a_text_when_all_its_words_are_said_in_it(
    assorted: Store, text: str, ids: list[int]
) -> None:
    assert assorted.frames_that_fit(Filters(text=text)).tolist() == ids


# ---------------------------------------------------------------- the documented schema


def documented_queries() -> list[str]:
    blocks = SCHEMA_PAGE.read_text("utf-8").split("```sql\n")[1:]
    return [block.split("```")[0] for block in blocks]


@pytest.mark.parametrize("query", documented_queries())
def test_every_query_in_the_documentation_runs(filled: Store, query: str) -> None:
    query = query.replace("ARRAY_OF_DIMENSION", f"{[0.0] * (DIMENSION - 1) + [1.0]}")
    with duckdb.connect(str(filled.path), read_only=True) as connection:
        connection.execute(query).fetchall()


def test_the_documentation_names_every_table_view_and_column(store: Store) -> None:
    page = SCHEMA_PAGE.read_text("utf-8")
    with duckdb.connect(str(store.path), read_only=True) as connection:
        columns = connection.execute(
            "SELECT table_name, column_name FROM duckdb_columns() WHERE NOT internal"
        ).fetchall()
    for table, column in columns:
        section = page.split(f"## `{table}`")[1].split("\n## ")[0]
        assert f"`{column}`" in section, f"{table}.{column}"


def test_the_columns_named_in_an_error_are_those_of_the_view(store: Store) -> None:
    with duckdb.connect(str(store.path), read_only=True) as connection:
        names = [row[0] for row in connection.execute("DESCRIBE moments").fetchall()]
    assert ", ".join(names) == MOMENT_COLUMNS


def test_a_file_that_is_no_database_is_an_error_with_the_next_step(tmp_path: Path) -> None:
    (tmp_path / "store.duckdb").write_bytes(b"not a database" * 1000)
    with pytest.raises(LibraryError, match=r"restore a backup, or delete .* and ingest again$"):
        Store(tmp_path / "store.duckdb").open()


def test_a_file_with_a_damaged_block_is_an_error_with_the_next_step(store: Store) -> None:
    with store.path.open("r+b") as file:
        file.seek(20_000)
        file.write(b"damage" * 30_000)
    with pytest.raises(LibraryError, match=r"restore a backup, or delete .* and ingest again$"):
        store.open()


def test_a_file_that_cannot_be_written_is_an_error_with_the_next_step(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise duckdb.IOException('IO Error: Cannot open file "x": Read-only file system')

    monkeypatch.setattr(duckdb, "connect", refuse)
    with pytest.raises(LibraryError, match=r"Read-only file system; it must be readable and, to "):
        add(store, "a")
