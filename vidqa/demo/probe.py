"""What the tiny model was made to answer, as rows: to see whether a fine-tuned one still can.

    rows = probe_rows(folder)       films of held-out seeds, every type of question, none in vain

Each row shows the scenes that answer it, as `ask` would. Expected answers are the sentences that
the model was trained to say, so it can be held to the letter.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

from finetune.rows import Media, Origin, Row, Turn
from vidqa.demo import films, questions, world
from vidqa.prompt import NOT_SHOWN
from vidqa.types import TextSpan

# Apart from the seeds of suite and demo.
FIRST_SEED = world.FIRST_HELD_OUT_SEED + 8000
FILMS, SCENES_PER_FILM = 12, 3

_MODELS = Path(__file__).parent / "models"


def knows_playground(model: str) -> bool:
    """Whether a model is one of those that were trained on the playground."""
    return Path(model).resolve().parent == _MODELS


def probe_rows(
    folder: Path,
    on_stage: Callable[[str], None] = lambda stage: None,
    *,
    film_count: int = FILMS,
) -> list[Row]:
    """One question of each type about each film that allows it; draws films that are not there."""
    seeds = [FIRST_SEED + number for number in range(film_count)]
    films.write_library(
        folder, seeds, SCENES_PER_FILM, per_type=1,
        on_film=lambda done, total: on_stage(f"drawing films: {done} of {total}"),
    )  # fmt: skip
    return [
        row for seed in seeds for row in _rows_of(world.sample_film(seed, SCENES_PER_FILM), folder)
    ]


def _rows_of(film: world.Film, folder: Path) -> list[Row]:
    rng = random.Random(film.seed)
    places, scenes = films.spans(film), list(film.scenes)
    asked = [_one(rng, scenes, kind) for kind in questions.QUESTION_TYPES]
    asked.append(questions.ask_in_vain(rng, scenes))
    rows: list[Row] = []
    for question in (one for one in asked if one is not None):
        shown = {at for at in (question.anchor, question.scene) if at is not None}
        media = [_media(folder / film.name, places[at], scenes[at]) for at in sorted(shown or {0})]
        rows.append(
            Row(
                turns=(
                    Turn("user", (*media, question.text)),
                    Turn("assistant", (_sentence(question),)),
                ),
                origin=Origin(f"playground, {film.name}", len(rows) + 1),
                id=f"{film.name} {question.type}",
                task="answer",
                extra={"type": question.type},
            )
        )
    return rows


def _one(
    rng: random.Random, scenes: list[world.WorldScene], kind: str
) -> questions.Question | None:
    """A question of a type about any scene that allows it."""
    for at in rng.sample(range(len(scenes)), len(scenes)):
        question = questions.ask_about(rng, scenes, kind, at)
        if question is not None:
            return question
    return None


def _sentence(question: questions.Question) -> str:
    said = question.statement
    return NOT_SHOWN if said is None else f"{said[0].upper()}{said[1:]}."


def _media(path: Path, place: films.Span, scene: world.WorldScene) -> Media:
    start, end = place.start_seconds, place.end_seconds
    texts = (TextSpan(start, end, scene.subtitle),) if scene.subtitle else ()
    return Media("video", (str(path),), start_seconds=start, end_seconds=end, texts=texts)
