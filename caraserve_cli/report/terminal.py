"""The summary of a report for people at a terminal, 80 columns wide or in a log.

Knows the schema of report.json and nothing of how it came about; computes no metric.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from caraserve_cli.perf.step_predictor import LEARNED
from caraserve_cli.report.run_facts import printable

MAX_ADAPTERS_SHOWN = 20
MAX_REPLICAS_SHOWN = 16

# A report as it was read from JSON: only its schema says what is where.
Json = Mapping[str, Any]

_TIMES = (("TTFT", "ttft_ms"), ("TPOT", "tpot_ms"), ("latency", "latency_ms"), ("queue", "queue_ms"))
_COLUMNS = ("mean", "p50", "p90", "p95", "p99", "max")
_UNDEFINED = "-"


def render_summary(report: Json, console: Console, written: Sequence[Path] = ()) -> None:
    """Print headline, latencies, adapters and details of `report`, then the paths that the run wrote."""
    for line in [*_headline(report), *_failure_lines(report)]:
        _print_line(console, line)
    if report["requests"]["answered"]:
        console.print("", _times_table(report["times"]))
        console.print("", _adapters_table(_busiest(report["by_adapter"])))
        hidden = len(report["by_adapter"]) - MAX_ADAPTERS_SHOWN
        if hidden > 0:
            _print_line(console, f"The {MAX_ADAPTERS_SHOWN} busiest; {hidden:,} more in report.json.")
        console.print()
    for line in _details(report):
        _print_line(console, line)
    if written:
        _print_line(console, "Written:")
    for path in written:
        _print_line(console, f"  {path}")


def format_duration(seconds: float) -> str:
    """`4.2 s` below a minute, `3:05` below an hour, `2:03:05` above."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def format_share(value: float | None) -> str:
    """A share of 0 to 1 in percent; 100.0% only when nothing is missing."""
    if value is None:
        return _UNDEFINED
    return f"{min(value, 0.999) if value < 1 else value:.1%}"


def _headline(report: Json) -> list[str]:
    """How it went, what matters most first."""
    run, throughput = report["run"], report["throughput"]
    lines = [_outcome(report)]
    if run["resumed"]:
        lines.append(
            "Resumed: counts, distributions, deadlines and slowest requests cover all sessions; "
            "rates, timeline and cold starts this one only."
        )
    slo, exact = report["slo"], report["exact_match"]
    if slo["carried"]:
        lines.append(
            f"SLO attainment {format_share(slo['attainment'])} ({slo['attained']:,} of {slo['carried']:,})"
            f"{' in all sessions' if run['resumed'] else ''}, "
            f"goodput {_number(throughput['goodput_requests_per_s'])} requests/s"
            f"{' in this one' if run['resumed'] else ''}"
        )
    if throughput["answered"]:
        lines.append(
            f"{_number(throughput['output_tokens_per_s'])} output tokens/s, "
            f"{_number(throughput['total_tokens_per_s'])} total tokens/s, "
            f"{_number(throughput['requests_per_s'])} requests/s"
        )
    if exact is not None:
        lines.append(
            f"Exact match {format_share(exact['accuracy'])} ({exact['right']:,} of {exact['scored']:,})"
        )
    if num_retries := report["engine"]["memory_retries"]:
        lines.append(
            f"Device memory ran out in {num_retries:,} step{'s' * (num_retries > 1)}; smaller ones followed. "
            "A lower --gpu-memory leaves steps more."
        )
    return lines


def _outcome(report: Json) -> str:
    """How many rows came to what, and in what time; of a resumed run that of its last session."""
    run, requests = report["run"], report["requests"]
    line = f"{requests['answered']:,} answered, {requests['failed']:,} failed"
    codes = ", ".join(f"{code}: {n:,}" for code, n in requests["failed_by_code"].items())
    codes = f" ({codes})" if codes else ""
    times = f"in {format_duration(run['duration_s'])}, after {format_duration(run['startup_s'])} of start-up"
    if run["resumed"]:
        line += f"{codes}; {report['throughput']['answered']:,} answered in this session, {times}"
    else:
        line += f" {times}{codes}"
    return f"{line}, interrupted" if run["interrupted"] else line


def _failure_lines(report: Json) -> list[str]:
    """What was wrong with the first failed row of each code."""
    lines = []
    for entry in report["failures"]:
        row = f"line {entry['line']}" if entry["id"] is None else f"line {entry['line']}, id {entry['id']}"
        lines.append(f"  {entry['code']}, {row}: {entry['message']}")
    return ["The first failed row of each code; all are in errors.jsonl:", *lines] if lines else []


def _details(report: Json) -> list[str]:
    """What ran where, and how adapters and predictions did."""
    run = report["run"]
    link_gbps = run["emulated_link_gbps"]
    link = "" if link_gbps is None else f", emulated link: {link_gbps:g} GB/s"
    return [
        f"{run['base']}, {run['weights']} weights, {run['dtype']} on {run['device']}{link}",
        *([] if run["arrival"] is None else [f"Arrivals: {run['arrival']}"]),
        *_fleet_lines(report["fleet"]),
        *_cold_start_lines(report["cold_starts"]),
        *prediction_lines(report),
    ]


def _fleet_lines(fleet: Json | None) -> list[str]:
    """Nothing where one replica answered in the process itself."""
    if fleet is None:
        return []
    replicas = fleet["replicas"]
    answered = ", ".join(f"{replica['answered']:,}" for replica in replicas[:MAX_REPLICAS_SHOWN])
    more = ", …" if len(replicas) > MAX_REPLICAS_SHOWN else ""
    lines = [
        f"{len(replicas):,} replica{'s' * (len(replicas) > 1)} answered {answered}{more}; "
        f"placement {fleet['placement']}, {fleet['models']} models"
    ]
    if num_deaths := sum(replica["deaths"] for replica in replicas):
        lines.append(
            f"Replicas died: {num_deaths:,}, replaced: {fleet['replaced_replicas']:,}, "
            f"{fleet['requests_placed_again']:,} requests placed again"
        )
    dead = [replica for replica in replicas if replica.get("death_reasons")][:MAX_REPLICAS_SHOWN]
    return lines + [f"  {replica['name']} died because {replica['death_reasons'][-1]}" for replica in dead]


def _cold_start_lines(cold: Json) -> list[str]:
    """Nothing where no request names an adapter."""
    if not cold["requests_with_adapter"]:
        return []
    lines = []
    if cold["hit_rate"] is not None:
        lines.append(
            f"Adapters on the device when asked for: {format_share(cold['hit_rate'])} "
            f"({cold['hits']:,} of {cold['requests_with_adapter']:,})"
        )
    if cold["bytes_moved"]:
        ways = ", ".join(f"{strategy}: {n:,}" for strategy, n in cold["loads_by_strategy"].items())
        lines.append(f"{cold['loads']:,} loads ({ways}), {cold['bytes_moved'] / 1e6:,.1f} MB moved")
    if cold["others_stalled_ms"]:
        lines.append(
            f"Steps stood still for adapters {_number(cold['stall_ms'])} ms, "
            f"other requests in them {_number(cold['others_stalled_ms'])} ms in all"
        )
    if cold["assists"]:
        assists = f"CPU assists: {cold['assists']:,}, too late: {cold['failed_assists']:,}"
        # Reports of earlier versions do not have it.
        spared = cold.get("spared_loads")
        lines.append(f"{assists}, loads spared: {spared:,}" if spared else assists)
    if num_lost := cold["lost_workers"]:
        lines.append(f"CPU workers lost: {num_lost:,}")
    return lines


def prediction_lines(report: Json) -> list[str]:
    """Nothing where there was no step, or the report is older than predictions; nor where they were learned
    on line, by which nothing is decided."""
    predictions = report.get("step_predictions")
    if not predictions or predictions["source"] in (None, LEARNED):
        return []
    left_out = ", ".join(f"{count:,} {reason}" for reason, count in predictions["unpredicted"].items())
    lines = [f"Steps whose time was not predicted: {left_out}"] if left_out else []
    if not predictions["steps"]:
        return lines
    by_kind = ", ".join(
        f"{kind} {format_share(errors['median_error'])} of {errors['steps']:,}"
        for kind, errors in predictions["by_kind"].items()
    )
    return [
        f"Step times predicted ({predictions['source']}): median error "
        f"{format_share(predictions['median_error'])}, p95 {format_share(predictions['p95_error'])} "
        f"over {predictions['steps']:,} steps ({by_kind})",
        *lines,
    ]


def _times_table(times: Json) -> Table:
    table = _table("Time, ms")
    for column in _COLUMNS:
        table.add_column(column, justify="right", no_wrap=True)
    for label, key in _TIMES:
        table.add_row(label, *(_number(times[key][column]) for column in _COLUMNS))
    return table


def _adapters_table(adapters: Sequence[Json]) -> Table:
    table = _table("Adapter")
    headings = (
        "LoRA\nrank",
        "re-\nquests",
        "output\ntokens",
        "TTFT\np50 ms",
        "TTFT\np99 ms",
        "SLO\nmet",
        "exact\nmatch",
    )
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for adapter in adapters:
        ttft, exact = adapter["times"]["ttft_ms"], adapter["exact_match"]
        table.add_row(
            Text(_adapter_name(adapter["adapter"])),
            _UNDEFINED if adapter["lora_rank"] is None else str(adapter["lora_rank"]),
            f"{adapter['answered']:,}",
            f"{adapter['completion_tokens']:,}",
            _number(ttft["p50"]),
            _number(ttft["p99"]),
            format_share(adapter["slo_of_answered"]["attainment"]),
            _UNDEFINED if exact is None else f"{exact['right']:,}/{exact['scored']:,}",
        )
    return table


def _table(first_heading: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False)
    # Long names continue on the next line: a name cut short could be another adapter's.
    table.add_column(first_heading, overflow="fold")
    return table


def _busiest(adapters: Sequence[Json]) -> list[Json]:
    """The adapters with most requests, in that order; equal ones keep the report's order."""
    return sorted(adapters, key=lambda adapter: -int(adapter["answered"]))[:MAX_ADAPTERS_SHOWN]


def _adapter_name(adapter: str | None) -> str:
    return "(base)" if adapter is None else adapter


def _number(value: float | None) -> str:
    if value is None:
        return _UNDEFINED
    return f"{value:,.1f}" if abs(value) < 1000 else f"{value:,.0f}"


def _print_line(console: Console, line: str) -> None:
    """One line as it stands: no markup, no cutting, paths stay whole for copying."""
    console.print(Text(printable(line)), soft_wrap=True)
