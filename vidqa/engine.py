"""The managed vLLM: started on demand, shared by all commands of one user, ended when idle.

    handle = ensure_engine(EngineOptions(model="/models/Qwen2-VL-2B-Instruct"))
    handle.base_url, handle.api_key, handle.model

There is one engine per runtime folder, because two models rarely fit one machine: asking for other
options waits for the answers that are being given, ends the engine and starts another. It listens
on loopback, under a random key, and may fetch nothing: no address, no local file, no code from a
model. One that serves adapters (`lora_rank`) loads them at run time, under the same key and from
its own folder alone, into which `adapter_fit` copies them; it serves those who want none as well.

    start.lock     held by the command that is starting, replacing or ending the engine
    alive.lock     held by the engine as long as it lives; its text is the process id
    engine.json    port, key and options, readable by the user alone
    engine.log     what vLLM says; engine.previous.log is the one before
    adapters/      copies of the adapters that are loaded, gone with the engine they were for

That a process lives is read off its lock, never off a process id, which may be another's by now.
What vLLM is told is in `engine_options`, what it says in `engine_log`; what runs inside its process
is in `engine_main` and `engine_gate`. Nothing here talks to a model: that is `vlm`.
"""

from __future__ import annotations

import fcntl
import importlib.util
import json
import os
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from vidqa.engine_gate import IDLE_SECONDS
from vidqa.engine_log import READY, failure_reason, stage_of
from vidqa.engine_options import (
    LOOPBACK,
    EngineOptions,
    is_cpu_build,
    server_environment,
    server_flags,
)
from vidqa.errors import EngineError, MissingExtra

__all__ = [
    "EngineHandle",
    "EngineOptions",
    "EngineStatus",
    "check_vllm",
    "ensure_engine",
    "logs",
    "private_folder",
    "running",
    "status",
    "stop",
]

PROGRAM = (sys.executable, "-m", "vidqa.engine_main")
ADAPTERS = "adapters"
STATUS_ROUTE = "/ping"  # vLLM's second name for its health check; `engine_gate` does not count it

# vLLM answers its health check in milliseconds; a busy laptop may take seconds.
HEALTH_SECONDS = 15.0
# A start whose log stands still for so long hangs: weights load with a progress bar.
STALL_SECONDS = 300.0
# What a running answer gets to finish when the engine is told to end.
STOP_SECONDS = 10.0
# How long a process takes at most to say its id once it runs, or to be gone once it is killed.
PROCESS_SECONDS = 10.0
# A command that has the engine asks it within so long, and asks its next question; but for one that
# decodes longer than that before it asks, and which then may lose it.
PAUSE_SECONDS = 5.0
POLL_SECONDS = 0.25

# Below the range that systems hand out for outgoing connections (Linux 32768, IANA 49152), so that
# none of these takes the port between our choice and vLLM's use of it, half a minute later.
PORTS = range(20_000, 32_000)


@dataclass(frozen=True)
class EngineHandle:
    """How to reach a running engine. `base_url` ends in `/v1`."""

    base_url: str
    api_key: str = field(repr=False)
    model: str
    pid: int
    adapters: Path | None = None  # where adapters are loaded from; None where none may be


@dataclass(frozen=True)
class EngineStatus:
    """`stage` is "ready", "not answering", or what a starting engine is doing.

    `lora_rank` is the largest rank of an adapter that may be loaded, 0 for none.
    """

    stage: str
    model: str
    base_url: str
    pid: int
    age_seconds: float
    idle_minutes: float
    log: Path
    lora_rank: int = 0
    tower_lora: bool = False


@dataclass(frozen=True)
class _State:
    port: int
    api_key: str = field(repr=False)
    model: str
    digest: str
    started_at: float  # seconds since the epoch
    idle_minutes: float
    lora_rank: int = 0
    tower_lora: bool = False

    @property
    def root(self) -> str:
        return f"http://{LOOPBACK}:{self.port}"


class _NotServing(Exception):
    """Why an engine that should serve does not, as the end of a sentence."""


# ---------------------------------------------------------------- what commands call


def ensure_engine(
    options: EngineOptions,
    folder: Path | None = None,
    on_stage: Callable[[str], None] = lambda stage: None,
    *,
    program: Sequence[str] = PROGRAM,
) -> EngineHandle:
    """A running engine with these options: the one there is, or a new one once it answers.

    `on_stage` is told what it is waiting for, as often as that changes. Raises MissingExtra
    without vLLM, EngineError with the reason and the last lines of the log when a start fails.
    """
    if program is PROGRAM:
        check_vllm()
    folder = private_folder(folder)
    digest = options.digest()
    with _turn(folder, on_stage):
        state = _read_state(folder)
        if state is not None and state.digest == digest:
            # Whoever takes its place allows no less than it did, or two commands that want
            # different adapters would end each other's engines in turn.
            options = options.allowing(state.lora_rank, tower_lora=state.tower_lora)
        if state is not None and not _serves(state, options, digest):
            _await_pause(folder, state, on_stage)
            on_stage(f"ending the engine that serves {state.model}{_why_ended(state, digest)}")
            _end(folder)
            state = None
        if state is not None:
            try:
                return _wait(folder, state, on_stage)
            except _NotServing as reason:
                on_stage(f"replacing the engine, which {reason}")
                _end(folder)
        state = _start(options, digest, folder, program)
        try:
            return _wait(folder, state, on_stage)
        except _NotServing as reason:
            _end(folder)
            raise _failure(folder, f"it {reason}") from None


def _serves(state: _State, options: EngineOptions, digest: str) -> bool:
    """Whether an engine will do for these options."""
    enough = state.lora_rank >= options.lora_rank and state.tower_lora >= options.tower_lora
    return state.digest == digest and enough


def _why_ended(state: _State, digest: str) -> str:
    if state.digest != digest:
        return ""
    if not state.lora_rank:
        return " and no adapters"
    tower = "" if state.tower_lora else ", none of the vision tower"
    return f" and adapters of rank {state.lora_rank} at most{tower}"


def status(folder: Path | None = None) -> EngineStatus | None:
    """What the engine is doing, or None without one. Asking does not keep it from stopping."""
    folder = private_folder(folder)
    state = _read_state(folder)
    if state is None:
        return None
    health = _health(state, STATUS_ROUTE)
    stage = stage_of(_log_text(folder)) if health == "refused" else health
    return EngineStatus(
        stage=stage,
        model=state.model,
        base_url=f"{state.root}/v1",
        pid=_pid(folder),
        age_seconds=time.time() - state.started_at,
        idle_minutes=state.idle_minutes,
        log=folder / "engine.log",
        lora_rank=state.lora_rank,
        tower_lora=state.tower_lora,
    )


def running(folder: Path | None = None) -> EngineHandle | None:
    """The engine there is, if it answers; none is started."""
    folder = private_folder(folder)
    state = _read_state(folder)
    if state is None or _health(state, STATUS_ROUTE) != "ready":
        return None
    return _handle(folder, state)


def stop(folder: Path | None = None, on_stage: Callable[[str], None] = lambda stage: None) -> bool:
    """Ends the engine with all its processes; False when there was none."""
    folder = private_folder(folder)
    # A starting command holds its turn for minutes: whoever stops need not wait for it.
    if not _is_alive(folder):
        return False
    on_stage("ending the engine")
    _end(folder)
    return True


def logs(folder: Path | None = None, lines: int = 50) -> str:
    """The last lines of the engine's log, or an empty string."""
    return "\n".join(_log_text(private_folder(folder)).splitlines()[-lines:])


def check_vllm() -> None:
    """Raises MissingExtra with the command that installs vLLM, where it is not installed."""
    if importlib.util.find_spec("vllm") is None:
        raise MissingExtra(
            'vLLM is not installed; install it: uv pip install --torch-backend=cpu "vidqa[cpu]", '
            'or for an NVIDIA card uv pip install "vidqa[gpu]"; or name an endpoint with --base-url'
        )


# ---------------------------------------------------------------- the runtime folder and its locks


def private_folder(folder: Path | None = None) -> Path:
    """The folder of the engine's state, made if need be: nobody else may read or write in it."""
    if folder is None:
        chosen = os.environ.get("VIDQA_RUNTIME_DIR") or os.environ.get("XDG_RUNTIME_DIR")
        base = Path(chosen) if chosen else Path(tempfile.gettempdir())
        folder = base / (f"vidqa-{os.getuid()}" if not chosen else "vidqa")
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.lstat()
    except OSError as error:
        raise EngineError(
            f"{folder}: cannot hold the engine's state ({error.strerror}); "
            "name another folder with VIDQA_RUNTIME_DIR"
        ) from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise EngineError(
            f"{folder}: others may read or write the engine's state here; remove it, or name "
            "another folder with VIDQA_RUNTIME_DIR"
        )
    return folder


@contextmanager
def _turn(folder: Path, on_stage: Callable[[str], None]) -> Iterator[None]:
    """One command at a time; the lock goes with the process, however it ends."""
    with (folder / "start.lock").open("w") as lock:
        if not _take(lock.fileno()):
            on_stage("waiting for another command that starts the engine, or waits for its turn")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _take(descriptor: int, kind: int = fcntl.LOCK_EX) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_alive(folder: Path) -> bool:
    try:
        with (folder / "alive.lock").open() as lock:
            # Shared, so that two who look at once do not take each other for an engine.
            return not _take(lock.fileno(), fcntl.LOCK_SH)
    except FileNotFoundError:
        return False


def _pid(folder: Path) -> int:
    return int((folder / "alive.lock").read_text() or 0)


def _read_state(folder: Path) -> _State | None:
    """The state of the living engine."""
    if not _is_alive(folder):
        return None
    try:
        return _State(**json.loads((folder / "engine.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        # Written before the engine is started, so this is damage. Without its key it is no use.
        _end(folder)
        return None


def _write_state(folder: Path, state: _State) -> None:
    draft = folder / "engine.json.new"
    draft.unlink(missing_ok=True)
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(descriptor, "w", encoding="utf-8") as file:
        json.dump(asdict(state), file)
    draft.replace(folder / "engine.json")


# ---------------------------------------------------------------- the process


def _start(options: EngineOptions, digest: str, folder: Path, program: Sequence[str]) -> _State:
    key = secrets.token_urlsafe(32)
    state = _State(
        port=_free_port(),
        api_key=key,
        model=options.served_name,
        digest=digest,
        started_at=time.time(),
        idle_minutes=options.idle_minutes,
        lora_rank=options.lora_rank,
        tower_lora=options.tower_lora,
    )
    _write_state(folder, state)
    shutil.rmtree(folder / ADAPTERS, ignore_errors=True)
    log = folder / "engine.log"
    if log.exists():
        log.replace(folder / "engine.previous.log")
    on_cpu = is_cpu_build()
    with (folder / "alive.lock").open("a") as lock, log.open("wb") as output:
        # The id of the engine before may be another process's by now: nobody may take it for ours,
        # and nobody does before the lock is held.
        lock.truncate(0)
        # `status` may probe the lock at this very moment, so wait for it rather than fail.
        fcntl.flock(lock, fcntl.LOCK_EX)
        idle_seconds = str(options.idle_minutes * 60)
        subprocess.run(
            [
                *program,
                str(lock.fileno()),
                idle_seconds,
                *server_flags(options, state.port, on_cpu=on_cpu),
            ],
            env=server_environment(
                key,
                os.environ,
                on_cpu=on_cpu,
                adapters=folder / ADAPTERS if options.lora_rank else None,
            ),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=folder,
            pass_fds=[lock.fileno()],
            check=False,  # it detaches itself; whether it lives is read off the lock
        )
    return state


def _free_port() -> int:
    for _ in range(100):
        port = secrets.choice(PORTS)
        with socket.socket() as probe:
            try:
                probe.bind((LOOPBACK, port))
            except OSError:
                continue
            return port
    raise EngineError(f"no free port on {LOOPBACK} from {PORTS.start} to {PORTS.stop}")


def _end(folder: Path) -> None:
    """Ends the living engine, if there is one: asks it to, then ends its whole process group."""
    if not _is_alive(folder):
        return
    pid = _written_pid(folder)
    if pid:
        _signal(os.kill, pid, signal.SIGTERM)
    if _gone(folder, STOP_SECONDS):
        return
    if pid:
        _signal(os.killpg, pid, signal.SIGKILL)
    if not _gone(folder, PROCESS_SECONDS):
        raise EngineError(
            f"the engine, process {pid or 'unknown'}, does not end; see who holds it: "
            f"fuser -v {folder / 'alive.lock'}"
        )


def _written_pid(folder: Path) -> int:
    """The id of the living engine, waited for where it has only just begun; 0 when none comes."""
    deadline = time.monotonic() + PROCESS_SECONDS
    while not (pid := _pid(folder)) and _is_alive(folder) and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS / 5)
    return pid


def _signal(send: Callable[[int, int], None], pid: int, number: int) -> None:
    try:
        send(pid, number)
    except ProcessLookupError:
        return


def _gone(folder: Path, timeout_seconds: float) -> bool:
    deadline = time.monotonic() + timeout_seconds
    while _is_alive(folder):
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_SECONDS / 5)
    return True


# ---------------------------------------------------------------- waiting for it


def _wait(folder: Path, state: _State, on_stage: Callable[[str], None]) -> EngineHandle:
    """Returns once it answers. Raises _NotServing when it ends or hangs."""
    said = ""
    while True:
        stage = stage_of(_log_text(folder))
        health = _health(state)
        if health == "ready":
            return _handle(folder, state)
        if not _is_alive(folder):
            raise _NotServing("has ended")
        # A server says that it is ready a moment before it listens.
        if health != "refused" or (stage == READY and _log_age(folder) > HEALTH_SECONDS):
            raise _NotServing("does not answer")
        if _log_age(folder) > STALL_SECONDS:
            raise _NotServing(f"has not moved on from {stage!r} for {STALL_SECONDS:.0f} s")
        if stage != said:
            on_stage(f"starting vLLM, {time.time() - state.started_at:.0f} s: {stage}")
            said = stage
        time.sleep(POLL_SECONDS)


def _handle(folder: Path, state: _State) -> EngineHandle:
    adapters = folder / ADAPTERS if state.lora_rank else None
    return EngineHandle(f"{state.root}/v1", state.api_key, state.model, _pid(folder), adapters)


def _await_pause(folder: Path, state: _State, on_stage: Callable[[str], None]) -> None:
    """Returns once nobody asks the engine any more. One that hangs or is gone is asked nothing."""
    said = False
    while _is_alive(folder) and _is_asked(state):
        if not said:
            on_stage(f"waiting until nobody asks {state.model}; vidqa engine stop breaks it off")
            said = True
        time.sleep(POLL_SECONDS)


def _is_asked(state: _State) -> bool:
    """Whether the engine answers, or did a moment ago; by its own account, else it does not."""
    health, headers = _look_at(state, STATUS_ROUTE)
    idle_seconds = float(headers.get(IDLE_SECONDS.decode(), "inf"))
    return health == "ready" and idle_seconds < PAUSE_SECONDS


def _health(state: _State, route: str = "/health") -> str:
    """ "ready", "refused" (nobody listens, as during a start) or "not answering"."""
    return _look_at(state, route)[0]


def _look_at(state: _State, route: str) -> tuple[str, Mapping[str, str]]:
    """Its health, and the headers of its answer."""
    import httpx

    headers = {"Authorization": f"Bearer {state.api_key}"}
    try:
        with httpx.Client(trust_env=False, timeout=HEALTH_SECONDS) as client:
            answer = client.get(f"{state.root}{route}", headers=headers)
    except httpx.ConnectError:
        return "refused", {}
    except httpx.HTTPError:
        return "not answering", {}
    return ("ready" if answer.status_code == 200 else "not answering"), answer.headers


def _log_text(folder: Path) -> str:
    try:
        return (folder / "engine.log").read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return ""


def _log_age(folder: Path) -> float:
    return time.time() - (folder / "engine.log").stat().st_mtime


_TAIL_LINES = 12


def _failure(folder: Path, what: str) -> EngineError:
    text = _log_text(folder)
    reason = failure_reason(text) or what
    lines = [line for line in text.splitlines() if line.strip()]
    tail = "\n".join(f"    {line}" for line in lines[-_TAIL_LINES:])
    return EngineError(
        f"vLLM did not start: {reason}; "
        f"the whole log is {folder / 'engine.log'}, its last lines:\n{tail}"
    )
