"""Whether two answers to one question say the same: pure functions over texts.

    agreement("What colour is the car?", "The car is red.", "Red")    1.0
    agreement("What colour is the car?", "The car is red.", "The car is blue")    0.0

The same words in the same order agree wholly; else the F1 of the words counts, as in SQuAD
(P. Rajpurkar and others, EMNLP 2016), with three changes, because F1 alone takes "the car is red"
and "the car is blue" for much the same: words that only make a sentence count nothing, nor do words
that both answers have from the question; and answers with different numbers, or of which one denies
and the other does not, disagree whatever else they share. No model judges: that would double the
cost, and its verdict could not be looked up.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

from vidqa.prompt import NOT_SHOWN, without_markers

# Scripts without spaces: each character stands for itself.
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|\d+(?:[.,:]\d+)*|[^\W\d_]+")

_FILLERS = frozenset(
    _WORD.findall(
        "a an the is are was were be been being it its he she they them his her their there here "
        "this that these those of to in on at by with and or as do does did has have had which who "
        "whom what video scene moment frame frames shown seen visible appears appear seems seem"
    )
)
_ASKING = frozenset(("what", "which", "who", "whom"))
_NUMBERS = {
    word: str(number)
    for number, word in enumerate(
        _WORD.findall(
            "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
            "fifteen sixteen seventeen eighteen nineteen twenty"
        )
    )
}
_DENIALS = frozenset(_WORD.findall("no not never none nobody nothing neither nor without cannot"))
_AFFIRMATIONS = frozenset(("yes",))


def uncited(answer: str) -> str:
    """An answer on one line, without the `[n]` that cite moments."""
    return " ".join(without_markers(answer).split())


def words(text: str) -> list[str]:
    """The words of a text, lower case, number words as digits."""
    plain = (
        unicodedata.normalize("NFKC", text).lower().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
    )
    plain = re.sub(r"n't\b", " not", plain)
    return [_NUMBERS.get(word, word) for word in _WORD.findall(plain)]


def is_not_shown(answer: str) -> bool:
    """Whether an answer says that the moments do not show it, in the words agreed for that."""
    return words(without_markers(answer)) == words(NOT_SHOWN)


def same_question(question: str) -> tuple[str, ...]:
    """Equal for questions that differ in nothing but punctuation, case and filling words."""
    return tuple(word for word in words(question) if word not in _FILLERS - _ASKING)


def agreement(question: str, answer: str, again: str) -> float:
    """From 0 (they contradict each other, or share nothing) to 1 (they say the same)."""
    one, other = words(without_markers(answer)), words(without_markers(again))
    if one == other:
        return 1.0
    if is_not_shown(answer) or is_not_shown(again):
        return 0.0
    if _numbers(one) != _numbers(other) or _polarity(one) != _polarity(other):
        return 0.0
    if _bare(one) or _bare(other):  # a mere yes or no, and the other says it as well
        return 1.0
    return _f1(*_telling(words(question), _meaning(one), _meaning(other)))


def _meaning(found: Sequence[str]) -> list[str]:
    return [word for word in found if word not in _FILLERS]


def _numbers(found: Sequence[str]) -> Counter[str]:
    return Counter(word for word in found if word[0].isdigit())


def _polarity(found: Sequence[str]) -> bool | None:
    """True for an answer that begins with yes, False for one that denies."""
    if found and found[0] in _AFFIRMATIONS:
        return True
    return False if _DENIALS & {*found} else None


def _bare(found: Sequence[str]) -> bool:
    return bool(found) and {*found} <= _DENIALS | _AFFIRMATIONS


def _telling(
    question: Sequence[str], one: Sequence[str], other: Sequence[str]
) -> tuple[list[str], list[str]]:
    """Both without what they repeat of the question, unless nothing of one would be left."""
    repeated = {*question} & {*one} & {*other}
    left = [word for word in one if word not in repeated]
    right = [word for word in other if word not in repeated]
    return (left, right) if bool(left) == bool(right) else (list(one), list(other))


def _f1(one: Sequence[str], other: Sequence[str]) -> float:
    """1 for two that have nothing but what the question said: they were told apart before."""
    if not one and not other:
        return 1.0
    common = sum((Counter(one) & Counter(other)).values())
    return 2 * common / (len(one) + len(other))
