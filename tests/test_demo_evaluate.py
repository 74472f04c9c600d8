"""The suite's library: what is measured is what the films hold, and nothing else."""

from __future__ import annotations

from pathlib import Path

from fakes import FakeEmbedder

from vidqa.demo import evaluate
from vidqa.ingest import IngestOptions
from vidqa.library import Library


def prepare(folder: Path, library: Library, seeds: list[int]) -> evaluate.Playground:
    return evaluate.prepare(
        folder / "films", seeds, 2, 1, library, FakeEmbedder(), IngestOptions(),
        on_progress=lambda stage, done, total: None,
    )  # fmt: skip


def test_films_of_an_earlier_larger_run_leave_the_library(tmp_path: Path) -> None:
    library = Library.open(tmp_path / "library", FakeEmbedder().spec, create=True)
    prepare(tmp_path, library, [1, 2])
    ground = prepare(tmp_path, library, [2])
    assert [Path(row.video.path).name for row in library.videos()] == ["film-0002.mp4"]
    assert set(ground.video_ids) == {"film-0002.mp4"}
