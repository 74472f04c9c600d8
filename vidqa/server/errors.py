"""Every error in the shape that OpenAI's clients read, with the status that tells them what to do.

    400  refused by the model or by OpenAI's rules (a parameter that is not supported)
    401  no key, or a wrong one                404  no such model, library, video, job or route
    403  a browser's page from elsewhere       409  the file is not what was ingested
    413  too large                             422  malformed, or a value that is not allowed
    429  too many at once, or too often        503  not ready yet, or busy: see Retry-After
    502  the endpoint that answers failed

A message gives the value, what is allowed and the next step; it names files, and not the folders
they are in. What is not ours is told as an internal error without its text, which goes to the log.
"""

from __future__ import annotations

import logging
import math
import re
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from vidqa.errors import (
    EndpointError,
    LibraryBusy,
    LibraryError,
    NothingFound,
    UsageError,
    VidqaError,
)

log = logging.getLogger(__name__)

BUSY_RETRY_SECONDS = 5
# Of an address that is repeated in an error.
_SHOWN_CHARACTERS = 200

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    502: "upstream_error",
    503: "service_unavailable",
}


class ApiError(Exception):
    """An error with its HTTP status; `code` and `param` are OpenAI's fields of those names."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after_seconds: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.retry_after_seconds = retry_after_seconds

    def body(self) -> dict[str, Any]:
        kind = _TYPES.get(self.status, "server_error" if self.status >= 500 else _TYPES[400])
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return {"error": error}

    def headers(self) -> dict[str, str]:
        if self.retry_after_seconds is None:
            return {}
        return {"Retry-After": str(max(1, math.ceil(self.retry_after_seconds)))}

    def response(self) -> JSONResponse:
        return JSONResponse(self.body(), self.status, self.headers())


def translated(error: BaseException) -> ApiError:
    """Any exception of a request, as a client is told of it; in full it goes to the log."""
    text = without_folders(str(error))
    match error:
        case ApiError():
            return error
        case ClientDisconnect():
            return ApiError(499, "the client has left")  # nobody reads it
        case NothingFound():
            return ApiError(404, text, code="not_found")
        case UsageError():
            return ApiError(422, text, code="invalid_value")
        case LibraryBusy():
            log.warning("%s", error)
            return ApiError(503, text, code="library_busy", retry_after_seconds=BUSY_RETRY_SECONDS)
        case LibraryError():
            log.error("%s", error)
            message = "the library cannot be used; the server's log says why"
            return ApiError(500, message, code="library_failed")
        case EndpointError() if error.refused:
            return ApiError(400, text, code="refused_by_model")
        case EndpointError():
            return ApiError(502, text, code="endpoint_failed")
        case VidqaError():
            log.error("%s", error)
            return ApiError(500, text, code=type(error).__name__)
    return ApiError(500, "an internal error; the server's log has it", code="internal_error")


# From the root or a home to the last name; not the paths of addresses, nor of this server's routes.
# Most errors begin with a path, up to a colon: there its folders may have spaces in their names.
_FOLDERS = re.compile(r"^~?/(?:[^/:\n]+/)+(?=[^/:\n]+:)|(?<![\w.:/~])~?/(?:[^\s/'\"]+/)+(?=[^\s/])")


def without_folders(text: str) -> str:
    """A message with the names of files, and not of the folders they are in."""
    return _FOLDERS.sub("", text)


def install(app: FastAPI) -> None:
    """Makes every error of the application an answer of this shape."""

    async def answer(request: Request, error: Exception) -> JSONResponse:
        return translated(error).response()

    async def malformed(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        return from_validation(error).response()

    async def routing(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        path = request.url.path[:_SHOWN_CHARACTERS]
        known = {
            404: f"{path}: no such route; /docs lists them",
            405: f"{request.method} is not answered at {path}; /docs lists what is",
        }
        message = known.get(error.status_code, str(error.detail))
        status = error.status_code
        if status == 400:  # FastAPI's, of bytes that are not even text
            status, message = 422, "the body cannot be read; it is to be JSON in UTF-8"
        response = ApiError(status, message).response()
        response.headers.update(error.headers or {})
        return response

    for kind in (ApiError, VidqaError, ClientDisconnect, Exception):
        app.add_exception_handler(kind, answer)
    app.add_exception_handler(RequestValidationError, malformed)
    app.add_exception_handler(HTTPException, routing)


def from_validation(error: RequestValidationError) -> ApiError:
    """The first thing that is wrong with a request, as one sentence."""
    first = max(error.errors(), key=_telling)
    place = [str(part) for part in first["loc"][1:]]  # the first is body, query or path
    # Where a field may be one of several types, the place names the type as well.
    param = ".".join(one for one in place if one.isdigit() or one.isidentifier()) or None
    reason = str(first["msg"]).removeprefix("Value error, ")
    code = None
    if first["loc"] == ("body",) and first["type"] in ("missing", "model_attributes_type"):
        reason = "the body is to be a JSON object, sent as Content-Type: application/json"
    if _is_unsupported(first):
        return ApiError(400, reason, code="unsupported_parameter", param=param)
    if first["type"] == "extra_forbidden":
        reason = f"unrecognised request argument; docs/api.md lists what is known ({param})"
        return ApiError(400, reason, code="unknown_parameter", param=param)
    return ApiError(422, f"{param}: {reason}" if param else reason, code=code, param=param)


def _is_unsupported(error: dict[str, Any]) -> bool:
    return isinstance(error.get("ctx", {}).get("error"), UnsupportedParameter)


def _telling(error: dict[str, Any]) -> tuple[bool, int]:
    """Of the types that a field may have, the one that was meant is the one that got furthest."""
    return _is_unsupported(error), len(error["loc"])


class UnsupportedParameter(ValueError):
    """A field of OpenAI's that this server does not do; refused rather than passed over."""
