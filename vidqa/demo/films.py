"""A film -> an mp4, its subtitles and its truth as JSON; and whole libraries of films.

    film-0001.mp4          H.264, 24 frames a second
    film-0001.srt          only when the film has subtitles
    film-0001.truth.json   cuts, captions and a box per thing and frame
    questions.json         what can be asked of the films in this folder together

Everything is a function of the seeds, so a folder that is there already is used as it is.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vidqa.demo import questions
from vidqa.demo.draw import box_of, draw_backdrop, draw_things
from vidqa.demo.world import ASPECT, Film, WorldScene, sample_film

FPS = 24
# A fade takes this long to reach black, and as long to leave it.
FADE_FRAMES = 12
# Raised whenever the same seeds would give other films or questions.
RECIPE = 1


@dataclass(frozen=True, slots=True)
class Span:
    """A scene's place in its film: `[start_seconds, end_seconds)`."""

    film: str
    start_seconds: float
    end_seconds: float


def frame_counts(film: Film) -> list[int]:
    return [round(scene.duration_seconds * FPS) for scene in film.scenes]


def spans(film: Film) -> list[Span]:
    """The span of each scene; a fade belongs half to the scene before and half to the one after."""
    found, first = [], 0
    for count in frame_counts(film):
        found.append(Span(film.name, first / FPS, (first + count) / FPS))
        first += count
    return found


def write_film(film: Film, folder: Path, width: int = 448) -> Path:
    """Writes the mp4, the subtitles and the truth; the mp4 appears last and whole."""
    import av
    import numpy as np

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / film.name
    height = round(width / ASPECT / 2) * 2
    path.with_suffix(".srt").unlink(missing_ok=True)
    if any(scene.subtitle for scene in film.scenes):
        path.with_suffix(".srt").write_text(_subtitles(film), "utf-8")
    path.unlink(missing_ok=True)
    path.with_suffix(".truth.json").write_text(json.dumps(truth_of(film, width)), "utf-8")
    unfinished = path.with_suffix(".part")
    with av.open(str(unfinished), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"crf": "20", "preset": "fast"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for image in _frames(film, width, height):
            frame = av.VideoFrame.from_ndarray(np.asarray(image), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    os.replace(unfinished, path)
    return path


def _frames(film: Film, width: int, height: int) -> Iterator[Any]:
    from PIL import Image

    black = Image.new("RGB", (width, height))
    faded_in = False
    for scene, count in zip(film.scenes, frame_counts(film), strict=True):
        backdrop = draw_backdrop(scene, width, height)
        fades_out = scene.transition == "fade" and scene is not film.scenes[-1]
        for at in range(count):
            image = draw_things(backdrop, scene.things, at / (count - 1))
            into = (at + 1) / (FADE_FRAMES + 1) if faded_in else 1.0
            out = (count - at) / (FADE_FRAMES + 1) if fades_out else 1.0
            light = min(into, out, 1.0)
            yield image if light == 1.0 else Image.blend(black, image, light)
        faded_in = fades_out


def _subtitles(film: Film) -> str:
    def stamp(seconds: float) -> str:
        whole, milli = divmod(round(seconds * 1000), 1000)
        return f"{whole // 3600:02d}:{whole // 60 % 60:02d}:{whole % 60:02d},{milli:03d}"

    blocks = []
    for number, (scene, span) in enumerate(zip(film.scenes, spans(film), strict=True), 1):
        start, end = span.start_seconds + 0.4, span.end_seconds - 0.4
        blocks.append(f"{number}\n{stamp(start)} --> {stamp(end)}\n{scene.subtitle}\n")
    return "\n".join(blocks)


def truth_of(film: Film, width: int) -> dict[str, Any]:
    """Cuts, scenes and boxes (left, top, right, bottom as fractions of the frame) of a film."""
    places = spans(film)
    return {
        "film": film.name,
        "made_of": _made_of(film, width),
        "fps": FPS,
        "cuts": list(cuts_of(film)),
        "scenes": [
            {
                "start_seconds": place.start_seconds,
                "end_seconds": place.end_seconds,
                "caption": scene.caption,
                "background": scene.background,
                "word": scene.word,
                "things": [_thing_truth(scene, at, count) for at in range(len(scene.things))],
            }
            for scene, place, count in zip(film.scenes, places, frame_counts(film), strict=True)
        ],
    }


def _thing_truth(scene: WorldScene, at: int, count: int) -> dict[str, Any]:
    thing = scene.things[at]
    boxes = [box_of(thing, frame / (count - 1)) for frame in range(count)]
    return {
        "colour": thing.colour,
        "kind": thing.kind,
        "motion": thing.motion,
        "boxes": [[round(side, 4) for side in box] for box in boxes],
    }


def cuts_of(film: Film) -> Iterator[dict[str, Any]]:
    """Where scenes change: a hard cut at one time, a fade within a span of time."""
    for scene, place in zip(film.scenes[:-1], spans(film), strict=False):
        seconds = place.end_seconds
        if scene.transition == "cut":
            yield {"transition": "cut", "start_seconds": seconds, "end_seconds": seconds}
        else:
            half = FADE_FRAMES / FPS
            yield {
                "transition": "fade",
                "start_seconds": seconds - half,
                "end_seconds": seconds + half,
            }


@dataclass(frozen=True, slots=True)
class Asked:
    """A question of a library; `spans` hold its answer, none when there is none.

    For before and after, the first span is the scene that the question names and the last one the
    scene that answers it. An unanswerable question carries `shown`, a scene that does not help.
    """

    type: str
    text: str
    answer: str | None
    spans: tuple[Span, ...]
    shown: Span


@dataclass(frozen=True, slots=True)
class Query:
    """A description that fits one scene of the library."""

    text: str
    span: Span


def library_questions(films: Sequence[Film], per_type: int, seed: int = 0) -> list[Asked]:
    """Up to `per_type` questions of each type over all films, and as many without an answer."""
    rng = random.Random(seed)
    scenes, places = _line_up(films)
    real = [at for at, place in enumerate(places) if place is not None]
    found: list[Asked] = []
    for question_type in questions.QUESTION_TYPES:
        rng.shuffle(real)
        asked = (questions.ask_about(rng, scenes, question_type, at) for at in real)
        chosen = [question for question in asked if question is not None][:per_type]
        found += [_place(question, places) for question in chosen]
    for _ in range(per_type):
        text = questions.ask_in_vain(rng, scenes).text
        shown = places[rng.choice(real)]
        assert shown is not None
        found.append(Asked("unanswerable", text, None, (), shown))
    return found


def library_queries(films: Sequence[Film], seed: int = 0) -> list[Query]:
    """A text query for every scene that can be told from all others."""
    rng = random.Random(seed)
    scenes, places = _line_up(films)
    found = []
    for at, place in enumerate(places):
        text = questions.text_query(rng, scenes, at) if place is not None else None
        if text is not None and place is not None:
            found.append(Query(text, place))
    return found


def _line_up(films: Sequence[Film]) -> tuple[list[WorldScene | None], list[Span | None]]:
    """All scenes and their spans in one row, with None between films."""
    scenes: list[WorldScene | None] = []
    places: list[Span | None] = []
    for film in films:
        scenes += [*film.scenes, None]
        places += [*spans(film), None]
    return scenes, places


def _place(question: questions.Question, places: list[Span | None]) -> Asked:
    assert question.anchor is not None
    assert question.scene is not None
    numbers = dict.fromkeys((question.anchor, question.scene))
    held = tuple(place for number in numbers if (place := places[number]) is not None)
    return Asked(question.type, question.text, question.answer, held, held[0])


def write_library(
    folder: Path,
    seeds: Sequence[int],
    scene_count: int = 8,
    per_type: int = 50,
    width: int = 448,
    on_film: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[list[Asked], list[Query]]:
    """Films of these seeds with their questions and queries; reuses the films that are there.

    `on_film` hears of every finished film: how many are done, of how many.
    """
    films = [sample_film(seed, scene_count) for seed in seeds]
    asked = library_questions(films, per_type)
    queries = library_queries(films)
    write_films(films, folder, width, on_film)
    rows = {
        "questions": [asdict(one) for one in asked],
        "queries": [asdict(one) for one in queries],
    }
    (folder / "questions.json").write_text(json.dumps(rows, indent=1), "utf-8")
    return asked, queries


def write_films(
    films: Sequence[Film],
    folder: Path,
    width: int = 448,
    on_film: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Writes the films that are not there yet."""
    for done, film in enumerate(films, 1):
        if not _is_written(film, folder, width):
            write_film(film, folder, width)
        on_film(done, len(films))


def _is_written(film: Film, folder: Path, width: int) -> bool:
    """Whether just this film is there whole: the mp4 appears last."""
    path = folder / film.name
    try:
        truth = json.loads(path.with_suffix(".truth.json").read_text("utf-8"))
    except (OSError, ValueError):
        return False
    return path.exists() and truth.get("made_of") == _made_of(film, width)


def _made_of(film: Film, width: int) -> dict[str, int]:
    """What the files of a film follow from."""
    return {"recipe": RECIPE, "seed": film.seed, "scenes": len(film.scenes), "width": width}
