"""Formats of training data: what their projects' documentation shows, and what is written back."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from finetune.formats import FORMATS, SUFFIXES, detect, read, write
from finetune.rows import Boxed, Located, Media, Origin, Part, Ref, Row, Turn
from vidqa.boxes import Box, question
from vidqa.errors import UsageError
from vidqa.types import TextSpan

HERE = Origin("", 0)


def stored(folder: Path, name: str, *records: Any) -> Path:
    """A JSONL file of the records, or a JSON file of their list."""
    path = folder / name
    lines = [json.dumps(record) for record in records]
    path.write_text("\n".join(lines) if path.suffix == ".jsonl" else f"[{','.join(lines)}]")
    return path


def only(path: Path, format: str | None = None) -> Row:
    (row,) = read(path, format)
    return row


def same(rows: Sequence[Row]) -> list[Row]:
    """Rows without their origins, which differ between files."""
    return [dataclasses.replace(row, origin=HERE) for row in rows]


def video(folder: Path, *names: str, **more: Any) -> Media:
    return Media("video", tuple(str(folder / name) for name in names), **more)


def image(folder: Path, name: str, **more: Any) -> Media:
    return Media("image", (str(folder / name),), **more)


def asked(*parts: Part) -> Turn:
    return Turn("user", parts)


def answered(*parts: Part, trains: bool = True) -> Turn:
    return Turn("assistant", parts, trains)


# The golden data: what every format of conversations can hold.


def golden(folder: Path) -> list[Row]:
    return [
        Row(
            (asked(video(folder, "a.mp4"), "Who opens the door?"), answered("The red star.")), HERE
        ),
        Row(
            (
                Turn("system", ("Be short.",)),
                asked(video(folder, "b.mp4"), "What happens?"),
                answered("A square\nleaves."),
                asked("And then?"),
                answered("It returns; „so“ it goes."),
            ),
            HERE,
            id="7",
            task="answer",
            choices=("it returns", "it stays"),
            extra={"source": "me", "level": "hard"},
        ),
        Row(
            (
                asked("First ", video(folder, "a.mp4"), " then ", video(folder, "b.mp4"), "Same?"),
                answered("No."),
            ),
            HERE,
        ),
        Row((asked(image(folder, "p.png"), "What colour?"), answered("Blue.")), HERE),
        Row(
            (
                asked(
                    video(folder, "f/1.jpg", "f/2.jpg", fps=2.0), image(folder, "p.png"), "Is it?"
                ),
                answered("Yes."),
            ),
            HERE,
        ),
        Row(
            (
                asked(video(folder, "a.mp4", start_seconds=1.5, end_seconds=3.0), "And here?"),
                answered("Nothing."),
            ),
            HERE,
        ),
        Row(
            (asked(image(folder, "a.mp4", at_seconds=1.25), "What is it?"), answered("A star.")),
            HERE,
        ),
    ]


CONVERSATIONS = sorted(set(FORMATS) - {"coco", "trl-prompt"})


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("format", CONVERSATIONS)
def test_the_same_data_in_every_format_and_container_reads_back_as_the_same_rows(
    tmp_path: Path, format: str, suffix: str
) -> None:
    path = tmp_path / f"train{suffix}"
    problems = write(golden(tmp_path), path, format)
    assert not [one for one in problems if "left out" in one.message]
    assert same(read(path)) == golden(tmp_path)
    assert detect(path) == format


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_prompt_and_completion_hold_the_same_but_learn_the_last_answer_alone(
    tmp_path: Path, suffix: str
) -> None:
    path = tmp_path / f"train{suffix}"
    problems = write(golden(tmp_path), path, "trl-prompt")
    wanted = golden(tmp_path)
    turns = list(wanted[1].turns)
    turns[2] = dataclasses.replace(turns[2], trains=False)
    wanted[1] = dataclasses.replace(wanted[1], turns=tuple(turns))
    assert same(read(path)) == wanted
    assert "only the last answer is learned" in {one.message for one in problems}


def test_a_file_that_moves_with_its_media_still_finds_them(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    write(golden(tmp_path / "old")[:1], tmp_path / "old" / "train.jsonl", "llava")
    (tmp_path / "old").rename(tmp_path / "new")
    assert only(tmp_path / "new" / "train.jsonl").media == (video(tmp_path / "new", "a.mp4"),)


# vidqa's own


def test_its_own_format_loses_nothing(tmp_path: Path) -> None:
    words = (TextSpan(1.0, 2.5, "Hello <video>", "speech"),)
    row = Row(
        (
            Turn("system", ("a", "b")),
            asked(
                video(tmp_path, "a.mp4", start_seconds=1.0, texts=words),
                "<image> and <|box_start|>(1,2),(3,4)<|box_end|> ",
                Ref("dog"),
                "",
                Boxed(Box(0.1, 0.2, 0.3, 0.4), 1),
            ),
            answered(Located((("dog", Box(1, 2, 3, 4, "pixel")),), 1), trains=False),
            Turn("user", ()),
            answered(""),
        ),
        HERE,
        task="box",
        extra={"id": 3, "task": "mine", "messages": [], "extra": {"vidqa": None}},
    )
    for suffix in (".jsonl", ".json"):
        assert write([row], tmp_path / f"a{suffix}", "vidqa") == []
        assert same(read(tmp_path / f"a{suffix}")) == [row]


def test_its_own_format_may_be_written_by_hand_with_media_beside_the_messages(
    tmp_path: Path,
) -> None:
    record = {
        "vidqa": 1,
        "video": "a.mp4",
        "start": "0:01",
        "end": "1:02.5",
        "messages": [
            {"role": "user", "content": "What happens?"},
            {"role": "assistant", "content": "Nothing."},
        ],
    }
    row = only(stored(tmp_path, "a.jsonl", record))
    assert row.turns[0] == asked(
        video(tmp_path, "a.mp4", start_seconds=1.0, end_seconds=62.5), "What happens?"
    )


@pytest.mark.parametrize(
    ("part", "fault"),
    [
        ({"type": "audio", "audio": "a.wav"}, "a part is of type 'audio'"),
        ({"type": "box", "box": [1, 2, 3]}, "a box has 4 numbers"),
        ({"type": "box", "box": [1, 2, 3, 4], "unit": "inch"}, "unit 'inch', which is none of"),
        ({"type": "video"}, "'video' is missing"),
        (
            {"type": "video", "video": "a.mp4", "texts": [{"start": 2, "end": 1, "text": ""}]},
            "range",
        ),
        (7, "is not whole"),
    ],
)
def test_a_part_that_is_not_whole_is_a_fault_of_its_row(
    tmp_path: Path, part: Any, fault: str
) -> None:
    record = {"vidqa": 1, "messages": [{"role": "user", "content": [part]}]}
    (found,) = only(stored(tmp_path, "a.jsonl", record)).faults
    assert fault in found


def test_a_version_that_is_not_known_is_a_fault(tmp_path: Path) -> None:
    row = only(stored(tmp_path, "a.jsonl", {"vidqa": 2, "messages": [{"role": "user"}]}))
    assert "is of version 2 of this format; 1 can be read" in row.faults


# LLaMA-Factory, as data/README.md and mllm_video_demo.json show it

SHAREGPT = {
    "conversations": [
        {"from": "human", "value": "<video>Why is this video funny?"},
        {"from": "gpt", "value": "Because a baby is reading."},
    ],
    "videos": ["a.mp4"],
    "system": "Be kind.",
}


def test_llama_factorys_conversations_are_recognised_by_their_lists_of_media(
    tmp_path: Path,
) -> None:
    path = stored(tmp_path, "a.json", SHAREGPT)
    assert detect(path) == "llama-factory"
    assert only(path).turns == (
        Turn("system", ("Be kind.",)),
        asked(video(tmp_path, "a.mp4"), "Why is this video funny?"),
        answered("Because a baby is reading."),
    )


def test_llama_factorys_description_names_columns_and_tags(tmp_path: Path) -> None:
    record = {
        "dialog": [{"who": "U", "what": "<image>Who?"}, {"who": "A", "what": "Kane."}],
        "pics": ["1.jpg"],
        "intro": "Short.",
    }
    path = stored(tmp_path, "mine.json", record)
    info = {
        "mine": {
            "file_name": "mine.json",
            "formatting": "sharegpt",
            "columns": {"messages": "dialog", "images": "pics", "system": "intro"},
            "tags": {
                "role_tag": "who",
                "content_tag": "what",
                "user_tag": "U",
                "assistant_tag": "A",
            },
        },
        "elsewhere": {"hf_hub_url": "a/b"},
    }
    (tmp_path / "dataset_info.json").write_text(json.dumps(info))
    assert detect(path) == "llama-factory"
    assert only(path).turns == (
        Turn("system", ("Short.",)),
        asked(image(tmp_path, "1.jpg"), "Who?"),
        answered("Kane."),
    )
    assert only(path).extra == {}


def test_a_dataset_info_stands_for_all_files_that_it_names(tmp_path: Path) -> None:
    stored(tmp_path, "a.json", SHAREGPT)
    stored(tmp_path, "b.json", {"instruction": "Hi", "input": "there", "output": "Hello"})
    info: dict[str, Any] = {
        "a": {"file_name": "a.json", "formatting": "sharegpt", "columns": {"videos": "videos"}},
        "b": {"file_name": "b.json"},
    }
    path = tmp_path / "dataset_info.json"
    path.write_text(json.dumps(info))
    first, second = read(path)
    assert first.media == (video(tmp_path, "a.mp4"),)
    assert second.turns == (asked("Hi\nthere"), answered("Hello"))
    assert second.origin == Origin(str(tmp_path / "b.json"), 1)
    info["c"] = {"hf_hub_url": "who/what"}
    path.write_text(json.dumps(info))
    with pytest.raises(UsageError, match="c has hf_hub_url; download it"):
        read(path)


def test_data_of_preferences_is_refused(tmp_path: Path) -> None:
    path = stored(tmp_path, "a.json", {"instruction": "Hi", "chosen": "a", "rejected": "b"})
    info = {"a": {"file_name": "a.json", "ranking": True}}
    (tmp_path / "dataset_info.json").write_text(json.dumps(info))
    with pytest.raises(UsageError, match="data of preferences"):
        read(path)


def test_writing_adds_to_the_dataset_info_that_is_there(tmp_path: Path) -> None:
    info = tmp_path / "dataset_info.json"
    info.write_text('{"theirs": {"file_name": "x.json"}}')
    write(golden(tmp_path)[:1], tmp_path / "ours.json", "llama-factory")
    assert json.loads(info.read_text())["theirs"] == {"file_name": "x.json"}
    assert json.loads(info.read_text())["ours"] == {
        "file_name": "ours.json",
        "formatting": "sharegpt",
        "columns": {"messages": "messages", "videos": "videos"},
        "tags": {
            "role_tag": "role",
            "content_tag": "content",
            "user_tag": "user",
            "assistant_tag": "assistant",
            "system_tag": "system",
        },
    }


def test_writing_again_describes_the_file_under_the_name_it_has(tmp_path: Path) -> None:
    info = tmp_path / "dataset_info.json"
    info.write_text('{"birds": {"file_name": "ours.json"}}')
    rows = golden(tmp_path)[:1]
    write(rows, tmp_path / "ours.json", "llama-factory")
    assert list(json.loads(info.read_text())) == ["birds"]
    assert same(read(tmp_path / "ours.json")) == same(rows)


def test_what_is_no_description_stays_in_the_dataset_info(tmp_path: Path) -> None:
    info = tmp_path / "dataset_info.json"
    info.write_text('{"_comment": "ours and theirs"}')
    write(golden(tmp_path)[:1], tmp_path / "ours.json", "llama-factory")
    assert json.loads(info.read_text())["_comment"] == "ours and theirs"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('[{"dataset_path": "a.jsonl"}]', r"holds \[\{'dataset_path': 'a\.jsonl'\}\], and LLaMA-"
         "Factory wants an object there; write to another folder"),
        ('{"ours": {"file_name": "ours.csv"}}', r"'ours' is \{'file_name': 'ours\.csv'\} already, "
         r"not ours\.json; give the file another name, or write to another folder"),
        ('{"ours": {"hf_hub_url": "a/b"}}', r"'ours' is \{'hf_hub_url': 'a/b'\} already"),
        ('{"ours": "a note"}', "'ours' is 'a note' already"),
        ("{", r"dataset_info\.json: cannot be read"),
    ],
)  # fmt: skip
def test_a_dataset_info_that_is_somebody_elses_is_left_alone(
    tmp_path: Path, text: str, reason: str
) -> None:
    info = tmp_path / "dataset_info.json"
    info.write_text(text)
    with pytest.raises(UsageError, match=reason):
        write(golden(tmp_path)[:1], tmp_path / "ours.json", "llama-factory")
    assert info.read_text() == text
    assert not (tmp_path / "ours.json").exists()


def test_data_is_not_written_in_place_of_its_own_description(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is the name of the description; give the data another"):
        write(golden(tmp_path)[:1], tmp_path / "dataset_info.json", "llama-factory")


def test_data_that_cannot_be_written_is_not_described(tmp_path: Path) -> None:
    (tmp_path / "ours.json").mkdir()
    with pytest.raises(UsageError, match="name a file to write"):
        write(golden(tmp_path)[:1], tmp_path / "ours.json", "llama-factory")
    assert not (tmp_path / "dataset_info.json").exists()


def test_alpaca_has_its_history_before_the_question(tmp_path: Path) -> None:
    record = {
        "instruction": "<video>What now?",
        "input": "",
        "output": "It ends.",
        "system": "Short.",
        "history": [["Hi", "Hello"]],
        "videos": ["a.mp4"],
    }
    path = stored(tmp_path, "a.json", record)
    assert detect(path) == "alpaca"
    assert only(path).turns == (
        Turn("system", ("Short.",)),
        asked("Hi"),
        answered("Hello"),
        asked(video(tmp_path, "a.mp4"), "What now?"),
        answered("It ends."),
    )


# ms-swift, as docs/source_en/Customization/Custom-dataset.md shows it

SWIFT_GROUNDING = {
    "messages": [
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": "<image>Describe the image."},
        {
            "role": "assistant",
            "content": "<ref-object><bbox> and <ref-object><bbox> are playing on the beach",
        },
    ],
    "images": ["x.jpg"],
    "objects": {
        "ref": ["a dog", "a woman"],
        "bbox": [[331.5, 761.4, 853.5, 1594.8], [676.5, 685.8, 1099.5, 1427.4]],
    },
}


def test_ms_swifts_objects_fill_the_places_of_names_and_boxes(tmp_path: Path) -> None:
    path = stored(tmp_path, "a.jsonl", SWIFT_GROUNDING)
    assert detect(path) == "ms-swift"
    row = only(path)
    assert row.faults == ()
    assert row.turns[2] == answered(
        Ref("a dog"),
        Boxed(Box(331.5, 761.4, 853.5, 1594.8, "pixel")),
        " and ",
        Ref("a woman"),
        Boxed(Box(676.5, 685.8, 1099.5, 1427.4, "pixel")),
        " are playing on the beach",
    )


def test_ms_swifts_objects_may_be_json_in_a_string(tmp_path: Path) -> None:
    text = {**SWIFT_GROUNDING, "objects": json.dumps(SWIFT_GROUNDING["objects"])}
    plain = same(read(stored(tmp_path, "a.jsonl", SWIFT_GROUNDING)))
    assert same(read(stored(tmp_path, "b.jsonl", text))) == plain


def test_ms_swifts_fractions_and_numbers_of_images_are_read(tmp_path: Path) -> None:
    record = {
        "messages": [
            {"role": "user", "content": "<video><image><image>Find the <ref-object>."},
            {"role": "assistant", "content": "<bbox> <bbox>"},
        ],
        "videos": ["a.mp4"],
        "images": ["x.jpg", "y.jpg"],
        "objects": {
            "ref": ["sheep"],
            "bbox": [[0.1, 0.2, 0.3, 0.4], [0.5, 0.5, 1, 1]],
            "bbox_type": "norm1",
            "image_id": [0, 1],
        },
    }
    row = only(stored(tmp_path, "a.jsonl", record))
    assert row.turns[0].parts[3:] == ("Find the ", Ref("sheep"), ".")
    # Boxes count all media, of which the video is the first.
    assert row.turns[1] == answered(
        Boxed(Box(0.1, 0.2, 0.3, 0.4), 1), " ", Boxed(Box(0.5, 0.5, 1.0, 1.0), 2)
    )


@pytest.mark.parametrize("as_text", [True, False])
def test_ms_swifts_older_rows_have_a_query_and_objects_with_captions(
    tmp_path: Path, as_text: bool
) -> None:
    objects = [
        {
            "caption": "guy in red",
            "bbox": [[138, 136, 235, 359], [1, 2, 3, 4]],
            "bbox_type": "norm_1000",
            "image": 0,
        }
    ]
    record = {
        "query": "Find <ref-object>",
        "response": "<bbox>",
        "history": [["Hi", "Hello"]],
        "system": "Short.",
        "images": ["x.jpg"],
        "objects": json.dumps(objects) if as_text else objects,
    }
    path = stored(tmp_path, "a.jsonl", record)
    assert detect(path) == "ms-swift-2"
    row = only(path)
    assert row.faults == ()
    assert row.turns == (
        Turn("system", ("Short.",)),
        asked(image(tmp_path, "x.jpg"), "Hi"),
        answered("Hello"),
        asked("Find ", Ref("guy in red")),
        answered(
            Boxed(Box(138, 136, 235, 359, "thousandth")), Boxed(Box(1, 2, 3, 4, "thousandth"))
        ),
    )


def test_an_answer_of_names_with_boxes_is_where_things_are(tmp_path: Path) -> None:
    record = {
        "messages": [
            {"role": "user", "content": "<image>Where are they?"},
            {"role": "assistant", "content": "<ref-object><bbox>\n<ref-object><bbox>"},
        ],
        "images": ["x.jpg"],
        "objects": {"ref": ["dog", "cat"], "bbox": [[1, 2, 3, 4], [5, 6, 7, 8]]},
    }
    row = only(stored(tmp_path, "a.jsonl", record))
    things = (("dog", Box(1, 2, 3, 4, "pixel")), ("cat", Box(5, 6, 7, 8, "pixel")))
    assert row.turns[1] == answered(Located(things))


def test_ms_swift_says_of_each_message_whether_it_is_learned(tmp_path: Path) -> None:
    record = {
        "messages": [
            {"role": "user", "content": "1"},
            {"role": "assistant", "content": "2", "loss": False},
            {"role": "user", "content": "3"},
            {"role": "assistant", "content": "4", "loss": True},
            {"role": "user", "content": "5"},
            {"role": "assistant", "content": "6", "loss": 0.5},
        ]
    }
    row = only(stored(tmp_path, "a.jsonl", record))
    assert [turn.trains for turn in row.turns[1::2]] == [False, True, True]
    assert row.faults == ("a loss of 0.5; a message is learned (true) or not (false)",)


def test_ms_swifts_sharegpt_has_both_sides_in_one_object(tmp_path: Path) -> None:
    record = {"system": "S", "conversation": [{"human": "1", "assistant": "2"}]}
    row = only(stored(tmp_path, "a.jsonl", record))
    assert row.turns == (Turn("system", ("S",)), asked("1"), answered("2"))


def test_ms_swifts_media_without_places_come_before_the_first_question(tmp_path: Path) -> None:
    record = {"query": "What?", "response": "That.", "videos": ["a.mp4"], "images": "p.png"}
    row = only(stored(tmp_path, "a.jsonl", record))
    assert row.faults == ()
    assert row.turns[0] == asked(video(tmp_path, "a.mp4"), image(tmp_path, "p.png"), "What?")


def test_qwen2_vls_own_tokens_are_read_as_names_and_boxes(tmp_path: Path) -> None:
    record = {
        "messages": [
            {
                "role": "user",
                "content": "<image>Find the <|object_ref_start|>sheep<|object_ref_end|>",
            },
            {
                "role": "assistant",
                "content": "<|box_start|>(101,201),(150,266)<|box_end|> or "
                "<|box_start|>(246,113)<|box_end|>",
            },
        ],
        "images": ["x.jpg"],
    }
    row = only(stored(tmp_path, "a.jsonl", record))
    assert row.turns[0].parts[1:] == ("Find the ", Ref("sheep"))
    box = Boxed(Box(101, 201, 150, 266, "thousandth"))
    # A point is no box, and stays what it was.
    assert row.turns[1] == answered(box, " or <|box_start|>(246,113)<|box_end|>")


@pytest.mark.parametrize(
    ("objects", "fault"),
    [
        ({"ref": [], "bbox": [[615, 226]]}, "bbox has a point; a box is 4 numbers"),
        ({"ref": [], "bbox": ["x"]}, "bbox has 'x'; a box is 4 numbers"),
        ({"ref": [], "bbox": [[1, 2, 3, 4]], "bbox_type": "inch"}, "bbox_type is 'inch'; real"),
        ({"ref": [], "bbox": []}, "1 <bbox> in the texts, and 0 in objects"),
        (7, "objects is 7, not an object"),
    ],
)
def test_objects_that_do_not_fit_are_faults(tmp_path: Path, objects: Any, fault: str) -> None:
    record = {
        "messages": [
            {"role": "user", "content": "<image>Where?"},
            {"role": "assistant", "content": "<bbox>"},
        ],
        "images": ["x.jpg"],
        "objects": objects,
    }
    row = only(stored(tmp_path, "a.jsonl", record))
    assert any(fault in one for one in row.faults), row.faults


# Qwen and 2U1, as their READMEs show it


def test_llava_drops_the_line_end_that_belongs_to_a_placeholder(tmp_path: Path) -> None:
    record = {
        "id": 33471,
        "image": ["1.jpg", "2.jpg"],
        "conversations": [
            {"from": "human", "value": "<image>\n<image>\nIs the camera different?"},
            {"from": "gpt", "value": "Yes, it is."},
        ],
    }
    path = stored(tmp_path, "a.json", record)
    assert detect(path) == "llava"
    row = only(path)
    assert row.id == "33471"
    assert row.turns[0] == asked(
        image(tmp_path, "1.jpg"), image(tmp_path, "2.jpg"), "Is the camera different?"
    )


def test_a_folder_of_frames_is_a_video_in_the_order_of_its_numbers(tmp_path: Path) -> None:
    (tmp_path / "clip").mkdir()
    for name in ("frame_10.jpg", "frame_2.jpg", "notes.txt", ".hidden.jpg"):
        (tmp_path / "clip" / name).touch()
    record = {
        "video": "clip",
        "fps": 4,
        "conversations": [{"from": "human", "value": "<video>\nWhat?"}],
    }
    row = only(stored(tmp_path, "a.json", record))
    assert row.media == (video(tmp_path, "clip/frame_2.jpg", "clip/frame_10.jpg", fps=4.0),)


def test_a_folder_of_one_frame_is_a_video_of_that_rate(tmp_path: Path) -> None:
    (tmp_path / "clip").mkdir()
    (tmp_path / "clip" / "1.jpg").touch()
    conversation = [{"from": "human", "value": "<video>\nWhat?"}]
    record = {"video": "clip", "fps": 4, "conversations": conversation}
    row = only(stored(tmp_path, "a.json", record))
    assert row.media == (video(tmp_path, "clip/1.jpg", fps=4.0),)


@pytest.mark.parametrize("value", [["1.jpg", "2.jpg"], [["1.jpg", "2.jpg"]]])
def test_a_list_of_frames_is_one_video(tmp_path: Path, value: Any) -> None:
    record = {"video": value, "conversations": [{"from": "human", "value": "<video>\nWhat?"}]}
    row = only(stored(tmp_path, "a.json", record))
    assert row.faults == ()
    assert row.media == (video(tmp_path, "1.jpg", "2.jpg"),)


def test_each_video_of_a_row_may_have_its_own_part(tmp_path: Path) -> None:
    record = {
        "video": ["a.mp4", "b.mp4"],
        "start": [1, None],
        "end": [2, 4.5],
        "conversations": [{"from": "human", "value": "<video>\n<video>\nSame?"}],
    }
    first, second = only(stored(tmp_path, "a.json", record)).media
    assert (first.start_seconds, first.end_seconds) == (1.0, 2.0)
    assert (second.start_seconds, second.end_seconds) == (None, 4.5)


# TRL, as docs/source/dataset_formats.md shows it


def test_trls_parts_have_their_media_or_take_them_from_beside(tmp_path: Path) -> None:
    record = {
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "image"},
                    {"type": "video", "video": "a.mp4", "video_start": 2, "fps": 1},
                    {"type": "image_url", "image_url": {"url": "y.png"}},
                    {"type": "text", "text": "What?"},
                ],
            },
            {"role": "assistant", "content": [{"type": "text", "text": "That."}]},
        ],
        "images": ["x.png"],
    }
    path = stored(tmp_path, "a.jsonl", record)
    assert detect(path) == "trl"
    row = only(path)
    assert row.faults == ()
    assert row.turns[0] == asked(
        image(tmp_path, "x.png"),
        video(tmp_path, "a.mp4", start_seconds=2.0),
        image(tmp_path, "y.png"),
        "What?",
    )


def test_of_prompt_and_completion_only_the_completion_is_learned(tmp_path: Path) -> None:
    record = {
        "prompt": [
            {"role": "user", "content": "1"},
            {"role": "assistant", "content": "2"},
            {"role": "user", "content": "3"},
        ],
        "completion": [{"role": "assistant", "content": "4"}],
        "images": ["x.png"],
    }
    path = stored(tmp_path, "a.jsonl", record)
    assert detect(path) == "trl-prompt"
    assert only(path).turns == (
        asked(image(tmp_path, "x.png"), "1"),
        answered("2", trains=False),
        asked("3"),
        answered("4"),
    )
    plain = stored(tmp_path, "b.jsonl", {"prompt": "The sky is", "completion": " blue."})
    assert only(plain).turns == (asked("The sky is"), answered(" blue."))


# COCO


def coco(folder: Path, name: str = "boxes.json", **more: Any) -> Path:
    value = {
        "images": [{"id": 9, "file_name": "a.png", "width": 100, "height": 50}],
        "categories": [{"id": 3, "name": "red car"}, {"id": 4, "name": "tree"}],
        "annotations": [
            {"id": 1, "image_id": 9, "category_id": 3, "bbox": [10, 20, 30, 25.5]},
            {"id": 2, "image_id": 9, "category_id": 4, "bbox": [0, 0, 5, 5]},
            {"id": 3, "image_id": 9, "category_id": 3, "bbox": [50, 0, 50, 50]},
            {"id": 4, "image_id": 9, "category_id": 3, "bbox": [0, 0, 9, 9], "iscrowd": 1},
            {"id": 5, "image_id": 9, "caption": "A red car stands there. "},
        ],
    }
    path = folder / name
    path.write_text(json.dumps(value | more))
    return path


def test_coco_asks_once_for_each_category_of_a_picture_and_for_each_caption(tmp_path: Path) -> None:
    path = coco(tmp_path)
    assert detect(path) == "coco"
    caption, cars, tree = read(path)
    shown = image(tmp_path, "a.png")
    assert caption.turns == (
        asked(shown, "Describe this picture."),
        answered("A red car stands there."),
    )
    assert caption.task == "caption"
    assert cars.task == "box"
    assert cars.turns == (
        asked(shown, question("red car")),
        answered(
            Located(
                (
                    ("red car", Box(10, 20, 40, 45.5, "pixel")),
                    ("red car", Box(50, 0, 100, 50, "pixel")),
                )
            )
        ),
    )
    assert tree.turns[0].parts[1] == question("tree")


def test_cocos_pictures_are_found_where_its_archives_put_them(tmp_path: Path) -> None:
    (tmp_path / "annotations").mkdir()
    (tmp_path / "val2017").mkdir()
    (tmp_path / "val2017" / "a.png").touch()
    row = read(coco(tmp_path / "annotations", "instances_val2017.json"))[0]
    assert row.media == (image(tmp_path, "val2017/a.png"),)


def test_coco_is_written_as_it_was_read(tmp_path: Path) -> None:
    Image.new("RGB", (100, 50)).save(tmp_path / "a.png")
    rows = read(coco(tmp_path))
    assert write(rows, tmp_path / "again.json", "coco") == []
    assert same(read(tmp_path / "again.json")) == same(rows)


def test_coco_holds_neither_videos_nor_conversations(tmp_path: Path) -> None:
    problems = write(golden(tmp_path), tmp_path / "a.json", "coco")
    assert {one.message for one in problems} == {
        "left out: it is not one question with its answer",
        "left out: it is not a picture, a question, and a caption or boxes",
        "left out: the size of {} cannot be told".format(tmp_path / "p.png"),
        "left out: the size of {} cannot be told".format(tmp_path / "a.mp4"),
        "the question is not written; it is read as 'Describe this picture.'",
    }
    with pytest.raises(UsageError, match=r"COCO is one JSON object; end the name in \.json"):
        write(golden(tmp_path), tmp_path / "a.jsonl", "coco")


def test_annotations_of_a_picture_that_is_not_listed_are_told(tmp_path: Path) -> None:
    path = coco(tmp_path, annotations=[{"image_id": 1, "caption": "x"}])
    assert only(path).faults == ("1 annotations are of image 1, which is not listed",)


# Boxes from one format to another


def test_boxes_become_qwen2_vls_tokens_where_a_format_knows_none(tmp_path: Path) -> None:
    Image.new("RGB", (200, 100)).save(tmp_path / "a.png")
    row = Row(
        (
            asked(image(tmp_path, "a.png"), "Where is ", Ref("it"), "?"),
            answered(Located((("it", Box(50, 25, 100, 100, "pixel")),))),
        ),
        HERE,
    )
    for format in ("llava", "llama-factory", "trl", "alpaca"):
        path = tmp_path / f"{format}.jsonl"
        write([row], path, format)
        assert "<|box_start|>(250,250),(500,1000)<|box_end|>" in path.read_text()
        found = only(path)
        located = Located((("it", Box(250, 250, 500, 1000, "thousandth")),))
        assert found.turns[1] == answered(located)
        assert found.turns[0].parts[1:] == ("Where is ", Ref("it"), "?")


@pytest.mark.parametrize("format", ["ms-swift", "ms-swift-2"])
def test_ms_swift_keeps_pixels_and_fractions(tmp_path: Path, format: str) -> None:
    boxes = (Box(50, 25, 100.5, 100, "pixel"), Box(0.25, 0.5, 0.75, 1.0))
    rows = [
        Row(
            (
                asked(video(tmp_path, "v.mp4"), image(tmp_path, "a.png"), "Where?"),
                answered(Located((("it", box),), 1)),
            ),
            HERE,
        )
        for box in boxes
    ]
    assert write(rows, tmp_path / "a.jsonl", format) == []
    assert same(read(tmp_path / "a.jsonl")) == rows


# What cannot be held


def test_a_text_that_would_be_taken_for_a_place_leaves_its_row_out(tmp_path: Path) -> None:
    rows = [Row((asked("What does <video> mean?"), answered("A place.")), Origin("own.jsonl", 4))]
    rows += golden(tmp_path)[:1]
    (problem,) = write(rows, tmp_path / "a.jsonl", "llama-factory")
    assert str(problem) == (
        "own.jsonl:4: left out: <video> stands in a text, where it would be taken for a place"
    )
    assert len(read(tmp_path / "a.jsonl")) == 1


def test_subtitles_are_named_as_not_written(tmp_path: Path) -> None:
    words = (TextSpan(1.0, 2.0, "Hello"),)
    row = Row((asked(video(tmp_path, "a.mp4", texts=words), "?"), answered("!")), HERE)
    (problem,) = write([row], tmp_path / "a.jsonl", "llava")
    assert problem.message == "not written: the words that belong to a video (subtitles)"


def test_parts_of_videos_are_noted_where_other_tools_would_show_the_whole(tmp_path: Path) -> None:
    rows = golden(tmp_path)[5:6]
    messages = {one.message for one in write(rows, tmp_path / "a.jsonl", "ms-swift")}
    assert messages == {
        "the start of a part of a video is written as `start`, which only vidqa reads",
        "the end of a part of a video is written as `end`, which only vidqa reads",
    }
    # qwen-vl-utils, which TRL uses, knows parts of videos.
    assert write(rows, tmp_path / "b.jsonl", "trl") == []


def test_a_row_with_faults_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"messages": [{"role": "user", "content": "1"}]}\n{oops\n')
    (problem,) = write(read(path), tmp_path / "b.jsonl", "vidqa")
    assert str(problem).startswith(f"{path}:2: left out: is not JSON")


# Detection and errors


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no row of training data"),
        ('{"a": 1, "b": 2}', r"is of no known format \(its rows have 'a', 'b'\); name one by"),
        ("nonsense", r"a\.jsonl:1: is not JSON"),
        ("7", "is of no known format"),
    ],
)
def test_a_file_of_no_known_format_says_so(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.jsonl").write_text(text)
    with pytest.raises(UsageError, match=message):
        read(tmp_path / "a.jsonl")


def test_a_format_that_is_unknown_is_answered_with_those_that_are(tmp_path: Path) -> None:
    path = stored(tmp_path, "a.jsonl", SHAREGPT)
    with pytest.raises(UsageError, match="format 'x' is unknown; vidqa, trl, llava"):
        read(path, "x")
    with pytest.raises(UsageError, match="is a folder; name its files"):
        read(tmp_path)
    with pytest.raises(UsageError, match=r"end the name in \.jsonl, \.json, \.csv, \.parquet"):
        write([], tmp_path / "a.txt", "vidqa")
    with pytest.raises(UsageError, match=r"'\.txt' is no kind of data file"):
        read(tmp_path / "a.txt")
    with pytest.raises(UsageError, match="No such file or directory; name a data file"):
        read(tmp_path / "b.jsonl")


def test_a_format_that_is_named_overrides_what_is_seen(tmp_path: Path) -> None:
    record = {"conversations": [{"from": "human", "value": "<video>\nWhat?"}], "video": "a.mp4"}
    path = stored(tmp_path, "a.jsonl", record)
    assert only(path, "llava").turns[0].parts[1] == "What?"
    assert only(path, "llama-factory").turns[0].parts[1] == "\nWhat?"


@pytest.mark.parametrize(
    ("fields", "fault"),
    [
        ({"video": "a.mp4", "value": "<video> <video>"}, "2 <video> in the texts, and 1 videos"),
        ({"value": "<image>"}, "1 <image> in the texts, and 0 images"),
        ({"video": 7}, "a video is 7, not a path"),
        ({"image": {"bytes": "..."}}, "an image is inside the data file"),
        ({"from": "tool"}, "role 'tool' is unknown"),
        ({"video": "a.mp4", "start": "soon"}, "start is 'soon', not a time"),
        ({"video": "a.mp4", "start": [1, 2]}, "start has 2 times, and the row 1 media"),
    ],
)
def test_what_does_not_fit_is_a_fault_of_its_row(
    tmp_path: Path, fields: dict[str, Any], fault: str
) -> None:
    message = {"from": fields.pop("from", "human"), "value": fields.pop("value", "What?")}
    row = only(stored(tmp_path, "a.jsonl", {"conversations": [message], **fields}))
    assert any(fault in one for one in row.faults), row.faults


def test_media_are_looked_for_where_the_tools_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("data", "media", "root", "here"):
        (tmp_path / folder).mkdir()
    path = stored(
        tmp_path / "data", "a.jsonl", {"query": "?", "response": "!", "videos": ["a.mp4"]}
    )
    monkeypatch.chdir(tmp_path / "here")
    assert only(path).media == (video(tmp_path / "data", "a.mp4"),)
    (tmp_path / "here" / "a.mp4").touch()
    assert only(path).media == (video(tmp_path / "here", "a.mp4"),)
    (tmp_path / "root" / "a.mp4").touch()
    monkeypatch.setenv("ROOT_IMAGE_DIR", str(tmp_path / "root"))
    assert only(path).media == (video(tmp_path / "root", "a.mp4"),)
    (tmp_path / "media" / "a.mp4").touch()
    (row,) = read(path, media_dir=tmp_path / "media")
    assert row.media == (video(tmp_path / "media", "a.mp4"),)


def test_a_table_of_questions_and_answers_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('video,start,end,question,answer\na.mp4,1,0:04,"Who, then?",Ann\n')
    row = only(path)
    assert row.turns == (
        asked(video(tmp_path, "a.mp4", start_seconds=1.0, end_seconds=4.0), "Who, then?"),
        answered("Ann"),
    )


# Properties

# Texts in which nothing is a placeholder, and which do not end where a line does.
texts = st.text(
    st.characters(exclude_categories=("Cs", "Cc"), include_characters="\n\t"),
    min_size=1,
    max_size=40,
).filter(lambda text: "<" not in text)
seconds = st.floats(0, 1e5, allow_nan=False).map(lambda value: round(value, 3))
names = st.text("abcäß 01._-", min_size=1, max_size=8).map(lambda stem: f"{stem}.bin")
FOLDER = Path("/nowhere/data")


@st.composite
def videos(draw: st.DrawFn) -> Media:
    if draw(st.booleans()):
        frames = draw(st.lists(names, min_size=2, max_size=3))
        paths = tuple(str(FOLDER / f"{name}.jpg") for name in frames)
        return Media("video", paths, fps=draw(st.none() | st.floats(0.5, 60)))
    path = (str(FOLDER / draw(names)),)
    return Media("video", path, draw(st.none() | seconds), draw(st.none() | seconds))


@st.composite
def images(draw: st.DrawFn) -> Media:
    return Media("image", (str(FOLDER / draw(names)),), at_seconds=draw(st.none() | seconds))


def spaced(parts: Sequence[Part]) -> tuple[Part, ...]:
    """Texts that follow each other are one text in every format but vidqa's own."""
    found: list[Part] = []
    for part in parts:
        if found and isinstance(part, str) and isinstance(found[-1], str):
            found[-1] += part
        else:
            found.append(part)
    return tuple(found)


@st.composite
def conversations(draw: st.DrawFn) -> Row:
    turns = []
    if draw(st.booleans()):
        turns.append(Turn("system", (draw(texts),)))
    for _ in range(draw(st.integers(1, 3))):
        parts = draw(st.lists(texts | videos() | images(), min_size=1, max_size=4))
        turns += [Turn("user", spaced(parts)), Turn("assistant", (draw(texts),))]
    return Row(
        tuple(turns),
        HERE,
        id=draw(st.none() | texts),
        task=draw(st.sampled_from([None, "answer", "choice", "caption", "box", "span"])),
        choices=tuple(draw(st.lists(texts, max_size=3))),
        extra=draw(st.dictionaries(st.sampled_from(["source", "note"]), texts)),
    )


written = settings(
    max_examples=40,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


@pytest.mark.parametrize("format", CONVERSATIONS)
@written
@given(rows=st.lists(conversations(), min_size=1, max_size=3))
def test_what_a_format_can_hold_comes_back_as_it_was(
    tmp_path: Path, format: str, rows: list[Row]
) -> None:
    path = tmp_path / "a.jsonl"
    problems = write(rows, path, format)
    assert not [one for one in problems if "left out" in one.message]
    assert same(read(path, format, media_dir=FOLDER)) == rows


boxes = st.builds(
    Box, *[st.floats(0, 1000)] * 4, st.sampled_from(["fraction", "pixel", "thousandth"])
)
anything = st.lists(
    st.text(max_size=20)
    | videos()
    | images()
    | st.builds(Ref, texts)
    | st.builds(Boxed, boxes, st.integers(0, 3))
    | st.builds(Located, st.lists(st.tuples(texts, boxes), max_size=3).map(tuple)),
    max_size=4,
).map(tuple)
turns = st.builds(
    Turn, st.sampled_from(["system", "user", "assistant"]), anything, trains=st.booleans()
)


@written
@given(
    rows=st.lists(
        st.builds(
            Row,
            st.lists(turns, min_size=1, max_size=4).map(tuple),
            st.just(HERE),
            extra=st.dictionaries(texts, st.none() | st.integers() | texts | st.lists(texts)),
        ),
        min_size=1,
        max_size=3,
    ),
    suffix=st.sampled_from([".jsonl", ".json"]),
)
def test_vidqas_own_format_holds_any_row(tmp_path: Path, rows: list[Row], suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    assert write(rows, path, "vidqa") == []
    assert same(read(path, "vidqa", media_dir=FOLDER)) == rows


# fmt: off
KNOWN_NAMES = [
    "messages", "conversations", "role", "from", "content", "value", "type", "text", "video",
    "image", "videos", "images", "objects", "ref", "bbox", "bbox_type", "image_id", "query",
    "response", "history", "system", "start", "end", "at", "fps", "loss", "prompt", "completion",
    "instruction", "output", "task", "choices", "vidqa", "box", "boxes", "label", "media", "unit",
    "texts", "extra", "id",
]
# fmt: on
odd_names = st.sampled_from(KNOWN_NAMES) | st.text(max_size=4)
odd_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(odd_names, inner, max_size=8),
    max_leaves=15,
)


@settings(written, max_examples=120)
@given(
    value=st.dictionaries(odd_names, odd_values, max_size=8),
    format=st.sampled_from(sorted(set(FORMATS) - {"coco"})),
)
def test_no_record_is_so_odd_that_reading_breaks(tmp_path: Path, value: Any, format: str) -> None:
    path = stored(tmp_path, "a.jsonl", value)
    (row,) = read(path, format)
    assert row.origin.line == 1


SWIFT: dict[str, Any] = {
    "query": "<image>the <ref-object><bbox>",
    "response": "x",
    "images": ["a.jpg"],
}


@pytest.mark.parametrize(
    ("objects", "fault"),
    [
        ({"ref": True, "bbox": [[1, 2, 3, 4]]}, "ref of objects is True, not a list"),
        ({"ref": ["a"], "bbox": 1.5}, "bbox of objects is 1.5, not a list"),
        ({"ref": ["a"], "bbox": [[1, 2, 3, 4]], "image_id": 1}, "image_id of objects is 1, not a"),
        ({"ref": ["a"], "bbox": [[1, 2, 3, 4]], "bbox_type": ["real"]}, "bbox_type is"),
        ({"ref": ["a"], "bbox": [[1, 2, 3, 10**400]]}, "bbox has"),
    ],
)
def test_objects_of_another_kind_are_a_fault_of_their_row(
    objects: dict[str, Any], fault: str, tmp_path: Path
) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(SWIFT | {"objects": objects}))
    (row,) = read(file, "ms-swift-2")
    assert any(one.startswith(fault) for one in row.faults), row.faults


def test_a_time_that_no_float_holds_is_a_fault_of_its_row(tmp_path: Path) -> None:
    user = {"role": "user", "content": [{"type": "video", "video": "a.mp4", "start": 10**400}]}
    file = tmp_path / "rows.jsonl"
    said = {"role": "assistant", "content": "x"}
    file.write_text(json.dumps({"vidqa": 1, "messages": [user, said]}))
    (row,) = read(file)
    assert row.faults


def test_coco_ids_of_any_kind_are_read(tmp_path: Path) -> None:
    file = tmp_path / "boxes.json"
    one = {"image_id": [1], "category_id": [2], "bbox": [1, 2, 3, 4]}
    file.write_text(
        json.dumps(
            {
                "images": [{"id": [1], "file_name": "a.jpg"}],
                "annotations": [one],
                "categories": [{"id": [2], "name": "cat"}],
            }
        )
    )
    (row,) = read(file)
    assert not row.faults


def test_an_empty_file_is_no_coco(tmp_path: Path) -> None:
    file = tmp_path / "boxes.json"
    file.write_text("[]")
    with pytest.raises(UsageError, match="is not COCO"):
        read(file, "coco")
