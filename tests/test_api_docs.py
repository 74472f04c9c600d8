"""docs/api.md says what the code does: its tables are compared with the tables of the code."""

from __future__ import annotations

import json
import re

import pytest
from conftest import REPOSITORY
from pydantic import BaseModel
from serve_parts import described

from vidqa.config import SETTINGS, Settings
from vidqa.server import errors
from vidqa.server.errors import ApiError
from vidqa.server.metrics import Metrics
from vidqa.server.schemas import (
    IGNORED,
    MAX_FRAMES,
    MAX_INPUTS,
    MAX_K,
    MAX_MESSAGES,
    MAX_TEXT_CHARACTERS,
    REFUSED,
    ChatRequest,
    EmbeddingRequest,
    FilterFields,
    SearchRequest,
    VidqaFields,
)
from vidqa.server.videos import MAX_CLIP_SECONDS

TEXT = (REPOSITORY / "docs" / "api.md").read_text("utf-8")


def section(title: str) -> str:
    """What stands below a heading, up to the next one."""
    found = re.search(rf"^#+ {re.escape(title)}\n(.*?)(?=^#|\Z)", TEXT, re.MULTILINE | re.DOTALL)
    assert found, f"docs/api.md has no section {title}"
    return found[1]


def tables(title: str) -> list[list[list[str]]]:
    """Each table of a section: its rows, without the head, as cells."""
    found = []
    for block in re.findall(r"(?:^\|.*\n)+", section(title), re.MULTILINE):
        rows = [
            [cell.strip() for cell in row.removeprefix("|").removesuffix("|").split(" |")]
            for row in block.splitlines()
        ]
        found.append(rows[2:])
    return found


def names(rows: list[list[str]]) -> list[str]:
    return [row[0].lstrip("| ").strip("`") for row in rows]


def test_every_route_is_told() -> None:
    real = {
        f"{method.upper()} {path}"
        for path, methods in described()["paths"].items()
        for method in methods
    }
    (rows,) = tables("Routes")
    assert set(names(rows)) == real


@pytest.mark.parametrize(
    ("title", "model"), [("Honoured", ChatRequest), ("The object `vidqa`", VidqaFields)]
)
def test_every_field_that_is_honoured_is_told(title: str, model: type[BaseModel]) -> None:
    (rows,) = tables(title)
    assert names(rows) == sorted(names(rows), key=[*model.model_fields].index)
    assert set(names(rows)) == set(model.model_fields)


def test_every_field_that_is_ignored_is_told() -> None:
    assert re.findall(r"`(\w+)`", section("Ignored")) == sorted(IGNORED)


def test_every_field_that_is_refused_is_told_with_what_it_may_be_and_why() -> None:
    (rows,) = tables("Refused")
    told = {
        name.strip("`"): ([json.loads(one) for one in re.findall(r"`([^`]*)`", allowed)], why)
        for name, allowed, why in rows
    }
    assert told == {name: ([*allowed], why) for name, (allowed, why) in REFUSED.items()}


def test_the_fields_of_a_search_and_its_filters_are_told() -> None:
    fields, filters = tables("Search")
    assert names(fields) == [*SearchRequest.model_fields]
    assert names(filters) == [*FilterFields.model_fields]


def test_the_fields_of_an_embedding_are_told() -> None:
    assert set(EmbeddingRequest.model_fields) <= set(re.findall(r"`(\w+)`", section("Embeddings")))


def test_every_status_is_told_with_its_type() -> None:
    (rows,) = tables("Errors")
    told = {int(status): kind.strip("`") for status, kind, _ in rows}
    known = {int(one) for one in re.findall(r"\b[45]\d\d\b", errors.__doc__ or "")}
    assert known <= set(told)
    for status, kind in told.items():
        assert ApiError(status, "").body()["error"]["type"] == kind


def test_every_figure_is_told_with_its_labels() -> None:
    metrics = Metrics()
    told = {name: sorted(re.findall(r"`(\w+)`", labels)) for name, labels, _ in tables_of_figures()}
    real = {
        one._name + ("_total" if one._type == "counter" else ""): sorted(one._labelnames)
        for one in vars(metrics).values()
        if hasattr(one, "_labelnames")
    }
    assert told == real


def tables_of_figures() -> list[list[str]]:
    (rows,) = tables("Figures")
    return [[row[0].strip("`"), *row[1:]] for row in rows]


def test_the_limits_are_those_of_the_settings() -> None:
    (rows,) = tables("Limits")
    for name, default, _ in rows:
        assert float(default) == getattr(Settings(), name.strip("`")), name
    limits = {
        name for name in SETTINGS if name.startswith(("max_answers", "max_queue", "max_image"))
    }
    assert limits <= set(names(rows))


def test_the_numbers_in_the_text_are_those_of_the_code() -> None:
    assert f"at most {MAX_MESSAGES} messages of {MAX_TEXT_CHARACTERS:,} characters" in TEXT
    assert f"moments to find, 1 to {MAX_K}" in TEXT
    assert f"frames to show to the model in all, 2 to {MAX_FRAMES}" in TEXT
    assert f"at most {MAX_INPUTS:,}" in section("Embeddings")
    assert f"lasts {MAX_CLIP_SECONDS:g} seconds at most" in TEXT
