"""`vidqa finetune build` as people run it, with the real vLLM as teacher.

The playground's model answers questions about its films, but cannot write any: it speaks no JSON.
So it teaches by answering the user's own questions, and fails honestly where it should write them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from serve_fixture import Films

pytestmark = pytest.mark.e2e

TYPES = ("colour", "kind", "background")


def build(
    films: Films, runtime: Path, output: Path, *flags: str
) -> tuple[int, list[dict[str, Any]]]:
    """Exit code, and the events that are told."""
    command = [sys.executable, "-m", "vidqa.cli", "finetune", "build", "--from-library", "--json"]
    command += ["--config", "demo", "--index", str(films.index), "-o", str(output), *flags]
    told = {"VIDQA_RUNTIME_DIR": str(runtime)}
    done = subprocess.run(
        command, env=os.environ | told, capture_output=True, text=True, timeout=600, check=False
    )
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()]


def test_the_real_model_answers_ones_own_questions_and_repeats_itself(
    films: Films, serve_runtime: Path, tmp_path: Path
) -> None:
    known = [one for one in films.questions if one.type in TYPES and one.answer is not None]
    film = known[0].film
    asked = [one for one in known if one.film == film][:2]
    questions, output = tmp_path / "questions.txt", tmp_path / "rows.jsonl"
    questions.write_text("".join(f"{one.text}\n" for one in asked))
    flags = ["--questions", str(questions), "--again-temperature", "0.2", "--video", film]
    code, events = build(films, serve_runtime, output, *flags)
    total = events[-1]
    assert (code, total["failed"]) == (0, {})
    rows = [json.loads(line) for line in output.read_text("utf-8").splitlines()]
    assert len(rows) == total["rows"] >= 1
    assert {row["extra"]["teacher"] for row in rows} == {"tiny-qwen2-vl"}
    # Of the scenes that show what is asked for, most answers are the true ones.
    right = [
        one.answer.lower() in json.dumps(row["messages"][-1]).lower()
        for one in asked
        for row in rows
        if one.answer is not None
        and one.text in json.dumps(row["messages"][0])
        and Path(row["extra"]["video"]).name == one.film
        and row["extra"]["start_seconds"] < one.end_seconds
        and row["extra"]["end_seconds"] > one.start_seconds
    ]
    assert right
    assert sum(right) / len(right) >= 0.5
    again_code, again = build(films, serve_runtime, output, *flags)
    assert (again_code, again[-1]["requests"]) == (0, 0)


def test_a_teacher_that_cannot_write_questions_fails_scene_by_scene_and_says_why(
    films: Films, serve_runtime: Path, tmp_path: Path
) -> None:
    output = tmp_path / "rows.jsonl"
    flags = ["--scenes", "2", "--per-scene", "1", "--max-pixels", "9408"]
    code, events = build(films, serve_runtime, output, *flags)
    assert code == 1, events
    scenes = [one for one in events if one["event"] == "scene"]
    assert len(scenes) == 2
    assert all(one["error"] for one in scenes)
    assert sum(events[-1]["failed"].values()) == 2
    assert output.read_text("utf-8") == ""
