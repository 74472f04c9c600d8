"""Cuts are PySceneDetect's, and scenes cover the video without gaps."""

from __future__ import annotations

import csv
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.media import (
    REAL_VIDEOS,
    Film,
    Format,
    dissolve,
    fade_in,
    fade_out,
    hold,
    make_film,
    shot,
)
from vidqa.containers import average_fps, displayed_size, open_video, video_stream
from vidqa.errors import UsageError
from vidqa.frames import Decoder
from vidqa.pictures import Views
from vidqa.scenes import SceneFinder, SceneOptions, tile


def found(path: Path, options: SceneOptions | None = None) -> tuple[SceneFinder, float]:
    """A finder that has seen the whole film, and the film's end."""
    with open_video(str(path)) as container:
        stream = video_stream(container)
        finder = SceneFinder(average_fps(stream), options or SceneOptions())
        views: Views | None = None
        decoder = Decoder(container, stream)
        for frame in decoder:
            views = views or Views(*displayed_size(frame.picture, None), 32, 32, "squash")
            finder.add(frame.seconds, views.detector(frame.picture))
        return finder, decoder.end_seconds


def our_cuts(path: Path, options: SceneOptions | None = None) -> list[float]:
    return found(path, options)[0].cuts


def our_scene_starts(path: Path) -> list[float]:
    finder, end = found(path)
    return [scene.start_seconds for scene in finder.scenes(end, [])]


def pyscenedetects_cuts(path: Path, folder: Path) -> list[float]:
    """Cuts of `scenedetect detect-adaptive detect-threshold`, set as we set the detectors."""
    command = [sys.executable, "-m", "scenedetect", "--quiet", "--input", str(path)]
    command += ["--output", str(folder), "detect-adaptive"]
    # Documented in percent, taken as a factor: 1 is the frame at which the picture comes back.
    command += ["detect-threshold", "--fade-bias", "1"]
    command += ["list-scenes", "--skip-cuts", "--filename", "scenes.csv"]
    subprocess.run(command, check=True, cwd=folder)
    with open(folder / "scenes.csv", newline="") as file:
        starts = [float(row["Start Time (seconds)"]) for row in csv.DictReader(file)]
    return starts[1:]


def assert_same_cuts(path: Path, folder: Path) -> None:
    # The command line writes milliseconds.
    assert our_cuts(path) == pytest.approx(pyscenedetects_cuts(path, folder), abs=0.0011)


GENERATED = {
    "hard cuts": ([shot(1.5, n) for n in range(6)], Format(fps=24)),
    "fades": (
        [shot(1.5, 1), fade_out(0.5, 1), hold(0.3), fade_in(0.5, 2), shot(1.5, 2), shot(1.5, 3)],
        Format(fps=25),
    ),
    "high definition": ([shot(1, 1), shot(1, 2)], Format(width=1280, height=720, fps=25)),
    "upright": ([shot(1, 1), shot(1, 2)], Format(width=640, height=360, rotation=90)),
    "short shots": ([shot(0.4, n) for n in range(9)], Format(fps=30)),
    "dark shots": ([shot(1.2, n, dark=0.3) for n in range(4)], Format()),
    "vp9": ([shot(1.2, n) for n in range(4)], Format(codec="libvpx-vp9")),
}


@pytest.mark.parametrize("name", GENERATED)
def test_cuts_of_generated_films_are_those_of_pyscenedetect(tmp_path: Path, name: str) -> None:
    shots, form = GENERATED[name]
    suffix = "webm" if "vp9" in form.codec else "mp4"
    assert_same_cuts(make_film(tmp_path / f"a.{suffix}", shots, form).path, tmp_path)


@pytest.mark.parametrize("name", ["bigbuckbunny.mp4", "bikes.mp4", "carphone_pristine.mp4"])
def test_cuts_of_real_videos_are_those_of_pyscenedetect(tmp_path: Path, name: str) -> None:
    if not (REAL_VIDEOS / name).exists():
        pytest.skip(f"{REAL_VIDEOS} has no {name}")
    assert_same_cuts(REAL_VIDEOS / name, tmp_path)


def test_hard_cuts_are_found_on_their_frame(tmp_path: Path) -> None:
    film = make_film(tmp_path / "a.mp4", [shot(1.5, n) for n in range(5)])
    assert our_cuts(film.path) == pytest.approx(film.cuts, abs=0.001)


def test_cuts_of_a_variable_frame_rate_are_found_on_their_frame(tmp_path: Path) -> None:
    slow = [n / 10 for n in range(30)]
    fast = [3 + n / 30 for n in range(90)]
    film = make_film(tmp_path / "a.mp4", [shot(3, 1), shot(3, 2)], frame_seconds=slow + fast)
    assert our_cuts(film.path) == pytest.approx([3.0], abs=0.001)


@pytest.mark.parametrize("level", [0, 255])
@pytest.mark.parametrize(("seconds", "held"), [(0.3, 0.2), (1.0, 0.2), (0.5, 1.0)])
def test_a_fade_starts_one_scene_within_its_span(
    tmp_path: Path, level: int, seconds: float, held: float
) -> None:
    shots = [
        shot(1.5, 1),
        fade_out(seconds, 1, level),
        hold(held, level),
        fade_in(seconds, 2, level),
        shot(1.5, 2),
    ]
    film: Film = make_film(tmp_path / "a.mp4", shots)
    (start, end) = film.fades[0]
    starts = our_scene_starts(film.path)
    assert len(starts) == 2
    assert start <= starts[1] <= end


def test_cuts_of_a_long_dark_stretch_stay(tmp_path: Path) -> None:
    shots = [shot(2, 1), *(shot(1.5, n, dark=0.06) for n in range(2, 5)), shot(2, 5)]
    assert len(our_scene_starts(make_film(tmp_path / "a.mp4", shots).path)) >= 3


def test_a_long_dissolve_is_no_false_cut(tmp_path: Path) -> None:
    shots = [shot(1.5, 1), dissolve(2, 1, 2), shot(1.5, 2)]
    cuts = our_cuts(make_film(tmp_path / "a.mp4", shots).path)
    assert all(1.4 <= cut <= 3.6 for cut in cuts)


def test_a_cut_is_known_within_the_lag(tmp_path: Path) -> None:
    film = make_film(tmp_path / "a.mp4", [shot(1.5, 1), shot(1.5, 2)])
    with open_video(str(film.path)) as container:
        stream = video_stream(container)
        finder, views = SceneFinder(24, SceneOptions()), Views(160, 120, 32, 32, "squash")
        for n, frame in enumerate(Decoder(container, stream)):
            for cut in finder.add(frame.seconds, views.detector(frame.picture)):
                assert n - round(cut * 24) <= SceneFinder.LAG


def test_scenes_follow_the_options(tmp_path: Path) -> None:
    film = make_film(tmp_path / "a.mp4", [shot(0.9, n) for n in range(4)])
    assert len(our_cuts(film.path)) == 3
    assert len(our_cuts(film.path, SceneOptions(min_scene_seconds=1.5))) == 1
    assert our_cuts(film.path, SceneOptions(adaptive_threshold=200)) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_scene_seconds": 0}, "min_scene_seconds is 0; it must be above 0"),
        ({"max_scene_seconds": 1}, "max_scene_seconds is 1; it must be at least twice"),
        ({"max_scene_seconds": float("nan")}, "max_scene_seconds is nan"),
        ({"adaptive_threshold": -1}, "adaptive_threshold is -1; it must be above 0"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        SceneOptions(**options)


cut_lists = st.lists(st.floats(0.01, 600), max_size=30, unique=True)


@given(cut_lists, st.floats(0.01, 700), st.floats(0.1, 5), st.floats(2, 20), st.floats(0.05, 3))
def test_scenes_tile_the_video(
    cuts: list[float], end: float, least: float, times: float, gap: float
) -> None:
    cuts = [cut for cut in cuts if cut < end]
    samples = sorted({*cuts, *(n * gap for n in range(int(end / gap)))})
    scenes = tile(cuts, end, samples, least, least * times)
    assert (scenes[0].start_seconds, scenes[-1].end_seconds) == (0.0, end)
    assert all(a.end_seconds == b.start_seconds for a, b in pairwise(scenes))
    assert [scene.index for scene in scenes] == list(range(len(scenes)))


@given(cut_lists, st.floats(0.01, 700), st.floats(0.1, 5))
def test_no_scene_is_too_short_but_a_short_video(
    cuts: list[float], end: float, least: float
) -> None:
    scenes = tile([cut for cut in cuts if cut < end], end, [], least, 1e9)
    lengths = [scene.end_seconds - scene.start_seconds for scene in scenes]
    assert len(scenes) == 1 or min(lengths) >= least - 1e-9


@given(st.floats(1, 7200), st.floats(2, 60))
def test_a_long_scene_is_split_evenly(end: float, longest: float) -> None:
    step = longest / 6
    samples = [n * step for n in range(int(end / step) + 1) if n * step < end]
    scenes = tile([], end, samples, 0.6, longest)
    lengths = [scene.end_seconds - scene.start_seconds for scene in scenes]
    assert max(lengths) <= longest + step + 1e-6
    assert max(lengths) - min(lengths) <= 2 * step + 1e-6


def test_a_picture_that_is_held_for_long_stays_one_scene() -> None:
    assert len(tile([], 600, [0, 1, 2], 0.6, 30)) == 1


def test_each_part_of_a_split_scene_has_three_frames() -> None:
    samples = [0, 1, 2, 3, 50, 51, 52, 53, 54, 99]
    scenes = tile([], 100, samples, 0.6, 30)
    for scene in scenes:
        inside = [at for at in samples if scene.start_seconds <= at < scene.end_seconds]
        assert len(inside) >= 3
    assert len(scenes) == 2
