"""What people see, at 80 columns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from caraserve_cli.report.html import render_html
from caraserve_cli.report.run_facts import RunFacts
from caraserve_cli.report.run_report import build_report
from caraserve_cli.report.summary import RunSummary
from caraserve_cli.report.terminal import format_duration, format_share, render_summary

MakeRow = Callable[..., dict[str, object]]


def rendered(report: dict[str, Any], written: tuple[Path, ...] = ()) -> list[str]:
    console = Console(file=StringIO(), width=80)
    render_summary(report, console, written)
    assert isinstance(console.file, StringIO)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def words(lines: list[str], first: str) -> list[str]:
    """The cells of the one line that begins with `first`."""
    (line,) = [line for line in lines if line.split()[:1] == [first]]
    return line.split()


def test_a_small_run(summary: RunSummary, facts: RunFacts) -> None:
    report = build_report(summary, facts, {"spell": 8, "sort": 2})
    lines = rendered(report, (Path("out/outputs.jsonl"), Path("out/report.json")))
    assert lines[:5] == [
        "6 answered, 2 failed in 4.0 s, after 1.5 s of start-up (invalid_json: 1, unknown_adapter: 1)",
        "SLO attainment 60.0% (3 of 5), goodput 0.8 requests/s",
        "6.0 output tokens/s, 21.0 total tokens/s, 1.5 requests/s",
        "Exact match 80.0% (4 of 5)",
        "",
    ]
    starts = ["Time,", "Adapter", "sample-base,", "Written:"]
    assert [line.split()[0] for line in lines if line.split()[:1] and line.split()[0] in starts] == starts
    assert words(lines, "Time,") == ["Time,", "ms", "mean", "p50", "p90", "p95", "p99", "max"]
    assert words(lines, "TTFT") == ["TTFT", "17.9", "10.0", "40.0", "40.0", "40.0", "40.0"]
    assert words(lines, "spell") == ["spell", "8", "4", "16", "20.0", "40.0", "75.0%", "4/4"]
    assert words(lines, "sort") == ["sort", "2", "1", "4", "5.0", "5.0", "-", "0/1"]
    assert words(lines, "(base)") == ["(base)", "0", "1", "4", "2.5", "2.5", "-", "-"]
    assert lines[-3:] == ["Written:", "  out/outputs.jsonl", "  out/report.json"]


def test_no_line_is_wider_than_the_terminal(make_row: MakeRow, facts: RunFacts) -> None:
    summary = RunSummary()
    name = "a-team-with-a-long-name/summarise-customer-conversations-in-french/checkpoint-12000"
    for _ in range(3):
        summary.add_answer(
            make_row(name, ttft_ms=1_234_567.8, completion_tokens=1_000_000, slo_attained=True)
        )
    lines = rendered(build_report(summary, facts, {name: 128}))
    assert max(len(line) for line in lines) <= 80
    shown = "".join(line.split()[0] for line in lines if line.strip())
    assert name in shown


def test_only_the_busiest_adapters_are_shown(make_row: MakeRow, facts: RunFacts) -> None:
    summary = RunSummary()
    for number in range(1234):
        for _ in range(2 if number >= 1214 else 1):
            summary.add_answer(make_row(f"adapter-{number:04}"))
    lines = rendered(build_report(summary, facts, {}))
    shown = [line.split()[0] for line in lines if line.startswith("adapter-")]
    assert shown == [f"adapter-{number}" for number in range(1214, 1234)]
    assert "The 20 busiest; 1,214 more in report.json." in lines


def test_a_name_is_no_markup(make_row: MakeRow, facts: RunFacts) -> None:
    summary = RunSummary()
    summary.add_answer(make_row("[red]team[/red]"))
    assert words(rendered(build_report(summary, facts, {})), "[red]team[/red]")


def test_a_resumed_and_interrupted_run_says_so(
    make_row: MakeRow, summary: RunSummary, facts: RunFacts
) -> None:
    summary.add_answer(make_row("spell"), restored=True)
    lines = rendered(build_report(summary, replace(facts, resumed=True, interrupted=True), {}))
    assert lines[:3] == [
        "7 answered, 2 failed (invalid_json: 1, unknown_adapter: 1); "
        "6 answered in this session, in 4.0 s, after 1.5 s of start-up, interrupted",
        "Resumed: counts, distributions, deadlines and slowest requests cover all sessions; "
        "rates, timeline and cold starts this one only.",
        "SLO attainment 60.0% (3 of 5) in all sessions, goodput 0.8 requests/s in this one",
    ]


def test_nothing_answered_has_no_tables(facts: RunFacts) -> None:
    summary = RunSummary()
    summary.add_error("invalid_json", carried_bound=False)
    lines = rendered(build_report(summary, replace(facts, duration_s=0.0), {}))
    assert lines == [
        "0 answered, 1 failed in 0.0 s, after 1.5 s of start-up (invalid_json: 1)",
        "sample-base, checkpoint weights, float32 on cpu (2 threads)",
    ]


def test_a_long_path_stays_in_one_piece(summary: RunSummary, facts: RunFacts) -> None:
    path = Path("/" + "/".join(["a long folder name"] * 10)) / "outputs.jsonl"
    assert f"  {path}" in rendered(build_report(summary, facts, {}), (path,))


def test_a_file_gets_no_escape_codes(summary: RunSummary, facts: RunFacts) -> None:
    assert not any("\x1b" in line for line in rendered(build_report(summary, facts, {})))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0.0 s"),
        (4.25, "4.2 s"),
        (59.94, "59.9 s"),
        (59.96, "1:00"),
        (185.2, "3:05"),
        (7385.0, "2:03:05"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"), [(None, "-"), (0.0, "0.0%"), (0.975, "97.5%"), (0.99999, "99.9%"), (1.0, "100.0%")]
)
def test_shares_are_full_only_when_nothing_is_missing(value: float | None, text: str) -> None:
    assert format_share(value) == text


@pytest.mark.parametrize(("num_retries", "told"), [(0, None), (1, "1 step;"), (1234, "1,234 steps;")])
def test_lack_of_device_memory_is_told(
    summary: RunSummary, facts: RunFacts, num_retries: int, told: str | None
) -> None:
    summary.engine.memory_retries = num_retries
    lines = rendered(build_report(summary, facts, {}))
    said = [line for line in lines if line.startswith("Device memory ran out in ")]
    assert len(said) == (told is not None)
    if told is not None:
        assert told in said[0]
        assert "--gpu-memory" in said[0]
        assert len(said[0]) <= 100


def test_the_process_that_gave_arrivals_is_told(summary: RunSummary, facts: RunFacts) -> None:
    told = "Arrivals: poisson, 9 requests/s"
    assert told in rendered(build_report(summary, replace(facts, arrival_process=told[10:]), {}))
    assert not any(line.startswith("Arrivals") for line in rendered(build_report(summary, facts, {})))


def test_an_emulated_link_is_told(summary: RunSummary, facts: RunFacts) -> None:
    lines = rendered(build_report(summary, replace(facts, emulated_link_gbps=3.0), {}))
    assert "sample-base, checkpoint weights, float32 on cpu (2 threads), emulated link: 3 GB/s" in lines


def test_cold_starts_are_told_as_far_as_there_were_any(summary: RunSummary, facts: RunFacts) -> None:
    lines = rendered(build_report(summary, facts, {}))
    assert lines[-1] == "Adapters on the device when asked for: 100.0% (5 of 5)"
    assert not any("loads" in line or "lost" in line or "assists" in line for line in lines)
    engine = summary.engine
    engine.adapter_loads, engine.adapter_bytes = 3, 2_500_000
    engine.loads_by_strategy.update({"stream": 2, "cpu-assist": 1})
    engine.assists, engine.failed_assists, engine.lost_workers = 5, 2, 1
    engine.stall_ms, engine.others_stalled_ms = 1.5, 4.5
    assert rendered(build_report(summary, facts, {}))[-4:] == [
        "3 loads (cpu-assist: 1, stream: 2), 2.5 MB moved",
        "Steps stood still for adapters 1.5 ms, other requests in them 4.5 ms in all",
        "CPU assists: 5, too late: 2",
        "CPU workers lost: 1",
    ]
    engine.spared_loads = 3
    assert "CPU assists: 5, too late: 2, loads spared: 3" in rendered(build_report(summary, facts, {}))


def test_on_a_cpu_no_adapter_is_on_a_device_or_comes_to_it(
    make_row: MakeRow, summary: RunSummary, facts: RunFacts
) -> None:
    """A CPU uses them where they are: the engine counts loads, and nothing is moved."""
    summary.add_answer(make_row("spell", cold_start="stream"))
    summary.engine.adapter_loads = 1
    summary.engine.loads_by_strategy["stream"] = 1
    report: dict[str, Any] = build_report(summary, facts, {})
    assert report["cold_starts"]["hit_rate"] is None
    lines = rendered(report)
    assert lines[-1] == "sample-base, checkpoint weights, float32 on cpu (2 threads)"
    page = render_html(report)
    assert "on the device when asked for" not in page
    assert "1 adapter loads, nothing moved: a CPU uses adapters where they are." in page


def test_why_rows_failed_is_told_by_the_first_of_each_code(summary: RunSummary, facts: RunFacts) -> None:
    for line in (3, 4):
        for code, request_id, message in (
            ("unknown_adapter", f"r{line}", f"adapter 'a{line}' is [b]nowhere[/b]"),
            ("invalid_json", None, f"no JSON in {line}"),
        ):
            summary.failures.add_row({"line": line, "id": request_id, "code": code, "message": message})
    assert rendered(build_report(summary, facts, {}))[4:8] == [
        "The first failed row of each code; all are in errors.jsonl:",
        "  invalid_json, line 3: no JSON in 3",
        "  unknown_adapter, line 3, id r3: adapter 'a3' is [b]nowhere[/b]",
        "",
    ]
