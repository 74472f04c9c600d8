"""A library of films -> questions with answers and the spans that answer them.

A question refers to exactly one scene of the library it is asked of (`the red star with the blue
ball in the forest`), with the shortest reference that does so, or, when it has no answer, to
none. Knows nothing of pictures, files or models.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from vidqa.demo.world import BACKGROUNDS, COLOURS, KINDS, NUMBERS, Thing, WorldScene

QUESTION_TYPES = ("colour", "kind", "motion", "count", "background", "word", "after", "before")

_TEMPLATES = {
    "colour": "What colour is {}?",
    "kind": "What is {}?",
    "motion": "What is {} doing?",
    "count": "How many things are in the scene with {}?",
    "background": "Where is {}?",
    "word": "Which word is written near {}?",
    "after": "Which place comes after {}?",
    "before": "Which place comes before {}?",
}

_STATEMENTS = {
    "colour": "{subject} is {answer}",
    "kind": "it is {whole}",
    "motion": "{subject} is {answer}",
    "count": "the number of things with {subject} is {answer}",
    "background": "{subject} is in the {answer}",
    "word": "the word near {subject} is {answer}",
    "after": "the place after {subject} is the {answer}",
    "before": "the place before {subject} is the {answer}",
}


@dataclass(frozen=True, slots=True)
class Reference:
    """What a question says of a scene; `None` leaves a property open."""

    colour: str | None
    kind: str | None
    beside: tuple[str, str] | None
    background: str | None

    def fits(self, scene: WorldScene) -> bool:
        if self.background not in (None, scene.background):
            return False
        names = [(thing.colour, thing.kind) for thing in scene.things]
        if self.beside is not None and self.beside not in names:
            return False
        return any(
            self.colour in (None, colour) and self.kind in (None, kind)
            for colour, kind in names
            if (colour, kind) != self.beside
        )

    @property
    def subject(self) -> str:
        """The thing itself, without what tells it from others: `the red star`."""
        return f"the {' '.join(word for word in (self.colour, self.kind or 'thing') if word)}"

    def __str__(self) -> str:
        beside = f" with the {' '.join(self.beside)}" if self.beside else ""
        place = f" in the {self.background}" if self.background else ""
        return f"{self.subject}{beside}{place}"


@dataclass(frozen=True, slots=True)
class Question:
    """One question; `answer` is None when nothing in the library answers it.

    `statement` is the answer as a sentence would say it. `scene` is the number, in the library,
    of the scene that holds the answer, and `anchor` of the scene that the question names: the
    two differ for `after` and `before` only. `thing` is the one that the question names there.
    """

    type: str
    text: str
    answer: str | None
    statement: str | None
    anchor: int | None
    scene: int | None
    thing: Thing | None


def phrase(question_type: str, reference: Reference) -> str:
    """The question of this type about what the reference names."""
    return _TEMPLATES[question_type].format(reference)


def references(thing: Thing, scene: WorldScene, question_type: str) -> Iterator[Reference]:
    """Ways to refer to a thing without giving the answer away, the shortest first."""
    colour = None if question_type == "colour" else thing.colour
    kind = None if question_type == "kind" else thing.kind
    others = [(other.colour, other.kind) for other in scene.things if other is not thing]
    besides: list[tuple[str, str] | None] = [None, *others]
    places = [None] if question_type == "background" else [None, scene.background]
    for beside in besides:
        for place in places:
            yield Reference(colour, kind, beside, place)


def answer_to(
    question_type: str, thing: Thing, anchor: int, scenes: Sequence[WorldScene | None]
) -> tuple[str | None, int]:
    """The answer and the number of the scene that shows it; None where there is no answer.

    `scenes` may hold None between films, so that nothing comes after a film's last scene.
    """
    scene = scenes[anchor]
    assert scene is not None
    if question_type in ("after", "before"):
        number = anchor + (1 if question_type == "after" else -1)
        beside = scenes[number] if 0 <= number < len(scenes) else None
        return (beside.background if beside else None), number
    plain: dict[str, str | None] = {
        "colour": thing.colour,
        "kind": thing.kind,
        "motion": thing.motion,
        "count": NUMBERS[len(scene.things) - 1],
        "background": scene.background,
        "word": scene.word,
    }
    return plain[question_type], anchor


def ask_about(
    rng: random.Random,
    scenes: Sequence[WorldScene | None],
    question_type: str,
    anchor: int,
    prefer: Callable[[list[Reference]], Reference] = lambda fitting: fitting[0],
) -> Question | None:
    """A question of this type about a thing of the scene `anchor`, if one can be put.

    None when no reference names that scene alone, or when there is no answer to the question.
    `prefer` chooses among the references that do.
    """
    scene = scenes[anchor]
    assert scene is not None
    thing = rng.choice(scene.things)
    answer, number = answer_to(question_type, thing, anchor, scenes)
    if answer is None:
        return None
    fitting = [
        reference
        for reference in references(thing, scene, question_type)
        if [at for at, other in enumerate(scenes) if other and reference.fits(other)] == [anchor]
        and _names_one_thing(reference, scene)
    ]
    if not fitting:
        return None
    chosen = prefer(fitting)
    statement = _STATEMENTS[question_type].format(
        subject=chosen.subject, whole=f"the {thing.name}", answer=answer
    )
    return Question(
        type=question_type,
        text=phrase(question_type, chosen),
        answer=answer,
        statement=statement,
        anchor=anchor,
        scene=number,
        thing=thing,
    )


def _names_one_thing(reference: Reference, scene: WorldScene) -> bool:
    return (
        sum(
            reference.colour in (None, thing.colour) and reference.kind in (None, thing.kind)
            for thing in scene.things
            if (thing.colour, thing.kind) != reference.beside
        )
        == 1
    )


def ask_in_vain(rng: random.Random, scenes: Sequence[WorldScene | None]) -> Question:
    """A question whose reference fits no scene, close to what is there: one property is changed."""
    present = [scene for scene in scenes if scene is not None]
    while True:
        scene = rng.choice(present)
        thing = rng.choice(scene.things)
        question_type = rng.choice(QUESTION_TYPES)
        reference = _change_one(rng, rng.choice(list(references(thing, scene, question_type))))
        if not any(reference.fits(other) for other in present):
            text = phrase(question_type, reference)
            return Question("unanswerable", text, None, None, None, None, None)


def _change_one(rng: random.Random, reference: Reference) -> Reference:
    """The reference with its colour, kind or background replaced by another."""
    colour, kind, beside, place = (
        reference.colour, reference.kind, reference.beside, reference.background,
    )  # fmt: skip
    changeable = [
        name for name, value in (("colour", colour), ("kind", kind), ("place", place)) if value
    ]
    match rng.choice(changeable):
        case "colour":
            colour = rng.choice([other for other in COLOURS if other != colour])
        case "kind":
            kind = rng.choice([other for other in KINDS if other != kind])
        case _:
            place = rng.choice([other for other in BACKGROUNDS if other != place])
    return Reference(colour, kind, beside, place)


def text_query(rng: random.Random, scenes: Sequence[WorldScene | None], anchor: int) -> str | None:
    """A description, without the motion, that fits the scene `anchor` alone; None if there is none.

    The motion is left out as one frame, the unit of search, does not show it.
    """
    scene = scenes[anchor]
    assert scene is not None
    candidates = [
        str(reference).removeprefix("the ")
        for thing in scene.things
        for reference in references(thing, scene, "motion")
        if [at for at, other in enumerate(scenes) if other and reference.fits(other)] == [anchor]
    ]
    return rng.choice(candidates) if candidates else None
