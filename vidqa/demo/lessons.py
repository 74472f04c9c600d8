"""What is asked in training: moments with questions, as token sequences and where to look.

Several questions follow one prefix of moments; each attends to the prefix and itself only, as if it
had been asked alone. Knows nothing of pictures: what the moments show is given as `Cells`.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from vidqa.demo import questions, tiny_vlm, world
from vidqa.demo.sight import CELLS, PAIRS, Cells, cell_labels, stacked
from vidqa.demo.tiny_vlm import CELL_COLUMNS, CELL_ROWS
from vidqa.prompt import SYSTEM, subtitle_line, time_range
from vidqa.types import TextSpan

IGNORE = -100


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


# How often each type is asked. Words and counts are learned last; asked as often from the start as
# later on, they kept places from being learned at all.
FIRST_WEIGHTS = {
    "colour": 3, "kind": 3, "motion": 3, "count": 1, "background": 4, "word": 2,
    "after": 3, "before": 3, "unanswerable": 3,
}  # fmt: skip
LATER_STEP = 1000  # of `read`
LATER_WEIGHTS = FIRST_WEIGHTS | {"word": 8, "count": 3, "unanswerable": 4}


def sample_context(
    rng: random.Random,
    max_moments: int,
    question_count: int,
    weights: Mapping[str, float] = LATER_WEIGHTS,
) -> Context:
    """A film's stretch of one to three scenes and others like it, as a search would find them."""
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
    return Context(scenes, labels, _sample_questions(rng, scenes, question_count, weights))


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
    rng: random.Random,
    scenes: list[world.WorldScene | None],
    count: int,
    weights: Mapping[str, float],
) -> list[questions.Question]:
    places = [at for at, scene in enumerate(scenes) if scene is not None]
    found: list[questions.Question] = []
    attempts = 0
    while len(found) < count and attempts < 8 * count:
        attempts += 1
        (kind,) = rng.choices(list(weights), list(weights.values()))
        if kind == "unanswerable":
            found.append(questions.ask_in_vain(rng, scenes))
            continue
        asked = questions.ask_about(rng, scenes, kind, rng.choice(places), rng.choice)
        if asked is not None and asked not in found:
            found.append(asked)
    return found


def sample_cells(rng: random.Random, contexts: Sequence[Context]) -> Cells:
    """What the moments of the contexts show, at frames chosen as `ask` would choose them."""
    labels = [
        cell_labels(scene, progress)
        for context in contexts
        for scene in context.shown
        for progress in (rng.uniform(0.1, 0.35), rng.uniform(0.65, 0.9))
    ]
    return stacked(labels)


@dataclass(frozen=True)
class Batch:
    """Contexts as tensors. `visual_at` are the flat places of visual tokens, in order."""

    input_ids: Tensor  # (B, L)
    position_ids: Tensor  # (3, B, L)
    mask: Tensor  # bool (B, 1, L, L), True where attention is allowed
    labels: Tensor  # (B, L), IGNORE where nothing is to be said
    question_of: Tensor  # (B, L), index into `asked` at answer tokens, else -1
    visual: Tensor  # bool (B, L), where visual tokens are
    number_of: Tensor  # for each visual token, the token id of its moment's number
    asked: list[questions.Question]
    tail: int  # tokens at the end of an answer, from the number's on


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
        tail = len(self._ids("The star [1].<|im_end|>")) - len(self._ids("The star ["))
        numbers = [number for one in contexts for number in range(1, len(one.shown) + 1)]
        number_of = torch.tensor([self._ids(str(number))[0] for number in numbers])
        return Batch(
            input_ids, positions, mask[:, None], labels, question_of,
            input_ids == self.pad_token, number_of.repeat_interleave(PAIRS * CELLS), asked, tail,
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


# ---------------------------------------------------------------- showing where to look


@dataclass(frozen=True)
class Pointers:
    """From which places of a batch's rows two heads shall look where.

    `anchor` marks the thing that the question names, `answer` what answers it.
    """

    rows: Tensor  # (N,)
    places: Tensor  # (N,)
    anchor: Tensor  # bool (N, L)
    answer: Tensor  # bool (N, L)


def point(batch: Batch, contexts: Sequence[Context], cells: Cells) -> Pointers:
    """Where the things asked about are, for moments that show `cells`.

    A question without an answer points at the first token of all, where there is nothing to see.
    One about a thing that other things crowd out of every cell has no pointers.
    """
    length = batch.input_ids.shape[1]
    found: list[tuple[int, int, Tensor, Tensor]] = []
    moment = asked = 0
    for row, context in enumerate(contexts):
        count = len(context.shown)
        window = slice(moment * PAIRS, (moment + count) * PAIRS)
        seen = {group: table[window].view(count, PAIRS, CELLS) for group, table in cells.items()}
        visual = batch.visual[row].nonzero().view(count, PAIRS, CELLS)
        for question in context.questions:
            places = (batch.question_of[row] == asked).nonzero().squeeze(1).tolist()
            asked += 1
            looks = _looks(context, question, seen)
            if looks is None:
                nothing = _mask(length, torch.tensor(0))
                found.append((row, places[0], nothing, nothing))
                continue
            if not looks[0].any():
                continue
            thing, answer, cited = (_mask(length, visual[look]) for look in looks)
            number = len(places) - batch.tail
            found += [(row, place, thing, answer) for place in places[:number]]
            found.append((row, places[number], thing, cited))
        moment += count
    rows, at, anchors, answers = zip(*found, strict=True)
    return Pointers(
        torch.tensor(rows), torch.tensor(at), torch.stack(anchors), torch.stack(answers)
    )


def _mask(length: int, at: Tensor) -> Tensor:
    mask = torch.zeros(length, dtype=torch.bool)
    mask[at] = True
    return mask


def _looks(
    context: Context, question: questions.Question, seen: Cells
) -> tuple[Tensor, Tensor, Tensor] | None:
    """What shows the thing, the answer and the cited moment: each (moments, pairs, cells)."""
    if question.anchor is None or question.scene is None or question.thing is None:
        return None
    shape = seen["kind"].shape
    anchor_moment, answer_moment = torch.zeros(shape).bool(), torch.zeros(shape).bool()
    anchor_moment[context.number(question.anchor) - 1] = True
    answer_moment[context.number(question.scene) - 1] = True
    thing = anchor_moment & (seen["kind"] == world.KINDS.index(question.thing.kind))
    if question.type == "word":
        return thing, anchor_moment & (seen["word"] >= 0), answer_moment
    if question.scene != question.anchor:
        return thing, answer_moment, answer_moment
    return thing, thing, answer_moment
