"""Which rows are held out: whole videos, never some rows of one.

    train, held_out = split(rows, fraction=0.1, seed=0)

A row about two videos ties them together, a copy under another name counts as the same video, and
frames of one video in several rows are tied by their files. What is held out depends on the content
of the media and the seed, not on names or the order of rows.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence

from finetune.identity import Identities
from finetune.rows import Row
from vidqa.errors import UsageError


def split(rows: Sequence[Row], fraction: float, seed: int) -> tuple[list[Row], list[Row]]:
    """Rows to train on, and at most about `fraction` of them held out; both in their order.

    At least one group of rows is held out, the smallest if none is small enough. Raises UsageError
    for a fraction outside [0, 1), and where all rows are about the same videos.
    """
    if not 0 <= fraction < 1:
        raise UsageError(f"held-out fraction {fraction:g} is not in [0, 1); 0.1 is usual")
    if fraction == 0 or not rows:
        return list(rows), []
    groups = _groups(rows)
    if len(groups) < 2:
        raise UsageError(
            "all rows are about the same video, so none can be held out; name other data by "
            "--eval-data, or hold nothing out (fraction 0)"
        )
    chosen = _chosen(groups, fraction * len(rows), seed)
    return (
        [row for n, row in enumerate(rows) if n not in chosen],
        [row for n, row in enumerate(rows) if n in chosen],
    )


def _chosen(groups: dict[str, list[int]], wanted: float, seed: int) -> set[int]:
    """Numbers of the rows held out: groups in an order that the seed makes, while they fit."""
    order = sorted(groups, key=lambda key: hashlib.sha256(f"{seed}:{key}".encode()).digest())
    chosen: set[int] = set()
    for key in order:
        if len(chosen) + len(groups[key]) <= wanted:
            chosen.update(groups[key])
    if not chosen:
        chosen.update(groups[min(order, key=lambda key: len(groups[key]))])
    return chosen


def _groups(rows: Sequence[Row]) -> dict[str, list[int]]:
    """Numbers of rows that share media, by the least key of their content."""
    identities = Identities()
    joined = _Joined()
    names: list[str] = []
    for row in rows:
        keys = [key for medium in row.media for key in _keys(medium.paths, identities)]
        content = [identities.of(medium) for medium in row.media]
        names.append(min(map(_digest, content)) if content else _digest(repr(row.turns)))
        keys = keys or [f"text:{names[-1]}"]
        joined.join(keys)
        names[-1] = f"{names[-1]}\n{keys[0]}"
    found: dict[str, list[int]] = {}
    for n, name in enumerate(names):
        found.setdefault(joined.root(name.split("\n", 1)[1]), []).append(n)
    return {min(names[n].split("\n", 1)[0] for n in group): group for group in found.values()}


def _keys(paths: Sequence[str], identities: Identities) -> list[str]:
    """What ties a medium to others: its content and its place.

    Of single frames it is the content of all, as black ones are alike in any two videos.
    """
    places = [f"place:{os.path.realpath(path)}" for path in paths]
    return [f"content:{','.join(map(identities.key, paths))}", *places]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


class _Joined:
    """Which keys belong together: a forest, each tree named by its root."""

    def __init__(self) -> None:
        self._parent: dict[str, str] = {}

    def root(self, key: str) -> str:
        while (parent := self._parent.setdefault(key, key)) != key:
            self._parent[key] = self._parent[parent]
            key = parent
        return key

    def join(self, keys: Sequence[str]) -> None:
        for other in keys[1:]:
            self._parent[self.root(other)] = self.root(keys[0])
        self.root(keys[0])
