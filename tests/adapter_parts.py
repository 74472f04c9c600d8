"""Adapters made by hand: PEFT's files without PEFT, for a base model of two layers.

    base = make_base(folder)
    make_adapter(folder / "birds", modules=("model.language_model.layers.0.mlp.up_proj",))

Weights are given in numpy; what a file of safetensors looks like is written out here once more.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

KINDS = {"float32": "F32", "float16": "F16", "float64": "F64", "int8": "I8"}
WIDE, NARROW = 12, 8
NAMES = ("self_attn.q_proj", "mlp.up_proj")
MODULES = tuple(f"model.language_model.layers.{n}.{one}" for n in (0, 1) for one in NAMES)


def write_tensors(path: Path, tensors: Mapping[str, NDArray[Any]]) -> None:
    table, data = {}, b""
    for name, array in tensors.items():
        begin = len(data)
        data += array.tobytes()
        table[name] = {
            "dtype": KINDS[str(array.dtype)],
            "shape": list(array.shape),
            "data_offsets": [begin, len(data)],
        }
    header = json.dumps(table).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)


def make_base(
    folder: Path, *, seed: int = 0, kind: str = "qwen2_vl", shards: int = 1, **config: Any
) -> Path:
    """A model of two layers and one block of vision, named as checkpoints name them."""
    numbers = np.random.default_rng(seed)
    names = [f"model.layers.{n}.{one}.weight" for n in (0, 1) for one in NAMES]
    names.append("visual.blocks.0.attn.qkv.weight")
    tensors = {one: numbers.normal(size=(WIDE, NARROW)).astype(np.float32) for one in names}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": kind} | config))
    for shard in range(shards):
        part = {one: tensors[one] for one in names[shard::shards]}
        write_tensors(folder / f"model-{shard}.safetensors", part)
    return folder


def make_adapter(
    folder: Path,
    *,
    modules: Sequence[str] = MODULES,
    prefix: str = "base_model.model.",
    rank: int = 4,
    fill: float | None = None,
    seed: int = 0,
    kind: str = "float32",
    size: tuple[int, int] = (WIDE, NARROW),
    card: Mapping[str, Any] | None = None,
    **config: Any,
) -> Path:
    """An adapter as PEFT saves it; `fill` is the number in all B matrices, else random ones."""
    numbers = np.random.default_rng(seed)
    tensors: dict[str, NDArray[Any]] = {}
    for one in modules:
        b = numbers.normal(size=(size[0], rank)) if fill is None else np.full((size[0], rank), fill)
        tensors[f"{prefix}{one}.lora_A.weight"] = numbers.normal(size=(rank, size[1])).astype(kind)
        tensors[f"{prefix}{one}.lora_B.weight"] = b.astype(kind)
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder / "adapter_model.safetensors", tensors)
    known = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "target_modules": ["x"]}
    (folder / "adapter_config.json").write_text(json.dumps(known | config))
    if card is not None:
        (folder / "adapter.json").write_text(json.dumps(card))
    return folder
