"""`vidqa.json` in the folder of a whole model that vidqa trained or merged: what it was made of.

    write(folder, ModelCard("Qwen/Qwen2-VL-2B-Instruct", look={"max_frames": 16}))
    look_of("models/birds")         {"max_frames": 16}; {} for any other model

An adapter says the same of itself in its `adapter.json`. Nothing here loads a model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vidqa.adapters import DataFile, checked_look, read_json
from vidqa.errors import ModelError
from vidqa.whole_files import write_whole

CARD = "vidqa.json"


@dataclass(frozen=True)
class ModelCard:
    """`adapter` is the name of the one that was merged, empty for a model that was trained whole.

    All others are as in `AdapterCard`.
    """

    base_model: str
    base_digest: str = ""
    base_revision: str = ""
    adapter: str = ""
    look: Mapping[str, Any] = field(default_factory=dict)
    box_family: str = ""
    data: tuple[DataFile, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    created: str = ""


def write(folder: Path, card: ModelCard) -> Path:
    """Writes `vidqa.json`, whole or not at all; returns its path."""
    path = folder / CARD
    write_whole(path, f"{json.dumps(asdict(card), indent=2)}\n".encode())
    return path


def look_of(model: str) -> dict[str, Any]:
    """How a model wants to be shown videos; empty where no card in its folder says.

    Raises ModelError for a card that is damaged.
    """
    path = Path(model).expanduser() / CARD
    if not path.is_file():
        return {}
    look = read_json(path).get("look", {})
    if not isinstance(look, dict):
        raise ModelError(f"{path}: its look is {look!r}, no mapping; remove it to do without")
    return checked_look(path, look)
