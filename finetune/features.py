"""What a frozen vision tower saw, kept: it says the same of the same frames in every epoch.

    room = Room(2 << 30)
    rows, held_out = Seen(dataset, model, room), Seen(others, model, room)

A row is encoded and looked at when it is first asked for; later it costs nothing. In training
tiny-qwen2-vl, whose tower is most of it, that is most of the time. A row for which there is no
room left is done anew each time. Rows about the same frames share what was seen.

Not for towers that are trained, nor for weights that are spread over processes (FSDP, ZeRO-3).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from finetune.dataset import Item

FEATURES = "video_features"
PIXELS, GRID = "pixel_values_videos", "video_grid_thw"
# Families whose forward pass takes the tower's output in place of pixels. Qwen3-VL has more than
# one output of it and is left alone.
_TAKES_FEATURES = frozenset({"qwen2_vl", "qwen2_5_vl"})


class Rows(Protocol):
    """Encoded rows, such as `RowDataset`."""

    def __len__(self) -> int: ...

    def __getitem__(self, at: int, /) -> Item: ...


def takes_features(model: Any) -> bool:
    return str(model.config.model_type) in _TAKES_FEATURES


class Room:
    """Memory that several `Seen` may fill together."""

    def __init__(self, limit_bytes: float) -> None:
        self._free = limit_bytes

    def take(self, size: int) -> bool:
        """Whether so many bytes may be kept; they are taken then."""
        fits = size <= self._free
        self._free -= size * fits
        return fits


class Seen:
    """Rows whose pixels have become the visual tokens' embeddings, (tokens, width)."""

    def __init__(self, rows: Rows, model: Any, room: Room) -> None:
        self._rows = rows
        self._model = model
        self._room = room
        self._items: dict[int, Item] = {}
        self._features: dict[bytes, Tensor] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, at: int) -> Item:
        if at in self._items:
            return dict(self._items[at])
        item = dict(self._rows[at])
        pixels = item.pop(PIXELS, None)
        keeps = True
        if pixels is not None:
            item[FEATURES], keeps = self._look(pixels, item[GRID])
        size = _bytes(one for name, one in item.items() if name != FEATURES)
        # A row holds on to its features: one without the other would be memory nobody counts.
        if keeps and self._room.take(size):
            self._items[at] = item
        return dict(item)

    def _look(self, pixels: Tensor, grid: Tensor) -> tuple[Tensor, bool]:
        """What the tower sees, and whether that is kept."""
        name = _digest(pixels, grid)
        if name in self._features:
            return self._features[name], True
        seen = see(self._model, pixels, grid).cpu()
        keeps = self._room.take(_bytes([seen]))
        if keeps:
            self._features[name] = seen
        return seen, keeps


@torch.no_grad()
def see(model: Any, pixels: Tensor, grid: Tensor) -> Tensor:
    """The embeddings of all visual tokens of some videos, (tokens, width)."""
    visual = next(one for name, one in model.named_modules() if name.endswith(".visual"))
    weight = next(visual.parameters())
    seen = visual(pixels.to(weight.device, weight.dtype), grid_thw=grid.to(weight.device))
    features = seen.pooler_output if hasattr(seen, "pooler_output") else seen
    assert isinstance(features, Tensor)
    return features


def with_features(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """A batch of such rows as the model's forward pass takes it."""
    given = dict(inputs)
    features = given.pop(FEATURES, None)
    if features is not None:
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        seen = BaseModelOutputWithPooling(pooler_output=(features,))  # type: ignore[arg-type]
        given["mm_encoder_outputs"] = {"video": seen}
    return given


def _digest(pixels: Tensor, grid: Tensor) -> bytes:
    digest = hashlib.blake2b(grid.numpy().tobytes(), digest_size=16)
    digest.update(pixels.contiguous().numpy().tobytes())
    return digest.digest()


def _bytes(values: Iterable[Tensor]) -> int:
    return sum(one.numel() * one.element_size() for one in values)
