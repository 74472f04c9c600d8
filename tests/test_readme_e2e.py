"""What the README says of the server, done as it stands there: its curl, its Python, its llm."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import REPOSITORY
from serve_fixture import Films, Served, environment, take_out_uploads
from test_readme import commands, needs

pytestmark = pytest.mark.e2e

README = REPOSITORY / "README.md"
CODE = [command for command, comment in commands(README) if needs(comment) == "a running server"]
PYTHON = re.findall(r"^```python\n(.*?)^```", README.read_text("utf-8"), re.MULTILINE | re.DOTALL)


@pytest.fixture
def reader(tmp_path: Path, films: Films, served: Served) -> Iterator[dict[str, object]]:
    """Where a reader does it: a folder with a film, and the two variables.

    What was uploaded is taken out again: others share the library.
    """
    shutil.copy(films.upload, tmp_path / "holiday.mp4")
    programs = Path(sys.executable).parent
    environ = environment(served) | {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "LLM_USER_PATH": str(tmp_path / "llm"),
    }
    (tmp_path / "llm").mkdir()
    yield {"cwd": tmp_path, "env": environ}
    take_out_uploads(served)


def said(command: list[str], reader: dict[str, object]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, **reader)  # type: ignore[call-overload]
    assert done.returncode == 0, done.stdout + done.stderr
    return str(done.stdout)


def test_there_is_code_to_run() -> None:
    assert len(CODE) == 2
    assert len(PYTHON) == 2


@pytest.mark.parametrize("code", CODE, ids=lambda code: code.split()[0])
def test_the_commands_of_the_readme_run(code: str, reader: dict[str, object]) -> None:
    out = said(["bash", "-euc", code], reader)
    assert "in the city" in out
    assert '"error":{' not in out


@pytest.mark.parametrize("code", PYTHON, ids=lambda code: code.split()[1])
def test_the_python_of_the_readme_runs(code: str, reader: dict[str, object]) -> None:
    assert "in the city" in said([sys.executable, "-c", code], reader)
