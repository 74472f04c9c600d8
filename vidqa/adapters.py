"""The folder of an adapter: what PEFT saves, and `adapter.json`, our card of it.

    card = read(Path("adapters/birds"))
    card.base_model, card.rank, card.look["max_frames"]

    adapter_config.json         PEFT's: rank, alpha, targets, and what kind of LoRA it is
    adapter_model.safetensors   PEFT's: the weights; what is in them is read by `adapter_weights`
    adapter.json                ours: the base model, the look, data, versions and metrics

An adapter from elsewhere has no `adapter.json` and is taken for what its adapter_config.json says.
Whether vLLM can serve it, and on which base, is told by `adapter_fit`. Nothing here loads a model.
"""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from vidqa.errors import ModelError, UsageError
from vidqa.whole_files import write_whole

CARD, CONFIG, WEIGHTS = "adapter.json", "adapter_config.json", "adapter_model.safetensors"

# A name is the folder's, a model's name in the API, and part of one in the engine.
_LONGEST_NAME = 100
_NAME = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{_LONGEST_NAME - 1}}}")
# What a look may be made of, as `finetune.layout.Look` has it, and what is wanted in words.
_LOOK: dict[str, tuple[Any, str]] = {
    "layout": (str, "text"),
    "cite": (bool, "true or false"),
    "max_frames": (int, "a whole number"),
    "frames_per_moment": (int, "a whole number"),
    "max_pixels": (int, "a whole number"),
    "sample_fps": (int | float, "a number"),
}
_TEXTS = ("base_model", "base_digest", "base_revision", "base_model_type", "box_family", "created")
NAME_RULE = "letters, digits, dots, dashes and underscores, a letter or digit first"


@dataclass(frozen=True, slots=True)
class DataFile:
    """A file of training data: its name as given, and what was in it."""

    file: str
    sha256: str
    rows: int


@dataclass(frozen=True, kw_only=True)
class Card:
    """What an adapter, or a whole model, was made from, and how it wants to be shown videos.

    `base_model` is the model as it was named in training, a name on the hub or a folder;
    `base_digest` is `adapter_weights.base_digest` of its weights, `base_revision` the hub's name of
    the version; empty where it is not known. `look` is what of the recipe decides pixels and prompt
    (`finetune.layout.Look` as a mapping: layout, cite, max_frames, max_pixels, sample_fps).
    `metrics` has "before" and "after". `created` is a time in ISO form.
    """

    base_model: str
    base_digest: str = ""
    base_revision: str = ""
    look: Mapping[str, Any] = field(default_factory=dict)
    box_family: str = ""
    data: tuple[DataFile, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    created: str = ""


@dataclass(frozen=True, kw_only=True)
class AdapterCard(Card):
    """And what an adapter is. `targets` are module names or one regular expression, as PEFT's."""

    name: str
    rank: int
    alpha: float
    targets: str | tuple[str, ...]
    base_model_type: str = ""
    trains_vision: bool = False


def check_name(name: str) -> str:
    """The name, if an adapter may be called so. Raises UsageError."""
    if not _NAME.fullmatch(name):
        raise UsageError(f"adapter name {name!r}: {NAME_RULE}")
    return name


def as_name(text: str) -> str:
    """What is most like it and may be an adapter's name."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("._-")[:_LONGEST_NAME] or "adapter"


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter's configuration."""
    return (folder / CONFIG).is_file()


def stamp(folder: Path) -> tuple[tuple[str, int, int], ...]:
    """What changes when an adapter is trained again: its files' sizes and times."""
    found = []
    for name in (CONFIG, WEIGHTS):
        try:
            status = (folder / name).stat()
        except OSError:
            continue  # it is being written, or gone
        found.append((name, status.st_size, status.st_mtime_ns))
    return tuple(found)


def write(folder: Path, card: AdapterCard) -> Path:
    """Writes `adapter.json` beside PEFT's files, whole or not at all; returns its path."""
    return write_card(folder / CARD, card)


def write_card(path: Path, card: Card) -> Path:
    """Writes a card as JSON, whole or not at all; returns its path."""
    write_whole(path, f"{json.dumps(asdict(card), indent=2)}\n".encode())
    return path


def read(folder: Path) -> AdapterCard:
    """The card of the adapter in a folder. Raises ModelError with what is wrong and where.

    Rank, alpha and targets are those of adapter_config.json, which is what is served.
    """
    config = read_config(folder)
    try:
        served: dict[str, Any] = {
            "rank": whole(config["r"]),
            "alpha": _finite(config["lora_alpha"]),
            "targets": _targets(config["target_modules"]),
        }
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ModelError(
            f"{folder / CONFIG}: no LoRA as PEFT saves it (r, lora_alpha and target_modules are "
            f"needed: {type(error).__name__} {error}); save the adapter again with PEFT"
        ) from error
    told = _read_card(folder)
    base = str(told.get("base_model") or config.get("base_model_name_or_path") or "")
    name = str(told.get("name") or folder.absolute().name)
    return AdapterCard(**told | served | {"name": name, "base_model": base})


def _read_card(folder: Path) -> dict[str, Any]:
    """The fields of `adapter.json` that we know; none where there is none."""
    path = folder / CARD
    if not path.exists():
        return {}
    content = read_json(path)
    known = {one.name for one in fields(AdapterCard)}
    told = {name: value for name, value in content.items() if name in known}
    try:
        told["data"] = tuple(DataFile(**one) for one in told.get("data", ()))
        for one in ("look", "versions", "metrics"):
            told[one] = dict(told.get(one, {}))
        told["metrics"] = {name: dict(values) for name, values in told["metrics"].items()}
    except (TypeError, ValueError) as error:
        raise ModelError(f"{path}: not a card of vidqa's ({error}); {_mend(path)}") from error
    checked_look(path, told["look"])
    for one in _TEXTS:
        if not isinstance(told.get(one, ""), str):
            raise ModelError(f"{path}: {one} is {told[one]!r}, and text is wanted; {_mend(path)}")
    return told


def checked_look(path: Path, look: dict[str, Any]) -> dict[str, Any]:
    """The look that a card tells of. Raises ModelError where a value in it is of another kind."""
    for one, (kind, words) in _LOOK.items():
        value = look.get(one)
        mistaken = isinstance(value, bool) and kind is not bool  # which Python takes for numbers
        if mistaken or not isinstance(value, kind | None):
            raise ModelError(f"{path}: {one} is {value!r}, and {words} is wanted; {_mend(path)}")
    return look


def read_config(folder: Path) -> dict[str, Any]:
    """PEFT's adapter_config.json. Raises ModelError."""
    if not folder.is_dir():
        raise ModelError(f"{folder}: no such folder; name the folder of a LoRA adapter")
    if not is_adapter(folder):
        raise ModelError(
            f"{folder}: holds no {CONFIG}; name the folder of a LoRA adapter, as PEFT saves it"
        )
    return read_json(folder / CONFIG)


def read_json(path: Path) -> dict[str, Any]:
    """An object in a JSON file. Raises ModelError."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(f"{path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path}: not valid JSON ({error}); {_mend(path)}") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path}: holds no object; {_mend(path)}")
    return content


def _mend(path: Path) -> str:
    if path.name == CARD:
        return "remove it to take the adapter for what PEFT says"
    if path.name == CONFIG:
        return "save the adapter again with PEFT"
    return "remove it to do without"


def whole(value: Any) -> int:
    """A whole number of a configuration. Raises ValueError or TypeError for anything else."""
    number = int(value)
    if number != float(value):
        raise ValueError(f"{value!r} is no whole number")
    return number


def _finite(value: Any) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{value!r} is no number")
    return number


def _targets(value: Any) -> str | tuple[str, ...]:
    return value if isinstance(value, str) else tuple(sorted(map(str, value)))


# ---------------------------------------------------------------- finding and removing


def names_in(folder: Path) -> list[str]:
    """The adapters of a folder, in the order of their names."""
    return sorted(one.name for one in folder.glob("*") if one.is_dir() and is_adapter(one))


def find(given: str, folder: Path) -> Path:
    """The folder of an adapter: of that name in `folder`, or a folder itself. Raises UsageError."""
    if _NAME.fullmatch(given) and is_adapter(folder / given):
        return folder / given
    path = Path(given).expanduser()
    if is_adapter(path):
        return path
    if is_adapter(folder / given):
        raise UsageError(
            f"{folder / given}: cannot be called by this name ({NAME_RULE}); rename the folder"
        )
    for one in (path, folder / given):
        if one.is_dir():
            raise UsageError(
                f"{one}: holds no {CONFIG}; name the folder of a LoRA adapter, as PEFT saves it"
            )
    there = ", ".join(names_in(folder)) or "none"
    raise UsageError(
        f"{given}: no adapter of that name in {folder} (there are: {there}), and no folder of one"
    )


def remove(name: str, folder: Path) -> None:
    """Deletes an adapter's folder with all that is in it. Raises UsageError for anything else.

    What is deleted is a folder right below `folder` that holds an adapter, and never a link.
    """
    check_name(name)
    path = folder / name
    if path.is_symlink():
        raise UsageError(f"{path} is a link; remove it yourself: rm {path}")
    if not path.is_dir():
        there = ", ".join(names_in(folder)) or "none"
        raise UsageError(f"{name}: no adapter of that name in {folder} (there are: {there})")
    if not is_adapter(path):
        raise UsageError(f"{path}: holds no {CONFIG}, so it is left alone")
    shutil.rmtree(path)
