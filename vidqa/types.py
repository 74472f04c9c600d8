"""The records that flow between the modules: frozen, checked when made, free of behaviour.

Units are in the names. Times are seconds from the start of the video, taken from presentation
timestamps; every range is half-open, `[start, end)`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import datetime

    import numpy as np
    from numpy.typing import NDArray

ResizeMode = Literal["shortest", "squash"]
FileState = Literal["ingested", "skipped", "moved", "linked", "failed"]

# Sixteen of the fingerprint's hex digits name a video; at 64 bits, a library of a million
# videos meets a collision with a chance of about 3e-8.
VIDEO_ID_DIGITS = 16


def _check_range(name: str, start_seconds: float, end_seconds: float) -> None:
    if not 0 <= start_seconds < end_seconds:
        raise ValueError(
            f"{name}: [{start_seconds}, {end_seconds}) is not a range of time; "
            "0 <= start < end is required"
        )


@dataclass(frozen=True, slots=True)
class Video:
    """One video file, as its container describes it.

    `width` and `height` are in pixels as displayed, after rotation and with square pixels.
    `fps` is the average frame rate; the true frame times may vary.
    """

    path: str
    fingerprint: str
    size_bytes: int
    mtime_ns: int
    duration_seconds: float
    fps: float
    width: int
    height: int
    rotation_degrees: int
    codec: str
    container: str

    def __post_init__(self) -> None:
        if len(self.fingerprint) < VIDEO_ID_DIGITS:
            raise ValueError(f"fingerprint {self.fingerprint!r} has under {VIDEO_ID_DIGITS} digits")

    @property
    def video_id(self) -> str:
        return self.fingerprint[:VIDEO_ID_DIGITS]


@dataclass(frozen=True, slots=True)
class Scene:
    """What lies between two cuts: `[start_seconds, end_seconds)`, numbered from 0 in its video."""

    index: int
    start_seconds: float
    end_seconds: float

    def __post_init__(self) -> None:
        _check_range(f"scene {self.index}", self.start_seconds, self.end_seconds)


@dataclass(frozen=True, slots=True)
class TextSpan:
    """Words that belong to `[start_seconds, end_seconds)`; `source` says where they come from."""

    start_seconds: float
    end_seconds: float
    text: str
    source: str = "subtitle"

    def __post_init__(self) -> None:
        _check_range(f"text {self.text[:40]!r}", self.start_seconds, self.end_seconds)


@dataclass(frozen=True, slots=True)
class FrameBatch:
    """Sampled frames of one video, in order of time.

    seconds        float64 (N,), rising
    scene_index    int32 (N,)
    images         uint8 (N, H, W, 3), RGB, at the embedder's input size
    jpegs          N encoded pictures in the video's own aspect ratio, or () when none are kept
    """

    seconds: NDArray[np.float64]
    scene_index: NDArray[np.int32]
    images: NDArray[np.uint8]
    jpegs: tuple[bytes, ...] = ()

    def __post_init__(self) -> None:
        n = len(self.seconds)
        if len(self.scene_index) != n or len(self.images) != n or len(self.jpegs) not in (0, n):
            raise ValueError(
                f"a batch of {n} times has {len(self.scene_index)} scene numbers, "
                f"{len(self.images)} images and {len(self.jpegs)} pictures"
            )

    def __len__(self) -> int:
        return len(self.seconds)


@dataclass(frozen=True, slots=True)
class EmbedderSpec:
    """What decides the vectors of a library; two equal specs give comparable vectors.

    `weights` is the digest of the weights; `image_height` and `image_width` are in pixels.
    """

    model: str
    weights: str
    dimension: int
    image_height: int
    image_width: int
    resize_mode: ResizeMode


@dataclass(frozen=True, slots=True, kw_only=True)
class Filters:
    """What a search is restricted to; a scene fits when it fits all that is given.

    video          a path or file name, or a pattern of either such as `*/2024/*`
    name           a file name, or a pattern of it: for who must not learn of folders
    video_ids      one of these videos
    text           every one of these words is in the words that overlap the scene, in either case,
                   be it as a part of a word
    min_seconds, max_seconds    bounds of the video's duration, both included
    after, before               the video was ingested in [after, before), days in UTC
    """

    video: str | None = None
    name: str | None = None
    video_ids: tuple[str, ...] | None = None
    text: str | None = None
    min_seconds: float | None = None
    max_seconds: float | None = None
    after: datetime.date | None = None
    before: datetime.date | None = None

    def __post_init__(self) -> None:
        if self.text is not None and not self.text.strip():
            raise ValueError("text is empty; give a word that is said, or leave it out")
        low, high = self.min_seconds, self.max_seconds
        if low is not None and high is not None and low > high:
            raise ValueError(f"min_seconds {low:g} is above max_seconds {high:g}: nothing can fit")
        if self.after is not None and self.before is not None and self.after >= self.before:
            raise ValueError(f"no day is in [{self.after}, {self.before}): nothing can fit")


@dataclass(frozen=True, slots=True)
class FrameHit:
    """One frame found by a search; `score` is the cosine of the angle to the query."""

    video_id: str
    scene_index: int
    seconds: float
    score: float


@dataclass(frozen=True, slots=True)
class Moment:
    """A stretch of one video that fits a query: the unit of an answer.

    `frame_seconds` are the times of the kept frames in the stretch, `score` is the best frame's,
    `texts` are the words that overlap it. `video` is the path of the file.
    """

    video: str
    video_id: str
    start_seconds: float
    end_seconds: float
    score: float
    frame_seconds: tuple[float, ...]
    texts: tuple[TextSpan, ...] = ()

    def __post_init__(self) -> None:
        _check_range(f"moment of {self.video}", self.start_seconds, self.end_seconds)


@dataclass(frozen=True, slots=True)
class Picture:
    """One frame as the model sees it: a JPEG and its time in the video."""

    seconds: float
    jpeg: bytes


@dataclass(frozen=True, slots=True)
class QuestionImage:
    """A picture that belongs to a query or a question.

    `pixels` is uint8 (H, W, 3), RGB, at the embedder's input size; `jpeg` is what the model sees.
    """

    pixels: NDArray[np.uint8]
    jpeg: bytes


@dataclass(frozen=True, slots=True)
class ShownMoment:
    """A moment with the pictures chosen from it; `n` is its number in the prompt, from 1."""

    n: int
    moment: Moment
    pictures: tuple[Picture, ...]


@dataclass(frozen=True, slots=True)
class Citation:
    """A moment that an answer rests on; `n` is the number it carries in the answer's text."""

    n: int
    video: str
    video_id: str
    start_seconds: float
    end_seconds: float
    score: float


@dataclass(frozen=True, slots=True)
class Usage:
    """What one answer cost: tokens as the endpoint counted them, frames as they were shown.

    `cached_tokens` are those of the prompt that the endpoint had read before.
    """

    prompt_tokens: int
    completion_tokens: int
    frames: int
    cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer with its checked citations and the moments that the model was shown."""

    question: str
    answer: str
    citations: tuple[Citation, ...]
    moments: tuple[Moment, ...]
    model: str
    usage: Usage
    timings_ms: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class FileReport:
    """What became of one file of an ingest; `error` is one line, and only set for `failed`.

    `busy` says that the library was what failed, and not the file.
    """

    path: str
    state: FileState
    scenes: int = 0
    frames: int = 0
    seconds_video: float = 0.0
    seconds_wall: float = 0.0
    error: str | None = None
    busy: bool = False


@dataclass(frozen=True, slots=True)
class IngestReport:
    """The sum of an ingest, a `FileReport` per file in the order they were finished."""

    files: Sequence[FileReport]
    seconds_wall: float

    def count(self, *states: FileState) -> int:
        return sum(report.state in states for report in self.files)

    @property
    def failures(self) -> tuple[FileReport, ...]:
        return tuple(report for report in self.files if report.state == "failed")
