"""The demo: the main job on a few films of the playground, told step by step.

Draws or reuses the films, ingests them, asks one question of every type, and writes a report with
what the model saw. What to say goes to the functions it is given; it prints nothing itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from vidqa.config import Settings
from vidqa.demo import evaluate, world
from vidqa.demo.evaluate import Reply
from vidqa.library import Library
from vidqa.prompt import NOT_SHOWN, time_range
from vidqa.report import Section, of_answer, page
from vidqa.types import ShownMoment
from vidqa.wiring import ask_options, connect, ingest_options, open_library

FILMS, SCENES_PER_FILM = 4, 6
# Apart from the suite's seeds, so that the demo shows films that the suite does not measure.
FIRST_SEED = world.FIRST_HELD_OUT_SEED + 1000
PASS_SHARE = 0.75  # 6 of 8, 7 of 9

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Score:
    asked: int
    right: int

    @property
    def passed(self) -> bool:
        return self.right >= PASS_SHARE * self.asked


def run(settings: Settings, html: Path, say: Say, note: Say) -> Score:
    """Runs the demo in `settings.index`, writes the report to `html` and returns the score."""
    settings = replace(settings, index=settings.index / "demo")
    library, embedder = open_library(settings, create=True)
    ground = evaluate.prepare(
        settings.index / "films",
        [FIRST_SEED + number for number in range(FILMS)],
        SCENES_PER_FILM,
        1,
        library,
        embedder,
        ingest_options(settings),
        on_progress=lambda stage, done, total: note(f"{stage}: {done} of {total}"),
    )
    say(f"{FILMS} films with {sum(len(film.scenes) for film in ground.films)} scenes are ingested.")
    replies = []
    with connect(settings, note) as client:
        for number, asked in enumerate(ground.asked, start=1):
            reply = evaluate.reply_to(asked, library, embedder, client, ask_options(settings))
            say("\n".join(_lines(number, reply)))
            replies.append(reply)
    score = Score(len(replies), sum(reply.right for reply in replies))
    html.parent.mkdir(parents=True, exist_ok=True)
    verdict = f"{score.right} of {score.asked} answers are right."
    sections = [_section(reply, library) for reply in replies]
    html.write_text(page("The vidqa playground", sections, [verdict]), "utf-8")
    say(f"\n{verdict} What the model saw: {html}\n\n{_NEXT}")
    return score


_NEXT = """\
Try next:
  vidqa search "red star" --config demo --index indexes/demo/demo
  vidqa ask "Where is the red star?" --config demo --index indexes/demo/demo
  vidqa ingest PATH/TO/YOUR/VIDEOS        your own, with the models that know the real world
  vidqa doctor                            what this machine still lacks for that"""


def _lines(number: int, reply: Reply) -> list[str]:
    expected = reply.asked.answer or NOT_SHOWN
    mark = "right" if reply.right else f"wrong, it is: {expected}"
    lines = [f"\n{number}. {reply.asked.text}", f"   {reply.text}   ({mark})"]
    for cited in () if reply.answer is None else reply.answer.citations:
        times = time_range(cited.start_seconds, cited.end_seconds)
        lines.append(f"   [{cited.n}] {Path(cited.video).name}  {times}")
    return lines


def _section(reply: Reply, library: Library) -> Section:
    """The reply with the pictures of the moments that the model was shown."""
    expected = reply.asked.answer or NOT_SHOWN
    if reply.answer is None:
        return Section(reply.asked.text, (), reply.text, right=reply.right, expected=expected)
    shown = [
        ShownMoment(n, moment, tuple(library.pictures(moment.video_id, moment.frame_seconds)))
        for n, moment in enumerate(reply.answer.moments, start=1)
    ]
    return of_answer(reply.answer, shown, right=reply.right, expected=expected)
