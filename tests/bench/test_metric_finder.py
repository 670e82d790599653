"""Metrics are found in results of every kind, and their names say what they mean."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from caraserve_cli.bench.catalogue import embedded_recipes
from caraserve_cli.bench.metric import Basis, Direction
from caraserve_cli.bench.metric_finder import describe_metric, find_metrics

BASELINES = embedded_recipes()[0].parent / "baselines"


def _spread(*values: float) -> dict[str, Any]:
    return {"values": list(values), "median": 0, "lowest": 0, "highest": 0}


@pytest.mark.parametrize(
    ("name", "basis", "direction", "tolerance"),
    [
        ("mixed: step_over_reference", Basis.RATIO, Direction.LOWER, 0.05),
        ("mixed: p95_step_over_reference", Basis.RATIO, Direction.LOWER, 0.25),
        ("mixed: step_ms", Basis.ABSOLUTE, Direction.LOWER, 0.10),
        ("mixed: tokens_per_s", Basis.ABSOLUTE, Direction.HIGHER, 0.10),
        ("mixed: reference_step_ms", Basis.YARDSTICK, Direction.LOWER, 0.10),
        ("caraserve / peft-mixed: ratio", Basis.RATIO, Direction.HIGHER, 0.05),
        ("peft-mixed: tokens_per_s", Basis.YARDSTICK, Direction.HIGHER, 0.10),
        ("caraserve: tokens_per_s", Basis.ABSOLUTE, Direction.HIGHER, 0.10),
        ("light: stream: measured_ms: p99_ttft", Basis.ABSOLUTE, Direction.LOWER, 0.25),
        ("light: stream: over_cached: longest_step", Basis.RATIO, Direction.LOWER, 0.25),
        ("light: auto: slo_attainment", Basis.RATIO, Direction.HIGHER, 0.05),
        ("mixed: results: slack: 24/s: attainment", Basis.RATIO, Direction.HIGHER, 0.05),
        ("mixed: rates: 9/s: attainment: simulated", Basis.RATIO, None, 0.05),
        ("mixed: rates: 9/s: measures: mean_ttft: measured", Basis.ABSOLUTE, None, 0.10),
        ("copy_bytes_per_s", Basis.YARDSTICK, Direction.HIGHER, 0.10),
        ("something new", Basis.ABSOLUTE, None, 0.10),
    ],
)
def test_a_name_says_what_is_better(
    name: str, basis: Basis, direction: Direction | None, tolerance: float
) -> None:
    metric = describe_metric(name, (1.0,))
    assert (metric.basis, metric.direction, metric.tolerance) == (basis, direction, tolerance)


@pytest.mark.parametrize(
    ("name", "unit"),
    [
        ("something new", ""),
        ("mixed: rates: 9/s: measures: mean_ttft: measured", "ms"),
        ("mixed: rates: 9/s: attainment: measured", "share"),
        ("64 tokens, rank 64: torch_us", "us"),
    ],
)
def test_a_name_says_the_unit(name: str, unit: str) -> None:
    assert describe_metric(name, (1.0,)).unit == unit


def test_names_are_the_way_and_values_the_medians() -> None:
    result = {
        "recipe": "tiny",
        "cases": [{"name": "one", "step_ms": _spread(3, 1, 2), "saved_ms": _spread(-1, 1, -2)}],
        "ratios": [{"ours": "a", "over": "b", "ratio": _spread(2, 2, 5)}],
        "lora": [{"name": "r8", "time_us": _spread(7), "peers": [{"name": "torch", "time_us": _spread(9)}]}],
        "copy_bytes_per_s": 1e9,
        "notes": ["none"],
    }
    assert {metric.name: metric.values for metric in find_metrics(result)} == {
        "one: step_ms": (2,),
        "a / b: ratio": (2,),
        "lora: r8: time_us": (7,),
        "lora: r8: peers: torch: time_us": (9,),
        "copy_bytes_per_s": (1e9,),
    }
    assert find_metrics(result, each_repeat=True)[0].values == (3, 1, 2)


@pytest.mark.parametrize(
    ("file", "least"),
    [
        ("decode-h200.json", 6),
        ("throughput-h200.json", 9),
        ("serving-h100.json", 8),
        ("kernels-h200.json", 20),
        ("peft-long-cpu.json", 4),
        ("assist-h100.json", 6),
    ],
)
def test_every_kind_of_result_has_metrics_that_are_judged(file: str, least: int) -> None:
    metrics = find_metrics(json.loads(Path(BASELINES / file).read_text()))
    assert sum(metric.is_judged for metric in metrics) >= least
    assert not [metric.name for metric in metrics if metric.direction is None]


def test_zero_is_a_figure_and_null_is_none() -> None:
    null: Any = None
    result = {"a_ms": _spread(0.0, 0.0), "b_ms": _spread(null, 1.0), "c_ms": _spread(-1.0), "d_ms": _spread()}
    assert [(metric.name, metric.values) for metric in find_metrics(result)] == [("a_ms", (0.0,))]
    assert find_metrics({"a_ms": _spread(1.0, float("nan"))}) == []
