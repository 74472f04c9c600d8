"""One folder that stays in agreement with itself, whatever happens around it."""

from __future__ import annotations

import fcntl
import json
import shutil
import signal
import threading
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from library_parts import RECIPE, SPEC, add, batch, jpeg, scenes, start_writer, vectors, video
from numpy.typing import NDArray
from waiting import LIMIT_SECONDS

from vidqa import library as library_module
from vidqa import picture_files
from vidqa.errors import EmbedderMismatch, LibraryError, UsageError
from vidqa.library import Library
from vidqa.types import Filters, Picture, TextSpan


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made once and copied, as making a store ends in a checkpoint to the disk."""
    return Library.open(tmp_path_factory.mktemp("empty") / "index", SPEC, create=True).folder


@pytest.fixture
def library(empty: Path, tmp_path: Path) -> Library:
    return Library.open(Path(shutil.copytree(empty, tmp_path / "index")))


def check_whole(library: Library, name: str, frames: int) -> None:
    """Everything of a video is there and fits together."""
    made = video(name)
    assert len(library.scenes(made.video_id)) == len(scenes(frames))
    times = library.frame_seconds(made.video_id, 0, 1000)
    assert times == list(range(frames))
    assert library.pictures(made.video_id, times) == [
        Picture(float(n), jpeg(name, n)) for n in range(frames)
    ]


# ---------------------------------------------------------------- the folder


def test_what_is_added_is_found_again_by_another_opening(library: Library) -> None:
    made = add(library, "a", frames=5, texts=(TextSpan(1, 3, "hello"),))
    again = Library.open(library.folder)
    assert again.spec == SPEC
    assert again.find(made.fingerprint) == made
    assert again.find_path(made.path) == made
    assert again.texts(made.video_id, 2.5, 9) == [TextSpan(1, 3, "hello")]
    check_whole(again, "a", 5)


def test_no_library_is_an_error_that_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(LibraryError, match=r"no library at .*; make one: vidqa ingest"):
        Library.open(tmp_path / "none")


def test_a_folder_of_other_files_is_never_made_a_library(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear reader")
    with pytest.raises(LibraryError, match=r"holds other files \(letter.txt"):
        Library.open(tmp_path, SPEC, create=True)
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


def test_somebody_elses_manifest_does_not_make_a_library(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps({"name": "an app"}))
    with pytest.raises(LibraryError, match="no library at"):
        Library.open(tmp_path)


def test_a_layout_of_a_later_vidqa_is_refused(library: Library) -> None:
    (library.folder / "manifest.json").write_text(json.dumps({"vidqa_library": 9}))
    with pytest.raises(LibraryError, match="has layout 9, this vidqa knows layout 1; update vidqa"):
        Library.open(library.folder)


def test_a_creation_that_was_cut_short_is_finished_by_the_next_one(tmp_path: Path) -> None:
    folder = tmp_path / "index"
    folder.mkdir()
    (folder / "manifest.json").write_text(json.dumps({"vidqa_library": 1}))
    library = Library.open(folder, SPEC, create=True)
    add(library, "a")
    assert len(library.videos()) == 1


def test_another_embedder_is_an_error_that_names_both(library: Library) -> None:
    other = replace(SPEC, model="other", weights="1" * 32)
    with pytest.raises(EmbedderMismatch, match=r"made with made-up .*not with other .*--embedder"):
        Library.open(library.folder, other)


def test_the_same_weights_under_another_name_are_the_same_embedder(library: Library) -> None:
    assert Library.open(library.folder, replace(SPEC, model="/moved/model")).spec == SPEC


# ---------------------------------------------------------------- what becomes of videos


def test_adding_the_same_content_again_replaces_it(library: Library) -> None:
    add(library, "a", frames=6)
    made = add(library, "a", frames=4, recipe="another")
    [row] = library.videos()
    assert (row.scenes, row.frames, row.recipe) == (2, 4, "another")
    assert library.is_current(made, "another")
    assert not library.is_current(made, RECIPE)
    check_whole(library, "a", 4)


def test_an_edited_file_takes_the_place_of_what_its_path_named(library: Library) -> None:
    add(library, "old", path="/videos/cut.mp4")
    add(library, "new", path="/videos/cut.mp4")
    [row] = library.videos()
    assert row.video.fingerprint == video("new").fingerprint


def test_a_copy_is_a_second_path_of_one_video(library: Library) -> None:
    made = add(library, "a")
    library.link(replace(made, path="/videos/copy.mp4"))
    [row] = library.videos()
    assert row.paths == ("/videos/a.mp4", "/videos/copy.mp4")


def test_a_copy_that_is_edited_leaves_the_other_one_alone(library: Library) -> None:
    made = add(library, "a")
    library.link(replace(made, path="/videos/copy.mp4"))
    add(library, "b", path="/videos/copy.mp4")
    assert [row.paths for row in library.videos()] == [("/videos/a.mp4",), ("/videos/copy.mp4",)]


def test_a_file_that_was_only_touched_keeps_its_frames(library: Library) -> None:
    made = add(library, "a")
    library.link(replace(made, mtime_ns=99))
    found = library.find_path(made.path)
    assert found is not None
    assert found.mtime_ns == 99
    check_whole(library, "a", 4)


def test_a_moved_file_is_only_renamed(library: Library) -> None:
    made = add(library, "a")
    library.move(replace(made, path="/elsewhere/a.mp4"), made.path)
    [row] = library.videos()
    assert row.paths == ("/elsewhere/a.mp4",)
    check_whole(library, "a", 4)


def test_a_removed_video_is_gone_with_its_pictures(library: Library) -> None:
    made = add(library, "a")
    add(library, "b")
    library.remove(made.video_id)
    assert [row.video.path for row in library.videos()] == ["/videos/b.mp4"]
    assert len(list((library.folder / "frames").iterdir())) == 1
    assert all(hit.video_id != made.video_id for hit in library.search(vectors("a", 1)[0], 10))


def test_a_failure_is_kept_until_the_file_is_ingested(library: Library) -> None:
    library.record_failure("/videos/a.mp4", "truncated")
    library.record_failure("/videos/a.mp4", "still truncated")
    assert [(one.path, one.error) for one in library.failures()] == [
        ("/videos/a.mp4", "still truncated")
    ]
    add(library, "a")
    assert library.failures() == []


def test_frames_may_arrive_in_any_order_of_time(library: Library) -> None:
    whole = batch("a", 4)
    with library.draft() as draft:
        for part in ([2, 3], [0, 1]):
            jpegs = [whole.jpegs[n] for n in part]
            draft.append(whole.seconds[part], vectors("a", 4)[part], jpegs)
        draft.commit(video("a"), scenes(4), (), RECIPE)
    check_whole(library, "a", 4)
    [hit] = library.search(vectors("a", 4)[3], 1)
    assert (hit.seconds, hit.scene_index) == (3.0, 1)


def test_a_draft_that_is_not_committed_leaves_nothing(library: Library) -> None:
    with library.draft() as draft:
        draft.append(batch("a", 4).seconds, vectors("a", 4), batch("a", 4).jpegs)
    assert library.videos() == []
    assert list((library.folder / "frames").iterdir()) == []


def test_a_video_without_frames_is_refused(library: Library) -> None:
    with library.draft() as draft, pytest.raises(ValueError, match="without frames or scenes"):
        draft.commit(video("a"), scenes(4), (), RECIPE)


# ---------------------------------------------------------------- pictures


def test_a_picture_is_the_kept_one_nearest_to_the_time(library: Library) -> None:
    made = add(library, "a")
    shown = library.pictures(made.video_id, [1.4, 1.6, 99])
    assert [one.seconds for one in shown] == [1.0, 2.0, 3.0]


def test_lost_pictures_are_decoded_again_from_the_file(tmp_path: Path) -> None:
    asked: list[tuple[str, list[float]]] = []

    def pictures_at(path: str, seconds: object) -> list[Picture]:
        asked.append((path, list(seconds)))  # type: ignore[call-overload]
        return [Picture(1.0, b"decoded")]

    folder, file = tmp_path / "index", tmp_path / "a.mp4"
    file.write_bytes(b"film")
    library = Library.open(folder, SPEC, create=True, pictures_at=pictures_at)
    made = add(library, "a", path=str(file))
    for blob in (folder / "frames").iterdir():
        blob.write_bytes(blob.read_bytes()[:10])
    assert library.pictures(made.video_id, [1.0]) == [Picture(1.0, b"decoded")]
    assert asked == [(str(file), [1.0])]


def test_pictures_lost_with_their_file_are_an_error_that_names_the_file(library: Library) -> None:
    made = add(library, "a", pictures=False)
    with pytest.raises(LibraryError, match=r"/videos/a.mp4: its kept pictures are gone and"):
        library.pictures(made.video_id, [1.0])


def test_the_pictures_of_the_oldest_videos_go_first_when_there_are_too_many(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "abc":
        add(library, name)
    size = next((library.folder / "frames").iterdir()).stat().st_size
    monkeypatch.setattr(library_module, "PICTURES_LIMIT_BYTES", 2 * size)
    library.tidy()
    kept = {row.video.path for row in library.videos() if row.pictures_file}
    assert kept == {"/videos/b.mp4", "/videos/c.mp4"}
    assert len(list((library.folder / "frames").iterdir())) == 2


# ---------------------------------------------------------------- searching


def test_a_search_finds_the_frame_that_is_asked_for(library: Library) -> None:
    for name in "abc":
        add(library, name, frames=10)
    [hit] = library.search(vectors("b", 10)[7], 1)
    assert (hit.video_id, hit.seconds, hit.scene_index) == (video("b").video_id, 7.0, 3)
    assert hit.score == pytest.approx(1.0, abs=1e-3)


def test_a_search_sees_what_another_opening_has_changed(library: Library) -> None:
    add(library, "a")
    assert len(library.search(vectors("a", 1)[0], 100)) == 4
    other = Library.open(library.folder)
    add(other, "b", frames=6)
    assert len(library.search(vectors("a", 1)[0], 100)) == 10
    other.remove(video("a").video_id)
    assert {hit.video_id for hit in library.search(vectors("a", 1)[0], 100)} == {
        video("b").video_id
    }


def test_filters_still_give_k_frames(library: Library) -> None:
    for name in "abcd":
        add(library, name, frames=10)
    hits = library.search(
        vectors("a", 10)[0], 8, filters=Filters(video="d.mp4"), where="scene_index < 4"
    )
    assert len(hits) == 8
    assert {hit.video_id for hit in hits} == {video("d").video_id}
    assert max(hit.scene_index for hit in hits) == 3


@pytest.mark.parametrize("glob", ["/videos/a.mp4", "a.mp4", "*a.mp4", "/videos/a*", "[a].mp4"])
def test_a_video_is_named_by_path_by_name_or_by_pattern(library: Library, glob: str) -> None:
    add(library, "a")
    add(library, "b")
    hits = library.search(vectors("b", 1)[0], 10, filters=Filters(video=glob))
    assert {hit.video_id for hit in hits} == {video("a").video_id}


def test_a_name_with_brackets_is_found_as_it_is_written(library: Library) -> None:
    add(library, "a", path="/videos/take [1].mp4")
    assert len(library.search(vectors("a", 1)[0], 10, filters=Filters(video="take [1].mp4"))) == 4


def test_relevance_is_the_cosine_of_every_frame_in_order_of_time(library: Library) -> None:
    for name in "ab":
        add(library, name, frames=10)
    query = vectors("a", 10)[3]
    curves = library.relevance(query, [video("b").video_id, video("a").video_id])
    for name in "ab":
        seconds, scores = curves[video(name).video_id]
        assert seconds.tolist() == list(range(10))
        np.testing.assert_allclose(scores, vectors(name, 10) @ query, atol=1e-3)


def test_a_long_video_keeps_the_best_frame_of_each_stretch(library: Library) -> None:
    add(library, "a", frames=100)
    query = vectors("x", 1)[0]
    cosines = vectors("a", 100) @ query
    curves = library.relevance(query, [video("a").video_id], max_points=7)
    seconds, scores = curves[video("a").video_id]
    best = [edge + np.argmax(part) for edge, part in pieces(cosines, 7)]
    assert seconds.tolist() == best
    np.testing.assert_allclose(scores, cosines[best], atol=1e-3)


def pieces(values: NDArray[np.float32], count: int) -> list[tuple[int, NDArray[np.float32]]]:
    edges = [len(values) * n // count for n in range(count + 1)]
    return [(a, values[a:b]) for a, b in pairwise(edges)]


def test_relevance_leaves_out_videos_that_are_not_there(library: Library) -> None:
    add(library, "a")
    assert library.relevance(vectors("a", 1)[0], [video("b").video_id]) == {}
    assert library.relevance(vectors("a", 1)[0], []) == {}


def test_relevance_sees_what_has_been_added_and_removed(library: Library) -> None:
    add(library, "a")
    both = [video("a").video_id, video("b").video_id]
    assert list(library.relevance(vectors("a", 1)[0], both)) == both[:1]
    add(library, "b")
    library.remove(both[0])
    assert list(library.relevance(vectors("a", 1)[0], both)) == both[1:]


def test_an_empty_library_finds_nothing(library: Library) -> None:
    assert library.search(vectors("a", 1)[0], 5) == []


def test_k_must_be_at_least_one(library: Library) -> None:
    with pytest.raises(UsageError, match="k is 0; at least 1"):
        library.search(vectors("a", 1)[0], 0)


def test_a_damaged_index_is_built_again(library: Library, caplog: pytest.LogCaptureFixture) -> None:
    add(library, "a", frames=10)
    library.tidy()
    path = library.folder / "index.faiss"
    data = bytearray(path.read_bytes())
    data[-5] ^= 0xFF
    path.write_bytes(data)
    again = Library.open(library.folder)
    [hit] = again.search(vectors("a", 10)[4], 1)
    assert hit.seconds == 4.0
    assert "its checksum does not fit" in caplog.text
    assert path.read_bytes() != bytes(data)


def test_the_index_of_another_library_is_not_taken(library: Library, tmp_path: Path) -> None:
    other = Library.open(tmp_path / "other", SPEC, create=True)
    for one, name in ((library, "a"), (other, "b")):
        add(one, name, frames=10)
        one.tidy()
    (library.folder / "index.faiss").write_bytes((other.folder / "index.faiss").read_bytes())
    [hit] = Library.open(library.folder).search(vectors("a", 10)[4], 1)
    assert hit.score == pytest.approx(1.0, abs=1e-3)


def test_a_library_made_anew_under_a_running_reader_is_noticed(
    library: Library, tmp_path: Path
) -> None:
    add(library, "a", frames=10)
    library.search(vectors("a", 1)[0], 1)
    shutil.rmtree(library.folder)
    add(Library.open(library.folder, SPEC, create=True), "b", frames=10)
    [hit] = library.search(vectors("b", 10)[4], 1)
    assert (hit.video_id, hit.seconds) == (video("b").video_id, 4.0)


def test_a_search_works_where_the_index_cannot_be_written(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(library, "a")

    def refuse(*_: object) -> None:
        raise PermissionError("read-only")

    monkeypatch.setattr("vidqa.index.FrameIndex.save", refuse)
    assert len(library.search(vectors("a", 1)[0], 10)) == 4


# ---------------------------------------------------------------- several processes, and death


def test_a_writer_killed_at_any_moment_leaves_whole_videos_only(tmp_path: Path) -> None:
    folder = tmp_path / "index"
    acknowledged: set[str] = set()
    random = np.random.default_rng(7)
    for attempt in range(4):
        writer = start_writer(folder, f"v{attempt}-", 1000)
        assert writer.stdout is not None
        for _ in range(2):
            acknowledged.add(writer.stdout.readline().strip())
        time.sleep(random.uniform(0, 0.1))
        writer.send_signal(signal.SIGKILL)
        acknowledged |= set(writer.stdout.read().split())
        writer.wait()
        writer.stdout.close()
    library = Library.open(folder, SPEC, create=True)
    stored = {Path(row.video.path).stem for row in library.videos()}
    assert acknowledged <= stored
    for name in stored:
        check_whole(library, name, 6)
    assert len(library.search(vectors("x", 1)[0], 100_000)) == 6 * len(stored)
    library.tidy()
    named = {row.pictures_file for row in library.videos()}
    assert {path.name for path in (folder / "frames").iterdir()} == named


def test_two_writers_and_a_reader_at_once_all_succeed(tmp_path: Path) -> None:
    folder = tmp_path / "index"
    library = Library.open(folder, SPEC, create=True)
    writers = [start_writer(folder, prefix, 4) for prefix in "ab"]
    counts = []
    while any(writer.poll() is None for writer in writers):
        counts.append(len(library.search(vectors("a0", 6)[2], 1000)))
    for writer in writers:
        assert writer.stdout is not None
        assert len(writer.stdout.read().split()) == 4
        writer.stdout.close()
        assert writer.wait() == 0
    assert counts == sorted(counts)
    assert all(count % 6 == 0 for count in counts)
    assert len(library.search(vectors("a0", 6)[2], 1000)) == 48


def test_threads_of_one_process_take_turns(library: Library) -> None:
    errors: list[BaseException] = []

    def work(name: str) -> None:
        try:
            add(library, name)
            library.search(vectors(name, 1)[0], 3)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(name,)) for name in "abcdef"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(library.videos()) == 6


def test_a_following_library_searches_what_another_process_has_added(library: Library) -> None:
    add(library, "a", frames=6)
    follower = Library.open(library.folder, follow=True)
    assert len(follower.search(vectors("a", 1)[0], 100)) == 6
    start_writer(library.folder, "b", 2).communicate()
    assert len(follower.search(vectors("a", 1)[0], 100)) == 18
    assert len(follower.videos()) == 3


def test_searches_of_several_threads_run_side_by_side(library: Library) -> None:
    add(library, "a")
    both = threading.Barrier(2, timeout=LIMIT_SECONDS)
    index = library._index

    def search() -> None:
        with index._followed():
            both.wait()

    threads = [threading.Thread(target=search) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not both.broken


def test_an_index_takes_in_new_frames_only_while_nobody_searches(library: Library) -> None:
    add(library, "a")
    library.search(vectors("a", 1)[0], 1)
    with library._index._followed() as index:
        add(library, "b")
        follower = threading.Thread(target=library.search, args=(vectors("b", 1)[0], 1))
        follower.start()
        follower.join(0.3)
        assert (follower.is_alive(), len(index)) == (True, 4)
    follower.join()
    assert len(index) == 8


def test_the_pictures_of_a_draft_in_hand_are_not_swept(library: Library) -> None:
    with library.draft() as draft:
        draft.append(batch("a", 4).seconds, vectors("a", 4), batch("a", 4).jpegs)
        Library.open(library.folder).tidy()
        draft.commit(video("a"), scenes(4), (), RECIPE)
    check_whole(library, "a", 4)


def test_a_draft_that_is_swept_before_it_is_locked_is_begun_again(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = fcntl.flock

    def late(*arguments: Any) -> None:
        monkeypatch.setattr(picture_files.fcntl, "flock", lock)
        assert picture_files.sweep(library.folder / library_module.PICTURES, list) == 1
        lock(*arguments)

    monkeypatch.setattr(picture_files.fcntl, "flock", late)
    add(library, "a")
    check_whole(library, "a", 4)


def test_what_a_killed_writer_left_is_swept(library: Library) -> None:
    add(library, "a")
    (library.folder / "frames" / "dead.tmp").write_bytes(b"half")
    (library.folder / "frames" / "dead-0000.jpegs").write_bytes(b"renamed, never committed")
    library.tidy()
    assert len(list((library.folder / "frames").iterdir())) == 1
    check_whole(library, "a", 4)
