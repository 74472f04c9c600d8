"""The application: routes, errors, the gate in front, and what starts and ends with them.

    app = create_app(gateway, keys)

Everything it needs is given to it, so tests build it around fakes and a folder.
"""

from __future__ import annotations

import ipaddress
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio.to_thread
from fastapi import APIRouter, FastAPI, Request, Security
from fastapi.responses import FileResponse, JSONResponse, Response
from fastapi.security import HTTPBearer
from fastapi_swagger import patch_fastapi
from starlette.middleware import Middleware
from starlette.routing import Route
from starlette.staticfiles import StaticFiles

from vidqa import __version__
from vidqa.server import chat, errors, mcp, openai, search, videos
from vidqa.server.gate import Gate, Limits
from vidqa.server.gateway import Gateway
from vidqa.server.jobs import Jobs
from vidqa.server.keys import COOKIE, COOKIE_SECONDS, Keys, Rates
from vidqa.server.pictures import Pictures
from vidqa.server.state import gateway_of
from vidqa.server.tools import Tools
from vidqa.wiring import ingest_options

WEB = Path(__file__).parent / "web"
LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})

_ABOUT = (
    "Ask questions about videos, search them, and manage them. Times are seconds from the start of "
    "a video, ranges half-open, [start, end)."
)


def create_app(gateway: Gateway, keys: Keys, *, pictures: Pictures | None = None) -> FastAPI:
    """The server of one gateway."""
    settings = gateway.settings
    jobs = Jobs(gateway.shelves, ingest_options(settings))
    limits = Limits(
        body_bytes=settings.max_body_mib * 2**20,
        upload_bytes=int(settings.max_upload_gib * 2**30),
    )
    agents = mcp.Endpoint(Tools(gateway), limits.body_bytes)

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        await gateway.answerer.start()
        jobs.start()
        try:
            async with agents.running():
                yield
        finally:
            await gateway.answerer.stop()
            await anyio.to_thread.run_sync(jobs.stop)

    gate = Middleware(
        Gate,
        keys=keys,
        rates=Rates(settings.rate_limit),
        hosts=names_of(settings.host, settings.server_names),
        limits=limits,
        metrics=gateway.metrics,
    )
    app = FastAPI(
        title="vidqa",
        version=__version__,
        description=_ABOUT,
        lifespan=life,
        middleware=[gate],
        # For /docs and generated clients; it is the gate that asks for the key.
        dependencies=[Security(HTTPBearer(auto_error=False, description="One of its keys."))],
        docs_url=None,
        redoc_url=None,
        swagger_ui_oauth2_redirect_url=None,
    )
    app.state.gateway = gateway
    app.state.keys = keys
    app.state.jobs = jobs
    app.state.limits = limits
    app.state.pictures = pictures or Pictures(
        max_pixels=int(settings.max_image_megapixels * 1e6),
        max_bytes=limits.body_bytes,
        hosts=frozenset(_listed(settings.media_hosts)),
    )
    errors.install(app)
    for router in (chat, search, videos, openai):
        app.include_router(router.router)
    app.include_router(videos.jobs_router)
    app.include_router(own)
    app.router.routes.append(Route("/mcp", agents, methods=["POST"], include_in_schema=False))
    patch_fastapi(app, redirect_from_root_to_docs=False)
    app.mount("/web", StaticFiles(directory=WEB), name="web")
    return app


def names_of(host: str, server_names: str | None) -> frozenset[str]:
    """The names under which the server may be asked; empty where any will do.

    On loopback a page elsewhere could otherwise reach it by a name that leads here. A server that
    everybody can reach has keys, and its names are its proxy's business.
    """
    if server_names:
        return frozenset(_listed(server_names)) | LOOPBACK_NAMES
    return LOOPBACK_NAMES | {host} if is_loopback(host) else frozenset()


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what listens there; a name may lead anywhere."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _listed(names: str | None) -> list[str]:
    return [one.strip().lower() for one in (names or "").split(",") if one.strip()]


# ---------------------------------------------------------------- the server itself

own = APIRouter(tags=["server"])


@own.head("/healthz", include_in_schema=False)
@own.get("/healthz", summary="Whether it lives")
async def healthz() -> dict[str, str]:
    """Answers as soon as the server listens."""
    return {"status": "ok"}


@own.head("/readyz", include_in_schema=False)
@own.get("/readyz", summary="Whether it can answer", responses={503: {"description": "Not yet"}})
async def readyz(request: Request) -> Response:
    """Only once the model answers; what it is doing meanwhile is at /v1/info."""
    state = gateway_of(request).answerer.state
    ready = state == "ready"
    headers = {} if ready else {"Retry-After": "5"}
    return JSONResponse({"status": state}, 200 if ready else 503, headers)


@own.get("/metrics", summary="Figures for Prometheus", response_class=Response)
async def metrics(request: Request) -> Response:
    """Requests, stages, tokens, frames, cache, queue, engine."""
    text = gateway_of(request).metrics.text()
    return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")


@own.get("/v1/info", summary="What is served, and how far the engine is")
async def info(request: Request) -> dict[str, object]:
    gateway = gateway_of(request)
    limits: Limits = request.app.state.limits
    return {
        "version": __version__,
        "libraries": await gateway.run(_libraries, gateway),
        "models": [one.name for one in gateway.models()],
        "engine": {"state": gateway.answerer.state, "detail": gateway.answerer.detail},
        "limits": {
            "upload_bytes": limits.upload_bytes,
            "body_bytes": limits.body_bytes,
            "clip_seconds": videos.MAX_CLIP_SECONDS,
            "images": gateway.settings.max_images,
        },
    }


def _libraries(gateway: Gateway) -> list[dict[str, object]]:
    found = []
    for shelf in gateway.shelves.values():
        rows = shelf.library.videos()
        seconds = sum(row.video.duration_seconds for row in rows)
        found.append({"name": shelf.name, "videos": len(rows), "seconds_video": round(seconds, 3)})
    return found


@own.post("/v1/session", summary="Trade the key for a cookie that opens media")
async def session(request: Request) -> JSONResponse:
    """A page needs it, as `<video>` and `<img>` send no key."""
    response = JSONResponse({"status": "ok"}, headers={"Cache-Control": "no-store"})
    keys: Keys = request.app.state.keys
    if keys:
        response.set_cookie(
            COOKIE,
            keys.cookie(request.scope["vidqa.who"]),
            max_age=COOKIE_SECONDS,
            path=request.scope.get("root_path") or "/",
            httponly=True,
            samesite="strict",
            secure=request.url.scheme == "https",
        )
    return response


@own.head("/", include_in_schema=False)
@own.get("/", include_in_schema=False)
async def page() -> FileResponse:
    return FileResponse(WEB / "index.html", headers={"Cache-Control": "no-cache"})
