"""Moments: by text, by picture or both; and how relevant every second of the videos found is."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request

from vidqa.search import query_vector, search_vector
from vidqa.server.gateway import Gateway, Shelf
from vidqa.server.pictures import Pictures
from vidqa.server.schemas import SearchRequest
from vidqa.server.shapes import Shapes, name_of, rounded
from vidqa.server.state import errors, gateway_of, pictures_of, root_of
from vidqa.types import Moment, QuestionImage

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

router = APIRouter(tags=["search"])


@router.post("/v1/search", summary="Find moments", responses=errors(400, 404, 413, 422, 429, 503))
async def search(body: SearchRequest, request: Request) -> dict[str, Any]:
    """The k moments that look like a text, a picture, or both, best first."""
    gateway, shelf = gateway_of(request), gateway_of(request).shelf(body.library)
    async with gateway.searches.turn():
        found = await find(gateway, pictures_of(request), shelf, body)
    shapes = Shapes(gateway, shelf, root_of(request))
    return {
        "object": "search",
        "query": body.query,
        "library": shelf.name,
        "moments": shapes.moments(found.moments),
        "heat": found.heat,
        "timings_ms": {name: round(value, 1) for name, value in found.milliseconds.items()},
    }


class Found:
    """What one search gave."""

    def __init__(self) -> None:
        self.moments: Sequence[Moment] = ()
        self.heat: list[dict[str, Any]] = []
        self.milliseconds: dict[str, float] = {}


async def find(gateway: Gateway, pictures: Pictures, shelf: Shelf, body: SearchRequest) -> Found:
    """Searches a library; agents' tools call it as well."""
    urls = [body.image] if body.image is not None else []
    images = await asyncio.gather(*(pictures.of(url, shelf.embedder.spec) for url in urls))
    found = await gateway.run(_found, shelf, body, images)
    gateway.metrics.stages(found.milliseconds)
    return found


def _found(shelf: Shelf, body: SearchRequest, images: Sequence[QuestionImage]) -> Found:
    found = Found()
    started = time.perf_counter()
    vector = query_vector(body.query, [one.pixels for one in images], shelf.embedder)
    embedded = time.perf_counter()
    found.moments = search_vector(vector, shelf.library, k=body.k, filters=body.filters.record())
    if body.heat:
        found.heat = _heat(shelf, vector, found.moments)
    done = time.perf_counter()
    found.milliseconds = {
        "embed": (embedded - started) * 1000,
        "search": (done - embedded) * 1000,
    }
    return found


def _heat(
    shelf: Shelf, vector: NDArray[np.float32], moments: Sequence[Moment]
) -> list[dict[str, Any]]:
    """The score over time of each video found, in the order of the moments."""
    names = {one.video_id: name_of(one.video) for one in moments}
    durations = {
        row.video.video_id: row.video.duration_seconds
        for row in shelf.library.videos()
        if row.video.video_id in names
    }
    relevance = shelf.library.relevance(vector, list(names))
    return [
        {
            "video_id": video_id,
            "video": name,
            "duration_seconds": rounded(durations[video_id]),
            "seconds": [rounded(one) for one in relevance[video_id][0].tolist()],
            "scores": [round(one, 4) for one in relevance[video_id][1].tolist()],
        }
        for video_id, name in names.items()
        if video_id in durations and video_id in relevance  # it may go at any moment
    ]
