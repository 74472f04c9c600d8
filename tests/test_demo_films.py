"""Films of the playground as files: what the truth says is what the pixels show."""

from __future__ import annotations

import itertools
import json
import os
from pathlib import Path

import av
import numpy as np
import pytest

from vidqa.demo import films, world


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[world.Film, Path]:
    """A film with both a cut and a fade, small."""
    film = next(
        film
        for film in (world.sample_film(seed, 3) for seed in range(100))
        if {scene.transition for scene in film.scenes[:-1]} == {"cut", "fade"}
        and film.scenes[0].subtitle
    )
    return film, films.write_film(film, tmp_path_factory.mktemp("film"), width=160)


def brightness(path: Path) -> list[float]:
    with av.open(str(path)) as container:
        return [
            float(frame.to_ndarray(format="gray").mean()) for frame in container.decode(video=0)
        ]


def test_a_film_has_exactly_the_frames_of_its_scenes(written: tuple[world.Film, Path]) -> None:
    film, path = written
    assert len(brightness(path)) == sum(films.frame_counts(film))


def test_a_fade_reaches_black_within_its_span(written: tuple[world.Film, Path]) -> None:
    film, path = written
    (fade,) = [cut for cut in films.cuts_of(film) if cut["transition"] == "fade"]
    levels = brightness(path)
    first, last = (round(fade[side] * films.FPS) for side in ("start_seconds", "end_seconds"))
    assert min(levels[first:last]) < 0.25 * levels[first - 1]


def test_a_cut_changes_the_picture_between_two_frames(written: tuple[world.Film, Path]) -> None:
    film, path = written
    (cut,) = [cut for cut in films.cuts_of(film) if cut["transition"] == "cut"]
    with av.open(str(path)) as container:
        frames = [
            frame.to_ndarray(format="rgb24").astype(int) for frame in container.decode(video=0)
        ]
    steps = [float(np.abs(b - a).mean()) for a, b in itertools.pairwise(frames)]
    assert int(np.argmax(steps)) + 1 == round(cut["start_seconds"] * films.FPS)


def test_subtitles_lie_inside_their_scenes(written: tuple[world.Film, Path]) -> None:
    film, path = written
    text = path.with_suffix(".srt").read_text("utf-8")
    assert text.count("-->") == len(film.scenes)
    assert film.scenes[0].subtitle in text


def test_the_truth_has_a_box_for_every_frame_of_every_thing(
    written: tuple[world.Film, Path],
) -> None:
    film, path = written
    truth = json.loads(path.with_suffix(".truth.json").read_text("utf-8"))
    for scene, count in zip(truth["scenes"], films.frame_counts(film), strict=True):
        assert all(len(thing["boxes"]) == count for thing in scene["things"])


def test_a_library_that_is_there_is_not_drawn_again(tmp_path: Path) -> None:
    films.write_library(tmp_path, [1], scene_count=2, per_type=1, width=160)
    (path,) = tmp_path.glob("*.mp4")
    os.utime(path, (1, 1))
    films.write_library(tmp_path, [1], scene_count=2, per_type=1, width=160)
    assert path.stat().st_mtime == 1


def test_a_library_of_another_size_is_drawn_again(tmp_path: Path) -> None:
    films.write_library(tmp_path, [1], scene_count=2, per_type=1, width=160)
    (path,) = tmp_path.glob("*.mp4")
    os.utime(path, (1, 1))
    films.write_library(tmp_path, [1], scene_count=2, per_type=1, width=224)
    assert path.stat().st_mtime != 1


def test_a_library_that_grows_keeps_the_films_it_has(tmp_path: Path) -> None:
    films.write_library(tmp_path, [1], scene_count=2, per_type=1, width=160)
    (path,) = tmp_path.glob("*.mp4")
    os.utime(path, (1, 1))
    films.write_library(tmp_path, [1, 2], scene_count=2, per_type=1, width=160)
    assert len(list(tmp_path.glob("*.mp4"))) == 2
    assert path.stat().st_mtime == 1


def test_a_film_of_the_same_name_and_another_seed_is_drawn_again(tmp_path: Path) -> None:
    films.write_library(tmp_path, [1], scene_count=2, per_type=1, width=160)
    (path,) = tmp_path.glob("*.mp4")
    os.utime(path, (1, 1))
    seed = world.FIRST_HELD_OUT_SEED + 1
    films.write_library(tmp_path, [seed], scene_count=2, per_type=1, width=160)
    assert [one.name for one in tmp_path.glob("*.mp4")] == [path.name]
    assert path.stat().st_mtime != 1
