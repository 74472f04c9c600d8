"""Frames become moments: one a scene, best first, as many as were asked for."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from fakes import FakeEmbedder
from library_parts import RECIPE, video

from vidqa.errors import UsageError
from vidqa.library import Library
from vidqa.search import search
from vidqa.types import Filters, FrameBatch, Scene, TextSpan

EMBEDDER = FakeEmbedder()
RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)
PURPLE = (255, 0, 255)


@pytest.fixture
def library(tmp_path: Path) -> Library:
    return Library.open(tmp_path / "index", EMBEDDER.spec, create=True)


def add(
    library: Library,
    name: str,
    scenes: Sequence[tuple[tuple[int, int, int], int]],
    texts: tuple[TextSpan, ...] = (),
) -> None:
    """A video of plain scenes: a colour each, for so many frames, one a second."""
    colours = [colour for colour, frames in scenes for _ in range(frames)]
    images = (
        np.zeros((len(colours), 8, 8, 3), np.uint8) + np.array(colours, np.uint8)[:, None, None]
    )
    ends = np.cumsum([frames for _, frames in scenes]).tolist()
    cut = [Scene(n, float(a), float(b)) for n, (a, b) in enumerate(pairwise([0, *ends]))]
    frames = FrameBatch(
        seconds=np.arange(len(colours), dtype=np.float64),
        scene_index=np.repeat(np.arange(len(scenes)), [n for _, n in scenes]).astype(np.int32),
        images=images,
    )
    vectors = EMBEDDER.embed_images(images)
    library.add(video(name), cut, frames, vectors, texts, RECIPE)


def test_a_moment_is_the_scene_of_the_best_frame_with_all_it_holds(library: Library) -> None:
    add(library, "a", [(RED, 3), (BLUE, 4)], (TextSpan(2, 4, "the sea"), TextSpan(0, 1, "fire")))
    [moment] = search("something blue", library, EMBEDDER, k=1)
    assert (moment.video, moment.start_seconds, moment.end_seconds) == ("/videos/a.mp4", 3, 7)
    assert moment.frame_seconds == (3, 4, 5, 6)
    assert moment.texts == (TextSpan(2, 4, "the sea"),)
    assert moment.score == pytest.approx(1, abs=1e-3)


def test_no_scene_is_listed_twice_and_the_best_comes_first(library: Library) -> None:
    add(library, "a", [(RED, 5), (PURPLE, 5), (GREEN, 5)])
    moments = search("red", library, EMBEDDER, k=10)
    assert [moment.start_seconds for moment in moments] == [0, 5, 10]


def test_one_long_scene_does_not_crowd_out_the_others(library: Library) -> None:
    add(library, "a", [(RED, 400), (PURPLE, 2), (GREEN, 2)])
    moments = search("red", library, EMBEDDER, k=3)
    assert [moment.start_seconds for moment in moments] == [0, 400, 402]


def test_equal_scores_come_in_order_of_path_and_time(library: Library) -> None:
    for name in "ba":
        add(library, name, [(RED, 2), (BLUE, 2), (RED, 2)])
    moments = search("red", library, EMBEDDER, k=4)
    assert [(moment.video, moment.start_seconds) for moment in moments] == [
        ("/videos/a.mp4", 0),
        ("/videos/a.mp4", 4),
        ("/videos/b.mp4", 0),
        ("/videos/b.mp4", 4),
    ]


def test_filters_narrow_what_is_searched(library: Library) -> None:
    add(library, "a", [(RED, 2), (GREEN, 2)])
    add(library, "b", [(RED, 2)])
    [moment] = search(
        "red", library, EMBEDDER, filters=Filters(video="a.mp4"), where="start_seconds > 0"
    )
    assert (moment.video, moment.start_seconds) == ("/videos/a.mp4", 2)


def test_filters_that_nothing_passes_give_no_moments(library: Library) -> None:
    add(library, "a", [(RED, 2)])
    assert search("red", library, EMBEDDER, filters=Filters(video="nowhere")) == []


@pytest.mark.parametrize("query", ["", "  \n"])
def test_an_empty_query_is_refused(library: Library, query: str) -> None:
    with pytest.raises(UsageError, match="the query is empty"):
        search(query, library, EMBEDDER)


def test_k_below_one_is_refused(library: Library) -> None:
    with pytest.raises(UsageError, match="k is -1; at least 1"):
        search("red", library, EMBEDDER, k=-1)
