"""The folder of an adapter: its card, and what is said of one that is not whole."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from adapter_parts import make_adapter

from vidqa import adapters
from vidqa.adapters import AdapterCard, DataFile
from vidqa.errors import ModelError, UsageError

CONFIG = {"r": 8, "lora_alpha": 16, "target_modules": ["v_proj", "q_proj"], "peft_type": "LORA"}


def card(**more: object) -> AdapterCard:
    fields = {"name": "birds", "base_model": "m", "rank": 8, "alpha": 16.0, "targets": ("q", "v")}
    return AdapterCard(**(fields | more))  # type: ignore[arg-type]


def folder_with(folder: Path, **config: object) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / adapters.CONFIG).write_text(json.dumps(CONFIG | config))
    return folder


def test_a_card_is_read_as_it_was_written(tmp_path: Path) -> None:
    written = card(
        targets=("q_proj", "v_proj"),
        base_digest="ab",
        look={"max_frames": 8},
        data=(DataFile("a.jsonl", "00", 3),),
        metrics={"before": {"em": 0.1}, "after": {"em": 0.5}},
        versions={"peft": "0.21"},
        created="2026-11-25T10:00:00+00:00",
    )
    adapters.write(folder_with(tmp_path), written)
    assert adapters.read(tmp_path) == written


def test_writing_leaves_no_draft(tmp_path: Path) -> None:
    adapters.write(folder_with(tmp_path), card())
    assert sorted(one.name for one in tmp_path.iterdir()) == [adapters.CARD, adapters.CONFIG]


def test_rank_alpha_and_targets_are_those_that_peft_serves(tmp_path: Path) -> None:
    adapters.write(folder_with(tmp_path), card(rank=64, alpha=1.0))
    found = adapters.read(tmp_path)
    assert (found.rank, found.alpha, found.targets) == (8, 16.0, ("q_proj", "v_proj"))


def test_an_adapter_from_elsewhere_is_what_peft_says_of_it(tmp_path: Path) -> None:
    found = adapters.read(folder_with(tmp_path / "far", base_model_name_or_path="Qwen/Qwen2-VL-2B"))
    assert (found.name, found.base_model, found.look) == ("far", "Qwen/Qwen2-VL-2B", {})


def test_a_field_of_a_later_version_is_passed_over(tmp_path: Path) -> None:
    path = adapters.write(folder_with(tmp_path), card())
    path.write_text(json.dumps(json.loads(path.read_text()) | {"colour": "red"}))
    assert adapters.read(tmp_path).name == "birds"


@pytest.mark.parametrize(
    ("file", "text", "match"),
    [
        ("adapter_config.json", "{", r"adapter_config\.json: not valid JSON .*; save the adapter"),
        ("adapter_config.json", "[]", r"adapter_config\.json: holds no object"),
        ("adapter_config.json", "{}", r"no LoRA as PEFT saves it .*KeyError 'r'"),
        ("adapter.json", "{", r"adapter\.json: not valid JSON .*; remove it"),
        ("adapter.json", '{"data": [{"name": 1}]}', r"adapter\.json: not a card of vidqa's"),
        ("adapter.json", '{"base_model": 3}', r"base_model is 3, and text is wanted"),
    ],
)
def test_a_damaged_file_is_named_with_what_to_do(
    tmp_path: Path, file: str, text: str, match: str
) -> None:
    (folder_with(tmp_path) / file).write_text(text)
    with pytest.raises(ModelError, match=match):
        adapters.read(tmp_path)


def test_a_folder_without_an_adapter_says_what_is_wanted(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"holds no adapter_config\.json; name the folder"):
        adapters.read(tmp_path)
    with pytest.raises(ModelError, match="no such folder"):
        adapters.read(tmp_path / "none")


@pytest.mark.parametrize("name", ["", "../x", "a/b", "a:b", ".hidden", "a b", "x" * 101])
def test_a_name_that_is_no_name_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="letters, digits"):
        adapters.check_name(name)


@pytest.mark.parametrize(
    ("card", "match"),
    [
        ({"look": {"sample_fps": "fast"}}, "sample_fps is 'fast', and a number is wanted"),
        ({"look": {"max_frames": True}}, "max_frames is True, and a whole number is wanted"),
        ({"look": {"cite": 1}}, "cite is 1, and true or false is wanted"),
        ({"look": {"layout": 5}}, "layout is 5, and text is wanted"),
        ({"metrics": {"before": 5}}, "not a card of vidqa's"),
    ],
)
def test_a_card_that_says_nonsense_is_told_with_its_file(
    tmp_path: Path, card: dict[str, object], match: str
) -> None:
    with pytest.raises(ModelError, match=rf"adapter\.json: {match}.*; remove it"):
        adapters.read(make_adapter(tmp_path / "a", card=card))


@pytest.mark.parametrize("name", ["adapter.json", "adapter_config.json"])
def test_json_without_an_end_of_its_depth_is_told(tmp_path: Path, name: str) -> None:
    folder = make_adapter(tmp_path / "a")
    (folder / name).write_text("[" * 100_000)
    with pytest.raises(ModelError, match=rf"{name}: not valid JSON"):
        adapters.read(folder)


@pytest.mark.parametrize(
    "numbers", [{"r": 4.7}, {"r": float("inf")}, {"lora_alpha": float("nan")}, {"r": [4]}]
)
def test_ranks_and_alphas_that_are_no_numbers_are_told(
    tmp_path: Path, numbers: dict[str, object]
) -> None:
    with pytest.raises(ModelError, match="no LoRA as PEFT saves it"):
        adapters.read(make_adapter(tmp_path / "a", **numbers))  # type: ignore[arg-type]
