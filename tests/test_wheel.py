"""The wheel by itself: what is in it, and that it runs where nothing else of this project is."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
import zipfile
from email.parser import Parser
from importlib import metadata
from pathlib import Path

import pytest
from conftest import REPOSITORY

import vidqa
from vidqa.config import PROFILES

SITE = Path(sysconfig.get_path("purelib"))
# What the command line itself needs; the rest is for the verbs.
LIGHT = ("typer", "pyyaml", "rich", "httpx")


def run(*command: str | Path, expect: int = 0) -> str:
    """Runs a command away from the repository, and returns what it printed."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        command, capture_output=True, text=True, cwd="/", env=environ | {"HF_HUB_OFFLINE": "1"}
    )
    assert done.returncode == expect, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder],
        cwd=REPOSITORY,
        check=True,
        capture_output=True,
    )
    return next(folder.glob("*.whl"))


def install(wheel: Path, folder: Path, others: Path) -> Path:
    """A fresh environment with the wheel alone, which also sees the packages in `others`."""
    run(sys.executable, "-m", "venv", "--without-pip", folder)
    uv = Path(sys.executable).with_name("uv")
    run(uv, "pip", "install", "--offline", "--no-deps", "--python", folder / "bin/python", wheel)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    (folder / "lib" / version / "site-packages" / "others.pth").write_text(f"{others}\n")
    return folder / "bin"


def closure(names: tuple[str, ...]) -> set[str]:
    """The distributions that these need, themselves included, without extras."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found.add(name)
        needs = [one for one in metadata.requires(name) or [] if ";" not in one]
        waiting += [re.split(r"[^\w.-]", one)[0] for one in needs]
    return found


@pytest.fixture(scope="session")
def complete(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return install(wheel, tmp_path_factory.mktemp("complete"), SITE)


@pytest.fixture(scope="session")
def light(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment without torch, PyAV and the rest: as after an installation that broke off."""
    others = tmp_path_factory.mktemp("others")
    for name in closure(LIGHT):
        for file in metadata.files(name) or []:
            top = others / file.parts[0]
            if ".." not in file.parts and not top.exists():
                top.symlink_to(SITE / file.parts[0])
    return install(wheel, tmp_path_factory.mktemp("light"), others)


def test_the_wheel_holds_the_package_and_what_it_reads_at_run_time(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {f"vidqa/configs/{profile}.yaml" for profile in PROFILES} <= names
    assert {"vidqa/cli/__init__.py", "vidqa/py.typed", "finetune/__init__.py"} <= names
    data = {
        path.relative_to(REPOSITORY).as_posix()
        for path in (REPOSITORY / "vidqa").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert data <= names


def test_the_wheel_holds_nothing_else(wheel: Path) -> None:
    tops = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert tops == {"vidqa", "finetune", f"vidqa-{vidqa.__version__}.dist-info"}


def test_the_wheel_says_its_version_and_its_extras(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        name = f"vidqa-{vidqa.__version__}.dist-info/METADATA"
        fields = Parser().parsestr(archive.read(name).decode())
    assert fields["Version"] == vidqa.__version__
    assert set(fields.get_all("Provides-Extra") or ()) == {"cpu", "gpu", "serve", "train", "dev"}


def test_the_installed_wheel_explains_itself(complete: Path) -> None:
    assert run(complete / "vidqa", "--version") == f"vidqa {vidqa.__version__}\n"
    assert "vidqa ingest ~/Videos" in run(complete / "vidqa", "--help")


def test_the_installed_wheel_examines_the_machine(complete: Path) -> None:
    report = json.loads(run(complete / "vidqa", "doctor", "--config", "demo", "--json"))
    findings = {one["name"]: one for one in report["findings"]}
    assert str(complete.parent) in findings["vidqa"]["found"]
    assert findings["torch"]["state"] == findings["FFmpeg"]["state"] == "ok"


def test_without_its_libraries_the_wheel_still_explains_itself(light: Path) -> None:
    assert "vidqa doctor" in run(light / "vidqa", "--help")


def test_without_its_libraries_the_doctor_names_them_and_the_command(light: Path) -> None:
    report = run(light / "vidqa", "doctor", "--config", "cpu", expect=1)
    assert re.search(r"PROBLEM +torch +not installed", report)
    assert 'uv pip install --torch-backend=cpu "vidqa[cpu]"' in report
    assert "Traceback" not in report


@pytest.mark.parametrize("command", ["serve", "mcp"])
def test_without_its_libraries_the_server_names_them_and_the_command(
    light: Path, command: str
) -> None:
    report = run(light / "vidqa", command, "--config", "demo", "--json", expect=1)
    error = json.loads(report)
    assert error["error"] == "MissingExtra"
    assert "fastapi" in error["message"]
    assert error["message"].endswith('install: uv pip install "vidqa[serve]"')
