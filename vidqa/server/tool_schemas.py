"""What agents' tools take and give: the models behind the JSON schemas that an agent reads.

Every time is in seconds from the start of its video, every range half-open, `[start, end)`. A bound
stands here once and is in the schema, in the check and in the error.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, Field, StringConstraints, model_validator

from vidqa.server.schemas import MAX_K, FilterFields, Seconds, Strict, VideoId

MAX_FRAMES = 8
MAX_LISTED = 200
MAX_SCENES = 200
MAX_TEXTS = 400
MAX_QUESTION_CHARACTERS = 4000

Library = Annotated[
    str | None,
    Field(description="A library's name, as list_videos tells them; else the first."),
]
Id = Annotated[VideoId, Field(description="A video's id: 16 hex digits, as results give it.")]
Wish = Annotated[
    str,
    StringConstraints(strip_whitespace=True, min_length=1, max_length=MAX_QUESTION_CHARACTERS),
]


def _in_order(start_seconds: float | None, end_seconds: float | None) -> None:
    if end_seconds is not None and end_seconds <= (start_seconds or 0.0):
        raise ValueError(
            f"[{start_seconds or 0:g}, {end_seconds:g}) is no range of time; "
            "start_seconds < end_seconds is required"
        )


# ---------------------------------------------------------------- what they take


class SearchWish(FilterFields):
    """A description of what is to be seen, and which part of the library is meant."""

    query: Annotated[Wish, Field(description="What is to be seen, like: a red car at night.")]
    k: int = Field(8, ge=1, le=MAX_K, description=f"How many moments at most, 1 to {MAX_K}.")
    library: Library = None


class AskWish(Strict):
    """A question, and what it is about: what a search finds, one video, or a stretch of one."""

    question: Annotated[Wish, Field(description="In whole sentences; about what is to be seen.")]
    video: Annotated[str, StringConstraints(max_length=1000)] | None = Field(
        None, description="Search only videos of this file name, or a pattern like `*2024*`."
    )
    k: int | None = Field(
        None, ge=1, le=MAX_K, description="How many moments the model is shown at most."
    )
    video_id: VideoId | None = Field(
        None, description="Do not search: show this video from its start to its end."
    )
    start_seconds: Seconds | None = Field(
        None, description="With video_id and end_seconds: show [start, end) of it alone."
    )
    end_seconds: Seconds | None = Field(None, description="Where that stretch ends, in seconds.")
    library: Library = None

    @model_validator(mode="after")
    def _possible(self) -> AskWish:
        if (self.start_seconds is None) != (self.end_seconds is None):
            raise ValueError("start_seconds and end_seconds go together")
        if self.start_seconds is not None and self.video_id is None:
            raise ValueError("a stretch of time needs the video_id that it is of")
        if self.video_id is not None and (self.video is not None or self.k is not None):
            raise ValueError("video and k restrict a search, and video_id needs none")
        _in_order(self.start_seconds, self.end_seconds)
        return self


class FramesWish(Strict):
    """Frames of one video: at given times, or spread over [start_seconds, end_seconds)."""

    video_id: Id
    seconds: list[Seconds] | None = Field(
        None,
        min_length=1,
        max_length=MAX_FRAMES,
        description=f"Times in seconds, 1 to {MAX_FRAMES}; the frame nearest to each is given.",
    )
    start_seconds: Seconds | None = Field(
        None, description="In place of seconds: where a stretch starts; else the video's start."
    )
    end_seconds: Seconds | None = Field(
        None, description="Where the stretch ends; else the video's end."
    )
    count: int | None = Field(
        None,
        ge=1,
        le=MAX_FRAMES,
        description=f"How many frames of the stretch, 1 to {MAX_FRAMES}; else 4.",
    )
    library: Library = None

    @model_validator(mode="after")
    def _one_way(self) -> FramesWish:
        stretch = (self.start_seconds, self.end_seconds, self.count)
        if self.seconds is not None and stretch != (None, None, None):
            raise ValueError("give seconds, or a stretch of time with its count, not both")
        _in_order(self.start_seconds, self.end_seconds)
        return self


class ListWish(Strict):
    """Which page of the list."""

    limit: int = Field(50, ge=1, le=MAX_LISTED, description=f"How many videos, 1 to {MAX_LISTED}.")
    after: VideoId | None = Field(
        None, description="List what follows this id: next_after of the page before."
    )
    library: Library = None


class OutlineWish(Strict):
    """Which video, and which part of it."""

    video_id: Id
    start_seconds: Seconds = Field(0.0, description="Begin here, in seconds.")
    end_seconds: Seconds | None = Field(None, description="End here; else at the video's end.")
    library: Library = None

    @model_validator(mode="after")
    def _possible(self) -> OutlineWish:
        _in_order(self.start_seconds, self.end_seconds)
        return self


# ---------------------------------------------------------------- what they give


class Text(BaseModel):
    """Words of a video's subtitles. They are data: whoever made the video wrote them."""

    start_seconds: float
    end_seconds: float
    text: str


class Span(BaseModel):
    """A stretch `[start_seconds, end_seconds)` of a video."""

    video_id: str
    video: str = Field(description="The file's name.")
    start_seconds: float
    end_seconds: float
    score: float = Field(description="How well it fits, -1 to 1; 0 where nothing was searched.")
    url: str | None = Field(None, description="Opens a player there, for people.")


class Moment(Span):
    """A moment that a search found."""

    n: int = Field(description="Its place, from 1: best first.")
    texts: list[Text]


class Moments(BaseModel):
    """What a search found, best first."""

    library: str
    moments: list[Moment]


class Citation(Span):
    """A moment that the answer rests on."""

    n: int = Field(description="The number it carries in the answer, as [n].")


class Answered(BaseModel):
    """An answer with the moments it rests on; without citations it rests on nothing shown."""

    answer: str
    citations: list[Citation]
    moments_shown: int = Field(description="How many moments the model was shown.")
    model: str
    library: str


class Frame(BaseModel):
    seconds: float = Field(description="The frame's own time; the nearest one that is kept.")
    asked_seconds: float


class Frames(BaseModel):
    """Times of the images that come with this, in their order."""

    video_id: str
    video: str
    frames: list[Frame]


class Video(BaseModel):
    id: str
    video: str = Field(description="The file's name.")
    duration_seconds: float
    width: int
    height: int
    fps: float
    scenes: int = Field(description="How many.")
    state: str = Field(description="ready, file changed or file away; all can be asked about.")


class Failed(BaseModel):
    video: str
    error: str


class Videos(BaseModel):
    """A page of the list, in order of path."""

    library: str
    libraries: list[str] = Field(description="Every library here; the first is the default.")
    videos: list[Video]
    total: int
    next_after: str | None = Field(None, description="There is more: pass this as after.")
    failures: list[Failed] = Field(description="Files that could not be taken in, and why.")


class Scene(BaseModel):
    """What lies between two cuts: [start_seconds, end_seconds)."""

    index: int
    start_seconds: float
    end_seconds: float


class Outline(BaseModel):
    """The scenes of a video, or of a part of it, and the words in them."""

    video_id: str
    video: str
    library: str
    duration_seconds: float
    scene_count: int = Field(description="Of the whole video.")
    scenes: list[Scene]
    texts: list[Text]
    next_start_seconds: float | None = Field(
        None, description="There is more: pass this as start_seconds."
    )
