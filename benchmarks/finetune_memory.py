"""What a training would take on one card: the table in docs/finetune.md, by the plan's estimate.

    python -m benchmarks.finetune_memory      by its path it would take finetune.py here for ours

Nothing is trained and no weights are needed: shapes are those of Qwen2-VL's published
configurations, counted without memory. A test keeps the document's table equal to this one.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.dataset import Measure
from finetune.layout import Look
from finetune.model import sketch
from finetune.plan import Budget, Plan, Planned, Training, estimate, shape_of
from finetune.recipe import Recipe
from finetune.rows import Origin, Row

_VISION = {"depth": 32, "embed_dim": 1280, "mlp_ratio": 4, "num_heads": 16, "patch_size": 14,
           "spatial_merge_size": 2, "temporal_patch_size": 2}  # fmt: skip
_TEXT = {"num_hidden_layers": 28, "rope_parameters": {
    "rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}}  # fmt: skip
# The config.json files of Qwen/Qwen2-VL-2B-Instruct and -7B-Instruct, as far as sizes go.
MODELS: dict[str, dict[str, Any]] = {
    "Qwen2-VL-2B": {
        "tie_word_embeddings": True,
        "vision_config": _VISION | {"hidden_size": 1536},
        "text_config": _TEXT | {
            "hidden_size": 1536, "intermediate_size": 8960, "num_attention_heads": 12,
            "num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": True,
        },
    },
    "Qwen2-VL-7B": {
        "tie_word_embeddings": False,
        "vision_config": _VISION | {"hidden_size": 3584},
        "text_config": _TEXT | {
            "hidden_size": 3584, "intermediate_size": 18944, "num_attention_heads": 28,
            "num_key_value_heads": 4, "vocab_size": 152064, "tie_word_embeddings": False,
        },
    },
}  # fmt: skip
# Tokens of a row, and of these its frames': pairs of 420 x 364 pixels, 195 tokens each. The rest
# are words, of which the answer's are learned.
ROWS = {1024: 4 * 195, 4096: 20 * 195}
ANSWER_TOKENS = 64
_PATCHES_PER_TOKEN = 4
# name, what is made, whether activations are computed twice
KINDS = (
    ("LoRA", "lora", False),
    ("LoRA, checkpointing", "lora", True),
    ("QLoRA, checkpointing", "qlora", True),
    ("full, checkpointing", "full", True),
)
RECIPES = {"lora": Recipe(), "qlora": Recipe(qlora=True), "full": Recipe(full=True)}


@dataclass(frozen=True)
class Line:
    """GiB of one training, by what they are for."""

    model: str
    kind: str
    tokens: int
    weights: float
    gradients_and_optimizer: float
    activations: float
    total: float


def lines() -> Iterator[Line]:
    """bf16, one row at a time, rank 16 with dropout, the vision tower frozen."""
    for model, config in MODELS.items():
        with tempfile.TemporaryDirectory() as folder:
            told = {"model_type": "qwen2_vl"} | config
            Path(folder, "config.json").write_text(json.dumps(told), encoding="utf-8")
            counted = {made: sketch(Path(folder), recipe) for made, recipe in RECIPES.items()}
        for kind, made, checkpointing in KINDS:
            full = RECIPES[made].full
            training = Training(
                weight_bytes=4.0 if full else 2.0,
                in_4_bits=counted[made].in_4_bits,
                rank=0 if full else Recipe().rank,
                dropout=Recipe().dropout > 0,
                checkpointing=checkpointing,
            )
            for tokens in ROWS:
                found = estimate(
                    shape_of(counted[made].config),
                    counted[made].parameters,
                    _plan(tokens),
                    training,
                )
                yield Line(
                    model,
                    kind,
                    tokens,
                    weights=found.weights / 2**30,
                    gradients_and_optimizer=(found.gradients + found.optimizer) / 2**30,
                    activations=(found.activations + found.logits) / 2**30,
                    total=found.total / 2**30,
                )


def _plan(tokens: int) -> Plan:
    seen = ROWS[tokens]
    measure = Measure(tokens, ANSWER_TOKENS, seen, seen * _PATCHES_PER_TOKEN)
    one = Planned(Row((), Origin("", 0)), Look(), measure, 2, 420 * 364)
    return Plan(Look(), Budget(tokens), (one,), ())


def table() -> str:
    """As Markdown."""
    head = ["model", "training", "tokens of a row", "weights", "gradients, AdamW", "activations",
            "in all"]  # fmt: skip
    rows = [
        [one.model, one.kind, f"{one.tokens:,}", f"{one.weights:.1f}",
         f"{one.gradients_and_optimizer:.1f}", f"{one.activations:.1f}", f"{one.total:.0f}"]
        for one in lines()
    ]  # fmt: skip
    return "".join(
        f"| {' | '.join(row)} |\n" for row in [head, ["---", "---", *["---:"] * 5], *rows]
    )


if __name__ == "__main__":
    print(table(), end="")
