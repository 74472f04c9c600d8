"""Every route, asked by Schemathesis for what its own description allows, and for what it does not.

The server is the real one on a real socket, around a library with one real film; the models are
stand-ins. Nothing that is sent becomes an error of the server's, and every answer is one that the
description at /openapi.json tells of. The cases are the same in every run.
"""

from __future__ import annotations

import re
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

from vidqa.errors import VideoError
from vidqa.ingest import IngestOptions, ingest
from vidqa.library import Library
from vidqa.server import jobs
from vidqa.server.schemas import VIDEO_ID

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
CASES_PER_ROUTE = 40
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


def aim(case: Any, video_id: str) -> None:
    """A made-up id is never a video's: half of those that could be one become the film's.

    Not where it would be deleted.
    """
    made_up = str(case.path_parameters.get("video_id"))
    if case.method != "DELETE" and re.fullmatch(VIDEO_ID, made_up) and made_up < "8":
        case.path_parameters["video_id"] = video_id


@schema.parametrize()
def test_no_request_that_can_be_made_up_is_an_error_of_the_server(
    case: Any, server: Served
) -> None:
    (film,) = server.gateway.shelf(None).library.videos()
    aim(case, film.video.video_id)
    case.call_and_validate(base_url=server.url, checks=CHECKS, timeout=20)


def test_the_description_tells_the_type_of_what_is_no_json() -> None:
    paths = described()["paths"]
    kinds = {
        "/v1/videos/{video_id}/subtitles.vtt": "text/vtt",
        "/v1/frames/{video_id}/{seconds}.jpg": "image/jpeg",
        "/v1/clips/{video_id}": "video/mp4",
    }
    told = {path: [*paths[path]["get"]["responses"]["200"]["content"]] for path in kinds}
    assert told == {path: [kind] for path, kind in kinds.items()}
