"""The videos of a library: lists, the file itself, single frames, clips, uploads, deletion.

Requests name videos by id, and a path of this machine is taken from the library alone: a file is
sent only while it has the size it was ingested with. Uploads are streamed to disk under a name of
ours, and are the only files that are ever deleted.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath
from typing import Annotated, Any

import anyio
from fastapi import APIRouter, Query, Request
from fastapi import Path as InPath
from fastapi.responses import FileResponse, Response
from starlette.types import Receive, Scope, Send

from vidqa.clips import cut_async
from vidqa.containers import shown
from vidqa.discover import VIDEO_SUFFIXES
from vidqa.errors import LibraryError, VideoError
from vidqa.server.errors import ApiError
from vidqa.server.gateway import Gateway, Shelf
from vidqa.server.jobs import UNFINISHED, Jobs, uploads_of
from vidqa.server.leaving import unless_gone
from vidqa.server.schemas import Seconds, VideoId
from vidqa.server.shapes import CONTENT_TYPES, Shapes, failure_shape, name_of, text_shape
from vidqa.server.state import content, errors, gateway_of, jobs_of
from vidqa.store import VideoRow
from vidqa.types import Picture

MAX_CLIP_SECONDS = 600.0
MAX_NAME_BYTES = 200
# What uploads leave of a disk: the library writes there as well.
RESERVE_BYTES = 2**30
CHECKED_BYTES = 64 * 2**20
# A kept picture changes only when its video is ingested anew, which changes its tag.
_CACHED = "private, max-age=600"

Library = Annotated[str | None, Query(description="A library's name; else the first.")]
Id = Annotated[VideoId, InPath(description="A video's id, as /v1/videos lists it.")]

router = APIRouter(tags=["videos"])


@router.get("/v1/videos", summary="List the videos", responses=errors(404, 422, 503))
async def videos(
    request: Request,
    library: Library = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 1000,
    after: Annotated[VideoId | None, Query(description="List what follows this video.")] = None,
) -> dict[str, Any]:
    """In order of path; and the files that could not be ingested, each with its reason."""
    gateway, shelf = gateway_of(request), gateway_of(request).shelf(library)
    return await gateway.run(listing, gateway, shelf, limit, after)


def listing(gateway: Gateway, shelf: Shelf, limit: int, after: str | None) -> dict[str, Any]:
    """A page of the videos, and what failed; agents' tools use it as well."""
    rows = shelf.library.videos()
    ids = [row.video.video_id for row in rows]
    if after is not None and after not in ids:  # from the start again would be a list without end
        raise _no_video(shelf, after)
    first = ids.index(after) + 1 if after is not None else 0
    shapes = Shapes(gateway, shelf)
    return {
        "object": "list",
        "data": [shapes.video(row) for row in rows[first : first + limit]],
        "has_more": len(rows) > first + limit,
        "failures": [failure_shape(one) for one in shelf.library.failures()],
    }


@router.get("/v1/videos/{video_id}", summary="One video", responses=errors(404, 422, 503))
async def video(video_id: Id, request: Request, library: Library = None) -> dict[str, Any]:
    """With its scenes and its subtitles."""
    gateway, shelf = gateway_of(request), gateway_of(request).shelf(library)
    return await gateway.run(outline, gateway, shelf, video_id)


def outline(gateway: Gateway, shelf: Shelf, video_id: str) -> dict[str, Any]:
    """A video with its scenes and words; agents' tools use it as well. Raises ApiError 404."""
    shapes = Shapes(gateway, shelf)
    row = row_of(shelf, video_id)
    scenes = [shapes.scene(video_id, one) for one in shelf.library.scenes(video_id)]
    texts = shelf.library.texts(video_id, 0.0, float("inf"))
    return shapes.video(row) | {
        "scene_count": row.scenes,
        "scenes": scenes,
        "texts": [text_shape(one) for one in texts],
    }


def row_of(shelf: Shelf, video_id: str) -> VideoRow:
    """Raises ApiError 404."""
    for row in shelf.library.videos():
        if row.video.video_id == video_id:
            return row
    raise _no_video(shelf, video_id)


def _no_video(shelf: Shelf, video_id: str) -> ApiError:
    return ApiError(
        404,
        f"no video {video_id} in {shelf.name}; GET /v1/videos lists them",
        code="video_not_found",
    )


# ---------------------------------------------------------------- what is seen of them


@router.head("/v1/videos/{video_id}/stream", include_in_schema=False)
@router.get(
    "/v1/videos/{video_id}/stream",
    summary="The file, with ranges",
    response_class=FileResponse,
    responses=errors(404, 409, 422, 503),
)
async def stream(video_id: Id, request: Request, library: Library = None) -> Response:
    """So that a player can jump to a moment without loading the rest."""
    gateway, shelf = gateway_of(request), gateway_of(request).shelf(library)
    path = await gateway.run(file_of, shelf, video_id)
    kind = CONTENT_TYPES.get(PurePath(path).suffix.lower(), "application/octet-stream")
    return FileResponse(
        path,
        media_type=kind,
        filename=name_of(path),
        content_disposition_type="inline",
        headers={"Cache-Control": _CACHED},
    )


def file_of(shelf: Shelf, video_id: str) -> str:
    """The first of a video's paths whose file is there and still as long as it was.

    Raises ApiError 404 when there is none, 409 when it has changed.
    """
    row = row_of(shelf, video_id)
    changed = False
    for path in row.paths:
        try:
            status = os.stat(path)
        except OSError:
            continue
        if stat.S_ISREG(status.st_mode) and status.st_size == row.video.size_bytes:
            return path
        changed = True
    if changed:
        raise ApiError(
            409,
            f"{name_of(row.video.path)} has changed since it was ingested; ingest it again",
            code="file_changed",
        )
    raise ApiError(
        404,
        f"{name_of(row.video.path)} is not where it was; its frames can still be seen and asked "
        "about",
        code="file_away",
    )


@router.head("/v1/frames/{video_id}/{seconds}.jpg", include_in_schema=False)
@router.get(
    "/v1/frames/{video_id}/{seconds}.jpg",
    summary="One frame",
    response_class=Response,
    responses=content("image/jpeg") | errors(404, 422, 503),
)
async def frame(
    video_id: Id,
    seconds: Annotated[Seconds, InPath(description="Seconds from the start of the video.")],
    request: Request,
    library: Library = None,
) -> Response:
    """The kept frame nearest to that time, at most 420 pixels wide."""
    gateway, shelf = gateway_of(request), gateway_of(request).shelf(library)
    (found,) = await gateway.run(pictures_at, shelf, video_id, [seconds])
    tag = f'"{hashlib.blake2b(found.jpeg, digest_size=12).hexdigest()}"'
    headers = {
        "Cache-Control": _CACHED,
        "ETag": tag,
        "X-Frame-Seconds": f"{found.seconds:.3f}",
    }
    if tag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(found.jpeg, media_type="image/jpeg", headers=headers)


def pictures_at(shelf: Shelf, video_id: str, seconds: Sequence[float]) -> list[Picture]:
    """The kept frame nearest to each time; agents' tools use it as well.

    Raises ApiError 404 when the video, or what is kept of it, is gone.
    """
    if not shelf.library.scenes(video_id):
        row_of(shelf, video_id)
    try:
        return shelf.library.pictures(video_id, seconds)
    except (LibraryError, VideoError) as error:
        raise ApiError(
            404, "this frame is not kept, and its file is away", code="file_away"
        ) from error


@router.head("/v1/videos/{video_id}/subtitles.vtt", include_in_schema=False)
@router.get(
    "/v1/videos/{video_id}/subtitles.vtt",
    summary="The subtitles",
    response_class=Response,
    responses=content("text/vtt") | errors(404, 422, 503),
)
async def subtitles(video_id: Id, request: Request, library: Library = None) -> Response:
    """As WebVTT, which every player reads; without cues where the video has no words."""
    gateway, shelf = gateway_of(request), gateway_of(request).shelf(library)
    await gateway.run(row_of, shelf, video_id)
    spans = await gateway.run(shelf.library.texts, video_id, 0.0, float("inf"))
    cues = [
        f"{_vtt(one.start_seconds)} --> {_vtt(one.end_seconds)}\n{_cue(one.text)}\n"
        for one in spans
    ]
    return Response("\n".join(["WEBVTT\n", *cues]), media_type="text/vtt")


def _vtt(seconds: float) -> str:
    whole = round(seconds * 1000)
    hours, rest = divmod(whole, 3_600_000)
    minutes, rest = divmod(rest, 60_000)
    return f"{hours:02d}:{minutes:02d}:{rest // 1000:02d}.{rest % 1000:03d}"


def _cue(text: str) -> str:
    """On one line, and nothing of it a tag or another cue."""
    line = " ".join(text.split())
    return line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


@router.get(
    "/v1/clips/{video_id}",
    summary="A clip as MP4",
    response_class=FileResponse,
    responses=content("video/mp4") | errors(404, 409, 422, 429, 503),
)
async def clip(
    video_id: Id,
    start: Annotated[Seconds, Query(description="Seconds from the start of the video.")],
    end: Annotated[Seconds, Query(description="Where it ends; at most 600 s later.")],
    request: Request,
    library: Library = None,
) -> Response:
    """`[start, end)` of a video, in what every browser plays."""
    if not start < end <= start + MAX_CLIP_SECONDS:
        raise ApiError(
            422,
            f"{start:g} to {end:g} is no clip; it ends after its start, at most "
            f"{MAX_CLIP_SECONDS:g} s later",
            param="end",
        )
    gateway, shelf = gateway_of(request), gateway_of(request).shelf(library)
    path = await gateway.run(file_of, shelf, video_id)
    folder = tempfile.mkdtemp(prefix="vidqa-clip-")
    target = Path(folder) / "clip.mp4"

    async def cut() -> None:
        async with gateway.clips.turn():
            await cut_async(path, start, end, target)

    try:
        await unless_gone(request, cut())
    except VideoError as error:
        shutil.rmtree(folder, ignore_errors=True)
        reason = str(error).replace(shown(path), name_of(path))
        raise ApiError(422, reason, code="no_clip") from error
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    name = f"{PurePath(name_of(path)).stem}_{start:g}-{end:g}.mp4"
    return _Passing(target, media_type="video/mp4", filename=name)


class _Passing(FileResponse):
    """A file that goes with its folder once it was sent, or could not be."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            shutil.rmtree(Path(self.path).parent, ignore_errors=True)


# ---------------------------------------------------------------- what comes and goes


@router.post(
    "/v1/videos",
    status_code=202,
    summary="Upload a video",
    responses=errors(404, 413, 422, 429, 503),
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"application/octet-stream": {"schema": {"format": "binary"}}},
        }
    },
)
async def upload(
    request: Request,
    name: Annotated[str, Query(min_length=1, max_length=255, description="Like holiday.mp4.")],
    library: Library = None,
) -> dict[str, Any]:
    """The body is the file. It is ingested in the background: follow it at /v1/jobs/{id}."""
    gateway, shelf = gateway_of(request), gateway_of(request).shelf(library)
    if request.headers.get("content-type", "").startswith("multipart/"):
        raise ApiError(
            422,
            "send the file itself as the body, not a form: curl -T FILE -X POST "
            "'.../v1/videos?name=FILE'",
        )
    wanted = safe_name(name)
    try:
        folder = uploads_of(shelf)
        _check_space(folder, int(request.headers.get("content-length", "0")))
        draft = folder / f".{secrets.token_hex(8)}{UNFINISHED}"
        try:
            await _receive(request, draft)
            path = await gateway.run(_settle, draft, folder, wanted)
        finally:
            draft.unlink(missing_ok=True)
        try:
            job = await gateway.run(jobs_of(request).add, shelf, path)
        except OSError:  # without a job nobody would ever take it in
            path.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise ApiError(
            507, f"{wanted} could not be kept: {error.strerror}", code="no_space"
        ) from error
    return dict(job.shape())


def safe_name(name: str) -> str:
    """A file's name of ours from what a client calls it. Raises ApiError 422."""
    last = PurePath(name.replace("\\", "/")).name
    kept = "".join(one if one.isprintable() and one not in '/\0:"' else "_" for one in last)
    kept = kept.lstrip(". ").strip()
    stem, suffix = os.path.splitext(kept)
    if not stem or suffix.lower() not in VIDEO_SUFFIXES:
        raise ApiError(
            422,
            f"{name[:80]!r} is no video's name; it ends in one of "
            f"{', '.join(sorted(VIDEO_SUFFIXES))}",
            param="name",
        )
    room = MAX_NAME_BYTES - len(suffix.encode())
    return stem.encode("utf-8", "replace")[:room].decode("utf-8", "ignore") + suffix


def _check_space(folder: Path, more_bytes: int) -> None:
    """Raises ApiError 413 where so many bytes more would fill the disk."""
    free = shutil.disk_usage(folder).free
    if more_bytes > free - RESERVE_BYTES:
        raise ApiError(
            413,
            f"{free / 2**30:.1f} GiB are free here, of which {RESERVE_BYTES / 2**30:g} are kept",
            code="no_space",
        )


async def _receive(request: Request, draft: Path) -> None:
    """Writes the body to disk as it comes; a megabyte of it is in memory at most."""
    received = checked = 0
    async with await anyio.open_file(draft, "wb") as file:
        async for piece in request.stream():
            received += len(piece)
            if received - checked > CHECKED_BYTES:  # what comes in chunks did not say its size
                _check_space(draft.parent, 0)
                checked = received
            await file.write(piece)
        await file.flush()
        await anyio.to_thread.run_sync(os.fsync, file.wrapped.fileno())
    if not received:
        raise ApiError(422, "the body is empty; it is to be the file")


def _settle(draft: Path, folder: Path, name: str) -> Path:
    """Gives an upload its name, or the next one that is free; nothing is ever replaced."""
    for path in _names(folder, name):
        try:
            path.touch(exist_ok=False)
        except FileExistsError:
            continue
        draft.replace(path)
        return path
    raise AssertionError("names do not run out")


def _names(folder: Path, name: str) -> Iterator[Path]:
    stem, suffix = os.path.splitext(name)
    yield folder / name
    number = 2
    while True:
        yield folder / f"{stem} ({number}){suffix}"
        number += 1


@router.delete("/v1/videos/{video_id}", summary="Take a video out", responses=errors(404, 422, 503))
async def delete(video_id: Id, request: Request, library: Library = None) -> dict[str, Any]:
    """Out of the library. Its file is deleted as well when it was uploaded, and never else."""
    gateway, shelf = gateway_of(request), gateway_of(request).shelf(library)
    deleted = await gateway.run(_delete, Shapes(gateway, shelf), video_id)
    return {"id": video_id, "object": "video.deleted", "deleted": True, "file_deleted": deleted}


def _delete(shapes: Shapes, video_id: str) -> bool:
    row = row_of(shapes.shelf, video_id)
    shapes.shelf.library.remove(video_id)
    uploads = [path for path in row.paths if shapes.is_upload(path)]
    for path in uploads:
        Path(path).unlink(missing_ok=True)
    return bool(uploads)


jobs_router = APIRouter(tags=["jobs"])


@jobs_router.get("/v1/jobs", summary="List the uploads", responses=errors(503))
async def jobs(request: Request) -> dict[str, Any]:
    """The latest first."""
    found = await gateway_of(request).run(jobs_of(request).all)
    return {"object": "list", "data": [one.shape() for one in found]}


@jobs_router.get("/v1/jobs/{job_id}", summary="One upload", responses=errors(404, 503))
async def job(job_id: str, request: Request) -> dict[str, Any]:
    """How far it is, what became of it."""
    return await gateway_of(request).run(_job, jobs_of(request), job_id)


def _job(jobs: Jobs, job_id: str) -> dict[str, Any]:
    found = jobs.get(job_id)
    if found is None:
        raise ApiError(404, f"no job {job_id!r}; GET /v1/jobs lists them", code="job_not_found")
    return dict(found.shape())
