"""How results look: alignment, names, figures, and the progress of an ingest on a terminal."""

from __future__ import annotations

import io
import json
import math
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from vidqa.command import Run
from vidqa.config import Settings
from vidqa.demo.metrics import Figure
from vidqa.ingest import IngestProgress
from vidqa.output import _Bars, _bars, columns, name_of, suite_json, suite_lines, summary_json
from vidqa.types import FileReport, IngestReport


@given(st.lists(st.tuples(st.text(), st.text(), st.text()), min_size=1))
def test_columns_begin_at_the_same_place_in_every_line(rows: list[tuple[str, str, str]]) -> None:
    lines = columns(rows)
    second = max(len(row[0]) for row in rows) + 2
    third = second + max(len(row[1]) for row in rows) + 2
    for line, (one, two, three) in zip(lines, rows, strict=True):
        assert line[:second].rstrip(" ") == one.rstrip(" ")
        assert line[second:third].rstrip(" ") == two.rstrip(" ")
        assert line[third:] == three


def test_no_rows_are_no_lines() -> None:
    assert columns([]) == []


def test_a_path_below_this_folder_is_named_from_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert name_of(str(tmp_path / "here/a/b.mp4")) == os.path.join("a", "b.mp4")
    assert name_of(str(tmp_path / "b.mp4")) == str(tmp_path / "b.mp4")


def test_a_figure_of_nothing_is_null_and_left_out_of_the_table() -> None:
    figures = {"cut_f1": Figure(0.98, 40, 0.9, 1.0), "empty": Figure(math.nan, 0, 0.0, 1.0)}
    assert json.loads(json.dumps(suite_json("playground", figures), allow_nan=False)) == {
        "suite": "playground",
        "metrics": {"cut_f1": 0.98, "empty": None},
        "n": {"cut_f1": 40, "empty": 0},
    }
    assert suite_lines(figures)[1:] == ["cut_f1  0.980  0.900 to 1.000  40"]


def test_moved_files_and_copies_count_as_skipped() -> None:
    report = IngestReport((FileReport("/a", "moved"), FileReport("/b", "linked")), 0.5)
    assert (summary_json(report)["videos"], summary_json(report)["skipped"]) == (2, 2)


def test_on_a_terminal_every_video_in_hand_has_a_bar_and_there_is_one_for_all(
    capsys: pytest.CaptureFixture[str],
) -> None:
    screen = io.StringIO()
    progress = _bars(Console(file=screen, force_terminal=True, width=100))
    bars = _Bars(Run(Settings(), json=False, verbose=False, quiet=False), progress)
    with progress:
        bars(IngestProgress("/v/a[red].mp4", 30.0, 60.0, 12.0, files_done=0, files_total=2))
        bars(IngestProgress("/v/b.mp4", 15.0, 60.0, 6.0, files_done=0, files_total=2))
        progress.refresh()
        assert [round(task.percentage) for task in progress.tasks] == [38, 50, 25]
        bars(FileReport("/v/a[red].mp4", "ingested", 3, 60, 60.0, 5.0))
        assert [task.description for task in progress.tasks] == ["all", "b.mp4"]
    assert "a[red].mp4" in screen.getvalue()
    assert "12.0 x" in screen.getvalue()
    assert "ingested  /v/a[red].mp4" in capsys.readouterr().out


def test_a_name_with_a_line_break_stays_on_its_line() -> None:
    assert name_of("/v/a\nfailed  b\tc.mp4") == "/v/a\\nfailed  b\\tc.mp4"
