"""`vidqa adapters` and `ask --adapter`: what they print, and what they leave alone."""

from __future__ import annotations

import base64
import io
import json
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from adapter_parts import make_adapter, make_base
from conftest import REPOSITORY
from fakes import FakeEmbedder, FakeEndpoint
from media import Format, make_film, shot
from PIL import Image
from test_ask import add_film
from test_cli import event, vidqa
from test_engine import PROGRAM

from vidqa import engine
from vidqa.adapter_weights import base_digest
from vidqa.library import Library

CARD = {
    "base_model": "Qwen/Qwen2-VL-2B-Instruct",
    "look": {"max_frames": 2},
    "data": [{"file": "birds.jsonl", "sha256": "ab", "rows": 40}],
    "metrics": {"before": {"exact": 0.25}, "after": {"exact": 0.75}},
    "created": "2026-11-25T10:00:00+00:00",
}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VIDQA_RUNTIME_DIR", str(tmp_path / "runtime"))
    return tmp_path


@pytest.fixture
def birds() -> Path:
    return make_adapter(Path("adapters/birds"), card=CARD)


@pytest.mark.parametrize("name", ["ls", "show", "rm", "load", "unload"])
def test_every_command_explains_itself_by_example(name: str) -> None:
    assert f"  vidqa adapters {name}" in vidqa("adapters", name, "--help").stdout


# ---------------------------------------------------------------- seeing


def test_ls_shows_what_there_is(birds: Path) -> None:
    make_adapter(Path("adapters/damaged"))
    Path("adapters/damaged/adapter.json").write_text("{")
    Path("adapters/notes").mkdir()
    lines = vidqa("adapters", "ls").stdout.splitlines()
    assert lines[0].split() == ["name", "rank", "size", "made", "state", "base"]
    assert lines[1].split() == [
        "birds", "4", "0.0", "MiB", "2026-11-25", "Qwen/Qwen2-VL-2B-Instruct",
    ]  # fmt: skip
    assert "problem" in lines[2]
    assert "not valid JSON" in lines[2]
    assert len(lines) == 3


def test_ls_with_json_is_one_object(birds: Path) -> None:
    [row] = event(vidqa("adapters", "ls", "--json"))["adapters"]
    assert (row["name"], row["loaded"], row["problem"]) == ("birds", False, None)
    assert row["card"]["look"] == {"max_frames": 2}


def test_ls_tells_weights_that_are_cut_off(birds: Path) -> None:
    weights = birds / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    [row] = event(vidqa("adapters", "ls", "--json"))["adapters"]
    assert "not a whole safetensors file" in row["problem"]
    assert "not a whole safetensors file" in vidqa("adapters", "ls").stdout


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("my birds", "adapters/my birds: cannot be called by this name (letters, digits"),
        ("notes", "adapters/notes: holds no adapter_config.json"),
    ],
)
def test_a_folder_among_the_adapters_that_is_none_to_call_is_told_so(
    name: str, message: str, birds: Path
) -> None:
    birds.rename(birds.with_name("my birds"))
    Path("adapters/notes").mkdir()
    shown = vidqa("adapters", "show", name)
    assert shown.exit_code == 2
    assert message in shown.stderr


def test_without_adapters_ls_says_how_to_get_one() -> None:
    result = vidqa("adapters", "ls")
    assert (result.exit_code, result.stdout) == (3, "")
    assert "no adapter in adapters; train one: vidqa finetune --data FILE" in result.stderr
    assert event(vidqa("adapters", "ls", "--json")) == {"adapters": []}


def test_show_tells_data_metrics_and_look(birds: Path) -> None:
    shown = vidqa("adapters", "show", "birds")
    assert shown.exit_code == 0
    rows = dict(line.split("  ", 1) for line in shown.stdout.splitlines())
    found = {name: value.strip() for name, value in rows.items()}
    assert found["look"] == "max_frames 2"
    assert found["data"] == "birds.jsonl, 40 rows"
    assert (found["before"], found["after"]) == ("exact 0.250", "exact 0.750")
    assert found["state"] == "can be served"


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_show_of_one_that_cannot_be_served_says_why(flags: list[str]) -> None:
    make_adapter(Path("adapters/zero"), fill=0.0)
    shown = vidqa("adapters", "show", "zero", *flags)
    assert shown.exit_code == 1
    assert "every B matrix is zero" in shown.stdout


# ---------------------------------------------------------------- deleting


def test_rm_deletes_after_a_yes(birds: Path) -> None:
    (birds / "checkpoint-1").mkdir()
    assert event(vidqa("adapters", "rm", "birds", "--yes", "--json")) == {"removed": "birds"}
    assert not birds.exists()
    assert birds.parent.exists()


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_rm_with_nobody_to_ask_deletes_nothing(birds: Path, flags: list[str]) -> None:
    result = vidqa("adapters", "rm", "birds", *flags)
    assert result.exit_code == 2
    assert "nobody here to ask; say --yes" in result.stdout + result.stderr
    assert birds.exists()


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("../films", "letters, digits"),
        ("/etc", "letters, digits"),
        (".", "letters, digits"),
        ("..", "letters, digits"),
        ("none", "no adapter of that name in adapters (there are: birds, link)"),
        ("notes", "adapters/notes: holds no adapter_config.json, so it is left alone"),
        ("link", "is a link; remove it yourself"),
    ],
)
def test_rm_leaves_alone_what_is_no_adapter_of_the_folder(
    birds: Path, elsewhere: Path, name: str, match: str
) -> None:
    for folder in ("films", "adapters/notes"):
        (elsewhere / folder).mkdir()
        (elsewhere / folder / "kept").touch()
    outside = make_adapter(elsewhere / "outside")
    Path("adapters/link").symlink_to(outside)
    result = vidqa("adapters", "rm", name, "--yes")
    assert result.exit_code == 2
    assert match in result.stderr
    for kept in ("films/kept", "adapters/notes/kept", "outside/adapter_config.json", str(birds)):
        assert (elsewhere / kept).exists()


# ---------------------------------------------------------------- with an engine


@pytest.fixture
def fake_engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Commands start the stand-in for vLLM; its model is `tiny` in this folder."""
    monkeypatch.setenv("PYTHONPATH", f"{REPOSITORY}")
    monkeypatch.setattr(engine, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(engine, "check_vllm", lambda: None)
    start = engine.ensure_engine
    monkeypatch.setattr(
        engine, "ensure_engine", lambda *a, **named: start(*a, **named, program=PROGRAM)
    )
    yield make_base(Path("tiny"))
    engine.stop()


def test_load_and_unload_change_the_running_engine(birds: Path, fake_engine: Path) -> None:
    Path("adapters/birds/adapter.json").unlink()
    first = event(vidqa("adapters", "load", "birds", "--model", "tiny", "--json"))
    assert (first["name"], first["difference"]) == ("birds", pytest.approx(0.5))
    again = vidqa("adapters", "load", "birds", "--model", "tiny")
    assert again.stdout == "loaded: birds; answers differ from the base's by 0.5\n"
    [row] = event(vidqa("adapters", "ls", "--json"))["adapters"]
    assert row["loaded"]
    assert vidqa("adapters", "unload", "birds").stdout == "unloaded: birds\n"
    assert vidqa("adapters", "unload", "birds").exit_code == 3


def test_ls_says_that_one_that_was_trained_again_is_loaded_as_it_was(
    birds: Path, fake_engine: Path
) -> None:
    Path("adapters/birds/adapter.json").unlink()
    vidqa("adapters", "load", "birds", "--model", "tiny")
    assert " loaded " in vidqa("adapters", "ls").stdout
    make_adapter(birds, seed=1)
    assert "loaded as it was" in vidqa("adapters", "ls").stdout
    [row] = event(vidqa("adapters", "ls", "--json"))["adapters"]
    assert not row["loaded"]


def test_an_adapter_of_another_base_starts_no_engine(birds: Path, fake_engine: Path) -> None:
    card = CARD | {"base_digest": base_digest(make_base(Path("other"), seed=1))}
    birds.joinpath("adapter.json").write_text(json.dumps(card))
    result = vidqa("adapters", "load", "birds", "--model", "tiny")
    assert result.exit_code == 1
    assert "was trained on Qwen/Qwen2-VL-2B-Instruct, and the model is tiny" in result.stderr
    assert engine.status() is None


def test_unload_without_an_engine_is_nothing_found() -> None:
    assert vidqa("adapters", "unload", "birds").exit_code == 3


# ---------------------------------------------------------------- asking


@pytest.fixture
def library(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vidqa.embed.load_embedder", lambda *_: FakeEmbedder())
    made = Library.open(elsewhere / "library", FakeEmbedder.spec, create=True)
    add_film(made, "red.mp4", ["red", "red", "red"])


def frames_shown(endpoint: FakeEndpoint) -> int:
    parts = endpoint.requests[-1]["messages"][-1]["content"]
    urls = [part["video_url"]["url"] for part in parts if part["type"] == "video_url"]
    return sum(url.count(",") for url in urls)


@pytest.mark.parametrize(("flags", "frames"), [("", 2), ("--frames 6", 6)])
def test_ask_names_the_adapter_and_shows_what_it_wants_unless_told_more(
    library: None, birds: Path, flags: str, frames: int
) -> None:
    with FakeEndpoint(models=["base", "birds"]) as endpoint:
        command = f"ask red --adapter birds --index library --base-url {endpoint.base_url} --json"
        answer = event(vidqa(*shlex.split(f"{command} {flags}")))
    assert endpoint.requests[-1]["model"] == "birds"
    assert answer["model"] == "birds"
    assert frames_shown(endpoint) == frames


@pytest.mark.parametrize("command", ["ask red", "infer --data rows.jsonl", "eval"])
def test_an_adapter_without_a_name_is_not_the_base(command: str) -> None:
    """As of a script whose variable is empty."""
    Path("rows.jsonl").write_text('{"messages": [{"role": "user", "content": "What?"}]}')
    result = vidqa(*command.split(), "--base-url", "http://127.0.0.1:1/v1", "--adapter", "")
    assert result.exit_code == 2
    assert "--adapter '': a name, a folder, or NAME=FOLDER is wanted" in result.stderr


def test_ground_asks_the_adapter_in_the_size_that_it_was_trained_to_see(birds: Path) -> None:
    make_film(Path("red.mp4"), [shot(1.0)], Format(width=420, height=364))
    look = {"max_pixels": 9408}
    (birds / "adapter.json").write_text(json.dumps(CARD | {"look": look}))
    says = "<|box_start|>(0,0),(500,500)<|box_end|>"
    with FakeEndpoint(models=["base", "birds"], pieces=(says,)) as endpoint:
        command = f"ground red.mp4 star --at 0.5 --base-url {endpoint.base_url} --model base"
        flags = "--adapter birds --box-format qwen2-vl --json"
        found = event(vidqa(*shlex.split(f"{command} {flags}")))
    assert (found["model"], found["boxes"][0]["label"]) == ("birds", "")
    (body,) = endpoint.requests
    assert body["model"] == "birds"
    url = body["messages"][0]["content"][0]["video_url"]["url"]
    with Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2].partition(",")[0]))) as image:
        assert image.width * image.height <= 9408


def test_ask_with_an_adapter_that_is_not_there_loads_nothing() -> None:
    result = vidqa("ask", "red", "--adapter", "birds")
    assert result.exit_code == 2
    assert "--adapter birds: no adapter of that name in adapters (there are: none)" in result.stderr
