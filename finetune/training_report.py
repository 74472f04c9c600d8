"""What is left to look at after a training: curves as a PNG, and one HTML page that stands alone.

    draw_curves(lines, output / "loss.png")
    (output / "report.html").write_text(page(report))

The page has the look of `vidqa.report`: no script, pictures inline, every text escaped.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vidqa.report import template

Lines = Sequence[Mapping[str, Any]]
# Steps that a smoothed loss looks back on: single batches say little.
_SMOOTH = 0.9


@dataclass(frozen=True, slots=True)
class TrainingReport:
    """What the page tells: tables of names and values, numbers before and after, the commands."""

    title: str
    summary: Sequence[str]
    before: Mapping[str, float]
    after: Mapping[str, float]
    tables: Mapping[str, Mapping[str, object]]
    commands: Sequence[str]
    plan: Sequence[str]
    curves: bytes


def draw_curves(lines: Lines, picture: Path) -> bool:
    """Loss, right tokens and learning rate over the steps; False without matplotlib or lines."""
    trained = [line for line in lines if "loss" in line]
    judged = [line for line in lines if "eval_loss" in line]
    if not trained:
        return False
    try:
        import matplotlib
    except ImportError:
        return False
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (losses, shares, rates) = pyplot.subplots(1, 3, figsize=(13, 3.6))
    steps = [line["step"] for line in trained]
    values = [line["loss"] for line in trained]
    losses.plot(steps, values, color="#2456c7", alpha=0.3, linewidth=1)
    losses.plot(steps, smoothed(values), color="#2456c7", linewidth=1.6, label="training")
    if judged:
        at = [line["step"] for line in judged]
        losses.plot(at, [line["eval_loss"] for line in judged], "o-", color="#b3261e",
                    markersize=3, linewidth=1.3, label="held out")  # fmt: skip
        shares.plot(at, [line["eval_token_accuracy"] for line in judged], "o-", color="#1a7340",
                    markersize=3, linewidth=1.3)  # fmt: skip
    rates.plot(steps, [line["learning_rate"] for line in trained], color="#66665f", linewidth=1.3)
    losses.set_title("loss of the answers' tokens")
    losses.legend(fontsize=8)
    shares.set_title("right tokens, held out")
    shares.set_ylim(0, 1.02)
    rates.set_title("learning rate")
    for axis in (losses, shares, rates):
        axis.set_xlabel("steps")
        axis.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(picture, dpi=90)
    pyplot.close(figure)
    return True


def smoothed(values: Sequence[float]) -> list[float]:
    """A running mean that forgets, without the bias of its start (as Adam's moments)."""
    mean, weight, result = 0.0, 0.0, []
    for value in values:
        mean = _SMOOTH * mean + (1 - _SMOOTH) * value
        weight = _SMOOTH * weight + (1 - _SMOOTH)
        result.append(mean / weight)
    return result


def page(report: TrainingReport) -> str:
    """The whole page."""
    source = base64.b64encode(report.curves).decode("ascii") if report.curves else ""
    names = [name for name in report.after if name in report.before]
    return template(_PAGE).render(report=report, curves=source, names=names)


_PAGE = """\
<title>{{ report.title }}</title>
<style>
h2 { font-size: 1.2rem; line-height: 1.35; margin: 0 0 .6rem; }
.summary { margin: .25rem 0 0; color: var(--soft); overflow-wrap: anywhere; }
section {
  margin-top: 1.5rem; padding: 1rem; background: var(--card);
  border: 1px solid var(--line); border-radius: .75rem; overflow-x: auto;
}
img { display: block; width: 100%; height: auto; background: #ffffff; border-radius: .4rem; }
table { border-collapse: collapse; font-size: .9rem; }
th, td { padding: .2rem 1.2rem .2rem 0; text-align: left; vertical-align: top; }
th { font-weight: 400; color: var(--soft); }
td { font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
thead th { border-bottom: 1px solid var(--line); }
pre { margin: 0; font-size: .85rem; white-space: pre-wrap; overflow-wrap: anywhere; }
.tables {
  display: grid; gap: 0 1.5rem; grid-template-columns: repeat(auto-fit, minmax(22rem, 1fr));
}
@media (max-width: 36rem) { body { padding-top: 1.25rem; } .tables { display: block; } }
@media print { section { break-inside: avoid; } }
</style>
</head>
<body>
<h1>{{ report.title }}</h1>
{% for line in report.summary %}
<p class="summary">{{ line }}</p>
{% endfor %}
{% if names %}
<section>
<h2>Held-out rows, before and after</h2>
<table>
<thead><tr><th></th><th>before</th><th>after</th></tr></thead>
{% for name in names %}
<tr><th>{{ name }}</th><td>{{ '%.4f' % report.before[name] }}</td>
<td>{{ '%.4f' % report.after[name] }}</td></tr>
{% endfor %}
</table>
</section>
{% endif %}
{% if curves %}
<section>
<h2>Curves</h2>
<img src="data:image/png;base64,{{ curves }}" alt="loss, right tokens and learning rate by step">
</section>
{% endif %}
<section>
<h2>Use it</h2>
<pre>{{ report.commands | join('\\n') }}</pre>
</section>
<div class="tables">
{% for title, rows in report.tables.items() %}
<section>
<h2>{{ title }}</h2>
<table>
{% for name, value in rows.items() %}
<tr><th>{{ name }}</th><td>{{ value }}</td></tr>
{% endfor %}
</table>
</section>
{% endfor %}
</div>
{% if report.plan %}
<section>
<h2>The plan it began with</h2>
<pre>{{ report.plan | join('\\n') }}</pre>
</section>
{% endif %}
</body>
</html>
"""
