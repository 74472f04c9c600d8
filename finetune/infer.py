"""Rows of a data file are asked of a model behind an endpoint, many at once.

    options = InferOptions(look=look, family="qwen2-vl", model="birds")
    tally = infer(rows, open_client, show, options, file)
    tally.answered, tally.failed, tally.known

A row's record, a JSON object:

    {"row": 3, "file": "held-out.jsonl", "line": 3, "id": null, "model": "birds",
     "answers": [{"question": "What is it?", "text": "A wren.", "expected": "A wren.",
                  "task": "answer", "scores": {"exact_match": 1.0, "token_f1": 1.0},
                  "finish_reason": "stop", "tokens": {"prompt": 812, "completion": 4}}]}

with an answer for each turn that the row leaves to the assistant; `expected`, `task` and `scores`
are there where the row knows the answer, and `boxes` where it is boxes: {"expected": [{"label": "",
"box": [left, top, right, bottom]}], "found": [...]}, in fractions of the picture's sides.

A row that cannot be read or is refused has an `error` in place of `answers`, and the others go on.
An endpoint that is gone ends the run, as it would fail every row: what was answered is kept.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from finetune import scoring
from finetune.answer_file import Record
from finetune.identity import file_digest
from finetune.layout import Look, Shown, messages
from finetune.rows import Row
from vidqa.adapters import CONFIG, WEIGHTS
from vidqa.boxes import Family, ShownSize, resized
from vidqa.errors import EndpointError, UsageError, VidqaError
from vidqa.pictures import jpeg_size
from vidqa.vlm import DEFAULT_SAMPLING, AsyncVlmClient, Sampling

AT_ONCE = 8
# So many failures of the endpoint after each other, with no answer between, are not the rows'.
MOST_FAILURES_IN_A_ROW = 8

# What is shown of a row's media: `media.show_row` with its look and shelf filled in.
Show = Callable[[Row], tuple[Shown, ...]]
OpenClient = Callable[[], AsyncVlmClient]


@dataclass(frozen=True, slots=True, kw_only=True)
class InferOptions:
    """How rows are asked. `model` is the adapter's name at the endpoint, None for its own model.

    `shown_size` is what the model's processor makes of a picture's size, see `Sight`.
    """

    look: Look
    family: Family
    shown_size: ShownSize = resized
    model: str | None = None
    sampling: Sampling = DEFAULT_SAMPLING
    at_once: int = AT_ONCE

    def __post_init__(self) -> None:
        if self.at_once < 1:
            raise UsageError(f"at_once {self.at_once}: at least 1 row is asked at a time")


@dataclass(frozen=True, slots=True)
class Tally:
    """Rows: answered and failed now, and known from before. `cut_off` answers hit max_tokens."""

    answered: int = 0
    failed: int = 0
    known: int = 0
    cut_off: int = 0


class Sink(Protocol):
    """Where records go: an `AnswerFile`, or `Kept` for a list in memory."""

    @property
    def done(self) -> dict[int, Record]: ...

    def write(self, record: Record) -> None: ...


class Kept:
    """Records in memory, by the number of their row."""

    def __init__(self) -> None:
        self.records: dict[int, Record] = {}

    @property
    def done(self) -> dict[int, Record]:
        return {n: one for n, one in self.records.items() if "error" not in one}

    def write(self, record: Record) -> None:
        self.records[record["row"]] = record


def infer(
    rows: Sequence[Row],
    open_client: OpenClient,
    show: Show,
    options: InferOptions,
    sink: Sink,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Tally:
    """Asks every row that `sink` does not have, and writes what comes back into it.

    `on_progress` hears of every finished row: how many are done, of how many. Raises EndpointError
    when the endpoint is gone or fails row after row.
    """
    known = sink.done
    todo = [(n, row) for n, row in enumerate(rows, 1) if n not in known]
    tally = Tally(known=len(rows) - len(todo))

    def take(record: Record) -> None:
        nonlocal tally
        sink.write(record)
        tally = _counted(tally, record)
        on_progress(tally.known + tally.answered + tally.failed, len(rows))

    async def run() -> None:
        async with open_client() as client:
            await _Asking(client, show, options, take).all(todo)

    if todo:
        asyncio.run(run())
    return tally


def _counted(tally: Tally, record: Record) -> Tally:
    if "error" in record:
        return dataclasses.replace(tally, failed=tally.failed + 1)
    cut = sum(one["finish_reason"] == "length" for one in record["answers"])
    return dataclasses.replace(tally, answered=tally.answered + 1, cut_off=tally.cut_off + cut)


class _Asking:
    """So many workers take rows in turn. One reads its media while others wait for the model."""

    def __init__(
        self,
        client: AsyncVlmClient,
        show: Show,
        options: InferOptions,
        take: Callable[[Record], None],
    ) -> None:
        self._client, self._show, self._options, self._take = client, show, options, take
        self._failures_in_a_row = 0

    async def all(self, todo: Sequence[tuple[int, Row]]) -> None:
        left = iter(todo)
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(self._options.at_once, len(todo))):
                    group.create_task(self._work(left))
        except* EndpointError as errors:
            first = errors.exceptions[0]
        else:
            return
        raise first

    async def _work(self, left: Iterator[tuple[int, Row]]) -> None:
        for n, row in left:
            record: Record = {
                "row": n,
                "file": row.origin.file,
                "line": row.origin.line,
                "id": row.id,
                "model": self._options.model or await self._client.model(),
            }
            try:
                answers = await self._answers(row)
            except VidqaError as error:
                self._count_failure(error)
                record["error"] = " ".join(str(error).split()).removeprefix(f"{row.origin}: ")
            else:
                self._failures_in_a_row = 0
                record["answers"] = answers
            self._take(record)

    def _count_failure(self, error: VidqaError) -> None:
        """Raises it again where other rows would meet the same."""
        if not isinstance(error, EndpointError) or error.refused:
            return
        self._failures_in_a_row += 1
        if error.unreachable or self._failures_in_a_row >= MOST_FAILURES_IN_A_ROW:
            raise error

    async def _answers(self, row: Row) -> list[dict[str, Any]]:
        if row.faults:
            raise UsageError(f"{row.origin}: {row.faults[0]}")
        turns = scoring.asked_turns(row)
        if not turns:
            raise UsageError(
                f"{row.origin}: nothing is asked; a question must come last, or an answer to learn"
            )
        shown = await asyncio.to_thread(self._show, row)
        whole = self._messages(row, shown)
        return [await self._answer(row, turn, whole, shown) for turn in turns]

    def _messages(self, row: Row, shown: Sequence[Shown]) -> list[dict[str, Any]]:
        options = self._options
        return messages(row, shown, options.look, options.family, options.shown_size)

    async def _answer(
        self, row: Row, turn: int, whole: list[dict[str, Any]], shown: Sequence[Shown]
    ) -> dict[str, Any]:
        options = self._options
        prompt, expected = scoring.cut(row, whole, turn)
        reply = self._client.reply(prompt, options.sampling, model=options.model, is_plain=True)
        text = "".join([piece async for piece in reply]).strip()
        answer: dict[str, Any] = {"question": scoring.question_text(row, turn), "text": text}
        if expected is not None:
            sizes = sizes_of(shown, options.shown_size)
            truth = scoring.truth_of(row, turn, expected, options.family, sizes)
            answer |= {"expected": expected, "task": truth.task}
            answer["scores"] = {
                name: round(value, 6) for name, value in scoring.scores(truth, text).items()
            }
            if truth.task == "box":
                answer["boxes"] = scoring.boxes(truth, text)
        counts = {"prompt": reply.usage.prompt, "completion": reply.usage.completion}
        return answer | {"finish_reason": reply.finish_reason, "tokens": counts}


def sizes_of(shown: Sequence[Shown], shown_size: ShownSize = resized) -> scoring.Sizes:
    """Of each medium, (width, height) of the original and of what the model sees."""
    return [
        ((one.width, one.height), shown_size(*jpeg_size(one.pictures[0].jpeg))) for one in shown
    ]


# ---------------------------------------------------------------- what a run follows from


def made_by(
    files: Sequence[Path], model: str, adapter: Path | None, options: InferOptions
) -> dict[str, Any]:
    """What the answers of a run follow from, for `AnswerFile`. `model` names or identifies it.

    `adapter` is the folder of the one that answers: where there is none here, an endpoint's adapter
    is known by its name.
    """
    names = [file.name for file in files]
    shown = names if len(set(names)) == len(names) else [str(file) for file in files]
    return {
        "data": {name: file_digest(file)[:16] for name, file in zip(shown, files, strict=True)},
        "model": model,
        "adapter": options.model if adapter is None else _adapter_digest(adapter),
        "look": dataclasses.asdict(options.look),
        "sampling": options.sampling.fields(),
    }


def _adapter_digest(folder: Path) -> str:
    """An adapter's name, how strongly it is added, and what its weights are."""
    digests = [file_digest(folder / name)[:16] for name in (CONFIG, WEIGHTS)]
    return " ".join([folder.absolute().name, *digests])
