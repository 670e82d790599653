"""A whole benchmark of steps, tiny: the real engine on the CPU, through the command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from caraserve_cli.bench.floor import DeviceSpeed
from tests.bench.step_recipes import TINY_STEPS
from tests.bench.throughput_recipes import write_throughput
from tests.cli.conftest import Caraserve, caraserve

__all__ = ["caraserve"]

# Parameters of the sample: 6 layers, hidden 256, q and o of 256, k and v of 128; see RANK_5_BYTES.
RANK_WEIGHTS = 6 * ((256 + 256) + (256 + 128))


@pytest.fixture(autouse=True)
def known_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device of known speed, whose measuring (test_floor.py) takes longer than these benchmarks; none is
    faster."""
    speed = DeviceSpeed(bytes_per_s=1e15, flops_per_s=1e15)
    monkeypatch.setattr("caraserve_cli.bench.engine_runs.measure_speed", lambda *_: speed)


def test_steps_are_measured_against_their_floors(caraserve: Caraserve, tmp_path: Path) -> None:
    result_file = tmp_path / "result.json"
    ended = caraserve("bench", write_throughput(tmp_path, TINY_STEPS), "--json", result_file)
    lines = ended.stderr.splitlines()
    assert [line.split(":")[0] for line in lines] == [
        f"{turn}  {case}"
        for turn in ("warm-up", "repeat 1/2", "repeat 2/2")
        for case in ("base", "adapters", "prefill")
    ]
    assert all(line.endswith(" ms a step") for line in lines)
    result = json.loads(result_file.read_text())
    base, adapters, prefill = result["cases"]
    # No noise may decide: an added time of almost nothing can come out below zero.
    is_known = adapters["lora"]["part_ms"]["median"] > 0
    assert ended.returncode == (0 if is_known else 5), ended.stderr + ended.stdout
    verdict = "met" if is_known else "cannot-tell"
    assert (result["kind"], result["verdict"], result["num_adapters"]) == ("steps", verdict, 2)
    assert base["doubts"] == prefill["doubts"] == []
    for case in (base, adapters, prefill):
        assert case["undone"] == []
        assert len(case["step_ms"]["values"]) == 2
        assert case["times_floor"] == pytest.approx(case["step_ms"]["median"] / case["floor_ms"])
    # Two prompts and then the third beside two tokens: eight answers less one of each, and less that step.
    assert base["num_steps"] == [6, 6]
    # 18 prompt tokens and 2 of decoding, then 3 more in each of the 6 steps.
    assert base["context_tokens"] == pytest.approx(sum(20 + 3 * step for step in range(1, 7)) / 6 / 3)
    assert adapters["context_tokens"] == base["context_tokens"]
    lora = adapters["lora"]
    assert lora["floor_ms"] == pytest.approx((2 + 5) * RANK_WEIGHTS * 4 / 1e12)
    assert adapters["floor_ms"] - base["floor_ms"] == pytest.approx(lora["floor_ms"])
    differences = [
        with_ms - without_ms
        for with_ms, without_ms in zip(adapters["step_ms"]["values"], base["step_ms"]["values"], strict=True)
    ]
    assert lora["part_ms"]["values"] == pytest.approx(differences)
    # 4 prompts of 6 tokens in steps of 12.
    assert prefill["num_steps"] == [2, 2]
    assert prefill["of_product_rate"] == pytest.approx(1 / prefill["times_floor"])
    assert prefill["flops_per_s"] == pytest.approx(1e15 * prefill["of_product_rate"])


def test_a_missed_requirement(caraserve: Caraserve, tmp_path: Path) -> None:
    base_alone = "[[case]]".join(TINY_STEPS.split("[[case]]")[:2])
    text = base_alone.replace("at_most = 1e9", "at_most = 1.0")
    ended = caraserve("bench", write_throughput(tmp_path, text))
    assert ended.returncode == 4
    assert "Missed: in 'base' the step takes" in ended.stdout


def test_steps_that_never_come(caraserve: Caraserve, tmp_path: Path) -> None:
    """Three requests never decode together if the first has ended before the last has its first token."""
    base_alone = "[[case]]".join(TINY_STEPS.split("[[case]]")[:2])
    text = base_alone.replace("output_tokens = 8", "output_tokens = 2")
    ended = caraserve("bench", write_throughput(tmp_path, text))
    assert ended.returncode == 5
    assert "warm-up  base: no step to measure" in ended.stderr
    assert "Cannot tell: in 'base' no step decodes for all 3 requests and prefills nothing." in ended.stdout
