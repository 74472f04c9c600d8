"""What `check` finds, and what it lets pass."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Literal

import pytest
from media import make_film, shot, truncate
from PIL import Image

from finetune.check import check
from finetune.formats import read
from finetune.layout import Look
from finetune.media import show
from finetune.rows import Boxed, Located, Media, Origin, Part, Ref, Row, Turn
from vidqa.boxes import Box, Unit
from vidqa.errors import VideoError

FILM_SECONDS = 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """a.mp4 of two seconds and 160 x 120, b.mp4, and picture.png of 200 x 100."""
    folder = tmp_path_factory.mktemp("media")
    make_film(folder / "a.mp4", [shot(FILM_SECONDS, 1)])
    make_film(folder / "b.mp4", [shot(FILM_SECONDS, 2)])
    Image.new("RGB", (200, 100)).save(folder / "picture.png")
    for n in (1, 2):
        Image.new("RGB", (20, 10), (n, n, n)).save(folder / f"{n}.jpg")
    return folder


def row(*turns: Turn, line: int = 1, file: str = "train.jsonl") -> Row:
    return Row(turns, Origin(file, line))


def asked(*parts: Part) -> Turn:
    return Turn("user", parts or ("What?",))


def answered(*parts: Part) -> Turn:
    return Turn("assistant", parts or ("That.",))


def messages(*rows: Row) -> list[str]:
    return [one.message for one in check(rows)]


def about(medium: Media, line: int = 1, file: str = "train.jsonl") -> Row:
    return row(asked(medium, f"What is at {line} of {file}?"), answered(), line=line, file=file)


def test_good_rows_have_no_problem(folder: Path) -> None:
    film = Media("video", (str(folder / "a.mp4"),), 0.5, float(FILM_SECONDS))
    picture = Media("image", (str(folder / "picture.png"),))
    frame = Media("image", (str(folder / "a.mp4"),), at_seconds=1.0)
    frames = Media("video", (str(folder / "1.jpg"), str(folder / "2.jpg")), fps=2.0)
    box = Box(0, 0, 200, 100, "pixel")
    rows = [
        row(
            Turn("system", ("Be short.",)), asked(film, "?"), answered(), asked("And?"), answered()
        ),
        row(asked(picture, "Where?"), answered(Located((("it", box),)))),
        row(asked(frame, "Here?"), answered(Boxed(Box(0, 0, 160, 120, "pixel")))),
        row(asked(frames, "So?"), answered(Ref("a thing"))),
        row(asked("Without media?"), answered()),
    ]
    assert check(rows) == []


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        ([answered(), asked(), answered()], "the assistant speaks first"),
        ([asked(), asked(), answered()], "the user speaks twice in a row"),
        ([asked(), answered(), asked()], "has no answer at its end"),
        ([asked(), Turn("system", ("x",)), answered()], "the system speaks after the beginning"),
        ([Turn("system", ("x",))], "has no answer at its end"),
        (
            [asked(), Turn("assistant", ("x",), trains=False)],
            "none of its answers is to be learned",
        ),
        ([asked(), answered(" \n")], "an answer is empty"),
        ([asked(), Turn("assistant", ())], "an answer is empty"),
        ([asked(" "), answered()], "a question is empty"),
        ([asked(), answered(Located(()))], "an answer names no thing and no box"),
        ([], "has no turns"),
    ],
)
def test_turns_that_make_no_conversation_are_told(turns: list[Turn], message: str) -> None:
    (found,) = messages(row(*turns))
    assert found.startswith(message)


def test_a_picture_in_an_answer_is_told(folder: Path) -> None:
    picture = Media("image", (str(folder / "picture.png"),))
    (found,) = messages(row(asked(), answered(picture, "this")))
    assert found == "a video or image stands in a turn of the assistant; only users show them"


def test_files_that_are_missing_damaged_or_elsewhere_are_told(folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / "a.mp4", tmp_path / "cut.mp4")
    truncate(tmp_path / "cut.mp4", 0.2)
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "frames").mkdir()
    media = [
        Media("video", (str(tmp_path / "none.mp4"),)),
        Media("video", (str(tmp_path / "1.jpg"), str(tmp_path / "2.jpg"))),
        Media("video", (str(tmp_path / "cut.mp4"),)),
        Media("image", (str(tmp_path / "text.png"),)),
        Media("image", ("https://example.org/1",)),
        Media("video", (str(tmp_path / "frames"),)),
    ]
    found = messages(*(about(medium, n) for n, medium in enumerate(media)))
    assert found == [
        f"{tmp_path}/none.mp4: there is no such file",
        f"{tmp_path}/1.jpg: there is no such file (and 1 more)",
        f"{tmp_path}/cut.mp4: is not a video, or is truncated or damaged; copy it again",
        f"{tmp_path}/text.png: is no JPEG, PNG, WebP or GIF, or is damaged",
        "https://example.org/1 is an address; nothing is fetched, download it and name the file",
        f"{tmp_path}/frames: the folder holds no picture; frames are .jpg, .jpeg, .png, .webp, "
        ".gif",
    ]


@pytest.mark.parametrize(
    ("kind", "names", "more"),
    [
        ("image", ("a.bmp",), {}),
        ("image", ("a.tif",), {}),
        ("image", ("bmp.png",), {}),
        ("image", ("strip.png",), {}),
        ("image", ("1.jpg",), {"at_seconds": 0.0}),
        ("video", ("a.bmp",), {}),
        ("video", ("a.bmp", "b.bmp"), {}),
        ("video", ("1.jpg", "large.jpg"), {}),
        ("video", ("folder of bmp",), {}),
    ],
)
def test_pictures_that_training_refuses_are_told(
    tmp_path: Path, kind: Literal["video", "image"], names: tuple[str, ...], more: dict[str, float]
) -> None:
    for name in ("a.bmp", "b.bmp", "a.tif", "1.jpg"):
        Image.new("RGB", (20, 10)).save(tmp_path / name)
    Image.new("RGB", (40, 20)).save(tmp_path / "large.jpg")
    Image.new("RGB", (600, 10)).save(tmp_path / "strip.png")
    shutil.copy(tmp_path / "a.bmp", tmp_path / "bmp.png")
    (tmp_path / "folder of bmp").mkdir()
    shutil.copy(tmp_path / "a.bmp", tmp_path / "folder of bmp")
    medium = Media(kind, tuple(str(tmp_path / name) for name in names), **more)
    with pytest.raises(VideoError):
        show(medium, Look(), 8)
    assert len(messages(about(medium))) == 1


@pytest.mark.parametrize("name", ["1.jpg", "folder", "moving.gif"])
def test_pictures_that_training_takes_for_a_video_pass(tmp_path: Path, name: str) -> None:
    pictures = [Image.new("RGB", (20, 10), (n, n, n)) for n in (0, 200)]
    pictures[0].save(tmp_path / "1.jpg")
    pictures[0].save(tmp_path / "moving.gif", save_all=True, append_images=pictures[1:])
    (tmp_path / "folder").mkdir()
    shutil.copy(tmp_path / "1.jpg", tmp_path / "folder")
    medium = Media("video", (str(tmp_path / name),))
    assert show(medium, Look(), 8).pictures
    assert messages(about(medium)) == []


@pytest.mark.parametrize(
    ("times", "message"),
    [
        ({"start_seconds": 1.0, "end_seconds": 1.0}, "start 1 is not before end 1"),
        ({"start_seconds": 1.5, "end_seconds": 1.0}, "start 1.5 is not before end 1"),
        ({"start_seconds": 2.0}, "start 2 is beyond the video's end at 2.00 seconds"),
        ({"end_seconds": 9.0}, "end 9 is beyond the video's end at 2.00 seconds"),
        ({"start_seconds": -1.0}, "start is -1; it is a number from 0 on"),
        ({"end_seconds": float("nan")}, "end is nan; it is a number from 0 on"),
    ],
)
def test_times_that_are_not_in_the_video_are_told(
    folder: Path, times: dict[str, float], message: str
) -> None:
    film = Media("video", (str(folder / "a.mp4"),), **times)  # type: ignore[arg-type]
    assert messages(about(film)) == [message]


def test_an_end_that_a_container_rounds_differently_passes(folder: Path) -> None:
    assert messages(about(Media("video", (str(folder / "a.mp4"),), 0, 2.2))) == []


def test_a_frame_beyond_the_end_is_told(folder: Path) -> None:
    frame = Media("image", (str(folder / "a.mp4"),), at_seconds=2.0)
    assert messages(about(frame)) == ["at 2 is beyond the video's end at 2.00 seconds"]


def test_times_of_single_frames_need_their_rate(folder: Path) -> None:
    paths = (str(folder / "1.jpg"), str(folder / "2.jpg"))
    assert messages(about(Media("video", paths, 0.0, 1.0))) == [
        "start and end of single frames need their fps"
    ]
    assert messages(about(Media("video", paths, 0.0, 1.0, fps=2.0))) == []
    assert messages(about(Media("video", paths, 0.0, 9.0, fps=2.0))) == [
        "end 9 is beyond the video's end at 1.00 seconds"
    ]


@pytest.mark.parametrize(
    ("sides", "unit", "message"),
    [
        ((50, 10, 40, 20), "pixel", "box (50, 10, 40, 20) is inverted or empty"),
        ((10, 20, 40, 20), "pixel", "box (10, 20, 40, 20) is inverted or empty"),
        ((10, 20, 240, 90), "pixel", "in pixels is outside the picture, which is 200 x 100"),
        ((-9, 20, 40, 90), "pixel", "in pixels is outside the picture"),
        ((0.1, 0.1, 0.5, 1.1), "fraction", "in fractions of the picture is outside"),
        ((1, 1, 500, 1001), "thousandth", "in thousandths of the picture is outside"),
        ((0.1, 0.1, 0.5, 0.5), "pixel", "looks like fractions (bbox_type norm1)"),
        ((0, 0, float("nan"), 1), "fraction", "has a side that is no number"),
    ],
)
def test_boxes_that_are_not_in_their_picture_are_told(
    folder: Path, sides: tuple[float, ...], unit: Unit, message: str
) -> None:
    box = Box(*sides, unit=unit)  # type: ignore[arg-type]
    picture = Media("image", (str(folder / "picture.png"),))
    for part in (Boxed(box), Located((("it", box),))):
        (found,) = messages(row(asked(picture, "Where?"), answered(part)))
        assert message in found


def test_a_box_that_a_hand_drew_a_pixel_too_far_passes(folder: Path) -> None:
    picture = Media("image", (str(folder / "picture.png"),))
    box = Boxed(Box(-0.5, 0, 200.7, 100, "pixel"))
    assert messages(row(asked(picture, "Where?"), answered(box))) == []


def test_a_picture_on_its_side_is_measured_as_it_is_shown(tmp_path: Path) -> None:
    image = Image.new("RGB", (200, 100))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.jpg", exif=exif)
    picture = Media("image", (str(tmp_path / "turned.jpg"),))
    box = Boxed(Box(0, 0, 100, 200, "pixel"))
    assert messages(row(asked(picture, "Where?"), answered(box))) == []


def test_boxes_need_a_picture_that_the_row_has(folder: Path) -> None:
    film = Media("video", (str(folder / "a.mp4"),))
    box = Box(0.1, 0.1, 0.5, 0.5)
    assert messages(row(asked(film, "Where?"), answered(Boxed(box, 1)))) == [
        "a box is in medium 1, counted from 0, and the row has 1"
    ]
    assert messages(row(asked(film, "Where?"), answered(Boxed(box, 0)))) == [
        "a box is in a video; give the time of one frame (an image with `at`)"
    ]


def test_a_row_that_stands_there_twice_is_told_also_when_its_file_is_a_copy(
    folder: Path, tmp_path: Path
) -> None:
    shutil.copy(folder / "a.mp4", tmp_path / "copy.mp4")
    paths = [folder / "a.mp4", tmp_path / "copy.mp4", folder / "b.mp4"]
    rows = [
        row(asked(Media("video", (str(path),)), "?"), answered(), line=n)
        for n, path in enumerate(paths, 1)
    ]
    other = dataclasses.replace(rows[0], turns=(*rows[0].turns[:1], answered("Other.")))
    assert [str(one) for one in check([*rows, other])] == [
        "train.jsonl:2: is the same row as train.jsonl:1"
    ]


def test_held_out_videos_that_are_trained_on_are_told_also_as_renamed_copies(
    folder: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "another name.mp4"
    shutil.copy(folder / "a.mp4", copy)
    trained = [about(Media("video", (str(folder / "a.mp4"),)), n) for n in (1, 2)]
    held_out = [
        about(Media("video", (str(copy),)), 1, "test.jsonl"),
        about(Media("video", (str(copy),), 1.0), 2, "test.jsonl"),
        about(Media("video", (str(folder / "b.mp4"),)), 3, "test.jsonl"),
    ]
    (problem,) = check(trained, held_out)
    assert str(problem) == (
        f"test.jsonl:1: {copy} is trained on too, at train.jsonl:1 as {folder / 'a.mp4'}; "
        "2 held-out rows are about it"
    )


def test_a_frame_of_a_trained_video_leaks_and_one_alike_frame_of_many_does_not(
    folder: Path, tmp_path: Path
) -> None:
    trained = [
        about(Media("video", (str(folder / "a.mp4"),)), 1),
        about(Media("video", (str(folder / "1.jpg"), str(folder / "2.jpg"))), 2),
    ]
    frame = Media("image", (str(folder / "a.mp4"),), at_seconds=1.0)
    others = []
    for n in (5, 6):
        Image.new("RGB", (20, 10), (n * 40, 0, 0)).save(tmp_path / f"{n}.jpg")
        others.append(str(tmp_path / f"{n}.jpg"))
    black = Media("video", (str(folder / "1.jpg"), *others))
    found = check(trained, [about(frame, 1, "test.jsonl"), about(black, 2, "test.jsonl")])
    assert [one.origin.line for one in found] == [1]


def test_faults_of_reading_come_with_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    good = {"query": "What?", "response": "That."}
    odd = {"query": "<video>What?", "response": "That."}
    path.write_text("\n".join([json.dumps(good), "{oops", json.dumps(odd), json.dumps(good)]))
    found = [str(one) for one in check(read(path))]
    assert found[0].startswith(f"{path}:2: is not JSON: ")
    assert found[1:] == [
        f"{path}:3: 1 <video> in the texts, and 0 videos",
        f"{path}:4: is the same row as {path}:1",
    ]
