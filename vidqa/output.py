"""How results look: as JSON of a fixed shape, as aligned text, and as progress while one waits.

It decides nothing and computes nothing; `cli` calls it with what a verb has returned. The shapes
of the JSON objects are a promise to scripts and are documented in the README.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from vidqa.command import Run, printable
from vidqa.errors import UsageError
from vidqa.prompt import clock, time_range
from vidqa.types import Answer, Citation, FileReport, IngestReport, Moment

if TYPE_CHECKING:
    from PIL.Image import Image
    from rich.console import Console
    from rich.progress import Progress, TaskID

    from vidqa.adapter_fit import Described
    from vidqa.demo.metrics import Figure
    from vidqa.doctor import Finding
    from vidqa.ground import Grounded, Missing
    from vidqa.ingest import IngestProgress
    from vidqa.store import Failure, VideoRow

_MILLISECONDS = 3  # decimal places of seconds
_SCORE_DECIMALS = 4
_PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg")
_PICTURE_QUALITY = 92  # of a JPEG


def seconds(value: float) -> float:
    return round(value, _MILLISECONDS)


def moment_json(moment: Moment) -> dict[str, object]:
    return {
        "video": moment.video,
        "video_id": moment.video_id,
        "start_seconds": seconds(moment.start_seconds),
        "end_seconds": seconds(moment.end_seconds),
        "score": round(moment.score, _SCORE_DECIMALS),
        "frame_seconds": [seconds(one) for one in moment.frame_seconds],
    }


def citation_json(citation: Citation) -> dict[str, object]:
    return {
        "n": citation.n,
        "video": citation.video,
        "video_id": citation.video_id,
        "start_seconds": seconds(citation.start_seconds),
        "end_seconds": seconds(citation.end_seconds),
        "score": round(citation.score, _SCORE_DECIMALS),
    }


def answer_json(answer: Answer) -> dict[str, object]:
    return {
        "question": answer.question,
        "answer": answer.answer,
        "citations": [citation_json(one) for one in answer.citations],
        "moments": [moment_json(one) for one in answer.moments],
        "model": answer.model,
        "usage": {
            "prompt_tokens": answer.usage.prompt_tokens,
            "completion_tokens": answer.usage.completion_tokens,
            "frames": answer.usage.frames,
        },
        "timings_ms": {name: round(value, 1) for name, value in answer.timings_ms.items()},
    }


def grounded_json(grounded: Grounded, picture: Path | None) -> dict[str, object]:
    """Sides are left, top, right, bottom; pixels are those of the video as it is displayed."""
    from vidqa.drawing import pixels_of

    still = grounded.still
    video = still.video
    whole = (video.width, video.height)
    return {
        **({} if grounded.citation is None else {"n": grounded.citation.n}),
        "video": video.path,
        "video_id": video.video_id,
        "seconds": seconds(still.seconds),
        "width": video.width,
        "height": video.height,
        "boxes": [
            {
                "phrase": one.phrase,
                "label": one.label,
                "fractions": [round(side, 4) for side in one.box.sides],
                "pixels": list(pixels_of(one.box, *whole)),
            }
            for one in grounded.found
        ],
        "not_found": [{"phrase": one.phrase, "reply": one.reply} for one in grounded.missing],
        "picture": None if picture is None else str(picture),
        "model": grounded.model,
    }


def file_json(report: FileReport) -> dict[str, object]:
    return {
        "event": "file",
        "path": report.path,
        "state": report.state,
        "scenes": report.scenes,
        "frames": report.frames,
        "seconds_video": seconds(report.seconds_video),
        "seconds_wall": seconds(report.seconds_wall),
        "error": report.error,
    }


def summary_json(report: IngestReport) -> dict[str, object]:
    """A file that only moved, or is a copy of one we have, was skipped: nothing was decoded."""
    return {
        "event": "summary",
        "videos": len(report.files),
        "ingested": report.count("ingested"),
        "skipped": report.count("skipped", "moved", "linked"),
        "failed": report.count("failed"),
        "scenes": sum(one.scenes for one in report.files),
        "frames": sum(one.frames for one in report.files),
        "seconds_video": seconds(sum(one.seconds_video for one in report.files)),
        "seconds_wall": seconds(report.seconds_wall),
        "failures": [{"path": one.path, "error": one.error} for one in report.failures],
    }


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows as lines whose columns are aligned; the last column may be of any length."""
    if not rows:
        return []
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]) - 1)]
    return [
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]])
        for row in rows
    ]


def name_of(path: str) -> str:
    """A path as a person would type it here: relative where it lies below this folder.

    On one line, so that no name can pass for another row.
    """
    path = path.replace("\n", "\\n").replace("\t", "\\t")
    try:
        relative = os.path.relpath(path)
    except (OSError, ValueError):
        return path
    return path if relative.startswith(os.pardir) else relative


def moment_lines(moments: Sequence[Moment]) -> list[str]:
    rows = [
        [
            str(n),
            f"{moment.score:.3f}",
            time_range(moment.start_seconds, moment.end_seconds),
            name_of(moment.video),
        ]
        for n, moment in enumerate(moments, 1)
    ]
    return columns([["#", "score", "time", "video"], *rows])


def citation_lines(citations: Sequence[Citation]) -> list[str]:
    return columns(
        [
            [f"[{one.n}] {name_of(one.video)}", time_range(one.start_seconds, one.end_seconds)]
            for one in citations
        ]
    )


def video_json(row: VideoRow) -> dict[str, object]:
    return {
        "video": row.video.path,
        "video_id": row.video.video_id,
        "paths": list(row.paths),
        "duration_seconds": seconds(row.video.duration_seconds),
        "scenes": row.scenes,
        "frames": row.frames,
        "state": state_of(row.video.path),
        "ingested_at": row.ingested_at.isoformat(),
    }


def failure_json(failure: Failure) -> dict[str, object]:
    return {
        "path": failure.path,
        "error": failure.error,
        "failed_at": failure.failed_at.isoformat(),
    }


def state_of(path: str) -> str:
    """What is kept of a file can be searched and asked about while the file itself is away."""
    return "ready" if os.path.exists(path) else "file away"


def video_lines(rows: Sequence[VideoRow], failures: Sequence[Failure]) -> list[str]:
    header = ["duration", "scenes", "frames", "state", "video"]
    videos = [
        [
            clock(row.video.duration_seconds),
            str(row.scenes),
            str(row.frames),
            state_of(row.video.path),
            name_of(row.video.path),
        ]
        for row in rows
    ]
    failed = [["-", "-", "-", "failed", one.error] for one in failures]
    return columns([header, *videos, *failed])


def suite_json(name: str, figures: Mapping[str, Figure]) -> dict[str, object]:
    """A figure that nothing was measured for is null: JSON has no NaN."""
    return {
        "suite": name,
        "metrics": {key: round(one.value, 4) if one.n else None for key, one in figures.items()},
        "n": {key: one.n for key, one in figures.items()},
    }


def suite_lines(figures: Mapping[str, Figure]) -> list[str]:
    rows = [
        [name, f"{one.value:.3f}", f"{one.low:.3f} to {one.high:.3f}", str(one.n)]
        for name, one in figures.items()
        if one.n
    ]
    return columns([["figure", "value", "95 % interval", "n"], *rows])


def adapter_json(found: Described) -> dict[str, object]:
    """The card's fields are those of adapter.json, null where nobody has written them."""
    card = asdict(found.card) if found.card else None
    return {
        "name": found.name,
        "folder": str(found.folder),
        "size_bytes": found.size_bytes,
        "problem": found.problem or None,
        "card": card,
    }


def adapter_lines(found: Sequence[Described], loaded: Mapping[str, bool]) -> list[str]:
    """`loaded` says of those that an engine has by name whether it is as it lies there."""
    states = {True: "loaded", False: "loaded as it was"}
    rows = [["name", "rank", "size", "made", "state", "base"]]
    for one in found:
        card = one.card
        state = "problem" if one.problem else ""
        if one.name in loaded:
            state = states[loaded[one.name]]
        rows.append(
            [
                one.name,
                str(card.rank) if card else "-",
                _mebibytes(one.size_bytes),
                card.created[:10] if card else "-",
                state,
                one.problem or (name_of(card.base_model) if card else "") or "-",
            ]
        )
    return columns(rows)


def card_lines(found: Described) -> list[str]:
    """Everything that a person may want to know of one adapter."""
    card = found.card
    rows = [["folder", name_of(str(found.folder))], ["size", _mebibytes(found.size_bytes)]]
    if card:
        targets = card.targets if isinstance(card.targets, str) else ", ".join(card.targets)
        rows += [
            ["base", card.base_model or "not told"],
            ["base digest", card.base_digest],
            ["rank, alpha", f"{card.rank}, {card.alpha:g}"],
            ["targets", targets],
            ["vision", "trained" if card.trains_vision else ""],
            ["look", ", ".join(f"{name} {value}" for name, value in card.look.items())],
            ["made", card.created],
            ["versions", ", ".join(f"{name} {value}" for name, value in card.versions.items())],
        ]
        rows += [["data", f"{one.file}, {counted(one.rows, 'row')}"] for one in card.data]
        rows += [[name, _metrics(values)] for name, values in card.metrics.items()]
    rows.append(["state", found.problem or "can be served"])
    return columns([row for row in rows if row[1]])


def _metrics(values: Mapping[str, object]) -> str:
    return ", ".join(
        f"{name} {value:.3f}" if isinstance(value, float) else f"{name} {value}"
        for name, value in values.items()
    )


def _mebibytes(size_bytes: int) -> str:
    return f"{size_bytes / 2**20:.1f} MiB"


_MARKS = {"ok": "ok", "note": "note", "problem": "PROBLEM"}


def finding_lines(findings: Sequence[Finding]) -> list[str]:
    rows: list[list[str]] = []
    for one in findings:
        rows.append([_MARKS[one.state], one.name, one.found])
        if one.mend:
            rows.append(["", "", f"-> {one.mend}"])
    return columns(rows)


def file_line(report: FileReport) -> str:
    if report.error is not None:
        return f"failed    {report.error}"
    line = f"{report.state:8}  {name_of(report.path)}"
    if report.state != "ingested":
        return line
    speed = report.seconds_video / max(report.seconds_wall, 1e-3)
    counts = f"{counted(report.scenes, 'scene')}, {counted(report.frames, 'frame')}"
    return f"{line}  {clock(report.seconds_video)}, {counts}, {speed:.1f} x real time"


def counted(number: int, noun: str) -> str:
    """`1 row`, `2,000 rows`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def summary_line(report: IngestReport) -> str:
    total = summary_json(report)
    counts = ", ".join(f"{total[name]} {name}" for name in ("ingested", "skipped", "failed"))
    line = f"{counted(len(report.files), 'video')}: {counts}; in {report.seconds_wall:.1f} s"
    fresh = [one for one in report.files if one.state == "ingested"]
    if not fresh:
        return line
    video_seconds = sum(one.seconds_video for one in fresh)
    scenes = counted(sum(one.scenes for one in fresh), "scene")
    frames = counted(sum(one.frames for one in fresh), "frame")
    speed = video_seconds / max(report.seconds_wall, 1e-3)
    return f"{line}, {scenes} and {frames} from {clock(video_seconds)} ({speed:.1f} x real time)"


def grounded_lines(grounded: Grounded) -> list[str]:
    from vidqa.drawing import pixels_of

    video = grounded.still.video
    rows = [
        [*map(str, pixels_of(one.box, video.width, video.height)), one.phrase]
        for one in grounded.found
    ]
    return columns([["left", "top", "right", "bottom", _where(grounded)], *rows])


def missing_line(grounded: Grounded, missing: Missing) -> str:
    said = f"the model said: {missing.reply}" if missing.reply else "the model said nothing"
    return f"not found: {missing.phrase}, {_where(grounded)}; {said}"


def _where(grounded: Grounded) -> str:
    still = grounded.still
    cited = "" if grounded.citation is None else f"[{grounded.citation.n}] "
    return f"{cited}{name_of(still.video.path)} at {still.seconds:g} s"


def picture_name(grounded: Grounded) -> str:
    """The file in which a picture with boxes goes when nobody names one, without its folder."""
    still = grounded.still
    cited = "" if grounded.citation is None else f"-{grounded.citation.n}"
    return f"{Path(still.video.path).stem}-{seconds(still.seconds):g}s{cited}.png"


def check_picture(path: Path) -> None:
    """Raises UsageError for a file that no picture can be written to, by its name."""
    if path.suffix.lower() not in _PICTURE_SUFFIXES:
        allowed = ", ".join(_PICTURE_SUFFIXES)
        raise UsageError(f"--output {path}: a name that ends in one of {allowed} is allowed")


def write_picture(path: Path, image: Image) -> None:
    """Writes a picture in the form that its name says; its folder is made if need be."""
    check_picture(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path, quality=_PICTURE_QUALITY)
    except OSError as error:
        reason = error.strerror or error
        raise UsageError(f"--output {path}: {reason}; name a file to write") from error


def write_page(path: Path, text: str) -> None:
    """Writes a report; its folder is made if need be."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"--html {path}: {error.strerror}; name a file to write") from error


class Listener(Protocol):
    def __call__(self, event: IngestProgress | FileReport) -> None: ...


@contextmanager
def ingest_listener(run: Run) -> Iterator[Listener]:
    """What to tell while an ingest goes on: JSON, a bar per file and in total, or plain lines."""
    if run.json:
        yield _emit_files(run)
    elif run.quiet or not sys.stderr.isatty():
        yield _say_files(run)
    else:
        from rich.console import Console

        with _bars(Console(stderr=True)) as progress:
            yield _Bars(run, progress)


def _emit_files(run: Run) -> Listener:
    def listener(event: IngestProgress | FileReport) -> None:
        if isinstance(event, FileReport):
            run.emit(file_json(event))

    return listener


def _say_files(run: Run) -> Listener:
    def listener(event: IngestProgress | FileReport) -> None:
        if isinstance(event, FileReport):
            _say_file(run, event)

    return listener


def _say_file(run: Run, report: FileReport) -> None:
    if report.error is not None:
        run.fail(file_line(report))
    elif not run.quiet:
        run.say(file_line(report))


def _bars(console: Console) -> Progress:
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeRemainingColumn,
    )

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[speed]}", markup=False),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        redirect_stdout=sys.stdout.isatty(),  # results that are piped stay out of the bars' way
    )


class _Bars:
    """A bar per video in hand and one for all, with speed and time to go."""

    def __init__(self, run: Run, progress: Progress) -> None:
        self._run = run
        self._progress = progress
        self._total = progress.add_task("all", total=None, speed="")
        self._files: dict[str, TaskID] = {}
        self._parts: dict[str, float] = {}
        self._started = time.monotonic()
        self._files_done = 0
        self._seconds_done = 0.0

    def __call__(self, event: IngestProgress | FileReport) -> None:
        if isinstance(event, FileReport):
            self._finish(event)
        else:
            self._advance(event)

    def _advance(self, event: IngestProgress) -> None:
        if event.path not in self._files:
            name = printable(Path(event.path).name)
            self._files[event.path] = self._progress.add_task(name[-40:], speed="")
        self._progress.update(
            self._files[event.path],
            total=event.seconds_total or None,
            completed=event.seconds_done,
            speed=f"{event.speed:.1f} x",
        )
        self._parts[event.path] = event.seconds_done / max(
            event.seconds_total, event.seconds_done, 1e-3
        )
        self._show_total(event.files_total)

    def _finish(self, report: FileReport) -> None:
        self._files_done += 1
        self._parts.pop(report.path, None)
        task = self._files.pop(report.path, None)
        if task is not None:
            self._progress.remove_task(task)
        if report.state == "ingested":
            self._seconds_done += report.seconds_video
        _say_file(self._run, report)
        self._show_total(None)

    def _show_total(self, files: int | None) -> None:
        speed = self._seconds_done / max(time.monotonic() - self._started, 1e-3)
        self._progress.update(
            self._total,
            description="all",
            total=files,
            completed=self._files_done + sum(self._parts.values()),
            speed=f"{speed:.1f} x" if speed else "",
        )
