"""Folders with the architectures of real answering models, a few layers deep, weights random.

    make_answerer(folder, "qwen2-vl-tiny")

They are saved by transformers and loaded by the very code that loads the real ones. Random weights
say nothing sensible, but they say it about what they are shown: another frame, another answer.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from finetune.recipe import LANGUAGE_TARGETS

SPECIAL_TOKENS = (
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
END_OF_TEXT = "<|endoftext|>"

# Qwen2-VL's form of a chat: roles between <|im_start|> and <|im_end|>, parts in the order given.
CHAT_TEMPLATE = """\
{%- for message in messages -%}
{{ '<|im_start|>' + message['role'] + '\\n' }}
{%- if message['content'] is string -%}
{{ message['content'] }}
{%- else -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'video' -%}
<|vision_start|><|video_pad|><|vision_end|>
{%- elif part['type'] == 'image' -%}
<|vision_start|><|image_pad|><|vision_end|>
{%- elif part['type'] == 'text' -%}
{{ part['text'] }}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{ '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ '<|im_start|>assistant\\n' }}
{%- endif -%}
"""

_WORDS = (
    "You answer questions about videos. Use only the moments shown. What colour is the star? "
    "The star is red [1]. film.mp4 00:00:05-00:00:09 Subtitles: Question: Not in the moments shown."
)

# Width, heads, key-value heads and width of the feed-forward layers are those of the real models
# ("tiny" aside), layers are one or a few; `sections` split half a head between time, height, width.
_TEXT: dict[str, dict[str, Any]] = {
    "tiny": {"hidden": 192, "heads": 6, "kv": 2, "inner": 512, "layers": 4, "sections": [4, 6, 6]},
    "2b": {"hidden": 1536, "heads": 12, "kv": 2, "inner": 8960, "layers": 1},
    "7b": {"hidden": 3584, "heads": 28, "kv": 4, "inner": 18944, "layers": 1},
    "3b": {"hidden": 2048, "heads": 16, "kv": 2, "inner": 11008, "layers": 1},
}
ANSWERERS = {
    "qwen2-vl-tiny": "tiny",
    "qwen2-vl-2b": "2b",
    "qwen2-vl-7b": "7b",
    "qwen2.5-vl-3b": "3b",
}


def make_answerer(folder: Path, name: str, seed: int = 0) -> Path:
    """Writes one of `ANSWERERS` into `folder` and returns it."""
    from vidqa.compat import declare_torchvision_operators

    declare_torchvision_operators()
    import torch
    import transformers

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _tokenizer(folder)
    _processor(name, tokenizer, folder)
    torch.manual_seed(seed)
    kind = "Qwen2_5_VL" if name.startswith("qwen2.5") else "Qwen2VL"
    config = _config(kind, name, tokenizer)
    model = getattr(transformers, f"{kind}ForConditionalGeneration")(config).float()
    _scatter(model)
    end, pad = (tokenizer.convert_tokens_to_ids(token) for token in ("<|im_end|>", END_OF_TEXT))
    model.generation_config = transformers.GenerationConfig(
        do_sample=False, eos_token_id=[end, pad], pad_token_id=pad, bos_token_id=pad
    )
    model.save_pretrained(folder)
    return folder


def _tokenizer(folder: Path) -> Any:
    """Qwen2's: byte-level pairs, trained on one sentence."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import Qwen2Tokenizer

    pairs = Tokenizer(models.BPE())
    pairs.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    pairs.train_from_iterator([_WORDS] * 2, trainer)
    learned = json.loads(pairs.to_str())["model"]
    tokenizer = Qwen2Tokenizer(
        vocab=learned["vocab"],
        merges=[tuple(pair) for pair in learned["merges"]],
        extra_special_tokens=list(SPECIAL_TOKENS),
        eos_token="<|im_end|>",
        pad_token=END_OF_TEXT,
        model_max_length=4096,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)
    return tokenizer


def _processor(name: str, tokenizer: Any, folder: Path) -> None:
    """Frames whose sides are multiples of 28 pass as they are, from 28 x 28 to 448 x 336."""
    import transformers

    kind = "Qwen2_5_VLProcessor" if name.startswith("qwen2.5") else "Qwen2VLProcessor"
    patch, merge = _patches(name)
    sizes: dict[str, Any] = {
        "size": {"shortest_edge": 28 * 28, "longest_edge": 448 * 336},
        "patch_size": patch,
        "merge_size": merge,
    }
    processor = getattr(transformers, kind)(
        image_processor=transformers.Qwen2VLImageProcessor(**sizes),
        video_processor=transformers.Qwen2VLVideoProcessor(
            **sizes, do_sample_frames=False, cap_pixels_per_frame=False
        ),
        tokenizer=tokenizer,
        chat_template=CHAT_TEMPLATE,
    )
    processor.save_pretrained(folder)


def _config(kind: str, name: str, tokenizer: Any) -> Any:
    import transformers

    shape = _TEXT[ANSWERERS[name]]
    token = tokenizer.convert_tokens_to_ids
    rope = {
        "rope_type": "default",
        "rope_theta": 1_000_000.0,
        "mrope_section": shape.get("sections", [16, 24, 24]),
    }
    text = {
        "vocab_size": -(-len(tokenizer) // 64) * 64,
        "hidden_size": shape["hidden"],
        "intermediate_size": shape["inner"],
        "num_hidden_layers": shape["layers"],
        "num_attention_heads": shape["heads"],
        "num_key_value_heads": shape["kv"],
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True,
        "rope_parameters": rope,
        "bos_token_id": token(END_OF_TEXT),
        "eos_token_id": token("<|im_end|>"),
        "pad_token_id": token(END_OF_TEXT),
    }
    return getattr(transformers, f"{kind}Config")(
        vision_config=_vision(kind, name, shape["hidden"]),
        text_config=text,
        tie_word_embeddings=True,
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
    )


def _patches(name: str) -> tuple[int, int]:
    """Pixels of a patch's side, and patches of a token's: 28 pixels a token in all of them.

    The tiny one differs from the real ones, as the bundled model does.
    """
    return (7, 4) if name.endswith("tiny") else (14, 2)


def _vision(kind: str, name: str, hidden: int) -> dict[str, Any]:
    patch, merge = _patches(name)
    shared = {"patch_size": patch, "spatial_merge_size": merge, "temporal_patch_size": 2}
    if kind == "Qwen2_5_VL":
        return shared | {
            "depth": 2,
            "hidden_size": 1280,
            "intermediate_size": 3420,
            "num_heads": 16,
            "out_hidden_size": hidden,
            "fullatt_block_indexes": [1],
            "window_size": 112,
        }
    tiny = name.endswith("tiny")
    return shared | {
        "depth": 3 if tiny else 1,
        "embed_dim": 128 if tiny else 1280,
        "num_heads": 4 if tiny else 16,
        "hidden_size": hidden,
        "mlp_ratio": 4,
    }


def _scatter(model: Any) -> None:
    """Larger weights than fresh ones: these would give every input the same next token."""
    import torch

    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() >= 2:
                spread = 1.0 if "embed_tokens" in name else 1.6 / weight[0].numel() ** 0.5
                weight.normal_(0, spread)


def make_lora(base: Path, folder: Path, targets: str = LANGUAGE_TARGETS, **config: Any) -> Path:
    """Writes a LoRA adapter of a model, made and saved by PEFT, with random weights.

    `seed` chooses them, `spread` is how large those of B are, `rename` changes their names.
    """
    from vidqa.compat import declare_torchvision_operators

    declare_torchvision_operators()
    import peft
    import torch
    import transformers
    from safetensors.torch import load_file, save_file

    seed, spread = config.pop("seed", 0), config.pop("spread", 0.3)
    rename = config.pop("rename", None)
    torch.manual_seed(seed)
    model = transformers.AutoModelForImageTextToText.from_pretrained(base, dtype=torch.float32)
    known = {"r": 8, "lora_alpha": 16, "target_modules": targets}
    adapted = peft.get_peft_model(model, peft.LoraConfig(**known | config))
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                weight.normal_(0, spread)
    adapted.save_pretrained(str(folder))
    if rename is not None:
        path = folder / "adapter_model.safetensors"
        save_file({rename(name): one for name, one in load_file(path).items()}, path)
    return folder
