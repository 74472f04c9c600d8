"""Frames become moments: one a scene, best first, as many as were asked for."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from fakes import FakeEmbedder
from library_parts import RECIPE, video
from numpy.typing import NDArray

from vidqa.errors import UsageError
from vidqa.library import Library
from vidqa.search import query_vector, search, search_vector
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


def pictures(*colours: tuple[int, int, int]) -> NDArray[np.uint8]:
    """8x8 pictures of one colour each."""
    return np.tile(np.array(colours, np.uint8).reshape(-1, 1, 1, 3), (1, 8, 8, 1))


def test_a_picture_finds_what_looks_like_it(library: Library) -> None:
    add(library, "a", [(RED, 2), (BLUE, 2)])
    moments = search("", library, EMBEDDER, images=pictures(BLUE))
    assert [moment.start_seconds for moment in moments] == [2, 0]


def test_a_text_and_a_picture_find_what_has_something_of_both(library: Library) -> None:
    add(library, "a", [(RED, 2), (PURPLE, 2), (BLUE, 2)])
    [moment] = search("blue", library, EMBEDDER, images=pictures(RED), k=1)
    assert moment.start_seconds == 2


def test_every_part_of_a_query_weighs_the_same() -> None:
    vector = query_vector("red", pictures(RED, GREEN), EMBEDDER)
    np.testing.assert_allclose(vector, np.array([2, 1, 0, 0]) / np.sqrt(5), rtol=1e-6)


def test_a_text_alone_is_its_own_vector() -> None:
    for images in ((), pictures()):
        vector = query_vector("red and blue", images, EMBEDDER)
        np.testing.assert_allclose(vector, EMBEDDER.embed_texts(["red and blue"])[0], rtol=1e-6)


def test_parts_that_cancel_each_other_out_are_refused() -> None:
    with pytest.raises(UsageError, match="cancel each other out"):
        query_vector("nothing", pictures((0, 0, 0)), EMBEDDER)


@pytest.mark.parametrize("shape", [(1, 8, 9, 3), (8, 8, 3)])
def test_images_of_another_size_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"uint8 \(8, 8, 3\) is needed"):
        query_vector("", np.zeros(shape, np.uint8), EMBEDDER)


def test_a_vector_kept_from_before_finds_the_same(library: Library) -> None:
    add(library, "a", [(RED, 2), (PURPLE, 2), (GREEN, 2)])
    vector = query_vector("red", (), EMBEDDER)
    assert search_vector(vector, library, k=2) == search("red", library, EMBEDDER, k=2)


@pytest.mark.parametrize("query", ["", "  \n"])
def test_an_empty_query_is_refused(library: Library, query: str) -> None:
    with pytest.raises(UsageError, match="the query is empty"):
        search(query, library, EMBEDDER)


def test_k_below_one_is_refused(library: Library) -> None:
    with pytest.raises(UsageError, match="k is -1; at least 1"):
        search("red", library, EMBEDDER, k=-1)
