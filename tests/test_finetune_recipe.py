"""The recipe: precedence, bounds, refusals, and the files in configs/."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest
import yaml
from conftest import REPOSITORY

from finetune.recipe import LANGUAGE_TARGETS, RECIPE, VISION_TARGETS, Recipe, recipe_flag
from vidqa.config import SETTINGS, Settings
from vidqa.engine_options import RANKS
from vidqa.errors import ConfigError, UsageError

CONFIGS = REPOSITORY / "configs"
FILES = ("finetune-lora", "finetune-qlora", "finetune-full")


def write(folder: Path, text: str) -> str:
    path = folder / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("finetune-*.yaml")), ids=lambda one: one.stem)
def test_every_recipe_that_is_shipped_loads(file: Path) -> None:
    named = yaml.safe_load(file.read_text("utf-8"))
    recipe = Recipe.load(str(file)).public()
    assert set(named) - set(recipe) <= {"model"}
    numbers = {
        name: value for name, value in named.items() if isinstance(value, bool | int | float)
    }
    assert numbers
    assert {name: recipe[name] for name in numbers} == numbers


def test_a_flag_beats_the_file_which_beats_the_default(tmp_path: Path) -> None:
    file = write(tmp_path, "rank: 8\nalpha: 8\n")
    recipe = Recipe.load(file, {"rank": 64, "dropout": None})
    assert (recipe.rank, recipe.alpha, recipe.dropout) == (64, 8.0, Recipe().dropout)


def test_a_run_that_goes_on_starts_from_its_own_recipe(tmp_path: Path) -> None:
    begun = Recipe(rank=8, alpha=4.0).public()
    recipe = Recipe.load(write(tmp_path, "alpha: 5\n"), {}, begun)
    assert (recipe.rank, recipe.alpha) == (8, 5.0)


def test_a_file_may_hold_settings_of_vidqa_as_well(tmp_path: Path) -> None:
    file = write(tmp_path, "model: mine\nrank: 8\nmax_frames: 4\n")
    settings = Settings.load(file, environ={}, others=RECIPE)
    recipe = Recipe.load(file)
    assert (settings.model, settings.max_frames) == ("mine", 4)
    assert (recipe.rank, recipe.max_frames) == (8, 4)


def test_a_profile_tells_the_recipe_how_its_model_is_shown_frames() -> None:
    recipe = Recipe.load("demo")
    assert (recipe.max_frames, recipe.max_pixels, recipe.sample_fps) == (12, 9408, 2.0)
    assert recipe.rank == Recipe().rank


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("rnak: 8", r"mine.yaml: rnak: no such setting; did you mean rank\?"),
        ("modle: x", r"mine.yaml: modle: no such setting; did you mean model\?"),
        ("lr: 1e-4", r"mine.yaml: lr: .*; did you mean learning_rate\? \(its flag is --lr\)"),
        ("lora_rank: 8", r"mine.yaml: lora_rank: no such setting; did you mean rank\?"),
        ("rank: 17", "mine.yaml: rank: 17 is not allowed; one of 1, 8, 16, 32, 64, 128"),
        ("learning_rate: fast", "mine.yaml: learning_rate: 'fast' is not a number"),
        ("epochs: 0", "mine.yaml: epochs: 0.0 is not allowed; 0.01 to 1000 is"),
        ("full: 2", "mine.yaml: full: 2 is not true or false"),
        ("precision: fp16", "precision: fp16 is not allowed; one of auto, bf16, fp32 is"),
    ],
)
def test_a_wrong_file_is_one_line_with_what_is_allowed(
    content: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        Recipe.load(write(tmp_path, content))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["lr", "lora_rank", "rnak"])
def test_an_unknown_name_is_answered_alike_by_whoever_reads_the_file_first(
    name: str, tmp_path: Path
) -> None:
    file = write(tmp_path, f"{name}: 1\n")
    with pytest.raises(ConfigError, match="did you mean") as of_recipe:
        Recipe.load(file)
    with pytest.raises(ConfigError, match="did you mean") as of_settings:
        Settings.load(file, environ={}, others=RECIPE)
    assert str(of_settings.value) == str(of_recipe.value)


def test_a_rate_may_be_written_as_yaml_does_not_read_it(tmp_path: Path) -> None:
    assert Recipe.load(write(tmp_path, "learning_rate: 1e-4\n")).learning_rate == 1e-4


def test_dora_is_refused_with_the_reason() -> None:
    with pytest.raises(UsageError, match="dora: vLLM cannot serve DoRA adapters"):
        Recipe.load(None, {"dora": True})


def test_full_and_qlora_exclude_each_other() -> None:
    with pytest.raises(UsageError, match="full and qlora exclude each other"):
        Recipe(full=True, qlora=True)


def test_targets_that_are_no_regular_expression_are_refused() -> None:
    with pytest.raises(UsageError, match=r"targets: '\(q' is not a regular expression"):
        Recipe(targets="(q")


def test_a_flag_out_of_bounds_is_named_as_it_was_written() -> None:
    with pytest.raises(ConfigError, match=r"--lr: 2\.0 is not allowed"):
        Recipe.load(None, {"learning_rate": 2})


def test_ranks_are_those_that_vllm_serves() -> None:
    """Read from its source: importing it takes many seconds."""
    found = importlib.util.find_spec("vllm")
    if found is None or found.origin is None:
        pytest.skip("vLLM is not installed")
    source = (Path(found.origin).parent / "config" / "lora.py").read_text()
    named = re.search(r"MaxLoRARanks = Literal\[([\d, ]+)\]", source)
    assert named is not None
    assert tuple(map(int, named[1].split(","))) == RANKS


@pytest.mark.parametrize("name", RECIPE)
def test_a_field_has_its_help_and_a_default_within_its_bounds(name: str) -> None:
    one = RECIPE[name]
    assert one.metadata["help"].endswith(".")
    assert one.metadata["bounds"].admit(one.default)


def test_flags_of_two_fields_differ_and_none_is_a_setting_s_of_another_kind() -> None:
    flags = [recipe_flag(name) for name in RECIPE]
    assert len(set(flags)) == len(flags)
    shared = RECIPE.keys() & SETTINGS.keys()
    assert shared == {"frames_per_moment", "max_frames", "max_pixels", "sample_fps"}


# ---------------------------------------------------------------- configs/


def test_the_lora_file_says_what_the_code_says() -> None:
    content = yaml.safe_load((CONFIGS / "finetune-lora.yaml").read_text())
    assert set(content) == set(RECIPE)
    assert Recipe.load(str(CONFIGS / "finetune-lora.yaml")) == Recipe()


@pytest.mark.parametrize("name", FILES)
def test_a_recipe_file_loads_as_a_recipe_and_as_settings(name: str) -> None:
    file = str(CONFIGS / f"{name}.yaml")
    recipe = Recipe.load(file)
    Settings.load(file, environ={}, others=RECIPE)
    assert recipe.kind == name.removeprefix("finetune-")


@pytest.mark.parametrize("name", FILES[1:])
def test_a_recipe_file_names_only_what_differs(name: str) -> None:
    content = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    assert [one for one, value in content.items() if one in RECIPE] != []
    assert [one for one in content if one in RECIPE and content[one] == RECIPE[one].default] == []


@pytest.mark.parametrize("name", FILES)
def test_every_value_has_its_reason_beside_it(name: str) -> None:
    lines = (CONFIGS / f"{name}.yaml").read_text().splitlines()
    values = [line for line in lines if re.match(r"\w+:", line)]
    assert values
    assert [line for line in values if not re.search(r"  +# \S+ \S+", line)] == []


@pytest.mark.parametrize("name", ["ddp", "fsdp", "zero2", "zero3"])
def test_accelerate_reads_its_configuration(name: str) -> None:
    config_args = pytest.importorskip("accelerate.commands.config.config_args")
    loaded = config_args.load_config_from_file(str(CONFIGS / f"accelerate-{name}.yaml"))
    kinds = {"ddp": "MULTI_GPU", "fsdp": "FSDP", "zero2": "DEEPSPEED", "zero3": "DEEPSPEED"}
    assert str(loaded.distributed_type).endswith(kinds[name])
    assert loaded.mixed_precision in ("no", "bf16")


# ---------------------------------------------------------------- which layers


@pytest.mark.parametrize(
    "name",
    [
        "model.language_model.layers.0.self_attn.q_proj",
        "model.language_model.layers.11.mlp.down_proj",
    ],
)
def test_the_default_targets_are_layers_of_the_language_part(name: str) -> None:
    assert re.fullmatch(LANGUAGE_TARGETS, name)


@pytest.mark.parametrize(
    "name", ["model.visual.blocks.0.mlp.gate_proj", "model.visual.merger.mlp.0", "lm_head"]
)
def test_the_default_targets_leave_out_all_others(name: str) -> None:
    assert not re.fullmatch(LANGUAGE_TARGETS, name)


@pytest.mark.parametrize(
    ("name", "fits"),
    [
        ("model.visual.blocks.3.attn.qkv", True),
        ("model.visual.blocks.3.attn.proj", True),
        ("model.visual.blocks.3.mlp.fc1", True),
        ("model.visual.blocks.3.mlp.gate_proj", True),
        ("model.visual.blocks.3.mlp.linear_fc2", True),
        ("model.visual.merger.mlp.2", True),
        ("model.visual.deepstack_merger_list.0.linear_fc1", True),
        ("model.visual.patch_embed.proj", False),
        ("model.visual.merger.ln_q", False),
        ("model.language_model.layers.0.mlp.up_proj", False),
    ],
)
def test_targets_of_the_vision_tower_are_its_blocks_and_mergers(name: str, fits: bool) -> None:
    assert bool(re.fullmatch(VISION_TARGETS, name)) is fits
