"""Who may import whom, and what the light entry points must not load."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import REPOSITORY

# A module imports only from lines above its own. What stands on one line never meets there: the
# parts of the long line come together in library, ingest, search and ask.
LAYERS = [
    {"errors", "types", "whole_files"},
    {"adapters", "adapter_weights"}
    | {"boxes", "children", "compat", "containers", "database", "engine_gate", "engine_log"}
    | {"fields", "picture_files"},
    {"drawing", "engine_options", "model_card", "pictures"},
    {"adapter_fit"}
    | {"clips", "config", "conversation", "discover", "embed", "engine", "frames", "index", "probe"}
    | {"prompt", "scenes", "select", "stills", "store", "texts", "vlm", "weights"},
    {"following", "engine_adapters"},
    {"clip_pictures", "command", "engine_main", "library", "report", "worker", "finetune.rows"}
    | {"finetune.agreement", "finetune.metrics", "finetune.processes"}
    | {"finetune.sampler", "finetune.times"},
    {"finetune.formats", "finetune.layout", "finetune.merge", "finetune.scoring"}
    | {"finetune.shelf", "finetune.teacher"},
    {"finetune.identity", "finetune.media", "finetune.rows_file"},
    {"finetune.check", "finetune.review", "finetune.row_pictures", "finetune.split"},
    {"finetune.review_server"},
    {"finetune.answer_file", "finetune.dataset", "finetune.fetch", "finetune.progress"}
    | {"finetune.recipe", "finetune.run_folder"},
    {"finetune.features", "finetune.infer", "finetune.loss", "finetune.model", "finetune.plan"},
    {"finetune.order", "finetune.trainer", "finetune.training_report"},
    {"finetune.cost", "finetune.fit"},
    {"finetune.finish"},
    {"clip_sound", "doctor", "ingest", "search", "finetune.evaluate", "finetune.train"},
    {"ask", "clip_main"},
    {"ground"},
    {"finetune.build", "wiring"},
    {"demo", "server"},
    {"output"},
    {"cli"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}

MODEL_LIBRARIES = {"torch", "open_clip", "vllm", "transformers", "cv2", "faiss"}
SLOW = MODEL_LIBRARIES | {"av", "duckdb", "httpx", "jinja2", "numpy", "rich", "scenedetect", "yaml"}
SLOW |= {"fastapi", "mcp", "uvicorn"}


@functools.cache
def modules() -> list[str]:
    """Dotted names below `vidqa`, and those of `finetune` with their package."""
    names = []
    for package, prefix in (("vidqa", ""), ("finetune", "finetune.")):
        for path in sorted((REPOSITORY / package).rglob("*.py")):
            parts = path.relative_to(REPOSITORY / package).with_suffix("").parts
            names.append(prefix + ".".join(parts).removesuffix(".__init__"))
    return [name for name in names if name not in ("__init__", "finetune.__init__")]


def known_as(module: str) -> str:
    """The name in the table: a folder that is one noun stands there as a whole."""
    parts = module.split(".")
    names = [".".join(parts[:n]) for n in range(len(parts), 0, -1)]
    return next((name for name in names if name in LEVEL), module)


def file_of(module: str) -> Path:
    package = REPOSITORY if module.startswith("finetune.") else REPOSITORY / "vidqa"
    path = package.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def imported_by(tree: ast.AST) -> Iterator[str]:
    """Full names of what a module imports, wherever in it, those for the type checker included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@functools.cache
def ours(module: str) -> set[str]:
    """What a module imports of vidqa and finetune, as named in the table."""
    every = set(modules())
    tree = ast.parse(file_of(module).read_text(encoding="utf-8"))
    names = {name.removeprefix("vidqa.") for name in imported_by(tree)}
    return {known_as(name) for name in names if name in every} - {known_as(module)}


@pytest.mark.parametrize("module", modules())
def test_a_module_has_its_place_in_the_table(module: str) -> None:
    assert known_as(module) in LEVEL, f"give {module} a line in LAYERS"


@pytest.mark.parametrize("module", modules())
def test_a_module_imports_only_from_the_layers_below_its_own(module: str) -> None:
    own = LEVEL[known_as(module)]
    assert {name for name in ours(module) if LEVEL[name] >= own} == set()


def test_only_the_command_line_and_the_demo_know_of_fine_tuning() -> None:
    importers = {
        known_as(module)
        for module in modules()
        if not module.startswith("finetune")
        and any(name.startswith("finetune") for name in ours(module))
    }
    assert importers <= {"cli", "demo"}


@pytest.mark.parametrize("module", sorted({"errors", "types", "config", "prompt", "select"}))
def test_the_light_modules_import_no_slow_package_when_loaded(module: str) -> None:
    body = ast.parse(file_of(module).read_text(encoding="utf-8")).body
    at_load = [node for node in body if isinstance(node, ast.Import | ast.ImportFrom)]
    roots = {name.split(".")[0] for node in at_load for name in imported_by(node)}
    assert roots & SLOW == set()


def loaded_by(code: str) -> set[str]:
    report = "import sys; print('LOADED', *{name.split('.')[0] for name in sys.modules})"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{report}"], capture_output=True, text=True, check=True
    )
    return set(done.stdout.rsplit("LOADED", 1)[1].split())


def test_importing_vidqa_loads_no_slow_package() -> None:
    assert loaded_by("import vidqa") & SLOW == set()


@pytest.mark.parametrize("arguments", [["--help"], ["ask", "--help"], ["--version"], ["nonsense"]])
def test_help_loads_no_slow_package(arguments: list[str]) -> None:
    code = (
        "import contextlib\nfrom vidqa.cli import app\n"
        f"with contextlib.suppress(SystemExit):\n    app({arguments!r})"
    )
    assert loaded_by(code) & SLOW == set()
