"""The model to be trained: loaded in the right numbers, with an adapter or without.

Which part of it a weight belongs to ("language", "vision" or "merger") decides its learning rate.
Nothing here trains or saves.
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from finetune.recipe import LANGUAGE_TARGETS, VISION_TARGETS, Recipe
from vidqa.compat import declare_torchvision_operators
from vidqa.errors import MissingExtra, ModelError, UsageError

Component = Literal["language", "merger", "vision"]

# What stays whole when weights are put into 4 bits. transformers compares from the beginning of a
# layer's name: `visual` alone would name nothing within the tower.
WHOLE_BESIDE_4_BITS = ["model.visual", "lm_head"]

# Named in messages about targets that fit nothing.
_EXAMPLES = 3


def precision_of(recipe: Recipe) -> Literal["bf16", "fp32"]:
    """What this machine computes with. On processors bf16 was slower than fp32 here."""
    if recipe.precision == "auto":
        has_bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
        return "bf16" if has_bf16 else "fp32"
    return "bf16" if recipe.precision == "bf16" else "fp32"


def attention_of(recipe: Recipe) -> str:
    """transformers' name of the attention kernel. Raises MissingExtra for flash without flash."""
    installed = importlib.util.find_spec("flash_attn") is not None
    able = installed and torch.cuda.is_available() and precision_of(recipe) == "bf16"
    if recipe.attention == "flash" and not able:
        raise MissingExtra(
            "attention: flash needs an NVIDIA card, bf16 and the package flash-attn; "
            "take attention: sdpa, which is nearly as fast"
        )
    if recipe.attention in ("auto", "flash"):
        return "flash_attention_2" if able else "sdpa"
    return recipe.attention


def checkpoints_activations(recipe: Recipe) -> bool:
    """Processors have more memory than arithmetic; with cards it is the other way round."""
    if recipe.gradient_checkpointing == "auto":
        return torch.cuda.is_available()
    return recipe.gradient_checkpointing == "always"


def load_base(folder: Path, recipe: Recipe) -> Any:
    """The base model, in numbers that can be trained whatever it is stored in.

    A model with an adapter is held in what it is computed in; one that is trained whole is held
    in fp32, as steps of 1e-5 of a weight are lost in bf16. Raises ModelError, MissingExtra.
    """
    if recipe.qlora:
        check_qlora()
    declare_torchvision_operators()
    from transformers import AutoModelForImageTextToText
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    bf16 = precision_of(recipe) == "bf16" and not recipe.full
    options: dict[str, Any] = {"dtype": torch.bfloat16 if bf16 else torch.float32}
    if recipe.qlora:
        options |= _in_4_bits()
    try:
        model = AutoModelForImageTextToText.from_pretrained(
            folder, attn_implementation=attention_of(recipe), local_files_only=True, **options
        )
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ModelError(f"{folder}: cannot be loaded for training ({reason})") from error
    if not any(component(name) == "vision" for name, _ in model.named_modules()):
        raise ModelError(
            f"{folder}: no vision tower `visual` in it; fine-tuning knows Qwen2-VL, Qwen2.5-VL and "
            "Qwen3-VL"
        )
    return model


@dataclass(frozen=True, slots=True)
class Sketch:
    """A model as it will be trained, without its weights: (trained, all) of each component.

    `in_4_bits` are those of all that are held so.
    """

    config: Any
    parameters: dict[str, tuple[int, int]]
    in_4_bits: int = 0


def sketch(folder: Path, recipe: Recipe) -> Sketch:
    """Counts what `prepare` will train, and checks the recipe's targets; loads no weights."""
    declare_torchvision_operators()
    from transformers import AutoConfig, AutoModelForImageTextToText

    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        with torch.device("meta"):
            model = AutoModelForImageTextToText.from_config(config)  # type: ignore[no-untyped-call]
            in_4_bits = _count_in_4_bits(model) if recipe.qlora else 0
            model = prepare(model, recipe)
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder}: cannot be read ({' '.join(str(error).split())})") from error
    counts = {str(part): counts for part, counts in trainable(model).items()}
    return Sketch(config, counts, in_4_bits)


def check_qlora() -> None:
    """Raises ModelError or MissingExtra where weights in 4 bits cannot be computed with."""
    if not torch.cuda.is_available():
        raise ModelError(
            "qlora: weights in 4 bits need an NVIDIA card, and torch sees none; leave --qlora out "
            "to train with LoRA"
        )
    if importlib.util.find_spec("bitsandbytes") is None:
        raise MissingExtra(
            "qlora: bitsandbytes is not installed; install it (uv pip install bitsandbytes), or "
            "leave --qlora out to train with LoRA"
        )


def _in_4_bits() -> dict[str, Any]:
    """nf4 with double quantization (Dettmers et al., QLoRA, 2023), of the language layers alone."""
    from transformers import BitsAndBytesConfig

    config = BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
        bnb_4bit_quant_storage=torch.bfloat16,  # what FSDP can shard
        llm_int8_skip_modules=WHOLE_BESIDE_4_BITS,
    )
    return {"quantization_config": config, "device_map": {"": int(os.environ.get("LOCAL_RANK", 0))}}


def _count_in_4_bits(model: nn.Module) -> int:
    """Weights that `_in_4_bits` holds so: of linear layers; their biases stay as they are."""
    return sum(
        one.weight.numel()
        for name, one in model.named_modules()
        if type(one) is nn.Linear and not name.startswith(tuple(WHOLE_BESIDE_4_BITS))
    )


def prepare(model: Any, recipe: Recipe) -> Any:
    """Marks what is trained; with LoRA, returns the model with a fresh adapter, PEFT's.

    Raises UsageError when the recipe's targets fit no layer, or layers outside the language part.
    """
    if recipe.full:
        for name, weight in model.named_parameters():
            weight.requires_grad_(recipe.train_vision or component(name) == "language")
        return model
    check_targets(model, recipe.targets)
    from peft import LoraConfig, get_peft_model

    # Nor does QLoRA take PEFT's prepare_model_for_kbit_training: what is not in 4 bits (tower,
    # embeddings, head) it would put into float32, which is more than the 4 bits save there.
    # Freezing is done below, and checkpointing without re-entrance needs no inputs with gradients.
    targets = recipe.targets
    if recipe.train_vision:
        targets = f"({targets})|({VISION_TARGETS})"
    config = LoraConfig(
        r=recipe.rank,
        lora_alpha=recipe.alpha,
        lora_dropout=recipe.dropout,
        target_modules=targets,
        bias="none",
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, config)


def check_targets(model: nn.Module, targets: str) -> None:
    """Raises UsageError unless the regular expression fits layers of the language part alone."""
    layers = [name for name, one in model.named_modules() if _takes_adapter(one)]
    found = [name for name in layers if re.fullmatch(targets, name)]
    if not found:
        some = [name for name in layers if "language_model" in name][:_EXAMPLES]
        raise UsageError(
            f"targets: {targets!r} fits no layer of this model, which has {', '.join(some)} ...; "
            f"the default is {LANGUAGE_TARGETS}"
        )
    outside = [name for name in found if "language_model" not in name]
    if outside:
        raise UsageError(
            f"targets: {targets!r} fits {outside[0]}, outside the language layers; begin it with "
            r".*language_model.*\. (and add --train-vision for the vision tower)"
        )


def _takes_adapter(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear)


def component(name: str) -> Component:
    """The part of the model that a weight or module of this name belongs to."""
    if "merger" in name:
        return "merger"
    return "vision" if re.search(r"(^|\.)visual(\.|$)", name) else "language"


def trainable(model: nn.Module) -> dict[Component, tuple[int, int]]:
    """Per component: weights that are trained, and all weights (those of the adapter included)."""
    counts: dict[Component, tuple[int, int]] = {
        "language": (0, 0),
        "merger": (0, 0),
        "vision": (0, 0),
    }
    for name, weight in model.named_parameters():
        part = component(name)
        trained, every = counts[part]
        counts[part] = (trained + weight.numel() * weight.requires_grad, every + weight.numel())
    return counts


def parameter_groups(model: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """What the optimizer takes: a rate per component; biases and norms are not decayed."""
    rates = {
        "language": recipe.learning_rate,
        "merger": recipe.merger_learning_rate,
        "vision": recipe.vision_learning_rate,
    }
    groups: dict[tuple[Component, bool], list[nn.Parameter]] = {}
    for name, weight in _trained(model):
        groups.setdefault((component(name), weight.ndim > 1), []).append(weight)
    return [
        {
            "params": weights,
            "lr": rates[part],
            "weight_decay": recipe.weight_decay if decays else 0.0,
            "component": part,
        }
        for (part, decays), weights in sorted(groups.items(), key=lambda one: one[0])
    ]


def _trained(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, one) for name, one in model.named_parameters() if one.requires_grad)
