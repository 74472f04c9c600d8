"""What tiny-qwen2-vl was never asked: rows to fine-tune it with, and rows to measure it by.

    python -m vidqa.demo.domain DIR

    DIR/films/...            films of training seeds, and of held-out ones
    DIR/train.jsonl          questions of new types, with some of the old ones among them
    DIR/held-out.jsonl       questions of the new types about the held-out films
    DIR/old.jsonl            questions of the old types about them: what may be forgotten
    DIR/pictures/...         drawn scenes of training seeds, one picture each
    DIR/boxes-train.jsonl    things to be located in those, with old questions about them between
    DIR/boxes-held-out.jsonl things to be located in frames of the held-out films

The new types ask for what the model sees, from the other end: which thing is beside another, which
one moves in a way, and their colours. Everything follows from the seeds.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from finetune.formats import write
from finetune.rows import Located, Media, Origin, Row, Turn
from vidqa.boxes import Box, question
from vidqa.demo import films, questions, tiny_vlm, world
from vidqa.demo.draw import box_of, draw_backdrop, draw_things
from vidqa.types import TextSpan

# Far from the seeds that the suite and the demo use.
FIRST_TRAINING_SEED = 500_000
FIRST_HELD_OUT_SEED = world.FIRST_HELD_OUT_SEED + 20_000
SCENES_PER_FILM = 8
# The share of old questions in training: without any, old answers are forgotten.
REHEARSED = 0.5
# Old questions beside each thing to be located: how the model tells one thing from another.
ASKED_BESIDE = 0.6
PICTURE_SIZE = (224, 168)  # twice what tiny-qwen2-vl sees


@dataclass(frozen=True, slots=True)
class Asked:
    """A question of a new type about one scene, and its answer as a sentence without the end."""

    type: str
    text: str
    answer: str


def new_questions(scene: world.WorldScene) -> Iterator[Asked]:
    """What can be asked of a scene in the new types."""
    for at, thing in enumerate(scene.things):
        named, motion = f"the {thing.name}", thing.motion
        if len(scene.things) == 2:
            other = scene.things[1 - at]
            answer = f"the {other.name} is beside {named}"
            yield Asked("beside", f"What is beside {named}?", answer)
            answer = f"the {other.kind} is {other.colour}"
            yield Asked("colour beside", f"What colour is the thing beside {named}?", answer)
        if sum(one.motion == motion for one in scene.things) == 1:
            text = f"What is {motion} in the {scene.background}?"
            yield Asked("mover", text, f"{named} is {motion}")
            text = f"What colour is the thing that is {motion}?"
            yield Asked("colour of mover", text, f"the thing {motion} is {thing.colour}")


def new_rows(made: Sequence[world.Film], folder: Path) -> list[Row]:
    """A row for each question of the new types about each scene."""
    return [
        _row([_moment(film, at, folder)], asked.text, f"{_sentence(asked.answer)} [1].", asked.type)
        for film in made
        for at, scene in enumerate(film.scenes)
        for asked in new_questions(scene)
    ]


def old_rows(made: Sequence[world.Film], folder: Path, count: int, seed: int = 0) -> list[Row]:
    """`count` questions of the old types, as `ask` would show their scenes."""
    rng = random.Random(seed)
    rows: list[Row] = []
    while len(rows) < count:
        film = rng.choice(made)
        first = rng.randrange(len(film.scenes))
        shown = range(first, min(len(film.scenes), first + rng.choice((1, 1, 2, 3))))
        scenes = [film.scenes[at] for at in shown]
        kind = rng.choice((*questions.QUESTION_TYPES, "unanswerable"))
        if kind == "unanswerable":
            asked: questions.Question | None = questions.ask_in_vain(rng, scenes)
        else:
            # Named at any length: of these the suite's questions are, and short ones alone are not
            # enough to keep them apart from the new types.
            anchor = rng.randrange(len(scenes))
            asked = questions.ask_about(rng, scenes, kind, anchor, rng.choice)
        if asked is not None:
            number = None if asked.scene is None else asked.scene + 1
            answer = tiny_vlm.answer_text(asked, number)
            media = [_moment(film, at, folder) for at in shown]
            row = _row(media, asked.text, answer, asked.type)
            if row not in rows:
                rows.append(row)
    return rows


def box_rows(made: Sequence[world.Film], folder: Path, per_scene: int = 1) -> list[Row]:
    """Rows that locate each thing in `per_scene` frames of each scene."""
    rows = []
    for film in made:
        for at, (scene, span) in enumerate(zip(film.scenes, films.spans(film), strict=True)):
            count = films.frame_counts(film)[at]
            rng = random.Random(f"{film.seed} {at}")
            for frame in rng.sample(range(count // 4, count * 3 // 4), per_scene):  # clear of fades
                seconds = span.start_seconds + (frame + 0.5) / films.FPS
                media = Media("image", (str(folder / film.name),), at_seconds=round(seconds, 4))
                rows += [_located(media, thing, frame / (count - 1)) for thing in scene.things]
    return rows


def picture_rows(folder: Path, count: int) -> list[Row]:
    """A row for each of `count` scenes, each drawn once: films show too few."""
    folder.mkdir(parents=True, exist_ok=True)
    talk = random.Random(0)
    rows = []
    for number in range(count):
        rng = random.Random(FIRST_TRAINING_SEED + number)
        scene, progress = world.sample_scene(rng), rng.uniform(0.1, 0.9)
        path = folder / f"{number:05d}.jpg"
        if not path.exists():
            backdrop = draw_backdrop(scene, *PICTURE_SIZE)
            draw_things(backdrop, scene.things, progress).save(path, quality=90)
        rows.append(_conversation(talk, Media("image", (str(path),)), scene, progress))
    return rows


def _conversation(
    rng: random.Random, media: Media, scene: world.WorldScene, progress: float
) -> Row:
    """Each thing of a picture is located, and some are asked about, in any order."""
    said: list[tuple[str, str | Located]] = []
    for thing in scene.things:
        said.append(_locating(thing, progress))
        if rng.random() < ASKED_BESIDE and (asked := list(_asked_beside(thing, scene.things))):
            said.append(rng.choice(asked))
    rng.shuffle(said)
    turns: list[Turn] = []
    for text, answer in said:
        turns.append(Turn("user", (text,) if turns else (media, text)))
        turns.append(Turn("assistant", (answer,)))
    return Row(tuple(turns), Origin("", 0))


def _asked_beside(thing: world.Thing, things: Sequence[world.Thing]) -> Iterator[tuple[str, str]]:
    """Old questions about a thing in a picture, where its kind or colour alone names it."""
    if sum(one.kind == thing.kind for one in things) == 1:
        yield f"What colour is the {thing.kind}?", f"The {thing.kind} is {thing.colour} [1]."
    if sum(one.colour == thing.colour for one in things) == 1:
        yield f"What is the {thing.colour} thing?", f"It is the {thing.name} [1]."


def _located(media: Media, thing: world.Thing, progress: float) -> Row:
    text, answer = _locating(thing, progress)
    turns = (Turn("user", (media, text)), Turn("assistant", (answer,)))
    return Row(turns, Origin("", 0), task="box")


def _locating(thing: world.Thing, progress: float) -> tuple[str, Located]:
    """The question where a thing is, and its answer."""
    named = f"the {thing.name}"
    return question(named), Located(((named, Box(*box_of(thing, progress))),))


def _moment(film: world.Film, at: int, folder: Path) -> Media:
    span, scene = films.spans(film)[at], film.scenes[at]
    texts = (
        (TextSpan(span.start_seconds + 0.4, span.end_seconds - 0.4, scene.subtitle),)
        if scene.subtitle
        else ()
    )
    return Media(
        "video",
        (str(folder / film.name),),
        start_seconds=span.start_seconds,
        end_seconds=span.end_seconds,
        texts=texts,
    )


def _row(media: Sequence[Media], text: str, answer: str, kind: str) -> Row:
    turns = (Turn("user", (*media, text)), Turn("assistant", (answer,)))
    return Row(turns, Origin("", 0), task="answer", extra={"type": kind})


def _sentence(answer: str) -> str:
    return answer[0].upper() + answer[1:]


def write_domain(
    folder: Path,
    training_films: int = 40,
    held_out_films: int = 8,
    pictures: int = 25_000,
    tell: Callable[[str], None] = lambda stage: None,
) -> None:
    """Films and rows; what is there already is made anew only where it differs.

    `tell` hears what is being made, and of each file of rows.
    """
    shelf = (folder / "films").absolute()  # so that the rows name them from their own folder
    training, held_out = (
        [world.sample_film(first + number, SCENES_PER_FILM) for number in range(count)]
        for first, count in (
            (FIRST_TRAINING_SEED, training_films),
            (FIRST_HELD_OUT_SEED, held_out_films),
        )
    )
    tell(f"drawing {training_films + held_out_films} films: {folder / 'films'}")
    films.write_films([*training, *held_out], shelf)
    tell(f"drawing {pictures:,} pictures: {folder / 'pictures'}")
    new = new_rows(training, shelf)
    rehearsed = old_rows(training, shelf, round(len(new) * REHEARSED / (1 - REHEARSED)))
    rows = {
        "train": random.Random(0).sample([*new, *rehearsed], len(new) + len(rehearsed)),
        "held-out": random.Random(0).sample(new_rows(held_out, shelf), 40 * held_out_films),
        "old": old_rows(held_out, shelf, 25 * held_out_films),
        "boxes-train": picture_rows(folder / "pictures", pictures),
        "boxes-held-out": box_rows(held_out, shelf),
    }
    for name, chosen in rows.items():
        write(chosen, folder / f"{name}.jsonl", "vidqa")
        tell(f"{folder / name}.jsonl: {len(chosen):,} rows")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--films", type=int, default=40, help="films of training seeds")
    parser.add_argument("--held-out-films", type=int, default=8)
    parser.add_argument("--pictures", type=int, default=25_000, help="scenes to locate things in")
    given = parser.parse_args()
    write_domain(given.folder, given.films, given.held_out_films, given.pictures, print)
