"""Trains tiny-qwen2-vl on films of training seeds: `python -m vidqa.demo.train_vlm --work DIR`.

Three stages, each resumable from its last checkpoint:

    see      the vision tower alone: each visual token must be readable, with the word embeddings
             as the classifier, as the words for what it shows (colour, kind, motion, place ...)
    read     the language layers alone: visual tokens are made from those same words, so questions
             are learned without drawing or seeing a single picture
    answer   both together, on drawn pictures

`see` and `read` share nothing but the word embeddings, which they keep fixed, so they can run side
by side. In `read` and `answer` several questions follow one prefix of moments; each attends to the
prefix and itself only, as if it had been asked alone.

Why the stages: trained together from nothing, the model learns to see quickly and to look up
facts very late. Apart, the second takes no pictures and both have dense targets.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor, nn
from torch.nn import functional

from vidqa.compat import declare_torchvision_operators
from vidqa.demo import questions, tiny_vlm, world
from vidqa.demo.curves import draw_curves
from vidqa.demo.draw import box_of, draw_backdrop, draw_things, outline_of
from vidqa.demo.tiny_vlm import CELL_COLUMNS, CELL_ROWS, FRAME_HEIGHT, FRAME_WIDTH, MERGE, PATCH
from vidqa.prompt import SYSTEM, subtitle_line, time_range
from vidqa.types import TextSpan

CELLS = CELL_COLUMNS * CELL_ROWS
PAIRS = 2  # of frames, in a moment
IGNORE = -100

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
    cells: dict[str, Tensor]  # (moments * pairs, cells)
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
    cells = [cell_labels(*middle) for middle in middles]
    patches = [patch_labels(*middle) for middle in middles]
    return Sight(
        frames=torch.from_numpy(np.stack(frames)),
        cells={g: torch.from_numpy(np.stack([one[g] for one in cells])) for g in GROUPS},
        patches={g: torch.from_numpy(np.stack([one[g] for one in patches])) for g in PATCH_CLASSES},
    )


# ---------------------------------------------------------------- contexts and questions


@dataclass(frozen=True)
class Context:
    """Moments as `ask` shows them, with questions about them; `scenes` has None between films."""

    scenes: list[world.WorldScene | None]
    labels: list[str]
    questions: list[questions.Question]

    @property
    def shown(self) -> list[world.WorldScene]:
        return [scene for scene in self.scenes if scene is not None]

    def number(self, at: int) -> int:
        """The number in the prompt of the scene at this place of `scenes`."""
        return sum(scene is not None for scene in self.scenes[: at + 1])


# Looking up one of many is the hard part, so its types are asked more often.
TYPE_WEIGHTS = {
    "colour": 3, "kind": 3, "motion": 3, "count": 1, "background": 2, "word": 1.5,
    "after": 2, "before": 2, "unanswerable": 2.5,
}  # fmt: skip


def sample_context(
    rng: random.Random, max_moments: int, question_count: int, plain: bool = False
) -> Context:
    """A film's stretch of one to three scenes and others like it, as a search would find them.

    `plain` questions name a thing with as few words as will do.
    """
    total = rng.randint(1, max_moments)
    films: list[list[world.WorldScene]] = []
    while sum(map(len, films)) < total:
        room = total - sum(map(len, films))
        if films and rng.random() < 0.6:
            films.append([near_copy(rng, rng.choice(films[0]))])
        else:
            film = world.sample_film(rng.randrange(world.FIRST_HELD_OUT_SEED), 3)
            films.append(list(film.scenes[: rng.randint(1, min(3, room))]))
    rng.shuffle(films)
    scenes: list[world.WorldScene | None] = []
    labels: list[str] = []
    for stretch in films:
        name, start = _file_name(rng), rng.uniform(0, 240) * (rng.random() < 0.8)
        for scene in stretch:
            end = start + scene.duration_seconds
            labels.append(f"{name} {time_range(start, end)} [{len(labels) + 1}]\n")
            start = end
        scenes += [*stretch, None]
    return Context(scenes, labels, _sample_questions(rng, scenes, question_count, plain))


def near_copy(rng: random.Random, scene: world.WorldScene) -> world.WorldScene:
    """Another scene that shares a thing's name, or the background, with this one."""
    other = world.sample_scene(rng)
    if rng.random() < 0.5:
        return replace(other, background=scene.background)
    thing = rng.choice(scene.things)
    mine = rng.randrange(len(other.things))
    kinds = [one.kind for at, one in enumerate(other.things) if at != mine]
    colours = [one.colour for at, one in enumerate(other.things) if at != mine]
    changed = other.things[mine]
    turns = changed.motion == "turning" and thing.kind in world.ROUND_KINDS
    if thing.kind not in kinds and not turns:
        changed = replace(changed, kind=thing.kind)
    if thing.colour not in colours:
        changed = replace(changed, colour=thing.colour)
    return replace(other, things=(*other.things[:mine], changed, *other.things[mine + 1 :]))


def _file_name(rng: random.Random) -> str:
    if rng.random() < 0.7:
        return f"film-{rng.randrange(10_000):04d}.mp4"
    letters = "abcdefghijklmnopqrstuvwxyz_- 0123456789"
    return "".join(rng.choice(letters) for _ in range(rng.randint(3, 10))).strip() + ".mp4"


def _sample_questions(
    rng: random.Random, scenes: list[world.WorldScene | None], count: int, plain: bool
) -> list[questions.Question]:
    places = [at for at, scene in enumerate(scenes) if scene is not None]
    found: list[questions.Question] = []
    attempts = 0
    while len(found) < count and attempts < 8 * count:
        attempts += 1
        (kind,) = rng.choices(list(TYPE_WEIGHTS), list(TYPE_WEIGHTS.values()))
        if kind == "unanswerable":
            found.append(questions.ask_in_vain(rng, scenes))
            continue
        prefer = _shortest if plain else rng.choice
        asked = questions.ask_about(rng, scenes, kind, rng.choice(places), prefer)
        if asked is not None and asked not in found:
            found.append(asked)
    return found


def _shortest(fitting: list[questions.Reference]) -> questions.Reference:
    return fitting[0]


@dataclass(frozen=True)
class Batch:
    """Contexts as tensors. `visual_at` are the flat places of visual tokens, in order."""

    input_ids: Tensor  # (B, L)
    position_ids: Tensor  # (3, B, L)
    mask: Tensor  # bool (B, 1, L, L), True where attention is allowed
    labels: Tensor  # (B, L), IGNORE where nothing is to be said
    question_of: Tensor  # (B, L), index into `asked` at answer tokens, else -1
    visual_at: Tensor
    number_of: Tensor  # for each visual token, the token id of its moment's number
    asked: list[questions.Question]


class Encoder:
    """Contexts -> token sequences, exactly as the chat template and the processor lay them out."""

    def __init__(self, tokenizer: Any, with_system: bool = True) -> None:
        self.tokenizer = tokenizer
        system = f"<|im_start|>system\n{SYSTEM}<|im_end|>\n" if with_system else ""
        self.head = self._ids(f"{system}<|im_start|>user\n")
        self.video_start = self._ids("<|vision_start|>")
        self.video_end = self._ids("<|vision_end|>")
        self.pad_token: int = tokenizer.convert_tokens_to_ids("<|video_pad|>")

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text))

    def prefix(self, context: Context) -> tuple[list[int], list[tuple[int, int, int]]]:
        """Token ids and (t, h, w) positions of the head and the moments."""
        ids = list(self.head)
        positions = [(at, at, at) for at in range(len(ids))]

        def say(tokens: list[int]) -> None:
            start = max(positions[-1]) + 1 if positions else 0
            ids.extend(tokens)
            positions.extend((start + at,) * 3 for at in range(len(tokens)))

        tail = ""
        for label, scene in zip(context.labels, context.shown, strict=True):
            say(self._ids(tail + label) + self.video_start)
            start = max(positions[-1]) + 1
            for pair in range(PAIRS):
                for cell in range(CELLS):
                    row, column = divmod(cell, CELL_COLUMNS)
                    ids.append(self.pad_token)
                    positions.append((start + pair, start + row, start + column))
            # The grid's longest side decides where the text goes on.
            side = max(PAIRS, CELL_ROWS, CELL_COLUMNS)
            ids.extend(self.video_end)
            positions.append((start + side,) * 3)
            texts = [TextSpan(0, 1, scene.subtitle)] if scene.subtitle else []
            tail = f"\n{subtitle_line(texts)}"
        say(self._ids(tail))
        return ids, positions

    def branch(self, context: Context, question: questions.Question) -> tuple[list[int], list[int]]:
        """Token ids of a question with its answer, and of the answer alone."""
        number = None if question.scene is None else context.number(question.scene)
        asked = self._ids(f"Question: {question.text}<|im_end|>\n<|im_start|>assistant\n")
        answer = self._ids(f"{tiny_vlm.answer_text(question, number)}<|im_end|>")
        return asked + answer, answer

    def batch(self, contexts: Sequence[Context]) -> Batch:
        rows = [self._row(context) for context in contexts]
        length = -(-max(len(row[0]) for row in rows) // 16) * 16
        size = len(rows)
        input_ids = torch.zeros(size, length, dtype=torch.long)
        positions = torch.zeros(3, size, length, dtype=torch.long)
        segment = torch.full((size, length), -1)
        labels = torch.full((size, length), IGNORE)
        question_of = torch.full((size, length), -1)
        asked: list[questions.Question] = []
        for at, (ids, places, segments, targets) in enumerate(rows):
            n = len(ids)
            input_ids[at, :n] = torch.tensor(ids)
            positions[:, at, :n] = torch.tensor(places).T
            segment[at, :n] = torch.tensor(segments)
            labels[at, :n] = torch.tensor(targets)
            said = labels[at, :n] != IGNORE
            question_of[at, :n][said] = segment[at, :n][said] - 1 + len(asked)
            asked += contexts[at].questions
        causal = torch.ones(length, length, dtype=torch.bool).tril()
        same = segment[:, :, None] == segment[:, None, :]
        mask = causal & (same | (segment[:, None, :] == 0))
        visual_at = (input_ids.flatten() == self.pad_token).nonzero().squeeze(1)
        numbers = [number for one in contexts for number in range(1, len(one.shown) + 1)]
        number_of = torch.tensor([self._ids(str(number))[0] for number in numbers])
        return Batch(
            input_ids, positions, mask[:, None], labels, question_of, visual_at,
            number_of.repeat_interleave(PAIRS * CELLS), asked,
        )  # fmt: skip

    def _row(
        self, context: Context
    ) -> tuple[list[int], list[tuple[int, int, int]], list[int], list[int]]:
        """Ids, positions, segments (0: prefix, n: question n) and targets (the next token)."""
        ids, places = self.prefix(context)
        segments, targets = [0] * len(ids), [IGNORE] * len(ids)
        start = max(places[-1]) + 1
        for number, question in enumerate(context.questions, 1):
            branch, answer = self.branch(context, question)
            ids += branch
            places += [(start + at,) * 3 for at in range(len(branch))]
            segments += [number] * len(branch)
            silent = len(branch) - len(answer) - 1
            targets += [IGNORE] * silent + answer + [IGNORE]
        return ids, places, segments, targets


# ---------------------------------------------------------------- stages: read and answer


def made_up_tokens(
    rng: random.Random, contexts: Sequence[Context], embedding: Tensor, words: Words
) -> Tensor:
    """Visual tokens (all cells of all moments, hidden) made of the words for what they show."""
    generator = torch.Generator().manual_seed(rng.randrange(1 << 31))
    labels = [
        cell_labels(scene, progress)
        for context in contexts
        for scene in context.shown
        for progress in (rng.uniform(0.1, 0.35), rng.uniform(0.65, 0.9))
    ]
    total = torch.zeros(len(labels) * CELLS, embedding.shape[1])
    for group, ids in words.ids.items():
        numbers = torch.from_numpy(np.concatenate([one[group] for one in labels]))
        clear = torch.rand(numbers.shape, generator=generator)
        strength = 0.5 + 0.6 * torch.rand(numbers.shape, generator=generator)
        there = (numbers >= 0) & (clear > 0.02)
        total[there] += strength[there, None] * embedding[ids[numbers[there]]]
    noise = torch.randn(total.shape, generator=generator) * 0.15 / math.sqrt(total.shape[1]) * 2
    return total + noise


def answer_logits(model: Any, batch: Batch, visual: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Logits at the answers' places, their targets, and the loss of the moments' numbers.

    The last asks every visual token, after the first layer, which moment it belongs to: a citation
    needs that, and from the answers alone it is learned very late.
    """
    embeds = model.model.language_model.embed_tokens(batch.input_ids)
    flat = embeds.flatten(0, 1).index_copy(0, batch.visual_at, visual.to(embeds.dtype))
    outputs = model.model.language_model(
        inputs_embeds=flat.view_as(embeds),
        position_ids=batch.position_ids,
        attention_mask=batch.mask,
        use_cache=False,
        output_hidden_states=True,
    )
    tokens = outputs.hidden_states[1].flatten(0, 1)[batch.visual_at]
    table = model.lm_head.weight
    number_loss = functional.cross_entropy(4 * tokens @ table.T, batch.number_of)
    said = batch.labels != IGNORE
    return model.lm_head(outputs.last_hidden_state[said]), batch.labels[said], number_loss


def answered(batch: Batch, logits: Tensor, targets: Tensor) -> dict[str, list[int]]:
    """Per type: questions answered wholly right (every token, given the ones before) and asked."""
    right = (logits.argmax(-1) == targets).long()
    which = batch.question_of[batch.labels != IGNORE]
    whole = torch.ones(len(batch.asked), dtype=torch.long)
    whole.scatter_reduce_(0, which, right, "amin")
    score: dict[str, list[int]] = {}
    for question, correct in zip(batch.asked, whole.tolist(), strict=True):
        entry = score.setdefault(question.type, [0, 0])
        entry[0] += correct
        entry[1] += 1
    return score


# ---------------------------------------------------------------- the loop


@dataclass(frozen=True)
class Stage:
    """How a stage is run. `moments` and `questions` are per step; rates peak after `warmup`."""

    steps: int
    batch: int
    rate: float
    warmup: int = 200


STAGES = {
    "see": Stage(steps=3000, batch=24, rate=2.5e-3),
    "read": Stage(steps=3000, batch=5, rate=1.5e-3),
    "answer": Stage(steps=1500, batch=4, rate=5e-4, warmup=50),
}


def rate_at(stage: Stage, step: int) -> float:
    """Linear warm-up, then a cosine down to 2 % of the peak."""
    if step < stage.warmup:
        return stage.rate * (step + 1) / stage.warmup
    progress = (step - stage.warmup) / max(1, stage.steps - stage.warmup)
    return stage.rate * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))


def new_model(seed: int = 0) -> tuple[Any, Any]:
    """The untrained model and its tokenizer. Word embeddings have length 1: see `Reader`.

    Attention starts out as a look-up: queries equal keys, so like attends to like, and the output
    undoes the values, so what is found arrives as the words it is made of. From a random start,
    looking up is found only after very many steps.
    """
    declare_torchvision_operators()
    torch.manual_seed(seed)
    tokenizer = tiny_vlm.build_tokenizer()
    model = tiny_vlm.build_model(tokenizer)
    table = model.model.language_model.embed_tokens.weight
    layers = model.model.language_model.layers
    with torch.no_grad():
        table.copy_(functional.normalize(torch.randn(table.shape), dim=-1))
        for layer in layers:
            attention = layer.self_attn
            nn.init.orthogonal_(attention.q_proj.weight)
            attention.k_proj.weight.copy_(attention.q_proj.weight)
            nn.init.orthogonal_(attention.v_proj.weight)
            attention.o_proj.weight.copy_(0.5 * attention.v_proj.weight.T)
        # Frames start out knowing their moment's number, which stands four or five places before
        # them, and every word what was found for the word before it.
        for head in (0, 1):
            _look_back(layers[0].self_attn, head, 4.5, gain=2.0)
        for layer in layers[:3]:
            _look_back(layer.self_attn, 2, 1.0, gain=1.0)
        for block, patches_away in zip(model.model.visual.blocks, (1.0, 2.0), strict=False):
            _look_beside(block.attn, patches_away)
    return model, tokenizer


def _look_back(attention: Any, head: int, tokens_back: float, gain: float) -> None:
    """Starts a head of the language layers looking that many places back; see `_look_beside`.

    `gain` says how loud what it finds is.
    """
    size = attention.head_dim
    mine = slice(head * size, (head + 1) * size)
    for projection in (attention.q_proj, attention.k_proj):
        projection.weight[mine] *= 0.3
        projection.bias[mine] = 0
    for at in range(3):
        frequency = 1_000_000.0 ** (-at / (size // 2))
        cosine, sine = head * size + at, head * size + at + size // 2
        attention.q_proj.bias[cosine] = 4.5 * math.cos(frequency * tokens_back)
        attention.q_proj.bias[sine] = -4.5 * math.sin(frequency * tokens_back)
        attention.k_proj.bias[cosine] = 4.5
    attention.o_proj.weight[:, mine] = gain * attention.v_proj.weight[mine].T


def _look_beside(attention: Any, patches_away: float) -> None:
    """Starts each head looking at patches that far away, in a direction of its own.

    A transformer that starts with such convolutions learns shapes from far fewer pictures
    (d'Ascoli et al., ConViT, 2021). Rotary positions make it a matter of two biases: a key of
    angle 0 and a query turned by the offset agree most where the offset is met.
    """
    heads, size = attention.num_heads, attention.head_dim
    bias = attention.qkv.bias.view(3, heads, size)
    attention.qkv.weight.view(3, heads, size, -1)[:2] *= 0.3
    frequencies = 10_000.0 ** (-torch.arange(2) / (size // 4))
    for head in range(heads):
        turn = 2 * math.pi * head / heads
        offset = (patches_away * math.sin(turn), patches_away * math.cos(turn))
        for axis, along in enumerate(offset):
            for at, frequency in enumerate(frequencies.tolist()):
                cosine, sine = axis * size // 4 + at, axis * size // 4 + at + size // 2
                bias[0, head, cosine] = 4.5 * math.cos(frequency * along)
                bias[0, head, sine] = 4.5 * math.sin(frequency * along)
                bias[1, head, cosine] = 4.5


def optimizer_for(parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
    decayed = [one for one in parameters if one.ndim > 1]
    plain = [one for one in parameters if one.ndim <= 1]
    return torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.02}, {"params": plain, "weight_decay": 0.0}],
        lr=1e-3, betas=(0.9, 0.98),
    )  # fmt: skip


def run_stage(name: str, work: Path, seed: int = 0) -> None:
    """Runs a stage from its last checkpoint to its end; writes `NAME.pt` and `NAME.jsonl`."""
    stage = STAGES[name]
    model, tokenizer = new_model(seed)
    words = Words(tokenizer)
    reader = Reader(model.config.text_config.hidden_size, model.config.vision_config.embed_dim)
    trained = _prepare(name, model, reader, work)
    optimizer = optimizer_for(trained)
    checkpoint = work / f"{name}.pt"
    first = 0
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(saved["model"])
        reader.load_state_dict(saved["reader"])
        optimizer.load_state_dict(saved["optimizer"])
        first = saved["step"]
    model.train()
    log = (work / f"{name}.jsonl").open("a")
    sums: dict[str, list[float]] = {}
    began = time.monotonic()
    for step in range(first, stage.steps):
        # A step's data follow from its number, so a resumed run sees what an unbroken one would.
        rng = random.Random(f"{seed} {name} {step}")
        for group in optimizer.param_groups:
            group["lr"] = rate_at(stage, step)
        loss, scores = _STEPS[name](rng, model, reader, tokenizer, words, stage, step)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        for key, (value, weight) in scores.items():
            entry = sums.setdefault(key, [0.0, 0.0])
            entry[0] += value
            entry[1] += weight
        if (step + 1) % 100 == 0 or step + 1 == stage.steps:
            row = {key: round(a / max(b, 1e-9), 4) for key, (a, b) in sorted(sums.items())}
            sums = {}
            row = {"step": step + 1, "seconds": round(time.monotonic() - began, 1), **row}
            log.write(json.dumps(row) + "\n")
            log.flush()
        if (step + 1) % 500 == 0 or step + 1 == stage.steps:
            state = {"model": model.state_dict(), "reader": reader.state_dict()}
            state |= {"optimizer": optimizer.state_dict(), "step": step + 1}
            torch.save(state, checkpoint.with_suffix(".tmp"))
            checkpoint.with_suffix(".tmp").rename(checkpoint)


def _prepare(name: str, model: Any, reader: Reader, work: Path) -> list[nn.Parameter]:
    """Loads what earlier stages made, and returns the parameters that this one trains."""
    vision = list(model.model.visual.parameters())
    if name == "see":
        return [*vision, *reader.parameters()]
    table = model.model.language_model.embed_tokens.weight
    if name == "read":
        return [one for one in model.model.language_model.parameters() if one is not table]
    saw = torch.load(work / "see.pt", weights_only=True)
    read = torch.load(work / "read.pt", weights_only=True)["model"]
    seen = {key: value for key, value in saw["model"].items() if ".visual." in key}
    model.load_state_dict(read | seen)
    reader.load_state_dict(saw["reader"])
    return [*model.parameters(), *reader.parameters()]


Scores = dict[str, tuple[float, float]]


def _see_step(
    rng: random.Random, model: Any, reader: Reader, tokenizer: Any, words: Words,
    stage: Stage, step: int,
) -> tuple[Tensor, Scores]:  # fmt: skip
    sight = sample_sight(rng, [world.sample_scene(rng) for _ in range(stage.batch)], pairs=1)
    tokens, patches = encode(model.model.visual, to_patches(sight.frames))
    table = model.model.language_model.embed_tokens.weight.detach()
    loss, accuracy = see_loss(reader.logits(tokens, table, words), sight.cells)
    loss = loss + 2 * reader.patch_loss(patches, sight.patches)
    scores: Scores = {group: (value, 1) for group, value in accuracy.items() if value == value}
    return loss, {**scores, "loss": (loss.item(), 1)}


def _read_step(
    rng: random.Random, model: Any, reader: Reader, tokenizer: Any, words: Words,
    stage: Stage, step: int,
) -> tuple[Tensor, Scores]:  # fmt: skip
    done = step / stage.steps
    # From one moment to five, and the constant system message only once looking up works.
    most = 1 if done < 0.23 else 2 if done < 0.4 else 3 if done < 0.6 else 5
    encoder = Encoder(tokenizer, with_system=done >= 0.65)
    contexts = [sample_context(rng, most, 8, plain=done < 0.2) for _ in range(stage.batch)]
    batch = encoder.batch(contexts)
    table = model.model.language_model.embed_tokens.weight.detach()
    return _answer_loss(model, batch, made_up_tokens(rng, contexts, table, words))


def _answer_step(
    rng: random.Random, model: Any, reader: Reader, tokenizer: Any, words: Words,
    stage: Stage, step: int,
) -> tuple[Tensor, Scores]:  # fmt: skip
    contexts = [sample_context(rng, 5, 8) for _ in range(stage.batch)]
    batch = Encoder(tokenizer).batch(contexts)
    sight = sample_sight(rng, [scene for context in contexts for scene in context.shown])
    tokens, _ = encode(model.model.visual, to_patches(sight.frames))
    loss, scores = _answer_loss(model, batch, tokens.flatten(0, 1))
    table = model.model.language_model.embed_tokens.weight
    seen, _ = see_loss(reader.logits(tokens, table, words), sight.cells)
    return loss + 0.05 * seen, {**scores, "see": (seen.item(), 1.0)}


def _answer_loss(model: Any, batch: Batch, visual: Tensor) -> tuple[Tensor, Scores]:
    logits, targets, number_loss = answer_logits(model, batch, visual)
    loss = functional.cross_entropy(logits, targets)
    scores: Scores = {"loss": (loss.item(), 1), "numbers": (number_loss.item(), 1)}
    for kind, (right, asked) in answered(batch, logits, targets).items():
        scores[kind] = (right, asked)
        total = scores.get("all", (0, 0))
        scores["all"] = (total[0] + right, total[1] + asked)
    return loss + 0.1 * number_loss, scores


_STEPS = {"see": _see_step, "read": _read_step, "answer": _answer_step}


def export(work: Path) -> None:
    """Writes `work/tiny-qwen2-vl`, the trained model as vLLM and transformers load it."""
    model, _ = new_model()
    model.load_state_dict(torch.load(work / "answer.pt", weights_only=True)["model"])
    tiny_vlm.save(model, work / "tiny-qwen2-vl")
    logs = [work / f"{name}.jsonl" for name in STAGES]
    draw_curves(logs, work / "tiny-qwen2-vl" / "training.png")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=Path, required=True, help="folder of checkpoints and logs")
    parser.add_argument("--stage", choices=STAGES, help="run one stage only")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    options.work.mkdir(parents=True, exist_ok=True)
    for name in [options.stage] if options.stage else STAGES:
        run_stage(name, options.work)
    if options.stage in (None, "answer"):
        export(options.work)


if __name__ == "__main__":
    main()
