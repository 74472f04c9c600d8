"""Files and folders become a library: once, whole, and whatever happens on the way."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.media import (
    add_subtitles,
    make_audio_only,
    make_film,
    shot,
    three_shots,
    truncate,
)
from tests.waiting import LIMIT_SECONDS, until
from vidqa import worker
from vidqa.errors import ModelError, UsageError
from vidqa.ingest import IngestOptions, IngestProgress, ingest
from vidqa.library import Library
from vidqa.scenes import SceneOptions
from vidqa.types import EmbedderSpec, FileReport, IngestReport

SPEC = EmbedderSpec("mean-colour", "none", 3, 24, 32, "squash")


class MeanColour:
    """The vector of a picture is its mean colour, to length one."""

    spec = SPEC

    def __init__(self) -> None:
        self.batches: list[int] = []

    def embed_images(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        self.batches.append(len(images))
        means = images.mean((1, 2), dtype=np.float32)
        return np.asarray(means / np.linalg.norm(means, axis=1, keepdims=True), np.float32)


@pytest.fixture
def library(tmp_path: Path) -> Library:
    return Library.open(tmp_path / "library", SPEC, create=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "videos"
    made.mkdir()
    return made


def states(report: IngestReport) -> dict[str, str]:
    return {Path(one.path).name: one.state for one in report.files}


def names(library: Library) -> list[str]:
    return sorted(Path(path).name for row in library.videos() for path in row.paths)


def run(library: Library, *paths: Path, options: IngestOptions | None = None) -> IngestReport:
    return ingest(paths, library, MeanColour(), options)


def test_a_film_is_stored_with_scenes_frames_and_pictures(library: Library, folder: Path) -> None:
    film = three_shots(folder / "a.mp4")
    report = run(library, folder)
    assert (report.files[0].state, report.files[0].scenes, report.files[0].frames) == (
        "ingested",
        3,
        9,
    )
    (row,) = library.videos()
    scenes = library.scenes(row.video.video_id)
    assert [scene.start_seconds for scene in scenes] == pytest.approx([0, *film.cuts])
    times = library.frame_seconds(row.video.video_id, 0, 6)
    assert len(library.pictures(row.video.video_id, times)) == 9


def test_a_stored_frame_is_found_by_its_own_vector(library: Library, folder: Path) -> None:
    path = three_shots(folder / "a.mp4").path
    run(library, folder)
    colour = MeanColour().embed_images(
        np.full((1, 24, 32, 3), 1, np.uint8) * np.array([9, 1, 1], np.uint8)
    )
    hit = library.search(colour[0], 1)[0]
    assert hit.video_id == library.videos()[0].video.video_id
    assert library.find_path(str(path)) is not None


def test_an_unchanged_library_is_skipped_without_a_process(
    library: Library, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    three_shots(folder / "a.mp4")
    make_film(folder / "b.mp4", [shot(2, 9)])
    run(library, folder)
    monkeypatch.setattr("vidqa.ingest.Worker", None)
    monkeypatch.setattr("vidqa.ingest.fingerprint", None)
    assert states(run(library, folder)) == {"a.mp4": "skipped", "b.mp4": "skipped"}


def test_a_touched_file_is_not_decoded_and_read_once_more_only(
    library: Library, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = three_shots(folder / "a.mp4").path
    run(library, folder)
    os.utime(path, (1, 1))
    monkeypatch.setattr("vidqa.ingest.Worker", None)
    assert states(run(library, folder)) == {"a.mp4": "skipped"}
    monkeypatch.setattr("vidqa.ingest.fingerprint", None)
    assert states(run(library, folder)) == {"a.mp4": "skipped"}


def test_a_moved_file_is_a_change_of_its_path(
    library: Library, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = three_shots(folder / "a.mp4").path
    run(library, folder)
    path.rename(folder / "b.mp4")
    monkeypatch.setattr("vidqa.ingest.Worker", None)
    assert states(run(library, folder)) == {"b.mp4": "moved"}
    assert names(library) == ["b.mp4"]


def test_a_copy_is_linked(library: Library, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = three_shots(folder / "a.mp4").path
    run(library, folder)
    shutil.copyfile(path, folder / "b.mp4")
    monkeypatch.setattr("vidqa.ingest.Worker", None)
    assert states(run(library, folder)) == {"a.mp4": "skipped", "b.mp4": "linked"}
    assert names(library) == ["a.mp4", "b.mp4"]
    assert len(library.videos()) == 1


def test_copies_that_come_together_are_read_once(library: Library, folder: Path) -> None:
    path = three_shots(folder / "a.mp4").path
    for name in ("b.mp4", "c.mp4"):
        shutil.copyfile(path, folder / name)
    embedder = MeanColour()
    report = ingest([folder], library, embedder, IngestOptions(workers=3))
    assert states(report) == {"a.mp4": "ingested", "b.mp4": "linked", "c.mp4": "linked"}
    assert sum(embedder.batches) == 9


def test_an_edited_file_is_ingested_again(library: Library, folder: Path) -> None:
    three_shots(folder / "a.mp4")
    run(library, folder)
    make_film(folder / "a.mp4", [shot(1.5, 7), shot(1.5, 8)])
    assert states(run(library, folder)) == {"a.mp4": "ingested"}
    (row,) = library.videos()
    assert row.video.duration_seconds == pytest.approx(3.0)


def test_other_sampling_ingests_again(library: Library, folder: Path) -> None:
    three_shots(folder / "a.mp4")
    run(library, folder)
    report = run(library, folder, options=IngestOptions(sample_fps=4))
    assert (report.files[0].state, report.files[0].frames) == ("ingested", 24)


@pytest.mark.parametrize(
    "options",
    [
        IngestOptions(keep_frames=False),
        IngestOptions(scenes=SceneOptions(max_scene_seconds=7)),
        IngestOptions(scenes=SceneOptions(min_scene_seconds=0.7)),
        IngestOptions(scenes=SceneOptions(adaptive_threshold=3.5)),
    ],
)
def test_the_recipe_tells_samplings_apart(options: IngestOptions) -> None:
    assert options.recipe != IngestOptions().recipe


def test_workers_and_patience_are_not_part_of_the_recipe() -> None:
    assert IngestOptions(workers=3, stall_seconds=9).recipe == IngestOptions().recipe


def test_new_subtitles_beside_a_video_are_noticed(library: Library, folder: Path) -> None:
    three_shots(folder / "a.mp4")
    run(library, folder)
    (folder / "a.srt").write_text("1\n00:00:01,000 --> 00:00:02,000\nhello\n")
    assert states(run(library, folder)) == {"a.mp4": "ingested"}
    (row,) = library.videos()
    assert [span.text for span in library.texts(row.video.video_id, 0, 6)] == ["hello"]
    assert states(run(library, folder)) == {"a.mp4": "skipped"}


def test_a_copy_without_subtitles_takes_none_away(library: Library, folder: Path) -> None:
    path = three_shots(folder / "a.mp4").path
    (folder / "a.srt").write_text("1\n00:00:01,000 --> 00:00:02,000\nhello\n")
    run(library, folder)
    shutil.copyfile(path, folder / "b.mp4")
    assert states(run(library, folder)) == {"a.mp4": "skipped", "b.mp4": "linked"}
    assert states(run(library, folder)) == {"a.mp4": "skipped", "b.mp4": "skipped"}
    (row,) = library.videos()
    assert [span.text for span in library.texts(row.video.video_id, 0, 6)] == ["hello"]
    path.unlink()
    assert states(run(library, folder)) == {"b.mp4": "ingested"}
    assert library.texts(row.video.video_id, 0, 6) == []


def test_subtitles_inside_a_video_are_stored(
    library: Library, folder: Path, tmp_path: Path
) -> None:
    film = three_shots(tmp_path / "plain.mp4")
    add_subtitles(film.path, folder / "a.mp4", "mov_text", [(1, 2, "hello")])
    run(library, folder)
    (row,) = library.videos()
    assert [span.text for span in library.texts(row.video.video_id, 0, 6)] == ["hello"]


def test_a_bad_file_costs_that_file_only(library: Library, folder: Path) -> None:
    three_shots(folder / "a.mp4")
    truncate(three_shots(folder / "b.mp4").path, 0.5)
    (folder / "c.mp4").touch()
    make_audio_only(folder / "d.mp4")
    make_film(folder / "e 日本.mp4", [shot(2, 9)])
    report = run(library, folder)
    assert states(report) == {
        "a.mp4": "ingested",
        "b.mp4": "failed",
        "c.mp4": "failed",
        "d.mp4": "failed",
        "e 日本.mp4": "ingested",
    }
    for failure in report.failures:
        assert str(failure.error).startswith(f"{failure.path}: ")
        assert "\n" not in str(failure.error)
    assert len(library.failures()) == 3


def test_a_failure_is_forgotten_once_the_file_is_good(library: Library, folder: Path) -> None:
    (folder / "a.mp4").touch()
    run(library, folder)
    three_shots(folder / "a.mp4")
    run(library, folder)
    assert library.failures() == []


def test_a_missing_file_is_a_failure(library: Library, folder: Path) -> None:
    report = run(library, folder / "no.mp4")
    assert report.failures[0].error == f"{folder / 'no.mp4'}: there is no such file"


def test_a_name_that_is_no_unicode_is_a_failure_of_that_file(
    library: Library, folder: Path
) -> None:
    path = three_shots(folder / "a.mp4").path
    shutil.copyfile(path, folder / os.fsdecode(b"caf\xe9.mp4"))
    report = run(library, folder)
    assert [one.state for one in report.files] == ["ingested", "failed"] or [
        one.state for one in report.files
    ] == ["failed", "ingested"]
    assert "not valid UTF-8" in str(report.failures[0].error)


def test_a_folder_without_videos_is_an_empty_report(library: Library, folder: Path) -> None:
    assert run(library, folder).files == ()


# A decoder that crashes at one file, and hangs at another, each after its first message.
SABOTAGED = """
import os, sys, time
from vidqa import worker
read = worker.read_video
def sabotaged(job):
    for message in read(job):
        yield message
        if job.path.endswith("crash.mp4"):
            os.kill(os.getpid(), 11)
        if job.path.endswith("hang.mp4"):
            time.sleep(1000)
worker.read_video = sabotaged
worker.child(int(sys.argv[1]))
"""


def children(of: int | None = None) -> list[int]:
    """Process ids of the living children of a process, of this one by default."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[1]) == (of or os.getpid()) and fields[0] != "Z":
            found.append(int(entry.parent.name))
    return found


def test_a_crash_of_the_decoder_costs_that_file_only(
    library: Library, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "_CHILD", SABOTAGED)
    for name in ("a.mp4", "crash.mp4", "d.mp4"):
        make_film(folder / name, [shot(2, ord(name[0]))])
    report = ingest([folder], library, MeanColour(), IngestOptions(workers=1))
    assert states(report) == {"a.mp4": "ingested", "crash.mp4": "failed", "d.mp4": "ingested"}
    assert "the decoder crashed (SIGSEGV)" in str(report.failures[0].error)


def test_a_decoder_that_dies_between_two_files_costs_neither(
    library: Library, folder: Path
) -> None:
    for name in ("a.mp4", "b.mp4"):
        make_film(folder / name, [shot(2, ord(name[0]))])

    def kill_the_idle(event: IngestProgress | FileReport) -> None:
        if isinstance(event, FileReport) and Path(event.path).name == "a.mp4":
            (idle,) = children()
            os.kill(idle, signal.SIGKILL)
            until(lambda: children() == [])

    report = ingest([folder], library, MeanColour(), IngestOptions(workers=1), kill_the_idle)
    assert states(report) == {"a.mp4": "ingested", "b.mp4": "ingested"}


def test_a_hung_decoder_is_ended(
    library: Library, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "_CHILD", SABOTAGED)
    for name in ("hang.mp4", "i.mp4"):
        make_film(folder / name, [shot(2, ord(name[0]))])
    options = IngestOptions(workers=1, stall_seconds=10)
    report = ingest([folder], library, MeanColour(), options)
    assert states(report) == {"hang.mp4": "failed", "i.mp4": "ingested"}
    assert "no progress for 10 s" in str(report.failures[0].error)
    assert children() == []


def test_progress_is_told_and_ends_with_a_report(library: Library, folder: Path) -> None:
    three_shots(folder / "a.mp4")
    events: list[IngestProgress | FileReport] = []
    ingest([folder], library, MeanColour(), None, events.append)
    assert isinstance(events[0], IngestProgress)
    assert (events[0].files_done, events[0].files_total) == (0, 1)
    assert events[0].seconds_total == pytest.approx(6)
    assert isinstance(events[-1], FileReport)


def test_an_error_of_the_embedder_ends_the_run_and_its_processes(
    library: Library, folder: Path
) -> None:
    three_shots(folder / "a.mp4")

    class Broken(MeanColour):
        def embed_images(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
            raise ModelError("out of memory")

    with pytest.raises(ModelError):
        ingest([folder], library, Broken())
    assert children() == []
    assert library.videos() == []


def test_frames_are_embedded_in_batches(library: Library, folder: Path) -> None:
    make_film(folder / "a.mp4", [shot(12)])
    embedder = MeanColour()
    ingest([folder], library, embedder, IngestOptions(sample_fps=5, batch_frames=16))
    assert sum(embedder.batches) == 60
    assert max(embedder.batches) <= 16 + 3


def test_two_ingests_at_once_end_with_one_library(library: Library, folder: Path) -> None:
    for n in range(3):
        make_film(folder / f"{n}.mp4", [shot(1, n), shot(1, n + 10)])
    other = Library.open(library.folder, SPEC)
    reports: list[IngestReport] = []
    threads = [
        threading.Thread(target=lambda one=one: reports.append(run(one, folder)))
        for one in (library, other)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [report.count("failed") for report in reports] == [0, 0]
    assert names(library) == ["0.mp4", "1.mp4", "2.mp4"]


PROGRAM = """
import sys
from pathlib import Path
sys.path.insert(0, ".")
from tests.test_ingest import MeanColour, SPEC
from vidqa.ingest import IngestOptions, IngestProgress, ingest
from vidqa.library import Library

def tell(event):
    print(type(event).__name__, flush=True)
    if isinstance(event, IngestProgress) and event.path.endswith("b.mp4"):
        sys.stdin.read()

library = Library.open(Path(sys.argv[1]), SPEC, create=True)
ingest([sys.argv[2]], library, MeanColour(), IngestOptions(workers=1), tell)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_ended_run_loses_the_video_in_hand_only(
    library: Library, folder: Path, number: int
) -> None:
    for name in ("a.mp4", "b.mp4", "c.mp4"):
        make_film(folder / name, [shot(2, ord(name[0]))])
    program = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(library.folder), str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert program.stdin is not None
    assert program.stdout is not None
    lines: list[str] = []
    while lines[-2:] != ["FileReport\n", "IngestProgress\n"]:
        lines.append(program.stdout.readline())
        assert lines[-1], "the program ended early"
    workers = children(program.pid)
    assert workers
    program.send_signal(number)
    program.wait(timeout=LIMIT_SECONDS)
    program.stdin.close()
    program.stdout.close()
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers))
    assert names(library) == ["a.mp4"]
    assert states(run(library, folder)) == {
        "a.mp4": "skipped",
        "b.mp4": "ingested",
        "c.mp4": "ingested",
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sample_fps": 0}, "sample_fps is 0; it must be above 0"),
        ({"workers": -1}, "workers is -1; it must be 0"),
        ({"stall_seconds": 0}, "stall_seconds is 0; it must be above 0"),
        ({"batch_frames": 0}, "batch_frames is 0; it must be 1 or more"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        IngestOptions(**options)  # type: ignore[arg-type]
