"""Media read ahead by processes: they are on the shelf, and a crash costs its own medium."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from finetune import fetch as fetch_module
from finetune.fetch import Job, fetch
from finetune.layout import Look
from finetune.media import show_row
from finetune.rows import Media, Origin, Row, Turn
from finetune.shelf import Shelf
from tests.media import three_shots

LOOK = Look(max_frames=4)
# A child in which the decoder crashes at one file, and hangs at another.
CRASHING = """
import os, sys, time
from finetune import fetch
show = fetch.show
def crash(media, *rest):
    if media.paths[0].endswith("crash.mp4"):
        os.kill(os.getpid(), 11)
    if media.paths[0].endswith("hang.mp4"):
        time.sleep(100)
    return show(media, *rest)
fetch.show = crash
fetch.child(int(sys.argv[1]))
"""


def row(*paths: Path) -> Row:
    media = [Media("video", (str(path),)) for path in paths]
    return Row((Turn("user", (*media, "?")),), Origin("rows.jsonl", 1))


@pytest.mark.parametrize("number", ["0", "1"])
def test_what_was_fetched_is_on_the_shelf_whichever_process_did_it(
    number: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", number)
    monkeypatch.setenv("WORLD_SIZE", "2")
    rows = [row(three_shots(tmp_path / f"{n}.mp4").path) for n in range(3)]
    shelf = Shelf(tmp_path / "shelf")
    told: list[tuple[int, int]] = []
    given = [*rows, *rows, row(tmp_path / "gone.mp4")]
    assert fetch(given, LOOK, shelf, 2, lambda *done: told.append(done)) == {}
    assert told == [(n, 4) for n in range(1, 5)], "each medium once"
    monkeypatch.delattr("finetune.media.read_stretch")
    assert all(len(show_row(one, LOOK, shelf)[0].pictures) == 4 for one in rows)


def test_a_crash_and_a_hang_cost_their_own_media_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch_module, "_CHILD", CRASHING)
    monkeypatch.setattr(fetch_module, "HANGS_SECONDS", 15.0)
    names = ("a", "crash", "b", "hang", "c")
    films = {name: three_shots(tmp_path / f"{name}.mp4").path for name in names}
    shelf = Shelf(tmp_path / "shelf")
    reasons = fetch([row(path) for path in films.values()], LOOK, shelf, 1)
    said = {Path(media.paths[0]).stem: reason for media, reason in reasons.items()}
    assert set(said) == {"crash", "hang"}
    assert said["crash"].endswith("crash.mp4: the decoder crashed (SIGSEGV); the file is damaged "
                                  "or unusual")  # fmt: skip
    assert "hang.mp4: reading it hangs" in said["hang"]
    monkeypatch.delattr("finetune.media.read_stretch")
    assert all(show_row(row(films[name]), LOOK, shelf) for name in ("a", "b", "c"))


def test_a_reader_that_dies_between_two_media_costs_neither(tmp_path: Path) -> None:
    media = [Media("video", (str(three_shots(tmp_path / f"{n}.mp4").path),)) for n in range(2)]
    with fetch_module._Reader() as reader:
        assert reader.read((media[0], LOOK, 4, Shelf(tmp_path / "shelf"))) is None
        died = reader._process
        assert died
        died.kill()
        died.wait()
        assert reader.read((media[1], LOOK, 4, Shelf(tmp_path / "shelf"))) is None


def test_nothing_to_fetch_starts_no_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(fetch_module, "start")
    assert fetch([row(), row(*[Path("a.mp4")] * 9)], LOOK, Shelf(tmp_path), 4) == {}


class NotedReader:
    """Reads nothing: notes the media it is given, and takes `crash` for one that crashes."""

    noted: list[str]

    def __enter__(self) -> NotedReader:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def read(self, job: Job) -> str | None:
        name = Path(job[0].paths[0]).stem
        self.noted.append(name)
        return "crashed" if name == "crash" else None


def fetched_by(number: int, count: int, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, list[str]]:
    """What one of several processes returns, and the media it read, in order."""
    monkeypatch.setenv("RANK", str(number))
    monkeypatch.setenv("WORLD_SIZE", str(count))
    monkeypatch.setattr(fetch_module, "_Reader", NotedReader)
    monkeypatch.setattr(NotedReader, "noted", [], raising=False)
    rows = [row(Path(f"{name}.mp4")) for name in ("a", "b", "crash", "c", "d")]
    reasons = fetch(rows, LOOK, Shelf(Path("unused")), 1)
    return reasons, NotedReader.noted


def test_each_process_begins_to_read_at_its_own_share_of_the_media(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    orders = ["".join(fetched_by(n, 3, monkeypatch)[1]) for n in range(3)]
    assert orders == ["abcrashcd", "bcrashcda", "cdabcrash"]


def test_what_crashes_is_told_alike_to_every_process(monkeypatch: pytest.MonkeyPatch) -> None:
    reasons = [fetched_by(n, 3, monkeypatch)[0] for n in range(3)]
    assert reasons == [{Media("video", ("crash.mp4",)): "crashed"}] * 3
