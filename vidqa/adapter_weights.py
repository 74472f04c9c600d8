"""What is in files of weights, read off their headers: names, shapes, a digest, numbers.

    base_digest(folder)              what identifies a base model, however its files are cut
    module_of("base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight")

Safetensors files begin with a table of their tensors, so nothing here needs torch, and a model of
gigabytes is identified in milliseconds. Modules are called by one name each, whatever version of
transformers wrote them: `language_model.layers.0.mlp.up_proj`, `visual.blocks.0.attn.qkv`.

vLLM 0.32 takes the names of adapters since transformers 4.52 (`model.language_model.layers...`) and
those before (`model.layers...`, `visual...`), and passes over all others without a word. So what an
engine is given is a copy under the names of today (`write_renamed`), and a module that the base
does not have is an error before.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from vidqa.errors import ModelError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

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
# PEFT writes `lora_A.weight`; with the adapter's own name in it where a state was saved by hand.
_PART = re.compile(r"(?P<module>.+)\.lora_(?P<side>[AB])(?:\.default)?\.weight")
# Unsigned numbers of the same size, the mask of all bits but the sign, and that of the exponent.
_BITS = {
    "F64": ("<u8", 0x7FFF_FFFF_FFFF_FFFF, 0x7FF0_0000_0000_0000),
    "F32": ("<u4", 0x7FFF_FFFF, 0x7F80_0000),
    "F16": ("<u2", 0x7FFF, 0x7C00),
    "BF16": ("<u2", 0x7FFF, 0x7F80),
}


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
            found = [_tensor(file, name, one, 8 + length) for name, one in table.items()]
            _check_places(found, 8 + length, total)
    except OSError as error:
        raise ModelError(f"{file}: {error.strerror}") from error
    except (
        ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError
    ) as error:  # fmt: skip
        raise ModelError(
            f"{file}: not a whole safetensors file ({error}); copy it or save it again"
        ) from error
    return sorted(found, key=lambda one: one.name)


def _tensor(file: Path, name: str, row: dict[str, object], offset: int) -> Tensor:
    shape, offsets, kind = row["shape"], row["data_offsets"], str(row["dtype"])
    if not isinstance(shape, list) or not isinstance(offsets, list):
        raise ValueError(f"{name} has no shape or no place")
    sides = tuple(map(int, shape))
    begin, end = map(int, offsets)
    if min(sides, default=1) < 0:
        raise ValueError(f"{name} has a side of less than nothing")
    if kind in _BITS and math.prod(sides) * int(_BITS[kind][0][-1]) != end - begin:
        raise ValueError(f"{name} has another number of bytes than its shape says")
    return Tensor(name, kind, sides, file, offset + begin, end - begin)


def _check_places(tensors: Sequence[Tensor], begin: int, end: int) -> None:
    """Tensors lie one behind the other and fill the file, or a small file is written out large."""
    for one in sorted(tensors, key=lambda one: (one.begin, one.size)):
        if one.begin != begin or one.size < 0:
            raise ValueError(f"{one.name} does not begin where the tensor before it ends")
        begin += one.size
    if begin != end:
        raise ValueError("its tensors do not fill it")


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
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ModelError(f"{path}: says no model_type ({error}); is {folder} a model?") from error


def canonical(name: str) -> str:
    """The one name of a module or tensor of a vision-language model; see the module's docstring."""
    for old, new in _PREFIXES:
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


def lora_part(name: str) -> tuple[str, str] | None:
    """The module that a tensor of an adapter changes, and "A" or "B"; None for another tensor."""
    match = _PART.fullmatch(name.removeprefix("base_model.model."))
    return (canonical(match["module"]), match["side"]) if match else None


def module_of(name: str) -> str:
    """The module that a tensor of a base model belongs to."""
    return canonical(name).rpartition(".")[0]


def write_renamed(tensors: Sequence[Tensor], path: Path) -> None:
    """Writes LoRA tensors of one file as another, under the names that vLLM takes."""
    table: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    place = 0
    for one in tensors:
        part = lora_part(one.name)
        assert part is not None, f"{one.name} is no part of a LoRA"
        known = {"dtype": one.kind, "shape": one.shape, "data_offsets": [place, place + one.size]}
        table[f"base_model.model.{_today(part[0])}.lora_{part[1]}.weight"] = known
        place += one.size
    header = json.dumps(table).encode()
    header += b" " * (-len(header) % 8)
    with path.open("wb") as written:
        written.write(len(header).to_bytes(8, "little") + header)
        for one in tensors:
            with one.file.open("rb") as opened:
                opened.seek(one.begin)
                shutil.copyfileobj(_Bounded(opened, one.size), written)


class _Bounded:
    """The next `size` bytes of a file, as something to read from."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self._left = size

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(self._left if size < 0 else min(size, self._left))
        self._left -= len(data)
        return data


def _today(module: str) -> str:
    """A module's name in transformers since 4.52."""
    inside = module.startswith(("language_model.", "visual."))
    return f"model.{module}" if inside else module


def is_zero(one: Tensor) -> bool:
    """Whether a tensor holds nothing but zeros."""
    return not _magnitudes(one).any()


def is_finite(one: Tensor) -> bool:
    """Whether a tensor holds neither infinities nor what is no number."""
    exponent = _BITS[one.kind][2]
    return not bool(((_magnitudes(one) & exponent) == exponent).any())


def _magnitudes(one: Tensor) -> NDArray[np.unsignedinteger]:
    """The bits of its numbers without their signs; numpy has no bfloat16. Raises ModelError."""
    import numpy as np

    if one.kind not in _BITS:
        raise ModelError(
            f"{one.file}: {one.name} is of type {one.kind}; allowed are {', '.join(_BITS)}"
        )
    kind, mask, _ = _BITS[one.kind]
    with one.file.open("rb") as opened:
        opened.seek(one.begin)
        bits = np.frombuffer(opened.read(one.size), kind)
    masked: NDArray[np.unsignedinteger] = bits & np.array(mask, kind)
    return masked
