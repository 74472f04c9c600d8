"""The container files agree with the project. They are not run here, where no container is."""

from __future__ import annotations

import re
import tomllib
from typing import Any

import yaml
from conftest import REPOSITORY

from vidqa.config import SETTINGS
from vidqa.engine_options import EngineOptions, server_flags

FOLDER = REPOSITORY / "deploy"


def compose() -> dict[str, Any]:
    read: dict[str, Any] = yaml.safe_load((FOLDER / "compose.yaml").read_text("utf-8"))
    return read


def test_vllm_is_told_in_the_container_what_our_own_engine_is_told() -> None:
    (command,) = compose()["services"]["vllm"]["command"]
    for flag in ("--allowed-media-domains", "--limit-mm-per-prompt", "--media-io-kwargs"):
        flags = server_flags(EngineOptions(model="m"), 1, on_cpu=False)
        value = flags[flags.index(flag) + 1]
        assert f"{flag} {value}" in command or f"{flag} '{value}'" in command


def test_the_container_runs_the_vllm_that_the_extra_installs() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))
    (pinned,) = project["project"]["optional-dependencies"]["gpu"]
    assert compose()["services"]["vllm"]["image"].endswith(pinned.replace("vllm==", ":v"))


def test_only_the_gateway_is_reached_and_only_from_this_machine() -> None:
    services = compose()["services"]
    assert "ports" not in services["vllm"]
    assert services["gateway"]["ports"] == ["127.0.0.1:8080:8080"]


def test_every_variable_of_the_container_files_is_one_that_vidqa_reads() -> None:
    text = "".join((FOLDER / name).read_text("utf-8") for name in ("Containerfile", "compose.yaml"))
    named = set(re.findall(r"\bVIDQA_([A-Z_]+)\b", text))
    known = {name.upper() for name in SETTINGS} | {"SERVE_KEYS", "SERVE_KEY_FILE"}
    assert named
    assert named <= known


def test_the_container_listens_for_others_only_because_a_key_is_given() -> None:
    gateway = compose()["services"]["gateway"]
    assert gateway["environment"]["VIDQA_SERVE_KEY_FILE"] == "/run/secrets/gateway_keys"
    assert "gateway_keys" in gateway["secrets"]
