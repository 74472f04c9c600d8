"""Contact sheets: what was found or answered, with its pictures, as one HTML page.

    page("3 moments", [of_search(query, shown)])            vidqa search --html
    page(question, [of_answer(answer, shown)])              vidqa ask --html
    page("Playground", sections, summary=["7 of 8 right"])  the demo
    Section(question, shown, told=(Told("base", reply),))   several answers to one question

A page stands alone: pictures are inline, there is no script, and its content security policy
forbids whatever else. Every text is escaped: names, subtitles and answers come from files and
models. Only strings are made here; pictures come with the moments, and the caller writes the file.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import PurePath
from typing import TYPE_CHECKING

from vidqa.prompt import clock, time_range
from vidqa.types import Answer, Picture, ShownMoment

if TYPE_CHECKING:
    from jinja2 import Template

_MARKER = re.compile(r"\[(\d+)\]")


@dataclass(frozen=True, slots=True)
class Told:
    """What one of several says to the same question; `score`, from 0 to 1, where it is known."""

    name: str
    text: str
    score: float | None = None


@dataclass(frozen=True, slots=True)
class Section:
    """One query or question with its moments.

    `answer` is None for a search. `cited` are the numbers of the moments that the answer rests on.
    `right` says whether an answer is known to be right, and `expected` what it should have been.
    `facts` are short remarks, such as the model and the time it took. `told` are the answers where
    there are several, `table` are rows of cells, the header first. Where moments were not found by
    a search, `scored` is False.
    """

    title: str
    shown: tuple[ShownMoment, ...]
    answer: str | None = None
    cited: tuple[int, ...] = ()
    right: bool | None = None
    expected: str | None = None
    facts: tuple[str, ...] = field(default=())
    told: tuple[Told, ...] = ()
    table: tuple[tuple[str, ...], ...] = ()
    scored: bool = True


def of_search(query: str, shown: Sequence[ShownMoment]) -> Section:
    return Section(title=query, shown=tuple(shown))


def of_answer(
    answer: Answer,
    shown: Sequence[ShownMoment],
    *,
    right: bool | None = None,
    expected: str | None = None,
) -> Section:
    """An answer with the moments as the model was shown them."""
    seconds = sum(answer.timings_ms.values()) / 1000
    frames = sum(len(one.pictures) for one in shown)
    return Section(
        title=answer.question,
        shown=tuple(shown),
        answer=answer.answer,
        cited=tuple(citation.n for citation in answer.citations),
        right=right,
        expected=expected,
        facts=(answer.model, f"{frames} frames", f"{seconds:.1f} s"),
    )


def page(title: str, sections: Sequence[Section], summary: Sequence[str] = ()) -> str:
    """The whole page; `summary` are lines under its title."""
    views = [_view(number, section) for number, section in enumerate(sections, start=1)]
    return template(_PAGE).render(title=title, summary=summary, sections=views)


# ---------------------------------------------------------------- what the template is given


def _view(number: int, section: Section) -> dict[str, object]:
    numbers = {one.n for one in section.shown}
    best = max((one.moment.score for one in section.shown), default=0.0)
    return {
        "number": number,
        "section": section,
        "answer": _parts(section.answer or "", numbers),
        "moments": [_moment_view(one, section, best) for one in section.shown],
    }


def _parts(answer: str, numbers: set[int]) -> list[tuple[str, int | None]]:
    """The answer's text in pieces, each with the number of the moment that a marker names."""
    pieces = _MARKER.split(answer)
    parts: list[tuple[str, int | None]] = []
    for place, piece in enumerate(pieces):
        if place % 2 == 0:
            parts.append((piece, None))
        elif int(piece) in numbers:
            parts.append((piece, int(piece)))
        else:
            parts.append((f"[{piece}]", None))
    return [part for part in parts if part[0]]


def _moment_view(one: ShownMoment, section: Section, best: float) -> dict[str, object]:
    moment = one.moment
    name = PurePath(moment.video).name
    return {
        "n": one.n,
        "name": name,
        "path": moment.video,
        "range": time_range(moment.start_seconds, moment.end_seconds),
        "score": f"{moment.score:.3f}",
        "share": round(100 * max(moment.score, 0) / best) if best > 0 else 0,
        "cited": one.n in section.cited,
        "texts": [span.text for span in moment.texts],
        "pictures": [_picture_view(name, picture) for picture in one.pictures],
    }


def _picture_view(name: str, picture: Picture) -> dict[str, str]:
    tenths = f"{clock(picture.seconds)}.{int(picture.seconds * 10) % 10}"
    return {
        "source": "data:image/jpeg;base64," + base64.b64encode(picture.jpeg).decode("ascii"),
        "at": tenths,
        "alt": f"{name} at {tenths}",
    }


@cache
def template(source: str) -> Template:
    """A page that stands alone, from all that follows `_HEAD`; what is filled in is escaped."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(_HEAD + source)


# Of every page: it asks for nothing from elsewhere, and follows the reader's light or dark.
_HEAD = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<style>
:root {
  --page: #f5f5f3; --card: #ffffff; --line: #dfdfda; --text: #1c1c1a; --soft: #66665f;
  --accent: #2456c7; --tint: #e9effc; --good: #1a7340; --bad: #b3261e;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #131416; --card: #1d1f22; --line: #33363b; --text: #ececea; --soft: #a0a39f;
    --accent: #8fb0ff; --tint: #22304f; --good: #6fd197; --bad: #ff8f86;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 2rem clamp(1rem, 4vw, 3rem) 4rem; max-width: 80rem;
  background: var(--page); color: var(--text);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif;
}
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0; overflow-wrap: anywhere; }
</style>
"""

_PAGE = """\
<title>{{ title }}</title>
<style>
h2 { font-size: 1.2rem; line-height: 1.35; margin: 0; overflow-wrap: anywhere; }
h3 { font-size: .95rem; font-weight: 600; margin: 0; overflow-wrap: anywhere; }
a { color: var(--accent); }
.summary { margin: .25rem 0 0; color: var(--soft); }
section { margin-top: 2.25rem; }
.answer { margin: .75rem 0 0; font-size: 1.05rem; white-space: pre-wrap; overflow-wrap: anywhere; }
.answer a, .badge {
  display: inline-block; min-width: 1.45em; padding: 0 .35em; border-radius: .4em;
  background: var(--tint); color: var(--accent); font-size: .85em; font-weight: 600;
  text-align: center; text-decoration: none;
}
.answer a { margin: 0 .1em; }
.facts { margin: .4rem 0 0; color: var(--soft); font-size: .85rem; overflow-wrap: anywhere; }
.right { color: var(--good); font-weight: 600; }
.wrong { color: var(--bad); font-weight: 600; }
.moment {
  margin-top: 1rem; padding: .9rem 1rem 1rem; background: var(--card);
  border: 1px solid var(--line); border-radius: .75rem; scroll-margin-top: 1rem;
}
.moment.cited { border-color: var(--accent); }
.moment:target { box-shadow: 0 0 0 3px var(--tint); }
.moment header { display: flex; flex-wrap: wrap; gap: .2rem .8rem; align-items: baseline; }
.times { font-variant-numeric: tabular-nums; color: var(--soft); }
.score {
  margin-left: auto; display: flex; align-items: center; gap: .5rem;
  color: var(--soft); font-size: .85rem; font-variant-numeric: tabular-nums;
}
.bar { width: 4rem; height: .35rem; border-radius: .2rem; background: var(--line); }
.bar i { display: block; height: 100%; border-radius: inherit; background: var(--accent); }
.strip {
  display: flex; gap: .6rem; margin: .7rem 0 0; padding: 0 0 .4rem; list-style: none;
  overflow-x: auto; scroll-snap-type: x proximity;
}
.strip li { flex: none; scroll-snap-align: start; }
figure { margin: 0; }
.strip img {
  display: block; height: 9rem; width: auto; max-width: 80vw; border-radius: .4rem;
  background: var(--line); object-fit: contain; cursor: zoom-in;
}
.strip img:focus { height: min(23rem, 70vh); cursor: default; outline: 3px solid var(--tint); }
figcaption {
  margin-top: .2rem; color: var(--soft); font-size: .78rem; font-variant-numeric: tabular-nums;
}
blockquote {
  margin: .6rem 0 0; padding-left: .8rem; border-left: 3px solid var(--line);
  color: var(--soft); font-size: .9rem; overflow-wrap: anywhere;
}
.cells { margin: .75rem 0 0; border-collapse: collapse; display: block; overflow-x: auto; }
.cells th, .cells td {
  padding: .3rem .9rem .3rem 0; border-bottom: 1px solid var(--line); text-align: left;
  vertical-align: top; overflow-wrap: anywhere; font-variant-numeric: tabular-nums;
}
.cells th { color: var(--soft); font-weight: 600; white-space: nowrap; }
.cells td { white-space: pre-wrap; }
@media (max-width: 36rem) {
  body { padding-top: 1.25rem; }
  .score { margin-left: 0; }
  .strip img { height: 7rem; }
}
@media print { .moment { break-inside: avoid; } .strip { flex-wrap: wrap; } }
</style>
</head>
<body>
<h1>{{ title }}</h1>
{% for line in summary %}
<p class="summary">{{ line }}</p>
{% endfor %}
{% for view in sections %}
{% set section = view.section %}
<section>
{% if section.title != title %}
<h2>{{ section.title }}</h2>
{% endif %}
{% if section.answer is not none %}
<p class="answer">{% for text, n in view.answer -%}
{% if n is none %}{{ text }}{% else -%}
<a href="#m{{ view.number }}-{{ n }}">{{ text }}</a>
{%- endif %}
{%- endfor %}</p>
{% endif %}
{% if section.right is not none %}
<p class="facts"><span class="{{ 'right' if section.right else 'wrong' }}">
{{- 'right' if section.right else 'wrong' }}</span>
{% if section.expected %} · expected: {{ section.expected }}{% endif %}</p>
{% endif %}
{% if section.facts %}
<p class="facts">{{ section.facts | join(' · ') }}</p>
{% endif %}
{% if section.table %}
<table class="cells">
{% for line in section.table %}
{% set tag = 'th' if loop.first else 'td' %}
<tr>{% for cell in line %}<{{ tag }}>{{ cell }}</{{ tag }}>{% endfor %}</tr>
{% endfor %}
</table>
{% endif %}
{% if section.told %}
<table class="cells">
{% for one in section.told %}
<tr><th scope="row">{{ one.name }}</th><td>{{ one.text }}</td>
<td>{% if one.score is not none %}<span class="{{ 'right' if one.score >= 0.5 else 'wrong' }}">
{{- '%.2f' % one.score }}</span>{% endif %}</td></tr>
{% endfor %}
</table>
{% endif %}
{% for moment in view.moments %}
<article class="moment{{ ' cited' if moment.cited }}" id="m{{ view.number }}-{{ moment.n }}">
<header>
<span class="badge">{{ moment.n }}</span>
<h3 title="{{ moment.path }}">{{ moment.name }}</h3>
<span class="times">{{ moment.range }}</span>
{% if moment.cited %}<span class="badge">cited</span>{% endif %}
{% if section.scored %}
<span class="score" title="cosine of the query and the best frame">
<span class="bar" aria-hidden="true"><i style="width: {{ moment.share }}%"></i></span>
{{ moment.score }}</span>
{% endif %}
</header>
<ul class="strip">
{% for picture in moment.pictures %}
<li><figure>
<img src="{{ picture.source }}" alt="{{ picture.alt }}" tabindex="0">
<figcaption>{{ picture.at }}</figcaption>
</figure></li>
{% endfor %}
</ul>
{% for text in moment.texts %}
<blockquote>{{ text }}</blockquote>
{% endfor %}
</article>
{% endfor %}
</section>
{% endfor %}
</body>
</html>
"""
