"""What there is to see: drawn moments as pixels, what each visual token shows, and a reader of it.

Pictures go through the same steps as a library's: drawn large, shrunk, through JPEG, then cut into
patches as Qwen2-VL's processor cuts them. Knows nothing of questions.
"""

from __future__ import annotations

import io
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor, nn
from torch.nn import functional

from vidqa.demo import world
from vidqa.demo.draw import box_of, draw_backdrop, draw_things, outline_of
from vidqa.demo.tiny_vlm import CELL_COLUMNS, CELL_ROWS, FRAME_HEIGHT, FRAME_WIDTH, MERGE, PATCH

CELLS = CELL_COLUMNS * CELL_ROWS
PAIRS = 2  # of frames, in a moment

GROUPS: dict[str, tuple[str, ...]] = {
    "colour": world.COLOURS,
    "kind": world.KINDS,
    "motion": tuple(motion.split()[-1] for motion in world.MOTIONS),
    "background": world.BACKGROUNDS,
    "count": world.NUMBERS,
    "word": world.WORDS,
}
# Processor's constants of CLIP, which Qwen2-VL's processor uses.
MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)

Cells = dict[str, Tensor]
"""What each visual token shows: per group (moments * pairs, cells), -1 for nothing of it."""


# ---------------------------------------------------------------- pictures


def draw_frames(
    rng: random.Random, scene: world.WorldScene, times: Sequence[float]
) -> NDArray[np.uint8]:
    """uint8 (N, H, W, 3): frames as a library keeps them, drawn large, shrunk, through JPEG."""
    backdrop = draw_backdrop(scene, 2 * FRAME_WIDTH, 2 * FRAME_HEIGHT)
    quality = rng.randrange(75, 95)
    frames = []
    for progress in times:
        image = draw_things(backdrop, scene.things, progress).reduce(2)
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality)
        frames.append(np.asarray(Image.open(buffer)))
    return np.stack(frames)


def sample_times(rng: random.Random, count: int = 2 * PAIRS) -> list[float]:
    """Progress of `count` evenly chosen frames, as sampling at an unknown phase gives them."""
    first, last = rng.uniform(0.0, 0.12), rng.uniform(0.8, 1.0)
    step = (last - first) / (count - 1)
    return [
        min(1.0, max(0.0, first + step * at + rng.uniform(-0.25, 0.25) * step))
        for at in range(count)
    ]


def to_patches(frames: Tensor) -> Tensor:
    """uint8 (N, 2 * pairs, H, W, 3) -> float32 (N * pairs * patches, 294), as processed."""
    n, count, height, width, _ = frames.shape
    pixels = (frames.permute(0, 1, 4, 2, 3).float() / 255 - MEAN) / STD
    rows, columns = height // (MERGE * PATCH), width // (MERGE * PATCH)
    pixels = pixels.reshape(n, count // 2, 2, 3, rows, MERGE, PATCH, columns, MERGE, PATCH)
    return pixels.permute(0, 1, 4, 7, 5, 8, 3, 2, 6, 9).reshape(-1, 3 * 2 * PATCH * PATCH)


def encode(visual: Any, patches: Tensor) -> tuple[Tensor, Tensor]:
    """Visual tokens (N, cells, hidden) of N pairs of frames, and the patches they are merged from.

    The same arithmetic as the tower's own forward, which loops over the pairs one by one: all
    pairs have one size here, so attention runs over them as a batch.
    """
    per_pair = MERGE**2 * CELLS
    count = len(patches) // per_pair
    grid = torch.tensor([[1, MERGE * CELL_ROWS, MERGE * CELL_COLUMNS]])
    # The convolution covers its input in one step, so it is a matrix product, and quicker as one.
    kernel = visual.patch_embed.proj.weight
    hidden = patches @ kernel.flatten(1).T
    from transformers.models.qwen2_vl import modeling_qwen2_vl

    qwen: Any = modeling_qwen2_vl

    ids = qwen.get_vision_position_ids(grid, MERGE, kwargs={})
    cos, sin = visual.rotary_pos_emb(hidden[:per_pair], ids)
    cos, sin = cos.repeat(count, 1), sin.repeat(count, 1)
    for block in visual.blocks:
        attention = block.attn
        qkv = attention.qkv(block.norm1(hidden)).view(len(hidden), 3, attention.num_heads, -1)
        query, key = qwen.apply_rotary_pos_emb_vision(qkv[:, 0], qkv[:, 1], cos, sin)
        query, key, value = (
            part.reshape(count, per_pair, attention.num_heads, -1).transpose(1, 2)
            for part in (query, key, qkv[:, 2])
        )
        mixed = functional.scaled_dot_product_attention(query, key, value)
        hidden = hidden + attention.proj(mixed.transpose(1, 2).reshape(len(hidden), -1))
        hidden = hidden + block.mlp(block.norm2(hidden))
    return visual.merger(hidden).view(count, CELLS, -1), hidden.view(count, per_pair, -1)


# ---------------------------------------------------------------- what a visual token shows


def cell_labels(scene: world.WorldScene, progress: float) -> dict[str, NDArray[np.int64]]:
    """For each cell of the grid, the number of the word in its group, or -1 for none."""
    labels = {group: np.full(CELLS, -1, np.int64) for group in GROUPS}
    labels["background"][:] = world.BACKGROUNDS.index(scene.background)
    labels["count"][:] = len(scene.things) - 1
    if scene.word:
        labels["word"][-CELL_COLUMNS:] = world.WORDS.index(scene.word)
    covered = np.zeros(CELLS)
    for thing in scene.things:
        shares = _cell_shares(box_of(thing, progress))
        mine = (shares > 0.15 * shares.max()) & (shares > covered)
        covered[mine] = shares[mine]
        labels["colour"][mine] = world.COLOURS.index(thing.colour)
        labels["kind"][mine] = world.KINDS.index(thing.kind)
        labels["motion"][mine] = world.MOTIONS.index(thing.motion)
    return labels


def stacked(labels: Sequence[dict[str, NDArray[np.int64]]]) -> dict[str, Tensor]:
    """Labels of many pictures, per group one tensor with a row for each."""
    return {
        group: torch.from_numpy(np.stack([one[group] for one in labels])) for group in labels[0]
    }


def _cell_shares(box: tuple[float, float, float, float]) -> NDArray[np.float64]:
    """How much of a box lies in each cell, row by row."""
    left, top, right, bottom = box
    columns = np.arange(CELL_COLUMNS) / CELL_COLUMNS
    rows = np.arange(CELL_ROWS) / CELL_ROWS
    wide = np.clip(np.minimum(right, columns + 1 / CELL_COLUMNS) - np.maximum(left, columns), 0, 1)
    high = np.clip(np.minimum(bottom, rows + 1 / CELL_ROWS) - np.maximum(top, rows), 0, 1)
    return np.outer(high, wide).ravel()


# Numbers of a patch's thing: 0 for none, else one for each colour of each kind.
PATCH_CLASSES = {"colour": len(world.COLOURS) + 1, "kind": len(world.KINDS) + 1}


def patch_labels(scene: world.WorldScene, progress: float) -> dict[str, NDArray[np.int64]]:
    """For each patch, in the processor's order, colour and kind of the thing there; 0 for none."""
    rows, columns, fine = MERGE * CELL_ROWS, MERGE * CELL_COLUMNS, 4
    mask = Image.new("L", (columns * fine, rows * fine))
    draw = ImageDraw.Draw(mask)
    for number, thing in enumerate(scene.things, 1):
        points = outline_of(thing, progress)
        draw.polygon([(x * columns * fine, y * rows * fine) for x, y in points], fill=number)
    middle = np.asarray(mask)[fine // 2 :: fine, fine // 2 :: fine]
    blocks = middle.reshape(CELL_ROWS, MERGE, CELL_COLUMNS, MERGE).transpose(0, 2, 1, 3).ravel()
    colours = [0, *(world.COLOURS.index(thing.colour) + 1 for thing in scene.things)]
    kinds = [0, *(world.KINDS.index(thing.kind) + 1 for thing in scene.things)]
    return {"colour": np.array(colours)[blocks], "kind": np.array(kinds)[blocks]}


class Words:
    """Token ids of the words of each group, as they stand behind a space."""

    def __init__(self, tokenizer: Any) -> None:
        self.ids: dict[str, Tensor] = {}
        for group, words in GROUPS.items():
            encoded = [tokenizer.encode(f" {word}") for word in words]
            assert all(len(ids) == 1 for ids in encoded), f"{group}: a word is not one token"
            self.ids[group] = torch.tensor([ids[0] for ids in encoded])


# ---------------------------------------------------------------- stage: see


class Reader(nn.Module):
    """Reads visual tokens with the word embeddings; has one vector of its own per group: nothing.

    A second, plain head tells the thing over each patch. Both are thrown away after training.
    """

    SHARPNESS = 10.0

    def __init__(self, hidden: int, patch_width: int) -> None:
        super().__init__()
        self.nothing = nn.Parameter(torch.randn(len(GROUPS), hidden) / math.sqrt(hidden))
        self.patch_heads = nn.ModuleDict(
            {group: nn.Linear(patch_width, classes) for group, classes in PATCH_CLASSES.items()}
        )

    def logits(self, tokens: Tensor, embedding: Tensor, words: Words) -> dict[str, Tensor]:
        return {
            group: self.SHARPNESS
            * tokens
            @ torch.cat([self.nothing[at : at + 1], embedding[words.ids[group]]]).T
            for at, group in enumerate(GROUPS)
        }

    def patch_loss(self, patches: Tensor, labels: dict[str, Tensor]) -> Tensor:
        """Mean cross entropy of what each patch is covered by: the nearest guide to shapes."""
        losses = [
            functional.cross_entropy(
                self.patch_heads[group](patches).flatten(0, 1), table.flatten()
            )
            for group, table in labels.items()
        ]
        return torch.stack(losses).sum()


# Shapes are learned last, so they weigh more.
SEE_WEIGHTS = {"kind": 2.0}


def see_loss(
    logits: dict[str, Tensor], labels: dict[str, Tensor]
) -> tuple[Tensor, dict[str, float]]:
    """Mean cross entropy over the groups; accuracy over cells that show something of the group."""
    losses, accuracy = [], {}
    for group, scores in logits.items():
        target = labels[group] + 1
        weight = torch.where(target > 0, 1.0, 0.3)
        each = functional.cross_entropy(scores.flatten(0, 1), target.flatten(), reduction="none")
        losses.append(SEE_WEIGHTS.get(group, 1.0) * (each * weight.flatten()).sum() / weight.sum())
        shown = target > 0
        accuracy[group] = (scores.argmax(-1) == target)[shown].float().mean().item()
    return torch.stack(losses).sum(), accuracy


@dataclass(frozen=True)
class Sight:
    """Moments as pixels, and what is to be seen in them."""

    frames: Tensor  # uint8 (moments, 2 * pairs, H, W, 3)
    cells: Cells
    patches: dict[str, Tensor]  # (moments * pairs, patches)


def sample_sight(
    rng: random.Random, scenes: Sequence[world.WorldScene], pairs: int = PAIRS
) -> Sight:
    """The scenes at `pairs` pairs of frames, chosen as `ask` would choose them."""
    times = []
    for _ in scenes:
        first = 2 * rng.randint(0, PAIRS - pairs)
        times.append(sample_times(rng)[first : first + 2 * pairs])
    frames = [draw_frames(rng, *chosen) for chosen in zip(scenes, times, strict=True)]
    middles = [
        (scene, (row[2 * pair] + row[2 * pair + 1]) / 2)
        for scene, row in zip(scenes, times, strict=True)
        for pair in range(pairs)
    ]
    return Sight(
        frames=torch.from_numpy(np.stack(frames)),
        cells=stacked([cell_labels(*middle) for middle in middles]),
        patches=stacked([patch_labels(*middle) for middle in middles]),
    )


def made_up_tokens(rng: random.Random, cells: Cells, embedding: Tensor, words: Words) -> Tensor:
    """Visual tokens (all cells of all moments, hidden) made of the words for what they show."""
    generator = torch.Generator().manual_seed(rng.randrange(1 << 31))
    total = torch.zeros(cells["kind"].numel(), embedding.shape[1])
    for group, ids in words.ids.items():
        numbers = cells[group].flatten()
        clear = torch.rand(numbers.shape, generator=generator)
        strength = 0.5 + 0.6 * torch.rand(numbers.shape, generator=generator)
        there = (numbers >= 0) & (clear > 0.02)
        total[there] += strength[there, None] * embedding[ids[numbers[there]]]
    noise = torch.randn(total.shape, generator=generator) * 0.15 / math.sqrt(total.shape[1]) * 2
    return total + noise
