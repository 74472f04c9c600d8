"""A file becomes a `Video`, or one line that says why not."""

from __future__ import annotations

import os
import shutil
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.media import Format, add_subtitles, make_audio_only, three_shots, truncate
from vidqa.errors import VideoError
from vidqa.probe import FINGERPRINT_BLOCK_BYTES, FINGERPRINT_BLOCKS, fingerprint, probe


def test_a_video_is_described(tmp_path: Path) -> None:
    film = three_shots(tmp_path / "a.mp4")
    video = probe(film.path)
    assert (video.width, video.height, video.fps) == (160, 120, 24.0)
    assert video.duration_seconds == pytest.approx(6.0)
    assert (video.codec, video.rotation_degrees) == ("h264", 0)
    assert "mp4" in video.container
    assert video.size_bytes == film.path.stat().st_size
    assert video.mtime_ns == film.path.stat().st_mtime_ns


@pytest.mark.parametrize(
    ("suffix", "codec", "name"),
    [
        ("webm", "libvpx-vp9", "vp9"),
        ("avi", "mpeg4", "mpeg4"),
        ("mkv", "libx264", "h264"),
        ("ts", "libx264", "h264"),
        ("mov", "libx265", "hevc"),
    ],
)
def test_other_containers_and_codecs_are_described(
    tmp_path: Path, suffix: str, codec: str, name: str
) -> None:
    video = probe(three_shots(tmp_path / f"a.{suffix}", Format(codec=codec)).path)
    assert video.codec == name
    assert (video.width, video.height) == (160, 120)
    assert video.duration_seconds == pytest.approx(6.0, abs=0.2)


def test_the_size_is_the_displayed_one(tmp_path: Path) -> None:
    form = Format(rotation=90, sample_aspect=Fraction(2))
    video = probe(three_shots(tmp_path / "a.mp4", form).path)
    assert (video.width, video.height, video.rotation_degrees) == (120, 320, 90)


def test_the_path_is_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    three_shots(tmp_path / "a.mp4")
    monkeypatch.chdir(tmp_path)
    assert probe("a.mp4").path == str(tmp_path / "a.mp4")


@pytest.mark.parametrize(
    "name",
    ["with space.mp4", "größe 日本 🎬.mp4", "http:x.mp4", "%03d.mp4", "-i.mp4", "a'b\"c;$(x).mp4"],
)
def test_odd_names_are_only_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    three_shots(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert probe(name).path == str(tmp_path / name)


def test_a_name_that_is_not_unicode_is_refused(tmp_path: Path) -> None:
    source = three_shots(tmp_path / "a.mp4").path
    path = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.mp4")
    shutil.copy(source, path)
    with pytest.raises(VideoError, match=r"name is not valid UTF-8; rename it$"):
        probe(path)


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match=r"no.mp4: there is no such file$"):
        probe(tmp_path / "no.mp4")


def test_a_folder_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match="is a folder, not a video file"):
        probe(tmp_path)


def test_an_empty_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").touch()
    with pytest.raises(VideoError, match=r"a.mp4: is empty; copy the video again$"):
        probe(tmp_path / "a.mp4")


def test_a_text_is_not_a_video(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("hello\n" * 500)
    with pytest.raises(VideoError, match="is a picture, text or playlist, not a video"):
        probe(path)


def test_a_picture_is_not_a_video(tmp_path: Path) -> None:
    picture = tmp_path / "p.png"
    cv2.imwrite(str(picture), np.zeros((20, 20, 3), np.uint8))
    renamed = picture.rename(tmp_path / "p.mp4")
    with pytest.raises(VideoError, match="is a picture, text or playlist, not a video"):
        probe(renamed)


def test_noise_is_not_a_video(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(np.random.default_rng(0).bytes(50_000))
    with pytest.raises(VideoError, match="is not a video, or is truncated or damaged"):
        probe(path)


def test_a_file_cut_off_before_its_index_is_one_line(tmp_path: Path) -> None:
    path = truncate(three_shots(tmp_path / "a.mp4").path, 0.5)
    with pytest.raises(VideoError, match="is not a video, or is truncated or damaged"):
        probe(path)


def test_sound_alone_is_not_a_video(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match="has no video stream that can be decoded"):
        probe(make_audio_only(tmp_path / "a.m4a"))


def test_a_device_is_not_a_video() -> None:
    with pytest.raises(VideoError, match="is not a regular file"):
        probe("/dev/zero")


def test_a_playlist_fetches_nothing(tmp_path: Path) -> None:
    playlist = tmp_path / "a.mp4"
    playlist.write_text("#EXTM3U\n#EXTINF:2,\nhttp://127.0.0.1:9/secret.ts\n#EXT-X-ENDLIST\n")
    with pytest.raises(VideoError, match=r"a\.mp4: "):
        probe(playlist)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_file_is_one_line(tmp_path: Path) -> None:
    path = three_shots(tmp_path / "a.mp4").path
    path.chmod(0)
    with pytest.raises(VideoError, match="permission denied; make the file readable"):
        probe(path)


def test_a_line_stays_one_line_whatever_the_name(tmp_path: Path) -> None:
    path = tmp_path / "two\nlines\x1b[31m.mp4"
    path.touch()
    with pytest.raises(VideoError) as caught:
        probe(path)
    assert str(caught.value).isprintable()


def test_a_copy_has_the_same_fingerprint(tmp_path: Path) -> None:
    film = three_shots(tmp_path / "a.mp4")
    shutil.copyfile(film.path, tmp_path / "b.mp4")
    assert fingerprint(film.path) == fingerprint(tmp_path / "b.mp4")


def test_other_subtitles_make_another_fingerprint(tmp_path: Path) -> None:
    film = three_shots(tmp_path / "a.mp4")
    one = add_subtitles(film.path, tmp_path / "1.mp4", "mov_text", [(0, 1, "one")])
    two = add_subtitles(film.path, tmp_path / "2.mp4", "mov_text", [(0, 1, "two")])
    assert fingerprint(one) != fingerprint(two)


@pytest.mark.parametrize("at", [0, 1, 500_000, -1])
def test_any_byte_of_a_small_file_counts(tmp_path: Path, at: int) -> None:
    content = bytearray(FINGERPRINT_BLOCKS * FINGERPRINT_BLOCK_BYTES)
    path = tmp_path / "a"
    path.write_bytes(content)
    before = fingerprint(path)
    content[at] = 1
    path.write_bytes(content)
    assert fingerprint(path) != before


def test_the_ends_of_a_large_file_count(tmp_path: Path) -> None:
    path = tmp_path / "a"
    digests = set()
    for at in (None, 0, 5_000_000_000 - 1):
        with open(path, "wb") as file:
            file.truncate(5_000_000_000)
            if at is not None:
                file.seek(at)
                file.write(b"x")
        digests.add(fingerprint(path))
    assert len(digests) == 3
