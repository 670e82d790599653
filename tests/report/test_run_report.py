"""report.json: its numbers, its shape, and how it is written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest

from caraserve_cli.errors import OutputError
from caraserve_cli.report.report_file import write_report
from caraserve_cli.report.run_facts import RunFacts
from caraserve_cli.report.run_report import build_report
from caraserve_cli.report.summary import RunSummary

MakeRow = Callable[..., dict[str, object]]
LORA_RANKS = {"spell": 8, "sort": 2, "unused": 64}


@pytest.fixture
def report(summary: RunSummary, facts: RunFacts) -> dict[str, Any]:
    return build_report(summary, facts, LORA_RANKS)


def test_counts(report: dict[str, Any]) -> None:
    assert report["schema"] == 2
    assert report["requests"] == {
        "answered": 6,
        "failed": 2,
        "submitted_late": 1,
        "by_finish_reason": {"stop": 6},
        "by_cold_start": {"none": 1, "resident": 5},
        "failed_by_code": {"invalid_json": 1, "unknown_adapter": 1},
    }
    assert report["tokens"] == {"prompt_tokens": 60, "completion_tokens": 24}


def test_slo_counts_failed_requests_as_misses(report: dict[str, Any]) -> None:
    assert report["slo"] == {"carried": 5, "attained": 3, "attainment": 0.6}
    assert report["throughput"]["goodput_requests_per_s"] == 0.75


def test_rates(report: dict[str, Any]) -> None:
    assert report["throughput"] == {
        "scope": "the run",
        "answered": 6,
        "requests_per_s": 1.5,
        "output_tokens_per_s": 6.0,
        "total_tokens_per_s": 21.0,
        "goodput_requests_per_s": 0.75,
    }


def test_times_overall_are_those_of_all_adapters(report: dict[str, Any]) -> None:
    assert report["times"]["percentiles_relative_accuracy"] == 0.005
    assert report["times"]["ttft_ms"] == {
        "count": 6,
        "mean": 17.917,
        "min": 2.5,
        "p50": 10.0,
        "p90": 40.0,
        "p95": 40.0,
        "p99": 40.0,
        "max": 40.0,
    }


def test_adapters_the_base_first(report: dict[str, Any]) -> None:
    groups = report["by_adapter"]
    assert [(group["adapter"], group["lora_rank"], group["answered"]) for group in groups] == [
        (None, 0, 1),
        ("sort", 2, 1),
        ("spell", 8, 4),
    ]
    base, sort, spell = groups
    assert base["exact_match"] is None
    assert sort["exact_match"] == {"right": 0, "scored": 1, "accuracy": 0.0}
    assert spell["exact_match"] == {"right": 4, "scored": 4, "accuracy": 1.0}
    assert report["exact_match"] == {"right": 4, "scored": 5, "accuracy": 0.8}
    assert spell["slo_of_answered"] == {"carried": 4, "attained": 3, "attainment": 0.75}
    assert sort["slo_of_answered"] == {"carried": 0, "attained": 0, "attainment": None}
    assert spell["times"]["ttft_ms"]["p50"] == 20.0


def test_adapters_of_one_rank_are_one_group(summary: RunSummary, facts: RunFacts) -> None:
    groups: Any = build_report(summary, facts, {"spell": 8, "sort": 8})["by_lora_rank"]
    assert [(group["lora_rank"], group["adapters"], group["answered"]) for group in groups] == [
        (0, 1, 1),
        (8, 2, 5),
    ]
    assert groups[1]["times"]["ttft_ms"]["min"] == 5.0
    assert groups[1]["exact_match"] == {"right": 4, "scored": 5, "accuracy": 0.8}


def test_an_adapter_that_left_the_library_has_no_rank(summary: RunSummary, facts: RunFacts) -> None:
    groups: Any = build_report(summary, facts, {"spell": 8})["by_lora_rank"]
    assert [group["lora_rank"] for group in groups] == [0, 8, None]


def test_rates_of_a_resumed_run_are_this_sessions(
    make_row: MakeRow, summary: RunSummary, facts: RunFacts
) -> None:
    summary.add_answer(make_row("spell", ttft_ms=1.0, slo_attained=True), restored=True)
    report: Any = build_report(summary, replace(facts, resumed=True), LORA_RANKS)
    assert report["requests"]["answered"] == 7
    assert report["throughput"]["scope"] == "this session"
    assert report["throughput"]["answered"] == 6
    assert report["throughput"]["output_tokens_per_s"] == 6.0
    assert report["throughput"]["goodput_requests_per_s"] == 0.75


def test_an_empty_run_is_all_null(facts: RunFacts) -> None:
    report: Any = build_report(RunSummary(), replace(facts, duration_s=0.0), LORA_RANKS)
    assert report["slo"] == {"carried": 0, "attained": 0, "attainment": None}
    assert report["exact_match"] is None
    assert report["by_adapter"] == report["by_lora_rank"] == []
    assert report["throughput"]["requests_per_s"] is None
    assert report["throughput"]["goodput_requests_per_s"] is None
    assert report["times"]["ttft_ms"]["p99"] is None
    assert report["engine"]["mean_running"] is None


def test_what_the_engine_did(summary: RunSummary, facts: RunFacts) -> None:
    summary.engine.dropped_tokens, summary.engine.memory_retries = 5, 2
    report: Any = build_report(summary, facts, {})
    assert report["engine"]["dropped_tokens"] == 5
    assert report["engine"]["memory_retries"] == 2
    assert {"dropped_tokens", "memory_retries"} <= set(report["definitions"])


def test_how_adapters_came_to_the_device(summary: RunSummary, facts: RunFacts) -> None:
    engine = summary.engine
    engine.adapter_loads, engine.loads_by_strategy["stream"], engine.adapter_bytes = 1, 1, 4096
    engine.assists, engine.failed_assists, engine.lost_workers = 5, 2, 1
    engine.spared_loads = 3
    engine.stall_ms, engine.others_stalled_ms = 1.5, 4.5
    report: Any = build_report(summary, facts, {})
    cold = report["cold_starts"]
    assert {key: value for key, value in cold.items() if key != "times"} == {
        "scope": "this session",
        "requests_with_adapter": 5,
        "hits": 5,
        "hit_rate": 1.0,
        "loads": 1,
        "loads_by_strategy": {"stream": 1},
        "bytes_moved": 4096,
        "assists": 5,
        "failed_assists": 2,
        "spared_loads": 3,
        "lost_workers": 1,
        "stall_ms": 1.5,
        "others_stalled_ms": 4.5,
    }
    assert (cold["times"]["load_ms"]["count"], cold["times"]["load_wait_ms"]["count"]) == (0, 5)
    defined = {name.strip() for names in report["definitions"] for name in names.split(",")}
    assert defined >= {
        *cold["times"],
        "hit_rate",
        "bytes_moved",
        "stall_ms",
        "assists",
        "lost_workers",
        "spared_loads",
    }


def test_a_link_that_was_emulated_is_told(summary: RunSummary, facts: RunFacts) -> None:
    own: Any = build_report(summary, facts, {})
    slow: Any = build_report(summary, replace(facts, emulated_link_gbps=3.0), {})
    assert (own["run"]["is_link_emulated"], own["run"]["emulated_link_gbps"]) == (False, None)
    assert (slow["run"]["is_link_emulated"], slow["run"]["emulated_link_gbps"]) == (True, 3.0)


def test_the_process_that_gave_arrivals_is_told(summary: RunSummary, facts: RunFacts) -> None:
    own: Any = build_report(summary, facts, {})
    given: Any = build_report(summary, replace(facts, arrival_process="poisson, 9 requests/s"), {})
    assert (own["run"]["arrival"], given["run"]["arrival"]) == (None, "poisson, 9 requests/s")


def test_goodput_is_null_when_no_request_carries_a_bound(facts: RunFacts) -> None:
    summary = RunSummary()
    summary.add_error("invalid_json", carried_bound=False)
    report: Any = build_report(summary, facts, {})
    assert report["throughput"]["goodput_requests_per_s"] is None
    assert report["throughput"]["requests_per_s"] == 0.0


def test_a_report_says_what_it_is_about(report: dict[str, Any]) -> None:
    assert report["definitions"]["arrival"] == "the start of the run"
    assert report["definitions"]["ttft_ms"] == "first token - arrival"
    assert report["run"]["weights"] == "checkpoint"
    assert report["run"]["device"] == "cpu (2 threads)"
    assert report["run"]["memory"] == "base 1 GB, of 2 GB"
    assert report["run"]["options"]["max_tokens"] == 64


def test_what_is_written_is_what_is_read(report: dict[str, Any], tmp_path: Path) -> None:
    path = write_report(report, tmp_path)
    assert path == tmp_path / "report.json"
    assert orjson.loads(path.read_bytes()) == orjson.loads(orjson.dumps(report))
    assert list(orjson.loads(path.read_bytes())) == list(report)
    assert [file.name for file in tmp_path.iterdir()] == ["report.json"]


def test_a_report_replaces_the_one_before(report: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text("x" * 100_000)
    write_report(report, tmp_path)
    assert orjson.loads((tmp_path / "report.json").read_bytes())["schema"] == 2


def test_file_names_that_are_no_text_can_be_reported(
    summary: RunSummary, facts: RunFacts, tmp_path: Path
) -> None:
    odd = b"caf\xe9.jsonl".decode("utf-8", "surrogateescape")
    odd_facts = replace(facts, requests_source=odd, adapter_folders=(odd,), options={"out": odd, "a": [odd]})
    path = write_report(build_report(summary, odd_facts, {}), tmp_path)
    run = orjson.loads(path.read_bytes())["run"]
    assert run["requests_source"] == r"caf\udce9.jsonl"
    assert run["options"] == {"out": r"caf\udce9.jsonl", "a": [r"caf\udce9.jsonl"]}


def test_a_folder_that_is_not_there(report: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"cannot write .*missing/report\.json: No such file or directory"):
        write_report(report, tmp_path / "missing")
