"""`search`: a query becomes moments: the nearest frames, grouped to the scenes they lie in.

The rules:

1. A moment is a scene. It scores what its best frame scores, and is listed once, however many of
   its frames fit.
2. Best first; equal scores by path, then by time. Two runs give the same list.
3. k moments come back when k scenes pass the filters: further frames are fetched until there are
   enough, since one long scene can hold the hundred best.
4. Neighbouring scenes are not merged. A cut is where the content changes, so a citation is as
   exact as it can be; and who answers sees k different places. (`ask` adds the neighbours of the
   best moment when the question is about what comes before or after.)

Nothing here decodes; pictures are the caller's to ask for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from vidqa.errors import UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vidqa.embed import Embedder
    from vidqa.library import Library
    from vidqa.types import Filters, Moment

# Frames fetched for each moment wanted at first, and how that grows: a shot of usual length has
# three to eight sampled frames, which are alike and so found together.
_FRAMES_PER_MOMENT = 8
_GROWTH = 4
# Below this length a sum of unit vectors is rounding.
_NO_DIRECTION = 1e-4


def search(
    query: str,
    library: Library,
    embedder: Embedder,
    *,
    images: Sequence[NDArray[np.uint8]] = (),
    k: int = 5,
    filters: Filters | None = None,
    where: str | None = None,
) -> list[Moment]:
    """The k moments that fit a query best, with their frame times and texts.

    The query is a text, pictures (as in `query_vector`), or both. Filters are as in
    `Library.search`. Raises UsageError for an empty query, a k below 1 or a bad `where`.
    """
    vector = query_vector(query, images, embedder)
    return search_vector(vector, library, k=k, filters=filters, where=where)


def query_vector(
    query: str, images: Sequence[NDArray[np.uint8]], embedder: Embedder
) -> NDArray[np.float32]:
    """What is compared with the frames: float32 (D,), L2-normalised.

    It is the normalised sum of the unit vectors of the text, unless that is blank, and of each
    image; these are uint8 (H, W, 3) RGB at the size in `embedder.spec`.
    """
    high, wide = embedder.spec.image_height, embedder.spec.image_width
    for one in images:
        if one.shape != (high, wide, 3) or one.dtype != np.uint8:
            raise ValueError(
                f"an image is {one.dtype} {one.shape}; uint8 ({high}, {wide}, 3) is needed"
            )
    parts = [
        *([embedder.embed_texts([query])] if query.strip() else []),
        *([embedder.embed_images(np.stack(images))] if len(images) else []),
    ]
    if not parts:
        raise UsageError("the query is empty; say what is to be seen")
    total = np.concatenate(parts).sum(axis=0)
    length = np.linalg.norm(total)
    if length < _NO_DIRECTION:
        raise UsageError("the parts of the query cancel each other out; search for one at a time")
    return np.asarray(total / length, np.float32)


def search_vector(
    vector: NDArray[np.float32],
    library: Library,
    *,
    k: int = 5,
    filters: Filters | None = None,
    where: str | None = None,
) -> list[Moment]:
    """`search`, for who has the vector: float32 (D,), L2-normalised."""
    if k < 1:
        raise UsageError(f"k is {k}; at least 1 is needed")
    wanted = k * _FRAMES_PER_MOMENT
    while True:
        hits = library.search(vector, wanted, filters=filters, where=where)
        best: dict[tuple[str, int], float] = {}
        for hit in hits:
            best.setdefault((hit.video_id, hit.scene_index), hit.score)
        # One more than k, so that no equal score is cut off by the order of frames.
        if len(best) > k or len(hits) < wanted:
            return library.moments(best)[:k]
        wanted *= _GROWTH
