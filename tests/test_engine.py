"""The engine's life with a stand-in for vLLM that starts at once; `test_e2e` has the real one."""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

import httpx
import pytest
from conftest import REPOSITORY
from waiting import LIMIT_SECONDS, runs, until

from vidqa import engine
from vidqa.engine import EngineHandle, EngineOptions, ensure_engine
from vidqa.engine_log import failure_reason, stage_of
from vidqa.engine_options import server_environment, server_flags
from vidqa.errors import EngineError, MissingExtra

PROGRAM = (sys.executable, str(REPOSITORY / "tests" / "fake_engine.py"))

AN_INSTANT = 1e-9  # seconds: who is being answered is waited for, and nobody else
IN_ITS_TURN = [
    "waiting until nobody asks tiny; vidqa engine stop breaks it off",
    "ending the engine that serves tiny",
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    monkeypatch.setattr(engine, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(engine, "PAUSE_SECONDS", AN_INSTANT)
    folder = tmp_path / "engine"
    yield folder
    monkeypatch.setattr(engine, "STOP_SECONDS", 2.0)
    engine.stop(folder)


@pytest.fixture
def options(tmp_path: Path) -> EngineOptions:
    model = tmp_path / "tiny"
    model.mkdir()
    (model / "config.json").write_text("{}")
    return EngineOptions(model=str(model))


def start(options: EngineOptions, folder: Path, stages: list[str] | None = None) -> EngineHandle:
    heard: list[str] = [] if stages is None else stages
    return ensure_engine(options, folder, heard.append, program=PROGRAM)


def state_of(folder: Path) -> engine._State:
    state = engine._read_state(folder)
    assert state is not None
    return state


def worker_of(folder: Path) -> int:
    """The process id of the child that a stand-in started."""
    return int(engine.logs(folder).partition("worker: ")[2].split()[0])


# ---------------------------------------------------------------- starting and sharing


def test_an_engine_starts_and_answers_under_its_key(options: EngineOptions, folder: Path) -> None:
    handle = start(options, folder)
    headers = {"Authorization": f"Bearer {handle.api_key}"}
    url = handle.base_url.removesuffix("/v1") + "/health"
    assert httpx.get(url, headers=headers, timeout=LIMIT_SECONDS).status_code == 200
    assert httpx.get(url, timeout=LIMIT_SECONDS).status_code == 401


def test_it_listens_on_loopback_alone(options: EngineOptions, folder: Path) -> None:
    assert start(options, folder).base_url.startswith("http://127.0.0.1:")


def test_a_second_command_takes_the_running_engine(options: EngineOptions, folder: Path) -> None:
    assert start(options, folder) == start(options, folder)


def test_two_commands_at_once_end_with_one_engine(options: EngineOptions, folder: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        handles = set(pool.map(lambda _: start(options, folder), range(4)))
    assert len(handles) == 1


def test_the_stages_of_a_start_are_told_with_the_seconds(
    options: EngineOptions, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = tmp_path / "heard"
    monkeypatch.setenv("FAKE_ENGINE_WAITS_FOR", str(heard))

    def on_stage(stage: str) -> None:
        if re.fullmatch(r"starting vLLM, \d+ s: importing vLLM in the engine's process", stage):
            heard.touch()

    monkeypatch.setattr(engine, "STALL_SECONDS", 20.0)
    ensure_engine(options, folder, on_stage, program=PROGRAM)
    assert heard.exists()


def test_it_lives_on_when_its_starter_has_ended(options: EngineOptions, folder: Path) -> None:
    code = (
        "import sys\nfrom pathlib import Path\nfrom vidqa.engine import *\n"
        f"ensure_engine(EngineOptions(model={options.model!r}), Path({str(folder)!r}), "
        f"program={PROGRAM!r})"
    )
    subprocess.run([sys.executable, "-c", code], check=True, start_new_session=True)
    found = engine.status(folder)
    assert found is not None
    assert found.stage == "ready"
    assert start(options, folder).pid == found.pid


def test_it_leads_a_session_of_its_own(options: EngineOptions, folder: Path) -> None:
    pid = start(options, folder).pid
    assert os.getsid(pid) == os.getpgid(pid) == pid


def test_other_options_end_it_and_start_another(options: EngineOptions, folder: Path) -> None:
    first = start(options, folder)
    stages: list[str] = []
    other = EngineOptions(model=options.model, max_model_len=4096)
    second = start(other, folder, stages)
    assert stages[0] == "ending the engine that serves tiny"
    assert second.pid != first.pid
    assert not runs(first.pid)


def test_a_running_answer_is_waited_for_before_another_engine_takes_its_place(
    options: EngineOptions, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_ENGINE_ANSWERS_AT", str(tmp_path / "answer"))
    first = start(options, folder)
    headers = {"Authorization": f"Bearer {first.api_key}"}
    stages: list[str] = []
    with ThreadPoolExecutor(2) as pool:
        answer = pool.submit(
            httpx.post, f"{first.base_url}/chat/completions", headers=headers, timeout=LIMIT_SECONDS
        )
        until(lambda: engine._is_asked(state_of(folder)))
        second = pool.submit(
            start, EngineOptions(model=options.model, max_model_len=4096), folder, stages
        )
        until(lambda: len(stages) > 0)
        time.sleep(0.2)
        assert runs(first.pid)
        (tmp_path / "answer").touch()
        assert answer.result(LIMIT_SECONDS).status_code == 200
        assert second.result(LIMIT_SECONDS).pid != first.pid
    assert stages[:2] == IN_ITS_TURN


def test_who_was_answered_a_moment_ago_may_ask_again_before_that(
    options: EngineOptions, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "PAUSE_SECONDS", LIMIT_SECONDS)
    start(options, folder)
    stages: list[str] = []

    def on_stage(stage: str) -> None:
        stages.append(stage)
        monkeypatch.setattr(engine, "PAUSE_SECONDS", AN_INSTANT)

    other = EngineOptions(model=options.model, max_model_len=4096)
    ensure_engine(other, folder, on_stage, program=PROGRAM)
    assert stages[:2] == IN_ITS_TURN


def test_one_that_stopped_answering_is_not_waited_for(
    options: EngineOptions, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = start(options, folder)
    other = EngineOptions(model=options.model, max_model_len=4096)
    second, _ = replaced_while_stopped(first, other, folder, monkeypatch)
    assert second.pid != first.pid


def replaced_while_stopped(
    first: EngineHandle, options: EngineOptions, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[EngineHandle, list[str]]:
    """The engine in place of one that is stopped, and what was told; only that one is given up."""
    stages: list[str] = []

    def on_stage(stage: str) -> None:
        stages.append(stage)
        if stage.startswith("starting"):
            monkeypatch.setattr(engine, "HEALTH_SECONDS", LIMIT_SECONDS)

    monkeypatch.setattr(engine, "HEALTH_SECONDS", 0.3)
    monkeypatch.setattr(engine, "STOP_SECONDS", 0.5)
    os.kill(first.pid, signal.SIGSTOP)
    return ensure_engine(options, folder, on_stage, program=PROGRAM), stages


def test_retrained_weights_start_another(options: EngineOptions, folder: Path) -> None:
    first = start(options, folder)
    (Path(options.model) / "config.json").write_text("{ }")
    assert start(options, folder).pid != first.pid


def test_another_idle_time_does_not(options: EngineOptions, folder: Path) -> None:
    other = EngineOptions(model=options.model, idle_minutes=7)
    assert start(options, folder).pid == start(other, folder).pid


# ---------------------------------------------------------------- with adapters and without


def test_an_engine_with_adapters_serves_those_who_want_none(
    options: EngineOptions, folder: Path
) -> None:
    first = start(options.allowing(16), folder)
    assert first.adapters == folder / "adapters"
    assert start(options, folder) == first


def test_one_without_is_started_anew_once_for_those_who_want_some(
    options: EngineOptions, folder: Path
) -> None:
    first = start(options, folder)
    assert first.adapters is None
    stages: list[str] = []
    second = start(options.allowing(16), folder, stages)
    assert stages[0] == "ending the engine that serves tiny and no adapters"
    assert second.pid != first.pid
    assert start(options.allowing(8), folder).pid == second.pid


def test_a_larger_rank_or_the_vision_tower_starts_one_that_allows_both(
    options: EngineOptions, folder: Path
) -> None:
    start(options.allowing(16), folder)
    start(options.allowing(64), folder)
    third = start(options.allowing(8, tower_lora=True), folder)
    found = engine.status(folder)
    assert found is not None
    assert (found.lora_rank, found.tower_lora) == (64, True)
    assert start(options.allowing(64), folder).pid == third.pid


def test_what_took_the_place_of_another_model_allows_no_more_than_it_must(
    options: EngineOptions, folder: Path
) -> None:
    start(options.allowing(64), folder)
    other = EngineOptions(model=options.model, max_model_len=4096)
    assert start(other, folder).adapters is None


def test_copies_of_adapters_go_with_the_engine_that_had_them(
    options: EngineOptions, folder: Path
) -> None:
    start(options.allowing(16), folder)
    (folder / "adapters" / "x").mkdir(parents=True)
    engine.stop(folder)
    start(options.allowing(16), folder)
    assert not (folder / "adapters").exists()


def test_who_only_looks_for_an_engine_starts_none(options: EngineOptions, folder: Path) -> None:
    assert engine.running(folder) is None
    assert start(options, folder) == engine.running(folder)


# ---------------------------------------------------------------- dead, hung, idle


def test_a_dead_engine_is_replaced(options: EngineOptions, folder: Path) -> None:
    first = start(options, folder)
    os.killpg(first.pid, signal.SIGKILL)
    until(lambda: not runs(first.pid))
    assert start(options, folder).pid != first.pid


def test_a_stopped_engine_is_replaced(
    options: EngineOptions, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = start(options, folder)
    second, stages = replaced_while_stopped(first, options, folder, monkeypatch)
    assert second.pid != first.pid
    assert stages[0] == "replacing the engine, which does not answer"
    assert not runs(first.pid)


def test_an_engine_that_reports_ill_health_is_replaced_or_given_up(
    options: EngineOptions, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_ENGINE", "refuses")
    with pytest.raises(EngineError, match="vLLM did not start: it does not answer"):
        start(options, folder)
    assert engine.status(folder) is None


def test_a_start_that_does_not_move_on_is_given_up(
    options: EngineOptions, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_ENGINE", "wedges")
    monkeypatch.setattr(engine, "STALL_SECONDS", 0.3)
    monkeypatch.setattr(engine, "STOP_SECONDS", 0.3)
    with pytest.raises(EngineError, match="it has not moved on from 'importing vLLM' for 0 s"):
        start(options, folder)
    assert engine.status(folder) is None


def test_a_failed_start_tells_the_reason_and_the_last_lines_of_the_log(
    options: EngineOptions, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_ENGINE", "dies")
    with pytest.raises(EngineError) as caught:
        start(options, folder)
    first, *lines = str(caught.value).splitlines()
    assert "did not start: ValueError: No available memory for the cache blocks.;" in first
    assert str(folder / "engine.log") in first
    assert lines[-1].endswith("See root cause above.")


def test_it_stops_by_itself_when_nobody_asks(options: EngineOptions, folder: Path) -> None:
    handle = start(EngineOptions(model=options.model, idle_minutes=0.01), folder)
    until(lambda: not runs(handle.pid))
    assert "nobody asked for 1 s, so the engine stops" in engine.logs(folder)


def test_looking_at_it_does_not_keep_it_from_stopping(options: EngineOptions, folder: Path) -> None:
    handle = start(EngineOptions(model=options.model, idle_minutes=0.01), folder)
    until(lambda: engine.status(folder) is None)
    until(lambda: not runs(handle.pid))


# ---------------------------------------------------------------- stopping


def test_stop_ends_it_with_its_children(options: EngineOptions, folder: Path) -> None:
    handle = start(options, folder)
    worker = worker_of(folder)
    assert runs(worker)
    assert engine.stop(folder)
    until(lambda: not runs(worker) and not runs(handle.pid))


def test_stop_ends_one_that_does_not_listen_as_a_whole_group(
    options: EngineOptions, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "STOP_SECONDS", 0.5)
    handle = start(options, folder)
    worker = worker_of(folder)
    os.kill(handle.pid, signal.SIGSTOP)
    assert engine.stop(folder)
    until(lambda: not runs(worker) and not runs(handle.pid))


def test_stop_without_an_engine_says_so(folder: Path) -> None:
    assert not engine.stop(folder)


def test_status_without_an_engine_is_none(folder: Path) -> None:
    assert engine.status(folder) is None


def test_a_process_id_left_behind_is_not_taken_for_an_engine(folder: Path) -> None:
    engine.private_folder(folder)
    (folder / "alive.lock").write_text(str(os.getpid()))
    assert not engine.stop(folder)


def test_one_that_has_not_said_who_it_is_is_not_taken_for_the_one_before(
    options: EngineOptions, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_ENGINE", "late")
    monkeypatch.setenv("FAKE_ENGINE_WAITS_FOR", str(folder / "nothing"))  # it is never ready
    monkeypatch.setattr(engine, "PROCESS_SECONDS", LIMIT_SECONDS)
    engine.private_folder(folder)
    stranger = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True
    )
    (folder / "alive.lock").write_text(str(stranger.pid))
    try:
        with ThreadPoolExecutor(1) as pool:
            starting = pool.submit(start, options, folder)
            try:
                until(lambda: engine._is_alive(folder))
                assert engine.stop(folder)
            finally:
                (folder / "nothing").touch()
            with pytest.raises(EngineError, match="it has ended"):
                starting.result(LIMIT_SECONDS)
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_who_finds_the_lock_held_finds_no_id_of_the_one_before(
    options: EngineOptions, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.private_folder(folder)
    (folder / "alive.lock").write_text("12345")
    lock, found = fcntl.flock, []

    def locked(file: IO[str], kind: int) -> None:
        lock(file, kind)
        if kind == fcntl.LOCK_EX and file.name == str(folder / "alive.lock"):
            found.append(engine._pid(folder))

    monkeypatch.setattr(engine.fcntl, "flock", locked)
    start(options, folder)
    assert found == [0]


def test_an_engine_whose_state_is_damaged_is_replaced(options: EngineOptions, folder: Path) -> None:
    first = start(options, folder)
    (folder / "engine.json").write_text("{")
    assert start(options, folder).pid != first.pid


# ---------------------------------------------------------------- secrets and rights


def test_the_key_is_in_no_command_line_and_in_a_file_for_the_user_alone(
    options: EngineOptions, folder: Path
) -> None:
    handle = start(options, folder)
    line = Path(f"/proc/{handle.pid}/cmdline").read_text()
    assert handle.api_key not in line
    assert handle.api_key not in engine.logs(folder)
    assert handle.api_key not in repr(handle)
    assert stat.S_IMODE((folder / "engine.json").stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_every_start_has_a_new_key(options: EngineOptions, folder: Path) -> None:
    first = start(options, folder)
    engine.stop(folder)
    assert start(options, folder).api_key != first.api_key


def test_a_runtime_folder_that_others_may_read_is_refused(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o755)
    with pytest.raises(EngineError, match=r"others may read.*VIDQA_RUNTIME_DIR"):
        engine.private_folder(shared)


def test_a_link_is_no_runtime_folder(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(EngineError, match="others may read"):
        engine.private_folder(tmp_path / "link")


def test_the_runtime_folder_is_in_the_place_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VIDQA_RUNTIME_DIR", str(tmp_path))
    assert engine.private_folder() == tmp_path / "vidqa"


def flags_of(options: EngineOptions, *, on_cpu: bool = True) -> str:
    return " ".join(server_flags(options, 20000, on_cpu=on_cpu))


def test_the_server_may_fetch_no_address_and_read_no_file(options: EngineOptions) -> None:
    flags = flags_of(options)
    assert "--allowed-media-domains media.invalid" in flags
    assert "--allowed-local-media-path" not in flags
    assert "--trust-remote-code" not in flags


def test_the_server_takes_a_bounded_number_of_videos_and_no_images(options: EngineOptions) -> None:
    assert '--limit-mm-per-prompt {"video": 64, "image": 0}' in flags_of(options)


def test_no_frame_of_a_long_moment_is_dropped(options: EngineOptions) -> None:
    assert '--media-io-kwargs {"video": {"num_frames": 768}}' in flags_of(options)


def test_adapters_are_loaded_where_they_are_asked_for_and_from_one_folder_alone(
    options: EngineOptions,
) -> None:
    assert "lora" not in flags_of(options)
    flags = flags_of(options.allowing(8))
    assert "--enable-lora --max-lora-rank 16 --max-loras 4 --max-cpu-loras 16" in flags
    assert "--lora-modules" not in flags
    closed = server_environment("k", {"VLLM_LORA_RESOLVER_CACHE_DIR": "/"}, on_cpu=True)
    assert closed["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "0"
    assert closed["ENGINE_ADAPTERS"] == ""
    assert "VLLM_LORA_RESOLVER_CACHE_DIR" not in closed
    opened = server_environment("k", {}, on_cpu=True, adapters=Path("/r/adapters"))
    assert opened["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "1"
    assert opened["ENGINE_ADAPTERS"] == "/r/adapters"


def test_the_vision_tower_is_open_to_adapters_only_when_one_wants_it(
    options: EngineOptions,
) -> None:
    assert "--enable-tower-connector-lora" not in flags_of(options.allowing(8))
    assert "--enable-tower-connector-lora" in flags_of(options.allowing(8, tower_lora=True))


@pytest.mark.parametrize(
    ("rank", "served"), [(0, 0), (1, 16), (16, 16), (17, 32), (64, 64), (257, 320), (512, 512)]
)
def test_a_rank_is_served_by_the_next_that_vllm_knows(
    options: EngineOptions, rank: int, served: int
) -> None:
    assert options.allowing(rank).lora_rank == served


def test_a_card_gets_a_share_of_memory_and_a_cpu_a_size(options: EngineOptions) -> None:
    assert "--kv-cache-memory-bytes 2147483648" in flags_of(options, on_cpu=True)
    assert "--gpu-memory-utilization 0.85" in flags_of(options, on_cpu=False)
    assert "--enforce-eager" not in flags_of(options, on_cpu=False)


def test_the_server_is_offline_and_gets_nobody_elses_secrets() -> None:
    given = {"HF_TOKEN": "1", "OPENAI_API_KEY": "2", "DB_PASSWORD": "3", "PATH": "/bin"}
    given |= {"VIDQA_SERVE_KEYS": "alice:4"}
    environment = server_environment("ours", given, on_cpu=True)
    assert environment["VLLM_API_KEY"] == "ours"
    assert environment["HF_HUB_OFFLINE"] == "1"
    assert environment["PATH"] == "/bin"
    assert not given.keys() & environment.keys() - {"PATH"}


def test_vllm_that_is_not_installed_is_an_error_with_the_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(engine.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r'uv pip install --torch-backend=cpu "vidqa\[cpu\]"'):
        engine.check_vllm()


def test_the_state_names_no_secret_but_the_key(options: EngineOptions, folder: Path) -> None:
    start(options, folder)
    state = json.loads((folder / "engine.json").read_text())
    assert set(state) == {
        "port", "api_key", "model", "digest", "started_at", "idle_minutes", "lora_rank",
        "tower_lora",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("log", "stage"),
    [
        ("", "importing vLLM"),
        ("INFO Resolved architecture: Q", "importing vLLM in the engine's process"),
        ("Starting to load model x", "loading weights"),
        ("Loading safetensors checkpoint shards:  50% Completed | 1/2\r", "loading weights, 50 %"),
        ("Loading safetensors a: 50% Completed\nLoading weights took 3", "warming up"),
        ("Application startup complete", "ready"),
    ],
)
def test_the_stage_is_read_off_the_log(log: str, stage: str) -> None:
    assert stage_of(log) == stage


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("ValueError: too large", "ValueError: too large"),
        ("(EngineCore pid=3) ERROR 11-22 13:42:18 [core.py:9] torch.OutOfMemoryError: CUDA out",
         "torch.OutOfMemoryError: CUDA out"),
        ("INFO 11-22 no Error: here", ""),
        ("pydantic_core.ValidationError: 1 validation error for ModelConfig\n"
         "  Value error, max_model_len is too large. [type=value_error, input_value=1]",
         "max_model_len is too large."),
    ],
)  # fmt: skip
def test_the_reason_is_the_first_error_in_the_log(line: str, reason: str) -> None:
    assert failure_reason(f"INFO hello\n{line}\nRuntimeError: see above\n") == (
        reason or "RuntimeError: see above"
    )


def test_an_engine_that_died_before_it_said_anything_gave_no_reason() -> None:
    assert failure_reason("") == ""
