"""Training rows out of a library: a teacher writes questions with answers about its scenes.

    report = await build(library, teacher, options, Path("rows.jsonl"), listener)

    scenes, spread over the videos -> frames as `ask` shows them -> the teacher's drafts, or its
    answers to questions of the user's own -> each asked again, alone -> rows on which it agrees
    with itself, appended scene by scene

What a teacher does not repeat when it is asked again it made up, or could not see. That the asking
again is `vidqa ask`'s own message matters: it is how the smaller model will be asked. Scenes that
are done are never asked again, whichever way a run ended; those that failed are, in the next one.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import math
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.agreement import agreement, is_not_shown, same_question
from finetune.rows import Media, Origin, Row, Turn
from finetune.rows_file import RowsFile, said_by
from finetune.teacher import UNANSWERABLE, Draft, NoQuestions, Spent, Teacher, Wanted, fault
from vidqa.ask import AskOptions, prepare
from vidqa.errors import EndpointError, NothingFound, UsageError, VidqaError
from vidqa.prompt import NOT_SHOWN
from vidqa.types import Filters, Moment, ShownMoment

if TYPE_CHECKING:
    from vidqa.library import Library

# So many scenes failing one after the other are not the scenes' fault.
FAILURES_IN_A_ROW = 5
# At the teacher's own temperature an answer that is asked for twice is the same one, right or not.
AGAIN_TEMPERATURE = 0.7
# Below it two short answers share less than half of what they say.
AGREEMENT = 0.6


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """Which scenes, how many questions, when to stop.

    `scenes` counts those of earlier runs that fit. `questions` are the user's own, asked of every
    scene in place of what the teacher would write. `unanswerable` is the share of rows whose answer
    is that the scene does not show it. `agreement` is the least from 0 to 1 by which each of
    `repeats` answers must agree with the first. Prices are for a million tokens, in any currency.
    `max_rows` bounds the file, the other limits this run: no scene is begun that would pass them if
    it took as much as the dearest before it. What a scene takes, the first one shows, alone.
    """

    scenes: int = 100
    questions_per_scene: int = 4
    questions: tuple[str, ...] = ()
    unanswerable: float = 0.2
    filters: Filters | None = None
    where: str | None = None
    seed: int = 0
    frames: int = 4
    max_pixels: int = 420 * 364
    agreement: float = AGREEMENT
    repeats: int = 1
    again_temperature: float = AGAIN_TEMPERATURE
    max_rows: int | None = None
    max_tokens_total: int | None = None
    max_cost: float | None = None
    price_prompt: float | None = None
    price_completion: float | None = None
    concurrency: int = 4

    def __post_init__(self) -> None:
        if self.max_cost is not None and None in (self.price_prompt, self.price_completion):
            raise UsageError(
                "--max-cost needs the prices of a million tokens: --price-prompt and "
                "--price-completion"
            )

    def cost(self, spent: Spent) -> float | None:
        """What it costs, where prices were given."""
        if self.price_prompt is None or self.price_completion is None:
            return None
        prompt, completion = spent.prompt_tokens, spent.completion_tokens
        return (prompt * self.price_prompt + completion * self.price_completion) / 1e6

    @property
    def task(self) -> str:
        """What tells the work on a scene from other work on it."""
        if not self.questions:
            return "written"
        return "asked-" + _digest("\n".join(sorted(self.questions)))


@dataclass(frozen=True, slots=True)
class Dropped:
    """A question that became no row, and why, in words to count by."""

    reason: str
    question: str
    answer: str = ""
    again: tuple[str, ...] = ()


@dataclass(slots=True)
class Outcome:
    """What became of one scene; `error` is one line, for a scene that failed."""

    job: str
    moment: Moment
    rows: list[Row] = field(default_factory=list)
    dropped: list[Dropped] = field(default_factory=list)
    spent: Spent = field(default_factory=Spent)
    error: str | None = None


@dataclass(slots=True)
class Report:
    """What a run has done so far. `stopped` says why it did not take the scenes that are left."""

    scenes: int
    finished_before: int = 0
    finished: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    rows_before: int = 0
    rows: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    spent: Spent = field(default_factory=Spent)
    stopped: str = ""

    @property
    def left(self) -> int:
        return self.scenes - self.finished_before - self.finished - self.failed.total()


Listener = Callable[[Report, Outcome | None], None]


# ---------------------------------------------------------------- which scenes


def choose(library: Library, options: BuildOptions) -> list[Moment]:
    """Scenes dealt out over the videos that fit: one of each, then a second one, and so on.

    A larger number takes the same scenes and further ones, also when videos were added meanwhile.
    Raises NothingFound, UsageError for a bad `where`.
    """
    by_video: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for key in library.scene_keys(options.filters, options.where):
        by_video[key[0]].append(key)
    order = functools.partial(_shuffled, options.seed)
    hands = [order(by_video[video_id]) for video_id in order([*by_video])]
    dealt = [key for turn in zip_longest(*hands) for key in turn if key is not None]
    chosen = dealt[: options.scenes]
    if not chosen:
        raise NothingFound("no scene of the library fits; loosen --video or --where, see vidqa ls")
    # The better the score, the earlier a moment comes: so they keep the order they were dealt in.
    return library.moments({key: -float(place) for place, key in enumerate(chosen)})


def _shuffled(seed: int, items: Sequence[Any]) -> list[Any]:
    """By a digest of each: where one stands does not depend on what else there is."""
    return sorted(items, key=lambda one: _digest(f"{seed} {one}"))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:12]


# ---------------------------------------------------------------- the run


async def build(
    library: Library,
    teacher: Teacher,
    options: BuildOptions,
    path: Path,
    listener: Listener = lambda report, outcome: None,
) -> Report:
    """Adds rows to the file until the scenes or a limit are used up.

    `listener` hears after every scene. Raises NothingFound, UsageError, and EndpointError when the
    teacher cannot be reached at all; a scene that fails is counted and costs that scene only.
    """
    moments = choose(library, options)
    with RowsFile.open(path) as file:
        run = _Run(library, teacher, options, file, moments, await teacher.model(), listener)
        await run.go()
    return run.report


class _Run:
    """The state of one run: all of it changes in `_take` alone, between two scenes."""

    def __init__(
        self,
        library: Library,
        teacher: Teacher,
        options: BuildOptions,
        file: RowsFile,
        moments: Sequence[Moment],
        model: str,
        listener: Listener,
    ) -> None:
        self._library, self._teacher, self._options = library, teacher, options
        self._file, self._model, self._listener = file, model, listener
        waiting = [one for one in moments if _job(one, options) not in file.done]
        self._waiting = waiting[::-1]
        self._seen = {_key(row) for row in file.held}
        self._answers = Counter(is_not_shown(said_by(row, "assistant")) for row in file.held)
        self._most = Spent()  # of one scene
        self._failures_in_a_row = 0
        self.report = Report(
            scenes=len(moments),
            finished_before=len(moments) - len(waiting),
            rows_before=len(file.held),
        )

    async def go(self) -> None:
        self._listener(self.report, None)
        at_work: set[asyncio.Task[Outcome]] = set()
        done: set[asyncio.Task[Outcome]] = set()
        try:
            while True:
                while self._may_begin(len(at_work)):
                    at_work.add(asyncio.create_task(self._scene(self._waiting.pop())))
                if not at_work:
                    break
                done, at_work = await asyncio.wait(at_work, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    self._take(task.result())
        finally:
            for task in at_work:
                task.cancel()
            await asyncio.gather(*at_work, *done, return_exceptions=True)

    def _may_begin(self, at_work: int) -> bool:
        """Whether another scene fits beside those at work; notes why none will any more."""
        if not self._waiting or self.report.stopped or at_work >= self._options.concurrency:
            return False
        limit = self._limit_met(at_work)
        if limit and not at_work:
            self.report.stopped = limit
        return not limit

    def _limit_met(self, at_work: int) -> str:
        """The limit that another scene might pass, if it yields or takes as much as any before."""
        options, report = self._options, self.report
        held = report.rows_before + report.rows
        if options.max_rows is not None:
            expected = at_work * (len(options.questions) or options.questions_per_scene)
            if held >= options.max_rows or (at_work and held + expected >= options.max_rows):
                return f"{held} rows, and --max-rows is {options.max_rows}"
        limits = (options.max_tokens_total, options.max_cost)
        if limits == (None, None):
            return ""
        if at_work and not self._most.tokens:
            return "what a scene takes is not known yet"
        ahead = Spent(
            prompt_tokens=report.spent.prompt_tokens + (at_work + 1) * self._most.prompt_tokens,
            completion_tokens=report.spent.completion_tokens
            + (at_work + 1) * self._most.completion_tokens,
        )
        if options.max_tokens_total is not None and ahead.tokens > options.max_tokens_total:
            return (
                f"{report.spent.tokens:,} tokens, another scene may pass "
                f"--max-tokens-total {options.max_tokens_total:,}"
            )
        cost = options.cost(ahead)
        if options.max_cost is not None and cost is not None and cost > options.max_cost:
            return (
                f"{options.cost(report.spent):.4g} spent, another scene may pass "
                f"--max-cost {options.max_cost:g}"
            )
        return ""

    def _take(self, outcome: Outcome) -> None:
        """One scene's outcome goes into the file and the report."""
        report = self.report
        report.spent.add(outcome.spent)
        self._most.prompt_tokens = max(self._most.prompt_tokens, outcome.spent.prompt_tokens)
        self._most.completion_tokens = max(
            self._most.completion_tokens, outcome.spent.completion_tokens
        )
        if outcome.error is not None:
            self._fail(outcome)
        else:
            self._failures_in_a_row = 0
            self._keep(outcome)
            report.finished += 1
        self._listener(report, outcome)
        limited = self._options.max_tokens_total is not None or self._options.max_cost is not None
        if limited and outcome.spent.requests and not self._most.tokens and outcome.error is None:
            raise EndpointError(
                "the teacher's endpoint counts no tokens, so --max-tokens-total and --max-cost "
                "cannot be kept; leave them out and bound the rows: --max-rows"
            )

    def _fail(self, outcome: Outcome) -> None:
        assert outcome.error is not None
        self.report.failed[outcome.error] += 1
        self._failures_in_a_row += 1
        if self._failures_in_a_row >= FAILURES_IN_A_ROW and self._waiting:
            self.report.stopped = f"{self._failures_in_a_row} scenes in a row failed"

    def _keep(self, outcome: Outcome) -> None:
        options, report = self._options, self.report
        # Those that are answered first: they decide how many of the others there may be.
        candidates = sorted(outcome.rows, key=lambda row: row.extra["kind"] == UNANSWERABLE)
        outcome.rows = []
        for row in candidates:
            reason = self._surplus(row, report.rows_before + report.rows + len(outcome.rows))
            if reason:
                outcome.dropped.append(
                    Dropped(reason, said_by(row, "user"), said_by(row, "assistant"))
                )
                continue
            self._seen.add(_key(row))
            self._answers[row.extra["kind"] == UNANSWERABLE] += 1
            outcome.rows.append(row)
        report.rows += len(outcome.rows)
        report.dropped.update(one.reason for one in outcome.dropped)
        note = {
            "teacher": self._model,
            "tokens": outcome.spent.tokens,
            "task": options.task,
            "dropped": [_dropped_json(one) for one in outcome.dropped],
        }
        self._file.add(outcome.job, outcome.rows, note)

    def _surplus(self, row: Row, held: int) -> str:
        if _key(row) in self._seen:
            return "duplicate"
        share = self._options.unanswerable
        if row.extra["kind"] == UNANSWERABLE and share < 1:
            allowed = math.ceil(self._answers[False] * share / (1 - share))
            if self._answers[True] >= allowed:
                return "enough unanswerable rows"
        if self._options.max_rows is not None and held >= self._options.max_rows:
            return "beyond --max-rows"
        return ""

    # ------------------------------------------------------------ one scene

    async def _scene(self, moment: Moment) -> Outcome:
        outcome = Outcome(_job(moment, self._options), moment)
        try:
            shown = await asyncio.to_thread(_shown, self._library, moment, self._options)
            drafts = await self._drafts(shown, outcome)
            checks = (self._check(draft, shown, outcome) for draft in drafts)
            # All of them end before an error counts: none goes on unheard, and all are paid for.
            for found in await asyncio.gather(*checks, return_exceptions=True):
                if isinstance(found, BaseException):
                    raise found
                if isinstance(found, Row):
                    outcome.rows.append(found)
                else:
                    outcome.dropped.append(found)
        except (VidqaError, NoQuestions) as error:
            hopeless = isinstance(error, EndpointError) and (error.unreachable or error.denied)
            if hopeless and not self.report.finished:
                raise
            outcome.error = str(error)
        return outcome

    async def _drafts(self, shown: ShownMoment, outcome: Outcome) -> list[Draft]:
        options = self._options
        if options.questions:
            return [Draft(question, "") for question in options.questions]
        drafts = await self._teacher.write(shown, _wanted(options, outcome.job), outcome.spent)
        good = []
        for draft in drafts:
            reason = fault(draft)
            if reason is None:
                good.append(draft)
            else:
                outcome.dropped.append(Dropped(reason, draft.question, draft.answer))
        return good

    async def _check(self, draft: Draft, shown: ShownMoment, outcome: Outcome) -> Row | Dropped:
        """Asks for the answer again: a row, or the reason why it is none."""
        answer = draft.answer or await self._teacher.answer(draft.question, shown, outcome.spent)
        kind = UNANSWERABLE if is_not_shown(answer) else draft.kind
        draft = Draft(draft.question, NOT_SHOWN if kind == UNANSWERABLE else answer, kind)
        reason = fault(draft) if answer else "an empty answer, or one without an end"
        if reason:
            return Dropped(reason, draft.question, answer)
        again = [await self._again(draft, shown, outcome, n) for n in range(self._options.repeats)]
        agreed = min(
            (agreement(draft.question, draft.answer, other) for other in again), default=1.0
        )
        if agreed < self._options.agreement:
            reason = "not repeated when asked again"
            return Dropped(reason, draft.question, draft.answer, tuple(again))
        return self._row(draft, shown, outcome.job, agreed)

    async def _again(self, draft: Draft, shown: ShownMoment, outcome: Outcome, n: int) -> str:
        seed = int(_digest(f"{self._options.seed} {outcome.job} {draft.question} {n}")[:7], 16)
        temperature = self._options.again_temperature
        return await self._teacher.answer(
            draft.question, shown, outcome.spent, temperature=temperature, seed=seed
        )

    def _row(self, draft: Draft, shown: ShownMoment, job: str, agreed: float) -> Row:
        moment = shown.moment
        media = Media(
            "video",
            (moment.video,),
            start_seconds=moment.start_seconds,
            end_seconds=moment.end_seconds,
            texts=moment.texts,
        )
        extra = {
            "job": job,
            "kind": draft.kind,
            "video_id": moment.video_id,
            "video": moment.video,
            "start_seconds": moment.start_seconds,
            "end_seconds": moment.end_seconds,
            "frame_seconds": [picture.seconds for picture in shown.pictures],
            "teacher": self._model,
            "agreement": round(agreed, 3),
        }
        return Row(
            turns=(Turn("user", (media, draft.question)), Turn("assistant", (draft.answer,))),
            origin=Origin(str(self._file.path), 0),
            id=_digest(f"{job} {draft.question}"),
            task="answer",
            extra=extra,
        )


def _shown(library: Library, moment: Moment, options: BuildOptions) -> ShownMoment:
    """The scene as `ask` shows a stretch of a video."""
    clip = (moment.video_id, moment.start_seconds, moment.end_seconds)
    how = AskOptions(
        clip=clip,
        max_frames=options.frames,
        frames_per_moment=options.frames,
        max_pixels=options.max_pixels,
    )
    (shown,) = prepare("", library, None, how).shown
    return shown


def _wanted(options: BuildOptions, job: str) -> Wanted:
    """How many unanswerable ones of a scene: on average over scenes, the share asked for."""
    exact = options.questions_per_scene * options.unanswerable
    more = random.Random(f"{options.seed} {job}").random() < exact % 1
    return Wanted(options.questions_per_scene, int(exact) + more)


def _job(moment: Moment, options: BuildOptions) -> str:
    times = f"{moment.start_seconds:.3f}-{moment.end_seconds:.3f}"
    return f"{moment.video_id} {times} {options.task}"


def _key(row: Row) -> tuple[object, ...]:
    """Equal for rows that ask the same about one scene."""
    start = round(float(row.extra.get("start_seconds", 0)), 3)
    return row.extra.get("video_id"), start, same_question(said_by(row, "user"))


def _dropped_json(one: Dropped) -> dict[str, object]:
    fields: dict[str, object] = {"reason": one.reason, "question": one.question}
    return fields | {"answer": one.answer, "again": list(one.again)}


def read_questions(path: Path) -> tuple[str, ...]:
    """The user's own questions, one a line; empty lines and those that begin with # are left out.

    Raises UsageError.
    """
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise UsageError(
            f"--questions {path}: {reason}; name a file with a question a line"
        ) from error
    found = tuple(_questions(lines))
    if not found:
        raise UsageError(f"--questions {path}: holds no question; write one a line")
    return found


def _questions(lines: Iterable[str]) -> Iterator[str]:
    stripped = (" ".join(line.split()) for line in lines)
    yield from dict.fromkeys(line for line in stripped if line and not line.startswith("#"))
