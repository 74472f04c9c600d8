"""Asking: question -> moments -> frames -> prompt -> model -> answer with checked citations.

    answer = ask("Who opens the door?", library, embedder, endpoint)

    prepared = prepare("Who opens the door?", library, embedder)        # the same in steps, for
    writing = prepared.writing()                                        # who talks to the model
    text = writing.add(piece) + writing.end()                           # in a way of their own
    answer = writing.answer(model, tokens)

Moments are found by search, or given: a whole video, or a stretch of one. Nothing is asked of the
model when there is nothing to show it. What the model may cite is what it was shown; any other
citation is dropped. Printing is the command line's, serving the server's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vidqa.errors import NothingFound, UsageError
from vidqa.prompt import CitationCheck, JsonCitationCheck, build_messages, cite
from vidqa.search import search
from vidqa.select import fit, neighbours, select, wants_neighbours, whole
from vidqa.types import (
    Answer,
    Filters,
    Moment,
    Picture,
    QuestionImage,
    ShownMoment,
    Usage,
    Video,
)
from vidqa.vlm import DEFAULT_SAMPLING, Sampling, TokenCount, VlmClient

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from vidqa.embed import Embedder
    from vidqa.library import Library
    from vidqa.types import EmbedderSpec

# Cosines between a text and an unrelated picture lie around 0 for CLIP and SigLIP models, those of
# a fitting one above. At or below it nothing speaks for a moment, and the model is not asked.
MIN_SCORE = 0.0
# The score of a moment that is shown for another reason than that it was found.
NOT_SEARCHED = 0.0


@dataclass(frozen=True, kw_only=True)
class AskOptions:
    """How to find, what to show, how to answer.

    `whole` names a video (id, path or file name) to be shown from end to end, `clip` is
    (video id, start seconds, end seconds) of a stretch; either replaces the search.
    `filters` and `where` restrict it, as in `vidqa.search`. `instructions` are what the asker wants
    of every answer, such as its language.
    """

    k: int = 5
    filters: Filters | None = None
    where: str | None = None
    whole: str | None = None
    clip: tuple[str, float, float] | None = None
    max_frames: int = 16
    frames_per_moment: int = 4
    max_pixels: int = 420 * 364
    sampling: Sampling = DEFAULT_SAMPLING
    instructions: str = ""

    def __post_init__(self) -> None:
        if self.whole is not None and self.clip is not None:
            raise UsageError("a whole video and a clip at once: choose one")
        given = "--whole" if self.whole is not None else "a clip" if self.clip is not None else ""
        if given and (restrictions := self.restrictions()):
            raise UsageError(
                f"{restrictions[0]} restricts a search, and {given} needs none: leave one out"
            )
        if self.clip is not None and not 0 <= self.clip[1] < self.clip[2]:
            raise UsageError(f"clip {self.clip}: 0 <= start < end is required")

    def restrictions(self) -> list[str]:
        """What the search is restricted to, as it would be written on the command line."""
        named = asdict(self.filters or Filters())
        named = {"--video": named.pop("video"), **named, "--where": self.where}
        return [f"{name} {_worded(value)}" for name, value in named.items() if value is not None]


def _worded(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    return repr(value) if isinstance(value, str) else str(value)


DEFAULT_OPTIONS = AskOptions()


def ask(
    question: str,
    library: Library,
    embedder: Embedder | None,
    endpoint: VlmClient | Callable[[], VlmClient],
    options: AskOptions = DEFAULT_OPTIONS,
    *,
    images: Sequence[QuestionImage] = (),
    on_text: Callable[[str], None] | None = None,
) -> Answer:
    """Answers from the library, and says which moments the answer rests on.

    `endpoint` may be a function, which is called once there is something to ask. The embedder is
    not needed with `options.whole` or `options.clip`. `images` are as in `prepare`. `on_text` is
    given the text as it arrives.
    Raises NothingFound before any model is asked, EndpointError when the model cannot answer.
    """
    prepared = prepare(question, library, embedder, options, images=images)
    with prepared.watch.time("engine"):
        client = endpoint() if callable(endpoint) else endpoint
    writing = prepared.writing()
    tell = on_text or (lambda _: None)
    with prepared.watch.time("model"):
        for piece in client.stream(prepared.messages(), options.sampling):
            tell(writing.add(piece))
        tell(writing.end())
    return writing.answer(client.model, client.usage)


def prepare(
    question: str,
    library: Library,
    embedder: Embedder | None,
    options: AskOptions = DEFAULT_OPTIONS,
    *,
    images: Sequence[QuestionImage] = (),
) -> Prepared:
    """Everything that comes before the model: moments are found, frames are chosen and read.

    `images` belong to the question: they take part in the search and are shown to the model.
    Raises NothingFound when there is nothing to show.
    """
    watch = Watch()
    if options.whole is not None or options.clip is not None:
        moments = _given(library, options)
    else:
        moments = _found(question, images, library, embedder, options, watch)
    with watch.time("frames"):
        shown = _shown(moments, library, options)
    jpegs = (fit(Picture(0.0, one.jpeg), options.max_pixels).jpeg for one in images)
    return Prepared(question, tuple(shown), tuple(jpegs), options, watch)


@dataclass(frozen=True)
class Prepared:
    """A question, and what the model is to be shown for it."""

    question: str
    shown: tuple[ShownMoment, ...]
    jpegs: tuple[bytes, ...]
    options: AskOptions
    watch: Watch

    def messages(self) -> list[dict[str, Any]]:
        """What the model is asked, in OpenAI's form."""
        return build_messages(
            self.question, self.shown, jpegs=self.jpegs, instructions=self.options.instructions
        )

    def writing(self) -> Writing:
        return Writing(self)

    @property
    def frames(self) -> int:
        """How many frames of the library are shown."""
        return sum(len(one.pictures) for one in self.shown)


class Writing:
    """An answer as the model writes it: what comes out cites only what was shown."""

    def __init__(self, prepared: Prepared) -> None:
        numbers = {one.n for one in prepared.shown}
        is_json = prepared.options.sampling.response_format is not None
        self._prepared = prepared
        self._check = JsonCitationCheck(numbers) if is_json else CitationCheck(numbers)
        self._parts: list[str] = []

    def add(self, piece: str) -> str:
        """Takes the model's next piece; returns what may be shown by now."""
        return self._kept(self._check.add(piece))

    def end(self) -> str:
        """Returns what was held back. The citations are known from now on."""
        return self._kept(self._check.end())

    def _kept(self, text: str) -> str:
        self._parts.append(text)
        return text

    def answer(self, model: str, tokens: TokenCount) -> Answer:
        prepared = self._prepared
        return Answer(
            question=prepared.question,
            answer="".join(self._parts).strip(),
            citations=cite(self._check.used, prepared.shown),
            moments=tuple(one.moment for one in prepared.shown),
            model=model,
            usage=Usage(tokens.prompt, tokens.completion, prepared.frames, tokens.cached),
            timings_ms=prepared.watch.milliseconds,
        )


# ---------------------------------------------------------------- which moments


_Choice = list[tuple[Moment, tuple[float, ...]]]
"""Moments with the times of the frames to show of each, in the order of showing."""


def _found(
    question: str,
    images: Sequence[QuestionImage],
    library: Library,
    embedder: Embedder | None,
    options: AskOptions,
    watch: Watch,
) -> _Choice:
    if embedder is None:
        raise UsageError("a search needs an embedder; without one give a whole video or a clip")
    timed = _TimedEmbedder(embedder, watch)
    with watch.time("search"):
        found = search(
            question,
            library,
            timed,
            images=[one.pixels for one in images],
            k=options.k,
            filters=options.filters,
            where=options.where,
        )
        moments = [moment for moment in found if moment.score > MIN_SCORE]
        if not moments:
            raise NothingFound(_why_nothing(library, options, found))
        if wants_neighbours(question):
            moments = _with_neighbours(moments, library)
    watch.milliseconds["search"] -= watch.milliseconds["embed"]
    return select(moments, options.max_frames, options.frames_per_moment)


def _with_neighbours(moments: Sequence[Moment], library: Library) -> list[Moment]:
    """The best moment, the scenes beside it, then the other moments."""
    best, *others = moments
    beside = [
        _moment(library, best.video, best.video_id, scene.start_seconds, scene.end_seconds)
        for scene in neighbours(best, library.scenes(best.video_id))
    ]
    new = [one for one in beside if not any(_overlap(one, other) for other in others)]
    met = [one for one in others if any(_overlap(one, other) for other in beside)]
    return [best, *new, *met, *(one for one in others if one not in met)]


def _overlap(one: Moment, other: Moment) -> bool:
    return (
        one.video_id == other.video_id
        and one.start_seconds < other.end_seconds
        and other.start_seconds < one.end_seconds
    )


def _why_nothing(library: Library, options: AskOptions, found: Sequence[Moment]) -> str:
    if found:
        return "nothing in the library looks like what is asked; other words may find it"
    if not library.videos():
        return f"the library at {library.folder} is empty; fill it: vidqa ingest PATH"
    filters = " and ".join(options.restrictions())
    return f"no moment fits {filters}" if filters else "no moment was found"


def _given(library: Library, options: AskOptions) -> _Choice:
    if options.clip is not None:
        return _clip(library, options, *options.clip)
    return _whole(library, options)


def _clip(
    library: Library, options: AskOptions, video_id: str, start_seconds: float, end_seconds: float
) -> _Choice:
    """The scenes of a stretch of one video, cut to the stretch."""
    video = _video(library, video_id)
    spans = [
        (max(scene.start_seconds, start_seconds), min(scene.end_seconds, end_seconds))
        for scene in library.scenes(video_id)
        if scene.start_seconds < end_seconds and start_seconds < scene.end_seconds
    ]
    moments = [_moment(library, video.path, video_id, *span) for span in spans]
    chosen = select(moments, options.max_frames, options.frames_per_moment)
    if not chosen:
        raise NothingFound(
            f"{video.path} has no frames in [{start_seconds:g}, {end_seconds:g}) s; "
            f"it lasts {video.duration_seconds:g} s"
        )
    return chosen


def _whole(library: Library, options: AskOptions) -> _Choice:
    """One video from end to end."""
    video = _video(library, options.whole or "")
    every = library.frame_seconds(video.video_id, 0.0, float("inf"))
    stretches = whole(library.scenes(video.video_id), every, options.max_frames)
    return [
        (_moment(library, video.path, video.video_id, start, end), times)
        for start, end, times in stretches
    ]


def _video(library: Library, name: str) -> Video:
    """The video of an id, a path, or a file name that only one video has."""
    rows = library.videos()
    absolute = str(Path(name).expanduser().absolute())
    for fits in (
        lambda row: name == row.video.video_id or {name, absolute} & set(row.paths),
        lambda row: any(Path(path).name == name for path in row.paths),
    ):
        found = [row.video for row in rows if fits(row)]
        if len(found) == 1:
            return found[0]
        if found:
            raise UsageError(f"{name} names {len(found)} videos; give the path of one")
    raise NothingFound(f"{name} is not in the library at {library.folder}; see vidqa ls")


def _moment(
    library: Library, video: str, video_id: str, start_seconds: float, end_seconds: float
) -> Moment:
    return Moment(
        video=video,
        video_id=video_id,
        start_seconds=start_seconds,
        end_seconds=end_seconds,
        score=NOT_SEARCHED,
        frame_seconds=tuple(library.frame_seconds(video_id, start_seconds, end_seconds)),
        texts=tuple(library.texts(video_id, start_seconds, end_seconds)),
    )


# ---------------------------------------------------------------- showing


def _shown(moments: _Choice, library: Library, options: AskOptions) -> list[ShownMoment]:
    return [
        ShownMoment(
            n=n,
            moment=replace(moment, frame_seconds=times),
            pictures=tuple(
                fit(picture, options.max_pixels)
                for picture in library.pictures(moment.video_id, times)
            ),
        )
        for n, (moment, times) in enumerate(moments, start=1)
    ]


@dataclass
class Watch:
    """How long each stage took, in milliseconds."""

    milliseconds: dict[str, float] = field(
        default_factory=lambda: dict.fromkeys(("embed", "search", "frames", "engine", "model"), 0.0)
    )

    @contextmanager
    def time(self, stage: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.milliseconds[stage] += (time.perf_counter() - started) * 1000


class _TimedEmbedder:
    """An embedder with a note of how long it took."""

    def __init__(self, embedder: Embedder, watch: Watch) -> None:
        self.spec: EmbedderSpec = embedder.spec
        self._embedder = embedder
        self._watch = watch

    def embed_images(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        return self._embedder.embed_images(images)

    def embed_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        with self._watch.time("embed"):
            return self._embedder.embed_texts(texts)
