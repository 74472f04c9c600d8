"""Base and adapter answer the same held-out questions, and are compared.

    results = evaluate(rows, open_client, "birds", options=options, show=show, probe=probe_rows)
    results.held_out.tasks["answer"]["exact_match"].difference
    write_metrics(folder / "metrics.json", results)
    write_figures(adapter_folder, results)         the same, short, in the adapter's card
    page(results, show)                            where the two differ, with the frames

Both are shown the same pictures in the same prompts: those of the adapter's look. The probe is
rows that have nothing to do with what was trained, to see what was forgotten. Without an adapter
the base is measured alone, as before a training. Figures are defined in `metrics`, what a reply is
held against in `scoring`; asking is `infer`'s.
"""

from __future__ import annotations

import dataclasses
import io
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finetune import metrics, scoring
from finetune.answer_file import AnswerFile, Record
from finetune.infer import InferOptions, Kept, OpenClient, Show, infer
from finetune.metrics import Comparison, Figure
from finetune.rows import Row
from vidqa import adapters, report
from vidqa.boxes import Box
from vidqa.drawing import draw
from vidqa.errors import VidqaError
from vidqa.report import Section, Told
from vidqa.select import spread
from vidqa.types import Moment, Picture, ShownMoment
from vidqa.whole_files import write_whole

Progress = Callable[[str, int, int], None]

# So many examples of a kind are on the page: a look at what changed, not an archive.
MOST_EXAMPLES = 12
MOST_PICTURES = 6
DRAWN_WIDTH = 420


@dataclass(frozen=True, slots=True)
class Example:
    """One question with both replies; scores are of the first measure of its task."""

    row: Row
    question: str
    expected: str
    task: str
    base: str
    adapter: str
    base_score: float
    adapter_score: float
    boxes: tuple[tuple[str, Box], ...] = ()

    @property
    def gain(self) -> float:
        return self.adapter_score - self.base_score


@dataclass(frozen=True, slots=True)
class Measured:
    """One set of rows: figures by task and measure, and how many rows they do not rest on.

    `failed` counts the rows that could not be asked, by model; `without_answer` questions to which
    no right answer is known. Figures compare what both models have answered.
    """

    rows: int
    tasks: dict[str, dict[str, Comparison]]
    failed: dict[str, int]
    without_answer: int = 0
    examples: tuple[Example, ...] = ()


@dataclass(frozen=True, slots=True)
class Results:
    """`probe` is None where no rows for it were given, `adapter` where the base was alone."""

    base: str
    adapter: str | None
    held_out: Measured
    probe: Measured | None = None
    resamples: int = metrics.RESAMPLES
    seed: int = 0
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def sets(self) -> Iterator[tuple[str, Measured]]:
        yield "held-out", self.held_out
        if self.probe is not None:
            yield "probe", self.probe

    def figures(self, of: str) -> dict[str, float]:
        """Flat figures of "base" or "adapter" for `adapter.json`: "answer.exact_match" and others.

        Those of the probe begin with "probe.".
        """
        found = {}
        for name, measured in self.sets:
            prefix = "" if name == "held-out" else f"{name}."
            for task, measure, one in _flat(measured):
                figure = one.adapter if of == "adapter" else one.base
                if figure is not None and not math.isnan(figure.value):
                    found[f"{prefix}{task}.{measure}"] = round(figure.value, 4)
        return found


def evaluate(
    rows: Sequence[Row],
    open_client: OpenClient,
    adapter: str | None = None,
    *,
    options: InferOptions,
    show: Show,
    probe: Sequence[Row] = (),
    folder: Path | None = None,
    made_by: Mapping[str, Any] | None = None,
    probe_made_by: Mapping[str, Any] | None = None,
    base: str = "base",
    name: str | None = None,
    seed: int = 0,
    on_progress: Progress = lambda stage, done, total: None,
) -> Results:
    """Asks base and adapter all rows, and the probe's, and compares their answers.

    `adapter` is its name at the endpoint, whose own model is the base; `base` and `name` are what
    the two are called in the results. `options` say how both are asked, but for the model. With
    `folder` the replies are kept there, and an evaluation that broke off goes on from them;
    `made_by` is what they follow from, `probe_made_by` what those to the probe do. Raises
    EndpointError when the endpoint is gone.
    """
    called = {"base": base} if adapter is None else {"base": base, "adapter": name or adapter}
    sets = {"held-out": (rows, made_by)} | ({"probe": (probe, probe_made_by)} if probe else {})
    measured = {}
    for which_set, (some, follows) in sets.items():
        replies = {}
        for which, who in called.items():
            chosen = dataclasses.replace(options, model=adapter if which == "adapter" else None)
            heard = _staged(on_progress, f"{which_set}: {who}")
            with ExitStack() as stack:
                sink: AnswerFile | Kept = Kept()
                if folder is not None:
                    path = folder / f"{which_set}-{which}.jsonl"
                    of_these = {**(follows or {}), "rows": which_set, "answers": who}
                    sink = stack.enter_context(AnswerFile(path, of_these))
                infer(some, open_client, show, chosen, sink, heard)
                if isinstance(sink, AnswerFile):
                    sink.finish()
                replies[which] = sink.records
        measured[which_set] = measure(some, replies["base"], replies.get("adapter"), seed=seed)
    return Results(
        base, called.get("adapter"), measured["held-out"], measured.get("probe"), seed=seed
    )


def _staged(on_progress: Progress, stage: str) -> Callable[[int, int], None]:
    return lambda done, total: on_progress(stage, done, total)


# ---------------------------------------------------------------- figures


def measure(
    rows: Sequence[Row],
    base: Mapping[int, Record],
    adapter: Mapping[int, Record] | None = None,
    *,
    seed: int = 0,
) -> Measured:
    """Records of both models, by the number of their row from 1, become figures."""
    both = [base] if adapter is None else [base, adapter]
    answers: list[tuple[Row, list[dict[str, Any]]]] = []
    without = 0
    for n, row in enumerate(rows, 1):
        records = [one.get(n, {}) for one in both]
        for pair in zip(*(one.get("answers", ()) for one in records), strict=False):
            if "scores" in pair[0]:
                answers.append((row, list(pair)))
            else:
                without += 1
    names = ["base", "adapter"][: len(both)]
    failed = {
        name: sum("answers" not in one.get(n, {}) for n in range(1, len(rows) + 1))
        for name, one in zip(names, both, strict=True)
    }
    tasks = {}
    for task, measures in scoring.MEASURES.items():
        of_task = [one for one in answers if one[1][0]["task"] == task]
        if of_task:
            tasks[str(task)] = {name: _compared(of_task, name, seed) for name in measures}
    examples = tuple(_examples(answers)) if adapter is not None else ()
    return Measured(len(rows), tasks, failed, without, examples)


def _compared(
    answers: Sequence[tuple[Row, Sequence[dict[str, Any]]]], name: str, seed: int
) -> Comparison:
    """One measure over the answers of one task."""
    sums = [
        scoring.stacked(
            [
                scoring.summable(name, one["text"], one["expected"], one["scores"][name])
                for one in of_model
            ]
        )
        for of_model in zip(*(pair for _, pair in answers), strict=True)
    ]
    groups = [video_of(row) for row, _ in answers]
    combine = scoring.combine(name)
    if len(sums) == 1:
        return Comparison(metrics.figure(sums[0], groups, combine, seed=seed))
    return metrics.compare(sums[0], sums[1], groups, combine, seed=seed)


def video_of(row: Row) -> str:
    """What rows have in common that are no independent evidence: their first video or picture."""
    media = row.media
    return os.path.abspath(media[0].paths[0]) if media and media[0].paths else str(row.origin)


def _examples(answers: Sequence[tuple[Row, Sequence[dict[str, Any]]]]) -> Iterator[Example]:
    """Where the two say something different."""
    for row, (base, adapter) in answers:
        if metrics.words(base["text"]) == metrics.words(adapter["text"]):
            continue
        first = scoring.MEASURES[base["task"]][0]
        yield Example(
            row,
            base["question"],
            base["expected"],
            base["task"],
            base["text"],
            adapter["text"],
            base["scores"][first],
            adapter["scores"][first],
            tuple(_boxes(base, adapter)),
        )


def _boxes(base: Mapping[str, Any], adapter: Mapping[str, Any]) -> Iterator[tuple[str, Box]]:
    """The boxes of all three, each named by whose it is."""
    told = (("expected", base, "expected"), ("base", base, "found"), ("adapter", adapter, "found"))
    for name, answer, which in told:
        for one in answer.get("boxes", {}).get(which, ()):
            yield name, Box(*one["box"])


def _flat(measured: Measured) -> Iterator[tuple[str, str, Comparison]]:
    for task, comparisons in measured.tasks.items():
        for name, one in comparisons.items():
            yield task, name, one


# ---------------------------------------------------------------- as a table, as JSON, as a page


def table(results: Results) -> list[list[str]]:
    """Cells, the header first."""
    with_adapter = results.adapter is not None
    models = ["base", "adapter", "difference"] if with_adapter else ["model"]
    lines = [["rows", "task", "measure", *models, "95 % interval", "questions", "videos"]]
    for name, measured in results.sets:
        for task, measure_name, one in _flat(measured):
            last = one.base if one.difference is None else one.difference
            line = [name, task, measure_name, f"{one.base.value:.3f}"]
            if one.adapter is not None and one.difference is not None:
                line += [f"{one.adapter.value:.3f}", f"{one.difference.value:+.3f}"]
            sign = "+" if with_adapter else ""
            lines.append([*line, _interval(last, sign), str(last.n), str(last.groups)])
    return lines


def _interval(one: Figure, sign: str) -> str:
    if math.isnan(one.low):
        return "one video: none"
    return f"{one.low:{sign}.3f} to {one.high:{sign}.3f}"


def remarks(results: Results) -> list[str]:
    """What the table does not say, one sentence each."""
    said = []
    for name, measured in results.sets:
        for which, count in measured.failed.items():
            if count:
                said.append(
                    f"{name}: {count} of {measured.rows} rows could not be asked of the {which}, "
                    "and count for neither"
                )
        if measured.without_answer:
            said.append(f"{name}: {measured.without_answer} questions have no known answer")
        if not measured.tasks:
            said.append(f"{name}: nothing was answered, so there is nothing to compare")
    if results.adapter is not None and _never_differs(results):
        said.append(
            "the adapter answered every question as the base did; see that it is applied where it "
            "is served"
        )
    if results.adapter is not None and results.probe is None:
        said.append(
            "whether something was forgotten is not known: name questions that have nothing to do "
            "with the training, --probe FILE"
        )
    return said


def _never_differs(results: Results) -> bool:
    return not any(measured.examples for _, measured in results.sets) and any(
        measured.tasks for _, measured in results.sets
    )


def as_json(results: Results) -> dict[str, Any]:
    """All figures, in the form of metrics.json; what is not known is null."""
    sets = {
        name.replace("-", "_"): {
            "rows": measured.rows,
            "failed": measured.failed,
            "without_answer": measured.without_answer,
            "tasks": {
                task: {name: _comparison_json(one) for name, one in comparisons.items()}
                for task, comparisons in measured.tasks.items()
            },
        }
        for name, measured in results.sets
    }
    return {
        "base": results.base,
        "adapter": results.adapter,
        **results.facts,
        **sets,
        "interval": {
            "covers": metrics.COVERED,
            "method": "paired percentile bootstrap over videos",
            "resamples": results.resamples,
            "seed": results.seed,
        },
    }


def _comparison_json(one: Comparison) -> dict[str, Any]:
    figures = {"base": one.base, "adapter": one.adapter, "difference": one.difference}
    return {"n": one.base.n, "videos": one.base.groups} | {
        name: {edge: _rounded(getattr(figure, edge)) for edge in ("value", "low", "high")}
        for name, figure in figures.items()
        if figure is not None
    }


def _rounded(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 4)


def write_metrics(path: Path, results: Results) -> None:
    """Writes metrics.json, whole or not at all."""
    write_whole(path, f"{json.dumps(as_json(results), indent=1)}\n".encode())


def write_figures(folder: Path, results: Results) -> bool:
    """Puts the figures of base and adapter into the adapter's card, beside those of its training.

    Those of an earlier evaluation go. False where nothing was measured, where the folder holds no
    card of vidqa's, or where it cannot be written: an adapter may be somebody else's.
    """
    found = {"before": results.figures("base"), "after": results.figures("adapter")}
    if not found["after"] or not (folder / adapters.CARD).is_file():
        return False
    card = adapters.read(folder)
    told = {
        # What an evaluation tells of has a dot in its name, what a training tells of has none.
        name: {key: one for key, one in card.metrics.get(name, {}).items() if "." not in key} | some
        for name, some in found.items()
    }
    try:
        adapters.write(folder, dataclasses.replace(card, metrics={**card.metrics, **told}))
    except OSError:
        return False
    return True


def page(results: Results, show: Show, most: int = MOST_EXAMPLES) -> str:
    """A page with the table and, with their frames, questions that the two answer differently."""
    summary = remarks(results)
    cells = tuple(map(tuple, table(results)))
    sections = [Section(title="Figures", shown=(), table=cells)]
    for name, measured in results.sets:
        by_kind = {
            kind: [one for one in measured.examples if _kind(one) == kind] for kind in _KINDS
        }
        if measured.examples:
            told = ", ".join(f"{len(some)} {kind}" for kind, some in by_kind.items())
            summary.append(f"{name}, answered differently by the adapter: {told}")
        for kind, some in by_kind.items():
            chosen = sorted(some, key=lambda one: -abs(one.gain))[:most]
            sections += [_section(one, f"{name}: {kind}", show) for one in chosen]
    title = f"{results.adapter} against {results.base}" if results.adapter else results.base
    return report.page(title, sections, summary)


def _section(one: Example, kind: str, show: Show) -> Section:
    return Section(
        title=one.question or "(no words)",
        shown=_moments(one, show),
        told=(
            Told("expected", one.expected),
            Told("base", one.base, one.base_score),
            Told("adapter", one.adapter, one.adapter_score),
        ),
        facts=(kind, f"scored as {one.task}", str(one.row.origin)),
        scored=False,
    )


_KINDS = ("worse", "better", "as good")


def _kind(one: Example) -> str:
    if abs(one.gain) < 1e-9:
        return "as good"
    return "better" if one.gain > 0 else "worse"


def _moments(example: Example, show: Show) -> tuple[ShownMoment, ...]:
    """A row's media with some of what was shown of them; none where they cannot be read now.

    Boxes are drawn where there is one medium: with more, the reply does not say which it means.
    """
    row = example.row
    try:
        shown = show(row)
    except VidqaError:
        return ()
    moments = []
    for n, (media, one) in enumerate(zip(row.media, shown, strict=True), 1):
        pictures = {picture.seconds: picture for picture in one.pictures}
        chosen = tuple(pictures[at] for at in spread(sorted(pictures), MOST_PICTURES))
        if example.boxes and len(row.media) == 1:
            chosen = tuple(_drawn(picture, example.boxes) for picture in chosen)
        end = max(one.end_seconds, one.start_seconds + 0.001)  # that of a picture is its start
        moment = Moment(
            media.paths[0], "", one.start_seconds, end, 0.0, tuple(pictures), media.texts
        )
        moments.append(ShownMoment(n, moment, chosen))
    return tuple(moments)


def _drawn(picture: Picture, boxes: Sequence[tuple[str, Box]]) -> Picture:
    """The picture, enlarged to where names can be read, with boxes on it."""
    import numpy as np
    from PIL import Image

    with Image.open(io.BytesIO(picture.jpeg)) as image:
        larger = max(1, math.ceil(DRAWN_WIDTH / image.width))
        size = image.width * larger, image.height * larger
        pixels = np.asarray(image.convert("RGB").resize(size, Image.Resampling.LANCZOS))
    encoded = io.BytesIO()
    draw(pixels, boxes).save(encoded, "JPEG", quality=90)
    return Picture(picture.seconds, encoded.getvalue())
