"""Whether vLLM can serve an adapter, and whether it belongs to the base model that is served.

    adapter = servable(Path("adapters/birds"))       what vLLM cannot serve is an error
    check_base(adapter, weights, "Qwen/Qwen2-VL-2B-Instruct")
    stage(adapter, folder)                           the copy that the engine is given

vLLM refuses some of what PEFT can train and passes over some without a word. Both are found here,
from the files alone, before an engine is started; that an adapter is applied once it is loaded is
shown by `engine_adapters`.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vidqa.adapter_weights import (
    Tensor,
    base_digest,
    base_tensors,
    canonical,
    is_finite,
    is_zero,
    lora_part,
    model_type,
    module_of,
    tensors_in,
    write_renamed,
)
from vidqa.adapters import CONFIG, WEIGHTS, AdapterCard, read, read_config, read_json, whole
from vidqa.engine_options import RANKS
from vidqa.errors import ModelError

# Of the kinds of initial weights, those that leave the base as it is.
_HARMLESS_INITS = frozenset({"gaussian", "eva", "orthogonal", "mica", "lora_ga"})
# What PEFT may have trained besides, and vLLM cannot apply.
_UNSERVED = {
    "use_dora": "DoRA",
    "lora_bias": "bias of LoRA (lora_bias)",
    "modules_to_save": "whole modules besides LoRA (modules_to_save)",
    "trainable_token_indices": "single tokens' embeddings (trainable_token_indices)",
    "target_parameters": "LoRA on parameters (target_parameters)",
    "alora_invocation_tokens": "Activated LoRA",
    "layer_replication": "layers used twice (layer_replication)",
    "use_bdlora": "block-diagonal LoRA",
    "use_qalora": "QALoRA",
    "arrow_config": "a router of adapters (Arrow)",
}


@dataclass(frozen=True)
class Servable:
    """An adapter that vLLM can serve. `digest` tells it from others, and from itself retrained.

    `rank` is the largest of its modules', `vision` whether it changes the vision tower.
    """

    folder: Path
    card: AdapterCard
    digest: str
    rank: int
    vision: bool
    tensors: tuple[Tensor, ...]


def servable(folder: Path) -> Servable:
    """The adapter in a folder, looked through. Raises ModelError where vLLM cannot serve it.

    One whose B matrices are all zero is refused as well: it answers as the base does.
    """
    card, config = read(folder), read_config(folder)
    unserved = [*_unserved(config)]
    if unserved:
        raise ModelError(
            f"{folder}: vLLM cannot serve {' and '.join(unserved)}; train it as plain LoRA, or "
            "merge it into its base with PEFT and serve that"
        )
    ranks = _ranks(folder, card, config)
    tensors = tuple(_weights(folder, ranks))
    modules = {part[0] for one in tensors if (part := lora_part(one.name))}
    return Servable(
        folder=folder,
        card=card,
        digest=files_digest(folder),
        rank=max(ranks),
        vision=any(one.startswith("visual.") for one in modules),
        tensors=tensors,
    )


def _ranks(folder: Path, card: AdapterCard, config: Mapping[str, Any]) -> list[int]:
    """The ranks that its modules may have by its configuration."""
    try:
        ranks = [card.rank, *map(whole, (config.get("rank_pattern") or {}).values())]
    except (AttributeError, TypeError, ValueError, OverflowError) as error:
        raise ModelError(
            f"{folder / CONFIG}: its rank_pattern names no ranks ({error}); "
            "save the adapter again with PEFT"
        ) from error
    if not 1 <= min(ranks) <= max(ranks) <= RANKS[-1]:
        raise ModelError(f"{folder}: its rank is {max(ranks)}; 1 to {RANKS[-1]} can be served")
    return ranks


def _unserved(config: Mapping[str, Any]) -> Iterator[str]:
    kind = str(config.get("peft_type", "LORA"))
    if kind != "LORA":
        yield f"{kind}, which is no LoRA"
    for name, words in _UNSERVED.items():
        if config.get(name):
            yield words
    if config.get("bias", "none") != "none":
        yield f"trained biases (bias: {config['bias']})"
    init = config.get("init_lora_weights", True)
    if isinstance(init, str) and init.lower() not in _HARMLESS_INITS:
        yield f"an adapter whose beginning changed its base (init_lora_weights: {init})"


def _weights(folder: Path, ranks: Sequence[int]) -> list[Tensor]:
    """The tensors, all of them halves of a LoRA of these ranks, with numbers in them."""
    path = folder / WEIGHTS
    if not path.is_file():
        pickled = (folder / "adapter_model.bin").is_file()
        what = "only a pickle, adapter_model.bin, which may hold code" if pickled else "no weights"
        raise ModelError(f"{folder}: {what}; {WEIGHTS} is wanted, as PEFT saves it by default")
    tensors = tensors_in(path)
    sides: dict[str, set[str]] = {}
    for one in tensors:
        part = lora_part(one.name)
        if part is None:
            raise ModelError(
                f"{path}: {one.name} is no part of a LoRA, and vLLM would not apply it"
            )
        sides.setdefault(part[0], set()).add(part[1])
    halves = sorted(module for module, found in sides.items() if found != {"A", "B"})
    if halves or 2 * len(sides) != len(tensors):
        raise ModelError(f"{path}: not one A and one B of {_some(halves or sorted(sides))}")
    _check_ranks(path, tensors, ranks)
    check_numbers(path, tensors)
    return tensors


def _check_ranks(path: Path, tensors: Sequence[Tensor], ranks: Sequence[int]) -> None:
    """vLLM makes room for, and scales by, the ranks that the configuration says."""
    for one in tensors:
        if len(one.shape) != 2:
            raise ModelError(f"{path}: {one.name}, {one.shape}, is no LoRA on a linear layer")
        # A is (rank, in), B (out, rank).
        part = lora_part(one.name)
        rank = one.shape[0 if part is not None and part[1] == "A" else 1]
        if rank not in ranks:
            raise ModelError(
                f"{path}: {one.name} is of rank {rank}, and {CONFIG} says "
                f"{' or '.join(map(str, sorted(set(ranks))))}; save the adapter again with PEFT"
            )


def check_numbers(path: Path, tensors: Sequence[Tensor]) -> None:
    """Raises ModelError for weights that change nothing, and for what is no number."""
    bad = [one.name for one in tensors if not is_finite(one)]
    if bad:
        raise ModelError(f"{path}: {_some(bad)} holds what is no number; the training went astray")
    if all(is_zero(one) for one in tensors if (part := lora_part(one.name)) and part[1] == "B"):
        raise ModelError(
            f"{path}: every B matrix is zero, so it changes nothing: it was never trained, or its "
            "weights were lost when it was saved"
        )


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"{names[0]}{more}" if names else "anything"


def files_digest(folder: Path) -> str:
    """What tells an adapter from others, and from itself retrained: 16 hex digits of its files."""
    digest = hashlib.sha256((folder / CONFIG).read_bytes())
    with (folder / WEIGHTS).open("rb") as opened:
        while block := opened.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()[:16]


def stage(adapter: Servable, folder: Path) -> Path:
    """A copy for vLLM to load, below `folder`: whatever becomes of the original, it stays as it is.

    Its tensors have the names that vLLM takes; see `adapter_weights`.
    """
    place = folder / adapter.digest
    if place.is_dir():
        return place
    draft = folder / f"{adapter.digest}.{os.getpid()}"
    shutil.rmtree(draft, ignore_errors=True)
    try:
        draft.mkdir(parents=True)
        shutil.copyfile(adapter.folder / CONFIG, draft / CONFIG)
        write_renamed(adapter.tensors, draft / WEIGHTS)
        if files_digest(adapter.folder) != adapter.digest:
            raise ModelError(f"{adapter.folder}: was changed while it was copied; ask again")
        draft.rename(place)
    except ModelError:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    except OSError as error:
        shutil.rmtree(draft, ignore_errors=True)
        raise ModelError(
            f"{adapter.folder}: cannot be copied to {folder} ({error.strerror}); "
            "name another folder with VIDQA_RUNTIME_DIR"
        ) from error
    return place


# ---------------------------------------------------------------- for people to see


@dataclass(frozen=True)
class Described:
    """An adapter as it lies there; `problem` is why it cannot be served, empty where it can.

    It is called by its folder's `name`, whatever it was called when it was trained.
    """

    name: str
    folder: Path
    size_bytes: int
    card: AdapterCard | None
    problem: str


def describe(folder: Path, *, whole: bool = True) -> Described:
    """What an adapter is. Without `whole` of its weights only the table is read."""
    card, problem = None, ""
    try:
        card = read(folder)
        if whole:
            servable(folder)
        else:
            tensors_in(folder / WEIGHTS)
    except ModelError as error:
        problem = str(error)
    path = folder / WEIGHTS
    size = path.stat().st_size if path.is_file() else 0
    return Described(folder.absolute().name, folder, size, card, problem)


# ---------------------------------------------------------------- which base it belongs to


def check_base(adapter: Servable, weights: Path, model: str) -> None:
    """Raises ModelError, naming both, where an adapter belongs to another base than `weights`.

    The digest of the base decides where the card has one and the weights are not quantized, for a
    quantized base is other numbers for the same model. Kind, modules and shapes always count.
    """
    card = adapter.card
    kind, wanted = model_type(weights), _kind_of(card)
    if wanted and wanted != kind:
        raise _other_base(adapter, model, f"that is a {wanted}, and this a {kind}")
    _check_modules(adapter, weights, model)
    if card.base_digest and not is_quantized(weights):
        digest = base_digest(weights)
        if digest != card.base_digest:
            raise _other_base(
                adapter, model, f"their weights differ ({card.base_digest[:12]}, {digest[:12]})"
            )


def _other_base(adapter: Servable, model: str, why: str) -> ModelError:
    base = adapter.card.base_model
    if base == model:  # a folder that holds other weights by now, or tensors that no model has
        return ModelError(f"adapter {adapter.folder} does not fit {model}, its base by name: {why}")
    way_out = f"; serve it with --model {base}" if base else ""
    return ModelError(
        f"adapter {adapter.folder} was trained on {base or 'another model'}, and the model is "
        f"{model}: {why}{way_out}"
    )


_KIND = re.compile(r"qwen-?(\d)(?:\.(\d))?-?vl", re.IGNORECASE)


def _kind_of(card: AdapterCard) -> str:
    """The `model_type` of an adapter's base, by its card or else by the base's name."""
    named = _KIND.search(card.base_model)
    if card.base_model_type or not named:
        return card.base_model_type
    return f"qwen{named[1]}{f'_{named[2]}' if named[2] else ''}_vl"


def is_quantized(weights: Path) -> bool:
    """Whether a model's configuration says that its weights are stored in another form."""
    return "quantization_config" in read_json(weights / "config.json")


def _check_modules(adapter: Servable, weights: Path, model: str) -> None:
    """Every module that the adapter changes is there, and of the size that it was."""
    found = base_tensors(weights)
    modules = {module_of(one.name) for one in found}
    shapes = {canonical(one.name): one.shape for one in found}
    for one in adapter.tensors:
        part = lora_part(one.name)
        assert part is not None
        module, side = part
        if module not in modules and module != "lm_head":  # which may be the embeddings
            raise _other_base(adapter, model, f"it changes {module}, which {model} has not")
        shape = shapes.get(f"{module}.weight", ())
        # A is (rank, in), B (out, rank), the weight (out, in); quantized weights are packed.
        own = one.shape[1] if side == "A" else one.shape[0]
        if len(shape) == 2 and not _is_packed(module, modules, shapes):
            there = shape[1] if side == "A" else shape[0]
            if own != there:
                raise _other_base(adapter, model, f"{module} is {own} wide in it, not {there}")


def _is_packed(module: str, modules: set[str], shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """bitsandbytes keeps packed numbers under the weight's own name, with a state beside it."""
    return any(name.startswith(f"{module}.weight.") for name in modules | set(shapes))
