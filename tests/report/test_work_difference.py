"""Two runs beside each other: whether they did the same work is said before any figure."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from caraserve_cli.report.comparison import compare_reports
from tests.report.conftest import PrintComparison


def _set(*path: Any) -> Callable[[Any], None]:
    """Puts the last of `path` at the place in a report that the others lead to."""

    def change(report: Any) -> None:
        *way, key, value = path
        for part in way:
            report = report[part]
        report[key] = value

    return change


def _rename(report: Any) -> None:
    """The requests for one adapter are for another."""
    report["by_adapter"][1]["adapter"] = "sort-2"


def _fewer(report: Any) -> None:
    """One of 10 and 4 tokens, without a bound, is missing."""
    report["requests"]["answered"] -= 1
    report["tokens"]["prompt_tokens"] -= 10
    report["tokens"]["completion_tokens"] -= 4
    report["by_adapter"] = [each for each in report["by_adapter"] if each["adapter"] != "sort"]


def _other_file(report: Any) -> None:
    """With one row more, of which one failed."""
    _rename(report)
    report["run"]["requests_source"] = "b.jsonl"
    report["requests"]["failed"] = 1
    report["tokens"] = {"prompt_tokens": 153, "completion_tokens": 12}
    report["slo"]["carried"] = 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_set("run", "base", "other-base"), "base sample-base, then other-base"),
        (_set("run", "requests_source", "b.jsonl"), "requests requests.jsonl, then b.jsonl"),
        (_set("run", "arrival", "poisson"), "arrival -, then poisson"),
        (_set("run", "options", "default_max_tokens", 32), "--max-tokens 64, then 32"),
        (_set("run", "options", "default_stop", ["\n"]), '--stop "a, b", then "\\n"'),
        (_set("by_adapter", 1, "lora_rank", 64), "ranks sort 16, then sort 64"),
        (_rename, "requests of adapters sort 1, sort-2 0, then sort 0, sort-2 1"),
        (
            _fewer,
            "number of requests 6, then 5; requests of adapters sort 1, then sort 0; "
            "requests with a bound 5 of 6, then 5 of 5",
        ),
        (
            _other_file,
            "requests requests.jsonl, then b.jsonl; number of requests 6, then 7; requests of adapters "
            "sort 1, sort-2 0, then sort 0, sort-2 1; mean prompt tokens 10.0, then 25.5; mean output tokens "
            "4.0, then 2.0; requests with a bound 5 of 6, then 0 of 7",
        ),
        (_set("tokens", "prompt_tokens", 61), "prompt tokens 60, then 61"),
        (_set("tokens", "completion_tokens", 12), "output tokens 24, then 12"),
    ],
)
def test_other_work_is_told_first_and_marked(
    report: Any, printed: PrintComparison, change: Callable[[Any], None], said: str
) -> None:
    after = copy.deepcopy(report)
    change(after)
    after["times"]["ttft_ms"]["p99"] *= 2
    first, *others = printed(report, after)
    assert first == f"Other work: {said}. Figures with this mark cannot be compared."
    (ttft,) = (line for line in others if line.split()[:2] == ["TTFT", "p99,"])
    assert ttft.split()[-3:] == ["2.00", "other", "work"]
    assert not {"better", "worse", "same"}.intersection(" ".join(others).split())
    assert " ".join(others).count("(other") == 5, "a column of the adapters"


@pytest.mark.parametrize(
    "change",
    [
        _set("run", "options", "seed", 3),  # nothing is drawn
        _set("run", "options", "token_ids", True),
        _set("run", "dtype", "bfloat16"),
        _set("run", "device", "a GPU"),
        _set("run", "requests_source", "/data/day-1/requests.jsonl"),
        _set("run", "base", "../sample-base/"),
        _set("run", "options", "default_of_a_later_version", 1),
    ],
)
def test_what_does_it_is_not_the_work(report: Any, change: Callable[[Any], None]) -> None:
    after = copy.deepcopy(report)
    change(after)
    assert compare_reports(report, after).work == []


def test_failed_rows_may_be_those_that_are_missing(report: Any) -> None:
    """As where one of two schedulings drops what is late; a failed row does not say what it asked for."""
    after = copy.deepcopy(report)
    _fewer(after)
    after["requests"]["failed"] = 1
    assert compare_reports(report, after).work == []
    _rename(after)
    assert [name for name, *_ in compare_reports(report, after).work] == ["requests of adapters"]


def test_of_more_rows_only_what_they_do_not_explain_is_told(report: Any) -> None:
    """As where --limit differs: of lengths and bounds that are the same but for chance nothing is said, nor
    of adapters whose rows may all have failed.
    """
    after = copy.deepcopy(report)
    for each in after["by_adapter"]:
        each["answered"] *= 10
    after["requests"]["answered"] *= 10
    after["tokens"] = {"prompt_tokens": 605, "completion_tokens": 239}
    after["slo"]["carried"] = 49
    assert compare_reports(report, after).work == [("number of requests", 6, 60)]
    _rename(after)
    report["requests"]["failed"] = after["requests"]["failed"] = 10
    assert [name for name, *_ in compare_reports(report, after).work][:1] == ["number of requests"]
    assert "requests of adapters" not in [name for name, *_ in compare_reports(report, after).work]


def test_rows_without_their_bounds_are_other_bounds(report: Any) -> None:
    after = copy.deepcopy(report)
    after["slo"]["carried"] = 3
    comparison = compare_reports(report, after)
    assert comparison.work == [("requests with a bound", 5, 3)]
    assert {change.name for change in comparison.metrics if change.is_same_work} > {"TTFT p50, ms"}


def test_other_bounds_mark_what_hangs_on_them(report: Any) -> None:
    after = copy.deepcopy(report)
    after["run"]["options"]["default_deadline_ms"] = 5
    comparison = compare_reports(report, after)
    assert comparison.work == [("--deadline-ms", None, 5)]
    marked = {change.name for change in comparison.metrics if not change.is_same_work}
    assert marked == {"SLO attainment", "goodput, requests/s"}


def test_settings_are_told_in_words(report: Any, printed: PrintComparison) -> None:
    after = copy.deepcopy(report)
    after["run"]["options"] |= {"token_ids": True, "rate": 2.5, "default_stop": ["a", "b"]}
    lines = [line.split() for line in printed(report, after)]
    assert ["--token-ids", "no", "yes"] in lines
    assert ["--rate", "-", "2.5"] in lines
    assert ["--stop", '"a,', 'b"', '"a",', '"b"'] in lines
