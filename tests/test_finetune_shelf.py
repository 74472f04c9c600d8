"""The shelf: what is put on it comes back, nothing half-written does, and the oldest goes first."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import REPOSITORY
from hypothesis import given
from hypothesis import strategies as st

from finetune.shelf import Shelf


def total(folder: Path) -> int:
    return sum(one.stat().st_size for one in folder.iterdir())


def test_what_is_put_on_it_comes_back(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path / "new" / "folder")
    shelf.put("a", {"size": [3, 4]}, [b"one", b"", b"three"])
    assert shelf.get("a") == ({"size": [3, 4]}, [b"one", b"", b"three"])
    assert shelf.get("b") is None


@given(damage=st.binary(min_size=1, max_size=8), at=st.floats(0, 1))
def test_a_damaged_file_counts_as_none(
    tmp_path_factory: pytest.TempPathFactory, damage: bytes, at: float
) -> None:
    shelf = Shelf(tmp_path_factory.mktemp("shelf"))
    shelf.put("a", {"n": 1}, [bytes(range(256))])
    (file,) = shelf.folder.glob("*.pictures")
    data = file.read_bytes()
    place = int(at * (len(data) - 1))
    damaged = data[:place] + damage + data[place + len(damage) :]
    file.write_bytes(damaged)
    assert (shelf.get("a") is None) == (damaged != data)


@pytest.mark.parametrize("kept", [0, 10, 20, 30, 60])
def test_a_file_that_was_cut_off_counts_as_none(tmp_path: Path, kept: int) -> None:
    shelf = Shelf(tmp_path)
    shelf.put("a", {"n": 1}, [b"picture" * 10])
    (file,) = tmp_path.glob("*.pictures")
    file.write_bytes(file.read_bytes()[:kept])
    assert shelf.get("a") is None


def test_it_stays_below_its_limit_and_what_was_used_last_stays(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path, max_bytes=20_000)
    for n in range(40):
        shelf.put(f"{n}", {}, [bytes(1000)])
        assert shelf.get("0") is not None, "used all the time"
        assert total(tmp_path) <= 20_000
    assert shelf.get("39") is not None
    assert shelf.get("1") is None


def test_what_a_killed_process_left_goes_when_it_is_old(tmp_path: Path) -> None:
    old, fresh = tmp_path / "old.tmp", tmp_path / "fresh.tmp"
    old.write_bytes(b"half")
    fresh.write_bytes(b"half")
    os.utime(old, (time.time() - 7200,) * 2)
    Shelf(tmp_path).put("a", {})
    assert not old.exists()
    assert fresh.exists()


def test_a_disk_that_takes_nothing_costs_time_only(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_bytes(b"")
    shelf = Shelf(blocked / "shelf")
    shelf.put("a", {}, [b"x"])
    assert shelf.get("a") is None


USER = """
import sys
from pathlib import Path
from finetune.shelf import Shelf

shelf = Shelf(Path(sys.argv[1]), max_bytes=200_000)
n = int(sys.argv[2])
while True:
    found = shelf.get(str(n % 60))
    assert found is None or found == ({"n": n % 60}, [bytes([n % 60]) * 5000])
    shelf.put(str(n % 60), {"n": n % 60}, [bytes([n % 60]) * 5000])
    n += 7
"""


def test_processes_that_share_it_and_are_killed_leave_it_whole(tmp_path: Path) -> None:
    users = [
        subprocess.Popen([sys.executable, "-c", USER, str(tmp_path), str(n)], cwd=REPOSITORY)
        for n in range(3)
    ]
    deadline = time.monotonic() + 30
    while len(list(tmp_path.glob("*.pictures"))) < 20 and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(1.0)
    for user in users:
        assert user.poll() is None, "met something that nobody had put there"
        user.kill()
        user.wait()
    shelf = Shelf(tmp_path, max_bytes=200_000)
    found = [shelf.get(str(n)) for n in range(60)]
    assert sum(one is not None for one in found) > 10
    assert all(one is None or one[1] == [bytes([n]) * 5000] for n, one in enumerate(found))
    slack, file = 0.02 * 200_000, 5_100
    assert total(tmp_path) <= 200_000 + len(users) * (slack + file)


def test_two_that_make_room_at_once_delete_no_more_than_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(30):
        Shelf(tmp_path).put(f"{n}", {}, [bytes(1000)])
        os.utime(tmp_path / f"{n}.pictures", (n, n))
    alone = shutil.copytree(tmp_path, tmp_path.with_name("alone"))
    Shelf(alone, max_bytes=20_000).put("new", {}, [bytes(1000)])

    look = Shelf._files

    def held_up_by_another(shelf: Shelf) -> object:
        found = look(shelf)
        monkeypatch.setattr(Shelf, "_files", look)
        Shelf(tmp_path, max_bytes=20_000).put("new", {}, [bytes(1000)])
        return found

    monkeypatch.setattr(Shelf, "_files", held_up_by_another)
    Shelf(tmp_path, max_bytes=20_000).put("new", {}, [bytes(1000)])
    assert sorted(one.name for one in tmp_path.iterdir()) == sorted(
        one.name for one in alone.iterdir()
    )


def test_one_that_is_held_up_while_it_makes_room_keeps_no_other_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    most = []

    look = Shelf._files

    def held_up_by_another(shelf: Shelf) -> object:
        monkeypatch.setattr(Shelf, "_files", look)
        other = Shelf(tmp_path, max_bytes=20_000)
        for n in range(60):
            other.put(f"{n}", {}, [bytes(1000)])
            most.append(total(tmp_path))
        return look(shelf)

    monkeypatch.setattr(Shelf, "_files", held_up_by_another)
    Shelf(tmp_path, max_bytes=20_000).put("first", {}, [bytes(1000)])
    assert max(most) <= 20_000
