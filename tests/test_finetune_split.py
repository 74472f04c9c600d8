"""Held-out rows: whole videos, chosen by their content."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.rows import Media, Origin, Row, Turn
from finetune.split import split
from vidqa.errors import UsageError


def about(*names: str, line: int = 1, at: float | None = None) -> Row:
    """A row about files that need not exist: one is then known by its path."""
    media = tuple(Media("image" if at else "video", (name,), at_seconds=at) for name in names)
    return Row((Turn("user", (*media, "?")), Turn("assistant", ("!",))), Origin("a.jsonl", line))


def names(rows: list[Row]) -> set[str]:
    return {path for row in rows for medium in row.media for path in medium.paths}


@given(
    videos=st.lists(st.integers(0, 9), min_size=2, max_size=60).filter(lambda v: len(set(v)) > 1),
    fraction=st.floats(0.01, 0.99),
    seed=st.integers(0, 5),
)
def test_no_video_is_on_both_sides_and_no_row_is_lost(
    videos: list[int], fraction: float, seed: int
) -> None:
    rows = [about(f"{one}.mp4", line=n) for n, one in enumerate(videos)]
    train, held_out = split(rows, fraction, seed)
    assert names(train).isdisjoint(names(held_out))
    assert sorted(train + held_out, key=lambda row: row.origin.line) == rows
    assert train
    assert held_out
    smallest = min(videos.count(one) for one in set(videos))
    assert len(held_out) <= max(fraction * len(rows), smallest)


def test_the_choice_depends_on_seed_and_content_not_on_order() -> None:
    rows = [about(f"{one}.mp4", line=one) for one in range(40)]
    _, first = split(rows, 0.25, 0)
    _, again = split(rows[::-1], 0.25, 0)
    _, other = split(rows, 0.25, 1)
    assert names(first) == names(again) != names(other)
    assert len(first) == 10


def test_what_names_files_have_does_not_matter(tmp_path: Path) -> None:
    (tmp_path / "moved").mkdir()
    for n in range(8):
        (tmp_path / f"{n}.mp4").write_bytes(bytes([n]) * 100)
        shutil.copy(tmp_path / f"{n}.mp4", tmp_path / "moved" / f"x{n}.mp4")
    _, here = split([about(str(tmp_path / f"{n}.mp4")) for n in range(8)], 0.25, 0)
    _, there = split([about(str(tmp_path / "moved" / f"x{n}.mp4")) for n in range(8)], 0.25, 0)
    assert {Path(name).stem for name in names(here)} == {
        Path(name).stem[1:] for name in names(there)
    }


def test_a_copy_a_frame_and_a_row_about_two_videos_tie_rows_together(tmp_path: Path) -> None:
    for n in range(3):
        (tmp_path / f"{n}.mp4").write_bytes(bytes([n]) * 100)
    shutil.copy(tmp_path / "0.mp4", tmp_path / "copy.mp4")
    a, b, c, copy = (str(tmp_path / f"{name}.mp4") for name in (0, 1, 2, "copy"))
    rows = [about(a), about(copy, b), about(b, at=1.5), about(c)]
    for seed in range(8):
        train, held_out = split(rows, 0.5, seed)
        assert held_out == [rows[3]]
        assert train == rows[:3]


def test_frames_of_one_video_tie_rows_and_frames_that_look_alike_do_not(tmp_path: Path) -> None:
    for name in ("a1", "a2", "a3", "b1", "b2"):
        (tmp_path / f"{name}.jpg").write_bytes(b"black" if name.endswith("1") else name.encode())

    def frames(*stems: str) -> Row:
        paths = tuple(str(tmp_path / f"{stem}.jpg") for stem in stems)
        return Row((Turn("user", (Media("video", paths),)),), Origin("a", 1))

    rows = [frames("a1", "a2"), frames("a2", "a3"), frames("b1", "b2")]
    assert split(rows, 0.4, 0) == (rows[:2], rows[2:])


def test_rows_without_media_stand_alone_unless_they_are_the_same() -> None:
    rows = [
        Row((Turn("user", (text,)), Turn("assistant", ("!",))), Origin("a", n))
        for n, text in enumerate("aabc")
    ]
    train, held_out = split(rows, 0.3, 0)
    assert len(held_out) == 1
    assert held_out[0] in rows[2:]
    assert len(train) == 3


@pytest.mark.parametrize("fraction", [-0.1, 1.0, 2.0])
def test_a_fraction_that_is_none_is_refused(fraction: float) -> None:
    with pytest.raises(UsageError, match=r"is not in \[0, 1\); 0\.1 is usual"):
        split([about("a.mp4")], fraction, 0)


def test_nothing_is_held_out_of_one_video_but_by_being_told() -> None:
    rows = [about("a.mp4"), about("a.mp4")]
    assert split(rows, 0, 0) == (rows, [])
    with pytest.raises(UsageError, match="all rows are about the same video, so none can be held"):
        split(rows, 0.5, 0)
