"""What vLLM can serve of an adapter, and which base it belongs to, told from the files alone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from adapter_parts import MODULES, make_adapter, make_base, write_tensors

from vidqa.adapter_fit import check_base, describe, servable, stage
from vidqa.adapter_weights import base_digest, canonical, lora_part, tensors_in
from vidqa.errors import ModelError

NOW = "base_model.model.model.language_model.layers.0.self_attn.q_proj.lora_A.weight"


# ---------------------------------------------------------------- what can be served


def test_an_adapter_that_peft_saved_can_be_served(tmp_path: Path) -> None:
    found = servable(make_adapter(tmp_path / "birds", rank=4, rank_pattern={"q_proj": 12}))
    assert (found.card.name, found.rank, found.vision) == ("birds", 12, False)
    assert len(found.tensors) == 2 * len(MODULES)


@pytest.mark.parametrize(
    ("config", "match"),
    [
        (
            {"use_dora": True},
            "cannot serve DoRA; train it as plain LoRA, or merge it into its base with PEFT",
        ),
        ({"init_lora_weights": "pissa"}, r"changed its base \(init_lora_weights: pissa\)"),
        ({"init_lora_weights": "olora"}, "init_lora_weights: olora"),
        ({"bias": "lora_only"}, r"trained biases \(bias: lora_only\)"),
        ({"lora_bias": True}, "bias of LoRA"),
        ({"modules_to_save": ["lm_head"]}, r"whole modules besides LoRA \(modules_to_save\)"),
        ({"trainable_token_indices": [1]}, "single tokens' embeddings"),
        ({"peft_type": "IA3"}, "cannot serve IA3, which is no LoRA"),
        ({"use_dora": True, "bias": "all"}, r"DoRA and trained biases"),
        ({"rank_pattern": {"q_proj": 513}}, "its rank is 513; 1 to 512 can be served"),
        ({"r": 0}, "can be served"),
    ],
)
def test_what_vllm_cannot_apply_is_refused_with_the_reason(
    tmp_path: Path, config: dict[str, object], match: str
) -> None:
    folder = make_adapter(tmp_path / "odd", **config)  # type: ignore[arg-type]
    with pytest.raises(ModelError, match=match):
        servable(folder)


@pytest.mark.parametrize("init", [True, False, "gaussian", "eva", "orthogonal"])
def test_a_beginning_that_leaves_the_base_as_it_is_can_be_served(
    tmp_path: Path, init: object
) -> None:
    servable(make_adapter(tmp_path / "a", init_lora_weights=init))


@pytest.mark.parametrize("kind", ["float32", "float16", "float64"])
@pytest.mark.parametrize("fill", [0.0, -0.0])
def test_an_adapter_whose_bs_are_all_zero_is_refused(
    tmp_path: Path, kind: str, fill: float
) -> None:
    with pytest.raises(ModelError, match="every B matrix is zero, so it changes nothing"):
        servable(make_adapter(tmp_path / "a", fill=fill, kind=kind))


def test_the_least_number_is_no_zero(tmp_path: Path) -> None:
    servable(make_adapter(tmp_path / "a", fill=float(np.finfo(np.float32).tiny)))


@pytest.mark.parametrize("kind", ["float32", "float16", "float64"])
@pytest.mark.parametrize("fill", [float("nan"), float("inf"), float("-inf")])
def test_an_adapter_with_what_is_no_number_is_refused(
    tmp_path: Path, kind: str, fill: float
) -> None:
    with pytest.raises(ModelError, match=r"lora_B.weight and 3 more holds what is no number"):
        servable(make_adapter(tmp_path / "a", fill=fill, kind=kind))


def test_a_pickle_is_not_taken(tmp_path: Path) -> None:
    folder = make_adapter(tmp_path / "a")
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(ModelError, match=r"a pickle, adapter_model\.bin, which may hold code"):
        servable(folder)


def test_a_tensor_that_vllm_would_not_apply_is_refused(tmp_path: Path) -> None:
    folder = make_adapter(tmp_path / "a")
    write_tensors(
        folder / "adapter_model.safetensors",
        {"base_model.model.lm_head.weight": np.ones((2, 2), np.float32)},
    )
    with pytest.raises(ModelError, match=r"lm_head\.weight is no part of a LoRA"):
        servable(folder)


def test_half_a_lora_is_refused(tmp_path: Path) -> None:
    folder = make_adapter(tmp_path / "a")
    write_tensors(folder / "adapter_model.safetensors", {NOW: np.ones((2, 2), np.float32)})
    with pytest.raises(ModelError, match=r"not one A and one B of .*layers\.0\.self_attn\.q_proj"):
        servable(folder)


@pytest.mark.parametrize("kept", [0, 4, 9, 200, -1])
def test_a_file_that_is_cut_off_is_refused(tmp_path: Path, kept: int) -> None:
    path = make_adapter(tmp_path / "a") / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ModelError, match="not a whole safetensors file"):
        servable(path.parent)


def test_a_retrained_adapter_is_another(tmp_path: Path) -> None:
    first = servable(make_adapter(tmp_path / "a")).digest
    assert servable(make_adapter(tmp_path / "a")).digest == first
    assert servable(make_adapter(tmp_path / "a", seed=1)).digest != first
    assert servable(make_adapter(tmp_path / "a", lora_alpha=9)).digest != first


def test_what_is_wrong_with_an_adapter_is_told_and_not_raised(tmp_path: Path) -> None:
    assert describe(make_adapter(tmp_path / "good")).problem == ""
    zero = make_adapter(tmp_path / "zero", fill=0.0)
    assert "every B matrix is zero" in describe(zero).problem
    assert describe(zero, whole=False).problem == ""


# ---------------------------------------------------------------- names


@pytest.mark.parametrize(
    "name",
    [
        "model.language_model.layers.0.mlp.up_proj",  # transformers since 4.52
        "model.layers.0.mlp.up_proj",  # before
        "language_model.model.layers.0.mlp.up_proj",  # vLLM's own
        "language_model.layers.0.mlp.up_proj",
    ],
)
def test_a_module_has_one_name_whoever_wrote_it(name: str) -> None:
    assert canonical(name) == "language_model.layers.0.mlp.up_proj"
    for prefix in ("base_model.model.", ""):
        for part in ("lora_B.weight", "lora_B.default.weight"):
            assert lora_part(f"{prefix}{name}.{part}") == (canonical(name), "B")


@pytest.mark.parametrize("name", ["model.visual.blocks.0.attn.qkv", "visual.blocks.0.attn.qkv"])
def test_so_has_one_of_the_vision_tower(name: str) -> None:
    assert canonical(name) == "visual.blocks.0.attn.qkv"


@pytest.mark.parametrize(
    ("modules", "prefix"),
    [
        (MODULES, "base_model.model."),
        (MODULES, ""),
        ([one.replace("language_model.", "") for one in MODULES], "base_model.model."),
        ([one.removeprefix("model.") for one in MODULES], "base_model.model."),
    ],
)
def test_the_copy_for_vllm_has_the_names_of_today_and_the_same_numbers(
    tmp_path: Path, modules: list[str], prefix: str
) -> None:
    adapter = servable(make_adapter(tmp_path / "a", modules=modules, prefix=prefix))
    copy = tensors_in(stage(adapter, tmp_path / "r") / "adapter_model.safetensors")
    wanted = make_adapter(tmp_path / "now") / "adapter_model.safetensors"
    assert [(one.name, one.shape) for one in copy] == [
        (one.name, one.shape) for one in tensors_in(wanted)
    ]
    for one, other in zip(copy, tensors_in(wanted), strict=True):
        own = one.file.read_bytes()[one.begin : one.begin + one.size]
        assert own == wanted.read_bytes()[other.begin : other.begin + other.size]


def test_the_copy_can_be_read_by_safetensors_itself(tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    adapter = servable(make_adapter(tmp_path / "a"))
    found = load_file(stage(adapter, tmp_path / "r") / "adapter_model.safetensors")
    assert found[NOW].shape == (4, 8)


def test_a_copy_stays_as_it_was_when_the_adapter_is_trained_again(tmp_path: Path) -> None:
    place = stage(servable(make_adapter(tmp_path / "a")), tmp_path / "r")
    before = (place / "adapter_model.safetensors").read_bytes()
    again = stage(servable(make_adapter(tmp_path / "a", seed=1)), tmp_path / "r")
    assert again != place
    assert (place / "adapter_model.safetensors").read_bytes() == before
    assert sorted((tmp_path / "r").iterdir()) == sorted([place, again])


# ---------------------------------------------------------------- the base


def test_an_adapter_fits_the_base_that_it_was_trained_on(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    card = {"base_model": "base", "base_digest": base_digest(base), "base_model_type": "qwen2_vl"}
    check_base(servable(make_adapter(tmp_path / "a", card=card)), base, "base")


def test_a_base_in_more_files_is_the_same_base(tmp_path: Path) -> None:
    whole, cut = make_base(tmp_path / "whole"), make_base(tmp_path / "cut", shards=3)
    assert base_digest(whole) == base_digest(cut)
    assert base_digest(make_base(tmp_path / "other", seed=1)) != base_digest(whole)


def test_other_weights_are_an_error_that_names_both(tmp_path: Path) -> None:
    card = {"base_model": "Qwen/Mine", "base_digest": base_digest(make_base(tmp_path / "base"))}
    adapter = servable(make_adapter(tmp_path / "a", card=card))
    other = make_base(tmp_path / "other", seed=1)
    match = (
        r"adapter .*/a was trained on Qwen/Mine, and the model is Qwen/Theirs: their weights "
        r"differ \(\w{12}, \w{12}\); serve it with --model Qwen/Mine"
    )
    with pytest.raises(ModelError, match=match):
        check_base(adapter, other, "Qwen/Theirs")


def test_other_weights_in_the_folder_of_the_base_are_told_as_such(tmp_path: Path) -> None:
    adapter = servable(make_adapter(tmp_path / "a", card={"base_model": "m", "base_digest": "00"}))
    with pytest.raises(ModelError, match=r"a does not fit m, its base by name: their weights"):
        check_base(adapter, make_base(tmp_path / "base"), "m")


def test_a_quantized_base_is_compared_by_its_shapes(tmp_path: Path) -> None:
    card = {"base_model": "base", "base_digest": base_digest(make_base(tmp_path / "base"))}
    adapter = servable(make_adapter(tmp_path / "a", card=card))
    quantized = make_base(tmp_path / "awq", seed=1, quantization_config={"quant_method": "awq"})
    check_base(adapter, quantized, "base-AWQ")


@pytest.mark.parametrize(
    ("made", "match"),
    [
        ({"size": (12, 9)}, "up_proj is 9 wide in it, not 8"),
        ({"size": (13, 8)}, "up_proj is 13 wide in it, not 12"),
        ({"modules": ["model.language_model.layers.7.mlp.up_proj"]},
         r"it changes language_model\.layers\.7\.mlp\.up_proj, which tiny has not"),
        ({"modules": ["thinker.model.layers.0.mlp.up_proj"]}, "it changes thinker.model"),
        ({"base_model_name_or_path": "Qwen/Qwen2.5-VL-7B-Instruct"},
         r"trained on Qwen/Qwen2\.5-VL-7B-Instruct, and the model is tiny: that is a qwen2_5_vl"),
        ({"card": {"base_model_type": "qwen3_vl"}}, "that is a qwen3_vl, and this a qwen2_vl"),
    ],
)  # fmt: skip
def test_an_adapter_of_another_model_is_refused(
    tmp_path: Path, made: dict[str, object], match: str
) -> None:
    adapter = servable(make_adapter(tmp_path / "a", **made))  # type: ignore[arg-type]
    with pytest.raises(ModelError, match=match):
        check_base(adapter, make_base(tmp_path / "base"), "tiny")


def test_a_vision_tower_that_was_trained_is_noticed(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    for name in ("visual.blocks.0.attn.qkv", "model.visual.blocks.0.attn.qkv"):
        adapter = servable(make_adapter(tmp_path / "a", modules=[name]))
        assert adapter.vision
        check_base(adapter, base, "tiny")


def test_a_base_without_weights_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2_vl"}))
    with pytest.raises(ModelError, match=r"holds no \*\.safetensors"):
        base_digest(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="says no model_type"):
        base_digest(tmp_path)


# ---------------------------------------------------------------- files that lie

A, B = (f"base_model.model.{MODULES[0]}.lora_{side}.weight" for side in "AB")


def write_table(folder: Path, table: dict[str, object] | bytes, data: bytes = b"") -> Path:
    """A file of safetensors with whatever table."""
    header = table if isinstance(table, bytes) else json.dumps(table).encode()
    path = folder / "adapter_model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)
    return folder


def row(shape: list[object], begin: int, end: int) -> dict[str, object]:
    return {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    ("table", "size", "match"),
    [
        (b'{"a":' + b"[" * 100_000, 0, "not a whole safetensors file"),
        ({A: row([4, 8], 0, 4), B: row([12, 4], 4, 8)}, 8, "than its shape says"),
        ({A: row([4, 8], 0, 127), B: row([12, 4], 127, 300)}, 300, "than its shape says"),
        ({A: row([-4, -8], 0, 128), B: row([12, 4], 128, 320)}, 320, "less than nothing"),
        ({A: row([4, 8], 0, 128), B: row([12, 4], 0, 192)}, 192, "where the tensor before it"),
        ({A: row([4, 8], 0, 128), B: row([12, 4], 132, 324)}, 324, "where the tensor before it"),
        ({A: row([4, 8], 0, 128), B: row([12, 4], 128, 320)}, 324, "do not fill it"),
        ({A: row([float("inf"), 8], 0, 128)}, 128, "not a whole safetensors file"),
        ({A: row([32], 0, 128), B: row([48], 128, 320)}, 320, "no LoRA on a linear layer"),
        ({A: row([8, 8], 0, 256), B: row([12, 8], 256, 640)}, 640, "is of rank 8, and .* says 4"),
        ({A: row([4, 8], 0, 128), B: row([12, 8], 128, 512)}, 512, "lora_B.* is of rank 8"),
    ],
)
def test_a_table_of_tensors_that_lies_is_told(
    tmp_path: Path, table: dict[str, object] | bytes, size: int, match: str
) -> None:
    folder = write_table(
        make_adapter(tmp_path / "a"),
        table,
        b"\x00\x00\x80\x3f" * (size // 4) + b"\x00" * (size % 4),
    )
    with pytest.raises(ModelError, match=match):
        servable(folder)


@pytest.mark.parametrize("pattern", [[1], {"q_proj": "x"}, {"q_proj": 1.5}, 7])
def test_ranks_that_are_none_are_told(tmp_path: Path, pattern: object) -> None:
    with pytest.raises(ModelError, match="its rank_pattern names no ranks"):
        servable(make_adapter(tmp_path / "a", rank_pattern=pattern))


def test_one_that_is_trained_again_while_it_is_copied_is_not_taken_for_the_one_before(
    tmp_path: Path,
) -> None:
    adapter = servable(make_adapter(tmp_path / "a"))
    make_adapter(tmp_path / "a", seed=1)
    with pytest.raises(ModelError, match="was changed while it was copied"):
        stage(adapter, tmp_path / "staged")
    assert list((tmp_path / "staged").iterdir()) == []
