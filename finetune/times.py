"""Spans of time in a text, as people, subtitles and models write them.

    parse("from 12.5 to 15 seconds")           [(12.5, 15.0)]
    parse("00:01:05-00:01:20")                 [(65.0, 80.0)]
    parse('{"start": 3, "end": 4.5}')          [(3.0, 4.5)]
    parse("[[1, 2], [5, 8]]")                  [(1.0, 2.0), (5.0, 8.0)]

All in seconds. What ends before it starts is no span. Nothing raises, whatever a model writes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

Span = tuple[float, float]

# `H:MM:SS.s`, `MM:SS`, subtitles' `00:00:12,500`, or plain seconds.
_TIME = r"(?:(?:\d{1,3}:)?\d{1,4}:\d{1,2}(?:[.,]\d{1,9})?|\d{1,7}(?:\.\d{1,9})?)"
_UNIT = r"(?:\s{0,2}(?:seconds?|secs?|s|秒)(?![a-z]))?"
_ALONE = r"(?<![\d.:])"  # the first digit of a number, so that long ones are read once
_WHOLE = r"(?![\d:]|\.\d)"
_TO = r"\s{0,3}(?:-{1,2}>?|[–—−~〜～]|to|until|till|through|至|到|から)\s{0,3}"  # noqa: RUF001

_FIELDS = (
    rf"""["']?\b(?:start|begin|from)(?:_?seconds?|_?time)?["']?\s{{0,3}}[:=]\s{{0,3}}["']?({_TIME})"""
    rf"""[^\d{{}}][^{{}}]{{0,80}}?\b(?:end|to)(?:_?seconds?|_?time)?["']?\s{{0,3}}[:=]\s{{0,3}}"""
    rf"""["']?({_TIME}){_WHOLE}"""
)
_SPAN = re.compile(
    rf"{_FIELDS}"
    rf"|between\s{{1,3}}({_TIME}){_UNIT}\s{{1,3}}and\s{{1,3}}({_TIME}){_WHOLE}{_UNIT}"
    rf"|[\[(<]\s{{0,3}}({_TIME}){_UNIT}\s{{0,3}},\s{{0,3}}({_TIME}){_UNIT}\s{{0,3}}[\])>]"
    rf"|{_ALONE}({_TIME}){_UNIT}{_TO}({_TIME}){_WHOLE}{_UNIT}",
    re.IGNORECASE,
)
# A number and a number may be anything; these say that time is meant.
_OF_TIME = re.compile(
    r"\d:\d|\d\.\d|\d\s?s\b|sec|秒|from|between|start|begin|[\[(<]", re.IGNORECASE
)
_SMALL_WORDS = re.compile(
    r"\b(from|between|at|about|around|and|seconds?|secs?|s|the|times?|span|json)\b|从|秒",
    re.IGNORECASE,
)


def parse(text: str) -> list[Span]:
    """The spans (start, end) that a text names, in its order."""
    found = []
    for match in _SPAN.finditer(text):
        start, end = (seconds(one) for one in match.groups() if one is not None)
        if start < end:
            found.append((start, end))
    return found


def seconds(written: str) -> float:
    """`12.5`, `01:05` or `00:00:12,500` as seconds."""
    total = 0.0
    for part in written.replace(",", ".").split(":"):
        total = total * 60 + float(part)
    return total


def is_span(text: str) -> bool:
    """Whether a text is spans of time and nothing else."""
    if not parse(text) or not _OF_TIME.search(text):
        return False
    rest = _SMALL_WORDS.sub("", _SPAN.sub("", text))
    return not any(one.isalnum() for one in rest)


def iou(true: Sequence[Span], found: Sequence[Span]) -> float:
    """Seconds that both cover, over those that either covers; several spans count together."""
    both = sum(
        max(0.0, min(one[1], other[1]) - max(one[0], other[0]))
        for one in merged(true)
        for other in merged(found)
    )
    either = sum(end - start for start, end in merged([*true, *found]))
    return both / either if either else 0.0


def merged(spans: Sequence[Span]) -> list[Span]:
    """The same seconds as spans that do not overlap, in order."""
    joined: list[Span] = []
    for start, end in sorted(spans):
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(joined[-1][1], end))
        else:
            joined.append((start, end))
    return joined
