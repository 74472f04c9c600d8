"""How good replies are, in figures. Pure functions of texts, boxes and numbers.

    exact_match("A red star [1].", "red star")                  1.0
    token_f1("a red ball", "a red star")                        0.5
    chosen("B) the ball", ("a star", "the ball"))               1
    box_scores([("", true)], [("", found)])                     (IoU, hits at 0.5)
    compare(base, adapter, videos)                              means, difference and its interval

All scores are from 0 to 1, BLEU and ROUGE too. Citation markers count for nothing. Text is split
into words as SQuAD's evaluation does (Rajpurkar et al. 2016), and Chinese and Japanese, which are
written without spaces, into characters, as CMRC's (Cui et al. 2019) and MLQA's (Lewis et al. 2020)
do. Which of them a row is scored by is decided in `scoring`.
"""

from __future__ import annotations

import importlib.util
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vidqa.boxes import Box
from vidqa.errors import MissingExtra
from vidqa.prompt import without_markers

Array = NDArray[np.float64]

HIT_IOU = 0.5
RESAMPLES = 2000
COVERED = 0.95  # what an interval covers

_ARTICLES = frozenset({"a", "an", "the"})
# Han, kana and their marks, and the letters of scripts that are written without spaces.
_UNSPACED = "\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_UNSPACED += "\U00020000-\U0003ffff"
_CHARACTER = re.compile(f"([{_UNSPACED}])")
_HAS_KANA = re.compile("[\u3040-\u30ff]")
_WORD = re.compile(r"[^\W_]+")


# ---------------------------------------------------------------- answers


def words(text: str) -> list[str]:
    """A text's words in lower case, without markers and punctuation; articles stay."""
    plain = unicodedata.normalize("NFKC", without_markers(text)).casefold()
    kept = "".join(one if _is_kept(plain, at) else "" for at, one in enumerate(plain))
    return _CHARACTER.sub(r" \1 ", kept).split()


def tokens(text: str) -> list[str]:
    """As `words`, without English articles, unless there is nothing else."""
    every = words(text)
    return [one for one in every if one not in _ARTICLES] or every


def length(text: str) -> float:
    """How long a text is, in English words; characters of Chinese and Japanese count a half."""
    return sum(0.5 if _CHARACTER.match(one) else 1.0 for one in words(text))


def _is_kept(text: str, at: int) -> bool:
    """Punctuation and symbols go, but for the point in 12.5, which is not 125."""
    if unicodedata.category(text[at])[0] not in "PS":
        return True
    return text[at] == "." and text[at - 1 : at].isdigit() and text[at + 1 : at + 2].isdigit()


def exact_match(reply: str, expected: str) -> float:
    return float(tokens(reply) == tokens(expected))


def token_f1(reply: str, expected: str) -> float:
    """Harmonic mean of precision and recall of the words; 1 or 0 where either has none."""
    said, wanted = tokens(reply), tokens(expected)
    if not said or not wanted:
        return float(said == wanted)
    shared = sum((Counter(said) & Counter(wanted)).values())
    return 2 * shared / (len(said) + len(wanted))


# ---------------------------------------------------------------- choices

_LETTER = r"[A-Za-z]"
_LETTERED = re.compile(rf"^\s*\(?({_LETTER})\s*[.):\uff0e\uff1a\u3001]\s*(?=\S)")
_LETTER_ALONE = re.compile(rf"^\W*({_LETTER})\W*$")
_LETTER_NAMED = re.compile(
    rf"\b(?:answer|option|choice)\b(?:\s+is)?\s{{0,3}}[:\uff1a]?\s{{0,3}}[(*\"']{{0,3}}({_LETTER})\b(?!')"
    rf"|\u7b54\u6848\u662f?\s{{0,3}}[:\uff1a]?\s{{0,3}}\(?({_LETTER})(?![a-z])",
    re.IGNORECASE,
)
_OFFERED = re.compile(r"^[ \t]*\(?([A-Z])[.):\uff0e\uff1a\u3001][ \t]*(\S.*?)[ \t]*$", re.MULTILINE)


def offered(question: str) -> tuple[str, ...]:
    """The choices that a question lists on lines of their own: `A. a star`, `(B) a ball`."""
    found = _OFFERED.findall(question)
    in_order = [letter for letter, _ in found] == [chr(ord("A") + n) for n in range(len(found))]
    return tuple(text for _, text in found) if in_order and len(found) > 1 else ()


def chosen(reply: str, choices: Sequence[str]) -> int | None:
    """Which choice a reply takes, counted from 0, or None: by its text, its letter or within it.

    A choice may carry its letter (`B. the ball`), else they are lettered in order. A reply that
    names several is none, unless one of the names is the longer form of the others.
    """
    letters, texts = _lettered(choices)
    said = tokens(reply)
    equal = [at for at, text in enumerate(texts) if said and said == text]
    if len(equal) == 1:
        return equal[0]
    letter = _letter_of(without_markers(reply), texts)
    if letter is not None and letter in letters:
        return letters.index(letter)
    within = [at for at, text in enumerate(texts) if _holds(said, text)]
    longest = [at for at in within if all(_holds(texts[at], texts[other]) for other in within)]
    return longest[0] if len(longest) == 1 else None


def _lettered(choices: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """Letters and words of the choices."""
    own = [_LETTERED.match(one) for one in choices]
    in_order = [chr(ord("A") + at) for at in range(len(choices))]
    if all(own):
        given = [match.group(1).upper() for match in own if match]
        if given == in_order:
            return given, [tokens(_LETTERED.sub("", one)) for one in choices]
    return in_order, [tokens(one) for one in choices]


def _letter_of(reply: str, texts: Sequence[Sequence[str]]) -> str | None:
    alone = _LETTER_ALONE.match(reply) or _LETTERED.match(reply)
    if alone:
        return alone.group(1).upper()
    named = _LETTER_NAMED.search(reply)
    if named is None:
        return None
    letter, rest = named.group(1) or named.group(2), reply[named.end() :]
    return None if _is_article(letter, rest, texts) else letter.upper()


def _is_article(letter: str, rest: str, texts: Sequence[Sequence[str]]) -> bool:
    """Whether the letter A is that of "the answer is a star", not of "the answer is A"."""
    if letter not in "aA" or not re.match(r"\s+\w", rest):
        return False
    after = tokens(rest)
    return letter == "a" or any(text and after[: len(text)] == list(text) for text in texts)


def _holds(text: Sequence[str], part: Sequence[str]) -> bool:
    return bool(part) and any(
        list(text[at : at + len(part)]) == list(part) for at in range(len(text) - len(part) + 1)
    )


# ---------------------------------------------------------------- captions

_PACKAGES = ("rouge_score", "sacrebleu")
_ENGLISH = "13a"  # sacrebleu's tokenizer for scripts with spaces


class _Words:
    """rouge-score's own tokens are those of ASCII alone; for ASCII these are the same."""

    def tokenize(self, text: str) -> list[str]:
        plain = unicodedata.normalize("NFKC", text).lower()
        return _WORD.findall(_CHARACTER.sub(r" \1 ", plain))


def check_packages() -> None:
    """Raises MissingExtra, with the command, where what scores captions is not installed."""
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingExtra(
            f"captions cannot be scored: {' and '.join(missing)} not installed; "
            "uv pip install 'vidqa[train]'"
        )


@cache
def _rouge() -> Any:
    check_packages()
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], tokenizer=_Words())


def rouge_l(reply: str, expected: str) -> float:
    """ROUGE-L's F measure (Lin 2004), by rouge-score, without stemming."""
    scores = _rouge().score(without_markers(expected), without_markers(reply))
    return float(scores["rougeL"].fmeasure)


@cache
def _bleu(tokenizer: str) -> Any:
    check_packages()
    from sacrebleu.metrics.bleu import BLEU

    return BLEU(tokenize=tokenizer)


def bleu_counts(reply: str, expected: str) -> tuple[float, ...]:
    """What a reply adds to corpus BLEU: matches and n-grams of 1 to 4 words, and two lengths."""
    wanted = without_markers(expected).strip()
    said = without_markers(reply).strip()
    found = _bleu(_tokenizer_for(wanted)).corpus_score([said], [[wanted]])
    return (*map(float, found.counts), *map(float, found.totals), found.sys_len, found.ref_len)


def _tokenizer_for(text: str) -> str:
    """sacrebleu's, by the script: characters for Japanese, as MeCab is no part of it."""
    if _HAS_KANA.search(text):
        return "char"
    return "zh" if _CHARACTER.search(text) else _ENGLISH


def bleu(sums: Array) -> Array:
    """Corpus BLEU (Papineni et al. 2002) of summed `bleu_counts`, by sacrebleu's formula."""
    compute = _bleu(_ENGLISH).compute_bleu  # of the counts alone, whatever the tokenizer

    def one(row: Array) -> float:
        counts = [int(value) for value in row]
        matches, totals = counts[:4], counts[4:8]
        score = compute(matches, totals, counts[8], counts[9], smooth_method="exp")
        return float(score.score) / 100

    return np.apply_along_axis(one, -1, sums)


# ---------------------------------------------------------------- boxes

Thing = tuple[str, Box]


def box_iou(one: Box, other: Box) -> float:
    """Intersection over union of two boxes in the same unit."""
    width = min(one.right, other.right) - max(one.left, other.left)
    height = min(one.bottom, other.bottom) - max(one.top, other.top)
    shared = max(0.0, width) * max(0.0, height)
    union = _area(one) + _area(other) - shared
    return shared / union if union > 0 else 0.0


def _area(box: Box) -> float:
    return max(0.0, box.right - box.left) * max(0.0, box.bottom - box.top)


def box_scores(true: Sequence[Thing], found: Sequence[Thing]) -> tuple[float, float]:
    """(mean IoU, share with an IoU of at least a half) of the pairs that fit best together.

    Of one true box and one found, these are the usual IoU and accuracy@0.5. A box that is missed
    and one that is invented count as a pair without overlap. Where both are named, the names must
    be the same. Nothing found where there is nothing is right.
    """
    if not true and not found:
        return 1.0, 1.0
    rows, columns = (true, found) if len(true) <= len(found) else (found, true)
    gains = [[_pair_iou(row, column) for column in columns] for row in rows]
    ious = [gains[row][column] for row, column in enumerate(assign(gains))]
    return sum(ious) / len(columns), sum(one >= HIT_IOU for one in ious) / len(columns)


def _pair_iou(one: Thing, other: Thing) -> float:
    names = tokens(one[0]), tokens(other[0])
    return 0.0 if all(names) and names[0] != names[1] else box_iou(one[1], other[1])


def assign(gains: Sequence[Sequence[float]]) -> list[int]:
    """For each row a column of its own, so that the sum is the largest; rows <= columns.

    Kuhn's Hungarian method with potentials, O(rows^2 * columns) (Jonker and Volgenant 1987).
    """
    count = len(gains[0]) if gains else 0
    row_cost, column_cost = [0.0] * (len(gains) + 1), [0.0] * (count + 1)
    row_of = [0] * (count + 1)  # 1-based; column 0 holds the row that is being placed
    for row in range(1, len(gains) + 1):
        row_of[0], column = row, 0
        least, came_from = [math.inf] * (count + 1), [0] * (count + 1)
        done = [False] * (count + 1)
        while row_of[column]:
            done[column] = True
            here, step, after = row_of[column], math.inf, 0
            for other in range(1, count + 1):
                if done[other]:
                    continue
                cost = -gains[here - 1][other - 1] - row_cost[here] - column_cost[other]
                if cost < least[other]:
                    least[other], came_from[other] = cost, column
                if least[other] < step:
                    step, after = least[other], other
            for other in range(count + 1):
                if done[other]:
                    row_cost[row_of[other]] += step
                    column_cost[other] -= step
                else:
                    least[other] -= step
            column = after
        while column:
            row_of[column], column = row_of[came_from[column]], came_from[column]
    placed = [0] * len(gains)
    for column, row in enumerate(row_of[1:]):
        if row:
            placed[row - 1] = column
    return placed


# ---------------------------------------------------------------- comparing

Combine = Callable[[Array], Array]


def mean(sums: Array) -> Array:
    """Summed (value, 1) become the mean of the values."""
    return np.asarray(sums[..., 0] / np.maximum(sums[..., 1], 1))


@dataclass(frozen=True, slots=True)
class Figure:
    """One measure on `n` questions of `groups` videos, and its 95 % interval.

    `low` and `high` are NaN where there are too few groups to say anything.
    """

    value: float
    n: int
    groups: int
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """The same measure of base and adapter; `difference` is the adapter's minus the base's.

    Where there is no adapter, there is the base's figure alone.
    """

    base: Figure
    adapter: Figure | None = None
    difference: Figure | None = None


def figure(
    scores: Array,
    groups: Sequence[Hashable],
    combine: Combine = mean,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Figure:
    """A measure with its interval; see `compare`. `scores` is float64 (N, K)."""
    sums, counts = _by_group(scores, groups), _draws(groups, resamples, seed)
    return _figure(combine(sums.sum(0)), combine(counts @ sums), len(scores), len(sums))


def compare(
    base: Array,
    adapter: Array,
    groups: Sequence[Hashable],
    combine: Combine = mean,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Comparison:
    """Base and adapter on the same N questions, with the interval of their difference.

    `base` and `adapter` are float64 (N, K), what each question adds to the measure; `combine`
    makes the measure of their sums. The interval is the paired bootstrap's: both models are scored
    on the same resamples (Koehn 2004, "Statistical Significance Tests for Machine Translation
    Evaluation"), and its ends are percentiles (Efron and Tibshirani 1993, chapter 13). Whole groups
    are drawn, as questions of one video are no independent evidence (Davison and Hinkley 1997,
    section 3.8).
    """
    sums = _by_group(base, groups), _by_group(adapter, groups)
    counts = _draws(groups, resamples, seed)
    values = [combine(one.sum(0)) for one in sums]
    drawn = [combine(counts @ one) for one in sums]
    shape = len(base), len(sums[0])
    return Comparison(
        _figure(values[0], drawn[0], *shape),
        _figure(values[1], drawn[1], *shape),
        _figure(values[1] - values[0], drawn[1] - drawn[0], *shape),
    )


def _by_group(scores: Array, groups: Sequence[Hashable]) -> Array:
    """Scores summed over each group, float64 (G, K)."""
    places = {name: at for at, name in enumerate(dict.fromkeys(groups))}
    sums = np.zeros((len(places), scores.shape[1]))
    np.add.at(sums, [places[one] for one in groups], scores)
    return sums


def _draws(groups: Sequence[Hashable], resamples: int, seed: int) -> Array:
    """How often each group is in each resample, float64 (R, G)."""
    count = len(set(groups))
    rng = np.random.default_rng(seed)
    return rng.multinomial(count, np.full(count, 1 / count), size=resamples).astype(np.float64)


def _figure(value: Array, drawn: Array, n: int, groups: int) -> Figure:
    if groups < 2:
        return Figure(float(value), n, groups, math.nan, math.nan)
    edges = (1 - COVERED) / 2, (1 + COVERED) / 2
    low, high = (float(one) for one in np.quantile(drawn, edges))
    return Figure(float(value), n, groups, low, high)
