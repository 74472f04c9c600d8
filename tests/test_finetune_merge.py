"""An adapter merged into its base: the same numbers as PEFT's, in the base's own files."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import adapter_parts
import pytest
from tiny_models import make_answerer

from finetune.merge import is_merge, merge
from finetune.recipe import LANGUAGE_TARGETS
from vidqa.adapters import AdapterCard, write
from vidqa.errors import ModelError, UsageError
from vidqa.model_card import CARD, look_of


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_answerer(tmp_path_factory.mktemp("base") / "tiny-vl", "qwen2-vl-tiny")


def load(folder: Path, dtype: Any = None) -> Any:
    from vidqa.compat import declare_torchvision_operators

    declare_torchvision_operators()
    from transformers import Qwen2VLForConditionalGeneration

    return Qwen2VLForConditionalGeneration.from_pretrained(folder, dtype=dtype)


def make_adapter(base: Path, folder: Path, *, spread: float = 0.05, **options: Any) -> Path:
    """An adapter with random weights, saved by PEFT."""
    model = load(base)
    import torch
    from peft import LoraConfig, get_peft_model

    chosen = {"r": 4, "lora_alpha": 12, "target_modules": LANGUAGE_TARGETS} | options
    adapted = get_peft_model(model, LoraConfig(**chosen))
    torch.manual_seed(1)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_" in name:
                weight.normal_(0, spread)
    adapted.save_pretrained(folder, save_embedding_layers=False)
    return folder


def tensors_of(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return {
        key: tensor
        for file in folder.glob("*.safetensors")
        for key, tensor in load_file(file).items()
    }


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_adapter(base, tmp_path_factory.mktemp("adapter") / "birds")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_rslora": True},
        {"target_modules": r".*visual\.blocks.*\.(qkv|proj|fc1|fc2)"},
        {"alpha_pattern": {"q_proj": 40}, "rank_pattern": {"down_proj": 2}},
    ],
    ids=["language", "rank-stabilised", "vision", "patterns"],
)
def test_the_merged_weights_are_those_that_peft_makes(
    base: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    import torch
    from peft import PeftModel

    adapter = make_adapter(base, tmp_path / "birds", **options)
    merged = load(merge(base, adapter, tmp_path / "merged"))
    wanted = PeftModel.from_pretrained(load(base), adapter).merge_and_unload().state_dict()
    found = merged.state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.allclose(found[key], wanted[key], atol=1e-6) for key in found)
    plain = load(base).state_dict()
    assert any(not torch.equal(found[key], plain[key]) for key in found)


def test_files_keys_and_types_are_those_of_the_base(
    base: Path, adapter: Path, tmp_path: Path
) -> None:
    half = tmp_path / "half"
    import torch

    model = load(base, torch.float16)
    model.save_pretrained(half, max_shard_size="1MB")  # several files and their index
    for file in base.iterdir():
        if file.suffix != ".safetensors" and not (half / file.name).exists():
            (half / file.name).write_bytes(file.read_bytes())
    merged = merge(half, adapter, tmp_path / "merged")
    assert {one.name for one in merged.iterdir()} == {one.name for one in half.iterdir()} | {CARD}
    assert len(list(merged.glob("*.safetensors"))) > 1
    before, after = tensors_of(half), tensors_of(merged)
    assert before.keys() == after.keys()
    assert {tensor.dtype for tensor in after.values()} == {torch.float16}
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert len(changed) == 4 * 7
    assert all("proj" in key and "visual" not in key for key in changed)
    for name in ("config.json", "tokenizer.json", "processor_config.json", "chat_template.jinja"):
        assert (merged / name).read_bytes() == (half / name).read_bytes()


def test_others_may_read_a_merged_model(base: Path, adapter: Path, tmp_path: Path) -> None:
    merged = merge(base, adapter, tmp_path / "merged")
    assert all(one.stat().st_mode & 0o044 == 0o044 for one in merged.iterdir())


def test_the_folder_says_what_it_was_made_of(base: Path, adapter: Path, tmp_path: Path) -> None:
    told = json.loads((merge(base, adapter, tmp_path / "merged") / CARD).read_text())
    assert told["adapter"] == "birds"
    assert told["base_model"] == str(base)
    assert len(told["base_digest"]) == 32


def test_a_merged_model_keeps_the_adapters_look(base: Path, adapter: Path, tmp_path: Path) -> None:
    copy = tmp_path / "birds"
    copy.mkdir()
    for file in adapter.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    write(copy, AdapterCard(name="birds", base_model="my/base", rank=4, alpha=12, targets="",
                            look={"max_frames": 4}))  # fmt: skip
    assert look_of(str(merge(base, copy, tmp_path / "merged"))) == {"max_frames": 4}
    assert look_of(str(base)) == {}


def test_a_folder_that_is_there_is_not_written_into(
    base: Path, adapter: Path, tmp_path: Path
) -> None:
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(UsageError, match="is there already; name a folder that is new"):
        merge(base, adapter, tmp_path)
    assert [one.name for one in tmp_path.iterdir()] == ["notes"]


def test_a_merge_that_fails_leaves_nothing_behind(
    base: Path, adapter: Path, tmp_path: Path
) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        merge(base, adapter, tmp_path / "merged", stop)
    assert list(tmp_path.iterdir()) == []


def small_parts(folder: Path) -> tuple[Path, Path]:
    """A base in two files and an adapter of it, made without PEFT or a model."""
    base = adapter_parts.make_base(folder / "base", shards=2)
    return base, adapter_parts.make_adapter(folder / "birds", card={"look": {"max_frames": 4}})


def test_all_of_it_is_on_the_disk_before_the_folder_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, adapter = small_parts(tmp_path)
    synced = set()

    def sync(descriptor: int) -> None:
        assert not (tmp_path / "merged").exists()
        synced.add(os.fstat(descriptor).st_ino)

    monkeypatch.setattr(os, "fsync", sync)
    merged = merge(base, adapter, tmp_path / "merged")
    assert {one.stat().st_ino for one in (merged, *merged.iterdir())} <= synced


def test_a_merge_is_known_again(tmp_path: Path) -> None:
    base, adapter = small_parts(tmp_path)
    assert not is_merge(tmp_path / "merged", base, adapter)
    assert is_merge(merge(base, adapter, tmp_path / "merged"), base, adapter)


def test_figures_that_were_measured_since_make_it_no_other_merge(tmp_path: Path) -> None:
    base, adapter = small_parts(tmp_path)
    merged = merge(base, adapter, tmp_path / "merged")
    adapter_parts.make_adapter(
        adapter, card={"look": {"max_frames": 4}, "metrics": {"after": {"loss": 1.0}}}
    )
    assert is_merge(merged, base, adapter)


def _retrain(folder: Path) -> None:
    adapter_parts.make_adapter(folder / "birds", seed=1, card={"look": {"max_frames": 4}})


def _show_otherwise(folder: Path) -> None:
    adapter_parts.make_adapter(folder / "birds", card={"look": {"max_frames": 8}})


def _change_base(folder: Path) -> None:
    adapter_parts.make_base(folder / "base", shards=2, seed=1)


def _cut_weights_off(folder: Path) -> None:
    weights = folder / "merged" / "model-1.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])


def _lose_weights(folder: Path) -> None:
    (folder / "merged" / "model-1.safetensors").unlink()


def _damage_card(folder: Path) -> None:
    (folder / "merged" / CARD).write_text("{")


def _take_older_card(folder: Path) -> None:
    """Before merges could be known again, a card told the adapter's name alone."""
    path = folder / "merged" / CARD
    told = json.loads(path.read_text())
    del told["adapter_digest"]
    path.write_text(json.dumps(told))


@pytest.mark.parametrize(
    "change",
    [
        _retrain, _show_otherwise, _change_base, _cut_weights_off, _lose_weights, _damage_card,
        _take_older_card,
    ],
)  # fmt: skip
def test_what_is_not_the_whole_merge_of_both_is_not_taken_for_it(
    tmp_path: Path, change: Callable[[Path], None]
) -> None:
    base, adapter = small_parts(tmp_path)
    merged = merge(base, adapter, tmp_path / "merged")
    change(tmp_path)
    assert not is_merge(merged, base, adapter)


def test_an_older_card_still_tells_its_look(tmp_path: Path) -> None:
    base, adapter = small_parts(tmp_path)
    merged = merge(base, adapter, tmp_path / "merged")
    _take_older_card(tmp_path)
    assert look_of(str(merged)) == {"max_frames": 4}


def test_a_folder_of_somebody_else_beside_it_is_left_alone(
    base: Path, adapter: Path, tmp_path: Path
) -> None:
    (tmp_path / "merged.part").mkdir()
    (tmp_path / "merged.part" / "notes").write_text("mine")
    merge(base, adapter, tmp_path / "merged")
    assert (tmp_path / "merged.part" / "notes").read_text() == "mine"


def test_the_folder_that_we_are_in_can_be_merged_into(
    base: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "merged").mkdir()
    monkeypatch.chdir(tmp_path / "merged")
    assert (merge(base, adapter, Path()) / CARD).is_file()


def test_pickled_weights_and_hidden_files_are_not_copied(
    base: Path, adapter: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in base.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    for name in ("pytorch_model.bin", ".gitattributes", "pytorch_model.bin.index.json"):
        (copy / name).write_text("old")
    names = {one.name for one in merge(copy, adapter, tmp_path / "merged").iterdir()}
    assert names == {one.name for one in base.iterdir()} | {CARD}


def test_an_adapter_of_another_base_is_refused(base: Path, adapter: Path, tmp_path: Path) -> None:
    other = make_answerer(tmp_path / "other-vl", "qwen2-vl-tiny", seed=5)
    card = AdapterCard(name="birds", base_model="my/base", rank=4, alpha=12, targets="",
                       base_digest="0" * 32, base_model_type="qwen2_vl")  # fmt: skip
    copy = tmp_path / "birds"
    copy.mkdir()
    for file in adapter.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    write(copy, card)
    with pytest.raises(ModelError, match=r"was trained on my/base, and the model is .*other-vl"):
        merge(other, copy, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_more_than_lora_is_refused(base: Path, tmp_path: Path) -> None:
    adapter = make_adapter(base, tmp_path / "birds", use_dora=True)
    with pytest.raises(ModelError, match="DoRA"):
        merge(base, adapter, tmp_path / "merged")


def test_a_head_that_shares_the_embeddings_weights_is_refused(base: Path, tmp_path: Path) -> None:
    adapter = make_adapter(base, tmp_path / "birds", target_modules=["lm_head"])
    with pytest.raises(ModelError, match="lm_head, which has no weights of its own"):
        merge(base, adapter, tmp_path / "merged")


@pytest.mark.parametrize("told_by", ["its tensors", "its configuration"])
def test_a_quantised_base_is_refused(
    base: Path, adapter: Path, tmp_path: Path, told_by: str
) -> None:
    import torch
    from safetensors.torch import save_file

    copy = tmp_path / "copy"
    copy.mkdir()
    for file in base.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    if told_by == "its tensors":
        save_file({"model.layers.0.mlp.up_proj.qweight": torch.ones(2)}, copy / "more.safetensors")
    else:  # FP8 and int8 have a plain `weight`, and its scale beside it
        config = json.loads((copy / "config.json").read_text())
        told = config | {"quantization_config": {"quant_method": "fp8"}}
        (copy / "config.json").write_text(json.dumps(told))
    with pytest.raises(ModelError, match="quantised; merge into the model they are from"):
        merge(copy, adapter, tmp_path / "merged")
