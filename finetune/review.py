"""What a person decides about rows: kept, edited or dropped; saved at once.

    with Review.open(Path("rows.jsonl")) as review:
        review.decide(0, "kept")
        review.decide(1, "edited", answer="A red star.")

    rows.jsonl             is only read
    rows.review.json       the decisions, by what each row says: they outlive rows that are added
    rows.reviewed.jsonl    the rows that were kept or edited, to train on; `review` says which

Both are written whole and renamed with each decision, so each is there before the next key is
pressed, and neither is ever half there. Nothing here is shown; that is `review_server`.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import threading
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal, Self, get_args

from finetune.formats import read
from finetune.rows import Row, Turn
from finetune.rows_file import row_line
from vidqa.errors import UsageError
from vidqa.whole_files import write_whole

State = Literal["kept", "edited", "dropped"]
MAX_TEXT_CHARACTERS = 20_000


@dataclass(frozen=True, slots=True)
class Decision:
    """`question` and `answer` are None where they stay as they are."""

    state: State
    question: str | None = None
    answer: str | None = None


class Review:
    """The rows of a file and what was decided about them; safe to use from several threads."""

    def __init__(self, path: Path, rows: list[Row], held: IO[bytes]) -> None:
        self.rows = rows
        self.output = path.with_name(f"{path.stem}.reviewed.jsonl")
        self._decisions_path = path.with_name(f"{path.stem}.review.json")
        self._keys = [_key(row, path) for row in rows]
        self._held = held
        self._turn = threading.Lock()
        self._decisions: dict[str, Decision] = {}

    @classmethod
    def open(cls, path: Path) -> Review:
        """Raises UsageError: a file that cannot be read, or that somebody else reviews."""
        rows = read(path)
        for row in rows:
            if row.faults:
                raise UsageError(
                    f"{row.origin}: {row.faults[0]}; mend what vidqa finetune check names first"
                )
        held = path.open("rb")
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            review = cls(path, rows, held)
            review._read()
        except BlockingIOError as error:
            held.close()
            raise UsageError(f"{path} is being reviewed already; end that one first") from error
        except BaseException:
            held.close()
            raise
        return review

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._held.close()

    def decision(self, n: int) -> Decision | None:
        return self._decisions.get(self._keys[n])

    def counts(self) -> Counter[str]:
        """How many rows are in each state; those without a decision are "open"."""
        found = (self.decision(n) for n in range(len(self.rows)))
        return Counter("open" if one is None else one.state for one in found)

    def row(self, n: int) -> Row:
        """The row as it was decided: with its edits."""
        decision = self.decision(n)
        row = self.rows[n]
        if decision is None or decision.state != "edited":
            return row
        texts = {"user": decision.question, "assistant": decision.answer}
        turns = tuple(_with_text(turn, texts.get(turn.role)) for turn in row.turns)
        return replace(row, turns=turns)

    def decide(
        self, n: int, state: State | None, question: str | None = None, answer: str | None = None
    ) -> None:
        """Saves a decision before it returns; a state of None takes one back.

        Raises UsageError for a row that is not there, and for an edit that cannot be.
        """
        if not 0 <= n < len(self.rows):
            raise UsageError(f"row {n}: there are {len(self.rows)}")
        decision = None if state is None else _checked(self.rows[n], state, question, answer)
        with self._turn:
            self._set([(n, decision)])

    def keep_the_rest(self) -> None:
        """Keeps every row without a decision."""
        with self._turn:
            left = [n for n in range(len(self.rows)) if self.decision(n) is None]
            self._set((n, Decision("kept")) for n in left)

    def _set(self, decided: Iterable[tuple[int, Decision | None]]) -> None:
        before = dict(self._decisions)
        for n, decision in decided:
            if decision is None:
                self._decisions.pop(self._keys[n], None)
            else:
                self._decisions[self._keys[n]] = decision
        try:
            self._save()
        except BaseException:
            self._decisions = before  # what could not be saved is not shown as decided
            raise

    def _save(self) -> None:
        decisions = {key: asdict(one) for key, one in self._decisions.items()}
        _replace(self._decisions_path, json.dumps(decisions, ensure_ascii=False, indent=0) + "\n")
        _replace(self.output, "".join(row_line(row, self.output) for row in self._wanted()))

    def _wanted(self) -> Iterable[Row]:
        for n in range(len(self.rows)):
            decision = self.decision(n)
            if decision is not None and decision.state != "dropped":
                row = self.row(n)
                yield replace(row, extra={**row.extra, "review": decision.state})

    def _read(self) -> None:
        try:
            found = json.loads(self._decisions_path.read_text("utf-8"))
            self._decisions = {str(key): Decision(**one) for key, one in found.items()}
        except FileNotFoundError:
            return
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise UsageError(
                f"{self._decisions_path}: holds no decisions; move it away to begin anew"
            ) from error


def is_editable(row: Row) -> bool:
    """Whether it is one question with one answer, each a single text beside media."""
    roles = Counter(turn.role for turn in row.turns)
    texts = [
        sum(isinstance(part, str) for part in turn.parts)
        for turn in row.turns
        if turn.role != "system"
    ]
    return roles["user"] == roles["assistant"] == 1 and texts == [1, 1]


def _checked(row: Row, state: Any, question: Any, answer: Any) -> Decision:
    if state not in get_args(State):
        raise UsageError(f"{state!r} is no decision; there are {', '.join(get_args(State))}")
    if state != "edited":
        return Decision(state)
    if not is_editable(row):
        raise UsageError(f"{row.origin} is no single question with one answer; edit the file")
    for name, text in (("question", question), ("answer", answer)):
        if text is None:
            continue
        if not isinstance(text, str) or not text.strip() or len(text) > MAX_TEXT_CHARACTERS:
            raise UsageError(
                f"the {name} is empty, or longer than {MAX_TEXT_CHARACTERS} characters"
            )
        if name == "answer" and "<|" in text:
            raise UsageError("the answer holds a control token (<|); trained on, it ends the turn")
    return Decision("edited", _trimmed(question), _trimmed(answer))


def _trimmed(text: str | None) -> str | None:
    return None if text is None else text.strip()


def _with_text(turn: Turn, text: str | None) -> Turn:
    if text is None:
        return turn
    return replace(turn, parts=tuple(text if isinstance(p, str) else p for p in turn.parts))


def _key(row: Row, path: Path) -> str:
    """By all that the row says, so that a changed row is a new one."""
    said = row_line(replace(row, extra={}), path).encode("utf-8", "surrogateescape")
    return hashlib.sha256(said).hexdigest()[:24]


def _replace(path: Path, text: str) -> None:
    """The whole file or the one before, whatever happens. Raises UsageError."""
    try:
        write_whole(path, text.encode("utf-8", "surrogateescape"), on_disk=True)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}; the decision is not saved") from error
