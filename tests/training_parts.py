"""Encoded rows made of numbers, for tests of training: no video, no tokenizer.

    python tests/training_parts.py OUTPUT '{"max_steps": 6}' --kill-at 3

trains tiny-qwen2-vl on them, in a process that a test may kill, or in one of several processes.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from finetune.fit import Fitted, fit
from finetune.model import load_base, prepare
from finetune.recipe import Recipe

TINY = Path(__file__).resolve().parent.parent / "vidqa" / "demo" / "models" / "tiny-qwen2-vl"
PAD = 609
GRID = (2, 12, 16)  # two pairs of frames of 84 x 112: 24 visual tokens
VIDEO, VISION_START, VISION_END = 615, 611, 612


class StandIn:
    """Rows with a video of noise; their answers are nearly the same, so they are learned.

    `question_lengths` are taken in turn, so that batches need padding.
    """

    def __init__(
        self, count: int, first: int = 0, question_lengths: tuple[int, ...] = (20, 26, 23)
    ) -> None:
        self.count, self.first, self.question_lengths = count, first, question_lengths
        self.asked: list[int] = []

    @property
    def lengths(self) -> list[int]:
        """Tokens of each row."""
        return [len(self[at]["input_ids"]) for at in range(self.count)]

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, at: int) -> dict[str, Tensor]:
        if not 0 <= at < self.count:
            raise IndexError(at)
        self.asked.append(at)
        draw = torch.Generator().manual_seed(self.first + at)
        question = torch.randint(
            0, 600, (self.question_lengths[at % len(self.question_lengths)],), generator=draw
        )
        visual = torch.full((GRID[0] * GRID[1] * GRID[2] // 16,), VIDEO)
        start, end = torch.tensor([VISION_START]), torch.tensor([VISION_END])
        # Of two to five tokens: what is counted per row, not per token, shows.
        answer = torch.tensor([40 + at % 2, 50, 60, 60, 608][at * 7 % 4 :])
        ids = torch.cat([start, visual, end, question, answer])
        labels = torch.full_like(ids, -100)
        labels[-len(answer) :] = answer
        patches = GRID[0] * GRID[1] * GRID[2]
        return {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "labels": labels,
            "mm_token_type_ids": (ids == VIDEO).long() * 2,
            "pixel_values_videos": torch.randn(patches, 3 * 2 * 7 * 7, generator=draw),
            "video_grid_thw": torch.tensor([GRID]),
        }


QUICK: dict[str, Any] = {
    "max_steps": 6,
    "batch": 2,
    "accumulation": 2,
    "learning_rate": 3e-3,
    "eval_steps": 2,
    "patience": 0,
}


def new_model(recipe: Recipe) -> Any:
    from transformers import set_seed

    set_seed(recipe.seed)
    return prepare(load_base(TINY, recipe), recipe)


def run(
    output: Path, tell: Callable[[dict[str, Any]], None] = lambda line: None, **changes: Any
) -> Fitted:
    """A training of some steps on 12 rows, 3 held out; `rows` are others than 12."""
    rows, held_out = StandIn(changes.pop("rows", 12)), StandIn(3, first=1000)
    recipe = Recipe(**QUICK | changes)
    return fit(new_model(recipe), rows, rows.lengths, held_out, PAD, recipe, output, tell)


def free_port() -> str:
    """A port by which processes of one training may find each other."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def losses(output: Path) -> list[tuple[int, float]]:
    """(step, training loss) of a log."""
    lines = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"]) for line in lines if "loss" in line]


def main(output: str, changes: str, flag: str = "", step: str = "0") -> None:
    torch.set_num_threads(1)
    wanted = {"--kill-at": signal.SIGKILL, "--interrupt-at": signal.SIGINT}.get(flag)

    def tell(line: dict[str, Any]) -> None:
        if wanted and "loss" in line and line["step"] == int(step):
            os.kill(os.getpid(), wanted)

    fitted = run(Path(output), tell, **json.loads(changes))
    sys.stdout.write(json.dumps({"step": fitted.step, "stopped": fitted.stopped}) + "\n")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    main(*sys.argv[1:])
