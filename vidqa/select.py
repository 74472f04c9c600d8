"""Which frames of which moments go to the model, within a budget; and at what size.

Pure functions: moments and numbers in, moments and times out. Frames are counted in pairs, because
two frames share one set of Qwen2-VL's tokens: an odd one costs as much as two. The times chosen are
always times of frames that were sampled, never times in between.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence

from vidqa.errors import UsageError
from vidqa.types import Moment, Picture, Scene

# A side of Qwen2-VL's visual token, in pixels: 2 x 2 patches of 14.
TOKEN_SIDE = 28
JPEG_QUALITY = 92

_NEIGHBOUR_WORDS = re.compile(
    r"\b(before|after|afterwards?|then|next|following|follows|previous(?:ly)?|preceding|earlier"
    r"|later|until|since|subsequently|beforehand|prior|leads? (?:up )?to|cause[ds]?|why)\b",
    re.IGNORECASE,
)


def wants_neighbours(question: str) -> bool:
    """Whether the answer may lie beside what is described, as in "what comes after the dog?"."""
    return _NEIGHBOUR_WORDS.search(question) is not None


def neighbours(moment: Moment, scenes: Sequence[Scene]) -> list[Scene]:
    """The scene before a moment and the one after it, where there are any."""
    before = [scene for scene in scenes if scene.end_seconds <= moment.start_seconds]
    after = [scene for scene in scenes if scene.start_seconds >= moment.end_seconds]
    return before[-1:] + after[:1]


def select(
    moments: Sequence[Moment], max_frames: int, frames_per_moment: int
) -> list[tuple[Moment, tuple[float, ...]]]:
    """The moments to show, each with the times of its frames.

    `moments` come best first, and in that order frames are dealt out: a pair to each, then further
    pairs in turn, up to `frames_per_moment`. A moment with fewer frames shows what it has. The
    result is in the order in which a viewer would meet them: videos by their best moment, then by
    time.
    """
    if max_frames < 2 or frames_per_moment < 2:
        raise UsageError(
            f"{max_frames} frames in all and {frames_per_moment} a moment; "
            "each must be at least 2, as the model reads frames in pairs"
        )
    best = [one for one in moments if one.frame_seconds][: max_frames // 2]
    counts = deal([len(one.frame_seconds) for one in best], max_frames, frames_per_moment)
    videos = list(dict.fromkeys(one.video_id for one in best))
    return sorted(
        ((one, spread(one.frame_seconds, count)) for one, count in zip(best, counts, strict=True)),
        key=lambda chosen: (videos.index(chosen[0].video_id), chosen[0].start_seconds),
    )


def deal(available: Sequence[int], max_frames: int, frames_per_moment: int) -> list[int]:
    """How many frames each moment gets: pairs in turn until the budget or the frames run out."""
    counts = [0] * len(available)
    limits = [min(one, frames_per_moment) for one in available]
    left = max_frames
    while left >= 2 and any(count < limit for count, limit in zip(counts, limits, strict=True)):
        for place, limit in enumerate(limits):
            if counts[place] < limit and left >= 2:
                counts[place] = min(counts[place] + 2, limit)
                left -= 2  # a last single frame costs as much as a pair
    return counts


def spread(times: Sequence[float], count: int) -> tuple[float, ...]:
    """`count` of the times, evenly: the middle of each of `count` equal parts, by position."""
    n = len(times)
    if count >= n:
        return tuple(times)
    return tuple(times[int((place + 0.5) * n / count)] for place in range(count))


def whole(
    scenes: Sequence[Scene], frame_seconds: Sequence[float], max_frames: int
) -> list[tuple[float, float, tuple[float, ...]]]:
    """A whole video, sampled evenly: (start, end, times of frames) of stretches that end at cuts.

    Each stretch is as short as two of the frames allow, so that a citation says where in the video
    something is. `frame_seconds` are all that were sampled, rising.
    """
    chosen = spread(frame_seconds, max_frames)
    stretches: list[tuple[float, float, tuple[float, ...]]] = []
    start, held = scenes[0].start_seconds, list[float]()
    for scene in scenes:
        held += [at for at in chosen if scene.start_seconds <= at < scene.end_seconds]
        if len(held) >= 2:
            stretches.append((start, scene.end_seconds, tuple(held)))
            start, held = scene.end_seconds, []
    end = scenes[-1].end_seconds
    if start < end:
        earlier, _, times = stretches.pop() if stretches else (start, end, ())
        stretches.append((earlier, end, (*times, *held)))
    return stretches


def fit(picture: Picture, max_pixels: int) -> Picture:
    """The picture with at most `max_pixels` pixels; a smaller one is returned as it is.

    Sides become multiples of `TOKEN_SIDE` as in Qwen2-VL's own resizing (`smart_resize`), so that
    the model's processor has nothing left to do.
    """
    from PIL import Image

    with Image.open(io.BytesIO(picture.jpeg)) as image:
        size = fitted_size(image.width, image.height, max_pixels)
        if size == image.size:
            return picture
        scaled = image.convert("RGB").resize(size, Image.Resampling.BICUBIC)
    encoded = io.BytesIO()
    scaled.save(encoded, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return Picture(picture.seconds, encoded.getvalue())


def fitted_size(width: int, height: int, max_pixels: int) -> tuple[int, int]:
    """(width, height) of a picture within a budget of pixels; unchanged where it is within."""
    if width * height <= max_pixels:
        return width, height
    shrink = math.sqrt(width * height / max_pixels)
    return _whole_tokens(width / shrink), _whole_tokens(height / shrink)


def _whole_tokens(side: float) -> int:
    # The little more than exact: 480 / sqrt(640 * 480 / 9408) is 83.99999999999999.
    return max(TOKEN_SIDE, int(side / TOKEN_SIDE + 1e-6) * TOKEN_SIDE)
