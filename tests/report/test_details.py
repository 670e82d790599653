"""What report.html shows beyond counts: timeline, slack, the slowest, histograms, comparisons."""

from __future__ import annotations

import copy
import dataclasses
from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from caraserve_cli.fleet.account import FleetAccount, ReplicaAccount
from caraserve_cli.report.comparison import compare_reports
from caraserve_cli.report.deadline_slack import DeadlineSlack
from caraserve_cli.report.distribution import Distribution
from caraserve_cli.report.failures import Failures
from caraserve_cli.report.html import render_html
from caraserve_cli.report.run_facts import RunFacts
from caraserve_cli.report.run_report import build_report
from caraserve_cli.report.slowest import NUM_SLOWEST, SlowestRequests, latency_parts
from caraserve_cli.report.summary import RunSummary
from caraserve_cli.report.terminal import render_summary
from caraserve_cli.report.timeline import MAX_INTERVALS, Timeline
from tests.report.conftest import MakeRow
from tests.report.test_run_trace import step


@pytest.mark.parametrize("num_values", [50, 5_000])
def test_a_histogram_counts_every_value_once(num_values: int) -> None:
    times = Distribution()
    for number in range(num_values):
        times.add(number / 10)
    histogram = times.histogram()
    assert histogram is not None
    assert sum(histogram["counts"]) == num_values
    assert len(histogram["edges"]) == len(histogram["counts"]) + 1 <= 101
    assert histogram["edges"][-1] >= (num_values - 1) / 10
    median = sum(histogram["counts"][: sum(edge <= num_values / 20 for edge in histogram["edges"]) - 1])
    assert 0.4 * num_values < median <= 0.52 * num_values


def test_a_timeline_stays_small_and_loses_no_token() -> None:
    timeline = Timeline()
    for number in range(20_000):
        timeline.on_step(step(number, num_running=9 if number == 12_345 else 4))
    told: Any = timeline.as_json()
    assert len(told["peaks"]["running"]) <= MAX_INTERVALS
    assert sum(told["sums"]["decode_tokens"]) == pytest.approx(80_000, abs=0.5)  # each is rounded
    assert told["peaks"]["running"].index(9) == int(123_450 / told["interval_ms"])


def test_adapters_stay_in_the_pool_while_nothing_runs() -> None:
    timeline = Timeline()
    for number in (0, 10):
        timeline.on_step(step(number, adapter_pool_used_bytes=1, adapter_pool_bytes=4))
    peaks: Any = timeline.as_json()["peaks"]
    assert set(peaks["adapter_pool_use"]) == {0.25}
    assert 0 in peaks["running"]


def test_replicas_are_added_up_and_the_fullest_is_told() -> None:
    timeline = Timeline()
    timeline.on_step(step(0, num_running=4, num_kv_blocks_used=5))
    timeline.on_step(step(0, replica=1, num_running=3, num_waiting=2, num_kv_blocks_used=8))
    timeline.on_step(step(0, replica=1, num_running=6, num_waiting=0, num_kv_blocks_used=1))
    timeline.on_step(step(-1, replica=2, num_running=0, num_waiting=0))  # began before the first told of
    timeline.on_step(step(9, replica=1, adapter_pool_used_bytes=1, adapter_pool_bytes=2))
    told: Any = timeline.as_json()
    assert told["replicas"] == 3
    peaks = told["peaks"]
    assert (peaks["running"][0], peaks["waiting"][0], peaks["kv_use"][0]) == (10, 3, 0.8)
    assert (peaks["running"][-1], peaks["kv_use"][-1], peaks["adapter_pool_use"][-1]) == (4, 0.5, 0.5)
    assert {len(column) for column in (*peaks.values(), *told["sums"].values())} == {20}


def test_tokens_are_spread_over_their_step() -> None:
    timeline = Timeline()
    timeline.on_step(step(0, end_ms=19.0, num_decode_tokens=8, num_adapter_loads=1))
    sums: Any = timeline.as_json()["sums"]
    assert sums["decode_tokens"] == [2, 2, 2, 2]
    assert sums["adapter_loads"] == [0, 0, 0, 1]


def test_of_each_code_the_first_failure_is_told() -> None:
    failures = Failures()
    for line in range(3):
        failures.add_row({"line": line, "id": f"r{line}", "code": "prompt_too_long", "message": "x" * 1000})
    failures.add_row({"line": 7, "id": None, "code": "invalid_json", "message": "no JSON"})
    first, second = failures.as_json()
    assert first == {"code": "invalid_json", "line": 7, "id": None, "message": "no JSON"}
    assert (second["line"], second["id"], len(str(second["message"]))) == (0, "r0", 300)


def test_a_fleet_and_what_was_dropped_are_told(summary: RunSummary, facts: RunFacts) -> None:
    account = FleetAccount(
        placement="rank-aware",
        has_measured_models=False,
        clock_error_ms=0.25,
        replicas=[ReplicaAccount(name=f"replica-{n}", device="cpu") for n in range(2)],
        placed_again=9,
    )
    account.replicas[1].busy.add(1000.0, 3000.0)
    account.replicas[1].add_death("its disk is full")
    for replica in range(2):
        summary.on_step(step(replica, replica=replica))
    summary.add_error("deadline_exceeded", carried_bound=True)
    fleet = dataclasses.replace(facts, fleet=account.as_json())
    report = build_report(summary, fleet, {})
    page = render_html(report)
    assert "replica-1" in page
    assert "its disk is full" in page
    printed = StringIO()
    render_summary(report, Console(file=printed, width=80))
    assert "replica-1 died because its disk is full" in printed.getvalue()
    assert "50.0%" in page, "busy 2 s of 4"
    assert "9 requests placed again" in page
    assert "Requests of 2 replicas are added up" in page
    assert "1 request was dropped" in page
    alone = render_html(build_report(summary, facts, {}))
    assert "placed again" not in alone


def test_slack_is_counted_by_its_share_of_the_deadline(make_row: MakeRow) -> None:
    slack = DeadlineSlack()
    slack.add_row(make_row(None, latency_ms=50.0, slack_ms=50.0))
    slack.add_row(make_row(None, latency_ms=1000.0, slack_ms=-900.0))
    slack.add_row(make_row(None))
    told: Any = slack.as_json()
    assert (told["met"], told["missed"]) == (1, 1)
    counts = told["histogram_share_left"]["counts"]
    assert (counts[0], counts[30], sum(counts)) == (1, 1, 2)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"queue_ms": 80.0, "room_wait_ms": 5.0}, "queued"),
        ({"queue_ms": 80.0, "disk_wait_ms": 70.0}, "loading its adapter"),
        ({"queue_ms": 80.0, "load_wait_ms": 75.0, "cold_start": "on-demand"}, "loading its adapter"),
        ({"preempted_ms": 60.0}, "preempted"),
        ({"stalled_ms": 60.0}, "held up by other adapters' loads"),
        ({}, "its own computation"),
    ],
)
def test_the_reason_is_the_largest_part(make_row: MakeRow, changes: dict[str, object], reason: str) -> None:
    row = make_row("spell", latency_ms=100.0, **changes)
    slowest = SlowestRequests()
    slowest.add_row(row)
    assert slowest.as_json()[0]["reason"] == reason
    assert sum(latency_parts(row).values()) == pytest.approx(100)


def test_the_slowest_are_kept(make_row: MakeRow) -> None:
    slowest = SlowestRequests()
    for number in range(1000):
        slowest.add_row(make_row(None, id=f"r{number}", latency_ms=float(number * 7 % 1000)))
    told = slowest.as_json()
    assert [entry["latency_ms"] for entry in told] == [999.0 - number for number in range(NUM_SLOWEST)]


def test_names_are_escaped(make_row: MakeRow, facts: RunFacts) -> None:
    summary = RunSummary()
    summary.add_answer(make_row("<b>&x</b>", id="</script><i>"))
    page = render_html(build_report(summary, facts, {}))
    assert "<b>&x" not in page
    assert "</script><i>" not in page
    assert "&lt;b&gt;&amp;x&lt;/b&gt;" in page


def test_a_comparison_knows_which_way_is_better(summary: RunSummary, facts: RunFacts) -> None:
    before = build_report(summary, facts, {"spell": 8})
    after: Any = copy.deepcopy(before)
    after["run"]["options"]["max_tokens"] = 32
    after["times"]["ttft_ms"]["p99"] *= 2
    after["slo"]["attainment"] = 1.0
    after["by_adapter"] = [entry for entry in after["by_adapter"] if entry["adapter"] != "sort"]
    after["requests"]["failed"] += 1
    comparison = compare_reports(before, after)
    assert comparison.settings == [("--max-tokens", 64, 32)]
    verdicts = {change.name: change.verdict for change in comparison.metrics}
    assert (verdicts["TTFT p99, ms"], verdicts["SLO attainment"], verdicts["TTFT p50, ms"]) == (
        "worse",
        "better",
        "same",
    )
    adapters = dict(comparison.adapters)
    assert {change.verdict for change in adapters["sort"]} == {"-"}


def test_the_cards_of_a_resumed_run_say_what_is_of_its_last_session(
    make_row: MakeRow, summary: RunSummary, facts: RunFacts
) -> None:
    summary.add_answer(make_row("spell", ttft_ms=1.0, slo_attained=True), restored=True)
    page = render_html(build_report(summary, dataclasses.replace(facts, resumed=True), {}))
    assert "<b>7</b><span>answered, 2 failed; 6 answered in this session, in 4.0 s</span>" in page
    assert "<span>goodput, requests/s in this session</span>" in page
    at_once = render_html(build_report(summary, facts, {}))
    assert "<span>answered, 2 failed, in 4.0 s</span>" in at_once
    assert "<span>goodput, requests/s</span>" in at_once
