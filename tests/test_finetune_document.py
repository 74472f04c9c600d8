"""docs/finetune.md does what it says: its examples are read, its commands run, its figures hold."""

from __future__ import annotations

import ast
import functools
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from conftest import REPOSITORY
from document_parts import DOCUMENT, TEXT, blocks, cells, environment, make_place, section
from media import Format, make_film, shot
from PIL import Image
from test_readme import commands, needs

from finetune.check import check
from finetune.dataset import IGNORE, Encoder, Item, load_processor
from finetune.formats import FORMATS, detect, read, write
from finetune.layout import Look
from finetune.recipe import RECIPE, Recipe
from vidqa.boxes import FAMILIES, Family

MODEL = REPOSITORY / "vidqa" / "demo" / "models" / "tiny-qwen2-vl"
EXAMPLES = blocks("json", "jsonl", "csv")
BOXES = {"Boxes", "coco"}
ASKED = [one for one in EXAMPLES if one[0] not in BOXES]
LOCATED = [one for one in EXAMPLES if one[0] in BOXES]


# ---------------------------------------------------------------- formats


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All examples as files beside each other, with the film and the picture that they name."""
    folder = tmp_path_factory.mktemp("formats")
    (folder / "films").mkdir()
    shots = [shot(2, 1), shot(2, 2), shot(2, 3)]
    make_film(folder / "films" / "a.mp4", shots, Format(width=320, height=240))
    Image.effect_mandelbrot((640, 480), (-2, -1, 1, 1), 20).convert("RGB").save(
        folder / "photo.jpg"
    )
    for _, name, text in EXAMPLES:
        (folder / name).write_text(text, encoding="utf-8")
    return folder


@functools.cache
def encoder(family: Family = "qwen2-vl") -> Encoder:
    return Encoder(load_processor(str(MODEL)), Look(max_frames=4, max_pixels=9408), family)


def same(one: Item, other: Item) -> bool:
    return one.keys() == other.keys() and all(one[key].equal(other[key]) for key in one)


def test_the_table_of_formats_is_that_of_the_code() -> None:
    told = [re.sub(r"[\[\]`]|\(.*\)", "", row[0]) for row in cells("Formats")]
    assert sorted(told) == sorted(FORMATS)
    assert set(told) <= {heading for heading, _, _ in EXAMPLES}


@pytest.mark.parametrize("name", [name for _, name, _ in EXAMPLES])
def test_an_example_is_recognised_and_nothing_is_wrong_with_it(place: Path, name: str) -> None:
    heading = next(one for one, file, _ in EXAMPLES if file == name)
    if heading in FORMATS:
        assert detect(place / name) == heading
    rows = read(place / name)
    assert len(rows) == 1
    assert [str(one) for one in check(rows)] == []


def test_one_question_is_the_same_tokens_and_labels_in_every_format(place: Path) -> None:
    (first,), make = read(place / "row.jsonl"), encoder()
    wanted = make(first)
    assert (wanted["labels"] != IGNORE).sum() >= 4
    assert len(ASKED) == 10
    for _, name, _ in ASKED:
        (row,) = read(place / name)
        assert same(make(row), wanted), name


@pytest.mark.parametrize("format", [name for name in FORMATS if name != "coco"])
def test_what_is_written_as_parquet_is_the_same_tokens_too(
    place: Path, tmp_path: Path, format: str
) -> None:
    (row,), make = read(place / "row.jsonl"), encoder()
    file = tmp_path / "rows.parquet"
    write([row], file, format)
    (again,) = read(file, format)
    assert same(make(again), make(row))


@pytest.mark.parametrize("family", FAMILIES)
def test_one_box_is_the_same_tokens_in_every_format_and_family(place: Path, family: Family) -> None:
    (first,), make = read(place / "boxes.jsonl"), encoder(family)
    wanted = make(first)
    assert len(LOCATED) == 5
    for _, name, _ in LOCATED:
        (row,) = read(place / name)
        assert same(make(row), wanted), name


# ---------------------------------------------------------------- figures


def test_the_defaults_in_the_table_are_those_of_the_recipe() -> None:
    rows = cells("Hyper-parameters")
    for name, default, reason in rows:
        field = name.strip("`")
        assert field in RECIPE
        assert yaml.safe_load(default) == getattr(Recipe(), field), field
        assert reason


def test_the_recipe_in_the_text_is_one(tmp_path: Path) -> None:
    (text,) = re.findall(r"^```yaml\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
    (tmp_path / "birds.yaml").write_text(text)
    loaded = Recipe.load(str(tmp_path / "birds.yaml"))
    assert (loaded.epochs, loaded.max_row_tokens) == (3.0, 2048)


def test_the_table_of_memory_is_what_the_plan_estimates() -> None:
    sys.path.insert(0, str(REPOSITORY / "benchmarks"))
    try:
        import finetune_memory  # type: ignore[import-not-found,unused-ignore]
    finally:
        sys.path.pop(0)
    assert finetune_memory.table() in section("Memory")


# ---------------------------------------------------------------- messages

_PREFIX = re.compile(r"[\w.-]+\.jsonl:\d+: ")
_LEAST_WORDS = 15


def patterns() -> list[str]:
    """Every text in the code as a regular expression; what is put into it may be anything."""
    found = []
    for package in ("finetune", "vidqa"):
        for file in (REPOSITORY / package).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text("utf-8"))):
                pieces: list[Any] = []
                if isinstance(node, ast.JoinedStr):
                    pieces = node.values
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    pieces = [node]
                said = [one.value if isinstance(one, ast.Constant) else None for one in pieces]
                if sum(len(one) for one in said if one) >= _LEAST_WORDS:
                    found.append("".join(".*" if one is None else re.escape(one) for one in said))
    return found


def quoted() -> list[str]:
    fenced = re.findall(r"^```text\n(.*?)^```", section("Pitfalls"), re.MULTILINE | re.DOTALL)
    return [line for block in fenced for line in block.splitlines()]


def test_every_message_among_the_pitfalls_is_one_of_the_code() -> None:
    known = [re.compile(one) for one in patterns()]
    assert len(quoted()) >= 20
    for message in quoted():
        words = _PREFIX.sub("", message, count=1)
        assert any(one.fullmatch(words) for one in known), message


# ---------------------------------------------------------------- commands


def test_the_commands_that_need_no_vllm_run(tmp_path: Path) -> None:
    folder = make_place(tmp_path)
    for command, comment in commands(DOCUMENT):
        if needs(comment) not in (None, "a model hub"):
            continue
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=folder, env=environment(folder), capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, f"$ {command}\n{done.stdout}{done.stderr}"
    assert (folder / "adapters" / "birds" / "adapter.json").is_file()
    assert (folder / "models" / "birds" / "config.json").is_file()


def test_the_review_of_the_document_opens_and_ends(tmp_path: Path) -> None:
    folder = make_place(tmp_path)
    ((command, _),) = [one for one in commands(DOCUMENT) if needs(one[1]) == "a person"]
    with subprocess.Popen(
        ["bash", "-c", f"exec {command}"],
        cwd=folder, env=environment(folder), stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout
        (url,) = re.findall(r"http://127\.0\.0\.1:\S+", process.stdout.readline())
        assert httpx.get(url, timeout=60).status_code == 200
        process.send_signal(signal.SIGINT)
        assert "to train on: rows.reviewed.jsonl" in process.stdout.read()
    assert process.returncode == 0
