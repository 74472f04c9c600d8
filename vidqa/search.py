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

from typing import TYPE_CHECKING

from vidqa.errors import UsageError

if TYPE_CHECKING:
    from vidqa.embed import Embedder
    from vidqa.library import Library
    from vidqa.types import Filters, Moment

# Frames fetched for each moment wanted at first, and how that grows: a shot of usual length has
# three to eight sampled frames, which are alike and so found together.
_FRAMES_PER_MOMENT = 8
_GROWTH = 4


def search(
    query: str,
    library: Library,
    embedder: Embedder,
    *,
    k: int = 5,
    filters: Filters | None = None,
    where: str | None = None,
) -> list[Moment]:
    """The k moments that fit a query best, with their frame times and texts.

    Filters are as in `Library.search`. Raises UsageError for an empty query, a k below 1 or a
    bad `where`.
    """
    if not query.strip():
        raise UsageError("the query is empty; say what is to be seen")
    if k < 1:
        raise UsageError(f"k is {k}; at least 1 is needed")
    vector = embedder.embed_texts([query])[0]
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
