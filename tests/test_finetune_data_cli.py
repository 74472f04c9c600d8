"""`vidqa finetune check` and `convert`: what they print, and with which exit code they end."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import get_args

import pytest
from media import make_film, shot
from typer.testing import CliRunner, Result

from finetune.formats import FORMATS, read
from vidqa.cli import app
from vidqa.cli.rows import Format


def vidqa(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(one) for one in arguments])


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A film, and train.jsonl with one good row about it."""
    monkeypatch.chdir(tmp_path)
    make_film(tmp_path / "a.mp4", [shot(1, 1)])
    path = tmp_path / "train.jsonl"
    path.write_text(json.dumps({"query": "<video>What?", "response": "That.", "videos": ["a.mp4"]}))
    return path


def test_the_help_of_format_names_every_format() -> None:
    _, option = get_args(Format)
    assert {*option.help.rpartition(": ")[2].removesuffix(".").split(", ")} == {*FORMATS}


def test_good_data_says_how_much_it_is(data: Path) -> None:
    done = vidqa("finetune", "check", "train.jsonl")
    assert (done.exit_code, done.stdout) == (0, "")
    assert done.stderr == "1 row, 0 problems\n"


def test_problems_come_with_file_and_line_and_exit_code_1(data: Path) -> None:
    with data.open("a") as file:
        file.write('\n{"query": "Hi"\n{"query": "?", "response": " ", "videos": ["b.mp4"]}\n')
    done = vidqa("finetune", "check", "train.jsonl")
    assert done.exit_code == 1
    first, second, third = done.stdout.splitlines()
    assert first.startswith("train.jsonl:2: is not JSON: ")
    assert second == "train.jsonl:3: an answer is empty"
    assert third == f"train.jsonl:3: {data.parent / 'b.mp4'}: there is no such file"


def test_problems_as_json_are_one_object_a_line(data: Path) -> None:
    shutil.copy("a.mp4", "copy.mp4")
    row = {"video": "copy.mp4", "question": "When?", "answer": "Now."}
    Path("test.json").write_text(json.dumps([row]))
    done = vidqa("finetune", "check", "train.jsonl", "--held-out", "test.json", "--json")
    assert done.exit_code == 1
    problem, summary = map(json.loads, done.stdout.splitlines())
    assert problem["file"] == "test.json"
    assert problem["line"] == 1
    assert "copy.mp4 is trained on too, at train.jsonl:1 as " in problem["problem"]
    assert summary == {"event": "summary", "rows": 2, "problems": 1}


def test_a_file_of_no_known_format_is_wrong_usage_and_format_overrides(data: Path) -> None:
    Path("odd.jsonl").write_text('{"a": 1}')
    done = vidqa("finetune", "check", "odd.jsonl")
    assert done.exit_code == 2
    assert "is of no known format (its rows have 'a'); name one by --format" in done.stderr
    done = vidqa("finetune", "check", "odd.jsonl", "--format", "llava")
    assert done.exit_code == 1
    assert "odd.jsonl:1: has no list of messages" in done.stdout


def test_data_is_written_in_another_format_and_what_it_cannot_hold_is_said(data: Path) -> None:
    row = {"video": "a.mp4", "start": 0.5, "question": "When?", "answer": "Now."}
    with data.open("a") as file:
        file.write(f"\n{json.dumps(row)}\n{json.dumps(row)}")
    done = vidqa("finetune", "convert", "train.jsonl", "out/train.json", "--to", "llama-factory")
    assert done.exit_code == 0
    assert done.stdout == "3 of 3 rows written to out/train.json\n"
    assert done.stderr == (
        "train.jsonl:2 (and 1 more): the start of a part of a video is written as `start`, "
        "which only vidqa reads\n"
    )
    assert Path("out/dataset_info.json").exists()
    assert [one.turns for one in read("out/train.json")] == [one.turns for one in read(data)]


def test_data_is_not_written_over_what_it_is_read_from(data: Path) -> None:
    before = data.read_bytes()
    info = Path("dataset_info.json")
    info.write_text(json.dumps({"a": {"file_name": data.name, "columns": {"prompt": "query"}}}))
    for source in (data, info):
        done = vidqa("finetune", "convert", source, "./train.jsonl")
        assert done.exit_code == 2
        assert "DST train.jsonl: that is the data; name another file" in done.stderr
        assert data.read_bytes() == before


def test_rows_that_are_left_out_end_in_exit_code_1(data: Path) -> None:
    with data.open("a") as file:
        file.write("\n{oops")
    done = vidqa("finetune", "convert", "train.jsonl", "own.jsonl", "--json")
    assert done.exit_code == 1
    note, summary = map(json.loads, done.stdout.splitlines())
    assert (note["line"], note["note"][:24]) == (2, "left out: is not JSON: E")
    assert summary == {"event": "summary", "rows": 2, "written": 1, "file": "own.jsonl"}


def test_media_may_lie_in_a_folder_of_their_own(data: Path) -> None:
    Path("films").mkdir()
    Path("a.mp4").rename("films/a.mp4")
    assert vidqa("finetune", "check", "train.jsonl").exit_code == 1
    assert vidqa("finetune", "check", "train.jsonl", "--media-dir", "films").exit_code == 0
