"""What can be in a film of the playground, and films drawn at random from a seed.

A film is a row of scenes; a scene is a background with one to three objects that rest or move,
and now and then a written word. Everything follows from the film's seed. This module knows
nothing of pictures or files.

Lengths are in units of the frame's height, so the frame is `ASPECT` wide and 1 high; `progress`
runs from 0 at a scene's first frame to 1 at its last.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

ASPECT = 4 / 3

KINDS = (
    "arrow", "ball", "box", "cross", "fish", "heart",
    "house", "moon", "ring", "star", "tree", "triangle",
)  # fmt: skip
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "white")
BACKGROUNDS = ("bay", "city", "desert", "forest", "meadow", "night", "room", "snow")
MOTIONS = (
    "resting", "rising", "falling", "sliding left", "sliding right", "growing", "turning",
)  # fmt: skip
WORDS = ("CAFE", "EXIT", "HELLO", "JAZZ", "MENU", "OPEN", "PARK", "STOP", "TAXI", "ZERO")
NUMBERS = ("one", "two", "three")
# Said over a scene; they tell nothing of it, as an answer must be seen.
LINES = ("Here we go.", "Look at that.", "Nice and slow.", "What a day.", "Wait for me.")

SIDEWAYS = ("sliding left", "sliding right")

# A turn of these shows nothing.
ROUND_KINDS = ("ball", "ring")

# Seeds below this line are for training, from it on for measuring. See `split_of`.
FIRST_HELD_OUT_SEED = 1_000_000_000

# The strip at the bottom that a written word takes, and the margin around everything.
WORD_STRIP = 0.2
MARGIN = 0.03

Transition = Literal["cut", "fade"]


def split_of(seed: int) -> Literal["training", "held-out"]:
    """Which split a film's seed belongs to: a fixed line, so that no film can be in both."""
    return "training" if seed < FIRST_HELD_OUT_SEED else "held-out"


@dataclass(frozen=True, slots=True)
class Pose:
    """Where an object is at one moment: centre, radius and clockwise turn in degrees."""

    x: float
    y: float
    radius: float
    degrees: float


@dataclass(frozen=True, slots=True)
class Thing:
    """One object: what it is, and its straight path from `start` to `end` over the scene."""

    kind: str
    colour: str
    motion: str
    start: Pose
    end: Pose

    def at(self, progress: float) -> Pose:
        def between(first: float, last: float) -> float:
            return first + (last - first) * progress

        return Pose(
            x=between(self.start.x, self.end.x),
            y=between(self.start.y, self.end.y),
            radius=between(self.start.radius, self.end.radius),
            degrees=between(self.start.degrees, self.end.degrees),
        )

    @property
    def name(self) -> str:
        return f"{self.colour} {self.kind}"

    @property
    def mention(self) -> str:
        return f"{'an' if self.colour == 'orange' else 'a'} {self.name}"


@dataclass(frozen=True, slots=True)
class WorldScene:
    """One scene: its things from left to right, its word, and how the next scene follows."""

    background: str
    things: tuple[Thing, ...]
    word: str | None
    subtitle: str | None
    duration_seconds: float
    transition: Transition
    backdrop_seed: int

    @property
    def caption(self) -> str:
        """`a red star rising and a blue ball resting in the forest with the word TAXI`."""
        things = " and ".join(f"{thing.mention} {thing.motion}" for thing in self.things)
        word = f" with the word {self.word}" if self.word else ""
        return f"{things} in the {self.background}{word}"


@dataclass(frozen=True, slots=True)
class Film:
    """One film: its seed and its scenes in order; half of the films have subtitles."""

    seed: int
    scenes: tuple[WorldScene, ...]

    @property
    def name(self) -> str:
        return f"film-{self.seed % FIRST_HELD_OUT_SEED:04d}.mp4"


def sample_film(seed: int, scene_count: int = 8) -> Film:
    """The film of a seed. Neighbouring scenes never share a background."""
    rng = random.Random(seed)
    subtitled = rng.random() < 0.5
    scenes: list[WorldScene] = []
    for _ in range(scene_count):
        taken = scenes[-1].background if scenes else None
        scenes.append(sample_scene(rng, taken, subtitled))
    return Film(seed=seed, scenes=tuple(scenes))


def sample_scene(
    rng: random.Random, taken_background: str | None = None, subtitled: bool = False
) -> WorldScene:
    """A scene at random; no two of its things share a kind or a colour."""
    count = rng.choice((1, 2, 2, 3))
    word = rng.choice(WORDS) if rng.random() < 0.35 else None
    kinds, colours = rng.sample(KINDS, count), rng.sample(COLOURS, count)
    things = tuple(
        _sample_thing(rng, kind, colour, slot, count, word is not None)
        for slot, (kind, colour) in enumerate(zip(kinds, colours, strict=True))
    )
    return WorldScene(
        background=rng.choice([name for name in BACKGROUNDS if name != taken_background]),
        things=things,
        word=word,
        subtitle=rng.choice(LINES) if subtitled else None,
        duration_seconds=rng.randrange(60, 108) / 24,
        transition="fade" if rng.random() < 0.2 else "cut",
        backdrop_seed=rng.randrange(1 << 30),
    )


def _sample_thing(
    rng: random.Random, kind: str, colour: str, slot: int, count: int, has_word: bool
) -> Thing:
    """A thing inside its slot: the frame is cut into `count` columns, so nothing overlaps."""
    floor = 1 - MARGIN - (WORD_STRIP if has_word else 0)
    column = (ASPECT - 2 * MARGIN) / count
    left = MARGIN + slot * column
    radius = rng.uniform(0.85, 1.0) * min(0.27, column / 2 - 0.01)
    motion = rng.choice(_motions(kind, count))
    # Room that the centre has when the thing must stay inside its slot; a turn needs no more,
    # as every outline fits a circle.
    x_low, x_high = left + radius, left + column - radius
    y_low, y_high = MARGIN + radius, floor - radius
    x, y = rng.uniform(x_low, x_high), rng.uniform(y_low, y_high)
    start = end = Pose(x, y, radius, rng.uniform(-12, 12))
    if motion in ("rising", "falling"):
        travel = rng.uniform(0.75, 1.0) * (y_high - y_low)
        top = rng.uniform(y_low, y_high - travel)
        ends = (Pose(x, top + travel, radius, start.degrees), Pose(x, top, radius, start.degrees))
        start, end = ends if motion == "rising" else ends[::-1]
    elif motion in SIDEWAYS:
        travel = rng.uniform(0.75, 1.0) * (x_high - x_low)
        edge = rng.uniform(x_low, x_high - travel)
        ends = (Pose(edge + travel, y, radius, start.degrees), Pose(edge, y, radius, start.degrees))
        start, end = ends if motion == "sliding left" else ends[::-1]
    elif motion == "growing":
        start = Pose(x, y, radius * rng.uniform(0.35, 0.45), start.degrees)
    elif motion == "turning":
        end = Pose(x, y, radius, start.degrees + rng.uniform(75, 105))
    return Thing(kind=kind, colour=colour, motion=motion, start=start, end=end)


def _motions(kind: str, count: int) -> tuple[str, ...]:
    """The motions that can be seen: round things do not turn, three abreast leave no way aside."""
    hidden = ("turning",) if kind in ROUND_KINDS else ()
    cramped = SIDEWAYS if count == 3 else ()
    return tuple(motion for motion in MOTIONS if motion not in hidden + cramped)
