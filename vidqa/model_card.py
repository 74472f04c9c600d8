"""`vidqa.json` in the folder of a whole model that vidqa trained or merged: what it was made of.

    write(folder, ModelCard(base_model="Qwen/Qwen2-VL-2B-Instruct", look=look))
    look_of("models/birds")     {"max_frames": 16}; {} for any other model

An adapter says the same of itself in its `adapter.json`. Nothing here loads a model.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vidqa.adapters import Card, checked_look, read_json, write_card
from vidqa.errors import ModelError

CARD = "vidqa.json"


@dataclass(frozen=True, kw_only=True)
class ModelCard(Card):
    """`adapter` is the name of the merged one, empty for a model that was trained whole.

    `adapter_digest` tells it from itself retrained; cards of older merges have none.
    """

    adapter: str = ""
    adapter_digest: str = ""


def write(folder: Path, card: ModelCard) -> Path:
    """Writes `vidqa.json`, whole or not at all; returns its path."""
    return write_card(folder / CARD, card)


def told_by(folder: Path) -> dict[str, Any]:
    """What the card in a folder says, as JSON; empty where there is none. Raises ModelError."""
    path = folder / CARD
    return read_json(path) if path.is_file() else {}


def look_of(model: str) -> dict[str, Any]:
    """How a model wants to be shown videos; empty where no card in its folder says.

    Raises ModelError for a card that is damaged.
    """
    folder = Path(model).expanduser()
    path, look = folder / CARD, told_by(folder).get("look", {})
    if not isinstance(look, dict):
        raise ModelError(f"{path}: its look is {look!r}, no mapping; remove it to do without")
    return checked_look(path, look)
