"""Where the weights of an answering model are: a folder, the hub's cache on this disk, or the hub.

    folder = find_weights("Qwen/Qwen2-VL-2B-Instruct", hub="huggingface", on_stage=print)

Weights are fetched here and not by the engine, which therefore needs no network, and so that a
failure says which model was wanted, where it was looked for and what the ways out are. Only weights
in safetensors and the texts beside them are fetched: no pickles, no code. Nothing is loaded here;
of how a model sees, `sight` tells what the texts say.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from vidqa.boxes import Family, Sight, family_of
from vidqa.errors import MissingExtra, ModelError

Hub = Literal["huggingface", "modelscope", "none"]

# A hub that does not answer within this is treated as out of reach.
HUB_TIMEOUT_SECONDS = 10.0
# What vLLM and transformers read of a vision model.
WANTED_FILES = ("*.json", "*.safetensors", "*.txt", "*.jinja", "*.model")
# What goes with weights into a model made of another. A list of names: the folder of a model that
# was trained here also holds the run's own log, recipe and rows, as JSON too.
_COMPANIONS = (
    "config.json", "generation_config.json", "*processor_config.json", "tokenizer*", "vocab.json",
    "merges.txt", "special_tokens_map.json", "added_tokens.json", "chat_template*", "*.model",
    "LICENSE*", "NOTICE*",
)  # fmt: skip


def find_weights(
    model: str, hub: str = "huggingface", on_stage: Callable[[str], None] = lambda stage: None
) -> Path:
    """The folder with the weights of `model`: a folder's path, or `OWNER/NAME[@REVISION]`.

    Raises ModelError when they are nowhere, MissingExtra when the hub's client is not installed.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        return _checked(folder.resolve())
    if not _is_hub_name(model):
        raise ModelError(f"{model}: no such folder; {_ways_out()}")
    if hub == "none":
        raise ModelError(f"{model}: not a folder, and no hub is asked (hub: none); {_ways_out()}")
    name, revision = hub_name(model)
    fetch = _fetch_modelscope if hub == "modelscope" else _fetch_huggingface
    return _checked(fetch(name, revision, on_stage))


def hub_name(model: str) -> tuple[str, str | None]:
    """A model's name on a hub, and the revision that was asked for; a folder's path as it is."""
    if Path(model).expanduser().is_dir():
        return model, None
    name, _, revision = model.partition("@")
    return name, revision or None


def copy_companions(model: Path, output: Path) -> None:
    """Copies what a model needs beside its weights: configuration, tokenizer, template, licence."""
    for one in sorted(model.iterdir()):
        if one.is_file() and any(one.match(pattern) for pattern in _COMPANIONS):
            shutil.copyfile(one, output / one.name)
        elif one.is_dir() and one.name == "additional_chat_templates":
            shutil.copytree(one, output / one.name, dirs_exist_ok=True)


def revision_of(folder: Path) -> str:
    """The version of weights that came from Hugging Face's hub, a commit; empty for any others."""
    return folder.name if folder.parent.name == "snapshots" else ""


def _is_hub_name(model: str) -> bool:
    owner, slash, name = model.partition("/")
    return bool(slash and owner and name) and "/" not in name and not model.startswith((".", "~"))


def _checked(folder: Path) -> Path:
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder}: holds no config.json, so no model; {_ways_out()}")
    missing = _missing_weights(folder)
    if missing:
        raise ModelError(f"{folder}: holds no {missing}, so no whole weights; {_ways_out()}")
    return folder


def _missing_weights(folder: Path) -> str:
    """The first file of weights that should be there and is not, or an empty string."""
    try:
        index = json.loads((folder / "model.safetensors.index.json").read_text(encoding="utf-8"))
        wanted = sorted(set(index["weight_map"].values()))
    except FileNotFoundError:
        wanted = []
    except (OSError, ValueError, KeyError, AttributeError):
        return "readable model.safetensors.index.json"
    for name in wanted:
        if not (folder / name).is_file():
            return str(name)
    return "" if wanted or any(folder.glob("*.safetensors")) else "*.safetensors"


def longest_context(folder: Path) -> int | None:
    """Tokens that the model in a folder was made for; None where its configuration does not say."""
    config = _read_json(folder / "config.json") or {}
    for one in (config.get("text_config"), config):
        if isinstance(one, dict) and isinstance(one.get("max_position_embeddings"), int):
            return int(one["max_position_embeddings"])
    return None


def sight(folder: Path, family: Family | None = None) -> Sight:
    """How the model in a folder sees pictures and writes boxes, by its configuration.

    `family` is that of a model whose type does not tell it. Raises UsageError when its type is not
    known for boxes, ModelError when its configuration cannot be read.
    """
    if family is None:
        config = _read_json(folder / "config.json")
        if config is None or not isinstance(config.get("model_type"), str):
            raise ModelError(f"{folder / 'config.json'}: names no model_type; {_ways_out()}")
        family = family_of(config["model_type"])
    found = Sight(family)
    # Frames go as a video, so the video's processor counts; where transformers looks for it.
    nested = _read_json(folder / "processor_config.json") or {}
    processor = nested.get("video_processor")
    for name in ("video_preprocessor_config.json", "preprocessor_config.json"):
        processor = processor or _read_json(folder / name)
    if not isinstance(processor, dict):
        return found
    size = processor.get("size") or {}
    patch, merge = processor.get("patch_size") or 14, processor.get("merge_size") or 2
    return Sight(
        found.family,
        factor=int(patch * merge),
        min_pixels=processor.get("min_pixels") or size.get("shortest_edge") or found.min_pixels,
        max_pixels=processor.get("max_pixels") or size.get("longest_edge") or found.max_pixels,
    )


def _read_json(file: Path) -> dict[str, Any] | None:
    """The object in a file, or None where there is none."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ModelError(f"{file}: cannot be read: {error}") from error
    return value if isinstance(value, dict) else None


def _fetch_huggingface(name: str, revision: str | None, on_stage: Callable[[str], None]) -> Path:
    import huggingface_hub
    from huggingface_hub import constants
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    def snapshot(*, local: bool) -> Path:
        return Path(
            huggingface_hub.snapshot_download(
                name,
                revision=revision,
                allow_patterns=list(WANTED_FILES),
                etag_timeout=HUB_TIMEOUT_SECONDS,
                local_files_only=local,
                endpoint=os.environ.get("HF_ENDPOINT"),
            )
        )

    try:
        found = snapshot(local=True)
        if not _missing_weights(found):  # a download may have been broken off
            return found
    except LocalEntryNotFoundError:
        pass
    except HFValidationError as error:
        raise ModelError(f"{name}: no such folder, and no name on a hub; {_ways_out()}") from error
    where = f"in {constants.HF_HUB_CACHE}"
    if constants.HF_HUB_OFFLINE:
        raise ModelError(f"{name}: not {where}, and HF_HUB_OFFLINE is set; {_ways_out()}")
    endpoint = os.environ.get("HF_ENDPOINT") or constants.ENDPOINT
    on_stage(f"fetching {name} from {endpoint}")
    try:
        return snapshot(local=False)
    except Exception as error:  # its own errors, its HTTP client's, and what a mirror makes of them
        raise ModelError(
            f"{name}: not {where}, and {endpoint} did not give it ({_reason(error)}); {_ways_out()}"
        ) from error


def _fetch_modelscope(name: str, revision: str | None, on_stage: Callable[[str], None]) -> Path:
    if importlib.util.find_spec("modelscope") is None:
        raise MissingExtra(
            f"{name}: VIDQA_HUB=modelscope needs a package: uv pip install modelscope"
        )
    modelscope = importlib.import_module("modelscope")
    on_stage(f"looking for {name} at ModelScope")
    try:
        return Path(
            modelscope.snapshot_download(name, revision=revision, allow_patterns=list(WANTED_FILES))
        )
    except Exception as error:  # it raises whatever its HTTP client does
        raise ModelError(
            f"{name}: ModelScope did not give it ({_reason(error)}); {_ways_out()}"
        ) from error


def _reason(error: BaseException) -> str:
    """The first line of the error at the root."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _ways_out() -> str:
    return (
        "name a folder with --model PATH, take another hub with VIDQA_HUB=modelscope, or a mirror "
        "with HF_ENDPOINT=https://..."
    )
