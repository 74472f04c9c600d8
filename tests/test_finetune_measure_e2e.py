"""Asking rows, comparing and merging, through the real vLLM with a tiny model.

The adapter's weights are random: its answers are nonsense, but other nonsense than the base's.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY
from media import three_shots
from test_finetune_merge import make_adapter

from vidqa.model_card import CARD

pytestmark = pytest.mark.e2e

QUESTIONS = ("What colour is the star?", "The star is", "Question: film?", "Use only the moments.")


@pytest.fixture(scope="module")
def place(
    tmp_path_factory: pytest.TempPathFactory, tiny_answerer: Path, engine_folder: Path
) -> Path:
    """A folder with a film, rows about it, an adapter and settings for a small engine."""
    folder = tmp_path_factory.mktemp("place")
    three_shots(folder / "film.mp4")
    rows = [
        {
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "video", "video": "film.mp4", "start": start, "end": start + 2},
                        {"type": "text", "text": question},
                    ],
                },
                {"role": "assistant", "content": "The star is red."},
            ]
        }
        for start in (0, 2, 4)
        for question in QUESTIONS
    ]
    (folder / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    make_adapter(tiny_answerer, folder / "adapters" / "birds", spread=0.2)
    settings = {
        "model": str(tiny_answerer), "dtype": "float32", "max_model_len": 2048,
        "kvcache_gib": 0.25, "gpu_memory_utilization": 0.1, "max_frames": 2, "max_pixels": 9408,
        "max_tokens": 12, "engine_idle_minutes": 15,
    }  # fmt: skip
    (folder / "small.yaml").write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="module")
def vidqa(place: Path, engine_folder: Path) -> Any:
    """Runs a command there, and returns the finished process."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        environ = os.environ | {
            "VIDQA_RUNTIME_DIR": str(engine_folder.parent),
            "PYTHONPATH": str(REPOSITORY),
        }
        return subprocess.run(
            [sys.executable, "-m", "vidqa.cli", *arguments, "--config", "small.yaml"],
            cwd=place, env=environ, capture_output=True, text=True, check=False,
        )  # fmt: skip

    return run


def texts(path: Path) -> list[str]:
    lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    assert [one["row"] for one in lines] == list(range(1, len(lines) + 1))
    return [one["answers"][0]["text"] for one in lines]


def test_base_adapter_and_merged_model_answer_a_file_of_rows(vidqa: Any, place: Path) -> None:
    rows = ("--data", "rows.jsonl", "--cache", "cache")
    done = vidqa("finetune", "eval", *rows, "--adapter", "birds", "--output", "evaluation")
    assert done.returncode == 0, done.stderr
    base = texts(place / "evaluation" / "held-out-base.jsonl")
    adapted = texts(place / "evaluation" / "held-out-adapter.jsonl")
    assert len(base) == len(adapted) == 12
    assert sum(one != other for one, other in zip(base, adapted, strict=True)) > 6
    told = json.loads((place / "evaluation" / "metrics.json").read_text())
    assert told["held_out"]["failed"] == {"base": 0, "adapter": 0}
    assert told["held_out"]["tasks"]["answer"]["exact_match"]["n"] == 12
    page = (place / "evaluation" / "report.html").read_text("utf-8")
    assert "data:image/jpeg" in page

    done = vidqa("infer", *rows, "--adapter", "birds", "--output", "answers.jsonl")
    assert done.returncode == 0, done.stderr
    assert "12 rows answered, 12 answers cut off (--max-tokens): answers.jsonl" in done.stdout
    assert texts(place / "answers.jsonl") == adapted

    done = vidqa("infer", *rows, "--adapter", "birds", "--output", "answers.jsonl")
    assert "0 rows answered, 12 known already" in done.stdout

    done = vidqa("infer", *rows, "--adapter", "birds", "--merge", "merged", "--output", "m.jsonl")
    assert done.returncode == 0, done.stderr
    assert (place / "merged" / CARD).is_file()
    assert texts(place / "m.jsonl") == adapted

    done = vidqa("infer", *rows, "--adapter", "birds", "--merge", "merged", "--output", "m.jsonl")
    assert done.returncode == 0, done.stderr
    assert "0 rows answered, 12 known already" in done.stdout


def test_a_data_file_that_changed_is_noticed(vidqa: Any, place: Path) -> None:
    changed = place / "changed.jsonl"
    changed.write_text((place / "rows.jsonl").read_text().splitlines()[0] + "\n")
    rows = ("infer", "--data", "changed.jsonl", "--cache", "cache", "--output", "c.jsonl")
    assert vidqa(*rows).returncode == 0
    changed.write_text(changed.read_text() * 2)
    done = vidqa(*rows)
    assert done.returncode == 2
    assert "c.jsonl: its answers are of another run (data: changed.jsonl" in done.stderr


def test_a_row_without_its_video_costs_that_row_and_the_exit_code(vidqa: Any, place: Path) -> None:
    first = (place / "rows.jsonl").read_text().splitlines()[0]
    lines = f"{first}\n{first.replace('film.mp4', 'gone.mp4')}\n"
    (place / "gone.jsonl").write_text(lines)
    done = vidqa("infer", "--data", "gone.jsonl", "--cache", "cache", "--output", "g.jsonl")
    assert done.returncode == 1
    assert "gone.jsonl:2: " in done.stderr
    assert "1 row answered, 1 failed" in done.stdout
