"""An adapter is added into its base model: a model of its own, which needs no LoRA to be served.

    merge(base_folder, adapter_folder, Path("models/birds"))

Weight files are rewritten one by one under their own names, keys and types, W + scale * B A in
float32, and everything else of the base's folder is copied. So whatever loads the base loads the
result: vLLM, transformers, llama.cpp's converters. No model is built, and no more memory is used
than the largest file takes twice. `merged.json` says what it was made of.
"""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vidqa.adapter_weights import base_digest, canonical, module_of
from vidqa.adapters import CONFIG, WEIGHTS, AdapterCard, read, read_config
from vidqa.errors import ModelError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

MERGED = "merged.json"

# Weights in other forms, which would be stale beside the merged ones.
_OTHER_WEIGHTS = (".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".gguf", ".onnx")
_QUANTISED = re.compile(r"\.(?:qweight|qzeros|g_idx|weight_packed|absmax|quant_map|SCB)\b")

# PEFT's settings that are more than B A, and when they are in use.
_BEYOND: dict[str, Callable[[Any], bool]] = {
    "use_dora": bool,
    "lora_bias": bool,
    "fan_in_fan_out": bool,
    "modules_to_save": bool,
    "trainable_token_indices": bool,
    "target_parameters": bool,
    "layer_replication": bool,
    "bias": lambda value: value not in (None, "none"),
    # These change the base model too, which is then not the one that is merged into.
    "init_lora_weights": lambda value: (
        isinstance(value, str) and re.match(r"(?i)pissa|olora|corda|loftq", value) is not None
    ),
}


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

    It appears there whole or not at all. `on_file` hears of every finished file of weights. Raises
    ModelError where the adapter does not fit the base, or is more than a LoRA.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UsageError(f"{output}: is there already; name a folder that is new, or remove it")
    files = sorted(base.glob("*.safetensors"))
    if not files:
        raise ModelError(f"{base}: holds no *.safetensors to merge into")
    card = read(adapter)
    _check_base(card, base)
    pairs = _pairs(adapter)
    targets = _targets(pairs, files, base)
    draft = output.with_name(f"{output.name}.part")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    try:
        for done, file in enumerate(files, 1):
            _write(file, draft / file.name, targets)
            on_file(done, len(files))
        _copy_rest(base, draft)
        (draft / MERGED).write_text(json.dumps(_origin(card, base), indent=2) + "\n", "utf-8")
        if output.exists():
            output.rmdir()
        draft.replace(output)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    return output


def _check_base(card: AdapterCard, base: Path) -> None:
    here = base_digest(base)
    if card.base_digest and here != card.base_digest:
        raise ModelError(
            f"adapter {card.name} was trained on {card.base_model} (weights "
            f"{card.base_digest[:8]}), and {base} holds others ({here[:8]}); name the model that "
            "it was trained on"
        )


def _origin(card: AdapterCard, base: Path) -> dict[str, Any]:
    return {
        "adapter": card.name,
        "base_model": card.base_model or str(base),
        "base_digest": base_digest(base),
        "look": dict(card.look),
        "box_family": card.box_family,
    }


# ---------------------------------------------------------------- the adapter


def _pairs(adapter: Path) -> dict[str, _Pair]:
    """What the adapter adds, by the module that it is added to."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    config = read_config(adapter)
    _check_kind(adapter, config)
    try:
        tensors = load_file(adapter / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{adapter / WEIGHTS}: {error}; copy the adapter again") from error
    halves: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        match = re.fullmatch(r"(.+)\.lora_([AB])\.(?:[^.]+\.)?weight", name)
        if match is None or tensor.dim() != 2:
            raise ModelError(
                f"{adapter / WEIGHTS}: {name}, {tuple(tensor.shape)}, is no part of a LoRA on a "
                "linear layer, so it cannot be merged"
            )
        halves.setdefault(match.group(1), {})[match.group(2)] = tensor
    pairs = {}
    for name, half in halves.items():
        if len(half) != 2 or half["A"].shape[0] != half["B"].shape[1]:
            raise ModelError(f"{adapter / WEIGHTS}: the two matrices of {name} are no pair")
        rank = half["A"].shape[0]
        pairs[module_of(name)] = _Pair(half["A"], half["B"], _scale(config, name, rank))
    return pairs


def _check_kind(adapter: Path, config: Mapping[str, Any]) -> None:
    if config.get("peft_type", "LORA") != "LORA":
        raise ModelError(f"{adapter / CONFIG}: peft_type is {config['peft_type']}; LORA is merged")
    for name, in_use in _BEYOND.items():
        if in_use(config.get(name)):
            raise ModelError(
                f"{adapter / CONFIG}: {name} is {config[name]!r}, which is more than LoRA adds to "
                "a weight; train without it to merge"
            )


def _scale(config: Mapping[str, Any], name: str, rank: int) -> float:
    """alpha / r, or alpha / sqrt(r) with rank stabilisation; PEFT may set alpha by module."""
    alpha = config.get("lora_alpha", 1)
    for pattern, own in (config.get("alpha_pattern") or {}).items():
        if re.match(rf"(?:.*\.)?(?:{pattern})$", name):
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
    if any(_QUANTISED.search(key) for key in shapes):
        raise ModelError(f"{base}: its weights are quantised; merge into the model they are from")
    keys = {canonical(key.removesuffix(".weight")): key for key in shapes if key.endswith("weight")}
    targets = {}
    for module, pair in pairs.items():
        key = keys.get(module)
        if key is None:
            tied = " (it shares the embedding's weights)" if module == "lm_head" else ""
            raise ModelError(
                f"the adapter changes {module}, which {base} does not have{tied}; is it the model "
                "that the adapter was trained on?"
            )
        wanted = (pair.b.shape[0], pair.a.shape[1])
        if shapes[key] != wanted:
            raise ModelError(
                f"the adapter changes {module} of {wanted[0]} x {wanted[1]}, and in {base} it is "
                f"{' x '.join(map(str, shapes[key]))}; is it the model that it was trained on?"
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


def _added(weight: Tensor, pair: _Pair | None) -> Tensor:
    if pair is None:
        return weight
    change = (pair.b.float() @ pair.a.float()) * pair.scale
    return (weight.float() + change).to(weight.dtype).contiguous()


def _copy_rest(base: Path, output: Path) -> None:
    """Configuration, tokenizer, processor, chat template, licence: whatever is no weight."""
    for file in sorted(base.iterdir()):
        is_weight = file.suffix in (".safetensors", *_OTHER_WEIGHTS)
        stale = file.name.endswith(".bin.index.json") or file.name.startswith(".")
        if file.is_file() and not is_weight and not stale:
            shutil.copyfile(file, output / file.name)
        elif file.is_dir() and file.name == "additional_chat_templates":
            shutil.copytree(file, output / file.name)
