"""What is asked of a row, what its answer should be, and how a reply to it is scored.

    for turn in asked_turns(row):
        prompt, expected = cut(row, messages, turn)
        truth = truth_of(row, turn, expected, family, sizes)
        scores(truth, reply)            {"exact_match": 1.0, "token_f1": 1.0}

An answer is scored by its task: the row's own, or what its form suggests. A row of several turns
is asked once for each of the assistant's that it trains, with the earlier ones as the row has them,
so that every model is asked the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from finetune import metrics, times
from finetune.metrics import Array, Combine, Thing
from finetune.rows import Boxed, Located, Part, Ref, Row, Task
from vidqa.boxes import Family, parse

# (original, shown) sizes of a row's media, each (width, height) in pixels.
Sizes = Sequence[tuple[tuple[int, int], tuple[int, int]]]

# The measures of each task; the first is the one to look at.
MEASURES: Final[dict[Task, tuple[str, ...]]] = {
    "answer": ("exact_match", "token_f1"),
    "choice": ("accuracy",),
    "caption": ("rouge_l", "bleu"),
    "box": ("iou", "accuracy_at_0.5"),
    "span": ("temporal_iou", "accuracy_at_0.5"),
}

# An answer of more words than this is a caption unless its row names another task.
MOST_ANSWER_WORDS = 12

_ONE_MARKER = re.compile(r"\s*\[\d{1,9}\]")


@dataclass(frozen=True, slots=True)
class Truth:
    """What a reply is held against. Boxes are fractions of the sides of their picture."""

    task: Task
    text: str
    family: Family
    choices: tuple[str, ...] = ()
    things: tuple[Thing, ...] = ()
    shown_size: tuple[int, int] = (1, 1)


# ---------------------------------------------------------------- what is asked


def asked_turns(row: Row) -> list[int]:
    """Places in `row.turns` that a model is to fill, the one behind the last if a question ends it.

    A row without any is asked nothing.
    """
    places = [at for at, turn in enumerate(row.turns) if turn.role == "assistant" and turn.trains]
    if row.turns and row.turns[-1].role == "user":
        places.append(len(row.turns))
    return places


def cut(
    row: Row, messages: Sequence[Mapping[str, Any]], turn: int
) -> tuple[list[dict[str, Any]], str | None]:
    """The messages before a turn, and the turn's own text, None where the row has none.

    `messages` are the whole row as a model is shown it; whatever becomes of system messages, the
    others are the row's turns in order.
    """
    spoken = [at for at, one in enumerate(messages) if one["role"] != "system"]
    before = sum(one.role != "system" for one in row.turns[:turn])
    if before == len(spoken):
        return [dict(one) for one in messages], None
    end = spoken[before]
    return [dict(one) for one in messages[:end]], str(messages[end]["content"])


def question_text(row: Row, turn: int) -> str:
    """The words of the last question before a turn."""
    asked = [one for one in row.turns[:turn] if one.role == "user"]
    parts = asked[-1].parts if asked else ()
    return _said(parts)


def _said(parts: Sequence[Part]) -> str:
    """The words among the parts of a turn."""
    said = (one.text if isinstance(one, Ref) else one for one in parts)
    return "".join(one for one in said if isinstance(one, str)).strip()


# ---------------------------------------------------------------- what is right


def check_packages(rows: Iterable[Row]) -> None:
    """Raises MissingExtra where an answer of these rows is scored by what is not installed."""
    if any(_has_caption(row) for row in rows):
        metrics.check_packages()


def _has_caption(row: Row) -> bool:
    turns = [] if row.faults else [at for at in asked_turns(row) if at < len(row.turns)]
    return any(_task(row, at, _said(row.turns[at].parts)) == "caption" for at in turns)


def truth_of(row: Row, turn: int, expected: str, family: Family, sizes: Sizes) -> Truth:
    """What a reply to this turn is held against."""
    task = _task(row, turn, expected)
    choices = row.choices or metrics.offered(question_text(row, turn))
    if task == "choice" and metrics.chosen(expected, choices) is None:
        task = "answer"
    if task == "span" and not times.parse(expected):
        task = "answer"
    if task != "box":
        return Truth(task, expected, family, choices if task == "choice" else ())
    media = next((one for one, _ in _things(row, turn)), 0)
    shown_size = sizes[media][1] if media < len(sizes) else (1, 1)
    things = tuple(
        (label, box.as_fractions(*sizes[at][0]))
        for at, (label, box) in _things(row, turn)
        if at < len(sizes)
    )
    if not any(isinstance(part, Boxed | Located) for part in row.turns[turn].parts):
        # Data that came with boxes in the model's own words; without any, it is no answer of boxes.
        things = tuple(parse(family, expected, shown_size))
        if not things:
            return Truth("answer", expected, family)
    return Truth("box", expected, family, things=things, shown_size=shown_size)


def _task(row: Row, turn: int, expected: str) -> Task:
    """The row's task, else what its answer looks like."""
    if row.task is not None:
        return row.task
    if (
        row.choices
        or metrics.chosen(expected, metrics.offered(question_text(row, turn))) is not None
    ):
        return "choice"
    if any(isinstance(part, Boxed | Located) for part in row.turns[turn].parts):
        return "box"
    if times.is_span(_times_in(expected)):
        return "span"
    return "caption" if metrics.length(expected) > MOST_ANSWER_WORDS else "answer"


def _things(row: Row, turn: int) -> Iterator[tuple[int, Thing]]:
    """The boxes of an answer with the places of their media; a name is of the boxes after it."""
    label = ""
    for part in row.turns[turn].parts:
        if isinstance(part, Ref):
            label = part.text
        elif isinstance(part, Boxed):
            yield part.media, (label, part.box)
        elif isinstance(part, Located):
            yield from ((part.media, thing) for thing in part.things)


# ---------------------------------------------------------------- how good it is


def scores(truth: Truth, reply: str) -> dict[str, float]:
    """The measures of the task, each from 0 to 1."""
    values: tuple[float, ...]
    match truth.task:
        case "answer":
            values = metrics.exact_match(reply, truth.text), metrics.token_f1(reply, truth.text)
        case "choice":
            right = metrics.chosen(truth.text, truth.choices)
            values = (float(metrics.chosen(reply, truth.choices) == right),)
        case "caption":
            one = np.array(metrics.bleu_counts(reply, truth.text))
            values = metrics.rouge_l(reply, truth.text), float(metrics.bleu(one))
        case "box":
            found = parse(truth.family, reply, truth.shown_size)
            values = metrics.box_scores(truth.things, found)
        case "span":
            overlap = times.iou(_spans(truth.text), _spans(reply))
            values = overlap, float(overlap >= metrics.HIT_IOU)
    return dict(zip(MEASURES[truth.task], values, strict=True))


def boxes(truth: Truth, reply: str) -> dict[str, list[dict[str, Any]]]:
    """The boxes that are true and those of a reply, as JSON: fractions of the picture's sides."""
    found = parse(truth.family, reply, truth.shown_size)
    return {
        name: [{"label": label, "box": [round(side, 4) for side in box.sides]}
               for label, box in things]
        for name, things in (("expected", truth.things), ("found", found))
    }  # fmt: skip


def _spans(text: str) -> list[times.Span]:
    return times.parse(_times_in(text))


def _times_in(text: str) -> str:
    """A text without the `[n]` that cite; where times are told, `[1, 3]` and `[1-3]` are times."""
    return _ONE_MARKER.sub("", text).strip()


def summable(measure: str, reply: str, expected: str, value: float) -> tuple[float, ...]:
    """What one reply adds to a measure over many: itself and one, or BLEU's counts."""
    return metrics.bleu_counts(reply, expected) if measure == "bleu" else (value, 1.0)


def combine(measure: str) -> Combine:
    """What makes a measure of such sums."""
    return metrics.bleu if measure == "bleu" else metrics.mean


def stacked(rows: Sequence[tuple[float, ...]]) -> Array:
    return np.array(rows, dtype=np.float64)
