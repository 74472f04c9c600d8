"""Writing files whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from vidqa.whole_files import write_whole


@pytest.mark.parametrize("on_disk", [False, True])
def test_a_file_is_replaced_and_nothing_is_left_beside_it(tmp_path: Path, on_disk: bool) -> None:
    path = tmp_path / "new folder" / "it.json"
    for content in (b"first", b"second"):
        write_whole(path, content, on_disk=on_disk)
        assert path.read_bytes() == content
    assert list(path.parent.iterdir()) == [path]


def test_what_cannot_be_put_in_place_leaves_all_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "it").mkdir()
    with pytest.raises(OSError, match="it"):
        write_whole(tmp_path / "it", b"a file in the place of a folder")
    assert [one.name for one in tmp_path.iterdir()] == ["it"]
