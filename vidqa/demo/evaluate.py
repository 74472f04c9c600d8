"""The playground's suite: how well scenes are cut, moments are found and questions are answered.

Everything is measured on films of held-out seeds, through the same functions that the commands
call. The figures are defined in `metrics`; how they are printed is the command line's business.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from vidqa.ask import AskOptions, ask
from vidqa.demo import films, metrics, world
from vidqa.demo.films import Asked, Query, Span
from vidqa.demo.metrics import Figure
from vidqa.embed import Embedder
from vidqa.errors import NothingFound, VidqaError
from vidqa.ingest import IngestOptions, ingest
from vidqa.library import Library
from vidqa.prompt import NOT_SHOWN, build_messages
from vidqa.search import search
from vidqa.types import Answer, Citation, Moment
from vidqa.vlm import VlmClient

# Films that no choice was made on: the held-out ones before these were looked at while the profile
# was being settled.
FIRST_SEED = world.FIRST_HELD_OUT_SEED + 5000
SCENES_PER_FILM = 8
FILMS = 28
QUESTIONS_PER_TYPE = 50
# vLLM answers requests together; asking one by one would leave it idle between them.
ASKED_AT_ONCE = 4

T = TypeVar("T")
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Reply:
    """What came of one question; `answer` is None where the library held nothing to show."""

    asked: Asked
    answer: Answer | None

    @property
    def text(self) -> str:
        return NOT_SHOWN if self.answer is None else self.answer.answer

    @property
    def right(self) -> bool:
        return metrics.is_right(self.text, self.asked)

    @property
    def cited_right(self) -> list[bool]:
        """For each citation, whether its span overlaps a span that answers."""
        cited = () if self.answer is None else self.answer.citations
        return [
            any(metrics.overlap_seconds(span_of(one), true) > 0 for true in self.asked.spans)
            for one in cited
        ]


@dataclass(frozen=True, slots=True)
class Suite:
    """The figures of a run by name, and the replies that answers were counted on."""

    figures: dict[str, Figure]
    end_to_end: tuple[Reply, ...]
    given_clip: tuple[Reply, ...]


@dataclass(frozen=True, slots=True)
class Playground:
    """A library of ingested films with what can be asked of it."""

    films: tuple[world.Film, ...]
    asked: tuple[Asked, ...]
    queries: tuple[Query, ...]
    video_ids: dict[str, str]


def prepare(
    folder: Path,
    seeds: Sequence[int],
    scene_count: int,
    per_type: int,
    library: Library,
    embedder: Embedder,
    options: IngestOptions,
    on_progress: Progress,
) -> Playground:
    """Writes the films of these seeds into `folder`, or reuses them, and ingests them.

    `library` is made to hold these films and nothing else: other films, of an earlier run with
    more of them, would make questions ambiguous. Raises VidqaError when one cannot be ingested.
    """
    asked, queries = films.write_library(
        folder, seeds, scene_count, per_type,
        on_film=lambda done, total: on_progress("drawing films", done, total),
    )  # fmt: skip
    made = tuple(world.sample_film(seed, scene_count) for seed in seeds)
    paths = [folder / film.name for film in made]
    on_progress("ingesting films", 0, len(paths))
    report = ingest(paths, library, embedder, options)
    if report.failures:
        raise VidqaError(f"{report.failures[0].path}: {report.failures[0].error}")
    on_progress("ingesting films", len(paths), len(paths))
    ids = {Path(row.video.path).name: row.video.video_id for row in library.videos()}
    for name in ids.keys() - {film.name for film in made}:
        library.remove(ids.pop(name))
    return Playground(made, tuple(asked), tuple(queries), ids)


def run(
    folder: Path,
    library: Library,
    embedder: Embedder,
    client: VlmClient,
    ingest_options: IngestOptions,
    options: AskOptions,
    *,
    film_count: int = FILMS,
    per_type: int = QUESTIONS_PER_TYPE,
    on_progress: Progress = lambda stage, done, total: None,
) -> Suite:
    """Runs the suite; `library` should hold nothing but its films, which live in `folder`.

    Questions are asked several at once with the one client, whose count of tokens mixes then; no
    figure reads it.
    """
    seeds = [FIRST_SEED + number for number in range(film_count)]
    ground = prepare(
        folder, seeds, SCENES_PER_FILM, per_type, library, embedder, ingest_options, on_progress
    )

    def end_to_end(asked: Asked) -> Reply:
        return reply_to(asked, library, embedder, client, options)

    def given_clip(asked: Asked) -> Reply:
        clip = replace(options, clip=clip_of(asked, ground))
        return reply_to(asked, library, None, client, clip)

    def blind(asked: Asked) -> bool:
        pieces = client.stream(build_messages(asked.text, ()), options.sampling)
        return metrics.is_right("".join(pieces), asked)

    found = _all("asking the library", end_to_end, ground.asked, on_progress)
    given = _all("asking with the clip given", given_clip, ground.asked, on_progress)
    unseen = _all("asking without frames", blind, ground.asked, on_progress)
    figures = {
        "cut_f1": cut_figure(ground, library),
        **query_figures(ground.queries, library, embedder),
        "answer_accuracy_given_clip": metrics.share(reply.right for reply in given),
        "answer_accuracy_end_to_end": metrics.share(reply.right for reply in found),
        "citation_precision": metrics.share(one for reply in found for one in reply.cited_right),
        "blind_accuracy": metrics.share(unseen),
        **by_type("answer_accuracy_given_clip", given),
        **by_type("answer_accuracy_end_to_end", found),
    }
    return Suite(figures, tuple(found), tuple(given))


def reply_to(
    asked: Asked,
    library: Library,
    embedder: Embedder | None,
    client: VlmClient,
    options: AskOptions,
) -> Reply:
    """Asks one question; that nothing is found is an answer too."""
    try:
        return Reply(asked, ask(asked.text, library, embedder, client, options))
    except NothingFound:
        return Reply(asked, None)


def clip_of(asked: Asked, ground: Playground) -> tuple[str, float, float]:
    """(video id, start, end) that answers the question; of one without answer, what it shows."""
    held = asked.spans or (asked.shown,)
    start = min(span.start_seconds for span in held)
    return ground.video_ids[held[0].film], start, max(span.end_seconds for span in held)


def _all(
    stage: str, answer: Callable[[Asked], T], asked: Sequence[Asked], on_progress: Progress
) -> list[T]:
    replies: list[T] = []
    with ThreadPoolExecutor(ASKED_AT_ONCE) as pool:
        for reply in pool.map(answer, asked):
            replies.append(reply)
            on_progress(stage, len(replies), len(asked))
    return replies


def by_type(name: str, replies: Iterable[Reply]) -> dict[str, Figure]:
    """Accuracy per question type, as `<name>.<type>`."""
    groups: dict[str, list[bool]] = {}
    for reply in replies:
        groups.setdefault(reply.asked.type, []).append(reply.right)
    return {f"{name}.{kind}": metrics.share(rights) for kind, rights in groups.items()}


def cut_figure(ground: Playground, library: Library) -> Figure:
    """F1 over the cuts of all films; n counts the true ones, the interval is Wilson's at that n."""
    hits = missed = invented = 0
    for film in ground.films:
        found = [scene.start_seconds for scene in library.scenes(ground.video_ids[film.name])][1:]
        scores = metrics.cut_scores(list(films.cuts_of(film)), found, films.FPS)
        hits, missed, invented = hits + scores[0], missed + scores[1], invented + scores[2]
    recall = metrics.share([True] * hits + [False] * missed)
    return replace(recall, value=metrics.f1(hits, missed, invented))


def query_figures(
    queries: Sequence[Query], library: Library, embedder: Embedder
) -> dict[str, Figure]:
    """Recall at 1 and 5, where an IoU of a half is found, and the first moment's mean IoU."""
    ious = [
        [
            metrics.iou(span_of(one), query.span)
            for one in search(query.text, library, embedder, k=5)
        ]
        for query in queries
    ]
    return {
        "recall_at_1": metrics.share(any(one >= 0.5 for one in row[:1]) for row in ious),
        "recall_at_5": metrics.share(any(one >= 0.5 for one in row[:5]) for row in ious),
        "moment_iou": metrics.mean(row[0] if row else 0.0 for row in ious),
    }


def span_of(found: Moment | Citation) -> Span:
    return Span(Path(found.video).name, found.start_seconds, found.end_seconds)
