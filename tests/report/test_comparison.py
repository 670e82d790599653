"""Two runs beside each other at a terminal: what they may be judged by, and how it is shown."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from caraserve_cli.report.comparison import ONE_SESSION, compare_reports
from tests.report.conftest import PrintComparison

OF_LAST_SESSION = {
    "goodput, requests/s",
    "output tokens/s",
    "requests/s",
    "adapter hit rate",
    "preemptions",
}


def _resume(report: Any, answered: int) -> None:
    report["run"]["resumed"] = True
    report["throughput"]["answered"] = answered


def test_what_is_of_a_last_session_is_not_judged(report: Any, printed: PrintComparison) -> None:
    after = copy.deepcopy(report)
    _resume(after, 1)
    after["throughput"]["output_tokens_per_s"] *= 25
    after["times"]["ttft_ms"]["p99"] *= 2
    verdicts = {change.name: change.verdict for change in compare_reports(report, after).metrics}
    assert {name for name, verdict in verdicts.items() if verdict == ONE_SESSION} == OF_LAST_SESSION
    assert verdicts["TTFT p99, ms"] == "worse", "times are those of all sessions"
    first, *others = printed(report, after)
    assert first == (
        "One session: the second run was resumed, and its rates, preemptions and cold starts are those of "
        "its last (1 of 6 answered). Figures with this mark cannot be compared."
    )
    (rate,) = (line for line in others if line.startswith("output tokens/s"))
    assert rate.split()[-3:] == ["25.00", "one", "session"]


@pytest.mark.parametrize(
    ("answered", "said"),
    [
        ((1, None), "the first run was resumed, and its rates, preemptions and cold starts are those of its"),
        ((1, 3), "both runs were resumed, and their rates, preemptions and cold starts are those of their"),
    ],
)
def test_which_run_was_resumed_is_said(
    report: Any, printed: PrintComparison, answered: tuple[int | None, ...], said: str
) -> None:
    runs = [copy.deepcopy(report) for _ in answered]
    for run, num_answered in zip(runs, answered, strict=True):
        if num_answered is not None:
            _resume(run, num_answered)
    counts = ", then ".join(f"{number} of 6" for number in answered if number is not None)
    assert printed(*runs)[0].startswith(f"One session: {said} last ({counts} answered). ")


def test_other_work_is_told_before_one_session(report: Any, printed: PrintComparison) -> None:
    after = copy.deepcopy(report)
    _resume(after, 1)
    after["run"]["base"] = "other-base"
    assert [line.split(":")[0] for line in printed(report, after)[:2]] == ["Other work", "One session"]
    assert ONE_SESSION not in {change.verdict for change in compare_reports(report, after).metrics}


def test_runs_in_one_go_have_no_mark(report: Any, printed: PrintComparison) -> None:
    assert "session" not in "\n".join(printed(report, report))


def test_shares_are_percentages(report: Any, printed: PrintComparison) -> None:
    after = copy.deepcopy(report)
    report["slo"]["attainment"], after["slo"]["attainment"] = 0.5333, 1
    report["exact_match"]["accuracy"], after["exact_match"]["accuracy"] = 1, 0.99999
    for each in after["by_adapter"]:
        each["slo_of_answered"]["attainment"] = 0.25
    lines = [line.split() for line in printed(report, after)]
    assert ["SLO", "attainment", "53.3%", "100.0%", "1.88", "better"] in lines
    assert ["exact", "match", "100.0%", "99.9%", "1.00", "same"] in lines
    assert any(line[:4] == ["spell", "75.0%", "→", "25.0%"] for line in lines)


@pytest.mark.parametrize("name", ["team/pig-latin", "team/" + "a-very-long-name" * 4])
def test_names_of_adapters_are_never_cut(report: Any, printed: PrintComparison, name: str) -> None:
    """Every figure as wide as they come."""
    report["by_adapter"][1]["adapter"] = name
    for each in report["by_adapter"]:
        each["times"]["latency_ms"] |= {"p50": 123_456.0, "p99": 234_567.0}
        each["times"]["ttft_ms"]["p50"] = each["times"]["tpot_ms"]["p50"] = 12_345.0
    after = copy.deepcopy(report)
    lines = printed(report, after)
    table = lines[next(i for i, line in enumerate(lines) if line.startswith("adapter ")) :]
    assert name in "".join(line[:26].strip() for line in table)
    assert "…" not in "".join(lines)
    assert max(map(len, lines[:-1])) <= 80


def test_what_to_do_about_chance_is_said_last(report: Any, printed: PrintComparison) -> None:
    assert printed(report, report)[-1] == (
        "One run each tells little: repeat both, or measure a recipe with `caraserve bench --baseline`."
    )
