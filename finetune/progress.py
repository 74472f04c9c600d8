"""What one sees while a model is trained: a bar on a terminal, plain lines elsewhere, or JSON.

with watching(run, steps=200) as tell:
    fit(..., tell=tell)
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from vidqa.command import Run

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

Line = Mapping[str, Any]


@contextmanager
def watching(run: Run, steps: int) -> Iterator[Callable[[Line], None]]:
    """Where lines of the log go: stdout with --json, else stderr, and nowhere with --quiet."""
    if run.json:
        yield lambda line: run.emit({"event": "log", "steps": steps} | dict(line))
    elif run.quiet:
        yield lambda line: None
    elif sys.stderr.isatty():
        from rich.console import Console

        with _bar(Console(stderr=True)) as progress:
            yield _Bar(progress, steps)
    else:
        yield lambda line: run.note(line_text(line, steps))


def line_text(line: Line, steps: int) -> str:
    """A line of the log for people."""
    parts = [f"step {line['step']}/{steps}"]
    if "eval_loss" in line:
        parts.append(f"held-out loss {line['eval_loss']:.4f}")
        parts.append(f"right tokens {line['eval_token_accuracy']:.3f}")
    else:
        parts += [f"loss {line['loss']:.4f}", f"lr {line['learning_rate']:.2e}"]
        parts.append(f"{line['tokens_per_second']:,.0f} tokens/s")
        parts.append(_left(line, steps))
    return "  ".join(one for one in parts if one)


def _left(line: Line, steps: int) -> str:
    done = line["step"] - line.get("first_step", 0)
    if done <= 0 or line["step"] >= steps:
        return ""
    return f"{duration(line['seconds'] / done * (steps - line['step']))} left"


def duration(seconds: float) -> str:
    """For people: 40 s, 12 min, 3 h 20 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def _bar(console: Console) -> Progress:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    return Progress(
        TextColumn("training"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[told]}", markup=False),
        console=console,
        transient=True,
        redirect_stdout=False,
    )


class _Bar:
    """The steps as a bar with the latest numbers; evaluations stay as lines above it."""

    def __init__(self, progress: Progress, steps: int) -> None:
        self._progress = progress
        self._steps = steps
        self._task = progress.add_task("training", total=steps, told="")

    def __call__(self, line: Line) -> None:
        if "eval_loss" in line:
            self._progress.console.print(line_text(line, self._steps), markup=False)
            return
        told = line_text(line, self._steps).partition("  ")[2]
        self._progress.update(self._task, completed=line["step"], told=told)
