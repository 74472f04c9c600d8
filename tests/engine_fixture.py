"""The real vLLM, started once for all tests that need it, in a runtime folder of its own.

`tiny_answerer`   a folder with a tiny Qwen2-VL with random weights
`engine_folder`   the runtime folder of the tests' engine, which is ended with the session
`engine`          a handle of a running engine that serves `tiny_answerer`
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_models import make_answerer

from vidqa import engine as managed
from vidqa.engine import EngineHandle, EngineOptions


@pytest.fixture(scope="session")
def tiny_answerer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_answerer(tmp_path_factory.mktemp("models") / "tiny-vl", "qwen2-vl-tiny")


@pytest.fixture(scope="session")
def engine_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Of the session's engine. A command finds it with the folder above as VIDQA_RUNTIME_DIR."""
    folder = tmp_path_factory.mktemp("runtime") / "vidqa"
    yield folder
    managed.stop(folder)


def small_engine(model: Path) -> EngineOptions:
    """Options for a model of a few layers, on whatever this machine computes with."""
    return EngineOptions(
        model=str(model),
        dtype="float32",
        max_model_len=2048,
        kvcache_gib=0.25,
        gpu_memory_utilization=0.1,
        idle_minutes=15.0,
    )


@pytest.fixture
def engine(tiny_answerer: Path, engine_folder: Path) -> EngineHandle:
    """For each test anew: a test may have ended the engine, or started another in its place."""
    return managed.ensure_engine(small_engine(tiny_answerer), engine_folder)
