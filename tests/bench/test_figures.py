"""Figures are found by the way to them, and only where one is meant."""

from __future__ import annotations

import pytest

from caraserve_cli.bench.figures import find_figure

RESULT = {
    "num_cores": 2,
    "cases": [
        {
            "name": "9 [cut] requests",
            "is_hard": True,
            "results": [
                {
                    "strategy": "auto",
                    "measured_ms": {
                        "ttft": {"values": (3.0, 1.0, 2.5), "median": 2.5, "lowest": 1.0, "highest": 3.0},
                        "tpot": None,
                    },
                }
            ],
        }
    ],
    "fit": [
        {"name": "to 32", "mbgmv": {"r2": 0.9}, "bgmv": {"r2": 0.8}},
        {"repeats": 3},
    ],
    "peer": {"values": [], "median": 0, "lowest": 0, "highest": 0},
    "points": [{"name": "random", "ratio": float("inf")}],
}


@pytest.mark.parametrize(
    ("pattern", "value"),
    [
        ("num_cores", 2),
        ("9 [cut] requests: auto: measured_ms: ttft", 2.5),
        ("fit: *: bgmv: r2", 0.8),
        ("fit: to 32: mbgmv: r2", 0.9),
    ],
)
def test_a_figure_is_found(pattern: str, value: float) -> None:
    """Of repeats it is the median."""
    assert find_figure(RESULT, pattern) == value


@pytest.mark.parametrize(
    ("pattern", "why"),
    [
        ("fit: *: r2", "there are two"),
        ("9 [cut] requests: auto: measured_ms: tpot", "it is not defined"),
        ("9 [cut] requests: is_hard", "it is no number"),
        ("fit: repeats", "its item has no name"),
        ("peer", "it has no repeats"),
        ("points: random: ratio", "it is not finite"),
        ("nothing", "it is not there"),
    ],
)
def test_what_is_no_figure_is_not_found(pattern: str, why: str) -> None:
    assert find_figure(RESULT, pattern) is None, why
