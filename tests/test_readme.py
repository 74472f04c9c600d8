"""The documentation does what it says: its commands run, its tree is the tree."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY

DOCUMENTS = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("**/*.md"))]

# Why a command of the documentation is not run here; it says so itself: `command  # needs: REASON`.
# A comment that begins a block is about all of it. What needs a running server is run by
# test_readme_e2e.py, the Python of the documentation as well; docs/finetune.md but for what needs
# a GPU by test_finetune_document.py and test_finetune_e2e.py.
REASONS = {
    "a model hub", "a package index", "a GPU", "minutes and the real vLLM", "a running server",
    "a person",
}  # fmt: skip

_FENCE = re.compile(r"^```(bash|console)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_COMMAND = re.compile(r"(?P<command>.*?)(?:\s+#\s*(?P<comment>.*))?$")


def commands(document: Path) -> list[tuple[str, str]]:
    """Each command of a document, in order, with its comment; a block with one need is one."""
    found = []
    for language, body in _FENCE.findall(document.read_text(encoding="utf-8")):
        if body.startswith("# needs: "):
            comment, _, command = body.partition("\n")
            found.append((command, comment.removeprefix("# ")))
            continue
        for line in body.splitlines():
            if language == "console":
                if not line.startswith("$ "):
                    continue
                line = line[2:]
            if line.strip():
                match = _COMMAND.fullmatch(line)
                assert match
                found.append((match["command"].strip(), match["comment"] or ""))
    return found


def needs(comment: str) -> str | None:
    return comment.removeprefix("needs: ") if comment.startswith("needs: ") else None


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as a reader has it: two short films of the playground in films/, rows about them."""
    from document_parts import write_rows

    from vidqa.demo import films, world

    folder = tmp_path_factory.mktemp("reader")
    seeds = [world.FIRST_HELD_OUT_SEED, world.FIRST_HELD_OUT_SEED + 1]
    films.write_library(folder / "films", seeds, scene_count=3, per_type=1)
    shutil.copytree(REPOSITORY / "configs", folder / "configs")
    drawn = sorted((folder / "films").glob("*.mp4"))
    write_rows(folder / "rows.reviewed.jsonl", folder / "held-out.jsonl", drawn)
    return folder


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_a_command_that_is_not_run_says_why(document: Path) -> None:
    reasons = {needs(comment) for _, comment in commands(document)} - {None}
    assert reasons <= REASONS


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_other_command_of_the_documentation_runs(document: Path, workplace: Path) -> None:
    environ = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": str(workplace),
    }
    for command, comment in commands(document):
        if needs(comment):
            continue
        done = subprocess.run(
            ["bash", "-c", command], cwd=workplace, env=environ, capture_output=True, text=True
        )
        assert done.returncode == 0, f"$ {command}\n{done.stdout}{done.stderr}"


def tree() -> dict[str, str]:
    """The annotated tree of the README: path -> what it is said to be."""
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    block = text.split("## The code", 1)[1].split("```text\n", 1)[1].split("```", 1)[0]
    folders: list[str] = []
    found: dict[str, str] = {}
    for line in block.splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        name, _, note = line.strip().partition(" ")
        folders[depth:] = [name]
        found["".join(folders)] = note.strip()
    return found


def test_the_tree_in_the_readme_is_the_tree() -> None:
    shown = {path for path in tree() if path.count("/") == 1 and path.endswith(".py")}
    real = {
        f"{package}/{path.name}"
        for package in ("vidqa", "finetune")
        for path in (REPOSITORY / package).glob("*.py")
    }
    assert shown == real - {"vidqa/__init__.py", "finetune/__init__.py"}


def test_everything_in_the_tree_exists_and_is_explained() -> None:
    assert [path for path in tree() if not (REPOSITORY / path).exists()] == []
    assert [path for path, note in tree().items() if not note] == []


def test_links_in_the_documentation_lead_somewhere() -> None:
    for document in [*DOCUMENTS, REPOSITORY / "CONTRIBUTING.md", REPOSITORY / "CHANGELOG.md"]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", document.read_text("utf-8")):
            assert (document.parent / target).exists(), f"{document.name} links to {target}"


def test_the_readme_tells_of_every_command_and_exit_code() -> None:
    from vidqa.cli import app

    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    names = [one.name or one.callback.__name__ for one in app.registered_commands if one.callback]
    assert [name for name in names if f"`vidqa {name}" not in text] == []
