"""`vidqa infer` and `vidqa finetune eval` at an endpoint: what they print, write and exit with."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from adapter_parts import make_adapter, make_base
from fakes import FakeEndpoint
from finetune_parts import hide_scorers
from media import three_shots
from typer.testing import CliRunner, Result

from vidqa.adapters import AdapterCard
from vidqa.cli import app
from vidqa.cli.rows import _sight
from vidqa.command import Run
from vidqa.config import Settings


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    three_shots(tmp_path / "film.mp4")
    lines = [
        {
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "video", "video": "film.mp4"},
                        {"type": "text", "text": f"What is number {n}?"},
                    ],
                },
                {"role": "assistant", "content": "red"},
            ]
        }
        for n in range(1, 4)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(f"{json.dumps(one)}\n" for one in lines))
    return tmp_path


@pytest.fixture
def endpoint() -> Iterator[FakeEndpoint]:
    def answer(body: dict[str, Any]) -> str:
        return "red" if body["model"] == "birds" else "blue"

    with FakeEndpoint(models=("fake-vl", "birds"), says=answer) as running:
        yield running


def run(endpoint: FakeEndpoint, *arguments: str) -> Result:
    where = ("--base-url", endpoint.base_url, "--model", "fake-vl", "--cache", "cache")
    return CliRunner().invoke(app, [*arguments, *where])


def test_infer_prints_one_object_a_row(place: Path, endpoint: FakeEndpoint) -> None:
    done = run(endpoint, "infer", "--data", "rows.jsonl")
    assert done.exit_code == 0, done.output
    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert sorted(one["row"] for one in records) == [1, 2, 3]
    assert {one["answers"][0]["text"] for one in records} == {"blue"}


def test_infer_writes_a_file_in_the_order_of_the_rows(place: Path, endpoint: FakeEndpoint) -> None:
    done = run(endpoint, "infer", "--data", "rows.jsonl", "--adapter", "birds", "--output",
               "a.jsonl", "--json")  # fmt: skip
    assert done.exit_code == 0, done.output
    summary = json.loads(done.stdout)
    assert summary == {"event": "summary", "answered": 3, "failed": 0, "known": 0, "cut_off": 0,
                       "output": "a.jsonl"}  # fmt: skip
    records = [json.loads(line) for line in (place / "a.jsonl").read_text().splitlines()]
    assert [one["row"] for one in records] == [1, 2, 3]
    assert {one["answers"][0]["scores"]["exact_match"] for one in records} == {1.0}


def test_frames_come_from_the_cache_when_the_video_is_gone(
    place: Path, endpoint: FakeEndpoint
) -> None:
    assert run(endpoint, "infer", "--data", "rows.jsonl", "--output", "a.jsonl").exit_code == 0
    (place / "film.mp4").unlink()
    assert run(endpoint, "infer", "--data", "rows.jsonl", "--output", "b.jsonl").exit_code == 0


@pytest.mark.parametrize(
    "verb", [("infer", "--output", "a.jsonl"), ("finetune", "eval", "--output", "results")]
)
def test_without_room_in_the_cache_no_frames_are_kept(
    place: Path, endpoint: FakeEndpoint, verb: tuple[str, ...]
) -> None:
    done = run(endpoint, *verb, "--data", "rows.jsonl", "--cache-gib", "0")
    assert done.exit_code == 0, done.output
    assert not (place / "cache").exists()


@pytest.mark.parametrize(
    "verb", [("infer", "--output", "a.jsonl"), ("finetune", "eval", "--output", "results")]
)
def test_captions_that_cannot_be_scored_end_it_before_the_model_is_asked(
    place: Path,
    endpoint: FakeEndpoint,
    monkeypatch: pytest.MonkeyPatch,
    verb: tuple[str, ...],
) -> None:
    text = (place / "rows.jsonl").read_text()
    (place / "rows.jsonl").write_text(text.replace('"red"', json.dumps("a red star falls " * 5)))
    hide_scorers(monkeypatch)
    done = run(endpoint, *verb, "--data", "rows.jsonl")
    assert done.exit_code == 1
    assert "uv pip install 'vidqa[train]'" in done.stderr
    assert endpoint.requests == []


@pytest.mark.parametrize("box_family", ["", "qwen2.5-vl"])
def test_pictures_are_seen_as_the_models_own_processor_makes_them(
    tmp_path: Path, box_family: str
) -> None:
    base = make_base(tmp_path / "base", kind="qwen2_5_vl")
    (base / "preprocessor_config.json").write_text('{"min_pixels": 200704}')
    run = Run(Settings(model=str(base)), json=False, verbose=False, quiet=False)
    card = AdapterCard(
        name="birds", base_model="", rank=4, alpha=8, targets="", box_family=box_family
    )
    seen = _sight(run, card, str(base))
    assert (seen.family, seen.min_pixels) == ("qwen2.5-vl", 200704)


def test_a_row_that_fails_is_named_and_makes_the_exit_code_1(
    place: Path, endpoint: FakeEndpoint
) -> None:
    text = (place / "rows.jsonl").read_text()
    (place / "rows.jsonl").write_text(text.replace("film.mp4", "gone.mp4", 1))
    done = run(endpoint, "infer", "--data", "rows.jsonl", "--output", "a.jsonl")
    assert done.exit_code == 1
    assert "rows.jsonl:1: " in done.stderr
    assert "2 rows answered, 1 failed; the next run tries them again: a.jsonl" in done.stdout


def test_an_empty_file_is_nothing_found(place: Path, endpoint: FakeEndpoint) -> None:
    (place / "rows.jsonl").write_text("")
    done = run(endpoint, "infer", "--data", "rows.jsonl")
    assert done.exit_code in (2, 3)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "Missing option '--data'"),
        (("--data", "rows.jsonl", "--output", "rows.jsonl"), "that is the data"),
        (("--merge", "m"), "name the adapter as well"),
        (("--merge", "m", "--adapter", "birds"), "leave out --base-url"),
    ],
)
def test_wrong_usage_of_infer_is_told(
    place: Path, endpoint: FakeEndpoint, arguments: tuple[str, ...], words: str
) -> None:
    done = run(endpoint, "infer", *arguments)
    assert done.exit_code == 2
    assert words in done.stderr


def merge_birds(place: Path, *more: str) -> Result:
    given = ("--adapter", "./birds", "--merge", "merged", "--model", str(place / "base"))
    return CliRunner().invoke(app, ["infer", *given, *more])


def test_a_merge_that_is_there_already_is_used_as_it_is(place: Path) -> None:
    make_base(place / "base")
    make_adapter(place / "birds")
    first = merge_birds(place)
    assert first.exit_code == 0, first.output
    assert "as it is" not in first.stderr
    weights = place / "merged" / "model-0.safetensors"
    before = weights.stat().st_mtime_ns
    again = merge_birds(place)
    assert again.exit_code == 0, again.output
    assert "merged: holds this merge already and is used as it is" in again.stderr
    assert again.stdout == first.stdout
    assert weights.stat().st_mtime_ns == before


def test_a_merge_of_an_adapter_that_was_retrained_is_not_used(place: Path) -> None:
    make_base(place / "base")
    make_adapter(place / "birds")
    assert merge_birds(place).exit_code == 0
    make_adapter(place / "birds", seed=1)
    done = merge_birds(place)
    assert done.exit_code == 2
    assert "merged: is there already; name a folder that is new, or remove it" in done.stderr


def test_rows_that_cannot_be_read_are_told_before_anything_is_merged(place: Path) -> None:
    make_base(place / "base")
    make_adapter(place / "birds")
    done = merge_birds(place, "--data", "no.jsonl")
    assert done.exit_code != 0
    assert "no.jsonl" in done.stderr
    assert not (place / "merged").exists()


def test_eval_tells_of_both_and_writes_figures_and_page(
    place: Path, endpoint: FakeEndpoint
) -> None:
    done = run(endpoint, "finetune", "eval", "--data", "rows.jsonl", "--adapter", "birds",
               "--probe", "rows.jsonl", "--output", "out")  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "held-out  answer  exact_match  0.000  1.000    +1.000" in done.stdout
    told = json.loads((place / "out" / "metrics.json").read_text())
    assert (told["base"], told["adapter"]) == ("fake-vl", "birds")
    assert "birds against fake-vl" in (place / "out" / "report.html").read_text()


def test_eval_puts_the_figures_on_the_card_that_adapters_show_prints(
    place: Path, endpoint: FakeEndpoint
) -> None:
    make_adapter(place / "birds", card={"metrics": {"after": {"loss": 1.5}}})
    done = run(endpoint, "finetune", "eval", "--data", "rows.jsonl", "--adapter", "./birds")
    assert done.exit_code == 0, done.output
    assert "vidqa adapters show ./birds" in done.stderr
    shown = CliRunner().invoke(app, ["adapters", "show", "./birds"]).stdout
    assert "loss 1.500, answer.exact_match 1.000" in shown


def test_what_one_set_of_rows_measured_is_no_obstacle_to_the_next(
    place: Path, endpoint: FakeEndpoint
) -> None:
    """The folder's first answers are gone on from, whatever else is asked now."""
    make_adapter(place / "birds", card={})
    (place / "more.jsonl").write_text((place / "rows.jsonl").read_text().replace("number", "no."))
    evaluate = ("finetune", "eval", "--adapter", "./birds", "--data")
    for more in (("rows.jsonl",), ("rows.jsonl", "--probe", "more.jsonl"), ("more.jsonl",)):
        done = run(endpoint, *evaluate, *more)
        assert done.exit_code == 0, done.output
    assert len(endpoint.requests) == 3 * 3 * 2
    results = place / "birds" / "evaluation"
    assert {one.name for one in results.iterdir()} == {"rows", "more"}
    told = json.loads((results / "rows" / "metrics.json").read_text())
    assert (list(told["data"]), list(told["probe_data"])) == (["rows.jsonl"], ["more.jsonl"])


def test_eval_says_when_the_rows_have_chosen_the_checkpoint(
    place: Path, endpoint: FakeEndpoint
) -> None:
    make_adapter(place / "birds", card={})
    kept = place / "birds" / "validation.jsonl"
    kept.write_text((place / "rows.jsonl").read_text().replace("film", "../film"))
    (place / "named.jsonl").write_text((place / "rows.jsonl").read_text() + "\n")
    made = {"recipe": {}, "model": "base", "data": {}, "batch": 16, "base_digest": "1" * 32}
    digest = hashlib.sha256((place / "named.jsonl").read_bytes()).hexdigest()
    told = made | {"eval_data": {"elsewhere/named.jsonl": digest}}
    (place / "birds" / "run.json").write_text(json.dumps(told))
    for data, is_said in ((str(kept), True), ("named.jsonl", True), ("rows.jsonl", False)):
        done = run(endpoint, "finetune", "eval", "--data", data, "--adapter", "./birds")
        assert done.exit_code == 0, done.output
        assert ("chose the checkpoint" in done.stderr) == is_said


def test_eval_of_the_base_alone_wants_a_folder(place: Path, endpoint: FakeEndpoint) -> None:
    done = run(endpoint, "finetune", "eval", "--data", "rows.jsonl")
    assert done.exit_code == 2
    assert "--output: name a folder for the results" in done.stderr
    done = run(endpoint, "finetune", "eval", "--data", "rows.jsonl", "--output", "out", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["adapter"] is None


def test_eval_of_an_adapter_that_lies_elsewhere_wants_a_folder(
    place: Path, endpoint: FakeEndpoint
) -> None:
    done = run(endpoint, "finetune", "eval", "--data", "rows.jsonl", "--adapter", "birds")
    assert done.exit_code == 2
    assert "--output: name a folder for the results" in done.stderr
    assert not (place / "evaluation").exists()
