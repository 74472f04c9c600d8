"""docs/finetune.md taken apart, and a folder as its reader has it.

for command, comment in commands(DOCUMENT): ...     (tests/test_readme.py)
blocks("jsonl")          code blocks that name a file: (section, file, text)
section("Pitfalls")      what stands below a heading
write_rows(folder)       films of the playground, and rows about them
"""

from __future__ import annotations

import os
import random
import re
import sys
from pathlib import Path

from conftest import REPOSITORY

DOCUMENT = REPOSITORY / "docs" / "finetune.md"
TEXT = DOCUMENT.read_text("utf-8")
RECIPE = REPOSITORY / "configs" / "finetune-demo.yaml"

_BLOCK = re.compile(r"^```(\w+) (\S+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(*languages: str) -> list[tuple[str, str, str]]:
    """(heading above it, file, text) of each block that is a file."""
    found = []
    for match in _BLOCK.finditer(TEXT):
        if match[1] in languages:
            heading = re.findall(r"^#+ (.*)$", TEXT[: match.start()], re.MULTILINE)[-1]
            found.append((heading, match[2], match[3]))
    return found


def section(title: str) -> str:
    """What stands below a heading, up to the next one that is as high."""
    found = re.search(
        rf"^(#+) {re.escape(title)}\n(.*?)(?=^#{{1,2}} |\Z)", TEXT, re.MULTILINE | re.DOTALL
    )
    assert found, f"{DOCUMENT.name} has no section {title}"
    return found[2]


def cells(title: str) -> list[list[str]]:
    """The rows of a section's first table, without the head."""
    table = re.search(r"(?:^\|.*\n)+", section(title), re.MULTILINE)
    assert table
    return [[cell.strip() for cell in row.split("|")[1:-1]] for row in table[0].splitlines()[2:]]


def write_rows(
    rows: Path, held_out: Path, films: list[Path], *, apart: int = 1, limit: int = 100
) -> None:
    """Questions of new types about the playground's first held-out films of three scenes.

    Those about the last `apart` films are held out; of each file at most `limit` are taken.
    """
    from finetune.formats import write
    from vidqa.demo import domain, world

    seeds = range(world.FIRST_HELD_OUT_SEED, world.FIRST_HELD_OUT_SEED + len(films))
    drawn = {film.name: film for film in (world.sample_film(seed, 3) for seed in seeds)}
    for file, chosen in ((rows, films[:-apart]), (held_out, films[-apart:])):
        made = []
        for path in chosen:
            made += domain.new_rows([drawn[path.name]], path.parent.absolute())
        write(random.Random(0).sample(made, min(limit, len(made))), file, "vidqa")


def make_place(folder: Path) -> Path:
    """What the worked run begins with: films, some apart, questions, a recipe for tiny models."""
    from vidqa.demo import films, world

    seeds = [world.FIRST_HELD_OUT_SEED + number for number in range(3)]
    shelf, apart = folder / "films", folder / "films" / "held-out"
    films.write_library(shelf, seeds, scene_count=3, per_type=1)
    apart.mkdir()
    drawn = sorted(shelf.glob("*.mp4"))
    drawn[-1] = drawn[-1].rename(apart / drawn[-1].name)
    write_rows(folder / "rows.jsonl", folder / "held-out.jsonl", drawn, limit=10)
    write_rows(folder / "rows.reviewed.jsonl", folder / "held-out.jsonl", drawn, limit=10)
    (folder / "questions.txt").write_text("What is in the city?\nWhat colour is the star?\n")
    (folder / "configs").symlink_to(REPOSITORY / "configs")
    steps = "max_steps: 2\neval_steps: 2\nfeature_gib: 0.1\n"
    (folder / "birds.yaml").write_text(RECIPE.read_text("utf-8") + steps)
    return folder


def environment(place: Path, **more: str) -> dict[str, str]:
    """A reader's, who answers with the playground's models where the document names none."""
    return os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(REPOSITORY),
        "HOME": str(place),
        "VIDQA_CONFIG": "demo",
        "BROWSER": "true",
        "OMP_NUM_THREADS": "1",  # tests run beside each other, and the models are tiny
        **more,
    }
