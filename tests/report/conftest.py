"""Output lines, and a small run whose report can be checked by hand."""

from __future__ import annotations

import copy
from collections.abc import Callable
from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from caraserve_cli.report.comparison import compare_reports
from caraserve_cli.report.comparison_terminal import render_comparison
from caraserve_cli.report.run_facts import RunFacts
from caraserve_cli.report.run_report import build_report
from caraserve_cli.report.summary import RunSummary

MakeRow = Callable[..., dict[str, object]]
# Prints the comparison of two reports, 80 columns wide.
PrintComparison = Callable[[Any, Any], list[str]]

_OPTIONS = {
    "default_max_tokens": 64,
    "default_deadline_ms": None,
    "default_stop": ["a, b"],
    "rate": None,
    "seed": 0,
    "token_ids": False,
}


@pytest.fixture
def make_row() -> MakeRow:
    """Makes an output line for an adapter, with the given keys changed."""

    def make(adapter: str | None, **changes: object) -> dict[str, object]:
        return {
            "id": "r1",
            "adapter": adapter,
            "text": "four\n",
            "finish_reason": "stop",
            "prompt_tokens": 10,
            "completion_tokens": 4,
            "cold_start": "none" if adapter is None else "resident",
            "queue_ms": 1.0,
            "ttft_ms": 20.0,
            "tpot_ms": 5.0,
            "latency_ms": 35.0,
            "load_ms": None,
            "load_hidden_ms": None,
            "load_wait_ms": 0.0,
            "disk_wait_ms": 0.0,
            "room_wait_ms": 0.0,
            "stalled_ms": 0.0,
            "assisted_ms": 0.0,
            "preempted_ms": 0.0,
            "slack_ms": None,
            "failed_assists": 0,
            "slo_attained": None,
            "metadata": {},
            **changes,
        }

    return make


@pytest.fixture
def facts() -> RunFacts:
    return RunFacts(
        caraserve_version="0.1.0",
        base="sample-base",
        weights="checkpoint",
        device="cpu (2 threads)",
        memory="base 1 GB, of 2 GB",
        dtype="float32",
        requests_source="requests.jsonl",
        adapter_folders=("sample_data/adapters",),
        num_adapters_found=8,
        startup_s=1.5,
        duration_s=4.0,
        resumed=False,
        interrupted=False,
        num_late=1,
        arrival="the start of the run",
        options={"max_tokens": 64, "limit": None, "adapters": ("sample_data/adapters",)},
    )


@pytest.fixture
def summary(make_row: MakeRow) -> RunSummary:
    """Six answers: four of spell, one of sort, one of the base; and two failed rows."""
    summary = RunSummary()
    for number in range(4):
        row = make_row("spell", ttft_ms=10.0 * (number + 1), slo_attained=number < 3)
        summary.add_answer({**row, "metadata": {"expected": "four"}})
    summary.add_answer(make_row("sort", ttft_ms=5.0, metadata={"expected": "five"}))
    summary.add_answer(make_row(None, ttft_ms=2.5))
    summary.add_error("unknown_adapter", carried_bound=True)
    summary.add_error("invalid_json", carried_bound=False)
    return summary


@pytest.fixture
def report(summary: RunSummary, facts: RunFacts) -> Any:
    """Nothing failed, so that its counts are those of the requests."""
    made: Any = copy.deepcopy(build_report(summary, facts, {"spell": 8, "sort": 16}))
    made["run"]["options"] = dict(_OPTIONS)
    made["requests"]["failed"] = 0
    return made


@pytest.fixture
def printed() -> PrintComparison:
    """The lines."""

    def lines(before: Any, after: Any) -> list[str]:
        file = StringIO()
        render_comparison(compare_reports(before, after), Console(file=file, width=80))
        return file.getvalue().splitlines()

    return lines
