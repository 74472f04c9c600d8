"""How moments, citations and videos look in answers: names and ids, never paths of this machine.

Addresses of pictures are relative to the server's root, for its own page; those of citations are
whole, for clients elsewhere. Times are seconds from the start of the video, `[start, end)`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any
from urllib.parse import urlencode

from vidqa.containers import shown
from vidqa.prompt import time_range
from vidqa.select import spread
from vidqa.server.gateway import Gateway, Shelf
from vidqa.store import Failure, VideoRow
from vidqa.types import Citation, Moment, Scene, TextSpan

THUMBNAILS = 6
UPLOADS = "uploads"

CONTENT_TYPES = {
    ".mp4": "video/mp4",
    ".m4v": "video/mp4",
    ".mov": "video/quicktime",
    ".webm": "video/webm",
    ".mkv": "video/x-matroska",
    ".avi": "video/x-msvideo",
    ".ts": "video/mp2t",
    ".mpg": "video/mpeg",
    ".mpeg": "video/mpeg",
    ".ogv": "video/ogg",
}


def rounded(seconds: float) -> float:
    return round(seconds, 3)


def name_of(path: str) -> str:
    """The file's name, in what every client can read."""
    return PurePath(path).name.encode("utf-8", "replace").decode()


@dataclass(frozen=True)
class Shapes:
    """The shapes of one library's things; `root` is the server's own address, ending in `/`."""

    gateway: Gateway
    shelf: Shelf
    root: str = ""

    def query(self, **values: object) -> str:
        """A query string; the library is named where it is not the first."""
        if self.shelf.name != self.gateway.first:
            values["library"] = self.shelf.name
        return f"?{urlencode(values)}" if values else ""

    def frame_url(self, video_id: str, seconds: float) -> str:
        return f"v1/frames/{video_id}/{seconds:.3f}.jpg{self.query()}"

    def player_url(self, video_id: str, seconds: float) -> str:
        """Opens the page's player at the moment."""
        return f"{self.root}{self.query(video=video_id, t=rounded(seconds))}"

    def moment(self, moment: Moment, n: int) -> dict[str, Any]:
        times = spread(moment.frame_seconds, THUMBNAILS)
        return {
            "n": n,
            "video_id": moment.video_id,
            "video": name_of(moment.video),
            "start_seconds": rounded(moment.start_seconds),
            "end_seconds": rounded(moment.end_seconds),
            "score": round(moment.score, 4),
            "frame_seconds": [rounded(one) for one in moment.frame_seconds],
            "texts": [text_shape(one) for one in moment.texts],
            "thumbnail_urls": [self.frame_url(moment.video_id, one) for one in times],
            "url": self.player_url(moment.video_id, moment.start_seconds),
        }

    def moments(self, moments: Sequence[Moment]) -> list[dict[str, Any]]:
        return [self.moment(one, n) for n, one in enumerate(moments, 1)]

    def citation(self, citation: Citation) -> dict[str, Any]:
        middle = (citation.start_seconds + citation.end_seconds) / 2
        return {
            "n": citation.n,
            "video_id": citation.video_id,
            "video": name_of(citation.video),
            "start_seconds": rounded(citation.start_seconds),
            "end_seconds": rounded(citation.end_seconds),
            "score": round(citation.score, 4),
            "url": self.player_url(citation.video_id, citation.start_seconds),
            "thumbnail_url": self.root + self.frame_url(citation.video_id, middle),
        }

    def video(self, row: VideoRow) -> dict[str, Any]:
        video = row.video
        suffix = PurePath(video.path).suffix.lower()
        return {
            "id": video.video_id,
            "object": "video",
            "video": name_of(video.path),
            "duration_seconds": rounded(video.duration_seconds),
            "width": video.width,
            "height": video.height,
            "fps": round(video.fps, 3),
            "codec": video.codec,
            "size_bytes": video.size_bytes,
            "scenes": row.scenes,
            "frames": row.frames,
            "state": state_of(video.path, video.size_bytes),
            "uploaded": self.is_upload(video.path),
            "ingested_at": row.ingested_at.isoformat(),
            "content_type": CONTENT_TYPES.get(suffix, "application/octet-stream"),
            "thumbnail_url": self.frame_url(video.video_id, row.poster_seconds),
        }

    def scene(self, video_id: str, scene: Scene) -> dict[str, Any]:
        middle = (scene.start_seconds + scene.end_seconds) / 2
        return {
            "index": scene.index,
            "start_seconds": rounded(scene.start_seconds),
            "end_seconds": rounded(scene.end_seconds),
            "thumbnail_url": self.frame_url(video_id, middle),
        }

    def is_upload(self, path: str) -> bool:
        """Whether the file came through the server, which then may delete it."""
        folder = self.shelf.library.folder.resolve() / UPLOADS
        return folder in PurePath(os.path.realpath(path)).parents


def text_shape(span: TextSpan) -> dict[str, Any]:
    return {
        "start_seconds": rounded(span.start_seconds),
        "end_seconds": rounded(span.end_seconds),
        "text": span.text,
    }


def failure_shape(failure: Failure) -> dict[str, Any]:
    """Without the folder that an error text may begin with."""
    name = name_of(failure.path)
    return {
        "video": name,
        "error": failure.error.replace(shown(failure.path), name),
        "failed_at": failure.failed_at.isoformat(),
    }


def state_of(path: str, size_bytes: int) -> str:
    """Whether the file can be played: what is kept of it is searched and asked about anyway."""
    try:
        return "ready" if os.stat(path).st_size == size_bytes else "file changed"
    except OSError:
        return "file away"


def title_of(citation: Citation) -> str:
    span = time_range(citation.start_seconds, citation.end_seconds)
    return f"{' '.join(name_of(citation.video).split())} {span}"
