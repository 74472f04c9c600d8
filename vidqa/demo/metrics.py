"""Figures of the playground's suite, from what was found and what is true. Pure functions."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from vidqa.demo import world
from vidqa.demo.films import Asked, Span
from vidqa.prompt import NOT_SHOWN, without_markers


@dataclass(frozen=True, slots=True)
class Figure:
    """A measured share or mean, what it was measured on, and its 95 % interval."""

    value: float
    n: int
    low: float
    high: float


def share(hits: Iterable[bool]) -> Figure:
    """A proportion with Wilson's score interval (E. B. Wilson, JASA 22, 1927)."""
    outcomes = list(hits)
    n = len(outcomes)
    if n == 0:
        return Figure(math.nan, 0, 0.0, 1.0)
    p, z = sum(outcomes) / n, 1.96
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return Figure(p, n, max(0.0, centre - half), min(1.0, centre + half))


def mean(values: Iterable[float]) -> Figure:
    """A mean with the normal interval of its standard error."""
    found = list(values)
    n = len(found)
    if n == 0:
        return Figure(math.nan, 0, 0.0, 1.0)
    average = sum(found) / n
    spread = math.sqrt(sum((value - average) ** 2 for value in found) / max(1, n - 1))
    half = 1.96 * spread / math.sqrt(n)
    return Figure(average, n, average - half, average + half)


def cut_scores(
    truth: Sequence[dict[str, Any]], found_seconds: Sequence[float], fps: float
) -> tuple[int, int, int]:
    """(hits, missed, invented) of the cuts of one film.

    A hard cut is hit within one frame, a fade anywhere within its span; every found cut serves
    one true cut at the most.
    """
    left = sorted(found_seconds)
    hits = 0
    for cut in truth:
        slack = 1.001 / fps if cut["transition"] == "cut" else 1e-6
        low, high = cut["start_seconds"] - slack, cut["end_seconds"] + slack
        match = next((seconds for seconds in left if low <= seconds <= high), None)
        if match is not None:
            left.remove(match)
            hits += 1
    return hits, len(truth) - hits, len(left)


def f1(hits: int, missed: int, invented: int) -> float:
    return 2 * hits / max(1, 2 * hits + missed + invented)


def overlap_seconds(first: Span, second: Span) -> float:
    if first.film != second.film:
        return 0.0
    start = max(first.start_seconds, second.start_seconds)
    return max(0.0, min(first.end_seconds, second.end_seconds) - start)


def iou(first: Span, second: Span) -> float:
    """Intersection over union of two spans of time; 0 for different films."""
    shared = overlap_seconds(first, second)
    lengths = sum(span.end_seconds - span.start_seconds for span in (first, second))
    return shared / (lengths - shared)


def is_right(reply: str, asked: Asked) -> bool:
    """Whether a reply says the answer, and no other answer that a question of its type can have.

    Words of the question may be repeated. Without an answer, nothing counts but the plain word
    that the moments do not show it.
    """
    said = _words(reply)
    if asked.answer is None:
        return said == _words(NOT_SHOWN)
    known = set(_words(" ".join(_ANSWERS[asked.type])))
    answer = _words(asked.answer)
    claims = [word for word in said if word in known and word not in _words(asked.text)]
    return set(claims) == set(answer) - set(_words(asked.text)) and set(answer) <= set(said)


def _words(text: str) -> list[str]:
    return re.sub(r"[^\w\s]", " ", without_markers(text).casefold()).split()


# What questions of a type can be answered with.
_ANSWERS: dict[str, tuple[str, ...]] = {
    "colour": world.COLOURS,
    "kind": world.KINDS,
    "motion": world.MOTIONS,
    "count": world.NUMBERS,
    "background": world.BACKGROUNDS,
    "word": world.WORDS,
    "after": world.BACKGROUNDS,
    "before": world.BACKGROUNDS,
}
