"""Settings: precedence, bounds, names, the profiles that ship with the package."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import yaml
from conftest import REPOSITORY
from hypothesis import given
from hypothesis import strategies as st

import vidqa.config
from vidqa.config import PROFILES, SETTINGS, Settings, flag_of
from vidqa.errors import ConfigError

PACKAGED = REPOSITORY / "vidqa" / "configs"


def load(config: str | None = "cpu", **environ: str) -> Settings:
    return Settings.load(config, environ=environ)


def write(folder: Path, text: str) -> str:
    path = folder / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_a_flag_beats_the_environment_which_beats_the_file_which_beats_the_default(
    tmp_path: Path,
) -> None:
    file = write(tmp_path, "k: 7\nmax_frames: 20\nmax_tokens: 99\n")
    environ = {"VIDQA_K": "8", "VIDQA_MAX_FRAMES": "24"}

    settings = Settings.load(file, {"k": 9, "model": None}, environ)

    assert (settings.k, settings.max_frames, settings.max_tokens) == (9, 24, 99)
    assert settings.model == Settings().model


def test_settings_remember_which_of_them_somebody_chose(tmp_path: Path) -> None:
    file = write(tmp_path, "k: 7\n")
    settings = Settings.load(file, {"max_frames": 8}, {"VIDQA_MODEL": "mine"})
    assert settings.given == {"k", "max_frames", "model"}


@pytest.mark.parametrize("profile", PROFILES)
def test_what_a_profile_says_is_not_the_user_s_choice(
    profile: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("tiny-clip", "tiny-qwen2-vl"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(vidqa.config, "_MODEL_FOLDER", tmp_path)
    assert load(profile).given == frozenset()


def test_the_cpu_profile_says_what_the_code_says() -> None:
    content = yaml.safe_load((PACKAGED / "cpu.yaml").read_text())
    assert set(content) == set(SETTINGS)
    assert load("cpu") == Settings()


@pytest.mark.parametrize("profile", ["gpu", "demo"])
def test_a_profile_names_only_what_differs_from_the_defaults_or_pins_it(profile: str) -> None:
    pinned = {"frames_per_moment"}  # the tiny model knows no other number, whatever the default
    content = yaml.safe_load((PACKAGED / f"{profile}.yaml").read_text())
    same = {name for name, value in content.items() if value == SETTINGS[name].default}
    assert same <= pinned


@pytest.mark.parametrize("profile", PROFILES)
def test_the_packaged_profile_is_the_one_in_configs(profile: str) -> None:
    name = f"{profile}.yaml"
    assert (PACKAGED / name).read_bytes() == (REPOSITORY / "configs" / name).read_bytes()


@pytest.mark.parametrize("profile", PROFILES)
def test_every_value_of_a_profile_has_its_reason_beside_it(profile: str) -> None:
    lines = (PACKAGED / f"{profile}.yaml").read_text().splitlines()
    values = [line for line in lines if re.match(r"\w+:", line)]
    assert values
    assert [line for line in values if not re.search(r"  +# \S+ \S+", line)] == []


def test_the_demo_profile_names_the_bundled_models() -> None:
    content = yaml.safe_load((PACKAGED / "demo.yaml").read_text())
    assert (content["embedder"], content["model"]) == (
        "bundled:tiny-clip",
        "bundled:tiny-qwen2-vl",
    )


def test_a_bundled_model_becomes_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tiny-clip").mkdir()
    monkeypatch.setattr(vidqa.config, "_MODEL_FOLDER", tmp_path)
    assert load(VIDQA_EMBEDDER="bundled:tiny-clip").embedder == str(tmp_path / "tiny-clip")


@pytest.mark.parametrize("name", ["tiny-crip", "../..", "", "."])
def test_an_unknown_bundled_model_is_named_with_those_that_exist(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tiny-clip").mkdir()
    monkeypatch.setattr(vidqa.config, "_MODEL_FOLDER", tmp_path)
    with pytest.raises(ConfigError, match=r"no such bundled model; there are tiny-clip$"):
        load(VIDQA_EMBEDDER=f"bundled:{name}")


def test_a_machine_without_a_card_starts_from_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vidqa.config, "card_memory_gib", lambda: None)
    assert load(None) == Settings()


def test_a_machine_with_a_large_card_starts_from_the_gpu_profile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(vidqa.config, "card_memory_gib", lambda: 24.0)
    settings = load(None)
    assert settings == load("gpu")
    assert settings.given == frozenset()


def test_a_machine_with_a_small_card_gets_the_smaller_model(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(vidqa.config, "card_memory_gib", lambda: 12.0)
    assert load(None).model == "Qwen/Qwen2-VL-2B-Instruct"
    assert load(None).embedder == load("gpu").embedder


def test_a_named_profile_is_taken_whatever_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vidqa.config, "card_memory_gib", lambda: 80.0)
    assert load("cpu") == Settings()


def test_the_environment_can_name_the_file(tmp_path: Path) -> None:
    assert load(None, VIDQA_CONFIG=write(tmp_path, "k: 7\n")).k == 7


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("max_frame: 3", r"mine.yaml: max_frame: no such setting; did you mean max_frames\?"),
        ("k: five", "mine.yaml: k: 'five' is not a whole number"),
        ("k: true", "mine.yaml: k: True is not a whole number"),
        ("k: 2.5", r"mine.yaml: k: 2.5 is not a whole number"),
        ("k: 0", "mine.yaml: k: 0 is not allowed; 1 to 1000 is"),
        ("max_pixels: 5", "max_pixels: 5 is not allowed; 3136 to 1003520 is"),
        ("sample_fps: .nan", "mine.yaml: sample_fps: nan is not a number"),
        ("keep_frames: 3", "mine.yaml: keep_frames: 3 is not true or false"),
        ("device: tpu", "device: tpu is not allowed; one of auto, cpu, cuda, mps is"),
        ("model: ''", "mine.yaml: model: '' is not text"),
        ("model: [a]", r"mine.yaml: model: \['a'\] is not text"),
        ("model:", "mine.yaml: model: None is not text"),
        ("- k", "mine.yaml: holds no settings; write one `name: value` a line"),
        ("k: [", "mine.yaml: line [12]: not valid YAML"),
    ],
)
def test_a_wrong_file_is_one_line_with_the_value_and_what_is_allowed(
    content: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load(write(tmp_path, content))
    assert "\n" not in str(caught.value)


def test_an_empty_file_changes_nothing(tmp_path: Path) -> None:
    assert load(write(tmp_path, "# nothing yet\n")) == Settings()


def test_a_missing_file_is_named_with_the_profiles() -> None:
    with pytest.raises(
        ConfigError, match=r"--config gpuu: No such file .* profile: cpu, gpu, demo"
    ):
        load("gpuu")


def test_a_folder_in_place_of_a_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Is a directory"):
        load(str(tmp_path))


def test_a_file_that_is_not_text_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_bytes(b"k: \xff\xfe")
    with pytest.raises(ConfigError, match="not UTF-8 text"):
        load(str(tmp_path / "mine.yaml"))


def test_an_unknown_variable_is_named_with_the_nearest_known_one() -> None:
    with pytest.raises(
        ConfigError, match=r"VIDQA_INDX: no such setting; did you mean VIDQA_INDEX\?"
    ):
        load(VIDQA_INDX="here")


def test_a_variable_out_of_bounds_is_named_as_it_was_written() -> None:
    with pytest.raises(ConfigError, match="VIDQA_K: 0 is not allowed; 1 to 1000 is"):
        load(VIDQA_K="0")


def test_a_flag_out_of_bounds_is_named_as_it_was_written() -> None:
    with pytest.raises(ConfigError, match="--frames: 1 is not allowed; 2 to 768 is"):
        Settings.load("cpu", {"max_frames": 1}, {})


def test_an_empty_variable_was_not_set() -> None:
    assert load(VIDQA_MODEL="") == Settings()


def test_settings_made_in_code_are_held_to_the_same_bounds() -> None:
    with pytest.raises(ConfigError, match="k: 0 is not allowed"):
        Settings(k=0)


def test_the_home_folder_may_be_written_as_a_tilde(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/somewhere")
    settings = load(VIDQA_INDEX="~/library", VIDQA_MODEL="~/models/mine")
    assert (str(settings.index), settings.model) == ("/somewhere/library", "/somewhere/models/mine")


def test_the_key_is_shown_nowhere() -> None:
    settings = load(VIDQA_API_KEY="hunter2")
    assert settings.api_key == "hunter2"
    assert "hunter2" not in repr(settings)
    assert settings.public()["api_key"] == "(set)"


def test_flags_of_two_settings_differ() -> None:
    assert len({flag_of(name) for name in SETTINGS}) == len(SETTINGS)


@pytest.mark.parametrize("name", SETTINGS)
def test_a_default_lies_within_its_own_bounds_and_has_its_help(name: str) -> None:
    one = SETTINGS[name]
    assert one.metadata["help"].endswith(".")
    assert one.default is None or one.metadata["bounds"].admit(one.default)


numbers = [name for name, one in SETTINGS.items() if one.metadata["kind"] in (int, float)]


def attempt(**flags: object) -> Settings | str:
    """The settings with these flags and nothing else, or the text of the refusal."""
    try:
        return Settings.load(os.devnull, flags, {})
    except ConfigError as error:
        return str(error)


@given(st.sampled_from(numbers), st.integers() | st.floats())
def test_a_number_is_either_within_its_bounds_or_refused(name: str, value: float) -> None:
    bounds = SETTINGS[name].metadata["bounds"]
    result = attempt(**{name: value})
    if isinstance(result, str):
        assert result.startswith(flag_of(name))
    else:
        assert bounds.minimum <= getattr(result, name) <= bounds.maximum


@given(st.text())
def test_any_text_for_a_number_is_taken_or_refused_in_one_line(text: str) -> None:
    result = attempt(max_pixels=text)
    assert isinstance(result, Settings) or result.isprintable()
