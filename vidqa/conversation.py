"""A follow-up such as "and after that?" becomes a question that stands alone.

    turns = [Turn("user", "Where is the dog?"), Turn("assistant", "In the city [1]."),
             Turn("user", "And after that?")]
    joined(turns)                              without a model: the two questions in one line
    stand_alone(reply, turns)                  by a model that was asked `rewrite_messages(turns)`

Searching needs the stand-alone question, as the words of a follow-up say nothing of what is to be
seen. Pure functions over records: whoever holds a client asks the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

# What came longer ago is rarely meant, and a small model would lose the thread.
MAX_TURNS = 6
_MAX_TURN_CHARACTERS = 600
MAX_QUESTION_CHARACTERS = 400

_TASK = (
    "Rewrite the last question of a conversation so that it can be understood without the "
    "conversation. Keep its language. Put in whatever its pronouns and missing words mean. If it "
    "stands alone already, repeat it. Reply with the question only."
)


@dataclass(frozen=True, slots=True)
class Turn:
    """What one side said; the last turn of a conversation is the user's."""

    role: Literal["user", "assistant"]
    text: str


def is_follow_up(turns: Sequence[Turn]) -> bool:
    """Whether anything was asked before the last question."""
    return any(turn.role == "user" for turn in turns[:-1])


def joined(turns: Sequence[Turn]) -> str:
    """The question before and the last one: what a search can use when no model rewrites.

    Only one question back: a chain of them would drown the last.
    """
    asked = [" ".join(turn.text.split()) for turn in turns if turn.role == "user"]
    return " ".join(asked[-2:])


def rewrite_messages(turns: Sequence[Turn]) -> list[dict[str, Any]]:
    """Chat messages that ask a model for the stand-alone question."""
    lines = [
        f"{'User' if turn.role == 'user' else 'Assistant'}: {_short(turn.text)}"
        for turn in turns[-MAX_TURNS:]
    ]
    return [
        {"role": "system", "content": _TASK},
        {"role": "user", "content": "\n".join(lines)},
    ]


def stand_alone(reply: str, turns: Sequence[Turn]) -> str:
    """The model's question, where its reply can be one; else the joined questions."""
    question = reply.strip().strip('"')
    usable = 0 < len(question) <= MAX_QUESTION_CHARACTERS and "\n" not in question
    return question if usable else joined(turns)


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _MAX_TURN_CHARACTERS else line[:_MAX_TURN_CHARACTERS] + "…"
