"""The file of answers: kills, other runs, and the order of its lines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from finetune.answer_file import AnswerFile, line_of
from vidqa.errors import UsageError

RUN = {"data": {"rows.jsonl": "ab12"}, "model": "tiny", "look": {"max_frames": 8}}


def record(row: int, text: str = "red") -> dict[str, Any]:
    return {"row": row, "answers": [{"text": text}]}


def rows_in(path: Path) -> list[int]:
    return [json.loads(line)["row"] for line in path.read_text("utf-8").splitlines()]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "answers.jsonl"


def test_what_was_written_is_known_the_next_time(path: Path) -> None:
    with AnswerFile(path, RUN) as file:
        file.write(record(2, "rød"))
    with AnswerFile(path, RUN) as file:
        assert file.done == {2: record(2, "rød")}


def test_lines_are_in_the_order_of_the_rows_once_all_are_there(path: Path) -> None:
    with AnswerFile(path, RUN) as file:
        for row in (3, 1, 2):
            file.write(record(row))
        assert rows_in(path) == [3, 1, 2]
        file.finish()
    assert rows_in(path) == [1, 2, 3]


@pytest.mark.parametrize("cut", range(1, len(line_of(record(2)))))
def test_a_half_line_is_mended_wherever_the_kill_came(path: Path, cut: int) -> None:
    with AnswerFile(path, RUN) as file:
        file.write(record(1))
        file.write(record(2))
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    with AnswerFile(path, RUN) as file:
        assert list(file.done) == [1]
        file.write(record(2))
    assert path.read_bytes() == whole


def test_rows_that_failed_are_tried_again_and_kept_once(path: Path) -> None:
    with AnswerFile(path, RUN) as file:
        file.write({"row": 1, "error": "gone"})
        file.write(record(2))
    with AnswerFile(path, RUN) as file:
        assert list(file.done) == [2]
        file.write(record(1))
        file.finish()
    assert rows_in(path) == [1, 2]
    assert "error" not in path.read_text("utf-8")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"data": {"rows.jsonl": "cd34"}}, "data: rows.jsonl ab12 then, cd34 now"),
        ({"model": "other"}, "model: tiny then, other now"),
        ({"look": {"max_frames": 4}}, "look: max_frames 8 then, 4 now"),
    ],
)
def test_answers_of_another_run_are_not_mixed_in(
    path: Path, change: dict[str, Any], words: str
) -> None:
    with AnswerFile(path, RUN) as file:
        file.write(record(1))
    before = path.read_bytes()
    with pytest.raises(UsageError, match=f"another run .{words}.; name another file, or remove it"):
        AnswerFile(path, {**RUN, **change})
    assert path.read_bytes() == before


def test_a_file_that_is_not_ours_is_left_alone(path: Path) -> None:
    path.write_text("my notes\n", "utf-8")
    with pytest.raises(UsageError, match=r"no answers\.jsonl\.run\.json beside it"):
        AnswerFile(path, RUN)
    assert path.read_text("utf-8") == "my notes\n"


def test_an_empty_file_may_be_written(path: Path) -> None:
    path.touch()
    with AnswerFile(path, RUN) as file:
        assert file.done == {}


def test_two_do_not_write_one_file(path: Path) -> None:
    with AnswerFile(path, RUN), pytest.raises(UsageError, match="another command is writing it"):
        AnswerFile(path, RUN)


def test_a_folder_is_no_file_to_write(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--output .*: Is a directory; name a file to write"):
        AnswerFile(tmp_path, RUN)


def test_half_a_character_of_a_model_is_no_failure(path: Path) -> None:
    with AnswerFile(path, RUN) as file:
        file.write(record(1, "\ud800"))
    with AnswerFile(path, RUN) as file:
        assert list(file.done) == [1]


def test_a_kill_while_it_says_what_it_was_made_from_ends_no_run(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with AnswerFile(path, RUN) as file:
        file.write(record(1))

    def killed(draft: Path, target: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            AnswerFile(path, RUN)
    with AnswerFile(path, RUN) as file:
        assert list(file.done) == [1]


def test_who_opened_the_file_before_it_was_put_in_order_does_not_write_into_the_old_one(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fcntl import flock

    with AnswerFile(path, RUN) as file:
        file.write(record(1))

    def replaced(opened: object, how: int) -> None:
        path.with_name("new").write_bytes(path.read_bytes())
        path.with_name("new").replace(path)
        flock(opened, how)  # type: ignore[arg-type]

    monkeypatch.setattr("fcntl.flock", replaced)
    with pytest.raises(UsageError, match="another command is writing it"):
        AnswerFile(path, RUN)
