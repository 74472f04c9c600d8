"""The recipe: every number that decides how a model is trained, with its bounds and its help.

    flag  >  recipe file (--config FILE)  >  default

A field without a mark of its own is the same for LoRA, QLoRA and full training. Reasons and sources
of the defaults are in `configs/finetune-lora.yaml`. A recipe file may also hold settings of vidqa,
such as `model`; what both know (`max_frames`, `max_pixels`, `sample_fps`) is meant for both. What
the recipe does not say: which model, which data and where the output goes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import Field, asdict, dataclass
from pathlib import Path
from typing import Any

from finetune.processes import process_count
from finetune.shelf import DEFAULT_FOLDER, DEFAULT_GIB
from vidqa.config import SETTINGS, read_config
from vidqa.engine_options import RANKS
from vidqa.errors import UsageError
from vidqa.fields import check_bounds, convert, flag_in, setting, table_of

LANGUAGE_TARGETS = r".*language_model.*\.(q|k|v|o|gate|up|down)_proj"
# The blocks of Qwen2-VL's (qkv, proj, fc1, fc2), Qwen2.5-VL's (gate, up, down) and Qwen3-VL's
# (linear_fc1, linear_fc2) towers, and what merges their patches. The first layer is a convolution
# and stays as it is.
VISION_TARGETS = (
    r".*visual\.(blocks\.\d+\.(attn\.(qkv|proj)"
    r"|mlp\.((linear_)?fc[12]|(gate|up|down)_proj))"
    r"|(merger|deepstack_merger_list\.\d+)\.(mlp\.[02]|linear_fc[12]))"
)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to train; see the help of each field."""

    # --- what is trained ---
    full: bool = setting(False, "Train all weights of the language layers, no adapter.")
    qlora: bool = setting(
        False, "LoRA over a base model in 4 bits (nf4); needs an NVIDIA card and bitsandbytes."
    )
    rank: int = setting(16, "Rank of the adapter.", choices=RANKS)
    alpha: float = setting(
        32.0, "The adapter's weight is alpha / rank.", minimum=0.01, maximum=4096.0
    )
    dropout: float = setting(0.05, "Dropout before the adapter.", minimum=0.0, maximum=0.9)
    targets: str = setting(
        LANGUAGE_TARGETS, "Language layers that get an adapter: a regular expression."
    )
    dora: bool = setting(False, "DoRA; refused, as vLLM cannot serve it.")
    train_vision: bool = setting(False, "Train the vision tower and its merger as well.")

    # --- steps ---
    learning_rate: float = setting(
        1e-4,
        "Highest learning rate of the language layers.",
        minimum=1e-8,
        maximum=1.0,
        flag="--lr",
    )
    vision_learning_rate: float = setting(
        1e-5,
        "Highest learning rate of the vision tower.",
        minimum=1e-8,
        maximum=1.0,
        flag="--vision-lr",
    )
    merger_learning_rate: float = setting(
        1e-5,
        "Highest learning rate of the merger between them.",
        minimum=1e-8,
        maximum=1.0,
        flag="--merger-lr",
    )
    epochs: float = setting(3.0, "How often each row is seen.", minimum=0.01, maximum=1000.0)
    max_steps: int = setting(
        0, "Steps of the optimizer in place of epochs; 0: epochs.", minimum=0, maximum=10_000_000
    )
    batch: int = setting(1, "Rows computed at once, per process.", minimum=1, maximum=1024)
    accumulation: int = setting(
        16, "Batches whose gradients are added up for one step.", minimum=1, maximum=4096
    )
    warmup: float = setting(
        0.03, "Share of the steps in which the rate rises.", minimum=0.0, maximum=0.5
    )
    weight_decay: float = setting(0.0, "AdamW's weight decay.", minimum=0.0, maximum=1.0)
    max_grad_norm: float = setting(
        1.0, "Longer gradients are cut to this length; 0: never.", minimum=0.0, maximum=1000.0
    )
    seed: int = setting(0, "Same seed, same run.", minimum=0, maximum=2**31 - 1)

    # --- what is held out ---
    eval_fraction: float = setting(
        0.1, "Share of the videos held out, without --eval-data.", minimum=0.0, maximum=0.9
    )
    eval_steps: int = setting(
        0,
        "Steps from one evaluation and checkpoint to the next; 0: ten in a run.",
        minimum=0,
        maximum=1_000_000,
    )
    patience: int = setting(
        3, "Evaluations without a lower loss until it stops; 0: never.", minimum=0, maximum=100
    )

    # --- what the model is shown ---
    layout: str = setting(
        "auto",
        "How a row becomes a prompt: as ask words it, plain, or by what is in it.",
        choices=("auto", "ask", "plain"),
    )
    cite: bool = setting(True, "Answers about one moment cite it, as answers of ask do.")
    max_row_tokens: int = setting(
        4096, "Tokens of a row; frames are reduced until it fits.", minimum=128, maximum=131_072
    )
    max_frames: int = setting(
        16, "Frames shown of a row, in all.", minimum=2, maximum=768, flag="--frames"
    )
    frames_per_moment: int = setting(
        768, "Frames shown of one video of a row, at most.", minimum=2, maximum=768
    )
    max_pixels: int = setting(
        420 * 364, "Pixels of one frame, at most.", minimum=56 * 56, maximum=1280 * 28 * 28
    )
    sample_fps: float = setting(
        1.0, "Frames taken per second of video.", minimum=0.01, maximum=120.0, flag="--fps"
    )

    # --- the machine ---
    precision: str = setting(
        "auto",
        "Numbers to compute with; auto: bf16 on a card that has it, else fp32.",
        choices=("auto", "bf16", "fp32"),
    )
    attention: str = setting(
        "auto",
        "Attention kernel; auto: flash on a card where it is installed, else sdpa.",
        choices=("auto", "sdpa", "flash", "eager"),
    )
    gradient_checkpointing: str = setting(
        "auto",
        "Compute activations twice in place of keeping them; auto: on a card.",
        choices=("auto", "always", "never"),
    )
    loader_workers: int = setting(
        0, "Processes that prepare batches; 0: the training itself.", minimum=0, maximum=64
    )
    cache: Path = setting(DEFAULT_FOLDER.expanduser(), "Folder of the frames decoded.", kind=Path)
    cache_gib: float = setting(
        DEFAULT_GIB, "Size of that folder, at most; 0: none.", minimum=0.0, maximum=100_000.0
    )
    feature_gib: float = setting(
        2.0,
        "Memory for what a frozen vision tower saw, computed once; 0: each time anew.",
        minimum=0.0,
        maximum=10_000.0,
    )

    def __post_init__(self) -> None:
        for name, one in RECIPE.items():
            check_bounds(one, getattr(self, name), name)
        self._check()

    def _check(self) -> None:
        if self.dora:
            raise UsageError(
                "dora: vLLM cannot serve DoRA adapters; leave it out, and raise rank if LoRA "
                "learns too little"
            )
        if self.full and self.qlora:
            raise UsageError(
                "full and qlora exclude each other, as weights in 4 bits cannot be trained; "
                "choose one"
            )
        try:
            re.compile(self.targets)
        except re.error as error:
            raise UsageError(
                f"targets: {self.targets!r} is not a regular expression ({error}); "
                f"the default is {LANGUAGE_TARGETS}"
            ) from None

    @classmethod
    def load(
        cls,
        config: str | None = None,
        flags: Mapping[str, object] | None = None,
        base: Mapping[str, object] | None = None,
    ) -> Recipe:
        """The recipe of one run; `config` is a file, or a profile for what it shares with vidqa.

        Flags whose value is None were not given. `base` is in place of the defaults, such as the
        recipe of a run that goes on. Raises ConfigError as `Settings.load` does.
        """
        begun = {name: convert(RECIPE, name, value, name) for name, value in (base or {}).items()}
        return cls(**begun | (_read_file(config) if config else {}) | chosen(flags or {}))

    @property
    def kind(self) -> str:
        """For people: what is made, "lora", "qlora" or "full"."""
        return "full" if self.full else "qlora" if self.qlora else "lora"

    def public(self) -> dict[str, object]:
        """Every field, for files that people read."""
        return {
            name: str(value) if isinstance(value, Path) else value
            for name, value in asdict(self).items()
        }


RECIPE: dict[str, Field[Any]] = table_of(Recipe)


def recipe_flag(name: str) -> str:
    return flag_in(RECIPE, name)


def chosen(flags: Mapping[str, object]) -> dict[str, Any]:
    """The flags that were given, in their fields' types."""
    return {
        name: convert(RECIPE, name, value, recipe_flag(name))
        for name, value in flags.items()
        if value is not None
    }


def _read_file(config: str) -> dict[str, Any]:
    path, content = read_config(config)
    known = {**SETTINGS, **RECIPE}
    for name in content:
        if name not in known:
            convert(known, name, None, f"{path}: {name}")
    return {
        name: convert(RECIPE, name, value, f"{path}: {name}")
        for name, value in content.items()
        if name in RECIPE
    }


def rows_per_step(recipe: Recipe) -> int:
    """Those of all processes of this training."""
    return recipe.batch * recipe.accumulation * process_count()
