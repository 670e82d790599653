"""Errors of predicted steps by kind, and what was not predicted by name: in report and terminal."""

from __future__ import annotations

from dataclasses import replace

from caraserve_cli.events import StepRecord
from caraserve_cli.perf.step_predictor import LEARNED
from caraserve_cli.report.prediction_totals import PredictionTotals
from caraserve_cli.report.terminal import prediction_lines


def step(kind: str, predicted_ms: float | None, why: str = "", stall_ms: float = 0.0) -> StepRecord:
    """A step that computed for 10 ms."""
    return StepRecord(
        start_ms=5.0,
        end_ms=15.0 + stall_ms,
        num_prefill_tokens=0,
        num_decode_tokens=1,
        num_running=1,
        num_waiting=0,
        num_preempted=0,
        num_cached_tokens=0,
        num_adapter_loads=0,
        adapter_load_ms=0.0,
        num_kv_blocks_used=1,
        num_kv_blocks=2,
        stall_ms=stall_ms,
        predicted_ms=predicted_ms,
        why_unpredicted=why,
        prediction_source="profile, corrected on line",
        kind=kind,
    )


def test_errors_are_of_what_was_predicted_and_the_rest_has_a_name() -> None:
    totals = PredictionTotals()
    for predicted_ms in (9.0, 10.1, 10.2):
        totals.on_step(step("decode", predicted_ms))
    totals.on_step(step("mixed", 12.0, stall_ms=30.0))
    for why in ("beside", "sharing", "sharing"):
        totals.on_step(step("mixed", None, why))
    report = totals.as_json()
    assert report["steps"] == 4
    by_kind = report["by_kind"]
    assert isinstance(by_kind, dict)
    assert list(by_kind) == ["decode", "mixed"]
    assert by_kind["decode"]["steps"] == 3
    assert abs(by_kind["decode"]["median_error"] - 0.02) < 0.001
    assert abs(by_kind["mixed"]["median_error"] - 0.2) < 0.005
    assert report["stalled"] == by_kind["mixed"]
    assert report["unpredicted"] == {"beside": 1, "sharing": 2}
    first, second = prediction_lines({"step_predictions": report})
    assert "profile, corrected on line" in first
    assert "over 4 steps (decode 2" in first
    assert second == "Steps whose time was not predicted: 1 beside, 2 sharing"


def test_a_report_without_predictions_tells_none() -> None:
    assert prediction_lines({}) == []
    assert prediction_lines({"step_predictions": PredictionTotals().as_json()}) == []
    totals = PredictionTotals()
    totals.on_step(step("decode", None, "learning"))
    assert prediction_lines({"step_predictions": totals.as_json()}) == [
        "Steps whose time was not predicted: 1 learning"
    ]


def test_predictions_by_which_nothing_is_decided_are_not_told() -> None:
    totals = PredictionTotals()
    totals.on_step(replace(step("decode", 10.0), prediction_source=LEARNED))
    assert totals.as_json()["steps"] == 1
    assert prediction_lines({"step_predictions": totals.as_json()}) == []
