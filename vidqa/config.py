"""Settings: where they come from, what they may be, and what they are when nobody says.

    flag  >  environment (VIDQA_<NAME>)  >  configuration file or profile  >  default

Every setting is a field of `Settings`, which also holds its bounds and its help: the command line,
the error texts and the documentation read them from there. Unknown names are errors. With no file
named, a machine with an NVIDIA card starts from the `gpu` profile, any other from the defaults,
which the `cpu` profile repeats with their reasons.

This module reads files and variables; it opens no library, loads no model and prints nothing.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping
from dataclasses import Field, dataclass, field
from pathlib import Path
from typing import Any

from vidqa.errors import ConfigError
from vidqa.fields import (
    Table,
    check_bounds,
    convert,
    flag_in,
    nearest,
    read_yaml,
    setting,
    table_of,
)

PREFIX = "VIDQA_"
# Variables with our prefix that name no setting: the file itself, the engine's own folder, the
# server's keys, and what a server tells its workers.
OTHER_VARIABLES = frozenset(
    {"VIDQA_CONFIG", "VIDQA_RUNTIME_DIR", "VIDQA_SERVE_KEYS", "VIDQA_SERVE_KEY_FILE", "VIDQA_SERVE"}
)
PROFILES = ("cpu", "gpu", "demo")
BUNDLED = "bundled:"

_PACKAGE = Path(__file__).parent
_PROFILE_FOLDER = _PACKAGE / "configs"
_MODEL_FOLDER = _PACKAGE / "demo" / "models"

# Qwen2-VL-7B in bfloat16 is 16.6 GB of weights; frames, cache and activations want the rest.
LARGE_CARD_GIB = 22.0
SMALL_CARD_MODEL = "Qwen/Qwen2-VL-2B-Instruct"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All settings of one run.

    `given` names those that the user chose; the rest come from a profile or are defaults.
    """

    index: Path = setting(Path("indexes/default"), "Folder of the library.", kind=Path)
    embedder: str = setting(
        "ViT-B-32-SigLIP2-256",
        "open_clip model that embeds frames and queries: a name, NAME:PRETRAINED, or a folder.",
    )
    device: str = setting(
        "auto", "Where the embedder runs.", choices=("auto", "cpu", "cuda", "mps")
    )
    sample_fps: float = setting(
        1.0, "Frames kept per second of video.", minimum=0.01, maximum=120.0, flag="--fps"
    )
    min_scene_seconds: float = setting(
        0.6,
        "Shorter scenes are merged with a neighbour, in seconds.",
        minimum=0.01,
        maximum=60.0,
        flag="--min-scene",
    )
    max_scene_seconds: float = setting(
        30.0,
        "Longer scenes are split, in seconds.",
        minimum=1.0,
        maximum=3600.0,
        flag="--max-scene",
    )
    adaptive_threshold: float = setting(
        3.0, "How much a frame must differ to be a cut.", minimum=0.1, maximum=100.0
    )
    keep_frames: bool = setting(
        True, "Keep the sampled frames as small pictures, so that asking decodes nothing."
    )
    workers: int = setting(
        0, "Videos read at once; 0: one less than cores.", minimum=0, maximum=256
    )
    k: int = setting(5, "Moments to find.", minimum=1, maximum=1000, flag="-k")
    max_frames: int = setting(
        16, "Frames shown to the model, in all.", minimum=2, maximum=768, flag="--frames"
    )
    frames_per_moment: int = setting(
        4, "Frames shown of one moment, at most.", minimum=2, maximum=768
    )
    max_pixels: int = setting(
        420 * 364,
        "Pixels of one frame as the model sees it, at most.",
        minimum=56 * 56,
        maximum=1280 * 28 * 28,
    )
    model: str = setting(
        "Qwen/Qwen2-VL-2B-Instruct", "Model that answers: a name on the hub, or a folder."
    )
    adapters: Path = setting(
        Path("adapters"), "Folder of the adapters that are called by name.", kind=Path
    )
    base_url: str | None = setting(
        None, "An OpenAI-compatible endpoint that answers in place of our engine.", kind=str
    )
    api_key: str | None = setting(None, "Key of that endpoint.", kind=str, secret=True)
    temperature: float = setting(0.0, "Randomness of the answer.", minimum=0.0, maximum=2.0)
    max_tokens: int = setting(512, "Tokens of the answer, at most.", minimum=1, maximum=32768)
    engine_idle_minutes: float = setting(
        30.0,
        "The engine stops after so long without a request.",
        minimum=0.1,
        maximum=10080.0,
        flag="--engine-idle",
    )
    max_model_len: int = setting(
        8192, "Tokens of question, frames and answer together.", minimum=256, maximum=131072
    )
    dtype: str = setting(
        "auto",
        "Numbers that the engine computes with.",
        choices=("auto", "bfloat16", "float16", "float32"),
    )
    kvcache_gib: float = setting(
        2.0, "The engine's cache on a CPU, in GiB.", minimum=0.1, maximum=1024.0
    )
    gpu_memory_utilization: float = setting(
        0.85, "Share of the card's memory that the engine takes.", minimum=0.05, maximum=0.98
    )
    hub: str = setting(
        "huggingface",
        "Where weights are looked for; none: folders only.",
        choices=("huggingface", "modelscope", "none"),
    )
    host: str = setting("127.0.0.1", "Address that the server listens on.")
    port: int = setting(8080, "Port that the server listens on; 0: any.", minimum=0, maximum=65535)
    root_path: str | None = setting(
        None, "Path under which a proxy shows the server, like /vidqa.", kind=str
    )
    follow_ups: str = setting(
        "model",
        "Who makes a follow-up stand alone: the model, or the question before joined to it.",
        choices=("model", "join"),
    )
    rate_limit: int = setting(
        0, "Requests a minute of one key; 0: no limit.", minimum=0, maximum=1_000_000
    )
    max_answers: int = setting(
        64, "Questions that the model is asked at once.", minimum=1, maximum=4096
    )
    max_queue: int = setting(
        256, "Questions that may wait for their turn.", minimum=0, maximum=65536
    )
    max_body_mib: int = setting(
        32, "Size of one request in MiB, uploads apart.", minimum=1, maximum=1024
    )
    max_upload_gib: float = setting(
        20.0, "Size of one uploaded video in GiB.", minimum=0.001, maximum=10240.0
    )
    max_images: int = setting(4, "Pictures in one request.", minimum=1, maximum=64)
    max_image_megapixels: float = setting(
        64.0, "Size of one such picture, in millions of pixels.", minimum=0.01, maximum=1000.0
    )
    media_hosts: str | None = setting(
        None,
        "Hosts that pictures may be fetched from, HOST or HOST:PORT, with commas between.",
        kind=str,
        flag="--allow-media-host",
    )
    server_names: str | None = setting(
        None,
        "Names that the server is known by, with commas between; else, on loopback, localhost.",
        kind=str,
    )
    given: frozenset[str] = field(default=frozenset(), compare=False, repr=False)

    def __post_init__(self) -> None:
        for name, one in SETTINGS.items():
            check_bounds(one, getattr(self, name), name)

    @classmethod
    def load(
        cls,
        config: str | None = None,
        flags: Mapping[str, object] | None = None,
        environ: Mapping[str, str] = os.environ,
        others: Table | None = None,
    ) -> Settings:
        """The settings of one run; `config` is a profile's name or a YAML file.

        Flags whose value is None were not given. `others` are fields that the file may name
        for somebody else. Raises ConfigError: an unknown name (with the nearest known one), a value
        out of its bounds, a file that cannot be read.
        """
        config = config or environ.get("VIDQA_CONFIG") or None
        base = _for_this_machine() if config is None else _read_file(config, others or {})
        chosen = {} if config in (None, *PROFILES) else base
        chosen = chosen | _read_environment(environ)
        chosen |= {
            name: _convert(name, value, flag_of(name))
            for name, value in (flags or {}).items()
            if value is not None
        }
        return cls(**(base | chosen), given=frozenset(chosen))

    def public(self) -> dict[str, object]:
        """Every setting for people to see: secrets are only said to be set."""
        shown: dict[str, object] = {}
        for name, one in SETTINGS.items():
            value = getattr(self, name)
            if value is not None and one.metadata["secret"]:
                value = "(set)"
            if isinstance(value, str | Path):  # an address may carry a password
                value = re.sub(r"//[^/@]*@", "//", str(value))
            shown[name] = value
        return shown


SETTINGS: dict[str, Field[Any]] = table_of(Settings)


def flag_of(name: str) -> str:
    """The flag of a setting on the command line: `max_frames` is `--frames`."""
    return flag_in(SETTINGS, name)


def card_memory_gib() -> float | None:
    """Memory of the first NVIDIA card in GiB, or None where no driver answers."""
    command = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
        return float(done.stdout.split("\n")[0]) / 1024
    except (OSError, subprocess.SubprocessError, ValueError):
        return None


def _for_this_machine() -> dict[str, Any]:
    memory = card_memory_gib()
    if memory is None:
        return {}
    profile = _read_file("gpu", {})
    return profile if memory >= LARGE_CARD_GIB else profile | {"model": SMALL_CARD_MODEL}


def read_config(config: str) -> tuple[Path, dict[str, object]]:
    """A profile's or a file's path, and what is written in it, unchecked."""
    path = _PROFILE_FOLDER / f"{config}.yaml" if config in PROFILES else Path(config).expanduser()
    shown = config.replace("{", "{{").replace("}", "}}")
    return path, read_yaml(
        path, f"--config {shown}: {{}}; name a YAML file or a profile: {', '.join(PROFILES)}"
    )


def _read_file(config: str, others: Table) -> dict[str, Any]:
    path, content = read_config(config)
    known = {**SETTINGS, **others}
    for name in content:
        if name not in known:
            convert(known, name, None, f"{path}: {name}")  # refuses it
    return {
        name: _convert(name, value, f"{path}: {name}")
        for name, value in content.items()
        if name in SETTINGS
    }


def _read_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    return {
        name.removeprefix(PREFIX).lower(): _convert(name.removeprefix(PREFIX).lower(), text, name)
        for name, text in environ.items()
        if name.startswith(PREFIX) and name not in OTHER_VARIABLES and text
    }


def _convert(name: str, value: object, where: str) -> Any:
    """One value in its setting's type; `where` is how the user wrote its name."""
    if name not in SETTINGS and where.startswith(PREFIX):
        raise ConfigError(f"{where}: no such setting; {nearest(name, SETTINGS, PREFIX)}")
    converted = convert(SETTINGS, name, value, where)
    return resolve_bundled(converted) if isinstance(converted, str) else converted


def resolve_bundled(value: str) -> str:
    """`bundled:NAME` becomes the folder of a model that ships with vidqa; other names stay."""
    if not value.startswith(BUNDLED):
        return os.path.expanduser(value) if value.startswith("~") else value
    name = value.removeprefix(BUNDLED)
    names = sorted(one.name for one in _MODEL_FOLDER.glob("*") if one.is_dir())
    if name not in names:
        raise ConfigError(f"{value}: no such bundled model; there are {', '.join(names) or 'none'}")
    return str(_MODEL_FOLDER / name)
