"""Base and adapter on the same questions: figures, what they rest on, tables and the page."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from adapter_parts import make_adapter
from fakes import FakeEndpoint
from finetune_parts import asked, shown_of
from PIL import Image

from finetune.evaluate import (
    Results,
    as_json,
    evaluate,
    measure,
    page,
    remarks,
    table,
    write_figures,
    write_metrics,
)
from finetune.infer import InferOptions
from finetune.layout import Look, Shown
from finetune.rows import Located, Row
from vidqa.adapters import read
from vidqa.boxes import Box
from vidqa.errors import UsageError, VideoError
from vidqa.vlm import AsyncVlmClient

OPTIONS = InferOptions(look=Look(), family="qwen2-vl")

# Six films with two questions each; the adapter knows the colour, the base the shape alone.
ROWS = [
    asked(2 * film + at + 1, question, answer, video=f"/films/{film}.mp4")
    for film in range(6)
    for at, (question, answer) in enumerate([("Colour?", "red"), ("Shape?", "star")])
]
PROBE = [asked(n, "Capital of France?", "Paris", video=f"/other/{n}.mp4") for n in range(1, 4)]


def reply(body: dict[str, Any]) -> str:
    text, adapted = body["messages"][-1]["content"][-1]["text"], body["model"] == "birds"
    if "France" in text:
        return "a bird" if adapted else "Paris"
    if "Colour" in text:
        return "red [1]" if adapted else "blue"
    return "star"


def run(adapter: str | None = "birds", **named: Any) -> tuple[Results, FakeEndpoint]:
    with FakeEndpoint(models=("fake-vl", "birds"), says=reply) as endpoint:
        results = evaluate(
            named.pop("rows", ROWS),
            lambda: AsyncVlmClient(endpoint.base_url, model="fake-vl"),
            adapter,
            options=OPTIONS,
            show=named.pop("show", shown_of),
            base="fake-vl",
            **named,
        )
    return results, endpoint


def test_both_models_are_measured_on_the_same_questions() -> None:
    results, endpoint = run()
    found = results.held_out.tasks["answer"]["exact_match"]
    assert found.adapter is not None
    assert found.difference is not None
    assert (found.base.value, found.adapter.value, found.difference.value) == (0.5, 1.0, 0.5)
    assert (found.difference.n, found.difference.groups) == (12, 6)
    prompts: dict[str, list[str]] = {"fake-vl": [], "birds": []}
    for body in endpoint.requests:
        prompts[body["model"]].append(json.dumps(body["messages"]))
    assert sorted(prompts["fake-vl"]) == sorted(prompts["birds"])


def test_what_was_forgotten_is_seen_in_the_probe() -> None:
    results, _ = run(probe=PROBE)
    assert results.probe is not None
    difference = results.probe.tasks["answer"]["exact_match"].difference
    assert difference is not None
    assert (difference.value, difference.low, difference.high) == (-1.0, -1.0, -1.0)


def test_the_base_alone_is_measured_before_a_training() -> None:
    results, endpoint = run(adapter=None)
    found = results.held_out.tasks["answer"]["exact_match"]
    assert (found.base.value, found.adapter, found.difference) == (0.5, None, None)
    assert {body["model"] for body in endpoint.requests} == {"fake-vl"}
    assert results.figures("base") == {"answer.exact_match": 0.5, "answer.token_f1": 0.5}
    assert results.figures("adapter") == {}


def test_figures_for_the_adapters_card_are_flat() -> None:
    results, _ = run(probe=PROBE)
    assert results.figures("adapter")["answer.exact_match"] == 1.0
    assert results.figures("base")["probe.answer.exact_match"] == 1.0


def test_the_card_tells_the_figures_beside_those_of_the_training(tmp_path: Path) -> None:
    told = {"before": {"loss": 2.0, "choice.accuracy": 0.1}, "after": {"loss": 1.0}}
    folder = make_adapter(tmp_path / "birds", card={"name": "birds", "metrics": told})
    results, _ = run()
    assert write_figures(folder, results)
    assert read(folder).metrics == {
        "before": {"loss": 2.0, "answer.exact_match": 0.5, "answer.token_f1": 0.5},
        "after": {"loss": 1.0, "answer.exact_match": 1.0, "answer.token_f1": 1.0},
    }


def test_an_adapter_from_elsewhere_gets_no_card(tmp_path: Path) -> None:
    folder = make_adapter(tmp_path / "birds")
    results, _ = run()
    assert not write_figures(folder, results)
    assert not (folder / "adapter.json").exists()


def test_the_base_alone_changes_no_card(tmp_path: Path) -> None:
    folder = make_adapter(tmp_path / "birds", card={"metrics": {"before": {"loss": 2.0}}})
    results, _ = run(adapter=None)
    assert not write_figures(folder, results)
    assert read(folder).metrics == {"before": {"loss": 2.0}}


def test_a_row_that_one_of_them_could_not_be_asked_counts_for_neither() -> None:
    def record(text: str) -> dict[str, Any]:
        scores = {"exact_match": float(text == "red"), "token_f1": float(text == "red")}
        return {
            "answers": [
                {"question": "?", "text": text, "expected": "red", "task": "answer",
                 "scores": scores},
            ]
        }  # fmt: skip

    base = {1: record("blue"), 2: record("red"), 3: {"error": "refused"}}
    adapter = {1: record("red"), 2: {"error": "refused"}, 3: record("red")}
    found = measure(ROWS[:3], base, adapter)
    assert found.failed == {"base": 1, "adapter": 1}
    assert found.tasks["answer"]["exact_match"].base.n == 1


def test_questions_without_a_known_answer_are_counted_and_not_scored() -> None:
    results, _ = run(rows=[*ROWS, asked(13, "Colour?", None)])
    assert results.held_out.without_answer == 1
    assert results.held_out.tasks["answer"]["exact_match"].base.n == 12
    assert "held-out: 1 questions have no known answer" in remarks(results)


def test_tasks_have_figures_of_their_own() -> None:
    rows = [*ROWS[:2], asked(3, "Colour?", "B", choices=("blue", "red"))]
    results, _ = run(rows=rows)
    assert set(results.held_out.tasks) == {"answer", "choice"}
    accuracy = results.held_out.tasks["choice"]["accuracy"]
    assert accuracy.adapter is not None
    assert (accuracy.base.value, accuracy.adapter.value) == (0.0, 1.0)


# How it is told


def test_the_table_has_a_line_for_each_measure() -> None:
    results, _ = run(probe=PROBE)
    header, first, *rest = table(results)
    assert header == ["rows", "task", "measure", "base", "adapter", "difference",
                      "95 % interval", "questions", "videos"]  # fmt: skip
    assert first == ["held-out", "answer", "exact_match", "0.500", "1.000", "+0.500",
                     "+0.500 to +0.500", "12", "6"]  # fmt: skip
    assert [line[0] for line in rest] == ["held-out", "probe", "probe"]


def test_one_video_has_no_interval_in_table_and_json() -> None:
    results, _ = run(rows=ROWS[:2])
    assert "one video: none" in table(results)[1]
    told = as_json(results)["held_out"]["tasks"]["answer"]["exact_match"]["difference"]
    assert told == {"value": 0.5, "low": None, "high": None}


def test_without_a_probe_it_says_that_forgetting_is_not_known() -> None:
    results, _ = run()
    assert "whether something was forgotten is not known" in remarks(results)[-1]
    results, _ = run(probe=PROBE)
    assert remarks(results) == []


def test_an_adapter_that_never_differs_from_its_base_is_told_of() -> None:
    results, _ = run(rows=ROWS[1::2])
    assert remarks(results)[0].startswith("the adapter answered every question as the base did")


def test_one_model_alone_is_called_neither_base_nor_adapter() -> None:
    results, _ = run(adapter=None)
    assert table(results)[0][3:5] == ["model", "95 % interval"]
    assert "<h1>fake-vl</h1>" in page(results, shown_of)


def test_metrics_json_holds_both_with_the_interval(tmp_path: Path) -> None:
    results, _ = run(probe=PROBE)
    write_metrics(tmp_path / "new" / "metrics.json", results)
    told = json.loads((tmp_path / "new" / "metrics.json").read_text())
    assert told["adapter"] == "birds"
    assert told["held_out"]["tasks"]["answer"]["exact_match"] == {
        "n": 12,
        "videos": 6,
        "base": {"value": 0.5, "low": 0.5, "high": 0.5},
        "adapter": {"value": 1.0, "low": 1.0, "high": 1.0},
        "difference": {"value": 0.5, "low": 0.5, "high": 0.5},
    }
    assert told["interval"]["resamples"] == 2000


def test_the_page_shows_where_the_two_differ_with_the_frames() -> None:
    results, _ = run(probe=PROBE)
    text = page(results, shown_of)
    assert "answered differently by the adapter: 0 worse, 6 better, 0 as good" in text
    assert text.count("<h2>Colour?</h2>") == 6
    assert text.count("<h2>Capital of France?</h2>") == 3
    assert "Shape?" not in text
    assert text.count("data:image/jpeg") == 2 * 9
    assert "cosine" not in text


def test_the_page_escapes_what_models_say() -> None:
    def record(text: str) -> dict[str, Any]:
        answer = {"question": "<b>?", "text": text, "expected": "<i>", "task": "answer",
                  "scores": {"exact_match": 0.0, "token_f1": 0.0}}  # fmt: skip
        return {"answers": [answer]}

    measured = measure(ROWS[:1], {1: record("<script>")}, {1: record("</td>")})
    text = page(Results("<base>", "birds", measured), shown_of)
    assert "<script>" not in text
    assert "&lt;script&gt;" in text
    assert "&lt;base&gt;" in text


def test_a_video_that_is_away_leaves_the_example_without_pictures() -> None:
    results, _ = run()

    def gone(row: Row) -> tuple[Shown, ...]:
        raise VideoError("gone")

    text = page(results, gone)
    assert "Colour?" in text
    assert "data:image" not in text


def test_the_page_draws_the_boxes_of_all_three() -> None:
    def boxes(body: dict[str, Any]) -> str:
        return "(0,0),(500,500)" if body["model"] == "birds" else "(500,500),(900,900)"

    row = asked(1, "Where is the star?", Located((("star", Box(0, 0, 0.5, 0.5)),)))
    with FakeEndpoint(models=("fake-vl", "birds"), says=boxes) as endpoint:
        results = evaluate(
            [row], lambda: AsyncVlmClient(endpoint.base_url, model="fake-vl"), "birds",
            options=OPTIONS, show=shown_of,
        )  # fmt: skip
    (example,) = results.held_out.examples
    assert example.boxes == (
        ("expected", Box(0, 0, 0.5, 0.5)),
        ("base", Box(0.5, 0.5, 0.9, 0.9)),
        ("adapter", Box(0, 0, 0.5, 0.5)),
    )
    assert (example.base_score, example.adapter_score) == (0.0, 1.0)
    first, _ = re.findall('data:image/jpeg;base64,([^"]+)', page(results, shown_of))
    drawn = np.asarray(Image.open(io.BytesIO(base64.b64decode(first))))
    assert drawn.shape == (448, 448, 3)
    assert len(np.unique(drawn.reshape(-1, 3), axis=0)) > 3  # more than the plain red


# Going on


def test_an_evaluation_goes_on_from_what_was_answered(tmp_path: Path) -> None:
    first, _ = run(folder=tmp_path, made_by={"data": "ab"})
    again, endpoint = run(folder=tmp_path, made_by={"data": "ab"})
    assert endpoint.requests == []
    assert as_json(again) == as_json(first)
    assert {one.name for one in tmp_path.glob("*.jsonl")} == {
        "held-out-base.jsonl", "held-out-adapter.jsonl",
    }  # fmt: skip


def test_an_evaluation_of_other_data_is_not_mixed_in(tmp_path: Path) -> None:
    run(folder=tmp_path, made_by={"data": "ab"})
    with pytest.raises(UsageError, match="data: ab then, cd now"):
        run(folder=tmp_path, made_by={"data": "cd"})
