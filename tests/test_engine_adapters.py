"""Adapters in a running engine, with a stand-in for vLLM; test_adapters_e2e has the real one."""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from adapter_parts import make_adapter
from conftest import REPOSITORY
from test_engine import PROGRAM

from vidqa import engine
from vidqa.adapter_fit import servable
from vidqa.engine import EngineHandle, EngineOptions, ensure_engine
from vidqa.engine_adapters import EngineGone, difference_of, load, loaded, unload
from vidqa.errors import EngineError, ModelError, UsageError


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    monkeypatch.setattr(engine, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(engine, "STOP_SECONDS", 2.0)
    folder = tmp_path / "engine"
    yield folder
    engine.stop(folder)


@pytest.fixture
def birds(tmp_path: Path) -> Path:
    return make_adapter(tmp_path / "birds")


def start(folder: Path, rank: int = 16) -> EngineHandle:
    model = folder.parent / "tiny"
    model.mkdir(exist_ok=True)
    return ensure_engine(EngineOptions(model=str(model)).allowing(rank), folder, program=PROGRAM)


def said(folder: Path, what: str) -> list[str]:
    """The lines of the stand-in's log that begin so."""
    return [one for one in engine.logs(folder, 10_000).splitlines() if one.startswith(what)]


def test_an_adapter_is_loaded_from_a_copy_and_asked_for_by_name_and_digest(
    folder: Path, birds: Path
) -> None:
    handle, adapter = start(folder), servable(birds)
    stages: list[str] = []
    found = load(handle, adapter, "birds", stages.append)
    assert found.model == f"birds@{adapter.digest}"
    place = folder / "adapters" / adapter.digest
    assert said(folder, "load") == [f"load {found.model} from {place}"]
    assert stages == ["loading adapter birds"]
    assert loaded(handle) == [found]


def test_the_proof_says_how_much_the_answers_differ(folder: Path, birds: Path) -> None:
    assert load(start(folder), servable(birds), "birds").difference == pytest.approx(0.5)


def test_what_is_loaded_is_neither_loaded_nor_proved_again(folder: Path, birds: Path) -> None:
    handle = start(folder)
    found = {load(handle, servable(birds), "birds") for _ in range(3)}
    assert len(found) == 1
    assert len(said(folder, "load")) == 1
    assert len(said(folder, "ask")) == 3  # the base twice, the adapter once


def test_commands_at_once_load_it_once(folder: Path, birds: Path) -> None:
    handle = start(folder)
    with ThreadPoolExecutor(6) as pool:
        found = set(pool.map(lambda _: load(handle, servable(birds), "birds"), range(6)))
    assert len(found) == 1
    assert len(said(folder, "load")) == 1


def test_a_second_name_for_it_is_not_proved_again(folder: Path, birds: Path) -> None:
    handle = start(folder)
    load(handle, servable(birds), "birds")
    load(handle, servable(birds), "fowl")
    assert len(said(folder, "ask")) == 3
    assert [one.name for one in loaded(handle)] == ["birds", "fowl"]


def test_one_that_was_trained_again_is_loaded_beside_the_one_before(
    folder: Path, birds: Path
) -> None:
    handle = start(folder)
    first = load(handle, servable(birds), "birds")
    make_adapter(birds, seed=1)
    second = load(handle, servable(birds), "birds")
    assert first.model != second.model
    assert loaded(handle) == [first, second]  # who asks the first one gets its answers to the end


def test_a_new_engine_proves_it_anew(folder: Path, birds: Path) -> None:
    load(start(folder), servable(birds), "birds")
    load(start(folder, 64), servable(birds), "birds")
    assert len(said(folder, "ask")) == 3


def test_one_that_is_not_applied_is_an_error_and_not_left_loaded(
    folder: Path, birds: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_ENGINE", "ignores")
    handle = start(folder)
    for _ in range(2):
        with pytest.raises(ModelError, match=r"birds: vLLM has loaded it and answers as without"):
            load(handle, servable(birds), "birds")
    assert loaded(handle) == []
    assert len(said(folder, "unload")) == 2


def test_what_differs_no_more_than_the_base_from_itself_is_not_applied(
    folder: Path, birds: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_ENGINE", "noisy")
    with pytest.raises(ModelError, match=r"differ by 0\.002, the base's own by 0\.001"):
        load(start(folder), servable(birds), "birds")


def test_what_vllm_does_not_take_is_told_with_its_reason(
    folder: Path, birds: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_ENGINE", "picky")
    handle = start(folder)
    with pytest.raises(ModelError, match=r"birds: vLLM does not load it: LoRA rank 64 is greater"):
        load(handle, servable(birds), "birds")
    assert handle.adapters is not None
    assert list(handle.adapters.iterdir()) == []


def test_what_another_name_is_loaded_from_stays_when_it_is_not_taken(
    folder: Path, birds: Path
) -> None:
    handle = start(folder)
    found = load(handle, servable(birds), "birds")
    with pytest.raises(ModelError, match="vLLM does not load it"):
        load(handle, servable(birds), "picky")
    assert handle.adapters is not None
    assert (handle.adapters / found.digest / "adapter_model.safetensors").is_file()


def test_likelihoods_that_are_no_numbers_prove_nothing() -> None:
    assert math.isnan(difference_of({"a": -1.0, "b": -2.0}, {"a": math.nan, "b": -1.0}))
    assert math.isnan(difference_of({"a": -1.0, "b": -2.0}, {"a": -1.0, "b": math.nan}))


def test_it_is_unloaded_by_name_with_its_copy(folder: Path, birds: Path, tmp_path: Path) -> None:
    handle = start(folder)
    kept = load(handle, servable(make_adapter(tmp_path / "cats", seed=2)), "cats")
    gone = load(handle, servable(birds), "birds")
    assert unload(handle, "birds") == [gone]
    assert unload(handle, "birds") == []
    assert loaded(handle) == [kept]
    assert [one.name for one in (folder / "adapters").iterdir()] == [kept.digest]
    assert load(handle, servable(birds), "birds") == gone


def test_the_copy_of_two_names_stays_for_the_other(folder: Path, birds: Path) -> None:
    handle = start(folder)
    load(handle, servable(birds), "birds")
    other = load(handle, servable(birds), "fowl")
    unload(handle, "birds")
    assert (folder / "adapters" / other.digest).is_dir()


def test_an_engine_without_adapters_says_so(folder: Path, birds: Path) -> None:
    handle = start(folder, 0)
    assert loaded(handle) == []
    with pytest.raises(EngineError, match="started without adapters"):
        load(handle, servable(birds), "birds")


def test_an_engine_that_has_ended_is_told_apart(folder: Path, birds: Path) -> None:
    handle = start(folder)
    engine.stop(folder)
    with pytest.raises(EngineGone, match="has ended meanwhile"):
        load(handle, servable(birds), "birds")


def test_a_name_that_is_none_is_refused(folder: Path, birds: Path) -> None:
    with pytest.raises(UsageError, match="adapter name 'a:b'"):
        load(start(folder), servable(birds), "a:b")


@pytest.mark.parametrize(
    ("one", "other", "difference"),
    [
        ({"a": -1.0, "b": -2.0}, {"a": -1.0, "b": -2.0}, 0.0),
        ({"a": -1.0, "b": -2.0}, {"a": -1.5, "b": -2.25}, 0.5),
        ({"a": -1.0, "b": -2.0}, {"a": -1.0, "c": -3.0}, 1.0),
        ({}, {}, 0.0),
    ],
)
def test_a_token_that_one_side_does_not_name_is_its_least_likely(
    one: dict[str, float], other: dict[str, float], difference: float
) -> None:
    assert difference_of(one, other) == difference_of(other, one) == difference
