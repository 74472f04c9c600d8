"""What a route finds in its request: the gateway, the pictures, the server's own address."""

from __future__ import annotations

from typing import Any, cast

from fastapi import Request
from pydantic import BaseModel

from vidqa.server.gateway import Gateway
from vidqa.server.jobs import Jobs
from vidqa.server.pictures import Pictures


class ErrorFields(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """The shape of every error."""

    error: ErrorFields


_REASONS = {
    400: "Refused by the model, or a parameter that is not supported",
    401: "No key, or a wrong one, where the server has keys",
    404: "Not there",
    409: "The file is not what was ingested",
    413: "Too large",
    422: "Malformed, or a value that is not allowed",
    429: "Too many or too often; Retry-After says how long to wait",
    502: "The endpoint that answers failed",
    503: "Not ready; Retry-After says how long to wait",
}


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The answers besides 200, for the description of a route that wants a key."""
    return {
        one: {"model": ErrorBody, "description": _REASONS[one]} for one in sorted({401, *statuses})
    }


def content(kind: str) -> dict[int | str, dict[str, Any]]:
    """The answer of a route that sends no JSON."""
    return {200: {"content": {kind: {}}}}


def gateway_of(request: Request) -> Gateway:
    return cast(Gateway, request.app.state.gateway)


def pictures_of(request: Request) -> Pictures:
    return cast(Pictures, request.app.state.pictures)


def jobs_of(request: Request) -> Jobs:
    return cast(Jobs, request.app.state.jobs)


def root_of(request: Request) -> str:
    """The server's address as the client knows it, ending in `/`."""
    return str(request.base_url)
