"""Frames become scenes: PySceneDetect's detectors, fed by hand, and the rules for their cuts.

    finder = SceneFinder(fps, options)
    finder.add(seconds, bgr)                       cuts, as they become known
    finder.scenes(end_seconds, sample_seconds)     [start, end) scenes that leave no gap

`process_frame` is declared unstable by PySceneDetect, so nothing else in vidqa calls it, and a
test compares the cuts with those of PySceneDetect's command line. Nothing here decodes.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

from vidqa.errors import UsageError
from vidqa.types import Scene

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Times that went through whole microseconds are compared with this tolerance.
_HAIR_SECONDS = 1e-5
# Each part of a scene that is split has as many sampled frames as any scene has at least.
_FRAMES_PER_PART = 3
# A dark stretch of up to this, with a fade at its end, is one transition, whatever else is seen
# in it; a longer one may be a night scene with cuts of its own.
_MAX_FADED_SECONDS = 2.0
# Mean of all pixels below which a picture is black, above which white, and how long it has to
# stay so for a fade; the first and the last are PySceneDetect's defaults. On 24 generated fades
# of 0.25 to 1.5 s these find 23, each once and with no false one, where AdaptiveDetector finds 3
# and HistogramDetector, set to find all, reports each fade two to three times.
_BLACK = 12
_WHITE = 255 - _BLACK
_MIN_FADED_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class SceneOptions:
    """What makes a scene.

    min_scene_seconds    shorter ones are merged with what follows (PySceneDetect's default, 0.6)
    max_scene_seconds    longer ones are split evenly. A scene is what an answer cites and what a
                         handful of frames has to stand for: 30 seconds are a stretch that one
                         looks through at once, and 4 frames of it are at most 7.5 s apart
    adaptive_threshold   how far a frame's change must stand out from its neighbours' to be a cut
                         (PySceneDetect's default, 3.0)
    """

    min_scene_seconds: float = 0.6
    max_scene_seconds: float = 30.0
    adaptive_threshold: float = 3.0

    def __post_init__(self) -> None:
        if not 0 < self.min_scene_seconds < math.inf:
            raise UsageError(f"min_scene_seconds is {self.min_scene_seconds}; it must be above 0")
        if not 2 * self.min_scene_seconds <= self.max_scene_seconds < math.inf:
            raise UsageError(
                f"max_scene_seconds is {self.max_scene_seconds}; it must be at least twice "
                f"min_scene_seconds, which is {self.min_scene_seconds}"
            )
        if not 0 < self.adaptive_threshold < math.inf:
            raise UsageError(f"adaptive_threshold is {self.adaptive_threshold}; it must be above 0")


class SceneFinder:
    """Finds hard cuts (AdaptiveDetector) and fades through black or white (ThresholdDetector).

    A cut is the time of the first frame of a new scene. Of a fade it is the frame at which the
    picture comes back, so no scene begins with black. Slow dissolves are not found. A cut is
    known at most `LAG` frames after its own frame.
    """

    LAG = 2

    def __init__(self, fps: float, options: SceneOptions) -> None:
        from scenedetect.detectors import AdaptiveDetector, ThresholdDetector

        self._fps = Fraction(fps).limit_denominator(100_000)
        self._options = options
        # PySceneDetect's command line counts seconds in whole frames; so must we, to agree.
        frames = max(1, round(options.min_scene_seconds * fps))
        self._min_seconds = (frames - 0.5) / fps
        self._adaptive = AdaptiveDetector(
            adaptive_threshold=options.adaptive_threshold,
            min_scene_len=frames,
            window_width=self.LAG,
        )
        black = {"threshold": _BLACK, "method": ThresholdDetector.Method.FLOOR}
        white = {"threshold": _WHITE, "method": ThresholdDetector.Method.CEILING}
        self._fades = [
            ThresholdDetector(
                **level,
                min_scene_len=frames,
                fade_bias=1.0,
                min_out_length=round(_MIN_FADED_SECONDS * fps),
            )
            for level in (black, white)
        ]
        self._recent: deque[float] = deque(maxlen=self.LAG + 1)
        self.cuts: list[float] = []
        # The dark (or white) stretch that lies before each fade's cut.
        self._faded: list[tuple[float, float]] = []

    def add(self, seconds: float, bgr: NDArray[np.uint8]) -> list[float]:
        """Takes the next frame; returns new cuts, each the time of one of the last frames."""
        from scenedetect.common import FrameTimecode, Timecode

        self._recent.append(seconds)
        time = Timecode(round(seconds * 1_000_000), Fraction(1, 1_000_000))
        timecode = FrameTimecode(time, self._fps)
        cuts = [self._frame_near(c.seconds) for c in self._adaptive.process_frame(timecode, bgr)]
        for fades in self._fades:
            out = fades.last_fade["frame"]
            if fades.process_frame(timecode, bgr):
                self._faded.append((out.seconds, seconds))
                cuts.append(seconds)
        # A fade is known at once, and may be reported as a cut as well, a little later.
        new = sorted(set(cuts).difference(self.cuts[-self.LAG - 1 :]))
        self.cuts += new
        return new

    def scenes(self, end_seconds: float, sample_seconds: Sequence[float]) -> list[Scene]:
        """The scenes of the whole video, once its end and its kept frames' times are known."""
        inner = {
            cut
            for out, back in self._faded
            if back - out <= _MAX_FADED_SECONDS
            for cut in self.cuts
            if out - _HAIR_SECONDS <= cut < back
        }
        return tile(
            [cut for cut in self.cuts if cut not in inner],
            end_seconds,
            sample_seconds,
            self._min_seconds,
            self._options.max_scene_seconds,
        )

    def _frame_near(self, seconds: float) -> float:
        return min(self._recent, key=lambda one: abs(one - seconds))


def tile(
    cuts: Sequence[float],
    end_seconds: float,
    sample_seconds: Sequence[float],
    min_seconds: float,
    max_seconds: float,
) -> list[Scene]:
    """Scenes that cover `[0, end_seconds)` without gaps, from cuts and the times of kept frames.

    A cut too close behind the last one, or to the end, is dropped, which merges the short scene.
    A long scene is split evenly, each part to start at a kept frame and to have at least three:
    one that is held on a single picture for long stays whole.
    """
    starts = _merge([0.0, *sorted(cuts)], end_seconds, min_seconds)
    ends = [*starts[1:], end_seconds]
    bounds = [
        bound
        for start, end in zip(starts, ends, strict=True)
        for bound in _split(start, end, sample_seconds, max_seconds)
    ]
    return [
        Scene(index, start, end)
        for index, (start, end) in enumerate(zip(bounds, [*bounds[1:], end_seconds], strict=True))
    ]


def _merge(starts: Sequence[float], end_seconds: float, min_seconds: float) -> list[float]:
    kept = [starts[0]]
    for start in starts[1:]:
        if min(start - kept[-1], end_seconds - start) >= min_seconds:
            kept.append(start)
    return kept


def _split(
    start: float, end: float, sample_seconds: Sequence[float], max_seconds: float
) -> list[float]:
    """The starts of the parts of one scene, the first of them its own."""
    parts = math.ceil((end - start) / max_seconds - 1e-9)
    last = bisect_left(sample_seconds, end)
    bounds, used = [start], bisect_left(sample_seconds, start)
    for k in range(1, parts):
        at = bisect_left(sample_seconds, start + k * (end - start) / parts)
        if used + _FRAMES_PER_PART <= at <= last - _FRAMES_PER_PART:
            bounds.append(sample_seconds[at])
            used = at
    return bounds
