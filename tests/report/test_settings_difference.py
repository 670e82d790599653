"""In what the settings of two runs differ: each once, by the name that users type, and nothing by chance."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from caraserve_cli.report.settings_difference import differing_settings
from tests.report.conftest import PrintComparison

PLAN = "base 8.53 MB, room for adapters {}, KV cache {} (131,072 tokens), steps 32.6 MB; of {} GB"


@pytest.mark.parametrize(
    ("fact", "option", "told", "given", "said"),
    [
        ("base", "base", ("tiny", "llama"), ("bases/tiny", "hub/llama"), "--base"),
        ("base", "base", ("tiny", "tiny"), ("bases/tiny", "/data/tiny"), "--base"),
        ("requests_source", "requests", ("a.jsonl", "b.jsonl"), ("a.jsonl", "b.jsonl"), "REQUESTS"),
        ("arrival", "rate", ("poisson, 2 requests/s", "poisson, 4 requests/s"), (2.0, 4.0), "--rate"),
        ("dtype", "dtype", ("bfloat16", "float32"), ("auto", "float32"), "--dtype"),
        ("dtype", "dtype", ("bfloat16", "float32"), ("auto", "auto"), "--dtype"),
        ("device", "device", ("cpu, 2 threads", "cpu, 1 thread"), ("auto", "auto"), "--device"),
        ("emulated_link_gbps", "emulate_link_gbps", (None, 0.5), (None, 0.5), "--emulate-link-gbps"),
    ],
)
def test_a_setting_is_listed_once(
    report: Any, fact: str, option: str, told: tuple[Any, Any], given: tuple[Any, Any], said: str
) -> None:
    """By what came of it where that differs, for it says more."""
    runs = [report, copy.deepcopy(report)]
    for run, of_fact, of_option in zip(runs, told, given, strict=True):
        run["run"][fact], run["run"]["options"][option] = of_fact, of_option
    shown = given if told[0] == told[1] or fact == "arrival" else told
    assert differing_settings(*runs) == [(said, *shown)]


def test_folders_of_adapters_are_plain(report: Any, printed: PrintComparison) -> None:
    after = copy.deepcopy(report)
    report["run"]["options"]["adapter_roots"] = ["a", "more adapters"]
    after["run"]["options"]["adapter_roots"] = ["b"]
    assert ["--adapters", "a,", "more", "adapters", "b"] in [line.split() for line in printed(report, after)]


@pytest.mark.parametrize(
    ("plan", "told"),
    [
        (PLAN.format("1.9 GB", "0.4 GB", "18.7"), False),
        (PLAN.format("2.0 GB", "0.4 GB", "20.6"), False),
        ("; ".join(PLAN.format("1.9 GB", "0.4 GB", free) for free in ("18.9", "18.7")), False),
        (PLAN.format("1.9 GB", "0.8 GB", "18.9"), True),
        (PLAN.format("16.2 MB", "0.4 GB", "18.9"), True),
        (PLAN.format("1.9 GB", "0.4 GB", "18.9") + " in each of 2 processes", True),
    ],
)
def test_how_much_memory_was_free_is_no_setting(report: Any, plan: str, told: bool) -> None:
    after = copy.deepcopy(report)
    report["run"]["memory"] = PLAN.format("1.9 GB", "0.4 GB", "18.9")
    after["run"]["memory"] = plan
    settings = differing_settings(report, after)
    assert [name for name, *_ in settings] == ["memory"] * told
    assert "18.9" not in str(settings)
