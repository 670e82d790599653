"""Metrics, and what the regression gate says of them, as one HTML file that opens offline: a table, and a
plot of every value. Knows no measuring.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from jinja2 import Environment

from caraserve_cli.bench.gate import GateResult
from caraserve_cli.bench.gate_words import (
    allowed,
    extremes_of,
    figure,
    notes,
    verdict_sentence,
    worse_of,
)
from caraserve_cli.bench.judged_metric import Change, JudgedMetric
from caraserve_cli.bench.metric import Direction, Metric
from caraserve_cli.bench.paper import COMPARISON_HEADS, PaperComparison
from caraserve_cli.bench.recording import Recording

_WIDTH, _MARGIN = 260, 8


@dataclass(frozen=True, slots=True, kw_only=True)
class _Dot:
    x: float
    is_before: bool
    title: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    """A line of the table and its plot; places on a plot are in its own units. Where a value is zero, which a
    logarithmic scale has no place for, the plot is empty."""

    name: str
    cells: Sequence[str]
    verdict: str
    dots: Sequence[_Dot]
    interval: tuple[float, float] | None
    limit: float | None
    middle: float | None


def recording_html(
    recording: Recording, remarks: Sequence[str] = (), comparison: PaperComparison | None = None
) -> str:
    """A page of what a paper reports beside ours, and of all metrics; a plot shows the repeats over their
    median."""
    rows = [_recording_row(metric) for metric in recording.metrics]
    return _page(recording, ("median", "lowest to highest"), rows, "", remarks, comparison=comparison)


def _recording_row(metric: Metric) -> _Row:
    row = _Row(
        name=metric.name,
        cells=(figure(metric.median, metric.unit), extremes_of(metric)),
        verdict="",
        dots=(),
        interval=None,
        limit=None,
        middle=None,
    )
    if metric.has_zero:
        return row
    scale = _Scale.of(metric.values, metric.median)
    return replace(row, dots=_dots(scale, metric, is_before=False), middle=scale.place(metric.median))


def gate_html(result: GateResult) -> str:
    """A page of the judged metrics; a plot shows both sides' values, the change's interval and its limit."""
    heads = ("before", "now", "worse by (95%)", "allowed")
    return _page(
        result.recording,
        heads,
        [_gate_row(each) for each in result.judged],
        verdict_sentence(result),
        notes(result),
        result.verdict,
    )


def _gate_row(each: JudgedMetric) -> _Row:
    before, now, metric = each.before, each.now, each.metric
    row = _Row(
        name=metric.name,
        cells=(
            figure(before.median, before.unit),
            "-" if now is None else figure(now.median, now.unit),
            worse_of(each),
            allowed(metric),
        ),
        verdict=each.verdict,
        dots=(),
        interval=None,
        limit=None,
        middle=None,
    )
    if before.has_zero or (now is not None and now.has_zero):
        return row
    # In logarithms a factor is as long to the left as to the right.
    middle = math.exp(sum(map(math.log, before.values)) / len(before.values))
    is_higher = metric.direction is Direction.HIGHER
    limit = middle / (1 + metric.tolerance) if is_higher else middle * (1 + metric.tolerance)
    interval = _interval(each.change, middle, is_higher=is_higher)
    values = [*before.values, *(now.values if now else ()), limit, *(interval or ())]
    scale = _Scale.of(values, middle)
    return replace(
        row,
        dots=[*_dots(scale, before, is_before=True), *(_dots(scale, now, is_before=False) if now else ())],
        interval=None if interval is None else (scale.place(interval[0]), scale.place(interval[1])),
        limit=scale.place(limit),
        middle=scale.place(middle),
    )


def _interval(change: Change | None, middle: float, *, is_higher: bool) -> tuple[float, float] | None:
    """Where the mean is now, in the metric's own unit."""
    if change is None:
        return None
    if is_higher:
        return middle / change.high, middle / change.low
    return middle * change.low, middle * change.high


@dataclass(frozen=True, slots=True)
class _Scale:
    """Logarithmic, from the lowest to the highest value."""

    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float], middle: float) -> _Scale:
        """At least 4% to each side of the middle, so that noise does not look like a change."""
        return cls(min([*values, middle / 1.04]), max([*values, middle * 1.04]))

    def place(self, value: float) -> float:
        share = math.log(value / self.low) / math.log(self.high / self.low)
        return round(_MARGIN + share * (_WIDTH - 2 * _MARGIN), 1)


def _dots(scale: _Scale, metric: Metric, *, is_before: bool) -> list[_Dot]:
    return [
        _Dot(x=scale.place(value), is_before=is_before, title=figure(value, metric.unit))
        for value in metric.values
    ]


def _page(
    recording: Recording,
    heads: Sequence[str],
    rows: Sequence[_Row],
    sentence: str,
    remarks: Sequence[str],
    verdict: str = "",
    comparison: PaperComparison | None = None,
) -> str:
    page = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(_PAGE)
    facts = {"recorded": recording.recorded_at, "commit": recording.commit, **recording.fingerprint}
    return page.render(
        recipe=recording.recipe,
        heads=heads,
        rows=rows,
        sentence=sentence,
        remarks=remarks,
        verdict=verdict,
        comparison=comparison,
        comparison_heads=COMPARISON_HEADS,
        facts={key: value for key, value in {**facts, **recording.versions}.items() if value},
        width=_WIDTH,
    )


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>caraserve bench {{ recipe }}</title>
<style>
:root { color-scheme: light dark; --text: #1d1d1f; --page: #fff; --line: #d8d8dc; --soft: #6b6b70;
  --before: #8a8a90; --now: #0a66c2; --good: #1a7f37; --bad: #cf222e; --open: #9a6700; }
@media (prefers-color-scheme: dark) { :root { --text: #ececf1; --page: #18181b; --line: #3a3a40;
  --soft: #a0a0a8; --before: #8a8a90; --now: #6cb6ff; --good: #57ab5a; --bad: #f47067; --open: #d4a72c; } }
body { font: 15px/1.45 system-ui, sans-serif; color: var(--text); background: var(--page);
  margin: 0 auto; padding: 1.5rem; max-width: 80rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; }
th, td { padding: .35rem .6rem; border-bottom: 1px solid var(--line); text-align: right;
  white-space: nowrap; }
th:first-child, td:first-child { text-align: left; white-space: normal; min-width: 12rem; }
th { color: var(--soft); font-weight: 500; }
.paper :is(th, td):nth-child(-n+3) { text-align: left; white-space: normal; min-width: 5rem; }
.held { color: var(--good); } .regressed { color: var(--bad); } .cannot { color: var(--open); }
dl { display: grid; grid-template-columns: max-content auto; gap: .1rem 1rem; color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; }
.note { color: var(--soft); }
</style>
</head>
<body>
<h1>caraserve bench {{ recipe }}</h1>
{% if sentence %}<p class="{{ verdict.split()[0] }}"><strong>{{ sentence }}</strong></p>{% endif %}
{% for remark in remarks %}<p class="note">{{ remark }}</p>{% endfor %}
{% if comparison %}
<p>{{ comparison.paper.heading }}</p>
<div class="scroll">
<table class="paper">
<tr>{% for head in comparison_heads %}<th>{{ head }}</th>{% endfor %}</tr>
{% for row in comparison.rows %}
<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}
</table>
</div>
<p>What differs:</p>
<ul>{% for difference in comparison.paper.differences %}<li>{{ difference }}</li>{% endfor %}</ul>
{% endif %}
<div class="scroll">
<table>
<tr><th>metric</th>{% if sentence %}<th>verdict</th>{% endif %}
{%- for head in heads %}<th>{{ head }}</th>{% endfor %}<th>values</th></tr>
{% for row in rows %}
<tr><td>{{ row.name }}</td>
{% if sentence %}<td class="{{ row.verdict.split()[0] }}">{{ row.verdict }}</td>{% endif %}
{% for cell in row.cells %}<td>{{ cell }}</td>{% endfor %}
<td><svg width="{{ width }}" height="30" role="img" aria-label="values of {{ row.name }}">
{% if row.middle is not none %}
<line x1="{{ row.middle }}" x2="{{ row.middle }}" y1="2" y2="28" stroke="var(--line)"/>
{% endif %}
{% if row.limit is not none %}
<line x1="{{ row.limit }}" x2="{{ row.limit }}" y1="2" y2="28" stroke="var(--bad)" stroke-dasharray="3 2"/>
{% endif %}
{% if row.interval %}
<line x1="{{ row.interval[0] }}" x2="{{ row.interval[1] }}" y1="21" y2="21" stroke="var(--now)"
  stroke-width="6" stroke-opacity=".35"/>
{% endif %}
{% for dot in row.dots %}
<circle cx="{{ dot.x }}" cy="{{ 9 if dot.is_before else 21 }}" r="3" fill-opacity=".75"
  fill="var({{ '--before' if dot.is_before else '--now' }})"><title>{{ dot.title }}</title></circle>
{% endfor %}
</svg></td></tr>
{% endfor %}
</table>
</div>
{% if sentence %}<p class="note">Grey: the baseline, a dot a run. Blue: now, with the 95% interval of its
mean. Dashed: what the tolerance allows. The scale is logarithmic, and another one in every line.</p>
{% else %}<p class="note">A dot a repeat; the line is the median.</p>{% endif %}
<dl>{% for key, value in facts.items() %}<dt>{{ key }}</dt><dd>{{ value }}</dd>{% endfor %}</dl>
</body>
</html>
"""
