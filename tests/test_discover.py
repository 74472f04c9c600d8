"""Which files are meant by paths."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vidqa.discover import find_videos


def touch(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def found(*paths: Path) -> list[str]:
    videos, failures = find_videos(paths)
    assert failures == []
    return videos


def test_folders_are_searched_with_all_below_in_order(tmp_path: Path) -> None:
    touch(tmp_path, "b.mp4", "a.MKV", "z/deep/er/c.webm", "m/d.mov")
    names = ["a.MKV", "b.mp4", "m/d.mov", "z/deep/er/c.webm"]
    assert found(tmp_path) == [str(tmp_path / name) for name in names]


def test_what_is_no_video_is_passed_over_in_folders(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4", "notes.txt", "song.mp3", "cover.jpg", "a.srt", "a.mp4.part", "README")
    assert found(tmp_path) == [str(tmp_path / "a.mp4")]


def test_hidden_files_and_folders_are_passed_over(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4", "._a.mp4", ".Trash/b.mp4")
    assert found(tmp_path) == [str(tmp_path / "a.mp4")]


def test_a_named_file_is_taken_whatever_its_name(tmp_path: Path) -> None:
    touch(tmp_path, "recording", ".hidden.bin")
    names = [tmp_path / "recording", tmp_path / ".hidden.bin"]
    assert found(*names) == [str(name) for name in names]


def test_a_missing_file_is_left_to_the_ingest_to_report(tmp_path: Path) -> None:
    assert found(tmp_path / "no.mp4") == [str(tmp_path / "no.mp4")]


def test_a_file_is_taken_once_however_often_it_is_named(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4")
    (tmp_path / "link.mp4").symlink_to(tmp_path / "a.mp4")
    assert found(tmp_path / "a.mp4", tmp_path, tmp_path / "link.mp4") == [str(tmp_path / "a.mp4")]


def test_loops_of_links_end(tmp_path: Path) -> None:
    touch(tmp_path, "in/a.mp4")
    (tmp_path / "in" / "up").symlink_to(tmp_path)
    (tmp_path / "in" / "self").symlink_to(tmp_path / "in")
    assert found(tmp_path) == [str(tmp_path / "in" / "a.mp4")]


def test_a_linked_folder_is_searched(tmp_path: Path) -> None:
    touch(tmp_path, "elsewhere/a.mp4")
    (tmp_path / "library").mkdir()
    (tmp_path / "library" / "linked").symlink_to(tmp_path / "elsewhere")
    assert found(tmp_path / "library") == [str(tmp_path / "library" / "linked" / "a.mp4")]


def test_a_dangling_link_is_not_an_error_of_discovery(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").symlink_to(tmp_path / "gone.mp4")
    assert found(tmp_path) == [str(tmp_path / "a.mp4")]


def test_typescript_is_no_transport_stream(tmp_path: Path) -> None:
    (tmp_path / "main.ts").write_text("import { x } from './x'\n")
    (tmp_path / "film.ts").write_bytes(b"\x47" + bytes(187))
    (tmp_path / "camera.m2ts").write_bytes(bytes(4) + b"\x47" + bytes(187))
    assert found(tmp_path) == [str(tmp_path / "camera.m2ts"), str(tmp_path / "film.ts")]


def test_a_file_in_the_place_of_a_name_that_is_no_unicode_is_found(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"caf\xe9.mp4")).touch()
    assert len(found(tmp_path)) == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root may look everywhere")
def test_a_folder_that_cannot_be_looked_into_is_reported(tmp_path: Path) -> None:
    touch(tmp_path, "shut/a.mp4", "b.mp4")
    (tmp_path / "shut").chmod(0)
    videos, failures = find_videos([tmp_path])
    assert videos == [str(tmp_path / "b.mp4")]
    assert "cannot look into the folder" in str(failures[0].error)
