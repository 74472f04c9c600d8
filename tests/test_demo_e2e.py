"""The demo from end to end: real films, the bundled models, the real vLLM."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from vidqa.config import Settings
from vidqa.demo import evaluate, questions, show, world
from vidqa.wiring import ask_options, connect, ingest_options, open_library

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory, serve_runtime: Path) -> Iterator[Settings]:
    """The demo profile with an index of its own, and the engine that has the bundled models."""
    patch = pytest.MonkeyPatch()
    patch.setenv("VIDQA_RUNTIME_DIR", str(serve_runtime))
    index = tmp_path_factory.mktemp("playground")
    yield replace(Settings.load("demo", {}), index=index)
    patch.undo()


def test_the_demo_asks_every_type_and_writes_what_the_model_saw(
    settings: Settings, tmp_path: Path
) -> None:
    said: list[str] = []
    report = tmp_path / "report" / "index.html"
    score = show.run(settings, report, said.append, lambda _: None)
    assert score.asked == len(questions.QUESTION_TYPES) + 1
    assert f"{score.right} of {score.asked} answers are right." in said[-1]
    page = report.read_text("utf-8")
    assert page.count("data:image/jpeg") >= 4 * score.asked


def test_the_suite_measures_every_figure(settings: Settings) -> None:
    settings = replace(settings, index=settings.index / "suite")
    library, embedder = open_library(settings, create=True)
    with connect(settings) as client:
        suite = evaluate.run(
            settings.index / "films", library, embedder, client,
            ingest_options(settings), ask_options(settings), film_count=2, per_type=3,
        )  # fmt: skip
    assert {
        "cut_f1", "recall_at_1", "recall_at_5", "moment_iou", "answer_accuracy_given_clip",
        "answer_accuracy_end_to_end", "citation_precision", "blind_accuracy",
    } <= set(suite.figures)  # fmt: skip
    # Two films are few, but their cuts are plain, and a clip given is half of the answer.
    assert suite.figures["cut_f1"].value >= 0.9
    given, blind = (
        suite.figures[k].value for k in ("answer_accuracy_given_clip", "blind_accuracy")
    )
    assert given > blind


def test_the_suite_and_the_demo_use_held_out_films_of_their_own() -> None:
    suite = range(evaluate.FIRST_SEED, evaluate.FIRST_SEED + evaluate.FILMS)
    demo = range(show.FIRST_SEED, show.FIRST_SEED + show.FILMS)
    assert not set(suite) & set(demo)
    assert world.split_of(show.FIRST_SEED) == "held-out"
    assert world.split_of(evaluate.FIRST_SEED) == "held-out"
