"""The result of a serving benchmark as text for a terminal. Knows no measuring and no files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from caraserve_cli.bench.cold_starts import link_words
from caraserve_cli.bench.comparison import Spread, Verdict
from caraserve_cli.bench.engine_terminal import all_met, cannot_tell, circumstances, missed, verdict_text
from caraserve_cli.bench.serving_recipe import STEP_BESIDE_LOAD, ServingRequirement
from caraserve_cli.bench.serving_result import Judged, ServingCaseResult, ServingResult
from caraserve_cli.bench.terminal import plain_table

_WORDS = {
    "mean_ttft": "mean TTFT",
    "p50_ttft": "p50 TTFT",
    "p99_ttft": "p99 TTFT",
    "mean_tpot": "mean TPOT",
    "p99_tpot": "p99 TPOT",
    "mean_latency": "mean latency",
    "p99_latency": "p99 latency",
    "longest_step": "longest decode step",
    STEP_BESIDE_LOAD: "p95 decode step beside a load",
}
# Measures that have a column in a case's table, with its heading and its decimals.
_COLUMNS = {
    "mean_ttft": ("TTFT", 1),
    "p50_ttft": ("p50", 1),
    "p99_ttft": ("p99", 1),
    "mean_tpot": ("TPOT", 2),
    "p99_tpot": ("p99", 2),
    "mean_latency": ("latency", 0),
    "p99_latency": ("p99", 0),
    "longest_step": ("step", 1),
}


def render_serving(result: ServingResult) -> RenderableType:
    """The circumstances, each case's table of strategies, what is required, the verdict's lines."""
    parts: list[RenderableType] = [circumstances(result.facts, "requests that arrive in time")]
    for each in result.cases:
        parts += ["", _case_line(each), _strategies_table(each)]
    required = _required_table(result)
    if required.row_count:
        parts += ["", required]
    return Group(*parts, "", *_verdict_lines(result))


def _case_line(result: ServingCaseResult) -> Text:
    case = result.case
    load = "" if result.load is None else f", {result.load:.0%} of saturation"
    return Text(
        f"{case.name}: {result.rate_per_s:.3g} requests/s{load}, {case.num_requests} requests, "
        f"{case.num_adapters} adapters, {case.prompt_tokens} in and {case.output_tokens} out, "
        f"{link_words(case.link_gbps)}; ms, medians of the repeats"
    )


def _strategies_table(result: ServingCaseResult) -> Table:
    headings = [heading for heading, _ in _COLUMNS.values()]
    table = plain_table("", *headings, "p95 beside load", "SLO", "tokens/s", "cold starts", "")
    for each in result.strategies:
        step = each.over_cached.get(STEP_BESIDE_LOAD)
        table.add_row(
            each.strategy,
            *(_median(each.measured_ms[name], f",.{decimals}f") for name, (_, decimals) in _COLUMNS.items()),
            _median(step, ".2f") + ("x" if step else ""),
            _median(each.slo_attainment, ".0%"),
            _median(each.output_tokens_per_s, ",.0f"),
            _counts(each.cold_starts[0]),
            Text("") if each.kept_up else Text("did not keep up", style="yellow"),
        )
    return table


def _counts(cold_starts: Mapping[str, int]) -> str:
    """Of the first repeat: the most frequent first."""
    ordered = sorted(cold_starts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{count} {how}" for how, count in ordered)


def _required_table(result: ServingResult) -> Table:
    table = plain_table("required", "", "median", "lowest to highest", "95% interval", "bound", "")
    table.columns[1].justify = "left"
    for each in result.cases:
        for judged in each.judged:
            verdict = Verdict.CANNOT_TELL if each.undone else judged.verdict
            table.add_row(
                each.case.name,
                _subject(judged.requirement),
                *_cells(judged),
                _bound(judged.requirement),
                verdict_text(verdict, is_required=True),
            )
    return table


def _subject(required: ServingRequirement) -> str:
    who = required.strategy if required.over is None else f"{required.strategy} / {required.over}"
    return f"{who}, {_WORDS[required.measure]}"


def _cells(judged: Judged) -> list[str]:
    measured, required, interval = judged.measured, judged.requirement, judged.interval
    if measured is None:
        return ["-"] * 3
    return [
        _value(required, measured.median),
        f"{_value(required, measured.lowest)} to {_value(required, measured.highest)}",
        "-" if interval is None else f"{_value(required, interval.low)} to {_value(required, interval.high)}",
    ]


def _value(required: ServingRequirement, value: float) -> str:
    return f"{value:,.1f} ms" if required.over is None else f"{value:.3f}x"


def _bound(required: ServingRequirement) -> str:
    unit = " ms" if required.over is None else "x"
    return f"at {'most' if required.is_at_most else 'least'} {required.bound:g}{unit}"


def _median(spread: Spread | None, form: str) -> str:
    return "-" if spread is None else f"{spread.median:{form}}"


def _verdict_lines(result: ServingResult) -> Iterator[Text]:
    """What keeps the benchmark from passing, one line each; one line if nothing does."""
    for each in result.cases:
        name = each.case.name
        for undone in each.undone:
            yield cannot_tell(f"in '{name}' {undone}")
        for judged in () if each.undone else each.judged:
            subject = f"in '{name}' {_subject(judged.requirement)}"
            if judged.measured is None:
                yield cannot_tell(f"{subject} is not defined in every repeat")
            elif judged.verdict is Verdict.MISSED:
                value = _value(judged.requirement, judged.measured.median)
                yield missed(f"{subject} is {value}; the recipe requires {_bound(judged.requirement)}")
    if result.verdict is Verdict.MET:
        yield all_met()
