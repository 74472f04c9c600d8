"""What a training is told, what was prepared for it, and how it went: the records of `train`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.dataset import Encoder, RowDataset
from finetune.layout import Look
from finetune.plan import Memory, Plan, as_dict, as_text, dropped_lines
from finetune.recipe import Recipe
from vidqa import adapters


@dataclass(frozen=True, kw_only=True)
class Order:
    """What is to be trained on what, and where it goes."""

    data: tuple[Path, ...]
    model: str
    output: Path
    recipe: Recipe
    eval_data: tuple[Path, ...] = ()
    format: str | None = None
    media_dir: Path | None = None
    hub: str = "huggingface"


@dataclass(frozen=True, slots=True)
class Prepared:
    """Rows as they will be seen, and what training on them will take.

    `parameters` are (trained, all) weights of each component, `seconds` a guess.
    """

    folder: Path
    encoder: Encoder
    plan: Plan
    held_out_plan: Plan
    files: tuple[adapters.DataFile, ...]
    parameters: dict[str, tuple[int, int]]
    memory: Memory
    seconds: float

    @property
    def rows(self) -> RowDataset:
        return _rows(self.plan, self.encoder)

    @property
    def held_out(self) -> RowDataset:
        return _rows(self.held_out_plan, self.encoder)

    @property
    def lines(self) -> list[str]:
        """The plan for people."""
        lines = as_text(self.plan, self.parameters, self.memory, self.seconds)
        held = self.held_out_plan
        lines.insert(1, f"held out  {len(held.used):,} rows, {len(held.dropped):,} dropped")
        return lines + dropped_lines(held)

    @property
    def figures(self) -> dict[str, Any]:
        """The plan for programs."""
        told = as_dict(self.plan, self.parameters, self.memory, self.seconds)
        return told | {"held_out": as_dict(self.held_out_plan)}


def _rows(plan: Plan, encoder: Encoder) -> RowDataset:
    return RowDataset([one.row for one in plan.used], encoder, [one.look for one in plan.used])


@dataclass(frozen=True, slots=True)
class Outcome:
    """How it went. `stopped`: it goes on with --resume; `commands` use what was made."""

    step: int
    steps: int
    stopped: bool
    ended_early: bool
    before: dict[str, float]
    after: dict[str, float]
    commands: tuple[str, ...] = ()
    seconds: float = 0.0
    notes: tuple[str, ...] = ()


def look_of(recipe: Recipe) -> Look:
    """What of a recipe decides pixels and prompt; it goes with the adapter."""
    return Look(
        layout=recipe.layout,  # type: ignore[arg-type]
        cite=recipe.cite,
        max_frames=recipe.max_frames,
        frames_per_moment=recipe.frames_per_moment,
        max_pixels=recipe.max_pixels,
        sample_fps=recipe.sample_fps,
    )
