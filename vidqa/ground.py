"""Grounding: a frame of a video and what to look for -> boxes around it.

    still = still_at(video, 12.5, library)
    grounded = ground(["the red car"], still, client, sight)
    grounded.found[0].box.as_pixels(*still.size)
    grounded.picture().save("car.png")

    ground_answer(answer, ["the red car"], library, client, sight)     its cited moments

Each phrase is one question about one picture, in the form `prompt.ground_messages` has, which is
also that of training data made of boxes. What the model writes is read by `boxes.parse`; a reply
without a box is "not found", whatever else it says. Printing and saving is the command line's.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePath
from typing import TYPE_CHECKING

from vidqa import boxes
from vidqa.boxes import Box, Sight
from vidqa.drawing import draw
from vidqa.errors import UsageError, VideoError
from vidqa.frames import frame_at
from vidqa.pictures import PICTURE_LONG_SIDE, PICTURE_SHORT_SIDE, jpeg_size
from vidqa.prompt import NOT_SHOWN, ground_messages, without_markers
from vidqa.select import JPEG_QUALITY, fit
from vidqa.types import Answer, Citation, Picture, ShownMoment, Video
from vidqa.vlm import Sampling, VlmClient

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image

    from vidqa.library import Library

_KEPT_PIXELS = PICTURE_LONG_SIDE * PICTURE_SHORT_SIDE
# What a reply says where it should have given a box is worth a line, no more.
_LONGEST_REPLY = 200
_PAGE_SIDE = 1280  # pixels of a picture on a page, whose pictures are all in one file


@dataclass(frozen=True, slots=True)
class Still:
    """One frame: `image` is uint8 (H, W, 3), RGB, `kept` the small picture that a model is shown.

    `full` says whether `image` comes from the file, at the size in which the video is displayed;
    else the file is away, and it is the kept picture.
    """

    video: Video
    seconds: float
    image: NDArray[np.uint8]
    kept: Picture
    full: bool

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the image in pixels."""
        height, width, _ = self.image.shape
        return width, height


@dataclass(frozen=True, slots=True)
class Located:
    """A thing that was found: what was asked for, what the model calls it, and where it is."""

    phrase: str
    label: str
    box: Box


@dataclass(frozen=True, slots=True)
class Missing:
    """A thing for which the model gave no box, and the beginning of what it said in its place."""

    phrase: str
    reply: str


@dataclass(frozen=True, slots=True)
class Grounded:
    """One frame with what was found in it; boxes are fractions of its sides.

    `citation` is the one of an answer that the frame belongs to.
    """

    still: Still
    found: tuple[Located, ...]
    missing: tuple[Missing, ...]
    model: str
    citation: Citation | None = None

    def picture(self) -> Image:
        """The frame with the boxes drawn, each under the phrase that asked for it."""
        return draw(self.still.image, [(one.phrase, one.box) for one in self.found])


@dataclass(frozen=True, kw_only=True)
class GroundOptions:
    """`max_pixels` bounds the picture that the model is shown.

    Up to 420 x 364 that is the picture which `ask` shows, and training; above, the frame itself.
    """

    max_pixels: int = _KEPT_PIXELS
    sampling: Sampling = field(default_factory=lambda: Sampling(skip_special_tokens=False))


DEFAULT_OPTIONS = GroundOptions()


def still_at(video: Video, seconds: float, library: Library | None = None) -> Still:
    """The frame on the screen at a time, decoded from the file at full size.

    With a library, its other paths are tried as well, and where none of its files can be read, the
    kept picture nearest to that time is taken. Raises UsageError for a time outside of the video,
    VideoError without a library, LibraryError when there is no kept picture either.
    """
    _check_time(video, seconds)
    for path in [video.path] if library is None else library.paths(video.video_id):
        try:
            frame = frame_at(path, seconds)
        except VideoError:
            if library is None:
                raise
        else:
            return Still(video, seconds, frame.image, frame.kept, full=True)
    assert library is not None
    return _kept_still(video, seconds, library)


def _check_time(video: Video, seconds: float) -> None:
    length = video.duration_seconds
    if not 0 <= seconds < (length or math.inf):
        raise UsageError(
            f"--at {seconds:g}: {PurePath(video.path).name} lasts {length:g} s; "
            f"0 to less than {length:g} is allowed"
        )


def _kept_still(video: Video, seconds: float, library: Library) -> Still:
    import numpy as np
    from PIL import Image

    (kept,) = library.pictures(video.video_id, [seconds])
    with Image.open(io.BytesIO(kept.jpeg)) as image:
        pixels = np.asarray(image.convert("RGB"))
    return Still(video, kept.seconds, pixels, kept, full=False)


def ground(
    phrases: Sequence[str],
    still: Still,
    endpoint: VlmClient | Callable[[], VlmClient],
    sight: Sight,
    options: GroundOptions = DEFAULT_OPTIONS,
    *,
    citation: Citation | None = None,
) -> Grounded:
    """Where each of the phrases is in a frame.

    `endpoint` may be a function, as in `ask`. Raises UsageError for a phrase without a word,
    EndpointError when the model cannot answer.
    """
    if not phrases or not all(phrase.strip() for phrase in phrases):
        raise UsageError('nothing to look for; say what, like "the red car"')
    client = endpoint() if callable(endpoint) else endpoint
    picture = _shown(still, options.max_pixels)
    shown_size = sight.shown_size(*jpeg_size(picture.jpeg))
    found: list[Located] = []
    missing: list[Missing] = []
    for phrase in dict.fromkeys(" ".join(one.split()) for one in phrases):
        reply = "".join(client.stream(ground_messages(phrase, picture.jpeg), options.sampling))
        things = boxes.parse(sight.family, reply, shown_size)
        found += [Located(phrase, label, box) for label, box in dict.fromkeys(things)]
        if not things:
            missing.append(Missing(phrase, " ".join(reply.split())[:_LONGEST_REPLY]))
    return Grounded(still, tuple(found), tuple(missing), client.model, citation)


def _shown(still: Still, max_pixels: int) -> Picture:
    """What the model is shown of a frame."""
    if not still.full or max_pixels <= _KEPT_PIXELS:
        return fit(still.kept, max_pixels)
    from PIL import Image

    encoded = io.BytesIO()
    Image.fromarray(still.image).save(encoded, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return fit(Picture(still.seconds, encoded.getvalue()), max_pixels)


# ---------------------------------------------------------------- the frames of an answer


def ground_answer(
    answer: Answer,
    phrases: Sequence[str],
    library: Library,
    endpoint: VlmClient | Callable[[], VlmClient],
    sight: Sight,
    options: GroundOptions = DEFAULT_OPTIONS,
) -> Iterator[Grounded]:
    """What each citation of an answer shows of the phrases; nothing where it cites nothing.

    Of a cited moment the frames that the model was shown are tried from the middle outwards, until
    one has all that is looked for; else the frame with the most of it is taken. Phrases without a
    word are passed over.
    """
    phrases = [phrase for phrase in phrases if phrase.strip()]
    if not phrases:
        return
    for citation in answer.citations:
        video = library_video(library, citation)
        best: Grounded | None = None
        for seconds in _from_the_middle(answer.moments[citation.n - 1].frame_seconds):
            still = still_at(video, seconds, library)
            tried = ground(phrases, still, endpoint, sight, options, citation=citation)
            if best is None or len(tried.missing) < len(best.missing):
                best = tried
            if not tried.missing:
                break
        if best is not None:
            yield best


def library_video(library: Library, citation: Citation) -> Video:
    """The video of a citation. Raises VideoError when it was taken out meanwhile."""
    for row in library.videos():
        if row.video.video_id == citation.video_id:
            return row.video
    raise VideoError(f"{citation.video}: is not in the library at {library.folder} any more")


def _from_the_middle(seconds: Sequence[float]) -> list[float]:
    middle = (len(seconds) - 1) / 2
    order = sorted(range(len(seconds)), key=lambda place: abs(place - middle))
    return [seconds[place] for place in order]


def with_boxes(shown: Sequence[ShownMoment], grounded: Sequence[Grounded]) -> list[ShownMoment]:
    """The moments of an answer with the boxes drawn where something was found, for a page."""
    return [replace(one, pictures=tuple(_drawn(one, grounded))) for one in shown]


def _drawn(shown: ShownMoment, grounded: Sequence[Grounded]) -> Iterator[Picture]:
    drawn = {
        one.still.seconds: one
        for one in grounded
        if one.found and one.citation is not None and one.citation.n == shown.n
    }
    for picture in shown.pictures:
        found = drawn.get(picture.seconds)
        yield picture if found is None else Picture(picture.seconds, _page_jpeg(found.picture()))


def _page_jpeg(image: Image) -> bytes:
    image.thumbnail((_PAGE_SIDE, _PAGE_SIDE))
    encoded = io.BytesIO()
    image.save(encoded, "JPEG", quality=JPEG_QUALITY)
    return encoded.getvalue()


_ARTICLE = re.compile(r"\b(?:the|an?|his|her|their|its|my|our|this|that|these|those)\s", re.I)
_END = re.compile(r"[,;:?!.]|\s+and\s+(?:when|where|who|what|which|how|why)\b", re.I)
_FEATURE = re.compile(
    r"^(?:the\s+)?(?:colou?r|kind|type|shape|size|name|number|position|place|rest)\s+of\s+", re.I
)


def phrase_of(question: str, answer: str) -> str:
    """What a question is about, for who names nothing to look for; empty where there is nothing.

    The rule: the question from its first article or possessive to the next punctuation mark ("Who
    opens the door, and when?" is about "the door"; of "the colour of the star", the star counts).
    A question without one, as in other languages: the first sentence of the answer.
    """
    text = without_markers(question)
    if start := _ARTICLE.search(text):
        about = text[start.start() :]
        about = _FEATURE.sub("", about[: end.start()] if (end := _END.search(about)) else about)
        return " ".join(about.split())
    if answer.strip() == NOT_SHOWN:
        return ""
    said = without_markers(answer).strip()
    return " ".join(said[: end.start()].split() if (end := _END.search(said)) else said.split())
