"""Which process of a training this is, by what `accelerate launch` and torchrun say."""

from __future__ import annotations

import os


def process_count() -> int:
    """Processes of this training."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def process_number() -> int:
    """Of this process among them, from 0."""
    return int(os.environ.get("RANK", "0"))


def is_first_process() -> bool:
    return process_number() == 0
