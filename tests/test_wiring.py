"""What stands between the settings and the verbs."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from adapter_parts import make_adapter
from fakes import FakeEmbedder

from vidqa import model_card
from vidqa.config import Settings
from vidqa.errors import ConfigError, ModelError, UsageError
from vidqa.model_card import ModelCard
from vidqa.wiring import (
    ChosenAdapter,
    OnDemand,
    as_trained,
    choose_adapter,
    endpoint,
    engine_options,
    with_look,
)


def test_an_embedder_that_many_threads_use_first_is_loaded_once() -> None:
    loaded: list[FakeEmbedder] = []

    def load() -> FakeEmbedder:
        loaded.append(FakeEmbedder())
        time.sleep(0.05)
        return loaded[-1]

    embedder = OnDemand(FakeEmbedder.spec, load)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: embedder.embed_texts(["red"]).argmax(), range(8)))
    assert found == [0] * 8
    assert len(loaded) == 1


# ---------------------------------------------------------------- adapters


@pytest.mark.parametrize(("asked", "taken"), [({}, 4096), ({"max_model_len": 16384}, 16384)])
def test_the_engine_takes_as_many_tokens_as_the_model_unless_more_were_asked_for(
    asked: dict[str, int], taken: int, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text('{"text_config": {"max_position_embeddings": 4096}}')
    settings = Settings.load(None, asked)
    assert engine_options(settings, tmp_path).max_model_len == taken


def test_an_adapter_is_named_by_name_by_folder_or_by_both(tmp_path: Path) -> None:
    settings = Settings(adapters=tmp_path)
    birds = make_adapter(tmp_path / "birds", card={"look": {"max_frames": 8}})
    wanted = ChosenAdapter("birds", birds, {"max_frames": 8})
    assert choose_adapter(settings, "birds") == wanted
    assert choose_adapter(settings, str(birds)) == wanted
    assert choose_adapter(settings, f"fowl={birds}").name == "fowl"


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ("cats", r"--adapter cats: no adapter of that name in .* \(there are: birds\)"),
        ("{}/full", r"--adapter .*/full: holds no adapter_config\.json; name the folder"),
        ("a:b={}/birds", "adapter name 'a:b'"),
    ],
)
def test_what_is_no_adapter_says_what_there_is(tmp_path: Path, given: str, match: str) -> None:
    make_adapter(tmp_path / "birds")
    (tmp_path / "full" / "x").mkdir(parents=True)
    with pytest.raises(UsageError, match=match):
        choose_adapter(Settings(adapters=tmp_path), given.format(tmp_path))


def test_an_endpoint_of_the_users_has_adapters_that_are_not_here(tmp_path: Path) -> None:
    settings = Settings(base_url="http://127.0.0.1:9/v1", adapters=tmp_path)
    chosen = choose_adapter(settings, "theirs")
    assert chosen == ChosenAdapter("theirs", None)
    assert endpoint(settings, adapters=[chosen]).adapters == {"theirs": "theirs"}


def test_an_adapter_is_shown_what_it_was_trained_to_see_unless_the_user_says_more() -> None:
    look = {"max_frames": 4, "max_pixels": 56 * 56, "layout": "ask", "frames_per_moment": None}
    seen = with_look(Settings(), look)
    assert (seen.max_frames, seen.max_pixels, seen.frames_per_moment) == (4, 56 * 56, 4)
    chosen = Settings.load(None, {"max_frames": 10}, {})
    seen = with_look(chosen, look)
    assert (seen.max_frames, seen.max_pixels) == (10, 56 * 56)
    assert with_look(chosen, {}) is chosen


def test_a_model_that_was_tuned_here_says_itself_how_it_wants_to_see(tmp_path: Path) -> None:
    model_card.write(
        tmp_path, ModelCard(base_model="base", look={"max_frames": 6, "max_pixels": 50_000})
    )
    tuned = Settings(model=str(tmp_path))
    assert (as_trained(tuned).max_frames, as_trained(tuned).max_pixels) == (6, 50_000)
    few = ChosenAdapter("few", tmp_path, {"max_frames": 2})
    assert (as_trained(tuned, few).max_frames, as_trained(tuned, few).max_pixels) == (2, 50_000)
    chosen = replace(tuned, max_frames=9, given=frozenset({"max_frames"}))
    assert as_trained(chosen, few).max_frames == 9
    assert as_trained(replace(tuned, base_url="http://127.0.0.1:1")).max_frames == tuned.max_frames


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON .*; remove it to do without"),
        ('{"look": 4}', "its look is 4, no mapping; remove it to do without"),
        ('{"look": {"max_frames": "4"}}', "max_frames is '4', and a whole number is wanted"),
    ],
)
def test_a_damaged_card_of_a_model_is_named(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / model_card.CARD).write_text(content)
    with pytest.raises(ModelError, match=message):
        as_trained(Settings(model=str(tmp_path)))


def test_a_look_out_of_bounds_is_an_error() -> None:
    with pytest.raises(ConfigError, match="max_frames: 1 is not allowed"):
        with_look(Settings(), {"max_frames": 1})


def test_what_cannot_be_served_is_told_before_weights_are_looked_for(tmp_path: Path) -> None:
    chosen = ChosenAdapter("zero", make_adapter(tmp_path / "zero", fill=0.0))
    with pytest.raises(ModelError, match="every B matrix is zero"):
        endpoint(Settings(model="no/where", hub="none"), adapters=[chosen])
