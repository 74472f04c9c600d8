"""What is in files of weights, read off their headers: names, shapes, a digest, zeros.

    base_digest(folder)              what identifies a base model, however its files are cut
    module_of("base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight")

Safetensors files begin with a table of their tensors, so nothing here needs torch, and a model of
gigabytes is identified in milliseconds. Modules are called by one name each, whatever version of
transformers wrote them: `language_model.layers.0.mlp.up_proj`, `visual.blocks.0.attn.qkv`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from vidqa.errors import ModelError

# What of each tensor goes into a digest: its beginning, its middle and its end.
SAMPLE_BYTES = 1024
# A table of tensors is some hundred kilobytes; a file that promises more is none.
MAX_HEADER_BYTES = 100 * 1024 * 1024

# Newest first: transformers 4.52 and later, then the names before it and in checkpoints.
_PREFIXES = (
    ("model.language_model.", "language_model."),
    ("model.visual.", "visual."),
    ("language_model.model.", "language_model."),
    ("visual.", "visual."),
    ("model.", "language_model."),
    ("language_model.", "language_model."),
)
_LORA = re.compile(r"\.lora_(?:A|B|embedding_A|embedding_B|magnitude_vector)\b.*$")


@dataclass(frozen=True, slots=True)
class Tensor:
    """Where a tensor is: `begin` and `size` are bytes of `file`."""

    name: str
    kind: str
    shape: tuple[int, ...]
    file: Path
    begin: int
    size: int


def tensors_in(file: Path) -> list[Tensor]:
    """The tensors of one safetensors file, in the order of their names. Raises ModelError."""
    try:
        with file.open("rb") as opened:
            total = file.stat().st_size
            length = int.from_bytes(opened.read(8), "little")
            if not 2 <= length <= min(MAX_HEADER_BYTES, total - 8):
                raise ValueError("its table of tensors is cut off")
            table = json.loads(opened.read(length))
            table.pop("__metadata__", None)
            found = [_tensor(file, name, one, 8 + length, total) for name, one in table.items()]
    except OSError as error:
        raise ModelError(f"{file}: {error.strerror}") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ModelError(
            f"{file}: not a whole safetensors file ({error}); copy it or save it again"
        ) from error
    return sorted(found, key=lambda one: one.name)


def _tensor(file: Path, name: str, row: dict[str, object], offset: int, total: int) -> Tensor:
    shape, offsets = row["shape"], row["data_offsets"]
    if not isinstance(shape, list) or not isinstance(offsets, list):
        raise ValueError(f"{name} has no shape or no place")
    begin, end = map(int, offsets)
    if not 0 <= begin <= end <= total - offset:
        raise ValueError(f"{name} lies outside the file")
    return Tensor(
        name, str(row["dtype"]), tuple(map(int, shape)), file, offset + begin, end - begin
    )


def base_tensors(folder: Path) -> list[Tensor]:
    """The tensors of a model's folder, by the names that modules have here, `.weight` kept."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ModelError(f"{folder}: holds no *.safetensors, so no weights to look at")
    return [one for file in files for one in tensors_in(file)]


def base_digest(folder: Path) -> str:
    """What identifies a base model: 32 hex digits over its tensors and what kind of model it is.

    Names, shapes, types and up to 3 KiB of each tensor count, in one order, so the same weights in
    fewer files or under older names are the same model, and retrained ones are another.
    """
    digest = hashlib.sha256(b"vidqa base 1\n" + model_type(folder).encode())
    files: dict[Path, BinaryIO] = {}
    try:
        for one in sorted(base_tensors(folder), key=lambda one: canonical(one.name)):
            digest.update(json.dumps([canonical(one.name), one.kind, one.shape]).encode())
            opened = files.get(one.file) or files.setdefault(one.file, one.file.open("rb"))
            for begin, size in _samples(one):
                opened.seek(begin)
                digest.update(opened.read(size))
    finally:
        for opened in files.values():
            opened.close()
    return digest.hexdigest()[:32]


def _samples(one: Tensor) -> Iterator[tuple[int, int]]:
    if one.size <= 3 * SAMPLE_BYTES:
        yield one.begin, one.size
        return
    for offset in (0, (one.size - SAMPLE_BYTES) // 2, one.size - SAMPLE_BYTES):
        yield one.begin + offset, SAMPLE_BYTES


def model_type(folder: Path) -> str:
    """`model_type` of a model's config.json, like "qwen2_vl". Raises ModelError."""
    path = folder / "config.json"
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["model_type"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{path}: says no model_type ({error}); is {folder} a model?") from error


def canonical(name: str) -> str:
    """The one name of a module or tensor of a vision-language model; see the module's docstring."""
    for old, new in _PREFIXES:
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


def module_of(name: str) -> str:
    """The module that a tensor of an adapter changes."""
    return canonical(_LORA.sub("", name.removeprefix("base_model.model.")))
