"""The shelf: what is put on it comes back, nothing half-written does, and the oldest goes first."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import REPOSITORY
from hypothesis import given
from hypothesis import strategies as st

from finetune import shelf as shelf_module
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
    assert total(tmp_path) < 230_000


def test_only_one_process_at_a_time_makes_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def locked(*_: object) -> None:
        raise BlockingIOError

    shelf = Shelf(tmp_path, max_bytes=3000)
    monkeypatch.setattr(shelf_module.fcntl, "flock", locked)
    for n in range(5):
        shelf.put(f"{n}", {}, [bytes(1000)])
    assert all(shelf.get(f"{n}") is not None for n in range(5))
