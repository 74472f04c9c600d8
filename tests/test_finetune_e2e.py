"""The whole way of docs/finetune.md with the real vLLM: rows, training, evaluation, answers.

Commands are the document's own, in the order in which they stand there. The playground is drawn
smaller and trained for a few steps: what must hold is asserted, not what is learned. Then the
worked run goes on with that adapter as its own.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import REPOSITORY
from document_parts import DOCUMENT, environment, make_place
from test_readme import commands, needs

from vidqa import adapters
from vidqa.adapter_weights import base_digest
from vidqa.config import Settings
from vidqa.engine import ensure_engine
from vidqa.wiring import engine_options

pytestmark = pytest.mark.e2e

TINY = REPOSITORY / "vidqa" / "demo" / "models" / "tiny-qwen2-vl"
# What is added to a command of the document so that it takes seconds.
SHORTER = {
    "python -m vidqa.demo.domain": "--films 3 --held-out-films 1 --pictures 60",
    "vidqa finetune --data playground": "--max-steps 40 --eval-steps 20",
}
MODEL = [command for command, comment in commands(DOCUMENT) if needs(comment) and "vLLM" in comment]
PLAYED = [line for block in MODEL if "playground" in block for line in block.splitlines()]
BOXES = [line for line in PLAYED if "boxes" in line]
PLAYGROUND = [line for line in PLAYED if line not in BOXES]
OTHERS = [line for block in MODEL if "playground" not in block for line in block.splitlines()]

Done = subprocess.CompletedProcess[str]


@dataclass(frozen=True)
class Reader:
    """Somebody who types the document's commands in `place`, in an environment of their own."""

    place: Path
    environ: dict[str, str]

    def types(self, command: str) -> Done:
        more = [flags for begin, flags in SHORTER.items() if command.startswith(begin)]
        return subprocess.run(
            ["bash", "-c", " ".join([command, *more])],
            cwd=self.place, env=self.environ, capture_output=True, text=True, timeout=1800,
        )  # fmt: skip

    def told(self, command: str) -> Any:
        done = self.types(f"{command} --json")
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def reader(
    tmp_path_factory: pytest.TempPathFactory, serve_runtime: Path, request: pytest.FixtureRequest
) -> Reader:
    place = make_place(tmp_path_factory.mktemp("reader"))
    environ = environment(place, VIDQA_RUNTIME_DIR=str(serve_runtime))
    # The engine of all that is to come: one that may load adapters also serves without.
    settings = Settings.load("demo", {})
    ensure_engine(engine_options(settings, TINY).allowing(16), serve_runtime / "vidqa")
    return Reader(place, environ)


@pytest.fixture(scope="module")
def played(reader: Reader) -> dict[str, Done]:
    """The playground's commands, each with what it said."""
    return {command: reader.types(command) for command in PLAYGROUND}


def said(played: dict[str, Done], begin: str) -> str:
    (done,) = [done for command, done in played.items() if command.startswith(begin)]
    return done.stdout + done.stderr


def test_every_command_of_the_playground_works(played: dict[str, Done]) -> None:
    assert len(played) == 7
    for command, done in played.items():
        assert done.returncode == 0, f"$ {command}\n{done.stdout}{done.stderr}"
    assert ", 0 problems" in said(played, "vidqa finetune check")
    assert "40 of 40 steps" in said(played, "vidqa finetune --data playground/train")
    assert "playground" in said(played, "vidqa adapters ls")
    assert said(played, "vidqa ask").strip()


def test_the_card_tells_what_was_trained_on_what(reader: Reader, played: dict[str, Done]) -> None:
    import hashlib

    card = adapters.read(reader.place / "adapters" / "playground")
    data = reader.place / "playground" / "train.jsonl"
    assert (card.name, card.rank, card.alpha) == ("playground", 16, 32.0)
    assert (card.base_model, card.base_model_type) == (str(TINY), "qwen2_vl")
    assert card.base_digest == base_digest(TINY)
    assert (card.box_family, card.trains_vision) == ("qwen2-vl", False)
    assert {
        name: card.look[name]
        for name in ("max_frames", "frames_per_moment", "max_pixels", "sample_fps")
    } == {"max_frames": 12, "frames_per_moment": 4, "max_pixels": 9408, "sample_fps": 2.0}
    (file,) = card.data
    assert file.sha256 == hashlib.sha256(data.read_bytes()).hexdigest()
    assert file.rows == len(data.read_text("utf-8").splitlines())
    assert card.metrics["after"]["loss"] < card.metrics["before"]["loss"]


def test_the_adapter_is_proved_to_be_applied(reader: Reader, played: dict[str, Done]) -> None:
    (listed,) = reader.told("vidqa adapters ls")["adapters"]
    assert (listed["name"], listed["loaded"], listed["problem"]) == ("playground", True, None)
    assert reader.told("vidqa adapters load playground")["difference"] > 0.01


def test_answers_of_base_and_adapter_differ_and_are_compared(
    reader: Reader, played: dict[str, Done]
) -> None:
    folder = reader.place / "adapters" / "playground" / "evaluation" / "held-out"
    base, own = (answers(folder / f"held-out-{one}.jsonl") for one in ("base", "adapter"))
    assert len(base) == len(own) == 40
    assert sum(one != other for one, other in zip(base, own, strict=True)) >= 4
    told = json.loads((folder / "metrics.json").read_text("utf-8"))
    assert told["held_out"]["failed"] == {"base": 0, "adapter": 0}
    assert told["held_out"]["tasks"]["answer"]["exact_match"]["n"] == 40
    assert (folder / "report.html").is_file()


def answers(file: Path) -> list[str]:
    lines = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    return [one["answers"][0]["text"] for one in lines]


def test_the_commands_of_the_worked_run_work(reader: Reader, played: dict[str, Done]) -> None:
    """Those that ask vLLM; the others are run by test_finetune_document.py."""
    shutil.copytree(reader.place / "adapters" / "playground", reader.place / "adapters" / "birds")
    shutil.rmtree(reader.place / "adapters" / "birds" / "evaluation")
    for name in ("rows", "held-out"):
        (reader.place / f"{name}.jsonl").rename(reader.place / f"{name}.kept.jsonl")
    assert reader.types("vidqa ingest films --index built").returncode == 0
    assert len(OTHERS) == 8
    for command in OTHERS:
        if command.startswith("vidqa serve"):
            assert "birds" in served_models(reader, command)
            continue
        more = " --index built" if " build " in command else ""
        done = reader.types(command + more)
        assert done.returncode == 0, f"$ {command}\n{done.stdout}{done.stderr}"
        if " build " in command:
            assert (reader.place / command.split()[-1]).read_text("utf-8")
    assert len((reader.place / "answers.jsonl").read_text("utf-8").splitlines()) >= 1


def test_the_boxes_of_the_playground_are_trained_on_and_measured(
    reader: Reader, tmp_path: Path
) -> None:
    """Its model has an engine of its own: a server that runs meanwhile would put back the other."""
    alone = Reader(reader.place, reader.environ | {"VIDQA_RUNTIME_DIR": str(tmp_path)})
    assert len(BOXES) == 2
    try:
        for command in (PLAYGROUND[0], *BOXES):
            done = alone.types(command)
            assert done.returncode == 0, f"$ {command}\n{done.stdout}{done.stderr}"
    finally:
        alone.types("vidqa engine stop")
    told = json.loads((reader.place / "boxes" / "metrics.json").read_text("utf-8"))
    rows = (reader.place / "playground" / "boxes-held-out.jsonl").read_text("utf-8").splitlines()
    assert told["held_out"]["failed"] == {"base": 0}
    assert told["held_out"]["tasks"]["box"]["iou"]["n"] == len(rows)


def served_models(reader: Reader, command: str) -> list[str]:
    """The names under which the document's server answers; it is ended again."""
    with subprocess.Popen(
        ["bash", "-c", f"exec {command} --port 0 --json"],
        cwd=reader.place, env=reader.environ, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        try:
            assert process.stdout
            url = json.loads(process.stdout.readline())["url"]
            return until(lambda: _models(url))
        finally:
            process.terminate()


def _models(url: str) -> list[str]:
    found = [one["id"] for one in httpx.get(f"{url}v1/models", timeout=30).json()["data"]]
    return found if "birds" in found else []


def until(ask: Callable[[], list[str]], seconds: float = 120) -> list[str]:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if found := ask():
                return found
        except (httpx.HTTPError, KeyError):
            pass
        time.sleep(0.2)
    raise AssertionError("the server does not offer the adapter")
