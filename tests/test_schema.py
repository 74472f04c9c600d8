"""Every route, asked by Schemathesis for what its own description allows, and for what it does not.

The server is the real one on a real socket, around a library with one real film; the models are
stand-ins. Nothing that is sent becomes an error of the server's, and every answer is one that the
description at /openapi.json tells of. The cases are the same in every run.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NoReturn

import pytest
import schemathesis
from fakes import FakeEmbedder, FakeEndpoint
from media import three_shots
from schemathesis.checks import not_a_server_error
from schemathesis.config import SchemathesisConfig
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from serve_parts import Served, described, served
from waiting import LIMIT_SECONDS

from vidqa.errors import VideoError
from vidqa.ingest import IngestOptions, ingest
from vidqa.library import Library
from vidqa.server import jobs

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
CASES_PER_ROUTE = 25
CONFIG = {
    "seed": 1,
    "suppress-health-check": ["all"],
    "generation": {
        "max-examples": CASES_PER_ROUTE,
        "deterministic": True,
        "no-shrink": True,
        "database": "none",
    },
    "phases": {"coverage": {"enabled": False}},
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("schema")
    film = three_shots(folder / "film.mp4")
    library = Library.open(folder / "library", FakeEmbedder.spec, create=True)
    ingest([film.path], library, FakeEmbedder(), IngestOptions(workers=1))
    patch = pytest.MonkeyPatch()
    patch.setattr(jobs, "ingest", _no_video)
    with (
        FakeEndpoint() as endpoint,
        served(Library.open(folder / "library", follow=True), endpoint.base_url) as running,
    ):
        yield running
    patch.undo()


def _no_video(*arguments: object) -> NoReturn:
    """Made-up bytes are no video; a process for each would take most of the time."""
    raise VideoError("these bytes are no video")


schema = schemathesis.openapi.from_dict(described(), config=SchemathesisConfig.from_dict(CONFIG))


def aim(case: Any, known: dict[str, str]) -> None:
    """Leads a case to what is there, as made-up names are never anybody's.

    Nothing is deleted: there the made-up ids stay.
    """
    if case.method == "DELETE":
        return
    case.path_parameters |= {name: known[name] for name in case.path_parameters if name in known}
    case.query.pop("library", None)
    if case.path == "/v1/videos" and case.method == "POST":
        case.query["name"] = "film.mp4"
    if isinstance(case.body, dict):
        case.body |= {name: known[name] for name in ("model", "query") if name in case.body}
        case.body.pop("library", None)
        if isinstance(case.body.get("messages"), list):
            case.body["messages"].append({"role": "user", "content": "red"})
            case.body.pop("vidqa", None)


@pytest.fixture(scope="module")
def known(server: Served) -> dict[str, str]:
    """Names of what is there."""
    (film,) = server.gateway.shelf(None).library.videos()
    upload = server.http.post("v1/videos?name=a.mp4", content=b"no video").json()
    return {
        "video_id": film.video.video_id,
        "job_id": upload["id"],
        "name": "vidqa",
        "model": "vidqa",
        "query": "red",
    }


@schema.parametrize()
def test_no_request_that_can_be_made_up_is_an_error_of_the_server(
    case: Any, server: Served
) -> None:
    case.call_and_validate(base_url=server.url, checks=CHECKS, timeout=LIMIT_SECONDS)


# A clip is a process that takes most of a second: one of them is asked for elsewhere.
@schema.exclude(path="/v1/clips/{video_id}").parametrize()
def test_nor_is_one_that_leads_to_what_is_there(
    case: Any, server: Served, known: dict[str, str]
) -> None:
    aim(case, known)
    case.call_and_validate(base_url=server.url, checks=CHECKS, timeout=LIMIT_SECONDS)


def test_the_description_tells_the_type_of_what_is_no_json() -> None:
    paths = described()["paths"]
    kinds = {
        "/v1/videos/{video_id}/subtitles.vtt": "text/vtt",
        "/v1/frames/{video_id}/{seconds}.jpg": "image/jpeg",
        "/v1/clips/{video_id}": "video/mp4",
    }
    told = {path: [*paths[path]["get"]["responses"]["200"]["content"]] for path in kinds}
    assert told == {path: [kind] for path, kind in kinds.items()}
