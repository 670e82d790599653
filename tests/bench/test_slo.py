"""Benchmarks of scheduling: what is read, what is refused, a whole tiny one on the CPU, and the verdict."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from caraserve_cli.bench.catalogue import find_recipe
from caraserve_cli.bench.comparison import Spread, Verdict
from caraserve_cli.bench.floor import DeviceSpeed
from caraserve_cli.bench.recipe_kinds import load_any_recipe
from caraserve_cli.bench.slo_recipe import SloCase, SloRecipe
from caraserve_cli.bench.slo_result import RateResult, SloCaseResult
from caraserve_cli.core import Bounds
from caraserve_cli.errors import OptionError
from tests.bench.serving_recipes import write
from tests.bench.slo_recipes import SLO
from tests.cli.conftest import Caraserve, caraserve

__all__ = ["caraserve"]


@pytest.fixture(autouse=True)
def quick_floor(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device of known speed."""
    speed = DeviceSpeed(bytes_per_s=1e9, flops_per_s=1e9)
    monkeypatch.setattr("caraserve_cli.bench.engine_runs.measure_speed", lambda *_: speed)


def load(path: Path) -> SloRecipe:
    recipe = load_any_recipe(path)
    assert isinstance(recipe, SloRecipe)
    return recipe


def test_every_key_is_read(tmp_path: Path) -> None:
    recipe = load(write(tmp_path, SLO + "deadline_ms = 900\nattained = 0.9\nratio_at_least = 1.2\n"))
    (case,) = recipe.cases
    assert (case.scheduling, case.rates_per_s, case.num_requests) == (("slack", "fcfs"), (40, 80), 6)
    assert case.bounds == Bounds(deadline_ms=900.0, ttft_slo_ms=1e6)
    assert (case.tpot_within, case.attained, case.ratio_at_least) == (1e6, 0.9, 1.2)
    assert not case.options.prefix_caching


@pytest.mark.parametrize(
    ("old", "new", "fragment"),
    [
        ('["slack", "fcfs"]', '["slack"]', "'scheduling' must be both of slack and fcfs"),
        ('["slack", "fcfs"]', '["slack", "slack"]', "'scheduling' must be both of slack and fcfs"),
        ("[40, 80]", "[80, 40]", "'rates_per_s' must be ascending"),
        ("[40, 80]", "[]", "'rates_per_s' must be a list of whole numbers above zero"),
        ("ttft_slo_ms = 1e6\ntpot_within = 1e6", "", "'ttft_slo_ms' is missing"),
        ("output_tokens = 4", "output_tokens = 1", "'output_tokens' must be at least 2"),
        ("requests = 6", "requests = 6\nattained = 2", "'attained' must be a share of at most 1"),
        ("requests = 6", "requests = 6\nload = 0.8", "'load' has no meaning in a benchmark of scheduling"),
        ("requests = 6", "requests = 6\nrate = 3", "unknown key 'rate'"),
    ],
)
def test_what_cannot_be_honoured_is_refused(tmp_path: Path, old: str, new: str, fragment: str) -> None:
    assert old in SLO
    with pytest.raises(OptionError, match=r"mine\.toml") as refused:
        load(write(tmp_path, SLO.replace(old, new)))
    assert fragment in str(refused.value)


def test_the_recipe_for_a_gpu_is_read() -> None:
    (case,) = load(find_recipe("slo")).cases
    assert case.lora_ranks == (8, 16, 32, 64, 128)
    assert (case.bounds.ttft_slo_ms, case.tpot_within, case.ratio_at_least) == (500, 1.5, 1.3)


def test_policies_take_turns_at_each_rate(caraserve: Caraserve, tmp_path: Path) -> None:
    result_file = tmp_path / "result.json"
    ended = caraserve("bench", write(tmp_path, SLO), "--json", result_file)
    assert ended.returncode == 0, ended.stderr
    assert [line.split(":")[0] for line in ended.stderr.splitlines()] == [
        "warm-up  mixed, slack",
        "warm-up  mixed, fcfs",
        "warm-up  mixed, without adapters",
        "repeat 1/2  mixed, slack, 40/s",
        "repeat 1/2  mixed, fcfs, 40/s",
        "repeat 2/2  mixed, fcfs, 40/s",
        "repeat 2/2  mixed, slack, 40/s",
        "repeat 1/2  mixed, slack, 80/s",
        "repeat 1/2  mixed, fcfs, 80/s",
        "repeat 2/2  mixed, fcfs, 80/s",
        "repeat 2/2  mixed, slack, 80/s",
    ]
    result = json.loads(result_file.read_text())
    assert (result["kind"], result["verdict"]) == ("slo", "met")
    (case,) = result["cases"]
    assert case["undone"] == []
    assert case["bounds"]["tpot_slo_ms"] == pytest.approx(1e6 * case["base_tpot_ms"])
    assert case["held_rate_per_s"] == {"slack": 80, "fcfs": 80}
    for policy in ("slack", "fcfs"):
        assert [each["rate_per_s"] for each in case["results"][policy]] == [40, 80]
        assert all(each["attainment"]["values"] == [1.0, 1.0] for each in case["results"][policy])


def judged(tmp_path: Path, slack: list[float], fcfs: list[float]) -> SloCaseResult:
    (parsed,) = load(write(tmp_path, SLO)).cases
    case: SloCase = dataclasses.replace(parsed, rates_per_s=(10, 15, 20), ratio_at_least=1.3)

    def rates(attainments: list[float]) -> list[RateResult]:
        one = Spread.of([1.0])
        return [
            RateResult(
                rate_per_s=rate,
                attainment=Spread.of([attained]),
                mean_ttft_ms=one,
                mean_tpot_ms=one,
                output_tokens_per_s=one,
            )
            for rate, attained in zip(case.rates_per_s, attainments, strict=True)
        ]

    return SloCaseResult(
        case=case,
        bounds=case.bounds,
        base_tpot_ms=1.0,
        has_step_model=True,
        rates={"slack": rates(slack), "fcfs": rates(fcfs)},
        undone=(),
    )


@pytest.mark.parametrize(
    ("slack", "fcfs", "ratio", "verdict"),
    [
        ([1, 0.99, 0.9], [1, 0.98, 1], 1.5, Verdict.MET),
        ([1, 0.9, 0.9], [1, 0.98, 0.1], 1.0, Verdict.MISSED),
        ([1, 1, 1], [1, 1, 1], 1.0, Verdict.CANNOT_TELL),
        ([1, 1, 1], [0.9, 0.5, 0.1], None, Verdict.CANNOT_TELL),
    ],
)
def test_the_highest_rates_that_are_held_are_compared(
    tmp_path: Path, slack: list[float], fcfs: list[float], ratio: float | None, verdict: Verdict
) -> None:
    result = judged(tmp_path, slack, fcfs)
    assert (result.ratio, result.verdict) == (ratio, verdict)
