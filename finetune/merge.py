"""An adapter is added into its base model: a model of its own, which needs no LoRA to be served.

    merge(base_folder, adapter_folder, Path("models/birds"))
    is_merge(Path("models/birds"), base_folder, adapter_folder)     True from then on

Weight files are rewritten one by one under their own names, keys and types, W + scale * B A in
float32, and what a model needs beside them is copied. So whatever loads the base loads the
result: vLLM, transformers, llama.cpp's converters. No model is built, and no more memory is used
than the largest file takes twice. `vidqa.json` says what it was made of.
"""

from __future__ import annotations

import math
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vidqa import model_card
from vidqa.adapter_fit import Servable, check_base, is_quantized, servable
from vidqa.adapter_weights import base_digest, base_tensors, canonical, lora_part
from vidqa.adapters import CONFIG, WEIGHTS, Card, read_config
from vidqa.errors import ModelError, UsageError
from vidqa.model_card import ModelCard
from vidqa.weights import copy_companions, revision_of

if TYPE_CHECKING:
    from torch import Tensor

_QUANTISED = re.compile(r"\.(?:qweight|qzeros|g_idx|weight_packed|absmax|quant_map|SCB)\b")
# What of a card tells one merge from another.
_MADE_OF = ("adapter_digest", "base_digest", "look")


@dataclass(frozen=True)
class _Pair:
    """B A of one module, and what it is multiplied by."""

    a: Tensor
    b: Tensor
    scale: float


def merge(
    base: Path,
    adapter: Path,
    output: Path,
    on_file: Callable[[int, int], None] = lambda done, total: None,
) -> Path:
    """Writes the merged model into `output`, which must not exist or be empty; returns it.

    It appears there whole or not at all, also after a power cut. `on_file` hears of every finished
    file of weights. Raises ModelError where the adapter does not fit the base, or is more than a
    LoRA.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UsageError(f"{output}: is there already; name a folder that is new, or remove it")
    files = sorted(base.glob("*.safetensors"))
    if not files:
        raise ModelError(f"{base}: holds no *.safetensors to merge into")
    looked_through = servable(adapter)
    check_base(looked_through, base, str(base))
    targets = _targets(_pairs(looked_through), files, base)
    output = output.resolve()  # "." has no name
    draft = output.with_name(f"{output.name}.part-{os.getpid()}")  # no folder of anybody else's
    draft.mkdir(parents=True)
    try:
        for done, file in enumerate(files, 1):
            _write(file, draft / file.name, targets)
            on_file(done, len(files))
        for index in base.glob("*.safetensors.index.json"):  # names and keys are the same
            shutil.copyfile(index, draft / index.name)
        copy_companions(base, draft)
        model_card.write(draft, _card(looked_through, base))
        _put_on_disk(draft)
        if output.exists():
            output.rmdir()
        draft.replace(output)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    return output


def is_merge(folder: Path, base: Path, adapter: Path) -> bool:
    """Whether a folder holds what `merge` makes of this base and this adapter, and all of it.

    Its card says what it was made of. Raises ModelError for an adapter that cannot be merged.
    """
    try:
        told = model_card.told_by(folder)
        if _tables(folder) != _tables(base):
            return False
    except ModelError:  # no weights or cut off ones, or a damaged card
        return False
    wanted = _card(servable(adapter), base)
    return all(told.get(name) == getattr(wanted, name) for name in _MADE_OF)


def _tables(folder: Path) -> set[tuple[str, str, str, tuple[int, ...]]]:
    """Every tensor of a model, with its file, type and shape. Raises ModelError."""
    return {(one.file.name, one.name, one.kind, one.shape) for one in base_tensors(folder)}


def _put_on_disk(folder: Path) -> None:
    """The files before the folder gets its name: what has it is taken for whole."""
    for one in [*folder.rglob("*"), folder]:
        opened = os.open(one, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


def _card(adapter: Servable, base: Path) -> ModelCard:
    """What the adapter says of itself holds for the model; of the base, what is here counts."""
    card = adapter.card
    told = {one.name: getattr(card, one.name) for one in fields(Card)}
    here = {
        "base_model": card.base_model or str(base),
        "base_digest": base_digest(base),
        "base_revision": revision_of(base),
    }
    return ModelCard(**told | here, adapter=card.name, adapter_digest=adapter.digest)


# ---------------------------------------------------------------- the adapter


def _pairs(adapter: Servable) -> dict[str, _Pair]:
    """What the adapter adds, by the module that it is added to."""
    from safetensors.torch import load_file

    config = read_config(adapter.folder)
    if config.get("fan_in_fan_out"):
        raise ModelError(
            f"{adapter.folder / CONFIG}: fan_in_fan_out, for weights that lie across, which no "
            "Qwen model has"
        )
    halves: dict[str, dict[str, Tensor]] = {}
    scales: dict[str, float] = {}
    for name, tensor in load_file(adapter.folder / WEIGHTS).items():
        part = lora_part(name)
        if part is None or tensor.dim() != 2:
            raise ModelError(
                f"{adapter.folder / WEIGHTS}: {name}, {tuple(tensor.shape)}, is no part of a LoRA "
                "on a linear layer, so it cannot be merged"
            )
        module, side = part
        halves.setdefault(module, {})[side] = tensor
        if side == "A":
            scales[module] = _scale(config, name.partition(".lora_")[0], tensor.shape[0])
    return {module: _Pair(half["A"], half["B"], scales[module]) for module, half in halves.items()}


def _scale(config: Mapping[str, Any], name: str, rank: int) -> float:
    """alpha / r, or alpha / sqrt(r) with rank stabilisation; PEFT may set alpha by module."""
    alpha = config.get("lora_alpha", 1)
    for pattern, own in (config.get("alpha_pattern") or {}).items():
        if re.fullmatch(rf"(?:.*\.)?(?:{pattern})", name):
            alpha = own
            break
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)


# ---------------------------------------------------------------- the base


def _targets(pairs: Mapping[str, _Pair], files: list[Path], base: Path) -> dict[str, _Pair]:
    """The base's own keys of the weights to change. Every pair must find its weight."""
    from safetensors import safe_open

    shapes: dict[str, tuple[int, ...]] = {}
    for file in files:
        with safe_open(file, "pt") as opened:
            shapes |= {key: tuple(opened.get_slice(key).get_shape()) for key in opened.keys()}  # noqa: SIM118
    if is_quantized(base) or any(_QUANTISED.search(key) for key in shapes):
        raise ModelError(f"{base}: its weights are quantised; merge into the model they are from")
    keys = {canonical(key): key for key in shapes}
    targets = {}
    for module, pair in pairs.items():
        key = keys.get(f"{module}.weight")
        if key is None:
            tied = "; it shares the embedding's weights" if module == "lm_head" else ""
            raise ModelError(
                f"the adapter changes {module}, which has no weights of its own in {base}{tied}"
            )
        wanted = (pair.b.shape[0], pair.a.shape[1])
        if shapes[key] != wanted:
            raise ModelError(
                f"the adapter changes {module} as {wanted[0]} x {wanted[1]} numbers, and in {base} "
                f"it is {' x '.join(map(str, shapes[key]))}"
            )
        targets[key] = pair
    return targets


def _write(file: Path, output: Path, targets: Mapping[str, _Pair]) -> None:
    from safetensors import safe_open
    from safetensors.torch import save_file

    with safe_open(file, "pt") as opened:
        metadata = opened.metadata() or {"format": "pt"}
        tensors = {
            key: _added(opened.get_tensor(key), targets.get(key))
            for key in opened.keys()  # noqa: SIM118  it is no mapping
        }
    save_file(tensors, output, metadata)
    output.chmod(0o644)  # safetensors lets nobody else read it


def _added(weight: Tensor, pair: _Pair | None) -> Tensor:
    if pair is None:
        return weight
    change = (pair.b.float() @ pair.a.float()) * pair.scale
    return (weight.float() + change).to(weight.dtype).contiguous()
