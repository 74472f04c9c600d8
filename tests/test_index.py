"""The FAISS cache: exact while small, near enough when large, and never read when damaged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from vidqa import index as index_module
from vidqa.index import FrameIndex, IndexHeader, load, read_header

HEADER = IndexHeader(library_id="a library", generation=3, next_frame_id=10_000)


def unit(count: int, dimension: int = 16, seed: int = 0) -> NDArray[np.float32]:
    made = np.random.default_rng(seed).standard_normal((count, dimension)).astype(np.float32)
    return np.asarray(made / np.linalg.norm(made, axis=1, keepdims=True), np.float32)


def build(count: int, dimension: int = 16) -> FrameIndex:
    """Frames 0, 3, 6, ...: ids have gaps, as those of a library have."""
    return FrameIndex.build(HEADER, 3 * np.arange(count), unit(count, dimension))


@pytest.fixture
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets a test of the large form do with two thousand frames."""
    monkeypatch.setattr(index_module, "EXACT_LIMIT", 1000)
    monkeypatch.setattr(index_module, "ALLOWED_EXACT_LIMIT", 100)
    monkeypatch.setattr(index_module, "CELL_FRAMES", 100)
    monkeypatch.setattr(index_module, "CANDIDATES_MIN", 50)


def test_a_search_agrees_with_arithmetic() -> None:
    vectors, query = unit(500), unit(1, seed=1)[0]
    ids, scores = build(500).search(query, 20)
    cosines = vectors @ query
    expected = np.argsort(-cosines)[:20]
    assert ids.tolist() == (3 * expected).tolist()
    np.testing.assert_allclose(scores, cosines[expected], atol=1e-3)


def test_equal_scores_come_in_order_of_id() -> None:
    same = np.repeat(unit(1), 6, axis=0)
    ids, _ = FrameIndex.build(HEADER, np.arange(6) * 2, same).search(same[0], 6)
    assert ids.tolist() == [0, 2, 4, 6, 8, 10]


@settings(max_examples=30, suppress_health_check=list(HealthCheck))
@given(
    allowed=st.sets(st.integers(0, 400), max_size=60),
    k=st.integers(1, 80),
    large=st.booleans(),
)
def test_a_filtered_search_gives_k_allowed_frames_when_there_are_k(
    allowed: set[int], k: int, large: bool
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(index_module, "EXACT_LIMIT", 50 if large else 1000)
        patch.setattr(index_module, "ALLOWED_EXACT_LIMIT", 0)
        patch.setattr(index_module, "CELL_FRAMES", 30)
        index = build(100)
        wanted = np.array(sorted(allowed), np.int64)
        ids, scores = index.search(unit(1, seed=2)[0], k, wanted)
    there = {one for one in allowed if one % 3 == 0 and one < 300}
    assert len(ids) == min(k, len(there))
    assert set(ids.tolist()) <= there
    assert np.all(np.diff(scores) <= 0)


def test_cosines_are_exact_and_in_the_order_asked_for(small_limits: None) -> None:
    vectors, query = unit(2000), unit(1, seed=1)[0]
    index = build(2000)
    assert index._cells is not None
    asked = np.random.default_rng(0).permutation(2000)[:700]
    np.testing.assert_allclose(index.cosines(query, 3 * asked), vectors[asked] @ query, atol=1e-3)


def test_the_cosine_of_a_frame_that_is_not_held_is_nan() -> None:
    cosines = build(10).cosines(unit(1)[0], np.array([3, 4, 30]))
    assert np.isnan(cosines).tolist() == [False, True, True]


def test_an_empty_index_finds_nothing() -> None:
    index = FrameIndex.build(HEADER, np.empty(0, np.int64), np.empty((0, 16), np.float32))
    for allowed in (None, np.array([1, 2])):
        ids, scores = index.search(unit(1)[0], 5, allowed)
        assert len(ids) == len(scores) == 0
    assert np.isnan(index.cosines(unit(1)[0], np.array([1]))).all()


@pytest.mark.usefixtures("small_limits")
def test_a_large_index_finds_what_comparing_everything_finds() -> None:
    frames = np.repeat(unit(100, 64), 20, axis=0) + 0.3 * unit(2000, 64, seed=3)
    frames /= np.linalg.norm(frames, axis=1, keepdims=True)
    index = FrameIndex.build(HEADER, np.arange(2000), frames)
    found = expected = 0
    for query in frames[::100]:
        ids, _ = index.search(query, 10)
        expected += 10
        found += len(set(ids) & set(np.argsort(-(frames @ query))[:10]))
    assert index._cells is not None
    assert found / expected >= 0.95


@pytest.mark.parametrize("count", [50, 2000])
@pytest.mark.usefixtures("small_limits")
def test_an_index_comes_back_from_disk_as_it_was(tmp_path: Path, count: int) -> None:
    index, path = build(count), tmp_path / "index.faiss"
    index.save(path)
    again = load(path)
    assert again is not None
    assert again.header == read_header(path) == HEADER
    query = unit(1, seed=1)[0]
    for one, other in zip(index.search(query, 10), again.search(query, 10), strict=True):
        np.testing.assert_array_equal(one, other)
    assert [entry.name for entry in tmp_path.iterdir()] == ["index.faiss"]


@pytest.mark.parametrize("count", [500, 2000])
@pytest.mark.usefixtures("small_limits")
def test_later_frames_join_an_index(count: int) -> None:
    index = build(count)
    later = unit(100, seed=5)
    header = IndexHeader("a library", 4, 20_000)
    assert index.extend(header, 10_000 + np.arange(100), later)
    ids, _ = index.search(later[42], 1)
    assert (ids.tolist(), index.header, len(index)) == ([10_042], header, count + 100)


@pytest.mark.parametrize(("count", "more"), [(900, 200), (2000, 3000)])
@pytest.mark.usefixtures("small_limits")
def test_an_index_that_outgrows_its_form_asks_to_be_built_anew(count: int, more: int) -> None:
    index = build(count)
    assert not index.extend(HEADER, 10_000 + np.arange(more), unit(more))
    assert len(index) == count


@pytest.mark.parametrize("part", [0, 40, 85, 110, 600, -1])
def test_a_damaged_file_is_never_handed_to_faiss(
    tmp_path: Path, part: int, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "index.faiss"
    build(50).save(path)
    data = bytearray(path.read_bytes())
    data[part] ^= 0x40
    path.write_bytes(data)

    def fail(*_: object) -> None:
        raise AssertionError("faiss read a damaged file")

    monkeypatch.setattr("faiss.read_index", fail)
    assert load(path) is None
    assert "is not usable and will be built again" in caplog.text


@pytest.mark.parametrize("size", [0, 10, 512, 700])
def test_a_file_that_was_cut_off_is_not_loaded(tmp_path: Path, size: int) -> None:
    path = tmp_path / "index.faiss"
    build(50).save(path)
    path.write_bytes(path.read_bytes()[:size])
    assert load(path) is None


def test_a_missing_file_is_no_index(tmp_path: Path) -> None:
    assert load(tmp_path / "none") is None
    assert read_header(tmp_path / "none") is None


def test_a_save_that_fails_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "index.faiss"
    build(50).save(path)
    before = path.read_bytes()

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        build(60).save(path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["index.faiss"]
