"""Media of rows: what is shown of each kind, and that what was made once is not made again."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from finetune import media as media_module
from finetune.layout import Look
from finetune.media import frame_counts, show, show_row
from finetune.rows import Media, Origin, Row, Turn
from finetune.shelf import Shelf
from tests.media import Format, make_film, number_of, numbered, three_shots
from vidqa.errors import UsageError, VideoError
from vidqa.frames import pictures_at, sampled_pictures
from vidqa.stills import for_model, read_image
from vidqa.types import Picture

LOOK = Look(max_frames=8)


def video(path: Path, **named: Any) -> Media:
    return Media("video", (str(path),), **named)


def image(path: Path, **named: Any) -> Media:
    return Media("image", (str(path),), **named)


def row(*media: Media) -> Row:
    return Row((Turn("user", (*media, "What?")),), Origin("rows.jsonl", 1))


def pixels(picture: Picture) -> np.ndarray[Any, Any]:
    return np.asarray(Image.open(io.BytesIO(picture.jpeg)))


def frames_in(folder: Path, count: int, size: tuple[int, int] = (64, 48)) -> list[Path]:
    """Pictures that get lighter, named so that words sort them wrongly from the tenth on."""
    folder.mkdir()
    paths = [folder / f"frame{n}.png" for n in range(count)]
    for n, path in enumerate(paths):
        Image.new("RGB", size, (n * 10,) * 3).save(path)
    return paths


def brightness(pictures: tuple[Picture, ...]) -> list[int]:
    return [round(float(pixels(one).mean()) / 10) for one in pictures]


# What is shown


def test_a_video_shows_what_ask_would_show_of_it(tmp_path: Path) -> None:
    film = three_shots(tmp_path / "a.mp4", Format(width=640, height=480))
    shown = show(video(film.path), LOOK, 8)
    assert list(shown.pictures) == sampled_pictures(str(film.path), 0, None, 1.0)
    assert (shown.width, shown.height) == (640, 480)
    assert (shown.start_seconds, shown.end_seconds) == pytest.approx((0, 6))


def test_a_part_of_a_video_shows_that_part_only(tmp_path: Path) -> None:
    film = three_shots(tmp_path / "a.mp4")
    shown = show(video(film.path, start_seconds=2.0, end_seconds=4.0), LOOK, 8)
    assert all(2 <= one.seconds < 4 for one in shown.pictures)
    assert (shown.start_seconds, shown.end_seconds) == (2, 4)


def test_a_part_that_ends_after_the_video_ends_with_it(tmp_path: Path) -> None:
    film = three_shots(tmp_path / "a.mp4")
    shown = show(video(film.path, start_seconds=4.0, end_seconds=60.0), LOOK, 8)
    assert shown.end_seconds == pytest.approx(6)


def test_frames_are_chosen_evenly_and_fitted(tmp_path: Path) -> None:
    film = three_shots(tmp_path / "a.mp4", Format(width=640, height=480))
    shown = show(video(film.path), Look(max_pixels=112 * 84), 2)
    assert [one.seconds for one in shown.pictures] == [1.0, 4.0]
    assert pixels(shown.pictures[0]).shape == (84, 112, 3)


@pytest.mark.parametrize("fps", [0.5, 4.0])
def test_frames_are_sampled_at_the_rate_of_the_look(tmp_path: Path, fps: float) -> None:
    film = three_shots(tmp_path / "a.mp4")
    shown = show(video(film.path), Look(sample_fps=fps), 100)
    assert len(shown.pictures) == 6 * fps


def test_a_frame_of_a_video_can_be_a_picture(tmp_path: Path) -> None:
    film = make_film(tmp_path / "a.mp4", [numbered(6)])
    shown = show(image(film.path, at_seconds=2.0), LOOK, 1)
    assert list(shown.pictures) == pictures_at(str(film.path), [2.0])
    assert number_of(pixels(shown.pictures[0])) == 48
    assert (shown.width, shown.height, shown.start_seconds) == (160, 120, 2.0)


def test_a_picture_is_what_a_question_would_show(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.effect_noise((900, 600), 60).convert("RGB").save(path)
    shown = show(image(path), LOOK, 1)
    expected = for_model(read_image(path.read_bytes(), max_pixels=10**6))
    assert [one.jpeg for one in shown.pictures] == [expected]
    assert (shown.width, shown.height) == (900, 600)


def test_a_picture_is_upright_and_so_is_its_size(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    turned = Image.new("RGB", (80, 40))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(path, exif=exif)
    shown = show(image(path), LOOK, 1)
    assert (shown.width, shown.height) == (40, 80)
    assert pixels(shown.pictures[0]).shape == (80, 40, 3)


def test_a_list_of_frames_is_a_video(tmp_path: Path) -> None:
    paths = frames_in(tmp_path / "frames", 12)
    media = Media("video", tuple(map(str, paths)), fps=4.0)
    shown = show(media, LOOK, 100)
    assert [one.seconds for one in shown.pictures] == [n / 4 for n in range(12)]
    assert brightness(shown.pictures) == list(range(12))
    assert (shown.start_seconds, shown.end_seconds) == (0, 3)
    assert (shown.width, shown.height) == (64, 48)


def test_a_folder_of_frames_is_a_video_in_the_order_a_person_counts(tmp_path: Path) -> None:
    frames_in(tmp_path / "frames", 12)
    (tmp_path / "frames" / "notes.txt").write_text("no picture")
    shown = show(video(tmp_path / "frames", fps=1.0), LOOK, 100)
    assert brightness(shown.pictures) == list(range(12))


def test_a_picture_given_as_a_video_is_a_list_of_one_frame(tmp_path: Path) -> None:
    (path,) = frames_in(tmp_path / "frames", 1)
    shown = show(video(path, fps=4.0), LOOK, 8)
    assert brightness(shown.pictures) == [0]
    assert (shown.start_seconds, shown.end_seconds) == (0, 0.25)


def test_a_gif_given_as_a_video_moves(tmp_path: Path) -> None:
    pictures = [Image.new("RGB", (64, 48), (n, n, n)) for n in (0, 200)]
    path = tmp_path / "a.gif"
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=1000)
    assert len(show(video(path), LOOK, 8).pictures) == 2


def test_a_part_of_a_list_is_chosen_from_evenly(tmp_path: Path) -> None:
    paths = frames_in(tmp_path / "frames", 12)
    media = Media("video", tuple(map(str, paths)), fps=1.0, start_seconds=4, end_seconds=8)
    assert brightness(show(media, LOOK, 2).pictures) == [5, 7]


def test_parts_of_a_list_with_the_same_frames_keep_their_own_beginnings(tmp_path: Path) -> None:
    paths = tuple(map(str, frames_in(tmp_path / "frames", 4)))
    shelf = Shelf(tmp_path / "shelf")
    for start in (0.2, 0.8):
        part = Media("video", paths, fps=1.0, start_seconds=start, end_seconds=3.0)
        assert show(part, LOOK, 2, shelf).start_seconds == start


def test_frames_are_dealt_out_among_the_videos_of_a_row() -> None:
    a, picture = Media("video", ("a",)), Media("image", ("p",))
    assert frame_counts([a], Look(max_frames=16)) == [16]
    assert frame_counts([a, picture, a, a], Look(max_frames=16)) == [6, 1, 6, 4]
    assert frame_counts([a, a], Look(max_frames=16, frames_per_moment=4)) == [4, 4]
    assert frame_counts([picture] * 20, Look(max_frames=2)) == [1] * 20
    with pytest.raises(UsageError, match="3 videos in one row need 6 frames; max_frames is 4"):
        frame_counts([a] * 3, Look(max_frames=4))


# What cannot be shown


@pytest.mark.parametrize(
    ("media", "reason"),
    [
        (video(Path("gone.mp4")), "gone.mp4: there is no such file"),
        (image(Path("gone.png")), "gone.png: there is no such file"),
        (image(Path("gone.mp4"), at_seconds=1.0), "gone.mp4: there is no such file"),
        (Media("video", ("gone1.png", "gone2.png")), "gone1.png: there is no such file"),
    ],
)
@pytest.mark.parametrize("with_shelf", [True, False])
def test_a_missing_file_is_named(
    tmp_path: Path, media: Media, reason: str, with_shelf: bool
) -> None:
    with pytest.raises(VideoError, match=reason):
        show(media, LOOK, 8, Shelf(tmp_path) if with_shelf else None)


def test_frames_of_different_sizes_are_no_video(tmp_path: Path) -> None:
    (first,) = frames_in(tmp_path / "a", 1)
    (second,) = frames_in(tmp_path / "b", 1, (32, 32))
    with pytest.raises(VideoError, match=r"is 32 x 32 pixels, the first frame of its video 64 x"):
        show(Media("video", (str(first), str(second))), LOOK, 8)


def test_what_is_no_picture_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_text("hello")
    with pytest.raises(VideoError, match=r"a\.png: these 5 bytes are no JPEG"):
        show(image(path), LOOK, 1)


def test_an_empty_folder_is_no_video(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match="the folder holds no picture"):
        show(video(tmp_path), LOOK, 8)


def test_a_part_that_is_none_is_refused(tmp_path: Path) -> None:
    film = three_shots(tmp_path / "a.mp4")
    with pytest.raises(UsageError, match=r"\[4, 2\) s is no part of a video"):
        show(video(film.path, start_seconds=4, end_seconds=2), LOOK, 8)
    with pytest.raises(VideoError, match=r"has no frame at 60 s; it lasts 6 s"):
        show(image(film.path, at_seconds=60.0), LOOK, 1)


# The shelf


def media_of_each_kind(folder: Path) -> list[Media]:
    film = three_shots(folder / "a.mp4")
    paths = frames_in(folder / "frames", 3)
    return [
        video(film.path),
        video(film.path, start_seconds=1, end_seconds=3),
        image(film.path, at_seconds=1.0),
        image(paths[0]),
        Media("video", tuple(map(str, paths))),
    ]


def test_what_is_on_the_shelf_needs_neither_decoder_nor_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    media = media_of_each_kind(tmp_path)
    first = show_row(row(*media), LOOK, Shelf(tmp_path / "shelf"))
    for path in [*tmp_path.glob("*.mp4"), *tmp_path.glob("frames/*")]:
        path.unlink()
    for name in ("read_stretch", "pictures_at", "read_image", "fingerprint"):
        monkeypatch.delattr(media_module, name)
    assert show_row(row(*media), LOOK, Shelf(tmp_path / "shelf")) == first


def test_the_shelf_gives_what_would_be_made(tmp_path: Path) -> None:
    media = media_of_each_kind(tmp_path)
    shelf = Shelf(tmp_path / "shelf")
    show_row(row(*media), LOOK, shelf)
    assert show_row(row(*media), LOOK, shelf) == show_row(row(*media), LOOK)


def test_a_renamed_video_is_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    film = three_shots(tmp_path / "a.mp4")
    shelf = Shelf(tmp_path / "shelf")
    first = show(video(film.path), LOOK, 8, shelf)
    film.path.rename(tmp_path / "b.mp4")
    monkeypatch.delattr(media_module, "read_stretch")
    assert show(video(tmp_path / "b.mp4"), LOOK, 8, shelf) == first


def test_a_changed_video_is_made_anew(tmp_path: Path) -> None:
    film = three_shots(tmp_path / "a.mp4")
    shelf = Shelf(tmp_path / "shelf")
    first = show(video(film.path), LOOK, 8, shelf)
    make_film(film.path, [numbered(4)])
    second = show(video(film.path), LOOK, 8, shelf)
    assert second.end_seconds == pytest.approx(4)
    assert second.pictures != first.pictures


@pytest.mark.parametrize(
    "change", [{"max_pixels": 56 * 56}, {"sample_fps": 2.0}, {"max_frames": 2}]
)
def test_another_look_gives_other_pictures(tmp_path: Path, change: dict[str, Any]) -> None:
    film = three_shots(tmp_path / "a.mp4")
    shelf = Shelf(tmp_path / "shelf")
    other = replace(LOOK, **change)
    show_row(row(video(film.path)), LOOK, shelf)
    assert show_row(row(video(film.path)), other, shelf) == show_row(row(video(film.path)), other)
